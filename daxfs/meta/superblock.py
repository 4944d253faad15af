# SPDX-License-Identifier: MIT
"""The superblock, its backup, and the labels of further sources: reading, checking, writing.

While a region is mounted its label and feature words may change (`change`), and
nothing else here; other words that do are on the state page (`fs.FileSystem`).
"""

import uuid as uuidlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np

from .. import layout as L
from ..errors import CorruptError, FormatError, SourceError
from ..pfn import PAGE_SHIFT, PAGE_SIZE

_CRC = L.SUPERBLOCK.fields["crc"][1]
_LABEL_CRC = L.SOURCE_LABEL.fields["crc"][1]
_CHANGING = (L.STATE_PFN << PAGE_SHIFT) + L.STATE_FIELDS.offset["changing"]


@dataclass
class Superblock:
    """What mkfs decided. Places in pages of the region; ``sources``: (uuid, pfn_start, npages) each."""

    uuid: bytes
    label: bytes = b""
    sources: list[tuple[bytes, int, int]] = field(default_factory=list)
    format_rev: int = L.FORMAT_REV
    compat: int = 0
    ro_compat: int = 0
    incompat: int = 0
    created: int = 0
    npages: int = 0
    nsources: int = 0
    map: int = L.MAP_MEM
    journal_pfn: int = 0
    journal_pages: int = 0
    inode_pfn: int = 0
    inode_pages: int = 0
    map_pfn: int = 0
    map_pages: int = 0
    data_pfn: int = 0
    backup_pfn: int = 0

    @property
    def seed(self) -> int:
        return L.crc_seed(self.uuid)

    @property
    def capacity(self) -> int:
        """Inodes that the table has room for, the unused number 0 left out."""
        return self.inode_pages * L.INODES_PER_PAGE - 1

    def data_ranges(self) -> list[tuple[int, int]]:
        """[start, end) in pfns of everything that may hold extents and metadata blocks."""
        out = [(self.data_pfn, self.backup_pfn)]
        out += [(start + 1, start + pages) for _, start, pages in self.sources[1:]]
        return out

    def pack(self) -> bytes:
        """The 4096 bytes that stand on the media."""
        page = np.zeros(1, L.SUPERBLOCK)
        page["magic"] = L.SB_MAGIC
        page["uuid"] = np.void(self.uuid)
        page["label"] = np.void(self.label.ljust(L.LABEL_MAX, b"\0"))
        for name in _SCALARS:
            page[name] = getattr(self, name)
        for i, (uuid, start, pages) in enumerate(self.sources):
            page["sources"][0][i] = (np.void(uuid), start, pages)
        return L.sealed(bytearray(page.tobytes()), _CRC, 0)


_SCALARS = tuple(f.name for f in fields(Superblock) if f.type is int)


def parse(page: bytes) -> Superblock:
    """A superblock from its 4096 bytes.

    FormatError where there is none or one of another revision, CorruptError where it is damaged.
    """
    sb = np.frombuffer(page, L.SUPERBLOCK, 1)[0]
    if page[:8] != L.SB_MAGIC:
        raise FormatError("no daxfs superblock")
    if not L.is_sealed(page, _CRC, 0):
        raise CorruptError("superblock: wrong checksum")
    out = Superblock(uuid=sb["uuid"].tobytes(), label=sb["label"].tobytes().rstrip(b"\0"))
    for name in _SCALARS:
        setattr(out, name, int(sb[name]))
    if out.format_rev != L.FORMAT_REV:
        raise FormatError(f"format revision {out.format_rev}, this daxfs knows revision {L.FORMAT_REV}")
    if out.incompat & ~L.INCOMPAT_KNOWN:
        unknown = out.incompat & ~L.INCOMPAT_KNOWN
        raise FormatError(f"unknown incompatible features {unknown:#x}: use a newer daxfs")
    if not 1 <= out.nsources <= L.MAX_SOURCES:
        raise CorruptError(f"superblock: {out.nsources} sources")
    for entry in sb["sources"][: out.nsources]:
        out.sources.append((entry["uuid"].tobytes(), int(entry["pfn_start"]), int(entry["npages"])))
    _check_geometry(out)
    return out


