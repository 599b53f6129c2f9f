//! Puts a volume together: store layers, keyring, metadata store, journal, committer, file
//! system. The only place that knows all of them; called by `cli/` and by tests.
//!
//! | file | holds |
//! | --- | --- |
//! | `layers` | STORE and flags → the stack of store wrappers |
//! | `keyring_object` | reading and creating the keyring in the bucket |
//! | `volume` | `init` |
//! | `mount` | a running mount and its background tasks, and its shutdown |
//! | `lease` | who holds the volume read-write |
//! | `state` | what this machine remembers of the volume |

mod error;
mod keyring_object;
pub mod layers;
mod lease;
mod mount;
mod state;
mod volume;

pub use error::StackError;
pub use keyring_object::{KEYRING_NAME, load_keyring};
pub use layers::{Layers, StoreOptions};
pub use mount::{MountOptions, Mounted, mount};
pub use volume::{InitOptions, init};
