//! The two JSON policies that go with a volume: what its credentials need (IAM), and that the
//! bucket refuses plain http. Pure. Source: IAM User Guide, "IAM JSON policy reference"; S3 User
//! Guide, "Policies and permissions".

use serde_json::{Value, json};

use crate::base::VolumeId;
use crate::stack::{CONTEXT_SLOT, CONTEXT_VOLUME};
use crate::store::s3::SseMode;

/// The statement id of our statement in a bucket's policy.
const TLS_SID: &str = "SealfsTlsOnly";

/// A minimal IAM policy for a volume below `prefix` (empty or ending with a slash).
///
/// `read_only`: for `mount --read-only`, which only writes SlateDB's manifests (a checkpoint).
pub fn iam(bucket: &str, prefix: &str, mode: &SseMode, tags: bool, read_only: bool) -> Value {
    let below = |part: &str| format!("arn:aws:s3:::{bucket}/{prefix}{part}");
    let mut list = json!({
        "Sid": "List", "Effect": "Allow", "Action": "s3:ListBucket",
        "Resource": format!("arn:aws:s3:::{bucket}")
    });
    if !prefix.is_empty() {
        list["Condition"] = json!({"StringLike": {"s3:prefix": format!("{prefix}*")}});
    }
    let mut write = vec!["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"];
    if tags {
        write.push("s3:PutObjectTagging");
    }
    if read_only {
        write.retain(|action| *action != "s3:AbortMultipartUpload");
    }
    let written = if read_only { below("meta/manifest/*") } else { below("*") };
    let mut statements = vec![
        list,
        json!({"Sid": "Read", "Effect": "Allow", "Action": "s3:GetObject", "Resource": below("*")}),
        json!({"Sid": "Write", "Effect": "Allow", "Action": write, "Resource": written}),
    ];
    if let Some(resource) = kms_resource(mode) {
        let mut kms = json!({
            "Sid": "Key", "Effect": "Allow",
            "Action": ["kms:GenerateDataKey", "kms:Decrypt"],
            "Resource": resource
        });
        if mode.key_id().is_some_and(|id| id.contains("alias/")) {
            let alias = mode.key_id().and_then(|id| id.find("alias/").map(|at| &id[at..]));
            kms["Condition"] = json!({
                "ForAnyValue:StringEquals": {"kms:ResourceAliases": alias.unwrap_or_default()}
            });
        }
        statements.push(kms);
    }
    json!({"Version": "2012-10-17", "Statement": statements})
}

/// The KMS keys that open slots of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySlots {
    /// Ids, aliases or ARNs.
    pub keys: Vec<String>,
    /// The volume, if it is known: the permission is for no other then.
    pub volume: Option<VolumeId>,
}

/// Adds to a policy what it takes to open slots through KMS, and to add some: for nothing but the
/// seeds of slots, which the encryption context says.
pub fn allow_key_slots(policy: &mut Value, slots: &KeySlots) {
    let Some(statements) = policy["Statement"].as_array_mut() else { return };
    if slots.keys.is_empty() {
        return;
    }
    let volume_key = format!("kms:EncryptionContext:{CONTEXT_VOLUME}");
    let mut condition = match slots.volume {
        Some(volume) => json!({"StringEquals": {volume_key: volume.to_string()}}),
        None => json!({"StringLike": {volume_key: "*"}}),
    };
    condition["ForAllValues:StringEquals"] =
        json!({"kms:EncryptionContextKeys": [CONTEXT_VOLUME, CONTEXT_SLOT]});
    let (mut resources, mut aliases) = (Vec::new(), Vec::new());
    for key in &slots.keys {
        resources.push(key_resource(key));
        aliases.extend(key.find("alias/").map(|at| &key[at..]));
    }
    if !aliases.is_empty() {
        condition["ForAnyValue:StringEquals"] = json!({"kms:ResourceAliases": aliases});
    }
    for (sid, action) in [("OpenKeySlots", "kms:Decrypt"), ("AddKeySlots", "kms:Encrypt")] {
        statements.push(json!({
            "Sid": sid, "Effect": "Allow", "Action": action,
            "Resource": resources, "Condition": condition
        }));
    }
}

/// What the KMS statement is about: the key, or any key that has the alias.
fn kms_resource(mode: &SseMode) -> Option<String> {
    let id = match mode {
        SseMode::Kms { key_id, .. } | SseMode::Dsse { key_id, .. } => key_id.as_deref()?,
        _ => return None,
    };
    Some(key_resource(id))
}

/// A key by id, alias or ARN as a policy names it; an alias stands for whatever key has it.
fn key_resource(id: &str) -> String {
    match id {
        arn if arn.starts_with("arn:") && arn.contains(":key/") => arn.to_owned(),
        id if id.contains("alias/") => "arn:aws:kms:*:*:key/*".into(),
        id => format!("arn:aws:kms:*:*:key/{id}"),
    }
}

