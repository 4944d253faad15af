# SPDX-License-Identifier: MIT
"""Extents through real transactions against a dict page -> (pfn, type).

Fragmented on purpose, so that extents spill into chains of extent blocks.
"""

import random
from types import SimpleNamespace

import oracle
import pytest
import regions
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from daxfs import layout as L
from daxfs.errors import CorruptError, DaxfsError
from daxfs.meta import attr, extent
from daxfs.meta import namespace as ns
from daxfs.pfn import PAGE_SHIFT, PAGE_SIZE

SPAN = 3000


def new_file(fs, name=b"file"):
    """A new file's Node, held open."""
    return fs.open(ns.create(fs, L.ROOT_INO, name, 0o100644, ns.ROOT).ino)


def loaded(fs, node):
    """A fresh Node from the media."""
    return extent.load(fs, fs.inodes.check(node.ino))


def pages_of(node) -> dict:
    return {
        pgoff + i: (pfn + i, kind)
        for pgoff, length, pfn, kind, _ in node.map.extents()
        for i in range(length)
    }


def put(fs, node, pgoffs, kind=extent.MAPPED) -> None:
    """Give each of *pgoffs* (sorted) a page of its own, one transaction for each run."""
    for pgoff in pgoffs:
        with fs.begin() as tx:
            ((pfn, _),) = tx.alloc(1)
            tx.free(extent.replace(tx, tx.inode(node.ino), node, pgoff, pgoff + 1, [(pgoff, 1, pfn, kind)]))


