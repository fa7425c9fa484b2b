//! What a node goes through.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::time::Instant;

use burstfs_node::outcome::Verdict;
use burstfs_types::Code;

use crate::node::{Job, Node, is_running, job, spec, text, wait_until};

pub(crate) type Scenario = fn(&Node);

pub(crate) const ALL: &[(&str, Scenario)] = &[
    ("ready_and_stop", ready_and_stop),
    ("start_twice", start_twice),
    ("double_stop", double_stop),
    ("scripts_of_slurm_never_fail", scripts_of_slurm_never_fail),
    ("stop_without_restart_count", stop_without_restart_count),
    ("daemon_says_failed", daemon_says_failed),
    ("daemon_dies_at_start", daemon_dies_at_start),
    ("daemon_cannot_be_executed", daemon_cannot_be_executed),
    ("hostile_daemon", hostile_daemon),
    ("cancel_while_staging", cancel_while_staging),
    ("stage_in_hangs", stage_in_hangs),
    ("nvme_missing", nvme_missing),
    ("nvme_full", nvme_full),
    ("hostile_request", hostile_request),
    ("daemon_killed_and_restarted", daemon_killed_and_restarted),
    ("broker_killed_and_replaced", broker_killed_and_replaced),
    ("daemon_keeps_dying", daemon_keeps_dying),
    ("daemon_dies_in_drain", daemon_dies_in_drain),
    ("drain_hangs", drain_hangs),
    ("supervisor_killed_then_stop", supervisor_killed_then_stop),
    ("both_killed_then_stop", both_killed_then_stop),
    ("both_killed_then_recover", both_killed_then_recover),
    ("recover_leaves_a_serving_daemon_alone", recover_leaves_a_serving_daemon_alone),
    ("supervisor_killed_while_starting", supervisor_killed_while_starting),
    ("hostile_data_tree", hostile_data_tree),
    ("busy_mount", busy_mount),
    ("held_and_gc", held_and_gc),
    ("held_and_resumed", held_and_resumed),
    ("held_until_its_time_is_over", held_until_its_time_is_over),
    ("how_the_job_ended_is_asked_of_slurm_and_kept", how_the_job_ended_is_asked_of_slurm_and_kept),
    ("held_data_is_counted", held_data_is_counted),
    ("a_node_that_is_returned", a_node_that_is_returned),
    ("list_without_an_nvme", list_without_an_nvme),
    ("reboot_with_data_in_use", reboot_with_data_in_use),
    ("reboot_while_draining", reboot_while_draining),
    ("reboot_while_starting", reboot_while_starting),
    ("requeued_job", requeued_job),
    ("overhead", overhead),
    ("what_the_daemon_started_ends_with_it", what_the_daemon_started_ends_with_it),
    ("without_cgroups", without_cgroups),
];

fn ready_and_stop(node: &Node) {
    let job = job(1, "plain");
    let Verdict::Ready { environment, .. } = node.start(&job) else { panic!("{:?}", node.outcome(&job)) };
    assert_eq!(environment["BURSTFS"], node.mount(&job).to_str().unwrap());
    let listing_as = |user: &str| {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups", "ls"]);
        command.arg(node.mount(&job)).output().unwrap().status
    };
    assert!(listing_as("65534").success());
    assert!(!listing_as("65533").success(), "the file system is the user's alone");
    let row = node.listed(&job);
    assert_eq!((row["state"].as_str(), row["user"].as_str()), (Some("READY"), Some("nobody")));
    assert_eq!(row["capacity_bytes"], 16 << 20);
    let mode = fs::metadata(node.data(&job)).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
    assert_eq!(node.stop(&job), "");
}

fn start_twice(node: &Node) {
    let job = job(2, "plain");
    node.start_ready(&job);
    let pid = node.pid(&job, "supervisor_pid");
    node.start_ready(&job);
    assert_eq!(node.pid(&job, "supervisor_pid"), pid);
    let other = job.clone().with("SLURM_NODELIST", "node[2-3]");
    let output = node.job_command("start", &other).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(matches!(node.outcome(&job), Verdict::Ready { .. }), "another's start does not touch it");
    node.stop(&job);
}

