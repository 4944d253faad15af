# SPDX-License-Identifier: MIT
"""L3: native service of requests (native/serve.h), as Python makes, sets and feeds it.

`Server` owns what the threads of the transport share: open handles, and the limits within which
requests may be answered without the metadata thread. `feed` gives it one request as raw bytes, `fuzz` many
broken ones: for tests, without a mount.

Metadata thread: open, close, the limits. `feed` and `counts`: one thread at a time; both are not the
transport's. No method may be called while a FileMap lock is held.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from daxfs._fsync cimport FsyncCounts
from daxfs._iomap cimport FileMap

from daxfs.latency import Operation
from daxfs.errors import UsageError, fail

WRITE, DIRECT, DSYNC, NOATIME, DIRECTORY, RAW = (
    SERVE_WRITE, SERVE_DIRECT, SERVE_DSYNC, SERVE_NOATIME, SERVE_DIRECTORY, SERVE_RAW)
PARKED_MOST, PARKED_EACH = SERVE_PARKED_MOST, SERVE_PARKED_EACH
VERDICTS = ("done", "relay", "call", "forget", "interrupt", "drop")
ATIME_POLICIES = ("noatime", "relatime", "strictatime")
WRONG = ("", "no such verdict", "no errno, or one without an answer", "a reply of the wrong length",
         "wrong pieces",
         "a refused request stored something", "the region is still entered", "no memory")
HEADER = 40
OPCODES = {
    1: "lookup", 2: "forget", 3: "getattr", 4: "setattr", 5: "readlink", 6: "symlink", 8: "mknod", 9: "mkdir",
    10: "unlink", 11: "rmdir", 12: "rename", 13: "link", 14: "open", 15: "read", 16: "write", 17: "statfs",
    18: "release", 20: "fsync", 21: "setxattr", 22: "getxattr", 23: "listxattr", 24: "removexattr",
    25: "flush", 26: "init", 27: "opendir", 28: "readdir", 29: "releasedir", 30: "fsyncdir", 31: "getlk",
    32: "setlk", 33: "setlkw", 34: "access", 35: "create", 36: "interrupt", 37: "bmap", 38: "destroy",
    39: "ioctl", 40: "poll", 41: "notify_reply", 42: "batch_forget", 43: "fallocate", 44: "readdirplus",
    45: "rename2", 46: "lseek", 47: "copy_file_range", 48: "setupmapping", 49: "removemapping", 50: "syncfs",
    51: "tmpfile", 52: "statx", 53: "copy_file_range_64",
}


cdef int64_t _test_time(server *s) noexcept nogil:
    return s.test_time


cdef str _name(int op):
    return OPCODES.get(op, "unknown")


cdef object _operation(const serve_counts *c, int op):
    out = Operation()
    out.count, out.errors, out.total_ns = c.count[op], c.errors[op], c.total_ns[op]
    out.buckets = [c.bucket[op][n] for n in range(SERVE_BUCKETS)]
    return out


def arg_size(uint32_t opcode):
    """Bytes of the fixed struct of an opcode."""
    return serve_arg_size(opcode)


@cython.no_gc_clear
cdef class Server:
    """Handles and limits of one mount. *dax*: its data path.

    Nothing but handles, inode numbers and well-formedness is looked at until ``writes``, ``getattr``,
    ``atime`` and the like are set: everything else is relayed or called.
    """

    def __cinit__(self, DaxIo dax not None):
        self.dax, self.maps = dax, {}
        memset(&self.c, 0, sizeof(self.c))
        if server_init(&self.s, &dax.io):
            raise MemoryError
        self.s.limits.max_write = 1 << 20
        self.s.limits.inode_limit = 2      # the root alone

    def __dealloc__(self):
        server_destroy(&self.s)

    # -- handles ---------------------------------------------------------------------------

    def open(self, FileMap f, uint64_t ino, uint32_t flags=0, int32_t backing=0, opener=None):
        """A handle on a file or, with DIRECTORY, a directory: its number, never 0. *f*: its map.

        *backing*: the kernel's number of the file that mappings are of; the reply to OPEN or CREATE names it.
        *opener*: (flags of open(2), uid, gid, pid) where a later OPEN that is the same may get this handle
        once it is parked; None: it never is.
        """
        cdef uint64_t fh
        cdef serve_opener by
        if f is None and not flags & SERVE_DIRECTORY:
            raise UsageError("a file has a map")
        if opener is not None:
            by.flags, by.uid, by.gid, by.pid = opener
        fh = server_open(&self.s, NULL if f is None else &f.m, ino, flags, backing,
                         NULL if opener is None else &by)
        if not fh:
            raise MemoryError
        self.maps[fh] = f
        return fh

    def close(self, uint64_t fh):
        """The handle goes, once no request uses it any more. EBADF."""
        cdef int rc
        with nogil:
            rc = server_close(&self.s, fh)
        if rc:
            raise fail(-rc)
        del self.maps[fh]

    def __len__(self):
        return len(self.maps)

    # -- parked handles (native/serve_park.h) ----------------------------------------------

    def opened(self, uint64_t fh, uint32_t open_flags):
        """The reply to its OPEN had these FOPEN_ flags (the transport says so by itself)."""
        server_opened(&self.s, fh, open_flags)

    def opener(self, uint64_t fh):
        """The pid of who opened it, by the last OPEN that it answered; 0: not known."""
        return server_opener(&self.s, fh)

    def taken(self, uint64_t fh):
        """How often it answered one more OPEN while it was parked: who had it before may have mappings."""
        return server_taken(&self.s, fh)

    def reap(self, uint64_t ino=0, double age=0):
        """The numbers of handles, not parked any more, that had been for *age* seconds: to be closed now.

        *ino*: of that inode; 0: of all.
        """
        cdef uint64_t fh[SERVE_PARKED_MOST]
        cdef int n = server_reap(&self.s, ino, <int64_t>(age * 1e9), fh)
        return [fh[i] for i in range(n)]

    def parked(self):
        """The inodes with parked handles, each as often as it has some."""
        cdef uint64_t ino[SERVE_PARKED_MOST]
        cdef int n = server_parked(&self.s, ino)
        return [ino[i] for i in range(n)]

    @property
    def armed(self):
        """Handles were parked since the last `disarm`, and who waits for that was told."""
        return bool(self.s.armed)

    def disarm(self):
        """True: nothing is parked, and the next one that is will be told again."""
        return bool(server_disarm(&self.s))

    # -- limits ----------------------------------------------------------------------------

    @property
    def writes(self):
        """WRITE, FSYNC, FALLOCATE and access times may be served: read-write, and not granularity PAGE."""
        return bool(self.s.limits.writes)

    @writes.setter
    def writes(self, bint value):
        self.s.limits.writes = value

    @property
    def nothing(self):
        """Nothing is served but refusals."""
        return bool(self.s.limits.nothing)

    @nothing.setter
    def nothing(self, bint value):
        self.s.limits.nothing = value

    @property
    def atime(self):
        """noatime (on a read-only mount too), relatime or strictatime."""
        return ATIME_POLICIES[self.s.limits.atime]

    @atime.setter
    def atime(self, str value):
        if value not in ATIME_POLICIES:
            raise UsageError(f"atime is one of {', '.join(ATIME_POLICIES)}, not {value}")
        self.s.limits.atime = ATIME_POLICIES.index(value)

    @property
    def lazytime(self):
        return bool(self.s.limits.lazytime)

    @lazytime.setter
    def lazytime(self, bint value):
        self.s.limits.lazytime = value

    @property
    def getattr(self):
        """GETATTR may be served: there are no damaged inodes."""
        return bool(self.s.limits.getattr)

    @getattr.setter
    def getattr(self, bint value):
        self.s.limits.getattr = value

    @property
    def inode_limit(self):
        """Inodes [1, inode_limit) are valid."""
        return self.s.limits.inode_limit

    @inode_limit.setter
    def inode_limit(self, uint64_t value):
        self.s.limits.inode_limit = value

    @property
    def raw(self):
        """Numbers of the raw region's inodes, as a range; they stand in no table."""
        return range(self.s.limits.raw_first, self.s.limits.raw_end)

    @raw.setter
    def raw(self, numbers):
        self.s.limits.raw_first, self.s.limits.raw_end = numbers.start, numbers.stop

    @property
    def max_write(self):
        """Bytes of the largest READ, WRITE and READDIR."""
        return self.s.limits.max_write

    @max_write.setter
    def max_write(self, uint64_t value):
        self.s.limits.max_write = value

    @property
    def inodes(self):
        """Address of the inode table in the region; 0: none."""
        return <uintptr_t>self.s.limits.inodes

    @inodes.setter
    def inodes(self, uintptr_t address):
        self.s.limits.inodes = <char *>address

    @property
    def parks(self):
        """Handles may be parked, and opens may get them."""
        return bool(self.s.limits.parks)

    @parks.setter
    def parks(self, bint value):
        self.s.limits.parks = value

    @property
    def ranges(self):
        """Descriptor of the folder of own ranges, open until the last request; -1: none."""
        return self.s.limits.ranges

    @ranges.setter
    def ranges(self, int fd):
        self.s.limits.ranges = fd

    def set_clock(self, time):
        """*time*: ns since the epoch that every request sees from now on; None: the real time."""
        if time is None:
            self.s.now = server_realtime
        else:
            self.s.test_time, self.s.now = time, _test_time

    def set_fault_hook(self, faults):
        """Page fills and write-backs are told to *faults* (fault.CachedFaults), or to nobody (None).

        Before the first request of another thread.
        """
        cdef uintptr_t function = 0, context = 0
        if faults is not None:
            function, context = faults.hook
        self.s.fault, self.s.fault_ctx = <serve_fault>function, <void *>context
        self.faults = faults

    # -- requests --------------------------------------------------------------------------

    def feed(self, bytes request not None, arg_split=None, bint by_pieces=False):
        """(verdict, error, reply without its header) of one raw request.

        arg_split: how many bytes behind the header are the fixed struct, in a buffer of its own as io_uring
        has it; None: as /dev/fuse has it. by_pieces: the reply may be pieces of the region.
        """
        cdef serve_msg m
        cdef serve_reply r
        cdef bytes head, arg, data
        cdef const char *raw = PyBytes_AS_STRING(request)
        cdef size_t size = len(request)
        cdef int verdict
        if serve_split(raw, size, &m):
            return "drop", 0, b""
        if arg_split is not None:
            head = request[:HEADER]
            arg, data = request[HEADER : HEADER + arg_split], request[HEADER + arg_split :]
            m.head = <const wire_in *>PyBytes_AS_STRING(head)
            m.arg, m.arg_len = PyBytes_AS_STRING(arg), len(arg)
            m.data, m.data_len = PyBytes_AS_STRING(data), len(data)
        memset(&r, 0, sizeof(r))
        r.cap, r.by_pieces = self.s.limits.max_write, by_pieces
        r.buf = <char *>malloc(max(r.cap, HEADER * 4))
        if r.buf == NULL:
            raise MemoryError
        try:
            with nogil:
                verdict = serve(&self.s, &self.c, &m, &r)
            return VERDICTS[verdict], r.error, _reply(&self.s, &r)
        finally:
            free(r.buf)

    def counts(self):
        """What `feed` counted, as `summed` has it."""
        cdef const serve_counts *all[1]
        all[0] = &self.c
        return self.summed(all, 1)

    cdef dict summed(self, const serve_counts **all, int n):
        cdef serve_counts total
        cdef FsyncCounts fsyncs = FsyncCounts()
        memset(&total, 0, sizeof(total))
        for i in range(n):
            serve_counts_add(&total, all[i])
        fsyncs.take(&total.fsync)
        return {
            "operations": {_name(op): _operation(&total, op) for op in range(WIRE_OPCODES)
                           if total.count[op]},
            "relayed": {_name(op): total.relayed[op] for op in range(WIRE_OPCODES) if total.relayed[op]},
            "malformed": total.malformed,
            "fsync": fsyncs,
        }

    def fuzz(self, list corpus not None, uint64_t seed, uint64_t count, size_t room=0):
        """Feed *count* mutations of messages of *corpus* (list of bytes), the same for each *seed* (not 0).

        {"done", "verdicts": {name: n}, "refused", "seed": to go on with, "samples": messages that were passed
        on, up to *room* bytes of them, "wrong": None or (what, message)}. Nobody else may serve meanwhile.
        """
        cdef fuzzing *z = <fuzzing *>calloc(1, sizeof(fuzzing))
        cdef const char **message = <const char **>calloc(len(corpus), sizeof(char *))
        cdef size_t *size = <size_t *>calloc(len(corpus), sizeof(size_t))
        cdef char *sample = <char *>malloc(room + 1)
        cdef uint64_t done
        cdef size_t i
        try:
            if not z or not message or not size or not sample:
                raise MemoryError
            if not corpus or not seed:
                raise UsageError("fuzz: no corpus, or seed 0")
            for i in range(len(corpus)):
                message[i], size[i] = PyBytes_AS_STRING(<bytes?>corpus[i]), len(corpus[i])
            z.message, z.size, z.n, z.random = message, size, len(corpus), seed
            z.sample, z.sample_cap = sample, room
            with nogil:
                done = serve_fuzz(&self.s, &self.c, z, count)
            return {
                "done": done, "refused": z.refused, "seed": z.random,
                "verdicts": {name: z.verdict[n] for n, name in enumerate(VERDICTS)},
                "samples": _samples(z.sample[:z.sample_used]),
                "wrong": (WRONG[z.wrong], z.last[:z.last_size]) if z.wrong else None,
            }
        finally:
            free(z)
            free(message)
            free(size)
            free(sample)


def _samples(bytes raw):
    """The messages in *raw*, each behind its length."""
    out, at = [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        out.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    return out


cdef bytes _reply(server *s, serve_reply *r):
    """The bytes of a reply, which is done with then."""
    cdef bytes out
    cdef char *at
    try:
        out = PyBytes_FromStringAndSize(r.buf if not r.npieces else NULL, r.len)
        at = PyBytes_AS_STRING(out)
        for n in range(r.npieces):
            memcpy(at, r.piece[n].iov_base, r.piece[n].iov_len)
            at += r.piece[n].iov_len
        return out
    finally:
        serve_done(s, r)
