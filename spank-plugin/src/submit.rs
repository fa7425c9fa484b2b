//! sbatch, salloc, srun: the request before the job is queued. Runs as the submitting user.

use std::ffi::OsString;
use std::path::Path;

use burstfs_config::SiteConfig;
use burstfs_spec::{
    Accumulator, Capacity, CreateItems, FOREIGN_VARIABLES, JobSpec, PersistentPath, ProfileError, Profiles, SpecError,
    Values, Variable,
};
use burstfs_types::{Code, limits};

use crate::host::{Host, names};
use crate::paths;

/// The site's profiles, read when a directive names one: most do not.
struct SiteProfiles<'a>(&'a Path);

impl Profiles for SiteProfiles<'_> {
    fn profile(&self, name: &str) -> Result<CreateItems, ProfileError> {
        let config = SiteConfig::load(self.0).map_err(|error| ProfileError::Unavailable(error.failure()))?;
        config.profile(name)
    }
}

/// What the option has said so far.
#[derive(Debug, Default)]
pub(crate) struct Submission {
    accumulator: Accumulator,
    /// Another way to tell file systems apart, in tests.
    is_shared: Option<paths::IsShared>,
}

impl Submission {
    /// One occurrence of the option. After `Err` the mistake has been shown.
    pub(crate) fn add(&mut self, host: &dyn Host, config: &Path, directive: &[u8]) -> Result<(), Refused> {
        self.accumulator.add_bytes(directive, &SiteProfiles(config)).map_err(|error| show(host, &error))
    }

    /// After the last option: checks what no single directive shows, tells the user what was understood, and hands the
    /// request to prolog and epilog. Does nothing when burstfs is not asked for.
    pub(crate) fn finish(&self, host: &dyn Host, config: &Path, user: &Values) -> Result<(), Refused> {
        let show = |error: SpecError| show(host, &error);
        let Some(spec) = self.accumulator.finish().map_err(show)? else { return Ok(()) };
        let spec = check(&spec, config, user).map_err(show)?;
        paths::check(host, &spec, self.is_shared.unwrap_or(paths::is_shared)).map_err(show)?;
        let json = spec.to_json().map_err(show)?;
        for line in spec.echo() {
            host.info(&line);
        }
        if !host.set_control_variable(names::CONTROL, &json) {
            host.error("burstfs: E601: Slurm does not take the request for the prolog");
            return Err(Refused);
        }
        Ok(())
    }
}

/// The job is not submitted; the user knows why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused;

fn show(host: &dyn Host, error: &SpecError) -> Refused {
    for line in error.render() {
        host.error(&line);
    }
    Refused
}

/// What the submitting user's process knows of variables. The rest is known on the nodes.
pub(crate) fn user_values() -> Values {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    Values {
        env_user: variable("USER").or_else(|| variable("LOGNAME")),
        home: variable("HOME"),
        // Not the variable of this name: within a job that one is the outer job's.
        submit_dir: std::env::current_dir().ok().and_then(|path| path.to_str().map(str::to_owned)),
        ..Values::default()
    }
}

/// What a job that is submitted within a job must not get of the outer job's environment: its option and its request,
/// and what says where its file system is. A user's own variables of similar names stay.
pub(crate) fn outer_job_variables(environment: impl Iterator<Item = (String, OsString)>) -> Vec<String> {
    let mut ours: Vec<(String, OsString)> = environment.filter(|(name, _)| is_like_ours(name)).collect();
    let mount = ours.iter().find(|(name, _)| name == "BURSTFS").map(|(_, value)| value.clone());
    let leads_to_mount = |value: &OsString| {
        let plain = |value: &OsString| value.to_string_lossy().trim_end_matches('/').to_owned();
        mount.as_ref().is_some_and(|mount| plain(mount) == plain(value))
    };
    let is_slurms = |name: &str| names::INHERITED.contains(&name) || JOB.contains(&name);
    ours.retain(|(name, value)| is_slurms(name) || leads_to_mount(value));
    ours.into_iter().map(|(name, _)| name).collect()
}

/// The variables of a job with a file system, beside the one that has its name.
const JOB: [&str; 6] = [
    "BURSTFS",
    "BURSTFS_INSTANCE",
    "BURSTFS_CAPACITY_BYTES",
    "BURSTFS_SERVERS",
    "BURSTFS_STAGE_IN",
    "BURSTFS_DRAIN_DEADLINE",
];

fn is_like_ours(name: &str) -> bool {
    name.starts_with("BURSTFS") || names::INHERITED.contains(&name) || FOREIGN_VARIABLES.contains(&name)
}

