//! Server-side encryption against Ceph's radosgw: SSE-C, which it enforces; SSE-KMS, to which it adds a context of
//! its own; SSE-S3, which it accepts and does not apply; DSSE-KMS, which it refuses.

use crate::e2e::rgw::{self, Rgw};
use crate::mounts::Volume;
use crate::needs_fuse;
use crate::sse::{Step, customer, exercise, from_mode_to_mode, kms, reencrypt_all, store_on};
use sealfs::store::s3::SseMode;
use sealfs::store::{ErrorClass, class};

/// Two keys of its KMS for tests (`tests/support/ceph-rgw`).
const KEYS: [&str; 2] = ["testkey-1", "testkey-2"];

#[test]
fn radosgw_encrypts_as_asked_or_is_found_out() {
    // Guards against an S3 dialect that only our own server speaks, and against believing a
    // server that accepts a mode and does not apply it. One server for all, it takes 15 s.
    needs_fuse!();
    if let Some(why) = rgw::why_not() {
        eprintln!("SKIPPED: radosgw: {why}");
        return;
    }
    let rgw = Rgw::start();
    let remote = rgw.remote();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    runtime.block_on(async {
        let modes = [
            customer(1),
            customer(2),
            kms(Some(KEYS[0]), &[], None),
            kms(Some(KEYS[1]), &[("project", "a")], None),
        ];
        for (n, mode) in modes.iter().enumerate() {
            let prefix = format!("mode-{n}");
            let store = store_on(&remote, &prefix, mode.clone()).await;
            exercise(&store).await.unwrap_or_else(|e| panic!("{mode}: {e}"));
            assert_eq!(store.sse_applied().expect("said").mode_name(), mode.name());
        }
        let wrong = store_on(&remote, "mode-0", customer(2)).await;
        let none = store_on(&remote, "mode-0", SseMode::Default).await;
        for store in [wrong, none] {
            use object_store::ObjectStoreExt;
            store.get(&"put".into()).await.expect_err("SSE-C is enforced");
            store.head(&"put".into()).await.expect_err("SSE-C is enforced");
        }
        let sse_s3 = store_on(&remote, "s3", SseMode::S3).await;
        let refused = exercise(&sse_s3).await.expect_err("accepted, and not applied");
        assert_eq!(class(&refused), ErrorClass::SseMismatch, "{refused}");
        let store = store_on(&remote, "mode-2", modes[3].clone()).await;
        reencrypt_all(&store, true).await.unwrap_or_else(|e| panic!("from key to key: {e}"));
    });

    let v = Volume::bare_on(Some(remote));
    let (url, pass) = (v.url(), v.text("passphrase"));
    let init = ["init", &url, "--passphrase-file", &pass];
    let stderr = v.fails(&[&init[..], &["--sse=AES256"]].concat(), 5);
    assert!(stderr.contains("applied no server-side encryption"), "{stderr}");
    let stderr = v.fails(&[&init[..], &["--sse=aws:kms:dsse"]].concat(), 5);
    assert!(stderr.contains("does not support DSSE-KMS"), "{stderr}");
    let kms = |key| Step::new("aws:kms", &["--sse-kms-key-id", key]);
    let steps = [kms(KEYS[0]), kms(KEYS[1]), Step::customer(&v, 1), Step::customer(&v, 2)];
    from_mode_to_mode(&v, &steps);
}
