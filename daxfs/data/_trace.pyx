# SPDX-License-Identifier: MIT
"""L3: the ring of `daxfs trace` (native/trace.h), as Python switches it on, fills it and takes from it.

Limits: knows nothing of what an event means (daxfs/fuse/trace.py). `put` and `look`: any thread; the rest is
the metadata thread's.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.string cimport memcpy, memset

REQUESTS, FAULTS, WRITEBACK = TRACE_REQUESTS, TRACE_FAULTS, TRACE_WRITEBACK
SOME = 1024  # events of one `read`


cdef class TraceRing:
    """Events of one mount, while somebody watches."""

    def __cinit__(self):
        trace_init(&self.r)

    def __dealloc__(self):
        trace_destroy(&self.r)

    def keep(self, int classes):
        """From now on keep events of these *classes*, REQUESTS and so on or'ed, or none. MemoryError."""
        if trace_keep(&self.r, classes):
            raise MemoryError

    @property
    def classes(self):
        """Those that are kept."""
        return self.r.on

    def read(self):
        """At most SOME events, the oldest first, as bytes."""
        cdef trace_event e
        out = []
        while len(out) < SOME and trace_read(&self.r, &e):
            out.append(PyBytes_FromStringAndSize(<char *>&e, sizeof(e)))
        return out

    def put(self, const uint8_t[::1] record not None):
        """A whole event, whose clock is set here. ValueError: of another size."""
        cdef trace_event e
        if record.shape[0] != sizeof(e):
            raise ValueError(f"an event has {sizeof(e)} bytes")
        memcpy(&e, &record[0], sizeof(e))
        trace_put(&self.r, &e)

    def look(self, uint64_t ino, uint64_t pages, uint64_t ns):
        """A look at the page tables of clients found *pages*; only while somebody watches write-backs."""
        cdef trace_dax_body body
        if self.r.on & TRACE_WRITEBACK:
            memset(&body, 0, sizeof(body))
            body.max_pgoff = pages
            trace_dax(&self.r, DAX_LOOK, ino, 0, ns, &body)
