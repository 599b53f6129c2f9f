//! The command line: one file per command, and the mount process that `mount` becomes.
//!
//! Parses, asks for passphrases, prints, and turns every error into a sentence and an exit
//! status. Does nothing to files or the store itself: that is `stack`.

#[macro_use]
mod out;

mod args;
mod ask;
mod bench;
mod busy;
mod client;
mod conf;
mod configure;
mod daemon;
mod demo;
mod dirs;
mod doctor;
mod du;
mod exchange;
mod exchange_keys;
mod exit;
mod export;
mod fsck;
mod fstab;
mod import;
mod info;
mod init;
mod key;
mod key_add;
mod key_kit;
mod key_rekey;
mod key_show;
mod kit;
mod leaving;
mod live;
mod logging;
mod metrics;
mod mount;
mod notify;
mod object;
mod pages;
mod pin;
mod pin_serve;
mod place;
mod progress;
mod protocol;
mod quota;
mod recover;
mod reload;
mod role;
mod s3ec;
mod s3ec_keys;
mod scrape;
mod secret;
mod secret_command;
mod serve;
mod server;
mod set;
mod signals;
mod snapshot;
mod snapshot_at;
mod snapshot_diff;
mod snapshot_restore;
mod snapshot_serve;
mod socket;
mod sse;
mod sse_flags;
mod sse_report;
mod stats;
mod status;
mod stop;
mod storage_class;
mod storm;
mod strength;
mod sync;
mod umount;
mod user;
mod volume_side;
mod warm;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub use exit::{Exit, Failure, TABLE};

/// Mount an S3 bucket as a directory; everything in it is sealed on this machine first
#[derive(Parser, Debug)]
#[command(name = "sealfs", version, after_help = help(), arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a volume in an empty bucket or prefix
    Init(Box<init::InitArgs>),
    /// Mount a volume on a directory
    Mount(Box<mount::MountArgs>),
    /// Upload what is pending and unmount
    Umount(umount::UmountArgs),
    /// Wait until everything is in the bucket
    Sync(sync::SyncArgs),
    /// Make a mount that follows the writer of its volume
    Promote(role::PromoteArgs),
    /// Upload what is pending and let another machine write the volume; this mount follows
    Demote(role::DemoteArgs),
    /// Show how a mount is
    Status(status::StatusArgs),
    /// Show what a mount is doing, a line a second
    Stats(stats::StatsArgs),
    /// Show what a mount is doing, as a page
    Top(stats::TopArgs),
    /// Show where each byte of a file is
    Info(info::InfoArgs),
    /// Show what a tree takes: by directory, age and snapshot
    Du(Box<du::DuArgs>),
    /// Bring files into the cache of this machine
    Warm(warm::WarmArgs),
    /// Measure a mount on this machine and this line, in a minute
    Bench(bench::BenchArgs),
    /// Change what a live mount was started with
    Set(set::SetArgs),
    /// Limit how much the files of a volume may take, or show it
    Quota(Box<quota::QuotaArgs>),
    /// Choose the storage class of a volume's segments, or show it
    StorageClass(Box<storage_class::StorageClassArgs>),
    /// Bring files of a directory, or objects of a bucket, into a volume
    Import(Box<import::ImportArgs>),
    /// Put files of a volume into a bucket, as objects that other tools read
    Export(Box<export::ExportArgs>),
    /// Check and show the files that describe mounts
    Config(conf::ConfigArgs),
    /// Check whether a bucket and this machine are fit for a volume
    Doctor(Box<doctor::DoctorArgs>),
    /// Make, look at and restore earlier states of a volume
    Snapshot(Box<snapshot::SnapshotArgs>),
    /// Check a volume, and repair it
    Fsck(Box<fsck::FsckArgs>),
    /// Export what only a local journal holds, as files
    Recover(Box<recover::RecoverArgs>),
    /// Show and change the ways into a volume
    Key(Box<key::KeyArgs>),
    /// Read one object of a volume
    Object(Box<object::ObjectArgs>),
    /// Read objects of the Amazon S3 Encryption Client, and wrap their keys again
    S3ec(Box<s3ec::S3ecArgs>),
    /// Audit or change the server-side encryption of a volume
    Sse(sse::SseArgs),
    /// Make and mount a volume in a local directory, to look around
    Demo(demo::DemoArgs),
    /// Show which sealfs this is
    Version(pages::VersionArgs),
    /// Write man pages and completions, for packages
    #[command(hide = true)]
    PackageFiles(pages::PackageFilesArgs),
}

fn help() -> String {
    format!(
        "\
Examples:
  sealfs init s3://my-bucket/data --passphrase-file ~/.sealfs.pass
  sealfs mount s3://my-bucket/data ~/vault --passphrase-file ~/.sealfs.pass
  sealfs status ~/vault
  sealfs umount ~/vault

{TABLE}"
    )
}

/// [`forbid_dumps`], and makes what this process makes its owner's alone, the objects of a
/// `file://` store among it.
fn keep_private() {
    // SAFETY: umask cannot fail.
    unsafe { libc::umask(0o077) };
    forbid_dumps();
}

/// Keeps keys out of core dumps, or says on stderr that it cannot.
fn forbid_dumps() {
    if let Err(e) = crate::seal::forbid_dumps() {
        eprintln!("sealfs: warning: core dumps of this process would hold keys: {e}");
    }
}

