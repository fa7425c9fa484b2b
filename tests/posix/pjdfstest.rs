//! All tests of pjdfstest, run by root, who becomes alice and bob for some of them.
//!
//! The root of the mount is closed to all but its owner, so the tests see a directory of it that is open to all, bound to a
//! place outside, as a container would have it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use burstfs_tests::{Scenario, scenario};

use crate::instance::{Instance, suite};

/// Tests that do not pass, and why.
const NOT_PASSED: [(&str, &str); 1] = [
    // The C library knows LINK_MAX of a few file systems by their magic numbers, and does not ask others: skipped on tmpfs,
    // too. mds/tests/rules.rs has this check.
    ("link::link_count_max", "skipped"),
];

/// Where the tests see the directory. Paths of some lengths are too much for the suite's own arithmetic.
const PLACE: &str = "/tmp/posix";

/// How many tests there are, so that none goes missing.
const TESTS: usize = 398;
const READ_ONLY_TESTS: usize = 13;

#[test]
fn pjdfstest() -> Result<()> {
    scenario("pjdfstest", |s| {
        let program = suite(s, "pjdfstest")?;
        let shim = s.path("alice")?.join("bin");
        fs::create_dir(&shim)?;
        fs::write(shim.join("mount"), include_str!("mount"))?;
        fs::set_permissions(shim.join("mount"), fs::Permissions::from_mode(0o755))?;
        let instance = Instance::start(s)?;
        let mut results = run(s, &instance, &program, false, "")?;
        // Other tests leave files open; a file system with open files cannot be made read-only.
        let read_only = run(s, &instance, &program, true, "erofs")?;
        ensure!((results.len(), read_only.len()) == (TESTS, READ_ONLY_TESTS), "tests are missing or new");
        results.extend(read_only);
        judge(&results)?;
        instance.end()
    })
}

/// Runs the tests whose names contain `pattern`; what became of each.
fn run(
    scenario: &Scenario<'_>,
    instance: &Instance<'_>,
    program: &str,
    allow_remount: bool,
    pattern: &str,
) -> Result<BTreeMap<String, String>> {
    let config = include_str!("pjdfstest.toml").replace("ALLOW_REMOUNT", &allow_remount.to_string());
    fs::write(scenario.path("alice")?.join("pjdfstest.toml"), config)?;
    let (dir, mount) = (scenario.dir("alice")?, &instance.mount);
    let script = format!(
        "mkdir -p {PLACE} && mount --bind {mount}/open {PLACE} && cd /tmp && export PATH={dir}/bin:$PATH &&
         {program} -c {dir}/pjdfstest.toml -p {PLACE} -s /tmp {pattern}"
    );
    // In a mount namespace of its own: what is mounted there ends with it.
    let command = format!("exec unshare --mount --propagation private sh -c '{script}'");
    let output = scenario.cluster.try_sh("node1", &command)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{said}");
    let results: BTreeMap<_, _> = said.lines().filter_map(result).collect();
    let has_ended = said.lines().any(|line| line.contains("Summary"));
    ensure!(has_ended, "pjdfstest did not come to its end:\n{said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(results)
}

/// A line with a test's name and its result.
fn result(line: &str) -> Option<(String, String)> {
    let (name, result) = line.rsplit_once("  ")?;
    let is_result = ["ok", "FAILED", "skipped", "PASSED UNEXPECTEDLY"].contains(&result.trim());
    is_result.then(|| (name.trim().to_owned(), result.trim().to_owned()))
}

fn judge(results: &BTreeMap<String, String>) -> Result<()> {
    let passed = results.values().filter(|result| *result == "ok").count();
    println!("pjdfstest: {passed} of {} tests passed", results.len());
    let known: BTreeMap<_, _> = NOT_PASSED.into();
    for name in known.keys() {
        results.get(*name).with_context(|| format!("there is no test {name}"))?;
    }
    let surprises: Vec<_> = results
        .iter()
        .filter(|(name, result)| *result != "ok" && known.get(name.as_str()) != Some(&result.as_str()))
        .map(|(name, result)| format!("{name}: {result}"))
        .collect();
    ensure!(surprises.is_empty(), "{}", surprises.join("\n"));
    Ok(())
}
