//! Random operations against objects that are vectors.

use std::collections::HashMap;

use burstfs_oss::Ost;
use burstfs_proto::oss::{AllocateMode, OssReply, Seek, SeekTarget, SetTimes, Sync, Write};
use burstfs_types::{ObjectId, Timestamp};
use proptest::prelude::*;

use crate::support::{
    Memory, allocate, append, call, call_as, caller, glimpse, object, open, read_with, remove, statfs, truncate,
};

#[derive(Clone, Debug)]
enum Op {
    Write { object: u64, offset: u64, len: usize, is_addressable: bool },
    Append { object: u64, len: usize, is_sent_again: bool },
    Truncate { object: u64, size: u64 },
    Read { object: u64, offset: u64, len: usize, is_addressable: bool },
    Allocate { object: u64, mode: AllocateMode, offset: u64, len: u64 },
    Seek { object: u64, target: SeekTarget, offset: u64 },
    SetTimes { object: u64, mtime: i64 },
    Sync { object: u64, data_only: bool },
    Remove { object: u64 },
    Restart,
}

fn mode() -> impl Strategy<Value = AllocateMode> {
    use AllocateMode::*;
    prop_oneof![Just(Extend), Just(KeepSize), Just(PunchHole), Just(Zero), Just(ZeroKeepSize)]
}

fn op() -> impl Strategy<Value = Op> {
    let object = || 1_u64..5;
    let offset = || prop_oneof![0_u64..100, 0_u64..100_000, Just(4_096), Just(65_536)];
    let len = || prop_oneof![0_usize..20, 0_usize..30_000, Just(4_096)];
    let target = || prop_oneof![Just(SeekTarget::Data), Just(SeekTarget::Hole)];
    prop_oneof![
        4 => (object(), offset(), len(), any::<bool>()).prop_map(|(object, offset, len, is_addressable)| Op::Write {
            object, offset, len, is_addressable
        }),
        2 => (object(), len(), any::<bool>())
            .prop_map(|(object, len, is_sent_again)| Op::Append { object, len, is_sent_again }),
        2 => (object(), offset()).prop_map(|(object, size)| Op::Truncate { object, size }),
        3 => (object(), offset(), len(), any::<bool>()).prop_map(|(object, offset, len, is_addressable)| Op::Read {
            object, offset, len, is_addressable
        }),
        2 => (object(), mode(), offset(), 1_u64..40_000)
            .prop_map(|(object, mode, offset, len)| Op::Allocate { object, mode, offset, len }),
        1 => (object(), target(), offset()).prop_map(|(object, target, offset)| Op::Seek { object, target, offset }),
        1 => (object(), -5_i64..2_000_000_000).prop_map(|(object, mtime)| Op::SetTimes { object, mtime }),
        1 => (object(), any::<bool>()).prop_map(|(object, data_only)| Op::Sync { object, data_only }),
        1 => object().prop_map(|object| Op::Remove { object }),
        1 => Just(Op::Restart),
    ]
}

#[derive(Default)]
struct Model {
    objects: HashMap<ObjectId, Vec<u8>>,
    writes: u8,
    xid: u64,
}

impl Model {
    /// Bytes unlike those of other writes, and never zero.
    fn data(&mut self, len: usize) -> Vec<u8> {
        self.writes = self.writes % 250 + 1;
        vec![self.writes; len]
    }

    fn bytes(&self, id: ObjectId) -> &[u8] {
        self.objects.get(&id).map_or(&[], Vec::as_slice)
    }

    fn write(&mut self, id: ObjectId, offset: usize, data: &[u8]) {
        let bytes = self.objects.entry(id).or_default();
        if !data.is_empty() {
            bytes.resize(bytes.len().max(offset + data.len()), 0);
            bytes[offset..offset + data.len()].copy_from_slice(data);
        }
    }

    fn allocate(&mut self, id: ObjectId, mode: AllocateMode, offset: usize, len: usize) {
        use AllocateMode::*;
        if mode == PunchHole && !self.objects.contains_key(&id) {
            return;
        }
        let bytes = self.objects.entry(id).or_default();
        if matches!(mode, Extend | Zero) {
            bytes.resize(bytes.len().max(offset + len), 0);
        }
        if matches!(mode, PunchHole | Zero | ZeroKeepSize) {
            let size = bytes.len();
            bytes[offset.min(size)..(offset + len).min(size)].fill(0);
        }
    }
}

