//! What the tests of the ways into a volume share.

pub mod kms;

use std::fs;
use std::process::Command;

use crate::mounts::Volume;

/// All memory of a process as a core dump would have it; `None`, said loudly, where that cannot be
/// had.
pub fn core_of(v: &Volume, pid: i32) -> Option<Vec<u8>> {
    if Command::new("gcore").arg("--help").output().is_err() {
        eprintln!("skipped: gcore is missing (apt install gdb)");
        return None;
    }
    fs::write(format!("/proc/{pid}/coredump_filter"), "0x33").ok()?;
    let dumped = Command::new("gcore").arg("-o").arg(v.path("core")).arg(pid.to_string()).output();
    let file = v.path(&format!("core.{pid}"));
    if !file.exists() {
        eprintln!("skipped: gcore may not read the process: {dumped:?}");
        return None;
    }
    let core = fs::read(&file).expect("reads");
    fs::remove_file(file).expect("own file");
    Some(memory_in(&core))
}

/// A core without its notes (elf(5), `PT_NOTE`). They hold the registers of every thread, and a vector
/// register the 16 to 64 bytes that its thread copied last, whatever they were.
pub fn memory_in(core: &[u8]) -> Vec<u8> {
    let number = |at: usize, len: usize| {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&core[at..at + len]);
        usize::try_from(u64::from_le_bytes(bytes)).expect("an offset")
    };
    let (headers, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let mut memory = core.to_vec();
    for header in (0..count).map(|n| headers + n * size) {
        if number(header, 4) == libc::PT_NOTE as usize {
            let (from, len) = (number(header + 8, 8), number(header + 32, 8));
            memory[from..from + len].fill(0);
        }
    }
    memory
}

/// Whether `needle` is in `bytes`.
pub fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    let Some((&first, rest)) = needle.split_first() else { return true };
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|&b| b == first) {
        from += at + 1;
        if bytes[from..].starts_with(rest) {
            return true;
        }
    }
    false
}
