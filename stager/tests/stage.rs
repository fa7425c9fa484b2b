//! Whole runs over a local directory as the instance.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step fails the test")]
#![allow(unreachable_pub, dead_code, reason = "the helpers' modules end in this program")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burstfs_proto::stage::Direction;
use burstfs_stager::{Atomic, InstanceTree, StageJob, Update};
use burstfs_types::{Code, Errno};
use support::compare::{assert_same, snapshot, torture};
use support::tree::{FaultTree, LocalTree};
use support::{Ran, Run, job, runtime};

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

fn drain(place: &Place, nodes: u16, attempt: u32, jobs: Vec<StageJob>, tree: Arc<dyn InstanceTree>) -> Ran {
    let stage_dir = place.path("stage");
    runtime().block_on(Run { nodes, attempt, jobs, stage_dir: &stage_dir }.go(Direction::Out, tree))
}

fn out(source: &str, target: &Path) -> StageJob {
    job(Direction::Out, Path::new(source), target, source.ends_with('/'))
}

#[test]
fn a_tree_of_everything_goes_in_and_out_unchanged() {
    let place = Place::new();
    let (source, instance, target) = (place.path("source"), place.path("instance"), place.path("target"));
    torture(&source, 20_000);
    let stage_dir = place.path("stage");
    let jobs = vec![job(Direction::In, &source, Path::new("/in"), true)];
    let tree = Arc::new(LocalTree::new(&instance, 4));
    let ran =
        runtime().block_on(Run { nodes: 4, attempt: 1, jobs, stage_dir: &stage_dir }.go(Direction::In, tree.clone()));
    assert_eq!(ran.outcome.failure, None);
    assert_same(&source, &instance.join("in"));
    assert_eq!(tree.open_handles(), 0);

    let ran = drain(&place, 4, 1, vec![out("/in/", &target.join("new"))], tree.clone());
    assert_eq!(ran.outcome.failure, None);
    assert_same(&source, &target.join("new"));
    let meta = fs::metadata(target.join("new")).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (55, 5), "the root directory's own time");
    let receipt = ran.receipt(&place.path("job"));
    assert_eq!(receipt["result"], "COMPLETE");
    let entries = receipt["entries"].as_array().unwrap();
    let expected =
        snapshot(&source).into_iter().filter(|(path, _)| !source.join(path).symlink_metadata().unwrap().is_dir());
    assert_eq!(entries.len(), expected.count());
    assert!(ran.figures.iter().all(|figures| figures.files_done > 0), "{:?}", ran.figures);
    let sums = ran.figures.iter().fold((0, 0, 0, 0), |sum, figures| {
        (
            sum.0 + figures.files_total,
            sum.1 + figures.files_done,
            sum.2 + figures.bytes_total,
            sum.3 + figures.bytes_done,
        )
    });
    assert_eq!((sums.0, sums.2), (sums.1, sums.3), "all that was found is done");
    assert_eq!(tree.open_handles(), 0);

    // A second time nothing moves. The journals know this attempt's copies; without them they are merely unchanged.
    fs::remove_dir_all(place.path("stage")).unwrap();
    let ran = drain(&place, 4, 2, vec![out("/in/", &target.join("new"))], tree);
    assert_eq!(ran.outcome.failure, None);
    let receipt = ran.receipt(&place.path("job"));
    assert_eq!(receipt["summary"]["bytes_copied"], 0, "{}", receipt["summary"]);
    assert_same(&source, &target.join("new"));
}

#[test]
fn striped_files_come_out_stripe_by_stripe() {
    let place = Place::new();
    let (instance, target) = (place.path("instance"), place.path("target"));
    torture(&instance, 10);
    let tree = Arc::new(LocalTree::striped(&instance, 3, 64 << 10));
    let ran = drain(&place, 3, 1, vec![out("/", &target)], tree.clone());
    assert_eq!(ran.outcome.failure, None);
    // The instance's root keeps its own attributes.
    let (want, have) = (snapshot(&instance), snapshot(&target));
    assert_eq!(want, have);
    let receipt = ran.receipt(&place.path("job"));
    let large = receipt["entries"].as_array().unwrap().iter().find(|entry| entry["path"] == "/large").unwrap();
    let hash = xxhash_rust::xxh3::xxh3_128(&fs::read(instance.join("large")).unwrap());
    assert_eq!(large["checksum"], format!("xxh3-128:{hash:032x}"), "of the whole file, as for any other");
    assert_eq!(tree.open_handles(), 0);
    let mut in_place = out("/large", &target.join("in-place"));
    in_place.atomic = Atomic::None;
    let ran = drain(&place, 3, 2, vec![in_place], tree);
    assert_eq!(ran.outcome.failure, None);
    assert!(fs::read(target.join("in-place")).unwrap() == fs::read(instance.join("large")).unwrap());
}

