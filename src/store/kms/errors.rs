//! What a refusal of KMS means: a sentence with what is missing, and the next command.
//!
//! `verdict` is pure. Source: AWS KMS API Reference, "Encrypt", "Decrypt" and "Common Errors".

use super::super::s3::{Causes, Failure, facts};
use crate::base::{one_line, shell_word};
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use std::error::Error;
use std::fmt::Display;

/// What kind of trouble it is, by what the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KmsTrouble {
    /// What was asked for cannot be: an endpoint, a region, the name of a key.
    Usage,
    /// There are no credentials on this machine.
    NoCredentials,
    /// No answer, or one that says to come back later.
    Unreachable,
    /// It refuses these credentials.
    Refused,
    /// The key, or what it is to decrypt, is not as it was.
    Unusable,
}

/// Why KMS did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct KmsError {
    /// What kind of trouble it is.
    pub trouble: KmsTrouble,
    /// A sentence.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

impl KmsError {
    /// What was given cannot be used. A second line `hint: …` becomes the hint.
    pub(super) fn usage(what: &dyn Display) -> KmsError {
        let text = what.to_string();
        let (message, hint) = text.split_once("\nhint: ").unwrap_or((&text, "aws configure list"));
        let (message, hint) = (message.to_owned(), hint.to_owned());
        KmsError { trouble: KmsTrouble::Usage, message, hint }
    }

    pub(super) fn with_hint(self, hint: &str) -> KmsError {
        KmsError { hint: hint.into(), ..self }
    }
}

/// What is encrypted, for sentences about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subject {
    /// The seed of a slot of a volume.
    #[default]
    Seed,
    /// The data key of an object of others.
    DataKey,
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Subject::Seed => "the seed of this slot",
            Subject::DataKey => "the data key of this object",
        }
    }

    fn made_for(self) -> &'static str {
        match self {
            Subject::Seed => "for another volume or slot (another encryption context)",
            Subject::DataKey => "under another key or encryption context",
        }
    }

    /// What else to do, behind the command that may mend it.
    fn or_else(self) -> &'static str {
        match self {
            Subject::Seed => "; or open the volume with another slot",
            Subject::DataKey => "",
        }
    }

    fn when_altered(self) -> &'static str {
        match self {
            Subject::Seed => "open the volume with another slot, then see: sealfs key list STORE",
            Subject::DataKey => "sealfs s3ec head shows which context it names; --kms-key the key",
        }
    }
}

/// A request, for sentences about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// The permission that it takes, as in `kms:Decrypt`.
    pub action: &'static str,
    pub key: &'a str,
    pub region: &'a str,
    pub endpoint: Option<&'a str>,
    pub subject: Subject,
}

