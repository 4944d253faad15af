# SPDX-License-Identifier: MIT
"""DaxIo alone, on hand-made FileMaps: every offset in a line, extents, holes, sources, threads, kill."""

import ctypes
import errno
import mmap
import resource
import threading

import numpy as np
import pytest
from datakit import MIB, PAGE, filemap, mapped, noise

from daxfs._iomap import MAPPED, UNWRITTEN, FileMap, RegionView
from daxfs.data._dax_io import NEEDS_BLOCKS, DaxIo
from daxfs.data._tracker import PteTracker, Tracker
from daxfs.errors import UsageError
from daxfs.pfn import PFN_SG_LAST, to_pfn

# Page 1023 ends the first source and 1024 begins the second: neighbours in the file and in the region.
LAYOUT = [
    (0, 3, 10, MAPPED),
    (4, 2, 100, UNWRITTEN),
    (6, 1, 1023, MAPPED),
    (7, 1, 1024, MAPPED),
    (8, 2, 1030, MAPPED),
    (16, 16, 200, MAPPED),
    (33, 1, 300, MAPPED),
]
SIZE = 33 * PAGE + 1000
LENGTHS = (1, 7, 8, 63, 64, 65, 200, 1000, 4095, 4096, 4097, 8200, 13000)


class Rig:
    """One file over two sources; ``model``: what it reads as; ``shadow``: the bytes of the region."""

    def __init__(self, kit, write="nt", drain="write"):
        self.region = kit.sources(4 * MIB, 4 * MIB)
        self.region.array[:] = np.frombuffer(noise(8 * MIB), np.uint8)
        self.shadow = self.region.array.copy()
        self.f = filemap(SIZE, LAYOUT)
        self.dax = DaxIo(self.region, PteTracker(), write, drain)
        self.dax.tracker.attach(self.f)
        self.model = bytearray(34 * PAGE)
        for pgoff, pages, pfn, kind in LAYOUT:
            if kind == MAPPED:
                piece = self.shadow[pfn * PAGE : (pfn + pages) * PAGE]
                self.model[pgoff * PAGE : (pgoff + pages) * PAGE] = piece.tobytes()
        del self.model[SIZE:]

    def put(self, pos: int, data: bytes) -> None:
        """What a write at *pos* does to the model and to the shadow."""
        self.model[pos : pos + len(data)] = data
        for pgoff, pages, pfn, _ in LAYOUT:
            first, last = max(pos, pgoff * PAGE), min(pos + len(data), (pgoff + pages) * PAGE)
            if first < last:
                at = pfn * PAGE + first - pgoff * PAGE
                self.shadow[at : at + last - first] = np.frombuffer(data, np.uint8)[first - pos : last - pos]

    def check(self) -> None:
        assert np.array_equal(self.region.array, self.shadow)
        assert self.region.table.users == 0


@pytest.fixture
def rig(kit):
    return Rig(kit)


POLICIES = [("nt", "write"), ("nt", "fsync"), ("cached", "write"), ("cached", "fsync")]


def test_reads_at_every_offset_across_everything(rig):
    """Bases: the start, an end of an extent before a hole, unwritten, the seam of the sources, the end."""
    for base in (0, 3 * PAGE - 64, 4 * PAGE - 64, 6 * PAGE - 64, 7 * PAGE - 64, 10 * PAGE - 64, SIZE - 9000):
        for offset in range(64):
            for length in LENGTHS:
                pos = base + offset
                assert bytes(rig.dax.read(rig.f, pos, length)) == rig.model[pos : pos + length], (pos, length)
    assert bytes(rig.dax.read(rig.f, 0, 1 << 40)) == rig.model
    assert bytes(rig.dax.read(rig.f, SIZE, 10)) == b"" == bytes(rig.dax.read(rig.f, 2**64 - 1, 10))
    assert bytes(rig.dax.read(rig.f, 5, 0)) == b""
    rig.check()


@pytest.mark.parametrize("write, drain", POLICIES)
def test_writes_at_every_offset_change_what_they_should(kit, write, drain):
    rig = Rig(kit, write, drain)
    data = noise(40000, 2)
    for base, end in ((0, 3), (6 * PAGE, 10), (7 * PAGE - 64, 10), (8 * PAGE - 64, 10), (20 * PAGE - 9, 32)):
        for offset in range(64):
            for length in LENGTHS:
                pos, skew = base + offset, (offset * 13 + length) % 97
                piece = data[skew : skew + min(length, end * PAGE - pos)]
                assert rig.dax.write(rig.f, pos, piece) == 0
                rig.put(pos, piece)
                low = max(pos - 100, 0)
                assert bytes(rig.dax.read(rig.f, low, length + 200)) == rig.model[low : low + length + 200]
    rig.check()


