//! What a request does not say of its caller: supplementary groups and capabilities.
//!
//! FUSE sends a user, a group and a thread; Linux knows the rest and shows it in
//! `/proc/TID/status` (proc_pid_status(5)). The thread waits for our answer meanwhile, so it is
//! the one that asked. It is looked at only where the answer depends on it: a set-id bit is at
//! stake, or the name of a `trusted.` attribute. A caller that cannot be seen (a daemon in a PID namespace of
//! its own, or one that is not root) has no right but that of its group: bits go, names stay hidden.

use super::Caller;

/// `CAP_FOWNER`: to change the mode of what others own (capabilities(7)).
const FOWNER: u32 = 3;
/// `CAP_FSETID`: to keep set-id bits of what one changes (capabilities(7)).
const FSETID: u32 = 4;
/// `CAP_SYS_ADMIN`: to see `trusted.` attributes (xattr(7)).
const SYS_ADMIN: u32 = 21;
/// The user namespace that Linux starts with (`PROC_USER_INIT_INO` in linux/proc_ns.h):
/// capabilities in another one do not reach the volume.
const INITIAL_USER_NS: &str = "user:[4026531837]";

/// Groups and capabilities of one caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rights {
    groups: Vec<u32>,
    capabilities: u64,
}

/// A file of `/proc`, as far as it can be read. The name of a process, in its first line, may be cut in
/// the middle of a character.
fn text_of(path: &str) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The user and the group that count for files: the last of four (proc_pid_status(5)).
const FSID: usize = 3;

impl Rights {
    /// Those of `caller`. Reads two files of `/proc`.
    pub(super) fn of(caller: Caller) -> Rights {
        let thread = format!("/proc/{}", caller.pid);
        let status = match caller.pid {
            0 => String::new(),
            _ => text_of(&format!("{thread}/status")),
        };
        let mut rights = Rights::parse(&status, caller);
        rights.groups.push(caller.gid);
        let initial = std::fs::read_link(format!("{thread}/ns/user"))
            .is_ok_and(|ns| ns.as_os_str() == INITIAL_USER_NS);
        if !initial {
            rights.capabilities = 0;
        }
        rights
    }

    fn parse(status: &str, caller: Caller) -> Rights {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let id = |name| field(name)?.split_whitespace().nth(FSID)?.parse().ok();
        // A thread that acts for somebody else (knfsd) is shown with its own rights.
        if (id("Uid:"), id("Gid:")) != (Some(caller.uid), Some(caller.gid)) {
            return Rights::default();
        }
        let groups = field("Groups:").unwrap_or_default().split_whitespace();
        let capabilities = field("CapEff:").unwrap_or_default().trim();
        Rights {
            groups: groups.filter_map(|gid| gid.parse().ok()).collect(),
            capabilities: u64::from_str_radix(capabilities, 16).unwrap_or(0),
        }
    }

    fn has(&self, capability: u32) -> bool {
        self.capabilities & 1 << capability != 0
    }

    /// Whether it may keep set-id bits of whatever it changes.
    pub(super) fn keeps_set_id(&self) -> bool {
        self.has(FSETID)
    }

    /// `in_group_or_capable` of Linux (fs/attr.c): whether a set-group-id bit of group `gid` is
    /// its to keep.
    pub(super) fn keeps_set_gid_of(&self, gid: u32) -> bool {
        self.groups.contains(&gid) || self.keeps_set_id()
    }

    /// Whether it may change the mode of what `owner` owns.
    pub(super) fn may_change(&self, caller: Caller, owner: u32) -> bool {
        caller.uid == owner || self.has(FOWNER)
    }

    /// Whether it sees `trusted.` attributes.
    pub(super) fn sees_trusted(&self) -> bool {
        self.has(SYS_ADMIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_capabilities_are_read_as_linux_writes_them() {
        // Guards against a caller's second group being overlooked, and against taking the bits
        // of another line (CapPrm, CapBnd) for those in force.
        let status = "Name:\tsh\nUid:\t1\t1\t1\t9\nGid:\t6\t6\t6\t7\nGroups:\t4 24 41100 \nCapInh:\t0\n\
                      CapPrm:\tffffffffffffffff\nCapEff:\t0000000000200000\nCapBnd:\tffff\n";
        let caller = Caller { uid: 9, gid: 7, pid: 1 };
        let rights = Rights::parse(status, caller);
        assert_eq!(rights.groups, [4, 24, 41100]);
        assert!(rights.sees_trusted() && !rights.keeps_set_id());
        assert!(rights.keeps_set_gid_of(24) && !rights.keeps_set_gid_of(7));
        let all = status.replace("0000000000200000", "000001ffffffffff");
        assert!(Rights::parse(&all, caller).keeps_set_gid_of(12_345));
        // Guards against the rights of a server being taken for those of its client.
        assert_eq!(Rights::parse(&all, Caller { uid: 8, ..caller }), Rights::default());
        assert_eq!(Rights::parse(&all, Caller { gid: 6, ..caller }), Rights::default());
    }

    #[test]
    fn who_cannot_be_seen_has_only_its_group() {
        // Guards against set-id bits that stay because nothing could be found out.
        let rights = Rights::of(Caller { uid: 0, gid: 5, pid: 0 });
        assert_eq!(rights, Rights { groups: vec![5], capabilities: 0 });
        let gone = Rights::of(Caller { uid: 0, gid: 5, pid: u32::MAX });
        assert_eq!(gone, rights);
    }
}
