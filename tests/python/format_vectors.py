"""Writes tests/vectors/format_v2.json: known answers for version 2 of docs/FORMAT.md.

Made by Python, checked by Rust (tests/format/seal_vectors.rs), so that two implementations agree. A
released version's vectors are never made again: a change of the format gets its own file. The
encapsulations of the keyring are random, so every run gives another, equally good one.

  python tests/python/format_vectors.py > tests/vectors/format_v2.json
"""

import base64
import hashlib
import hmac
import importlib.machinery
import importlib.util
import json
import pathlib
import struct
import sys

from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def load_reader():
    """scripts/open-object as a module."""
    sys.dont_write_bytecode = True
    path = str(REPOSITORY / "scripts" / "open-object")
    loader = importlib.machinery.SourceFileLoader("open_object", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("open_object", loader))
    loader.exec_module(module)
    return module


reader = load_reader()


def plain_bytes(length):
    """The plaintext of every vector, written down in its description."""
    return bytes(i % 251 for i in range(length))


def seal(key, context, salt, plain):
    aes_key, base, commitment = reader.message_key(key, context, salt)
    aes, out = AESGCM(aes_key), salt + commitment
    for number in range(len(plain) // reader.CHUNK + 1):
        chunk = plain[number * reader.CHUNK : (number + 1) * reader.CHUNK]
        out += aes.encrypt(reader.chunk_nonce(base, number), chunk, None)
    return out


def message(key, context, salt, length):
    sealed = seal(key, context, salt, plain_bytes(length))
    assert reader.open_message(key, context, sealed) == plain_bytes(length)
    # A long message is given by its hash and its first and last bytes only.
    shown = {"message": sealed.hex()} if length < 100 else {}
    return {
        "key": key.hex(),
        "context": context.hex(),
        "salt": salt.hex(),
        "plain_len": length,
        "message_len": len(sealed),
        "message_sha256": hashlib.sha256(sealed).hexdigest(),
        **shown,
    }


def encapsulate(public):
    """A fresh shared secret and its X-Wing encapsulation to a public key."""
    key_m = mlkem.MLKEM768PublicKey.from_public_bytes(public[:1184])
    shared_m, share_m = key_m.encapsulate()
    secret_x = x25519.X25519PrivateKey.generate()
    share_x = secret_x.public_key().public_bytes_raw()
    shared_x = secret_x.exchange(x25519.X25519PublicKey.from_public_bytes(public[1184:]))
    shared = reader.XWing.combine(shared_m, shared_x, share_x, public[1184:])
    return shared, share_m + share_x


def field(data):
    return struct.pack(">H", len(data)) + data


def base64_unpadded(data):
    return base64.b64encode(data).rstrip(b"=")


def bech32(prefix, data):
    """Bytes as bech32 (BIP 173), in lower case."""
    alphabet = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    bits = "".join(f"{byte:08b}" for byte in data)
    bits += "0" * (-len(bits) % 5)
    values = [int(bits[i : i + 5], 2) for i in range(0, len(bits), 5)]
    total = 1
    ends = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]
    for value in ends + values + [0] * 6:
        top, total = total >> 25, (total & 0x1FFFFFF) << 5 ^ value
        for i, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            total ^= generator if top >> i & 1 else 0
    check = [(total ^ 1) >> 5 * (5 - i) & 31 for i in range(6)]
    return prefix + "1" + "".join(alphabet[value] for value in values + check)


def age_file(seed, public, ephemeral, file_key, nonce):
    """An age file of a seed for one X25519 recipient (age-encryption.org/v1)."""
    secret = x25519.X25519PrivateKey.from_private_bytes(ephemeral)
    share = secret.public_key().public_bytes_raw()
    shared = secret.exchange(x25519.X25519PublicKey.from_public_bytes(public))
    wrap = reader.hkdf_sha256(shared, share + public, reader.AGE_X25519)
    body = ChaCha20Poly1305(wrap).encrypt(bytes(12), file_key, None)
    head = b"age-encryption.org/v1\n-> X25519 " + base64_unpadded(share) + b"\n"
    head += base64_unpadded(body) + b"\n---"
    mac = hmac.digest(reader.hkdf_sha256(file_key, b"", b"header"), head, "sha256")
    payload = ChaCha20Poly1305(reader.hkdf_sha256(file_key, nonce, b"payload"))
    sealed = payload.encrypt(bytes(11) + b"\x01", seed, None)
    return head + b" " + base64_unpadded(mac) + b"\n" + nonce + sealed


