//! The name of an instance.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One job's file system: cluster, job id and restart count. A requeued job keeps its id, so the restart count is part
/// of the name: a late epilog of an earlier run never touches the next one.
///
/// Written `<cluster>.<job id>.<restart count>`; the cluster's name has only `[A-Za-z0-9_-]`, so that the whole is safe
/// as a file name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId {
    cluster: String,
    job_id: u32,
    restart_count: u32,
}

/// Why a text is no instance id.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("\"{0}\" is not an instance: expected <cluster>.<job id>.<restart count>")]
pub struct InvalidInstanceId(String);

impl InstanceId {
    /// The instance of a job. Fails when the cluster's name is empty, longer than 64 bytes or has other characters than
    /// `[A-Za-z0-9_-]`, or when the job id is 0.
    pub fn new(cluster: &str, job_id: u32, restart_count: u32) -> Result<InstanceId, InvalidInstanceId> {
        let cluster_ok = (1..=64).contains(&cluster.len())
            && cluster.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        if !cluster_ok || job_id == 0 {
            return Err(InvalidInstanceId(format!("{cluster}.{job_id}.{restart_count}")));
        }
        Ok(InstanceId { cluster: cluster.to_owned(), job_id, restart_count })
    }

    /// Slurm's name of the cluster.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The job.
    pub fn job_id(&self) -> u32 {
        self.job_id
    }

    /// How often the job had been requeued when this instance was made.
    pub fn restart_count(&self) -> u32 {
        self.restart_count
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.cluster, self.job_id, self.restart_count)
    }
}

impl FromStr for InstanceId {
    type Err = InvalidInstanceId;

    fn from_str(text: &str) -> Result<InstanceId, InvalidInstanceId> {
        let invalid = || InvalidInstanceId(text.to_owned());
        let mut parts = text.splitn(3, '.');
        let mut next = || parts.next().ok_or_else(invalid);
        let (cluster, job_id, restart_count) = (next()?, next()?, next()?);
        let canonical = |number: &str| number.parse::<u32>().ok().filter(|n| n.to_string() == number);
        let job_id = canonical(job_id).ok_or_else(invalid)?;
        let restart_count = canonical(restart_count).ok_or_else(invalid)?;
        InstanceId::new(cluster, job_id, restart_count)
    }
}

impl TryFrom<String> for InstanceId {
    type Error = InvalidInstanceId;

    fn try_from(text: String) -> Result<InstanceId, InvalidInstanceId> {
        text.parse()
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_canonical() {
        let id = InstanceId::new("vc-1", 42, 3).unwrap();
        assert_eq!(id.to_string(), "vc-1.42.3");
        assert_eq!("vc-1.42.3".parse(), Ok(id));
    }

    #[test]
    fn refuses_anything_that_is_no_file_name() {
        for text in ["", "a", "a.1", "a.0.0", "../x.1.0", "a.01.0", "a.1.+1", "a.1.0/", "a.1.0.0", "a b.1.0"] {
            assert!(text.parse::<InstanceId>().is_err(), "{text}");
        }
    }
}
