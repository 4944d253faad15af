# SPDX-License-Identifier: MIT
"""Checks of inodes and of what each of them holds: extents, counts, symlink targets, xattrs.

Vectorised over the inode table as `recover` is; Python looks only at what is
chained (extent blocks) or rare (symlinks, xattrs). Reads; changes nothing. Every
number from the media is checked before it is used.
"""

import google_crc32c
import numpy as np

from .. import layout as L
from ..errors import DaxfsError
from ..pfn import PAGE_SHIFT, PAGE_SIZE
from . import acl
from .inode import COLD, F
from .xattr import TOTAL_MAX

S_IFREG, S_IFDIR, S_IFLNK = 0o100000, 0o040000, 0o120000
KINDS = (S_IFREG, S_IFDIR, S_IFLNK, 0o020000, 0o060000, 0o010000, 0o140000)
_CHUNK = 16384  # inodes looked at in one numpy pass
_ROW = np.dtype([("owner", "<i8"), ("pgoff", "<i8"), ("len", "<i8"), ("pfn", "<i8"), ("state", "<i8")])
_BLOCK = L.BLOCK_FIELDS
_HEAD = L.BLOCK_FIELDS.unpack_from
_SPACES = (L.XATTR_USER, L.XATTR_ACL_ACCESS, L.XATTR_ACL_DEFAULT, L.XATTR_TRUSTED, L.XATTR_SECURITY)


class Scan:
    """One look at the inodes below *limit*.

    ``good``: inode numbers whose inode is valid and in use (sorted); ``valid``: one
    flag for each number, False where the inode is damaged; ``rows``: all extents in
    the data area; ``torn``: inodes some of whose extents are not known; ``complete``:
    False once a directory (or what may have been one) could not be read wholly.
    """

    def __init__(self, region, sb, limit: int, found, progress):
        self.region, self.sb, self.limit, self.found, self.progress = region, sb, limit, found, progress
        self.mem, self.seed = region.mem, sb.seed
        self.base = sb.inode_pfn << PAGE_SHIFT
        self.table = np.frombuffer(self.mem, L.INODE, limit, self.base)
        self.valid = np.ones(limit, bool)
        self.good = np.empty(0, np.int64)
        self.rows = np.empty(0, _ROW)
        self.runs: list[tuple[int, int, int]] = []  # (pfn, pages, owner) of extent blocks and xattr runs
        self.torn: set[int] = set()
        self.complete = True
        self.ranges = sb.data_ranges()

    def inside(self, pfn: int, pages: int) -> bool:
        """True where [pfn, pfn + pages) is in one data range."""
        return pages > 0 and any(start <= pfn and pfn + pages <= end for start, end in self.ranges)

    def block_head(self, pfn: int, kind: int, owner: int, index: int):
        """(header, what is wrong with it or "") of a metadata block that `inside` allowed."""
        head = dict(zip(_BLOCK.names, _HEAD(self.mem, pfn << PAGE_SHIFT), strict=True))
        want = (L.BLOCK_MAGIC, kind, owner, pfn)
        if (head["magic"], head["kind"], head["owner"], head["self_pfn"]) != want:
            return head, "it is another one's, or none"
        if head["index"] != index:
            return head, f"it is number {head['index']}"
        if head["generation"] != int(self.table["generation"][owner]):
            return head, "it is of an earlier file with this inode number"
        return head, ""

    def sealed(self, pfn: int, length: int) -> bool:
        at = pfn << PAGE_SHIFT
        return L.is_sealed(self.mem[at : at + length], 4, self.seed)


def check(scan: Scan) -> None:
    """All checks of this module, in an order in which each may rely on the ones before it."""
    for first in range(0, scan.limit, _CHUNK):
        _chunk(scan, first, min(first + _CHUNK, scan.limit))
        scan.progress("inodes", first, scan.limit)
    _root(scan)
    scan.good = np.flatnonzero(scan.valid & (scan.table["mode"] != 0))
    kinds = _fields(scan)
    _collect(scan, kinds)
    _chains(scan, kinds)
    _xattrs(scan)
    _ranges(scan)
    _overlaps(scan)
    _shared(scan)
    _counts(scan, kinds)
    _symlinks(scan, kinds)


