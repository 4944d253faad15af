# SPDX-License-Identifier: MIT
"""Checks of directories and of the tree they make: blocks, records, names, links, reachability.

Runs after `check_inode`, on its `Scan`. Where a directory could not be read wholly,
nothing is concluded from a name that is missing: link counts that are too high and
inodes without a name are then left alone. Reads; changes nothing.
"""

from collections import defaultdict, deque

import numpy as np

from .. import layout as L
from ..pfn import PAGE_SHIFT, PAGE_SIZE
from .check_inode import S_IFDIR, Scan

_unpack = L.DIRENT_CODEC.unpack_from
_SIZE = L.DIRENT_SIZE
_BAD_BLOCKS = 16  # damaged blocks after which the rest of a directory is not looked at


class Tree:
    """What the names say.

    ``named``: names of each inode; ``subdirs``: directories in each directory;
    ``places``: directory -> [(naming directory, pfn, offset in block)];
    ``children``: directory -> inodes that are directories.
    """

    def __init__(self, scan: Scan):
        self.scan, self.found = scan, scan.found
        table = scan.table
        self.kind = (table["mode"] >> np.uint32(12)).astype(np.uint8).tolist()
        live = np.zeros(scan.limit, bool)
        live[scan.good] = True
        self.live = live.tolist()
        self.named = [0] * scan.limit
        self.subdirs = [0] * scan.limit
        self.places: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        self.children: dict[int, list[int]] = defaultdict(list)
        self.count = 0


def check(scan: Scan) -> None:
    """All checks of this module."""
    if not scan.valid[L.ROOT_INO]:
        scan.found.notes.append("without a root directory names were not looked at")
        return
    tree = Tree(scan)
    table = scan.table
    dirs = [ino for ino in scan.good.tolist() if tree.kind[ino] == 4]
    pages = _pages(scan)
    # A removed directory (no links, no name) is on its way out with all that it may hold.
    linked = [ino for ino in dirs if table["nlink"][ino]]
    removed = {ino for ino in dirs if not table["nlink"][ino]}
    done = 0
    while linked:
        for ino in linked:
            _directory(tree, ino, pages.get(ino, []))
            done += 1
            if not done & 0xFF:
                scan.progress("directories", done, len(dirs))
        linked = [ino for ino in removed if tree.named[ino]]
        removed.difference_update(linked)
    _parents(tree, dirs, removed)
    _reach(tree, removed)
    _links(tree, removed)
    scan.found.stats.update(
        inodes=len(scan.good), directories=len(dirs), names=tree.count,
        orphans=int((table["nlink"][scan.good] == 0).sum()),
    )  # fmt: skip


def _pages(scan: Scan) -> dict[int, list[tuple[int, int, int, int]]]:
    """(pgoff, pages, pfn, state) of the extents of each directory, in order."""
    rows = scan.rows
    rows = rows[scan.table["mode"][rows["owner"]] & 0o170000 == S_IFDIR]
    out = defaultdict(list)
    for owner, *extent in zip(*(rows[name].tolist() for name in rows.dtype.names), strict=True):
        out[owner].append(tuple(extent))
    return out


# -- one directory ----------------------------------------------------------------------


def _directory(tree: Tree, ino: int, extents) -> None:
    """Blocks, records and names of one directory."""
    scan = tree.scan
    if ino not in scan.torn:
        _shape(tree, ino, extents)
    seen: dict[bytes, int] = {}
    bad = 0
    for pgoff, count, pfn, state in extents:
        if state != 2:
            continue
        for i in range(count):
            why = _block(scan, ino, pfn + i, pgoff + i)
            if why:
                tree.found.add("dir-block", f"directory {ino} block {pgoff + i}", f"page {pfn + i}: {why}")
                scan.complete = False
                bad += 1
                if bad == _BAD_BLOCKS:
                    note = f"directory {ino}: too many damaged blocks; the rest was not read"
                    tree.found.notes.append(note)
                    return
                continue
            _records(tree, ino, pfn + i, pgoff + i, seen)


def _shape(tree: Tree, ino: int, extents) -> None:
    """The extents cover pages 0 to the end without a hole, and the size is that end."""
    end = 0
    for pgoff, count, _, state in extents:
        if pgoff != end or state != 2:
            break
        end += count
    whole = sum(e[1] for e in extents)
    size = int(tree.scan.table["size"][ino])
    if end != whole:
        tree.found.add("dir-hole", f"directory {ino}", f"page {end} is not mapped or not written")
        tree.scan.complete = False
    elif size != end << PAGE_SHIFT:
        action = ("inode", ino, {"size": end << PAGE_SHIFT})
        tree.found.add("inode-size", f"inode {ino}", f"a directory of {end} blocks, size {size}", action)


def _block(scan: Scan, ino: int, pfn: int, pgoff: int) -> str:
    head, why = scan.block_head(pfn, L.BLOCK_DIR, ino, pgoff)
    if why:
        return why
    if head["length"] != PAGE_SIZE or not scan.sealed(pfn, PAGE_SIZE):
        return "wrong checksum"
    return ""


