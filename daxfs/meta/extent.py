# SPDX-License-Identifier: MIT
"""Extents on media, and `Node`, what daxfs keeps in DRAM of an inode in use.

On media an extent stands in a *slot*: one of the inode's inline slots or one of a
chain of extent blocks. Slots are in no order and never move; the order is in
DRAM (`FileMap`), so that a change costs the slots that it changes, however
fragmented the file. One thread changes this; readers of the FileMap are excluded
by its lock, which a `Transaction` holds while it edits the inode.
"""

from .. import layout as L
from .._iomap import UNSETTLED, FileMap
from ..errors import CorruptError
from ..pfn import PAGE_SHIFT, PAGE_SIZE
from .inode import F

HOLE, UNWRITTEN, MAPPED = 0, 1, 2
MAX_PGOFF = 1 << 32
_INLINE = F.offset["inline"]
_SLOT = L.EXTENT_CODEC
_EMPTY = bytes(16)


class Node:
    """An inode in use: open, a directory that was looked into, or being changed in its extents.

    ``map``: extents, size and flags for the data path. ``is_file``: a regular file, which native
    threads may use; their rules are the map's lock. ``blocks``: pfns of the chain of
    extent blocks. ``free_slots``: slots without an extent. ``opens``: handles.
    ``index``: of a directory (`dir.DirIndex`), once it was needed. ``capability``: whether it has
    file capabilities (the xattr), None: not known yet. ``appends``, ``ahead``: writes since it was
    opened that grew the file and came to the metadata thread; pages that the next chunk has (`prealloc`).
    ``faults``: who answers the faults of its mappings (`fault.observer.File`), None: the kernel.
    ``splits``: who has to know when a part of a huge page of its range goes (the same), None: nobody.
    ``uncut``: its own range is longer than it, as somebody had pages pinned (`own.shorten`).
    """

    __slots__ = (
        *("ahead", "appends", "blocks", "capability", "faults", "free_slots", "index", "ino", "is_file"),
        *("map", "opens", "splits", "uncut"),
    )

    def __init__(self, ino: int, size: int, is_file: bool = False):
        self.ino, self.is_file = ino, is_file
        self.map = FileMap()
        self.map.size = size
        self.blocks: list[int] = []
        self.free_slots: list[int] = []
        self.opens = 0
        self.index = None
        self.capability: bool | None = None
        self.faults = self.splits = None
        self.uncut = False
        self.appends, self.ahead = 0, 16


def parse_slot(raw, offset: int):
    """(pgoff, len, pfn, type) of the slot at *offset*, or None where it is empty."""
    pgoff, length, word = _SLOT.unpack_from(raw, offset)
    if not length:
        return None
    return pgoff, length, word & L.EXTENT_PFN_MASK, word >> L.EXTENT_STATE_SHIFT


def chain(fs, inode):
    """Yield the pfn of each extent block of *inode*, checked. CorruptError on a wrong or circular one."""
    pfn, index = inode.ext_root, 0
    while pfn:
        head = fs.check_block(pfn, L.BLOCK_EXTENT, inode.ino, whole=True)
        if head.index != index:
            raise CorruptError(f"inode {inode.ino}: extent block {pfn} is out of order")
        yield pfn
        pfn, index = head.next, index + 1


def has_extents(inode) -> bool:
    """False for device nodes and for symlinks short enough to stand in the inode."""
    kind = inode.mode & 0o170000
    return kind in (0o100000, 0o040000) or (kind == 0o120000 and inode.size > L.INLINE_SIZE)


