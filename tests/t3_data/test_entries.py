# SPDX-License-Identifier: MIT
"""Entries of a file's mappings against a plain model: grabs, inserts, writebacks, drops; what they cost."""

import sys
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from daxfs.errors import UsageError
from daxfs.fault._entry import Entries

PMD, GROUP = 512, 512 * 512
END = 1 << 32

# Borders of slots, of words of 64 slots, of groups, and the two ends: few, so that rules meet each other.
_bases = st.sampled_from([0, PMD, PMD, PMD, 64 * PMD, GROUP, END - PMD])
_pages = st.builds(lambda b, d: min(max(b + d, 0), END - 1), _bases, st.integers(-3, 3))
_orders = st.sampled_from([0, 9])
_hows = st.sampled_from(["zero", "clean", "dirty"])
_counts = st.sampled_from([0, 1, 2, 5, PMD - 2, PMD, PMD + 3, GROUP, END, 2**64 - 1])


class Model:
    """A dictionary of entries: first page -> [order, kind, dirty]; kind: "empty", "zero", "block"."""

    def __init__(self):
        self.all = {}

    def holder(self, pgoff):
        """First page of the entry that holds *pgoff*, or None."""
        base = pgoff // PMD * PMD
        if base in self.all and self.all[base][0]:
            return base
        return pgoff if pgoff in self.all else None

    def overlapping(self, first, end):
        if first == end:
            return []
        return sorted(p for p, e in self.all.items() if p < end and first < p + (1 << e[0]))

    def pte_there(self, pgoff):
        base = pgoff // PMD * PMD
        return any(not self.all[p][0] for p in self.overlapping(base, base + PMD))


class Against(RuleBasedStateMachine):
    """One thread: an entry that would have to be waited for is let go first."""

    def __init__(self):
        super().__init__()
        self.entries, self.model, self.held = Entries(), Model(), {}

    def same(self, entry, first):
        order, kind, dirty = self.model.all[first]
        want = {"locked"} | ({"pmd"} if order else set()) | ({"dirty"} if dirty else set())
        want |= {kind} - {"block"}
        assert entry == (first, order, want), (entry, self.model.all[first])

    def let_go(self, first):
        self.entries.unlock(first)
        self.held.pop(first)
        if self.model.all[first][1] == "empty":
            del self.model.all[first]

    def let_go_of(self, pages):
        for first in [p for p in pages if p in self.held]:
            self.let_go(first)

    def unmapped(self, *want):
        assert self.entries.unmapped == list(want)
        self.entries.unmapped.clear()

    @rule(pgoff=_pages, order=_orders)
    def grab(self, pgoff, order):
        if order and self.model.pte_there(pgoff):
            assert self.entries.grab(pgoff, 9) is None  # also where one is locked: it does not wait
            return
        self.let_go_of([self.model.holder(pgoff)])
        first, base = self.model.holder(pgoff), pgoff // PMD * PMD
        downgraded = first is not None and not order and self.model.all[first][:2] == [9, "zero"]
        if downgraded:
            del self.model.all[first]
        if first is None or downgraded:
            first = base if order else pgoff
            self.model.all[first] = [order, "empty", False]
        self.same(self.entries.grab(pgoff, order), first)
        self.unmapped(*([(base, PMD)] if downgraded else []))
        self.held[first] = True

    @rule(pgoff=_pages, order=_orders, how=_hows)
    def fault(self, pgoff, order, how):
        self.grab(pgoff, order)
        first = self.model.holder(pgoff)
        if first in self.held:
            self.insert_at(first, how)
            self.let_go(first)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), how=_hows)
    def insert(self, data, how):
        self.insert_at(data.draw(st.sampled_from(sorted(self.held))), how)

    def insert_at(self, first, how):
        entry = self.model.all[first]
        got = self.entries.insert(first, zero=how == "zero", dirty=how == "dirty")
        self.unmapped(*([(first, 1 << entry[0])] if entry[1] == "zero" and how != "zero" else []))
        if entry[1] != "block":
            entry[1] = "zero" if how == "zero" else "block"
        entry[2] |= how == "dirty"
        self.same(got, first)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def unlock(self, data):
        self.let_go(data.draw(st.sampled_from(sorted(self.held))))

    @rule(pgoff=_pages, order=_orders)
    def mkwrite(self, pgoff, order):
        self.let_go_of([self.model.holder(pgoff)])
        first = self.model.holder(pgoff)
        got = self.entries.mkwrite(pgoff, order)
        if first is None or self.model.all[first][0] != order or self.model.all[first][1] == "zero":
            assert got is None
            return
        self.model.all[first][2] = True
        self.same(got, first)
        self.held[first] = True

    @rule(first=_pages, count=_counts, keep=st.booleans())
    def drop(self, first, count, keep):
        end = first + count
        self.let_go_of(self.model.overlapping(first, end))
        gone = [p for p in self.model.overlapping(first, end) if not (keep and self.model.all[p][2])]
        assert self.entries.drop(first, count, keep) == len(gone)
        for p in gone:
            order, _, dirty = self.model.all.pop(p)
            if dirty:  # its pages outside of the range stay marked
                self.model.all.update({q: [0, "block", True] for q in range(p, p + (1 << order))
                                       if not first <= q < end})  # fmt: skip

    @rule(first=_pages, count=_counts, clean=st.booleans())
    def writeback(self, first, count, clean):
        """Walk the dirty ones; flush each, or fail to."""
        last = min(first + count, 2**64 - 1)
        self.let_go_of(self.model.overlapping(first, last + 1))
        want = [p for p in self.model.overlapping(first, last + 1) if self.model.all[p][2]]
        got, at = [], first
        while (entry := self.entries.next_dirty(at, last)) is not None:
            got.append(entry.pgoff)
            at = entry.pgoff + (1 << entry.order)
            self.same(entry, entry.pgoff)
            if clean:
                self.model.all[entry.pgoff][2] = False
                self.same(self.entries.clean(entry.pgoff), entry.pgoff)
            self.entries.unlock(entry.pgoff)
        assert got == want

    @rule(pgoff=_pages)
    def ask(self, pgoff):
        first = self.model.holder(pgoff)
        state = self.entries.state(pgoff)
        assert (state is None) == (first is None)
        assert first is None or ("locked" in state) == (first in self.held)
        assert self.entries.pte_there(pgoff) == self.model.pte_there(pgoff)

    @invariant()
    def agrees(self):
        assert self.entries.count == len(self.model.all)
        assert self.entries.dirty == sum(e[2] for e in self.model.all.values())
        self.unmapped()


