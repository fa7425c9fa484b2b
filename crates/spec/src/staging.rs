//! What is copied in before the job, and out after it.

use std::fmt;

use burstfs_types::Code;
use serde::{Deserialize, Serialize};

use crate::create::unknown_key;
use crate::duration::TimeSpan;
use crate::error::{Fault, SpecError};
use crate::filter::{Filter, FilterAction, Filters};
use crate::lex::Text;
use crate::path::{End, InstancePath, PersistentPath};
use crate::rate::Rate;
use crate::when::{DrainDeadline, DrainWhen};
use crate::words::{Atomic, DrainOn, DrainOnError, EntryType, StageInOnError, StageInWhen, Update, Verify, Word, list};

/// Something of a file, beside its bytes, that a copy can have in common with the source.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preserve {
    /// Permission bits.
    Mode,
    /// Modification times.
    Times,
    /// Owner and group.
    Owner,
    /// Access control lists.
    Acl,
    /// Extended attributes.
    Xattr,
    /// Symbolic links as links.
    Symlinks,
    /// Several names of one file.
    Hardlinks,
    /// Holes.
    Sparse,
}

impl Preserve {
    /// All of them, in the order of the set.
    pub const ALL: [Preserve; 8] = [
        Preserve::Mode,
        Preserve::Times,
        Preserve::Owner,
        Preserve::Acl,
        Preserve::Xattr,
        Preserve::Symlinks,
        Preserve::Hardlinks,
        Preserve::Sparse,
    ];
    const WORDS: [&'static str; 8] = ["mode", "times", "owner", "acl", "xattr", "symlinks", "hardlinks", "sparse"];
}

/// What of a file is preserved: a set of [`Preserve`]. The default is all, where what could not be preserved is
/// counted and named.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "Vec<Preserve>", into = "Vec<Preserve>")]
pub struct PreserveSet(u8);

impl PreserveSet {
    /// Everything.
    pub const ALL: PreserveSet = PreserveSet(u8::MAX);

    /// Whether `what` is to be preserved.
    pub fn has(self, what: Preserve) -> bool {
        self.0 & (1 << what as u8) != 0
    }

    /// The members, in order.
    pub fn iter(self) -> impl Iterator<Item = Preserve> {
        Preserve::ALL.into_iter().filter(move |what| self.has(*what))
    }

    fn insert(&mut self, what: Preserve) -> bool {
        let is_new = !self.has(what);
        self.0 |= 1 << what as u8;
        is_new
    }

    fn parse(text: &Text) -> Result<PreserveSet, Fault> {
        if text.plain() == "all" {
            return Ok(PreserveSet::ALL);
        }
        let mut set = PreserveSet(0);
        // A comma within quotes still separates: in a directive without white space it has to be quoted.
        let plain = text.plain();
        for word in plain.split(',') {
            let Some(at) = Preserve::WORDS.iter().position(|known| *known == word) else {
                let known = list(&Preserve::WORDS);
                let message = format!("\"{word}\" cannot be preserved; say all, or some of {known}");
                return Err(Fault::new(Code::BadValue, &text.span, message));
            };
            if !set.insert(Preserve::ALL[at]) {
                return Err(Fault::new(Code::BadValue, &text.span, format!("\"{word}\" stands twice in preserve")));
            }
        }
        Ok(set)
    }
}

impl Default for PreserveSet {
    fn default() -> PreserveSet {
        PreserveSet::ALL
    }
}

impl fmt::Display for PreserveSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == PreserveSet::ALL {
            return f.write_str("all");
        }
        let words: Vec<&str> = self.iter().map(|what| Preserve::WORDS[what as usize]).collect();
        f.write_str(&words.join(","))
    }
}

impl TryFrom<Vec<Preserve>> for PreserveSet {
    type Error = String;

    fn try_from(members: Vec<Preserve>) -> Result<PreserveSet, String> {
        let mut set = PreserveSet(0);
        for what in members {
            if !set.insert(what) {
                return Err(format!("{what:?} stands twice in preserve"));
            }
        }
        if set.0 == 0 { Err("preserve is empty".to_owned()) } else { Ok(set) }
    }
}

impl From<PreserveSet> for Vec<Preserve> {
    fn from(set: PreserveSet) -> Vec<Preserve> {
        set.iter().collect()
    }
}

