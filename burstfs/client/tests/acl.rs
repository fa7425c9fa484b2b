//! Access control lists as programs see them: the same commands on a mount and on the disk's own file system give the same.
//! Needs root, `/dev/fuse`, and setfacl, getfacl and setpriv.

#![allow(clippy::unwrap_used)] // clippy.toml's exception ends at a test's helpers

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use support::mount::mounts;

/// What is done, one after the other, each by a shell in the directory under test.
const STEPS: &[&str] = &[
    "umask 027; mkdir d; echo plain > d/plain",
    "setfacl -m u:1234:rwx,g:77:r-x d",
    "setfacl -m u:1234:rw,g:77:r d/plain",
    "setfacl -d -m u:1234:rw-,g:77:r--,o::- d",
    "umask 022; touch d/f; mkdir d/sub; touch d/sub/g; mkfifo d/pipe; ln -s f d/link",
    "umask 077; echo two > d/f2; mkdir d/sub/deep; touch d/sub/deep/h",
    "umask 0; touch d/f3; mkdir -m 700 d/own",
    "chmod 640 d/f",
    "chmod 600 d/f2; chmod 664 d/f2",
    "setfacl -x u:1234 d/f; setfacl -m o::r d/f",
    "setfacl -b d/f",
    "setfacl -k d/sub; umask 022; touch d/sub/without",
    "setfacl -m m::r d/sub",
    "chmod g+s d; mkdir d/sub2; touch d/sub2/x",
    "ln d/f2 d/name; mv d/f3 d/sub/moved",
    "cp -a d e",
    "getfacl -pn d/plain | setfacl --set-file=- d/sub/g",
    // Of its owner's, who is not in the file's group, set-group-id goes; of others' it stays.
    "touch d/set; chown 1234:88 d/set; chmod 2775 d/set; chmod 755 d",
    "setpriv --reuid=1234 --regid=88 --clear-groups setfacl -m u:5:r d/set",
    "setpriv --reuid=1234 --regid=1234 --groups 88 setfacl -m u:6:r d/set",
    "setfacl -m u:7:r d/set",
    "setpriv --reuid=1234 --regid=1234 --clear-groups setfacl -m u:8:r d/set",
    // What does not exist.
    "setfacl -d -m u:1234:r d/f",
    "setfacl -x u:999 d/f",
    "setfattr -n system.posix_acl_access -v 0x0200 d/f",
    "setfattr -n system.posix_acl_access -v 0x02000000010006 d/f",
    "setfattr -n system.posix_acl_access -v 0x020000000100060000000000 d/f",
    "setfattr -n system.posix_acl_default -v 0x02000000 d/f",
    "setfattr -x system.posix_acl_access d/f",
    "setfattr -x system.posix_acl_access d/f2",
    "getfattr -n system.posix_acl_access d/plain d/f",
    "setfattr -h -n system.posix_acl_access -v 0x02000000 d/link",
    // Who is let in.
    "setpriv --reuid=1234 --regid=1234 --clear-groups sh -c 'cat d/plain; echo more >> d/plain'",
    "setpriv --reuid=4321 --regid=77 --clear-groups sh -c 'cat d/plain; echo more >> d/plain'",
    "setpriv --reuid=4321 --regid=1 --groups 76,77 sh -c 'cat d/plain; echo more >> d/plain'",
    "setpriv --reuid=4321 --regid=4321 --clear-groups cat d/plain",
    "chmod g-rwx d/plain; setpriv --reuid=1234 --regid=1234 --clear-groups cat d/plain",
    "chmod g+r d/plain; setpriv --reuid=1234 --regid=1234 --clear-groups cat d/plain",
    "setfacl -m u:1234:- d/plain; chmod o+r d/plain; setpriv --reuid=1234 --regid=1234 --clear-groups cat d/plain",
    "setfacl -m u:1234:rwx d/own; setpriv --reuid=1234 --regid=1234 --clear-groups sh -c 'umask 0; touch d/own/a; ls d/own'",
    "setpriv --reuid=1234 --regid=1234 --clear-groups setfacl -m u:1234:rwx d/plain",
    // Attributes that only the privileged see.
    "setfattr -n trusted.t -v 1 d/plain; setfattr -n user.u -v 1 d/plain; setfacl -b d/plain; getfattr -m - d/plain",
    "setpriv --reuid=1234 --regid=1234 --clear-groups --inh-caps=-all getfattr -m - d/plain",
];

/// Everything that there is of lists and permissions.
const LOOK: &str =
    "find . -mindepth 1 ! -type l | sort | xargs getfacl -pnE; find . -mindepth 1 -printf '%p %m %U %G\n' | sort";

fn shell(directory: &Path, script: &str) -> Output {
    Command::new("sh").args(["-c", script]).current_dir(directory).env("LC_ALL", "C").output().unwrap()
}

fn text(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}\n{out}{err}", output.status)
}

/// Runs `steps` in `here` and on the disk; after each, `there` and the disk show the same.
fn compare(here: &Path, there: &Path, steps: &[&str]) {
    // What lets others through to what is tested.
    let oracle = tempfile::tempdir().unwrap();
    for directory in [here, oracle.path()] {
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
    }
    for step in steps {
        let (actual, expected) = (shell(here, step), shell(oracle.path(), step));
        assert_eq!(text(&actual), text(&expected), "{step}");
        let (actual, expected) = (shell(there, LOOK), shell(oracle.path(), LOOK));
        assert!(expected.status.success(), "{}", text(&expected));
        assert_eq!(text(&actual), text(&expected), "after {step}");
    }
}

#[test]
fn lists_are_as_on_the_disks_own_file_system() {
    let ([mount], _cluster) = mounts();
    compare(mount.path(), mount.path(), STEPS);
}

#[test]
fn what_one_node_sets_the_other_obeys() {
    let ([here, there], _cluster) = mounts();
    compare(here.path(), there.path(), STEPS);
}
