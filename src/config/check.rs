//! Rules between the entries of a configuration. Each is reported at the later entry, with the line of the earlier one.

use super::problem::{Hint, Problem, Table};
use super::read::{At, Report};
use super::{PoolEntry, ShareEntry, Volumes};
use crate::model::DriverKind;

pub fn check(pools: &[PoolEntry], shares: &[ShareEntry], report: &mut Report<'_>) {
    for (index, pool) in pools.iter().enumerate() {
        pool_against(pool, &pools[..index], report);
    }
    for (index, share) in shares.iter().enumerate() {
        share_against_pools(share, pools, report);
        volume_against(share, &shares[..index], pools, report);
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
    volumes_against(pool, earlier, report);
    if let Some(At { offset, value: mine }) = &pool.path
        && let Some(other) =
            earlier.iter().filter_map(|other| other.path.as_ref()).find(|other| mine.meets(&other.value))
    {
        let line = report.line_of(other.offset);
        report.add(*offset, Problem::PoolsMeet { mine: mine.clone(), theirs: other.value.clone(), line });
    }
}

fn volumes_against(pool: &PoolEntry, earlier: &[PoolEntry], report: &mut Report<'_>) {
    let Some(Volumes { group: Some(group), template: Some(mine), thin_pool, .. }) = &pool.volumes else { return };
    if let Some(overcommit) = &pool.overcommit
        && thin_pool.is_none()
        && overcommit.value != 1.0
    {
        report.add(overcommit.offset, Problem::ThickOvercommit);
    }
    let of_group = earlier.iter().filter_map(|other| other.volumes.as_ref()).filter(|other| other.is_of(&group.value));
    let theirs = of_group.filter_map(|other| other.template.as_ref()).find(|theirs| theirs.value == mine.value);
    if let Some(theirs) = theirs {
        let line = report.line_of(theirs.offset);
        let (group, theirs) = (group.value.clone(), theirs.value.to_string());
        report.add(mine.offset, Problem::VolumesMeet { mine: mine.value.to_string(), theirs, group, line });
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
    let named = |pool: &&PoolEntry| match (&share.pool, &pool.name) {
        (Some(own), Some(name)) => own.value == name.value,
        _ => false,
    };
    if let Some(pool) = pools.iter().find(named) {
        share_in_pool(share, pool, report);
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

/// The share has what its pool's driver finds it by.
fn share_in_pool(share: &ShareEntry, pool: &PoolEntry, report: &mut Report<'_>) {
    let Some(At { value: driver, .. }) = pool.driver else { return };
    let (path, volume) = (("path", share.path_at), ("volume", share.volume_at));
    let ((own, own_at), (other, other_at)) = if driver == DriverKind::Lvm { (volume, path) } else { (path, volume) };
    if let Some(offset) = other_at {
        report.add(offset, Problem::OtherKindsKey { key: other.to_owned(), of: "driver", kind: driver.as_str() });
    }
    if own_at.is_none() {
        report.add(share.offset, Problem::MissingKey { key: own, table: Table::Share });
    }
}

/// A volume is one share, whatever pools of its group there are.
fn volume_against(share: &ShareEntry, earlier: &[ShareEntry], pools: &[PoolEntry], report: &mut Report<'_>) {
    let (Some(At { offset, value: mine }), Some(group)) = (&share.volume, group_of(share, pools)) else { return };
    let of_group = pools.iter().filter_map(|pool| pool.volumes.as_ref()).filter(|volumes| volumes.is_of(group));
    let template =
        of_group.filter_map(|volumes| volumes.template.as_ref()).find(|at| at.value.share_of(mine).is_some());
    let others = earlier.iter().filter(|other| group_of(other, pools) == Some(group));
    let other = others.filter_map(|other| other.volume.as_ref()).find(|other| other.value == *mine);
    let meets = [template.map(|at| (at.offset, at.value.to_string())), other.map(|at| (at.offset, at.value.clone()))];
    for (at, theirs) in meets.into_iter().flatten() {
        let (mine, group, line) = (mine.clone(), group.to_owned(), report.line_of(at));
        report.add(*offset, Problem::VolumesMeet { mine, theirs, group, line });
    }
}

/// The volume group of the share's pool.
fn group_of<'p>(share: &ShareEntry, pools: &'p [PoolEntry]) -> Option<&'p str> {
    let own = share.pool.as_ref()?;
    let pool = pools.iter().find(|pool| pool.name.as_ref().is_some_and(|name| name.value == own.value))?;
    Some(&pool.volumes.as_ref()?.group.as_ref()?.value)
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
