//! This process's Slurm.

use burstfs_types::Failure;

/// Why burstfs cannot work with the site's `PrologFlags`, if so; a file that cannot be read is no reason to refuse.
#[cfg(not(test))]
pub(crate) fn check_flags() -> Result<(), Failure> {
    let release = || Some(burstfs_spank_sys::SLURM_VERSION_NUMBER);
    burstfs_config::SlurmConf::load().map_or(Ok(()), |conf| conf.check_flags(release))
}

#[cfg(test)]
pub(crate) fn check_flags() -> Result<(), Failure> {
    Ok(())
}
