# SPDX-License-Identifier: MIT
"""Mount option record=: each request that can store is put between a BEGIN and an END of the log.

The stores come from the recorder (daxfs/_record.pyx), the operations that they belong to from here. Both
texts are one line of JSON: {"op": "write", "ino": 5, ...} and {"result": ...} or {"errno": 28};
docs/recording.md lists them. Limits: one thread, the trio loop's. Begin and end stand around synchronous
code, so operations never overlap: a request that is tried again after ENOSPC is an operation each time.
Without record= nothing of this runs: the handlers of the one Operations object are replaced, none asks.
"""

import errno
import functools
import json
import logging
import os
import time

import daxfs
from daxfs import layout
from daxfs._record import Recorder
from daxfs.errors import UsageError
from daxfs.fuse import facts
from daxfs.meta import superblock
from daxfs.meta.namespace import RENAME_WHITEOUT

log = logging.getLogger("daxfs.record")
_text = json.encoder.encode_basestring_ascii

# Handlers that store nothing and give back nothing: they would only make the log longer.
QUIET = frozenset(("lookup", "getattr", "statx", "statfs", "getxattr", "listxattr", "flush", "lseek",
                   "get_flags", "get_label", "trim", "trim_step"))  # fmt: skip


def _json(facts: dict) -> str:
    """What json.dumps gives, in less than half of its time; the keys are plain words."""
    return "{" + ", ".join([f'"{key}": {_value(value)}' for key, value in facts.items()]) + "}"


def _value(value):
    if type(value) is int:
        return value
    return _text(value) if type(value) is str else json.dumps(value)


