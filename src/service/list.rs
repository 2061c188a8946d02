//! Lists of shares, page by page: each share once, where GetShare tells of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::Service;
use super::report::{PATIENT, report, within, without_sizes};
use crate::driver::Driver;
use crate::engine::pools::{Pool, in_two_pools};
use crate::model::{PoolName, ProjectLabel, Refusal, ShareId, ShareReport};

/// After so long a list of all pools goes without the names, and without the sizes, of a pool's shares: growapi waits 10 s
/// for the node, and the shares of the other pools shall be there.
const NAMES_WITHIN: Duration = Duration::from_secs(5);
const SIZES_WITHIN: Duration = Duration::from_secs(9);

/// A page of a list of shares.
pub struct SharesPage {
    pub shares: Vec<ShareReport>,
    /// Behind which another page follows.
    pub next: Option<ShareId>,
    /// Pools whose shares are missing.
    pub unreadable: Vec<PoolName>,
}

/// Which shares of a pool are listed.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    /// Those whose places say it, or say none when it is empty.
    project: Option<&'a ProjectLabel>,
    /// Those behind this one.
    after: Option<ShareId>,
    /// As many at most.
    most: usize,
}

impl Service {
    /// Shares in the order of their ids, of one pool or of all, from behind `after` on. With a project those whose places
    /// say it, or say none when it is empty. One that was found in a pool is listed there alone for as long as GetShare looks
    /// for it there. Of others a list of one pool has what the pool has; a list of all pools waits for none of them for long,
    /// and has a share that two of them have once: which is meant nothing tells.
    ///
    /// # Errors
    /// INVALID_REQUEST for an unknown pool; NOT_MOUNTED when the only pool asked for is not there.
    pub async fn shares(
        &self,
        pool: Option<&PoolName>,
        project: Option<&ProjectLabel>,
        after: Option<ShareId>,
        size: usize,
    ) -> Result<SharesPage, Refusal> {
        let begun = Instant::now();
        let all = self.engine.pools.all();
        // One more than the page has tells whether there is another page.
        let wanted = Wanted { project, after, most: size.saturating_add(1) };
        let (lists, unreadable, sizes_within) = match pool {
            None => {
                let (lists, unreadable) = self.list_names(&all, wanted).await;
                (lists, unreadable, SIZES_WITHIN)
            }
            Some(name) => {
                let pool = all.iter().find(|pool| pool.name == *name).ok_or_else(|| Refusal::InvalidRequest {
                    field: "pool",
                    problem: format!("{:?} is not in the configuration", name.as_str()),
                })?;
                let names = self.names_in(pool, &all, wanted, PATIENT).await?;
                (vec![(Arc::clone(pool), names)], Vec::new(), PATIENT)
            }
        };
        let (page, next) = page_of(lists.iter().map(|(pool, names)| (pool, names.as_slice())), size);
        let limit = sizes_within.saturating_sub(begun.elapsed());
        let mut shares = self.report_page(&page, &lists, project, limit).await;
        shares.sort_by_key(|report| report.share);
        Ok(SharesPage { shares, next, unreadable })
    }

    /// The names of the shares that each pool has, and the pools that do not tell them: ListPools and Diagnose tell what is
    /// wrong with these.
    async fn list_names(
        &self,
        all: &[Arc<Pool>],
        wanted: Wanted<'_>,
    ) -> (Vec<(Arc<Pool>, Vec<ShareId>)>, Vec<PoolName>) {
        let names = join_all(all.iter().map(|pool| self.names_in(pool, all, wanted, NAMES_WITHIN))).await;
        let (mut lists, mut unreadable) = (Vec::new(), Vec::new());
        for (pool, names) in all.iter().zip(names) {
            match names {
                Ok(names) => lists.push((Arc::clone(pool), names)),
                Err(_) => unreadable.push(pool.name.clone()),
            }
        }
        (lists, unreadable)
    }

    /// The names of the shares of one pool, without those that are looked for in another.
    async fn names_in(
        &self,
        pool: &Pool,
        all: &[Arc<Pool>],
        mut wanted: Wanted<'_>,
        limit: Duration,
    ) -> Result<Vec<ShareId>, Refusal> {
        let begun = Instant::now();
        let mut names = Vec::new();
        loop {
            let left = || limit.saturating_sub(begun.elapsed());
            let next = next_shares(pool, all, wanted, left()).await?;
            let was_last = next.len() < wanted.most;
            wanted.after = next.last().copied();
            let own = self.without_those_elsewhere(pool, all, next, left().min(NAMES_WITHIN)).await;
            wanted.most -= own.len();
            names.extend(own);
            if was_last || wanted.most == 0 {
                return Ok(names);
            }
        }
    }

