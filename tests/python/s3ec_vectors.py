"""Objects as clients that run on no machine of ours wrote them, made with `cryptography`: their sources say
how (AmazonS3EncryptionClient of aws-sdk-java 1.x, S3KeyWrapScheme; of the AWS SDK for .NET 3.x, EncryptionUtils).

Usage: s3ec_vectors.py > ../vectors/s3ec_others.json. Keys: tests/fixtures/s3ec. Random: no two runs agree.
"""

import base64
import json
import os
import pathlib

from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures/s3ec"
PLAIN = b"what another client wrote, more than one block of it\n"


def text(raw):
    return base64.b64encode(raw).decode()


def cbc(key, iv, plain):
    pad = padding.PKCS7(128).padder()
    cipher = Cipher(algorithms.AES(key), modes.CBC(iv) if iv else modes.ECB()).encryptor()
    return cipher.update(pad.update(plain) + pad.finalize()) + cipher.finalize()


def java(mgf1):
    """Authenticated mode with an RSA key; the hash of MGF1 is that of the JDK's provider, or Bouncy Castle's."""
    public = serialization.load_pem_public_key((FIXTURES / "rsa-pub.pem").read_bytes())
    key, iv = os.urandom(32), os.urandom(12)
    oaep = rsa_padding.OAEP(mgf=rsa_padding.MGF1(mgf1), algorithm=hashes.SHA256(), label=None)
    metadata = {
        "x-amz-key-v2": text(public.encrypt(key, oaep)),
        "x-amz-iv": text(iv),
        "x-amz-matdesc": "{}",
        "x-amz-cek-alg": "AES/GCM/NoPadding",
        "x-amz-tag-len": "128",
        "x-amz-wrap-alg": "RSA/ECB/OAEPWithSHA-256AndMGF1Padding",
        "x-amz-unencrypted-content-length": str(len(PLAIN)),
    }
    return {"version": 2, "with": "rsa", "metadata": metadata, "object": text(AESGCM(key).encrypt(iv, PLAIN, None))}


def dotnet():
    """Its instruction file has its own names, and its key the ending INSTRUCTION_SUFFIX."""
    wrapping = base64.b64decode((FIXTURES / "aes.key").read_bytes())
    key, iv = os.urandom(32), os.urandom(16)
    instruction = {"EncryptedEnvelopeKey": text(cbc(wrapping, None, key)), "IV": text(iv)}
    metadata = {"x-amz-unencrypted-content-length": str(len(PLAIN))}
    return {"version": 1, "with": "aes", "metadata": metadata, "instruction": json.dumps(instruction),
            "object": text(cbc(key, iv, PLAIN))}


def main():
    made = [("java-1-jdk", java(hashes.SHA1())), ("java-1-bouncy-castle", java(hashes.SHA256())),
            ("dotnet-3", dotnet())]
    objects = [{"name": name, "plain": text(PLAIN)} | made for name, made in made]
    print(json.dumps({"about": "made by tests/python/s3ec_vectors.py", "objects": objects}, indent=1))


main()
