# SPDX-License-Identifier: MIT
"""Preallocation: who gets a chunk, what it costs, when it goes back, and what a crash leaves of it."""

import errno
import struct
from itertools import pairwise

import pytest
from crashes import Crashes
from datakit import MIB, PAGE, calls, content, create, find, noise, reopen
from hypothesis import given, settings
from hypothesis import strategies as st
from test_order import Places

from daxfs import layout as L
from daxfs._iomap import HOLE, MAPPED, PLAIN, UNSETTLED, UNWRITTEN
from daxfs._record import Recorder
from daxfs.data._serve import Server
from daxfs.meta import attr, file, namespace, prealloc, recover
from daxfs.meta.fallocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from daxfs.meta.transaction import Transaction

KIB64 = 16 * PAGE
_HEADER, _WRITE = struct.Struct("<IIQQIIIHH"), struct.Struct("<QQIIQII")


class Native:
    """Writes through `Server.feed` as a native thread does; what that does not answer goes to FileIo."""

    def __init__(self, io):
        self.io, self.server = io, Server(io.dax)
        fs = io.fs
        self.server.writes, self.server.inode_limit = True, fs.inodes.limit
        self.server.inodes, self.server.getattr = fs.region.address + fs.inodes.base, True
        fs.inodes.on_grown.append(lambda limit: setattr(self.server, "inode_limit", limit))
        self.handles = {}
        self.served = self.called = 0

    def write(self, node, pos: int, data: bytes) -> int:
        if node.ino not in self.handles:
            self.handles[node.ino] = self.server.open(node.map, node.ino, 1 | 2)
        arg = _WRITE.pack(self.handles[node.ino], pos, len(data), 0, 0, 0, 0)
        head = _HEADER.pack(40 + len(arg) + len(data), 16, 1, node.ino, 0, 0, 1, 0, 0)
        self.server.set_clock(self.io.fs.clock())
        verdict, error, reply = self.server.feed(head + arg + data)
        if verdict == "done":
            self.served += 1
            assert error == 0 and struct.unpack("<II", reply)[0] == len(data)
            return len(data)
        assert verdict == "call"
        self.called += 1
        return self.io.write(node, pos, data)


def flag(io, node) -> bool:
    return bool(io.fs.inodes.read(node.ino).flags & L.FLAG_PREALLOC)


def behind(node) -> int:
    """Written pages behind the end."""
    end = prealloc.pages_of(node.map.size)
    return sum(pgoff + n - max(pgoff, end)
               for pgoff, n, _, kind, _ in node.map.extents() if kind == MAPPED and pgoff + n > end)


def stream(io, node, count: int = 3, length: int = PAGE) -> None:
    for n in range(count):
        assert io.write(node, node.map.size, noise(length, n)) == length


def prepared(io, count: int = 3):
    """An open file with a chunk behind its end."""
    node = create(io, b"f")
    stream(io, node, count)
    assert flag(io, node) and behind(node) and node.ino in io.fs.preallocated
    return node


# -- who gets one -------------------------------------------------------------------------


def test_a_single_append_and_a_small_file_get_none(kit):
    io = kit.io()
    for _ in range(4):
        node = find(io, b"f") if _ else create(io, b"f")
        for _ in range(2):
            io.write(node, node.map.size, noise(100))
        assert not flag(io, node) and node.map.pages <= prealloc.pages_of(node.map.size)
        io.release(node)


def test_chunks_double_and_a_record_is_written_for_each(kit):
    io = kit.io(size=64 * MIB)
    native, node = Native(io), create(io, b"f")
    records, sizes = [], []
    for n in range(3000):
        before = io.fs.journal.records
        native.write(node, n * PAGE, bytes([n % 255 + 1]) * PAGE)
        if io.fs.journal.records > before:
            records.append(n)
            sizes.append(behind(node))
    assert native.called == len(records), "a write came to Python and wrote no record"
    assert records[:3] == [0, 1, 2]
    gaps = [b - a for a, b in pairwise(records[2:])]
    # Each is used up before the next one, with one record; their ends are on multiples of 16 pages.
    assert gaps[:6] == [14, 32, 64, 128, 256, 512]
    assert max(sizes) <= prealloc.MOST and max(gaps) > 500 and len(records) < 16
    assert content(io, b"f")[: 1 << 20] == b"".join(bytes([n % 255 + 1]) * PAGE for n in range(256))
    size = io.fs.inodes.read(node.ino).size
    assert size == node.map.size == 3000 * PAGE
    crashed = kit.crashed(io)
    assert crashed.fs.inodes.read(node.ino).size == size


