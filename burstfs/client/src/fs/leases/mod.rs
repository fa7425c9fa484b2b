//! Leases: what the kernel of this node may keep in its caches, and how it is taken back.
//!
//! Owns the record of what the kernel was allowed to keep ([`table`], pure). Keeps no attribute and no entry itself. Does not own the
//! kernel's caches ([`KernelCache`]), nor who may have leases (the MDTs).
//!
//! ```text
//!                   asked: a Ticket        the answer has a lease, no recall since the ticket
//!   nothing kept ------------------------> the kernel may keep it until ticket + TERM -----------.
//!     ^   ^   '--- a recall since: the answer is good for this one call only                      |
//!     |   |                                                                                      |
//!     |   '--- ticket + TERM has come: the kernel forgets by itself, and asks again <------------+
//!     |                                                                                          |
//!     |   Recall: noted, so that answers on their way are not kept; taken from the kernel        |
//!     '------------------------------------------------------------------------------ answered <-'
//! ```
//!
//! A client that an MDT has given up, because it did not answer in time, is in no special state: its term is over, so the kernel
//! has nothing, and the next request tells it what is so now.
//!
//! Invariants:
//! - The kernel is allowed to keep only what a lease covers, and never for longer than it lasts.
//! - When a recall is answered the kernel has nothing of it, and no answer that is under way will bring it back: such an answer
//!   was asked for before the recall; and the kernel itself refuses attributes that it asked for before they were taken from it.
//!   It cannot do so for an inode that it does not have yet; so as long as it is about to be told of one it is asked again.
//! - A change by this node's own processes is known to the kernel, which makes it. Only answers that are under way could bring back
//!   what was before: the attributes are taken from the kernel once more before the change is answered.
//! - A dentry that the kernel moves keeps its time: it goes to a directory whose lease lasts as long, or all names are
//!   invalidated.
//!
//! Concurrency: shards by inode, with a mutex each, held for a look, or for a notification that waits for nothing. What is recalled of one
//! shard is taken by one at a time, in a task of its own: nobody answers before it is. Taking a name from the kernel waits for its lock on the
//! directory, which is held by processes that wait for answers, perhaps for that of the MDT that waits for this recall. So it is
//! done on a thread of its own, and if that takes too long all names are invalidated at once, which waits for nothing (the epoch of
//! FUSE 7.44). Without epochs the kernel keeps no names at all.
//!
//! A name is taken by ending its time, not by removing it: it is the working directory, or the program, of somebody who asks for its path.
//! The kernel looks a name whose time is over up again without its lock on the directory, so that an answer which it has not taken note of
//! yet would bring the time back. Where that can be, all names are invalidated at once, which it sees.
//!
//! Failure: what cannot be taken from the kernel is not answered as taken; the MDT waits for the end of the term.

mod table;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use burstfs_proto::leases::{Recall, Recalled};
use burstfs_types::{ClientId, Errno, Ino, Name};
use futures_util::future::try_join_all;
use tokio::sync::Mutex as AsyncMutex;
use tracing::{debug, info};

use self::table::{Drops, Table};

pub(super) use self::table::Ticket;

const SHARDS: usize = 256;
/// How long names may take to be taken from the kernel one by one.
const NAMES_PATIENCE: Duration = Duration::from_millis(20);
/// More names than can be taken in that time.
const NAMES_AT_ONCE: usize = 4_096;
/// An inode that the kernel is about to be told of is there after a task switch or two.
const RETRY: Duration = Duration::from_micros(500);
const RETRIES: usize = 1_000;

/// The kernel's caches of one mount.
pub trait KernelCache: Send + Sync + 'static {
    /// Drops the attributes of an inode, with `listing` the pages of a directory's listing too, and whatever the kernel asked
    /// for before. False: it does not have the inode. Waits for nothing.
    fn drop_attributes(&self, ino: Ino, listing: bool) -> io::Result<bool>;

    /// Has the kernel look a name up again before it is used once more. Waits for its lock on the directory.
    fn drop_entry(&self, parent: Ino, name: &Name) -> io::Result<()>;

    /// Drops all names. Waits for nothing.
    fn drop_all_entries(&self) -> io::Result<()>;

    /// Whether it can do that.
    fn has_epochs(&self) -> bool;
}

