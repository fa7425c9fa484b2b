//! A life of the daemon that drains what an earlier one could not: waits until an attempt can begin, makes it, and ends.
//!
//! ```text
//!   find the MGS --> join --(begin)--> open end as at any job's end: barrier, drain, conclusion, barrier --> drained
//!                      |                                                                                       |
//!                      '-- node 0 begins: when asked, when it is time, when nodes that were missing are there  '-> or again,
//!                                                                                                 in the next life
//! ```
//! Owns when an attempt begins (on node 0), and what this node does meanwhile. What it knows comes with its description, from
//! the supervisor's journal; so a reboot, a killed process and a failed attempt are one and the same.
//!
//! Failure: a life that cannot begin ends; the supervisor starts the next after a pause.

use std::sync::Arc;
use std::time::Duration;

use burstfs_node::control::{DaemonMessage, NodeMessage, State};
use burstfs_node::description::InstanceDescription;
use burstfs_node::held::Held;
use burstfs_proto::mgs::Resume;
use burstfs_types::{Failure, NodeIndex};
use tokio::sync::{mpsc, watch};

use crate::control::Supervisor;
use crate::directory::Directory;
use crate::life::{self, Life, NotDrained, ticks};
use crate::mgs::MgsDriver;
use crate::{node, note};

/// Runs until the supervisor says stop.
pub(crate) async fn run(
    description: Arc<InstanceDescription>,
    held: Held,
    messages: &mut mpsc::Receiver<NodeMessage>,
    supervisor: &Supervisor,
) {
    supervisor.say(DaemonMessage::State(State::Held)).await;
    let (asked, is_asked) = watch::channel(false);
    let attempted = tokio::select! {
        attempted = attempt(description.clone(), &held, is_asked, supervisor) => attempted,
        () = heed(messages, &asked, &description) => return,
    };
    match attempted {
        Ok(message) => supervisor.say(message).await,
        Err(failure) => {
            tracing::info!("{failure}");
            supervisor.say(DaemonMessage::Failed(failure)).await;
        }
    }
    heed(messages, &asked, &description).await;
}

/// Does what the supervisor says, until it says stop.
async fn heed(
    messages: &mut mpsc::Receiver<NodeMessage>,
    asked: &watch::Sender<bool>,
    description: &Arc<InstanceDescription>,
) {
    loop {
        match messages.recv().await {
            Some(NodeMessage::Stop) => return,
            Some(NodeMessage::Resume) => drop(asked.send_replace(true)),
            Some(NodeMessage::Removed(why)) if description.node_index == 0 => note::removed(description, why).await,
            Some(
                NodeMessage::Removed(_)
                | NodeMessage::ClientGone
                | NodeMessage::Cancel
                | NodeMessage::Start(_)
                | NodeMessage::JobEnd(_),
            ) => {}
            None => std::future::pending().await,
        }
    }
}

/// One attempt, when it can be made. An error means that there was none.
async fn attempt(
    description: Arc<InstanceDescription>,
    held: &Held,
    asked: watch::Receiver<bool>,
    supervisor: &Supervisor,
) -> Result<DaemonMessage, Failure> {
    let joining = node::find_directory(&description).await?;
    let mgs = joining.directory.seat().mgs().cloned();
    if let Some(mgs) = &mgs {
        tokio::spawn(conduct(mgs.clone(), held.clone(), node::silence(&description)));
    }
    tokio::spawn(pass_on(asked, joining.directory.clone()));
    let node = joining.join(&description).await?;
    if let Some(mgs) = mgs {
        tokio::spawn(mgs.listen(ticks(node::silence(&description))));
    }
    supervisor.say(DaemonMessage::State(State::Draining)).await;
    let life = Life::of(description, node, supervisor).await?;
    Ok(life::drained(life.end().await, held.suspects.clone()))
}

/// Tells the MGS when an attempt is wanted.
async fn pass_on(mut asked: watch::Receiver<bool>, directory: Directory) {
    // An error means that this life is over.
    if asked.wait_for(|is_asked| *is_asked).await.is_ok()
        && let Err(error) = directory.call(Resume::default()).await
    {
        tracing::info!("the MGS does not hear that an attempt is wanted: {error}");
    }
}

/// Begins the attempt when there is a reason to, with all nodes, or without those that are not there after a while.
async fn conduct(mgs: Arc<MgsDriver>, held: Held, patience: Duration) {
    let is_time = async {
        match held.hope.errors_may_pass {
            true => tokio::time::sleep(held.pause()).await,
            false => std::future::pending().await,
        }
    };
    let have_returned = async {
        match held.hope.nodes_may_return {
            true => mgs.until(burstfs_mgs::Mgs::is_complete).await,
            false => std::future::pending().await,
        }
    };
    tokio::select! {
        () = is_time => {}
        () = have_returned => {}
        () = mgs.until(burstfs_mgs::Mgs::is_asked) => {}
    }
    if tokio::time::timeout(patience, mgs.until(burstfs_mgs::Mgs::is_complete)).await.is_err() {
        tracing::info!("not all nodes are there; what the others have is drained");
    }
    mgs.begin();
}

impl NotDrained {
    /// Nothing is known but that it failed.
    pub(crate) fn unknown(failure: Failure) -> NotDrained {
        NotDrained { failure, hope: burstfs_node::held::Hope::ALL }
    }
}

/// The hosts of `nodes`, compressed.
pub(crate) fn hosts(description: &InstanceDescription, is_wanted: impl Fn(NodeIndex) -> bool) -> String {
    let hosts = (0_u16..).map(NodeIndex::new).zip(&description.nodes).filter(|(node, _)| is_wanted(*node));
    let hosts: Vec<String> = hosts.map(|(_, host)| host.clone()).collect();
    burstfs_types::hostlist::compress(&hosts)
}
