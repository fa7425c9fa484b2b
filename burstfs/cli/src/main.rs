//! `burstfs`: the user's command.
//!
//! Owns nothing: it asks Slurm which jobs there are, the users' notes which instances outlive theirs, and each instance's MGS how
//! it is; layouts it shows and sets in the file system that is mounted where it runs; a plan it makes of what it can see there.
//! Exit codes: 0 ok, 1 failure, 2 usage, 3 no such instance, 4 partial, 5 time-out, 6 no space, 7 permission.

mod ask;
mod bar;
mod check;
mod df;
mod layout;
mod notes;
mod plan;
mod report;
mod resume;
mod selftest;
mod slurm;
mod status;
mod sync;
mod table;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;

use burstfs_config::SiteConfig;
use burstfs_types::{Code, JobEnd};
use clap::{Args, Parser, Subcommand};

use crate::table::Column;

/// The site's configuration, where no other is named.
const CONFIG: &str = "/etc/burstfs/burstfs.toml";

/// The file system of a job, on its own nodes, for as long as it runs.
#[derive(Parser)]
#[command(name = "burstfs", version, disable_help_flag = true, arg_required_else_help = true)]
struct Cli {
    /// The site's configuration.
    #[arg(long, global = true, value_name = "PATH", default_value = CONFIG)]
    config: PathBuf,
    /// Prints this text.
    #[arg(long, action = clap::ArgAction::Help, global = true)]
    help: Option<bool>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows the instances of your jobs (for root: of all jobs), from any node or the login node.
    Status(StatusArgs),
    /// Shows how full the nodes of instances are.
    Df(DfArgs),
    /// Shows the instances of your jobs again and again, what moves most first.
    Top(TopArgs),
    /// Drains what has changed, for the job's stage_out directives, while the job runs, and waits for it.
    Sync(sync::SyncArgs),
    /// Waits until a job's input is there, or its output is drained.
    Wait(wait::WaitArgs),
    /// Prints the report of a job's drain.
    Report {
        /// The job.
        job: u32,
    },
    /// Shows or sets where the bytes of files live.
    #[command(subcommand)]
    Layout(layout::LayoutCommand),
    /// Looks whether the metadata and the objects on all nodes of a job's instance fit together. Changes nothing.
    Check {
        /// The job; in a job its own.
        job: Option<u32>,
    },
    /// Says what a job would stage, what of it is there already, whether it fits, and about how long it takes. Moves nothing.
    Plan(plan::PlanArgs),
    /// Drains now what could not be drained at a job's end and is held on its nodes, from any node or the login node.
    Resume {
        /// The job.
        job: u32,
        /// Whose job it is, for root.
        #[arg(short, long)]
        user: Option<String>,
        /// The job's nodes, in Slurm's notation, where nobody else knows them any more.
        #[arg(short = 'w', long, requires = "user")]
        nodelist: Option<String>,
        /// How the job ended, for stage_out with on=, where Slurm does not say it: success or failure.
        #[arg(long)]
        ended: Option<JobEnd>,
        /// Does not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Checks on this machine what burstfs needs.
    Selftest(selftest::SelftestArgs),
    /// Says what an error code means and what to do about it.
    Explain {
        /// For instance E102.
        code: String,
    },
    /// Checks or shows the site's configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// Which instances.
#[derive(Args)]
struct WhichArgs {
    /// Only these jobs.
    #[arg(short, long, value_delimiter = ',', value_name = "JOBID")]
    jobs: Vec<u32>,
    /// Only these users' jobs.
    #[arg(short, long, value_delimiter = ',', value_name = "USER")]
    user: Vec<String>,
    /// Only jobs that have one of these nodes, in Slurm's notation.
    #[arg(short = 'w', long, value_name = "NODELIST")]
    nodelist: Option<String>,
}

/// Which instances, shown again and again.
#[derive(Args)]
struct TopArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// Seconds between two looks.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2)]
    delay: u64,
    /// Looks so many times, then ends.
    #[arg(short = 'n', long, value_name = "COUNT")]
    count: Option<u64>,
}

/// Which instances, and how their space is shown.
#[derive(Args)]
struct DfArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// No line of titles.
    #[arg(short = 'h', long)]
    noheader: bool,
    /// JSON, with exact figures.
    #[arg(long)]
    json: bool,
}