    /// Leaves out the shares that growd has found in another pool and looks for there: that one has them, or cannot tell. A
    /// share that has been moved from there stays in the list.
    async fn without_those_elsewhere(
        &self,
        pool: &Pool,
        all: &[Arc<Pool>],
        mut names: Vec<ShareId>,
        limit: Duration,
    ) -> Vec<ShareId> {
        let mut elsewhere: BTreeMap<&PoolName, (&Arc<Pool>, Vec<ShareId>)> = BTreeMap::new();
        // One that a [[share]] puts here is here, whatever was found before the configuration said so.
        for share in names.iter().filter(|share| !pool.named.contains(share)) {
            let found = self.engine.pools.found_in(*share).filter(|found| found.name != pool.name);
            // One that is configured no longer has nothing to say.
            if let Some(other) = found.and_then(|found| all.iter().find(|other| Arc::ptr_eq(other, &found))) {
                elsewhere.entry(&other.name).or_insert((other, Vec::new())).1.push(*share);
            }
        }
        let has = elsewhere.into_values().map(|(other, suspects)| async move {
            match within(limit, other, other.call(|driver| driver.shares(None))).await {
                Ok(has) => suspects.into_iter().filter(|share| has.binary_search(share).is_ok()).collect(),
                Err(_) => suspects,
            }
        });
        let out: Vec<ShareId> = join_all(has).await.concat();
        names.retain(|share| !out.contains(share));
        names
    }

    /// What there is to tell of the shares of a page, in any order.
    async fn report_page(
        &self,
        page: &[(ShareId, Vec<&Arc<Pool>>)],
        lists: &[(Arc<Pool>, Vec<ShareId>)],
        project: Option<&ProjectLabel>,
        limit: Duration,
    ) -> Vec<ShareReport> {
        let of_pools = lists.iter().map(|(pool, _)| {
            let has = |pools: &[&Arc<Pool>]| matches!(pools, [only] if Arc::ptr_eq(only, pool));
            let own = page.iter().filter(|(_, pools)| has(pools)).map(|(share, _)| *share).collect();
            self.report_all(pool, own, project, limit)
        });
        let mut shares: Vec<ShareReport> = join_all(of_pools).await.into_iter().flatten().collect();
        for (share, pools) in page {
            if let [one, other, ..] = pools.as_slice() {
                let observed = without_sizes(one, project, in_two_pools(*share, &one.name, &other.name));
                shares.push(report(one, *share, observed, self.jobs_of(*share)));
            }
        }
        shares
    }
}

/// The first `size` shares of several lists, each with all that have it, and the one behind which another page follows.
fn page_of<'a, P: Copy>(
    lists: impl Iterator<Item = (P, &'a [ShareId])>,
    size: usize,
) -> (Vec<(ShareId, Vec<P>)>, Option<ShareId>) {
    let mut places: BTreeMap<ShareId, Vec<P>> = BTreeMap::new();
    for (pool, shares) in lists {
        for share in shares {
            places.entry(*share).or_default().push(pool);
        }
    }
    let more = places.len() > size;
    let page: Vec<_> = places.into_iter().take(size).collect();
    let next = page.last().filter(|_| more).map(|(share, _)| *share);
    (page, next)
}

/// The ids of the next shares of one pool, without those that a [[share]] puts into another of `all` pools: these are in that
/// one alone.
async fn next_shares(
    pool: &Pool,
    all: &[Arc<Pool>],
    Wanted { project, after, most }: Wanted<'_>,
    limit: Duration,
) -> Result<Vec<ShareId>, Refusal> {
    let project = project.cloned();
    let others: Vec<Arc<Pool>> = all.iter().filter(|other| other.name != pool.name).cloned().collect();
    let list = move |driver: &dyn Driver| {
        let shares = driver.shares(project.as_ref())?;
        let first = after.map_or(0, |after| shares.partition_point(|share| *share <= after));
        let is_elsewhere = |share: &&ShareId| others.iter().any(|other| other.named.contains(share));
        Ok(shares.iter().skip(first).filter(|share| !is_elsewhere(share)).take(most).copied().collect())
    };
    within(limit, pool, pool.call(list)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_page_has_each_share_once_with_all_pools_that_have_it_and_says_what_follows() {
        let share = |n: u128| ShareId::from_uuid(Uuid::from_u128(n));
        let [a, b] = [[1, 3, 4].map(share), [2, 3, 5].map(share)];
        let page = |size| {
            let (page, next) = page_of([("a", &a[..]), ("b", &b[..])].into_iter(), size);
            (page.into_iter().map(|(share, pools)| (share, pools.concat())).collect::<Vec<_>>(), next)
        };
        let all = [(1, "a"), (2, "b"), (3, "ab"), (4, "a"), (5, "b")].map(|(n, pools)| (share(n), pools.to_owned()));
        for (size, next) in [(1, Some(1)), (3, Some(3)), (4, Some(4)), (5, None), (9, None)] {
            assert_eq!(page(size), (all[..size.min(5)].to_vec(), next.map(share)), "{size}");
        }
        assert_eq!(page_of([("a", &[][..])].into_iter(), 3), (Vec::new(), None));
    }
}