def test_without_native_threads_an_append_in_place_costs_two_drains_and_no_record(kit):
    io = kit.io()
    node = prepared(io)
    counters = io.fs.region.flush.counters
    for _ in range(5):
        before, records = counters()["drain"], io.fs.journal.records
        stream(io, node, 1)
        assert (counters()["drain"] - before, io.fs.journal.records - records) == (2, 0)
    inode = io.fs.inodes.read(node.ino)
    assert inode.mtime == inode.ctime == io.fs.clock.now


def test_a_large_append_gets_room_for_several_of_its_length(kit):
    io = kit.io(size=256 * MIB)
    native, node = Native(io), create(io, b"f")
    for n in range(40):
        native.write(node, n * MIB, noise(MIB, n))
    # Two without a chunk, then chunks for eight: nothing is zeroed for them, so their length costs nothing.
    assert native.called == 2 + 38 // 9 + 1 and native.served == 40 - native.called
    for n in range(40):
        assert bytes(io.read(node, n * MIB, MIB)) == noise(MIB, n)


def test_a_large_write_that_just_fits_is_written(kit):
    """Its chunk must not take what it needs itself."""
    io = kit.io()
    node = create(io, b"f")
    stream(io, node)
    pages = io.fs.alloc.free_pages + behind(node) - file.RESERVE
    assert io.write(node, node.map.size, bytes(pages * PAGE)) == pages * PAGE


def test_a_chunk_is_a_small_part_of_what_is_free(kit):
    io = kit.io()
    node = create(io, b"f")
    node.ahead = prealloc.MOST
    fs = io.fs
    fs.alloc.alloc(fs.alloc.free_pages - 1000)
    stream(io, node)
    assert 0 < behind(node) <= 1000 // prealloc.SHARE
    fs.alloc.alloc(fs.alloc.free_pages - 100)
    other = create(io, b"g")
    assert not flag(io, node), "below prealloc.LOW nobody keeps one"
    stream(io, other, 5)
    assert not flag(io, other)


def test_a_chunk_ends_where_fallocate_put_blocks(kit):
    io = kit.io()
    node = create(io, b"f")
    io.fallocate(node, KEEP_SIZE, 5 * PAGE, 3 * PAGE)
    stream(io, node)
    assert not flag(io, node), "two pages are not worth it"
    node.map.load([e for e in node.map.extents() if e[3] != UNWRITTEN])  # keep this test from depending on it
    assert io.fs.inodes.read(node.ino).size == 3 * PAGE


def test_a_scattered_chunk_is_not_taken_whole(kit):
    io = kit.io()
    fs = io.fs
    taken = [fs.alloc.alloc(1)[0] for _ in range(400)]
    fs.alloc.alloc(fs.alloc.free_pages)
    for pfn, _ in taken[::2]:
        fs.alloc.free(pfn, 1)
    with Transaction(fs) as tx:
        runs = tx.alloc(2, 0, None, 30)
        assert len(runs) == 4 and fs.alloc.free_pages == 196
        assert len(tx.alloc(6, 0, None, 30)) == 6, "what was asked for is there, however scattered"
    assert fs.alloc.free_pages == 190


# -- order of stores ----------------------------------------------------------------------


def test_data_before_the_record_settled_before_the_reply(kit):
    io = kit.io()
    node, where = create(io, b"f"), Places(io.fs)
    stream(io, node, 2)
    with Recorder(io.fs.region, sites=False) as table:
        stream(io, node, 1)
        shape = where.shape(calls(table))
    first = shape.index("drain")
    assert shape[:first] == ["data nt_store"]  # the pages of the chunk are left as they are
    assert shape[first + 1 : first + 3] == ["journal nt_store", "drain"]
    assert shape[-6:] == ["inode flush", "drain", "journal store", "journal flush", "drain"][-6:] or (
        shape[-4:] == ["drain", "journal store", "journal flush", "drain"]
    )
    assert node.map.state & (UNSETTLED | PLAIN) == PLAIN


def test_an_append_in_place_waits_for_the_journal(kit):
    io = kit.io()
    node = prepared(io)
    attr.setattr(io.fs, node.ino, {"mode": 0o600})
    assert node.map.state & (UNSETTLED | PLAIN) == UNSETTLED
    settles = io.fs.journal.settles
    stream(io, node, 1)
    assert io.fs.journal.settles == settles + 1
    crashed = kit.crashed(io)
    assert crashed.fs.inodes.read(node.ino).size == 4 * PAGE


