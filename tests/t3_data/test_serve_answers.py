# SPDX-License-Identifier: MIT
"""Native answers against FileIo: the same operations on two equal regions, and one thing at a time."""

import errno
import functools
import struct

import pytest
import rawmsg as R
from datakit import MIB, PAGE, Kit, create, noise, reopen
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from servekit import File, Served

from daxfs import layout as L
from daxfs._iomap import MAPPED, PLAIN, STALE_TIMES, UNSETTLED
from daxfs.data._serve import DIRECT, DIRECTORY, DSYNC, NOATIME, WRITE
from daxfs.fault._decision import CachedFaults
from daxfs.meta import attr, file, namespace, prealloc, xattr

NOISE = noise(1 << 17, 3)
DATA, HOLE = 3, 4
KEEP_SIZE, PUNCH, ZERO = 1, 2 | 1, 0x10
DAY = 86400 * 10**9


def spare(served, node, size: int) -> None:
    """Cut *node* to that many bytes; its blocks become zeros behind the end, as of meta/prealloc.py."""
    fs = served.fs
    fs.region.nt_zero(node.map, size, max(size, node.map.end() * PAGE))
    with fs.begin() as tx:
        tx.inode(node.ino).flags |= L.FLAG_PREALLOC
    fs.preallocated.add(node.ino)
    fs.journal.settle()
    attr.note_plain(fs, node)
    fs.region.store(fs.inodes.place(node.ino), struct.pack("<Q", size))
    fs.region.persist(fs.inodes.place(node.ino), 8)
    node.map.size = size


