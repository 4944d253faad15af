# SPDX-License-Identifier: MIT
"""Cases: open flags, create modes and umask."""

import fcntl
import mmap
import os
import stat

from .context import Context, same
from .native import link_descriptor
from .table import ANY, Unsupported, case

CREAT, EXCL, TRUNC = os.O_CREAT, os.O_EXCL, os.O_TRUNC
RD, WR, RDWR = os.O_RDONLY, os.O_WRONLY, os.O_RDWR

KINDS = ("absent", "file", "dir", "symlink", "fifo", "sock")
FLAGS = {
    "rdonly": RD | os.O_NONBLOCK,
    "wronly": WR | os.O_NONBLOCK,
    "rdwr": RDWR | os.O_NONBLOCK,
    "creat": WR | CREAT | os.O_NONBLOCK,
    "creat_rdonly": RD | CREAT | os.O_NONBLOCK,
    "creat_excl": WR | CREAT | EXCL | os.O_NONBLOCK,
    "trunc": WR | TRUNC | os.O_NONBLOCK,
    "creat_trunc": WR | CREAT | TRUNC | os.O_NONBLOCK,
    "directory": RD | os.O_DIRECTORY | os.O_NONBLOCK,
    "nofollow": RD | os.O_NOFOLLOW | os.O_NONBLOCK,
    "creat_nofollow": WR | CREAT | os.O_NOFOLLOW | os.O_NONBLOCK,
    "path": os.O_PATH,
    "path_nofollow": os.O_PATH | os.O_NOFOLLOW,
}


@case("open", {f"{f}-{k}": (f, k) for f in FLAGS for k in KINDS})
def flags_on(c: Context, flag: str, kind: str):
    """errno of open with these flags on an object of this kind, and the size it leaves."""
    name = c.thing(kind)
    result = c.errno_of(lambda: os.close(os.open(name, FLAGS[flag], 0o644)))
    dictated = {
        ("creat_excl", "file"): "EEXIST",
        ("creat_excl", "dir"): "EEXIST",
        ("creat_excl", "symlink"): "EEXIST",
        ("wronly", "dir"): "EISDIR",
        ("rdonly", "absent"): "ENOENT",
        ("directory", "file"): "ENOTDIR",
        ("nofollow", "symlink"): "ELOOP",
        ("rdonly", "symlink"): "ENOENT",
        ("creat", "symlink"): "OK",
        ("wronly", "fifo"): "ENXIO",
        ("rdonly", "sock"): "ENXIO",
        ("creat", "dir"): "EISDIR",
        ("path_nofollow", "symlink"): "OK",
        ("creat_nofollow", "symlink"): "ELOOP",
        ("trunc", "file"): "OK",
    }
    if (flag, kind) in dictated:
        same(result, dictated[flag, kind])
    size = os.path.getsize(name) if kind == "file" else -1
    if kind == "file":
        same(size, 0 if "trunc" in flag else 8, "size")
    return result, size, os.path.exists("target-of-symlink"), os.path.lexists(name)


@case(
    "open",
    {
        f"{m:04o}_umask_{u:03o}": (m, u)
        for m in (0o666, 0o777, 0o000, 0o7777, 0o600)
        for u in (0, 0o22, 0o77, 0o777)
    },
)
def create_mode(c: Context, mode: int, umask: int):
    """Mode of a new file is mode & ~umask; set-id and sticky bits may be asked for."""
    name = c.path()
    os.umask(umask)
    os.close(os.open(name, WR | CREAT, mode))
    os.umask(0)
    return same(c.mode(name), f"{mode & ~umask:04o}")


@case("open")
def create_leaves_mode_of_existing(c: Context):
    """The mode argument counts for a new file only."""
    name = c.file(b"x", 0o640)
    os.close(os.open(name, WR | CREAT, 0o777))
    return same(c.mode(name), "0640")


@case("open")
def create_readonly_mode_still_writable(c: Context):
    """The descriptor that made a 0444 file writes, also without privileges."""
    os.chmod(".", 0o777)
    name = c.path()

    def make() -> int:
        fd = os.open(name, WR | CREAT | EXCL, 0o444)
        return os.write(fd, b"abc")

    same(c.as_nobody(make), 3)
    return same((c.data(name), c.mode(name)), (b"abc", "0444"))