def slot(volume, epoch, root, number, kind, made_epoch, made_root, label, secret, params=None):
    salt = bytes([number]) * 32
    if params is None:
        params = {1: b"\x01" + salt + struct.pack(">III", 19 << 10, 2, 1), 2: salt, 4: b""}[kind]
    given = (secret if n == kind else None for n in (1, 2, 4, 3, 5))
    seed = reader.slot_seed(kind, params, *given) or secret
    head = struct.pack(">IBQIB", number, kind, 1_800_000_000 + number, made_epoch, len(label)) + label
    head += struct.pack(">H", len(params)) + params + reader.XWing(seed).public
    anchor_key = reader.expand(seed, b"sealfs slot anchor", 32)
    fingerprint = reader.fingerprint_of(reader.local_key(made_root))
    place = reader.context(b"anchor", volume, head)
    head += seal(anchor_key, place, bytes([0x60 + number]) * 24, fingerprint)
    shared, encapsulation = encapsulate(reader.XWing(seed).public)
    head += encapsulation
    place = reader.context(b"slot", volume, struct.pack(">I", epoch), head)
    return head + seal(shared, place, bytes([0x70 + number]) * 24, root)


def recovery_text(key):
    """32 bytes as they are printed: 13 groups, of which the last character checks the group."""
    alphabet, bits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ", int.from_bytes(key, "big") << 4
    values = [bits >> 5 * (51 - i) & 31 for i in range(52)]
    groups = []
    for group in range(13):
        four = values[4 * group : 4 * group + 4]
        check = group + 1
        for value in reversed(four):
            check = check << 1 ^ (0x25 if check & 16 else 0) ^ value
        groups.append("".join(alphabet[value] for value in [*four, check]))
    return "-".join(groups)


def keyring(roots, passphrase, key_file, recovery, kms_answer, age_key):
    """In epoch 3: the root of epoch 1 has left it, that of epoch 2 has not. A slot of each kind."""
    volume, root = reader.volume_id(reader.local_key(roots[1])), roots[3]
    body = b"SEALFSKR\x02\x01\0\0" + struct.pack(">QQQQ", 0, 0, 0, 5) + volume
    body += struct.pack(">IIHH", 3, 8, 6, 2)
    body += slot(volume, 3, root, 1, 1, 1, roots[1], b"passphrase", passphrase)
    label = "kleiner Schlüssel".encode()
    body += slot(volume, 3, root, 3, 2, 2, roots[2], label, key_file)
    body += slot(volume, 3, root, 4, 4, 3, roots[3], b"paper", recovery)
    arn = b"arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    params = field(arn) + field(b"eu-west-1") + field(b"") + field(bytes(range(0x80, 0xC0)))
    body += slot(volume, 3, root, 5, 3, 3, roots[3], b"server", kms_answer, params)
    public = x25519.X25519PrivateKey.from_private_bytes(age_key).public_key().public_bytes_raw()
    file = age_file(bytes(range(0xE0, 0x100)), public, bytes([0x31]) * 32, bytes([0x32]) * 16, bytes([0x33]) * 16)
    params = field(bech32("age", public).encode()) + field(file)
    body += slot(volume, 3, root, 6, 5, 3, roots[3], b"age", age_key, params)
    # Of a kind that a later version may have: kept, and never opened.
    body += slot(volume, 3, root, 7, 200, 3, roots[3], b"later", bytes([0x34]) * 32, b"anything")
    old_key = reader.expand(root, b"sealfs old epochs", 32)
    for number, content, key in ((1, 2, reader.local_key(roots[1])), (2, 1, roots[2])):
        place = struct.pack(">I", 3), struct.pack(">I", number), bytes([content])
        place = reader.context(b"epoch", volume, *place)
        body += struct.pack(">IB", number, content)
        body += seal(old_key, place, bytes([0x50 + number]) * 24, key)
    mac_key = reader.expand(root, b"sealfs keyring mac", 32)
    signed = body + hmac.digest(mac_key, body, "sha512")[:32]
    whole = signed + hashlib.sha256(signed).digest()
    assert reader.recovery_key(recovery_text(recovery)) == recovery
    secrets = passphrase, key_file, recovery, kms_answer, age_key
    for at in range(len(secrets)):
        one = (secret if i == at else None for i, secret in enumerate(secrets))
        assert reader.unlock(whole, *one) == (volume, {3: roots[3], 2: roots[2]})
    return whole


