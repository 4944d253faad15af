# SPDX-License-Identifier: MIT
"""L3: dax_io: reads and writes that copy straight between a buffer and the region (S3).

`DaxIo` looks up extents, enters the region, copies with the GIL released and
leaves. It allocates nothing and changes no metadata: a write that needs blocks or
grows the file is refused here (``NEEDS_BLOCKS``) and comes back as `fill` with
the blocks that daxfs/meta took for it.

Write policies (DESIGN.md section 6): ``nt`` stores past the cache, so that nothing
is dirty afterwards; ``cached`` marks the tracker and stores through the cache.
Locks: a FileMap's lock shared for reads, exclusive for writes and writeback; it
is taken without the GIL (docs/concurrency.md).
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EIO, EROFS
from libc.stdint cimport int64_t, uint64_t, UINT64_MAX, uintptr_t
from libc.string cimport memcpy, memset

from daxfs._flush cimport Flush, daxfs_flush
from daxfs._iomap cimport (
    IOMAP_HOLE, IOMAP_MAPPED, FileMap, RangeTable, filemap_lookup, iomap, range_address, range_enter,
    range_exit, range_table,
)
from daxfs.data._tracker cimport Tracker

from daxfs.errors import UsageError, fail
from daxfs.pfn import sg_list

cdef enum:
    SHIFT = 12
    PAGE = 4096
    VIEW_FROM = 16384    # a reply of this size or more is a view of the region, not a copy

NEEDS_BLOCKS = 1
WRITE_POLICIES = ("nt", "cached")
DRAIN_POLICIES = ("write", "fsync")


cdef inline uint64_t _min(uint64_t a, uint64_t b) noexcept nogil:
    return a if a < b else b


cdef class DaxIo:
    """The data path of one region.

    region: daxfs.region.Region. tracker: told of every store that leaves dirty
    lines. write: "nt" or "cached"; drain: "write" (before the reply) or "fsync".
    """

    cdef object region
    cdef RangeTable ranges
    cdef Flush flush
    cdef range_table *table
    cdef daxfs_flush *ops
    cdef readonly Tracker tracker
    cdef readonly bint nt, drain_write
    cdef bint writable
    cdef readonly uint64_t dirtied_pages, flushed_pages, writebacks

    def __init__(self, region, Tracker tracker not None, write="nt", drain="write"):
        if write not in WRITE_POLICIES or drain not in DRAIN_POLICIES:
            raise UsageError(f"write={write}, drain={drain}: write is one of {', '.join(WRITE_POLICIES)}, "
                             f"drain one of {', '.join(DRAIN_POLICIES)}")
        self.region, self.ranges, self.flush = region, region.table, region.flush
        self.table, self.ops = &self.ranges.t, self.flush.t
        self.tracker, self.nt, self.drain_write = tracker, write == "nt", drain == "write"
        self.writable = region.mode != "ro"      # mapped without PROT_WRITE: a store would end the process

    # -- reading ---------------------------------------------------------------------------

    def read(self, FileMap f not None, uint64_t pos, uint64_t size):
        """Up to *size* bytes from *pos*, less at the end of file, as an object with a buffer.

        bytes, or for a long piece of one extent a RegionView: the region itself. A
        view must be used up before the file's extents can change. EIO after kill.
        """
        cdef iomap m
        cdef bytes out
        cdef int err = 0
        cdef char *target
        if pos >= f.m.size:
            return b""
        size = _min(size, f.m.size - pos)
        if size >= VIEW_FROM:
            with nogil:
                f.read_lock()
                filemap_lookup(&f.m, pos >> SHIFT, &m)
                f.unlock()
            if m.type == IOMAP_MAPPED and pos + size <= (m.pgoff + m.len) << SHIFT:
                return self.region.view((m.pfn << SHIFT) + (pos & (PAGE - 1)), size)
        out = PyBytes_FromStringAndSize(NULL, size)
        target = PyBytes_AS_STRING(out)
        with nogil:
            f.read_lock()
            err = self._copy_out(f, pos, size, target)
            f.unlock()
        if err:
            raise fail(-err)
        return out

    cdef int _copy_out(self, FileMap f, uint64_t pos, uint64_t size, char *target) noexcept nogil:
        cdef iomap m
        cdef uint64_t n, off, avail
        cdef char *source
        if range_enter(self.table):
            return -EIO
        while size:
            filemap_lookup(&f.m, pos >> SHIFT, &m)
            off = pos & (PAGE - 1)
            n = _min(size, (m.len << SHIFT) - off)
            if m.type == IOMAP_MAPPED:
                source = range_address(self.table, m.pfn, &avail)
                if source == NULL or m.len > avail:
                    range_exit(self.table)
                    return -EIO
                memcpy(target, source + off, n)
            else:
                memset(target, 0, n)
            target += n
            pos += n
            size -= n
        range_exit(self.table)
        return 0

    def scatter(self, FileMap f not None, uint64_t pos, uint64_t size):
        """[(pfn_t, bytes)] of the pieces in [pos, pos + size), whole pages, SG_LAST on the last (S3)."""
        cdef iomap m
        cdef uint64_t at = pos >> SHIFT, end = (pos + size + PAGE - 1) >> SHIFT
        out = []
        while at < end:
            with nogil:
                f.read_lock()
                filemap_lookup(&f.m, at, &m)
                f.unlock()
            if m.type == IOMAP_MAPPED:
                out.append((m.pfn, _min(m.len, end - at) << SHIFT))
            at = m.pgoff + m.len
        return sg_list(out)

    # -- writing ---------------------------------------------------------------------------

    def write(self, FileMap f not None, uint64_t pos, data):
        """Write over blocks that are there and inside the file: 0, or NEEDS_BLOCKS with nothing done.

        With drain=write the data are durable on return (nt); with cached they are
        marked before they are stored. EIO after kill.
        """
        cdef Py_buffer view
        cdef int err
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            with nogil:
                f.write_lock()
                # Without a sum of pos and length, which could wrap.
                if <uint64_t>view.len > f.m.size or pos > f.m.size - view.len:
                    err = 1
                elif not self._covered(f, pos, view.len):
                    err = 1
                else:
                    err = self._copy_in(f, pos, view.len, <char *>view.buf, self.nt)
                    if not err and self.nt and self.drain_write:
                        # Orders the data of this write before the reply to it.
                        self.ops.drain(self.ops)
                f.unlock()
        finally:
            PyBuffer_Release(&view)
        if err < 0:
            raise fail(-err)
        if self.ops.error:
            self.flush.check()
        return err

    cdef bint _covered(self, FileMap f, uint64_t pos, uint64_t size) noexcept nogil:
        cdef iomap m
        cdef uint64_t at = pos >> SHIFT, end = (pos + size + PAGE - 1) >> SHIFT
        while at < end:
            filemap_lookup(&f.m, at, &m)
            if m.type != IOMAP_MAPPED:
                return False
            at = m.pgoff + m.len
        return True

    cdef int _copy_in(self, FileMap f, uint64_t pos, uint64_t size, const char *source,
                      bint nt) noexcept nogil:
        """Copy over mapped pages, past the cache (*nt*) or through it, marked. Under the exclusive lock."""
        cdef iomap m
        cdef uint64_t n, off, avail, pages
        cdef char *target
        cdef int err
        if not self.writable:
            return -EROFS
        if range_enter(self.table):
            return -EIO
        while size:
            filemap_lookup(&f.m, pos >> SHIFT, &m)
            off = pos & (PAGE - 1)
            n = _min(size, (m.len << SHIFT) - off)
            target = range_address(self.table, m.pfn, &avail)
            if target == NULL or m.len > avail:
                range_exit(self.table)
                return -EIO
            if nt:
                self.ops.nt_store(self.ops, target + off, source, n)
            else:
                pages = (off + n + PAGE - 1) >> SHIFT
                # Marked before the store: a flush between the two may find it clean, never the other way.
                err = self.tracker.mark(f, m.pgoff, pages, m.pfn)
                if err:
                    range_exit(self.table)
                    return err
                self.dirtied_pages += pages
                self.ops.store(self.ops, target + off, source, n)
            source += n
            pos += n
            size -= n
        range_exit(self.table)
        return 0

    def fill(self, FileMap f not None, uint64_t pos, data, pieces, fresh):
        """The data half of a write that needs blocks: put *data* at *pos* into *pieces*.

        pieces: [(pgoff, pages, pfn, type)] that cover it (meta.file.WritePlan);
        fresh: those [(pgoff, pages, pfn)] that hold nothing yet: stored past the
        cache whatever the policy, with zeros where the data do not reach, because
        the record that publishes them must never reach the media before them.
        Drained on return.
        """
        cdef Py_buffer view
        cdef uint64_t pgoff, pages, pfn
        cdef int err = 0
        new = {item[0] for item in fresh}
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            for pgoff, pages, pfn, _ in pieces:
                is_new = pgoff in new
                if is_new:
                    with nogil:
                        err = self._fill_fresh(pgoff, pages, pfn, pos, view.len, <char *>view.buf)
                else:
                    err = self._fill_over(f, pgoff, pages, pos, view.len, <char *>view.buf)
                if err:
                    raise fail(-err)
        finally:
            PyBuffer_Release(&view)
        # Orders data and zeros in new blocks before the record that makes them reachable, and
        # data behind the old end of file before the record with the new size.
        self.ops.drain(self.ops)
        self.flush.check()

    cdef int _fill_fresh(self, uint64_t pgoff, uint64_t pages, uint64_t pfn, uint64_t pos, uint64_t size,
                         const char *source) noexcept nogil:
        """New pages: zeros, data, zeros. Not reachable yet, so no lock."""
        cdef uint64_t start = pgoff << SHIFT, end = (pgoff + pages) << SHIFT, avail
        cdef uint64_t first = pos if pos > start else start
        cdef uint64_t last = _min(pos + size, end)
        cdef char *target
        if not self.writable:
            return -EROFS
        if range_enter(self.table):
            return -EIO
        target = range_address(self.table, pfn, &avail)
        if target == NULL or pages > avail:
            range_exit(self.table)
            return -EIO
        if first > start:
            self.ops.nt_fill(self.ops, target, 0, first - start)
        self.ops.nt_store(self.ops, target + (first - start), source + (first - pos), last - first)
        if end > last:
            self.ops.nt_fill(self.ops, target + (last - start), 0, end - last)
        range_exit(self.table)
        return 0

    cdef int _fill_over(self, FileMap f, uint64_t pgoff, uint64_t pages, uint64_t pos, uint64_t size,
                        const char *source):
        """The part of the write that goes over written blocks.

        What lies behind the end of file is stored past the cache whatever the policy:
        the record with the new size must not reach the media before it.
        """
        cdef uint64_t start = pgoff << SHIFT
        cdef uint64_t first = pos if pos > start else start
        cdef uint64_t last = _min(pos + size, (pgoff + pages) << SHIFT)
        cdef uint64_t middle
        cdef int err = 0
        with nogil:
            f.write_lock()
            middle = _min(last, f.m.size if f.m.size > first else first)
            if middle > first:
                err = self._copy_in(f, first, middle - first, source + (first - pos), self.nt)
            if last > middle and not err:
                err = self._copy_in(f, middle, last - middle, source + (middle - pos), True)
            f.unlock()
        return err

    # -- writeback --------------------------------------------------------------------------

    def writeback(self, FileMap f not None, uint64_t first=0, uint64_t last=UINT64_MAX):
        """Flush the dirty pages of [first, last), drain, mark them clean; returns their number.

        Costs what is dirty, not the size of the file. EIO after kill, or what msync said.
        """
        cdef int64_t pages
        with nogil:
            f.write_lock()
            pages = self._writeback(f, first, last)
            f.unlock()
        if pages < 0:
            raise fail(-pages)
        if self.ops.error:
            self.flush.check()
        self.flushed_pages += pages
        self.writebacks += 1
        return pages

    cdef int64_t _writeback(self, FileMap f, uint64_t first, uint64_t last) noexcept nogil:
        cdef uint64_t at = first, run, n, avail
        cdef int64_t total = 0
        cdef iomap m
        cdef char *address
        if range_enter(self.table):
            return -EIO
        while True:
            at = self.tracker.next_run(f, at, &run)
            if at >= last:
                break
            run = _min(run, last - at)
            total += run
            while run:
                filemap_lookup(&f.m, at, &m)
                n = _min(run, m.len)
                if m.type == IOMAP_MAPPED:
                    address = range_address(self.table, m.pfn, &avail)
                    if address == NULL or m.len > avail:
                        range_exit(self.table)
                        return -EIO
                    self.ops.flush(self.ops, address, n << SHIFT)
                at += n
                run -= n
        # Orders the flushed data before the marks go, and before size, times and the reply to fsync.
        self.ops.drain(self.ops)
        if not self.ops.error:
            self._clean(f, first, last)
        range_exit(self.table)
        return total

    cdef void _clean(self, FileMap f, uint64_t first, uint64_t last) noexcept nogil:
        """Never before flush and drain: a store in between would be lost (DESIGN.md section 8)."""
        cdef uint64_t at = first, run
        while True:
            at = self.tracker.next_run(f, at, &run)
            if at >= last:
                return
            run = _min(run, last - at)
            self.tracker.clean(f, at, run)
            at += run
