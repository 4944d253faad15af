# SPDX-License-Identifier: MIT
"""L1: FileMap against a plain dict, RangeTable, Window and RegionView, alone and with threads."""

import ctypes
import errno
import itertools
import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daxfs._iomap import (
    HOLE,
    MAPPED,
    MAX_PGOFF,
    PLAIN,
    STALE_TIMES,
    UNSETTLED,
    UNWRITTEN,
    FileMap,
    RangeTable,
    RegionView,
)
from daxfs._window import Window, map_sync_works
from daxfs.data._tracker import PteTracker, Tracker
from daxfs.errors import CorruptError
from daxfs.pfn import PFN_DEV, PFN_MAP, PFN_MASK

PAGES = 64


def put(fm, first, count, new):
    """Replace pages [first, first + count) by the rows *new*, cutting what is in the way."""
    last = first + count
    at = fm.find(first)
    stop, rows = at, []
    for pgoff, length, pfn, kind, slot in fm.extents()[at:]:
        if pgoff >= last:
            break
        stop += 1
        if pgoff < first:
            rows.append((pgoff, first - pgoff, pfn, kind, slot))
        if pgoff + length > last:
            rows.append((last, pgoff + length - last, pfn + last - pgoff, kind, slot))
    rows[1 if rows and rows[0][0] < first else 0 : 0] = new
    fm.splice(at, stop - at, rows)


def agrees(fm, model):
    """Every page, the extents, the sums: as the dict page -> (pfn, type, slot) says."""
    for page in range(PAGES + 2):
        kind, pgoff, length, pfn, slot = fm.lookup(page)
        assert pgoff == page and length > 0
        assert (pfn, kind, slot) == model.get(page, (0, HOLE, 0))
        if kind == HOLE:
            following = [p for p in model if p > page]
            assert page + length == (min(following) if following else MAX_PGOFF)
        else:
            for step in range(length):
                assert model[page + step] == (pfn + step, kind, slot)
    rows = fm.extents()
    assert len(rows) == len(fm)
    assert all(a[0] + a[1] <= b[0] for a, b in itertools.pairwise(rows))
    assert fm.pages == len(model) == sum(row[1] for row in rows)
    assert fm.end() == (max(model) + 1 if model else 0)


change = st.tuples(
    st.integers(0, PAGES - 1), st.integers(1, 12), st.sampled_from([HOLE, UNWRITTEN, MAPPED]),
    st.integers(0, 1 << 20), st.integers(0, 9), st.sampled_from([0, PFN_DEV | PFN_MAP]),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(change, max_size=25))
def test_filemap_is_the_dict(changes):
    fm, model = FileMap(), {}
    for first, most, kind, frame, slot, flags in changes:
        count = min(most, PAGES - first)
        pfn = frame | flags
        put(fm, first, count, [] if kind == HOLE else [(first, count, pfn, kind, slot)])
        for step in range(count):
            if kind == HOLE:
                model.pop(first + step, None)
            else:
                model[first + step] = (pfn + step, kind, slot)
    agrees(fm, model)


@pytest.mark.parametrize("rows", [
    [(4, 0, 1, MAPPED, 0)],  # empty
    [(4, 1, 1, HOLE, 0)],  # a hole is not stored
    [(4, 1, 1, 7, 0)],
    [(4, 2, 1, MAPPED, 0), (5, 1, 9, MAPPED, 0)],  # overlap each other
    [(6, 1, 1, MAPPED, 0), (4, 1, 9, MAPPED, 0)],  # order
    [(9, 2, 1, MAPPED, 0)],  # overlaps the next one
    [(1, 5, 1, MAPPED, 0)],  # overlaps the one before
    [(4, 2, PFN_MASK, MAPPED, 0)],  # frames of more than 48 bits
    [(4, 1, 1 << 50, MAPPED, 0)],
    [(MAX_PGOFF, 1, 1, MAPPED, 0)],
    [(4, 1 << 63, 1, MAPPED, 0)],
    [(4, -1, 1, MAPPED, 0)],
    [(4, 1, 1, MAPPED)],  # a field is missing
    ["nonsense"],
])
def test_a_bad_splice_changes_nothing(rows):
    fm = FileMap()
    good = [(0, 3, 100, MAPPED, 1), (10, 3, 200, UNWRITTEN, 2)]
    fm.load(good)
    with pytest.raises(ValueError):
        fm.splice(1, 0, rows)
    for index, count in ((3, 0), (0, 3), (2, 1)):
        with pytest.raises(ValueError):
            fm.splice(index, count, [])
    assert fm.extents() == good and fm.pages == 6


