//! The `sealfs` command: hands its arguments to [`sealfs::cli`] and exits with its status.

fn main() -> std::process::ExitCode {
    sealfs::cli::main()
}
