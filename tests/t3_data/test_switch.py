# SPDX-License-Identifier: MIT
"""Policies that take each other's place, also half way and with errors: nothing dirty is forgotten."""

import contextlib
import errno
import os
from types import SimpleNamespace

import pytest
from datakit import MIB, PAGE, calls, create, filemap, noise, reopen
from servekit import File, Served
from test_handler import observed, pool  # noqa: F401

from daxfs._iomap import MAPPED
from daxfs._record import Recorder
from daxfs.data._dax_io import DaxIo
from daxfs.data._serve import DIRECT, WRITE
from daxfs.data._tracker import POLICIES, TRACKERS
from daxfs.data.file_io import FileIo
from daxfs.errors import DaxfsError
from daxfs.fuse.ops import Operations
from daxfs.fuse.session import Session
from daxfs.meta import attr

EXTENTS = ("extent", "extent+clear")


def two_files(kit, track: str):
    """(FileIo, two open files of 4 pages that are clean, or active)."""
    io = FileIo(kit.make(), track, "cached")
    nodes = [create(io, name) for name in (b"one", b"two")]
    for node in nodes:
        io.write(node, 0, noise(4 * PAGE))
        io.fsync(node)
    return io, nodes


@contextlib.contextmanager
def log(io):
    """Yields a list; at its end it has (flush or drain, first page, last page) of what came meanwhile."""
    out: list = []
    with Recorder(io.fs.region, sites=False) as recorder:
        yield out
        out += [(what, at // PAGE, (at + n - 1) // PAGE) for what, at, n in calls(recorder)
                if what in ("flush", "drain")]


def page_of(node, page: int = 0) -> int:
    kind, _, _, pfn, _ = node.map.lookup(page)
    assert kind == MAPPED
    return pfn


def is_flushed(found, node, page: int = 0) -> bool:
    """Flushed, and a drain came after that."""
    drains = [n for n, (what, *_) in enumerate(found) if what == "drain"]
    return any(first <= page_of(node, page) <= last and drains and n < drains[-1]
               for n, (what, first, last) in enumerate(found) if what == "flush")


def fails_at_second(io, monkeypatch, policy: str):
    """A change of all files that has no memory for the second: the first one of *io*'s nodes is returned."""
    done = []

    def track(fmap, tracker):
        if done and fmap not in done:
            raise MemoryError
        done.append(fmap)
        return FileIo._track(io, fmap, tracker)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(io, "_track", track)
        io.set_tracker(policy)
    return done[0]


@pytest.mark.parametrize("policy", EXTENTS)
def test_what_is_behind_a_gap_between_two_sources_is_flushed(kit, policy):
    """Page 511 is in no range, as the second source begins on 2 MiB: extent 170 is 510 to 512."""
    region = kit.sources(511 * PAGE, 256 * PAGE)
    assert region.npages == 768
    region.nt_fill(510 * PAGE, 7, PAGE)
    region.nt_fill(512 * PAGE, 7, PAGE)
    f = filemap(2 * PAGE, [(0, 1, 510, MAPPED), (1, 1, 512, MAPPED)])
    dax = DaxIo(region, TRACKERS[policy](None, region.npages), "cached")
    dax.tracker.attach(f)
    dax.write(f, PAGE, b"x")
    with Recorder(region, sites=False) as table:
        assert dax.writeback(f) == 2
        assert calls(table) == [("flush", 510 * PAGE, PAGE), ("flush", 512 * PAGE, PAGE), ("drain", 0, 0)]


@pytest.mark.parametrize("was", [name for name in POLICIES if name != "none"])
@pytest.mark.parametrize("place", ["packed", "own"])
def test_what_was_dirty_is_written_back_before_none(kit, pool_kit, was, place):
    io, (one, two) = two_files(kit if place == "packed" else pool_kit, was)
    io.write(one, PAGE, b"dirty")
    with log(io) as found:
        assert io.set_tracker("none") == 2
    assert is_flushed(found, one, 1)
    assert place == "own" or was in EXTENTS or not is_flushed(found, two)
    assert one.map.policy == two.map.policy == "none" and not one.map.marked


def test_an_error_before_none_leaves_the_file_as_it_was(kit, monkeypatch):
    io, (one, _) = two_files(kit, "pte")
    io.write(one, PAGE, b"dirty")

    def writeback(*_):
        raise OSError(errno.EIO, "planted")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(io, "dax", SimpleNamespace(writeback=writeback, nt=False))
        io.set_tracker("none")
    assert one.map.policy == "pte" and io.tracker.name == "pte" and io.fsync(one) == 1


@pytest.mark.parametrize("was", EXTENTS)
@pytest.mark.parametrize("how", ["close", "sync"])
def test_half_way_from_extents_a_close_writes_back(kit, monkeypatch, was, how):
    """The mount still says extent, which keeps what closed files left: but this one has bits of its own."""
    io, nodes = two_files(kit, was)
    if was == "extent+clear":
        io.write(nodes[0], 0, b"again")
    fmap = fails_at_second(io, monkeypatch, "pte")
    one = next(node for node in nodes if node.map is fmap)
    assert (one.map.policy, io.tracker.name) == ("pte", was)
    io.fsync(one)
    io.write(one, PAGE, b"dirty")
    with log(io) as found:
        if how == "close":
            io.release(one)
        else:
            io.write_back()
    assert (how == "sync" or is_flushed(found, one, 1)) and not one.map.marked


def test_a_file_has_extents_of_this_change_and_not_of_one_that_failed(kit, monkeypatch):
    """Else what it leaves when it is closed is marked where nobody looks any more."""
    io, nodes = two_files(kit, "pte")
    fmap = fails_at_second(io, monkeypatch, "extent")
    one, two = sorted(nodes, key=lambda node: node.map is not fmap)
    assert io.set_tracker("extent") == 2
    io.write(one, PAGE, b"dirty")
    place = page_of(one, 1)
    io.release(one)
    with log(io) as found:
        io.fsync(two)
    assert any(first <= place <= last for what, first, last in found if what == "flush")


@pytest.mark.parametrize("way", ["fsync", "release", "write_back"])
@pytest.mark.parametrize("was", [name for name in POLICIES if name != "none"])
def test_a_file_that_is_left_with_none_is_no_secret(kit, monkeypatch, was, way):
    """No memory for the way back either: no fsync says that all is well before it had some."""
    io, nodes = two_files(kit, was)
    half = []

    def track(fmap, tracker):
        if half:
            raise MemoryError
        half.append(fmap)
        return FileIo._track(io, fmap, tracker)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(io, "_track", track)
        io.set_tracker("none")
    one = next(node for node in nodes if node.map is half[0])
    assert (one.map.policy, io.tracker.name) == ("none", was)
    served = Served(io)
    handle = File(served, one, WRITE | DIRECT)
    attr.note_plain(io.fs, one)
    assert handle.write(PAGE, b"dirty")[:2] == ("done", 0)
    assert handle.write(PAGE, b"dirty", opened=os.O_DSYNC)[0] == handle.fsync()[0] == "call"
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(io, "_track", track)
        io.fsync(one)
    handle.close()
    with log(io) as found:
        getattr(io, way)(*([] if way == "write_back" else [one]))
    keeps = was in EXTENTS and way == "release"  # the other file is open
    assert is_flushed(found, one, 1) != keeps and one.map.policy == was
    with log(io) as found:
        io.fsync(one)
    assert not keeps or is_flushed(found, one, 1)


@pytest.mark.parametrize("was", [name for name in POLICIES if name != "none"])
def test_no_file_is_left_half_way_to_none(kit, monkeypatch, was):
    """The mount goes on with the old policy, and so does what its fsync promises: of what is dirty already
    (extents are flushed at the end of a change), and of what is stored then."""
    io, nodes = two_files(kit, was)
    for node in nodes:
        io.write(node, PAGE, b"dirty")
    fmap = fails_at_second(io, monkeypatch, "none")
    one = next(node for node in nodes if node.map is fmap)
    assert io.tracker.name == one.map.policy == was
    io.write(one, 2 * PAGE, b"later")
    with log(io) as found:
        io.fsync(one)
    assert is_flushed(found, one, 2) and (was not in EXTENTS or is_flushed(found, one, 1))


def test_the_way_back_from_half_way(kit, monkeypatch):
    io, nodes = two_files(kit, "pte")
    fmap = fails_at_second(io, monkeypatch, "line")
    io.write(next(node for node in nodes if node.map is fmap), PAGE, b"dirty")
    assert io.set_tracker("pte") == 1, "only that one changed"
    assert [node.map.policy for node in nodes] == ["pte", "pte"] and fmap.dirty_runs() == [(PAGE, PAGE)]


@pytest.mark.parametrize("then", ["set", "fsync", "sync"])
def test_what_closed_files_left_is_owed_until_it_is_flushed(kit, monkeypatch, then):
    """The flush at the end of a change from extents fails: whatever comes next tries again."""
    io, (one, two) = two_files(kit, "extent")
    io.write(one, PAGE, b"dirty")
    place, fails = page_of(one, 1), [True]
    io.release(one)
    dax = io.dax

    class Failing:
        def __getattr__(self, name):
            return getattr(dax, name)

        def writeback(self, *args, **how):
            if fails:
                raise OSError(errno.EIO, "planted")
            return dax.writeback(*args, **how)

    monkeypatch.setattr(io, "dax", Failing())
    with pytest.raises(OSError):
        io.set_tracker("pte")
    assert io.tracker.name == two.map.policy == "pte"
    with pytest.raises(OSError):
        io.fsync(two)
    fails.clear()
    with log(io) as found:
        {"set": lambda: io.set_tracker("pte"), "fsync": lambda: io.fsync(two), "sync": io.write_back}[then]()
    assert any(first <= place <= last for what, first, last in found if what == "flush")
    io.write_back()
    with log(io) as found:
        io.write_back()
    assert not found, "once"


@pytest.mark.parametrize("policy", EXTENTS)
def test_with_extents_a_write_back_of_the_handler_flushes_nothing_by_itself(observed, policy):  # noqa: F811
    """But what it finds is active then: else each batch of 64 entries flushed all of the file once more."""
    one = observed(size=MIB, pmd=False)
    one.io.set_tracker(policy)
    for page in range(0, 256, 2):
        one.view[page * PAGE] = 1
    one.settled()
    with Recorder(one.io.fs.region, sites=False) as recorder:
        assert one.flushed() == 0
        assert not [what for what, *_ in calls(recorder) if what == "flush"]
        one.io.fsync(one.node)
        flushed = sum(length for what, at, length in calls(recorder)
                      if what == "flush" and at >= one.node.map.own.pfn * PAGE)
    # The kernel may have given more pages than were stored to: all of them are, or just those.
    assert flushed % PAGE == 0 and 128 <= flushed // PAGE <= 256
    assert one.flushed() == 0, "nothing is stored to"


@pytest.mark.parametrize("error", [MemoryError("no memory"), OSError(errno.EIO, "bad")])
def test_an_open_that_can_not_be_tracked_is_no_open(kit, monkeypatch, error):
    io, (one, _) = two_files(kit, "pte")

    def opened(node):
        raise error

    monkeypatch.setattr(io, "opened", opened)
    with pytest.raises(type(error)):
        Operations._opened(SimpleNamespace(fs=io.fs, files=io), one.ino, 0, None)
    assert one.opens == 1


@pytest.mark.parametrize(("policy", "done", "says"), [
    ("line", False, "some files still have track=pte"), ("line", True, "track=line all the same"),
    ("none", False, "track=pte as before"), ("none", True, "track=none all the same")])
@pytest.mark.parametrize("error", [MemoryError("no memory"), OSError(errno.EIO, "bad")])
def test_what_a_mount_says_of_a_change_that_failed(error, policy, done, says):
    operations = SimpleNamespace(track="pte")

    def set_tracker(policy):
        operations.track = policy if done else operations.track
        raise error

    operations.set_tracker = set_tracker
    mount = SimpleNamespace(config=SimpleNamespace(track="pte"), operations=operations,
                            check_tracker=lambda policy: None, mountpoint="/mnt")
    with pytest.raises(DaxfsError, match=says) as caught:
        Session.set_tracker(mount, policy)
    assert caught.value.errno == (errno.ENOMEM if isinstance(error, MemoryError) else errno.EIO)
    assert mount.config.track == (policy if done else "pte"), "what stat shows is what new files get"


def test_a_file_that_is_reopened_after_each_change_has_it(kit):
    io, (one, two) = two_files(kit, "pte")
    for policy in (*POLICIES, *reversed(POLICIES)):
        io.set_tracker(policy)
        io.release(one)
        one = reopen(io, one.ino)
        assert {one.map.policy, two.map.policy} == {policy} and io.tracker.tracks(one.map)
