//! `burstfs status`: every matching job's instance, asked at its MGS; also of jobs that are over, where the instance is not.

use std::io::IsTerminal;
use std::time::SystemTime;

use burstfs_config::SiteConfig;
use burstfs_mgs::Note;
use burstfs_proto::mgs::{Input, InstanceStatus, StageFigures, State, Status};
use burstfs_types::hostlist;
use nix::unistd::{Uid, User};

use crate::ask::{self, AskError, Place};
use crate::slurm::{self, Filter, Job};
use crate::table::{self, Form};
use crate::{Ending, Exit, StatusArgs, notes};

/// Prints the status of what `args` ask for. Ends with [`Exit::NoInstance`] when jobs were named and one of them has none.
pub(crate) fn run(args: &StatusArgs, config: &SiteConfig) -> Result<(), Ending> {
    let filter = filter(args)?;
    let jobs = slurm::jobs(&filter).map_err(|error| Ending::new(Exit::Failure, error))?;
    let (rows, errors) = ask_all(places(&jobs, &filter)?, config)?;
    print(args, &rows)?;
    for (job, error) in &errors {
        eprintln!("burstfs: job {job}: {error}");
    }
    let is_shown = |id: &u32| rows.iter().any(|(shown, _)| shown == id);
    match (errors.iter().map(|(_, error)| error.exit()).max(), args.jobs.iter().find(|id| !is_shown(id))) {
        (Some(exit), _) => Err(Ending::new(exit, "not every instance answered")),
        (None, Some(id)) => Err(Ending::new(Exit::NoInstance, format!("job {id} has no instance now"))),
        (None, None) => Ok(()),
    }
}

fn filter(args: &StatusArgs) -> Result<Filter, Ending> {
    let hosts = match &args.nodelist {
        Some(text) => hostlist::expand(text).map_err(|error| Ending::new(Exit::Usage, error))?,
        None => Vec::new(),
    };
    let users = if args.user.is_empty() && args.jobs.is_empty() { own_jobs_only() } else { args.user.clone() };
    Ok(Filter { jobs: args.jobs.clone(), users, hosts })
}

/// Root sees everybody's instances, others their own.
fn own_jobs_only() -> Vec<String> {
    let uid = Uid::current();
    let user = (!uid.is_root()).then(|| User::from_uid(uid).ok().flatten()).flatten();
    user.map(|user| user.name).into_iter().collect()
}

/// Where to ask, for which job, and what its note says if the instance outlives the job.
pub(crate) type Asked = (u32, Place, Option<Note>);

/// The instances of `jobs`, and those of users' jobs that are over.
pub(crate) fn places(jobs: &[Job], filter: &Filter) -> Result<Vec<Asked>, Ending> {
    let mut places = Vec::new();
    if !jobs.is_empty() {
        let cluster = slurm::cluster_name().map_err(|error| Ending::new(Exit::Failure, error))?;
        for job in jobs {
            places.extend(Place::of(job, &cluster)?.map(|place| (job.id, place, None)));
        }
    }
    for (instance, note) in notes::of(&filter.users) {
        let (id, restart_count) = (instance.job_id(), instance.restart_count());
        let job = Job { id, user: note.user.clone(), state: String::new(), hosts: note.hosts.clone(), restart_count };
        if filter.accepts(&job) && !jobs.iter().any(|job| (job.id, job.restart_count) == (id, restart_count)) {
            places.push((id, Place::noted(instance, &note)?, Some(note)));
        }
    }
    Ok(places)
}

type Answers = (Vec<(u32, InstanceStatus)>, Vec<(u32, AskError)>);

fn ask_all(places: Vec<Asked>, config: &SiteConfig) -> Result<Answers, Ending> {
    let failure = |error: &dyn std::fmt::Display| Ending::new(Exit::Failure, error);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failure(&error))?;
    let (mut rows, mut errors) = (Vec::new(), Vec::new());
    for (id, place, note) in places {
        match (runtime.block_on(ask::ask(&place, &Status, ask::TIMEOUT, config)), note) {
            (Ok(Some(status)), _) => rows.push((id, status)),
            (Ok(None), None) => {}
            // Its first node may be off, or between two attempts.
            (Ok(None) | Err(_), Some(note)) => rows.extend(as_noted(note, place.host()).map(|status| (id, status))),
            (Err(error), None) => errors.push((id, error)),
        }
    }
    Ok((rows, errors))
}

/// What the note says of an instance that does not answer; nothing once its time is over.
fn as_noted(note: Note, host: &str) -> Option<InstanceStatus> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    if note.kept_until.is_some_and(|until| until < now) {
        return None;
    }
    Some(InstanceStatus {
        instance: note.instance,
        name: note.name,
        user: note.user,
        state: if note.kept_until.is_some() { State::Held } else { State::Draining },
        missing: vec![host.to_owned()],
        hosts: note.hosts,
        capacity: note.capacity,
        used: 0,
        stage_in: StageFigures::default(),
        input: Input::Complete,
        stage_out: StageFigures::default(),
        transport: String::new(),
        receipt: note.receipt,
        kept_until: note.kept_until,
        attempts: 0,
        reason: format!("{host} does not answer; {}", note.reason),
    })
}

fn print(args: &StatusArgs, rows: &[(u32, InstanceStatus)]) -> Result<(), Ending> {
    if args.json {
        let statuses: Vec<&InstanceStatus> = rows.iter().map(|(_, status)| status).collect();
        let document = serde_json::json!({ "version": 1, "instances": statuses });
        let text = if std::io::stdout().is_terminal() { format!("{document:#}") } else { document.to_string() };
        println!("{text}");
        return Ok(());
    }
    let columns = if args.format.is_empty() { table::DEFAULT.to_vec() } else { args.format.clone() };
    let form = match (args.parsable, args.noheader) {
        (true, _) => Form::Parsable,
        (false, true) => Form::NoHeader,
        (false, false) => Form::Table,
    };
    print!("{}", table::render(&columns, rows, form));
    Ok(())
}
