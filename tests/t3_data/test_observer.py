# SPDX-License-Identifier: MIT
"""The observer without a mount: made-up page tables for what is hard to meet, and once the kernel's own."""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import trio
from datakit import PAGE, create, noise
from test_own import range_path

from daxfs._fsync import FsyncRun
from daxfs._iomap import COARSE, OBSERVED
from daxfs.fault import _observe, observer
from daxfs.fault.observer import Descriptor, Look, Observer, Piece, Process, Progress
from daxfs.fuse.observing import Observing
from daxfs.meta.fallocate import KEEP_SIZE, PUNCH_HOLE

needs_kernel = pytest.mark.skipif(not _observe.available(), reason="no PAGEMAP_SCAN or PROCMAP_QUERY")
HUGE, PAGES = 1 << 21, 1024
AT = 0x7F0000000000  # a mapping's address
SIZE = PAGES * PAGE


@pytest.fixture
def io(pool_kit):
    return pool_kit.io()


class Case:
    """A file of two huge pages, all written and clean, of which programs are going to have mappings."""

    def __init__(self, io):
        self.io, self.node, self.observer = io, create(io, b"f"), Observer(io.dax.persist)
        io.write(self.node, 0, noise(SIZE))
        io.fsync(self.node)
        self.observer.begin(self.node)
        self.scans = {}  # {address of a piece: [(first page, pages)], or an error}
        self.unmapped = []  # pieces that show the file no more
        self.after = []  # the same, from the first scan on

    def process(self, pid: int = 1) -> Process:
        return Process(pid, *(Descriptor(os.open("/dev/null", os.O_RDONLY)) for _ in range(3)))

    def observe(self, process: Process, start=AT, pages=PAGES, first=0, prot=3) -> int:
        piece = Piece(start, start + pages * PAGE, first * PAGE)
        return self.observer.observe(process, self.node.ino, prot, piece)

    def span(self, maps, start, end, offset, device, ino, times=None):
        return None if any(start < high and end > low for low, high in self.unmapped) else (start, end)

    def scan(self, found, pagemap, start, end, address, offset):
        self.unmapped += self.after
        what = self.scans.pop(start, ())
        if isinstance(what, Exception):
            raise what
        for first, pages in what:
            found.add(first, pages)

    def look(self) -> Look | None:
        look = self.observer.look(self.node.ino, 0)
        if look is not None:
            look.run()
            self.observer.take(look)
        return look

    def fsync(self) -> int:
        """The pages that one with a look flushes."""
        self.look()
        return self.io.fsync(self.node)

    @property
    def mappings(self) -> int:
        return len(self.observer.mappings)


@pytest.fixture
def case(io, monkeypatch):
    made = Case(io)

    class Found(_observe.Found):
        def scan(self, *where, times=None):
            made.scan(self, *where)

    monkeypatch.setattr(observer, "span", made.span)
    monkeypatch.setattr(observer, "Found", Found)
    return made


# -- pieces -----------------------------------------------------------------------------------


def test_pieces():
    piece = Piece(0x10000, 0x20000, 0x3000)
    assert piece.pages == (3, 16)
    assert piece.cut(0x12000, 0x13000) == [Piece(0x10000, 0x12000, 0x3000), Piece(0x13000, 0x20000, 0x6000)]
    assert piece.cut(0, 0x30000) == [] and piece.cut(0x20000, 0x30000) == [piece] == piece.cut(0, 0x10000)
    assert piece.part(0x1F000, 0x30000) == Piece(0x1F000, 0x20000, 0x12000)
    assert piece.part(0x20000, 0x30000) is None


# -- fsync ------------------------------------------------------------------------------------


def test_what_is_found_is_flushed_once(case):
    process = case.process()
    case.observe(process)
    case.observe(process, AT + 4 * HUGE, 10, 500)
    assert case.node.map.state & OBSERVED
    case.scans = {AT: [(3, 2), (900, 1)], AT + 4 * HUGE: [(505, 2)]}
    assert case.fsync() == 5
    assert case.fsync() == 0
    assert case.observer.snapshot()["precise_fsyncs"] == 2


def test_what_is_only_read_is_not_looked_at(case):
    case.observe(case.process(), prot=1)
    assert not case.node.map.state & OBSERVED and case.look() is None


