# SPDX-License-Identifier: MIT
"""The order in which data, records and words in place become durable, from recordings."""

import pytest
from crashes import Crashes
from datakit import PAGE, calls, content, create, find, noise, reopen
from flush_table import watched

from daxfs._record import Recorder
from daxfs.meta import attr, file, namespace, prealloc
from daxfs.meta.fallocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from daxfs.meta.inode import PLACE_OF

PUNCH = PUNCH_HOLE | KEEP_SIZE
POLICIES = [("nt", "write"), ("nt", "fsync"), ("cached", "write"), ("cached", "fsync")]
# The same, and nt_threshold=: what is promised does not depend on it.
THRESHOLDS = [(*policy, 0) for policy in POLICIES] + [("nt", "write", 256), ("nt", "fsync", 256),
                                                      ("nt", "fsync", 1 << 20)]


class Places:
    """Where an offset of the region belongs: "journal", "inode", "data" or "other"."""

    def __init__(self, fs):
        sb, self.fs = fs.sb, fs
        self.areas = {
            "journal": (sb.journal_pfn, sb.journal_pfn + sb.journal_pages),
            "inode": (sb.inode_pfn, sb.inode_pfn + sb.inode_pages),
            "data": (sb.data_pfn, sb.backup_pfn),
        }

    def __call__(self, offset: int) -> str:
        for name, (first, end) in self.areas.items():
            if first <= offset // PAGE < end:
                return name
        return "other"

    def shape(self, log) -> list[str]:
        """The log as words ("data nt_store"), runs of the same word once."""
        out = []
        for what, offset, _ in log:
            word = "drain" if what == "drain" else f"{self(offset)} {what}"
            if out[-1:] != [word] or word == "drain":
                out.append(word)
        return out


