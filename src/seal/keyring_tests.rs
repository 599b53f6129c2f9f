//! Tests of `keyring.rs`, `keyring_bytes.rs` and `slots.rs`, attacks on them above all.

use super::super::kem::ENCAPSULATION;
use super::super::recovery::RecoveryKey;
use super::super::slots::Wrap;
use super::*;
use crate::seal::{Kept, KmsSlot};
use proptest::prelude::*;
use zeroize::Zeroizing;

const CHECKSUM: usize = 32;
const NOW: u64 = 1_800_000_000;

fn passphrase(text: &str) -> Secret {
    Secret::Passphrase(Zeroizing::new(text.as_bytes().to_vec()))
}

fn key_file(byte: u8) -> Secret {
    Secret::KeyFile(Zeroizing::new(vec![byte; 40]))
}

fn root() -> RootKey {
    RootKey::from_bytes(&[7; 32])
}

fn create(root: RootKey, secret: &Secret) -> Result<(Keyring, VolumeKeys), KeyringError> {
    Keyring::create(root, secret, "laptop", KdfParams::FLOOR, NOW)
}

/// A keyring with a key file slot (which costs nothing to open).
fn cheap() -> (Keyring, VolumeKeys) {
    create(root(), &key_file(1)).unwrap()
}

fn add(ring: &mut Keyring, keys: &VolumeKeys, byte: u8) -> Result<u32, KeyringError> {
    ring.add_slot(keys, &key_file(byte), "", KdfParams::FLOOR, NOW)
}

/// The keyring that a reader gets.
fn written(ring: &Keyring) -> Keyring {
    Keyring::parse(&ring.to_bytes()).unwrap()
}

fn opens(ring: &Keyring, byte: u8) -> Option<KeyringError> {
    written(ring).unlock(&key_file(byte)).err()
}

/// The bytes after `change`, with a checksum that fits again: what an attacker can do.
fn rechecked(bytes: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = bytes[..bytes.len() - CHECKSUM].to_vec();
    change(&mut body);
    let checksum = Sha256::digest(&body);
    body.extend_from_slice(&checksum);
    body
}

/// A header of an object that these keys sealed.
fn sealed(keys: &VolumeKeys) -> [u8; 56] {
    *keys.object("x").seal(b"contents").first_chunk().unwrap()
}

#[test]
fn both_kinds_of_slot_open_the_same_volume() {
    // Guards against a slot that wraps something else, and against bytes that do not survive
    // being written and read back.
    let (mut ring, keys) = create(RootKey::random(), &passphrase("correct horse")).unwrap();
    let added = ring.add_slot(&keys, &key_file(9), "backup host", KdfParams::FLOOR, NOW + 5);
    assert_eq!(added, Ok(2));
    let ring = written(&ring);
    for secret in [passphrase("correct horse"), key_file(9)] {
        let unlocked = ring.unlock(&secret).unwrap();
        assert_eq!(unlocked.volume_id(), keys.volume_id());
        assert!(unlocked.object_opener("x", &sealed(&keys)).is_ok());
    }
    assert_eq!(ring.unlock(&passphrase("battery")).err(), Some(KeyringError::WrongPassphrase));
    assert_eq!(ring.unlock(&key_file(8)).err(), Some(KeyringError::WrongKeyFile));
    assert_eq!((ring.revision(), ring.epoch()), (2, 1));
    let slots = ring.slots();
    assert_eq!((slots[0].kdf, slots[0].made_secs), (Some(KdfParams::FLOOR), NOW));
    assert_eq!((slots[1].id, slots[1].label.as_str(), slots[1].kdf), (2, "backup host", None));
    assert_eq!((slots[1].made_secs, slots[1].made_epoch), (NOW + 5, 1));
}

