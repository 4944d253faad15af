# SPDX-License-Identifier: MIT
"""Damage for every named check of fsck.daxfs: data for test_check.py.

`CASES`: (check, whether it is mended, name of the image, function(damage.Damage)) as pytest parameters.
"""

import damage as D
import pytest

from daxfs import layout as L
from daxfs.meta import journal, poison

PAGE = D.PAGE
CASES = []


def case(check: str, mends: bool, image: str = "clean"):
    """Register a damage function for *check*."""

    def keep(function):
        CASES.append(pytest.param(check, mends, image, function, id=f"{check}-{function.__name__}"))
        return function

    return keep


# -- fixed areas ------------------------------------------------------------------------


@case("sb-magic", True)
def zeroed(d):
    d.put(0, bytes(PAGE))


@case("sb-checksum", True)
def one_bit_of_the_label(d):
    d.flip(100)


@case("sb-checksum", False)
def backup_lost_too(d):
    d.flip(100)
    d.put(d.sb.backup_pfn * PAGE, bytes(PAGE))


@case("sb-geometry", True)
def journal_inside_the_state_page(d):
    d.put(0, d.superblock(journal_pfn=1))


@case("sb-geometry", True)
def larger_than_its_source(d):
    big = d.sb.sources[0][2] * 2
    sources = [(d.sb.sources[0][0], 0, big)]
    d.put(0, d.superblock(npages=big, sources=sources, backup_pfn=big - 1, uuid=b"x" * 16))


@case("sb-geometry", True)
def another_regions(d):
    d.put(0, d.superblock(uuid=b"another region's"))


@case("sb-backup", True)
def backup_zeroed(d):
    d.put(d.sb.backup_pfn * PAGE, bytes(PAGE))


@case("sb-backup", True)
def backup_stale(d):
    d.put(d.sb.backup_pfn * PAGE, d.superblock(label=b"earlier"))


@case("source-label", True, "two")
def label_of_second_source(d):
    d.flip(d.sb.sources[1][1] * PAGE + 12)


@case("source-label", False, "two")
def label_gone(d):
    d.put(d.sb.sources[1][1] * PAGE, bytes(PAGE))


@case("journal-header", True)
def header_flipped(d):
    d.flip(d.sb.journal_pfn * PAGE + 9)


@case("journal-tail", True)
def tail_flipped(d):
    d.flip(d.sb.journal_pfn * PAGE + 64)


@case("journal-tail", False)
def tail_flipped_while_mounted(d):
    tail_flipped(d)
    d.put(D.MOUNTED, b"\1")


@case("journal-gap", False, "killed")
def a_record_in_between(d):
    log = journal.Journal(d.region, d.sb.journal_pfn, d.sb.journal_pages, d.seed)
    records = list(log.pending())
    assert len(records) > 3
    d.flip(log.ring + records[1][0] % log.size + 40)


@case("journal-entry", False)
def entry_over_the_superblock(d):
    log = journal.Journal(d.region, d.sb.journal_pfn, d.sb.journal_pages, d.seed)
    lsn = log.check_header()
    d.put(log.ring + lsn % log.size, journal.encode([(0, b"daxfs!!!")], lsn, d.seed))


@case("journal-entry", False)
def entry_outside_the_region(d):
    log = journal.Journal(d.region, d.sb.journal_pfn, d.sb.journal_pages, d.seed)
    lsn = log.check_header()
    d.put(log.ring + lsn % log.size, journal.encode([(1 << 60, 64)], lsn, d.seed))


@case("state-line", True)
def state_flipped(d):
    d.flip(D.STATE + 8)


@case("inode-limit", True)
def limit_behind_the_table(d):
    d.state(1 << 40)


@case("inode-limit", True)
def limit_too_low(d):
    d.state(L.INODE_CHUNK)


# -- inodes -----------------------------------------------------------------------------


@case("root-inode", False)
def root_is_a_file(d):
    d.inode(1, mode=0o100644)


@case("inode-checksum", False)
def owner_flipped(d):
    d.flip(d.place(d.ino(b"/file")) + 88)


@case("inode-number", False)
def wrong_number(d):
    d.inode(b"/file", ino=77)


