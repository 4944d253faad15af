# SPDX-License-Identifier: MIT
"""Attributes: setattr, and the times that reads and writes change. Metadata thread."""

import contextlib
import errno
import struct

from .. import layout as L
from .._iomap import PLAIN
from ..errors import CorruptError, fail
from . import file, own, placement, xattr
from .inode import PLACE_OF, allowed_flags

_DAY = 86400 * 10**9
_TIMES = struct.Struct("<qq")
_TIME = struct.Struct("<q")
_THREE = struct.Struct("<qqq")
_MTIME, _ATIME = PLACE_OF["mtime"], PLACE_OF["atime"]
MIN_TIME, MAX_TIME = -(1 << 63), (1 << 63) - 1


def setattr(fs, ino: int, changes: dict) -> None:
    """Change mode, uid, gid, size, atime, mtime (times in ns) together, as one transaction.

    Who may do it the kernel has checked. A chown takes setuid, setgid and file
    capabilities away, as chown(2) says, whoever calls it, a truncation the capabilities; a chmod
    keeps the ACL in step.
    """
    now = fs.clock()
    apply = _Apply(fs, changes, now)
    if "size" in changes:
        inode = fs.inodes.read(ino)
        if inode.mode & 0o170000 != 0o100000:
            raise fail(errno.EINVAL)
        node = fs.node(ino)
        try:
            more = len(changes) > 1 or inode.xattr_pfn
            file.truncate(fs, node, changes["size"], now, apply if more else None)
        finally:
            fs.drop_unused(ino)
        return
    inode = fs.inodes.read(ino)
    times = "mtime" in changes and inode.flags & L.FLAG_OWN
    with own.together(fs) if times else contextlib.nullcontext():
        with fs.begin() as tx:
            apply(tx.inode(ino), tx)
            tx.inode(ino).ctime = now
        if times:
            own.forget_times(fs, ino)


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
        if "size" in changes or "uid" in changes or "gid" in changes:
            xattr.without_capability(tx, self.fs, edit)
        if "mode" in changes:
            edit.mode = edit.mode & 0o170000 | changes["mode"] & 0o7777
            xattr.after_chmod(tx, self.fs, edit)
        if "atime" in changes:
            edit.atime = min(max(changes["atime"], MIN_TIME), MAX_TIME)
        if "mtime" in changes:
            edit.mtime = min(max(changes["mtime"], MIN_TIME), MAX_TIME)


def set_flags(fs, ino: int, flags: int, theirs: int = 1) -> None:
    """Give an inode these of L.FLAGS_USER and no others, in one record. EINVAL for what its type can't have.

    Who may do it the kernel has checked. Content and open handles stay as they are; where FLAG_DAX changed
    the data may move (`placement.flag_changed`). *theirs*: handles that belong to who asks.
    """
    before = fs.inodes.read(ino)
    if flags & ~allowed_flags(before.mode):
        raise fail(errno.EINVAL)
    fs.may_change()
    if flags and not fs.sb.compat & L.COMPAT_FLAGS:
        fs.change_superblock(compat=fs.sb.compat | L.COMPAT_FLAGS)
    with fs.begin() as tx:
        edit = tx.inode(ino)
        edit.flags = edit.flags & ~L.FLAGS_USER | flags
        edit.ctime = fs.clock()
    if (before.flags ^ flags) & L.FLAG_DAX and before.mode & 0o170000 == own.S_IFREG:
        placement.flag_changed(fs, ino, theirs)


def atime_due(fs, ino: int, directory: bool = False) -> bool:
    """True where a read would have to change the access time: by the mount's policy and the inode's flag."""
    if fs.readonly or fs.atime == "noatime" or (directory and fs.nodiratime):
        return False
    if fs.inodes.flags(ino) & L.FLAG_NOATIME:
        return False
    if fs.atime == "strictatime":
        return True
    atime, mtime, ctime = _THREE.unpack_from(fs.mem, fs.inodes.place(ino) + _ATIME)
    return atime <= mtime or atime <= ctime or fs.clock() - atime >= _DAY


def touch_read(fs, ino: int, directory: bool = False) -> None:
    """The access time after a read."""
    if atime_due(fs, ino, directory):
        fs.store_times(ino, _ATIME, _TIME.pack(fs.clock()))


def touch_write(fs, ino: int) -> None:
    """Modification and change time after a write over blocks that were there."""
    now = fs.clock()
    fs.store_times(ino, _MTIME, _TIMES.pack(now, now))


def drop_privileges(fs, node, in_group, capability: bool) -> None:
    """What a write takes away: setuid and setgid by somebody without CAP_FSETID, and file capabilities.

    *in_group(gid)* says whether the writer is in that group, asked only where it matters; None: he has
    CAP_FSETID. *capability*: file capabilities are ours to remove, whoever writes.
    """
    mode = fs.inodes.mode(node.ino)
    if not mode & 0o6000 and (node.capability is False or not capability):
        return
    capability = capability and xattr.has_capability(fs, node)
    killed = mode
    if in_group is not None and mode & 0o6000:
        killed = file.killed_privileges(mode, not mode & 0o2000 or in_group(fs.inodes.read(node.ino).gid))
    if killed == mode and not capability:
        return
    with fs.begin() as tx:
        edit = tx.inode(node.ino)
        edit.mode = killed
        if capability:
            xattr.without_capability(tx, fs, edit)


def note_plain(fs, node) -> None:
    """Let native threads write to *node* where a write takes nothing away; the next record ends that.

    Nor where a truncation has to be finished first: blocks behind the end would be taken for a chunk.
    """
    if fs.readonly or not node.is_file or node.map.state & PLAIN:
        return
    with node.map:  # so that no record with this inode comes between the look and the flag
        if fs.inodes.mode(node.ino) & 0o6000 or fs.inodes.flags(node.ino) & L.FLAG_TRUNCATING:
            return
        try:
            if not xattr.has_capability(fs, node):
                node.map.set_state(PLAIN)
        except CorruptError:
            return  # not known, so every write comes here; who asks for the attributes is told
