# SPDX-License-Identifier: MIT
"""Cases of direct mappings: who may map what, by the mode of the open; several opens at once."""

import itertools
import os

from . import memory as m
from .context import Context, same
from .memory import PAGE, PRIVATE, SHARED, Map
from .table import case

MODES = {
    "RDONLY": os.O_RDONLY, "WRONLY": os.O_WRONLY, "RDWR": os.O_RDWR,
    "RDWR-APPEND": os.O_RDWR | os.O_APPEND, "WRONLY-APPEND": os.O_WRONLY | os.O_APPEND,
    "RDWR-DIRECT": os.O_RDWR | os.O_DIRECT, "RDWR-SYNC": os.O_RDWR | os.O_SYNC,
    "RDWR-DSYNC": os.O_RDWR | os.O_DSYNC, "RDONLY-NOATIME": os.O_RDONLY | os.O_NOATIME,
    "RDWR-NONBLOCK": os.O_RDWR | os.O_NONBLOCK, "PATH": os.O_PATH, "3": 3,
}
KINDS = (SHARED, PRIVATE, m.VALIDATE, SHARED | m.POPULATE, PRIVATE | m.POPULATE, m.VALIDATE | m.SYNC,
         SHARED | m.SYNC, 0, m.VALIDATE | 1 << 26)
PROTS = (m.NONE, m.R, m.W, m.X, m.R | m.W, m.R | m.X, m.R | m.W | m.X)


def _table(c: Context, fd: int, size: int = 2 * PAGE) -> dict:
    pairs = itertools.product(KINDS, PROTS)
    return {(kind, prot): c.errno_of(Map, fd, size, kind, prot) for kind, prot in pairs}


@case("direct", MODES)
def rights_by_mode(c: Context, mode: int):
    """Every kind of mapping with every protection, by the mode of the open."""
    name = c.file(b"x" * 2 * PAGE)
    with c.open(name, mode) as fd:
        got = _table(c, fd)
    kept = c.data(name) == b"x" * 2 * PAGE
    return same(kept, True), got


@case("direct", {"SYNC-RDWR": (os.O_RDWR, m.R | m.W), "SYNC-RDONLY": (os.O_RDONLY, m.R)})
def map_sync_is_refused(c: Context, mode: int, prot: int):
    """A FUSE file can't promise MAP_SYNC, nor can a tmpfs; without VALIDATE the flag is ignored."""
    with c.open(c.file(b"x" * PAGE), mode) as fd:
        got = [c.errno_of(Map, fd, PAGE, kind | m.SYNC, prot) for kind in (m.VALIDATE, SHARED)]
    return same(got, ["EOPNOTSUPP", "OK"])


@case("direct", {"excl": os.O_CREAT | os.O_EXCL, "trunc": os.O_CREAT | os.O_TRUNC})
def map_what_open_made(c: Context, flags: int):
    """The descriptor that made or emptied the file maps it at once."""
    name = c.path()
    if not flags & os.O_EXCL:
        os.rename(c.file(b"old" * PAGE), name)
    with c.open(name, os.O_RDWR | flags) as fd:
        page = Map(fd, 2 * PAGE)
        first = c.in_child(page.load)
        os.ftruncate(fd, PAGE + 10)
        zeros = page.load(0, 2 * PAGE)
        page.store(b"new", PAGE)
        second = os.pread(fd, 4096, PAGE)
    return same((first, zeros == bytes(2 * PAGE), second), ("SIGBUS", True, b"new" + bytes(7)))


@case("direct")
def map_a_tmpfile(c: Context):
    """O_TMPFILE, mapped, closed, and given a name while it is mapped."""
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.ftruncate(fd, 3 * PAGE)
    page = Map(fd, 3 * PAGE)
    page.store(b"abc", 2 * PAGE)
    name = c.path()
    from .native import link_descriptor
    link_descriptor(fd, name)
    os.close(fd)
    page.store(b"d", 2 * PAGE + 3)
    data = c.data(name)
    return same((len(data), data[2 * PAGE :][:5]), (3 * PAGE, b"abcd\0"))


