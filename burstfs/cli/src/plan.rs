//! `burstfs plan`: what the directives of a script, or of the command line, would move.
//!
//! Everything is looked at as the user who asks, from the host that he asks on. What that host cannot see, or what is only known
//! when the job runs, is said to be unknown, never guessed.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use burstfs_config::SiteConfig;
use burstfs_spec::{Accumulator, JobSpec, PersistentPath, Size, SpecError, Values};
use burstfs_stager::StageJob;
use burstfs_stager::plan::{Destination, Survey, destination, survey};
use clap::Args;
use serde_json::{Value, json};

use crate::table::size;
use crate::{Ending, Exit};

/// What is planned, and how the time is estimated.
#[derive(Args)]
pub(crate) struct PlanArgs {
    /// A batch script with #SBATCH --burstfs= lines; or directives, one a word.
    #[arg(required = true, value_name = "SCRIPT|SPEC")]
    request: Vec<String>,
    /// How many nodes the job will have; else what the script says, else 1.
    #[arg(short = 'N', long)]
    nodes: Option<u32>,
    /// Bytes that each node moves in a second, for the estimate of the time.
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    rate: Size,
    /// Files that each node copies in a second, for the estimate of the time.
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    files_per_second: u32,
    /// JSON, with exact figures.
    #[arg(long)]
    json: bool,
}

/// What keeps a directive from going well.
struct Problem {
    exit: Exit,
    text: String,
}

/// One directive, looked at.
struct Planned {
    verb: &'static str,
    source: String,
    target: String,
    /// Why there are no figures.
    unknown: Option<String>,
    survey: Option<Survey>,
    destination: Option<Destination>,
    seconds: Option<f64>,
    problems: Vec<Problem>,
}

/// Makes the plan and prints it. Ends without success when something in it cannot go well.
pub(crate) fn run(args: &PlanArgs, config: &SiteConfig) -> Result<(), Ending> {
    let request = Request::read(&args.request, config)?;
    let nodes = args.nodes.or(request.nodes).unwrap_or(1).max(1);
    let capacity = request.spec.bytes_per_node(nodes, config.default_capacity.bytes()).saturating_mul(nodes.into());
    let mut planned = plan(&request, args, nodes);
    check_capacity(&mut planned, capacity);
    if args.json {
        println!("{:#}", document(&planned, nodes, capacity));
    } else {
        print!("{}", table(&planned, nodes, capacity, args));
    }
    match planned.iter().flat_map(|one| &one.problems).next() {
        None => Ok(()),
        Some(problem) => Err(Ending::new(problem.exit, &problem.text)),
    }
}

/// What was asked for.
struct Request {
    spec: JobSpec,
    nodes: Option<u32>,
}

impl Request {
    fn read(words: &[String], config: &SiteConfig) -> Result<Request, Ending> {
        let is_script = |word: &&String| Path::new(word).is_file();
        let (directives, nodes) = match words {
            [script] if is_script(&script) => {
                let text =
                    std::fs::read(script).map_err(|error| Ending::new(Exit::Usage, format!("{script}: {error}")))?;
                of_script(&String::from_utf8_lossy(&text))
            }
            directives => (directives.to_vec(), None),
        };
        let mut accumulator = Accumulator::new();
        for directive in &directives {
            accumulator.add(directive, config).map_err(refused)?;
        }
        let spec = accumulator.finish().map_err(refused)?;
        let spec = spec.ok_or_else(|| Ending::new(Exit::Usage, "there is nothing here that asks for burstfs"))?;
        Ok(Request { spec: spec.bind(&known()).map_err(refused)?, nodes })
    }
}

fn refused(error: SpecError) -> Ending {
    let lines = error.render().join("\n");
    // `main` puts the name in front.
    Ending::new(Exit::Usage, lines.strip_prefix("burstfs: ").unwrap_or(&lines))
}

/// The options of a batch script that matter here: directives in their order, and the number of nodes. As in sbatch, options
/// stand before the first command.
fn of_script(text: &str) -> (Vec<String>, Option<u32>) {
    let (mut directives, mut nodes) = (Vec::new(), None);
    let lines = text.lines().skip(usize::from(text.starts_with("#!")));
    for line in lines.take_while(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        let Some(options) = line.strip_prefix("#SBATCH") else { continue };
        let mut words = shell_words(options).into_iter();
        while let Some(word) = words.next() {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            match name.as_str() {
                "--burstfs" => directives.extend(value.or_else(|| words.next())),
                "--nodes" | "-N" => {
                    let value = value.or_else(|| words.next()).unwrap_or_default();
                    // Of `2-4` the least is certain.
                    nodes = value.split('-').next().and_then(|least| least.parse().ok());
                }
                short if short.starts_with("-N") => nodes = short[2..].parse().ok(),
                _ => {}
            }
        }
    }
    (directives, nodes)
}

