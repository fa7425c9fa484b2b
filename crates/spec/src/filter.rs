//! Which entries of a tree a copy takes: `include=` and `exclude=`, with rsync's meaning.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Fault;
use crate::lex::Text;
use crate::path::SEPARATORS;
use crate::pattern::{Pattern, bad_pattern, pattern_text, write_pattern};

/// What a filter's match decides.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilterAction {
    /// The entry is copied.
    Include,
    /// It is not; a directory is not looked into.
    Exclude,
}

impl FilterAction {
    const KEYS: [(&'static str, FilterAction); 2] =
        [("include", FilterAction::Include), ("exclude", FilterAction::Exclude)];

    /// The action of a directive's key.
    pub(crate) fn of_key(key: &str) -> Option<FilterAction> {
        FilterAction::KEYS.iter().find(|(name, _)| *name == key).map(|(_, action)| *action)
    }

    fn key(self) -> &'static str {
        FilterAction::KEYS.iter().find(|(_, action)| *action == self).map_or("", |(name, _)| name)
    }
}

/// Where in a path a pattern must match.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Reach {
    /// The last name.
    Name,
    /// All of the path.
    Whole,
    /// All of the path with a `/` in front.
    WholeWithSlash,
    /// The last so many names.
    Last(usize),
    /// The path from its beginning or from behind any `/`.
    FromAnySlash,
}

/// One `include=` or `exclude=`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Filter {
    action: FilterAction,
    text: String,
    pattern: Pattern,
    reach: Reach,
    is_of_directories: bool,
    /// `x/***`: also the directory `x` itself.
    ends_with_triple: bool,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    action: FilterAction,
    pattern: String,
}

impl Filter {
    /// A filter of rsync's text; the error says what is wrong with it.
    pub fn new(action: FilterAction, text: &str) -> Result<Filter, String> {
        if let Some(prefix) = ["+ ", "- ", "! "].into_iter().find(|prefix| text.starts_with(prefix)) {
            return Err(format!("\"{prefix}\" in front of a pattern is rsync's; here the key says include or exclude"));
        }
        if text.chars().any(char::is_control) || text.is_empty() {
            return Err("a pattern has characters, and no control characters".to_owned());
        }
        let (body, is_of_directories) = match text.strip_suffix('/') {
            Some(body) if !body.is_empty() => (body, true),
            _ => (text, false),
        };
        let slashes = body.matches('/').count();
        let is_double = body.contains("**");
        let (body, is_anchored) = body.strip_prefix('/').map_or((body, false), |body| (body, true));
        let reach = match (is_anchored, is_double) {
            (true, _) => Reach::Whole,
            (false, true) if body.starts_with("**") => Reach::WholeWithSlash,
            (false, true) => Reach::FromAnySlash,
            (false, false) if slashes == 0 => Reach::Name,
            (false, false) => Reach::Last(slashes + 1),
        };
        Ok(Filter {
            action,
            text: text.to_owned(),
            pattern: Pattern::parse(body)?,
            reach,
            is_of_directories,
            ends_with_triple: body.ends_with("***"),
        })
    }

    pub(crate) fn parse(action: FilterAction, value: &Text) -> Result<Filter, Fault> {
        Filter::new(action, &pattern_text(&value.glyphs)).map_err(|message| bad_pattern(value, message))
    }

    /// Whether the filter speaks of the entry at `path`, which is relative to the root of the copy.
    fn matches(&self, path: &[u8], is_directory: bool) -> bool {
        if path.is_empty() || self.is_of_directories && !is_directory {
            return false;
        }
        let is_match = |text: &[u8]| {
            let with_slash = is_directory && self.ends_with_triple;
            if with_slash { self.pattern.matches(&[text, b"/"].concat()) } else { self.pattern.matches(text) }
        };
        match self.reach {
            Reach::Name => is_match(last_names(path, 1)),
            Reach::Whole => is_match(path),
            Reach::WholeWithSlash => is_match(&[b"/", path].concat()),
            Reach::Last(names) => is_match(last_names(path, names)),
            Reach::FromAnySlash => {
                let behind = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at + 1);
                std::iter::once(0).chain(behind).any(|from| is_match(&path[from..]))
            }
        }
    }
}

/// The last `count` names of a path.
fn last_names(path: &[u8], count: usize) -> &[u8] {
    let slash = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/').nth(count - 1);
    slash.map_or(path, |(at, _)| &path[at + 1..])
}

impl fmt::Display for Filter {
    /// As it is written within a directive.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{}=", self.action.key());
        write_pattern(&self.text, SEPARATORS, &mut text);
        f.write_str(&text)
    }
}

impl TryFrom<Written> for Filter {
    type Error = String;

    fn try_from(written: Written) -> Result<Filter, String> {
        Filter::new(written.action, &written.pattern)
    }
}

impl From<Filter> for Written {
    fn from(filter: Filter) -> Written {
        Written { action: filter.action, pattern: filter.text }
    }
}

/// The filters of a directive, in their order: the first that matches an entry decides; what none matches is copied.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Filters(Vec<Filter>);

impl Filters {
    /// Filters in their order.
    pub fn new(filters: Vec<Filter>) -> Filters {
        Filters(filters)
    }

    /// Whether there are none, so that all is copied.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = &Filter> {
        self.0.iter()
    }

    /// Whether the entry at `path` is left out, and what is below it, too. `path` is relative to the root of the copy, as rsync
    /// counts it: for a source that ends with `/` the names within it, else beginning with the source's own name.
    pub fn is_excluded(&self, path: &[u8], is_directory: bool) -> bool {
        let decisive = self.0.iter().find(|filter| filter.matches(path, is_directory));
        decisive.is_some_and(|filter| filter.action == FilterAction::Exclude)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded(pattern: &str, path: &str, is_directory: bool) -> bool {
        let filter = Filter::new(FilterAction::Exclude, pattern).unwrap();
        Filters::new(vec![filter]).is_excluded(path.as_bytes(), is_directory)
    }

    #[test]
    fn patterns_reach_as_in_rsync() {
        for (pattern, path) in [
            ("f", "a/f"),
            ("/f", "f"),
            ("a/f", "x/a/f"),
            ("a/*", "x/a/g"),
            ("**/f", "f"),
            ("a**f", "x/a/b/f"),
            ("/a/**", "a/b/c"),
            ("*", "a/b"),
            ("a/***", "a/b"),
            (r"a\b", r"x/a\b"),
        ] {
            assert!(excluded(pattern, path, false), "{pattern} {path}");
        }
        for (pattern, path) in
            [("/f", "a/f"), ("a/f", "ba/f"), ("f/", "f"), ("/a/*", "a/b/c"), ("a", "a/b"), ("a/***", "a"), ("/", "a")]
        {
            assert!(!excluded(pattern, path, false), "{pattern} {path}");
        }
        assert!(excluded("d/", "x/d", true) && excluded("a/***", "a", true));
    }

    #[test]
    fn the_first_that_matches_decides() {
        let filter = |action, text| Filter::new(action, text).unwrap();
        let filters = Filters::new(vec![
            filter(FilterAction::Include, "*/"),
            filter(FilterAction::Include, "*.h5"),
            filter(FilterAction::Exclude, "*"),
        ]);
        assert!(!filters.is_excluded(b"a", true) && !filters.is_excluded(b"a/x.h5", false));
        assert!(filters.is_excluded(b"a/x.txt", false));
    }

    #[test]
    fn refusals() {
        for text in ["- x", "+ x", "! x", "", "a\nb", "[x"] {
            assert!(Filter::new(FilterAction::Exclude, text).is_err(), "{text:?}");
        }
    }
}
