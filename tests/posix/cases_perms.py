# SPDX-License-Identifier: MIT
"""Cases: permission checks, chmod and chown rules, set-id bits, setgid directories."""

import os
import shutil
import stat
import subprocess

from .context import NOBODY, Context, same
from .table import ANY, Unsupported, case

WHO = {"owner": (NOBODY, 5000), "group": (5000, NOBODY), "supplementary": (5000, 6000), "other": (5000, 5001)}
SHIFT = {"owner": 6, "group": 3, "supplementary": 3, "other": 0}
BIT = {"read": 4, "write": 2, "exec": 1}
MATRIX = {
    f"{w}_{a}_{'granted' if g else 'denied'}": (w, a, g) for w in WHO for a in BIT for g in (True, False)
}


def _mode(who: str, access: str, granted: bool) -> int:
    """Only this bit, or every bit but this one."""
    bit = BIT[access] << SHIFT[who]
    return bit if granted else 0o777 & ~bit


@case("perms", MATRIX)
def file_access(c: Context, who: str, access: str, granted: bool):
    """One bit of one class decides; the first class that fits is the only one that counts."""
    name = c.file(b"data")
    if access == "exec":
        shutil.copyfile("/bin/true", name)
    os.chown(name, *WHO[who])
    os.chmod(name, _mode(who, access, granted))
    attempt = {
        "read": lambda: os.close(os.open(name, os.O_RDONLY)),
        "write": lambda: os.close(os.open(name, os.O_WRONLY)),
        "exec": lambda: subprocess.run([f"./{name}"], check=True) and None,
    }[access]
    ask = {"read": os.R_OK, "write": os.W_OK, "exec": os.X_OK}[access]
    groups = (6000,) if who == "supplementary" else ()
    same(c.as_nobody(lambda: os.access(name, ask), groups), granted, "access(2)")
    return same(c.as_nobody(attempt, groups), None if granted else "EACCES")


@case("perms", MATRIX)
def directory_access(c: Context, who: str, access: str, granted: bool):
    """The same for directories: list, make a name (with search), reach a name."""
    top = c.dir()
    with open(f"{top}/x", "w"):
        pass
    os.chown(top, *WHO[who])
    mode = _mode(who, access, granted)
    os.chmod(top, mode | 0o111 if access == "write" else mode)
    attempt = {
        "read": lambda: len(os.listdir(top)),
        "write": lambda: os.mkdir(f"{top}/new"),
        "exec": lambda: os.stat(f"{top}/x").st_size,
    }[access]
    result = c.as_nobody(attempt, (6000,) if who == "supplementary" else ())
    return same(result, {"read": 1, "write": None, "exec": 0}[access] if granted else "EACCES")


@case("perms")
def directory_bits_apart(c: Context):
    """Read without search lists but does not stat, search without read stats; write needs search."""
    got = {}
    for mode in (0o4, 0o1, 0o2, 0o6, 0o3, 0o5):
        top = c.dir()
        os.mkdir(f"{top}/x")
        os.chmod(top, mode)
        got[mode] = [
            c.as_nobody(lambda t=top: os.listdir(t)),
            c.as_nobody(lambda t=top: stat.S_ISDIR(os.stat(f"{t}/x").st_mode)),
            c.as_nobody(lambda t=top: os.mkdir(f"{t}/y")),
            c.as_nobody(lambda t=top: os.rmdir(f"{t}/x")),
        ]
    no = "EACCES"
    return same(
        got,
        {
            4: [["x"], no, no, no],
            1: [no, True, no, no],
            2: [no] * 4,
            6: [["x"], no, no, no],
            3: [no, True, None, None],
            5: [["x"], True, no, no],
        },
    )


@case("perms")
def root_reads_and_writes_everything(c: Context):
    name, top = c.file(b"x", 0), c.dir(0)
    os.chown(name, NOBODY, NOBODY)
    got = [
        c.errno_of(os.open, name, os.O_RDWR),
        c.errno_of(os.mkdir, f"{top}/x"),
        c.errno_of(os.listdir, top),
    ]
    got.append(c.errno_of(subprocess.run, [f"./{name}"]))
    return same(got, ["OK", "OK", "OK", "EACCES"])


