//! Which appends were done, so that one that is sent again is answered and not repeated, also by a restarted daemon.
//!
//! ```text
//!     (free) --intend--> INTENDED --finish--> DONE --the client acknowledged, or restarted--> (free)
//!                           `----forget (the write failed and was undone)----------------------^
//! ```
//!
//! One record per append, in a slot of one file: written before the object is, and marked when the object is. The file's
//! pages outlive the process like the objects' do, so nothing is synced. What a process leaves as INTENDED is decided when
//! the next one opens the OST, before anybody else appends: appends are alone on their object, so an object that reaches
//! the intended end has all of it, and one that does not is cut back to where it was.
//!
//! An append to an object that the kernel writes too (see `lent`) is not alone. Its bytes go behind the last byte all the
//! same, in one system call; but an object that such an append leaves INTENDED is never cut back, since the bytes may be
//! somebody else's. So an append that a killed daemon left half done is then either done again behind its first part, or
//! taken for done when others have moved the end past it. Programs that append go through the OST on all nodes, so this
//! concerns only files that are appended to on one node and written at offsets on the node that holds them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use burstfs_proto::service::Caller;
use burstfs_types::{Errno, Ino, NodeIndex, ObjectId, StripeIndex, Xid};
use rustix::fs::{AtFlags, Mode, OFlags, ftruncate, openat, statat};
use rustix::io::{Errno as SysErrno, pread, pwrite};

use crate::device::errno;
use crate::name::path_of;
use crate::store::lock;

const FILE: &str = "appends";
const RECORD_BYTES: usize = 64;

/// Key of a record: node, its daemon's life, request.
type Key = (NodeIndex, u64, Xid);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    Free = 0,
    Intended = 1,
    Done = 2,
    /// INTENDED, to an object that the kernel writes as well.
    IntendedAmongOthers = 3,
}

/// Where an append goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    pub(crate) object: ObjectId,
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Whether nobody else can make the object longer meanwhile.
    pub(crate) is_alone: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Record {
    progress: Progress,
    key: Key,
    object: ObjectId,
    start: u64,
    end: u64,
}

