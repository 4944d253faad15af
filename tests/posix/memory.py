# SPDX-License-Identifier: MIT
"""Mappings by the C library's own calls: any length, offset, protection and advice; errors raise OSError.

Python's mmap module refuses what lies behind the end of file, and can't move or unmap a part. A load or a
store that the kernel refuses ends the process with a signal: do it in a child (Context.in_child).

Limits: Linux on a 64-bit machine; nothing is unmapped but by `unmap`, the case's process ends soon.
"""

from __future__ import annotations

import ctypes
import os

PAGE = 4096
HUGE = 2 << 20
NONE, R, W, X = 0, 1, 2, 4
SHARED, PRIVATE, VALIDATE = 1, 2, 3
FIXED, ANONYMOUS, POPULATE, SYNC = 0x10, 0x20, 0x8000, 0x80000
MAYMOVE, REMAP_FIXED, DONTUNMAP = 1, 2, 4
ADVICE = {
    "NORMAL": 0, "RANDOM": 1, "SEQUENTIAL": 2, "WILLNEED": 3, "DONTNEED": 4, "FREE": 8, "REMOVE": 9,
    "DONTFORK": 10, "MERGEABLE": 12, "HUGEPAGE": 14, "NOHUGEPAGE": 15, "DONTDUMP": 16, "WIPEONFORK": 18,
    "COLD": 20, "PAGEOUT": 21, "POPULATE_READ": 22, "POPULATE_WRITE": 23, "DONTNEED_LOCKED": 24,
    "COLLAPSE": 25,
}
MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4

_libc = ctypes.CDLL(None, use_errno=True)
_word, _pointer = ctypes.c_size_t, ctypes.c_void_p
_libc.mmap.restype = _word
_libc.mmap.argtypes = [_pointer, _word, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.mremap.restype = _word
_libc.mremap.argtypes = [_pointer, _word, _word, ctypes.c_int, _pointer]
_libc.munmap.argtypes = [_pointer, _word]
for _name in ("mprotect", "madvise", "msync", "mlock2"):
    getattr(_libc, _name).argtypes = [_pointer, _word, ctypes.c_int]
_libc.mlock.argtypes = _libc.munlock.argtypes = [_pointer, _word]
_libc.mincore.argtypes = [_pointer, _word, _pointer]
_libc.process_vm_readv.restype = _libc.process_vm_writev.restype = ctypes.c_ssize_t
_vector = [ctypes.c_int, _pointer, ctypes.c_ulong, _pointer, ctypes.c_ulong, ctypes.c_ulong]
_libc.process_vm_readv.argtypes = _libc.process_vm_writev.argtypes = _vector
_libc.vmsplice.restype = ctypes.c_ssize_t
_libc.vmsplice.argtypes = [ctypes.c_int, _pointer, ctypes.c_ulong, ctypes.c_uint]
_libc.read.restype = _libc.write.restype = _libc.pread.restype = _libc.pwrite.restype = ctypes.c_ssize_t
_libc.pread.argtypes = _libc.pwrite.argtypes = [ctypes.c_int, _pointer, _word, ctypes.c_int64]


class _Iovec(ctypes.Structure):
    _fields_ = [("base", _pointer), ("len", _word)]


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _address(result: int) -> int:
    return _check(-1) if result == _word(-1).value else result


class Map:
    """One mapping: `base` and `size` in bytes. Positions are relative to it and are not checked."""

    def __init__(self, fd: int, size: int, kind: int = SHARED, prot: int = R | W, pos: int = 0,
                 base: int = 0):
        self.size = size
        self.base = _address(_libc.mmap(base, size, prot, kind, fd, pos))

    def load(self, at: int = 0, size: int = 1) -> bytes:
        return ctypes.string_at(self.base + at, size)

    def store(self, data: bytes, at: int = 0) -> str:
        ctypes.memmove(self.base + at, data, len(data))
        return "stored"

    def word(self, at: int = 0) -> ctypes.c_uint64:
        """The eight bytes at *at*, in place."""
        return ctypes.c_uint64.from_address(self.base + at)

    def unmap(self, at: int = 0, size: int = 0) -> None:
        _check(_libc.munmap(self.base + at, size or self.size))

    def protect(self, prot: int, at: int = 0, size: int = 0) -> None:
        _check(_libc.mprotect(self.base + at, size or self.size, prot))

    def advise(self, advice: str, at: int = 0, size: int = 0) -> None:
        _check(_libc.madvise(self.base + at, size or self.size, ADVICE[advice]))

    def msync(self, flags: int, at: int = 0, size: int = 0) -> None:
        _check(_libc.msync(self.base + at, size or self.size, flags))

    def lock(self, at: int = 0, size: int = 0) -> None:
        _check(_libc.mlock(self.base + at, size or self.size))

    def unlock(self, at: int = 0, size: int = 0) -> None:
        _check(_libc.munlock(self.base + at, size or self.size))

    def remap(self, size: int, flags: int = MAYMOVE, target: int = 0, old: int | None = None) -> None:
        """mremap(2) of all of it; *old*: the old size as it is given."""
        self.base = _address(_libc.mremap(self.base, self.size if old is None else old, size, flags, target))
        self.size = size

    def incore(self) -> list[int]:
        """The lowest bit of mincore(2) for each page."""
        room = (ctypes.c_ubyte * ((self.size + PAGE - 1) // PAGE))()
        _check(_libc.mincore(self.base, self.size, room))
        return [byte & 1 for byte in room]

    def pread(self, fd: int, size: int, pos: int, at: int = 0) -> int:
        """pread(2) from *fd* into the mapping."""
        return _check(_libc.pread(fd, self.base + at, size, pos))

    def pwrite(self, fd: int, size: int, pos: int, at: int = 0) -> int:
        """pwrite(2) to *fd* from the mapping."""
        return _check(_libc.pwrite(fd, self.base + at, size, pos))

    def to_pipe(self, pipe: int, size: int, at: int = 0) -> int:
        """vmsplice(2): the pipe gets the pages themselves."""
        return _check(_libc.vmsplice(pipe, ctypes.byref(_Iovec(self.base + at, size)), 1, 0))

    def read_by(self, pid: int, size: int, at: int = 0) -> bytes:
        """process_vm_readv of these addresses in another process, which is a fork of ours."""
        room = ctypes.create_string_buffer(size)
        here, there = _Iovec(ctypes.addressof(room), size), _Iovec(self.base + at, size)
        got = _libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
        return room.raw[: _check(got)]

    def write_by(self, pid: int, data: bytes, at: int = 0) -> int:
        """process_vm_writev to these addresses in another process, which is a fork of ours."""
        room = ctypes.create_string_buffer(data, len(data))
        here, there = _Iovec(ctypes.addressof(room), len(data)), _Iovec(self.base + at, len(data))
        return _check(_libc.process_vm_writev(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0))


def hole(size: int) -> int:
    """An address with *size* bytes that nothing is mapped at."""
    room = Map(-1, size, PRIVATE | ANONYMOUS, NONE)
    room.unmap()
    return room.base
