//! What others ask of a POSIX file system, in a short form: the suites of `make posix`, where every operation is emulated.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::instance::Instance;
use crate::machine;

/// The tests of pjdfstest that run here, by name: of what goes over two MDTs, and of opening, lengths and times, one of each
/// kind. All of them are in `make posix`.
const PJDFSTEST: [&str; 20] = [
    "rename::preserve_metadata::regular",
    "rename::preserve_metadata_dir",
    "rename::updates_link_parent",
    "rename::changed_ctime_success::dir",
    "rename::to_multiply_linked::regular",
    "rename::eexist_enotempty_to_non_empty::dir",
    "rename::einval_parent_from_subdir_to",
    "rename::enotdir_from_dir_to_not_dir::regular",
    "link::share_metadata::regular",
    "link::remove_link::regular",
    "unlink::open_file_not_freed",
    "unlink::update_mtime_ctime_success_folder::regular",
    "unlink::unchanged_ctime_failed::regular",
    "mkdir::changed_time_fields_success",
    "rmdir::changed_time_parent_success",
    "symlink::create_symlink::regular",
    "open::open_trunc",
    "open::changed_time_fields_success",
    "ftruncate::extend_file_shrink_sparse",
    "ftruncate::shrink_not_empty",
];
/// With this seed fsx 0.3.2 never asks posix_fallocate(3) for no bytes, which is EINVAL everywhere.
const FSX_SEED: u32 = 2;
const FSX: &str = "
[weights]
close_open = 1
read = 10
write = 10
mapread = 0
mapwrite = 0
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 3
punch_hole = 3
sendfile = 3
posix_fadvise = 1
copy_file_range = 3
";

/// fsx as the user, on `node`, in a file that `maker` has made and holds.
pub(crate) fn fsx(instance: &Instance, (maker, node): (&str, &str), operations: u32) -> Result<()> {
    let program = suite("fsx")?;
    fs::write("/tmp/fsx.toml", FSX)?;
    machine::sh_as("alice", &format!("touch {}", instance.path(maker, "fsx").display()))?;
    let file = instance.path(node, "fsx");
    let options = format!("-f /tmp/fsx.toml -P /tmp -S {FSX_SEED} -N {operations}");
    machine::sh_as("alice", &format!("{program} {options} {}", file.display())).map(drop)
}

/// pjdfstest as root, who becomes alice and bob, on `node`, in a directory of the mount that is bound to a place outside.
pub(crate) fn pjdfstest(instance: &Instance, node: &str) -> Result<()> {
    let program = suite("pjdfstest")?;
    let config = include_str!("../posix/pjdfstest.toml").replace("ALLOW_REMOUNT", "false");
    fs::write("/tmp/pjdfstest.toml", config)?;
    machine::sh_as("alice", &format!("mkdir -m 1777 {}", instance.path(node, "open").display()))?;
    let open = instance.path(node, "open");
    let script = format!(
        "mkdir -p /tmp/posix && mount --bind {} /tmp/posix && cd /tmp &&
         exec {program} -c /tmp/pjdfstest.toml -p /tmp/posix -s /tmp {}",
        open.display(),
        PJDFSTEST.join(" ")
    );
    let said = machine::sh(&format!("exec unshare --mount --propagation private sh -c '{script}'"))?;
    let passed = said.lines().filter(|line| line.trim_end().ends_with("  ok")).count();
    ensure!(passed == PJDFSTEST.len() && said.contains("Summary"), "{passed} of {} passed\n{said}", PJDFSTEST.len());
    Ok(())
}

/// A suite's program.
fn suite(program: &str) -> Result<String> {
    let suites =
        std::env::var_os("BURSTFS_POSIX_SUITES").context("BURSTFS_POSIX_SUITES is not set; use `make rdma-test`")?;
    Ok(machine::for_users(&Path::new(&suites).join(program))?.display().to_string())
}
