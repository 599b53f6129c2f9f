"""Amazon's own client for Python (amazon-s3-encryption-client-python), as a worker.

Usage: s3ec.py ENDPOINT BUCKET KMS-KEY, and on standard input one JSON job a line:
{"do": "put"|"get", "format": 2|3, "key": …, "file": …, "context": {…}}. Answers a JSON line each:
{"ok": true} or {"error": "…"}. "parts": N of a put uploads in parts of N bytes.
"""

import json
import sys

import boto3
import s3_encryption
from s3_encryption import S3EncryptionClient, S3EncryptionClientConfig
from s3_encryption.materials.kms_keyring import KmsKeyring
from s3_encryption.materials.materials import AlgorithmSuite, CommitmentPolicy

# It refuses contexts that are not ASCII, since it cannot read what S3 makes of them. What sealfs writes
# is ASCII whatever the context, so that it can be read but for this check.
s3_encryption._validate_encryption_context = lambda context: None

endpoint, bucket, kms_key = sys.argv[1:4]
at = {
    "endpoint_url": endpoint,
    "region_name": "us-east-1",
    "aws_access_key_id": "moto",
    "aws_secret_access_key": "moto",
}


def client(fmt):
    """A client that writes this version, and reads it; of version 3 that and no other."""
    keyring = KmsKeyring(boto3.client("kms", **at), kms_key)
    if fmt == 3:
        config = S3EncryptionClientConfig(keyring)
    else:
        config = S3EncryptionClientConfig(
            keyring,
            encryption_algorithm=AlgorithmSuite.ALG_AES_256_GCM_IV12_TAG16_NO_KDF,
            commitment_policy=CommitmentPolicy.FORBID_ENCRYPT_ALLOW_DECRYPT,
        )
    return S3EncryptionClient(boto3.client("s3", **at), config)


def run(job):
    """One job."""
    s3 = client(job["format"])
    where = {"Bucket": bucket, "Key": job["key"]}
    if job["context"]:
        where["EncryptionContext"] = job["context"]
    if job["do"] == "get":
        body = s3.get_object(**where)["Body"].read()
        with open(job["file"], "wb") as out:
            out.write(body)
        return
    with open(job["file"], "rb") as source:
        data = source.read()
    if not job.get("parts"):
        s3.put_object(Body=data, **where)
        return
    size = job["parts"]
    upload = s3.create_multipart_upload(**where)["UploadId"]
    where.pop("EncryptionContext", None)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    parts = []
    for number, piece in enumerate(pieces, 1):
        last = number == len(pieces)
        answer = s3.upload_part(
            UploadId=upload, PartNumber=number, Body=piece, IsLastPart=last, **where
        )
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    s3.complete_multipart_upload(
        UploadId=upload, MultipartUpload={"Parts": parts}, **where
    )


for line in sys.stdin:
    try:
        run(json.loads(line))
        answer = {"ok": True}
    except Exception as e:  # what it says is what the test looks at
        answer = {"error": f"{type(e).__name__}: {e}"}
    print(json.dumps(answer), flush=True)
