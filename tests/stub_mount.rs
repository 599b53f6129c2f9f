//! STUB: mounts the in-memory stub for the seconds in SEALFS_STUB_SECS, or until unmounted.
#[test]
fn stub_mounts() {
    let Ok(dir) = std::env::var("SEALFS_STUB_DIR") else { return };
    struct L;
    impl log::Log for L {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool { true }
        fn log(&self, r: &log::Record<'_>) { if r.target().starts_with("sealfs") || r.level() < log::Level::Debug { eprintln!("{} {}", r.level(), r.args()) } }
        fn flush(&self) {}
    }
    log::set_logger(&L).unwrap();
    log::set_max_level(log::LevelFilter::Debug);
    let rt = tokio::runtime::Runtime::new().unwrap();
    let fs = sealfs::fs::Fs::stub();
    let s = sealfs::fuse::serve(fs.clone(), dir.as_ref(), &Default::default(), rt.handle()).unwrap();
    eprintln!("mounted");
    rt.block_on(s.ended());
    eprintln!("ended; orphans {}", fs.orphans());
}
