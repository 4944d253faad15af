# SPDX-License-Identifier: MIT
"""IOCTL requests: taken apart here, answered by the handlers of ops_ioctl.py. Called by calls.py.

How they come (kernel 6.18; all are "restricted", their sizes are in the command):

- FS_IOC_GETFLAGS, SETFLAGS, FSGETXATTR, FSSETXATTR (and file_getattr(2), file_setattr(2)): the VFS makes them
  generic, checks ownership, mixes in what is not to change, and FUSE sends the command again on a handle that
  it opens for that: argument 0, an unsigned int where the command says long, and the reply has exactly the
  size that is asked for. A SETFLAGS or FSSETXATTR with an argument was checked by nobody; none was seen, but
  a VFS that takes our EOPNOTSUPP for "ask the file system itself" would send it. It gets EOPNOTSUPP again.
- The other commands as they are, with whatever the caller may be: we ask for uid 0 where Linux asks for
  CAP_SYS_ADMIN, since a request names no capabilities.
- BLKDAXSET and BLKDAXGET, on files of the raw region alone, say nothing of their argument, which is the
  address of an int: it is fetched from the caller's memory, or put there.
- XFS_IOC_GOINGDOWN says that it reads, so FUSE does not send its argument; it is fetched from the caller.
- DAXFS_IOC_ABOUT, OBSERVE and FORGET (observing.py) with their arguments. The process that asks is the one of
  the request, whoever else has the descriptor.
- FIGETBSZ, FIOQSIZE, FIBMAP, FS_IOC_FIEMAP, FIFREEZE, FS_IOC_GETFSUUID and FICLONE end in the VFS.

An error is the error of the whole request: `result` of fuse_ioctl_out is not looked at on all paths.
"""

import errno
import logging
import os
import struct

import trio

from ..errors import fail
from ..layout import FLAG_DAX, FLAG_NOATIME, FLAG_NODUMP, FLAG_SYNC, LABEL_MAX
from . import observing
from .mappers import mappers

log = logging.getLogger(__name__)

_IN = struct.Struct("=QIIQII")  # fh, flags, cmd, arg, in_size, out_size
_OUT = struct.pack("=iIII", 0, 0, 0, 0)  # result, flags, in_iovs, out_iovs
_UNRESTRICTED = 1 << 1  # CUSE alone

GETFLAGS, SETFLAGS, GETVERSION, GETVERSION32 = 0x80086601, 0x40086602, 0x80087601, 0x80047601
FSGETXATTR, FSSETXATTR = 0x801C581F, 0x401C5820
GETFSLABEL, SETFSLABEL = 0x81009431, 0x41009432
FITRIM, GOINGDOWN = 0xC0185879, 0x8004587D
BLKDAXSET, BLKDAXGET = 0x1280, 0x1281
_FL = {0x8: FLAG_SYNC, 0x40: FLAG_NODUMP, 0x80: FLAG_NOATIME, 0x02000000: FLAG_DAX}  # FS_*_FL
_XFLAGS = {0x20: FLAG_SYNC, 0x40: FLAG_NOATIME, 0x80: FLAG_NODUMP, 0x8000: FLAG_DAX}  # FS_XFLAG_*
_WORD = struct.Struct("=I")
_INT = struct.Struct("=i")
_FSXATTR = struct.Struct("=IIIII8x")  # xflags, extsize, nextents, projid, cowextsize
_RANGE = struct.Struct("=QQQ")  # start, len, minlen
_FSLABEL = 256
SHUTDOWN_DEFAULT, SHUTDOWN_LOGFLUSH, SHUTDOWN_NOLOGFLUSH = 0, 1, 2
_PATIENCE = 2.0  # seconds for the memory of a caller, which may be a mapping of a file system that hangs