# -- back ---------------------------------------------------------------------------------

BACK = {
    "close": lambda io, node: io.release(node),
    "quiesce": lambda io, node: io.quiesce(),
    "unmount": lambda io, node: io.fs.unmount(),
    "truncate down": lambda io, node: file.truncate(io.fs, node, PAGE + 1, 5),
    "truncate to the size it has": lambda io, node: file.truncate(io.fs, node, node.map.size, 5),
    "truncate up": lambda io, node: file.truncate(io.fs, node, 9 * PAGE, 5),
    "truncate to zero": lambda io, node: file.truncate(io.fs, node, 0, 5),
    "a gap": lambda io, node: io.write(node, 12 * PAGE, b"x"),
    "fallocate": lambda io, node: io.fallocate(node, KEEP_SIZE, 5 * PAGE, PAGE),
    "punch": lambda io, node: io.fallocate(node, PUNCH_HOLE | KEEP_SIZE, 100, 2 * PAGE),
    "zero range": lambda io, node: io.fallocate(node, ZERO_RANGE, 100, 8 * PAGE),
}


@pytest.mark.parametrize("what", BACK)
def test_it_goes_back(kit, what):
    io = kit.io()
    free = io.fs.alloc.free_pages
    node = prepared(io)
    ino = node.ino
    inside = prealloc.pages_of(node.map.size)
    BACK[what](io, node)
    if what in ("close", "quiesce", "unmount"):
        assert io.fs.alloc.free_pages + io.fs.alloc.held == free - inside
    inode = io.fs.inodes.read(ino)
    assert not inode.flags and not io.fs.preallocated
    written = [e for e in io.fs.node(ino).map.extents() if e[3] == MAPPED]
    assert all(pgoff + n <= prealloc.pages_of(inode.size) for pgoff, n, *_ in written)
    assert inode.blocks == io.fs.node(ino).map.pages
    if what != "unmount":
        kit.fsck(io.fs)


@pytest.mark.parametrize("what", BACK)
def test_what_grows_over_it_reads_as_before(kit, what):
    """Even if an append that failed left bytes behind the end."""
    io = kit.io()
    node = prepared(io)
    _, _, _, pfn, _ = node.map.lookup(3)
    io.fs.region.nt_store(pfn * PAGE, b"\xee" * (behind(node) * PAGE))
    BACK[what](io, node)
    if what in ("close", "quiesce", "unmount"):
        return
    if node.map.size < 20 * PAGE:
        file.truncate(io.fs, node, 20 * PAGE, 5)
    assert b"\xee" * 8 not in content(io, b"f")


def test_unlinked_and_open_it_goes_with_the_file(kit):
    io = kit.io()
    free = io.fs.alloc.free_pages
    node = prepared(io)
    namespace.unlink(io.fs, 1, b"f")
    records = io.fs.journal.records
    io.release(node)
    assert io.fs.journal.records == records + 1 and not io.fs.preallocated
    assert io.fs.alloc.free_pages + io.fs.alloc.held == free


def test_what_fallocate_put_behind_the_end_stays(kit):
    io = kit.io()
    node = create(io, b"f")
    io.fallocate(node, KEEP_SIZE, 40 * PAGE, 3 * PAGE)
    stream(io, node)
    assert behind(node)
    io.release(node)
    node = find(io, b"f")
    assert [(e[0], e[1], e[3]) for e in node.map.extents()] == [(0, 3, MAPPED), (40, 3, UNWRITTEN)]
    kit.fsck(io.fs)


def test_the_second_handle_keeps_it_the_last_one_gives_it_back(kit):
    io = kit.io()
    node = prepared(io)
    again = reopen(io, node.ino)
    io.release(node)
    assert flag(io, again)
    io.release(again)
    assert not io.fs.inodes.read(again.ino).flags