@pytest.mark.parametrize("write", ["nt", "cached"])
def test_last_byte_of_the_file_and_no_further(kit, write):
    rig = Rig(kit, write)
    for length in (1, 8, 64, 999, 1000):
        piece = noise(length, length)
        assert rig.dax.write(rig.f, SIZE - length, piece) == 0
        rig.put(SIZE - length, piece)
        assert rig.dax.write(rig.f, SIZE - length + 1, piece) == NEEDS_BLOCKS
    assert bytes(rig.dax.read(rig.f, SIZE - 2000, 9999)) == rig.model[SIZE - 2000 :]
    rig.check()


@pytest.mark.parametrize("write", ["nt", "cached"])
@pytest.mark.parametrize(
    "pos, length",
    [
        (3 * PAGE, 1),  # a hole
        (3 * PAGE - 1, 2),  # into a hole
        (2 * PAGE, 5 * PAGE),  # over a hole and unwritten pages
        (4 * PAGE + 5, 1),  # unwritten
        (10 * PAGE - 1, 2),
        (32 * PAGE, PAGE),
        (SIZE, 1),
        (SIZE - 1, 2),
        (SIZE + 5 * PAGE, 8),
        (2**44, 8),
        (2**63, 8),
        (2**64 - 4, 8),  # the end wraps to 4
        (2**64 - PAGE, 2 * PAGE),
        (2**64 - 1, 1),
    ],
)
def test_needs_blocks_changes_nothing(kit, write, pos, length):
    rig = Rig(kit, write)
    before = rig.region.flush.counters()
    assert rig.dax.write(rig.f, pos, b"\xee" * length) == NEEDS_BLOCKS
    assert rig.region.flush.counters() == before
    assert rig.dax.tracker.dirty_pages(rig.f) == 0 == rig.dax.dirtied_bytes
    assert rig.f.size == SIZE
    rig.check()


def test_empty_write_does_nothing(rig):
    assert rig.dax.write(rig.f, 10, b"") == 0
    rig.check()


def test_long_pieces_of_one_extent_are_views(rig):
    f, dax, users = rig.f, rig.dax, lambda: rig.region.table.users
    pos = 16 * PAGE + 100
    for length in (16384, 16385, 10 * PAGE):
        got = dax.read(f, pos, length)
        assert isinstance(got, RegionView) and len(got) == length and users() == 0
        with memoryview(got) as view:
            assert users() == 1 and view.readonly
            assert view == rig.model[pos : pos + length]
        assert users() == 0
    assert isinstance(dax.read(f, pos, 16383), bytes)
    assert isinstance(dax.read(f, 6 * PAGE, 4 * PAGE), bytes), "several extents"
    assert isinstance(dax.read(f, 28 * PAGE, 5 * PAGE), bytes), "an extent and a hole"
    assert isinstance(dax.read(f, 28 * PAGE, 4 * PAGE), RegionView), "to the end of the extent"
    long = mapped(8, 40)
    long.size = 5 * PAGE + 1
    assert len(dax.read(long, 0, 1 << 30)) == long.size, "a view ends at the end of file"
    view = memoryview(dax.read(f, pos, 20000))
    rig.dax.write(f, pos, b"new bytes")
    assert view[:9] == b"new bytes", "a view is the region itself"
    view.release()
    assert users() == 0


def test_kill_ends_everything_with_eio(rig):
    f, dax = rig.f, rig.dax
    late = dax.read(f, 16 * PAGE, 20000)
    before = rig.region.array.copy()
    assert rig.region.kill() == 0
    calls = [
        lambda: dax.read(f, 0, 100),
        lambda: dax.read(f, 16 * PAGE, 20000),
        lambda: memoryview(late),
        lambda: dax.write(f, 0, b"x"),
        lambda: dax.writeback(f),
        lambda: dax.fill(f, 0, b"x", [(0, 1, 10, MAPPED)], []),
        lambda: dax.fill(f, 0, b"x", [(3, 1, 50, MAPPED)], [(3, 1, 50)]),
    ]
    for n, call in enumerate(calls):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EIO, n
    assert rig.region.table.users == 0
    assert np.array_equal(rig.region.array, before)
    assert dax.write(f, SIZE, b"x") == NEEDS_BLOCKS, "the lock was given back each time"


