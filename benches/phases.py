#!/usr/bin/env python3
"""Runs the phases of the benchmark on every target and prints them side by side.

Targets: `ext4` (the directory --work lies in), `nullfs` (FUSE that only keeps things in memory),
`sealfs` on the in-memory S3 server, bare and through the delay proxy, and `raw`: parallel PUTs and
ranged GETs of the same server without a file system. Phases run one at a time in a process of
their own, so that one that hangs or fails costs its own figure only. Cold means: everything is in
the bucket, unmounted, the local cache thrown away, mounted again, and the page cache dropped.

Called by scripts/bench, which builds what this needs.
"""

import argparse
import glob
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request

MIB = 1 << 20
PHASE_SECONDS_MAX = 120
COMMAND_SECONDS_MAX = 120
TREE_FILES = 1352

# name -> (title, unit, larger is better)
ROWS = {
    "seq_write": ("sequential write + fsync", "MiB/s", True),
    "cold_read": ("cold sequential read", "MiB/s", True),
    "warm_read": ("warm sequential read (local cache, from disk)", "MiB/s", True),
    "kept_read": ("the same, its files in the page cache", "MiB/s", True),
    "hot_read": ("hot sequential read (page cache)", "MiB/s", True),
    "cold_random": ("cold random 4 KiB read, one at a time", "IOPS", True),
    "append_fsync": ("4 KiB append + fsync", "fsync/s", True),
    "create": ("create 4 KiB files", "files/s", True),
    "cold_stat": ("cold stat of a directory", "files/s", True),
    "cold_files": ("cold read of 4 KiB files", "files/s", True),
    "rename_dir": ("rename the directory", "ms", False),
    "untar": ("untar {tree} files", "s", False),
    "untar_sync": ("the same until it is in the bucket", "s", False),
    "cold_grep": ("cold grep -r over them", "s", False),
    "delete": ("delete the files", "files/s", True),
    "puts_per_10k": ("PUTs for 10,000 new 4 KiB files (segments, log)", "PUTs", False),
    "rss_peak": ("peak resident memory", "MiB", False),
    "idle_per_hour": ("requests of an idle mount", "per hour", False),
}

# The aims, with 20 ms round trips; functions of the other figures.
GOALS = {
    "seq_write": lambda f: 700,
    "cold_read": lambda f: scaled(f, "raw20", "raw_get", 0.7),
    "kept_read": lambda f: 1500,
    "cold_random": lambda f: 40,
    "append_fsync": lambda f: scaled(f, "ext4", "append_fsync", 0.5),
    "create": lambda f: 4000,
    "cold_stat": lambda f: 60000,
    "cold_files": lambda f: 2000,
    "rename_dir": lambda f: 2,
    "untar": lambda f: 0.6,
    "cold_grep": lambda f: 0.8,
    "puts_per_10k": lambda f: 20,
    "rss_peak": lambda f: 256,
    "idle_per_hour": lambda f: 120,
}


