# SPDX-License-Identifier: MIT
"""What the fault handler does when pages go bad, go away, or are not to be had (docs/fault.md).

System calls touch the mapping here: for them SIGBUS is EFAULT.
"""

import contextlib
import errno
import itertools
import os
import select
import threading
import time

import pytest
from datakit import MIB, PAGE, noise
from test_handler import KEY, observed, pool  # noqa: F401 (fixtures)

from daxfs._iomap import COARSE
from daxfs.fault.observer import File
from daxfs.meta import attr, extent, poison, revoke


@contextlib.contextmanager
def pipe():
    """Its two ends, of which one is asked to touch the mapping; SIGBUS there ends the block."""
    reader, writer = os.pipe()
    try:
        yield reader, writer
    except OSError as error:
        assert error.errno == errno.EFAULT
    finally:
        os.close(reader)
        os.close(writer)


def load(one, page: int) -> bytes | None:
    """The page's first bytes; None: SIGBUS."""
    with pipe() as (reader, writer):
        os.write(writer, memoryview(one.mapping.buffer)[page * PAGE : page * PAGE + 8])
        return os.read(reader, 8)


def store(one, page: int, data: bytes = b"store") -> bool:
    """False: SIGBUS."""
    with pipe() as (reader, writer):
        os.write(writer, data)
        os.readv(reader, [memoryview(one.mapping.buffer)[page * PAGE : page * PAGE + len(data)]])
        return True
    return False


def listed(one) -> list:
    """Tell the handler what is on the list."""
    bad = [(one.node.map, *run) for run in one.io.fs.poison.of_file(one.node, 0, extent.MAX_PGOFF)]
    one.handler.spoil(bad)
    return [run[1:] for run in bad]


def spoil(one, page: int, pages: int = 1):
    fs = one.io.fs
    poison.add(fs, poison.places(fs, page * PAGE, pages * PAGE, one.node.ino))
    return listed(one)


def watched(one) -> None:
    """As the observer does it for files with fault=user."""
    one.node.faults = File(one.node, one.io.dax.persist)
    one.node.faults.handler = one.handler


@pytest.mark.parametrize("full", [True, False])
def test_poisoned_pages_are_sigbus_and_the_others_are_single(observed, full):  # noqa: F811
    data = noise(4 * MIB, 1) if full else b""
    one = observed(data=data)
    assert spoil(one, 5) == [(5, 6)] and spoil(one, 900, 2) == [(5, 6), (900, 902)]
    assert load(one, 5) is None and not store(one, 5) and load(one, 5) is None
    assert not store(one, 901)
    for page in (4, 6, 899, 902):
        assert load(one, page) == (data[page * PAGE : page * PAGE + 8] if full else bytes(8))
        assert store(one, page)
    faults = one.faults()
    assert all(order == 0 for _, order, _ in faults)
    assert faults["read", 0, "SIGBUS"] == 1 and faults["write", 0, "SIGBUS"] == 1
    if full:
        assert one.settled()["reasons"]["poison"] >= 2, "who was first in each 2 MiB"
        assert one.io.fs.region and os.pread(one.file, 8, 5 * PAGE) == data[5 * PAGE : 5 * PAGE + 8]
    assert one.flushed() == 4


def test_pages_that_go_bad_while_they_are_mapped(observed):  # noqa: F811
    """They go out of the mapping; bytes, marks and neighbours stay; what is good again works on."""
    data = noise(4 * MIB, 1)
    one = observed(data=data)
    assert store(one, 5) and store(one, 6) and load(one, 600)
    spoil(one, 5)
    spoil(one, 600)
    one.node.map.own.learn(one.node.map, 0, 0)
    for page in (5, 600):
        one.handler.displace(one.node.map, page, page + 1)
    assert load(one, 5) is None and not store(one, 600)
    assert load(one, 6)[:5] == b"store" and store(one, 4) and load(one, 599) == data[599 * PAGE :][:8]
    assert one.node.map.dirty.count >= 512, "a huge page that is split forgets: it counts as stored to"
    one.handler.restore(one.node.map, 5, 6)
    assert load(one, 5) is None, "not while it is on the list"
    fs = one.io.fs
    poison.clear(fs, poison.places(fs, 0, 4 * MIB, one.node.ino))
    assert listed(one) == []
    for page in (5, 600):
        one.handler.restore(one.node.map, page, page + 1)
    assert load(one, 5) == b"store" + data[5 * PAGE + 5 :][:3] and load(one, 600) == data[600 * PAGE :][:8]
    one.flushed()
    assert store(one, 600, b"again") and one.flushed() >= 1
    assert one.io.read(one.node, 600 * PAGE, 5) == b"again"


