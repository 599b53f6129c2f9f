#!/usr/bin/env python3
"""Random overwrites of 4 KiB, each with fdatasync, by more and more writers: what group commit gives.

    scripts/bench writers                       1 to 32 writers, a file of 8 MiB for each
    scripts/bench writers --one-file            the same, all in one file
    scripts/bench writers --writers 8 --rounds 5

Targets take turns within a round: ext4 (the directory --work lies in), the do-nothing FUSE file
system, and sealfs on the in-memory S3 server. Printed are medians of the rounds, the ratio to ext4
in the same round, and what one fdatasync costs the daemon. Called by scripts/bench, which builds
what this needs.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import time

import counts
import phases
from phases import say

BLOCK = 4096


def writer(path, size, seed, seconds, begin, pipe):
    fd = os.open(path, os.O_RDWR)
    dice, data, blocks = random.Random(seed), random.Random(seed).randbytes(BLOCK), size // BLOCK
    begin.wait()
    end, done, longest = time.monotonic() + seconds, 0, 0.0
    while (start := time.monotonic()) < end:
        os.pwrite(fd, data, dice.randrange(blocks) * BLOCK)
        os.fdatasync(fd)
        longest = max(longest, time.monotonic() - start)
        done += 1
    os.close(fd)
    pipe.send((done, longest))


def overwrite(root, writers, args):
    """Overwrites a second by all writers, and the longest that one of them took."""
    begin, running = multiprocessing.Barrier(writers), []
    for n in range(writers):
        ours, theirs = multiprocessing.Pipe(False)
        path = os.path.join(root, f"w{0 if args.one_file else n}")
        process = multiprocessing.Process(
            target=writer, args=(path, args.size_mib << 20, n, args.seconds, begin, theirs)
        )
        process.start()
        running.append((process, ours))
    answers = [pipe.recv() for _, pipe in running]
    for process, _ in running:
        process.join()
    return sum(a[0] for a in answers) / args.seconds, max(a[1] for a in answers)


def used(mount):
    """Processor seconds and context switches of the daemon so far."""
    pid = mount.pid()
    switches = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/status") as status:
            lines = dict(line.split(":", 1) for line in status)
        switches += int(lines["voluntary_ctxt_switches"]) + int(lines["nonvoluntary_ctxt_switches"])
    return mount.processor_seconds(), switches


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("writers",))
    parser.add_argument("--bin", required=True, help="directory with sealfs and examples/")
    parser.add_argument("--work", default="/var/tmp", help="where local state and ext4's files go")
    parser.add_argument("--writers", default="1,2,4,8,16,32")
    parser.add_argument("--one-file", action="store_true", help="all of them in one file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--size-mib", type=int, default=8)
    parser.add_argument("--targets", default="ext4,nullfs,sealfs")
    parser.add_argument("--rtt-ms", type=float, default=0)
    parser.add_argument("--mib-per-s", type=int, help="bandwidth of the link")
    args = parser.parse_args()
    args.bin = os.path.abspath(args.bin)
    work = tempfile.mkdtemp(prefix="sealfs-writers-", dir=args.work)
    made = {
        "ext4": lambda: phases.Ext4(args, work),
        "nullfs": lambda: phases.NullFs(args, work),
        "sealfs": lambda: counts.Mount(args, work, args.rtt_ms),
    }
    targets = {}
    try:
        for name in args.targets.split(","):
            targets[name] = made[name]()
        numbers = [int(n) for n in args.writers.split(",")]
        for target in targets.values():
            for n in range(1 if args.one_file else max(numbers)):
                with open(os.path.join(target.root, f"w{n}"), "wb") as file:
                    file.write(random.Random(n).randbytes(args.size_mib << 20))
            target.drain()
        os.sync()
        for number in numbers:
            measure(targets, number, args)
    finally:
        for target in targets.values():
            target.close()
        shutil.rmtree(work, ignore_errors=True)


def measure(targets, number, args):
    rates, costs, longest = {name: [] for name in targets}, [], {name: 0.0 for name in targets}
    for _ in range(args.rounds):
        for name, target in targets.items():
            before = used(target) if name == "sealfs" else None
            rate, slowest = overwrite(target.root, number, args)
            if before:
                done = rate * args.seconds
                costs.append([(b - a) / done for a, b in zip(before, used(target))])
            target.drain()
            rates[name].append(rate)
            longest[name] = max(longest[name], slowest)
    text = f"{number:3} writers:"
    for name, got in rates.items():
        text += f"  {name} {statistics.median(got):8,.0f}/s (longest {1e3 * longest[name]:.0f} ms)"
    if "sealfs" in rates:
        for other in rates.keys() - {"sealfs"}:
            ratio = statistics.median(s / o for s, o in zip(rates["sealfs"], rates[other]))
            text += f"  to {other} {ratio:.2f}"
    if costs:
        processor, switches = (statistics.median(c) for c in zip(*costs))
        text += f"  processor {1e6 * processor:.0f} us, switches {switches:.1f}"
    print(text, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say("interrupted")
