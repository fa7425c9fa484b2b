//! System calls of two nodes on one file, in turn and at random, on every layout: after each the bytes and the size are, on both
//! nodes, those of a plain vector. The kernel's own reads, writes and mappings are among them. Needs root and `/dev/fuse`.

#![allow(clippy::unwrap_used)] // clippy.toml's exception ends at a test's helpers

mod support;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use burstfs_types::LayoutPolicy;
use proptest::prelude::*;
use rustix::fs::{CWD, FallocateFlags, FileType, Mode, XattrFlags, fallocate, mknodat};
use support::bytes::{Model, position};
use support::cluster::Cluster;
use support::mount::{LocalFiles, Mounted, own_namespace};

const NODES: usize = 2;

/// How the file comes to be; the first node makes it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    /// Its bytes live on the first node, which reads and writes them by itself.
    Local,
    /// Over both nodes.
    Striped,
    /// Decided at its first byte.
    Undecided,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Write {
        offset: u64,
        len: usize,
        fill: u8,
    },
    /// With `O_DIRECT`, of whole blocks.
    WriteDirect {
        block: u64,
        blocks: usize,
        fill: u8,
    },
    /// With `O_DSYNC`.
    WriteSynced {
        offset: u64,
        len: usize,
        fill: u8,
    },
    Append {
        len: usize,
        fill: u8,
    },
    Truncate {
        size: u64,
    },
    Punch {
        offset: u64,
        len: u64,
    },
    Zero {
        offset: u64,
        len: u64,
    },
    Extend {
        offset: u64,
        len: u64,
    },
    /// Through a shared mapping, where there can be one.
    Store {
        offset: u64,
        len: usize,
        fill: u8,
    },
    Load {
        offset: u64,
        len: usize,
    },
    Sync,
    /// The node closes the file and opens it anew.
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let (len, fill) = (|| 1..150_000_usize, || 1..=255_u8);
    prop_oneof![
        4 => (position(), len(), fill()).prop_map(|(offset, len, fill)| Op::Write { offset, len, fill }),
        1 => (0..100_u64, 1..20_usize, fill()).prop_map(|(block, blocks, fill)| Op::WriteDirect { block, blocks, fill }),
        1 => (position(), len(), fill()).prop_map(|(offset, len, fill)| Op::WriteSynced { offset, len, fill }),
        2 => (len(), fill()).prop_map(|(len, fill)| Op::Append { len, fill }),
        2 => position().prop_map(|size| Op::Truncate { size }),
        1 => (position(), 1..150_000_u64).prop_map(|(offset, len)| Op::Punch { offset, len }),
        1 => (position(), 1..150_000_u64).prop_map(|(offset, len)| Op::Zero { offset, len }),
        1 => (position(), 1..150_000_u64).prop_map(|(offset, len)| Op::Extend { offset, len }),
        2 => (position(), len(), fill()).prop_map(|(offset, len, fill)| Op::Store { offset, len, fill }),
        1 => (position(), len()).prop_map(|(offset, len)| Op::Load { offset, len }),
        1 => Just(Op::Sync),
        1 => Just(Op::Reopen),
    ]
}

/// A node's descriptors of the file.
struct Node {
    plain: File,
    direct: File,
    synced: File,
    appending: File,
}

impl Node {
    fn open(path: &Path) -> Node {
        let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap();
        Node {
            plain: open(0),
            direct: open(libc::O_DIRECT),
            synced: open(libc::O_DSYNC),
            appending: open(libc::O_APPEND),
        }
    }
}

/// Memory that begins at a block, as `O_DIRECT` may want it.
#[repr(C, align(4096))]
struct Blocks([u8; 20 * 4096]);

