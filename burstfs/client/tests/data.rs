//! Bytes of files over in-process servers, against a plain vector of bytes.

#![allow(clippy::unwrap_used)] // clippy.toml's exception ends at a test's helpers

mod support;

use std::sync::atomic::{AtomicU64, Ordering};

use burstfs_client::fs::{AttrChange, ClientFs, Credentials, FallocateRange, FsError, NewFile, OpenFile, WriteData};
use burstfs_proto::oss::{AllocateMode, SeekTarget};
use burstfs_types::{Errno, Ino, Layout, OstIndex, limits};
use bytes::Bytes;
use proptest::prelude::*;
use support::cluster::Cluster;

const NODES: usize = 3;
const FILE_MAX: u64 = 600_000;
const STRIPE: u32 = 1 << 16;

#[derive(Clone, Debug)]
enum Op {
    Write { offset: u64, len: usize, fill: u8, is_shared: bool },
    Append { len: usize, fill: u8 },
    Truncate { size: u64 },
    Allocate { mode: AllocateMode, offset: u64, len: u64 },
    Read { offset: u64, len: usize },
    Seek { target: SeekTarget, offset: u64 },
}

/// Offsets and lengths that like to meet stripe and block boundaries.
fn position() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..FILE_MAX,
        (0..FILE_MAX / u64::from(STRIPE)).prop_map(|unit| unit * u64::from(STRIPE)),
        (0..FILE_MAX / 4096).prop_map(|block| block * 4096),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let mode = prop_oneof![
        Just(AllocateMode::Extend),
        Just(AllocateMode::KeepSize),
        Just(AllocateMode::PunchHole),
        Just(AllocateMode::Zero),
        Just(AllocateMode::ZeroKeepSize),
    ];
    let target = prop_oneof![Just(SeekTarget::Data), Just(SeekTarget::Hole)];
    prop_oneof![
        4 => (position(), 1..200_000_usize, 1..=255_u8, any::<bool>())
            .prop_map(|(offset, len, fill, is_shared)| Op::Write { offset, len, fill, is_shared }),
        1 => (1..100_000_usize, 1..=255_u8).prop_map(|(len, fill)| Op::Append { len, fill }),
        2 => position().prop_map(|size| Op::Truncate { size }),
        3 => (mode, position(), 1..200_000_u64).prop_map(|(mode, offset, len)| Op::Allocate { mode, offset, len }),
        2 => (position(), 1..300_000_usize).prop_map(|(offset, len)| Op::Read { offset, len }),
        2 => (target, position()).prop_map(|(target, offset)| Op::Seek { target, offset }),
    ]
}

fn layout() -> impl Strategy<Value = Layout> {
    let osts = (0..NODES as u16).collect::<Vec<_>>();
    (1..=NODES, Just(osts).prop_shuffle()).prop_map(|(count, osts)| {
        Layout::new(STRIPE, osts.into_iter().take(count).map(OstIndex::new).collect()).unwrap()
    })
}

fn range(offset: u64, len: u64) -> std::ops::Range<usize> {
    offset as usize..(offset + len) as usize
}

/// What the operations have made of the file.
#[derive(Default)]
struct Model(Vec<u8>);

impl Model {
    fn put(&mut self, offset: u64, len: u64, fill: u8) {
        self.grow(offset + len);
        self.0[range(offset, len)].fill(fill);
    }

    fn grow(&mut self, size: u64) {
        self.0.resize(self.0.len().max(size as usize), 0);
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let end = (offset + len).min(self.0.len() as u64);
        if offset < end {
            self.0[range(offset, end - offset)].fill(0);
        }
    }

    fn read(&self, offset: u64, len: usize) -> &[u8] {
        let from = (offset as usize).min(self.0.len());
        &self.0[from..(from + len).min(self.0.len())]
    }

    fn size(&self) -> u64 {
        self.0.len() as u64
    }
}

