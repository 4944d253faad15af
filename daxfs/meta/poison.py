# SPDX-License-Identifier: MIT
"""Poisoned pages: the list on media (docs/poison.md), and what it means for files.

An entry names pages of the region, or of an inode's own range by inode number and generation. The list has
a fixed place behind the words of the state page, and changes as a whole in a record of the journal: that of
the operation which gives the pages up, or one of its own. So it is there before `add` returns, and an entry
goes together with what it spoke of.

Content comes first, always: a page leaves the list only after it was stored anew (a write, or zeros past the
cache where it is given back), with a drain between the two. Only `clear`, which a person asks for, leaves
the bytes as they are.

Reads and writes look here only for files that have such pages (FILEMAP_POISONED): those are all served in
the metadata thread, so nothing else ever looks at the list (the fault handler has a copy, fuse/observing.py).
Limits: mappings that the kernel made of an own range itself are not stopped, nor is the raw region.
"""

import errno
import itertools
from bisect import bisect_right
from collections.abc import Callable

import numpy as np

from .. import layout as L
from .._iomap import POISONED
from ..errors import CorruptError, PoisonError, fail
from ..pfn import PAGE_SHIFT, PAGE_SIZE
from . import extent, recover
from .transaction import Transaction

Run = tuple[int, int, int, int]  # ino, generation, first page, page behind the last
PACKED = (0, 0)  # owner of entries that are pages of the region
SPARE = 24  # entries that `add` leaves free: clearing in the middle of one makes two of it
PLACE = (L.STATE_PFN << PAGE_SHIFT) + L.POISON_AT
_HEAD, _ENTRY = L.POISON_HEAD_CODEC, L.POISON_CODEC


# -- lists: sorted runs of which no two of one owner overlap or touch -------------------------


def added(runs: list[Run], owner: tuple[int, int], first: int, last: int) -> list[Run]:
    """*runs* with the pages [first, last) of *owner*."""
    rest, low, high = [], first, last
    for run in runs:
        if run[:2] == owner and run[2] <= last and first <= run[3]:
            low, high = min(low, run[2]), max(high, run[3])
        else:
            rest.append(run)
    return sorted([*rest, (*owner, low, high)])


def removed(runs: list[Run], owner: tuple[int, int], first: int, last: int) -> list[Run]:
    """*runs* without them."""
    out = []
    for run in runs:
        if run[:2] != owner or run[3] <= first or last <= run[2]:
            out.append(run)
            continue
        if run[2] < first:
            out.append((*owner, run[2], first))
        if last < run[3]:
            out.append((*owner, last, run[3]))
    return out


def hits(runs: list[Run], owner: tuple[int, int], first: int, last: int) -> list[tuple[int, int]]:
    """The pieces [start, end) of [first, last) that are on the list."""
    return [(max(run[2], first), min(run[3], last))
            for run in runs if run[:2] == owner and run[2] < last and first < run[3]]


def _without(runs: list[Run], others: list[Run]) -> list[Run]:
    """What of *runs* is not in *others*."""
    for run in others:
        runs = removed(runs, run[:2], *run[2:])
    return runs


def encode(runs: list[Run], seed: int) -> bytes:
    """The bytes on media: the head, and as many entries as it says."""
    entries = b"".join(_ENTRY.pack(ino, generation, first, last - first)
                       for ino, generation, first, last in runs)
    return L.sealed(bytearray(_HEAD.pack(L.POISON_MAGIC, 0, len(runs)) + entries), 4, seed)


