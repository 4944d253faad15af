# SPDX-License-Identifier: MIT
"""Files in ranges of their own: the machine of packed files, and programs that store behind our back."""

import errno
import mmap
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import mounts
import pytest
import rawmsg as R
from datakit import MIB, PAGE, Kit, calls, create, noise, reopen
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from servekit import Served
from test_file_io import NAMES, NOISE, Files, lengths, near

from daxfs import layout as L
from daxfs._iomap import COARSE, OBSERVED, STORED
from daxfs._own import PFN_BASE
from daxfs._record import Recorder
from daxfs.data import ranges
from daxfs.data._tracker import POLICIES
from daxfs.data.file_io import FileIo
from daxfs.errors import fail
from daxfs.fuse.direct import DirectOperations
from daxfs.meta import attr, fallocate, file, namespace, own, prealloc

MADV_REMOVE = 9
LINES = ("pte", "pmd", "line")


def range_path(io, node) -> str:
    inode = io.fs.inodes.read(node.ino)
    folder = io.fs.region.sources[0].path
    return os.path.join(folder, L.RANGES_NAME, L.range_name(inode.ino, inode.generation))


def ranges_of(io) -> list[str]:
    return sorted(os.listdir(os.path.join(io.fs.region.sources[0].path, L.RANGES_NAME)))


def program(io, node):
    """What a program has that mapped the file through the mount: the range, not the inode's map."""
    with open(range_path(io, node), "r+b") as file:
        return mmap.mmap(file.fileno(), 0)


