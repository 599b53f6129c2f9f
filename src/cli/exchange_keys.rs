//! Keys of the Amazon S3 Encryption Client, for `import` and `export`: the flags of `s3ec`, which here stand
//! beside those that open the volume.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::args::KmsArgs;
use super::exit::{Exit, Failure, Outcome};
use super::s3ec_keys::{EnvelopeKeyArgs, failure, kms_key, pair, pairs};
use crate::exchange::{OpenWith, SealWith};
use crate::s3ec::{AesKey, Keys, RsaPublic, SealFormat, SealRules, WrapWith};
use crate::stack::StoreOptions;
use crate::store::Location;

const CLIENT: &str = "Encryption Client";

/// What both directions have.
#[derive(Args, Clone, Debug)]
pub struct WrapArgs {
    /// The AWS KMS key that wraps data keys of objects: key id, alias/NAME or ARN
    #[arg(long, help_heading = CLIENT, value_name = "KEY")]
    kms_key: Option<String>,
    /// File with the AES key that wraps data keys of objects
    #[arg(long, help_heading = CLIENT, value_name = "FILE")]
    aes_key_file: Option<PathBuf>,
    /// Encryption context of objects; may be repeated
    #[arg(long, help_heading = CLIENT, value_name = "K=V", value_parser = pair)]
    encryption_context: Vec<(String, String)>,
    /// Region of --kms-key [default: that of its ARN, else of the bucket]
    #[arg(long, help_heading = CLIENT, value_name = "NAME")]
    kms_key_region: Option<String>,
    /// KMS of --kms-key other than that of AWS
    #[arg(long, help_heading = CLIENT, value_name = "URL")]
    kms_key_endpoint_url: Option<String>,
    /// Profile for --kms-key [default: that of the bucket]
    #[arg(long, help_heading = CLIENT, value_name = "NAME")]
    kms_key_profile: Option<String>,
}

/// What opens objects.
#[derive(Args, Clone, Debug)]
pub struct OpenArgs {
    #[command(flatten)]
    wrap: WrapArgs,
    /// File with the RSA private key that opens data keys of objects, PEM or DER
    #[arg(long, help_heading = CLIENT, value_name = "FILE")]
    rsa_private_key: Option<PathBuf>,
    /// Open objects of any encryption context
    #[arg(long, help_heading = CLIENT, conflicts_with = "encryption_context")]
    any_encryption_context: bool,
    /// Also open objects that nothing authenticates: contents under AES-CBC
    #[arg(long, help_heading = CLIENT)]
    legacy: bool,
}

/// What seals objects.
#[derive(Args, Clone, Debug)]
pub struct SealArgs {
    #[command(flatten)]
    wrap: WrapArgs,
    /// File with the RSA public key that wraps data keys of objects, PEM or DER
    #[arg(long, help_heading = CLIENT, value_name = "FILE")]
    rsa_public_key: Option<PathBuf>,
    /// Version of the objects [default: v3]
    #[arg(long, help_heading = CLIENT, value_name = "VERSION", value_enum)]
    s3ec: Option<Version>,
    /// Put the envelope into a file beside each object, instead of its metadata
    #[arg(long, help_heading = CLIENT)]
    instruction_file: bool,
}

/// Versions that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Version {
    V2,
    V3,
}

impl WrapArgs {
    fn kms_at(&self) -> KmsArgs {
        KmsArgs {
            kms_region: self.kms_key_region.clone(),
            kms_endpoint_url: self.kms_key_endpoint_url.clone(),
            kms_profile: self.kms_key_profile.clone(),
        }
    }
}

/// The region and profile of the bucket, which hold for its keys as well.
fn beside(region: Option<&str>, profile: Option<&str>) -> StoreOptions {
    StoreOptions {
        region: region.map(str::to_owned),
        profile: profile.map(str::to_owned),
        ..StoreOptions::new(Location::Memory)
    }
}