def load(fs, inode) -> Node:
    """The Node of an inode, its extents read and checked against the region's data area."""
    node = Node(inode.ino, inode.size, inode.mode & 0o170000 == 0o100000)
    node.map.ino = inode.ino
    node.map.inode = fs.region.address + fs.inodes.place(inode.ino)
    if inode.ino in fs.unsettled:
        node.map.set_state(UNSETTLED)
    if not has_extents(inode):
        return node
    found = []

    def scan(raw, start, first, count):
        for slot in range(count):
            extent = parse_slot(raw, start + 16 * slot)
            if extent is None:
                node.free_slots.append(first + slot)
                continue
            fs.check_run(extent[2], extent[1], inode.ino)
            found.append((*extent, first + slot))

    scan(inode.inline, 0, 0, L.INLINE_SLOTS)
    for pfn in chain(fs, inode):
        first = L.INLINE_SLOTS + len(node.blocks) * L.BLOCK_SLOTS
        scan(fs.mem, (pfn << PAGE_SHIFT) + L.BLOCK_SIZE, first, L.BLOCK_SLOTS)
        node.blocks.append(pfn)
    node.free_slots.reverse()
    try:
        node.map.load(sorted(found))
    except (ValueError, OSError) as error:
        raise CorruptError(f"inode {inode.ino}: extents overlap ({error})") from None
    return node


def _write_slot(tx, edit, node, slot: int, data: bytes) -> None:
    if slot < L.INLINE_SLOTS:
        at = _INLINE + 16 * slot
        edit.buf[at : at + 16] = data
        return
    place, rest = divmod(slot - L.INLINE_SLOTS, L.BLOCK_SLOTS)
    tx.block(node.blocks[place], L.BLOCK_EXTENT, node.ino).put(L.BLOCK_SIZE + 16 * rest, data)


def _take_slot(tx, edit, node) -> int:
    """A free slot; a new extent block joins the chain where there is none."""
    if not node.free_slots:
        _new_block(tx, edit, node)
    slot = node.free_slots.pop()
    tx.undo(lambda: node.free_slots.append(slot))
    return slot


def _new_block(tx, edit, node) -> None:
    ((pfn, _),) = tx.alloc(1)
    place = len(node.blocks)
    tx.new_block(pfn, L.BLOCK_EXTENT, edit, place)
    if place:
        tx.block(node.blocks[-1], L.BLOCK_EXTENT, node.ino).next = pfn
    else:
        edit.ext_root = pfn
    edit.blocks += 1
    first = L.INLINE_SLOTS + place * L.BLOCK_SLOTS
    node.blocks.append(pfn)
    node.free_slots.extend(range(first + L.BLOCK_SLOTS - 1, first - 1, -1))

    def undo():
        node.blocks.pop()
        del node.free_slots[-L.BLOCK_SLOTS :]

    tx.undo(undo)


def _merged(pieces):
    """Adjacent pieces (pgoff, len, pfn, type) joined where file and region both go on."""
    out = []
    for piece in pieces:
        if out:
            pgoff, length, pfn, kind = out[-1]
            if (pgoff + length, pfn + length, kind) == (piece[0], piece[2], piece[3]):
                out[-1] = (pgoff, length + piece[1], pfn, kind)
                continue
        out.append(piece)
    return out


def replace(tx, edit, node, first: int, last: int, pieces) -> list[tuple[int, int]]:
    """Replace what maps pages [first, last) by *pieces* [(pgoff, len, pfn, type)], sorted, inside it.

    Returns the runs [(pfn, pages)] that are mapped no longer; the caller frees
    them. ``edit.blocks`` and ``edit.nextents`` follow. The FileMap changes when the
    transaction is durable.
    """
    fmap = node.map
    start, stop = fmap.find(first), fmap.find(last)
    if stop < len(fmap) and fmap.extents(stop, 1)[0][0] < last:
        stop += 1
    low, high = max(start - 1, 0), min(stop + 1, len(fmap))
    old = fmap.extents(low, high - low)
    kept, gone, written = [], [], []
    for pgoff, length, pfn, kind, _ in old:
        end = pgoff + length
        if pgoff < first:
            kept.append((pgoff, min(end, first) - pgoff, pfn, kind))
        if end > last:
            cut = max(pgoff, last)
            kept.append((cut, end - cut, pfn + cut - pgoff, kind))
        inside = max(pgoff, first), min(end, last)
        if inside[0] < inside[1]:
            gone.append((pfn + inside[0] - pgoff, inside[1] - inside[0]))
            if kind == MAPPED:
                written.append(gone[-1])
    if tx.fs.poison.runs:
        tx.fs.poison.replaced(tx, gone, pieces, written)
    new = _merged(sorted(kept + list(pieces)))
    _rewrite(tx, edit, node, old, new, low, high)
    still = [(p[2], p[1]) for p in pieces]
    edit.blocks += sum(n for _, n in still) - sum(n for _, n in gone)
    return subtract(gone, still)


