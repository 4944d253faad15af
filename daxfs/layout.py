# SPDX-License-Identifier: MIT
"""L0: every structure on the media, in one place (docs/on-media.md draws them).

numpy structured dtypes, little endian, sizes asserted below. `Fields` derives a
``struct`` codec from a dtype for the places where one record at a time is read.
A change to anything here needs a new FORMAT_REV or a feature bit, and a frozen
image under tests/images. Imports numpy and google_crc32c, nothing of daxfs but pfn.
"""

import struct

import google_crc32c
import numpy as np

from .pfn import PAGE_SIZE, PMD_PAGES

FORMAT_REV = 1
SB_MAGIC = b"DAXFS\r\n\x1a"
SOURCE_MAGIC = b"DAXSRC\r\n"
JOURNAL_MAGIC = 0x4A584144  # "DAXJ"
RECORD_MAGIC = 0x52584144  # "DAXR"
POISON_MAGIC = 0x50584144  # "DAXP"
STATE_MAGIC = 0x53584144  # "DAXS"
INODE_MAGIC = 0x49584144  # "DAXI"
BLOCK_MAGIC = 0x42584144  # "DAXB"

# Feature words: an unknown compat bit is ignored, ro_compat allows mounting read-only, incompat forbids both.
COMPAT_FLAGS = 1  # inodes may have flags of FLAGS_USER
COMPAT_KNOWN = COMPAT_FLAGS
RO_COMPAT_POISON = 1  # the list of poisoned pages (POISON) may have entries
RO_COMPAT_KNOWN = RO_COMPAT_POISON
INCOMPAT_OWN = 1  # inodes may have FLAG_OWN
INCOMPAT_KNOWN = INCOMPAT_OWN

MAX_SOURCES = 64
MAX_FILE_SIZE = 1 << 44  # 16 TiB
MAX_REGION_PAGES = 1 << 32  # 16 TiB
NAME_MAX = 255
LINK_MAX = 65000
SYMLINK_MAX = 4095
ROOT_INO = 1
LABEL_MAX = 64

SUPERBLOCK_PFN = 0
STATE_PFN = 1
MIN_REGION_PAGES = 4 * PMD_PAGES  # 8 MiB: metadata in the first 2 MiB or so, then data
INODE_SIZE = 256
INODES_PER_PAGE = PAGE_SIZE // INODE_SIZE
INODE_CHUNK = 64  # the inode table is zeroed and made valid in steps of so many inodes
INLINE_SLOTS = 6

SOURCE_ENTRY = np.dtype([("uuid", "V16"), ("pfn_start", "<u8"), ("npages", "<u8")])
SUPERBLOCK = np.dtype(
    [
        ("magic", "S8"),
        ("format_rev", "<u4"),
        ("crc", "<u4"),
        ("compat", "<u8"),
        ("ro_compat", "<u8"),
        ("incompat", "<u8"),
        ("uuid", "V16"),
        ("label", "V64"),
        ("created", "<i8"),  # ns since the epoch
        ("npages", "<u8"),  # end of the pfn space
        ("nsources", "<u4"),
        ("map", "<u4"),  # MAP_MEM, MAP_DEV
        ("journal_pfn", "<u8"),
        ("journal_pages", "<u8"),
        ("inode_pfn", "<u8"),
        ("inode_pages", "<u8"),
        ("map_pfn", "<u8"),  # per-page state (S5): volatile, of one mount, never flushed; MAP_MEM: 0 pages
        ("map_pages", "<u8"),
        ("data_pfn", "<u8"),
        ("backup_pfn", "<u8"),
        ("reserved", "V1840"),
        ("sources", SOURCE_ENTRY, (MAX_SOURCES,)),
    ]
)
MAP_MEM, MAP_DEV = 0, 1

