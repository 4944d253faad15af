# SPDX-License-Identifier: MIT
"""Checks of ranges that inodes have for themselves: the files in the pool directory's folder of ranges.

Runs after `check_tree`, on the `Scan` of `check_inode`. A range without an inode, one that is too long and an
empty file without its range are what a crash leaves (`own`): in a region that was not unmounted they are no
problem, and mending tidies them up as a mount does (``Findings.leftovers``). Looks at names and attributes,
opens nothing, changes nothing.
"""

import os
import stat

import numpy as np

from .. import layout as L
from ..errors import SourceError
from ..pfn import PAGE_SIZE
from . import own, recover
from .check_inode import S_IFREG, Scan

_TYPES = {
    stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a block device", stat.S_IFCHR: "a character device",
}  # fmt: skip
_SHOWN = 3  # foreign names that the note gives


def check(scan: Scan) -> None:
    """All checks of this module. SourceError where the pool directory was not given, or is of no use."""
    inodes = _inodes(scan)
    pool = scan.region.pool
    inodes, doubtful = _contradictions(scan, inodes, pool)
    if pool is None:
        if inodes:
            _no_pool(scan, inodes)
        return
    found = own.compare(pool, inodes)
    if inodes and not scan.sb.incompat & L.INCOMPAT_OWN:
        what = f"{len(inodes)} inodes have ranges of their own, which its features don't say"
        scan.found.add("own-feature", "superblock", what, ("feature", L.INCOMPAT_OWN))
    known = {ino: (generation, size) for ino, generation, size in inodes}
    _missing(scan, pool, found, known)
    _odd(scan, pool, found, known)
    _sizes(scan, found, known)
    _attributes(scan, found, known)
    found.stray = [name for name in found.stray if name not in doubtful]
    _strays(scan, pool, found)
    _foreign(scan, pool)
    scan.found.stats["ranges"] = len(found.stats)


def _inodes(scan: Scan) -> list[tuple[int, int, int]]:
    """(ino, generation, size) of the valid inodes that have, or should have, ranges."""
    files = scan.good[scan.table["mode"][scan.good] & 0o170000 == S_IFREG]
    return recover.own_inodes(scan.table, files)


def _crashed(scan: Scan) -> bool:
    return bool(scan.found.stats["mounted"])


def _contradictions(scan: Scan, inodes, pool) -> tuple[list[tuple[int, int, int]], set[str]]:
    """Own inodes with extents, or in a region that can have none. Returns (the others, ranges of these)."""
    with_extents = set(np.unique(scan.rows["owner"]).tolist())
    with_extents |= set(scan.good[scan.table["ext_root"][scan.good] != 0].tolist())
    there = pool.owners() if pool is not None else {}
    may = scan.sb.incompat & L.INCOMPAT_OWN
    out, doubtful = [], set()
    for ino, generation, size in inodes:
        mapped, ranged = ino in with_extents, (ino, generation) in there
        flags = int(scan.table["flags"][ino]) & ~L.FLAG_OWN
        packed = ("inode", ino, {"flags": flags})
        if mapped:
            what = "it has extents, and the flag of a range of its own"
            what += ", which is there too: which of them has its data is a guess" if ranged else ""
            scan.found.add("own-extents", f"inode {ino}", what, None if ranged else packed)
            doubtful.add(L.range_name(ino, generation))
        elif pool is None and not may:
            what = "it has the flag of a range of its own, and the region no such feature"
            scan.found.add("own-feature", f"inode {ino}", what, None if size else packed)
        else:
            out.append((ino, generation, size))
    return out, doubtful


def _no_pool(scan: Scan, inodes) -> None:
    name = scan.region.sources[0].path
    what = f"the data of {len(inodes)} files are in ranges of a pool directory"
    beside = os.path.join(os.path.dirname(os.path.abspath(name)), L.RANGES_NAME)
    hint = f" ({os.path.dirname(beside)})" if os.path.isdir(beside) else ""
    raise SourceError(f"{name}: {what}: give that directory{hint} as the source")


# -- inodes and their ranges ---------------------------------------------------------------


def _missing(scan: Scan, pool, found, known) -> None:
    lost = [ino for ino in found.missing if known[ino][1]]
    if lost and not pool.there:
        # Mending would make every one of them empty, where perhaps a folder was not copied.
        what = f"it is missing, and {len(lost)} files have their data there: was it copied, or mounted?"
        what += " Make an empty one to have fsck.daxfs give them up"
        scan.found.add("own-folder", pool.path_of("").rstrip("/"), what)
        return
    for ino in found.missing:
        generation, size = known[ino]
        name = L.range_name(ino, generation)
        make = ("make", ino, generation)
        if not size and _crashed(scan):
            scan.found.leftovers.append(make)
            continue
        what = f"its range {name} is missing"
        if size:
            what += f", and all {size} bytes with it; mending makes the file empty"
        scan.found.add("own-missing", f"inode {ino}", what, None if ino in scan.torn else make)


