# SPDX-License-Identifier: MIT
"""L3: dirty trackers: what may be dirty since the last fsync, told on writes and write faults (S14).

The marks themselves are made in C (``struct dax_tracker``, native/daxio.h): ``mark``
before a store becomes visible, ``next_run`` to walk what is dirty in one inode,
``clean`` after flush and drain, all under the inode's exclusive lock. Here is which
of them a mount uses and what it attaches to a file. `PteTracker` keeps one bit for
each 4 KiB page of each inode (S16): O(dirty), cleared at writeback. Knows nothing of FUSE.
"""
from daxfs._flush cimport DirtyMap, StateArena
from daxfs._iomap cimport FileMap

POLICIES = ("pte",)


cdef class Tracker:
    """Base class: the policy that tracks nothing and reports nothing dirty."""

    name = "none"

    def __cinit__(self, *args, **kwargs):
        self.t = &dax_tracker_none

    def attach(self, FileMap f not None):
        """Called with the GIL when a file is opened, before any mark."""

    def dirty_pages(self, FileMap f not None):
        """Pages of *f* that are marked."""
        return 0


cdef class PteTracker(Tracker):
    """One bit a page of 4 KiB of each inode; in DRAM, or in the region (*arena*, S5) while slots are left."""

    name = "pte"

    def __cinit__(self, StateArena arena=None):
        self.t = &dax_tracker_pte
        self.arena = arena

    def attach(self, FileMap f not None):
        if f.dirty is None:
            f.dirty = DirtyMap(self.arena)

    def dirty_pages(self, FileMap f not None):
        return f.bits.count if f.bits is not None else 0