/// Whether a bucket policy denies every request that is not made over TLS.
pub fn denies_plain_http(policy: &str) -> bool {
    let Ok(policy) = serde_json::from_str::<Value>(policy) else { return false };
    let statements = match &policy["Statement"] {
        Value::Array(all) => all.clone(),
        one => vec![one.clone()],
    };
    statements.iter().any(|statement| {
        let everyone = &statement["Principal"];
        statement["Effect"] == "Deny"
            && (*everyone == "*" || everyone["AWS"] == "*")
            && (statement["Action"] == "s3:*" || statement["Action"] == json!(["s3:*"]))
            && ["Bool", "BoolIfExists"].iter().any(|operator| {
                let secure = &statement["Condition"][operator]["aws:SecureTransport"];
                *secure == "false" || *secure == false || *secure == json!(["false"])
            })
    })
}

/// `policy` (or none) with a statement that denies plain http. `None` if what is there is no
/// policy that can be added to.
pub fn with_tls_only(policy: Option<&str>, bucket: &str) -> Option<String> {
    let mut policy: Value = match policy {
        None => json!({"Version": "2012-10-17", "Statement": []}),
        Some(text) => serde_json::from_str(text).ok()?,
    };
    if policy["Statement"].is_object() {
        policy["Statement"] = json!([policy["Statement"]]);
    }
    let statements = policy["Statement"].as_array_mut()?;
    statements.retain(|statement| statement["Sid"] != TLS_SID);
    statements.push(json!({
        "Sid": TLS_SID,
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [format!("arn:aws:s3:::{bucket}"), format!("arn:aws:s3:::{bucket}/*")],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}}
    }));
    Some(policy.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_slots_are_allowed_in_their_context_only() {
        // Guards against a policy that lets whoever mounts a volume decrypt anything under the key.
        let mut policy = iam("b", "", &SseMode::Default, false, true);
        let before = policy.clone();
        allow_key_slots(&mut policy, &KeySlots::default());
        assert_eq!(policy, before);
        let arn = "arn:aws:kms:eu-1:1:key/k";
        let volume = Some(VolumeId([0xab; 16]));
        allow_key_slots(&mut policy, &KeySlots { keys: vec![arn.into()], volume });
        for (at, sid, action) in
            [(3, "OpenKeySlots", "kms:Decrypt"), (4, "AddKeySlots", "kms:Encrypt")]
        {
            let statement = &policy["Statement"][at];
            assert_eq!((&statement["Sid"], &statement["Action"]), (&json!(sid), &json!(action)));
            assert_eq!(statement["Resource"], json!([arn]));
            assert_eq!(
                statement["Condition"]["StringEquals"]["kms:EncryptionContext:sealfs:volume"],
                json!("ab".repeat(16))
            );
        }
        let mut policy = before;
        allow_key_slots(&mut policy, &KeySlots { keys: vec!["alias/a".into()], volume: None });
        let condition = &policy["Statement"][3]["Condition"];
        assert_eq!(
            condition["ForAnyValue:StringEquals"]["kms:ResourceAliases"],
            json!(["alias/a"])
        );
        assert_eq!(condition["StringLike"]["kms:EncryptionContext:sealfs:volume"], json!("*"));
    }

    fn kms(key: &str) -> SseMode {
        SseMode::Kms { key_id: Some(key.into()), context: Default::default(), bucket_key: None }
    }

    #[test]
    fn the_iam_policy_grants_what_a_mount_does_and_no_more() {
        // Guards against a policy that opens the whole bucket or account, and against one under
        // which a mount fails later.
        let policy = iam("b", "data/", &kms("alias/vault"), true, false);
        let text = policy.to_string();
        for part in [
            "arn:aws:s3:::b/data/*",
            "s3:PutObjectTagging",
            "s3:AbortMultipartUpload",
            "\"kms:ResourceAliases\":\"alias/vault\"",
            "\"s3:prefix\":\"data/*\"",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("s3:*") && !text.contains("arn:aws:s3:::b/*"), "{text}");
        let read = iam("b", "", &SseMode::S3, false, true).to_string();
        assert!(read.contains("arn:aws:s3:::b/meta/manifest/*") && !read.contains("kms"), "{read}");
        let arn = "arn:aws:kms:eu-west-1:1:key/k";
        let keyed = iam("b", "", &kms(arn), false, false);
        assert_eq!(keyed["Statement"][3]["Resource"], arn);
    }

    #[test]
    fn a_tls_only_statement_is_added_once_and_recognised() {
        // Guards against a fix that throws a bucket's own policy away, or piles up statements.
        let own = r#"{"Version":"2012-10-17","Statement":{"Sid":"Own","Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"*"}}"#;
        assert!(!denies_plain_http(own) && !denies_plain_http("nonsense"));
        let once = with_tls_only(Some(own), "b").expect("a policy");
        let twice = with_tls_only(Some(&once), "b").expect("a policy");
        assert_eq!(once, twice);
        assert!(denies_plain_http(&twice) && twice.contains("Own"), "{twice}");
        assert!(denies_plain_http(&with_tls_only(None, "b").expect("a new one")));
        assert_eq!(with_tls_only(Some("nonsense"), "b"), None);
    }
}
