# SPDX-License-Identifier: MIT
"""The list of poisoned pages on media: as a set of pages, its bytes, and what changes it."""

import errno
import itertools
import json
import lzma

import populate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import make_images

from daxfs import layout as L
from daxfs.errors import CorruptError, DaxfsError
from daxfs.meta import attr, fallocate, file, poison, xattr
from daxfs.meta import fs as meta_fs
from daxfs.meta import namespace as ns
from daxfs.meta.check import check_region
from daxfs.pfn import PAGE_SHIFT, PAGE_SIZE
from daxfs.region import Region

OWNERS = (poison.PACKED, (7, 1), (7, 2))
RANGES = st.tuples(st.sampled_from(OWNERS), st.integers(0, 60), st.integers(1, 20))
STEPS = st.lists(st.tuples(st.booleans(), RANGES), max_size=30)


def pages(runs) -> set:
    return {(run[:2], page) for run in runs for page in range(run[2], run[3])}


@settings(max_examples=300)
@given(STEPS)
def test_as_a_set_of_pages(steps):
    runs, want = [], set()
    for add, (owner, first, count) in steps:
        these = {(owner, page) for page in range(first, first + count)}
        want = want | these if add else want - these
        runs = (poison.added if add else poison.removed)(runs, owner, first, first + count)
        assert pages(runs) == want
        assert runs == sorted(runs)
        for one, two in itertools.pairwise(runs):
            assert one[:2] != two[:2] or one[3] < two[2], "neighbours are one run"
        for other in OWNERS:
            hits = poison.hits(runs, other, 10, 40)
            assert {page for hit in hits for page in range(*hit)} == {
                page for who, page in want if who == other and 10 <= page < 40}
    body = poison.encode(runs, 5)
    assert poison.decode(bytes(poison.PLACE) + body + bytes(64), 5) == runs


@given(st.lists(RANGES, min_size=1, max_size=9), st.integers(0), st.integers(1, 255))
def test_a_changed_byte_is_seen(ranges, at, flip):
    runs = []
    for owner, first, count in ranges:
        runs = poison.added(runs, owner, first, first + count)
    mem = bytearray(bytes(poison.PLACE) + poison.encode(runs, 5))
    mem[poison.PLACE + at % (len(mem) - poison.PLACE)] ^= flip
    with pytest.raises(CorruptError):
        poison.decode(bytes(mem), 5)


def written(fs, count=8, name=b"f"):
    """The Node of an open file with *count* pages of data."""
    node = fs.open(ns.create(fs, L.ROOT_INO, name, 0o100644, ns.ROOT).ino)
    plan = file.prepare_write(fs, node, 0, count * PAGE_SIZE)
    for _, length, pfn in plan.fresh:
        fs.region.nt_fill(pfn << PAGE_SHIFT, 7, length << PAGE_SHIFT)
    plan.commit(fs.clock())
    return node


def spoil(fs, node, first, count=1):
    return poison.add(fs, poison.places(fs, first * PAGE_SIZE, count * PAGE_SIZE, node.ino))


def error(call, *args) -> str:
    with pytest.raises(DaxfsError) as caught:
        call(*args)
    return errno.errorcode[caught.value.errno]


def test_add_and_clear_survive_a_crash(small_fs, crash_copy, fsck):
    node = written(small_fs)
    assert not small_fs.sb.ro_compat
    assert spoil(small_fs, node, 2, 3) == 3 and spoil(small_fs, node, 4, 2) == 1
    after = crash_copy(small_fs)
    assert after.poison.runs == small_fs.poison.runs and after.poison.pages == 4
    assert after.sb.ro_compat == L.RO_COMPAT_POISON
    records = after.journal.records
    assert poison.clear(after, poison.places(after, 3 * PAGE_SIZE + 1, 1, node.ino)) == 1
    assert after.journal.records == records + 1
    again = crash_copy(after)
    start = again.node(node.ino).map.extents()[0][2]
    assert [run[2:] for run in again.poison.runs] == [(start + 2, start + 3), (start + 4, start + 6)]
    fsck(again)
    assert poison.clear(again, [(poison.PACKED, 0, 1 << 32)]) == 3 and not again.poison
    assert not crash_copy(again).poison
    fsck(again)


