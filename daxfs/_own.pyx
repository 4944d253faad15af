# SPDX-License-Identifier: MIT
"""L1: own ranges: files of a pool directory that hold one inode each, mapped in the own window.

`OwnWindow` is one large area of addresses, cut into places; `OwnRange` is one open range, which takes
places when it is first reached by dax_io (`reach`) and gives them back when it closes. What the range's file
holds is changed here and nowhere else (native/own.c), under the exclusive lock of the FileMap that `attach`
ties it to.

Limits: knows nothing of inodes or names. One thread opens, reaches and closes; `cover`, `learn`, `resize` and
`punch` may be called by any thread, and native code calls what is behind them.
"""
from libc.errno cimport ENFILE, ETXTBSY
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from daxfs._iomap cimport FileMap, RangeTable, filemap, own_range
from daxfs._window cimport Window

import os

from daxfs.errors import PinnedError, fail

cdef extern from "daxfs/native/own.h" nogil:
    int own_cover(filemap *f, uint64_t first, uint64_t last)
    int own_reserve(filemap *f, uint64_t first, uint64_t last)
    int own_learn(filemap *f, uint64_t first, uint64_t last, unsigned runs)
    int own_resize(filemap *f, uint64_t pages)
    int own_settle(int fd, int syncs)
    int own_shorten(int fd, int syncs, uint64_t size)
    int own_punch(filemap *f, uint64_t pos, uint64_t end)
    int64_t own_seek(const filemap *f, uint64_t pos, int data)
    int64_t own_cached(int fd, uint64_t first, uint64_t last)
    struct own_watch:
        pass
    void own_note(const own_range *o, const char *what, uint64_t a, uint64_t b)

cdef extern from *:
    """
    #define DAXFS_OWN_PUT(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
    #define DAXFS_OWN_GET(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    """
    void put_range "DAXFS_OWN_PUT"(own_range **p, own_range *v) nogil
    void put_int "DAXFS_OWN_PUT"(int *p, int v) nogil
    int get_int "DAXFS_OWN_GET"(int *p) nogil

cdef enum:
    PAGE_SHIFT = 12
    PLACE_SHIFT = 26                 # a place has 64 MiB: more ranges than descriptors fit
    PLACE_PAGES = 1 << 14
    PMD_PAGES = 512

PFN_BASE = 1 << 40                   # of the own window: behind every page that a region may have
MAX_PAGES = 1 << 34                  # four files of 16 TiB: half of what x86-64 has
MIN_PAGES = 1 << 22


def cached(int fd, uint64_t first, uint64_t last):
    """How many pages of [first, last) of a file on tmpfs have memory. OSError ENOSYS: before Linux 6.5."""
    cdef int64_t pages
    with nogil:
        pages = own_cached(fd, first, last)
    if pages < 0:
        raise fail(-pages, "pages of a range")
    return pages


cdef class OwnWindow:
    """Addresses for own ranges: at most 64 TiB, less where the address space is limited (RLIMIT_AS)."""

    def __cinit__(self):
        self.at = NULL

    def __init__(self, uint64_t pages=MAX_PAGES):
        """Reserve *pages* (a power of two), or a part of it. OSError where not even MIN_PAGES can be had."""
        while True:
            try:
                self.window = Window.reserve(pages, 1 << PLACE_SHIFT)
                break
            except OSError:
                if pages <= MIN_PAGES:
                    raise
                pages >>= 1
        self.places = pages // PLACE_PAGES
        self.first = PFN_BASE
        self.next = 0
        self.free = {}
        self.at = <own_range **>calloc(self.places, sizeof(own_range *))
        if self.at == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.at)

    def join(self, RangeTable table not None, uint64_t flags=0):
        """Make the window a range of *table*, from page PFN_BASE on, and watch it for SIGBUS."""
        table.add(self.first, self.first + self.places * PLACE_PAGES, <uintptr_t>self.window.base, flags)
        table.watch_own(self, self.window, <uintptr_t>self.at, PLACE_SHIFT)

    def close(self, RangeTable table not None):
        """Nobody may use an address any more. Twice is fine."""
        if not self.window.closed:
            table.unwatch_own()
            self.window.close()

    cdef uint64_t _take(self, uint64_t count) except? 0xFFFFFFFFFFFFFFFF:
        """*count* places in a row, a power of two; ENFILE where there are none."""
        cdef uint64_t place, more = count
        if self.free.get(count):
            return self.free[count].pop()
        if count <= self.places - self.next:
            place = self.next
            self.next += count
            return place
        while more < self.places:  # half of a larger one, and so on
            more <<= 1
            if self.free.get(more):
                place = self.free[more].pop()
                while more > count:
                    more >>= 1
                    self.free.setdefault(more, []).append(place + more)
                return place
        raise fail(ENFILE, "no addresses left for one more file with a range of its own")

    cdef void _give(self, uint64_t place, uint64_t count):
        """Nothing is mapped there any more."""
        cdef uint64_t i
        for i in range(count):
            put_range(&self.at[place + i], NULL)
        self.window.unplace(place * PLACE_PAGES, count * PLACE_PAGES)
        self.free.setdefault(count, []).append(place)


