# SPDX-License-Identifier: MIT
"""Cases: flock, POSIX record locks and open file description locks between processes."""

import fcntl
import os
import struct
import time

from .context import Context, same
from .native import F_OFD_GETLK, F_OFD_SETLK
from .table import case

EX, SH, UN, NB = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN, fcntl.LOCK_NB
LOCK = {"r": fcntl.F_RDLCK, "w": fcntl.F_WRLCK, "u": fcntl.F_UNLCK}


def _record(kind: str, start: int, length: int) -> bytes:
    return struct.pack("hhqqi4x", LOCK[kind], os.SEEK_SET, start, length, 0)


def _posix(fd: int, kind: str, start: int = 0, length: int = 0) -> str:
    """Try a POSIX record lock without waiting."""
    return Context.errno_of(fcntl.fcntl, fd, fcntl.F_SETLK, _record(kind, start, length))


def _ofd(fd: int, kind: str, start: int = 0, length: int = 0) -> str:
    return Context.errno_of(fcntl.fcntl, fd, F_OFD_SETLK, _record(kind, start, length))


def _holder(fd: int, command: int, kind: str, start: int, length: int):
    """(type, start, length, whether a pid is named) of the lock in the way, or "free"."""
    found, _, at, size, pid = struct.unpack("hhqqi4x", fcntl.fcntl(fd, command, _record(kind, start, length)))
    return "free" if found == fcntl.F_UNLCK else (found, at, size, pid > 0)


def _from_other(c: Context, name: str, attempt):
    """attempt(fd) in another process with a descriptor of its own."""
    return c.in_child(lambda: attempt(os.open(name, os.O_RDWR)))


@case(
    "locks",
    {
        "ex_ex": (EX, EX, "EAGAIN"),
        "ex_sh": (EX, SH, "EAGAIN"),
        "sh_ex": (SH, EX, "EAGAIN"),
        "sh_sh": (SH, SH, "OK"),
    },
)
def flock_between_processes(c: Context, held: int, wanted: int, want: str):
    name = c.file()
    with c.open(name, os.O_RDWR) as fd:
        fcntl.flock(fd, held)
        got = _from_other(c, name, lambda other: c.errno_of(fcntl.flock, other, wanted | NB))
        fcntl.flock(fd, UN)
        after = _from_other(c, name, lambda other: c.errno_of(fcntl.flock, other, wanted | NB))
    return same((got, after), (want, "OK"))


@case("locks")
def flock_two_descriptors_of_one_process(c: Context):
    """flock belongs to the open file: two opens conflict, a dup does not, the last close frees it."""
    name = c.file()
    one, two = os.open(name, os.O_RDWR), os.open(name, os.O_RDWR)
    fcntl.flock(one, EX)
    got = [c.errno_of(fcntl.flock, two, EX | NB)]
    copy = os.dup(one)
    got.append(c.errno_of(fcntl.flock, copy, EX | NB))
    os.close(one)
    got.append(c.errno_of(fcntl.flock, two, EX | NB))
    os.close(copy)
    got.append(c.errno_of(fcntl.flock, two, EX | NB))
    return same(got, ["EAGAIN", "OK", "EAGAIN", "OK"])


@case("locks")
def flock_converts(c: Context):
    name = c.file()
    one, two = os.open(name, os.O_RDWR), os.open(name, os.O_RDWR)
    fcntl.flock(one, SH)
    fcntl.flock(two, SH)
    got = [c.errno_of(fcntl.flock, one, EX | NB)]
    fcntl.flock(two, UN)
    got += [c.errno_of(fcntl.flock, one, EX | NB), c.errno_of(fcntl.flock, two, SH | NB)]
    return same(got, ["EAGAIN", "OK", "EAGAIN"])


@case("locks")
def flock_waits(c: Context):
    """A waiting flock gets the lock when the holder ends without unlocking."""
    name = c.file()
    ready, taken = os.pipe()

    def holder():
        fd = os.open(name, os.O_RDWR)
        fcntl.flock(fd, EX)
        os.write(taken, b"x")
        time.sleep(0.15)
        return "ended"

    join = c.start(holder)
    os.read(ready, 1)
    start = time.monotonic()
    with c.open(name, os.O_RDWR) as fd:
        fcntl.flock(fd, EX)
        waited = time.monotonic() - start > 0.05
    return same((join(), waited), ("ended", True))


