# SPDX-License-Identifier: MIT
"""L1: the region's addresses, and where the pages of a file stand in it.

RangeTable (pfn -> address, enter/exit/kill), Window (the mapped area), Stores (bounds-checked stores
through the bound flush table), RegionView (a buffer straight on the region) and FileMap (extents of
one inode with their lock). The look-ups themselves are plain C in native/filemap.c.

Limits: native threads use RangeTable and FileMap without the GIL. While a FileMap lock is held, no
thread may wait for the GIL; here the GIL is always released before a lock is waited for. Ranges are
added before the table is shared and never move. Window and Stores are not for use after close.
"""
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.errno cimport EEXIST, EINVAL, EIO, ENOMEM, EROFS, errno
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from daxfs._flush cimport DAXFS_MSYNC, DirtyMap, Flush, daxfs_flush_take_error

import os
import time

from daxfs.errors import CorruptError, fail

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_NONE, PROT_READ, PROT_WRITE
    enum: MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE, MAP_SHARED_VALIDATE, MAP_SYNC
    enum: MADV_HUGEPAGE
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, int64_t offset)
    int munmap(void *addr, size_t length)
    int mprotect(void *addr, size_t length, int prot)
    int madvise(void *addr, size_t length, int advice)

cdef extern from "<sys/vfs.h>" nogil:
    struct statfs_s "statfs":
        unsigned long f_type
        unsigned long f_bsize
    int fstatfs(int fd, statfs_s *buf)

cdef extern from "<fcntl.h>" nogil:
    enum: AT_EMPTY_PATH

cdef extern from "<sys/stat.h>" nogil:
    struct statx_s "statx":
        uint64_t stx_attributes
        uint64_t stx_attributes_mask
    int statx(int dirfd, const char *path, int flags, unsigned int mask, statx_s *buf)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int nanosleep(const timespec *req, timespec *rem)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_rwlock_t:
        pass
    int pthread_rwlock_tryrdlock(pthread_rwlock_t *lock)
    int pthread_rwlock_trywrlock(pthread_rwlock_t *lock)
    int pthread_rwlock_rdlock(pthread_rwlock_t *lock)
    int pthread_rwlock_wrlock(pthread_rwlock_t *lock)
    int pthread_rwlock_unlock(pthread_rwlock_t *lock)

cdef extern from *:
    """
    #define DAXFS_ATTR_DAX UINT64_C(0x00200000) /* STATX_ATTR_DAX, which older headers lack */
    #define DAXFS_LOCK(m) (&(m)->lock)
    #define DAXFS_LOAD(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    #define DAXFS_STORE(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
    """
    uint64_t DAXFS_ATTR_DAX
    pthread_rwlock_t *DAXFS_LOCK(filemap *m) nogil
    int64_t load_users "DAXFS_LOAD"(int64_t *p) nogil
    uint64_t load_size "DAXFS_LOAD"(uint64_t *p) nogil
    int load_dead "DAXFS_LOAD"(int *p) nogil
    void store_size "DAXFS_STORE"(uint64_t *p, uint64_t v) nogil
    void store_dead "DAXFS_STORE"(int *p, int v) nogil

HOLE = IOMAP_HOLE
UNWRITTEN = IOMAP_UNWRITTEN
MAPPED = IOMAP_MAPPED
MAX_PGOFF = 1 << 32

cdef enum:
    PAGE_SHIFT = 12
    PAGE_MASK = (1 << 12) - 1
    PMD_BYTES = 1 << 21
    # Copies from this size on release the GIL: below it, giving it up costs more than the copy.
    LONG_COPY = 1 << 15


def file_facts(int fd):
    """(f_type, f_bsize, dax) of an open file; dax is True, False, or None where the kernel doesn't say."""
    cdef statfs_s fs
    cdef statx_s sx
    if fstatfs(fd, &fs):
        raise OSError(errno, os.strerror(errno))
    memset(&sx, 0, sizeof(sx))
    dax = None
    if statx(fd, b"", AT_EMPTY_PATH, 0, &sx) == 0 and sx.stx_attributes_mask & DAXFS_ATTR_DAX:
        dax = bool(sx.stx_attributes & DAXFS_ATTR_DAX)
    return fs.f_type & 0xFFFFFFFF, fs.f_bsize, dax


