//! Where keys live, as the kernel sees it. In a separate process, which it changes.

use sealfs::seal::{RootKey, VolumeKeys, forbid_dumps};
use std::fs;

use crate::alone::is_alone;

/// The `VmFlags` of the mapping that holds `address`, from /proc/self/smaps (proc(5)).
fn flags_of_mapping(address: usize) -> String {
    let smaps = fs::read_to_string("/proc/self/smaps").expect("procfs is mounted");
    let mut inside = false;
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        if let Some((start, end)) = range {
            let parse = |text| usize::from_str_radix(text, 16).ok();
            if let (Some(start), Some(end)) = (parse(start), parse(end)) {
                inside = (start..end).contains(&address);
            }
        }
        if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
            return flags.trim().to_owned();
        }
    }
    panic!("no mapping holds the address");
}

#[test]
fn keys_are_locked_and_left_out_of_core_dumps() {
    // Guards against a key that is swapped to disk or lands in a core file: ask the kernel for
    // the flags of the mapping that a key's bytes are in, and of the process.
    if !is_alone("seal_memory::keys_are_locked_and_left_out_of_core_dumps") {
        return;
    }
    let keys = VolumeKeys::from_root(RootKey::random());
    for key in keys.secrets_for_tests() {
        let flags = flags_of_mapping(key.expose().as_ptr() as usize);
        assert!(flags.split(' ').any(|flag| flag == "dd"), "not left out of dumps: {flags}");
        assert!(flags.split(' ').any(|flag| flag == "lo"), "not locked: {flags}");
    }
    forbid_dumps().expect("a process may always make itself non-dumpable");
    // SAFETY: PR_GET_DUMPABLE takes no pointer.
    assert_eq!(unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) }, 0);
}