@case("locks", ("readonly", "directory", "fifo"))
def flock_on(c: Context, kind: str):
    """flock does not care for the mode of the descriptor or the kind."""
    name = c.file(b"", 0o444) if kind == "readonly" else c.thing("dir" if kind == "directory" else "fifo")
    with c.open(name, os.O_RDONLY | os.O_NONBLOCK) as one, c.open(name, os.O_RDONLY | os.O_NONBLOCK) as two:
        return same(
            (c.errno_of(fcntl.flock, one, EX | NB), c.errno_of(fcntl.flock, two, EX | NB)), ("OK", "EAGAIN")
        )


RANGES = {
    "same": ((0, 10), (0, 10), False),
    "apart": ((0, 10), (10, 10), True),
    "overlap": ((0, 10), (9, 1), False),
    "to_eof": ((100, 0), (1 << 40, 1), False),
    "before_eof_lock": ((100, 0), (0, 100), True),
    "inside": ((0, 100), (50, 1), False),
    "last_byte": ((2**62, 1), (2**62, 1), False),
}


@case("locks", {f"{api}_{k}": (api, *r) for k, r in RANGES.items() for api in ("posix", "ofd")})
def ranges(c: Context, api: str, held: tuple, wanted: tuple, free: bool):
    """Write locks on byte ranges from two processes."""
    name, lock = c.file(), {"posix": _posix, "ofd": _ofd}[api]
    with c.open(name, os.O_RDWR) as fd:
        same(lock(fd, "w", *held), "OK")
        return same(_from_other(c, name, lambda other: lock(other, "w", *wanted)), "OK" if free else "EAGAIN")


@case("locks", ("posix", "ofd"))
def readers_and_writers(c: Context, api: str):
    name, lock = c.file(), {"posix": _posix, "ofd": _ofd}[api]
    with c.open(name, os.O_RDWR) as fd:
        got = [
            lock(fd, "r"),
            _from_other(c, name, lambda o: lock(o, "r")),
            _from_other(c, name, lambda o: lock(o, "w")),
        ]
        got += [
            lock(fd, "w"),
            _from_other(c, name, lambda o: lock(o, "r")),
            lock(fd, "u"),
            _from_other(c, name, lambda o: lock(o, "w")),
        ]
    return same(got, ["OK", "OK", "EAGAIN", "OK", "EAGAIN", "OK", "OK"])


@case("locks")
def posix_split_and_merge(c: Context):
    """Unlocking the middle leaves both ends; locking it again merges."""
    name = c.file()
    probes = (0, 40, 60, 99, 100)
    with c.open(name, os.O_RDWR) as fd:
        look = lambda: _from_other(c, name, lambda o: [_posix(o, "w", at, 1) for at in probes])  # noqa: E731
        _posix(fd, "w", 0, 100)
        _posix(fd, "u", 30, 20)
        first = look()
        _posix(fd, "w", 30, 20)
        whole = _from_other(c, name, lambda o: _holder(o, fcntl.F_GETLK, "w", 0, 200))
    same((first, whole), (["EAGAIN", "OK", "EAGAIN", "EAGAIN", "OK"], (fcntl.F_WRLCK, 0, 100, True)))
    return first, whole


@case("locks")
def posix_getlk(c: Context):
    """F_GETLK names type, range and process; F_OFD_GETLK sees a POSIX lock too."""
    name = c.file()
    with c.open(name, os.O_RDWR) as fd:
        _posix(fd, "w", 10, 5)
        got = _from_other(
            c,
            name,
            lambda o: (
                _holder(o, fcntl.F_GETLK, "r", 0, 0),
                _holder(o, fcntl.F_GETLK, "r", 0, 10),
                _holder(o, F_OFD_GETLK, "w", 12, 1),
            ),
        )
        own = _holder(fd, fcntl.F_GETLK, "w", 0, 0)
    row = (fcntl.F_WRLCK, 10, 5, True)
    return same((got, own), ((row, "free", row), "free"))