@case("inode-mode", False)
def unknown_type(d):
    d.inode(b"/file", mode=0o170644)


@case("inode-flags", True)
def unknown_flag(d):
    d.inode(b"/file", flags=0x80)


@case("inode-flags", True)
def truncating_directory(d):
    d.inode(b"/dir", flags=L.FLAG_TRUNCATING)


@case("inode-flags", True)
def user_flags_that_a_fifo_can_not_have(d):
    d.inode(b"/fifo", flags=L.FLAG_NODUMP | L.FLAG_DAX)


@case("inode-size", True)
def fifo_with_a_size(d):
    d.inode(b"/fifo", size=5)


@case("inode-size", True)
def directory_size(d):
    d.inode(b"/big", size=1 << 40)


@case("inode-size", True)
def directory_size_zero(d):
    d.inode(b"/dir", size=0)


@case("inode-size", False)
def file_of_exabytes(d):
    d.inode(b"/file", size=1 << 60)


@case("inode-times", True)
def times_of_a_fifo_wiped(d):
    d.put(d.place(d.ino(b"/fifo")), bytes(64))


@case("inode-times", True)
def reserved_bytes_of_a_directory(d):
    d.put(d.place(d.ino(b"/dir")) + 40, b"stray")


@case("inode-times", False)
def first_line_of_a_file_wiped(d):
    d.put(d.place(d.ino(b"/file")), bytes(64))


@case("inode-free-dirty", True)
def free_inode_with_an_owner(d):
    d.inode(d.facts.free_ino, uid=7)


@case("inode-free-dirty", True)
def free_inode_with_a_size(d):
    d.inode(d.facts.free_ino, size=7)


@case("inode-free-dirty", True)
def inode_zero(d):
    d.put(d.place(0), b"stray bytes")


# -- extents ----------------------------------------------------------------------------


@case("extent-range", False)
def extent_behind_the_region(d):
    d.slot(b"/file", 0, pfn=(1 << 48) - 2)


@case("extent-range", False)
def extent_over_the_journal(d):
    d.slot(b"/file", 0, pfn=d.sb.journal_pfn)


@case("extent-range", False)
def extent_of_no_end(d):
    d.slot(b"/file", 0, length=(1 << 32) - 1)


@case("extent-state", False)
def unknown_state(d):
    d.slot(b"/file", 0, state=3)


@case("extent-overlap", False)
def same_page_twice(d):
    d.slot(b"/sparse", 1, pgoff=0)


@case("extent-shared", False)
def page_of_another_file(d):
    d.slot(b"/file", 0, pfn=d.facts.data[b"/dir/inner"] - 2)


@case("extent-beyond-size", True)
def size_shrank(d):
    d.inode(b"/file", size=100)


@case("extent-beyond-size", True)
def size_of_a_fragmented_file_shrank(d):
    d.inode(b"/sparse", size=5000)


@case("extent-block", False)
def extent_block_flipped(d):
    d.flip(d.facts.chain[1] * PAGE + 100)


@case("extent-block", False)
def chain_in_a_circle(d):
    d.block(d.facts.chain[-1], L.BLOCK_FIELDS.offset["next"], L.WORD.pack(d.facts.chain[0]))


@case("extent-block", False)
def chain_leaves_the_region(d):
    d.block(d.facts.chain[0], L.BLOCK_FIELDS.offset["next"], L.WORD.pack(1 << 63))


@case("extent-block", False)
def chain_of_a_fifo(d):
    d.inode(b"/fifo", ext_root=d.facts.chain[0])


@case("extent-count", True)
def count_wrong(d):
    d.inode(b"/sparse", nextents=3)


@case("blocks-count", True)
def pages_wrong(d):
    d.inode(b"/sparse", blocks=(1 << 64) - 1)


# -- directories ------------------------------------------------------------------------


@case("dir-hole", False)
def directory_page_unwritten(d):
    d.slot(b"/dir", 0, state=1)


@case("dir-block", False)
def directory_block_flipped(d):
    d.flip(d.facts.data[b"/dir"] * PAGE + 3000)


