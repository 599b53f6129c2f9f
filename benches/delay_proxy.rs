//! A TCP proxy that adds a round-trip time and, if asked, the bandwidth of a link.
//!
//! Usage: `delay_proxy --to HOST:PORT [--port N] [--rtt-ms 20] [--mib-per-s N]`. Prints
//! `listen=127.0.0.1:N` and serves until killed (or standard input ends, without `--forever`).
//!
//! Every byte is forwarded half a round trip after it was read, in order, in each direction; any
//! amount may be under way, so the delay does not limit the bandwidth; `--mib-per-s` does, for all
//! connections together, each way. A connection costs one round trip before its first byte, as a
//! TCP handshake would. Two threads a direction, because the sleep of a thread is exact to 0.1 ms
//! where timers of a runtime count in milliseconds.

use clap::Parser;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of one read; a piece is forwarded whole.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces under way in one direction of one connection: 1 GiB at most, so that it never limits.
const PIECES_MAX: usize = 4096;

/// What a limited link holds back before it takes more.
const LINK_QUEUE: Duration = Duration::from_millis(20);

/// One direction of the link: when it is free for the next piece.
struct Link {
    seconds_per_byte: f64,
    free: Mutex<Option<Instant>>,
}

impl Link {
    fn new(mib_per_s: Option<u32>) -> Arc<Link> {
        let seconds_per_byte = mib_per_s.map_or(0.0, |rate| 1.0 / (f64::from(rate) * 1048576.0));
        Arc::new(Link { seconds_per_byte, free: Mutex::default() })
    }

    /// When the last byte of a piece that arrives now has gone through.
    fn through(&self, length: usize) -> Instant {
        let now = Instant::now();
        if self.seconds_per_byte == 0.0 {
            return now;
        }
        let mut free = self.free.lock().expect("nobody panics with it");
        let begins = free.map_or(now, |at| at.max(now));
        let ends = begins + Duration::from_secs_f64(length as f64 * self.seconds_per_byte);
        *free = Some(ends);
        ends
    }
}

#[derive(Parser)]
struct Args {
    /// Server to forward to
    #[arg(long)]
    to: SocketAddr,
    /// Port on 127.0.0.1; 0 picks one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Round trip to add, in milliseconds
    #[arg(long, default_value_t = 20.0)]
    rtt_ms: f64,
    /// Bandwidth of each direction, in MiB/s; without it there is no limit
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    mib_per_s: Option<u32>,
    /// Keep serving when standard input ends
    #[arg(long)]
    forever: bool,
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    if !args.forever {
        thread::spawn(|| {
            // The end of input and a broken input mean the same: nobody is left to serve.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            std::process::exit(0);
        });
    }
    let one_way = Duration::from_secs_f64(args.rtt_ms.max(0.0) / 2000.0);
    let (up, down) = (Link::new(args.mib_per_s), Link::new(args.mib_per_s));
    let listener = TcpListener::bind(("127.0.0.1", args.port))?;
    let mut out = std::io::stdout();
    writeln!(out, "listen={}", listener.local_addr()?)?;
    out.flush()?;
    for client in listener.incoming() {
        let client = client?;
        let (up, down) = (up.clone(), down.clone());
        thread::spawn(move || {
            if let Err(error) = forward(client, args.to, one_way, up, down) {
                eprintln!("delay_proxy: {error}");
            }
        });
    }
    Ok(())
}

/// Forwards one connection both ways; returns when the threads that do it are started.
fn forward(
    client: TcpStream,
    to: SocketAddr,
    one_way: Duration,
    up: Arc<Link>,
    down: Arc<Link>,
) -> std::io::Result<()> {
    thread::sleep(2 * one_way);
    let server = TcpStream::connect(to)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    direction(client.try_clone()?, server.try_clone()?, one_way, up);
    direction(server, client, one_way, down);
    Ok(())
}

/// Forwards one direction. When either side ends or breaks, so does the other.
fn direction(mut from: TcpStream, mut to: TcpStream, one_way: Duration, link: Arc<Link>) {
    let (queue, pieces) = mpsc::sync_channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    let mut buffer = vec![0; PIECE_BYTES];
    thread::spawn(move || {
        // A broken connection is forwarded as its end.
        while let Ok(length) = from.read(&mut buffer)
            && length > 0
        {
            let through = link.through(length);
            // Nobody reads far ahead of the link, so that connections share it piece by piece.
            thread::sleep(through.saturating_duration_since(Instant::now() + LINK_QUEUE));
            let due = through + one_way;
            if queue.send((due, buffer[..length].to_vec())).is_err() {
                // Nobody takes what this side still says.
                let _ = from.shutdown(Shutdown::Read);
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, piece) in pieces {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        // The other side may already have closed.
        let _ = to.shutdown(Shutdown::Write);
    });
}
