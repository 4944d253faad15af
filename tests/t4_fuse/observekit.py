# SPDX-License-Identifier: MIT
"""Observed mappings for tests: clients, by hand and by observe_client.c, and what an fsync flushes."""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import time

import pytest

from daxfs.fuse import control, observing

MIB, PAGE, HUGE = 1 << 20, 4096, 1 << 21
SIZE = 8 * MIB
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p


class Client:
    """A process of observe_client.c."""

    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, *words) -> None:
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        answer = self.process.stdout.readline().split()
        if answer[:1] != ["ok"]:
            raise OSError(int(answer[1]) if answer else errno.EPIPE, f"client: {answer}")

    def __call__(self, *words) -> None:
        self.begin(*words)
        self.end()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


class Syncs:
    """fsync by this process, which maps nothing, and what each one flushed."""

    def __init__(self, mount, path):
        self.mount, self.fd = mount, os.open(path, os.O_RDONLY)
        self.before = self.stat()

    def stat(self) -> dict:
        """As `daxfs stat` has it, which takes a while to begin."""
        facts = control.ask_path(str(self.mount.path), {"get": "stat"})
        return facts["tracker"] | facts["dax"]["observed"]

    def handled(self) -> int:
        """Faults that the daemon has answered. Clients go on before theirs are counted: it is waited for."""
        deadline = time.monotonic() + 20
        while (handler := self.stat()["handler"]) and handler["busy"]:
            assert time.monotonic() < deadline, handler
            time.sleep(0.005)
        return sum(row["count"] for row in handler["faults"]) if handler else 0

    def __call__(self) -> int:
        """The pages that one more flushed."""
        before = self.stat()["flushed_bytes"]
        os.fsync(self.fd)
        return (self.stat()["flushed_bytes"] - before) // PAGE

    def coarse(self) -> bool:
        """Whether one more took everything."""
        before = self.stat()["coarse_fsyncs"]
        os.fsync(self.fd)
        return self.stat()["coarse_fsyncs"] > before

    def becomes(self, **wanted) -> None:
        deadline = time.monotonic() + 20
        while any(self.stat()[name] != value for name, value in wanted.items()):
            assert time.monotonic() < deadline, (self.stat(), wanted)
            time.sleep(0.02)


@contextlib.contextmanager
def registered(fd: int, length: int, flags: int = 1):
    """(userfaultfd, address) of a mapping of *fd* in this process."""
    address = LIBC.mmap(None, ctypes.c_size_t(length), 3, flags, fd, ctypes.c_long(0))
    assert address not in (None, 2**64 - 1), os.strerror(ctypes.get_errno())
    try:
        with registered_at(address, length) as uffd:
            yield uffd, address
    finally:
        LIBC.munmap(ctypes.c_void_p(address), ctypes.c_size_t(length))


@contextlib.contextmanager
def registered_at(address: int, length: int):
    """A userfaultfd on a mapping, for asynchronous write protection."""
    uffd = LIBC.syscall(323, os.O_CLOEXEC)
    try:
        fcntl.ioctl(uffd, 0xC018AA3F, struct.pack("=3Q", 0xAA, 1 << 12 | 1 << 13 | 1 << 15, 0))
        fcntl.ioctl(uffd, 0xC020AA00, struct.pack("=4Q", address, length, 2, 0))
        yield uffd
    finally:
        os.close(uffd)


def observe(fd: int, version=observing.VERSION, mode=1, uffd=-1, prot=3, address=0, length=PAGE, offset=0,
            **more) -> int:
    last = [more.get(name, 0) for name in ("flags", "progress", "slot")]
    raw = observing.OBSERVE_IO.pack(version, mode, uffd, prot, address, length, offset, 0, *last)
    return observing.OBSERVE_IO.unpack(fcntl.ioctl(fd, observing.OBSERVE, raw))[7]


def forget(fd: int, number: int, address: int, length: int, dirty: int = 0, pad: int = 0) -> None:
    fcntl.ioctl(fd, observing.FORGET, struct.pack("=3Q2I", number, address, length, dirty, pad))


@contextlib.contextmanager
def refused(number: int):
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == number, caught.value
