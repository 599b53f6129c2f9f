//! Random scripts of operations on a volume and on a model of one, compared step by step, across
//! commits, crashes and mounts elsewhere. `PROPTEST_CASES=5000 cargo test --test volume fs_model` looks
//! longer. Scripts that once failed stay below, shrunk.

use std::sync::LazyLock;

use crate::model::World;
use crate::model::ops::{At, Op, op};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};
use tokio::runtime::Runtime;

/// Scripts in an ordinary run.
const CASES: u32 = 120;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
});

/// Runs a script; `slow`: on a store that takes its time, `lost`: the machine is lost at its end,
/// `clean`: segments are cleaned all the while.
fn run(script: &[Op], slow: bool, lost: bool, clean: bool) -> Result<(), String> {
    RUNTIME.block_on(async {
        let mut world = World::new(slow, clean).await;
        for (n, op) in script.iter().enumerate() {
            world.apply(op).await.map_err(|e| format!("step {n}, {op:?}: {e}"))?;
        }
        let end = if lost { world.lose().await } else { world.finish().await };
        end.map_err(|e| format!("at the end: {e}"))
    })
}

#[test]
fn random_scripts_do_what_the_model_does() {
    // Guards against anything that only a combination shows: rows, extents, lookups and
    // groups of pending changes, each in the journal, on its way, or in the bucket.
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    let mut runner = TestRunner::new(Config {
        cases: cases.unwrap_or(CASES),
        failure_persistence: None,
        max_shrink_iters: 1500,
        max_shrink_time: 120_000,
        ..Config::default()
    });
    let flag = any::<bool>;
    let scripts = (prop::collection::vec(op(), 1..40), flag(), flag(), flag());
    let outcome = runner.run(&scripts, |(script, slow, lost, clean)| {
        run(&script, slow, lost, clean).map_err(TestCaseError::fail)
    });
    match outcome {
        Err(TestError::Fail(why, script)) => panic!("{why}; the script, shrunk: {script:?}"),
        outcome => outcome.expect("scripts run"),
    }
}

#[test]
fn statistics_count_what_a_newer_group_takes_away_from_an_older_one() {
    // Guards against sums that stop at zero between two pending groups: the newer one
    // takes away what only the older one has added. Was: bytes in statfs 4096, not 0.
    let script = [Op::Create(At(0, 0)), Op::Write(0, 0, 1), Op::Freeze, Op::Resize(0, 0)];
    assert_eq!(run(&script, false, false, false), Ok(()));
}
