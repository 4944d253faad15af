# SPDX-License-Identifier: MIT
"""L1: the region's addresses, and where the pages of a file stand in it.

RangeTable (pfn -> address, enter/exit/kill), RegionView (a buffer straight on the region) and FileMap
(extents of one inode with their lock, and its tracker). The look-ups are plain C in native/filemap.c.

Limits: native threads use the structs behind RangeTable and FileMap without the GIL. Who has the GIL
never waits for a FileMap lock without giving it up (docs/concurrency.md). Ranges are added before the
table is shared and never move.
"""
cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo
from libc.errno cimport EIO, ENOMEM, EEXIST
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t, UINT64_MAX
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from daxfs._flush cimport DirtyMap, ExtentMap, StateArena
from daxfs._fsync cimport FSYNC_PYTHON, fsync_run
from daxfs._window cimport Window

import os
import time

from daxfs.errors import CorruptError, UsageError, fail

cdef extern from "daxfs/native/fsync.h" nogil:
    void fsync_take_lock "fsync_take_lock"(fsync_run *r, file_lock *l, int before)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int nanosleep(const timespec *req, timespec *rem)

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    pthread_t pthread_self()

cdef extern from *:
    """
    #define DAXFS_LOAD(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    #define DAXFS_STORE(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
    #define DAXFS_OWNER(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define DAXFS_OWN(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    #define DAXFS_OR(p, v) __atomic_fetch_or((p), (v), __ATOMIC_SEQ_CST)
    #define DAXFS_AND(p, v) __atomic_fetch_and((p), (v), __ATOMIC_SEQ_CST)
    /* A writer's step of the seqlock. Full fences on both sides, not release alone: metadata are also
     * stored past the cache, and such stores pass ordinary ones that are only released. */
    static inline void daxfs_seq_step(uint64_t *seq)
    {
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        __atomic_store_n(seq, *seq + 1, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    }
    """
    int64_t load_users "DAXFS_LOAD"(int64_t *p) nogil
    uint64_t load_size "DAXFS_LOAD"(uint64_t *p) nogil
    int load_dead "DAXFS_LOAD"(int *p) nogil
    void store_size "DAXFS_STORE"(uint64_t *p, uint64_t v) nogil
    void store_dead "DAXFS_STORE"(int *p, int v) nogil
    pthread_t load_owner "DAXFS_OWNER"(pthread_t *p) nogil
    void store_owner "DAXFS_OWN"(pthread_t *p, pthread_t v) nogil
    uint32_t load_state "DAXFS_LOAD"(uint32_t *p) nogil
    uint32_t or_state "DAXFS_OR"(uint32_t *p, uint32_t v) nogil
    uint32_t and_state "DAXFS_AND"(uint32_t *p, uint32_t v) nogil
    void daxfs_seq_step(uint64_t *seq) nogil

HOLE = IOMAP_HOLE
UNWRITTEN = IOMAP_UNWRITTEN
MAPPED = IOMAP_MAPPED
MAX_PGOFF = 1 << 32
UNSETTLED = FILEMAP_UNSETTLED
PLAIN = FILEMAP_PLAIN
STALE_TIMES = FILEMAP_STALE_TIMES
COARSE = FILEMAP_COARSE
PARKS = FILEMAP_PARKS
OBSERVED = FILEMAP_OBSERVED
POISONED = FILEMAP_POISONED
STORED = FILEMAP_STORED

cdef extern from "daxfs/native/lost.h" nogil:
    int lost_watch(char *base, size_t length, size_t unit, range_table *t)
    int lost_watch_own(char *base, size_t length, own_range **at, unsigned shift)
    void lost_forget(const char *base)

cdef enum:
    PAGE_SHIFT = 12
    PAGE_BYTES = 1 << 12


LOST = "a source was truncated or has an error under the mount"


