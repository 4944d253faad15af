# SPDX-License-Identifier: MIT
"""Truncation both ways, in steps, and the writes that need blocks, against plain bytes."""

import errno

import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daxfs import layout as L
from daxfs.errors import DaxfsError
from daxfs.meta import attr, extent, file
from daxfs.meta import namespace as ns
from daxfs.pfn import PAGE_SHIFT, PAGE_SIZE


def new_file(fs, name=b"f", mode=0o100644):
    return fs.open(ns.create(fs, L.ROOT_INO, name, mode, ns.ROOT).ino)


def scattered(fs, node, count: int, gap: int = 2) -> None:
    """Give the file *count* extents of one page, *gap* apart; then its size."""
    for start in range(0, count, 200):
        with fs.begin() as tx:
            pieces = []
            for n in range(start, min(start + 200, count)):
                ((pfn, _),) = tx.alloc(1)
                pieces.append((n * gap, 1, pfn, extent.UNWRITTEN))
            extent.replace(tx, tx.inode(node.ino), node, start * gap, (start + 200) * gap, pieces)
    attr.setattr(fs, node.ino, {"size": count * gap * PAGE_SIZE})


def write(fs, node, pos: int, data: bytes) -> int:
    """A write with a plan, or in place where it needs none; the bytes written."""
    end = pos + len(data)
    pages = range(pos >> PAGE_SHIFT, (end + PAGE_SIZE - 1) >> PAGE_SHIFT)
    if end <= node.map.size and all(node.map.lookup(p)[0] == extent.MAPPED for p in pages):
        pieces, plan = [], None
    else:
        plan = file.prepare_write(fs, node, pos, len(data))
        pieces, data = plan.fresh, data[: plan.length]
    for _, count, pfn in pieces:
        fs.region.nt_fill(pfn << PAGE_SHIFT, 0, count * PAGE_SIZE)
    places = {o + i: (p + i) << PAGE_SHIFT for o, n, p, _ in (plan.pieces if plan else ()) for i in range(n)}
    at = 0
    while at < len(data):
        page, off = divmod(pos + at, PAGE_SIZE)
        part = data[at : at + PAGE_SIZE - off]
        place = places[page] if plan else node.map.lookup(page)[3] << PAGE_SHIFT
        fs.region.nt_store(place + off, part)
        at += len(part)
    # Orders the data before the record that makes them reachable.
    fs.region.drain()
    if plan:
        plan.commit(fs.clock())
    return len(data)


def content(fs, node) -> bytes:
    out = bytearray(node.map.size)
    for pgoff, length, pfn, kind, _ in node.map.extents():
        start = pgoff << PAGE_SHIFT
        if kind == extent.MAPPED and start < len(out):
            data = bytes(fs.mem[pfn << PAGE_SHIFT : (pfn + length) << PAGE_SHIFT])[: len(out) - start]
            out[start : start + len(data)] = data
    return bytes(out)


sizes = st.integers(0, 20 * PAGE_SIZE) | st.integers(0, 20).map(lambda n: n * PAGE_SIZE)


@settings(max_examples=60)
@given(
    ops=st.lists(
        st.tuples(st.just("truncate"), sizes, st.just(0))
        | st.tuples(st.just("write"), sizes, st.integers(1, 9000)),
        min_size=1,
        max_size=12,
    )
)
def test_writes_and_truncations_against_bytes(maker, ops):
    """A file that shrinks and grows again reads as zeros where nothing was written since."""
    fs = maker.make()
    node, model, byte = new_file(fs), bytearray(), 0
    for op, pos, length in ops:
        byte = byte % 255 + 1
        if op == "truncate":
            attr.setattr(fs, node.ino, {"size": pos})
            model = model[:pos].ljust(pos, b"\0")
        else:
            assert write(fs, node, pos, bytes([byte]) * length) == length
            model = model.ljust(pos, b"\0")
            model[pos : pos + length] = bytes([byte]) * length
        assert content(fs, node) == bytes(model)
    oracle.check(fs)
    copy = maker.crash_copy(fs)
    assert content(copy, copy.node(node.ino)) == bytes(model)
    maker.drop(copy)
    maker.drop(fs)


def test_tail_left_by_a_mapping_does_not_show_when_the_file_grows(small_fs):
    fs, node = small_fs, new_file(small_fs)
    write(fs, node, 0, b"a" * 100)
    pfn = node.map.lookup(0)[3]
    for grow in (lambda: attr.setattr(fs, node.ino, {"size": 3000}), lambda: write(fs, node, 3500, b"b")):
        fs.region.store((pfn << PAGE_SHIFT) + node.map.size, b"junk" * 20)
        size = node.map.size
        grow()
        assert not any(content(fs, node)[size : size + 80])


