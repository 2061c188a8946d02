//! What is told of shares, pools and the node: the kernel's word, with what the jobs add to it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::{Service, admission};
use crate::driver::{Observed, Problem};
use crate::engine::pools::Pool;
use crate::model::{
    Bytes, Finding, JobState, PoolName, PoolReport, Reason, Refusal, ShareId, ShareReport, ShareStatus,
};

/// The node at one moment.
#[derive(Clone, Debug)]
pub struct NodeReport {
    pub hostname: String,
    pub kernel: String,
    pub started_at: SystemTime,
    pub draining: bool,
    pub store_failed: bool,
    pub queued: usize,
    pub running: usize,
    pub max_active_jobs: usize,
    pub kept_jobs: usize,
    pub store_bytes: u64,
}

impl Service {
    /// # Errors
    /// SHARE_NOT_FOUND, NOT_MOUNTED.
    pub async fn share(&self, share: ShareId) -> Result<ShareReport, Refusal> {
        // The jobs are asked first: a size that is read later is never older than the status says.
        let jobs = self.jobs_of(share);
        let (pool, observed) = self.engine.pools.find(share, move |driver| driver.observe(share)).await?;
        Ok(report(&pool, share, observed, jobs))
    }

    /// Shares in the order of their ids, of one pool or of all, from behind `after` on.
    ///
    /// # Errors
    /// INVALID_REQUEST for an unknown pool; NOT_MOUNTED when the only pool asked for is not there.
    pub async fn shares(
        &self,
        pool: Option<&PoolName>,
        after: Option<ShareId>,
        size: usize,
    ) -> Result<(Vec<ShareReport>, Option<ShareId>), Refusal> {
        let pools: Vec<Arc<Pool>> = match pool {
            None => self.engine.pools.iter().cloned().collect(),
            Some(name) => vec![Arc::clone(self.engine.pools.get(name).ok_or_else(|| Refusal::InvalidRequest {
                field: "pool",
                problem: format!("{:?} is not in the configuration", name.as_str()),
            })?)],
        };
        let mut places: Vec<(ShareId, Arc<Pool>)> = Vec::new();
        for candidate in pools {
            match candidate.call(|driver| driver.shares()).await {
                Ok(shares) => places.extend(shares.into_iter().map(|share| (share, Arc::clone(&candidate)))),
                Err(refusal) if pool.is_some() => return Err(refusal),
                // The other pools are listed all the same; ListPools and Diagnose tell of this one.
                Err(_) => {}
            }
        }
        places.retain(|(share, _)| after.is_none_or(|after| *share > after));
        places.sort_by_key(|(share, _)| *share);
        let more = places.len() > size;
        places.truncate(size);
        let mut reports = Vec::with_capacity(places.len());
        for (share, pool) in places {
            let jobs = self.jobs_of(share);
            match pool.call(move |driver| driver.observe(share)).await {
                Ok(observed) => reports.push(report(&pool, share, observed, jobs)),
                Err(refusal) => {
                    let problem = Problem::blocking(refusal, "growctl doctor".to_owned());
                    let observed = Observed {
                        location: PathBuf::from(pool.driver.location()),
                        filesystem: "",
                        sizes: None,
                        used: None,
                        problems: vec![problem],
                    };
                    reports.push(report(&pool, share, observed, jobs));
                }
            }
        }
        let next = reports.last().filter(|_| more).map(|report| report.share);
        Ok((reports, next))
    }

    fn jobs_of(&self, share: ShareId) -> Jobs {
        let active = self.engine.claims.active(share);
        let last = self.engine.store.newest_of(share);
        let failed = self.engine.last_job(share).is_some_and(|job| job.state == JobState::Failed);
        let status = match (active, failed) {
            (Some(_), _) => ShareStatus::Extending,
            (None, true) => ShareStatus::ExtendingError,
            (None, false) => ShareStatus::Available,
        };
        Jobs { status, active, last }
    }

    pub async fn pools(&self) -> Vec<PoolReport> {
        let mut reports = Vec::new();
        for pool in self.engine.pools.iter() {
            reports.push(self.pool(pool).await);
        }
        reports
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
            findings: Vec::new(),
        };
        let asked = pool.call(|driver| Ok((driver.space()?, driver.shares()?.len()))).await;
        let (space, shares) = match asked {
            Ok(answer) => answer,
            Err(refusal) => {
                let remedy = "mount the pool's file system with prjquota".to_owned();
                report.findings.push(finding(&pool.name, None, Problem::blocking(refusal, remedy)));
                return report;
            }
        };
        report.filesystem = space.filesystem.to_owned();
        (report.total, report.free, report.promised) = (space.total, space.free, space.promised);
        report.queued = self.engine.queued_growth(&space.id);
        report.available = admission::left(&space, pool.reserve, pool.overcommit).saturating_sub(report.queued);
        report.shares = shares;
        let allowed = space.total.saturating_sub(pool.reserve).scaled(pool.overcommit);
        if space.promised > allowed {
            report.findings.push(finding(
                &pool.name,
                None,
                Problem::warning(
                    Reason::PoolOvercommitted,
                    format!("the limits add up to {}, and {allowed} may be promised", space.promised.rounded()),
                    "enlarge the file system, or raise overcommit for the pool".to_owned(),
                ),
            ));
        }
        report
    }

    /// Everything that is wrong with the pools and their shares.
    pub async fn diagnose(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for pool in self.engine.pools.iter() {
            findings.extend(self.pool(pool).await.findings);
            let found = pool
                .call(|driver| {
                    let shares = driver.shares()?;
                    Ok(shares.into_iter().map(|share| (share, driver.observe(share))).collect::<Vec<_>>())
                })
                .await;
            for (share, observed) in found.unwrap_or_default() {
                let problems = match observed {
                    Ok(observed) => observed.problems,
                    Err(error) => vec![Problem::blocking(error.into_refusal(), String::new())],
                };
                findings.extend(problems.into_iter().map(|problem| finding(&pool.name, Some(share), problem)));
            }
        }
        findings
    }

    pub fn node(&self) -> NodeReport {
        let (queued, running) = self.engine.active();
        NodeReport {
            hostname: self.host.name.clone(),
            kernel: self.host.kernel.clone(),
            started_at: self.started_at,
            draining: self.engine.claims.is_closed(),
            store_failed: self.engine.store.failure().borrow().is_some(),
            queued,
            running,
            max_active_jobs: self.max_active_jobs,
            kept_jobs: self.engine.store.len(),
            store_bytes: self.engine.store.size_on_disk(),
        }
    }
}

/// What the jobs say of a share.
struct Jobs {
    status: ShareStatus,
    active: Option<crate::model::JobId>,
    last: Option<crate::model::JobId>,
}

fn report(pool: &Pool, share: ShareId, observed: Observed, jobs: Jobs) -> ShareReport {
    let size = observed.size();
    let findings = observed.problems.into_iter().map(|problem| finding(&pool.name, Some(share), problem)).collect();
    ShareReport {
        share,
        pool: pool.name.clone(),
        driver: pool.driver.kind(),
        size,
        location: observed.location,
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