async fn apply(fs: &ClientFs, file: &OpenFile, model: &mut Model, op: &Op) -> Result<(), FsError> {
    match *op {
        Op::Write { offset, len, fill, is_shared } => {
            let data = Bytes::from(vec![fill; len]);
            let data = if is_shared { WriteData::Shared(&data) } else { WriteData::Lent(&data) };
            fs.write(file, offset, data, false).await?;
            model.put(offset, len as u64, fill);
        }
        Op::Append { len, fill } => {
            let appended = fs.append(file, WriteData::Lent(&vec![fill; len]), false).await;
            if file.layout().osts().len() == 1 {
                model.put(model.size(), len as u64, fill);
                assert_eq!(appended?, (len, model.size()));
            } else {
                assert_eq!(appended.map_err(|error| error.errno()), Err(Errno::EOPNOTSUPP));
            }
        }
        Op::Truncate { size } => {
            let attr = fs.setattr(file.ino(), AttrChange { size: Some(size), ..AttrChange::default() }).await?;
            assert_eq!(attr.size, size);
            model.0.resize(size as usize, 0);
        }
        Op::Allocate { mode, offset, len } => {
            fs.fallocate(file, mode, FallocateRange { offset, len }).await?;
            match mode {
                AllocateMode::Extend => model.grow(offset + len),
                AllocateMode::KeepSize => {}
                AllocateMode::PunchHole | AllocateMode::ZeroKeepSize => model.zero(offset, len),
                AllocateMode::Zero => model.put(offset, len, 0),
            }
        }
        Op::Read { offset, len } => {
            assert_eq!(fs.read(file, offset, len).await?, model.read(offset, len), "{op:?}");
            // Memory that has been used before, as the FUSE adapter's has.
            let mut used = vec![0xee; len];
            let read = fs.read_into(file, offset, &mut used).await?;
            assert_eq!(&used[..read], model.read(offset, len), "{op:?}");
        }
        Op::Seek { target, offset } => check_seek(model, offset, target, fs.seek(file, target, offset).await),
    }
    Ok(())
}

/// A file system may call zeros data, so what is checked is that nothing is claimed of the bytes that is not so.
fn check_seek(model: &Model, offset: u64, target: SeekTarget, found: Result<u64, FsError>) {
    let size = model.size();
    match (target, found) {
        (_, Err(error)) if offset >= size => assert_eq!(error.errno(), Errno::ENXIO),
        (SeekTarget::Data, Err(error)) => {
            assert_eq!(error.errno(), Errno::ENXIO);
            assert!(model.0[offset as usize..].iter().all(|byte| *byte == 0));
        }
        (SeekTarget::Data, Ok(at)) => {
            assert!(offset <= at && at < size, "{offset} -> {at} of {size}");
            assert!(model.0[range(offset, at - offset)].iter().all(|byte| *byte == 0));
        }
        (SeekTarget::Hole, Err(error)) => panic!("{error}"),
        (SeekTarget::Hole, Ok(at)) => {
            assert!(offset <= at && at <= size, "{offset} -> {at} of {size}");
            assert!(at == size || model.0[at as usize] == 0);
        }
    }
}

fn new_file(layout: Option<Layout>) -> NewFile {
    let owner = Credentials { uid: 0, gid: 0 };
    NewFile { mode: 0o644, owner, exclusive: true, truncate: false, layout }
}

