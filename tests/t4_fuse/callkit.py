# SPDX-License-Identifier: MIT
"""Raw requests for calls.py without a mount: Operations on a region, a stand-in for the transport's Call."""

import os
import struct
from types import SimpleNamespace

import datakit
import trio

from daxfs._fsync import FsyncRun
from daxfs.fuse import calls
from daxfs.fuse.ops import make_operations

ROOT = SimpleNamespace(uid=0, gid=0, pid=os.getpid(), umask=0o022)


def user(uid: int = 1000, gid: int = 1000, umask: int = 0o022):
    """The context of a request by a user."""
    return SimpleNamespace(uid=uid, gid=gid, pid=os.getpid(), umask=umask)


class Call:
    """What calls.run asks of the transport's Call."""

    def __init__(self, opcode: int, nodeid: int, arg: bytes = b"", data: bytes = b"", who=ROOT):
        self.opcode, self.nodeid, self.arg, self.data = opcode, nodeid, arg, memoryview(data)
        self.uid, self.gid, self.pid = who.uid, who.gid, who.pid
        self.unique, self.interrupted, self.fsync = 7, False, FsyncRun()


class Bench:
    """Operations over a new file system, each request run to its end in a trio loop of its own."""

    def __init__(self, kit: datakit.Kit, **options):
        config = {"track": "pte", "write": "nt", "drain": "write", "flushers": 1, "nt_threshold": 0,
                  "flags": {}} | options
        self.fs = kit.make()
        self.ops = make_operations(self.fs, SimpleNamespace(**config))

    def ask(self, name: str, *args):
        """A pyfuse3 handler by name."""
        return trio.run(getattr(self.ops, name), *args)

    def create(self, name: bytes, data: bytes = b"", mode: int = 0o644, who=ROOT, flags: int = os.O_RDWR):
        """(ino, fh) of a new file with these bytes."""
        info, entry = self.ask("create", 1, name, mode, flags, who)
        if data:
            self.ask("write", info.fh, 0, data)
        return entry.st_ino, info.fh

    def run(self, call: Call) -> bytes:
        """The reply's payload. OSError, FUSEError."""
        return b"".join(bytes(part) for part in trio.run(calls.run, self.ops, call))

    def call(self, opcode: int, nodeid: int, layout: str, *values, data: bytes = b"", who=ROOT) -> bytes:
        """The reply to a request whose fixed struct is packed here from *layout* and *values*."""
        return self.run(Call(opcode, nodeid, struct.pack("=" + layout, *values), data, who))

    def error(self, *args, **more) -> int:
        """The errno with which `call` answers; 0: it succeeds."""
        try:
            self.call(*args, **more)
        except Exception as error:
            return error.errno
        return 0

    def content(self, fh: int) -> bytes:
        node = self.ops.handles[fh].node
        return bytes(self.ops.files.dax.read(node.map, 0, node.map.size))

    def extents(self, fh: int):
        """[(pgoff, pages, type)] of a file."""
        return [(pgoff, pages, kind) for pgoff, pages, _, kind, _ in self.ops.handles[fh].node.map.extents()]
