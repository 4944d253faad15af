# SPDX-License-Identifier: MIT
"""Where the time of an fsync goes: phases add up, and each cost shows in its phase (docs/fsync.md).

What a phase must have is asserted of each fsync; what it must not have, of the least of many, so that a
thread that was held up makes no difference.
"""

import ctypes
import struct
import threading
import time

import pytest
import rawmsg as R
from datakit import MIB, PAGE, create, filemap, noise
from servekit import Served
from test_handler import observed, pool  # noqa: F401 (fixtures)
from test_observer import needs_kernel, range_path, registered
from test_transport import Wire

from daxfs._emulate import Emulation
from daxfs._fsync import PHASES, PYTHON, REPLY, FsyncCounts, FsyncRun
from daxfs._iomap import COARSE, MAPPED, UNSETTLED
from daxfs.data._dax_io import DaxIo
from daxfs.data._tracker import TRACKERS
from daxfs.data.file_io import FileIo
from daxfs.fault import _observe
from daxfs.fuse import stats, trace

SLOW = {"flush_line_ns": 2000.0, "flush_drain_ns": 500_000.0, "nt_line_ns": 0.0, "nt_drain_ns": 0.0,
        "write_gb_s": 0.0}  # fmt: skip
ROUNDS = 40


def totals(counts: FsyncCounts) -> dict[str, int]:
    """ns of each phase and of ``total``, and ``count``."""
    found = counts.snapshot()
    out = {name: one["total_ns"] for name, one in found["phases"].items()}
    assert list(out) == list(PHASES) and sum(out.values()) == found["total"]["total_ns"]
    for one in (*found["phases"].values(), found["total"]):
        assert sum(one["histogram"]) == found["count"]
    return out | {"total": found["total"]["total_ns"], "count": found["count"]}


class Natively:
    """Fsyncs of one file of *size* bytes, by native code."""

    def __init__(self, kit, size=MIB, write="cached", track="pte"):
        self.served = Served(FileIo(kit.make(64 * MIB), track, write))
        self.file = self.served.open(size=size)
        self.node = self.file.node
        self.file.fsync()

    def counts(self):
        return totals(self.served.server.counts()["fsync"])

    def one(self, verdict=("done", 0)) -> dict[str, int]:
        """What one fsync takes, by phases."""
        before = self.counts()
        assert self.file.fsync()[:2] == verdict
        after = self.counts()
        assert after["count"] == before["count"] + (verdict[0] == "done")
        return {name: after[name] - before[name] for name in after}

    def store(self, pages) -> None:
        for page in pages:
            self.file.write(page * PAGE, b"x" * 64)


def least(rounds: list[dict[str, int]]) -> dict[str, int]:
    return {name: min(one[name] for one in rounds) for name in rounds[0]}


@pytest.fixture
def natively(kit):
    return lambda **how: Natively(kit, **how)


def test_laps_add_up_whatever_is_measured():
    run, counts = FsyncRun(), FsyncCounts()
    for phase in range(len(PHASES)):
        time.sleep(0.0003 if phase % 3 else 0)
        run.lap(phase)
    run.lap(REPLY)
    assert sum(run.phases().values()) == run.total and run.phases()["look"] >= 300_000
    counts.add(run)
    other = FsyncCounts()
    other.merge(counts)
    other.merge(counts)
    assert totals(other) == {name: 2 * value for name, value in totals(counts).items()}
    with pytest.raises(ValueError):
        run.lap(len(PHASES))


def test_what_another_thread_did_is_taken_from_python():
    theirs, run = FsyncRun(), FsyncRun()
    time.sleep(0.002)
    theirs.lap(PHASES.index("look"))
    time.sleep(0.001)
    run.lap(PYTHON)
    before = run.phases()["python"]
    run.absorb(theirs)
    assert run.phases()["look"] == theirs.phases()["look"] >= 2_000_000
    assert run.phases()["python"] == before - run.phases()["look"] >= 1_000_000
    short = FsyncRun()
    short.lap(PYTHON)
    short.absorb(theirs)  # never more than was waited for
    assert sum(short.phases().values()) == short.total and short.phases()["python"] == 0