/// One copy into the instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageIn {
    /// What is copied.
    pub source: PersistentPath,
    /// Where it goes; see [`copy_target`].
    pub destination: InstancePath,
    /// What the source must be.
    #[serde(rename = "type")]
    pub entry_type: EntryType,
    /// When.
    pub when: StageInWhen,
    /// What a failure does.
    pub on_error: StageInOnError,
    /// What is preserved.
    pub preserve: PreserveSet,
    /// How the copy is proved.
    pub verify: Verify,
    /// Which files are copied.
    pub update: Update,
    /// With `type=list`: the file that names what is copied, relative to the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<PersistentPath>,
    /// What is left out.
    #[serde(default, skip_serializing_if = "Filters::is_empty")]
    pub filters: Filters,
    /// How fast, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bwlimit: Option<Rate>,
}

/// One copy out of the instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageOut {
    /// What is copied.
    pub source: InstancePath,
    /// Where it goes; see [`copy_target`].
    pub destination: PersistentPath,
    /// What the source must be.
    #[serde(rename = "type")]
    pub entry_type: EntryType,
    /// When.
    pub when: DrainWhen,
    /// How long before the time limit the drain begins.
    pub deadline: DrainDeadline,
    /// After which ends of the job.
    pub on: DrainOn,
    /// What a failure does.
    pub on_error: DrainOnError,
    /// What is preserved.
    pub preserve: PreserveSet,
    /// How the copy is proved.
    pub verify: Verify,
    /// What appears at once.
    pub atomic: Atomic,
    /// Which files are copied.
    pub update: Update,
    /// With `type=list`: the file that names what is copied, relative to the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<PersistentPath>,
    /// What is left out.
    #[serde(default, skip_serializing_if = "Filters::is_empty")]
    pub filters: Filters,
    /// How fast, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bwlimit: Option<Rate>,
    /// How long what could not be drained is kept on the nodes.
    pub retain: TimeSpan,
}

/// Where the copy of `source` goes, by rsync's rules: a source that ends with `/` is copied as `destination` itself; a
/// directory goes into `destination` under its own name, and so does a file when `destination` ends with `/`; else a
/// file becomes `destination`.
pub fn copy_target(source: &str, destination: &str, is_directory: bool) -> String {
    let base = destination.trim_end_matches('/');
    let is_contents = source.ends_with('/');
    let is_named = is_directory || destination.ends_with('/');
    match source.trim_end_matches('/').rsplit('/').next() {
        Some(name) if !is_contents && is_named && !name.is_empty() => format!("{base}/{name}"),
        _ if base.is_empty() => "/".to_owned(),
        _ => base.to_owned(),
    }
}

const COMMON_KEYS: [&str; 12] = [
    "source",
    "destination",
    "type",
    "list",
    "include",
    "exclude",
    "when",
    "on_error",
    "preserve",
    "verify",
    "update",
    "bwlimit",
];
const OUT_KEYS: [&str; 4] = ["on", "atomic", "deadline", "retain"];

