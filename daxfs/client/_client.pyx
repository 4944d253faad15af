# SPDX-License-Identifier: MIT
# cython: language_level=3
"""L4: libdaxfs for Python: one mapping, its lifetime, and write-back of parts of arrays over it.

Limits: lifetime, bounds and errors are here, everything else in C. Any thread; what is long runs without the
GIL. A mapping is unmapped when the last object over its memory is gone, never before.
"""

from cpython.buffer cimport PyBUF_STRIDED_RO, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.slice cimport PySlice_AdjustIndices, PySlice_Unpack
from libc.errno cimport EINVAL, EPERM, errno
from libc.stdint cimport uint64_t, uintptr_t

import os

cdef extern from "<sys/mman.h>" nogil:
    int MS_SYNC

cdef extern from "daxfs/client/daxfs.h" nogil:
    enum:
        DAXFS_MAP_WRITE
        DAXFS_MAP_PRIVATE
        DAXFS_MAP_PTE
        DAXFS_MAP_REQUIRE
        DAXFS_MAP_USER
    struct daxfs_info:
        int observed
        int error
        const char *why
        const char *flush
    struct daxfs_piece:
        void *start
        size_t length
    void *daxfs_map_fd(int fd, unsigned flags, uint64_t offset, size_t length, daxfs_info *info)
    int daxfs_unmap(void *addr, size_t length)
    int daxfs_msync(void *addr, size_t length, int flags)
    int daxfs_flush(const void *addr, size_t length)
    void daxfs_drain()
    int daxfs_persist(const void *addr, size_t length)
    struct daxfs_msyncs_ "daxfs_msyncs":
        uint64_t count, wait, scan, flush, drain
    void daxfs_msyncs(daxfs_msyncs_ *out)
    ssize_t daxfs_dirty(const void *addr, size_t length, daxfs_piece *out, size_t room)

cdef enum:
    LONG = 16384        # from here on other threads may run
    PAGE = 4096
    ROOM = 512          # pieces of one call of daxfs_dirty


cdef extern from "daxfs/client/lib.h" nogil:
    enum: DAXFS_FAULT_USER
    int kernel_ready(int mode)


def why_no_user_faults():
    """Why this process can't have fault=user; "": it can."""
    cdef int rc = kernel_ready(DAXFS_FAULT_USER)
    if rc == -EPERM:
        return "it needs root or CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1"
    return f"no userfaultfd for faults of shared memory: {os.strerror(-rc)}" if rc else ""


def msyncs():
    """daxfs_msyncs of daxfs.h: "count" of write-backs, and ns of "wait", "scan", "flush", "drain"."""
    cdef daxfs_msyncs_ out
    daxfs_msyncs(&out)
    return {"count": out.count, "wait": out.wait, "scan": out.scan, "flush": out.flush, "drain": out.drain}


cdef int _fail() except -1:
    raise OSError(errno, os.strerror(errno))


