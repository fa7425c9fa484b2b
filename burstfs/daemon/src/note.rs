//! What the user finds about an instance that outlives its job: the note in his home ([`Note`]), by which the commands find the
//! nodes, and the last word in the report.
//!
//! All of it is on file systems of the site's, which may hang or be full: each step has a limit, and its failure is told and
//! changes nothing.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use burstfs_mgs::{Identity, NOTE_VERSION, Note};
use burstfs_node::description::InstanceDescription;
use burstfs_types::Failure;

use crate::{node, staging};

/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Leaves a note that the instance is still there, until `kept_until` if data is held.
pub(crate) async fn leave(description: &Arc<InstanceDescription>, kept_until: Option<u64>, reason: String) {
    let description = description.clone();
    within_patience("the note in the user's home", move || {
        let Identity { instance, name, user, hosts, capacity, receipt } = node::identity(&description);
        let version = NOTE_VERSION;
        let note = Note { version, instance, name, user, hosts, capacity, kept_until, receipt, reason };
        let path = note_path(&description)?;
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let next = path.with_extension("next");
        fs::write(&next, serde_json::to_vec_pretty(&note)?)?;
        fs::rename(&next, &path)
    })
    .await;
}

/// The instance is no more: takes the note away, if there is one.
pub(crate) async fn take_away(description: &Arc<InstanceDescription>) {
    let description = description.clone();
    within_patience("the note in the user's home", move || match fs::remove_file(note_path(&description)?) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    })
    .await;
}

/// What was held is removed: says so in the report, and takes the note away.
pub(crate) async fn removed(description: &Arc<InstanceDescription>, why: Failure) {
    let for_report = description.clone();
    within_patience("the report", move || {
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        append(&staging::report_path(&for_report), &format!("removed at {now}: {why}\n"))
    })
    .await;
    take_away(description).await;
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    // The directory is the user's choice and may be anybody's: a link that is there is not followed.
    let mut file = fs::OpenOptions::new().append(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    file.write_all(line.as_bytes())?;
    file.sync_all()
}

fn note_path(description: &InstanceDescription) -> io::Result<PathBuf> {
    let home = home(description.uid).ok_or_else(|| io::Error::other("the user has no home directory"))?;
    Ok(Note::path(&home, &description.instance.to_string()))
}

/// The user's home, as the node's user database has it.
fn home(uid: u32) -> Option<PathBuf> {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten()?;
    Some(user.dir).filter(|dir| dir.is_absolute() && dir.parent().is_some())
}

async fn within_patience(what: &str, step: impl FnOnce() -> io::Result<()> + Send + 'static) {
    match tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(step)).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::warn!("{what} cannot be written: {error}"),
        Ok(Err(error)) => tracing::warn!("{what} cannot be written: {error}"),
        Err(_) => tracing::warn!("{what} cannot be written in {} s", PATIENCE.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let (report, link) = (dir.path().join("report"), dir.path().join("link"));
        fs::write(&report, "INCOMPLETE\n").unwrap();
        std::os::unix::fs::symlink(&report, &link).unwrap();
        append(&report, "removed\n").unwrap();
        assert!(append(&link, "removed\n").is_err());
        assert_eq!(fs::read_to_string(&report).unwrap(), "INCOMPLETE\nremoved\n");
    }
}
