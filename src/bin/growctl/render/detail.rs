//! One thing in full: `key: value` lines, values aligned, sizes exact.

use std::fmt::Write;
use std::time::SystemTime;

use growd::wire::proto::{Job, JobKind, JobStep, Node, Share};

use super::list::{findings, percent};
use super::{NONE, age, duration, exact, or_none, utc};

/// The lines, keys padded to the longest one.
fn aligned(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0) + 1;
    lines.iter().fold(String::new(), |mut text, (key, value)| {
        let key = format!("{key}:");
        let _ = writeln!(text, "{key:width$} {}", or_none(value));
        text
    })
}

pub fn node(node: &Node, now: SystemTime) -> String {
    let started = node.started_at.as_ref();
    aligned(&[
        ("host", node.hostname.clone()),
        ("growd", node.version.clone()),
        ("kernel", node.kernel.clone()),
        ("state", node.state().as_str_name().to_owned()),
        ("started", format!("{} ({} ago)", utc(started), age(started, now))),
        ("queued jobs", node.queued_jobs.to_string()),
        ("running jobs", node.running_jobs.to_string()),
        ("active jobs at most", node.max_active_jobs.to_string()),
        ("kept jobs", node.kept_jobs.to_string()),
        ("store", exact(node.store_bytes)),
    ])
}

pub fn share(share: &Share) -> String {
    let size = |bytes: Option<u64>| bytes.map_or(NONE.to_owned(), exact);
    let used = match percent(share.used_bytes, share.size_bytes) {
        Some(percent) => format!("{}, {percent}", size(share.used_bytes)),
        None => size(share.used_bytes),
    };
    let mut text = aligned(&[
        ("share", share.share_id.clone()),
        ("pool", share.pool.clone()),
        ("driver", share.driver.clone()),
        ("location", share.location.clone()),
        ("project", share.project_id.clone()),
        ("file system", share.filesystem.clone()),
        ("size", size(share.size_bytes)),
        ("used", used),
        ("status", share.status().as_str_name().to_owned()),
        ("active job", share.active_job_id.clone()),
        ("last job", share.last_job_id.clone()),
    ]);
    if !share.findings.is_empty() {
        let _ = write!(text, "\nfindings:\n{}", findings(&share.findings));
    }
    text
}

pub fn job(job: &Job, now: SystemTime) -> String {
    let (created, started, finished) = (job.created_at.as_ref(), job.started_at.as_ref(), job.finished_at.as_ref());
    let with = |time: String, what: &str, took: Option<String>| match took {
        Some(took) => format!("{time} ({what} {took})"),
        None => time,
    };
    let mut lines = vec![("job", job.job_id.clone())];
    lines.extend(request_lines(job));
    lines.extend([
        ("size after", job.size_after_bytes.map_or(NONE.to_owned(), exact)),
        ("state", job.state().as_str_name().to_owned()),
        ("attempt", job.attempt.to_string()),
        ("revision", job.revision.to_string()),
        ("requested by", job.requested_by.clone()),
        ("project", job.project_id.clone()),
        ("request id", job.request_id.clone()),
        ("created", utc(created)),
        ("started", with(utc(started), "waited", duration(created, started))),
        ("finished", with(utc(finished), "took", duration(started, finished))),
    ]);
    if let Some(error) = &job.error {
        lines.push(("error", format!("{}: {}", error.reason, error.message)));
        lines.push(("retryable", if error.retryable { "yes" } else { "no" }.to_owned()));
    }
    aligned(&lines) + &steps(&job.steps, now)
}

/// The answer to a request that was only checked: there is no job.
pub fn dry_run(job: &Job) -> String {
    format!("would be accepted; nothing was changed\n{}", aligned(&request_lines(job)))
}

fn request_lines(job: &Job) -> Vec<(&'static str, String)> {
    // A growd that does not tell knows extends only.
    let kind = if job.kind() == JobKind::Shrink { JobKind::Shrink } else { JobKind::Extend };
    vec![
        ("share", job.share_id.clone()),
        ("pool", job.pool.clone()),
        ("driver", job.driver.clone()),
        ("kind", kind.as_str_name().to_owned()),
        ("size before", exact(job.size_before_bytes)),
        ("requested size", exact(job.requested_size_bytes)),
    ]
}

