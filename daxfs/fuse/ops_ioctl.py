# SPDX-License-Identifier: MIT
"""Handlers behind IOCTL requests (ioctl.py takes those apart): flags, label, trim, shutdown.

Like those in ops.py they translate and return. Who may do it ioctl.py or the kernel has checked.
"""

import errno
import logging

from ..errors import fail
from ..layout import FLAGS_USER
from ..meta import attr
from ..meta.trim import Trim
from .handler import handler

log = logging.getLogger(__name__)

_FEW = 16  # handles of one file whose openers are looked up


class IoctlOperations:
    """What Operations (ops.py) gets for IOCTL."""

    trims = True  # False while a recording runs: its log has no way to say what a trim does

    def attributes_changed(self, ino: int) -> None:
        """Have the kernel ask again for attributes of *ino*: it does not expect an ioctl to change any."""
        if self.notify is None:
            return
        try:
            self.notify(ino, attr_only=True)
        except OSError as error:
            if error.errno != errno.ENOENT:  # the kernel has just forgotten the inode
                log.warning("inode %d: the kernel may show an old change time: %s", ino, error)

    @handler
    def get_flags(self, ino):
        """(flags that users set, number of extents, generation) of an inode."""
        inode = self.fs.inodes.read(ino)
        return inode.flags & FLAGS_USER, inode.nextents, inode.generation

    @handler
    def set_flags(self, ino, flags, caller=0):
        """Handles that are open go on as they were opened. *caller*: the pid of who asks.

        The kernel makes such a request through a handle of its own, opened by the caller, beside the
        program's; and those that it has just closed may still be on their way to us.
        """
        self.end_parking(ino)
        theirs = 0
        if caller and (node := self.fs.nodes.get(ino)) is not None and node.opens <= _FEW:
            theirs = sum(handle.node is node and self.server.opener(fh) == caller
                         for fh, handle in self.handles.items())
        attr.set_flags(self.fs, ino, flags, theirs)

    @handler
    def get_label(self):
        return self.fs.sb.label

    @handler
    def set_label(self, label):
        self.fs.change_superblock(label=label)

    @handler
    def trim(self, start, length, minimum):
        """A meta.trim.Trim, for `trim_step`."""
        if not self.trims:
            raise fail(errno.EOPNOTSUPP, "a recording can't hold a trim")
        return Trim(self.fs, start, length, minimum)

    @handler
    def trim_step(self, one):
        """Some more of a trim; False: that was all."""
        return one.step()

    @handler
    def shutdown(self, mode):
        """XFS_IOC_GOINGDOWN: from now on every request but those in handler.AFTER_SHUTDOWN answers EIO.

        *mode* 0: everything that is not durable becomes it first; 1: records and times that were queued; 2:
        nothing is stored or waited for any more. The next mount finds what a crash now would have left.
        """
        fs = self.fs
        self.server.nothing = True  # native threads leave all to us from now on; the region stops the others
        self.reap()
        try:
            if mode == 0 and not fs.shut:
                self.files.quiesce()
                fs.sync_all()
        finally:
            if not fs.shut:
                log.warning("shut down, mode %d: all requests answer EIO until it is unmounted", mode)
            fs.shutdown(durable=mode < 2)