def scaled(figures, target, row, factor):
    value = figures.get(target, {}).get(row)
    return value * factor if isinstance(value, (int, float)) else None


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(*command, seconds=None, **more):
    """Runs a command to its end; raises with what it printed if it fails or takes too long."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=seconds or COMMAND_SECONDS_MAX, **more,
    )
    text = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {text.strip()[-500:]}")
    return text


def drop_page_cache():
    """Whether it could be dropped; needs root."""
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as control:
            control.write("3\n")
        return True
    except OSError:
        return False


class Tool:
    """A helper process that prints name=value lines and ends with its standard input."""

    def __init__(self, *command, ready):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.values = {}
        while ready not in self.values:
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError(f"{command[0]} ended before it was ready")
            name, _, value = line.strip().partition("=")
            self.values[name] = value

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Ext4:
    name = "ext4"

    def __init__(self, args, work):
        self.root = os.path.join(work, "plain")
        os.makedirs(self.root)
        kind = run("stat", "-f", "-c", "%T", self.root).strip()
        self.note = "" if kind.startswith("ext") else f"the ext4 column is {kind}"

    def drain(self):
        os.sync()

    def cold(self):
        if not drop_page_cache():
            self.note = "not root: cold phases of ext4 and nullfs are warm"

    def close(self):
        shutil.rmtree(self.root, ignore_errors=True)

    def rss_peak(self):
        return None


class NullFs(Ext4):
    name = "nullfs"

    def __init__(self, args, work):
        self.note = ""
        self.root = os.path.join(work, "nullfs")
        os.makedirs(self.root)
        self.tool = Tool(os.path.join(args.bin, "examples/nullfs"), self.root, ready="mounted")

    def drain(self):
        pass

    def close(self):
        self.tool.close()

    def rss_peak(self):
        return None


class SealFs:
    def __init__(self, args, work, rtt_ms, uring=False):
        self.name = ("uring" if uring else "sealfs") + (f"{rtt_ms:g}" if rtt_ms else "")
        self.uring = uring
        self.note = ""
        self.args = args
        self.work = os.path.join(work, self.name)
        self.root = os.path.join(self.work, "mnt")
        os.makedirs(self.root)
        self.server = Server(args, rtt_ms)
        self.passphrase = os.path.join(self.work, "passphrase")
        with open(self.passphrase, "w") as file:
            file.write("correct horse battery staple\n")
        self.sealfs("init", "s3://test/bench", *self.access())
        self.peak = 0
        self.mounted = False
        self.mount()

    def access(self):
        return (
            "--endpoint-url", self.server.endpoint,
            "--region", "us-east-1",
            "--passphrase-file", self.passphrase,
        )

    def sealfs(self, *arguments):
        return run(os.path.join(self.args.bin, "sealfs"), *arguments, env=self.server.env)

    def mount(self):
        self.sealfs(
            "mount", "s3://test/bench", self.root, *self.access(),
            "--cache-dir", os.path.join(self.work, "cache"),
            "--state-dir", os.path.join(self.work, "state"),
            "--log-file", os.path.join(self.work, "log"),
            *(("-o", "io_uring") if self.uring else ()),
        )  # fmt: skip
        self.mounted = True
        if self.uring:
            with open(os.path.join(self.work, "log")) as log:
                if "not over io_uring" in log.read():
                    raise RuntimeError("no io_uring: echo Y > /sys/module/fuse/parameters/enable_uring")

    def umount(self):
        self.note_rss()
        self.sealfs("umount", self.root)
        self.mounted = False

    def drain(self):
        self.sealfs("sync", self.root)

    def cold(self):
        self.umount()
        shutil.rmtree(os.path.join(self.work, "cache"), ignore_errors=True)
        drop_page_cache()
        self.mount()

    def warm(self):
        """Mounts again: memory has nothing of the mount, but all files of the local cache."""
        cache = os.path.join(self.work, "cache")
        self.umount()
        for directory, _, names in os.walk(cache):
            for name in names:
                with open(os.path.join(directory, name), "rb", buffering=0) as file:
                    while file.read(MIB):
                        pass
        self.mount()

    def note_rss(self):
        pid = json.loads(self.sealfs("status", "--json", self.root))["pid"]
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    self.peak = max(self.peak, int(line.split()[1]) / 1024)

    def rss_peak(self):
        if self.mounted:
            self.note_rss()
        return self.peak or None

    def counts(self):
        return self.server.counts()

    def written(self):
        """Objects that hold what was written: each of them was put once, under a name of its own."""
        keys = self.server.keys("bench/")
        return {key for key in keys if key.startswith(("bench/seg/", "bench/meta/wal/"))}

    def close(self):
        try:
            if self.mounted:
                self.umount()
        finally:
            subprocess.run(["fusermount3", "-uz", self.root], capture_output=True)
            self.server.close()


class Server:
    """The in-memory S3 server, behind the delay proxy if round trips are to take time."""

    def __init__(self, args, rtt_ms):
        examples = os.path.join(args.bin, "examples")
        self.tool = Tool(os.path.join(examples, "s3mem"), ready="secret_access_key")
        self.endpoint = self.tool.values["endpoint"]
        self.proxy = None
        if rtt_ms:
            to = self.endpoint.removeprefix("http://")
            command = [os.path.join(examples, "delay_proxy"), "--to", to, "--rtt-ms", str(rtt_ms)]
            if args.mib_per_s:
                command += ["--mib-per-s", str(args.mib_per_s)]
            self.proxy = Tool(*command, ready="listen")
            self.endpoint = "http://" + self.proxy.values["listen"]
        self.env = dict(
            os.environ,
            AWS_ACCESS_KEY_ID=self.tool.values["access_key_id"],
            AWS_SECRET_ACCESS_KEY=self.tool.values["secret_access_key"],
            AWS_EC2_METADATA_DISABLED="true",
        )

    def counts(self):
        with urllib.request.urlopen(self.tool.values["control"] + "/counts", timeout=10) as answer:
            return json.load(answer)

    def keys(self, prefix):
        url = f"{self.tool.values['control']}/keys?prefix={prefix}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return set(answer.read().decode().split())

    def close(self):
        if self.proxy:
            self.proxy.close()
        self.tool.close()


class Data:
    """Incompressible bytes, the same for every target; every MiB of a file differs."""

    def __init__(self):
        self.pool = random.Random(1).randbytes(32 * MIB)

    def piece(self, i, length=MIB):
        at = (i * 7919 * 64) % (len(self.pool) - length)
        return memoryview(self.pool)[at : at + length]


DATA = None


def rate(amount, start):
    return amount / (time.monotonic() - start)


def write_all(fd, data):
    while data:
        data = data[os.write(fd, data) :]


# --- phases: each takes (root, args), returns its figure; the cold ones are called cold ---------


def seq_write(root, args):
    start = time.monotonic()
    fd = os.open(f"{root}/big", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for i in range(args.size_mib):
        write_all(fd, DATA.piece(i))
    os.fsync(fd)
    os.close(fd)
    return rate(args.size_mib, start)


def seq_read(root, args):
    buffer = bytearray(MIB)
    start = time.monotonic()
    fd = os.open(f"{root}/big", os.O_RDONLY)
    for i in range(args.size_mib):
        if os.readv(fd, [buffer]) != MIB:
            raise RuntimeError(f"MiB {i} is short")
        # Comparing all would measure Python; a wrong place or key shows in any 4 KiB.
        if buffer[: 1 << 12] != DATA.piece(i)[: 1 << 12]:
            raise RuntimeError(f"MiB {i} is not what was written")
    os.close(fd)
    return rate(args.size_mib, start)


def hot_read(root, args):
    seq_read(root, args)
    return seq_read(root, args)


def cold_random(root, args):
    dice = random.Random(2)
    fd = os.open(f"{root}/big", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    start = time.monotonic()
    for _ in range(args.random_reads):
        i, page = dice.randrange(args.size_mib), dice.randrange(256)
        got = os.pread(fd, 4096, i * MIB + page * 4096)
        if got != DATA.piece(i)[page * 4096 : page * 4096 + 4096]:
            raise RuntimeError(f"page {page} of MiB {i} is not what was written")
    took = rate(args.random_reads, start)
    os.close(fd)
    return took


def append_fsync(root, args):
    fd = os.open(f"{root}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    start = time.monotonic()
    for i in range(args.appends):
        write_all(fd, DATA.piece(i, 4096))
        os.fsync(fd)
    took = rate(args.appends, start)
    os.close(fd)
    return took


def create_files(directory, count):
    os.mkdir(directory)
    start = time.monotonic()
    for i in range(count):
        fd = os.open(f"{directory}/file{i:06}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        write_all(fd, DATA.piece(i, 4096))
        os.close(fd)
    return rate(count, start)


def create(root, args):
    return create_files(f"{root}/files", args.files)


def cold_stat(root, args):
    start = time.monotonic()
    with os.scandir(f"{root}/files") as entries:
        sizes = [entry.stat(follow_symlinks=False).st_size for entry in entries]
    took = rate(len(sizes), start)
    if sizes != [4096] * args.files:
        raise RuntimeError(f"{len(sizes)} entries, not all of 4 KiB")
    return took


def cold_files(root, args):
    start = time.monotonic()
    for i in range(args.files):
        fd = os.open(f"{root}/files/file{i:06}", os.O_RDONLY)
        got = os.read(fd, 8192)
        os.close(fd)
        if got != DATA.piece(i, 4096):
            raise RuntimeError(f"file {i} is not what was written")
    return rate(args.files, start)


def rename_dir(root, args):
    times = []
    for i in range(5):
        start = time.monotonic()
        os.rename(f"{root}/files", f"{root}/renamed{i}")
        times.append((time.monotonic() - start) * 1000)
        os.rename(f"{root}/renamed{i}", f"{root}/files")
    return sorted(times)[len(times) // 2]


def untar(root, args):
    os.mkdir(f"{root}/tree")
    start = time.monotonic()
    run("tar", "-xf", args.tar, "-C", f"{root}/tree")
    return time.monotonic() - start


def cold_grep(root, args):
    start = time.monotonic()
    found = subprocess.run(
        ["grep", "-r", "no-file-has-these-words", f"{root}/tree"], capture_output=True
    )
    if found.returncode != 1:
        raise RuntimeError(f"grep ended with {found.returncode}: {found.stderr[:200]}")
    return time.monotonic() - start


def delete(root, args):
    names = os.listdir(f"{root}/files")
    start = time.monotonic()
    for name in names:
        os.unlink(f"{root}/files/{name}")
    took = rate(len(names), start)
    os.rmdir(f"{root}/files")
    return took


def ten_thousand(root, args):
    return create_files(f"{root}/ten-thousand", 10_000)


# -------------------------------------------------------------------------------------------------


def apart(phase, root, args):
    """The figure of one phase, run in a process that can be killed; or why there is none."""

    def body(pipe):
        try:
            pipe.send(phase(root, args))
        except BaseException as error:  # whatever it is, it is the phase's outcome
            pipe.send(f"failed: {error}")

    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=body, args=(theirs,), daemon=True)
    process.start()
    if not mine.poll(PHASE_SECONDS_MAX):
        process.kill()
        return f"failed: not done after {PHASE_SECONDS_MAX} s"
    try:
        outcome = mine.recv()
    except EOFError:
        outcome = "failed: the process of the phase died"
    process.join(10)
    return outcome


def measure(target, args):
    figures = {}

    def phase(row, function, cold=False, warm=False):
        try:
            if cold:
                target.drain()
                target.cold()
            if warm:
                target.warm()
            figures[row] = apart(function, target.root, args)
        except Exception as error:  # a target that cannot remount loses this figure
            figures[row] = f"failed: {error}"
        say(f"  {target.name:9} {row:14} {shown(figures[row])}")

    phase("seq_write", seq_write)
    phase("cold_read", seq_read, cold=True)
    if not isinstance(target, NullFs):
        drop_page_cache()
        phase("warm_read", seq_read)
    if isinstance(target, SealFs):
        phase("kept_read", seq_read, warm=True)
    phase("hot_read", hot_read)
    phase("cold_random", cold_random, cold=True)
    phase("append_fsync", append_fsync)
    phase("create", create)
    phase("cold_stat", cold_stat, cold=True)
    phase("cold_files", cold_files, cold=True)
    phase("rename_dir", rename_dir)
    start = time.monotonic()
    phase("untar", untar)
    if isinstance(target, SealFs):
        target.drain()
        figures["untar_sync"] = time.monotonic() - start
    phase("cold_grep", cold_grep, cold=True)
    phase("delete", delete)
    if isinstance(target, SealFs):
        target.drain()
        # Not those of a compaction, which is due to the phases before and falls anywhere.
        before = target.written()
        ten = apart(ten_thousand, target.root, args)
        target.drain()
        puts = len(target.written() - before)
        figures["puts_per_10k"] = puts if not isinstance(ten, str) else ten
        say(f"  {target.name:9} puts_per_10k   {shown(figures['puts_per_10k'])}")
        if args.idle_seconds:
            # The work left over from the phases (compaction, deletion) is not idling.
            time.sleep(args.settle_seconds)
            before = target.counts()
            time.sleep(args.idle_seconds)
            after = target.counts()
            kinds = [k for k in after if not k.startswith("bytes_")]
            asked = sum(after[k] - before[k] for k in kinds)
            figures["idle_per_hour"] = asked * 3600 / args.idle_seconds
            say(f"  {target.name:9} idle_per_hour  {shown(figures['idle_per_hour'])}")
    figures["rss_peak"] = target.rss_peak()
    return figures


def measure_raw(args, rtt_ms):
    server = Server(args, rtt_ms)
    try:
        rawget = os.path.join(args.bin, "examples/rawget")
        count = max(16, args.size_mib // 8)
        lines = run(rawget, "--endpoint", server.endpoint, "--count", str(count), env=server.env)
    finally:
        server.close()
    figures = {}
    for line in lines.splitlines():
        figure = json.loads(line)
        figures[figure["phase"]] = figure.get("mib_per_s", figure.get("per_s"))
    say(f"  raw{rtt_ms:g} {figures}")
    return figures


def make_tree(work):
    """A tar of the first TREE_FILES source files of the crates this machine has; a real tree."""
    home = os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo"))
    path = os.path.join(work, "tree.tar")
    names = []
    for crate in sorted(glob.glob(f"{home}/registry/src/*/*")):
        for directory, below, files in os.walk(crate):
            below.sort()
            names += [os.path.join(directory, name) for name in sorted(files)]
        if len(names) >= TREE_FILES:
            break
    if len(names) < 1000:
        raise SystemExit("hint: run cargo fetch first, the tree is made of the crates' sources")
    with tarfile.open(path, "w") as tar:
        for name in names[:TREE_FILES]:
            tar.add(name, os.path.relpath(name, home), recursive=False)
    return path, len(names[:TREE_FILES])


def shown(value):
    if value is None:
        return "-"
    if isinstance(value, str):
        return "failed"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(figures, tree):
    """The lines of the side-by-side table."""
    targets = [t for t in ("ext4", "nullfs", "sealfs", "sealfs20") if t in figures]
    raw = {"seq_write": "raw_put", "cold_read": "raw_get", "cold_random": "raw_get_4k"}
    header = ["phase", "unit", *targets, "raw", "raw20", "to ext4", "to nullfs", "goal", ""]
    rows = [header]
    for row, (title, unit, larger) in ROWS.items():
        values = {t: figures[t].get(row) for t in targets}
        if all(v is None for v in values.values()):
            continue
        ours = values.get("sealfs20", values.get("sealfs"))
        goal = GOALS[row](figures) if row in GOALS else None
        verdict = ""
        if goal is not None and isinstance(ours, (int, float)):
            met = ours >= goal if larger else ours <= goal
            verdict = "met" if met else "MISSED"
        elif goal is not None and isinstance(ours, str):
            verdict = "FAILED"
        rows.append(
            [
                title.format(tree=f"{tree:,}"),
                unit,
                *(shown(v) for v in values.values()),
                shown(figures.get("raw", {}).get(raw.get(row))),
                shown(figures.get("raw20", {}).get(raw.get(row))),
                ratio(ours, values.get("ext4")),
                ratio(ours, values.get("nullfs")),
                ("≥ " if larger else "≤ ") + shown(goal) if goal is not None else "",
                verdict,
            ]
        )
    return in_columns(rows)


def in_columns(rows):
    """The lines of a table: two columns of words, then figures."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        left = f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}"
        yield left + "".join(f"  {cell:>{w}}" for cell, w in zip(row[2:], widths[2:]))


