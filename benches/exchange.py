"""Import and export beside rclone and raw GETs: files/s and MiB/s. Run by scripts/bench-exchange.

Fills a bucket of the in-memory server (benches/s3mem.rs) with small and with large objects, then times
each tool from an empty target: raw GETs (bytes counted, not kept), `rclone copy` into a directory and into a
mount of sealfs, `sealfs import` into that mount (the time until every file is there, and until all of it is in
the volume's bucket), a second run of each, which has nothing to do, and the way out: `rclone copy`, `sealfs
export --plain` and, sealed as the Encryption Client seals, `sealfs export --aes-key-file` of the same files. Last
an import and an export that are killed three times: what all their runs asked for, beside what one asks for.
Requests to the server stand behind each row. `--hold CMD`: a command that has the machine for itself while
what it is given runs (`CMD cat`); held while something is timed.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
import urllib.request

SMALL = 4 << 10
# Kinds of requests, as the server counts them.
ASKED = ("list", "head", "get", "put", "upload_create", "upload_part", "upload_complete")


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--bin", type=pathlib.Path, required=True, help="where sealfs is")
    options.add_argument("--small", type=int, default=10_000, help="objects of 4 KiB")
    options.add_argument("--large", type=int, default=20, help="large objects")
    options.add_argument("--mib", type=int, default=50, help="MiB of a large object")
    options.add_argument("--parallel", type=int, default=16, help="transfers at a time, of all tools")
    options.add_argument("--hold", help="a command that keeps others away")
    args = options.parse_args()
    args.bin = args.bin.resolve()
    with tempfile.TemporaryDirectory(prefix="sealfs-bench-", ignore_cleanup_errors=True) as work:
        Bench(args, pathlib.Path(work)).run()


class Bench:
    def __init__(self, args, work):
        self.args, self.work = args, work
        server = [args.bin / "examples" / "s3mem", "--bucket", "plain", "--bucket", "volume",
                  "--bucket", "out", "--bucket", "rclone"]
        self.server = subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        said = {}
        while "secret_access_key" not in said:
            name, _, value = self.server.stdout.readline().strip().partition("=")
            said[name] = value
        self.env = os.environ | {
            "AWS_ENDPOINT_URL_S3": said["endpoint"],
            "AWS_ENDPOINT_URL": said["endpoint"],
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": said["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": said["secret_access_key"],
            "SEALFS_RUNTIME_DIR": str(work / "run"),
            "RCLONE_CONFIG": str(work / "rclone.conf"),
            "RCLONE_CONFIG_MEM_TYPE": "s3",
            "RCLONE_CONFIG_MEM_PROVIDER": "Other",
            "RCLONE_CONFIG_MEM_ENDPOINT": said["endpoint"],
            "RCLONE_CONFIG_MEM_ACCESS_KEY_ID": said["access_key_id"],
            "RCLONE_CONFIG_MEM_SECRET_ACCESS_KEY": said["secret_access_key"],
            # The server knows no CreateBucket.
            "RCLONE_S3_NO_CHECK_BUCKET": "true",
            "RCLONE_S3_LIST_VERSION": "2",
        }
        # rclone 1.60 (Debian 12) does not start where it is set.
        self.env.pop("AWS_CA_BUNDLE", None)
        self.endpoint, self.control = said["endpoint"], said["control"]
        (work / "rclone.conf").touch()
        (work / "run").mkdir()

    def call(self, *command):
        begun = time.monotonic()
        done = subprocess.run([str(word) for word in command], env=self.env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return time.monotonic() - begun, done.stdout

    def sealfs(self, *words):
        return self.call(self.args.bin / "sealfs", *words)

    def rclone(self, source, target):
        # The ETags of this server are no MD5, which rclone would take for damage; so it hashes nothing.
        at_once = str(self.args.parallel)
        return self.call("rclone", "copy", "--ignore-checksum", "--transfers", at_once, "--checkers", at_once,
                         source, target)[0]

    def counts(self):
        with urllib.request.urlopen(f"{self.control}/counts") as answer:
            return json.load(answer)

    def drop(self, bucket):
        """Frees what lies in a bucket: this server keeps it in memory."""
        self.call("rclone", "delete", "--rmdirs", f"mem:{bucket}")

    @contextlib.contextmanager
    def hold(self):
        if not self.args.hold:
            yield
            return
        command = [self.args.hold, "sh", "-c", "echo held; exec cat"]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        holder.stdout.readline()
        try:
            yield
        finally:
            holder.stdin.close()
            holder.wait()

    def run(self):
        try:
            self.fill()
            self.volume()
            for kind, count, size in (
                ("small", self.args.small, SMALL),
                ("large", self.args.large, self.args.mib << 20),
            ):
                if count:
                    with self.hold():
                        self.measure(kind, count, size)
                    self.interrupted(kind, count)
        finally:
            umount = (self.args.bin / "sealfs", "umount", "--force-local", self.work / "vault")
            subprocess.run(umount, env=self.env, capture_output=True)
            subprocess.run(["umount", "-l", self.work / "vault"], capture_output=True)  # if that failed
            self.server.stdin.close()
            self.server.wait()

    def fill(self):
        made = self.work / "made"
        for kind, count, size in (
            ("small", self.args.small, SMALL),
            ("large", self.args.large, self.args.mib << 20),
        ):
            for n in range(count):
                path = made / kind / f"d{n % 100:02}" / f"f{n:06}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(os.urandom(size))
        self.rclone(made, "mem:plain")
        shutil.rmtree(made)

    def volume(self):
        (self.work / "key").write_bytes(os.urandom(32))
        (self.work / "vault").mkdir()
        key = ("--key-file", self.work / "key")
        self.sealfs("init", "s3://volume/v", *key, "--no-recovery")
        local = ("--cache-dir", self.work / "cache", "--state-dir", self.work / "state")
        self.sealfs("mount", "s3://volume/v", self.work / "vault", *key, *local)

    def measure(self, kind, count, size):
        before = self.counts()

        def row(what, secs):
            nonlocal before
            now = self.counts()
            asked = ", ".join(f"{now[name] - before[name]} {name}" for name in ASKED if now[name] > before[name])
            before = now
            speed = count * size / secs / (1 << 20)
            print(f"{kind:6} {what:36} {secs:8.2f} s {count / secs:8.0f} files/s {speed:7.1f} MiB/s  {asked}",
                  flush=True)

        print(f"{kind}: {count} objects of {size} bytes, {self.args.parallel} at a time")
        at_once = ("--parallel", self.args.parallel)
        vault, copy = self.work / "vault", self.work / "copy"
        raw = (self.args.bin / "examples" / "rawget", "--endpoint", self.endpoint, "--bucket", "plain")
        if raw[0].exists():
            row("raw GETs", self.call(*raw, "--list", f"{kind}/", *at_once)[0])
        row("rclone copy, into a directory", self.rclone(f"mem:plain/{kind}", copy / kind))
        row("rclone copy, nothing to do", self.rclone(f"mem:plain/{kind}", copy / kind))
        row("rclone copy, into a mount of sealfs", self.rclone(f"mem:plain/{kind}", vault / f"rclone-{kind}"))
        row("  and until all is in its bucket", self.sealfs("sync", vault)[0])
        begin = ("import", f"s3://plain/{kind}", vault, kind, "--json", *at_once)
        secs, said = self.sealfs(*begin)
        assert json.loads(said)["files"] == count, said
        row("sealfs import", secs)
        row("  until all is in the volume's bucket", secs + self.sealfs("sync", vault)[0])
        secs, said = self.sealfs(*begin)
        assert json.loads(said)["unchanged"] == count, said
        row("sealfs import, nothing to do", secs)
        row("rclone copy, out of the directory", self.rclone(copy / kind, f"mem:rclone/{kind}"))
        shutil.rmtree(copy)
        self.drop("rclone")
        before = self.counts()
        for what, flags in (("--plain", ("--plain",)), ("sealed, v3", ("--aes-key-file", self.work / "key"))):
            out = ("export", f"{vault}:{kind}", f"s3://out/{kind}", "--json", *flags, *at_once)
            secs, said = self.sealfs(*out)
            assert json.loads(said)["files"] == count, said
            row(f"sealfs export, {what}", secs)
            secs, said = self.sealfs(*out)
            assert json.loads(said)["unchanged"] == count, said
            row("sealfs export, nothing to do", secs)
            self.drop("out")
            before = self.counts()

    def interrupted(self, kind, count):
        """Kills a run three times, then lets one end: none of them is timed."""
        vault = self.work / "vault"
        runs = (
            ("import", ("import", f"s3://plain/{kind}", vault, f"again-{kind}"), "get"),
            ("export", ("export", f"{vault}:{kind}", f"s3://out/{kind}", "--plain"), "put" if kind == "small"
             else "upload_part"),
        )
        for what, words, name in runs:
            before = self.counts()[name]
            whole = count if kind == "small" else count * -(-(self.args.mib << 20) // (8 << 20))
            if what == "import":
                whole = count
            killed = 0
            for n in range(1, 4):
                child = subprocess.Popen([str(word) for word in (self.args.bin / "sealfs", *words)], env=self.env,
                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                while child.poll() is None and self.counts()[name] - before < n * whole // 4:
                    time.sleep(0.01)
                killed += child.poll() is None
                child.kill()
                child.wait()
            said = json.loads(self.sealfs(*words, "--json")[1])
            asked = self.counts()[name] - before
            print(f"{kind:6} {what}, killed {killed} times: {asked} {name} in all; the last run had {said['files']} files "
                  f"to do and found {said['unchanged']} done", flush=True)


main()