def test_a_page_that_was_written_over_works_in_the_same_mapping(observed):  # noqa: F811
    one = observed(data=noise(MIB, 1))
    spoil(one, 5, 2)
    assert load(one, 5) is None and not store(one, 6)
    one.io.write(one.node, 5 * PAGE, b"n" * PAGE)
    one.io.fallocate(one.node, 3, 6 * PAGE, PAGE)
    assert listed(one) == []
    one.handler.restore(one.node.map, 5, 7)
    assert load(one, 5) == b"n" * 8 and load(one, 6) == bytes(8) and store(one, 6)
    assert one.io.read(one.node, 6 * PAGE, 6) == b"store\0"


def test_the_list_tells_what_healed(observed):  # noqa: F811
    one, told = observed(data=noise(MIB, 1)), []
    one.io.fs.poison.healed = lambda ino, pieces: told.append((ino, pieces))
    spoil(one, 5, 4)
    one.io.write(one.node, 6 * PAGE, b"n" * PAGE)
    fs = one.io.fs
    poison.clear(fs, poison.places(fs, 0, MIB, one.node.ino))
    ino = one.node.ino
    assert told == [(ino, [(6, 7)]), (ino, [(5, 6), (7, 9)])]


def test_displace_while_others_store(observed):  # noqa: F811
    """No byte beside the bad page is lost, whoever stores to it at that moment."""
    one = observed(data=bytes(2 * MIB))
    one.node.map.own.learn(one.node.map, 0, 0)
    ends, rounds, lost = threading.Event(), [0], []

    def stores():
        count = 0
        while not ends.is_set():
            count += 1
            text = b"%08d" % count
            for page in (4, 6):
                store(one, page, text)
            for page in (4, 6):
                if load(one, page) != text:
                    lost.append((page, count))
            rounds[0] = count

    thread = threading.Thread(target=stores)
    thread.start()
    try:
        begun = time.monotonic()
        while (took := time.monotonic() - begun) < 1 or (rounds[0] <= 20 and took < 60):
            one.handler.displace(one.node.map, 5, 6)
    finally:
        ends.set()
        thread.join()
    assert not lost and rounds[0] > 20


def test_marks_go_with_their_pages(observed):  # noqa: F811
    """Cut or punched: no mark, no entry, so that 2 MiB can be one again. Part of 2 MiB: that stays dirty."""
    one = observed(data=noise(4 * MIB, 2))
    watched(one)
    for page in (0, 3, 700, 1000):
        assert store(one, page)
    one.io.fallocate(one.node, 3, 0, 3 * PAGE)
    assert one.settled() and one.handler.dirty(one.node.map) == 2, "of 2 MiB each"
    attr.setattr(one.io.fs, one.node.ino, {"size": 2 * MIB})
    assert one.handler.dirty(one.node.map) == 1
    assert one.flushed() == 509 and one.flushed() == 0, "those that went are neither flushed nor counted"
    attr.setattr(one.io.fs, one.node.ino, {"size": 4 * MIB})
    before = one.faults()["write", 9, "NOPAGE"]
    assert store(one, 800) and one.faults()["write", 9, "NOPAGE"] == before + 1
    one.io.fallocate(one.node, 16, 2 * MIB, 2 * MIB)  # zero range
    assert one.handler.dirty(one.node.map) == 0 and load(one, 800) == bytes(8)


def test_single_pages_that_go_let_two_mib_be_one_again(observed):  # noqa: F811
    one = observed(data=noise(3 * MIB, 2))  # the second 2 MiB are data and hole: single pages
    watched(one)
    assert store(one, 512) and store(one, 1000)
    assert one.settled() and one.handler.dirty(one.node.map) == 2  # a fault in flight would keep its entry
    one.io.fallocate(one.node, 3, 2 * MIB, 2 * MIB)
    assert one.handler.dirty(one.node.map) == 0 and one.flushed() == 0
    assert store(one, 513) and one.faults()["write", 9, "NOPAGE"] == 1


@contextlib.contextmanager
def read_only(one):
    """The range's file can't be changed meanwhile."""
    fd, beside = one.node.map.own.fd, os.open(f"/proc/self/fd/{one.file}", os.O_RDONLY)
    saved = os.dup(fd)
    os.dup2(beside, fd, inheritable=False)
    try:
        yield
    finally:
        os.dup2(saved, fd, inheritable=False)
        os.close(saved)
        os.close(beside)


def test_a_hole_that_can_not_be_made_loses_no_mark(observed):  # noqa: F811
    one = observed(data=noise(4 * MIB, 2))
    watched(one)
    assert store(one, 700) and one.handler.dirty(one.node.map) == 1
    with read_only(one), pytest.raises(OSError):
        one.io.fallocate(one.node, 3, 2 * MIB, 2 * MIB)
    assert load(one, 700)[:5] == b"store" and one.node.map.state & COARSE