def test_adding_twice_is_one_entry(small_fs):
    node = written(small_fs)
    assert spoil(small_fs, node, 1, 2) == 2
    records = small_fs.journal.records
    assert spoil(small_fs, node, 1, 2) == 0 and small_fs.journal.records == records
    assert spoil(small_fs, node, 3) == 1 and len(small_fs.poison.runs) == 1


@pytest.mark.parametrize("image", ["rev1", "rev1-killed", "rev1-flags", "rev1-own", "rev1-own-killed"])
def test_regions_of_before_have_none(image, tmp_path):
    path = make_images.unpack(image, str(tmp_path / "image"))
    with Region.open([path], "cow") as region:
        assert check_region(region).status == 0
    with Region.open([path]) as region:
        fs = meta_fs.mount(region)
        assert not fs.poison and not fs.sb.ro_compat
        fs.unmount()


def test_the_frozen_image(tmp_path):
    """An image of the first version that had a list: what replay makes of it, and whose the pages are."""
    path = make_images.unpack("rev1-poison", str(tmp_path / "image"))
    want = json.loads(lzma.decompress((make_images.HERE / "rev1-poison.json.xz").read_bytes()))
    with Region.open([path]) as region:
        report = check_region(region, mend=True)
        assert not report.problems and report.replayed and len(report.notes) == 2
        fs = meta_fs.mount(region)
        assert fs.sb.ro_compat == L.RO_COMPAT_POISON and fs.poison.pages == 4
        for name in (b"/sparse", b"/file"):
            node = fs.node(populate.lookup(fs, name).ino)
            assert list(fs.poison.of_file(node, 0, 1 << 32)) == [(0, 1)]
        assert make_images.describe(populate.tree(fs)) == want
        fs.unmount()


def gone(fs, node):
    attr.setattr(fs, node.ino, {"size": 0})


def cut(fs, node):
    attr.setattr(fs, node.ino, {"size": 2 * PAGE_SIZE})


def unlinked(fs, node):
    ns.unlink(fs, L.ROOT_INO, b"f")
    fs.release(node)


def punched(fs, node):
    fallocate.fallocate(fs, node, 3, 2 * PAGE_SIZE, 3 * PAGE_SIZE, fs.clock())


def zeroed(fs, node):
    fallocate.fallocate(fs, node, 16, 2 * PAGE_SIZE, 3 * PAGE_SIZE, fs.clock())


@pytest.mark.parametrize("give_up", [gone, cut, unlinked, punched, zeroed])
def test_pages_that_are_given_up_are_zeroed_and_good(small_fs, give_up, crash_copy, fsck):
    node = written(small_fs)
    spoil(small_fs, node, 2, 3)
    ((*_, first, last),) = small_fs.poison.runs
    give_up(small_fs, node)
    assert not small_fs.poison
    after = crash_copy(small_fs)
    assert not after.poison
    assert not any(after.mem[first << PAGE_SHIFT : last << PAGE_SHIFT])
    fsck(small_fs)


def test_a_crash_before_the_record_keeps_the_poison(small_fs, crash_copy, monkeypatch):
    node = written(small_fs)
    spoil(small_fs, node, 2, 3)

    def fail(entries):
        raise OSError(errno.EIO, "planted")

    monkeypatch.setattr(small_fs.journal, "commit", fail)
    with pytest.raises(OSError, match="planted"):
        cut(small_fs, node)
    assert small_fs.poison.pages == 3 == crash_copy(small_fs).poison.pages


