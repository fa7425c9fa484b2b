//! What the process that loaded the plugin offers, apart from the C interface, so that the rest runs in tests.

/// The names of variables that Slurm makes from the plugin's and the option's name.
pub(crate) mod names {
    /// What the request is called in the job's control environment.
    pub(crate) const CONTROL: &str = "BURSTFS_SPEC";
    /// The same in the environment of the job, and of whatever the job submits.
    pub(crate) const IN_JOB: &str = "SLURM_SPANK_BURSTFS_SPEC";
    /// The option in the environment of the job: srun and sbatch take it for one that was given.
    pub(crate) const OPTION_IN_JOB: &str = "SLURM_SPANK__SLURM_SPANK_OPTION_burstfs_burstfs";
    /// The option as salloc's shell has it besides: slurmstepd takes it for one that was given.
    pub(crate) const OPTION: &str = "_SLURM_SPANK_OPTION_burstfs_burstfs";
    /// All by which a job within a job would inherit.
    pub(crate) const INHERITED: [&str; 3] = [IN_JOB, OPTION_IN_JOB, OPTION];
}

/// The loading process.
pub(crate) trait Host {
    /// Whether the job has a variable, however long. Only in slurmstepd.
    fn has_job_variable(&self, name: &str) -> bool;
    /// Sets a variable of the job; whether that went well. Only in slurmstepd.
    fn set_job_variable(&self, name: &str, value: &str) -> bool;
    /// Removes a variable of the job. Only in slurmstepd.
    fn unset_job_variable(&self, name: &str);
    /// Gives prolog and epilog a variable; whether that went well. Only in sbatch, salloc and srun.
    fn set_control_variable(&self, name: &str, value: &str) -> bool;
    /// The job's id. Only in slurmstepd, prolog and epilog.
    fn job_id(&self) -> Option<u32>;
    /// How often the job was requeued. Only in slurmstepd.
    fn restart_count(&self) -> Option<u32>;
    /// An error: to the user of a command, else to slurmd's log.
    fn error(&self, line: &str);
    /// Something to know: to the user of a command unless he asked for silence.
    fn info(&self, line: &str);
    /// Something for the job's output, without "error:" in front.
    fn tell(&self, line: &str);
}

#[cfg(test)]
pub(crate) mod fake {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::Host;

    /// A host that remembers.
    #[derive(Default)]
    pub(crate) struct FakeHost {
        pub(crate) job: RefCell<BTreeMap<String, String>>,
        pub(crate) control: RefCell<BTreeMap<String, String>>,
        pub(crate) lines: RefCell<Vec<String>>,
        pub(crate) job_id: Option<u32>,
        pub(crate) restart_count: Option<u32>,
    }

    impl FakeHost {
        pub(crate) fn text(&self) -> String {
            self.lines.borrow().join("\n")
        }
    }

    impl Host for FakeHost {
        fn has_job_variable(&self, name: &str) -> bool {
            self.job.borrow().contains_key(name)
        }

        fn set_job_variable(&self, name: &str, value: &str) -> bool {
            self.job.borrow_mut().insert(name.to_owned(), value.to_owned());
            true
        }

        fn unset_job_variable(&self, name: &str) {
            self.job.borrow_mut().remove(name);
        }

        fn set_control_variable(&self, name: &str, value: &str) -> bool {
            self.control.borrow_mut().insert(name.to_owned(), value.to_owned());
            true
        }

        fn job_id(&self) -> Option<u32> {
            self.job_id
        }

        fn restart_count(&self) -> Option<u32> {
            self.restart_count
        }

        fn error(&self, line: &str) {
            self.lines.borrow_mut().push(format!("error: {line}"));
        }

        fn info(&self, line: &str) {
            self.lines.borrow_mut().push(line.to_owned());
        }

        fn tell(&self, line: &str) {
            self.lines.borrow_mut().push(line.to_owned());
        }
    }
}
