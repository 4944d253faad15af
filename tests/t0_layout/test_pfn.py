# SPDX-License-Identifier: MIT
"""pfn_t: flags above the number, round trips, scatter lists."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daxfs import pfn as P

FLAGS = (P.PFN_DEV, P.PFN_MAP, P.PFN_SG_CHAIN, P.PFN_SG_LAST)
flags = st.sets(st.sampled_from(FLAGS)).map(sum)
frames = st.integers(0, P.PFN_MASK)


def test_numbers():
    assert (P.PAGE_SHIFT, P.PAGE_SIZE, P.PMD_SHIFT, P.PMD_SIZE, P.PMD_PAGES) == (12, 4096, 21, 2097152, 512)
    assert (P.PMD_ORDER, P.CACHE_LINE, P.PFN_MASK) == (9, 64, 0xFFFFFFFFFFFF)
    assert FLAGS == (1 << 61, 1 << 60, 1 << 63, 1 << 62) and sum(FLAGS) == P.PFN_FLAGS


@settings(deadline=None)
@given(frames, flags)
def test_round_trip(frame, bits):
    value = P.pfn_t(frame, bits)
    assert P.to_pfn(value) == frame and value & P.PFN_FLAGS == bits and 0 <= value < 1 << 64
    assert P.to_offset(value) == frame * 4096


@pytest.mark.parametrize(
    "frame, bits", [(-1, 0), (1 << 48, 0), (0, 1), (0, 1 << 59), (5, 1 << 48), (0, 1 << 64)]
)
def test_what_is_no_pfn(frame, bits):
    with pytest.raises(ValueError):
        P.pfn_t(frame, bits)


@pytest.mark.parametrize(
    "bits, has", [(0, True), (P.PFN_DEV, False), (P.PFN_MAP, True), (P.PFN_DEV | P.PFN_MAP, True)]
)
def test_has_page(bits, has):
    assert P.has_page(P.pfn_t(3, bits)) is has


@settings(deadline=None)
@given(st.lists(st.tuples(st.builds(P.pfn_t, frames, flags), st.integers(0, 1 << 30)), max_size=8))
def test_scatter_lists(runs):
    out = P.sg_list(runs)
    kept = [(P.to_pfn(value), n) for value, n in runs if n]
    assert [(P.to_pfn(value), n) for value, n in out] == kept
    assert [bool(value & P.PFN_SG_LAST) for value, _ in out] == [False] * (len(kept) - 1) + [True] * bool(
        kept
    )
    assert not any(value & P.PFN_SG_CHAIN for value, _ in out)