def test_free_pages_are_good_once_they_are_taken(small_fs, fsck):
    start, count = max(small_fs.alloc.runs(), key=lambda run: run[1])
    poison.add(small_fs, [(poison.PACKED, start, start + count)])
    node = written(small_fs, 16)
    assert small_fs.poison.pages == count - 16
    fallocate.fallocate(small_fs, node, 0, 1 << 20, 1 << 16, small_fs.clock())
    assert small_fs.poison.pages == count - 32
    assert not list(small_fs.poison.of_file(node, 0, 1 << 20))
    ns.create(small_fs, L.ROOT_INO, b"d", 0o040755, ns.ROOT)
    xattr.put(small_fs, node.ino, b"user.a", b"x" * 5000)
    assert xattr.get(small_fs, node.ino, b"user.a") == b"x" * 5000
    fsck(small_fs)


def test_the_list_is_bounded(small_fs, crash_copy):
    node = written(small_fs, 600)
    most = L.POISON_MAX - poison.SPARE
    for n in range(most):
        spoil(small_fs, node, 2 * n)
    assert error(spoil, small_fs, node, 599) == "ENOSPC" and len(small_fs.poison.runs) == most
    assert spoil(small_fs, node, 1) == 1, "makes one run of two"
    spoil(small_fs, node, 599)
    spoil(small_fs, node, 0, 2 * most)
    assert len(small_fs.poison.runs) == 2
    for n in range(L.POISON_MAX - 2):
        punch_one(small_fs, node, 1 + n * 2 if n < most - 1 else None)
    assert crash_copy(small_fs).poison.runs == small_fs.poison.runs


def punch_one(fs, node, page):
    if page is not None:
        fallocate.fallocate(fs, node, 3, page * PAGE_SIZE, PAGE_SIZE, fs.clock())


def test_full_means_that_no_run_can_be_split(small_fs):
    node = written(small_fs, 600)
    spoil(small_fs, node, 0, 600)
    for n in range(L.POISON_MAX - 1):
        punch_one(small_fs, node, 2 * n + 1)
    assert len(small_fs.poison.runs) == L.POISON_MAX
    before = node.map.extents()
    assert error(punch_one, small_fs, node, 550) == "ENOSPC" and node.map.extents() == before
    assert error(small_fs.poison.covered, node, 550 * PAGE_SIZE, PAGE_SIZE) == "ENOSPC"
    cut(small_fs, node)
    assert small_fs.poison.pages == 1


def test_metadata_need_force(small_fs, crash_copy):
    sub = ns.create(small_fs, L.ROOT_INO, b"d", 0o040755, ns.ROOT).ino
    ns.create(small_fs, sub, b"in", 0o100644, ns.ROOT)
    link = ns.create(small_fs, L.ROOT_INO, b"s", 0o120777, ns.ROOT, target=b"t" * 300).ino
    node = written(small_fs)
    xattr.put(small_fs, node.ino, b"user.a", b"x" * 500)
    for ino in (sub, link):
        pfn = small_fs.node(ino).map.extents()[0][2]
        assert error(poison.add, small_fs, [(poison.PACKED, pfn, pfn + 1)]) == "EPERM"
        poison.add(small_fs, [(poison.PACKED, pfn, pfn + 1)], force=True)
    pfn = small_fs.inodes.read(node.ino).xattr_pfn
    assert error(poison.add, small_fs, [(poison.PACKED, pfn, pfn + 1)]) == "EPERM"
    poison.add(small_fs, [(poison.PACKED, pfn, pfn + 1)], force=True)
    after = crash_copy(small_fs)
    assert error(ns.lookup, after, sub, b"in") == "EUCLEAN"
    assert error(ns.readlink, after, link) == "EUCLEAN"
    assert error(xattr.get, after, node.ino, b"user.a") == "EUCLEAN"
    assert after.inodes.read(sub).nlink == 2
    poison.clear(after, [(poison.PACKED, 0, 1 << 32)])
    assert ns.lookup(after, sub, b"in") and ns.readlink(after, link) == b"t" * 300
    assert xattr.get(after, node.ino, b"user.a") == b"x" * 500


