//! Which entries are copied: filters, patterns and lists, beside the real rsync; and how fast.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step fails the test")]
#![allow(unreachable_pub, dead_code, reason = "the helpers' modules end in this program")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burstfs_proto::stage::Direction;
use burstfs_spec::{Accumulator, Filter, FilterAction, Filters, NoProfiles};
use burstfs_stager::StageJob;
use burstfs_types::Code;
use support::compare::{assert_same, snapshot};
use support::tree::LocalTree;
use support::{Ran, Run, runtime};

/// Deterministic choices.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }
}

/// Names that patterns of a few characters tell apart.
const TREE: [&str; 24] = [
    "a/",
    "b",
    "ab",
    "a/b/",
    "a/b/a.o",
    "a/b/b",
    "a/a",
    "a/ab.o",
    "a/.h",
    ".h",
    ".d/",
    ".d/a",
    "ba/",
    "ba/a/",
    "ba/a/b/",
    "ba/a/b/a",
    "ba/z/1",
    "a/y",
    "ba/a/b/x y",
    "x y",
    "[a]",
    "a*b",
    "a\\b",
    "b\u{e9}/a",
];

fn make(root: &Path) {
    for name in TREE {
        match name.strip_suffix('/') {
            Some(dir) => fs::create_dir_all(root.join(dir)).unwrap(),
            None => {
                fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
                fs::write(root.join(name), name).unwrap();
            }
        }
    }
    age(root);
}

/// Times long past: rsync takes times of the same second for the same.
fn age(root: &Path) {
    let done = Command::new("bash")
        .args(["-c", "find . -print0 | xargs -0 touch -h -d '2001-02-03 04:05:06.789 UTC'"])
        .current_dir(root)
        .status();
    assert!(done.unwrap().success());
}

fn names(root: &Path) -> BTreeSet<PathBuf> {
    if root.is_dir() { snapshot(root).into_keys().collect() } else { BTreeSet::new() }
}

fn rsync(args: &[&str], filters: &[(FilterAction, String)], paths: &[&Path]) {
    let mut command = Command::new("rsync");
    command.arg("-a").args(args);
    for (action, pattern) in filters {
        let key = if *action == FilterAction::Include { "include" } else { "exclude" };
        command.arg(format!("--{key}={pattern}"));
    }
    let done = command.args(paths).output().expect("rsync is installed");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn filters(chosen: &[(FilterAction, String)]) -> Filters {
    Filters::new(chosen.iter().map(|(action, text)| Filter::new(*action, text).unwrap()).collect())
}

/// A run, with the records that its receipt is made from.
struct Staged {
    ran: Ran,
    _records: tempfile::TempDir,
}

impl std::ops::Deref for Staged {
    type Target = Ran;

    fn deref(&self) -> &Ran {
        &self.ran
    }
}

fn run(direction: Direction, job: StageJob, instance: &Path) -> Staged {
    let records = tempfile::tempdir().unwrap();
    let tree = Arc::new(LocalTree::new(instance, 2));
    let run = Run { nodes: 2, attempt: 1, jobs: vec![job], stage_dir: records.path() };
    Staged { ran: runtime().block_on(run.go(direction, tree)), _records: records }
}

/// Filters that mean something in the tree.
fn choose(dice: &mut Dice) -> Vec<(FilterAction, String)> {
    let pieces =
        ["a", "b", "*", "**", "?", "/", "/", "[ab]", "[!a]", ".o", "***", "x y", "\\*", ".", "[[:alpha:]]", "h"];
    let mut chosen = Vec::new();
    while chosen.len() < 1 + dice.below(3) {
        let action = if dice.below(3) == 0 { FilterAction::Include } else { FilterAction::Exclude };
        let pattern: String = (0..1 + dice.below(5)).map(|_| dice.one(&pieces)).collect();
        // What rsync takes and never matches is refused.
        if Filter::new(action, &pattern).is_ok() {
            chosen.push((action, pattern));
        }
    }
    chosen
}

#[test]
fn filters_are_rsyncs() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    make(&source);
    let mut differing = 0;
    for seed in 1..=250 {
        let chosen = choose(&mut Dice::new(seed));
        // Contents, and the directory itself, whose name is then part of the paths.
        let contents = seed % 2 == 0;
        let (ours, theirs) = (place.path().join(format!("ours{seed}")), place.path().join(format!("theirs{seed}")));
        fs::create_dir(&ours).unwrap();
        let from = if contents { source.join("") } else { source.join("ba") };
        rsync(&[], &chosen, &[&from, &theirs.join("")]);
        let out = seed % 3 == 0;
        let mut job = if out {
            let from: &[u8] = if contents { b"/" } else { b"/ba" };
            StageJob::new(Direction::Out, from, ours.as_os_str().as_bytes())
        } else {
            StageJob::new(Direction::In, from.as_os_str().as_bytes(), "/")
        };
        job.filters = filters(&chosen);
        let ran = run(job.direction, job, if out { &source } else { &ours });
        assert_eq!(ran.outcome.failure, None, "seed {seed}: {chosen:?}");
        assert_eq!(names(&ours), names(&theirs), "seed {seed}: {chosen:?}, contents {contents}");
        differing += usize::from(names(&ours).len() < names(&source).len() && !names(&ours).is_empty());
        fs::remove_dir_all(&ours).unwrap();
        let _ = fs::remove_dir_all(&theirs);
    }
    assert!(differing > 50, "{differing}: the filters say too little");
}

