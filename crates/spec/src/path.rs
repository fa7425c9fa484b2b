//! Paths of a request, with variables that are replaced where their values are known.
//!
//! A source may be a pattern: `*`, `?` and `[...]` in it mean what they mean to a shell.
//!
//! Invariants: a path starts with `/`, or with a variable whose value does; an [`InstancePath`] has no `..`, before and
//! after replacement, so that it cannot leave the instance; no variable's value can add a component by stealth.

use std::fmt;

use burstfs_types::Code;
use serde::{Deserialize, Serialize};

use crate::error::{Fault, SpecError};
use crate::glob::Glob;
use crate::lex::{Glyph, Text};
use crate::nearest::nearest;
use crate::pattern::{pattern_text, write_pattern};

/// What separates the items of a directive, and the two sides of its short form.
pub(crate) const SEPARATORS: &str = "',: \t\n";

/// Linux's `PATH_MAX`, without its NUL.
const PATH_MAX: usize = 4_095;

/// What is replaced in a path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Variable {
    /// `%j`: the job's id.
    JobId,
    /// `%A`: the id of the job array.
    ArrayJobId,
    /// `%a`: the index in the job array.
    ArrayTaskId,
    /// `%u`: the user's name.
    User,
    /// `%x`: the job's name.
    JobName,
    /// `%d`: the job's working directory.
    WorkDir,
    /// `$USER`: the submitting user.
    EnvUser,
    /// `$HOME`: the submitting user's home directory.
    Home,
    /// `$SLURM_SUBMIT_DIR`: where the job was submitted.
    SubmitDir,
}

impl Variable {
    const PERCENT: [(char, Variable); 6] = [
        ('j', Variable::JobId),
        ('A', Variable::ArrayJobId),
        ('a', Variable::ArrayTaskId),
        ('u', Variable::User),
        ('x', Variable::JobName),
        ('d', Variable::WorkDir),
    ];
    const DOLLAR: [(&'static str, Variable); 3] =
        [("USER", Variable::EnvUser), ("HOME", Variable::Home), ("SLURM_SUBMIT_DIR", Variable::SubmitDir)];

    /// A whole path rather than a part of one component.
    fn is_path(self) -> bool {
        matches!(self, Variable::WorkDir | Variable::Home | Variable::SubmitDir)
    }
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((char, _)) = Variable::PERCENT.iter().find(|(_, variable)| variable == self) {
            return write!(f, "%{char}");
        }
        let name = Variable::DOLLAR.iter().find(|(_, variable)| variable == self).map_or("", |(name, _)| name);
        write!(f, "${name}")
    }
}

/// The values to replace variables with; what is not known yet is `None` and stays a variable.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Values {
    /// `%j`
    pub job_id: Option<String>,
    /// `%A`
    pub array_job_id: Option<String>,
    /// `%a`
    pub array_task_id: Option<String>,
    /// `%u`
    pub user: Option<String>,
    /// `%x`
    pub job_name: Option<String>,
    /// `%d`
    pub work_dir: Option<String>,
    /// `$USER`
    pub env_user: Option<String>,
    /// `$HOME`
    pub home: Option<String>,
    /// `$SLURM_SUBMIT_DIR`
    pub submit_dir: Option<String>,
}

impl Values {
    fn get(&self, variable: Variable) -> Option<&str> {
        let value = match variable {
            Variable::JobId => &self.job_id,
            Variable::ArrayJobId => &self.array_job_id,
            Variable::ArrayTaskId => &self.array_task_id,
            Variable::User => &self.user,
            Variable::JobName => &self.job_name,
            Variable::WorkDir => &self.work_dir,
            Variable::EnvUser => &self.env_user,
            Variable::Home => &self.home,
            Variable::SubmitDir => &self.submit_dir,
        };
        value.as_deref()
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Segment {
    Literal(String),
    Variable(Variable),
    /// `*`, `?` or a set in brackets, as in [`crate::pattern`].
    Wild(String),
}

/// A path as a sequence of literal text, variables and wild cards; no two literals stand side by side.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Template(Vec<Segment>);

/// Which end of a copy a path stands for; decides what is allowed in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Source,
    Destination,
}

impl Template {
    fn parse(text: &Text, end: End) -> Result<Template, Fault> {
        let mut template = Template(Vec::new());
        let mut rest = text.glyphs.as_slice();
        while let [first, tail @ ..] = rest {
            rest = tail;
            if first.is_special('%') {
                rest = template.push_percent(*first, rest)?;
            } else if first.is_special('$') {
                rest = template.push_dollar(*first, rest)?;
            } else if !first.is_escaped && matches!(first.char, '*' | '?' | '[') {
                rest = template.push_wild(*first, rest, end)?;
            } else {
                template.push_char(first.char);
            }
        }
        template.check().map_err(|message| Fault::new(Code::BadPath, &text.span, message))?;
        Ok(template)
    }