impl Record {
    fn encode(&self) -> [u8; RECORD_BYTES] {
        let (node, incarnation, xid) = self.key;
        let (ino, stripe) = (self.object.ino.get(), self.object.stripe.get());
        let fields = [
            self.progress as u64,
            u64::from(node.get()),
            incarnation,
            xid.0,
            ino,
            u64::from(stripe),
            self.start,
            self.end,
        ];
        let mut bytes = [0; RECORD_BYTES];
        for (chunk, field) in bytes.chunks_exact_mut(8).zip(fields) {
            chunk.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// `None` for a free slot, and for what no process of ours wrote.
    fn decode(bytes: &[u8; RECORD_BYTES]) -> Option<Record> {
        let mut fields = [0; 8];
        for (chunk, field) in bytes.chunks_exact(8).zip(&mut fields) {
            *field = u64::from_le_bytes(chunk.try_into().ok()?);
        }
        let [progress, node, incarnation, xid, ino, stripe, start, end] = fields;
        let progress = match progress {
            1 => Progress::Intended,
            2 => Progress::Done,
            3 => Progress::IntendedAmongOthers,
            _ => return None,
        };
        let object = ObjectId { ino: Ino::from_raw(ino)?, stripe: StripeIndex::new(u16::try_from(stripe).ok()?) };
        let key = (NodeIndex::new(u16::try_from(node).ok()?), incarnation, Xid(xid));
        Some(Record { progress, key, object, start, end })
    }
}

/// An append that is about to be done.
#[must_use]
pub(crate) struct Intent(Key);

#[derive(Default)]
struct Records {
    /// Opened at the first append.
    file: Option<OwnedFd>,
    slots: BTreeMap<Key, (u64, Record)>,
    free: Vec<u64>,
    slot_count: u64,
}

/// The records of an OST.
#[derive(Default)]
pub(crate) struct Appends {
    records: Mutex<Records>,
}

impl Appends {
    /// Reads what an earlier process left in the OST's directory, and decides what it had not ended.
    pub(crate) fn recover(root: BorrowedFd<'_>) -> Result<Appends, Errno> {
        let mut records = Records::default();
        let Some(file) = open(root, OFlags::empty()).map_err(errno)? else { return Ok(Appends::default()) };
        let mut bytes = [0; RECORD_BYTES];
        while read_record(&file, records.slot_count, &mut bytes).map_err(errno)? {
            let slot = records.slot_count;
            records.slot_count += 1;
            match Record::decode(&bytes) {
                Some(record) => {
                    records.slots.insert(record.key, (slot, record));
                }
                None => records.free.push(slot),
            }
        }
        records.file = Some(file);
        records.decide(root).map_err(errno)?;
        Ok(Appends { records: Mutex::new(records) })
    }

    /// The object's size behind the append that `caller` asks for, if that was done before. EINVAL when that one was to
    /// another object.
    pub(crate) fn done(&self, caller: Caller, object: ObjectId) -> Result<Option<u64>, Errno> {
        match lock(&self.records).slots.get(&key(caller)) {
            Some((_, record)) if record.object != object => Err(Errno::EINVAL),
            Some((_, record)) if record.progress == Progress::Done => Ok(Some(record.end)),
            _ => Ok(None),
        }
    }

    /// Records that `caller`'s append will fill `extent`. Called alone on the object, but for the kernel.
    pub(crate) fn intend(&self, root: BorrowedFd<'_>, caller: Caller, extent: Extent) -> Result<Intent, Errno> {
        let mut records = lock(&self.records);
        records.drop_acknowledged(caller).map_err(errno)?;
        let Extent { object, start, end, is_alone } = extent;
        let progress = if is_alone { Progress::Intended } else { Progress::IntendedAmongOthers };
        let record = Record { progress, key: key(caller), object, start, end };
        records.add(root, record).map_err(errno)?;
        Ok(Intent(record.key))
    }

    /// The append is done.
    pub(crate) fn finish(&self, intent: Intent) -> Result<(), Errno> {
        let mut records = lock(&self.records);
        let Some((slot, record)) = records.slots.get_mut(&intent.0) else { return Ok(()) };
        record.progress = Progress::Done;
        let (slot, record) = (*slot, *record);
        records.write(slot, &record.encode()).map_err(errno)
    }

    /// The append failed, and the object is as it was.
    pub(crate) fn forget(&self, intent: Intent) -> Result<(), Errno> {
        lock(&self.records).release(intent.0).map_err(errno)
    }
}

fn key(caller: Caller) -> Key {
    (caller.client.node, caller.client.incarnation, caller.xid)
}

impl Records {
    /// Ends what is INTENDED; see the module's header.
    fn decide(&mut self, root: BorrowedFd<'_>) -> Result<(), SysErrno> {
        let is_intended = |record: &Record| record.progress != Progress::Done;
        let intended: Vec<(u64, Record)> =
            self.slots.values().filter(|(_, record)| is_intended(record)).copied().collect();
        for (slot, mut record) in intended {
            let size = match statat(root, path_of(record.object), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => u64::try_from(stat.st_size).unwrap_or(0),
                Err(SysErrno::NOENT) => 0,
                Err(error) => return Err(error),
            };
            if size >= record.end {
                record.progress = Progress::Done;
                self.write(slot, &record.encode())?;
                self.slots.insert(record.key, (slot, record));
                continue;
            }
            if size > record.start && record.progress == Progress::Intended {
                let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                ftruncate(openat(root, path_of(record.object), flags, Mode::empty())?, record.start)?;
            }
            self.release(record.key)?;
        }
        Ok(())
    }

    /// Frees what the caller's node will not ask for again: what it has acknowledged, and what an earlier life of its
    /// daemon did.
    fn drop_acknowledged(&mut self, caller: Caller) -> Result<(), SysErrno> {
        let node = caller.client.node;
        let first = (node, 0, Xid(0));
        let needed = (node, caller.client.incarnation, caller.oldest_unanswered.min(caller.xid));
        let old: Vec<Key> = self.slots.range(first..needed).map(|(key, _)| *key).collect();
        old.into_iter().try_for_each(|key| self.release(key))
    }

    fn add(&mut self, root: BorrowedFd<'_>, record: Record) -> Result<(), SysErrno> {
        if self.file.is_none() {
            self.file = open(root, OFlags::CREATE)?;
        }
        let slot = self.free.last().copied().unwrap_or(self.slot_count);
        self.write(slot, &record.encode())?;
        if self.free.pop().is_none() {
            self.slot_count += 1;
        }
        self.slots.insert(record.key, (slot, record));
        Ok(())
    }

    fn release(&mut self, key: Key) -> Result<(), SysErrno> {
        let Some((slot, record)) = self.slots.get(&key).copied() else { return Ok(()) };
        self.write(slot, &Record { progress: Progress::Free, ..record }.encode())?;
        self.slots.remove(&key);
        self.free.push(slot);
        Ok(())
    }

    fn write(&self, slot: u64, bytes: &[u8; RECORD_BYTES]) -> Result<(), SysErrno> {
        let file = self.file.as_ref().ok_or(SysErrno::BADF)?;
        let written = pwrite(file, bytes, slot * RECORD_BYTES as u64)?;
        // Records do not cross pages: only a device that has no room for the page cuts one short.
        if written == RECORD_BYTES { Ok(()) } else { Err(SysErrno::NOSPC) }
    }
}

fn open(root: BorrowedFd<'_>, flags: OFlags) -> Result<Option<OwnedFd>, SysErrno> {
    let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(root, FILE, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(Some(file)),
        Err(SysErrno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// False at the end of the file; a torn record at the end is none.
fn read_record(file: &OwnedFd, slot: u64, bytes: &mut [u8; RECORD_BYTES]) -> Result<bool, SysErrno> {
    Ok(pread(file.as_fd(), &mut bytes[..], slot * RECORD_BYTES as u64)? == RECORD_BYTES)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use burstfs_types::ClientId;

    use super::*;

    fn caller(node: u16, incarnation: u64, xid: u64, oldest: u64) -> Caller {
        let client = ClientId { node: NodeIndex::new(node), incarnation };
        Caller { client, xid: Xid(xid), oldest_unanswered: Xid(oldest) }
    }

    fn object(counter: u64) -> ObjectId {
        ObjectId { ino: Ino::from_raw(counter).unwrap(), stripe: StripeIndex::new(0) }
    }

    fn root(directory: &tempfile::TempDir) -> OwnedFd {
        rustix::fs::open(directory.path(), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    fn alone(counter: u64, start: u64, end: u64) -> Extent {
        Extent { object: object(counter), start, end, is_alone: true }
    }

    fn write_object(directory: &tempfile::TempDir, object: ObjectId, len: usize) -> std::path::PathBuf {
        let path = directory.path().join(path_of(object));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, vec![1; len]).unwrap();
        path
    }

    #[test]
    fn what_was_done_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let root = root(&directory);
        let appends = Appends::default();
        let intent = appends.intend(root.as_fd(), caller(1, 5, 7, 7), alone(9, 10, 30)).unwrap();
        assert_eq!(appends.done(caller(1, 5, 7, 7), object(9)), Ok(None));
        appends.finish(intent).unwrap();
        for appends in [appends, Appends::recover(root.as_fd()).unwrap()] {
            assert_eq!(appends.done(caller(1, 5, 7, 7), object(9)), Ok(Some(30)));
            assert_eq!(appends.done(caller(1, 5, 7, 7), object(8)), Err(Errno::EINVAL));
            assert_eq!(appends.done(caller(1, 6, 7, 7), object(9)), Ok(None));
        }
    }

    #[test]
    fn what_was_under_way_is_decided() {
        let directory = tempfile::tempdir().unwrap();
        let root = root(&directory);
        // The object's size when the process died, whether the append counts as done, and the size afterwards.
        let cases = [(10, false, 10), (17, false, 10), (30, true, 30), (45, true, 45), (4, false, 4)];
        let appends = Appends::default();
        for (n, _) in (1..).zip(cases) {
            let _left = appends.intend(root.as_fd(), caller(1, 1, n, 1), alone(n, 10, 30)).unwrap();
        }
        let _never_made = appends.intend(root.as_fd(), caller(1, 1, 99, 1), alone(99, 0, 30)).unwrap();
        let paths: Vec<_> = (1..).zip(cases).map(|(n, case)| write_object(&directory, object(n), case.0)).collect();
        let recovered = Appends::recover(root.as_fd()).unwrap();
        for ((n, (_, is_done, size)), path) in (1..).zip(cases).zip(paths) {
            assert_eq!(recovered.done(caller(1, 1, n, 1), object(n)).unwrap(), is_done.then_some(30), "{n}");
            assert_eq!(fs::metadata(path).unwrap().len(), size, "{n}");
        }
        assert_eq!(recovered.done(caller(1, 1, 99, 1), object(99)), Ok(None));
        assert_eq!(lock(&recovered.records).free.len(), 4);
    }

    #[test]
    fn what_the_kernel_may_have_written_is_not_cut_back() {
        let directory = tempfile::tempdir().unwrap();
        let root = root(&directory);
        let appends = Appends::default();
        let extent = Extent { is_alone: false, ..alone(1, 10, 30) };
        let _left = appends.intend(root.as_fd(), caller(1, 1, 1, 1), extent).unwrap();
        let path = write_object(&directory, object(1), 17);
        let recovered = Appends::recover(root.as_fd()).unwrap();
        assert_eq!(recovered.done(caller(1, 1, 1, 1), object(1)), Ok(None));
        assert_eq!(fs::metadata(path).unwrap().len(), 17);
    }

    #[test]
    fn slots_are_used_again() {
        let directory = tempfile::tempdir().unwrap();
        let root = root(&directory);
        let appends = Appends::default();
        for xid in 1..1_000 {
            let oldest = if xid > 4 { xid - 4 } else { 1 };
            let intent = appends.intend(root.as_fd(), caller(1, 1, xid, oldest), alone(1, xid, xid + 1)).unwrap();
            appends.finish(intent).unwrap();
            assert_eq!(appends.done(caller(1, 1, oldest, oldest), object(1)), Ok(Some(oldest + 1)));
        }
        assert!(fs::metadata(directory.path().join(FILE)).unwrap().len() <= 6 * RECORD_BYTES as u64);
        let _restarted = appends.intend(root.as_fd(), caller(1, 2, 1, 1), alone(1, 0, 1)).unwrap();
        assert_eq!(lock(&appends.records).slots.len(), 1);
        assert_eq!(appends.done(caller(1, 1, 999, 999), object(1)), Ok(None));
    }
}
