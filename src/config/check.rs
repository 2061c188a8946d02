//! Rules between the entries of a configuration. Each is reported at the later entry, with the line of the earlier one.

use super::problem::{Hint, Problem};
use super::read::{At, Report};
use super::{PoolEntry, ShareEntry};

pub fn check(pools: &[PoolEntry], shares: &[ShareEntry], report: &mut Report<'_>) {
    for (index, pool) in pools.iter().enumerate() {
        pool_against(pool, &pools[..index], report);
    }
    for (index, share) in shares.iter().enumerate() {
        share_against_pools(share, pools, report);
        share_against(share, &shares[..index], report);
    }
}

fn pool_against(pool: &PoolEntry, earlier: &[PoolEntry], report: &mut Report<'_>) {
    if let Some(name) = &pool.name
        && let Some(other) =
            earlier.iter().filter_map(|other| other.name.as_ref()).find(|other| other.value == name.value)
    {
        let line = report.line_of(other.offset);
        report.add(name.offset, Problem::PoolRepeated { name: name.value.clone(), line });
    }
    if let Some(At { offset, value: mine }) = &pool.path
        && let Some(other) =
            earlier.iter().filter_map(|other| other.path.as_ref()).find(|other| mine.meets(&other.value))
    {
        let line = report.line_of(other.offset);
        report.add(*offset, Problem::PoolsMeet { mine: mine.clone(), theirs: other.value.clone(), line });
    }
}

fn share_against_pools(share: &ShareEntry, pools: &[PoolEntry], report: &mut Report<'_>) {
    let names = || pools.iter().filter_map(|pool| pool.name.as_ref()).map(|name| &name.value);
    if let Some(At { offset, value: pool }) = &share.pool
        && !names().any(|name| name == pool)
    {
        let hint = Hint::new(pool.as_str(), "the pools", names().map(|name| name.as_str()));
        report.add(*offset, Problem::UnknownPool { pool: pool.clone(), hint });
    }
    let templates = || pools.iter().filter_map(|pool| pool.path.as_ref());
    if let Some(At { offset, value: path }) = &share.path
        && let Some(template) = templates().find(|template| template.value.meets_path(path))
    {
        let line = report.line_of(template.offset);
        let template = template.value.clone();
        report.add(*offset, Problem::ShareMeetsPool { path: path.clone(), template, line });
    }
}

fn share_against(share: &ShareEntry, earlier: &[ShareEntry], report: &mut Report<'_>) {
    if let Some(id) = &share.id
        && let Some(other) = earlier.iter().filter_map(|other| other.id.as_ref()).find(|other| other.value == id.value)
    {
        let line = report.line_of(other.offset);
        report.add(id.offset, Problem::ShareRepeated { share: id.value, line });
    }
    let Some(At { offset, value: mine }) = &share.path else { return };
    for At { offset: at, value: theirs } in earlier.iter().filter_map(|other| other.path.as_ref()) {
        let line = report.line_of(*at);
        if mine == theirs {
            report.add(*offset, Problem::SharePathRepeated { path: mine.clone(), line });
            return;
        }
        if mine.starts_with(theirs) || theirs.starts_with(mine) {
            report.add(*offset, Problem::ShareInsideShare { mine: mine.clone(), theirs: theirs.clone(), line });
            return;
        }
    }
}
