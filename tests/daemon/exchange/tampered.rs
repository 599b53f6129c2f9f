//! Objects of the Encryption Client that somebody changed in the bucket, imported: each is named, none gets
//! a file, and the others arrive.

use std::collections::BTreeMap;
use std::fs;

use base64::{Engine, engine::general_purpose::STANDARD};
use sealfs::s3ec::{
    AesKey, Envelope, EnvelopePlace, Keys, Metadata, RsaPublic, SealFormat, SealRules, WrapWith,
    seal,
};

use super::{count_files, report, run};
use crate::mounts::Volume;
use crate::needs_fuse;
use crate::support::s3server::S3Server;

/// An object as the bucket has it.
#[derive(Clone)]
struct Stored {
    bytes: Vec<u8>,
    metadata: Metadata,
    instruction: Option<Vec<u8>>,
}

fn fixture(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/s3ec").join(name)
}

fn sealed(format: SealFormat, with: WrapWith, place: EnvelopePlace, plain: &[u8]) -> Stored {
    let keys = Keys {
        aes: Some(AesKey::read(&fixture("aes.key")).expect("a key")),
        rsa_public: Some(RsaPublic::read(&fixture("rsa-pub.pem")).expect("a key")),
        ..Keys::default()
    };
    let context = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    let rules = SealRules { format, with, context };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut sealing = runtime.block_on(seal(&keys, &rules)).expect("sealed");
    let envelope = sealing.envelope().clone();
    let mut bytes = Vec::new();
    sealing.update(plain, &mut bytes).expect("fits");
    sealing.finish(&mut bytes);
    let in_file = place == EnvelopePlace::InstructionFile;
    let instruction = in_file.then(|| envelope.instruction_file());
    Stored { bytes, metadata: envelope.metadata(place), instruction }
}

fn put(server: &S3Server, key: &str, stored: &Stored) {
    let metadata: Vec<(&str, &str)> =
        stored.metadata.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    server.put_labelled(key, stored.bytes.clone(), &metadata, None);
    if let Some(body) = &stored.instruction {
        let marker = Envelope::instruction_metadata();
        let marker: Vec<(&str, &str)> =
            marker.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        server.put_labelled(&format!("{key}.instruction"), body.clone(), &marker, None);
    }
}

/// Every change of one member of an envelope that must be noticed: away, that of another object, a bit of it.
fn changes(
    good: &BTreeMap<String, String>,
    other: &BTreeMap<String, String>,
) -> Vec<(String, Metadata)> {
    let mut all = Vec::new();
    for (name, value) in good {
        // Of AES and RSA keys nothing authenticates the description, and all tags have one length.
        if ["x-amz-matdesc", "x-amz-m", "x-amz-tag-len"].contains(&name.as_str()) {
            continue;
        }
        let mut changed = good.clone();
        changed.remove(name);
        all.push((format!("{name} away"), changed));
        let mut changed = good.clone();
        changed.insert(name.clone(), other[name].clone());
        if changed != *good {
            all.push((format!("{name} swapped"), changed));
        }
        if let Ok(mut raw) = STANDARD.decode(value).map_err(drop)
            && !raw.is_empty()
            && value.len() > 4
        {
            let at = raw.len() / 2;
            raw[at] ^= 4;
            let mut changed = good.clone();
            changed.insert(name.clone(), STANDARD.encode(raw));
            all.push((format!("{name} flipped"), changed));
        }
    }
    all
}

fn members(file: &[u8]) -> BTreeMap<String, String> {
    serde_json::from_slice(file).expect("a JSON object of texts")
}