def test_pages_behind_the_end_are_left_out(case):
    case.observe(case.process())
    case.scans = {AT: [(PAGES - 1, 10), (1 << 31, 5)]}
    assert case.fsync() == 1


def test_what_is_unmapped_meanwhile_is_all_dirty(case):
    """The scan may have come after: what it did not find is not known."""
    case.observe(case.process())
    case.scans = {AT: [(3, 1)]}
    case.after = [(AT + HUGE, AT + 2 * HUGE)]
    assert case.fsync() == PAGES
    assert case.mappings == 0 and not case.node.map.state & OBSERVED


def test_what_is_registered_no_more_is_all_dirty(case):
    case.observe(case.process(), pages=512)
    case.scans = {AT: OSError(errno.EPERM, "not registered")}
    assert case.fsync() == 512 and case.mappings == 0


def test_a_look_that_fails_takes_everything(case, caplog):
    case.observe(case.process(), pages=512)
    case.scans = {AT: OSError(errno.EFAULT, "what is this")}
    assert case.fsync() == 512 and case.mappings == 1
    assert "is not known" in caplog.text
    assert case.fsync() == 0


def test_a_look_that_is_late(case):
    """Its fsync takes everything, and what it protected after that is dirty for the next one."""
    case.observe(case.process(), pages=512)
    look = case.observer.look(case.node.ino, 0)
    look.begun = True
    case.observer.give_up(look, running=True)
    assert case.io.fsync(case.node) == 512
    assert case.observer.files[case.node.ino].look is look
    case.scans = {AT: [(7, 1)]}
    look.run()
    case.scans = {AT: [(9, 1)]}
    assert case.fsync() == 2
    assert case.observer.files[case.node.ino].look is None


# -- ends -------------------------------------------------------------------------------------


def test_an_end_without_a_word(case):
    one, two = case.process(1), case.process(2)
    case.observe(one, pages=100)
    case.observe(one, AT + HUGE, 50, 512, prot=1)
    case.observe(two, pages=512, first=512)
    case.observer.ends(one)
    assert case.io.tracker.dirty_pages(case.node.map) == 100 and case.mappings == 1
    assert list(case.observer.processes) == [2]
    case.observer.end(case.node)
    assert case.io.tracker.dirty_pages(case.node.map) == 612 and case.mappings == 0
    assert not case.observer.processes and not case.node.map.state & OBSERVED


def test_descriptors_close_after_the_last_look(case):
    process = case.process()
    fd = process.maps.fd
    case.observe(process)
    look = case.observer.look(case.node.ino, 0)
    case.observer.ends(process)
    del process
    os.fstat(fd)
    look.run()
    case.observer.take(look)
    del look
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_mapping_over_another_one(case):
    """munmap without a word. The same place again is the same mapping."""
    process = case.process()
    case.observe(process, pages=100)
    case.observe(process, pages=100)
    assert case.mappings == 1 and not case.io.tracker.dirty_pages(case.node.map)
    case.observe(process, AT + 50 * PAGE, 100, 700)
    assert case.io.tracker.dirty_pages(case.node.map) == 50 and case.mappings == 2
    case.observe(process, AT, 150, 0, prot=1)
    assert case.io.tracker.dirty_pages(case.node.map) == 200 and case.mappings == 1


def test_half_of_a_huge_page_is_forgotten(case):
    """What is beside it counts as stored to until it was seen that the half is gone."""
    case.observe(case.process())
    mapping = next(iter(case.observer.mappings.values()))
    case.observer.forget(mapping, AT + 100 * PAGE, AT + 110 * PAGE, dirty=False)
    assert case.fsync() == 502
    assert case.fsync() == 502
    case.unmapped = [(AT + 100 * PAGE, AT + 110 * PAGE)]
    assert case.fsync() == 502
    assert case.fsync() == 0
    case.observer.forget(mapping, AT + HUGE, AT + 2 * HUGE, dirty=True)
    assert case.fsync() == 512
    assert case.fsync() == 0