@pytest.mark.parametrize("left", [0, 1, 1300])
def test_large_truncation_in_steps(small_fs, crash_copy, left):
    fs, node = small_fs, new_file(small_fs)
    free = fs.alloc.free_pages + fs.alloc.held
    scattered(fs, node, 2500)
    assert len(node.map) == 2500 and len(node.blocks) == 10
    before = fs.journal.records
    attr.setattr(fs, node.ino, {"size": left * PAGE_SIZE})
    assert fs.journal.records - before <= 5
    assert fs.inodes.read(node.ino).flags == 0 and node.map.size == left * PAGE_SIZE
    assert len(node.map) == (left + 1) // 2
    oracle.check(fs)
    oracle.check(crash_copy(fs))
    attr.setattr(fs, node.ino, {"size": 0})
    assert fs.alloc.free_pages + fs.alloc.held == free and fs.inodes.read(node.ino).blocks == 0


class Killed(BaseException):
    pass


@pytest.mark.parametrize("records", [1, 2, 3])
def test_truncation_cut_short_is_finished_at_mount(small_fs, maker, records):
    """The daemon dies after so many records: mount finishes the rest, the size is the new one."""
    fs, node = small_fs, new_file(small_fs)
    scattered(fs, node, 3200)
    commit, stop = fs.journal.commit, fs.journal.records + records

    def dying(entries):
        if fs.journal.records == stop:
            raise Killed
        return commit(entries)

    fs.journal.commit = dying
    with pytest.raises(Killed):
        attr.setattr(fs, node.ino, {"size": PAGE_SIZE})
    assert fs.inodes.read(node.ino).flags == L.FLAG_TRUNCATING
    copy = maker.crash_copy(fs)
    inode = copy.inodes.read(node.ino)
    assert (inode.size, inode.nextents, inode.flags) == (PAGE_SIZE, 1, 0)
    oracle.check(copy, closed=True)


def test_limits(small_fs):
    fs, node = small_fs, new_file(small_fs)
    attr.setattr(fs, node.ino, {"size": L.MAX_FILE_SIZE})
    assert fs.inodes.read(node.ino).size == L.MAX_FILE_SIZE
    for call in (
        lambda: attr.setattr(fs, node.ino, {"size": L.MAX_FILE_SIZE + 1}),
        lambda: file.prepare_write(fs, node, L.MAX_FILE_SIZE, 1),
    ):
        with pytest.raises(DaxfsError) as caught:
            call()
        assert caught.value.errno == errno.EFBIG
    assert write(fs, node, L.MAX_FILE_SIZE - 10, b"x" * 100) == 10
    assert node.map.size == L.MAX_FILE_SIZE
    oracle.check(fs)


def test_size_of_other_kinds_is_refused(small_fs):
    fs = small_fs
    for kind, expected in ((0o040755, errno.EINVAL), (0o010644, errno.EINVAL)):
        ino = ns.create(fs, L.ROOT_INO, b"%o" % kind, kind, ns.ROOT).ino
        with pytest.raises(DaxfsError) as caught:
            attr.setattr(fs, ino, {"size": 1})
        assert caught.value.errno == expected


def test_short_write_where_space_runs_out(small_fs):
    fs, node = small_fs, new_file(small_fs)
    room = (fs.alloc.free_pages - file.RESERVE) * PAGE_SIZE
    plan = file.prepare_write(fs, node, 100, room + 5000)
    assert plan.length == room - 100
    plan.tx.abort()
    oracle.check(fs)


def test_size_mode_and_times_in_one_transaction(small_fs):
    fs, node = small_fs, new_file(small_fs)
    before = fs.journal.records
    attr.setattr(fs, node.ino, {"size": 10, "mode": 0o600, "mtime": 5, "atime": 6})
    inode = fs.inodes.read(node.ino)
    assert (inode.size, inode.mode, inode.mtime, inode.atime) == (10, 0o100600, 5, 6)
    assert fs.journal.records == before + 1


def test_truncation_of_a_file_nobody_has_open_keeps_no_node(small_fs):
    fs = small_fs
    ino = ns.create(fs, L.ROOT_INO, b"f", 0o100644, ns.ROOT).ino
    attr.setattr(fs, ino, {"size": 5})
    assert ino not in fs.nodes and fs.inodes.read(ino).size == 5