def test_one_of_each_is_counted_once(natively):
    it = natively()
    it.store([0])
    first = it.one()
    assert all(first[name] > 0 for name in ("walk", "flush", "drain", "reply", "other", "total"))
    assert not any(first[name] for name in ("look", "meta", "lock", "python"))
    clean = it.one()
    assert clean["drain"] > 0 and clean["walk"] == clean["flush"] == 0
    raw = R.fsync(it.file.ino, it.file.fh + 1)
    assert it.served.feed(raw)[:2] == ("done", -9)
    assert it.counts()["count"] == 4, "a refused one is one, too"
    it.served.feed(R.fsync(it.file.ino, it.file.fh, op="fsyncdir"))
    it.served.fs.lazytime = True
    it.served.limits()
    it.store([1])
    assert it.one()["meta"] > 0


def test_o_dsync_is_no_fsync(natively):
    it = natively()
    before = it.counts()
    fh = it.served.server.open(it.node.map, it.node.ino, 1 | 2 | 4)  # WRITE, DIRECT, DSYNC
    assert it.served.feed(R.write(it.file.ino, fh, 0, b"durable"))[:2] == ("done", 0)
    assert it.counts() == before and not it.node.map.marked


def test_what_python_has_to_do_is_not_counted_here(natively):
    it = natively()
    it.store(range(3))
    it.node.map.set_state(UNSETTLED)
    before = it.counts()
    assert it.file.fsync()[0] == "call" and it.counts() == before and not it.node.map.marked


def test_a_slow_medium_shows_in_flush_and_drain_alone(natively):
    it = natively()
    emulation = Emulation(it.served.fs.region.flush, **SLOW)
    lines, rounds = 1024, []
    for _ in range(ROUNDS):
        for page in range(16):
            it.file.write(page * PAGE, noise(PAGE))
        rounds.append(it.one())
        # A flush returns with 64 lines under way.
        assert rounds[-1]["flush"] >= (lines - 64 - 1) * SLOW["flush_line_ns"]
        assert rounds[-1]["drain"] >= SLOW["flush_drain_ns"]
        assert rounds[-1]["flush"] + rounds[-1]["drain"] >= emulation.asked(lines, False) * 0.999
    best = least(rounds)
    assert sum(best[name] for name in PHASES if name not in ("flush", "drain")) < best["flush"] / 10


def test_a_walk_over_many_runs_shows_in_walk(natively):
    """1,024 pages, together or each alone; twice as many pieces as are gathered at once."""
    it = natively(size=32 * MIB)
    pages = 2048
    one, many = [], []
    for _ in range(ROUNDS):
        it.node.map.mark(0, pages)
        one.append(it.one())
        for page in range(0, 2 * pages, 2):
            it.node.map.mark(page, 1)
        many.append(it.one())
    assert least(many)["walk"] > 20 * least(one)["walk"]
    assert least(many)["look"] == least(many)["lock"] == 0


def test_a_held_lock_shows_in_lock(natively):
    it = natively()
    found = []
    for _ in range(3):
        it.store([0])
        thread = threading.Thread(target=lambda: found.append(it.one()))
        with it.node.map:
            thread.start()
            while not it.node.map.waited_for:
                time.sleep(0.0001)
            begun = time.monotonic_ns()
            time.sleep(0.02)
            held = time.monotonic_ns() - begun
        thread.join()
        assert found[-1]["lock"] >= held
    assert sum(least(found)[name] for name in PHASES if name != "lock") < least(found)["lock"] / 4
    assert it.one()["lock"] == 0


