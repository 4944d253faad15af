# SPDX-License-Identifier: MIT
"""The metadata thread beside threads that append natively: no size is lost, no inode is seen half stored.

`Appender` stands in for a native thread: it takes the file's lock, looks at the flags, stores behind the end
of file, drains, stores the size in place. All that native/serve.c relies on is what it relies on here.
"""

import struct
import threading
import time

import pytest
from datakit import PAGE, content, create, noise

from daxfs._iomap import PLAIN, STALE_TIMES, UNSETTLED
from daxfs.meta import attr, fallocate, file, namespace, xattr
from daxfs.meta.transaction import Transaction

_SIZE = struct.Struct("<Q")


class Appender:
    """Appends *piece* to a file where the flags allow it, and counts how often they did and did not."""

    def __init__(self, io, node, piece: bytes = b"x" * 100):
        self.region, self.map, self.piece = io.fs.region, node.map, piece
        self.refused, self.appended = 0, 0
        self.wrong: list[str] = []

    def once(self) -> bool:
        fmap, region = self.map, self.region
        fmap.lock()
        try:
            if fmap.state & (UNSETTLED | PLAIN) != PLAIN:
                self.refused += 1
                return False
            size, place = fmap.size, fmap.inode - region.address
            on_media = _SIZE.unpack_from(region.mem, place)[0]
            if on_media != size:
                self.wrong.append(f"size is {on_media} in the inode, {size} in DRAM")
            kind, _, _, pfn, _ = fmap.lookup(size // PAGE)
            if kind != 2 or size % PAGE + len(self.piece) > PAGE:
                self.refused += 1
                return False
            region.nt_store(pfn * PAGE + size % PAGE, self.piece)
            region.drain()
            region.store(place, _SIZE.pack(size + len(self.piece)))
            fmap.size = size + len(self.piece)
            region.persist(place, 8)
            self.appended += 1
            return True
        finally:
            fmap.unlock()


def prepared(io, size: int = 50):
    """A file of *size* bytes in a written page, which native threads may append to."""
    node = create(io, b"f")
    io.write(node, 0, noise(size))
    io.fs.journal.settle()
    assert node.map.state & (UNSETTLED | PLAIN) == PLAIN
    return node


CHANGES = {
    "chmod": lambda io, node: attr.setattr(io.fs, node.ino, {"mode": 0o600}),
    "chown": lambda io, node: attr.setattr(io.fs, node.ino, {"uid": 5, "gid": 6}),
    "utimens": lambda io, node: attr.setattr(io.fs, node.ino, {"mtime": 17}),
    "setxattr": lambda io, node: xattr.put(io.fs, node.ino, b"user.a", b"1"),
    "link": lambda io, node: namespace.link(io.fs, node.ino, 1, b"other"),
    "unlink": lambda io, node: namespace.unlink(io.fs, 1, b"f"),
    "rename": lambda io, node: namespace.rename(io.fs, 1, b"f", 1, b"g"),
    "fallocate": lambda io, node: io.fallocate(node, fallocate.KEEP_SIZE, 4 * PAGE, PAGE),
    "punch": lambda io, node: io.fallocate(node, fallocate.PUNCH_HOLE | fallocate.KEEP_SIZE, 0, 10),
}


@pytest.mark.parametrize("what", CHANGES)
def test_an_append_beside_a_change_of_the_inode_is_not_undone(kit, monkeypatch, what):
    """The append comes in the worst moment: when the transaction has its copy of the inode."""
    io = kit.io()
    node = prepared(io)
    append = Appender(io, node)
    thread = threading.Thread(target=append.once)
    entries = Transaction.entries

    def slow(tx):
        if thread.ident is None:
            thread.start()
            thread.join(0.3)  # long enough for it to be done, were there no lock
        return entries(tx)

    monkeypatch.setattr(Transaction, "entries", slow)
    CHANGES[what](io, node)
    thread.join(5)
    assert thread.ident and not thread.is_alive()
    assert io.fs.inodes.read(node.ino).size == node.map.size
    # It waited until the change was done, and then the flags sent it to the metadata thread.
    assert append.refused == 1 and node.map.size == 50
    io.fs.journal.settle()
    attr.note_plain(io.fs, node)
    assert append.once() and not append.wrong
    assert io.fs.inodes.read(node.ino).size == 150


@pytest.mark.parametrize("call", [
    lambda io, node: io.write(node, 40, b"y" * PAGE),
    lambda io, node: file.truncate(io.fs, node, 100, 5),
    lambda io, node: file.truncate(io.fs, node, 10, 5),
    lambda io, node: io.fallocate(node, 0, 0, 3 * PAGE),
    lambda io, node: io.fallocate(node, fallocate.ZERO_RANGE, 0, 2 * PAGE + 5),
], ids=["write", "truncate up", "truncate down", "fallocate", "zero range"])  # fmt: skip
def test_size_and_extents_stand_still_from_the_first_look_to_the_end(kit, monkeypatch, call):
    """The append comes after the first look at the file and before the transaction begins."""
    io = kit.io()
    node = prepared(io)
    append = Appender(io, node)
    thread = threading.Thread(target=append.once)
    finish = file.finish_truncation

    def slow(fs, node):
        finish(fs, node)
        if thread.ident is None:
            thread.start()
            thread.join(0.3)

    monkeypatch.setattr(file, "finish_truncation", slow)
    call(io, node)
    thread.join(5)
    assert thread.ident and not thread.is_alive()
    assert append.refused == 1 and not append.wrong
    assert io.fs.inodes.read(node.ino).size == node.map.size
    size = io.fs.inodes.read(node.ino).size
    io.release(node)
    crashed = kit.crashed(io)
    assert len(content(crashed, b"f")) == size


def test_appends_and_changes_from_two_threads(kit):
    """Real threads, no hook: every append that was made is there, in order, whatever ran beside it."""
    io = kit.io()
    node = prepared(io, 0)
    io.write(node, 0, b"#")
    io.fallocate(node, 0, 0, PAGE)
    file.truncate(io.fs, node, 1, 5)
    append = Appender(io, node, b"ab")
    until = threading.Event()
    changes = 0

    def run():
        while not until.is_set():
            if append.appended < 16 * (changes + 1):  # the file shall not be full before there were changes
                append.once()
            else:
                time.sleep(0)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        while append.appended < 1000 and node.map.size < PAGE - 2 and changes < 20_000:
            attr.setattr(io.fs, node.ino, {"mode": 0o600 | changes & 0o77})
            io.fs.journal.settle()
            attr.note_plain(io.fs, node)
            changes += 1
    finally:
        until.set()
        thread.join(10)
    assert append.appended > 50 and changes > 50, (append.appended, changes)
    assert not append.wrong
    assert content(io, b"f") == b"#" + b"ab" * append.appended


def test_flags_follow_records_and_settling(kit):
    io = kit.io()
    fs, node = io.fs, prepared(io)
    attr.setattr(fs, node.ino, {"mode": 0o640})
    assert node.map.state & (UNSETTLED | PLAIN) == UNSETTLED, "a record with this inode"
    io.write(node, 0, b"over")
    assert node.map.state & (UNSETTLED | PLAIN) == UNSETTLED | PLAIN, "the write found nothing to take away"
    io.fsync(node)
    assert node.map.state & UNSETTLED == 0
    for mode in (0o4755, 0o2755, 0o2644):
        attr.setattr(fs, node.ino, {"mode": mode})
        io.write(node, 0, b"over")
        assert not node.map.state & PLAIN, oct(mode)
    attr.setattr(fs, node.ino, {"mode": 0o644})
    xattr.put(fs, node.ino, b"security.capability", b"\1" * 20)
    io.write(node, 0, b"over")
    assert not node.map.state & PLAIN
    xattr.remove(fs, node.ino, b"security.capability")
    io.write(node, 0, b"over")
    assert node.map.state & PLAIN
    io.quiesce()
    assert not node.map.state & PLAIN


def test_a_node_that_is_loaded_again_knows_that_it_is_unsettled(kit):
    io = kit.io()
    node = prepared(io)
    ino = node.ino
    attr.setattr(io.fs, ino, {"mode": 0o640})
    io.release(node)
    assert ino not in io.fs.nodes
    assert io.fs.node(ino).map.state & UNSETTLED
    io.fs.journal.settle()
    assert not io.fs.node(ino).map.state & UNSETTLED


def test_a_record_that_failed_leaves_the_flags_on_the_safe_side(kit, monkeypatch):
    io = kit.io()
    node = prepared(io)

    def broken(entries):
        raise OSError(5, "msync")

    monkeypatch.setattr(io.fs.journal, "commit", broken)
    with pytest.raises(OSError):
        attr.setattr(io.fs, node.ino, {"mode": 0o640})
    assert node.map.state & (UNSETTLED | PLAIN) == UNSETTLED
    thread = threading.Thread(target=Appender(io, node).once)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "the lock was not given back"


def test_stale_times_of_a_native_thread_are_flushed(kit):
    io = kit.io()
    node = prepared(io)
    place = node.map.inode - io.fs.region.address
    assert place == io.fs.inodes.place(node.ino)
    node.map.set_state(STALE_TIMES)
    before = io.fs.region.flush.counters()["flush"]
    io.fsync(node)
    assert io.fs.region.flush.counters()["flush"] == before + 1 and not node.map.state & STALE_TIMES


def test_metadata_are_stored_between_two_steps_of_seq(kit, monkeypatch):
    """A reader that finds the same even number before and after has an inode of one piece."""
    io = kit.io()
    node, region = prepared(io), io.fs.region
    seen, store = [], type(region).store

    def spy(self, offset, data):
        seen.append(region.table.seq & 1)
        store(self, offset, data)

    start = region.table.seq
    assert start % 2 == 0
    monkeypatch.setattr(type(region), "store", spy)
    attr.setattr(io.fs, node.ino, {"mode": 0o640})
    assert seen and all(seen) and region.table.seq == start + 2

    def broken(self, offset, data):
        raise ValueError

    monkeypatch.setattr(type(region), "store", broken)
    with pytest.raises(ValueError):
        attr.setattr(io.fs, node.ino, {"mode": 0o600})
    assert region.table.seq == start + 4, "even again after an exception"
