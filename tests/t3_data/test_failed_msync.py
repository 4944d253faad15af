# SPDX-License-Identifier: MIT
"""A source that reports errors: the mounted file system, and what a crash makes of it afterwards.

The errors are put into the flush table, as a failed msync does it. A record whose drain
failed may be on the media or not; lines in place that were queued before a failure may
not be, and flushing them again does nothing, because the kernel takes them for clean.
"""

import contextlib
import errno
import itertools

import oracle
import pytest
from datakit import PAGE, create, find, noise, reopen
from flush_table import table_of, watched

from daxfs._record import Recorder
from daxfs.meta import attr, file, namespace, prealloc, xattr
from daxfs.meta import dir as directory
from daxfs.testing.log import FLUSH, NT_STORE, STORE, parse
from daxfs.testing.media import Media

ROOT = 1


class Failing:
    """A flush table that can report errors."""

    def __init__(self, region):
        self.region, self.table = region, table_of(region.flush)

    @contextlib.contextmanager
    def while_(self, when):
        """Errors where *when(what, place)* says so; one that nobody read yet is forgotten at the end."""

        def see(what, place, length):
            if when(what, place):
                self.table.error = errno.EIO

        with watched(self.region, see):
            yield
        self.table.error = 0


def ring(fs, after: int = 0):
    """A condition for `Failing`: stores into the journal's ring, but for the first *after* ones."""
    end, count = fs.journal.ring + fs.journal.size, itertools.count()
    return lambda what, at: what == "nt_store" and fs.journal.ring <= at < end and next(count) >= after


def view(io) -> dict:
    """Name: (size, content, extended attributes) of the files in the root directory."""
    out = {}
    names = directory.index_of(io.fs, io.fs.node(ROOT)).names
    for name in names:
        node = find(io, name)
        attrs = {key: xattr.get(io.fs, node.ino, key) for key in xattr.names(io.fs, node.ino)}
        out[name] = (node.map.size, bytes(io.read(node, 0, 1 << 20)), attrs)
        io.release(node)
    return out


def code(call) -> int:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


OPERATIONS = {
    "create": lambda io, a: create(io, b"new"),
    "unlink": lambda io, a: namespace.unlink(io.fs, ROOT, b"gone"),
    "rename over": lambda io, a: namespace.rename(io.fs, ROOT, b"gone", ROOT, b"small"),
    "write into new blocks": lambda io, a: io.write(a, 9000, b"n" * 40_000),
    "append into a block that is there": lambda io, a: io.write(a, 5000, b"n" * 100),
    "truncate": lambda io, a: file.truncate(io.fs, a, 0, 5),
    "grow": lambda io, a: file.truncate(io.fs, a, 8000, 5),
    "allocate": lambda io, a: io.fallocate(a, 0, 0, 30 * PAGE),
    "punch": lambda io, a: io.fallocate(a, 3, 0, PAGE),
    "zero": lambda io, a: io.fallocate(a, 0x10, 0, 20 * PAGE),
    "setxattr": lambda io, a: xattr.put(io.fs, a.ino, b"user.a", b"n" * 9000),
    "symlink": lambda io, a: namespace.create(io.fs, ROOT, b"l", 0o120777, namespace.ROOT, 0, b"n" * 999),
}


@pytest.fixture(autouse=True)
def as_with_msync(monkeypatch):
    """Where msync is used nothing is appended in place: each change of a size has a record that can fail."""
    monkeypatch.setattr(prealloc, "sensible", lambda fs: fs.region.flush.kind == "no such kind")


@pytest.fixture
def prepared(kit):
    """(io, open file a, flush table that can fail)."""
    io = kit.io()
    a = create(io, b"a")
    io.write(a, 0, b"a" * 5000)
    for name, size in ((b"gone", 20 * PAGE), (b"small", 10), (b"b", 0)):
        node = create(io, name)
        io.write(node, 0, b"g" * size)
        io.release(node)
    io.fs.journal.settle()
    return io, a, Failing(io.fs.region)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_failed_record_is_there_or_not_and_never_comes_back(kit, prepared, name):
    """Its pages go to another file at once: the crash must not give them to both, nor write into them."""
    io, a, table = prepared
    fs, old = io.fs, view(io)
    before = fs.region.array.copy()
    with table.while_(ring(fs)):
        assert code(lambda: OPERATIONS[name](io, a)) == errno.EIO
    assert fs.journal.doubt and view(io) == old
    oracle.check(fs)
    # The record reached the media, or none of it did.
    arrived = kit.crashed(io)
    first, end = fs.journal.ring, fs.journal.ring + fs.journal.size
    image = fs.region.array.copy()
    image[first:end] = before[first:end]
    lost = kit.on_image(image)
    assert arrived.fs.replayed == 1 and lost.fs.replayed == 0
    new = view(arrived)
    for crashed in (arrived, lost):
        oracle.check(crashed.fs)
        kit.fsck(crashed.fs)
    assert view(lost) == old
    for each in (old, new):
        del each[b"b"]

    moments = []  # (in doubt, what a killed daemon leaves), at each drain and at the end

    def look(what="drain", *_):
        if what == "drain":
            moments.append((fs.journal.doubt, fs.region.array.copy()))

    b = find(io, b"b")  # exists already: the first thing that happens is that its data are stored
    with watched(fs.region, look):
        io.write(b, 0, b"b" * ((fs.alloc.free_pages + fs.alloc.held - 4) * PAGE))
    look()
    oracle.check(fs)
    kit.fsck(fs)
    assert moments[0][0] and not moments[-1][0]
    for doubt, image in moments:
        crashed = kit.on_image(image)
        got = view(crashed)
        del got[b"b"]
        assert got in (old, new) if doubt else got == old
        oracle.check(crashed.fs, closed=True)
        kit.drop(crashed.fs)


