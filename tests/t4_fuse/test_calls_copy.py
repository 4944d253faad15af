# SPDX-License-Identifier: MIT
"""COPY_FILE_RANGE as a raw request: content, holes, bounds, privileges, interruption, its pieces."""

import contextlib
import errno
import os
import random
import struct

import callkit
import datakit
import pytest
import trio
from callkit import ROOT, Call, user

from daxfs._iomap import MAPPED, UNWRITTEN
from daxfs.data import ranges
from daxfs.fuse import calls
from daxfs.fuse.relay import Relay
from daxfs.fuse.streak import Streak
from daxfs.meta import attr, xattr
from daxfs.meta import namespace as ns

PAGE = 4096
COPY, COPY_64, FALLOCATE = 47, 53, 43
LAYOUT = "7Q"


@pytest.fixture
def bench():
    with datakit.Kit() as kit:
        yield callkit.Bench(kit)


class Pair:
    """Two files, or one twice, and copies between them."""

    def __init__(self, bench, source: bytes = b"", target: bytes = b"", who=ROOT):
        self.bench = bench
        self.source, self.target = bench.create(b"source", source), bench.create(b"target", target, who=who)

    def request(self, pos, to, length, opcode=COPY_64, who=ROOT, flags=0, same=False):
        target = self.source if same else self.target
        arg = struct.pack("=7Q", self.source[1], pos, *target, to, length, flags)
        return Call(opcode, self.source[0], arg, who=who)

    def copy(self, *args, **more) -> int:
        out = self.bench.run(self.request(*args, **more))
        return struct.unpack("=II" if len(out) == 8 and more.get("opcode") == COPY else "=Q", out)[0]

    def error(self, *args, **more) -> int:
        with pytest.raises(Exception) as caught:
            self.copy(*args, **more)
        return caught.value.errno

    def content(self) -> bytes:
        return self.bench.content(self.target[1])

    def extents(self):
        return self.bench.extents(self.target[1])

    def seek(self, which: int, pos: int, data: bool) -> int:
        node = self.bench.ops.handles[(self.source, self.target)[which][1]].node
        return ranges.seek(node, pos, data)


@pytest.mark.parametrize("opcode", (COPY, COPY_64))
@pytest.mark.parametrize("pos, to, length", ((0, 0, 36864), (5, 9000, 20000), (4096, 4096, 4096), (1, 0, 3)))
def test_bytes(bench, opcode, pos, to, length):
    data, old = datakit.noise(9 * PAGE), datakit.noise(4 * PAGE, seed=2)
    pair = Pair(bench, data, old)
    assert pair.copy(pos, to, length, opcode=opcode) == length
    expected = bytearray(old.ljust(to + length, b"\0"))
    expected[to : to + length] = data[pos : pos + length]
    assert pair.content() == expected
    assert bench.content(pair.source[1]) == data
    again = bench.ops.files.fs.inodes.read(pair.target[0])
    assert again.size == len(expected) and again.mtime == again.ctime


def test_the_reply_of_the_older_opcode_has_32_bits(bench):
    pair = Pair(bench)
    attr.setattr(bench.fs, pair.source[0], {"size": 1 << 40})
    assert pair.copy(0, 0, 1 << 40, opcode=COPY) == 0x7FFFF000
    assert len(bench.run(pair.request(0, 0, 1, opcode=COPY))) == 8
    assert pair.copy(0, 0, 1 << 40) == 1 << 40
    assert bench.fs.inodes.read(pair.target[0]).size == 1 << 40 and pair.extents() == []


def test_bounds(bench):
    pair = Pair(bench, b"0123456789", b"old")
    assert pair.copy(10, 0, 5) == pair.copy(1 << 63, 0, 5) == pair.copy(0, 0, 0) == 0
    assert pair.copy(8, 3, 100) == 2 and pair.content() == b"old89"
    assert pair.error(0, 0, 5, flags=1) == errno.EINVAL
    assert pair.error(0, 1 << 44, 5) == errno.EFBIG and pair.error(0, (1 << 64) - 1, 5) == errno.EFBIG
    assert pair.copy(0, (1 << 44) - 4, 10) == 4
    attr.setattr(bench.fs, pair.target[0], {"size": 0})


def test_within_one_file(bench):
    data = datakit.noise(8 * PAGE)
    pair = Pair(bench, data)
    for pos, to, length in ((0, PAGE, PAGE + 1), (PAGE, 0, PAGE + 1), (0, 0, 1), (5, 5, 100)):
        assert pair.error(pos, to, length, same=True) == errno.EINVAL, (pos, to, length)
    assert pair.copy(0, PAGE, PAGE, same=True) == PAGE
    assert pair.copy(7 * PAGE, 8 * PAGE, 1 << 20, same=True) == PAGE  # up to the end that it has at the start
    assert pair.copy(100, 300, 200, same=True) == 200
    expected = bytearray(data[:PAGE] * 2 + data[2 * PAGE :] + data[7 * PAGE :])
    expected[300:500] = expected[100:300]
    assert bench.content(pair.source[1]) == expected