#[test]
fn whichever_call_of_a_striped_file_fails_the_receipt_is_true() {
    let place = Place::new();
    let instance = place.path("instance");
    fs::write(instance.join("striped"), vec![7; 300_000]).unwrap();
    let tree =
        |from, count, errno| Arc::new(FaultTree::new(LocalTree::striped(&instance, 3, 64 << 10), from, count, errno));
    let clean = tree(u64::MAX, 0, Errno::EIO);
    assert_eq!(drain(&place, 3, 1, vec![out("/", &place.path("clean"))], clean.clone()).outcome.failure, None);
    for (errno, count) in [(Errno::EACCES, 1), (Errno::EIO, u64::MAX), (Errno::ESTALE, 2)] {
        for from in 1..=clean.calls() {
            let round = Place::new();
            let ran = drain(&round, 3, 1, vec![out("/", &round.path("target"))], tree(from, count, errno));
            check_truth(&ran, &round, &instance, &round.path("target"), &format!("{errno:?} x {count} from {from}"));
        }
    }
}

#[test]
fn names_follow_rsync() {
    let place = Place::new();
    let (instance, target) = (place.path("instance"), place.path("target"));
    fs::create_dir_all(instance.join("out/sub")).unwrap();
    fs::write(instance.join("out/sub/f"), "x").unwrap();
    fs::write(instance.join("one"), "y").unwrap();
    std::os::unix::fs::symlink("/burstfs/42/out", instance.join("link")).unwrap();
    let jobs = vec![
        out("/out", &target.join("a")),
        out("/out/", &target.join("b")),
        out("/one", &target.join("c")),
        out("/one", &target),
        out("/link/", &target.join("d")),
    ];
    let ran = drain(&place, 2, 1, jobs, Arc::new(LocalTree::new(&instance, 2)));
    assert_eq!(ran.outcome.failure, None);
    for path in ["a/out/sub/f", "b/sub/f", "c", "one", "d/sub/f"] {
        assert!(target.join(path).is_file(), "{path}");
    }
}

#[test]
fn special_files_are_refused_by_name() {
    let place = Place::new();
    let (instance, target) = (place.path("instance"), place.path("target"));
    fs::write(instance.join("good"), "x").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, instance.join("pipe"), rustix::fs::Mode::RWXU).unwrap();
    let tree = Arc::new(LocalTree::new(&instance, 2));
    let ran = drain(&place, 2, 1, vec![out("/", &target)], tree.clone());
    assert_eq!(ran.outcome.failure.clone().unwrap().code, Code::DrainFailed);
    assert!(target.join("good").exists() && !target.join("pipe").exists());
    let receipt = ran.receipt(&place.path("job"));
    let failed: Vec<_> = receipt["entries"].as_array().unwrap().iter().filter(|e| e["state"] == "failed").collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0]["path"], "/pipe");
    assert!(failed[0]["reason"].as_str().unwrap().contains("not a regular file"), "{}", failed[0]);
    let report = fs::read_to_string(place.path("job").join("burstfs-42.report.txt")).unwrap();
    assert!(report.contains("/pipe: not a regular file") && report.ends_with("INCOMPLETE\n"), "{report}");

    let jobs = vec![job(Direction::In, &instance, Path::new("/again"), true)];
    let inside = Arc::new(LocalTree::new(&place.path("instance2"), 2));
    let ran = runtime()
        .block_on(Run { nodes: 2, attempt: 1, jobs, stage_dir: &place.path("stage") }.go(Direction::In, inside));
    let failure = ran.outcome.failure.unwrap();
    assert_eq!(failure.code, Code::StageInFailed);
    assert!(failure.message.contains("pipe"), "{failure}");
}

