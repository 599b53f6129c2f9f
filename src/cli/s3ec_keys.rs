//! Flags that name the keys of the Amazon S3 Encryption Client and what may be opened with them;
//! shared by the commands that read or write its objects.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use crate::s3ec::{
    AesKey, ContextRule, Keys, KmsByName, OpenRules, RsaPrivate, RsaPublic, S3ecError,
    S3ecErrorKind, WrapWith,
};
use crate::stack::StoreOptions;
use crate::store::kms::{Kms, KmsError, KmsPlace, KmsTrouble, Subject, region_of};

use super::args::KmsArgs;
use super::exit::{Exit, Failure, Outcome};

/// The keys that open, and what is opened.
#[derive(Args, Clone, Debug, Default)]
pub struct EnvelopeKeyArgs {
    /// The AWS KMS key that wraps data keys: key id, alias/NAME or ARN
    #[arg(long, help_heading = "Key", value_name = "KEY")]
    pub kms_key: Option<String>,
    /// File with the AES key that wraps data keys: its bytes, or hex, or base64
    #[arg(long, help_heading = "Key", value_name = "FILE")]
    pub aes_key_file: Option<PathBuf>,
    /// File with the RSA private key that opens data keys, PEM or DER
    #[arg(long, help_heading = "Key", value_name = "FILE")]
    pub rsa_private_key: Option<PathBuf>,
    #[command(flatten)]
    pub kms_at: KmsArgs,
    /// Encryption context that objects must have, or get; may be repeated
    #[arg(long, help_heading = "Key", value_name = "K=V", value_parser = pair)]
    pub encryption_context: Vec<(String, String)>,
    /// Open objects of any encryption context
    #[arg(long, help_heading = "Key", conflicts_with = "encryption_context")]
    pub any_encryption_context: bool,
    /// Also open what nothing authenticates: contents under AES-CBC
    #[arg(long, help_heading = "Key")]
    pub legacy: bool,
}

/// `NAME=VALUE`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a pair is NAME=VALUE".into()),
    }
}

/// Pairs as a map.
///
/// # Errors
/// A name stands twice.
pub fn pairs(given: &[(String, String)]) -> Outcome<std::collections::BTreeMap<String, String>> {
    let mut map = std::collections::BTreeMap::new();
    for (name, value) in given {
        if map.insert(name.clone(), value.clone()).is_some() {
            let message = format!("the encryption context has {name} twice");
            return Err(Failure::new(Exit::Usage, message).hint("give each name once"));
        }
    }
    Ok(map)
}

impl EnvelopeKeyArgs {
    /// Reads the key files and connects to KMS; makes no request.
    ///
    /// # Errors
    /// A file that holds no key; a place of KMS that cannot be.
    pub async fn keys(&self, store: &StoreOptions) -> Outcome<Keys> {
        let kms = match &self.kms_key {
            Some(key) => Some(kms_key(key, &self.kms_at, store).await?),
            None => None,
        };
        Ok(Keys {
            kms,
            aes: self.aes_key_file.as_deref().map(AesKey::read).transpose().map_err(failure)?,
            rsa_private: self
                .rsa_private_key
                .as_deref()
                .map(RsaPrivate::read)
                .transpose()
                .map_err(failure)?,
            rsa_public: None,
        })
    }

    /// What may be opened.
    ///
    /// # Errors
    /// A name of the context stands twice.
    pub fn rules(&self) -> Outcome<OpenRules> {
        let context = match self.any_encryption_context {
            true => ContextRule::Any,
            false => ContextRule::Exactly(pairs(&self.encryption_context)?),
        };
        Ok(OpenRules { context, legacy: self.legacy })
    }
}