fn double_stop(node: &Node) {
    let job = job(3, "plain");
    node.start_ready(&job);
    let stops: Vec<_> = (0..3).map(|_| node.job_command("stop", &job).spawn().unwrap()).collect();
    for mut stop in stops {
        assert!(stop.wait().unwrap().success());
    }
    node.assert_clean();
    assert_eq!(node.stop(&job), "", "nothing is there");
}

fn scripts_of_slurm_never_fail(node: &Node) {
    let job = job(31, "plain");
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    };
    // A job that does not ask for burstfs leaves no trace; one that cannot have it finds out why.
    run(node.script_command("prolog", &job).env_remove("SPANK_BURSTFS_SPEC"));
    assert!(!node.path("run").exists() && !node.path("log").exists());
    run(node.script_command("prolog", &job).env("SLURM_HET_JOB_ID", "30"));
    let Verdict::Failed { failure } = node.outcome(&job) else { panic!("a heterogeneous job got a file system") };
    assert_eq!(failure.code, Code::NotBuiltYet);
    let log = node.path("log").join(format!("{}.log", node.instance(&job)));
    assert!(fs::read_to_string(&log).unwrap().contains("E108: heterogeneous"));
    run(&mut node.script_command("epilog", &job));
    node.assert_clean();
    run(node.script_command("prolog", &job).env("SLURM_JOB_ID", "nonsense"));
    assert!(fs::read_to_string(node.path("log/burstfs-node.log")).unwrap().contains("SLURM_JOB_ID=\"nonsense\""));
    // The epilog of a run that is requeued has the count of the next.
    run(&mut node.script_command("prolog", &job));
    assert!(matches!(node.outcome(&job), Verdict::Ready { .. }));
    run(node.script_command("epilog", &job).env("SLURM_JOB_RESTART_COUNT", "1"));
    node.assert_clean();
}

fn stop_without_restart_count(node: &Node) {
    node.start_ready(&job(4, "plain"));
    node.stop(&Job { restart_count: None, ..job(4, "plain") });
}

fn daemon_says_failed(node: &Node) {
    let job = job(5, "fails");
    let (code, message) = node.start_failed(&job);
    assert_eq!((code, message.as_str()), (Code::StageInFailed, "/lus/in: no such file"));
    wait_until("the data to go", || !node.data(&job).exists());
    assert_eq!(node.scontrol_calls(), "", "the daemons tell one another");
    node.stop(&job);
}

fn daemon_dies_at_start(node: &Node) {
    let job = job(6, "dies-at-start");
    let (code, message) = node.start_failed(&job);
    assert_eq!(code, Code::DaemonFailed);
    assert!(message.contains("exit status 3: cannot open / mdt/CURRENT:  [31mbad"), "{message:?}");
    node.stop(&job);
    let calls = node.scontrol_calls();
    assert!(
        calls.starts_with("update jobid=6 admincomment=burstfs: 0: E203: node2: burstfsd could not start"),
        "{calls}"
    );
}

fn daemon_cannot_be_executed(node: &Node) {
    fs::rename(node.path("bin/burstfsd"), node.path("bin/gone")).unwrap();
    let job = job(7, "plain");
    let (code, message) = node.start_failed(&job);
    fs::rename(node.path("bin/gone"), node.path("bin/burstfsd")).unwrap();
    assert_eq!(code, Code::DaemonFailed);
    assert!(message.contains("No such file or directory"), "{message}");
    node.stop(&job);
}

fn hostile_daemon(node: &Node) {
    for part in ["evil-environment", "nonsense"] {
        let job = job(8, part);
        assert_eq!(node.start_failed(&job).0, Code::DaemonFailed, "{part}");
        node.stop(&job);
    }
}

fn cancel_while_staging(node: &Node) {
    let job = job(9, "never-ready");
    let mut start = node.job_command("start", &job).spawn().unwrap();
    wait_until("the stage-in", || node.listed(&job)["state"] == "STAGING_IN");
    node.stop(&job);
    assert!(start.wait().unwrap().success());
    // The start may have been too late to find what the stop has removed; then it says so, for nobody.
    node.stop(&job);
}

fn stage_in_hangs(node: &Node) {
    node.configure("30s", "100ms");
    let job = job(10, "never-ready");
    let (code, message) = node.start_failed(&job);
    assert_eq!((code, message.as_str()), (Code::DaemonFailed, "burstfsd made no progress"));
    node.stop(&job);
}

