# SPDX-License-Identifier: MIT
# What other compiled units may use of _own: the own range behind a FileMap.
from libc.stdint cimport uint64_t
from daxfs._iomap cimport own_range
from daxfs._window cimport Window

cdef class OwnWindow:
    cdef readonly Window window
    cdef own_range **at              # the range at each place, for the SIGBUS handler
    cdef dict free                   # number of places -> list of first places that are free
    cdef uint64_t first, next, places
    cdef uint64_t _take(self, uint64_t count) except? 0xFFFFFFFFFFFFFFFF
    cdef void _give(self, uint64_t place, uint64_t count)

cdef class OwnRange:
    cdef own_range r
    cdef OwnWindow home
    cdef uint64_t place, count       # in the window; count 0: it has no address
    cdef bint writable, map_sync
    cdef object watcher              # keeps alive what r.watch points to
    cdef _unreach(self)
    cdef _done(self, int rc)
