# SPDX-License-Identifier: MIT
"""track=extent and extent+clear (S15): idle until a mark, then any fsync flushes all of an active one."""

import mmap
import os
import time

import pytest
from datakit import MIB, PAGE, calls, create, filemap, noise, reopen

from daxfs._iomap import MAPPED, FileMap
from daxfs._record import Recorder
from daxfs.data._dax_io import DaxIo
from daxfs.data._tracker import TRACKERS, ExtentTracker
from daxfs.meta import attr, own

SIZE = 4 * MIB  # of the region: extents of 4 pages


class Pair:
    """Two packed files: the first one's pages are 600 to 699 of the region, the other's 100 to 199."""

    def __init__(self, kit, full: bool, policy="extent"):
        self.region = kit.sources(SIZE)
        if full:
            self.region.nt_fill(0, 7, SIZE)
        self.dax = DaxIo(self.region, TRACKERS[policy](None, self.region.npages), "cached")
        self.one, self.two = (filemap(100 * PAGE, [(0, 100, pfn, MAPPED)]) for pfn in (600, 100))
        for f in (self.one, self.two):
            self.dax.tracker.attach(f)

    def flushed(self, f) -> list[tuple[int, int]]:
        """(first page of the region, pages) of what an fsync of *f* flushes."""
        with Recorder(self.region, sites=False) as table:
            pages = self.dax.writeback(f)
            log = calls(table)
        assert log[-1] == ("drain", 0, 0) and all(what == "flush" for what, *_ in log[:-1])
        assert pages * PAGE == sum(length for _, _, length in log)
        return [(at // PAGE, length // PAGE) for _, at, length in log[:-1]]


def test_idle_until_one_is_active_and_never_cleared(kit):
    pair = Pair(kit, full=True)
    assert pair.flushed(pair.one) == [] and not pair.one.marked
    pair.dax.write(pair.one, 5000, b"x")
    assert pair.one.marked and pair.two.marked, "any fsync flushes what is active"
    assert pair.flushed(pair.two) == [(600, 4)]
    assert pair.flushed(pair.one) == [(600, 4)], "never cleared"
    pair.dax.write(pair.two, 3 * PAGE, noise(2 * PAGE))
    assert pair.flushed(pair.one) == [(100, 4), (104, 4), (600, 4)]
    assert pair.dax.tracker.held([])["active_extents"] == 3
    assert pair.one.dirty_runs() == [(0, 4 * PAGE)] and pair.two.dirty_bytes == 8 * PAGE


def test_what_has_no_memory_gets_none(kit):
    """The region is a file with holes: a flush of one would take storage."""
    pair = Pair(kit, full=False)
    before = os.fstat(pair.region.sources[0].fd).st_blocks
    pair.dax.write(pair.one, 5000, b"x")
    pair.dax.write(pair.one, 3 * PAGE, b"x")
    assert pair.flushed(pair.two) == [(601, 1), (603, 1)]
    assert os.fstat(pair.region.sources[0].fd).st_blocks - before == 2 * PAGE // 512


GIB = 1 << 30


def large(kit, *sizes):
    """(region, data path, a file of all its pages) with nothing stored: 64 GiB have extents of 256 MiB."""
    region = kit.sources(*sizes)
    dax, f = DaxIo(region, ExtentTracker(None, region.npages), "cached"), FileMap()
    parts = [(source.pfn_start, source.pages) for source in region.sources]
    f.load([(start, pages, start, MAPPED, 0) for start, pages in parts])
    f.size = sum(parts[-1]) * PAGE
    dax.tracker.attach(f)
    return region, dax, f


@pytest.mark.parametrize("sizes", [(64 * GIB,), (16 * GIB + 5 * PAGE, 48 * GIB)])
def test_holes_of_a_large_region(kit, sizes):
    """What has memory is flushed, wherever it is, and nothing else gets any."""
    region, dax, f = large(kit, *sizes)
    extent = dax.tracker.held([])["unit_bytes"] // PAGE
    at = region.sources[-1].pfn_start + 20 * extent
    pages = {at, at + 1, at + 255, at + 256, at + 1000, at + extent // 2 + 77, at + 2 * extent - 1}
    for page in pages:
        dax.write(f, page * PAGE + 7, b"x")
    storage = sum(os.fstat(source.fd).st_blocks for source in region.sources)
    with Recorder(region, sites=False) as table:
        assert dax.writeback(f) == len(pages)
        log = calls(table)
    assert {page for what, start, length in log if what == "flush"
            for page in range(start // PAGE, (start + length) // PAGE)} == pages
    assert sum(os.fstat(source.fd).st_blocks for source in region.sources) == storage == len(pages) * 8


def test_a_hole_costs_no_look_at_each_page(kit):
    """Two extents of 4 GiB with a page each: each page looked at would take 36 ms."""
    _, dax, f = large(kit, 1024 * GIB)
    took = []
    for _ in range(20):
        dax.write(f, 5000, b"x")
        dax.write(f, 512 * GIB, b"x")
        start = time.perf_counter_ns()
        assert dax.writeback(f) == 2
        took.append(time.perf_counter_ns() - start)
    assert min(took) < 2_000_000, took


def test_a_hole_that_a_program_made_in_an_own_range(pool_kit):
    """MADV_REMOVE through a mapping, of which nobody told: the map still says MAPPED."""
    io = pool_kit.io(write="cached")
    io.set_tracker("extent")
    one = create(io, b"one")
    io.write(one, 0, noise(4096 * PAGE))
    io.write(one, 0, noise(4096 * PAGE))
    fd = one.map.own.fd
    with mmap.mmap(fd, 4096 * PAGE) as program:
        program.madvise(mmap.MADV_REMOVE, 10 * PAGE, 3000 * PAGE)
    before = os.fstat(fd).st_blocks
    assert before == 1096 * 8
    assert io.fsync(one) == 1096
    assert os.fstat(fd).st_blocks == before


def test_pieces_of_one_mib(kit):
    region = kit.sources(1024 * MIB)
    dax = DaxIo(region, ExtentTracker(None, region.npages), "cached")
    f = filemap(PAGE, [(0, 1, 1024, MAPPED)])
    dax.tracker.attach(f)
    region.nt_fill(4 * MIB, 1, 4 * MIB)
    dax.write(f, 0, b"x")
    with Recorder(region, sites=False) as table:
        dax.writeback(f)
        log = calls(table)
    assert log == [*(("flush", (4 + n) * MIB, MIB) for n in range(4)), ("drain", 0, 0)]


@pytest.mark.parametrize("policy", ["extent", "extent+clear"])
def test_closing(kit, policy):
    """What is stored and not synced is flushed at the end at the latest; cleared at the last close of all."""
    io = kit.io(write="cached")
    io.set_tracker(policy)
    one, two = create(io, b"one"), create(io, b"two")
    attr.setattr(io.fs, one.ino, {"size": 4 * PAGE})
    io.write(one, 0, noise(4 * PAGE))
    io.write(one, 100, b"dirty")
    active = io.snapshot()["active_extents"]
    assert active
    io.release(one)
    assert io.snapshot()["active_extents"] == active, "another one is open"
    before = io.dax.flushed_bytes
    io.release(two)
    closed = io.snapshot()["active_extents"], io.dax.flushed_bytes > before
    assert closed == ((active, False) if policy == "extent" else (0, True))
    io.write_back()
    assert io.dax.flushed_bytes > before


@pytest.mark.parametrize("policy", ["pte", "none", "extent+clear"])
def test_switching_away_flushes_what_closed_files_left(kit, policy):
    io = kit.io(write="cached")
    io.set_tracker("extent")
    one, two = create(io, b"one"), create(io, b"two")
    for node in (one, two):
        io.write(node, 0, noise(4 * PAGE))
        io.write(node, 100, b"dirty")
    io.release(one)
    with Recorder(io.fs.region, sites=False) as table:
        io.set_tracker(policy)
        flushed = {page for what, at, length in calls(table) if what == "flush"
                   for page in range(at // PAGE, (at + length) // PAGE)}
    node = reopen(io, one.ino)
    assert node.map.lookup(0)[3] in flushed and node.map.policy == policy
    if policy == "pte":
        assert (0, PAGE) <= two.map.dirty_runs()[0], "what is open keeps its marks"


def test_an_own_range_is_a_device_of_its_own(pool_kit):
    io = pool_kit.io(write="cached")
    io.set_tracker("extent")
    one, two = create(io, b"one"), create(io, b"two")
    for node in (one, two):
        io.write(node, 0, noise(512 * PAGE))
        io.fsync(node)
    io.write(one, 5 * PAGE, b"x")
    assert io.fsync(two) == 0, "its own extents are idle"
    assert io.fsync(one) == 2 and io.fsync(one) == 2, "512 pages in 256 extents; never cleared"
    io.write(one, 512 * PAGE, noise(4096 * PAGE))
    io.write(one, 4607 * PAGE, b"x")
    assert one.map.dirty_runs() == [(0, 32 * PAGE), (4576 * PAGE, 32 * PAGE)], "doubled until they reach"
    assert io.fsync(one) == 64
    own.mark_stored(one, 100, 101)
    assert io.fsync(one) == 96, "as a mapping marks"
    assert io.snapshot()["dirty_bytes"] == 96 * PAGE


def test_a_hole_of_an_own_range_stays_one(pool_kit):
    io = pool_kit.io(write="cached")
    io.set_tracker("extent")
    one = create(io, b"one")
    io.write(one, 0, noise(512 * PAGE))
    io.write(one, 0, noise(512 * PAGE))
    io.fallocate(one, 3, 8 * PAGE, 100 * PAGE)
    before = os.fstat(one.map.own.fd).st_blocks
    assert io.fsync(one) == 412
    assert os.fstat(one.map.own.fd).st_blocks == before
