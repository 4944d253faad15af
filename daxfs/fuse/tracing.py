# SPDX-License-Identifier: MIT
"""The daemon's side of `daxfs trace`: where records come from, and who gets them.

All that is seen goes into the mount's ring (data/_trace.pyx): requests by the native transport, or by
HandlerTrace for transport=pyfuse3; faults and write-backs by who does them. Tracer has the ring keep the
classes of events that somebody watches. Limits: the trio thread alone; nobody is waited for: what a slow
watcher can't take is dropped and counted.
"""

import base64
import errno
import functools
import itertools
import operator
import struct
import time
from collections import deque

import trio

from daxfs.errors import fail
from daxfs.fuse import trace, wire
from daxfs.fuse.trace_fields import ANY_SIZE, NUMBERS

INTERVAL = 0.01  # seconds between two looks at the ring
BACKLOG = 32768  # records that wait for one watcher, some 7 MB
LINE = 512  # records in one line of the control socket


def classes_of(names) -> int:
    """The bits of classes by name. EINVAL: no such class, or none."""
    known = isinstance(names, list | tuple) and all(one in list(trace.CLASSES) for one in names)
    if not known or not names:
        raise fail(errno.EINVAL, f"events: some of {', '.join(trace.CLASSES)}")
    return functools.reduce(operator.or_, (trace.CLASSES[name] for name in names))


class Tracer:
    """All watchers of one mount. *ring*: TraceRing; *handlers*: a HandlerTrace, where pyfuse3 answers all."""

    def __init__(self, ring, handlers=None):
        self.ring, self.handlers = ring, handlers
        self.watchers: list[_Watcher] = []

    def _keep(self) -> None:
        """Just what somebody watches. MemoryError: nothing is kept."""
        wanted = functools.reduce(operator.or_, (one.classes for one in self.watchers), 0)
        self.ring.keep(wanted)
        if self.handlers is not None:
            self.handlers.trace(bool(wanted & trace.CLASSES["requests"]))

    def watch(self, names=("requests",)):
        """What a watcher of these classes is sent, as dicts: first {"tracing": true}, then records or a count
        of lost ones. EINVAL."""
        return self._watch(_Watcher(classes_of(names)))

    async def _watch(self, watcher):
        self._collect()  # what came before is not for it
        self.watchers.append(watcher)
        try:
            self._keep()
            yield {"tracing": True}
            while True:
                self._collect()
                for part in watcher.parts():
                    yield part
                await trio.sleep(INTERVAL)
        finally:
            self.watchers.remove(watcher)
            self._keep()

    def _collect(self) -> None:
        """What has come since the last look, to everybody."""
        taken = 0
        while taken < BACKLOG and (records := self.ring.read()):
            taken += len(records)
            for watcher in self.watchers:
                wanted = records
                if watcher.classes != self.ring.classes:
                    wanted = [one for one in records if trace.class_of(one) & watcher.classes]
                watcher.put(wanted)


class _Watcher:
    """Records that one watcher was not sent yet. *classes*: those that it asked for."""

    def __init__(self, classes: int):
        self.classes = classes
        self.records: deque[bytes] = deque()
        self.lost = 0

    def put(self, records: list[bytes]) -> None:
        room = BACKLOG - len(self.records)
        self.records.extend(records[:room])
        self.lost += max(len(records) - room, 0)

    def parts(self):
        """Lines of records; then how many were lost behind them."""
        while self.records:
            some = [self.records.popleft() for _ in range(min(LINE, len(self.records)))]
            yield {"size": len(some[0]), "records": base64.b64encode(b"".join(some)).decode()}
        if self.lost:
            count, self.lost = self.lost, 0
            yield {"lost": count, "time_ns": time.time_ns()}


def _named(*names: bytes) -> bytes:
    return b"".join(name + b"\0" for name in names)


def _rw(fh: int, offset: int, size: int) -> bytes:
    return struct.pack("<QQIIQII", fh, offset, size, 0, 0, 0, 0)


_VALID = (("update_mode", 0), ("update_uid", 1), ("update_gid", 2), ("update_size", 3), ("update_atime", 4),
          ("update_mtime", 5))  # fmt: skip