def _check_geometry(sb: Superblock) -> None:
    """Places are in order and inside the region (a right checksum does not make them sane)."""
    first = sb.sources[0][2]
    areas = [
        (sb.journal_pfn, sb.journal_pages),
        (sb.inode_pfn, sb.inode_pages),
        (sb.map_pfn, sb.map_pages),
    ]
    at = L.STATE_PFN + 1
    for start, pages in areas:
        if pages and (start < at or pages < 0):
            raise CorruptError("superblock: areas overlap")
        at = max(at, start + pages)
    ends = [start + pages for _, start, pages in sb.sources]
    if not (at <= sb.data_pfn < sb.backup_pfn < first and sb.npages == max(ends) <= L.MAX_REGION_PAGES):
        raise CorruptError("superblock: areas leave the region")
    if sb.journal_pages < 3 or sb.inode_pages < 1:
        raise CorruptError("superblock: no journal or no inode table")


def read(region) -> Superblock:
    """The superblock of an open region, whose sources must be the ones it names, in order.

    FormatError, CorruptError (its text says whether the backup would help),
    SourceError for a missing, swapped, foreign or shrunken source.
    """
    page = bytes(region.mem[:PAGE_SIZE])
    try:
        sb = parse(page)
    except FormatError:
        if page[:8] == L.SB_MAGIC:
            raise
        name = region.sources[0].path
        if page[:8] == L.SOURCE_MAGIC:
            message = f"{name}: swapped: not the first source of its region; give the sources in order"
            raise SourceError(message) from None
        if find_backup(region) is not None:
            raise CorruptError(f"{name}: superblock lost, its backup is good: run fsck.daxfs") from None
        raise FormatError(f"{name}: not a daxfs region (run mkfs.daxfs first)") from None
    except CorruptError as error:
        if find_backup(region) is not None:
            raise CorruptError(f"{error}; its backup is good: run fsck.daxfs") from None
        raise
    check_sources(region, sb)
    return sb


