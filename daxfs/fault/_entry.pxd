# SPDX-License-Identifier: MIT
# native/entry.h for other compiled units; Entries owns one map.
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "daxfs/native/entry.h" nogil:
    enum: ENTRY_LOCKED, ENTRY_PMD, ENTRY_ZERO, ENTRY_EMPTY, ENTRY_DIRTY
    struct entry_pages:
        pass
    struct entry_group:
        entry_pages **pages
    struct entry_map:
        entry_group **group
        size_t n, cap
    struct entry:
        uint64_t pgoff
        uint32_t order, state
    ctypedef void (*entry_unmap)(void *ctx, uint64_t pgoff, uint64_t pages) noexcept nogil
    void entry_map_init(entry_map *m, entry_unmap unmap, void *ctx)
    void entry_map_destroy(entry_map *m)
    int entry_grab(entry_map *m, uint64_t pgoff, unsigned int order, entry *out)
    void entry_insert(entry_map *m, entry *e, unsigned int how)
    void entry_unlock(entry_map *m, const entry *e)
    int entry_mkwrite(entry_map *m, uint64_t pgoff, unsigned int order, entry *out)
    int64_t entry_drop(entry_map *m, uint64_t first, uint64_t count, int keep_dirty)
    int entry_next_dirty(entry_map *m, uint64_t first, uint64_t last, entry *out)
    void entry_clean(entry_map *m, entry *e)
    unsigned int entry_state(entry_map *m, uint64_t pgoff)
    int entry_pte_there(entry_map *m, uint64_t pgoff)
    uint64_t entry_count(entry_map *m, uint64_t *dirty)

cdef class Entries:
    cdef entry_map m
    cdef object held                # of Python's callers: {first page: entry}, so that a slip is an error
    cdef public list unmapped
    cdef _took(self, const entry *e)
    cdef entry _held(self, uint64_t pgoff) except *
