//! A channel's connection: made when first used, made again when lost, by one caller at a time.
//!
//! ```text
//!              call                connected
//!   no link ----------> connecting ----------> link --- lost ---> no link (again after the back-off's pause)
//!      ^                   |   ^---- failed, for a while ----.
//!      `-- refused --------+-------------------------------- /
//!   close(): from anywhere to closed, for good
//! ```

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep_until, timeout_at};
use tracing::debug;

use crate::auth::Identity;
use crate::channel::Deadline;
use crate::error::{Remedy, RpcError, Waiting};
use crate::transport::{Link, Transport};

/// One attempt to connect, hello included: munged may be slow on a busy node, a dead host answers nothing.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A connection that is lost sooner counts as a failed attempt.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// Makes and keeps a channel's connection.
pub(crate) struct Connector {
    transport: Arc<dyn Transport>,
    identity: Arc<Identity>,
    address: SocketAddr,
    state: Mutex<State>,
    closed: watch::Sender<bool>,
    /// Held by the one caller that connects for all.
    baton: Semaphore,
}

#[derive(Default)]
struct State {
    link: Option<(Arc<dyn Link>, Instant)>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Connector {
    pub(crate) fn new(transport: Arc<dyn Transport>, identity: Arc<Identity>, address: SocketAddr) -> Connector {
        Connector {
            transport,
            identity,
            address,
            state: Mutex::default(),
            closed: watch::Sender::new(false),
            baton: Semaphore::new(1),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The connection, made where there is none. Tries until `deadline`, but not against a refusal.
    pub(crate) async fn link(&self, deadline: Deadline) -> Result<Arc<dyn Link>, RpcError> {
        if let Some(link) = self.current() {
            return Ok(link);
        }
        let timeout = |_| RpcError::Timeout(Waiting::Connection);
        let baton = timeout_at(deadline.instant(), self.baton.acquire()).await.map_err(timeout)?;
        let _baton = baton.map_err(|_| RpcError::Closed)?;
        let mut last = RpcError::Timeout(Waiting::Connection);
        loop {
            if let Some(link) = self.current() {
                return Ok(link);
            }
            if timeout_at(deadline.instant(), self.pause()).await.is_err() {
                return Err(at_deadline(last));
            }
            last = match self.attempt(deadline).await {
                Ok(link) => return self.keep(link),
                Err(error) => error,
            };
            if last.remedy() == Remedy::Fail && !matches!(last, RpcError::Timeout(_)) {
                return Err(last);
            }
            if deadline.has_passed() {
                return Err(at_deadline(last));
            }
            debug!(server = %self.address, error = %last, "cannot connect, trying again");
            self.failed();
        }
    }

    /// Connects once, at once.
    pub(crate) async fn link_once(&self, deadline: Deadline) -> Result<Arc<dyn Link>, RpcError> {
        let link = self.attempt(deadline).await?;
        self.keep(link)
    }

    /// The connection, where there is a live one. A lost one is put away here.
    pub(crate) fn current(&self) -> Option<Arc<dyn Link>> {
        let mut state = self.state();
        let (link, since) = state.link.as_ref()?;
        if !link.is_closed() {
            return Some(link.clone());
        }
        let lived = since.elapsed();
        state.link = None;
        if lived < STABLE_AFTER {
            drop(state);
            self.failed();
        } else {
            state.failures = 0;
        }
        None
    }

    /// Ends it for good.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
        if let Some((link, _)) = self.state().link.take() {
            link.close();
        }
    }

    /// Waits until [`Connector::close`].
    pub(crate) async fn closed(&self) {
        // An error would mean that the sender is gone, and it is here.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    async fn attempt(&self, deadline: Deadline) -> Result<Arc<dyn Link>, RpcError> {
        let until = deadline.instant().min(tokio::time::Instant::now() + ATTEMPT_MAX);
        let connecting = self.transport.connect(self.address, &self.identity);
        timeout_at(until, connecting).await.unwrap_or(Err(RpcError::Timeout(Waiting::Connection)))
    }

    fn keep(&self, link: Arc<dyn Link>) -> Result<Arc<dyn Link>, RpcError> {
        let mut state = self.state();
        if *self.closed.borrow() {
            drop(state);
            link.close();
            return Err(RpcError::Closed);
        }
        state.link = Some((link.clone(), Instant::now()));
        Ok(link)
    }

    async fn pause(&self) {
        let until = self.state().not_before;
        if let Some(until) = until {
            sleep_until(until.into()).await;
        }
    }

    fn failed(&self) {
        let mut state = self.state();
        let pause = (PAUSE_MIN * (1 << state.failures.min(10))).min(PAUSE_MAX);
        // Up to a quarter less, so that many clients of a restarted server do not come in step.
        let jitter = RandomState::new().hash_one(state.failures) % 256;
        let pause = pause - pause / 4 * u32::try_from(jitter).unwrap_or(0) / 256;
        state.failures = state.failures.saturating_add(1);
        state.not_before = Some(Instant::now() + pause);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        self.close();
    }
}

/// What a caller is told whose deadline comes while nothing works: a time-out, unless the reason is one that he can do
/// something about.
fn at_deadline(last: RpcError) -> RpcError {
    match last {
        RpcError::Unauthenticated(_) | RpcError::Refused(_) => last,
        RpcError::Errno(_)
        | RpcError::Timeout(_)
        | RpcError::Protocol(_)
        | RpcError::Unreachable(_)
        | RpcError::Closed => RpcError::Timeout(Waiting::Connection),
    }
}