def test_extents_outside_the_region_are_eio_and_change_nothing(kit):
    """Damaged media that went past the checks of mount: no store, no read, the lock is free again."""
    region = kit.sources(4 * MIB)
    for extents in ([(0, 4, 5000, MAPPED)], [(0, 4, 1022, MAPPED)]):
        f = filemap(4 * PAGE, extents)
        for write in ("nt", "cached"):
            dax = DaxIo(region, PteTracker(), write)
            dax.tracker.attach(f)
            for call in (lambda d=dax, m=f: d.read(m, 0, 100), lambda d=dax, m=f: d.write(m, 0, b"x")):
                with pytest.raises(OSError) as caught:
                    call()
                assert caught.value.errno == errno.EIO
    assert not region.array.any() and region.table.users == 0


def test_read_only_region_refuses_writes(kit):
    """Without the check the store would end the process."""
    from daxfs.region import Region

    path = kit.sources(4 * MIB).sources[0].path
    with Region.open([path], mode="ro", lock=False) as region:
        for write in ("nt", "cached"):
            dax, f = DaxIo(region, PteTracker(), write), mapped(2)
            dax.tracker.attach(f)
            for call in (lambda d=dax, m=f: d.write(m, 0, b"x"),
                         lambda d=dax, m=f: d.fill(m, 0, b"x", [(0, 1, 16, MAPPED)], [])):
                with pytest.raises(OSError) as caught:
                    call()
                assert caught.value.errno == errno.EROFS
            assert dax.tracker.dirty_pages(f) == 0
            assert bytes(dax.read(f, 0, 4)) == bytes(4)


def test_file_that_was_not_attached(kit):
    """A clear error instead of a crash: nothing is stored where no mark can be made."""
    region, f = kit.sources(4 * MIB), mapped(2)
    dax = DaxIo(region, PteTracker(), "cached")
    with pytest.raises(OSError) as caught:
        dax.write(f, 0, b"x")
    assert caught.value.errno == errno.EINVAL
    assert not region.array.any() and region.table.users == 0
    assert dax.writeback(f) == 0


def test_unknown_policies_are_refused(rig):
    for write, drain in (("fast", "write"), ("nt", "never")):
        with pytest.raises(UsageError):
            DaxIo(rig.region, PteTracker(), write, drain)
    with pytest.raises(TypeError):
        DaxIo(rig.region, None)


def test_scatter_lists_mapped_pieces(rig):
    def plain(pieces):
        return [(to_pfn(pfn), length) for pfn, length in pieces]

    got = rig.dax.scatter(rig.f, 0, 10 * PAGE)
    assert plain(got) == [(10, 3 * PAGE), (1023, PAGE), (1024, PAGE), (1030, 2 * PAGE)]
    assert [bool(pfn & PFN_SG_LAST) for pfn, _ in got] == [False, False, False, True]
    assert plain(rig.dax.scatter(rig.f, PAGE + 5, PAGE)) == [(11, 2 * PAGE)], "whole pages"
    assert plain(rig.dax.scatter(rig.f, 3 * PAGE, 3 * PAGE)) == [], "a hole and unwritten pages"
    assert plain(rig.dax.scatter(rig.f, 20 * PAGE, 2 * PAGE)) == [(204, 2 * PAGE)]


