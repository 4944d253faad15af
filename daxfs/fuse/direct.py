# SPDX-License-Identifier: MIT
"""Which opens are direct: the program's mappings are the kernel's, on the inode's own range (DESIGN.md 8).

An inode's mode is decided when its first handle opens and stays until the last one has closed: the kernel
refuses (EIO) a passthrough open beside one that is not, and two backing files for one inode. A mapping may
live longer than every handle; then it keeps the range itself, and nothing here is left of it.

Limits: who has a range, and with what size, is decided elsewhere (meta/own.py). Metadata thread.
"""

import errno
import os

from .. import layout as L
from .._iomap import OBSERVED, PARKS, STORED
from ..errors import fail
from ..fault.observer import Observer
from ..meta import own
from ..pfn import PAGE_SIZE

REVOKED = "revoked; daxfs revoke --undo allows direct mappings again"


class DirectOperations:
    """What Operations (ops.py) gets for direct opens. ``passthrough``, ``backing``: of ops_base.py."""

    observer: Observer
    revoked = False  # nothing becomes direct (revoking.py)
    emptied: set[int]  # inodes in `backing` whose file was cut to nothing

    def may_open(self, ino: int) -> None:
        """Before an open: EIO where it would have to be direct, and nothing shall be mapped any more.

        Beside a direct handle the kernel takes no other. With a file that is empty it does no harm.
        """
        if self.revoked and self.is_direct(ino):
            raise fail(errno.EIO, f"inode {ino}: direct mappings are being revoked")

    def is_direct(self, ino: int) -> bool:
        return super().is_direct(ino) and ino not in self.emptied

    def direct_of(self, node) -> int:
        """The backing number for one more handle on *node*, which is counted already; 0: not direct."""
        if node.opens == 1:
            self._forget_backing(node.ino)
            node.map.clear_state(PARKS)
            if self._may_be_direct(node):
                number = self.passthrough.open(node.map.own.fd)
                if number:
                    self.backing[node.ino] = number
                    node.map.set_state(PARKS)
                    if not self.fs.pool.syncs:
                        self.observer.begin(node)
        return self.backing.get(node.ino, 0)

    def _may_be_direct(self, node) -> bool:
        policy = self.fs.dax  # files with the DAX flag, all that have a range of their own, or none
        if node.map.own is None or policy == "never" or self.revoked:
            return False
        if policy == "always" or self.fs.inodes.flags(node.ino) & L.FLAG_DAX:
            return True
        # The flag went, and a mapping that is left keeps the data where they are (placement.follow). With
        # that one only another direct one is coherent.
        return own.is_busy(node)

    def expect_stores(self, node, flags: int) -> bool:
        """Before the reply to a direct open with *flags* of open(2): may its mappings store unseen?

        Where no kernel tracks what they store, fsync has to take every page for dirty, and as a mapping may
        outlive its handle that stays so as long as the inode is in use, unless the handle is a client's that
        has all its mappings observed (observing.py).
        """
        if flags & os.O_ACCMODE != os.O_RDWR:
            return False
        if self.fs.pool.syncs:
            self.fs.mapped.add(node.ino)
            return False
        self.observer.expect(node)
        return True

    def closing(self, node) -> None:
        """A handle on *node* closes, and is still counted."""
        if node.opens == 1:
            observed = node.map.state & OBSERVED
            self.observer.end(node)
            self._forget_backing(node.ino)
            if observed and own.is_stored_to(self.fs, node):
                node.map.set_state(STORED)  # by mappings that are left, which nobody observes any more

    def why_not_direct(self) -> str:
        """Why no file of this mount is mapped directly; "": those that have ranges of their own may be."""
        if self.fs.pool is None:
            return "the source is no pool directory"
        if self.fs.dax == "never":
            return "the mount says dax=never"
        return self.passthrough.why or (REVOKED if self.revoked else "")

    def maps_directly(self, inode) -> bool:
        """STATX_ATTR_DAX: whether mappings are direct, as the file is open, or else as it would be opened."""
        node = self.fs.nodes.get(inode.ino)
        if node is not None and node.opens:
            return self.is_direct(inode.ino)
        if self.why_not_direct() or not own.wanted(self.fs, inode.mode, inode.flags):
            return False
        return bool(inode.flags & L.FLAG_OWN) or not self.fs.readonly  # it moves, unless it can't

    def describe_dax(self) -> dict:
        """What `daxfs stat` shows. open: DAX files that are open; direct: those whose mappings are so."""
        fs, ranges, wanted = self.fs, [], 0
        for node in fs.nodes.values():
            if node.is_file and node.opens:
                dax = fs.dax == "always" or fs.inodes.flags(node.ino) & L.FLAG_DAX
                wanted += bool(dax or node.ino in self.backing)
            if node.map.own is not None:
                ranges.append(node.map.own.pages)
        coarse = self.files.snapshot()
        return {
            "policy": fs.dax, "why_not": self.why_not_direct(), "open": wanted,
            "direct": sum(map(self.is_direct, self.backing)),
            "ranges": len(ranges), "range_bytes": sum(ranges) * PAGE_SIZE,
            "coarse_fsyncs": coarse["coarse_fsyncs"], "coarse_bytes": coarse["coarse_bytes"],
            "moves": fs.moves.snapshot(), "observed": self.observer.snapshot(),
        }  # fmt: skip

    def _forget_backing(self, ino: int) -> None:
        number = self.backing.pop(ino, 0)
        self.emptied.discard(ino)
        if number:
            self.passthrough.close(number)
