//! Why a server refused a write for its encryption, as a sentence and the next thing to do.
//!
//! Pure. The codes are those of S3 ("Error responses", with `KMS.` before a code of KMS), Ceph and
//! moto; a plain `AccessDenied` says little, so that only what the mode makes likely is named.

use super::sse::SseMode;

/// The command that allows SSE-C on a bucket (S3 User Guide, "Blocking or unblocking SSE-C").
pub(super) const UNBLOCK_SSE_C: &str = "allow it: sealfs doctor STORE --fix --sse customer, or in the console: Properties, Default encryption, \"Server-side encryption with customer-provided keys\" (PutBucketEncryption, BlockedEncryptionTypes=NONE)";

/// A refusal put into words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// What is in the way.
    pub(super) why: String,
    /// What to do about it.
    pub(super) next: String,
}

fn refusal(why: impl Into<String>, next: impl Into<String>) -> Option<Refusal> {
    Some(Refusal { why: why.into(), next: next.into() })
}

/// What a refused write in `mode` means; `None` where the mode has nothing to do with it.
/// `conditional`: it carried `If-None-Match` or `If-Match`, which some servers do not implement.
pub(super) fn of_write(
    mode: &SseMode,
    conditional: bool,
    status: Option<u16>,
    code: &str,
    message: &str,
) -> Option<Refusal> {
    let key = mode.key_id().unwrap_or("alias/aws/s3");
    if let Some(code) = code.strip_prefix("KMS.") {
        return of_kms(code, key);
    }
    let denied = status == Some(403) && matches!(code, "AccessDenied" | "" | "Forbidden");
    for action in ["kms:GenerateDataKey", "kms:Decrypt", "kms:Encrypt"] {
        if denied && message.contains(action) {
            return refusal(
                format!("these credentials may not use the KMS key: {action} is missing"),
                format!(
                    "allow kms:GenerateDataKey and kms:Decrypt on {key}, in IAM and in the key's policy (sealfs doctor STORE --iam-policy prints one)"
                ),
            );
        }
    }
    if conditional && is_not_implemented(status, code) && !blames_encryption(message) {
        return match (blames_condition(message), mode) {
            (true, _) => refusal(NO_CONDITIONS, USE_CONDITIONS),
            (false, SseMode::Default) => refusal(
                "the server, or a proxy before it, does not implement such a write, perhaps for its condition (If-None-Match, If-Match)",
                USE_CONDITIONS,
            ),
            (false, _) => refusal(
                "the server implements no conditional writes, or not the encryption asked for",
                "see which: sealfs doctor STORE",
            ),
        };
    }
    match mode {
        SseMode::Customer { .. } if denied => refusal(
            "SSE-C seems to be blocked on the bucket, as it is by default on buckets made since April 2026",
            UNBLOCK_SSE_C,
        ),
        SseMode::Kms { .. } | SseMode::Dsse { .. } if denied => refusal(
            "s3:PutObject may be missing, or kms:GenerateDataKey and kms:Decrypt on the key, or a policy of the bucket requires another mode or key",
            "see which: sealfs doctor STORE",
        ),
        SseMode::Default | SseMode::S3 if denied && message.contains("explicit deny") => refusal(
            "a policy denies it, perhaps because it requires another --sse",
            "see which: sealfs doctor STORE",
        ),
        SseMode::Default | SseMode::S3 if denied => None,
        SseMode::Default => None,
        SseMode::Dsse { .. } if is_unknown_mode(status, code) => refusal(
            "this server does not support DSSE-KMS (aws:kms:dsse)",
            "use --sse aws:kms, or Amazon S3",
        ),
        _ if is_unknown_mode(status, code) => refusal(
            format!("this server does not accept --sse {}", mode.name()),
            "check the key, or choose another --sse (sealfs doctor STORE says what the server does)",
        ),
        _ => None,
    }
}

fn of_kms(code: &str, key: &str) -> Option<Refusal> {
    match code {
        "DisabledException" => refusal(
            "the KMS key is disabled",
            format!("aws kms enable-key --key-id {key}, or choose another: --sse-kms-key-id"),
        ),
        "NotFoundException" => refusal(
            "there is no such KMS key in the region of the bucket",
            "aws kms list-aliases; a key of another account needs its full ARN",
        ),
        "KMSInvalidStateException" | "KeyUnavailableException" => refusal(
            "the KMS key cannot be used in its present state (is it pending deletion?)",
            format!("aws kms describe-key --key-id {key}"),
        ),
        "AccessDeniedException" => refusal(
            "these credentials may not use the KMS key",
            format!("allow kms:GenerateDataKey and kms:Decrypt on {key}"),
        ),
        _ => refusal("KMS refused the key", format!("aws kms describe-key --key-id {key}")),
    }
}

/// What a server without conditional writes lacks, and what helps.
pub(super) const NO_CONDITIONS: &str = "this server implements no conditional writes (If-None-Match, If-Match), without which two mounts could overwrite each other's metadata";
pub(super) const USE_CONDITIONS: &str = "use a server that has them (Amazon S3, MinIO, Ceph Squid), or have the proxy before it pass the headers on";

