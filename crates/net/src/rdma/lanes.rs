//! Several connections to one peer, used as one link: over all devices that both have, and as many over each as is configured.
//!
//! Requests take turns over the lanes that are there. A lane that fails loses its own requests only, and they are sent again over the
//! others under their numbers; it is connected again in the background. The link is over with its last lane.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use super::lane_table::{Lane, LaneTable};
use super::{Rdma, client};
use crate::auth::Identity;
use crate::error::{RpcError, Waiting};
use crate::transport::{Link, Lost, LostCause, Outcome, Request};

/// How long the first lane waits for the others when a link is made; those that come later are put in then.
const OTHERS: Duration = Duration::from_millis(500);
/// One attempt to connect a lane again.
const ATTEMPT: Duration = Duration::from_secs(4);
/// How often lanes are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// One lane's way: through which device, to which address.
type Way = (usize, SocketAddr);

/// Where lanes go: each device with its counterpart where both sides have as many, else round about.
fn ways(rails: usize, there: &[SocketAddr], connections: usize) -> Vec<Way> {
    let pairs = rails.max(there.len());
    (0..pairs * connections).filter_map(|lane| Some((lane % rails, *there.get(lane % there.len().max(1))?))).collect()
}

/// Connects to a peer; one lane is enough for a link.
pub(super) async fn connect(
    transport: &Rdma,
    there: &[SocketAddr],
    identity: &Identity,
) -> Result<Arc<dyn Link>, RpcError> {
    let ways = ways(transport.rails.len(), there, transport.connections);
    if let [(rail, address)] = ways[..] {
        return client::connect(transport, rail, address, identity).await;
    }
    let mut attempts: FuturesUnordered<_> =
        (ways.iter().enumerate())
            .map(|(lane, (rail, address))| async move {
                (lane, client::connect(transport, *rail, *address, identity).await)
            })
            .collect();
    let lanes = Arc::new(Lanes::new(ways.clone()));
    let mut last = RpcError::Timeout(Waiting::Connection);
    while lanes.is_closed() {
        match attempts.next().await {
            Some((lane, Ok(link))) => lanes.table.put(lane, link),
            Some((_, Err(error))) => last = error,
            None => return Err(last),
        }
    }
    let others = async {
        while let Some((lane, connected)) = attempts.next().await {
            match connected {
                Ok(link) => lanes.table.put(lane, link),
                Err(error) => debug!(%error, "one of several RDMA connections is not there yet"),
            }
        }
    };
    // What is not connected by then is tried again below.
    let _ = timeout(OTHERS, others).await;
    tokio::spawn(mend(Arc::downgrade(&lanes), lanes.over.subscribe(), transport.clone(), identity.clone()));
    Ok(lanes)
}

/// The lanes to one peer.
struct Lanes {
    table: LaneTable<Arc<dyn Link>>,
    ways: Vec<Way>,
    /// For the task that mends.
    over: watch::Sender<bool>,
}

impl Lane for Arc<dyn Link> {
    fn is_live(&self) -> bool {
        !self.is_closed()
    }

    fn replies(&self) -> u64 {
        Link::replies(&**self)
    }

    fn close(&self) {
        Link::close(&**self);
    }
}

impl Lanes {
    fn new(ways: Vec<Way>) -> Lanes {
        Lanes { table: LaneTable::new(ways.len()), ways, over: watch::Sender::new(false) }
    }
}

impl Link for Lanes {
    fn submit(&self, request: Request, done: oneshot::Sender<Outcome>) {
        match self.table.next() {
            Some(link) => link.submit(request, done),
            // Whoever has stopped waiting does not hear it.
            None => drop(done.send(Err(Box::new(Lost { cause: LostCause::Disconnected, request })))),
        }
    }

    fn is_closed(&self) -> bool {
        self.table.is_over()
    }

    fn replies(&self) -> u64 {
        self.table.replies()
    }

    fn close(&self) {
        self.over.send_replace(true);
        self.table.close();
    }
}

