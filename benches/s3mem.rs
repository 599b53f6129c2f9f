//! The in-memory S3 server of the tests as a separate process, for daemon tests and benches.
//!
//! Usage: `s3mem [--port N] [--control-port N] [--bucket NAME]… [--seed N] [--threads N]`.
//! Prints one `name=value` a line (endpoint, control, bucket, access_key_id,
//! secret_access_key) and serves until its standard input ends or it is killed, so that it never
//! outlives the script that started it with a pipe; `--forever` ignores standard input. What the
//! control port understands is documented in `tests/support/s3server/control.rs`.

#[path = "../tests/support/s3server/mod.rs"]
mod s3server;

use clap::Parser;
use s3server::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY, ServerConfig, serve_control};
use std::io::{Read, Write};

#[derive(Parser)]
struct Args {
    /// Port of the S3 endpoint on 127.0.0.1; 0 picks one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Port of the controls on 127.0.0.1; 0 picks one
    #[arg(long, default_value_t = 0)]
    control_port: u16,
    /// Buckets that exist; the first is the one the controls mean
    #[arg(long = "bucket", default_values_t = [BUCKET.to_owned()])]
    buckets: Vec<String>,
    /// Seed of faults with a rate
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads that serve
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Keep serving when standard input ends
    #[arg(long)]
    forever: bool,
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let server = S3Server::start_with(ServerConfig {
        port: args.port,
        buckets: args.buckets.clone(),
        seed: args.seed,
        threads: args.threads,
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", args.control_port)).await?;
        let mut out = std::io::stdout();
        writeln!(out, "endpoint={}", server.endpoint())?;
        writeln!(out, "control=http://{}", listener.local_addr()?)?;
        writeln!(out, "bucket={}", args.buckets[0])?;
        writeln!(out, "access_key_id={ACCESS_KEY}")?;
        writeln!(out, "secret_access_key={SECRET_KEY}")?;
        out.flush()?;
        if !args.forever {
            std::thread::spawn(|| {
                // The end of input and a broken input mean the same: nobody is left to serve.
                let _ = std::io::stdin().read_to_end(&mut Vec::new());
                std::process::exit(0);
            });
        }
        serve_control(listener, &server).await
    })
}