@pytest.mark.parametrize("area", ["superblock", "state page", "journal", "backup superblock", "inode table"])
def test_poison_where_a_mount_needs_it(small_fs, area, maker):
    sb = small_fs.sb
    areas = {name: (first, last) for name, first, last in poison.fixed_areas(sb)}
    areas["inode table"] = (sb.inode_pfn, sb.inode_pfn + 1)
    runs = [(poison.PACKED, *areas[area])]
    assert error(poison.add, small_fs, runs) == "EPERM"
    poison.add(small_fs, runs, force=True)
    call = small_fs.inodes.read if area == "inode table" else ns.create
    args = (L.ROOT_INO,) if area == "inode table" else (small_fs, 1, b"x", 0o100644, ns.ROOT)
    assert error(call, *args) in ("EUCLEAN", "EIO")
    region = maker.copy(small_fs.region)
    with pytest.raises(CorruptError, match="poisoned"):
        meta_fs.mount(region)
    poison.clear(small_fs, runs)
    ns.create(small_fs, L.ROOT_INO, b"x", 0o100644, ns.ROOT)
    maker.fsck(small_fs)


def test_a_read_only_mount_without_some_inodes(small_fs, maker):
    """Poison in the inode table: what is whole can be copied out, the others answer an error."""
    inos = [ns.create(small_fs, L.ROOT_INO, b"%d" % n, 0o100644, ns.ROOT).ino for n in range(40)]
    page = small_fs.inodes.place(32) >> PAGE_SHIFT
    poison.add(small_fs, [(poison.PACKED, page, page + 1)], force=True)
    with pytest.raises(CorruptError):
        meta_fs.mount(maker.copy(small_fs.region))
    with Region.open([maker.copy(small_fs.region).sources[0].path], "cow", lock=False) as region:
        fs = meta_fs.mount(region, readonly=True)
        for ino in inos:
            if 32 <= ino < 48:
                assert error(fs.inodes.read, ino) == "EUCLEAN"
            else:
                assert fs.inodes.read(ino).mode == 0o100644
        fs = None


def test_fsck_names_files_and_is_clean(small_fs, maker):
    node = written(small_fs)
    spoil(small_fs, node, 1, 2)
    spoil(small_fs, node, 5)
    with maker.copy(small_fs.region) as region:
        report = check_region(region, mend=True)
    assert report.status == 0 and report.notes == [f"inode {node.ino}: 3 pages of its data are poisoned"]
    assert report.stats["poisoned pages"] == 3


def test_places_that_are_not_there(small_fs):
    node = written(small_fs, 2)
    size = small_fs.sb.npages * PAGE_SIZE
    assert error(poison.places, small_fs, size, 1) == "EINVAL"
    assert error(poison.places, small_fs, 0, size + 1) == "EINVAL"
    assert error(poison.places, small_fs, 2 * PAGE_SIZE, 1, node.ino) == "EINVAL"
    assert error(poison.places, small_fs, 0, 1, L.ROOT_INO) == "EINVAL"
    assert error(poison.places, small_fs, 0, 1, 999) == "ESTALE"
    attr.setattr(small_fs, node.ino, {"size": 9 * PAGE_SIZE})
    assert error(poison.places, small_fs, 5 * PAGE_SIZE, 1, node.ino) == "ENXIO"
    assert len(poison.places(small_fs, 0, 1 << 40, node.ino)) == 1, "cut at the end of the file"


def test_a_read_only_mount_looks_only(small_fs, maker):
    node = written(small_fs)
    spoil(small_fs, node, 1)
    with Region.open([maker.copy(small_fs.region).sources[0].path], "cow", lock=False) as region:
        fs = meta_fs.mount(region, readonly=True)
        assert fs.poison.pages == 1
        assert error(poison.add, fs, [(poison.PACKED, 600, 601)]) == "EROFS"
        assert error(poison.clear, fs, [(poison.PACKED, 0, 601)]) == "EROFS"
        fs = None
