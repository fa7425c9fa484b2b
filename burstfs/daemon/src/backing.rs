//! The way to the broker of backing ids, in tokio's terms.
//!
//! Owns this daemon's end of the socket, and who waits for which answer. An answer that nobody waits for any more is an id
//! that is given back. When the broker is gone every request fails at once: files are then read and written by this daemon.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use burstfs_client::fuse::BackingIds;
use burstfs_node::backing::{self, Answer};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

/// How long an open of a file waits for an id before it does without.
const PATIENCE: Duration = Duration::from_secs(5);
/// For so long an open waits on its own thread: the broker answers within microseconds, and the way over the runtime takes several
/// threads that have to be woken.
const AT_ONCE: Duration = Duration::from_micros(500);

/// The broker.
pub(crate) struct Broker {
    shared: Arc<Shared>,
    closing: mpsc::UnboundedSender<u32>,
}

struct Shared {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    waiting: Mutex<Waiting>,
}

/// Who waits, by ticket; `None` when nobody will be answered any more.
type Waiting = Option<HashMap<u64, oneshot::Sender<io::Result<u32>>>>;

impl Broker {
    /// Takes the socket over. Called in a runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Broker> {
        let socket = register(socket)?;
        let waiting = Mutex::new(Some(HashMap::new()));
        let shared = Arc::new(Shared { socket, next: AtomicU64::new(1), waiting });
        let (closing, queue) = mpsc::unbounded_channel();
        tokio::spawn(hear(Arc::clone(&shared), closing.clone()));
        tokio::spawn(give_back(Arc::clone(&shared), queue));
        Ok(Broker { shared, closing })
    }
}

fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` has the same, open descriptor for as long as it lives.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}

#[async_trait]
impl BackingIds for Broker {
    async fn open(&self, file: BorrowedFd<'_>) -> io::Result<u32> {
        let ticket = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (tell, mut told) = oneshot::channel();
        match self.shared.waiting().as_mut() {
            Some(waiting) => waiting.insert(ticket, tell),
            None => return Err(gone()),
        };
        self.shared.send(|socket| backing::send_open(socket, ticket, file)).await.inspect_err(|_| {
            self.shared.take(ticket);
        })?;
        if let Some(answer) = self.shared.hear_at_once(&mut told, &self.closing) {
            return answer;
        }
        let answer = tokio::time::timeout(PATIENCE, told).await.map_err(|_| {
            self.shared.take(ticket);
            io::Error::from(io::ErrorKind::TimedOut)
        })?;
        answer.unwrap_or_else(|_| Err(gone()))
    }

    fn close(&self, id: u32) {
        // Fails only where the runtime has ended, and the mount with it.
        let _ = self.closing.send(id);
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "burstfs-node's broker is gone")
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, ticket: u64) -> Option<oneshot::Sender<io::Result<u32>>> {
        self.waiting().as_mut().and_then(|waiting| waiting.remove(&ticket))
    }

    async fn send(&self, send: impl Fn(BorrowedFd<'_>) -> Result<(), Errno> + Send) -> io::Result<()> {
        match send(self.socket.as_fd()) {
            Err(Errno::AGAIN) => self.socket.async_io(Interest::WRITABLE, |socket| Ok(send(socket.as_fd())?)).await,
            sent => Ok(sent?),
        }
    }

    /// Waits a moment for an answer, without leaving the thread. Answers to others are handed on. What goes wrong is left to [`hear`].
    fn hear_at_once(
        &self,
        told: &mut oneshot::Receiver<io::Result<u32>>,
        closing: &mpsc::UnboundedSender<u32>,
    ) -> Option<io::Result<u32>> {
        let end = Instant::now() + AT_ONCE;
        loop {
            match told.try_recv() {
                Ok(answer) => return Some(answer),
                Err(oneshot::error::TryRecvError::Closed) => return Some(Err(gone())),
                Err(oneshot::error::TryRecvError::Empty) => {}
            }
            let left = end.saturating_duration_since(Instant::now());
            let limit = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            let mut sockets = [PollFd::new(self.socket.get_ref(), PollFlags::IN)];
            match rustix::event::poll(&mut sockets, Some(&limit)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return told.try_recv().ok(),
            }
            match backing::receive(self.socket.get_ref().as_fd()) {
                Ok(Some(answer)) => self.deliver(answer, closing),
                // Somebody else was quicker: it may have been this one's.
                Err(Errno::AGAIN) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Hands an answer to whoever waits for it; an id that nobody wants is given back.
    fn deliver(&self, answer: Answer, closing: &mpsc::UnboundedSender<u32>) {
        let id = answer.id.map_err(io::Error::from);
        let unheard = match self.take(answer.ticket) {
            Some(tell) => tell.send(id).err(),
            None => Some(id),
        };
        if let Some(Ok(id)) = unheard {
            let _ = closing.send(id);
        }
    }

    async fn receive(&self) -> io::Result<Option<Answer>> {
        self.socket.async_io(Interest::READABLE, |socket| Ok(backing::receive(socket.as_fd())?)).await
    }
}

async fn hear(shared: Arc<Shared>, closing: mpsc::UnboundedSender<u32>) {
    let why = loop {
        match shared.receive().await {
            Ok(Some(answer)) => shared.deliver(answer, &closing),
            Ok(None) => break gone(),
            Err(error) => break error,
        }
    };
    // Whoever waits hears that his sender is gone.
    *shared.waiting() = None;
    tracing::info!("no more files are passed through to the kernel: {why}");
}

async fn give_back(shared: Arc<Shared>, mut queue: mpsc::UnboundedReceiver<u32>) {
    while let Some(id) = queue.recv().await {
        if let Err(error) = shared.send(|socket| backing::send_close(socket, id)).await {
            tracing::debug!(id, %error, "a backing id ends with its connection");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The other end, which answers what the test wants.
    async fn pair() -> (Broker, AsyncFd<OwnedFd>) {
        let (ours, theirs) = backing::socket_pair().unwrap();
        (Broker::new(ours).unwrap(), register(theirs).unwrap())
    }

    async fn hear_words(socket: &AsyncFd<OwnedFd>) -> [u64; 3] {
        let mut bytes = [0; 24];
        let read = |fd: &OwnedFd| {
            let (len, _) = rustix::net::recv(fd, &mut bytes, rustix::net::RecvFlags::DONTWAIT)?;
            Ok(len)
        };
        assert_eq!(socket.async_io(Interest::READABLE, read).await.unwrap(), 24);
        let word = |at: usize| u64::from_le_bytes(bytes[at * 8..][..8].try_into().unwrap());
        [word(0), word(1), word(2)]
    }

    fn say_words(socket: &AsyncFd<OwnedFd>, words: [u64; 3]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(rustix::net::send(socket, &bytes, rustix::net::SendFlags::empty()).unwrap(), 24);
    }

    #[tokio::test]
    async fn answers_find_those_who_wait() {
        let (broker, theirs) = pair().await;
        let file = tempfile::tempfile().unwrap();
        let (first, second, ()) = tokio::join!(broker.open(file.as_fd()), broker.open(file.as_fd()), async {
            let tickets = [hear_words(&theirs).await[1], hear_words(&theirs).await[1]];
            say_words(&theirs, [tickets[1], 0, 20]);
            say_words(&theirs, [tickets[0], Errno::ACCESS.raw_os_error() as u64, 0]);
        });
        assert_eq!(first.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(second.unwrap(), 20);
        broker.close(20);
        assert_eq!(hear_words(&theirs).await[2], 20);
    }

    #[tokio::test]
    async fn an_id_that_comes_too_late_is_given_back() {
        let (broker, theirs) = pair().await;
        let file = tempfile::tempfile().unwrap();
        let asked = tokio::select! {
            _ = broker.open(file.as_fd()) => panic!("nobody has answered"),
            words = hear_words(&theirs) => words,
        };
        say_words(&theirs, [asked[1], 0, 33]);
        assert_eq!(hear_words(&theirs).await[2], 33);
    }

    #[tokio::test]
    async fn without_a_broker_requests_fail_at_once() {
        let (broker, theirs) = pair().await;
        let file = tempfile::tempfile().unwrap();
        let (waited, ()) = tokio::join!(broker.open(file.as_fd()), async {
            hear_words(&theirs).await;
            drop(theirs);
        });
        assert_eq!(waited.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(broker.open(file.as_fd()).await.is_err());
    }
}
