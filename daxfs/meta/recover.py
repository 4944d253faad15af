# SPDX-License-Identifier: MIT
"""Rebuilding DRAM state at mount: free space, free inodes, orphans.

One vectorised pass over the inode table (numpy), after replay and before
anything else. Uses nothing that it has not rebuilt itself. Damage that would
make an allocation unsafe stops the mount with CorruptError; fsck.daxfs says more.
"""

import logging
from array import array

import numpy as np

from .. import layout as L
from ..errors import CorruptError
from ..pfn import PAGE_SHIFT
from . import extent, file, own, prealloc

log = logging.getLogger(__name__)


def used_inodes(fs, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """(table, numbers in use): the valid part of the inode table as an INODE array, and its used indexes."""
    if not L.INODE_CHUNK <= limit <= fs.inodes.capacity:
        raise CorruptError(f"state page: inode limit {limit} of {fs.inodes.capacity}")
    table = np.frombuffer(fs.mem, L.INODE, limit, fs.inodes.base)
    return table, np.flatnonzero(table["mode"])


def inline_runs(table: np.ndarray, used: np.ndarray) -> np.ndarray:
    """(pfn, pages, owner) rows of the extents in inline slots."""
    kind = table["mode"][used] & 0o170000
    mapped = (kind == 0o100000) | (kind == 0o040000)
    mapped |= (kind == 0o120000) & (table["size"][used] > L.INLINE_SIZE)
    owners = used[mapped]
    slots = np.frombuffer(table["inline"][owners].tobytes(), L.EXTENT).reshape(-1, L.INLINE_SLOTS)
    taken = slots["len"] > 0
    rows = np.empty((int(taken.sum()), 3), np.int64)
    rows[:, 0] = (slots["pfn"][taken] & L.EXTENT_PFN_MASK).astype(np.int64)
    rows[:, 1] = slots["len"][taken]
    rows[:, 2] = np.broadcast_to(owners[:, None], slots.shape)[taken]
    return rows


def other_runs(fs, table: np.ndarray, used: np.ndarray) -> list[tuple[int, int, int]]:
    """(pfn, pages, owner) of extent blocks, the extents in them, and xattr runs."""
    out = []
    for ino in used[table["ext_root"][used] != 0].tolist():
        for pfn in extent.chain(fs, fs.inodes.read(ino)):
            out.append((pfn, 1, ino))
            at = (pfn << PAGE_SHIFT) + L.BLOCK_SIZE
            slots = np.frombuffer(fs.mem, L.EXTENT, L.BLOCK_SLOTS, at)
            slots = slots[slots["len"] > 0]
            pfns = slots["pfn"] & np.uint64(L.EXTENT_PFN_MASK)
            out.extend((p, n, ino) for p, n in zip(pfns.tolist(), slots["len"].tolist(), strict=True))
    with_xattr = used[table["xattr_pfn"][used] != 0]
    for ino in with_xattr.tolist():
        out.append((int(table["xattr_pfn"][ino]), int(table["xattr_pages"][ino]), ino))
    return out


def free_runs(ranges, rows: np.ndarray) -> list[tuple[int, int]]:
    """Runs (pfn, pages) of the data ranges that no row uses. CorruptError on overlap or a stray row."""
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    starts, ends = rows[:, 0], rows[:, 0] + rows[:, 1]
    twice = np.flatnonzero(ends[:-1] > starts[1:])
    if twice.size:
        a, b = rows[twice[0]], rows[twice[0] + 1]
        raise CorruptError(f"page {b[0]} belongs to inode {a[2]} and to inode {b[2]}")
    out, inside = [], 0
    for low, high in ranges:
        first, last = np.searchsorted(starts, [low, high])
        part_start, part_end = starts[first:last], ends[first:last]
        inside += last - first
        if part_end.size and part_end[-1] > high:
            raise CorruptError(f"inode {rows[last - 1][2]}: an extent leaves the data area")
        gap_start = np.concatenate(([low], part_end))
        gap_end = np.concatenate((part_start, [high]))
        keep = gap_end > gap_start
        lengths = gap_end[keep] - gap_start[keep]
        out.extend(zip(gap_start[keep].tolist(), lengths.tolist(), strict=True))
    if inside != len(rows):
        raise CorruptError("an extent lies outside the data area")
    return out


def damaged(fs, table: np.ndarray, used: np.ndarray, progress=None) -> dict[int, str]:
    """Inodes in use that can't be trusted: number to what is wrong."""
    wrong = used[table["ino"][used] != used]
    bad = {int(ino): "it says that it is another one" for ino in wrong}
    base, mem = fs.inodes.base, fs.mem
    for n, ino in enumerate(used.tolist()):
        place = base + ino * L.INODE_SIZE
        if not fs.inodes.is_valid(mem[place : place + L.INODE_SIZE]):
            bad[ino] = "wrong checksum"
        elif fs.inodes.poisoned and fs.inodes.is_poisoned(ino):
            bad[ino] = "its page of the inode table is poisoned"
        if progress and not n & 0xFFF:
            progress(n, len(used))
    return bad


def rebuild(fs, limit: int, progress=None, clean: bool = False) -> None:
    """Fill allocator, inode numbers and the set of orphans of *fs*.

    A read-only mount allocates nothing, so there damage costs the inodes that have
    it and no more: what is whole can be copied out. *clean*: the region was unmounted.
    """
    table, used = used_inodes(fs, limit)
    bad = damaged(fs, table, used, progress)
    if bad:
        ino, what = next(iter(bad.items()))
        if not fs.readonly or L.ROOT_INO in bad:
            raise CorruptError(f"inode {ino}: {what}; run fsck.daxfs, or mount read-only to copy data out")
        log.warning("%d damaged inodes answer with an error, the first is %d: %s", len(bad), ino, what)
        fs.inodes.damaged = frozenset(bad)
        used = used[~np.isin(used, list(bad))]
    if not used.size or used[0] != L.ROOT_INO or table["mode"][L.ROOT_INO] & 0o170000 != 0o040000:
        raise CorruptError("the root directory is missing; run fsck.daxfs")
    fs.inodes.limit = limit
    try:
        _find_free(fs, table, used)
    except CorruptError as error:
        if not fs.readonly:
            raise CorruptError(f"{error}; run fsck.daxfs, or mount read-only to copy data out") from None
        log.warning("free space is not known: %s", error)
    unused = np.flatnonzero(table["mode"] == 0)[1:][::-1]  # without number 0; the lowest is taken first
    fs.inodes.free = array("Q", unused.astype(np.uint64).tobytes())
    fs.inodes.used = int(used.size)
    unfinished = L.FLAG_TRUNCATING | L.FLAG_PREALLOC
    orphan = (table["nlink"][used] == 0) | (table["flags"][used] & unfinished != 0)
    fs.orphans.update(used[orphan].tolist())
    own.recover(fs, own_inodes(table, used), clean)


def own_inodes(table: np.ndarray, used: np.ndarray) -> list[tuple[int, int, int]]:
    """(ino, generation, size) of the inodes in use that have a range of their own."""
    there = used[table["flags"][used] & L.FLAG_OWN != 0]
    columns = (there, table["generation"][there], table["size"][there])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _find_free(fs, table: np.ndarray, used: np.ndarray) -> None:
    """Fill the allocator with every page of the data ranges that no inode in use has."""
    rows = inline_runs(table, used)
    more = other_runs(fs, table, used)
    if more:
        rows = np.concatenate((rows, np.array(more, np.int64)))
    for pfn, pages in free_runs(fs.ranges, rows):
        fs.alloc.free(pfn, pages)


def finish_orphans(fs) -> None:
    """Finish what a killed daemon left: unlinked inodes, half-done truncations, preallocated pages."""
    for ino in sorted(fs.orphans):
        if fs.inodes.read(ino).nlink == 0:
            fs.destroy(ino)
            continue
        fs.orphans.discard(ino)
        node = fs.node(ino)
        file.finish_truncation(fs, node)
        prealloc.give_back(fs, node)
        fs.drop_unused(ino)