def _name(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _entry(parent: int, name: bytes, ctx=None, **more) -> dict:
    """A name in a directory; *ctx*: who makes it, where that ends up in the inode."""
    who = {**_caller(ctx), "umask": ctx.umask} if ctx else {}
    return {"parent": parent, "name": _name(name), **more, **who}


def _caller(ctx) -> dict:
    return {"caller": [ctx.uid, ctx.gid]}


def _sum(data) -> dict:
    """Stands for data, which are in the stores."""
    return {"size": len(data), "crc32c": layout.crc32c(data if type(data) is bytes else bytes(data))}


def _on_handle(ops, fh: int, **more) -> dict:
    return {"ino": ops.handles[fh].ino, "fh": fh, **more}


# What BEGIN says, from the handler's arguments: ops is the Operations object, ctx a pyfuse3.RequestContext.
BEGIN = {
    "setattr": lambda ops, ino, new, fields, fh, ctx: {
        "ino": ino, **ops.changes(new, fields), **_caller(ctx)},
    "readlink": lambda ops, ino, ctx: {"ino": ino},
    "mknod": lambda ops, parent, name, mode, rdev, ctx: _entry(parent, name, ctx, mode=mode, rdev=rdev),
    "mkdir": lambda ops, parent, name, mode, ctx: _entry(parent, name, ctx, mode=mode),
    "symlink": lambda ops, parent, name, target, ctx: _entry(parent, name, ctx, target=_name(target)),
    "link": lambda ops, ino, parent, name, ctx: {"ino": ino, **_entry(parent, name)},
    "unlink": lambda ops, parent, name, ctx: _entry(parent, name),
    "rmdir": lambda ops, parent, name, ctx: _entry(parent, name),
    "rename": lambda ops, parent, name, new_parent, new_name, flags, ctx: _entry(
        parent, name, new_parent=new_parent, new_name=_name(new_name), flags=flags,
        **(_caller(ctx) if flags & RENAME_WHITEOUT else {})),
    "open": lambda ops, ino, flags, ctx: {"ino": ino, "flags": flags},
    "create": lambda ops, parent, name, mode, flags, ctx: _entry(parent, name, ctx, mode=mode, flags=flags),
    "read": lambda ops, fh, pos, size, mapping=False: _on_handle(ops, fh, pos=pos, size=size),
    "write": lambda ops, fh, pos, data, writer=None, dsync=False: _on_handle(ops, fh, pos=pos, **_sum(data)),
    "release": _on_handle,
    "fsync": lambda ops, fh, datasync, times=None: _on_handle(ops, fh, datasync=bool(datasync)),
    "opendir": lambda ops, ino, ctx: {"ino": ino},
    "readdir": lambda ops, fh, start, token: _on_handle(ops, fh, start=start),
    "releasedir": _on_handle,
    "fsyncdir": lambda ops, fh, datasync: _on_handle(ops, fh, datasync=bool(datasync)),
    "readdir_plain": lambda ops, fh, start, size: _on_handle(ops, fh, start=start, size=size),
    "fallocate": lambda ops, fh, pos, length, mode, ctx: {
        **_on_handle(ops, fh, pos=pos, length=length, mode=mode), **_caller(ctx)},
    "copy_file_range": lambda ops, fh_in, pos_in, fh_out, pos_out, length, ctx: {
        **_on_handle(ops, fh_out, pos=pos_out, length=length), **_caller(ctx),
        "from": _on_handle(ops, fh_in, pos=pos_in)},
    "tmpfile": lambda ops, parent, mode, flags, umask, ctx: {
        "parent": parent, "mode": mode, "flags": flags, **_caller(ctx), "umask": umask},
    "syncfs": lambda ops: {},
    "setxattr": lambda ops, ino, name, value, ctx: {"ino": ino, "name": _name(name), **_sum(value)},
    "removexattr": lambda ops, ino, name, ctx: {"ino": ino, "name": _name(name)},
    "set_flags": lambda ops, ino, flags, caller=0: {"ino": ino, "flags": flags},
    "set_label": lambda ops, label: {"label": _name(label)},
    "shutdown": lambda ops, mode: {"mode": mode},
}  # fmt: skip


def _result(value):
    """What a handler returned, as END says it: a number, the inode and the handle, or how many bytes."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, dict):
        return value
    if isinstance(value, tuple):
        return functools.reduce(dict.__or__, map(_result, value))
    for have, name in (("st_ino", "ino"), ("fh", "fh")):
        if hasattr(value, have):
            return {name: getattr(value, have)}
    return len(value)


class Recording:
    """The log of one mount, from before its first store until after its last one.

    *region* is open and nothing was stored yet. UsageError where the log can't be there, OSError where it
    can't be made (a full disk too); errors after that end the log and not the mount.
    """

    def __init__(self, region, config, mountpoint: str):
        _check_place(config, mountpoint)
        superblock.settle(region)
        sb = superblock.read(region)  # no log is replaced for a source that is none
        info = {
            "program": f"daxfs {daxfs.__version__}",
            "started_ns": time.time_ns(),
            "source": config.fsname,
            "mountpoint": mountpoint,
            "options": config.describe(),
            "superblock": facts.of_superblock(sb),
            "areas": facts.areas(sb),
        }
        self.path = config.record
        self.told = False
        self.recorder = Recorder(region, self.path, info=info)
        self.recorder.__enter__()

    def run(self, begin: dict, call, *args):
        """``call(*args)`` as one operation; what it returns or raises."""
        recorder = self.recorder
        op = recorder.begin(_json(begin))
        try:
            value = call(*args)
        except BaseException as exc:
            recorder.end(op, _json({"errno": getattr(exc, "errno", None) or errno.EIO}))
            raise
        recorder.end(op, _json({"result": _result(value)}))
        if recorder.error and not self.told:
            self._tell()
        return value

    def cover(self, operations, handler) -> None:
        """Put the handlers of *operations* under recording. *handler*: ops.handler, which makes one."""
        for name in operations.counters:
            if name not in QUIET:
                method = self._recorded(getattr(type(operations), name).__wrapped__, BEGIN.get(name))
                setattr(operations, name, handler(method).__get__(operations))
        operations.trims = False  # it changes bytes by no store; the log would not be whole
        forget = operations.forget_one
        operations.forget_one = lambda ino, count: self.run(
            {"op": "forget", "ino": ino, "count": count}, forget, ino, count)

    def _recorded(self, method, describe):
        name, run = method.__name__, self.run

        @functools.wraps(method)
        def recorded(operations, *args):
            facts = describe(operations, *args) if describe else {}
            return run({"op": name, **facts}, method, operations, *args)

        return recorded

    def _tell(self) -> None:
        self.told = True
        log.error("%s: the recording has ended: %s; the mount goes on without it",
                  self.path, os.strerror(self.recorder.error))

    def describe(self) -> dict:
        """What `daxfs stat` says of it. bytes: of log, the header not counted."""
        code = self.recorder.error
        return {"path": self.path, "events": self.recorder.events, "bytes": self.recorder.bytes,
                "error": os.strerror(code) if code else None}

    def close(self) -> None:
        """Stop and complete the log. The region is still open, and nothing stores any more."""
        try:
            self.recorder.close()
        except OSError as exc:
            log.error("%s: the recording may not be complete: %s", self.path, exc)
        if self.recorder.error and not self.told:
            self._tell()


def _check_place(config, mountpoint: str) -> None:
    """UsageError where the log would be on the mount, which would wait for itself, or the daemon's log."""
    path = os.path.realpath(config.record)
    if path == mountpoint or path.startswith(mountpoint.rstrip("/") + "/"):
        raise UsageError(f"{config.record}: a recording can't lie on the mount that it records")
    if config.log_file and path == os.path.realpath(config.log_file):
        raise UsageError(f"{config.record}: is the log_file")
