# SPDX-License-Identifier: MIT
"""Regular files: truncation, and the metadata half of a write that needs blocks.

The data half is daxfs/data/file_io.py: it copies between `prepare_write` and
`WritePlan.commit`, so that data are durable before the record that makes them
reachable. One thread; no suspension between the two. What looks at extents or size
here holds the file's lock from then on: native threads append meanwhile.
"""

import errno
import struct

from .. import layout as L
from .._iomap import STALE_TIMES
from ..errors import fail
from ..pfn import PAGE_SHIFT, PAGE_SIZE
from . import extent, own, prealloc
from .inode import PLACE_OF

_SIZE, _MTIME = PLACE_OF["size"], PLACE_OF["mtime"]
_TIMES = struct.Struct("<qq")
EXTENTS_PER_STEP = 1000  # a truncation that frees more is done in several transactions
RESERVE = 2  # pages that file data may not take: an extent block and a directory block


def killed_privileges(mode: int, in_group: bool = True) -> int:
    """*mode* after a change by somebody without CAP_FSETID. A directory keeps its bits.

    Setuid goes; setgid goes where group execute is set or the caller is not in
    the group (the kernel's ``setattr_should_drop_sgid``).
    """
    if mode & 0o170000 == 0o040000:
        return mode
    mode &= ~0o4000
    return mode & ~0o2000 if mode & 0o010 or not in_group else mode


def goal_of(node, first: int) -> int | None:
    """The pfn at which page *first* would go on where the page before it ends, or None."""
    if not first:
        return None
    kind, _, _, pfn, _ = node.map.lookup(first - 1)
    return pfn + 1 if kind != extent.HOLE else None


class WritePlan:
    """One write that needs blocks or grows the file. It holds the file's lock until commit or ``tx.abort()``.

    ``length``: bytes that can be written (less than asked where space runs out).
    ``fresh``: [(pgoff, pages, pfn)] new or unwritten pages, to be filled wholly:
    data where the write covers them, zeros elsewhere. ``spare``: [(pgoff, pages, pfn)] pages beside them that
    become written too (`prealloc`): all behind the new end (``behind``), or zeroed here.
    """

    __slots__ = ("behind", "first", "fresh", "fs", "last", "length", "node", "pieces", "pos", "spare", "tx")

    def __init__(self, fs, node, pos: int, length: int):
        self.fs, self.node, self.pos, self.length = fs, node, pos, length
        self.first = pos >> PAGE_SHIFT
        self.last = (pos + length + PAGE_SIZE - 1) >> PAGE_SHIFT
        self.tx = fs.begin()
        self.tx.hold(node.map)
        self.fresh: list[tuple[int, int, int]] = []
        self.pieces: list[tuple[int, int, int, int]] = []
        self.spare: list[tuple[int, int, int]] = []
        self.behind = False
        try:
            self._fit()
            self._allocate()
            self._zero_spare()
        except BaseException:
            self.tx.abort()
            raise

    def _fit(self) -> None:
        """Shorten the write to the space that there is; ENOSPC where not a byte fits."""
        room = self.fs.alloc.free_pages + self.fs.alloc.held - RESERVE
        for pgoff, pages, _, kind in extent.holes(self.node, self.first, self.last):
            if kind != extent.HOLE:
                continue
            if pages > room:
                self.last = pgoff + max(room, 0)
                self.length = (self.last << PAGE_SHIFT) - self.pos
                break
            room -= pages
        if self.length <= 0:
            raise fail(errno.ENOSPC)

    def _allocate(self) -> None:
        chunk = prealloc.chunk(self.fs, self.node, self.pos, self.length, self.last)
        goal = goal_of(self.node, self.first)
        for pgoff, pages, pfn, kind in extent.holes(self.node, self.first, self.last):
            if kind == extent.HOLE:
                at = pgoff
                spare = chunk if pgoff + pages == self.last else 0
                for start, got in self.tx.alloc(pages, pgoff, goal, spare):
                    mine = max(min(got, self.last - at), 0)
                    if mine:
                        self.pieces.append((at, mine, start, extent.MAPPED))
                        self.fresh.append((at, mine, start))
                    if mine < got:
                        self.spare.append((at + mine, got - mine, start + mine))
                        self.behind = True
                    at += got
                    goal = start + got
                continue
            self.pieces.append((pgoff, pages, pfn, extent.MAPPED))
            if kind == extent.UNWRITTEN:
                self.fresh.append((pgoff, pages, pfn))
            goal = pfn + pages
        if not self.behind:
            end = prealloc.pages_of(max(self.node.map.size, self.pos + self.length))
            self.spare = prealloc.around(self.fs, self.node, self.first, self.last, end)

    def _zero_spare(self) -> None:
        """Durable at the next drain, the one of the data, so before the record that makes them reachable.

        Pages behind the end are not reachable: who moves the end fills them (`zero_end`).
        """
        if self.behind:
            return
        for _, pages, pfn in self.spare:
            self.fs.region.nt_fill(pfn << PAGE_SHIFT, 0, pages << PAGE_SHIFT)

    def commit(self, now: int) -> None:
        """Publish blocks, size and times. The data are durable already."""
        node, tx = self.node, self.tx
        try:
            edit = tx.inode(node.ino)
            if self.fresh:
                pieces = sorted([*self.pieces, *((*piece, extent.MAPPED) for piece in self.spare)])
                stop = pieces[-1][0] + pieces[-1][1]
                extent.replace(tx, edit, node, pieces[0][0], stop, pieces)
            if self.behind:
                edit.flags |= L.FLAG_PREALLOC
                tx.after(lambda: prealloc.granted(self.fs, node))
            size = max(node.map.size, self.pos + self.length)
            edit.size = size
            edit.mtime = edit.ctime = now
        except BaseException:
            tx.abort()
            raise
        if size != node.map.size:
            tx.after(lambda: setattr(node.map, "size", size))
        tx.commit()


