# SPDX-License-Identifier: MIT
"""Checks of the fixed areas: superblock and backup, source labels, journal, state page.

Without them nothing else can be read, so what can be put right here is put right
at once: in the region itself when mending, in the private copy of a "cow" region
otherwise. Every number from the media is checked before it is used.
"""

import uuid as uuidlib

import numpy as np

from .. import layout as L
from ..errors import CorruptError, FormatError, SourceError, UsageError
from ..pfn import PAGE_SHIFT, PAGE_SIZE
from . import superblock
from .inode import COLD
from .journal import Journal, decode
from .mkfs import state_line

_STATE = L.STATE_PFN << PAGE_SHIFT
_MOUNTED = _STATE + L.STATE_FIELDS.offset["mounted"]
_CHANGING = _STATE + L.STATE_FIELDS.offset["changing"]
_TAIL = L.JOURNAL_FIELDS.offset["tail"]
_SB_CRC = L.SUPERBLOCK.fields["crc"][1]
_LABEL_CRC = L.SOURCE_LABEL.fields["crc"][1]
_PATIENCE = 64  # chunks of the inode table without an inode after which no further one is looked for


class ReadOnly(Exception):
    """Something must be put right before one can look further, but the region is mapped read-only."""


def _put(region, place: int, data: bytes) -> None:
    """Replace bytes that are damaged already; a crash in between leaves them damaged."""
    if region.mode == "ro":
        raise ReadOnly
    region.nt_store(place, data)
    # Orders the repaired bytes before whatever is read or changed on the strength of them.
    region.drain()
    region.flush.check()


def _page(region, pfn: int) -> bytes:
    return bytes(region.mem[pfn << PAGE_SHIFT : (pfn << PAGE_SHIFT) + PAGE_SIZE])


def _fits(region, sb) -> bool:
    """True where the areas that *sb* names are in the open first source."""
    return sb.backup_pfn < region.sources[0].size // PAGE_SIZE


def _evidence(region, sb) -> int:
    """How many of journal header, state line and the first inodes carry this superblock's seed."""
    first = sb.inode_pfn << PAGE_SHIFT
    places = [(sb.journal_pfn << PAGE_SHIFT, 64), (_STATE, 64)]
    places += [(first + i * L.INODE_SIZE + COLD, L.INODE_COLD) for i in range(1, L.INODES_PER_PAGE)]
    return sum(L.is_sealed(region.mem[at : at + size], 4, sb.seed) for at, size in places)


def _primary(region):
    """(superblock or None, check that failed, sentence)."""
    page = _page(region, L.SUPERBLOCK_PFN)
    try:
        sb = superblock.parse(page)
    except FormatError as error:
        if page[:8] == L.SB_MAGIC:
            raise
        return None, "sb-magic", str(error)
    except CorruptError as error:
        sealed = L.is_sealed(page, _SB_CRC, 0)
        return None, "sb-geometry" if sealed else "sb-checksum", str(error)
    if not _fits(region, sb):
        name = region.sources[0].path
        have, want = region.sources[0].size // PAGE_SIZE, sb.sources[0][2]
        if have < want and _evidence(region, sb) >= 2:
            raise SourceError(f"{name}: shrunken: {have} pages, was formatted with {want}")
        return None, "sb-geometry", "its areas leave the region"
    return sb, "", ""


def superblocks(region, found):
    """The superblock to go by, or None where there is none (the problem is noted).

    FormatError where this is no daxfs region or one of a newer format, SourceError
    where the sources are not the ones it was made of.
    """
    page = _page(region, L.SUPERBLOCK_PFN)
    sb, check, why = _primary(region)
    backup = superblock.find_backup(region)
    if backup is not None and (not _fits(region, backup) or _evidence(region, backup) < 2):
        backup = None
    if sb is not None and backup is not None and sb.pack() != backup.pack():
        if _evidence(region, backup) > _evidence(region, sb):
            sb, check, why = None, "sb-geometry", "it is another region's"
    if sb is None:
        return _from_backup(region, found, backup, page, check, why)
    kept = _page(region, sb.backup_pfn)
    if kept != page:
        found.add("sb-backup", "backup superblock", "differs from the superblock", ("backup",), done=True)
        _put(region, sb.backup_pfn << PAGE_SHIFT, page)
    return sb


