//! `burstfs-<job id>.receipt.json` and `burstfs-<job id>.report.txt`, written from the ledger entry by entry.
//!
//! Both appear whole or not at all: a temporary name, sync, rename, sync of the directory. `result` is the JSON
//! document's last key. A name that is no UTF-8 has its other bytes written as `\xHH` and stands exactly in
//! `path_hex` / `destination_hex`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use burstfs_proto::stage::Direction;
use burstfs_types::{JobEnd, Timestamp};
use serde::Serialize;
use thiserror::Error;

use crate::AtEnd;
use crate::item::{EntryRecord, EntryState, join};
use crate::ledger::{Inner, Ledger, NOT_KEPT_WORDS};

/// Failures that the report names; the receipt has all.
const REPORTED_MAX: u64 = 1_000;

/// What the receipt says about the instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// `<cluster>.<job id>.<restart count>`.
    pub instance: String,
    /// Slurm's job.
    pub job_id: u32,
    /// Whose.
    pub user: String,
    /// When the drain began, as people read it.
    pub began: String,
    /// When it ended.
    pub ended: String,
    /// How the job ended; `None` where no directive depends on it, or where it is not known.
    pub job_end: Option<JobEnd>,
    /// What becomes of what could not be drained, and how to go on.
    pub kept: Option<String>,
}

/// The receipt could not be written.
#[derive(Debug, Error)]
#[error("{path}: {source}")]
pub struct ReceiptError {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Where a job's receipt is, in the directory of its output.
pub fn receipt_path(into: &Path, job_id: u32) -> PathBuf {
    into.join(format!("burstfs-{job_id}.receipt.json"))
}

/// Where its report is.
pub fn report_path(into: &Path, job_id: u32) -> PathBuf {
    into.join(format!("burstfs-{job_id}.report.txt"))
}

#[derive(Serialize)]
struct EntryLine<'a> {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    destination: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_hex: Option<String>,
    kind: &'static str,
    size: u64,
    mtime: String,
    checksum: Option<String>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_preserved: Vec<&'static str>,
}

#[derive(Serialize)]
struct JobLine {
    source: String,
    destination: String,
    state: &'static str,
    reason: Option<String>,
}

impl Ledger {
    /// Writes receipt and report into a directory; the receipt's path. Call it after [`Ledger::finish`]; before, they say
    /// INCOMPLETE.
    pub fn write_receipt(&self, header: &Header, into: &Path) -> Result<PathBuf, ReceiptError> {
        let report = report_path(into, header.job_id);
        publish(&report, |out| self.write_report(header, out))?;
        let receipt = receipt_path(into, header.job_id);
        publish(&receipt, |out| self.write_json(header, out))?;
        Ok(receipt)
    }

    /// Writes what has become of a stage-in into a directory; the file's path. Call it after [`Ledger::finish`].
    pub fn write_stage_in_report(&self, header: &Header, into: &Path) -> Result<PathBuf, ReceiptError> {
        let report = into.join(format!("burstfs-{}.stage-in.txt", header.job_id));
        publish(&report, |out| self.write_report(header, out))?;
        Ok(report)
    }