# First page of every source but the first, which has the superblock there.
SOURCE_LABEL = np.dtype(
    [
        ("magic", "S8"),
        ("format_rev", "<u4"),
        ("crc", "<u4"),
        ("region_uuid", "V16"),
        ("uuid", "V16"),
        ("index", "<u4"),
        ("nsources", "<u4"),
        ("pfn_start", "<u8"),
        ("npages", "<u8"),
        ("reserved", "V56"),
    ]
)

# Page STATE_PFN: one journalled line, then words that are stored in place.
STATE = np.dtype(
    [
        ("magic", "<u4"),
        ("crc", "<u4"),  # of this first line
        ("inode_limit", "<u8"),  # inodes [1, limit) of the table are valid; journalled
        ("reserved", "V48"),
        ("mounted", "<u8"),  # 1 while a daemon has it read-write
        ("mount_count", "<u8"),
        ("last_mount", "<i8"),
        ("last_check", "<i8"),
        ("changing", "<u8"),  # 1 while superblock and backup are replaced, one after the other
        ("reserved2", "V24"),
    ]
)

# In page STATE_PFN at POISON_AT: a head, all zeros where no page was ever poisoned, then entries. Journalled.
POISON_HEAD = np.dtype(
    [
        ("magic", "<u4"),
        ("crc", "<u4"),  # of head and entries
        ("count", "<u4"),
        ("reserved", "V52"),
    ]
)
POISON_ENTRY = np.dtype(
    [
        ("ino", "<u4"),  # 0: pages of the region; else of that inode's own range
        ("generation", "<u4"),
        ("page", "<u4"),
        ("pages", "<u4"),
    ]
)
POISON_AT = 128
POISON_MAX = (PAGE_SIZE - POISON_AT - POISON_HEAD.itemsize) // POISON_ENTRY.itemsize

# First page of the journal; the ring of records follows.
JOURNAL = np.dtype(
    [
        ("magic", "<u4"),
        ("crc", "<u4"),  # of this first line
        ("ring_pages", "<u8"),
        ("reserved", "V48"),
        ("tail", "<u8"),  # lsn in the low 48 bits, their check in the high 16: one 8-byte store
        ("reserved2", "V56"),
    ]
)
RECORD = np.dtype(
    [
        ("magic", "<u4"),
        ("crc", "<u4"),  # of the whole record with this word zero
        ("lsn", "<u8"),  # position in the endless log; ring offset is lsn modulo ring size
        ("length", "<u4"),  # bytes to the next record, a multiple of 64
        ("count", "<u4"),  # entries; 0: the rest of the ring's last lap is skipped
        ("reserved", "<u8"),
    ]
)
ENTRY = np.dtype([("place", "<u8"), ("length", "<u4"), ("kind", "<u4")])
ENTRY_BYTES, ENTRY_ZERO = 0, 1

EXTENT = np.dtype([("pgoff", "<u4"), ("len", "<u4"), ("pfn", "<u8")])  # state in bits 48-49 of pfn
EXTENT_STATE_SHIFT = 48
EXTENT_PFN_MASK = (1 << 48) - 1

# The first line changes by single 8-byte stores and has no checksum; the rest is `crc`-covered.
INODE = np.dtype(
    [
        ("size", "<u8"),
        ("atime", "<i8"),  # all times: ns since the epoch
        ("mtime", "<i8"),
        ("ctime", "<i8"),
        ("hot_reserved", "V32"),
        ("magic", "<u4"),
        ("crc", "<u4"),
        ("ino", "<u8"),
        ("generation", "<u4"),
        ("mode", "<u4"),  # 0: free
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("nlink", "<u4"),
        ("flags", "<u4"),
        ("rdev", "<u8"),
        ("btime", "<i8"),
        ("parent", "<u8"),  # of a directory
        ("blocks", "<u8"),  # pages: data, extent blocks, xattr run
        ("ext_root", "<u8"),  # pfn of the first extent block, 0: none
        ("xattr_pfn", "<u8"),  # 0: none
        ("xattr_pages", "<u4"),
        ("nextents", "<u4"),
        ("inline", "V96"),  # INLINE_SLOTS extents, or a short symlink's target
    ]
)
INODE_HOT = 64
INODE_COLD = INODE_SIZE - INODE_HOT
INLINE_SIZE = 96
FLAG_TRUNCATING = 1  # blocks beyond size are being freed in several transactions
FLAG_PREALLOC = 2  # written pages may lie behind the end (meta/prealloc.py), of an open file or of a crash
FLAG_OWN = 4  # data are in a range of its own (range_name), the inode has no extents; regular files only
FLAGS_KNOWN = FLAG_TRUNCATING | FLAG_PREALLOC | FLAG_OWN

