//! Lists: tables without borders, so that grep and awk can read them, and findings.

use std::fmt::Write;
use std::time::SystemTime;

use comfy_table::{CellAlignment, Table, presets};
use growd::model::Bytes;
use growd::wire::proto::{Finding, HostCommand, Job, Pool, Share};

use super::{NONE, age, duration, or_none, utc};

/// A column: its name, and whether numbers stand in it.
type Column = (&'static str, bool);

/// `None` when there are no rows.
fn table<const N: usize>(columns: [Column; N], rows: Vec<[String; N]>) -> Option<String> {
    if rows.is_empty() {
        return None;
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(columns.map(|(name, _)| name)).add_rows(rows);
    for (column, (_, is_number)) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, 2));
        if is_number {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    Some(table.trim_fmt() + "\n")
}

fn rounded(bytes: u64) -> String {
    Bytes::new(bytes).rounded()
}

/// The kinds, each once.
fn kinds(findings: &[Finding]) -> String {
    let mut kinds: Vec<&str> = findings.iter().map(|finding| finding.kind.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    or_none(&kinds.join(",")).to_owned()
}

pub fn pools(pools: &[Pool]) -> Option<String> {
    let columns = [
        ("POOL", false),
        ("DRIVER", false),
        ("FS", false),
        ("TOTAL", true),
        ("FREE", true),
        ("PROMISED", true),
        ("QUEUED", true),
        ("AVAILABLE", true),
        ("SHARES", true),
        ("FINDINGS", false),
    ];
    let row = |pool: &Pool| {
        // Only one that could not be read has no size.
        let told = |figure: String| if pool.total_bytes == 0 { NONE.to_owned() } else { figure };
        let size = |bytes: u64| told(rounded(bytes));
        [
            pool.name.clone(),
            pool.driver.clone(),
            or_none(&pool.filesystem).to_owned(),
            size(pool.total_bytes),
            size(pool.free_bytes),
            size(pool.promised_bytes),
            size(pool.queued_bytes),
            size(pool.available_bytes),
            told(pool.shares.to_string()),
            kinds(&pool.findings),
        ]
    };
    table(columns, pools.iter().map(row).collect())
}

pub fn shares(shares: &[Share]) -> Option<String> {
    let columns = [
        ("SHARE", false),
        ("POOL", false),
        ("SIZE", true),
        ("USED", true),
        ("USE%", true),
        ("STATUS", false),
        ("FINDINGS", false),
    ];
    let row = |share: &Share| {
        [
            share.share_id.clone(),
            share.pool.clone(),
            share.size_bytes.map_or(NONE.to_owned(), rounded),
            share.used_bytes.map_or(NONE.to_owned(), rounded),
            percent(share.used_bytes, share.size_bytes).unwrap_or(NONE.to_owned()),
            share.status().as_str_name().to_owned(),
            kinds(&share.findings),
        ]
    };
    table(columns, shares.iter().map(row).collect())
}

/// Rounded up, so that only an empty share is 0% and a share is 100% before it is full.
pub fn percent(used: Option<u64>, size: Option<u64>) -> Option<String> {
    let (used, size) = (u128::from(used?), u128::from(size.filter(|size| *size > 0)?));
    Some(format!("{}%", (used * 100).div_ceil(size)))
}

pub fn jobs(jobs: &[Job], now: SystemTime) -> Option<String> {
    let columns = [
        ("JOB", false),
        ("SHARE", false),
        ("STATE", false),
        ("FROM", true),
        ("TO", true),
        ("AGE", true),
        ("ERROR", false),
    ];
    let row = |job: &Job| {
        [
            job.job_id.clone(),
            job.share_id.clone(),
            job.state().as_str_name().to_owned(),
            rounded(job.size_before_bytes),
            rounded(job.size_after_bytes.unwrap_or(job.requested_size_bytes)),
            age(job.created_at.as_ref(), now),
            job.error.as_ref().map_or(NONE, |error| or_none(&error.reason)).to_owned(),
        ]
    };
    table(columns, jobs.iter().map(row).collect())
}

/// Each finding as a paragraph: kind and where, message, remedy.
pub fn findings(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "no findings\n".to_owned();
    }
    let paragraphs: Vec<String> = findings.iter().map(finding).collect();
    paragraphs.join("\n")
}

fn finding(finding: &Finding) -> String {
    let mut text = format!("{}  pool {}", finding.kind, or_none(&finding.pool));
    if !finding.share_id.is_empty() {
        let _ = write!(text, "  share {}", finding.share_id);
    }
    let _ = writeln!(text, "\n  {}", finding.message);
    if !finding.remedy.is_empty() {
        let _ = writeln!(text, "  remedy: {}", finding.remedy);
    }
    text
}

/// Of the commands that ended, so many are shown; those at work all are.
const MOST_COMMANDS: usize = 12;
const MOST_COMMAND: usize = 90;
const MOST_OUTPUT: usize = 60;

/// The last commands that growd gave to tools of the host; `None` when there were none.
pub fn commands(commands: &[HostCommand], now: SystemTime) -> Option<String> {
    let columns = [("STARTED", false), ("TOOK", true), ("OUTCOME", false), ("COMMAND", false), ("OUTPUT", false)];
    // The same questions are asked again and again: of those that ended alike the last tells enough.
    let is_told = |(at, command): &(usize, &HostCommand)| {
        command.finished_at.is_none() || commands[at + 1..].iter().all(|later| said(later) != said(command))
    };
    let told: Vec<&HostCommand> = commands.iter().enumerate().filter(is_told).map(|(_, command)| command).collect();
    let older = told.len().saturating_sub(MOST_COMMANDS);
    let shown = told.into_iter().enumerate().filter(|(at, command)| *at >= older || command.finished_at.is_none());
    let row = |(_, command): (usize, &HostCommand)| {
        let (began, ended) = (command.started_at.as_ref(), command.finished_at.as_ref());
        [
            utc(began),
            duration(began, ended).unwrap_or_else(|| age(began, now)),
            if ended.is_none() { "at work" } else { or_none(&command.outcome) }.to_owned(),
            shortened(&command.command, MOST_COMMAND),
            or_none(&shortened(command.output.lines().last().unwrap_or_default(), MOST_OUTPUT)).to_owned(),
        ]
    };
    table(columns, shown.map(row).collect())
}

/// What tells one command from another.
fn said(command: &HostCommand) -> [&str; 3] {
    [&command.command, &command.outcome, &command.output]
}

/// Leaves out the middle: a command starts with what is done and ends with the volume.
fn shortened(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let head = most / 4;
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(count - (most - head - 1)).collect();
    format!("{start}…{end}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::at;
    use super::*;
    use growd::wire::proto::{JobError, JobState, ShareStatus};
    use std::time::{Duration, UNIX_EPOCH};

    fn quota_off() -> Finding {
        Finding {
            kind: "QUOTA_NOT_ENFORCED".to_owned(),
            pool: "home".to_owned(),
            message: "mounted without prjquota".to_owned(),
            remedy: "mount -o remount,prjquota /srv".to_owned(),
            ..Finding::default()
        }
    }

    #[test]
    fn a_failed_job_shows_its_reason_and_numbers_stand_right() {
        let list = [
            Job {
                job_id: "job-2".to_owned(),
                share_id: "share-1".to_owned(),
                state: JobState::Failed.into(),
                size_before_bytes: 2 << 30,
                requested_size_bytes: 3 << 40,
                error: Some(JobError { reason: "POOL_FULL".to_owned(), ..JobError::default() }),
                created_at: at(100, 0),
                ..Job::default()
            },
            Job {
                job_id: "job-1".to_owned(),
                share_id: "share-1".to_owned(),
                state: JobState::Succeeded.into(),
                size_before_bytes: 1 << 30,
                requested_size_bytes: 2 << 30,
                size_after_bytes: Some((2 << 30) + 4096),
                created_at: at(50, 0),
                ..Job::default()
            },
        ];
        assert_eq!(
            jobs(&list, UNIX_EPOCH + Duration::from_secs(130)).unwrap(),
            "JOB    SHARE    STATE      FROM    TO  AGE  ERROR\n\
             job-2  share-1  FAILED     2GiB  3TiB  30s  POOL_FULL\n\
             job-1  share-1  SUCCEEDED  1GiB  2GiB   1m  -\n"
        );
        assert_eq!(jobs(&[], UNIX_EPOCH), None);
    }

    #[test]
    fn a_share_that_cannot_be_read_is_listed_with_the_finding() {
        let list = [
            Share {
                share_id: "a".to_owned(),
                pool: "home".to_owned(),
                size_bytes: Some(10 << 30),
                used_bytes: Some(1),
                status: ShareStatus::Available.into(),
                ..Share::default()
            },
            Share {
                share_id: "b".to_owned(),
                pool: "home".to_owned(),
                status: ShareStatus::ExtendingError.into(),
                findings: vec![quota_off(), quota_off()],
                ..Share::default()
            },
        ];
        assert_eq!(
            shares(&list).unwrap(),
            "SHARE  POOL   SIZE  USED  USE%  STATUS           FINDINGS\n\
             a      home  10GiB    1B    1%  AVAILABLE        -\n\
             b      home      -     -     -  EXTENDING_ERROR  QUOTA_NOT_ENFORCED\n"
        );
    }

    #[test]
    fn pools_show_what_can_be_given() {
        let pool = Pool {
            name: "home".to_owned(),
            driver: "project-quota".to_owned(),
            filesystem: "xfs".to_owned(),
            total_bytes: 1 << 40,
            free_bytes: 512 << 30,
            available_bytes: 100 << 30,
            shares: 12,
            findings: vec![quota_off()],
            ..Pool::default()
        };
        let text = pools(&[pool]).unwrap();
        assert!(
            text.contains("AVAILABLE") && text.contains("100GiB") && text.ends_with("QUOTA_NOT_ENFORCED\n"),
            "{text}"
        );
    }

    #[test]
    fn a_pool_that_cannot_be_read_has_no_figures() {
        let pool = Pool {
            name: "home".to_owned(),
            driver: "project-quota".to_owned(),
            reserve_bytes: 1 << 30,
            overcommit: 1.0,
            findings: vec![Finding { kind: "NOT_MOUNTED".to_owned(), ..Finding::default() }],
            ..Pool::default()
        };
        assert_eq!(
            pools(&[pool]).unwrap(),
            "POOL  DRIVER         FS  TOTAL  FREE  PROMISED  QUEUED  AVAILABLE  SHARES  FINDINGS\n\
             home  project-quota  -       -     -         -       -          -       -  NOT_MOUNTED\n"
        );
    }

    #[test]
    fn percentages_are_rounded_up() {
        assert_eq!(percent(Some(u64::MAX), Some(u64::MAX)).unwrap(), "100%");
        assert_eq!(percent(Some(0), Some(5)).unwrap(), "0%");
        assert_eq!(percent(Some(1), Some(1000)).unwrap(), "1%");
        assert_eq!(percent(Some(1), Some(0)), None);
        assert_eq!(percent(None, Some(1)), None);
    }

    #[test]
    fn findings_say_what_where_why_and_the_remedy() {
        let of_share =
            Finding { share_id: "s".to_owned(), kind: "UNLIMITED".to_owned(), remedy: String::new(), ..quota_off() };
        assert_eq!(
            findings(&[quota_off(), of_share]),
            "QUOTA_NOT_ENFORCED  pool home\n  mounted without prjquota\n  remedy: mount -o remount,prjquota /srv\n\n\
             UNLIMITED  pool home  share s\n  mounted without prjquota\n"
        );
        assert_eq!(findings(&[]), "no findings\n");
    }
    #[test]
    fn commands_say_when_how_long_and_how_they_ended() {
        let ended = HostCommand {
            command: format!("lvs --nolocking -o {} vg0/share", "lv_size,".repeat(20)),
            started_at: at(10, 0),
            finished_at: at(10, 40),
            outcome: "done".to_owned(),
            output: "first\nlast".to_owned(),
        };
        let stuck = HostCommand {
            command: "lvextend --yes --size 4194304b vg0/share".to_owned(),
            started_at: at(0, 0),
            ..HostCommand::default()
        };
        // Of those that are alike there is one line.
        let ended = |n: usize| HostCommand {
            outcome: if n == 16 { "done".to_owned() } else { n.to_string() },
            ..ended.clone()
        };
        let all = [vec![stuck], (0..MOST_COMMANDS + 5).map(ended).collect(), vec![ended(16); 20]].concat();
        let text = commands(&all, UNIX_EPOCH + Duration::from_secs(75)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + 1 + MOST_COMMANDS);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(lines[0]), ["STARTED", "TOOK", "OUTCOME", "COMMAND", "OUTPUT"]);
        assert!(lines[1].contains("1m  at work  lvextend --yes --size 4194304b vg0/share"), "{text}");
        let last = lines.last().unwrap();
        assert!(last.contains("40ms  done     lvs --nolocking -o lv_…"), "{text}");
        assert!(last.ends_with("lv_size, vg0/share  last"), "{text}");
        assert_eq!(commands(&[], UNIX_EPOCH), None);
    }
}