/// What this node's kernel keeps.
pub struct Leases {
    own: ClientId,
    shards: Box<[Mutex<Table>]>,
    /// For each shard what was noted as taken and is not; locked by who takes something.
    unfinished: Box<[AsyncMutex<Drops>]>,
    recalls: AtomicU64,
    began: Instant,
    kernel: RwLock<Option<Arc<dyn KernelCache>>>,
    has_kernel: AtomicBool,
    keeps_names: AtomicBool,
}

impl Leases {
    /// Nothing is kept, as nobody is there who could. `own` is the client that asks the MDTs.
    pub fn new(own: ClientId) -> Leases {
        Leases {
            own,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            unfinished: (0..SHARDS).map(|_| AsyncMutex::default()).collect(),
            recalls: AtomicU64::new(0),
            began: Instant::now(),
            kernel: RwLock::default(),
            has_kernel: AtomicBool::new(false),
            keeps_names: AtomicBool::new(false),
        }
    }

    /// A mount is served from now on.
    pub(crate) fn attach(&self, kernel: Arc<dyn KernelCache>) {
        let keeps_names = kernel.has_epochs();
        if !keeps_names {
            info!("the kernel's FUSE has no epochs; it keeps attributes, and asks for names each time");
        }
        *self.kernel.write().unwrap_or_else(PoisonError::into_inner) = Some(kernel);
        self.keeps_names.store(keeps_names, Ordering::Release);
        self.has_kernel.store(true, Ordering::Release);
    }

    /// The mount is gone, and its caches with it.
    pub(crate) fn detach(&self) {
        self.has_kernel.store(false, Ordering::Release);
        *self.kernel.write().unwrap_or_else(PoisonError::into_inner) = None;
        for shard in &self.shards {
            *shard.lock().unwrap_or_else(PoisonError::into_inner) = Table::default();
        }
    }

    fn kernel(&self) -> Option<Arc<dyn KernelCache>> {
        self.kernel.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn shard(&self, ino: Ino) -> MutexGuard<'_, Table> {
        self.locked(shard_of(ino))
    }

    fn locked(&self, index: usize) -> MutexGuard<'_, Table> {
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// To be taken before an MDT is asked for something that may be kept.
    pub(super) fn ticket(&self) -> Ticket {
        Ticket { recalls: self.recalls.load(Ordering::SeqCst), sent: self.now() }
    }

    /// The kernel is about to be told of an inode, with a name. Before anything is kept of it.
    pub(crate) fn shown(&self, ino: Ino) {
        self.shard(ino).shown(ino);
    }

    /// The kernel has forgotten `count` of the times that it was told.
    pub(crate) fn forgotten(&self, ino: Ino, count: u64) {
        self.shard(ino).forgotten(ino, count);
    }

    /// How long the kernel may keep attributes that came with the answer to `ticket`'s request, where that had a lease.
    pub(super) fn keep_attributes(&self, ticket: Ticket, ino: Ino, has_lease: bool) -> Duration {
        if !has_lease || !self.has_kernel.load(Ordering::Acquire) {
            return Duration::ZERO;
        }
        Duration::from_millis(self.shard(ino).keep_attributes(ticket, ino, self.now()))
    }

    /// The same for what a name stands for.
    pub(super) fn keep_entry(&self, ticket: Ticket, of: (Ino, &Name), is_there: bool, has_lease: bool) -> Duration {
        if !has_lease || !self.keeps_names.load(Ordering::Acquire) {
            return Duration::ZERO;
        }
        Duration::from_millis(self.shard(of.0).keep_entry(ticket, of, is_there, self.now()))
    }

    /// A directory is opened: whether the kernel may keep the listing, and whether it may use the one that it has.
    pub(crate) fn keep_listing(&self, ino: Ino) -> (bool, bool) {
        self.shard(ino).keep_listing(ino, self.now())
    }