@case("dir-block", False)
def block_of_an_earlier_directory(d):
    d.block(d.facts.data[b"/dir"], L.BLOCK_FIELDS.offset["generation"], b"\x99")


@case("dir-block", False)
def blocks_swapped(d):
    one, two = d.facts.data[b"/dir"] * PAGE, d.facts.data[b"/sparse"] * PAGE
    first, second = d.get(one, PAGE), d.get(two, PAGE)
    d.put(one, second)
    d.put(two, first)


@case("dir-record", False)
def record_of_odd_length(d):
    pfn = d.facts.data[b"/dir"]
    at, _ = d.record(pfn, None)
    d.block(pfn, at + 8, b"\x07\x00")


@case("dir-record", False)
def record_leaves_its_block(d):
    pfn = d.facts.data[b"/dir"]
    at, _ = d.record(pfn, None)
    d.block(pfn, at + 8, b"\xf8\xff")


@case("dir-name", True)
def slash_in_a_name(d):
    pfn = d.facts.data[b"/dir"]
    d.block(pfn, d.record(pfn, b"inner")[0] + L.DIRENT_SIZE, b"in/er")


@case("dir-name", True)
def empty_name(d):
    pfn = d.facts.data[b"/dir"]
    d.block(pfn, d.record(pfn, b"inner")[0] + 10, b"\0\0")


@case("dir-name", True)
def dot_dot(d):
    pfn = d.facts.data[b"/dir"]
    at = d.record(pfn, b"inner")[0]
    d.block(pfn, at + 10, b"\2\0")
    d.block(pfn, at + L.DIRENT_SIZE, b"..")


@case("dir-duplicate", True)
def same_name_same_inode(d):
    d.add_name(b"/dir", b"inner", d.ino(b"/dir/inner"), 8)


@case("dir-duplicate", False)
def same_name_another_inode(d):
    d.add_name(b"/dir", b"inner", d.ino(b"/fifo"), 1)
    d.inode(b"/fifo", nlink=2)


@case("dirent-target", True)
def name_of_a_free_inode(d):
    d.add_name(b"/dir", b"ghost", d.facts.free_ino, 8)


@case("dirent-target", True)
def name_of_an_inode_behind_the_table(d):
    d.add_name(b"/dir", b"ghost", (1 << 64) - 1, 8)


@case("dirent-type", True)
def type_of_a_directory_for_a_file(d):
    pfn = d.facts.data[b"/dir"]
    d.block(pfn, d.record(pfn, b"inner")[0] + 12, b"\4")


@case("dir-parent", True)
def parent_elsewhere(d):
    d.inode(b"/dir/empty", parent=d.ino(b"/big"))


@case("dir-parent", True)
def parent_of_the_root(d):
    d.inode(1, parent=5)


@case("dir-links", True)
def second_name_of_a_directory(d):
    d.add_name(b"/", b"alias", d.ino(b"/dir/empty"), 4)
    d.inode(1, nlink=d.field(1, "nlink") + 1)


@case("dir-links", True)
def name_of_the_root(d):
    d.add_name(b"/dir", b"loop", 1, 4)
    d.inode(b"/dir", nlink=4)


@case("dir-links", False)
def two_names_and_neither_is_its_parents(d):
    second_name_of_a_directory(d)
    d.inode(b"/dir/empty", parent=d.ino(b"/big"))


@case("unreachable", True)
def name_of_a_file_lost(d):
    d.drop_name(b"/dir", b"inner")


@case("unreachable", True)
def name_of_a_directory_lost(d):
    d.drop_name(b"/", b"dir")
    d.inode(1, nlink=d.field(1, "nlink") - 1)


@case("unreachable", False)
def directory_inside_itself(d):
    name_of_a_directory_lost(d)
    d.add_name(b"/dir", b"self", d.ino(b"/dir"), 4)
    d.inode(b"/dir", nlink=4, parent=d.ino(b"/dir"))


@case("link-count", True)
def too_many_links(d):
    d.inode(b"/file", nlink=5)


@case("link-count", True)
def named_but_without_links(d):
    d.inode(b"/file", nlink=0)


@case("link-count", True)
def directory_without_links(d):
    d.inode(b"/dir", nlink=0)


# -- what inodes hold -------------------------------------------------------------------


