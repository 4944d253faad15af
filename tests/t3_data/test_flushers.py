# SPDX-License-Identifier: MIT
"""flushers=: a large write-back is shared, a small one never; each line is flushed once, whoever does it."""

import contextlib
import os
import threading
import time

import pytest
from datakit import MIB, PAGE, calls, create, filemap, noise

from daxfs._iomap import MAPPED
from daxfs._record import Recorder
from daxfs.data._dax_io import DaxIo
from daxfs.data._tracker import TRACKERS
from daxfs.errors import DaxfsError

PAGES = 24 * 256  # 24 MiB
CPUS = len(os.sched_getaffinity(0))
with_two_cpus = pytest.mark.skipif(CPUS < 2, reason="helpers need a CPU that is not the caller's")


def threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


@contextlib.contextmanager
def on_cpus(cpus):
    """This thread, and what it starts, on *cpus*; what Linux calls them is given back."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def rig(kit, flushers, policy="pte", files=1):
    region = kit.sources(64 * MIB)
    region.nt_fill(0, 7, 64 * MIB)
    dax = DaxIo(region, TRACKERS[policy](None, region.npages), "cached", flushers=flushers)
    out = [filemap(PAGES // files * PAGE, [(0, PAGES // files, 512 + n * PAGES // files, MAPPED)])
           for n in range(files)]
    for f in out:
        dax.tracker.attach(f)
    return region, dax, out


def spent(region, call) -> dict:
    before = region.flush.counters()
    call()
    return {name: value - before[name] for name, value in region.flush.counters().items()}


@pytest.mark.parametrize("policy", ["pte", "pmd", "line", "extent"])
@pytest.mark.parametrize("flushers", [1, 2, 5])
def test_counters_are_exact(kit, flushers, policy):
    region, dax, (f,) = rig(kit, flushers, policy)
    for _ in range(20):
        f.mark(0, PAGES)
        seen = spent(region, lambda: dax.writeback(f))
        assert seen["flush_lines"] == PAGES * 64
        assert seen["flush"] == (1 if flushers == 1 and policy != "extent" else
                                 PAGES // 256 if policy != "extent" else 96)
        assert 1 <= seen["drain"] <= flushers
    shown = dax.snapshot()
    assert dax.flushed_bytes == 20 * PAGES * PAGE and shown["flushers"] == flushers
    assert shown["shared_flushes"] == (20 if flushers > 1 and CPUS > 1 else 0)
    assert shown["helped_pieces"] <= 20 * 96


def test_a_small_flush_asks_nobody(kit):
    region, dax, (f,) = rig(kit, 2)
    f.mark(0, 767)
    assert spent(region, lambda: dax.writeback(f)) | {"drain": 1} == spent(region, lambda: None) | {
        "flush": 3, "flush_lines": 767 * 64, "drain": 1}
    assert dax.snapshot()["shared_flushes"] == 0
    f.mark(0, 768)
    dax.writeback(f)
    assert dax.snapshot()["shared_flushes"] == (1 if CPUS > 1 else 0)


@with_two_cpus
def test_no_helper_stands_on_its_callers_cpu(kit):
    """There it would be woken in the caller's place, do all of it, and the caller would wait."""
    before = threads()
    _, dax, (f,) = rig(kit, 3)
    helpers, mine = threads() - before, os.sched_getaffinity(0)
    assert len(helpers) == 2
    for cpu in [*mine, *mine]:
        with on_cpus({cpu}):
            f.mark(0, PAGES)
            dax.writeback(f)
        assert {frozenset(os.sched_getaffinity(tid)) for tid in helpers} == {frozenset(mine - {cpu})}


