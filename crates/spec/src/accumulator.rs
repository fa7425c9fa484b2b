//! Directives, one after the other, as Slurm gives them: those of the script, the environment, the command line.

use burstfs_types::{Code, Failure, limits};
use thiserror::Error;

use crate::create::{self, CreateItems};
use crate::error::{Fault, SpecError};
use crate::job::{JobSpec, StageDirection};
use crate::lex::{Item, Text, items};
use crate::nearest::nearest;
use crate::size::Size;
use crate::staging::{Draft, StageIn, StageOut, overlap};
use crate::words::{list, not_built};

/// The verbs of this version and of later ones.
const VERBS: [&str; 5] = ["create", "attach", "stage_in", "stage_out", "none"];

/// Where profiles come from.
pub trait Profiles {
    /// The keys that the profile `name` sets. Called only when a directive names a profile.
    fn profile(&self, name: &str) -> Result<CreateItems, ProfileError>;
}

/// Why there is no such profile.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ProfileError {
    /// The site has others.
    #[error("no such profile")]
    Unknown {
        /// The names of those that it has.
        known: Vec<String>,
    },
    /// The site's profiles cannot be read.
    #[error("{0}")]
    Unavailable(Failure),
}

/// A site without profiles.
pub struct NoProfiles;

impl Profiles for NoProfiles {
    fn profile(&self, _name: &str) -> Result<CreateItems, ProfileError> {
        Err(ProfileError::Unknown { known: Vec::new() })
    }
}

impl<F: Fn(&str) -> Result<CreateItems, ProfileError>> Profiles for F {
    fn profile(&self, name: &str) -> Result<CreateItems, ProfileError> {
        self(name)
    }
}

/// A request that grows by one directive after the other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Accumulator {
    is_requested: bool,
    create: CreateItems,
    stage_in: Vec<StageIn>,
    stage_out: Vec<StageOut>,
}

impl Accumulator {
    /// Nothing asked for yet.
    pub fn new() -> Accumulator {
        Accumulator::default()
    }

    /// Adds the next directive: keys of `create` override earlier ones, stages append, `none` drops all before it.
    /// After an error the accumulator is as before.
    pub fn add(&mut self, directive: &str, profiles: &dyn Profiles) -> Result<(), SpecError> {
        let place = |fault: Fault| fault.in_directive(directive);
        if directive.len() > limits::SPEC_MAX_BYTES {
            return Err(SpecError::new(Code::SpecTooLarge, too_large(directive.len())));
        }
        let mut next = self.clone();
        next.apply(&items(directive).map_err(place)?, profiles).map_err(place)?;
        next.finish()?;
        *self = next;
        Ok(())
    }

    /// [`Accumulator::add`] for bytes of unknown origin.
    pub fn add_bytes(&mut self, directive: &[u8], profiles: &dyn Profiles) -> Result<(), SpecError> {
        match std::str::from_utf8(directive) {
            Ok(text) => self.add(text, profiles),
            Err(error) => {
                let (readable, lossy) = (error.valid_up_to(), String::from_utf8_lossy(directive));
                let mark = readable..readable + char::REPLACEMENT_CHARACTER.len_utf8();
                let fault = Fault::new(Code::BadSyntax, &mark, "this is not UTF-8");
                Err(fault.in_directive(&lossy))
            }
        }
    }

    /// The request so far; `None` when nothing is asked for. Fails when it is larger than what can travel to the nodes.
    pub fn finish(&self) -> Result<Option<JobSpec>, SpecError> {
        if !self.is_requested {
            return Ok(None);
        }
        let spec = JobSpec {
            create: self.create.clone().into_create(),
            stage_in: self.stage_in.clone(),
            stage_out: self.stage_out.clone(),
        };
        spec.to_json()?;
        Ok(Some(spec))
    }

    fn apply(&mut self, items: &[Item], profiles: &dyn Profiles) -> Result<(), Fault> {
        let verb = match items {
            [Item::Word(word), ..] => VERBS.into_iter().find(|verb| word.plain() == *verb).map(|verb| (verb, word)),
            _ => None,
        };
        match verb {
            None => self.apply_create(items, profiles),
            Some(("create", _)) => self.apply_create(&items[1..], profiles),
            Some(("stage_in", word)) => self.apply_stage(word, &items[1..], StageDirection::In),
            Some(("stage_out", word)) => self.apply_stage(word, &items[1..], StageDirection::Out),
            Some(("none", _)) => self.apply_none(&items[1..]),
            Some((other, word)) => Err(not_built(word, &format!("the verb \"{other}\""))),
        }
    }

    fn apply_none(&mut self, items: &[Item]) -> Result<(), Fault> {
        if let Some(item) = items.first() {
            return Err(Fault::new(Code::BadSyntax, item.span(), "\"none\" stands alone"));
        }
        *self = Accumulator::new();
        Ok(())
    }