def test_holes_stay_holes(bench):
    pair = Pair(bench, b"")
    ino, fh = pair.source
    for page in (2, 3, 9):
        bench.ask("write", fh, page * PAGE, datakit.noise(PAGE, seed=page))
    bench.call(FALLOCATE, ino, "QQQII", fh, 5 * PAGE, 2 * PAGE, 1, 0)  # unwritten: a hole for readers
    attr.setattr(bench.fs, ino, {"size": 20 * PAGE})
    assert pair.copy(0, 0, 1 << 40) == 20 * PAGE
    assert pair.content() == bench.content(fh)
    assert sum(pages for _, pages, _ in pair.extents()) == 3
    for pos in range(0, 20 * PAGE, PAGE):
        assert pair.seek(0, pos, False) == pair.seek(1, pos, False)


def test_a_hole_over_data(bench):
    """Whole pages are given back, parts of pages are zeroed, and what was allocated and unwritten stays."""
    data = datakit.noise(8 * PAGE)
    pair = Pair(bench, b"", data)
    attr.setattr(bench.fs, pair.source[0], {"size": 1 << 30})
    assert pair.copy(0, PAGE + 100, 4 * PAGE) == 4 * PAGE
    assert pair.content() == data[: PAGE + 100] + bytes(4 * PAGE) + data[5 * PAGE + 100 :]
    assert pair.extents() == [(0, 2, MAPPED), (5, 3, MAPPED)]
    bench.call(FALLOCATE, pair.target[0], "QQQII", pair.target[1], 8 * PAGE, 4 * PAGE, 0, 0)
    assert pair.copy(0, 8 * PAGE, 2 * PAGE) == 2 * PAGE
    assert pair.extents()[-1] == (8, 4, UNWRITTEN)
    assert pair.copy(0, 11 * PAGE, 10 * PAGE) == 10 * PAGE
    assert bench.fs.inodes.read(pair.target[0]).size == 21 * PAGE and pair.extents()[-1] == (8, 4, UNWRITTEN)


def test_a_hole_behind_the_end_leaves_nothing_of_the_last_page(bench):
    """What a mapping stored behind the end of file must not show when the copy moves the end."""
    pair = Pair(bench, b"", b"short")
    node = bench.ops.handles[pair.target[1]].node
    pfn = node.map.lookup(0)[3]
    bench.fs.region.nt_fill((pfn << 12) + 5, 0xEE, PAGE - 5)
    attr.setattr(bench.fs, pair.source[0], {"size": PAGE})
    assert pair.copy(0, 100, 50) == 50
    assert pair.content() == b"short".ljust(150, b"\0")


def test_random_copies_are_what_bytes_say(bench):
    """Sparse files, any alignment, both directions and within one file, against plain bytearrays."""
    rng = random.Random(5)
    pair = Pair(bench)
    files = [pair.source, pair.target]
    model = [bytearray(), bytearray()]
    for step in range(300):
        one, two = rng.randrange(2), rng.randrange(2)
        if step % 3 == 0:
            pos, data = rng.randrange(40 * PAGE), datakit.noise(rng.randrange(1, 3 * PAGE), seed=step)
            bench.ask("write", files[one][1], pos, data)
            model[one].extend(bytes(max(pos - len(model[one]), 0)))
            model[one][pos : pos + len(data)] = data
            continue
        pos, to, length = rng.randrange(40 * PAGE), rng.randrange(40 * PAGE), rng.randrange(20 * PAGE)
        if rng.random() < 0.5:
            pos, to = pos & -PAGE, to & -PAGE
        real = min(length, max(len(model[one]) - pos, 0))
        arg = struct.pack("=7Q", files[one][1], pos, *files[two], to, length, 0)
        request = Call(COPY_64, files[one][0], arg)
        if one == two and abs(pos - to) < real:
            with pytest.raises(OSError) as caught:
                bench.run(request)
            assert caught.value.errno == errno.EINVAL
            continue
        assert struct.unpack("=Q", bench.run(request))[0] == real
        if real:
            data = model[one][pos : pos + real]
            model[two].extend(bytes(max(to - len(model[two]), 0)))
            model[two][to : to + real] = data
    assert [bench.content(fh) for _, fh in files] == model


def test_space_runs_out(bench):
    pair = Pair(bench, datakit.noise(PAGE * 50))
    left = 20
    ino, fh = bench.create(b"big")
    size = (bench.fs.alloc.free_pages + bench.fs.alloc.held - left) * PAGE
    bench.call(FALLOCATE, ino, "QQQII", fh, 0, size, 0, 0)
    done = pair.copy(0, 0, 50 * PAGE)
    assert 0 < done <= left * PAGE and bench.content(pair.source[1])[:done] == pair.content()
    assert pair.error(done, done, 50 * PAGE) == errno.ENOSPC


