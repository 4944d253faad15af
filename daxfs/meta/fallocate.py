# SPDX-License-Identifier: MIT
"""fallocate(2): blocks for later writes, holes, zeros.

New blocks are unwritten extents: nothing is stored in them, they read as zeros, and
they may lie behind the end of file. Whole pages change in the journal alone: a hole's
pages are freed, zeroed ones become unwritten where they are. The edges, parts of
written pages, are zeroed in place past the cache.

One record does it, with one drain for edges and record together: a crash before it
may leave the edges old, new or mixed, as one inside a write over blocks does, and the
rest old or new. More than EXTENTS_PER_STEP extents take several records, in the order
of the file (docs/durability.md). The file's lock is held all the time. Metadata thread; no suspension point.
"""

import errno

from .. import layout as L
from .._iomap import POISONED
from ..errors import fail
from ..pfn import PAGE_SHIFT, PAGE_SIZE
from . import extent, file, own, prealloc

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
MODES = (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)
EXTENTS_PER_STEP = file.EXTENTS_PER_STEP


def fallocate(fs, node, mode: int, pos: int, length: int, now: int) -> None:
    """fallocate(2) on a regular file; durable on return. The file type is the caller's to check.

    EINVAL, EOPNOTSUPP for other modes, EFBIG, EROFS; ENOSPC (a hole may need room for one
    more extent, too), EIO for a part of a poisoned page: with any of them nothing has changed.
    """
    if pos < 0 or length <= 0:
        raise fail(errno.EINVAL)
    if mode not in MODES:
        raise fail(errno.EOPNOTSUPP)
    end = pos + length
    if end > L.MAX_FILE_SIZE:
        raise fail(errno.EFBIG)
    fs.may_change()
    with node.map:
        file.finish_truncation(fs, node)
        prealloc.give_back(fs, node)
        if mode & (PUNCH_HOLE | ZERO_RANGE) and node.map.state & POISONED:
            fs.poison.edges(node, pos, end)
        if node.map.own is not None:
            if mode & PUNCH_HOLE:
                own.punch(fs, node, pos, end, now)
            else:
                own.allocate(fs, node, pos, end, bool(mode & ZERO_RANGE), bool(mode & KEEP_SIZE), now)
        elif mode & PUNCH_HOLE:
            _punch(fs, node, pos, end, now)
        else:
            _allocate(fs, node, pos, end, bool(mode & ZERO_RANGE), bool(mode & KEEP_SIZE), now)


def _whole(pos: int, end: int) -> tuple[int, int]:
    """[first, last) of the pages that lie wholly in [pos, end)."""
    first = (pos + PAGE_SIZE - 1) >> PAGE_SHIFT
    return first, max(end >> PAGE_SHIFT, first)


def _zero_edges(fs, node, pos: int, end: int) -> None:
    """Zero what of [pos, end) lies in pages that are not wholly inside. Durable at the next drain."""
    first, last = (pos + PAGE_SIZE - 1) & -PAGE_SIZE, end & -PAGE_SIZE
    for start, stop in ((pos, min(first, end)), (max(last, pos), end)) if first <= last else ((pos, end),):
        fs.region.nt_zero(node.map, start, stop)


# -- holes ------------------------------------------------------------------------------


def _punch(fs, node, pos: int, end: int, now: int) -> None:
    first, last = _whole(pos, end)
    at, done = first, False
    while not done:
        index = node.map.find(at) + EXTENTS_PER_STEP
        stop = last
        if index < len(node.map):
            stop = max(min(last, node.map.extents(index, 1)[0][0]), at)
        done = stop == last
        with fs.begin() as tx:
            edit = tx.inode(node.ino)
            edit.mtime = edit.ctime = now
            if at < stop:
                tx.free(extent.replace(tx, edit, node, at, stop, []))
            if at == first:
                _zero_edges(fs, node, pos, end)
        extent.forget_dirty(node, at, stop - at)
        at = stop


# -- blocks -----------------------------------------------------------------------------


def _allocate(fs, node, pos: int, end: int, zero: bool, keep: bool, now: int) -> None:
    """Unwritten blocks for the holes that [pos, end) touches. *zero*: and for the whole pages in it."""
    old = node.map.size
    size = old if keep else max(old, end)
    taken: list[tuple[int, int]] = []  # runs that are in no record yet
    try:
        pieces = _pieces(fs, node, pos, end, zero, taken)
        first, last = _whole(pos, end)
        covered = zero and first <= old >> PAGE_SHIFT < last
        if not covered and file.zero_tail(fs, node, size):
            # Orders the zeros behind the old end before the record with the new size.
            fs.region.drain()
        steps = [pieces[n : n + EXTENTS_PER_STEP] for n in range(0, len(pieces), EXTENTS_PER_STEP)]
        for n, step in enumerate(steps):
            start, stop = step[0][0], step[-1][0] + step[-1][1]
            with fs.begin() as tx:
                edit = tx.inode(node.ino)
                edit.mtime = edit.ctime = now
                extent.replace(tx, edit, node, start, stop, step)
                if n == len(steps) - 1 and size != old:
                    edit.size = size
                    tx.after(lambda: setattr(node.map, "size", size))
                if zero and not n:
                    _zero_edges(fs, node, pos, end)
            inside = {pfn for _, _, pfn, _ in step}
            del taken[: sum(pfn in inside for pfn, _ in taken[: len(step)])]
            if zero:
                start, stop = max(start, first), min(stop, last)
                extent.forget_dirty(node, start, max(stop - start, 0))
    except BaseException:
        for run in taken:
            fs.alloc.free(*run)
        raise


def _pieces(fs, node, pos: int, end: int, zero: bool, taken: list):
    """[(pgoff, pages, pfn, type)] without a gap for the pages that [pos, end) touches, as they shall be.

    New runs are appended to *taken*. ENOSPC also where the extents would not fit in their blocks: it
    must not come up later, between two records.
    """
    first, last = pos >> PAGE_SHIFT, (end + PAGE_SIZE - 1) >> PAGE_SHIFT
    low, high = _whole(pos, end) if zero else (0, 0)
    alloc, out = fs.alloc, []
    need = sum(n for _, n, _, kind in extent.holes(node, first, last) if kind == extent.HOLE)
    if need:
        prealloc.make_room(fs, need + file.RESERVE)
    if need and need > alloc.free_pages + alloc.held - file.RESERVE:
        raise fail(errno.ENOSPC)
    goal = file.goal_of(node, first)
    for pgoff, pages, pfn, kind in extent.holes(node, first, last):
        at = pgoff
        if kind == extent.HOLE:
            for start, got in alloc.alloc(pages, pgoff, goal):
                taken.append((start, got))
                out.append((at, got, start, extent.UNWRITTEN))
                at, goal = at + got, start + got
        else:
            goal = pfn + pages
            # Up to the zeroed pages, the zeroed pages, and from there on.
            for limit, new in ((low, kind), (high, extent.UNWRITTEN), (pgoff + pages, kind)):
                stop = min(limit, pgoff + pages)
                if at < stop:
                    out.append((at, stop - at, pfn + at - pgoff, new))
                    at = stop
    # Each new run takes a slot, and each end of the zeroed pages may cut an extent in two.
    slots = len(taken) + (2 if zero else 0) - len(node.free_slots)
    if slots > 0 and -(-slots // L.BLOCK_SLOTS) > alloc.free_pages + alloc.held - (1 if need else 0):
        raise fail(errno.ENOSPC)
    return out
