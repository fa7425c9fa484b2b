//! What a calling process may, as far as the kernel leaves that to the file system and fuser does not pass on what it says.
//!
//! Owns the reading of `/proc/<thread>/status`. A process that cannot be seen from here may nothing.

use std::fs;

/// Bits of the capabilities (`capability.h`).
const CAP_FSETID: u32 = 4;
const CAP_SYS_ADMIN: u32 = 21;

/// A process in the course of a system call.
pub(super) struct Caller {
    status: String,
}

impl Caller {
    /// The thread, numbered as the mount's PID namespace does.
    pub(super) fn of(thread: u32) -> Caller {
        Caller { status: fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default() }
    }

    /// Whether it may leave a file of the group `gid` set-group-id (Linux's `in_group_or_capable`).
    pub(super) fn may_keep_set_gid(&self, gid: u32) -> bool {
        // Real, effective, saved, and the one that counts for file systems.
        let own = self.numbers("Gid:").nth(3);
        own == Some(gid) || self.numbers("Groups:").any(|group| group == gid) || self.has(CAP_FSETID)
    }

    /// Whether it may know of `trusted.` attributes.
    pub(super) fn sees_trusted(&self) -> bool {
        self.has(CAP_SYS_ADMIN)
    }

    fn line(&self, name: &str) -> &str {
        self.status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default()
    }

    fn numbers(&self, name: &str) -> impl Iterator<Item = u32> {
        self.line(name).split_whitespace().filter_map(|word| word.parse().ok())
    }

    fn has(&self, capability: u32) -> bool {
        u64::from_str_radix(self.line("CapEff:").trim(), 16).is_ok_and(|set| set >> capability & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(capabilities: &str) -> Caller {
        let status =
            format!("Name:\tx\nGid:\t1\t2\t3\t4\nGroups:\t7 8 \nCapPrm:\tffffffffffffffff\nCapEff:\t{capabilities}\n");
        Caller { status }
    }

    #[test]
    fn groups_and_capabilities_count() {
        let ordinary = caller("0000000000000000");
        assert!([4, 7, 8].iter().all(|gid| ordinary.may_keep_set_gid(*gid)));
        assert!(![1, 2, 3, 9].iter().any(|gid| ordinary.may_keep_set_gid(*gid)));
        assert!(!ordinary.sees_trusted());
        assert!(caller("0000000000000010").may_keep_set_gid(9));
        assert!(caller("0000000000200000").sees_trusted() && !caller("0000000000200000").may_keep_set_gid(9));
    }

    #[test]
    fn who_cannot_be_seen_may_nothing() {
        let nobody = Caller { status: String::new() };
        assert!(!nobody.may_keep_set_gid(0) && !nobody.sees_trusted());
        assert!(Caller::of(std::process::id()).numbers("Gid:").count() == 4);
    }
}
