//! What a drain has left next to the job's output: `burstfs report` prints it, `burstfs wait` reads the result.
//!
//! Both lie where the job's user can make anything: they are opened without following a link at their name and without waiting
//! for whoever writes into a pipe, and nothing of a report reaches the terminal as a control character.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::Deserialize;

use crate::{Ending, Exit, notes, slurm};

/// Of a receipt what says how it ended; its entries, which may be millions, are passed over.
#[derive(Debug, Deserialize)]
struct Verdict {
    instance: String,
    result: Word,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Word {
    Complete,
    Incomplete,
}

/// More than any report has: it names a thousand entries at most, of at most 4 KiB each.
const REPORT_MAX_BYTES: u64 = 32 << 20;

/// Prints the report of a job's drain.
pub(crate) fn run(job: u32) -> Result<(), Ending> {
    let path = find(job, "report.txt")?;
    let bytes = read_report(&path).map_err(|error| cannot_read(&path, &error))?;
    match io::stdout().write_all(printable(&bytes).as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| Ending::new(Exit::Failure, error)),
    }
}

fn read_report(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(REPORT_MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > REPORT_MAX_BYTES {
        return Err(io::Error::other("no report is as long as this file"));
    }
    Ok(bytes)
}

/// The regular file of that name.
fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| match rustix::io::Errno::from_io_error(&error) {
        Some(rustix::io::Errno::LOOP) => io::Error::other("a symbolic link, which burstfs has not made"),
        Some(rustix::io::Errno::NXIO) => io::Error::other("no regular file, so burstfs has not made it"),
        Some(_) | None => error,
    })?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("no regular file, so burstfs has not made it")),
    }
}

/// Lines as they are; other control characters, and bytes that are no text, as escapes.
fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' => text.push('\n'),
                character if character.is_control() => text.extend(character.escape_default()),
                character => text.push(character),
            }
        }
        text.push_str(&chunk.invalid().escape_ascii().to_string());
    }
    text
}

/// Whether the receipt says that everything is at its destination. A receipt of another instance of the job, which was
/// requeued since, says nothing; where `instance` is not known, any does. An error with [`Exit::NoInstance`] when there is none.
pub(crate) fn is_complete(job: u32, instance: Option<&str>) -> Result<bool, Ending> {
    let path = find(job, "receipt.json")?;
    let file = open(&path).map_err(|error| cannot_read(&path, &error))?;
    let verdict: Verdict =
        serde_json::from_reader(io::BufReader::new(file)).map_err(|error| cannot_read(&path, &error))?;
    match instance {
        Some(instance) if verdict.instance != instance => {
            let message = format!("{} is of {}, there is none of {instance}", path.display(), verdict.instance);
            Err(Ending::new(Exit::NoInstance, message))
        }
        Some(_) | None => Ok(verdict.result == Word::Complete),
    }
}

fn cannot_read(path: &Path, why: &dyn std::fmt::Display) -> Ending {
    Ending::new(Exit::Failure, format!("{}: {why}", path.display()))
}

/// `burstfs-<job>.<what>` where the daemon puts it: beside the job's output, or in its working directory. Of a job that Slurm has
/// forgotten the note knows it, while something is held; else it is looked for here.
fn find(job: u32, what: &str) -> Result<PathBuf, Ending> {
    let name = format!("burstfs-{job}.{what}");
    let (stdout, work_dir) = slurm::places(job);
    let noted = notes::of(&[]).into_iter().rfind(|(instance, _)| instance.job_id() == job);
    let noted = noted.map(|(_, note)| PathBuf::from(note.receipt));
    let beside = [stdout, noted].into_iter().flatten().filter_map(|path| path.parent().map(Path::to_owned));
    let mut dirs: Vec<PathBuf> = beside.chain(work_dir).chain([PathBuf::from(".")]).collect();
    dirs.dedup();
    let found = dirs.iter().map(|dir| dir.join(&name)).find(|path| path.symlink_metadata().is_ok());
    found.ok_or_else(|| {
        let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        let message =
            format!("no {name} in {}: the drain has not ended, or there was nothing to drain", dirs.join(", "));
        Ending::new(Exit::NoInstance, message)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_a_regular_file_is_opened_and_nobody_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "text\n").unwrap();
        symlink(at("file"), at("link")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        std::fs::create_dir(at("dir")).unwrap();
        assert_eq!(read_report(&at("file")).unwrap(), b"text\n");
        for (name, words) in [("link", "symbolic link"), ("pipe", "regular"), ("socket", "regular"), ("dir", "regular")]
        {
            let said = read_report(&at(name)).unwrap_err().to_string();
            assert!(said.contains(words), "{name}: {said}");
        }
        File::create(at("huge")).unwrap().set_len(REPORT_MAX_BYTES + 1).unwrap();
        assert!(read_report(&at("huge")).is_err());
    }

    #[test]
    fn nothing_of_a_report_steers_the_terminal() {
        let said = printable(b"ok \xc3\xa4\n\x1b[2J\rx\x07\xc2\x9b1m \xff\x9b\n");
        assert_eq!(said, "ok \u{e4}\n\\u{1b}[2J\\rx\\u{7}\\u{9b}1m \\xff\\x9b\n");
        assert!(said.chars().all(|character| character == '\n' || !character.is_control()));
    }

    #[test]
    fn only_the_last_word_of_a_receipt_is_read() {
        let text =
            r#"{"version":1,"instance":"vc.7.0","entries":[{"path":"/out/a","state":"copied"}],"result":"COMPLETE"}"#;
        let verdict: Verdict = serde_json::from_str(text).unwrap();
        assert_eq!((verdict.instance.as_str(), verdict.result), ("vc.7.0", Word::Complete));
        // One that was cut short, or says something else, is not taken for either.
        assert!(serde_json::from_str::<Verdict>(&text[..text.len() - 1]).is_err());
        assert!(serde_json::from_str::<Verdict>(r#"{"instance":"vc.7.0","result":"FINE"}"#).is_err());
        assert!(serde_json::from_str::<Verdict>(r#"{"instance":"vc.7.0"}"#).is_err());
    }
}
