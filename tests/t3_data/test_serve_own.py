# SPDX-License-Identifier: MIT
"""Native answers on files in ranges of their own: what is done here, what is left to the metadata thread.

The range's file is the truth. Limits: no mount; a program that maps the file is a mapping of its range.
"""

import ctypes
import errno
import mmap
import os
import subprocess

import pytest
import rawmsg as R
from datakit import PAGE, Kit, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from servekit import File, Served
from test_own import range_path

from daxfs._iomap import COARSE, PLAIN, UNSETTLED
from daxfs.data._serve import DIRECT, DSYNC, WRITE
from daxfs.meta import attr, fallocate, own

DATA, HOLE = 3, 4
ROOM = 1 << 14  # pages that a range has addresses for, at first


@pytest.fixture
def served(pool_kit):
    return Served(pool_kit.io())


def length(file: File) -> int:
    return os.fstat(file.node.map.own.fd).st_size


def below(file: File, pos: int, size: int) -> bytes:
    return os.pread(file.node.map.own.fd, size, pos)


def settle(file: File) -> None:
    """No record of the inode waits, and a write may be native."""
    file.served.fs.journal.settle()
    attr.note_plain(file.served.fs, file.node)


def reached(served, size: int = 9000) -> File:
    file = served.open(size=size)
    assert file.node.map.own is not None and file.node.map.own.room == ROOM
    settle(file)
    return file


def test_appends_take_storage_and_grow_the_range_first(served):
    file = reached(served, 100)
    pos, data = 100, noise(3 * PAGE, 7)
    for size in (50, PAGE, 3 * PAGE, 1, 2 * PAGE - 51):
        assert file.write(pos, data[:size])[:2] == ("done", 0)
        assert below(file, pos, size) == data[:size] == file.read(pos, size)[2]
        pos += size
        assert file.inode().size == file.node.map.size == pos
        assert length(file) == own.pages_of(pos) * PAGE == file.node.map.own.pages * PAGE


def test_a_write_to_a_hole_takes_storage_inside(served):
    file = reached(served)
    file.node.map.own.resize(file.node.map, 3)
    file.node.map.own.punch(file.node.map, 0, 2 * PAGE)
    assert file.write(PAGE + 5, b"inside")[:2] == ("done", 0)
    assert below(file, PAGE, 16) == bytes(5) + b"inside" + bytes(5)
    assert length(file) == 3 * PAGE and file.inode().size == 9000


def test_what_is_left_to_the_metadata_thread(served):
    file = reached(served)
    refused = [(9001, b"behind"), (ROOM * PAGE - 5, b"x" * 10)]
    for pos, data in refused:
        assert file.write(pos, data)[0] == "call"
    file.node.map.clear_state(PLAIN)
    assert file.write(0, b"x")[0] == "call"
    attr.note_plain(served.fs, file.node)
    file.node.map.set_state(UNSETTLED)
    assert file.write(8999, b"xy")[0] == "call" and file.write(0, b"x")[:2] == ("done", 0)
    dsync = File(served, file.node, WRITE | DIRECT | DSYNC)
    assert dsync.write(0, b"x")[0] == "call"
    file.node.map.clear_state(UNSETTLED)
    for mode in (0, 1, 2 | 1, 0x10):
        assert file.fallocate(0, PAGE, mode)[0] == "call"
    assert length(file) == 3 * PAGE and file.inode().size == 9000


def test_attributes_are_left_to_python_where_the_range_has_none(served):
    file = reached(served)
    assert file.getattr()[:2] == ("done", 0)
    path = range_path(served.io, file.node)
    os.rename(path, path + "x")
    assert file.getattr() == ("relay", 0, b"")
    os.rename(path + "x", path)
    served.server.ranges = -1
    assert file.getattr() == ("relay", 0, b"")


def test_attributes_while_inode_and_range_change_together(served):
    file, table = reached(served), served.fs.region.table
    table.begin_own()
    assert file.getattr() == ("relay", 0, b"")
    assert served.feed(R.getattr_(1))[0] == "done"  # has no range
    table.end_own()
    assert file.getattr()[0] == "done"


def test_a_range_that_is_changed_is_never_shown_with_its_inode_of_before(served, monkeypatch):
    """Between a change of the range and `forget_times` its file has a time that the inode never gets."""
    file, fs, answers = reached(served), served.fs, []
    forget = own.forget_times

    def look_first(*args):
        answers.append(file.getattr()[0])
        forget(*args)

    monkeypatch.setattr(own, "forget_times", look_first)
    attr.setattr(fs, file.ino, {"size": 100 * PAGE})
    fallocate.fallocate(fs, file.node, 0, 0, 150 * PAGE, fs.clock())
    fallocate.fallocate(fs, file.node, 3, PAGE, 9 * PAGE, fs.clock())
    attr.setattr(fs, file.ino, {"size": 10})
    attr.setattr(fs, file.ino, {"mtime": fs.clock()})
    assert answers == ["relay"] * 5
    assert file.getattr()[0] == "done"