def place_of(node, pos: int) -> int:
    """Byte offset in the region of byte *pos* of a file."""
    kind, _, _, pfn, _ = node.map.lookup(pos // PAGE)
    assert kind == 2
    return pfn * PAGE + pos % PAGE


IN_PLACE = ["inode store", "inode flush"]


def in_place(shape) -> list[str]:
    """*shape* without the alternation of stores and flushes of the inode at its end."""
    while shape[-4:] == IN_PLACE * 2:
        shape = shape[:-2]
    return shape


@pytest.mark.parametrize("write, drain", POLICIES)
def test_new_blocks_are_durable_before_the_record_and_the_record_before_metadata(kit, write, drain):
    """The policies differ for blocks that are there; new ones always go past the cache."""
    io = kit.io(write, drain)
    node, where = create(io, b"f"), Places(io.fs)
    with Recorder(io.fs.region, sites=False) as table:
        io.write(node, 100, noise(5000))
        log = calls(table)
    start = place_of(node, 0)
    assert log[:4] == [
        ("nt_fill", start, 100),
        ("nt_store", start + 100, 5000),
        ("nt_fill", start + 5100, 2 * PAGE - 5100),
        ("drain", 0, 0),
    ]
    want = ["data nt_fill", "data nt_store", "data nt_fill", "drain", "journal nt_store", "drain", *IN_PLACE]
    assert in_place(where.shape(log)) == want
    flushed = [entry[1:] for entry in log if entry[0] == "flush"]
    assert [entry[1:] for entry in log if entry[0] == "store"] == flushed, "each word in place is queued"


@pytest.mark.parametrize("write", ["nt", "cached"])
def test_what_a_grown_file_shows_behind_its_old_end_is_durable_before_the_size(kit, write):
    io = kit.io(write)
    node, where = create(io, b"f"), Places(io.fs)
    io.write(node, 0, noise(3000))
    io.fs.journal.settle()
    with Recorder(io.fs.region, sites=False) as table:
        io.write(node, 2000, noise(1500, 5))
        log = calls(table)
        policy = "nt_store" if write == "nt" else "store"
        assert log[:3] == [
            (policy, place_of(node, 2000), 1000),
            ("nt_store", place_of(node, 3000), 500),
            ("drain", 0, 0),
        ]
        assert where.shape(log)[-4:] == ["drain", "inode store", "inode flush", "drain"]
        io.write(node, 3700, noise(10))  # leaves 200 bytes to be zeroed
        log = calls(table)
        first = sorted(log[:2])
        assert first == [("nt_fill", place_of(node, 3500), 200), ("nt_store", place_of(node, 3700), 10)]
        assert where.shape(log)[2:5] == ["drain", "journal nt_store", "drain"]
        file.truncate(io.fs, node, 4000, 5)
        log = calls(table)
        assert log[:2] == [("nt_fill", place_of(node, 3710), 290), ("drain", 0, 0)]
        assert where.shape(log)[2:4] == ["journal nt_store", "drain"]


def test_overwrite_is_durable_at_once_with_drain_write(kit):
    for write, drain, want in (
        ("nt", "write", ["data nt_store", "drain", *IN_PLACE]),
        ("nt", "fsync", ["data nt_store", *IN_PLACE]),
        ("cached", "write", ["data store", *IN_PLACE]),
        ("cached", "fsync", ["data store", *IN_PLACE]),
    ):
        io = kit.io(write, drain)
        node, where = create(io, b"f"), Places(io.fs)
        io.write(node, 0, noise(3 * PAGE))
        with Recorder(io.fs.region, sites=False) as table:
            io.write(node, 50, noise(5000, 4))
            log = calls(table)
            assert where.shape(log) == want, (write, drain)
            assert log[0][1:] == (place_of(node, 50), 5000)
            io.fsync(node)
            assert "drain" in where.shape(calls(table))


def test_fsync_flushes_the_dirty_lines_of_its_inode_and_no_others(kit):
    io = kit.io("cached")
    node, other, where = create(io, b"f"), create(io, b"g"), Places(io.fs)
    for each in (node, other):
        io.write(each, 0, noise(40 * PAGE))
        io.fsync(each)
    for pos in (10, 3 * PAGE - 1, 20 * PAGE + 64):
        io.write(node, pos, b"xx")
        io.write(other, pos + 2 * PAGE, b"yy")
    with Recorder(io.fs.region, sites=False) as table:
        assert io.fsync(node) == 4
        log = calls(table)
        dirty = {place_of(node, page * PAGE) for page in (0, 2, 3, 20)}
        pages = set()
        for what, offset, length in log:
            if what == "flush" and where(offset) == "data":
                assert offset % PAGE == 0 == length % PAGE
                pages |= set(range(offset, offset + length, PAGE))
        assert pages == dirty
        assert where.shape(log)[:2] == ["data flush", "drain"]
        assert io.fsync(node) == 0
        assert {entry[0] for entry in calls(table)} == {"drain"}, "clean: nothing is flushed twice"
        assert io.fsync(other) == 4
        log = [entry for entry in calls(table) if entry[0] == "flush" and where(entry[1]) == "data"]
        assert sum(length for _, _, length in log) == 4 * PAGE


def test_marks_go_after_flush_and_drain(kit):
    """At the drain of an fsync everything is still marked; afterwards nothing is."""
    io = kit.io("cached")
    node = create(io, b"f")
    io.write(node, 0, noise(8 * PAGE))
    io.write(node, 0, noise(8 * PAGE, 2))
    seen = []
    with watched(io.fs.region, lambda what, *_: seen.append((what, node.map.dirty.count))):
        io.fsync(node)
    assert seen[:2] == [("flush", 8), ("drain", 8)] and node.map.dirty.count == 0


def drains(io, call) -> int:
    before = io.fs.region.flush.counters()["drain"]
    call()
    return io.fs.region.flush.counters()["drain"] - before


# Drains of each operation under (nt, write), (nt, fsync), (cached, write), (cached, fsync).
DRAINS = {
    "create": (1, 1, 1, 1),
    "append into new blocks": (2, 2, 2, 2),
    "append into a block that is there": (4, 4, 4, 4),  # settle: a record holds the size; data, size
    "append into it again": (2, 2, 2, 2),  # data, size
    "write over": (1, 0, 0, 0),
    "write over two extents": (1, 0, 0, 0),
    "read": (0, 0, 0, 0),
    "fsync after a record": (2, 2, 3, 3),  # what is dirty, in-place lines, tail
    "write over again": (1, 0, 0, 0),
    "fsync after write over": (1, 1, 2, 2),  # what is dirty, times
    "fsync of a clean file": (1, 1, 1, 1),
    "shrink": (1, 1, 1, 1),
    "grow with a tail to zero": (2, 2, 2, 2),
    "grow at a page's end": (1, 1, 1, 1),
    "allocate": (1, 1, 1, 1),
    "allocate and grow with a tail to zero": (2, 2, 2, 2),
    "punch a hole with edges": (1, 1, 1, 1),
    "zero a range with edges": (1, 1, 1, 1),
    "write into unwritten blocks": (2, 2, 2, 2),
    "close": (0, 0, 0, 0),
    "unlink of the last name": (1, 1, 1, 1),
}


def operations(io, other):
    """The calls of DRAINS, in that order."""
    fs, made = io.fs, []
    yield lambda: made.append(create(io, b"f"))
    node = made[0]
    yield lambda: io.write(node, 0, noise(5000))
    yield lambda: io.write(node, 5000, noise(60))
    yield lambda: io.write(node, 5060, noise(40))
    yield lambda: io.write(node, 10, noise(4090))
    io.write(other, 0, noise(PAGE))  # takes the next page, so that what follows is another extent
    io.write(node, 5100, noise(8000))
    yield lambda: io.write(node, 4000, noise(6000))
    yield lambda: io.read(node, 0, 5000)
    yield lambda: io.fsync(node)
    yield lambda: io.write(node, 0, noise(5000))
    yield lambda: io.fsync(node)
    yield lambda: io.fsync(node)
    yield lambda: file.truncate(fs, node, 1000, 5)
    yield lambda: file.truncate(fs, node, PAGE, 5)
    yield lambda: file.truncate(fs, node, 3 * PAGE, 5)
    yield lambda: io.fallocate(node, 1, 0, 20 * PAGE)
    file.truncate(fs, node, 3 * PAGE, 5)
    io.write(node, 0, noise(3 * PAGE + 100))
    yield lambda: io.fallocate(node, 0, 0, 20 * PAGE)
    io.write(node, 0, noise(20 * PAGE))
    yield lambda: io.fallocate(node, PUNCH, 100, 9 * PAGE)
    yield lambda: io.fallocate(node, ZERO_RANGE, 15 * PAGE + 1, 4 * PAGE)
    yield lambda: io.write(node, 16 * PAGE, noise(PAGE))
    io.fsync(node)
    yield lambda: io.release(node)
    yield lambda: namespace.unlink(fs, 1, b"f")


@pytest.mark.parametrize("column", range(4))
def test_number_of_drains(kit, monkeypatch, column):
    monkeypatch.setattr(prealloc, "STREAM", 99)  # test_prealloc.py has what that costs
    io = kit.io(*POLICIES[column])
    other = create(io, b"other")
    got = {name: drains(io, call) for name, call in zip(DRAINS, operations(io, other), strict=True)}
    assert got == {name: counts[column] for name, counts in DRAINS.items()}


def test_times_in_place_are_flushed(kit):
    io = kit.io()
    node, fs = create(io, b"f"), io.fs
    io.write(node, 0, noise(100))
    mtime, atime = (fs.inodes.place(node.ino) + PLACE_OF[name] for name in ("mtime", "atime"))
    with Recorder(fs.region, sites=False) as table:
        io.write(node, 0, b"x")
        assert calls(table)[-2:] == [("store", mtime, 16), ("flush", mtime, 16)]
        io.read(node, 0, 1)
        assert calls(table) == [("store", atime, 8), ("flush", atime, 8)]
        fs.lazytime = True
        io.write(node, 0, b"x")
        assert calls(table)[-1] == ("store", mtime, 16), "lazytime holds the flush back"
        attr.touch_write(fs, node.ino)
        calls(table)
        io.fsync(node)
        log = calls(table)
        base = fs.inodes.place(node.ino)
        flushed = [n for n, (what, at, size) in enumerate(log)
                   if what == "flush" and at <= mtime and mtime + 16 <= at + size and at >= base]
        assert flushed and any(what == "drain" for what, _, _ in log[flushed[0] :])


def test_replay_brings_no_old_time_back_after_fsync(kit):
    """A record since the tail holds the mtime of the append; that of the write over stands in place only."""
    io = kit.io("cached")
    node = create(io, b"f")
    io.write(node, 0, noise(100))
    recorded = io.fs.inodes.read(node.ino).mtime
    io.write(node, 0, b"over")
    later = io.fs.inodes.read(node.ino).mtime
    assert later > recorded
    assert kit.crashed(io).fs.inodes.read(node.ino).mtime == recorded, "what the test is about"
    io.fsync(node)
    after = kit.crashed(io)
    assert after.fs.inodes.read(node.ino).mtime == later
    assert bytes(after.read(find(after, b"f"), 0, 4)) == b"over"


def test_fsync_drains_where_a_record_was_refused(kit, monkeypatch):
    """Nobody knows then that there is none of this inode: but there is nothing to settle either."""
    io = kit.io("nt", "fsync")
    node = create(io, b"f")
    io.write(node, 0, noise(PAGE))
    io.fs.journal.settle()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="journal record"):
        patch.setattr(io.fs.journal, "limit", 64)
        attr.setattr(io.fs, node.ino, {"mode": 0o600})
    assert node.ino in io.fs.unsettled and io.fs.journal.tail == io.fs.journal.head
    with Recorder(io.fs.region, sites=False) as table:
        io.write(node, 0, noise(PAGE, 2))
        assert "drain" not in [what for what, *_ in calls(table)]
        io.fsync(node)
        assert calls(table)[-1] == ("drain", 0, 0)


