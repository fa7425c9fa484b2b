//! What becomes of an instance whose supervisor may be gone.
//!
//! Under the run directory's lock it is decided who looks after an instance: its supervisor if it answers, else a new one
//! when this boot's `launch.json` is there, else nobody: after a reboot no process and no mount is left. What is left is then
//! settled here; data that was not drained is held, and [`keep`] starts a supervisor that has it drained.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use burstfs_node::held::Held;
use burstfs_node::journal::{Standing, Step};
use burstfs_types::InstanceId;
use rustix::fs::{Mode as FileMode, OFlags};
use rustix::process::{Pid, PidfdFlags};

use crate::dirs::TrustedDir;
use crate::error::{Context, NodeError};
use crate::log;
use crate::mount;
use crate::node_socket::{Connection, Reply, Report, Request};
use crate::process;
use crate::request;
use crate::settings::Settings;
use crate::spawn;
use crate::store::{Launch, RunBase, RunDir, Storage, remove_mount_point};
use crate::supervise::{self, Mode};

/// How often a supervisor may end under whoever waits for it.
const ATTEMPTS: usize = 3;
/// How long a supervisor that has answered may take to exit.
const EXIT_PATIENCE: Duration = Duration::from_secs(10);

/// Who looks after an instance now.
pub(crate) enum Keeper {
    /// A supervisor, connected.
    Supervisor(Connection),
    /// Nobody; what there was is settled.
    Nobody(Report),
}

/// Ends `instance` on this node and waits for it. Nothing being there is fine.
pub(crate) fn end(settings: &Settings, run_base: &RunBase, instance: &InstanceId) -> Result<Report, NodeError> {
    for _ in 0..ATTEMPTS {
        match take(settings, run_base, instance, Mode::ResumeToStop)? {
            Keeper::Nobody(report) => return Ok(report),
            Keeper::Supervisor(connection) => {
                if let Some(report) = wait_for_end(connection) {
                    return Ok(report);
                }
            }
        }
    }
    Err(NodeError::SupervisorGone(instance.to_string()))
}

/// Asks for the end; `None` when the supervisor was gone before it could answer.
fn wait_for_end(mut connection: Connection) -> Option<Report> {
    connection.send(&Request::Stop).ok()?;
    let mut supervisor: Option<OwnedFd> = None;
    let mut report = None;
    // A drain takes as long as it takes; the supervisor sees to it that it does not stand still.
    while let Some(reply) = connection.wait(None) {
        match reply {
            Reply::Stopping { pid } => supervisor = process_of(pid),
            Reply::Stopped(done) => {
                report = Some(done);
                break;
            }
            Reply::Recorded | Reply::Status(_) | Reply::Heard { .. } => {}
        }
    }
    let goes_on = report.as_ref().is_some_and(|report| report.held.is_some() || report.is_draining);
    if !goes_on {
        wait_for_exit(supervisor);
    }
    report
}