#[test]
fn bytes_are_what_was_written_by_whoever_on_any_layout() {
    let cluster = Cluster::new(NODES);
    let clients: Vec<_> = (0..NODES).map(|node| cluster.client(node)).collect();
    let names = AtomicU64::new(0);
    let ops = proptest::collection::vec((0..NODES, op()), 1..24);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(256));
    let checked = runner.run(&(layout(), ops), |(layout, ops)| {
        let name = format!("f{}", names.fetch_add(1, Ordering::Relaxed));
        cluster.block_on(async {
            let made = clients[0].create(Ino::ROOT, name.as_bytes(), new_file(Some(layout))).await.unwrap();
            let mut files = vec![made.file];
            for client in &clients[1..] {
                files.push(client.open(made.attr.ino, false).await.unwrap().file);
            }
            let mut model = Model::default();
            for (node, op) in &ops {
                apply(&clients[*node], &files[*node], &mut model, op).await.unwrap();
                let other = (*node + 1) % NODES;
                assert_eq!(clients[other].getattr(made.attr.ino).await.unwrap().size, model.size(), "{op:?}");
            }
            for (client, file) in clients.iter().zip(&files) {
                assert_eq!(client.read(file, 0, 1 << 20).await.unwrap(), model.read(0, 1 << 20));
                client.close(file).await.unwrap();
            }
            clients[0].unlink(Ino::ROOT, name.as_bytes()).await.unwrap();
        });
        Ok(())
    });
    checked.unwrap();
}

#[test]
fn appends_of_several_nodes_are_all_there() {
    const APPENDS: usize = 200;
    let cluster = Cluster::new(NODES);
    let made = cluster.block_on(cluster.client(0).create(Ino::ROOT, b"log", new_file(None))).unwrap();
    std::thread::scope(|scope| {
        for node in 0..NODES {
            let (cluster, ino) = (&cluster, made.attr.ino);
            scope.spawn(move || {
                let client = cluster.client(node);
                cluster.block_on(async {
                    let file = client.open(ino, false).await.unwrap().file;
                    let record = [node as u8 + 1; 10];
                    for _ in 0..APPENDS {
                        assert_eq!(client.append(&file, WriteData::Lent(&record), false).await.unwrap().0, 10);
                    }
                    client.close(&file).await.unwrap();
                });
            });
        }
    });
    let bytes = cluster.block_on(cluster.client(0).read(&made.file, 0, 1 << 20)).unwrap();
    let mut count = [0; NODES];
    for record in bytes.chunks(10) {
        assert!(record.iter().all(|byte| *byte == record[0]), "a torn record: {record:?}");
        count[usize::from(record[0]) - 1] += 1;
    }
    assert_eq!(count, [APPENDS; NODES]);
}

#[test]
fn large_requests_are_cut_to_what_an_rpc_carries() {
    let cluster = Cluster::new(NODES);
    let (near, far) = (cluster.client(0), cluster.client(1));
    let data: Vec<u8> = (0..limits::RPC_BULK_MAX_BYTES * 2 + 4097).map(|n| (n % 251) as u8).collect();
    cluster.block_on(async {
        let made = near.create(Ino::ROOT, b"large", new_file(None)).await.unwrap();
        let far_file = far.open(made.attr.ino, false).await.unwrap().file;
        far.write(&far_file, 1000, WriteData::Lent(&data), false).await.unwrap();
        for (fs, file) in [(&near, &made.file), (&far, &far_file)] {
            assert_eq!(fs.read(file, 1000, data.len() + 50).await.unwrap(), data);
        }
    });
}

#[test]
fn a_file_has_an_end() {
    let cluster = Cluster::new(1);
    let fs = cluster.client(0);
    cluster.block_on(async {
        let made = fs.create(Ino::ROOT, b"f", new_file(None)).await.unwrap();
        let end = limits::FILE_SIZE_MAX_BYTES;
        let refused = fs.write(&made.file, end, WriteData::Lent(b"x"), false).await.unwrap_err();
        assert_eq!(refused.errno(), Errno::EFBIG);
        let change = AttrChange { size: Some(end + 1), ..AttrChange::default() };
        assert_eq!(fs.setattr(made.attr.ino, change).await.unwrap_err().errno(), Errno::EFBIG);
        assert!(fs.read(&made.file, end, 10).await.unwrap().is_empty());
        assert!(fs.read(&made.file, u64::MAX, 10).await.unwrap().is_empty());
    });
}