fn nvme_missing(node: &Node) {
    fs::remove_dir(node.path("nvme")).unwrap();
    let job = job(11, "plain");
    assert_eq!(node.start_failed(&job).0, Code::NvmeMissing);
    assert!(node.scontrol_calls().contains("E201: node2: "), "{}", node.scontrol_calls());
    node.stop(&job);
    symlink(node.path("elsewhere"), node.path("nvme")).unwrap();
    assert_eq!(node.start_failed(&job).0, Code::NvmeMissing);
    node.stop(&job);
    fs::remove_file(node.path("nvme")).unwrap();
    fs::create_dir(node.path("nvme")).unwrap();
    fs::set_permissions(node.path("nvme"), PermissionsExt::from_mode(0o777)).unwrap();
    assert_eq!(node.start_failed(&job).0, Code::NvmeMissing);
    node.stop(&job);
    fs::set_permissions(node.path("nvme"), PermissionsExt::from_mode(0o711)).unwrap();
}

fn nvme_full(node: &Node) {
    let huge = job(12, "plain").with("BURSTFS_SPEC", spec("400PiB"));
    let (code, message) = node.start_failed(&huge);
    assert_eq!(code, Code::NvmeFull, "{message}");
    node.stop(&huge);
    // A share that fits alone, and not next to another of the same size.
    let output = Command::new("df").args(["--output=avail", "-B1"]).arg(node.path("nvme")).output().unwrap();
    let free: u64 = String::from_utf8(output.stdout).unwrap().lines().nth(1).unwrap().trim().parse().unwrap();
    let half = spec(&format!("per_node={}KiB", free / 1024 * 6 / 10));
    let first = job(13, "plain").with("BURSTFS_SPEC", half.clone());
    let second = job(14, "plain").with("BURSTFS_SPEC", half);
    node.start_ready(&first);
    assert_eq!(node.start_failed(&second).0, Code::NvmeFull);
    node.stop(&first);
    node.start_ready(&second);
    node.stop(&second);
}

fn hostile_request(node: &Node) {
    for (name, value, code) in [
        ("SLURM_JOB_UID", "0", Code::Request),
        ("SLURM_JOB_USER", "root", Code::Request),
        ("SLURMD_NODENAME", "node9", Code::Request),
        ("SLURM_NODELIST", "node[1-", Code::Request),
        ("BURSTFS_SPEC", "{\"version\":1,\"create\":\"../..\"}", Code::Request),
        ("BURSTFS_SPEC", "", Code::Request),
    ] {
        let job = job(15, "plain").with(name, value);
        assert_eq!(node.start_failed(&job).0, code, "{name}={value}");
        node.stop(&self::job(15, "plain"));
    }
    let job = job(16, "plain").with("SLURM_CLUSTER_NAME", "../../etc");
    assert_eq!(node.job_command("start", &job).output().unwrap().status.code(), Some(2));
}

fn daemon_killed_and_restarted(node: &Node) {
    let job = job(17, "plain");
    node.start_ready(&job);
    let pid = node.pid(&job, "daemon_pid");
    node.kill(pid);
    wait_until("the restart", || {
        let row = node.listed(&job);
        row["restarts"] == 1 && row["daemon_pid"].is_i64() && lives(node, &job) == "true\n"
    });
    assert_ne!(node.pid(&job, "daemon_pid"), pid);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(mounts.matches("fuse.burstfs").count(), 1, "{mounts}");
    assert_eq!(node.stop(&job), "");
}

/// What the latest daemon wrote at its start: whether it knew that it was not the first.
fn lives(node: &Node, job: &Job) -> String {
    fs::read_to_string(node.data(job).join("lives")).unwrap_or_default()
}

fn broker_killed_and_replaced(node: &Node) {
    let job = job(33, "asks-broker");
    node.start_ready(&job);
    let supervisor = node.pid(&job, "supervisor_pid");
    let answers = || -> u64 {
        let said = fs::read_to_string(node.data(&job).join("answers")).unwrap_or_default();
        said.trim().parse().unwrap_or(0)
    };
    for _ in 0..3 {
        let before = answers();
        wait_until("an answer", || answers() > before);
        let broker = only_broker(supervisor).unwrap();
        node.kill(broker);
        wait_until("another broker", || only_broker(supervisor).is_some_and(|pid| pid != broker));
    }
    let before = answers();
    wait_until("an answer of the last one", || answers() > before);
    assert_eq!(node.stop(&job), "");
}

