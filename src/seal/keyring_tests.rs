//! Tests of `keyring.rs` and `slots.rs`.

use super::*;
use proptest::prelude::*;
use zeroize::Zeroizing;

fn passphrase(text: &str) -> Secret {
    Secret::Passphrase(Zeroizing::new(text.as_bytes().to_vec()))
}

fn key_file(byte: u8) -> Secret {
    Secret::KeyFile(Zeroizing::new(vec![byte; 40]))
}

fn root() -> RootKey {
    RootKey::from_bytes(&[7; 32])
}

/// A keyring with a key file slot (which costs nothing to open).
fn cheap() -> (Keyring, VolumeKeys) {
    Keyring::create(root(), &key_file(1), "laptop", KdfParams::FLOOR).unwrap()
}

/// The bytes after `change`, with a checksum that fits again: what an attacker can do.
fn rechecked(bytes: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = bytes[..bytes.len() - CHECKSUM].to_vec();
    change(&mut body);
    let checksum = Sha256::digest(&body);
    body.extend_from_slice(&checksum);
    body
}

#[test]
fn both_kinds_of_slot_open_the_same_volume() {
    // Guards against a slot that wraps something else, and against bytes that do not survive
    // being written and read back.
    let (mut ring, keys) =
        Keyring::create(RootKey::random(), &passphrase("correct horse"), "", KdfParams::FLOOR)
            .unwrap();
    assert_eq!(ring.add_slot(&keys, &key_file(9), "backup host", KdfParams::FLOOR), Ok(2));
    let ring = Keyring::parse(&ring.to_bytes()).unwrap();
    for secret in [passphrase("correct horse"), key_file(9)] {
        let unlocked = ring.unlock(&secret).unwrap();
        assert_eq!(unlocked.volume_id(), keys.volume_id());
        assert_eq!(unlocked.object_key(1, "x").expose(), keys.object_key(1, "x").expose());
    }
    assert_eq!(ring.unlock(&passphrase("battery")).err(), Some(KeyringError::WrongPassphrase));
    assert_eq!(ring.unlock(&key_file(8)).err(), Some(KeyringError::WrongKeyFile));
    assert_eq!(ring.generation(), 2);
    let slots = ring.slots().unwrap();
    assert_eq!(slots[0].kdf, Some(KdfParams::FLOOR));
    assert_eq!((slots[1].id, slots[1].label.as_str(), slots[1].kdf), (2, "backup host", None));
}

#[test]
fn damage_is_not_reported_as_a_wrong_passphrase() {
    // Guards against a person doubting their passphrase when a byte rotted: flip every byte.
    let bytes = cheap().0.to_bytes();
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        let error = Keyring::parse(&bad).unwrap_err();
        match at {
            0..8 => assert_eq!(error, KeyringError::NotAKeyring),
            8 => assert_eq!(error, KeyringError::Version(0)),
            9 => assert_eq!(error, KeyringError::Suite(0)),
            _ => assert!(matches!(error, KeyringError::Damaged(_)), "byte {at}: {error}"),
        }
        assert!(Keyring::parse(&bytes[..at]).is_err(), "cut to {at}");
    }
}

#[test]
fn an_attacker_who_fixes_the_checksum_changes_nothing_unnoticed() {
    // Guards against an unauthenticated field (generation, epoch, label, kind, cost): flip every
    // byte and make the checksum fit; it must never unlock.
    let bytes = cheap().0.to_bytes();
    for at in 10..bytes.len() - CHECKSUM {
        let bad = rechecked(&bytes, |body| body[at] ^= 1);
        let unlocked = Keyring::parse(&bad).and_then(|ring| ring.unlock(&key_file(1)));
        assert!(unlocked.is_err(), "byte {at}");
    }
    let bad = rechecked(&bytes, |body| body[19] ^= 1);
    let ring = Keyring::parse(&bad).unwrap();
    assert_eq!(ring.unlock(&key_file(1)).err(), Some(KeyringError::Altered));
}

#[test]
fn a_slot_moved_to_another_volume_does_not_open() {
    // Guards against a swapped keyring: the wrap is bound to the volume id and its own header.
    let (ours, _) = cheap();
    let (mut theirs, _) =
        Keyring::create(RootKey::random(), &key_file(1), "laptop", KdfParams::FLOOR).unwrap();
    theirs.slots = ours.slots.clone();
    assert_eq!(theirs.unlock(&key_file(1)).err(), Some(KeyringError::WrongKeyFile));
    let mut relabelled = ours;
    relabelled.slots[0].label = "Laptop".into();
    assert_eq!(relabelled.unlock(&key_file(1)).err(), Some(KeyringError::WrongKeyFile));
}

