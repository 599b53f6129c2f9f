//! What the server and the client library can do: parallel PUTs, then parallel ranged GETs, of
//! the same objects with `aws-sdk-s3` and nothing else.
//!
//! Usage: `rawget --endpoint URL [--bucket test] [--parallel 16] [--mib 8] [--count 128]`, with
//! credentials from the environment. Prints one JSON object a line:
//! `{"phase":"raw_put","mib_per_s":…}`. Every GET is one range of `--mib` MiB; bodies are
//! counted, not kept. Objects are below `rawget/` and deleted at the end.
//!
//! With `--list PREFIX` it only lists what is there below the prefix and GETs every object whole:
//! `{"phase":"raw_get_all","files_per_s":…,"mib_per_s":…}`.

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use clap::Parser;
use futures::{StreamExt, TryStreamExt, stream};
use std::error::Error;
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser, Clone)]
struct Args {
    /// S3 endpoint
    #[arg(long)]
    endpoint: String,
    /// Bucket
    #[arg(long, default_value = "test")]
    bucket: String,
    /// Requests at once
    #[arg(long, default_value_t = 16)]
    parallel: usize,
    /// MiB of each object and range
    #[arg(long, default_value_t = 8)]
    mib: usize,
    /// Objects
    #[arg(long, default_value_t = 128)]
    count: usize,
    /// Also time this many single-request GETs of 4 KiB, one after the other
    #[arg(long, default_value_t = 50)]
    small: usize,
    /// Only list what is below this prefix, and get it
    #[arg(long)]
    list: Option<String>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Outcome<()> {
    let args = Args::parse();
    let shared = aws_config::defaults(aws_config::BehaviorVersion::latest())
        .endpoint_url(&args.endpoint)
        .region(Region::new("us-east-1"))
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .load()
        .await;
    let config = aws_sdk_s3::config::Builder::from(&shared).force_path_style(true).build();
    let client = Client::from_conf(config);

    if let Some(prefix) = &args.list {
        return get_all(&client, &args, prefix).await;
    }
    let contents = Bytes::from(pattern(args.mib << 20));
    let start = Instant::now();
    parallel(&args, |i| put(&client, &args.bucket, i, contents.clone())).await?;
    report("raw_put", &args, start.elapsed());

    let range = format!("bytes=0-{}", (args.mib << 20) - 1);
    let start = Instant::now();
    let read = parallel(&args, |i| get(&client, &args.bucket, i, range.clone())).await?;
    let expected = (args.count * args.mib) << 20;
    if read != expected {
        return Err(format!("read {read} bytes instead of {expected}").into());
    }
    report("raw_get", &args, start.elapsed());

    let start = Instant::now();
    for i in 0..args.small {
        let at = (i * 7919 * 4096) % ((args.mib << 20) - 4096);
        let range = format!("bytes={at}-{}", at + 4095);
        get(&client, &args.bucket, i % args.count, range).await?;
    }
    if args.small > 0 {
        let rate = args.small as f64 / start.elapsed().as_secs_f64();
        println!("{{\"phase\":\"raw_get_4k\",\"per_s\":{rate:.1}}}");
    }
    parallel(&args, |i| delete(&client, &args.bucket, i)).await?;
    Ok(())
}

/// Lists and gets everything below a prefix.
async fn get_all(client: &Client, args: &Args, prefix: &str) -> Outcome<()> {
    let start = Instant::now();
    let listing = client.list_objects_v2().bucket(&args.bucket).prefix(prefix);
    let mut pages = listing.into_paginator().send();
    let mut keys = Vec::new();
    while let Some(page) = pages.next().await {
        keys.extend(page?.contents().iter().filter_map(|o| o.key().map(str::to_owned)));
    }
    let count = keys.len();
    let read = stream::iter(keys)
        .map(|key| {
            let request = client.get_object().bucket(&args.bucket).key(key);
            async move {
                let mut body = request.send().await?.body;
                let mut length = 0;
                while let Some(frame) = body.next().await {
                    length += frame?.len();
                }
                Outcome::Ok(length)
            }
        })
        .buffer_unordered(args.parallel)
        .try_fold(0, async |sum, n| Ok(sum + n))
        .await?;
    let secs = start.elapsed().as_secs_f64();
    let mib = read as f64 / f64::from(1 << 20);
    let (files, speed) = (count as f64 / secs, mib / secs);
    println!(
        "{{\"phase\":\"raw_get_all\",\"files\":{count},\"files_per_s\":{files:.1},\"mib_per_s\":{speed:.1}}}"
    );
    Ok(())
}

/// Runs `request` for every object, so many at once; the sum of what they return.
async fn parallel<F>(args: &Args, request: impl Fn(usize) -> F) -> Outcome<usize>
where
    F: Future<Output = Outcome<usize>>,
{
    stream::iter((0..args.count).map(request))
        .buffer_unordered(args.parallel)
        .try_fold(0, async |sum, n| Ok(sum + n))
        .await
}

fn key(i: usize) -> String {
    format!("rawget/{i:06}")
}

async fn put(client: &Client, bucket: &str, i: usize, contents: Bytes) -> Outcome<usize> {
    let length = contents.len();
    let request = client.put_object().bucket(bucket).key(key(i)).body(ByteStream::from(contents));
    request.customize().disable_payload_signing().send().await?;
    Ok(length)
}

async fn get(client: &Client, bucket: &str, i: usize, range: String) -> Outcome<usize> {
    let answer = client.get_object().bucket(bucket).key(key(i)).range(range).send().await?;
    let mut body = answer.body;
    let mut length = 0;
    while let Some(frame) = body.next().await {
        length += frame?.len();
    }
    Ok(length)
}

async fn delete(client: &Client, bucket: &str, i: usize) -> Outcome<usize> {
    client.delete_object().bucket(bucket).key(key(i)).send().await?;
    Ok(0)
}

fn report(phase: &str, args: &Args, took: Duration) {
    let rate = (args.count * args.mib) as f64 / took.as_secs_f64();
    println!(
        "{{\"phase\":\"{phase}\",\"mib_per_s\":{rate:.1},\"parallel\":{},\"mib\":{}}}",
        args.parallel, args.mib
    );
}

/// Bytes that no layer can compress.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