/// Which instances, and how they are shown.
#[derive(Args)]
struct StatusArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// No line of titles.
    #[arg(short = 'h', long)]
    noheader: bool,
    /// These columns.
    #[arg(short = 'o', long, value_delimiter = ',', value_name = "COLUMN")]
    format: Vec<Column>,
    /// Cells between bars, for programs.
    #[arg(short, long, conflicts_with = "json")]
    parsable: bool,
    /// JSON, with exact figures.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Says whether the configuration is right.
    Check,
    /// Prints the configuration with its defaults.
    Show,
}

/// What the command ends with, besides success.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Exit {
    /// It went wrong.
    Failure = 1,
    /// The words were off.
    Usage = 2,
    /// There is no such instance.
    NoInstance = 3,
    /// A part only, or not as it should be.
    Partial = 4,
    /// Nobody answered in time.
    TimeOut = 5,
    /// What is to be copied does not fit.
    NoSpace = 6,
    /// The instance is another user's, or what is to be read or written is.
    Permission = 7,
}

/// Why the command ends without success: for stderr, and for `$?`.
struct Ending {
    message: String,
    exit: Exit,
}

impl Ending {
    fn new(exit: Exit, message: impl ToString) -> Ending {
        Ending { message: message.to_string(), exit }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(ending) => {
            eprintln!("burstfs: {}", ending.message);
            ExitCode::from(ending.exit as u8)
        }
    }
}

fn run(cli: Cli) -> Result<(), Ending> {
    match cli.command {
        Command::Status(args) => status::run(&args, &load(&cli.config)?),
        Command::Df(args) => status::df(&args, &load(&cli.config)?),
        Command::Top(args) => status::top(&args, &load(&cli.config)?),
        Command::Sync(args) => sync::run(&args, &load(&cli.config)?),
        Command::Wait(args) => wait::run(&args, &load(&cli.config)?),
        Command::Report { job } => report::run(job),
        Command::Layout(command) => layout::run(&command),
        Command::Check { job } => check::run(job.map_or_else(own_job, Ok)?, &load(&cli.config)?),
        Command::Plan(args) => plan::run(&args, &load(&cli.config)?),
        Command::Resume { job, user, nodelist, ended, no_wait } => {
            resume::run(&resume::Which { job, nodelist, user, ended, no_wait }, &load(&cli.config)?)
        }
        Command::Selftest(args) => selftest::run(&args),
        Command::Explain { code } => explain(&code),
        Command::Config(ConfigCommand::Check) => {
            load(&cli.config)?;
            println!("{}: ok", cli.config.display());
            Ok(())
        }
        Command::Config(ConfigCommand::Show) => show_config(&load(&cli.config)?),
    }
}

/// The job that this runs in.
fn own_job() -> Result<u32, Ending> {
    let id = std::env::var("SLURM_JOB_ID").ok().and_then(|id| id.parse().ok());
    id.ok_or_else(|| Ending::new(Exit::Usage, "which job? this is none"))
}

fn load(path: &std::path::Path) -> Result<SiteConfig, Ending> {
    SiteConfig::load(path).map_err(|failure| Ending::new(Exit::Failure, failure))
}

fn show_config(config: &SiteConfig) -> Result<(), Ending> {
    let text = config.to_toml().map_err(|error| Ending::new(Exit::Failure, error))?;
    print!("{text}");
    Ok(())
}

fn explain(code: &str) -> Result<(), Ending> {
    let code: Code = code.parse().map_err(|error| Ending::new(Exit::Usage, error))?;
    println!("{code}: {}\n\n{}", code.title(), code.explanation());
    Ok(())
}
