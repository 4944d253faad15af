# SPDX-License-Identifier: MIT
"""Reads and writes of files with poisoned pages: what fails, what ends the poison, what a crash leaves.

Each test runs for packed files and for files with ranges of their own.
"""

import errno

import pytest
from crashes import Crashes
from datakit import MIB, PAGE, Kit, create, find, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from servekit import Served

from daxfs import layout as L
from daxfs._iomap import POISONED
from daxfs.data import ranges
from daxfs.meta import attr, namespace, poison
from daxfs.meta.fallocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE

PAGES = 12
DATA = noise(PAGES * PAGE - 100)


@pytest.fixture(params=["packed", "own"])
def any_kit(request):
    return request.getfixturevalue("kit" if request.param == "packed" else "pool_kit")


def spoil(io, node, *pages):
    for page in pages:
        poison.add(io.fs, poison.places(io.fs, page * PAGE, 1, node.ino))


def left(io, node) -> list:
    """The pages of the file that are poisoned."""
    return [page for run in io.fs.poison.of_file(node, 0, 1 << 32) for page in range(*run)]


def file_of(kit, *pages, **how):
    """(data path, node) of a file with DATA and these pages poisoned."""
    io = kit.io(**how)
    node = create(io, b"f")
    io.write(node, 0, DATA)
    spoil(io, node, *pages)
    return io, node


def error(call, *args, **how) -> str:
    with pytest.raises(OSError) as caught:
        call(*args, **how)
    return errno.errorcode[caught.value.errno]


def test_read_is_short_and_then_an_error(any_kit):
    io, node = file_of(any_kit, 3, 4)
    assert bytes(io.read(node, 0, MIB)) == DATA[: 3 * PAGE]
    assert bytes(io.read(node, 3 * PAGE - 1, 2)) == DATA[3 * PAGE - 1 : 3 * PAGE]
    for pos in (3 * PAGE, 4 * PAGE - 1, 5 * PAGE - 1):
        assert error(io.read, node, pos, 10) == "EIO"
    # The page cache would take a short answer for the end of the file.
    assert error(io.read, node, 0, MIB, short=False) == "EIO"
    assert bytes(io.read(node, 0, 3 * PAGE, short=False)) == DATA[: 3 * PAGE]
    assert bytes(io.read(node, 5 * PAGE, MIB)) == DATA[5 * PAGE :]
    assert bytes(io.read(node, 100 * PAGE, 1)) == b""


@pytest.mark.parametrize("how", [{}, {"write": "cached"}, {"drain": "fsync"}], ids=str)
def test_whole_pages_end_it_and_parts_fail(any_kit, how):
    io, node = file_of(any_kit, 2, 3, 6, 11, **how)
    for pos, length in ((2 * PAGE + 1, PAGE), (PAGE, PAGE + 1), (2 * PAGE, PAGE + 1), (3 * PAGE, 10),
                        (5 * PAGE, PAGE + 5), (11 * PAGE, 5), (11 * PAGE + 1, 2 * PAGE)):
        assert error(io.write, node, pos, b"x" * length) == "EIO", (pos, length)
    assert left(io, node) == [2, 3, 6, 11]
    new = noise(4 * PAGE, 2)
    assert io.write(node, PAGE, new[: 2 * PAGE]) == 2 * PAGE and left(io, node) == [3, 6, 11]
    assert io.write(node, 3 * PAGE - 5, new[: PAGE + 5]) == PAGE + 5 and left(io, node) == [6, 11]
    assert bytes(io.read(node, 3 * PAGE - 5, PAGE + 5)) == new[: PAGE + 5]
    assert io.write(node, 11 * PAGE, b"e" * (PAGE - 100)) == PAGE - 100 and left(io, node) == [6]
    assert node.map.state & POISONED
    crashed = any_kit.crashed(io)
    assert left(crashed, find(crashed, b"f")) == [6]
    io.write(node, 0, new + new)
    assert left(io, node) == [] and not node.map.state & POISONED
    assert bytes(io.read(node, 0, 8 * PAGE)) == new + new


def test_growing_over_a_poisoned_end(any_kit):
    io, node = file_of(any_kit, 11)
    assert error(io.write, node, len(DATA), b"x" * PAGE) == "EIO"
    assert io.write(node, 11 * PAGE, b"n" * 3 * PAGE) == 3 * PAGE
    assert left(io, node) == [] and bytes(io.read(node, 11 * PAGE, MIB)) == b"n" * 3 * PAGE
    any_kit.fsck(io.fs)


