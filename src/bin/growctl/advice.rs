//! What to do about a refusal: one line for each reason.

use std::collections::BTreeMap;

use growd::model::Reason;

/// `metadata` is that of the refusal: its ids make the line one that can be typed.
pub fn next_step(reason: &str, metadata: &BTreeMap<String, String>) -> String {
    match Reason::named(reason) {
        Some(known) => known_step(known, metadata),
        None => "`growctl doctor` and `journalctl -u growd` tell more".to_owned(),
    }
}

fn known_step(reason: Reason, metadata: &BTreeMap<String, String>) -> String {
    let get = |key: &str, placeholder: &'static str| metadata.get(key).map_or(placeholder, String::as_str).to_owned();
    let job = get("job_id", "JOB");
    let share = get("share_id", "SHARE");
    match reason {
        Reason::InvalidShareId => "`growctl shares` lists the ids of this node's shares".to_owned(),
        Reason::InvalidSize => "give a size such as 10GiB, below 8EiB".to_owned(),
        Reason::InvalidRequest => "correct the named field; `growctl help` shows what each verb takes".to_owned(),
        Reason::SizeNotGreater => {
            format!("ask for more than the current size (`growctl share {share}`); `growctl shrink` lowers a quota")
        }
        Reason::SizeNotSmaller => {
            format!(
                "ask for less than the current size (`growctl share {share}`); `growctl extend` makes a share larger"
            )
        }
        Reason::WouldLoseData => {
            format!("remove data from the share, or ask for at least what is in use (`growctl share {share}`)")
        }
        Reason::Unauthenticated => {
            "call over the unix socket, or show a certificate: --cert and --key with an https endpoint".to_owned()
        }
        Reason::Forbidden => {
            format!("ask an admin for the role {} in [access] of growd.toml", get("role", "that it takes"))
        }
        Reason::ShareNotFound => {
            "`growctl shares` lists the shares of this node; the share may be on another".to_owned()
        }
        Reason::JobNotFound => "`growctl jobs` lists the jobs that are kept".to_owned(),
        Reason::ShareBusy => format!("wait for the active job: `growctl job {job} --watch`"),
        Reason::RequestIdReused => {
            format!("`growctl job {job}` shows what the id stands for; another request needs another --request-id")
        }
        Reason::CurrentSizeMismatch => {
            format!("somebody else changed the size: look (`growctl share {share}`) and decide anew")
        }
        Reason::NotMounted => {
            "`growctl doctor` names what the share or its pool is waiting for, and the command".to_owned()
        }
        Reason::QuotaNotEnforced => {
            "turn the quotas of the file system on; `growctl doctor` names the command".to_owned()
        }
        Reason::NoProjectId | Reason::ProjectIdShared => {
            "give the directory a project id of its own; `growctl doctor` names the command".to_owned()
        }
        Reason::Unlimited => "set a first hard limit; `growctl doctor` names the command".to_owned(),
        Reason::ThinPoolCritical => {
            "enlarge the thin pool, free space in it or repair it; `growctl doctor` names the command".to_owned()
        }
        Reason::HasSnapshot => "remove the snapshots of the volume; `growctl doctor` names the command".to_owned(),
        Reason::HalfGrown => {
            "extend the share to the size of its volume; `growctl doctor` names the command".to_owned()
        }
        Reason::Stuck => {
            "look what the node waits for: `growctl doctor`, `dmesg`, `ps -eo pid,stat,wchan,cmd`".to_owned()
        }
        Reason::GrowthTooLarge => {
            "ask for less, move the data to a file system that is made larger from the start, or permit it: allow_any_growth \
             of the pool in growd.toml"
                .to_owned()
        }
        Reason::PoolFull => "ask for less, or free or add space; `growctl pools` shows what can be given".to_owned(),
        Reason::QueueFull => match metadata.get(RETRY_AFTER_SECONDS) {
            Some(seconds) => format!("try again in {seconds} s; `growctl jobs --state queued` shows what waits"),
            None => "try again soon; `growctl jobs --state queued` shows what waits".to_owned(),
        },
        Reason::JobNotQueued => {
            format!("a job that may have begun goes on by itself and is never cut short: `growctl job {job} --watch`")
        }
        Reason::Draining => "try again when growd has started again: `systemctl status growd`".to_owned(),
        Reason::StoreUnavailable => {
            "`growctl node` and `journalctl -u growd` tell what is wrong with the store".to_owned()
        }
        Reason::Unsupported => {
            "this share cannot be changed so; where something can be done about it, `growctl doctor` tells what"
                .to_owned()
        }
        Reason::SoftLimitFirst => {
            "make the soft limit equal to the hard one; `growctl doctor` names the command".to_owned()
        }
        Reason::PoolOvercommitted => "add space to the pool; `growctl pools` shows what is promised".to_owned(),
        Reason::Internal => "`journalctl -u growd` tells more; asking again is safe".to_owned(),
    }
}

/// Key under which the delay of a google.rpc.RetryInfo joins the metadata.
pub const RETRY_AFTER_SECONDS: &str = "retry_after_seconds";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_one_line() {
        for reason in Reason::ALL {
            let line = next_step(reason.as_str(), &BTreeMap::new());
            assert!(!line.is_empty() && !line.contains('\n'), "{reason}: {line}");
        }
        // It may be a mount, quotas, an inactive volume, a detached image, a pvmove: all of them doctor names.
        let not_ready = next_step("NOT_MOUNTED", &BTreeMap::new());
        assert!(not_ready.contains("`growctl doctor`") && !not_ready.contains("mount"), "{not_ready}");
        assert!(next_step("FROM_A_LATER_VERSION", &BTreeMap::new()).contains("growctl doctor"));
    }

    #[test]
    fn a_known_id_is_part_of_the_command() {
        let metadata = BTreeMap::from([("job_id".to_owned(), "0199-x".to_owned())]);
        assert!(next_step("SHARE_BUSY", &metadata).contains("growctl job 0199-x --watch"));
    }
}
