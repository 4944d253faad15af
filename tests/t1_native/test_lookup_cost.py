# SPDX-License-Identifier: MIT
"""L1: a look-up costs O(log n): of a pfn among ranges (SEEDS S2), of a page among extents.

Prints nanoseconds with ``pytest -s``. A walk over the list, which is what the kernel's first version was
attacked for, would be slower by the number of ranges and fail here by far.
"""

import random
import timeit

from daxfs._iomap import MAPPED, FileMap, RangeTable

CALLS = 2000


def nanoseconds(lookup, keys):
    """Best of several runs: what the call costs when nobody else is running."""

    def run():
        for key in keys:
            lookup(key)

    return min(timeit.repeat(run, number=1, repeat=15)) / len(keys) * 1e9


def costs(make, counts):
    """{count: ns}; the keys are spread over all entries."""
    chance = random.Random(7)
    return {n: nanoseconds(make(n), [chance.randrange(n) * 2 for _ in range(CALLS)]) for n in counts}


def ranges(n):
    table = RangeTable()
    for i in range(n):
        table.add(i * 2, i * 2 + 1, 4096)
    return table.lookup


def extents(n):
    fm = FileMap()
    fm.load([(i * 2, 1, i, MAPPED, 0) for i in range(n)])
    return fm.lookup


def test_range_lookup_is_logarithmic():
    ns = costs(ranges, (1, 16, 1024))
    print("range lookup:", ", ".join(f"{n} ranges {cost:.0f} ns" for n, cost in ns.items()))
    assert ns[1024] < 5 * ns[1] + 100


def test_extent_lookup_is_logarithmic():
    ns = costs(extents, (1, 1024, 100_000))
    print("extent lookup:", ", ".join(f"{n} extents {cost:.0f} ns" for n, cost in ns.items()))
    assert ns[100_000] < 8 * ns[1] + 200
