//! The participant's side: a promise, and its end.

use std::time::Duration;

use burstfs_proto::mds::{
    DirectoryPlace, Looked, MdsReply, MdsRequest, Named, PeerDecide, PeerLook, PeerOutcome, PeerParent, PeerPrepare,
    Step, TxId,
};
use burstfs_types::{Attr, Errno, Ino, Timestamp};
use serde::{Deserialize, Serialize};

use super::step;
use crate::leases::Conflicts;
use crate::mdt::{Mdt, errno_of, logged};
use crate::namespace::OpError;
use crate::record::{decode, encode, key};
use crate::store::{Overlay, StoreError, Transaction, for_each};

/// A promise: what is done when the transaction is committed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Intent {
    now: Timestamp,
    steps: Vec<Step>,
    /// The number of the directory that a step makes.
    made: Option<Ino>,
    /// The answer to the preparation, which may be asked for again.
    attrs: Vec<Attr>,
}

/// How long a recall may take within a request of another MDT, which asks again then.
const RECALL_PATIENCE: Duration = Duration::from_millis(100);

/// What came of trying to promise.
enum Prepared {
    Done(Vec<Attr>),
    Leased(Conflicts),
}

impl Intent {
    /// The directory, or shard of one, that is not there yet; the steps have one each at most.
    fn made(&self) -> Option<Named> {
        self.made.map(|ino| Named { ino, kind: burstfs_types::FileKind::Directory })
    }
}

impl Mdt {
    /// Answers another MDT, or this one in the course of its own transactions. Waits for no other transaction, and for a recall
    /// of leases not for long.
    pub(crate) async fn answer_peer(&self, request: &MdsRequest) -> Result<MdsReply, Errno> {
        let reply = match request {
            MdsRequest::PeerPrepare(it) => self.prepare_without_leases(it).await.map(MdsReply::PeerPrepare),
            MdsRequest::PeerDecide(it) => self.end(it).map(MdsReply::PeerDecide),
            MdsRequest::PeerOutcome(it) => self.outcome(it).map(MdsReply::PeerOutcome).map_err(OpError::Errno),
            MdsRequest::PeerLook(it) => self.look_here(it),
            MdsRequest::PeerParent(it) => self.parent_here(it),
            MdsRequest::PeerRecords(it) => self.records(it).map(MdsReply::PeerRecords).map_err(OpError::Store),
            _ => Err(Errno::EPROTO.into()),
        };
        reply.map_err(|error| errno_of(&error))
    }

    fn look_here(&self, request: &PeerLook) -> Result<MdsReply, OpError> {
        let stripe = self.locks.read(request.parent);
        if stripe.is_name_promised(request.parent, &request.name) {
            return Err(Errno::EBUSY.into());
        }
        let is_promised = stripe.is_promised(request.parent);
        let looked = self.with_namespace(|ns| {
            let directory = ns.directory_with(request.parent, &request.name)?.head();
            let dentry = ns.dentry(request.parent, &request.name)?;
            let named = dentry.map(|dentry| Named { ino: dentry.ino, kind: dentry.kind });
            Ok(MdsReply::PeerLook(Looked { named, directory }))
        });
        match looked {
            // The name may be on its way here.
            Err(OpError::Errno(Errno::EREMCHG)) if is_promised => Err(Errno::EBUSY.into()),
            looked => looked,
        }
    }

    fn parent_here(&self, request: &PeerParent) -> Result<MdsReply, OpError> {
        let stripe = self.locks.read(request.ino);
        if stripe.is_promised(request.ino) {
            return Err(Errno::EBUSY.into());
        }
        self.with_namespace(|ns| match ns.directory(request.ino) {
            Ok(directory) => {
                let (parent, shards) = (directory.parent, directory.spread.others().to_vec());
                Ok(MdsReply::PeerParent(DirectoryPlace { parent, shards }))
            }
            Err(OpError::Errno(_)) => Err(Errno::ESTALE.into()),
            Err(error) => Err(error),
        })
    }

    async fn prepare_without_leases(&self, request: &PeerPrepare) -> Result<Vec<Attr>, OpError> {
        self.leases_recovered().await;
        loop {
            match self.prepare(request)? {
                Prepared::Done(attrs) => return Ok(attrs),
                Prepared::Leased(conflicts) => {
                    let recalled = tokio::time::timeout(RECALL_PATIENCE, self.recall(conflicts)).await;
                    recalled.map_err(|_| Errno::EBUSY)?;
                }
            }
        }
    }