def ratio(ours, theirs):
    if isinstance(ours, (int, float)) and isinstance(theirs, (int, float)) and theirs:
        return f"{ours / theirs:.2f}"
    return "-"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--bin", required=True, help="directory with sealfs and examples/")
    parser.add_argument("--work", default="/var/tmp", help="where files go (should be ext4)")
    parser.add_argument("--rtt-ms", type=float, default=20, help="round trip of the slow server")
    parser.add_argument("--mib-per-s", type=int, help="bandwidth of the slow server's link")
    parser.add_argument("--size-mib", type=int, default=1024, help="size of the large file")
    parser.add_argument("--files", type=int, default=4000, help="small files")
    parser.add_argument("--random-reads", type=int, default=200)
    parser.add_argument("--appends", type=int, default=300)
    parser.add_argument("--idle-seconds", type=int, default=60, help="0 leaves the phase out")
    parser.add_argument("--settle-seconds", type=int, default=20)
    parser.add_argument(
        "--targets",
        default="ext4,nullfs,sealfs,sealfs20,raw,raw20",
        help="uring, uring20: sealfs with -o io_uring, where root has switched that on",
    )
    parser.add_argument("--json", help="also write the figures there")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    args = parser.parse_args()
    if args.quick:
        args.size_mib, args.files, args.random_reads, args.appends = 128, 1000, 50, 100
        args.idle_seconds, args.settle_seconds = 20, 5
    args.bin = os.path.abspath(args.bin)

    global DATA
    DATA = Data()
    figures, notes = {}, []
    makers = {
        "ext4": lambda: Ext4(args, work),
        "nullfs": lambda: NullFs(args, work),
        "sealfs": lambda: SealFs(args, work, 0),
        "sealfs20": lambda: SealFs(args, work, args.rtt_ms),
        "uring": lambda: SealFs(args, work, 0, uring=True),
        "uring20": lambda: SealFs(args, work, args.rtt_ms, uring=True),
    }
    work = tempfile.mkdtemp(prefix="sealfs-bench-", dir=args.work)
    try:
        args.tar, tree = make_tree(work)
        for name in args.targets.split(","):
            say(name)
            try:
                if name in ("raw", "raw20"):
                    figures[name] = measure_raw(args, args.rtt_ms if name == "raw20" else 0)
                    continue
                target = makers[name]()
                try:
                    figures[name] = measure(target, args)
                    if target.note:
                        notes.append(target.note)
                finally:
                    target.close()
            except Exception as error:  # the other targets are still worth their figures
                say(f"  {name} failed: {error}")
                notes.append(f"{name} failed: {error}")
    finally:
        shutil.rmtree(work, ignore_errors=True)

    print("\n".join(table(figures, tree)))
    for target, rows in figures.items():
        for row, value in rows.items():
            if isinstance(value, str):
                notes.append(f"{target} {row}: {value}")
    for note in notes:
        print(f"note: {note}")
    print(f"sealfs20 has round trips of {args.rtt_ms:g} ms; ratios are of its figure")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(figures, file, indent=1)
    failed = any(isinstance(v, str) for rows in figures.values() for v in rows.values())
    sys.exit(1 if failed or len(figures) < len(args.targets.split(",")) else 0)


if __name__ == "__main__":
    main()