cdef _check(int rc):
    if rc == -ETXTBSY:
        raise PinnedError("pages of the file are pinned by somebody's I/O")
    if rc:
        raise fail(-rc)


def shorten(int fd, uint64_t size, bint syncs):
    """Cut the file of *fd*, which no OwnRange stands for, to *size* bytes. *syncs* as there. PinnedError."""
    cdef int rc
    with nogil:
        rc = own_shorten(fd, syncs, size)
    _check(rc)


def settle(int fd, bint syncs):
    """`OwnRange.settle` for such a file."""
    cdef int rc
    with nogil:
        rc = own_settle(fd, syncs)
    _check(rc)


cdef class OwnRange:
    """One own range: the open file *fd*, which this object closes.

    ``pages``: of the file, which a mapping's SIGBUS begins behind. ``syncs``: what happens to the file is
    durable after fdatasync alone. ``sync``: it has to be mapped with MAP_SYNC.
    """

    def __cinit__(self):
        memset(&self.r, 0, sizeof(self.r))
        self.r.fd = -1

    def __init__(self, OwnWindow home not None, int fd, bint writable=True, bint syncs=False,
                 bint sync=False):
        self.r.fd = fd
        self.home = home
        self.writable, self.map_sync = writable, sync
        self.r.syncs = syncs
        self.r.pages = os.fstat(fd).st_size >> PAGE_SHIFT

    def __dealloc__(self):
        # The window may be gone already, and its addresses with it: nothing but the descriptor is ours then.
        if self.r.fd >= 0:
            os.close(self.r.fd)

    @property
    def syncs(self) -> bool:
        """As it was made."""
        return bool(self.r.syncs)

    def watch(self, watcher):
        """Tell *watcher* (whose ``address`` is that of a struct own_watch) what happens to the file."""
        self.watcher = watcher
        self.r.watch = <own_watch *><uintptr_t>watcher.address

    def close(self):
        """Unmap and close. No FileMap may point here, and nobody use an address. Twice is fine."""
        self._unreach()
        if self.r.fd >= 0:
            os.close(self.r.fd)
            self.r.fd = -1

    cdef _unreach(self):
        if self.count and not self.home.window.closed:
            self.home._give(self.place, self.count)
        self.count = 0
        self.r.pfn = self.r.room = 0

    @property
    def fd(self):
        return self.r.fd

    @property
    def pages(self):
        return self.r.pages

    @property
    def pfn(self):
        """Of page 0, a pfn of the region; 0 as long as nothing had to be reached."""
        return self.r.pfn

    @property
    def room(self):
        """Pages that have an address."""
        return self.r.room

    @property
    def torn(self):
        """A page went away under a load or store (native/lost.h); `mend` maps all of it anew."""
        return bool(get_int(&self.r.torn))

    # -- under the exclusive lock of the FileMap ------------------------------------------------

    def attach(self, FileMap f not None):
        """From now on *f* has its data here. It must have no extents."""
        if f.m.n:
            raise ValueError("a file with extents can't have a range of its own")
        f.lock()
        f.range = self
        f.m.own = &self.r
        f.unlock()

    def detach(self, FileMap f not None):
        """*f* has no data any more."""
        f.lock()
        try:
            f.load([])
            f.m.own = NULL
            f.range = None
        finally:
            f.unlock()

    def reach(self, FileMap f not None, uint64_t pages):
        """Have addresses for *pages* at least. Those of before may be others now. ENFILE, ENOMEM, as mmap."""
        cdef uint64_t count = 1, place, i, huge
        if pages <= self.r.room:
            return
        while count * PLACE_PAGES < pages:
            count <<= 1
        if self.r.room and count * PLACE_PAGES < 2 * pages and count < self.home.places // 4:
            count <<= 1  # it grows: not again so soon
        place = self.home._take(count)
        f.lock()
        try:
            self.home.window.place(place * PLACE_PAGES, count * PLACE_PAGES, self.r.fd, 0,
                                   "rw" if self.writable else "r", False, self.map_sync, pages >= PMD_PAGES)
        except BaseException:
            self.home._give(place, count)
            f.unlock()
            raise
        try:
            extents = f.extents()
            self._unreach()
            self.place, self.count = place, count
            self.r.room = count * PLACE_PAGES
            self.r.pfn = self.home.first + place * PLACE_PAGES
            own_note(&self.r, "place", self.r.pfn << PAGE_SHIFT, self.r.room << PAGE_SHIFT)
            for i in range(count):
                put_range(&self.home.at[place + i], &self.r)
            f.load([(pgoff, n, self.r.pfn + pgoff, kind, slot) for pgoff, n, _, kind, slot in extents])
        finally:
            f.unlock()

    def mend(self, FileMap f not None):
        """Map the range anew after `torn`."""
        pages = max(self.r.room, 1)
        f.lock()
        try:
            f.load([])
            self._unreach()
            put_int(&self.r.torn, 0)
            self.reach(f, pages)
        finally:
            f.unlock()

    cdef _done(self, int rc):
        _check(rc)

    def cover(self, FileMap f not None, uint64_t first, uint64_t last):
        """Storage and addresses for the pages [first, last); the file reaches behind them. ENOSPC, ENFILE."""
        cdef int rc
        self.reach(f, last)
        f.lock()
        with nogil:
            rc = own_cover(&f.m, first, last)
        f.unlock()
        self._done(rc)

    def reserve(self, FileMap f not None, uint64_t first, uint64_t last):
        """Storage for the pages [first, last), also behind the end of the file, which stays. PinnedError."""
        cdef int rc
        f.lock()
        with nogil:
            rc = own_reserve(&f.m, first, last)
        f.unlock()
        self._done(rc)

    def learn(self, FileMap f not None, uint64_t first=0, uint64_t last=1 << 32, unsigned runs=1 << 30):
        """Make the extents of [first, last) what the file says, at most *runs* runs of data."""
        cdef int rc
        if not self.r.pages:
            return
        self.reach(f, self.r.pages)
        f.lock()
        with nogil:
            rc = own_learn(&f.m, first, last, runs)
        f.unlock()
        self._done(rc)

    def resize(self, FileMap f not None, uint64_t pages):
        """Cut the file, or make it longer by a hole. PinnedError."""
        cdef int rc
        f.lock()
        with nogil:
            rc = own_resize(&f.m, pages)
        f.unlock()
        self._done(rc)

    def settle(self, FileMap f not None):
        """Before what needs a cut later: PinnedError where it would have to wait now (native/own.h)."""
        cdef int rc
        f.lock()
        with nogil:
            rc = own_settle(f.m.own.fd, f.m.own.syncs)
        f.unlock()
        self._done(rc)

    def punch(self, FileMap f not None, uint64_t pos, uint64_t end):
        """Make the bytes [pos, end) zeros; whole pages lose their storage. PinnedError."""
        cdef int rc
        f.lock()
        with nogil:
            rc = own_punch(&f.m, pos, end)
        f.unlock()
        self._done(rc)

    def seek(self, FileMap f not None, uint64_t pos, bint data):
        """The first byte from *pos* on that is data, or not; the size of the file where there is none."""
        cdef int64_t at
        f.lock(False)
        with nogil:
            at = own_seek(&f.m, pos, data)
        f.unlock()
        if at < 0:
            raise fail(-at)
        return at

    def sync(self):
        """fdatasync of the range's file where it is what makes size and storage durable."""
        if self.r.syncs:
            os.fdatasync(self.r.fd)
            own_note(&self.r, "sync", 0, 0)
