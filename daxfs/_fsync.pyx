# SPDX-License-Identifier: MIT
"""L1: where the time of an fsync goes (native/fsync.h, docs/fsync.md): one of them, and counters of many.

`FsyncRun` is handed through the Python half of an fsync; what measures it are laps in the compiled units that
it passes. Limits: one thread at a time has a run; nothing here locks.
"""
from libc.stdint cimport uint64_t
from libc.string cimport memset

from daxfs.latency import Operation

cdef extern from *:
    """
    #define DAXFS_READ(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    """
    uint64_t load "DAXFS_READ"(const uint64_t *p) nogil

# As reports have them, and as the numbers of native/fsync.h are.
PHASES = ("lock", "look", "walk", "flush", "drain", "meta", "reply", "python", "other")
LOCK, LOOK, WALK, FLUSH, DRAIN, META, REPLY, PYTHON, OTHER = range(len(PHASES))
assert len(PHASES) == FSYNC_PHASES and OTHER == FSYNC_OTHER


cdef class FsyncRun:
    """An fsync that begins now, in Python."""

    def __init__(self):
        fsync_begin(&self.r, latency_now())

    def lap(self, int phase):
        """The time since the lap before was spent in *phase*."""
        if not 0 <= phase < FSYNC_PHASES:
            raise ValueError(f"phase {phase}")
        fsync_lap(&self.r, phase)

    def absorb(self, FsyncRun other not None):
        """Another thread did *other* while this one waited, which counts as python so far."""
        fsync_absorb(&self.r, &other.r)

    def phases(self):
        """{phase: ns} until the last lap."""
        return {name: self.r.ns[n] for n, name in enumerate(PHASES)}

    @property
    def total(self):
        """ns from the beginning to the last lap."""
        return self.r.last - self.r.began


cdef object _times(const latency *l):
    return Operation.of(load(&l.total), [load(&l.bucket[n]) for n in range(LATENCY_BUCKETS)])


cdef class FsyncCounts:
    """Counters of fsyncs that have ended: of one thread, or a copy of another's."""

    def add(self, FsyncRun run not None):
        fsync_count(&self.c, &run.r)

    cdef void take(self, const fsync_counts *c) noexcept nogil:
        """Add what another thread, perhaps, has counted by now."""
        cdef uint64_t *to = <uint64_t *>&self.c
        cdef const uint64_t *from_ = <const uint64_t *>c
        cdef size_t n
        for n in range(sizeof(self.c) // sizeof(uint64_t)):
            to[n] += load(&from_[n])

    def merge(self, FsyncCounts other not None):
        """Add what *other* has."""
        self.take(&other.c)

    @property
    def count(self):
        return sum([load(&self.c.total.bucket[n]) for n in range(LATENCY_BUCKETS)])

    def snapshot(self):
        """{"count", "total", "phases"}: histograms as latency.py has them; the phases' total_ns add up."""
        total = _times(&self.c.total)
        phases = {}
        for n, name in enumerate(PHASES):
            phase = _times(&self.c.phase[n])
            # What took no time at all was not counted in any bucket. Another thread may add meanwhile.
            phase.buckets[0] += max(total.count - phase.count, 0)
            phase.count = max(total.count, phase.count)
            phases[name] = phase.times()
        return {"count": total.count, "total": total.times(), "phases": phases}
