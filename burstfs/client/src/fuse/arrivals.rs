//! Names that are still on their way into the file system (`stage_in when=async`), as the processes of the job meet them.
//!
//! Owns which directories input arrives in, seen from this node, and the waits for it. Does not own the copying: a file gets its name
//! when it is whole, so what is there has arrived.
//!
//! ```text
//!   lookup of a name below a destination   not there -> the source does not have it -> ENOENT
//!                                                       it will not come            -> EIO
//!                                                       else: brought next, waited for until it is there, or all is over
//!   listing of such a directory, and its removal                                     -> waits until all is over
//! ```
//!
//! A directory is known by its inode, from its lookup on: every path begins at the root, and the kernel remembers no entry as
//! long as something is on its way. So a job
//! sees what it would have seen if all had been there before it started, or waits, or gets an error; never less.
//!
//! Failure: when the source cannot be looked at, a name is waited for. Whoever waits goes when he is killed.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use burstfs_types::{Attr, Errno, FileKind, Ino};
use tokio::sync::watch;

use crate::fs::{FsError, Listed};

/// Between two looks at a name that is waited for: the first pause, and the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_LAST: Duration = Duration::from_millis(500);
/// What an operation that ends without the file is called in messages.
const WHAT: &str = "stage_in";

/// Who brings what arrives.
pub trait Supply: Send + Sync + 'static {
    /// Whether the directive may bring what is `below` its destination. May take as long as the persistent file system likes.
    fn may_bring(&self, directive: u16, below: &[u8]) -> bool;
    /// Somebody waits for this path of the instance (of a directory: with a slash at its end): it is to be brought next. Does not
    /// wait.
    fn hasten(&self, path: Vec<u8>);
}

/// What has become of input that was on its way.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ArrivalNews {
    /// Paths of the instance that will not arrive, beside those that were told before.
    pub failed: Vec<Vec<u8>>,
    /// All that comes is there.
    pub is_over: bool,
    /// Something did not come that nobody can name.
    pub is_unnamed: bool,
}

/// A directory that input arrives in.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Place {
    directive: u16,
    /// Of the instance, as it was when the stage-in began.
    path: Vec<u8>,
    /// Below the directive's destination.
    below: Vec<u8>,
    only: Option<Vec<u8>>,
}

#[derive(Default)]
struct Inner {
    places: HashMap<Ino, Vec<Place>>,
    failed: HashSet<Vec<u8>>,
    failed_dirs: HashSet<Vec<u8>>,
    is_over: bool,
    is_unnamed: bool,
}

/// What is on its way, as one node's mount sees it.
pub struct Arrivals {
    is_active: AtomicBool,
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
    supply: Arc<dyn Supply>,
}

impl Arrivals {
    /// Nothing yet.
    pub fn new(supply: Arc<dyn Supply>) -> Arrivals {
        Arrivals { is_active: AtomicBool::new(false), inner: Mutex::default(), changes: watch::Sender::new(0), supply }
    }

    /// Input of a directive arrives in the directory `dir`, which is at `path`; only that name, if one is given.
    pub fn expect(&self, directive: u16, dir: Ino, path: Vec<u8>, only: Option<Vec<u8>>) {
        self.lock().add(dir, Place { directive, path, below: Vec::new(), only });
        self.is_active.store(true, Ordering::Release);
    }

