//! SIGKILL of growd at every system call by which a limit is changed and made durable.

use std::collections::BTreeMap;
use std::path::Path;

use growd::wire::proto::{ExtendShareRequest, Job, JobKind, JobState, ShrinkShareRequest};
use tonic::Status;
use uuid::Uuid;

use super::daemon::{Clients, Daemon, MIB, request, share, shrink_request};

/// `calls` set the limit of share 1 and make it and the job durable; `limit` asks the kernel.
pub async fn killed_at_every_call(
    kind: JobKind,
    dir: &Path,
    pool: &str,
    calls: &[&'static str],
    limit: impl Fn() -> u64,
) {
    let mut daemon = Daemon::start(dir, pool).await;
    let (mut killed, mut resumed) = (BTreeMap::new(), 0);
    for call in calls {
        for nth in 1.. {
            let before = limit();
            let size = if kind == JobKind::Shrink { before - 8 * MIB } else { before + 4 * MIB };
            let id = Uuid::now_v7().to_string();
            let clients = daemon.clients().await;
            let injected = daemon.inject(&format!("{call}:signal=KILL:when={nth}")).await;
            let answer = ask(&clients, kind, &id, size).await;
            let ended = match &answer {
                Ok(job) => clients.end_or_death(&job.job_id).await.is_some(),
                Err(_) => false,
            };
            // Before strace is told to end: it waits for ever when what it traces is dying.
            assert!(ended || daemon.was_killed(), "{call} {nth}: {answer:?}");
            drop(injected);
            assert!(limit() == before || limit() == size, "{call} {nth}: {}", limit());
            if ended {
                assert_eq!(limit(), size, "{call} {nth}");
                break;
            }
            *killed.entry(*call).or_insert(0) += 1;
            daemon.start_again().await;
            // Whoever had no answer asks again with the same id.
            let clients = daemon.clients().await;
            let job = ask(&clients, kind, &id, size).await.unwrap();
            let job = clients.end_of(&job.job_id).await;
            assert_eq!((job.state(), job.size_after_bytes()), (JobState::Succeeded, size), "{call} {nth}: {job:?}");
            assert_eq!(job.kind(), kind);
            if let Ok(accepted) = answer {
                assert_eq!(accepted.job_id, job.job_id, "{call} {nth}");
                assert!(job.attempt <= 2, "{job:?}");
                resumed += u32::from(job.attempt == 2);
            }
            assert_eq!(limit(), size, "{call} {nth}");
            assert_eq!(clients.diagnose().await.findings, [], "{call} {nth}");
        }
    }
    println!("growd was killed at {killed:?}, {resumed} times in the middle of an accepted job");
    assert!(killed.len() == calls.len() && resumed > 0, "{killed:?}, {resumed}");
}

async fn ask(clients: &Clients, kind: JobKind, id: &str, size: u64) -> Result<Job, Status> {
    let request_id = Some(id.to_owned());
    match kind {
        JobKind::Shrink => {
            clients.ask_to_shrink(ShrinkShareRequest { request_id, ..shrink_request(&share(1), size) }).await
        }
        _ => clients.ask(ExtendShareRequest { request_id, ..request(&share(1), size) }).await,
    }
}
