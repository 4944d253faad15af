# SPDX-License-Identifier: MIT
"""The allocator against a set of free pages, and what it promises about place and cost."""

import errno
import itertools
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from daxfs.errors import CorruptError, DaxfsError
from daxfs.meta.alloc import Allocator
from daxfs.pfn import PMD_PAGES


def make(*runs) -> Allocator:
    alloc = Allocator()
    for pfn, pages in runs:
        alloc.free(pfn, pages)
    return alloc


def pages_of(runs) -> set:
    return {pfn + i for pfn, pages in runs for i in range(pages)}


def fits_aligned(runs, pages: int, pgoff: int) -> bool:
    """True where some free run has room for *pages* at the colour of *pgoff*."""
    return any((pgoff - pfn) % PMD_PAGES + pages <= length for pfn, length in runs)


class AllocMachine(RuleBasedStateMachine):
    """alloc, free, quarantine, release against a plain set."""

    taken = Bundle("taken")

    @initialize(spans=st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 300)), min_size=1, max_size=6))
    def start(self, spans):
        self.alloc, self.free, self.held = Allocator(), set(), set()
        self.alloc.reclaim = self.release
        at = 7
        for pages, gap in spans:
            self.alloc.free(at, pages)
            self.free.update(range(at, at + pages))
            at += pages + gap

    @rule(
        target=taken,
        pages=st.integers(1, 40) | st.integers(500, 1600),
        pgoff=st.integers(0, 5).map(lambda n: n * PMD_PAGES) | st.integers(0, 5000),
        goal=st.none() | st.integers(0, 9),
    )
    def take(self, pages, pgoff, goal):
        before = self.alloc.runs()
        if goal is not None and before:
            goal = before[goal % len(before)][0]
        possible = pages <= len(self.free) + len(self.held)
        if pages > len(self.free):
            before = None  # the quarantine joins in, or it fails
        try:
            runs = self.alloc.alloc(pages, pgoff, goal)
        except DaxfsError as error:
            assert error.errno == errno.ENOSPC and not possible
            return []
        got = pages_of(runs)
        assert possible and len(got) == sum(n for _, n in runs) == pages and got <= self.free
        self.free -= got
        if before is not None and pages >= PMD_PAGES and fits_aligned(before, pages, pgoff):
            assert len(runs) == 1 and (runs[0][0] - pgoff) % PMD_PAGES == 0, (before, runs, pages, pgoff)
        return runs

    @rule(runs=consumes(taken))
    def give(self, runs):
        for pfn, pages in runs:
            self.alloc.free(pfn, pages)
        self.free |= pages_of(runs)

    @rule(runs=consumes(taken), cut=st.integers(1, 50))
    def give_in_parts(self, runs, cut):
        for pfn, pages in reversed(runs):
            for part in range(pfn, pfn + pages, max(cut, pages // 5)):
                self.alloc.free(part, min(max(cut, pages // 5), pfn + pages - part))
        self.free |= pages_of(runs)

    @rule(runs=consumes(taken))
    def quarantine(self, runs):
        for pfn, pages in runs:
            self.alloc.quarantine(pfn, pages)
        self.held |= pages_of(runs)

    @rule()
    def release(self):
        self.alloc.release_held()
        self.free |= self.held
        self.held = set()

    @invariant()
    def same(self):
        if not hasattr(self, "free"):
            return
        runs = self.alloc.runs()
        assert pages_of(runs) == self.free and sum(n for _, n in runs) == len(self.free)
        assert self.alloc.free_pages == len(self.free) and self.alloc.held == len(self.held)
        for (pfn, pages), (after, _) in itertools.pairwise(runs):
            assert pfn + pages < after, "neighbours that were not merged"


TestAllocMachine = AllocMachine.TestCase
TestAllocMachine.settings = settings(max_examples=60, stateful_step_count=30)


def test_enospc_takes_nothing():
    alloc = make((10, 5), (20, 5))
    with pytest.raises(DaxfsError) as caught:
        alloc.alloc(11)
    assert caught.value.errno == errno.ENOSPC and alloc.runs() == [(10, 5), (20, 5)]
    assert pages_of(alloc.alloc(10)) == pages_of([(10, 5), (20, 5)]) and alloc.free_pages == 0


def test_double_free_is_noticed():
    alloc = make((10, 5))
    for pfn, pages in ((10, 5), (10, 1), (14, 1), (12, 3)):
        with pytest.raises(CorruptError):
            alloc.free(pfn, pages)
    assert alloc.runs() == [(10, 5)]
    with pytest.raises(ValueError):
        alloc.free(50, 0)


def test_quarantine_is_used_only_after_reclaim():
    alloc = make((0, 10))
    alloc.quarantine(10, 10)
    calls = []

    def settle():
        calls.append(1)
        alloc.release_held()

    alloc.reclaim = settle
    assert pages_of(alloc.alloc(10)) == set(range(10)) and not calls
    assert alloc.alloc(10) == [(10, 10)] and calls == [1]


def test_goal_is_followed():
    alloc = make((100, 50), (200, 50))
    assert alloc.alloc(10, 4, 200) == [(200, 10)]
    assert alloc.alloc(10, 14, 210) == [(210, 10)]
    assert alloc.alloc(1, 3, 999)[0][0] in (100, 220)


def test_small_runs_are_used_before_large_ones_are_cut():
    alloc = make((0, 4096), (5000, 3), (6000, 8))
    assert alloc.alloc(2) == [(5000, 2)] and alloc.alloc(8) == [(6000, 8)]


def test_huge_run_goes_where_the_colours_agree_though_the_goal_does_not():
    """2 MiB and more behind a misplaced extent: a PMD fault must be possible from here on."""
    alloc = make((7, 5 * PMD_PAGES))
    ((pfn, pages),) = alloc.alloc(2 * PMD_PAGES, PMD_PAGES, 7)
    assert pages == 2 * PMD_PAGES and pfn % PMD_PAGES == 0


def test_huge_run_is_not_torn_by_a_short_goal():
    alloc = make((511, 3), (1000, 4 * PMD_PAGES))
    ((pfn, pages),) = alloc.alloc(PMD_PAGES, 511, 511)
    assert pages == PMD_PAGES and pfn % PMD_PAGES == 511


def test_huge_run_is_found_behind_many_that_do_not_fit():
    """Forty runs of the right length and the wrong place, then one that is right."""
    alloc = make(*((n * 2048 + 1, PMD_PAGES + 400) for n in range(40)), (90 * 1024, PMD_PAGES + 10))
    ((pfn, pages),) = alloc.alloc(PMD_PAGES, 0)
    assert (pfn, pages) == (90 * 1024, PMD_PAGES)


def test_pieces_of_a_huge_allocation_have_their_colour():
    """No run holds it all: every piece of 2 MiB and more still agrees with its file offset."""
    alloc = make((7, 3 * PMD_PAGES), (3001, 3 * PMD_PAGES))
    runs, pgoff = alloc.alloc(5 * PMD_PAGES + 40, 0), 0
    for pfn, pages in runs:
        assert pages < PMD_PAGES or (pfn - pgoff) % PMD_PAGES == 0, runs
        pgoff += pages
    assert pgoff == 5 * PMD_PAGES + 40 and [n for _, n in runs[:2]] == [1024, 1024]


def _cost(alloc, pages: int) -> float:
    best = 1.0
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(20):
            for run in alloc.alloc(pages):
                alloc.free(*run)
        best = min(best, time.perf_counter() - start)
    return best


def test_cost_does_not_grow_with_the_run_or_the_region():
    small = make((512, 1 << 12))
    large = make((512, 1 << 31))
    base = _cost(small, 4)
    assert _cost(large, 4) < 5 * base
    assert _cost(large, 1 << 30) < 5 * base
    split = make(*((n * 8, 4) for n in range(20000)), (1 << 20, 1 << 20))
    assert _cost(split, 4) < 5 * base and _cost(split, 1 << 19) < 8 * base
