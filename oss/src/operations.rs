//! The operations on objects.

use std::borrow::Cow;
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::sync::PoisonError;

use burstfs_proto::oss::{
    Allocate, AllocateMode, Append, Glimpse, ObjectAttr, OstStatfs, Read, ReadDone, Remove, Seek, SeekDone, SeekTarget,
    SetTimes, Sync, Truncate, Write, WriteBack, WriteDone,
};
use burstfs_proto::service::{Bulk, BulkError, Caller};
use burstfs_types::{Errno, ObjectId, Timestamp, limits};
use rustix::fs::{
    Advice, FallocateFlags, SeekFrom, Stat, Timespec, Timestamps, UTIME_OMIT, fadvise, fallocate, fdatasync, fstat,
    fstatvfs, fsync, ftruncate, seek,
};
use rustix::io::{Errno as SysErrno, ReadWriteFlags, pread, pwrite, pwritev2, retry_on_intr};

use crate::allocation::{missing, touched};
use crate::appends::Extent;
use crate::device::errno;
use crate::name;
use crate::ost::Ost;
use crate::readahead::Piece;
use crate::space::Reservation;
use crate::store::Object;

/// The most objects of one `Glimpse` or `Remove`.
const BATCH_MAX: usize = 4_096;

impl Ost {
    pub(crate) async fn read(&self, caller: Caller, request: &Read, bulk: &mut dyn Bulk) -> Result<ReadDone, Errno> {
        name::check(request.object)?;
        let len = request.len as usize;
        if len > limits::RPC_BULK_MAX_BYTES || len > bulk.sink_len() {
            return Err(Errno::EINVAL);
        }
        let read = |into: &mut [u8]| self.read_at(request.object, request.offset, into);
        let done = match bulk.sink() {
            Some(sink) => {
                let done = read(sink.get_mut(..len).ok_or(Errno::EINVAL)?)?;
                bulk.set_put_len(done);
                done
            }
            None => {
                let mut scratch = vec![0; len];
                let done = read(&mut scratch)?;
                bulk.put(0, &scratch[..done]).await.map_err(bulk_errno)?;
                done
            }
        };
        if done == len {
            self.read_ahead(caller, request.object, Piece { offset: request.offset, len: done as u64 });
        }
        Ok(ReadDone { len: u32::try_from(done).map_err(|_| Errno::EIO)? })
    }

    /// Has the device read what the client is likely to ask for next. The kernel only starts it; what goes wrong shows when the
    /// client does ask.
    fn read_ahead(&self, caller: Caller, id: ObjectId, read: Piece) {
        let pieces = self.readahead.after(caller.client, id, read);
        if pieces.is_empty() {
            return;
        }
        let Ok(Some(object)) = self.store.get(id) else { return };
        for piece in pieces.into_iter().filter(|piece| piece.offset <= limits::FILE_SIZE_MAX_BYTES) {
            let _ = fadvise(&object.file, piece.offset, NonZeroU64::new(piece.len), Advice::WillNeed);
        }
    }