# What a user sets (chattr, FS_IOC_FSSETXATTR): bits 8 and up; the low ones above are the file system's own.
FLAG_DAX = 1 << 8  # regular files and directories
FLAG_NODUMP = 1 << 9
FLAG_NOATIME = 1 << 10
FLAG_SYNC = 1 << 11  # regular files and directories
FLAGS_ANY = FLAG_NODUMP | FLAG_NOATIME  # what every type of inode may have
FLAGS_USER = FLAGS_ANY | FLAG_DAX | FLAG_SYNC

# Header of each metadata block outside the fixed areas: it says whose it is, so a swapped one is noticed.
BLOCK = np.dtype(
    [
        ("magic", "<u4"),
        ("crc", "<u4"),  # of `length` bytes with this word zero
        ("kind", "<u4"),
        ("generation", "<u4"),
        ("owner", "<u8"),
        ("index", "<u8"),  # page of the directory; place in the chain of extent blocks
        ("self_pfn", "<u8"),  # of this block
        ("next", "<u8"),  # extent blocks: pfn of the next, 0 at the end
        ("length", "<u4"),  # bytes that the checksum covers
        ("count", "<u4"),  # xattr run: entries
        ("reserved", "<u8"),
    ]
)
BLOCK_DIR, BLOCK_EXTENT, BLOCK_XATTR = 1, 2, 3
BLOCK_SIZE = 64
BLOCK_SLOTS = (PAGE_SIZE - BLOCK_SIZE) // EXTENT.itemsize

DIRENT = np.dtype(
    [("ino", "<u8"), ("rec_len", "<u2"), ("name_len", "<u2"), ("type", "u1"), ("reserved", "V3")]
)
DIRENT_SIZE = 16
DIRENT_MAX = DIRENT_SIZE + 256

XATTR_ENTRY = np.dtype(
    [("space", "u1"), ("name_len", "u1"), ("reserved", "<u2"), ("value_len", "<u4")]
)
XATTR_USER, XATTR_ACL_ACCESS, XATTR_ACL_DEFAULT, XATTR_TRUSTED, XATTR_SECURITY = 1, 2, 3, 4, 6

RANGES_NAME = "ranges"  # the folder of own ranges in a pool directory


def range_name(ino: int, generation: int) -> str:
    """The file of an inode's own range, in RANGES_NAME: the generation tells it from an earlier inode's."""
    return f"{ino:x}-{generation:x}"


def range_owner(name: str) -> tuple[int, int] | None:
    """(ino, generation) that `range_name` made *name* of; None where it is no such name."""
    ino, _, generation = name.partition("-")
    try:
        owner = int(ino, 16), int(generation, 16)
    except ValueError:
        return None
    return owner if range_name(*owner) == name else None


for _dtype, _size in (
    (SUPERBLOCK, PAGE_SIZE),
    (SOURCE_ENTRY, 32),
    (SOURCE_LABEL, 128),
    (STATE, POISON_AT),
    (POISON_HEAD, 64),
    (POISON_ENTRY, 16),
    (JOURNAL, 128),
    (RECORD, 32),
    (ENTRY, 16),
    (EXTENT, 16),
    (INODE, INODE_SIZE),
    (BLOCK, BLOCK_SIZE),
    (DIRENT, DIRENT_SIZE),
    (XATTR_ENTRY, 8),
):
    if _dtype.itemsize != _size:
        raise AssertionError(f"layout: {_dtype} has {_dtype.itemsize} bytes, not {_size}")


