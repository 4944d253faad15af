# SPDX-License-Identifier: MIT
"""Directories against a dict: names of any bytes, positions that stay, space that is used again."""

import oracle
import pytest
import regions
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daxfs import layout as L
from daxfs.errors import CorruptError
from daxfs.meta import dir as directory
from daxfs.meta import extent
from daxfs.meta import namespace as ns
from daxfs.pfn import PAGE_SHIFT, PAGE_SIZE

ROOT = L.ROOT_INO

names = (
    st.binary(min_size=1, max_size=12)
    | st.sampled_from([b"x" * 255, b"y" * 254, b"z" * 200, b"\xff" * 100])
    | st.integers(0, 40).map(lambda n: b"%d" % n * 6)
).filter(lambda name: name not in (b".", b"..") and b"/" not in name and b"\0" not in name)


def listing(fs, ino: int, step: int | None = None) -> list:
    """All entries, asked for *step* at a time."""
    out, cookie = [], 0
    while True:
        count = 0
        for name, child, kind, after in ns.readdir(fs, ino, cookie):
            out.append((name, child, kind))
            cookie, count = after, count + 1
            if count == step:
                break
        if not step or not count:
            return out


class DirectoryMachine(RuleBasedStateMachine):
    """Two directories, {name: ino}; a reader with a cookie walks the first one meanwhile."""

    @initialize(crowd=st.sampled_from([0, 0, 150, 400]))
    def start(self, crowd):
        self.maker = regions.Maker()
        self.fs = fs = self.maker.make(inodes=8000)
        self.dirs = [ns.create(fs, ROOT, name, 0o040755, ns.ROOT).ino for name in (b"one", b"two")]
        self.model = [{}, {}]
        self.reading = None
        for n in range(crowd):
            self._create(0, b"crowd%d" % n)

    def teardown(self):
        if hasattr(self, "maker"):
            for where, names in enumerate(self.model):
                for name in list(names):
                    self._remove(where, name)
            oracle.check(self.fs)
            self.maker.close()

    def _create(self, where, name):
        self.model[where][name] = ns.create(self.fs, self.dirs[where], name, 0o100644, ns.ROOT).ino

    def _gone(self, where, name):
        if where == 0 and self.reading:
            self.reading["must"].discard(name)

    def _remove(self, where, name):
        ns.unlink(self.fs, self.dirs[where], name)
        del self.model[where][name]
        self._gone(where, name)

    @rule(where=st.integers(0, 1), name=names)
    def create_or_unlink(self, where, name):
        if name in self.model[where]:
            self._remove(where, name)
        else:
            self._create(where, name)

    @rule(where=st.integers(0, 1), count=st.integers(1, 120), part=st.integers(1, 5))
    def remove_many(self, where, count, part):
        for name in sorted(self.model[where])[::part][:count]:
            self._remove(where, name)

    @rule(where=st.integers(0, 1), count=st.integers(1, 60), size=st.integers(0, 240))
    def create_many(self, where, count, size):
        for n in range(count):
            name = b"m%d" % n + b"-" * size
            if name not in self.model[where]:
                self._create(where, name)

    @rule(where=st.integers(0, 1), name=names)
    def link(self, where, name):
        other = next(iter(self.model[1 - where].values()), None)
        if other is not None and name not in self.model[where]:
            ns.link(self.fs, other, self.dirs[where], name)
            self.model[where][name] = other

    @precondition(lambda self: hasattr(self, "model") and self.model[0])
    @rule(pick=st.integers(0, 999), where=st.integers(0, 1), name=names)
    def rename(self, pick, where, name):
        old = sorted(self.model[0])[pick % len(self.model[0])]
        ino = self.model[0][old]
        ns.rename(self.fs, self.dirs[0], old, self.dirs[where], name)
        if self.model[where].get(name) == ino:
            return
        if name in self.model[where]:
            pass  # replaced in place: a reader may or may not have seen it
        del self.model[0][old]
        self._gone(0, old)
        self.model[where][name] = ino

    @precondition(lambda self: hasattr(self, "model") and self.model[0] and self.model[1])
    @rule(pick=st.integers(0, 999))
    def exchange(self, pick):
        left = sorted(self.model[0])[pick % len(self.model[0])]
        right = sorted(self.model[1])[pick % len(self.model[1])]
        ns.rename(self.fs, self.dirs[0], left, self.dirs[1], right, ns.RENAME_EXCHANGE)
        one, two = self.model
        one[left], two[right] = two[right], one[left]

    @rule(step=st.integers(1, 50))
    def read_on(self, step):
        """Go on reading: no name twice, and none left out that was there all the time."""
        if self.reading is None:
            self.reading = {"cookie": 0, "seen": set(), "must": set(self.model[0])}
        state, count = self.reading, 0
        for name, _, _, after in ns.readdir(self.fs, self.dirs[0], state["cookie"]):
            if name in state["must"]:
                assert name not in state["seen"], f"{name!r} a second time"
            state["seen"].add(name)
            state["cookie"], count = after, count + 1
            if count == step:
                return
        assert state["must"] <= state["seen"], state["must"] - state["seen"]
        self.reading = None

    @rule()
    def crash(self):
        self.maker.fsck(self.fs)
        copy = self.maker.crash_copy(self.fs)
        oracle.check(copy)
        assert {n: i for n, i, _ in listing(copy, self.dirs[0])[2:]} == self.model[0]
        self.maker.drop(copy)

    @invariant()
    def same(self):
        if not hasattr(self, "maker"):
            return
        for ino, model in zip(self.dirs, self.model, strict=True):
            entries = listing(self.fs, ino)
            assert [e[0] for e in entries[:2]] == [b".", b".."]
            assert {name: child for name, child, _ in entries[2:]} == model
            assert len(entries) == len(model) + 2
            fresh = extent.load(self.fs, self.fs.inodes.check(ino))
            assert oracle.index_view(self.fs, fresh) == oracle.index_view(self.fs, self.fs.node(ino))


