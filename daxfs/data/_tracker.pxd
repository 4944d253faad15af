# SPDX-License-Identifier: MIT
# The interface that fsync's policies share (DESIGN.md section 9): a C struct, and its Python face.
from libc.stdint cimport uint64_t
from daxfs._flush cimport StateArena
from daxfs._iomap cimport filemap

cdef extern from "daxfs/native/daxio.h" nogil:
    struct dax_tracker:
        int (*mark)(dax_tracker *, filemap *, uint64_t pgoff, uint64_t pages, uint64_t pfn) noexcept nogil
        uint64_t (*next_run)(dax_tracker *, filemap *, uint64_t start, uint64_t *pages) noexcept nogil
        void (*clean)(dax_tracker *, filemap *, uint64_t pgoff, uint64_t pages) noexcept nogil
    dax_tracker dax_tracker_none, dax_tracker_pte

cdef class Tracker:
    cdef dax_tracker *t          # static

cdef class PteTracker(Tracker):
    cdef readonly StateArena arena