/// Words of an `#SBATCH` line: quotes of both kinds, `\`, and `#` for a comment.
fn shell_words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match (char, quote) {
            (char, Some(open)) if char == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            // A directive has escapes of its own: within quotes they are left to it.
            ('\\', None) => word.get_or_insert_default().extend(chars.next()),
            ('#', None) if word.is_none() => break,
            (char, None) if char.is_whitespace() => words.extend(word.take()),
            (char, _) => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    words
}

/// What is known of variables here: within a job also what is the job's.
fn known() -> Values {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    Values {
        env_user: variable("USER").or_else(|| variable("LOGNAME")),
        user: variable("USER").or_else(|| variable("LOGNAME")),
        home: variable("HOME"),
        submit_dir: std::env::current_dir().ok().and_then(|path| path.to_str().map(str::to_owned)),
        job_id: variable("SLURM_JOB_ID"),
        job_name: variable("SLURM_JOB_NAME"),
        array_job_id: variable("SLURM_ARRAY_JOB_ID"),
        array_task_id: variable("SLURM_ARRAY_TASK_ID"),
        work_dir: variable("SLURM_SUBMIT_DIR"),
    }
}

/// Stands for what is not known, where only the rest of a path matters.
fn unknown() -> Values {
    let name = || Some("unknown".to_owned());
    let path = || Some("/unknown".to_owned());
    Values {
        job_id: name(),
        array_job_id: name(),
        array_task_id: name(),
        user: name(),
        job_name: name(),
        work_dir: path(),
        env_user: name(),
        home: path(),
        submit_dir: path(),
    }
}

fn plan(request: &Request, args: &PlanArgs, nodes: u32) -> Vec<Planned> {
    let mount = std::env::var("BURSTFS").ok().filter(|mount| Path::new(mount).is_dir());
    let mut planned = Vec::new();
    for (stage, rest) in request.spec.stage_in.iter().zip(unknown_bound(&request.spec).stage_in) {
        let mut one = Planned::new("stage_in", &stage.source.to_string(), &stage.destination.to_string());
        let sources = std::iter::once(&stage.source).chain(&stage.list);
        let is_known = sources.flat_map(PersistentPath::variables).next().is_none();
        match StageJob::try_from(&rest) {
            Ok(job) if is_known => {
                let there = mount.as_ref().map(|mount| join(mount, &job.destination));
                one.look(&job, there.as_deref());
            }
            Ok(_) => one.unknown = Some("the source's name is known when the job runs".to_owned()),
            Err(error) => one.problem(Exit::Usage, error.message),
        }
        one.estimate(args, nodes, stage.bwlimit.map(burstfs_spec::Rate::bytes_per_second));
        planned.push(one);
    }
    for (stage, rest) in request.spec.stage_out.iter().zip(unknown_bound(&request.spec).stage_out) {
        let mut one = Planned::new("stage_out", &stage.source.to_string(), &stage.destination.to_string());
        let target = stage.destination.resolved().ok();
        match (StageJob::try_from(&rest), &mount) {
            (Ok(job), Some(mount)) => match within(job, mount) {
                Ok(job) => one.look(&job, target.map(str::as_bytes)),
                Err(why) => one.problem(Exit::Failure, why),
            },
            (Ok(_), None) => one.unknown = Some("the job makes the source".to_owned()),
            (Err(error), _) => one.problem(Exit::Usage, error.message),
        }
        let known = target.unwrap_or_else(|| stage.destination.known_directory().unwrap_or("/"));
        one.look_at_destination(known);
        one.estimate(args, nodes, stage.bwlimit.map(burstfs_spec::Rate::bytes_per_second));
        planned.push(one);
    }
    planned
}

/// The request with something in the place of every variable.
fn unknown_bound(spec: &JobSpec) -> JobSpec {
    spec.bind(&unknown()).unwrap_or_else(|_| spec.clone())
}

/// A path of the instance as the nodes see it.
fn join(mount: &str, path: &[u8]) -> Vec<u8> {
    [mount.trim_end_matches('/').as_bytes(), path].concat()
}

/// The job with its source where the instance is mounted.
fn within(job: StageJob, mount: &str) -> Result<StageJob, String> {
    let glob = match job.glob {
        None => None,
        Some(glob) => Some(format!("{mount}{}", String::from(glob)).try_into()?),
    };
    Ok(StageJob { source: join(mount, &job.source), glob, ..job })
}