class OwnFiles(Files):
    """The rules of `Files` on a pool directory, where every file has its own range, and these."""

    pool = True

    @precondition(lambda self: any(model.size for model in self.models.values()))
    @rule(name=st.sampled_from(NAMES), pos=near, length=lengths, skew=st.integers(0, 999))
    def store_through_a_mapping(self, name, pos, length, skew):
        model, node = self.models[name], self.nodes[name]
        if pos >= model.size or node.map.own is None:
            return
        data = NOISE[skew : skew + min(length, model.size - pos)]
        with program(self.io, node) as mapping:
            mapping[pos : pos + len(data)] = data
        node.map.set_state(COARSE)  # as an open that allows it does
        model.write(pos, data)
        self.look(name, max(pos - 100, 0), length + 200)

    @precondition(lambda self: any(model.size for model in self.models.values()))
    @rule(name=st.sampled_from(NAMES), skew=st.integers(0, 999))
    def store_behind_the_end(self, name, skew):
        """In the last page: nobody may ever read that through the file."""
        model, node = self.models[name], self.nodes[name]
        if model.size % PAGE and model.size < 1 << 30 and node.map.own is not None:
            with program(self.io, node) as mapping:
                mapping[model.size :] = NOISE[skew : skew + len(mapping) - model.size]
            node.map.set_state(COARSE)

    @precondition(lambda self: any(model.size for model in self.models.values()))
    @rule(name=st.sampled_from(NAMES), page=st.integers(0, 30), pages=st.integers(1, 9))
    def punch_through_a_mapping(self, name, page, pages):
        """MADV_REMOVE: our extents may say that storage is there where none is any more."""
        model, node = self.models[name], self.nodes[name]
        with_storage = -(-model.size // PAGE)
        pages = min(pages, with_storage - page)
        if pages > 0 and node.map.own is not None:
            with program(self.io, node) as mapping:
                mapping.madvise(MADV_REMOVE, page * PAGE, pages * PAGE)
            model.fallocate(fallocate.PUNCH_HOLE | fallocate.KEEP_SIZE, page * PAGE, pages * PAGE)
            self.look(name, page * PAGE, pages * PAGE + PAGE)

    @rule(name=st.sampled_from(NAMES), dax=st.booleans())
    def move(self, name, dax):
        node = self.nodes[name]
        self.io.release(node)
        flags = self.io.fs.inodes.flags(node.ino) & L.FLAGS_USER & ~L.FLAG_DAX
        attr.set_flags(self.io.fs, node.ino, flags | L.FLAG_DAX * dax)
        self.nodes[name] = node = reopen(self.io, node.ino)
        assert (node.map.own is not None) == dax
        self.look(name, 0, 1 << 18)

    @rule(name=st.sampled_from(NAMES), length=lengths)
    def seek(self, name, length):
        """What lseek calls a hole reads as zeros."""
        node, model = self.nodes[name], self.models[name]
        if model.size > length:
            hole = ranges.seek(node, length, data=False)
            if hole < model.size:
                assert not any(model.read(hole, 4096 - hole % 4096))

    def fsync(self, name):
        node = self.nodes[name]
        assert self.io.fsync(node) >= 0
        assert self.io.tracker.dirty_pages(node.map) == 0

    fsync = rule(name=st.sampled_from(NAMES))(fsync)

    @invariant()
    def sizes_and_blocks(self):
        for name, node in self.nodes.items():
            inode, model = self.io.fs.inodes.read(node.ino), self.models[name]
            assert inode.size == node.map.size == model.size
            if node.map.own is not None:
                assert inode.blocks == inode.nextents == 0 and inode.flags & L.FLAG_OWN
                st_ = os.stat(range_path(self.io, node))
                assert st_.st_size == node.map.own.pages * PAGE == -(-model.size // PAGE) * PAGE

    @invariant()
    def nothing_leaks(self):
        fs = self.io.fs
        assert fs.region.table.users == 0
        in_ranges = sum(bool(fs.inodes.flags(n.ino) & L.FLAG_OWN) for n in self.nodes.values())
        assert len(ranges_of(self.io)) == in_ranges
        packed = sum(fs.inodes.read(n.ino).blocks for n in self.nodes.values()) + 1
        assert fs.alloc.free_pages + fs.alloc.held + packed == sum(end - start for start, end in fs.ranges)


@pytest.mark.parametrize("drain", ["write", "fsync"])
@pytest.mark.parametrize("write", ["nt", "cached"])
def test_machine(write, drain):
    machine = type("OwnFiles", (OwnFiles,), {"write": write, "drain": drain})
    machine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None,
                                         phases=[Phase.generate])
    machine.TestCase().runTest()


# -- one thing at a time --------------------------------------------------------------------


@pytest.fixture
def io(pool_kit):
    made = pool_kit.io()
    made.fs.clock = time.time_ns  # the kernel's, which ranges have
    return made


def set_dax(io, node, dax: bool) -> None:
    attr.set_flags(io.fs, node.ino, L.FLAG_DAX if dax else 0)


def test_storage_that_is_reserved_where_no_address_is(io):
    """fallocate of what was never reached: extents without addresses would be a SIGSEGV."""
    node = create(io, b"f")
    attr.setattr(io.fs, node.ino, {"size": 1 << 30})
    io.write(node, 0, b"here")
    assert node.map.own.room << 12 < 1 << 30
    io.fallocate(node, fallocate.KEEP_SIZE, (1 << 30) - 5 * PAGE, 5 * PAGE)
    assert bytes(io.read(node, (1 << 30) - PAGE, PAGE)) == bytes(PAGE)
    assert io.write(node, (1 << 30) - 3, b"abc") == 3
    assert bytes(io.read(node, (1 << 30) - 4, 99)) == b"\0abc"


def test_addresses_move_when_a_file_outgrows_them(io):
    node, data = create(io, b"f"), noise(MIB)
    io.write(node, 0, data)
    before = node.map.own.pfn
    other = create(io, b"g")
    io.write(other, 0, b"beside it")
    io.write(node, 65 * MIB, data)
    assert node.map.own.pfn != before
    assert bytes(io.read(node, 0, MIB)) == bytes(io.read(node, 65 * MIB, MIB)) == data
    assert bytes(io.read(other, 0, 99)) == b"beside it"


@pytest.mark.parametrize("dax", [True, False])
def test_a_file_that_somebody_has_mapped_is_not_moved_away(io, dax):
    node = create(io, b"f")
    io.write(node, 0, noise(3 * PAGE))
    mapping = program(io, node)
    assert own.is_busy(node)
    set_dax(io, node, dax)
    io.release(node)
    node = reopen(io, node.ino)
    assert node.map.own is not None, "moved while it was mapped"
    io.release(node)
    mapping[0:5] = b"store"
    mapping.close()
    node = reopen(io, node.ino)
    assert (node.map.own is not None) == dax
    assert bytes(io.read(node, 0, 3 * PAGE)) == b"store" + noise(3 * PAGE)[5:]
    assert not dax or not own.is_busy(node)


def test_a_move_without_room_leaves_the_file_where_it_is(pool_kit, caplog):
    io = pool_kit.io(size=8 * MIB)
    node = create(io, b"f")
    data = noise(9 * MIB)
    assert io.write(node, 0, data) == len(data), "larger than the region itself"
    set_dax(io, node, False)
    io.release(node)
    free = io.fs.alloc.free_pages
    node = reopen(io, node.ino)
    assert node.map.own is not None and io.fs.alloc.free_pages == free
    assert "stays in its own range" in caplog.text
    assert bytes(io.read(node, 0, len(data))) == data
    assert io.write(node, 5, b"on it goes") == 10


def test_a_move_keeps_times_holes_and_what_is_behind_the_end(io):
    node = create(io, b"f")
    io.write(node, 5 * PAGE, noise(PAGE + 100))
    with program(io, node) as mapping:
        mapping[6 * PAGE + 100 :] = b"x" * (PAGE - 100)
    for dax in (False, True, False, True):
        inode = io.fs.inodes.read(node.ino)
        inode, _ = own.shown(io.fs, inode) if inode.flags & L.FLAG_OWN else (inode, 0)
        times = inode.mtime, inode.ctime
        attr.set_flags(io.fs, node.ino, L.FLAG_DAX * dax)
        io.release(node)
        node = reopen(io, node.ino)
        assert (node.map.own is not None) == dax
        after = io.fs.inodes.read(node.ino)
        shown = own.shown(io.fs, after)[0] if dax else after
        assert shown.mtime == times[0] and shown.ctime > times[1]
        assert ranges.seek(node, 0, data=True) == 5 * PAGE
        attr.setattr(io.fs, node.ino, {"size": 7 * PAGE})
        assert bytes(io.read(node, 6 * PAGE, 2 * PAGE)) == noise(PAGE + 100)[PAGE:] + bytes(PAGE - 100)
        attr.setattr(io.fs, node.ino, {"size": 6 * PAGE + 100})


def test_a_hole_copied_over_what_a_program_stored(io):
    """No extent is there to say that there are data."""
    source, target = create(io, b"from"), create(io, b"to")
    attr.setattr(io.fs, source.ino, {"size": 8 * PAGE})
    attr.setattr(io.fs, target.ino, {"size": 8 * PAGE})
    with program(io, target) as mapping:
        mapping[:] = noise(8 * PAGE)
    assert ranges.copy_piece(io, source, PAGE, target, 2 * PAGE, 3 * PAGE) == 3 * PAGE
    data = bytes(io.read(target, 0, 8 * PAGE))
    assert data == noise(8 * PAGE)[: 2 * PAGE] + bytes(3 * PAGE) + noise(8 * PAGE)[5 * PAGE :]


def test_times_of_stores_through_a_mapping(io):
    """As tmpfs has them: a store after utimens, be it into the past or the future, is seen."""
    node = create(io, b"f")
    io.write(node, 0, noise(PAGE))
    for hand in (10**18, io.fs.clock() + 10**15):
        attr.setattr(io.fs, node.ino, {"mtime": hand})
        shown, _ = own.shown(io.fs, io.fs.inodes.read(node.ino))
        assert shown.mtime == hand
        before = io.fs.clock() - 20_000_000  # the kernel's coarse clock lags behind
        with program(io, node) as mapping:
            mapping[7] = 7
        shown, _ = own.shown(io.fs, io.fs.inodes.read(node.ino))
        assert before <= shown.mtime == shown.ctime <= io.fs.clock()
    io.release(node)
    assert before <= io.fs.inodes.read(node.ino).mtime <= io.fs.clock(), "kept at the last close"


def test_fsync_takes_all_for_dirty_where_nobody_tracks_stores(io):
    node = create(io, b"f")
    io.write(node, 0, noise(10 * PAGE))
    assert io.fsync(node) == 0
    node.map.set_state(COARSE)
    assert io.fsync(node) == 10
    assert io.snapshot()["coarse_fsyncs"] == 1 and io.snapshot()["coarse_bytes"] == 10 * PAGE
    attr.setattr(io.fs, node.ino, {"size": 100 * PAGE})
    with program(io, node) as mapping:
        mapping[50 * PAGE] = 1
    assert io.fsync(node) == 11, "and finds storage that a store through a mapping took"


def test_a_mapping_that_outlived_its_handle_counts_at_the_next_fsync(io):
    node = create(io, b"f")
    io.write(node, 0, noise(10 * PAGE))
    io.release(node)
    with program(io, node):
        node = reopen(io, node.ino)
        assert io.fsync(node) == 10
        io.release(node)
    node = reopen(io, node.ino)
    assert io.fsync(node) == 10, "it may have stored until it went"
    assert io.fsync(node) == 0, "nobody has it mapped any more"


def flushed_by(io, action) -> set[int]:
    """Pages of the own window that are flushed, and drained after that."""
    with Recorder(io.fs.region, sites=False) as recorder:
        action()
        log = calls(recorder)
    last = max((n for n, (what, *_) in enumerate(log) if what == "drain"), default=0)
    return {page for what, at, n in log[:last] if what == "flush" and at >> 12 >= PFN_BASE
            for page in range(at >> 12, (at + n - 1 >> 12) + 1)}


def stored_and_closed(io, mapped: bool):
    """A file of 10 pages whose only handle was closed since a program stored. *mapped*: once more then."""
    node = create(io, b"f")
    io.write(node, 0, noise(10 * PAGE))
    io.fsync(node)
    node.map.set_state(COARSE)  # as an open that allows it does
    with program(io, node) as mapping:
        mapping[0] = 1
        if not mapped:
            io.release(node)
            return node.ino
        io.release(node)
        mapping[5 * PAGE] = 1
    return node.ino


@pytest.mark.parametrize("mapped", [False, True], ids=["until the close", "behind it"])
@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "none"])
def test_what_mappings_stored_before_the_last_close_is_the_next_fsyncs(pool_kit, policy, mapped):
    io = FileIo(pool_kit.make(), policy)
    node = reopen(io, stored_and_closed(io, mapped))
    served = Served(io)
    fh = served.server.open(node.map, node.ino)
    assert served.feed(R.fsync(node.ino, fh))[0] == "call", "native threads leave it to Python"
    assert len(flushed_by(io, lambda: io.fsync(node))) == 10
    clean = 0 if policy in LINES else 10  # extents never are
    assert len(flushed_by(io, lambda: io.fsync(node))) == clean
    served.server.close(fh)
    io.release(node)
    node = reopen(io, node.ino)
    assert not node.map.state & (COARSE | STORED)