    fn apply_create(&mut self, items: &[Item], profiles: &dyn Profiles) -> Result<(), Fault> {
        self.is_requested = true;
        let (mut created, mut seen) = (CreateItems::default(), Vec::new());
        for (at, item) in items.iter().enumerate() {
            match item {
                Item::Word(word) if at == 0 => {
                    created = first_word(word, &mut seen, profiles)?;
                }
                Item::Word(word) => return Err(stray_word(word)),
                Item::Pair { key, value } => match key.plain().as_str() {
                    "stage_in" => self.apply_short(key, value, StageDirection::In)?,
                    "stage_out" => self.apply_short(key, value, StageDirection::Out)?,
                    _ => created.set(key, value, &mut seen)?,
                },
            }
        }
        self.create.merge(created);
        Ok(())
    }

    fn apply_short(&mut self, key: &Text, value: &Text, direction: StageDirection) -> Result<(), Fault> {
        let parts = value.split(':');
        let [source, destination] = parts.as_slice() else {
            let message = format!("{}=SOURCE:DESTINATION has one \":\"; write \"\\:\" for one in a path", key.plain());
            return Err(Fault::new(Code::BadSyntax, &value.span, message));
        };
        if source.is_empty() || destination.is_empty() {
            let message = format!("{}=SOURCE:DESTINATION needs both", key.plain());
            return Err(Fault::new(Code::BadSyntax, &value.span, message));
        }
        let name = |name: &str| Text::from_canonical(name);
        let (source_key, destination_key) = (name("source")?, name("destination")?);
        let mut draft = Draft::new(direction == StageDirection::Out);
        draft.push(&source_key, source)?;
        draft.push(&destination_key, destination)?;
        self.append(&draft, key, direction)
    }

    fn apply_stage(&mut self, verb: &Text, items: &[Item], direction: StageDirection) -> Result<(), Fault> {
        self.is_requested = true;
        let mut draft = Draft::new(direction == StageDirection::Out);
        for item in items {
            match item {
                Item::Pair { key, value } => draft.push(key, value)?,
                Item::Word(word) => return Err(stray_word(word)),
            }
        }
        self.append(&draft, verb, direction)
    }

    fn append(&mut self, draft: &Draft<'_>, verb: &Text, direction: StageDirection) -> Result<(), Fault> {
        let overlapping = |text: String| {
            let message = format!("the destination overlaps that of an earlier {}: {text}", direction.verb());
            Fault::new(Code::Conflict, &draft.destination_span(), message)
        };
        match direction {
            StageDirection::In => {
                let stage = draft.stage_in(verb)?;
                let written = stage.written();
                if let Some(earlier) = self.stage_in.iter().find(|earlier| overlap(&earlier.written(), &written)) {
                    return Err(overlapping(earlier.destination.to_string()));
                }
                self.stage_in.push(stage);
            }
            StageDirection::Out => {
                let stage = draft.stage_out(verb)?;
                if let Some(earlier) = self.stage_out.iter().find(|earlier| earlier.collides(&stage)) {
                    return Err(overlapping(earlier.destination.to_string()));
                }
                self.stage_out.push(stage);
            }
        }
        Ok(())
    }
}

pub(crate) fn too_large(bytes: usize) -> String {
    format!("the request has {bytes} bytes; the limit is {}", limits::SPEC_MAX_BYTES)
}

/// A size or a profile.
fn first_word(word: &Text, seen: &mut Vec<String>, profiles: &dyn Profiles) -> Result<CreateItems, Fault> {
    let text = word.plain();
    if text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | '+')) {
        let mut created = CreateItems::default();
        created.set(&Text { glyphs: Text::from_canonical("capacity")?.glyphs, span: word.span.clone() }, word, seen)?;
        return Ok(created);
    }
    let is_name_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if create::keys().any(|key| key == text) || !text.chars().all(is_name_char) {
        return Err(stray_word(word));
    }
    profiles.profile(&text).map_err(|error| match error {
        ProfileError::Unavailable(failure) => Fault::new(failure.code, &word.span, failure.message),
        ProfileError::Unknown { known } => {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let hint = match nearest(&text, known.iter().copied().chain(VERBS)) {
                Some(near) => format!("; did you mean \"{near}\"?"),
                None if known.is_empty() => "; this site has no profiles".to_owned(),
                None => format!("; this site has {}", list(&known).replace(" or ", " and ")),
            };
            Fault::new(Code::UnknownProfile, &word.span, format!("\"{text}\" is neither a verb nor a profile{hint}"))
        }
    })
}

fn stray_word(word: &Text) -> Fault {
    let text = word.plain();
    let message = if create::keys().any(|key| key == text) {
        format!("\"{text}\" needs a value: {text}=...")
    } else if text.parse::<Size>().is_ok() {
        format!("the size \"{text}\" can only stand first; else write capacity={text}")
    } else {
        format!("\"{text}\" is no key=value")
    };
    Fault::new(Code::BadSyntax, &word.span, message)
}

impl Item {
    fn span(&self) -> &std::ops::Range<usize> {
        match self {
            Item::Word(word) => &word.span,
            Item::Pair { key, .. } => &key.span,
        }
    }
}
