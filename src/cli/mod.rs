//! (skeleton)

/// Runs the command line; returns the process's exit status.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