fn check(spec: &JobSpec, config: &Path, user: &Values) -> Result<JobSpec, SpecError> {
    let failed = |failure: burstfs_types::Failure| SpecError::new(failure.code, failure.message);
    let config = SiteConfig::load(config).map_err(|error| failed(error.failure()))?;
    check_capacity(spec, &config)?;
    check_retain(spec, &config)?;
    let spec = spec.bind(user)?;
    for stage in &spec.stage_in {
        check_bound(stage.source.variables().chain(stage.destination.variables()))?;
        check_bound(stage.list.iter().flat_map(PersistentPath::variables))?;
    }
    for stage in &spec.stage_out {
        check_bound(stage.source.variables().chain(stage.destination.variables()))?;
        check_bound(stage.list.iter().flat_map(PersistentPath::variables))?;
    }
    Ok(spec)
}

/// A total is checked against the largest job only: how many nodes there will be is not known here.
fn check_capacity(spec: &JobSpec, config: &SiteConfig) -> Result<(), SpecError> {
    let Some(max) = config.max_per_node else { return Ok(()) };
    let (asked, per_node) = match spec.create.capacity {
        Some(Capacity::PerNode(size)) => (size, size.bytes()),
        Some(Capacity::Total(size)) => (size, size.bytes().div_ceil(limits::NODES_MAX as u64)),
        None => return Ok(()),
    };
    if per_node <= max.bytes() {
        return Ok(());
    }
    let message = format!("{asked} is more than this site allows, {max} on each node; ask for less");
    Err(SpecError::new(Code::CapacityTooLarge, message))
}

fn check_retain(spec: &JobSpec, config: &SiteConfig) -> Result<(), SpecError> {
    let max = config.drain.retain_max;
    match spec.stage_out.iter().map(|stage| stage.retain).find(|retain| retain.as_duration() > max) {
        None => Ok(()),
        Some(retain) => {
            let max = max.as_secs();
            let message = format!("retain={retain} is longer than this site keeps what cannot be drained, {max} s");
            Err(SpecError::new(Code::BadValue, message))
        }
    }
}

