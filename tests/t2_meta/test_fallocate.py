# SPDX-License-Identifier: MIT
"""fallocate: errors, blocks and sizes, space that runs out, many extents, crashes between its records.

Contents are compared in t3_data/test_file_io.py (against bytes) and test_fallocate_order.py (crash images).
"""

import errno

import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_truncate import Killed, content, new_file, scattered, write

from daxfs import layout as L
from daxfs.meta import attr, extent, fallocate, file, prealloc
from daxfs.meta import namespace as ns
from daxfs.meta.fallocate import KEEP_SIZE, MODES, PUNCH_HOLE, ZERO_RANGE
from daxfs.pfn import PAGE_SIZE

PUNCH = PUNCH_HOLE | KEEP_SIZE


def call(fs, node, mode, pos, length):
    fallocate.fallocate(fs, node, mode, pos, length, fs.clock())


def code(*args) -> int:
    with pytest.raises(OSError) as caught:
        call(*args)
    return caught.value.errno


def mark_written(kind: dict, first: int, last: int, end: int) -> None:
    """What a write of pages [first, last) of a file of *end* pages makes of {page: type}.

    Unwritten neighbours become written zeros with it, up to the next multiple of `prealloc.AROUND`.
    """
    left, right = kind.get(first) == 1, kind.get(last - 1) == 1
    kind.update(dict.fromkeys(range(first, last), 2))
    while left and first % prealloc.AROUND and kind.get(first - 1) == 1:
        first -= 1
        kind[first] = 2
    while right and last % prealloc.AROUND and last < end and kind.get(last) == 1:
        kind[last] = 2
        last += 1


def kinds(node) -> list:
    """[(pgoff, pages, type)], neighbours of one type as one."""
    out = []
    for pgoff, pages, _, kind, _ in node.map.extents():
        if out and out[-1][0] + out[-1][1] == pgoff and out[-1][2] == kind:
            out[-1] = (out[-1][0], out[-1][1] + pages, kind)
        else:
            out.append((pgoff, pages, kind))
    return out


def state(fs) -> tuple:
    """Media but the ring, and what DRAM says of space and extents."""
    ring = fs.journal.base, fs.journal.ring + fs.journal.size
    nodes = {ino: (n.map.extents(), n.map.size, list(n.free_slots)) for ino, n in fs.nodes.items()}
    space = fs.alloc.runs(), sorted(fs.alloc._held)
    return bytes(fs.mem[: ring[0]]), bytes(fs.mem[ring[1] :]), space, nodes


@pytest.mark.parametrize(
    "mode, pos, length, expected",
    [
        (0, -1, 10, errno.EINVAL),
        (0, 0, 0, errno.EINVAL),
        (PUNCH, 0, -5, errno.EINVAL),
        (0x40, -1, 10, errno.EINVAL),
        (0x40, 0, 10, errno.EOPNOTSUPP),
        (0x08, 0, PAGE_SIZE, errno.EOPNOTSUPP),
        (0x20, 0, PAGE_SIZE, errno.EOPNOTSUPP),
        (PUNCH_HOLE, 0, 10, errno.EOPNOTSUPP),
        (PUNCH_HOLE | ZERO_RANGE | KEEP_SIZE, 0, 10, errno.EOPNOTSUPP),
        (0, L.MAX_FILE_SIZE, 1, errno.EFBIG),
        (KEEP_SIZE, L.MAX_FILE_SIZE - 1, 2, errno.EFBIG),
        (PUNCH, 1 << 62, 1 << 62, errno.EFBIG),
        (0, 0, L.MAX_FILE_SIZE, errno.ENOSPC),
        (ZERO_RANGE, 0, 1 << 40, errno.ENOSPC),
    ],
)
def test_errors_change_nothing(small_fs, mode, pos, length, expected):
    fs, node = small_fs, new_file(small_fs)
    write(fs, node, 0, b"a" * 5000)
    before = state(fs)
    assert code(fs, node, mode, pos, length) == expected
    assert state(fs) == before
    oracle.check(fs)


def test_readonly(small_fs):
    fs, node = small_fs, new_file(small_fs)
    write(fs, node, 0, b"a" * 5000)
    before = state(fs)
    fs.readonly = True
    for mode in MODES:
        assert code(fs, node, mode, 100, 3 * PAGE_SIZE) == errno.EROFS
    assert state(fs) == before


