//! Bytes of regular files.

use burstfs_net::Source;
use burstfs_placement::{extents, file_offset, file_size, object_size};
use burstfs_proto::oss::{Allocate, AllocateMode, Append, ObjectAttr, Seek, SeekTarget, Sync, Write, WriteBack};
use burstfs_types::{Ino, Layout, ObjectId, OstIndex, StripeIndex, limits};
use bytes::Bytes;
use futures_util::future::try_join_all;

use super::attr::{AttrChange, check_size};
use super::error::{AppendOrOffset, FsError};
use super::{ClientFs, OpenFile};

/// Bytes to write.
#[derive(Clone, Copy, Debug)]
pub enum WriteData<'a> {
    /// Lent: copied only for what goes to another node.
    Lent(&'a [u8]),
    /// Shared, as [`ClientFs::copy_to_send`] gives it: never copied again.
    Shared(&'a Source),
}

impl WriteData<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        self.bytes().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            WriteData::Lent(bytes) => bytes,
            WriteData::Shared(source) => source,
        }
    }
}

/// A range that [`ClientFs::fallocate`] works on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FallocateRange {
    /// From, bytes.
    pub offset: u64,
    /// Bytes; not 0.
    pub len: u64,
}

/// A part of a request: one RPC.
struct Piece {
    ost: OstIndex,
    object: ObjectId,
    object_offset: u64,
    /// Where it begins in the caller's memory.
    at: usize,
    len: usize,
}

/// Cuts a range of a file into what one RPC each can carry, in file order.
fn pieces(ino: Ino, layout: &Layout, offset: u64, len: usize) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(1);
    let mut at = 0;
    for extent in extents(layout, offset, len as u64) {
        let object = ObjectId { ino, stripe: extent.stripe };
        let mut object_offset = extent.object_offset;
        let mut left = usize::try_from(extent.len).unwrap_or(usize::MAX);
        while left > 0 {
            let len = left.min(limits::RPC_BULK_MAX_BYTES);
            pieces.push(Piece { ost: extent.ost, object, object_offset, at, len });
            (left, at, object_offset) = (left - len, at + len, object_offset + len as u64);
        }
    }
    pieces
}

impl ClientFs {
    /// A copy of `data` to be written, in memory from which it can be sent to other nodes as it is; waits for nothing.
    pub fn copy_to_send(&self, data: &[u8]) -> Source {
        self.targets.copy_to_send(data)
    }

    /// Reads at most `len` bytes at `offset`; fewer only at the file's end. Bytes of one other node's object are handed on
    /// without a copy.
    pub async fn read(&self, file: &OpenFile, offset: u64, len: usize) -> Result<Bytes, FsError> {
        let len = within_file(offset, len);
        let Some(layout) = self.known_layout(file).await? else { return Ok(Bytes::new()) };
        let pieces = pieces(file.ino(), layout, offset, len);
        if let [piece] = pieces.as_slice()
            && !self.targets.is_local_ost(piece.ost)
        {
            let bytes = self.targets.read_remote(piece.ost, piece.object, piece.object_offset, piece.len).await?;
            let end = self.end_of_read((file.ino(), layout), (offset, len), &pieces, &[bytes.len()]).await?;
            if end == bytes.len() {
                return Ok(bytes);
            }
            // A hole follows.
            let mut whole = vec![0; end];
            whole[..bytes.len()].copy_from_slice(&bytes);
            return Ok(whole.into());
        }
        let mut bytes = vec![0; len];
        let read = self.read_into(file, offset, &mut bytes).await?;
        bytes.truncate(read);
        Ok(bytes.into())
    }

    /// Reads into `into`; how many bytes: fewer than there is room for only at the file's end.
    pub async fn read_into(&self, file: &OpenFile, offset: u64, into: &mut [u8]) -> Result<usize, FsError> {
        let len = within_file(offset, into.len());
        let Some(layout) = self.known_layout(file).await? else { return Ok(0) };
        let into = &mut into[..len];
        let pieces = pieces(file.ino(), layout, offset, len);
        let got = match pieces.as_slice() {
            [] => return Ok(0),
            [piece] => vec![self.read_piece(piece, &mut into[..]).await?],
            pieces => {
                let mut rest = &mut into[..];
                let reads = pieces.iter().map(|piece| {
                    let (part, behind) = std::mem::take(&mut rest).split_at_mut(piece.len);
                    rest = behind;
                    self.read_piece(piece, part)
                });
                try_join_all(reads).await?
            }
        };
        let end = self.end_of_read((file.ino(), layout), (offset, len), &pieces, &got).await?;
        // A short piece in front of the end is a hole, or an object that is not there.
        for (piece, got) in pieces.iter().zip(got) {
            let hole = piece.at + got..(piece.at + piece.len).min(end);
            if !hole.is_empty() {
                into[hole].fill(0);
            }
        }
        Ok(end)
    }

