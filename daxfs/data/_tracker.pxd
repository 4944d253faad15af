# SPDX-License-Identifier: MIT
# The policies of fsync (native/tracker.h): which one a mount uses, and what it attaches to a file.
from daxfs._flush cimport StateArena
from daxfs._iomap cimport dax_tracker

cdef extern from "daxfs/native/tracker.h" nogil:
    const dax_tracker dax_tracker_none, dax_tracker_line, dax_tracker_pte, dax_tracker_pmd

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
