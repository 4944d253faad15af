# SPDX-License-Identifier: MIT
# What other compiled units may use of the phases of an fsync (native/fsync.h).
cimport cython
from libc.stdint cimport uint64_t

cdef extern from "daxfs/native/latency.h" nogil:
    enum: LATENCY_BUCKETS
    struct latency:
        uint64_t total
        uint64_t bucket[40]
    uint64_t latency_now()

cdef extern from "daxfs/native/fsync.h" nogil:
    enum: FSYNC_PHASES
    enum: FSYNC_LOCK, FSYNC_LOOK, FSYNC_WALK, FSYNC_FLUSH, FSYNC_DRAIN, FSYNC_META, FSYNC_REPLY, FSYNC_PYTHON
    enum: FSYNC_OTHER
    struct fsync_run:
        uint64_t began, last
        uint64_t ns[9]
    struct fsync_counts:
        latency total
        latency phase[9]
    void fsync_begin "fsync_begin"(fsync_run *r, uint64_t now)
    void fsync_lap "fsync_lap"(fsync_run *r, int phase)
    void fsync_absorb "fsync_absorb"(fsync_run *r, const fsync_run *other)
    void fsync_count "fsync_count"(fsync_counts *c, const fsync_run *r)

@cython.final
cdef class FsyncRun:
    cdef fsync_run r

@cython.final
cdef class FsyncCounts:
    cdef fsync_counts c
    cdef void take(self, const fsync_counts *c) noexcept nogil
