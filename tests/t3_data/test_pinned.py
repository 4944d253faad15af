# SPDX-License-Identifier: MIT
"""Own ranges whose file system refuses cuts and holes, as fsdax does while somebody has pages pinned.

What the kernel does is played by a range that says PinnedError where native/own.c would (own_pinned.c).
"""

import errno
import os
import time

import pytest
from datakit import MIB, PAGE, create, noise, reopen
from test_own import program, range_path
from test_revoke import content, owner_of

from daxfs import pool as pools
from daxfs._own import OwnRange
from daxfs.errors import PinnedError, fail
from daxfs.meta import fallocate, file, own, revoke

PUNCH = fallocate.PUNCH_HOLE | fallocate.KEEP_SIZE


class Pins:
    """Whose pages are pinned: ``now`` all, ``after_look`` from the next look on that finds none."""

    now = after_look = False

    @classmethod
    def refuse(cls):
        if cls.now:
            raise PinnedError("pages of the file are pinned")


class PinnedRange(OwnRange):
    """A piece of one page is stored, not punched, so that nothing waits for that."""

    def settle(self, fmap):
        Pins.refuse()
        Pins.now = Pins.after_look
        return super().settle(fmap)

    def resize(self, fmap, pages):
        Pins.refuse()
        return super().resize(fmap, pages)

    def punch(self, fmap, pos, end):
        if pos < end and pos // PAGE != (end - 1) // PAGE:
            Pins.refuse()
        return super().punch(fmap, pos, end)


@pytest.fixture
def io(pool_kit, monkeypatch):
    monkeypatch.setattr(pools, "OwnRange", PinnedRange)
    monkeypatch.setattr(Pins, "now", False)
    monkeypatch.setattr(Pins, "after_look", False)
    return pool_kit.io()


@pytest.fixture
def node(io):
    """A file of 5 pages and a bit."""
    made = create(io, b"f")
    io.write(made, 0, noise(5 * PAGE + 100))
    return made


def size_below(io, node) -> int:
    return os.stat(range_path(io, node)).st_size


def raced(io, node, size: int, monkeypatch) -> None:
    """A truncate with a page that was pinned after the look and before the cut."""
    monkeypatch.setattr(Pins, "after_look", True)
    file.truncate(io.fs, node, size, io.fs.clock())
    monkeypatch.setattr(Pins, "after_look", False)
    assert Pins.now and node.uncut and node.map.size == size
    assert size_below(io, node) == 6 * PAGE


@pytest.mark.parametrize("change", [
    lambda io, node: file.truncate(io.fs, node, PAGE + 5, io.fs.clock()),
    lambda io, node: file.truncate(io.fs, node, 0, io.fs.clock(), lambda edit, tx: setattr(edit, "mtime", 0)),
    lambda io, node: file.truncate(io.fs, node, 9 * PAGE, io.fs.clock()),
    lambda io, node: io.fallocate(node, PUNCH, 10, 3 * PAGE),
    lambda io, node: io.fallocate(node, fallocate.ZERO_RANGE, PAGE, 2 * PAGE),
    lambda io, node: io.fallocate(node, 0, 0, 9 * PAGE),
])  # fmt: skip
def test_what_is_refused_has_changed_nothing(pool_kit, io, node, monkeypatch, change):
    data = content(io, node)
    before = io.fs.inodes.read(node.ino)
    monkeypatch.setattr(Pins, "now", True)
    for _ in range(2):
        with pytest.raises(PinnedError) as caught:
            change(io, node)
        assert caught.value.errno == errno.ETXTBSY
        assert io.fs.inodes.read(node.ino)._replace(atime=before.atime) == before
        assert content(io, node) == data and size_below(io, node) == 6 * PAGE
    monkeypatch.setattr(Pins, "now", False)
    again = pool_kit.crashed(io)
    assert content(again, reopen(again, node.ino)) == data
    change(io, node)
    assert io.fs.inodes.read(node.ino).mtime != before.mtime, "and it can be tried again"


def test_inside_a_page_nothing_is_asked(io, node, monkeypatch):
    monkeypatch.setattr(Pins, "now", True)
    file.truncate(io.fs, node, 5 * PAGE + 1, io.fs.clock())
    assert content(io, node) == noise(5 * PAGE + 1) and not node.uncut