def test_what_each_mode_leaves(small_fs, crash_copy, fsck):
    fs, node = small_fs, new_file(small_fs)
    unwritten, mapped = extent.UNWRITTEN, extent.MAPPED
    call(fs, node, KEEP_SIZE, 100, 3 * PAGE_SIZE)
    assert kinds(node) == [(0, 4, unwritten)] and node.map.size == 0
    fsck(fs)
    write(fs, node, 0, b"a" * 2 * PAGE_SIZE)
    assert kinds(node) == [(0, 2, mapped), (2, 2, unwritten)] and node.map.size == 2 * PAGE_SIZE
    call(fs, node, 0, PAGE_SIZE, 4 * PAGE_SIZE)
    assert kinds(node) == [(0, 2, mapped), (2, 3, unwritten)] and node.map.size == 5 * PAGE_SIZE
    write(fs, node, 0, b"b" * 5 * PAGE_SIZE)
    call(fs, node, PUNCH, PAGE_SIZE - 10, 2 * PAGE_SIZE + 20)
    assert kinds(node) == [(0, 1, mapped), (3, 2, mapped)]
    call(fs, node, ZERO_RANGE | KEEP_SIZE, 2 * PAGE_SIZE + 5, 4 * PAGE_SIZE)
    assert kinds(node) == [(0, 1, mapped), (2, 5, unwritten)] and node.map.size == 5 * PAGE_SIZE
    call(fs, node, ZERO_RANGE, 100, 7 * PAGE_SIZE)
    assert kinds(node) == [(0, 1, mapped), (1, 7, unwritten)] and node.map.size == 7 * PAGE_SIZE + 100
    want = b"b" * 100 + bytes(7 * PAGE_SIZE)
    assert content(fs, node) == want and fs.inodes.read(node.ino).blocks == 8
    oracle.check(fs)
    fsck(fs)
    copy = crash_copy(fs)
    assert content(copy, copy.node(node.ino)) == want
    oracle.check(copy)


def test_zeroed_pages_stay_where_they_are(small_fs):
    """As a later write finds them: no page is freed, none is taken."""
    fs, node = small_fs, new_file(small_fs)
    write(fs, node, 0, b"a" * 10 * PAGE_SIZE)
    pfn, free = node.map.lookup(0)[3], fs.alloc.free_pages + fs.alloc.held
    call(fs, node, ZERO_RANGE, 2 * PAGE_SIZE, 5 * PAGE_SIZE)
    assert [e[:4] for e in node.map.extents()] == [(0, 2, pfn, 2), (2, 5, pfn + 2, 1), (7, 3, pfn + 7, 2)]
    assert fs.alloc.free_pages + fs.alloc.held == free
    write(fs, node, 2 * PAGE_SIZE, b"b" * 5 * PAGE_SIZE)
    assert [e[:4] for e in node.map.extents()] == [(0, 10, pfn, 2)]


def test_times_and_nothing_else_where_there_is_nothing_to_do(small_fs):
    fs, node = small_fs, new_file(small_fs)
    call(fs, node, 0, 0, 10 * PAGE_SIZE)
    for mode in (0, KEEP_SIZE, ZERO_RANGE):
        before, records = fs.inodes.read(node.ino), fs.journal.records
        call(fs, node, mode, 5, 9 * PAGE_SIZE)
        after = fs.inodes.read(node.ino)
        assert after.mtime == after.ctime > before.mtime and fs.journal.records == records + 1
        assert (after.size, after.blocks, after.inline) == (before.size, before.blocks, before.inline)