def test_pieces_are_the_file_without_a_copy(rig):
    """What native code sends by reference: each byte of the file once, holes from the page of zeros."""
    for pos, end in ((0, SIZE), (5, 6), (3 * PAGE - 1, 3 * PAGE + 1), (4 * PAGE, 4 * PAGE + 1),
                     (SIZE - 9000, SIZE), (7 * PAGE - 1, 7 * PAGE + 1), (9, 9)):
        size = end - pos
        pieces = rig.dax.pieces(rig.f, pos, size)
        read = b"".join(bytes(n) if at is None else bytes(rig.region.mem[at : at + n]) for at, n in pieces)
        assert read == rig.model[pos : pos + size], (pos, size)
    joined = rig.dax.pieces(rig.f, 6 * PAGE + 1, 2 * PAGE - 1)
    assert joined == [(1023 * PAGE + 1, 2 * PAGE - 1)], "neighbours in the region, too"
    assert rig.dax.pieces(rig.f, 2 * PAGE, 5 * PAGE) == [
        (12 * PAGE, PAGE), (None, PAGE), (None, PAGE), (None, PAGE), (1023 * PAGE, PAGE),
    ]  # fmt: skip
    assert rig.dax.pieces(rig.f, 2 * PAGE + 8, PAGE) == [(12 * PAGE + 8, PAGE - 8), (None, 8)]
    assert len(rig.dax.pieces(rig.f, 2 * PAGE, 5 * PAGE, 5)) == 5
    with pytest.raises(OSError) as caught:
        rig.dax.pieces(rig.f, 2 * PAGE, 5 * PAGE, 4)
    assert caught.value.errno == errno.E2BIG
    with pytest.raises(ValueError, match="limit"):
        rig.dax.pieces(rig.f, 0, 1, 1025)
    rig.check()


def test_a_thread_that_holds_the_lock_keeps_it(rig):
    """Metadata operations hold it exclusively from start to end: what they call must not give it back."""
    f, dax, data = rig.f, rig.dax, b"z" * 100
    f.lock()
    other = threading.Thread(target=lambda: (f.lock(), f.unlock()))
    other.start()
    for n, call in enumerate((
        lambda: dax.read(f, 0, 100),
        lambda: dax.read(f, 16 * PAGE, 20000),
        lambda: dax.scatter(f, 0, PAGE),
        lambda: dax.pieces(f, 0, PAGE),
        lambda: dax.write(f, 0, data),
        lambda: dax.fill(f, 0, data, [(0, 1, 10, MAPPED)], []),
        lambda: dax.writeback(f),
    )):  # fmt: skip
        call()
        other.join(0.05)
        assert other.is_alive(), f"call {n} gave the lock away"
    f.unlock()
    other.join(10)
    assert not other.is_alive()


def test_a_file_that_is_cut_while_it_is_read(rig):
    """The size counts under the lock: no bytes from behind the end, and less is answered."""
    f, dax, stop, wrong = rig.f, rig.dax, threading.Event(), []

    def cut():
        while not stop.is_set():
            f.size = 20 * PAGE
            f.size = SIZE

    thread = threading.Thread(target=cut)
    thread.start()
    for _ in range(3000):
        got = bytes(dax.read(f, 19 * PAGE, 2 * PAGE))
        if got not in (rig.model[19 * PAGE : 20 * PAGE], rig.model[19 * PAGE : 21 * PAGE]):
            wrong.append(len(got))
    stop.set()
    thread.join()
    assert not wrong


def test_fill_refuses_pages_that_the_data_do_not_reach(rig):
    for pgoff, pos in ((3, 0), (3, 4 * PAGE), (3, 2**64 - 8)):
        with pytest.raises(OSError) as caught:
            rig.dax.fill(rig.f, pos, b"x" * 8, [(pgoff, 1, 400, MAPPED)], [(pgoff, 1, 400)])
        assert caught.value.errno == errno.EINVAL
    rig.check()


def test_a_copy_never_goes_to_pages_that_are_not_mapped(rig):
    """A plan that calls a hole written: EIO, not a store on page 0 of the region."""
    with pytest.raises(OSError) as caught:
        rig.dax.fill(rig.f, 3 * PAGE, b"x" * 8, [(3, 1, 0, MAPPED)], [])
    assert caught.value.errno == errno.EIO
    rig.check()


def test_fill_zeroes_only_what_the_data_leave(rig):
    """Two fresh runs and one written between them; garbage stood in the fresh ones."""
    data = noise(3 * PAGE, 9)
    pos = 3 * PAGE + 700
    pieces = [(3, 1, 400, MAPPED), (4, 2, 500, MAPPED), (6, 1, 1023, MAPPED)]
    fresh = [(3, 1, 400), (4, 2, 500)]
    rig.dax.fill(rig.f, pos, data, pieces, fresh)
    mem = rig.region.mem
    assert mem[400 * PAGE : 401 * PAGE] == bytes(700) + data[: PAGE - 700]
    assert mem[500 * PAGE : 502 * PAGE] == data[PAGE - 700 : 3 * PAGE - 700]
    assert mem[1023 * PAGE : 1023 * PAGE + 700] == data[3 * PAGE - 700 :]
    assert mem[1023 * PAGE + 700 : 1024 * PAGE] == rig.shadow[1023 * PAGE + 700 : 1024 * PAGE].tobytes()
    assert rig.f.lookup(3)[0] == 0, "fill publishes nothing"