def test_fsync_of_one_file_leaves_no_old_time_of_another(kit):
    """settle is for all: the record of the other file goes too, and its times in place are durable."""
    io = kit.io()
    one, two = create(io, b"one"), create(io, b"two")
    io.write(two, 0, b"x")
    io.write(two, 0, b"y")
    later = io.fs.inodes.read(two.ino).mtime
    io.fsync(one)
    assert kit.crashed(io).fs.inodes.read(two.ino).mtime == later


# -- images of what a power failure may leave -----------------------------------------------


def holds(*contents):
    """A judge for `Crashes`: the file f has one of these contents."""

    def judge(crashed):
        assert content(crashed, b"f") in contents

    return judge


@pytest.mark.parametrize("write, drain, threshold", THRESHOLDS)
def test_a_file_is_old_or_new_at_every_drain_and_never_shows_what_was_there_before(
        kit, write, drain, threshold):
    """Appends of all kinds into blocks full of somebody else's bytes."""
    io = kit.io(write, drain, threshold)
    fs = io.fs
    dirt = create(io, b"dirt")
    io.write(dirt, 0, b"\xee" * (200 * PAGE))
    io.release(dirt)
    namespace.unlink(fs, 1, b"dirt")
    node = create(io, b"f")
    io.write(node, 0, b"a" * 3000)
    file.truncate(fs, node, 1000, 5)  # its own old bytes stand behind the end
    io.fsync(node)
    text = b"a" * 1000

    def grow(change, new):
        # After the change returned, only the new content will do; while it runs, the old one too.
        with crashes.step(holds(new), during=holds(text, new)):
            change()
        return new

    with Crashes(kit, io) as crashes:
        writes = ((1000, b"b" * 500), (1500, b"c" * 6000), (9000, b"d" * 100), (5 * PAGE, b"e" * 9000))
        for pos, data in writes:
            text = grow(lambda p=pos, d=data: io.write(node, p, d), text.ljust(pos, b"\0") + data)
        text = grow(lambda: file.truncate(fs, node, 700, 7), text[:700])
        text = grow(lambda: io.write(node, 2000, b"f" * 10), text.ljust(2000, b"\0") + b"f" * 10)
        text = grow(lambda: file.truncate(fs, node, 6000, 7), text.ljust(6000, b"\0"))
    assert crashes.images > 60


