//! Who may have a job accepted for a share: one at a time.
//!
//! Acceptance takes a flush, and nothing may be seen before it. Whoever comes meanwhile, for the same share or with the
//! same request id, waits for its outcome.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::model::{JobId, RequestId, ShareId};

/// How long a request waits for the outcome of others: those may wait for a disk that hangs.
const OTHERS_MOST: Duration = Duration::from_secs(10);

/// The job that an acceptance has ended with. A sender that is gone without one has given its claim back.
type Outcome = Option<JobId>;

enum Slot {
    Accepting(watch::Receiver<Outcome>),
    Active(JobId),
}

#[derive(Default)]
pub struct Claims {
    slots: Mutex<Slots>,
    accepting: watch::Sender<usize>,
    /// Set when growd drains: no new claims.
    closed: watch::Sender<bool>,
}

#[derive(Default)]
struct Slots {
    shares: HashMap<ShareId, Slot>,
    requests: HashMap<RequestId, watch::Receiver<Outcome>>,
}

/// Why a share cannot be claimed now.
#[derive(Debug, PartialEq, Eq)]
pub enum Denied {
    /// The request id belongs to this job.
    Known(JobId),
    /// A job is active.
    Busy(JobId),
    /// So many shares are claimed, which is the most.
    Full(usize),
    /// Another request for the share has been without an answer for so long.
    Held(Duration),
    Closed,
}

/// The right to have a job accepted; given back when it is dropped.
pub struct Claim<'a> {
    claims: &'a Claims,
    pub share: ShareId,
    request_id: Option<RequestId>,
    outcome: watch::Sender<Outcome>,
}

impl Claims {
    /// Claims a share, and a request id with it. Waits while an acceptance for either is under way, up to [`OTHERS_MOST`].
    ///
    /// `known` tells whether the request id already belongs to a job.
    ///
    /// # Errors
    /// [`Denied`].
    pub async fn claim(
        &self,
        share: ShareId,
        request_id: Option<RequestId>,
        most: usize,
        known: impl Fn(RequestId) -> Option<JobId>,
    ) -> Result<Claim<'_>, Denied> {
        let deadline = Instant::now() + OTHERS_MOST;
        loop {
            let (mut outcome, of_share) = {
                let mut slots = self.slots.lock();
                let accepting = request_id.and_then(|id| slots.requests.get(&id));
                if let Some(accepting) = accepting {
                    (accepting.clone(), false)
                } else if let Some(job) = request_id.and_then(&known) {
                    return Err(Denied::Known(job));
                } else if self.is_closed() {
                    return Err(Denied::Closed);
                } else {
                    match slots.shares.get(&share) {
                        Some(Slot::Active(job)) => return Err(Denied::Busy(*job)),
                        Some(Slot::Accepting(accepting)) => (accepting.clone(), true),
                        None if slots.shares.len() >= most => return Err(Denied::Full(slots.shares.len())),
                        None => return Ok(self.take(&mut slots, share, request_id)),
                    }
                }
            };
            let accepted = timeout_at(deadline, outcome.wait_for(Option::is_some)).await;
            match accepted.map(|accepted| accepted.ok().and_then(|job| *job)) {
                Err(_) => return Err(Denied::Held(OTHERS_MOST)),
                // It was accepted while this one waited: they were at it together, even if that job has ended by now.
                Ok(Some(job)) if of_share => return Err(Denied::Busy(job)),
                Ok(_) => {}
            }
        }
    }

    fn take(&self, slots: &mut Slots, share: ShareId, request_id: Option<RequestId>) -> Claim<'_> {
        let (outcome, accepting) = watch::channel(None);
        slots.shares.insert(share, Slot::Accepting(accepting.clone()));
        if let Some(request_id) = request_id {
            slots.requests.insert(request_id, accepting);
        }
        self.accepting.send_modify(|accepting| *accepting += 1);
        Claim { claims: self, share, request_id, outcome }
    }

    /// How many acceptances are under way.
    pub fn accepting(&self) -> usize {
        *self.accepting.borrow()
    }

    /// Waits until none is.
    pub async fn none_accepting(&self) {
        // The sender lives as long as this does.
        let _ = self.accepting.subscribe().wait_for(|accepting| *accepting == 0).await;
    }

    /// Marks a share as having an active job, at the start. False when it has one already.
    pub fn activate(&self, share: ShareId, job: JobId) -> bool {
        let mut slots = self.slots.lock();
        let free = !slots.shares.contains_key(&share);
        if free {
            slots.shares.insert(share, Slot::Active(job));
        }
        free
    }

    /// Gives a share free whose job has ended.
    pub fn release(&self, share: ShareId) {
        self.slots.lock().shares.remove(&share);
    }

    pub fn active(&self, share: ShareId) -> Option<JobId> {
        match self.slots.lock().shares.get(&share) {
            Some(Slot::Active(job)) => Some(*job),
            _ => None,
        }
    }

    /// Allows no new claims from now on.
    pub fn close(&self) {
        // None is in the middle of being given then.
        let _slots = self.slots.lock();
        self.closed.send_replace(true);
    }

    pub fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Waits until no new claims are allowed.
    pub async fn closed(&self) {
        // The sender lives as long as this does.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }
}