def _rewrite(tx, edit, node, old, new, low: int, high: int) -> None:
    """Put *new* into the slots of *old*, changing as few as possible."""
    same = {e[:4]: e[4] for e in old}
    keep = {p: same.pop(p) for p in new if p in same}
    spare = list(same.values())
    placed = []
    for piece in new:
        slot = keep.get(piece)
        if slot is None:
            slot = spare.pop(0) if spare else _take_slot(tx, edit, node)
            pgoff, length, pfn, kind = piece
            _write_slot(tx, edit, node, slot, _SLOT.pack(pgoff, length, pfn | kind << L.EXTENT_STATE_SHIFT))
        placed.append((*piece, slot))
    for slot in spare:
        _write_slot(tx, edit, node, slot, _EMPTY)
    edit.nextents += len(new) - len(old)

    def publish():
        node.free_slots.extend(spare)
        node.map.splice(low, high - low, placed)

    tx.after(publish)


def subtract(runs, minus) -> list[tuple[int, int]]:
    """Runs without the pages that *minus* has; neither overlaps itself. One pass over both, sorted."""
    out, minus, at = [], sorted(minus), 0
    for pfn, pages in sorted(runs):
        here, stop = pfn, pfn + pages
        while at < len(minus) and sum(minus[at]) <= here:
            at += 1
        n = at
        while n < len(minus) and minus[n][0] < stop:
            if here < minus[n][0]:
                out.append((here, minus[n][0] - here))
            here = max(here, sum(minus[n]))
            n += 1
        if here < stop:
            out.append((here, stop - here))
    return out


def clear(tx, edit, node, metadata: bool = False) -> None:
    """Unmap everything: O(1) in the journal, however many extents.

    *metadata*: they hold what the journal writes, a directory's or a symlink's.
    """
    runs = [(pfn, length) for _, length, pfn, _, _ in node.map.extents()]
    blocks = [(pfn, 1) for pfn in node.blocks]
    edit.inline = b""
    edit.ext_root = edit.nextents = 0
    edit.blocks -= sum(n for _, n in runs) + len(blocks)
    if runs:
        tx.free(runs, metadata)
    if blocks:
        tx.free(blocks, metadata=True)

    def publish():
        node.map.load([])
        node.blocks.clear()
        node.free_slots[:] = range(L.INLINE_SLOTS - 1, -1, -1)

    tx.after(publish)


def forget_dirty(node, first: int, pages: int) -> None:
    """Pages that hold no data any more are not dirty."""
    node.map.unmark(first, pages)


def holes(node, first: int, last: int):
    """Yield (pgoff, len, pfn, type) for the pieces of [first, last) in order, holes included."""
    while first < last:
        kind, pgoff, length, pfn, _ = node.map.lookup(first)
        length = min(length, last - pgoff)
        yield pgoff, length, pfn, kind
        first = pgoff + length


def page_offset(fs, node, pgoff: int) -> int:
    """Byte offset in the region of a directory's page. CorruptError where it is not mapped."""
    kind, _, _, pfn, _ = node.map.lookup(pgoff)
    if kind != MAPPED:
        raise CorruptError(f"inode {node.ino}: page {pgoff} of the directory is not mapped")
    fs.check_poison(pfn, 1, node.ino)
    return pfn * PAGE_SIZE
