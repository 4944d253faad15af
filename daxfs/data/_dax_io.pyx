# SPDX-License-Identifier: MIT
"""L3: dax_io: reads and writes that copy straight between a buffer and the region (S3).

`DaxIo` is the Python face of native/daxio.c: it takes the file's lock without the
GIL, calls the C core, which enters the region and copies, and turns -errno into an
exception. It allocates nothing and changes no metadata: a write that needs blocks or
grows the file is refused here (``NEEDS_BLOCKS``) and comes back as `fill` with
the blocks that daxfs/meta took for it.

Write policies (DESIGN.md section 6): ``nt`` stores past the cache, so that nothing
is dirty afterwards; ``cached`` marks the tracker and stores through the cache.
Locks: a FileMap's lock shared for reads, exclusive for writes and writeback; it
is taken without the GIL (docs/concurrency.md).
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint64_t, UINT64_MAX, uintptr_t

from daxfs._flush cimport DAXFS_MSYNC
from daxfs._fsync cimport FSYNC_PYTHON, FsyncRun, fsync_lap
from daxfs._iomap cimport IOMAP_MAPPED, FileMap, filemap_lookup, iomap, range_enter, range_exit

from daxfs.errors import UsageError, fail
from daxfs.latency import Operation
from daxfs.pfn import sg_list

cdef extern from *:
    """
    #define DAXFS_READ(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define DAXFS_PUBLISH(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    """
    uint64_t counter "DAXFS_READ"(uint64_t *p) nogil
    int failed "DAXFS_READ"(int *p) nogil
    void publish "DAXFS_PUBLISH"(flushers **p, flushers *value) nogil

cdef enum:
    SHIFT = 12
    PAGE = 4096
    VIEW_FROM = 16384    # a reply of this size or more is a view of the region, not a copy
    PIECES = 1024

NEEDS_BLOCKS = 1
WRITE_POLICIES = ("nt", "cached")
DRAIN_POLICIES = ("write", "fsync")


cdef inline uint64_t _min(uint64_t a, uint64_t b) noexcept nogil:
    return a if a < b else b


cdef object _histogram(latency *l):
    return Operation.of(counter(&l.total), [counter(&l.bucket[n]) for n in range(LATENCY_BUCKETS)])


