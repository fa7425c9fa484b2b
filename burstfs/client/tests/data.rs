//! Bytes of files over in-process servers, against a plain vector of bytes.

#![allow(clippy::unwrap_used)] // clippy.toml's exception ends at a test's helpers

mod support;

use std::sync::atomic::{AtomicU64, Ordering};

use burstfs_client::fs::{
    AttrChange, ClientFs, Credentials, FallocateRange, FsError, NewFile, NewSpecial, OpenFile, WriteData,
};
use burstfs_net::Source;
use burstfs_proto::oss::{AllocateMode, SeekTarget};
use burstfs_types::{Errno, FileKind, Ino, LayoutPolicy, StripePattern, limits};

use proptest::prelude::*;
use support::bytes::{Model, STRIPE, position, range};
use support::cluster::Cluster;

const NODES: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    Write { offset: u64, len: usize, fill: u8, is_shared: bool },
    Append { len: usize, fill: u8 },
    Truncate { size: u64 },
    Allocate { mode: AllocateMode, offset: u64, len: u64 },
    Read { offset: u64, len: usize },
    Seek { target: SeekTarget, offset: u64 },
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

/// Stripes are small, so that the files of the tests have many.
fn policy() -> impl Strategy<Value = LayoutPolicy> {
    let striped = (1..=NODES as u16).prop_map(|count| StripePattern::new(Some(count), STRIPE).unwrap());
    prop_oneof![Just(LayoutPolicy::Local), striped.prop_map(LayoutPolicy::Striped)]
}

