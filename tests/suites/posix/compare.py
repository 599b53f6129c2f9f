# Does the same things on the file system in which it is started, and prints a line for each with
# what came of it. tests/posix/compare.rs runs it on ext4 and on a mount, and compares. As root.
import ctypes
import errno
import mmap
import os
import stat
import sys

ANN, BOB, TEAM = 41001, 41002, 41100
libc = ctypes.CDLL(None, use_errno=True)


def attempt(f, *args, **named):
    try:
        return f(*args, **named)
    except OSError as e:
        return errno.errorcode[e.errno]


def call(function, *args):
    if function(*args) < 0:
        raise OSError(ctypes.get_errno(), "")


FSETID = 1 << 4


def capabilities(effective):
    """Puts these in force, of those that root has."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    call(libc.capget, header, data)
    data[0], data[3] = effective, 0
    call(libc.capset, header, data)


def as_user(uid, gid, groups, effective, work):
    """What `work()` prints, done by another user with these capabilities; None: as it comes."""
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    if effective is not None:
        capabilities(effective)
    try:
        work()
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


def make(kind, name):
    if os.path.lexists(name):
        (os.rmdir if stat.S_ISDIR(os.lstat(name).st_mode) else os.unlink)(name)
    if kind == "file":
        with open(name, "wb") as f:
            f.write(b"#" * 10000)
    elif kind == "dir":
        os.mkdir(name)
    elif kind == "symlink":
        os.symlink("nowhere", name)
    else:
        node = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "char": stat.S_IFCHR, "block": stat.S_IFBLK}
        os.mknod(name, node[kind] | 0o644, os.makedev(1, 3))


def acl(*entries):
    value = b"\x02\0\0\0"
    for tag, perm, who in entries:
        value += tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little")
    return value


NOBODY = 0xFFFFFFFF
MINIMAL = acl((1, 6, NOBODY), (4, 4, NOBODY), (0x20, 4, NOBODY))
EXTENDED = acl((1, 6, NOBODY), (2, 7, ANN), (4, 4, NOBODY), (0x10, 7, NOBODY), (0x20, 4, NOBODY))


def names():
    """Extended attributes: every namespace, on every kind of file, by users of all kinds."""
    kinds = ["file", "dir", "symlink", "fifo", "socket", "char", "block"]
    spaces = ["user.", "trusted.", "security.", "system."]
    tried = spaces + [s + "x" for s in spaces] + [s[:-1] for s in spaces] + [
        "system.posix_acl_access", "system.posix_acl_default", "system.posix_acl_x",
        "system.posix_acl_access2", "system.data", "system.nfs4_acl", "system.richacl", "system.advise",
        "security.capability", "other.x", "other", ".x", "User.x", "btrfs.compression", "os2.x",
        "user.x.y", "user." + "n" * 250, "user." + "n" * 251, "x" * 255, "x" * 256,
    ]
    users = [("root", 0, 0, [], None), ("ann", ANN, ANN, [], None), ("bob", BOB, BOB, [], None),
             ("team", BOB, BOB, [TEAM], None)]
    for kind in kinds:
        for perm in (0o600, 0o664, 0o1777):
            if perm == 0o1777 and kind != "dir":
                continue
            make(kind, "x")
            if kind != "symlink":
                os.chmod("x", perm)
            os.lchown("x", ANN, TEAM)
            if kind in ("file", "dir"):
                os.setxattr("x", "user.there", b"there")
            os.setxattr("x", "trusted.there", b"there", follow_symlinks=False)
            os.setxattr("x", "security.there", b"there", follow_symlinks=False)
            for user, *ids in users:
                def work():
                    lists = attempt(os.listxattr, "x", follow_symlinks=False)
                    print(kind, oct(perm), user, "list", lists if isinstance(lists, str) else sorted(lists))
                    for name in tried + ["user.there", "trusted.there", "security.there"]:
                        acls = [MINIMAL, EXTENDED] if "acl" in name else []
                        for value in [b"value", b""] + acls:
                            for how in (os.XATTR_REPLACE, os.XATTR_CREATE, 0, 3):
                                came = attempt(os.setxattr, "x", name, value, how, follow_symlinks=False)
                                mode = oct(os.lstat("x").st_mode)
                                print(kind, oct(perm), user, "set", name[:40], len(name), value[:12], how, came, mode)
                            got = attempt(os.getxattr, "x", name, follow_symlinks=False)
                            print(kind, oct(perm), user, "get", name[:40], len(name), got)
                            gone = attempt(os.removexattr, "x", name, follow_symlinks=False)
                            print(kind, oct(perm), user, "remove", name[:40], len(name), gone)
                            if kind in ("file", "dir"):
                                attempt(os.setxattr, "x", "user.there", b"there")
                            attempt(os.setxattr, "x", "trusted.there", b"there", follow_symlinks=False)
                            attempt(os.setxattr, "x", "security.there", b"there", follow_symlinks=False)
                as_user(*ids, work)
            make(kind, "x")
            (os.rmdir if kind == "dir" else os.unlink)("x")
    # Sizes.
    make("file", "x")
    print("largest", attempt(os.setxattr, "x", "user.big", b"x" * 65537))
    print("flags", attempt(os.setxattr, "x", "user.a", b"x", 4))
    os.setxattr("x", "user.ten", b"0123456789")
    buffer = ctypes.create_string_buffer(100)
    for size in (0, 1, 9, 10, 100):
        got = attempt(call, libc.getxattr, b"x", b"user.ten", buffer, size)
        length = libc.getxattr(b"x", b"user.ten", buffer, size)
        print("get into", size, got, length)
        print("list into", size, attempt(call, libc.listxattr, b"x", buffer, size), libc.listxattr(b"x", buffer, size))
    os.unlink("x")


PUNCH, ZERO, KEEP = 2, 16, 1


def fallocate(fd, mode, at, length):
    call(libc.fallocate, fd, mode, ctypes.c_long(at), ctypes.c_long(length))


def mapped(fd, _other):
    with mmap.mmap(fd, 4096) as m:
        m[0:1] = b"m"
        m.flush()


def appended(fd, _other):
    os.lseek(fd, 0, os.SEEK_END)
    os.write(fd, b"x")


def direct(fd, _other):
    with mmap.mmap(-1, 4096) as page:
        os.pwritev(fd, [page], 0)


CONTENTS = {
    "write": (os.O_RDWR, lambda fd, o: os.write(fd, b"x")),
    "append": (os.O_RDWR, appended),
    "write behind": (os.O_RDWR, lambda fd, o: os.pwrite(fd, b"x", 1 << 20)),
    "write nothing": (os.O_RDWR, lambda fd, o: os.write(fd, b"")),
    "twice": (os.O_RDWR, lambda fd, o: (os.write(fd, b"x"), os.write(fd, b"y"))),
    "write, fsync": (os.O_RDWR, lambda fd, o: (os.write(fd, b"x"), os.fsync(fd))),
    "O_SYNC": (os.O_RDWR | os.O_SYNC, lambda fd, o: os.write(fd, b"x")),
    "O_DIRECT": (os.O_RDWR | os.O_DIRECT, direct),
    "O_APPEND": (os.O_WRONLY | os.O_APPEND, lambda fd, o: os.write(fd, b"x")),
    "O_TRUNC": (os.O_RDWR | os.O_TRUNC, lambda fd, o: None),
    "shorter": (os.O_RDWR, lambda fd, o: os.ftruncate(fd, 5)),
    "to nothing": (os.O_RDWR, lambda fd, o: os.ftruncate(fd, 0)),
    "longer": (os.O_RDWR, lambda fd, o: os.ftruncate(fd, 50000)),
    "same length": (os.O_RDWR, lambda fd, o: os.ftruncate(fd, 10000)),
    "truncate": (os.O_RDWR, lambda fd, o: os.truncate("x", 7)),
    "fallocate": (os.O_RDWR, lambda fd, o: fallocate(fd, 0, 0, 20000)),
    "fallocate, kept": (os.O_RDWR, lambda fd, o: fallocate(fd, KEEP, 0, 20000)),
    "punch": (os.O_RDWR, lambda fd, o: fallocate(fd, PUNCH | KEEP, 0, 4096)),
    "zero": (os.O_RDWR, lambda fd, o: fallocate(fd, ZERO, 0, 4096)),
    "copy_file_range": (os.O_RDWR, lambda fd, o: os.copy_file_range(o, fd, 5000, 0, 100)),
    "copy nothing": (os.O_RDWR, lambda fd, o: os.copy_file_range(o, fd, 5000, 99999, 0)),
    "sendfile": (os.O_RDWR, lambda fd, o: os.sendfile(fd, o, 0, 5000)),
    "mmap": (os.O_RDWR, mapped),
    "read": (os.O_RDWR, lambda fd, o: os.read(fd, 10)),
}
# Who changes a file of ann, group team: name, uid, gid, other groups, capabilities.
USERS = [
    ("root", 0, 0, [], None),
    ("ann", ANN, ANN, [], None),
    ("ann of team", ANN, ANN, [7, TEAM], None),
    ("bob", BOB, BOB, [], None),
    ("bob of team", BOB, BOB, [TEAM], None),
    ("bob in team", BOB, TEAM, [], None),
    ("bob with CAP_FSETID", BOB, BOB, [], FSETID),
]
MODES = [0o2666, 0o6666, 0o4666, 0o6777, 0o2676, 0o2777, 0o7666, 0o0666]


def shown(name):
    """As the kernel has it, and as it is asked for again."""
    mode = os.lstat(name).st_mode
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW)
    again = os.fstat(fd).st_mode
    os.close(fd)
    assert mode == again, (oct(mode), oct(again))
    return oct(stat.S_IMODE(mode))


def bits():
    """Set-id bits after every change of contents, owner, mode and list, by users of all kinds."""
    make("file", "other")
    os.chmod("other", 0o666)
    for change, (flags, work) in CONTENTS.items():
        for mode in MODES:
            for user, *ids in USERS:
                make("file", "x")
                os.chown("x", ANN, TEAM)
                os.chmod("x", mode)
                def do():
                    fd, other = os.open("x", flags), os.open("other", os.O_RDONLY)
                    came = attempt(work, fd, other)
                    print(change, oct(mode), user, came if isinstance(came, str) else "", shown("x"))
                    os.close(fd)
                    print(change, oct(mode), user, "closed", shown("x"))
                as_user(*ids, do)
    for kind in ["file", "dir", "fifo", "socket", "char", "block"]:
        for mode in [0o6555, 0o2666, 0o6666, 0o2676, 0o4666, 0o6777, 0o7666]:
            for user, *ids in USERS:
                for change, work in {
                    "chown": lambda name: os.chown(name, ANN, -1),
                    "chgrp": lambda name: os.chown(name, -1, ANN),
                    "chgrp to the same": lambda name: os.chown(name, -1, TEAM),
                    "both": lambda name: os.chown(name, ANN, ANN),
                    "neither": lambda name: os.chown(name, -1, -1),
                    "away": lambda name: os.chown(name, BOB, -1),
                    "chmod": lambda name: os.chmod(name, mode),
                    "list": lambda name: os.setxattr(name, "system.posix_acl_access", EXTENDED),
                    "short list": lambda name: os.setxattr(name, "system.posix_acl_access", MINIMAL),
                    "times": lambda name: os.utime(name),
                    "attribute": lambda name: os.setxattr(name, "user.a", b"a"),
                }.items():
                    for name in ("x", "link"):
                        make(kind, "x")
                        os.chown("x", ANN, TEAM)
                        os.chmod("x", mode)
                        make("symlink", "link")
                        os.unlink("link")
                        os.symlink("x", "link")
                        as_user(*ids, lambda: print(kind, oct(mode), user, change, name, attempt(work, name), shown("x")))
            os.rmdir("x") if kind == "dir" else os.unlink("x")
    # What is made in a directory that gives its group, by members of it and others.
    for dir_mode in (0o2777, 0o777, 0o3777):
        for user, *ids in USERS:
            os.mkdir("d")
            os.chown("d", ANN, TEAM)
            os.chmod("d", dir_mode)
            os.umask(0o022)
            def fill():
                for mode in (0o2755, 0o2775, 0o2765, 0o6755, 0o644, 0o7777):
                    made = {
                        "open": lambda: os.close(os.open("d/x", os.O_CREAT | os.O_WRONLY, mode)),
                        "mknod": lambda: os.mknod("d/x", stat.S_IFREG | mode),
                        "fifo": lambda: os.mknod("d/x", stat.S_IFIFO | mode),
                        "socket": lambda: os.mknod("d/x", stat.S_IFSOCK | mode),
                        "mkdir": lambda: os.mkdir("d/x", mode),
                        "symlink": lambda: os.symlink("a", "d/x"),
                        "tmpfile": lambda: tmpfile(mode),
                    }
                    for how, work in made.items():
                        came = attempt(work)
                        if os.path.lexists("d/x"):
                            there = os.lstat("d/x")
                            came = (oct(there.st_mode), there.st_uid, there.st_gid)
                            os.rmdir("d/x") if how == "mkdir" else os.unlink("d/x")
                        print(oct(dir_mode), user, how, oct(mode), came)
            as_user(*ids, fill)
            os.umask(0)
            os.rmdir("d")
    os.unlink("other")
    os.unlink("link")


def tmpfile(mode):
    fd = os.open("d", os.O_TMPFILE | os.O_RDWR, mode)
    os.link(f"/proc/self/fd/{fd}", "d/x", follow_symlinks=True)
    os.close(fd)


def moved(fd, _other):
    os.rename("x", "y")
    os.rename("y", "x")


def linked(fd, _other):
    os.link("x", "y")
    os.unlink("y")


def opened(flags, work):
    def do(_fd, other):
        fd = os.open("x", flags)
        work(fd, other)
        os.close(fd)
    return do


def stamps():
    """How often a time is before one that was there already, of the same file or of another."""
    rounds = 200
    make("file", "other")
    changes = {name: opened(flags, work) for name, (flags, work) in CONTENTS.items() if name not in
               ("read", "write nothing", "copy nothing", "same length")}
    changes |= {
        "chmod": lambda fd, o: os.chmod("x", 0o640),
        "chown": lambda fd, o: os.chown("x", 1, 1),
        "touch": lambda fd, o: os.utime("x"),
        "attribute": lambda fd, o: os.setxattr("x", "user.a", b"a"),
        "no attribute": lambda fd, o: os.removexattr("x", "user.a"),
        "rename": moved,
        "link": linked,
    }
    last, before = 0, {}

    def look(change, name, which):
        nonlocal last
        there = os.stat(name)
        times = [getattr(there, w) for w in which]
        before[change] = before.get(change, 0) + sum(t < last for t in times)
        last = max([last, *times])

    for _ in range(rounds):
        make("file", "x")
        look("make", "x", ["st_mtime_ns", "st_ctime_ns", "st_atime_ns"])
        fd, other = os.open("x", os.O_RDWR), os.open("other", os.O_RDONLY)
        for change, work in changes.items():
            work(fd, other)
            contents = change in CONTENTS or change == "touch"
            look(change, "x", ["st_mtime_ns", "st_ctime_ns"] if contents else ["st_ctime_ns"])
        os.close(fd)
        os.close(other)
        for kind in ("dir", "fifo", "symlink"):
            make(kind, "z")
            before["make " + kind] = before.get("make " + kind, 0) + (os.lstat("z").st_ctime_ns < last)
            look("parent", ".", ["st_mtime_ns", "st_ctime_ns"])
        os.mkdir("w")
        look("mkdir", "w", ["st_mtime_ns", "st_ctime_ns"])
        make("file", "w/x")
        look("file in it", "w/x", ["st_mtime_ns", "st_ctime_ns"])
        os.utime("w")
        look("touch directory", "w", ["st_mtime_ns", "st_ctime_ns", "st_atime_ns"])
        os.unlink("w/x")
        look("unlink", "w", ["st_mtime_ns", "st_ctime_ns"])
        os.rmdir("w")
        look("rmdir", ".", ["st_mtime_ns", "st_ctime_ns"])
    for change, count in before.items():
        print(change, "went back", count, "times")
    os.utime("x")
    there = os.stat("x")
    print("touch sets one time", there.st_atime_ns == there.st_mtime_ns == there.st_ctime_ns)


def room():
    """statvfs(3): what follows from the numbers, whatever they are."""
    stat = os.statvfs(".")
    print("one size", stat.f_bsize == stat.f_frsize, stat.f_bsize & stat.f_bsize - 1 == 0)
    print("sane", stat.f_blocks >= stat.f_bfree >= stat.f_bavail, stat.f_files >= stat.f_ffree)
    print("counts", stat.f_bfree * stat.f_bsize < 1 << 51, stat.f_namemax)


{"names": names, "bits": bits, "stamps": stamps, "room": room}[sys.argv[1]]()
