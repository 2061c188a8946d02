//! What is told of shares and pools: the kernel's word, with what the jobs add to it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{Service, admission};
use crate::driver::{DriverError, Observed, Problem, Shares, Space};
use crate::engine::pools::{Pool, in_two_pools};
use crate::model::{
    Bytes, CommandRecord, DriverKind, Finding, Job, JobId, JobKind, JobState, PoolName, PoolReport, ProjectLabel,
    Reason, Refusal, ShareId, ShareReport, ShareStatus,
};

/// A step that has been at work for so long is reported as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(60);
/// As long as [`Pool::call`] waits.
pub(super) const PATIENT: Duration = Duration::MAX;
/// What there is to do about a share that two places have.
const IN_ONE: &str = "take it out of one of them, or rename it there";
const OTHER_FILE_SYSTEM: &str = "mount one at its path that its driver can use, or change either in growd.toml";
const WAITING: &str = "dmesg, and ps -eo pid,stat,wchan:30,args, show what it waits for; then it goes on by itself";

impl Service {
    /// # Errors
    /// SHARE_NOT_FOUND, NOT_MOUNTED.
    pub async fn share(&self, share: ShareId) -> Result<ShareReport, Refusal> {
        // The jobs are asked first: a size that is read later is never older than the status says.
        let jobs = self.jobs_of(share);
        let (pool, observed) =
            self.engine.pools.find(share, move |pool| async move { pool.observe(share).await }).await?;
        Ok(report(&pool, share, observed, jobs))
    }

    /// Shares of one pool.
    pub(super) async fn report_all(
        &self,
        pool: &Arc<Pool>,
        shares: Vec<ShareId>,
        project: Option<&ProjectLabel>,
        limit: Duration,
    ) -> Vec<ShareReport> {
        // The jobs are asked first: a size that is read later is never older than the status says.
        let jobs: Vec<Jobs> = shares.iter().map(|share| self.jobs_of(*share)).collect();
        let observed = observe_all(pool, &shares, project, limit).await;
        let all = shares.into_iter().zip(observed).zip(jobs);
        all.map(|((share, observed), jobs)| report(pool, share, observed, jobs)).collect()
    }

    /// From memory: whoever looks at shares waits for no disk but theirs.
    pub(super) fn jobs_of(&self, share: ShareId) -> Jobs {
        let (claims, store) = (&self.engine.claims, &self.engine.store);
        if let active @ Some(id) = claims.active(share) {
            let shrinks = store.kind(id) == Some(JobKind::Shrink);
            let status = if shrinks { ShareStatus::Shrinking } else { ShareStatus::Extending };
            return Jobs { status, active, last: active };
        }
        // Of a failure its own job tells, which a cancelled one may have come after.
        let (status, last) = match store.last_ended(share, |state| state != JobState::Cancelled) {
            Some((id, JobKind::Extend, JobState::Failed)) => (ShareStatus::ExtendingError, Some(id)),
            Some((id, JobKind::Shrink, JobState::Failed)) => (ShareStatus::ShrinkingError, Some(id)),
            _ => (ShareStatus::Available, store.last_ended(share, |_| true).map(|(id, ..)| id)),
        };
        Jobs { status, active: None, last }
    }

    /// All pools at once; one that does not answer is reported as that.
    pub async fn pools(&self) -> Vec<PoolReport> {
        join_all(self.engine.pools.all().iter().map(|pool| self.pool(pool))).await
    }

    async fn pool(&self, pool: &Arc<Pool>) -> PoolReport {
        let mut report = PoolReport {
            pool: pool.name.clone(),
            driver: pool.driver.kind(),
            location: pool.driver.location(),
            filesystem: String::new(),
            total: Bytes::ZERO,
            free: Bytes::ZERO,
            promised: Bytes::ZERO,
            queued: Bytes::ZERO,
            available: Bytes::ZERO,
            reserve: pool.reserve,
            overcommit: pool.overcommit,
            shares: 0,
            thin: None,
            findings: Vec::new(),
        };
        let (space, shares) = match pool.call(|driver| Ok((driver.space()?, driver.shares(None)?.len()))).await {
            Ok(answer) => answer,
            Err(refusal) => {
                let problem = match refusal {
                    Refusal::Unsupported { .. } => Problem::blocking(refusal, OTHER_FILE_SYSTEM.to_owned()),
                    refusal => unreadable(refusal, report.driver),
                };
                report.findings.push(finding(&pool.name, None, problem));
                return report;
            }
        };
        report.filesystem = space.filesystem.to_owned();
        (report.total, report.free, report.promised) = (space.total, space.free, space.promised);
        report.queued = self.engine.ledger.queued(&space.id);
        report.available = admission::left(&space, pool.reserve, pool.overcommit).saturating_sub(report.queued);
        (report.shares, report.thin) = (shares, space.thin);
        let overcommitted = overcommitted(&space, pool.reserve, pool.overcommit);
        report.findings.extend(overcommitted.map(|problem| finding(&pool.name, None, problem)));
        report.findings.extend(space.problems.into_iter().map(|problem| finding(&pool.name, None, problem)));
        report
    }