fn apply(node: &mut Node, path: &Path, is_mappable: bool, model: &mut Model, op: Op) {
    match op {
        Op::Write { offset, len, fill } => {
            node.plain.write_all_at(&vec![fill; len], offset).unwrap();
            model.put(offset, len as u64, fill);
        }
        Op::WriteDirect { block, blocks, fill } => {
            let (memory, offset, len) = (Box::new(Blocks([fill; 20 * 4096])), block * 4096, blocks * 4096);
            node.direct.write_all_at(&memory.0[..len], offset).unwrap();
            model.put(offset, len as u64, fill);
        }
        Op::WriteSynced { offset, len, fill } => {
            node.synced.write_all_at(&vec![fill; len], offset).unwrap();
            model.put(offset, len as u64, fill);
        }
        Op::Append { len, fill } => {
            node.appending.write_all(&vec![fill; len]).unwrap();
            model.put(model.size(), len as u64, fill);
        }
        Op::Truncate { size } => {
            node.plain.set_len(size).unwrap();
            model.0.resize(size as usize, 0);
        }
        Op::Punch { offset, len } => {
            fallocate(&node.plain, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len).unwrap();
            model.zero(offset, len);
        }
        Op::Zero { offset, len } => {
            fallocate(&node.plain, FallocateFlags::ZERO_RANGE, offset, len).unwrap();
            model.put(offset, len, 0);
        }
        Op::Extend { offset, len } => {
            fallocate(&node.plain, FallocateFlags::empty(), offset, len).unwrap();
            model.grow(offset + len);
        }
        Op::Store { .. } | Op::Load { .. } if !is_mappable => {
            let refused = map(&node.plain, 4096, |_| ()).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::ENODEV));
        }
        Op::Store { offset, len, fill } => {
            // A mapping ends with the file.
            let end = (offset + len as u64).min(model.size());
            if offset < end {
                let (from, to) = (offset as usize, end as usize);
                map(&node.plain, to, |memory| memory[from..to].fill(fill)).unwrap();
                model.put(offset, end - offset, fill);
            }
        }
        Op::Load { offset, len } => {
            let end = (offset + len as u64).min(model.size());
            if offset < end {
                let (from, to) = (offset as usize, end as usize);
                let is_same = map(&node.plain, to, |memory| memory[from..to] == model.0[from..to]);
                assert!(is_same.unwrap(), "{len} bytes at {offset} of a mapping");
            }
        }
        Op::Sync => node.plain.sync_all().unwrap(),
        Op::Reopen => *node = Node::open(path),
    }
}

/// Lets `work` have a shared mapping of the first `len` bytes.
fn map<T>(file: &File, len: usize, work: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of anybody.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping has `len` bytes, and nobody else of this process uses the file meanwhile.
    let done = work(unsafe { std::slice::from_raw_parts_mut(memory.cast(), len) });
    // SAFETY: nothing refers to it any more.
    unsafe { libc::munmap(memory, len) };
    Ok(done)
}

fn check(node: &Node, model: &Model, what: &str) {
    let meta = node.plain.metadata().unwrap();
    assert_eq!(meta.size(), model.size(), "size: {what}");
    // Memory that has been used before, and a little more than there is.
    let mut found = vec![0xee; model.0.len() + 100];
    let mut len = 0;
    loop {
        match node.plain.read_at(&mut found[len..], len as u64).unwrap() {
            0 => break,
            n => len += n,
        }
    }
    assert_eq!(len, model.0.len(), "length read: {what}");
    let first = found.iter().zip(&model.0).position(|(found, expected)| found != expected);
    assert_eq!(first, None, "first byte that differs: {what}");
}

fn make(mounts: &[Mounted; NODES], kind: Kind, name: &str) -> String {
    let directory = match kind {
        Kind::Local => "local",
        Kind::Striped => "striped",
        Kind::Undecided => "auto",
    };
    let file = format!("{directory}/{name}");
    let path = mounts[0].join(&file);
    match kind {
        Kind::Undecided => mknodat(CWD, &path, FileType::RegularFile, Mode::from_raw_mode(0o644), 0).unwrap(),
        Kind::Local | Kind::Striped => drop(File::create_new(&path).unwrap()),
    }
    file
}

#[test]
fn two_nodes_see_the_bytes_of_a_plain_vector_on_every_layout() {
    own_namespace();
    let cluster = Cluster::of_job(NODES, LayoutPolicy::Auto);
    let local = |node: usize| LocalFiles { ost: cluster.osts()[node].clone(), data: cluster.directory() };
    let mounts: [Mounted; NODES] =
        std::array::from_fn(|node| Mounted::new(cluster.client(node), Some(local(node)), cluster.runtime()));
    for (directory, layout) in [("local", "local"), ("striped", "striped:size=64K"), ("auto", "auto")] {
        let path = mounts[0].join(directory);
        std::fs::create_dir(&path).unwrap();
        rustix::fs::setxattr(&path, "burstfs.layout", layout.as_bytes(), XattrFlags::empty()).unwrap();
    }
    let names = AtomicU64::new(0);
    let kind = prop_oneof![2 => Just(Kind::Local), 1 => Just(Kind::Striped), 1 => Just(Kind::Undecided)];
    let ops = proptest::collection::vec((0..NODES, op()), 1..30);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(96));
    let checked = runner.run(&(kind, ops), |(kind, ops)| {
        let file = make(&mounts, kind, &names.fetch_add(1, Ordering::Relaxed).to_string());
        let mut nodes = mounts.each_ref().map(|mount| Node::open(&mount.join(&file)));
        let mut model = Model::default();
        for (step, (node, op)) in ops.iter().enumerate() {
            let is_mappable = kind == Kind::Local && *node == 0;
            apply(&mut nodes[*node], &mounts[*node].join(&file), is_mappable, &mut model, *op);
            for (other, opened) in nodes.iter().enumerate() {
                check(opened, &model, &format!("{kind:?}, on node {other}, behind step {step} by node {node}: {op:?}"));
            }
        }
        std::fs::remove_file(mounts[0].join(&file)).unwrap();
        Ok(())
    });
    checked.unwrap();
}
