//! What the test binaries share.

// Each binary uses another part of it.
#![allow(dead_code, unused_imports)]

pub mod alone;
pub mod disk_sim;
pub mod e2e;
pub mod mounts;
pub mod relay;
pub mod s3server;
pub mod sse;
pub mod suites;
pub mod volume;

use aws_credential_types::Credentials;
use s3server::{ACCESS_KEY, BUCKET, REGION, S3Server, SECRET_KEY};
use sealfs::store::s3::{S3Options, S3Store, SseMode, StaticCredentials, connect};

/// How to reach an in-process server, at the root of its bucket.
pub fn s3_options(endpoint: &str) -> S3Options {
    S3Options {
        endpoint_url: Some(endpoint.to_owned()),
        region: Some(REGION.into()),
        credentials: Some(StaticCredentials {
            access_key_id: ACCESS_KEY.into(),
            secret_access_key: SECRET_KEY.to_owned().into(),
        }),
        ..S3Options::new(BUCKET, "")
    }
}

/// A store on an in-process server with this encryption.
pub async fn s3_store(server: &S3Server, sse: SseMode) -> S3Store {
    let options = S3Options { sse, ..s3_options(&server.endpoint()) };
    connect(options).await.expect("the options of a test are good")
}

/// A plain client of a server at `endpoint`.
pub fn client(endpoint: &str, access_key: &str, secret_key: &str) -> aws_sdk_s3::Client {
    let credentials = Credentials::new(access_key, secret_key, None, None, "test");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
        .region(aws_sdk_s3::config::Region::new("us-east-1"))
        .credentials_provider(credentials)
        .endpoint_url(endpoint)
        .force_path_style(true)
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

/// A port on which a server can be started in a while.
pub fn free_port() -> u16 {
    let bound = s3server::bind_free().and_then(|listener| listener.local_addr());
    bound.expect("a free port").port()
}