def prepare_write(fs, node, pos: int, length: int) -> WritePlan:
    """The plan for writing *length* bytes at *pos*. EFBIG, ENOSPC, EROFS change nothing."""
    if pos >= L.MAX_FILE_SIZE:
        raise fail(errno.EFBIG)
    with node.map:
        finish_truncation(fs, node)
        if pos > node.map.size:
            prealloc.give_back(fs, node)  # or it would stay, as blocks in what is a hole
        if fs.preallocated:
            pages = extent.holes(node, pos >> PAGE_SHIFT, prealloc.pages_of(pos + length))
            prealloc.make_room(fs, sum(n for _, n, _, kind in pages if kind == extent.HOLE) + RESERVE)
        plan = WritePlan(fs, node, pos, min(length, L.MAX_FILE_SIZE - pos))
        try:
            zero_tail(fs, node, pos)
            zero_end(fs, node, pos + plan.length)
        except BaseException:
            plan.tx.abort()
            raise
    return plan


def zero_tail(fs, node, limit: int) -> bool:
    """Zero what stands behind the end of file in its last page, up to *limit* bytes of file.

    A store through a mapping may have left something there that must not show
    when the file grows. Durable at the next drain; the caller drains before the
    record with the new size. True where there was something to do. Under the file's lock.
    """
    size = node.map.size
    end = min(limit, (size + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1))
    if size >= end:
        return False
    kind, _, _, pfn, _ = node.map.lookup(size >> PAGE_SHIFT)
    if kind != extent.MAPPED:
        return False
    fs.region.nt_fill((pfn << PAGE_SHIFT) + (size & PAGE_SIZE - 1), 0, end - size)
    return True


def zero_end(fs, node, end: int) -> None:
    """Zero what will stand behind *end*, the new end of file, in a preallocated page: it holds anything.

    Nobody reads it, but who maps the page sees it. Durable at the next drain, which comes before the size.
    Under the file's lock.
    """
    stop = prealloc.pages_of(end) << PAGE_SHIFT
    if end < stop and prealloc.pages_of(node.map.size) << PAGE_SHIFT < stop:
        fs.region.nt_zero(node.map, end, stop)


