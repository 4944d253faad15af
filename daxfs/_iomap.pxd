# SPDX-License-Identifier: MIT
# What other compiled units may use of _iomap: region addresses and the extents of a file.
cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from daxfs._flush cimport DirtyMap, ExtentMap, StateArena, dirty_map, extent_map
from daxfs._fsync cimport fsync_run

cdef extern from "daxfs/native/file_lock.h" nogil:
    enum: FILE_LOCK_QUEUE
    struct file_lock:
        uint32_t word
    int file_lock_try(file_lock *l, int exclusive)
    void file_lock_take(file_lock *l, int exclusive)
    void file_lock_give(file_lock *l)

cdef extern from "daxfs/native/tracker.h" nogil:
    struct dax_tracker

cdef extern from "daxfs/native/filemap.h" nogil:
    enum: IOMAP_HOLE, IOMAP_UNWRITTEN, IOMAP_MAPPED
    uint64_t DAXFS_MAX_PGOFF
    struct range_entry "range":
        uint64_t pfn_start, pfn_end
        char *addr
        uint64_t flags
    struct range_table:
        range_entry *r
        size_t n
        int64_t users
        int dead, lost
        uint64_t seq, own_seq
    struct iomap:
        uint64_t pgoff, len, pfn
        uint32_t type, slot
    struct own_watch:
        pass
    struct own_range:
        int fd, syncs, torn
        uint64_t pfn, room, pages
        own_watch *watch
    struct filemap:
        iomap *e
        size_t n, cap
        uint64_t size, pages
        const dax_tracker *tracker
        dirty_map *dirty
        extent_map *shared
        extent_map *active
        uint64_t ino
        char *inode
        own_range *own
        uint32_t state
        file_lock lock
    enum: FILEMAP_UNSETTLED, FILEMAP_PLAIN, FILEMAP_STALE_TIMES, FILEMAP_COARSE, FILEMAP_PARKS
    enum: FILEMAP_OBSERVED, FILEMAP_POISONED, FILEMAP_STORED
    const range_entry *range_lookup(const range_table *t, uint64_t pfn)
    int range_add(range_table *t, uint64_t pfn_start, uint64_t pfn_end, char *addr, uint64_t flags)
    void range_is_file(range_table *t, uint64_t pfn_start, int fd)
    int range_enter(range_table *t)
    void range_exit(range_table *t)
    int range_leave(range_table *t, int err)
    char *range_address(const range_table *t, uint64_t pfn, uint64_t *avail)
    void filemap_lookup(const filemap *m, uint64_t pgoff, iomap *out)
    size_t filemap_find(const filemap *m, uint64_t pgoff)
    void filemap_init(filemap *m)
    void filemap_destroy(filemap *m)
    int filemap_splice(filemap *m, size_t index, size_t count, const iomap *e, size_t n)

cdef extern from "daxfs/native/tracker.h" nogil:
    struct dax_tracker:
        const char *name
        unsigned shift
        uint64_t (*next_run)(const filemap *f, uint64_t pos, uint64_t *len) noexcept nogil
        void (*clean)(filemap *f, uint64_t pos, uint64_t len) noexcept nogil
    int tracker_mark(filemap *f, uint64_t pos, uint64_t len, uint64_t pfn)
    int tracker_mark_pages(filemap *f, uint64_t first, uint64_t pages)
    uint64_t tracker_bytes(const filemap *f)
    int tracker_switch(filemap *f, const dax_tracker *to, dirty_map *dirty, extent_map *shared, int all)
    int tracker_any(const filemap *f)

cdef class RangeTable:
    cdef range_table t
    cpdef unwatch(self)
    cpdef unwatch_own(self)
    cdef refusal(self)
    cdef char *watched               # base of the window that lost.h watches for us, or NULL
    cdef char *watched_own           # the same of the window of own ranges,
    cdef object own_window           # which stays as long as it is watched

@cython.final
cdef class FileMap:
    cdef filemap m
    cdef object range                # OwnRange of daxfs/_own, None: packed; m.own points into it
    cdef DirtyMap bits               # Python's `dirty`, None: the tracker has none; m.dirty points into it
    cdef ExtentMap shared            # m.shared points into it; None: no tracker of extents
    cdef unsigned long owner         # pthread_self() of the thread that holds the lock exclusively, or 0
    cdef unsigned int depth          # how often that thread took it again
    cdef bint _mine(self) noexcept nogil
    cdef void read_lock(self) noexcept nogil
    cdef void write_lock(self) noexcept nogil
    cdef void fsync_lock(self, fsync_run *run) noexcept nogil
    cpdef void unlock(self) noexcept nogil
    cdef void _shared(self) noexcept
    cdef void _exclusive(self) noexcept
    cdef StateArena arena(self)
    cdef int enter_marks(self) except -1
    cdef int leave_marks(self) except -1
    cdef int track(self, const dax_tracker *to, DirtyMap bits, bint all, ExtentMap shared) except -1