#[test]
fn a_recovery_key_opens_what_it_was_made_for() {
    // Guards against a key on paper that opens nothing on the day it is needed.
    let (mut ring, keys) = cheap();
    let recovery = Secret::Recovery(RecoveryKey::from_bytes(&[5; 32]));
    ring.add_slot(&keys, &recovery, "paper", KdfParams::FLOOR, NOW).unwrap();
    ring.rotate(&keys).unwrap();
    assert_eq!(written(&ring).unlock(&recovery).unwrap().epoch(), 2);
    let other = Secret::Recovery(RecoveryKey::random());
    assert_eq!(ring.unlock(&other).err(), Some(KeyringError::WrongRecoveryKey));
    assert_eq!(format!("{recovery:?}"), "recovery key(32 bytes)");
    assert_eq!(ring.slots()[1].kind, SlotKind::Recovery);
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
            8 => assert_eq!(error, KeyringError::Version(3)),
            9 => assert_eq!(error, KeyringError::Suite(0)),
            _ => assert!(matches!(error, KeyringError::Damaged(_)), "byte {at}: {error}"),
        }
        assert!(Keyring::parse(&bytes[..at]).is_err(), "cut to {at}");
    }
}

#[test]
fn a_keyring_of_format_1_is_refused_in_a_sentence() {
    // Guards against "damaged" for a volume that an earlier sealfs made and that is whole.
    let error = Keyring::parse(b"SEALFSKR\x01\x01\0\0 and what follows").unwrap_err();
    assert_eq!(error, KeyringError::Version(1));
    assert!(error.to_string().starts_with("the volume has format 1"), "{error}");
    assert!(error.hint().unwrap().contains("copy the files"));
}

#[test]
fn an_attacker_who_fixes_the_checksum_changes_nothing_unnoticed() {
    // Guards against an unauthenticated field (flags, revision, epoch, label, kind, cost, times,
    // public key, what is kept of earlier epochs): flip a bit of every byte of a keyring in its
    // second epoch and make the checksum fit; it must never unlock.
    let (mut ring, keys) = cheap();
    ring.rotate(&keys).unwrap();
    let bytes = ring.to_bytes();
    let (_, seed) = ring.find(&key_file(1)).unwrap();
    for at in 10..bytes.len() - CHECKSUM {
        let bad = rechecked(&bytes, |body| body[at] ^= 1);
        let unlocked = Keyring::parse(&bad).and_then(|ring| ring.open(1, &seed));
        assert!(unlocked.is_err(), "byte {at}");
    }
    let bad = rechecked(&bytes, |body| body[43] ^= 2);
    assert_eq!(opens(&Keyring::parse(&bad).unwrap(), 1), Some(KeyringError::Altered));
}

#[test]
fn features_that_are_not_known_are_refused_as_far_as_they_say() {
    // Guards against writing on, or reading, what a newer version has made differently, and
    // against a flag that somebody flipped who has no key.
    let (mut ring, keys) = cheap();
    let flags = |at: usize| Keyring::parse(&rechecked(&ring.to_bytes(), |body| body[at] ^= 4));
    assert_eq!(opens(&flags(19).unwrap(), 1), Some(KeyringError::Altered));
    assert_eq!(opens(&flags(27).unwrap(), 1), Some(KeyringError::Altered));
    assert_eq!(flags(35).unwrap_err(), KeyringError::Features(4));
    ring.features = Features { compatible: 8, read_only_compatible: 16, incompatible: 0 };
    ring.changed(&keys.root());
    let mut ring = written(&ring);
    assert_eq!(opens(&ring, 1), None);
    assert_eq!(ring.check_writable(), Err(KeyringError::ReadOnlyFeatures(16)));
    assert_eq!(add(&mut ring, &keys, 2), Err(KeyringError::ReadOnlyFeatures(16)));
    assert!(ring.rotate(&keys).is_err());
}

