# SPDX-License-Identifier: MIT
"""L3: the native transport's Python face: threads that answer the kernel (native/transport.h), and the calls
that they leave to the trio loop.

`Transport` owns the threads, `Call` is one request that Python answers. Limits: all methods belong to the
metadata thread; the threads behind them never take the GIL. Descriptors are the caller's: they must stay
open until `stop` has returned.
"""
cimport cython
from cpython.buffer cimport PyBUF_READ, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport ECONNABORTED, EIO, ENODEV
from libc.stdint cimport uint32_t, uint64_t

import os

from daxfs._fsync cimport FSYNC_PYTHON, FsyncCounts, FsyncRun, fsync_counts, fsync_lap, fsync_run
from daxfs.data._dax_io cimport iovec
from daxfs.data._serve cimport Server, serve_counts, serve_msg, server, wire_in

from daxfs.errors import fail

cdef extern from "daxfs/native/transport.h" nogil:
    enum: TRANSPORT_DEV, TRANSPORT_URING
    struct pending:
        wire_in head
        serve_msg msg
        fsync_run fsync
        int interrupted
    struct channel:
        serve_counts counts
    struct transport:
        int event_fd
        int ended, home
        uint32_t open_flags
        uint64_t npending
        fsync_counts fsyncs
        channel *channel[512]
        int nchannels
    int transport_init(transport *t, server *s, int kind, int fuse_fd, int pair_fd, size_t max_payload)
    int transport_start(transport *t, int threads)
    void transport_stop(transport *t)
    void transport_destroy(transport *t)
    pending *transport_next_call(transport *t)
    void transport_pump(transport *t)
    int transport_linger(transport *t, int fd, int loop, unsigned ns)
    void transport_place(const transport *t, int tid, int there)
    void transport_reply(transport *t, pending *p, int error, const iovec *iov, int n)

cdef extern from *:
    """
    #define DAXFS_PEEK(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    """
    int peek "DAXFS_PEEK"(int *p) nogil

cdef enum:
    MAX_PIECES = 16

_FAILED = "a thread of the transport failed: "
KINDS = {"dev": TRANSPORT_DEV, "uring": TRANSPORT_URING}
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6


@cython.final
cdef class Call:
    """One request that Python answers, with `reply`, exactly once.

    opcode, unique, nodeid, uid, gid, pid: of its header. arg: bytes, the fixed struct of the opcode. data:
    memoryview of what follows; not for use after `reply`. interrupted: the caller does not wait any more
    for all of it (INTERRUPT); may turn true at any time. fsync: a FsyncRun, of an FSYNC.
    """

    cdef Transport owner
    cdef pending *p
    cdef readonly uint32_t opcode, uid, gid, pid
    cdef readonly uint64_t unique, nodeid
    cdef readonly bytes arg
    cdef readonly object data
    cdef readonly FsyncRun fsync

    @property
    def interrupted(self):
        return self.p != NULL and peek(&self.p.interrupted) != 0

    def reply(self, int error=0, pieces=()):
        """Answer with *error* (0 or an errno) or with the bytes of *pieces*, at most MAX_PIECES buffers."""
        cdef Py_buffer views[MAX_PIECES]
        cdef iovec iov[MAX_PIECES]
        cdef int n = 0, i
        cdef pending *p = self.p
        cdef transport *t = &self.owner.t
        if p == NULL:
            raise RuntimeError("this call was answered already")
        try:
            if not error:
                for piece in pieces:
                    if n == MAX_PIECES:
                        raise ValueError(f"more than {MAX_PIECES} pieces")
                    PyObject_GetBuffer(piece, &views[n], PyBUF_SIMPLE)
                    iov[n].iov_base, iov[n].iov_len = views[n].buf, views[n].len
                    n += 1
            # The memory behind it goes with the reply. BufferError where somebody still looks at it.
            self.data.release()
            self.p = NULL
            if self.fsync is not None:
                fsync_lap(&self.fsync.r, FSYNC_PYTHON)
                p.fsync = self.fsync.r
            with nogil:
                transport_reply(t, p, -error, iov, n)
        finally:
            for i in range(n):
                PyBuffer_Release(&views[i])