def siphash(key, data):
    """SipHash-2-4 (Aumasson and Bernstein, 2012) of bytes, as a 64-bit number."""
    mask = (1 << 64) - 1
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def add_rotate_xor(a, b, bits):
        v[a] = (v[a] + v[b]) & mask
        v[b] = (v[b] << bits | v[b] >> (64 - bits)) & mask
        v[b] ^= v[a]

    def rounds(count):
        for _ in range(count):
            add_rotate_xor(0, 1, 13)
            v[0] = (v[0] << 32 | v[0] >> 32) & mask
            add_rotate_xor(2, 3, 16)
            add_rotate_xor(0, 3, 21)
            add_rotate_xor(2, 1, 17)
            v[2] = (v[2] << 32 | v[2] >> 32) & mask

    whole = len(data) // 8 * 8
    last = data[whole:].ljust(7, b"\0") + bytes([len(data) % 256])
    for (word,) in struct.iter_unpack("<Q", data[:whole] + last):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def entry_key(hash_key, parent, name):
    """The key of the row of a directory entry."""
    name_hash = max(siphash(hash_key, name) >> 32, 8)
    return b"d" + struct.pack(">QI", parent, name_hash) + name


def varint(n):
    groups = []
    while n > 127:
        groups.append(n & 127 | 128)
        n >>= 7
    return bytes(groups + [n])


def signed(n):
    return varint(2 * n if n >= 0 else -2 * n - 1)


INODE = {
    "kind": 1, "perm": 0o644, "nlink": 1, "uid": 1000, "gid": 1000, "rdev": 0, "size": 100,
    "allocated": 4096, "atime": [1800000000, 123456789], "mtime": [1800000000, 123456789],
    "ctime": [1800000000, 123456789], "btime": [1800000000, 123456789], "incarnation": 0,
    "xattrs": 0, "parent": 0, "target": "", "extent": None,
}
EXTENT = {"segment": "4f" * 16, "offset": 300, "start": 0, "len": 100}
EARLIER = [1799999999, 5]
INODES = [
    {},
    {"extent": EXTENT},
    {"extent": EXTENT, "atime": EARLIER, "btime": EARLIER},
    {"extent": {**EXTENT, "start": 50, "len": 20}, "nlink": 0, "incarnation": 2, "xattrs": 300},
    {"extent": EXTENT, "atime": [-1, 0], "ctime": [1800000001, 0], "btime": [0, 0], "uid": 0},
    {"size": 1 << 40, "allocated": 8192, "mtime": [-(1 << 40), 999999999], "gid": 4294967295},
    {"kind": 2, "perm": 0o1777, "nlink": 2, "size": 3, "allocated": 0, "parent": 1},
    {"kind": 2, "perm": 0o755, "nlink": 7, "size": 9, "allocated": 0, "parent": 1 << 33},
    {"kind": 3, "perm": 0o777, "size": 6, "allocated": 0, "target": b"target".hex()},
    {"kind": 6, "perm": 0o600, "size": 0, "allocated": 0, "rdev": 0x103},
]


def inode_row(i):
    """The row of an inode, FORMAT.md "Inode"."""
    blocks = (i["size"] + 4095) // 4096 * 4096 if i["kind"] == 1 else 0
    mtime, extent = i["mtime"], i["extent"]

    def time(t):
        return signed(t[0] - mtime[0]) + struct.pack("<I", t[1])

    if i["btime"] == mtime:
        btime = (0, b"")
    elif i["btime"] == i["atime"]:
        btime = (0x04, b"")
    else:
        btime = (0x08, time(i["btime"]))
    parts = [
        (0, 0x10, i["nlink"] != (2 if i["kind"] == 2 else 1), lambda: varint(i["nlink"])),
        (0, 0x20, i["rdev"], lambda: varint(i["rdev"])),
        (0, 0x40, i["incarnation"], lambda: varint(i["incarnation"])),
        (0, 0x80, i["xattrs"], lambda: varint(i["xattrs"])),
        (1, 0x01, i["ctime"] != mtime, lambda: time(i["ctime"])),
        (1, 0x02, i["atime"] != mtime, lambda: time(i["atime"])),
        (1, btime[0], btime[0], lambda: btime[1]),
        (1, 0x10, i["allocated"] != blocks, lambda: varint(i["allocated"])),
        (1, 0x20, i["parent"], lambda: varint(i["parent"])),
        (1, 0x40, extent, lambda: bytes.fromhex(extent["segment"]) + varint(extent["offset"])),
        (
            1,
            0x80,
            extent and (extent["start"], extent["len"]) != (0, i["size"]),
            lambda: varint(extent["start"]) + varint(extent["len"]),
        ),
    ]
    head, rest = [i["kind"], 0], b""
    for byte, flag, there, field in parts:
        if there:
            head[byte] |= flag
            rest += field()
    row = bytes([2, *head]) + struct.pack("<H", i["perm"])
    row += varint(i["uid"]) + varint(i["gid"]) + varint(i["size"])
    row += signed(mtime[0]) + struct.pack("<I", mtime[1])
    return row + rest + bytes.fromhex(i["target"])


