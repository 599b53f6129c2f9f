//! Imports and exports under a key of KMS on moto: what an export wrote Amazon's client opens, and the reverse.

use super::*;
use crate::mounts::Volume;
use crate::needs_fuse;

/// A mounted volume beside moto.
struct Beside {
    volume: Volume,
    place: Place,
}

impl Beside {
    fn sealfs(&self, words: &[&str], status: i32) -> Value {
        let done = self
            .volume
            .command(words)
            .env("AWS_ACCESS_KEY_ID", "moto")
            .env("AWS_SECRET_ACCESS_KEY", "moto")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ENDPOINT_URL", &self.place.moto.endpoint)
            .output()
            .expect("sealfs runs");
        let (out, err) =
            (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert_eq!(done.status.code(), Some(status), "{words:?}: {out}\n{err}");
        serde_json::from_slice(&done.stdout).unwrap_or_else(|e| panic!("{words:?}: {e}: {out}"))
    }

    fn kms(&self) -> [&str; 4] {
        ["--kms-key", &self.place.kms_key, "--kms-key-endpoint-url", &self.place.moto.endpoint]
    }
}

#[test]
fn what_an_export_wrote_under_kms_amazons_client_opens_and_an_import_takes_what_it_wrote() {
    // Guards against objects of the exchange that only sealfs itself reads: both versions, the envelope in
    // either place, contexts with quotes and beyond ASCII, empty, small and in parts.
    needs_fuse!();
    let Some(place) = Place::start() else { return };
    let Some(mut python) = Python::start(&place) else { return };
    let beside = Beside { volume: Volume::mounted(), place };
    let (volume, place) = (&beside.volume, &beside.place);
    fs::create_dir(volume.at("d")).expect("makes");
    let files = [("none", 0), ("one", 1), ("small", 3000), ("large", 9 << 20)];
    for (name, len) in files {
        fs::write(volume.at("d").join(name), contents(len)).expect("writes");
    }
    let (vault, from) = (volume.text("vault"), format!("{}:d", volume.text("vault")));
    let context = map(&[("a \"quoted\" name", "back\\slash 'and' ="), ("Größe", "世界 🔐")]);
    let given = context_flags(&context);
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    let out = place.dir.path().join("out");
    for (number, version) in [(2, "v2"), (3, "v3")] {
        for in_file in [&[][..], &["--instruction-file"]] {
            let prefix = format!("{version}-{}", in_file.len());
            let target = format!("s3://{BUCKET}/{prefix}");
            let words = ["export", &from, &target, "--s3ec", version, "--json"];
            let words = [&words[..], in_file, &beside.kms(), &given].concat();
            assert_eq!(beside.sealfs(&words, 0)["files"], json!(4), "{prefix}");
            assert_eq!(beside.sealfs(&words, 0)["unchanged"], json!(4), "{prefix}");
            for (name, len) in files {
                let key = format!("{prefix}/{name}");
                python.run(json!({"do": "get", "format": number, "key": key, "file": out,
                                  "context": context}));
                assert!(fs::read(&out).expect("written") == contents(len), "{key}");
            }
            let back = ["import", &target, &vault, &prefix, "--json"];
            let back = [&back[..], &beside.kms(), &given].concat();
            assert_eq!(beside.sealfs(&back, 0)["files"], json!(4), "{prefix}");
            for (name, len) in files {
                let read = fs::read(volume.at(&prefix).join(name)).expect("is there");
                assert!(read == contents(len), "{prefix}/{name}");
            }
        }
        let source = place.file("source", &contents(70_000));
        let key = format!("theirs-{version}/a");
        python.run(json!({"do": "put", "format": number, "key": key, "file": source,
                          "context": context}));
        let theirs = format!("s3://{BUCKET}/theirs-{version}");
        let back = ["import", &theirs, &vault, "theirs", "--json"];
        let kms = beside.kms();
        // No context, another, and one bit of it.
        beside.sealfs(&[&back[..], &kms].concat(), 15);
        beside.sealfs(&[&back[..], &kms, &["--encryption-context", "a=b"]].concat(), 15);
        let (bytes, metadata) = place.get(&key);
        let mut turned = bytes.clone();
        turned[100] ^= 1;
        place.put(&key, &turned, &metadata);
        let with = [&back[..], &kms, &given].concat();
        assert_eq!(beside.sealfs(&with, 15)["failures"][0]["name"], json!(key));
        assert!(!volume.at("theirs/a").exists());
        place.put(&key, &bytes, &metadata);
        assert_eq!(beside.sealfs(&with, 0)["files"], json!(1));
        assert!(fs::read(volume.at("theirs/a")).expect("is there") == contents(70_000));
        fs::remove_file(volume.at("theirs/a")).expect("removes");
    }
}
