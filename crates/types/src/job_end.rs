//! How a job ended, as far as it decides what is drained.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How a job ended, as Slurm has it. Where it is not known there is no such value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobEnd {
    /// COMPLETED: the script ended by itself, with 0.
    Success,
    /// Any other end: FAILED, CANCELLED, TIMEOUT, NODE_FAIL, OUT_OF_MEMORY, PREEMPTED, DEADLINE, BOOT_FAIL, and a job that was requeued.
    Failure,
}

/// Neither `success` nor `failure`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("a job ends with success or with failure")]
pub struct InvalidJobEnd;

impl JobEnd {
    /// The word that people write and read.
    pub const fn word(self) -> &'static str {
        match self {
            JobEnd::Success => "success",
            JobEnd::Failure => "failure",
        }
    }
}

impl fmt::Display for JobEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for JobEnd {
    type Err = InvalidJobEnd;

    fn from_str(word: &str) -> Result<JobEnd, InvalidJobEnd> {
        [JobEnd::Success, JobEnd::Failure].into_iter().find(|end| end.word() == word).ok_or(InvalidJobEnd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_round() {
        for end in [JobEnd::Success, JobEnd::Failure] {
            assert_eq!(end.to_string().parse(), Ok(end));
        }
        assert_eq!("COMPLETED".parse::<JobEnd>(), Err(InvalidJobEnd));
    }
}
