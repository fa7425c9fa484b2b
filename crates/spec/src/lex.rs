//! A directive's characters, items, keys and values.
//!
//! `\` escapes one character, `'...'` quotes; both keep a separator, `=` and `:` from meaning anything. Only `\` keeps
//! `%`, `$` and the characters of patterns from meaning something in a path, so that a quoted path may have variables.

use std::ops::Range;

use burstfs_types::Code;

use crate::error::Fault;

/// One character of a value with its place in the directive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Glyph {
    pub(crate) char: char,
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Behind a `\`.
    pub(crate) is_escaped: bool,
    /// Behind a `\` or within quotes.
    pub(crate) is_guarded: bool,
}

impl Glyph {
    /// The character with its meaning in a path.
    pub(crate) fn is_special(self, char: char) -> bool {
        self.char == char && !self.is_escaped
    }
}

/// A part of a directive, decoded; the span covers its quotes and escapes too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Text {
    pub(crate) glyphs: Vec<Glyph>,
    pub(crate) span: Range<usize>,
}

impl Text {
    /// All of `text`, where only `\` has a meaning: how paths are written in JSON.
    pub(crate) fn from_canonical(text: &str) -> Result<Text, Fault> {
        Ok(Text { glyphs: decode(text, false)?, span: 0..text.len() })
    }

    pub(crate) fn plain(&self) -> String {
        self.glyphs.iter().map(|glyph| glyph.char).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.glyphs.is_empty()
    }

    /// The two sides of each unguarded `separator`.
    pub(crate) fn split(&self, separator: char) -> Vec<Text> {
        let (mut parts, mut start) = (Vec::new(), self.span.start);
        let mut glyphs = Vec::new();
        for glyph in &self.glyphs {
            if glyph.char == separator && !glyph.is_guarded {
                parts.push(Text { glyphs: std::mem::take(&mut glyphs), span: start..glyph.start });
                start = glyph.end;
            } else {
                glyphs.push(*glyph);
            }
        }
        parts.push(Text { glyphs, span: start..self.span.end });
        parts
    }
}

/// One item: a bare word, or a key with its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Item {
    Word(Text),
    Pair { key: Text, value: Text },
}

/// Splits a directive into its items; at least one. Empty values are refused here.
pub(crate) fn items(directive: &str) -> Result<Vec<Item>, Fault> {
    let glyphs = decode(directive, true)?;
    let trimmed = directive.trim_matches(|c: char| c.is_ascii_whitespace());
    if trimmed.is_empty() {
        return Err(Fault::new(Code::BadSyntax, &(0..directive.len()), "the directive is empty"));
    }
    let start = directive.len() - directive.trim_start_matches(|c: char| c.is_ascii_whitespace()).len();
    // A blank at the very end may be an escaped one, which trimming must not cut off.
    let escaped_end = glyphs.iter().rev().find(|g| g.is_guarded).map_or(0, |g| g.end);
    let end = (start + trimmed.len()).max(escaped_end);
    let inner: Vec<Glyph> = glyphs.into_iter().filter(|g| g.start >= start && g.end <= end).collect();
    let is_blank = |glyph: &Glyph| glyph.char.is_ascii_whitespace() && !glyph.is_guarded;
    let by_space = inner.iter().any(is_blank);
    let mut whole = Text { glyphs: inner, span: start..end };
    if by_space {
        for glyph in whole.glyphs.iter_mut().filter(|glyph| is_blank(glyph)) {
            glyph.char = ' ';
        }
    }
    let parts = whole.split(if by_space { ' ' } else { ',' });
    parts.into_iter().filter(|part| !(by_space && part.span.is_empty())).map(item).collect()
}

fn item(text: Text) -> Result<Item, Fault> {
    if text.is_empty() {
        return Err(Fault::new(Code::BadSyntax, &text.span, "an item is empty"));
    }
    let Some(at) = text.glyphs.iter().position(|glyph| glyph.char == '=' && !glyph.is_guarded) else {
        return Ok(Item::Word(text));
    };
    let equals = text.glyphs[at];
    let key = Text { glyphs: text.glyphs[..at].to_vec(), span: text.span.start..equals.start };
    let value = Text { glyphs: text.glyphs[at + 1..].to_vec(), span: equals.end..text.span.end };
    if key.is_empty() {
        return Err(Fault::new(Code::BadSyntax, &text.span, "there is no key before \"=\""));
    }
    if value.is_empty() {
        let message = format!("\"{}\" has an empty value", key.plain());
        return Err(Fault::new(Code::BadValue, &text.span, message));
    }
    Ok(Item::Pair { key, value })
}

fn decode(text: &str, has_quotes: bool) -> Result<Vec<Glyph>, Fault> {
    let mut glyphs = Vec::new();
    let mut quote_start = None;
    let mut chars = text.char_indices();
    while let Some((start, char)) = chars.next() {
        let (char, end, is_escaped) = match char {
            '\\' => {
                let Some((at, next)) = chars.next() else {
                    return Err(Fault::new(Code::BadSyntax, &(start..text.len()), "nothing follows the \"\\\""));
                };
                (next, at + next.len_utf8(), true)
            }
            '\'' if has_quotes => {
                quote_start = if quote_start.is_some() { None } else { Some(start) };
                continue;
            }
            plain => (plain, start + plain.len_utf8(), false),
        };
        let is_guarded = is_escaped || quote_start.is_some();
        if char.is_control() && (is_guarded || !char.is_ascii_whitespace()) {
            return Err(Fault::new(Code::BadSyntax, &(start..end), "a control character"));
        }
        glyphs.push(Glyph { char, start, end, is_escaped, is_guarded });
    }
    match quote_start {
        Some(start) => Err(Fault::new(Code::BadSyntax, &(start..text.len()), "the quote is not closed")),
        None => Ok(glyphs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(directive: &str) -> Vec<(String, Option<String>)> {
        let plain = |item: Item| match item {
            Item::Word(word) => (word.plain(), None),
            Item::Pair { key, value } => (key.plain(), Some(value.plain())),
        };
        items(directive).unwrap().into_iter().map(plain).collect()
    }

    fn pair(key: &str, value: &str) -> (String, Option<String>) {
        (key.to_owned(), Some(value.to_owned()))
    }

    #[test]
    fn commas_separate_only_without_white_space() {
        assert_eq!(words("a=1,b=2"), [pair("a", "1"), pair("b", "2")]);
        assert_eq!(words("a=1,2 b=3"), [pair("a", "1,2"), pair("b", "3")]);
        assert_eq!(words(" \ta=1,b=2\n"), [pair("a", "1"), pair("b", "2")]);
        assert_eq!(words("a=1 \t\n  b=2"), [pair("a", "1"), pair("b", "2")]);
    }

    #[test]
    fn quotes_and_escapes_guard() {
        assert_eq!(words("a='1 2',b=3"), [pair("a", "1 2"), pair("b", "3")]);
        assert_eq!(words(r"a=1\ 2,b=3\,4"), [pair("a", "1 2"), pair("b", "3,4")]);
        assert_eq!(words(r"a=\'x\\"), [pair("a", r"'x\")]);
        assert_eq!(words("a=x'y z'w b=c"), [pair("a", "xy zw"), pair("b", "c")]);
        assert_eq!(words(r"a=1\ "), [pair("a", "1 ")]);
        assert_eq!(words("a=1' '"), [pair("a", "1 ")]);
        assert_eq!(words("a=b=c"), [pair("a", "b=c")]);
    }

    #[test]
    fn refusals_mark_the_place() {
        for (directive, code, mark) in [
            ("", Code::BadSyntax, 0..0),
            ("  ", Code::BadSyntax, 0..2),
            ("a=1,,b=2", Code::BadSyntax, 4..4),
            ("a=1,", Code::BadSyntax, 4..4),
            ("''", Code::BadSyntax, 0..2),
            ("a=", Code::BadValue, 0..2),
            ("x=1 a=''", Code::BadValue, 4..8),
            ("=1", Code::BadSyntax, 0..2),
            ("a='x", Code::BadSyntax, 2..4),
            ("a=x\\", Code::BadSyntax, 3..4),
            ("a=x\u{7}", Code::BadSyntax, 3..4),
            ("a='x\ny'", Code::BadSyntax, 4..5),
        ] {
            let fault = items(directive).unwrap_err();
            assert_eq!((fault.code, fault.mark), (code, mark), "{directive:?}");
        }
    }
}
