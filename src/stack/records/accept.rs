//! What of the records may be worse than this machine has seen, because a person says so.

/// What is accepted though this machine has seen better (`--accept-rollback`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Accept {
    /// A bucket at an earlier commit: the later ones are given up.
    pub older: bool,
    /// A bucket with another history: what this machine has seen of the one before is given up.
    pub history: bool,
    /// An older keyring, or one that does not continue the one that was seen: whoever was removed
    /// since may have made it.
    pub keyring: bool,
    /// A local journal that lacks changes which were on stable storage here: they are given up.
    pub journal: bool,
    /// An older configuration: another server-side encryption, perhaps.
    pub config: bool,
}

impl Accept {
    /// Everything.
    pub const ALL: Accept =
        Accept { older: true, history: true, keyring: true, journal: true, config: true };
}
