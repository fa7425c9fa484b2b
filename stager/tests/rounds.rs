//! Rounds while the job runs, and the drain at the end that follows them, over a local directory as the instance.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step fails the test")]
#![allow(unreachable_pub, dead_code, reason = "the helpers' modules end in this program")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use burstfs_proto::mgs::RoundFigures;
use burstfs_proto::stage::Direction;
use burstfs_stager::{AtEnd, Cure, RoundTally, Selection, StageJob, Takes};
use burstfs_types::{Code, JobEnd};
use serde_json::Value;
use support::compare::assert_same;
use support::tree::LocalTree;
use support::{Run, job, runtime};

/// A job with one directive, `/out/` to `target`, on two nodes.
struct Job {
    dir: tempfile::TempDir,
    tree: Arc<LocalTree>,
    attempt: u32,
    at_end: AtEnd,
    runtime: tokio::runtime::Runtime,
}

impl Job {
    fn new() -> Job {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("instance/out")).unwrap();
        let tree = Arc::new(LocalTree::new(&dir.path().join("instance"), 2));
        Job { dir, tree, attempt: 0, at_end: AtEnd::Drain, runtime: runtime() }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join("instance/out").join(name)
    }

    fn target(&self, name: &str) -> PathBuf {
        self.dir.path().join("target").join(name)
    }

    fn run<'a>(&mut self, stage_dir: &'a PathBuf) -> Run<'a> {
        self.attempt += 1;
        let of_all = job(Direction::Out, std::path::Path::new("/out"), &self.target(""), true);
        let jobs = vec![StageJob { at_end: self.at_end, ..of_all }];
        Run { nodes: 2, attempt: self.attempt, jobs, stage_dir }
    }

    fn round_of(&mut self, takes: Takes, below: Option<&str>) -> RoundTally {
        let stage_dir = self.dir.path().join("stage");
        let run = self.run(&stage_dir);
        let selection = Selection { below: below.map(Into::into), takes };
        self.runtime.block_on(run.round(self.tree.clone(), selection))
    }

    fn round(&mut self, takes: Takes) -> RoundFigures {
        let tally = self.round_of(takes, None);
        assert_eq!(tally.first_failure(), None);
        tally.figures()
    }

    /// The drain at the end; the entries of its receipt by name.
    fn end(&mut self) -> Vec<Value> {
        let entries = self.end_of_manual();
        assert_same(&self.out(""), &self.target(""));
        entries
    }

    /// The same, where not all has to be at the target.
    fn end_of_manual(&mut self) -> Vec<Value> {
        let stage_dir = self.dir.path().join("stage");
        let run = self.run(&stage_dir);
        let ran = self.runtime.block_on(run.go(Direction::Out, self.tree.clone()));
        assert_eq!(ran.outcome.failure, None);
        assert_eq!(self.tree.open_handles(), 0);
        let mut receipt = ran.receipt(self.dir.path());
        let Value::Array(mut entries) = receipt["entries"].take() else { panic!("no entries") };
        entries.sort_by_key(|entry| entry["path"].to_string());
        entries
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.out(name).parent().unwrap()).unwrap();
        fs::write(self.out(name), text).unwrap();
    }

    /// Another inode at the target is another copy.
    fn target_ino(&self, name: &str) -> u64 {
        fs::symlink_metadata(self.target(name)).unwrap().ino()
    }

    fn set_mtime(&self, name: &str, time: SystemTime) {
        fs::File::options().write(true).open(self.out(name)).unwrap().set_modified(time).unwrap();
    }
}

fn states(entries: &[Value]) -> Vec<(String, String)> {
    let word = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
    entries.iter().map(|entry| (word(entry, "path"), word(entry, "state"))).collect()
}

#[test]
fn what_a_round_has_drained_is_not_copied_again() {
    let mut job = Job::new();
    job.write("a", "one");
    job.write("sub/b", "two");
    std::os::unix::fs::symlink("a", job.out("link")).unwrap();
    let figures = job.round(Takes::Changed);
    assert_eq!((figures.files, figures.bytes, figures.changed_files), (3, 6, 0));
    let (a, b) = (job.target_ino("a"), job.target_ino("sub/b"));
    let figures = job.round(Takes::Changed);
    assert_eq!((figures.files, figures.unchanged), (0, 3));
    assert_eq!(
        job.round(Takes::Quiet(Duration::ZERO)),
        RoundFigures::default(),
        "nothing that the MDS knows to differ"
    );
    job.write("sub/b", "three");
    assert_eq!(job.round(Takes::Nothing).changed_files, 1);
    let entries = job.end();
    assert_eq!((job.target_ino("a"), job.target_ino("sub/b") == b), (a, false));
    let drained = |path: &str, state: &str| (path.to_owned(), state.to_owned());
    let expected = [drained("/out/a", "copied"), drained("/out/link", "unchanged"), drained("/out/sub/b", "copied")];
    assert_eq!(states(&entries), expected, "one receipt over all drains");
    assert!(entries[0]["checksum"].as_str().unwrap().starts_with("xxh3-128:"), "its checksum is that of the round");
}

