//! Input that comes while the job runs (`stage_in when=async`).
//!
//! ```text
//!   node with the MGS                                  every node
//!   before the barrier StagedIn: destinations made     after it: the mount waits for what is to arrive (burstfs-client, `Arrivals`)
//!   queue of the arrivals seeded                  -->  an engine of its own takes part, until the queue is over
//!     what does not come is told                  -->  who waits for it gets EIO
//!     over: directories' attributes, the end told -->  nobody waits any more
//!   the job's end: queue dropped                  -->  stop: what is half there is removed, before anything is drained
//! ```
//!
//! Owns when the copying of this node begins and ends, and the way between the mount's waits and the MGS. Does not own the copying
//! (`burstfs-stager`, [`burstfs_stager::StageJob::is_shared`]), nor what has become of it (the MGS).
//!
//! Failure: what cannot be brought is the job's to see, as EIO, and is told in its output; nothing ends the job. An MGS that is started again, or
//! moves, brings anew what may be missing, and replaces nothing.

use std::sync::Arc;
use std::time::Duration;

use burstfs_client::fs::{ClientFs, Credentials, FsError};
use burstfs_client::fuse::{ArrivalNews, Arrivals, Supply};
use burstfs_node::description::InstanceDescription;
use burstfs_proto::mgs::{AwaitArrivals, Hasten};
use burstfs_stager::{Brings, Cancel, StageJob, brings, destination};
use burstfs_types::{Code, Errno, Failure, FileKind, Ino};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::directory::Directory;
use crate::job;
use crate::staging::Staging;

/// One long poll for news.
const POLL: Duration = Duration::from_secs(10);
/// Between two looks whether a queue that was over is to be worked on again, and after an MGS has not answered.
const PAUSE: Duration = Duration::from_millis(250);

/// What a mount asks when somebody waits.
struct Waits {
    jobs: Vec<StageJob>,
    directory: Directory,
    runtime: Handle,
}

impl Supply for Waits {
    fn may_bring(&self, directive: u16, below: &[u8]) -> bool {
        self.jobs.get(usize::from(directive)).is_some_and(|job| brings(job, below) == Brings::Maybe)
    }

    fn hasten(&self, path: Vec<u8>) {
        let directory = self.directory.clone();
        self.runtime.spawn(async move {
            if let Err(error) = directory.call(Hasten { path }).await {
                tracing::debug!("the MGS does not hear what is waited for: {error}");
            }
        });
    }
}

/// What a mount has to wait for; `None` when all input is there before the job starts.
pub(crate) fn expected(staging: &Staging, directory: &Directory) -> Option<Arc<Arrivals>> {
    let jobs = staging.arriving();
    let (directory, runtime) = (directory.clone(), Handle::current());
    (!jobs.is_empty()).then(|| Arc::new(Arrivals::new(Arc::new(Waits { jobs, directory, runtime }))))
}

/// This node's part, until it is stopped.
pub(crate) struct Arriving {
    /// Set when this node's part is to end; closed when both tasks have.
    stop: watch::Sender<bool>,
    cancel: Cancel,
}

impl Arriving {
    /// Has the mount wait for what comes from now on, and takes part in bringing it. The error is of a destination.
    pub(crate) async fn start(
        description: Arc<InstanceDescription>,
        staging: Arc<Staging>,
        directory: Directory,
        fs: &ClientFs,
        arrivals: Arc<Arrivals>,
    ) -> Result<Arriving, Failure> {
        for (number, job) in (0_u16..).zip(staging.arriving()) {
            match place(fs, job, None).await {
                Ok((dir, path, only)) => arrivals.expect(number, dir, path, only),
                // The job may have made it into something else since.
                Err(failure) if description.restarted => tracing::warn!("what comes is not waited for: {failure}"),
                Err(failure) => return Err(failure),
            }
        }
        // A name that was not there before may come now, and is to be waited for.
        fs.take_from_kernel().await;
        let (stop, stopped) = watch::channel(false);
        let cancel = Cancel::default();
        tokio::spawn(hear(directory.clone(), arrivals.clone(), stopped.clone()));
        tokio::spawn(bring(description, staging, directory, arrivals, cancel.clone(), stopped));
        Ok(Arriving { stop, cancel })
    }

    /// Ends this node's part: returns when nothing of it is at work any more.
    pub(crate) async fn stop(&self, directory: &Directory) {
        self.stop.send_replace(true);
        self.cancel.cancel();
        if let Some(mgs) = directory.seat().mgs() {
            mgs.drop_arrivals();
        }
        // Each task holds a receiver until its end, whichever way it ends.
        self.stop.closed().await;
    }
}

