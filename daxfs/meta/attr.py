# SPDX-License-Identifier: MIT
"""Attributes: setattr, and the times that reads and writes change. Metadata thread."""

import errno
import struct

from .. import layout as L
from ..errors import fail
from . import file, xattr
from .inode import PLACE_OF

_DAY = 86400 * 10**9
_TIMES = struct.Struct("<qq")
_TIME = struct.Struct("<q")
_MTIME, _ATIME = PLACE_OF["mtime"], PLACE_OF["atime"]
MIN_TIME, MAX_TIME = -(1 << 63), (1 << 63) - 1


def setattr(fs, ino: int, changes: dict) -> None:
    """Change mode, uid, gid, size, atime, mtime (times in ns) together, as one transaction.

    Who may do it the kernel has checked. A chown takes setuid, setgid and file
    capabilities away, as chown(2) says, whoever calls it; a chmod keeps the ACL in step.
    """
    now = fs.clock()
    apply = _Apply(fs, changes, now)
    if "size" in changes:
        inode = fs.inodes.read(ino)
        if inode.mode & 0o170000 != 0o100000:
            raise fail(errno.EINVAL)
        node = fs.node(ino)
        try:
            file.truncate(fs, node, changes["size"], now, apply if len(changes) > 1 else None)
        finally:
            fs.drop_unused(ino)
        return
    fs.inodes.read(ino)
    with fs.begin() as tx:
        apply(tx.inode(ino), tx)
        tx.inode(ino).ctime = now


class _Apply:
    """The changes other than size, to an `InodeEdit`."""

    def __init__(self, fs, changes: dict, now: int):
        self.fs, self.changes, self.now = fs, changes, now

    def __call__(self, edit, tx) -> None:
        changes = self.changes
        if "uid" in changes or "gid" in changes:
            edit.uid = changes.get("uid", edit.uid)
            edit.gid = changes.get("gid", edit.gid)
            edit.mode = file.killed_privileges(edit.mode)
            xattr.without_capability(tx, self.fs, edit)
        if "mode" in changes:
            edit.mode = edit.mode & 0o170000 | changes["mode"] & 0o7777
            xattr.after_chmod(tx, self.fs, edit)
        if "atime" in changes:
            edit.atime = min(max(changes["atime"], MIN_TIME), MAX_TIME)
        if "mtime" in changes:
            edit.mtime = min(max(changes["mtime"], MIN_TIME), MAX_TIME)


def touch_read(fs, ino: int, directory: bool = False) -> None:
    """The access time after a read, by the mount's policy (relatime as mount(8) has it)."""
    if fs.readonly or fs.atime == "noatime" or (directory and fs.nodiratime):
        return
    now = fs.clock()
    place = fs.inodes.place(ino)
    if fs.atime == "relatime":
        atime, mtime, ctime = struct.unpack_from("<qqq", fs.mem, place + _ATIME)
        if atime > mtime and atime > ctime and now - atime < _DAY:
            return
    fs.store_times(ino, _ATIME, _TIME.pack(now))


def touch_write(fs, ino: int) -> None:
    """Modification and change time after a write over blocks that were there."""
    now = fs.clock()
    fs.store_times(ino, _MTIME, _TIMES.pack(now, now))


def drop_privileges(fs, ino: int) -> None:
    """Take setuid, setgid and file capabilities away, as a write by somebody without CAP_FSETID does."""
    inode = fs.inodes.read(ino)
    mode = file.killed_privileges(inode.mode)
    if mode == inode.mode and not inode.xattr_pfn:
        return
    if mode == inode.mode and xattr.CAPABILITY not in xattr.load(fs, inode):
        return
    with fs.begin() as tx:
        edit = tx.inode(ino)
        edit.mode = mode
        xattr.without_capability(tx, fs, edit)
