"""Writes tests/vectors/format_v1.json: known answers for version 1 of docs/FORMAT.md.

Made by Python, checked by Rust (tests/seal_vectors.rs), so that two implementations agree. A
released version's vectors are never made anew: a change of the format gets its own file.

  python tests/python/format_vectors.py > tests/vectors/format_v1.json
"""

import hashlib
import hmac
import importlib.machinery
import importlib.util
import json
import pathlib
import struct
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

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


def keyring(root, passphrase, key_file):
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    volume, slots = reader.volume_id(root), b""
    for number, kind, label in ((1, 1, b"passphrase"), (2, 2, "kleiner Schlüssel".encode())):
        salt = bytes([number]) * 32
        if kind == 1:
            params = b"\x01" + salt + struct.pack(">III", 19 << 10, 2, 1)
            kdf = Argon2id(salt=salt, length=32, iterations=2, lanes=1, memory_cost=19 << 10)
            key = kdf.derive(passphrase)
        else:
            params = salt
            prk = hmac.digest(salt, key_file, "sha512")
            key = reader.expand(prk, b"sealfs key file slot", 32)
        head = struct.pack(">IBB", number, kind, len(label)) + label
        head += struct.pack(">H", len(params)) + params
        wrap = seal(key, reader.context(b"slot", volume, head), bytes([0x70 + number]) * 24, root)
        slots += head + struct.pack(">H", len(wrap)) + wrap
    body = b"SEALFSKR\x01\x01\0\0" + struct.pack(">Q", 2) + volume + struct.pack(">IIH", 1, 3, 2)
    body += slots
    mac_key = reader.expand(root, b"sealfs keyring mac", 32)
    signed = body + hmac.digest(mac_key, body, "sha512")[:32]
    return signed + hashlib.sha256(signed).digest()


def main():
    root = bytes(range(32))
    volume = reader.volume_id(root)
    journal, salt = bytes(range(16)), bytes(range(0x40, 0x58))
    journal_key = reader.expand(root, b"sealfs journal", 32)
    state_key = reader.expand(root, b"sealfs state", 32)
    name = "seg/4f/" + "4f" * 16
    passphrase, key_file = "correct horse battery staple".encode(), bytes(range(100))
    objects = []
    for epoch, length in ((1, 0), (1, 1), (1, 16383), (1, 16384), (1, 16385), (2, 40000)):
        context = reader.object_context(volume, epoch, name)
        vector = message(reader.object_key(root, epoch, name), context, salt, length)
        objects.append({"epoch": epoch, "name": name, **vector})
    record = reader.context(b"journal", volume, journal, b"\x01", struct.pack(">Q", 7))
    state = reader.context(b"state", volume, b"watermark")
    document = {
        "about": "docs/FORMAT.md version 1; plaintext byte i is i mod 251; all strings are hex",
        "root_key": root.hex(),
        "volume_id": volume.hex(),
        "name_hash_key": reader.expand(root, b"sealfs names", 16).hex(),
        "objects": objects,
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
            "bytes": keyring(root, passphrase, key_file).hex(),
        },
    }
    json.dump(document, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