@pytest.mark.parametrize("what", ["write", "append", "fallocate"])
def test_before_enospc_all_chunks_go_back(kit, what):
    io = kit.io()
    fs = io.fs
    nodes = []
    for name in (b"a", b"b", b"c"):
        node = create(io, name)
        node.ahead = 256
        stream(io, node)
        nodes.append(node)
    spare = sum(map(behind, nodes))
    assert spare > 300
    fs.alloc.alloc(fs.alloc.free_pages - prealloc.LOW)  # so that nothing is given back too early
    assert all(flag(io, node) for node in nodes)
    pages = prealloc.LOW + spare - file.RESERVE
    target = nodes[0]
    if what == "fallocate":
        io.fallocate(target, 0, 3 * PAGE, pages * PAGE)
    else:
        pos = target.map.size + (5 * PAGE if what == "write" else 0)
        assert io.write(target, pos, bytes(pages * PAGE)) == pages * PAGE
    assert not fs.preallocated and fs.alloc.free_pages + fs.alloc.held == file.RESERVE
    with pytest.raises(OSError) as caught:
        io.write(target, 99 * MIB, b"x")
    assert caught.value.errno == errno.ENOSPC
    kit.fsck(fs)


def test_a_killed_daemons_chunk_goes_back_at_mount(kit):
    io = kit.io()
    node = prepared(io)
    free = io.fs.alloc.free_pages + behind(node)
    kit.fsck(io.fs)  # what a crash leaves is no damage
    crashed = kit.crashed(io)
    inode = crashed.fs.inodes.read(node.ino)
    assert not inode.flags and inode.blocks == 3 and crashed.fs.alloc.free_pages == free
    assert content(crashed, b"f") == content(io, b"f")
    kit.fsck(crashed.fs)


def test_a_read_only_mount_lets_it_be(kit, monkeypatch):
    io = kit.io()
    prepared(io)
    monkeypatch.setattr(recover, "finish_orphans", lambda fs: None)
    crashed = kit.crashed(io)
    crashed.fs.readonly = True
    node = find(crashed, b"f")
    assert len(content(crashed, b"f")) == 3 * PAGE
    crashed.release(node)
    crashed.quiesce()
    crashed.fs.unmount()


def test_a_failed_append_leaves_nothing_behind_the_end(kit, monkeypatch):
    io = kit.io()
    node = prepared(io)
    fill = io.dax.fill

    class Broken:
        def __getattr__(self, name):
            return getattr(io_dax, name)

        def fill(self, *args):
            fill(*args)
            raise OSError(errno.EIO, "broken")

    io_dax = io.dax
    monkeypatch.setattr(io, "dax", Broken())
    for length in (100, 40 * PAGE):  # in place, and with a record
        with pytest.raises(OSError):
            io.write(node, node.map.size, b"\xee" * length)
        assert not flag(io, node) and not behind(node) and node.map.size == 3 * PAGE
        monkeypatch.undo()
        stream(io, node, 1)
        assert flag(io, node)
        file.truncate(io.fs, node, 3 * PAGE, 5)
        stream(io, node, 1)
        file.truncate(io.fs, node, 3 * PAGE, 5)
        monkeypatch.setattr(io, "dax", Broken())
    kit.fsck(io.fs)


# -- unwritten pages ----------------------------------------------------------------------


def test_a_write_into_unwritten_pages_makes_its_neighbours_written(kit):
    io = kit.io()
    node = create(io, b"f")
    io.fallocate(node, 0, 0, 300 * PAGE)
    io.fallocate(node, KEEP_SIZE, 300 * PAGE, 100 * PAGE)

    def kinds(first, last):
        return [node.map.lookup(page)[0] for page in range(first, last)]

    io.write(node, 100 * PAGE + 5, b"x")
    assert kinds(64, 128) == [MAPPED] * 64 and kinds(63, 64) == kinds(128, 129) == [UNWRITTEN]
    records = io.fs.journal.records
    for page in (64, 101, 127):
        io.write(node, page * PAGE + 7, b"y")
    assert io.fs.journal.records == records, "these write over what is there"
    io.write(node, 299 * PAGE, b"z")
    assert kinds(256, 300) == [MAPPED] * 44 and kinds(300, 301) == [UNWRITTEN], "not behind the end"
    io.fallocate(node, PUNCH_HOLE | KEEP_SIZE, 10 * PAGE, PAGE)
    io.write(node, 12 * PAGE, b"z")
    assert kinds(9, 13) == [UNWRITTEN, HOLE, MAPPED, MAPPED]
    want = bytearray(300 * PAGE)
    for page, at, byte in ((100, 5, b"x"), (64, 7, b"y"), (101, 7, b"y"), (127, 7, b"y"),
                           (299, 0, b"z"), (12, 0, b"z")):  # fmt: skip
        want[page * PAGE + at : page * PAGE + at + 1] = byte
    assert bytes(io.read(node, 0, 300 * PAGE)) == bytes(want)
    kit.fsck(io.fs)


