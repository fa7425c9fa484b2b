//! Ends transactions whose course was interrupted: by the death of an MDT, a lost message, a request that was given up.
//!
//! One task for each other MDT, so that one that does not answer keeps nobody else waiting.

use std::collections::BTreeSet;
use std::time::Duration;

use burstfs_proto::Answer;
use burstfs_proto::mds::{Outcome, PeerDecide, PeerOutcome, TxId};
use burstfs_types::MdtIndex;

use super::coordinator::answer_of;
use crate::mdt::Mdt;

/// What an undisturbed transaction takes many times over.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LAST: Duration = Duration::from_secs(2);

impl Mdt {
    /// Ends what is unfinished with `peer`, for ever. Sleeps without a timer while there is nothing.
    pub async fn run_resolver(&self, peer: MdtIndex) {
        let (mut seen, mut pause) = (BTreeSet::new(), PAUSE_FIRST);
        loop {
            let changed = self.txns.unfinished.notified();
            let unfinished = self.unfinished_with(peer);
            if unfinished.is_empty() {
                (seen, pause) = (BTreeSet::new(), PAUSE_FIRST);
                changed.await;
                continue;
            }
            // Most are over before they are seen twice.
            let stuck: Vec<TxId> = unfinished.intersection(&seen).copied().collect();
            pause = if stuck.is_empty() { PAUSE_FIRST } else { (pause * 2).min(PAUSE_LAST) };
            self.resolve(peer, &stuck).await;
            seen = unfinished;
            tokio::time::sleep(pause).await;
        }
    }

    /// Ends whatever is unfinished with `peer`, as far as it answers; how many remain.
    pub async fn resolve_all(&self, peer: MdtIndex) -> usize {
        let unfinished: Vec<TxId> = self.unfinished_with(peer).into_iter().collect();
        self.resolve(peer, &unfinished).await;
        self.unfinished_with(peer).len()
    }

    fn unfinished_with(&self, peer: MdtIndex) -> BTreeSet<TxId> {
        let mut unfinished: BTreeSet<TxId> = self.undecided(peer).into_iter().collect();
        let state = self.txns.state();
        unfinished.extend(state.committed.iter().filter(|(_, left)| left.contains(&peer)).map(|(tx, _)| *tx));
        unfinished
    }

    async fn resolve(&self, peer: MdtIndex, among: &[TxId]) {
        for tx in among {
            if tx.coordinator() == self.index() {
                self.tell_again(peer, *tx).await;
            } else {
                self.ask_again(peer, *tx).await;
            }
        }
    }

    async fn tell_again(&self, peer: MdtIndex, tx: TxId) {
        let is_over =
            self.peers.is_lost(peer) || self.peers.call(peer, PeerDecide { tx, is_commit: true }.into()).await.is_ok();
        if is_over {
            self.told(tx, &[peer]);
        }
    }

    async fn ask_again(&self, peer: MdtIndex, tx: TxId) {
        if self.peers.is_lost(peer) {
            tracing::error!(tx = %tx.number(), "the node that decides on it is lost: dropped");
            return self.end_quietly(tx, false);
        }
        let Ok(reply) = self.peers.call(peer, Mdt::question(tx)).await else { return };
        match answer_of(reply).map(|Answer::<PeerOutcome>(outcome)| outcome) {
            Ok(Outcome::Committed) => self.end_quietly(tx, true),
            Ok(Outcome::Aborted) => self.end_quietly(tx, false),
            Ok(Outcome::Running) | Err(_) => {}
        }
    }
}