fn apply(ost: &Ost, model: &mut Model, op: &Op) {
    match *op {
        Op::Write { object: n, offset, len, is_addressable } => {
            let data = model.data(len);
            model.write(object(n), offset as usize, &data);
            let mut memory = Memory::source(&data, is_addressable);
            let reply = call_as(ost, caller(0), Write { object: object(n), offset }, &mut memory).unwrap();
            let OssReply::Write(done) = reply else { panic!("{reply:?}") };
            assert_eq!(done.size, model.bytes(object(n)).len() as u64);
        }
        Op::Append { object: n, len, is_sent_again } => {
            let data = model.data(len);
            model.write(object(n), model.bytes(object(n)).len(), &data);
            model.xid += 1;
            for _ in 0..=usize::from(is_sent_again) {
                let size = append(ost, caller(model.xid), object(n), &data).unwrap();
                assert_eq!(size, model.bytes(object(n)).len() as u64);
            }
        }
        Op::Truncate { object: n, size } => {
            model.objects.entry(object(n)).or_default().resize(size as usize, 0);
            truncate(ost, object(n), size).unwrap();
        }
        Op::Read { object: n, offset, len, is_addressable } => {
            let bytes = model.bytes(object(n));
            let start = bytes.len().min(offset as usize);
            let expected = &bytes[start..bytes.len().min(start + len)];
            assert!(read_with(ost, object(n), offset, Memory::sink(len, is_addressable)).unwrap() == expected);
        }
        Op::Allocate { object: n, mode, offset, len } => {
            model.allocate(object(n), mode, offset as usize, len as usize);
            allocate(ost, object(n), mode, offset, len).unwrap();
        }
        Op::Seek { object: n, target, offset } => seek(ost, model.bytes(object(n)), n, target, offset),
        Op::SetTimes { object: n, mtime } => {
            let mtime = Timestamp { secs: mtime, nanos: 5 };
            call(ost, SetTimes { object: object(n), atime: None, mtime: Some(mtime) }).unwrap();
            assert!(glimpse(ost, object(n)).is_none_or(|attr| attr.mtime == mtime));
        }
        Op::Sync { object: n, data_only } => {
            call(ost, Sync { object: object(n), data_only }).unwrap();
        }
        Op::Remove { object: n } => {
            model.objects.remove(&object(n));
            remove(ost, object(n));
        }
        Op::Restart => {}
    }
}

/// Which zeros are holes is the file system's choice: only what must hold is checked.
fn seek(ost: &Ost, bytes: &[u8], n: u64, target: SeekTarget, offset: u64) {
    let reply = call(ost, Seek { object: object(n), target, offset }).unwrap();
    let OssReply::Seek(done) = reply else { panic!("{reply:?}") };
    let rest = bytes.get(offset as usize..).unwrap_or_default();
    match (target, done.offset) {
        (SeekTarget::Data, Some(at)) => assert!(rest[..(at - offset) as usize].iter().all(|byte| *byte == 0)),
        (SeekTarget::Data, None) => assert!(rest.iter().all(|byte| *byte == 0)),
        (SeekTarget::Hole, Some(at)) => assert!((offset..=bytes.len() as u64).contains(&at)),
        (SeekTarget::Hole, None) => assert!(rest.is_empty()),
    }
}

fn check(ost: &Ost, model: &Model) {
    let mut used = 0;
    for id in (1..5).map(object) {
        let attr = glimpse(ost, id);
        assert_eq!(attr.map(|attr| attr.size), model.objects.get(&id).map(|bytes| bytes.len() as u64), "{id}");
        used += attr.map_or(0, |attr| attr.blocks * 512);
        let bytes = model.bytes(id);
        assert!(read_with(ost, id, 0, Memory::sink(bytes.len() + 10, true)).unwrap() == bytes, "{id}");
    }
    let statfs = statfs(ost);
    assert_eq!(statfs.objects, model.objects.len() as u64);
    // The kernel may have written an object back since the last operation on it, and made a block for its extents.
    assert!(used.abs_diff(statfs.used) <= model.objects.len() as u64 * 4096, "{used} {statfs:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn an_ost_is_a_map_of_vectors(ops in prop::collection::vec(op(), 1..60)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ost");
        let mut ost = open(&path, 1 << 30);
        let mut model = Model::default();
        for op in &ops {
            if let Op::Restart = op {
                drop(ost);
                ost = open(&path, 1 << 30);
            }
            apply(&ost, &mut model, op);
            check(&ost, &model);
        }
    }
}