    fn next_recall(&self) -> u64 {
        self.recalls.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// This node's processes have changed these inodes, through the kernel.
    pub(super) fn changed(&self, inos: &[Ino]) {
        let Some(kernel) = self.kernel_if_any() else { return };
        let recall = self.next_recall();
        for ino in inos {
            let mut shard = self.shard(*ino);
            // Under the lock: a recall that comes now must not take what is noted as taken for what is taken.
            for (ino, listing) in shard.changed(*ino, recall, self.now()).attributes {
                // The kernel has the inode, or has forgotten it meanwhile: it is the one that made the change.
                if let Err(error) = kernel.drop_attributes(ino, listing) {
                    debug!(%ino, %error, "attributes stay with the kernel for a while");
                }
            }
        }
    }

    fn kernel_if_any(&self) -> Option<Arc<dyn KernelCache>> {
        if self.has_kernel.load(Ordering::Acquire) { self.kernel() } else { None }
    }

    /// The kernel has moved a name, or with `exchanges` two.
    pub(super) fn renamed(&self, from: (Ino, &Name), to: (Ino, &Name), exchanges: bool) {
        if !self.keeps_names.load(Ordering::Acquire) {
            return;
        }
        let mut is_covered = self.moved(from, to);
        if exchanges {
            is_covered &= self.moved(to, from);
        }
        if !is_covered {
            self.drop_all_entries();
        }
    }

    fn moved(&self, from: (Ino, &Name), to: (Ino, &Name)) -> bool {
        let now = self.now();
        // Both directories may be of one shard.
        let until = self.shard(from.0).has_name(from.0, from.1, now);
        match until {
            None => true,
            Some(until) => self.shard(to.0).adopt_name(to.0, to.1, until, now),
        }
    }

    fn drop_all_entries(&self) {
        if let Some(Err(error)) = self.kernel().map(|kernel| kernel.drop_all_entries()) {
            debug!(%error, "the mount is gone");
        }
    }

    /// Something else on this node than the kernel has changed these inodes and these names.
    pub(super) async fn changed_behind_the_kernel(self: &Arc<Self>, inos: &[Ino], names: &[(Ino, &Name)]) {
        let Some(kernel) = self.kernel_if_any() else { return };
        let number = self.next_recall();
        for ino in inos.iter().copied() {
            let taken = self.take_back(shard_of(ino), move |shard, now| shard.changed(ino, number, now)).await;
            if let Err(errno) = taken {
                debug!(%ino, %errno, "attributes stay with the kernel for a while");
            }
        }
        let now = self.now();
        let mut drops = Drops::default();
        names.iter().for_each(|(parent, name)| drops.append(self.shard(*parent).drop_name(*parent, name, now)));
        drop_entries(kernel, drops.entries, drops.has_new).await;
    }

    /// Takes all from the kernel: what is true is not known.
    pub(super) async fn drop_all(self: &Arc<Self>) {
        if let Err(errno) = self.take_all(|_| true).await {
            debug!(%errno, "what could not be taken from the kernel ends with its term");
        }
    }

    /// Answers an MDT. EAGAIN: something could not be taken from the kernel in good time.
    pub async fn recall(self: &Arc<Self>, recall: Recall) -> Result<(), Errno> {
        // An earlier client's mount is gone.
        if recall.client != self.own {
            return Ok(());
        }
        match recall.what {
            Recalled::These(leases) => {
                let number = self.next_recall();
                let takes = leases.into_iter().map(|lease| {
                    self.take_back(shard_of(lease.ino), move |shard, now| shard.recall(lease, number, now))
                });
                try_join_all(takes).await.map(drop)
            }
            Recalled::AllOf(mdt) => self.take_all(move |ino| ino.mdt() == mdt).await,
        }
    }

    async fn take_all(self: &Arc<Self>, concerns: impl Fn(Ino) -> bool + Copy + Send + 'static) -> Result<(), Errno> {
        let number = self.next_recall();
        for index in 0..SHARDS {
            self.take_back(index, move |shard, now| shard.recall_all(concerns, number, now)).await?;
        }
        Ok(())
    }

    /// Takes from the kernel what `take` finds in a shard, and what an attempt before could not. One at a time, so that nobody is
    /// told that the kernel has nothing while somebody else is still taking it; and to the end, whether or not the caller waits.
    async fn take_back(
        self: &Arc<Self>,
        index: usize,
        take: impl FnOnce(&mut Table, u64) -> Drops + Send + 'static,
    ) -> Result<(), Errno> {
        let leases = Arc::clone(self);
        let taken = tokio::spawn(async move {
            let mut unfinished = leases.unfinished[index].lock().await;
            let now = leases.now();
            unfinished.append(take(&mut leases.locked(index), now));
            if unfinished.is_empty() {
                return Ok(());
            }
            let Some(kernel) = leases.kernel() else {
                *unfinished = Drops::default();
                return Ok(());
            };
            while let Some((ino, listing)) = unfinished.attributes.last().copied() {
                leases.drop_attributes(&kernel, ino, listing).await?;
                unfinished.attributes.pop();
            }
            let Drops { entries, has_new, .. } = std::mem::take(&mut *unfinished);
            drop_entries(kernel, entries, has_new).await;
            Ok(())
        });
        taken.await.unwrap_or(Err(Errno::EAGAIN))
    }

    /// An inode that the kernel does not have, though it was told of it, it is about to have: the answer is on its way to the
    /// process that asked, and has the attributes that are to be dropped.
    async fn drop_attributes(&self, kernel: &Arc<dyn KernelCache>, ino: Ino, listing: bool) -> Result<(), Errno> {
        for _ in 0..RETRIES {
            match kernel.drop_attributes(ino, listing) {
                Ok(true) => return Ok(()),
                Ok(false) if !self.shard(ino).is_shown(ino) => return Ok(()),
                Ok(false) => tokio::time::sleep(RETRY).await,
                // The connection is gone, and all caches with it.
                Err(_) => return Ok(()),
            }
        }
        debug!(%ino, "the kernel was told of it and does not have it");
        Err(Errno::EAGAIN)
    }
}

fn shard_of(ino: Ino) -> usize {
    (ino.get() % SHARDS as u64) as usize
}

/// Takes names from the kernel. With `has_new` it may be about to take note of one of them.
async fn drop_entries(kernel: Arc<dyn KernelCache>, entries: Vec<(Ino, Name)>, has_new: bool) {
    if entries.is_empty() {
        return;
    }
    let one_by_one = {
        let (kernel, count) = (Arc::clone(&kernel), entries.len());
        async move {
            if has_new || count > NAMES_AT_ONCE {
                return false;
            }
            let dropped = tokio::task::spawn_blocking(move || {
                for (parent, name) in entries {
                    // An error means that the kernel does not have the name, or that the mount is gone.
                    let _ = kernel.drop_entry(parent, &name);
                }
            });
            tokio::time::timeout(NAMES_PATIENCE, dropped).await.is_ok_and(|joined| joined.is_ok())
        }
    };
    if !one_by_one.await
        && let Err(error) = kernel.drop_all_entries()
    {
        debug!(%error, "the mount is gone");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use burstfs_proto::leases::{Leased, Part};
    use burstfs_types::{MdtIndex, NodeIndex};
    use proptest::prelude::*;

    use super::*;

    const OWN: ClientId = ClientId { node: NodeIndex::new(1), incarnation: 1 };

    /// Has a version of each inode's attributes, and names; counts the times that it lost all names.
    #[derive(Default)]
    struct Kernel {
        attributes: Mutex<HashMap<Ino, u64>>,
        names: Mutex<Vec<(Ino, Name)>>,
        epochs: AtomicU64,
        /// Somebody holds its lock on the directories.
        is_locked: AtomicBool,
    }

    impl KernelCache for Kernel {
        fn drop_attributes(&self, ino: Ino, _listing: bool) -> io::Result<bool> {
            Ok(self.attributes.lock().unwrap().remove(&ino).is_some())
        }

        fn drop_entry(&self, parent: Ino, name: &Name) -> io::Result<()> {
            while self.is_locked.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            self.names.lock().unwrap().retain(|known| (known.0, &known.1) != (parent, name));
            Ok(())
        }

        fn drop_all_entries(&self) -> io::Result<()> {
            self.names.lock().unwrap().clear();
            self.epochs.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }

        fn has_epochs(&self) -> bool {
            true
        }
    }

    fn leases() -> (Arc<Leases>, Arc<Kernel>) {
        let (leases, kernel) = (Arc::new(Leases::new(OWN)), Arc::new(Kernel::default()));
        leases.attach(kernel.clone());
        (leases, kernel)
    }

    fn recall(part: Part) -> Recall {
        Recall { client: OWN, what: Recalled::These(vec![Leased { ino: Ino::ROOT, part }]) }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    /// One step of an MDT, the network, or this node.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Ask,
        Serve(usize),
        Deliver(usize),
        Change,
        DeliverRecall,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Ask),
            3 => any::<usize>().prop_map(Step::Serve),
            3 => any::<usize>().prop_map(Step::Deliver),
            2 => Just(Step::Change),
            2 => Just(Step::DeliverRecall),
        ]
    }