impl OpenArgs {
    /// Whether a flag was given, which only a bucket can use.
    pub fn is_given(&self) -> bool {
        let wrap = &self.wrap;
        wrap.kms_key.is_some()
            || wrap.aes_key_file.is_some()
            || self.rsa_private_key.is_some()
            || !wrap.encryption_context.is_empty()
            || self.any_encryption_context
            || self.legacy
    }

    /// Reads the key files; makes no request.
    ///
    /// # Errors
    /// As [`EnvelopeKeyArgs::keys`].
    pub async fn open_with(
        &self,
        region: Option<&str>,
        profile: Option<&str>,
    ) -> Outcome<OpenWith> {
        let flags = EnvelopeKeyArgs {
            kms_key: self.wrap.kms_key.clone(),
            aes_key_file: self.wrap.aes_key_file.clone(),
            rsa_private_key: self.rsa_private_key.clone(),
            kms_at: self.wrap.kms_at(),
            encryption_context: self.wrap.encryption_context.clone(),
            any_encryption_context: self.any_encryption_context,
            legacy: self.legacy,
        };
        let keys = flags.keys(&beside(region, profile)).await?;
        Ok(OpenWith { keys, rules: flags.rules()? })
    }
}

impl SealArgs {
    /// Whether objects are to be sealed.
    pub fn is_asked(&self) -> bool {
        self.wrap.kms_key.is_some()
            || self.wrap.aes_key_file.is_some()
            || self.rsa_public_key.is_some()
    }

    /// Refuses flags that contradict each other; `plain`: objects in clear are asked for.
    ///
    /// # Errors
    /// Neither a key nor `--plain`, or both; several keys; a detail without a key.
    pub fn check(&self, plain: bool) -> Outcome {
        let usage = |what: &str, hint: &str| Err(Failure::new(Exit::Usage, what).hint(hint));
        let named = [
            self.wrap.kms_key.is_some(),
            self.wrap.aes_key_file.is_some(),
            self.rsa_public_key.is_some(),
        ];
        let keys = named.iter().filter(|given| **given).count();
        let details = self.s3ec.is_some()
            || self.instruction_file
            || !self.wrap.encryption_context.is_empty();
        match (plain, keys) {
            (true, 0) if details => {
                usage("--plain objects have no envelope", "leave the flags of one out, or --plain")
            }
            (true, 0) | (false, 1) => Ok(()),
            (true, _) => usage("--plain and a key contradict each other", "leave one of them out"),
            (false, 0) => usage(
                "the objects would be in clear: whoever reads the bucket would read the files",
                "name a key (--kms-key, --aes-key-file or --rsa-public-key); or, if that is \
                 meant: --plain",
            ),
            (false, _) => usage("one key wraps, and several are named", "leave one of them"),
        }
    }

    /// Reads the key file; makes no request.
    ///
    /// # Errors
    /// A file that holds no key; a place of KMS that cannot be.
    pub async fn seal_with(
        &self,
        region: Option<&str>,
        profile: Option<&str>,
    ) -> Outcome<SealWith> {
        let none = Keys::default();
        let (keys, with) = match (&self.wrap.kms_key, &self.wrap.aes_key_file, &self.rsa_public_key)
        {
            (Some(key), ..) => {
                let kms = Some(kms_key(key, &self.wrap.kms_at(), &beside(region, profile)).await?);
                (Keys { kms, ..none }, WrapWith::Kms)
            }
            (None, Some(file), _) => {
                let aes = Some(AesKey::read(file).map_err(failure)?);
                (Keys { aes, ..none }, WrapWith::Aes)
            }
            (None, None, Some(file)) => {
                let rsa_public = Some(RsaPublic::read(file).map_err(failure)?);
                (Keys { rsa_public, ..none }, WrapWith::Rsa)
            }
            (None, None, None) => return Err(Failure::new(Exit::Usage, "no key is named")),
        };
        let format = match self.s3ec {
            Some(Version::V2) => SealFormat::V2,
            Some(Version::V3) | None => SealFormat::V3,
        };
        let context = pairs(&self.wrap.encryption_context)?;
        let rules = SealRules { format, with, context };
        Ok(SealWith { keys, rules, instruction_file: self.instruction_file })
    }
}