class Request:
    """One IOCTL: the call, its handle and inode, and the words of fuse_ioctl_in that matter."""

    __slots__ = ("arg", "call", "data", "fh", "ino", "out_size")

    def __init__(self, call, fh: int, arg: int, data: bytes, out_size: int):
        self.call, self.fh, self.ino, self.arg = call, fh, call.nodeid, arg
        self.data, self.out_size = data, out_size

    def unpack(self, codec):
        """The argument. EINVAL where it has another size."""
        if len(self.data) != codec.size:
            raise fail(errno.EINVAL)
        return codec.unpack(self.data)

    def reply(self, data: bytes = b""):
        """fuse_ioctl_out and *data*. EINVAL where the caller has no room for it."""
        if len(data) > self.out_size:
            raise fail(errno.EINVAL)
        return _OUT, data

    def privileged(self) -> None:
        """EPERM for all but root."""
        if self.call.uid:
            raise fail(errno.EPERM)

    def checked(self) -> None:
        """EOPNOTSUPP for a change that did not come through the VFS's check of who may make it."""
        if self.arg:
            raise fail(errno.EOPNOTSUPP)


def _to_media(bits: int, names: dict) -> int:
    """Flags of the inode for those of the kernel's *names*. EOPNOTSUPP for one that is not kept."""
    if bits & ~sum(names):
        raise fail(errno.EOPNOTSUPP)
    return sum(flag for bit, flag in names.items() if bits & bit)


def _from_media(flags: int, names: dict) -> int:
    return sum(bit for bit, flag in names.items() if flags & flag)


async def _getflags(ops, request):
    flags, _, _ = await ops.get_flags(request.ino)
    return request.reply(_WORD.pack(_from_media(flags, _FL)))


async def _setflags(ops, request):
    request.checked()
    (bits,) = request.unpack(_WORD)
    await _set(ops, request, _to_media(bits, _FL))
    return request.reply()


async def _fsgetxattr(ops, request):
    flags, nextents, _ = await ops.get_flags(request.ino)
    return request.reply(_FSXATTR.pack(_from_media(flags, _XFLAGS), 0, nextents, 0, 0))


async def _fssetxattr(ops, request):
    request.checked()
    bits, _, _, project, _ = request.unpack(_FSXATTR)  # extent sizes count only with their flags
    if project:
        raise fail(errno.EOPNOTSUPP)
    await _set(ops, request, _to_media(bits, _XFLAGS))
    return request.reply()


async def _set(ops, request, flags: int) -> None:
    await ops.set_flags(request.ino, flags, request.call.pid)
    ops.attributes_changed(request.ino)


async def _getversion(ops, request):
    _, _, generation = await ops.get_flags(request.ino)
    return request.reply(_WORD.pack(generation))


async def _getfslabel(ops, request):
    return request.reply((await ops.get_label()).ljust(_FSLABEL, b"\0"))


async def _setfslabel(ops, request):
    request.privileged()
    if len(request.data) != _FSLABEL:
        raise fail(errno.EINVAL)
    label = request.data.partition(b"\0")[0]
    if len(label) > LABEL_MAX:
        raise fail(errno.EINVAL, f"a label of {len(label)} bytes; at most {LABEL_MAX}")
    await ops.set_label(label)
    return request.reply()


async def _fitrim(ops, request):
    request.privileged()
    one = await ops.trim(*request.unpack(_RANGE))
    while await ops.trim_step(one):
        await trio.lowlevel.checkpoint()
        if request.call.interrupted:
            raise fail(errno.EINTR)
    start, _, minimum = request.unpack(_RANGE)
    return request.reply(_RANGE.pack(start, one.trimmed, minimum))


async def _goingdown(ops, request):
    request.privileged()
    mode = _WORD.unpack(await _fetch(request.call.pid, request.arg, _WORD.size))[0]
    if mode > SHUTDOWN_NOLOGFLUSH:
        raise fail(errno.EINVAL)
    if mode == SHUTDOWN_DEFAULT and ops.kernel_sync is not None and not ops.fs.shut:
        await ops.kernel_sync(by_request=True)
    await ops.shutdown(mode)
    return request.reply()


async def _blkdaxget(ops, request):
    """1 where the file is mapped directly by who opens it first from now on."""
    value = await ops.dax_get(request.fh)
    await _put(request.call.pid, request.arg, _INT.pack(value))
    return request.reply()