#[test]
fn a_slot_moved_or_renamed_does_not_open() {
    // Guards against swapped slots: each is bound to its volume, number, label and parameters by
    // what is sealed in it, before any MAC.
    let (ours, keys) = cheap();
    let (mut theirs, _) = create(RootKey::random(), &key_file(1)).unwrap();
    theirs.slots = ours.slots.clone();
    assert_eq!(theirs.unlock(&key_file(1)).err(), Some(KeyringError::Altered));
    let (_, seed) = ours.find(&key_file(1)).unwrap();
    let changes: [fn(&mut Slot); 5] = [
        |slot| slot.label = "Laptop".into(),
        |slot| slot.id = 3,
        |slot| slot.made_secs += 1,
        |slot| slot.made_epoch += 1,
        |slot| slot.kind = SlotKind::Passphrase,
    ];
    for change in changes {
        let mut changed = ours.clone();
        change(&mut changed.slots[0]);
        // Even by somebody who can make the MAC.
        changed.changed(&keys.root());
        let id = changed.slots[0].id;
        assert_eq!(changed.open(id, &seed).err(), Some(KeyringError::Altered));
    }
    let mut swapped = ours;
    add(&mut swapped, &keys, 2).unwrap();
    let wrap = swapped.slots[1].wrap.clone();
    swapped.slots[1].wrap = std::mem::replace(&mut swapped.slots[0].wrap, wrap);
    swapped.changed(&keys.root());
    assert_eq!(opens(&swapped, 1), Some(KeyringError::Altered));
    assert_eq!(opens(&swapped, 2), Some(KeyringError::Altered));
}

#[test]
fn a_root_of_somebody_else_sealed_for_our_public_key_is_refused() {
    // Guards against a whole new volume put in this one's place: public keys and parameters are
    // there for everybody to read, so the attacker seals a root of his own for our slot and makes
    // everything else right. Our passphrase must not open it, on a machine that knows nothing.
    let (ours, _) = cheap();
    let evil = RootKey::from_bytes(&[0xE; 32]);
    let (mut forged, evil_keys) = create(evil.clone(), &key_file(66)).unwrap();
    let mut slot = ours.slots[0].clone();
    slot.hold(forged.volume, 1, &evil).unwrap();
    forged.slots = vec![slot.clone()];
    forged.changed(&evil);
    assert_eq!(opens(&forged, 1), Some(KeyringError::Altered), "as another volume");
    // Under our volume's id, which its first key proves.
    forged.volume = ours.volume;
    forged.slots[0].hold(ours.volume, 1, &evil).unwrap();
    forged.changed(&evil);
    assert_eq!(opens(&forged, 1), Some(KeyringError::Altered), "under our id");
    // With an anchor of his own, of which he does not have the key.
    let (other, _) = create(evil, &key_file(1)).unwrap();
    forged.slots[0].anchor = other.slots[0].anchor.clone();
    forged.changed(&evil_keys.root());
    assert_eq!(opens(&forged, 1), Some(KeyringError::Altered), "with another anchor");
}

#[test]
fn a_slot_made_after_somebody_was_removed_refuses_what_he_makes() {
    // Guards against a machine that has seen nothing: somebody who was removed knows the first root and so the
    // volume's id, and seals a root of his own for the public key of a slot that was made since. Its
    // anchor is of an epoch that he never knew.
    let (mut ring, keys) = cheap();
    let before = ring.clone();
    let newer = ring.rotate(&keys).unwrap();
    add(&mut ring, &newer, 3).unwrap();
    for epochs in 0..3 {
        let (mut forged, mut evil) = (before.clone(), keys.clone());
        for _ in 0..epochs {
            evil = forged.rotate(&evil).unwrap();
        }
        let mut slot = ring.slots[1].clone();
        slot.hold(forged.volume, forged.epoch, &evil.root()).unwrap();
        forged.slots.push(slot);
        forged.changed(&evil.root());
        assert_eq!(opens(&forged, 1), None, "his own history is a good one");
        assert_eq!(opens(&forged, 3), Some(KeyringError::Altered), "{epochs} epochs on");
    }
}