/// What somebody who can write to the bucket, and has no key, can make of an object.
fn tampered(good: &Stored, other: &Stored, format: SealFormat) -> Vec<(String, Stored)> {
    let mut all: Vec<(String, Stored)> = Vec::new();
    let len = good.bytes.len();
    for at in [0, len / 2, len - 17, len - 16, len - 1] {
        let mut bad = good.clone();
        bad.bytes[at] ^= 1;
        all.push((format!("flipped at {at}"), bad));
    }
    for to in [0, 5, 16, len - 1] {
        let bad = Stored { bytes: good.bytes[..to].to_vec(), ..good.clone() };
        all.push((format!("cut to {to}"), bad));
    }
    let longer = [&good.bytes[..], b"x"].concat();
    all.push(("longer".into(), Stored { bytes: longer, ..good.clone() }));
    all.push(("bytes of another".into(), Stored { bytes: other.bytes.clone(), ..good.clone() }));
    for (what, metadata) in changes(&good.metadata, &other.metadata) {
        all.push((what, Stored { metadata, ..good.clone() }));
    }
    if let (Some(file), Some(others)) = (&good.instruction, &other.instruction) {
        for (what, changed) in changes(&members(file), &members(others)) {
            let body = serde_json::to_vec(&changed).expect("JSON");
            all.push((format!("file: {what}"), Stored { instruction: Some(body), ..good.clone() }));
        }
        let twice =
            [&file[..file.len() - 1], b",\"x-amz-3\":\"AA==\",\"x-amz-3\":\"AA==\"}"].concat();
        for (what, body) in [
            ("file of another", others.clone()),
            ("file cut", file[..file.len() / 2].to_vec()),
            ("file empty", Vec::new()),
            ("a name twice", twice),
        ] {
            all.push((what.into(), Stored { instruction: Some(body), ..good.clone() }));
        }
        if format == SealFormat::V3 {
            // Version 2 leaves nothing on the object that would miss its file.
            all.push(("no file".into(), Stored { instruction: None, ..good.clone() }));
        }
    } else {
        let metadata = other.metadata.clone();
        all.push(("metadata of another".into(), Stored { metadata, ..good.clone() }));
    }
    let key = |stored: &Stored| {
        let file = stored.instruction.as_deref().map(members).unwrap_or_default();
        stored.metadata.get("x-amz-3").or(file.get("x-amz-3")).cloned()
    };
    if let Some(key) = key(good) {
        for wrap in ["AES/GCM", "AESWrap", "RSA-OAEP-SHA1", "kms", "kms+context"] {
            let v2 = BTreeMap::from(
                [
                    ("x-amz-key-v2", key.as_str()),
                    ("x-amz-iv", "AQEBAQEBAQEBAQEB"),
                    ("x-amz-cek-alg", "AES/GCM/NoPadding"),
                    ("x-amz-tag-len", "128"),
                    ("x-amz-wrap-alg", wrap),
                    ("x-amz-matdesc", "{\"a\":\"b\"}"),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
            );
            let body = serde_json::to_vec(&v2).expect("JSON");
            let bytes = good.bytes.clone();
            let bad = Stored { bytes: bytes.clone(), metadata: v2, instruction: None };
            all.push((format!("as version 2, {wrap}"), bad));
            let bad = Stored { bytes, metadata: Metadata::new(), instruction: Some(body) };
            all.push((format!("as version 2 in a file, {wrap}"), bad));
        }
    }
    all
}

#[test]
fn what_was_changed_in_the_bucket_gets_no_file_and_the_others_arrive() {
    // Guards against plaintext that nobody wrote under the name of a file: each part of object, metadata and
    // instruction file flipped, cut, swapped; a commitment that is got rid of; another key and context. With
    // everything allowed that can be allowed.
    needs_fuse!();
    let (volume, server) = (Volume::mounted(), S3Server::start());
    let vault = volume.text("vault");
    let (aes, rsa) = (fixture("aes.key"), fixture("rsa.pem"));
    let (aes, rsa) = (aes.to_str().expect("text"), rsa.to_str().expect("text"));
    let keys = ["--aes-key-file", aes, "--rsa-private-key", rsa];
    let plain = b"sixteen bytes.. and some more".repeat(40);
    let mut bad = Vec::new();
    let mut round = 0;
    for format in [SealFormat::V2, SealFormat::V3] {
        for with in [WrapWith::Aes, WrapWith::Rsa] {
            for place in [EnvelopePlace::Metadata, EnvelopePlace::InstructionFile] {
                let good = sealed(format, with, place, &plain);
                let other = sealed(format, with, place, &plain);
                put(&server, &format!("all/good-{round}"), &good);
                for (n, (what, stored)) in tampered(&good, &other, format).iter().enumerate() {
                    let key = format!("all/bad-{round}-{n}");
                    put(&server, &key, stored);
                    bad.push((key, format!("{format:?} {with:?} {place:?}: {what}")));
                }
                round += 1;
            }
        }
    }
    let base = ["import", "s3://test/all", &vault, "in", "--json", "--legacy"];
    let any = [&base[..], &keys, &["--any-encryption-context"]].concat();
    let done = report(&run(&volume, &server, &any, 15));
    for (key, what) in &bad {
        let name = key.strip_prefix("all/").expect("below");
        assert!(!volume.at("in").join(name).exists(), "{what} got a file");
        let named = done["failures"].as_array().expect("a list").iter().any(|f| f["name"] == **key);
        assert!(named, "{what} is not named");
    }
    assert_eq!(done["failed"].as_u64(), Some(bad.len() as u64), "{done}");
    for n in 0..round {
        let read = fs::read(volume.at(&format!("in/good-{n}"))).expect("is there");
        assert!(read == plain, "good-{n}");
    }
    let only = ["--include", "good-*"];
    for (what, flags) in [
        ("another context", &["--encryption-context", "a=c"][..]),
        ("a pair too many", &["--encryption-context", "a=b", "--encryption-context", "c=d"]),
    ] {
        let args = ["import", "s3://test/all", &vault, "other", "--json"];
        let args = [&args[..], &keys, &only, flags].concat();
        let done = report(&run(&volume, &server, &args, 15));
        assert_eq!(done["failed"].as_u64(), Some(round), "{what}: {done}");
    }
    let exact = ["import", "s3://test/all", &vault, "exact", "--encryption-context", "a=b"];
    run(&volume, &server, &[&exact[..], &keys, &only].concat(), 0);
    let wrong = volume.text("other.key");
    fs::write(&wrong, [9u8; 32]).expect("writes");
    let args = ["import", "s3://test/all", &vault, "other", "--json", "--aes-key-file", &wrong];
    let done = report(&run(&volume, &server, &[&args[..], &only].concat(), 15));
    assert_eq!(done["failed"].as_u64(), Some(round), "another key, and none: {done}");
    assert_eq!(count_files(&volume.at("other")), 0);
}
