//! The `sealfs` command: hands its arguments to [`sealfs::cli`] and exits with its status.

#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    sealfs::cli::main()
}