def _odd(scan: Scan, pool, found, known) -> None:
    for ino in found.odd:
        name = L.range_name(ino, known[ino][0])
        what = f"{_type(found.stats[ino])} is where its range has to be: put the range there, or remove that"
        scan.found.add("own-file", f"inode {ino}", f"{pool.path_of(name)}: {what}")


def _type(have: os.stat_result) -> str:
    return _TYPES.get(stat.S_IFMT(have.st_mode), "something unknown")


def _sizes(scan: Scan, found, known) -> None:
    """Ranges that are too short or too long; not where the size is no word to go by."""
    for ino in found.short:
        generation, size = known[ino]
        have = found.stats[ino].st_size
        if ino in scan.torn:
            continue
        if have >= size:
            what = f"its range has {have} bytes, no whole pages; all {size} bytes of the file are there"
        else:
            what = f"its range has {have} bytes of {size}: the rest is lost; mending ends the file there"
        action = ("resize", ino, generation, min(have, size))
        scan.found.add("own-short", f"inode {ino}", what, action)
    for ino in found.long:
        generation, size = known[ino]
        if ino in scan.torn:
            continue
        action = ("resize", ino, generation, size)
        if _crashed(scan):
            scan.found.leftovers.append(action)
            continue
        have, want = found.stats[ino].st_size, own.pages_of(size)
        what = f"its range has {have} bytes, the {want} pages of the file have {want * PAGE_SIZE}"
        scan.found.add("own-long", f"inode {ino}", what, action)


def _attributes(scan: Scan, found, known) -> None:
    """Modes, owners, and names that are the same file."""
    home = os.fstat(scan.region.pool.source.fd).st_uid
    same: dict[tuple[int, int], list[int]] = {}
    linked = strangers = 0
    for n, (ino, have) in enumerate(found.stats.items()):
        if not n & 0xFFF:
            scan.progress("ranges", n, len(found.stats))
        if not stat.S_ISREG(have.st_mode):
            continue
        mode = stat.S_IMODE(have.st_mode)
        if mode != 0o600:
            action = ("protect", ino, known[ino][0])
            scan.found.add("own-mode", f"inode {ino}", f"its range has mode {mode:04o}, not 0600", action)
        strangers += have.st_uid != home
        if have.st_nlink > 1:
            linked += 1
            same.setdefault((have.st_dev, have.st_ino), []).append(ino)
    for group in same.values():
        for ino in group[1:]:
            what = f"its range is the same file as that of inode {group[0]}"
            scan.found.add("own-shared", f"inode {ino}", what)
    if linked:
        note = f"{linked} ranges have further names (hard links): what is done to the file is done to those"
        scan.found.notes.append(note)
    if strangers:
        scan.found.notes.append(f"{strangers} ranges belong to another user than the region does")


# -- ranges without an inode ---------------------------------------------------------------


def _strays(scan: Scan, pool, found) -> None:
    """Nothing goes as long as there is damage that can't be mended: the inode may only not be readable."""
    sure = all(problem.mendable for problem in scan.found.problems)
    for name in found.stray:
        ino, generation = L.range_owner(name)
        have = pool.stat(ino, generation)
        where = f"range {name}"
        if stat.S_ISDIR(have.st_mode):
            scan.found.add("own-file", where, f"{pool.path_of(name)} is a directory: remove it")
            continue
        action = ("unlink", ino, generation)
        if _crashed(scan):
            scan.found.leftovers.append(action)
            continue
        what = f"{have.st_size} bytes that no inode has"
        if _may_be_of(scan, ino, generation):
            action = None
            what += f", but inode {ino} is a file without any data: whether these are its own is a guess"
        elif not sure:
            action = None
            what += ", as far as the other damage lets one see"
        scan.found.add("own-stray", where, what, action, rank=3)


def _may_be_of(scan: Scan, ino: int, generation: int) -> bool:
    """Whether the inode in use has that generation and a size, and nowhere any data."""
    if ino >= scan.limit or not scan.valid[ino]:
        return False
    inode = scan.table[ino]
    mine = inode["mode"] & 0o170000 == S_IFREG and inode["generation"] == generation
    return bool(mine and inode["size"] and not inode["nextents"])


def _foreign(scan: Scan, pool) -> None:
    """What is no range is nobody's here: it is told and left alone."""
    names = sorted(name for name in pool.names() if L.range_owner(name) is None)
    if names:
        some = ", ".join(repr(name) for name in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        where = pool.path_of("").rstrip("/")
        scan.found.notes.append(f"{where}: {len(names)} names are no ranges and are left alone: {some}")