/// The process of a supervisor that has answered.
pub(crate) fn process_of(pid: i32) -> Option<OwnedFd> {
    rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// Waits for a supervisor that has said its last word to be gone.
pub(crate) fn wait_for_exit(supervisor: Option<OwnedFd>) {
    if let Some(supervisor) = supervisor {
        let _ = process::wait_readable(supervisor.as_fd(), Some(EXIT_PATIENCE));
    }
}

/// Finds or makes the one who looks after `instance`.
pub(crate) fn take(
    settings: &Settings,
    run_base: &RunBase,
    instance: &InstanceId,
    mode: Mode,
) -> Result<Keeper, NodeError> {
    let _lock = run_base.lock()?;
    if let Some(run) = run_base.find(instance)? {
        if let Some(connection) = Connection::open(run.dir()) {
            return Ok(Keeper::Supervisor(connection));
        }
        if launch_of_this_boot(&run).is_some() {
            return start_supervisor(settings, run_base, &run, instance, mode).map(Keeper::Supervisor);
        }
    }
    settle(settings, run_base, instance).map(Keeper::Nobody)
}

/// Starts a supervisor for what an instance left on this node before it was switched off, to hold it and have it drained.
/// `None` when there is one already, or nothing to hold, or nobody can say what it is.
pub(crate) fn keep(
    settings: &Settings,
    run_base: &RunBase,
    instance: &InstanceId,
) -> Result<Option<Connection>, NodeError> {
    let _lock = run_base.lock()?;
    if run_base.find(instance)?.is_some_and(|run| Connection::open(run.dir()).is_some()) {
        return Ok(None);
    }
    let Some(dir) = Storage::open(&settings.nvme)?.find(instance)? else { return Ok(None) };
    let is_kept = match dir.standing()? {
        Standing::Held(held) => held.kept_until.is_some(),
        Standing::InUse | Standing::Draining => true,
        Standing::Unused | Standing::Disposable => false,
    };
    let Some(description) = dir.description()?.filter(|_| is_kept) else { return Ok(None) };
    let launch = request::launch_again(description, settings)?;
    let run = run_base.make(instance)?;
    run.write_launch(&launch)?;
    start_supervisor(settings, run_base, &run, instance, Mode::ResumeToHold).map(Some)
}

/// What the instance was started with, if that was in this boot.
pub(crate) fn launch_of_this_boot(run: &RunDir) -> Option<Launch> {
    match run.launch() {
        Ok(launch) => launch.filter(|launch| launch.boot_id == process::boot_id()),
        Err(error) => {
            log::warning!("{error}");
            None
        }
    }
}

/// Starts a supervisor for what is described in `run`, and connects to it.
pub(crate) fn start_supervisor(
    settings: &Settings,
    run_base: &RunBase,
    run: &RunDir,
    instance: &InstanceId,
    mode: Mode,
) -> Result<Connection, NodeError> {
    let listener = run.listen()?;
    let log = open_log(&settings.log_dir, &log_name(instance));
    let base = run_base.path().to_string_lossy().into_owned();
    let name = instance.to_string();
    let child = spawn::supervisor(&[&base, &name, mode.word()], listener.as_fd(), log.as_fd())?;
    log::info!("supervisor of {instance} started, pid {}", spawn::raw_pid(child.pid()));
    // With this process's copy of the listener open the supervisor's end would not be seen.
    let connection = Connection::open(run.dir());
    drop(listener);
    connection.ok_or(NodeError::SupervisorGone(name))
}

/// What the instance's log is called.
pub(crate) fn log_name(instance: &InstanceId) -> String {
    format!("{instance}.log")
}

/// A log. An instance is not refused for want of one.
pub(crate) fn open_log(log_dir: &Path, name: &str) -> OwnedFd {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND;
    let opened = TrustedDir::open_or_make(log_dir).and_then(|dir| dir.open_file(name, flags, 0o640));
    opened.map(OwnedFd::from).unwrap_or_else(|error| {
        log::warning!("no log: {error}");
        null().unwrap_or_else(|_| std::process::abort())
    })
}

fn null() -> Result<OwnedFd, NodeError> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, FileMode::empty())
        .context(|| "open /dev/null".to_owned())
}

/// Finishes or undoes what can be without a supervisor: no process of the instance is left.
fn settle(settings: &Settings, run_base: &RunBase, instance: &InstanceId) -> Result<Report, NodeError> {
    let mut report = Report::default();
    let mount_base = TrustedDir::open(&settings.mount_base);
    if let Ok(base) = &mount_base {
        mount::abort(&base.path().join(instance.job_id().to_string()), instance);
        remove_mount_point(base, instance)?;
    }
    match Storage::open(&settings.nvme) {
        Ok(storage) => report.held = settle_data(&storage, instance)?,
        Err(failure) => report.warnings.push(failure),
    }
    run_base.remove(instance)?;
    Ok(report)
}

/// Removes the data, or says why it is kept.
fn settle_data(storage: &Storage, instance: &InstanceId) -> Result<Option<Held>, NodeError> {
    let Some(dir) = storage.find(instance)? else { return Ok(None) };
    match dir.standing()? {
        Standing::Unused | Standing::Disposable => {
            dir.journal()?.record(Step::Remove)?;
            storage.remove(instance)?;
            Ok(None)
        }
        Standing::Held(held) => Ok(Some(held)),
        Standing::InUse | Standing::Draining => {
            let mut journal = dir.journal()?;
            let held = match dir.description()? {
                Some(description) => supervise::cut_off(&description, journal.is_durable()),
                None => Held::unknown("what it was of is not known any more"),
            };
            journal.record(Step::Held(held.clone()))?;
            journal.sync()?;
            Ok(Some(held))
        }
    }
}
