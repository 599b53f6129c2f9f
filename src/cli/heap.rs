//! The allocator of a mount, which lives for weeks beside other programs.

use std::time::Duration;

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Free memory that is kept for the next buffers.
const KEPT_FREE: u64 = 32 << 20;

/// Sets the allocator up for buffers of megabytes that are made and freed for every request and
/// pass between threads (mallopt(3)). Two heaps, or what each thread leaves behind would add
/// up. Freed memory is kept for the next buffer: given back to the kernel each time, it would be
/// cleared and faulted in again, which costs more than decryption.
pub fn tune() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 2),
        // The maximum: only larger blocks are mapped and unmapped one by one.
        (libc::M_MMAP_THRESHOLD, 32 << 20),
        (libc::M_TRIM_THRESHOLD, 64 << 20),
    ] {
        // SAFETY: takes two numbers; a refusal (0) only leaves the default in force.
        let _ = unsafe { libc::mallopt(parameter, value) };
    }
}

/// Now and then gives back to the kernel what lies free between what is in use: nearly half of the heap after
/// a million new files. Never returns.
pub async fn keep_small() {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // It may take milliseconds.
        if tokio::task::spawn_blocking(|| free_bytes() > KEPT_FREE && trim()).await.is_err() {
            return; // the runtime ends
        }
    }
}

/// About how much memory of the heap is resident and not in use; 0 where that cannot be told.
fn free_bytes() -> u64 {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes nothing and returns numbers.
        let heap = unsafe { libc::mallinfo2() };
        let in_use = (heap.uordblks + heap.hblkhd) as u64;
        anonymous_bytes().unwrap_or(0).saturating_sub(in_use)
    }
    #[cfg(not(target_env = "gnu"))]
    0
}

/// Memory of this process that is no file's, from `/proc/self/statm` (proc_pid_statm(5)).
#[cfg(target_env = "gnu")]
fn anonymous_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = statm.split_whitespace().skip(1).map(str::parse::<u64>);
    let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
    // SAFETY: it takes a number and returns one.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(resident.saturating_sub(shared) * u64::try_from(page).ok()?)
}

/// Gives free pages back, wherever they lie (malloc_trim(3)); whether there were any.
fn trim() -> bool {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes a number; other threads that allocate wait meanwhile.
        unsafe { libc::malloc_trim(KEPT_FREE as usize / 2) == 1 }
    }
    #[cfg(not(target_env = "gnu"))]
    false
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn what_lies_free_between_what_is_in_use_goes_back_to_the_kernel() {
        // Guards against a heap that stays as large as it once was: here what is in use holds the end.
        let mut all: Vec<Vec<u8>> = (0..3200).map(|_| vec![7; 64 << 10]).collect(); // 200 MiB
        let kept: Vec<_> = all.iter_mut().step_by(32).map(std::mem::take).collect();
        drop(all);
        let free = free_bytes();
        assert!(free > 100 << 20, "{free}");
        assert!(trim());
        let left = free_bytes();
        assert!(left < free - (100 << 20), "{left} of {free}");
        drop(kept);
    }
}