def sought(node, offset: int, whence: int) -> int:
    """lseek(2) by looking at each page; an errno below zero."""
    size = node.map.size
    if not 0 <= offset < size:
        return -errno.ENXIO
    while offset < size:
        if (node.map.lookup(offset // PAGE)[0] == MAPPED) == (whence == DATA):
            return offset
        offset = (offset // PAGE + 1) * PAGE
    return -errno.ENXIO if whence == DATA else size


near = st.builds(lambda page, delta: max(page * PAGE + delta, 0), st.integers(0, 30),
                 st.sampled_from([0, 1, 63, 64, 100, 4000, -1, -64]))
places = st.one_of(near, near, near, st.sampled_from([2 * MIB - 5000, 2 * MIB, 3 * MIB + 17]))
lengths = st.one_of(st.integers(1, 300), st.integers(1, 5000),
                    st.sampled_from([PAGE, 3 * PAGE, 20000, 70_000]))


class Twins(RuleBasedStateMachine):
    """One region is served natively where that works, FileIo doing the calls; the other by FileIo alone."""

    write, drain = "nt", "write"

    def __init__(self):
        super().__init__()
        self.kit = Kit()
        self.served = Served(self.kit.io(self.write, self.drain))
        self.file = self.served.open(b"f", 9000)
        self.oracle = Served(self.kit.io(self.write, self.drain))
        self.node = self.oracle.open(b"f", 9000).node

    def teardown(self):
        self.kit.close()

    def both(self):
        return (self.served, self.file.node), (self.oracle, self.node)

    def tick(self):
        self.served.time += 1_000_003
        self.oracle.time = self.served.time

    def result(self, answer, call):
        """The reply of a native answer, or what *call* makes of it in the metadata thread."""
        verdict, error, reply = answer
        assert verdict in ("done", "call") and error == 0
        return reply if verdict == "done" else call()

    @rule(pos=places, length=lengths, skew=st.integers(0, 999), dsync=st.booleans())
    def pwrite(self, pos, length, skew, dsync):
        self.tick()
        data, f = NOISE[skew : skew + length], self.file
        h = File(self.served, f.node, WRITE | DIRECT | (DSYNC if dsync else 0))
        answer = h.write(pos, data)
        if answer[0] == "done" and f.node.map.size != self.node.map.size:
            f.node.appends += 1  # so that the next chunk is as large as the oracle's
        got = self.result(answer, lambda: self.call_write(f.node, pos, data, dsync))
        assert struct.unpack("<I4x", got) == (len(data),)
        h.close()
        assert self.oracle.io.write(self.node, pos, data) == len(data)
        if dsync:
            self.oracle.io.fsync(self.node)

    def call_write(self, node, pos, data, dsync):
        n = self.served.io.write(node, pos, data)
        if dsync:
            self.served.io.fsync(node)
        return struct.pack("<I4x", n)

    @rule(length=lengths, back=st.integers(0, 200), dsync=st.booleans())
    def append(self, length, back, dsync):
        self.pwrite(max(self.node.map.size - back, 0), min(length, 9000), 7, dsync)

    @rule(pos=places, length=lengths, pieces=st.booleans(), noatime=st.booleans())
    def pread(self, pos, length, pieces, noatime):
        self.tick()
        h = File(self.served, self.file.node, NOATIME if noatime else 0)
        verdict, error, got = h.read(pos, length, by_pieces=pieces)
        h.close()
        assert (verdict, error) == ("done", 0)
        assert got == bytes(self.oracle.io.read(self.node, pos, length, noatime))

    @rule()
    def fsync(self):
        self.tick()
        self.result(self.file.fsync(), lambda: self.served.io.fsync(self.file.node))
        self.oracle.io.fsync(self.node)

    @rule(pos=places, length=lengths, mode=st.sampled_from([0, KEEP_SIZE, 0, KEEP_SIZE, PUNCH, ZERO]))
    def fallocate(self, pos, length, mode):
        self.tick()
        f = self.file
        answer = f.fallocate(pos, length, mode)
        self.result(answer, lambda: self.served.io.fallocate(f.node, mode, pos, length))
        prealloc.give_back(self.served.fs, f.node)  # which a native answer has no need to do
        self.oracle.io.fallocate(self.node, mode, pos, length)

    @rule(pos=st.integers(0, 9000), length=st.integers(1, 9000), mode=st.sampled_from([0, KEEP_SIZE]))
    def fallocate_what_is_there(self, pos, length, mode):
        self.settle()
        self.fallocate(pos, length, mode)

    @rule(size=places)
    def truncate(self, size):
        self.tick()
        for served, node in self.both():
            attr.setattr(served.fs, node.ino, {"size": size})

    @rule(back=st.integers(0, 9000))
    def preallocate(self, back):
        """As if the file had been shorter, and blocks behind its end ready."""
        for served, node in self.both():
            served.fs.journal.settle()
            spare(served, node, max(node.map.size - back, 0))

    @rule()
    def settle(self):
        for served, _ in self.both():
            served.fs.journal.settle()

    @rule(offset=places, whence=st.sampled_from([DATA, HOLE]))
    def lseek(self, offset, whence):
        assert self.file.lseek(offset, whence) == sought(self.node, offset, whence)

    @rule()
    def getattr(self):
        verdict, error, reply = self.file.getattr()
        assert (verdict, error) == ("done", 0)
        assert attributes(reply) == expected(self.oracle.fs, self.node.ino)

    @rule()
    def kill_and_look(self):
        """A daemon killed now leaves the same file on both regions: no size only in DRAM."""
        first, second = (self.kit.crashed(served.io) for served, _ in self.both())
        a, b = (reopen(io, node.ino) for io, (_, node) in zip((first, second), self.both(), strict=True))
        assert a.map.size == b.map.size
        assert bytes(first.read(a, 0, 1 << 23)) == bytes(second.read(b, 0, 1 << 23))
        for io in (first, second):
            self.kit.fsck(io.fs)
            self.kit.drop(io.fs)

    @invariant()
    def same_inode_and_extents(self):
        (served, f), (oracle, node) = self.both()
        assert served.fs.inodes.read(f.ino) == oracle.fs.inodes.read(node.ino)
        assert f.map.extents() == node.map.extents() and f.map.size == node.map.size
        assert f.map.size == served.fs.inodes.read(f.ino).size
        assert served.io.tracker.dirty_pages(f.map) == oracle.io.tracker.dirty_pages(node.map)
        assert served.fs.region.table.users == 0


@pytest.mark.parametrize("drain", ["write", "fsync"])
@pytest.mark.parametrize("write", ["nt", "cached"])
def test_twins(write, drain, monkeypatch):
    # Who gets a chunk depends on how many appends came to the metadata thread; test_prealloc.py has chunks.
    monkeypatch.setattr(prealloc, "STREAM", 1 << 30)
    machine = type("Twins", (Twins,), {"write": write, "drain": drain})
    machine.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
    case = machine.TestCase()
    case.runTest()


ATTR = struct.Struct("<QII QQQqqqIIIIIIIIII")


def attributes(reply: bytes) -> tuple:
    """(valid, ino, size, blocks, atime, mtime, ctime, mode, nlink, uid, gid, rdev, blksize) of a reply."""
    assert len(reply) == ATTR.size == 104
    valid, nsec, _, ino, size, blocks, *rest = ATTR.unpack(reply)
    times, (mode, nlink, uid, gid, rdev, blksize, flags) = rest[:6], rest[6:]
    assert nsec == flags == 0 and all(n < 10**9 for n in times[3:])
    ns = [sec * 10**9 + nsec for sec, nsec in zip(times[:3], times[3:], strict=True)]
    return valid, ino, size, blocks, *ns, mode, nlink, uid, gid, rdev, blksize


def expected(fs, ino: int) -> tuple:
    i = fs.inodes.read(ino)
    valid = 0 if i.mode & 0o6000 or i.flags & L.FLAG_PREALLOC else 3600
    owner = i.mode, i.nlink, i.uid, i.gid
    return valid, ino, i.size, i.blocks * 8, i.atime, i.mtime, i.ctime, *owner, i.rdev, 4096


# -- one thing at a time --------------------------------------------------------------------


@pytest.fixture
def served(kit):
    return Served(kit.io())


@pytest.mark.parametrize("change", [
    {"mode": 0o4755}, {"uid": 7, "gid": 1 << 31}, {"atime": -1, "mtime": -(10**9)}, {"mtime": -(1 << 63)},
    {"atime": (1 << 63) - 1}, {"mtime": 1_999_999_999},
], ids=str)  # fmt: skip
def test_getattr(served, change):
    f = served.open(size=5000)
    attr.setattr(served.fs, f.ino, change)
    verdict, error, reply = f.getattr()
    assert (verdict, error) == ("done", 0) and attributes(reply) == expected(served.fs, f.ino)


def test_getattr_of_other_types_and_of_none(served):
    fs = served.fs
    made = [namespace.create(fs, 1, b"d", 0o40755, namespace.Creds(1, 2)),
            namespace.create(fs, 1, b"l", 0o120777, namespace.Creds(1, 2), target=b"there"),
            namespace.create(fs, 1, b"c", 0o20600, namespace.Creds(0, 0), rdev=0x12345)]
    served.limits()
    for ino in (1, *(inode.ino for inode in made)):
        assert attributes(served.feed(R.getattr_(ino))[2]) == expected(fs, ino)
    namespace.rmdir(fs, 1, b"d")
    fs.forget(made[0].ino, 1)
    assert served.feed(R.getattr_(made[0].ino)) == ("relay", 0, b""), "free: meta says ESTALE"
    served.server.getattr = False
    assert served.feed(R.getattr_(1)) == ("relay", 0, b"")


def test_getattr_while_metadata_are_stored(served):
    served.fs.region.table.begin_stores()
    assert served.feed(R.getattr_(1)) == ("relay", 0, b"")
    served.fs.region.table.end_stores()
    assert served.feed(R.getattr_(1))[0] == "done"


def test_reads(served):
    f = served.open(size=70_000)
    text = noise(70_000)
    for pos, size in ((0, 70_000), (0, 100_000), (69_999, 5), (70_000, 5), (1 << 40, 5), (4095, 2), (5, 0)):
        for pieces in (False, True):
            got = served.split(R.read(f.ino, f.fh, pos, size), by_pieces=pieces)
            assert got == ("done", 0, text[pos : pos + size]), (pos, size)
    assert served.fs.region.table.users == 0
    f.node.map.lock()  # no reply holds it any more
    f.node.map.unlock()


def test_reads_of_holes_in_pieces(served):
    """Data, holes and unwritten blocks, more of them than a reply may have pieces."""
    f = served.open()
    for page in range(0, 60, 2):
        served.io.write(f.node, page * PAGE, noise(PAGE, page + 1))
    served.io.fallocate(f.node, 0, 60 * PAGE, 20 * PAGE)
    served.fs.journal.settle()
    want = bytes(served.io.read(f.node, 0, 1 << 20))
    assert len(want) == 80 * PAGE and want.count(0) > 40 * PAGE
    for pos, size in ((0, 80 * PAGE), (1000, 5 * PAGE), (55 * PAGE + 1, 24 * PAGE), (62 * PAGE, 18 * PAGE)):
        assert f.read(pos, size, by_pieces=True) == ("done", 0, want[pos : pos + size])


@pytest.mark.parametrize("policy, atime, mtime, age, due", [
    ("relatime", 10, 10, 0, True), ("relatime", 11, 10, 0, False), ("relatime", 11, 10, DAY - 1, False),
    ("relatime", 11, 10, DAY, True), ("strictatime", 11, 10, 1, True), ("noatime", 10, 10, DAY, False),
    ("relatime", 9, 10, 0, True), ("relatime", (1 << 63) - 1, 10, 0, False),
    ("relatime", -(1 << 63), -(1 << 63), 0, True), ("relatime", 11, -(1 << 63), 0, False),
])  # fmt: skip
def test_access_time(served, policy, atime, mtime, age, due):
    """As attr.atime_due decides, whatever the times are."""
    fs, f = served.fs, served.open(size=100)
    fs.atime = policy
    served.limits()
    place = fs.inodes.place(f.ino)
    fs.region.store(place + 8, struct.pack("<qqq", atime, mtime, mtime))
    served.time = max(min(atime + age, (1 << 63) - 1), 0)
    assert attr.atime_due(fs, f.ino) == (due or (policy == "relatime" and served.time - atime >= DAY))
    due = attr.atime_due(fs, f.ino)
    assert f.read(0, 10)[:2] == ("done", 0)
    assert f.inode().atime == (served.time if due else atime)


def test_access_time_that_is_not_wanted(served):
    f = served.open(size=100)
    quiet = File(served, f.node, NOATIME)
    before = f.inode().atime
    served.time += DAY
    assert quiet.read(0, 10)[0] == "done" and f.inode().atime == before
    served.server.writes = False
    assert f.read(0, 10) == ("call", 0, b"") and f.inode().atime == before
    assert quiet.read(0, 10)[0] == "done", "nothing is due"
    served.server.writes = True
    attr.set_flags(served.fs, f.ino, L.FLAG_NOATIME)
    assert f.read(0, 10)[0] == "done" and f.inode().atime == before
    attr.set_flags(served.fs, f.ino, 0)
    assert f.read(0, 10)[0] == "done" and f.inode().atime == served.time


def test_what_a_write_leaves_to_the_metadata_thread(served):
    f = served.open(size=5000)
    fmap, ok = f.node.map, ("done", 0, struct.pack("<II", 5, 0))
    call = ("call", 0, b"")
    assert f.write(100, b"12345") == ok and f.write(4998, b"12345") == ok and f.inode().size == 5003
    assert f.write(6000, b"12345") == call, "a gap"
    assert f.write(8190, b"12345") == call, "no block"
    assert f.write((1 << 44) - 2, b"12345") == call, "EFBIG is meta's to say"
    assert f.write(0, b"") == call
    fmap.set_state(UNSETTLED)
    assert f.write(5000, b"12345") == call and f.write(0, b"12345") == ok, "grows or not"
    fmap.clear_state(UNSETTLED)
    fmap.clear_state(PLAIN)
    assert f.write(0, b"12345") == call
    fmap.set_state(PLAIN)
    served.server.writes = False
    assert f.write(0, b"12345") == call and f.fsync() == call and f.fallocate(0, 1) == call
    served.server.writes, served.server.nothing = True, True
    assert f.write(0, b"12345") == f.read(0, 5) == f.fsync() == call and f.getattr()[0] == "relay"
    served.server.nothing = False
    reader = File(served, f.node, DIRECT)
    assert reader.write(0, b"12345") == ("done", -errno.EBADF, b"")
    assert reader.write(0, b"12345", R.WRITE_CACHE) == ("done", -errno.EBADF, b"")
    assert reader.fallocate(0, 1) == ("done", -errno.EBADF, b"")


def test_dsync_with_a_record_to_settle(served):
    f = served.open(size=5000, flags=WRITE | DIRECT | DSYNC)
    assert f.write(0, b"12345")[0] == "done"
    f.node.map.set_state(UNSETTLED)
    assert f.write(0, b"12345") == ("call", 0, b"")


def test_a_file_whose_truncation_was_not_finished_is_written_elsewhere(served):
    f = served.open(size=5000)
    with served.fs.begin() as tx:
        tx.inode(f.ino).flags |= L.FLAG_TRUNCATING
    served.fs.journal.settle()
    attr.note_plain(served.fs, f.node)
    assert f.write(4999, b"12") == f.write(4999, b"1") == ("call", 0, b"")


def test_setuid_and_capabilities_are_taken_away_elsewhere(served):
    for change in (lambda ino: attr.setattr(served.fs, ino, {"mode": 0o4755}),
                   lambda ino: xattr.put(served.fs, ino, b"security.capability", b"x" * 20)):
        node = create(served.io, b"f%d" % served.fs.inodes.used)
        served.io.write(node, 0, b"12345")
        served.fs.journal.settle()
        served.limits()
        f = File(served, node, WRITE | DIRECT)
        assert f.write(0, b"1")[0] == "done"
        change(f.ino)
        served.fs.journal.settle()
        node.capability = None
        attr.note_plain(served.fs, node)
        assert f.write(0, b"1") == ("call", 0, b"") and f.fallocate(0, 1) == ("call", 0, b"")


def test_fallocate_over_what_is_there(served):
    f = served.open(size=5000)
    served.io.fallocate(f.node, KEEP_SIZE, 0, 20 * PAGE)  # blocks behind the end
    served.fs.journal.settle()
    attr.note_plain(served.fs, f.node)
    extents = f.node.map.extents()
    for pos, length, mode, verdict in (
        (0, 5000, 0, "done"), (4999, 1, 0, "done"), (4999, 2, 0, "call"), (0, 8192, KEEP_SIZE, "done"),
        (0, 8193, KEEP_SIZE, "call"), (100, 1, PUNCH, "call"), (0, 5000, ZERO, "call"), (0, 0, 0, "call"),
        (0, 1 << 44, KEEP_SIZE, "call"), (1 << 44, 1, KEEP_SIZE, "call"), (0, 10, 0x40, "call"),
    ):  # fmt: skip
        served.time += 1000
        before = f.inode()
        assert f.fallocate(pos, length, mode) == (verdict, 0, b""), (pos, length, mode)
        touched = served.time if verdict == "done" else before.mtime
        assert f.inode() == before._replace(mtime=touched, ctime=touched)
    assert f.node.map.extents() == extents
    f.node.map.set_state(UNSETTLED)
    assert f.fallocate(0, 5000) == ("call", 0, b""), "replay would bring older times back"


def test_fsync(served):
    """What it settles, and what it leaves."""
    f = served.open(size=5000)
    assert f.fsync() == ("done", 0, b"")
    served.io.write(f.node, 0, noise(9000))
    assert f.node.map.state & UNSETTLED and f.fsync() == ("call", 0, b"")
    served.io.fsync(f.node)
    assert f.fsync() == ("done", 0, b"")
    served.fs.lazytime = True
    served.limits()
    assert f.write(0, b"x")[0] == "done" and f.node.map.state & STALE_TIMES
    assert f.fsync() == ("done", 0, b"") and not f.node.map.state & STALE_TIMES


def test_fsyncdir(served):
    """The same of a directory: what its operations did is durable already, left are its times."""
    root = served.fs.open(1)
    fh = served.server.open(root.map, 1, DIRECTORY)
    fsyncdir = functools.partial(served.feed, R.fsync(1, fh, op="fsyncdir"))
    assert fsyncdir() == ("done", 0, b"")
    served.open(b"g")
    assert fsyncdir() == ("done", 0, b""), "opening settles"
    create(served.io, b"h")
    assert root.map.state & UNSETTLED and fsyncdir() == ("call", 0, b""), "replay has older times"
    served.fs.sync_inode(1)
    served.fs.lazytime = True
    attr.touch_read(served.fs, 1, directory=True)
    assert root.map.state & STALE_TIMES
    assert fsyncdir() == ("done", 0, b"") and not root.map.state & STALE_TIMES
    served.server.writes = False
    assert fsyncdir() == ("call", 0, b"")
    served.server.writes = True
    served.fs.region.kill()
    assert fsyncdir() == ("done", -errno.EIO, b"")
    assert served.feed(R.fsync(1, served.server.open(None, 1, DIRECTORY), op="fsyncdir")) == ("call", 0, b"")


def test_lseek(served):
    f = served.open()
    served.io.write(f.node, 3 * PAGE, noise(PAGE + 100))
    served.io.write(f.node, 9 * PAGE, noise(10))
    served.io.fallocate(f.node, 0, 5 * PAGE, PAGE)
    size = f.node.map.size
    inside = (0, 1, 3 * PAGE, 4 * PAGE + 1, 5 * PAGE, 5 * PAGE + 3, 9 * PAGE, size - 1)
    for offset in (*inside, size, size + 1, -1, 1 << 50):
        for whence in (DATA, HOLE):
            assert f.lseek(offset, whence) == sought(f.node, offset, whence), (offset, whence)
    assert f.lseek(7, 0) == 7 and f.lseek(-1, 0) == -errno.EINVAL
    assert f.lseek(-10, 2) == size - 10 and f.lseek(-size - 1, 2) == -errno.EINVAL
    assert f.lseek((1 << 63) - 1, 2) == -errno.EINVAL
    assert f.lseek(0, 1) == f.lseek(0, 5) == f.lseek(0, 1 << 31) == -errno.EINVAL
    file.truncate(served.fs, f.node, 1 << 44, 5)
    assert f.lseek(9 * PAGE + 5000, DATA) == -errno.ENXIO and f.lseek(10 * PAGE, HOLE) == 10 * PAGE
    empty = served.open(b"empty")
    assert empty.lseek(0, HOLE) == empty.lseek(0, DATA) == -errno.ENXIO


def test_a_dead_region_is_an_error(served):
    f = served.open(size=5000)
    served.fs.region.table.kill()
    error = ("done", -errno.EIO, b"")
    assert f.read(0, 5) == f.write(0, b"x") == f.fsync() == f.fallocate(0, 5) == error
    assert f.getattr() == ("relay", 0, b"")


def test_faults_are_told(served):
    """Page fills and write-backs, of direct handles too; not the reads and writes of programs."""
    f, faults = served.open(size=3 * PAGE), CachedFaults()
    served.server.set_fault_hook(faults)
    f.read(0, 2 * PAGE)
    f.write(0, b"x")
    assert faults.snapshot()["pages"] == {"read": 0, "write": 0, "cow": 0, "mkwrite": 0}
    f.read(0, 2 * PAGE, flags=0)
    f.write(PAGE, b"x" * PAGE, R.WRITE_CACHE)
    assert faults.snapshot()["pages"] == {"read": 2, "write": 1, "cow": 0, "mkwrite": 0}
    cached = File(served, f.node, WRITE)
    cached.read(0, PAGE)
    cached.write(0, b"x" * PAGE)
    cached.write(3 * PAGE, b"x" * PAGE)  # a call: counted there
    assert faults.snapshot()["pages"] == {"read": 3, "write": 2, "cow": 0, "mkwrite": 0}
    served.server.set_fault_hook(None)
    f.read(0, PAGE, flags=0)
    assert faults.snapshot()["pages"]["read"] == 3
