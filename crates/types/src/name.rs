//! Names of directory entries.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A directory entry's name: 1 to 255 bytes, any but `/` and NUL, and neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Name(Vec<u8>);

/// Why bytes are not a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum InvalidName {
    /// Nothing there, `.` or `..`.
    #[error("an entry's name cannot be empty, \".\" or \"..\"")]
    Reserved,
    /// More than 255 bytes.
    #[error("an entry's name has {0} bytes; the limit is 255")]
    TooLong(usize),
    /// Contains `/` or NUL.
    #[error("an entry's name contains the byte {0:#04x}")]
    ForbiddenByte(u8),
}

impl Name {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 255;

    /// Checks and takes `bytes`.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Name, InvalidName> {
        let bytes = bytes.into();
        if bytes.is_empty() || bytes == b"." || bytes == b".." {
            return Err(InvalidName::Reserved);
        }
        if bytes.len() > Self::MAX_LEN {
            return Err(InvalidName::TooLong(bytes.len()));
        }
        match bytes.iter().find(|byte| matches!(byte, b'/' | 0)) {
            Some(byte) => Err(InvalidName::ForbiddenByte(*byte)),
            None => Ok(Name(bytes)),
        }
    }

    /// A name that this crate has chosen, and tests.
    pub(crate) fn of(name: &'static str) -> Name {
        Name(name.as_bytes().to_vec())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for Name {
    type Error = InvalidName;

    fn try_from(bytes: Vec<u8>) -> Result<Name, InvalidName> {
        Name::new(bytes)
    }
}

impl From<Name> for Vec<u8> {
    fn from(name: Name) -> Vec<u8> {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.escape_ascii(), f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_not_a_name() {
        assert_eq!(Name::new(""), Err(InvalidName::Reserved));
        assert_eq!(Name::new("."), Err(InvalidName::Reserved));
        assert_eq!(Name::new(".."), Err(InvalidName::Reserved));
        assert_eq!(Name::new("a/b"), Err(InvalidName::ForbiddenByte(b'/')));
        assert_eq!(Name::new(*b"a\0"), Err(InvalidName::ForbiddenByte(0)));
        assert_eq!(Name::new(vec![b'a'; 256]), Err(InvalidName::TooLong(256)));
        assert!(Name::new(vec![0xff; 255]).is_ok());
    }
}
