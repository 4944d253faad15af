# SPDX-License-Identifier: MIT
"""The requests that the native transport hands to the trio loop without pyfuse3: decoded here, then answered
by the same `handler` coroutines of Operations, so that counters, errors and recording are one thing.

`run` takes a Call of the transport: ``opcode``, ``nodeid``, ``uid``, ``gid``, ``pid``, ``arg`` (bytes: the
fixed struct), ``data`` (memoryview: what follows, readable until run has returned) and ``interrupted``. It
returns the buffers of the reply behind fuse_out_header; an OSError or FUSEError, both with an errno, is the
error reply. A buffer may be a view of the region itself (READ): it has to be copied or sent before anything
else runs in the loop. A request that is short, or speaks of a handle that is not there or another file's,
gets an errno and changes nothing.

Interruption: ``call.interrupted`` turns true at any time, once the kernel says that a signal waits for the
caller. COPY_FILE_RANGE looks at it between two pieces, and answers with what it has copied, or EINTR
where that is nothing; FITRIM between two steps, and answers EINTR. All others run from start to end in one
step of the loop, as they do in file systems on disk: a signal makes them neither shorter nor undone.
"""

import errno
import os

import trio
from pyfuse3 import FUSEError

from ..errors import fail
from ..layout import MAX_FILE_SIZE
from . import wire
from .handler import MAPPING, PRIVILEGED
from .ioctl import run_ioctl

MAX_READ = 65535 << 12  # the largest that the kernel can be set to ask for (fs.fuse.max_pages_limit)
_COPY_MAX = 0x7FFFF000  # the reply to COPY_FILE_RANGE has 32 bits; as much as one read or write may do
_REGULAR, _DIRECTORY = 0o100000, 0o040000


def _unpack(codec, call):
    if len(call.arg) < codec.size:
        raise fail(errno.EINVAL, f"{wire.OPCODES[call.opcode]}: {len(call.arg)} bytes of arguments")
    return codec.unpack_from(call.arg)


def _handle(ops, fh: int, nodeid: int, kind: int):
    """The handle *fh* on *nodeid*, an inode of this kind. EBADF, EISDIR, ENOTDIR."""
    handle = ops.handles[fh]
    if handle.ino != nodeid:
        raise fail(errno.EBADF)
    if ops.mode(nodeid) & 0o170000 != kind:
        raise fail(errno.EISDIR if kind == _REGULAR else errno.ENOTDIR)
    return handle


async def _read(ops, call):
    fh, pos, size, flags, _, _ = _unpack(wire.READ_IN, call)
    _handle(ops, fh, call.nodeid, _REGULAR)
    if size > MAX_READ:
        raise fail(errno.EINVAL)
    return (await ops.read(fh, pos, size, not flags & wire.READ_LOCKOWNER),)


async def _write(ops, call):
    fh, pos, size, flags, _, how = _unpack(wire.WRITE_IN, call)
    handle = _handle(ops, fh, call.nodeid, _REGULAR)
    if size > len(call.data):
        raise fail(errno.EINVAL)
    writer = call if flags & wire.WRITE_KILL_SUIDGID else PRIVILEGED
    writer = MAPPING if flags & wire.WRITE_CACHE else writer
    dsync = handle.direct and writer is not MAPPING and bool(how & os.O_DSYNC)
    return (wire.WRITE_OUT.pack(await ops.write(fh, pos, call.data[:size], writer, dsync)),)


async def _fsync(ops, call):
    fh, flags = _unpack(wire.FSYNC_IN, call)
    _handle(ops, fh, call.nodeid, _REGULAR)
    datasync = bool(flags & wire.FSYNC_DATASYNC)
    if ops.observing is not None and ops.observing.looks_at(call.nodeid):
        await ops.observing.fsync(fh, call.nodeid, datasync, call.fsync)
    else:
        await ops.fsync(fh, datasync, call.fsync)
    return ()


async def _fsyncdir(ops, call):
    fh, flags = _unpack(wire.FSYNC_IN, call)
    _handle(ops, fh, call.nodeid, _DIRECTORY)
    await ops.fsyncdir(fh, bool(flags & wire.FSYNC_DATASYNC))
    return ()