#[test]
fn derivation_costs_out_of_bounds_are_refused_before_they_run() {
    // Guards against a forged keyring that takes the machine's memory or hours, or one that
    // asks for a cheap derivation: it must fail at once, naming the slot.
    let (mut ring, _) = create(root(), &passphrase("x")).unwrap();
    let made_costs = ring.slots[0].params.clone();
    let cases = [(0, u32::MAX), (0, 8), (4, 65), (4, 1), (8, 17), (8, 0)];
    for (at, number) in cases {
        ring.slots[0].params = made_costs.clone();
        ring.slots[0].params[33 + at..37 + at].copy_from_slice(&u32::to_be_bytes(number));
        let error = ring.unlock(&passphrase("x")).unwrap_err();
        assert!(matches!(error, KeyringError::KdfOutOfBounds { slot: 1, .. }), "{error}");
    }
    let cheap = KdfParams { memory_kib: 1024, passes: 1, lanes: 1 };
    assert!(Keyring::create(root(), &passphrase("x"), "", cheap, NOW).is_err());
    assert!(KdfParams::default().acceptable());
}

#[test]
fn many_slots_that_cost_too_much_together_are_refused_before_the_first_is_tried() {
    // Guards against a forged keyring of 32 slots, each at the ceiling: hours of work for every
    // mount. The secret given opens none of them; with the bound gone this test takes hours.
    let (mut ring, keys) = create(root(), &passphrase("x")).unwrap();
    let KdfParams { memory_kib, passes, .. } = KdfParams::CEILING;
    for id in 2..=SLOTS_MAX as u32 {
        let mut slot = ring.slots[0].clone();
        slot.id = id;
        slot.params[33..37].copy_from_slice(&memory_kib.to_be_bytes());
        slot.params[37..41].copy_from_slice(&passes.to_be_bytes());
        ring.slots.insert(0, slot);
    }
    assert_eq!(ring.unlock(&passphrase("y")).err(), Some(KeyringError::KdfTotal { gib: 7936 }));
    // One at the ceiling is as much as may be, so nobody can add another by mistake.
    ring.slots.drain(1..SLOTS_MAX - 1);
    ring.changed(&keys.root());
    let added = ring.add_slot(&keys, &passphrase("z"), "", KdfParams::FLOOR, NOW);
    assert!(matches!(added, Err(KeyringError::KdfTotal { .. })), "{added:?}");
    assert_eq!(ring.slots.len(), 2);
}

#[test]
fn a_slot_of_a_newer_sealfs_is_kept_and_named() {
    // Guards against dropping or tripping over a slot kind that comes later; a rotation
    // gives it the new root, since its public key is all that takes.
    let (mut ring, keys) = cheap();
    let seed = Seed::from_bytes(&[3; 32]);
    let kms = Slot {
        id: 2,
        kind: SlotKind::Unknown(200),
        made_secs: 5,
        made_epoch: 1,
        label: "kms".into(),
        params: vec![1; 5000],
        public: seed.public(),
        anchor: vec![4; 104],
        wrap: Wrap { encapsulation: vec![5; ENCAPSULATION], root: vec![6; 104] },
    };
    ring.slots.push(kms.clone());
    ring.next_slot = 3;
    ring.changed(&keys.root());
    let mut ring = written(&ring);
    assert_eq!(ring.slots[1], kms);
    assert_eq!(opens(&ring, 1), None);
    let error = ring.unlock(&passphrase("x")).unwrap_err();
    assert_eq!(error.to_string(), "the keyring has no passphrase slot, only: key file, kind 200");
    add(&mut ring, &keys, 2).unwrap();
    assert_eq!(ring.slots[1], kms, "byte for byte");
    let newer = ring.rotate(&keys).unwrap();
    assert_eq!(ring.slots[1].head(), kms.head());
    let held = seed.decapsulate(&ring.slots[1].wrap.encapsulation).unwrap();
    let context = context::slot(ring.volume, 2, &ring.slots[1].before_root());
    assert_eq!(open(&held, &context, &ring.slots[1].wrap.root).unwrap(), newer.root().expose());
    // The slots we can open must not be removed for the sake of one we cannot.
    let newer = ring.remove_slot(&newer, 3).unwrap();
    assert_eq!(ring.remove_slot(&newer, 1).err(), Some(KeyringError::LastSlot(1)));
    assert!(ring.remove_slot(&newer, 2).is_ok());
}