class Fields:
    """A ``struct`` codec derived from a flat dtype.

    ``offset[name]`` is the byte offset of a field, ``codec[name]`` its
    ``struct.Struct``; `unpack` gives all fields in order, ``index[name]`` their place.
    """

    _CODES = {
        "<u8": "Q", "<i8": "q", "<u4": "I", "<i4": "i", "<u2": "H", "|u1": "B",
    }  # fmt: skip

    def __init__(self, dtype: np.dtype, first: str | None = None):
        names = list(dtype.names)
        names = names[names.index(first) :] if first else names
        self.names = [n for n in names if dtype.fields[n][0].shape == ()]
        base = dtype.fields[names[0]][1]
        codes = []
        self.offset, self.codec, self.index = {}, {}, {}
        for place, name in enumerate(self.names):
            kind, offset = dtype.fields[name][:2]
            code = self._CODES.get(kind.str) or f"{kind.itemsize}s"
            codes.append(code)
            self.offset[name] = offset
            self.codec[name] = struct.Struct("<" + code)
            self.index[name] = place
        self.struct = struct.Struct("<" + "".join(codes))
        self.base = base
        self.unpack_from = self.struct.unpack_from
        self.pack = self.struct.pack


INODE_FIELDS = Fields(INODE)
BLOCK_FIELDS = Fields(BLOCK)
RECORD_FIELDS = Fields(RECORD)
STATE_FIELDS = Fields(STATE)
JOURNAL_FIELDS = Fields(JOURNAL)

EXTENT_CODEC = struct.Struct("<IIQ")
DIRENT_CODEC = struct.Struct("<QHHB3x")
ENTRY_CODEC = struct.Struct("<QII")
POISON_HEAD_CODEC = struct.Struct("<III52x")
POISON_CODEC = struct.Struct("<IIII")
XATTR_CODEC = struct.Struct("<BBHI")
WORD = struct.Struct("<Q")

if INODE_FIELDS.struct.size != INODE_SIZE or BLOCK_FIELDS.struct.size != BLOCK_SIZE:
    raise AssertionError("layout: a codec does not cover its dtype")


def crc32c(data: bytes, seed: int = 0) -> int:
    """CRC-32C of *data* (bytes), continued from *seed*.

    Metadata use the region's own seed (`crc_seed`), so that what an earlier
    format left behind on the same medium never looks valid.
    """
    return google_crc32c.extend(seed, data)


def crc_seed(uuid: bytes) -> int:
    """The seed of all metadata checksums of the region with this UUID."""
    return google_crc32c.value(uuid)


def seal(data: bytearray, offset: int, seed: int) -> None:
    """Fill in the crc word at *offset* of *data* (computed with that word zero)."""
    data[offset : offset + 4] = b"\0\0\0\0"
    crc = google_crc32c.extend(seed, bytes(data))
    data[offset : offset + 4] = crc.to_bytes(4, "little")


def sealed(data: bytearray, offset: int, seed: int) -> bytes:
    """*data* as bytes, sealed as `seal` does it."""
    seal(data, offset, seed)
    return bytes(data)


def is_sealed(data, offset: int, seed: int) -> bool:
    """True where the crc word at *offset* of *data* (any buffer) is right."""
    copy = bytearray(data)
    crc = int.from_bytes(copy[offset : offset + 4], "little")
    copy[offset : offset + 4] = b"\0\0\0\0"
    return google_crc32c.extend(seed, bytes(copy)) == crc


def tail_word(lsn: int) -> int:
    """The journal's tail word: *lsn* (48 bits) with its own check above it."""
    return lsn | (google_crc32c.value(lsn.to_bytes(8, "little")) & 0xFFFF) << 48


def tail_lsn(word: int) -> int | None:
    """The lsn of a tail word, or None where its check is wrong."""
    lsn = word & ((1 << 48) - 1)
    return lsn if tail_word(lsn) == word else None