@case("open")
def new_file_stat(c: Context):
    """Everything that stat says about a new file."""
    name = c.path()
    os.close(os.open(name, WR | CREAT, 0o640))
    s = os.stat(name)
    return same(
        (s.st_size, s.st_nlink, s.st_blocks, s.st_uid, s.st_gid, stat.S_ISREG(s.st_mode)),
        (0, 1, 0, 0, 0, True),
    )


@case("open")
def new_file_belongs_to_caller(c: Context):
    """Owner and group are the caller's effective ones."""
    os.chmod(".", 0o777)
    name = c.path()
    c.run_as(1234, 2345, lambda: os.close(os.open(name, WR | CREAT)))
    s = os.stat(name)
    return same((s.st_uid, s.st_gid), (1234, 2345))


@case("open")
def trunc_on_rdonly(c: Context):
    """O_RDONLY|O_TRUNC is undefined in POSIX; Linux truncates."""
    name = c.file(b"data")
    os.close(os.open(name, RD | TRUNC))
    return same(os.path.getsize(name), 0)


@case("open")
def trunc_needs_write_permission(c: Context):
    name = c.file(b"data", 0o444)
    got = c.as_nobody(lambda: os.close(os.open(name, RD | TRUNC)))
    return same((got, os.path.getsize(name)), ("EACCES", 4))


@case("open")
def write_on_rdonly_read_on_wronly(c: Context):
    name = c.file(b"data")
    with c.open(name, RD) as r, c.open(name, WR) as w:
        return same((c.errno_of(os.write, r, b"x"), c.errno_of(os.read, w, 1)), ("EBADF", "EBADF"))


@case("open")
def path_descriptor(c: Context):
    """An O_PATH descriptor stats, but does not read, write, chmod or truncate."""
    name = c.file(b"data")
    with c.open(name, os.O_PATH) as fd:
        got = (
            os.fstat(fd).st_size,
            c.errno_of(os.read, fd, 1),
            c.errno_of(os.fchmod, fd, 0o600),
            c.errno_of(os.ftruncate, fd, 0),
            os.readlink(f"/proc/self/fd/{fd}").endswith(name),
        )
    return same(got, (4, "EBADF", "EBADF", "EBADF", True))


@case("open")
def path_descriptor_reopens(c: Context):
    """An O_PATH descriptor reopens through /proc."""
    name = c.file(b"data")
    with c.open(name, os.O_PATH) as fd, c.open(f"/proc/self/fd/{fd}", RD) as again:
        return same(os.read(again, 9), b"data")


@case("open")
def append_ignores_offset(c: Context):
    name = c.file(b"12345")
    with c.open(name, RDWR | os.O_APPEND) as fd:
        os.lseek(fd, 1, os.SEEK_SET)
        os.write(fd, b"67")
        after = os.lseek(fd, 0, os.SEEK_CUR)
        os.pwrite(fd, b"89", 0)  # Linux appends here too, whatever POSIX says
    return same((after, c.data(name)), (7, b"123456789"))


@case("open")
def append_switched_on_and_off(c: Context):
    """F_SETFL with O_APPEND counts from then on."""
    name = c.file(b"abcdef")
    with c.open(name, RDWR) as fd:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        os.write(fd, b"G")
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        os.pwrite(fd, b"A", 0)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND)
    return same((c.data(name), flags), (b"AbcdefG", os.O_RDWR))


@case("open", {n: getattr(os, n) for n in ("O_SYNC", "O_DSYNC", "O_NOATIME", "O_CLOEXEC", "O_NONBLOCK")})
def harmless_flags(c: Context, flag: int):
    """Reading and writing work with the flag set, and F_GETFL shows it where it is a status flag."""
    name = c.path()
    with c.open(name, RDWR | CREAT | flag) as fd:
        os.write(fd, b"x" * 5000)
        os.pwrite(fd, b"y", 4096)
        shown = fcntl.fcntl(fd, fcntl.F_GETFL) & flag
        data = os.pread(fd, 6000, 0)
    return same((shown, data == b"x" * 4096 + b"y" + b"x" * 903), (0 if flag == os.O_CLOEXEC else flag, True))


@case("open")
def noatime_needs_owner(c: Context):
    name = c.file(b"x", 0o666)
    return same(c.as_nobody(lambda: os.close(os.open(name, RD | os.O_NOATIME))), "EPERM")


