//! What kind of instance a job asks for.

use burstfs_types::{Code, LayoutPolicy, PolicyError};
use serde::{Deserialize, Serialize};

use crate::error::{Fault, SpecError};
use crate::lex::{Item, Text, items};
use crate::name::InstanceName;
use crate::nearest::nearest;
use crate::size::Size;
use crate::words::{Compat, Mode, OnFull, Redundancy, Requeue, Servers, Tmpdir, Transport, Word, not_built};

/// The variables of others that a job gets if it asks for them (`tmpdir`, `compat`); all lead to the mount.
pub const FOREIGN_VARIABLES: [&str; 2] = ["TMPDIR", "DW_JOB_STRIPED"];

/// How much room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capacity {
    /// For the whole instance; each node has the same share.
    Total(Size),
    /// On each node.
    PerNode(Size),
}

impl Capacity {
    /// The bytes that each of `nodes` nodes must have, rounded up.
    pub fn bytes_per_node(self, nodes: u32) -> u64 {
        match self {
            Capacity::Total(size) => size.bytes().div_ceil(u64::from(nodes.max(1))),
            Capacity::PerNode(size) => size.bytes(),
        }
    }
}

/// The whole `create` part of a request.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// `None`: the site's default.
    pub capacity: Option<Capacity>,
    /// Names the variable with the mount.
    pub name: InstanceName,
    /// Who shares the namespace.
    pub mode: Mode,
    /// Where bytes go.
    pub layout: LayoutPolicy,
    /// Which nodes serve.
    pub servers: Servers,
    /// How many copies.
    pub redundancy: Redundancy,
    /// How many nodes may fail to start.
    pub tolerate: u32,
    /// What a full instance does.
    pub on_full: OnFull,
    /// What a requeued job gets.
    pub requeue: Requeue,
    /// How the nodes talk.
    pub transport: Transport,
    /// Where `$TMPDIR` leads.
    pub tmpdir: Tmpdir,
    /// Whose variables the job finds besides.
    pub compat: Compat,
}

/// The `create` keys that somebody set: a directive, or a profile of the site.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CreateItems {
    /// `capacity` or `per_node`, of which the later replaces the earlier.
    pub capacity: Option<Capacity>,
    /// `name`
    pub name: Option<InstanceName>,
    /// `mode`
    pub mode: Option<Mode>,
    /// `layout`
    pub layout: Option<LayoutPolicy>,
    /// `servers`
    pub servers: Option<Servers>,
    /// `redundancy`
    pub redundancy: Option<Redundancy>,
    /// `tolerate`
    pub tolerate: Option<u32>,
    /// `on_full`
    pub on_full: Option<OnFull>,
    /// `requeue`
    pub requeue: Option<Requeue>,
    /// `transport`
    pub transport: Option<Transport>,
    /// `tmpdir`
    pub tmpdir: Option<Tmpdir>,
    /// `compat`
    pub compat: Option<Compat>,
}

/// The keys of `create` that this version has.
const KEYS: [&str; 13] = [
    "capacity",
    "per_node",
    "name",
    "mode",
    "layout",
    "servers",
    "redundancy",
    "tolerate",
    "on_full",
    "requeue",
    "transport",
    "tmpdir",
    "compat",
];

/// Those that it will have.
const LATER_KEYS: [&str; 2] = ["mount", "lifetime"];

pub(crate) fn keys() -> impl Iterator<Item = &'static str> {
    KEYS.into_iter().chain(LATER_KEYS)
}

impl CreateItems {
    /// The keys of a profile, written like a directive's items: `capacity=4TiB layout=local`, without a verb, a bare
    /// size, another profile or stage items.
    pub fn parse(text: &str) -> Result<CreateItems, SpecError> {
        CreateItems::parse_items(text).map_err(|fault| fault.in_directive(text))
    }

    fn parse_items(text: &str) -> Result<CreateItems, Fault> {
        let (mut created, mut seen) = (CreateItems::default(), Vec::new());
        for item in items(text)? {
            match item {
                Item::Pair { key, value } => created.set(&key, &value, &mut seen)?,
                Item::Word(word) => {
                    let message = format!("\"{}\" is no key=value", word.plain());
                    return Err(Fault::new(Code::BadSyntax, &word.span, message));
                }
            }
        }
        Ok(created)
    }

    /// Whether `word` is a key of `create`, of this version or of a later one.
    pub fn is_key(word: &str) -> bool {
        keys().any(|key| key == word)
    }

    /// One key of a profile. Fails for an unknown key and for a value that the key does not take.
    pub fn set_key(&mut self, key: &str, value: &str) -> Result<(), SpecError> {
        let text = |text: &str| Text::from_canonical(text).map_err(Fault::without_place);
        self.assign(&text(key)?, &text(value)?).map_err(Fault::without_place)
    }

    /// Sets `key`, which may not have been set in the same directive; `seen` are the keys of the directive so far.
    pub(crate) fn set(&mut self, key: &Text, value: &Text, seen: &mut Vec<String>) -> Result<(), Fault> {
        let name = key.plain();
        if seen.contains(&name) {
            let message = format!("\"{name}\" stands twice in one directive");
            return Err(Fault::new(Code::DuplicateKey, &key.span, message));
        }
        let other = match name.as_str() {
            "capacity" => "per_node",
            "per_node" => "capacity",
            _ => "",
        };
        if seen.iter().any(|key| key == other) {
            let message = "capacity and per_node exclude one another: the total, or each node's share";
            return Err(Fault::new(Code::Conflict, &key.span, message));
        }
        self.assign(key, value)?;
        seen.push(name);
        Ok(())
    }