def _setattr(new, fields, fh) -> bytes:
    valid = sum(1 << bit for name, bit in _VALID if getattr(fields, name)) | (0 if fh is None else 1 << 6)
    atime, mtime, ctime = (divmod(ns, 10**9) for ns in (new.st_atime_ns, new.st_mtime_ns, new.st_ctime_ns))
    return struct.pack("<IIQQQqqqIIIIIIII", valid, 0, fh or 0, new.st_size, 0, atime[0], mtime[0], ctime[0],
                       atime[1], mtime[1], ctime[1], new.st_mode, 0, new.st_uid, new.st_gid, 0)


# What a handler was asked, put together again as the kernel had sent it, as far as pyfuse3 tells: opcode,
# inode (None: that of the handle) and body. From its arguments without the context; ctx for its umask.
REQUESTS = {
    "lookup": lambda ctx, parent, name: ("LOOKUP", parent, _named(name)),
    "getattr": lambda ctx, ino: ("GETATTR", ino, bytes(16)),
    "setattr": lambda ctx, ino, new, fields, fh: ("SETATTR", ino, _setattr(new, fields, fh)),
    "readlink": lambda ctx, ino: ("READLINK", ino, b""),
    "mknod": lambda ctx, parent, name, mode, rdev: (
        "MKNOD", parent, struct.pack("<IIII", mode, rdev, ctx.umask, 0) + _named(name)),
    "mkdir": lambda ctx, parent, name, mode: (
        "MKDIR", parent, struct.pack("<II", mode, ctx.umask) + _named(name)),
    "symlink": lambda ctx, parent, name, target: ("SYMLINK", parent, _named(name, target)),
    "link": lambda ctx, ino, parent, name: ("LINK", parent, struct.pack("<Q", ino) + _named(name)),
    "unlink": lambda ctx, parent, name: ("UNLINK", parent, _named(name)),
    "rmdir": lambda ctx, parent, name: ("RMDIR", parent, _named(name)),
    "rename": lambda ctx, parent, name, new_parent, new_name, flags: (
        "RENAME2", parent, struct.pack("<QII", new_parent, flags, 0) + _named(name, new_name)),
    "open": lambda ctx, ino, flags: ("OPEN", ino, struct.pack("<II", flags, 0)),
    "create": lambda ctx, parent, name, mode, flags: (
        "CREATE", parent, struct.pack("<IIII", flags, mode, ctx.umask, 0) + _named(name)),
    "read": lambda ctx, fh, pos, size: ("READ", None, _rw(fh, pos, size)),
    "write": lambda ctx, fh, pos, data: ("WRITE", None, _rw(fh, pos, len(data)) + data[: trace.BODY]),
    "flush": lambda ctx, fh: ("FLUSH", None, struct.pack("<QQQ", fh, 0, 0)),
    "release": lambda ctx, fh: ("RELEASE", None, struct.pack("<QQQ", fh, 0, 0)),
    "fsync": lambda ctx, fh, datasync: ("FSYNC", None, struct.pack("<QII", fh, bool(datasync), 0)),
    "opendir": lambda ctx, ino: ("OPENDIR", ino, bytes(8)),
    "readdir": lambda ctx, fh, start, token: ("READDIRPLUS", None, _rw(fh, start, ANY_SIZE)),
    "releasedir": lambda ctx, fh: ("RELEASEDIR", None, struct.pack("<QQQ", fh, 0, 0)),
    "fsyncdir": lambda ctx, fh, datasync: ("FSYNCDIR", None, struct.pack("<QII", fh, bool(datasync), 0)),
    "statfs": lambda ctx: ("STATFS", 1, b""),
    "setxattr": lambda ctx, ino, name, value: (
        "SETXATTR", ino, struct.pack("<II", len(value), 0) + _named(name) + value),
    "getxattr": lambda ctx, ino, name: ("GETXATTR", ino, struct.pack("<II", ANY_SIZE, 0) + _named(name)),
    "listxattr": lambda ctx, ino: ("LISTXATTR", ino, struct.pack("<II", ANY_SIZE, 0)),
    "removexattr": lambda ctx, ino, name: ("REMOVEXATTR", ino, _named(name)),
}  # fmt: skip


