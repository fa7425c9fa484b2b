//! How the start of an instance went on a node: what the plugin reads before it lets the job's tasks run.

use std::collections::BTreeMap;

use burstfs_types::{Failure, InstanceId};
use serde::{Deserialize, Serialize};

/// The version of [`Outcome`] that this build writes.
pub const OUTCOME_VERSION: u32 = 1;

/// How the start went.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// [`OUTCOME_VERSION`].
    pub version: u32,
    /// The instance.
    pub instance: InstanceId,
    /// What came of it.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// What came of a start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Verdict {
    /// The file system is mounted and everything that has to be staged in is there.
    Ready {
        /// What the job finds in its environment.
        environment: BTreeMap<String, String>,
        /// What it is told when it starts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warning: Option<Failure>,
    },
    /// The job must not run.
    Failed {
        /// Why.
        failure: Failure,
    },
}

impl Outcome {
    /// The instance can be used.
    pub fn ready(instance: InstanceId, environment: BTreeMap<String, String>, warning: Option<Failure>) -> Outcome {
        Outcome { version: OUTCOME_VERSION, instance, verdict: Verdict::Ready { environment, warning } }
    }

    /// The job must not run.
    pub fn failed(instance: InstanceId, failure: Failure) -> Outcome {
        Outcome { version: OUTCOME_VERSION, instance, verdict: Verdict::Failed { failure } }
    }
}

#[cfg(test)]
mod tests {
    use burstfs_types::Code;

    use super::*;

    #[test]
    fn has_the_documented_form() {
        let instance: InstanceId = "vc.42.0".parse().unwrap();
        let environment = BTreeMap::from([("BURSTFS".to_owned(), "/burstfs/42".to_owned())]);
        let ready = Outcome::ready(instance.clone(), environment, None);
        let text = r#"{"version":1,"instance":"vc.42.0","state":"ready","environment":{"BURSTFS":"/burstfs/42"}}"#;
        assert_eq!(serde_json::to_string(&ready).unwrap(), text);
        assert_eq!(serde_json::from_str::<Outcome>(text).unwrap(), ready);

        let failed = Outcome::failed(instance, Failure::new(Code::NvmeMissing, "no /local"));
        let text =
            r#"{"version":1,"instance":"vc.42.0","state":"failed","failure":{"code":"E201","message":"no /local"}}"#;
        assert_eq!(serde_json::to_string(&failed).unwrap(), text);
        assert_eq!(serde_json::from_str::<Outcome>(text).unwrap(), failed);
    }
}