def zeros_in_zstd(length):
    """A zstd frame (RFC 8878) of so many zeros, at most 128 KiB: one block, of kind RLE."""
    header = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", length)
    return header + struct.pack("<I", 1 | 1 << 1 | length << 3)[:3] + b"\0"


def segment(last_digit, ranges, frames, data):
    """A segment whose data are stored as `frames` of (stored, whole) bytes, or as they are."""
    name = "seg/4f/" + "4f" * 15 + "4" + last_digit
    summary, before = b"", (0, 0, 0)
    for inode, incarnation, offset, length in ranges:
        begin = before[2] if before[:2] == (inode, incarnation) else 0
        summary += signed(inode - before[0]) + varint(incarnation)
        summary += signed(offset - begin) + varint(length)
        before = inode, incarnation, offset + length
    stored = b"".join(stored for stored, _ in frames) if frames else data
    index = b"".join(varint(len(s) if len(s) < whole else 0) for s, whole in frames)
    footer = struct.pack("<8sBBHI", b"sealfsSG", 2, bool(frames), 0, len(ranges))
    footer += struct.pack("<QQII", len(data), len(stored), len(summary), len(index))
    plain = stored + summary + index + footer
    if not frames:
        assert reader.open_segment(name, plain) == (data, ranges)
    return {
        "name": name,
        "ranges": [list(one) for one in ranges],
        "data_len": len(data),
        "data_sha256": hashlib.sha256(data).hexdigest(),
        "plain": plain.hex(),
        "row": (struct.pack("<I", len(summary) + len(index) + 40) + index).hex(),
    }


def segments():
    """One as it is, of three files; one of two frames, the first of them compressed zeros."""
    ranges = [(5, 0, 0, 4), (6, 0, 4096, 3), (6, 0, 10, 2), (3, 7, 1 << 40, 200)]
    zeros, rest = bytes(128 << 10), plain_bytes(100)
    frames = [(zeros_in_zstd(len(zeros)), len(zeros)), (rest, len(rest))]
    return [
        segment("e", ranges, [], plain_bytes(209)),
        segment("f", [(70000, 1, 0, len(zeros) + 100)], frames, zeros + rest),
    ]


def batch_head(batch):
    """The head of a journal record (FORMAT.md "Journal records")."""
    out = struct.pack("<qqI", batch["inodes"], batch["bytes"], len(batch["rows"]))
    for row in batch["rows"]:
        key, tag = bytes.fromhex(row["key"]), row["tag"]
        out += struct.pack("<H", len(key)) + key + bytes([tag])
        if tag != 0:
            value = bytes.fromhex(row["value"])
            out += struct.pack("<I", len(value)) + value
    out += struct.pack("<I", len(batch["data"]))
    for op in batch["data"]:
        tag = op["tag"]
        out += struct.pack("<BQI", tag, op["inode"], op["incarnation"])
        out += b"".join(struct.pack("<Q", n) for n in op.get("numbers", []))
        if tag == 4:
            out += struct.pack("<QIQ", *op["from"])
        if tag == 5:
            out += bytes.fromhex(op["segment"]) + struct.pack("<Q", op["at"])
    return b"\x02" + struct.pack("<I", len(out)) + out


def batches():
    """Heads of records: of nothing, and of every operation."""
    nothing = {"inodes": 0, "bytes": 0, "rows": [], "data": []}
    rows = [
        {"key": "69" + "00" * 7 + "09", "tag": 1, "value": "010203"},
        {"key": "64", "tag": 2, "value": ""},
        {"key": "7800", "tag": 0},
    ]
    file = {"inode": 9, "incarnation": 4}
    data = [
        {"tag": 3, **file},
        {"tag": 0, **file, "numbers": [5, 6]},
        {"tag": 1, **file, "numbers": [7, 2**64 - 1]},
        {"tag": 2, **file},
        {"tag": 2, "inode": 9, "incarnation": 2**32 - 1},
        {"tag": 5, **file, "numbers": [3, 9], "segment": "4f" * 16, "at": 1 << 20},
        {"tag": 5, **file, "numbers": [1 << 40, 1 << 33], "segment": bytes(range(16)).hex(), "at": 0},
        {"tag": 4, **file, "numbers": [7, 1 << 33], "from": [8, 3, 1 << 40]},
    ]
    all_of_it = {"inodes": -1, "bytes": 4096, "rows": rows, "data": data}
    return [{**batch, "head": batch_head(batch).hex()} for batch in (nothing, all_of_it)]