@pytest.mark.parametrize("size", [0, 1, 3 * PAGE_SIZE, 5 * PAGE_SIZE - 1])
def test_truncation_frees_what_lies_behind_the_end_and_growth_keeps_it(small_fs, fsck, size):
    fs, node = small_fs, new_file(small_fs)
    write(fs, node, 0, b"a" * 4 * PAGE_SIZE)
    call(fs, node, KEEP_SIZE, 0, 20 * PAGE_SIZE)
    for grown in (4 * PAGE_SIZE + 10, 6 * PAGE_SIZE):
        attr.setattr(fs, node.ino, {"size": grown})
        assert fs.inodes.read(node.ino).blocks == 20
    fsck(fs)
    attr.setattr(fs, node.ino, {"size": size})
    assert fs.inodes.read(node.ino).blocks == -(-size // PAGE_SIZE)
    call(fs, node, KEEP_SIZE, 0, 20 * PAGE_SIZE)
    attr.setattr(fs, node.ino, {"size": size})
    assert fs.inodes.read(node.ino).blocks == -(-size // PAGE_SIZE), "to the same size, too"
    oracle.check(fs)
    fsck(fs)


def test_punch_behind_the_end_frees_what_keep_size_took(small_fs):
    fs, node = small_fs, new_file(small_fs)
    call(fs, node, KEEP_SIZE, 0, 20 * PAGE_SIZE)
    call(fs, node, PUNCH, 5 * PAGE_SIZE, 1 << 40)
    assert kinds(node) == [(0, 5, extent.UNWRITTEN)] and node.map.size == 0
    oracle.check(fs)


def test_all_space_to_the_last_page_and_not_one_more(small_fs, fsck):
    fs, node = small_fs, new_file(small_fs)
    room = fs.alloc.free_pages + fs.alloc.held - file.RESERVE
    before = state(fs)
    assert code(fs, node, 0, 0, (room + 1) * PAGE_SIZE) == errno.ENOSPC
    assert state(fs) == before
    call(fs, node, 0, 0, room * PAGE_SIZE)
    assert fs.alloc.free_pages + fs.alloc.held == file.RESERVE
    before = state(fs)
    assert code(fs, node, 0, room * PAGE_SIZE, 1) == errno.ENOSPC
    assert state(fs) == before
    # What was allocated can be written, wherever, without a page more for data.
    for n in range(0, room, 97):
        assert write(fs, node, n * PAGE_SIZE + 10, b"x" * 100) == 100
    call(fs, node, PUNCH, 0, room * PAGE_SIZE)
    assert fs.inodes.read(node.ino).blocks == len(node.blocks)
    oracle.check(fs)
    fsck(fs)


def fragmented(fs) -> None:
    """A file takes all but 20 pages, then every second one of it becomes a hole."""
    node = new_file(fs, b"singles")
    pages = fs.alloc.free_pages + fs.alloc.held - 20
    call(fs, node, 0, 0, pages * PAGE_SIZE)
    for page in range(1, pages, 2):
        call(fs, node, PUNCH, page * PAGE_SIZE, PAGE_SIZE)
    assert len(node.map) >= pages // 2


@pytest.mark.parametrize("mode", [0, ZERO_RANGE])
def test_as_many_extents_as_there_are_pages(maker, fsck, mode):
    """A fragmented region: several records, extent blocks counted before anything is taken."""
    fs = maker.make(size=24 << 20)
    fragmented(fs)
    node, free = new_file(fs, b"f"), fs.alloc.free_pages + fs.alloc.held
    assert free > 2000 and len(fs.alloc.runs()) > 1500
    before, records = state(fs), fs.journal.records
    # There are pages enough, but not for the extent blocks that they need.
    assert code(fs, node, mode, 0, (free - file.RESERVE) * PAGE_SIZE) == errno.ENOSPC
    assert state(fs) == before and fs.journal.records == records
    pages = free - 15
    call(fs, node, mode, 0, pages * PAGE_SIZE)
    assert len(node.map) > 1500 and node.map.size == pages * PAGE_SIZE
    assert fs.journal.records - records == -(-len(node.map) // fallocate.EXTENTS_PER_STEP) >= 2
    assert fs.inodes.read(node.ino).blocks == pages + len(node.blocks)
    oracle.check(fs)
    fsck(fs)
    records = fs.journal.records
    call(fs, node, PUNCH, 1, pages * PAGE_SIZE - 2)
    assert len(node.map) == 2 and fs.journal.records - records >= 2
    oracle.check(fs)
    call(fs, node, mode, 0, pages * PAGE_SIZE)
    attr.setattr(fs, node.ino, {"size": 0})
    assert fs.alloc.free_pages + fs.alloc.held == free
    oracle.check(fs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("records", range(4))
def test_killed_between_two_records(small_fs, maker, monkeypatch, mode, records):
    """Each page is as before or as it shall be, in the order of the file; the size comes last."""
    monkeypatch.setattr(fallocate, "EXTENTS_PER_STEP", 10)
    fs, node = small_fs, new_file(small_fs)
    scattered(fs, node, 32, gap=3)
    for n in range(0, 96, 6):
        write(fs, node, n * PAGE_SIZE, b"a" * PAGE_SIZE)
    old, size = kinds(node), node.map.size
    commit, stop = fs.journal.commit, fs.journal.records + records

    def dying(entries):
        if fs.journal.records == stop:
            raise Killed
        return commit(entries)

    monkeypatch.setattr(fs.journal, "commit", dying)
    with pytest.raises(Killed):
        call(fs, node, mode, PAGE_SIZE + 5, 120 * PAGE_SIZE)
    monkeypatch.undo()
    maker.fsck(fs)
    copy = maker.crash_copy(fs)
    oracle.check(copy)
    found = copy.node(node.ino)
    assert found.map.size == size
    assert (kinds(found) == old) == (records == 0)
    call(copy, found, mode, PAGE_SIZE + 5, 120 * PAGE_SIZE)
    oracle.check(copy)
    assert found.map.pages == (1 if mode == PUNCH else 122)


@settings(max_examples=30)
@given(
    ops=st.lists(
        st.tuples(st.sampled_from(MODES), st.integers(0, 60 * PAGE_SIZE), st.integers(1, 30 * PAGE_SIZE)),
        min_size=1,
        max_size=25,
    ),
    step=st.sampled_from([1, 2, 5, 1000]),
)
def test_any_number_of_extents_a_record(maker, ops, step):
    """Steps of any length give the same pages, sizes and counts."""
    fs = maker.make()
    node, kind, size = new_file(fs), {}, 0
    normal, fallocate.EXTENTS_PER_STEP = fallocate.EXTENTS_PER_STEP, step
    try:
        for n, (mode, pos, length) in enumerate(ops):
            if n % 3 == 0:
                write(fs, node, pos, b"a" * PAGE_SIZE)
                size = max(size, pos + PAGE_SIZE)
                first, last = pos // PAGE_SIZE, -(-(pos + PAGE_SIZE) // PAGE_SIZE)
                mark_written(kind, first, last, -(-size // PAGE_SIZE))
            call(fs, node, mode, pos, length)
            end = pos + length
            for page in range(pos // PAGE_SIZE, -(-end // PAGE_SIZE)):
                whole = pos <= page * PAGE_SIZE and (page + 1) * PAGE_SIZE <= end
                if mode == PUNCH and whole:
                    kind.pop(page, None)
                elif mode != PUNCH:
                    kind[page] = 1 if mode & ZERO_RANGE and whole else kind.get(page, 1)
            size = size if mode & KEEP_SIZE else max(size, end)
            assert {o + i: k for o, c, _, k, _ in node.map.extents() for i in range(c)} == kind
            assert node.map.size == fs.inodes.read(node.ino).size == size
            assert fs.inodes.read(node.ino).blocks == len(kind) + len(node.blocks)
        oracle.check(fs)
        maker.fsck(fs)
    finally:
        fallocate.EXTENTS_PER_STEP = normal
        maker.drop(fs)


def test_an_error_between_two_records_gives_back_what_is_in_none(small_fs, monkeypatch):
    monkeypatch.setattr(fallocate, "EXTENTS_PER_STEP", 10)
    fs, node = small_fs, new_file(small_fs)
    scattered(fs, node, 60)
    commit, stop = fs.journal.commit, fs.journal.records + 2

    def fails(entries):
        if fs.journal.records == stop:
            raise OSError(errno.EIO, "")
        return commit(entries)

    monkeypatch.setattr(fs.journal, "commit", fails)
    assert code(fs, node, 0, 0, 200 * PAGE_SIZE) == errno.EIO
    monkeypatch.undo()
    assert node.map.size == 120 * PAGE_SIZE and node.map.pages == 70
    oracle.check(fs)


@pytest.mark.parametrize("mode", [PUNCH, ZERO_RANGE | KEEP_SIZE])
def test_no_room_for_one_more_extent(small_fs, mode):
    """Six extents fill the inode; cutting one takes an extent block. The edges stay, too."""
    fs, node = small_fs, new_file(small_fs)
    for n in range(6):
        write(fs, node, 10 * n * PAGE_SIZE, b"a" * 5 * PAGE_SIZE)
    before = content(fs, node)
    with fs.begin() as tx:
        tx.alloc(fs.alloc.free_pages + fs.alloc.held)
        taken = state(fs)
        assert code(fs, node, mode, PAGE_SIZE - 5, PAGE_SIZE + 10) == errno.ENOSPC
        assert state(fs) == taken and content(fs, node) == before
        tx.abort()
    call(fs, node, mode, PAGE_SIZE - 5, PAGE_SIZE + 10)
    assert len(node.blocks) == 1
    oracle.check(fs)


def test_of_an_unlinked_file(small_fs):
    fs, node = small_fs, new_file(small_fs)
    free = fs.alloc.free_pages + fs.alloc.held
    ns.unlink(fs, L.ROOT_INO, b"f")
    call(fs, node, 0, 0, 50 * PAGE_SIZE)
    call(fs, node, KEEP_SIZE, 0, 90 * PAGE_SIZE)
    fs.release(node)
    assert fs.alloc.free_pages + fs.alloc.held == free
    oracle.check(fs, closed=True)
