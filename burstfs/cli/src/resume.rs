//! `burstfs resume JOBID`: has what could not be drained drained now, and shows how that goes.
//!
//! The nodes do it; this command asks their MGS to begin, and then looks. Each attempt is a life of the nodes' daemons, so that
//! nobody may answer for a moment between two of them. When nobody answers any more the receipt has the last word.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use burstfs_config::SiteConfig;
use burstfs_proto::mgs::{InstanceStatus, Resume, State, Status};
use burstfs_types::{JobEnd, hostlist};
use nix::unistd::Uid;

use crate::ask::{self, AskError, Place};
use crate::slurm::{self, Filter};
use crate::{Ending, Exit, notes, table};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long nobody may answer: longer than the daemons take from one life to the next.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which instance.
pub(crate) struct Which {
    pub(crate) job: u32,
    /// The job's nodes in Slurm's notation, where nobody else knows them.
    pub(crate) nodelist: Option<String>,
    pub(crate) user: Option<String>,
    /// How the job ended, where Slurm does not say.
    pub(crate) ended: Option<JobEnd>,
    /// Come back as soon as the nodes have heard it.
    pub(crate) no_wait: bool,
}

/// Resumes. Ends with [`Exit::Partial`] if something is still not at its destination.
pub(crate) fn run(which: &Which, config: &SiteConfig) -> Result<(), Ending> {
    let began = SystemTime::now();
    let place = find(which)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Ending::new(Exit::Failure, error))?;
    runtime.block_on(async {
        let first = begin(which, &place, config).await?;
        match first.state {
            State::Held | State::Draining | State::Drained => {}
            State::Starting | State::StagingIn | State::Ready | State::Failed => {
                let state = table::state(first.state);
                return Err(Ending::new(Exit::Usage, format!("job {} is {state}: nothing is held", which.job)));
            }
        }
        if which.no_wait {
            println!("{} drain again; see: burstfs status -j {}", hostlist::compress(&first.hosts), which.job);
            return Ok(());
        }
        follow(which.job, &place, first, began, config).await
    })
}

/// Where the instance is: what Slurm knows, what its note says, or what the caller says.
fn find(which: &Which) -> Result<Place, Ending> {
    let failure = |error: &dyn std::fmt::Display| Ending::new(Exit::Failure, error);
    let users: Vec<String> = which.user.clone().into_iter().collect();
    let noted = notes::of(&users).into_iter().rfind(|(instance, _)| instance.job_id() == which.job);
    if let Some((instance, note)) = noted {
        return Place::noted(instance, &note);
    }
    let filter = Filter { jobs: vec![which.job], ..Filter::default() };
    let mut known = slurm::jobs(&filter).map_err(|error| failure(&error))?;
    if known.is_empty() {
        known.extend(slurm::finished(which.job).map_err(|error| failure(&error))?);
    }
    let cluster = slurm::cluster_name().map_err(|error| failure(&error))?;
    let mut job = known.into_iter().next();
    if let (Some(nodes), Some(user)) = (&which.nodelist, &which.user) {
        let hosts = hostlist::expand(nodes).map_err(|error| Ending::new(Exit::Usage, error))?;
        let restart_count = job.as_ref().map_or(0, |job| job.restart_count);
        job = Some(slurm::Job { id: which.job, user: user.clone(), state: String::new(), hosts, restart_count });
    }
    let none = || {
        let how =
            if Uid::current().is_root() { "; say whose it is with -u USER, and where with -w NODELIST" } else { "" };
        Ending::new(Exit::NoInstance, format!("job {} has no instance that anybody here knows of{how}", which.job))
    };
    job.map(|job| Place::of(&job, &cluster)).transpose()?.flatten().ok_or_else(none)
}