impl Claim<'_> {
    /// The job is durable: whoever waited with its request id is given it, and others that the share is busy with it.
    pub fn accepted(self, job: JobId) {
        self.claims.slots.lock().shares.insert(self.share, Slot::Active(job));
        self.outcome.send_replace(Some(job));
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut slots = self.claims.slots.lock();
        if let Some(request_id) = self.request_id {
            slots.requests.remove(&request_id);
        }
        if matches!(slots.shares.get(&self.share), Some(Slot::Accepting(_))) {
            slots.shares.remove(&self.share);
        }
        self.claims.accepting.send_modify(|accepting| *accepting -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;
    use uuid::Uuid;

    fn share(n: u128) -> ShareId {
        ShareId::from_uuid(Uuid::from_u128(n))
    }

    fn job(n: u128) -> JobId {
        JobId::from_uuid(Uuid::from_u128(n))
    }

    #[tokio::test]
    async fn a_share_has_one_job_a_request_id_one_and_all_together_so_many() {
        let claims = Claims::default();
        let id = RequestId::from_uuid(Uuid::from_u128(1));
        let claim =
            async |n, request_id, known: Option<JobId>| claims.claim(share(n), request_id, 2, |_| known).await.err();
        let first = claims.claim(share(1), Some(id), 2, |_| None).await.unwrap();
        let second = claims.claim(share(2), None, 2, |_| None).await.unwrap();
        assert_eq!(claim(3, None, None).await, Some(Denied::Full(2)));

        // Both wait for the first acceptance: one for its share, one for its request id.
        let (same_share, same_request, ()) =
            tokio::join!(claim(1, None, None), claim(3, Some(id), Some(job(1))), async {
                tokio::task::yield_now().await;
                first.accepted(job(1));
                // It ends before either has a turn.
                claims.release(share(1));
            });
        assert_eq!((same_share, same_request), (Some(Denied::Busy(job(1))), Some(Denied::Known(job(1)))));
        assert!(claims.activate(share(1), job(2)) && !claims.activate(share(1), job(3)));
        assert_eq!(claim(1, None, None).await, Some(Denied::Busy(job(2))));

        let (again, ()) = tokio::join!(claim(2, None, None), async {
            tokio::task::yield_now().await;
            drop(second);
        });
        assert_eq!(again, None, "an acceptance that failed leaves the share to whoever waits");
        claims.release(share(1));
        assert_eq!(claim(1, None, None).await, None);
        claims.close();
        assert_eq!(claim(1, None, None).await, Some(Denied::Closed));
        assert_eq!(claim(1, Some(id), Some(job(1))).await, Some(Denied::Known(job(1))), "also while growd drains");
    }

    #[tokio::test]
    async fn an_acceptance_is_under_way_until_its_claim_is_accepted_or_given_back() {
        let claims = Claims::default();
        let claim = async |n| claims.claim(share(n), None, 9, |_| None).await.unwrap();
        let (accepted, given_back) = (claim(1).await, claim(2).await);
        assert_eq!(claims.accepting(), 2);
        accepted.accepted(job(7));
        assert!(timeout(Duration::from_millis(50), claims.none_accepting()).await.is_err());
        drop(given_back);
        claims.none_accepting().await;
        assert_eq!(claims.accepting(), 0);
    }
}
