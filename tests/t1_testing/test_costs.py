# SPDX-License-Identifier: MIT
"""Missing and useless flushes: each kind from a tiny log, and what is none."""

import pytest

from daxfs.testing.costs import CLEAN_LINES, LATE, NEVER, USELESS_DRAIN, USELESS_FLUSH, Costs
from daxfs.testing.log import DRAIN, END, FLUSH, NT_FILL, NT_STORE, SITE, STORE, Event

W = b"12345678"


def ev(kind, place=0, data=b"", length=None, thread=0, site=0, op=0):
    return Event(kind, place, len(data) if length is None else length, data, thread, site, op)


def store(place, data=W, **more):
    return ev(STORE, place, data, **more)


def flush(place, length=8, **more):
    return ev(FLUSH, place, length=length, **more)


def rows(*events, granularity="cache_line", expected=None):
    """(kind, count, units) of each row."""
    costs = Costs(granularity, expected)
    for event in events:
        costs.apply(event)
    return [(row.kind, row.count, row.units) for row in costs.report()]


DONE = (flush(0), ev(DRAIN))


@pytest.mark.parametrize("log", [
    [],
    [store(0), *DONE],
    [store(0, op=1), flush(0, op=1), ev(DRAIN, op=1), ev(END, op=1)],
    [store(0, op=1), store(8, op=1), *DONE, ev(END, op=1)],  # one flush for both
    [store(0, op=1), flush(0), ev(END, op=1), ev(DRAIN)],  # the drain may come later
    [ev(NT_STORE, 0, W), ev(DRAIN)],
    [store(0), ev(NT_STORE, 0, W), ev(DRAIN)],  # nothing of the store is left to be flushed
    [store(60), ev(NT_FILL, 0, b"\0", length=128), ev(DRAIN)],
    [store(0), flush(0, thread=1), ev(DRAIN, thread=1)],
    [store(0), flush(0, thread=0), flush(0, thread=1), ev(DRAIN, thread=1), ev(DRAIN, thread=0)],
    [store(0, op=1)],  # its operation has not returned
])  # fmt: skip
def test_nothing_to_say(log):
    assert rows(*log) == []


def test_never_flushed():
    assert rows(store(0, op=1), ev(END, op=1)) == [(NEVER, 1, 1)]
    assert rows(store(0)) == [(NEVER, 1, 1)]
    assert rows(store(60, op=1), flush(0), ev(END, op=1)) == [(NEVER, 1, 1)]  # its second line
    assert rows(store(0, op=1), flush(64), ev(END, op=1)) == [(NEVER, 1, 1), (USELESS_FLUSH, 1, 1)]
    assert rows(flush(0), store(0)) == [(NEVER, 1, 1), (USELESS_FLUSH, 1, 1)]
    assert rows(store(0), ev(NT_STORE, 1, W)) == [(NEVER, 1, 1)]  # one byte is left
    assert rows(store(0), ev(NT_STORE, 0, W[:7])) == [(NEVER, 1, 1)]


def test_flushed_late():
    late = [store(60, op=1), flush(60, 4, op=1), ev(END, op=1), flush(64, op=2)]
    assert rows(*late) == [(LATE, 1, 2)]
    assert rows(*late[:-1]) == [(NEVER, 1, 1)]
    half = [store(60, op=1), ev(END, op=1), flush(64, op=2)]
    assert rows(*half) == [(NEVER, 1, 1)] and rows(*half, flush(0)) == [(LATE, 1, 2)]


def test_expected_is_left_out():
    log = [store(0, op=1, site=1), store(64, op=1, site=2), ev(END, op=1)]
    assert rows(*log) == [(NEVER, 1, 1), (NEVER, 1, 1)]
    assert rows(*log, expected=lambda event: event.site == 1) == [(NEVER, 1, 1)]
    assert rows(*log, flush(0, 128), expected=lambda event: True) == []


def test_useless_flush():
    assert rows(flush(0, 100), ev(DRAIN)) == [(USELESS_FLUSH, 1, 2), (USELESS_DRAIN, 1, 0)]
    assert rows(store(0), flush(0), flush(0), ev(DRAIN)) == [(USELESS_FLUSH, 1, 1)]
    assert rows(store(0), *DONE, flush(0)) == [(USELESS_FLUSH, 1, 1)]
    assert rows(ev(NT_STORE, 0, W), flush(0), ev(DRAIN)) == [(USELESS_FLUSH, 1, 1)]
    assert rows(flush(0, 0)) == []
    two = [store(0), flush(0), flush(0, thread=1)]  # the second thread can't wait for the first one's flush
    assert rows(*two, flush(0, thread=1)) == [(USELESS_FLUSH, 1, 1)]
    assert rows(store(0), *DONE, flush(0, thread=1)) == [(USELESS_FLUSH, 1, 1)]


def test_clean_lines():
    assert rows(store(64), flush(0, 640), ev(DRAIN)) == [(CLEAN_LINES, 1, 9)]


def test_useless_drain():
    assert rows(ev(DRAIN)) == [(USELESS_DRAIN, 1, 0)]
    assert rows(store(0), *DONE, ev(DRAIN)) == [(USELESS_DRAIN, 1, 0)]
    assert rows(ev(NT_STORE, 0, W, thread=1), ev(DRAIN), ev(DRAIN, thread=1)) == [(USELESS_DRAIN, 1, 0)]


def test_byte_needs_no_flush():
    assert rows(store(0, op=1), ev(DRAIN), ev(END, op=1), granularity="byte") == []
    assert rows(store(0), *DONE, ev(DRAIN), granularity="byte") == [(USELESS_DRAIN, 1, 0)]


def test_page():
    log = [store(0), store(4096), flush(0, 4096), ev(DRAIN)]
    assert rows(*log, granularity="page") == [(NEVER, 1, 1)]
    assert rows(store(0), ev(NT_STORE, 100, W), granularity="page") == []
    assert rows(ev(NT_STORE, 100, W), flush(0), granularity="page") == [(USELESS_FLUSH, 1, 1)]


def test_table():
    costs = Costs()
    assert costs.table() == ""
    for event in (ev(SITE, site=3, data=b"a.py:1 f"), ev(SITE, site=4, data=b"a.py:2 g"), ev(DRAIN, site=3),
                  ev(DRAIN, site=4), ev(DRAIN, site=4), store(0, site=3), store(64), store(60, site=3)):
        costs.apply(event)
    assert costs.table() == """\
store never flushed:
       2 times        3 lines  a.py:1 f
       1 times        1 lines  unknown call site
drain with nothing in flight:
       2 times        0 lines  a.py:2 g
       1 times        0 lines  a.py:1 f"""
    assert [row.first for row in costs.report()] == [5, 6, 3, 2]
