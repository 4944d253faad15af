# SPDX-License-Identifier: MIT
"""Python in the place of the functions of a flush table (daxfs/native/flush.h).

What is stored, and in which order, a Recorder tells (daxfs/_record.pyx). This is for what it can't do: to
make a function do too little, to let it fail, or to look at DRAM while it runs. On a table that is being
recorded the functions found here are the recorder's, so its log shows what was really done.

Limits: slow; nothing else may replace functions of the table in the meantime. An exception that leaves a
function does not reach the caller; pytest turns it into a failure of the test.
"""

import contextlib
import ctypes

NAMES = ("store", "nt_store", "nt_fill", "flush", "drain")


class Table(ctypes.Structure):
    """struct daxfs_flush, as far as the tests look into it."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in NAMES),
        *((name, ctypes.c_int) for name in ("kind", "nt_kind", "granularity")),
        *((name, ctypes.c_uint64) for name in ("n_store", "store_bytes", "n_nt", "nt_bytes")),
        *((name, ctypes.c_uint64) for name in ("n_flush", "flush_lines", "n_drain")),
        ("error", ctypes.c_int),
        ("recorder", ctypes.c_void_p),
        ("lines", ctypes.c_void_p),
    ]


_COPY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_FILL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
_SPAN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_DRAIN = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_TYPES = dict(zip(NAMES, (_COPY, _COPY, _FILL, _SPAN, _DRAIN), strict=True))


def table_of(flush) -> Table:
    """The table of a daxfs._flush.Flush."""
    return Table.from_address(flush.table)


def function(table: Table, name: str):
    """What stands in the table now, to be called with the address of a table first."""
    return _TYPES[name](getattr(table, name))


@contextlib.contextmanager
def replaced(table: Table, **functions):
    """Until the end, these Python functions stand in the table."""
    saved = {name: getattr(table, name) for name in functions}
    made = {name: _TYPES[name](call) for name, call in functions.items()}  # alive until the end
    for name, call in made.items():
        setattr(table, name, ctypes.cast(call, ctypes.c_void_p))
    try:
        yield
    finally:
        for name, address in saved.items():
            setattr(table, name, address)


def watched(region, see):
    """Until the end, *see(name, place, length)* is called at each call: before a drain, after the others."""
    table = table_of(region.flush)

    def watching(name: str):
        real = function(table, name)

        def call(address, *args):
            if not args:
                see(name, 0, 0)
            real(address, *args)
            if args:
                see(name, args[0] - region.address, args[-1])

        return call

    return replaced(table, **{name: watching(name) for name in NAMES})
