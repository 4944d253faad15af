# SPDX-License-Identifier: MIT
"""Looks at a mounted crash image (or the live file system) and says what contradicts the model.

`judge` reads the tree afresh from the media and compares it with the model before the operation in
flight and with the one after it: it must be wholly one or the other, but for data and times that
are stored in place. `drain_space` removes everything and counts what is free. `step` runs one
operation in both worlds. Nothing here changes what it looks at, but for `drain_space`.
"""

import errno
from typing import NamedTuple

import numpy as np

from daxfs._iomap import MAPPED
from daxfs.layout import FLAG_OWN, FLAG_PREALLOC, range_name
from daxfs.meta import namespace, xattr

from .content import mixed, padded
from .model import Model
from .node import DIR, LNK, REG, USER_FLAGS
from .tree import ROOT, show

PAGE = 4096


class Found(NamedTuple):
    """One inode as the file system shows it. ``data``: padded bytes of a regular file, else None.

    ``spare``: preallocated pages behind its end, as an open file may have them.
    """

    inode: tuple
    target: bytes
    xattrs: dict
    data: np.ndarray | None
    spare: int = 0


class Image:
    """A mounted tree: ``paths`` {path: ino}, ``inodes`` {ino: Found}, ``parents`` {directory: its ..}."""

    def __init__(self, io):
        self.io, self.fs = io, io.fs
        self.paths: dict[str, int] = {"": ROOT}
        self.inodes: dict[int, Found] = {}
        self.parents: dict[int, int] = {}
        self.complaints: list[str] = []
        todo = [("", ROOT)]
        while todo:
            path, ino = todo.pop()
            if ino not in self.inodes:
                self.inodes[ino] = self._look(ino)
                if self.inodes[ino].inode.mode & 0o170000 == DIR:
                    self._list(path, ino, todo)
            elif self.inodes[ino].inode.mode & 0o170000 == DIR:
                self.complaints.append(f"{path}: a second name of a directory")
        self._count()

    def _look(self, ino: int) -> Found:
        fs = self.fs
        inode = fs.inodes.read(ino)
        kind = inode.mode & 0o170000
        target = namespace.readlink(fs, ino) if kind == LNK else b""
        run = xattr.load(fs, inode)
        xattrs = {key: run.get(key) for key in run.keys()}
        data, spare = None, 0
        if kind == REG:
            spare = self._spare(ino, inode)
            raw = self.io.read(fs.node(ino), 0, inode.size, noatime=True)
            data = padded(np.frombuffer(raw, np.uint8), inode.size)
            if len(raw) != inode.size:
                self.complaints.append(f"inode {ino}: {len(raw)} bytes were read of {inode.size}")
            del raw
            fs.drop_unused(ino)
        return Found(inode, target, xattrs, data, spare)

    def _spare(self, ino: int, inode) -> int:
        end, spare = -(-inode.size // PAGE), 0
        for pgoff, pages, _, kind, _ in self.fs.node(ino).map.extents():
            spare += max(pgoff + pages - max(pgoff, end), 0) if kind == MAPPED else 0
        if (spare or inode.flags & FLAG_PREALLOC) and ino not in self.fs.preallocated:
            self.complaints.append(f"inode {ino}: {spare} pages behind its end, flags {inode.flags:#x}")
        return spare

    def _list(self, path: str, ino: int, todo: list) -> None:
        fs = self.fs
        for raw, child, d_type, _ in namespace.readdir(fs, ino, 0):
            if raw == b".":
                continue
            if raw == b"..":
                self.parents[ino] = child
                continue
            name = raw.decode("utf-8", "backslashreplace")
            below = f"{path}/{name}" if path else name
            if below in self.paths:
                self.complaints.append(f"{below}: twice in its directory")
                continue
            self.paths[below] = child
            inode = namespace.lookup(fs, ino, raw)
            if inode is None or inode.ino != child or inode.mode >> 12 != d_type:
                self.complaints.append(f"{below}: readdir and lookup differ")
            todo.append((below, child))

    def _count(self) -> None:
        """No page and no number is lost: what is not free belongs to what was found, or to an orphan."""
        fs, space = self.fs, self.fs.statfs()
        owners = [found.inode for found in self.inodes.values()]
        owners += [fs.inodes.read(ino) for ino in fs.orphans if ino not in self.inodes]
        pages = sum(inode.blocks for inode in owners)
        # Not statfs: that counts what the file system below has left for ranges, too.
        used = sum(end - first for first, end in fs.ranges) - fs.alloc.free_pages - fs.alloc.held
        numbers = space["files"] - space["ffree"]
        if used != pages:
            self.complaints.append(f"{used} pages are not free, files have {pages}")
        if numbers != len(owners):
            self.complaints.append(f"{numbers} inodes are in use, {len(owners)} were found")
        if fs.pool is not None:
            self._ranges(owners)

    def _ranges(self, owners) -> None:
        """Each own inode has a range of its pages, and there is no other."""
        pool = self.fs.pool
        due = {range_name(inode.ino, inode.generation): -(-inode.size // PAGE) for inode in owners
               if inode.flags & FLAG_OWN}  # fmt: skip
        found = {name: pool.stat(*owner).st_size / PAGE for owner, name in pool.owners().items()}
        self.complaints += [f"range {name}: {found.get(name)} pages, should have {due.get(name)}"
                            for name in due.keys() | found.keys() if due.get(name) != found.get(name)]


class _Side:
    """One of the two states that an image may show: *this*; *other* is the one across the operation.

    *decided*: this is the state after, so what a record ordered before it must be there.
    """

    def __init__(self, image: Image, this: Model, other: Model | None, decided: bool):
        self.image, self.this, self.other, self.decided = image, this, other, decided
        self.flight = this if decided else other
        self.out: list[str] = []

    def complaints(self) -> list[str]:
        names, found = self.this.tree(), self.image.paths
        self.out = [f"{path}: is missing" for path in names if path not in found]
        self.out += [f"{path}: should not be there" for path in found if path not in names]
        inos: dict[int, int] = {}
        numbers: dict[int, int] = {}  # the other way round: hard links must be those of the model
        for path, number in names.items():
            ino = found.get(path)
            if ino is None:
                continue
            if number not in inos and ino not in numbers:
                inos[number], numbers[ino] = ino, number
                self._inode(path or "/", number, self.image.inodes[ino])
            elif inos.get(number) != ino:
                self.out.append(f"{path}: names the wrong inode")
        self._parents(inos)
        return self.out

    def _parents(self, inos: dict) -> None:
        for number, ino in inos.items():
            node = self.this.nodes[number]
            if node.is_dir and self.image.parents.get(ino) != inos.get(node.parent):
                self.out.append(f"directory {ino}: .. is inode {self.image.parents.get(ino)}")

    def _inode(self, path: str, number: int, found: Found) -> None:
        node, inode = self.this.nodes[number], found.inode
        pairs = [
            ("mode", inode.mode, node.mode),
            ("nlink", inode.nlink, node.nlink),
            ("uid", inode.uid, node.uid),
            ("gid", inode.gid, node.gid),
            ("rdev", inode.rdev, node.rdev),
            ("flags", inode.flags & USER_FLAGS, node.flags),
            ("btime", inode.btime, node.btime),
        ]
        for name, has, due in pairs:
            if has != due:
                shown = (oct(has), oct(due)) if name == "mode" else (has, due)
                self.out.append(f"{path}: {name} is {shown[0]}, not {shown[1]}")
        if inode.mode & 0o170000 != node.kind:
            return
        self._times(path, number, node, inode)
        self._size(path, number, node, found)
        if node.xattrs or found.xattrs:
            due = {xattr.key_of(name.encode()): value for name, value in node.xattrs.items()}
            for key in due.keys() | found.xattrs.keys():
                if due.get(key) != found.xattrs.get(key):
                    self.out.append(f"{path}: extended attribute {key[1].decode()} differs")
        if node.content is not None and inode.size == node.content.size:
            self._data(path, number, node, found.data)

    def _times(self, path: str, number: int, node, inode) -> None:
        for name in ("atime", "mtime", "ctime"):
            may = getattr(node, name)
            has = getattr(inode, name)
            if has in may:
                continue
            if self.flight is not None and (number, name) in self.flight.in_place:
                other = self.other.nodes.get(number)
                if other is not None and has in getattr(other, name):
                    continue
            self.out.append(f"{path}: {name} is {has}, not {' or '.join(map(str, may))}")

    def _size(self, path: str, number: int, node, found: Found) -> None:
        inode, (least, most) = found.inode, node.space()
        if self.flight is not None and number in self.flight.moved and number in self.other.nodes:
            there = self.other.nodes[number].space()
            least, most = min(least, there[0]), max(most, there[1])
        pages = inode.blocks - found.spare
        if not least <= pages <= most:
            due = f"{least} to {most}" if most > least else str(least)
            self.out.append(f"{path}: has {pages} pages, should have {due}")
        if node.is_dir:
            if inode.size % PAGE or inode.size // PAGE > inode.blocks or bool(inode.size) != bool(node.added):
                self.out.append(f"{path}: a directory of {inode.size} bytes in {inode.blocks} pages")
            return
        size = len(node.target) if node.content is None else node.content.size
        if inode.size != size:
            self.out.append(f"{path}: size is {inode.size}, not {size}")
        if found.target != node.target:
            self.out.append(f"{path}: points to {found.target[:40]!r}, not {node.target[:40]!r}")

    def _data(self, path: str, number: int, node, data: np.ndarray) -> None:
        other, ranges = None, ()
        if self.flight is not None and self.other is not None:
            stored = self.flight.stored.get(number)
            if stored is not None and not (self.decided and stored.ordered):
                ranges = stored.ranges
                other = self.other.nodes[number].content if number in self.other.nodes else None
        strange = mixed(data, node.content.size, node.content, other, ranges)
        if len(strange):
            first = int(strange[0])
            words = data.view(np.uint64)
            self.out.append(
                f"{path}: {len(strange)} words are neither old nor new, "
                f"the first at byte {first * 8}: {int(words[first]):#018x}"
            )


def judge(io, before: Model, after: Model | None = None) -> list[str]:
    """What is wrong with the mounted image, [] for nothing.

    *after* None: *before* is what had returned, nothing was in flight. Else the image shows wholly the one or
    the other. An exception of the file system while it is read is a complaint, too.
    """
    try:
        image = Image(io)
    except OSError as error:
        return [f"reading the tree: {type(error).__name__}: {error}"]
    if image.complaints:
        return image.complaints
    if after is None:
        return _Side(image, before, None, False).complaints()
    old = _Side(image, before, after, False).complaints()
    if not old:
        return []
    new = _Side(image, after, before, True).complaints()
    if not new:
        return []
    return [f"not as before: {text}" for text in old[:4]] + [f"nor as after: {text}" for text in new[:4]]


def step(vfs, model: Model, op) -> list[str]:
    """Run *op* on both; a complaint where the errno is not the one that is due."""
    got, due = vfs.run(op), model.apply(op)
    if got == due:
        return []
    names = [errno.errorcode.get(code, str(code)) if code else "success" for code in (got, due)]
    return [f"{show(op)}: {names[0]}, due is {names[1]}"]


def space(io) -> dict:
    """Free pages of the region, and inodes; of an empty file system the baseline of `drain_space`."""
    fs = io.fs
    root = fs.inodes.read(ROOT)
    return {"pages": fs.alloc.free_pages + fs.alloc.held + root.blocks, "inodes": fs.statfs()["ffree"]}


def drain_space(io, baseline: dict) -> list[str]:
    """Remove everything; all pages and inodes that the empty file system had (`space`) must be free again.

    The root keeps its first block, and an extent block where its blocks were scattered: those are its own.
    """
    fs, out = io.fs, []

    def remove(parent: int) -> None:
        names = [(name, ino, kind) for name, ino, kind, _ in namespace.readdir(fs, parent, 0)]
        for name, ino, kind in names:
            if name in (b".", b".."):
                continue
            if kind == 4:
                remove(ino)
            try:
                (namespace.rmdir if kind == 4 else namespace.unlink)(fs, parent, name)
            except OSError as error:
                out.append(f"{name!r} can't be removed: {error}")

    remove(ROOT)
    for name in xattr.names(fs, ROOT):
        xattr.remove(fs, ROOT, name)
    now = space(io)
    if now != baseline:
        out.append(f"after removing everything free are {now}, not {baseline}")
    root = fs.inodes.read(ROOT)
    if root.size != PAGE or root.blocks not in (1, 2) or root.nlink != 2:
        out.append(f"the empty root has {root.size} bytes, {root.blocks} pages, {root.nlink} links")
    if fs.orphans:
        out.append(f"inodes {sorted(fs.orphans)} are unlinked and were not freed")
    if fs.pool is not None and fs.pool.owners():
        out.append(f"ranges {sorted(fs.pool.owners())} are left")
    return out
