//! Known answers: the published vectors of C2SP `chunked-encryption` (Wycheproof), and our own
//! of every version of docs/FORMAT.md ever released.

use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use sealfs::base::{ChainValue, Ino, JournalId, SegmentId, Timestamp, VolumeId};
use sealfs::commit::{Batch, CloneSource, DataOp, RowOp};
use sealfs::meta::{Inode, InodeExtent, Kind, NameHash, keys::dirent};
use sealfs::seal::{
    Backend, CHUNK_CIPHER, HEADER, InputKey, KdfParams, Keyring, KmsSlot, OpenError, Opener,
    RecoveryKey, RootKey, Secret, Seed, SlotKind, VolumeKeys, offsets, open_with, seal_with_salt,
};
use sealfs::stack::{Nobody, open_age};
use sealfs::store::SegmentStore;
use sealfs::store::segments::{Layout, Owned, has_frames};
use serde_json::Value;
use sha2::{Digest, Sha256, Sha512};
use std::sync::Arc;
use zeroize::Zeroizing;

const BACKENDS: [Backend; 2] = [Backend::Reference, Backend::Bulk];

fn hex(text: &Value) -> Vec<u8> {
    let text = text.as_str().expect("a hex string");
    let byte = |i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex digits");
    (0..text.len()).step_by(2).map(byte).collect()
}

fn key(text: &Value) -> Option<InputKey> {
    Some(InputKey::from_bytes(&hex(text).try_into().ok()?))
}

/// Opens as a streaming reader would, a chunk at a time: the plaintext before the first error.
fn open_by_chunk(key: &InputKey, context: &[u8], message: &[u8]) -> (Vec<u8>, bool) {
    let mut out = vec![];
    let Some((header, body)) = message.split_first_chunk::<HEADER>() else { return (out, false) };
    let Ok(opener) = Opener::new(key, context, header) else { return (out, false) };
    let mut rest = body;
    for number in 0.. {
        let ends = rest.len() < CHUNK_CIPHER;
        let (chunk, later) = rest.split_at(rest.len().min(CHUNK_CIPHER));
        if opener.open_chunks(number, chunk, ends, &mut out).is_err() {
            return (out, false);
        }
        if ends {
            break;
        }
        rest = later;
    }
    (out, true)
}

/// Opens the last chunk only, as one does to learn a length that can be believed.
fn open_last(key: &InputKey, context: &[u8], message: &[u8]) -> bool {
    let Some(plain_len) = offsets::plain_len(message.len() as u64) else { return false };
    let Ok(opener) = Opener::new(key, context, message.first_chunk().expect("long enough")) else {
        return false;
    };
    let last = offsets::last_chunk(plain_len);
    let cipher = &message[last.cipher.start as usize..last.cipher.end as usize];
    opener.open_chunks(last.first_chunk, cipher, true, &mut vec![]).is_ok()
}

#[test]
fn every_published_vector_gives_the_published_result() {
    // Guards against a Cobblestone of our own: each of the 35 vectors, valid and invalid, with
    // both backends, whole, chunk by chunk and from the end; valid ones are sealed again.
    let text = include_str!("../vectors/c2sp_chunked_encryption_aes_256_gcm_test.json");
    let file: Value = serde_json::from_str(text).expect("the vector file is JSON");
    let mut count = 0;
    for group in file["testGroups"].as_array().expect("groups") {
        assert_eq!(group["aead"], "AEAD_AES_256_GCM");
        for test in group["tests"].as_array().expect("tests") {
            count += 1;
            check_published(test);
        }
    }
    assert_eq!(count, file["numberOfTests"].as_u64().expect("a count"));
}

