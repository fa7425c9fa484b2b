//! Has what the job wrote on this node written to its disk, once the job is over: beside a drain that takes long, or before the
//! node holds what could not be drained. A drain that is soon over needs none of it, and would share the disk with it.
//!
//! Owns the one task that does it, for one instance.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use burstfs_node::control::DaemonMessage;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinHandle;

use crate::control::Supervisor;

/// A drain that takes longer is one that a power loss may meet.
const AFTER: Duration = Duration::from_secs(2);

pub(crate) struct Durable {
    hurry: Arc<Notify>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Durable {
    /// Begins after a while, and tells the supervisor when it is done.
    pub(crate) fn start(supervisor: Supervisor, data_dir: PathBuf) -> Durable {
        let hurry = Arc::new(Notify::new());
        let hurried = hurry.clone();
        let task = tokio::spawn(async move {
            // Either is as good: time has passed, or somebody cannot wait.
            let _ = tokio::time::timeout(AFTER, hurried.notified()).await;
            let synced = tokio::task::spawn_blocking(move || sync_file_system(&data_dir)).await;
            match synced.map_err(io::Error::other).and_then(|synced| synced) {
                Ok(()) => supervisor.say(DaemonMessage::Durable).await,
                Err(error) => tracing::warn!("what the job wrote may not be on the node's disk: {error}"),
            }
        });
        Durable { hurry, task: Mutex::new(Some(task)) }
    }

    /// Has it done now, and waits for it: what a power loss could still take must not be held as if it could not.
    pub(crate) async fn finish(&self) {
        self.hurry.notify_one();
        if let Some(task) = self.task.lock().await.take() {
            let _ = task.await;
        }
    }
}

fn sync_file_system(dir: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(std::fs::File::open(dir)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_said_when_the_drain_takes_long() {
        let dir = tempfile::tempdir().unwrap();
        let (supervisor, mut said) = Supervisor::overheard();
        let _durable = Durable::start(supervisor, dir.path().to_owned());
        tokio::time::sleep(AFTER / 2).await;
        assert!(said.try_recv().is_err(), "a drain may be over by then");
        assert!(matches!(said.recv().await, Some(DaemonMessage::Durable)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_to_be_held_is_durable_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (supervisor, mut said) = Supervisor::overheard();
        let durable = Durable::start(supervisor, dir.path().to_owned());
        let begun = tokio::time::Instant::now();
        durable.finish().await;
        assert!(begun.elapsed() < AFTER);
        assert!(matches!(said.try_recv(), Ok(DaemonMessage::Durable)));
        durable.finish().await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_synced_is_not_called_durable() {
        let dir = tempfile::tempdir().unwrap();
        let (supervisor, mut said) = Supervisor::overheard();
        Durable::start(supervisor, dir.path().join("gone")).finish().await;
        assert!(said.recv().await.is_none());
    }
}