    /// Everything that is wrong with the pools and their shares.
    pub async fn diagnose(&self) -> Vec<Finding> {
        let mut findings = self.stuck();
        let pools = self.engine.pools.all();
        let mut listed: HashMap<ShareId, &PoolName> = HashMap::new();
        for (pool, (found, shares)) in
            pools.iter().zip(join_all(pools.iter().map(|pool| self.diagnose_pool(pool))).await)
        {
            findings.extend(found);
            for share in shares.iter().filter(|share| !pools.iter().any(|pool| pool.named.contains(share))) {
                if let Some(other) = listed.insert(*share, &pool.name) {
                    let problem = Problem::blocking(in_two_pools(*share, other, &pool.name), IN_ONE.to_owned());
                    findings.push(finding(&pool.name, Some(*share), problem));
                }
            }
        }
        findings
    }

    /// What is wrong with a pool and its shares, and which these are.
    async fn diagnose_pool(&self, pool: &Arc<Pool>) -> (Vec<Finding>, Shares) {
        let none = || Shares::from([]);
        // First, since a kernel may show only from then on what it refuses.
        let refused = match pool.call(|driver| driver.refuses_changes()).await {
            // A pool that does not answer is waited for once.
            Err(refusal @ Refusal::Stuck { .. }) => {
                return (vec![finding(&pool.name, None, unreadable(refusal, pool.driver.kind()))], none());
            }
            answer => answer.ok().flatten(),
        };
        let mut of_pool = self.pool(pool).await.findings;
        if of_pool.iter().any(|finding| finding.kind == Reason::Stuck) {
            return (of_pool, none());
        }
        let refused = refused.filter(|problem| of_pool.iter().all(|known| known.kind != problem.kind));
        of_pool.extend(refused.map(|problem| finding(&pool.name, None, problem)));
        let Ok(shares) = pool.call(|driver| driver.shares(None)).await else { return (of_pool, none()) };
        let observed = observe_all(pool, &shares, None, PATIENT).await;
        let mut findings = of_pool.clone();
        for (share, observed) in shares.iter().zip(observed) {
            for problem in observed.problems {
                // What holds for the whole pool has been said, maybe with a figure of a moment ago.
                let said = |known: &Finding| (known.kind, &known.remedy) == (problem.kind, &problem.remedy);
                if !of_pool.iter().any(said) {
                    findings.push(finding(&pool.name, Some(*share), problem));
                }
            }
        }
        (findings, shares)
    }

    /// Jobs at a step that takes much longer than such steps do. They are never killed: whoever changes storage must
    /// come to its end.
    pub fn stuck(&self) -> Vec<Finding> {
        let finding = |(job, time): (Job, Duration)| Finding {
            kind: Reason::Stuck,
            pool: job.pool,
            share: Some(job.share),
            message: format!(
                "job {} has been at {} for {} s",
                job.id,
                job.steps.last().map_or("its work", |step| step.name.as_str()),
                time.as_secs()
            ),
            remedy: WAITING.to_owned(),
        };
        self.engine.stuck(STUCK_AFTER).into_iter().map(finding).collect()
    }

    /// The last commands that were given to tools of the host, the oldest first.
    pub fn commands(&self) -> Vec<CommandRecord> {
        self.recorder.commands()
    }
}

/// Shares of one pool as the kernel has them; those that cannot be read have a problem that says why.
async fn observe_all(
    pool: &Pool,
    shares: &[ShareId],
    project: Option<&ProjectLabel>,
    limit: Duration,
) -> Vec<Observed> {
    if shares.is_empty() {
        return Vec::new();
    }
    let asked = shares.to_vec();
    let answer = pool.call(move |driver| Ok(driver.observe_all(&asked)));
    let observed: Vec<Result<Observed, Refusal>> = match within(limit, pool, answer).await {
        Ok(observed) => observed.into_iter().map(|observed| observed.map_err(DriverError::into_refusal)).collect(),
        Err(refusal) => shares.iter().map(|_| Err(refusal.clone())).collect(),
    };
    let unread = |refusal| without_sizes(pool, project, refusal);
    observed.into_iter().map(|observed| observed.unwrap_or_else(unread)).collect()
}

/// What there is to tell of a share that cannot be read.
pub(super) fn without_sizes(pool: &Pool, project: Option<&ProjectLabel>, refusal: Refusal) -> Observed {
    Observed {
        location: PathBuf::from(pool.driver.location()),
        project: project.cloned().unwrap_or_default(),
        filesystem: "",
        sizes: None,
        used: None,
        problems: vec![unreadable(refusal, pool.driver.kind())],
    }
}