def test_the_room_of_addresses_is_a_limit_for_native_writes_alone(served):
    file = reached(served)
    end = ROOM * PAGE
    os.ftruncate(file.node.map.own.fd, end)  # no storage for 64 MiB: only the size
    file.node.map.own.resize(file.node.map, ROOM)
    file.node.map.size = end
    assert file.write(end - 10, b"x" * 10)[:2] == ("done", 0)
    assert file.write(end, b"x")[0] == "call"
    assert length(file) == end
    assert served.io.write(file.node, end, b"x" * 10) == 10
    assert file.node.map.own.room > ROOM
    settle(file)
    assert file.write(end + 10, b"y")[:2] == ("done", 0)


def test_reads_ask_the_file_where_nothing_is_known(served):
    file = reached(served, 64 * PAGE)
    served.fs.atime = "noatime"
    served.limits()
    file.node.map.load([])
    with open(range_path(served.io, file.node), "r+b") as raw, mmap.mmap(raw.fileno(), 0) as program:
        program[10 * PAGE : 20 * PAGE] = bytes(10 * PAGE)
        program[15 * PAGE : 15 * PAGE + 5] = b"store"
        want = program[:]
        for how in ({}, {"by_pieces": True}):
            verdict, error, got = file.read(0, 64 * PAGE, **how)
            assert (verdict, error, got) == ("done", 0, want)
        program.madvise(mmap.MADV_REMOVE, 14 * PAGE, 4 * PAGE)
        assert file.read(14 * PAGE, 4 * PAGE)[2] == bytes(4 * PAGE)


def test_a_range_that_was_cut_behind_our_back_is_an_error(served):
    file = reached(served, 20 * PAGE)
    os.ftruncate(file.node.map.own.fd, PAGE)
    file.node.map.load([])
    assert file.read(0, 2 * PAGE)[:2] == ("done", -errno.EIO)


def test_fsync(served):
    file = reached(served)
    assert file.fsync()[:2] == ("done", 0)
    file.node.map.set_state(COARSE)
    assert file.fsync()[0] == "call"


def test_lseek_is_the_range_s(served):
    file = reached(served, 10 * PAGE + 5)
    fd, fmap = file.node.map.own.fd, file.node.map
    fmap.own.punch(fmap, 2 * PAGE, 8 * PAGE)
    with open(range_path(served.io, file.node), "r+b") as raw, mmap.mmap(raw.fileno(), 0) as program:
        program[5 * PAGE] = 1
    size = fmap.size
    for pos in (*range(0, size, 1777), size - 1):
        for whence in (DATA, HOLE):
            try:
                at = min(os.lseek(fd, pos, whence), size)
            except OSError as error:
                at = -error.errno
            if at == size and whence == DATA:
                at = -errno.ENXIO
            assert file.lseek(pos, whence) == at, (pos, whence)
    assert file.lseek(size, DATA) == file.lseek(size, HOLE) == -errno.ENXIO
    assert file.lseek(-3, 2) == size - 3 and file.lseek(7, 0) == 7


def test_a_torn_range_is_left_alone(served):
    file = reached(served)
    tear(file)
    for answer in (file.read(0, 10), file.write(0, b"x"), file.write(9000, b"x"), file.fsync()):
        assert answer[0] == "call"
    assert file.lseek(0, HOLE) == 9000, "that asks the file alone"
    assert bytes(served.io.read(file.node, 0, 9000)) == noise(9000), "the metadata thread mends it first"
    settle(file)
    assert file.write(0, b"x")[:2] == ("done", 0) and below(file, 0, 1) == b"x"


def tear(file: File) -> None:
    """A load of a page that is gone: the file is shorter for a moment."""
    fmap, table = file.node.map, file.served.fs.region.table
    pages = fmap.own.pages
    os.ftruncate(fmap.own.fd, 0)
    address, *_ = table.lookup(fmap.own.pfn + pages - 1)
    ctypes.string_at(address, 1)
    assert fmap.own.torn and not table.lost
    os.ftruncate(fmap.own.fd, pages * PAGE)
    os.pwrite(fmap.own.fd, noise(fmap.size), 0)


@pytest.fixture
def full():
    """A pool on a tmpfs with 1 MiB to spare, and what fills it."""
    if os.geteuid():
        pytest.skip("not root: mount(2) needs it")
    where = f"/tmp/daxfs-serve-own-{os.getpid()}"
    os.mkdir(where)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m,huge=never", "direct-full", where], check=True)

    class Here(Kit):
        def path(self) -> str:
            return f"{where}/pool/"

    kit = Here(pool=True)
    try:
        yield kit, where
    finally:
        kit.close()
        # Lazily: what the test opened may not be collected yet.
        subprocess.run(["umount", "-l", where], check=True)
        os.rmdir(where)