async fn begin(which: &Which, place: &Place, config: &SiteConfig) -> Result<InstanceStatus, Ending> {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask::ask(place, &Resume { ended: which.ended }, ask::TIMEOUT, config).await {
            Ok(Some(status)) => return Ok(status),
            Err(AskError::NotYours) => {
                return Err(Ending::new(Exit::Permission, AskError::NotYours));
            }
            Ok(None) | Err(_) if Instant::now() < end => tokio::time::sleep(INTERVAL).await,
            Ok(None) => {
                let message = format!("nobody answers for job {} on {}; is the node up?", which.job, place.host());
                return Err(Ending::new(Exit::NoInstance, message));
            }
            Err(error) => return Err(Ending::new(error.exit(), error)),
        }
    }
}

/// Shows how it goes until it has ended.
async fn follow(
    job: u32,
    place: &Place,
    first: InstanceStatus,
    began: SystemTime,
    config: &SiteConfig,
) -> Result<(), Ending> {
    let (receipt, attempts) = (first.receipt.clone(), first.attempts);
    let mut line = Line::default();
    let mut silent_since: Option<Instant> = None;
    loop {
        match ask::ask(place, &Status, ask::TIMEOUT, config).await {
            Ok(Some(status)) => {
                silent_since = None;
                match status.state {
                    State::Held if status.attempts > attempts => {
                        line.end();
                        return Err(Ending::new(Exit::Partial, status.reason));
                    }
                    State::Drained if status.dropped.is_some() => {
                        line.end();
                        return Err(Ending::new(Exit::Partial, status.reason));
                    }
                    State::Drained => {
                        line.end();
                        return complete(job, &receipt);
                    }
                    _ => line.show(&status),
                }
            }
            Ok(None) | Err(_) => {
                let since = *silent_since.get_or_insert_with(Instant::now);
                if let Some(result) = written_since(Path::new(&receipt), began)
                    && result == "COMPLETE"
                {
                    line.end();
                    return complete(job, &receipt);
                }
                if since.elapsed() > PATIENCE {
                    line.end();
                    return Err(Ending::new(Exit::TimeOut, format!("nobody answers for job {job} any more")));
                }
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn complete(job: u32, receipt: &str) -> Result<(), Ending> {
    println!("job {job}: COMPLETE; receipt: {receipt}");
    Ok(())
}

/// What the receipt says, if it is newer than `began`.
fn written_since(receipt: &Path, began: SystemTime) -> Option<String> {
    // File systems count time more coarsely than clocks, and the servers' may be a little late.
    let margin = Duration::from_secs(2);
    let modified = std::fs::metadata(receipt).ok()?.modified().ok()?;
    if modified + margin < began {
        return None;
    }
    let document: serde_json::Value = serde_json::from_slice(&std::fs::read(receipt).ok()?).ok()?;
    document["result"].as_str().map(str::to_owned)
}

/// The progress on a terminal: one line, written over.
#[derive(Default)]
struct Line {
    is_open: bool,
}

impl Line {
    fn show(&mut self, status: &InstanceStatus) {
        let mut out = std::io::stderr();
        if !out.is_terminal() {
            return;
        }
        let figures = &status.stage_out;
        let (done, total) = (table::size(figures.bytes_done), table::size(figures.bytes_total));
        let state = table::state(status.state);
        let text = format!("{state}: {done} of {total}, {} of {} files", figures.files_done, figures.files_total);
        // Nobody is left to look when it cannot be written.
        let _ = write!(out, "\r{text:<70}").and_then(|()| out.flush());
        self.is_open = true;
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.is_open) {
            eprintln!();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_old_receipt_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("receipt.json");
        assert_eq!(written_since(&path, SystemTime::UNIX_EPOCH), None);
        std::fs::write(&path, r#"{"result": "COMPLETE"}"#).unwrap();
        assert_eq!(written_since(&path, SystemTime::now()).as_deref(), Some("COMPLETE"));
        assert_eq!(written_since(&path, SystemTime::now() + Duration::from_secs(60)), None);
    }
}
