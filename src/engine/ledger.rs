//! What the jobs that have not ended have been promised, for each pool.
//!
//! Pools may grow into the same space, so each account tells which one it is, as the kernel said last. The kernel tells
//! what has been given; the ledger adds what is about to be. Both are read at different moments, so a job that ends in
//! between could be counted in neither: growth that was released since the kernel was asked counts as taken still. Two
//! requests that fit alone but not together can therefore never both pass.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::driver::SpaceId;
use crate::model::{Bytes, PoolName};

#[derive(Debug, Default)]
pub struct Ledger(Mutex<HashMap<PoolName, Account>>);

#[derive(Debug, Default)]
struct Account {
    /// What the pool's shares grow into; `None` until the kernel has said it.
    space: Option<SpaceId>,
    queued: Bytes,
    /// All growth that was ever released.
    released: Bytes,
}

/// The moment before the kernel was asked: what had been released by then.
#[derive(Clone, Debug)]
pub struct Moment(HashMap<PoolName, Bytes>);

/// A request does not fit: this much is still free.
#[derive(Debug, PartialEq, Eq)]
pub struct Shortage {
    pub free: Bytes,
    pub queued: Bytes,
}

impl Ledger {
    /// To be taken before the kernel is asked how much has been given.
    pub fn moment(&self) -> Moment {
        Moment(self.0.lock().iter().map(|(pool, account)| (pool.clone(), account.released)).collect())
    }

    /// Reserves growth in a pool, whose space has this much left by the kernel's account since `moment`.
    ///
    /// # Errors
    /// [`Shortage`] when it does not fit beside what is queued.
    pub fn reserve(
        &self,
        pool: &PoolName,
        space: &SpaceId,
        moment: &Moment,
        left: Bytes,
        growth: Bytes,
    ) -> Result<(), Shortage> {
        let mut accounts = self.0.lock();
        account(&mut accounts, pool).space = Some(space.clone());
        let mut queued = Bytes::ZERO;
        for (pool, account) in in_space(&accounts, space) {
            let released = moment.0.get(pool).copied().unwrap_or_default();
            queued = queued.saturating_add(account.queued).saturating_add(account.released.saturating_sub(released));
        }
        let free = left.saturating_sub(queued);
        if growth > free {
            return Err(Shortage { free, queued });
        }
        let account = account(&mut accounts, pool);
        account.queued = account.queued.saturating_add(growth);
        Ok(())
    }

    /// Reserves without a question: for jobs that were accepted before a restart, and for shrinks.
    pub fn add(&self, pool: &PoolName, growth: Bytes) {
        let mut accounts = self.0.lock();
        let account = account(&mut accounts, pool);
        account.queued = account.queued.saturating_add(growth);
    }

    /// Notes what the shares of a pool grow into.
    pub fn learn(&self, pool: &PoolName, space: SpaceId) {
        account(&mut self.0.lock(), pool).space = Some(space);
    }

    /// To be called when a job has ended: what it was promised is in the kernel's account, or never will be.
    pub fn release(&self, pool: &PoolName, growth: Bytes) {
        let mut accounts = self.0.lock();
        let account = account(&mut accounts, pool);
        account.queued = account.queued.saturating_sub(growth);
        account.released = account.released.saturating_add(growth);
    }

    /// Gives back what no job has had: others may have it at once, also those who asked the kernel before.
    pub fn withdraw(&self, pool: &PoolName, growth: Bytes) {
        let mut accounts = self.0.lock();
        let account = account(&mut accounts, pool);
        account.queued = account.queued.saturating_sub(growth);
    }

    /// What is queued in all pools of a space.
    pub fn queued(&self, space: &SpaceId) -> Bytes {
        in_space(&self.0.lock(), space).map(|(_, account)| account.queued).sum()
    }
}

fn account<'a>(accounts: &'a mut HashMap<PoolName, Account>, pool: &PoolName) -> &'a mut Account {
    accounts.entry(pool.clone()).or_default()
}

