//! Puts a volume together: store layers, keyring, metadata store, journal, committer, file
//! system. The only place that knows all of them; called by `cli/` and by tests.
//!
//! | room | holds |
//! | --- | --- |
//! | `init` | making a volume |
//! | `care/` | checking, repairing, recovering, migrating, rekeying it |
//! | `opening/` | the steps from a STORE to a running mount |
//! | `running/` | a running mount: its role and how that changes, its end, its status |
//! | `options` | what is asked for: plain data |
//! | `s3ec_object` | one object of the Amazon S3 Encryption Client, in no volume |
//! | `keys/` | the keyring in the bucket, and the one way to open it |
//! | `layers` | STORE and flags → the stack of store wrappers |
//! | `records/` | what is recorded beside the metadata: in the bucket, and on this machine |
//! | `store_options` | where the store is and how it is reached: plain data |
//! | `attended` | what a command waits for, and that it is to stop |
//! | `error` | why it did not work |
//!
//! Each imports only what stands below it (`tests/layers.rs`).

mod attended;
mod care;
mod error;
mod init;
mod keys;
pub mod layers;
mod opening;
mod options;
mod records;
mod running;
mod s3ec_object;
mod store_options;

pub use attended::{Attended, Wait};
pub use care::fsck::{FsckOptions, FsckProgress, FsckReport, Problem, READING_DATA, fsck};
pub use care::one_object::{ObjectKey, commit_now, object_key, read_object};
pub use care::recover::{
    KeyringSource, LIST_NAME, RecoverOptions, RecoverProgress, Recovered, UNFINISHED_NAME, recover,
};
pub use care::settings::{schedule, settings};
pub use care::{audit, bucket_policy, doctor, inventory, migrate, rekey, snapshots};
pub use error::{StackError, StackErrorKind};
pub use init::{create_bucket, init};
pub use keys::age::{
    Ask, KEEPERS_MAX, Nobody, keep as keep_age, open as open_age, reads as age_reads,
    recipients as age_recipients,
};
pub use keys::change::{Changed, KeyOptions, change_keyring, open_keyring};
pub use keys::kms::{CONTEXT_SLOT, CONTEXT_VOLUME, Follow, KMS_MAX, KmsSource};
pub use keys::object::{load_keyring, read_keyring};
pub use keys::unlock::{Found, Key, KeySource, Unlocked, unlock, unlock_store};
pub use layers::StoreStack;
pub use opening::mount;
pub use opening::neighbours::check_free;
pub use options::{InitOptions, LocalDisk, MountOptions};
pub use records::accept::Accept;
pub use records::config::{Change, VolumeConfig};
pub use records::departure::{announce_end, is_running};
pub use records::last_use::{last_used, note_place, remember_use};
pub use records::schedule::Schedule;
pub use records::{config, encryption};
pub use running::control::{
    Connection, Control, Numbers, Progress, Requests, Setting, Settings, Status, resident_bytes,
};
pub use running::du::{DuAge, DuAsk, DuDir, DuProgress, DuReport, DuSnapshot, DuSum};
pub use running::mount::Mounted;
pub use running::pins::{PINS_MAX, PinPath, PinRefused, PinStatus, PinsNow};
pub use running::places::{Places, SegmentPlace};
pub use running::role::{RoleName, Transition, Why};
pub use running::snapshots::{
    RefusalKind, SnapshotAsk, SnapshotInfo, SnapshotList, SnapshotRefused,
};
pub use running::transition::{DemoteAsk, PromoteAsk};
pub use s3ec_object::{Contents, EnvelopeAsk, ObjectName, S3ecObject};
pub use store_options::StoreOptions;
