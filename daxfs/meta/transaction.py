# SPDX-License-Identifier: MIT
"""One transaction: the metadata changes of one operation, as one journal record.

Changes are made to copies (`InodeEdit`, `BlockEdit`); live metadata is untouched
until `commit` has made the record durable. What the operation took from DRAM
state (pages, inode numbers) is registered with `undo` and given back if it fails;
what may change only once it is durable (freed pages, directory indexes, extent
maps) is registered with `after`. No suspension point may lie between begin and
commit: one metadata thread, one transaction at a time (docs/concurrency.md).

Native threads read, overwrite and append to files meanwhile. So a transaction holds the lock of each
regular file in use that it edits, from before it copies the inode until all is done or given back.
"""

import struct

from .. import layout as L
from ..errors import CorruptError
from ..pfn import PAGE_SHIFT, PAGE_SIZE
from .inode import COLD, F

_HOT_END = F.offset["hot_reserved"]  # size and times, which change in place, end here
_hot = struct.Struct(f"<{_HOT_END // 8}Q").unpack_from
_B = L.BLOCK_FIELDS
SPARE_RUNS = 4


def _field(name: str, fields) -> property:
    codec, offset = fields.codec[name], fields.offset[name]
    if codec.format.endswith("s"):
        size = codec.size

        def put_bytes(self, value):
            self.buf[offset : offset + size] = value.ljust(size, b"\0")

        return property(lambda self: bytes(self.buf[offset : offset + size]), put_bytes)
    unpack, pack = codec.unpack_from, codec.pack_into
    given = 1 << offset // 8 if fields is F and offset < _HOT_END else 0

    def put(self, value):
        pack(self.buf, offset, value)
        if given:
            self.given |= given

    return property(lambda self: unpack(self.buf, offset)[0], put)


class InodeEdit:
    """A copy of one inode with its fields as attributes. ``attrs``: its xattrs, once they were looked at.

    ``given``: the hot words (by number) that were set, be it to what they are.
    """

    __slots__ = ("attrs", "buf", "fresh", "given", "number", "place")

    def __init__(self, number: int, place: int, buf: bytearray, fresh: bool = False):
        self.number, self.place, self.buf, self.fresh = number, place, buf, fresh
        self.attrs = None
        self.given = 0

    def entries(self, live: bytes, seed: int):
        """The redo entries against what stands in place (*live*, 256 bytes)."""
        buf = self.buf
        if self.fresh:
            buf[COLD:] = L.sealed(buf[COLD:], 4, seed)
            yield self.place, bytes(buf)
            return
        if buf[COLD:] != live[COLD:]:
            buf[COLD:] = L.sealed(buf[COLD:], 4, seed)
            yield self.place + COLD, bytes(buf[COLD:])
        # Of the hot words only those that changed or were set (others may be stored in place), neighbours in
        # one entry. Set to what it is counts: what stands in place may not last, replay can bring back older.
        start = None
        for n, (new, old) in enumerate(zip(_hot(buf), _hot(live), strict=True)):
            if new != old or self.given >> n & 1:
                start = n if start is None else start
            elif start is not None:
                yield self.place + 8 * start, bytes(buf[8 * start : 8 * n])
                start = None
        if start is not None:
            yield self.place + 8 * start, bytes(buf[8 * start : _HOT_END])


for _name in F.names:
    setattr(InodeEdit, _name, _field(_name, F))


class BlockEdit:
    """A copy of one metadata block; `put` changes it and remembers where."""

    __slots__ = ("buf", "fresh", "pfn", "ranges")

    def __init__(self, pfn: int, buf: bytearray, fresh: bool):
        self.pfn, self.buf, self.fresh = pfn, buf, fresh
        self.ranges: list[tuple[int, int]] = []

    def put(self, offset: int, data: bytes) -> None:
        self.buf[offset : offset + len(data)] = data
        self.ranges.append((offset, offset + len(data)))

    def entries(self, seed: int):
        """Redo entries: the header (whose checksum changed) and every range that was put."""
        L.seal(self.buf, 4, seed)
        base = self.pfn << PAGE_SHIFT
        if self.fresh:
            yield base, PAGE_SIZE
        yield base, bytes(self.buf[: L.BLOCK_SIZE])
        done = L.BLOCK_SIZE
        for start, end in sorted(self.ranges):
            first = max(start, done)
            if first < end:
                yield base + first, bytes(self.buf[first:end])
                done = end


for _name in _B.names:
    setattr(BlockEdit, _name, _field(_name, _B))