@cython.no_gc_clear
cdef class RangeTable:
    """The ranges of a region: pfn to address in O(log ranges); entry, exit and kill (SEEDS S2, S6, S9)."""

    def __cinit__(self):
        memset(&self.t, 0, sizeof(self.t))
        self.watched = self.watched_own = NULL
        self.own_window = None

    def __dealloc__(self):
        self.unwatch()
        self.unwatch_own()
        free(self.t.r)

    def watch(self, Window window not None, size_t unit=PAGE_BYTES):
        """From now on a page of *window* that goes away makes this table lost, and ends nobody.

        *unit*: bytes that go at once, the largest page of all that was placed. OSError: it can't be done.
        """
        cdef int rc
        if window.base == NULL or self.watched != NULL:
            raise ValueError("the window is closed, or one is watched already")
        rc = lost_watch(window.base, window.length, unit, &self.t)
        if rc:
            raise fail(-rc, "no room to watch one region more for SIGBUS")
        self.watched = window.base

    cpdef unwatch(self):
        """Before the window is closed."""
        if self.watched != NULL:
            lost_forget(self.watched)
            self.watched = NULL

    def watch_own(self, owner, Window window not None, uintptr_t at, unsigned shift):
        """A page of *window* that goes away tears the own range that *at*, *owner*'s, has for its place."""
        cdef int rc
        if window.base == NULL or self.watched_own != NULL:
            raise ValueError("the window is closed, or one is watched already")
        rc = lost_watch_own(window.base, window.length, <own_range **>at, shift)
        if rc:
            raise fail(-rc, "no room to watch one window more for SIGBUS")
        self.watched_own, self.own_window = window.base, owner

    cpdef unwatch_own(self):
        """Before the window of own ranges is closed."""
        if self.watched_own != NULL:
            lost_forget(self.watched_own)
            self.watched_own = NULL
        self.own_window = None

    def add(self, uint64_t pfn_start, uint64_t pfn_end, uintptr_t addr, uint64_t flags=0, int fd=-1):
        """Add [pfn_start, pfn_end) at *addr* with pfn_t flags. ValueError: empty, too high, overlapping.

        *fd*: of the file that it is from byte 0 on, open as long as the table is alive; it may be asked for
        its holes.
        """
        cdef int rc = range_add(&self.t, pfn_start, pfn_end, <char *>addr, flags)
        if rc == -ENOMEM:
            raise MemoryError
        if rc == -EEXIST:
            raise ValueError(f"pages {pfn_start}..{pfn_end} overlap a range that is already there")
        if rc:
            raise ValueError(f"no range: pages {pfn_start}..{pfn_end}, flags {flags:#x}")
        range_is_file(&self.t, pfn_start, fd)

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
            raise self.refusal()

    cdef refusal(self):
        """The exception for a user that may not enter."""
        return fail(EIO, LOST if load_dead(&self.t.lost) else "the region is being closed")

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

    @property
    def lost(self):
        """A page of a source is gone (native/lost.h): what was read since may be zeros that nobody wrote."""
        return bool(load_dead(&self.t.lost))

    @property
    def seq(self):
        """Odd while metadata are stored in place: who reads an inode from the table meanwhile reads again."""
        return self.t.seq

    def begin_stores(self):
        """Metadata are going to be stored in place (the metadata thread alone; not twice)."""
        if self.t.seq & 1:
            raise RuntimeError("metadata are being stored in place already")
        daxfs_seq_step(&self.t.seq)

    def end_stores(self):
        """They stand there: what is read from now on is of one piece."""
        if not self.t.seq & 1:
            raise RuntimeError("end_stores without begin_stores")
        daxfs_seq_step(&self.t.seq)

    def begin_own(self):
        """An inode and the file of its own range are going to change together (the metadata thread alone)."""
        if self.t.own_seq & 1:
            raise RuntimeError("an own range is being changed already")
        daxfs_seq_step(&self.t.own_seq)

    def end_own(self):
        """They fit together again."""
        if not self.t.own_seq & 1:
            raise RuntimeError("end_own without begin_own")
        daxfs_seq_step(&self.t.own_seq)

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
            raise self.table.refusal()
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


