//! Patterns of names and paths, matched as bytes with rsync's rules (rsync(1), PATTERN MATCHING RULES).
//!
//! `*` is any run of bytes but `/`, `**` any run, `?` one byte but `/`, `[...]` one byte of a set but `/`, and `\` keeps the next
//! character from meaning anything. What rsync takes and then never matches (a set without its end, an unknown class) is an
//! error here.

use burstfs_types::Code;

use crate::error::Fault;
use crate::lex::{Glyph, Text};

/// A pattern's longest text; a longer one could match no path.
const LENGTH_MAX: usize = 4_095;

/// The characters that make a text a pattern.
const WILD: [char; 3] = ['*', '?', '['];

/// Those that an escape keeps from meaning something.
const ESCAPED: [char; 8] = ['*', '?', '[', ']', '\\', '-', '!', '^'];

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Token {
    Byte(u8),
    /// One byte but `/`.
    Any,
    Set(Box<ByteSet>),
    /// `*`
    Star,
    /// `**`
    DoubleStar,
}

/// A set of bytes.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct ByteSet([u64; 4]);

impl ByteSet {
    fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte) / 64] |= 1 << (byte % 64);
    }

    fn has(&self, byte: u8) -> bool {
        self.0[usize::from(byte) / 64] & (1 << (byte % 64)) != 0
    }

    fn invert(&mut self) {
        self.0.iter_mut().for_each(|word| *word = !*word);
    }
}

/// A pattern, ready to be matched.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Pattern(Vec<Token>);

impl Pattern {
    /// Reads a pattern. In one without wild cards a `\` is a character like others.
    pub(crate) fn parse(text: &str) -> Result<Pattern, String> {
        if text.len() > LENGTH_MAX {
            return Err(format!("a pattern has at most {LENGTH_MAX} bytes; this one has {}", text.len()));
        }
        if !text.contains(WILD) {
            return Ok(Pattern(text.bytes().map(Token::Byte).collect()));
        }
        let mut tokens = Vec::new();
        let mut rest = text.as_bytes();
        while let [first, tail @ ..] = rest {
            rest = tail;
            let token = match first {
                b'\\' => {
                    let [escaped, tail @ ..] = rest else {
                        return Err("nothing follows the \"\\\" of the pattern".to_owned());
                    };
                    rest = tail;
                    Token::Byte(*escaped)
                }
                b'?' => Token::Any,
                b'[' => {
                    let (set, tail) = set(rest)?;
                    rest = tail;
                    Token::Set(Box::new(set))
                }
                b'*' => {
                    let stars = rest.iter().take_while(|byte| **byte == b'*').count();
                    rest = &rest[stars..];
                    if stars > 0 { Token::DoubleStar } else { Token::Star }
                }
                byte => Token::Byte(*byte),
            };
            tokens.push(token);
        }
        Ok(Pattern(tokens))
    }

    /// One that matches only the empty text.
    pub(crate) fn none() -> Pattern {
        Pattern(Vec::new())
    }

    /// Whether the pattern is all of `text`.
    ///
    /// Of several stars only the last can need to take more, since the part in front of it has matched as early as it can; but a
    /// star cannot take a `/`, so the last double star is kept beside it.
    pub(crate) fn matches(&self, text: &[u8]) -> bool {
        let tokens = self.0.as_slice();
        let (mut token, mut at) = (0, 0);
        // Where the pattern goes on behind the star, and what the star has taken so far.
        let (mut star, mut double_star) = (None, None);
        loop {
            match tokens.get(token) {
                Some(Token::Star) => {
                    token += 1;
                    star = Some((token, at));
                    continue;
                }
                Some(Token::DoubleStar) => {
                    token += 1;
                    double_star = Some((token, at));
                    star = None;
                    continue;
                }
                Some(one) if text.get(at).is_some_and(|byte| one.takes(*byte)) => {
                    (token, at) = (token + 1, at + 1);
                    continue;
                }
                None if at == text.len() => return true,
                Some(Token::Byte(_) | Token::Any | Token::Set(_)) | None => {}
            }
            if let Some((behind, taken)) = star
                && text.get(taken).is_some_and(|byte| *byte != b'/')
            {
                star = Some((behind, taken + 1));
                (token, at) = (behind, taken + 1);
            } else if let Some((behind, taken)) = double_star
                && taken < text.len()
            {
                star = None;
                double_star = Some((behind, taken + 1));
                (token, at) = (behind, taken + 1);
            } else {
                return false;
            }
        }
    }
}

impl Token {
    /// Whether a token that stands for one byte stands for this one.
    fn takes(&self, byte: u8) -> bool {
        match self {
            Token::Byte(own) => *own == byte,
            Token::Any => byte != b'/',
            Token::Set(set) => byte != b'/' && set.has(byte),
            Token::Star | Token::DoubleStar => false,
        }
    }
}

