//! A site's profile: `create` keys under one name.

use std::collections::BTreeMap;
use std::fmt;

use burstfs_spec::CreateItems;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The keys as they are written, and what they mean.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Profile {
    written: BTreeMap<String, String>,
    items: CreateItems,
}

impl Profile {
    /// What the profile sets.
    pub fn items(&self) -> &CreateItems {
        &self.items
    }
}

/// A profile is asked for by its name as the first word of a directive, where it must not be taken for anything else.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let is_name_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(is_name_char) {
        return Err(format!("the profile's name {name:?} must be a letter, then letters, digits, \"_\" and \"-\""));
    }
    let taken = ["create", "attach", "stage_in", "stage_out", "none"];
    if taken.contains(&name) || CreateItems::is_key(name) {
        return Err(format!("no profile can be named {name:?}: the word has a meaning in a directive"));
    }
    Ok(())
}

/// A value as an administrator may write it: `tolerate = 0` as well as `tolerate = "0"`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Number(u64),
}

struct ProfileVisitor;

impl<'de> Visitor<'de> for ProfileVisitor {
    type Value = Profile;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of create keys")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Profile, A::Error> {
        let mut profile = Profile::default();
        while let Some((key, value)) = map.next_entry::<String, Value>()? {
            let value = match value {
                Value::Text(text) => text,
                Value::Number(number) => number.to_string(),
            };
            profile
                .items
                .set_key(&key, &value)
                .map_err(|error| de::Error::custom(format!("{key}: {}", error.message)))?;
            profile.written.insert(key, value);
        }
        if profile.written.contains_key("capacity") && profile.written.contains_key("per_node") {
            return Err(de::Error::custom("capacity and per_node exclude one another"));
        }
        Ok(profile)
    }
}

impl<'de> Deserialize<'de> for Profile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Profile, D::Error> {
        deserializer.deserialize_map(ProfileVisitor)
    }
}

impl Serialize for Profile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.written.serialize(serializer)
    }
}