impl Planned {
    fn new(verb: &'static str, source: &str, target: &str) -> Planned {
        Planned {
            verb,
            source: source.to_owned(),
            target: target.to_owned(),
            unknown: None,
            survey: None,
            destination: None,
            seconds: None,
            problems: Vec::new(),
        }
    }

    fn problem(&mut self, exit: Exit, why: impl std::fmt::Display) {
        self.problems.push(Problem { exit, text: format!("{}: {}: {why}", self.verb, self.source) });
    }

    fn look(&mut self, job: &StageJob, target: Option<&[u8]>) {
        match survey(job, target) {
            Err(why) => self.problem(Exit::Failure, why),
            Ok(survey) => {
                if survey.problems > 0 {
                    let first = survey.first_problems.first().map_or("", String::as_str);
                    let why = format!("{} entries cannot be copied; the first: {first}", survey.problems);
                    self.problem(Exit::Permission, why);
                }
                self.survey = Some(survey);
            }
        }
    }

    fn look_at_destination(&mut self, known: &str) {
        let found = match destination(known.as_bytes()) {
            Ok(found) => found,
            Err(why) => {
                let exit = if why.is_permission() { Exit::Permission } else { Exit::Failure };
                return self.problem(exit, why);
            }
        };
        if !found.is_writable {
            let why = format!("you may not write in {}", found.directory.escape_ascii());
            self.problem(Exit::Permission, why);
        }
        if let Some(survey) = &self.survey {
            let (files, bytes) = survey.to_copy();
            let quota = found.quota.unwrap_or(burstfs_stager::plan::Quota { free_bytes: None, free_files: None });
            let free = quota.free_bytes.unwrap_or(u64::MAX).min(found.free_bytes);
            let free_files = quota.free_files.unwrap_or(u64::MAX).min(found.free_files.unwrap_or(u64::MAX));
            let needed = bytes.min(survey.allocated_bytes);
            if needed > free {
                let why = format!("{} are to be written, {} are free in {}", size(needed), size(free), self.target);
                self.problem(Exit::NoSpace, why);
            } else if files + survey.directories > free_files {
                let why = format!("{files} files are to be made, {free_files} can be in {}", self.target);
                self.problem(Exit::NoSpace, why);
            }
        }
        self.destination = Some(found);
    }

    fn estimate(&mut self, args: &PlanArgs, nodes: u32, bwlimit: Option<u64>) {
        let Some(survey) = &self.survey else { return };
        let (files, bytes) = survey.to_copy();
        let (files, bytes, nodes) = (files as f64, bytes as f64, f64::from(nodes));
        let moving = bytes / (args.rate.bytes() as f64 * nodes);
        let limited = bwlimit.map_or(0.0, |rate| bytes / rate as f64);
        self.seconds = Some(moving.max(limited) + files / (f64::from(args.files_per_second) * nodes));
    }

    fn json(&self) -> Value {
        let survey = self.survey.as_ref().map(|survey| {
            let (files, bytes) = survey.to_copy();
            json!({
                "files": survey.files, "bytes": survey.bytes, "allocated_bytes": survey.allocated_bytes,
                "largest_bytes": survey.largest_bytes, "directories": survey.directories, "symlinks": survey.symlinks,
                "unchanged_files": survey.unchanged_files, "unchanged_bytes": survey.unchanged_bytes,
                "files_to_copy": files, "bytes_to_copy": bytes,
                "problems": survey.problems, "first_problems": survey.first_problems,
            })
        });
        let place = self.destination.as_ref().map(|found| {
            json!({
                "directory": found.directory.escape_ascii().to_string(), "writable": found.is_writable,
                "free_bytes": found.free_bytes, "free_files": found.free_files,
                "quota": found.quota.map(|quota| json!({
                    "free_bytes": quota.free_bytes, "free_files": quota.free_files,
                })),
            })
        });
        json!({
            "verb": self.verb, "source": self.source, "destination": self.target, "unknown": self.unknown,
            "source_figures": survey, "destination_figures": place, "seconds": self.seconds,
            "problems": self.problems.iter().map(|problem| &problem.text).collect::<Vec<_>>(),
        })
    }

