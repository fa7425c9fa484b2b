//! `burstfs-node stop`: a job's epilog on this node. Waits until the instance is drained and gone, or kept with a reason; or,
//! where the site wants its nodes back at once, until it is unmounted.

use burstfs_types::{Code, InstanceId};

use crate::error::NodeError;
use crate::log;
use crate::node_socket::Report;
use crate::request::{JobKey, Variables};
use crate::settings::Settings;
use crate::store::{RunBase, Storage};
use crate::takeover;

/// Ends the instances of the job on this node. Slurm runs epilogs late, twice, and where there was no prolog.
pub(crate) fn run(settings: &Settings, variables: Variables<'_>) -> Result<(), NodeError> {
    let key = JobKey::read(variables)?;
    let run_base = RunBase::open(&settings.run_dir)?;
    let mut result = Ok(());
    for instance in known(settings, &run_base)?.into_iter().filter(|instance| key.covers(instance)) {
        match takeover::end(settings, &run_base, &instance) {
            Ok(report) => tell(&instance, &report),
            // The others are ended all the same.
            Err(error) => result = Err(error),
        }
    }
    result
}

fn tell(instance: &InstanceId, report: &Report) {
    for warning in &report.warnings {
        log::warning!("{instance}: {warning}");
    }
    if let Some(held) = &report.held {
        let (until, why) = (log::until(held.kept_until), &held.failure);
        log::warning!("{instance}: {}: data is kept on this node {until}: {why}", Code::Held);
    }
    if report.is_draining {
        log::info!("{instance}: the drain goes on without the epilog");
    }
}

/// Every instance of which anything is on this node.
pub(crate) fn known(settings: &Settings, run_base: &RunBase) -> Result<Vec<InstanceId>, NodeError> {
    let storage = Storage::open(&settings.nvme);
    if let Err(failure) = &storage {
        log::warning!("{failure}");
    }
    known_in(run_base, storage.ok().as_ref())
}

/// Every instance of which anything is in these places.
pub(crate) fn known_in(run_base: &RunBase, storage: Option<&Storage>) -> Result<Vec<InstanceId>, NodeError> {
    let mut instances = run_base.instances()?;
    if let Some(storage) = storage {
        instances.extend(storage.instances()?);
    }
    instances.sort();
    instances.dedup();
    Ok(instances)
}