TestDirectoryMachine = DirectoryMachine.TestCase
TestDirectoryMachine.settings = settings(max_examples=20, stateful_step_count=25)


def make_dir(fs, name=b"d"):
    return ns.create(fs, ROOT, name, 0o040755, ns.ROOT).ino


def fill(fs, ino, count, form=b"name-%05d"):
    for n in range(count):
        ns.create(fs, ino, form % n, 0o100644, ns.ROOT)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 254, 255])
def test_names_of_any_length_and_bytes(small_fs, length):
    fs, ino = small_fs, make_dir(small_fs)
    made = {}
    for byte in set(range(1, 256)) - set(b"/."):
        name = bytes([byte]) * length
        made[name] = ns.create(fs, ino, name, 0o100644, ns.ROOT).ino
    assert {n: i for n, i, _ in listing(fs, ino, 7)[2:]} == made
    for name, child in made.items():
        assert ns.lookup(fs, ino, name).ino == child
    oracle.check(fs)


def test_free_space_is_used_again(small_fs):
    """Names that come and go, always as many of them: the directory does not grow."""
    fs, ino = small_fs, make_dir(small_fs)
    fill(fs, ino, 500)
    size = fs.inodes.read(ino).size
    for lap in range(3):
        for n in range(0, 500, 2):
            ns.unlink(fs, ino, b"name-%05d" % n)
        for n in range(0, 500, 2):
            ns.create(fs, ino, b"name-%05d" % n, 0o100644, ns.ROOT)
        assert fs.inodes.read(ino).size == size, lap
    oracle.check(fs)


def test_shrinks_when_the_last_name_goes(small_fs):
    fs, ino = small_fs, make_dir(small_fs)
    free = fs.alloc.free_pages + fs.alloc.held
    fill(fs, ino, 600)
    assert fs.inodes.read(ino).size > 4 * PAGE_SIZE
    for n in range(600):
        ns.unlink(fs, ino, b"name-%05d" % n)
    assert fs.inodes.read(ino).size == PAGE_SIZE and fs.inodes.read(ino).blocks == 1
    assert fs.alloc.free_pages + fs.alloc.held == free - 1
    fill(fs, ino, 3)
    oracle.check(fs)


def test_cost_of_a_name_does_not_grow(small_fs):
    """The journal record of a create is as large at 2,000 names as at 100."""
    fs, ino, sizes = small_fs, make_dir(small_fs), []
    for start in (100, 790):
        fill(fs, ino, 50, b"%d-%%05d" % start)
        before = fs.journal.bytes
        ns.create(fs, ino, b"one-%05d" % start, 0o100644, ns.ROOT)
        sizes.append(fs.journal.bytes - before)
        fill(fs, ino, 300, b"more-%d-%%05d" % start)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("rec_len, name_len", [(8, 0), (0, 0), (20, 4), (4096, 1), (24, 20)])
def test_damaged_records_are_refused(small_fs, rec_len, name_len):
    fs, ino = small_fs, make_dir(small_fs)
    fill(fs, ino, 3)
    pfn = extent.page_offset(fs, fs.node(ino), 0) >> PAGE_SHIFT
    block = bytearray(fs.mem[pfn << PAGE_SHIFT : (pfn + 1) << PAGE_SHIFT])
    L.DIRENT_CODEC.pack_into(block, L.BLOCK_SIZE, 5, rec_len, name_len, 8)
    fs.region.store(pfn << PAGE_SHIFT, L.sealed(block, 4, fs.seed))
    with pytest.raises(CorruptError):
        directory.index_of(fs, extent.load(fs, fs.inodes.read(ino)))


def test_swapped_and_foreign_blocks_are_refused(small_fs):
    fs, one, two = small_fs, make_dir(small_fs, b"one"), make_dir(small_fs, b"two")
    fill(fs, one, 200)
    fill(fs, two, 3)
    places = [extent.page_offset(fs, fs.node(i), p) for i, p in ((one, 0), (one, 1), (two, 0))]
    blocks = [bytes(fs.mem[place : place + PAGE_SIZE]) for place in places]
    for left, right in ((0, 1), (0, 2)):
        fs.region.store(places[left], blocks[right])
        with pytest.raises(CorruptError):
            directory.index_of(fs, extent.load(fs, fs.inodes.read(one)))
        fs.region.store(places[left], blocks[left])
    assert len(directory.index_of(fs, extent.load(fs, fs.inodes.read(one))).names) == 200