#[test]
fn lists_are_rsyncs() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    make(&source);
    fs::set_permissions(source.join("ba/a"), fs::Permissions::from_mode(0o711)).unwrap();
    symlink("a", source.join("ba/link")).unwrap();
    age(&source);
    let entries =
        ["a/b", "ba/a/b/a", "/ba//link", "./b", "# nothing", "", "x y", "ba/a/b/x y", "a/ab.o", "a\\b", "[a]"];
    for seed in 1..=40 {
        let mut dice = Dice::new(seed);
        let mut lines: Vec<&str> = (0..1 + dice.below(6)).map(|_| dice.one(&entries)).collect();
        lines.dedup();
        let list = place.path().join("list");
        fs::write(&list, lines.join("\n")).unwrap();
        let chosen = if seed % 2 == 0 { choose(&mut dice) } else { Vec::new() };
        let (ours, theirs) = (place.path().join("ours"), place.path().join("theirs"));
        fs::create_dir(&ours).unwrap();
        fs::create_dir(&theirs).unwrap();
        rsync(&["-r", &format!("--files-from={}", list.display())], &chosen, &[&source, &theirs]);
        let out = seed % 3 == 0;
        let mut job = if out {
            StageJob::new(Direction::Out, "/", ours.as_os_str().as_bytes())
        } else {
            StageJob::new(Direction::In, source.as_os_str().as_bytes(), "/")
        };
        job.list = Some(list.as_os_str().as_bytes().to_vec());
        job.filters = filters(&chosen);
        let ran = run(job.direction, job, if out { &source } else { &ours });
        assert_eq!(ran.outcome.failure, None, "seed {seed}: {lines:?}");
        // rsync makes the directories on the way only if something in them is copied.
        let made = |root: &Path| names(root).into_iter().filter(|path| !root.join(path).is_dir()).collect::<Vec<_>>();
        assert_eq!(made(&ours), made(&theirs), "seed {seed}: {lines:?} {chosen:?}");
        if chosen.is_empty() {
            assert_same(&theirs, &ours);
        }
        fs::remove_dir_all(&ours).unwrap();
        fs::remove_dir_all(&theirs).unwrap();
    }
}