    fn push_percent<'a>(&mut self, percent: Glyph, rest: &'a [Glyph]) -> Result<&'a [Glyph], Fault> {
        let known = "%j %A %a %u %x %d and %% for the character itself";
        let [next, tail @ ..] = rest else {
            let message = format!("nothing follows the \"%\"; known are {known}");
            return Err(Fault::new(Code::BadPath, &(percent.start..percent.end), message));
        };
        if next.is_special('%') {
            self.push_char('%');
            return Ok(tail);
        }
        let variable = Variable::PERCENT.iter().find(|(char, _)| next.is_special(*char));
        let Some((_, variable)) = variable else {
            let message = format!("unknown variable \"%{}\"; known are {known}", next.char);
            return Err(Fault::new(Code::BadPath, &(percent.start..next.end), message));
        };
        self.0.push(Segment::Variable(*variable));
        Ok(tail)
    }

    fn push_dollar<'a>(&mut self, dollar: Glyph, rest: &'a [Glyph]) -> Result<&'a [Glyph], Fault> {
        let is_name = |glyph: &Glyph| !glyph.is_escaped && (glyph.char.is_ascii_alphanumeric() || glyph.char == '_');
        // A quote, of which only the gap is left, ends the name: `$HOME'x y'`.
        let starts = std::iter::once(dollar.end).chain(rest.iter().map(|glyph| glyph.end));
        let length =
            rest.iter().zip(starts).take_while(|(glyph, start)| is_name(glyph) && glyph.start == *start).count();
        let (name, tail) = rest.split_at(length);
        let name: String = name.iter().map(|glyph| glyph.char).collect();
        if let Some((_, variable)) = Variable::DOLLAR.iter().find(|(known, _)| *known == name) {
            self.0.push(Segment::Variable(*variable));
            return Ok(tail);
        }
        let hint = match nearest(&name, Variable::DOLLAR.iter().map(|(known, _)| *known)) {
            Some(near) => format!("did you mean \"${near}\"?"),
            None => "known are $USER, $HOME, $SLURM_SUBMIT_DIR, and \\$ for the character itself".to_owned(),
        };
        let end = rest[..length].last().map_or(dollar.end, |glyph| glyph.end);
        let message = format!("unknown variable \"${name}\"; {hint}");
        Err(Fault::new(Code::BadPath, &(dollar.start..end), message))
    }

    fn push_wild<'a>(&mut self, first: Glyph, rest: &'a [Glyph], end: End) -> Result<&'a [Glyph], Fault> {
        let fault = |message: String| Fault::new(Code::BadPath, &(first.start..first.end), message);
        let escape = format!("for the character itself write \"\\{}\"", first.char);
        if end == End::Destination {
            return Err(fault(format!("a destination is no pattern; {escape}")));
        }
        let length = if first.char == '[' {
            let is_end = |(at, glyph): &(usize, &Glyph)| {
                let is_first = *at == 0 || *at == 1 && matches!(rest[0].char, '!' | '^');
                glyph.char == ']' && !glyph.is_escaped && !is_first
            };
            let in_name = rest.iter().take_while(|glyph| glyph.char != '/');
            let end = in_name.enumerate().find(is_end).map(|(at, _)| at + 1);
            end.ok_or_else(|| fault(format!("a \"[\" has no \"]\" in its name; {escape}")))?
        } else {
            0
        };
        let (set, tail) = rest.split_at(length);
        self.0.push(Segment::Wild(pattern_text(&[&[first], set].concat())));
        Ok(tail)
    }

    fn push_char(&mut self, char: char) {
        match self.0.last_mut() {
            Some(Segment::Literal(text)) => text.push(char),
            _ => self.0.push(Segment::Literal(char.to_string())),
        }
    }

    fn push_text(&mut self, text: &str) {
        text.chars().for_each(|char| self.push_char(char));
    }

    fn check(&self) -> Result<(), String> {
        let is_absolute = match self.0.first() {
            Some(Segment::Literal(text)) => text.starts_with('/'),
            Some(Segment::Variable(variable)) => variable.is_path(),
            Some(Segment::Wild(_)) | None => false,
        };
        if !is_absolute {
            return Err("a path is absolute: it starts with \"/\", $HOME, $SLURM_SUBMIT_DIR or %d".to_owned());
        }
        let mut inner = self.0.iter().skip(1).filter_map(|segment| match segment {
            Segment::Variable(variable) if variable.is_path() => Some(variable),
            _ => None,
        });
        if let Some(variable) = inner.next() {
            return Err(format!("{variable} is a whole path, and can only stand first"));
        }
        let length: usize = self.0.iter().map(Segment::literal_len).sum();
        if length > PATH_MAX {
            return Err(format!("a path has at most {PATH_MAX} bytes; this one has {length}"));
        }
        Ok(())
    }

    fn bind(&self, values: &Values) -> Result<Template, String> {
        let mut bound = Template(Vec::new());
        for segment in &self.0 {
            match segment {
                Segment::Literal(text) => bound.push_text(text),
                Segment::Variable(variable) => match values.get(*variable) {
                    Some(value) => bound.push_text(check_value(*variable, value)?),
                    None => bound.0.push(segment.clone()),
                },
                Segment::Wild(_) => bound.0.push(segment.clone()),
            }
        }
        bound.check()?;
        Ok(bound)
    }

    fn variables(&self) -> impl Iterator<Item = Variable> + '_ {
        self.0.iter().filter_map(|segment| match segment {
            Segment::Variable(variable) => Some(*variable),
            Segment::Literal(_) | Segment::Wild(_) => None,
        })
    }

    fn is_pattern(&self) -> bool {
        self.0.iter().any(|segment| matches!(segment, Segment::Wild(_)))
    }

    fn resolved(&self) -> Result<&str, String> {
        match self.0.as_slice() {
            [Segment::Literal(text)] => Ok(text),
            _ => Err(match self.variables().next() {
                Some(variable) => no_value(variable),
                None => "a pattern is no path".to_owned(),
            }),
        }
    }

    /// The pattern that the path is, or the literal path as one.
    fn glob(&self) -> Result<Glob, String> {
        let mut text = String::new();
        for segment in &self.0 {
            match segment {
                Segment::Variable(variable) => return Err(no_value(*variable)),
                Segment::Wild(wild) => text.push_str(wild),
                Segment::Literal(literal) => {
                    for char in literal.chars() {
                        if "\\*?[".contains(char) {
                            text.push('\\');
                        }
                        text.push(char);
                    }
                }
            }
        }
        Glob::new(&text)
    }

    fn known_directory(&self) -> Option<&str> {
        match self.0.first()? {
            Segment::Literal(text) => text.rfind('/').map(|end| &text[..=end]),
            Segment::Variable(_) | Segment::Wild(_) => None,
        }
    }

    /// Written so that parsing gives the same again; `extra` are further characters to escape.
    fn write(&self, extra: &str) -> String {
        let mut text = String::new();
        let mut after_name = false;
        for segment in &self.0 {
            match segment {
                Segment::Variable(variable) => {
                    text.push_str(&variable.to_string());
                    after_name = Variable::DOLLAR.iter().any(|(_, dollar)| dollar == variable);
                }
                Segment::Wild(wild) => {
                    after_name = false;
                    write_pattern(wild, extra, &mut text);
                }
                Segment::Literal(literal) => {
                    for char in literal.chars() {
                        // What would lengthen the name of a variable in front is escaped to end it.
                        let would_lengthen = after_name && (char.is_ascii_alphanumeric() || char == '_');
                        after_name = false;
                        if char == '%' {
                            text.push('%');
                        } else if would_lengthen || "\\$*?[".contains(char) || extra.contains(char) {
                            text.push('\\');
                        }
                        text.push(char);
                    }
                }
            }
        }
        text
    }

    fn components(&self) -> Vec<String> {
        let mut components = Vec::new();
        for component in self.write("").split('/') {
            match component {
                "" | "." => {}
                ".." => {
                    components.pop();
                }
                name => components.push(name.to_owned()),
            }
        }
        components
    }

    fn ends_with_slash(&self) -> bool {
        matches!(self.0.last(), Some(Segment::Literal(text)) if text.ends_with('/'))
    }

    fn has_parent_component(&self) -> bool {
        self.write("").split('/').any(|component| component == "..")
    }
}

