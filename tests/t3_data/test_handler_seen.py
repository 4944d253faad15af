# SPDX-License-Identifier: MIT
"""What is seen of faults and write-backs, in process: all fields of each kind of event, and histograms."""

import ctypes
import errno
import os
import threading
import time

import pytest
from datakit import MIB, PAGE, noise
from test_handler import KEY, observed, pool  # noqa: F401 (fixtures)

from daxfs.data._trace import FAULTS, REQUESTS, WRITEBACK
from daxfs.fuse import trace, trace_dax

PID = 4711
_libc = ctypes.CDLL(None, use_errno=True)
LAST = 0x7FFFFFFFFFFFF  # what Linux names as the last page of all files
LOCKED, PMD, DIRTY = 1, 2, 16


class Seen:
    """An observed file with a watcher. ``page``: fields of events at a page."""

    def __init__(self, one):
        self.one, self.ring, self.decoder = one, one.io.dax.trace, trace.Decoder(0x803)
        self.ring.keep(FAULTS | WRITEBACK)

    def events(self) -> list[dict]:
        """Those since the last call; each is also a line."""
        self.one.settled()
        found = [self.decoder.event(record) for record in self.ring.read()]
        assert all(trace.line(event).isprintable() for event in found)
        return found

    def names(self) -> list[tuple]:
        """(name, result, reason) of those that have results, names of others, without dax_."""
        return [tuple(filter(None, (event["op"].removeprefix("dax_"), event["args"].get("result"),
                                    event.get("reason")))) for event in self.events()]

    def fault(self, pgoff, flags="", result="", pmd=False):
        one = self.one
        out = {"ino": one.node.ino, "dev": "8:3", "vm_flags": "shared", "address": one.address + pgoff * PAGE,
               "pgoff": pgoff, "flags": flags, "result": result}
        return out | ({"vm_start": one.address, "vm_end": one.address + one.size,
                       "max_pgoff": -(-one.node.map.size // PAGE)} if pmd else {})

    def mapped(self, pgoff, write, entry, **more):
        one = self.one
        return {"ino": one.node.ino, "dev": "8:3", "vm_flags": "shared", "write": int(write),
                "address": one.address + pgoff * PAGE, "radix_entry": entry} | more

    def range(self, first, last):
        return {"ino": self.one.node.ino, "dev": "8:3", "start_index": first, "end_index": last}

    def part(self, first, pages):
        return {"ino": self.one.node.ino, "dev": "8:3", "pgoff": first, "pglen": pages}


@pytest.fixture
def seen(observed):  # noqa: F811
    def make(**how):
        return Seen(observed(**how))
    return make


def args(events) -> list[tuple]:
    return [(event["op"], event["args"]) for event in events]


def test_nothing_without_a_watcher(seen):
    it = seen(data=noise(4 * MIB, 2))
    for classes in (0, REQUESTS):
        it.ring.keep(classes)
        it.one.view[5 * PAGE * (classes + 1)] = 3
        assert it.one.flushed() and it.events() == []
    it.ring.keep(WRITEBACK)
    it.one.view[0] = it.one.view[3 * MIB] = 1
    assert it.events() == []
    it.ring.keep(FAULTS)
    assert it.one.flushed() == 1024 and it.events() == []


def test_a_pmd_from_the_first_load_to_the_write_back(seen):
    it = seen(data=noise(4 * MIB, 2))
    it.one.handler.remove(KEY, 1, it.one.address, it.one.size)
    it.one.handler.add(KEY, os.dup(it.one.fd), 2, it.one.address, it.one.size, 0, it.one.node.map, True, PID)
    assert it.one.view[3 * PAGE] == noise(4 * MIB, 2)[3 * PAGE]
    events = it.events()
    assert args(events) == [
        ("dax_pmd_fault", it.fault(3, pmd=True)),
        ("dax_pmd_insert_mapping", it.mapped(3, False, LOCKED | PMD, length=2 * MIB)),
        ("dax_pmd_fault_done", it.fault(3, "", "NOPAGE", pmd=True)),
    ]
    assert [event.get("latency_ns", 0) > 0 for event in events] == [False, False, True]
    assert {event["pid"] for event in events} == {PID} and {event["kind"] for event in events} == {"dax"}
    it.one.view[9 * PAGE] = 1
    assert args(it.events()) == [
        ("dax_pte_fault", it.fault(9, "WRITE|MKWRITE")),
        ("dax_insert_pfn_mkwrite", it.fault(9, "WRITE|MKWRITE", "NOPAGE")),
        ("dax_pte_fault_done", it.fault(9, "WRITE|MKWRITE", "NOPAGE")),
    ]
    it.one.view[600 * PAGE] = 1
    assert args(it.events()) == [
        ("dax_pmd_fault", it.fault(600, "WRITE", pmd=True)),
        ("dax_pmd_insert_mapping", it.mapped(600, True, LOCKED | PMD | DIRTY, length=2 * MIB)),
        ("dax_pmd_fault_done", it.fault(600, "WRITE", "NOPAGE", pmd=True)),
    ]
    assert it.one.handler.write_back(it.one.node.map, 0, 513) == 1024
    events = it.events()
    assert args(events) == [
        ("dax_writeback_range", it.range(0, 512)), ("dax_writeback_one", it.part(0, 512)),
        ("dax_writeback_one", it.part(512, 512)), ("dax_writeback_range_done", it.range(0, 512))]  # fmt: skip
    assert events[-1]["latency_ns"] > 0 and "latency_ns" not in events[0]
    assert it.one.flushed() == 0 and it.events() == []


def test_a_fallback_names_its_reason_between_the_two(seen):
    it = seen(data=noise(MIB, 1), size=4 * MIB)
    it.one.view[7 * PAGE] = 1
    events = it.events()
    assert args(events) == [
        ("dax_pmd_fault", it.fault(7, "WRITE", pmd=True)),
        ("dax_pmd_fault_done", it.fault(7, "WRITE", "FALLBACK", pmd=True)),
        ("dax_pte_fault", it.fault(7, "WRITE")),
        ("dax_insert_mapping", it.mapped(7, True, LOCKED | DIRTY)),
        ("dax_pte_fault_done", it.fault(7, "WRITE", "NOPAGE")),
    ]
    assert [event.get("reason") for event in events] == [None, "short-extent", None, None, None]
    it.one.view[8 * PAGE] = 1
    assert it.names() == [("pmd_fault",), ("pmd_fault_done", "FALLBACK", "pte-entry"), ("pte_fault",),
                          ("insert_mapping",), ("pte_fault_done", "NOPAGE")]  # fmt: skip
    assert it.one.handler.write_back(it.one.node.map) == 2
    assert args(it.events()) == [
        ("dax_writeback_range", it.range(0, LAST)), ("dax_writeback_one", it.part(7, 1)),
        ("dax_writeback_one", it.part(8, 1)), ("dax_writeback_range_done", it.range(0, LAST))]  # fmt: skip


def test_a_hole(seen):
    """A load of one takes a page; a store to 2 MiB of it takes all, a store to less is MAJOR."""
    it = seen(size=6 * MIB + PAGE)
    assert it.one.view[5 * PAGE] == 0
    events = it.events()
    assert args(events)[1:-1] == [
        ("dax_pmd_load_hole_fallback", {"ino": it.one.node.ino, "dev": "8:3", "vm_flags": "shared",
                                        "address": it.one.address + 5 * PAGE, "radix_entry": 0}),
        ("dax_pmd_fault_done", it.fault(5, "", "FALLBACK", pmd=True)),
        ("dax_pte_fault", it.fault(5)),
        ("dax_load_hole", it.fault(5, "", "NOPAGE")),
    ]
    assert events[2]["reason"] == "no-huge-zero-page" and events[-1]["args"] == it.fault(5, "", "NOPAGE")
    it.one.view[2 * MIB] = 1
    assert it.names() == [("pmd_fault",), ("pmd_insert_mapping",), ("pmd_fault_done", "NOPAGE")]
    it.one.view[6 * MIB] = 1
    assert it.names() == [("pmd_fault",), ("pmd_fault_done", "FALLBACK", "after-mapping"), ("pte_fault",),
                          ("insert_mapping",), ("pte_fault_done", "MAJOR|NOPAGE")]  # fmt: skip


def test_no_pmd_is_tried_where_none_is_wanted(seen):
    it = seen(data=noise(4 * MIB, 2), pmd=False)
    it.one.view[5 * PAGE] = 1
    assert it.names() == [("pte_fault",), ("insert_mapping",), ("pte_fault_done", "NOPAGE")]


@pytest.mark.parametrize("pmd", [True, False])
def test_behind_the_end(seen, pmd):
    """Linux tries no PTE behind the end either. Here the inode is cut, and its range not yet."""
    it = seen(data=noise(4 * MIB, 2), pmd=pmd)
    it.one.node.map.size = 2 * MIB
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="Bad address") as caught:  # the fault is inside write(2): no signal
        os.write(writer, memoryview(it.one.mapping.buffer)[3 * MIB : 3 * MIB + PAGE])
    assert caught.value.errno == errno.EFAULT
    os.close(reader), os.close(writer)
    size = "pmd" if pmd else "pte"
    assert args(it.events()) == [(f"dax_{size}_fault", it.fault(768, pmd=pmd)),
                                 (f"dax_{size}_fault_done", it.fault(768, "", "SIGBUS", pmd=pmd))]
    assert {key: row.count for key, row in it.one.handler.rows().items()} == {("read", 0, "SIGBUS", ""): 1}


def test_what_changed_meanwhile_is_tried_again(seen):
    """The range has a hole that its extents don't know of yet, as between their look-up and the mapping."""
    it = seen(data=noise(4 * MIB, 1), pmd=False)
    assert _libc.fallocate(it.one.file, 3, ctypes.c_long(5 * PAGE), ctypes.c_long(PAGE)) == 0
    region, urandom = memoryview(it.one.mapping.buffer), os.open("/dev/urandom", os.O_RDONLY)
    # The fault is inside read(2), without the GIL.
    store = threading.Thread(target=os.readv, args=(urandom, [region[5 * PAGE : 6 * PAGE]]))
    store.start()
    found, end = [], time.monotonic() + 20
    while len(found) < 6 and time.monotonic() < end:
        found += it.ring.read()
    it.one.node.map.load([])  # as after an open: now it has to look
    while store.is_alive():
        found += it.ring.read()
    os.close(urandom)
    it.one.settled()
    found = [it.decoder.event(record) for record in found + it.ring.read()]
    names = [(event["op"], event["args"].get("result", "-")) for event in found if event["kind"] == "dax"]
    assert names[:3] == [("dax_pte_fault", ""), ("dax_insert_mapping", "-"), ("dax_pte_fault_done", "RETRY")]
    assert names[-3:] == [("dax_pte_fault", ""), ("dax_insert_mapping", "-"),
                          ("dax_pte_fault_done", "MAJOR|NOPAGE")]  # fmt: skip
    assert {name for name, result in names if result == "RETRY"} == {"dax_pte_fault_done"}


def test_losses_are_counted(seen):
    it = seen(size=64 * MIB, pmd=False)
    for page in range(4000):
        it.one.view[page * PAGE] = 1
    it.one.settled()
    events = [it.decoder.event(one) for part in iter(it.ring.read, []) for one in part]
    assert len(events) == 8193 and events[-1]["kind"] == "lost" and events[-1]["count"] == 12000 - 8192
    it.one.view[5000 * PAGE] = 1
    assert it.names() == [("pte_fault",), ("insert_mapping",), ("pte_fault_done", "MAJOR|NOPAGE")]


def test_faults_of_several_threads_are_whole(seen):
    it = seen(size=64 * MIB, pmd=False)
    region = memoryview(it.one.mapping.buffer)
    urandom = os.open("/dev/urandom", os.O_RDONLY)

    def store(first):
        for page in range(first, 1200, 4):
            # The fault is inside read(2): without the GIL, so several at once.
            assert os.readv(urandom, [region[page * PAGE : page * PAGE + 1]]) == 1

    threads = [threading.Thread(target=store, args=(n,)) for n in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    os.close(urandom)
    found = {}
    for _ in range(4):
        for event in it.events():
            at = event["args"]
            found.setdefault(at["address"], []).append((event["op"], at.get("result")))
    assert len(found) == 1200
    for events in found.values():
        assert events[:1] + events[-1:] == [("dax_pte_fault", ""), ("dax_pte_fault_done", "MAJOR|NOPAGE")]
        assert len(events) == 3


def test_histograms(seen):
    it = seen(data=noise(MIB, 1), size=6 * MIB)
    for _ in range(2):
        it.one.view[0] = it.one.view[PAGE] = it.one.view[2 * MIB] = 1
        assert it.one.flushed() == 514
    assert it.one.view[3 * MIB] == 0 and it.one.view[5 * MIB] == 0
    it.one.settled()
    rows = it.one.handler.rows()
    assert {key: row.count for key, row in rows.items()} == {
        ("write", 0, "NOPAGE", "short-extent"): 1, ("write", 0, "NOPAGE", "pte-entry"): 1,
        ("write", 9, "NOPAGE", ""): 1, ("mkwrite", 0, "NOPAGE", ""): 3,
        ("read", 0, "NOPAGE", "no-huge-zero-page"): 1}  # fmt: skip
    for row in rows.values():
        assert sum(row.buckets) == row.count and 500 * row.count < row.total_ns < 10**10
        low, high = ((1 << b) // 2 for b in (min(used(row)), max(used(row)) + 1))
        assert low * row.count <= row.total_ns <= high * row.count
    stats = it.one.settled()
    assert stats["ns"] == sum(row.total_ns for row in rows.values())
    assert sum(stats["faults"].values()) == 7 and stats["reasons"][""] == 3
    times, pages = it.one.handler.writeback_times()
    assert times.count == pages.count == 2 and pages.total_ns == 2 * 514 and used(pages) == {10}
    assert it.one.io.dax.writeback_times()[0].count == 0, "those are the handler's"


def used(row) -> set[int]:
    return {n for n, count in enumerate(row.buckets) if count}


def test_write_backs_of_the_tracker(seen):
    """fsync without observed mappings: one event for each run of dirty pages, none where nothing is dirty."""
    it = seen(data=noise(4 * MIB, 2))
    dax, node = it.one.io.dax, it.one.node
    assert dax.writeback(node.map) == 0 and it.events() == []
    node.map.own.learn(node.map, 0, 1024)
    node.map.dirty.set(3, 2)
    node.map.dirty.set(700, 100)
    assert dax.writeback(node.map, 0, 750) == 52
    assert args(it.events()) == [
        ("dax_writeback_range", it.range(0, 749)), ("dax_writeback_one", it.part(3, 2)),
        ("dax_writeback_one", it.part(700, 50)), ("dax_writeback_range_done", it.range(0, 749))]  # fmt: skip
    assert dax.writeback(node.map) == 50
    assert args(it.events())[::2] == [("dax_writeback_range", it.range(0, LAST)),
                                      ("dax_writeback_range_done", it.range(0, LAST))]
    times, pages = dax.writeback_times()
    assert times.count == pages.count == 2 and pages.total_ns == 102 and used(pages) == {6}


def test_a_look_has_an_event_of_its_own(seen):
    it = seen(data=noise(MIB, 1))
    it.ring.look(5, 17, 4000)
    it.ring.keep(FAULTS)
    it.ring.look(5, 18, 4000)
    (event,) = it.events()
    assert event["op"] == "observed_look" and event["op"] not in trace_dax.TRACEPOINTS
    assert event["args"] == {"ino": 5, "pages": 17, "dev": "8:3"} and event["latency_ns"] == 4000
    assert trace.line(event).endswith(" observed_look: dev 8:3 ino 0x5 pages 17 <4.0 µs>")