fn steps(steps: &[JobStep], now: SystemTime) -> String {
    if steps.is_empty() {
        return String::new();
    }
    let took = |step: &JobStep| {
        let (began, ended) = (step.started_at.as_ref(), step.finished_at.as_ref());
        duration(began, ended).unwrap_or_else(|| format!("at work {}", age(began, now)))
    };
    let name_width = steps.iter().map(|step| step.name.len()).max().unwrap_or(0);
    let took_width = steps.iter().map(|step| took(step).len()).max().unwrap_or(0);
    steps.iter().fold("steps:\n".to_owned(), |mut text, step| {
        let line = format!("  {:name_width$}  {:>took_width$}  {}", step.name, took(step), step.detail);
        let _ = writeln!(text, "{}", line.trim_end());
        text
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::at;
    use super::*;
    use growd::wire::proto::{Finding, JobError, JobState, NodeState, ShareStatus};
    use std::time::{Duration, UNIX_EPOCH};

    fn failed_job() -> Job {
        Job {
            job_id: "j".to_owned(),
            share_id: "s".to_owned(),
            pool: "home".to_owned(),
            driver: "project-quota".to_owned(),
            state: JobState::Failed.into(),
            size_before_bytes: 2 << 30,
            requested_size_bytes: 1_610_612_737,
            steps: vec![
                JobStep {
                    name: "set_limit".to_owned(),
                    started_at: at(1_700_000_001, 0),
                    finished_at: at(1_700_000_001, 12),
                    detail: "2GiB -> 3GiB".to_owned(),
                },
                JobStep { name: "verify".to_owned(), started_at: at(1_700_000_002, 0), ..JobStep::default() },
            ],
            error: Some(JobError { reason: "INTERNAL".to_owned(), message: "no".to_owned(), retryable: true }),
            attempt: 1,
            revision: 4,
            requested_by: "uid=0 pid=1".to_owned(),
            created_at: at(1_700_000_000, 0),
            started_at: at(1_700_000_001, 0),
            finished_at: at(1_700_000_003, 500),
            ..Job::default()
        }
    }

    #[test]
    fn a_job_in_full() {
        assert_eq!(
            job(&failed_job(), UNIX_EPOCH + Duration::from_secs(1_700_000_080)),
            "job:            j\n\
             share:          s\n\
             pool:           home\n\
             driver:         project-quota\n\
             kind:           EXTEND\n\
             size before:    2GiB\n\
             requested size: 1610612737B (about 1.5GiB)\n\
             size after:     -\n\
             state:          FAILED\n\
             attempt:        1\n\
             revision:       4\n\
             requested by:   uid=0 pid=1\n\
             project:        -\n\
             request id:     -\n\
             created:        2023-11-14T22:13:20Z\n\
             started:        2023-11-14T22:13:21Z (waited 1.0s)\n\
             finished:       2023-11-14T22:13:23Z (took 2.5s)\n\
             error:          INTERNAL: no\n\
             retryable:      yes\n\
             steps:\n  \
             set_limit        12ms  2GiB -> 3GiB\n  \
             verify     at work 1m\n"
        );
    }

    #[test]
    fn a_dry_run_says_that_nothing_was_changed() {
        let text = dry_run(&failed_job());
        assert!(text.starts_with("would be accepted; nothing was changed\nshare:"), "{text}");
        assert!(!text.contains("job:") && !text.contains("state:"), "{text}");
    }

    #[test]
    fn a_share_in_full_with_its_findings() {
        let mut one = Share {
            share_id: "s".to_owned(),
            size_bytes: Some(2 << 30),
            used_bytes: Some(1 << 30),
            status: ShareStatus::Extending.into(),
            active_job_id: "j".to_owned(),
            ..Share::default()
        };
        let text = share(&one);
        assert!(text.contains("size:        2GiB\nused:        1GiB, 50%\nstatus:      EXTENDING\n"), "{text}");
        assert!(!text.contains("findings"), "{text}");
        one.size_bytes = None;
        one.used_bytes = None;
        one.findings = vec![Finding { kind: "UNLIMITED".to_owned(), remedy: "do".to_owned(), ..Finding::default() }];
        let text = share(&one);
        assert!(text.contains("used:        -\n") && text.contains("\nfindings:\nUNLIMITED"), "{text}");
        assert!(text.ends_with("  remedy: do\n"), "{text}");
    }

    #[test]
    fn a_node_in_full() {
        let one = Node {
            hostname: "n1".to_owned(),
            state: NodeState::StoreFailed.into(),
            started_at: at(40, 0),
            kept_jobs: 7,
            store_bytes: 4 << 20,
            ..Node::default()
        };
        let text = node(&one, UNIX_EPOCH + Duration::from_secs(100));
        assert!(text.contains("state:               STORE_FAILED\n"), "{text}");
        assert!(text.contains("1970-01-01T00:00:40Z (1m ago)") && text.contains("4MiB"), "{text}");
    }
}
