//! A separate process for a test that changes its process: the test binary, told to run only that.

use std::process::Command;

const ALONE: &str = "SEALFS_TEST_ALONE";

/// True in a process that runs only the test `name` (with its modules). Elsewhere runs that process to
/// its end, which has to be a good one, and returns false.
pub fn is_alone(name: &str) -> bool {
    if std::env::var_os(ALONE).is_some_and(|of| of == name) {
        return true;
    }
    let this = std::env::current_exe().expect("this program has a path");
    let mut test = Command::new(this);
    test.args(["--exact", name, "--nocapture"]).env(ALONE, name);
    let output = test.output().expect("the test binary runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}
