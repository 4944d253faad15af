# SPDX-License-Identifier: MIT
"""fallocate and power failures: what a crash leaves of edges, freed and unwritten pages; order of stores."""

from copy import copy

import pytest
from crashes import Crashes
from datakit import PAGE, calls, content, create, noise
from test_order import POLICIES, Places, in_place, place_of

from daxfs._record import Recorder
from daxfs.meta import file, namespace
from daxfs.meta.fallocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE

PUNCH = PUNCH_HOLE | KEEP_SIZE


class Model:
    """The bytes of one file before and after the operation that runs; whole pages change together."""

    def __init__(self):
        self.old = self.new = b""
        self.whole = range(0)

    def judge(self):
        """A judge for `Crashes` of what the model says now."""
        now = copy(self)
        return lambda crashed: now._judge(content(crashed, b"f"))

    def _judge(self, got: bytes) -> None:
        assert len(got) in (len(self.old), len(self.new))
        old, new = (data[: len(got)].ljust(len(got), b"\0") for data in (self.old, self.new))
        if len(got) > len(self.old):
            assert got[len(self.old) :] == new[len(self.old) :], "the growth shows what stood there before"
        changed = set()
        for at in range(0, len(got), PAGE):
            parts = [data[at : at + PAGE] for data in (got, old, new)]
            if parts[1] != parts[2] and at // PAGE in self.whole:
                changed.add(parts[0] == parts[2])
            assert all(mine in both for mine, *both in zip(*parts, strict=True)), f"foreign bytes in {at}"
        assert len(changed) <= 1, "some of the whole pages are old, some new"

    def fallocate(self, mode, pos, length) -> None:
        data, end = bytearray(self.new), pos + length
        if not mode & KEEP_SIZE:
            data.extend(bytes(max(end - len(data), 0)))
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            stop = min(end, len(data))
            data[pos:stop] = bytes(max(stop - pos, 0))
        self.new, self.whole = bytes(data), range(-(-pos // PAGE), end // PAGE)

    def done(self) -> None:
        self.old, self.whole = self.new, range(0)


def dirty_blocks(io) -> None:
    """Fill free pages with 0xEE and free them, so that a page that shows too early is seen."""
    dirt = create(io, b"dirt")
    io.write(dirt, 0, b"\xee" * (300 * PAGE))
    io.release(dirt)
    namespace.unlink(io.fs, 1, b"dirt")


CALLS = [
    (0, 2 * PAGE + 10, 3 * PAGE),  # grows from within a page whose tail holds the file's old bytes
    (PUNCH, 50, 100),  # inside one page
    (PUNCH, 100, 2 * PAGE),
    (ZERO_RANGE | KEEP_SIZE, 60, PAGE),
    (ZERO_RANGE, 1000, 9 * PAGE),
    (KEEP_SIZE, 0, 20 * PAGE),
    (ZERO_RANGE, PAGE, 15 * PAGE),
    (PUNCH, 0, 20 * PAGE),
]


@pytest.mark.parametrize("write, drain", POLICIES[::3])
def test_old_or_new_at_every_drain_and_never_what_stood_there(kit, write, drain):
    io = kit.io(write, drain)
    dirty_blocks(io)
    node, model = create(io, b"f"), Model()
    io.write(node, 0, b"a" * 3 * PAGE)
    file.truncate(io.fs, node, 2 * PAGE + 100, 5)
    model.old = model.new = b"a" * (2 * PAGE + 100)
    io.fsync(node)
    with Crashes(kit, io) as crashes:
        for mode, pos, length in CALLS:
            model.fallocate(mode, pos, length)
            during = model.judge()
            model.done()
            with crashes.step(model.judge(), during):
                io.fallocate(node, mode, pos, length)
            # Writes that go over all that was made, too: the next call finds written pages again.
            writes = [(at, noise(2 * PAGE, at)[: len(model.new) - at])
                      for at in range(0, len(model.new) - 200, 3 * PAGE)]
            for at, data in writes:
                model.new = model.new[:at] + data + model.new[at + len(data) :]
            model.done()
            with crashes.step(model.judge()):
                for at, data in writes:
                    io.write(node, at, data)
                io.fsync(node)
    assert crashes.images > 75


@pytest.mark.parametrize("write, drain", POLICIES[::3])
@pytest.mark.parametrize("mode", [PUNCH, ZERO_RANGE | KEEP_SIZE])
def test_pages_of_a_hole_become_another_files(kit, write, drain, mode):
    """With lines still dirty in the cache under `cached`. The marks go; neither file ever shows the other."""
    io = kit.io(write, drain)
    fs, node = io.fs, create(io, b"f")
    other = create(io, b"g")
    io.write(node, 0, b"a" * 8 * PAGE)
    io.fsync(node)
    io.write(node, 0, b"b" * 8 * PAGE)  # dirty, not durable with cached
    freed = {place_of(node, page * PAGE) for page in range(1, 7)}
    fs.alloc.alloc(fs.alloc.free_pages + fs.alloc.held - 2)  # nothing else is free

    def judge(crashed):
        mine, its = content(crashed, b"f"), content(crashed, b"g")
        assert len(mine) == 8 * PAGE and set(mine) <= set(b"ab\0"), "f shows something else"
        assert set(its) <= set(b"g\0")

    with Crashes(kit, io) as crashes, crashes.step(judge, during=judge):
        io.fallocate(node, mode, PAGE - 10, 6 * PAGE + 20)
        assert node.map.dirty.count_range(1, 6) == 0
        if mode == PUNCH:
            assert io.write(other, 0, b"g" * 6 * PAGE) == 6 * PAGE
            assert {place_of(other, page * PAGE) for page in range(6)} == freed
        else:
            io.write(node, 2 * PAGE + 5, b"b" * PAGE)
        io.fsync(node)
    want = b"b" * (PAGE - 10) + bytes(6 * PAGE + 20) + b"b" * (PAGE - 10)
    if mode != PUNCH:
        want = want[: 2 * PAGE + 5] + b"b" * PAGE + want[3 * PAGE + 5 :]
    assert content(io, b"f") == want


def test_edges_and_record_have_one_drain_the_tail_before_a_growth_its_own(kit):
    io = kit.io("cached")
    node, where = create(io, b"f"), Places(io.fs)
    io.write(node, 0, noise(5 * PAGE))
    file.truncate(io.fs, node, 4 * PAGE + 50, 5)
    start = place_of(node, 0)
    with Recorder(io.fs.region, sites=False) as table:
        io.fallocate(node, PUNCH, 100, 2 * PAGE)
        log = calls(table)
        assert log[:2] == [("nt_fill", start + 100, PAGE - 100), ("nt_fill", start + 2 * PAGE, 100)]
        assert in_place(where.shape(log))[:3] == ["data nt_fill", "journal nt_store", "drain"]
        io.fallocate(node, ZERO_RANGE | KEEP_SIZE, 2 * PAGE + 200, 10)
        assert calls(table)[0] == ("nt_fill", start + 2 * PAGE + 200, 10)
        io.fallocate(node, 0, 0, 8 * PAGE)
        log = calls(table)
        assert log[0] == ("nt_fill", start + 4 * PAGE + 50, PAGE - 50)
        want = ["data nt_fill", "drain", "journal nt_store", "drain"]
        assert in_place(where.shape(log))[:4] == want
        io.fallocate(node, ZERO_RANGE, 4 * PAGE, 9 * PAGE)
        assert in_place(where.shape(calls(table)))[:2] == ["journal nt_store", "drain"], "unwritten: no tail"


def test_edges_cross_extents_and_holes(kit):
    """nt_zero touches what is written and nothing else."""
    io = kit.io()
    node, other = create(io, b"f"), create(io, b"g")
    for page in (0, 1, 3):
        io.write(node, page * PAGE, noise(PAGE, page))
        io.write(other, page * PAGE, noise(PAGE, 9))
    io.fallocate(node, KEEP_SIZE, 4 * PAGE, PAGE)
    with Recorder(io.fs.region, sites=False) as table:
        io.fs.region.nt_zero(node.map, PAGE - 7, 5 * PAGE)
        assert calls(table) == [
            ("nt_fill", place_of(node, PAGE - 7), 7),
            ("nt_fill", place_of(node, PAGE), PAGE),
            ("nt_fill", place_of(node, 3 * PAGE), PAGE),
        ]
        io.fs.region.nt_zero(node.map, 5, 5)
        io.fs.region.nt_zero(node.map, 2 * PAGE, 1 << 44)
        assert calls(table) == [("nt_fill", place_of(node, 3 * PAGE), PAGE)]
    io.fs.region.kill()
    with pytest.raises(OSError):
        io.fs.region.nt_zero(node.map, 0, 5)