fn check_published(test: &Value) {
    let id = &test["tcId"];
    let flag = |name: &str| test["flags"].as_array().expect("flags").iter().any(|f| f == name);
    let context = hex(&test["ctx"]);
    let message = miniz_oxide::inflate::decompress_to_vec_zlib(&hex(&test["ct"])).expect("zlib");
    let Some(key) = key(&test["key"]) else {
        assert!(flag("InvalidKeySize"), "{id}: our keys have 32 bytes by type");
        return;
    };
    let digest_fits = |plain: &[u8]| {
        plain.len() as u64 == test["msgLength"].as_u64().expect("msgLength")
            && Sha512::digest(plain)[..] == hex(&test["msgSha512"])
    };
    let valid = test["result"] == "valid";
    for backend in BACKENDS {
        let opened = open_with(backend, &key, &context, &message);
        assert_eq!(opened.is_ok(), valid, "{id} with {backend:?}: {:?}", opened.err());
        match opened {
            Ok(plain) => {
                assert!(digest_fits(&plain), "{id} with {backend:?}");
                let salt = message.first_chunk().expect("a salt");
                assert_eq!(seal_with_salt(backend, &key, &context, salt, &plain), message, "{id}");
            }
            Err(OpenError::TooShort(_) | OpenError::Commitment) => {
                assert!(flag("HeaderFailure") || message.len() < HEADER + 16, "{id}");
            }
            Err(OpenError::BadLength(_)) => {
                assert!(flag("Truncation") || flag("TrailingData"), "{id}");
            }
            Err(OpenError::Chunk(_)) => assert!(!flag("HeaderFailure"), "{id}"),
        }
    }
    let (prefix, whole) = open_by_chunk(&key, &context, &message);
    assert_eq!(whole, valid, "{id} chunk by chunk");
    match valid || flag("PartialPlaintext") {
        true => assert!(digest_fits(&prefix), "{id}: {} bytes", prefix.len()),
        false => assert!(prefix.is_empty(), "{id}"),
    }
    let from_the_end = open_last(&key, &context, &message);
    assert_eq!(from_the_end, valid || flag("ValidFinalChunk"), "{id} from the end");
}

fn plain_bytes(len: u64) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn check_message(vector: &Value, key: &InputKey, context: &[u8]) {
    assert_eq!(&key.expose()[..], hex(&vector["key"]), "{vector}");
    assert_eq!(context, hex(&vector["context"]), "{vector}");
    let plain = plain_bytes(vector["plain_len"].as_u64().expect("plain_len"));
    let salt = hex(&vector["salt"]).try_into().expect("24 bytes");
    for backend in BACKENDS {
        let message = seal_with_salt(backend, key, context, &salt, &plain);
        assert_eq!(message.len() as u64, vector["message_len"].as_u64().expect("message_len"));
        assert_eq!(Sha256::digest(&message)[..], hex(&vector["message_sha256"]));
        assert_eq!(open_with(backend, key, context, &message), Ok(plain.clone()));
        if vector["message"].is_string() {
            assert_eq!(message, hex(&vector["message"]));
        }
    }
}

fn vectors_v2() -> (Value, Vec<u8>, VolumeKeys) {
    let v: Value = serde_json::from_str(include_str!("../vectors/format_v2.json")).expect("JSON");
    let bytes = hex(&v["keyring"]["bytes"]);
    let key_file = Secret::KeyFile(Zeroizing::new(hex(&v["keyring"]["key_file"])));
    let keys = Keyring::parse(&bytes).expect("parses").unlock(&key_file).expect("it unlocks");
    (v, bytes, keys)
}

