//! `burstfs status`: every matching job's instance, asked at its MGS.

use std::io::IsTerminal;

use burstfs_config::SiteConfig;
use burstfs_proto::mgs::{InstanceStatus, Status};
use burstfs_types::hostlist;
use nix::unistd::{Uid, User};

use crate::ask::{self, AskError};
use crate::slurm::{self, Filter, Job};
use crate::table::{self, Form};
use crate::{Ending, Exit, StatusArgs};

/// Prints the status of what `args` ask for. Ends with [`Exit::NoInstance`] when jobs were named and one of them has none.
pub(crate) fn run(args: &StatusArgs, config: &SiteConfig) -> Result<(), Ending> {
    let jobs = slurm::jobs(&filter(args)?).map_err(|error| Ending::new(Exit::Failure, error))?;
    let (rows, errors) = if jobs.is_empty() { (Vec::new(), Vec::new()) } else { ask_all(&jobs, config)? };
    print(args, &rows)?;
    for (job, error) in &errors {
        eprintln!("burstfs: job {}: {error}", job.id);
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

type Answers = (Vec<(u32, InstanceStatus)>, Vec<(Job, AskError)>);

fn ask_all(jobs: &[Job], config: &SiteConfig) -> Result<Answers, Ending> {
    let failure = |error: &dyn std::fmt::Display| Ending::new(Exit::Failure, error);
    let cluster = slurm::cluster_name().map_err(|error| failure(&error))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failure(&error))?;
    let (mut rows, mut errors) = (Vec::new(), Vec::new());
    for job in jobs {
        let Some(place) = ask::Place::of(job, &cluster)? else { continue };
        match runtime.block_on(ask::ask(&place, &Status, ask::TIMEOUT, config)) {
            Ok(Some(status)) => rows.push((job.id, status)),
            Ok(None) => {}
            Err(error) => errors.push((job.clone(), error)),
        }
    }
    Ok((rows, errors))
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