def test_filemap_ends_of_the_world():
    fm = FileMap()
    fm.load([(MAX_PGOFF - 2, 2, 5, MAPPED, 0)])
    assert fm.lookup(0) == (HOLE, 0, MAX_PGOFF - 2, 0, 0)
    assert fm.lookup(MAX_PGOFF - 1) == (MAPPED, MAX_PGOFF - 1, 1, 6, 0)
    assert fm.lookup(MAX_PGOFF)[2] > 0, "a walk always moves on"
    assert fm.end() == MAX_PGOFF


def test_filemap_extents_by_index():
    fm = FileMap()
    rows = [(i * 2, 1, i, MAPPED, i) for i in range(10)]
    fm.load(rows)
    assert fm.extents(3, 2) == rows[3:5]
    assert fm.extents(8, 5) == rows[8:]
    assert fm.extents(99, 1) == []


def test_filemap_is_small_and_gives_memory_back():
    fm = FileMap()
    empty = sys.getsizeof(fm)
    assert empty < 250
    fm.load([(i * 2, 1, i, MAPPED, 0) for i in range(10_000)])
    assert sys.getsizeof(fm) > empty + 10_000 * 32
    fm.splice(10, 9_990, [])
    assert sys.getsizeof(fm) < empty + 20 * 32
    fm.load([])
    assert sys.getsizeof(fm) == empty


def test_the_holder_of_the_lock_may_change_the_map():
    fm = FileMap()
    fm.lock()
    fm.load([(0, 2, 7, MAPPED, 0)])
    fm.splice(1, 0, [(5, 1, 9, MAPPED, 0)])
    fm.size = 4096
    assert fm.lookup(5)[3] == 9 and fm.find(3) == 1 and fm.end() == 6
    with pytest.raises(ValueError):
        fm.splice(0, 9, [])
    with fm:  # nests, shared too, and in C
        fm.lock(exclusive=False)
        fm.size = 4096
        fm.unlock()
    entered = threading.Event()

    def other():
        fm.lock(exclusive=False)
        entered.set()
        fm.unlock()

    thread = threading.Thread(target=other)
    thread.start()
    assert not entered.wait(0.05), "a reader got in while the lock was held exclusively"
    fm.unlock()
    thread.join(5)
    assert entered.is_set() and fm.size == 4096


def test_the_lock_is_given_back_after_an_exception():
    fm = FileMap()
    with pytest.raises(KeyError), fm, fm:
        raise KeyError
    taken = threading.Thread(target=lambda: (fm.lock(), fm.unlock()))
    taken.start()
    taken.join(5)
    assert not taken.is_alive()