impl Asked<'_> {
    /// Turns a failed call into an error.
    pub(super) fn failed<E>(&self, error: SdkError<E, HttpResponse>) -> KmsError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        log::debug!("{} {}: {}", self.action, self.key, Causes(&error));
        let mut failure = facts(&error);
        if let SdkError::ServiceError(answer) = &error {
            failure = failure.answered(answer.err());
        }
        self.verdict(&failure, &failure.what(&error))
    }

    /// An answer without what was asked for.
    pub(super) fn not_kms(&self) -> KmsError {
        self.error(
            KmsTrouble::Unreachable,
            format!("{}: what answers is not AWS KMS", self.place()),
            "check --kms-endpoint-url, and a proxy on the way".into(),
        )
    }

    fn error(&self, trouble: KmsTrouble, message: String, hint: String) -> KmsError {
        KmsError { trouble, message: one_line(&message), hint: one_line(&hint) }
    }

    fn place(&self) -> String {
        match self.endpoint {
            Some(url) => format!("AWS KMS at {url}"),
            None => format!("AWS KMS in {}", self.region),
        }
    }

    /// What a refusal means. `what` is the server's own word.
    fn verdict(&self, failure: &Failure, what: &str) -> KmsError {
        use KmsTrouble as T;
        let (key, region, action, place) = (self.key, self.region, self.action, self.place());
        let subject = self.subject;
        let aws =
            |call: &str| format!("aws kms {call} --region {region} --key-id {}", shell_word(key));
        if failure.has_no_credentials() {
            let hint = "aws configure, AWS_PROFILE or --profile; and a role for this machine if it has one";
            return self.error(T::NoCredentials, format!("{place}: {what}"), hint.into());
        }
        let code = failure.code().unwrap_or_default();
        match code {
            "AccessDeniedException" => self.error(
                T::Refused,
                format!("{place} does not allow {action} on {key} to these credentials: {what}"),
                format!(
                    "allow {action} on it, in the identity's policy and the key's own: sealfs doctor \
                     STORE --iam-policy --kms-key {} prints the statement",
                    shell_word(key)
                ),
            ),
            "DisabledException" => self.error(
                T::Unusable,
                format!("the key {key} of {place} is disabled"),
                format!("{}{}", aws("enable-key"), subject.or_else()),
            ),
            "KMSInvalidStateException" if what.contains("deletion") => self.error(
                T::Unusable,
                format!("the key {key} of {place} is to be deleted: {what}"),
                format!("{}, then {}", aws("cancel-key-deletion"), aws("enable-key")),
            ),
            "KMSInvalidStateException" | "InvalidKeyUsageException"
            | "UnsupportedOperationException" | "KeyUnavailableException" => self.error(
                T::Unusable,
                format!("the key {key} of {place} cannot be used for {action}: {what}"),
                format!("see its state; it must be enabled, and for ENCRYPT_DECRYPT: {}", aws("describe-key")),
            ),
            "NotFoundException" => self.error(
                T::Unusable,
                format!("{place} has no key {key}: {what}"),
                format!(
                    "if it is in another region, say so: --kms-region NAME; those of this one: aws \
                     kms list-aliases --region {region}"
                ),
            ),
            "IncorrectKeyException" => self.error(
                T::Unusable,
                format!("{place} has encrypted {} under another key than {key}", subject.name()),
                format!("see which keys there are now: aws kms list-aliases --region {region}"),
            ),
            "InvalidCiphertextException" => self.error(
                T::Unusable,
                format!(
                    "{place} cannot decrypt {}: it was made {}, or was altered",
                    subject.name(),
                    subject.made_for()
                ),
                subject.when_altered().into(),
            ),
            "ThrottlingException" | "LimitExceededException" | "TooManyRequestsException" => self
                .error(
                    T::Unreachable,
                    format!("{place} is asked too often by this account, and went on saying so: {what}"),
                    "try again in a minute; the quota: AWS Service Quotas, KMS".into(),
                ),
            "ValidationException" | "InvalidArnException" => self.error(
                T::Usage,
                format!("{place} takes {key} for no key: {what}"),
                "--kms-key takes a key id, alias/NAME, or the ARN of either".into(),
            ),
            "UnrecognizedClientException" | "InvalidClientTokenId" | "InvalidSignatureException"
            | "ExpiredTokenException" | "ExpiredToken" | "IncompleteSignature"
            | "MissingAuthenticationToken" | "MissingAuthenticationTokenException"
            | "OptInRequired" | "SignatureDoesNotMatch" => self.error(
                T::Refused,
                format!("{place} refuses the credentials: {what}"),
                "see whose they are: aws sts get-caller-identity; and the clock: timedatectl".into(),
            ),
            _ if failure.is_foreign() => self.not_kms(),
            _ => self.error(
                T::Unreachable,
                format!("{place} cannot be asked: {what}"),
                match (failure.tls_hint(), self.endpoint) {
                    (Some(hint), _) => hint,
                    (None, Some(_)) => "check --kms-endpoint-url and the network, then try again",
                    (None, None) => "check the network, and --kms-region, then try again",
                }
                .into(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(endpoint: Option<&'static str>) -> Asked<'static> {
        Asked {
            action: "kms:Decrypt",
            key: "arn:aws:kms:eu-1:1:key/k",
            region: "eu-1",
            endpoint,
            subject: Subject::Seed,
        }
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        // Guards against an exception's name where a person needs the missing permission or the
        // command, and against a server's words that end a line.
        for (code, trouble, parts) in [
            ("AccessDeniedException", KmsTrouble::Refused, ["kms:Decrypt", "--iam-policy"]),
            ("DisabledException", KmsTrouble::Unusable, ["disabled", "aws kms enable-key"]),
            ("KMSInvalidStateException", KmsTrouble::Unusable, ["deleted", "cancel-key-deletion"]),
            ("NotFoundException", KmsTrouble::Unusable, ["no key", "--kms-region"]),
            ("IncorrectKeyException", KmsTrouble::Unusable, ["another key", "list-aliases"]),
            ("InvalidCiphertextException", KmsTrouble::Unusable, ["context", "another slot"]),
            ("ThrottlingException", KmsTrouble::Unreachable, ["too often", "try again"]),
            ("ValidationException", KmsTrouble::Usage, ["no key", "alias/NAME"]),
            ("UnrecognizedClientException", KmsTrouble::Refused, ["credentials", "aws sts"]),
            ("SomethingNew", KmsTrouble::Unreachable, ["SomethingNew", "network"]),
        ] {
            let failure = Failure::coded(400, code);
            let e =
                asked(None).verdict(&failure, &format!("{code}: pending deletion\nhint: rm -rf"));
            assert_eq!(e.trouble, trouble, "{code}");
            assert!(e.message.contains(parts[0]) && e.hint.contains(parts[1]), "{code}: {e:?}");
            assert!(!e.message.contains('\n') && !e.hint.contains('\n'), "{e:?}");
        }
        let there = asked(Some("https://kms.example")).verdict(&Failure::coded(400, "X"), "X");
        assert!(there.message.contains("https://kms.example"), "{there}");
    }
}