# -- the inode itself -------------------------------------------------------------------


def _chunk(scan: Scan, first: int, last: int) -> None:
    """Checksums, numbers and types of the inodes [first, last)."""
    start = scan.base + first * L.INODE_SIZE
    raw = np.frombuffer(scan.mem, np.uint8, (last - first) * L.INODE_SIZE, start).reshape(-1, L.INODE_SIZE)
    written = np.flatnonzero(raw.any(axis=1))
    part = scan.table[first:last]
    if not first and raw[0].any():
        _number_zero(scan)
        written = written[1:]
    cold = raw[written, COLD:].copy()
    cold[:, 4:8] = 0
    extend, seed = google_crc32c.extend, scan.seed
    sums = np.array([extend(seed, row.tobytes()) for row in cold], np.uint32)
    sealed = (part["magic"][written] == L.INODE_MAGIC) & (part["crc"][written] == sums)
    for i in written[~sealed].tolist():
        _damaged(scan, first + i, "inode-checksum", "wrong magic or checksum")
    written = written[sealed]
    other = part["ino"][written] != written + first
    for i in written[other].tolist():
        _damaged(scan, first + i, "inode-number", f"it says that it is inode {part['ino'][i]}")
    written = written[~other]
    mode = part["mode"][written]
    used = mode != 0
    wrong = used & (~np.isin(mode & 0o170000, KINDS) | (mode > 0o177777))
    for i in written[wrong].tolist():
        _damaged(scan, first + i, "inode-mode", f"mode {part['mode'][i]:#o} is of no known type")
    _free(scan, first, raw, written[~used])


def _number_zero(scan: Scan) -> None:
    """Inode 0 holds nothing. What looks like another inode that got there by mistake is kept."""
    keep = scan.table["magic"][0] == L.INODE_MAGIC and scan.table["mode"][0]
    action = None if keep else ("raw", scan.base, bytes(L.INODE_SIZE))
    scan.found.add("inode-free-dirty", "inode 0", "this number is never used", action)
    scan.valid[0] = False


def _damaged(scan: Scan, ino: int, check: str, what: str) -> None:
    """Note a damaged inode: what it held is unknown, and so are the names if it was a directory."""
    scan.found.add(check, f"inode {ino}", what)
    scan.valid[ino] = False
    scan.complete = False


def _free(scan: Scan, first: int, raw: np.ndarray, free: np.ndarray) -> None:
    """Free inodes hold magic, number and generation and nothing else."""
    rows = raw[free].copy()
    for name in ("magic", "crc", "ino", "generation"):
        offset, size = F.offset[name], F.codec[name].size
        rows[:, offset : offset + size] = 0
    for i in free[rows.any(axis=1)].tolist():
        ino = first + i
        scan.found.add("inode-free-dirty", f"inode {ino}", "free, but it holds something", ("wipe", ino))


def _root(scan: Scan) -> None:
    mode = int(scan.table["mode"][L.ROOT_INO])
    if not scan.valid[L.ROOT_INO] or mode & 0o170000 != S_IFDIR:
        scan.complete = False
        if scan.valid[L.ROOT_INO]:
            scan.found.add("root-inode", "inode 1", "it is no directory, so there is no way to any name")
            scan.valid[L.ROOT_INO] = mode != 0


