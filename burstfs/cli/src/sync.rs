//! `burstfs sync`: drains what has changed while the job runs, and says what was done.

use std::path::{Path, PathBuf};
use std::time::Duration;

use burstfs_config::SiteConfig;
use burstfs_net::{Channel, Deadline, RpcError};
use burstfs_proto::Rpc;
use burstfs_proto::mgs::{AskDrain, AwaitDrain, RoundFigures, RoundState};

use crate::ask;
use crate::bar::Bar;
use crate::table::size;
use crate::{Ending, Exit, own_job};

/// One long poll: how often the bar moves.
const POLL: Duration = Duration::from_millis(500);
/// What an answer may take beyond that.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to drain.
#[derive(clap::Args)]
pub(crate) struct SyncArgs {
    /// Only what is at or below this path: of the mount, or of the instance where it is not mounted.
    path: Option<PathBuf>,
    /// The job; in a job its own.
    #[arg(short, long, value_name = "JOBID")]
    job: Option<u32>,
    /// Says nothing but errors.
    #[arg(short, long)]
    quiet: bool,
}

/// Drains, and waits.
pub(crate) fn run(args: &SyncArgs, config: &SiteConfig) -> Result<(), Ending> {
    let job = args.job.map_or_else(own_job, Ok)?;
    let mount = mount(job, config);
    let below = args.path.as_deref().map(|path| instance_path(path, &mount)).transpose()?;
    let place = ask::Place::of_job(job)?;
    let runtime = ask::runtime()?;
    let state = runtime.block_on(drain(&place, below, args.quiet, config))?;
    match state {
        RoundState::Over { figures, failure } => conclude(figures, failure, args.quiet),
        RoundState::Unknown | RoundState::Waiting | RoundState::Running { .. } => Err(Ending::new(
            Exit::Partial,
            "the job ended, or its first node was started again, before all was drained",
        )),
    }
}

/// The mount of the job on this node: what the job's environment says, else where burstfs mounts by itself.
fn mount(job: u32, config: &SiteConfig) -> PathBuf {
    let is_own = own_job().is_ok_and(|own| own == job);
    let told = std::env::var_os("BURSTFS").filter(|_| is_own).map(PathBuf::from);
    told.unwrap_or_else(|| config.mount_base.join(job.to_string()))
}

/// A path of this node as the instance has it.
fn instance_path(path: &Path, mount: &Path) -> Result<Vec<u8>, Ending> {
    let bytes = |path: &Path| Path::new("/").join(path).into_os_string().into_encoded_bytes();
    let canonical = std::fs::canonicalize(path);
    let mount = std::fs::canonicalize(mount).unwrap_or_else(|_| mount.to_owned());
    match canonical.as_deref().unwrap_or(path).strip_prefix(&mount) {
        Ok(below) => Ok(bytes(below)),
        Err(_) if canonical.is_err() && path.is_absolute() => Ok(bytes(path)),
        Err(_) => Err(Ending::new(
            Exit::Usage,
            format!("{} is not below {}, the job's file system", path.display(), mount.display()),
        )),
    }
}

async fn drain(
    place: &ask::Place,
    below: Option<Vec<u8>>,
    is_quiet: bool,
    config: &SiteConfig,
) -> Result<RoundState, Ending> {
    let channel = ask::connect(place, config).await.map_err(|error| Ending::new(error.exit(), error))?;
    let channel = channel.ok_or_else(|| Ending::new(Exit::NoInstance, "the job has no instance now"))?;
    let Some(round) = call(&channel, &AskDrain { below }, Duration::ZERO).await? else {
        return Err(Ending::new(Exit::Failure, "the job is over: what has changed is being drained"));
    };
    let mut bar = Bar::new("drained", is_quiet);
    loop {
        let wait_ms = POLL.as_millis() as u32;
        let state = call(&channel, &AwaitDrain { round, wait_ms }, POLL).await?;
        match &state {
            RoundState::Waiting => {}
            RoundState::Running { progress, .. } => bar.show(progress),
            RoundState::Over { .. } | RoundState::Unknown => {
                bar.clear();
                return Ok(state);
            }
        }
    }
}

async fn call<R: Rpc>(channel: &Channel, request: &R, wait: Duration) -> Result<R::Reply, Ending> {
    channel.call(request, Deadline::after(wait + PATIENCE)).await.map_err(|error| {
        let exit = if matches!(error, RpcError::Timeout(_)) { Exit::TimeOut } else { Exit::Failure };
        Ending::new(exit, format!("the instance does not answer: {error}"))
    })
}

fn conclude(figures: RoundFigures, failure: Option<String>, is_quiet: bool) -> Result<(), Ending> {
    if !is_quiet {
        println!("burstfs: {}", words(&figures));
    }
    match failure {
        None => Ok(()),
        Some(first) if figures.failed > 1 => Err(Ending::new(
            Exit::Partial,
            format!("{first} ({} failures in all); tried again at the job's end", figures.failed),
        )),
        Some(first) => Err(Ending::new(Exit::Partial, format!("{first}; tried again at the job's end"))),
    }
}

fn words(figures: &RoundFigures) -> String {
    let mut words = format!("drained {} files, {}", figures.files, size(figures.bytes));
    if figures.unchanged > 0 {
        words += &format!("; {} were drained already", figures.unchanged);
    }
    if figures.changed_files > 0 {
        words += &format!("; {} are being written, and are drained again later", figures.changed_files);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_the_instances() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("out/a")).unwrap();
        let path = |path: &Path| instance_path(path, dir.path()).map(|path| String::from_utf8(path).unwrap()).ok();
        assert_eq!(path(&dir.path().join("out/a/../a/.")).as_deref(), Some("/out/a"));
        assert_eq!(path(dir.path()).as_deref(), Some("/"));
        assert_eq!(path(Path::new("/no/such/place")).as_deref(), Some("/no/such/place"));
        assert_eq!(path(Path::new("/usr")), None);
    }

    #[test]
    fn says_what_was_done() {
        let figures = RoundFigures { files: 3, bytes: 2048, unchanged: 1, changed_files: 2, ..RoundFigures::default() };
        let said = words(&figures);
        assert_eq!(
            said,
            "drained 3 files, 2.0K; 1 were drained already; 2 are being written, and are drained again later"
        );
        assert_eq!(words(&RoundFigures::default()), "drained 0 files, 0");
    }
}