#[test]
fn format_version_2_is_what_the_format_page_says() {
    // Guards against a change of any byte at rest: ids, keys, contexts, messages of objects,
    // journal, state and directory entries, as the independent Python implementation made them.
    let (v, _, keys) = vectors_v2();
    let root = RootKey::from_bytes(&hex(&v["root_keys"][0]).try_into().expect("32 bytes"));
    let first = VolumeKeys::from_root(root);
    for keys in [&first, &keys] {
        assert_eq!(keys.volume_id(), VolumeId(hex(&v["volume_id"]).try_into().expect("16 bytes")));
        assert_eq!(&keys.name_hash_key()[..], hex(&v["name_hash_key"]));
        assert!(keys.holds(1, &hex(&v["fingerprint_of_epoch_1"])));
    }
    for entry in v["entries"].as_array().expect("entries") {
        let (parent, name) = (entry["parent"].as_u64().expect("a number"), hex(&entry["name"]));
        let hash = NameHash::of(&keys.name_hash_key(), &name);
        assert_eq!(&*dirent(Ino(parent), hash, &name), hex(&entry["key"]));
    }
    for object in v["objects"].as_array().expect("objects") {
        let epoch = object["epoch"].as_u64().expect("an epoch") as u32;
        let name = object["name"].as_str().expect("a name");
        // The root of epoch 1 has left the keyring.
        let keys = if epoch == 1 { &first } else { &keys };
        let key = keys.object_key(epoch, name).expect("its root");
        check_message(object, &key, &keys.object_context(epoch, name));
    }
    for object in v["log"].as_array().expect("objects of the log") {
        let epoch = object["epoch"].as_u64().expect("an epoch") as u32;
        let name = object["name"].as_str().expect("a name");
        let behind = hex(&object["behind"]).try_into().expect("a commitment");
        let keys = if epoch == 1 { &first } else { &keys };
        let key = keys.object_key(epoch, name).expect("its root");
        check_message(object, &key, &keys.log_context(epoch, name, &behind));
    }
    let mut value = ChainValue::default();
    for commit in v["chain"].as_array().expect("commits") {
        let number = commit["number"].as_u64().expect("a number");
        let writer = hex(&commit["writer"]).try_into().expect("16 bytes");
        value = keys.history_key().next(value, number, &writer);
        assert_eq!(&value.0[..], hex(&commit["value"]), "the same in every epoch");
    }
    let j = &v["journal"];
    let journal = JournalId(hex(&j["journal_id"]).try_into().expect("16 bytes"));
    let place = first.journal(journal, 1, 7);
    check_message(j, place.key(), place.context());
    let record = keys.open_journal(journal, 1, 7, &hex(&j["message"]));
    assert_eq!(record, Ok(plain_bytes(50)), "of an epoch whose root has left");
    let file_name = v["state"]["file_name"].as_str().expect("a name");
    let (_, _, place) = first.state(file_name);
    check_message(&v["state"], place.key(), place.context());
    let state = keys.open_state(1, file_name, &hex(&v["state"]["message"]));
    assert_eq!(state, Ok(plain_bytes(50)));
}

#[test]
fn inode_rows_of_format_version_2_are_what_the_format_page_says() {
    // Guards against a row that another program, written from the page, reads as something else.
    let (v, ..) = vectors_v2();
    let mut worked = 0;
    for row in v["inodes"].as_array().expect("inodes") {
        let number = |name: &str| row[name].as_u64().expect("a number");
        let short = |name: &str| number(name) as u32;
        let time = |name: &str| Timestamp {
            secs: row[name][0].as_i64().expect("seconds"),
            nanos: row[name][1].as_u64().expect("nanoseconds") as u32,
        };
        let kinds = [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::CharDev];
        let inode = Inode {
            kind: kinds[number("kind") as usize - 1],
            perm: number("perm") as u16,
            nlink: short("nlink"),
            uid: short("uid"),
            gid: short("gid"),
            rdev: short("rdev"),
            size: number("size"),
            allocated: number("allocated"),
            atime: time("atime"),
            mtime: time("mtime"),
            ctime: time("ctime"),
            btime: time("btime"),
            incarnation: short("incarnation"),
            xattrs: short("xattrs"),
            parent: Ino(number("parent")),
            target: hex(&row["target"]).into(),
        };
        let extent = row["extent"].as_object().map(|e| InodeExtent {
            start: e["start"].as_u64().expect("a number"),
            len: e["len"].as_u64().expect("a number"),
            segment: SegmentId(hex(&e["segment"]).try_into().expect("16 bytes")),
            segment_offset: e["offset"].as_u64().expect("a number"),
        });
        let bytes = hex(&row["row"]);
        assert_eq!(inode.encode_with(extent.as_ref()), bytes, "{row}");
        assert_eq!(Inode::decode_with(&bytes), Ok((inode, extent)), "{row}");
        let page = include_str!("../../docs/FORMAT.md").replace(' ', "");
        worked += usize::from(page.contains(row["row"].as_str().expect("hex")));
    }
    assert_eq!(worked, 1, "the worked row is one of them");
}

