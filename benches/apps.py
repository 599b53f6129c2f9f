#!/usr/bin/env python3
"""What programs that people run take on sealfs, in turns with ext4 and a file system that does nothing.

    scripts/bench apps                all of it (about an hour)
    scripts/bench apps --quick        small sizes, once each (some minutes)
    scripts/bench apps --only sqlite,git

Interrupted (Ctrl-C), it prints the table of what it has and clears up.

Every figure is a ratio to ext4, the directory --work lies in, of the same round: on a machine that others
use, times alone say little. `nullfs` keeps nothing and syncs nothing; it is what FUSE alone takes. Beside
them stand the processor seconds of the sealfs daemon, and how long it took until all was in the bucket,
behind round trips of --rtt-ms. What a program is missing for is left out, and said so. Called by
scripts/bench, which builds what this needs.
"""

import argparse
import glob
import json
import os
import pwd
import shutil
import sqlite3
import statistics
import sys
import tarfile
import tempfile
import time

import counts
import phases
from phases import run, say

SECONDS_MAX = 3600
# name -> (title, unit, larger is better)
ROWS = {
    "pgbench": ("PostgreSQL, pgbench, {clients} clients", "tps", True),
    "sqlite": ("SQLite, a transaction an insert", "inserts/s", True),
    "sqlite_wal": ("the same with a write-ahead log", "inserts/s", True),
    "git": ("git clone of this repository", "s", False),
    "npm": ("npm install of {packages}", "s", False),
    "untar": ("untar of {tree_files:,} files", "s", False),
    "rm": ("rm -r of them", "s", False),
}


class LeftOut(Exception):
    """What a measurement needs is not here."""


def need(*tools):
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        raise LeftOut(f"{', '.join(missing)} is not installed")


def seconds(work):
    start = time.monotonic()
    work()
    return time.monotonic() - start


# --- each takes (directory, args, shared), returns its figure ------------------------------------------


