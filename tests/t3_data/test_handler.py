# SPDX-License-Identifier: MIT
"""The fault handler, in process: this process is its client, by a mapping of an own range's file."""

import contextlib
import errno
import os
import threading
import time

import flush_table
import pytest
import uffd
from datakit import MIB, PAGE, create, noise
from test_own import range_path

from daxfs.fault._handler import FaultHandler
from daxfs.meta import attr

KEY = 7
FEATURES = ("minor_shmem", "missing_shmem", "wp_hugetlbfs_shmem", "wp_unpopulated", "poison")
MODES = uffd.MISSING | uffd.MINOR | uffd.WP


def becomes(condition) -> None:
    """Wait until it is so."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


@pytest.fixture
def pool(pool_kit):
    try:
        os.close(uffd.create(*FEATURES))
    except OSError as error:
        pytest.skip(f"userfaultfd: {error}")
    return pool_kit


class Observed:
    """A file in a range of its own; this process maps it, and its faults are handled."""

    def __init__(self, kit, size=4 * MIB, data=b"", pmd=True):
        self.io = kit.io()
        self.node = create(self.io, b"f")
        attr.setattr(self.io.fs, self.node.ino, {"size": size})
        if data:
            self.io.write(self.node, 0, data)
            self.node.map.dirty.clear(0, size // PAGE)
        self.file = os.open(range_path(self.io, self.node), os.O_RDWR)
        self.mapping = uffd.Mapping(self.file, size)
        self.view, self.address, self.size = self.mapping.view, self.mapping.address, size
        self.fd = uffd.create(*FEATURES)
        uffd.register(self.fd, self.address, size, MODES)
        self.handler = FaultHandler(self.io.dax, 2)
        self.handler.add(KEY, os.dup(self.fd), 1, self.address, size, 0, self.node.map, pmd)

    def settled(self) -> dict:
        """The counters once nothing is being answered or counted."""
        while (found := self.handler.snapshot())["busy"]:
            time.sleep(0.001)
        return found

    def flushed(self) -> int:
        """Pages that a write-back finds."""
        self.settled()
        self.node.map.own.learn(self.node.map, 0, 0)  # so that it has an address
        return self.handler.write_back(self.node.map)

    def faults(self) -> dict:
        return self.settled()["faults"]

    def close(self):
        self.handler.close()
        os.close(self.fd)
        self.mapping.close()
        os.close(self.file)


@pytest.fixture
def observed(pool):
    before = uffd.held()  # a client that this process has used keeps its own
    with contextlib.ExitStack() as stack:
        def make(**how):
            made = Observed(pool, **how)
            made.before = before
            stack.callback(made.close)
            return made
        yield make
    becomes(lambda: uffd.held() == before)  # threads close what a handler had


def blocks(one) -> int:
    return os.fstat(one.file).st_blocks // 8


def test_a_load_marks_nothing_and_a_store_its_page(observed):
    data = noise(MIB, 1)
    one = observed(data=data)
    assert bytes(one.view[:100]) == data[:100] and one.flushed() == 0
    one.view[5 * PAGE] = 3
    assert one.io.read(one.node, 5 * PAGE, 1)[0] == 3
    assert one.faults() == {("read", 0, "NOPAGE"): 1, ("write", 0, "NOPAGE"): 1}
    assert one.settled()["reasons"] == {"pte-entry": 1, "short-extent": 1}
    assert one.handler.dirty(one.node.map) == 1 and one.flushed() == 1 and one.flushed() == 0


def test_a_store_after_a_load_is_an_mkwrite(observed):
    one = observed(data=noise(MIB, 1))
    assert one.view[7 * PAGE] and one.flushed() == 0
    one.view[7 * PAGE + 1] = 9
    assert one.flushed() == 1
    assert one.faults() == {("read", 0, "NOPAGE"): 1, ("mkwrite", 0, "NOPAGE"): 1}


def test_two_mib_at_once_where_they_are_one_piece(observed):
    """A load maps all of it without the right to store; a store marks all that it makes writable."""
    one = observed(data=noise(4 * MIB, 2))
    assert one.view[3 * PAGE] and one.view[400 * PAGE] and one.flushed() == 0
    assert one.faults() == {("read", 9, "NOPAGE"): 1}
    one.view[400 * PAGE] = 1
    one.view[40 * PAGE] = 1
    assert one.faults() == {("read", 9, "NOPAGE"): 1, ("mkwrite", 0, "NOPAGE"): 1}
    assert one.flushed() == 512
    one.view[600 * PAGE] = 1
    one.view[700 * PAGE] = 1
    assert one.faults()["write", 9, "NOPAGE"] == 1 and one.flushed() == 512
    one.view[700 * PAGE] = 2
    assert one.faults()["mkwrite", 0, "NOPAGE"] == 2 and one.flushed() == 512 and one.flushed() == 0


def test_page_by_page_where_it_was_asked_for(observed):
    one = observed(data=noise(4 * MIB, 2), pmd=False)
    assert one.view[3 * PAGE] and one.view[400 * PAGE]
    one.view[400 * PAGE] = one.view[600 * PAGE] = 1
    assert one.faults() == {("read", 0, "NOPAGE"): 2, ("mkwrite", 0, "NOPAGE"): 1, ("write", 0, "NOPAGE"): 1}
    assert one.flushed() == 2 and one.settled()["reasons"]["pmd-off"] == 3


def test_a_hole_takes_pages(observed):
    one = observed(size=9 * MIB - 2 * PAGE)
    assert blocks(one) == 0
    one.view[4 * MIB + 5] = 1
    assert blocks(one) == 512 and one.faults() == {("write", 9, "NOPAGE"): 1}
    assert one.view[0] == 0 and blocks(one) == 513, "shared memory has no page of zeros that all share"
    one.view[8 * MIB] = 1
    assert blocks(one) == 514
    assert one.faults() == {("write", 9, "NOPAGE"): 1, ("read", 0, "NOPAGE"): 1, ("write", 0, "MAJOR"): 1}
    assert one.settled()["reasons"] == {"no-huge-zero-page": 1, "after-mapping": 1}
    assert one.flushed() == 513


def test_a_cut_and_a_hole_under_a_mapping(observed):
    """Entries are left behind the end, and where no page is any more: a write-back passes by them."""
    one = observed(data=noise(4 * MIB, 2))
    one.view[0] = one.view[3 * MIB] = 1
    attr.setattr(one.io.fs, one.node.ino, {"size": MIB})
    one.io.fallocate(one.node, 3, 0, MIB // 2)
    assert one.flushed() == 128
    one.view[MIB - 1] = one.view[1] = 7
    assert one.io.read(one.node, 0, 2) == b"\0\7" and one.io.read(one.node, MIB - 1, 1) == b"\7"
    assert one.flushed() == 129
    attr.setattr(one.io.fs, one.node.ino, {"size": 4 * MIB})
    one.view[3 * MIB] = 5
    assert one.flushed() == 512 and one.io.read(one.node, 3 * MIB, 2) == b"\5\0"


def test_what_is_flushed_beside_a_hole(observed):
    """A hole in a dirty 2 MiB makes the extents of the rest unknown: they are looked up before the flush."""
    one = observed(data=noise(4 * MIB, 2))
    one.view[0] = one.view[300 * PAGE] = 1
    one.settled()
    one.io.fallocate(one.node, 3, 8 * PAGE, 4 * PAGE)
    one.node.map.load([])  # as after an open: the map knows nothing
    with one.io.fs.region.table:
        base, _ = one.io.fs.region.direct_access(one.node.map.own.pfn)
    table, flushed = flush_table.table_of(one.io.fs.region.flush), set()
    real = flush_table.function(table, "flush")

    def flush(ops, address, length):
        flushed.update(range((address - base) // PAGE, (address - base + length) // PAGE))
        real(ops, address, length)

    with flush_table.replaced(table, flush=flush):
        one.handler.write_back(one.node.map)
    assert flushed == set(range(512)) - set(range(8, 12))


def test_what_is_forgotten_is_the_clients_own(observed):
    """The middle of a mapping: what is left at both ends is observed on."""
    one = observed(data=noise(4 * MIB, 3))
    one.handler.remove(KEY, 1, one.address + 2 * MIB, PAGE)
    one.handler.remove(KEY, 8, one.address, one.size)
    one.handler.remove(KEY + 1, 1, one.address, one.size)
    assert one.handler.uses(one.node.map)
    one.view[0] = one.view[3 * MIB] = 1
    assert one.faults() == {("write", 9, "NOPAGE"): 1, ("write", 0, "NOPAGE"): 1}
    assert one.settled()["reasons"] == {"before-mapping": 1}
    one.handler.remove(KEY, 1, 0, 1 << 47)
    assert one.handler.uses(one.node.map), "what is dirty keeps the file"
    assert one.flushed() == 513 and not one.handler.uses(one.node.map)


def test_a_fault_that_nobody_answers_any_more(observed):
    """Of a piece that was forgotten before it was unregistered: woken until the client has done that."""
    one = observed(data=noise(MIB, 3))
    one.handler.remove(KEY, 1, one.address, one.size)

    def unregister():
        while not one.handler.snapshot()["stale"]:
            time.sleep(0.001)
        uffd.unregister(one.fd, one.address, one.size)

    ends = threading.Thread(target=unregister)
    child = os.fork()
    if not child:
        os._exit(0)  # only that forking with a handler is harmless
    os.waitpid(child, 0)
    ends.start()
    reader, writer = os.pipe()
    try:
        # The fault is inside write(2), without the GIL.
        assert os.write(writer, memoryview(one.mapping.buffer)[:PAGE]) == PAGE
        assert os.read(reader, PAGE) == noise(MIB, 3)[:PAGE]
    finally:
        ends.join()
        os.close(reader)
        os.close(writer)
    assert one.settled()["stale"] > 0


def test_wrong_descriptors_and_addresses(observed):
    one = observed(data=noise(MIB, 3))
    assert uffd.held() == one.before + 2
    others = uffd.held("/dev/null")
    for fd, code in ((os.open("/dev/null", os.O_RDWR), errno.EINVAL), (os.dup(one.fd), errno.EEXIST)):
        with pytest.raises(OSError) as caught:
            one.handler.add(KEY, fd, 2, one.address + PAGE, PAGE, 0, one.node.map, True)
        assert caught.value.errno == code
    one.handler.add(KEY + 1, os.dup(one.fd), 2, one.address + PAGE, PAGE, 0, one.node.map, True)
    one.handler.end(KEY + 1)
    # Closed, whatever came of it, by other threads.
    becomes(lambda: uffd.held() == one.before + 2 and uffd.held("/dev/null") == others)
    one.view[0] = 1
    assert one.flushed() == 1


def test_marks_are_taken_without_waiting(observed):
    one = observed(data=noise(4 * MIB, 3), pmd=False)
    one.view[0] = one.view[9 * PAGE] = one.view[700 * PAGE] = 1
    one.settled()
    assert one.handler.take(one.node.map) and not one.handler.dirty(one.node.map)
    assert list(one.node.map.dirty.runs()) == [(0, 1), (9, 1), (700, 1)]


def test_clients_that_come_and_go_with_one_userfaultfd(observed):
    one = observed(data=noise(MIB, 3))
    one.handler.end(KEY)
    for number in range(5):
        one.handler.add(KEY + number, os.dup(one.fd), number + 2, one.address, one.size, 0, one.node.map)
        one.handler.end(KEY + number)
    assert not one.handler.uses(one.node.map)


def test_a_client_has_a_few_userfaultfds(observed):
    one = observed(data=noise(MIB, 3))
    with contextlib.ExitStack() as stack:
        for number in range(2, 6):
            fd = uffd.create(*FEATURES)
            stack.callback(os.close, fd)
            at = one.address + one.size + number * PAGE
            if number < 5:  # with the first one four
                one.handler.add(KEY, os.dup(fd), number, at, PAGE, 0, one.node.map)
                continue
            with pytest.raises(OSError) as caught:
                one.handler.add(KEY, os.dup(fd), number, at, PAGE, 0, one.node.map)
            assert caught.value.errno == errno.EMFILE
    one.view[0] = 1
    assert one.flushed() == 1


def test_an_end_gives_everything_back(observed):
    one = observed(data=noise(MIB, 3))
    one.handler.add(KEY, os.dup(one.fd), 2, one.address + one.size, PAGE, 0, one.node.map, True)
    assert one.handler.uses(one.node.map)
    one.view[0] = 1
    one.settled()
    one.handler.end(KEY)
    one.handler.end(KEY)
    assert one.handler.dirty(one.node.map) == 1 and one.flushed() == 1, "killed: what it stored is not lost"
    assert not one.handler.uses(one.node.map)
    one.handler.close()
    one.handler.close()
