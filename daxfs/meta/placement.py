# SPDX-License-Identifier: MIT
"""Moving a file's data between the region's packed pages and a range of its own.

The flag FLAG_DAX, or the mount's ``dax=always``, says where they should be; the move comes when nobody else
has the file in use. It is atomic: data first, durable, then one record that gives the inode its new place and
frees the old one. A crash in between leaves pages that are free, or a range without an inode, which the mount
removes. What is copied is what loads see, so dirty lines of the old place need no write-back. Storage that
fallocate took behind the end of file does not move. Metadata thread; no suspension point, so a large file
keeps other requests waiting.
"""

import errno
import logging
import os
import time

from .. import layout as L
from .._iomap import COARSE, POISONED, STORED, FileMap
from ..errors import fail
from ..pfn import PAGE_SHIFT
from . import extent, file, own, prealloc

log = logging.getLogger(__name__)

STEP = 1024  # pages that a move copies at a time
MOST_EXTENTS = file.EXTENTS_PER_STEP  # more would not fit in one record


class Moves:
    """What moving came to on one mount. Times in ns; ``put_off``: somebody had the range in use.

    ``on_moved``: called with the inode's number after each move.
    """

    def __init__(self):
        self.to_own = self.to_packed = self.pages = self.put_off = self.failed = self.longest = 0
        self.on_moved: list = []
        self.due: set[int] = set()  # inodes whose flag changed while they were in use
        self._said: set[tuple[int, int]] = set()  # who failed and was in the log

    def fail(self, inode, want: bool, why: OSError) -> None:
        """*inode* can't be moved. It will be tried at each first open, but a line is enough."""
        self.failed += 1
        who = inode.ino, inode.generation
        if who not in self._said:
            self._said.add(who)
            log.warning("inode %d stays %s: %s", inode.ino, "packed" if want else "in its own range", why)

    def done(self, inode, want: bool, pages: int, ns: int) -> None:
        """*inode* was moved: so many pages with data."""
        self.to_own += want
        self.to_packed += not want
        self.pages += pages
        self.longest = max(self.longest, ns)
        self._said.discard((inode.ino, inode.generation))
        for call in self.on_moved:
            call(inode.ino)

    def snapshot(self) -> dict:
        """Counters for reports."""
        return {"to_own": self.to_own, "to_packed": self.to_packed, "bytes": self.pages << PAGE_SHIFT,
                "longest_ns": self.longest, "put_off": self.put_off, "failed": self.failed}


def flag_changed(fs, ino: int, theirs: int) -> None:
    """After a change of FLAG_DAX: move at once what nobody uses but the one who asks, and what is empty.

    *theirs*: handles that belong to that one.

    Anything else moves when it is opened first after its last close, as the kernel's own file systems do it.
    So does a file that is open for direct mappings: a descriptor of it would map the old range.
    """
    if fs.pool is None:
        return
    node = fs.node(ino)
    try:
        if node.opens <= theirs or not node.map.size:
            follow(fs, node)
        inode = fs.inodes.read(ino)
        if node.opens and own.wanted(fs, inode.mode, inode.flags) != bool(inode.flags & L.FLAG_OWN):
            fs.moves.due.add(ino)
    finally:
        fs.drop_unused(ino)


def closed(fs, node) -> None:
    """The last handle closes: a move that waited for it is made now, so that no open has to wait."""
    if node.ino in fs.moves.due:
        fs.moves.due.discard(node.ino)
        if node.ino not in fs.orphans:
            follow(fs, node)


def follow(fs, node) -> None:
    """Move the data where the flag, and the mount's ``dax=``, want them. Nobody else may use the file.

    What can't be moved (no room, mapped, too many extents) stays where it is, and works from there.
    """
    if not node.is_file or fs.readonly or fs.pool is None:
        return
    inode = fs.inodes.read(node.ino)
    want, have = own.wanted(fs, inode.mode, inode.flags), bool(inode.flags & L.FLAG_OWN)
    if want == have:
        return
    if have and own.is_busy(node):
        fs.moves.put_off += 1
        return
    begin = time.perf_counter_ns()
    try:
        fs.may_change()
        if node.map.state & POISONED:
            raise fail(errno.EIO, "it has poisoned pages")
        with node.map:
            pages = _to_own(fs, node, inode) if want else _to_packed(fs, node, inode)
    except OSError as error:
        fs.moves.fail(inode, want, error)
        return
    fs.moves.done(inode, want, pages, time.perf_counter_ns() - begin)