def _reply(name: str, value) -> tuple[bytes, int]:
    """The payload of what a handler returned, or its beginning; and how long all of it is."""
    if value is None:
        body = b""
    elif isinstance(value, tuple):  # create
        body = wire.entry_out(value[1]) + wire.open_out(value[0])
    elif hasattr(value, "st_ino"):
        bare = struct.pack("<QII", int(value.attr_timeout), 0, 0) + wire.attr(value)
        body = bare if name in ("getattr", "setattr") else wire.entry_out(value)
    elif hasattr(value, "f_blocks"):
        body = struct.pack("<QQQQQIIII", value.f_blocks, value.f_bfree, value.f_bavail, value.f_files,
                           value.f_ffree, value.f_bsize, value.f_namemax, value.f_frsize, 0)
    elif hasattr(value, "fh"):
        body = wire.open_out(value)
    elif isinstance(value, int):
        body = struct.pack("<QII", value, 0, 0) if name == "opendir" else struct.pack("<II", value, 0)
    elif name == "listxattr":
        body = _named(*value)
    else:
        # A read may answer with a view of the region: it is not held longer than for this look.
        with memoryview(value) as view:
            return bytes(view[: trace.BODY]), len(view)
    return body, len(body)


class HandlerTrace:
    """Tells of requests in front of pyfuse3's handlers. Off, those are the ones that were there before.

    *operations*: ops.Operations, of which each handler may be covered already (record=).
    """

    def __init__(self, operations, ring):
        self.operations, self.ring = operations, ring
        self._numbers = itertools.count(2, 2)
        self._before: dict[str, object] = {}

    def trace(self, on: bool) -> None:
        operations = self.operations
        if on and not self._before:
            for name in (*REQUESTS, "forget"):
                self._before[name] = vars(operations).get(name)
                cover = self._forget if name == "forget" else self._traced
                setattr(operations, name, cover(name, getattr(operations, name)))
        elif not on:
            for name, before in self._before.items():
                if before is None:
                    delattr(operations, name)
                else:
                    setattr(operations, name, before)
            self._before.clear()

    def _put(self, kind: int, opcode: int, unique: int, body: bytes, size: int, ino: int = 0, ctx=None,
             error: int = 0, latency: int = 0) -> None:
        who = (ctx.uid, ctx.gid, ctx.pid) if ctx is not None else (0, 0, 0)
        body = body[: trace.BODY]
        self.ring.put(trace.RECORD.pack(0, kind, opcode, unique, ino, *who, error, size & 0xFFFFFFFF, 3,
                                        latency, len(body), body))

    def _traced(self, name: str, handler):
        describe = REQUESTS[name]

        async def traced(*args):
            ctx, rest = (args[-1], args[:-1]) if hasattr(args[-1], "umask") else (None, args)
            op, ino, body = describe(ctx, *rest)
            if ino is None:
                handle = self.operations.handles.get(rest[0])
                ino = handle.ino if handle else 0
            unique, opcode = next(self._numbers), NUMBERS[op]
            size = trace.IN_HEADER + (40 + len(rest[2]) if name == "write" else len(body))
            self._put(trace.REQUEST, opcode, unique, body, size, ino, ctx)
            start = time.perf_counter_ns()
            try:
                value = await handler(*args)
            except Exception as exc:
                latency = time.perf_counter_ns() - start
                code = getattr(exc, "errno", None) or errno.EIO
                self._put(trace.REPLY, opcode, unique, b"", trace.OUT_HEADER, error=-code, latency=latency)
                raise
            latency = time.perf_counter_ns() - start
            body, size = _reply(name, value)
            self._put(trace.REPLY, opcode, unique, body, size + trace.OUT_HEADER, latency=latency)
            return value

        return traced

    def _forget(self, name: str, handler):
        async def forget(inodes):
            inodes = list(inodes)
            for ino, count in inodes:
                self._put(trace.REQUEST, NUMBERS["FORGET"], next(self._numbers), struct.pack("<Q", count),
                          trace.IN_HEADER + 8, ino)
            await handler(inodes)

        return forget