fn is_not_implemented(status: Option<u16>, code: &str) -> bool {
    status == Some(501) || code == "NotImplemented"
}

fn blames_condition(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["if-none-match", "if-match", "condition"].iter().any(|word| message.contains(word))
}

fn blames_encryption(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["encryption", "sse", "kms"].iter().any(|word| message.contains(word))
}

/// Answers of servers that do not know a mode, or not with these arguments.
fn is_unknown_mode(status: Option<u16>, code: &str) -> bool {
    matches!(status, Some(501))
        || matches!(
            code,
            "NotImplemented"
                | "InvalidEncryptionAlgorithmError"
                | "InvalidEncryptionMethod"
                | "KMSNotConfigured"
        )
        || status == Some(400) && matches!(code, "InvalidArgument" | "InvalidRequest")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::s3::SecretKey32;
    use std::collections::BTreeMap;
    use zeroize::Zeroizing;

    fn kms() -> SseMode {
        SseMode::Kms { key_id: Some("alias/a".into()), context: BTreeMap::new(), bucket_key: None }
    }

    #[test]
    fn each_refusal_names_what_to_change() {
        // Guards against "Access Denied" as the whole story, which costs people days.
        let customer = SseMode::Customer { key: SecretKey32::new(Zeroizing::new([1; 32])) };
        let dsse = SseMode::Dsse { key_id: None, context: BTreeMap::new() };
        let no_key = "User: arn:aws:iam::1:user/u is not authorized to perform: kms:GenerateDataKey on resource: arn because no identity-based policy allows it";
        let denied = "User: arn:aws:iam::1:user/u is not authorized to perform: s3:PutObject with an explicit deny in a resource-based policy";
        let cases: [(&SseMode, u16, &str, &str, &str); 9] = [
            (&customer, 403, "AccessDenied", "Access Denied", "BlockedEncryptionTypes"),
            (&kms(), 403, "AccessDenied", no_key, "kms:GenerateDataKey"),
            (&kms(), 403, "AccessDenied", "Access Denied", "kms:Decrypt"),
            (&kms(), 400, "KMS.DisabledException", "", "enable-key --key-id alias/a"),
            (&kms(), 400, "KMS.NotFoundException", "", "no such KMS key"),
            (&kms(), 400, "KMS.KMSInvalidStateException", "", "pending deletion"),
            (&SseMode::S3, 403, "AccessDenied", denied, "requires another --sse"),
            (&dsse, 400, "InvalidArgument", "", "does not support DSSE-KMS"),
            (&kms(), 501, "NotImplemented", "", "does not accept --sse aws:kms"),
        ];
        for (mode, status, code, message, part) in cases {
            let found = of_write(mode, false, Some(status), code, message);
            let found = found.unwrap_or_else(|| panic!("{mode} {code}"));
            let text = format!("{}\nhint: {}", found.why, found.next);
            assert!(text.contains(part), "{mode} {code}: {text}");
        }
    }

    #[test]
    fn a_condition_that_is_not_implemented_is_not_blamed_on_the_mode() {
        // Guards against telling people to change their encryption when the server lacks
        // conditional writes, and the other way round.
        let header = "A header you provided implies functionality that is not implemented";
        let sse = "Header 'x-amz-server-side-encryption' with value 'AES256' not implemented";
        for (mode, conditional, message, part) in [
            (SseMode::Default, true, header, "perhaps for its condition"),
            (SseMode::S3, true, "If-None-Match", "use a server that has them"),
            (SseMode::S3, true, header, "or not the encryption asked for"),
            (SseMode::S3, true, sse, "does not accept --sse AES256"),
            (SseMode::S3, false, header, "does not accept --sse AES256"),
        ] {
            let found = of_write(&mode, conditional, Some(501), "NotImplemented", message);
            let found = found.unwrap_or_else(|| panic!("{mode} {message}"));
            let text = format!("{}\nhint: {}", found.why, found.next);
            assert!(text.contains(part), "{mode} {message}: {text}");
            assert_eq!(part.contains("--sse"), text.contains("--sse"), "{text}");
        }
        assert_eq!(of_write(&SseMode::Default, false, Some(501), "", ""), None);
    }

    #[test]
    fn troubles_that_have_nothing_to_do_with_encryption_stay_as_they_are() {
        // Guards against blaming the key for an outage or a lost race.
        for (status, code) in
            [(503, "SlowDown"), (412, "PreconditionFailed"), (404, "NoSuchBucket")]
        {
            assert_eq!(of_write(&kms(), true, Some(status), code, ""), None);
        }
        assert_eq!(of_write(&SseMode::S3, false, Some(403), "AccessDenied", "Access Denied"), None);
        assert_eq!(of_write(&SseMode::Default, false, Some(400), "InvalidArgument", ""), None);
    }
}