def map_sync_works(int fd, uint64_t length=4096):
    """True if *fd* can be mapped with MAP_SYNC: then stores need cache lines flushed and nothing else."""
    cdef void *p = mmap(NULL, length, PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0)
    if p == MAP_FAILED:
        return False
    munmap(p, length)
    return True


cdef class RangeTable:
    """The ranges of a region: pfn to address in O(log ranges); entry, exit and kill (SEEDS S2, S6, S9)."""

    def __cinit__(self):
        memset(&self.t, 0, sizeof(self.t))

    def __dealloc__(self):
        free(self.t.r)

    def add(self, uint64_t pfn_start, uint64_t pfn_end, uintptr_t addr, uint64_t flags=0):
        """Add [pfn_start, pfn_end) at *addr* with pfn_t flags. ValueError: empty, too high, overlapping."""
        cdef int rc = range_add(&self.t, pfn_start, pfn_end, <char *>addr, flags)
        if rc == -ENOMEM:
            raise MemoryError
        if rc == -EEXIST:
            raise ValueError(f"pages {pfn_start}..{pfn_end} overlap a range that is already there")
        if rc:
            raise ValueError(f"no range: pages {pfn_start}..{pfn_end}, flags {flags:#x}")

    def lookup(self, pfn):
        """(address, pages to the end of its range, pfn_t flags) of *pfn*; CorruptError outside all ranges."""
        cdef uint64_t p = _pfn(pfn)
        cdef const range_entry *r = range_lookup(&self.t, p)
        if r == NULL:
            raise CorruptError(f"page {pfn:#x} is in no range of the region")
        p &= (<uint64_t>1 << 48) - 1
        return <uintptr_t>(r.addr + ((p - r.pfn_start) << PAGE_SHIFT)), r.pfn_end - p, r.flags

    def enter(self):
        """Count one user in. OSError EIO once the table is dead."""
        if range_enter(&self.t):
            raise fail(EIO, "the region is being closed")

    def exit(self):
        """Count one user out. RuntimeError if nobody is in."""
        if load_users(&self.t.users) <= 0:
            raise RuntimeError("exit without enter")
        range_exit(&self.t)

    def __enter__(self):
        self.enter()
        return self

    def __exit__(self, *exc):
        self.exit()

    def __len__(self):
        return self.t.n

    @property
    def users(self):
        """Users that entered and have not left."""
        return load_users(&self.t.users)

    @property
    def dead(self):
        return bool(load_dead(&self.t.dead))

    def kill(self, double timeout=5.0):
        """Refuse new users from now on and wait for the others; how many are left after *timeout* seconds."""
        cdef timespec nap
        cdef int64_t left
        store_dead(&self.t.dead, 1)
        nap.tv_sec = 0
        nap.tv_nsec = 200_000
        until = time.monotonic() + timeout
        while True:
            left = load_users(&self.t.users)
            if left <= 0 or time.monotonic() >= until:
                return left
            with nogil:
                nanosleep(&nap, NULL)


cdef uint64_t _pfn(object pfn) except? 0xFFFFFFFFFFFFFFFF:
    try:
        return pfn
    except OverflowError:
        raise CorruptError(f"page {pfn} is in no range of the region") from None


