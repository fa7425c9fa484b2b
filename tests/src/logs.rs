//! What the daemons wrote into their logs during a scenario, and which of it nobody expected.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cluster::{Cluster, NODES};

/// What Slurm says at every start on Debian, whatever runs on it.
const ALWAYS_ALLOWED: &[&str] =
    &["mpi/pmix", "pmi/pmix", "Trying backup state save file", "state file /var/spool/slurmctld"];

/// How far the logs were written at some time.
#[derive(Debug)]
pub(crate) struct Mark(BTreeMap<PathBuf, u64>);

impl Mark {
    /// Now.
    pub(crate) fn now(cluster: &Cluster) -> Result<Mark> {
        let sizes = log_files(cluster)?.into_iter().map(|path| Ok((path.clone(), fs::metadata(&path)?.len())));
        Ok(Mark(sizes.collect::<Result<_>>()?))
    }

    /// Lines since then that say ERROR or WARN and contain none of `allowed`.
    pub(crate) fn unexpected(&self, cluster: &Cluster, allowed: &[String]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for path in log_files(cluster)? {
            let lines = read_from(&path, self.0.get(&path).copied().unwrap_or(0))?;
            let is_ours = is_of_burstfs(&path);
            let is_alarm = |line: &&str| is_alarming(line, is_ours);
            let is_allowed = |line: &str| {
                ALWAYS_ALLOWED.iter().any(|word| line.contains(word)) || allowed.iter().any(|word| line.contains(word))
            };
            let name = path.display();
            found.extend(
                lines.lines().filter(is_alarm).filter(|line| !is_allowed(line)).map(|line| format!("{name}: {line}")),
            );
        }
        Ok(found)
    }
}

fn is_of_burstfs(path: &Path) -> bool {
    path.parent().and_then(Path::file_name).is_some_and(|dir| dir == "burstfs")
}

fn is_alarming(line: &str, is_of_burstfs: bool) -> bool {
    if is_of_burstfs {
        line.split_whitespace().take(4).any(|word| word == "ERROR" || word == "WARN")
    } else {
        line.contains("] error: ") || line.contains("] fatal: ") || line.contains(": error: ")
    }
}

fn log_files(cluster: &Cluster) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for node in NODES.iter().chain(&["ctl"]) {
        for dir in ["slurm", "burstfs"] {
            let Ok(entries) = fs::read_dir(cluster.logs(node).join(dir)) else { continue };
            for entry in entries {
                let path = entry?.path();
                if path.extension().is_some_and(|end| end == "log") {
                    files.push(path);
                }
            }
        }
    }
    Ok(files)
}

fn read_from(path: &Path, offset: u64) -> Result<String> {
    let mut file = File::open(path)?;
    // A log that is shorter than it was has been begun anew.
    let offset = if file.metadata()?.len() < offset { 0 } else { offset };
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_alarms_from_words() {
        assert!(is_alarming("2026-08-12T10:00:00.000Z ERROR burstfs-node: E205", true));
        assert!(is_alarming("2026-08-12T10:00:00.000Z  WARN burstfsd::run: slow", true));
        assert!(!is_alarming("2026-08-12T10:00:00.000Z INFO burstfsd: the file is called ERROR", true));
        assert!(is_alarming("[2026-08-12T10:00:00.000] error: no such node", false));
        assert!(!is_alarming("[2026-08-12T10:00:00.000] [1.batch] debug levels are stderr='error'", false));
    }
}