@pytest.mark.parametrize("policy", ["pte", "pmd", "line", "extent", "extent+clear", "none"])
def test_every_policy_has_its_phases(natively, policy):
    it = natively(track=policy)
    it.store(range(5))
    found = it.one()
    assert found["drain"] and bool(found["flush"]) == bool(found["walk"]) == (policy != "none")


def test_helpers_are_in_flush(kit):
    """A shared flush: its helpers' drains too."""
    region = kit.sources(16 * MIB)
    dax, f = DaxIo(region, TRACKERS["pte"](), "cached", flushers=3), filemap(8 * MIB, [(0, 2048, 16, MAPPED)])
    dax.tracker.attach(f)
    f.mark(0, 2048)
    run = FsyncRun()
    assert dax.writeback(f, times=run) == 2048 and dax.snapshot()["shared_flushes"] == 1
    assert all(run.phases()[name] for name in ("walk", "flush", "drain")) and not run.phases()["lock"]


# -- Python's half ------------------------------------------------------------------------------


def test_what_python_does_is_timed_in_what_it_calls(pool_kit):
    """All pages of a range that may be mapped are marked: a look. The range's file and the journal: meta."""
    io = FileIo(pool_kit.make(), "pte", "cached")
    node = create(io, b"f")
    assert node.map.own is not None
    io.write(node, 0, noise(MIB))
    run = FsyncRun()
    io.fsync(node, run)
    io.fs.journal.settle()
    node.map.set_state(COARSE)
    run = FsyncRun()
    assert io.fsync(node, run) == 256
    seen = run.phases()
    assert all(seen[name] for name in ("look", "walk", "flush", "drain", "meta", "python"))
    assert sum(seen.values()) == run.total and not seen["reply"] and not seen["other"]


def test_a_slow_medium_in_python_too(kit):
    io = FileIo(kit.make(), "pte", "cached")
    node = create(io, b"f")
    io.write(node, 0, noise(16 * PAGE))
    io.fs.journal.settle()
    emulation = Emulation(io.fs.region.flush, **SLOW)
    io.write(node, 0, noise(16 * PAGE))
    run = FsyncRun()
    io.fsync(node, run)
    assert run.phases()["flush"] + run.phases()["drain"] >= emulation.asked(1024, False) * 0.999


def test_a_write_back_of_observed_mappings_is_a_look(observed):  # noqa: F811
    """fault=user: entries and protecting are the look; the flush and the drain are what they are."""
    one = observed(data=noise(4 * MIB, 2), pmd=False)
    Emulation(one.io.fs.region.flush, **SLOW)
    one.node.map.own.learn(one.node.map, 0, 0)
    for page in range(100):
        one.view[page * PAGE] = page
    run = FsyncRun()
    one.handler.write_back(one.node.map, times=run)
    seen = run.phases()
    assert seen["look"] > 100 * 100, "100 pages were protected, each by a system call"
    assert seen["flush"] + seen["drain"] >= 6400 * SLOW["flush_line_ns"] * 0.999
    assert seen["walk"] and not seen["lock"] and sum(seen.values()) == run.total
    quiet = FsyncRun()
    one.handler.write_back(one.node.map, times=quiet)
    assert quiet.phases()["look"] and not quiet.phases()["flush"]


@needs_kernel
def test_a_scan_of_page_tables_is_a_look(pool_kit):
    """fault=kernel."""
    io = FileIo(pool_kit.make())
    node = create(io, b"f")
    io.write(node, 0, noise(4 * MIB))
    run = FsyncRun()
    with open(range_path(io, node), "r+b") as file, registered(file) as (mapping, address):
        with open("/proc/self/pagemap", "rb") as pagemap:
            mapping[5] = 1
            _observe.Found().scan(pagemap.fileno(), address, address + 4 * MIB, address, 0, times=run)
    assert run.phases()["look"] > 0 and sum(run.phases().values()) == run.total


# -- the transport ------------------------------------------------------------------------------