@cython.no_gc_clear
cdef class DaxIo:
    """The data path of one region.

    region: daxfs.region.Region. tracker: told of every store that leaves dirty
    lines. write: "nt" or "cached"; drain: "write" (before the reply) or "fsync". flushers:
    threads that share a large write-back, the caller among them; with msync only 1. nt_threshold: what is
    shorter, in bytes, and would go past the cache, goes through it and is flushed at once.
    """

    def __cinit__(self, *args, **kwargs):
        self.io.flushers = NULL

    def __dealloc__(self):
        if self.io.flushers != NULL:
            flushers_stop(&self.helpers)

    def __init__(self, region, Tracker tracker not None, write="nt", drain="write", int flushers=1,
                 uint64_t nt_threshold=0):
        if write not in WRITE_POLICIES or drain not in DRAIN_POLICIES:
            raise UsageError(f"write={write}, drain={drain}: write is one of {', '.join(WRITE_POLICIES)}, "
                             f"drain one of {', '.join(DRAIN_POLICIES)}")
        self.region, self.ranges, self.flush, self.tracker = region, region.table, region.flush, tracker
        self.io.table, self.io.ops = &self.ranges.t, self.flush.t
        self.trace = TraceRing()
        self.io.trace = &self.trace.r
        self.io.nt, self.io.drain_write = write == "nt", drain == "write"
        self.io.writable = region.mode != "ro"
        self.io.nt_threshold = nt_threshold
        self.set_flushers(flushers)
        self.io.ram = all(source.detected.medium == "emulated" for source in region.sources)

    def set_flushers(self, int count):
        """*count* threads share a large write-back from now on, also of a data path that is in use.

        UsageError where an msync is all that there is to share; OSError, with as many as there were.
        """
        cdef int err = 0
        if count > 1 and self.flush.t.kind == DAXFS_MSYNC:
            raise UsageError(f"flushers={count} can't be had with granularity=page: "
                             "one msync writes it all back")
        with nogil:     # it may have to wait for a write-back
            if self.io.flushers != NULL:
                err = flushers_set(&self.helpers, count)
            elif count != 1:
                err = flushers_start(&self.helpers, count)
        if err:
            raise fail(-err, f"flushers={count}")
        if count > 1:
            # Order: after all of it is there; native threads look at it. It stays until the end.
            publish(&self.io.flushers, &self.helpers)

    @property
    def nt(self):
        """Whether writes go past the cache."""
        return bool(self.io.nt)

    @property
    def drain_write(self):
        """Whether such a write drains before it returns."""
        return bool(self.io.drain_write)

    @property
    def dirtied_bytes(self):
        """Bytes of the tracker's units that were marked by stores of writes, each time again."""
        return counter(&self.io.dirtied_bytes)

    @property
    def flushed_bytes(self):
        """Bytes that writeback flushed."""
        return counter(&self.io.flushed_bytes)

    @property
    def writebacks(self):
        """Calls of writeback that did not fail, by any thread."""
        return counter(&self.io.writebacks)

    @property
    def address(self):
        """Of its struct daxio (native/daxio.h), good while this object lives: for the fault handler."""
        return <uintptr_t>&self.io

    def snapshot(self):
        """Policies and counters, for reports."""
        return {
            "write": "nt" if self.nt else "cached",
            "drain": "write" if self.drain_write else "fsync",
            "nt_threshold": self.io.nt_threshold,
            "dirtied_bytes": self.dirtied_bytes,
            "flushed_bytes": self.flushed_bytes,
            "writebacks": self.writebacks,
            "flushers": flushers_count(&self.helpers) if self.io.flushers != NULL else 1,
            "shared_flushes": counter(&self.helpers.shared),
            "helped_pieces": counter(&self.helpers.helped),
        }

    def writeback_times(self):
        """(Operation of ns, Operation of pages): write-backs that found something dirty."""
        return _histogram(&self.io.writeback_ns), _histogram(&self.io.writeback_pages)

    # -- reading ---------------------------------------------------------------------------

    def read(self, FileMap f not None, uint64_t pos, uint64_t size):
        """Up to *size* bytes from *pos*, less at the end of file, as an object with a buffer.

        bytes, or for a long piece of one extent a RegionView: the region itself. A
        view must be used up before the file's extents can change. EIO after kill.
        """
        cdef iomap m
        cdef bytes out
        cdef int err
        cdef uint64_t length, end = counter(&f.m.size)
        cdef char *target
        if pos >= end:
            return b""
        size = _min(size, end - pos)
        # A view of an own range could lose pages while it is sent: a program may take them away.
        if size >= VIEW_FROM and f.m.own == NULL:
            with nogil:
                f.read_lock()
                filemap_lookup(&f.m, pos >> SHIFT, &m)
                err = dax_touch(&self.io, &f.m, pos, size)
                f.unlock()
            if err:
                raise fail(-err)
            if m.type == IOMAP_MAPPED and pos + size <= (m.pgoff + m.len) << SHIFT:
                return self.region.view((m.pfn << SHIFT) + (pos & (PAGE - 1)), size)
        out = PyBytes_FromStringAndSize(NULL, size)
        target = PyBytes_AS_STRING(out)
        with nogil:
            f.read_lock()
            # Again, under the lock: it may have been cut in the meantime.
            length = _min(size, f.m.size - pos) if pos < f.m.size else 0
            err = dax_copy_out(&self.io, &f.m, pos, length, target)
            f.unlock()
        if err:
            raise fail(-err)
        return out if length == size else out[:length]

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

    def pieces(self, FileMap f not None, uint64_t pos, uint64_t size, int limit=PIECES):
        """[(offset in the region or None, bytes)] of [pos, pos + size): what native code would send.

        None: zeros. [pos, pos + size) is inside the file. E2BIG for more than *limit* pieces (at most 1,024).
        """
        cdef iovec iov[PIECES]
        cdef int count
        cdef uintptr_t base = self.region.address, end = base + (self.region.npages << SHIFT)
        if not 0 <= limit <= PIECES:
            raise ValueError(f"limit {limit}: at most {PIECES}")
        with nogil:
            f.read_lock()
            count = range_enter(self.io.table)
            if not count:
                count = dax_pieces(&self.io, &f.m, pos, size, iov, limit)
                range_exit(self.io.table)
            f.unlock()
        if count < 0:
            raise fail(-count)
        return [(<uintptr_t>iov[i].iov_base - base if base <= <uintptr_t>iov[i].iov_base < end else None,
                 iov[i].iov_len) for i in range(count)]

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
                elif not dax_covered(&f.m, pos, view.len):
                    err = 1
                else:
                    err = dax_copy_in(&self.io, &f.m, pos, view.len, <char *>view.buf, self.io.nt)
                    if not err and self.io.nt and self.io.drain_write:
                        # Orders the data of this write before the reply to it.
                        self.io.ops.drain(self.io.ops)
                f.unlock()
        finally:
            PyBuffer_Release(&view)
        if err < 0:
            raise fail(-err)
        self._check()
        return err

    cdef int _check(self) except -1:
        """Raise what msync reported."""
        if failed(&self.io.ops.error):
            self.flush.check()
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
                        err = dax_fill_new(&self.io, pgoff, pages, pfn, pos, view.len, <char *>view.buf)
                else:
                    err = self._fill_over(f, pgoff, pages, pos, view.len, <char *>view.buf)
                if err:
                    raise fail(-err)
        finally:
            PyBuffer_Release(&view)
        # Orders data and zeros in new blocks before the record that makes them reachable, and
        # data behind the old end of file before the record with the new size.
        self.io.ops.drain(self.io.ops)
        self.flush.check()

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
                err = dax_copy_in(&self.io, &f.m, first, middle - first, source + (first - pos), self.io.nt)
            if last > middle and not err:
                err = dax_copy_in(&self.io, &f.m, middle, last - middle, source + (middle - pos), True)
            f.unlock()
        return err

    # -- writeback --------------------------------------------------------------------------

    def writeback(self, FileMap f not None, uint64_t first=0, uint64_t last=UINT64_MAX, FsyncRun times=None):
        """Flush what is dirty in the pages [first, last), drain, mark it clean; how many pages that was.

        Costs what is dirty, not the size of the file. *times*: of the fsync that it is done for. EIO after
        kill, or what msync said.
        """
        cdef int64_t done
        cdef fsync_run *run = NULL
        if times is not None:
            run = &times.r
        with nogil:
            fsync_lap(run, FSYNC_PYTHON)
            f.fsync_lock(run)
            done = dax_writeback(&self.io, &f.m, first, last, run)
            f.unlock()
        self._check()
        if done < 0:
            raise fail(-done)
        return (done + PAGE - 1) >> SHIFT

    def persist(self, FileMap f not None, uint64_t pos, uint64_t length):
        """Flush [pos, pos + length), whatever is marked, and drain. EIO after kill, or what msync said."""
        cdef int64_t done
        with nogil:
            f.read_lock()
            done = dax_persist(&self.io, &f.m, pos, length)
            f.unlock()
        self._check()
        if done < 0:
            raise fail(-done)