    fn result(&self) -> &'static str {
        if self.inner().is_complete { "COMPLETE" } else { "INCOMPLETE" }
    }

    fn job_lines(&self, inner: &Inner) -> Vec<JobLine> {
        let line = |(tally, job): (&crate::ledger::Tally, &crate::StageJob)| JobLine {
            source: text(&job.source),
            destination: text(&job.destination),
            state: match job.at_end {
                AtEnd::Leave { .. } if tally.is_started => "not_asked",
                _ if tally.is_started => "done",
                _ => "failed",
            },
            reason: match (job.at_end, &tally.not_started) {
                (_, Some(not_started)) => Some(not_started.reason.clone()),
                (AtEnd::Leave { on }, None) => Some(format!("it is drained only after {on} of the job")),
                (_, None) => None,
            },
        };
        inner.tallies.iter().zip(&self.jobs).map(line).collect()
    }

    fn write_json(&self, header: &Header, out: &mut dyn Write) -> io::Result<()> {
        let (jobs, totals, reasons) = {
            let inner = self.inner();
            (self.job_lines(&inner), inner.totals(), inner.reasons.clone())
        };
        writeln!(out, "{{\n\"version\": 1,")?;
        member(out, "instance", &header.instance)?;
        member(out, "job_id", &header.job_id)?;
        member(out, "user", &header.user)?;
        member(out, "began", &header.began)?;
        member(out, "ended", &header.ended)?;
        member(out, "job_end", &header.job_end)?;
        member(out, "stage_out", &jobs)?;
        write!(out, "\"entries\": [")?;
        let mut separator = "\n";
        self.for_each(|source_dir, target_dir, entry| {
            write!(out, "{separator}")?;
            separator = ",\n";
            serde_json::to_writer(&mut *out, &entry_line(source_dir, target_dir, &entry)).map_err(io::Error::from)
        })?;
        writeln!(out, "\n],")?;
        let not_preserved: serde_json::Map<String, serde_json::Value> = NOT_KEPT_WORDS
            .iter()
            .zip(totals.not_kept)
            .filter(|(_, count)| *count > 0)
            .map(|(word, count)| ((*word).to_owned(), count.into()))
            .collect();
        let summary = serde_json::json!({
            "files": totals.copied + totals.unchanged,
            "bytes": totals.bytes_copied + totals.bytes_unchanged,
            "files_copied": totals.copied,
            "bytes_copied": totals.bytes_copied,
            "files_unchanged": totals.unchanged,
            "bytes_unchanged": totals.bytes_unchanged,
            "failed": totals.failed,
            "not_attempted": totals.not_attempted,
            "not_asked": totals.not_asked,
            "directories": totals.directories,
            "not_preserved": not_preserved,
        });
        member(out, "summary", &summary)?;
        member(out, "missing", &reasons)?;
        member(out, "kept", &header.kept)?;
        writeln!(out, "\"result\": \"{}\"\n}}", self.result())
    }

    fn write_report(&self, header: &Header, out: &mut dyn Write) -> io::Result<()> {
        let (jobs, totals, reasons) = {
            let inner = self.inner();
            (self.job_lines(&inner), inner.totals(), inner.reasons.clone())
        };
        let what = match self.direction {
            Direction::In => "stage-in",
            Direction::Out => "drain",
        };
        let Header { job_id, instance, began, ended, .. } = header;
        writeln!(out, "burstfs: {what} of job {job_id} ({instance}), {began} to {ended}")?;
        for job in jobs {
            let reason = job.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            writeln!(out, "  {} -> {}: {}{reason}", job.source, job.destination, job.state)?;
        }
        writeln!(out, "  copied     {:>12} files {:>18} bytes", totals.copied, totals.bytes_copied)?;
        writeln!(out, "  unchanged  {:>12} files {:>18} bytes", totals.unchanged, totals.bytes_unchanged)?;
        writeln!(out, "  failed     {:>12} entries, not attempted {}", totals.failed, totals.not_attempted)?;
        if totals.not_asked > 0 {
            writeln!(out, "  not asked  {:>12} entries, of when=manual or of on= with another end", totals.not_asked)?;
        }
        for (word, count) in NOT_KEPT_WORDS.iter().zip(totals.not_kept).filter(|(_, count)| *count > 0) {
            writeln!(out, "  {word} could not be preserved for {count} entries (named in the receipt)")?;
        }
        for reason in reasons {
            writeln!(out, "  missing: {reason}")?;
        }
        if let Some(kept) = &header.kept {
            writeln!(out, "  {kept}")?;
        }
        let mut left = REPORTED_MAX;
        self.for_each(|source_dir, _, entry| -> io::Result<()> {
            let reason = match &entry.state {
                EntryState::Failed { reason, .. } | EntryState::NotAttempted { reason } if left > 0 => reason,
                _ => return Ok(()),
            };
            left -= 1;
            writeln!(out, "  {}: {reason}", text(&join(source_dir, &entry.name)))
        })?;
        writeln!(out, "{}", self.result())
    }
}

fn member(out: &mut dyn Write, name: &str, value: &impl Serialize) -> io::Result<()> {
    writeln!(out, "\"{name}\": {},", serde_json::to_string(value)?)
}

fn entry_line<'a>(source_dir: &[u8], target_dir: &[u8], entry: &'a EntryRecord) -> EntryLine<'a> {
    let path = join(source_dir, &entry.name);
    let destination = join(target_dir, entry.target.as_ref().unwrap_or(&entry.name));
    let (state, reason) = match &entry.state {
        EntryState::Copied => ("copied", None),
        EntryState::Unchanged => ("unchanged", None),
        EntryState::Failed { reason, .. } => ("failed", Some(reason.as_str())),
        EntryState::NotAttempted { reason } => ("not_attempted", Some(reason.as_str())),
        EntryState::NotAsked => ("not_asked", None),
    };
    EntryLine {
        path_hex: hex(&path),
        path: text(&path),
        destination_hex: hex(&destination),
        destination: text(&destination),
        kind: entry.kind.text(),
        size: entry.size,
        mtime: time(entry.mtime),
        checksum: entry.checksum.map(|checksum| format!("xxh3-128:{checksum:032x}")),
        state,
        reason,
        not_preserved: entry.not_kept.words().collect(),
    }
}

/// Seconds since the epoch with nine decimals; as text, since a JSON number would lose some.
fn time(time: Timestamp) -> String {
    format!("{}.{:09}", time.secs, time.nanos)
}

/// For people.
fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// The exact bytes of what [`text`] cannot show.
fn hex(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).is_err().then(|| bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes a file that appears whole.
fn publish(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), ReceiptError> {
    let failed = |source| ReceiptError { path: path.to_owned(), source };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = write_whole(&temporary, path, write);
    if written.is_err() {
        // Best effort: what matters is that the final name does not hold half a file.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(failed)
}

fn write_whole(temporary: &Path, path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    // The directory is the user's choice and may be anybody's: nothing that is there is written through.
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut out = BufWriter::new(File::options().write(true).create_new(true).open(temporary)?);
    write(&mut out)?;
    out.into_inner()?.sync_all()?;
    fs::rename(temporary, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_text_stand_exactly() {
        assert_eq!(text(b"a\xff\n"), "a\\xff\n");
        assert_eq!(hex(b"a\xff"), Some("61ff".to_owned()));
        assert_eq!(hex("ä".as_bytes()), None);
        assert_eq!(time(Timestamp { secs: 3, nanos: 7 }), "3.000000007");
    }
}
