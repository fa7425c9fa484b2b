//! A job's whole request, and its canonical JSON.

use burstfs_types::{Code, limits};
use serde::{Deserialize, Serialize};

use crate::accumulator::too_large;
use crate::create::{Capacity, Create};
use crate::error::SpecError;
use crate::path::Values;
use crate::staging::{StageIn, StageOut, overlap};
use crate::words::DrainOn;

/// The version of the JSON. Both sides are the same build, so any other is refused.
pub const SPEC_VERSION: u32 = 1;

/// What a job asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobSpec {
    /// The instance.
    pub create: Create,
    /// What is copied in, in order.
    pub stage_in: Vec<StageIn>,
    /// What is copied out, in order.
    pub stage_out: Vec<StageOut>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StageDirection {
    In,
    Out,
}

impl StageDirection {
    pub(crate) fn verb(self) -> &'static str {
        match self {
            StageDirection::In => "stage_in",
            StageDirection::Out => "stage_out",
        }
    }
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    create: &'a Create,
    stage_in: &'a [StageIn],
    stage_out: &'a [StageOut],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    version: u32,
    create: Create,
    stage_in: Vec<StageIn>,
    stage_out: Vec<StageOut>,
}

impl JobSpec {
    /// The canonical JSON. Fails when it is longer than 64 KiB.
    pub fn to_json(&self) -> Result<String, SpecError> {
        let written = Written {
            version: SPEC_VERSION,
            create: &self.create,
            stage_in: &self.stage_in,
            stage_out: &self.stage_out,
        };
        let json = serde_json::to_string(&written)
            .map_err(|error| SpecError::new(Code::Internal, format!("the request as JSON: {error}")))?;
        if json.len() > limits::SPEC_MAX_BYTES {
            return Err(SpecError::new(Code::SpecTooLarge, too_large(json.len())));
        }
        Ok(json)
    }

    /// Reads what [`JobSpec::to_json`] wrote, or what somebody else did: everything is checked as in a directive.
    pub fn from_json(json: &str) -> Result<JobSpec, SpecError> {
        if json.len() > limits::SPEC_MAX_BYTES {
            return Err(SpecError::new(Code::SpecTooLarge, too_large(json.len())));
        }
        let read: Read = serde_json::from_str(json)
            .map_err(|error| SpecError::new(Code::Request, format!("the request is not what sbatch sends: {error}")))?;
        if read.version != SPEC_VERSION {
            let message = format!("the request has version {}, this is version {SPEC_VERSION}", read.version);
            return Err(SpecError::new(Code::Request, message));
        }
        let spec = JobSpec { create: read.create, stage_in: read.stage_in, stage_out: read.stage_out };
        spec.check()?;
        Ok(spec)
    }

    /// Replaces the variables that `values` knows, in all paths, and checks again that no destinations overlap.
    pub fn bind(&self, values: &Values) -> Result<JobSpec, SpecError> {
        let mut bound = self.clone();
        for stage in &mut bound.stage_in {
            stage.source = stage.source.bind(values)?;
            stage.destination = stage.destination.bind(values)?;
            stage.list = stage.list.as_ref().map(|list| list.bind(values)).transpose()?;
        }
        for stage in &mut bound.stage_out {
            stage.source = stage.source.bind(values)?;
            stage.destination = stage.destination.bind(values)?;
            stage.list = stage.list.as_ref().map(|list| list.bind(values)).transpose()?;
        }
        bound.check()?;
        Ok(bound)
    }

    /// The bytes that each of `nodes` nodes must have; `default_per_node` is the site's, for a job that did not say.
    pub fn bytes_per_node(&self, nodes: u32, default_per_node: u64) -> u64 {
        self.create.capacity.map_or(default_per_node, |capacity| capacity.bytes_per_node(nodes))
    }

    /// What was understood, a line each, for the user to see.
    pub fn echo(&self) -> Vec<String> {
        let mut lines = vec![match self.create.capacity {
            Some(Capacity::Total(size)) => format!("burstfs: capacity {size} = {} bytes", size.bytes()),
            Some(Capacity::PerNode(size)) => format!("burstfs: per_node {size} = {} bytes on each node", size.bytes()),
            None => "burstfs: capacity: the site's default".to_owned(),
        }];
        lines.extend(self.stage_in.iter().map(|s| format!("burstfs: stage_in {} to {}", s.source, s.destination)));
        lines.extend(self.stage_out.iter().map(|s| format!("burstfs: stage_out {} to {}", s.source, s.destination)));
        lines
    }

    /// Directives that ask for exactly this, every key spelled out.
    pub fn directives(&self) -> Vec<String> {
        let mut directives = vec![self.create.to_directive()];
        directives.extend(self.stage_in.iter().map(StageIn::to_directive));
        directives.extend(self.stage_out.iter().map(StageOut::to_directive));
        directives
    }

    /// What holds between the parts.
    fn check(&self) -> Result<(), SpecError> {
        self.create.check()?;
        self.stage_in.iter().try_for_each(StageIn::check)?;
        self.stage_out.iter().try_for_each(StageOut::check)?;
        let stage_in = self.stage_in.iter().map(|s| (s.written(), s.destination.to_string())).collect();
        check_overlaps(StageDirection::In, stage_in)?;
        // What is drained after one end of the job never meets what is drained after the other only.
        [DrainOn::Success, DrainOn::Failure].into_iter().try_for_each(|end| {
            let drained = self.stage_out.iter().filter(|s| s.on == DrainOn::Always || s.on == end);
            check_overlaps(StageDirection::Out, drained.map(|s| (s.written(), s.destination.to_string())).collect())
        })
    }
}

/// After sorting, whatever lies within a destination follows it at once, or follows something that does.
fn check_overlaps(direction: StageDirection, mut written: Vec<(Vec<String>, String)>) -> Result<(), SpecError> {
    written.sort();
    match written.windows(2).find(|pair| overlap(&pair[0].0, &pair[1].0)) {
        None => Ok(()),
        Some(pair) => {
            let message = format!("destinations of {} overlap: {} and {}", direction.verb(), pair[0].1, pair[1].1);
            Err(SpecError::new(Code::Conflict, message))
        }
    }
}
