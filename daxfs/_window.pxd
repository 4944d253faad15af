# SPDX-License-Identifier: MIT
# What other compiled units may use of _window: where it is, and how many buffers on it there are.
from libc.stdint cimport int64_t, uint64_t

cdef class Window:
    cdef char *base
    cdef size_t length
    cdef int64_t exports
    cdef bint writable
    cdef dict placed                 # offset in the window -> (bytes, fd, offset in fd)
    cdef char *_at(self, uint64_t pfn, uint64_t npages) except NULL
