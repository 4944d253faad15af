# SPDX-License-Identifier: MIT
"""userfaultfd(2) for tests, by ctypes: made, registered over a mapping, asked. Imports nothing of daxfs.

A store or load of Python holds the GIL while its fault waits: whoever answers it must not need that.
"""

import contextlib
import ctypes
import fcntl
import os
import struct

_SYSCALL = 323  # x86-64
_API = 0xAA
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER = 0xC018AA3F, 0xC020AA00, 0x8010AA01
UFFDIO_WRITEPROTECT = 0xC018AA06
MISSING, WP, MINOR = 1, 2, 4
FEATURES = {"event_fork": 1 << 1, "missing_shmem": 1 << 5, "minor_shmem": 1 << 10,
            "wp_hugetlbfs_shmem": 1 << 12, "wp_unpopulated": 1 << 13, "poison": 1 << 14, "wp_async": 1 << 15}
_libc = ctypes.CDLL(None, use_errno=True)


def create(*features: str) -> int:
    """A descriptor with these features. OSError where the kernel has them not."""
    fd = _libc.syscall(ctypes.c_long(_SYSCALL), ctypes.c_int(os.O_CLOEXEC))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    try:
        wanted = sum(FEATURES[name] for name in features)
        fcntl.ioctl(fd, UFFDIO_API, struct.pack("<3Q", _API, wanted, 0))
    except BaseException:
        os.close(fd)
        raise
    return fd


def held(name: str = "anon_inode:[userfaultfd]") -> int:
    """How many descriptors of a file of that name this process has open."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += os.readlink(f"/proc/self/fd/{number}") == name
    return count


def register(fd: int, address: int, length: int, mode: int) -> None:
    fcntl.ioctl(fd, UFFDIO_REGISTER, struct.pack("<4Q", address, length, mode, 0))


def unregister(fd: int, address: int, length: int) -> None:
    """Whoever waits for an answer there goes on."""
    fcntl.ioctl(fd, UFFDIO_UNREGISTER, struct.pack("<2Q", address, length))


def protect(fd: int, address: int, length: int) -> None:
    fcntl.ioctl(fd, UFFDIO_WRITEPROTECT, struct.pack("<3Q", address, length, 1))


class Mapping:
    """A shared mapping of a whole file, at an address of its colour; ``address``, ``view`` (ctypes bytes)."""

    _mmap = _libc.mmap
    _mmap.restype = ctypes.c_void_p
    _mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    _munmap = _libc.munmap
    _munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    _madvise = _libc.madvise
    _madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def __init__(self, file: int, length: int):
        room = self._map(None, length + (2 << 20), 0, 0x22, -1)
        self.address = (room + (2 << 20) - 1) & -(2 << 20)
        self._room, self._size, self.length = room, length + (2 << 20), length
        self._map(self.address, length, 3, 0x11, file)
        self.buffer = (ctypes.c_char * length).from_address(self.address)
        self.view = (ctypes.c_ubyte * length).from_address(self.address)

    def _map(self, address, length, prot, flags, fd) -> int:
        found = self._mmap(address, length, prot, flags, fd, 0)
        if found == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")
        return found

    def advise(self, advice: int) -> None:
        if self._madvise(self.address, self.length, advice):
            raise OSError(ctypes.get_errno(), "madvise")

    def close(self) -> None:
        self._munmap(self._room, self._size)
