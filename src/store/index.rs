//! What is on disk, by share, by state and by request id: in memory, rebuilt by one scan at start.
//!
//! Always a little behind the disk and never before it: a job is published here only after its record was flushed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use uuid::Uuid;

use crate::model::{Job, JobId, JobKind, JobState, RequestId, ShareId};

/// Which jobs a listing is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub share: Option<ShareId>,
    pub state: Option<JobState>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Index {
    all: BTreeMap<JobId, (JobKind, JobState)>,
    unfinished: BTreeSet<JobId>,
    /// One set for all shares: a set for each would take more memory than all else, since most shares have few jobs.
    by_share: BTreeSet<(ShareId, JobId)>,
    by_request: HashMap<RequestId, JobId>,
}

/// What the index knows of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: JobId,
    pub kind: JobKind,
    pub state: JobState,
    pub share: ShareId,
    pub request_id: Option<RequestId>,
}

impl From<&Job> for Entry {
    fn from(job: &Job) -> Self {
        Self { id: job.id, kind: job.kind, state: job.state, share: job.share, request_id: job.request_id }
    }
}

/// Made at once from many, which takes less time and less room than one after the other: a tree that is made of what is
/// sorted has full nodes. No job is there twice.
impl From<&[Entry]> for Index {
    fn from(entries: &[Entry]) -> Self {
        let requests = entries.iter().filter_map(|entry| Some((entry.request_id?, entry.id)));
        std::thread::scope(|threads| {
            // Takes as long as all the rest: this must be sorted, and jobs come in their order.
            let by_share = threads.spawn(|| entries.iter().map(|entry| (entry.share, entry.id)).collect());
            Self {
                all: entries.iter().map(|entry| (entry.id, (entry.kind, entry.state))).collect(),
                unfinished: entries.iter().filter(|entry| !entry.state.is_ended()).map(|entry| entry.id).collect(),
                by_request: requests.collect(),
                by_share: by_share.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            }
        })
    }
}

impl Index {
    pub fn publish(&mut self, job: &Job) {
        self.all.insert(job.id, (job.kind, job.state));
        self.by_share.insert((job.share, job.id));
        if job.state.is_ended() {
            self.unfinished.remove(&job.id);
        } else {
            self.unfinished.insert(job.id);
        }
        if let Some(request_id) = job.request_id {
            self.by_request.insert(request_id, job.id);
        }
    }

    pub fn forget(&mut self, job: &Job) {
        self.all.remove(&job.id);
        self.unfinished.remove(&job.id);
        self.by_share.remove(&(job.share, job.id));
        // A job that was removed may be back after a power cut, and its request id be another job's by then.
        if let Some(request_id) = job.request_id
            && self.by_request.get(&request_id) == Some(&job.id)
        {
            self.by_request.remove(&request_id);
        }
    }