    proptest! {
        /// Requests, answers and recalls overtake one another in every way: the kernel has what is so, or nothing.
        #[test]
        fn nothing_old_is_kept_whatever_overtakes_what(steps in prop::collection::vec(step(), 1..80)) {
            let ((leases, kernel), runtime) = (leases(), runtime());
            let (mut version, mut has_lease, mut is_changing) = (0_u64, false, false);
            let (mut requests, mut answers): (Vec<Ticket>, Vec<(Ticket, u64, bool)>) = (Vec::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Ask => requests.push(leases.ticket()),
                    Step::Serve(index) if !requests.is_empty() => {
                        let ticket = requests.swap_remove(index % requests.len());
                        answers.push((ticket, version, !is_changing));
                        has_lease |= !is_changing;
                    }
                    Step::Deliver(index) if !answers.is_empty() => {
                        let (ticket, version, has_lease) = answers.swap_remove(index % answers.len());
                        if !leases.keep_attributes(ticket, Ino::ROOT, has_lease).is_zero() {
                            kernel.attributes.lock().unwrap().insert(Ino::ROOT, version);
                        }
                    }
                    Step::Change if has_lease => is_changing = true,
                    Step::Change => version += 1,
                    Step::DeliverRecall if is_changing => {
                        runtime.block_on(leases.recall(recall(Part::Attributes))).unwrap();
                        (has_lease, is_changing) = (false, false);
                        version += 1;
                    }
                    Step::Serve(_) | Step::Deliver(_) | Step::DeliverRecall => {}
                }
                let kept = kernel.attributes.lock().unwrap().get(&Ino::ROOT).copied();
                prop_assert!(kept.is_none_or(|kept| kept == version), "{kept:?} is kept, {version} is so");
            }
        }
    }

    #[test]
    fn names_are_taken_one_by_one_or_all_at_once_where_the_directory_is_locked() {
        let ((leases, kernel), runtime) = (leases(), runtime());
        let name = Name::new("a").unwrap();
        // A name that is there may be on its way to the kernel for the second time.
        for (is_there, is_locked, epochs) in [(false, false, 0), (false, true, 1), (true, false, 2)] {
            assert!(!leases.keep_entry(leases.ticket(), (Ino::ROOT, &name), is_there, true).is_zero());
            kernel.names.lock().unwrap().push((Ino::ROOT, name.clone()));
            kernel.is_locked.store(is_locked, Ordering::SeqCst);
            runtime.block_on(leases.recall(recall(Part::Entries))).unwrap();
            assert_eq!(*kernel.names.lock().unwrap(), []);
            assert_eq!(kernel.epochs.load(Ordering::SeqCst), epochs);
            kernel.is_locked.store(false, Ordering::SeqCst);
        }
    }

    #[test]
    fn an_inode_that_the_kernel_is_about_to_have_is_asked_for_again() {
        let ((leases, kernel), runtime) = (leases(), runtime());
        let ino = Ino::from_raw(7).unwrap();
        leases.shown(ino);
        assert!(!leases.keep_attributes(leases.ticket(), ino, true).is_zero());
        let recall = Recall { client: OWN, what: Recalled::These(vec![Leased { ino, part: Part::Attributes }]) };
        let arrive = async {
            tokio::time::sleep(RETRY * 3).await;
            kernel.attributes.lock().unwrap().insert(ino, 1);
        };
        let (answer, ()) = runtime.block_on(futures_util::future::join(leases.recall(recall), arrive));
        assert_eq!((answer, kernel.attributes.lock().unwrap().len()), (Ok(()), 0));
    }

    #[test]
    fn nobody_is_told_that_the_kernel_has_nothing_before_it_is_so() {
        let ((leases, kernel), runtime) = (leases(), runtime());
        let ino = Ino::from_raw(7).unwrap();
        leases.shown(ino);
        assert!(!leases.keep_attributes(leases.ticket(), ino, true).is_zero());
        let recall = || {
            let what = Recalled::These(vec![Leased { ino, part: Part::Attributes }]);
            leases.recall(Recall { client: OWN, what })
        };
        runtime.block_on(async {
            // The MDT gives up waiting, asks again, and so does another one who wants to change it.
            assert!(tokio::time::timeout(RETRY * 2, recall()).await.is_err());
            let arrive = async {
                tokio::time::sleep(RETRY * 20).await;
                kernel.attributes.lock().unwrap().insert(ino, 1);
            };
            let answered = async {
                let answers = futures_util::future::join(recall(), recall()).await;
                (answers, kernel.attributes.lock().unwrap().len())
            };
            let ((answers, left), ()) = futures_util::future::join(answered, arrive).await;
            assert_eq!((answers, left), ((Ok(()), Ok(())), 0));
            assert!(!leases.unfinished[shard_of(ino)].lock().await.attributes.iter().any(|of| of.0 == ino));
        });
        assert_eq!(kernel.attributes.lock().unwrap().len(), 0);
    }

    #[test]
    fn what_could_not_be_taken_is_taken_by_the_next_recall() {
        let ((leases, kernel), runtime) = (leases(), runtime());
        let ino = Ino::from_raw(7).unwrap();
        leases.shown(ino);
        assert!(!leases.keep_attributes(leases.ticket(), ino, true).is_zero());
        let recall = || {
            let what = Recalled::These(vec![Leased { ino, part: Part::Attributes }]);
            runtime.block_on(leases.recall(Recall { client: OWN, what }))
        };
        assert_eq!(recall(), Err(Errno::EAGAIN));
        kernel.attributes.lock().unwrap().insert(ino, 1);
        assert_eq!(recall(), Ok(()));
        assert_eq!(kernel.attributes.lock().unwrap().len(), 0);
    }

    #[test]
    fn an_mdt_that_was_started_again_takes_all_and_an_earlier_clients_recall_nothing() {
        let ((leases, kernel), runtime) = (leases(), runtime());
        let keep = || {
            assert!(!leases.keep_attributes(leases.ticket(), Ino::ROOT, true).is_zero());
            kernel.attributes.lock().unwrap().insert(Ino::ROOT, 1);
        };
        keep();
        let earlier = ClientId { incarnation: 0, ..OWN };
        runtime.block_on(leases.recall(Recall { client: earlier, ..recall(Part::Attributes) })).unwrap();
        assert_eq!(kernel.attributes.lock().unwrap().len(), 1);
        for (mdt, left) in [(1, 1), (0, 0)] {
            let what = Recalled::AllOf(MdtIndex::new(mdt));
            runtime.block_on(leases.recall(Recall { client: OWN, what })).unwrap();
            assert_eq!(kernel.attributes.lock().unwrap().len(), left);
        }
    }
}
