# SPDX-License-Identifier: MIT
"""The inode table: generations, growth in chunks, its end, stale numbers."""

import errno

import oracle
import pytest

from daxfs import layout as L
from daxfs.errors import CorruptError, DaxfsError, fail
from daxfs.meta import attr
from daxfs.meta import namespace as ns

ROOT = L.ROOT_INO


def make(fs, name):
    return ns.create(fs, ROOT, name, 0o100644, ns.ROOT)


def code(call, *args):
    with pytest.raises(DaxfsError) as caught:
        call(*args)
    return caught.value.errno


def test_generation_grows_with_each_use_of_a_number(small_fs, crash_copy):
    fs, seen = small_fs, {}
    for lap in range(20):
        inode = make(fs, b"f")
        assert inode.generation > seen.get(inode.ino, 0)
        seen[inode.ino] = inode.generation
        if lap % 5 == 0:
            copy = crash_copy(fs)
            ns.unlink(copy, ROOT, b"f")
            again = make(copy, b"f")
            assert again.generation > seen.get(again.ino, 0)
        ns.unlink(fs, ROOT, b"f")
    assert len(seen) == 1, "the lowest free number is used again"


def test_generation_is_never_zero(small_fs):
    fs = small_fs
    ino = make(fs, b"f").ino
    with fs.begin() as tx:
        tx.inode(ino).generation = 0xFFFFFFFF
    ns.unlink(fs, ROOT, b"f")
    inode = make(fs, b"f")
    assert inode.ino == ino and inode.generation == 1


def test_table_grows_by_chunks_and_survives(small_fs, crash_copy):
    fs = small_fs
    assert fs.inodes.limit == L.INODE_CHUNK
    for n in range(3 * L.INODE_CHUNK):
        make(fs, b"%d" % n)
        assert fs.inodes.limit % L.INODE_CHUNK == 0 and fs.inodes.used == n + 2
    assert fs.inodes.limit == 4 * L.INODE_CHUNK
    copy = crash_copy(fs)
    assert copy.inodes.limit == fs.inodes.limit and copy.inodes.used == fs.inodes.used
    oracle.check(copy)
    make(copy, b"more")
    oracle.check(copy)


def test_create_in_a_new_chunk_is_all_or_nothing(maker):
    """The chunk, the limit and the inode are one record; behind the limit stood rubbish."""
    fs = maker.make()
    fs.region.nt_fill(fs.inodes.place(L.INODE_CHUNK), 0xA5, L.INODE_CHUNK * L.INODE_SIZE)
    for n in range(len(fs.inodes.free)):
        make(fs, b"%d" % n)
    fs.journal.settle()
    before = bytes(fs.mem)
    made = make(fs, b"new")
    assert made.ino == L.INODE_CHUNK and made.generation == 1
    after, ring = bytes(fs.mem), slice(fs.journal.ring, fs.journal.ring + fs.journal.size)
    line = fs.inodes.place(made.ino + 1)
    for name, image in (
        ("nothing of the record", before),
        ("the record, nothing in place", before[: ring.start] + after[ring] + before[ring.stop :]),
        ("the inode in place, not its chunk", after[:line] + b"\xa5" * 256 + after[line + 256 :]),
        ("all", after),
    ):
        region = maker.copy(fs.region)
        region.mem[:] = image
        copy = maker._mounted(region)
        oracle.check(copy)
        assert copy.inodes.limit == (1 if name.startswith("nothing") else 2) * L.INODE_CHUNK, name
        assert (ns.lookup(copy, ROOT, b"new") is None) == name.startswith("nothing"), name
        more = [make(copy, b"more%d" % n) for n in range(L.INODE_CHUNK)]
        assert all(inode.generation == 1 for inode in more)
        maker.fsck(copy)