@pytest.mark.parametrize("grow", [
    lambda io, node: file.truncate(io.fs, node, 8 * PAGE, io.fs.clock()),
    lambda io, node: file.truncate(io.fs, node, 4 * PAGE, io.fs.clock()),
    lambda io, node: io.fallocate(node, 0, 0, 8 * PAGE),
    lambda io, node: io.fallocate(node, 0, 0, 4 * PAGE),
    lambda io, node: io.write(node, 4 * PAGE + 7, b"x"),
    lambda io, node: io.write(node, 9 * PAGE, b"x"),
])  # fmt: skip
def test_a_cut_that_came_too_late_hides_what_is_behind_it(pool_kit, io, node, monkeypatch, grow):
    """The truncate is done. What stays behind the end, and what a program stores there, nobody ever reads."""
    raced(io, node, PAGE + 5, monkeypatch)
    with program(io, node) as mapping:
        mapping[PAGE + 5 :] = b"!" * (5 * PAGE - 5)
        again = pool_kit.crashed(io)
        found = reopen(again, node.ino)
        assert content(again, found) == noise(PAGE + 5) and found.map.own.pages == 2
        with pytest.raises(PinnedError):
            grow(io, node)
        assert node.map.size == PAGE + 5 and content(io, node) == noise(PAGE + 5)
        monkeypatch.setattr(Pins, "now", False)
        grow(io, node)
    data = content(io, node)
    assert len(data) == node.map.size > PAGE + 5 and not node.uncut
    assert data[: PAGE + 5] == noise(PAGE + 5) and set(data[PAGE + 5 :]) <= {0, ord("x")}
    assert size_below(io, node) == own.pages_of(len(data)) * PAGE


def test_appends_go_on_where_a_cut_was_late(io, node, monkeypatch):
    raced(io, node, PAGE + 5, monkeypatch)
    with program(io, node) as mapping:
        mapping[PAGE + 5 :] = b"!" * (5 * PAGE - 5)
    io.write(node, PAGE + 5, b"append" * 1000)
    assert content(io, node) == noise(PAGE + 5) + b"append" * 1000
    monkeypatch.setattr(Pins, "now", False)
    file.truncate(io.fs, node, 6 * PAGE, io.fs.clock())
    data = noise(PAGE + 5) + b"append" * 1000
    assert content(io, node) == data + bytes(6 * PAGE - len(data))


def test_what_was_late_is_cut_at_the_last_close(io, node, monkeypatch):
    raced(io, node, PAGE, monkeypatch)
    path = range_path(io, node)
    monkeypatch.setattr(Pins, "now", False)
    io.release(node)
    assert os.stat(path).st_size == PAGE


@pytest.mark.parametrize("held", [False, True])
def test_what_was_late_is_cut_at_the_end(pool_kit, io, node, monkeypatch, held):
    """Or it is noticed where the file is open again and grows, however the mount ended."""
    raced(io, node, PAGE, monkeypatch)
    with program(io, node) as mapping:
        mapping[PAGE:] = b"!" * 5 * PAGE
    monkeypatch.setattr(Pins, "now", held)
    again = pool_kit.remount(io)
    found = reopen(again, node.ino)
    assert size_below(again, found) == (6 if held else 1) * PAGE
    monkeypatch.setattr(Pins, "now", False)
    again.write(found, 3 * PAGE, b"x")
    assert content(again, found) == noise(PAGE) + bytes(2 * PAGE) + b"x"


def test_a_write_that_failed_leaves_its_pages_until_later(io, node, monkeypatch):
    """No page is there for a write, and what it took can't be cut: it is behind the end, and unread."""
    def no_room(*_args):
        raise fail(errno.ENOSPC)

    plain = PinnedRange.cover

    def cover(self, fmap, first, last):
        OwnRange.resize(self, fmap, last)
        monkeypatch.setattr(Pins, "now", True)
        no_room()

    monkeypatch.setattr(PinnedRange, "cover", cover, raising=False)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        io.write(node, 6 * PAGE, b"x")
    assert node.uncut and size_below(io, node) == 7 * PAGE and node.map.size == 5 * PAGE + 100
    monkeypatch.setattr(PinnedRange, "cover", plain)
    monkeypatch.setattr(Pins, "now", False)
    io.write(node, 6 * PAGE, b"x")
    assert content(io, node) == noise(5 * PAGE + 100) + bytes(PAGE - 100) + b"x"


# -- revocation ------------------------------------------------------------------------------


def test_a_revocation_is_refused_before_it_begins(io, node, monkeypatch):
    def settle(_fd, _syncs):
        raise PinnedError("pages of the file are pinned")

    monkeypatch.setattr(revoke, "settle", settle)
    with program(io, node) as mapping:
        with pytest.raises(PinnedError):
            revoke.take(io.fs, owner_of(io, node))
        mapping[:5] = b"alive"
    assert content(io, node) == b"alive" + noise(5 * PAGE + 100)[5:]
    assert len(os.listdir(os.path.dirname(range_path(io, node)))) == 1


def test_a_revocation_that_meets_pins_later_ends_beside_us(io, monkeypatch, caplog):
    """The copy has the name: the file is whole, and the mapping goes when the pages are let go."""
    tries = []

    def shorten(_fd, _size, _syncs):
        tries.append(True)
        raise PinnedError("pages of the file are pinned")

    data = noise(3 * MIB)
    node = create(io, b"g")
    io.write(node, 0, data)
    monkeypatch.setattr(revoke, "shorten", shorten)
    monkeypatch.setattr(revoke, "_TRIES", 3)
    mapping = program(io, node)
    revoke.take(io.fs, owner_of(io, node))
    assert len(tries) == 4 and "may be lost" in caplog.text
    assert content(io, node) == data
    until = time.monotonic() + 20
    while mapping.size():
        assert time.monotonic() < until
        time.sleep(0.01)
