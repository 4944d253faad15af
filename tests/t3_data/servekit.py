# SPDX-License-Identifier: MIT
"""A native Server over a file system of `datakit.Kit`, with the limits that a mount would give it."""

import rawmsg as R
from datakit import create, noise

from daxfs.data import _serve
from daxfs.data._serve import DIRECT, WRITE, Server


class Served:
    """*io* and its ``server``; ``time`` is what both clocks say."""

    def __init__(self, io, max_write: int = 1 << 20):
        self.io, self.fs = io, io.fs
        self.server = Server(io.dax)
        self.server.max_write = max_write
        self.time = 2 * 10**18
        self.fs.clock = lambda: self.time
        self.limits()

    def limits(self) -> None:
        """As fuse.ops.Operations.tell_limits does it."""
        fs, server = self.fs, self.server
        server.inodes = fs.region.address + fs.inodes.base
        server.inode_limit = fs.inodes.limit
        server.ranges = -1 if fs.pool is None else fs.pool.dir_fd
        server.getattr, server.writes = True, not fs.readonly
        server.atime, server.lazytime = fs.atime, fs.lazytime

    def open(self, name: bytes = b"f", size: int = 0, flags: int = WRITE | DIRECT) -> "File":
        """A new file of that many bytes, settled and open."""
        node = create(self.io, name)
        if size:
            self.io.write(node, 0, noise(size))
        self.fs.journal.settle()
        self.limits()
        return File(self, node, flags)

    def feed(self, raw: bytes, **how):
        """(verdict, error, reply) of `Server.feed`, at the time ``time``."""
        self.server.set_clock(self.time)
        return self.server.feed(raw, **how)

    def split(self, raw: bytes, **how):
        """`feed` as from io_uring: header, fixed struct and the rest apart."""
        return self.feed(raw, arg_split=_serve.arg_size(R.HEADER.unpack_from(raw)[1]), **how)


class File:
    """An open file: its node, and a handle of the server's."""

    def __init__(self, served: Served, node, flags: int):
        self.served, self.node, self.ino = served, node, node.ino
        self.fh = served.server.open(node.map, node.ino, flags)

    def read(self, pos, size, flags=R.READ_LOCKOWNER, **how):
        return self.served.feed(R.read(self.ino, self.fh, pos, size, flags), **how)

    def write(self, pos, data, flags=0, opened=0, **how):
        """*opened*: flags of open(2) that the request has."""
        return self.served.feed(R.write(self.ino, self.fh, pos, data, flags, how=opened), **how)

    def fsync(self):
        return self.served.feed(R.fsync(self.ino, self.fh))

    def lseek(self, offset, whence):
        verdict, error, reply = self.served.feed(R.lseek(self.ino, self.fh, offset, whence))
        assert verdict == "done"
        return error or int.from_bytes(reply, "little")

    def fallocate(self, pos, length, mode=0):
        return self.served.feed(R.fallocate(self.ino, self.fh, pos, length, mode))

    def getattr(self):
        return self.served.feed(R.getattr_(self.ino))

    def inode(self):
        return self.served.fs.inodes.read(self.ino)

    def close(self) -> None:
        self.served.server.close(self.fh)
