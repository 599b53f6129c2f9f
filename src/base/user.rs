//! Who this process acts as.

/// The number of that user.
pub fn own_uid() -> u32 {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}

/// Whether it is root, who may mount, and give files away.
pub fn is_root() -> bool {
    own_uid() == 0
}