@with_two_cpus
def test_who_was_put_elsewhere_stays_there(kit):
    before = threads()
    _, dax, (f,) = rig(kit, 2)
    (helper,) = threads() - before
    cpu, other = list(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(helper, {cpu})
    for caller in (cpu, other, cpu):
        with on_cpus({caller}):
            f.mark(0, PAGES)
            dax.writeback(f)
    assert os.sched_getaffinity(helper) == {cpu}


def test_with_one_cpu_nobody_is_asked(kit):
    with on_cpus({min(os.sched_getaffinity(0))}):
        region, dax, (f,) = rig(kit, 3)
        f.mark(0, PAGES)
        assert spent(region, lambda: dax.writeback(f))["flush_lines"] == PAGES * 64
    assert dax.snapshot()["shared_flushes"] == 0


def test_their_number_changes(kit):
    """While one thread writes back without an end; threads begin and end, each line is flushed once."""
    before = threads()
    region, dax, (f,) = rig(kit, 1)
    stop, rounds = threading.Event(), []
    lines = region.flush.counters()["flush_lines"]

    def work():
        while not stop.is_set():
            f.mark(0, PAGES)
            rounds.append(dax.writeback(f))

    writer = threading.Thread(target=work)
    writer.start()
    for count in [2, 5, 1, 3, 16, 2, 1] * 5:
        dax.set_flushers(count)
        assert dax.snapshot()["flushers"] == count
    stop.set()
    writer.join()
    assert set(rounds) == {PAGES}
    assert region.flush.counters()["flush_lines"] - lines == len(rounds) * PAGES * 64
    deadline = time.monotonic() + 10
    while threads() != before:  # a thread that was joined shows in /proc for a moment
        assert time.monotonic() < deadline, "who is not needed has not ended"
    for count in (0, 17):
        with pytest.raises(DaxfsError):
            dax.set_flushers(count)
    assert dax.snapshot()["flushers"] == 1


@with_two_cpus
@pytest.mark.parametrize("policy", ["pte", "extent"])
def test_helpers_do_take_part(kit, policy):
    """Of extents, too, though each has but 256 KiB here: what is shared is all that is active, in one."""
    _, dax, (f,) = rig(kit, 2, policy)
    for _ in range(500):
        f.mark(0, PAGES)
        dax.writeback(f)
        if dax.snapshot()["helped_pieces"] > 20:
            return
    pytest.fail("no helper ever took a piece")


def test_many_small_pieces(kit):
    """More than are gathered at once, each of a page."""
    region, dax, (f,) = rig(kit, 3)
    for page in range(0, PAGES, 2):
        f.mark(page, 1)
    assert spent(region, lambda: dax.writeback(f))["flush"] == PAGES // 2
    assert not f.marked


def test_a_recording_has_one_order(kit):
    region, dax, (f,) = rig(kit, 3)
    f.mark(0, PAGES)
    with Recorder(region, sites=False) as table:
        dax.writeback(f)
        log = calls(table)
    assert log == [*(("flush", (512 + 256 * n) * PAGE, MIB) for n in range(PAGES // 256)), ("drain", 0, 0)]
    assert dax.snapshot()["shared_flushes"] == 0


def test_several_at_once(kit):
    """One job has the helpers, the others go on alone; nothing is flushed twice or left out."""
    region, dax, files = rig(kit, 3, files=3)
    before = region.flush.counters()["flush_lines"]

    def work(f):
        for _ in range(60):
            f.mark(0, PAGES // 3)
            assert dax.writeback(f) == PAGES // 3

    threads = [threading.Thread(target=work, args=(f,)) for f in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert region.flush.counters()["flush_lines"] - before == 60 * PAGES * 64


def test_how_many_there_can_be(kit):
    region = kit.sources(4 * MIB)
    with pytest.raises(DaxfsError):
        DaxIo(region, TRACKERS["pte"](), flushers=17)


def test_a_mount_has_them(kit):
    io = kit.io(write="cached")
    assert io.snapshot()["flushers"] == 1
    node = create(io, b"one")
    io.write(node, 0, noise(PAGE))
    assert io.fsync(node) == 0