fn check_bound(mut variables: impl Iterator<Item = Variable>) -> Result<(), SpecError> {
    let is_ours = |variable: &Variable| matches!(variable, Variable::EnvUser | Variable::Home | Variable::SubmitDir);
    match variables.find(is_ours) {
        None => Ok(()),
        Some(variable) => Err(SpecError::new(Code::BadPath, format!("{variable} has no value here"))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::host::fake::FakeHost;

    struct Site {
        directory: tempfile::TempDir,
        host: FakeHost,
        submission: Submission,
    }

    impl Site {
        fn new() -> Site {
            let directory = tempfile::tempdir().unwrap();
            let text = "max_per_node = \"100GiB\"\n[profiles.ckpt]\nper_node = \"50GiB\"";
            fs::write(directory.path().join("burstfs.toml"), text).unwrap();
            fs::create_dir(directory.path().join("in")).unwrap();
            // The directory for temporary files is no parallel file system.
            let submission = Submission { is_shared: Some(|_| true), ..Submission::default() };
            Site { directory, host: FakeHost::default(), submission }
        }

        fn add(&mut self, directive: &str) -> Result<(), Refused> {
            let directive = directive.replace("TMP", self.directory.path().to_str().unwrap());
            let config = self.directory.path().join("burstfs.toml");
            self.submission.add(&self.host, &config, directive.as_bytes())
        }

        fn finish(&self) -> Result<(), Refused> {
            let values = Values {
                home: Some(self.directory.path().to_str().unwrap().to_owned()),
                env_user: Some("alice".to_owned()),
                ..Values::default()
            };
            self.submission.finish(&self.host, &self.directory.path().join("burstfs.toml"), &values)
        }
    }

    fn refused(directive: &str, expected: &str) {
        let mut site = Site::new();
        let result = site.add(directive).and_then(|()| site.finish());
        assert_eq!(result, Err(Refused), "{directive}");
        assert!(site.host.text().contains(expected), "{directive}: {}", site.host.text());
        assert!(site.host.control.borrow().is_empty());
    }

    #[test]
    fn a_good_request_reaches_the_prolog() {
        let mut site = Site::new();
        site.add("ckpt").unwrap();
        site.add("stage_in source=$HOME/in/ destination=/in").unwrap();
        site.add("stage_out source=/out/ destination=TMP/run-%j/x").unwrap();
        site.finish().unwrap();
        let json = site.host.control.borrow().get("BURSTFS_SPEC").cloned().unwrap();
        let spec = JobSpec::from_json(&json).unwrap();
        let home = site.directory.path().join("in/");
        assert_eq!(spec.stage_in[0].source.resolved(), Ok(home.to_str().unwrap()));
        assert!(spec.stage_out[0].destination.to_string().ends_with("/run-%j/x"));
        assert!(site.host.text().contains("burstfs: per_node 50GiB = 53687091200 bytes"));
    }

    #[test]
    fn a_mistake_is_marked() {
        let mut site = Site::new();
        assert_eq!(site.add("capcity=4TiB layout=auto"), Err(Refused));
        let expected = "error: burstfs: E102: unknown key \"capcity\"; did you mean \"capacity\"?\n\
                        error:   --burstfs=\"capcity=4TiB layout=auto\"\nerror:              ^^^^^^^";
        assert_eq!(site.host.text(), expected);
    }

    #[test]
    fn what_only_the_submitting_host_can_see() {
        refused("stage_in source=TMP/gone destination=/in", "E111: stage_in: ");
        refused("stage_in source=TMP/gone/*.h5 destination=/in", "E111: stage_in: ");
        refused("stage_in source=TMP/in destination=/in list=TMP/gone", "E111: stage_in: ");
        refused("stage_in source=TMP/*/../x destination=/in", "E107: ");
        refused("stage_out source=/o destination=TMP/burstfs.toml/x/y", "E112: stage_out: ");
        refused("per_node=101GiB", "E113: 101GiB is more than this site allows, 100GiB on each node");
        refused("100PiB", "E113: ");
        refused("nosuch", "E109: ");
        refused("stage_in source=$SLURM_SUBMIT_DIR/x destination=/in", "E107: $SLURM_SUBMIT_DIR has no value here");
    }

    #[test]
    fn what_is_not_known_yet_is_not_refused() {
        for directive in [
            "stage_in source=TMP/run-%j destination=/in",
            "stage_in source=TMP/run-%j/* destination=/in",
            "stage_in source=TMP/*.none destination=/in",
            "stage_in source=TMP/in destination=/in list=TMP/%j",
            "stage_out source=/o destination=TMP/x list=TMP/gone",
            "stage_out source=/o destination=TMP/new/%j/x",
            "stage_out source=/o destination=TMP/burstfs.toml",
            "100TiB",
        ] {
            let mut site = Site::new();
            site.add(directive).unwrap();
            assert_eq!(site.finish(), Ok(()), "{directive}: {}", site.host.text());
        }
    }

    #[test]
    fn what_this_host_cannot_see_is_told_and_not_refused() {
        let mut site = Site::new();
        site.submission.is_shared = Some(|_| false);
        site.add("stage_in source=TMP/gone destination=/in").unwrap();
        site.add("stage_out source=/o destination=TMP/burstfs.toml/x").unwrap();
        assert_eq!(site.finish(), Ok(()));
        assert!(site.host.text().contains("burstfs: stage_in: "), "{}", site.host.text());
        assert_eq!(site.host.text().matches("not checked: ").count(), 2, "{}", site.host.text());
    }

    #[test]
    fn without_a_request_nothing_is_read() {
        let host = FakeHost::default();
        let submission = Submission::default();
        assert_eq!(submission.finish(&host, Path::new("/nowhere/burstfs.toml"), &Values::default()), Ok(()));
        assert_eq!(host.text(), "");
        let mut dropped = Site::new();
        dropped.add("4TiB").unwrap();
        dropped.add("none").unwrap();
        fs::remove_file(dropped.directory.path().join("burstfs.toml")).unwrap();
        assert_eq!(dropped.finish(), Ok(()));
        assert!(dropped.host.control.borrow().is_empty());
    }

    #[test]
    fn a_job_within_a_job_starts_afresh() {
        let environment = [
            ("BURSTFS", "/burstfs/42"),
            ("BURSTFS_CKPT", "/burstfs/42"),
            ("BURSTFS_INSTANCE", "vc.42.0"),
            ("BURSTFS_MINE", "x"),
            ("HOME", "/burstfs/42"),
            ("TMPDIR", "/burstfs/42"),
            ("DW_JOB_STRIPED", "/burstfs/42/"),
            (names::IN_JOB, "{}"),
            (names::OPTION_IN_JOB, "4T"),
        ];
        let dropped = outer_job_variables(environment.map(|(name, value)| (name.to_owned(), value.into())).into_iter());
        let foreign = ["TMPDIR", "DW_JOB_STRIPED"];
        let expected = [
            "BURSTFS",
            "BURSTFS_CKPT",
            "BURSTFS_INSTANCE",
            foreign[0],
            foreign[1],
            names::IN_JOB,
            names::OPTION_IN_JOB,
        ];
        assert_eq!(dropped, expected);
        let own = [("BURSTFS", "/burstfs/42"), ("TMPDIR", "/scratch"), ("DW_JOB_STRIPED", "/dw/")];
        let dropped = outer_job_variables(own.map(|(name, value)| (name.to_owned(), value.into())).into_iter());
        assert_eq!(dropped, ["BURSTFS"]);
    }

    #[test]
    fn what_this_process_knows() {
        let values = user_values();
        assert!(values.submit_dir.unwrap().starts_with('/'));
        assert_eq!((values.job_id, values.work_dir), (None, None));
    }

    #[test]
    fn without_a_configuration_nothing_is_queued() {
        let mut site = Site::new();
        fs::remove_file(site.directory.path().join("burstfs.toml")).unwrap();
        assert_eq!(site.add("ckpt"), Err(Refused));
        site.add("4TiB").unwrap();
        assert_eq!(site.finish(), Err(Refused));
        assert!(site.host.text().contains("E120: "));
    }
}
