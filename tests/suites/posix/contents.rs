//! What is in files: written by one process and read by another, by every way there is, up to
//! the largest size, across a crash.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;

use super::{Process, sh};
use crate::mounts::wait_until;
use crate::suites::Stand;
use crate::{e2e, needs_fuse};

/// One page, and what `O_DIRECT` is aligned to.
const PAGE: usize = 4096;

#[test]
fn a_file_that_is_still_being_written_is_copied_whole() {
    // Guards against holes seen where Linux has pages that it has not written back: cp(1) copied
    // zeros, and tar -S nothing. The writer neither closes nor syncs.
    needs_fuse!();
    let stand = Stand::new();
    let (v, local) = (&stand.volume, stand.volume.path("store"));
    let mut writer = Process::new(&v.vault());
    assert_eq!(writer.ask("globals().update(f=os.open('f', os.O_RDWR | os.O_CREAT))"), "None");
    let copies = || {
        sh(&v.vault(), &format!("cp f {0}/cp; cp --sparse=always f {0}/sparse", local.display()))
            .expect("copies");
        sh(&v.vault(), &format!("tar -cSf - f | tar -xf - -C {}", local.display())).expect("tars");
        ["cp", "sparse", "f"].map(|name| fs::read(local.join(name)).expect("reads"))
    };
    assert_eq!(writer.ask("os.write(f, b'x' * 300000)"), "300000");
    assert_eq!(fs::metadata(v.at("f")).expect("stats").len(), 300_000);
    for copy in copies() {
        assert!(copy == [b'x'; 300_000], "{} bytes, or others", copy.len());
    }
    // More behind a hole, and in the middle of it; then through a mapping.
    assert_eq!(writer.ask("os.pwrite(f, b'y' * 9, 900000) + os.pwrite(f, b'z', 600000)"), "10");
    let mut expected = vec![0; 900_009];
    expected[..300_000].fill(b'x');
    expected[900_000..].fill(b'y');
    expected[600_000] = b'z';
    for copy in copies() {
        assert!(copy == expected, "{} bytes, or others", copy.len());
    }
    let map = "globals().update(m=mmap.mmap(f, 900009)) or m.__setitem__(450000, 1)";
    assert_eq!(writer.ask(map), "None");
    expected[450_000] = 1;
    for copy in copies() {
        assert!(copy == expected, "what was written through a mapping");
    }
    drop(writer);
    stand.close();
}

#[test]
fn records_appended_by_two_processes_are_all_there_and_whole() {
    // Guards against O_APPEND writes that land on each other.
    needs_fuse!();
    let stand = Stand::new();
    let dir = stand.volume.vault();
    let (mut a, mut b) = (Process::new(&dir), Process::new(&dir));
    for (process, text) in [(&mut a, "a"), (&mut b, "b")] {
        process.tell("globals().update(f=os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND))");
        process.tell(&format!(
            "sum(os.write(f, b'%s %06d %s\\n' % (b'{text}', n, b'{text}' * (n % 90))) for n in range(5000))"
        ));
    }
    for mut process in [a, b] {
        assert_eq!(process.answer(), "None");
        assert!(process.answer().parse::<u64>().is_ok());
    }
    let log = fs::read_to_string(dir.join("log")).expect("reads");
    let mut next = [0, 0];
    for line in log.lines() {
        let who = &line[..1];
        let n = &mut next[usize::from(who == "b")];
        assert_eq!(line, format!("{who} {n:06} {}", who.repeat(*n % 90)));
        *n += 1;
    }
    assert_eq!(next, [5000, 5000]);
    stand.close();
}