#[test]
fn each_directive_lacks_what_it_lacks() {
    let place = Place::new();
    let (instance, target) = (place.path("instance"), place.path("target"));
    for name in ["good", "bad"] {
        fs::create_dir(instance.join(name)).unwrap();
        fs::write(instance.join(name).join("a"), "x").unwrap();
    }
    rustix::fs::mkfifoat(rustix::fs::CWD, instance.join("bad/pipe"), rustix::fs::Mode::RWXU).unwrap();
    let sources = ["/good/", "/bad/", "/gone/"];
    let jobs = sources.map(|source| out(source, &target.join(source.trim_matches('/')))).to_vec();
    let ran = drain(&place, 2, 1, jobs, Arc::new(LocalTree::new(&instance, 2)));
    let code = |counts: fn(usize) -> bool| ran.outcome.shortfall(counts).map(|short| short.failure.code);
    assert_eq!(code(|index| index == 0), None);
    assert_eq!(code(|index| index == 1), Some(Code::DrainFailed));
    assert_eq!(code(|index| index == 2), Some(Code::OutputMissing));
    assert_eq!(code(|index| index != 1), Some(Code::OutputMissing));
    assert_eq!(code(|_| true), Some(Code::DrainFailed), "that which tells most");
    assert!(!ran.outcome.is_complete);
    assert_eq!(ran.receipt(&place.path("job"))["summary"]["files"], 2, "over all directives");
}

#[test]
fn missing_sources_have_their_codes() {
    let place = Place::new();
    let tree = Arc::new(LocalTree::new(&place.path("instance"), 1));
    let ran = drain(&place, 1, 1, vec![out("/nothing/", &place.path("target"))], tree.clone());
    assert_eq!(ran.outcome.failure.clone().unwrap().code, Code::OutputMissing);
    assert_eq!(ran.receipt(&place.path("job"))["result"], "INCOMPLETE");
    let jobs = vec![job(Direction::In, Path::new("/no/such/source"), Path::new("/in"), true)];
    let ran =
        runtime().block_on(Run { nodes: 1, attempt: 1, jobs, stage_dir: &place.path("stage") }.go(Direction::In, tree));
    assert_eq!(ran.outcome.failure.unwrap().code, Code::StageInFailed);
}

/// A tree that is small, so that every call of a run can be failed in turn.
fn small_tree(root: &Path) {
    fs::create_dir_all(root.join("d/e")).unwrap();
    fs::write(root.join("a"), "aaa").unwrap();
    fs::write(root.join("d/b"), vec![7; 70_000]).unwrap();
    fs::write(root.join("d/e/c"), "").unwrap();
    fs::hard_link(root.join("a"), root.join("d/a2")).unwrap();
    std::os::unix::fs::symlink("a", root.join("l")).unwrap();
    fs::write(root.join("large"), vec![3; 9 << 20]).unwrap();
}

/// Every file of the source is right at the target, or named as not being there; nothing else has a final name.
fn check_truth(ran: &Ran, place: &Place, source: &Path, target: &Path, what: &str) {
    let receipt = ran.receipt(&place.path("job"));
    let (want, have) = (snapshot(source), snapshot(target));
    let files = want.iter().filter(|(path, _)| !source.join(path).symlink_metadata().unwrap().is_dir());
    let entries = receipt["entries"].as_array().unwrap();
    let mut is_all_there = true;
    for (path, _) in files {
        let is_right = have.contains_key(path)
            && if source.join(path).is_symlink() {
                true
            } else {
                fs::read(source.join(path)).unwrap() == fs::read(target.join(path)).unwrap()
            };
        is_all_there &= is_right;
        let claimed = entries.iter().any(|entry| {
            let state = entry["state"].as_str().unwrap();
            entry["path"].as_str().unwrap() == format!("/{}", path.display()) && matches!(state, "copied" | "unchanged")
        });
        assert!(is_right || !claimed, "{what}: {path:?} is claimed and not there: {receipt:#}");
        assert!(is_right || !have.contains_key(path), "{what}: {path:?} has its name and wrong contents");
    }
    assert!(is_all_there || receipt["result"] == "INCOMPLETE", "{what}: {receipt:#}");
    assert!(have.keys().all(|path| want.contains_key(path)), "{what}: left over: {:?}", have.keys());
}

