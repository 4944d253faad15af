# SPDX-License-Identifier: MIT
"""Label and feature words of a mounted region: change, and what a power failure in it leaves."""

import errno

import pytest

from daxfs import layout as L
from daxfs.meta import fs as meta_fs
from daxfs.meta import mkfs, superblock
from daxfs.meta.check import check_region, was_unmounted
from daxfs.pfn import PAGE_SIZE
from daxfs.testing import crash_test

OLD, NEW = b"the old label", b"a new one that is longer than eight bytes and crosses a line"
BACKUP = 2048 - 1
CHANGING = L.STATE_PFN * PAGE_SIZE + L.STATE_FIELDS.offset["changing"]


def page(fs, pfn):
    return bytes(fs.mem[pfn * PAGE_SIZE : (pfn + 1) * PAGE_SIZE])


def test_change_reaches_superblock_and_backup(small_fs, fsck, crash_copy):
    small_fs.change_superblock(label=NEW, compat=L.COMPAT_FLAGS)
    assert page(small_fs, 0) == page(small_fs, small_fs.sb.backup_pfn) == small_fs.sb.pack()
    sb = crash_copy(small_fs).sb
    assert sb.label == NEW and sb.compat == L.COMPAT_FLAGS and sb.uuid == small_fs.sb.uuid
    fsck(small_fs)


def test_what_this_version_does_not_know_is_kept(small_fs):
    """Bytes in the reserved part are a later version's, that a compat bit lets us overlook."""
    raw = bytearray(page(small_fs, 0))
    raw[1000:1004] = b"more"
    small_fs.region.nt_store(0, L.sealed(raw, 12, 0))
    small_fs.change_superblock(label=b"x")
    assert page(small_fs, 0)[1000:1004] == page(small_fs, small_fs.sb.backup_pfn)[1000:1004] == b"more"


def test_read_only_and_shut_down(small_fs):
    small_fs.readonly = True
    with pytest.raises(OSError) as caught:
        small_fs.change_superblock(label=b"x")
    assert caught.value.errno == errno.EROFS
    small_fs.readonly = False
    small_fs.shutdown(False)
    with pytest.raises(OSError) as caught:
        small_fs.change_superblock(label=b"x")
    assert caught.value.errno == errno.EIO and small_fs.sb.label == b""


def make(region):
    mkfs.make(region, mkfs.plan(region, label=OLD, uuid=b"0123456789abcdef"))
    meta_fs.mount(region)


def relabel(region, op):
    fs = meta_fs.FileSystem(region, superblock.read(region))
    with op("relabel"):
        fs.change_superblock(label=NEW)


def check_label(region, returned, in_flight):
    """One whole label, mountable, fsck finds nothing; the new one if the change returned."""
    fs = meta_fs.mount(region)
    assert fs.sb.label == NEW if returned else fs.sb.label in (OLD, NEW)
    assert page(fs, 0) == page(fs, BACKUP) and not fs.mem[CHANGING]


def check_fsck(region, returned, in_flight):
    """The same without a mount before: a change that was cut short is no damage."""
    report = check_region(region)
    assert not report.problems, report.problems
    check_label(region, returned, in_flight)


@pytest.mark.parametrize("check", [check_label, check_fsck])
@pytest.mark.parametrize("granularity", ["cache_line", "page"])
def test_power_failures(check, granularity):
    result = crash_test(relabel, check, size=8 << 20, setup=make, recover=superblock.settle, limit=40,
                        granularity=granularity)
    assert result.ok, str(result)
    assert result.images > (30 if granularity == "page" else 100)


def test_both_labels_are_seen():
    """The images are of both sorts, so the test above can fail."""
    seen = set()

    def look(region, returned, in_flight):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(superblock, "settle", lambda region: False)
            try:
                seen.add(meta_fs.mount(region).sb.label)
            except OSError as error:
                seen.add(type(error).__name__)

    crash_test(relabel, look, size=8 << 20, setup=make, limit=40)
    assert seen == {OLD, NEW, "CorruptError"}


@pytest.mark.parametrize("without", [0, 1, 2])
def test_each_drain_is_needed(without, monkeypatch):
    """Left out one by one, the drains of `change` but the last let torn or lost superblocks through."""

    def hasty(region, op):
        fs = meta_fs.FileSystem(region, superblock.read(region))

        class Lazy:
            def __getattr__(self, name):
                return getattr(region, name)

            def __init__(self):
                self.drains = 0

            def drain(self):
                self.drains += 1
                if self.drains - 1 != without:
                    # Order: as the code under test says, but for the one that is left out.
                    region.drain()

        with op("relabel"):
            superblock.change(Lazy(), meta_fs.dataclasses.replace(fs.sb, label=NEW))

    result = crash_test(hasty, check_fsck, size=8 << 20, setup=make, recover=superblock.settle, limit=60)
    assert not result.ok


def test_damage_is_no_change_that_was_cut_short(small_fs, maker):
    """Without the mark a damaged label stays fsck's business."""
    small_fs.change_superblock(label=NEW)
    region = maker.copy(small_fs.region)
    region.store(60, b"\xff")
    assert not superblock.settle(region)
    with pytest.raises(OSError, match="checksum"):
        superblock.read(region)


def test_a_mark_without_a_superblock_changes_nothing(small_fs, maker):
    region = maker.copy(small_fs.region)
    region.store(CHANGING, b"\1")
    region.store(0, bytes(8))
    before = bytes(region.mem)
    assert not superblock.settle(region) and bytes(region.mem) == before
    region.store(0, L.SB_MAGIC)
    region.store(60, b"\xff")
    region.store(small_fs.sb.backup_pfn * PAGE_SIZE + 60, b"\xff")
    before = bytes(region.mem)
    assert not superblock.settle(region) and bytes(region.mem) == before


def test_a_marked_region_is_not_clean(small_fs, maker):
    small_fs.unmount()
    region = maker.copy(small_fs.region)
    assert was_unmounted(region)
    region.store(CHANGING, b"\1")
    assert not was_unmounted(region)
    assert superblock.settle(region) and was_unmounted(region)
