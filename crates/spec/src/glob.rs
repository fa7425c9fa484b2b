//! A source that is a pattern: which paths it stands for.
//!
//! The meaning is a shell's: each name between two `/` is matched by itself, and a name that begins with a `.` only by a pattern
//! that does.

use serde::{Deserialize, Serialize};

use crate::pattern::Pattern;

/// An absolute path with wild cards, its variables replaced.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Glob {
    text: String,
    base: String,
    names: Vec<GlobName>,
    is_contents: bool,
}

/// One name of a [`Glob`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct GlobName {
    literal: Option<String>,
    pattern: Pattern,
    begins_with_dot: bool,
}

impl Glob {
    /// Reads a path in which `\` keeps a wild card from being one.
    pub(crate) fn new(text: &str) -> Result<Glob, String> {
        let mut glob =
            Glob { text: text.to_owned(), base: String::new(), names: Vec::new(), is_contents: text.ends_with('/') };
        for name in text.split('/').filter(|name| !name.is_empty() && *name != ".") {
            let name = GlobName::new(name)?;
            match &name.literal {
                Some(literal) if glob.names.is_empty() => {
                    glob.base.push('/');
                    glob.base.push_str(literal);
                }
                Some(literal) if literal == ".." => return Err("\"..\" cannot stand behind a pattern".to_owned()),
                _ => glob.names.push(name),
            }
        }
        if glob.base.is_empty() {
            glob.base.push('/');
        }
        Ok(glob)
    }

    /// The directory in front of the first name with a wild card.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The names from the first with a wild card on.
    pub fn names(&self) -> &[GlobName] {
        &self.names
    }

    /// Whether it ends with `/`: directories only, and of each its contents.
    pub fn is_contents(&self) -> bool {
        self.is_contents
    }
}

impl GlobName {
    fn new(text: &str) -> Result<GlobName, String> {
        let (mut plain, mut is_wild, mut chars) = (String::new(), false, text.chars());
        while let Some(char) = chars.next() {
            is_wild |= matches!(char, '*' | '?' | '[');
            plain.extend(if char == '\\' { chars.next() } else { Some(char) });
        }
        let begins_with_dot = plain.starts_with('.');
        let (literal, pattern) = if is_wild { (None, Pattern::parse(text)?) } else { (Some(plain), Pattern::none()) };
        Ok(GlobName { literal, pattern, begins_with_dot })
    }

    /// The name itself, if it has no wild card.
    pub fn literal(&self) -> Option<&str> {
        self.literal.as_deref()
    }

    /// Whether an entry of this name is meant.
    pub fn matches(&self, name: &[u8]) -> bool {
        match &self.literal {
            Some(literal) => literal.as_bytes() == name,
            None => (self.begins_with_dot || !name.starts_with(b".")) && self.pattern.matches(name),
        }
    }
}

impl TryFrom<String> for Glob {
    type Error = String;

    fn try_from(text: String) -> Result<Glob, String> {
        Glob::new(&text)
    }
}

impl From<Glob> for String {
    fn from(glob: Glob) -> String {
        glob.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_as_by_a_shell() {
        let glob = Glob::new(r"/a/\*b/./*.h5/[!.]x").unwrap();
        assert_eq!((glob.base(), glob.is_contents(), glob.names().len()), ("/a/*b", false, 2));
        assert!(glob.names()[0].matches(b"x.h5") && glob.names()[0].matches(b"\xff.h5"));
        assert!(!glob.names()[0].matches(b".h5") && !glob.names()[0].matches(b"x.h"));
        assert!(Glob::new("/.*").unwrap().names()[0].matches(b".h5"));
        let glob = Glob::new("/*/in/").unwrap();
        assert_eq!((glob.base(), glob.names()[1].literal()), ("/", Some("in")));
        assert!(Glob::new("/a/*/..").is_err() && Glob::new("/a/../*").is_ok());
    }
}
