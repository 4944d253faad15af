# SPDX-License-Identifier: MIT
"""What each policy of track= flushes and drains, exactly: policy x how it was stored x what asks for it.

The table is worked out here from the words of docs/tracking.md, by lines of 64 bytes, and held against a
recording and the counters of the flush table. Nothing of the tracker's is asked.
"""

import os

import pytest
from datakit import PAGE, Kit, calls, create, noise
from servekit import File, Served

from daxfs._iomap import COARSE, MAPPED
from daxfs._record import Recorder
from daxfs.data._serve import DIRECT, DSYNC, WRITE
from daxfs.data._tracker import POLICIES
from daxfs.data.file_io import FileIo
from daxfs.errors import UsageError
from daxfs.region import Region

LINE, DATA = 64, 512 * PAGE  # metadata stand below
PAGES = 600
LINES = {"line": 1, "pte": PAGE // LINE, "pmd": (2 << 20) // LINE}  # of a unit
POS, DATUM = 5000, noise(200)
WRITTEN = set(range(POS // LINE, (POS + 199) // LINE + 1))
STORED = set(range(3 * PAGE // LINE, 5 * PAGE // LINE))  # what was found of an observed mapping
WAYS = {"cached": WRITTEN, "nt": set(), "observed": STORED, "coarse": set(range(PAGES * PAGE // LINE))}
KINDS = ("clwb", "clflushopt", "clflush", "none", "msync")


class Case:
    """A clean file of 600 pages, in a range of its own or packed, under a policy."""

    def __init__(self, kit, policy: str, way: str):
        self.policy, self.way, self.own = policy, way, kit.pool
        self.io = FileIo(kit.make(), policy, "nt" if way == "nt" else "cached")
        self.fs, self.region = self.io.fs, self.io.fs.region
        self.node = create(self.io, b"f")
        self.io.write(self.node, 0, noise(PAGES * PAGE))
        self.io.fsync(self.node)
        self.fs.journal.settle()
        if policy.startswith("extent"):
            assert not self.node.map.marked, "idle until something is stored"

    def store(self, handle=None) -> None:
        if self.way in ("cached", "nt"):
            if handle:
                assert handle.write(POS, DATUM)[:2] == ("done", 0)
            else:
                self.io.write(self.node, POS, DATUM)
        elif self.way == "observed":
            self.node.map.mark(3, 2)
        else:
            self.node.map.set_state(COARSE)

    def place(self, line: int) -> int:
        """Of a line of the file, in lines of the region."""
        kind, _, _, pfn, _ = self.node.map.lookup(line * LINE // PAGE)
        assert kind == MAPPED
        return pfn * PAGE // LINE + line % (PAGE // LINE)

    def marked(self, policy: str, stored: set[int]) -> set[int]:
        """The lines of the file that count as dirty where *stored* ones are."""
        lines = range(PAGES * PAGE // LINE)
        if policy == "none":
            return set()
        if policy in LINES:
            units = {line // LINES[policy] for line in stored}
            return {line for line in lines if line // LINES[policy] in units}
        active = {self._extent(line) for line in stored}
        return {line for line in lines if self._extent(line) in active}

    def _extent(self, line: int) -> int:
        """The number of that of a line of the file."""
        size, each = 1, PAGE // LINE
        if not self.own:
            return self.place(line) // each // -(-self.region.npages // 256)
        while size * 256 < PAGES:  # 256 of the file, twice as long as long as they are too short
            size *= 2
        return line // each // size

    def due(self, policy: str = "", stored: set[int] | None = None) -> list[int]:
        """The lines of the region that a write-back has to flush, ascending."""
        policy, stored = policy or self.policy, WAYS[self.way] if stored is None else stored
        if policy.startswith("extent") and not self.own:
            size, each = -(-self.region.npages // 256), PAGE // LINE
            active = {self._extent(line) for line in stored}
            pages = [page for page in self._with_memory() if page // size in active]
            return sorted(page * each + n for page in pages for n in range(each))
        return sorted(map(self.place, self.marked(policy, stored)))

    def _with_memory(self) -> list[int]:
        """As lseek tells it, not mincore."""
        fd, at, out = os.open(self.region.sources[0].path, os.O_RDONLY), 0, []
        try:
            while at < os.fstat(fd).st_size:
                try:
                    at = os.lseek(fd, at, os.SEEK_DATA)
                except OSError:
                    break
                end = os.lseek(fd, at, os.SEEK_HOLE)
                out += range(at // PAGE, end // PAGE)
                at = end
        finally:
            os.close(fd)
        return out

    def flushed_by(self, action) -> tuple[list[int], int]:
        """(lines of data that *action* flushed, in ascending order, drains); the counters agree."""
        before = self.region.flush.counters()
        with Recorder(self.region, sites=False) as recorder:
            action()
            log = calls(recorder)
        after = self.region.flush.counters()
        flushes = [(at, length) for what, at, length in log if what == "flush"]
        assert after["flush"] - before["flush"] == len(flushes)
        lines = [line for at, n in flushes for line in range(at // LINE, (at + n - 1) // LINE + 1)]
        assert after["flush_lines"] - before["flush_lines"] == len(lines)
        drains = sum(what == "drain" for what, *_ in log)
        assert after["drain"] - before["drain"] == drains
        assert not any(what == "flush" and at >= DATA for what, at, _ in log[1 + self._last_drain(log) :])
        return sorted(line for line in lines if line * LINE >= DATA), drains

    @staticmethod
    def _last_drain(log) -> int:
        return max((n for n, (what, *_) in enumerate(log) if what == "drain"), default=-1)


def kits(kit, pool_kit):
    return {"packed": kit, "own": pool_kit}


PLACES = [("packed", way) for way in ("cached", "nt", "observed")] + [
    ("own", way) for way in ("cached", "nt", "observed", "coarse")]


@pytest.fixture(params=PLACES, ids=" ".join)
def case(request, kit, pool_kit):
    place, way = request.param
    return lambda policy: Case(kits(kit, pool_kit)[place], policy, way)


@pytest.mark.parametrize("policy", POLICIES)
def test_fsync(case, policy):
    """Its data and one drain, then that of size and times; nothing is due: that alone. A second one flushes
    again what never is clean: extents, and what nobody tracks."""
    one = case(policy)
    one.store()
    due = one.due()
    assert one.flushed_by(lambda: one.io.fsync(one.node)) == (due, 1 + bool(due))
    again = due if policy.startswith("extent") or one.way == "coarse" else []
    assert one.flushed_by(lambda: one.io.fsync(one.node)) == (again, 1 + bool(again))
    assert one.io.dax.flushed_bytes >= len(due + again) * LINE
    assert one.io.coarse_fsyncs == (2 if one.way == "coarse" and policy != "none" else 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_fsync_by_native_service(case, policy):
    """One drain for data, size and times. What nobody tracks it leaves to the metadata thread."""
    one = case(policy)
    handle = File(served(one), one.node, WRITE | DIRECT)
    one.store()
    if one.way == "coarse":
        assert one.flushed_by(handle.fsync) == ([], 0)
        return
    due = one.due()
    assert one.flushed_by(handle.fsync) == (due, 1)
    again = due if policy.startswith("extent") else []
    assert one.flushed_by(handle.fsync) == (again, 1)


def served(one: Case) -> Served:
    made = Served(one.io)
    one.node.map.set_state(2)  # PLAIN: as the open of a mount finds it
    made.limits()
    return made


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", ["cached", "nt"])
@pytest.mark.parametrize("place", ["packed", "own"])
def test_a_write_with_o_dsync(kit, pool_kit, place, way, policy):
    """Data and times with one drain, before the reply; past the cache there is nothing to flush."""
    one = Case(kits(kit, pool_kit)[place], policy, way)
    handle = File(served(one), one.node, WRITE | DIRECT | DSYNC)
    assert one.flushed_by(lambda: one.store(handle)) == (one.due(), 1)
    again = one.due() if policy.startswith("extent") else []
    assert one.flushed_by(lambda: one.io.fsync(one.node))[0] == again


@pytest.mark.parametrize("policy", POLICIES)
def test_the_last_close(case, policy):
    """Writes back what is its own; extents of packed files stay active, but with extent+clear."""
    one = case(policy)
    one.store()
    due = one.due() if one.way != "coarse" else []  # nobody asked, and who stored may go on
    kept = policy == "extent" and not one.own
    found, drains = one.flushed_by(lambda: one.io.release(one.node))
    assert found == ([] if kept else due) and drains == bool(found)
    other = create(one.io, b"other")
    assert one.flushed_by(lambda: one.io.fsync(other))[0] == (due if kept else [])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_close_that_is_not_the_last(case, policy):
    one = case(policy)
    one.fs.open(one.node.ino)
    one.io.opened(one.node)
    one.store()
    assert one.flushed_by(lambda: one.io.release(one.node)) == ([], 0)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_the_end_of_the_mount(case, policy, closed):
    """Of what is open, too; what a close has written back not again; extents once for all files. What nobody
    tracks no close has."""
    one = case(policy)
    one.store()
    due = one.due()
    if closed:
        one.io.release(one.node)
        kept = one.way == "coarse" or (policy == "extent" and not one.own)
        due = due if kept else []
    found, drains = one.flushed_by(one.io.quiesce)
    assert (found, drains) == (due, int(bool(due)))


@pytest.mark.parametrize("to", POLICIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_switch(case, policy, to):
    """To none what is dirty is flushed first, from extents what packed files left: once. Then an fsync has
    what the old one had, in whole pages and the new one's units; after none all, where that can be."""
    one = case(policy)
    one.store()
    due = one.due() if one.way != "coarse" else []
    packed = policy.startswith("extent") and not one.own
    at_once = due if to != policy and (packed or to == "none") else []
    assert one.flushed_by(lambda: one.io.set_tracker(to)) == (at_once, int(bool(at_once)))
    if to in (policy, "none") or one.way == "coarse":
        return
    if policy == "none":
        stored = WAYS["coarse"] if one.own or one.way != "nt" else set()
    else:
        each = PAGE // LINE
        pages = {line // each for line in one.marked(policy, WAYS[one.way])}
        stored = {page * each + n for page in pages for n in range(each)}
    assert one.flushed_by(lambda: one.io.fsync(one.node))[0] == one.due(to, stored)


@pytest.mark.parametrize("first, last", [(0, 1), (1, 2), (2, 4), (4, 600), (0, 600)])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_range_of_pages(case, policy, first, last):
    """What of it is dirty, in whole units, with one drain; of extents all that is active. The rest stays."""
    one = case(policy)
    one.store()
    stored = WAYS[one.way] if one.way != "coarse" else set()
    unit = max(LINES.get(policy, 1), PAGE // LINE)
    low, high = first * PAGE // LINE // unit * unit, -(-last * PAGE // LINE // unit) * unit
    part = {line for line in one.marked(policy, stored) if low <= line < high}
    now = one.due(policy, stored) if policy.startswith("extent") else sorted(map(one.place, part))
    assert one.flushed_by(lambda: one.io.dax.writeback(one.node.map, first, last)) == (now, 1)
    rest = sorted(set(one.due(policy, stored)) - (set() if policy.startswith("extent") else set(now)))
    assert one.flushed_by(lambda: one.io.dax.writeback(one.node.map)) == (rest, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_each_kind_of_flush(policy, kind):
    """The table is the same, whatever a flush is: also none, which counts and writes nothing back."""

    class Kinds(Kit):
        def open(self, path):
            try:
                region = Region.open([path], flush=kind,
                                     granularity={"msync": "page", "none": "byte"}.get(kind, "auto"))
            except UsageError as error:
                os.unlink(path)
                pytest.skip(str(error))
            self._made.append((path, region))
            return region

    with Kinds() as made:
        one = Case(made, policy, "cached")
        assert one.region.flush.kind == kind
        one.store()
        due = one.due()
        assert one.flushed_by(lambda: one.io.fsync(one.node)) == (due, 1 + bool(due))
        assert one.io.dax.flushed_bytes == len(due) * LINE