@pytest.mark.parametrize("mapped", [False, True], ids=["until the close", "behind it"])
@pytest.mark.parametrize("opened", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("end", ["quiesce", "write_back"])
def test_the_end_of_the_mount_flushes_it(io, end, opened, mapped):
    ino = stored_and_closed(io, mapped)
    nodes = [reopen(io, ino)] if opened else []
    assert len(flushed_by(io, getattr(io, end))) == 10
    assert not io.fs.stored and (opened or ino not in io.fs.nodes)
    for node in nodes:
        io.release(node)
    assert not flushed_by(io, getattr(io, end))


@pytest.mark.parametrize("state", [COARSE, OBSERVED], ids=["coarse", "observed"])
def test_what_is_mapped_at_the_end_of_the_mount_is_flushed(io, state):
    """As after a signal: nobody looks into page tables any more."""
    node = create(io, b"f")
    io.write(node, 0, noise(10 * PAGE))
    io.fsync(node)
    node.map.set_state(state)
    assert len(flushed_by(io, io.quiesce)) == 10
    assert node.map.state & state, "the mapping goes on"


def test_it_waits_for_an_fsync_that_succeeds(io, monkeypatch):
    node = reopen(io, stored_and_closed(io, False))
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(own, "mark_stored", lambda *_: (_ for _ in ()).throw(fail(errno.EIO)))
        io.fsync(node)
    io.release(node)
    node = reopen(io, node.ino)
    assert len(flushed_by(io, lambda: io.fsync(node))) == 10


def failing(monkeypatch, module, name, fails):
    """*name* raises EIO for the calls that *fails(args)* names."""
    call = getattr(module, name)

    def sometimes(*args):
        if fails(*args):
            raise fail(errno.EIO)
        return call(*args)

    monkeypatch.setattr(module, name, sometimes)


def test_a_last_close_that_fails_forgets_nothing(io, monkeypatch):
    node = create(io, b"f")
    io.write(node, 0, noise(10 * PAGE))
    io.fsync(node)
    node.map.set_state(COARSE)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        failing(patch, io, "_last_close", lambda _: True)
        io.release(node)
    node = reopen(io, node.ino)
    assert len(flushed_by(io, lambda: io.fsync(node))) == 10


def test_a_last_close_while_the_mount_is_read_only_forgets_nothing(io):
    node = create(io, b"f")
    io.write(node, 0, noise(10 * PAGE))
    io.fsync(node)
    node.map.set_state(COARSE)
    io.fs.readonly = True
    io.release(node)
    io.fs.readonly = False
    node = reopen(io, node.ino)
    assert len(flushed_by(io, lambda: io.fsync(node))) == 10


@pytest.mark.parametrize("opened", [False, True], ids=["closed", "open"])
def test_at_the_end_one_bad_file_is_no_harm_to_others(io, monkeypatch, opened):
    nodes = [create(io, name) for name in (b"a", b"b", b"c")]
    for node in nodes:
        io.write(node, 0, noise(10 * PAGE))
        io.fsync(node)
        node.map.set_state(COARSE)
        if not opened:
            io.release(node)
    bad = nodes[1].ino
    failing(monkeypatch, own, "mark_stored", lambda node, *_: node.ino == bad)

    def end():
        with pytest.raises(OSError):
            io.write_back()

    flushed = flushed_by(io, end)
    if opened:
        assert len(flushed) == 20
    else:  # whose ranges have an address one after the other
        assert len(flushed) == 10 and io.fs.stored == {bad}


def test_a_page_that_went_away_is_no_harm_to_the_end(io):
    node = create(io, b"f")
    io.write(node, 0, noise(10 * PAGE))
    io.fsync(node)
    node.map.set_state(COARSE)
    os.truncate(range_path(io, node), 5 * PAGE)
    with pytest.raises(OSError):
        io.read(node, 0, 10 * PAGE)
    assert node.map.own.torn
    io.write_back()


def test_what_is_marked_is_flushed_after_a_page_went_away(io):
    node = create(io, b"f")
    io.write(node, 0, noise(10 * PAGE))
    io.fsync(node)
    node.map.dirty.set(0, 10)
    os.truncate(range_path(io, node), 5 * PAGE)
    with pytest.raises(OSError):
        io.read(node, 0, 10 * PAGE)
    assert node.map.own.torn
    assert len(flushed_by(io, lambda: io.fsync(node))) == 5


def test_a_chunk_that_can_not_go_back_is_no_harm_to_others(io, monkeypatch):
    """It stays in the list, and at the end of the mount all else is done."""
    stored = stored_and_closed(io, False)
    bad, good = (create(io, name).ino for name in (b"bad", b"good"))
    io.fs.preallocated.update({bad, good, stored})
    failing(monkeypatch, prealloc, "give_back", lambda fs, node: node.ino == bad)

    def end():
        with pytest.raises(OSError):
            io.quiesce()

    assert len(flushed_by(io, end)) == 10 and not io.fs.stored
    assert io.fs.preallocated == {bad}


@pytest.mark.parametrize("opened", [False, True], ids=["closed", "open"])
def test_what_the_kernel_below_tracks_is_synced_at_the_end(io, monkeypatch, opened):
    """As on fsdax: what a mapping stored waits there for an fsync of the range's file."""
    io.fs.pool.syncs = True
    node = create(io, b"f")
    io.write(node, 0, noise(10 * PAGE))
    direct = SimpleNamespace(fs=io.fs)
    assert not DirectOperations.expect_stores(direct, node, os.O_RDWR)
    path, synced = range_path(io, node), []
    if not opened:
        io.release(node)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
        assert not flushed_by(io, io.quiesce)
    assert synced == [path] and (node.ino in io.fs.mapped) == opened


def test_zeros_behind_the_old_end_are_synced_before_the_size(io, monkeypatch):
    """Where what is done to a range's file is durable after fdatasync alone."""
    io.fs.pool.syncs = True
    node, order = create(io, b"f"), []
    io.write(node, 0, noise(100))

    def noting(what, call):
        def noted(*args):
            order.append(what)
            return call(*args)

        return noted

    monkeypatch.setattr(own, "zero_behind", noting("zeros", own.zero_behind))
    monkeypatch.setattr(os, "fdatasync", noting("sync", os.fdatasync))
    monkeypatch.setattr(file, "grow", noting("size", file.grow))
    assert io.write(node, 3 * PAGE, b"behind a gap") == 12
    assert order[order.index("zeros") :] == ["zeros", "sync", "size"]


def test_a_gap_that_can_t_be_zeroed_leaves_the_range_as_it_was(io, monkeypatch):
    node = create(io, b"f")
    io.write(node, 0, noise(100))
    before = os.stat(range_path(io, node)).st_size
    with monkeypatch.context() as patch, pytest.raises(OSError):
        failing(patch, own, "zero_behind", lambda *_: True)
        io.write(node, 30 * PAGE, b"behind a gap")
    assert os.stat(range_path(io, node)).st_size == before and node.map.size == 100


def test_after_a_kill_the_first_fsync_takes_all(pool_kit):
    io = pool_kit.io()
    node = create(io, b"f")
    io.write(node, 0, noise(10 * PAGE))
    killed = pool_kit.crashed(io)
    node = reopen(killed, node.ino)
    assert len(flushed_by(killed, lambda: killed.fsync(node))) == 10
    killed.release(node)
    again = pool_kit.remount(killed)
    assert not again.fs.stored and not again.fs.unclean


def test_a_file_that_is_gone_is_stored_to_no_more(io):
    node = reopen(io, stored_and_closed(io, False))
    io.release(node)
    namespace.unlink(io.fs, 1, b"f")
    assert not io.fs.stored and not flushed_by(io, io.write_back)


def test_a_closed_file_keeps_no_descriptor_though_the_kernel_knows_it(io):
    count = len(os.listdir("/proc/self/fd"))
    for n in range(50):
        node = create(io, b"%d" % n)
        io.fs.remember(node.ino)
        io.write(node, 0, noise(100))
        io.release(node)
        attr.setattr(io.fs, node.ino, {"size": 50})
    assert len(os.listdir("/proc/self/fd")) <= count + 1, "the folder of ranges"
    assert bytes(io.read(reopen(io, node.ino), 0, 100)) == noise(100)[:50]


def test_an_unlinked_range_goes_with_the_last_close(io):
    node = create(io, b"f")
    io.write(node, 0, noise(PAGE))
    with program(io, node) as mapping:
        namespace.unlink(io.fs, 1, b"f")
        assert len(ranges_of(io)) == 1
        io.release(node)
        assert ranges_of(io) == []
        assert mapping[:] == noise(PAGE), "whoever has it mapped keeps it"


STORE_BEHIND = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p] + [ctypes.c_long] * 5
at = libc.mmap(None, 2 << 20, 3, 1, os.open(sys.argv[1], os.O_RDWR), 0)
ctypes.c_char.from_address(at).value  # maps the huge page
ctypes.c_char.from_address(at + 300 * 4096).value = b"x"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs with huge pages: for root")
@pytest.mark.parametrize("how", ["truncate", "write", "allocate"])
def test_stores_behind_the_end_in_a_huge_page_are_never_seen(monkeypatch, how):
    """The kernel maps a huge page of tmpfs as a whole, wherever the file ends in it."""
    with mounts.Tmpfs(256 * MIB, "always") as tmpfs, Kit(pool=True) as kit:
        monkeypatch.setattr(kit, "path", lambda: f"{tmpfs.path}/pool/")
        io = kit.io()
        node = create(io, b"f")
        io.write(node, 0, noise(PAGE + 5))
        done = subprocess.run([sys.executable, "-c", STORE_BEHIND, range_path(io, node)], check=False)
        if done.returncode == -signal.SIGBUS:
            pytest.skip("this kernel ends huge mappings where the file ends")
        assert done.returncode == 0
        if how == "truncate":
            attr.setattr(io.fs, node.ino, {"size": 2 * MIB})
        elif how == "write":
            io.write(node, 2 * MIB, b"end")
        else:
            io.fallocate(node, 0, MIB, MIB)
        assert bytes(io.read(node, 0, 2 * MIB)) == noise(PAGE + 5).ljust(2 * MIB, b"\0")
        io.release(node)