async def _readdir(ops, call):
    fh, cookie, size, _, _, _ = _unpack(wire.READ_IN, call)
    _handle(ops, fh, call.nodeid, _DIRECTORY)
    return (await ops.readdir_plain(fh, cookie, min(size, MAX_READ)),)


async def _fallocate(ops, call):
    fh, pos, length, mode = _unpack(wire.FALLOCATE_IN, call)
    _handle(ops, fh, call.nodeid, _REGULAR)
    await ops.fallocate(fh, pos, length, mode, call)
    return ()


async def _lseek(ops, call):
    fh, pos, whence = _unpack(wire.LSEEK_IN, call)
    _handle(ops, fh, call.nodeid, _REGULAR)
    return (wire.WORD_OUT.pack(await ops.lseek(fh, pos, whence)),)


async def _copy(ops, call, limit: int) -> int:
    """Copy at most *limit* bytes piece by piece, other requests in between; the bytes that were copied."""
    fh_in, pos_in, node_out, fh_out, pos_out, length, flags = _unpack(wire.COPY_IN, call)
    source = _handle(ops, fh_in, call.nodeid, _REGULAR)
    target = _handle(ops, fh_out, node_out, _REGULAR)
    length = min(length, max(source.node.map.size - pos_in, 0), limit)
    if flags or (source.node is target.node and abs(pos_in - pos_out) < length):
        raise fail(errno.EINVAL)
    done = 0
    while done < length:
        if done:
            await trio.lowlevel.checkpoint()
        if call.interrupted:
            if not done:
                raise fail(errno.EINTR)
            break
        try:
            left = length - done
            copied = await ops.copy_file_range(fh_in, pos_in + done, fh_out, pos_out + done, left, call)
        except FUSEError:
            if not done:
                raise
            break
        if not copied:
            break
        done += copied
    return done


async def _copy_file_range(ops, call):
    return (wire.WRITE_OUT.pack(await _copy(ops, call, _COPY_MAX)),)


async def _copy_file_range_64(ops, call):
    return (wire.WORD_OUT.pack(await _copy(ops, call, MAX_FILE_SIZE)),)


async def _statx(ops, call):
    _unpack(wire.STATX_IN, call)  # whatever is asked for, the answer has all that there is
    return (wire.statx_out(*await ops.statx(call.nodeid)),)


async def _tmpfile(ops, call):
    flags, mode, umask, _ = _unpack(wire.CREATE_IN, call)
    info, entry = await ops.tmpfile(call.nodeid, mode, flags, umask, call)
    return wire.entry_out(entry), wire.open_out(info, ops.open_flags, ops.backing.get(entry.st_ino, 0))


async def _syncfs(ops, call):
    await ops.syncfs()
    return ()


CALLS = {
    wire.READ: _read,
    wire.WRITE: _write,
    wire.FSYNC: _fsync,
    wire.READDIR: _readdir,
    wire.FSYNCDIR: _fsyncdir,
    wire.IOCTL: run_ioctl,
    wire.FALLOCATE: _fallocate,
    wire.LSEEK: _lseek,
    wire.COPY_FILE_RANGE: _copy_file_range,
    wire.SYNCFS: _syncfs,
    wire.TMPFILE: _tmpfile,
    wire.STATX: _statx,
    wire.COPY_FILE_RANGE_64: _copy_file_range_64,
}

_LONG = frozenset((wire.COPY_FILE_RANGE, wire.COPY_FILE_RANGE_64, wire.IOCTL))


def is_long(ops, call) -> bool:
    """Whether it suspends whatever happens, so that others have to run beside it."""
    if call.opcode == wire.FALLOCATE:
        return ops.may_be_pinned(call.nodeid)
    return call.opcode in _LONG


async def run(ops, call):
    """Answer *call*: the buffers of the reply. OSError, FUSEError; ENOSYS for what is not in CALLS."""
    answer = CALLS.get(call.opcode)
    if answer is None:
        raise fail(errno.ENOSYS)
    try:
        return await answer(ops, call)
    except OSError:
        # What was looked at before the handler may be zeros that nobody wrote (native/lost.h).
        if ops.fs.region.table.lost:
            raise fail(errno.EIO, ops.lost()) from None
        raise
