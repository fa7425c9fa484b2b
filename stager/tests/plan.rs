//! What a plan says of a tree, beside what is there.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step fails the test")]
#![allow(unreachable_pub, dead_code, reason = "the helpers' modules end in this program")]

mod support;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use burstfs_proto::stage::Direction;
use burstfs_spec::{Filter, FilterAction, Filters};
use burstfs_stager::StageJob;
use burstfs_stager::plan::{DestinationError, Survey, destination, survey};
use support::compare::torture;
use support::tree::LocalTree;
use support::{Run, job, runtime};

/// Files, links and directories below a root, and the bytes of its files, each inode once.
fn count(root: &Path) -> (u64, u64, u64, u64) {
    let (mut files, mut links, mut dirs, mut bytes) = (0, 0, 1, 0);
    let mut seen = std::collections::HashSet::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                dirs += 1;
                todo.push(path);
            } else if meta.is_symlink() {
                links += 1;
            } else {
                files += 1;
                bytes += if seen.insert(meta.ino()) { meta.len() } else { 0 };
            }
        }
    }
    (files, links, dirs, bytes)
}

fn figures(survey: &Survey) -> (u64, u64, u64, u64) {
    (survey.files, survey.symlinks, survey.directories, survey.bytes)
}

fn plan(job: &StageJob, target: Option<&Path>) -> Survey {
    survey(job, target.map(|target| target.as_os_str().as_bytes())).unwrap()
}

#[test]
fn figures_are_what_is_there_and_what_the_target_has_is_not_moved_again() {
    let place = tempfile::tempdir().unwrap();
    let (source, target) = (place.path().join("source"), place.path().join("target"));
    torture(&source, 3_000);
    let all = job(Direction::Out, &source, &target, true);
    let planned = plan(&all, Some(&target));
    assert_eq!(figures(&planned), count(&source));
    assert_eq!((planned.problems, planned.to_copy()), (0, (planned.files + planned.symlinks, planned.bytes)));
    assert!(planned.allocated_bytes + (80 << 20) < planned.bytes, "holes: {planned:?}");
    assert_eq!(planned.largest_bytes, 100 << 20);

    let records = place.path().join("records");
    let staged = job(Direction::In, &source, Path::new("/"), true);
    let run = Run { nodes: 2, attempt: 1, jobs: vec![staged], stage_dir: &records };
    fs::create_dir(&target).unwrap();
    assert_eq!(runtime().block_on(run.go(Direction::In, Arc::new(LocalTree::new(&target, 2)))).outcome.failure, None);
    let again = plan(&all, Some(&target));
    assert_eq!(again.to_copy(), (0, 0), "{again:?}");
    fs::write(target.join("large"), "another").unwrap();
    assert_eq!(plan(&all, Some(&target)).to_copy(), (1, 20 << 20));
    fs::create_dir_all(target.join("parent")).unwrap();
    let within = job(Direction::Out, &source, &target.join("parent"), false);
    assert_eq!(plan(&within, Some(&target.join("parent"))).unchanged_files, 0);
}

#[test]
fn filters_patterns_and_lists_are_minded() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    for name in ["a/x.h5", "a/x.log", "b/deep/y.h5", "b/deep/y.log", "c"] {
        fs::create_dir_all(source.join(name).parent().unwrap()).unwrap();
        fs::write(source.join(name), name).unwrap();
    }
    let mut filtered = job(Direction::In, &source, Path::new("/in"), true);
    filtered.filters = Filters::new(vec![Filter::new(FilterAction::Exclude, "*.log").unwrap()]);
    assert_eq!(figures(&plan(&filtered, None)).0, 3);
    let mut matched = filtered.clone();
    matched.glob = Some(format!("{}/[ab]", source.display()).try_into().unwrap());
    assert_eq!(figures(&plan(&matched, None)), (2, 0, 3, 17));
    let mut listed = filtered.clone();
    let list = place.path().join("list");
    fs::write(&list, "b\nc\nnothing\na/x.log\n").unwrap();
    listed.list = Some(list.as_os_str().as_bytes().to_vec());
    let planned = plan(&listed, None);
    assert_eq!((planned.files, planned.problems), (2, 1), "{planned:?}");
    let file = job(Direction::In, &source.join("c"), Path::new("/in"), false);
    assert_eq!(figures(&plan(&file, None)), (1, 0, 0, 1));
    let missing = survey(&job(Direction::In, &source.join("no"), Path::new("/in"), false), None);
    assert_eq!(missing.unwrap_err(), "the source does not exist");
}

