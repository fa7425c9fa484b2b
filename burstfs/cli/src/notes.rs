//! Instances that outlive their jobs, from the notes in their users' homes: Slurm knows such a job's nodes no more, or not for long.

use std::fs;
use std::path::Path;

use burstfs_mgs::{NOTE_VERSION, Note};
use burstfs_types::InstanceId;
use nix::unistd::{Uid, User};

/// More than any note has.
const NOTE_MAX_BYTES: u64 = 1 << 20;

/// The notes of these users; of none, those of the caller. What cannot be read as a note is passed by: a home may be anywhere,
/// and hold anything.
pub(crate) fn of(users: &[String]) -> Vec<(InstanceId, Note)> {
    let own = || User::from_uid(Uid::current()).ok().flatten();
    let users: Vec<User> = match users {
        [] => own().into_iter().collect(),
        users => users.iter().filter_map(|name| User::from_name(name).ok().flatten()).collect(),
    };
    let mut notes: Vec<(InstanceId, Note)> = users.iter().flat_map(in_home).collect();
    notes.sort_by(|(a, _), (b, _)| a.cmp(b));
    notes
}

/// A note says whose it is, but only its place proves it.
fn in_home(user: &User) -> Vec<(InstanceId, Note)> {
    let files = fs::read_dir(Note::directory(&user.dir)).into_iter().flatten().flatten();
    let notes = files.filter(|file| file.path().extension().is_some_and(|end| end == "json"));
    notes.filter_map(|file| read(&file.path())).filter(|(_, note)| note.user == user.name).collect()
}

fn read(path: &Path) -> Option<(InstanceId, Note)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > NOTE_MAX_BYTES {
        return None;
    }
    let note: Note = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let instance: InstanceId = note.instance.parse().ok()?;
    (note.version == NOTE_VERSION && !note.hosts.is_empty()).then_some((instance, note))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_notes_are_read() {
        let home = tempfile::tempdir().unwrap();
        let user =
            User { name: "alice".into(), dir: home.path().into(), ..User::from_uid(Uid::current()).unwrap().unwrap() };
        let note = Note {
            version: NOTE_VERSION,
            instance: "vc.7.0".into(),
            name: "job".into(),
            user: "alice".into(),
            hosts: vec!["node1".into()],
            capacity: 1,
            kept_until: Some(9),
            receipt: "/home/alice/burstfs-7.receipt.json".into(),
            reason: "E403: quota".into(),
        };
        let write = |name: &str, text: &str| {
            fs::create_dir_all(Note::directory(&user.dir)).unwrap();
            fs::write(Note::directory(&user.dir).join(name), text).unwrap();
        };
        assert!(in_home(&user).is_empty());
        write("vc.7.0.json", &serde_json::to_string(&note).unwrap());
        write("vc.8.0.json", &serde_json::to_string(&Note { user: "bob".into(), ..note.clone() }).unwrap());
        write("vc.9.0.json", &serde_json::to_string(&Note { version: 9, ..note.clone() }).unwrap());
        write("x.json", "{");
        write("vc.7.0.next", "{}");
        let found = in_home(&user);
        assert_eq!(found, [("vc.7.0".parse().unwrap(), note)]);
    }
}
