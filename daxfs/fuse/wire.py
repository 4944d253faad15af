# SPDX-License-Identifier: MIT
"""The FUSE protocol in Python: structs and replies of the requests that calls.py answers.

native/wire.h is the same for native code. Protocol 7.31 to 7.45, native byte order, no padding that is not
named. Pure packing and unpacking: nothing here knows a file system.
"""

import os
import struct

from ..data import _serve as serve

OPCODES = {number: name.upper() for number, name in serve.OPCODES.items()}
READ, WRITE, FSYNC, READDIR, FSYNCDIR, IOCTL, FALLOCATE, LSEEK = 15, 16, 20, 28, 30, 39, 43, 46
COPY_FILE_RANGE, SYNCFS, TMPFILE, STATX, COPY_FILE_RANGE_64 = 47, 50, 51, 52, 53

# The fixed structs of requests, named fields only.
READ_IN = struct.Struct("=QQIIQI4x")  # fh, offset, size, read_flags, lock_owner, flags
READ_LOCKOWNER = 1 << 1  # a read of a program; without it of the page cache, for direct I/O too
WRITE_IN = struct.Struct("=QQIIQI4x")  # fh, offset, size, write_flags, lock_owner, flags
WRITE_CACHE = 1 << 0  # pages of a mapping; which of the file's handles is a guess
WRITE_KILL_SUIDGID = 1 << 2  # the writer has no CAP_FSETID
FSYNC_IN = struct.Struct("=QI4x")  # fh, flags
FSYNC_DATASYNC = 1
FALLOCATE_IN = struct.Struct("=QQQI4x")  # fh, offset, length, mode
LSEEK_IN = struct.Struct("=QQI4x")  # fh, offset, whence
COPY_IN = struct.Struct("=QQQQQQQ")  # fh_in, offset_in, nodeid_out, fh_out, offset_out, length, flags
CREATE_IN = struct.Struct("=IIII")  # flags, mode, umask, open_flags
STATX_IN = struct.Struct("=I4xQII")  # getattr_flags, fh, flags of statx(2), mask

WORD_OUT = struct.Struct("=Q")  # LSEEK, COPY_FILE_RANGE_64
WRITE_OUT = struct.Struct("=I4x")  # and COPY_FILE_RANGE
_ATTR = struct.Struct("=3Q3q3I7I")
_ENTRY = struct.Struct("=4Q2I")  # nodeid, generation, seconds that entry and attributes stay valid; their ns
_OPEN = struct.Struct("=QIi")  # fh, open_flags, backing_id
_DIRENT = struct.Struct("=QQII")
_STATX_OUT = struct.Struct("=QI4x16x")
_STATX = struct.Struct("=IIQIIIH2xQQQQ" + "qI4x" * 4 + "IIII" + "112x")
assert (_ATTR.size, _ENTRY.size, _OPEN.size, _DIRENT.size) == (88, 40, 16, 24), "linux/fuse.h"
assert (_STATX_OUT.size, _STATX.size) == (32, 256), "linux/fuse.h"

_NS = 10**9
_OPEN_FLAGS = (("direct_io", 1), ("keep_cache", 2), ("nonseekable", 4))
FOPEN_OF_BACKED = 1 << 7 | 1 << 5  # PASSTHROUGH, and NOFLUSH: there is no cache to be written back
STATX_BASIC, STATX_BTIME = 0x7FF, 0x800


def attr(entry) -> bytes:
    """fuse_attr from a pyfuse3.EntryAttributes."""
    times = (entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns)
    atime, mtime, ctime = (divmod(ns, _NS) for ns in times)
    return _ATTR.pack(
        entry.st_ino, entry.st_size, entry.st_blocks,
        atime[0], mtime[0], ctime[0], atime[1], mtime[1], ctime[1],
        entry.st_mode, entry.st_nlink, entry.st_uid, entry.st_gid, entry.st_rdev & 0xFFFFFFFF,
        entry.st_blksize, 0,
    )  # fmt: skip


def seconds(timeout: float) -> tuple[int, int]:
    """(seconds, nanoseconds) of a timeout."""
    whole = int(timeout)
    return whole, int((timeout - whole) * _NS)


def entry_out(entry) -> bytes:
    """fuse_entry_out from a pyfuse3.EntryAttributes."""
    name, attrs = seconds(entry.entry_timeout), seconds(entry.attr_timeout)
    head = _ENTRY.pack(entry.st_ino, entry.generation, name[0], attrs[0], name[1], attrs[1])
    return head + attr(entry)


def open_out(info, more: int = 0, backing: int = 0) -> bytes:
    """fuse_open_out from a pyfuse3.FileInfo, with *more* of the kernel's FOPEN_ flags.

    *backing*: the number of the file that the kernel shall map (0: none); then `info` keeps no cache.
    """
    flags = sum(bit for name, bit in _OPEN_FLAGS if getattr(info, name)) | more
    return _OPEN.pack(info.fh, flags | FOPEN_OF_BACKED if backing else flags, backing)


def dirent(name: bytes, ino: int, kind: int, cookie: int) -> bytes:
    """fuse_dirent: *kind* is a d_type, *cookie* where reading goes on after this name."""
    out = _DIRENT.pack(ino, cookie, len(name), kind) + name
    return out.ljust(len(out) + 7 & ~7, b"\0")


def statx_out(entry, btime: int, attributes: int, known: int) -> bytes:
    """fuse_statx_out. *attributes*: STATX_ATTR_* that are set, *known*: those that could be."""
    times = (divmod(ns, _NS) for ns in (entry.st_atime_ns, btime, entry.st_ctime_ns, entry.st_mtime_ns))
    stat = _STATX.pack(
        STATX_BASIC | STATX_BTIME, entry.st_blksize, attributes, entry.st_nlink, entry.st_uid, entry.st_gid,
        entry.st_mode, entry.st_ino, entry.st_size, entry.st_blocks, known,
        *(word for time in times for word in time),
        os.major(entry.st_rdev), os.minor(entry.st_rdev), 0, 0,
    )  # fmt: skip
    return _STATX_OUT.pack(*seconds(entry.attr_timeout)) + stat