cdef class Transport:
    """The native threads of one mount.

    server: answers what needs no Python. kind: "dev" (*threads* readers of /dev/fuse) or "uring" (a queue for
    each CPU). fuse_fd: the mount's descriptor, INIT answered; pair_fd: our end of the pair to pyfuse3.
    max_payload: bytes of the largest READ or WRITE.
    """

    cdef transport t
    cdef bint there
    cdef Server server
    cdef readonly str kind
    cdef readonly int threads

    def __init__(self, Server server not None, str kind, int fuse_fd, int pair_fd, size_t max_payload,
                 int threads=1, uint32_t open_flags=0):
        cdef int rc = transport_init(&self.t, &server.s, KINDS[kind], fuse_fd, pair_fd, max_payload)
        self.there = True
        self.server, self.kind, self.threads = server, kind, threads
        if rc:
            raise self._not_started(rc)
        self.t.open_flags = open_flags

    def __dealloc__(self):
        if self.there:
            with nogil:
                transport_stop(&self.t)
                transport_destroy(&self.t)

    def start(self):
        """Begin to answer. OSError where a thread or a queue could not begin; none is left then."""
        cdef int rc
        with nogil:
            rc = transport_start(&self.t, self.threads)
        if rc:
            raise self._not_started(rc)

    def _not_started(self, int rc):
        return fail(-rc, f"the transport {self.kind} can't be started: {os.strerror(-rc)}")

    def stop(self):
        """End all threads. Requests that nobody answered fail when the mount's descriptor is closed."""
        with nogil:
            transport_stop(&self.t)

    def fileno(self):
        """Readable while there are calls, or when the transport has ended."""
        return self.t.event_fd

    @property
    def ended(self):
        """None; or "umount", "abort", or what went wrong, once nothing more can come."""
        cdef int error = peek(&self.t.ended)
        if not error:
            return None
        return {ENODEV: "umount", ECONNABORTED: "abort"}.get(error) or _FAILED + os.strerror(error)

    @property
    def pending(self):
        """Requests that wait for pyfuse3 or the trio loop."""
        return self.t.npending

    def pump(self):
        """Hand on what pyfuse3 has written. After each step of the trio loop: it may have run a handler."""
        with nogil:
            transport_pump(&self.t)

    def linger(self, int fd, int loop, unsigned ns):
        """`pump`, then wait. The sum of 1: pyfuse3 has a request to read from *fd*; 2: there are calls, or
        the end; 4: *loop* is readable. 0: nothing within *ns* (below 10**9), or a signal."""
        cdef int seen
        with nogil:
            seen = transport_linger(&self.t, fd, loop, ns)
        return seen

    @property
    def home(self):
        """The CPU that this thread keeps to, -1 where it runs on any that it may."""
        return self.t.home

    def place(self, int tid, bint there):
        """Put thread *tid* of this process on `home` (*there*), or where this thread may run.

        With the GIL: a thread of Python's that is at something does not end meanwhile.
        """
        transport_place(&self.t, tid, there)

    def next_call(self):
        """The oldest request that Python has to answer (a `Call`), or None."""
        cdef pending *p = transport_next_call(&self.t)
        cdef Call call
        if p == NULL:
            return None
        call = Call.__new__(Call)
        call.owner, call.p = self, p
        call.opcode, call.unique, call.nodeid = p.head.opcode, p.head.unique, p.head.nodeid
        call.uid, call.gid, call.pid = p.head.uid, p.head.gid, p.head.pid
        call.arg = PyBytes_FromStringAndSize(p.msg.arg, p.msg.arg_len)
        if p.fsync.began:
            call.fsync = FsyncRun.__new__(FsyncRun)
            call.fsync.r = p.fsync
        call.data = PyMemoryView_FromMemory(<char *>p.msg.data, p.msg.data_len, PyBUF_READ)
        return call

    @property
    def channels(self):
        """Threads that take requests: of uring one for each queue, and one that reads the descriptor."""
        return self.t.nchannels

    def counts(self):
        """What the threads answered and passed on, summed up, as `Server.counts` has it.

        ``fsync_called``: FsyncCounts of those that Python answered.
        """
        cdef const serve_counts *all[512]
        cdef FsyncCounts called = FsyncCounts()
        cdef int i
        for i in range(self.t.nchannels):
            all[i] = &self.t.channel[i].counts
        called.take(&self.t.fsyncs)
        return self.server.summed(all, self.t.nchannels) | {"fsync_called": called}