def pgbench(directory, args, shared):
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin")) + [os.path.dirname(shutil.which("initdb") or "")]
    found = [d for d in found if os.path.exists(os.path.join(d, "postgres"))]
    if not found:
        raise LeftOut("postgresql is not installed")
    need("pgbench")
    tool = lambda name: os.path.join(found[0], name)
    as_user = []
    sockets = tempfile.mkdtemp(prefix="sealfs-pg-")
    data = os.path.join(directory, "pg")
    os.mkdir(data, 0o700)
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        need("runuser")
        user = pwd.getpwnam("postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
        for path in (data, sockets):
            os.chown(path, user.pw_uid, user.pw_gid)
    control = [*as_user, tool("pg_ctl"), "-D", data, "-w", "-t", "120"]
    try:
        run(*as_user, tool("initdb"), "-D", data, "-A", "trust", "-U", "bench", cwd="/")
        options = f"-k {sockets} -c listen_addresses="
        log = os.path.join(sockets, "log")
        run(*control, "-o", options, "-l", log, "start", cwd="/")
        try:
            bench = ["pgbench", "-h", sockets, "-U", "bench", "postgres"]
            run(*bench, "-i", "-q", "-s", str(args.pg_scale), cwd="/")
            text = run(*bench, "-c", str(args.clients), "-j", "2", "-T", str(args.pg_seconds), cwd="/")
            return next(float(l.split()[2]) for l in text.splitlines() if l.startswith("tps"))
        finally:
            run(*control, "-m", "fast", "stop", cwd="/")
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


def insert(directory, args, mode):
    database = sqlite3.connect(os.path.join(directory, f"{mode}.db"), isolation_level=None)
    try:
        database.execute(f"pragma journal_mode={mode}")
        database.execute("pragma synchronous=full")
        database.execute("create table t (id integer primary key, text text)")
        start = time.monotonic()
        for n in range(args.inserts):
            database.execute("insert into t (text) values (?)", (f"{n:0100}",))
        rate = phases.rate(args.inserts, start)
        (found,) = database.execute("select count(*) from t").fetchone()
        if found != args.inserts:
            raise RuntimeError(f"{found} rows of {args.inserts}")
        return rate
    finally:
        database.close()


def sqlite(directory, args, shared):
    return insert(directory, args, "delete")


def sqlite_wal(directory, args, shared):
    return insert(directory, args, "wal")


def git(directory, args, shared):
    need("git")
    # A server's files, so that the clone is what a clone from elsewhere is: a pack is written.
    source = "file://" + os.path.abspath(args.repository)
    return seconds(lambda: run("git", "clone", "-q", source, os.path.join(directory, "clone")))


def npm(directory, args, shared):
    need("npm")
    cache = os.path.join(shared, "npm")
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--cache", cache]
    if not os.path.exists(cache):
        first = os.path.join(shared, "first")
        os.mkdir(first)
        try:
            run(*install, *args.packages.split(","), cwd=first)
        except RuntimeError as e:
            shutil.rmtree(cache, ignore_errors=True)
            raise LeftOut(f"no packages to be had: {e}") from e
    project = os.path.join(directory, "project")
    os.mkdir(project)
    return seconds(lambda: run(*install, "--prefer-offline", *args.packages.split(","), cwd=project))


def untar(directory, args, shared):
    tree = os.path.join(directory, "tree")
    os.mkdir(tree)
    return seconds(lambda: run("tar", "-xf", tree_of(args, shared), "-C", tree))


def rm(directory, args, shared):
    tree = os.path.join(directory, "tree")
    if not os.path.exists(tree):
        raise LeftOut("untar is not among what runs")
    return seconds(lambda: run("rm", "-r", tree))


def tree_of(args, shared):
    """A tar of as many source files as a kernel has: those of the crates here, as often as needed."""
    path = os.path.join(shared, "tree.tar")
    if os.path.exists(path):
        return path
    home = os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo"))
    names = sorted(glob.glob(f"{home}/registry/src/*/*/**", recursive=True))
    names = [name for name in names if os.path.isfile(name)]
    if not names:
        raise LeftOut("the tree is made of the sources of crates: cargo fetch")
    with tarfile.open(path + ".part", "w") as tar:
        for n in range(args.tree_files):
            again, name = divmod(n, len(names))
            tar.add(names[name], f"{again}/" + os.path.relpath(names[name], home), recursive=False)
    os.rename(path + ".part", path)
    return path


# -------------------------------------------------------------------------------------------------


def measure(target, name, round_, args, shared):
    """The figure, and for sealfs processor seconds and the seconds until the bucket has it."""
    directory = os.path.join(target.root, f"{name if name != 'rm' else 'untar'}-{round_}")
    os.makedirs(directory, exist_ok=True)
    os.chmod(directory, 0o755)
    is_ours = isinstance(target, counts.Mount)
    before = target.processor_seconds() if is_ours else 0
    start = time.monotonic()
    figure = globals()[name](directory, args, shared)
    took = time.monotonic() - start
    used = target.processor_seconds() - before if is_ours else None
    target.drain()
    stored = time.monotonic() - start if is_ours else None
    if name not in ("untar",):
        shutil.rmtree(directory, ignore_errors=True)
    return {"figure": figure, "took": took, "processor": used, "stored": stored}


def in_turns(targets, round_, args, shared, results):
    """One round of all measurements on all targets; whether none failed (of a file system that does
    nothing not everything can be expected)."""
    whole = True
    for row in [row for row in ROWS if row in args.only.split(",")]:
        figures = {}
        results.setdefault(row, []).append(figures)
        for name, target in targets.items():
            try:
                figures[name] = measure(target, row, round_, args, shared)
                say(f"  {name:7} {row:11} {phases.shown(figures[name]['figure'])}")
            except LeftOut as why:
                say(f"  {name:7} {row:11} left out: {why}")
            except Exception as error:
                say(f"  {name:7} {row:11} failed: {error}")
                whole = whole and name == "nullfs"
    return whole


def table(results, args, names):
    rows = [["", "", *names, "to ext4", "to nullfs", "processor", "in the bucket"]]
    ours = "sealfs" if "sealfs" in names else "uring"
    if {"sealfs", "uring"} <= set(names):
        rows[0].append("to uring")
    for row, (title, unit, larger) in ROWS.items():
        rounds = results.get(row)
        if not rounds:
            continue
        middle = lambda target, key: statistics.median(
            [r[target][key] for r in rounds if target in r and r[target][key] is not None] or [0]
        )
        to = lambda target: statistics.median(
            [r[ours]["figure"] / r[target]["figure"] for r in rounds if {ours, target} <= r.keys()]
            or [0]
        )
        shown = lambda value, form="{:.2f}": form.format(value) if value else "-"
        rows.append(
            [
                title.format(**vars(args)),
                unit,
                *(phases.shown(middle(target, "figure") or None) for target in names),
                shown(to("ext4")),
                shown(to("nullfs")),
                shown(middle(ours, "processor"), "{:.1f} s"),
                shown(middle(ours, "stored"), "{:.1f} s"),
                *([shown(to("uring"))] if "to uring" in rows[0] else []),
            ]
        )
    return phases.in_columns(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("apps",))
    parser.add_argument("--bin", required=True, help="directory with sealfs and examples/")
    parser.add_argument("--work", default="/var/tmp", help="where files and local state go (should be ext4)")
    parser.add_argument("--rtt-ms", type=float, default=20)
    parser.add_argument("--mib-per-s", type=int, help="bandwidth of the link")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(ROWS), help="some of " + ",".join(ROWS))
    parser.add_argument("--targets", default="ext4,nullfs,sealfs", help="uring: sealfs with -o io_uring")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pg-scale", type=int, default=10)
    parser.add_argument("--pg-seconds", type=int, default=30)
    parser.add_argument("--inserts", type=int, default=2000)
    parser.add_argument("--packages", default="express,lodash,typescript")
    parser.add_argument("--repository", default=os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parser.add_argument("--tree-files", type=int, default=85_000, help="Linux 6.12 has 87,000")
    parser.add_argument("--json", help="also write the figures there")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.pg_scale, args.pg_seconds, args.clients = 1, 1, 5, 4
        args.inserts, args.tree_files, args.packages = 200, 5000, "express"
    args.bin = os.path.abspath(args.bin)
    unknown = [n for n in args.only.split(",") if n not in ROWS]
    if unknown:
        parser.error(f"no such thing to measure: {', '.join(unknown)}")
    phases.COMMAND_SECONDS_MAX = SECONDS_MAX
    work = tempfile.mkdtemp(prefix="sealfs-apps-", dir=args.work)
    os.chmod(work, 0o755)
    shared = os.path.join(work, "shared")
    os.mkdir(shared)
    make = {
        "ext4": lambda: phases.Ext4(args, work),
        "nullfs": lambda: phases.NullFs(args, work),
        "sealfs": lambda: counts.Mount(args, work, args.rtt_ms),
        "uring": lambda: counts.Mount(args, work, args.rtt_ms, uring=True),
    }
    targets, results = {}, {}
    try:
        for name in args.targets.split(","):
            targets[name] = make[name]()
        try:
            whole = all([in_turns(targets, n, args, shared, results) for n in range(args.rounds)])
        except KeyboardInterrupt:
            say("interrupted: the table is of what was measured until then")
            whole = False
        print("\n".join(table(results, args, list(targets))), flush=True)
        if args.json:
            with open(args.json, "w") as file:
                json.dump(results, file, indent=1)
    finally:
        for target in targets.values():
            if target.note:
                say(f"note: {target.note}")
            target.close()
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    main()