def test_state_flags_of_several_threads():
    fm = FileMap()
    assert fm.state == 0 and fm.inode == 0 and fm.dirty is None
    fm.set_state(UNSETTLED | PLAIN)
    assert fm.clear_state(STALE_TIMES | PLAIN) == PLAIN and fm.state == UNSETTLED
    assert fm.clear_state(PLAIN) == 0

    def flip(flag):
        for _ in range(20_000):
            fm.set_state(flag)
            assert fm.clear_state(flag) == flag

    threads = [threading.Thread(target=flip, args=(flag,)) for flag in (PLAIN, STALE_TIMES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fm.state == UNSETTLED, "one thread's change took another's away"


def test_native_code_sees_the_dirty_map_that_python_set():
    """The pointer stands three before `inode` in struct filemap."""
    fm = FileMap()
    PteTracker().attach(fm)
    bits, fm.inode = fm.dirty, 0x1234000
    # A FileMap begins with its object header and the table of its C methods.
    words = (ctypes.c_uint64 * 15).from_address(id(fm))
    assert 0x1234000 in words
    place = list(words).index(0x1234000) - 3
    pointer = words[place]
    assert id(bits) < pointer < id(bits) + sys.getsizeof(bits)
    Tracker().attach(fm)
    assert words[place] == 0 and fm.dirty is None
    with pytest.raises(AttributeError):
        fm.dirty = bits


def test_seq_is_odd_while_metadata_are_stored():
    table = RangeTable()
    assert table.seq == 0
    with pytest.raises(RuntimeError):
        table.end_stores()
    table.begin_stores()
    assert table.seq == 1
    with pytest.raises(RuntimeError):
        table.begin_stores()
    table.end_stores()
    assert table.seq == 2


def test_many_readers_and_a_writer():
    """Layouts are swapped in two steps under the lock: a reader never sees the gap between."""
    fm = FileMap()
    layouts = ([(0, 8, 1000, MAPPED, 1), (8, 8, 2000, MAPPED, 1)], [(0, 16, 5000, MAPPED, 2)])
    fm.load(layouts[0])
    until = time.monotonic() + 1.0
    wrong, reads, writes = [], [0] * 4, 0

    def read(number):
        while time.monotonic() < until:
            kind, _, length, pfn, slot = fm.lookup(8)
            if (kind, length, pfn, slot) not in ((MAPPED, 8, 2000, 1), (MAPPED, 8, 5008, 2)):
                wrong.append((kind, length, pfn, slot))
            if fm.extents() not in layouts:
                wrong.append("extents")
            reads[number] += 1

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    while time.monotonic() < until:
        writes += 1
        fm.lock()
        fm.load([])
        time.sleep(0)  # let the readers run into the lock
        fm.splice(0, 0, layouts[writes % 2])
        fm.unlock()
    for thread in threads:
        thread.join(10)
    assert not wrong
    assert all(reads) and writes > 5, "somebody was starved"


@pytest.fixture
def window():
    w = Window.reserve(1024)
    fd = os.memfd_create("daxfs-test")
    os.ftruncate(fd, 512 * 4096)
    w.place(0, 512, fd, 0)
    w.pad(512, 512)
    yield w, fd
    os.close(fd)


def test_range_lookup_of_several_ranges():
    table = RangeTable()
    table.add(1024, 1536, 0x300000, PFN_DEV)
    table.add(0, 512, 0x100000)
    table.add(512, 1000, 0x200000, PFN_DEV | PFN_MAP)
    assert len(table) == 3
    assert table.lookup(0) == (0x100000, 512, 0)
    assert table.lookup(511) == (0x100000 + 511 * 4096, 1, 0)
    assert table.lookup(512) == (0x200000, 488, PFN_DEV | PFN_MAP)
    assert table.lookup(1535 | PFN_DEV) == (0x300000 + 511 * 4096, 1, PFN_DEV)
    for outside in (1000, 1023, 1536, PFN_MASK, 1 << 48, 1 << 59, -1, 1 << 70):
        with pytest.raises(CorruptError):
            table.lookup(outside)


@pytest.mark.parametrize("start, end, addr, flags", [
    (5, 5, 1, 0), (6, 5, 1, 0), (0, 10, 0, 0), (0, PFN_MASK + 2, 1, 0), (0, 1, 1, 3),
    (99, 101, 1, 0), (150, 151, 1, 0), (199, 300, 1, 0), (0, 500, 1, 0),
])
def test_a_bad_range_is_refused(start, end, addr, flags):
    table = RangeTable()
    table.add(100, 200, 4096)
    with pytest.raises(ValueError):
        table.add(start, end, addr, flags)
    assert len(table) == 1 and table.lookup(150)[1] == 50


def test_enter_exit_kill():
    table = RangeTable()
    with table:
        assert table.users == 1
        assert table.kill(0.01) == 1, "one user is left"
        assert table.dead
        with pytest.raises(OSError) as info:
            table.enter()
        assert info.value.errno == errno.EIO and table.users == 1
    assert table.users == 0 and table.kill(0) == 0
    with pytest.raises(RuntimeError):
        table.exit()


def test_kill_waits_for_threads():
    table = RangeTable()
    inside, outcomes = threading.Barrier(4), []

    def use():
        with table:
            inside.wait(5)
            time.sleep(0.1)
            outcomes.append(table.dead)
        try:
            table.enter()
        except OSError as exc:
            outcomes.append(exc.errno)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    inside.wait(5)
    before = time.monotonic()
    assert table.kill(5) == 0
    assert time.monotonic() - before > 0.05
    for thread in threads:
        thread.join(5)
    assert outcomes.count(errno.EIO) == 3 and outcomes.count(True) == 3


def test_window_maps_what_was_placed(window):
    w, fd = window
    assert w.address % (2 << 20) == 0 and len(w) == 1024 * 4096
    with memoryview(w) as mem:
        assert not mem.readonly and mem.format == "B" and mem.contiguous
        mem[4096:4101] = b"daxfs"
        assert os.pread(fd, 5, 4096) == b"daxfs"
        assert bytes(mem[600 * 4096 : 601 * 4096]) == bytes(4096), "padding reads as zeros"
        assert w.exported == 1
        with pytest.raises(BufferError):
            w.close()
    w.close()
    w.close()
    assert w.closed and w.address == 0 and len(w) == 0
    with pytest.raises(BufferError):
        memoryview(w)
    with pytest.raises(ValueError):
        w.place(0, 1, fd, 0)


def test_window_private_read_only_and_detached(window):
    w, fd = window
    other = Window.reserve(512)
    other.place(0, 512, fd, 0, "rw", private=True)
    memoryview(other)[0:3] = b"cow"
    assert os.pread(fd, 3, 0) == bytes(3)
    reader = Window.reserve(512)
    reader.place(0, 512, fd, 0, "r")
    assert memoryview(reader).readonly
    mem = memoryview(w)
    mem[0:6] = b"shared"
    w.detach()
    mem[0:6] = b"stray!"
    assert os.pread(fd, 6, 0) == b"shared", "after detach a store reaches nobody"
    assert bytes(mem[0:6]) == b"stray!"


def holes(address, length):
    """Addresses in a range at which nothing is mapped or reserved."""
    at, found = address, []
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if start < address + length and end > address:
            if start > at:
                found.append(at)
            at = end
    return found + ([at] if at < address + length else [])


@pytest.fixture
def refuser():
    """A descriptor whose file refuses to be mapped only when it is asked, as devdax a private mapping."""
    with socket.socket(socket.AF_UNIX) as one:
        yield one.fileno()


def test_window_stays_whole_where_a_source_can_not_be_mapped(refuser):
    """A hole in it would become somebody's memory, which close unmaps (found with a real devdax device)."""
    w = Window.reserve(4096)
    with pytest.raises(OSError) as info:
        w.place(1024, 1024, refuser, 0, "rw", private=True)
    assert info.value.errno == errno.ENODEV
    assert holes(w.address, len(w)) == []
    w.close()


def test_window_stays_whole_where_it_can_not_be_detached(window, refuser):
    """What can't be mapped privately stays mapped, and can be read."""
    w, fd = window
    mem = memoryview(w)
    mem[0:6] = b"shared"
    kept = os.dup(fd)
    os.dup2(refuser, fd)
    w.detach()
    assert holes(w.address, len(w)) == []
    assert bytes(mem[0:6]) == b"shared" and os.pread(kept, 6, 0) == b"shared"
    os.close(kept)


@pytest.mark.parametrize("pfn, npages", [(0, 0), (1024, 1), (1000, 25), (1 << 60, 1), (0, 1 << 60)])
def test_window_place_is_bounded(window, pfn, npages):
    w, fd = window
    with pytest.raises(ValueError):
        w.place(pfn, npages, fd, 0)


def test_window_reports_what_mmap_says(window):
    w, fd = window
    with pytest.raises(OSError) as info:
        w.place(0, 1, fd, 0, sync=True)
    assert info.value.errno == errno.EOPNOTSUPP and not map_sync_works(fd)
    with pytest.raises(ValueError):
        w.place(0, 1, fd, 0, "x")
    with pytest.raises(ValueError):
        Window.reserve(0)
    with pytest.raises(ValueError):
        Window.reserve(1, 12345)


def test_region_view_holds_the_region(window):
    w, _ = window
    table = RangeTable()
    table.add(0, 512, w.address)
    with memoryview(w) as mem:
        mem[100:105] = b"daxfs"
    view = RegionView(table, w, w.address + 100, 5)
    assert table.users == 0 and len(view) == 5
    with memoryview(view) as mem:
        assert bytes(mem) == b"daxfs" and mem.readonly
        assert table.users == 1 and table.kill(0) == 1
        with pytest.raises(BufferError):
            w.close()
    assert table.users == 0
    with pytest.raises(OSError) as info:
        memoryview(view)
    assert info.value.errno == errno.EIO and table.users == 0
    for address, length in ((w.address - 1, 2), (w.address + len(w), 1), (w.address, len(w) + 1)):
        with pytest.raises(ValueError):
            RegionView(table, w, address, length)