/// Connects lanes again that are not there, for as long as the link lives.
async fn mend(lanes: Weak<Lanes>, mut over: watch::Receiver<bool>, transport: Rdma, identity: Identity) {
    loop {
        tokio::select! {
            // Also when the link was dropped.
            _ = over.wait_for(|over| *over) => return,
            () = sleep(LOOK) => {}
        }
        let missing: Vec<(usize, Way)> = match lanes.upgrade() {
            // Without any lane it is the channel's to connect again.
            Some(lanes) if !lanes.is_closed() => {
                lanes.table.missing().into_iter().map(|lane| (lane, lanes.ways[lane])).collect()
            }
            _ => return,
        };
        for (lane, (rail, address)) in missing {
            let connected = timeout(ATTEMPT, client::connect(&transport, rail, address, &identity)).await;
            match (connected, lanes.upgrade()) {
                (Ok(Ok(link)), Some(lanes)) => {
                    info!(peer = %address, "an RDMA connection is there again");
                    lanes.table.put(lane, link);
                }
                (Ok(Err(error)), Some(_)) => debug!(peer = %address, %error, "an RDMA connection is still missing"),
                (Err(_), Some(_)) => debug!(peer = %address, "an RDMA connection is still missing"),
                (_, None) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use burstfs_types::Xid;

    use super::*;
    use crate::transport::{ClientBulk, Reply, Ticket};

    /// Answers at once, until it is closed.
    #[derive(Default)]
    struct Prompt {
        is_closed: AtomicBool,
        replies: AtomicU64,
    }

    impl Link for Prompt {
        fn submit(&self, request: Request, done: oneshot::Sender<Outcome>) {
            self.replies.fetch_add(1, Ordering::Relaxed);
            done.send(Ok(Reply { result: Ok(request.body), sink: None })).unwrap();
        }

        fn is_closed(&self) -> bool {
            self.is_closed.load(Ordering::Relaxed)
        }

        fn replies(&self) -> u64 {
            self.replies.load(Ordering::Relaxed)
        }

        fn close(&self) {
            self.is_closed.store(true, Ordering::Relaxed);
        }
    }

    fn is_answered(lanes: &Lanes) -> bool {
        let (xid, body, bulk, ticket) = (Xid(1), bytes::Bytes::new(), ClientBulk::None, Ticket::default());
        let (done, mut outcome) = oneshot::channel();
        lanes.submit(Request { xid, oldest: xid, opcode: 1, body, bulk, ticket }, done);
        outcome.try_recv().unwrap().is_ok()
    }

    #[test]
    fn requests_take_turns_over_the_lanes_that_are_there() {
        let lanes = Lanes::new(ways(1, &at(&[1]), 3));
        assert!(lanes.is_closed() && !is_answered(&lanes));
        let links: Vec<Arc<Prompt>> = (0..3).map(|_| Arc::default()).collect();
        let replies = || -> Vec<u64> { links.iter().map(|link| link.replies()).collect() };
        for (lane, link) in links.iter().enumerate() {
            lanes.table.put(lane, link.clone());
        }
        assert!((0..6).all(|_| is_answered(&lanes)));
        assert_eq!(replies(), [2, 2, 2]);
        links[1].close();
        assert!((0..6).all(|_| is_answered(&lanes)));
        assert_eq!((replies()[1], lanes.replies()), (2, 12));
        // Another link in its place; what the first one answered still counts.
        lanes.table.put(1, Arc::<Prompt>::default());
        assert!((0..3).all(|_| is_answered(&lanes)));
        assert_eq!(lanes.replies(), 15);
        links[0].close();
        links[2].close();
        assert!(!lanes.is_closed() && is_answered(&lanes));
        lanes.close();
        assert!(lanes.is_closed() && !is_answered(&lanes));
        // A lane that comes after the end is closed at once.
        let late = Arc::<Prompt>::default();
        lanes.table.put(0, late.clone());
        assert!(late.is_closed());
    }

    fn at(ports: &[u16]) -> Vec<SocketAddr> {
        ports.iter().map(|port| ([10, 0, 0, 1], *port).into()).collect()
    }

    #[test]
    fn devices_are_paired_and_lanes_are_dealt_out() {
        let ports = |rails, there: &[u16], connections| -> Vec<(usize, u16)> {
            ways(rails, &at(there), connections).into_iter().map(|(rail, address)| (rail, address.port())).collect()
        };
        assert_eq!(ports(1, &[1], 1), [(0, 1)]);
        assert_eq!(ports(1, &[1], 2), [(0, 1), (0, 1)]);
        assert_eq!(ports(2, &[1, 2], 1), [(0, 1), (1, 2)]);
        assert_eq!(ports(2, &[1], 1), [(0, 1), (1, 1)]);
        assert_eq!(ports(1, &[1, 2, 3], 1), [(0, 1), (0, 2), (0, 3)]);
        assert_eq!(ports(2, &[], 1), []);
    }
}
