# SPDX-License-Identifier: MIT
"""Handlers for what pyfuse3 does not know. They are called by calls.py with requests that it took apart.

Like those in ops.py they translate and return. *ctx*: the request's ``uid``, ``gid`` and ``pid``.
What comes of it in the kernel (6.18): of a STATX reply it keeps the basic fields and the time of birth; the
attributes (STATX_ATTR_DAX and others) and their mask it drops. SYNCFS it sends for virtiofs and fuseblk.
"""

import errno
import os

from .. import layout as L
from ..data import ranges
from ..errors import fail
from ..meta import attr, namespace
from ..meta.namespace import Creds
from . import wire
from .handler import group_check, handler

_ATTR_DAX, _ATTR_NODUMP = 0x200000, 0x40  # STATX_ATTR_* of linux/stat.h


class MoreOperations:
    """What Operations (ops.py) gets besides its pyfuse3 handlers."""

    def _drop_by(self, node, ctx) -> None:
        """What a change of the data takes away; no flag of these requests says whether it must."""
        in_group = group_check(ctx) if ctx.uid else None
        if in_group is not None or node.capability is not False:
            attr.drop_privileges(self.fs, node, in_group, True)

    @handler
    def readdir_plain(self, fh, start, size):
        """Names without attributes: fuse_dirent records, *size* bytes at most."""
        fs, ino = self.fs, self.handles[fh].ino
        out = bytearray()
        for name, child, kind, cookie in namespace.readdir(fs, ino, start):
            entry = wire.dirent(name, child, kind, cookie)
            if len(out) + len(entry) > size:
                if not out:
                    raise fail(errno.EINVAL)
                break
            out += entry
        if not start:
            attr.touch_read(fs, ino, directory=True)
        return out

    @handler
    def fallocate(self, fh, pos, length, mode, ctx):
        node = self.handles[fh].node
        self._drop_by(node, ctx)
        self.files.fallocate(node, mode, pos, length)

    @handler
    def lseek(self, fh, pos, whence):
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise fail(errno.EINVAL)
        return ranges.seek(self.handles[fh].node, pos, whence == os.SEEK_DATA)

    @handler
    def copy_file_range(self, fh_in, pos_in, fh_out, pos_out, length, ctx):
        """One piece of a copy (`ranges.copy_piece`); its bytes. The two ranges do not overlap."""
        source, target = self.handles[fh_in], self.handles[fh_out]
        self._drop_by(target.node, ctx)
        done = ranges.copy_piece(self.files, source.node, pos_in, target.node, pos_out, length)
        if not source.noatime:
            attr.touch_read(self.fs, source.ino)
        if target.osync or self.sync:
            self.files.fsync(target.node)
        return done

    @handler
    def statx(self, ino):
        """(EntryAttributes, time of birth, STATX_ATTR_* that are set, those that could be)."""
        inode = self.fs.inodes.read(ino)
        attributes = _ATTR_NODUMP if inode.flags & L.FLAG_NODUMP else 0
        if self.maps_directly(inode):
            attributes |= _ATTR_DAX
        return self.entry(inode), inode.btime, attributes, _ATTR_DAX | _ATTR_NODUMP

    @handler
    def tmpfile(self, parent, mode, flags, umask, ctx):
        creds = Creds(ctx.uid, ctx.gid, umask)
        inode = namespace.tmpfile(self.fs, parent, mode, creds, linkable=not flags & os.O_EXCL)
        try:
            return self._opened(inode.ino, flags, ctx), self.told(inode)
        except BaseException:
            self.fs.drop_unused(inode.ino)
            raise

    @handler
    def syncfs(self):
        """Everything durable that was stored up to now."""
        self.files.write_back()
        self.fs.sync_all()