# -- power failures -----------------------------------------------------------------------


def dirt(io) -> None:
    """Free pages hold 0xEE, so that one that shows too early is seen."""
    node = create(io, b"dirt")
    io.write(node, 0, b"\xee" * ((io.fs.alloc.free_pages - 20) * PAGE))
    io.release(node)
    namespace.unlink(io.fs, 1, b"dirt")


@pytest.fixture
def no_old_bytes(monkeypatch):
    """Whenever a chunk goes back, at mount too, the rest of the last page, which a mapping of the file would
    show, has nothing of what `dirt` left there.
    """
    give_back = prealloc.give_back

    def checked(fs, node):
        size = node.map.size
        kind, _, _, pfn, _ = node.map.lookup(size // PAGE)
        if kind == MAPPED and size % PAGE:
            shown = fs.region.array[pfn * PAGE + size % PAGE : (pfn + 1) * PAGE]
            assert not (shown == 0xEE).any(), "old bytes behind the end"
        give_back(fs, node)

    monkeypatch.setattr(prealloc, "give_back", checked)


def piece(n: int, length: int) -> bytes:
    return bytes([n % 200 + 1]) * length


class Appends:
    """Appends to one file, by native code or FileIo, each a step of `Crashes`, with other operations between.

    After any crash: the appends that had returned are there, the one in flight is there wholly or not at
    all, and no byte was never written. With the next growth nothing of a chunk shows.
    """

    def __init__(self, kit, native: bool, write: str = "nt", drain: str = "write"):
        self.io = kit.io(write, drain)
        dirt(self.io)
        self.node = create(self.io, b"f")
        self.write = Native(self.io).write if native else self.io.write
        self.data, self.crashes = b"", Crashes(kit, self.io)

    def judge(self, *allowed):
        def look(crashed):
            got = content(crashed, b"f")
            assert got in allowed, f"{len(got)} bytes, {sum(map(got.__eq__, allowed))}"
            node = find(crashed, b"f")
            assert not crashed.fs.inodes.read(node.ino).flags and not behind(node)
            file.truncate(crashed.fs, node, len(got) + 40 * PAGE, 5)
            assert content(crashed, b"f") == got + bytes(40 * PAGE), "old bytes show"
            crashed.release(node)

        return look

    def append(self, length: int) -> None:
        data = piece(len(self.data) // 7, length)
        new = self.data + data
        with self.crashes.step(self.judge(new), self.judge(self.data, new)):
            assert self.write(self.node, len(self.data), data) == length
        self.data = new

    def other(self, call) -> None:
        with self.crashes.step(self.judge(self.data), self.judge(self.data)):
            call(self.io, self.node)


OTHERS = {
    "chmod": lambda io, node: attr.setattr(io.fs, node.ino, {"mode": 0o600}),
    "fsync": lambda io, node: io.fsync(node),
    "give back": lambda io, node: prealloc.give_back(io.fs, node),
    "another file": lambda io, node: io.release(create(io, b"g%d" % io.fs.inodes.used)),
    "truncate": lambda io, node: file.truncate(io.fs, node, node.map.size, 5),
}


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
@pytest.mark.parametrize("write, drain", [("nt", "write"), ("cached", "fsync")])
def test_appends_and_power_failures(kit, no_old_bytes, monkeypatch, native, write, drain):
    monkeypatch.setattr(prealloc, "STREAM", 2)
    run = Appends(kit, native, write, drain)
    with run.crashes:
        for length in (100, 3000, 5000, PAGE):
            run.append(length)
        for name in OTHERS:
            run.other(OTHERS[name])
            run.append(700)
            run.append(6000)
        for length in (20 * PAGE, 17):
            run.append(length)
    assert run.crashes.images > 150


@settings(max_examples=10, deadline=None)
@given(ops=st.lists(st.one_of(st.integers(1, 9000), st.sampled_from(list(OTHERS))), min_size=2, max_size=8),
       native=st.booleans())  # fmt: skip
def test_any_sequence_of_appends_and_power_failures(kit, no_old_bytes, ops, native):
    old, prealloc.STREAM = prealloc.STREAM, 1
    try:
        run = Appends(kit, native)
        with run.crashes:
            for op in ops:
                if isinstance(op, int):
                    run.append(op)
                else:
                    run.other(OTHERS[op])
    finally:
        prealloc.STREAM = old