cdef class Window:
    """One area of virtual addresses that holds a whole region; a buffer of bytes over all of it.

    Reserved once and filled by place(), so that byte ``pfn * 4096`` of the buffer is page pfn. Pages
    that nothing was placed on must not be touched (SIGSEGV) unless pad() made them readable zeros.
    """

    cdef char *base
    cdef size_t length
    cdef int64_t exports
    cdef bint writable
    cdef list placed                 # (offset in the window, bytes, fd, offset in fd)

    def __cinit__(self):
        self.base = NULL
        self.exports = 0
        self.writable = False
        self.placed = []

    @classmethod
    def reserve(cls, uint64_t npages, uint64_t align=PMD_BYTES):
        """Reserve *npages* pages at an address that is a multiple of *align* bytes (a power of two)."""
        cdef Window w = cls()
        cdef size_t length = npages << PAGE_SHIFT, head
        cdef char *p
        if not npages or npages >> 36 or align < 4096 or align & (align - 1):
            raise ValueError(f"can't reserve {npages} pages aligned to {align}")
        p = <char *>mmap(NULL, length + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if <void *>p == MAP_FAILED:
            raise fail(errno, f"no room in the address space for {npages} pages")
        head = (align - <uintptr_t>p % align) % align
        if head:
            munmap(p, head)
        munmap(p + head + length, align - head)
        w.base = p + head
        w.length = length
        return w

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.length)

    cdef char *_at(self, uint64_t pfn, uint64_t npages) except NULL:
        if self.base == NULL:
            raise ValueError("the window is closed")
        if pfn > self.length >> PAGE_SHIFT or not npages or npages > (self.length >> PAGE_SHIFT) - pfn:
            raise ValueError(f"pages {pfn}+{npages} are outside the window")
        return self.base + (pfn << PAGE_SHIFT)

    def place(self, uint64_t pfn_start, uint64_t npages, int fd, uint64_t offset, str prot="rw",
              bint private=False, bint sync=False):
        """Map *npages* pages of *fd* from byte *offset* on at page *pfn_start*; returns the address.

        prot "r" or "rw"; private: stores stay in this process; sync: MAP_SYNC, OSError where it can't be had.
        """
        cdef char *p = self._at(pfn_start, npages)
        cdef size_t length = npages << PAGE_SHIFT
        cdef int flags = MAP_FIXED
        if prot not in ("r", "rw"):
            raise ValueError(f"prot is r or rw, not {prot!r}")
        if private:
            # A private copy of a large region is almost never filled: don't account for it.
            flags |= MAP_PRIVATE | MAP_NORESERVE
        else:
            flags |= (MAP_SHARED_VALIDATE | MAP_SYNC) if sync else MAP_SHARED
        rc = mmap(p, length, PROT_READ | (PROT_WRITE if prot == "rw" else 0), flags, fd, offset)
        if rc == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        madvise(p, length, MADV_HUGEPAGE)  # best effort; what it brings is reported by region.Region.pmd
        self.writable = self.writable or prot == "rw"
        self.placed.append((<uintptr_t>(p - self.base), length, fd, offset))
        return <uintptr_t>p

    def pad(self, uint64_t pfn_start, uint64_t npages):
        """Make unplaced pages readable as zeros, so that a scan over the whole window is safe."""
        if mprotect(self._at(pfn_start, npages), npages << PAGE_SHIFT, PROT_READ):
            raise OSError(errno, os.strerror(errno))

    def detach(self):
        """Turn every placed page into a private one: stores through views that are left reach nobody."""
        cdef char *p
        cdef size_t length
        for at, size, fd, offset in self.placed:
            p = self.base + <uintptr_t>at
            length = size
            if not self.writable:
                continue
            if mmap(p, length, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_NORESERVE,
                    fd, <uint64_t>offset) == MAP_FAILED:
                mprotect(p, length, PROT_READ)  # devdax knows no private mapping: at least nothing is stored
        self.placed = []

    def close(self):
        """Unmap. BufferError while views of the buffer exist. Closing twice is fine."""
        if self.base == NULL:
            return
        if self.exports:
            raise BufferError(f"{self.exports} views of the region still exist")
        munmap(self.base, self.length)
        self.base = NULL
        self.length = 0
        self.placed = []

    @property
    def address(self):
        return <uintptr_t>self.base

    @property
    def exported(self):
        """Views of the buffer that exist."""
        return self.exports

    @property
    def closed(self):
        return self.base == NULL

    def __len__(self):
        return self.length

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.base == NULL:
            raise BufferError("the region is closed")
        PyBuffer_FillInfo(view, self, self.base, self.length, not self.writable, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1


cdef class RegionView:
    """A read-only buffer of *length* bytes at *address*, for replies that copy nothing (SEEDS S3, S9).

    The table is entered while a buffer on it exists, and left when the last one is released: kill waits
    for it. Asking for a buffer of a dead region raises OSError EIO.
    """

    cdef RangeTable table
    cdef Window window
    cdef char *address
    cdef size_t length

    def __init__(self, RangeTable table not None, Window window not None, uintptr_t address, size_t length):
        cdef uintptr_t base = <uintptr_t>window.base
        if (window.base == NULL or address < base or length > window.length
                or address - base > window.length - length):
            raise ValueError("the view is outside the region")
        self.table = table
        self.window = window
        self.address = <char *>address
        self.length = length

    def __len__(self):
        return self.length

    def __getbuffer__(self, Py_buffer *view, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("a view of the region is read-only")
        if range_enter(&self.table.t):
            raise fail(EIO, "the region is being closed")
        if self.window.base == NULL:
            range_exit(&self.table.t)
            raise fail(EIO, "the region is closed")
        try:
            PyBuffer_FillInfo(view, self, self.address, self.length, True, flags)
        except BaseException:
            range_exit(&self.table.t)
            raise
        self.window.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.window.exports -= 1
        range_exit(&self.table.t)


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
            raise fail(EIO, "the region is being closed")
        p = NULL if off < 0 else range_address(&self.table.t, <uint64_t>off >> PAGE_SHIFT, &avail)
        if p == NULL or length > (avail << PAGE_SHIFT) - (off & PAGE_MASK):
            range_exit(&self.table.t)
            raise CorruptError(f"bytes {offset}+{length} are outside the region")
        return p + (off & PAGE_MASK)

    cdef int _done(self) except -1:
        """Leave; raise what msync reported since the last look."""
        cdef int error = daxfs_flush_take_error(self.bound.t) if self.bound.t.error else 0
        range_exit(&self.table.t)
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
        range_exit(&self.table.t)
        return 0

    def flush_range(self, offset, uint64_t length):
        """Queue the cache lines of [offset, offset + length) for write-back."""
        self._queue(self._enter(offset, length, True), length)
        range_exit(&self.table.t)

    def drain(self):
        """Wait until all that was flushed or nt_stored before is durable. The caller names the order."""
        if range_enter(&self.table.t):
            raise fail(EIO, "the region is being closed")
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


cdef iomap *_extents(list rows, size_t *n) except? NULL:
    """A malloc'ed array from (pgoff, len, pfn, type, slot) rows; NULL for none."""
    cdef iomap *e
    cdef size_t i
    n[0] = len(rows)
    if not rows:
        return NULL
    e = <iomap *>malloc(n[0] * sizeof(iomap))
    if e == NULL:
        raise MemoryError
    try:
        for i in range(n[0]):
            pgoff, length, pfn, kind, slot = rows[i]
            e[i].pgoff, e[i].len, e[i].pfn, e[i].type, e[i].slot = pgoff, length, pfn, kind, slot
    except (TypeError, ValueError, OverflowError) as exc:
        free(e)
        raise ValueError(f"no extent: {rows[i]!r} ({exc})") from None
    return e


cdef class FileMap:
    """The extents of one file, sorted, with its size and its reader/writer lock.

    Extents are tuples (pgoff, pages, pfn_t, type, slot) with type UNWRITTEN or MAPPED; holes are not
    stored. Methods that change take the lock exclusively unless this thread already holds it so (lock()),
    those that read take it shared. A thread that holds it shared must not ask for it again, in either way:
    a writer that waits in between would stop both for ever.
    """

    def __cinit__(self):
        filemap_init(&self.m)
        self._dirty = None

    def __dealloc__(self):
        filemap_destroy(&self.m)

    cdef void read_lock(self) noexcept nogil:
        pthread_rwlock_rdlock(DAXFS_LOCK(&self.m))

    cdef void write_lock(self) noexcept nogil:
        pthread_rwlock_wrlock(DAXFS_LOCK(&self.m))

    cpdef void unlock(self) noexcept nogil:
        """Give back what lock() took; only the thread that took it may."""
        pthread_rwlock_unlock(DAXFS_LOCK(&self.m))

    cdef bint _shared(self) noexcept:
        """Take the lock shared; False if this thread holds it exclusively already (EDEADLK)."""
        cdef int rc = pthread_rwlock_tryrdlock(DAXFS_LOCK(&self.m))
        if rc:
            with nogil:
                rc = pthread_rwlock_rdlock(DAXFS_LOCK(&self.m))
        return rc == 0

    cdef bint _exclusive(self) noexcept:
        """Take the lock exclusively; False if this thread holds it so already (EDEADLK)."""
        cdef int rc = pthread_rwlock_trywrlock(DAXFS_LOCK(&self.m))
        if rc:
            with nogil:
                rc = pthread_rwlock_wrlock(DAXFS_LOCK(&self.m))
        return rc == 0

    def lock(self, bint exclusive=True):
        """Take the lock; unlock() gives it back. RuntimeError if this thread holds it exclusively already."""
        if not (self._exclusive() if exclusive else self._shared()):
            raise RuntimeError("this thread holds the lock already")

    @property
    def size(self):
        """Bytes of the file."""
        return load_size(&self.m.size)

    @size.setter
    def size(self, uint64_t size):
        cdef bint taken = self._exclusive()
        store_size(&self.m.size, size)
        if taken:
            self.unlock()

    @property
    def dirty(self):
        """The DirtyMap, None until a tracker is attached; native code finds it through the struct."""
        return self._dirty

    @dirty.setter
    def dirty(self, DirtyMap dirty):
        cdef bint taken = self._exclusive()
        self._dirty = dirty
        self.m.dirty = &dirty.m if dirty is not None else NULL
        if taken:
            self.unlock()

    @property
    def pages(self):
        """Pages allocated, written or not."""
        return load_size(&self.m.pages)

    def __len__(self):
        return self.m.n

    def __sizeof__(self):
        return type(self).__basicsize__ + self.m.cap * sizeof(iomap)

    def lookup(self, uint64_t pgoff):
        """(type, pgoff, pages, pfn_t, slot) of the piece from *pgoff* on; a hole has pfn and slot 0."""
        cdef iomap out
        cdef bint taken = self._shared()
        filemap_lookup(&self.m, pgoff, &out)
        if taken:
            self.unlock()
        return out.type, out.pgoff, out.len, out.pfn, out.slot

    def find(self, uint64_t pgoff):
        """Index of the first extent that ends after *pgoff*; len(self) if there is none."""
        cdef bint taken = self._shared()
        cdef size_t index = filemap_find(&self.m, pgoff)
        if taken:
            self.unlock()
        return index

    def end(self):
        """First page after the last extent; 0 if there is none."""
        cdef bint taken = self._shared()
        cdef size_t n = self.m.n
        cdef uint64_t end = self.m.e[n - 1].pgoff + self.m.e[n - 1].len if n else 0
        if taken:
            self.unlock()
        return end

    def extents(self, size_t index=0, count=None):
        """List of (pgoff, pages, pfn_t, type, slot) of *count* extents (default all) from *index* on."""
        cdef bint taken = self._shared()
        cdef size_t i, stop = self.m.n
        try:
            if count is not None and index <= stop:
                stop = min(stop, index + <size_t>count)
            return [(self.m.e[i].pgoff, self.m.e[i].len, self.m.e[i].pfn, self.m.e[i].type, self.m.e[i].slot)
                    for i in range(index, stop)]
        finally:
            if taken:
                self.unlock()

    def splice(self, size_t index, size_t count, list extents not None):
        """Replace *count* extents from *index* on; ValueError, and nothing changed, if they don't fit."""
        cdef size_t n
        cdef iomap *e = _extents(extents, &n)
        cdef bint taken = self._exclusive()
        cdef int rc = filemap_splice(&self.m, index, count, e, n)
        if taken:
            self.unlock()
        free(e)
        if rc == -ENOMEM:
            raise MemoryError
        if rc:
            raise ValueError(f"extents {extents} don't fit at {index} instead of {count}")

    def load(self, list extents not None):
        """Replace all extents; ValueError, and nothing changed, if out of order, overlapping or too large."""
        cdef bint taken = self._exclusive()
        try:
            self.splice(0, self.m.n, extents)
        finally:
            if taken:
                self.unlock()
