//! Backing ids: how `burstfsd`, which has no privileges, gets the kernel to read and write an object's file by itself (FUSE
//! passthrough). Registering a file needs CAP_SYS_ADMIN, so a process of root's does it.
//!
//! ```text
//! burstfsd                                              burstfs-node backing (root)
//!   open, ticket; the file as SCM_RIGHTS  ------------>   checks the file, FUSE_DEV_IOC_BACKING_OPEN on the mount's device
//!                                         <------------   ticket, id or errno
//!   close, id                             ------------>   FUSE_DEV_IOC_BACKING_CLOSE, without an answer
//! ```
//!
//! Owns: both ends of that socket (SOCK_SEQPACKET, so that a message and its file cannot come apart) and what root demands
//! of a file. Does not own: which file is lent to the kernel, and when it is given back.
//!
//! Invariants: the kernel opens a registered file anew, for reading and writing, without asking for permission. So root
//! registers only a regular file of the job's user, that its sender has open for reading and writing, without O_APPEND, and
//! that lies in the instance's own data directory. One broker has at most [`IDS_MAX`] open: nobody's limit counts them. Ids
//! are the connection's, which is this mount's alone, so the daemon may close any: also those of a broker before this one.
//!
//! Failure: a file of a hung file system can hold up whoever looks at it or closes it. So [`Broker::serve`] runs in a
//! process of its own, which the supervisor can end at any time. Ids end with the mount's connection, whatever is forgotten
//! here.

use std::collections::HashSet;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};

/// Files that may be registered at a time.
pub const IDS_MAX: usize = 16_384;
/// Bytes of a message, either way: three little-endian words of 64 bits.
const MESSAGE_BYTES: usize = 24;
const OPEN: u64 = 1;
const CLOSE: u64 = 2;

/// A connected pair of sockets: one end for each side.
pub fn socket_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// The answer to one request to open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The request's number.
    pub ticket: u64,
    /// The id, or why there is none.
    pub id: Result<u32, Errno>,
}

/// Asks for an id for `file`. AGAIN when the socket is full.
pub fn send_open(socket: BorrowedFd<'_>, ticket: u64, file: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file];
    if !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(Errno::NOBUFS);
    }
    send(socket, [OPEN, ticket, 0], &mut control)
}

/// Gives an id back. AGAIN when the socket is full.
pub fn send_close(socket: BorrowedFd<'_>, id: u32) -> Result<(), Errno> {
    send(socket, [CLOSE, 0, u64::from(id)], &mut SendAncillaryBuffer::default())
}

/// The next answer; `None` when the other end is gone, AGAIN when there is none yet.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Option<Answer>, Errno> {
    let mut bytes = [0; MESSAGE_BYTES];
    let (len, _) = rustix::net::recv(socket, &mut bytes, RecvFlags::DONTWAIT)?;
    if len == 0 {
        return Ok(None);
    }
    let [ticket, errno, id] = words(&bytes, len).ok_or(Errno::PROTO)?;
    let id = match i32::try_from(errno) {
        Ok(0) => Ok(u32::try_from(id).map_err(|_| Errno::PROTO)?),
        Ok(errno @ 1..=4095) => Err(Errno::from_raw_os_error(errno)),
        _ => return Err(Errno::PROTO),
    };
    Ok(Some(Answer { ticket, id }))
}

fn send(socket: BorrowedFd<'_>, words: [u64; 3], control: &mut SendAncillaryBuffer<'_, '_, '_>) -> Result<(), Errno> {
    let mut bytes = [0; MESSAGE_BYTES];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], control, flags).map(drop)
}

fn words(bytes: &[u8; MESSAGE_BYTES], len: usize) -> Option<[u64; 3]> {
    let mut words = [0; 3];
    for (chunk, word) in bytes.chunks_exact(8).zip(&mut words) {
        *word = u64::from_le_bytes(chunk.try_into().ok()?);
    }
    (len == MESSAGE_BYTES).then_some(words)
}

/// Root's side.
pub struct Broker {
    device: OwnedFd,
    uid: u32,
    data_device: u64,
    /// What the path of every file of the instance begins with.
    prefix: Vec<u8>,
    ids: HashSet<u32>,
}