#[test]
fn direct_buffered_and_mapped_access_see_each_other() {
    // Guards against O_DIRECT that reads around dirty pages or writes under cached ones.
    needs_fuse!();
    let stand = Stand::new();
    let path = stand.volume.at("f");
    let open = |flags| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).custom_flags(flags);
        options.open(&path).expect("opens")
    };
    let (buffered, direct) = (open(0), open(libc::O_DIRECT));
    let mut process = Process::new(&stand.volume.vault());
    buffered.write_all_at(&e2e::noise(1, 64 * PAGE), 0).expect("writes");
    let map = "globals().update(m=mmap.mmap(os.open('f', os.O_RDWR), 64 * 4096)) or m[5 * 4096]";
    let expected = e2e::noise(1, 64 * PAGE);
    assert_eq!(process.ask(map), expected[5 * PAGE].to_string());
    // Memory aligned to pages, as O_DIRECT asks of disks.
    let layout = std::alloc::Layout::from_size_align(8 * PAGE, PAGE).expect("a power of two");
    // SAFETY: the layout is not empty; the memory is given back below and not used after.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) };
    assert!(!memory.is_null());
    // SAFETY: as long as said, initialised, and used through this slice alone.
    let aligned = unsafe { std::slice::from_raw_parts_mut(memory, 8 * PAGE) };
    direct.read_exact_at(aligned, 4 * PAGE as u64).expect("reads");
    assert!(*aligned == expected[4 * PAGE..12 * PAGE], "direct after buffered");
    aligned.fill(7);
    direct.write_all_at(aligned, 4 * PAGE as u64).expect("writes");
    let mut page = vec![0; PAGE];
    buffered.read_exact_at(&mut page, 5 * PAGE as u64).expect("reads");
    assert!(page.iter().all(|b| *b == 7), "buffered after direct");
    assert_eq!(process.ask("m[5 * 4096]"), "7", "mapped after direct");
    assert_eq!(process.ask("m.__setitem__(6 * 4096, 9)"), "None");
    direct.read_exact_at(aligned, 4 * PAGE as u64).expect("reads");
    assert_eq!(aligned[2 * PAGE], 9, "direct after mapped");
    // Beyond the end, and not a multiple of anything.
    direct.write_all_at(&aligned[..PAGE], 64 * PAGE as u64).expect("extends");
    buffered.set_len(64 * PAGE as u64 + 100).expect("cuts");
    assert_eq!(direct.read_at(aligned, 64 * PAGE as u64).expect("reads"), 100);
    // SAFETY: allocated above with this layout; `aligned` is not used any more.
    unsafe { std::alloc::dealloc(memory, layout) };
    drop((buffered, direct, process));
    stand.close();
}