#[test]
fn whichever_call_fails_the_receipt_is_true() {
    let place = Place::new();
    let instance = place.path("instance");
    small_tree(&instance);
    let calls = {
        let tree = Arc::new(FaultTree::new(LocalTree::new(&instance, 2), u64::MAX, 0, Errno::EIO));
        let ran = drain(&place, 2, 1, vec![out("/", &place.path("clean"))], tree.clone());
        assert_eq!(ran.outcome.failure, None);
        tree.calls()
    };
    assert!(calls > 30, "{calls}");
    let mut incomplete = 0;
    for (errno, count) in [(Errno::EACCES, 1), (Errno::EIO, 1), (Errno::ESTALE, 3), (Errno::EIO, u64::MAX)] {
        for from in 1..=calls {
            let round = Place::new();
            let tree = Arc::new(FaultTree::new(LocalTree::new(&instance, 2), from, count, errno));
            let ran = drain(&round, 2, 1, vec![out("/", &round.path("target"))], tree.clone());
            check_truth(&ran, &round, &instance, &round.path("target"), &format!("{errno:?} x {count} from {from}"));
            assert_eq!(tree.inner.open_handles(), 0);
            incomplete += u32::from(!ran.outcome.is_complete);
            if errno == Errno::ESTALE {
                assert!(ran.outcome.is_complete, "errors that pass: call {from}: {:?}", ran.outcome);
            }
        }
    }
    assert!(incomplete > 0);
}

/// A directory that is to appear at once: whichever call fails, it is there as a whole or not at all, and nothing else is touched.
#[test]
fn a_directory_appears_at_once() {
    let place = Place::new();
    let instance = place.path("instance");
    small_tree(&instance);
    let attempt = |round: &Place, attempt: u32, tree: Arc<dyn InstanceTree>| {
        let job = StageJob { atomic: Atomic::Dir, ..out("/", &round.path("target").join("run")) };
        drain(round, 2, attempt, vec![job], tree)
    };
    let calls = {
        let round = Place::new();
        fs::create_dir(round.path("target").join("run")).unwrap();
        fs::write(round.path("target").join("run/old"), "old").unwrap();
        let tree = Arc::new(FaultTree::new(LocalTree::new(&instance, 2), u64::MAX, 0, Errno::EIO));
        let ran = attempt(&round, 1, tree.clone());
        assert_eq!(ran.outcome.failure, None);
        assert_same(&instance, &round.path("target").join("run"));
        assert_eq!(fs::read_to_string(round.path("target").join("run.before-42/old")).unwrap(), "old");
        let receipt = ran.receipt(&round.path("job"));
        let to = receipt["entries"][0]["destination"].as_str().unwrap().to_owned();
        assert!(to.starts_with(round.path("target").join("run").to_str().unwrap()), "{to}");
        // It is not published once more, over itself.
        let again = attempt(&round, 2, Arc::new(LocalTree::new(&instance, 2)));
        assert_eq!(again.receipt(&round.path("job"))["summary"]["bytes_copied"], 0);
        assert_eq!(fs::read_dir(round.path("target")).unwrap().count(), 2);
        tree.calls()
    };
    let mut missed = 0;
    for from in 1..=calls {
        let round = Place::new();
        let run = round.path("target").join("run");
        let first =
            attempt(&round, 1, Arc::new(FaultTree::new(LocalTree::new(&instance, 2), from, u64::MAX, Errno::EIO)));
        assert_eq!(run.exists(), first.outcome.is_complete, "call {from}: {:?}", first.outcome);
        missed += u32::from(!first.outcome.is_complete);
        let second = attempt(&round, 2, Arc::new(LocalTree::new(&instance, 2)));
        assert_eq!(second.outcome.failure, None, "call {from}");
        assert_same(&instance, &run);
        assert_eq!(fs::read_dir(round.path("target")).unwrap().count(), 1, "call {from}");
    }
    assert!(missed > 0);
}

