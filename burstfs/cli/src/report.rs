//! What a drain has left next to the job's output: `burstfs report` prints it, `burstfs wait` reads the result.

use std::path::{Path, PathBuf};

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

/// Prints the report of a job's drain.
pub(crate) fn run(job: u32) -> Result<(), Ending> {
    let path = find(job, "report.txt")?;
    let text = std::fs::read_to_string(&path).map_err(|error| cannot_read(&path, &error))?;
    print!("{text}");
    Ok(())
}

/// Whether the receipt says that everything is at its destination. A receipt of another instance of the job, which was
/// requeued since, says nothing; where `instance` is not known, any does. An error with [`Exit::NoInstance`] when there is none.
pub(crate) fn is_complete(job: u32, instance: Option<&str>) -> Result<bool, Ending> {
    let path = find(job, "receipt.json")?;
    let file = std::fs::File::open(&path).map_err(|error| cannot_read(&path, &error))?;
    let verdict: Verdict =
        serde_json::from_reader(std::io::BufReader::new(file)).map_err(|error| cannot_read(&path, &error))?;
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
    let found = dirs.iter().map(|dir| dir.join(&name)).find(|path| path.exists());
    found.ok_or_else(|| {
        let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        let message =
            format!("no {name} in {}: the drain has not ended, or there was nothing to drain", dirs.join(", "));
        Ending::new(Exit::NoInstance, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