#[test]
fn the_last_slot_that_opens_alone_goes_only_when_told() {
    // Guards against a volume that only AWS or a token opens, because somebody tidied up; and
    // against a refusal where something else opens alone.
    let (mut ring, keys) = cheap();
    let arn = "arn:aws:kms:eu-1:1:key/k";
    let kms = KmsSlot::new(arn, "eu-1", "", vec![1]).expect("fits");
    let kept = Secret::Kept(Kept::kms(Kept::random_seed(), &kms));
    ring.add_slot(&keys, &kept, "kms", KdfParams::FLOOR, 0).unwrap();
    assert_eq!(ring.remove_dispensable_slot(&keys, 1).err(), Some(KeyringError::LastOwnSlot(1)));
    assert_eq!(ring.remove_dispensable_slot(&keys, 9).err(), Some(KeyringError::NoSuchSlot(9)));
    add(&mut ring, &keys, 2).unwrap();
    let keys = ring.remove_dispensable_slot(&keys, 1).unwrap();
    let keys = ring.remove_dispensable_slot(&keys, 2).expect("that of KMS is not the last");
    assert_eq!(ring.remove_dispensable_slot(&keys, 3).err(), Some(KeyringError::LastSlot(3)));
}

#[test]
fn a_removed_slot_opens_nothing_that_is_sealed_from_then_on() {
    // Guards against a removal that only hides the slot: its owner kept his secret, the keyrings
    // of before, of in between and of after, and every root he could get from them.
    let (mut ring, keys) = cheap();
    add(&mut ring, &keys, 2).unwrap();
    let before = written(&ring);
    let known = before.unlock(&key_file(2)).unwrap();
    let newer = ring.remove_slot(&keys, 2).unwrap();
    assert_eq!((ring.epoch(), newer.epoch(), ring.old_roots()), (2, 2, vec![1]));
    assert_eq!(opens(&ring, 2), Some(KeyringError::WrongKeyFile));
    assert_eq!(opens(&ring, 1), None);
    // Neither his keys nor his root open what is new; ours open what is old.
    assert!(known.object_opener("x", &sealed(&newer)).is_err());
    assert!(newer.object_opener("x", &sealed(&known)).is_ok());
    // He puts his slot, which holds the old root, back into the keyring of now.
    let mut mixed = written(&ring);
    mixed.slots.push(before.slots[1].clone());
    assert_eq!(opens(&mixed, 2), Some(KeyringError::Altered));
    // Numbers are not used again, and keys of before do not change what is now.
    assert_eq!(add(&mut ring, &newer, 3), Ok(3));
    let stale = add(&mut ring, &keys, 4).unwrap_err();
    assert!(matches!(stale, KeyringError::OtherEpoch { keys: 1, keyring: 2 }), "{stale}");
    assert_eq!(ring.remove_slot(&newer, 9).err(), Some(KeyringError::NoSuchSlot(9)));
    assert_eq!(ring.revision(), 4);
    let other = VolumeKeys::random_for_tests(1);
    let error = ring.remove_slot(&other, 1).unwrap_err();
    assert!(matches!(error, KeyringError::OtherVolume { .. }), "{error}");
}