def test_what_a_write_does_a_copy_does(bench):
    """Times, privileges, O_DSYNC; the source's access time, unless it was opened with O_NOATIME."""
    pair = Pair(bench, b"data" * 3000, who=user())
    ino = pair.target[0]
    attr.setattr(bench.fs, ino, {"mode": 0o6755})
    xattr.put(bench.fs, ino, b"security.capability", b"\1" * 20)
    before = bench.fs.inodes.read(ino), bench.fs.inodes.read(pair.source[0])
    pair.copy(0, 0, 100, who=user())
    after = bench.fs.inodes.read(ino)
    assert after.mode & 0o7777 == 0o755 and xattr.names(bench.fs, ino) == []
    assert after.mtime > before[0].mtime and after.ctime > before[0].ctime
    assert bench.fs.inodes.read(pair.source[0]).atime > before[1].atime
    fsyncs = []
    bench.ops.files.fsync = fsyncs.append
    pair.copy(0, 0, 100)
    assert not fsyncs
    pair.target = (ino, bench.ask("open", ino, os.O_RDWR | os.O_DSYNC, ROOT).fh)
    pair.copy(0, 0, 100)
    assert len(fsyncs) == 1


def test_cached_writes_are_marked(bench):
    with datakit.Kit() as kit:
        bench = callkit.Bench(kit, write="cached", drain="fsync")
        pair = Pair(bench, b"x" * PAGE, b"y" * PAGE)
        pair.copy(0, 0, PAGE)
        assert bench.ops.files.snapshot()["dirty_bytes"] == PAGE


def test_the_whole_source_is_never_staged(bench, monkeypatch):
    pair = Pair(bench, datakit.noise(PAGE * 1000))
    monkeypatch.setattr(ranges, "STEP", 64 * PAGE)
    sizes = []
    plain = bench.ops.files.write
    bench.ops.files.write = lambda node, pos, data: sizes.append(len(data)) or plain(node, pos, data)
    assert pair.copy(5, 7, 1 << 30) == PAGE * 1000 - 5
    assert max(sizes) <= 64 * PAGE and len(sizes) == 16
    assert bench.ops.stats.snapshot()["operations"]["copy_file_range"]["count"] == 16


@pytest.fixture
def stepped(bench, monkeypatch):
    monkeypatch.setattr(ranges, "STEP", PAGE)
    return Pair(bench, datakit.noise(PAGE * 100))


def test_other_requests_get_their_turn(stepped):
    seen = []

    async def both():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calls.run, stepped.bench.ops, stepped.request(0, 0, 1 << 20))
            for _ in range(5):
                await trio.lowlevel.checkpoint()
                seen.append((await stepped.bench.ops.getattr(stepped.target[0], ROOT)).st_size)

    trio.run(both)
    assert seen[-1] < 100 * PAGE and len(set(seen)) > 2
    assert stepped.content() == stepped.bench.content(stepped.source[1])


def test_interruption(stepped):
    bench, call = stepped.bench, stepped.request(0, 0, 1 << 20)
    call.interrupted = True
    with pytest.raises(OSError) as caught:
        bench.run(call)
    assert caught.value.errno == errno.EINTR and stepped.content() == b""
    call.interrupted = False
    plain, steps = bench.ops.copy_file_range, []

    async def piece(*args):
        steps.append(args)
        call.interrupted = len(steps) == 3
        return await plain(*args)

    bench.ops.copy_file_range = piece
    assert struct.unpack("=Q", bench.run(call))[0] == 3 * PAGE
    assert stepped.content() == bench.content(stepped.source[1])[: 3 * PAGE]


def test_the_end_of_the_transport_ends_a_copy(stepped):
    """A connection that is gone must not wait until the copy, of terabytes perhaps, is done."""
    bench, call = stepped.bench, stepped.request(0, 0, 1 << 20)
    replies, plain, steps = [], bench.ops.copy_file_range, []
    call.reply = lambda error, pieces: replies.append(error)
    ready = os.eventfd(1, os.EFD_NONBLOCK)

    class Transport:
        ended = None
        waiting = [call]

        def fileno(self):
            return ready

        def pump(self):
            pass

        def linger(self, *_):
            return 0

        def next_call(self):
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(ready)
            return self.waiting.pop() if self.waiting else None

    transport = Transport()

    async def piece(*args):
        steps.append(args)
        if len(steps) == 3:
            transport.ended = "aborted"
        os.eventfd_write(ready, 1)
        return await plain(*args)

    bench.ops.copy_file_range = piece
    ends = []
    trio.run(Relay(transport, bench.ops, Streak()).serve, ends.append)
    os.close(ready)
    assert ends == ["aborted"] and replies == [errno.EIO] and 3 <= len(steps) < 20


def test_the_source_shrinks_on_the_way(stepped):
    bench, plain, steps = stepped.bench, stepped.bench.ops.copy_file_range, []

    async def piece(*args):
        steps.append(args)
        if len(steps) == 3:
            attr.setattr(bench.fs, stepped.source[0], {"size": PAGE})
        return await plain(*args)

    bench.ops.copy_file_range = piece
    assert stepped.copy(0, 0, 1 << 20) == 2 * PAGE


def test_crash_in_a_copy(stepped):
    """Each piece is a write of its own: what was answered is there after kill -9."""
    stepped.copy(0, 0, 10 * PAGE)
    with datakit.Kit() as kit:
        fs = kit._mounted(kit.copy(stepped.bench.fs.region))
        assert ns.lookup(fs, 1, b"target").size == 10 * PAGE
