//! The machine that all nodes of the tests are on: users, host names, munged, and Slurm's answers about the job.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

/// Where the nodes' directories are.
pub(crate) const NODES: &str = "/nodes";
/// What outlives an instance: the job's directory.
pub(crate) const WORK: &str = "/pfs/alice";
/// The cluster's name, as Slurm says it.
pub(crate) const CLUSTER: &str = "rdma";
/// The job's user.
pub(crate) const UID: u32 = 7001;

/// Fills in the fields that it is asked for.
const SQUEUE: &str = "for word; do case $word in
  --Format=JobID:16,RestartCnt:16) echo '7 0' ;;
  --format=*) echo \"${word#--format=}\" | sed 's/%A/7/; s/%u/alice/; s/%T/RUNNING/; s/%N/node[1-3]/' ;;
esac; done";

/// Keeps the job's AdminComment, by which a node that fails tells the others.
const SCONTROL: &str = "case \"$1 $2\" in
  'show config') echo \"ClusterName = $CLUSTER\" ;;
  'show job') echo 'JobId=7 JobName=job'; echo '   JobState=RUNNING Reason=Prolog'; echo \"   AdminComment=$(cat $COMMENT)\" ;;
  'update jobid=7') echo \"${3#admincomment=}\" >$COMMENT ;;
  *) exit 1 ;;
esac";
/// Where that is kept.
pub(crate) const COMMENT: &str = "/nodes/comment";

/// Makes all of it, once.
pub(crate) fn set_up() -> Result<()> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let done = DONE.get_or_init(|| make().map_err(|error| format!("{error:#}")));
    done.clone().map_err(|error| anyhow!(error))
}

/// The address of node `number`, from 1 on: each end of the pair, where there are two, else the one that there is.
pub(crate) fn address(number: usize) -> Result<String> {
    let first =
        std::env::var("BURSTFS_RDMA_ADDRESS").context("BURSTFS_RDMA_ADDRESS is not set; use `make rdma-test`")?;
    let is_pair = Path::new("/sys/class/infiniband/rxe2").exists();
    Ok(if is_pair && number == 2 { "10.99.0.2".to_owned() } else { first })
}

/// A program of the build.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").context("CARGO_TARGET_DIR is not set; use `make rdma-test`")?;
    for_users(&Path::new(&target).join("release").join(name))
}

/// A program where the job's user can run it, too: what is built may be in a home of root's.
pub(crate) fn for_users(built: &Path) -> Result<PathBuf> {
    ensure!(built.exists(), "{} was not built", built.display());
    let path = Path::new(NODES).join("bin").join(built.file_name().context("a program's name")?);
    if !path.exists() {
        fs::copy(built, &path).with_context(|| built.display().to_string())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(path)
}

/// What a shell says as root; an error where it fails.
pub(crate) fn sh(script: &str) -> Result<String> {
    run(Command::new("sh").args(["-ec", script]), script)
}

/// The same as a user, in the job's directory.
pub(crate) fn sh_as(user: &str, script: &str) -> Result<String> {
    run(as_user(user).args(["sh", "-ec", script]).current_dir(WORK), script)
}

/// A command of `user`; what to run follows.
pub(crate) fn as_user(user: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--init-groups", "--reset-env", "--", "env"]);
    command.arg(format!("PATH={NODES}/bin:/usr/local/bin:/usr/bin:/bin"));
    command
}

fn run(command: &mut Command, what: &str) -> Result<String> {
    let output = command.output().with_context(|| what.to_owned())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{what}: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

fn make() -> Result<()> {
    append("/etc/passwd", "alice:x:7001:7001::/pfs/alice:/bin/sh\nbob:x:7002:7002::/:/bin/sh\n")?;
    append("/etc/group", "alice:x:7001:\nbob:x:7002:\n")?;
    for number in 1..=3 {
        append("/etc/hosts", &format!("{} node{number}\n", address(number)?))?;
    }
    // A disk of each node's own, as far as burstfs sees: not the overlay, which has none of the usual properties.
    sh(&format!("mkdir -p {NODES} && mount -t tmpfs -o mode=755 nodes {NODES} && mkdir -p {WORK} {NODES}/bin"))?;
    chown(WORK, Some(UID), Some(UID))?;
    answer("squeue", SQUEUE)?;
    answer("scontrol", &format!("COMMENT={COMMENT} CLUSTER={CLUSTER}\n{SCONTROL}"))?;
    sh("install -d -o munge -g munge -m 0700 /etc/munge /var/lib/munge /var/log/munge
        install -d -o munge -g munge -m 0755 /run/munge
        head -c 128 /dev/urandom > /etc/munge/munge.key && chown munge: /etc/munge/munge.key && chmod 0400 /etc/munge/munge.key
        setpriv --reuid munge --regid munge --clear-groups munged --force")?;
    Ok(())
}

fn append(file: &str, text: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new().append(true).create(true).open(file).with_context(|| file.to_owned())?;
    Ok(file.write_all(text.as_bytes())?)
}

/// A command of Slurm's, which says what it would say of the job here.
fn answer(name: &str, script: &str) -> Result<()> {
    let path = Path::new(NODES).join("bin").join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
    Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
}