def test_holes_and_zeros(any_kit):
    io, node = file_of(any_kit, 2, 3, 4, 8)
    for mode in (PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE):
        for pos, length in ((2 * PAGE + 1, PAGE), (PAGE, PAGE + 1), (8 * PAGE, 10)):
            assert error(io.fallocate, node, mode, pos, length) == "EIO"
    io.fallocate(node, PUNCH_HOLE | KEEP_SIZE, 2 * PAGE - 1, PAGE + 1)
    io.fallocate(node, ZERO_RANGE, 3 * PAGE, PAGE)
    assert left(io, node) == [4, 8]
    assert bytes(io.read(node, PAGE, 3 * PAGE)) == DATA[PAGE : 2 * PAGE - 1] + bytes(2 * PAGE + 1)
    io.fallocate(node, 0, 0, 20 * PAGE)
    assert left(io, node) == [4, 8], "fallocate stores nothing"
    attr.setattr(io.fs, node.ino, {"size": 8 * PAGE + 1})
    assert left(io, node) == [4, 8]
    attr.setattr(io.fs, node.ino, {"size": 8 * PAGE})
    attr.setattr(io.fs, node.ino, {"size": 9 * PAGE})
    assert left(io, node) == [4] and bytes(io.read(node, 8 * PAGE, PAGE)) == bytes(PAGE)
    any_kit.fsck(io.fs)
    crashed = any_kit.crashed(io)
    assert left(crashed, find(crashed, b"f")) == [4]


@pytest.mark.parametrize("mode", [PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE])
def test_a_hole_that_the_list_has_no_room_for_is_not_made(any_kit, monkeypatch, mode):
    """In the middle of a run of pages, of which it would make two."""
    io, node = file_of(any_kit, 2, 3, 4)
    with monkeypatch.context() as full:
        full.setattr(L, "POISON_MAX", 1)
        assert error(io.fallocate, node, mode, 3 * PAGE, PAGE) == "ENOSPC"
        io.fallocate(node, mode, 4 * PAGE, PAGE)
    assert left(io, node) == [2, 3]
    poison.clear(io.fs, poison.places(io.fs, 2 * PAGE, 2 * PAGE, node.ino))
    assert bytes(io.read(node, 2 * PAGE, 2 * PAGE)) == DATA[2 * PAGE : 4 * PAGE], "as it was"


def test_seek_does_not_care(any_kit):
    _, node = file_of(any_kit, 2)
    assert ranges.seek(node, 2 * PAGE, True) == 2 * PAGE


def test_copying(any_kit):
    io, node = file_of(any_kit, 3)
    target = create(io, b"t")
    assert ranges.copy_piece(io, node, 0, target, 0, MIB) == 3 * PAGE
    assert error(ranges.copy_piece, io, node, 3 * PAGE, target, 3 * PAGE, MIB) == "EIO"
    assert bytes(io.read(target, 0, MIB)) == DATA[: 3 * PAGE]
    assert ranges.copy_piece(io, target, 0, node, 3 * PAGE, PAGE) == PAGE and left(io, node) == []


def test_the_poison_of_a_range_goes_with_its_inode(pool_kit):
    io, node = file_of(pool_kit, 3)
    other = create(io, b"other")
    io.write(other, 0, DATA)
    spoil(io, other, 5)
    namespace.unlink(io.fs, 1, b"f")
    io.release(node)
    assert len(io.fs.poison.runs) == 1 and left(io, other) == [5]
    pool_kit.fsck(io.fs)


def test_native_threads_leave_it_to_us(any_kit):
    served = Served(any_kit.io())
    file = served.open(size=8 * PAGE)
    one = served.open(b"g", size=8 * PAGE)
    assert file.read(0, PAGE)[0] == "done" == file.write(0, b"x")[0]
    spoil(served.io, file.node, 2)
    served.fs.journal.settle()
    assert file.read(0, PAGE)[0] == "call" == file.write(0, b"x")[0]
    assert one.read(0, PAGE)[0] == "done" == one.write(0, b"x")[0]
    served.io.write(file.node, 2 * PAGE, b"x" * PAGE)
    served.fs.journal.settle()
    assert file.read(0, PAGE)[0] == "done" == file.write(0, b"x")[0]


def test_moves_between_placements_wait(pool_kit):
    io, node = file_of(pool_kit, 3)
    io.release(node)
    attr.set_flags(io.fs, node.ino, 0)
    node = find(io, b"f")
    assert node.map.own is not None and left(io, node) == [3] and io.fs.moves.failed
    io.write(node, 3 * PAGE, bytes(PAGE))
    io.release(node)
    assert find(io, b"f").map.own is None