    fn read_at(&self, id: ObjectId, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        // Behind what an object can have; the kernel would call the largest offsets negative.
        if offset > limits::FILE_SIZE_MAX_BYTES {
            return Ok(0);
        }
        let Some(object) = self.store.get(id)? else { return Ok(0) };
        let mut done = 0;
        while done < into.len() {
            match retry_on_intr(|| pread(&object.file, &mut into[done..], offset + done as u64)) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) => {
                    tracing::warn!(object = %id, offset, %error, "an object could not be read");
                    return Err(errno(error));
                }
            }
        }
        Ok(done)
    }

    pub(crate) async fn write(&self, request: &Write, bulk: &mut dyn Bulk) -> Result<WriteDone, Errno> {
        name::check(request.object)?;
        check_range(request.offset, bulk.source_len() as u64)?;
        let data = source(bulk).await?;
        self.change(|| self.write_at(request.object, request.offset, &data))
    }

    fn write_at(&self, id: ObjectId, offset: u64, data: &[u8]) -> Result<WriteDone, Errno> {
        let object = self.store.get_or_make(id)?;
        let _shared = object.content.read().unwrap_or_else(PoisonError::into_inner);
        let reservation = self.reserve(&object, offset, data.len() as u64)?;
        let written = write_all(&object, data, offset);
        let stat = object.settle(&self.store.space, Some(reservation))?;
        written.map(|()| WriteDone { size: size(&stat) })
    }

    pub(crate) async fn append(
        &self,
        caller: Caller,
        request: &Append,
        bulk: &mut dyn Bulk,
    ) -> Result<WriteDone, Errno> {
        name::check(request.object)?;
        check_range(0, bulk.source_len() as u64)?;
        let data = source(bulk).await?;
        self.change(|| self.append_once(caller, request.object, &data))
    }

    fn append_once(&self, caller: Caller, id: ObjectId, data: &[u8]) -> Result<WriteDone, Errno> {
        // Before anything is made: the object of an append that is sent again may have been removed since.
        if let Some(size) = self.appends.done(caller, id)? {
            return Ok(WriteDone { size });
        }
        let object = self.store.get_or_make(id)?;
        let _alone = object.content.write().unwrap_or_else(PoisonError::into_inner);
        // And again where nobody else appends: the first of two equal requests may have been under way above.
        if let Some(size) = self.appends.done(caller, id)? {
            return Ok(WriteDone { size });
        }
        let start = size(&fstat(&object.file).map_err(errno)?);
        if data.is_empty() {
            return Ok(WriteDone { size: start });
        }
        let end = check_range(start, data.len() as u64)?;
        let reservation = self.reserve(&object, start, data.len() as u64)?;
        let is_alone = !self.lending.is_written(id);
        let intent = self.appends.intend(self.store.root(), caller, Extent { object: id, start, end, is_alone })?;
        if let Err(torn) = append_all(&object, data) {
            // Not all of it: then nothing, unless the kernel's writers have added to the file meanwhile. If even this fails
            // the intent stays, and the next opening cuts the object.
            if size(&fstat(&object.file).map_err(errno)?) == start + torn.done as u64 {
                ftruncate(&object.file, start).map_err(errno)?;
            }
            object.settle(&self.store.space, Some(reservation))?;
            self.appends.forget(intent)?;
            return Err(torn.error);
        }
        object.settle(&self.store.space, Some(reservation))?;
        self.appends.finish(intent)?;
        Ok(WriteDone { size: end })
    }

    pub(crate) fn truncate(&self, request: &Truncate) -> Result<(), Errno> {
        name::check(request.object)?;
        check_range(request.size, 0)?;
        self.change(|| {
            let object = self.store.get_or_make(request.object)?;
            let _alone = object.content.write().unwrap_or_else(PoisonError::into_inner);
            let done = retry_on_intr(|| ftruncate(&object.file, request.size));
            object.settle(&self.store.space, None)?;
            done.map_err(errno)
        })
    }

    pub(crate) fn glimpse(&self, request: &Glimpse) -> Result<Vec<Option<ObjectAttr>>, Errno> {
        check_batch(&request.objects)?;
        request.objects.iter().map(|id| Ok(self.store.stat(*id)?.map(|stat| object_attr(&stat)))).collect()
    }

    pub(crate) fn remove(&self, request: &Remove) -> Result<(), Errno> {
        check_batch(&request.objects)?;
        self.change(|| {
            request.objects.iter().try_for_each(|id| {
                self.store.remove(*id)?;
                self.lending.removed(*id);
                Ok(())
            })
        })
    }

    pub(crate) fn set_times(&self, request: &SetTimes) -> Result<(), Errno> {
        name::check(request.object)?;
        let times = Timestamps { last_access: timespec(request.atime)?, last_modification: timespec(request.mtime)? };
        self.change(|| self.store.set_times(request.object, &times))
    }

    pub(crate) fn sync(&self, request: &Sync) -> Result<(), Errno> {
        name::check(request.object)?;
        self.change(|| {
            let Some(object) = self.store.get(request.object)? else { return Ok(()) };
            let done = if request.data_only { fdatasync(&object.file) } else { fsync(&object.file) };
            // Writing back gives delayed blocks their places, and a file in many pieces blocks for its extents too.
            object.settle(&self.store.space, None)?;
            done.map_err(errno)?;
            self.store.sync_name(request.object)
        })
    }

    /// All of the pages, those too that are on their way (`sync_file_range(2)` with all three flags): each is
    /// write-protected where it is mapped as it is written.
    pub(crate) fn write_back(&self, request: &WriteBack) -> Result<(), Errno> {
        name::check(request.object)?;
        let Some(object) = self.store.get(request.object)? else { return Ok(()) };
        let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        // SAFETY: the descriptor is open, and the call touches no memory of this process.
        match unsafe { libc::sync_file_range(object.file.as_raw_fd(), 0, 0, flags) } {
            0 => Ok(()),
            _ => Err(errno(SysErrno::from_io_error(&io::Error::last_os_error()).unwrap_or(SysErrno::IO))),
        }
    }

    pub(crate) fn allocate(&self, request: &Allocate) -> Result<(), Errno> {
        name::check(request.object)?;
        if request.len == 0 {
            return Err(Errno::EINVAL);
        }
        check_range(request.offset, request.len)?;
        self.change(|| match request.mode {
            AllocateMode::PunchHole => self.punch_hole(request),
            AllocateMode::Extend => self.fallocate(request, FallocateFlags::empty()),
            AllocateMode::KeepSize => self.fallocate(request, FallocateFlags::KEEP_SIZE),
            AllocateMode::Zero => self.fallocate(request, FallocateFlags::ZERO_RANGE),
            AllocateMode::ZeroKeepSize => {
                self.fallocate(request, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE)
            }
        })
    }

    fn fallocate(&self, request: &Allocate, flags: FallocateFlags) -> Result<(), Errno> {
        let object = self.store.get_or_make(request.object)?;
        let _alone = object.content.write().unwrap_or_else(PoisonError::into_inner);
        let reservation = self.reserve(&object, request.offset, request.len)?;
        let done = retry_on_intr(|| fallocate(&object.file, flags, request.offset, request.len));
        object.settle(&self.store.space, Some(reservation))?;
        done.map_err(errno)
    }

    fn punch_hole(&self, request: &Allocate) -> Result<(), Errno> {
        let Some(object) = self.store.get(request.object)? else { return Ok(()) };
        let _alone = object.content.write().unwrap_or_else(PoisonError::into_inner);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let done = retry_on_intr(|| fallocate(&object.file, flags, request.offset, request.len));
        object.settle(&self.store.space, None)?;
        done.map_err(errno)
    }

    pub(crate) fn seek(&self, request: &Seek) -> Result<SeekDone, Errno> {
        name::check(request.object)?;
        if request.offset > limits::FILE_SIZE_MAX_BYTES {
            return Ok(SeekDone { offset: None });
        }
        let Some(object) = self.store.get(request.object)? else { return Ok(SeekDone { offset: None }) };
        let target = match request.target {
            SeekTarget::Data => SeekFrom::Data(request.offset),
            SeekTarget::Hole => SeekFrom::Hole(request.offset),
        };
        // The file's position moves too, which nobody here uses.
        match seek(&object.file, target) {
            Ok(offset) => Ok(SeekDone { offset: Some(offset) }),
            Err(SysErrno::NXIO) => Ok(SeekDone { offset: None }),
            Err(error) => Err(errno(error)),
        }
    }

    pub(crate) fn statfs(&self) -> Result<OstStatfs, Errno> {
        self.lending.charge_all(&self.store.space);
        let device = fstatvfs(self.store.root()).map_err(errno)?;
        let (capacity, used) = (self.store.space.capacity(), self.store.space.used());
        let free = device.f_bavail.saturating_mul(device.f_frsize);
        let available = capacity.saturating_sub(used).min(free);
        Ok(OstStatfs { capacity, used, available, objects: self.store.objects() })
    }

    /// Sets aside what filling the range may allocate; ENOSPC when the share has not got it.
    fn reserve(&self, object: &Object, offset: u64, len: u64) -> Result<Reservation<'_>, Errno> {
        let space = &self.store.space;
        self.lending.charge_if_due(space);
        if let Some(reservation) = space.reserve(touched(offset, len, self.block)) {
            return Ok(reservation);
        }
        let exactly = || missing(&object.file, offset, len, self.block).map_err(errno);
        space.reserve_exactly(exactly)?.ok_or(Errno::ENOSPC)
    }
}

