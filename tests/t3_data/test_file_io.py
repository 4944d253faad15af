# SPDX-License-Identifier: MIT
"""FileIo over a real file system in this process: against a model, at the limits, when space runs out."""

import errno

import pytest
from datakit import MIB, PAGE, Kit, create, find, noise, reopen
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from daxfs import layout as L
from daxfs._iomap import MAPPED
from daxfs.meta import attr, file, namespace
from daxfs.meta.fallocate import KEEP_SIZE, MODES, PUNCH_HOLE, ZERO_RANGE

NAMES = (b"a", b"b", b"c")
NOISE = noise(1 << 18, 3)


class Model:
    """What a file must read as: pages that have blocks (zero where they are unwritten), and a size."""

    def __init__(self):
        self.size, self.pages = 0, {}

    def write(self, pos: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            page, offset = divmod(pos + at, PAGE)
            piece = data[at : at + PAGE - offset]
            self.pages.setdefault(page, bytearray(PAGE))[offset : offset + len(piece)] = piece
            at += len(piece)
        self.size = max(self.size, pos + len(data))

    def truncate(self, size: int) -> None:
        last, offset = divmod(size, PAGE)
        if size <= self.size:  # growing keeps what fallocate put behind the end
            for page in [p for p in self.pages if p > last or (p == last and not offset)]:
                del self.pages[page]
        if last in self.pages and size < self.size:
            self.pages[last][offset:] = bytes(PAGE - offset)
        self.size = size

    def fallocate(self, mode: int, pos: int, length: int) -> None:
        end = pos + length
        for page in range(pos // PAGE, (end + PAGE - 1) // PAGE):
            low, high = max(pos - page * PAGE, 0), min(end - page * PAGE, PAGE)
            if mode & PUNCH_HOLE and high - low == PAGE:
                self.pages.pop(page, None)
            elif mode & PUNCH_HOLE and page in self.pages:
                self.pages[page][low:high] = bytes(high - low)
            elif not mode & PUNCH_HOLE:
                self.pages.setdefault(page, bytearray(PAGE))
                if mode & ZERO_RANGE:
                    self.pages[page][low:high] = bytes(high - low)
        if not mode & KEEP_SIZE:
            self.size = max(self.size, end)

    def read(self, pos: int, length: int) -> bytes:
        end = min(pos + length, self.size)
        out = bytearray()
        while pos < end:
            page, offset = divmod(pos, PAGE)
            step = min(PAGE - offset, end - pos)
            out += self.pages[page][offset : offset + step] if page in self.pages else bytes(step)
            pos += step
        return bytes(out)


# Places where things happen: around page and 2 MiB edges, near the start, and far out (sparse).
near = st.builds(
    lambda page, delta: max(page * PAGE + delta, 0), st.integers(0, 30),
    st.sampled_from([0, 1, 63, 64, 100, 4000, -1, -64]),
)
far = st.sampled_from([2 * MIB - 5000, 2 * MIB, 3 * MIB + 17, 1 << 32, (1 << 44) - 5000])
places = st.one_of(near, near, near, far)
lengths = st.one_of(
    st.integers(1, 300), st.integers(1, 5000), st.sampled_from([PAGE, 3 * PAGE, 20000, 100_000])
)


def preallocated(io, node) -> int:
    """Written pages behind the end of a file: there are some only with the flag."""
    end, behind = -(-node.map.size // PAGE), 0
    for pgoff, pages, _, kind, _ in node.map.extents():
        extra = pgoff + pages - max(pgoff, end)
        if kind == MAPPED and extra > 0:
            behind += extra
    assert not behind or io.fs.inodes.read(node.ino).flags == L.FLAG_PREALLOC
    assert not behind or (node.ino in io.fs.preallocated and node.opens)
    return behind


class Files(RuleBasedStateMachine):
    """A few files, with what a program does to them, a remount and a kill in between."""

    write, drain, map_kind = "nt", "write", "mem"

    pool = False

    def __init__(self):
        super().__init__()
        self.kit = Kit(self.pool)
        self.io = self.kit.io(self.write, self.drain, map_kind=self.map_kind)
        self.nodes = {name: create(self.io, name) for name in NAMES}
        self.models = {name: Model() for name in NAMES}

    def teardown(self):
        self.kit.close()

    names = st.sampled_from(NAMES)

    @precondition(lambda self: sum(len(m.pages) for m in self.models.values()) < 2000)
    @rule(name=names, pos=places, length=lengths, skew=st.integers(0, 999))
    def pwrite(self, name, pos, length, skew):
        data = NOISE[skew : skew + min(length, L.MAX_FILE_SIZE - pos)]
        assert self.io.write(self.nodes[name], pos, data) == len(data)
        self.models[name].write(pos, data)
        self.look(name, max(pos - 100, 0), length + 200)

    @rule(name=names, length=lengths)
    def append(self, name, length):
        if self.models[name].size < L.MAX_FILE_SIZE:
            self.pwrite(name, self.models[name].size, min(length, 9000), 7)

    @rule(name=names, length=st.integers(1, 9000), count=st.integers(2, 9))
    def append_a_stream(self, name, length, count):
        """Long enough that a chunk is preallocated, and used up in part or wholly."""
        for _ in range(count):
            if self.models[name].size + length < L.MAX_FILE_SIZE:
                self.append(name, length)

    @rule(name=names, pos=places, length=lengths)
    def look(self, name, pos, length):
        got = self.io.read(self.nodes[name], pos, length)
        assert bytes(got) == self.models[name].read(pos, length)

    @rule(name=names, size=st.one_of(places, st.just(0)))
    def truncate(self, name, size):
        attr.setattr(self.io.fs, self.nodes[name].ino, {"size": size})
        self.models[name].truncate(size)
        self.look(name, max(size - 5000, 0), 10000)

    @rule(name=names, delta=st.integers(1, 9000), back=st.integers(0, 9000))
    def shrink_and_grow(self, name, delta, back):
        size = self.models[name].size
        self.truncate(name, max(size - delta, 0))
        self.truncate(name, min(max(size - delta, 0) + back, L.MAX_FILE_SIZE))

    @precondition(lambda self: sum(len(m.pages) for m in self.models.values()) < 2000)
    @rule(name=names, mode=st.sampled_from(MODES), pos=places, length=lengths)
    def fallocate(self, name, mode, pos, length):
        length = min(length, L.MAX_FILE_SIZE - pos)
        self.io.fallocate(self.nodes[name], mode, pos, length)
        self.models[name].fallocate(mode, pos, length)
        self.look(name, max(pos - 5000, 0), length + 10000)
        dirty = self.nodes[name].map.dirty
        first, last = (pos + PAGE - 1) // PAGE, (pos + length) // PAGE
        if mode & (PUNCH_HOLE | ZERO_RANGE) and first < last:
            assert dirty.count_range(first, last - first) == 0

    @rule(name=names, delta=st.integers(0, 9000), length=lengths, mode=st.sampled_from(MODES))
    def fallocate_around_the_end(self, name, delta, length, mode):
        pos = max(self.models[name].size - delta, 0)
        if pos < L.MAX_FILE_SIZE:
            self.fallocate(name, mode, pos, length)

    @rule(name=names)
    def fsync(self, name):
        node = self.nodes[name]
        assert self.io.fsync(node) >= 0
        assert self.io.tracker.dirty_pages(node.map) == 0
        assert self.io.fsync(node) == 0

    @rule(name=names)
    def close_and_open(self, name):
        node = self.nodes[name]
        self.io.release(node)
        assert node.map.dirty.count == 0, "the last close left dirty pages behind"
        self.nodes[name] = reopen(self.io, node.ino)

    @rule(name=names)
    def unlink_and_create(self, name):
        namespace.unlink(self.io.fs, 1, name)
        self.look(name, 0, 5000)  # still open
        self.io.release(self.nodes[name])
        self.nodes[name] = create(self.io, name)
        self.models[name] = Model()

    @rule(kill=st.booleans())
    def remount(self, kill):
        if kill:
            io = self.kit.crashed(self.io)
            self.kit.drop(self.io.fs)
            self.io = type(io)(io.fs, write=self.write, drain=self.drain)
        else:
            for node in self.nodes.values():
                self.io.release(node)
            self.io = self.kit.remount(self.io)
        self.kit.fsck(self.io.fs)
        self.nodes = {name: find(self.io, name) for name in NAMES}
        for name in NAMES:
            self.look(name, 0, 150_000)

    @invariant()
    def sizes_and_blocks(self):
        for name, node in self.nodes.items():
            inode, model = self.io.fs.inodes.read(node.ino), self.models[name]
            assert inode.size == node.map.size == model.size
            behind = preallocated(self.io, node)
            assert inode.blocks == len(model.pages) + len(node.blocks) + behind
            assert node.map.pages == len(model.pages) + behind

    @invariant()
    def nothing_leaks(self):
        fs = self.io.fs
        used = sum(fs.inodes.read(n.ino).blocks for n in self.nodes.values()) + 1  # and the root's block
        assert fs.statfs()["blocks"] - fs.statfs()["bfree"] == used
        assert fs.region.table.users == 0

    @invariant()
    def nt_leaves_nothing_dirty(self):
        if self.write == "nt":
            assert all(node.map.dirty.count == 0 for node in self.nodes.values())


@pytest.mark.parametrize("map_kind", ["mem", "dev"])
@pytest.mark.parametrize("drain", ["write", "fsync"])
@pytest.mark.parametrize("write", ["nt", "cached"])
def test_machine(write, drain, map_kind):
    machine = type("Files", (Files,), {"write": write, "drain": drain, "map_kind": map_kind})
    few = settings(max_examples=25, stateful_step_count=40, deadline=None)
    machine.TestCase.settings = few
    case = machine.TestCase()
    case.runTest()


# -- one thing at a time --------------------------------------------------------------------


@pytest.fixture(params=["nt", "cached"])
def io(request, kit):
    return kit.io(request.param)


def content(io, node) -> bytes:
    return bytes(io.read(node, 0, 1 << 24))


def test_shrink_then_grow_reads_zeros(io):
    node = create(io, b"f")
    for low, high in ((100, 5000), (4096, 4097), (1, 4096), (5000, 5001), (0, 9000)):
        io.write(node, 0, noise(3 * PAGE))
        file.truncate(io.fs, node, low, 5)
        file.truncate(io.fs, node, high, 6)
        assert content(io, node) == noise(3 * PAGE)[:low] + bytes(high - low), (low, high)


def test_write_beyond_the_end_leaves_zeros_between(io):
    node = create(io, b"f")
    io.write(node, 0, noise(PAGE))
    file.truncate(io.fs, node, 50, 5)  # what stood behind byte 50 is still in the block
    io.write(node, 60, b"same page")
    assert content(io, node) == noise(PAGE)[:50] + bytes(10) + b"same page"
    io.write(node, 5 * PAGE + 7, b"x")
    want = (noise(PAGE)[:50] + bytes(10) + b"same page").ljust(5 * PAGE + 7, b"\0") + b"x"
    assert content(io, node) == want
    assert io.fs.inodes.read(node.ino).blocks == 2


def test_nt_and_cached_write_read_and_count(kit):
    io = kit.io("cached")
    node = create(io, b"f")
    io.write(node, 0, noise(2 * PAGE))
    assert node.map.dirty.count == 0, "new blocks are stored past the cache"
    io.write(node, 10, b"over")
    assert node.map.dirty.count == 1 and io.snapshot()["dirty_bytes"] == PAGE
    io.write(node, 2 * PAGE - 2, b"over and beyond")
    assert node.map.dirty.count == 2
    assert io.fsync(node) == 2 and io.snapshot()["flushed_bytes"] == 2 * PAGE
    assert io.snapshot()["dirty_bytes"] == 0


def test_truncated_pages_are_dirty_no_longer(kit):
    io = kit.io("cached")
    node = create(io, b"f")
    io.write(node, 0, noise(20 * PAGE))
    io.write(node, 0, noise(20 * PAGE))
    assert node.map.dirty.count == 20
    file.truncate(io.fs, node, 3 * PAGE + 1, 5)
    assert node.map.dirty.count == 4
    assert io.fsync(node) == 4


def test_short_write_then_enospc_then_unlink_gives_all_back(io):
    fs = io.fs
    before = fs.statfs()["bfree"]
    keep, node = create(io, b"keep"), create(io, b"f")
    io.write(keep, 0, b"keep me" * 1000)
    data, written, returns = noise(300_001), 0, []
    with pytest.raises(OSError) as caught:
        while True:
            returns.append(io.write(node, written, data))
            written += returns[-1]
    assert caught.value.errno == errno.ENOSPC
    assert returns[-1] < len(data) and set(returns[:-1]) == {len(data)}, "a short write comes before ENOSPC"
    assert fs.inodes.read(node.ino).size == written
    copies = written // len(data) + 1
    assert bytes(io.read(node, 0, 1 << 30)) == (data * copies)[:written]
    assert io.write(node, 0, b"over") == 4, "what is there can be written over"
    with pytest.raises(OSError):
        io.write(keep, 1 << 20, b"x")
    assert bytes(io.read(keep, 0, 9999)) == b"keep me" * 1000
    namespace.unlink(fs, 1, b"f")
    io.release(node)
    assert fs.statfs()["bfree"] == before - 2
    assert io.write(keep, 1 << 20, data) == len(data)


def test_enospc_in_pieces(io):
    """Every second page free: a large write takes thousands of extents, extent blocks with them."""
    fs, holes = io.fs, create(io, b"holes")
    filler, at = create(io, b"filler"), 0
    for _ in range(700):
        io.write(holes, at, b"h" * PAGE)
        io.write(filler, at, b"f" * PAGE)
        at += 2 * PAGE
    free = fs.statfs()["bfree"]
    big, total = create(io, b"big"), 0
    namespace.unlink(fs, 1, b"holes")
    io.release(holes)
    assert fs.statfs()["bfree"] >= free + 700
    with pytest.raises(OSError) as caught:
        while True:
            total += io.write(big, total, noise(1 << 20))
    assert caught.value.errno == errno.ENOSPC
    assert fs.inodes.read(big.ino).size == total
    assert bytes(io.read(big, total - 5000, 9999)) == (noise(1 << 20) * 20)[total - 5000 : total]
    assert len(big.map) + len(big.blocks) >= 700, "each hole is an extent or holds extents"
    for n in range(0, 700, 100):
        assert bytes(io.read(filler, 2 * n * PAGE, PAGE)) == b"f" * PAGE


def test_efbig(io):
    node, top = create(io, b"f"), L.MAX_FILE_SIZE
    for pos in (top, top + 1, 2**62):
        with pytest.raises(OSError) as caught:
            io.write(node, pos, b"x")
        assert caught.value.errno == errno.EFBIG
    assert node.map.size == 0
    assert io.write(node, top - 10, b"0123456789abcdef") == 10, "as much as fits"
    assert bytes(io.read(node, top - 12, 100)) == b"\0\x000123456789" and node.map.size == top
    with pytest.raises(OSError) as caught:
        file.truncate(io.fs, node, top + 1, 5)
    assert caught.value.errno == errno.EFBIG


def test_erofs_changes_nothing(io):
    node, fs = create(io, b"f"), io.fs
    io.write(node, 0, noise(PAGE))
    file.truncate(fs, node, 1000, 5)
    io.fsync(node)
    before = fs.region.array.copy()
    fs.readonly = True  # as a remount does
    for call in (
        lambda: io.write(node, 0, b"over"),
        lambda: io.write(node, 900, b"x" * 500),
        lambda: io.write(node, 9000, b"x"),
        lambda: file.truncate(fs, node, 10, 5),
        lambda: file.truncate(fs, node, 2000, 5),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EROFS
    assert bytes(io.read(node, 0, 5000)) == noise(PAGE)[:1000]
    io.fsync(node)
    io.release(node)
    assert (fs.region.array == before).all()


def test_failed_write_gives_its_pages_back(io):
    """The region is killed; the first write only has pages to fill, the second one a tail to zero before."""
    node, fs = create(io, b"f"), io.fs
    io.write(node, 0, noise(100))
    free = fs.alloc.free_pages
    fs.region.kill()
    for pos in (100, 5 * PAGE):
        with pytest.raises(OSError) as caught:
            io.write(node, pos, b"x" * 50_000)
        assert caught.value.errno == errno.EIO
        assert fs.alloc.free_pages == free and node.map.size == 100 and len(node.map) == 1


def test_empty_write_and_reads_at_the_end(io):
    node = create(io, b"f")
    assert io.write(node, 10, b"") == 0 and node.map.size == 0
    assert bytes(io.read(node, 0, 10)) == b""
    io.write(node, 0, b"abc")
    assert bytes(io.read(node, 2, 10)) == b"c" and bytes(io.read(node, 3, 10)) == b""


def test_memoryview_and_bytearray_are_written(io):
    node = create(io, b"f")
    io.write(node, 0, bytearray(b"12345"))
    io.write(node, 5, memoryview(b"__67890__")[2:7])
    assert content(io, node) == b"1234567890"