#[test]
fn a_keyring_forged_from_an_old_root_does_not_continue_what_a_machine_has_seen() {
    // Guards against somebody who was removed and goes on: he knows root 1 and everything of
    // before, and makes keyrings that our secret opens. A machine that was there in epoch 2
    // remembers its fingerprint, and must be able to tell.
    let (mut ring, keys) = cheap();
    add(&mut ring, &keys, 2).unwrap();
    let before = written(&ring);
    let known = before.unlock(&key_file(2)).unwrap();
    let ours = ring.remove_slot(&keys, 2).unwrap();
    let seen = (ours.epoch(), ours.fingerprint());
    let (mut forged, mut evil_root) = (before.clone(), known.root());
    for _ in 0..3 {
        // Our slot opens it: on a machine that has seen nothing, it is as good as another.
        let evil = forged.rotate(&forged.unlock(&key_file(2)).unwrap()).unwrap();
        assert!(!evil.holds(seen.0, &seen.1), "epoch {}", evil.epoch());
        evil_root = evil.root();
        let unlocked = forged.unlock(&key_file(1)).unwrap();
        assert!(!unlocked.holds(seen.0, &seen.1) && !ours.take_up(&unlocked));
    }
    assert!(!ours.take_up(&known), "an older one");
    // The true history does continue it, however far it goes.
    let mut newer = ours.clone();
    for _ in 0..3 {
        newer = ring.rotate(&newer).unwrap();
    }
    assert!(written(&ring).unlock(&key_file(1)).unwrap().holds(seen.0, &seen.1));
    assert!(ours.take_up(&newer));
    // What is kept of epoch 2 cannot be moved into the forged keyring either.
    let mut mixed = forged;
    mixed.old[1] = ring.old[1].clone();
    mixed.changed(&evil_root);
    assert_eq!(opens(&mixed, 1), Some(KeyringError::Altered));
}

#[test]
fn a_replaced_slot_takes_the_place_of_the_old_one_with_or_without_an_epoch() {
    // Guards against a changed passphrase that leaves the old one working, or nobody.
    let (mut ring, keys) = cheap();
    let replaced = ring.replace_slot(&keys, 1, &key_file(2), KdfParams::FLOOR, NOW, false);
    assert_eq!(replaced.unwrap().0, 2);
    assert_eq!((opens(&ring, 1), opens(&ring, 2)), (Some(KeyringError::WrongKeyFile), None));
    assert_eq!(
        (ring.epoch(), ring.slots()[0].label.as_str(), ring.slots().len()),
        (1, "laptop", 1)
    );
    let replaced = ring.replace_slot(&keys, 2, &key_file(3), KdfParams::FLOOR, NOW, true);
    let (id, newer) = replaced.unwrap();
    assert_eq!((id, newer.epoch(), ring.epoch()), (3, 2, 2));
    assert_eq!((opens(&ring, 2), opens(&ring, 3)), (Some(KeyringError::WrongKeyFile), None));
    let gone = ring.replace_slot(&newer, 1, &key_file(4), KdfParams::FLOOR, NOW, true);
    assert_eq!(gone.err(), Some(KeyringError::NoSuchSlot(1)));
}

#[test]
fn a_broken_chain_of_epochs_is_refused() {
    // Guards against a keyring whose earlier epochs were dropped, exchanged or put out of order,
    // even by somebody who knows the current root.
    let (mut ring, keys) = cheap();
    let keys = ring.rotate(&keys).unwrap();
    let keys = ring.rotate(&keys).unwrap();
    let changes: [fn(&mut Keyring); 5] = [
        |ring| drop(ring.old.remove(0)),
        |ring| ring.old.clear(),
        |ring| ring.old.reverse(),
        |ring| ring.old[1].epoch = 3,
        |ring| ring.old[1].sealed = ring.old[0].sealed.clone(),
    ];
    for (n, change) in changes.iter().enumerate() {
        let mut changed = ring.clone();
        change(&mut changed);
        changed.changed(&keys.root());
        let opened = Keyring::parse(&changed.to_bytes()).and_then(|r| r.unlock(&key_file(1)));
        assert!(opened.is_err(), "change {n}");
    }
    // A second one may go when nothing rests on it: no slot was made in it.
    ring.old.remove(1);
    ring.changed(&keys.root());
    assert_eq!(opens(&ring, 1), None);
}

