# SPDX-License-Identifier: MIT
"""Checks of the list of poisoned pages (docs/poison.md), and whose pages they are.

Poisoned data are no damage of the file system: they are told in notes, and the region is clean. Poisoned
metadata are, and nothing but their content's return or a copy mends them. Reads; changes nothing.
"""

import numpy as np

from .. import layout as L
from ..errors import CorruptError
from ..pfn import PAGE_SHIFT
from . import poison

_NAMED = 1000  # files with poisoned pages that are named one by one


def check(scan) -> None:
    """After the inodes: all extents are known. *scan*: a check_inode.Scan."""
    try:
        runs = poison.decode(scan.mem, scan.seed)
    except CorruptError as error:
        action = ("raw", poison.PLACE, bytes(L.POISON_HEAD.itemsize))
        scan.found.add("poison-list", "poisoned pages", f"{error}; mended, none is known any more", action)
        return
    if not runs:
        return
    if not scan.sb.ro_compat & L.RO_COMPAT_POISON:
        what = "there are some, and the superblock does not say so"
        action = ("feature", L.RO_COMPAT_POISON, "ro_compat")
        scan.found.add("poison-feature", "superblock", what, action)
    kept = [run for run in runs if _is_there(scan, run)]
    if kept != runs:
        what = f"{len(runs) - len(kept)} entries name pages that there are not"
        action = ("raw", poison.PLACE, poison.encode(kept, scan.seed))
        scan.found.add("poison-entry", "poisoned pages", what, action)
    scan.found.stats["poisoned pages"] = sum(last - first for *_, first, last in kept)
    _fixed(scan, kept)
    _owned(scan, kept)


def _is_there(scan, run) -> bool:
    ino, generation, _, last = run
    if not ino:
        return generation == 0 and last <= scan.sb.npages
    if not (ino < scan.limit and scan.valid[ino]):
        return ino < scan.limit  # a damaged inode: what it has is not known
    row = scan.table[ino]
    own = int(row["mode"]) & 0o170000 == 0o100000 and int(row["flags"]) & L.FLAG_OWN
    return bool(own and int(row["generation"]) == generation and last <= -(-int(row["size"]) // 4096))


def _fixed(scan, runs) -> None:
    """Poison in areas with a fixed place."""
    for name, start, end in poison.fixed_areas(scan.sb):
        if poison.hits(runs, poison.PACKED, start, end):
            scan.found.add("poison-metadata", name, "its pages are poisoned")
    first = scan.sb.inode_pfn
    for start, end in poison.hits(runs, poison.PACKED, first, first + scan.sb.inode_pages):
        low = ((start << PAGE_SHIFT) - scan.base) // L.INODE_SIZE
        high = min(((end << PAGE_SHIFT) - scan.base) // L.INODE_SIZE, scan.limit)
        used = np.flatnonzero(scan.table["mode"][low:high]) + low
        scan.found.add("poison-metadata", f"inodes {low} to {max(high, low + 1) - 1}",
                       f"their page of the table is poisoned; {len(used)} are in use: "
                       f"{', '.join(map(str, used[:16].tolist()))}")


def _owned(scan, runs) -> None:
    """Poison in what inodes have in the data area, and in own ranges."""
    files: dict[int, int] = {}
    for ino, _, first, last in runs:
        if ino:
            files[ino] = files.get(ino, 0) + last - first
    rows = scan.rows
    for start, end in (run[2:] for run in runs if run[:2] == poison.PACKED):
        near = rows[(rows["pfn"] < end) & (rows["pfn"] + rows["len"] > start)]
        for row in near[near["state"] == 2]:
            ino = int(row["owner"])
            pages = int(min(row["pfn"] + row["len"], end) - max(row["pfn"], start))
            if int(scan.table["mode"][ino]) & 0o170000 == 0o100000:
                files[ino] = files.get(ino, 0) + pages
            else:
                scan.found.add("poison-metadata", f"inode {ino}", f"{pages} pages of it are poisoned")
        for pfn, count, ino in scan.runs:
            if pfn < end and start < pfn + count:
                what = f"its block at page {pfn} (extents or attributes) is poisoned"
                scan.found.add("poison-metadata", f"inode {ino}", what)
    for ino, pages in sorted(files.items())[:_NAMED]:
        scan.found.notes.append(f"inode {ino}: {pages} pages of its data are poisoned")
    if len(files) > _NAMED:
        scan.found.notes.append(f"{len(files) - _NAMED} more files have poisoned pages")
