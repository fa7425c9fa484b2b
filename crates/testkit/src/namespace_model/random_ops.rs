//! The operations of a random sequence, and how likely each is.

use burstfs_proto::mds::*;
use burstfs_types::*;
use proptest::prelude::*;

/// One step of a random sequence.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "a request's name and operands say what it does")]
pub enum Op {
    Create {
        dir: usize,
        name: usize,
        mode: u16,
        exclusive: bool,
    },
    Mknod {
        dir: usize,
        name: usize,
        kind: FileKind,
    },
    Mkdir {
        dir: usize,
        name: usize,
        mode: u16,
    },
    Symlink {
        dir: usize,
        name: usize,
        target: Vec<u8>,
    },
    Link {
        node: usize,
        dir: usize,
        name: usize,
    },
    Unlink {
        dir: usize,
        name: usize,
    },
    Rmdir {
        dir: usize,
        name: usize,
    },
    Rename {
        dir: usize,
        name: usize,
        new_dir: usize,
        new_name: usize,
        mode: RenameMode,
    },
    Lookup {
        dir: usize,
        name: usize,
    },
    GetAttr {
        node: usize,
    },
    SetAttr {
        node: usize,
        what: u8,
        value: u16,
    },
    Readlink {
        node: usize,
    },
    DecideLayout {
        node: usize,
    },
    Open {
        node: usize,
    },
    Close {
        node: usize,
    },
    Readdir {
        dir: usize,
        cookie: usize,
        max: u32,
    },
    SetXattr {
        node: usize,
        name: usize,
        value: u8,
        mode: XattrMode,
    },
    GetXattr {
        node: usize,
        name: usize,
    },
    ListXattr {
        node: usize,
    },
    RemoveXattr {
        node: usize,
        name: usize,
    },
    /// The last request comes again.
    Resend,
    /// An MDT is restarted.
    Reopen {
        mdt: u16,
    },
    /// The clients are restarted.
    NewClient,
    /// An MDT goes on with the splits of its directories.
    Split {
        mdt: u16,
        steps: usize,
    },
    /// The clients forget how directories are spread.
    Forget,
    /// An MDT dies soon.
    Crash {
        mdt: u16,
        commits: u64,
        is_committed: bool,
    },
}

pub(super) const NAMES: [&str; 6] = ["a", "b", "c", "dd", "e\n", "\u{fc}"];
pub(super) const XATTRS: [&str; 9] = [
    "user.a",
    "user.b",
    "trusted.a",
    "security.x",
    "system.posix_acl_access",
    "system.posix_acl_default",
    "system.posix_acl_default",
    "system.other",
    "user.",
];

/// Sequences of up to `len` steps.
pub fn ops(len: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(step(), 1..len)
}

/// The same with deaths of MDTs.
pub fn ops_with_crashes(len: usize) -> impl Strategy<Value = Vec<Op>> {
    let crash = (any::<u16>(), 0..4_u64, any::<bool>()).prop_map(|(mdt, commits, is_committed)| Op::Crash {
        mdt,
        commits,
        is_committed,
    });
    prop::collection::vec(prop_oneof![5 => step(), 1 => crash], 1..len)
}

fn step() -> impl Strategy<Value = Op> {
    let (n, mode) = (0..64_usize, 0..0o10000_u16);
    let entry = || (n.clone(), n.clone());
    let kind = prop::sample::select(vec![
        FileKind::Fifo,
        FileKind::Socket,
        FileKind::Character(DeviceNumber(0x103)),
        FileKind::Block(DeviceNumber(0x701)),
        FileKind::Regular,
        FileKind::Directory,
    ]);
    let rename = prop::sample::select(vec![RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]);
    let xattr = prop::sample::select(vec![XattrMode::Any, XattrMode::Create, XattrMode::Replace]);
    let target = prop::sample::select(vec![b"t".to_vec(), vec![], vec![0], vec![b'x'; 4_095], vec![b'x'; 4_096]]);
    prop_oneof![
        6 => (entry(), mode.clone(), any::<bool>())
            .prop_map(|((dir, name), mode, exclusive)| Op::Create { dir, name, mode, exclusive }),
        2 => (entry(), kind).prop_map(|((dir, name), kind)| Op::Mknod { dir, name, kind }),
        6 => (entry(), mode).prop_map(|((dir, name), mode)| Op::Mkdir { dir, name, mode }),
        2 => (entry(), target).prop_map(|((dir, name), target)| Op::Symlink { dir, name, target }),
        4 => (n.clone(), entry()).prop_map(|(node, (dir, name))| Op::Link { node, dir, name }),
        5 => entry().prop_map(|(dir, name)| Op::Unlink { dir, name }),
        4 => entry().prop_map(|(dir, name)| Op::Rmdir { dir, name }),
        8 => (entry(), entry(), rename).prop_map(|((dir, name), (new_dir, new_name), mode)| Op::Rename {
            dir, name, new_dir, new_name, mode
        }),
        2 => entry().prop_map(|(dir, name)| Op::Lookup { dir, name }),
        1 => n.clone().prop_map(|node| Op::GetAttr { node }),
        3 => (n.clone(), any::<u8>(), any::<u16>())
            .prop_map(|(node, what, value)| Op::SetAttr { node, what, value }),
        1 => n.clone().prop_map(|node| Op::Readlink { node }),
        2 => n.clone().prop_map(|node| Op::DecideLayout { node }),
        3 => n.clone().prop_map(|node| Op::Open { node }),
        4 => n.clone().prop_map(|node| Op::Close { node }),
        5 => (n.clone(), n.clone(), 1..5_u32).prop_map(|(dir, cookie, max)| Op::Readdir { dir, cookie, max }),
        2 => (n.clone(), n.clone(), any::<u8>(), xattr)
            .prop_map(|(node, name, value, mode)| Op::SetXattr { node, name, value, mode }),
        1 => entry().prop_map(|(node, name)| Op::GetXattr { node, name }),
        1 => n.clone().prop_map(|node| Op::ListXattr { node }),
        1 => entry().prop_map(|(node, name)| Op::RemoveXattr { node, name }),
        4 => Just(Op::Resend),
        1 => any::<u16>().prop_map(|mdt| Op::Reopen { mdt }),
        1 => Just(Op::NewClient),
        6 => (any::<u16>(), 1..6_usize).prop_map(|(mdt, steps)| Op::Split { mdt, steps }),
        1 => Just(Op::Forget),
    ]
}
