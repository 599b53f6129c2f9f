//! Tells the service manager how a mount in the foreground is (sd_notify(3)): `Type=notify` units
//! count as started when the mount works, and a drain that moves is not cut short.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use indicatif::HumanBytes;

use crate::stack::Progress;

/// How much longer a stop may take after each sign of progress, in microseconds.
const EXTEND_US: u64 = 120_000_000;

/// The mount works.
pub fn ready(status: &str) {
    tell(&format!("READY=1\nSTATUS={}", status.replace('\n', " ")));
}

/// It has read its settings again; its status stays what it was.
pub fn reloaded() {
    tell("READY=1");
}

/// It reads its settings again; [`reloaded`] says when that is done.
pub fn reloading() {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock is there since Linux 2.6, and `now` is written only.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    let us = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000;
    tell(&format!("RELOADING=1\nMONOTONIC_USEC={us}"));
}

/// Whether a service manager started this process.
pub fn is_listened_to() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some_and(|to| !to.is_empty())
}

/// How it is.
pub fn status(status: &str) {
    tell(&format!("STATUS={}", status.replace('\n', " ")));
}

/// The mount is about to end.
pub fn stopping(status: &str) {
    tell(&format!("STOPPING=1\nSTATUS={}", status.replace('\n', " ")));
}

/// How far an upload is that somebody waits for; only one that `moves` is given more time.
pub fn progress(now: &Progress, moves: bool) {
    let left = HumanBytes(now.pending_bytes.saturating_sub(now.sent_bytes));
    let all = HumanBytes(now.pending_bytes);
    let away = if now.offline { "; the store cannot be reached" } else { "" };
    let more = if moves { format!("EXTEND_TIMEOUT_USEC={EXTEND_US}\n") } else { String::new() };
    tell(&format!("{more}STATUS=to upload: {left} of {all} that are pending{away}"));
}

/// How often the service manager wants to hear that the process is alive, if it does (sd_watchdog_enabled(3)).
pub fn watchdog() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let us = number("WATCHDOG_USEC").filter(|us| *us > 0 && is_ours)?;
    Some(Duration::from_micros(us))
}

/// It is alive.
pub fn alive() {
    tell("WATCHDOG=1");
}

/// Sends one message, if a service manager listens. It may have gone, which costs it the message.
fn tell(message: &str) {
    let Some(to) = std::env::var_os("NOTIFY_SOCKET").filter(|to| !to.is_empty()) else { return };
    let address = match to.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&to),
    };
    let sent = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to_addr(message.as_bytes(), &address)
    });
    if let Err(e) = sent {
        log::debug!("the service manager was not told: {e}");
    }
}