#[test]
fn a_keyring_of_format_version_2_opens() {
    // Guards against a keyring that an old release wrote no longer opening, and against reading
    // it differently from the independent implementation that made this one.
    let (v, bytes, _) = vectors_v2();
    let ring = Keyring::parse(&bytes).expect("it parses");
    assert_eq!(ring.to_bytes(), bytes);
    assert_eq!((ring.revision(), ring.epoch(), ring.old_roots()), (5, 3, vec![2]));
    assert_eq!(ring.slots()[1].label, "kleiner Schlüssel");
    assert_eq!((ring.slots()[1].made_secs, ring.slots()[1].made_epoch), (1_800_000_003, 2));
    let passphrase = v["keyring"]["passphrase"].as_str().expect("text").as_bytes().to_vec();
    let typed = v["keyring"]["recovery_key"].as_str().expect("text");
    let recovery = RecoveryKey::from_text(typed).expect("no typing error");
    assert_eq!(&recovery.to_text()[..], typed);
    let bytes32 = |name: &str| hex(&v["keyring"][name]).try_into().expect("32 bytes");
    let secrets = [
        Secret::Passphrase(Zeroizing::new(passphrase)),
        Secret::KeyFile(Zeroizing::new(hex(&v["keyring"]["key_file"]))),
        Secret::Recovery(recovery),
    ];
    let mut opened: Vec<_> =
        secrets.iter().map(|secret| ring.unlock(secret).expect("it unlocks")).collect();
    // What keeps the seeds of the others is asked: here its answers are written down.
    let kms = ring.slots().into_iter().find(|slot| slot.kind == SlotKind::Kms).expect("one");
    let stored = KmsSlot::parse(&kms.params).expect("it parses");
    assert_eq!((stored.region(), stored.endpoint()), ("eu-west-1", None));
    assert!(stored.key_arn().ends_with("key/1234abcd-12ab-34cd-56ef-1234567890ab"));
    assert_eq!(stored.ciphertext(), (0x80..0xc0).collect::<Vec<u8>>());
    let seed = Seed::from_bytes(&bytes32("kms_answer"));
    opened.push(ring.open(kms.id, &seed).expect("it opens"));
    let identity = v["keyring"]["age_identity"].as_str().expect("text").as_bytes().to_vec();
    let found = open_age(&ring, identity.into(), "the vector", Arc::new(Nobody)).expect("opens");
    opened.push(ring.open(found.slot, &found.seed).expect("it opens"));
    for keys in opened {
        assert_eq!(&keys.root().expose()[..], hex(&v["root_keys"][2]));
        assert_eq!(keys.epochs(), [3, 2]);
    }
}

#[test]
fn segments_of_format_version_2_read_and_are_written_so() {
    // Guards against a segment that only its writer can read, and against one that is written
    // in another way than the page says: without frames to the byte.
    let (document, ..) = vectors_v2();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let number = |value: &Value| value.as_u64().expect("a number");
    for vector in document["segments"].as_array().expect("a list") {
        let name = Path::from(vector["name"].as_str().expect("a string"));
        let id = SegmentStore::id(&name).expect("a segment's name");
        let plain = hex(&vector["plain"]);
        let ranges: Vec<_> = vector["ranges"].as_array().expect("a list").iter().collect();
        let owned = |r: &&Value| Owned {
            ino: Ino(number(&r[0])),
            incarnation: number(&r[1]) as u32,
            offset: number(&r[2]),
            len: number(&r[3]),
        };
        let ranges: Vec<_> = ranges.iter().map(owned).collect();
        let data_len = number(&vector["data_len"]);
        let store = Arc::new(InMemory::new());
        let data = runtime.block_on(async {
            store.put(&name, plain.clone().into()).await.expect("puts");
            let segments = SegmentStore::new(store.clone());
            let (layout, found) = segments.contents(id).await.expect("reads");
            assert_eq!((layout.data_len, found), (data_len, ranges.clone()), "{name}");
            assert_eq!(layout.to_row(), hex(&vector["row"]), "{name}");
            assert_eq!(Layout::from_row(id, data_len, &layout.to_row()), Ok(layout));
            segments.get_range(id, 0..data_len).await.expect("reads")
        });
        assert_eq!(Sha256::digest(&data)[..], hex(&vector["data_sha256"]), "{name}");
        if !has_frames(id) {
            let again = Arc::new(InMemory::new());
            let written = runtime.block_on(async {
                SegmentStore::new(again.clone()).put(id, vec![data], &ranges).await.expect("puts");
                again.get(&name).await.expect("there").bytes().await.expect("whole")
            });
            assert_eq!(written, plain, "{name}");
        }
    }
}