/// The request's data: where it is, if this process can address it, else a copy.
async fn source(bulk: &mut dyn Bulk) -> Result<Cow<'_, [u8]>, Errno> {
    let len = bulk.source_len();
    if len > limits::RPC_BULK_MAX_BYTES {
        return Err(Errno::EINVAL);
    }
    if bulk.source().is_none() {
        let mut scratch = vec![0; len];
        bulk.get(0, &mut scratch).await.map_err(bulk_errno)?;
        return Ok(Cow::Owned(scratch));
    }
    Ok(Cow::Borrowed(bulk.source().unwrap_or_default()))
}

fn bulk_errno(error: BulkError) -> Errno {
    match error {
        BulkError::OutOfBounds { .. } => Errno::EINVAL,
        BulkError::Disconnected | BulkError::Damaged { .. } => Errno::EIO,
    }
}

/// All of `data`, or an error.
fn write_all(object: &Object, data: &[u8], offset: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < data.len() {
        match retry_on_intr(|| pwrite(&object.file, &data[done..], offset + done as u64)) {
            // No system gives this for a regular file; going round for ever would be worse.
            Ok(0) => return Err(Errno::EIO),
            Ok(n) => done += n,
            Err(error) => return Err(errno(error)),
        }
    }
    Ok(())
}