    fn assign(&mut self, key: &Text, value: &Text) -> Result<(), Fault> {
        match key.plain().as_str() {
            "capacity" => self.capacity = Some(Capacity::Total(Size::parse(value)?)),
            "per_node" => self.capacity = Some(Capacity::PerNode(Size::parse(value)?)),
            "name" => self.name = Some(InstanceName::parse(value)?),
            "mode" => self.mode = Some(Mode::parse("mode", value)?),
            "layout" => self.layout = Some(parse_layout(value)?),
            "servers" => self.servers = Some(Servers::parse("servers", value)?),
            "redundancy" => self.redundancy = Some(Redundancy::parse("redundancy", value)?),
            "tolerate" => self.tolerate = Some(parse_tolerate(value)?),
            "on_full" => self.on_full = Some(OnFull::parse("on_full", value)?),
            "requeue" => self.requeue = Some(Requeue::parse("requeue", value)?),
            "transport" => self.transport = Some(Transport::parse("transport", value)?),
            "tmpdir" => self.tmpdir = Some(Tmpdir::parse("tmpdir", value)?),
            "compat" => self.compat = Some(Compat::parse("compat", value)?),
            name @ ("count" | "size") => {
                let message = format!(
                    "unknown key \"{name}\"; between commas a layout is quoted: layout='striped:count=N,size=S'"
                );
                return Err(Fault::new(Code::UnknownKey, &key.span, message));
            }
            other if LATER_KEYS.contains(&other) => return Err(not_built(key, &format!("the key \"{other}\""))),
            _ => return Err(unknown_key(key, "create", keys())),
        }
        Ok(())
    }

    /// Takes over what `later` sets.
    pub fn merge(&mut self, later: CreateItems) {
        fn replace<T>(old: &mut Option<T>, new: Option<T>) {
            if new.is_some() {
                *old = new;
            }
        }
        replace(&mut self.capacity, later.capacity);
        replace(&mut self.name, later.name);
        replace(&mut self.mode, later.mode);
        replace(&mut self.layout, later.layout);
        replace(&mut self.servers, later.servers);
        replace(&mut self.redundancy, later.redundancy);
        replace(&mut self.tolerate, later.tolerate);
        replace(&mut self.on_full, later.on_full);
        replace(&mut self.requeue, later.requeue);
        replace(&mut self.transport, later.transport);
        replace(&mut self.tmpdir, later.tmpdir);
        replace(&mut self.compat, later.compat);
    }

    /// With defaults for what nobody set.
    pub fn into_create(self) -> Create {
        Create {
            capacity: self.capacity,
            name: self.name.unwrap_or_default(),
            mode: self.mode.unwrap_or_default(),
            layout: self.layout.unwrap_or_default(),
            servers: self.servers.unwrap_or_default(),
            redundancy: self.redundancy.unwrap_or_default(),
            tolerate: self.tolerate.unwrap_or_default(),
            on_full: self.on_full.unwrap_or_default(),
            requeue: self.requeue.unwrap_or_default(),
            transport: self.transport.unwrap_or_default(),
            tmpdir: self.tmpdir.unwrap_or_default(),
            compat: self.compat.unwrap_or_default(),
        }
    }
}

impl Create {
    pub(crate) fn check(&self) -> Result<(), SpecError> {
        if self.tolerate != 0 {
            return Err(SpecError::new(Code::NotBuiltYet, "tolerate above 0 is not in this version of burstfs"));
        }
        Ok(())
    }

    /// The directive that asks for exactly this.
    pub(crate) fn to_directive(&self) -> String {
        let capacity = match self.capacity {
            Some(Capacity::Total(size)) => format!(" capacity={size}"),
            Some(Capacity::PerNode(size)) => format!(" per_node={size}"),
            None => String::new(),
        };
        format!(
            "create{capacity} name={} mode={} layout={} servers={} redundancy={} tolerate={} on_full={} requeue={} \
             transport={} tmpdir={} compat={}",
            self.name,
            self.mode,
            self.layout,
            self.servers,
            self.redundancy,
            self.tolerate,
            self.on_full,
            self.requeue,
            self.transport,
            self.tmpdir,
            self.compat
        )
    }
}

fn parse_tolerate(value: &Text) -> Result<u32, Fault> {
    let text = value.plain();
    match text.as_str() {
        "0" => Ok(0),
        _ if text.bytes().all(|byte| byte.is_ascii_digit()) => Err(not_built(value, &format!("tolerate={text}"))),
        _ => Err(Fault::new(Code::BadValue, &value.span, format!("\"{text}\" is no number of nodes"))),
    }
}

fn parse_layout(value: &Text) -> Result<LayoutPolicy, Fault> {
    let text = value.plain();
    text.parse().map_err(|error: PolicyError| {
        let hint = match (&error, nearest(&text, ["auto", "local", "striped"])) {
            (PolicyError::Kind(_), Some(near)) => format!("\"{text}\" is no layout; did you mean \"{near}\"?"),
            _ => error.to_string(),
        };
        Fault::new(Code::BadValue, &value.span, hint)
    })
}

pub(crate) fn unknown_key<'a>(key: &Text, verb: &str, known: impl Iterator<Item = &'a str>) -> Fault {
    let name = key.plain();
    let hint = match nearest(&name, known) {
        Some(near) => format!("; did you mean \"{near}\"?"),
        None => format!(" of {verb}"),
    };
    Fault::new(Code::UnknownKey, &key.span, format!("unknown key \"{name}\"{hint}"))
}
