//! Slots that AWS KMS opens: a random seed, encrypted by `kms:Encrypt` in a context that names the
//! volume and the slot, given back by `kms:Decrypt`.
//!
//! What a slot says of its key is believed by nobody before the keyring is open, and whoever can write
//! to the bucket can say anything there. So the server that a slot names gets requests only if this
//! machine's user says so; see [`Follow`].

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;

use crate::base::VolumeId;
use crate::seal::{KEY, Kept, Keyring, KeyringError, KmsSlot, Seed, SlotInfo, SlotKind};
use crate::stack::{KeySource, StackError, StackErrorKind};
use crate::store::kms::{
    Kms, KmsContext, KmsError, KmsPlace, KmsTrouble, is_local_endpoint, region_of,
};

/// Time for all KMS slots of a keyring together.
pub const KMS_MAX: Duration = Duration::from_secs(90);

/// Names of the encryption context. They are in the log of KMS; nothing of the volume's content is.
pub const CONTEXT_VOLUME: &str = "sealfs:volume";
/// The other one.
pub const CONTEXT_SLOT: &str = "sealfs:slot";

/// Which servers a keyring may name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Follow {
    /// AWS, and this machine: nobody asked for KMS, it is tried by itself.
    #[default]
    Aws,
    /// Any: somebody said `--kms`.
    Any,
}

/// Opens slots by asking AWS KMS.
#[derive(Clone, Debug, Default)]
pub struct KmsSource {
    /// `--kms-region`: in place of what the slot says (a replica of a multi-Region key).
    pub region: Option<String>,
    /// `--kms-endpoint-url`: in place of what the slot says.
    pub endpoint_url: Option<String>,
    /// Profile of the AWS configuration files.
    pub profile: Option<String>,
    /// Which servers the keyring may name.
    pub follow: Follow,
    /// The region of a new key that nobody names one for: that of the store.
    pub region_of_store: Option<String>,
}

#[async_trait]
impl KeySource for KmsSource {
    async fn seed(&self, keyring: &Keyring) -> Result<(u32, Seed), StackError> {
        match timeout(KMS_MAX, self.first(keyring)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(StackError::Keeper {
                kind: StackErrorKind::Unreachable,
                message: format!("AWS KMS has opened no slot within {} s", KMS_MAX.as_secs()),
                hint: "check the network, or open the volume with another slot".into(),
            }),
        }
    }
}

impl KmsSource {
    /// The first slot that KMS opens.
    async fn first(&self, keyring: &Keyring) -> Result<(u32, Seed), StackError> {
        let slots = keyring.slots().into_iter().filter(|slot| slot.kind == SlotKind::Kms);
        let mut refused = None;
        for slot in slots {
            match self.open(keyring, &slot).await {
                Ok(seed) => return Ok((slot.id, seed)),
                // The first says most; of those that follow only one without a network, say.
                Err(e) => refused = refused.or(Some(e)),
            }
        }
        Err(refused.unwrap_or_else(|| keyring.no_such_kind(SlotKind::Kms).into()))
    }

    async fn open(&self, keyring: &Keyring, slot: &SlotInfo) -> Result<Seed, StackError> {
        let stored = KmsSlot::parse(&slot.params)
            .map_err(|why| KeyringError::Kept { slot: slot.id, why })?;
        let recorded = stored.endpoint();
        if let Some(url) = recorded.filter(|url| self.endpoint_url.is_none() && !self.follows(url))
        {
            return Err(StackError::Keeper {
                kind: StackErrorKind::Other,
                message: format!("slot {} is opened by AWS KMS at {url}", slot.id),
                hint: "if that server is yours, say so: --kms".into(),
            });
        }
        let region = self.region.as_deref().unwrap_or(stored.region());
        let kms = self.connect(region, recorded).await?;
        let key_arn = in_region(stored.key_arn(), region);
        let context = context(keyring.volume_id(), slot.id);
        let plain = kms.decrypt(&key_arn, stored.ciphertext(), &context).await?;
        let seed: &[u8; KEY] = plain[..].try_into().map_err(|_| KeyringError::Altered)?;
        let seed = Seed::from_bytes(seed);
        match keyring.fits(slot.id, &seed) {
            true => Ok(seed),
            false => Err(KeyringError::Altered.into()),
        }
    }

    fn follows(&self, endpoint: &str) -> bool {
        self.follow == Follow::Any || is_local_endpoint(endpoint)
    }