@pytest.mark.parametrize("drain", ["write", "fsync"])
def test_what_is_shorter_than_nt_threshold(kit, drain):
    """Through the cache, flushed at once, and drained when the others are; nothing is marked."""
    io = kit.io("nt", drain, 256)
    node = create(io, b"f")
    io.write(node, 0, noise(4 * PAGE))
    at = place_of(node, 0)
    with Recorder(io.fs.region, sites=False) as table:
        for pos, length in ((1000, 255), (1000, 256), (PAGE - 100, 200)):
            io.write(node, pos, noise(length, 3))
            log = [one for one in calls(table) if one[0] == "drain" or at <= one[1] < at + 4 * PAGE]
            table.take()
            stored = [("store", at + pos, length), ("flush", at + pos, length)]
            expected = [("nt_store", at + pos, length)] if length == 256 else stored
            assert log == expected + [("drain", 0, 0)] * (drain == "write")
        assert not node.map.marked and io.snapshot()["dirtied_bytes"] == 0
        io.fsync(node)
        log = calls(table)
        assert ("drain", 0, 0) in log
        assert not [one for one in log if at <= one[1] < at + 4 * PAGE], "nothing is left to be flushed"
    assert io.snapshot()["nt_threshold"] == 256


@pytest.mark.parametrize("write, drain, threshold", THRESHOLDS)
def test_what_fsync_promised_is_on_the_media(kit, write, drain, threshold):
    """Overwrites and times; with nt and drain=write the data are there without an fsync."""
    io = kit.io(write, drain, threshold)
    node = create(io, b"f")
    io.write(node, 0, noise(10 * PAGE))
    want = bytearray(noise(10 * PAGE))

    def same_inode(crashed):
        got, inode = (each.inodes.read(node.ino) for each in (crashed.fs, io.fs))
        assert (got.size, got.mtime, got.ctime, got.blocks) == (
            inode.size, inode.mtime, inode.ctime, inode.blocks)
        holds(want)(crashed)

    with Crashes(kit, io) as crashes:
        for pos, length in ((5, 1), (4000, 200), (3 * PAGE, 2 * PAGE), (6 * PAGE + 63, 2)):
            data = noise(length, pos)
            want[pos : pos + length] = data
            with crashes.step(holds(bytes(want))):
                io.write(node, pos, data)
                if (write, drain) != ("nt", "write"):
                    io.fsync(node)
        with crashes.step(same_inode):
            io.fsync(node)


def test_last_close_leaves_the_data_on_the_media(kit):
    io = kit.io("cached", "fsync")
    node = create(io, b"f")
    io.write(node, 0, noise(3 * PAGE))
    with Crashes(kit, io) as crashes, crashes.step(holds(noise(3 * PAGE, 8))):
        io.write(node, 0, noise(3 * PAGE, 8))
        second = reopen(io, node.ino)
        io.release(second)
        assert node.map.dirty.count == 3, "not the last one"
        io.release(node)
