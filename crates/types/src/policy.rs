//! What layout new files shall have, as a job, a directory or a file asks for it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::layout::check_stripe_size;
use crate::limits;

/// The longest text that is looked at; the longest that is valid has about half of it.
const TEXT_MAX_BYTES: usize = 128;

/// How stripes are laid.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StripePattern {
    count: Option<u16>,
    size_bytes: u32,
}

impl StripePattern {
    /// `count` stripes (`None`: one on each OST) of `size_bytes`.
    pub fn new(count: Option<u16>, size_bytes: u32) -> Result<StripePattern, PolicyError> {
        check_stripe_size(size_bytes).map_err(|_| PolicyError::Size(size_bytes.to_string()))?;
        match count {
            Some(count) if count == 0 || usize::from(count) > limits::STRIPE_COUNT_MAX => {
                Err(PolicyError::Count(count.to_string()))
            }
            _ => Ok(StripePattern { count, size_bytes }),
        }
    }

    /// How many stripes; `None`: one on each OST.
    pub fn count(&self) -> Option<u16> {
        self.count
    }

    /// Bytes of a stripe unit.
    pub fn size_bytes(&self) -> u32 {
        self.size_bytes
    }
}

impl Default for StripePattern {
    fn default() -> StripePattern {
        StripePattern { count: None, size_bytes: limits::STRIPE_SIZE_DEFAULT_BYTES }
    }
}

/// What layout new files shall have. As text: `auto`, `local`, `striped`, `striped:count=4,size=1MiB`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LayoutPolicy {
    /// Decided file by file, from who writes it.
    #[default]
    Auto,
    /// One stripe on the OST of the node that makes the file.
    Local,
    /// Round robin over several OSTs.
    Striped(StripePattern),
}

/// Why a text is no layout.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PolicyError {
    /// No such kind.
    #[error("\"{0}\" is no layout; a layout is auto, local, striped or striped:count=N,size=S")]
    Kind(String),
    /// No such parameter.
    #[error("\"{0}\" is no parameter of striped; it has count=N and size=S")]
    Parameter(String),
    /// The same parameter twice.
    #[error("\"{0}\" stands twice")]
    Twice(&'static str),
    /// Not a number of stripes.
    #[error("\"{0}\" is no number of stripes; it is \"all\", or from 1 to {max}", max = limits::STRIPE_COUNT_MAX)]
    Count(String),
    /// Not a stripe size.
    #[error("\"{0}\" is no stripe size; it is a power of two from 64KiB to 1GiB, with its unit")]
    Size(String),
}

impl FromStr for LayoutPolicy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<LayoutPolicy, PolicyError> {
        match text {
            "auto" => Ok(LayoutPolicy::Auto),
            "local" => Ok(LayoutPolicy::Local),
            "striped" => Ok(LayoutPolicy::Striped(StripePattern::default())),
            _ if text.len() > TEXT_MAX_BYTES => Err(PolicyError::Kind(shown(text))),
            _ => match text.strip_prefix("striped:") {
                Some(parameters) => parse_pattern(parameters).map(LayoutPolicy::Striped),
                None => Err(PolicyError::Kind(shown(text))),
            },
        }
    }
}

fn parse_pattern(parameters: &str) -> Result<StripePattern, PolicyError> {
    let (mut count, mut size) = (None, None);
    for parameter in parameters.split(',') {
        let fresh = match parameter.split_once('=') {
            Some(("count", value)) => count.replace(parse_count(value)?).map_or(Ok(()), |_| Err("count")),
            Some(("size", value)) => size.replace(parse_size(value)?).map_or(Ok(()), |_| Err("size")),
            _ => return Err(PolicyError::Parameter(shown(parameter))),
        };
        fresh.map_err(PolicyError::Twice)?;
    }
    StripePattern::new(count.flatten(), size.unwrap_or(limits::STRIPE_SIZE_DEFAULT_BYTES))
}

