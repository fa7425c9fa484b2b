//! `burstfs status`: every matching job's instance, asked at its MGS; also of jobs that are over, where the instance is not.

use std::cmp::Reverse;
use std::io::{IsTerminal, Write};
use std::time::{Duration, SystemTime};

use burstfs_config::SiteConfig;
use burstfs_mgs::Note;
use burstfs_proto::mgs::{Input, InstanceStatus, StageFigures, State, Status};
use burstfs_types::hostlist;
use nix::unistd::{Uid, User};

use crate::ask::{self, AskError, Place};
use crate::slurm::{self, Filter, Job};
use crate::table::{self, Form};
use crate::{DfArgs, Ending, Exit, StatusArgs, TopArgs, WhichArgs, df, notes};

/// Prints the status of what `args` ask for. Ends with [`Exit::NoInstance`] when jobs were named and one of them has none.
pub(crate) fn run(args: &StatusArgs, config: &SiteConfig) -> Result<(), Ending> {
    show(&args.which, config, |rows| print(args, rows))
}

/// Prints how full the nodes of what `args` ask for are.
pub(crate) fn df(args: &DfArgs, config: &SiteConfig) -> Result<(), Ending> {
    show(&args.which, config, |rows| match args.json {
        true => print_json(rows),
        false => print!("{}", df::render(rows, !args.noheader)),
    })
}

/// Prints the status again and again, what moves most first.
pub(crate) fn top(args: &TopArgs, config: &SiteConfig) -> Result<(), Ending> {
    let is_terminal = std::io::stdout().is_terminal();
    let mut left = args.count;
    while left != Some(0) {
        if is_terminal {
            // Home, and what is there away.
            print!("\x1b[H\x1b[2J");
        }
        let shown = show(&args.which, config, |rows| {
            let mut rows = rows.to_vec();
            rows.sort_by_key(|(id, status)| (Reverse(status.rate), *id));
            print!("{}", table::render(&table::DEFAULT, &rows, Form::Table));
        });
        left = left.map(|left| left - 1);
        match shown {
            // A job may end while somebody looks at others, and slurmctld may be busy.
            Err(ending) if left != Some(0) => eprintln!("burstfs: {}", ending.message),
            shown if left == Some(0) => return shown,
            Ok(()) | Err(_) => {}
        }
        std::io::stdout().flush().map_err(|error| Ending::new(Exit::Failure, error))?;
        std::thread::sleep(Duration::from_secs(args.delay.max(1)));
    }
    Ok(())
}

fn show(args: &WhichArgs, config: &SiteConfig, print: impl FnOnce(&[(u32, InstanceStatus)])) -> Result<(), Ending> {
    let filter = filter(args)?;
    let jobs = slurm::jobs(&filter).map_err(|error| Ending::new(Exit::Failure, error))?;
    let (rows, errors) = ask_all(places(&jobs, &filter)?, config)?;
    print(&rows);
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

fn filter(args: &WhichArgs) -> Result<Filter, Ending> {
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
        spaces: Vec::new(),
        dirty: None,
        rate: 0,
        stage_in: StageFigures::default(),
        input: Input::Complete,
        stage_out: StageFigures::default(),
        transport: String::new(),
        receipt: note.receipt,
        kept_until: note.kept_until,
        attempts: 0,
        dropped: None,
        reason: format!("{host} does not answer; {}", note.reason),
    })
}

fn print_json(rows: &[(u32, InstanceStatus)]) {
    let statuses: Vec<&InstanceStatus> = rows.iter().map(|(_, status)| status).collect();
    let document = serde_json::json!({ "version": 1, "instances": statuses });
    let text = if std::io::stdout().is_terminal() { format!("{document:#}") } else { document.to_string() };
    println!("{text}");
}

fn print(args: &StatusArgs, rows: &[(u32, InstanceStatus)]) {
    if args.json {
        return print_json(rows);
    }
    let columns = if args.format.is_empty() { table::DEFAULT.to_vec() } else { args.format.clone() };
    let form = match (args.parsable, args.noheader) {
        (true, _) => Form::Parsable,
        (false, true) => Form::NoHeader,
        (false, false) => Form::Table,
    };
    print!("{}", table::render(&columns, rows, form));
}