#[test]
fn a_change_that_keeps_size_and_time_is_drained_again() {
    let mut job = Job::new();
    job.write("a", "one");
    job.write("b", "one");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    job.set_mtime("a", time);
    job.set_mtime("b", time);
    assert_eq!(job.round(Takes::Changed).files, 2);
    // The second as a mapping does it, of which the MDS hears nothing.
    job.write("a", "two");
    job.set_mtime("a", time);
    assert_eq!(job.round(Takes::Changed).files, 1);
    job.tree.is_blind.store(true, Ordering::Relaxed);
    job.write("b", "two");
    job.set_mtime("b", time);
    job.end();
}

#[test]
fn what_is_open_for_writing_is_drained_again() {
    let mut job = Job::new();
    job.write("a", "one");
    let ino = fs::metadata(job.out("a")).unwrap().ino();
    job.tree.writers.lock().unwrap().insert(ino);
    assert_eq!(job.round(Takes::Quiet(Duration::ZERO)).busy, 1);
    assert!(!job.target("a").exists());
    let figures = job.round(Takes::Changed);
    assert_eq!((figures.files, figures.changed_files, figures.changed_bytes), (1, 1, 3), "copied, and still changed");
    let first = job.target_ino("a");
    job.tree.writers.lock().unwrap().clear();
    // An overwrite that was under way has its time from before: nothing shows that it was not read.
    let entries = job.end();
    assert!(job.target_ino("a") != first && entries[0]["state"] == "copied");
}

#[test]
fn a_file_that_changes_while_it_is_read_is_left_for_later() {
    let mut job = Job::new();
    job.write("a", "one");
    let path = job.out("a");
    *job.tree.on_read.lock().unwrap() = Some(Box::new(move || fs::write(path, "longer").unwrap()));
    let figures = job.round(Takes::Changed);
    assert_eq!((figures.files, figures.busy, figures.changed_files, figures.failed), (0, 1, 1, 0));
    assert!(!job.target("a").exists(), "no half of it");
    job.end();
}

#[test]
fn only_what_is_quiet_and_asked_for_is_taken() {
    let mut job = Job::new();
    job.write("x/a", "one");
    job.write("y/b", "two");
    assert_eq!(job.round(Takes::Quiet(Duration::from_secs(3600))), RoundFigures::default());
    let tally = job.round_of(Takes::Changed, Some("/out/y"));
    assert_eq!(tally.figures().files, 1);
    assert!(job.target("y/b").exists() && !job.target("x/a").exists());
    let survey = job.round(Takes::Nothing);
    assert_eq!((survey.changed_files, survey.changed_bytes, survey.files), (1, 3, 0));
    job.end();
}

#[test]
fn hard_links_and_names_that_change_come_out_as_they_are() {
    let mut job = Job::new();
    job.write("a", "one");
    fs::hard_link(job.out("a"), job.out("b")).unwrap();
    job.write("c", "three");
    assert_eq!(job.round(Takes::Changed).files, 3);
    assert_eq!(job.target_ino("a"), job.target_ino("b"));
    fs::hard_link(job.out("a"), job.out("d")).unwrap();
    fs::rename(job.out("c"), job.out("e")).unwrap();
    // What the target has more is never removed.
    fs::remove_file(job.target("c")).unwrap();
    job.end();
    assert_eq!(job.target_ino("a"), job.target_ino("d"));
}

#[test]
fn a_target_that_somebody_has_removed_or_changed_is_copied_again() {
    let mut job = Job::new();
    job.write("a", "one");
    job.write("b", "two");
    job.round(Takes::Changed);
    fs::remove_file(job.target("a")).unwrap();
    fs::write(job.target("b"), "else").unwrap();
    let entries = job.end();
    assert!(entries.iter().all(|entry| entry["state"] == "copied"));
}