/// Makes the destinations, and sees whether the sources are there: before the job starts, on the node with the MGS.
pub(crate) async fn prepare(
    description: &InstanceDescription,
    staging: &Staging,
    fs: &ClientFs,
) -> Result<(), Failure> {
    let owner = Credentials { uid: description.uid, gid: description.gid, umask: None };
    for job in staging.arriving() {
        place(fs, job, Some(owner)).await?;
    }
    Ok(())
}

/// The directory that the input of a directive arrives in: inode, path, and the one name that is brought. What is missing of it is
/// made for `owner`, if there is one.
async fn place(
    fs: &ClientFs,
    job: StageJob,
    owner: Option<Credentials>,
) -> Result<(Ino, Vec<u8>, Option<Vec<u8>>), Failure> {
    let said = |path: &[u8], why: &dyn std::fmt::Display| {
        Failure::new(Code::StageInFailed, format!("stage_in: {}: {why}", path.escape_ascii()))
    };
    let is_dir = match walk(fs, &job.destination, None).await {
        Ok(_) => true,
        Err(Walk::Fs(error)) if error.errno() != Errno::ENOENT => return Err(said(&job.destination, &error)),
        Err(Walk::Fs(_) | Walk::NoDirectory) => false,
    };
    let source = job.source.clone();
    let looked = tokio::task::spawn_blocking(move || destination(&job, is_dir)).await;
    let destination = looked.unwrap_or_else(|error| Err(error.to_string())).map_err(|why| said(&source, &why))?;
    match walk(fs, &destination.dir, owner).await {
        Ok(ino) => Ok((ino, destination.dir, destination.only)),
        Err(Walk::Fs(error)) => Err(said(&destination.dir, &error)),
        Err(Walk::NoDirectory) => {
            Err(said(&destination.dir, &"a link or a file is on the way, which does not go with when=async"))
        }
    }
}

enum Walk {
    Fs(FsError),
    /// Something on the way is no directory.
    NoDirectory,
}

/// The directory at `path`; what is missing of it is made for `owner`, if there is one.
async fn walk(fs: &ClientFs, path: &[u8], owner: Option<Credentials>) -> Result<Ino, Walk> {
    let mut dir = Ino::ROOT;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
        let made = match owner {
            Some(owner) => match fs.mkdir(dir, name, 0o755, owner).await {
                Err(error) if error.errno() == Errno::EEXIST => None,
                made => Some(made.map_err(Walk::Fs)?),
            },
            None => None,
        };
        let attr = match made {
            Some(made) => made,
            None => fs.lookup(dir, name).await.map_err(Walk::Fs)?,
        };
        if attr.kind != FileKind::Directory {
            return Err(Walk::NoDirectory);
        }
        dir = attr.ino;
    }
    Ok(dir)
}

/// Tells the mount what has become of what is on its way.
async fn hear(directory: Directory, arrivals: Arc<Arrivals>, mut stopped: watch::Receiver<bool>) {
    let (mut seat, mut known) = (directory.seat().node, 0);
    while !arrivals.is_over() {
        if directory.has_left(seat) {
            // Another MGS, with a list of its own.
            (seat, known) = (directory.seat().node, 0);
        }
        let wait_ms = u32::try_from(POLL.as_millis()).unwrap_or(u32::MAX);
        let heard = tokio::select! {
            heard = directory.call(AwaitArrivals { known, wait_ms }) => heard,
            _ = stopped.changed() => return,
        };
        match heard {
            Ok(news) => {
                known += news.failed.len() as u64;
                let burstfs_proto::mgs::ArrivalNews { failed, is_over, is_unnamed } = news;
                arrivals.heed(ArrivalNews { failed, is_over, is_unnamed });
            }
            Err(error) => {
                tracing::debug!("the MGS does not say what has arrived: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Takes part in bringing, with one queue after the other, until all is there.
async fn bring(
    description: Arc<InstanceDescription>,
    staging: Arc<Staging>,
    directory: Directory,
    arrivals: Arc<Arrivals>,
    cancel: Cancel,
    mut stopped: watch::Receiver<bool>,
) {
    while !arrivals.is_over() && !*stopped.borrow() {
        let seat = directory.seat();
        if seat.mgs().is_none_or(|mgs| !mgs.has_arrived()) {
            match staging.work_on_arrivals(seat, cancel.clone()).await {
                Ok(None) => {}
                Ok(Some(failure)) => {
                    tracing::warn!("{failure}");
                    job::notify(&description, &format!("burstfs: error: {failure}")).await;
                }
                Err(failure) => tracing::info!("this node's part in bringing input ended early: {failure}"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            _ = stopped.changed() => {}
        }
    }
}
