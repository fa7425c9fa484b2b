//! `burstfs-node`: the privileged helper of burstfs on a node.
//!
//! Owns everything that needs root: directories, the mount, the start and the end of `burstfsd`, and the cleaning up. It
//! has no network socket and reads nothing that a user wrote but the validated request of a job. Each command is short
//! except `supervise`, which stays for the life of an instance and is started by the others, and `backing`, which it starts
//! to register files with the kernel.
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod announce;
mod broker;
mod cgroup;
mod daemon;
mod dirs;
mod error;
mod job_end;
mod job_script;
mod job_watch;
mod keeping;
mod list;
mod log;
mod mount;
mod node_socket;
mod policy;
mod process;
mod question;
mod recover;
mod remove;
mod request;
mod settings;
mod spawn;
mod start;
mod stop;
mod store;
mod supervise;
mod takeover;

use error::NodeError;
use job_script::Script;
use settings::Settings;
use supervise::Mode;

const USAGE: &str = "usage: burstfs-node [--config PATH] COMMAND
  prolog           what Slurm's prolog runs: start, if the job in the environment asks for burstfs; never fails
  epilog           what Slurm's epilog runs: stop, likewise
  start            start the instance of the job in the environment on this node
  stop             end it
  recover          finish or undo what a crash or a reboot left
  list [--json]    the instances on this node
  gc INSTANCE      remove data that was kept";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match command(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(NodeError::Usage(message)) => {
            log::error!("{message}");
            ExitCode::from(2)
        }
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn command(arguments: &[String]) -> Result<(), NodeError> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["supervise", run_dir, instance, mode] = words[..] {
        return supervise(run_dir, instance, mode);
    }
    if let ["backing", uid, gid] = words[..] {
        require_root()?;
        let number = |word: &str| word.parse().map_err(|_| NodeError::Usage(USAGE.to_owned()));
        return broker::run(number(uid)?, number(gid)?);
    }
    if matches!(words[..], ["--help" | "-h" | "help"]) {
        println!("{USAGE}");
        return Ok(());
    }
    if matches!(words[..], ["--version" | "-V"]) {
        println!("burstfs-node {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    let (config, words) = split_config(&words)?;
    let script = match words[..] {
        ["prolog"] => Some(Script::Prolog),
        ["epilog"] => Some(Script::Epilog),
        _ => None,
    };
    if let Some(script) = script {
        job_script::run(script, &config, &request::environment);
        return Ok(());
    }
    let settings = || {
        require_root()?;
        Settings::load(&config)
    };
    match words[..] {
        ["start"] => start::run(&settings()?, &request::environment),
        ["stop"] => stop::run(&settings()?, &request::environment),
        ["recover"] => recover::run(&settings()?),
        ["list"] => list::run(&settings()?, false),
        ["list", "--json"] => list::run(&settings()?, true),
        ["gc", instance] => list::collect(&settings()?, &parse(instance)?),
        _ => Err(NodeError::Usage(USAGE.to_owned())),
    }
}

/// Takes `--config PATH` or `--config=PATH` out, wherever it stands.
fn split_config<'a>(words: &[&'a str]) -> Result<(PathBuf, Vec<&'a str>), NodeError> {
    let (mut config, mut rest) = (PathBuf::from(burstfs_config::DEFAULT_PATH), Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if *word == "--config" {
            config = words.next().map(PathBuf::from).ok_or_else(|| NodeError::Usage(USAGE.to_owned()))?;
        } else if let Some(path) = word.strip_prefix("--config=") {
            config = PathBuf::from(path);
        } else {
            rest.push(*word);
        }
    }
    Ok((config, rest))
}

fn supervise(run_dir: &str, instance: &str, mode: &str) -> Result<(), NodeError> {
    require_root()?;
    let mode = Mode::parse(mode).ok_or_else(|| NodeError::Usage(USAGE.to_owned()))?;
    supervise::run(Path::new(run_dir), &parse(instance)?, mode)
}

fn parse(instance: &str) -> Result<burstfs_types::InstanceId, NodeError> {
    instance.parse().map_err(|error: burstfs_types::InvalidInstanceId| NodeError::Usage(error.to_string()))
}

fn require_root() -> Result<(), NodeError> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(NodeError::Usage("only root can do that".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_may_stand_anywhere() {
        for words in [["--config", "/x", "list", "--json"], ["list", "--json", "--config", "/x"]] {
            let (config, rest) = split_config(&words).unwrap();
            assert_eq!((config.to_str(), rest), (Some("/x"), vec!["list", "--json"]));
        }
        assert!(split_config(&["start", "--config"]).is_err());
    }
}
