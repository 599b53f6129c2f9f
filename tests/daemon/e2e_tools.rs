//! Ordinary tools work on a mount, and a machine that has nothing but the
//! bucket and the passphrase sees every byte and attribute that they left.

use crate::e2e;
use crate::e2e::manifest::Manifest;
use crate::e2e::rgw::{self, Rgw};
use crate::e2e::tools;
use crate::mounts::{Remote, Volume};
use crate::needs_fuse;
use crate::support::s3server::S3Server;

fn ordinary_tools_leave_everything_in_the_bucket(remote: Option<Remote>, large_mib: u64) {
    let work = tempfile::tempdir().expect("a temporary directory");
    let v = Volume::create_on(remote);
    v.mount(&[]);
    let tree = tools::make_everything(&v, work.path(), large_mib);
    tools::check_everything(&v.vault(), &tree);
    let before = Manifest::of(&v.vault());
    assert!(v.status("warnings").as_array().is_some_and(|w| w.is_empty()), "{}", v.log());
    v.umount();
    v.forget_local_state();
    v.mount(&[]);
    before.assert_same(&Manifest::of(&v.vault()), "on a machine that has only the bucket");
    tools::check_everything(&v.vault(), &tree);
    eprintln!("{}: {}", v.url(), v.status("requests"));
    assert!(!v.log().contains("ERROR"), "{}", v.log());
    v.umount();
}

#[test]
fn ordinary_tools_leave_everything_in_a_directory() {
    // Guards against anything that lives in local state only, and against attributes that a
    // real tool sets and no unit test thought of. Everything local is thrown away between two
    // mounts, and the whole tree is compared.
    needs_fuse!();
    ordinary_tools_leave_everything_in_the_bucket(None, 1024);
}

#[test]
fn ordinary_tools_leave_everything_on_an_s3_server() {
    // The same through the S3 adapter: multipart uploads, listings, conditional writes.
    needs_fuse!();
    let server = S3Server::start();
    ordinary_tools_leave_everything_in_the_bucket(e2e::remote(&server), 200);
    assert_eq!(server.open_uploads(), 0, "multipart uploads left behind");
}

#[test]
fn ordinary_tools_leave_everything_on_radosgw() {
    // The same on a server that others wrote: guards against an S3 dialect that only our own
    // server speaks.
    needs_fuse!();
    if let Some(why) = rgw::why_not() {
        eprintln!("SKIPPED: radosgw: {why}");
        return;
    }
    let rgw = Rgw::start();
    ordinary_tools_leave_everything_in_the_bucket(Some(rgw.remote()), 200);
}
