# SPDX-License-Identifier: MIT
"""Directories: records in 4 KiB blocks that never move, and their index in DRAM.

A name's position is the byte where its record stands in the directory; it stays
while the name exists, so it serves as readdir cookie: nothing is repeated or
skipped while other names come and go. Free records may follow one another on
media; DRAM sees them as one. The index (name -> position, and the free space)
is built when a directory is first looked into. A directory keeps its first block
until it is removed; the others go when the last name goes.

One thread: the metadata thread.
"""

from .. import layout as L
from ..errors import CorruptError
from ..pfn import PAGE_SHIFT, PAGE_SIZE
from . import extent

_unpack, _pack = L.DIRENT_CODEC.unpack_from, L.DIRENT_CODEC.pack
_SIZE = L.DIRENT_SIZE
_SMALLEST = _SIZE + 8

DOT, DOTDOT = 1, 2  # cookies after "." and ".."


def record_size(name: bytes) -> int:
    """Bytes that the record of *name* takes."""
    return _SIZE + (len(name) + 7 & ~7)


class DirIndex:
    """Names and free space of one directory. Positions are bytes from its start."""

    __slots__ = ("ends", "names", "pages", "roomy", "small", "starts")

    def __init__(self):
        self.names: dict[bytes, int] = {}
        self.pages = 0
        self.starts: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self.roomy: dict[int, None] = {}  # runs with room for any name
        self.small: dict[int, dict[int, None]] = {}  # the others, by length

    def add_space(self, position: int, length: int) -> None:
        """These bytes are free; joined with free neighbours in the same block."""
        if position % PAGE_SIZE != L.BLOCK_SIZE:
            before = self.ends.get(position)
            if before is not None:
                length += self.take_space(before)
                position = before
        if (position + length) % PAGE_SIZE:
            after = self.starts.get(position + length)
            if after is not None:
                length += self.take_space(position + length)
        self.starts[position] = length
        self.ends[position + length] = position
        if length >= L.DIRENT_MAX:
            self.roomy[position] = None
        else:
            self.small.setdefault(length, {})[position] = None

    def take_space(self, position: int) -> int:
        """The free run at *position* is in use now; returns its length."""
        length = self.starts.pop(position)
        del self.ends[position + length]
        if length >= L.DIRENT_MAX:
            del self.roomy[position]
        else:
            del self.small[length][position]
        return length

    def find_space(self, need: int) -> int | None:
        """Position of a free run with room for *need* bytes, or None: an exact one, else a large one."""
        exact = self.small.get(need)
        if exact:
            return next(iter(exact))
        if self.roomy:
            return next(reversed(self.roomy))
        for length in range(need + 8, L.DIRENT_MAX, 8):
            if self.small.get(length):
                return next(iter(self.small[length]))
        return None


def records(raw, start: int):
    """Yield (offset in block, ino, rec_len, type, name) of a block that begins at raw[start].

    ino 0: free. CorruptError where the chain of records leaves the block.
    """
    at = L.BLOCK_SIZE
    while at < PAGE_SIZE:
        ino, rec_len, name_len, kind = _unpack(raw, start + at)
        if rec_len < _SIZE or rec_len % 8 or at + rec_len > PAGE_SIZE or _SIZE + name_len > rec_len:
            raise CorruptError(f"directory record at {at}: length {rec_len}, name {name_len}")
        if ino:
            name = bytes(raw[start + at + _SIZE : start + at + _SIZE + name_len])
            yield at, ino, rec_len, kind, name
        else:
            yield at, 0, rec_len, 0, b""
        at += rec_len


def index_of(fs, node) -> DirIndex:
    """The directory's index, built at first use."""
    if node.index is None:
        index = DirIndex()
        for pgoff in range(node.map.size >> PAGE_SHIFT):
            place = extent.page_offset(fs, node, pgoff)
            head = fs.check_block(place >> PAGE_SHIFT, L.BLOCK_DIR, node.ino, whole=True)
            if head.index != pgoff:
                raise CorruptError(f"directory {node.ino}: block {pgoff} is block {head.index}")
            base = pgoff << PAGE_SHIFT
            for at, ino, rec_len, _, name in records(fs.mem, place):
                if ino:
                    index.names[name] = base + at
                else:
                    index.add_space(base + at, rec_len)
            index.pages = pgoff + 1
        node.index = index
    return node.index


def lookup(fs, node, name: bytes) -> tuple[int, int] | None:
    """(ino, d_type) of *name*, or None."""
    position = index_of(fs, node).names.get(name)
    if position is None:
        return None
    place = extent.page_offset(fs, node, position >> PAGE_SHIFT) + (position & PAGE_SIZE - 1)
    ino, _, _, kind = _unpack(fs.mem, place)
    return ino, kind