#[test]
fn what_the_target_had_before_counts_as_drained_until_it_changes() {
    let mut job = Job::new();
    job.write("a", "one");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    job.set_mtime("a", time);
    fs::create_dir(job.target("")).unwrap();
    fs::write(job.target("a"), "one").unwrap();
    fs::File::options().write(true).open(job.target("a")).unwrap().set_modified(time).unwrap();
    let before = job.target_ino("a");
    let figures = job.round(Takes::Changed);
    assert_eq!((figures.files, figures.unchanged, figures.changed_files), (0, 1, 0));
    assert_eq!(job.target_ino("a"), before);
    job.write("a", "two");
    job.set_mtime("a", time);
    job.end();
}

#[test]
fn what_is_drained_on_demand_is_only_named_at_the_end() {
    let mut job = Job::new();
    job.at_end = AtEnd::Name;
    job.write("asked/a", "one");
    job.write("asked/b", "two");
    job.write("not/c", "three");
    job.round_of(Takes::Changed, Some("/out/asked"));
    job.write("asked/b", "later");
    let entries = job.end_of_manual();
    let state = |path: &str, state: &str| (path.to_owned(), state.to_owned());
    let expected =
        [state("/out/asked/a", "copied"), state("/out/asked/b", "not_asked"), state("/out/not", "not_asked")];
    assert_eq!(states(&entries), expected);
    assert!(!job.target("not").exists() && fs::read(job.target("asked/b")).unwrap() == b"two");
}

#[test]
fn nothing_asked_for_is_nothing_missing() {
    let mut job = Job::new();
    job.at_end = AtEnd::Name;
    job.write("a", "one");
    assert_eq!(job.end_of_manual(), Vec::<Value>::new());
    assert!(!job.target("").exists());
}

#[test]
fn what_is_for_another_end_of_the_job_is_named_and_left_where_it_is() {
    let mut job = Job::new();
    job.at_end = AtEnd::Leave { on: JobEnd::Success };
    job.write("a", "one");
    job.write("sub/b", "two");
    fs::create_dir(job.target("")).unwrap();
    fs::write(job.target("a"), "of before").unwrap();
    let expected = [("/out".to_owned(), "not_asked".to_owned())];
    assert_eq!(states(&job.end_of_manual()), expected, "the whole directory");
    assert_eq!(fs::read(job.target("a")).unwrap(), b"of before");
    assert!(!job.target("sub").exists());
    fs::remove_dir_all(job.out("")).unwrap();
    assert_eq!(job.end_of_manual(), Vec::<Value>::new(), "nobody misses what was not asked for");
}

#[test]
fn a_file_that_is_for_another_end_is_named_with_its_size() {
    let job = Job::new();
    job.write("a", "one");
    let stage_dir = job.dir.path().join("stage");
    let source = StageJob::new(Direction::Out, "/out/a", job.target("b").to_str().unwrap());
    let jobs = vec![StageJob { at_end: AtEnd::Leave { on: JobEnd::Failure }, ..source }];
    let run = Run { nodes: 2, attempt: 1, jobs, stage_dir: &stage_dir };
    let receipt = job.runtime.block_on(run.go(Direction::Out, job.tree.clone())).receipt(job.dir.path());
    let entry = &receipt["entries"][0];
    assert_eq!((entry["path"].as_str(), entry["size"].as_u64()), (Some("/out/a"), Some(3)));
    assert_eq!(entry["destination"], job.target("b").to_str().unwrap());
    let line = &receipt["stage_out"][0];
    assert_eq!(
        (line["state"].as_str(), line["reason"].as_str()),
        (Some("not_asked"), Some("it is drained only after failure of the job"))
    );
}

#[test]
fn what_depends_on_an_end_that_is_not_known_is_missing_and_the_rest_is_drained() {
    let mut job = Job::new();
    job.write("a", "one");
    let stage_dir = job.dir.path().join("stage");
    let always = job.run(&stage_dir).jobs.remove(0);
    let waits = StageJob {
        at_end: AtEnd::Wait { on: JobEnd::Success },
        destination: job.target("../other").to_str().unwrap().into(),
        ..always.clone()
    };
    let run = Run { nodes: 2, attempt: 7, jobs: vec![always, waits], stage_dir: &stage_dir };
    let ran = job.runtime.block_on(run.go(Direction::Out, job.tree.clone()));
    let failure = ran.outcome.failure.clone().unwrap();
    assert_eq!((failure.code, ran.outcome.cure), (Code::JobEndUnknown, Cure::Wait), "{failure}");
    assert!(failure.message.contains("/out/ is drained only after success"), "{failure}");
    assert!(fs::read(job.target("a")).unwrap() == b"one" && !job.dir.path().join("other").exists());
    let receipt = ran.receipt(job.dir.path());
    assert_eq!(
        (receipt["result"].as_str(), receipt["stage_out"][1]["state"].as_str()),
        (Some("INCOMPLETE"), Some("failed"))
    );
}
