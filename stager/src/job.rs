//! What a `stage_in` or `stage_out` directive asks for, as the stager sees it: variables replaced, paths absolute.

use burstfs_proto::stage::Direction;
use burstfs_spec::{DrainOn, DrainOnError, DrainWhen, Filters, Glob, SpecError, StageOut};
use burstfs_types::JobEnd;
use serde::{Deserialize, Serialize};

/// What the source must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum SourceType {
    /// Whatever it is.
    #[default]
    Auto,
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A directory, of which a list names what is copied.
    List,
}

/// How a copy is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Verify {
    /// XXH3-128 of the source while it is read, compared with the target read again.
    #[default]
    Checksum,
    /// The target's size.
    Size,
    /// Not at all.
    None,
}

/// What is copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Update {
    /// What the target does not have with the same size and modification time.
    #[default]
    Changed,
    /// Everything.
    All,
}

/// How a file appears at the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Atomic {
    /// Under a temporary name first.
    #[default]
    File,
    /// As `File`; and a source directory appears at its destination when all of it is there, not before.
    Dir,
    /// Written in place.
    None,
}

/// What the drain at the end does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum AtEnd {
    /// Copies what is not drained yet.
    #[default]
    Drain,
    /// Copies nothing: names what was drained while the job ran, and what was not asked for.
    Name,
    /// Copies nothing and looks at no target: names the source as not asked for. It is drained only after another end of the job, `on`.
    Leave {
        /// After which it would have been.
        on: JobEnd,
    },
    /// Does not begin, and is not done: it is drained only after the end `on` of the job, and how that ended is not known.
    Wait {
        /// After which it would be.
        on: JobEnd,
    },
}

impl AtEnd {
    /// What the drain at the end does for `directive`; `ended` is how the job ended, as far as it is known.
    pub fn of(directive: &StageOut, ended: Option<JobEnd>) -> AtEnd {
        let on = match directive.on {
            DrainOn::Always if directive.when == DrainWhen::Manual => return AtEnd::Name,
            DrainOn::Always => return AtEnd::Drain,
            DrainOn::Success => JobEnd::Success,
            DrainOn::Failure => JobEnd::Failure,
        };
        match ended {
            None => AtEnd::Wait { on },
            Some(ended) if ended == on => AtEnd::Drain,
            Some(_) => AtEnd::Leave { on },
        }
    }
}

/// What is carried over besides the contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Preserve {
    /// Permission bits, with set-id where the owner could be kept.
    pub mode: bool,
    /// Access and modification times.
    pub times: bool,
    /// Owner and group, as far as the user may set them.
    pub owner: bool,
    /// POSIX access control lists.
    pub acl: bool,
    /// Extended attributes `user.*`.
    pub xattr: bool,
    /// Symbolic links as links; without it they are refused by name.
    pub symlinks: bool,
    /// Groups of hard links.
    pub hardlinks: bool,
    /// Holes.
    pub sparse: bool,
}

impl Preserve {
    /// `preserve=all`.
    pub const ALL: Preserve = Preserve {
        mode: true,
        times: true,
        owner: true,
        acl: true,
        xattr: true,
        symlinks: true,
        hardlinks: true,
        sparse: true,
    };
}

/// One directive.
///
/// Where things go, as with rsync: of a source directory with a trailing `/` the contents go into the destination;
/// without it the directory itself does, under its own name. A source file goes into the destination when that ends in
/// `/` or is a directory, else it becomes the destination. A symbolic link in the source's or the destination's own path
/// is followed, also the last one. On the PFS only the destination's last component is made; in the instance all are.
/// The instance's root directory keeps its own mode and times. What a pattern matches goes into the destination, which is
/// a directory then, under its own name (or its contents do, if the pattern ends in `/`). With a list the named
/// entries go into the destination under their paths relative to the source, with all that is below them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StageJob {
    /// Which way.
    pub direction: Direction,
    /// Absolute; on the instance's side from its root. Of a pattern its text, for people.
    pub source: Vec<u8>,
    /// What the source matches, if it is a pattern.
    pub glob: Option<Glob>,
    /// The file of the PFS that names what is copied.
    pub list: Option<Vec<u8>>,
    /// What is left out.
    pub filters: Filters,
    /// Over all nodes together.
    pub bytes_per_second: Option<u64>,
    /// Likewise.
    pub destination: Vec<u8>,
    /// What the source must be.
    pub source_type: SourceType,
    /// How copies are checked.
    pub verify: Verify,
    /// What is copied.
    pub update: Update,
    /// How a file appears (drain only).
    pub atomic: Atomic,
    /// What is carried over.
    pub preserve: Preserve,
    /// What the drain at the end does (drain only).
    pub at_end: AtEnd,
    /// Its first error ends it: nothing that is not under way is copied any more (drain at the end only).
    pub stops_at_error: bool,
    /// The job's processes are at work meanwhile (stage-in only): a file gets its name when it is whole, and what has the name
    /// already stays, since they may have made it.
    pub is_shared: bool,
}

impl StageJob {
    /// A directive with the defaults.
    pub fn new(direction: Direction, source: impl Into<Vec<u8>>, destination: impl Into<Vec<u8>>) -> StageJob {
        StageJob {
            direction,
            source: source.into(),
            glob: None,
            list: None,
            filters: Filters::default(),
            bytes_per_second: None,
            destination: destination.into(),
            source_type: SourceType::default(),
            verify: Verify::default(),
            update: Update::default(),
            atomic: Atomic::default(),
            preserve: Preserve::ALL,
            at_end: AtEnd::default(),
            stops_at_error: false,
            is_shared: false,
        }
    }

