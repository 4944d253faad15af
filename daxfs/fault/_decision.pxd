# SPDX-License-Identifier: MIT
# The accounting hook of native/serve.h (struct server: fault, fault_ctx). daxfs.data may not import this
# folder: daxfs/fuse hands it over at run time (CachedFaults.hook).
from libc.stdint cimport uint64_t
from daxfs._iomap cimport filemap

cdef struct fault_counts:
    uint64_t faults[4][2][4][11]      # kind, PTE or PMD, result, reason; relaxed atomics
    uint64_t pages[4]                 # by kind; relaxed atomics
    bint pmd                          # PMD mappings are possible here; never changes

# *ctx*: fault_counts. Any thread, without the GIL; the caller holds f's lock, shared at least.
cdef void cached_fault(void *ctx, filemap *f, uint64_t pos, uint64_t size, int write) noexcept nogil

cdef class CachedFaults:
    cdef fault_counts counts
