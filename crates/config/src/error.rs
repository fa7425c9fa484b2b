//! What is wrong with the configuration, and where.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use burstfs_spec::nearest;
use burstfs_types::{Code, Failure};
use thiserror::Error;

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: Option<usize>,
    /// The key.
    pub key: Option<String>,
    /// What is wrong.
    #[source]
    pub problem: Problem,
}

/// What is wrong.
#[derive(Debug, Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("cannot be read: {0}; it must be on every node and wherever jobs are submitted")]
    Unreadable(#[source] io::Error),
    /// Somebody else than root could have written it.
    #[error("root does not trust it, since {path} {reason}; chown root and chmod go-w", path = path.display())]
    Untrusted {
        /// The file, or a directory that it is in.
        path: PathBuf,
        /// What somebody else could do.
        reason: &'static str,
    },
    /// More than a configuration can be.
    #[error("is larger than 1 MiB; is this the right file?")]
    TooLarge,
    /// A key or a value.
    #[error("{0}")]
    Invalid(String),
}

impl ConfigError {
    pub(crate) fn new(path: &Path, problem: Problem) -> ConfigError {
        ConfigError { path: path.to_owned(), line: None, key: None, problem }
    }

    pub(crate) fn in_text(path: &Path, text: &str, span: Option<Range<usize>>, message: &str) -> ConfigError {
        let message = message.trim_end().replace('\n', "; ");
        let problem = Problem::Invalid(with_suggestion(&message));
        let Some(head) = span.and_then(|span| text.get(..span.start)) else {
            return ConfigError::new(path, problem);
        };
        let start = head.rfind('\n').map_or(0, |at| at + 1);
        let line = text[start..].lines().next().unwrap_or_default();
        let key = line.split_once('=').map(|(key, _)| key.trim().to_owned()).filter(|key| !key.is_empty());
        let number = head.bytes().filter(|byte| *byte == b'\n').count() + 1;
        ConfigError { line: Some(number), key, ..ConfigError::new(path, problem) }
    }

    /// One line, without the code.
    pub fn message(&self) -> String {
        let mut message = self.path.display().to_string();
        if let Some(line) = self.line {
            message.push_str(&format!(":{line}"));
        }
        if let Some(key) = &self.key {
            message.push_str(&format!(": {key}"));
        }
        format!("{message}: {}", self.problem)
    }

    /// The error as it is recorded and sent.
    pub fn failure(&self) -> Failure {
        Failure::new(Code::BadConfig, self.message())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure().fmt(f)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        error.failure()
    }
}

/// serde names the known fields in a sentence of its own; the nearest of them is more helpful.
fn with_suggestion(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((field, known)) if message.starts_with("unknown field") => match nearest(field, known.iter().copied()) {
            Some(near) => format!("unknown key; did you mean \"{near}\"?"),
            None => format!("unknown key; known here are {}", known.join(", ")),
        },
        _ => message.to_owned(),
    }
}
