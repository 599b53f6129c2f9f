//! Building programs: C with `make -j`, Rust with cargo.

use std::fs;
use std::path::{Path, PathBuf};

use super::{command, script};
use crate::suites::{Stand, outcome};
use crate::{e2e, needs_fuse};

/// The source package `name` of this Debian, fetched once into the target directory; its `.dsc`.
/// `None`, and said aloud, where there is no Debian or no network.
fn debian_source(name: &str) -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debian");
    fs::create_dir_all(&dir).expect("the target directory can be written");
    let dsc = || {
        let files = fs::read_dir(&dir).expect("lists").filter_map(Result::ok).map(|e| e.path());
        let ours = |p: &PathBuf| {
            let file = p.file_name().unwrap_or_default().to_string_lossy().into_owned();
            file.starts_with(&format!("{name}_")) && file.ends_with(".dsc")
        };
        files.into_iter().find(ours)
    };
    if dsc().is_none() {
        // With its own lists: the machine's stay as they are.
        let fetch = format!(
            "command -v apt-get dpkg-source make cc >/dev/null; . /etc/os-release
             mkdir -p lists/partial
             echo \"deb-src http://deb.debian.org/debian $VERSION_CODENAME main\" > sources.list
             set -- -qq -o Dir::Etc::SourceList=$PWD/sources.list -o Dir::Etc::SourceParts=/dev/null \
                 -o Dir::State::Lists=$PWD/lists -o APT::Sandbox::User=$(id -un)
             apt-get \"$@\" update
             apt-get \"$@\" --download-only source {name}"
        );
        let (said, done) = outcome(&mut command(&dir, &fetch));
        if !done {
            eprintln!("SKIPPED: cannot fetch the source package {name}: {said}");
            return None;
        }
    }
    dsc()
}

#[test]
fn a_c_project_builds_with_make_and_passes_its_own_tests() {
    // Guards against what many compilers at once do: time stamps to the nanosecond that make
    // compares, files renamed into place, programs run as soon as they are written.
    needs_fuse!();
    let (package, build) = match e2e::is_full() {
        false => ("zlib", "./configure && make -j4 && make test && test -x minigzip"),
        true => ("busybox", "make -s defconfig && make -s -j4 && ./busybox echo works"),
    };
    let Some(dsc) = debian_source(package) else { return };
    let stand = Stand::new();
    let vault = stand.volume.vault();
    script(&vault, &format!("dpkg-source --no-check -x {} src", dsc.display()));
    script(&vault.join("src"), build);
    let again = match package {
        "zlib" => "make -q",
        _ => "test -z \"$(make -s 2>&1 | grep -E '^ *(CC|LD) ')\"",
    };
    script(&vault.join("src"), again);
    let sum = "find . -type f -exec sha256sum {} + | sort | sha256sum";
    let before = script(&vault.join("src"), sum);
    stand.move_elsewhere();
    assert_eq!(script(&vault.join("src"), sum), before, "on another machine");
    script(&vault.join("src"), again);
    stand.close();
}

#[test]
fn a_crate_builds_and_its_second_build_has_nothing_to_do() {
    // Guards against what cargo needs of a file system: locks, hard links, time stamps that tell
    // fresh from stale, and running what it has just linked.
    needs_fuse!();
    let stand = Stand::new();
    let vault = stand.volume.vault();
    script(
        &vault,
        "mkdir -p one/src two/src
         printf '[workspace]\\nmembers=[\"one\",\"two\"]\\nresolver=\"2\"\\n' > Cargo.toml
         for c in one two; do
             printf '[package]\\nname=\"%s\"\\nversion=\"0.1.0\"\\nedition=\"2021\"\\n' $c > $c/Cargo.toml
         done
         printf '[dependencies]\\none={path=\"../one\"}\\n' >> two/Cargo.toml
         printf 'pub fn n() -> u32 { 41 }\\n#[test]\\nfn t() { assert_eq!(n(), 41) }\\n' > one/src/lib.rs
         printf 'fn main() { println!(\"{}\", one::n() + 1) }\\n' > two/src/main.rs",
    );
    let cargo = |args: &str| {
        let env = "unset CARGO_TARGET_DIR RUSTFLAGS CARGO_BUILD_TARGET CARGO_INCREMENTAL";
        script(&vault, &format!("{env}; cargo --offline {args}"))
    };
    cargo("test --workspace");
    assert!(cargo("run -q -p two").contains("42"));
    let again = cargo("build --workspace -v");
    assert!(!again.contains("Compiling") && !again.contains("Dirty"), "{again}");
    script(&vault, "sed -i s/41/50/g one/src/lib.rs");
    assert!(cargo("run -q -p two").contains("51"), "a change is seen");
    stand.move_elsewhere();
    let elsewhere = cargo("build --workspace -v");
    assert!(!elsewhere.contains("Compiling"), "times are the same there: {elsewhere}");
    stand.close();
}
