# SPDX-License-Identifier: MIT
"""L3: dirty trackers: what may be dirty since the last fsync, told on writes and write faults (S14).

The marks themselves are made in C (``struct dax_tracker``, native/tracker.h): ``mark`` before a store
becomes visible, ``next_run`` to walk what is dirty in one inode, ``clean`` after flush and drain, all under
the inode's exclusive lock. Here is which policy a mount uses, and how a file gets it, also in the place of
another one. `PteTracker` keeps one bit for each 4 KiB page of each inode (S16): O(dirty), cleared at
writeback; `PmdTracker` one for 2 MiB, `LineTracker` one for a cache line. `ExtentTracker` cuts the region
into 256 extents (S15): from the first mark on, each fsync of any file flushes all of one. Limits: knows
nothing of FUSE.
"""
from libc.stdint cimport uint64_t

from daxfs._flush cimport (DirtyMap, EXTENTS, ExtentMap, StateArena, extent_count, extent_map,
                            extent_map_fill)
from daxfs._iomap cimport FileMap


cdef class Tracker:
    """Base class, and the policy ``none``: nothing is marked, so that fsync is a drain."""

    name = "none"
    clears = False  # `last_close` has something to do

    def __cinit__(self, StateArena arena=None, uint64_t npages=0):
        self.t, self.maps, self.arena = &dax_tracker_none, False, None

    def attach(self, FileMap f not None, bint suspect=False):
        """*f* has this tracker from now on: called with the GIL when a file is opened, before any mark.

        In the place of another one it begins with at least what that one had. *suspect*: where that one
        marked nothing, all pages that are MAPPED. MemoryError, with *f* as it was.
        """
        if self.tracks(f):
            return
        bits = DirtyMap(self.arena) if self.maps else None
        f.track(self.t, bits, suspect and f.policy == "none", None)

    def tracks(self, FileMap f not None):
        """Whether *f* has this tracker, and not another one of the same name."""
        return f.m.tracker == self.t

    def keeps(self, FileMap f not None):
        """Whether the marks of *f* stay when it is closed, so that its last close need not write back."""
        return False

    def last_close(self, dax):
        """No file is open any more."""

    def finish(self, dax):
        """Write back, through *dax* (DaxIo), what is marked for files that are closed. OSError."""

    def dirty_pages(self, FileMap f not None):
        """Pages of *f* that are marked, and begun ones."""
        return (f.dirty_bytes + 4095) >> 12

    def held(self, maps):
        """What is marked in the FileMaps *maps*, and the memory that this takes, for reports."""
        dirty = memory = 0
        for f in maps:
            dirty += f.dirty_bytes
            memory += f.marks_memory
        return {"unit_bytes": 1 << self.t.shift if self.t.shift else 0, "dirty_bytes": dirty,
                "memory_bytes": memory}


cdef class PteTracker(Tracker):
    """One bit a page of 4 KiB of each inode; in DRAM, or in the region (*arena*, S5) while slots are left."""

    name = "pte"

    def __cinit__(self, StateArena arena=None, uint64_t npages=0):
        self.t, self.maps, self.arena = &dax_tracker_pte, True, arena


cdef class PmdTracker(Tracker):
    """One bit for 2 MiB of each inode, kept as `PteTracker` does: fewer bits, and more lines to flush."""

    name = "pmd"

    def __cinit__(self, StateArena arena=None, uint64_t npages=0):
        self.t, self.maps, self.arena = &dax_tracker_pmd, True, arena


cdef class LineTracker(Tracker):
    """One bit for 64 bytes of each inode, kept as `PteTracker` does. Mappings mark whole pages."""

    name = "line"

    def __cinit__(self, StateArena arena=None, uint64_t npages=0):
        self.t, self.maps, self.arena = &dax_tracker_line, True, arena


cdef class ExtentTracker(Tracker):
    """256 extents of a region of *npages* in one bitmap, and of each own range in one of its own; each in
    DRAM, or in a slot of the region (*arena*, S5) while some are left. An extent stays active as long as
    the mount, or the own range's inode, is in use. OSError EIO where the region of *arena* is gone."""

    name = "extent"

    def __cinit__(self, StateArena arena=None, uint64_t npages=0):
        self.t, self.maps, self.arena, self.npages = &dax_tracker_extent, False, arena, npages
        self.extents = ExtentMap(max((npages + EXTENTS - 1) // EXTENTS, 1), arena)
        self.everything = FileMap()

    def attach(self, FileMap f not None, bint suspect=False):
        if not self.tracks(f):
            f.track(self.t, None, suspect and f.policy == "none", self.extents)

    def tracks(self, FileMap f not None):
        return f.m.tracker == self.t and f.m.shared == &self.extents.m

    def keeps(self, FileMap f not None):
        return f.own is None and self.tracks(f)

    def finish(self, dax):
        self.everything.track(self.t, None, False, self.extents)
        if self.everything.marked:
            dax.writeback(self.everything)

    def suspect(self):
        """All of the region may be dirty. Before the tracker has a file; not with an arena."""
        each = self.extents.m.pages
        extent_map_fill(&self.extents.m, (self.npages + each - 1) // each)

    def held(self, maps):
        # By what DRAM has, as this is told when the region is gone, too.
        cdef uint64_t each = self.extents.m.pages, active = min(self.extents.active * each, self.npages)
        cdef uint64_t ranges = 0
        cdef FileMap f
        for f in maps:
            if f.own is not None and f.m.active != NULL:
                ranges += 1
                active += min(extent_count(f.m.active) * f.m.active.pages, <uint64_t>f.own.pages)
        return {"unit_bytes": each << 12, "dirty_bytes": active << 12,
                "memory_bytes": (1 + ranges) * sizeof(extent_map), "active_extents": self.extents.active}


cdef class ExtentClearTracker(ExtentTracker):
    """The same, and no extent of the region is active any more once no file is open."""

    name = "extent+clear"
    clears = True

    def __cinit__(self, StateArena arena=None, uint64_t npages=0):
        self.t = &dax_tracker_extent_clear

    def last_close(self, dax):
        self.finish(dax)
        # Order: after flush and drain. Nobody marks meanwhile, as no file is open.
        self.extents.clear()


TRACKERS = {kind.name: kind for kind in (PteTracker, PmdTracker, LineTracker, ExtentTracker,
                                         ExtentClearTracker, Tracker)}
POLICIES = tuple(TRACKERS)