def _fields(scan: Scan) -> np.ndarray:
    """Flags, sizes and times. Returns the types of the inodes in ``scan.good``."""
    table, good, found = scan.table, scan.good, scan.found
    kinds = table["mode"][good] & 0o170000
    flags = table["flags"][good]
    known = np.full(kinds.shape, L.FLAGS_ANY, flags.dtype)
    known[kinds == S_IFDIR] = L.FLAGS_USER
    known[kinds == S_IFREG] = L.FLAGS_USER | L.FLAGS_KNOWN
    for n in np.flatnonzero(flags & ~known).tolist():
        ino, have, keep = int(good[n]), int(flags[n]), int(known[n])
        found.add("inode-flags", f"inode {ino}", f"flags {have:#x}", ("inode", ino, {"flags": have & keep}))
    size = table["size"][good]
    for ino in good[(kinds == S_IFREG) & (size > L.MAX_FILE_SIZE)].tolist():
        found.add("inode-size", f"inode {ino}", f"a file of {table['size'][ino]} bytes")
        scan.torn.add(ino)
    special = ~np.isin(kinds, (S_IFREG, S_IFDIR, S_IFLNK))
    for ino in good[special & (size != 0)].tolist():
        what = f"a special file of {table['size'][ino]} bytes"
        found.add("inode-size", f"inode {ino}", what, ("inode", ino, {"size": 0}))
    wiped = table["ctime"][good] == 0
    reserved = np.frombuffer(table["hot_reserved"][good].tobytes(), np.uint8).reshape(-1, 32).any(axis=1)
    for ino in good[wiped | reserved].tolist():
        found.add("inode-times", f"inode {ino}", "its size and times were overwritten", _times(scan, ino))
        if table["mode"][ino] & 0o170000 == S_IFREG:
            scan.torn.add(ino)
    return kinds


def _times(scan: Scan, ino: int):
    """How to mend wiped times: not where the size, which stands beside them, decides over data."""
    kind, flags = int(scan.table["mode"][ino]) & 0o170000, int(scan.table["flags"][ino])
    data = scan.table["nextents"][ino] or scan.table["size"][ino] or flags & L.FLAG_OWN
    if kind == S_IFREG and data:
        return None
    return ("times", ino)


# -- extents ----------------------------------------------------------------------------


