# SPDX-License-Identifier: MIT
"""Flags that users set on inodes: stored in one record, handed down, honoured, known to fsck."""

import errno
import json
import lzma

import populate
import pytest
from images import make_images

from daxfs import layout as L
from daxfs.meta import attr, file
from daxfs.meta import fs as meta_fs
from daxfs.meta import namespace as ns
from daxfs.meta.check import check_region
from daxfs.pfn import PAGE_SIZE
from daxfs.region import Region

ROOT = L.ROOT_INO
TYPES = {"file": 0o100644, "dir": 0o040755, "symlink": 0o120777, "fifo": 0o010600, "device": 0o020600}


def make(fs, name=b"f", mode=0o100644, parent=ROOT):
    return ns.create(fs, parent, name, mode, ns.ROOT, target=b"there" if mode >> 12 == 0o12 else b"").ino


def flags_of(fs, ino):
    return fs.inodes.read(ino).flags


def test_set_and_clear_survive_a_crash(small_fs, crash_copy, fsck):
    ino = make(small_fs)
    records, ctime = small_fs.journal.records, small_fs.inodes.read(ino).ctime
    attr.set_flags(small_fs, ino, L.FLAG_DAX | L.FLAG_NODUMP)
    assert small_fs.journal.records == records + 1
    after = crash_copy(small_fs)
    assert flags_of(after, ino) == L.FLAG_DAX | L.FLAG_NODUMP and after.sb.compat & L.COMPAT_FLAGS
    assert after.inodes.read(ino).ctime > ctime
    attr.set_flags(after, ino, 0)
    assert flags_of(crash_copy(after), ino) == 0
    fsck(small_fs)
    fsck(after)


def test_a_region_without_flags_has_no_feature_bit(small_fs):
    ino = make(small_fs)
    attr.set_flags(small_fs, ino, 0)
    assert not small_fs.sb.compat


def test_the_file_systems_own_flags_stay(small_fs):
    ino = make(small_fs)
    with small_fs.begin() as tx:
        tx.inode(ino).flags = L.FLAG_TRUNCATING
    attr.set_flags(small_fs, ino, L.FLAG_SYNC)
    assert flags_of(small_fs, ino) == L.FLAG_TRUNCATING | L.FLAG_SYNC
    attr.set_flags(small_fs, ino, 0)
    assert flags_of(small_fs, ino) == L.FLAG_TRUNCATING


def test_content_stays(small_fs, crash_copy):
    node = small_fs.open(make(small_fs))
    plan = file.prepare_write(small_fs, node, 0, PAGE_SIZE)
    for _, count, pfn in plan.fresh:
        small_fs.region.nt_fill(pfn * PAGE_SIZE, 7, count * PAGE_SIZE)
    plan.commit(small_fs.clock())
    extents = node.map.extents()
    attr.set_flags(small_fs, node.ino, L.FLAG_DAX)
    after = crash_copy(small_fs)
    assert after.node(node.ino).map.extents() == extents == node.map.extents()
    assert after.inodes.read(node.ino).size == PAGE_SIZE


@pytest.mark.parametrize("kind", TYPES)
def test_types(small_fs, kind, fsck):
    """What a type may have: all on files and directories, elsewhere what does not speak of content."""
    ino = make(small_fs, mode=TYPES[kind])
    allowed = L.FLAGS_USER if kind in ("file", "dir") else L.FLAG_NODUMP | L.FLAG_NOATIME
    attr.set_flags(small_fs, ino, allowed)
    assert flags_of(small_fs, ino) == allowed
    for bit in (L.FLAG_DAX, L.FLAG_SYNC):
        if not allowed & bit:
            with pytest.raises(OSError) as caught:
                attr.set_flags(small_fs, ino, bit)
            assert caught.value.errno == errno.EINVAL and flags_of(small_fs, ino) == allowed
    fsck(small_fs)


@pytest.mark.parametrize("kind", TYPES)
def test_directories_hand_them_down(small_fs, kind, crash_copy, fsck):
    parent = make(small_fs, b"d", 0o040755)
    attr.set_flags(small_fs, parent, L.FLAGS_USER)
    ino = make(small_fs, b"n", TYPES[kind], parent)
    wanted = L.FLAGS_USER if kind in ("file", "dir") else L.FLAG_NODUMP | L.FLAG_NOATIME
    assert flags_of(small_fs, ino) == wanted == flags_of(crash_copy(small_fs), ino)
    fsck(small_fs)


def test_only_when_made(small_fs):
    """A rename and a link into the directory change nothing; a directory without flags hands none down."""
    parent, ino = make(small_fs, b"d", 0o040755), make(small_fs)
    attr.set_flags(small_fs, parent, L.FLAG_DAX)
    ns.link(small_fs, ino, parent, b"second")
    ns.rename(small_fs, ROOT, b"f", parent, b"f")
    assert flags_of(small_fs, ino) == 0 == flags_of(small_fs, make(small_fs, b"g"))


def test_noatime(small_fs):
    small_fs.atime = "strictatime"
    ino = make(small_fs)
    attr.touch_read(small_fs, ino)
    before = small_fs.inodes.read(ino).atime
    attr.set_flags(small_fs, ino, L.FLAG_NOATIME)
    attr.touch_read(small_fs, ino)
    assert small_fs.inodes.read(ino).atime == before
    attr.set_flags(small_fs, ino, 0)
    attr.touch_read(small_fs, ino)
    assert small_fs.inodes.read(ino).atime > before


def test_the_frozen_image(tmp_path):
    """An image of the first version that had flags: all of them, a torn superblock that mount mends."""
    path = make_images.unpack("rev1-flags", str(tmp_path / "image"))
    want = json.loads(lzma.decompress((make_images.HERE / "rev1-flags.json.xz").read_bytes()))
    with Region.open([path], "rw") as region:
        report = check_region(region, mend=True)
        assert not report.problems and report.notes
        fs = meta_fs.mount(region)
        assert fs.sb.label == b"cut short" and fs.sb.compat == L.COMPAT_FLAGS
        assert make_images.describe(populate.tree(fs)) == want
        assert populate.lookup(fs, b"/file").flags == L.FLAG_DAX | L.FLAG_NODUMP
        assert populate.lookup(fs, b"/dir").flags == L.FLAGS_USER
        assert populate.lookup(fs, b"/fifo").flags == L.FLAG_NOATIME
        assert populate.lookup(fs, b"/dir/heir").flags == L.FLAGS_USER
        assert populate.lookup(fs, b"/dir/link").flags == L.FLAG_NODUMP | L.FLAG_NOATIME


@pytest.mark.parametrize("ino", [0, 60, 1 << 40])
def test_numbers_that_are_no_inode(small_fs, ino):
    with pytest.raises(OSError) as caught:
        attr.set_flags(small_fs, ino, L.FLAG_DAX)
    assert caught.value.errno == errno.ESTALE and not small_fs.sb.compat


def test_read_only(small_fs):
    ino = make(small_fs)
    small_fs.readonly = True
    with pytest.raises(OSError) as caught:
        attr.set_flags(small_fs, ino, L.FLAG_DAX)
    assert caught.value.errno == errno.EROFS