def fill(where: str, leave: int) -> None:
    """Take all room but so many pages."""
    room = os.statvfs(where)
    with open(f"{where}/fill", "ab") as file:
        os.posix_fallocate(file.fileno(), 0, (room.f_bavail - leave) * PAGE + os.fstat(file.fileno()).st_size)


def test_no_room_is_the_metadata_thread_s_and_the_range_stays_as_long(full):
    kit, where = full
    served = Served(kit.io())
    file = reached(served)
    fill(where, 4)
    assert file.write(9000, b"x" * 8 * PAGE)[0] == "call"
    assert length(file) == 3 * PAGE and file.node.map.size == file.inode().size == 9000
    assert file.read(0, 9000)[2] == noise(9000)
    assert file.write(9000, b"y" * 2 * PAGE)[:2] == ("done", 0), "what fits is written"
    written = served.io.write(file.node, 9000 + 2 * PAGE, b"z" * 8 * PAGE)
    assert 0 < written < 8 * PAGE and length(file) == own.pages_of(9000 + 2 * PAGE + written) * PAGE


def test_a_store_without_a_page_is_one_error_and_the_range_stays_as_long(full):
    """An append whose first page was taken away by a program: new pages were there already, and go back."""
    kit, where = full
    served = Served(kit.io())
    file = reached(served)
    with open(range_path(served.io, file.node), "r+b") as raw, mmap.mmap(raw.fileno(), 0) as program:
        program.madvise(mmap.MADV_REMOVE, 2 * PAGE, PAGE)
    fill(where, 1)
    assert file.write(9000, b"x" * PAGE)[:2] == ("done", -errno.EIO)
    assert file.node.map.own.torn
    assert length(file) == 3 * PAGE and file.node.map.size == file.inode().size == 9000
    os.unlink(f"{where}/fill")
    assert file.write(9000, b"x")[0] == "call"
    assert served.io.write(file.node, 9000, b"x" * PAGE) == PAGE
    assert below(file, 8990, 20) == bytes(10) + b"x" * 10


places = st.integers(0, 12 * PAGE)
sizes = st.one_of(st.integers(1, 200), st.integers(1, 3 * PAGE))
WHAT = ("write", "append", "read", "store", "remove", "truncate")
actions = st.tuples(st.sampled_from(WHAT), places, sizes)


@settings(max_examples=60, deadline=None)
@given(st.lists(actions, max_size=30), st.sampled_from(["nt", "cached"]))
def test_against_a_model(todo, policy):
    """Native where it can be, the metadata thread for the rest, and a program that stores and punches."""
    with Kit(pool=True) as kit:
        served = Served(kit.io(policy))
        served.fs.atime = "noatime"
        served.limits()
        file = served.open(b"f", 100)
        model = bytearray(noise(100))
        with open(range_path(served.io, file.node), "r+b") as raw:
            for n, (what, place, size) in enumerate(todo):
                pos = len(model) if what == "append" else place
                if what in ("write", "append"):
                    data = noise(size, n + 2)
                    if file.write(pos, data)[0] == "call":
                        assert served.io.write(file.node, pos, data) == size
                        settle(file)
                    model.extend(bytes(max(pos + size - len(model), 0)))
                    model[pos : pos + size] = data
                elif what == "truncate":
                    attr.setattr(served.fs, file.ino, {"size": pos})
                    settle(file)
                    del model[pos:]
                    model.extend(bytes(pos - len(model)))
                elif what != "read" and model:
                    by_program(what, raw.fileno(), model, pos, size)
                verdict, error, got = file.read(0, 1 << 20)
                assert (verdict, error) == ("done", 0) and got == model
                assert length(file) == own.pages_of(len(model)) * PAGE


def by_program(what: str, fd: int, model: bytearray, pos: int, size: int) -> None:
    with mmap.mmap(fd, 0) as program:
        if what == "store":  # the last page's rest, too: nobody may see that
            end = min(pos + size, len(program))
            program[pos:end] = b"\xee" * max(end - pos, 0)
            end = min(end, len(model))
            model[pos:end] = b"\xee" * max(end - pos, 0)
            return
        first, last = pos // PAGE, min((pos + size) // PAGE, len(program) // PAGE)
        if first < last:
            program.madvise(mmap.MADV_REMOVE, first * PAGE, (last - first) * PAGE)
            end = min(last * PAGE, len(model))
            model[first * PAGE : end] = bytes(max(end - first * PAGE, 0))