#[test]
fn derivation_costs_out_of_bounds_are_refused_before_they_run() {
    // Guards against a forged keyring that takes the machine's memory or hours, or one that
    // asks for a cheap derivation: it must fail at once, naming the slot.
    let (mut ring, _) = Keyring::create(root(), &passphrase("x"), "", KdfParams::FLOOR).unwrap();
    let made_costs = ring.slots[0].params.clone();
    let cases = [(0, u32::MAX), (0, 8), (4, 65), (4, 1), (8, 17), (8, 0)];
    for (at, number) in cases {
        ring.slots[0].params = made_costs.clone();
        ring.slots[0].params[33 + at..37 + at].copy_from_slice(&u32::to_be_bytes(number));
        let begun = std::time::Instant::now();
        let error = ring.unlock(&passphrase("x")).unwrap_err();
        assert!(matches!(error, KeyringError::KdfOutOfBounds { slot: 1, .. }), "{error}");
        assert!(begun.elapsed().as_millis() < 100);
    }
    let cheap = KdfParams { memory_kib: 1024, passes: 1, lanes: 1 };
    assert!(Keyring::create(root(), &passphrase("x"), "", cheap).is_err());
    assert!(KdfParams::default().acceptable());
}

#[test]
fn a_slot_of_a_newer_sealfs_is_kept_and_named() {
    // Guards against dropping or tripping over a slot kind (AWS KMS) that comes later.
    let (mut ring, keys) = cheap();
    let kms = Slot {
        id: 2,
        kind: SlotKind::Unknown(3),
        label: "kms".into(),
        params: vec![1, 2, 3],
        wrap: vec![4; 200],
    };
    ring.slots.push(kms.clone());
    ring.next_slot = 3;
    ring.changed(&keys);
    let mut ring = Keyring::parse(&ring.to_bytes()).unwrap();
    assert_eq!(ring.slots[1], kms);
    assert!(ring.unlock(&key_file(1)).is_ok());
    let error = ring.unlock(&passphrase("x")).unwrap_err();
    assert_eq!(error.to_string(), "the keyring has no passphrase slot, only: key file, AWS KMS");
    // The one slot we can open must not be removed for the sake of one we cannot.
    assert_eq!(ring.remove_slot(&keys, 1), Err(KeyringError::LastSlot(1)));
    assert_eq!(ring.remove_slot(&keys, 2), Ok(()));
}

#[test]
fn a_removed_slot_no_longer_opens_and_its_number_is_not_reused() {
    // Guards against a removed passphrase that still works, or a listing that confuses slots.
    let (mut ring, keys) = cheap();
    ring.add_slot(&keys, &key_file(2), "", KdfParams::FLOOR).unwrap();
    ring.remove_slot(&keys, 2).unwrap();
    assert_eq!(ring.unlock(&key_file(2)).err(), Some(KeyringError::WrongKeyFile));
    assert_eq!(ring.add_slot(&keys, &key_file(3), "", KdfParams::FLOOR), Ok(3));
    assert_eq!(ring.remove_slot(&keys, 9), Err(KeyringError::NoSuchSlot(9)));
    assert_eq!(ring.generation(), 4);
    let other = VolumeKeys::random_for_tests(1);
    let error = ring.remove_slot(&other, 1).unwrap_err();
    assert!(matches!(error, KeyringError::OtherVolume { .. }), "{error}");
}

#[test]
fn secrets_that_protect_nothing_are_refused() {
    // Guards against an empty passphrase file or a truncated key file making a volume.
    let create = |secret: &Secret| Keyring::create(root(), secret, "", KdfParams::FLOOR).err();
    assert_eq!(create(&passphrase("")), Some(KeyringError::EmptyPassphrase));
    let short = Secret::KeyFile(Zeroizing::new(vec![1; 31]));
    assert_eq!(create(&short), Some(KeyringError::KeyFileLength(31)));
    let bad_label = Keyring::create(root(), &key_file(1), "a\nb", KdfParams::FLOOR);
    assert_eq!(bad_label.err(), Some(KeyringError::Label));
    assert_eq!(format!("{:?}", passphrase("hunter2")), "passphrase(7 bytes)");
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        // Guards against an index or allocation taken from an unchecked length: random bodies
        // behind a valid magic, version, suite and checksum.
        let mut body = [&MAGIC[..], &[VERSION, SUITE, 0, 0]].concat();
        body.extend_from_slice(&bytes);
        let checksum = Sha256::digest(&body);
        body.extend_from_slice(&checksum);
        if let Ok(ring) = Keyring::parse(&body) {
            prop_assert_eq!(ring.to_bytes(), body);
            let _ = ring.slots();
        }
    }

    #[test]
    fn changed_lengths_never_panic(at in 12usize..170, value in any::<u8>()) {
        // Guards as above, near a real keyring.
        let bytes = rechecked(&cheap().0.to_bytes(), |body| body[at] = value);
        if let Ok(ring) = Keyring::parse(&bytes) {
            prop_assert_eq!(ring.to_bytes(), bytes);
        }
    }
}
