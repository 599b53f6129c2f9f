//! The match table of server-side encryption, mode by mode and answer by answer.

use super::*;

const ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";
const OTHER_ID: &str = "99999999-12ab-34cd-56ef-1234567890ab";
const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const OTHER_ARN: &str =
    "arn:aws:kms:eu-west-1:111122223333:key/99999999-12ab-34cd-56ef-1234567890ab";
const OTHER_REGION_ARN: &str =
    "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const ALIAS: &str = "alias/archive";
const ALIAS_ARN: &str = "arn:aws:kms:eu-west-1:111122223333:alias/archive";

fn customer() -> SecretKey32 {
    SecretKey32::new(Zeroizing::new([1; 32]))
}

fn kms(key: Option<&str>) -> SseMode {
    SseMode::Kms { key_id: key.map(str::to_owned), context: BTreeMap::new(), bucket_key: None }
}

fn dsse(key: Option<&str>) -> SseMode {
    SseMode::Dsse { key_id: key.map(str::to_owned), context: BTreeMap::new() }
}

fn answer(algorithm: &str, key: Option<&str>) -> Applied {
    Applied {
        algorithm: Some(algorithm.into()),
        kms_key_id: key.map(str::to_owned),
        ..Applied::default()
    }
}

fn customer_answer(key: &SecretKey32) -> Applied {
    Applied {
        customer_algorithm: Some(AES256.into()),
        customer_key_md5: Some(key.md5_base64().into()),
        ..Applied::default()
    }
}

fn accepts(mode: &SseMode, applied: &Applied) -> bool {
    SseCheck::new(mode.clone()).check(Answer::Whole, applied.clone()).is_ok()
}

#[test]
fn each_mode_accepts_its_own_answer_and_no_other() {
    // Guards against any cell of mode × answer being wrong: a server that applies another mode
    // must never be believed, and the right one must never be refused.
    let other_customer = SecretKey32::new(Zeroizing::new([2; 32]));
    let modes = [
        SseMode::S3,
        kms(None),
        dsse(None),
        SseMode::Customer { key: customer() },
        SseMode::Customer { key: other_customer.clone() },
    ];
    let answers = [
        answer(AES256, None),
        answer(AWS_KMS, Some(ARN)),
        answer(AWS_KMS_DSSE, Some(ARN)),
        customer_answer(&customer()),
        customer_answer(&other_customer),
    ];
    for (i, mode) in modes.iter().enumerate() {
        for (j, applied) in answers.iter().enumerate() {
            assert_eq!(accepts(mode, applied), i == j, "{mode} against {applied}");
        }
        assert!(!accepts(mode, &Applied::default()), "{mode} against silence");
        assert!(!accepts(mode, &answer("rot13", None)), "{mode} against an unknown algorithm");
        assert!(accepts(&SseMode::Default, &answers[i]), "default against {}", answers[i]);
    }
    assert!(accepts(&SseMode::Default, &Applied::default()));
}

#[test]
fn every_name_of_the_same_kms_key_matches_and_no_other_key_does() {
    // Guards against a write being refused because the server answers the ARN of the key that
    // was named by id, and against another key passing for the one asked for.
    let minio = "arn:aws:kms:minio-key";
    let table: &[(&str, &str, KeyMatch)] = &[
        (ID, ID, KeyMatch::Same),
        (ID, ARN, KeyMatch::Same),
        (ARN, ARN, KeyMatch::Same),
        (ARN, ID, KeyMatch::Same),
        ("minio-key", minio, KeyMatch::Same),
        ("minio-key", "minio-key", KeyMatch::Same),
        (ALIAS, ALIAS, KeyMatch::Same),
        (ALIAS, ALIAS_ARN, KeyMatch::Same),
        (ALIAS_ARN, ALIAS, KeyMatch::Same),
        (ALIAS, ARN, KeyMatch::Alias),
        (ALIAS, ID, KeyMatch::Alias),
        (ALIAS_ARN, ARN, KeyMatch::Alias),
        (ALIAS_ARN, OTHER_REGION_ARN, KeyMatch::Different),
        (ALIAS, "alias/other", KeyMatch::Different),
        (ID, OTHER_ID, KeyMatch::Different),
        (ID, OTHER_ARN, KeyMatch::Different),
        (ARN, OTHER_ARN, KeyMatch::Different),
        (ARN, OTHER_REGION_ARN, KeyMatch::Different),
        (ARN, OTHER_ID, KeyMatch::Different),
        (ID, ALIAS, KeyMatch::Different),
        (ID, "", KeyMatch::Different),
        (ID, "arn:aws:kms:", KeyMatch::Different),
        (ID, "arn:aws:s3:::1234abcd-12ab-34cd-56ef-1234567890ab", KeyMatch::Different),
        ("ab", ARN, KeyMatch::Different),
    ];
    for (asked, answered, expected) in table {
        assert_eq!(compare_keys(asked, answered), *expected, "{asked} answered {answered}");
        for (mode, name) in [(kms(Some(asked)), AWS_KMS), (dsse(Some(asked)), AWS_KMS_DSSE)] {
            let accepted = accepts(&mode, &answer(name, Some(answered)));
            assert_eq!(accepted, *expected != KeyMatch::Different, "{mode}: {answered}");
        }
    }
    assert!(!accepts(&kms(Some(ID)), &answer(AWS_KMS, None)), "an answer must name the key");
}

