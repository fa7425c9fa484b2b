//! `spank_burstfs_prolog.so`: has `burstfs-node prolog` and `burstfs-node epilog` run, for a site that would rather not have
//! them in `Prolog=` and `Epilog=` of slurm.conf.
//!
//! A plugin of its own, since slurmd starts a `slurmstepd` for the prolog and one for the epilog of every job as soon as a
//! plugin has these callbacks.
//!
//! Invariants: neither callback ever fails, since Slurm drains the node when they do; no panic leaves the library.

#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(not(test))]
mod abi;
mod program;

use std::ffi::OsString;
use std::path::Path;

use burstfs_config::{REQUEST_IN_PROLOG, SiteConfig};
use burstfs_types::{Code, Failure};

use program::Ended;

/// What `burstfs-node` is told of the job. All of it but the request comes from slurmd.
const FACTS: [&str; 13] = [
    REQUEST_IN_PROLOG,
    "SLURM_JOB_ID",
    "SLURM_JOB_UID",
    "SLURM_JOB_GID",
    "SLURM_JOB_USER",
    "SLURM_NODELIST",
    "SLURMD_NODENAME",
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_RESTART_COUNT",
    "SLURM_HET_JOB_ID",
    "SLURM_JOB_WORK_DIR",
    "SLURM_JOB_STDOUT",
    "SLURM_CONF",
];

/// Runs `burstfs-node` with `verb` for the job in `variables`, if that asks for burstfs; what it said.
fn run(verb: &str, config_path: &Path, variables: impl Fn(&str) -> Option<OsString>) -> Result<Vec<String>, Failure> {
    if variables(REQUEST_IN_PROLOG).is_none() {
        return Ok(Vec::new());
    }
    let config = SiteConfig::load(config_path)?;
    let environment: Vec<(&str, OsString)> =
        FACTS.into_iter().filter_map(|name| Some((name, variables(name)?))).collect();
    let node = &config.programs.node;
    let failed = |why: String| Failure::new(Code::DaemonFailed, format!("{} {verb}: {why}", node.display()));
    let arguments = [verb.into(), "--config".into(), config_path.into()];
    let Ended { status, messages } =
        program::run(node, &arguments, &environment).map_err(|error| failed(error.to_string()))?;
    if status.success() { Ok(messages) } else { Err(failed(format!("{status}: {}", messages.join("; ")))) }
}

/// Whether a line of burstfs-node's (`<time> LEVEL burstfs-node: ..`) only says what it did: nobody must look. What is not
/// of this form may be a program's last words.
fn is_information(line: &str) -> bool {
    line.split(' ').nth(1) == Some("INFO")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

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

    fn run_script(site: &tempfile::TempDir, variables: &[(&str, &str)]) -> Result<String, Failure> {
        let lookup =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
        run("prolog", &site.path().join("burstfs.toml"), lookup).map(|lines| lines.join("\n"))
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
        let job = [(REQUEST_IN_PROLOG, "{}"), ("SLURM_JOB_ID", "42"), ("SPANK_EVIL", "1"), ("LD_PRELOAD", "/x")];
        let said = run_script(&site, &job).unwrap();
        let config = site.path().join("burstfs.toml");
        assert!(said.contains(&format!("prolog --config {}", config.display())), "{said}");
        assert!(said.contains("SPANK_BURSTFS_SPEC={}") && said.contains("SLURM_JOB_ID=42"), "{said}");
        assert!(!said.contains("EVIL") && !said.contains("LD_PRELOAD"), "{said}");
    }

    #[test]
    fn a_job_without_a_request_is_left_alone() {
        assert_eq!(run_script(&site("echo called >&2"), &[("SLURM_JOB_ID", "42")]), Ok(String::new()));
    }

    #[test]
    fn whatever_goes_wrong_is_said() {
        let request = [(REQUEST_IN_PROLOG, "{}")];
        let failing = site("echo no room >&2; exit 7");
        let said = run_script(&failing, &request).unwrap_err().to_string();
        assert!(said.contains("E203") && said.contains("exit status: 7: no room"), "{said}");
        fs::write(failing.path().join("burstfs.toml"), "[programs]\nnode = \"/nowhere\"").unwrap();
        assert!(run_script(&failing, &request).unwrap_err().to_string().contains("E203: /nowhere"));
        fs::write(failing.path().join("burstfs.toml"), "x = 1").unwrap();
        assert!(run_script(&failing, &request).unwrap_err().to_string().contains("E120"));
    }
}