/// The child of `parent` that registers files.
fn only_broker(parent: i32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    let is_broker = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"backing".as_slice()) && is_running(*pid)
    };
    let brokers: Vec<i32> = children.filter(is_broker).collect();
    assert!(brokers.len() < 2, "{brokers:?}");
    brokers.first().copied()
}

fn daemon_keeps_dying(node: &Node) {
    let job = job(18, "dies-on-restart");
    node.start_ready(&job);
    node.kill(node.pid(&job, "daemon_pid"));
    wait_until("the supervisor to give up", || node.listed(&job)["state"] == "DEGRADED");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("fuse.burstfs"), "nobody waits for nobody");
    // Without a mount it works, and can drain.
    assert_eq!(node.stop(&job), "");
}

fn daemon_dies_in_drain(node: &Node) {
    let job = job(19, "dies-in-drain");
    node.start_ready(&job);
    assert_eq!(node.stop(&job), "");
}

fn drain_hangs(node: &Node) {
    node.configure("30s", "100ms");
    let job = job(20, "hangs-in-drain");
    node.start_ready(&job);
    let said = node.stop(&job);
    assert!(said.contains("E503") && said.contains("E402: the drain made no progress"), "{said}");
    assert!(node.data(&job).exists());
    node.run(&["gc", &node.instance(&job)]);
}

fn supervisor_killed_then_stop(node: &Node) {
    let job = job(21, "plain");
    node.start_ready(&job);
    let daemon = node.pid(&job, "daemon_pid");
    node.kill(node.pid(&job, "supervisor_pid"));
    assert!(is_running(daemon), "the job goes on");
    node.stop(&job);
    assert!(!is_running(daemon));
}

fn both_killed_then_stop(node: &Node) {
    let job = job(22, "held");
    node.start_ready(&job);
    let daemon = node.pid(&job, "daemon_pid");
    node.kill(node.pid(&job, "supervisor_pid"));
    node.kill(daemon);
    let said = node.stop(&job);
    assert!(said.contains("E401: quota exceeded"), "it drained, or tried to: {said}");
    node.run(&["gc", &node.instance(&job)]);
}

fn both_killed_then_recover(node: &Node) {
    let job = job(23, "plain");
    node.start_ready(&job);
    let daemon = node.pid(&job, "daemon_pid");
    node.kill(node.pid(&job, "supervisor_pid"));
    node.kill(daemon);
    assert_eq!(node.listed(&job)["state"], "LOST");
    let said = node.run(&["recover"]);
    assert!(said.contains("is brought back"), "{said}");
    wait_until("the daemon", || lives(node, &job) == "true\n" && node.listed(&job)["state"] == "READY");
    assert!(node.run(&["recover"]).contains("has its supervisor"));
    assert_eq!(node.stop(&job), "");
}

fn recover_leaves_a_serving_daemon_alone(node: &Node) {
    let job = job(24, "plain");
    node.start_ready(&job);
    let daemon = node.pid(&job, "daemon_pid");
    node.kill(node.pid(&job, "supervisor_pid"));
    assert!(node.run(&["recover"]).contains("serves without a supervisor"));
    assert!(is_running(daemon));
    node.stop(&job);
}

fn supervisor_killed_while_starting(node: &Node) {
    let job = job(25, "never-ready");
    let mut start = node.job_command("start", &job).spawn().unwrap();
    wait_until("the stage-in", || node.listed(&job)["state"] == "STAGING_IN");
    node.kill(node.pid(&job, "supervisor_pid"));
    assert!(start.wait().unwrap().success());
    assert!(matches!(node.outcome(&job), Verdict::Failed { failure } if failure.code == Code::DaemonFailed));
    node.run(&["recover"]);
    node.assert_clean();
}

fn hostile_data_tree(node: &Node) {
    let job = job(26, "plain");
    node.start_ready(&job);
    fs::create_dir(node.path("elsewhere/kept")).unwrap();
    fs::write(node.path("elsewhere/kept/file"), "kept").unwrap();
    let data = node.data(&job);
    symlink(node.path("elsewhere/kept"), data.join("link")).unwrap();
    symlink("/", data.join("root")).unwrap();
    fs::create_dir_all(data.join("a/b/c")).unwrap();
    symlink("../../../..", data.join("a/b/c/up")).unwrap();
    fs::set_permissions(data.join("a/b"), PermissionsExt::from_mode(0o000)).unwrap();
    node.stop(&job);
    assert_eq!(fs::read_to_string(node.path("elsewhere/kept/file")).unwrap(), "kept");
}