/// The items of one stage directive until all have been read.
pub(crate) struct Draft<'a> {
    is_out: bool,
    items: Vec<(&'a Text, &'a Text)>,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(is_out: bool) -> Draft<'a> {
        Draft { is_out, items: Vec::new() }
    }

    fn verb(&self) -> &'static str {
        if self.is_out { "stage_out" } else { "stage_in" }
    }

    /// Takes one item; its value is read when the directive is complete.
    pub(crate) fn push(&mut self, key: &'a Text, value: &'a Text) -> Result<(), Fault> {
        let name = key.plain();
        let name = name.as_str();
        let is_out_only = OUT_KEYS.contains(&name);
        let is_built = COMMON_KEYS.contains(&name) || (self.is_out && OUT_KEYS.contains(&name));
        if !is_built {
            if is_out_only {
                let message = format!("unknown key \"{name}\" of stage_in; only stage_out has it");
                return Err(Fault::new(Code::UnknownKey, &key.span, message));
            }
            let out = if self.is_out { OUT_KEYS.as_slice() } else { &[] };
            return Err(unknown_key(key, self.verb(), COMMON_KEYS.into_iter().chain(out.iter().copied())));
        }
        let may_repeat = FilterAction::of_key(name).is_some();
        if !may_repeat && self.items.iter().any(|(earlier, _)| earlier.plain() == name) {
            let message = format!("\"{name}\" stands twice in one directive");
            return Err(Fault::new(Code::DuplicateKey, &key.span, message));
        }
        self.items.push((key, value));
        Ok(())
    }

    fn find(&self, key: &str) -> Option<&'a Text> {
        self.items.iter().find(|(name, _)| name.plain() == key).map(|(_, value)| *value)
    }

    fn required(&self, key: &str, verb_mark: &Text) -> Result<&'a Text, Fault> {
        let missing = || {
            let message = format!("{} needs {key}=", self.verb());
            Fault::new(Code::BadSyntax, &verb_mark.span, message)
        };
        self.find(key).ok_or_else(missing)
    }

    fn word<T: Word + Default>(&self, key: &str) -> Result<T, Fault> {
        self.find(key).map_or_else(|| Ok(T::default()), |value| T::parse(key, value))
    }

    fn preserve(&self) -> Result<PreserveSet, Fault> {
        self.find("preserve").map_or(Ok(PreserveSet::ALL), PreserveSet::parse)
    }

    /// `type`, checked against what else says what the source is. `list=` alone says `type=list`.
    fn entry_type(&self, source_ends_with_slash: bool) -> Result<EntryType, Fault> {
        let conflict = |value: &Text, message: &str| Err(Fault::new(Code::Conflict, &value.span, message));
        let entry_type: EntryType = self.word("type")?;
        match (self.find("type"), self.find("list"), entry_type) {
            (None, Some(_), _) => Ok(EntryType::List),
            (Some(value), None, EntryType::List) => {
                conflict(value, "type=list needs list=FILE, which names what is copied")
            }
            (Some(_), Some(list), other) if other != EntryType::List => {
                conflict(list, &format!("list= goes with type=list, not with type={other}"))
            }
            (Some(value), _, EntryType::File) if source_ends_with_slash => {
                conflict(value, "type=file, but the source ends with \"/\": the contents of a directory")
            }
            _ => Ok(entry_type),
        }
    }

    fn list(&self, is_pattern: bool) -> Result<Option<PersistentPath>, Fault> {
        let Some(value) = self.find("list") else { return Ok(None) };
        if is_pattern {
            let message = "list= names what is below one source; this source is a pattern";
            return Err(Fault::new(Code::Conflict, &value.span, message));
        }
        PersistentPath::parse(value, End::Destination).map(Some)
    }

    fn filters(&self) -> Result<Filters, Fault> {
        let filters = self.items.iter().filter_map(|(key, value)| Some((FilterAction::of_key(&key.plain())?, value)));
        Ok(Filters::new(filters.map(|(action, value)| Filter::parse(action, value)).collect::<Result<_, _>>()?))
    }

    /// `atomic` of a stage_out; only one source directory can appear at once.
    fn atomic(&self, is_pattern: bool) -> Result<Atomic, Fault> {
        let atomic = self.word("atomic")?;
        match self.find("atomic") {
            Some(value) if atomic == Atomic::Dir && (is_pattern || self.find("list").is_some()) => {
                let message = "atomic=dir is for one directory; a pattern or a list is copied name by name";
                Err(Fault::new(Code::Conflict, &value.span, message))
            }
            _ => Ok(atomic),
        }
    }

    fn bwlimit(&self) -> Result<Option<Rate>, Fault> {
        self.find("bwlimit").map(Rate::parse).transpose()
    }

    /// `verb` is what to mark when something is missing.
    pub(crate) fn stage_in(&self, verb: &Text) -> Result<StageIn, Fault> {
        let source = PersistentPath::parse(self.required("source", verb)?, End::Source)?;
        let destination = InstancePath::parse(self.required("destination", verb)?, End::Destination)?;
        let (when, on_error) = (self.word("when")?, self.word("on_error")?);
        if let Some(value) = self.find("on_error").filter(|_| !starts_when_it_is_known(when, on_error)) {
            return Err(Fault::new(Code::Conflict, &value.span, STARTED_ALREADY));
        }
        Ok(StageIn {
            entry_type: self.entry_type(source.ends_with_slash())?,
            list: self.list(source.is_pattern())?,
            source,
            destination,
            when,
            on_error,
            preserve: self.preserve()?,
            verify: self.word("verify")?,
            update: self.word("update")?,
            filters: self.filters()?,
            bwlimit: self.bwlimit()?,
        })
    }

    /// As [`Draft::stage_in`].
    pub(crate) fn stage_out(&self, verb: &Text) -> Result<StageOut, Fault> {
        let source = InstancePath::parse(self.required("source", verb)?, End::Source)?;
        let destination = PersistentPath::parse(self.required("destination", verb)?, End::Destination)?;
        let when = self.find("when").map_or(Ok(DrainWhen::default()), DrainWhen::parse)?;
        let atomic = self.atomic(source.is_pattern())?;
        if let Some(value) = self.find("atomic").filter(|_| !appears_when_it_can(atomic, when)) {
            return Err(Fault::new(Code::Conflict, &value.span, NOT_AT_ONCE));
        }
        let on = self.word("on")?;
        if let Some(value) = self.find("on").filter(|_| !is_known_when_drained(on, when)) {
            return Err(Fault::new(Code::Conflict, &value.span, NOT_KNOWN));
        }
        Ok(StageOut {
            entry_type: self.entry_type(source.ends_with_slash())?,
            list: self.list(source.is_pattern())?,
            atomic,
            source,
            destination,
            when,
            deadline: self.find("deadline").map_or(Ok(DrainDeadline::default()), DrainDeadline::parse)?,
            on,
            on_error: self.word("on_error")?,
            preserve: self.preserve()?,
            verify: self.word("verify")?,
            update: self.word("update")?,
            filters: self.filters()?,
            bwlimit: self.bwlimit()?,
            retain: self.find("retain").map_or(Ok(TimeSpan::DAY), |value| TimeSpan::parse("retain", value))?,
        })
    }

    /// Where to mark an error of the destination.
    pub(crate) fn destination_span(&self) -> std::ops::Range<usize> {
        self.find("destination").map_or(0..0, |value| value.span.clone())
    }
}