#[test]
fn what_was_synced_by_any_means_survives_kill_9() {
    // Guards against msync, O_SYNC, O_DSYNC, RWF_DSYNC, fsync of a directory or fdatasync that
    // come back before the journal has it. What was not synced may be gone.
    needs_fuse!();
    let stand = Stand::new();
    let v = &stand.volume;
    let mut process = Process::new(&v.vault());
    let make =
        |name: &str, flags: &str| format!("os.open('{name}', os.O_RDWR | os.O_CREAT | {flags})");
    for script in [
        format!("os.write({}, b'by O_SYNC')", make("sync", "os.O_SYNC")),
        format!("os.write({}, b'by O_DSYNC')", make("dsync", "os.O_DSYNC")),
        format!("os.pwritev({}, [b'by RWF_DSYNC'], 0, os.RWF_DSYNC)", make("rwf", "0")),
        format!(
            "[(os.write(f, b'by fdatasync'), os.fdatasync(f)) for f in [{}]] and 1",
            make("data", "0")
        ),
        format!(
            "[(os.ftruncate(f, 9000), m.__setitem__(slice(5000, 5006), b'mapped'), m.flush()) \
             for f in [{}] if os.ftruncate(f, 9000) is None for m in [mmap.mmap(f, 9000)]] and 1",
            make("mapped", "0")
        ),
        "os.mkdir('d')".into(),
        "[os.rename('sync', 'd/renamed'), os.fsync(os.open('d', os.O_RDONLY))] and 1".into(),
    ] {
        let answer = process.ask(&script);
        assert!(!answer.contains("Error") && !answer.starts_with('E'), "{script}: {answer}");
    }
    v.crash();
    drop(process);
    v.mount(&[]);
    let read =
        |name: &str| fs::read_to_string(v.at(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(read("d/renamed"), "by O_SYNC");
    assert_eq!(read("dsync"), "by O_DSYNC");
    assert_eq!(read("rwf"), "by RWF_DSYNC");
    assert_eq!(read("data"), "by fdatasync");
    let mapped = fs::read(v.at("mapped")).expect("reads");
    assert_eq!((&mapped[5000..5006], mapped.len()), (&b"mapped"[..], 9000));
    stand.close();
}

#[test]
fn a_sparse_file_of_2_to_the_53_bytes_is_one_page() {
    // Guards against arithmetic that ends at 2^32, 2^44 or in a float, and against scans whose
    // cost goes with the size of a hole.
    needs_fuse!();
    let stand = Stand::new();
    let v = &stand.volume;
    let at = 1u64 << 53;
    let file = File::create_new(v.at("f")).expect("creates");
    file.write_all_at(b"end", at).expect("writes");
    file.sync_all().expect("syncs");
    let largest = File::create_new(v.at("largest")).expect("creates");
    largest.set_len(i64::MAX as u64).expect("2^63 - 1 bytes");
    largest.write_all_at(b"!", i64::MAX as u64 - 1).expect("the last byte there can be");
    let error = largest.write_at(b"!", i64::MAX as u64).expect_err("beyond");
    assert!(matches!(error.raw_os_error(), Some(libc::EFBIG | libc::EINVAL)), "{error}");
    drop((file, largest));
    for place in ["here", "elsewhere"] {
        let file = File::open(v.at("f")).expect("opens");
        let meta = file.metadata().expect("stats");
        assert_eq!(meta.len(), at + 3, "{place}");
        assert!(meta.blocks() <= 16, "{place}: {} blocks", meta.blocks());
        // SAFETY: the descriptor is open.
        let data = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_DATA) } as u64;
        assert!((at - PAGE as u64..=at).contains(&data), "{place}: data at {data}");
        let mut end = [0; 5];
        assert_eq!(file.read_at(&mut end, at - 2).expect("reads"), 5, "{place}");
        assert_eq!(&end, b"\0\0end", "{place}");
        let mut last = [0];
        let largest = File::open(v.at("largest")).expect("opens");
        largest.read_exact_at(&mut last, i64::MAX as u64 - 1).expect("reads");
        assert_eq!(&last, b"!", "{place}");
        drop((file, largest));
        if place == "here" {
            stand.move_elsewhere();
        }
    }
    stand.close();
}