#[test]
fn whichever_call_fails_a_stage_in_is_not_called_good() {
    let place = Place::new();
    let source = place.path("source");
    small_tree(&source);
    let run = |from: u64, errno: Errno| {
        let round = Place::new();
        let tree = Arc::new(FaultTree::new(LocalTree::new(&round.path("instance"), 2), from, 1, errno));
        let jobs = vec![job(Direction::In, &source, Path::new("/"), true)];
        let stage_dir = round.path("stage");
        let ran = runtime()
            .block_on(Run { nodes: 2, attempt: 1, jobs, stage_dir: &stage_dir }.go(Direction::In, tree.clone()));
        if ran.outcome.is_complete {
            assert_same(&source, &round.path("instance"));
        }
        assert_eq!(tree.inner.open_handles(), 0);
        (ran.outcome, tree.calls())
    };
    let (outcome, calls) = run(u64::MAX, Errno::EIO);
    assert_eq!(outcome.failure, None);
    let mut no_space = 0;
    for from in 1..=calls {
        run(from, Errno::EIO);
        let (outcome, _) = run(from, Errno::ENOSPC);
        no_space += u32::from(outcome.failure.is_some_and(|failure| failure.code == Code::StageInNoSpace));
    }
    assert!(no_space > 5, "{no_space}");
}

#[test]
fn old_temporaries_go_and_what_the_target_has_more_stays() {
    let place = Place::new();
    let (instance, target) = (place.path("instance"), place.path("target"));
    fs::write(instance.join("f"), "new").unwrap();
    fs::write(target.join("f"), "old contents").unwrap();
    fs::write(target.join("more"), "stays").unwrap();
    fs::write(target.join(".f.burstfs-42-000000000000000000ff"), "stale").unwrap();
    fs::write(target.join(".f.burstfs-43-000000000000000000ff"), "another job's").unwrap();
    let ran = drain(&place, 1, 1, vec![out("/", &target)], Arc::new(LocalTree::new(&instance, 1)));
    assert_eq!(ran.outcome.failure, None);
    assert_eq!(fs::read_to_string(target.join("f")).unwrap(), "new");
    let mut names: Vec<_> =
        fs::read_dir(&target).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, [".f.burstfs-43-000000000000000000ff", "f", "more"]);
}

#[test]
fn links_at_the_target_are_not_written_through() {
    let place = Place::new();
    let (instance, target, outside) = (place.path("instance"), place.path("target"), place.path("outside"));
    fs::create_dir(instance.join("d")).unwrap();
    fs::write(instance.join("d/f"), "x").unwrap();
    fs::write(instance.join("g"), "y").unwrap();
    fs::write(outside.join("victim"), "safe").unwrap();
    std::os::unix::fs::symlink(&outside, target.join("d")).unwrap();
    std::os::unix::fs::symlink(outside.join("victim"), target.join("g")).unwrap();
    let mut directive = out("/", &target);
    directive.update = Update::All;
    let ran = drain(&place, 1, 1, vec![directive], Arc::new(LocalTree::new(&instance, 1)));
    assert!(!ran.outcome.is_complete);
    assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "safe");
    assert!(!outside.join("f").exists());
    assert_eq!(fs::read_to_string(target.join("g")).unwrap(), "y");
}

/// Runs one of this file's ignored tests in a process of its own.
fn child(name: &str, wrap: &[&str], dir: &Path) -> std::process::Command {
    let mut words: Vec<std::ffi::OsString> = wrap.iter().map(Into::into).collect();
    words.push(std::env::current_exe().unwrap().into());
    words.extend(["--ignored", "--exact", name, "--nocapture"].map(Into::into));
    let mut command = std::process::Command::new(&words[0]);
    command.args(&words[1..]).env("STAGE_TEST_DIR", dir);
    command
}

fn child_dir() -> PathBuf {
    std::env::var_os("STAGE_TEST_DIR").expect("run by another test").into()
}

fn child_drain(attempt: u32, target: &str) -> (Ran, PathBuf) {
    let dir = child_dir();
    let tree = Arc::new(LocalTree::new(&dir.join("instance"), 2));
    let run = Run { nodes: 2, attempt, jobs: vec![out("/", &dir.join(target))], stage_dir: &dir.join("stage") };
    (runtime().block_on(run.go(Direction::Out, tree)), dir)
}