def main():
    # The published vector: key 00 … 0f, data 00 … 0e.
    assert siphash(bytes(range(16)), bytes(range(15))) == 0xA129CA6149BE45E5
    roots = {n: bytes(32 * (n - 1) + i for i in range(32)) for n in (1, 2, 3)}
    local = reader.local_key(roots[1])
    volume = reader.volume_id(local)
    journal, salt = bytes(range(16)), bytes(range(0x40, 0x58))
    journal_key = reader.expand(local, b"sealfs journal", 32)
    state_key = reader.expand(local, b"sealfs state", 32)
    name = "seg/4f/" + "4f" * 16
    passphrase, key_file = "correct horse battery staple".encode(), bytes(range(100))
    recovery, kms_answer = bytes(range(0x80, 0xA0)), bytes(range(0xC0, 0xE0))
    age_key = bytes(range(0x10, 0x30))
    objects = []
    for epoch, length in ((1, 0), (1, 1), (1, 16383), (1, 16384), (1, 16385), (2, 40000), (3, 9)):
        context = reader.object_context(volume, epoch, name)
        vector = message(reader.object_key(roots[epoch], name), context, salt, length)
        objects.append({"epoch": epoch, "name": name, **vector})
    # A log of three objects: the first behind none, the next in epochs 1 and 2.
    log, behind = [], bytes(32)
    for number, (epoch, length) in enumerate(((1, 0), (1, 300), (2, 16384)), 1):
        log_name = f"meta/wal/{number:020}.sst"
        context = reader.log_context(volume, epoch, log_name, behind)
        key = reader.object_key(roots[epoch], log_name)
        vector = message(key, context, bytes([number]) * 24, length)
        log.append({"epoch": epoch, "name": log_name, "behind": behind.hex(), **vector})
        # The header alone: of a long message the vector has no more.
        behind = reader.message_key(key, context, bytes([number]) * 24)[2]
    history_key, value, chain = reader.history_key(local), bytes(32), []
    for number, writer in ((1, b"\x11" * 16), (2, b"\x11" * 16), (3, b"\x22" * 16)):
        value = reader.chain_value(history_key, value, number, writer)
        chain.append({"number": number, "writer": writer.hex(), "value": value.hex()})
    first = struct.pack(">I", 1)
    record = reader.context(
        b"journal", volume, first, journal, b"\x01", struct.pack(">Q", 7)
    )
    state = reader.context(b"state", volume, first, b"watermark")
    hash_key = reader.expand(local, b"sealfs names", 16)
    names = [b"a", b"name", b"sixteen bytes ..", "Stra\u00dfe".encode(), bytes(range(1, 47)), b"x" * 255]
    document = {
        "about": "docs/FORMAT.md version 2; plaintext byte i is i mod 251; all strings are hex",
        "root_keys": [roots[n].hex() for n in (1, 2, 3)],
        "volume_id": volume.hex(),
        "fingerprint_of_epoch_1": reader.fingerprint_of(local).hex(),
        "name_hash_key": hash_key.hex(),
        "entries": [
            {"parent": 5, "name": name.hex(), "key": entry_key(hash_key, 5, name).hex()} for name in names
        ],
        "inodes": [{**i, "row": inode_row(i).hex()} for i in ({**INODE, **changes} for changes in INODES)],
        "objects": objects,
        "segments": segments(),
        "batches": batches(),
        "log": log,
        "history_key": history_key.hex(),
        "chain": chain,
        "journal": {
            "journal_id": journal.hex(),
            "kind": 1,
            "number": 7,
            **message(journal_key, record, salt, 50),
        },
        "state": {"file_name": "watermark", **message(state_key, state, salt, 50)},
        "keyring": {
            "passphrase": passphrase.decode(),
            "key_file": key_file.hex(),
            "recovery_key": recovery_text(recovery),
            "kms_answer": kms_answer.hex(),
            "age_identity": bech32("age-secret-key-", age_key).upper(),
            "bytes": keyring(roots, passphrase, key_file, recovery, kms_answer, age_key).hex(),
        },
    }
    json.dump(document, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