fn parse_count(text: &str) -> Result<Option<u16>, PolicyError> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text {
        "all" => Ok(None),
        _ if is_number => text.parse().map(Some).map_err(|_| PolicyError::Count(shown(text))),
        _ => Err(PolicyError::Count(shown(text))),
    }
}

fn parse_size(text: &str) -> Result<u32, PolicyError> {
    let refused = || PolicyError::Size(shown(text));
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let shift = match unit {
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        _ => return Err(refused()),
    };
    let number: u32 = number.parse().map_err(|_| refused())?;
    let size = number.checked_mul(1 << shift).ok_or_else(refused)?;
    check_stripe_size(size).map(|()| size).map_err(|_| refused())
}

/// As much of a text as an error message needs.
fn shown(text: &str) -> String {
    text.chars().take(40).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl fmt::Display for LayoutPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayoutPolicy::Auto => f.write_str("auto"),
            LayoutPolicy::Local => f.write_str("local"),
            LayoutPolicy::Striped(pattern) => pattern.fmt(f),
        }
    }
}

impl fmt::Display for StripePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            Some(count) => write!(f, "striped:count={count},")?,
            None => f.write_str("striped:count=all,")?,
        }
        match self.size_bytes {
            size if size.is_multiple_of(1 << 30) => write!(f, "size={}GiB", size >> 30),
            size if size.is_multiple_of(1 << 20) => write!(f, "size={}MiB", size >> 20),
            size => write!(f, "size={}KiB", size >> 10),
        }
    }
}

impl TryFrom<String> for LayoutPolicy {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<LayoutPolicy, PolicyError> {
        text.parse()
    }
}

impl From<LayoutPolicy> for String {
    fn from(policy: LayoutPolicy) -> String {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn striped(count: Option<u16>, size_bytes: u32) -> LayoutPolicy {
        LayoutPolicy::Striped(StripePattern::new(count, size_bytes).unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        for (text, policy, canonical) in [
            ("auto", LayoutPolicy::Auto, "auto"),
            ("local", LayoutPolicy::Local, "local"),
            ("striped", striped(None, 1 << 20), "striped:count=all,size=1MiB"),
            ("striped:count=4", striped(Some(4), 1 << 20), "striped:count=4,size=1MiB"),
            ("striped:size=64K,count=2048", striped(Some(2048), 1 << 16), "striped:count=2048,size=64KiB"),
            ("striped:size=1024MiB,count=all", striped(None, 1 << 30), "striped:count=all,size=1GiB"),
        ] {
            assert_eq!(text.parse(), Ok(policy));
            assert_eq!(policy.to_string(), canonical);
            assert_eq!(canonical.parse(), Ok(policy));
        }
    }

    #[test]
    fn what_is_no_layout_is_refused() {
        let long = format!("striped:count={}", "1".repeat(5_000));
        let refused = |text: &str| text.parse::<LayoutPolicy>().unwrap_err();
        for text in ["", "Local", "striped4", "local:count=1", "striped ", "auto\0", &long] {
            assert!(matches!(refused(text), PolicyError::Kind(_)), "{text}");
        }
        for text in ["striped:", "striped:count", "striped:count=2,", "striped:width=3", "striped: count=2"] {
            assert!(matches!(refused(text), PolicyError::Parameter(_)), "{text}");
        }
        for text in ["count=0", "count=2049", "count=65536", "count=-1", "count=+1", "count=", "count=four"] {
            assert!(matches!(refused(&format!("striped:{text}")), PolicyError::Count(_)), "{text}");
        }
        for text in ["0K", "64", "1", "3M", "32K", "2G", "64KB", "4294967297K", "99999999999G", "M", "1.5M"] {
            assert!(matches!(refused(&format!("striped:size={text}")), PolicyError::Size(_)), "{text}");
        }
        assert_eq!(refused("striped:count=2,count=2"), PolicyError::Twice("count"));
        assert!(refused(&long).to_string().len() < 200);
    }
}
