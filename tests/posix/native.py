# SPDX-License-Identifier: MIT
"""System calls that Python's os module lacks, through ctypes; each raises OSError like os does.

Limits: Linux with glibc on a 64-bit machine; no state but the library handle.
"""

from __future__ import annotations

import ctypes
import os
import struct

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = 0x100, 0x400, 0x1000
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
STATX_BTIME = 0x800
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
IN_CREATE, IN_DELETE, IN_MODIFY, IN_ATTRIB = 0x100, 0x200, 0x2, 0x4
IN_MOVED_FROM, IN_MOVED_TO, IN_CLOSE_WRITE, IN_DELETE_SELF = 0x40, 0x80, 0x8, 0x400
F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.opendir.argtypes = [ctypes.c_char_p]
_libc.readdir.restype = ctypes.c_void_p
_libc.readdir.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = [ctypes.c_void_p]
_libc.seekdir.restype = None
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_libc.rewinddir.restype = None
_libc.rewinddir.argtypes = [ctypes.c_void_p]
_libc.closedir.argtypes = [ctypes.c_void_p]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.getdents64.restype = ctypes.c_ssize_t
_libc.getdents64.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_libc.getxattr.restype = ctypes.c_ssize_t
_libc.getxattr.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t]
_libc.listxattr.restype = ctypes.c_ssize_t
_libc.listxattr.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t]


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def renameat2(old: str, new: str, flags: int) -> None:
    _check(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def link_descriptor(fd: int, new: str) -> None:
    """Give an open file one more name (os.link does not follow the symlink in /proc)."""
    old = f"/proc/self/fd/{fd}".encode()
    _check(_libc.linkat(AT_FDCWD, old, AT_FDCWD, os.fsencode(new), AT_SYMLINK_FOLLOW))


def link_empty_path(fd: int, new: str) -> None:
    """Give an open file a name without a path to it; needs CAP_DAC_READ_SEARCH."""
    _check(_libc.linkat(fd, b"", AT_FDCWD, os.fsencode(new), AT_EMPTY_PATH))


def birth_time(path: str) -> int | None:
    """Time of birth in nanoseconds by statx(2), None where the file system tells none."""
    room = ctypes.create_string_buffer(256)
    _check(_libc.statx(AT_FDCWD, os.fsencode(path), AT_SYMLINK_NOFOLLOW, 0xFFF, room))
    if not struct.unpack_from("=I", room.raw)[0] & STATX_BTIME:
        return None
    seconds, ns = struct.unpack_from("=qI", room.raw, 80)
    return seconds * 10**9 + ns


def utimensat(path: str, atime: tuple[int, int], mtime: tuple[int, int], follow: bool = True) -> None:
    """Times as (seconds, nanoseconds); UTIME_NOW and UTIME_OMIT go into the nanoseconds."""
    times = struct.pack("qqqq", *atime, *mtime)
    _check(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0 if follow else AT_SYMLINK_NOFOLLOW))


def syncfs(fd: int) -> None:
    _check(_libc.syncfs(fd))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _check(_libc.fallocate(fd, mode, offset, length))


def getxattr(path: str, name: str, size: int) -> int:
    """Length of the value; `size` is the room that is offered (0 asks for the length)."""
    room = ctypes.create_string_buffer(max(size, 1))
    return _check(_libc.getxattr(os.fsencode(path), name.encode(), room, size))


def listxattr(path: str, size: int) -> int:
    room = ctypes.create_string_buffer(max(size, 1))
    return _check(_libc.listxattr(os.fsencode(path), room, size))


def name_to_handle(path: str) -> tuple[int, bytes]:
    """(type, opaque bytes) of a file handle."""
    room = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 8 + 128)
    mount_id = ctypes.c_int()
    _check(_libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), room, ctypes.byref(mount_id), 0))
    length, kind = struct.unpack_from("Ii", room.raw)
    return kind, room.raw[8 : 8 + length]


def open_by_handle(mount_fd: int, handle: tuple[int, bytes], flags: int) -> int:
    kind, opaque = handle
    blob = ctypes.create_string_buffer(struct.pack("Ii", len(opaque), kind) + opaque)
    return _check(_libc.open_by_handle_at(mount_fd, blob, flags))


class Dir:
    """A directory stream: readdir with positions, as readdir(3), telldir(3), seekdir(3), rewinddir(3)."""

    def __init__(self, path: str) -> None:
        self._dir = _libc.opendir(os.fsencode(path))
        if not self._dir:
            _check(-1)

    def __enter__(self) -> Dir:
        return self

    def __exit__(self, *_exc: object) -> None:
        _libc.closedir(self._dir)

    def read(self) -> tuple[bytes, int, int] | None:
        """Next (name, inode, type), or None at the end."""
        entry = _libc.readdir(self._dir)
        if not entry:
            return None
        inode, _off, length, kind = struct.unpack("=QqHB", ctypes.string_at(entry, 19))
        return ctypes.string_at(entry + 19, length - 19).split(b"\0", 1)[0], inode, kind

    def __iter__(self):
        while (entry := self.read()) is not None:
            yield entry

    def tell(self) -> int:
        return _libc.telldir(self._dir)

    def seek(self, position: int) -> None:
        _libc.seekdir(self._dir, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._dir)


def getdents(fd: int, size: int) -> list[bytes]:
    """Names of one getdents64 call into a buffer of `size` bytes; empty at the end."""
    room = ctypes.create_string_buffer(size)
    got = _check(_libc.getdents64(fd, room, size))
    names, at = [], 0
    while at < got:
        length = struct.unpack_from("=H", room.raw, at + 16)[0]
        names.append(room.raw[at + 19 : at + length].split(b"\0", 1)[0])
        at += length
    return names


class Inotify:
    """An inotify descriptor with one watch."""

    def __init__(self, path: str, mask: int) -> None:
        self.fd = _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        _check(_libc.inotify_add_watch(self.fd, os.fsencode(path), mask))

    def events(self) -> list[tuple[int, bytes]]:
        """(mask, name) of what is waiting."""
        try:
            blob = os.read(self.fd, 65536)
        except BlockingIOError:
            return []
        found, at = [], 0
        while at < len(blob):
            _wd, mask, _cookie, length = struct.unpack_from("iIII", blob, at)
            found.append((mask, blob[at + 16 : at + 16 + length].rstrip(b"\0")))
            at += 16 + length
        return found
