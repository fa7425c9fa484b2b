//! The receipt of a drain, as its readers see it, and whether it tells the truth.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

/// `burstfs-<jobid>.receipt.json`.
#[derive(Clone, Debug)]
pub struct Receipt {
    document: Value,
    root: PathBuf,
}

impl Receipt {
    /// The receipt at `path`; destinations in it are paths below `root`.
    pub fn read(path: &Path, root: &Path) -> Result<Receipt> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let document = serde_json::from_str(&text).with_context(|| format!("{}: {text}", path.display()))?;
        Ok(Receipt { document, root: root.to_owned() })
    }

    fn result(&self) -> &str {
        self.document["result"].as_str().unwrap_or_default()
    }

    /// An error that shows the receipt, unless it says COMPLETE, and all that it names is where it says, as it says.
    pub fn ensure_complete(&self) -> Result<()> {
        ensure!(self.result() == "COMPLETE", "the receipt does not say COMPLETE:\n{:#}", self.document);
        self.ensure_true()
    }

    /// An error that shows the receipt, unless it says INCOMPLETE.
    pub fn ensure_incomplete(&self) -> Result<()> {
        ensure!(self.result() == "INCOMPLETE", "the receipt does not say INCOMPLETE:\n{:#}", self.document);
        self.ensure_true()
    }

    /// Every file that is said to be at its destination is there, with the size and the checksum that the receipt says.
    fn ensure_true(&self) -> Result<()> {
        let entries = self.document["entries"].as_array().context("the receipt has no entries")?;
        for entry in entries {
            let is_there = matches!(entry["state"].as_str(), Some("copied" | "unchanged"));
            // A name that is no UTF-8 is shown in another form; those are left to the stager's own tests.
            if is_there && entry["kind"] == "file" && entry.get("destination_hex").is_none() {
                self.ensure_entry_is_true(entry).with_context(|| format!("{entry}"))?;
            }
        }
        Ok(())
    }

    fn ensure_entry_is_true(&self, entry: &Value) -> Result<()> {
        let destination = entry["destination"].as_str().context("no destination")?;
        let bytes = fs::read(self.root.join(destination.trim_start_matches('/')))?;
        ensure!(entry["size"].as_u64() == Some(bytes.len() as u64), "its size is {}", bytes.len());
        if let Some(checksum) = entry["checksum"].as_str() {
            let actual = format!("xxh3-128:{:032x}", xxh3_128(&bytes));
            ensure!(checksum == actual, "its checksum is {actual}");
        }
        Ok(())
    }

    /// The whole of it, as text.
    pub fn text(&self) -> String {
        format!("{:#}", self.document)
    }
}