#[test]
fn an_alias_is_pinned_to_the_first_key_it_stood_for() {
    // Guards against a server that encrypts under one key now and another later for one alias.
    let check = SseCheck::new(kms(Some(ALIAS)));
    check.check(Answer::Whole, answer(AWS_KMS, Some(ARN))).unwrap();
    check.check(Answer::Whole, answer(AWS_KMS, Some(ARN))).unwrap();
    check.check(Answer::Part, answer(AWS_KMS, Some(ID))).unwrap();
    let error = check.check(Answer::Whole, answer(AWS_KMS, Some(OTHER_ARN))).unwrap_err();
    assert!(error.to_string().contains(ARN), "{error}");
    assert!(error.to_string().contains(OTHER_ARN), "{error}");
    check.check(Answer::Whole, answer(AWS_KMS, Some(ARN))).unwrap();
}

#[test]
fn silence_is_accepted_from_parts_only() {
    // Guards against an upload failing at its end on servers that repeat nothing there, and
    // against a put being believed that says nothing.
    for mode in [
        SseMode::S3,
        kms(Some(ID)),
        dsse(Some(ALIAS)),
        SseMode::Customer { key: customer() },
        SseMode::Default,
    ] {
        let check = SseCheck::new(mode.clone());
        check.check(Answer::Part, Applied::default()).unwrap();
        let whole = check.check(Answer::Whole, Applied::default());
        assert_eq!(whole.is_ok(), matches!(mode, SseMode::Default), "{mode}");
        if !matches!(mode, SseMode::Default) {
            let wrong = answer("rot13", None);
            assert!(check.check(Answer::Part, wrong).is_err(), "{mode}: a part that lies");
        }
    }
}

#[test]
fn a_part_may_leave_out_the_key_but_not_name_another() {
    // Guards against UploadPart of servers that name the algorithm alone being refused, and
    // against a part under another key being accepted.
    let check = SseCheck::new(kms(Some(ID)));
    check.check(Answer::Part, answer(AWS_KMS, None)).unwrap();
    check.check(Answer::Part, answer(AWS_KMS, Some(OTHER_ARN))).unwrap_err();
    check.check(Answer::Whole, answer(AWS_KMS, None)).unwrap_err();
}

#[test]
fn the_context_must_hold_what_was_asked_and_may_hold_more() {
    // Guards against the pair that S3 adds (the bucket's ARN) failing every write, and against a
    // context that was dropped or changed.
    let asked = BTreeMap::from([("project".to_owned(), "a".to_owned())]);
    let mode = SseMode::Kms { key_id: None, context: asked.clone(), bucket_key: None };
    let with = |json: &str| Applied {
        kms_context: Some(STANDARD.encode(json)),
        ..answer(AWS_KMS, Some(ARN))
    };
    assert!(accepts(&mode, &with(r#"{"project":"a"}"#)));
    assert!(accepts(&mode, &with(r#"{"aws:s3:arn":"arn:aws:s3:::b","project":"a"}"#)));
    assert!(accepts(&mode, &answer(AWS_KMS, Some(ARN))), "the header is optional");
    assert!(!accepts(&mode, &with(r#"{"project":"b"}"#)));
    assert!(!accepts(&mode, &with("{}")));
    assert!(!accepts(&mode, &with("not json")));
    let mut garbage = with("{}");
    garbage.kms_context = Some("\u{0}!".into());
    assert!(!accepts(&mode, &garbage));
    let header = mode.context_header().expect("a context was given");
    assert_eq!(STANDARD.decode(header).unwrap(), br#"{"project":"a"}"#);
    assert_eq!(kms(None).context_header(), None);
}

#[test]
fn the_bucket_key_must_be_as_asked() {
    // Guards against KMS being called (and paid) once per object where a bucket key was wanted,
    // and against a shared bucket key where per-object audit records were wanted.
    for (asked, answered, ok) in [
        (None, None, true),
        (None, Some(true), true),
        (None, Some(false), true),
        (Some(true), Some(true), true),
        (Some(true), Some(false), false),
        (Some(true), None, false),
        (Some(false), Some(false), true),
        (Some(false), None, true),
        (Some(false), Some(true), false),
    ] {
        let mode = SseMode::Kms { key_id: None, context: BTreeMap::new(), bucket_key: asked };
        let applied = Applied { bucket_key: answered, ..answer(AWS_KMS, Some(ARN)) };
        assert_eq!(accepts(&mode, &applied), ok, "asked {asked:?}, answered {answered:?}");
    }
}

#[test]
fn a_customer_key_answer_must_name_algorithm_and_this_key() {
    // Guards against an object stored in the clear (or under another key) passing for SSE-C.
    let mode = SseMode::Customer { key: customer() };
    let right = customer_answer(&customer());
    let with = |f: fn(&mut Applied)| {
        let mut applied = right.clone();
        f(&mut applied);
        applied
    };
    assert!(accepts(&mode, &right));
    assert!(accepts(&mode, &with(|a| a.customer_algorithm = None)), "the MD5 says enough");
    assert!(!accepts(&mode, &with(|a| a.customer_key_md5 = None)));
    assert!(!accepts(&mode, &with(|a| a.customer_key_md5 = Some("AAAA".into()))));
    assert!(!accepts(&mode, &with(|a| a.customer_algorithm = Some("AES128".into()))));
    assert!(!accepts(&mode, &answer(AES256, None)), "SSE-S3 is not SSE-C");
}

#[test]
fn what_was_applied_last_is_remembered_for_status() {
    // Guards against `status` showing the mode asked for instead of what the bucket does.
    let check = SseCheck::new(SseMode::Default);
    assert_eq!(check.last_applied(), None);
    check.check(Answer::Whole, answer(AWS_KMS, Some(ARN))).unwrap();
    check.check(Answer::Part, Applied::default()).unwrap();
    let last = check.last_applied().expect("an answer was seen");
    assert_eq!(last.to_string(), format!("aws:kms, key {ARN}"));
}
