//! A local directory as the instance, a queue in memory, faults, and a comparison of trees.

pub mod compare;
pub mod queue;
pub mod tree;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use burstfs_proto::mgs::StageFigures;
use burstfs_proto::stage::Direction;
use burstfs_stager::{
    Cancel, Config, DrainedFiles, Engine, Header, InstanceTree, Ledger, Occasion, Outcome, Progress, RetryPolicy,
    RoundTally, Selection, StageJob, seed, seed_round,
};
use burstfs_types::NodeIndex;
use queue::Records;

/// What a run came to.
pub struct Ran {
    pub outcome: Outcome,
    pub ledger: Arc<Ledger>,
    pub figures: Vec<StageFigures>,
}

pub struct Run<'a> {
    pub nodes: u16,
    pub attempt: u32,
    pub jobs: Vec<StageJob>,
    /// Journals and records; one directory per node is made in it.
    pub stage_dir: &'a Path,
}

pub const JOB_ID: u32 = 42;

impl Run<'_> {
    pub async fn go(self, direction: Direction, tree: Arc<dyn InstanceTree>) -> Ran {
        std::fs::create_dir_all(self.stage_dir).unwrap();
        let ledger = Arc::new(Ledger::create(self.stage_dir, direction, self.jobs.clone(), JOB_ID).unwrap());
        let shared = queue::Shared::new(seed(&ledger, self.attempt), Records::Ledger(ledger.clone()), self.nodes);
        let progress = self.work(direction, &tree, &shared, Occasion::Alone).await;
        let outcome = ledger.finish(tree, &[]).await;
        Ran { outcome, ledger, figures: progress.iter().map(|progress| progress.figures()).collect() }
    }

    /// A round while the job runs.
    pub async fn round(self, tree: Arc<dyn InstanceTree>, selection: Selection) -> RoundTally {
        let tally = Records::Tally(Mutex::default());
        let shared = queue::Shared::new(seed_round(&self.jobs, self.attempt), tally, self.nodes);
        self.work(Direction::Out, &tree, &shared, Occasion::Round(selection)).await;
        std::mem::take(&mut *shared.tally().lock().unwrap())
    }

    async fn work(
        &self,
        direction: Direction,
        tree: &Arc<dyn InstanceTree>,
        shared: &Arc<queue::Shared>,
        occasion: Occasion,
    ) -> Vec<Arc<Progress>> {
        let mut engines = tokio::task::JoinSet::new();
        let mut progress = Vec::new();
        for node in 0..self.nodes {
            let stage_dir = self.stage_dir.join(format!("node{node}"));
            std::fs::create_dir_all(&stage_dir).unwrap();
            let has_rounds = occasion != Occasion::Alone || DrainedFiles::was_in(&stage_dir);
            let drained = has_rounds.then(|| Arc::new(DrainedFiles::open(&stage_dir).unwrap()));
            let counters = Arc::new(Progress::default());
            progress.push(counters.clone());
            let engine = Engine::open(
                direction,
                self.jobs.clone(),
                tree.clone(),
                Config {
                    node: NodeIndex::new(node),
                    nodes: self.nodes,
                    job_id: JOB_ID,
                    workers: 4,
                    stage_dir,
                    mount: b"/burstfs/42".to_vec(),
                    retry: RetryPolicy { retries: 3, first_delay: Duration::from_micros(100) },
                    occasion: occasion.clone(),
                    drained,
                },
                counters,
                Cancel::default(),
            )
            .unwrap();
            let queue = shared.node(NodeIndex::new(node));
            engines.spawn(async move { engine.run(queue).await });
        }
        while let Some(ended) = engines.join_next().await {
            ended.unwrap().unwrap();
        }
        progress
    }
}

impl Ran {
    /// The receipt, read back as the JSON that it must be.
    pub fn receipt(&self, into: &Path) -> serde_json::Value {
        let header = Header {
            instance: "vc.42.0".to_owned(),
            job_id: JOB_ID,
            user: "alice".to_owned(),
            began: "2026-01-01T00:00:00Z".to_owned(),
            ended: "2026-01-01T00:01:00Z".to_owned(),
            job_end: None,
            kept: None,
        };
        let path = self.ledger.write_receipt(&header, into).unwrap();
        let receipt: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let said = receipt["result"] == "COMPLETE";
        assert_eq!(said, self.outcome.is_complete);
        receipt
    }
}

pub fn job(direction: Direction, source: &Path, destination: &Path, contents: bool) -> StageJob {
    let mut source = source.as_os_str().as_bytes().to_vec();
    if contents && !source.ends_with(b"/") {
        source.push(b'/');
    }
    StageJob::new(direction, source, destination.as_os_str().as_bytes())
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}
