# SPDX-License-Identifier: MIT
"""Damage for the checks of own ranges: further `check_cases.CASES`."""

import os
import shutil

import damage as D
from check_cases import case

from daxfs import layout as L

PAGE = 4096


@case("own-feature", True, "pool")
def feature_bit_lost(d):
    page = d.superblock(incompat=0)
    d.put(0, page)
    d.put(d.sb.backup_pfn * PAGE, page)


@case("own-feature", False)
def a_range_where_there_is_no_pool(d):
    d.inode(b"/dir/inner", flags=L.FLAG_OWN, inline=bytes(96), nextents=0, blocks=0)


@case("own-feature", True)
def an_empty_one_where_there_is_no_pool(d):
    d.inode(b"/dir/inner", flags=L.FLAG_OWN, size=0, inline=bytes(96), nextents=0, blocks=0)


@case("own-extents", True)
def flag_of_a_packed_file(d):
    d.inode(b"/file", flags=L.FLAG_OWN)


@case("own-extents", True, "pool")
def flag_of_a_packed_file_in_a_pool(d):
    d.inode(b"/dax/moved", flags=L.FLAG_OWN)


@case("own-extents", True, "pool")
def flag_of_a_file_with_extent_blocks(d):
    d.inode(b"/sparse", flags=L.FLAG_OWN)


@case("own-extents", False, "pool")
def extents_and_a_range(d):
    d.inode(b"/dax/moved", flags=L.FLAG_OWN)
    shutil.copy(d.range(b"/dax/small"), d.range(b"/dax/moved"))


@case("inode-flags", True, "pool")
def flag_of_a_directory(d):
    d.inode(b"/dir", flags=L.FLAG_OWN)


@case("extent-count", True, "pool")
def extent_count_of_a_range(d):
    d.inode(b"/dax/small", nextents=1)


@case("blocks-count", True, "pool")
def pages_of_a_range(d):
    d.inode(b"/dax/small", blocks=3)


@case("own-folder", False, "pool")
def copied_without_the_ranges(d):
    shutil.rmtree(d.range())


@case("own-missing", True, "pool")
def range_lost(d):
    os.unlink(d.range(b"/dax/small"))


@case("own-missing", True, "pool")
def range_of_an_empty_file_lost(d):
    os.unlink(d.range(b"/dax/empty"))


@case("own-missing", True, "pool-killed")
def range_lost_in_a_crash(d):
    os.unlink(d.range(b"/dax/cut"))


@case("own-missing", True, "pool")
def all_ranges_lost_but_the_folder(d):
    shutil.rmtree(d.range())
    os.mkdir(d.range())


@case("own-file", False, "pool")
def a_symlink_to_the_range(d):
    os.rename(d.range(b"/dax/small"), d.range() + "elsewhere")
    os.symlink("elsewhere", d.range(b"/dax/small"))


@case("own-file", False, "pool")
def a_fifo_for_a_range(d):
    os.unlink(d.range(b"/dax/small"))
    os.mkfifo(d.range(b"/dax/small"), 0o600)


@case("own-file", False, "pool")
def a_directory_for_a_range(d):
    os.unlink(d.range(b"/dax/empty"))
    os.mkdir(d.range(b"/dax/empty"))


@case("own-file", False, "pool")
def a_directory_that_is_called_as_a_range(d):
    os.mkdir(d.range((500, 7)))


@case("own-shared", False, "pool")
def one_file_for_two(d):
    os.unlink(d.range(b"/dax/twin"))
    os.link(d.range(b"/dax/small"), d.range(b"/dax/twin"))


@case("own-short", True, "pool")
def a_page_too_few(d):
    os.truncate(d.range(b"/dax/small"), 2 * PAGE)


@case("own-short", True, "pool")
def no_whole_pages(d):
    os.truncate(d.range(b"/dax/small"), 10000)


@case("own-short", True, "pool-killed")
def part_of_a_page_after_a_crash(d):
    os.truncate(d.range(b"/dax/cut"), 5001)


@case("own-long", True, "pool")
def a_page_too_many(d):
    os.truncate(d.range(b"/dax/small"), 4 * PAGE)


@case("own-long", True, "pool")
def a_byte_too_many(d):
    os.truncate(d.range(b"/dax/empty"), 1)


@case("inode-times", False, "pool")
def first_line_of_an_own_file_wiped(d):
    d.put(d.place(d.ino(b"/dax/small")), bytes(64))


@case("inode-times", False, "pool")
def first_line_wiped_in_a_crash(d):
    first_line_of_an_own_file_wiped(d)
    d.put(D.MOUNTED, b"\1")


@case("own-mode", True, "pool")
def open_to_all(d):
    os.chmod(d.range(b"/dax/small"), 0o644)


@case("own-mode", True, "pool")
def open_to_nobody(d):
    os.chmod(d.range(b"/dax/small"), 0)


@case("own-stray", True, "pool")
def range_without_an_inode(d):
    shutil.copyfile(d.range(b"/dax/cut"), d.range((200, 9)))


@case("own-stray", True, "pool")
def range_behind_the_inode_table(d):
    shutil.copyfile(d.range(b"/dax/small"), d.range((1 << 60, 9)))


@case("own-stray", True, "pool")
def fifo_without_an_inode(d):
    os.mkfifo(d.range((200, 9)))


@case("own-stray", True, "pool")
def range_of_an_earlier_file(d):
    ino = d.ino(b"/dax/small")
    shutil.copyfile(d.range(b"/dax/small"), d.range((ino, d.facts.generation[ino] + 1)))


@case("own-stray", False, "pool")
def flag_lost(d):
    d.inode(b"/dax/small", flags=L.FLAG_DAX)