@case("direct")
def tmpfile_without_a_name(c: Context):
    """O_TMPFILE|O_EXCL never gets a name; its mapping outlives the descriptor."""
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    os.pwrite(fd, b"held", 5 * PAGE)
    page = Map(fd, 6 * PAGE)
    os.close(fd)
    page.store(b"low")
    return same((page.load(0, 4), page.load(5 * PAGE, 5), os.listdir(".")), (b"low\0", b"held\0", []))


@case("direct")
def several_modes_at_once(c: Context):
    """Eight opens in different modes, mapped where they may be, all show the same bytes."""
    name = c.file(bytes(4 * PAGE))
    modes = [os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_DIRECT,
             os.O_RDWR | os.O_SYNC, os.O_RDONLY | os.O_DIRECT, os.O_RDWR]
    fds = [os.open(name, mode) for mode in modes]
    pairs = list(zip(fds, modes, strict=True))
    maps = [Map(fd, 4 * PAGE, SHARED, m.R) for fd, mode in pairs if mode & 3 != os.O_WRONLY]
    writers = [Map(fd, 4 * PAGE) for fd, mode in pairs if mode & 3 == os.O_RDWR]
    bad = 0
    for number, page in enumerate(writers):
        page.store(b"%d" % number, number * 700)
        bad += sum(other.load(number * 700) != b"%d" % number for other in maps)
    os.pwrite(fds[2], b"written", 2 * PAGE)
    bad += sum(other.load(2 * PAGE, 7) != b"written" for other in maps)
    os.write(fds[3], b"appended")
    long = Map(fds[0], 5 * PAGE, SHARED, m.R)
    tail = long.load(4 * PAGE, 9)
    for fd in fds:
        os.close(fd)
    writers[0].store(b"after", 3 * PAGE)
    bad += sum(other.load(3 * PAGE, 5) != b"after" for other in maps)
    return same((bad, tail, c.data(name)[3 * PAGE :][:5]), (0, b"appended\0", b"after"))


@case("direct")
def open_again_while_only_the_mapping_is_left(c: Context):
    """Opened, mapped, closed; each later open, in any mode, reaches the same pages."""
    name = c.file(bytes(2 * PAGE))
    fd = os.open(name, os.O_RDWR)
    page = Map(fd, 2 * PAGE)
    os.close(fd)
    got = []
    for number, mode in enumerate((os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_DIRECT)):
        page.store(bytes([65 + number]) * 2, 10 * number)
        with c.open(name, mode) as fd:
            if mode != os.O_WRONLY:
                got.append(Map(fd, PAGE, SHARED, m.R).load(10 * number, 2))
            if mode & 3:
                os.pwrite(fd, b"w" * 512, PAGE + 512 * number) if not mode & os.O_DIRECT else None
    got.append(page.load(PAGE, 2048).rstrip(b"\0"))
    return same(got, [b"AA", b"BB", b"DD", bytes(512) + b"w" * 1024])


@case("direct", {"open": "open", "ftruncate": "ftruncate", "truncate": "truncate", "creat": "creat"})
def emptied_under_a_mapping(c: Context, how: str):
    """O_TRUNC and its kin, by another open: the mapping gives SIGBUS until the file grows, then zeros."""
    name = c.file(b"x" * 3 * PAGE)
    with c.open(name, os.O_RDWR) as fd:
        page = Map(fd, 3 * PAGE)
        page.store(b"stored", PAGE)
        if how == "open":
            os.close(os.open(name, os.O_WRONLY | os.O_TRUNC))
        elif how == "creat":
            os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
        elif how == "ftruncate":
            os.ftruncate(fd, 0)
        else:
            os.truncate(name, 0)
        dead = [c.in_child(lambda at=at: page.load(at)) for at in (0, PAGE, 2 * PAGE)]
        os.pwrite(fd, b"!", PAGE)
        alive = page.load(0, PAGE + 7)
        behind = c.in_child(lambda: page.load(2 * PAGE))
    return same((dead, alive, behind), (["SIGBUS"] * 3, bytes(PAGE) + b"!" + bytes(6), "SIGBUS"))


