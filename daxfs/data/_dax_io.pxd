# SPDX-License-Identifier: MIT
# What other compiled units may use of the data path: the C core (native/daxio.h) and what DaxIo binds for it.
from libc.stdint cimport int64_t, uint64_t
from daxfs._flush cimport Flush, daxfs_flush
from daxfs._fsync cimport LATENCY_BUCKETS, fsync_run, latency
from daxfs._iomap cimport FileMap, RangeTable, filemap, range_table
from daxfs.data._trace cimport TraceRing, trace_ring
from daxfs.data._tracker cimport Tracker

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "daxfs/native/flushers.h" nogil:
    struct flushers:
        uint64_t shared, helped
    int flushers_start(flushers *f, int count)
    int flushers_set(flushers *f, int count)
    int flushers_count(const flushers *f)
    void flushers_stop(flushers *f)

cdef extern from "daxfs/native/daxio.h" nogil:
    struct daxio:
        range_table *table
        daxfs_flush *ops
        int nt, drain_write, writable, ram
        uint64_t nt_threshold
        uint64_t dirtied_bytes, flushed_bytes, writebacks
        latency writeback_ns, writeback_pages
        trace_ring *trace
        flushers *flushers
    int dax_copy_out(daxio *io, const filemap *f, uint64_t pos, uint64_t size, char *target)
    int dax_pieces(daxio *io, const filemap *f, uint64_t pos, uint64_t size, iovec *iov, int max)
    int dax_touch(daxio *io, const filemap *f, uint64_t pos, uint64_t size)
    int dax_covered(const filemap *f, uint64_t pos, uint64_t size)
    int dax_copy_in(daxio *io, filemap *f, uint64_t pos, uint64_t size, const char *source, int nt)
    int dax_fill_new(daxio *io, uint64_t pgoff, uint64_t pages, uint64_t pfn, uint64_t pos, uint64_t size,
                     const char *source)
    int64_t dax_writeback(daxio *io, filemap *f, uint64_t first, uint64_t last, fsync_run *run)
    int64_t dax_persist(daxio *io, const filemap *f, uint64_t pos, uint64_t len)

cdef class DaxIo:
    cdef daxio io                # good while this object lives: it points into the next five, so they go last
    cdef RangeTable ranges
    cdef Flush flush
    cdef object region
    cdef flushers helpers        # those that are started are in io.flushers
    cdef public Tracker tracker      # of files that are opened from now on
    cdef readonly TraceRing trace    # shared by all that happens on the mount
    cdef int _check(self) except -1
    cdef int _fill_over(self, FileMap f, uint64_t pgoff, uint64_t pages, uint64_t pos, uint64_t size,
                        const char *source)