def test_the_table_of_ranges_does_not_grow_once_it_is_mounted(io):
    """Native threads look addresses up in it without a lock."""
    ranges_there = len(io.fs.region.table)
    node = create(io, b"f")
    io.write(node, 0, noise(PAGE))
    assert node.map.own.pfn and len(io.fs.region.table) == ranges_there == 2


def _grows(io, node, how: str) -> None:
    """To six pages; it fails."""
    with pytest.raises(OSError):
        if how == "truncate":
            attr.setattr(io.fs, node.ino, {"size": 6 * PAGE})
        else:
            fallocate.fallocate(io.fs, node, 0, 0, 6 * PAGE, io.fs.clock())


@pytest.mark.parametrize("how", ["truncate", "fallocate"])
def test_growing_that_fails_leaves_the_range_as_long_as_the_file(io, monkeypatch, how):
    """Else programs store behind the end of the file, and fsck.daxfs finds a range that is too long."""
    node = create(io, b"f")
    io.write(node, 0, noise(PAGE + 5))

    def full(*_):
        raise fail(errno.ENOSPC)

    monkeypatch.setattr(own, "zero_behind", full)
    _grows(io, node, how)
    assert node.map.own.pages == 2 and os.stat(range_path(io, node)).st_size == 2 * PAGE