def _from_backup(region, found, backup, page: bytes, check: str, why: str):
    if backup is None:
        if page[:8] != L.SB_MAGIC:
            name = region.sources[0].path
            if page[:8] == L.SOURCE_MAGIC:
                raise SourceError(f"{name}: not the first source of its region; give the sources in order")
            raise FormatError(f"{name}: not a daxfs region, and no backup superblock at its end")
        found.add(check, "superblock", f"{why}; there is no usable backup")
        found.notes.append("without a superblock nothing else can be looked at")
        return None
    found.add(check, "superblock", f"{why}; its backup is good", ("superblock",), done=True)
    _put(region, 0, backup.pack())
    return backup


def labels(region, sb, found) -> None:
    """The sources are the superblock's. SourceError for missing, shrunken, foreign or swapped ones."""
    for i, path, uuid, _ in superblock.placed_sources(region, sb):
        if i:
            _label(region, sb, found, i, path, uuid)


def _label(region, sb, found, i: int, path: str, uuid: bytes) -> None:
    at = sb.sources[i][1] << PAGE_SHIFT
    want = superblock.pack_label(sb, i)
    have = bytes(region.mem[at : at + len(want)])
    if have == want:
        return
    label = np.frombuffer(have, L.SOURCE_LABEL, 1)[0]
    if have[:8] == L.SOURCE_MAGIC and L.is_sealed(have, _LABEL_CRC, 0):
        owner = label["region_uuid"].tobytes()
        if owner != sb.uuid:
            raise SourceError(f"{path}: foreign: it belongs to region {uuidlib.UUID(bytes=owner)}")
        if label["uuid"].tobytes() != uuid:
            raise SourceError(f"{path}: swapped: it is source {int(label['index'])}, given as {i}")
    if have[:8] == L.SB_MAGIC:
        raise SourceError(f"{path}: foreign: it is the first source of a region")
    where = f"source {i} ({path})"
    if label["uuid"].tobytes() == uuid or label["region_uuid"].tobytes() == sb.uuid:
        found.add("source-label", where, "its label is damaged", ("label",), done=True)
        _put(region, at, want)
    else:
        found.add("source-label", where, "its label is lost; whether it belongs here can't be told")


def journal(region, sb, found) -> bool:
    """Check the journal and replay it. False where it can't be: nothing behind it can be trusted."""
    log = Journal(region, sb.journal_pfn, sb.journal_pages, sb.seed)
    if not _header(region, sb, log, found):
        return False
    end = log.check_header()
    bad = False
    for lsn, body in log.pending():
        end = lsn + len(body)
        try:
            for place, data in decode(body):
                _check_entry(region, sb, place, data if isinstance(data, int) else len(data))
        except CorruptError as error:
            found.add("journal-entry", f"journal record {lsn:#x}", str(error))
            bad = True
    later = log.gap(end)
    if later is not None:
        found.add("journal-gap", f"journal record {end:#x}", f"damaged, but {later:#x} after it is not")
    if bad or later is not None:
        found.notes.append("the journal can't be replayed, so nothing behind it was looked at")
        return False
    if end != log.check_header() and region.mode == "ro":
        raise UsageError("the journal has records to replay: look at a copy, mount it, or run fsck.daxfs -y")
    found.replayed += log.replay()
    return True


def _header(region, sb, log: Journal, found) -> bool:
    head = bytearray(region.mem[log.base : log.base + 64])
    good = bytearray(64)
    L.JOURNAL_FIELDS.codec["magic"].pack_into(good, 0, L.JOURNAL_MAGIC)
    L.WORD.pack_into(good, 8, log.size >> PAGE_SHIFT)
    L.sealed(good, 4, sb.seed)
    if head != good:
        found.add("journal-header", "journal header", "wrong magic, size or checksum", ("header",), done=True)
        _put(region, log.base, bytes(good))
    lsn = L.tail_lsn(L.WORD.unpack_from(region.mem, log.base + _TAIL)[0])
    if lsn is not None and not lsn % 64:
        return True
    if L.WORD.unpack_from(region.mem, _MOUNTED)[0] or not _state_sealed(region, sb):
        found.add("journal-tail", "journal tail", "damaged, and the region was not unmounted")
        found.notes.append("what must be replayed is unknown, so nothing behind the journal was looked at")
        return False
    # Unmounted: all records stand in place. A tail behind every one of them replays none.
    found.add("journal-tail", "journal tail", "damaged; no record is due", ("tail",), done=True)
    _put(region, log.base + _TAIL, L.WORD.pack(L.tail_word(_end_of_log(region, log))))
    return True