def is_empty(fs, node) -> bool:
    return not index_of(fs, node).names


def listing(fs, node, cookie: int):
    """Yield (name, ino, d_type, next cookie) of the names at positions from *cookie* on.

    Safe while names come and go between two steps only if the consumer stops: it
    must not be kept over a change of the directory.
    """
    pages = index_of(fs, node).pages
    for pgoff in range(cookie >> PAGE_SHIFT, pages):
        base = pgoff << PAGE_SHIFT
        for at, ino, _, kind, name in records(fs.mem, extent.page_offset(fs, node, pgoff)):
            if ino and base + at >= cookie:
                yield name, ino, kind, base + at + _SIZE


def insert(tx, fs, edit, node, name: bytes, ino: int, kind: int) -> None:
    """Add *name*. The caller has looked that it is not there. *edit*: the directory's inode."""
    index = index_of(fs, node)
    need = record_size(name)
    position = index.find_space(need)
    if position is None:
        position = _grow(tx, fs, edit, node, index)
        block = tx.block(_pfn_of(tx, fs, node, position), L.BLOCK_DIR, node.ino)
        length = PAGE_SIZE - L.BLOCK_SIZE
    else:
        block = tx.block(_pfn_of(tx, fs, node, position), L.BLOCK_DIR, node.ino)
        length = index.starts[position]
    rest = length - need
    if rest < _SMALLEST:
        need, rest = length, 0
    at = position & PAGE_SIZE - 1
    block.put(at, _pack(ino, need, len(name), kind) + name.ljust(record_size(name) - _SIZE, b"\0"))
    if rest:
        block.put(at + need, _pack(0, rest, 0, 0))

    def publish():
        if position in index.starts:
            index.take_space(position)
        else:
            index.pages += 1
        if rest:
            index.add_space(position + need, rest)
        index.names[name] = position

    tx.after(publish)


def _pfn_of(tx, fs, node, position: int) -> int:
    pgoff = position >> PAGE_SHIFT
    for block in tx.fresh_blocks(L.BLOCK_DIR, node.ino):
        if block.index == pgoff:
            return block.pfn
    return extent.page_offset(fs, node, pgoff) >> PAGE_SHIFT


def _grow(tx, fs, edit, node, index) -> int:
    """Add a block to the directory; the position of its first record."""
    pgoff = index.pages
    goal = None
    if pgoff:
        goal = (extent.page_offset(fs, node, pgoff - 1) >> PAGE_SHIFT) + 1
    ((pfn, _),) = tx.alloc(1, pgoff, goal)
    extent.replace(tx, edit, node, pgoff, pgoff + 1, [(pgoff, 1, pfn, extent.MAPPED)])
    tx.new_block(pfn, L.BLOCK_DIR, edit, pgoff)
    edit.size = (pgoff + 1) << PAGE_SHIFT
    tx.after(lambda: setattr(node.map, "size", (pgoff + 1) << PAGE_SHIFT))
    return (pgoff << PAGE_SHIFT) + L.BLOCK_SIZE


def remove(tx, fs, edit, node, name: bytes, shrink: bool = True) -> None:
    """Take *name* away: one 8-byte change in its block. It must be there.

    *shrink*: blocks may go with the last name (not where the same transaction
    adds a name to this directory).
    """
    index = index_of(fs, node)
    position = index.names[name]
    block = tx.block(_pfn_of(tx, fs, node, position), L.BLOCK_DIR, node.ino)
    at = position & PAGE_SIZE - 1
    length = _unpack(block.buf, at)[1]
    block.put(at, L.WORD.pack(0))
    shrink = shrink and len(index.names) == 1 and index.pages > 1

    def publish():
        del index.names[name]
        index.add_space(position, length)

    tx.after(publish)
    if shrink:
        _shrink(tx, fs, edit, node, index)


def _shrink(tx, fs, edit, node, index) -> None:
    """The last name goes: keep the first block, free the others."""
    gone = extent.replace(tx, edit, node, 1, index.pages, [])
    tx.free(gone, metadata=True)
    edit.size = PAGE_SIZE

    def publish():
        node.map.size = PAGE_SIZE
        node.index = None  # built anew from the one block that is left

    tx.drop_blocks(pfn + i for pfn, pages in gone for i in range(pages))
    tx.after(publish)


def change(tx, fs, node, name: bytes, ino: int, kind: int) -> None:
    """Let *name* name another inode, in place (rename over, exchange)."""
    position = index_of(fs, node).names[name]
    block = tx.block(_pfn_of(tx, fs, node, position), L.BLOCK_DIR, node.ino)
    at = position & PAGE_SIZE - 1
    _, rec_len, name_len, _ = _unpack(block.buf, at)
    block.put(at, _pack(ino, rec_len, name_len, kind))
