# SPDX-License-Identifier: MIT
"""L3: the fault handler (native/handler.h) as Python makes and fills it: who is observed, with which files.

Limits: knows nothing of FUSE or of who may observe what. One thread calls `add`, `remove`, `end` and `close`;
none of them waits for a client. No method may be called while a FileMap lock is held.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from daxfs._fsync cimport FSYNC_PYTHON, FsyncRun, fsync_lap, fsync_run
from daxfs._iomap cimport FileMap, filemap

import os
from collections import Counter

from daxfs.errors import fail
from daxfs.fault._decision import KIND_NAMES, REASON_NAMES, result_name
from daxfs.latency import Operation

cdef extern from "daxfs/native/latency.h" nogil:
    enum: LATENCY_BUCKETS
    struct latency:
        uint64_t total
        uint64_t bucket[40]

cdef extern from "daxfs/native/handler.h" nogil:
    struct daxio:
        pass
    enum:
        FAULT_KINDS, FAULT_RESULTS, FAULT_REASONS, HANDLER_THREADS
    struct handler_stats:
        uint64_t stale, busy
        latency writeback_ns, writeback_pages
    struct handler_rows:
        latency fault[4][2][16][13]
    struct handler_bad:
        const filemap *f
        uint64_t first, last
    struct handler_trouble:
        uint64_t count, id
        int err
    struct handler_thread:
        handler_rows *rows
    struct handler:
        handler_stats stats
        handler_thread thread[64]
        int told
        unsigned threads
    int handler_available()
    int handler_start(handler *h, daxio *io, unsigned threads)
    void handler_stop(handler *h)
    void handler_free(handler *h)
    int handler_add(handler *h, uint64_t key, int fd, uint64_t id, uint64_t start, uint64_t length,
                    uint64_t pgoff, filemap *f, int pmd, uint32_t pid)
    int handler_remove(handler *h, uint64_t key, uint64_t id, uint64_t start, uint64_t length)
    void handler_end(handler *h, uint64_t key)
    int64_t handler_writeback(handler *h, filemap *f, uint64_t first, uint64_t last, fsync_run *run)
    int handler_take(handler *h, filemap *f)
    uint64_t handler_dirty(handler *h, const filemap *f)
    int handler_uses(handler *h, const filemap *f)
    void handler_forget(handler *h, const filemap *f, uint64_t first, uint64_t last)
    int handler_spoil(handler *h, const handler_bad *bad, size_t count)
    int handler_displace(handler *h, filemap *f, uint64_t first, uint64_t last)
    int handler_restore(handler *h, filemap *f, uint64_t first, uint64_t last)
    handler_trouble handler_ask_trouble(handler *h)

cdef extern from *:
    """
    #define DAXFS_READ(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    """
    uint64_t load "DAXFS_READ"(const uint64_t *p) nogil


def available():
    """Whether this kernel's userfaultfd does what clients and handler need (Linux 6.4)."""
    return bool(handler_available())


cdef object _histogram(const latency *l):
    return Operation.of(load(&l.total), [load(&l.bucket[n]) for n in range(LATENCY_BUCKETS)])


