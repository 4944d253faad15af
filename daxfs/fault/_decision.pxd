# SPDX-License-Identifier: MIT
# native/fault.h for other compiled units, and the accounting hook of native/serve.h (struct server: fault,
# fault_ctx). daxfs.data may not import this folder: daxfs/fuse hands it over at run time (CachedFaults.hook).
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from daxfs._iomap cimport filemap, iomap

cdef extern from "daxfs/native/fault.h" nogil:
    enum: FAULT_PMD_ORDER, FAULT_PMD_PAGES, FAULT_COLOUR
    enum: FAULT_READ, FAULT_WRITE, FAULT_COW, FAULT_MKWRITE, FAULT_KINDS
    enum: FAULT_NOPAGE, FAULT_MAJOR, FAULT_RESULTS
    enum: FAULT_REASONS
    enum:
        FAULT_PMD, FAULT_ZERO_PAGE, FAULT_SYNC, FAULT_PTE_ENTRY, FAULT_TABLE, FAULT_POISON, FAULT_POISON_PMD
    struct fault_args:
        uint64_t pgoff, address, vma_start, vma_end, size
        uint32_t kind, flags
    struct fault_decision:
        uint8_t order, result, reason
    fault_decision fault_decide(const fault_args *a, const iomap *extent)
    void fault_extent(const filemap *f, uint64_t pgoff, iomap *out)

cdef struct fault_counts:
    uint64_t faults[FAULT_KINDS][2][FAULT_RESULTS][FAULT_REASONS]      # PTE or PMD; relaxed atomics
    uint64_t pages[FAULT_KINDS]        # relaxed atomics
    bint pmd      # PMD mappings are possible here; never changes

# *ctx*: fault_counts. Any thread, without the GIL; the caller holds f's lock, shared at least.
cdef void cached_fault(void *ctx, filemap *f, uint64_t pos, uint64_t size, int write) noexcept nogil

cdef class CachedFaults:
    cdef fault_counts counts