@case("perms")
def search_on_every_component(c: Context):
    os.makedirs("a/b/c")
    got = []
    for shut in ("a", "a/b", "a/b/c", None):
        if shut:
            os.chmod(shut, 0o600)
        got.append(c.as_nobody(lambda: os.stat("a/b/c/..").st_mode & 0o777))
        if shut:
            os.chmod(shut, 0o755)
    return same(got, ["EACCES", "EACCES", "EACCES", 0o755])


@case("perms")
def open_descriptor_outlives_chmod(c: Context):
    """Permissions count at open: the descriptor goes on when the mode goes to 0."""
    name = c.file(b"abc", 0o666)

    def use():
        fd = os.open(name, os.O_RDWR)
        os.write(gate[1], b"x")
        os.read(back[0], 1)
        return os.pread(fd, 3, 0), os.pwrite(fd, b"X", 0), c.errno_of(os.open, name, os.O_RDONLY)

    gate, back = os.pipe(), os.pipe()
    join = c.start(lambda: c.as_nobody(use))
    os.read(gate[0], 1)
    os.chmod(name, 0)
    os.write(back[1], b"x")
    return same(join(), (b"abc", 1, "EACCES"))


@case("perms")
def link_and_symlink_need_parent_write(c: Context):
    top = c.dir()
    name = c.file(b"", 0o666)
    os.chown(name, NOBODY, NOBODY)
    calls = {
        "symlink": lambda: os.symlink("x", f"{top}/s"),
        "link": lambda: os.link(name, f"{top}/l"),
        "mkfifo": lambda: os.mkfifo(f"{top}/p"),
        "mkdir": lambda: os.mkdir(f"{top}/d"),
        "creat": lambda: os.open(f"{top}/c", os.O_CREAT | os.O_WRONLY),
        "rename": lambda: os.rename(name, f"{top}/r"),
    }
    return same({k: c.as_nobody(call) for k, call in calls.items()}, dict.fromkeys(calls, "EACCES"))


@case("perms")
def unlink_needs_parent_not_file(c: Context):
    """Write permission on the directory, none on the file."""
    top = c.dir(0o777)
    for name in "ab":
        os.rename(c.file(b"", 0), f"{top}/{name}")
    got = [c.as_nobody(lambda: os.unlink(f"{top}/a"))]
    os.chmod(top, 0o755)
    got.append(c.as_nobody(lambda: os.unlink(f"{top}/b")))
    return same(got, [None, "EACCES"])


# chmod


@case(
    "chmod", {f"{m:04o}": m for m in (0, 0o1, 0o777, 0o4755, 0o2755, 0o1777, 0o6711, 0o7777, 0o2644, 0o4000)}
)
def chmod_sets(c: Context, mode: int):
    """All twelve bits are kept, on files, directories, FIFOs and through a descriptor."""
    name, top, fifo, other = c.file(), c.dir(), c.thing("fifo"), c.file()
    for path in (name, top, fifo):
        os.chmod(path, mode)
    with c.open(other, os.O_RDONLY) as fd:
        os.fchmod(fd, mode)
    return same([c.mode(p) for p in (name, top, fifo, other)], [f"{mode:04o}"] * 4)


@case("chmod")
def chmod_keeps_type_and_rest(c: Context):
    name = c.file(b"abc")
    before = os.stat(name)
    os.chmod(name, 0o123)
    after = os.stat(name)
    return same(
        (stat.S_ISREG(after.st_mode), after.st_size, after.st_mtime_ns == before.st_mtime_ns, after.st_uid),
        (True, 3, True, 0),
    )


@case("chmod")
def chmod_by_others(c: Context):
    name, own = c.file(b"", 0o777), c.file()
    os.chown(own, NOBODY, NOBODY)
    got = [
        c.as_nobody(lambda: os.chmod(name, 0o700)),
        c.run_as(5, NOBODY, lambda: os.chmod(own, 0o700)),
        c.as_nobody(lambda: os.chmod(own, 0o700)),
    ]
    return same((got, c.mode(own)), (["EPERM", "EPERM", None], "0700"))