fn busy_mount(node: &Node) {
    let job = job(27, "plain");
    node.start_ready(&job);
    let script = format!("cd {} && echo in && exec sleep 1000", node.mount(&job).display());
    let mut holder = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &script])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 3];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut said).unwrap();
    let said = node.stop(&job);
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(said.contains("E501") && said.contains(&format!("sleep ({})", holder.id())), "{said}");
}

fn held_and_gc(node: &Node) {
    let job = job(28, "held");
    node.start_ready(&job);
    fs::write(node.data(&job).join("precious"), "x").unwrap();
    let said = node.stop(&job);
    assert!(said.contains("E503") && said.contains("E401: quota exceeded on /lus"), "{said}");
    assert!(node.data(&job).join("precious").exists());
    assert!(!node.mount(&job).exists());
    let row = node.listed(&job);
    assert_eq!((row["state"].as_str(), row["user"].as_str()), (Some("HELD"), Some("nobody")));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let kept_for = row["kept_until"].as_u64().unwrap() - now;
    assert!((86_000..=86_400).contains(&kept_for), "a day, for want of another word: {kept_for}");
    wait_until("a daemon that tries again", || node.listed(&job)["daemon_pid"].is_i64());
    assert!(node.stop(&job).contains("E503"), "a late epilog");
    assert!(node.run(&["recover"]).contains("is held"));
    let attempts = || journal(node, &job).matches("\"step\":\"held\"").count();
    wait_until("another attempt", || attempts() >= 2);
    let (code, message) = node.start_failed(&job);
    assert_eq!(code, Code::Held, "{message}");
    node.stop(&job);
    assert!(node.data(&job).join("precious").exists());
    node.run(&["gc", &node.instance(&job)]);
    assert!(!node.command(&["gc", &node.instance(&job)]).output().unwrap().status.success());
}

fn journal(node: &Node, job: &Job) -> String {
    fs::read_to_string(node.path("nvme").join(node.instance(job)).join("journal")).unwrap_or_default()
}

fn held_and_resumed(node: &Node) {
    let job = job(33, "held-at-first");
    node.start_ready(&job);
    assert!(node.stop(&job).contains("E503"));
    // A supervisor that is gone is no reason to forget it.
    wait_until("a daemon that tries again", || node.listed(&job)["daemon_pid"].is_i64());
    let daemon = node.pid(&job, "daemon_pid");
    node.kill(node.pid(&job, "supervisor_pid"));
    assert_eq!(node.listed(&job)["state"], "HELD");
    assert!(node.run(&["recover"]).contains("is held"));
    wait_until("its successor", || node.listed(&job)["daemon_pid"].is_i64());
    assert!(!is_running(daemon));
    assert!(node.run(&["recover"]).contains("is held"));
    wait_until("the drain", || node.listed(&job).is_null());
}

fn how_the_job_ended_is_asked_of_slurm_and_kept(node: &Node) {
    let read = |job: &Job, name: &str| fs::read_to_string(node.data(job).join(name)).unwrap_or_default();
    for (id, script, heard, kept) in [
        (60, "echo \"$1|COMPLETED|0\"", "Some(Success)", "{\"step\":\"job_end\",\"end\":\"success\"}\n"),
        (61, "echo \"$1|CANCELLED|0\"", "Some(Failure)", "{\"step\":\"job_end\",\"end\":\"failure\"}\n"),
        (62, "echo cannot reach slurmctld >&2; exit 1", "None", ""),
        (63, "rm -f \"$0\"; echo \"7|COMPLETED|0\"", "None", ""),
    ] {
        node.slurm_says(script);
        let job = job(id, "asks-job-end");
        node.start_ready(&job);
        node.stop(&job);
        assert_eq!(read(&job, "heard"), heard, "{script}");
        let steps = journal(node, &job);
        assert_eq!(steps.matches("job_end").count(), usize::from(!kept.is_empty()), "{steps}");
        // Before the drain is over, so that whoever comes later decides the same.
        let (before, after) = (steps.find(kept).unwrap(), steps.find("\"step\":\"held\"").unwrap());
        assert!(before < after, "{steps}");
        wait_until("the next life to be told", || read(&job, "told") == heard);
        // Slurm may say what it likes from here on.
        node.slurm_says("echo \"$1|TIMEOUT|0\"");
        wait_until("a daemon that tries again", || node.listed(&job)["daemon_pid"].is_i64());
        node.kill(node.pid(&job, "supervisor_pid"));
        fs::remove_file(node.data(&job).join("told")).unwrap();
        assert!(node.run(&["recover"]).contains("is held"));
        wait_until("the same after another supervisor", || read(&job, "told") == heard);
        node.run(&["gc", &node.instance(&job)]);
    }
}