impl Broker {
    /// For the mount that `device` serves, and files of `uid` below the directory `data`.
    pub fn new(device: OwnedFd, data: BorrowedFd<'_>, uid: u32) -> Result<Broker, Errno> {
        let data_device = rustix::fs::fstat(data)?.st_dev;
        let mut prefix = path_of(data)?;
        prefix.push(b'/');
        Ok(Broker { device, uid, data_device, prefix, ids: HashSet::new() })
    }

    /// Registers a file with the kernel, if it is one that may be.
    pub fn open(&mut self, file: BorrowedFd<'_>) -> Result<u32, Errno> {
        self.check(file)?;
        if self.ids.len() >= IDS_MAX {
            return Err(Errno::MFILE);
        }
        let id = ioctl::open(self.device.as_fd(), file)?;
        self.ids.insert(id);
        Ok(id)
    }

    /// Forgets a file. The id may be of a broker that was killed; nothing happens for one that the kernel does not know.
    pub fn close(&mut self, id: u32) {
        self.ids.remove(&id);
        // Fails also when the connection is gone, and the id with it.
        let _ = ioctl::close(self.device.as_fd(), id);
    }

    /// The path is looked at first: it needs nothing from the file's own file system, which may be anybody's.
    fn check(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        if !path_of(file)?.starts_with(&self.prefix) {
            return Err(Errno::ACCESS);
        }
        let flags = rustix::fs::fcntl_getfl(file)?;
        let is_read_write = flags & OFlags::RWMODE == OFlags::RDWR;
        let stat = rustix::fs::fstat(file)?;
        let is_ours = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_uid == self.uid
            && stat.st_dev == self.data_device;
        let is_odd = flags.intersects(OFlags::APPEND | OFlags::PATH);
        if is_read_write && is_ours && !is_odd { Ok(()) } else { Err(Errno::ACCESS) }
    }

    /// Serves one client until it is gone: [`Errno::CONNRESET`] or [`Errno::PIPE`] if it went without having read all answers.
    pub fn serve(mut self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        while let Some((bytes, len, file)) = receive_request(socket)? {
            match words(&bytes, len) {
                Some([OPEN, ticket, _]) => {
                    let id = file.map_or(Err(Errno::BADF), |file| self.open(file.as_fd()));
                    let errno = id.err().map_or(0, Errno::raw_os_error);
                    let words = [ticket, u64::from(errno.unsigned_abs()), u64::from(id.unwrap_or(0))];
                    // Somebody who asks without listening is no client.
                    send(socket, words, &mut SendAncillaryBuffer::default())?;
                }
                Some([CLOSE, _, id]) => self.close(u32::try_from(id).map_err(|_| Errno::PROTO)?),
                _ => return Err(Errno::PROTO),
            }
        }
        Ok(())
    }
}

type Request = ([u8; MESSAGE_BYTES], usize, Option<OwnedFd>);

/// The next request with the first file that came along; `None` at the end. Room is given for one file, so the kernel drops
/// what else may have been sent.
fn receive_request(socket: BorrowedFd<'_>) -> Result<Option<Request>, Errno> {
    let mut bytes = [0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut file = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            file = files.fold(file, |first: Option<OwnedFd>, next| first.or(Some(next)));
        }
    }
    Ok((received.bytes > 0).then_some((bytes, received.bytes, file)))
}

/// Where a descriptor leads.
fn path_of(file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let link = std::fs::read_link(Path::new("/proc/self/fd").join(file.as_raw_fd().to_string()));
    let path = link.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(path.as_os_str().as_bytes().to_vec())
}

/// The two requests of `linux/fuse.h`.
mod ioctl {
    use std::os::fd::{AsRawFd, BorrowedFd};

    use rustix::io::Errno;

    const MAGIC: u8 = 229;
    const BACKING_OPEN: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<BackingMap>(MAGIC, 1);
    const BACKING_CLOSE: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<u32>(MAGIC, 2);

    #[repr(C)]
    struct BackingMap {
        fd: i32,
        flags: u32,
        padding: u64,
    }