def decode(mem, seed: int) -> list[Run]:
    """The list that stands in *mem*, all bytes of a region. CorruptError where it is damaged."""
    head = bytes(mem[PLACE : PLACE + _HEAD.size])
    if not any(head):
        return []
    magic, _, count = _HEAD.unpack(head)
    if magic != L.POISON_MAGIC or count > L.POISON_MAX:
        raise CorruptError("the list of poisoned pages: wrong magic or length")
    size = _HEAD.size + count * _ENTRY.size
    if not L.is_sealed(mem[PLACE : PLACE + size], 4, seed):
        raise CorruptError("the list of poisoned pages: wrong checksum")
    body = bytes(mem[PLACE + _HEAD.size : PLACE + size])
    runs = [(ino, generation, page, page + pages)
            for ino, generation, page, pages in _ENTRY.iter_unpack(body)]
    for one, two in itertools.pairwise(runs):
        if two <= one or (one[:2] == two[:2] and two[2] <= one[3]):
            raise CorruptError("the list of poisoned pages: not in order")
    if any(first >= last for *_, first, last in runs):
        raise CorruptError("the list of poisoned pages: an entry without pages")
    return runs


def fixed_areas(sb) -> list[tuple[str, int, int]]:
    """(name, first page, page behind the last) of what a mount can't do without; the inode table apart."""
    return [("superblock", L.SUPERBLOCK_PFN, L.SUPERBLOCK_PFN + 1),
            ("state page", L.STATE_PFN, L.STATE_PFN + 1),
            ("journal", sb.journal_pfn, sb.journal_pfn + sb.journal_pages),
            ("page map", sb.map_pfn, sb.map_pfn + sb.map_pages),
            ("backup superblock", sb.backup_pfn, sb.backup_pfn + 1),
            *((f"label of source {n}", start, start + 1)
              for n, (_, start, _) in enumerate(sb.sources) if n)]