#[test]
fn a_retired_root_leaves_its_local_key_and_nothing_more() {
    // Guards against an old root that opens objects for ever, and against a machine that was away
    // meanwhile and is locked out: it remembers the fingerprint of an epoch whose root has left.
    let (mut ring, first) = cheap();
    let newer = ring.rotate(&first).unwrap();
    let later = ring.retire_root(&newer, 1).unwrap();
    let read = written(&ring).unlock(&key_file(1)).unwrap();
    assert_eq!((ring.old_roots(), read.epochs()), (vec![], vec![2]));
    assert!(read.object_opener("x", &sealed(&first)).is_err());
    assert!(read.holds(1, &first.fingerprint()));
    assert_eq!(read.name_hash_key(), first.name_hash_key());
    assert_eq!(ring.retire_root(&later, 1).err(), Some(KeyringError::NoSuchEpoch(1)));
    assert_eq!(ring.retire_root(&later, 2).err(), Some(KeyringError::NoSuchEpoch(2)));
    // The next rotation does not bring it back.
    let third = ring.rotate(&later).unwrap();
    assert_eq!((ring.old_roots(), third.epochs()), (vec![2], vec![3, 2]));
    assert_eq!(opens(&ring, 1), None);
}

#[test]
fn the_numbers_of_slots_and_epochs_are_bounded() {
    // Guards against a keyring that grows until it is refused: the largest that can be made is
    // read, what is beyond is not made, and room is made where nothing is lost by it.
    let (mut ring, keys) = cheap();
    for n in 1..SLOTS_MAX {
        add(&mut ring, &keys, n as u8).unwrap();
    }
    assert_eq!(add(&mut ring, &keys, 99), Err(KeyringError::Full));
    for slot in &mut ring.slots {
        slot.params.resize(super::super::keyring_bytes::PARAMS_MAX, 0);
    }
    let root = keys.root();
    let old =
        |epoch: u32, secret: EpochSecret| OldEpoch::of(ring.volume, 1025, &root, &(epoch, secret));
    let local = old(2, EpochSecret::Local(RootKey::from_bytes(&[2; 32]).local()));
    let roots = |n: u32| old(n, EpochSecret::Root(RootKey::from_bytes(&[7; 32])));
    let full: Vec<OldEpoch> = (1..=OLD_EPOCHS_MAX as u32).map(roots).collect();
    ring.epoch = 1025;
    ring.old = full.clone();
    ring.changed(&root);
    assert!(written(&ring) == ring, "the largest");
    let keys = VolumeKeys::from_epochs(ring.volume, ring.epochs(&root).unwrap());
    assert_eq!(ring.rotate(&keys).err(), Some(KeyringError::TooManyEpochs));
    assert_eq!((ring.epoch, ring.old.len()), (1025, OLD_EPOCHS_MAX), "as it was");
    ring.old[1] = local;
    ring.changed(&root);
    let newer = ring.rotate(&keys).unwrap();
    assert_eq!((newer.epoch(), ring.old.len(), ring.old[1].epoch), (1026, OLD_EPOCHS_MAX, 3));
}

#[test]
fn secrets_that_protect_nothing_are_refused() {
    // Guards against an empty passphrase file or a truncated key file making a volume.
    let made = |secret: &Secret| create(root(), secret).err();
    assert_eq!(made(&passphrase("")), Some(KeyringError::EmptyPassphrase));
    let short = Secret::KeyFile(Zeroizing::new(vec![1; 31]));
    assert_eq!(made(&short), Some(KeyringError::KeyFileLength(31)));
    let bad_label = Keyring::create(root(), &key_file(1), "a\nb", KdfParams::FLOOR, NOW);
    assert_eq!(bad_label.err(), Some(KeyringError::Label));
    assert_eq!(format!("{:?}", passphrase("hunter2")), "passphrase(7 bytes)");
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        // Guards against an index or allocation taken from an unchecked length: random bodies
        // behind a valid magic, version, suite and checksum.
        let mut body = b"SEALFSKR\x02\x01\0\0".to_vec();
        body.extend_from_slice(&[0; 24]);
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