def test_no_storage_is_told_and_goes_by(observed):  # noqa: F811
    one = observed(size=4 * MIB, pmd=False)
    assert store(one, 900) and store(one, 1000) and one.flushed() == 2
    one.io.fallocate(one.node, 3, 900 * PAGE, PAGE)  # there the kernel keeps that it was protected
    one.settled()
    assert not select.select([one.handler.told], [], [], 0)[0]
    with read_only(one):
        assert not store(one, 5) and load(one, 6) is None and store(one, 1000), "that one has storage"
        assert not store(one, 900)
    assert select.select([one.handler.told], [], [], 5)[0]
    assert one.handler.trouble() == (3, 1, errno.EBADF)
    assert one.handler.trouble()[0] == 0 and not select.select([one.handler.told], [], [], 0)[0]
    assert store(one, 7), "its neighbour works on"
    assert not store(one, 5), "the same address stays, until it is unmapped or cut off"
    attr.setattr(one.io.fs, one.node.ino, {"size": 0})
    attr.setattr(one.io.fs, one.node.ino, {"size": 4 * MIB})
    assert store(one, 5) and one.io.read(one.node, 5 * PAGE, 6) == b"store\0"


def test_a_file_that_shrinks_and_grows_leaves_no_sigbus_behind(observed):  # noqa: F811
    """A fault that finds the file cut, and is answered when it has grown again."""
    one = observed(size=2 * MIB, pmd=False)
    ends = threading.Event()

    def cuts():
        while not ends.is_set():
            for size in (PAGE, 2 * MIB):
                attr.setattr(one.io.fs, one.node.ino, {"size": size})

    thread = threading.Thread(target=cuts)
    thread.start()
    try:
        begun, page, refused = time.monotonic(), 0, 0
        while (took := time.monotonic() - begun) < 3 or (not refused and took < 60):
            page = page % 500 + 1
            refused += not store(one, page)
    finally:
        ends.set()
        thread.join()
    assert refused
    assert [page for page in range(512) if not store(one, page)] == []


def test_a_fault_behind_the_end_while_the_file_grows(observed):  # noqa: F811
    """The kernel sees the new end, the handler the old one: who faulted asks again."""
    one = observed(size=2 * MIB, pmd=False)
    attr.setattr(one.io.fs, one.node.ino, {"size": PAGE})
    os.ftruncate(one.file, 2 * MIB)
    stored = []
    thread = threading.Thread(target=lambda: stored.append(store(one, 100)))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive() and not stored
    attr.setattr(one.io.fs, one.node.ino, {"size": 2 * MIB})
    thread.join(20)
    assert stored == [True]


def test_a_revoked_mapping_asks_nobody(observed):  # noqa: F811
    """Each touch is SIGBUS, takes no page of the new file, and what was stored before is flushed."""
    one = observed(size=4 * MIB)
    assert store(one, 5) and store(one, 700)
    one.settled()
    owner = next(iter(revoke.ranges(one.io.fs)))
    revoke.take(one.io.fs, owner)
    one.handler.remove(KEY, 1, one.address, one.size)
    before, room = one.faults(), one.io.fs.pool.stat(*owner).st_blocks
    for page in (5, 6, 700, 1000):
        assert load(one, page) is None and not store(one, page)
    assert one.faults() == before and one.io.fs.pool.stat(*owner).st_blocks == room
    assert one.node.map.dirty.count and one.flushed()
    assert one.io.read(one.node, 700 * PAGE, 6) == b"store\0"


def test_faults_while_a_file_is_revoked(observed):  # noqa: F811
    """Each of them comes to an end, and a store that was let through is in the copy."""
    one = observed(size=8 * MIB, pmd=False)
    done, refused, until = {}, [], time.monotonic() + 60

    def stores(start):
        """Until one is refused: into holes first, then, where the machine lets us, into what is there."""
        for number in itertools.count():
            page, text = (start + 4 * number) % 2048, b"%06d" % number
            if time.monotonic() > until:
                break
            if not store(one, page, text):
                refused.append(page)
                break
            done[page] = text

    threads = [threading.Thread(target=stores, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while len(done) < 100 and time.monotonic() < until:
        time.sleep(0.001)
    revoke.take(one.io.fs, next(iter(revoke.ranges(one.io.fs))))
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(refused) == 4
    missing = [page for page, text in done.items() if one.io.read(one.node, page * PAGE, 6) != text]
    # Not the first store into a hole either: its page was allocated before, under the file's lock.
    assert not missing