#[test]
fn a_list_of_more_than_one_part_is_copied_whole_and_what_is_missing_is_named() {
    let place = tempfile::tempdir().unwrap();
    let (source, target) = (place.path().join("source"), place.path().join("target"));
    fs::create_dir(&target).unwrap();
    let mut list = Vec::new();
    for index in 0..4000 {
        let name = format!("d{}/e{}/a-file-with-a-rather-long-name-{index}\n", index % 7, index % 3);
        let path = source.join(&name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{index}")).unwrap();
        list.extend_from_slice(name.as_bytes());
        list.push(0);
    }
    for dir in ["d1/e1", "d1", "d2"] {
        fs::set_permissions(source.join(dir), fs::Permissions::from_mode(0o550)).unwrap();
    }
    let file = place.path().join("list");
    fs::write(&file, &list).unwrap();
    assert!(list.len() > 2 * (64 << 10));
    let mut job = StageJob::new(Direction::In, source.as_os_str().as_bytes(), "/in");
    job.list = Some(file.as_os_str().as_bytes().to_vec());
    let ran = run(Direction::In, job.clone(), &target);
    assert_eq!(ran.outcome.failure, None);
    assert_same(&source, &target.join("in"));

    fs::write(&file, "d0/nothing\nd1/../../x\n..\nnowhere/x\nd2/e2\n").unwrap();
    let mut job = StageJob::new(Direction::Out, "/in", place.path().join("out").as_os_str().as_bytes());
    job.list = Some(file.as_os_str().as_bytes().to_vec());
    let ran = run(Direction::Out, job.clone(), &target);
    assert!(!ran.outcome.is_complete);
    let receipt = ran.receipt(place.path());
    let failed: BTreeSet<_> = receipt["entries"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["state"] == "failed")
        .map(|entry| entry["path"].as_str().unwrap().to_owned())
        .collect();
    let expected = ["/in/d0/nothing", "/in/d1/../../x", "/in/..", "/in/nowhere/x"].map(str::to_owned);
    assert_eq!(failed, BTreeSet::from(expected));
    assert_same(&source.join("d2/e2"), &place.path().join("out/d2/e2"));

    job.list = Some(b"/no/such/list".to_vec());
    let failure = run(Direction::Out, job, &target).outcome.failure.clone().unwrap();
    assert!(failure.message.contains("cannot read the list /no/such/list"), "{failure}");
}

/// A directive of the interface, as the nodes get it.
fn directive(text: &str) -> StageJob {
    let mut accumulator = Accumulator::new();
    accumulator.add(text, &NoProfiles).unwrap();
    let spec = accumulator.finish().unwrap().unwrap();
    match (&spec.stage_in[..], &spec.stage_out[..]) {
        ([stage], []) => StageJob::try_from(stage).unwrap(),
        ([], [stage]) => StageJob::try_from(stage).unwrap(),
        stages => panic!("{stages:?}"),
    }
}

/// What a shell and rsync make of the pattern.
fn shell(source: &Path, pattern: &str, target: &Path) {
    let script = format!("cd {} && rsync -a {pattern} {}/", source.display(), target.display());
    let done = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(done.status.success(), "{pattern}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn patterns_are_a_shells() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    make(&source);
    symlink("ba", source.join("to-ba")).unwrap();
    age(&source);
    for (index, pattern) in
        ["*", "a*", "?", "[!a]*", ".[!.]*", "[ab]*/[yz]", "ba/[az]/", "b*/a/*", r"a\*b", "[[:alpha:]]", "b*/z/"]
            .into_iter()
            .enumerate()
    {
        for direction in [Direction::In, Direction::Out] {
            let (ours, theirs) = (place.path().join("ours"), place.path().join("theirs"));
            fs::create_dir(&ours).unwrap();
            fs::create_dir(&theirs).unwrap();
            shell(&source, pattern, &theirs);
            let ran = match direction {
                Direction::In => {
                    let job = directive(&format!("stage_in source={}/{pattern} destination=/", source.display()));
                    run(direction, job, &ours)
                }
                Direction::Out => {
                    let job = directive(&format!("stage_out source=/{pattern} destination={}", ours.display()));
                    run(direction, job, &source)
                }
            };
            assert_eq!(ran.outcome.failure, None, "{index}: {pattern}");
            // Of several directories that are merged, any may be the last to set the target's own attributes.
            if pattern.ends_with('/') {
                assert_eq!(names(&ours), names(&theirs), "{pattern} {direction:?}");
            } else {
                assert_same(&theirs, &ours);
            }
            fs::remove_dir_all(&ours).unwrap();
            fs::remove_dir_all(&theirs).unwrap();
        }
    }
}

#[test]
fn a_pattern_without_a_match_is_a_missing_source() {
    let place = tempfile::tempdir().unwrap();
    make(place.path());
    for pattern in ["*.none", "*/none/*", "none*/", "none/*"] {
        let job = directive(&format!("stage_in source={}/{pattern} destination=/", place.path().display()));
        let failure = run(Direction::In, job, place.path()).outcome.failure.clone().unwrap();
        assert_eq!(failure.code, Code::StageInFailed, "{pattern}");
        let job = directive(&format!("stage_out source=/{pattern} destination={}/x", place.path().display()));
        let failure = run(Direction::Out, job, place.path()).outcome.failure.clone().unwrap();
        assert_eq!(failure.code, Code::OutputMissing, "{pattern}");
    }
    for pattern in ["*/a", "*/", "*/*/"] {
        let job = directive(&format!("stage_in source={}/{pattern} destination=/new", place.path().display()));
        let failure = run(Direction::In, job, place.path()).outcome.failure.clone().unwrap();
        assert!(failure.message.contains("two matches of the pattern have the name"), "{pattern}: {failure}");
        let job = directive(&format!("stage_out source=/{pattern} destination={}/x", place.path().display()));
        let failure = run(Direction::Out, job, place.path()).outcome.failure.clone().unwrap();
        assert!(failure.message.contains("two matches of the pattern have the name"), "{pattern}: {failure}");
    }
    let job = directive(&format!("stage_in source={}/* destination=/x type=directory", place.path().display()));
    let instance = tempfile::tempdir().unwrap();
    assert_eq!(run(Direction::In, job, instance.path()).outcome.failure, None);
    assert!(instance.path().join("x/a/b/b").exists() && !instance.path().join("x/b").exists());
}

#[test]
fn what_is_not_to_be_preserved_is_not() {
    let place = tempfile::tempdir().unwrap();
    let (source, instance) = (place.path().join("source"), place.path().join("instance"));
    make(&source);
    fs::create_dir(&instance).unwrap();
    fs::set_permissions(source.join("b"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(source.join("b"), source.join("b2")).unwrap();
    rustix::fs::setxattr(source.join("ab"), "user.colour", b"blue", rustix::fs::XattrFlags::empty()).unwrap();
    let job = directive(&format!("stage_in source={}/ destination=/ preserve=times,sparse", source.display()));
    assert_eq!(run(Direction::In, job, &instance).outcome.failure, None);
    let meta = |root: &Path, name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!(meta(&instance, "b").permissions().mode() & 0o777, 0o640 & 0o755);
    assert_eq!(meta(&instance, "b").modified().unwrap(), meta(&source, "b").modified().unwrap());
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&meta(&instance, "b")), 1);
    let mut value = [0; 10];
    assert!(rustix::fs::getxattr(instance.join("ab"), "user.colour", &mut value[..]).is_err());
}

#[test]
fn a_rate_is_kept_by_all_nodes_together() {
    let place = tempfile::tempdir().unwrap();
    let (source, instance) = (place.path().join("source"), place.path().join("instance"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&instance).unwrap();
    for index in 0..8 {
        fs::write(source.join(format!("small{index}")), vec![1; 50_000]).unwrap();
    }
    fs::write(source.join("large"), vec![2; 400_000]).unwrap();
    for direction in [Direction::In, Direction::Out] {
        let job = match direction {
            Direction::In => directive(&format!("stage_in source={}/ destination=/ bwlimit=1MB/s", source.display())),
            Direction::Out => {
                directive(&format!("stage_out source=/ destination={}/out bwlimit=1MB", place.path().display()))
            }
        };
        let began = Instant::now();
        assert_eq!(run(direction, job, &instance).outcome.failure, None);
        // 800 kB over two nodes, with what both may send at once, and the last piece's time, taken off.
        let took = began.elapsed();
        assert!(took > Duration::from_millis(350), "{direction:?}: {took:?}");
    }
    assert_same(&source, &place.path().join("out"));
}