@case("direct")
def reopened_by_proc(c: Context):
    """/proc/self/fd/N opens the same file in another mode, also when the name is gone."""
    name = c.file(b"abc" + bytes(PAGE))
    fd = os.open(name, os.O_RDONLY)
    os.unlink(name)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    os.close(fd)
    page = Map(again, PAGE)
    page.store(b"X", 1)
    return same((os.pread(again, 3, 0), os.fstat(again).st_nlink), (b"aXc", 0))


ODD = {
    "one byte": (1, 0), "page and a byte": (PAGE + 1, 0), "5000 at a page": (5000, PAGE),
    "odd offset": (PAGE, 100), "offset of a sector": (PAGE, 512), "nothing": (0, 0),
    "behind the end": (PAGE, 64 * PAGE), "far": (PAGE, 1 << 46), "negative": (PAGE, -PAGE),
    "offset and length overflow": (2 * PAGE, (1 << 63) - PAGE), "2 MiB": (m.HUGE, 0), "huge": (1 << 50, 0),
}


@case("direct", ODD)
def odd_lengths_and_offsets(c: Context, size: int, pos: int):
    """What mmap says, and what the first byte, the file's last and the one behind it are."""
    length = 2 * PAGE + 100
    with c.open(c.file(bytes(range(1, 201)) * 41 + b"z" * (length - 8200)), os.O_RDWR) as fd:
        try:
            page = Map(fd, size, SHARED, m.R | m.W, pos)
        except OSError as error:
            return error.errno
        mapped = (size + PAGE - 1) & -PAGE
        places = {at for at in (0, size - 1, mapped - 1, length - pos - 1, length - pos) if 0 <= at < mapped}
        return [(at, c.in_child(lambda at=at: page.load(at))) for at in sorted(places)]


@case("direct")
def chmod_000_while_mapped(c: Context):
    """Rights are looked at by open and mmap, not at a load or store; nobody can't open it any more."""
    name = c.file(b"x" * PAGE, 0o666)
    os.chmod(".", 0o755)

    def other():
        fd = os.open(name, os.O_RDWR)
        page = Map(fd, PAGE)
        os.write(asked[1], b"x")
        os.read(done[0], 1)
        page.store(b"y")
        again = Map(fd, PAGE)
        return page.load(), again.load(), c.errno_of(os.open, name, os.O_RDONLY)

    asked, done = os.pipe(), os.pipe()
    join = c.start(other, lambda: (os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)))
    os.read(asked[0], 1)
    os.chmod(name, 0)
    os.chown(name, 1, 1)
    os.write(done[1], b"x")
    got = join()
    return same((got, c.data(name)[:2]), ((b"y", b"y", "EACCES"), b"yx"))


@case("direct")
def descriptor_of_another_process(c: Context):
    """A descriptor that was passed on (SCM_RIGHTS) is mapped by one who could not open the file."""
    import socket
    name = c.file(b"secret" + bytes(PAGE), 0o600)
    left, right = socket.socketpair()

    def other():
        _, (fd,), _, _ = socket.recv_fds(right, 1, 1)
        page = Map(fd, PAGE)
        page.store(b"S")
        return page.load(0, 6), c.errno_of(os.open, name, os.O_RDONLY)

    join = c.start(other, lambda: os.setresuid(65534, 65534, 65534))
    fd = os.open(name, os.O_RDWR)
    socket.send_fds(left, [b"x"], [fd])
    os.close(fd)
    return same((join(), c.data(name)[:6]), ((b"Secret", "EACCES"), b"Secret"))