/// The batch that a vector describes.
fn batch_of(vector: &Value) -> Batch {
    let number = |value: &Value| value.as_u64().expect("a number");
    let mut batch = Batch {
        inodes: vector["inodes"].as_i64().expect("a number"),
        bytes: vector["bytes"].as_i64().expect("a number"),
        ..Batch::default()
    };
    for row in vector["rows"].as_array().expect("a list") {
        let value = || hex(&row["value"]).into();
        let op = match number(&row["tag"]) {
            0 => RowOp::Delete,
            1 => RowOp::Put(value()),
            2 => RowOp::PutFresh(value()),
            tag => panic!("no row operation has tag {tag}"),
        };
        batch.rows.push((hex(&row["key"]).as_slice().into(), op));
    }
    for op in vector["data"].as_array().expect("a list") {
        let (ino, incarnation) = (Ino(number(&op["inode"])), number(&op["incarnation"]) as u32);
        let [a, b] = [0, 1].map(|n| op["numbers"][n].as_u64().unwrap_or_default());
        batch.data.push(match number(&op["tag"]) {
            0 => DataOp::Write { ino, incarnation, offset: a, len: b as u32 },
            1 => DataOp::Hole { ino, incarnation, start: a, end: b },
            2 => DataOp::Drop { ino, incarnation },
            3 => DataOp::Begin { ino, incarnation },
            4 => {
                let from = &op["from"];
                let from = CloneSource {
                    ino: Ino(number(&from[0])),
                    incarnation: number(&from[1]) as u32,
                    offset: number(&from[2]),
                    len: b,
                };
                DataOp::Clone { ino, incarnation, offset: a, from }
            }
            5 => {
                let segment = SegmentId(hex(&op["segment"]).try_into().expect("16 bytes"));
                let at = number(&op["at"]);
                DataOp::Place { ino, incarnation, offset: a, len: b, segment, at }
            }
            tag => panic!("no data operation has tag {tag}"),
        });
    }
    batch
}

#[test]
fn heads_of_journal_records_of_format_version_2_read_and_are_written_so() {
    // Guards against a journal that only the program which wrote it can replay: every operation, as the
    // page says it, to the byte.
    let (document, ..) = vectors_v2();
    let mut tags = std::collections::BTreeSet::new();
    for vector in document["batches"].as_array().expect("a list") {
        let (head, batch) = (hex(&vector["head"]), batch_of(vector));
        assert_eq!(Batch::decode_head(&head).as_ref(), Ok(&batch), "{vector}");
        let mut written = Vec::new();
        batch.encode_head(&mut written);
        assert_eq!(written, head, "{vector}");
        let all = vector["data"].as_array().expect("a list");
        tags.extend(all.iter().filter_map(|op| op["tag"].as_u64()));
    }
    assert_eq!(tags.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn the_numbers_on_the_format_page_are_right() {
    // Guards against documentation that a stranger's reader would fail with: every row of the
    // table of sizes, and the worked volume id, object key and keyring size.
    let page = include_str!("../../docs/FORMAT.md");
    let number = |cell: &str| cell.replace(' ', "").parse::<u64>().ok();
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.split('|').skip(1);
        Some((number(cells.next()?)?, number(cells.next()?)?, cells.next()?))
    });
    // The table of sizes is the one whose third column begins with a count of chunks.
    let counted = |cell: &str| cell.split(',').next().and_then(number).is_some();
    let sizes: Vec<_> = rows
        .filter(|row| row.2.contains("empty") || row.2.contains("byte"))
        .filter(|row| counted(row.2))
        .collect();
    assert_eq!(sizes.len(), 10);
    for (plain, message, chunks) in sizes {
        assert_eq!(offsets::cipher_len(plain), message);
        assert_eq!(offsets::plain_len(message), Some(plain));
        let count = number(chunks.split(',').next().expect("a count")).expect("a number");
        assert_eq!(plain / 16_384 + 1, count);
    }
    let keys = VolumeKeys::from_root(RootKey::from_bytes(&std::array::from_fn(|i| i as u8)));
    let name = "seg/4f/4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f";
    let key = sealfs::base::hex(keys.object(name).key().expose());
    assert!(page.contains(&keys.volume_id().to_string()) && page.contains(name));
    assert!(page.contains(&key));
    let passphrase = Secret::Passphrase(Zeroizing::new(b"x".to_vec()));
    let made = Keyring::create(keys.root(), &passphrase, "first", KdfParams::FLOOR, 0);
    let grouped = |n: usize| format!("{} {:03}", n / 1000, n % 1000);
    let len = grouped(made.expect("a keyring").0.to_bytes().len());
    assert!(page.contains(&format!("named `first` has {len} bytes")), "{len}");
}