#[test]
#[ignore = "run by full_targets_are_told"]
fn in_a_full_target() {
    let (ran, dir) = child_drain(1, "target");
    assert!(!ran.outcome.is_complete);
    let receipt = ran.receipt(&dir);
    let reasons: Vec<_> = receipt["entries"].as_array().unwrap().iter().filter_map(|e| e["reason"].as_str()).collect();
    assert!(reasons.iter().any(|reason| reason.contains("No space left on device")), "{reasons:?}");
    for name in fs::read_dir(dir.join("target")).unwrap().map(|entry| entry.unwrap().file_name()) {
        assert_eq!(
            fs::read(dir.join("target").join(&name)).unwrap(),
            fs::read(dir.join("instance").join(&name)).unwrap()
        );
    }
}

#[test]
fn full_targets_are_told() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let place = Place::new();
    let (instance, target) = (place.path("instance"), place.path("target"));
    for index in 0..40 {
        fs::write(instance.join(format!("f{index}")), vec![index; 100_000]).unwrap();
    }
    // A mount namespace of its own: nothing is left mounted.
    let mount = format!("mount -t tmpfs -o size=1m none '{}' && exec \"$0\" \"$@\"", target.display());
    let status = child("in_a_full_target", &["unshare", "-m", "sh", "-c", &mount], place.dir.path()).status().unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "run by unwritable_targets_are_told"]
fn in_an_unwritable_target() {
    let (ran, dir) = child_drain(1, "target");
    assert!(!ran.outcome.is_complete);
    let receipt = ran.receipt(&dir.join("job"));
    let reasons = receipt.to_string();
    assert!(reasons.contains("Permission denied"), "{reasons}");
    assert_eq!(fs::read_dir(dir.join("target")).unwrap().count(), 0);
    let (ran, _) = child_drain(1, "own");
    assert_eq!(ran.outcome.failure, None);
    let receipt = ran.receipt(&dir.join("job"));
    assert_eq!(receipt["summary"]["not_preserved"]["owner"], 2, "root's file and directory: {}", receipt["summary"]);
    assert_eq!(fs::metadata(dir.join("own/roots")).unwrap().mode() & 0o7777, 0o755, "set-id goes with the owner");
}

#[test]
fn unwritable_targets_are_told() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    const NOBODY: u32 = 65_534;
    let place = Place::new();
    let (instance, target, own) = (place.path("instance"), place.path("target"), place.path("own"));
    fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(instance.join("d")).unwrap();
    fs::write(instance.join("d/f"), "x").unwrap();
    std::os::unix::fs::chown(instance.join("d/f"), Some(NOBODY), Some(NOBODY)).unwrap();
    fs::write(instance.join("roots"), "y").unwrap();
    fs::set_permissions(instance.join("roots"), fs::Permissions::from_mode(0o6755)).unwrap();
    for dir in [own, place.path("stage"), place.path("job")] {
        std::os::unix::fs::chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
    // The test's own program may be where only root can reach it.
    let exe = place.dir.path().join("exe");
    fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&exe);
    command.args(["--ignored", "--exact", "in_an_unwritable_target", "--nocapture"]);
    let status = command.env("STAGE_TEST_DIR", place.dir.path()).current_dir("/").status().unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "run by a_killed_drain_goes_on"]
fn in_a_process_that_is_killed() {
    let (ran, _) = child_drain(1, "target");
    assert_eq!(ran.outcome.failure, None);
}

