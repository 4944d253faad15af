# SPDX-License-Identifier: MIT
"""The inode table: reading an inode, numbers in use and free.

The mapped table is the truth; nothing of an inode is cached in DRAM. The table
has room for a fixed number of inodes, of which those below ``limit`` are valid:
mkfs of a large region writes almost nothing, and the table is zeroed in steps
of INODE_CHUNK as numbers are needed. One thread: the metadata thread.
"""

import errno
from array import array
from collections import namedtuple

from .. import layout as L
from ..errors import CorruptError, fail
from ..pfn import PAGE_SHIFT

F = L.INODE_FIELDS
Inode = namedtuple("Inode", F.names)
COLD = F.offset["magic"]
PLACE_OF = {name: offset for name, offset in F.offset.items() if offset < L.INODE_HOT}

_unpack = F.unpack_from
_make = Inode._make
_mode, _MODE = F.codec["mode"].unpack_from, F.offset["mode"]
_flags, _FLAGS = F.codec["flags"].unpack_from, F.offset["flags"]


def allowed_flags(mode: int) -> int:
    """The flags of L.FLAGS_USER that an inode of this type may have."""
    return L.FLAGS_USER if mode & 0o170000 in (0o100000, 0o040000) else L.FLAGS_ANY


class InodeTable:
    """Inodes of one region. ``ino`` counts from 1 (ROOT_INO); 0 is never used."""

    def __init__(self, region, start_pfn: int, pages: int, seed: int):
        self.region = region
        self.mem = region.mem
        self.base = start_pfn << PAGE_SHIFT
        self.capacity = pages * L.INODES_PER_PAGE
        self.seed = seed
        self.limit = 0
        self.free = array("Q")  # numbers below limit that are free, taken from the end
        self.used = 0
        self.on_grown = []  # called with the new limit, before an inode above the old one is told to anybody
        self.damaged: frozenset[int] = frozenset()  # of a read-only mount (`recover.rebuild`)
        self.poisoned: list[range] = []  # pages of the region, of this table (`poison.Poison`)

    def place(self, ino: int) -> int:
        """Byte offset of the inode in the region."""
        return self.base + ino * L.INODE_SIZE

    def read(self, ino: int) -> Inode:
        """The inode, of which every field was checked at mount or written since.

        ESTALE where *ino* is no number in use (a client's stale handle), CorruptError
        where a read-only mount found it damaged.
        """
        if not 0 < ino < self.limit:
            raise fail(errno.ESTALE)
        if self.poisoned:
            self._check_poison(ino)
        if ino in self.damaged:
            raise CorruptError(f"inode {ino} is damaged; run fsck.daxfs")
        inode = _make(_unpack(self.mem, self.base + ino * L.INODE_SIZE))
        if not inode.mode or inode.ino != ino:
            raise fail(errno.ESTALE)
        return inode

    def mode(self, ino: int) -> int:
        """The mode alone, of a number known to be in use."""
        return _mode(self.mem, self.base + ino * L.INODE_SIZE + _MODE)[0]

    def flags(self, ino: int) -> int:
        """The flags alone, of a number known to be in use."""
        return _flags(self.mem, self.base + ino * L.INODE_SIZE + _FLAGS)[0]

    def raw(self, ino: int) -> bytearray:
        """A copy of the inode's 256 bytes. CorruptError where they are poisoned."""
        if self.poisoned:
            self._check_poison(ino)
        place = self.place(ino)
        return bytearray(self.mem[place : place + L.INODE_SIZE])

    def is_poisoned(self, ino: int) -> bool:
        """Whether the page is poisoned that the inode stands in."""
        page = self.place(ino) >> PAGE_SHIFT
        return any(page in pages for pages in self.poisoned)

    def _check_poison(self, ino: int) -> None:
        if self.is_poisoned(ino):
            raise CorruptError(f"inode {ino}: its page of the inode table is poisoned")

    def is_valid(self, raw) -> bool:
        """True where these 256 bytes are an inode of this region, or one that was never used."""
        if not any(raw):
            return True
        magic = F.codec["magic"].unpack_from(raw, COLD)[0]
        return magic == L.INODE_MAGIC and L.is_sealed(raw[COLD:], 4, self.seed)

    def take(self) -> int | None:
        """A free number below the limit, or None: then the table must grow (`next_chunk`, `grown`)."""
        return self.free.pop() if self.free else None

    def give(self, ino: int) -> None:
        """Number *ino* is free again (after the transaction that freed it)."""
        self.free.append(ino)

    def next_chunk(self) -> int:
        """The limit after the next step. What stands behind the present one may be anything. ENOSPC."""
        if self.limit >= self.capacity:
            raise fail(errno.ENOSPC, "no free inode")
        return min(self.limit + L.INODE_CHUNK, self.capacity)

    def grown(self, limit: int) -> None:
        """The new limit is durable; its first number is in use already."""
        self.free.extend(range(limit - 1, self.limit, -1))
        self.limit = limit
        for call in self.on_grown:
            call(limit)

    def check(self, ino: int) -> Inode:
        """`read` with the checksum looked at. CorruptError where it is wrong."""
        if not self.is_valid(self.raw(ino)):
            raise CorruptError(f"inode {ino}: wrong magic or checksum")
        return self.read(ino)