    async fn read_piece(&self, piece: &Piece, part: &mut [u8]) -> Result<usize, FsError> {
        self.targets.read_into(piece.ost, piece.object, piece.object_offset, part).await
    }

    /// How many of the `len` bytes from `offset` on the file has, when `got` is how much each piece brought.
    async fn end_of_read(
        &self,
        (ino, layout): (Ino, &Layout),
        (offset, len): (u64, usize),
        pieces: &[Piece],
        got: &[usize],
    ) -> Result<usize, FsError> {
        let data_ends = pieces.iter().zip(got).filter(|(_, got)| **got > 0).map(|(piece, got)| piece.at + got);
        let data_end = data_ends.max().unwrap_or(0);
        if data_end == len || layout.osts().len() == 1 {
            return Ok(data_end);
        }
        // Only the other objects' lengths tell whether the file goes on behind the last byte that was found.
        let size = size_of(layout, &self.glimpse(ino, layout).await?);
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        Ok(left.clamp(data_end, len))
    }

    /// Writes all of `data` at `offset`. `kill_set_id`: the writer may not keep set-id bits.
    pub async fn write(
        &self,
        file: &OpenFile,
        offset: u64,
        data: WriteData<'_>,
        kill_set_id: bool,
    ) -> Result<(), FsError> {
        check_size(offset.saturating_add(data.len() as u64))?;
        self.kill_set_id(file, kill_set_id).await?;
        let layout = self.layout_to_fill(file).await?;
        self.write_at((file.ino(), layout), offset, data).await
    }

    async fn write_at(&self, (ino, layout): (Ino, &Layout), offset: u64, data: WriteData<'_>) -> Result<(), FsError> {
        let pieces = pieces(ino, layout, offset, data.len());
        match pieces.as_slice() {
            [piece] => self.write_piece(piece, data).await,
            pieces => try_join_all(pieces.iter().map(|piece| self.write_piece(piece, data))).await.map(drop),
        }
    }

    async fn write_piece(&self, piece: &Piece, data: WriteData<'_>) -> Result<(), FsError> {
        let request = Write { object: piece.object, offset: piece.object_offset };
        let sent = self.targets.oss_sending(piece.ost, request, data, piece.at..piece.at + piece.len);
        let placed = |error: FsError| error.at(piece.object, AppendOrOffset::Offset(piece.object_offset), piece.len);
        sent.await.map(drop).map_err(placed)
    }

    /// Writes at the file's end, wherever other nodes have moved it to meanwhile. Returns how many bytes were written,
    /// and the file's size behind them: all, or as many as one RPC carries.
    ///
    /// A file with one stripe is appended to by its OST, and what fails leaves nothing. For a striped one the MDT hands out
    /// the place: nobody else's append gets it, but until this one has written there, or if it fails, it reads as zeros.
    pub async fn append(
        &self,
        file: &OpenFile,
        data: WriteData<'_>,
        kill_set_id: bool,
    ) -> Result<(usize, u64), FsError> {
        self.kill_set_id(file, kill_set_id).await?;
        let layout = self.layout_to_fill(file).await?;
        let [ost] = layout.osts() else {
            let begin = self.reserve_append(file.ino(), layout, data.len() as u64).await?;
            self.write_at((file.ino(), layout), begin, data).await?;
            return Ok((data.len(), begin + data.len() as u64));
        };
        let len = data.len().min(limits::RPC_BULK_MAX_BYTES);
        let object = ObjectId { ino: file.ino(), stripe: StripeIndex::new(0) };
        let sent = self.targets.oss_sending(*ost, Append { object }, data, 0..len);
        let done = sent.await.map_err(|error| error.at(object, AppendOrOffset::Append, len))?;
        Ok((len, done.size))
    }

    async fn kill_set_id(&self, file: &OpenFile, wanted: bool) -> Result<(), FsError> {
        if !wanted || !file.has_set_id() {
            return Ok(());
        }
        let change = AttrChange { kill_set_id: true, ..AttrChange::default() };
        self.setattr(file.ino(), change).await?;
        file.set_id_cleared();
        Ok(())
    }

    /// `fsync(2)`, or `fdatasync(2)` when `data_only`.
    pub async fn fsync(&self, file: &OpenFile, data_only: bool) -> Result<(), FsError> {
        let Some(layout) = self.known_layout(file).await? else { return Ok(()) };
        self.sync_objects(file.ino(), layout.stripes(), data_only).await
    }