class Poison:
    """The list of one FileSystem. ``runs``: empty, and false, where nothing is poisoned."""

    def __init__(self, fs):
        self.fs = fs
        self.runs: list[Run] = []
        self._packed: list[tuple[int, int]] = []
        self._ends: list[int] = []
        self._marked: set[int] = set()  # inodes in use whose map has POISONED
        # Is told (inode, [(first, last)]) of pages of own ranges that left the list, if it is there.
        self.healed: Callable[[int, list[tuple[int, int]]], None] | None = None

    def __bool__(self) -> bool:
        return bool(self.runs)

    @property
    def pages(self) -> int:
        return sum(last - first for *_, first, last in self.runs)

    def read(self) -> None:
        """Take the list from the media, after replay. CorruptError where it is damaged."""
        self._set(decode(self.fs.mem, self.fs.seed))

    def load(self) -> None:
        """`read` for a mount. CorruptError also where it is about what the mount needs."""
        self.read()
        bad = self.fixed()
        if self.fs.inodes.poisoned and not self.fs.readonly:
            bad = bad or "inode table"
        if bad:
            raise CorruptError(f"{bad}: its pages are poisoned; daxfs poison clear gives them back")

    def _set(self, runs: list[Run]) -> None:
        self.runs = runs
        self._packed = [run[2:] for run in runs if run[:2] == PACKED]
        self._ends = [end for _, end in self._packed]
        table = self.fs.inodes
        first = table.base >> PAGE_SHIFT
        pieces = self.packed(first, first + table.capacity // L.INODES_PER_PAGE)
        table.poisoned = [range(start, end) for start, end in pieces]

    def fixed(self) -> str:
        """The name of a fixed area with poisoned pages, "" where there is none."""
        return next((name for name, first, last in fixed_areas(self.fs.sb) if self.packed(first, last)), "")

    def packed(self, first: int, last: int) -> list[tuple[int, int]]:
        """The pieces of the region's pages [first, last) that are poisoned."""
        at, out = bisect_right(self._ends, first), []
        while at < len(self._packed) and self._packed[at][0] < last:
            start, end = self._packed[at]
            out.append((max(start, first), min(end, last)))
            at += 1
        return out

    # -- of files ------------------------------------------------------------------------------

    def _owner(self, node) -> tuple[int, int]:
        return node.ino, self.fs.inodes.read(node.ino).generation

    def of_file(self, node, first: int, last: int):
        """Yield the pieces [start, end) of the file's pages [first, last) that can't be read, in order.

        Of a packed file the written ones: what is unwritten reads as zeros, which stand nowhere.
        """
        if node.map.own is not None:
            yield from hits(self.runs, self._owner(node), first, last)
            return
        for pgoff, pages, pfn, kind in extent.holes(node, first, last):
            if kind == extent.MAPPED:
                for start, end in self.packed(pfn, pfn + pages):
                    yield pgoff + start - pfn, pgoff + end - pfn

    def mark(self, node) -> None:
        """Have native threads leave the file to us, if it has poisoned pages. At its load, after `add`."""
        if node.is_file and any(self.of_file(node, 0, extent.MAX_PGOFF)):
            self._marked.add(node.ino)
            with node.map:  # reads that are under way end first
                node.map.set_state(POISONED)

    def changed(self, runs: list[Run]) -> None:
        """The list is *runs* now, durably: a transaction has committed, and all maps follow it."""
        before = self.runs
        self._set(runs)
        for ino in list(self._marked):
            node = self.fs.nodes.get(ino)
            if node is None:
                self._marked.discard(ino)
                continue
            if self.healed is not None and node.map.own is not None:
                gone = _without([run for run in before if run[:2] == self._owner(node)], runs)
                if gone:
                    self.healed(ino, [run[2:] for run in gone])
            if not any(self.of_file(node, 0, extent.MAX_PGOFF)):
                self._marked.discard(ino)
                node.map.clear_state(POISONED)

    def readable(self, node, pos: int, size: int, short: bool) -> int:
        """How many of *size* bytes from *pos* on can be read: all, or with *short* those before a poisoned
        page. EIO where that is none. For files with POISONED."""
        end = min(pos + size, node.map.size)
        if end <= pos:
            return size
        for start, _ in self.of_file(node, pos >> PAGE_SHIFT, _pages(end)):
            if not short or start << PAGE_SHIFT <= pos:
                raise PoisonError(f"inode {node.ino}: page {start} is poisoned")
            return (start << PAGE_SHIFT) - pos
        return size

    def covered(self, node, pos: int, length: int) -> bool:
        """Before a write: True where it covers poisoned pages, wholly. EIO where one of them in part.

        Whole is a page, too, of which the write covers all that is in the file. ENOSPC where their end would
        need more entries than there are. Nothing has changed then.
        """
        low, high = _whole(node, pos, pos + length)
        found = list(self.of_file(node, pos >> PAGE_SHIFT, _pages(pos + length)))
        if any(start < low or high < end for start, end in found):
            raise PoisonError(f"inode {node.ino}: a part of a poisoned page can't be written")
        if found and len(self.runs) + len(found) > L.POISON_MAX:
            raise fail(errno.ENOSPC, "the list of poisoned pages is full")
        return bool(found)

    def edges(self, node, pos: int, end: int) -> None:
        """Before [pos, end) is zeroed: EIO where a poisoned page is a part of it and not whole.

        ENOSPC as of `heal`, for own ranges: their storage is given back before the transaction.
        """
        low, high = -(-pos // PAGE_SIZE), end >> PAGE_SHIFT
        for start, stop in self.of_file(node, pos >> PAGE_SHIFT, _pages(min(end, max(node.map.size, pos)))):
            if start < low or high < stop:
                raise PoisonError(f"inode {node.ino}: a part of a poisoned page can't be zeroed")
        if node.map.own is not None and low < high:
            if len(removed(self.runs, self._owner(node), low, high)) > L.POISON_MAX:
                raise fail(errno.ENOSPC, "the list of poisoned pages is full")

    def stored(self, node, pos: int, length: int) -> None:
        """After a write that `covered` allowed: its pages leave the list. The data are durable already."""
        low, high = _whole(node, pos, pos + length)
        with self.fs.begin() as tx:
            for start, end in list(self.of_file(node, low, high)):
                if node.map.own is not None:
                    self.heal(tx, start, end - start, self._owner(node))
                    continue
                for _, pages, pfn, _ in extent.holes(node, start, end):
                    self.heal(tx, pfn, pages, zero=False)

    # -- in transactions -----------------------------------------------------------------------

    def heal(self, tx, first: int, pages: int, owner=PACKED, zero: bool = True) -> None:
        """Pages leave the list in the record of *tx*: they were stored anew, or (*zero*) are zeroed here.

        Those of own ranges never are: their storage is given back before the record. ENOSPC where one entry
        would become two and there is no room. `Transaction.commit` drains before the record.
        """
        runs = self.runs if tx.poison is None else tx.poison
        found = hits(runs, owner, first, first + pages)
        if not found:
            return
        left = removed(runs, owner, first, first + pages)
        if len(left) > L.POISON_MAX:
            raise fail(errno.ENOSPC, "the list of poisoned pages is full")
        tx.poison = left
        for start, end in found if zero and owner == PACKED else ():
            self.fs.region.nt_fill(start << PAGE_SHIFT, 0, (end - start) << PAGE_SHIFT)

    def forget(self, tx, ino: int, generation: int, first: int = 0) -> None:
        """The pages of that own range from *first* on are given back in *tx*."""
        self.heal(tx, first, extent.MAX_PGOFF, (ino, generation))

    def replaced(self, tx, gone, pieces, before) -> None:
        """`extent.replace`: *gone* and *before*, [(pfn, pages)], all pages that were mapped and those that
        were written; *pieces* [(pgoff, pages, pfn, type)] are mapped now."""
        now = [(pfn, pages) for _, pages, pfn, _ in pieces]
        for run in extent.subtract(gone, now):
            self.heal(tx, *run)
        for _, pages, pfn, kind in pieces:
            if kind == extent.UNWRITTEN:
                self.heal(tx, pfn, pages)
                continue
            for run in extent.subtract([(pfn, pages)], before):
                self.heal(tx, *run, zero=False)  # its data are there already

    def entry(self, runs: list[Run]) -> tuple[int, bytes]:
        """The redo entry that makes *runs* the list."""
        return PLACE, encode(runs, self.fs.seed)


def _pages(size: int) -> int:
    return (size + PAGE_SIZE - 1) >> PAGE_SHIFT


def _whole(node, pos: int, end: int) -> tuple[int, int]:
    """[first, last) of the pages of which [pos, end) has all that is, or will be, in the file."""
    return -(-pos // PAGE_SIZE), _pages(end) if end >= node.map.size else end >> PAGE_SHIFT


# -- what the command asks for ---------------------------------------------------------------


def _begin(fs) -> Transaction:
    """As `fs.begin`, which refuses where the journal itself is poisoned: that must be possible to clear."""
    if fs.shut:
        raise fail(errno.EIO, "shut down")
    if fs.readonly:
        raise fail(errno.EROFS)
    fs.journal.ready()
    return Transaction(fs)


def _change(fs, change, runs) -> int:
    """*change* (`added`, `removed`) the list by *runs* [(owner, first, last)]; pages more, or fewer."""
    poison = fs.poison
    with _begin(fs) as tx:
        new = poison.runs
        for owner, first, last in runs:
            new = change(new, owner, first, last)
        most = L.POISON_MAX - SPARE if change is added else L.POISON_MAX
        if len(new) > most and len(new) > len(poison.runs):
            raise fail(errno.ENOSPC, f"the list of poisoned pages has room for {most} runs; clear some first")
        before = poison.pages
        if new != poison.runs:
            tx.poison = new
    return abs(poison.pages - before)


def _of_region(fs, pos: int, end: int) -> list:
    if not 0 <= pos < end <= fs.sb.npages << PAGE_SHIFT:
        raise fail(errno.EINVAL, f"bytes {pos}+{end - pos} are not in the region of "
                                 f"{fs.sb.npages << PAGE_SHIFT} bytes")
    return [(PACKED, pos >> PAGE_SHIFT, _pages(end))]


def _of_file(fs, ino: int, pos: int, end: int) -> list:
    """Where the bytes [pos, end) of a file stand. Holes have no place."""
    if fs.inodes.read(ino).mode & 0o170000 != 0o100000:
        raise fail(errno.EINVAL, "not a regular file")
    node = fs.node(ino)
    try:
        if not 0 <= pos < end or pos >= node.map.size:
            raise fail(errno.EINVAL, f"bytes {pos}+{end - pos} are not in the file of {node.map.size} bytes")
        first, last = pos >> PAGE_SHIFT, _pages(min(end, node.map.size))
        if node.map.own is not None:
            if ino >= 1 << 32:
                raise fail(errno.EOVERFLOW, "the list has no room for so large an inode number")
            return [(fs.poison._owner(node), first, last)]
        return [(PACKED, pfn, pfn + pages) for _, pages, pfn, kind in extent.holes(node, first, last)
                if kind == extent.MAPPED]
    finally:
        fs.drop_unused(ino)


def places(fs, pos: int, length: int, ino: int = 0) -> list:
    """[(owner, first page, page behind the last)] of those bytes of the region, or (*ino*) of a file.

    Rounded outwards. EINVAL where they are not there; ENXIO where they are in holes alone.
    """
    runs = _of_file(fs, ino, pos, pos + length) if ino else _of_region(fs, pos, pos + length)
    if not runs:
        raise fail(errno.ENXIO, "these bytes of the file are a hole: there is nothing to poison")
    return runs


def add(fs, runs, force: bool = False) -> int:
    """Put *runs* (of `places`) on the list, durable on return; how many pages were not on it before.

    EPERM where they hold metadata and not *force*; ENOSPC; EROFS.
    """
    fs.may_change()
    if not force:
        used = sorted({what if not ino else f"{what} of inode {ino}"
                       for owner, first, last in runs if owner == PACKED
                       for what, ino in holders(fs, first, last) if what != "data"})
        if used:
            what = ", ".join(used[:5])
            raise fail(errno.EPERM, f"these pages hold metadata ({what}): --force poisons them")
    if not fs.sb.ro_compat & L.RO_COMPAT_POISON:
        fs.change_superblock(ro_compat=fs.sb.ro_compat | L.RO_COMPAT_POISON)
    pages = _change(fs, added, runs)
    for node in list(fs.nodes.values()):
        fs.poison.mark(node)
    return pages


def clear(fs, runs) -> int:
    """Take *runs* off the list, durable on return; how many pages were on it. Their bytes stay."""
    return _change(fs, removed, runs)


def holders(fs, first: int, last: int) -> set[tuple[str, int]]:
    """(what, inode or 0) of all that stands in the region's pages [first, last); "data" of files.

    One pass over the inode table. CorruptError where that is damaged.
    """
    out = {(name, 0) for name, start, end in fixed_areas(fs.sb) if start < last and first < end}
    start = fs.sb.inode_pfn
    if start < last and first < start + fs.sb.inode_pages:
        out.add(("inode table", 0))
    table, used = recover.used_inodes(fs, fs.inodes.limit)
    rows = recover.inline_runs(table, used)
    more = recover.other_runs(fs, table, used)
    rows = np.concatenate((rows, np.array(more, np.int64))) if more else rows
    for pfn, _, ino in rows[(rows[:, 0] < last) & (rows[:, 0] + rows[:, 1] > first)].tolist():
        kind = int(table["mode"][ino]) & 0o170000
        if pfn == table["xattr_pfn"][ino]:
            what = "extended attributes"
        elif table["ext_root"][ino] and pfn in extent.chain(fs, fs.inodes.read(ino)):
            what = "extents"
        else:
            what = {0o040000: "directory", 0o120000: "target"}.get(kind, "data")
        out.add((what, ino))
    return out


def describe(fs) -> list[dict]:
    """The list as plain values: bytes of the region, or of the own range of inode ``ino``."""
    return [{"offset": first << PAGE_SHIFT, "length": (last - first) << PAGE_SHIFT,
             "ino": ino, "generation": generation} for ino, generation, first, last in fs.poison.runs]