    pub fn contains(&self, job: JobId) -> bool {
        self.all.contains_key(&job)
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn newest(&self) -> Option<JobId> {
        self.all.last_key_value().map(|(id, _)| *id)
    }

    pub fn of_request(&self, request_id: RequestId) -> Option<JobId> {
        self.by_request.get(&request_id).copied()
    }

    pub fn kind(&self, job: JobId) -> Option<JobKind> {
        self.all.get(&job).map(|(kind, _)| *kind)
    }

    /// The newest of a share's jobs that have ended in a state that counts, with what it did and that state.
    pub fn last_ended(&self, share: ShareId, counts: impl Fn(JobState) -> bool) -> Option<(JobId, JobKind, JobState)> {
        self.of_share(share, None).find_map(|id| {
            let (kind, state) = *self.all.get(&id)?;
            (state.is_ended() && counts(state)).then_some((id, kind, state))
        })
    }

    /// The jobs of a share, newest first, from the one before `before` on.
    fn of_share(&self, share: ShareId, before: Option<JobId>) -> impl Iterator<Item = JobId> {
        let [first, last] = [Uuid::nil(), Uuid::max()].map(|id| (share, JobId::from_uuid(id)));
        let end = before.map_or(Bound::Included(last), |before| Bound::Excluded((share, before)));
        self.by_share.range((Bound::Included(first), end)).rev().map(|(_, id)| *id)
    }

    /// Up to `limit` jobs, newest first, from the one before `before` on.
    ///
    /// The states on disk lag behind those of jobs at work, so a selection of QUEUED or RUNNING gives all that are
    /// unfinished: whoever knows the jobs at work picks.
    pub fn newest_first(&self, selection: &Selection, before: Option<JobId>, limit: usize) -> Vec<JobId> {
        let end = before.map_or(Bound::Unbounded, Bound::Excluded);
        let fits = |id: &JobId| match selection.state {
            None => true,
            Some(state) if state.is_ended() => self.all.get(id).is_some_and(|(_, ended)| *ended == state),
            Some(_) => self.unfinished.contains(id),
        };
        match (selection.share, selection.state) {
            (Some(share), _) => self.of_share(share, before).filter(fits).take(limit).collect(),
            (None, Some(state)) if !state.is_ended() => {
                self.unfinished.range((Bound::Unbounded, end)).rev().copied().take(limit).collect()
            }
            (None, _) => {
                let all = self.all.range((Bound::Unbounded, end)).rev();
                all.map(|(id, _)| *id).filter(fits).take(limit).collect()
            }
        }
    }

    /// Number of jobs that have ended.
    pub fn ended(&self) -> usize {
        self.all.len() - self.unfinished.len()
    }

    /// Ended jobs, oldest first, that retention no longer keeps: all up to `old`, and those above `most_kept` in number.
    pub fn expired(&self, old: Option<JobId>, most_kept: usize, limit: usize) -> Vec<JobId> {
        let mut surplus = self.ended().saturating_sub(most_kept);
        let mut expired = Vec::new();
        for (id, (_, state)) in &self.all {
            if (Some(*id) > old && surplus == 0) || expired.len() == limit {
                break;
            }
            if state.is_ended() {
                expired.push(*id);
                surplus = surplus.saturating_sub(1);
            }
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::tests::any_job;

    fn id(n: u128) -> JobId {
        JobId::from_uuid(Uuid::from_u128(n))
    }

    fn index() -> Index {
        let mut index = Index::default();
        for (n, state) in
            [(1, JobState::Succeeded), (2, JobState::Failed), (3, JobState::Queued), (4, JobState::Succeeded)]
        {
            let mut job = any_job(n, state);
            job.request_id = Some(RequestId::from_uuid(Uuid::from_u128(n)));
            index.publish(&job);
        }
        index
    }

    #[test]
    fn lists_newest_first_by_share_and_state() {
        let index = index();
        let of = |share, state| Selection { share, state };
        let share = any_job(0, JobState::Queued).share;
        let other = ShareId::from_uuid(Uuid::from_u128(99));
        let list = |selection, before, limit| index.newest_first(&selection, before, limit);
        assert_eq!(list(of(None, None), None, 9), [id(4), id(3), id(2), id(1)]);
        assert_eq!(list(of(Some(share), None), Some(id(3)), 9), [id(2), id(1)]);
        assert_eq!(list(of(None, Some(JobState::Succeeded)), None, 1), [id(4)]);
        assert_eq!(list(of(Some(share), Some(JobState::Running)), None, 9), [id(3)]);
        assert_eq!(list(of(None, Some(JobState::Cancelled)), None, 9), []);
        assert_eq!(list(of(Some(other), None), None, 9), []);
    }

    #[test]
    fn the_last_job_of_a_share_has_ended_and_counts() {
        let (mut index, share) = (index(), any_job(0, JobState::Queued).share);
        for (n, state) in [(5, JobState::Cancelled), (6, JobState::Running)] {
            index.publish(&any_job(n, state));
        }
        let last = |counts: fn(JobState) -> bool| index.last_ended(share, counts);
        assert_eq!(last(|_| true), Some((id(5), JobKind::Extend, JobState::Cancelled)));
        assert_eq!(last(|state| state != JobState::Cancelled), Some((id(4), JobKind::Extend, JobState::Succeeded)));
        assert_eq!(index.last_ended(ShareId::from_uuid(Uuid::from_u128(99)), |_| true), None);
    }

    #[test]
    fn made_at_once_it_is_as_made_one_by_one() {
        let jobs: Vec<Job> = (1..9).map(|n| any_job(n, JobState::ALL[n as usize % JobState::ALL.len()])).collect();
        let mut one_by_one = Index::default();
        jobs.iter().for_each(|job| one_by_one.publish(job));
        let entries: Vec<Entry> = jobs.iter().map(Entry::from).collect();
        assert_eq!(Index::from(entries.as_slice()), one_by_one);
    }

    #[test]
    fn expires_by_age_and_number_and_never_the_unfinished() {
        let mut index = index();
        assert_eq!(index.expired(None, 9, 9), []);
        assert_eq!(index.expired(None, 1, 9), [id(1), id(2)]);
        assert_eq!(index.expired(Some(id(1)), 9, 9), [id(1)]);
        assert_eq!(index.expired(Some(id(9)), 9, 9), [id(1), id(2), id(4)]);
        assert_eq!(index.expired(Some(id(9)), 0, 1), [id(1)]);
        let mut job = any_job(1, JobState::Succeeded);
        job.request_id = Some(RequestId::from_uuid(Uuid::from_u128(1)));
        index.forget(&job);
        assert_eq!(index.of_request(RequestId::from_uuid(Uuid::from_u128(1))), None);
        assert_eq!((index.len(), index.newest()), (3, Some(id(4))));
        let taken = RequestId::from_uuid(Uuid::from_u128(4));
        job.id = id(2);
        job.request_id = Some(taken);
        index.forget(&job);
        assert_eq!(index.of_request(taken), Some(id(4)), "the id of a newer job went with the older one");
    }
}