def _records(tree: Tree, ino: int, pfn: int, pgoff: int, seen: dict[bytes, int]) -> None:
    raw = bytes(tree.scan.mem[pfn << PAGE_SHIFT : (pfn << PAGE_SHIFT) + PAGE_SIZE])
    at, names = L.BLOCK_SIZE, []
    while at < PAGE_SIZE:
        if at + _SIZE > PAGE_SIZE:
            break
        target, rec_len, name_len, kind = _unpack(raw, at)
        if rec_len < _SIZE or rec_len % 8 or at + rec_len > PAGE_SIZE or _SIZE + name_len > rec_len:
            break
        if target:
            names.append((at, target, kind, raw[at + _SIZE : at + _SIZE + name_len]))
        at += rec_len
    for offset, target, kind, name in names:
        _name(tree, ino, pfn, offset, target, kind, name, seen)
    if at != PAGE_SIZE:
        where = f"directory {ino} block {pgoff}"
        tree.found.add("dir-record", where, f"no record at byte {at} of page {pfn}")
        tree.scan.complete = False


def _name(tree: Tree, ino: int, pfn: int, at: int, target: int, kind: int, name: bytes, seen) -> None:
    found, scan = tree.found, tree.scan
    where = f"directory {ino}: {name!r}"
    drop = ("drop", ino, pfn, at)
    if not 0 < len(name) <= L.NAME_MAX or name in (b".", b"..") or b"/" in name or b"\0" in name:
        found.add("dir-name", where, f"no name that a file can have (inode {target})", drop)
        if target < scan.limit:
            tree.named[target] += 1  # without it the inode is nameless, which the next look will see
        return
    if name in seen:
        same = seen[name] == target
        what = "is there twice" if same else f"names inode {seen[name]} and inode {target}"
        found.add("dir-duplicate", where, what, drop if same else None)
        if same:
            return
    seen.setdefault(name, target)
    if target >= scan.limit or (scan.valid[target] and not tree.live[target]):
        found.add("dirent-target", where, f"names inode {target}, which is not in use", drop)
        return
    if not tree.live[target]:
        return  # a damaged inode, which `check_inode` has reported
    tree.count += 1
    tree.named[target] += 1
    real = tree.kind[target]
    if kind != real:
        what = f"type {kind}, inode {target} is {real}"
        found.add("dirent-type", where, what, ("type", ino, pfn, at, real))
    if real == 4:
        tree.subdirs[ino] += 1
        tree.places[target].append((ino, pfn, at))
        tree.children[ino].append(target)


# -- the tree ---------------------------------------------------------------------------


def _parents(tree: Tree, dirs: list[int], removed: set[int]) -> None:
    """Each directory has one name, in its parent."""
    parent = tree.scan.table["parent"]
    for ino in dirs:
        if ino in removed:
            continue
        places, said = tree.places.get(ino, []), int(parent[ino])
        if ino == L.ROOT_INO:
            if said != ino:
                action = ("inode", ino, {"parent": ino})
                tree.found.add("dir-parent", f"inode {ino}", f"the root's parent is {said}", action)
            for place in places:
                what = f"the root is named in {place[0]}"
                tree.found.add("dir-links", f"inode {ino}", what, ("drop", *place))
            continue
        if len(places) > 1:
            _two_names(tree, ino, places, said)
        elif places and said != places[0][0]:
            what = f"parent {said}, but it is in directory {places[0][0]}"
            action = ("inode", ino, {"parent": places[0][0]})
            tree.found.add("dir-parent", f"inode {ino}", what, action)


def _two_names(tree: Tree, ino: int, places, said: int) -> None:
    """A directory with several names: the one that its parent field points back to stays."""
    right = [place for place in places if place[0] == said]
    for place in places:
        if len(right) == 1 and place == right[0]:
            continue
        action = ("drop", *place) if len(right) == 1 else None
        where = f"inode {ino} in directory {place[0]}"
        tree.found.add("dir-links", where, f"a directory with {len(places)} names", action)


def _reach(tree: Tree, removed: set[int]) -> None:
    """Everything in use with links hangs on the root."""
    scan = tree.scan
    if not scan.complete:
        scan.found.notes.append("names may be missing: inodes without a name were not looked for")
        return
    nlink = scan.table["nlink"]
    tops = [ino for ino in scan.good.tolist() if not tree.named[ino] and nlink[ino] and ino != L.ROOT_INO]
    for ino in tops:
        what = f"has {int(nlink[ino])} links and no name"
        tree.found.add("unreachable", f"inode {ino}", what, ("reconnect", ino), rank=1)
    reached = {L.ROOT_INO, *tops}
    queue = deque(reached)
    while queue:
        for child in tree.children.get(queue.popleft(), ()):
            if child not in reached:
                reached.add(child)
                queue.append(child)
    for ino in tree.places:
        if ino not in reached and ino not in removed:
            tree.found.add("unreachable", f"inode {ino}", "a directory that is inside itself")


def _links(tree: Tree, removed: set[int]) -> None:
    """Link counts. Those of unnamed inodes are for `_reach`."""
    scan = tree.scan
    nlink = scan.table["nlink"]
    for ino in scan.good.tolist():
        want = tree.named[ino]
        if tree.kind[ino] == 4:
            if not want and ino != L.ROOT_INO:
                continue
            want = 2 + tree.subdirs[ino]
        elif not want:
            continue
        have = int(nlink[ino])
        if have == want or (have > want and not scan.complete):
            continue
        action = ("inode", ino, {"nlink": want}) if want <= 0xFFFFFFFF else None
        tree.found.add("link-count", f"inode {ino}", f"{have} links, has {want}", action, rank=2)