    /// Makes a range that was just written durable, as a write with `O_SYNC` (or `O_DSYNC`: `data_only`) promises before it
    /// returns. Only the objects that have a part of it are asked.
    pub async fn sync_range(&self, file: &OpenFile, (offset, len): (u64, u64), data_only: bool) -> Result<(), FsError> {
        let Some(layout) = self.known_layout(file).await? else { return Ok(()) };
        let end = offset.saturating_add(len);
        let has_part = |stripe| object_size(layout, stripe, end) > object_size(layout, stripe, offset);
        self.sync_objects(file.ino(), layout.stripes().filter(|(stripe, _)| has_part(*stripe)), data_only).await
    }

    async fn sync_objects(
        &self,
        ino: Ino,
        stripes: impl Iterator<Item = (StripeIndex, OstIndex)>,
        data_only: bool,
    ) -> Result<(), FsError> {
        let syncs = stripes.map(|(stripe, ost)| {
            let object = ObjectId { ino, stripe };
            self.targets.oss(ost, Sync { object, data_only })
        });
        try_join_all(syncs).await.map(drop)
    }

    /// Writes back what is mapped for writing, on every node: the next store through a mapping moves the file's times again.
    pub async fn write_back(&self, file: &OpenFile) -> Result<(), FsError> {
        let Some(layout) = self.known_layout(file).await? else { return Ok(()) };
        let objects = layout.stripes().map(|(stripe, ost)| {
            let object = ObjectId { ino: file.ino(), stripe };
            self.targets.oss(ost, WriteBack { object })
        });
        try_join_all(objects).await.map(drop)
    }

    /// `fallocate(2)`.
    pub async fn fallocate(&self, file: &OpenFile, mode: AllocateMode, range: FallocateRange) -> Result<(), FsError> {
        let end = range.offset.saturating_add(range.len);
        if range.len == 0 {
            return Err(FsError::Invalid { what: "a length of 0" });
        }
        if mode != AllocateMode::PunchHole {
            check_size(end)?;
        }
        let layout = match mode {
            AllocateMode::PunchHole => self.known_layout(file).await?,
            _ => Some(self.layout_to_fill(file).await?),
        };
        let (Some(layout), ino) = (layout, file.ino()) else { return Ok(()) };
        let allocations = layout.stripes().filter_map(|(stripe, ost)| {
            // What a range of the file covers of one object is one range there.
            let from = object_size(layout, stripe, range.offset);
            let len = object_size(layout, stripe, end) - from;
            let request = Allocate { object: ObjectId { ino, stripe }, mode, offset: from, len };
            (len > 0).then(|| self.targets.oss(ost, request))
        });
        try_join_all(allocations).await.map(drop)
    }

    /// `lseek(2)` with `SEEK_DATA` or `SEEK_HOLE`: where the next byte of data, or of a hole, is.
    pub async fn seek(&self, file: &OpenFile, target: SeekTarget, offset: u64) -> Result<u64, FsError> {
        let Some(layout) = self.known_layout(file).await? else { return Err(FsError::BeyondEnd { offset }) };
        let size = size_of(layout, &self.glimpse(file.ino(), layout).await?);
        if offset >= size {
            return Err(FsError::BeyondEnd { offset });
        }
        let seeks =
            layout.stripes().map(|(stripe, ost)| self.seek_in((file.ino(), layout), (stripe, ost), target, offset));
        let found = try_join_all(seeks).await?.into_iter().flatten().min();
        match target {
            SeekTarget::Data => found.filter(|at| *at < size).ok_or(FsError::BeyondEnd { offset }),
            // The end of a file is a hole.
            SeekTarget::Hole => Ok(found.map_or(size, |at| at.min(size))),
        }
    }

    /// The same in one object, as an offset in the file.
    async fn seek_in(
        &self,
        (ino, layout): (Ino, &Layout),
        (stripe, ost): (StripeIndex, OstIndex),
        target: SeekTarget,
        offset: u64,
    ) -> Result<Option<u64>, FsError> {
        let from = object_size(layout, stripe, offset);
        let request = Seek { object: ObjectId { ino, stripe }, target, offset: from };
        let found = self.targets.oss(ost, request).await?.offset;
        let found = match target {
            SeekTarget::Data => found,
            // From the end of an object on there is nothing but hole.
            SeekTarget::Hole => Some(found.unwrap_or(from)),
        };
        Ok(found.map(|at| file_offset(layout, stripe, at)))
    }
}

fn size_of(layout: &Layout, objects: &[(StripeIndex, ObjectAttr)]) -> u64 {
    file_size(layout, objects.iter().map(|(stripe, object)| (*stripe, object.size)))
}

/// As much of `len` bytes from `offset` on as the largest file could have.
fn within_file(offset: u64, len: usize) -> usize {
    let left = limits::FILE_SIZE_MAX_BYTES.saturating_sub(offset);
    len.min(usize::try_from(left).unwrap_or(usize::MAX))
}