cdef class FaultHandler:
    """Threads that answer the faults of observed mappings (fault=user).

    *dax*: the mount's DaxIo. *threads*: 0 for one for each CPU that this process may use.
    """

    cdef handler h
    cdef object dax               # its daxio is used by the threads
    cdef dict files               # mapping: its FileMap
    cdef bint runs

    def __init__(self, dax, unsigned threads=0):
        cdef unsigned count = threads or len(os.sched_getaffinity(0))
        cdef int err
        cdef daxio *io = <daxio *><uintptr_t>dax.address
        self.dax = dax
        with nogil:
            err = handler_start(&self.h, io, count)
        if err:
            raise fail(-err, "the fault handler's threads")
        self.files = {}
        self.runs = True

    def __dealloc__(self):
        if self.runs:
            with nogil:
                handler_stop(&self.h)
        handler_free(&self.h)

    def close(self):
        """Answer nothing more. Who waits goes on once its userfaultfd is closed. Twice is fine."""
        if self.runs:
            self.runs = False
            with nogil:
                handler_stop(&self.h)
            self.files.clear()

    def add(self, uint64_t key, int fd, uint64_t id, uint64_t start, uint64_t length, uint64_t pgoff,
            FileMap f not None, bint pmd=True, uint32_t pid=0):
        """Addresses [start, start + length) of process *key* show *f* from *pgoff* on; *fd* is ours then.

        Not *pmd*: 4 KiB for each fault, and so for each mark. *pid*: for who watches.

        OSError EINVAL: *fd* is no userfaultfd; EEXIST: some of it is observed already; EMFILE: too many *fd*.
        """
        cdef int err
        self._collect()
        with nogil:
            err = handler_add(&self.h, key, fd, id, start, length, pgoff, &f.m, pmd, pid)
        if err:
            raise fail(-err, "a mapping to observe")
        self.files[id] = f

    def remove(self, uint64_t key, uint64_t id, uint64_t start, uint64_t length):
        """What of these addresses is of mapping *id* is observed no more."""
        cdef int err
        with nogil:
            err = handler_remove(&self.h, key, id, start, length)
        if err:
            raise fail(-err, "a mapping to forget")
        self._collect()

    def write_back(self, FileMap f not None, uint64_t first=0, uint64_t last=1 << 40, FsyncRun times=None):
        """Flush what clients stored to pages [first, last) of *f*, whose range has an address: pages.

        Any thread; it waits for clients, so never one that serves requests. OSError: the rest is still dirty.
        """
        cdef int64_t pages
        cdef fsync_run *run = NULL
        if times is not None:
            run = &times.r
        with nogil:
            fsync_lap(run, FSYNC_PYTHON)
            pages = handler_writeback(&self.h, &f.m, first, last, run)
        if pages < 0:
            raise fail(-pages, "write-back of observed mappings")
        return pages

    def take(self, FileMap f not None):
        """The marks become the tracker's, without waiting: False, some are in use and stay. OSError."""
        cdef int rc
        with nogil:
            rc = handler_take(&self.h, &f.m)
        if rc < 0:
            raise fail(-rc, "what was stored through observed mappings")
        return not rc

    def forget(self, FileMap f not None, uint64_t first, uint64_t last):
        """Before the pages [first, last) go, under the file's lock: so do their marks. Waits for nobody."""
        handler_forget(&self.h, &f.m, first, last)

    def spoil(self, pieces):
        """The poisoned pages [(FileMap, first, last)] of files with POISONED: SIGBUS for who faults there."""
        cdef handler_bad *bad = <handler_bad *>calloc(len(pieces) + 1, sizeof(handler_bad))
        cdef FileMap f
        cdef int err
        if not bad:
            raise MemoryError
        try:
            for n, (f, first, last) in enumerate(pieces):
                bad[n].f, bad[n].first, bad[n].last = &f.m, first, last
            err = handler_spoil(&self.h, bad, len(pieces))
        finally:
            free(bad)
        if err:
            raise MemoryError

    def displace(self, FileMap f not None, uint64_t first, uint64_t last):
        """Take pages [first, last) out of every mapping; their bytes stay. Any thread, as `write_back`."""
        cdef int err
        with nogil:
            err = handler_displace(&self.h, &f.m, first, last)
        if err:
            raise fail(-err, "pages of observed mappings")

    def restore(self, FileMap f not None, uint64_t first, uint64_t last):
        """Pages [first, last) can be used again where they were SIGBUS. Any thread, as `write_back`."""
        cdef int err
        with nogil:
            err = handler_restore(&self.h, &f.m, first, last)
        if err:
            raise fail(-err, "pages of observed mappings")

    @property
    def told(self):
        """A descriptor that is readable once there is `trouble`."""
        return self.h.told

    def trouble(self):
        """(faults without storage since this was asked last, the last one's mapping and errno)."""
        cdef handler_trouble found = handler_ask_trouble(&self.h)
        return found.count, found.id, -found.err

    def dirty(self, FileMap f not None):
        """Entries of *f*, of 4 KiB or 2 MiB, that clients may have stored to since."""
        return handler_dirty(&self.h, &f.m)

    def end(self, uint64_t key):
        """Process *key* is gone."""
        with nogil:
            handler_end(&self.h, key)
        self._collect()

    cdef _collect(self):
        """Let go of files that nothing shows any more."""
        cdef FileMap f
        for id, f in list(self.files.items()):
            if not handler_uses(&self.h, &f.m):
                del self.files[id]

    def uses(self, FileMap f not None):
        """Whether a mapping shows *f*, a fault of one that did is being answered, or something is dirty."""
        return bool(handler_uses(&self.h, &f.m))

    @property
    def threads(self):
        return self.h.threads

    def rows(self):
        """{(kind, order, result, reason): Operation}: how often, how long from the message to the answer."""
        cdef int kind, order, result, reason
        out = {}
        for kind in range(FAULT_KINDS):
            for order in range(2):
                for result in range(FAULT_RESULTS):
                    for reason in range(FAULT_REASONS):
                        total = self._row(kind, order, result, reason)
                        if total is not None:
                            key = KIND_NAMES[kind], 9 * order, result_name(result), REASON_NAMES[reason]
                            out[key] = total
        return out

    cdef object _row(self, int kind, int order, int result, int reason):
        """All threads' together; None: there was none."""
        cdef unsigned thread
        cdef int n
        cdef uint64_t total = 0, count = 0, sums[40]
        cdef const latency *l
        memset(sums, 0, sizeof(sums))
        for thread in range(HANDLER_THREADS):
            if self.h.thread[thread].rows != NULL:
                l = &self.h.thread[thread].rows.fault[kind][order][result][reason]
                total += load(&l.total)
                for n in range(LATENCY_BUCKETS):
                    sums[n] += load(&l.bucket[n])
        for n in range(LATENCY_BUCKETS):
            count += sums[n]
        if not count:
            return None
        return Operation.of(total, [sums[n] for n in range(LATENCY_BUCKETS)])

    def writeback_times(self):
        """(Operation of ns, Operation of pages): write-backs that found something."""
        return _histogram(&self.h.stats.writeback_ns), _histogram(&self.h.stats.writeback_pages)

    def snapshot(self):
        """Counters: ``faults`` {(kind, order, result): times}, ``reasons`` {name: times}, ``stale``, ``ns``;
        ``busy``: faults whose client may be on already, and which are not done with."""
        cdef uint64_t busy = load(&self.h.stats.busy)  # before the rows: 0 means that they have all up to now
        faults, reasons = Counter(), Counter()
        ns = 0
        for (kind, order, result, reason), row in self.rows().items():
            faults[kind, order, result] += row.count
            ns += row.total_ns
            if not order:
                reasons[reason] += row.count
        return {"faults": dict(faults), "reasons": dict(reasons), "ns": ns,
                "stale": load(&self.h.stats.stale), "busy": busy}
