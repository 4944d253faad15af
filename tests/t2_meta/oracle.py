# SPDX-License-Identifier: MIT
"""The consistency oracle of the t2 tests: everything that must hold between two operations.

It reads the media afresh (never the Nodes in DRAM) and compares what DRAM holds
with that. Limits: a mounted FileSystem with no transaction open; it changes nothing.
"""

from collections import Counter

import numpy as np

from daxfs import layout as L
from daxfs.meta import dir as directory
from daxfs.meta import extent, recover, xattr
from daxfs.pfn import PAGE_SIZE

IFMT, IFDIR = 0o170000, 0o040000


def used_inodes(fs) -> dict:
    """{number: inode} of all inodes in use, each with its checksum checked."""
    table, used = recover.used_inodes(fs, fs.inodes.limit)
    del table
    return {ino: fs.inodes.check(ino) for ino in used.tolist()}


def index_view(fs, node) -> tuple:
    """What a DirIndex says, in comparable form."""
    index = directory.index_of(fs, node)
    small = {length: set(found) for length, found in index.small.items() if found}
    return index.pages, index.names, index.starts, index.ends, set(index.roomy), small


def check(fs, closed: bool = False) -> dict:
    """Check *fs* wholly; returns {ino: inode}. *closed*: nothing is open, so there may be no orphan."""
    inodes = used_inodes(fs)
    fresh = {ino: extent.load(fs, inode) for ino, inode in inodes.items()}
    _pages(fs, inodes, fresh)
    _numbers(fs, inodes)
    _tree(fs, inodes, fresh)
    for ino, node in fs.nodes.items():
        assert ino in inodes, f"node {ino} of a free inode"
        same = fresh[ino]
        assert node.map.extents() == same.map.extents(), ino
        assert node.map.size == same.map.size == inodes[ino].size or node.map.dirty is not None
        assert node.blocks == same.blocks and sorted(node.free_slots) == sorted(same.free_slots), ino
        if node.index is not None:
            assert index_view(fs, node) == index_view(fs, same), ino
    if closed:
        assert not fs.orphans and all(inode.nlink for inode in inodes.values())
    return inodes


def _pages(fs, inodes, fresh) -> None:
    """Every page has one owner or is free; the counts in the inodes are right."""
    owner = np.zeros(fs.sb.npages, np.uint32)
    for ino, inode in inodes.items():
        runs = [(pfn, length) for _, length, pfn, _, _ in fresh[ino].map.extents()]
        if extent.has_extents(inode):
            assert inode.nextents == len(runs), f"inode {ino}: nextents {inode.nextents}, {len(runs)} found"
        runs += [(pfn, 1) for pfn in fresh[ino].blocks]
        if inode.xattr_pfn:
            runs.append((inode.xattr_pfn, inode.xattr_pages))
            xattr.load(fs, inode)
        assert inode.blocks == sum(n for _, n in runs), f"inode {ino}: blocks {inode.blocks}, runs {runs}"
        for pfn, pages in runs:
            fs.check_run(pfn, pages, ino)
            assert not owner[pfn : pfn + pages].any(), f"inode {ino}: {pfn}+{pages} has another owner"
            owner[pfn : pfn + pages] = ino
    free = np.zeros(fs.sb.npages, bool)
    for pfn, pages in fs.alloc.runs() + fs.alloc._held:
        assert not free[pfn : pfn + pages].any() and not owner[pfn : pfn + pages].any(), (pfn, pages)
        free[pfn : pfn + pages] = True
    total = sum(end - start for start, end in fs.ranges)
    assert int(free.sum()) == fs.alloc.free_pages + fs.alloc.held
    assert int(free.sum()) + int((owner > 0).sum()) == total, "pages that nobody has"


def _numbers(fs, inodes) -> None:
    free = list(fs.inodes.free)
    assert len(set(free)) == len(free)
    assert set(free) | set(inodes) == set(range(1, fs.inodes.limit)) and not set(free) & set(inodes)
    assert fs.inodes.used == len(inodes)
    unlinked = {ino for ino, inode in inodes.items() if not inode.nlink or inode.flags & L.FLAG_TRUNCATING}
    assert unlinked == fs.orphans


def _tree(fs, inodes, fresh) -> None:
    """Link counts and parents agree with the names that there are; no directory is cut off."""
    links, dirs, seen = Counter(), Counter(), {L.ROOT_INO}
    for ino, inode in inodes.items():
        if inode.mode & IFMT != IFDIR:
            continue
        assert inode.size % PAGE_SIZE == 0
        names = directory.index_of(fs, fresh[ino]).names
        assert inode.nlink or not names, f"removed directory {ino} has names"
        for name in names:
            target, kind = directory.lookup(fs, fresh[ino], name)
            assert target in inodes, f"{name!r} in {ino} names {target}"
            child = inodes[target]
            assert kind == (child.mode & IFMT) >> 12
            if kind == 4:
                assert child.parent == ino and target not in seen
                seen.add(target)
                dirs[ino] += 1
            else:
                links[target] += 1
    for ino, inode in inodes.items():
        if inode.mode & IFMT != IFDIR:
            assert inode.nlink == links[ino], f"inode {ino}: nlink {inode.nlink}, {links[ino]} names"
        elif inode.nlink:
            assert inode.nlink == 2 + dirs[ino], f"directory {ino}: nlink {inode.nlink}, {dirs[ino]} inside"
            assert ino in seen
