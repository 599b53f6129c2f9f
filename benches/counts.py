#!/usr/bin/env python3
"""What things cost in requests, bytes and processor seconds of the daemon: figures that a busy
machine or a slow link changes little, unlike times.

    scripts/bench counts              cold reads, listings, deleting: what each asks of the store
    scripts/bench scale --files N     how much a create, fsck and a listing cost as files grow
    scripts/bench cost                dollars a month for three loads, by the requests they made
    scripts/bench snapshots --files N what making, reading, restoring and deleting snapshots costs
    scripts/bench readers             1, 3 and 16 readers of different large files at once, cold

Prices are Amazon's for S3 Standard in us-east-1 (list, 2026); data that leaves the region is not in
them. Called by scripts/bench, which builds what this needs.
"""

import argparse
import concurrent.futures
import json
import os
import random
import resource
import shutil
import subprocess
import tempfile
import time

import phases
from phases import MIB, say

DOLLARS_PUT = 0.005 / 1000  # PUT, COPY, POST, LIST
DOLLARS_GET = 0.0004 / 1000
DOLLARS_GIB_MONTH = 0.023
MONTH_SECONDS = 30 * 86400
PUTS = ("put", "upload_create", "upload_part", "upload_complete", "list", "copy")
GETS = ("get", "head")