@case("chmod", {"member": (NOBODY, ()), "supplementary": (7000, (7000,)), "stranger": (7000, ())})
def setgid_on_chmod(c: Context, group: int, groups: tuple):
    """An owner who is not in the file's group can't set setgid: the bit is dropped without an error."""
    name = c.file()
    os.chown(name, NOBODY, group)
    result = c.as_nobody(lambda: os.chmod(name, 0o2755), groups)
    member = group == NOBODY or group in groups
    return same((result, c.mode(name)), (None, "2755" if member else "0755"))


@case("chmod")
def sticky_on_file_by_user(c: Context):
    name = c.file()
    os.chown(name, NOBODY, NOBODY)
    return same((c.as_nobody(lambda: os.chmod(name, 0o1644)), c.mode(name)), (None, "1644"))


# chown


@case("chown")
def chown_sets(c: Context):
    """Each id alone, both, none (-1), large ids; on every kind, symlinks by lchown."""
    got = []
    for kind in ("file", "dir", "fifo", "sock", "chr", "symlink"):
        name = c.thing(kind)
        for ids in ((1, 2), (3, -1), (-1, 4), (-1, -1), (2**32 - 2, 2**31)):
            os.lchown(name, *ids)
        s = os.lstat(name)
        got.append((s.st_uid, s.st_gid))
    return same(got, [(2**32 - 2, 2**31)] * 6)


@case("chown")
def chown_by_owner(c: Context):
    """Without privilege: the group alone, to one of the caller's own."""
    name = c.file()
    os.chown(name, NOBODY, NOBODY)
    tries = ((0, -1), (NOBODY, -1), (-1, 8000), (-1, 9000), (-1, 0), (-1, NOBODY), (5, 8000), (-1, -1))
    got = [c.as_nobody(lambda t=t: os.chown(name, *t), (8000,)) for t in tries]
    return same(got, ["EPERM", None, None, "EPERM", "EPERM", None, "EPERM", None])


@case("chown")
def chown_by_others(c: Context):
    """-1, -1 passes for anybody on Linux: nothing is asked for."""
    name = c.file(b"", 0o777)
    return (
        c.as_nobody(lambda: os.chown(name, NOBODY, NOBODY)),
        c.as_nobody(lambda: os.chown(name, -1, NOBODY)),
        c.as_nobody(lambda: os.chown(name, -1, -1)),
    )


@case(
    "chown",
    {f"{m:04o}_{k}": (m, k) for m in (0o6755, 0o4711, 0o2755, 0o2644, 0o6777) for k in ("root", "owner")},
)
def chown_clears_setid(c: Context, mode: int, who: str):
    """chown of a file clears setuid, and setgid where the group may execute, for root too."""
    name = c.file()
    os.chown(name, NOBODY, NOBODY)
    os.chmod(name, mode)
    if who == "root":
        os.chown(name, -1, 8000)
    else:
        c.as_nobody(lambda: os.chown(name, -1, 8000), (8000,))
    if mode & 0o010:
        same(c.mode(name), f"{mode & 0o777:04o}")
    return c.mode(name), os.stat(name).st_gid


@case("chown")
def chown_keeps_setid_of_directory(c: Context):
    top = c.dir(0o6755)
    os.chown(top, 5, 6)
    return same(c.mode(top), "6755")


# set-id bits and data


@case(
    "setid",
    {
        f"{w}_{o}_{m:04o}": (w, o, m)
        for w in ("root", "nobody", "owner")
        for o in ("write", "truncate", "pwritev")
        for m in (0o6777, 0o2766)
    },
)
def cleared_by_change_of_data(c: Context, who: str, how: str, mode: int):
    """A write or truncation by anybody without CAP_FSETID, the owner too, clears setuid and setgid."""
    name = c.file(b"data")
    os.chown(name, NOBODY if who == "owner" else 5, 5)
    os.chmod(name, mode)
    operation = {
        "write": lambda: os.write(os.open(name, os.O_WRONLY), b"x"),
        "truncate": lambda: os.truncate(name, 1),
        "pwritev": lambda: os.pwritev(os.open(name, os.O_RDWR), [b"y"], 2),
    }[how]
    operation() if who == "root" else c.as_nobody(operation)
    if who == "root":
        same(c.mode(name), f"{mode:04o}")
    elif mode == 0o6777:
        same(c.mode(name), "0777")
    return c.mode(name), c.data(name)