    pub(super) fn open(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<u32, Errno> {
        let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
        // SAFETY: the kernel reads one `fuse_backing_map`, which `map` is laid out as, and writes nothing.
        result(unsafe { libc::ioctl(device.as_raw_fd(), BACKING_OPEN.into(), &raw const map) })
    }

    pub(super) fn close(device: BorrowedFd<'_>, id: u32) -> Result<u32, Errno> {
        // SAFETY: the kernel reads one word.
        result(unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE.into(), &raw const id) })
    }

    fn result(returned: libc::c_int) -> Result<u32, Errno> {
        u32::try_from(returned).map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};

    use super::*;

    /// A broker whose device is no FUSE device: what passes its check ends in ENOTTY.
    fn broker(data: &Path) -> Broker {
        let device = File::open("/dev/null").unwrap().into();
        let uid = rustix::process::geteuid().as_raw();
        Broker::new(device, File::open(data).unwrap().as_fd(), uid).unwrap()
    }

    #[test]
    fn only_the_instances_own_files_are_registered() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        std::fs::create_dir_all(data.join("ost")).unwrap();
        std::fs::create_dir(directory.path().join("data2")).unwrap();
        let mut broker = broker(&data);
        let mut open = |path: &Path, options: &OpenOptions| broker.open(options.open(path).unwrap().as_fd());
        let mut read_write = OpenOptions::new();
        read_write.read(true).write(true).create(true);
        let inside = data.join("ost/object");
        assert_eq!(open(&inside, &read_write), Err(Errno::NOTTY));
        for outside in [directory.path().join("file"), directory.path().join("data2/file"), "/dev/null".into()] {
            assert_eq!(open(&outside, &read_write), Err(Errno::ACCESS), "{}", outside.display());
        }
        std::os::unix::fs::symlink("/etc/passwd", data.join("link")).unwrap();
        for (path, options) in [
            (&inside, OpenOptions::new().read(true)),
            (&inside, OpenOptions::new().write(true)),
            (&inside, OpenOptions::new().read(true).append(true)),
            (&data, OpenOptions::new().read(true)),
            (&data.join("link"), OpenOptions::new().read(true)),
        ] {
            assert_eq!(open(path, options), Err(Errno::ACCESS), "{options:?}");
        }
        std::os::unix::fs::chown(&inside, Some(12_345), None).unwrap();
        assert_eq!(open(&inside, &read_write), Err(Errno::ACCESS));
    }

    #[test]
    fn requests_are_answered_and_nonsense_ends_the_service() {
        let directory = tempfile::tempdir().unwrap();
        let (ours, theirs) = socket_pair().unwrap();
        let broker = broker(directory.path());
        let server = std::thread::spawn(move || broker.serve(theirs.as_fd()));
        let answer = || {
            rustix::event::poll(&mut [rustix::event::PollFd::new(&ours, rustix::event::PollFlags::IN)], None).unwrap();
            receive(ours.as_fd()).unwrap()
        };
        let file = tempfile::tempfile_in(directory.path()).unwrap();
        send_open(ours.as_fd(), 7, file.as_fd()).unwrap();
        assert_eq!(answer(), Some(Answer { ticket: 7, id: Err(Errno::NOTTY) }));
        send_close(ours.as_fd(), 99).unwrap();
        send(ours.as_fd(), [OPEN, 8, 0], &mut SendAncillaryBuffer::default()).unwrap();
        assert_eq!(answer(), Some(Answer { ticket: 8, id: Err(Errno::BADF) }));
        rustix::net::send(&ours, b"short", SendFlags::empty()).unwrap();
        assert_eq!(server.join().unwrap(), Err(Errno::PROTO));
        assert_eq!(answer(), None);
    }

    #[test]
    fn a_client_that_is_killed_is_told_from_one_that_ends() {
        let directory = tempfile::tempdir().unwrap();
        let serve = |is_killed: bool| {
            let (ours, theirs) = socket_pair().unwrap();
            let broker = broker(directory.path());
            let server = std::thread::spawn(move || broker.serve(theirs.as_fd()));
            if is_killed {
                let file = tempfile::tempfile_in(directory.path()).unwrap();
                send_open(ours.as_fd(), 7, file.as_fd()).unwrap();
                let mut answer = [rustix::event::PollFd::new(&ours, rustix::event::PollFlags::IN)];
                rustix::event::poll(&mut answer, None).unwrap();
            }
            drop(ours);
            server.join().unwrap()
        };
        assert_eq!(serve(true), Err(Errno::CONNRESET));
        assert_eq!(serve(false), Ok(()));
    }
}
