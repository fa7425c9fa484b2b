//! The coordinator's side.

use std::time::Duration;

use burstfs_proto::Answer;
use burstfs_proto::Rpc;
use burstfs_proto::mds::{MdsReply, MdsRequest, Named, Outcome, PeerDecide, PeerOutcome, PeerPrepare, Step, TxId};
use burstfs_types::{Attr, ClientId, Errno, MdtIndex, Timestamp};
use futures_util::future::join_all;

use super::plan::{self, Plan};
use super::step;
use crate::locks::Hold;
use crate::mdt::{Job, Mdt, errno_of};
use crate::namespace::{Effects, OpError};
use crate::record::{encode, key};
use crate::store::{Overlay, Transaction};

/// After so many plans that were overtaken the caller gets EIO: others do get on, or something is broken.
const PLANS_MAX: u32 = 1_000;
/// Between two questions to an MDT that holds what is asked for.
const PAUSE_FIRST: Duration = Duration::from_millis(1);
const PAUSE_LAST: Duration = Duration::from_millis(50);
/// How long something may be held by another transaction, whose coordinator may have to be started again.
const PATIENCE: Duration = Duration::from_secs(50);

/// A transaction that this MDT coordinates and has not decided. Dropped, it is aborted.
struct Running<'m> {
    mdt: &'m Mdt,
    tx: TxId,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.mdt.txns.state().running.remove(&self.tx);
    }
}

/// What the MDTs have promised.
#[derive(Default)]
struct Promises<'m> {
    /// What this MDT holds of its own.
    own: Option<Hold<'m>>,
    others: Vec<MdtIndex>,
    /// What they have answered.
    attrs: Vec<Attr>,
}

/// The answer to `R` out of a reply.
pub(super) fn answer_of<R: Rpc>(reply: MdsReply) -> Result<Answer<R>, Errno>
where
    Answer<R>: TryFrom<MdsReply>,
{
    Answer::try_from(reply).map_err(|_| Errno::EPROTO)
}

impl Mdt {
    /// Runs a request that concerns several MDTs.
    pub(crate) async fn transact(&self, job: &Job<'_>) -> Result<MdsReply, Errno> {
        for attempt in 0..PLANS_MAX {
            let (plan, _rename_lock) = self.plan(job.request, attempt > 0).await?;
            match self.carry_out(Some(job), &plan).await {
                Err(Errno::EAGAIN) => {}
                result => return result?.ok_or(Errno::EPROTO),
            }
        }
        tracing::error!(request = job.request.name(), "planned {PLANS_MAX} times and always overtaken");
        Err(Errno::EIO)
    }

    /// Runs what was planned; `job` is the request that it is for, whose answer is given. EAGAIN when it was overtaken.
    pub(crate) async fn carry_out(&self, job: Option<&Job<'_>>, plan: &Plan) -> Result<Option<MdsReply>, Errno> {
        let running = self.begin_transaction().map_err(|error| errno_of(&error))?;
        let (tx, now) = (running.tx, self.now());
        let mut promises = Promises::default();
        let decided = match self.gather((tx, job.map(|job| job.client.id)), now, plan, &mut promises).await {
            Ok(()) => self.decide(job, tx, now, plan, &promises),
            Err(errno) => Err(errno),
        };
        // What is own was changed, or will not be.
        drop(promises.own);
        drop(running);
        self.tell(tx, &promises.others, decided.is_ok()).await;
        decided
    }

