# SPDX-License-Identifier: MIT
"""L1: the dirty bitmap against a Python set, and what it may cost."""

import subprocess
import sys
import textwrap
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from daxfs._flush import DirtyMap
from daxfs.errors import UsageError

CHUNK = 1 << 15
LIMIT = 1 << 40
CHUNK_BYTES = 4096 + 64 + 16

# Places where something can go wrong: word, summary and chunk borders, far apart, and the two ends.
_bases = st.sampled_from([0, 64, 4096, CHUNK, 2 * CHUNK, 3 * CHUNK, 7 << 30, LIMIT - CHUNK, LIMIT])
_firsts = st.builds(lambda b, d: min(max(b + d, 0), LIMIT - 1), _bases, st.integers(-130, 130))
_counts = st.one_of(st.integers(0, 300), st.sampled_from([64, 4096, CHUNK - 1, CHUNK, 2 * CHUNK + 7]))


def runs_of(units):
    """The maximal runs of a set of integers, ascending."""
    out = []
    for u in sorted(units):
        if out and out[-1][0] + out[-1][1] == u:
            out[-1][1] += 1
        else:
            out.append([u, 1])
    return [tuple(r) for r in out]


class Against(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.map, self.model = DirtyMap(), set()

    @rule(first=_firsts, count=_counts)
    def set(self, first, count):
        count = min(count, LIMIT - first)
        self.map.set(first, count)
        self.model.update(range(first, first + count))

    @rule(first=_firsts, count=_counts)
    def clear(self, first, count):
        self.map.clear(first, count)
        self.model.difference_update(range(first, first + count))

    @rule()
    def clear_first_run(self):
        run = self.map.find_run(0)
        assert run == (runs_of(self.model)[0] if self.model else None)
        if run:
            self.map.clear(*run)
            self.model.difference_update(range(run[0], sum(run)))

    @rule(first=_firsts)
    def clear_from(self, first):
        """A count that would wrap past 2^64 is cut, not wrapped."""
        self.map.clear(first, 2**64 - 1)
        self.model = {u for u in self.model if u < first}

    @rule(start=_firsts)
    def ask_next_run(self, start):
        runs = runs_of(u for u in self.model if u >= start)
        assert self.map.find_run(start) == (runs[0] if runs else None)

    @rule(first=_firsts, count=_counts)
    def ask_count_range(self, first, count):
        assert self.map.count_range(first, count) == sum(first <= u < first + count for u in self.model)

    @rule(unit=_firsts)
    def ask_unit(self, unit):
        assert (unit in self.map) == (unit in self.model)

    @invariant()
    def agrees(self):
        assert self.map.count == len(self.model)
        assert list(self.map.runs()) == runs_of(self.model)
        assert self.map.chunks == len({u // CHUNK for u in self.model})


TestAgainstSet = Against.TestCase
TestAgainstSet.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_empty():
    d = DirtyMap()
    assert d.count == d.chunks == 0 and list(d.runs()) == [] and d.find_run(0) is None
    d.clear(0, LIMIT)
    d.set(5, 0)
    assert d.count_range(0, 2**64 - 1) == 0 and 5 not in d and LIMIT + 5 not in d and d.chunks == 0


@pytest.mark.parametrize("first, count", [(LIMIT, 1), (LIMIT - 1, 2), (0, LIMIT + 1), (2**64 - 1, 2**64 - 1)])
def test_past_the_limit_is_refused(first, count):
    d = DirtyMap()
    d.set(3, 4)
    with pytest.raises(UsageError, match="past the end"):
        d.set(first, count)
    assert list(d.runs()) == [(3, 4)]


def test_run_over_many_chunks_is_one():
    d = DirtyMap()
    d.set(CHUNK - 5, 10 * CHUNK)
    assert list(d.runs()) == [(CHUNK - 5, 10 * CHUNK)]
    d.clear(4 * CHUNK, CHUNK)           # a whole chunk out of the middle
    assert list(d.runs()) == [(CHUNK - 5, 3 * CHUNK + 5), (5 * CHUNK, 6 * CHUNK - 5)]
    assert d.chunks == 10


def test_new_chunks_go_between_old_ones():
    d = DirtyMap()
    for c in (9, 1, 5, 3, 7):
        d.set(c * CHUNK + c, 1)
    d.set(2 * CHUNK, 5 * CHUNK)
    assert list(d.runs()) == [(CHUNK + 1, 1), (2 * CHUNK, 5 * CHUNK), (7 * CHUNK + 7, 1), (9 * CHUNK + 9, 1)]


def test_runs_may_be_cleared_on_the_way():
    d = DirtyMap()
    for unit in range(0, 10 * CHUNK, CHUNK // 2):
        d.set(unit, 3)
    seen = []
    for first, length in d.runs():
        d.clear(first, length)
        seen.append(first)
    assert seen == list(range(0, 10 * CHUNK, CHUNK // 2)) and d.chunks == 0


def test_memory_is_that_of_the_dirty_chunks():
    d = DirtyMap()
    empty = sys.getsizeof(d)
    for i in range(1000):
        d.set(i << 30, 1)
    assert d.chunks == 1000
    assert 1000 * CHUNK_BYTES < sys.getsizeof(d) - empty < 1000 * (CHUNK_BYTES + 32)
    for i in range(1000):
        d.clear(i << 30, 1)
    assert d.chunks == 0 and sys.getsizeof(d) == empty


def test_cost_is_that_of_what_is_dirty():
    """One dirty unit at the end of 2^40: search, count and clear of everything take no time.

    A walk over units would take minutes, one over all possible chunks a quarter of a second.
    """
    best = 1.0
    for _ in range(5):
        d = DirtyMap()
        start = time.perf_counter()
        d.set(LIMIT - 1, 1)
        assert list(d.runs()) == [(LIMIT - 1, 1)] and d.count_range(0, LIMIT) == 1
        d.clear(0, LIMIT)
        best = min(best, time.perf_counter() - start)
    assert best < 0.005


def run_python(code):
    argv = [sys.executable, "-P", "-c", textwrap.dedent(code)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_chunks_are_given_back():
    """300 rounds of 1,000 chunks (4 MiB a round): memory must not grow with the rounds."""
    r = run_python("""
        import resource
        from daxfs._flush import DirtyMap
        def rounds(n):
            for _ in range(n):
                d = DirtyMap()
                for i in range(1000):
                    d.set(i << 30, 1)
                d.clear(0, 500 << 30)       # the rest goes with the object
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = rounds(3)
        print(rounds(300) - before)
        """)
    assert r.returncode == 0, r.stderr
    assert int(r.stdout) < 32 << 10


def test_no_memory_leaves_the_map_as_it_was():
    r = run_python("""
        import resource
        from daxfs._flush import DirtyMap
        d = DirtyMap()
        d.set(5, 3)
        d.set(100 << 15, 1)
        with open("/proc/self/statm") as f:
            size = int(f.read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20),) * 2)
        try:
            d.set(0, 1 << 36)
        except MemoryError as e:
            print(e)
        assert list(d.runs()) == [(5, 3), (100 << 15, 1)] and d.chunks == 2
        d.set(8, 1)
        assert d.count == 5
        """)
    assert r.returncode == 0, r.stderr
    assert "no memory to mark 68719476736 units" in r.stdout