def grow(fs, node, size: int, now: int) -> None:
    """The size, and times, of an append in place: its data are durable, in pages that were written already.

    The one change of live metadata without a record. No record since the journal's tail may hold this inode
    (UNSETTLED): replay would bring the old size back. Under the file's lock.
    """
    region, place = fs.region, fs.inodes.place(node.ino)
    region.store(place + _MTIME, _TIMES.pack(now, now))
    region.store(place + _SIZE, L.WORD.pack(size))  # one atom
    node.map.size = size
    node.map.clear_state(STALE_TIMES)
    region.flush_range(place, L.INODE_HOT)
    # Orders size and times before the reply: an append that has returned is durable.
    region.drain()
    region.flush.check()


def truncate(fs, node, size: int, now: int, changes=None) -> None:
    """Set the size. *changes(edit, tx)* adds further inode changes to the same transaction."""
    if size > L.MAX_FILE_SIZE:
        raise fail(errno.EFBIG)
    fs.may_change()  # here, because the tail is zeroed before the transaction
    with node.map:
        finish_truncation(fs, node)
        if node.map.own is not None:
            own.truncate(fs, node, size, now, changes)
            return
        if size > node.map.size:
            prealloc.give_back(fs, node)  # or it would stay, as blocks in what is a hole
        _truncate(fs, node, size, now, changes)


def _truncate(fs, node, size: int, now: int, changes) -> None:
    old = node.map.size
    if size > old and zero_tail(fs, node, size):
        # Orders the zeros behind the old end before the record with the new size.
        fs.region.drain()
    first = (size + PAGE_SIZE - 1) >> PAGE_SHIFT
    # A file that grows keeps what fallocate put behind its end.
    beyond = len(node.map) - node.map.find(first) if size <= old else 0
    with fs.begin() as tx:
        edit = tx.inode(node.ino)
        edit.size = size
        edit.mtime = edit.ctime = now
        if changes:
            changes(edit, tx)
        if size <= old and edit.flags & L.FLAG_PREALLOC:
            edit.flags &= ~L.FLAG_PREALLOC  # nothing stays behind the end
            tx.after(lambda: fs.preallocated.discard(node.ino))
        if first == 0:
            extent.clear(tx, edit, node)
        elif beyond > EXTENTS_PER_STEP:
            edit.flags |= L.FLAG_TRUNCATING
        elif beyond and first < node.map.end():
            tx.free(extent.replace(tx, edit, node, first, extent.MAX_PGOFF, []))
        tx.after(lambda: setattr(node.map, "size", size))
    extent.forget_dirty(node, first, extent.MAX_PGOFF - first)
    if first and beyond > EXTENTS_PER_STEP:
        continue_truncate(fs, node)


def finish_truncation(fs, node) -> None:
    """Free what a truncation left behind that failed halfway, before the file may grow over it."""
    if fs.inodes.flags(node.ino) & L.FLAG_TRUNCATING:
        continue_truncate(fs, node)


def continue_truncate(fs, node) -> None:
    """Free the blocks behind the end, last ones first, a bounded number a transaction."""
    with node.map:
        _continue_truncate(fs, node)


def _continue_truncate(fs, node) -> None:
    first = (node.map.size + PAGE_SIZE - 1) >> PAGE_SHIFT
    done = False
    while not done:
        count = len(node.map)
        low = max(count - EXTENTS_PER_STEP, 0)
        cut = max(first, node.map.extents(low, 1)[0][0]) if count else first
        done = cut == first
        with fs.begin() as tx:
            edit = tx.inode(node.ino)
            if cut < node.map.end():
                tx.free(extent.replace(tx, edit, node, cut, extent.MAX_PGOFF, []))
            if done:
                edit.flags &= ~L.FLAG_TRUNCATING
