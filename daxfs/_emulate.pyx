# SPDX-License-Identifier: MIT
# cython: language_level=3, boundscheck=False, wraparound=False
"""L1: a flush table that costs what a slower medium costs (native/emulate.c); daxfs/emulate.py has the media.

Limits: `Emulation` is made before the table is shared, and for good: it goes with its `Flush`. After that
any thread may use the table; what is asked here is asked by one.
"""
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.errno cimport EOPNOTSUPP
from libc.stdint cimport uint64_t, uintptr_t

import mmap

from daxfs._flush cimport Flush, daxfs_flush

from daxfs.errors import UsageError

cdef extern from "daxfs/native/emulate.h" nogil:
    enum: DAXFS_CHECK_ROUNDS, DAXFS_CLOCK_TSC
    struct daxfs_medium:
        double flush_line_ns, flush_drain_ns, nt_line_ns, nt_drain_ns, write_gb_s
    struct daxfs_clock:
        double ticks_per_ns
        int kind
    struct daxfs_emulator:
        daxfs_clock clock
        uint64_t lines, drains, late, spun
    void daxfs_clock_find(daxfs_clock *c, uint64_t ns)
    int daxfs_tsc_invariant()
    int daxfs_emulate(daxfs_emulator *e, daxfs_flush *t, const daxfs_medium *m, const daxfs_clock *c)
    double daxfs_emulate_asked(const daxfs_emulator *e, uint64_t n, int nt)
    void daxfs_emulate_measure(const daxfs_emulator *e, const daxfs_flush *t, void *buf, uint64_t n, int nt,
                               int emulated, int rounds, uint64_t *shortest, uint64_t *median)

LINE = 64
MAX_ROUNDS = DAXFS_CHECK_ROUNDS
CALIBRATE_NS = 10_000_000


def tsc_invariant() -> bool:
    """Whether CPUID says that the TSC runs at one rate; without it the clock is CLOCK_MONOTONIC."""
    return bool(daxfs_tsc_invariant())


cdef class Emulation:
    """From now on *flush* costs what the medium costs; arguments as struct daxfs_medium (native/emulate.h).

    Takes 10 ms to find out how fast the TSC is. UsageError for flush kind msync and for a table that is
    recorded or emulated already.
    """

    cdef Flush flush
    cdef daxfs_emulator *e      # the table's, and freed with it

    def __cinit__(self, Flush flush not None, double flush_line_ns, double flush_drain_ns, double nt_line_ns,
                  double nt_drain_ns, double write_gb_s):
        cdef daxfs_medium m = daxfs_medium(flush_line_ns, flush_drain_ns, nt_line_ns, nt_drain_ns, write_gb_s)
        cdef daxfs_clock clock
        cdef uint64_t ns = CALIBRATE_NS
        cdef int err
        self.flush = flush
        with nogil:
            daxfs_clock_find(&clock, ns)
        cdef daxfs_emulator *e = <daxfs_emulator *>PyMem_RawCalloc(1, sizeof(daxfs_emulator))
        if e is NULL:
            raise MemoryError
        err = daxfs_emulate(e, flush.t, &m, &clock)
        if err:
            PyMem_RawFree(e)
            if err == -EOPNOTSUPP:
                raise UsageError("emulate= can't be had with flush kind 'msync': the page cache's disk, "
                                 "not a memory, is what that waits for")
            raise UsageError("the flush table is being recorded or emulated already")
        self.e = e

    @property
    def clock(self):
        """"tsc" or "monotonic"."""
        return "tsc" if self.e.clock.kind == DAXFS_CLOCK_TSC else "monotonic"

    @property
    def ticks_per_ns(self):
        return self.e.clock.ticks_per_ns

    def counters(self) -> dict:
        """lines that went to the medium, drains that waited for them, those that were late as this host took
        longer than the medium, and how long threads spun, in ns."""
        return {"lines": self.e.lines, "drains": self.e.drains, "late": self.e.late,
                "spun_ns": round(self.e.spun / self.e.clock.ticks_per_ns)}

    def asked(self, uint64_t lines, bint nt) -> float:
        """ns from the beginning of a call with so many *lines* to the end of the drain behind it."""
        return daxfs_emulate_asked(self.e, lines, nt)

    def measure(self, uint64_t lines, bint nt, bint emulated, int rounds) -> tuple:
        """(shortest, median) ns that the same takes by CLOCK_MONOTONIC, on memory of its own.

        emulated False: without the emulation. At most MAX_ROUNDS rounds. The counters don't see it.
        """
        cdef uint64_t shortest, median
        cdef const unsigned char[::1] view
        if not 0 < rounds <= MAX_ROUNDS or not lines:
            raise ValueError(rounds, lines)
        memory = mmap.mmap(-1, lines * LINE)
        view = memory
        with nogil:
            daxfs_emulate_measure(self.e, self.flush.t, <void *>&view[0], lines, nt, emulated, rounds,
                                  &shortest, &median)
        view = None
        memory.close()
        return shortest, median