def _end_of_log(region, log: Journal) -> int:
    """An lsn behind every valid record of the ring."""
    lines = np.frombuffer(region.mem, "<u8", log.size // 8, log.ring).reshape(-1, 8)
    magic = (lines[:, 0] & np.uint64(0xFFFFFFFF)) == L.RECORD_MAGIC
    lsns = lines[magic, 1]
    # The lsn must say the place that it stands at, and leave room for a next one.
    at = np.flatnonzero(magic).astype(np.uint64) * np.uint64(64)
    lsns = lsns[(lsns % np.uint64(log.size) == at) & (lsns < np.uint64(1 << 47))]
    ends = [lsn + len(body) for lsn in lsns.tolist() if (body := log.record_at(lsn)) is not None]
    return max(ends, default=0)


def _check_entry(region, sb, place: int, length: int) -> None:
    """CorruptError where a redo entry writes to anything but state page, inode table and data."""
    region.check(place, length)
    areas = [(L.STATE_PFN, L.STATE_PFN + 1), (sb.inode_pfn, sb.inode_pfn + sb.inode_pages)]
    areas += sb.data_ranges()
    for start, end in areas:
        if start << PAGE_SHIFT <= place and place + length <= end << PAGE_SHIFT:
            return
    raise CorruptError(f"bytes {place}+{length} are no place for a redo entry")


def _state_sealed(region, sb) -> bool:
    line = bytes(region.mem[_STATE : _STATE + 64])
    magic = L.STATE_FIELDS.codec["magic"].unpack_from(line)[0]
    return magic == L.STATE_MAGIC and L.is_sealed(line, 4, sb.seed)


def state(region, sb, found) -> int:
    """The inode limit, from the state page or (where it is damaged) from the inode table itself."""
    capacity = sb.inode_pages * L.INODES_PER_PAGE
    limit = L.WORD.unpack_from(region.mem, _STATE + 8)[0]
    found.stats["mounted"] = L.WORD.unpack_from(region.mem, _MOUNTED)[0]
    if not _state_sealed(region, sb):
        check, why = "state-line", "wrong magic or checksum"
    elif not L.INODE_CHUNK <= limit <= capacity:
        check, why = "inode-limit", f"{limit} valid inodes in a table of {capacity}"
    elif _chunk_in_use(region, sb, limit, capacity):
        check, why = "inode-limit", f"{limit} valid inodes, but there is one behind them"
    else:
        return limit
    limit = _derive_limit(region, sb, capacity)
    if limit is None:
        found.add(check, "state page", f"{why}; the inode table is no help")
        return 0
    found.add(check, "state page", f"{why}; the inode table ends at {limit}", ("state",), done=True)
    _put(region, _STATE, state_line(sb.seed, limit))
    return limit


def _chunk_in_use(region, sb, first: int, capacity: int) -> bool:
    """True where the chunk of inodes from *first* on has one with the region's seed and its own number."""
    count = min(L.INODE_CHUNK, capacity - first)
    if count <= 0:
        return False
    base = (sb.inode_pfn << PAGE_SHIFT) + first * L.INODE_SIZE
    table = np.frombuffer(region.mem, L.INODE, count, base)
    own = table["ino"] == np.arange(first, first + count)
    for i in np.flatnonzero(own & (table["magic"] == L.INODE_MAGIC)):
        at = base + int(i) * L.INODE_SIZE + COLD
        if L.is_sealed(region.mem[at : at + L.INODE_COLD], 4, sb.seed):
            return True
    return False


def _derive_limit(region, sb, capacity: int) -> int | None:
    """The end of the last chunk with an inode of this region (chunks are taken in order)."""
    limit, empty, first = None, 0, 0
    while first < capacity and empty < _PATIENCE:
        if _chunk_in_use(region, sb, first, capacity):
            limit, empty = min(first + L.INODE_CHUNK, capacity), 0
        else:
            empty += 1
        first += L.INODE_CHUNK
    return limit if limit is not None and limit >= L.INODE_CHUNK else None


def is_clean(region) -> bool:
    """True where the fixed areas are right, nothing is to be replayed and nobody has it mounted."""
    try:
        sb = superblock.read(region)
        if _page(region, sb.backup_pfn) != _page(region, 0) or not _state_sealed(region, sb):
            return False
        if L.WORD.unpack_from(region.mem, _CHANGING)[0]:
            return False
        log = Journal(region, sb.journal_pfn, sb.journal_pages, sb.seed)
        return log.record_at(log.check_header()) is None and not L.WORD.unpack_from(region.mem, _MOUNTED)[0]
    except CorruptError:
        return False
