# SPDX-License-Identifier: MIT
"""The tracker: what it reports is what was stored and not flushed, and asking costs what is dirty."""

import errno
import time

import pytest
from datakit import MIB, PAGE, Kit, calls, filemap, mapped, noise
from flush_table import table_of, watched
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from daxfs._iomap import MAPPED
from daxfs._record import Recorder
from daxfs.data._dax_io import DaxIo
from daxfs.data._tracker import POLICIES, PteTracker, Tracker
from daxfs.data.file_io import TRACKERS

# (pgoff, pages, pfn, type): in the file neighbours, in the region not, with a hole between.
LAYOUT = [(0, 40, 600, MAPPED), (40, 10, 30, MAPPED), (60, 70, 700, MAPPED)]
SPANS = [(0, 50), (60, 130)]  # pages that can be written over


class Dirty(RuleBasedStateMachine):
    """A recorder says what was stored and what was flushed; the tracker must agree, to the page."""

    def __init__(self):
        super().__init__()
        self.kit = Kit()
        self.region = self.kit.sources(4 * MIB)
        self.files = [filemap(130 * PAGE, LAYOUT), mapped(50, 200)]
        self.dax = DaxIo(self.region, PteTracker(), "cached")
        for f in self.files:
            self.dax.tracker.attach(f)
        self.recorder = Recorder(self.region, sites=False).__enter__()
        self.stored: set[int] = set()  # pfns

    def teardown(self):
        self.recorder.close()
        self.kit.close()

    def follow(self):
        for what, offset, length in calls(self.recorder):
            pages = range(offset // PAGE, (offset + length + PAGE - 1) // PAGE)
            if what == "store":
                self.stored.update(pages)
            elif what == "flush":
                self.stored.difference_update(pages)

    @rule(which=st.integers(0, 1), span=st.sampled_from(SPANS), at=st.integers(0, 70 * PAGE),
          length=st.one_of(st.integers(1, 200), st.integers(1, 9 * PAGE)))
    def write(self, which, span, at, length):
        first, end = span if which == 0 else (0, 50)
        pos = min(first * PAGE + at, end * PAGE - 1)
        assert self.dax.write(self.files[which], pos, noise(min(length, end * PAGE - pos))) == 0

    @rule(which=st.integers(0, 1), first=st.integers(0, 130), count=st.integers(0, 130))
    def writeback(self, which, first, count):
        self.dax.writeback(self.files[which], first, first + count)

    @rule(which=st.integers(0, 1))
    def fsync(self, which):
        self.dax.writeback(self.files[which])
        assert self.files[which].dirty.count == 0

    @invariant()
    def tracker_and_recorder_agree(self):
        self.follow()
        marked = set()
        for f in self.files:
            for first, count in f.dirty.runs():
                for page in range(first, first + count):
                    kind, _, _, pfn, _ = f.lookup(page)
                    assert kind == MAPPED
                    marked.add(pfn)
        assert marked >= self.stored, "stored, not flushed and not marked: fsync would lose it"
        assert marked == self.stored, "exact to 4 KiB"
        assert sum(self.dax.tracker.dirty_pages(f) for f in self.files) == len(marked)


TestDirty = Dirty.TestCase
TestDirty.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def sparse(kit, pages: int):
    """(region, dax, file): of *pages* pages the first and the last one are there."""
    region = kit.sources(4 * MIB)
    f = filemap(pages * PAGE, [(0, 1, 20, MAPPED), (pages - 1, 1, 30, MAPPED)])
    dax = DaxIo(region, PteTracker(), "cached")
    dax.tracker.attach(f)
    return region, dax, f


def test_one_dirty_page_costs_the_same_in_one_mib_and_in_one_tib(kit):
    """Counted: chunks of the bitmap, flushes, lines; then timed, against noise by the best of many."""
    seen, best = [], []
    for pages in (256, 1 << 28):
        region, dax, f = sparse(kit, pages)
        pos = pages * PAGE - 100
        dax.write(f, pos, b"x")
        chunks = f.dirty.chunks
        with Recorder(region, sites=False) as table:
            pages_flushed = dax.writeback(f)
            log = calls(table)
        seen.append((chunks, f.dirty.chunks, pages_flushed, log))
        times = []
        for _ in range(300):
            dax.write(f, pos, b"x")
            start = time.perf_counter_ns()
            dax.writeback(f)
            times.append(time.perf_counter_ns() - start)
        best.append(min(times))
    assert seen[0] == seen[1] == (1, 0, 1, [("flush", 30 * PAGE, PAGE), ("drain", 0, 0)])
    assert best[1] < 3 * best[0] + 2000, best


def test_a_range_is_written_back_alone(kit):
    _, dax, f = sparse(kit, 1 << 28)
    dax.write(f, 5, b"first")
    dax.write(f, (1 << 40) - 9, b"last")
    assert dax.writeback(f, 1, (1 << 28) - 1) == 0 and f.dirty.count == 2
    assert dax.writeback(f, (1 << 28) - 1) == 1 and f.dirty.count == 1
    assert dax.writeback(f, 0, 1) == 1 and f.dirty.count == 0


def test_pages_without_a_block_are_not_flushed(kit):
    """Marked by a mapping that was cut since: nothing to flush, and no store is looked for outside."""
    region, dax, f = sparse(kit, 256)
    f.dirty.set(0, 256)
    with Recorder(region, sites=False) as table:
        assert dax.writeback(f) == 2
        assert [entry[0] for entry in calls(table)] == ["flush", "flush", "drain"]
    assert f.dirty.count == 0


def test_failed_writeback_leaves_everything_dirty(kit):
    """A flush that reports an error (msync): the marks stay, and the next fsync tries again."""
    region, dax, f = sparse(kit, 256)
    dax.write(f, 0, b"x")

    def fail(what, *_):
        if what == "flush":
            table_of(region.flush).error = errno.EIO

    with watched(region, fail), pytest.raises(OSError) as caught:
        dax.writeback(f)
    assert caught.value.errno == errno.EIO and f.dirty.count == 1
    assert dax.writeback(f) == 1 and f.dirty.count == 0


def test_attach_keeps_what_is_marked():
    f, tracker = mapped(4), PteTracker()
    assert tracker.dirty_pages(f) == 0
    tracker.attach(f)
    f.dirty.set(1, 2)
    tracker.attach(f)
    assert tracker.dirty_pages(f) == 2
    Tracker().attach(f)
    assert tracker.dirty_pages(f) == 0 and f.dirty is None


def test_policies_are_the_ones_that_there_are():
    assert set(TRACKERS) == set(POLICIES)
    assert all(TRACKERS[name].name == name for name in POLICIES)
