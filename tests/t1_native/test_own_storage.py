# SPDX-License-Identifier: MIT
"""L1: storage of own ranges (native/own.c): what extents say against what the range's file has.

The truth is lseek with SEEK_DATA on the file itself, which is on tmpfs. What a program does through its
mapping of the range is done here by a mapping or a descriptor beside the OwnRange.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import subprocess

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from daxfs._iomap import MAPPED, FileMap, RangeTable
from daxfs._own import MIN_PAGES, PFN_BASE, OwnRange, OwnWindow

PAGE = 4096
PLACE_PAGES = 1 << 14
KEEP, PUNCH = 1, 3  # of fallocate(2)


class Home:
    """A window in a table, and ranges in it as files of *folder*."""

    def __init__(self, folder):
        self.folder, self.table, self.window = folder, RangeTable(), OwnWindow(MIN_PAGES)
        self.window.join(self.table)
        self.ranges, self.names = [], []

    def range(self, size: int = 0) -> tuple[FileMap, OwnRange]:
        """A file of *size* bytes as the range of a new FileMap that is as long."""
        name = f"{self.folder}/daxfs-own-{os.getpid()}-{len(self.names)}"
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.names.append(name)
        os.ftruncate(fd, size)
        f, own = FileMap(), OwnRange(self.window, fd)
        f.size = size
        own.attach(f)
        self.ranges.append((f, own))
        return f, own

    def close(self):
        for f, own in self.ranges:
            own.detach(f)
            own.close()
        self.window.close(self.table)
        for name in self.names:
            os.unlink(name)


@pytest.fixture
def home():
    made = Home("/dev/shm")
    yield made
    made.close()


@pytest.fixture
def tiny(tmp_path):
    """A home on a tmpfs of 64 pages."""
    if os.geteuid():
        pytest.skip("not root: mount(2) needs it")
    options = "size=256k,huge=never"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "direct-tiny", tmp_path], check=True)
    made = Home(tmp_path)
    yield made
    made.close()
    subprocess.run(["umount", tmp_path], check=True)


def pages_of(f: FileMap) -> set[int]:
    """Pages that the map has as MAPPED, each extent checked for its pfn."""
    out = set()
    for pgoff, length, pfn, kind, _ in f.extents():
        assert kind == MAPPED and pfn == f.own.pfn + pgoff and f.own.pfn >= PFN_BASE
        new = set(range(pgoff, pgoff + length))
        assert not out & new and (pgoff - 1) not in out, "joined where they touch"
        out |= new
    return out


def data_pages(fd: int) -> set[int]:
    """Pages of the file that are data, by SEEK_DATA."""
    out, at = set(), 0
    while True:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            return out
        end = os.lseek(fd, at, os.SEEK_HOLE)
        out |= set(range(at // PAGE, -(-end // PAGE)))
        at = end


def allocated(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512 // PAGE


def test_nothing_has_an_address_before_it_is_reached(home):
    f, own = home.range(10 * PAGE)
    assert (own.pfn, own.room, own.pages, len(f), f.own) == (0, 0, 10, 0, own)
    own.resize(f, 3)
    own.punch(f, 0, PAGE)
    assert (own.pfn, own.pages, os.fstat(own.fd).st_size) == (0, 3, 3 * PAGE)
    own.reserve(f, 0, 5)
    assert (own.pfn, own.pages, allocated(own.fd), len(f)) == (0, 3, 5, 0)


def test_cover_makes_storage_and_extents_and_grows_the_file(home):
    f, own = home.range()
    own.cover(f, 2, 5)
    assert (own.pages, os.fstat(own.fd).st_size, pages_of(f)) == (5, 5 * PAGE, {2, 3, 4})
    assert allocated(own.fd) == 3, "what is in front stays a hole"
    own.cover(f, 0, 1)
    own.cover(f, 1, 3)
    assert pages_of(f) == {0, 1, 2, 3, 4} and len(f) == 1 and own.pages == 5
    own.cover(f, 4, 4)
    assert own.pages == 5


def test_cover_inside_leaves_the_length_alone(home):
    f, own = home.range(8 * PAGE)
    own.cover(f, 0, 4)
    assert (own.pages, os.fstat(own.fd).st_size, allocated(own.fd)) == (8, 8 * PAGE, 4)


def test_covering_what_a_program_stored_keeps_it(home):
    f, own = home.range(4 * PAGE)
    with mmap.mmap(own.fd, 4 * PAGE) as program:
        program[PAGE : PAGE + 4] = b"mine"
    assert pages_of(f) == set()
    own.cover(f, 0, 4)
    assert os.pread(own.fd, 4, PAGE) == b"mine" and pages_of(f) == {0, 1, 2, 3}


def test_a_larger_place_keeps_the_extents(home):
    f, own = home.range()
    own.cover(f, 0, 3)
    os.pwrite(own.fd, b"here", PAGE)
    before = own.pfn
    own.cover(f, PLACE_PAGES + 7, PLACE_PAGES + 8)
    assert own.pfn != before and own.room >= PLACE_PAGES + 8
    assert pages_of(f) == {0, 1, 2, PLACE_PAGES + 7}
    # The place of before is given to the next one.
    g, other = home.range()
    other.cover(g, 0, 1)
    assert other.pfn == before


def test_learn_knows_what_the_file_has_and_no_more(home):
    f, own = home.range(100 * PAGE)
    for page in (0, 5, 6, 40, 99):
        os.pwrite(own.fd, b"x", page * PAGE + 17)
    own.learn(f)
    assert pages_of(f) == {0, 5, 6, 40, 99} == data_pages(own.fd)
    os.posix_fallocate(own.fd, 0, PAGE)
    own.learn(f, 3, 41)
    assert pages_of(f) == {0, 5, 6, 40, 99}
    own.learn(f, runs=2)
    assert pages_of(f) == {0, 5, 6}, "the rest is not known: runs is a limit"


def test_learn_forgets_what_a_program_punched(home):
    f, own = home.range()
    own.cover(f, 0, 8)
    os.pwrite(own.fd, bytes(8 * PAGE), 0)
    with mmap.mmap(own.fd, 8 * PAGE) as program:
        program.madvise(mmap.MADV_REMOVE, 2 * PAGE, 3 * PAGE)
    assert pages_of(f) == set(range(8)), "nobody told us"
    own.learn(f, 3, 4)
    assert pages_of(f) == set(range(8)) - {3}
    own.learn(f)
    assert pages_of(f) == {0, 1, 5, 6, 7}


def test_punch_makes_zeros_and_frees_whole_pages(home):
    f, own = home.range()
    own.cover(f, 0, 6)
    os.pwrite(own.fd, b"\xff" * 6 * PAGE, 0)
    own.punch(f, PAGE + 100, 4 * PAGE + 200)
    assert pages_of(f) == {0, 1, 4, 5} == data_pages(own.fd) and own.pages == 6
    got = os.pread(own.fd, 6 * PAGE, 0)
    assert got == b"\xff" * (PAGE + 100) + bytes(3 * PAGE + 100) + b"\xff" * (2 * PAGE - 200)
    own.punch(f, 10, 20)
    assert os.pread(own.fd, 30, 0) == b"\xff" * 10 + bytes(10) + b"\xff" * 10 and 0 in pages_of(f)
    own.punch(f, 7, 7)


def test_resize_cuts_extents_and_what_comes_back_is_zero(home):
    f, own = home.range()
    own.cover(f, 0, 6)
    os.pwrite(own.fd, b"\xff" * 6 * PAGE, 0)
    own.resize(f, 2)
    assert (pages_of(f), own.pages, os.fstat(own.fd).st_size) == ({0, 1}, 2, 2 * PAGE)
    own.resize(f, 6)
    assert (pages_of(f), own.pages) == ({0, 1}, 6)
    assert os.pread(own.fd, 6 * PAGE, 2 * PAGE) == bytes(4 * PAGE)


def test_reserve_behind_the_end_gives_storage_and_no_extent(home):
    f, own = home.range()
    own.cover(f, 0, 2)
    own.reserve(f, 1, 6)
    assert (own.pages, pages_of(f), allocated(own.fd)) == (2, {0, 1}, 6)
    own.cover(f, 2, 6)
    assert (own.pages, pages_of(f), allocated(own.fd)) == (6, set(range(6)), 6)


def test_seek_ends_at_the_size(home):
    f, own = home.range(4 * PAGE)
    f.size = 3 * PAGE + 5
    os.pwrite(own.fd, b"x", PAGE)
    assert [own.seek(f, pos, True) for pos in (0, PAGE + 9, 2 * PAGE)] == [PAGE, PAGE + 9, f.size]
    assert [own.seek(f, pos, False) for pos in (0, PAGE, 2 * PAGE)] == [0, 2 * PAGE, 2 * PAGE]
    os.pwrite(own.fd, b"x", 3 * PAGE)
    assert own.seek(f, 3 * PAGE, False) == f.size


def test_no_room_changes_neither_extents_nor_length(tiny):
    f, own = tiny.range()
    own.cover(f, 0, 60)
    for first, last in ((60, 70), (50, 80)):
        with pytest.raises(OSError) as caught:
            own.cover(f, first, last)
        assert caught.value.errno == errno.ENOSPC
        assert (own.pages, os.fstat(own.fd).st_size, pages_of(f)) == (60, 60 * PAGE, set(range(60)))
    own.punch(f, 0, 10 * PAGE)
    own.cover(f, 60, 64)
    assert own.pages == 64 and allocated(own.fd) == 54


def test_a_hole_on_a_full_file_system_tears_the_range_and_nothing_else(tiny):
    """MADV_REMOVE by a program, all memory taken by another file, then a store of ours to what we knew."""
    f, own = tiny.range()
    own.cover(f, 0, 8)
    os.pwrite(own.fd, b"y" * 8 * PAGE, 0)
    g, other = tiny.range()
    with mmap.mmap(own.fd, 8 * PAGE) as program:
        program.madvise(mmap.MADV_REMOVE, 2 * PAGE, PAGE)
    other.cover(g, 0, 57)
    assert not own.torn
    touch(tiny.table, own.pfn + 2)
    assert own.torn and not other.torn and not tiny.table.lost and not tiny.table.dead
    assert os.pread(own.fd, 1, 2 * PAGE) == b"\0", "nothing reached the file"
    other.resize(g, 10)
    own.mend(f)
    assert not own.torn and pages_of(f) == set() and own.room
    own.cover(f, 0, 8)
    touch(tiny.table, own.pfn + 2)
    assert not own.torn and os.pread(own.fd, 1, 2 * PAGE) == b"S"


def touch(table: RangeTable, pfn: int) -> None:
    """Store a byte to a page, as dax_io would."""
    address, _, _ = table.lookup(pfn)
    ctypes.memset(address, ord("S"), 1)


def test_a_lease_tells_whether_a_mapping_is_left(home):
    """What meta/own.is_busy leans on: a mapping keeps its file open, without a descriptor."""
    own = home.range(PAGE)[1]

    def busy():
        try:
            fcntl.fcntl(own.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            assert error.errno == errno.EAGAIN
            return True
        fcntl.fcntl(own.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    assert not busy()
    fd = os.open(home.names[0], os.O_RDWR)
    program = mmap.mmap(fd, PAGE)
    os.close(fd)
    assert busy()
    program.close()
    assert not busy()


def test_a_full_window_is_an_error_and_places_come_back(home):
    f, own = home.range()
    with pytest.raises(OSError) as caught:
        own.cover(f, 0, 2 * MIN_PAGES)
    assert caught.value.errno == errno.ENFILE and own.pfn == 0 and own.pages == 0
    own.cover(f, 0, 1)
    assert own.room == PLACE_PAGES


spans = st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda s: (s[0], s[0] + s[1]))
steps = st.one_of(
    st.tuples(st.sampled_from(["cover", "punch", "reserve", "learn", "store", "remove"]), spans),
    st.tuples(st.just("resize"), st.tuples(st.integers(0, 50), st.just(0))),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=25))
def test_extents_against_the_file(todo):
    """Whatever we and programs do: an extent was data, or storage, when we looked last."""
    home = Home("/dev/shm")
    try:
        f, own = home.range()
        model, known = bytearray(), set()
        for what, (first, last) in todo:
            size = len(model) // PAGE
            if what == "cover":
                own.cover(f, first, last)
                known |= set(range(first, last))
                if last > first:
                    model.extend(bytes(max(last - size, 0) * PAGE))
            elif what == "reserve":
                own.reserve(f, first, last)
                if own.pfn:
                    known |= set(range(first, min(last, size)))
            elif what == "punch":
                own.punch(f, first * PAGE + 5, last * PAGE + 5)
                end = min(last * PAGE + 5, len(model))
                if end > first * PAGE + 5:
                    model[first * PAGE + 5 : end] = bytes(end - first * PAGE - 5)
                known -= set(range(first + 1, last))
            elif what == "resize":
                own.resize(f, first)
                del model[first * PAGE :]
                model.extend(bytes(max(first - size, 0) * PAGE))
                known = {page for page in known if page < first}
            elif what == "learn":
                own.learn(f, first, last)
                window = set(range(first, min(last, size)))
                known = (known - window) | (data_pages(own.fd) & window) if window else known
            else:
                by_program(what, own.fd, model, first, min(last, size))
            assert pages_of(f) == known
            assert own.pages * PAGE == len(model) == os.fstat(own.fd).st_size
            assert os.pread(own.fd, len(model) + 1, 0) == model
        own.learn(f)
        assert pages_of(f) == data_pages(own.fd)
    finally:
        home.close()


def by_program(what: str, fd: int, model: bytearray, first: int, last: int) -> None:
    """A store to the pages [first, last), or their removal, through a mapping."""
    if first >= last:
        return
    with mmap.mmap(fd, len(model)) as program:
        if what == "store":
            for page in range(first, last):
                program[page * PAGE + 9] = model[page * PAGE + 9] = 1 + page
        else:
            program.madvise(mmap.MADV_REMOVE, first * PAGE, (last - first) * PAGE)
            model[first * PAGE : last * PAGE] = bytes((last - first) * PAGE)
