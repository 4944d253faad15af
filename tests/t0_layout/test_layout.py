# SPDX-License-Identifier: MIT
"""The format is frozen: sizes, offsets, constants and codecs as literal numbers.

A change here means a new FORMAT_REV or feature bit, and a new frozen image.
"""

import numpy as np
import pytest

from daxfs import layout as L

SIZES = {
    "SUPERBLOCK": 4096, "SOURCE_ENTRY": 32, "SOURCE_LABEL": 128, "STATE": 128, "JOURNAL": 128, "RECORD": 32,
    "ENTRY": 16, "EXTENT": 16, "INODE": 256, "BLOCK": 64, "DIRENT": 16, "XATTR_ENTRY": 8,
    "POISON_HEAD": 64, "POISON_ENTRY": 16,
}  # fmt: skip
OFFSETS = {
    "SUPERBLOCK": {
        "magic": 0, "format_rev": 8, "crc": 12, "compat": 16, "ro_compat": 24, "incompat": 32, "uuid": 40,
        "label": 56, "created": 120, "npages": 128, "nsources": 136, "map": 140, "journal_pfn": 144,
        "journal_pages": 152, "inode_pfn": 160, "inode_pages": 168, "map_pfn": 176, "map_pages": 184,
        "data_pfn": 192, "backup_pfn": 200, "reserved": 208, "sources": 2048,
    },
    "SOURCE_ENTRY": {"uuid": 0, "pfn_start": 16, "npages": 24},
    "SOURCE_LABEL": {
        "magic": 0, "format_rev": 8, "crc": 12, "region_uuid": 16, "uuid": 32, "index": 48, "nsources": 52,
        "pfn_start": 56, "npages": 64, "reserved": 72,
    },
    "STATE": {
        "magic": 0, "crc": 4, "inode_limit": 8, "reserved": 16, "mounted": 64, "mount_count": 72,
        "last_mount": 80, "last_check": 88, "changing": 96, "reserved2": 104,
    },
    "JOURNAL": {"magic": 0, "crc": 4, "ring_pages": 8, "reserved": 16, "tail": 64, "reserved2": 72},
    "RECORD": {"magic": 0, "crc": 4, "lsn": 8, "length": 16, "count": 20, "reserved": 24},
    "ENTRY": {"place": 0, "length": 8, "kind": 12},
    "EXTENT": {"pgoff": 0, "len": 4, "pfn": 8},
    "INODE": {
        "size": 0, "atime": 8, "mtime": 16, "ctime": 24, "hot_reserved": 32, "magic": 64, "crc": 68,
        "ino": 72,
        "generation": 80, "mode": 84, "uid": 88, "gid": 92, "nlink": 96, "flags": 100, "rdev": 104,
        "btime": 112, "parent": 120, "blocks": 128, "ext_root": 136, "xattr_pfn": 144, "xattr_pages": 152,
        "nextents": 156, "inline": 160,
    },
    "BLOCK": {
        "magic": 0, "crc": 4, "kind": 8, "generation": 12, "owner": 16, "index": 24, "self_pfn": 32,
        "next": 40,
        "length": 48, "count": 52, "reserved": 56,
    },
    "DIRENT": {"ino": 0, "rec_len": 8, "name_len": 10, "type": 12, "reserved": 13},
    "POISON_HEAD": {"magic": 0, "crc": 4, "count": 8, "reserved": 12},
    "POISON_ENTRY": {"ino": 0, "generation": 4, "page": 8, "pages": 12},
    "XATTR_ENTRY": {"space": 0, "name_len": 1, "reserved": 2, "value_len": 4},
}  # fmt: skip
CONSTANTS = {
    "FORMAT_REV": 1, "SB_MAGIC": b"DAXFS\r\n\x1a", "SOURCE_MAGIC": b"DAXSRC\r\n", "JOURNAL_MAGIC": 0x4A584144,
    "RECORD_MAGIC": 0x52584144, "STATE_MAGIC": 0x53584144, "INODE_MAGIC": 0x49584144,
    "BLOCK_MAGIC": 0x42584144,
    "COMPAT_FLAGS": 1, "COMPAT_KNOWN": 1, "RO_COMPAT_POISON": 1, "RO_COMPAT_KNOWN": 1, "INCOMPAT_OWN": 1,
    "POISON_MAGIC": 0x50584144, "POISON_AT": 128, "POISON_MAX": 244,
    "INCOMPAT_KNOWN": 1, "FLAG_OWN": 4, "RANGES_NAME": "ranges", "MAX_SOURCES": 64, "MAX_FILE_SIZE": 1 << 44,
    "MAX_REGION_PAGES": 1 << 32, "NAME_MAX": 255, "LINK_MAX": 65000, "SYMLINK_MAX": 4095, "ROOT_INO": 1,
    "LABEL_MAX": 64, "SUPERBLOCK_PFN": 0, "STATE_PFN": 1, "INODE_SIZE": 256, "INODES_PER_PAGE": 16,
    "INODE_CHUNK": 64, "INLINE_SLOTS": 6, "MAP_MEM": 0, "MAP_DEV": 1, "ENTRY_BYTES": 0, "ENTRY_ZERO": 1,
    "EXTENT_STATE_SHIFT": 48, "EXTENT_PFN_MASK": (1 << 48) - 1, "INODE_HOT": 64, "INODE_COLD": 192,
    "INLINE_SIZE": 96, "FLAG_TRUNCATING": 1, "FLAG_PREALLOC": 2, "FLAG_DAX": 0x100, "FLAG_NODUMP": 0x200,
    "FLAG_NOATIME": 0x400, "FLAG_SYNC": 0x800, "BLOCK_DIR": 1, "BLOCK_EXTENT": 2, "BLOCK_XATTR": 3,
    "BLOCK_SIZE": 64, "BLOCK_SLOTS": 252, "DIRENT_SIZE": 16, "DIRENT_MAX": 272, "XATTR_USER": 1,
    "XATTR_ACL_ACCESS": 2, "XATTR_ACL_DEFAULT": 3, "XATTR_TRUSTED": 4, "XATTR_SECURITY": 6,
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_structures_are_frozen(name):
    dtype = getattr(L, name)
    assert dtype.itemsize == SIZES[name]
    assert {field: dtype.fields[field][1] for field in dtype.names} == OFFSETS[name]
    for field in dtype.names:
        kind = dtype.fields[field][0].base
        assert kind.str[0] in "<|" or kind.names, f"{field} is not little endian"


def test_every_structure_is_named_here():
    found = {name for name, value in vars(L).items() if isinstance(value, np.dtype) and name.isupper()}
    assert found == set(SIZES) == set(OFFSETS)


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_frozen(name):
    assert getattr(L, name) == CONSTANTS[name]


@pytest.mark.parametrize(
    "fields, dtype",
    [
        (L.INODE_FIELDS, L.INODE), (L.BLOCK_FIELDS, L.BLOCK), (L.RECORD_FIELDS, L.RECORD),
        (L.STATE_FIELDS, L.STATE), (L.JOURNAL_FIELDS, L.JOURNAL),
    ],
)  # fmt: skip
def test_codecs_agree_with_their_dtypes(fields, dtype):
    """Random bytes, read by both; then each field written by its codec, read by numpy."""
    raw = bytearray(np.random.default_rng(1).bytes(dtype.itemsize))
    values = dict(zip(fields.names, fields.unpack_from(raw), strict=True))
    there = np.frombuffer(raw, dtype, 1)[0]
    assert fields.struct.size == dtype.itemsize and fields.names == list(dtype.names)
    for name in fields.names:
        expect = there[name].tobytes() if dtype.fields[name][0].kind == "V" else int(there[name])
        assert values[name] == expect
        assert fields.codec[name].unpack_from(raw, fields.offset[name])[0] == expect
        assert fields.index[name] == fields.names.index(name)
    for name in fields.names:
        if dtype.fields[name][0].kind != "V":
            fields.codec[name].pack_into(raw, fields.offset[name], 7)
    again = np.frombuffer(raw, dtype, 1)[0]
    assert all(int(again[n]) == 7 for n in fields.names if dtype.fields[n][0].kind != "V")


@pytest.mark.parametrize(
    "codec, dtype, values",
    [
        (L.EXTENT_CODEC, L.EXTENT, (1 << 31, 3, 1 << 60 | 5)),
        (L.ENTRY_CODEC, L.ENTRY, (1 << 62, 9, 1)),
        (L.XATTR_CODEC, L.XATTR_ENTRY, (6, 255, 0, 65536)),
    ],
)
def test_small_codecs(codec, dtype, values):
    there = np.frombuffer(codec.pack(*values), dtype, 1)[0]
    assert codec.size == dtype.itemsize and tuple(int(there[n]) for n in dtype.names) == values


def test_dirent_codec():
    there = np.frombuffer(L.DIRENT_CODEC.pack(1 << 40, 272, 255, 8), L.DIRENT, 1)[0]
    assert (there["ino"], there["rec_len"], there["name_len"], there["type"]) == (1 << 40, 272, 255, 8)


def test_crc32c_is_castagnoli():
    """The check value of the CRC catalogue, and RFC 3720 B.4 (32 bytes of zeros)."""
    assert L.crc32c(b"123456789") == 0xE3069283 and L.crc32c(bytes(32)) == 0x8A9136AA
    assert L.crc32c(b"6789", L.crc32c(b"12345")) == L.crc32c(b"123456789")


@pytest.mark.parametrize("offset", [0, 4, 60])
def test_seals(offset):
    data = bytearray(range(64))
    sealed = L.sealed(bytearray(data), offset, 99)
    assert L.is_sealed(sealed, offset, 99) and L.is_sealed(memoryview(sealed), offset, 99)
    assert sealed[:offset] == bytes(data[:offset]) and sealed[offset + 4 :] == bytes(data[offset + 4 :])
    assert L.sealed(bytearray(sealed), offset, 99) == sealed
    assert not L.is_sealed(sealed, offset, 98)
    for byte in range(64):
        broken = bytearray(sealed)
        broken[byte] ^= 0x20
        assert not L.is_sealed(broken, offset, 99), byte


def test_seeds_differ_between_regions():
    assert L.crc_seed(b"a" * 16) != L.crc_seed(b"b" * 16) and L.crc_seed(b"a" * 16) == L.crc_seed(b"a" * 16)


@pytest.mark.parametrize("lsn", [0, 64, 4096, (1 << 48) - 64, 0x123456789ABC])
def test_tail_words(lsn):
    word = L.tail_word(lsn)
    assert 0 <= word < 1 << 64 and word & ((1 << 48) - 1) == lsn and L.tail_lsn(word) == lsn
    assert all(L.tail_lsn(word ^ 1 << bit) is None for bit in range(64))


def test_zeroed_tail_is_no_tail():
    """A tail word that was wiped must not look like the beginning of the log."""
    assert L.tail_lsn(0) is None and L.tail_lsn((1 << 64) - 1) is None
