//! A node to run the helper on: a tmpfs in a mount namespace of this process, and eyes for what is left on it.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burstfs_node::outcome::{Outcome, Verdict};
use burstfs_types::Code;

/// Where the node's file system is.
const ROOT: &str = "/mnt";
const NODE_NAME: &str = "node2";

pub(crate) struct Node {
    /// Names nobody else's cgroups.
    pub(crate) cluster: String,
    spec: String,
}

/// A job on the node.
#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) id: u32,
    pub(crate) restart_count: Option<u32>,
    pub(crate) part: &'static str,
    pub(crate) variables: Vec<(&'static str, String)>,
}

pub(crate) fn job(id: u32, part: &'static str) -> Job {
    Job { id, restart_count: Some(0), part, variables: Vec::new() }
}

impl Job {
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Job {
        self.variables.push((name, value.into()));
        self
    }
}

impl Node {
    pub(crate) fn set_up() -> Node {
        // SAFETY: asks only.
        let uid = unsafe { libc::geteuid() };
        assert_eq!(uid, 0, "this test needs root");
        assert!(Path::new("/dev/fuse").exists(), "this test needs /dev/fuse");
        // SAFETY: plain system calls, before there is a second thread.
        unsafe {
            assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0);
            mount("none", "/", None, libc::MS_REC | libc::MS_PRIVATE);
            mount("tmpfs", ROOT, Some("tmpfs"), 0);
        }
        let cluster = format!("t{}", std::process::id());
        let node = Node { cluster, spec: spec("64MiB") };
        fs::set_permissions(ROOT, PermissionsExt::from_mode(0o755)).unwrap();
        node.make_directories();
        fs::copy(std::env::current_exe().unwrap(), node.path("bin/burstfsd")).unwrap();
        node
    }

    /// Puts an empty directory, read-only, over the cgroups, in this mount namespace.
    pub(crate) fn hide_cgroups(&self) {
        // SAFETY: plain system calls.
        unsafe { mount("tmpfs", "/sys/fs/cgroup", Some("tmpfs"), libc::MS_RDONLY) };
    }

    fn make_directories(&self) {
        for name in ["nvme", "bin", "elsewhere"] {
            fs::create_dir_all(self.path(name)).unwrap();
        }
        self.configure("30s", "30s");
        let script = format!("#!/bin/sh\necho \"$@\" >> {ROOT}/scontrol.calls\n");
        fs::write(self.path("bin/scontrol"), script).unwrap();
        fs::set_permissions(self.path("bin/scontrol"), PermissionsExt::from_mode(0o755)).unwrap();
        // A slurmctld that says nothing of the job.
        fs::write(self.path("bin/squeue"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(self.path("bin/squeue"), PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// What Slurm says of any job from now on: a shell script, with the job's id as its argument.
    pub(crate) fn slurm_says(&self, script: &str) {
        fs::write(self.path("bin/burstfs-job-state"), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(self.path("bin/burstfs-job-state"), PermissionsExt::from_mode(0o755)).unwrap();
    }

    pub(crate) fn configure(&self, start: &str, no_progress: &str) {
        self.configure_drain(start, no_progress, "wait");
    }

    /// What an epilog waits for is over soon; `node` is what the node does while it drains.
    pub(crate) fn configure_drain(&self, start: &str, no_progress: &str, node: &str) {
        let text = format!(
            "nvme = \"{ROOT}/nvme\"\nrun_dir = \"{ROOT}/run\"\nlog_dir = \"{ROOT}/log\"\nmount_base = \"{ROOT}/burstfs\"\n\
             default_capacity = \"64MiB\"\n\
             [programs]\ndaemon = \"{ROOT}/bin/burstfsd\"\njob_state = \"{ROOT}/bin/burstfs-job-state\"\n\
             [timeouts]\nstart = \"{start}\"\nno_progress = \"{no_progress}\"\n\
             [drain]\nretry = \"100ms\"\nnode = \"{node}\"\n"
        );
        fs::write(self.path("burstfs.toml"), text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        Path::new(ROOT).join(name)
    }

    pub(crate) fn instance(&self, job: &Job) -> String {
        format!("{}.{}.{}", self.cluster, job.id, job.restart_count.unwrap_or(0))
    }

    pub(crate) fn data(&self, job: &Job) -> PathBuf {
        self.path("nvme").join(self.instance(job)).join("data")
    }

    pub(crate) fn mount(&self, job: &Job) -> PathBuf {
        self.path("burstfs").join(job.id.to_string())
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_burstfs-node"));
        command.args(words).arg("--config").arg(self.path("burstfs.toml"));
        command.env_clear().env("PATH", format!("{ROOT}/bin:/usr/sbin:/usr/bin:/sbin:/bin"));
        command
    }

    pub(crate) fn job_command(&self, word: &str, job: &Job) -> Command {
        let mut command = self.command(&[word]);
        command
            .env("BURSTFS_SPEC", &self.spec)
            .env("SLURM_JOB_ID", job.id.to_string())
            .env("SLURM_JOB_UID", "65534")
            .env("SLURM_JOB_GID", "65534")
            .env("SLURM_JOB_USER", "nobody")
            .env("SLURM_NODELIST", "node[1-4]")
            .env("SLURMD_NODENAME", NODE_NAME)
            .env("SLURM_CLUSTER_NAME", &self.cluster)
            .env("SLURM_JOB_WORK_DIR", format!("/play/{}", job.part))
            .env("SLURM_JOB_STDOUT", "/play/out")
            .env("SLURM_CONF", "/etc/slurm/slurm.conf");
        if let Some(count) = job.restart_count {
            command.env("SLURM_JOB_RESTART_COUNT", count.to_string());
        }
        for (name, value) in &job.variables {
            command.env(name, value);
        }
        command
    }

    /// `prolog` or `epilog`, as Slurm runs it for a job that asks for burstfs.
    pub(crate) fn script_command(&self, word: &str, job: &Job) -> Command {
        let mut command = self.job_command(word, job);
        command.env_remove("BURSTFS_SPEC").env("SPANK_BURSTFS_SPEC", &self.spec);
        command
    }

    /// `start`, which returns 0 in any case, and its outcome.
    pub(crate) fn start(&self, job: &Job) -> Verdict {
        let output = self.job_command("start", job).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        self.outcome(job)
    }

    pub(crate) fn outcome(&self, job: &Job) -> Verdict {
        let path = self.path("run").join(self.instance(job)).join("outcome.json");
        let outcome: Outcome = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        outcome.verdict
    }

    pub(crate) fn start_ready(&self, job: &Job) {
        let verdict = self.start(job);
        assert!(matches!(verdict, Verdict::Ready { .. }), "{verdict:?}");
    }

    /// `start` of what cannot start: its code and message.
    pub(crate) fn start_failed(&self, job: &Job) -> (Code, String) {
        match self.start(job) {
            Verdict::Failed { failure } => (failure.code, failure.message),
            verdict => panic!("{verdict:?}"),
        }
    }

    /// `stop`, and what it said.
    pub(crate) fn stop(&self, job: &Job) -> String {
        let output = self.job_command("stop", job).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    pub(crate) fn run(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    /// The instance's line of `list --json`.
    pub(crate) fn listed(&self, job: &Job) -> serde_json::Value {
        let output = self.command(&["list", "--json"]).output().unwrap();
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        let instance = self.instance(job);
        rows.into_iter().find(|row| row["instance"] == instance.as_str()).unwrap_or(serde_json::Value::Null)
    }

    pub(crate) fn pid(&self, job: &Job, which: &str) -> i32 {
        i32::try_from(self.listed(job)[which].as_i64().unwrap()).unwrap()
    }

    /// Ends a process and waits until all of it is gone: `/proc` shows the first thread as a zombie while others still run.
    pub(crate) fn kill(&self, pid: i32) {
        use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
        let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
        let limit = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut fds, Some(&limit)), Ok(1), "{pid} does not end");
    }

    pub(crate) fn scontrol_calls(&self) -> String {
        fs::read_to_string(self.path("scontrol.calls")).unwrap_or_default()
    }

    /// Nothing of any instance is on the node, but logs.
    pub(crate) fn assert_clean(&self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains("fuse.burstfs"), "{mounts}");
        for name in ["run", "nvme", "burstfs"] {
            let left: Vec<_> = fs::read_dir(self.path(name)).into_iter().flatten().flatten().collect();
            let left: Vec<_> = left.iter().map(fs::DirEntry::path).filter(|path| !path.ends_with(".lock")).collect();
            assert!(left.is_empty(), "{left:?}");
        }
        // Who has removed all that is held by himself has told nobody that he ends.
        wait_until("the last process to end", || self.processes().is_empty());
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
    }

    fn processes(&self) -> Vec<String> {
        let ours = |pid: i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let is_ours =
                line.starts_with(&format!("{ROOT}/bin/burstfsd")) || line.contains(&format!(" {}.", self.cluster));
            (is_ours && is_running(pid)).then(|| format!("{pid} {line}"))
        };
        pids().into_iter().filter_map(ours).collect()
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path().join("burstfs"));
        let groups =
            hierarchies.chain([PathBuf::from("/sys/fs/cgroup/burstfs")]).filter_map(|path| fs::read_dir(path).ok());
        let names = groups.flatten().flatten().map(|entry| entry.path());
        names.filter(|path| path.to_string_lossy().contains(&self.cluster)).collect()
    }

    pub(crate) fn show_logs(&self) {
        for entry in fs::read_dir(self.path("log")).into_iter().flatten().flatten() {
            println!("--- {}\n{}", entry.path().display(), fs::read_to_string(entry.path()).unwrap_or_default());
        }
    }

    /// After a scenario, also a failed one: the next finds an empty node.
    pub(crate) fn reset(&self) {
        for line in self.processes() {
            let pid: i32 = line.split(' ').next().unwrap().parse().unwrap();
            kill_at_once(pid);
            wait_until("a leftover to end", || !is_running(pid));
        }
        for group in self.cgroups() {
            // A command that a supervisor has asked something may live longer than it by a moment.
            wait_until("a leftover cgroup to be empty", || {
                let parts = ["daemon", "supervisor", ""].map(|part| group.join(part));
                parts.iter().flat_map(|part| cgroup_pids(part)).for_each(kill_at_once);
                parts.iter().for_each(|part| drop(fs::remove_dir(part)));
                !group.exists()
            });
        }
        for entry in fs::read_dir(self.path("burstfs")).into_iter().flatten().flatten() {
            let path = CString::new(entry.path().to_str().unwrap()).unwrap();
            // SAFETY: detaches what is mounted there, if anything.
            while unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) } == 0 {}
        }
        for name in ["run", "nvme", "burstfs", "log", "elsewhere"] {
            let _ = fs::remove_dir_all(self.path(name));
        }
        let _ = fs::remove_file(self.path("scontrol.calls"));
        self.make_directories();
    }
}