impl Segment {
    fn literal_len(&self) -> usize {
        match self {
            Segment::Literal(text) | Segment::Wild(text) => text.len(),
            Segment::Variable(_) => 0,
        }
    }
}

fn no_value(variable: Variable) -> String {
    format!("{variable} has no value in this job")
}

fn check_value(variable: Variable, value: &str) -> Result<&str, String> {
    if value.chars().any(char::is_control) {
        return Err(format!("the value of {variable} has a control character"));
    }
    if variable.is_path() {
        let absolute = value.starts_with('/');
        return if absolute {
            Ok(value)
        } else {
            Err(format!("the value of {variable}, \"{value}\", is not absolute"))
        };
    }
    if value.is_empty() || value.contains('/') {
        return Err(format!("the value of {variable}, \"{value}\", cannot be part of a path"));
    }
    Ok(value)
}

macro_rules! paths {
    ($($(#[$meta:meta])* $name:ident, $end:expr, |$template:ident| $check:expr;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Template);

        impl $name {
            pub(crate) fn parse(text: &Text, end: End) -> Result<$name, Fault> {
                let template = Template::parse(text, end)?;
                Self::checked(template).map_err(|message| Fault::new(Code::BadPath, &text.span, message))
            }

            fn checked($template: Template) -> Result<$name, String> {
                $check?;
                Ok($name($template))
            }

            /// Replaces the variables that `values` knows. Fails when a value cannot stand in a path, or makes the
            /// path one that would have been refused.
            pub fn bind(&self, values: &Values) -> Result<$name, SpecError> {
                let bound = self.0.bind(values).and_then(Self::checked);
                bound.map_err(|message| SpecError::new(Code::BadPath, format!("{self}: {message}")))
            }

            /// The path as a file system takes it. Fails when a variable has not been replaced, and for a pattern.
            pub fn resolved(&self) -> Result<&str, SpecError> {
                self.0.resolved().map_err(|why| SpecError::new(Code::BadPath, format!("{self}: {why}")))
            }

            /// Whether the path has wild cards.
            pub fn is_pattern(&self) -> bool {
                self.0.is_pattern()
            }

            /// What the path matches. Fails when a variable has not been replaced.
            pub fn glob(&self) -> Result<Glob, SpecError> {
                self.0.glob().map_err(|why| SpecError::new(Code::BadPath, format!("{self}: {why}")))
            }

            /// The variables that have not been replaced.
            pub fn variables(&self) -> impl Iterator<Item = Variable> + '_ {
                self.0.variables()
            }

            /// The directories of the path as far as no variable decides: for `/lus/me/run-%j/x` it is `/lus/me/`.
            pub fn known_directory(&self) -> Option<&str> {
                self.0.known_directory()
            }

            /// Ends with `/`: as a source, its contents; as a destination, a directory.
            pub fn ends_with_slash(&self) -> bool {
                self.0.ends_with_slash()
            }

            /// As it is written within a directive.
            pub(crate) fn to_directive(&self) -> String {
                self.0.write(SEPARATORS)
            }

            /// Its components without variables replaced, for comparison.
            pub(crate) fn components(&self) -> Vec<String> {
                self.0.components()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0.write(""))
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<$name, String> {
                let parsed = Text::from_canonical(&text).and_then(|text| $name::parse(&text, $end));
                parsed.map_err(|fault| format!("{text:?}: {}", fault.message))
            }
        }

        impl From<$name> for String {
            fn from(path: $name) -> String {
                path.to_string()
            }
        }
    )*};
}

