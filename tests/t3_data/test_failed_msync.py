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
from datakit import PAGE, Media, Recorder, create, find, noise, reopen

from daxfs.meta import attr, file, namespace, xattr
from daxfs.meta import dir as directory

ROOT = 1


class Failing(Recorder):
    """A flush table that reports an error when *when(what, offset)* says so."""

    def __init__(self, region, media=None):
        super().__init__(region)
        self.when = lambda what, offset: False
        self.watch = self._look
        self.media = media

    def _look(self, what, offset, length):
        if self.media:
            self.media(what, offset, length)
        if self.when(what, offset):
            self.table.error = errno.EIO

    @contextlib.contextmanager
    def while_(self, when):
        """Errors where *when* says so; one that nobody read yet is forgotten at the end."""
        self.when = when
        yield
        self.when = lambda what, offset: False
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
    with Failing(io.fs.region) as table:
        yield io, a, table


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

    def look(*call):
        if call and call[0] != "drain":
            return
        crashed = kit.crashed(io)
        got = view(crashed)
        del got[b"b"]
        assert got in (old, new) if fs.journal.doubt else got == old
        oracle.check(crashed.fs, closed=True)
        kit.drop(crashed.fs)

    table.watch = look
    b = find(io, b"b")  # exists already: the first thing that happens is that its data are stored
    io.write(b, 0, b"b" * ((fs.alloc.free_pages + fs.alloc.held - 4) * PAGE))
    table.watch = None
    assert not fs.journal.doubt
    look()
    oracle.check(fs)
    kit.fsck(fs)


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


class Forgetful(Media):
    """Media below a page cache: a line whose write-back failed is clean until it is stored again."""

    def __init__(self, region):
        super().__init__(region)
        self.fails, self.lost = None, set()

    def __call__(self, what, offset, length):
        lines = range(offset & ~63, offset + length, 64) if length else ()
        if what == "flush" and self.fails and self.fails(what, offset):
            self.lost.update(lines)
        elif what in ("store", "nt_store"):
            self.lost.difference_update(lines)
        if what == "flush" and self.lost.intersection(lines):
            for line in set(lines) - self.lost:
                super().__call__(what, line, 64)
        else:
            super().__call__(what, offset, length)


@pytest.mark.parametrize("notices", ["create", "write into new blocks", "fsync", "overwrite", "settle"])
def test_lines_in_place_that_failed_are_stored_again_before_their_record_goes(kit, notices):
    """A create returned, then its inode's write-back failed. Whoever hears of it: the file stays."""
    io = kit.io()
    fs = io.fs
    media = Forgetful(fs.region)
    with Failing(fs.region, media) as table:
        other = create(io, b"other")
        io.write(other, 0, noise(100))
        fs.journal.settle()
        table_of = fs.inodes.base, fs.inodes.place(fs.inodes.limit)

        def in_place(what, offset):
            return what == "flush" and table_of[0] <= offset < table_of[1]

        media.fails = table.when = in_place
        made = create(io, b"made")
        media.fails, table.when = None, lambda what, offset: False
        assert media.lost and table.table.error
        calls = {
            "create": lambda: create(io, b"next"),
            "write into new blocks": lambda: io.write(made, 0, noise(9000)),
            "fsync": lambda: io.fsync(made),
            "overwrite": lambda: io.write(other, 0, b"over"),
            "settle": fs.journal.settle,
        }
        assert code(calls[notices]) == errno.EIO
        oracle.check(fs)
        later = attr.setattr(fs, other.ino, {"mode": 0o600})
        assert later is None
        fs.journal.settle()
        assert fs.journal.tail == fs.journal.head and not media.lost
        crashed = kit.on_image(media.sure)
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