cdef class Mapping:
    """*length* bytes of the open file *fd* at *offset* (a multiple of 4096). Exports a buffer.

    *private*: copy on write. *pte*: pages of 4 KiB. *require*: OSError (EOPNOTSUPP) unless it is observed.
    *user*: fault=user.
    """

    cdef char *at
    cdef size_t size
    cdef bint writable, private
    cdef daxfs_info info
    cdef object __weakref__

    def __cinit__(self, int fd, uint64_t offset, size_t length, bint write, bint private=False,
                  bint pte=False, bint require=False, bint user=False):
        cdef unsigned flags = 0
        if not length:
            raise OSError(EINVAL, "nothing to map")
        if write or private:
            flags |= DAXFS_MAP_WRITE
        if private:
            flags |= DAXFS_MAP_PRIVATE
        if pte:
            flags |= DAXFS_MAP_PTE
        if require:
            flags |= DAXFS_MAP_REQUIRE
        if user:
            flags |= DAXFS_MAP_USER
        with nogil:
            self.at = <char *>daxfs_map_fd(fd, flags, offset, length, &self.info)
        if self.at is NULL:
            _fail()
        self.size = length
        self.writable = write or private
        self.private = private

    def __dealloc__(self):
        if self.at is not NULL:
            with nogil:
                daxfs_unmap(self.at, self.size)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.at, self.size, not self.writable, flags)

    @property
    def observed(self):
        """True: what is stored is known page by page. False: ``why_not``."""
        return bool(self.info.observed)

    @property
    def why_not(self):
        """Why it is not observed; "" if it is."""
        return "" if self.info.observed else self.info.why.decode()

    @property
    def flush_kind(self):
        """How lines are written back: clwb, clflushopt, clflush, none, or msync."""
        return self.info.flush.decode()

    cdef int _bounds(self, object array, object where, char **start, size_t *length) except -1:
        """The bytes from the lowest to the highest of *array*, or of its part *where* (slice or int)."""
        cdef Py_buffer view
        cdef Py_ssize_t first, stop, step, n, span
        cdef char *low
        cdef char *high
        cdef int i
        PyObject_GetBuffer(array, &view, PyBUF_STRIDED_RO)
        try:
            low = <char *>view.buf
            high = low + view.itemsize
            for i in range(view.ndim):
                n = view.shape[i]
                if i == 0 and where is not None:
                    if isinstance(where, slice):
                        PySlice_Unpack(where, &first, &stop, &step)
                        n = PySlice_AdjustIndices(n, &first, &stop, step)
                    else:
                        first = where
                        step = 1
                        if first < -n or first >= n:
                            raise IndexError(f"index {first} is out of bounds for size {n}")
                        first += n if first < 0 else 0
                        n = 1
                    low += first * view.strides[0]
                    high += first * view.strides[0]
                    span = (n - 1) * step * view.strides[0]
                else:
                    span = (n - 1) * view.strides[i]
                if n == 0:
                    start[0] = self.at
                    length[0] = 0
                    return 0
                if span < 0:
                    low += span
                else:
                    high += span
        finally:
            PyBuffer_Release(&view)
        if low < self.at or high > self.at + self.size:
            raise ValueError("this memory is not of the mapping: it was copied")
        start[0] = low
        length[0] = high - low
        return 0

    def flush(self, array, where=None):
        """Queue the lines of *array*, or of its part *where*."""
        cdef char *start
        cdef size_t length
        cdef int r
        self._bounds(array, where, &start, &length)
        if self.private or not length:
            return
        with nogil:
            r = daxfs_flush(start, length)
        if r:
            _fail()

    def persist(self, array, where=None):
        """flush and drain; what was stored to these bytes is durable then."""
        cdef char *start
        cdef size_t length
        cdef int r
        self._bounds(array, where, &start, &length)
        if self.private or not length:
            return
        if length < LONG and self.info.observed:
            # Orders the stores to these bytes before whatever the caller stores next.
            r = daxfs_persist(start, length)
        else:
            with nogil:
                r = daxfs_persist(start, length)
        if r:
            _fail()

    def drain(self):
        """Order everything queued before as durable before any later store."""
        # Orders the lines that the caller queued with flush before its next store.
        daxfs_drain()

    def msync(self, array, where=None):
        """Make durable what was stored to the pages of *array*, or of its part *where*, and only that."""
        cdef char *start
        cdef char *page
        cdef size_t length
        cdef int r
        self._bounds(array, where, &start, &length)
        if self.private or not length:
            return
        page = <char *>(<uintptr_t>start & ~<uintptr_t>(PAGE - 1))
        with nogil:
            r = daxfs_msync(page, start + length - page, MS_SYNC)
        if r:
            _fail()

    def dirty(self, array, where=None):
        """[(first, end), ...]: bytes of *array* (0: its lowest) in pages that msync would write back."""
        cdef char *start
        cdef char *at
        cdef size_t length
        cdef ssize_t n, i
        cdef daxfs_piece *piece
        self._bounds(array, where, &start, &length)
        found = []
        piece = <daxfs_piece *>PyMem_Malloc(ROOM * sizeof(daxfs_piece))
        if piece is NULL:
            raise MemoryError
        try:
            at = start
            while at < start + length:
                n = daxfs_dirty(at, start + length - at, piece, ROOM)
                if n < 0:
                    _fail()
                for i in range(n):
                    first = max(0, <char *>piece[i].start - start)
                    end = min(length, <char *>piece[i].start + piece[i].length - start)
                    if found and found[-1][1] == first:
                        first = found.pop()[0]
                    found.append((first, end))
                if n < ROOM:
                    break
                at = <char *>piece[n - 1].start + piece[n - 1].length
        finally:
            PyMem_Free(piece)
        return found
