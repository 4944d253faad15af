# SPDX-License-Identifier: MIT
"""Every policy of track=: what it reports is a superset of what is dirty, whatever is stored, cut or
switched; no more than its granularity forces; and it flushes exactly that, counted."""

import errno

import pytest
from datakit import MIB, PAGE, Kit, calls, create, filemap, noise, reopen
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from daxfs._iomap import MAPPED
from daxfs._record import Recorder
from daxfs.data._dax_io import DaxIo
from daxfs.data._tracker import POLICIES, TRACKERS
from daxfs.data.file_io import FileIo
from daxfs.meta import attr

LINE, PMD = 64, 2 * MIB
UNITS = {"line": LINE, "pte": PAGE, "pmd": PMD}
EXTENTS = ("extent", "extent+clear")
# (pgoff, pages, pfn, type): neighbours in the file that are none in the region, a hole, and another 2 MiB.
LAYOUT = [(0, 40, 600, MAPPED), (40, 10, 30, MAPPED), (60, 70, 700, MAPPED), (600, 8, 900, MAPPED)]
SPANS = [(0, 50), (60, 130), (600, 608)]  # pages that can be written over
PAGES = 608


def policy_of(name: str, region):
    return TRACKERS[name](None, region.npages)


def lines(pos: int, length: int) -> range:
    return range(pos // LINE, (pos + length + LINE - 1) // LINE)


class Histories(RuleBasedStateMachine):
    """``dirty``: lines that were stored through the cache and not flushed, as the recorder saw it.

    ``forced``: lines that the policy may report besides: whole pages that a mapping or a switch has marked.
    ``unknown``: stored under ``none``, which promises nothing; a switch to another one takes them up.
    """

    def __init__(self):
        super().__init__()
        self.kit = Kit()
        self.region = self.kit.sources(4 * MIB)
        self.region.nt_fill(0, 7, 4 * MIB)  # so that every page has memory: others are not flushed by extents
        self.f = filemap(PAGES * PAGE, LAYOUT)
        self.dax = DaxIo(self.region, TRACKERS["pte"](), "cached")
        self.dax.tracker.attach(self.f)
        self.recorder = Recorder(self.region, sites=False).__enter__()
        self.dirty: set[int] = set()
        self.forced: set[int] = set()
        self.unknown: set[int] = set()

    def teardown(self):
        self.recorder.close()
        self.kit.close()

    def place(self, line: int) -> int:
        """The line of the region in which line *line* of the file stands; -1: in none."""
        kind, _, _, pfn, _ = self.f.lookup(line * LINE // PAGE)
        return pfn * PAGE // LINE + line % (PAGE // LINE) if kind == MAPPED else -1

    def follow(self):
        """Flushes that the recorder saw; stores are those of `write`."""
        flushed: set[int] = set()
        for what, offset, length in calls(self.recorder):
            if what == "flush":
                flushed.update(lines(offset, length))
        for lines_ in (self.dirty, self.forced, self.unknown):
            lines_.difference_update([line for line in lines_ if self.place(line) in flushed])

    def mapped_lines(self, first: int, last: int) -> set[int]:
        pages = (page for page in range(first, last) if self.f.lookup(page)[0] == MAPPED)
        return {line for page in pages for line in lines(page * PAGE, PAGE)}

    @rule(span=st.sampled_from(SPANS), at=st.integers(0, 70 * PAGE),
          length=st.one_of(st.integers(1, 200), st.integers(1, 9 * PAGE)))
    def write(self, span, at, length):
        pos = min(span[0] * PAGE + at, span[1] * PAGE - 1)
        length = min(length, span[1] * PAGE - pos, self.f.size - pos)
        if length > 0:
            assert self.dax.write(self.f, pos, noise(length)) == 0
            self.follow()
            (self.unknown if self.f.policy == "none" else self.dirty).update(lines(pos, length))

    @rule(first=st.integers(0, PAGES), count=st.integers(1, 90))
    def mapping_stores(self, first, count):
        """Observed, coarse or of a handler: whole pages."""
        self.f.mark(first, count)
        there = self.mapped_lines(first, min(first + count, -(-self.f.size // PAGE)))
        (self.unknown if self.f.policy == "none" else self.dirty).update(there)

    @rule(first=st.integers(0, PAGES), count=st.integers(0, 130))
    def writeback(self, first, count):
        self.dax.writeback(self.f, first, first + count)

    @rule()
    def fsync(self):
        self.dax.writeback(self.f)
        self.follow()
        self.forced.clear()
        assert not self.dirty
        if self.f.policy not in EXTENTS:
            assert not self.f.marked and self.f.dirty_bytes == 0 and self.f.dirty_runs() == []

    @rule(pages=st.integers(1, PAGES))
    def truncate(self, pages):
        """As meta/file.py does: the size, then the marks of what is gone; and it grows again."""
        self.follow()
        gone = set(range(pages * PAGE // LINE, PAGES * PAGE // LINE))
        self.f.size = pages * PAGE
        self.f.unmark(pages, 1 << 32)
        self.dirty -= gone
        self.unknown -= gone
        if self.f.unit == PMD:
            self.forced |= gone  # a unit of which a part is still there
        else:
            self.forced -= gone
        self.f.size = PAGES * PAGE

    @rule(policy=st.sampled_from(POLICIES))
    def switch(self, policy):
        self.follow()
        if policy == self.f.policy:
            return
        before = {line for pos, length in self.f.dirty_runs() for line in lines(pos, length)}
        pages = {line * LINE // PAGE for line in before}
        if self.f.policy == "none":
            pages, self.dirty, self.unknown = set(range(PAGES)), self.dirty | self.unknown, set()
        if policy == "none":
            self.unknown, self.dirty = self.unknown | self.dirty, set()
            self.forced.clear()
        policy_of(policy, self.region).attach(self.f, suspect=True)
        if policy != "none":
            self.forced = {line for page in pages for line in lines(page * PAGE, PAGE)}

    @invariant()
    def reports_what_is_dirty_and_no_more_than_it_must(self):
        self.follow()
        reported = {line for pos, length in self.f.dirty_runs() for line in lines(pos, length)}
        assert reported >= self.dirty, "stored, not flushed and not marked: fsync would lose it"
        if self.f.policy in EXTENTS:
            pages = {line * LINE // PAGE for line in reported}
            assert all(self.f.lookup(page)[0] == MAPPED for page in pages)
            return
        unit = UNITS.get(self.f.policy)
        if unit is None:
            assert not reported and not self.f.marked
            return
        each = unit // LINE
        allowed = {line for one in {line // each for line in self.dirty | self.forced}
                   for line in range(one * each, (one + 1) * each)}
        assert reported <= allowed, "more than its granularity forces"
        assert len(reported) * LINE == self.f.dirty_bytes and self.f.marked == bool(reported)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


# policy: [(place in the region, bytes)] flushed after one byte at 5000 and 200 bytes at 40 * PAGE - 100
EXACT = {
    "line": [(600 * PAGE + 4992, LINE), (639 * PAGE + 3968, 128), (30 * PAGE, 128)],
    "pte": [(601 * PAGE, PAGE), (639 * PAGE, PAGE), (30 * PAGE, PAGE)],
    "pmd": [(600 * PAGE, 40 * PAGE), (30 * PAGE, 10 * PAGE), (700 * PAGE, 70 * PAGE)],
    "none": [],
}


@pytest.mark.parametrize("policy", EXACT)
def test_each_policy_flushes_exactly_what_it_must(kit, policy):
    region, f = kit.sources(4 * MIB), filemap(PAGES * PAGE, LAYOUT)
    dax = DaxIo(region, TRACKERS[policy](), "cached")
    dax.tracker.attach(f)
    dax.write(f, 5000, b"x")
    dax.write(f, 40 * PAGE - 100, noise(200))
    with Recorder(region, sites=False) as table:
        before = region.flush.counters()
        pages = dax.writeback(f)
        after = region.flush.counters()
        log = calls(table)
    bytes_ = sum(length for _, length in EXACT[policy])
    assert log == [*(("flush", at, length) for at, length in EXACT[policy]), ("drain", 0, 0)]
    assert after["flush_lines"] - before["flush_lines"] == bytes_ // LINE
    assert after["drain"] - before["drain"] == 1
    assert (pages, dax.flushed_bytes) == (-(-bytes_ // PAGE), bytes_)
    # The second write is in two extents, each of which is marked.
    marked = {"line": 5 * LINE, "pte": 3 * PAGE, "pmd": 3 * PMD, "none": 0}[policy]
    assert dax.dirtied_bytes == marked
    assert dax.writeback(f) == 0 and not f.marked


def test_a_part_of_a_pmd_is_flushed_as_a_whole(kit):
    """Else its mark would go with pages that were not flushed."""
    region, f = kit.sources(4 * MIB), filemap(PAGES * PAGE, LAYOUT)
    dax = DaxIo(region, TRACKERS["pmd"](), "cached")
    dax.tracker.attach(f)
    dax.write(f, 3 * PAGE, b"x")
    dax.write(f, 600 * PAGE, b"x")
    assert dax.writeback(f, 60, 61) == 120 and f.dirty_runs() == [(PMD, PMD)]
    assert dax.writeback(f) == 8 and not f.marked


@pytest.mark.parametrize("policy", ["line", "pte", "pmd"])
def test_what_is_behind_the_end_is_not_flushed(kit, policy):
    region, f = kit.sources(4 * MIB), filemap(PAGES * PAGE, LAYOUT)
    dax = DaxIo(region, TRACKERS[policy](), "cached")
    dax.tracker.attach(f)
    f.mark(0, 50)
    f.size = 2 * PAGE + 1
    assert dax.writeback(f) == 3


@pytest.mark.parametrize("write", ["cached", "nt"])
def test_a_mount_switches_all_its_files(kit, write):
    io = kit.io(write=write)
    one, two = create(io, b"one"), create(io, b"two")
    for node in (one, two):
        attr.setattr(io.fs, node.ino, {"size": 10 * PAGE})
        io.write(node, 0, noise(10 * PAGE))
        io.fsync(node)
    io.write(one, 100, b"dirty")
    assert io.set_tracker("line") == 2 and io.tracker.name == "line"
    assert one.map.policy == two.map.policy == "line" and create(io, b"three").map.policy == "line"
    shown = io.snapshot()
    dirty = PAGE if write == "cached" else 0
    assert (shown["policy"], shown["unit_bytes"], shown["dirty_bytes"]) == ("line", 64, dirty)
    assert shown["memory_bytes"] > (4096 if dirty else 0)
    assert io.fsync(one) == dirty // PAGE
    io.set_tracker("none")
    io.write(two, 100, b"nobody knows")
    assert io.fsync(two) == 0 and io.snapshot()["memory_bytes"] == 0
    io.set_tracker("pte")
    assert io.fsync(two) == (10 if write == "cached" else 0), "all that is mapped, once"
    assert io.fsync(two) == 0


def test_a_switch_that_failed_half_way(kit, monkeypatch):
    """The next open brings the file back, with all of what nobody knew meanwhile; nothing is left out."""
    io = kit.io(write="cached")
    nodes = [create(io, name) for name in (b"one", b"two")]
    for node in nodes:
        io.write(node, 0, noise(4 * PAGE))
    done = []

    def track(fmap, tracker):
        if done:
            raise MemoryError
        done.append(fmap)
        FileIo._track(io, fmap, tracker)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(io, "_track", track)
        io.set_tracker("none")
    first = next(node for node in nodes if node.map is done[0])
    io.write(first, 100, b"nobody knows")
    assert io.tracker.name == "pte" and {node.map.policy for node in nodes} == {"none", "pte"}
    again = reopen(io, first.ino)
    assert again is first and first.map.policy == "pte" and io.fsync(first) == 4


def test_a_policy_that_is_unknown(kit):
    io = kit.io()
    with pytest.raises(KeyError):
        io.set_tracker("xfs")
    with pytest.raises(KeyError):
        FileIo(io.fs, "xfs")
    assert io.tracker.name == "pte"


@pytest.mark.parametrize("policy", POLICIES)
def test_after_kill_nothing_is_flushed(kit, policy):
    region, f = kit.sources(4 * MIB), filemap(PAGES * PAGE, LAYOUT)
    dax = DaxIo(region, policy_of(policy, region), "cached")
    dax.tracker.attach(f)
    dax.write(f, 5000, b"x")
    region.table.kill()
    with pytest.raises(OSError) as caught:
        dax.writeback(f)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("write, track, flushes", [("cached", "pte", True), ("cached", "extent", True),
                                                   ("cached", "none", False), ("nt", "pte", False)])
def test_what_a_killed_daemon_left_in_the_cache_is_flushed_first(kit, write, track, flushes):
    """Its marks are gone, so that no fsync would flush it."""
    io = kit.io(write)
    node = create(io, b"f")
    io.write(node, 0, noise(8 * PAGE))
    io.fsync(node)
    io.write(node, PAGE, b"dirty")
    fs, place = kit.crash_copy(io.fs), node.map.lookup(1)[3] * PAGE
    assert fs.unclean
    with Recorder(fs.region, sites=False) as recorder:
        FileIo(fs, track, write)
        log = calls(recorder)
    found = [at <= place < at + n for what, at, n in log if what == "flush"]
    assert any(found) == flushes == (("drain", 0, 0) in log)
    assert not kit.remount(io).fs.unclean