class Transaction:
    """Use as a context manager: commits at the end, gives everything back on an exception."""

    __slots__ = ("_after", "_blocks", "_held", "_inodes", "_raw", "_undo", "fs", "poison")

    def __init__(self, fs):
        self.fs = fs
        self.poison = None  # what the list of poisoned pages becomes (`Poison.heal`); None: it stays
        self._inodes: dict[int, InodeEdit] = {}
        self._blocks: dict[int, BlockEdit] = {}
        self._raw: list = []
        self._after: list = []
        self._undo: list = []
        self._held: list = []  # FileMaps whose lock is ours

    def __enter__(self) -> "Transaction":
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.commit()
        else:
            self.abort()

    def hold(self, fmap) -> None:
        """Lock *fmap* exclusively until the transaction has ended; the caller may hold it already."""
        fmap.lock()
        self._held.append(fmap)

    def _let_go(self) -> None:
        held, self._held = self._held, []
        for fmap in held:
            fmap.unlock()

    def inode(self, ino: int) -> InodeEdit:
        """The inode *ino*, to be changed."""
        edit = self._inodes.get(ino)
        if edit is None:
            table = self.fs.inodes
            node = self.fs.nodes.get(ino)
            if node is not None and node.is_file:
                self.hold(node.map)  # before the copy: its size and times may change without a record
            edit = self._inodes[ino] = InodeEdit(ino, table.place(ino), table.raw(ino))
        return edit

    def new_inode(self, ino: int) -> InodeEdit:
        """The inode *ino* that was free: all zero but magic, number and the next generation."""
        table = self.fs.inodes
        generation = 0  # behind the limit stands what was never an inode of this region
        if ino < table.limit:
            generation = F.codec["generation"].unpack_from(table.raw(ino), F.offset["generation"])[0]
        edit = InodeEdit(ino, table.place(ino), bytearray(L.INODE_SIZE), fresh=True)
        edit.magic, edit.ino, edit.generation = L.INODE_MAGIC, ino, (generation + 1) & 0xFFFFFFFF or 1
        self._inodes[ino] = edit
        return edit

    def block(self, pfn: int, kind: int, owner: int) -> BlockEdit:
        """The metadata block *pfn*, to be changed. CorruptError where it is not what it should be."""
        edit = self._blocks.get(pfn)
        if edit is None:
            self.fs.check_block(pfn, kind, owner)
            at = pfn << PAGE_SHIFT
            edit = self._blocks[pfn] = BlockEdit(pfn, bytearray(self.fs.mem[at : at + PAGE_SIZE]), False)
        elif edit.kind != kind or edit.owner != owner:
            raise CorruptError(f"block {pfn}: used twice in one transaction")
        return edit

    def new_block(self, pfn: int, kind: int, owner: InodeEdit, index: int) -> BlockEdit:
        """A block that was just allocated: zero but for its header."""
        edit = BlockEdit(pfn, bytearray(PAGE_SIZE), True)
        edit.magic, edit.kind, edit.owner, edit.index = L.BLOCK_MAGIC, kind, owner.number, index
        edit.generation, edit.self_pfn, edit.length = owner.generation, pfn, PAGE_SIZE
        self._blocks[pfn] = edit
        return edit

    def fresh_blocks(self, kind: int, owner: int):
        """Yield the new blocks of this transaction that belong to *owner*."""
        for edit in self._blocks.values():
            if edit.fresh and edit.kind == kind and edit.owner == owner:
                yield edit

    def drop_blocks(self, pfns) -> None:
        """Forget changes to blocks that the transaction frees."""
        for pfn in pfns:
            self._blocks.pop(pfn, None)

    def raw(self, place: int, data: bytes) -> None:
        """Journal *data* for byte offset *place* as it is (the caller sealed it), before all edits."""
        self._raw.append((place, data))

    def zero(self, place: int, length: int) -> None:
        """Journal a run of zeros, before what `raw` and edits put there."""
        self._raw.append((place, length))

    def alloc(self, pages: int, pgoff: int = 0, goal: int | None = None, spare: int = 0):
        """`Allocator.alloc`, given back if the transaction fails.

        *spare*: so many pages more, fewer where they would be many runs.
        """
        runs = self.fs.alloc.alloc(pages + spare, pgoff, goal)
        surplus = spare
        while len(runs) > SPARE_RUNS and runs[-1][1] <= surplus:
            surplus -= runs[-1][1]
            self.fs.alloc.free(*runs.pop())
        self._undo.append(lambda: [self.fs.alloc.free(*run) for run in runs])
        if self.fs.poison.runs:
            for pfn, count in runs:
                self.fs.poison.heal(self, pfn, count)
        return runs

    def free(self, runs, metadata: bool = False) -> None:
        """Free these pages once the transaction is durable."""
        give = self.fs.alloc.quarantine if metadata else self.fs.alloc.free
        if self.fs.poison.runs:
            for pfn, pages in runs:
                self.fs.poison.heal(self, pfn, pages, zero=not metadata)  # the old record may be needed yet
        self._after.append(lambda: [give(*run) for run in runs])

    def after(self, call) -> None:
        """Run *call* once the transaction is durable, in order."""
        self._after.append(call)

    def undo(self, call) -> None:
        """Run *call* if the transaction fails, last one first."""
        self._undo.append(call)

    def entries(self) -> list:
        """All redo entries, in the order in which they are applied (a new chunk's zeros before its inode)."""
        fs, out = self.fs, list(self._raw)
        for pfn in self._blocks:
            out.extend(self._blocks[pfn].entries(fs.seed))
        for edit in self._inodes.values():
            live = fs.mem[edit.place : edit.place + L.INODE_SIZE]
            out.extend(edit.entries(bytes(live), fs.seed))
        if self.poison is not None:
            out.append(fs.poison.entry(self.poison))
        return out

    def commit(self) -> None:
        """Make the changes durable (one drain), then the DRAM state follow."""
        try:
            entries = self.entries()
            if entries:
                try:
                    if self.poison is not None:
                        # Orders what was stored to poisoned pages before the record that ends their poison.
                        self.fs.region.drain()
                        self.fs.region.flush.check()
                    self.fs.journal.commit(entries)
                except OSError:
                    self.abort()
                    raise
                finally:
                    # After a failure too: the record may be on the media until it is taken back.
                    self.fs.journalled(self._inodes)
            for call in self._after:
                call()
            if self.poison is not None:
                self.fs.poison.changed(self.poison)
        finally:
            self._let_go()

    def abort(self) -> None:
        """Give back what was taken from DRAM state; the media were not touched."""
        try:
            for call in reversed(self._undo):
                call()
        finally:
            self._undo.clear()
            self._let_go()