unsafe fn mount(source: &str, target: &str, kind: Option<&str>, flags: libc::c_ulong) {
    let string = |text: &str| CString::new(text).unwrap();
    let (source, target, kind) = (string(source), string(target), kind.map(string));
    let kind = kind.as_ref().map_or(std::ptr::null(), |kind| kind.as_ptr());
    // SAFETY: all pointers are to C strings that live through the call, or null.
    let done = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, std::ptr::null()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

pub(crate) fn spec(directive: &str) -> String {
    spec_of(&[directive])
}

pub(crate) fn spec_of(directives: &[&str]) -> String {
    let mut accumulator = burstfs_spec::Accumulator::new();
    for directive in directives {
        accumulator.add(directive, &burstfs_spec::NoProfiles).unwrap();
    }
    accumulator.finish().unwrap().unwrap().to_json().unwrap()
}

fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The processes in a cgroup, if it is there.
fn cgroup_pids(group: &Path) -> Vec<i32> {
    let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    // Those of other namespaces are shown as 0.
    pids.lines().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid > 1).collect()
}

/// Kills a process that is this test's, as its command line or its cgroup says.
fn kill_at_once(pid: i32) {
    // SAFETY: a call with plain numbers; that the process is gone already is fine.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

pub(crate) fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).map(str::to_owned);
    state.is_some_and(|state| state != "Z" && state != "X")
}

/// Polls for a condition, for at most a while.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !condition() {
        assert!(std::time::Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
