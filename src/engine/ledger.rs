//! What the jobs that have not ended have been promised, for each space that shares grow into.
//!
//! The kernel tells what has been given; the ledger adds what is about to be. Both are read at different moments, so a
//! job that ends in between could be counted in neither: growth that was released since the kernel was asked counts as
//! taken still. Two requests that fit alone but not together can therefore never both pass.

use std::collections::HashMap;

use crate::driver::SpaceId;
use crate::model::Bytes;

#[derive(Debug, Default)]
pub struct Ledger {
    accounts: HashMap<SpaceId, Account>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Account {
    queued: Bytes,
    /// All growth that was ever released.
    released: Bytes,
}

/// The moment before the kernel was asked: what had been released in each space by then.
#[derive(Clone, Debug)]
pub struct Moment(HashMap<SpaceId, Bytes>);

/// A request does not fit: this much is still free.
#[derive(Debug, PartialEq, Eq)]
pub struct Shortage {
    pub free: Bytes,
    pub queued: Bytes,
}

impl Ledger {
    /// To be taken before the kernel is asked how much has been given.
    pub fn moment(&self) -> Moment {
        Moment(self.accounts.iter().map(|(space, account)| (space.clone(), account.released)).collect())
    }

    /// Reserves growth in a space that has this much left by the kernel's account since `moment`.
    ///
    /// # Errors
    /// [`Shortage`] when it does not fit beside what is queued.
    pub fn reserve(&mut self, space: &SpaceId, moment: &Moment, left: Bytes, growth: Bytes) -> Result<(), Shortage> {
        let account = self.account(space);
        let released = moment.0.get(space).copied().unwrap_or_default();
        let queued = account.queued.saturating_add(account.released.saturating_sub(released));
        let free = left.saturating_sub(queued);
        if growth > free {
            return Err(Shortage { free, queued });
        }
        self.add(space, growth);
        Ok(())
    }

    /// Reserves without a question: for jobs that were accepted before a restart, and for shrinks.
    pub fn add(&mut self, space: &SpaceId, growth: Bytes) {
        let account = self.accounts.entry(space.clone()).or_default();
        account.queued = account.queued.saturating_add(growth);
    }

    /// To be called when a job has ended: what it was promised is in the kernel's account, or never will be.
    pub fn release(&mut self, space: &SpaceId, growth: Bytes) {
        self.withdraw(space, growth);
        if let Some(account) = self.accounts.get_mut(space) {
            account.released = account.released.saturating_add(growth);
        }
    }

    /// Gives back what no job has had: others may have it at once, also those who asked the kernel before.
    pub fn withdraw(&mut self, space: &SpaceId, growth: Bytes) {
        if let Some(account) = self.accounts.get_mut(space) {
            account.queued = account.queued.saturating_sub(growth);
        }
    }

    pub fn queued(&self, space: &SpaceId) -> Bytes {
        self.account(space).queued
    }

    fn account(&self, space: &SpaceId) -> Account {
        self.accounts.get(space).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_that_fit_alone_do_not_fit_together() {
        let space = SpaceId("a".to_owned());
        let mut ledger = Ledger::default();
        let moment = ledger.moment();
        assert_eq!(ledger.reserve(&space, &moment, Bytes::gib(3), Bytes::gib(2)), Ok(()));
        let shortage = Shortage { free: Bytes::gib(1), queued: Bytes::gib(2) };
        assert_eq!(ledger.reserve(&space, &moment, Bytes::gib(3), Bytes::gib(2)), Err(shortage));
    }

    #[test]
    fn a_job_that_ends_while_the_kernel_is_asked_still_counts() {
        let space = SpaceId("a".to_owned());
        let mut ledger = Ledger::default();
        ledger.add(&space, Bytes::gib(2));
        let before = ledger.moment();
        ledger.release(&space, Bytes::gib(2));
        // The kernel was asked before the limit rose, so 3 GiB look free, and 2 of them are gone.
        assert!(ledger.reserve(&space, &before, Bytes::gib(3), Bytes::gib(2)).is_err());
        let after = ledger.moment();
        assert_eq!(ledger.reserve(&space, &after, Bytes::gib(3), Bytes::gib(2)), Ok(()));
    }

    #[test]
    fn what_was_promised_to_nobody_is_free_at_once() {
        let space = SpaceId("a".to_owned());
        let mut ledger = Ledger::default();
        let moment = ledger.moment();
        let reserve = |ledger: &mut Ledger| ledger.reserve(&space, &moment, Bytes::gib(3), Bytes::gib(2));
        assert_eq!(reserve(&mut ledger), Ok(()));
        assert!(reserve(&mut ledger).is_err());
        ledger.withdraw(&space, Bytes::gib(2));
        assert_eq!(reserve(&mut ledger), Ok(()), "a dry run that has ended takes nothing");
    }

    /// One request on its way: it asks the kernel at one moment, reserves at a later one, and its growth is seen by the
    /// kernel before its promise is given back.
    #[derive(Clone, Debug)]
    enum Request {
        Asked { moment: Moment, left: Bytes },
        Promised,
        Given,
    }

    proptest! {
        #[test]
        fn no_order_of_events_promises_more_than_there_is(
            total in 0..100_u64, growths in prop::collection::vec(1..60_u64, 1..8), turns in prop::collection::vec((0..8_usize, any::<bool>()), 0..60),
        ) {
            let space = SpaceId("a".to_owned());
            let (mut ledger, mut given) = (Ledger::default(), 0);
            let mut requests: Vec<Option<Request>> = vec![None; growths.len()];
            for (turn, gives_up) in turns {
                let at = turn % growths.len();
                let growth = growths[at];
                requests[at] = match requests[at].take() {
                    None => {
                        let moment = ledger.moment();
                        Some(Request::Asked { moment, left: Bytes::new(total - given) })
                    }
                    Some(Request::Asked { moment, left }) => {
                        let reserved = ledger.reserve(&space, &moment, left, Bytes::new(growth));
                        reserved.is_ok().then_some(Request::Promised)
                    }
                    Some(Request::Promised) if gives_up => {
                        ledger.withdraw(&space, Bytes::new(growth));
                        None
                    }
                    Some(Request::Promised) => {
                        given += growth;
                        Some(Request::Given)
                    }
                    Some(Request::Given) => {
                        ledger.release(&space, Bytes::new(growth));
                        None
                    }
                };
                let promised: u64 = requests.iter().zip(&growths)
                    .filter(|(request, _)| matches!(request, Some(Request::Promised)))
                    .map(|(_, growth)| growth).sum();
                prop_assert!(given + promised <= total, "{given} given and {promised} promised of {total}");
            }
        }
    }
}
