//! What can go wrong in the helper itself. What a user or an administrator is told is a [`Failure`] with its code.

use std::io;
use std::path::PathBuf;

use burstfs_node::control::ControlError;
use burstfs_node::journal::JournalError;
use burstfs_types::{Code, Failure};
use thiserror::Error;

/// An error of the helper.
#[derive(Debug, Error)]
pub(crate) enum NodeError {
    /// A system call.
    #[error("cannot {what}: {source}")]
    Io { what: String, source: io::Error },
    /// A directory that somebody else than root could have put there, or can change.
    #[error("{path}: {why}")]
    Untrusted { path: PathBuf, why: &'static str },
    /// A request that cannot be honoured, with its code.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A peer on a local socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A file of the helper's own that is not what the helper wrote.
    #[error("{path} is damaged: {source}")]
    Damaged { path: String, source: serde_json::Error },
    /// The command line or an environment variable.
    #[error("{0}")]
    Usage(String),
    /// A live instance of that name belongs to another job. Nothing of it is touched.
    #[error("another job's instance {0} is running on this node")]
    OtherJob(String),
    /// The supervisor ended without saying how.
    #[error("the supervisor of {0} ended unexpectedly; its log says more")]
    SupervisorGone(String),
}

impl NodeError {
    /// The error as what a job's start or end reports; `code` for an error that has none of its own.
    pub(crate) fn into_failure(self, code: Code) -> Failure {
        match self {
            NodeError::Failed(failure) => failure,
            other => Failure::new(code, other.to_string()),
        }
    }

    /// Whether it is "no such file".
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, NodeError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Says what was being done when a system call failed.
pub(crate) trait Context<T> {
    /// `what` follows "cannot".
    fn context(self, what: impl FnOnce() -> String) -> Result<T, NodeError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, NodeError> {
        self.map_err(|source| NodeError::Io { what: what(), source: source.into() })
    }
}