    /// Promises a part of a transaction. EBUSY when another transaction holds what it concerns.
    fn prepare(&self, request: &PeerPrepare) -> Result<Prepared, OpError> {
        let PeerPrepare { tx, client, oldest, now, steps } = request;
        self.txns.admit(*tx, *oldest)?;
        let makes = |step: &Step| matches!(step, Step::MakeDirectory(_) | Step::MakeShard { .. });
        let made = if steps.iter().any(makes) { Some(self.inos.take(&*self.engine)?) } else { None };
        let needs = step::needs(steps, made);
        let mut locked = self.locks.write(needs.inos());
        if let Some(intent) = self.intent(*tx)? {
            return Ok(Prepared::Done(intent.attrs));
        }
        // Under the locks, since the decision may have come in between, and have gone with the intent.
        self.txns.admit(*tx, *oldest)?;
        if locked.is_held_by_other(&needs, Some(*tx)) {
            return Err(Errno::EBUSY.into());
        }
        let attrs = self.check_steps(&locked, *now, steps, made)?;
        if let Some(conflicts) = self.leases.conflicts_of(&needs, *client) {
            return Ok(Prepared::Leased(conflicts));
        }
        let intent = Intent { now: *now, steps: steps.clone(), made, attrs: attrs.clone() };
        self.engine.commit(vec![(key::intent(*tx), Some(encode(&intent)))])?;
        locked.promise(*tx, &needs);
        self.txns.state().prepared.insert(*tx);
        self.txns.unfinished.notify_waiters();
        Ok(Prepared::Done(attrs))
    }

    fn intent(&self, tx: TxId) -> Result<Option<Intent>, StoreError> {
        let key = key::intent(tx);
        self.engine.get(&key)?.map(|value| decode(&key, &value)).transpose()
    }

    /// Keeps a promise, or drops it.
    pub(super) fn end(&self, request: &PeerDecide) -> Result<(), OpError> {
        let tx = request.tx;
        let Some(intent) = self.intent(tx)? else {
            self.txns.finish(tx);
            return Ok(());
        };
        let needs = step::needs(&intent.steps, intent.made);
        let mut locked = self.locks.write(needs.inos());
        let mut overlay = Overlay::new(&*self.engine);
        if overlay.get(&key::intent(tx))?.is_none() {
            return Ok(());
        }
        overlay.delete(key::intent(tx));
        let effects = match request.is_commit {
            true => {
                let made: Vec<Named> = intent.made().into_iter().collect();
                Some(self.apply_steps(&locked, &mut overlay, intent.now, &intent.steps, &made)?)
            }
            false => None,
        };
        overlay.commit()?;
        if let Some(effects) = effects {
            self.count(&effects);
        }
        locked.release(tx, &needs);
        self.txns.finish(tx);
        drop(locked);
        self.locks.notify_released();
        Ok(())
    }

    /// Holds again what was promised before a restart.
    pub(crate) fn hold_promises(&self) -> Result<(), StoreError> {
        for_each(&*self.engine, &[key::INTENT], |key, value| {
            let Some(number) = key::ino_of(key) else { return Ok(()) };
            let intent: Intent = decode(key, value)?;
            let needs = step::needs(&intent.steps, intent.made);
            self.locks.write(needs.inos()).promise(TxId::new(number), &needs);
            Ok(())
        })
    }

    /// What this MDT has promised and has heard nothing of.
    pub(super) fn undecided(&self, coordinator: burstfs_types::MdtIndex) -> Vec<TxId> {
        let state = self.txns.state();
        state.prepared.iter().filter(|tx| tx.coordinator() == coordinator).copied().collect()
    }

    /// The end of a promise that is not a request: an error of the store is logged, and it is tried again.
    pub(super) fn end_quietly(&self, tx: TxId, is_commit: bool) {
        if let Err(error) = self.end(&PeerDecide { tx, is_commit }) {
            match error {
                OpError::Store(error) => drop(logged(&error)),
                OpError::Errno(errno) => tracing::error!(tx = %tx.number(), %errno, "a promise cannot be kept"),
                OpError::Several => {}
            }
        }
    }

    /// The question to the coordinator.
    pub(super) fn question(tx: TxId) -> MdsRequest {
        PeerOutcome { tx }.into()
    }
}
