//! The name that a job gives its instance.

use std::fmt;

use burstfs_types::Code;
use serde::{Deserialize, Serialize};

use crate::error::Fault;
use crate::lex::Text;

/// `[a-z][a-z0-9_]*`, at most 32 characters: the job finds the mount in `$BURSTFS_<NAME>`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceName(String);

const NAME_MAX: usize = 32;

/// Names whose variable has another meaning: `BURSTFS_INSTANCE` and its like.
const RESERVED: [&str; 6] = ["instance", "capacity_bytes", "servers", "stage_in", "drain_deadline", "spec"];

impl InstanceName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The variable of the job's environment that holds the mount: `BURSTFS_` and the name in capitals.
    pub fn variable(&self) -> String {
        format!("BURSTFS_{}", self.0.to_ascii_uppercase())
    }

    pub(crate) fn parse(text: &Text) -> Result<InstanceName, Fault> {
        let name = InstanceName::try_from(text.plain());
        name.map_err(|message| Fault::new(Code::BadValue, &text.span, message))
    }
}

impl TryFrom<String> for InstanceName {
    type Error = String;

    fn try_from(text: String) -> Result<InstanceName, String> {
        let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase());
        let is_name_char = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !starts_well || text.len() > NAME_MAX || !text.chars().all(is_name_char) {
            return Err(format!("a name is a small letter, then small letters, digits and \"_\", at most {NAME_MAX}"));
        }
        if RESERVED.contains(&text.as_str()) {
            return Err(format!("the name \"{text}\" is taken: the variable means something else"));
        }
        Ok(InstanceName(text))
    }
}

impl From<InstanceName> for String {
    fn from(name: InstanceName) -> String {
        name.0
    }
}

impl Default for InstanceName {
    fn default() -> InstanceName {
        InstanceName("job".to_owned())
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        for good in ["job", "a", "ckpt_2"] {
            assert_eq!(InstanceName::try_from(good.to_owned()).unwrap().as_str(), good);
        }
        let long = "a".repeat(33);
        for bad in ["", "Job", "2a", "_a", "a-b", "a b", "instance", "spec", "ä", &long] {
            assert!(InstanceName::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        assert_eq!(InstanceName::try_from("ckpt_2".to_owned()).unwrap().variable(), "BURSTFS_CKPT_2");
    }
}