def test_nothing_changes_while_the_failed_record_can_not_be_taken_back(kit, prepared):
    io, a, table = prepared
    fs, old = io.fs, view(io)
    io.fsync(a)
    with table.while_(lambda what, offset: what in ("nt_store", "flush", "nt_fill")):
        assert code(lambda: namespace.unlink(fs, ROOT, b"gone")) == errno.EIO
        before = fs.region.array.copy()
        for call in (
            lambda: io.write(a, 0, b"over"),
            lambda: io.write(a, 4999, b"beyond"),
            lambda: io.fsync(a),
            lambda: file.truncate(fs, a, 8000, 5),
            lambda: create(io, b"new"),
            lambda: attr.setattr(fs, a.ino, {"mode": 0o600}),
            lambda: namespace.unlink(fs, ROOT, b"small"),
        ):
            table.table.error = 0
            assert code(call) == errno.EIO
        changed = (fs.region.array != before).nonzero()[0]
        assert all(fs.journal.ring <= at < fs.journal.ring + 8 + fs.journal.size for at in changed)
        assert len(changed) <= 8, "magic and checksum of the record, in memory"
        assert view(io) == old
    oracle.check(fs)
    namespace.unlink(fs, ROOT, b"gone")
    assert io.write(a, 0, b"over") == 4 and io.fsync(a) >= 0
    oracle.check(kit.crashed(io).fs, closed=True)


class Forgetful:
    """Media below a page cache: a line whose write-back failed is clean until it is stored again."""

    def __init__(self, image):
        self.media, self.lost = Media(image), set()

    def apply(self, event, fails: bool) -> None:
        lines = range(event.place & ~63, event.place + event.length, 64)
        if event.kind == FLUSH and fails:
            self.lost.update(lines)
        elif event.kind in (STORE, NT_STORE):
            self.lost.difference_update(lines)
        if event.kind == FLUSH and self.lost.intersection(lines):
            for line in set(lines) - self.lost:
                self.media.apply(event._replace(place=line, length=64))
        else:
            self.media.apply(event)


@pytest.mark.parametrize("notices", ["create", "write into new blocks", "fsync", "overwrite", "settle"])
def test_lines_in_place_that_failed_are_stored_again_before_their_record_goes(kit, notices):
    """A create returned, then its inode's write-back failed. Whoever hears of it: the file stays."""
    io = kit.io()
    fs = io.fs
    other = create(io, b"other")
    io.write(other, 0, noise(100))
    fs.journal.settle()
    inodes = range(fs.inodes.base, fs.inodes.place(fs.inodes.limit))
    table, media = table_of(fs.region.flush), Forgetful(fs.region.array)

    def fail(what, place, length):
        if what == "flush" and place in inodes:
            table.error = errno.EIO

    with Recorder(fs.region, sites=False) as recorder:
        failing = recorder.begin("the write-back of inodes fails")
        with watched(fs.region, fail):
            made = create(io, b"made")
        recorder.end(failing)
        assert table.error
        calls = {
            "create": lambda: create(io, b"next"),
            "write into new blocks": lambda: io.write(made, 0, noise(9000)),
            "fsync": lambda: io.fsync(made),
            "overwrite": lambda: io.write(other, 0, b"over"),
            "settle": fs.journal.settle,
        }
        assert code(calls[notices]) == errno.EIO
        oracle.check(fs)
        attr.setattr(fs, other.ino, {"mode": 0o600})
        fs.journal.settle()
        assert fs.journal.tail == fs.journal.head
    lost = 0
    for event in parse(recorder.take()):
        media.apply(event, event.op == failing and event.place in inodes)
        lost = max(lost, len(media.lost))
    assert lost and not media.lost
    crashed = kit.on_image(media.media.sure)
    assert crashed.fs.replayed == 0, "nothing is left to redo"
    assert namespace.lookup(crashed.fs, ROOT, b"made").ino == made.ino
    oracle.check(crashed.fs, closed=True)


def test_a_truncation_that_failed_halfway_shows_nothing_when_the_file_grows(kit, prepared, monkeypatch):
    """Its blocks behind the end are freed before the size may reach them again."""
    io, a, table = prepared
    fs = io.fs
    monkeypatch.setattr(file, "EXTENTS_PER_STEP", 2)
    for pos in range(20, 60, 2):
        io.write(a, pos * PAGE, b"z" * PAGE)
    for again in (
        lambda: file.truncate(fs, a, 70 * PAGE, 5),
        lambda: io.write(a, 70 * PAGE - 1, b"\0"),
        lambda: io.write(a, 22 * PAGE + 100, b"\0"),
    ):
        io.write(a, 22 * PAGE, b"z" * PAGE)
        with table.while_(ring(fs, after=2)):
            assert code(lambda: file.truncate(fs, a, 5000, 5)) == errno.EIO
        assert a.map.size == 5000 and len(a.map) > 2 and fs.inodes.read(a.ino).flags
        again()
        assert not fs.inodes.read(a.ino).flags
        content = bytes(io.read(a, 0, 1 << 20))
        assert content[:5000] == b"a" * 5000 and not any(content[5000:])
        for pos in range(20, 60, 2):
            io.write(a, pos * PAGE, b"z" * PAGE)
    io.release(a)
    assert reopen(io, a.ino).map.size