fn held_until_its_time_is_over(node: &Node) {
    let directives = ["64MiB", "stage_out source=/out destination=/lus/out retain=2s"];
    let job = job(34, "held").with("BURSTFS_SPEC", crate::node::spec_of(&directives));
    node.start_ready(&job);
    assert!(node.stop(&job).contains("E503"));
    wait_until("the end of its time", || node.listed(&job).is_null());
    let log = fs::read_to_string(node.path("log").join(format!("{}.log", node.instance(&job)))).unwrap();
    assert!(log.contains("E504: what could not be drained was kept for as long as the job asked"), "{log}");
    let too_long = ["64MiB", "stage_out source=/out destination=/lus/out retain=8days"];
    let job = self::job(35, "held").with("BURSTFS_SPEC", crate::node::spec_of(&too_long));
    assert_eq!(node.start_failed(&job).0, Code::Request);
    node.stop(&job);
}

fn held_data_is_counted(node: &Node) {
    let output = Command::new("df").args(["--output=avail", "-B1"]).arg(node.path("nvme")).output().unwrap();
    let free: u64 = String::from_utf8(output.stdout).unwrap().lines().nth(1).unwrap().trim().parse().unwrap();
    let first = job(36, "held");
    node.start_ready(&first);
    // What the daemon says that it has, beyond what is really there.
    let used = 1_u64 << 30;
    fs::write(node.data(&first).join("used"), used.to_string()).unwrap();
    node.stop(&first);
    wait_until("its figures", || node.listed(&first)["used_bytes"].as_u64() == Some(used));
    for (bytes, expected) in [(free + used / 2, Code::NvmeHeld), (free + 2 * used, Code::NvmeFull)] {
        let second = job(37, "plain").with("BURSTFS_SPEC", spec(&format!("per_node={}KiB", bytes / 1024)));
        let (code, message) = node.start_failed(&second);
        assert_eq!(code, expected, "{message}");
        let is_told = message.contains(&format!("{used} by job 36 of nobody until 2"));
        assert_eq!(is_told, expected == Code::NvmeHeld, "{message}");
        node.stop(&second);
    }
    node.run(&["gc", &node.instance(&first)]);
}

fn a_node_that_is_returned(node: &Node) {
    node.configure_drain("30s", "2s", "return");
    let job = job(38, "hangs-in-drain");
    node.start_ready(&job);
    let said = node.stop(&job);
    assert!(said.contains("the drain goes on without the epilog"), "{said}");
    assert!(!node.mount(&job).exists());
    assert_eq!(node.listed(&job)["state"], "DRAINING");
    node.stop(&job);
    wait_until("the end of patience", || node.listed(&job)["state"] == "HELD");
    node.run(&["gc", &node.instance(&job)]);
}

/// The power fails: processes, mounts and /run are gone, what is on the NVMe stays.
fn reboot(node: &Node, job: &Job) {
    node.kill(node.pid(job, "supervisor_pid"));
    let daemon = fs::read(node.path("run").join(node.instance(job)).join("daemon.json")).unwrap();
    let daemon: serde_json::Value = serde_json::from_slice(&daemon).unwrap();
    node.kill(i32::try_from(daemon["pid"].as_i64().unwrap()).unwrap());
    let kept = node.path("elsewhere/nvme");
    fs::rename(node.path("nvme"), &kept).unwrap();
    let data = kept.join(node.instance(job));
    fs::write(data.join("data/from-before"), "x").unwrap();
    fs::rename(node.path("elsewhere"), node.path("aside")).unwrap();
    node.reset();
    fs::remove_dir(node.path("nvme")).unwrap();
    fs::rename(node.path("aside/nvme"), node.path("nvme")).unwrap();
    fs::remove_dir(node.path("aside")).unwrap();
}

