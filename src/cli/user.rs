//! The users of this machine by number: their names and home directories.

use std::ffi::{CStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::base::own_uid;

/// Bytes of one entry of the user database at most.
const ENTRY_BYTES_MAX: usize = 16 << 10;

/// Name and home directory of a user, as the user database says.
fn look_up(uid: u32) -> Option<(String, PathBuf)> {
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut buffer = vec![0; ENTRY_BYTES_MAX];
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are valid for the call, and the buffer has the length it is told.
    let rc = unsafe {
        let (out, len) = (buffer.as_mut_ptr(), buffer.len());
        libc::getpwuid_r(uid, entry.as_mut_ptr(), out, len, &mut found)
    };
    if rc != 0 || found.is_null() {
        return None;
    }
    // SAFETY: `found` is not null, so the entry was filled; its strings end with NUL and live in
    // `buffer`.
    let (name, home) = unsafe {
        let entry = entry.assume_init_ref();
        (CStr::from_ptr(entry.pw_name).to_bytes(), CStr::from_ptr(entry.pw_dir).to_bytes())
    };
    let home = PathBuf::from(OsString::from_vec(home.to_vec()));
    Some((String::from_utf8_lossy(name).into_owned(), home))
}

/// The name of a user, or its number where it has none.
pub fn name(uid: u32) -> String {
    look_up(uid).map_or_else(|| format!("#{uid}"), |(name, _)| name)
}

/// The home directory of this user: `HOME`, or what the user database says.
pub fn home() -> Option<PathBuf> {
    let usable = |home: &PathBuf| home.is_absolute();
    let said = std::env::var_os("HOME").map(PathBuf::from).filter(usable);
    said.or_else(|| look_up(own_uid()).map(|(_, home)| home).filter(usable))
}

/// Sets `HOME` where mount(8) or systemd has left it out: the AWS libraries look below it. Call
/// it while the process has one thread.
pub fn ensure_home() {
    let unset = std::env::var_os("HOME").is_none_or(|home| home.is_empty());
    if let (true, Some(home)) = (unset, home()) {
        // SAFETY: no other thread reads the environment meanwhile (the caller's duty).
        unsafe { std::env::set_var("HOME", home) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names_or_numbers() {
        // Guards against a message that tells nobody whose mount it is.
        assert_eq!(name(0), "root");
        assert_eq!(name(4_000_000_000), "#4000000000");
        assert!(home().is_some_and(|home| home.is_absolute()));
    }
}