/// Killed at random points, again and again, until it has ended: whatever has a final name is whole, and the last receipt is true.
#[test]
fn a_killed_drain_goes_on() {
    let seed = std::env::var("STAGE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(random_u64);
    println!("STAGE_TEST_SEED={seed}");
    let mut random = seed | 1;
    let mut kills = 0;
    while kills < KILLS {
        let place = Place::new();
        let (instance, target) = (place.path("instance"), place.path("target"));
        for dir in 0..10 {
            fs::create_dir(instance.join(format!("d{dir}"))).unwrap();
            for file in 0..200 {
                fs::write(instance.join(format!("d{dir}/f{file}")), format!("{dir} {file}").repeat(file)).unwrap();
            }
        }
        loop {
            let mut process = child("in_a_process_that_is_killed", &[], place.dir.path())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let kill_at = count_names(&target) + (random % 400) as usize;
            while count_names(&target) <= kill_at && process.try_wait().unwrap().is_none() {
                std::thread::yield_now();
            }
            let has_ended = process.try_wait().unwrap().is_some();
            let _ = process.kill();
            process.wait().unwrap();
            for (path, _) in snapshot(&target) {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if !name.starts_with('.') && target.join(&path).is_file() {
                    assert_eq!(
                        fs::read(target.join(&path)).unwrap(),
                        fs::read(instance.join(&path)).unwrap(),
                        "{path:?}"
                    );
                }
            }
            if has_ended {
                break;
            }
            kills += 1;
        }
        // The same attempt goes on with its journals, as a restarted daemon does.
        let ran = drain(&place, 2, 1, vec![out("/", &target)], Arc::new(LocalTree::new(&instance, 2)));
        assert_eq!(ran.outcome.failure, None);
        assert_same(&instance, &target);
        let receipt = ran.receipt(&place.path("job"));
        assert_eq!(receipt["entries"].as_array().unwrap().len(), 2_000);
    }
}

/// How often the drain is killed, in all.
const KILLS: u32 = 40;

fn random_u64() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// Counts names while they are being made.
fn count_names(target: &Path) -> usize {
    let dirs = fs::read_dir(target).into_iter().flatten().flatten();
    let names = dirs.filter_map(|dir| fs::read_dir(dir.path()).ok()).flatten().flatten();
    names.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).count()
}

#[test]
#[ignore = "prints figures"]
fn throughput() {
    let place = Place::new();
    let instance = place.path("instance");
    for dir in 0..40 {
        fs::create_dir_all(instance.join(format!("small/d{dir}"))).unwrap();
        for file in 0..500 {
            fs::write(instance.join(format!("small/d{dir}/f{file}")), vec![file as u8; 4096]).unwrap();
        }
    }
    fs::create_dir(instance.join("large")).unwrap();
    for file in 0..8 {
        fs::write(instance.join(format!("large/f{file}")), vec![file; 128 << 20]).unwrap();
    }
    for what in ["small", "large"] {
        for round in 0..3 {
            let began = std::time::Instant::now();
            let copied = place.dir.path().join(format!("cp-{what}{round}"));
            assert!(
                std::process::Command::new("cp")
                    .arg("-a")
                    .arg(instance.join(what))
                    .arg(&copied)
                    .status()
                    .unwrap()
                    .success()
            );
            let unsynced = began.elapsed();
            assert!(std::process::Command::new("sync").arg("-f").arg(&copied).status().unwrap().success());
            let cp = began.elapsed();
            for nodes in [1, 4] {
                let began = std::time::Instant::now();
                let target = place.dir.path().join(format!("drain-{what}{round}-{nodes}"));
                let jobs = vec![out(&format!("/{what}/"), &target)];
                let ran = drain(&place, nodes, round, jobs, Arc::new(LocalTree::new(&instance, nodes)));
                assert_eq!(ran.outcome.failure, None);
                let drained = began.elapsed();
                let began = std::time::Instant::now();
                let jobs = vec![job(Direction::In, &target, Path::new(&format!("/in-{what}{round}-{nodes}")), true)];
                let tree = Arc::new(LocalTree::new(&instance, nodes));
                let run = Run { nodes, attempt: round, jobs, stage_dir: &place.path("stage-in") };
                assert_eq!(runtime().block_on(run.go(Direction::In, tree)).outcome.failure, None);
                let staged = began.elapsed();
                println!(
                    "{what} {nodes} nodes: cp -a {unsynced:.2?}, and sync {cp:.2?}; drain, verified {drained:.2?}; stage-in {staged:.2?}"
                );
            }
        }
    }
}