    fn lines(&self, out: &mut String, args: &PlanArgs, nodes: u32) -> std::fmt::Result {
        writeln!(out, "{} {} -> {}", self.verb, self.source, self.target)?;
        if let Some(why) = &self.unknown {
            writeln!(out, "  source       not known: {why}")?;
        }
        if let Some(survey) = &self.survey {
            let Survey { files, bytes, directories, symlinks, largest_bytes, .. } = survey;
            let rest =
                format!("{directories} directories, {symlinks} links, the largest file {}", size(*largest_bytes));
            writeln!(out, "  source       {files:>12} files {:>8}   {rest}", size(*bytes))?;
            let (there, there_bytes) = (survey.unchanged_files, size(survey.unchanged_bytes));
            writeln!(out, "  there        {there:>12} files {there_bytes:>8}")?;
            let (files, bytes) = survey.to_copy();
            let time =
                self.seconds.map(|seconds| humantime::format_duration(Duration::from_secs(seconds.ceil() as u64)));
            let rates = format!("{} and {} files a second on each of {nodes} nodes", args.rate, args.files_per_second);
            let time = time.map(|time| format!("   about {time}, at {rates}")).unwrap_or_default();
            writeln!(out, "  to copy      {files:>12} files {:>8}{time}", size(bytes))?;
        }
        if let Some(found) = &self.destination {
            let may = if found.is_writable { "writable" } else { "not writable" };
            let files = found.free_files.map_or(String::new(), |files| format!(", {files} files"));
            let directory = found.directory.escape_ascii();
            writeln!(
                out,
                "  destination  {directory}: {may}, free {}{files}; quota: {}",
                size(found.free_bytes),
                quota(found)
            )?;
        }
        for line in self.survey.iter().flat_map(|survey| &survey.first_problems) {
            writeln!(out, "  problem      {line}")?;
        }
        Ok(())
    }
}

fn quota(found: &Destination) -> String {
    let Some(quota) = found.quota else { return "not told".to_owned() };
    match (quota.free_bytes, quota.free_files) {
        (None, None) => "no limit".to_owned(),
        (Some(bytes), None) => format!("{} left", size(bytes)),
        (None, Some(files)) => format!("{files} files left"),
        (Some(bytes), Some(files)) => format!("{} and {files} files left", size(bytes)),
    }
}

/// The whole input must fit into the instance.
fn check_capacity(planned: &mut [Planned], capacity: u64) {
    let is_in = |one: &&Planned| one.verb == "stage_in";
    let bytes: u64 =
        planned.iter().filter(is_in).filter_map(|one| one.survey.as_ref()).map(|survey| survey.allocated_bytes).sum();
    if let Some(first) = planned.iter_mut().find(|one| one.verb == "stage_in")
        && bytes > capacity
    {
        first.problem(Exit::NoSpace, format!("E210: the input has {}, the instance {}", size(bytes), size(capacity)));
    }
}

fn document(planned: &[Planned], nodes: u32, capacity: u64) -> Value {
    let directives: Vec<Value> = planned.iter().map(Planned::json).collect();
    json!({ "version": 1, "nodes": nodes, "capacity_bytes": capacity, "directives": directives })
}

fn table(planned: &[Planned], nodes: u32, capacity: u64, args: &PlanArgs) -> String {
    let mut out = format!("instance of {nodes} nodes, {}\n", size(capacity));
    for one in planned {
        // Writing to a string does not fail.
        let _ = one.lines(&mut out, args, nodes);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_read_as_by_sbatch() {
        let text = "#!/bin/bash\n#SBATCH --nodes=2-4 -J x # --burstfs=no\n\n# no\n#SBATCH --burstfs=\"4TiB layout=auto\"\n\
                    #SBATCH --burstfs 'stage_in source=/a\\ b destination=/b'\n##SBATCH --burstfs=no\necho\n#SBATCH --burstfs=no\n";
        let (directives, nodes) = of_script(text);
        assert_eq!(directives, ["4TiB layout=auto", "stage_in source=/a\\ b destination=/b"]);
        assert_eq!(nodes, Some(2));
        assert_eq!(of_script("#SBATCH -N8\n").1, Some(8));
        assert_eq!(of_script("#SBATCH -N 3\n").1, Some(3));
    }

    #[test]
    fn sources_of_a_job_are_in_its_mount() {
        let mut job = StageJob::new(burstfs_proto::stage::Direction::Out, "/out/", "/lus/x");
        assert_eq!(within(job.clone(), "/burstfs/7").unwrap().source, b"/burstfs/7/out/");
        job.glob = Some("/out/*.h5".to_owned().try_into().unwrap());
        assert_eq!(within(job, "/burstfs/7").unwrap().glob.unwrap().base(), "/burstfs/7/out");
    }
}