/// An append that was not written whole.
struct Torn {
    done: usize,
    error: Errno,
}

/// All of `data` behind the file's last byte, wherever the kernel's own writers have moved that by now.
fn append_all(object: &Object, data: &[u8]) -> Result<(), Torn> {
    let mut done = 0;
    while done < data.len() {
        let rest = [IoSlice::new(&data[done..])];
        match retry_on_intr(|| pwritev2(&object.file, &rest, 0, ReadWriteFlags::APPEND)) {
            Ok(0) => return Err(Torn { done, error: Errno::EIO }),
            Ok(n) => done += n,
            Err(error) => return Err(Torn { done, error: errno(error) }),
        }
    }
    Ok(())
}

/// The end of a range, if an object can reach it.
fn check_range(offset: u64, len: u64) -> Result<u64, Errno> {
    offset.checked_add(len).filter(|end| *end <= limits::FILE_SIZE_MAX_BYTES).ok_or(Errno::EFBIG)
}

fn check_batch(objects: &[ObjectId]) -> Result<(), Errno> {
    if objects.len() > BATCH_MAX {
        return Err(Errno::EINVAL);
    }
    objects.iter().try_for_each(|id| name::check(*id))
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn object_attr(stat: &Stat) -> ObjectAttr {
    let timestamp = |secs, nanos| Timestamp { secs, nanos: u32::try_from(nanos).unwrap_or(0) };
    ObjectAttr {
        size: size(stat),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        atime: timestamp(stat.st_atime, stat.st_atime_nsec),
        mtime: timestamp(stat.st_mtime, stat.st_mtime_nsec),
        ctime: timestamp(stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// Nanoseconds are checked, since some values beyond a second mean "now" and "leave alone" to the kernel.
pub(crate) fn timespec(time: Option<Timestamp>) -> Result<Timespec, Errno> {
    match time {
        None => Ok(Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }),
        Some(time) if time.nanos >= 1_000_000_000 => Err(Errno::EINVAL),
        Some(time) => Ok(Timespec { tv_sec: time.secs, tv_nsec: time.nanos.into() }),
    }
}