@pytest.mark.parametrize("how", ["truncate", "fallocate"])
def test_growing_whose_record_may_be_durable_leaves_the_range_long(io, monkeypatch, how):
    """A crash would replay the record, and the range must have the pages that it speaks of."""
    node = create(io, b"f")
    io.write(node, 0, noise(PAGE + 5))

    def failed(_):
        io.fs.journal.doubt = True
        raise fail(errno.EIO)

    monkeypatch.setattr(io.fs.journal, "commit", failed)
    _grows(io, node, how)
    assert os.stat(range_path(io, node)).st_size == 6 * PAGE


# Somebody opens the range in the one moment in which we have a lease on it.
LEASE_IS_BROKEN = """
import fcntl, os, sys
from daxfs.meta import own

def breaks(fd, command, argument, real=fcntl.fcntl):
    out = real(fd, command, argument)
    if (command, argument) == (fcntl.F_SETLEASE, fcntl.F_WRLCK):
        try:
            os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
        except BlockingIOError:
            print("broken", end=" ", flush=True)
    return out

fcntl.fcntl = breaks
print(own.is_shared(os.open(sys.argv[1], os.O_RDWR)))
"""


def test_an_open_of_a_range_that_is_being_asked_about_kills_nobody(io):
    """The kernel tells who has the lease by a signal: SIGIO, by itself, would end the daemon."""
    node = create(io, b"f")
    path = range_path(io, node)
    io.release(node)
    words = [sys.executable, "-P", "-c", LEASE_IS_BROKEN, path]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "broken False\n"), done


@pytest.mark.parametrize("pos", [8192, 12000, 12288, 5 * MIB])
@pytest.mark.parametrize("size", [0, 5001, 8192])
def test_a_write_behind_a_gap_of_a_file_that_is_observed(pool_kit, size, pos):
    """The zeros up to it have extents learned anew, to which its own pages, not touched yet, were a hole."""
    io = pool_kit.io()
    node = create(io, b"f")
    io.write(node, 0, noise(size))
    node.map.set_state(OBSERVED)
    assert io.write(node, pos, noise(10, 2)) == 10
    assert bytes(io.read(node, 0, MIB * 8)) == noise(size).ljust(pos, b"\0") + noise(10, 2)