#[test]
fn blocks_in_use_are_those_that_hold_data() {
    // Guards against a count that drifts: a hole punched where there was one took blocks away, and
    // each time a block of a sparse file was written again it was counted again.
    needs_fuse!();
    let stand = Stand::new();
    let (v, dir) = (&stand.volume, stand.volume.vault());
    let blocks = |name: &str| sh(&dir, &format!("stat -c %b {name}")).expect("stat");
    let commit = || v.ok(&["sync", &v.text("vault")]);
    let steps = [
        ("head -c 65536 /dev/urandom > f; truncate -s 1M f", "128"),
        ("fallocate -p -o 900000 -l 100000 f", "128"),
        ("printf x | dd of=f bs=1 seek=9000 conv=notrunc status=none", "128"),
        ("printf x | dd of=f bs=1 seek=600000 conv=notrunc status=none", "136"),
        ("printf y | dd of=f bs=1 seek=600001 conv=notrunc status=none", "136"),
        ("fallocate -l 2M f", "136"), // nothing is reserved
        ("fallocate -p -o 4096 -l 4096 f", "128"),
        ("fallocate -p -o 5000 -l 100 f", "128"), // in that hole
        ("fallocate -z -o 8192 -l 6000 f", "120"), // a block and a part
        ("head -c 9000 /dev/urandom | dd of=f bs=9000 seek=1 conv=notrunc status=none", "128"),
        ("truncate -s 12289 f; truncate -s 1M f", "24"),
        ("fallocate -p -o 0 -l 12288 f", "8"),
        ("fallocate -p -o 12288 -l 4096 f", "1"), // none; FUSE shows one
        ("head -c 5000 /dev/urandom | dd of=f bs=5000 seek=100 conv=notrunc status=none", "16"),
        (": > f", "1"),
    ];
    // Pending, committed, and on a machine that knows nothing of it.
    for place in 0..3 {
        for (n, (step, expected)) in steps.into_iter().enumerate() {
            sh(&dir, step).expect(step);
            assert_eq!(blocks("f"), expected, "{step}, {place}");
            match place {
                0 => {}
                2 if n % 3 == 0 => stand.move_elsewhere(),
                _ => drop(commit()),
            }
            assert_eq!(blocks("f"), expected, "{step}, {place}, afterwards");
        }
    }
    // A block that is written again and again, while commits come in between.
    sh(&dir, "truncate -s 8M g").expect("truncate");
    for n in 0..12 {
        let write = "printf z | dd of=g bs=4096 seek=77 conv=notrunc,fsync status=none";
        sh(&dir, write).expect("dd");
        assert_eq!(blocks("g"), "8", "time {n}");
        if n % 3 == 0 {
            commit();
        }
    }
    stand.close();
}

#[test]
fn files_without_a_name_are_reclaimed_after_a_crash() {
    // Guards against unlinked files that are open when the daemon is killed and then take room
    // for ever, in the volume and as segments in the bucket.
    needs_fuse!();
    let stand = Stand::new();
    let v = &stand.volume;
    fs::write(v.at("stays"), "here").expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    let inodes = || sh(&v.vault(), "stat -fc '%c %d' .").expect("stat -f");
    let before = inodes();
    let open: Vec<File> = (0..20)
        .map(|n| {
            let mut file = File::create_new(v.at(&format!("f{n}"))).expect("creates");
            file.write_all(&e2e::noise(n, 300_000)).expect("writes");
            file.sync_all().expect("syncs");
            fs::remove_file(v.at(&format!("f{n}"))).expect("unlinks");
            file
        })
        .collect();
    v.ok(&["sync", &v.text("vault")]);
    assert_ne!(inodes(), before, "they count while they are open");
    open[0].write_all_at(b"more", 1).expect("writes");
    v.crash();
    drop(open);
    v.mount(&[]);
    wait_until("they are gone", || inodes() == before);
    assert_eq!(fs::read(v.at("stays")).expect("reads"), b"here");
    v.ok(&["sync", &v.text("vault")]);
    stand.move_elsewhere();
    assert_eq!(inodes(), before, "on another machine");
    stand.close();
}

#[test]
fn the_time_of_birth_is_told_and_never_changes() {
    // Guards against a birth time that is missing, or that follows the other three.
    needs_fuse!();
    let stand = Stand::new();
    let v = &stand.volume;
    fs::write(v.at("f"), "x").expect("writes");
    let birth = || {
        let stat = Command::new("stat").args(["-c", "%w"]).arg(v.at("f")).output();
        String::from_utf8(stat.expect("stat runs").stdout).expect("ASCII")
    };
    let born = birth();
    assert!(born.starts_with("20"), "{born:?}");
    sh(&v.vault(), "sleep 0.05; echo y >> f; chmod 600 f; touch -d 1999-01-01 f; mv f g; mv g f")
        .expect("changes");
    assert_eq!(birth(), born);
    stand.move_elsewhere();
    assert_eq!(birth(), born, "on another machine");
    stand.close();
}