def find_backup(region) -> Superblock | None:
    """The backup superblock at the end of the first source, if it is valid."""
    first = region.sources[0]
    at = (first.pfn_start << PAGE_SHIFT) + (first.size // PAGE_SIZE - 1) * PAGE_SIZE
    try:
        sb = parse(bytes(region.mem[at : at + PAGE_SIZE]))
    except (FormatError, CorruptError):
        return None
    return sb if sb.backup_pfn << PAGE_SHIFT == at else None


def pack_label(sb: Superblock, index: int) -> bytes:
    """The first page of source *index* (> 0)."""
    uuid, start, pages = sb.sources[index]
    label = np.zeros(1, L.SOURCE_LABEL)
    label["magic"], label["format_rev"] = L.SOURCE_MAGIC, L.FORMAT_REV
    label["region_uuid"], label["uuid"] = np.void(sb.uuid), np.void(uuid)
    label["index"], label["nsources"] = index, sb.nsources
    label["pfn_start"], label["npages"] = start, pages
    return L.sealed(bytearray(label.tobytes()), _LABEL_CRC, 0)


def placed_sources(region, sb: Superblock) -> Iterator[tuple[int, str, bytes, int]]:
    """(index, path, UUID, first pfn) of each open source, as the superblock has it.

    SourceError, at the latest when the one at fault comes: missing, shrunken, not at its place.
    """
    if len(region.sources) != sb.nsources:
        raise SourceError(
            f"the region has {sb.nsources} sources, {len(region.sources)} given: "
            f"{', '.join(s.path for s in region.sources)}"
        )
    for i, (source, (uuid, start, pages)) in enumerate(zip(region.sources, sb.sources, strict=True)):
        have = source.size // PAGE_SIZE
        if have < pages:
            raise SourceError(f"{source.path}: shrunken: {have} pages, was formatted with {pages}")
        if source.pfn_start != start:
            raise SourceError(f"{source.path}: not at its place in the region; give the sources in order")
        yield i, source.path, uuid, start


def check_sources(region, sb: Superblock) -> None:
    """SourceError where the open sources are not the superblock's, naming the one at fault."""
    for i, path, uuid, start in placed_sources(region, sb):
        if i == 0:
            continue
        at = start << PAGE_SHIFT
        page = bytes(region.mem[at : at + L.SOURCE_LABEL.itemsize])
        label = np.frombuffer(page, L.SOURCE_LABEL, 1)[0]
        if page[:8] == L.SB_MAGIC:
            raise SourceError(f"{path}: foreign: it is the first source of a region")
        if page[:8] != L.SOURCE_MAGIC or not L.is_sealed(page, _LABEL_CRC, 0):
            raise SourceError(f"{path}: not a daxfs source, or its label is damaged")
        if label["region_uuid"].tobytes() != sb.uuid:
            owner = uuidlib.UUID(bytes=label["region_uuid"].tobytes())
            raise SourceError(f"{path}: foreign: it belongs to region {owner}")
        if int(label["index"]) != i or label["uuid"].tobytes() != uuid:
            raise SourceError(f"{path}: swapped: it is source {int(label['index'])}, given as {i}")


def write(region, sb: Superblock) -> None:
    """Publish a region: labels and backup first, the superblock last.

    The caller has cleared any older superblock and drained; a crash in between
    leaves either no region or a whole one.
    """
    for i in range(1, sb.nsources):
        region.nt_store(sb.sources[i][1] << PAGE_SHIFT, pack_label(sb, i))
    page = sb.pack()
    region.nt_store(sb.backup_pfn << PAGE_SHIFT, page)
    # Orders everything that was formatted, the labels and the backup before the superblock.
    region.drain()
    region.nt_store(0, page)
    # Orders the superblock before mkfs reports success.
    region.drain()
    region.flush.check()


def change(region, sb: Superblock) -> None:
    """Replace label and feature words of a mounted region's superblock by those of *sb*.

    Atomic and durable on return: whatever a crash leaves, `settle` makes the old or the new one of it. An
    OSError of the source (msync) leaves it to the next mount which of them.
    """
    live = np.frombuffer(bytes(region.mem[:PAGE_SIZE]), L.SUPERBLOCK).copy()
    live["label"] = np.void(sb.label.ljust(L.LABEL_MAX, b"\0"))
    for name in ("compat", "ro_compat", "incompat"):
        live[name] = getattr(sb, name)
    page = L.sealed(bytearray(live.tobytes()), _CRC, 0)
    _mark(region, 1)
    # Orders the mark before the first byte that it speaks of: without it a torn backup would be damage.
    region.drain()
    region.nt_store(sb.backup_pfn << PAGE_SHIFT, page)
    # Orders the whole backup before the superblock, which it stands in for while that is torn.
    region.drain()
    region.flush.check()
    region.nt_store(0, page)
    # Orders the superblock before the end of the mark.
    region.drain()
    region.flush.check()
    _mark(region, 0)
    # Orders the end of the mark before the return: what damages a superblock later is damage.
    region.drain()
    region.flush.check()


def settle(region) -> bool:
    """Finish a `change` that a crash cut short; call before the superblock is used. True where there was one.

    The superblock counts where it is whole, else the backup, which `change` drained before it. Can itself be
    cut short. What no `change` can have left is not touched: that is for `read` and fsck.daxfs to say.
    """
    page = bytes(region.mem[:PAGE_SIZE])
    if page[:8] != L.SB_MAGIC or region.npages <= L.STATE_PFN:
        return False
    if not L.WORD.unpack_from(region.mem, _CHANGING)[0]:
        return False
    pages = region.sources[0].size // PAGE_SIZE
    try:
        place = parse(page).backup_pfn << PAGE_SHIFT
        if place >= pages << PAGE_SHIFT:
            return False
    except FormatError:
        return False
    except CorruptError:
        if find_backup(region) is None:
            return False
        last = pages - 1 << PAGE_SHIFT
        page, place = bytes(region.mem[last : last + PAGE_SIZE]), 0
    region.nt_store(place, page)
    # Orders the copy before the end of the mark.
    region.drain()
    region.flush.check()
    _mark(region, 0)
    # Orders the end of the mark before whatever is done with a superblock that counts as settled.
    region.drain()
    region.flush.check()
    return True


def _mark(region, value: int) -> None:
    """Store and queue the word of the state page that says: a `change` is under way."""
    region.store(_CHANGING, L.WORD.pack(value))
    region.flush_range(_CHANGING, 8)