def test_forget_wants_a_piece(case):
    case.observe(case.process(), pages=10)
    mapping = next(iter(case.observer.mappings.values()))
    for low, high in ((-1, 1), (9, 11), (10, 11)):
        with pytest.raises(OSError) as caught:
            case.observer.forget(mapping, AT + low * PAGE, AT + high * PAGE, dirty=True)
        assert caught.value.errno == errno.EINVAL
    assert not case.io.tracker.dirty_pages(case.node.map)


def test_too_many(case, monkeypatch):
    monkeypatch.setattr(observer, "MOST_EACH", 2)
    monkeypatch.setattr(observer, "MOST", 3)
    one, two = case.process(1), case.process(2)
    for process, n in ((one, 0), (one, 1), (two, 0)):
        case.observe(process, AT + n * HUGE, 1)
    for process in one, two:
        with pytest.raises(OSError) as caught:
            case.observe(process, AT + 9 * HUGE, 1)
        assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(observer, "MOST", 100)
    case.observer.most_clients = 2
    case.observe(two, AT + HUGE, 1)
    with pytest.raises(OSError) as caught:
        case.observe(case.process(3))
    assert caught.value.errno == errno.ENOSPC and len(case.observer.processes) == 2


# -- coarse or precise --------------------------------------------------------------------------


def test_all_handles_have_to_promise(case):
    case.observer.expect(case.node)
    case.observer.expect(case.node)
    case.observe(case.process())
    case.observer.promised(case.node)
    assert case.node.map.state & COARSE and case.look() is None
    assert case.io.fsync(case.node) == PAGES
    case.observer.promised(case.node)
    assert not case.node.map.state & COARSE
    assert case.fsync() == 0


def test_a_mapping_of_before_makes_no_promise(case):
    case.observer.end(case.node)
    case.node.map.set_state(COARSE)
    case.observer.begin(case.node)
    case.observer.expect(case.node)
    case.observer.promised(case.node)
    assert case.node.map.state & COARSE


def test_marks_that_can_not_be_made_make_it_coarse(case, monkeypatch):
    process = case.process()
    case.observe(process)

    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr(observer.own, "mark_stored", refuse)
    case.observer.ends(process)
    assert case.node.map.state & COARSE


# -- the kernel -------------------------------------------------------------------------------


@contextlib.contextmanager
def registered(file):
    """(mapping, address) of a file, registered for asynchronous write protection."""
    with mmap.mmap(file.fileno(), SIZE) as mapping:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        uffd = ctypes.CDLL(None).syscall(323, os.O_CLOEXEC)
        if uffd < 0:
            pytest.skip("no userfaultfd")
        try:
            fcntl.ioctl(uffd, 0xC018AA3F, struct.pack("=3Q", 0xAA, 1 << 12 | 1 << 13 | 1 << 15, 0))
            fcntl.ioctl(uffd, 0xC020AA00, struct.pack("=4Q", address, SIZE, 2, 0))
            yield mapping, address
        finally:
            os.close(uffd)


@needs_kernel
def test_this_process(io):
    """Its own page table: what it stored through a mapping of the range, once."""
    case = Case(io)
    path = range_path(io, case.node)
    with open(path, "r+b") as file, registered(file) as (mapping, address):
        below = os.fstat(file.fileno())
        with open("/proc/self/maps") as maps, open("/proc/self/pagemap", "rb") as pagemap:
            where = (address, address + SIZE, 0, below.st_dev, below.st_ino)
            low, high = _observe.span(maps.fileno(), *where)
            assert (low, high) == (address, address + SIZE)
            assert _observe.span(maps.fileno(), *where[:4], below.st_ino + 1) is None
            assert _observe.span(maps.fileno(), address, address + SIZE, PAGE, *where[3:]) is None
            assert _observe.span(maps.fileno(), address - PAGE, address, 0, *where[3:]) is None

            def found() -> list:
                one = _observe.Found()
                one.scan(pagemap.fileno(), low, high, address, 0)
                one.mark(case.node.map)
                return one.runs()

            found()
            io.dax.writeback(case.node.map)
            for page in (0, 1, 700):
                mapping[page * PAGE + 5] = 1
            flushed = found()
            assert {page for first, pages in flushed for page in range(first, first + pages)} >= {0, 1, 700}
            assert io.dax.writeback(case.node.map) == sum(pages for _, pages in flushed)
            assert found() == []
            with mmap.mmap(file.fileno(), SIZE) as plain, pytest.raises(OSError) as caught:
                low = ctypes.addressof(ctypes.c_char.from_buffer(plain))
                _observe.Found().scan(pagemap.fileno(), low, low + SIZE, low, 0)
            assert caught.value.errno == errno.EPERM