    fn begin_transaction(&self) -> Result<Running<'_>, OpError> {
        // The number is taken under the lock, so that none that is below the oldest running one can still appear.
        let mut state = self.txns.state();
        let tx = TxId::new(self.inos.take(&*self.engine)?);
        state.running.insert(tx);
        Ok(Running { mdt: self, tx })
    }

    /// Has each MDT promise its part, in ascending order.
    async fn gather<'m>(
        &'m self,
        (tx, client): (TxId, Option<ClientId>),
        now: Timestamp,
        plan: &Plan,
        promises: &mut Promises<'m>,
    ) -> Result<(), Errno> {
        for (mdt, steps) in &plan.parts {
            if *mdt == self.index() {
                let (own, attrs) = self.promise_own((tx, client), now, steps).await?;
                promises.own = Some(own);
                promises.attrs.extend(attrs);
                continue;
            }
            let oldest = self.txns.oldest().unwrap_or(tx);
            let request = PeerPrepare { tx, client, oldest, now, steps: steps.clone() };
            let Answer::<PeerPrepare>(attrs) = answer_of(self.ask_patiently(*mdt, &request.into()).await?)?;
            promises.others.push(*mdt);
            promises.attrs.extend(attrs);
        }
        Ok(())
    }

    /// Waits until what the own steps concern is free, and nobody else keeps anything of it; checks them and holds it. With what
    /// the answer needs.
    async fn promise_own(
        &self,
        (tx, client): (TxId, Option<ClientId>),
        now: Timestamp,
        steps: &[Step],
    ) -> Result<(Hold<'_>, Vec<Attr>), Errno> {
        self.leases_recovered().await;
        let needs = step::needs(steps, None);
        loop {
            let released = self.locks.released();
            let conflicts = {
                let mut locked = self.locks.write(needs.inos());
                if locked.is_held_by_other(&needs, Some(tx)) {
                    None
                } else {
                    let attrs = self.check_steps(&locked, now, steps, None).map_err(|error| errno_of(&error))?;
                    match self.leases.conflicts_of(&needs, client) {
                        None => return Ok((self.locks.hold(&mut locked, tx, &needs), attrs)),
                        conflicts => conflicts,
                    }
                }
            };
            match conflicts {
                Some(conflicts) => self.recall(conflicts).await,
                None => released.await,
            }
        }
    }

    /// The moment of the operation: own steps, the reply, and the decision are one batch.
    fn decide(
        &self,
        job: Option<&Job<'_>>,
        tx: TxId,
        now: Timestamp,
        plan: &Plan,
        promises: &Promises<'_>,
    ) -> Result<Option<MdsReply>, Errno> {
        let reply = job.map(|job| plan::reply(job.request, promises.attrs.last().cloned())).transpose()?;
        let answered: Vec<Named> = promises.attrs.iter().map(|attr| Named { ino: attr.ino, kind: attr.kind }).collect();
        let own = plan.parts.get(&self.index()).map_or(&[][..], Vec::as_slice);
        let locked = self.locks.write(step::needs(own, None).inos());
        if job.is_some_and(|job| job.client.is_evicted()) {
            return Err(Errno::ESTALE);
        }
        let mut overlay = Overlay::new(&*self.engine);
        let effects = self.apply_steps(&locked, &mut overlay, now, own, &answered).map_err(|error| errno_of(&error))?;
        if let (Some(job), Some(reply)) = (job, &reply)
            && let Some(running) = job.running
        {
            running.store(&mut overlay, job.request, reply);
        }
        if !promises.others.is_empty() {
            overlay.put(key::committed(tx), encode(&promises.others));
        }
        // Nobody asks for the outcome in between: it is "running" until this is over.
        overlay.commit().map_err(|error| errno_of(&OpError::Store(error)))?;
        if !promises.others.is_empty() {
            self.txns.state().committed.insert(tx, promises.others.clone());
            self.txns.unfinished.notify_waiters();
        }
        self.count(&effects);
        self.note_growth(&effects, job.map(|job| job.client.id.node));
        Ok(reply)
    }

    /// Tells the participants. Those that do not hear it now ask, or are told later.
    async fn tell(&self, tx: TxId, participants: &[MdtIndex], is_commit: bool) {
        let tell = |mdt: &MdtIndex| {
            let mdt = *mdt;
            async move { self.peers.call(mdt, PeerDecide { tx, is_commit }.into()).await.is_ok().then_some(mdt) }
        };
        let told: Vec<MdtIndex> = join_all(participants.iter().map(tell)).await.into_iter().flatten().collect();
        if is_commit && !participants.is_empty() {
            self.told(tx, &told);
        }
    }

    /// Takes note that these participants have done their part of `tx`.
    pub(super) fn told(&self, tx: TxId, told: &[MdtIndex]) {
        let mut state = self.txns.state();
        let Some(remaining) = state.committed.get_mut(&tx) else { return };
        remaining.retain(|mdt| !told.contains(mdt));
        if !remaining.is_empty() {
            self.txns.unfinished.notify_waiters();
            return;
        }
        // The record goes before the memory of it: a participant that asks in between is told that it has happened.
        if let Err(error) = self.engine.commit(vec![(key::committed(tx), None)]) {
            // It is told again after the next start, which changes nothing.
            crate::mdt::logged(&error);
        }
        state.committed.remove(&tx);
    }

    /// Asks `mdt`, which may be this one, until it is not busy.
    pub(super) async fn ask_patiently(&self, mdt: MdtIndex, request: &MdsRequest) -> Result<MdsReply, Errno> {
        let (mut pause, mut waited) = (PAUSE_FIRST, Duration::ZERO);
        loop {
            let reply = match mdt == self.index() {
                true => self.answer_peer(request).await,
                false => self.peers.call(mdt, request.clone()).await,
            };
            match reply {
                Err(Errno::EBUSY) if waited < PATIENCE => {}
                Err(Errno::EBUSY) => return Err(Errno::ETIMEDOUT),
                reply => return reply,
            }
            tokio::time::sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(PAUSE_LAST);
        }
    }

    /// What became of a transaction of this MDT's.
    pub(super) fn outcome(&self, request: &PeerOutcome) -> Result<Outcome, Errno> {
        if request.tx.coordinator() == self.index() { Ok(self.txns.outcome(request.tx)) } else { Err(Errno::EPROTO) }
    }

    /// Checks `steps`; gives what the coordinator's answer needs.
    pub(super) fn check_steps(
        &self,
        locked: &crate::locks::Locked<'_>,
        now: Timestamp,
        steps: &[Step],
        made: Option<burstfs_types::Ino>,
    ) -> Result<Vec<Attr>, OpError> {
        let mut overlay = Overlay::new(&*self.engine);
        self.with_steps(locked, &mut overlay, now, |ns| {
            let attrs = steps.iter().map(|step| step::check(ns, step, made));
            Ok(attrs.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
        })
        .map(|(attrs, _)| attrs)
    }

    /// Does `steps` in `overlay`.
    pub(super) fn apply_steps(
        &self,
        locked: &crate::locks::Locked<'_>,
        overlay: &mut Overlay<'_>,
        now: Timestamp,
        steps: &[Step],
        answered: &[Named],
    ) -> Result<Effects, OpError> {
        self.with_steps(locked, overlay, now, |ns| steps.iter().try_for_each(|step| step::apply(ns, step, answered)))
            .map(|((), effects)| effects)
    }
}