def test_dirty_pages_are_written_back_once(kit):
    rig = Rig(kit, "cached")
    rig.dax.write(rig.f, 16 * PAGE + 10, b"a" * (2 * PAGE))
    rig.dax.write(rig.f, 30 * PAGE, b"b")
    assert rig.dax.tracker.dirty_pages(rig.f) == 4
    assert rig.dax.writeback(rig.f, 30, 31) == 1
    assert rig.dax.writeback(rig.f) == 3
    assert rig.dax.writeback(rig.f) == 0
    assert (rig.dax.flushed_bytes, rig.dax.writebacks, rig.dax.dirtied_bytes) == (4 * PAGE, 3, 4 * PAGE)


def test_tracker_none_flushes_nothing(kit):
    region, f = kit.sources(4 * MIB), mapped(4)
    dax = DaxIo(region, Tracker(), "cached")
    dax.tracker.attach(f)
    assert dax.write(f, 0, noise(PAGE)) == 0 == dax.writeback(f)


@pytest.mark.parametrize("write", ["nt", "cached"])
def test_readers_see_whole_words_while_a_writer_works(kit, write):
    """Copies and views of one 64 KiB block, written over by turns with two patterns; 8 bytes never mix."""
    region, f = kit.sources(4 * MIB), mapped(16)
    dax = DaxIo(region, PteTracker(), write, "fsync")
    dax.tracker.attach(f)
    patterns = [bytes([n]) * (16 * PAGE) for n in (0x11, 0xEE)]
    words = {int.from_bytes(p[:8], "little") for p in patterns}
    dax.write(f, 0, patterns[0])
    stop, wrong, reads = threading.Event(), [], [0] * 3

    def reader(n):
        while not stop.is_set():
            size = (8000, 16 * PAGE, 16 * PAGE)[n]  # bytes, view, view
            with memoryview(dax.read(f, 0, size)) as view:
                seen = set(np.unique(np.frombuffer(view, "<u8")).tolist())
            if not seen <= words or (n == 0 and len(seen) != 1):  # a copy is made under the lock
                wrong.append((n, sorted(map(hex, seen))))
            reads[n] += 1

    threads = [threading.Thread(target=reader, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    count = 0
    while min(reads) < 60 and count < 100000:
        dax.write(f, 0, patterns[count & 1])
        if count % 64 == 0:
            dax.writeback(f)
        count += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and min(reads) >= 60 and region.table.users == 0


def test_kill_during_load_lets_everybody_out(kit):
    region = kit.sources(8 * MIB)
    files = [mapped(256, 16 + 300 * n) for n in range(3)]
    dax = DaxIo(region, PteTracker(), "cached", "fsync")
    ended = []

    def work(f: FileMap):
        dax.tracker.attach(f)
        try:
            while True:
                dax.write(f, 100, b"z" * 200_000)
                dax.read(f, 3, 10_000)
                dax.writeback(f)
        except OSError as error:
            ended.append(error.errno)

    threads = [threading.Thread(target=work, args=(f,)) for f in files]
    for thread in threads:
        thread.start()
    while dax.writebacks < 20:
        pass
    assert region.kill() == 0
    for thread in threads:
        thread.join()
    assert ended == [errno.EIO] * 3 and region.table.users == 0


@pytest.mark.parametrize("policy", POLICIES, ids="-".join)
def test_a_long_write_faults_once_for_many_pages(kit, policy):
    """Over pages that have memory and are not mapped yet, as after each mount."""
    region = kit.sources(4 * MIB)
    if region.sources[0].detected.medium != "emulated":
        pytest.skip("the regions of the tests are not on tmpfs")
    region.array[:] = 1
    f, dax = mapped(512), DaxIo(region, PteTracker(), *policy)
    dax.tracker.attach(f)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert libc.madvise(region.address, region.npages * PAGE, mmap.MADV_DONTNEED) == 0
    data = noise(MIB)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    assert dax.write(f, 3 * PAGE + 5, data) == 0
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
    assert bytes(dax.read(f, 3 * PAGE + 5, MIB)) == data
    assert faults < 64, faults