@case("symlink-target", True)
def short_target_with_another_size(d):
    d.inode(b"/short", size=3)


@case("symlink-target", True)
def short_target_with_the_size_of_a_long_one(d):
    d.inode(b"/short", size=2000)


@case("symlink-target", False)
def nul_in_a_target(d):
    d.inode(b"/short", inline=b"dir\0inner")


@case("symlink-target", False)
def page_of_a_long_target_zeroed(d):
    d.put(d.facts.data[b"/long"] * PAGE, bytes(PAGE))


@case("xattr-block", False)
def xattr_run_flipped(d):
    d.flip(d.facts.xattr * PAGE + 5000)


@case("xattr-block", False)
def xattr_run_of_many_pages(d):
    d.inode(b"/file", xattr_pages=(1 << 32) - 1)


@case("xattr-block", False)
def xattr_length(d):
    d.put(d.facts.xattr * PAGE + L.BLOCK_FIELDS.offset["length"], b"\xff" * 4)


@case("xattr-entry", False)
def unknown_name_space(d):
    at = d.facts.xattr * PAGE + L.BLOCK_FIELDS.offset["length"]
    d.block(d.facts.xattr, L.BLOCK_SIZE, b"\x09", int.from_bytes(d.get(at, 4), "little"))


@case("xattr-entry", False)
def count_of_entries(d):
    at = d.facts.xattr * PAGE + L.BLOCK_FIELDS.offset["length"]
    length = int.from_bytes(d.get(at, 4), "little")
    d.block(d.facts.xattr, L.BLOCK_FIELDS.offset["count"], b"\xff" * 4, length)


# -- poisoned pages -----------------------------------------------------------------------


def poisoned(d, *runs):
    """The list of poisoned pages, and the superblocks that say that there is one."""
    for pfn in (0, d.sb.backup_pfn):
        d.put(pfn * PAGE, d.superblock(ro_compat=1))
    d.put(poison.PLACE, poison.encode(list(runs), d.seed))


@case("poison-list", True)
def list_of_poison_flipped(d):
    poisoned(d, (0, 0, d.facts.data[b"/sparse"], d.facts.data[b"/sparse"] + 1))
    d.flip(poison.PLACE + 70)


@case("poison-list", True)
def list_of_poison_too_long(d):
    d.put(poison.PLACE, L.POISON_HEAD_CODEC.pack(L.POISON_MAGIC, 0, L.POISON_MAX + 1))


@case("poison-feature", True)
def poison_that_the_superblock_does_not_know(d):
    pfn = d.facts.data[b"/sparse"]
    d.put(poison.PLACE, poison.encode([(0, 0, pfn, pfn + 1)], d.seed))


@case("poison-entry", True)
def poison_behind_the_region(d):
    poisoned(d, (0, 0, d.sb.npages, d.sb.npages + 1))


@case("poison-entry", True)
def poison_in_the_range_of_a_packed_file(d):
    poisoned(d, (d.ino(b"/big"), d.facts.generation[d.ino(b"/big")], 0, 1))


@case("poison-entry", True, "pool")
def poison_of_an_earlier_range(d):
    ino = d.ino(b"/dax/small")
    poisoned(d, (ino, d.facts.generation[ino] + 1, 0, 1))


@case("poison-metadata", False)
def poisoned_directory(d):
    poisoned(d, (0, 0, d.facts.data[b"/dir"], d.facts.data[b"/dir"] + 1))


@case("poison-metadata", False)
def poisoned_extents(d):
    poisoned(d, (0, 0, d.facts.chain[0], d.facts.chain[0] + 1))


@case("poison-metadata", False)
def poisoned_attributes(d):
    poisoned(d, (0, 0, d.facts.xattr, d.facts.xattr + 1))


@case("poison-metadata", False)
def poisoned_inodes(d):
    poisoned(d, (0, 0, d.sb.inode_pfn, d.sb.inode_pfn + 1))


@case("poison-metadata", False)
def poisoned_superblock(d):
    poisoned(d, (0, 0, 0, 1))


@case("acl", False)
def mode_says_something_else(d):
    d.inode(b"/file", mode=0o100777)