def test_a_call_takes_its_phases_along(kit):
    """What was native before it, the wait for Python, and the reply."""
    served = Served(FileIo(kit.make(), "pte", "cached"))
    file = served.open(size=MIB)
    file.fsync()
    ring = served.io.dax.trace
    ring.keep(trace.CLASSES["fsync"])
    wire = Wire(served)
    try:
        file.write(0, b"x" * PAGE)
        file.node.map.set_state(UNSETTLED)
        wire.kernel.send(R.fsync(file.ino, file.fh))
        call = wire.call()
        time.sleep(0.01)
        served.io.fsync(file.node, call.fsync)
        call.reply(0)
        assert wire.reply() == (0, b"")
        counts = wire.transport.counts()
        called = totals(counts["fsync_called"])
        assert called["count"] == 1 and totals(counts["fsync"])["count"] == 0
        assert all(called[name] for name in ("walk", "flush", "drain", "meta", "reply", "python", "other"))
        assert called["python"] >= 10_000_000
        file.node.map.clear_state(UNSETTLED)
        assert wire.ask(R.fsync(file.ino, file.fh)) == (0, b"")
        found = stats.fsyncs(FsyncCounts(), wire.transport.counts())
        assert (found["count"], found["served"]) == (2, 1)
        assert list(found) == ["count", "served", "total", "phases"]
        whole = found["total"]["total_ns"]
        assert sum(one["total_ns"] for one in found["phases"].values()) == whole
        events = [trace.Decoder().event(record) for record in ring.read()]
        assert [event["how"] for event in events] == ["called", "served"]
        assert sum(sum(event["args"].values()) for event in events) == whole
        assert all(sum(event["args"].values()) == event["latency_ns"] for event in events)
    finally:
        wire.close()


def test_who_has_the_reply_finds_it_counted(kit):
    served = Served(kit.io())
    file = served.open(size=PAGE)
    wire = Wire(served)
    try:
        for n in range(1, 3000):
            assert wire.ask(R.fsync(file.ino, file.fh)) == (0, b"")
            assert wire.transport.counts()["fsync"].count == n
    finally:
        wire.close()


# -- as text ------------------------------------------------------------------------------------


def test_an_event_in_words():
    phases = dict(zip(PHASES, (0, 0, 1500, 48, 2_000_000, 0, 40, 0, 12), strict=True))
    body, whole = struct.pack("<9Q", *phases.values()), sum(phases.values())

    def event(error=0, how=0, pid=7, unique=48):
        return trace.Decoder().event(trace.RECORD.pack(
            10**18, trace.FSYNC, 20, unique, 5, 0, 0, pid, error, 0, how, whole, len(body), body))

    shown = trace.line(event()).split(" ", 1)[1]
    assert shown == ("#48 fsync_done: ino 0x5 walk 1.5 µs, flush 48 ns, drain 2.0 ms, reply 40 ns, "
                     "other 12 ns <2.0 ms, served> pid 7")
    assert event()["args"] == phases and event()["error"] is None
    assert trace.line(event(-5, 1, 0, 0)).endswith("other 12 ns <2.0 ms, relayed, EIO>")
    short = trace.RECORD.pack(10**18, trace.FSYNC, 20, 1, 5, 0, 0, 0, 0, 0, 3, 9, 8, b"12345678")
    assert trace.Decoder().event(short)["args"] == {} and trace.line(trace.Decoder().event(short))
    run = FsyncRun()
    run.lap(PYTHON)
    made = trace.Decoder().event(trace.fsync_record(5, 28, run))
    assert made["error"] == "ENOSPC" and made["args"] == run.phases() and made["latency_ns"] == run.total
    assert trace.class_of(trace.fsync_record(5, 0, run)) == trace.CLASSES["fsync"]
    assert ctypes.sizeof(ctypes.c_uint64) * len(PHASES) == len(body)