fn in_space<'a>(
    accounts: &'a HashMap<PoolName, Account>,
    space: &'a SpaceId,
) -> impl Iterator<Item = (&'a PoolName, &'a Account)> {
    accounts.iter().filter(move |(_, account)| account.space.as_ref() == Some(space))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn home() -> PoolName {
        "home".parse().unwrap()
    }

    fn disk() -> SpaceId {
        SpaceId("a".to_owned())
    }

    #[test]
    fn two_that_fit_alone_do_not_fit_together() {
        let ledger = Ledger::default();
        let moment = ledger.moment();
        let reserve = |growth| ledger.reserve(&home(), &disk(), &moment, Bytes::gib(3), growth);
        assert_eq!(reserve(Bytes::gib(2)), Ok(()));
        assert_eq!(reserve(Bytes::gib(2)), Err(Shortage { free: Bytes::gib(1), queued: Bytes::gib(2) }));
        assert_eq!(reserve(Bytes::gib(1)), Ok(()), "the last of it can be had");
    }

    #[test]
    fn pools_of_one_space_compete_and_those_of_others_do_not() {
        let ledger = Ledger::default();
        let [beside, elsewhere] = ["beside", "elsewhere"].map(|name| name.parse::<PoolName>().unwrap());
        let other_disk = SpaceId("b".to_owned());
        // Of jobs of before a restart: where they are is learned later.
        [&beside, &elsewhere].iter().for_each(|pool| ledger.add(pool, Bytes::gib(2)));
        ledger.learn(&elsewhere, other_disk.clone());
        let reserve = || ledger.reserve(&home(), &disk(), &ledger.moment(), Bytes::gib(3), Bytes::gib(2));
        let fits = reserve();
        ledger.withdraw(&home(), Bytes::gib(2));
        ledger.learn(&beside, disk());
        assert_eq!((fits, reserve()), (Ok(()), Err(Shortage { free: Bytes::gib(1), queued: Bytes::gib(2) })));
        assert_eq!([ledger.queued(&disk()), ledger.queued(&other_disk)], [Bytes::gib(2); 2]);
    }

    #[test]
    fn jobs_of_before_a_restart_count_in_their_own_pool_at_once() {
        let ledger = Ledger::default();
        ledger.add(&home(), Bytes::gib(2));
        let moment = ledger.moment();
        assert!(ledger.reserve(&home(), &disk(), &moment, Bytes::gib(3), Bytes::gib(2)).is_err());
    }

    #[test]
    fn a_job_that_ends_while_the_kernel_is_asked_still_counts() {
        let ledger = Ledger::default();
        ledger.add(&home(), Bytes::gib(2));
        let before = ledger.moment();
        ledger.release(&home(), Bytes::gib(2));
        // The kernel was asked before the limit rose, so 3 GiB look free, and 2 of them are gone.
        assert!(ledger.reserve(&home(), &disk(), &before, Bytes::gib(3), Bytes::gib(2)).is_err());
        let after = ledger.moment();
        assert_eq!(ledger.reserve(&home(), &disk(), &after, Bytes::gib(3), Bytes::gib(2)), Ok(()));
    }

    #[test]
    fn what_was_promised_to_nobody_is_free_at_once() {
        let ledger = Ledger::default();
        let moment = ledger.moment();
        let reserve = || ledger.reserve(&home(), &disk(), &moment, Bytes::gib(3), Bytes::gib(2));
        assert_eq!(reserve(), Ok(()));
        assert!(reserve().is_err());
        ledger.withdraw(&home(), Bytes::gib(2));
        assert_eq!(reserve(), Ok(()), "a dry run that has ended takes nothing");
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
            let pools = [home(), "beside".parse().unwrap()];
            let (ledger, mut given) = (Ledger::default(), 0);
            let mut requests: Vec<Option<Request>> = vec![None; growths.len()];
            for (turn, gives_up) in turns {
                let at = turn % growths.len();
                let (growth, pool) = (growths[at], &pools[at % 2]);
                requests[at] = match requests[at].take() {
                    None => {
                        let moment = ledger.moment();
                        Some(Request::Asked { moment, left: Bytes::new(total - given) })
                    }
                    Some(Request::Asked { moment, left }) => {
                        let reserved = ledger.reserve(pool, &disk(), &moment, left, Bytes::new(growth));
                        reserved.is_ok().then_some(Request::Promised)
                    }
                    Some(Request::Promised) if gives_up => {
                        ledger.withdraw(pool, Bytes::new(growth));
                        None
                    }
                    Some(Request::Promised) => {
                        given += growth;
                        Some(Request::Given)
                    }
                    Some(Request::Given) => {
                        ledger.release(pool, Bytes::new(growth));
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