TestAgainstModel = Against.TestCase
TestAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def put(entries, pgoff, order=0, zero=False, dirty=False):
    first = entries.grab(pgoff, order).pgoff
    entries.insert(first, zero=zero, dirty=dirty)
    entries.unlock(first)


def test_what_came_to_nothing_leaves_nothing():
    """A PTE fault that failed does not keep PMDs out."""
    e = Entries()
    assert e.grab(5).state == {"locked", "empty"}
    assert e.grab(0, 9) is None
    e.unlock(5)
    assert e.count == 0 and e.grab(0, 9) is not None


def test_a_store_inside_a_pmd_dirties_all_of_it():
    e = Entries()
    put(e, 700, 9)
    assert e.grab(600).pgoff == 512
    assert e.insert(512, dirty=True) == (512, 9, {"locked", "pmd", "dirty"})
    e.unlock(512)
    assert e.next_dirty(1000, 1000).pgoff == 512


def test_one_page_that_is_flushed_leaves_its_neighbours_marked():
    e = Entries()
    for page in (10, 20, 30):
        put(e, page, dirty=True)
    for page in (20, 10, 30):
        assert e.next_dirty(page, page).pgoff == page
        e.clean(page)
        e.unlock(page)
        rest = [p for p in (10, 20, 30) if "dirty" in e.state(p)]
        found = e.next_dirty(0, END)
        assert (found.pgoff if found else None) == (rest[0] if rest else None)
        if found:
            e.unlock(found.pgoff)
    assert e.dirty == 0


def test_a_cut_through_a_dirty_pmd_keeps_the_other_marks():
    e = Entries()
    put(e, 0, 9, dirty=True)
    put(e, 512, 9)
    assert e.drop(256, 300) == 2
    assert (e.count, e.dirty) == (256, 256) and e.state(255) == {"dirty"} and e.state(256) is None
    assert e.pte_there(0) and not e.pte_there(512)


def test_room_is_that_of_what_is_mapped():
    e = Entries()
    empty = sys.getsizeof(e)
    for slot in range(512):
        put(e, slot * PMD, 9)
    assert sys.getsizeof(e) - empty < 4800  # 1 GiB of PMDs
    e.drop(0, END)
    assert sys.getsizeof(e) == empty
    for slot in range(512):
        put(e, slot * PMD)
    assert sys.getsizeof(e) - empty < 270 << 10  # the same with PTEs, however many
    e.drop(0, END)
    assert sys.getsizeof(e) == empty
    for gib in range(1 << 14):
        put(e, gib * GROUP)
    assert (sys.getsizeof(e) - empty) / (1 << 14) < 5300  # one page in each GiB of 16 TiB
    e.drop(0, END)
    assert sys.getsizeof(e) == empty


def test_a_writeback_costs_what_is_dirty():
    """One dirty page behind 131,072 clean ones: found in no time."""
    e = Entries()
    for page in range(0, GROUP, 2):
        put(e, page)
    put(e, GROUP - 1, dirty=True)
    best = 1.0
    for _ in range(5):
        start = time.perf_counter()
        assert e.next_dirty(0, END).pgoff == GROUP - 1
        e.unlock(GROUP - 1)
        best = min(best, time.perf_counter() - start)
    assert best < 0.001


@pytest.mark.parametrize("call", [
    lambda e: e.grab(END), lambda e: e.grab(2**64 - 1, 9), lambda e: e.grab(0, 1), lambda e: e.mkwrite(END),
    lambda e: e.unlock(3), lambda e: e.insert(3), lambda e: e.clean(3),
])  # fmt: skip
def test_slips_are_errors(call):
    e = Entries()
    put(e, 3)
    with pytest.raises(UsageError):
        call(e)
    e.grab(3)
    with pytest.raises(UsageError, match="never dirty"):
        e.insert(3, zero=True, dirty=True)
    assert e.state(3) == {"locked"}