@pytest.mark.parametrize("how", [{}, {"write": "cached"}, {"drain": "fsync"}], ids=str)
def test_power_failures(kit, how):
    """Old, new or poisoned: never is a page readable that has neither; what returned lasts."""
    io = kit.io(**how)
    node = create(io, b"f")
    io.write(node, 0, DATA)
    io.fsync(node)
    new = noise(2 * PAGE, 7)
    with Crashes(kit, io) as crashes:
        with crashes.step(expects([3, 4, 6]), expects([3, 4, 6], [])):
            poison.add(io.fs, [*places(io, node, 3, 2), *places(io, node, 6, 1)])
        with crashes.step(expects([6], new=(3, new)), expects([3, 4, 6], [6], new=(3, new))):
            io.write(node, 3 * PAGE, new)
        with crashes.step(expects([], new=(3, new), hole=6), expects([6], [], new=(3, new), hole=6)):
            io.fallocate(node, PUNCH_HOLE | KEEP_SIZE, 6 * PAGE, PAGE)
        with crashes.step(expects([1], new=(3, new), hole=6), expects([], [1], new=(3, new), hole=6)):
            spoil(io, node, 1)
        with crashes.step(expects([], new=(3, new), hole=6), expects([1], [], new=(3, new), hole=6)):
            poison.clear(io.fs, places(io, node, 0, PAGES))
    assert crashes.images > 20


def places(io, node, first, count):
    return poison.places(io.fs, first * PAGE, count * PAGE, node.ino)


def expects(*lists, new=None, hole=None):
    """A judge: one of these lists of poisoned pages; the others as they were written."""
    want = bytearray(DATA)
    if new:
        want[new[0] * PAGE : new[0] * PAGE + len(new[1])] = new[1]
    if hole is not None:
        want[hole * PAGE : (hole + 1) * PAGE] = bytes(PAGE)

    def judge(io):
        node = find(io, b"f")
        have = left(io, node)
        assert have in lists
        for page in range(PAGES):
            if page in have:
                assert error(io.read, node, page * PAGE, PAGE) == "EIO"
            else:
                data = bytes(io.read(node, page * PAGE, PAGE))
                assert data == want[page * PAGE : (page + 1) * PAGE], f"page {page}"

    return judge


OPERATIONS = st.lists(st.tuples(st.sampled_from(["add", "clear", "write", "punch", "truncate", "read"]),
                                st.integers(0, 14), st.integers(1, 6)), max_size=25)


@settings(max_examples=40)
@given(operations=OPERATIONS)
@pytest.mark.parametrize("placement", ["packed", "own"])
def test_against_a_set_of_pages(placement, operations):
    """Whole pages only: what is poisoned, and what can be read, as a set and a list of pages say."""
    with Kit(pool=placement == "own") as kit:
        io = kit.io()
        node = create(io, b"f")
        model, bad = [bytes([n + 1]) * PAGE for n in range(10)], set()
        io.write(node, 0, b"".join(model))
        for step, (what, first, count) in enumerate(operations):
            span = set(range(first, first + count))
            if what in ("add", "clear"):
                data = {n for n in span if n < len(model) and (placement == "own" or any(model[n]))}
                change = poison.add if what == "add" else poison.clear
                try:
                    change(io.fs, poison.places(io.fs, first * PAGE, count * PAGE, node.ino))
                except OSError as wrong:
                    assert wrong.errno in (errno.EINVAL, errno.ENXIO) and not data
                bad = bad | data if what == "add" else bad - data
            elif what == "write":
                page = bytes([step + 50]) * PAGE
                io.write(node, first * PAGE, page * count)
                model += [bytes(PAGE)] * (first + count - len(model))
                model[first : first + count] = [page] * count
                bad -= span
            elif what == "punch":
                io.fallocate(node, PUNCH_HOLE | KEEP_SIZE, first * PAGE, count * PAGE)
                model = [bytes(PAGE) if n in span else page for n, page in enumerate(model)]
                bad -= span
            elif what == "truncate":
                attr.setattr(io.fs, node.ino, {"size": first * PAGE})
                model = model[:first] + [bytes(PAGE)] * (first - len(model))
                bad = {n for n in bad if n < first}
            assert set(left(io, node)) == bad
            assert bool(node.map.state & POISONED) == bool(bad)
            for n, page in enumerate(model):
                if n in bad:
                    assert error(io.read, node, n * PAGE, PAGE) == "EIO"
                else:
                    assert bytes(io.read(node, n * PAGE, PAGE)) == page
        kit.fsck(io.fs)
