# SPDX-License-Identifier: MIT
# What other compiled units may use of _flush: the bound table and the dirty bitmap.
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "daxfs/native/flush.h" nogil:
    struct daxfs_flush:
        void (*store)(daxfs_flush *, void *, const void *, size_t) noexcept nogil
        void (*nt_store)(daxfs_flush *, void *, const void *, size_t) noexcept nogil
        void (*nt_fill)(daxfs_flush *, void *, int, size_t) noexcept nogil
        void (*flush)(daxfs_flush *, const void *, size_t) noexcept nogil
        void (*drain)(daxfs_flush *) noexcept nogil
        int kind
        int nt_kind
        int granularity
        uint64_t n_store, store_bytes, n_nt, nt_bytes, n_flush, flush_lines, n_drain
        int error
        uint64_t n_error
        void *recorder
        void *emulator
    int daxfs_flush_take_error(daxfs_flush *t)
    enum: DAXFS_CLWB, DAXFS_CLFLUSHOPT, DAXFS_CLFLUSH, DAXFS_FLUSH_NONE, DAXFS_MSYNC

cdef extern from "daxfs/native/dirty.h" nogil:
    struct dirty_arena:
        uint32_t slots
    struct dirty_map:
        dirty_arena *arena
        size_t n, cap
        uint64_t count

cdef extern from "daxfs/native/filemap.h" nogil:
    enum: EXTENTS
    struct extent_map:
        uint64_t *slot
        uint64_t pages, active

cdef extern from "daxfs/native/tracker.h" nogil:
    void extent_map_init(extent_map *m, dirty_arena *arena, uint64_t pages)
    void extent_map_end(extent_map *m)
    void extent_map_clear(extent_map *m)
    void extent_map_fill(extent_map *m, unsigned n)
    unsigned extent_count(const extent_map *m)

cdef class Flush:
    cdef daxfs_flush *t          # owned; valid for the life of the object

cdef class StateArena:
    cdef dirty_arena a
    cdef object table            # with enter() and exit(): the region's

cdef class DirtyMap:
    cdef dirty_map m
    cdef StateArena arena        # None: chunks are in DRAM. m points into it, so it goes last
    cdef int _enter(self) except -1
    cdef int _exit(self) except -1

cdef class ExtentMap:
    cdef extent_map m
    cdef StateArena arena            # None: in DRAM. m points into it, so it goes last