async fn apply(fs: &ClientFs, file: &OpenFile, model: &mut Model, op: &Op) -> Result<(), FsError> {
    match *op {
        Op::Write { offset, len, fill, is_shared } => {
            let data = Source::from(vec![fill; len]);
            let data = if is_shared { WriteData::Shared(&data) } else { WriteData::Lent(&data) };
            fs.write(file, offset, data, false).await?;
            model.put(offset, len as u64, fill);
        }
        Op::Append { len, fill } => {
            let appended = fs.append(file, WriteData::Lent(&vec![fill; len]), false).await?;
            model.put(model.size(), len as u64, fill);
            assert_eq!(appended, (len, model.size()));
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

const OWNER: Credentials = Credentials { uid: 0, gid: 0, umask: None };

fn new_file(policy: Option<LayoutPolicy>) -> NewFile {
    NewFile { mode: 0o644, owner: OWNER, exclusive: true, truncate: false, policy }
}

/// A file whose layout is decided when it gets its first byte.
async fn undecided(fs: &ClientFs, name: &str, policy: LayoutPolicy) -> Ino {
    let new = NewSpecial { kind: FileKind::Regular, mode: 0o644, owner: OWNER };
    let ino = fs.mknod(Ino::ROOT, name.as_bytes(), new).await.unwrap().ino;
    fs.set_layout(ino, Some(policy)).await.unwrap();
    ino
}

#[test]
fn bytes_are_what_was_written_by_whoever_on_any_layout() {
    let cluster = Cluster::new(NODES);
    let clients: Vec<_> = (0..NODES).map(|node| cluster.client(node)).collect();
    let names = AtomicU64::new(0);
    let ops = proptest::collection::vec((0..NODES, op()), 1..24);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(256));
    let checked = runner.run(&(policy(), any::<bool>(), ops), |(policy, is_undecided, ops)| {
        let name = format!("f{}", names.fetch_add(1, Ordering::Relaxed));
        cluster.block_on(async {
            let ino = if is_undecided {
                undecided(&clients[0], &name, policy).await
            } else {
                let made = clients[0].create(Ino::ROOT, name.as_bytes(), new_file(Some(policy))).await.unwrap();
                clients[0].close(&made.file).await.unwrap();
                made.attr.ino
            };
            let mut files = Vec::new();
            for client in &clients {
                files.push(client.open(ino, false).await.unwrap().file);
            }
            let mut model = Model::default();
            for (node, op) in &ops {
                apply(&clients[*node], &files[*node], &mut model, op).await.unwrap();
                let other = (*node + 1) % NODES;
                assert_eq!(clients[other].getattr(ino).await.unwrap().size, model.size(), "{op:?}");
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

/// Runs `work` for every node at the same time.
fn on_all_nodes(cluster: &Cluster, work: impl Fn(usize, std::sync::Arc<ClientFs>) + Sync) {
    std::thread::scope(|scope| {
        for node in 0..NODES {
            let (client, work) = (cluster.client(node), &work);
            scope.spawn(move || work(node, client));
        }
    });
}

#[test]
fn appends_of_several_nodes_are_all_there() {
    const APPENDS: usize = 200;
    // Most of the stripes' ends are within a record.
    const RECORD: usize = 1_000;
    let cluster = Cluster::new(NODES);
    for (name, policy) in [("local", "local"), ("striped", "striped:size=64K"), ("two", "striped:count=2,size=64K")] {
        let policy = Some(policy.parse().unwrap());
        let made = cluster.block_on(cluster.client(0).create(Ino::ROOT, name.as_bytes(), new_file(policy))).unwrap();
        on_all_nodes(&cluster, |node, client| {
            cluster.block_on(async {
                let file = client.open(made.attr.ino, false).await.unwrap().file;
                let record = [node as u8 + 1; RECORD];
                for _ in 0..APPENDS {
                    assert_eq!(client.append(&file, WriteData::Lent(&record), false).await.unwrap().0, RECORD);
                }
                client.close(&file).await.unwrap();
            });
        });
        let bytes = cluster.block_on(cluster.client(0).read(&made.file, 0, 1 << 20)).unwrap();
        let mut count = [0; NODES];
        for record in bytes.chunks(RECORD) {
            assert!(record.iter().all(|byte| *byte == record[0]), "a torn record: {record:?}");
            count[usize::from(record[0]) - 1] += 1;
        }
        assert_eq!(count, [APPENDS; NODES], "{name}");
    }
}

#[test]
fn a_file_that_all_nodes_begin_at_once_gets_one_layout_and_loses_nothing() {
    const PART: usize = 100_000;
    let cluster = Cluster::new(NODES);
    for (round, policy) in
        ["local", "striped:size=64K", "striped:count=2,size=128K"].iter().cycle().take(30).enumerate()
    {
        let name = format!("f{round}");
        let ino = cluster.block_on(undecided(&cluster.client(round % NODES), &name, policy.parse().unwrap()));
        let start = std::sync::Barrier::new(NODES);
        let layouts = std::sync::Mutex::new(Vec::new());
        on_all_nodes(&cluster, |node, client| {
            let file = cluster.block_on(client.open(ino, false)).unwrap().file;
            assert_eq!(file.layout(), None);
            let part = vec![node as u8 + 1; PART];
            start.wait();
            cluster.block_on(client.write(&file, (node * PART) as u64, WriteData::Lent(&part), false)).unwrap();
            layouts.lock().unwrap().push(file.layout().cloned().unwrap());
            cluster.block_on(client.close(&file)).unwrap();
        });
        let layouts = layouts.into_inner().unwrap();
        assert!(layouts.iter().all(|layout| *layout == layouts[0]), "{layouts:?}");
        let opened = cluster.block_on(cluster.client(0).open(ino, false)).unwrap();
        let bytes = cluster.block_on(cluster.client(0).read(&opened.file, 0, NODES * PART + 1)).unwrap();
        let expected: Vec<u8> = (0..NODES).flat_map(|node| vec![node as u8 + 1; PART]).collect();
        assert!(bytes == expected, "round {round}");
    }
}

#[test]
fn a_file_without_a_layout_is_an_empty_file() {
    let cluster = Cluster::new(NODES);
    let (fs, other) = (cluster.client(0), cluster.client(1));
    cluster.block_on(async {
        let ino = undecided(&fs, "f", "striped".parse().unwrap()).await;
        let file = fs.open(ino, true).await.unwrap().file;
        assert!(fs.read(&file, 0, 10).await.unwrap().is_empty());
        assert_eq!(fs.seek(&file, SeekTarget::Hole, 0).await.unwrap_err().errno(), Errno::ENXIO);
        fs.fsync(&file, false).await.unwrap();
        let range = FallocateRange { offset: 0, len: 10 };
        fs.fallocate(&file, AllocateMode::PunchHole, range).await.unwrap();
        fs.setattr(ino, AttrChange { size: Some(0), ..AttrChange::default() }).await.unwrap();
        assert_eq!(fs.getattr(ino).await.unwrap().layout, None);
        // What makes it longer decides.
        let grown = other.setattr(ino, AttrChange { size: Some(5), ..AttrChange::default() }).await.unwrap();
        assert_eq!((grown.size, grown.layout.unwrap().osts().len()), (5, NODES));
        assert_eq!(fs.read(&file, 0, 10).await.unwrap(), [0; 5].as_slice());
    });
}

#[test]
fn an_append_begins_where_a_truncation_ended() {
    let cluster = Cluster::new(NODES);
    let (fs, other) = (cluster.client(0), cluster.client(1));
    cluster.block_on(async {
        let policy = Some("striped:size=64K".parse().unwrap());
        let made = fs.create(Ino::ROOT, b"log", new_file(policy)).await.unwrap();
        let file = other.open(made.attr.ino, false).await.unwrap().file;
        fs.append(&made.file, WriteData::Lent(&[1; 200_000]), false).await.unwrap();
        other.setattr(made.attr.ino, AttrChange { size: Some(70_000), ..AttrChange::default() }).await.unwrap();
        assert_eq!(other.append(&file, WriteData::Lent(&[2; 10]), false).await.unwrap(), (10, 70_010));
        let again = fs.open(made.attr.ino, true).await.unwrap().file;
        assert_eq!(fs.append(&again, WriteData::Lent(&[3; 10]), false).await.unwrap(), (10, 10));
        let refused =
            fs.setattr(made.attr.ino, AttrChange { size: Some(limits::FILE_SIZE_MAX_BYTES), ..AttrChange::default() });
        refused.await.unwrap();
        assert_eq!(fs.append(&again, WriteData::Lent(&[3; 10]), false).await.unwrap_err().errno(), Errno::EFBIG);
    });
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

/// What a FUSE reply is written from, and what a write is copied to: with RDMA, registered memory.
#[test]
fn bytes_of_other_nodes_are_in_the_transports_memory_and_those_of_the_own_never_are() {
    let cluster = Cluster::new(2);
    let (near, far) = (cluster.client(0), cluster.client(1));
    let bytes: Vec<u8> = (0..256 << 10).map(|n| (n % 251) as u8).collect();
    cluster.block_on(async {
        let made = near.create(Ino::ROOT, b"f", new_file(None)).await.unwrap();
        near.write(&made.file, 0, WriteData::Lent(&bytes), false).await.unwrap();
        let read = near.read(&made.file, 0, bytes.len()).await.unwrap();
        assert_eq!((read.len(), cluster.in_the_pool()), (bytes.len(), 0));
        let far_file = far.open(made.attr.ino, false).await.unwrap().file;
        let read = far.read(&far_file, 0, bytes.len()).await.unwrap();
        assert!(read == bytes);
        assert_eq!(cluster.in_the_pool(), bytes.len(), "what was read was copied elsewhere");
        drop(read);
        assert_eq!(cluster.in_the_pool(), 0);
        let data = far.copy_to_send(&bytes);
        far.write(&far_file, 0, WriteData::Shared(&data), false).await.unwrap();
        assert_eq!(cluster.in_the_pool(), bytes.len(), "one copy of what is written");
        drop(data);
        assert_eq!(cluster.in_the_pool(), 0);
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
