//! The receipt of a drain, as its readers see it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// `burstfs-<jobid>.receipt.json`.
#[derive(Clone, Debug)]
pub struct Receipt(Value);

impl Receipt {
    pub(crate) fn read(path: &Path) -> Result<Receipt> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok(Receipt(serde_json::from_str(&text).with_context(|| format!("{}: {text}", path.display()))?))
    }

    /// `COMPLETE` or `INCOMPLETE`.
    pub fn result(&self) -> &str {
        self.0["result"].as_str().unwrap_or_default()
    }

    /// State of the file that was to be drained to `path`, as the receipt names it.
    pub fn state(&self, path: &str) -> Option<&str> {
        let files = self.0["files"].as_array()?;
        let file =
            files.iter().find(|file| file["path"].as_str() == Some(path) || file["target"].as_str() == Some(path))?;
        file["state"].as_str()
    }

    /// An error that shows the receipt, unless it says COMPLETE.
    pub fn ensure_complete(&self) -> Result<()> {
        ensure!(self.result() == "COMPLETE", "the receipt does not say COMPLETE:\n{:#}", self.0);
        Ok(())
    }

    /// An error that shows the receipt, unless it says INCOMPLETE.
    pub fn ensure_incomplete(&self) -> Result<()> {
        ensure!(self.result() == "INCOMPLETE", "the receipt does not say INCOMPLETE:\n{:#}", self.0);
        Ok(())
    }

    /// The whole of it, as text.
    pub fn text(&self) -> String {
        format!("{:#}", self.0)
    }
}