/// Threads for a command that talks to the store.
fn runtime() -> exit::Outcome<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::General, format!("cannot start threads: {e}")))
}

/// Runs the command line; returns the process's exit status. Call it first in `main`: `mount`
/// forks, which needs a process of one thread.
pub fn main() -> ExitCode {
    user::ensure_home();
    let args = fstab::expand(std::env::args_os().collect(), &Cli::command());
    let args = match conf::expand(args, &Cli::command()) {
        Ok(args) => args,
        Err(failure) => return out::end(Err(failure)),
    };
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() => e.exit(),
        Err(help) => {
            out::keep(help.print());
            return out::end(Ok(()));
        }
    };
    let outcome = match cli.command {
        Command::Init(args) => init::run(*args),
        Command::Mount(args) => mount::run(*args),
        Command::Umount(args) => umount::run(args),
        Command::Sync(args) => sync::run(args),
        Command::Promote(args) => role::promote(args),
        Command::Demote(args) => role::demote(args),
        Command::Status(args) => status::run(args),
        Command::Stats(args) => stats::run(args),
        Command::Top(args) => stats::top(args),
        Command::Info(args) => info::run(args),
        Command::Du(args) => du::run(*args),
        Command::Warm(args) => warm::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Set(args) => set::run(args),
        Command::Quota(args) => quota::run(*args),
        Command::StorageClass(args) => storage_class::run(*args),
        Command::Import(args) => import::run(*args),
        Command::Export(args) => export::run(*args),
        Command::Config(args) => conf::run(args, &Cli::command()),
        Command::Doctor(args) => doctor::run(*args),
        Command::Snapshot(args) => snapshot::run(*args),
        Command::Fsck(args) => fsck::run(*args),
        Command::Recover(args) => recover::run(*args),
        Command::Key(args) => key::run(*args),
        Command::Object(args) => object::run(&args),
        Command::S3ec(args) => s3ec::run(&args),
        Command::Sse(args) => sse::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Version(args) => pages::version(args),
        Command::PackageFiles(args) => pages::package_files(args, Cli::command()),
    };
    out::end(outcome)
}

#[cfg(test)]
mod named_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// Where a flag stands in every command that has it.
    fn heading(command: &str, flag: &str) -> Option<&'static str> {
        Some(match flag {
            "kms-key"
            | "aes-key-file"
            | "encryption-context"
            | "kms-key-region"
            | "kms-key-endpoint-url"
            | "kms-key-profile"
            | "rsa-private-key"
            | "any-encryption-context"
            | "legacy"
            | "rsa-public-key"
            | "s3ec"
            | "instruction-file"
                if matches!(command, "import" | "export") =>
            {
                "Encryption Client"
            }
            "endpoint-url" | "region" | "profile" | "volume-id" | "allow-http" => "Store",
            "passphrase-file" | "passphrase-fd" | "passphrase-command" | "key-file"
            | "recovery-file" | "kms" | "kms-region" | "kms-endpoint-url" | "kms-profile"
            | "age-identity" => "Key",
            "new-passphrase-file"
            | "new-passphrase-fd"
            | "new-passphrase-command"
            | "new-key-file"
            | "recovery"
            | "age-recipient"
            | "age-recipients-file" => "New key",
            "kms-key" if command == "add" => "New key",
            "kms-key" if command != "doctor" => "Key",
            "aes-key-file"
            | "rsa-private-key"
            | "encryption-context"
            | "any-encryption-context"
            | "legacy" => "Key",
            "new-kms-key"
            | "new-aes-key-file"
            | "new-rsa-public-key"
            | "new-encryption-context"
            | "no-encryption-context" => "New key",
            "recovery-kit" | "no-recovery" if command == "init" => "Recovery",
            "upload-limit" | "download-limit" => "Store",
            "log-file" | "log-level" | "log-format" => "Log",
            "metrics" | "metrics-remote" => "Metrics",
            "object-tag" => "Server-side encryption",
            source if source.starts_with("source-") => "Source",
            target if target.starts_with("target-") => "Target",
            sse if sse == "sse" || sse.starts_with("sse-") => "Server-side encryption",
            "cache-dir" | "state-dir" | "cache-size" | "journal-size" | "commit-interval"
            | "read-timeout"
                if command == "mount" =>
            {
                "Local state"
            }
            _ => return None,
        })
    }

    fn check(command: &clap::Command) {
        let name = command.get_name();
        for arg in command.get_arguments() {
            let Some(flag) = arg.get_long() else {
                assert_eq!(arg.get_help_heading(), None, "{name}: {}", arg.get_id());
                continue;
            };
            assert_eq!(arg.get_help_heading(), heading(name, flag), "sealfs {name} --{flag}");
        }
        command.get_subcommands().for_each(check);
    }

    #[test]
    fn every_flag_stands_under_the_heading_of_its_group() {
        // Guards against --takeover under "Log": a heading of a group of flags goes on for those
        // that are declared after it.
        let mut cli = Cli::command();
        cli.build();
        check(&cli);
        let recover = cli.find_subcommand("recover").expect("there is one");
        let offers = |flag| recover.get_arguments().any(|arg| arg.get_long() == Some(flag));
        assert!(!offers("object-tag") && !offers("sse") && offers("sse-c-key-file"));
    }
}