def _to_own(fs, node, inode) -> int:
    """The pages with data. OSError: nothing has changed."""
    file.finish_truncation(fs, node)
    prealloc.give_back(fs, node)
    need = sum(length for _, length, _, kind in _inside(node) if kind != extent.HOLE)
    # Asked before: each open would fill what is left below with a part of a file that is too large.
    if need > fs.pool.space()[1]:
        raise fail(errno.ENOSPC)
    own.enable(fs)
    range_ = new = None
    try:
        fs.pool.create(inode.ino, inode.generation)
        range_ = fs.pool.open(inode.ino, inode.generation)
        new = FileMap()
        range_.attach(new)
        _copy_to(fs, node, range_, new)
        # Orders the data, and with it the range's length, before the record that makes them the file's.
        fs.region.drain()
        fs.region.flush.check()
        range_.sync()
        range_.detach(new)
        fs.pool.forget_times(inode.ino, inode.generation)
        with fs.begin() as tx:
            edit = tx.inode(node.ino)
            # With the extents goes what was preallocated behind the end.
            edit.flags = edit.flags & ~L.FLAG_PREALLOC | L.FLAG_OWN
            extent.clear(tx, edit, node)
            tx.after(lambda: range_.attach(node.map))
    except BaseException:
        if range_ is not None and node.map.own is not range_:
            range_.detach(new)
            range_.close()
        if not fs.journal.doubt:  # else replay may need it; a range that nobody has goes at the next mount
            own.remove(fs, inode.ino, inode.generation)
        raise
    extent.forget_dirty(node, 0, extent.MAX_PGOFF)
    return need


def _inside(node):
    """The pieces of *node* up to its end, as `extent.holes` has them."""
    return extent.holes(node, 0, own.pages_of(node.map.size))


def _copy_to(fs, node, range_, new) -> None:
    """What of *node* is data, at the same places of the range; unwritten pages inside it get storage."""
    pages = own.pages_of(node.map.size)
    range_.resize(new, pages)
    for pgoff, length, pfn, kind in _inside(node):
        for at in range(pgoff, pgoff + length, STEP) if kind == extent.MAPPED else ():
            n = min(STEP, pgoff + length - at)
            range_.cover(new, at, at + n)
            start = (pfn + at - pgoff) << PAGE_SHIFT
            fs.region.nt_store((range_.pfn + at) << PAGE_SHIFT, fs.mem[start : start + (n << PAGE_SHIFT)])
        if kind == extent.UNWRITTEN:
            range_.reserve(new, pgoff, pgoff + length)
    # Who maps the range sees what is behind the end.
    range_.punch(new, node.map.size, pages << PAGE_SHIFT)


def _to_packed(fs, node, inode) -> int:
    """As `_to_own`."""
    range_, fmap = node.map.own, node.map
    own.fold_times(fs, node)  # of stores since the last close
    runs = _data_runs(node)
    need = sum(length for _, length in runs)
    if len(runs) > MOST_EXTENTS:
        raise fail(errno.EFBIG, f"{len(runs)} extents, too many for one record")
    prealloc.make_room(fs, need)
    if need > fs.alloc.free_pages + fs.alloc.held:
        raise fail(errno.ENOSPC)
    with fs.begin() as tx:
        edit = tx.inode(node.ino)
        pieces = _copy_from(fs, tx, node, runs)
        # Orders the data before the record that makes them the file's.
        fs.region.drain()
        fs.region.flush.check()
        range_.detach(fmap)
        tx.undo(lambda: range_.attach(fmap))
        extent.replace(tx, edit, node, 0, extent.MAX_PGOFF, pieces)
        edit.flags &= ~L.FLAG_OWN
        own.freed(tx, fs, edit)
        tx.after(range_.close)
    extent.forget_dirty(node, 0, extent.MAX_PGOFF)
    fmap.clear_state(COARSE | STORED)  # nobody maps the range, and the region's pages can't be mapped
    fs.stored.discard(node.ino)  # what was copied is what loads saw
    return need


def _data_runs(node) -> list[tuple[int, int]]:
    """[(pgoff, pages)] that hold data, be it in a part: a file system below may have smaller blocks.

    The map's extents don't tell: what is no extent is not known.
    """
    fmap, at, out = node.map, 0, []
    while (data := fmap.own.seek(fmap, at, True)) < fmap.size:
        at = fmap.own.seek(fmap, data, False)
        first, last = data >> PAGE_SHIFT, own.pages_of(at)
        if out and first <= sum(out[-1]):
            first = out.pop()[0]
        out.append((first, last - first))
        if len(out) > MOST_EXTENTS or at >= fmap.size:
            break
    return out


def _copy_from(fs, tx, node, runs) -> list[tuple[int, int, int, int]]:
    pieces, goal, fd = [], None, node.map.own.fd
    for pgoff, length in runs:
        at = pgoff
        for start, got in tx.alloc(length, pgoff, goal):
            pieces.append((at, got, start, extent.MAPPED))
            for n in range(0, got, STEP):
                count = min(STEP, got - n) << PAGE_SHIFT
                data = os.pread(fd, count, (at + n) << PAGE_SHIFT)
                if len(data) < count:
                    raise fail(errno.EIO, "the range became shorter")
                fs.region.nt_store((start + n) << PAGE_SHIFT, data)
            at, goal = at + got, start + got
    if len(pieces) > MOST_EXTENTS:
        raise fail(errno.EFBIG, f"{len(pieces)} extents, too many for one record")
    return pieces