    async fn connect(&self, region: &str, recorded: Option<&str>) -> Result<Kms, KmsError> {
        let place = KmsPlace {
            region: Some(region.to_owned()).filter(|region| !region.is_empty()),
            endpoint_url: self.endpoint_url.clone(),
            recorded_endpoint: recorded.map(str::to_owned),
            profile: self.profile.clone(),
        };
        Kms::connect(&place).await
    }

    /// A new seed for slot `slot` of `volume`, encrypted under `key`: an id, alias or ARN.
    ///
    /// # Errors
    /// What KMS says; a region that is not the key's.
    pub async fn keep(&self, key: &str, volume: VolumeId, slot: u32) -> Result<Kept, StackError> {
        if let (Some(asked), Some(of_key)) = (self.region.as_deref(), region_of(key))
            && asked != of_key
        {
            return Err(StackError::Keeper {
                kind: StackErrorKind::Other,
                message: format!("the key {key} is in {of_key}, and --kms-region says {asked}"),
                hint: format!("leave it out, or: --kms-region {of_key}"),
            });
        }
        let region = self.region.as_deref().or(region_of(key)).or(self.region_of_store.as_deref());
        let region = region.unwrap_or_default();
        let kms = self.connect(region, None).await?;
        let seed = Kept::random_seed();
        let sealed = kms.encrypt(key, &seed[..], &context(volume, slot)).await?;
        // The region of the key that answered; other servers name keys as they like.
        let region = region_of(&sealed.key_arn).unwrap_or(kms.region()).to_owned();
        let endpoint = kms.endpoint().unwrap_or_default();
        let stored = KmsSlot::new(&sealed.key_arn, &region, endpoint, sealed.ciphertext)
            .map_err(|why| KeyringError::Kept { slot, why })?;
        Ok(Kept::kms(seed, &stored))
    }
}

/// What KMS authenticates with the seed, so that one slot's is not taken for another's.
fn context(volume: VolumeId, slot: u32) -> KmsContext {
    let pairs = [(CONTEXT_VOLUME, volume.to_string()), (CONTEXT_SLOT, slot.to_string())];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The ARN of a multi-Region key's replica in `region`; other keys are in one region only.
fn in_region(key_arn: &str, region: &str) -> String {
    match region_of(key_arn) {
        Some(of_key) if key_arn.contains(":key/mrk-") => {
            key_arn.replacen(&format!(":{of_key}:"), &format!(":{region}:"), 1)
        }
        _ => key_arn.to_owned(),
    }
}

impl From<KmsError> for StackError {
    fn from(e: KmsError) -> StackError {
        let kind = match e.trouble {
            KmsTrouble::Usage => StackErrorKind::Other,
            KmsTrouble::NoCredentials | KmsTrouble::Unreachable | KmsTrouble::Refused => {
                StackErrorKind::Unreachable
            }
            KmsTrouble::Unusable => StackErrorKind::Secret,
        };
        StackError::Keeper { kind, message: e.message, hint: e.hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_of_a_key_is_asked_where_it_is() {
        // Guards against a multi-Region key that nobody can use when its first region is away,
        // and against a key of one region being asked for by a name that it does not have.
        let multi = "arn:aws:kms:eu-west-1:1:key/mrk-12";
        assert_eq!(in_region(multi, "us-east-1"), "arn:aws:kms:us-east-1:1:key/mrk-12");
        let single = "arn:aws:kms:eu-west-1:1:key/12";
        assert_eq!(in_region(single, "us-east-1"), single);
    }

    #[tokio::test]
    async fn a_server_that_only_the_keyring_names_gets_no_request() {
        // Guards against a bucket that collects signed requests of whoever mounts it, and that
        // gives other seeds: nobody here has named that server.
        let source = KmsSource::default();
        assert!(!source.follows("https://kms.example") && source.follows("http://127.0.0.1:5000"));
        let said = KmsSource { follow: Follow::Any, ..KmsSource::default() };
        assert!(said.follows("https://kms.example"));
        let slot = KmsSlot::new("arn:aws:kms:eu-1:1:key/a", "eu-1", "https://kms.invalid", vec![1]);
        let kept = Kept::kms(Kept::random_seed(), &slot.expect("fits"));
        let root = crate::seal::RootKey::random();
        let (ring, _) =
            Keyring::create(root, &crate::seal::Secret::Kept(kept), "a", Default::default(), 0)
                .expect("made");
        let e = source.seed(&ring).await.expect_err("not asked");
        assert!(e.to_string().contains("https://kms.invalid"), "{e}");
        assert!(e.hint().is_some_and(|hint| hint.contains("--kms")));
    }
}
