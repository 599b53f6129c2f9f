//! The live mount of this machine that a STORE means, if there is one.
//!
//! The same name may stand for two volumes: `s3://backup/data` on two servers. A command that worked in the
//! mount of the other one would change the wrong volume.

use std::path::Path;

use crate::stack::{Status, StoreOptions, read_keyring};
use crate::store::Location;

use super::client::Client;
use super::exit::{Failure, Outcome};
use super::key::attend;
use super::protocol::{Ask, Say};

/// The first of `clients` that is a mount of `store`, and of what `takes` says.
///
/// # Errors
/// A mount goes by the same name, and the store does not say which volume it is.
pub(super) fn mount_of(
    clients: impl IntoIterator<Item = Client>,
    store: &StoreOptions,
    takes: impl Fn(&Status) -> bool,
) -> Outcome<Option<Client>> {
    let name = store.location.to_string();
    for client in clients {
        let Ok(Say::Status(status)) = client.ask(&Ask::Status, |_| {}) else { continue };
        if status.store == name && takes(&status) && is_of(&status, store)? {
            // An answer ends the connection.
            return Client::connect(Path::new(&status.mount_point), false).map(Some);
        }
    }
    Ok(None)
}

/// Whether a mount of a store of that name is of this one.
fn is_of(status: &Status, store: &StoreOptions) -> Outcome<bool> {
    if let Some(wanted) = store.volume {
        return Ok(wanted.to_string() == status.volume_id);
    }
    if !matches!(store.location, Location::S3 { .. }) || status.server == store.server {
        return Ok(true);
    }
    let keyring = attend(store, read_keyring(store)).map_err(|failure| {
        let (at, other) = (&status.mount_point, &status.server);
        let named = if other.is_empty() { "AWS" } else { other };
        let hint =
            format!("if the mount at {at} is meant (of {} at {named}), name it", status.store);
        Failure { hint: Some(hint), ..failure }
    })?;
    Ok(keyring.volume_id().to_string() == status.volume_id)
}