@case("setid")
def kept_by_empty_write_and_read(c: Context):
    name = c.file(b"data")
    os.chmod(name, 0o6777)
    c.as_nobody(lambda: (os.write(os.open(name, os.O_WRONLY), b""), os.read(os.open(name, os.O_RDONLY), 9)))
    return same(c.mode(name), "6777")


@case("setid", may_lack=(ANY,))
def program_runs_as_owner(c: Context):
    """A setuid program changes the identity, unless the mount is nosuid."""
    if os.statvfs(".").f_flag & os.ST_NOSUID:
        raise Unsupported("mounted nosuid")
    shutil.copyfile("/usr/bin/id", "id")
    os.chown("id", 4321, 5432)
    os.chmod("id", 0o6755)

    def run(flag: str) -> str:
        return subprocess.run(["./id", flag], capture_output=True, text=True, check=True).stdout.strip()

    return same((c.as_nobody(lambda: run("-u")), c.as_nobody(lambda: run("-g"))), ("4321", "5432"))


# setgid directories


@case("setgid_dir", ("file", "dir", "fifo", "symlink"))
def group_is_inherited(c: Context, kind: str):
    """What is made in a setgid directory gets its group; a directory gets the bit as well."""
    top = c.dir()
    os.chown(top, NOBODY, 7777)
    os.chmod(top, 0o2777)
    make = {
        "file": lambda: os.close(os.open(f"{top}/x", os.O_CREAT | os.O_WRONLY, 0o644)),
        "dir": lambda: os.mkdir(f"{top}/x", 0o755),
        "fifo": lambda: os.mkfifo(f"{top}/x", 0o644),
        "symlink": lambda: os.symlink("t", f"{top}/x"),
    }[kind]
    c.as_nobody(make)
    s = os.lstat(f"{top}/x")
    return same((s.st_uid, s.st_gid, bool(s.st_mode & stat.S_ISGID)), (NOBODY, 7777, kind == "dir"))


@case("setgid_dir")
def group_without_the_bit(c: Context):
    top = c.dir()
    os.chown(top, NOBODY, 7777)
    os.chmod(top, 0o777)
    c.as_nobody(lambda: os.mkdir(f"{top}/x"))
    s = os.stat(f"{top}/x")
    return same((s.st_gid, bool(s.st_mode & stat.S_ISGID)), (NOBODY, False))


@case("setgid_dir", {"member": (7777,), "stranger": ()})
def setgid_file_of_stranger(c: Context, *groups: int):
    """Creating a setgid program in somebody else's setgid directory drops the bit for non-members."""
    top = c.dir()
    os.chown(top, 0, 7777)
    os.chmod(top, 0o2777)

    def make():
        os.umask(0)
        os.close(os.open(f"{top}/x", os.O_CREAT | os.O_WRONLY, 0o2777))

    c.as_nobody(make, groups)
    return same((os.stat(f"{top}/x").st_gid, c.mode(f"{top}/x")), (7777, "2777" if groups else "0777"))


@case("setgid_dir")
def chain_of_directories(c: Context):
    top = c.dir()
    os.chown(top, 0, 7777)
    os.chmod(top, 0o2755)
    os.makedirs(f"{top}/a/b/c")
    return same([(os.stat(p).st_gid, c.mode(p)) for p in (f"{top}/a", f"{top}/a/b/c")], [(7777, "2755")] * 2)


@case("setgid_dir")
def rename_does_not_inherit(c: Context):
    """Moving into a setgid directory changes nothing on what is moved."""
    top = c.dir()
    os.chown(top, 0, 7777)
    os.chmod(top, 0o2777)
    name, sub = c.file(), c.dir()
    os.rename(name, f"{top}/f")
    os.rename(sub, f"{top}/d")
    return same((os.stat(f"{top}/f").st_gid, os.stat(f"{top}/d").st_gid, c.mode(f"{top}/d")), (0, 0, "0755"))
