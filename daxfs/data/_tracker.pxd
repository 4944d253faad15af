# SPDX-License-Identifier: MIT
# The policies of fsync (native/tracker.h): which one a mount uses, and what it attaches to a file.
from libc.stdint cimport uint64_t
from daxfs._flush cimport ExtentMap, StateArena
from daxfs._iomap cimport FileMap, dax_tracker

cdef extern from "daxfs/native/tracker.h" nogil:
    const dax_tracker dax_tracker_none, dax_tracker_line, dax_tracker_pte, dax_tracker_pmd
    const dax_tracker dax_tracker_extent, dax_tracker_extent_clear

cdef class Tracker:
    cdef const dax_tracker *t    # static
    cdef bint maps               # its marks are bits of each file
    cdef readonly StateArena arena

cdef class PteTracker(Tracker):
    pass

cdef class PmdTracker(Tracker):
    pass

cdef class LineTracker(Tracker):
    pass

cdef class ExtentTracker(Tracker):
    cdef ExtentMap extents       # of the region
    cdef uint64_t npages
    cdef FileMap everything      # of no page, so that its write-back is that of the region's extents alone

cdef class ExtentClearTracker(ExtentTracker):
    pass
