//! How values are written in the file.

use burstfs_spec::Size;

/// For defaults.
pub(crate) const fn gib(count: u64) -> Size {
    Size::from_gib(count)
}

/// `"900GiB"`
pub(crate) mod size {
    use burstfs_spec::Size;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(size: &Size, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(size)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error: burstfs_spec::SpecError| de::Error::custom(error.message))
    }
}

/// A [`size`] or no key.
pub(crate) mod optional_size {
    use burstfs_spec::Size;
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(size: &Option<Size>, serializer: S) -> Result<S::Ok, S::Error> {
        match size {
            Some(size) => serializer.collect_str(size),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Size>, D::Error> {
        super::size::deserialize(deserializer).map(Some)
    }
}

/// `"10min"`
pub(crate) mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|error| de::Error::custom(format!("{text:?} is no duration like \"60s\" or \"10min\": {error}")))
    }
}

/// A path that starts at the root and has no `..`.
pub(crate) mod absolute_path {
    use std::path::{Component, Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        path.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        let path = PathBuf::deserialize(deserializer)?;
        let is_plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(is_plain) || path.components().count() < 2 {
            let message = format!("{path:?} is not usable; write an absolute path below / and without \"..\"");
            return Err(de::Error::custom(message));
        }
        Ok(path)
    }
}
