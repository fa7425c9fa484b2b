//! `spank_burstfs.so`: what Slurm's commands and daemons load.
//!
//! Owns the option `--burstfs`, its checks before a job is queued, and the last word on whether a task may start. Does not
//! own the grammar (`burstfs-spec`), the configuration (`burstfs-config`) nor anything of an instance.
//!
//! | where it is loaded | callback | what happens |
//! |---|---|---|
//! | sbatch, salloc, srun | option | the directive is parsed; a mistake ends the command with 255 |
//! | sbatch, salloc, srun | `init_post_opt` | paths and capacity are checked, the request goes to the prolog's environment |
//! | slurmd | `init` | `PrologFlags` that do not fit are said loudly |
//! | slurmstepd | `user_init` | what would make a nested `sbatch` inherit the option is removed |
//! | slurmstepd | `task_init_privileged` | without a file system the task does not start and says why |
//!
//! There is no callback for prolog and epilog here: slurmd would start a `slurmstepd` for both, for every job, as soon as a
//! plugin has them. `burstfs-node prolog` and `epilog` are run by Slurm's `Prolog=` and `Epilog=`, or by the plugin beside
//! this one (`prolog/`).
//!
//! Invariants: `init` and `user_init` never fail, since Slurm drains the node when they do; a job without `--burstfs` costs
//! a few system calls; no panic leaves the library. Slurm calls from one thread at a time.

#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(not(test))]
mod abi;
mod host;
mod paths;
mod slurm;
mod submit;
mod task;
