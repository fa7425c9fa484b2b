//! What is wrong with a request, and where.

use std::ops::Range;

use burstfs_types::{Code, Failure};
use thiserror::Error;

/// The most characters of a directive that [`SpecError::render`] shows around the mark.
const SHOWN_MAX: usize = 96;

/// A request that cannot be honoured: what, and the place in the directive if it came from one.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{code}: {message}")]
pub struct SpecError {
    /// What kind.
    pub code: Code,
    /// One line, without the code.
    pub message: String,
    /// Where; `None` for an error that no single directive has, and for one found in JSON.
    pub place: Option<Place>,
}

/// A place in a directive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The directive as it was given.
    pub directive: String,
    /// The bytes of it to mark; both ends lie on character boundaries.
    pub mark: Range<usize>,
}

impl SpecError {
    /// An error without a place.
    pub fn new(code: Code, message: impl Into<String>) -> SpecError {
        SpecError { code, message: message.into(), place: None }
    }

    /// The lines to show: the message, and, when there is a place, the directive and a line that marks it.
    pub fn render(&self) -> Vec<String> {
        let mut lines = vec![format!("burstfs: {self}")];
        if let Some(place) = &self.place {
            lines.extend(place.render());
        }
        lines
    }

    /// The error as it is recorded and sent.
    pub fn failure(&self) -> Failure {
        Failure::new(self.code, self.message.clone())
    }
}

impl Place {
    /// A control character would break the line, so each is shown as a blank.
    fn render(&self) -> [String; 2] {
        let shown: Vec<char> = self.directive.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let column = |byte: usize| self.directive.get(..byte).map_or(shown.len(), |head| head.chars().count());
        let (from, to) = (column(self.mark.start), column(self.mark.end));
        let first = if shown.len() <= SHOWN_MAX { 0 } else { from.saturating_sub(SHOWN_MAX / 3) };
        let last = shown.len().min(first + SHOWN_MAX);
        let before = if first > 0 { "..." } else { "" };
        let after = if last < shown.len() { "..." } else { "" };
        let text: String = shown.get(first..last).unwrap_or_default().iter().collect();
        let head = format!("  --burstfs=\"{before}");
        let indent = " ".repeat(head.len() + from - first);
        let marks = "^".repeat(to.min(last).saturating_sub(from).max(1));
        [format!("{head}{text}{after}\""), format!("{indent}{marks}")]
    }
}

/// An error on its way up through the parser, which knows the bytes but not yet the directive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) mark: Range<usize>,
}

impl Fault {
    pub(crate) fn new(code: Code, mark: &Range<usize>, message: impl Into<String>) -> Fault {
        Fault { code, message: message.into(), mark: mark.clone() }
    }

    pub(crate) fn in_directive(self, directive: &str) -> SpecError {
        let place = Place { directive: directive.to_owned(), mark: self.mark };
        SpecError { code: self.code, message: self.message, place: Some(place) }
    }

    /// For text that is no directive: the place would mean nothing to the reader.
    pub(crate) fn without_place(self) -> SpecError {
        SpecError { code: self.code, message: self.message, place: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(directive: &str, mark: Range<usize>) -> SpecError {
        Fault::new(Code::UnknownKey, &mark, "unknown key").in_directive(directive)
    }

    #[test]
    fn marks_the_place() {
        let lines = error("capcity=4TiB layout=auto", 0..7).render();
        assert_eq!(lines[0], "burstfs: E102: unknown key");
        assert_eq!(lines[1], "  --burstfs=\"capcity=4TiB layout=auto\"");
        assert_eq!(lines[2], "             ^^^^^^^");
    }

    #[test]
    fn counts_characters_not_bytes_and_marks_at_least_one() {
        let lines = error("ä\tö=1", 3..5).render();
        assert_eq!(lines[1], "  --burstfs=\"ä ö=1\"");
        assert_eq!(lines[2], "               ^");
        assert!(error("", 0..0).render()[2].ends_with('^'));
    }

    #[test]
    fn shows_a_window_of_a_long_directive() {
        let directive = format!("{}bad=1 {}", "x".repeat(500), "y".repeat(500));
        let lines = error(&directive, 500..503).render();
        assert!(lines[1].len() < 130, "{}", lines[1]);
        let column = lines[2].find('^').unwrap();
        assert_eq!(&lines[1][column..column + 3], "bad");
    }
}