const STARTED_ALREADY: &str = "with when=async the job has started when an error is seen, and whoever opens what did not come gets it: \
                               on_error=warn and on_error=hold go with when=before";

/// Whether an error is seen before the job starts, if it decides about that.
fn starts_when_it_is_known(when: StageInWhen, on_error: StageInOnError) -> bool {
    when == StageInWhen::Before || on_error == StageInOnError::Fail
}

const NOT_AT_ONCE: &str = "a directory appears at once only at the job's end: atomic=dir goes with when=end";

/// Whether what appears at once is not to be drained piece by piece while the job runs.
fn appears_when_it_can(atomic: Atomic, when: DrainWhen) -> bool {
    atomic != Atomic::Dir || when == DrainWhen::End
}

const NOT_KNOWN: &str = "how the job ends is known only at its end: on=success and on=failure go with when=end";

/// Whether what is drained after certain ends only is drained after the end.
fn is_known_when_drained(on: DrainOn, when: DrainWhen) -> bool {
    on == DrainOn::Always || when == DrainWhen::End
}

/// What holds within a directive, however it was made: `destination` and `list` are no patterns, and a list has its type.
fn check(
    destination_is_pattern: bool,
    list: Option<&PersistentPath>,
    entry_type: EntryType,
    source_is_pattern: bool,
) -> Result<(), SpecError> {
    let message = if destination_is_pattern || list.is_some_and(PersistentPath::is_pattern) {
        "a destination or a list is no pattern"
    } else if list.is_some() != (entry_type == EntryType::List) {
        "type=list and list= go together"
    } else if list.is_some() && source_is_pattern {
        "a source with a list is no pattern"
    } else {
        return Ok(());
    };
    Err(SpecError::new(Code::Conflict, message))
}

/// The keys that are written only when they say something.
fn optional_keys(list: Option<&PersistentPath>, filters: &Filters, bwlimit: Option<Rate>) -> String {
    let list = list.map(|list| format!(" list={}", list.to_directive()));
    let filters = filters.iter().map(|filter| format!(" {filter}"));
    let bwlimit = bwlimit.map(|rate| format!(" bwlimit={rate}"));
    list.into_iter().chain(filters).chain(bwlimit).collect()
}

/// The components of what a copy writes, as far as they are known before the source is looked at.
fn written(source: Vec<String>, is_contents: bool, destination: Vec<String>, into: bool) -> Vec<String> {
    let mut target = destination;
    if into && !is_contents {
        target.extend(source.last().cloned());
    }
    target
}

