# SPDX-License-Identifier: MIT
"""L3: which pages of a file were stored to through a mapping of another process (native/pagemap.h).

`span` says whether addresses still show a file, `Found` gathers runs of pages by scans and marks them dirty
in the file's map. Limits: descriptors and addresses are the caller's. `span` and `Found.scan` wait for the
mmap lock of the process that is looked at, without the GIL: never in the thread that serves the mount.
"""
from libc.errno cimport ENOENT, ENOMEM, ESRCH
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from daxfs._fsync cimport FSYNC_LOOK, FSYNC_PYTHON, FsyncRun, fsync_lap, fsync_run
from daxfs._iomap cimport FileMap, IOMAP_MAPPED, filemap, filemap_lookup, iomap, tracker_mark_pages

import os

from daxfs.errors import fail

cdef extern from "daxfs/native/pagemap.h" nogil:
    struct pagemap_area:
        uint64_t start, end, offset, ino
        uint32_t major, minor, flags
    enum: PAGEMAP_SHARED
    int pagemap_each(int pagemap, uint64_t start, uint64_t end, int protect,
                     int (*found)(void *ctx, uint64_t start, uint64_t end) noexcept nogil, void *ctx)
    int pagemap_area_at(int maps, uint64_t address, pagemap_area *out)
    int pagemap_available()
    void pagemap_widen(uint64_t *start, uint64_t *end, uint64_t low, uint64_t high)

cdef extern from "daxfs/native/own.h" nogil:
    int own_learn(filemap *f, uint64_t first, uint64_t last, unsigned runs)
    int own_look(filemap *f, uint64_t first, uint64_t last)


cdef enum:
    PAGE_SHIFT = 12

# A page of tmpfs or of fsdax is at most so large, and what is said of it is said of it as a whole.
HUGE = 1 << 21


def available() -> bool:
    """Whether this kernel tells what was stored through mappings (Linux 6.11)."""
    return bool(pagemap_available())


def span(int maps, uint64_t start, uint64_t end, uint64_t offset, uint64_t device, uint64_t ino,
         FsyncRun times=None):
    """The addresses [start, end), made larger to whole huge pages as far as their areas go, as (low, high).

    *maps*: a descriptor of /proc/PID/maps. None where a part of them does not show, shared, this file (st_dev
    and st_ino) from *offset* on, or the process has no such address space any more. *times*: of the fsync.
    """
    cdef pagemap_area area
    cdef uint64_t at = start, low = start, high = end
    cdef uint32_t major = os.major(device), minor = os.minor(device)
    cdef int rc
    cdef fsync_run *run = NULL
    if times is not None:
        run = &times.r
    while at < end:
        with nogil:
            fsync_lap(run, FSYNC_PYTHON)
            rc = pagemap_area_at(maps, at, &area)
            fsync_lap(run, FSYNC_LOOK)
        if rc == -ENOENT or rc == -ESRCH:
            return None
        if rc:
            raise fail(-rc)
        if (area.ino != ino or area.major != major or area.minor != minor or not area.flags & PAGEMAP_SHARED
                or area.offset + (at - area.start) != offset + (at - start)):
            return None
        if at == start:
            low = area.start
        at = area.end
    high = at
    pagemap_widen(&start, &end, low, high)
    return start, end


cdef struct page_run:
    uint64_t first, pages

cdef struct gathering:
    page_run *run
    size_t n, room
    uint64_t base, pages              # base: the address of page 0 of the file, modulo 2^64


cdef int _add(gathering *g, uint64_t first, uint64_t pages) noexcept nogil:
    cdef page_run *grown
    if g.n and g.run[g.n - 1].first + g.run[g.n - 1].pages == first:
        g.run[g.n - 1].pages += pages
    else:
        if g.n == g.room:
            grown = <page_run *>realloc(g.run, (g.room * 2 + 64) * sizeof(page_run))
            if grown == NULL:
                return -ENOMEM
            g.run, g.room = grown, g.room * 2 + 64
        g.run[g.n].first, g.run[g.n].pages = first, pages
        g.n += 1
    g.pages += pages
    return 0


cdef int _found(void *ctx, uint64_t start, uint64_t end) noexcept nogil:
    cdef gathering *g = <gathering *>ctx
    return _add(g, (start - g.base) >> PAGE_SHIFT, (end - start) >> PAGE_SHIFT)


cdef class Found:
    """Runs of pages of one file. One thread at a time.

    ``pages``: their number; what was found through two mappings counts twice.
    """
    cdef gathering g

    def __dealloc__(self):
        free(self.g.run)

    def __len__(self):
        return self.g.n

    @property
    def pages(self):
        return self.g.pages

    def runs(self):
        """[(first page, pages)], as they were found."""
        return [(self.g.run[i].first, self.g.run[i].pages) for i in range(self.g.n)]

    def add(self, uint64_t first, uint64_t pages):
        """One more run."""
        if _add(&self.g, first, pages):
            raise MemoryError

    def scan(self, int pagemap, uint64_t start, uint64_t end, uint64_t address, uint64_t offset,
             bint protect=True, FsyncRun times=None):
        """What was stored to in [start, end) since the last scan that protected; *protect*: from now on anew.

        *address* shows *offset* of the file. An error, EPERM where it is not registered for that, leaves
        unknown what was stored there: it may be protected. *times*: of the fsync.
        """
        cdef int rc
        cdef fsync_run *run = NULL
        if times is not None:
            run = &times.r
        self.g.base = address - offset
        with nogil:
            fsync_lap(run, FSYNC_PYTHON)
            rc = pagemap_each(pagemap, start, end, protect, _found, &self.g)
            fsync_lap(run, FSYNC_LOOK)
        if rc == -ENOMEM:
            raise MemoryError
        if rc:
            raise fail(-rc)

    def mark(self, FileMap f not None):
        """Mark all of it dirty that is in the file's own range, and have extents where that has storage.

        MemoryError, OSError: some are not marked.
        """
        cdef uint64_t last, first
        cdef iomap m
        cdef size_t i
        cdef int rc = 0
        if not self.g.n or f.range is None or not f.range.pages:
            return
        f.range.reach(f, f.range.pages)
        f.lock()
        try:
            f.enter_marks()
            with nogil:
                for i in range(self.g.n):
                    first, last = self.g.run[i].first, self.g.run[i].first + self.g.run[i].pages
                    last = min(last, f.m.own.pages)      # cut meanwhile
                    if first >= last:
                        continue
                    filemap_lookup(&f.m, first, &m)
                    if m.type != IOMAP_MAPPED or m.len < last - first:
                        # Not by lseek, which looks for the end of the data, however far; but where pages
                        # went again since.
                        rc = own_look(&f.m, first, last)
                        if 0 <= rc < 2:
                            rc = own_learn(&f.m, first, last, <unsigned>-1)
                        rc = min(rc, 0)
                    if not rc:
                        rc = tracker_mark_pages(&f.m, first, last - first)
                    if rc:
                        break
            f.leave_marks()
        finally:
            f.unlock()
        if rc == -ENOMEM:
            raise MemoryError
        if rc:
            raise fail(-rc)