class Mount(phases.SealFs):
    """A sealfs mount whose costs can be taken before and after."""

    def pid(self):
        return json.loads(self.sealfs("status", "--json", self.root))["pid"]

    def processor_seconds(self):
        with open(f"/proc/{self.pid()}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self):
        with open(f"/proc/{self.pid()}/status") as status:
            lines = dict(line.split(":", 1) for line in status)
        return int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024

    def forget(self):
        """Mounts again as a machine that has never seen the volume."""
        self.umount()
        for kept in ("cache", "state"):
            shutil.rmtree(os.path.join(self.work, kept), ignore_errors=True)
        phases.drop_page_cache()
        self.mount()

    def remount(self):
        """Mounts again with the local cache, and nothing in memory."""
        self.umount()
        phases.drop_page_cache()
        self.mount()

    def stored(self):
        """Bytes of the bucket: what was put less what was replaced is not known, so all of it."""
        return self.counts().get("bytes_in", 0)

    def asked(self):
        """Requests of the kernel by operation, since it was mounted."""
        operations = json.loads(self.sealfs("stats", "--json", self.root))["fuse"]["operations"]
        return {o["name"]: sum(o["times"]["counts"]) for o in operations}

    def cost_of(self, work, of=None):
        """Requests, processor seconds (the daemon's, or those of commands run) and time."""
        used_of = of or self.processor_seconds
        asked = self.asked()
        before, used, start = self.counts(), used_of(), time.monotonic()
        work()
        took, used = time.monotonic() - start, used_of() - used
        after, now = self.counts(), self.asked()
        self.last_asked = {k: n - asked.get(k, 0) for k, n in now.items() if n > asked.get(k, 0)}
        return {k: after[k] - before.get(k, 0) for k in after}, used, took


def kernel_asked(mount, count):
    each = sorted(mount.last_asked.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {n / count:.2f}" for name, n in each if n * 50 > count)
    print(f"  the kernel has asked, for each: {shown}", flush=True)


def of_commands():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def row(title, each, count, cost):
    counts, used, took = cost
    puts, gets = (sum(counts.get(k, 0) for k in kinds) for kinds in (PUTS, GETS))
    print(
        f"{title:38} {gets:7} GET {puts:6} PUT {counts.get('bytes_out', 0) / MIB:9.1f} MiB received"
        f" {counts.get('bytes_in', 0) / MIB:8.1f} sent  {used:7.2f} s processor"
        f" {1e6 * used / max(count, 1):9.1f} us {each}  ({took:.1f} s)",
        flush=True,
    )


def fill(root, files, dirs_of=1000, size=100, start=0):
    for n in range(start, start + files):
        directory = f"{root}/d{n // dirs_of // 100:03}/e{n // dirs_of % 100:02}"
        if n % dirs_of == 0:
            os.makedirs(directory, exist_ok=True)
        fd = os.open(f"{directory}/file-{n:08}.txt", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"%0*d" % (size, n))
        os.close(fd)


def fsck(mount):
    mount.sealfs(
        "fsck", "s3://test/bench", *mount.access(),
        "--state-dir", os.path.join(mount.work, "state-of-fsck"),
    )  # fmt: skip


def counts(args, work):
    mount = Mount(args, work, args.rtt_ms)
    root = mount.root
    try:
        os.mkdir(f"{root}/files")
        for n in range(args.files):
            with open(f"{root}/files/file{n:06}", "wb") as file:
                file.write(random.Random(n).randbytes(4096))
        pieces = [random.Random(n).randbytes(MIB) for n in range(min(args.size_mib, 64))]

        def written():
            with open(f"{root}/big", "wb") as file:
                for n in range(args.size_mib):
                    file.write(pieces[n % len(pieces)])
            mount.drain()

        mount.drain()
        row("write until in the bucket", "a MiB", args.size_mib, mount.cost_of(written))
        names = [f"{root}/files/file{n:06}" for n in range(args.files)]

        def read(paths):
            for path in paths:
                with open(path, "rb") as file:
                    file.read()

        def sequentially():
            with open(f"{root}/big", "rb", buffering=0) as file:
                while file.read(MIB):
                    pass

        def at_random():
            dice = random.Random(3)
            places = [dice.randrange(args.size_mib * 256) * 4096 for _ in range(1000)]
            fd = os.open(f"{root}/big", os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            with concurrent.futures.ThreadPoolExecutor(32) as pool:
                list(pool.map(lambda at: os.pread(fd, 4096, at), places))
            os.close(fd)

        def listed():
            return [entry.path for entry in os.scandir(f"{root}/files")]

        quiet = {"capture_output": True}
        works = [
            ("stat of all by name", args.files, "a file", lambda: [os.stat(n) for n in names]),
            ("read of all by name", args.files, "a file", lambda: read(names)),
            ("read of all in listing order", args.files, "a file", lambda: read(listed())),
            ("ls -l", args.files, "a file", lambda: subprocess.run(["ls", "-l", f"{root}/files"], **quiet)),
            ("sequential read", args.size_mib, "a MiB", sequentially),
            ("the same from the local cache", args.size_mib, "a MiB", sequentially),
            ("random 4 KiB, 32 at a time", 1000, "a read", at_random),
            ("fsck", args.files, "a file", lambda: fsck(mount)),
            ("rm -rf", args.files, "a file", lambda: subprocess.run(["rm", "-rf", f"{root}/files"])),
        ]  # fmt: skip
        for title, count, each, function in works:
            mount.drain()
            if title == "the same from the local cache":
                time.sleep(2)  # until it is written there
                mount.remount()
            else:
                mount.forget()
            of = of_commands if title == "fsck" else None
            row(title, each, count, mount.cost_of(function, of))
            if each == "a file" and title != "fsck":
                kernel_asked(mount, count)
    finally:
        mount.close()


def readers(args, work):
    mount = Mount(args, work, args.rtt_ms)
    each = max(args.size_mib // 4, 16)
    try:
        for k in range(16):
            with open(f"{mount.root}/large{k}", "wb") as file:
                for n in range(each):
                    file.write(phases.DATA.piece(n + k))
        mount.drain()

        def read(k):
            with open(f"{mount.root}/large{k}", "rb", buffering=0) as file:
                while file.read(MIB):
                    pass

        for turn in range(args.rounds):
            for many in (1, 3, 16):
                mount.forget()
                with concurrent.futures.ThreadPoolExecutor(many) as pool:
                    cost = mount.cost_of(lambda: list(pool.map(read, range(many))))
                row(f"{many} at once, {each * many / cost[2]:.0f} MiB/s in sum", "a MiB", each * many, cost)
                print("  resident, peak: %.0f, %.0f MiB" % mount.resident_mib(), flush=True)
    finally:
        mount.close()


def scale(args, work):
    mount = Mount(args, work, args.rtt_ms)
    try:
        step = max(args.files // 10, 1000)
        for made in range(0, args.files, step):
            cost = mount.cost_of(lambda: fill(mount.root, step, start=made))
            row(f"create, {made + step:,} files then", "a file", step, cost)
            print("  resident, peak: %.0f, %.0f MiB" % mount.resident_mib(), flush=True)
        mount.drain()
        mount.forget()
        quiet = {"capture_output": True}
        find = ["find", mount.root, "-name", "*9.txt"]
        row("find -name", "a file", args.files, mount.cost_of(lambda: subprocess.run(find, **quiet)))
        print("  resident, peak: %.0f, %.0f MiB" % mount.resident_mib(), flush=True)
        checked = mount.cost_of(lambda: fsck(mount), of_commands)
        row("fsck beside the mount", "a file", args.files, checked)
        remove = ["rm", "-rf", f"{mount.root}/d000/e00"]
        row("rm -rf of 1,000 files", "a file", 1000, mount.cost_of(lambda: subprocess.run(remove)))
        mount.drain()
    finally:
        mount.close()


def snapshots(args, work):
    mount = Mount(args, work, args.rtt_ms)
    root, past = mount.root, f"{mount.root}/.snapshots"
    quiet = {"capture_output": True, "check": True}

    def do(title, function, count=1, each="in all", of=None):
        row(title, each, count, mount.cost_of(function, of))

    def snapshot(*words):
        return mount.sealfs("snapshot", *words)

    def change(first, files):
        for n in range(first, first + files):
            with open(f"{root}/d000/e{n % 100:02}/changed-{n}", "wb") as file:
                file.write(b"%04d" % n)

    def resident(title):
        print("  resident, peak, %s: %.0f, %.0f MiB" % (title, *mount.resident_mib()), flush=True)

    try:
        begun = time.monotonic()
        fill(root, args.files)
        mount.drain()
        print(f"  {args.files:,} files made in {time.monotonic() - begun:.0f} s", flush=True)
        do("create, all in the bucket", lambda: snapshot("create", root, "a"))
        change(0, 10)
        do("create, 10 new files not yet there", lambda: snapshot("create", root, "b"))
        mount.forget()
        resident("mounted")
        do("list, cold", lambda: snapshot("list", root))
        do("first ls in one, cold", lambda: os.listdir(f"{past}/a"))
        listed = ["ls", "-l", f"{past}/a/d000/e07"]
        do("ls -l of 1,000 names in it, cold", lambda: subprocess.run(listed, **quiet))
        mount.forget()
        do("diff of 10 new files, cold", lambda: snapshot("diff", root, "a", "b"), args.files, "a file")
        resident("after the diff")

        def in_place():
            for n in range(10):
                with open(f"{root}/d000/e{n:02}/file-{n * 1000:08}.txt", "ab") as file:
                    file.write(b"more")
            snapshot("create", root, "c")

        in_place()
        mount.forget()
        do("diff of 10 files changed in place, cold", lambda: snapshot("diff", root, "b", "c"), args.files, "a file")
        mount.forget()
        some = min(args.files, 100_000)
        restored = ("restore", root, "a", "d000", "--to", "back")
        do("restore beside, cold", lambda: snapshot(*restored), some, "a file")
        do("the same until the bucket has it", mount.drain, some, "a file")
        in_place = ("restore", root, "a", "d000")
        do("restore where nothing has changed", lambda: snapshot(*in_place), some, "a file")
        mount.forget()
        resident("mounted")

        def many():
            for n in range(100):
                change(100 + n, 1)
                snapshot("create", root, f"s{n}")

        do("100 snapshots, a new file before each", many, 100, "each")
        resident("100 snapshots")
        do("ls in each of 100", lambda: [os.listdir(f"{past}/s{n}") for n in range(100)], 100, "each")
        resident("100 snapshots open")
        time.sleep(args.idle_seconds)
        resident(f"{args.idle_seconds} s later")
        names = [f"s{n}" for n in range(100)]
        do("delete of 100", lambda: snapshot("delete", root, *names), 100, "each")
        do("delete of one", lambda: snapshot("delete", root, "b"))
    finally:
        mount.close()


def a_month(title, counts, seconds, gib):
    """What `counts`, of so many seconds, come to in a month, with so much stored."""
    times = MONTH_SECONDS / seconds
    puts, gets = (sum(counts.get(k, 0) for k in kinds) * times for kinds in (PUTS, GETS))
    asked, kept = puts * DOLLARS_PUT + gets * DOLLARS_GET, gib * DOLLARS_GIB_MONTH
    sent, received = (counts.get(k, 0) * times / (1 << 30) for k in ("bytes_in", "bytes_out"))
    print(
        f"{title:52} {puts / 30:9,.0f} PUT {gets / 30:9,.0f} GET a day, {sent:8,.1f} GiB sent,"
        f" {received:7,.1f} received; ${asked:.2f} of requests + ${kept:.2f} for {gib:g} GiB a month",
        flush=True,
    )


def cost(args, work):
    mount = Mount(args, work, 0)
    try:
        fill(mount.root, 2000)
        mount.drain()
        time.sleep(args.settle_seconds)
        idle, _, took = mount.cost_of(lambda: time.sleep(args.seconds))
        a_month("mounted, nothing done", idle, took, 10)

        def steady():
            end = time.monotonic() + args.seconds
            n = 0
            while time.monotonic() < end:
                with open(f"{mount.root}/changed-{n % 50}", "wb") as file:
                    file.write(os.urandom(4096))
                n += 1
                time.sleep(1)

        one, _, took = mount.cost_of(steady)
        a_month("a file of 4 KiB changed every second, always", one, took, 10)

        def nightly():
            os.makedirs(f"{mount.root}/backup", exist_ok=True)
            for n in range(args.size_mib):
                with open(f"{mount.root}/backup/{n}", "wb") as file:
                    file.write(random.Random(n).randbytes(MIB))
            mount.drain()

        night, _, _ = mount.cost_of(nightly)
        whole = {k: v * (10 * 1024 / args.size_mib) for k, v in night.items()}
        whole = {k: v + idle.get(k, 0) * 86400 / args.seconds for k, v in whole.items()}
        a_month(f"10 GiB of new files a night (from {args.size_mib} MiB)", whole, 86400, 300)
    finally:
        mount.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("counts", "scale", "cost", "snapshots", "readers"))
    parser.add_argument("--bin", required=True, help="directory with sealfs and examples/")
    parser.add_argument("--work", default="/var/tmp", help="where local state goes")
    parser.add_argument("--rtt-ms", type=float, default=20)
    parser.add_argument("--mib-per-s", type=int, help="bandwidth of the link")
    parser.add_argument("--files", type=int, help="4,000; of scale and snapshots 100,000")
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2, help="of readers")
    parser.add_argument("--seconds", type=int, default=120, help="of each load of cost")
    parser.add_argument("--settle-seconds", type=int, default=20)
    parser.add_argument("--idle-seconds", type=int, default=200, help="of open snapshots")
    args = parser.parse_args()
    args.bin = os.path.abspath(args.bin)
    args.files = args.files or (100_000 if args.what in ("scale", "snapshots") else 4000)
    phases.COMMAND_SECONDS_MAX = 3600
    phases.DATA = phases.Data()
    work = tempfile.mkdtemp(prefix="sealfs-counts-", dir=args.work)
    say(f"{args.what}: {args.files:,} files, round trips of {args.rtt_ms:g} ms")
    try:
        works = {
            "counts": counts, "scale": scale, "cost": cost, "snapshots": snapshots, "readers": readers,
        }  # fmt: skip
        works[args.what](args, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