#[test]
fn what_cannot_be_copied_is_named() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    fs::create_dir_all(source.join("closed")).unwrap();
    fs::write(source.join("secret"), "x").unwrap();
    symlink("nowhere", source.join("link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, source.join("pipe"), rustix::fs::Mode::RWXU).unwrap();
    for name in ["closed", "secret"] {
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(0o000)).unwrap();
    }
    for name in ["", "source"] {
        fs::set_permissions(place.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    if rustix::process::geteuid().is_root() {
        // Root may read everything: somebody else looks. The test's own program may be where only root can reach it.
        let exe = place.path().join("exe");
        fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
        let mut command = Command::new(exe);
        command.args(["--ignored", "--exact", "as_somebody_else", "--nocapture"]).env("PLAN_TEST_DIR", place.path());
        let done = std::os::unix::process::CommandExt::uid(&mut command, 65_534).current_dir("/").output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    } else {
        look_at_closed(place.path());
    }
}

fn look_at_closed(place: &Path) {
    let planned = plan(&job(Direction::In, &place.join("source"), Path::new("/in"), true), None);
    let mut named = planned.first_problems.clone();
    named.sort();
    let root = place.join("source").display().to_string();
    assert_eq!(
        named,
        [
            format!("{root}/closed: cannot be listed: Permission denied"),
            format!("{root}/pipe: a named pipe"),
            format!("{root}/secret: you may not read it"),
        ]
    );
    assert_eq!((planned.problems, planned.symlinks), (3, 1));
    let there = destination(place.join("source/new/deep").as_os_str().as_bytes()).unwrap();
    assert_eq!(there.directory, place.join("source").as_os_str().as_bytes());
    assert!(there.free_bytes > 0);
    assert!(!destination(b"/proc/new/x").unwrap().is_writable);
    let within_file = destination(place.join("source/secret/x").as_os_str().as_bytes()).unwrap_err();
    assert!(matches!(within_file, DestinationError::NotADirectory(_)), "{within_file}");
    let closed = destination(place.join("source/closed/x").as_os_str().as_bytes()).unwrap_err();
    assert!(closed.is_permission(), "{closed}");
}

#[test]
#[ignore = "run by what_cannot_be_copied_is_named"]
fn as_somebody_else() {
    look_at_closed(Path::new(&std::env::var_os("PLAN_TEST_DIR").expect("run by another test")));
}

/// Peak resident memory of a process that plans a tree of `files` empty files in `dirs` directories.
fn peak_kib(place: &Path) -> u64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "a_large_tree", "--nocapture"]).env("PLAN_TEST_DIR", place);
    let done = command.output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{said}");
    let peak = said.lines().find_map(|line| line.strip_prefix("peak ")).expect("the peak");
    peak.trim().parse().unwrap()
}

#[test]
fn memory_does_not_grow_with_the_number_of_entries() {
    let place = tempfile::tempdir().unwrap();
    let mut peaks = Vec::new();
    for (dirs, files) in [(20, 100), (5_000, 20_000)] {
        let tree = place.path().join(format!("{files}"));
        for dir in 0..dirs {
            let path = tree.join(format!("{}/a-directory-with-a-name-{dir}", dir % 3));
            fs::create_dir_all(&path).unwrap();
            for file in 0..files / dirs {
                fs::File::create(path.join(format!("a-file-{file}"))).unwrap();
            }
        }
        peaks.push(peak_kib(&tree));
    }
    // Less than the names alone would take, and some threads' buffers.
    assert!(peaks[1] < peaks[0] + 2048, "KiB: {peaks:?}");
    assert!(peaks[1] < 64 << 10, "KiB: {peaks:?}");
}

#[test]
#[ignore = "run by memory_does_not_grow_with_the_number_of_entries; prints its peak of memory for any tree"]
fn a_large_tree() {
    let root = std::env::var_os("PLAN_TEST_DIR").expect("run by another test");
    let planned = plan(&job(Direction::In, Path::new(&root), Path::new("/in"), true), None);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    println!("files {} directories {}", planned.files, planned.directories);
    println!("peak {}", peak.trim().trim_end_matches(" kB"));
}