async def _blkdaxset(ops, request):
    """As on block devices: EACCES, EFAULT, nothing to do, ENOTTY, EBUSY, in this order."""
    if request.call.uid:
        raise fail(errno.EACCES)
    value = bool(*_INT.unpack(await _fetch(request.call.pid, request.arg, _INT.size)))
    if await ops.dax_may_set(request.fh, value):
        await _not_mapped(ops, request.ino, await ops.dax_openers(request.fh))
        await ops.dax_set(request.fh, value)
    return request.reply()


async def _not_mapped(ops, ino: int, openers: set[int]) -> None:
    """EBUSY where somebody has inode *ino* mapped, or it takes too long to tell."""
    with trio.move_on_after(_PATIENCE):
        if not await trio.to_thread.run_sync(mappers, ops.device, ino, openers, abandon_on_cancel=True):
            return
    raise fail(errno.EBUSY)


async def _fetch(pid: int, address: int, size: int) -> bytes:
    """*size* bytes of the memory of a process that waits for us. EFAULT where they can't be had."""
    return await _in_memory(pid, os.O_RDONLY, lambda fd: os.pread(fd, size, address), len, size)


async def _put(pid: int, address: int, data: bytes) -> None:
    """*data* into the memory of a process that waits for us. EFAULT where that can't be."""
    await _in_memory(pid, os.O_WRONLY, lambda fd: os.pwrite(fd, data, address), int, len(data))


async def _in_memory(pid: int, mode: int, action, measure, size: int):
    """What ``action(fd)`` gives, which must *measure* *size*. EFAULT."""
    with trio.move_on_after(_PATIENCE):
        # In a thread: their page may be one that we have to provide ourselves.
        out = await trio.to_thread.run_sync(_memory, pid, mode, action, abandon_on_cancel=True)
        if measure(out) == size:
            return out
    raise fail(errno.EFAULT)


def _memory(pid: int, mode: int, action):
    try:
        fd = os.open(f"/proc/{pid}/mem", mode | os.O_CLOEXEC)
        try:
            return action(fd)
        finally:
            os.close(fd)
    except (OSError, OverflowError) as error:
        log.warning("the argument of an ioctl of process %d can't be reached: %s", pid, error)
        raise fail(errno.EFAULT) from None


async def _about(ops, request):
    return request.reply(ops.observing.about(request.ino, request.call.pid))


async def _observe(ops, request):
    request.unpack(observing.OBSERVE_IO)
    return request.reply(await ops.observing.observe(request.fh, request.call.pid, request.data))


async def _forget(ops, request):
    request.unpack(observing.FORGET_IN)
    await ops.observing.forget(request.fh, request.call.pid, request.data)
    return request.reply()


COMMANDS = {
    GETFLAGS: _getflags,
    SETFLAGS: _setflags,
    FSGETXATTR: _fsgetxattr,
    FSSETXATTR: _fssetxattr,
    GETVERSION: _getversion,
    GETVERSION32: _getversion,
    GETFSLABEL: _getfslabel,
    SETFSLABEL: _setfslabel,
    FITRIM: _fitrim,
    GOINGDOWN: _goingdown,
    observing.ABOUT: _about,
    observing.OBSERVE: _observe,
    observing.FORGET: _forget,
}
RAW_COMMANDS = {BLKDAXSET: _blkdaxset, BLKDAXGET: _blkdaxget}


async def run_ioctl(ops, call):
    """Answer an IOCTL: the buffers of the reply. OSError, FUSEError; ENOTTY for a command that is not ours.

    *call* as for calls.run.
    """
    if len(call.arg) < _IN.size:
        raise fail(errno.EINVAL, f"IOCTL: {len(call.arg)} bytes of arguments")
    fh, flags, command, arg, in_size, out_size = _IN.unpack_from(call.arg)
    if ops.handles[fh].ino != call.nodeid:
        raise fail(errno.EBADF)
    answer = (RAW_COMMANDS if ops.is_raw(call.nodeid) else COMMANDS).get(command)
    if answer is None:
        raise fail(errno.ENOTTY)
    if flags & _UNRESTRICTED or in_size > len(call.data):
        raise fail(errno.EINVAL)
    return await answer(ops, Request(call, fh, arg, bytes(call.data[:in_size]), out_size))