def _rows(owners: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Extents in *slots* (2-D, one line for each owner) as rows."""
    taken = slots["len"] > 0
    rows = np.empty(int(taken.sum()), _ROW)
    rows["owner"] = np.broadcast_to(owners[:, None], slots.shape)[taken]
    rows["pgoff"], rows["len"] = slots["pgoff"][taken], slots["len"][taken]
    words = slots["pfn"][taken]
    rows["pfn"] = (words & np.uint64(L.EXTENT_PFN_MASK)).astype(np.int64)
    rows["state"] = (words >> np.uint64(L.EXTENT_STATE_SHIFT)).astype(np.int64)
    return rows


def _collect(scan: Scan, kinds: np.ndarray) -> None:
    """The extents in inline slots."""
    table, good = scan.table, scan.good
    # nextents is under the checksum, a symlink's size is not: the count says where the target stands.
    mapped = (kinds == S_IFREG) | (kinds == S_IFDIR)
    mapped |= (kinds == S_IFLNK) & (table["nextents"][good] > 0)
    owners = good[mapped]
    slots = np.frombuffer(table["inline"][owners].tobytes(), L.EXTENT).reshape(-1, L.INLINE_SLOTS)
    scan.rows = _rows(owners, slots)
    for ino in good[~mapped & (table["ext_root"][good] != 0)].tolist():
        scan.found.add("extent-block", f"inode {ino}", "it has extent blocks, which its type can't have")


def _chains(scan: Scan, kinds: np.ndarray) -> None:
    """The extents in extent blocks."""
    table, good = scan.table, scan.good
    may = (kinds == S_IFREG) | (kinds == S_IFDIR) | (kinds == S_IFLNK)
    parts = [scan.rows]
    owners = good[may & (table["ext_root"][good] != 0)].tolist()
    for n, ino in enumerate(owners):
        for pfn in _chain(scan, ino):
            at = (pfn << PAGE_SHIFT) + L.BLOCK_SIZE
            slots = np.frombuffer(scan.mem, L.EXTENT, L.BLOCK_SLOTS, at).reshape(1, -1)
            parts.append(_rows(np.array([ino]), slots))
            scan.runs.append((pfn, 1, ino))
        if not n & 0xFF:
            scan.progress("extents", n, len(owners))
    scan.rows = np.concatenate(parts) if len(parts) > 1 else scan.rows


def _chain(scan: Scan, ino: int):
    """Yield the good blocks of a chain; its index and owner make that it ends."""
    pfn, index = int(scan.table["ext_root"][ino]), 0
    while pfn:
        why = "outside the data area"
        if scan.inside(pfn, 1):
            head, why = scan.block_head(pfn, L.BLOCK_EXTENT, ino, index)
            if not why and (head["length"] != PAGE_SIZE or not scan.sealed(pfn, PAGE_SIZE)):
                why = "wrong checksum"
        if why:
            scan.found.add("extent-block", f"inode {ino}", f"extent block {index} at page {pfn}: {why}")
            _tear(scan, ino)
            return
        yield pfn
        pfn, index = head["next"], index + 1


def _tear(scan: Scan, ino: int) -> None:
    """Not all extents of *ino* are known."""
    scan.torn.add(ino)
    if scan.table["mode"][ino] & 0o170000 == S_IFDIR:
        scan.complete = False


def _ranges(scan: Scan) -> None:
    """Drop the rows that lead out of the data areas or are of an unknown state."""
    rows, found = scan.rows, scan.found
    end = rows["pfn"] + rows["len"]
    inside = np.zeros(len(rows), bool)
    for low, high in scan.ranges:
        inside |= (rows["pfn"] >= low) & (end <= high)
    inside &= rows["pgoff"] + rows["len"] <= 1 << 32
    for row in rows[~inside]:
        what = f"extent of {row['len']} pages at page {row['pfn']} (page {row['pgoff']} of the file)"
        found.add("extent-range", f"inode {row['owner']}", f"{what} is outside the data area")
        _tear(scan, int(row["owner"]))
    known = (rows["state"] == 1) | (rows["state"] == 2)
    for row in rows[inside & ~known]:
        what = f"extent at page {row['pfn']}: state {row['state']}"
        found.add("extent-state", f"inode {row['owner']}", what)
        _tear(scan, int(row["owner"]))
    scan.rows = rows[inside]


def _overlaps(scan: Scan) -> None:
    """Sort the rows by file and place; no two may map the same page of a file."""
    rows = scan.rows = scan.rows[np.lexsort((scan.rows["pgoff"], scan.rows["owner"]))]
    if len(rows) < 2:
        return
    # Each file gets its own stretch of one line, so that one running maximum serves all.
    start = rows["pgoff"] + (_rank(rows["owner"]) << 33)
    reach = np.maximum.accumulate(start + rows["len"])
    for i in (np.flatnonzero(reach[:-1] > start[1:]) + 1).tolist():
        row = rows[i]
        what = f"two extents map page {row['pgoff']} of the file"
        scan.found.add("extent-overlap", f"inode {row['owner']}", what)
        _tear(scan, int(row["owner"]))


def _rank(owners: np.ndarray) -> np.ndarray:
    """0, 1, 2 … for each owner of a sorted array."""
    return np.concatenate(([0], np.cumsum(owners[1:] != owners[:-1])))


def _shared(scan: Scan) -> None:
    """No page of the region belongs to two, be it data, extent block or xattr run."""
    pfn, pages, owner = scan.rows["pfn"], scan.rows["len"], scan.rows["owner"]
    if scan.runs:
        more = np.array(scan.runs, np.int64)
        pfn, pages = np.concatenate((pfn, more[:, 0])), np.concatenate((pages, more[:, 1]))
        owner = np.concatenate((owner, more[:, 2]))
    order = np.argsort(pfn, kind="stable")
    pfn, end, owner = pfn[order], (pfn + pages)[order], owner[order]
    scan.found.stats["pages"] = int((end - pfn).sum())
    if len(pfn) < 2:
        return
    reach = np.maximum.accumulate(end)
    for i in (np.flatnonzero(reach[:-1] > pfn[1:]) + 1).tolist():
        before = int(np.searchsorted(reach[:i], pfn[i], side="right"))
        one, two = sorted((int(owner[before]), int(owner[i])))
        what = f"owned by inode {one} and by inode {two}" if one != two else f"twice in inode {one}"
        scan.found.add("extent-shared", f"page {pfn[i]}", what)


def _counts(scan: Scan, kinds: np.ndarray) -> None:
    """nextents, blocks, and extents behind the end of regular files."""
    table, rows, found = scan.table, scan.rows, scan.found
    count, blocks = np.zeros(scan.limit, np.int64), np.zeros(scan.limit, np.int64)
    np.add.at(count, rows["owner"], 1)
    np.add.at(blocks, rows["owner"], rows["len"])
    for _, pages, owner in scan.runs:
        blocks[owner] += pages
    torn = np.zeros(scan.limit, bool)
    torn[list(scan.torn)] = True
    sure = scan.good[~torn[scan.good]]
    for ino in sure[table["nextents"][sure] != count[sure]].tolist():
        have, want = int(table["nextents"][ino]), int(count[ino])
        found.add("extent-count", f"inode {ino}", f"{have}, has {want}", ("inode", ino, {"nextents": want}))
    for ino in sure[table["blocks"][sure] != blocks[sure].astype(np.uint64)].tolist():
        have, want = int(table["blocks"][ino]), int(blocks[ino])
        action = ("inode", ino, {"blocks": want})
        found.add("blocks-count", f"inode {ino}", f"{have} pages, has {want}", action)
    _beyond(scan, kinds, torn)


def _beyond(scan: Scan, kinds: np.ndarray, torn: np.ndarray) -> None:
    """Written pages behind the end. Unwritten ones may lie there (fallocate with KEEP_SIZE).

    So may those of a truncation or preallocation that a crash cut off: mount frees them.
    """
    table, rows = scan.table, scan.rows
    file = np.zeros(scan.limit, bool)
    file[scan.good[kinds == S_IFREG]] = True
    file &= ~torn & (table["flags"] & (L.FLAG_TRUNCATING | L.FLAG_PREALLOC) == 0) & (table["nlink"] > 0)
    mine = rows[file[rows["owner"]] & (rows["state"] == 2)]
    pages = (table["size"][mine["owner"]] + np.uint64(PAGE_SIZE - 1)) >> np.uint64(PAGE_SHIFT)
    behind = mine["pgoff"] + mine["len"] > pages.astype(np.int64)
    for ino in np.unique(mine["owner"][behind]).tolist():
        what = f"written pages behind its {table['size'][ino]} bytes"
        scan.found.add("extent-beyond-size", f"inode {ino}", what, ("trim", ino), rank=1)


# -- symbolic links and extended attributes ---------------------------------------------


def _symlinks(scan: Scan, kinds: np.ndarray) -> None:
    table = scan.table
    for ino in scan.good[kinds == S_IFLNK].tolist():
        if ino in scan.torn:
            continue
        size = int(table["size"][ino])
        if not table["nextents"][ino]:
            inline = table["inline"][ino].tobytes()
            target = inline.rstrip(b"\0")
            if len(target) != size or b"\0" in target or not target:
                good = target and b"\0" not in target
                action = ("inode", ino, {"size": len(target)}) if good else None
                what = f"target of {len(target)} bytes, size {size}"
                scan.found.add("symlink-target", f"inode {ino}", what, action)
            continue
        at = np.searchsorted(scan.rows["owner"], ino)
        row = scan.rows[at] if at < len(scan.rows) else None
        if row is None or row["owner"] != ino or row["pgoff"] or row["state"] != 2:
            scan.found.add("symlink-target", f"inode {ino}", "its target is not mapped")
            continue
        place = int(row["pfn"]) << PAGE_SHIFT
        page = bytes(scan.mem[place : place + PAGE_SIZE])
        length = page.find(b"\0")
        if length != size or not L.INLINE_SIZE < size <= L.SYMLINK_MAX:
            scan.found.add("symlink-target", f"inode {ino}", f"target of {length} bytes, size {size}")


def _xattrs(scan: Scan) -> None:
    table, good = scan.table, scan.good
    owners = good[(table["xattr_pfn"][good] != 0) | (table["xattr_pages"][good] != 0)].tolist()
    for n, ino in enumerate(owners):
        pfn, pages = int(table["xattr_pfn"][ino]), int(table["xattr_pages"][ino])
        if pages > TOTAL_MAX // PAGE_SIZE or not scan.inside(pfn, pages):
            what = f"{pages} pages at page {pfn} are no place for a run"
            scan.found.add("xattr-block", f"inode {ino}", what)
            scan.torn.add(ino)
            continue
        scan.runs.append((pfn, pages, ino))
        head, why = scan.block_head(pfn, L.BLOCK_XATTR, ino, 0)
        length = head["length"]
        if not why and not L.BLOCK_SIZE <= length <= pages * PAGE_SIZE:
            why = f"{length} bytes in {pages} pages"
        if not why and not scan.sealed(pfn, length):
            why = "wrong checksum"
        if why:
            scan.found.add("xattr-block", f"inode {ino}", f"run at page {pfn}: {why}")
            continue
        at = pfn << PAGE_SHIFT
        _entries(scan, ino, bytes(scan.mem[at : at + length]), head["count"])
        if not n & 0xFF:
            scan.progress("xattrs", n, len(owners))


def _entries(scan: Scan, ino: int, raw: bytes, count: int) -> None:
    at, attrs = L.BLOCK_SIZE, {}
    for _ in range(count):
        if at + 8 > len(raw):
            break
        space, name_len, _, value_len = L.XATTR_CODEC.unpack_from(raw, at)
        name = raw[at + 8 : at + 8 + name_len]
        end = at + 8 + name_len + value_len
        if space not in _SPACES or end > len(raw) or (space, name) in attrs or b"\0" in name:
            break
        if (space in (L.XATTR_ACL_ACCESS, L.XATTR_ACL_DEFAULT)) == bool(name):
            break  # an ACL has no name of its own, everything else has one
        attrs[space, name] = raw[at + 8 + name_len : end]
        at = end
    if len(attrs) != count or at != len(raw):
        what = f"no entry {len(attrs)} of {count} at byte {at}"
        scan.found.add("xattr-entry", f"inode {ino}", what)
        return
    for space in (L.XATTR_ACL_ACCESS, L.XATTR_ACL_DEFAULT):
        if (space, b"") in attrs and (why := _acl(scan, ino, space, attrs[space, b""])):
            scan.found.add("acl", f"inode {ino}", why)


def _acl(scan: Scan, ino: int, space: int, value: bytes) -> str:
    """What is wrong with an ACL, or an empty string."""
    mode = int(scan.table["mode"][ino])
    try:
        entries = acl.parse(value)
    except DaxfsError:
        return "no ACL"
    if space == L.XATTR_ACL_DEFAULT:
        return "" if mode & 0o170000 == S_IFDIR else "a default ACL on what is no directory"
    if mode & 0o170000 == S_IFLNK:
        return "an ACL on a symbolic link"
    bits, _ = acl.equivalent_mode(entries)
    if not entries or bits == mode & 0o777:
        return ""
    return f"the ACL says {bits:03o}, the mode {mode & 0o777:03o}"