def _direct(c: Context, name: str):
    try:
        return os.open(name, RDWR | CREAT | os.O_DIRECT)
    except OSError as error:
        raise Unsupported(f"O_DIRECT: {error.strerror}") from error


@case("open", may_lack=("tmpfs",))
def direct_write_read(c: Context):
    """O_DIRECT, aligned: what is written comes back, also through an ordinary descriptor."""
    name = c.path()
    fd = _direct(c, name)
    page = mmap.mmap(-1, 8192)
    page[:] = bytes(range(256)) * 32
    wrote = os.pwritev(fd, [page], 4096)
    back = mmap.mmap(-1, 8192)
    got = os.preadv(fd, [back], 4096)
    same((wrote, got, back[:] == page[:], os.fstat(fd).st_size), (8192, 8192, True, 12288))
    return same(c.data(name) == bytes(4096) + page[:], True)


@case("open", may_lack=("tmpfs",))
def direct_and_cached_agree(c: Context):
    """A cached page does not hide what O_DIRECT wrote, nor the other way round."""
    name = c.file(b"a" * 8192)
    seen = []
    with c.open(name, RDWR) as cached:
        seen.append(os.pread(cached, 1, 4096))
        fd = _direct(c, name)
        page = mmap.mmap(-1, 4096)
        page[:] = b"b" * 4096
        os.pwritev(fd, [page], 4096)
        seen.append(os.pread(cached, 1, 4096))
        os.pwrite(cached, b"c" * 4096, 4096)
        os.preadv(fd, [page], 4096)
        seen.append(page[:1])
    return same(seen, [b"a", b"b", b"c"])


@case("open", may_lack=("tmpfs",))
def direct_read_past_eof(c: Context):
    name = c.file(b"z" * 5000)
    fd = _direct(c, name)
    page = mmap.mmap(-1, 8192)
    got = [os.preadv(fd, [page], 0), os.preadv(fd, [page], 8192)]
    return same(got, [5000, 0])


@case("open", may_lack=(ANY,))
def tmpfile_unnamed(c: Context):
    """O_TMPFILE: no name, nlink 0, reads and writes, and linkat gives it a name."""
    try:
        fd = os.open(".", RDWR | os.O_TMPFILE, 0o640)
    except OSError as error:
        raise Unsupported(f"O_TMPFILE: {error.strerror}") from error
    os.write(fd, b"hidden")
    before = os.fstat(fd).st_nlink, os.listdir(".")
    name = c.path()
    link_descriptor(fd, name)
    same((before, c.data(name), c.mode(name)), ((0, []), b"hidden", "0640"))
    return same(os.stat(name).st_nlink, 1)


@case("open", may_lack=(ANY,))
def tmpfile_excl_cannot_be_linked(c: Context):
    try:
        fd = os.open(".", RDWR | os.O_TMPFILE | EXCL, 0o640)
    except OSError as error:
        raise Unsupported(f"O_TMPFILE: {error.strerror}") from error
    return same(c.errno_of(link_descriptor, fd, c.path()), "ENOENT")


@case("open")
def excl_race(c: Context):
    """Of eight processes that create one name with O_EXCL, one wins."""
    name = c.path()
    ready, go = os.pipe()

    def attempt() -> str:
        os.close(go)
        os.read(ready, 1)
        return c.errno_of(lambda: os.close(os.open(name, WR | CREAT | EXCL)))

    joins = [c.start(attempt) for _ in range(8)]
    os.close(go)
    results = sorted(join() for join in joins)
    return same(results, ["EEXIST"] * 7 + ["OK"])


@case("open")
def many_descriptors_of_one_file(c: Context):
    """200 descriptors with different flags of one file each keep their own offset and mode."""
    name = c.file(b"0123456789")
    fds = [os.open(name, (RD, RDWR)[i % 2]) for i in range(200)]
    for i, fd in enumerate(fds):
        os.lseek(fd, i % 10, os.SEEK_SET)
    offsets = [os.lseek(fd, 0, os.SEEK_CUR) for fd in fds] == [i % 10 for i in range(200)]
    writes = (
        {c.errno_of(os.pwrite, fd, b"0", 0) for fd in fds[::2]},
        {c.errno_of(os.pwrite, fd, b"0", 0) for fd in fds[1::2]},
    )
    for fd in fds:
        os.close(fd)
    return same((offsets, writes), (True, ({"EBADF"}, {"OK"})))