def test_failed_create_in_a_new_chunk_changes_nothing(small_fs, monkeypatch):
    fs = small_fs
    for n in range(len(fs.inodes.free)):
        make(fs, b"%d" % n)

    def fails(_):
        raise fail(errno.EIO)

    for target, mode, expected in ((b"t" * 5000, 0o120777, errno.ENAMETOOLONG), (b"", 0o100644, errno.EIO)):
        before = bytes(fs.mem), fs.inodes.used, list(fs.inodes.free), fs.alloc.runs()
        if not target:
            monkeypatch.setattr(fs.journal, "commit", fails)
        assert code(ns.create, fs, ROOT, b"f", mode, ns.ROOT, 0, target) == expected
        assert before == (bytes(fs.mem), fs.inodes.used, list(fs.inodes.free), fs.alloc.runs())
        assert fs.inodes.limit == L.INODE_CHUNK
    monkeypatch.undo()
    assert make(fs, b"f").ino == L.INODE_CHUNK and make(fs, b"g").ino == L.INODE_CHUNK + 1
    oracle.check(fs)


def test_grown_table_is_zero_whatever_was_there(maker):
    """A region over old data: the chunks beyond the first hold rubbish before they are needed."""
    fs = maker.make()
    chunk = fs.inodes.place(L.INODE_CHUNK)
    fs.region.nt_fill(chunk, 0xA5, (fs.sb.capacity + 1 - L.INODE_CHUNK) * L.INODE_SIZE)
    copy = maker.crash_copy(fs)
    for n in range(2 * L.INODE_CHUNK):
        assert make(copy, b"%d" % n).generation == 1
    oracle.check(copy)


def test_enospc_at_capacity_changes_nothing(maker):
    fs = maker.make(inodes=100)
    made = []
    with pytest.raises(DaxfsError) as caught:
        for n in range(1000):
            made.append(make(fs, b"%d" % n).ino)
    assert caught.value.errno == errno.ENOSPC and len(made) == fs.sb.capacity - 1 >= 99
    assert fs.statfs()["ffree"] == 0 and fs.statfs()["files"] == fs.sb.capacity
    oracle.check(fs)
    ns.unlink(fs, ROOT, b"5")
    assert make(fs, b"again").ino == made[5] and fs.statfs()["ffree"] == 0
    oracle.check(maker.crash_copy(fs))


def test_stale_numbers(small_fs):
    fs = small_fs
    ino = make(fs, b"f").ino
    ns.unlink(fs, ROOT, b"f")
    for number in (ino, 0, -1, fs.inodes.limit, 1 << 40):
        assert code(fs.inodes.read, number) == errno.ESTALE


def test_damage_is_noticed(small_fs, maker):
    fs = small_fs
    ino = make(fs, b"f").ino
    place = fs.inodes.place(ino)
    for offset in (L.INODE_FIELDS.offset["mode"], L.INODE_FIELDS.offset["crc"], 255):
        good = fs.mem[place + offset]
        fs.region.store(place + offset, bytes([good ^ 1]))
        with pytest.raises(CorruptError):
            fs.inodes.check(ino)
        if offset == 255:
            fs.journal.settle()
            with pytest.raises(CorruptError):
                maker.crash_copy(fs)
        fs.region.store(place + offset, bytes([good]))
    assert fs.inodes.check(ino).ino == ino


def test_free_numbers_after_mount_are_given_lowest_first(small_fs, crash_copy):
    fs = small_fs
    for n in range(10):
        make(fs, b"%d" % n)
    for n in (2, 5, 7):
        ns.unlink(fs, ROOT, b"%d" % n)
    copy = crash_copy(fs)
    assert [make(copy, b"n%d" % n).ino for n in range(4)] == [4, 7, 9, 12]


def test_times_set_to_what_stands_in_place_are_durable(small_fs, crash_copy):
    """tar sets the times that it read. Replay of an earlier record must not bring back older ones."""
    fs = small_fs
    ino = make(fs, b"f").ino  # its record holds the first times, the journal does not settle
    attr.touch_write(fs, ino)
    attr.touch_read(fs, ino)
    inode = fs.inodes.read(ino)
    attr.setattr(fs, ino, {"atime": inode.atime, "mtime": inode.mtime})
    again = crash_copy(fs).inodes.read(ino)
    assert (again.atime, again.mtime) == (inode.atime, inode.mtime)
