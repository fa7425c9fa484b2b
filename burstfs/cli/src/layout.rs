//! `burstfs layout`: shows and sets where the bytes of files live, through the file system's own extended attributes.

use std::io;
use std::path::{Path, PathBuf};

use burstfs_types::{LayoutPolicy, hostlist};
use clap::{Args, Subcommand};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::{Ending, Exit};

/// The file system's attributes; see `burstfs-client`.
const LAYOUT: &str = "burstfs.layout";
const INFO: &str = "burstfs.layout.info";
/// More than any instance's list of OSTs needs.
const INFO_MAX_BYTES: usize = 64 << 10;
/// Hosts that are shown one by one.
const NAMES_MAX: usize = 8;

#[derive(Subcommand)]
pub(crate) enum LayoutCommand {
    /// Shows the layouts of files and directories, and why they are so.
    Get(GetArgs),
    /// Sets the layout of what will be made in a directory, or of a file that has no bytes yet; makes a file that is not
    /// there.
    Set(SetArgs),
}

#[derive(Args)]
pub(crate) struct GetArgs {
    /// JSON, an object for each path.
    #[arg(long)]
    json: bool,
    /// Files and directories of a burstfs.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

#[derive(Args)]
pub(crate) struct SetArgs {
    /// auto, local, striped, striped:count=N,size=S (N stripes, or "all"; S from 64KiB to 1GiB).
    layout: LayoutPolicy,
    /// Files and directories of a burstfs.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// What the file system says.
#[derive(Serialize, Deserialize)]
struct Info {
    kind: String,
    layout: String,
    osts: Option<Vec<u16>>,
    reason: String,
}

#[derive(Serialize)]
struct InfoOfPath<'p> {
    path: &'p Path,
    #[serde(flatten)]
    info: Info,
}

pub(crate) fn run(command: &LayoutCommand) -> Result<(), Ending> {
    match command {
        LayoutCommand::Get(args) => on_each(&args.paths, |path| get(path, args.json)),
        LayoutCommand::Set(args) => on_each(&args.paths, |path| set(path, args.layout)),
    }
}

/// All paths are worked on; the last error counts, the others are told on the way.
fn on_each(paths: &[PathBuf], one: impl Fn(&Path) -> Result<(), Ending>) -> Result<(), Ending> {
    let mut ending = Ok(());
    for path in paths {
        if let Err(error) = one(path)
            && let Err(before) = std::mem::replace(&mut ending, Err(error))
        {
            eprintln!("burstfs: {}", before.message);
        }
    }
    ending
}

fn get(path: &Path, is_json: bool) -> Result<(), Ending> {
    let mut value = vec![0; INFO_MAX_BYTES];
    let len = rustix::fs::getxattr(path, INFO, &mut value).map_err(|errno| failed(path, "show", errno))?;
    let info: Info = serde_json::from_slice(&value[..len])
        .map_err(|error| Ending::new(Exit::Failure, format!("{}: not understood: {error}", path.display())))?;
    if is_json {
        let line =
            serde_json::to_string(&InfoOfPath { path, info }).map_err(|error| Ending::new(Exit::Failure, error))?;
        println!("{line}");
        return Ok(());
    }
    println!("{}: {}", path.display(), info.layout);
    println!("    why: {}", info.reason);
    if let Some(osts) = &info.osts {
        println!("    on: {}", places(osts, &hosts_of(path)));
    }
    Ok(())
}

fn set(path: &Path, layout: LayoutPolicy) -> Result<(), Ending> {
    let is_new = std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    if is_new {
        // Opening it with O_CREAT could decide its layout.
        let mode = Mode::from_raw_mode(0o666);
        mknodat(CWD, path, FileType::RegularFile, mode, 0).map_err(|errno| failed(path, "set", errno))?;
    }
    let set = rustix::fs::setxattr(path, LAYOUT, layout.to_string().as_bytes(), XattrFlags::empty());
    set.map_err(|errno| {
        if is_new {
            // Best effort: what was made for this must not stay where it means nothing.
            let _ = std::fs::remove_file(path);
        }
        failed(path, "set", errno)
    })
}

fn failed(path: &Path, what: &str, errno: Errno) -> Ending {
    let (exit, reason) = match errno {
        Errno::NODATA | Errno::OPNOTSUPP => {
            (Exit::NoInstance, "it is no file or directory of a burstfs, or not of this version".to_owned())
        }
        Errno::EXIST => (
            Exit::Failure,
            "it has a layout, which never changes: give one to a file before its first byte (\"burstfs layout set\" \
             makes files that are not there), or set its directory's, and copy the file"
                .to_owned(),
        ),
        Errno::ACCESS | Errno::PERM => (Exit::Permission, "you may not".to_owned()),
        _ => (Exit::Failure, io::Error::from(errno).to_string()),
    };
    Ending::new(exit, format!("{}: cannot {what} the layout: {reason}", path.display()))
}

/// The nodes of the OSTs, where this process runs in the job whose file system it is.
fn places(osts: &[u16], hosts: &[String]) -> String {
    let named: Option<Vec<String>> = osts.iter().map(|ost| hosts.get(usize::from(*ost)).cloned()).collect();
    match named {
        Some(names) if names.len() <= NAMES_MAX => names.join(", "),
        Some(names) => format!("{} ({} nodes)", hostlist::compress(&names), names.len()),
        None => {
            let numbers: Vec<String> = osts.iter().map(u16::to_string).collect();
            format!("OST {}", numbers.join(", "))
        }
    }
}

/// The instance's hosts in the order of their OSTs, if `path` is in the file system that this process's job has.
fn hosts_of(path: &Path) -> Vec<String> {
    let mount = std::env::var_os("BURSTFS").and_then(|mount| Path::new(&mount).canonicalize().ok());
    let is_in_it = mount.zip(path.canonicalize().ok()).is_some_and(|(mount, path)| path.starts_with(mount));
    let servers = std::env::var("BURSTFS_SERVERS").ok().filter(|_| is_in_it);
    servers.and_then(|servers| hostlist::expand(&servers).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named_where_they_are_known() {
        let hosts: Vec<String> = (0..20).map(|n| format!("n{n}")).collect();
        assert_eq!(places(&[2, 0], &hosts), "n2, n0");
        assert_eq!(places(&[2, 20], &hosts), "OST 2, 20");
        assert_eq!(places(&[1], &[]), "OST 1");
        assert_eq!(places(&(0..20).collect::<Vec<_>>(), &hosts), "n[0-19] (20 nodes)");
    }

    #[test]
    fn a_path_elsewhere_is_no_layout_of_ours() {
        let directory = std::env::temp_dir();
        let refused = get(&directory, false).unwrap_err();
        assert_eq!(refused.exit, Exit::NoInstance);
        assert!(refused.message.contains("no file or directory of a burstfs"), "{}", refused.message);
        let file = directory.join(format!("burstfs-layout-{}", std::process::id()));
        assert!(set(&file, LayoutPolicy::Local).is_err());
        assert!(!file.exists());
    }
}
