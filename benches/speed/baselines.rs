//! The limits that growd is measured against: bare services with its messages, each in a process of its own as growd is.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt, stream};
use growd::wire::proto::job_service_server::{JobService, JobServiceServer};
use growd::wire::proto::share_service_server::{ShareService, ShareServiceServer};
use growd::wire::proto::{self, Job, JobState, Share};
use prost::Message;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// The first argument of this program when it is to be a bare service; its kind, its folder, and the answers' files
/// follow.
pub const SERVE: &str = "serve-bare";

/// A bare service; it answers every question with a copy of one message.
pub struct Baseline {
    child: Child,
    socket: PathBuf,
}

/// What it does before it answers an extend.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Echo,
    /// Appends the job to a file; one fdatasync for all that waited.
    Floor,
    /// Inserts the job into sled; one flush for all that waited.
    SledFloor,
}

const KINDS: [(&str, Kind); 3] = [("echo", Kind::Echo), ("floor", Kind::Floor), ("sled-floor", Kind::SledFloor)];

impl Baseline {
    /// Starts the service in a folder of its own.
    pub fn start(kind: Kind, dir: &Path, job: &Job, share: &Share) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("job"), job.encode_to_vec()).unwrap();
        std::fs::write(dir.join("share"), share.encode_to_vec()).unwrap();
        let (name, _) = KINDS.iter().find(|(_, known)| *known == kind).unwrap();
        let child = Command::new(std::env::current_exe().unwrap()).args([SERVE, name]).arg(dir).spawn().unwrap();
        let baseline = Self { child, socket: dir.join("socket") };
        let begin = Instant::now();
        while std::os::unix::net::UnixStream::connect(&baseline.socket).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(60), "the bare service does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        baseline
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn endpoint(&self) -> String {
        format!("unix:{}", self.socket.display())
    }
}

impl Drop for Baseline {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process of a bare service.
pub fn serve(kind: &str, dir: &Path) {
    let (_, kind) = KINDS.iter().find(|(name, _)| *name == kind).unwrap();
    let job = Job::decode(std::fs::read(dir.join("job")).unwrap().as_slice()).unwrap();
    let share = Share::decode(std::fs::read(dir.join("share")).unwrap().as_slice()).unwrap();
    let bare = Bare { job, share, commits: committer(*kind, dir), cancelled: watch::channel(()).0 };
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let incoming = UnixListenerStream::new(UnixListener::bind(dir.join("socket")).unwrap());
        Server::builder()
            .add_service(JobServiceServer::new(bare.clone()))
            .add_service(ShareServiceServer::new(bare))
            .serve_with_incoming(incoming)
            .await
            .unwrap();
    });
}

type Commit = (Vec<u8>, oneshot::Sender<()>);

/// The thread that makes what it is given durable, if the service does so.
fn committer(kind: Kind, dir: &Path) -> Option<Sender<Commit>> {
    let (commits, inbox) = channel();
    match kind {
        Kind::Echo => return None,
        Kind::Floor => {
            let mut file = File::create(dir.join("log")).unwrap();
            std::thread::spawn(move || {
                group(&inbox, |records| {
                    file.write_all(&records.concat()).unwrap();
                    file.sync_data().unwrap();
                });
            });
        }
        Kind::SledFloor => {
            let db = sled::Config::new().path(dir.join("sled")).flush_every_ms(None).open().unwrap();
            let mut number: u64 = 0;
            std::thread::spawn(move || {
                group(&inbox, |records| {
                    for record in records {
                        number += 1;
                        db.insert(number.to_be_bytes(), record.as_slice()).unwrap();
                    }
                    db.flush().unwrap();
                });
            });
        }
    }
    Some(commits)
}

/// Writes what waits, all at once, and answers; until nobody is left who sends.
fn group(inbox: &Receiver<Commit>, mut write: impl FnMut(&[Vec<u8>])) {
    while let Ok(first) = inbox.recv() {
        let (records, answers): (Vec<_>, Vec<_>) = std::iter::once(first).chain(inbox.try_iter()).unzip();
        write(&records);
        answers.into_iter().for_each(|answer| _ = answer.send(()));
    }
}

#[derive(Clone)]
struct Bare {
    job: Job,
    share: Share,
    commits: Option<Sender<Commit>>,
    /// Wakes everyone who watches.
    cancelled: watch::Sender<()>,
}

#[tonic::async_trait]
impl JobService for Bare {
    async fn get_job(&self, _: Request<proto::GetJobRequest>) -> Result<Response<Job>, Status> {
        Ok(Response::new(self.job.clone()))
    }

    async fn list_jobs(&self, _: Request<proto::ListJobsRequest>) -> Result<Response<proto::ListJobsResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<Job, Status>> + Send>>;

    /// The job as one that is queued, and as one that is cancelled when anyone cancels it.
    async fn watch_job(&self, _: Request<proto::WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let states = [JobState::Queued, JobState::Cancelled];
        let [queued, cancelled] = states.map(|state| Job { state: state.into(), ..self.job.clone() });
        let mut cancel = self.cancelled.subscribe();
        let end = async move { cancel.changed().await.map(|()| cancelled).map_err(|_| Status::cancelled("stopped")) };
        Ok(Response::new(Box::pin(stream::iter([Ok(queued)]).chain(stream::once(end)))))
    }

    async fn cancel_job(&self, _: Request<proto::CancelJobRequest>) -> Result<Response<Job>, Status> {
        self.cancelled.send_replace(());
        Ok(Response::new(self.job.clone()))
    }
}

#[tonic::async_trait]
impl ShareService for Bare {
    async fn extend_share(&self, _: Request<proto::ExtendShareRequest>) -> Result<Response<Job>, Status> {
        if let Some(commits) = &self.commits {
            let (answer, answered) = oneshot::channel();
            commits.send((self.job.encode_to_vec(), answer)).unwrap();
            answered.await.unwrap();
        }
        Ok(Response::new(self.job.clone()))
    }

    async fn shrink_share(&self, _: Request<proto::ShrinkShareRequest>) -> Result<Response<Job>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn get_share(&self, _: Request<proto::GetShareRequest>) -> Result<Response<Share>, Status> {
        Ok(Response::new(self.share.clone()))
    }

    async fn list_shares(
        &self,
        _: Request<proto::ListSharesRequest>,
    ) -> Result<Response<proto::ListSharesResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }
}
