//! Keys of a volume: the keyring in the bucket, the one way to open it, and what opens it.
//!
//! | file | holds |
//! | --- | --- |
//! | `object` | the keyring as an object of the bucket |
//! | `unlock` | the one door: a keyring, opened by whatever the caller has |
//! | `kms`, `age` | slots whose seed AWS KMS or an age key gives |
//! | `change`, `watch` | changing the keyring, and how a mount follows |

pub(super) mod age;
pub(super) mod change;
pub(super) mod kms;
pub(super) mod object;
pub(super) mod unlock;
pub(super) mod watch;