    /// The path that is there if the job can begin: the source, or the directory in front of a pattern's first wild card.
    pub fn root(&self) -> &[u8] {
        self.glob.as_ref().map_or(&self.source, |glob| glob.base().as_bytes())
    }

    /// The end of the job after which alone the directive is drained, while it is not known how the job ended.
    pub(crate) fn waits_for(&self) -> Option<JobEnd> {
        match self.at_end {
            AtEnd::Wait { on } => Some(on),
            AtEnd::Drain | AtEnd::Name | AtEnd::Leave { .. } => None,
        }
    }

    /// What stands in front of the path below the source when a filter is asked: rsync's root is the source itself if that
    /// ends in `/`, and else its parent.
    pub(crate) fn filter_prefix(&self) -> &[u8] {
        let is_parent = self.glob.is_none() && self.list.is_none() && !self.source.ends_with(b"/");
        if is_parent { crate::start::split(&self.source).1 } else { b"" }
    }
}

impl From<burstfs_spec::EntryType> for SourceType {
    fn from(word: burstfs_spec::EntryType) -> SourceType {
        match word {
            burstfs_spec::EntryType::Auto => SourceType::Auto,
            burstfs_spec::EntryType::File => SourceType::File,
            burstfs_spec::EntryType::Directory => SourceType::Directory,
            burstfs_spec::EntryType::List => SourceType::List,
        }
    }
}

impl From<burstfs_spec::Verify> for Verify {
    fn from(word: burstfs_spec::Verify) -> Verify {
        match word {
            burstfs_spec::Verify::Checksum => Verify::Checksum,
            burstfs_spec::Verify::Size => Verify::Size,
            burstfs_spec::Verify::None => Verify::None,
        }
    }
}

impl From<burstfs_spec::Update> for Update {
    fn from(word: burstfs_spec::Update) -> Update {
        match word {
            burstfs_spec::Update::Changed => Update::Changed,
            burstfs_spec::Update::All => Update::All,
        }
    }
}

impl From<burstfs_spec::Atomic> for Atomic {
    fn from(word: burstfs_spec::Atomic) -> Atomic {
        match word {
            burstfs_spec::Atomic::File => Atomic::File,
            burstfs_spec::Atomic::Dir => Atomic::Dir,
            burstfs_spec::Atomic::None => Atomic::None,
        }
    }
}

impl From<burstfs_spec::PreserveSet> for Preserve {
    fn from(set: burstfs_spec::PreserveSet) -> Preserve {
        use burstfs_spec::Preserve as Word;
        Preserve {
            mode: set.has(Word::Mode),
            times: set.has(Word::Times),
            owner: set.has(Word::Owner),
            acl: set.has(Word::Acl),
            xattr: set.has(Word::Xattr),
            symlinks: set.has(Word::Symlinks),
            hardlinks: set.has(Word::Hardlinks),
            sparse: set.has(Word::Sparse),
        }
    }
}

/// The source of either kind of directive, as bytes.
macro_rules! source_text {
    ($directive:expr) => {
        if $directive.source.is_pattern() {
            $directive.source.to_string().into()
        } else {
            $directive.source.resolved()?.into()
        }
    };
}

/// Fails when a path still has a variable.
impl TryFrom<&burstfs_spec::StageIn> for StageJob {
    type Error = SpecError;

    fn try_from(directive: &burstfs_spec::StageIn) -> Result<StageJob, SpecError> {
        Ok(StageJob {
            direction: Direction::In,
            source: source_text!(directive),
            glob: if directive.source.is_pattern() { Some(directive.source.glob()?) } else { None },
            list: directive.list.as_ref().map(|list| list.resolved().map(Into::into)).transpose()?,
            filters: directive.filters.clone(),
            bytes_per_second: directive.bwlimit.map(burstfs_spec::Rate::bytes_per_second),
            destination: directive.destination.resolved()?.into(),
            source_type: directive.entry_type.into(),
            verify: directive.verify.into(),
            update: directive.update.into(),
            atomic: Atomic::None,
            preserve: directive.preserve.into(),
            at_end: AtEnd::default(),
            stops_at_error: false,
            is_shared: directive.when == burstfs_spec::StageInWhen::Async,
        })
    }
}

/// Fails when a path still has a variable. What depends on the job's end waits ([`AtEnd::Wait`]) until it is said with [`AtEnd::of`].
impl TryFrom<&StageOut> for StageJob {
    type Error = SpecError;

    fn try_from(directive: &StageOut) -> Result<StageJob, SpecError> {
        Ok(StageJob {
            direction: Direction::Out,
            source: source_text!(directive),
            glob: if directive.source.is_pattern() { Some(directive.source.glob()?) } else { None },
            list: directive.list.as_ref().map(|list| list.resolved().map(Into::into)).transpose()?,
            filters: directive.filters.clone(),
            bytes_per_second: directive.bwlimit.map(burstfs_spec::Rate::bytes_per_second),
            destination: directive.destination.resolved()?.into(),
            source_type: directive.entry_type.into(),
            verify: directive.verify.into(),
            update: directive.update.into(),
            atomic: directive.atomic.into(),
            preserve: directive.preserve.into(),
            at_end: AtEnd::of(directive, None),
            stops_at_error: directive.on_error == DrainOnError::Fail,
            is_shared: false,
        })
    }
}
