# SPDX-License-Identifier: MIT
"""L3: dirty trackers: what may be dirty since the last fsync, told on writes and write faults (S14).

The marks themselves are made in C (``struct dax_tracker``, native/tracker.h): ``mark`` before a store
becomes visible, ``next_run`` to walk what is dirty in one inode, ``clean`` after flush and drain, all under
the inode's exclusive lock. Here is which policy a mount uses, and how a file gets it, also in the place of
another one. `PteTracker` keeps one bit for each 4 KiB page of each inode (S16): O(dirty), cleared at
writeback; `PmdTracker` one for 2 MiB, `LineTracker` one for a cache line. Knows nothing of FUSE.
"""
from daxfs._flush cimport DirtyMap, StateArena
from daxfs._iomap cimport FileMap


cdef class Tracker:
    """Base class, and the policy ``none``: nothing is marked, so that fsync is a drain."""

    name = "none"

    def __cinit__(self, StateArena arena=None):
        self.t, self.maps, self.arena = &dax_tracker_none, False, None

    def attach(self, FileMap f not None, bint suspect=False):
        """*f* has this tracker from now on: called with the GIL when a file is opened, before any mark.

        In the place of another one it begins with at least what that one had. *suspect*: where that one
        marked nothing, all pages that are MAPPED. MemoryError, with *f* as it was.
        """
        if f.policy == self.name:
            return
        f.track(self.t, DirtyMap(self.arena) if self.maps else None, suspect and f.policy == "none")

    def dirty_pages(self, FileMap f not None):
        """Pages of *f* that are marked, and begun ones."""
        return (f.dirty_bytes + 4095) >> 12

    def held(self, maps):
        """What is marked in the FileMaps *maps*, and the memory that this takes, for reports."""
        dirty = memory = 0
        for f in maps:
            dirty += f.dirty_bytes
            memory += f.dirty.__sizeof__() if f.dirty is not None else 0
        return {"unit_bytes": 1 << self.t.shift if self.t.shift else 0, "dirty_bytes": dirty,
                "memory_bytes": memory}


cdef class PteTracker(Tracker):
    """One bit a page of 4 KiB of each inode; in DRAM, or in the region (*arena*, S5) while slots are left."""

    name = "pte"

    def __cinit__(self, StateArena arena=None):
        self.t, self.maps, self.arena = &dax_tracker_pte, True, arena


cdef class PmdTracker(Tracker):
    """One bit for 2 MiB of each inode, kept as `PteTracker` does: fewer bits, and more lines to flush."""

    name = "pmd"

    def __cinit__(self, StateArena arena=None):
        self.t, self.maps, self.arena = &dax_tracker_pmd, True, arena


cdef class LineTracker(Tracker):
    """One bit for 64 bytes of each inode, kept as `PteTracker` does. Mappings mark whole pages."""

    name = "line"

    def __cinit__(self, StateArena arena=None):
        self.t, self.maps, self.arena = &dax_tracker_line, True, arena


TRACKERS = {kind.name: kind for kind in (PmdTracker, PteTracker, LineTracker, Tracker)}
POLICIES = tuple(TRACKERS)
