# SPDX-License-Identifier: MIT
# The interface that fsync's policies share (DESIGN.md section 9).
from libc.stdint cimport uint64_t
from daxfs._iomap cimport FileMap

cdef class Tracker:
    # All without the GIL and under the inode's lock: `mark` shared with other marks is not allowed.
    cdef int mark(self, FileMap f, uint64_t pgoff, uint64_t pages, uint64_t pfn) noexcept nogil
    cdef uint64_t next_run(self, FileMap f, uint64_t start, uint64_t *pages) noexcept nogil
    cdef void clean(self, FileMap f, uint64_t pgoff, uint64_t pages) noexcept nogil
