//! A TCP proxy that adds a round-trip time and nothing else.
//!
//! Usage: `delay_proxy --to HOST:PORT [--port N] [--rtt-ms 20]`. Prints `listen=127.0.0.1:N` and
//! serves until killed (or standard input ends, without `--forever`).
//!
//! Every byte is forwarded half a round trip after it was read, in order, in each direction; any
//! amount may be under way, so the bandwidth is not limited. A connection costs one round trip
//! before its first byte, as a TCP handshake would.

use clap::Parser;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Bytes of one read; a piece is forwarded whole.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces under way in one direction of one connection: 1 GiB at most, so that it never limits.
const PIECES_MAX: usize = 4096;
/// The runtime's timer rounds up to whole milliseconds, half of one on average.
const TIMER_LATENESS: Duration = Duration::from_micros(500);

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
    /// Keep serving when standard input ends
    #[arg(long)]
    forever: bool,
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    if !args.forever {
        std::thread::spawn(|| {
            // The end of input and a broken input mean the same: nobody is left to serve.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            std::process::exit(0);
        });
    }
    let one_way = Duration::from_secs_f64(args.rtt_ms.max(0.0) / 2000.0);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async move {
        let listener = TcpListener::bind(("127.0.0.1", args.port)).await?;
        let mut out = std::io::stdout();
        writeln!(out, "listen={}", listener.local_addr()?)?;
        out.flush()?;
        loop {
            let (client, _) = listener.accept().await?;
            tokio::spawn(async move {
                if let Err(error) = connect(client, args.to, one_way).await {
                    eprintln!("delay_proxy: {error}");
                }
            });
        }
    })
}

/// Forwards one connection both ways until both ends are done.
async fn connect(client: TcpStream, to: SocketAddr, one_way: Duration) -> std::io::Result<()> {
    tokio::time::sleep(2 * one_way).await;
    let server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(
        direction(from_client, to_server, one_way),
        direction(from_server, to_client, one_way)
    );
    Ok(())
}

/// Forwards one direction. A broken side ends it, which closes the other side in turn.
async fn direction(from: OwnedReadHalf, to: OwnedWriteHalf, one_way: Duration) {
    let (queue, pieces) = mpsc::channel(PIECES_MAX);
    let reader = tokio::spawn(read(from, queue, one_way));
    write(to, pieces).await;
    // The writer has ended, so nobody waits for what the reader might still bring.
    reader.abort();
}

async fn read(mut from: OwnedReadHalf, queue: mpsc::Sender<(Instant, Vec<u8>)>, one_way: Duration) {
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        match from.read_buf(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                if queue.send((Instant::now() + one_way, piece)).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn write(mut to: OwnedWriteHalf, mut pieces: mpsc::Receiver<(Instant, Vec<u8>)>) {
    while let Some((when, piece)) = pieces.recv().await {
        sleep_until(when - TIMER_LATENESS).await;
        if to.write_all(&piece).await.is_err() {
            return;
        }
    }
    // The other side may already have closed.
    let _ = to.shutdown().await;
}