/// What a pool answers in this time, or STUCK.
pub(super) async fn within<T>(
    limit: Duration,
    pool: &Pool,
    answer: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let stuck = || Refusal::Stuck { pool: pool.name.clone(), waited: limit };
    timeout(limit, answer).await.unwrap_or_else(|_| Err(stuck()))
}

/// What the jobs say of a share.
pub(super) struct Jobs {
    status: ShareStatus,
    active: Option<JobId>,
    last: Option<JobId>,
}

/// More is promised than the pool may promise. What is written already, as the volumes of a group are, is more than a
/// promise.
fn overcommitted(space: &Space, reserve: Bytes, overcommit: f64) -> Option<Problem> {
    let allowed = space.total.saturating_sub(reserve).scaled(overcommit);
    let written = space.total.saturating_sub(space.free);
    if space.promised <= allowed.max(written) {
        return None;
    }
    let remedy = match reserve >= space.total {
        true => format!("lower reserve for the pool: {reserve} leaves nothing of {}", space.total.rounded()),
        false => "add space, or raise overcommit for the pool".to_owned(),
    };
    let message = format!("{} is promised, and {allowed} may be", space.promised.rounded());
    Some(Problem::warning(Reason::PoolOvercommitted, message, remedy))
}

/// A pool or a share that cannot be read.
fn unreadable(refusal: Refusal, driver: DriverKind) -> Problem {
    let remedy = match (&refusal, driver) {
        (Refusal::NotMounted { .. } | Refusal::ShareNotMounted { .. }, _) => {
            "mount the file system of the pool or the share, turn its quotas on, or activate its volume group"
        }
        (Refusal::Stuck { .. }, _) => WAITING,
        (Refusal::ShareNotFound { .. }, _) => "make what its [[share]] in growd.toml names, or take that out",
        (Refusal::InTwoPlaces { .. }, _) => IN_ONE,
        (Refusal::Unsupported { .. }, DriverKind::Btrfs) => {
            "make the share with btrfs subvolume create, or move what is in its place out of the pool"
        }
        (Refusal::Unsupported { .. }, _) => "move what is in the place of the share out of the pool",
        _ => "journalctl -u growd, dmesg",
    };
    Problem::blocking(refusal, remedy.to_owned())
}

pub(super) fn report(pool: &Pool, share: ShareId, observed: Observed, jobs: Jobs) -> ShareReport {
    let size = observed.size();
    let findings = observed.problems.into_iter().map(|problem| finding(&pool.name, Some(share), problem)).collect();
    ShareReport {
        share,
        pool: pool.name.clone(),
        driver: pool.driver.kind(),
        size,
        location: observed.location,
        project: observed.project,
        filesystem: observed.filesystem.to_owned(),
        used: observed.used,
        status: jobs.status,
        active_job: jobs.active,
        last_job: jobs.last,
        findings,
    }
}

fn finding(pool: &PoolName, share: Option<ShareId>, problem: Problem) -> Finding {
    Finding { kind: problem.kind, pool: pool.clone(), share, message: problem.message, remedy: problem.remedy }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::SpaceId;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_remedy_of_too_many_promises_changes_what_may_be_promised() {
        let space = |promised: u64| Space {
            id: SpaceId(String::new()),
            filesystem: "xfs",
            total: Bytes::new(2 * GIB),
            free: Bytes::new(2 * GIB),
            promised: Bytes::new(promised),
            thin: None,
            problems: Vec::new(),
        };
        let remedy = |promised, reserve: u64| {
            overcommitted(&space(promised), Bytes::new(reserve), 1.0).map(|problem| problem.remedy)
        };
        assert_eq!(remedy(GIB, GIB), None);
        assert_eq!(remedy(GIB + 1, GIB).as_deref(), Some("add space, or raise overcommit for the pool"));
        for reserve in [2 * GIB, 10 * GIB] {
            let remedy = remedy(1, reserve).unwrap();
            assert!(remedy.starts_with("lower reserve for the pool: ") && !remedy.contains("overcommit"), "{remedy}");
        }
    }

    #[test]
    fn what_cannot_be_read_has_a_remedy_that_is_not_to_look_again() {
        let what = "a directory that is no subvolume".to_owned();
        let unsupported = Refusal::Unsupported { what };
        assert!(unreadable(unsupported.clone(), DriverKind::Btrfs).remedy.contains("btrfs subvolume create"));
        for refusal in [unsupported, Refusal::Internal { problem: "EIO".to_owned() }] {
            for driver in DriverKind::ALL {
                let problem = unreadable(refusal.clone(), driver);
                assert!(!problem.remedy.contains("doctor"), "{problem:?}");
            }
        }
    }
}