@needs_kernel
def test_racing_stores_are_not_lost(io):
    """Threads count in lines of their own. What each fsync flushes holds all that was stored before it."""
    case = Case(io)
    io.write(case.node, 0, bytes(SIZE))
    with open(range_path(io, case.node), "r+b") as file, registered(file) as (_, address):
        below = os.fstat(file.fileno())
        fds = [os.open(f"/proc/self/{name}", os.O_RDONLY) for name in ("maps", "pagemap")]
        process = Process(os.getpid(), *map(Descriptor, (os.pidfd_open(os.getpid()), *fds)))
        case.observe(process, address)
        words = (ctypes.c_uint32 * (SIZE // 4)).from_address(address)
        lines = np.ctypeslib.as_array(words).reshape(PAGES, 64, 16)[:, :, 0]
        media, stop = np.zeros_like(lines), threading.Event()
        threads = [threading.Thread(target=_count, args=(lines, n, stop)) for n in range(3)]
        for one in threads:
            one.start()
        try:
            for n in range(200):
                if n == 199:
                    stop.set()
                    for one in threads:
                        one.join()
                stored = lines.copy()
                look = case.observer.look(case.node.ino, below.st_dev)
                look.ino = below.st_ino  # no mount here: the mapping shows the range itself
                look.run()
                look.ino = case.node.ino
                case.observer.take(look)
                for first, pages in case.node.map.dirty.runs():
                    media[first : first + pages] = lines[first : first + pages]  # flushed: at least this
                io.dax.writeback(case.node.map)
                assert (media >= stored).all(), (n, np.argwhere(media < stored)[:5])
        finally:
            stop.set()
        assert (media == lines).all() and lines.sum() > 0
        assert case.observer.precise == 200 and case.observer.pages < 200 * PAGES


def _count(lines, number: int, stop) -> None:
    page = number
    while not stop.is_set():
        page = (page * 7 + 13) % (PAGES - 64)
        lines[page : page + 64, number] += 1
        lines[page, number + 8] += 1


# -- what clients are told of us ----------------------------------------------------------------


class Counted:
    """A client with the memfd in which we count."""

    def __init__(self, case, pid=1, slot=5):
        self.process, self.slot = case.process(pid), slot
        fd = os.memfd_create("progress")
        os.ftruncate(fd, PAGE)
        self.process.progress = Progress(fd)
        self.memfd = Descriptor(fd)
        piece = Piece(AT, AT + SIZE, 0)
        case.observer.observe(self.process, case.node.ino, 3, piece, slot=slot)

    def counts(self) -> tuple[int, int]:
        """(taking, flushed) of struct daxfs_progress."""
        return struct.unpack("=2Q", os.pread(self.memfd.fd, 16, self.slot * 64 + 16))


def test_clients_see_what_is_taken_and_not_flushed(case):
    one, other = Counted(case), Counted(case, 2, 9)
    ino, seen = case.node.ino, case.observer
    debt = seen.owe(ino)
    assert one.counts() == other.counts() == (1, 0)
    seen.owes_still(ino, debt)  # that fsync failed
    assert one.counts() == (1, 0)
    debt = seen.owe(ino)
    assert one.counts() == other.counts() == (2, 0)
    second = seen.owe(ino)
    seen.paid(second)
    assert one.counts() == (3, 1)  # the one before it is not done
    seen.paid(debt)
    assert one.counts() == other.counts() == (3, 3)
    assert os.pread(one.memfd.fd, PAGE, 0).count(0) == PAGE - 2


def test_a_look_that_goes_on_by_itself_is_owed(case):
    client = Counted(case)
    ino, seen = case.node.ino, case.observer
    debt = seen.owe(ino)
    look = seen.look(ino, 0)
    look.begun = True
    seen.give_up(look, True)
    seen.paid(debt)  # what was marked instead is flushed; what that look protects meanwhile is not
    assert client.counts() == (2, 1)
    seen.paid(seen.owe(ino))
    assert client.counts() == (3, 2)
    case.scans[AT] = [(7, 1)]
    look.run()
    debt = seen.owe(ino)
    assert case.fsync() == PAGES  # what was given up, and page 7 among it
    seen.paid(debt)
    assert client.counts() == (4, 4)


def test_a_write_back_of_the_handler_that_goes_on_by_itself_is_owed(case):
    """What it protects later no msync of a client finds; with extents nothing but an fsync flushes it."""
    client = Counted(case)
    ino, seen, fmap = case.node.ino, case.observer, case.node.map
    debt = seen.owe(ino)
    seen.wrote_back(ino, fmap, False, True)
    seen.paid(debt)
    assert client.counts() == (2, 1)
    debt = seen.owe(ino)
    seen.wrote_back(ino, fmap, False, True)  # it has not come back yet
    seen.paid(debt)
    assert client.counts() == (4, 3)
    debt = seen.owe(ino)
    seen.wrote_back(ino, fmap, True)
    seen.paid(debt)
    assert client.counts() == (5, 5)
    debt = seen.owe(ino)
    seen.wrote_back(ino, fmap, False)  # an error ended it: this fsync flushes what it has marked
    seen.paid(debt)
    assert client.counts() == (6, 6)


@pytest.mark.parametrize("end", ["late", "busy", "error", "done"])
def test_who_gives_a_write_back_up_says_whether_it_goes_on(case, end):
    told, fmap = [], case.node.map

    async def in_thread(*_):
        if end == "error":
            raise OSError(errno.EIO, "planted")
        return FsyncRun() if end == "done" else None

    observed = SimpleNamespace(writes_back=lambda ino: fmap, wrote_back=lambda *how: told.append(how[2:]))
    waiter = SimpleNamespace(writing={fmap} if end == "busy" else set(), observer=observed,
                             _in_thread=in_thread, _write_back_now=None)
    trio.run(Observing._write_back, waiter, case.node.ino, FsyncRun())
    assert told == [(end == "done", end in ("late", "busy"))]


def test_a_cut_that_splits_a_huge_page_is_seen_and_flushed(case, monkeypatch):
    client, steps = Counted(case), []
    fmap, io, file = case.node.map, case.io, case.observer.files[case.node.ino]
    persist = io.dax.persist

    def persists(_map, pos, length):
        gone = not any(io.read(case.node, 5 * PAGE, PAGE))
        steps.append((pos // PAGE, (pos + length) // PAGE, client.counts(), gone))
        persist(fmap, pos, length)

    file.persist = persists
    lines = io.fs.region.flush.counters()["flush_lines"]
    io.fallocate(case.node, PUNCH_HOLE | KEEP_SIZE, 5 * PAGE, PAGE)
    # Told before, flushed after it, and both at the rest of the huge page alone.
    assert steps == [(0, 5, (1, 0), True), (6, 512, (1, 0), True)] and client.counts() == (1, 1)
    assert io.fs.region.flush.counters()["flush_lines"] - lines >= 511 * PAGE // 64
    assert case.fsync() == 511  # as ever
    io.fallocate(case.node, PUNCH_HOLE | KEEP_SIZE, 2 << 20, 2 << 20)
    assert len(steps) == 2 and client.counts() == (1, 1)  # a whole one is not split

    def fails(*_):
        raise OSError(errno.EIO, "no")

    file.persist = fails
    io.fallocate(case.node, PUNCH_HOLE | KEEP_SIZE, 7 * PAGE, PAGE)
    assert client.counts() == (2, 1)
    case.observer.paid(case.observer.owe(case.node.ino))  # an fsync
    assert client.counts() == (3, 3)


def test_who_closes_owes_nothing(case):
    client = Counted(case)
    seen = case.observer
    seen.owes_still(case.node.ino, seen.owe(case.node.ino))
    seen.end(case.node)
    assert client.counts() == (1, 1)
    debt = {(client.process, 5): 1}
    client.process.count(5, taking=1)
    seen.owes_still(case.node.ino, debt)
    assert client.counts() == (2, 2)


def test_a_mapping_in_very_many_pieces_is_observed_no_more(case, monkeypatch):
    """Each piece costs memory and time here; a program can make as many as it has pages."""
    monkeypatch.setattr(observer, "MOST_PARTS", 64, raising=False)
    process = case.process()
    other = case.observe(process, AT + 4 * HUGE, 1, 1)
    mapping = case.observer.mappings[case.observe(process)]
    for page in range(1, PAGES, 2):
        if mapping.id in case.observer.mappings:
            case.observer.forget(mapping, AT + page * PAGE, AT + (page + 1) * PAGE, False)
        assert len(mapping.pieces) + len(mapping.doubts) <= 66
    assert list(case.observer.mappings) == [other]
    assert case.node.map.state & COARSE and case.fsync() == PAGES  # so that nothing is lost


def test_a_mapping_of_the_handler_stays_in_its_pieces(case, monkeypatch):
    """Who would answer its faults?"""
    monkeypatch.setattr(observer, "MOST_PARTS", 64, raising=False)
    seen = case.observer
    seen.handler = Handler(busy=False)
    piece = Piece(AT, AT + SIZE, 0)
    number = seen.observe(case.process(), case.node.ino, 3, piece, handled=lambda number: None)
    mapping = seen.mappings[number]
    with pytest.raises(OSError) as caught:
        for page in range(1, PAGES, 2):
            seen.forget(mapping, AT + page * PAGE, AT + (page + 1) * PAGE, False)
    assert caught.value.errno == errno.ENOSPC and len(mapping.pieces) == 33
    assert not case.node.map.state & COARSE


class Handler:
    """A handler of which a fault of a client that was killed is still being answered."""

    def __init__(self, busy):
        self.busy, self.taken, self.removed = busy, 0, []

    def take(self, fmap):
        self.taken += not self.busy
        return not self.busy

    def remove(self, *piece):
        self.removed.append(piece)

    def end(self, key):
        pass


def test_faults_of_a_revoked_file_are_answered_no_more(case):
    """Not of its mappings with fault=user: what they map is an empty file. The others are the kernel's."""
    seen, one, two = case.observer, case.process(1), case.process(2)
    seen.handler = handler = Handler(busy=False)
    number = seen.observe(one, case.node.ino, 3, Piece(AT, AT + SIZE, 0), handled=lambda number: None)
    case.observe(two)
    seen.revoked(case.node.ino + 1)
    assert not handler.removed
    seen.revoked(case.node.ino)
    assert handler.removed == [(one.key, number, AT, SIZE)]


def test_marks_that_can_not_be_taken_yet_are_left_with_the_handler(case):
    ino, seen, fmap = case.node.ino, case.observer, case.node.map
    process = case.process()
    seen.handler = handler = Handler(busy=True)
    seen.observe(process, ino, 3, Piece(AT, AT + SIZE, 0), handled=lambda number: None)
    seen.ends(process)
    assert not handler.taken and fmap.state & (COARSE | OBSERVED) == OBSERVED
    assert seen.writes_back(ino) is fmap  # and so does the next fsync
    handler.busy = False
    seen.wrote_back(ino, fmap, True)
    assert handler.taken == 1 and not fmap.state & (COARSE | OBSERVED) and seen.writes_back(ino) is None


def test_marks_that_were_left_are_not_taken_from_a_new_mapping(case):
    ino, seen, fmap = case.node.ino, case.observer, case.node.map
    seen.handler = handler = Handler(busy=True)
    for pid in (1, 2):
        process = case.process(pid)
        seen.observe(process, ino, 3, Piece(AT, AT + SIZE, 0), handled=lambda number: None)
        if pid == 1:
            seen.ends(process)
    handler.busy = False
    seen.wrote_back(ino, fmap, True)
    assert not handler.taken and seen.writes_back(ino) is fmap
    seen.ends(process)
    assert handler.taken == 1 and seen.writes_back(ino) is None


@pytest.mark.parametrize("how", ["close", "fails"])
def test_marks_that_are_never_to_be_had_make_the_file_coarse(case, how):
    ino, seen, fmap = case.node.ino, case.observer, case.node.map
    process = case.process()
    seen.handler = Handler(busy=True)
    seen.observe(process, ino, 3, Piece(AT, AT + SIZE, 0), handled=lambda number: None)
    seen.ends(process)
    if how == "close":
        seen.end(case.node)
    else:
        seen.wrote_back(ino, fmap, False)
    assert fmap.state & COARSE