fn list_without_an_nvme(node: &Node) {
    fs::rename(node.path("nvme"), node.path("away")).unwrap();
    for (words, printed) in [(&["list"][..], ""), (&["list", "--json"], "[]\n")] {
        let output = node.command(words).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout), printed);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("E201") && said.contains("no compute node"), "{said}");
    }
    fs::rename(node.path("away"), node.path("nvme")).unwrap();
}

fn reboot_with_data_in_use(node: &Node) {
    let job = job(29, "plain");
    node.start_ready(&job);
    reboot(node, &job);
    node.run(&["recover"]);
    assert_eq!(node.listed(&job)["state"], "HELD");
    wait_until("the end of the node before it was safe", || journal(node, &job).contains("\"suspects\":[1]"));
    assert!(node.data(&job).join("from-before").exists());
    node.run(&["gc", &node.instance(&job)]);
}

fn reboot_while_draining(node: &Node) {
    let job = job(39, "durable");
    node.start_ready(&job);
    let mut stop = node.job_command("stop", &job).spawn().unwrap();
    wait_until("the data to be durable", || journal(node, &job).contains("durable"));
    stop.kill().unwrap();
    stop.wait().unwrap();
    reboot(node, &job);
    assert!(node.run(&["recover"]).contains("is held"));
    wait_until("the end of the node after it was safe", || journal(node, &job).contains("\"suspects\":[]"));
    wait_until("a daemon", || node.listed(&job)["daemon_pid"].is_i64());
    node.run(&["recover"]);
    wait_until("the drain", || node.listed(&job).is_null());
}

fn reboot_while_starting(node: &Node) {
    let job = job(30, "never-ready");
    let mut start = node.job_command("start", &job).spawn().unwrap();
    wait_until("the stage-in", || node.listed(&job)["state"] == "STAGING_IN");
    start.kill().unwrap();
    start.wait().unwrap();
    reboot(node, &job);
    assert!(node.run(&["recover"]).contains("is removed"));
}

fn requeued_job(node: &Node) {
    let first = job(31, "plain");
    let second = Job { restart_count: Some(1), ..first.clone() };
    node.start_ready(&first);
    node.kill(node.pid(&first, "supervisor_pid"));
    // No epilog came: the next run's prolog ends what is left, and takes its place.
    node.start_ready(&second);
    assert!(!node.data(&first).exists());
    node.stop(&first);
    assert_eq!(node.listed(&second)["state"], "READY", "a late epilog of the first run");
    node.stop(&second);
}

fn what_the_daemon_started_ends_with_it(node: &Node) {
    let job = job(32, "leaves-child");
    for kills_supervisor in [false, true] {
        node.start_ready(&job);
        let child: i32 = fs::read_to_string(node.data(&job).join("child")).unwrap().parse().unwrap();
        assert!(is_running(child));
        if kills_supervisor {
            node.kill(node.pid(&job, "supervisor_pid"));
        }
        node.stop(&job);
        assert!(!is_running(child));
    }
}

/// The same in a container whose cgroups cannot be written. The last scenario: it stays so.
fn without_cgroups(node: &Node) {
    node.hide_cgroups();
    what_the_daemon_started_ends_with_it(node);
    daemon_killed_and_restarted(node);
    both_killed_then_stop(node);
}

/// Not an assertion about a machine that others use too: prints what it costs, and bounds the memory.
fn overhead(node: &Node) {
    let (mut starts, mut stops) = (Vec::new(), Vec::new());
    for id in 100..109 {
        let job = job(id, "plain");
        let begin = Instant::now();
        node.start_ready(&job);
        starts.push(begin.elapsed());
        if id == 100 {
            let status = fs::read_to_string(format!("/proc/{}/status", node.pid(&job, "supervisor_pid"))).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            let kib: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
            println!("     idle supervisor: {kib} KiB resident");
            assert!(kib <= 8 * 1024, "{kib} KiB");
        }
        let begin = Instant::now();
        node.stop(&job);
        stops.push(begin.elapsed());
    }
    starts.sort();
    stops.sort();
    println!("     start {:.1?} (min {:.1?}), stop {:.1?} (min {:.1?})", starts[4], starts[0], stops[4], stops[0]);
}