@cython.no_gc_clear
cdef class FileMap:
    """The extents of one file, sorted, with its size, its flags and its reader/writer lock.

    Extents are tuples (pgoff, pages, pfn_t, type, slot) with type UNWRITTEN or MAPPED; holes are not
    stored. Methods that change take the lock exclusively, those that read take it shared. A thread that
    holds it exclusively may take it again, either way: `lock` and `unlock`, or ``with``, nest. One that holds
    it shared must not ask for it again: a writer that waits in between would stop both for ever.
    """

    def __cinit__(self):
        filemap_init(&self.m)
        self.bits = self.range = self.shared = None
        self.depth = 0
        self.owner = 0

    def __dealloc__(self):
        filemap_destroy(&self.m)

    cdef bint _mine(self) noexcept nogil:
        """True where this thread holds the lock exclusively: nobody else writes what would make this true."""
        return load_owner(&self.owner) == pthread_self()

    cdef void read_lock(self) noexcept nogil:
        if self._mine():
            self.depth += 1
        else:
            file_lock_take(&self.m.lock, 0)

    cdef void fsync_lock(self, fsync_run *run) noexcept nogil:
        """write_lock, timed, by an fsync that was in Python until now."""
        if self._mine():
            self.depth += 1
        else:
            fsync_take_lock(run, &self.m.lock, FSYNC_PYTHON)
            store_owner(&self.owner, pthread_self())

    cdef void write_lock(self) noexcept nogil:
        if self._mine():
            self.depth += 1
        else:
            file_lock_take(&self.m.lock, 1)
            store_owner(&self.owner, pthread_self())

    cpdef void unlock(self) noexcept nogil:
        """Give back what the last lock() took; only the thread that took it may."""
        if self._mine():
            if self.depth:
                self.depth -= 1
                return
            store_owner(&self.owner, 0)
        file_lock_give(&self.m.lock)

    cdef void _shared(self) noexcept:
        """read_lock with the GIL, which is given up only where there is something to wait for."""
        if self._mine():
            self.depth += 1
        elif not file_lock_try(&self.m.lock, 0):
            with nogil:
                self.read_lock()

    cdef void _exclusive(self) noexcept:
        """write_lock with the GIL, which is given up only where there is something to wait for."""
        if self._mine():
            self.depth += 1
        elif not file_lock_try(&self.m.lock, 1):
            with nogil:
                self.write_lock()
        else:
            store_owner(&self.owner, pthread_self())

    def lock(self, bint exclusive=True):
        """Take the lock; unlock() gives it back."""
        if exclusive:
            self._exclusive()
        else:
            self._shared()

    def __enter__(self):
        """Hold the lock exclusively: extents and size are this thread's until the block ends."""
        self._exclusive()
        return self

    def __exit__(self, *exc):
        self.unlock()

    # -- what is dirty (native/tracker.h) ---------------------------------------------------

    cdef StateArena arena(self):
        """Where its marks stand in the region, as far as they do; None: they are in DRAM."""
        if self.bits is not None:
            return self.bits.arena
        return self.shared.arena if self.shared is not None else None

    cdef int enter_marks(self) except -1:
        """Marks may stand in the region: around what looks at them. EIO after kill."""
        cdef StateArena arena = self.arena()
        if arena is not None:
            arena.table.enter()
        return 0

    cdef int leave_marks(self) except -1:
        cdef StateArena arena = self.arena()
        if arena is not None:
            arena.table.exit()
        return 0

    cdef int track(self, const dax_tracker *to, DirtyMap bits, bint all, ExtentMap shared) except -1:
        """From now on the tracker *to*, with marks in *bits* or *shared*: `tracker_switch`.

        MemoryError, and nothing changed. What the old one had in memory is freed when the lock is given back.
        """
        cdef int err
        cdef StateArena arena
        cdef object old = (self.bits, self.shared)
        self._exclusive()
        try:
            arena = self.arena()
            if bits is not None and bits.arena is not None:
                arena = bits.arena
            elif shared is not None and shared.arena is not None:
                arena = shared.arena
            if arena is not None:
                arena.table.enter()  # the old one's is that of the same table
            err = tracker_switch(&self.m, to, &bits.m if bits is not None else NULL,
                                 &shared.m if shared is not None else NULL, all)
            if not err:
                self.bits, self.shared = bits, shared
            if arena is not None:
                arena.table.exit()
        finally:
            self.unlock()
        if err:
            raise MemoryError(f"no memory for the marks of a file of {self.m.size} bytes")
        return 0

    @property
    def dirty(self):
        """The DirtyMap of the tracker, in its units; None where it has none, or there is no tracker."""
        return self.bits

    @property
    def waited_for(self):
        """Whether some thread waits for the lock."""
        return bool(load_state(&self.m.lock.word) & FILE_LOCK_QUEUE)

    @property
    def policy(self):
        """Name of the tracker, as track= has it; None before one is attached."""
        return self.m.tracker.name.decode() if self.m.tracker != NULL else None

    @property
    def unit(self):
        """Bytes of a unit of the tracker; 0: it marks nothing."""
        return 1 << self.m.tracker.shift if self.m.tracker != NULL and self.m.tracker.shift else 0

    @property
    def marked(self):
        """Whether fsync has anything to flush."""
        return tracker_any(&self.m) != 0

    @property
    def dirty_bytes(self):
        """Bytes of the units that are marked; of extents, what of them is this file's. EIO after kill where
        extents stand in the region."""
        cdef uint64_t found
        self._shared()
        try:
            if self.shared is not None:
                self.enter_marks()
            found = tracker_bytes(&self.m)
            if self.shared is not None:
                self.leave_marks()
        finally:
            self.unlock()
        return found

    @property
    def marks_memory(self):
        """Bytes that the tracker's marks of this file take in DRAM. Native threads make and free some."""
        if self.bits is None:
            return 0
        self._shared()
        try:
            return self.bits.__sizeof__()
        finally:
            self.unlock()

    def mark(self, uint64_t first, uint64_t pages):
        """Those of the pages [first, first + pages) that are MAPPED may be dirty. MemoryError; EIO."""
        self._exclusive()
        try:
            self.enter_marks()
            err = tracker_mark_pages(&self.m, first, pages)
            self.leave_marks()
        finally:
            self.unlock()
        if err == -ENOMEM:
            raise MemoryError(f"no memory to mark {pages} pages dirty")
        if err:
            raise UsageError("the file has no tracker")

    def unmark(self, uint64_t first, uint64_t pages):
        """The pages [first, first + pages) hold no data any more: units that are whole in there are clean."""
        if not pages or not self.marked:
            return
        pages = min(pages, <uint64_t>DAXFS_MAX_PGOFF - min(first, <uint64_t>DAXFS_MAX_PGOFF))
        self._exclusive()
        try:
            self.enter_marks()
            self.m.tracker.clean(&self.m, first << PAGE_SHIFT, pages << PAGE_SHIFT)
            self.leave_marks()
        finally:
            self.unlock()

    def dirty_runs(self):
        """[(position, bytes)] of the runs of units that are marked, ascending."""
        cdef uint64_t at = 0, length
        out = []
        if self.m.tracker == NULL:
            return out
        self._exclusive()
        try:
            self.enter_marks()
            while True:
                at = self.m.tracker.next_run(&self.m, at, &length)
                if at == UINT64_MAX:
                    break
                out.append((at, length))
                at += length
            self.leave_marks()
        finally:
            self.unlock()
        return out

    @property
    def own(self):
        """The OwnRange (daxfs/_own) that holds the file's data, None where they are packed."""
        return self.range

    @property
    def inode(self):
        """Address of the inode's bytes in the region; 0: not an inode of a mounted file system."""
        return <uintptr_t>self.m.inode

    @inode.setter
    def inode(self, uintptr_t address):
        self.m.inode = <char *>address

    @property
    def ino(self):
        """The inode's number, for reports."""
        return self.m.ino

    @ino.setter
    def ino(self, uint64_t number):
        self.m.ino = number

    @property
    def state(self):
        """Flags UNSETTLED, PLAIN, STALE_TIMES (native/filemap.h)."""
        return load_state(&self.m.state)

    def set_state(self, uint32_t flags):
        """Set *flags*. The caller holds the lock where the flag asks for it."""
        or_state(&self.m.state, flags)

    def clear_state(self, uint32_t flags):
        """Clear *flags*; those of them that were set."""
        return and_state(&self.m.state, ~flags) & flags

    @property
    def size(self):
        """Bytes of the file."""
        return load_size(&self.m.size)

    @size.setter
    def size(self, uint64_t size):
        self._exclusive()
        store_size(&self.m.size, size)
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
        self._shared()
        filemap_lookup(&self.m, pgoff, &out)
        self.unlock()
        return out.type, out.pgoff, out.len, out.pfn, out.slot

    def find(self, uint64_t pgoff):
        """Index of the first extent that ends after *pgoff*; len(self) if there is none."""
        self._shared()
        cdef size_t index = filemap_find(&self.m, pgoff)
        self.unlock()
        return index

    def end(self):
        """First page after the last extent; 0 if there is none."""
        self._shared()
        cdef size_t n = self.m.n
        cdef uint64_t end = self.m.e[n - 1].pgoff + self.m.e[n - 1].len if n else 0
        self.unlock()
        return end

    def extents(self, size_t index=0, count=None):
        """List of (pgoff, pages, pfn_t, type, slot) of *count* extents (default all) from *index* on."""
        self._shared()
        cdef size_t i, stop = self.m.n
        try:
            if count is not None and index <= stop:
                stop = min(stop, index + <size_t>count)
            return [(self.m.e[i].pgoff, self.m.e[i].len, self.m.e[i].pfn, self.m.e[i].type, self.m.e[i].slot)
                    for i in range(index, stop)]
        finally:
            self.unlock()

    def splice(self, size_t index, size_t count, list extents not None):
        """Replace *count* extents from *index* on; ValueError, and nothing changed, if they don't fit."""
        cdef size_t n
        cdef iomap *e = _extents(extents, &n)
        self._exclusive()
        cdef int rc = filemap_splice(&self.m, index, count, e, n)
        self.unlock()
        free(e)
        if rc == -ENOMEM:
            raise MemoryError
        if rc:
            raise ValueError(f"extents {extents} don't fit at {index} instead of {count}")

    def load(self, list extents not None):
        """Replace all extents; ValueError, and nothing changed, if out of order, overlapping or too large."""
        self._exclusive()
        try:
            self.splice(0, self.m.n, extents)
        finally:
            self.unlock()