impl StageIn {
    /// As [`StageOut::written`].
    pub(crate) fn written(&self) -> Vec<String> {
        let into = self.destination.ends_with_slash() || self.entry_type == EntryType::Directory;
        let (source, destination) = (self.source.components(), self.destination.components());
        let is_contents =
            self.source.ends_with_slash() || self.source.is_pattern() || self.entry_type == EntryType::List;
        written(source, is_contents, destination, into)
    }

    pub(crate) fn check(&self) -> Result<(), SpecError> {
        if !starts_when_it_is_known(self.when, self.on_error) {
            return Err(SpecError::new(Code::Conflict, STARTED_ALREADY));
        }
        check(self.destination.is_pattern(), self.list.as_ref(), self.entry_type, self.source.is_pattern())
    }

    pub(crate) fn to_directive(&self) -> String {
        format!(
            "stage_in source={} destination={} type={} when={} on_error={} preserve={} verify={} update={}{}",
            self.source.to_directive(),
            self.destination.to_directive(),
            self.entry_type,
            self.when,
            self.on_error,
            self.preserve,
            self.verify,
            self.update,
            optional_keys(self.list.as_ref(), &self.filters, self.bwlimit)
        )
    }
}

impl StageOut {
    /// What the copy writes; a prefix of it when the source's type is not known.
    pub(crate) fn written(&self) -> Vec<String> {
        let into = self.destination.ends_with_slash() || self.entry_type == EntryType::Directory;
        let (source, destination) = (self.source.components(), self.destination.components());
        let is_contents =
            self.source.ends_with_slash() || self.source.is_pattern() || self.entry_type == EntryType::List;
        written(source, is_contents, destination, into)
    }

    /// Whether this and `other` may both be drained and would write the same place, or one within the other. What is drained after
    /// a success only never meets what is drained after a failure only.
    pub(crate) fn collides(&self, other: &StageOut) -> bool {
        let exclude =
            |a, b| matches!((a, b), (DrainOn::Success, DrainOn::Failure) | (DrainOn::Failure, DrainOn::Success));
        !exclude(self.on, other.on) && overlap(&self.written(), &other.written())
    }

    pub(crate) fn check(&self) -> Result<(), SpecError> {
        if !appears_when_it_can(self.atomic, self.when) {
            return Err(SpecError::new(Code::Conflict, NOT_AT_ONCE));
        }
        if !is_known_when_drained(self.on, self.when) {
            return Err(SpecError::new(Code::Conflict, NOT_KNOWN));
        }
        check(self.destination.is_pattern(), self.list.as_ref(), self.entry_type, self.source.is_pattern())
    }

    pub(crate) fn to_directive(&self) -> String {
        format!(
            "stage_out source={} destination={} type={} when={} deadline={} on={} on_error={} preserve={} verify={} \
             atomic={} update={}{} retain={}",
            self.source.to_directive(),
            self.destination.to_directive(),
            self.entry_type,
            self.when,
            self.deadline,
            self.on,
            self.on_error,
            self.preserve,
            self.verify,
            self.atomic,
            self.update,
            optional_keys(self.list.as_ref(), &self.filters, self.bwlimit),
            self.retain
        )
    }
}

/// Whether two copies write the same place, or one within the other.
pub(crate) fn overlap(a: &[String], b: &[String]) -> bool {
    let common = a.len().min(b.len());
    a[..common] == b[..common]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_as_in_rsync() {
        for (source, destination, is_directory, target) in [
            ("/a/in/", "/x", true, "/x"),
            ("/a/in/", "/x/", true, "/x"),
            ("/a/in", "/x", true, "/x/in"),
            ("/a/in", "/", true, "/in"),
            ("/a/in/", "/", true, "/"),
            ("/a/f", "/x", false, "/x"),
            ("/a/f", "/x/", false, "/x/f"),
            ("/a/f", "/", false, "/f"),
            ("/", "/x", true, "/x"),
        ] {
            assert_eq!(copy_target(source, destination, is_directory), target, "{source} {destination}");
        }
    }

    #[test]
    fn nested_targets_overlap() {
        let parts = |path: &str| path.split('/').skip(1).map(str::to_owned).collect::<Vec<_>>();
        assert!(overlap(&parts("/a"), &parts("/a")));
        assert!(overlap(&parts("/a"), &parts("/a/b")));
        assert!(overlap(&[], &parts("/a")));
        assert!(!overlap(&parts("/a/b"), &parts("/a/c")));
        assert!(!overlap(&parts("/a"), &parts("/ab")));
    }
}