@case("locks")
def posix_lost_by_any_close(c: Context):
    """Closing any descriptor of the file drops the process's POSIX locks, and leaves OFD locks alone."""
    got = []
    for lock in (_posix, _ofd):
        name = c.file()
        with c.open(name, os.O_RDWR) as fd:
            lock(fd, "w")
            os.close(os.open(name, os.O_RDONLY))
            got.append(_from_other(c, name, lambda o, lock=lock: lock(o, "w")))
    return same(got, ["OK", "EAGAIN"])


@case("locks")
def not_inherited_over_fork(c: Context):
    """A child has no share in a POSIX lock, but in an OFD lock."""
    got = []
    for lock in (_posix, _ofd):
        with c.open(c.file(), os.O_RDWR) as fd:
            lock(fd, "w")
            got.append(c.in_child(lambda lock=lock, fd=fd: lock(fd, "w")))
    return same(got, ["EAGAIN", "OK"])


@case("locks")
def need_the_right_mode(c: Context):
    """A write lock needs a descriptor for writing, a read lock one for reading."""
    name = c.file()
    with c.open(name, os.O_RDONLY) as r, c.open(name, os.O_WRONLY) as w:
        got = [
            lock(fd, kind) for lock in (_posix, _ofd) for fd, kind in ((r, "w"), (w, "r"), (r, "r"), (w, "w"))
        ]
    return same(got[:4], ["EBADF", "EBADF", "OK", "OK"]), got[4:6]


@case("locks")
def ofd_two_descriptors_of_one_process(c: Context):
    name = c.file()
    with c.open(name, os.O_RDWR) as one, c.open(name, os.O_RDWR) as two:
        got = [_ofd(one, "w"), _ofd(two, "w"), _posix(two, "w"), _ofd(one, "u"), _posix(two, "w")]
    return same(got, ["OK", "EAGAIN", "EAGAIN", "OK", "OK"])


@case("locks")
def posix_waits_and_deadlock(c: Context):
    """Two processes that wait for each other: one gets EDEADLK."""
    name = c.file(bytes(2))
    here, there = os.pipe(), os.pipe()

    def partner():
        fd = os.open(name, os.O_RDWR)
        fcntl.lockf(fd, EX, 1, 1)
        os.write(here[1], b"x")
        os.read(there[0], 1)
        result = c.errno_of(fcntl.lockf, fd, EX, 1, 0)
        fcntl.lockf(fd, UN)
        return result

    join = c.start(partner)
    with c.open(name, os.O_RDWR) as fd:
        fcntl.lockf(fd, EX, 1, 0)
        os.read(here[0], 1)
        os.write(there[1], b"x")
        mine = c.errno_of(fcntl.lockf, fd, EX, 1, 1)
        fcntl.lockf(fd, UN)
    return same(sorted((mine, join())), ["EDEADLK", "OK"])


@case("locks")
def flock_and_posix_are_apart(c: Context):
    name = c.file()
    with c.open(name, os.O_RDWR) as fd:
        fcntl.flock(fd, EX)
        return same(_from_other(c, name, lambda o: _posix(o, "w")), "OK")


@case("locks")
def locks_follow_rename_and_links(c: Context):
    """The lock is on the file, whatever it is called."""
    name = c.file()
    os.link(name, "second")
    with c.open(name, os.O_RDWR) as fd:
        _posix(fd, "w")
        fcntl.flock(fd, EX)
        os.rename(name, "moved")
        got = [
            _from_other(c, n, lambda o: (_posix(o, "w"), c.errno_of(fcntl.flock, o, EX | NB)))
            for n in ("moved", "second")
        ]
    return same(got, [("EAGAIN", "EAGAIN")] * 2)


@case("locks")
def freed_when_the_holder_is_killed(c: Context):
    name = c.file()
    ready, taken = os.pipe()

    def holder():
        fd = os.open(name, os.O_RDWR)
        _posix(fd, "w")
        fcntl.flock(fd, EX)
        os.write(taken, b"x")
        os.kill(os.getpid(), 9)

    join = c.start(holder)
    os.read(ready, 1)
    ended = join()
    return same(
        (ended, _from_other(c, name, lambda o: (_posix(o, "w"), c.errno_of(fcntl.flock, o, EX | NB)))),
        ("SIGKILL", ("OK", "OK")),
    )