/// What each file has in it, and where each link leads.
fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let of = |path: PathBuf| {
        let at = root.join(&path);
        let bytes = if at.is_symlink() {
            fs::read_link(at).unwrap().into_os_string().into_encoded_bytes()
        } else if at.is_file() {
            fs::read(at).unwrap()
        } else {
            return None;
        };
        Some((path, bytes))
    };
    snapshot(root).into_keys().filter_map(of).collect()
}

/// A stage-in beside which the job's processes are at work.
fn bring(place: &Place, attempt: u32, source: &Path, tree: Arc<dyn InstanceTree>) -> Ran {
    let job = StageJob { is_shared: true, ..job(Direction::In, source, Path::new("/in"), true) };
    let stage_dir = place.path("stage");
    runtime().block_on(Run { nodes: 2, attempt, jobs: vec![job], stage_dir: &stage_dir }.go(Direction::In, tree))
}

#[test]
fn what_the_job_has_made_is_never_replaced() {
    let place = Place::new();
    let (source, instance) = (place.path("source"), place.path("instance"));
    small_tree(&source);
    fs::write(source.join("own"), "the source's").unwrap();
    fs::hard_link(source.join("own"), source.join("own-too")).unwrap();
    std::os::unix::fs::symlink("elsewhere", source.join("own-link")).unwrap();
    fs::create_dir_all(instance.join("in")).unwrap();
    fs::write(instance.join("in/own"), "the job's").unwrap();
    fs::write(instance.join("in/own-link"), "no link").unwrap();
    let ran = bring(&place, 1, &source, Arc::new(LocalTree::new(&instance, 2)));
    assert_eq!(ran.outcome.failure, None);
    let there = |name: &str| fs::read_to_string(instance.join("in").join(name)).unwrap();
    assert_eq!(
        [there("own").as_str(), &there("own-link"), &there("own-too")],
        ["the job's", "no link", "the source's"]
    );
    // Nor is it when all is done once more, as after a restart of the node that hands out the work.
    fs::write(instance.join("in/own-too"), "changed").unwrap();
    assert_eq!(bring(&place, 2, &source, Arc::new(LocalTree::new(&instance, 2))).outcome.failure, None);
    assert_eq!([there("own").as_str(), &there("own-too")], ["the job's", "changed"]);
    for name in ["own", "own-too", "own-link"] {
        fs::remove_file(source.join(name)).unwrap();
        fs::remove_file(instance.join("in").join(name)).unwrap();
    }
    let (want, have) = (contents(&source), contents(&instance.join("in")));
    assert_eq!(want, have);
}

/// Whichever call fails: a name of the input leads to the whole file, or to nothing, and another attempt brings the rest.
#[test]
fn input_that_comes_has_its_name_when_it_is_whole() {
    let place = Place::new();
    let source = place.path("source");
    small_tree(&source);
    // Its calls are those of a small file many times over.
    fs::remove_file(source.join("large")).unwrap();
    let want = contents(&source);
    let calls = {
        let tree = Arc::new(FaultTree::new(LocalTree::new(&place.path("clean"), 2), u64::MAX, 0, Errno::EIO));
        assert_eq!(bring(&place, 1, &source, tree.clone()).outcome.failure, None);
        tree.calls()
    };
    for (errno, count) in [(Errno::ENOSPC, 1), (Errno::EIO, u64::MAX)] {
        for from in 1..=calls {
            let round = Place::new();
            let instance = round.path("instance");
            let tree = FaultTree::new(LocalTree::new(&instance, 2), from, count, errno);
            bring(&round, 1, &source, Arc::new(tree));
            let have = if instance.join("in").exists() { contents(&instance.join("in")) } else { Default::default() };
            let is_temporary = |path: &Path| path.to_string_lossy().contains(".burstfs-");
            for (path, bytes) in have.iter().filter(|(path, _)| !is_temporary(path)) {
                assert_eq!(want.get(path), Some(bytes), "{errno:?} x {count} from {from}: {path:?}");
            }
            assert_eq!(bring(&round, 2, &source, Arc::new(LocalTree::new(&instance, 2))).outcome.failure, None);
            let mut have = contents(&instance.join("in"));
            have.retain(|path, _| !is_temporary(path));
            assert_eq!(have, want, "{errno:?} x {count} from {from}");
        }
    }
}
