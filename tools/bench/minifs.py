# SPDX-License-Identifier: MIT
"""The smallest possible pyfuse3 file system: the yardstick of tools/bench/requests.py.

One in-memory file, ``data``; a read or write is one slice copy. Opened with
direct I/O, so that each request of the caller arrives. One mount for each
process (pyfuse3 keeps its session in module globals). Imports nothing of daxfs:
it must not get faster or slower with it.

    python tools/bench/minifs.py DIR SIZE
"""

import errno
import os
import stat
import sys

import pyfuse3
import trio

FILE = pyfuse3.ROOT_INODE + 1


class MiniFS(pyfuse3.Operations):
    """Root directory with one file of *size* bytes."""

    def __init__(self, size: int):
        super().__init__()
        self.data = bytearray(size)
        # Assigning bytes to a slice of a bytearray copies twice, to a slice of a view once.
        self.view = memoryview(self.data)

    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o644
        entry.st_nlink = 1
        entry.st_size = 0 if inode == pyfuse3.ROOT_INODE else len(self.data)
        entry.entry_timeout = entry.attr_timeout = 300
        return entry

    async def lookup(self, parent_inode, name, ctx=None):
        if name != b"data":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(FILE)

    async def setattr(self, inode, attr, fields, fh, ctx):
        return await self.getattr(inode)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode, direct_io=True)

    async def read(self, fh, off, size):
        return self.data[off:off + size]

    async def write(self, fh, off, buf):
        self.view[off:off + len(buf)] = buf
        return len(buf)


def main() -> None:
    where, size = sys.argv[1], int(sys.argv[2])
    options = set(pyfuse3.default_options) | {"fsname=minifs", "allow_other"}
    pyfuse3.init(MiniFS(size), where, options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=os.path.ismount(where))


if __name__ == "__main__":
    main()