class ExtentMachine(RuleBasedStateMachine):
    """replace and clear with pieces of any shape."""

    @initialize(start=st.sampled_from([0, 5, 7, 300, 600]), seed=st.integers(0, 999))
    def start(self, start, seed):
        self.maker = regions.Maker()
        self.fs = self.maker.make()
        self.node = new_file(self.fs)
        attr.setattr(self.fs, self.node.ino, {"size": (SPAN + 100) * PAGE_SIZE})
        self.empty = self.fs.alloc.free_pages + self.fs.alloc.held
        self.rng = random.Random(seed)
        self.model = {}
        pgoffs = sorted(self.rng.sample(range(0, SPAN, 2), start))
        put(self.fs, self.node, pgoffs, extent.UNWRITTEN)
        self.model = pages_of(self.node)
        assert sorted(self.model) == pgoffs and len(self.node.map) == start

    def teardown(self):
        if hasattr(self, "maker"):
            self.maker.close()

    def _replace(self, first, last, kinds, abort=False):
        """Pieces of these kinds side by side over [first, last); HOLE leaves one out."""
        fs, node, pieces, new = self.fs, self.node, [], {}
        step = max((last - first) // len(kinds), 1)
        tx = fs.begin()
        for n, kind in enumerate(kinds):
            at, end = first + n * step, last if n == len(kinds) - 1 else min(first + (n + 1) * step, last)
            if at >= end or kind == extent.HOLE:
                continue
            for pfn, got in tx.alloc(end - at, at, self.rng.choice((None, 0))):
                pieces.append((at, got, pfn, kind))
                new.update({at + i: (pfn + i, kind) for i in range(got)})
                at += got
        tx.free(extent.replace(tx, tx.inode(node.ino), node, first, last, pieces))
        if abort:
            tx.abort()
            return
        tx.commit()
        self.model = {p: v for p, v in self.model.items() if not first <= p < last} | new

    @rule(
        first=st.integers(0, SPAN),
        length=st.integers(1, 60),
        kinds=st.lists(
            st.sampled_from([extent.HOLE, extent.UNWRITTEN, extent.MAPPED]), min_size=1, max_size=6
        ),
        abort=st.booleans(),
    )
    def replace(self, first, length, kinds, abort):
        self._replace(first, first + length, kinds, abort)

    @rule(first=st.integers(0, SPAN), length=st.integers(1, 40))
    def written(self, first, length):
        """Unwritten pages become written in place: nothing is freed."""
        fs, node, last = self.fs, self.node, first + length
        pieces = [
            (pgoff, n, pfn, extent.MAPPED)
            for pgoff, n, pfn, kind in extent.holes(node, first, last)
            if kind != extent.HOLE
        ]
        with fs.begin() as tx:
            assert extent.replace(tx, tx.inode(node.ino), node, first, last, pieces) == []
        for page in range(first, last):
            if page in self.model:
                self.model[page] = (self.model[page][0], extent.MAPPED)

    @rule(seed=st.integers(0, 1 << 30), count=st.integers(1, 200))
    def scatter(self, seed, count):
        """Many single pages."""
        pgoffs = sorted(random.Random(seed).sample(range(SPAN), count))
        put(self.fs, self.node, pgoffs)
        mine = pages_of(self.node)
        assert all(mine[p][1] == extent.MAPPED for p in pgoffs)
        self.model.update({p: mine[p] for p in pgoffs})

    @rule(first=st.integers(0, SPAN))
    def cut(self, first):
        with self.fs.begin() as tx:
            edit = tx.inode(self.node.ino)
            tx.free(extent.replace(tx, edit, self.node, first, extent.MAX_PGOFF, []))
        self.model = {p: v for p, v in self.model.items() if p < first}

    @rule()
    def clear(self):
        with self.fs.begin() as tx:
            extent.clear(tx, tx.inode(self.node.ino), self.node)
        self.model = {}
        assert self.fs.alloc.free_pages + self.fs.alloc.held == self.empty
        assert self.fs.inodes.read(self.node.ino).blocks == 0

    @rule()
    def crash(self):
        self.maker.fsck(self.fs)
        copy = self.maker.crash_copy(self.fs)
        assert pages_of(loaded(copy, self.node)) == self.model
        oracle.check(copy)
        self.maker.drop(copy)

    @invariant()
    def same_on_media(self):
        if not hasattr(self, "maker"):
            return
        assert pages_of(self.node) == self.model
        fresh = loaded(self.fs, self.node)
        assert fresh.map.extents() == self.node.map.extents()
        assert fresh.blocks == self.node.blocks and set(fresh.free_slots) == set(self.node.free_slots)
        inode = self.fs.inodes.read(self.node.ino)
        assert inode.nextents == len(fresh.map) and inode.blocks == len(self.model) + len(fresh.blocks)
        oracle.check(self.fs)


TestExtentMachine = ExtentMachine.TestCase
TestExtentMachine.settings = settings(max_examples=25, stateful_step_count=15)


def test_chain_of_extent_blocks(small_fs, crash_copy):
    fs, node = small_fs, new_file(small_fs)
    put(fs, node, range(0, 1400, 2))
    assert len(node.blocks) == 3 and len(node.map) == 700
    assert loaded(crash_copy(fs), node).map.extents() == node.map.extents()
    oracle.check(fs)
    fs.release(node)
    ns.unlink(fs, L.ROOT_INO, b"file")
    oracle.check(fs, closed=True)


def test_neighbours_become_one_extent(small_fs):
    fs, node = small_fs, new_file(small_fs)
    with fs.begin() as tx:
        ((pfn, _),) = tx.alloc(30)
        edit = tx.inode(node.ino)
        extent.replace(tx, edit, node, 0, 10, [(0, 10, pfn, extent.MAPPED)])
    for first, last in ((20, 30), (10, 20)):
        with fs.begin() as tx:
            piece = (first, last - first, pfn + first, extent.MAPPED)
            extent.replace(tx, tx.inode(node.ino), node, first, last, [piece])
    assert [e[:4] for e in node.map.extents()] == [(0, 30, pfn, extent.MAPPED)]
    oracle.check(fs)


def test_a_change_costs_its_own_slots_however_fragmented(small_fs):
    """The record for one more extent is no larger with 700 extents than with 20."""
    fs, node, sizes = small_fs, new_file(small_fs), []
    for start, stop in ((0, 40), (40, 1400)):
        put(fs, node, range(start, stop, 2))
        before = fs.journal.bytes
        put(fs, node, [2000 + start])
        sizes.append(fs.journal.bytes - before)
    assert sizes[1] <= sizes[0] + 64


def test_enospc_in_the_middle_gives_everything_back(small_fs):
    """An extent block can't be had for the seventh extent."""
    fs, node = small_fs, new_file(small_fs)
    put(fs, node, range(0, 12, 2))
    with fs.begin() as tx:
        tx.alloc(fs.alloc.free_pages + fs.alloc.held - 1)
        before, extents, slots = fs.alloc.free_pages, node.map.extents(), list(node.free_slots)
        with pytest.raises(DaxfsError):
            put(fs, node, [100])
        assert fs.alloc.free_pages == before and node.map.extents() == extents and node.free_slots == slots
        tx.abort()
    oracle.check(fs)


def _damage(fs, place: int, data: bytes) -> None:
    fs.region.store(place, data)


def test_damaged_chains_are_refused(small_fs):
    fs, node = small_fs, new_file(small_fs)
    put(fs, node, range(0, 1400, 2))
    first, second = node.blocks[:2]
    for pfn, offset, data in (
        (first, L.BLOCK_FIELDS.offset["next"], L.WORD.pack(first)),
        (second, 2048, b"\xff" * 8),
        (second, L.BLOCK_FIELDS.offset["owner"], L.WORD.pack(99)),
        (first, 0, bytes(4)),
    ):
        place = (pfn << PAGE_SHIFT) + offset
        good = bytes(fs.mem[place : place + len(data)])
        _damage(fs, place, data)
        with pytest.raises(CorruptError):
            loaded(fs, node)
        _damage(fs, place, good)
    swapped = [bytes(fs.mem[p << PAGE_SHIFT : (p + 1) << PAGE_SHIFT]) for p in (first, second)]
    _damage(fs, first << PAGE_SHIFT, swapped[1])
    _damage(fs, second << PAGE_SHIFT, swapped[0])
    with pytest.raises(CorruptError):
        loaded(fs, node)


@pytest.mark.parametrize("pfn, length", [(0, 1), (1 << 40, 1), (512, 1 << 31)])
def test_extents_outside_the_data_area_are_refused(small_fs, pfn, length):
    inline = L.EXTENT_CODEC.pack(0, length, pfn | extent.MAPPED << L.EXTENT_STATE_SHIFT).ljust(96, b"\0")
    inode = SimpleNamespace(ino=5, size=PAGE_SIZE, mode=0o100644, inline=inline, ext_root=0)
    with pytest.raises(CorruptError):
        extent.load(small_fs, inode)


def test_overlapping_extents_and_unknown_states_are_refused(small_fs):
    base = small_fs.sb.data_pfn + 10
    for slots in ([(0, 4, base, 2), (3, 2, base + 9, 2)], [(0, 4, base, 3)], [(0, 4, base, 0)]):
        inline = b"".join(L.EXTENT_CODEC.pack(o, n, p | k << L.EXTENT_STATE_SHIFT) for o, n, p, k in slots)
        inode = SimpleNamespace(
            ino=5, size=PAGE_SIZE, mode=0o100644, inline=inline.ljust(96, b"\0"), ext_root=0
        )
        with pytest.raises(CorruptError):
            extent.load(small_fs, inode)
