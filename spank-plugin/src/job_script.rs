//! Prolog and epilog: hand the job over to `burstfs-node`.
//!
//! Nothing here fails: Slurm drains a node whose prolog or epilog does. What goes wrong is in slurmd's log, and the
//! job's tasks find no outcome (see [`crate::task`]).

use std::ffi::OsString;
use std::path::Path;

use burstfs_config::SiteConfig;
use burstfs_types::{Code, Failure};

use crate::host::{Host, names};
use crate::{program, slurm_conf};

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Script {
    Prolog,
    Epilog,
}

/// What `burstfs-node` is told of the job, beside the request. All of it comes from slurmd.
const FACTS: [&str; 11] = [
    "SLURM_JOB_ID",
    "SLURM_JOB_UID",
    "SLURM_JOB_GID",
    "SLURM_JOB_USER",
    "SLURM_NODELIST",
    "SLURMD_NODENAME",
    "SLURM_CLUSTER_NAME",
    RESTART_COUNT,
    "SLURM_JOB_WORK_DIR",
    "SLURM_JOB_STDOUT",
    "SLURM_CONF",
];

const RESTART_COUNT: &str = "SLURM_JOB_RESTART_COUNT";

/// Slurm's variables of this process.
pub(crate) type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Runs in every prolog and epilog; returns at once for a job without a request.
pub(crate) fn run(host: &dyn Host, script: Script, config: &Path, variables: Variables<'_>) {
    let Some(request) = variables(names::IN_SCRIPT) else { return };
    if let Err(failure) = hand_over(host, script, config, variables, request) {
        host.error(&format!("burstfs: {failure}"));
    }
}

fn hand_over(
    host: &dyn Host,
    script: Script,
    config_path: &Path,
    variables: Variables<'_>,
    request: OsString,
) -> Result<(), Failure> {
    let config = SiteConfig::load(config_path)?;
    if script == Script::Prolog {
        slurm_conf::check()?;
        check_het(variables("SLURM_HET_JOB_ID").as_deref().and_then(|id| id.to_str()))?;
    }
    let mut environment = vec![(names::CONTROL.to_owned(), request)];
    // When a job is requeued, the epilog of the run that ends already has the count of the next one (seen on 22.05.8).
    // Without a count `burstfs-node stop` ends every instance that the job has on this node.
    let is_told = |name: &&str| script == Script::Prolog || *name != RESTART_COUNT;
    let facts = FACTS.into_iter().filter(is_told);
    environment.extend(facts.filter_map(|name| Some((name.to_owned(), variables(name)?))));
    let verb = match script {
        Script::Prolog => "start",
        Script::Epilog => "stop",
    };
    let arguments = [verb.into(), "--config".into(), config_path.into()];
    let node = &config.programs.node;
    let ended = program::run(node, &arguments, &environment)
        .map_err(|error| Failure::new(Code::DaemonFailed, format!("{}: {error}", node.display())))?;
    for line in &ended.messages {
        if is_information(line) { host.info(line) } else { host.error(line) }
    }
    if ended.status.success() {
        return Ok(());
    }
    let code = if script == Script::Prolog { Code::DaemonFailed } else { Code::CleanFailed };
    Err(Failure::new(code, format!("{} {verb}: {}", node.display(), ended.status)))
}

/// Whether a line of burstfs-node's (`<time> LEVEL burstfs-node: ..`) only says what it did: nobody must look. What is not
/// of this form may be a program's last words.
fn is_information(line: &str) -> bool {
    line.split(' ').nth(1) == Some("INFO")
}

/// Components of a heterogeneous job are jobs of their own, and would get a file system each. `het` is the id of the
/// first component as the prolog knows it, or their number as a step does.
pub(crate) fn check_het(het: Option<&str>) -> Result<(), Failure> {
    match het {
        None | Some("" | "0") => Ok(()),
        Some(_) => Err(Failure::new(Code::NotBuiltYet, "heterogeneous jobs are not in this version of burstfs")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::host::fake::FakeHost;

    /// A site whose `burstfs-node` is `script`.
    fn site(script: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let node = directory.path().join("burstfs-node");
        fs::write(&node, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&node, fs::Permissions::from_mode(0o755)).unwrap();
        let text = format!("[programs]\nnode = {:?}\n", node);
        fs::write(directory.path().join("burstfs.toml"), text).unwrap();
        directory
    }

    fn run_script(script: Script, site: &tempfile::TempDir, variables: &[(&str, &str)]) -> String {
        let host = FakeHost::default();
        let lookup =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
        run(&host, script, &site.path().join("burstfs.toml"), &lookup);
        host.text()
    }

    #[test]
    fn only_information_is_no_error() {
        assert!(is_information("2026-11-22T18:37:23.663Z INFO burstfs-node: supervisor started"));
        for line in ["2026-11-22T18:37:23.663Z WARN burstfs-node: x", "error while loading shared libraries", ""] {
            assert!(!is_information(line), "{line}");
        }
    }

    #[test]
    fn gives_the_node_what_it_needs_and_nothing_else() {
        let site = site("echo \"$@\" >&2; env | sort >&2");
        let said = run_script(
            Script::Prolog,
            &site,
            &[("SPANK_BURSTFS_SPEC", "{}"), ("SLURM_JOB_ID", "42"), ("SPANK_EVIL", "1"), ("LD_PRELOAD", "/x")],
        );
        let config = site.path().join("burstfs.toml");
        assert!(said.contains(&format!("start --config {}", config.display())), "{said}");
        assert!(said.contains("BURSTFS_SPEC={}") && said.contains("SLURM_JOB_ID=42"), "{said}");
        assert!(!said.contains("EVIL") && !said.contains("LD_PRELOAD"), "{said}");
        assert!(run_script(Script::Epilog, &site, &[("SPANK_BURSTFS_SPEC", "{}")]).contains("stop --config"));
    }

    #[test]
    fn the_epilog_of_a_requeued_job_does_not_name_the_next_run() {
        let site = site("env >&2");
        let job = [("SPANK_BURSTFS_SPEC", "{}"), ("SLURM_JOB_RESTART_COUNT", "1")];
        assert!(run_script(Script::Prolog, &site, &job).contains("SLURM_JOB_RESTART_COUNT=1"));
        assert!(!run_script(Script::Epilog, &site, &job).contains("RESTART_COUNT"));
    }

    #[test]
    fn a_job_without_a_request_is_left_alone() {
        let site = site("echo called >&2");
        assert_eq!(run_script(Script::Prolog, &site, &[("SLURM_JOB_ID", "42")]), "");
    }

    #[test]
    fn whatever_goes_wrong_is_said() {
        let request = [("SPANK_BURSTFS_SPEC", "{}")];
        let failing = site("echo no room >&2; exit 7");
        let said = run_script(Script::Prolog, &failing, &request);
        assert!(said.contains("error: no room") && said.contains("E203") && said.contains("exit status: 7"), "{said}");
        fs::write(failing.path().join("burstfs.toml"), "[programs]\nnode = \"/nowhere\"").unwrap();
        assert!(run_script(Script::Prolog, &failing, &request).contains("E203: /nowhere"));
        fs::write(failing.path().join("burstfs.toml"), "x = 1").unwrap();
        assert!(run_script(Script::Epilog, &failing, &request).contains("E120"));
        let het = [("SPANK_BURSTFS_SPEC", "{}"), ("SLURM_HET_JOB_ID", "41")];
        assert!(run_script(Script::Prolog, &site("exit 0"), &het).contains("E108: heterogeneous"));
    }
}