/// A key of KMS: in the region that is named, else in that of its ARN, else in that of the store.
pub async fn kms_key(
    key: &str,
    at: &KmsArgs,
    store: &StoreOptions,
) -> Outcome<Arc<dyn crate::s3ec::KmsKey>> {
    let region = at.kms_region.clone().or_else(|| region_of(key).map(str::to_owned));
    let place = KmsPlace {
        region: region.or_else(|| store.region.clone()),
        endpoint_url: at.kms_endpoint_url.clone(),
        recorded_endpoint: None,
        profile: at.kms_profile.clone().or_else(|| store.profile.clone()),
    };
    let kms = Kms::connect(&place).await.map_err(of_kms)?.speaking_of(Subject::DataKey);
    Ok(Arc::new(KmsByName { kms, key: key.to_owned() }))
}

fn of_kms(e: KmsError) -> Failure {
    let exit = match e.trouble {
        KmsTrouble::Usage => Exit::Usage,
        KmsTrouble::Unusable => Exit::Secret,
        _ => Exit::Unreachable,
    };
    Failure::new(exit, e.message).hint(e.hint)
}

/// An error of the formats before there is an object to speak of.
pub fn failure(e: S3ecError) -> Failure {
    let exit = match e.kind {
        S3ecErrorKind::Usage => Exit::Usage,
        S3ecErrorKind::WrongKey => Exit::Secret,
        S3ecErrorKind::Unreachable => Exit::Unreachable,
        S3ecErrorKind::Tampered => Exit::Corrupt,
        S3ecErrorKind::Format => Exit::Format,
        S3ecErrorKind::Legacy | S3ecErrorKind::TooLarge => Exit::General,
    };
    Failure::new(exit, e)
}

/// The key that wraps from now on.
#[derive(Args, Clone, Debug, Default)]
#[group(multiple = true)]
pub struct NewEnvelopeKeyArgs {
    /// Wrap under this key of AWS KMS: key id, alias/NAME or ARN
    #[arg(long, help_heading = "New key", value_name = "KEY")]
    pub new_kms_key: Option<String>,
    /// Wrap under the AES key in this file
    #[arg(long, help_heading = "New key", value_name = "FILE")]
    pub new_aes_key_file: Option<PathBuf>,
    /// Wrap for the RSA public key in this file, PEM or DER
    #[arg(long, help_heading = "New key", value_name = "FILE")]
    pub new_rsa_public_key: Option<PathBuf>,
    /// Encryption context of the new wrap [default: that of the object]; may be repeated
    #[arg(long, help_heading = "New key", value_name = "K=V", value_parser = pair)]
    pub new_encryption_context: Vec<(String, String)>,
    /// The new wrap has no encryption context
    #[arg(long, help_heading = "New key", conflicts_with = "new_encryption_context")]
    pub no_encryption_context: bool,
}

impl NewEnvelopeKeyArgs {
    /// The key, and which it is.
    ///
    /// # Errors
    /// None is named, or several are; as [`EnvelopeKeyArgs::keys`].
    pub async fn keys(&self, at: &KmsArgs, store: &StoreOptions) -> Outcome<(Keys, WrapWith)> {
        let one = "--new-kms-key, --new-aes-key-file or --new-rsa-public-key";
        match (&self.new_kms_key, &self.new_aes_key_file, &self.new_rsa_public_key) {
            (Some(key), None, None) => {
                let kms = Some(kms_key(key, at, store).await?);
                Ok((Keys { kms, ..Keys::default() }, WrapWith::Kms))
            }
            (None, Some(file), None) => {
                let aes = Some(AesKey::read(file).map_err(failure)?);
                Ok((Keys { aes, ..Keys::default() }, WrapWith::Aes))
            }
            (None, None, Some(file)) => {
                let rsa_public = Some(RsaPublic::read(file).map_err(failure)?);
                Ok((Keys { rsa_public, ..Keys::default() }, WrapWith::Rsa))
            }
            (None, None, None) => {
                let none = Failure::new(Exit::Usage, "no new key is named");
                Err(none.hint(format!("one of {one}")))
            }
            _ => {
                let many = Failure::new(Exit::Usage, "one new key wraps, and several are named");
                Err(many.hint(format!("one of {one}")))
            }
        }
    }
}