paths! {
    /// A path of the persistent file systems, as the user sees them on every node.
    PersistentPath, End::Source, |template| Ok::<(), String>(());

    /// A path within the instance, written from its root: `/in` is what the job finds at `$BURSTFS/in`.
    InstancePath, End::Source, |template| if template.has_parent_component() {
        Err("a path on the instance's side has no \"..\": it cannot leave the instance".to_owned())
    } else if !matches!(template.0.first(), Some(Segment::Literal(_))) {
        Err("a path on the instance's side starts with \"/\", the root of the instance".to_owned())
    } else {
        Ok(())
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn persistent(text: &str) -> Result<PersistentPath, Fault> {
        PersistentPath::parse(&Text::from_canonical(text)?, End::Source)
    }

    fn instance(text: &str) -> Result<InstancePath, Fault> {
        InstancePath::parse(&Text::from_canonical(text)?, End::Destination)
    }

    fn values() -> Values {
        Values {
            job_id: Some("42".to_owned()),
            job_name: Some("my job".to_owned()),
            user: Some("alice".to_owned()),
            home: Some("/home/alice".to_owned()),
            ..Values::default()
        }
    }

    #[test]
    fn replaces_what_is_known() {
        let path = persistent("$HOME/run-%j/%x%%/%a").unwrap();
        let bound = path.bind(&values()).unwrap();
        assert_eq!(bound.to_string(), "/home/alice/run-42/my job%%/%a");
        assert!(bound.resolved().unwrap_err().message.contains("%a has no value"));
        let all = Values { array_task_id: Some("7".to_owned()), ..values() };
        assert_eq!(path.bind(&all).unwrap().resolved(), Ok("/home/alice/run-42/my job%/7"));
        assert_eq!(path.known_directory(), None);
        assert_eq!(bound.known_directory(), Some("/home/alice/run-42/my job%/"));
        assert_eq!(bound.variables().collect::<Vec<_>>(), [Variable::ArrayTaskId]);
    }

    #[test]
    fn refuses() {
        for (text, code, marked) in [
            ("lus/me", Code::BadPath, "lus/me"),
            ("~/x", Code::BadPath, "~/x"),
            ("%j/x", Code::BadPath, "%j/x"),
            ("$USER/x", Code::BadPath, "$USER/x"),
            ("/x/%z", Code::BadPath, "%z"),
            ("/x/%", Code::BadPath, "%"),
            ("/x/$PATH/y", Code::BadPath, "$PATH"),
            ("/x/${USER}", Code::BadPath, "$"),
            ("/x/$USERS", Code::BadPath, "$USERS"),
            ("/x/$HOME", Code::BadPath, "/x/$HOME"),
            ("/x/[ab", Code::BadPath, "["),
            ("/x/[a/b]", Code::BadPath, "["),
        ] {
            let fault = persistent(text).unwrap_err();
            assert_eq!((fault.code, &text[fault.mark]), (code, marked), "{text}");
        }
        assert_eq!(persistent(r"/x/\*\$\[").unwrap().resolved(), Ok("/x/*$["));
        assert!(persistent(&format!("/{}", "x".repeat(PATH_MAX))).is_err());
        assert!(persistent("/lus/../x").is_ok());
    }

    #[test]
    fn patterns() {
        for text in ["/x/*.dat", "/x/a?", r"/%j/[a\]b]*/", "/x[]a]", "/x[!]a]y", r"/x/\*[a,\-]"] {
            let path = persistent(text).unwrap();
            assert!(path.is_pattern(), "{text}");
            assert_eq!(path.to_string(), text);
            assert!(path.resolved().is_err());
        }
        let bound = persistent(r"/lus/%j/\*/x*/").unwrap().bind(&values()).unwrap();
        let glob = bound.glob().unwrap();
        assert_eq!((glob.base(), glob.is_contents(), glob.names().len()), ("/lus/42/*", true, 1));
        assert!(persistent("/x/*/../y").unwrap().glob().is_err());
        assert!(!persistent(r"/x/\*\?\[").unwrap().is_pattern());
    }

    #[test]
    fn nothing_leaves_the_instance() {
        for text in ["/..", "/../x", "/x/../y", "/x/..", "$HOME/x", "%d", "/x*"] {
            assert_eq!(instance(text).unwrap_err().code, Code::BadPath, "{text}");
        }
        for value in ["../..", "a/b", "", "x\n"] {
            let values = Values { job_name: Some(value.to_owned()), ..Values::default() };
            assert!(instance("/in/%x").unwrap().bind(&values).is_err(), "{value:?}");
        }
        let dots = Values { job_name: Some("..".to_owned()), user: Some(".".to_owned()), ..Values::default() };
        assert!(instance("/in/%x").unwrap().bind(&dots).is_err());
        assert!(instance("/in/%u%u").unwrap().bind(&dots).is_err());
        assert_eq!(instance("/in/a%x").unwrap().bind(&dots).unwrap().resolved(), Ok("/in/a.."));
        let relative = Values { home: Some("x".to_owned()), ..Values::default() };
        assert!(persistent("$HOME/x").unwrap().bind(&relative).is_err());
    }
}
