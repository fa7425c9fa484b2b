//! `burstfs wait`: until the input is there, or the output is drained.
//!
//! The MGS knows; when the instance is gone, the receipt has the last word. Between the two, and while the MGS is started again
//! or moves, nobody answers: silence is waited out, and is never taken for an end.

use std::thread;
use std::time::{Duration, Instant};

use burstfs_config::SiteConfig;
use burstfs_proto::mgs::{Input, InstanceStatus, State, Status};

use crate::ask::{self, AskError};
use crate::bar::Bar;
use crate::slurm::{self, Filter};
use crate::{Ending, Exit, own_job, report, status};

/// Between two looks.
const STEP: Duration = Duration::from_millis(500);
/// How long nobody may answer for an instance that Slurm or a note knows of.
const PATIENCE: Duration = Duration::from_secs(90);

/// What to wait for.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["staged_in", "drained"])))]
pub(crate) struct WaitArgs {
    /// Until the job's input is there.
    #[arg(long)]
    staged_in: bool,
    /// Until the job has ended and its output is drained.
    #[arg(long)]
    drained: bool,
    /// The job; in a job its own.
    #[arg(short, long, value_name = "JOBID")]
    job: Option<u32>,
    /// For at most so many seconds; exit 5 then.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

/// What a look finds.
enum Seen {
    /// The instance answers.
    Status(Box<InstanceStatus>),
    /// Slurm has not started the job.
    Pending,
    /// There is an instance, and nobody answers for it.
    Silent,
    /// There is none, or none any more.
    Gone,
}

/// Waits.
pub(crate) fn run(args: &WaitArgs, config: &SiteConfig) -> Result<(), Ending> {
    let job = args.job.map_or_else(own_job, Ok)?;
    let until = args.timeout.map(|secs| Instant::now() + Duration::from_secs(secs));
    let mut bar = Bar::new(if args.drained { "drained" } else { "staged in" }, false);
    let mut watch = Watch { job, instance: None, silent_since: None };
    loop {
        let ended = match (watch.look(config)?, args.drained) {
            (Seen::Pending, _) => None,
            (Seen::Status(status), true) => drained(&status, &mut bar),
            (Seen::Status(status), false) => staged_in(&status, &mut bar),
            // A drain may have ended between two looks.
            (Seen::Silent, true) if watch.verdict().is_ok_and(|is_complete| is_complete) => Some(Ok(())),
            (Seen::Silent, _) => watch.is_lost().then(|| Err(watch.nobody())),
            (Seen::Gone, true) => Some(watch.conclude()),
            (Seen::Gone, false) => Some(Err(Ending::new(Exit::NoInstance, format!("job {job} has no instance now")))),
        };
        if let Some(ended) = ended {
            bar.clear();
            return ended;
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            bar.clear();
            return Err(Ending::new(Exit::TimeOut, "it is not over yet"));
        }
        thread::sleep(STEP);
    }
}

struct Watch {
    job: u32,
    /// The instance that was seen last: a job that is requeued gets another.
    instance: Option<String>,
    silent_since: Option<Instant>,
}

impl Watch {
    fn look(&mut self, config: &SiteConfig) -> Result<Seen, Ending> {
        let failure = |error: &dyn std::fmt::Display| Ending::new(Exit::Failure, error);
        let filter = Filter { jobs: vec![self.job], ..Filter::default() };
        let jobs = slurm::jobs(&filter).map_err(|error| failure(&error))?;
        let Some((_, place, _)) = status::places(&jobs, &filter)?.into_iter().next() else {
            self.silent_since = None;
            return match slurm::is_pending(self.job).map_err(|error| failure(&error))? {
                true => Ok(Seen::Pending),
                false => Ok(Seen::Gone),
            };
        };
        self.instance = Some(place.instance().to_string());
        match ask::runtime()?.block_on(ask::ask(&place, &Status, ask::TIMEOUT, config)) {
            Ok(Some(status)) => {
                self.silent_since = None;
                Ok(Seen::Status(Box::new(status)))
            }
            Err(AskError::NotYours) => Err(Ending::new(Exit::Permission, AskError::NotYours)),
            Ok(None) | Err(AskError::Resolve { .. } | AskError::Call { .. }) => {
                self.silent_since.get_or_insert_with(Instant::now);
                Ok(Seen::Silent)
            }
        }
    }

    fn is_lost(&self) -> bool {
        self.silent_since.is_some_and(|since| since.elapsed() > PATIENCE)
    }

    fn nobody(&self) -> Ending {
        let message = format!("nobody has answered for job {} for {} s; has it burstfs?", self.job, PATIENCE.as_secs());
        Ending::new(Exit::NoInstance, message)
    }

    fn verdict(&self) -> Result<bool, Ending> {
        report::is_complete(self.job, self.instance.as_deref())
    }

    /// The instance is gone: what its receipt says.
    fn conclude(&self) -> Result<(), Ending> {
        match self.verdict()? {
            true => Ok(()),
            false => {
                let message = format!("the drain of job {} is not complete; see: burstfs report {0}", self.job);
                Err(Ending::new(Exit::Partial, message))
            }
        }
    }
}

fn staged_in(status: &InstanceStatus, bar: &mut Bar) -> Option<Result<(), Ending>> {
    match status.state {
        State::Starting => None,
        State::StagingIn => {
            bar.show(&status.stage_in);
            None
        }
        State::Ready if status.input == Input::Async => {
            bar.show(&status.stage_in);
            None
        }
        State::Ready | State::Draining | State::Drained | State::Held => Some(match status.input {
            Input::Complete => Ok(()),
            Input::Async => Err(Ending::new(Exit::Partial, "the job ended before all of its input was there")),
            Input::Partial => Err(Ending::new(Exit::Partial, &status.reason)),
        }),
        State::Failed => Some(Err(Ending::new(Exit::Failure, &status.reason))),
    }
}

fn drained(status: &InstanceStatus, bar: &mut Bar) -> Option<Result<(), Ending>> {
    match status.state {
        State::Starting | State::StagingIn | State::Ready => None,
        State::Draining => {
            bar.show(&status.stage_out);
            None
        }
        // What could not be drained, and is not kept.
        State::Drained if status.dropped.is_some() => Some(Err(Ending::new(Exit::Partial, &status.reason))),
        State::Drained => Some(Ok(())),
        State::Held => Some(Err(Ending::new(Exit::Partial, &status.reason))),
        State::Failed => Some(Err(Ending::new(Exit::Failure, &status.reason))),
    }
}