/// A set behind its `[`, and what follows its `]`.
fn set(text: &[u8]) -> Result<(ByteSet, &[u8]), String> {
    let is_inverted = matches!(text.first(), Some(b'!' | b'^'));
    let mut rest = if is_inverted { &text[1..] } else { text };
    let mut set = ByteSet::default();
    let mut previous = None;
    let mut is_first = true;
    loop {
        let (first, tail) = rest.split_first().ok_or("a \"[\" has no \"]\"")?;
        rest = tail;
        match first {
            b']' if !is_first => break,
            b'[' if rest.first() == Some(&b':') => {
                let end = rest.windows(2).position(|pair| pair == b":]");
                if let Some(end) = end.filter(|end| *end > 0) {
                    class(&rest[1..end], &mut set)?;
                    rest = &rest[end + 2..];
                    previous = None;
                } else {
                    set.insert(b'[');
                    previous = Some(b'[');
                }
            }
            b'-' if previous.is_some() && rest.first().is_some_and(|next| *next != b']') => {
                let (last, tail) = literal(rest)?;
                rest = tail;
                (previous.unwrap_or(last)..=last).for_each(|byte| set.insert(byte));
                previous = None;
            }
            b'\\' => {
                let (byte, tail) = rest.split_first().ok_or("nothing follows the \"\\\" of the pattern")?;
                rest = tail;
                set.insert(*byte);
                previous = Some(*byte);
            }
            byte => {
                set.insert(*byte);
                previous = Some(*byte);
            }
        }
        is_first = false;
    }
    if is_inverted {
        set.invert();
    }
    Ok((set, rest))
}

/// One byte, perhaps behind a `\`.
fn literal(text: &[u8]) -> Result<(u8, &[u8]), String> {
    match text {
        [b'\\', byte, tail @ ..] => Ok((*byte, tail)),
        [b'\\'] | [] => Err("a \"[\" has no \"]\"".to_owned()),
        [byte, tail @ ..] => Ok((*byte, tail)),
    }
}

/// Puts the bytes of a named class (of the C locale) in the set.
fn class(name: &[u8], set: &mut ByteSet) -> Result<(), String> {
    let is_in: fn(&u8) -> bool = match name {
        b"alnum" => u8::is_ascii_alphanumeric,
        b"alpha" => u8::is_ascii_alphabetic,
        b"blank" => |byte| matches!(byte, b' ' | b'\t'),
        b"cntrl" => u8::is_ascii_control,
        b"digit" => u8::is_ascii_digit,
        b"graph" => u8::is_ascii_graphic,
        b"lower" => u8::is_ascii_lowercase,
        b"print" => |byte| matches!(byte, b' '..=b'~'),
        b"punct" => u8::is_ascii_punctuation,
        b"space" => |byte| byte.is_ascii_whitespace() || *byte == 0x0b,
        b"upper" => u8::is_ascii_uppercase,
        b"xdigit" => u8::is_ascii_hexdigit,
        _ => return Err(format!("there is no class \"[:{}:]\"", name.escape_ascii())),
    };
    (0..=u8::MAX).filter(is_in).for_each(|byte| set.insert(byte));
    Ok(())
}

/// A directive's value as the text of a pattern: what stands behind the directive's `\` means nothing in the pattern either.
pub(crate) fn pattern_text(value: &[Glyph]) -> String {
    let is_wild = value.iter().any(|glyph| WILD.contains(&glyph.char));
    let mut text = String::new();
    for glyph in value {
        if is_wild && glyph.is_escaped && ESCAPED.contains(&glyph.char) {
            text.push('\\');
        }
        text.push(glyph.char);
    }
    text
}

/// Writes a pattern so that [`pattern_text`] gives the same again; `extra` are further characters to escape.
pub(crate) fn write_pattern(text: &str, extra: &str, into: &mut String) {
    let is_wild = text.contains(WILD);
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char == '\\' && is_wild {
            into.push(char);
            into.extend(chars.next());
        } else {
            if char == '\\' || extra.contains(char) {
                into.push('\\');
            }
            into.push(char);
        }
    }
}

/// A pattern's own error, at the value that it stands in.
pub(crate) fn bad_pattern(value: &Text, message: String) -> Fault {
    Fault::new(Code::BadValue, &value.span, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(text.as_bytes())
    }

    /// The definition, without any thought of time.
    fn slowly(tokens: &[Token], text: &[u8]) -> bool {
        match tokens {
            [] => text.is_empty(),
            [Token::Star, rest @ ..] => {
                slowly(rest, text) || (text.first().is_some_and(|byte| *byte != b'/') && slowly(tokens, &text[1..]))
            }
            [Token::DoubleStar, rest @ ..] => slowly(rest, text) || (!text.is_empty() && slowly(tokens, &text[1..])),
            [one, rest @ ..] => text.first().is_some_and(|byte| one.takes(*byte)) && slowly(rest, &text[1..]),
        }
    }

    #[test]
    fn wild_cards() {
        for (pattern, text) in [
            ("*.o", "a.o"),
            ("a*c*", "abcbc"),
            ("**/x", "a/b/x"),
            ("a**b*c", "a/b/bxc"),
            ("?", "x"),
            ("[a-c]x", "bx"),
            ("[!a-c]", "d"),
            ("[]x]", "]"),
            ("[a-]", "-"),
            (r"[a\-c]", "-"),
            ("[[:digit:]_]", "_"),
            ("[[:digit:]]", "7"),
            (r"\*x*", "*xy"),
            (r"a\b", r"a\b"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("*.o", "a/b.o"), ("?", "/"), ("[!a]", "/"), ("[a-c]", "d"), (r"[a\-c]", "b"), ("a*", "b"), ("*a", "ab")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
        for pattern in ["[a", "[[:foo:]]", "*\\", "[a\\", "[!"] {
            assert!(Pattern::parse(pattern).is_err(), "{pattern}");
        }
    }

    proptest! {
        #[test]
        fn as_the_definition_says(pattern in "[ab/*?]{0,9}", text in "[ab/]{0,9}") {
            let pattern = Pattern::parse(&pattern).unwrap();
            prop_assert_eq!(pattern.matches(text.as_bytes()), slowly(&pattern.0, text.as_bytes()));
        }
    }
}
