# SPDX-License-Identifier: MIT
"""L3: dirty trackers: what may be dirty since the last fsync, told on writes and write faults (S14).

`Tracker` is the interface: ``mark`` before a store becomes visible, ``next_run``
to walk what is dirty in one inode, ``clean`` after flush and drain. `PteTracker`
keeps one bit for each 4 KiB page of each inode (S16): O(dirty), cleared at
writeback. Callers hold the inode's lock exclusively. Knows nothing of FUSE.
"""
from libc.errno cimport EINVAL
from libc.stdint cimport uint64_t, UINT64_MAX

from daxfs._flush cimport DirtyMap, StateArena
from daxfs._iomap cimport FileMap

POLICIES = ("pte",)


cdef class Tracker:
    """Base class: the policy that tracks nothing and reports nothing dirty."""

    name = "none"

    def attach(self, FileMap f not None):
        """Called with the GIL when a file is opened, before any mark."""

    cdef int mark(self, FileMap f, uint64_t pgoff, uint64_t pages, uint64_t pfn) noexcept nogil:
        """Pages [pgoff, pgoff + pages) may be dirty from now on. 0, -ENOMEM, or -EINVAL without attach."""
        return 0

    cdef uint64_t next_run(self, FileMap f, uint64_t start, uint64_t *pages) noexcept nogil:
        """First dirty page at or after *start* and the length of its run; UINT64_MAX: none."""
        return UINT64_MAX

    cdef void clean(self, FileMap f, uint64_t pgoff, uint64_t pages) noexcept nogil:
        """Written back: flushed and drained already."""

    def dirty_pages(self, FileMap f not None):
        """Pages of *f* that are marked."""
        return 0


cdef class PteTracker(Tracker):
    """One bit a page of 4 KiB, for each inode; in DRAM, or in the region (*arena*, S5) while slots are left.

    With an arena, mark, next_run and clean belong between range_enter and range_exit.
    """

    name = "pte"
    cdef readonly StateArena arena

    def __init__(self, StateArena arena=None):
        self.arena = arena

    def attach(self, FileMap f not None):
        if f.dirty is None:
            f.dirty = DirtyMap(self.arena)

    cdef int mark(self, FileMap f, uint64_t pgoff, uint64_t pages, uint64_t pfn) noexcept nogil:
        if f.bits is None:
            return -EINVAL
        return f.bits.set_range(pgoff, pages)

    cdef uint64_t next_run(self, FileMap f, uint64_t start, uint64_t *pages) noexcept nogil:
        if f.bits is None:
            return UINT64_MAX
        return f.bits.next_run(start, pages)

    cdef void clean(self, FileMap f, uint64_t pgoff, uint64_t pages) noexcept nogil:
        if f.bits is not None:
            f.bits.clear_range(pgoff, pages)

    def dirty_pages(self, FileMap f not None):
        return f.bits.count if f.bits is not None else 0
