# SPDX-License-Identifier: MIT
"""L1: stores at byte offsets of the region, through the flush table that was bound when it was opened.

Limits: for the metadata thread, and not after close. What threads without the GIL store is native/daxio.c's.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EIO, EROFS
from libc.stdint cimport int64_t, uint64_t

from daxfs._flush cimport DAXFS_MSYNC, Flush, daxfs_flush_take_error
from daxfs._iomap cimport (
    IOMAP_MAPPED, FileMap, RangeTable, filemap_lookup, iomap, range_address, range_enter, range_exit,
    range_leave,
)

import os

from daxfs.errors import CorruptError, fail

cdef enum:
    PAGE_SHIFT = 12
    PAGE_MASK = (1 << 12) - 1
    # Copies from this size on release the GIL: below it, giving it up costs more than the copy.
    LONG_COPY = 1 << 15


cdef class Stores:
    """Base of region.Region: stores at byte offsets of the region, checked and through the bound table.

    An offset or length outside a range raises CorruptError (it came from damaged metadata); a region that
    is dead, EIO; one that is open read-only, EROFS. A failed msync is raised by the next drain.
    """

    cdef readonly RangeTable table
    cdef Flush bound
    cdef bint writable

    def __cinit__(self, *args, **kwargs):
        self.table = RangeTable()
        self.bound = None
        self.writable = False

    def bind(self, Flush flush, bint writable):
        """Use *flush* for every store from now on (once, when the region is opened)."""
        self.bound = flush
        self.writable = writable

    @property
    def flush(self):
        """The Flush object that this region's stores go through."""
        return self.bound

    cdef char *_enter(self, object offset, uint64_t length, bint change) except NULL:
        """Enter, and the address of *offset*; with an exception, nothing is entered."""
        cdef int64_t off
        cdef uint64_t avail = 0
        cdef char *p
        try:
            off = offset
        except OverflowError:
            off = -1
        if change and not self.writable:
            raise fail(EROFS, "the region is open read-only")
        if range_enter(&self.table.t):
            raise self.table.refusal()
        p = NULL if off < 0 else range_address(&self.table.t, <uint64_t>off >> PAGE_SHIFT, &avail)
        if p == NULL or length > (avail << PAGE_SHIFT) - (off & PAGE_MASK):
            range_exit(&self.table.t)
            raise CorruptError(f"bytes {offset}+{length} are outside the region")
        return p + (off & PAGE_MASK)

    cdef int _done(self) except -1:
        """Leave; raise what msync reported since the last look."""
        cdef int error = daxfs_flush_take_error(self.bound.t) if self.bound.t.error else 0
        if range_leave(&self.table.t, 0):
            raise self.table.refusal()
        if error:
            raise fail(error, "writing back to the source failed: " + os.strerror(error))
        return 0

    def store(self, offset, data):
        """Ordinary store of a buffer; aligned 8 bytes are one atomic store. Durable after persist."""
        cdef Py_buffer view
        cdef char *p
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            p = self._enter(offset, view.len, True)
            if view.len >= LONG_COPY:
                with nogil:
                    self.bound.t.store(self.bound.t, p, view.buf, view.len)
            else:
                self.bound.t.store(self.bound.t, p, view.buf, view.len)
            range_exit(&self.table.t)
        finally:
            PyBuffer_Release(&view)

    def nt_store(self, offset, data):
        """Store that leaves no dirty line: durable at the next drain."""
        cdef Py_buffer view
        cdef char *p
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            p = self._enter(offset, view.len, True)
            if view.len >= LONG_COPY or self.bound.t.kind == DAXFS_MSYNC:
                with nogil:
                    self.bound.t.nt_store(self.bound.t, p, view.buf, view.len)
            else:
                self.bound.t.nt_store(self.bound.t, p, view.buf, view.len)
            range_exit(&self.table.t)
        finally:
            PyBuffer_Release(&view)

    def nt_fill(self, offset, int byte, uint64_t length):
        """Fill *length* bytes with *byte*, as nt_store does."""
        cdef char *p = self._enter(offset, length, True)
        with nogil:
            self.bound.t.nt_fill(self.bound.t, p, byte, length)
        range_exit(&self.table.t)

    def nt_zero(self, FileMap f not None, uint64_t pos, uint64_t end):
        """Zero bytes [pos, end) of a file where its extents are written, as nt_fill does, under its lock.

        Holes and unwritten extents read as zeros already. EIO after kill.
        """
        cdef int err
        if not self.writable:
            raise fail(EROFS, "the region is open read-only")
        with nogil:
            f.write_lock()
            err = self._zero(f, pos, end)
            f.unlock()
        if err:
            raise fail(-err)

    cdef int _zero(self, FileMap f, uint64_t pos, uint64_t end) noexcept nogil:
        cdef iomap m
        cdef uint64_t n, off, avail
        cdef char *p
        if range_enter(&self.table.t):
            return -EIO
        while pos < end:
            filemap_lookup(&f.m, pos >> PAGE_SHIFT, &m)
            off = pos & PAGE_MASK
            n = end - pos
            if m.len <= (n + off) >> PAGE_SHIFT:
                n = (m.len << PAGE_SHIFT) - off
            if m.type == IOMAP_MAPPED:
                p = range_address(&self.table.t, m.pfn, &avail)
                if p == NULL or (off + n + PAGE_MASK) >> PAGE_SHIFT > avail:
                    range_exit(&self.table.t)
                    return -EIO
                self.bound.t.nt_fill(self.bound.t, p + off, 0, n)
            pos += n
        return range_leave(&self.table.t, 0)

    def flush_range(self, offset, uint64_t length):
        """Queue the cache lines of [offset, offset + length) for write-back."""
        self._queue(self._enter(offset, length, True), length)
        range_exit(&self.table.t)

    def drain(self):
        """Wait until all that was flushed or nt_stored before is durable. The caller names the order."""
        if range_enter(&self.table.t):
            raise self.table.refusal()
        self._drain()
        self._done()

    def persist(self, offset, uint64_t length):
        """flush_range and drain."""
        self._queue(self._enter(offset, length, True), length)
        # Orders this range, and all that was queued earlier, before what the caller stores next.
        self._drain()
        self._done()

    cdef void _queue(self, const char *p, uint64_t length) noexcept:
        if length >= LONG_COPY or self.bound.t.kind == DAXFS_MSYNC:
            with nogil:
                self.bound.t.flush(self.bound.t, p, length)
        else:
            self.bound.t.flush(self.bound.t, p, length)

    cdef void _drain(self) noexcept:
        if self.bound.t.kind == DAXFS_MSYNC:
            with nogil:
                self.bound.t.drain(self.bound.t)
        else:
            self.bound.t.drain(self.bound.t)