    /// Takes note of what has become of it.
    pub fn heed(&self, news: ArrivalNews) {
        let mut inner = self.lock();
        for path in news.failed {
            inner.failed_dirs.insert(parent(&path).to_vec());
            inner.failed.insert(path);
        }
        inner.is_over |= news.is_over;
        inner.is_unnamed |= news.is_unnamed;
        // What did not come is remembered for as long as the mount lives.
        let is_whole = inner.is_over && inner.failed.is_empty() && !inner.is_unnamed;
        drop(inner);
        if is_whole {
            self.is_active.store(false, Ordering::Release);
        }
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Whether something is on its way, or has not come.
    pub(super) fn is_active(&self) -> bool {
        self.is_active.load(Ordering::Acquire)
    }

    /// Whether all that comes is there.
    pub fn is_over(&self) -> bool {
        self.lock().is_over
    }

    /// The name in `dir` that `look` looks up, once it can be said what it is. `interrupted` ends the wait.
    pub(super) async fn lookup<F>(
        &self,
        (dir, name): (Ino, &[u8]),
        look: impl Fn() -> F,
        interrupted: impl Future<Output = ()>,
    ) -> Result<Attr, FsError>
    where
        F: Future<Output = Result<Attr, FsError>>,
    {
        if !self.is_active.load(Ordering::Acquire) {
            return look().await;
        }
        let mut interrupted = std::pin::pin!(interrupted);
        let (mut pause, mut may_come) = (PAUSE_FIRST, None);
        loop {
            // Before the look: what is over now has put there what it puts there.
            let (mut changes, is_over) = (self.changes.subscribe(), self.is_over());
            let missing = match look().await {
                Ok(attr) => {
                    self.found(dir, name, &attr);
                    return Ok(attr);
                }
                Err(error) if error.errno() != Errno::ENOENT => return Err(error),
                Err(error) => error,
            };
            let coming = self.coming(dir, name);
            let Some(first) = coming.first() else { return Err(missing) };
            let path = join(&first.path, name);
            if self.lock().failed.contains(&path) {
                return Err(refused(Errno::EIO));
            }
            if may_come.is_none() {
                may_come = Some(self.may_come(&coming, name, interrupted.as_mut()).await?);
            }
            if may_come == Some(false) {
                return Err(missing);
            }
            if is_over {
                return Err(if self.lock().is_unnamed { refused(Errno::EIO) } else { missing });
            }
            self.supply.hasten(path);
            self.pause(&mut changes, pause, interrupted.as_mut()).await?;
            pause = (pause * 2).min(PAUSE_LAST);
        }
    }

    /// Waits until all that comes into the directory is there.
    pub(super) async fn settled(&self, dir: Ino, interrupted: impl Future<Output = ()>) -> Result<(), FsError> {
        if !self.is_active.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut interrupted = std::pin::pin!(interrupted);
        let mut may_come = None;
        loop {
            let mut changes = self.changes.subscribe();
            let places = self.lock().places.get(&dir).cloned().unwrap_or_default();
            let Some(first) = places.first().filter(|_| !self.is_over()) else { return Ok(()) };
            let path = [first.path.as_slice(), b"/"].concat();
            if may_come.is_none() {
                may_come = Some(self.may_come(&places, b"", interrupted.as_mut()).await?);
            }
            if may_come == Some(false) {
                return Ok(());
            }
            self.supply.hasten(path);
            self.pause(&mut changes, PAUSE_LAST, interrupted.as_mut()).await?;
        }
    }

    /// Marks a listing of a directory as one where names are missing, if something did not arrive in it.
    pub(super) fn mark(&self, dir: Ino, listed: &mut Listed) {
        if !self.is_active.load(Ordering::Acquire) {
            return;
        }
        let inner = self.lock();
        let mut places = inner.places.get(&dir).into_iter().flatten();
        listed.is_missing_names |= places.any(|place| inner.failed_dirs.contains(&place.path));
    }

    async fn may_come(
        &self,
        places: &[Place],
        name: &[u8],
        interrupted: impl Future<Output = ()>,
    ) -> Result<bool, FsError> {
        let (supply, name) = (Arc::clone(&self.supply), name.to_vec());
        let asked: Vec<(u16, Vec<u8>)> =
            places.iter().map(|place| (place.directive, join(&place.below, &name))).collect();
        let ask = move || asked.iter().any(|(directive, below)| supply.may_bring(*directive, below));
        tokio::select! {
            said = tokio::task::spawn_blocking(ask) => Ok(said.unwrap_or(true)),
            () = interrupted => Err(refused(Errno::EINTR)),
        }
    }

    async fn pause(
        &self,
        changes: &mut watch::Receiver<u64>,
        pause: Duration,
        interrupted: impl Future<Output = ()>,
    ) -> Result<(), FsError> {
        tokio::select! {
            _ = tokio::time::sleep(pause) => Ok(()),
            _ = changes.changed() => Ok(()),
            () = interrupted => Err(refused(Errno::EINTR)),
        }
    }

    /// The directives that may bring `name` into `dir`.
    fn coming(&self, dir: Ino, name: &[u8]) -> Vec<Place> {
        let inner = self.lock();
        let places = inner.places.get(&dir).into_iter().flatten();
        places.filter(|place| place.only.as_deref().is_none_or(|only| only == name)).cloned().collect()
    }

    /// A directory in one that input arrives in is another one.
    fn found(&self, dir: Ino, name: &[u8], attr: &Attr) {
        if attr.kind != FileKind::Directory {
            return;
        }
        let below = self.coming(dir, name);
        let mut inner = self.lock();
        for place in below.into_iter().filter(|place| place.only.is_none()) {
            let (path, below) = (join(&place.path, name), join(&place.below, name));
            inner.add(attr.ino, Place { path, below, ..place });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whatever a panic cuts short is a set to which something was not added yet.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn add(&mut self, dir: Ino, place: Place) {
        let places = self.places.entry(dir).or_default();
        if !places.contains(&place) {
            places.push(place);
        }
    }
}

fn refused(errno: Errno) -> FsError {
    FsError::Refused { rpc: WHAT, errno }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match (dir.is_empty() || name.is_empty(), dir.ends_with(b"/")) {
        (true, _) | (_, true) => [dir, name].concat(),
        (false, false) => [dir, b"/", name].concat(),
    }
}

fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        None | Some(0) => b"/",
        Some(at) => &path[..at],
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use burstfs_proto::mds::Listing;
    use burstfs_types::Timestamp;

    use super::*;

    const DIR: Ino = Ino::ROOT;

    /// A source with one file, `sub/f`, and a note of what was hastened.
    #[derive(Default)]
    struct Source(Mutex<Vec<Vec<u8>>>);

    impl Source {
        fn hastened(&self) -> Vec<Vec<u8>> {
            self.0.lock().unwrap().clone()
        }
    }

    impl Supply for Source {
        fn may_bring(&self, _directive: u16, below: &[u8]) -> bool {
            [&b""[..], b"sub", b"sub/f"].contains(&below)
        }

        fn hasten(&self, path: Vec<u8>) {
            self.0.lock().unwrap().push(path);
        }
    }

    fn expecting() -> (Arc<Source>, Arc<Arrivals>) {
        let source = Arc::<Source>::default();
        let arrivals = Arrivals::new(source.clone());
        arrivals.expect(0, DIR, b"/in".to_vec(), None);
        (source, Arc::new(arrivals))
    }

    fn ino(number: u64) -> Ino {
        Ino::from_raw(number).unwrap()
    }

    fn attr(ino: Ino, kind: FileKind) -> Attr {
        let time = Timestamp::default();
        let (mode, nlink, uid, gid, size, blocks) = (0o755, 1, 0, 0, 0, 0);
        let (atime, mtime, ctime, layout, shards) = (time, time, time, None, None);
        Attr { ino, kind, mode, nlink, uid, gid, size, blocks, atime, mtime, ctime, layout, shards }
    }

    fn missing() -> Result<Attr, FsError> {
        Err(FsError::Refused { rpc: "lookup", errno: Errno::ENOENT })
    }

    async fn look(arrivals: &Arrivals, dir: Ino, name: &[u8]) -> Result<Attr, Errno> {
        arrivals.lookup((dir, name), || ready(missing()), pending()).await.map_err(|error| error.errno())
    }

    #[tokio::test]
    async fn a_name_is_waited_for_and_hastened() {
        let (source, arrivals) = expecting();
        let sub = arrivals.lookup((DIR, b"sub"), || ready(Ok(attr(ino(7), FileKind::Directory))), pending()).await;
        assert_eq!(sub.unwrap().ino, ino(7));
        let is_there = Arc::new(AtomicBool::new(false));
        let waiting = tokio::spawn({
            let (arrivals, is_there) = (arrivals.clone(), is_there.clone());
            async move {
                let look = || {
                    let is_there = is_there.load(Ordering::Acquire);
                    ready(if is_there { Ok(attr(ino(8), FileKind::Regular)) } else { missing() })
                };
                arrivals.lookup((ino(7), b"f"), look, pending()).await.map(|attr| attr.ino)
            }
        });
        while source.hastened().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(!waiting.is_finished());
        is_there.store(true, Ordering::Release);
        assert_eq!(waiting.await.unwrap().unwrap(), ino(8));
        assert!(source.hastened().iter().all(|path| path == b"/in/sub/f"));
    }

    #[tokio::test]
    async fn what_the_source_does_not_have_is_missing_at_once() {
        let (source, arrivals) = expecting();
        assert_eq!(look(&arrivals, DIR, b"other").await, Err(Errno::ENOENT));
        assert_eq!(look(&arrivals, ino(9), b"sub").await, Err(Errno::ENOENT), "another directory");
        assert!(source.hastened().is_empty());
    }

    #[tokio::test]
    async fn what_does_not_come_is_an_error_and_marks_the_listing() {
        let (_, arrivals) = expecting();
        arrivals.heed(ArrivalNews { failed: vec![b"/in/sub".to_vec()], ..ArrivalNews::default() });
        assert_eq!(look(&arrivals, DIR, b"sub").await, Err(Errno::EIO));
        arrivals.heed(ArrivalNews { is_over: true, ..ArrivalNews::default() });
        assert_eq!(look(&arrivals, DIR, b"sub").await, Err(Errno::EIO));
        arrivals.settled(DIR, pending()).await.unwrap();
        let listing = Listing { entries: Vec::new(), is_end: true, parent: DIR, shards: None, moved_below: 0 };
        let mut listed = Listed { listing, is_missing_names: false };
        arrivals.mark(ino(9), &mut listed);
        assert!(!listed.is_missing_names);
        arrivals.mark(DIR, &mut listed);
        assert!(listed.is_missing_names);
    }

    #[tokio::test]
    async fn when_all_is_over_what_is_missing_was_removed_or_cannot_be_named() {
        let (_, arrivals) = expecting();
        arrivals.heed(ArrivalNews { is_over: true, ..ArrivalNews::default() });
        assert_eq!(look(&arrivals, DIR, b"sub").await, Err(Errno::ENOENT));
        let (_, arrivals) = expecting();
        arrivals.heed(ArrivalNews { is_over: true, is_unnamed: true, ..ArrivalNews::default() });
        assert_eq!(look(&arrivals, DIR, b"sub").await, Err(Errno::EIO));
        assert_eq!(look(&arrivals, DIR, b"other").await, Err(Errno::ENOENT));
    }

    #[tokio::test]
    async fn who_is_killed_goes() {
        let (_, arrivals) = expecting();
        let looked = arrivals.lookup((DIR, b"sub"), || ready(missing()), tokio::time::sleep(PAUSE_FIRST)).await;
        assert_eq!(looked.map_err(|error| error.errno()), Err(Errno::EINTR));
        let settled = arrivals.settled(DIR, tokio::time::sleep(PAUSE_FIRST)).await;
        assert_eq!(settled.map_err(|error| error.errno()), Err(Errno::EINTR));
    }

    #[tokio::test]
    async fn only_the_one_name_of_a_file_is_waited_for() {
        let source = Arc::<Source>::default();
        let arrivals = Arrivals::new(source.clone());
        arrivals.expect(0, DIR, b"/in".to_vec(), Some(b"sub".to_vec()));
        let looked = arrivals.lookup((DIR, b"sub"), || ready(missing()), tokio::time::sleep(PAUSE_FIRST)).await;
        assert!(looked.is_err() && !source.hastened().is_empty());
        assert_eq!(look(&arrivals, DIR, b"f").await, Err(Errno::ENOENT));
    }
}
