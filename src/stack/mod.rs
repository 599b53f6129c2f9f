//! Puts a volume together: store layers, keyring, metadata store, journal, committer, file
//! system. The only place that knows all of them; called by `cli/` and by tests.
//!
//! | file | holds |
//! | --- | --- |
//! | `layers` | STORE and flags → the stack of store wrappers |
//! | `keyring_object`, `unlock` | the keyring in the bucket, and the one way to open it |
//! | `key_change`, `key_watch` | changing it, and how a mount follows |
//! | `rekey`, `rekey_duty` | every object sealed again in a new epoch; what a mount does for that |
//! | `key_kms`, `key_age` | slots whose seed AWS KMS or an age key gives |
//! | `key_use` | when this machine last used which slot |
//! | `config`, `config_use` | what the volume remembers of its encryption, and what follows |
//! | `options`, `control` | what is asked for, and what a mount says: plain data |
//! | `attended` | what a command waits for, and that it is to stop |
//! | `canary` | the probe, and what its refusal means |
//! | `doctor`, `bucket_policy` | what a bucket, its settings and this machine are fit for |
//! | `audit`, `inventory`, `migrate` | how every object is encrypted, shown and changed |
//! | `one_object` | one object by its name: its contents, or its key |
//! | `open` | a volume that is not mounted, for `audit` and `migrate` |
//! | `status` | the status of a running mount |
//! | `volume` | `init` |
//! | `neighbours` | whether a prefix is free, also of volumes above and below it |
//! | `fsck/` | a whole volume checked and repaired |
//! | `recover` | what a journal holds, as files |
//! | `mount` | a running mount: its background tasks, and its orderly end |
//! | `gates` | what a mount lets its committer do |
//! | `lease` | who holds the volume read-write |
//! | `departure` | processes of this machine that are about to let the volume go |
//! | `opening` | the steps from a STORE to a running mount |
//! | `history` | whether the bucket continues what this machine has seen |
//! | `lineage` | whether bucket and journal belong to one history |
//! | `disks` | how the local disks are, in sentences |
//! | `state` | what this machine remembers of the volume |

mod attended;
pub mod audit;
pub mod bucket_policy;
mod canary;
pub mod config;
pub mod config_use;
mod control;
mod departure;
mod disks;
pub mod doctor;
mod error;
mod fsck;
mod gates;
mod history;
pub mod inventory;
mod key_age;
mod key_change;
mod key_kms;
mod key_use;
mod key_watch;
mod keyring_object;
pub mod layers;
mod lease;
mod lineage;
pub mod migrate;
mod mount;
mod neighbours;
mod one_object;
mod open;
mod opening;
mod options;
mod places;
mod recover;
pub mod rekey;
mod rekey_duty;
mod state;
mod status;
mod unlock;
mod volume;

pub use attended::{Attended, Wait};
pub use control::{
    Connection, Control, Numbers, Progress, Requests, Setting, Settings, Status, resident_bytes,
};
pub use departure::{announce_end, is_running};
pub use error::{StackError, StackErrorKind};
pub use fsck::{FsckOptions, FsckProgress, FsckReport, Problem, READING_DATA, fsck};
pub use key_age::{
    Ask, KEEPERS_MAX, Nobody, keep as keep_age, open as open_age, reads as age_reads,
    recipients as age_recipients,
};
pub use key_change::{Changed, KeyOptions, change_keyring, open_keyring};
pub use key_kms::{CONTEXT_SLOT, CONTEXT_VOLUME, Follow, KMS_MAX, KmsSource};
pub use key_use::{last_used, note_place, remember_use};
pub use keyring_object::{KEYRING_NAME, load_keyring, read_keyring};
pub use layers::Layers;
pub use mount::Mounted;
pub use neighbours::check_free;
pub use one_object::{ObjectKey, commit_now, object_key, read_object};
pub use opening::mount;
pub use options::{Accept, InitOptions, LocalDisk, MountOptions, StoreOptions};
pub use places::{Places, SegmentPlace};
pub use recover::{KeyringSource, LIST_NAME, RecoverOptions, Recovered, recover};
pub use unlock::{Found, Key, KeySource, Unlocked, unlock, unlock_store};
pub use volume::{create_bucket, init};
