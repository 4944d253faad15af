# SPDX-License-Identifier: MIT
"""Cases: the time of birth (statx), and files that are born without a name (O_TMPFILE)."""

import os
import stat
import time

from .context import NOBODY, Context, among, same
from .native import birth_time, link_descriptor, link_empty_path
from .table import ANY, Unsupported, case

KINDS = ("file", "dir", "symlink", "fifo", "sock", "chr")


def _birth(path: str) -> int:
    when = birth_time(path)
    if when is None:
        raise Unsupported("statx tells no time of birth")
    return when


# statx


@case("birth", KINDS, may_lack=(ANY,))
def is_the_time_of_making(c: Context, kind: str):
    """Between before and after, and the oldest of its times."""
    before = time.time_ns()
    c.tick()
    name = c.thing(kind)
    c.tick()
    born, s = _birth(name), os.lstat(name)
    same(before < born < time.time_ns(), True)
    return same(all(born <= t for t in (s.st_mtime_ns, s.st_ctime_ns, s.st_atime_ns)), True)


@case("birth", may_lack=(ANY,))
def never_changes(c: Context):
    """Not by writing, chmod, utimes to a time before it, link, rename, truncate."""
    name, other = c.file(b"x"), c.path()
    born = _birth(name)
    c.tick()
    with c.open(name, os.O_RDWR) as fd:
        os.write(fd, b"more")
    os.chmod(name, 0o600)
    os.truncate(name, 0)
    os.utime(name, ns=(10**9, 10**9))
    os.link(name, other)
    os.rename(name, c.path())
    return same((_birth(other) == born, os.stat(other).st_mtime_ns), (True, 10**9))


@case("birth", may_lack=(ANY,))
def belongs_to_the_file_not_to_the_name(c: Context):
    """After a rename over an older file the name has the newer birth."""
    old = c.file()
    c.tick()
    new = c.file()
    births = _birth(old), _birth(new)
    os.rename(new, old)
    return same((births[0] < births[1], _birth(old) == births[1]), (True, True))


# O_TMPFILE


def _nameless(place: str = ".", flags: int = os.O_RDWR, mode: int = 0o666) -> int:
    try:
        return os.open(place, flags | os.O_TMPFILE, mode)
    except OSError as error:
        if os.strerror(error.errno) == "Operation not supported":
            raise Unsupported(f"O_TMPFILE: {error.strerror}") from error
        raise


@case("tmpfile", {"proc": link_descriptor, "empty_path": link_empty_path}, may_lack=(ANY,))
def gets_a_name(c: Context, link):
    """By either way of linkat, a second one too; its bytes and its inode number stay."""
    fd = _nameless()
    os.pwrite(fd, b"data", 10_000)
    number, one, two = os.fstat(fd).st_ino, c.path(), c.path()
    link(fd, one)
    same(c.errno_of(link, fd, one), "EEXIST")
    link(fd, two)
    os.close(fd)
    s = os.stat(one)
    same((c.data(two), s.st_ino), (bytes(10_000) + b"data", number))
    return same((s.st_nlink, s.st_size), (2, 10_004))


@case("tmpfile", may_lack=(ANY,))
def leaves_its_directory_alone(c: Context):
    """Neither names nor times change before the link; with it they do."""
    top = c.dir()
    fd = -1

    def make():
        nonlocal fd
        fd = _nameless(top)

    def name():
        link_descriptor(fd, f"{top}/x")

    return same((c.changed(top, make), c.changed(top, name), os.listdir(top)), ("", "mc", ["x"]))


@case("tmpfile", may_lack=(ANY,))
def who_and_what(c: Context):
    """Owner, umask, group of a setgid directory; mode bits are those of the call."""
    top = c.dir(0o777)
    os.chown(top, 0, 77)
    os.chmod(top, 0o2777)

    def make():
        os.umask(0o027)
        s = os.fstat(_nameless(top, mode=0o4777))
        return s.st_uid, s.st_gid, f"{stat.S_IMODE(s.st_mode):04o}", s.st_nlink, s.st_size

    return same(c.as_nobody(make), (NOBODY, 77, "4750", 0, 0))


@case("tmpfile", may_lack=(ANY,))
def how_not(c: Context):
    """Only with write access, in a directory, that one may write to, and that is still there."""
    os.close(_nameless())
    shut, name, gone = c.dir(0o755), c.file(), c.dir()
    with c.open(gone, os.O_RDONLY) as fd:
        os.rmdir(gone)
        got = [
            c.errno_of(_nameless, ".", os.O_RDONLY),
            c.errno_of(_nameless, name),
            c.errno_of(_nameless, c.path()),
            c.errno_of(_nameless, f"/proc/self/fd/{fd}"),
            c.as_nobody(lambda: c.errno_of(_nameless, shut)),
        ]
    among(got.pop(3), ("ENOENT", "OK"))  # tmpfs makes it all the same
    return same(got, ["EINVAL", "ENOTDIR", "ENOENT", "EACCES"])


@case("tmpfile", may_lack=(ANY,))
def not_again_after_the_last_name_went(c: Context):
    fd, name = _nameless(), c.path()
    link_descriptor(fd, name)
    os.unlink(name)
    os.write(fd, b"still there")
    got = c.errno_of(link_descriptor, fd, c.path()), os.fstat(fd).st_nlink, os.pread(fd, 5, 0)
    os.close(fd)
    return same(got, ("ENOENT", 0, b"still"))


@case("tmpfile", may_lack=(ANY,))
def many_at_once(c: Context):
    """Each is a file of its own; space comes back with the last close."""
    fds = [_nameless() for _ in range(50)]
    for number, fd in enumerate(fds):
        os.write(fd, bytes([number]) * 5000)
    same([os.pread(fd, 1, 4999) for fd in fds], [bytes([n]) for n in range(50)])
    same(len({os.fstat(fd).st_ino for fd in fds}), 50)
    link_descriptor(fds[7], "seven")
    for fd in fds:
        os.close(fd)
    return same((c.data("seven")[:2], os.listdir(".")), (b"\7\7", ["seven"]))
