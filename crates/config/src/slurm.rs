//! The few keys of `slurm.conf` that burstfs depends on, and whether their values fit. They are read from the file: asking
//! slurmctld would make slurmd's start and every prolog wait for it.

use std::path::{Path, PathBuf};

use burstfs_types::{Code, Failure};

/// The request of a job, as canonical JSON, in the environment of its prologs and epilogs; absent if it asks for nothing.
/// Slurm makes the name from the plugin's `BURSTFS_SPEC`.
pub const REQUEST_IN_PROLOG: &str = "SPANK_BURSTFS_SPEC";

/// Where Slurm keeps its configuration when no variable says so: that of a configless node, then Debian's.
const PLACES: [&str; 3] = ["/run/slurm/conf/slurm.conf", "/etc/slurm/slurm.conf", "/usr/local/etc/slurm.conf"];

/// As deep as files can include one another.
const DEPTH_MAX: usize = 8;

/// The release in which DeferBatch came to imply Alloc: 26.05.
const DEFER_IMPLIES_ALLOC: u32 = 0x1a_05_00;

/// What was found. A key that is set nowhere is `None`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SlurmConf {
    /// `PrologFlags`
    pub prolog_flags: Option<String>,
    /// `ClusterName`
    pub cluster_name: Option<String>,
}

impl SlurmConf {
    /// The file that this process's Slurm uses.
    pub fn path() -> Option<PathBuf> {
        match std::env::var_os("SLURM_CONF") {
            Some(path) => Some(path.into()),
            None => PLACES.iter().map(PathBuf::from).find(|path| path.exists()),
        }
    }

    /// What the file of this process's Slurm says, and those that it includes; `None` when it cannot be read.
    pub fn load() -> Option<SlurmConf> {
        SlurmConf::read(&SlurmConf::path()?)
    }

    /// What the file and those that it includes say; `None` when the file cannot be read.
    fn read(path: &Path) -> Option<SlurmConf> {
        let text = std::fs::read_to_string(path).ok()?;
        let mut found = SlurmConf::default();
        found.scan(&text, path.parent().unwrap_or(Path::new("/")), DEPTH_MAX);
        Some(found)
    }

    fn scan(&mut self, text: &str, directory: &Path, depth: usize) {
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if let Some(name) = strip_include(line).filter(|_| depth > 0) {
                let name = name.replace("%c", self.cluster_name.as_deref().unwrap_or_default());
                if let Ok(text) = std::fs::read_to_string(directory.join(name)) {
                    self.scan(&text, directory, depth - 1);
                }
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = value.split_whitespace().next().unwrap_or_default().trim_matches('"');
            // Slurm uses the last one of several.
            match key.trim() {
                key if key.eq_ignore_ascii_case("PrologFlags") => self.prolog_flags = Some(value.to_owned()),
                key if key.eq_ignore_ascii_case("ClusterName") => self.cluster_name = Some(value.to_owned()),
                _ => {}
            }
        }
    }

    /// Why burstfs cannot work with the site's flags, if so. `version` is Slurm's, as `SLURM_VERSION_NUMBER` of
    /// `slurm_version.h` has it; it is asked for only if it matters, and a release that is not known is an old one.
    pub fn check_flags(&self, version: impl FnOnce() -> Option<u32>) -> Result<(), Failure> {
        let flags = self.prolog_flags.as_deref().unwrap_or_default();
        let has = |name: &str| flags.split(',').any(|flag| flag.trim().eq_ignore_ascii_case(name));
        let implies_alloc = |version: u32| version >= DEFER_IMPLIES_ALLOC;
        let has_alloc = ["Alloc", "Contain", "X11"].into_iter().any(has)
            || (has("DeferBatch") && version().is_some_and(implies_alloc));
        let problem = if has("RunInJob") {
            "with RunInJob Slurm runs prologs within the job, which ends what they start, and no SPANK prologs"
        } else if !has_alloc {
            "without Alloc most nodes of a job get no prolog"
        } else if !has("DeferBatch") {
            "without DeferBatch the script starts before the file system is there"
        } else {
            return Ok(());
        };
        let shown = if flags.is_empty() { "not set" } else { flags };
        let message = format!("PrologFlags in slurm.conf is {shown}: {problem}; it must be Alloc,DeferBatch");
        Err(Failure::new(Code::PrologFlags, message))
    }
}

fn strip_include(line: &str) -> Option<&str> {
    let (word, name) = line.split_once(char::is_whitespace)?;
    (word.eq_ignore_ascii_case("include")).then(|| name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Option<u32> = Some(0x16_05_08);

    fn flags(value: &str) -> SlurmConf {
        SlurmConf { prolog_flags: Some(value.to_owned()), cluster_name: None }
    }

    #[test]
    fn which_flags_fit() {
        for good in ["Alloc,DeferBatch", "deferbatch,alloc", "Contain,DeferBatch", "Alloc,DeferBatch,Contain,Serial"] {
            assert_eq!(flags(good).check_flags(|| OLD), Ok(()), "{good}");
        }
        for bad in ["", "Alloc", "DeferBatch", "Contain", "Alloc,DeferBatch,RunInJob", "NoAlloc,DeferBatch"] {
            assert_eq!(flags(bad).check_flags(|| OLD).unwrap_err().code, Code::PrologFlags, "{bad}");
        }
        assert!(SlurmConf::default().check_flags(|| OLD).unwrap_err().message.contains("is not set"));
        assert!(flags("DeferBatch").check_flags(|| None).is_err());
        assert_eq!(flags("Alloc,DeferBatch").check_flags(|| unreachable!("the release does not matter")), Ok(()));
        assert_eq!(flags("DeferBatch").check_flags(|| Some(DEFER_IMPLIES_ALLOC)), Ok(()));
    }

    #[test]
    fn reads_what_slurm_reads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slurm.conf");
        let text =
            "ClusterName=vc # the test\nPrologFlags=Alloc\n#PrologFlags=None\nInclude more.%c.conf\ninclude gone\n";
        std::fs::write(&path, text).unwrap();
        std::fs::write(
            directory.path().join("more.vc.conf"),
            "prologflags = \"Alloc,DeferBatch\" X=1\nInclude more.%c.conf",
        )
        .unwrap();
        let found = SlurmConf::read(&path).unwrap();
        assert_eq!(found.cluster_name.as_deref(), Some("vc"));
        assert_eq!(found.prolog_flags.as_deref(), Some("Alloc,DeferBatch"));
        assert_eq!(SlurmConf::read(&directory.path().join("gone")), None);
    }
}
