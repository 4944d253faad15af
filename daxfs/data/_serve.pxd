# SPDX-License-Identifier: MIT
# What the transport uses of native service: the C core (native/serve.h) and the Server that owns one.
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t

from daxfs._fsync cimport fsync_counts
from daxfs._iomap cimport filemap
from daxfs.data._dax_io cimport DaxIo, daxio, iovec

ctypedef void (*serve_fault)(void *ctx, filemap *f, uint64_t pos, uint64_t size, int write) noexcept nogil

cdef extern from "daxfs/native/wire.h" nogil:
    enum: WIRE_OPCODES
    struct wire_in:
        uint32_t len, opcode
        uint64_t unique, nodeid
        uint32_t uid, gid, pid
        uint16_t extra_len, padding
    struct wire_out:
        uint32_t len
        int32_t error
        uint64_t unique

cdef extern from "daxfs/native/serve.h" nogil:
    enum: SERVE_PIECES, SERVE_BUCKETS
    enum: SERVE_DONE, SERVE_RELAY, SERVE_CALL, SERVE_FORGET, SERVE_INTERRUPT, SERVE_DROP
    uint32_t SERVE_WRITE, SERVE_DIRECT, SERVE_DSYNC, SERVE_NOATIME, SERVE_DIRECTORY, SERVE_RAW
    struct serve_msg:
        const wire_in *head
        const char *arg
        size_t arg_len
        const char *data
        size_t data_len
    struct serve_handle:
        uint64_t fh, ino
        filemap *f
    struct serve_reply:
        char *buf
        size_t cap
        int by_pieces
        int error
        size_t len
        int npieces
        iovec *piece
        serve_handle *handle
    struct serve_limits:
        int writes, nothing, atime, lazytime, getattr
        char *inodes
        uint64_t inode_limit, raw_first, raw_end, max_write
        int parks, ranges
    struct serve_counts:
        uint64_t *count
        uint64_t *errors
        uint64_t *total_ns
        uint64_t *relayed
        uint64_t **bucket
        uint64_t malformed
        fsync_counts fsync
    struct serve_opener:
        uint32_t flags, uid, gid, pid
    enum: SERVE_PARKED_MOST, SERVE_PARKED_EACH
    struct server:
        daxio *io
        serve_limits limits
        serve_fault fault
        void *fault_ctx
        int64_t test_time
        int armed
        int64_t (*now)(server *s) noexcept nogil
    int server_init(server *s, daxio *io)
    void server_destroy(server *s)
    int64_t server_realtime(server *s)
    uint64_t server_open(server *s, filemap *f, uint64_t ino, uint32_t flags, int32_t backing,
                         const serve_opener *opener)
    uint32_t server_opener(server *s, uint64_t fh)
    uint32_t server_taken(server *s, uint64_t fh)
    void server_opened(server *s, uint64_t fh, uint32_t open_flags)
    int server_close(server *s, uint64_t fh)
    int serve_split(const char *bytes, size_t n, serve_msg *m)
    int serve "serve"(server *s, serve_counts *c, const serve_msg *m, serve_reply *r)
    void serve_done(server *s, serve_reply *r)
    size_t serve_arg_size(uint32_t opcode)
    void serve_counts_add(serve_counts *sum, const serve_counts *c)

cdef extern from "daxfs/native/serve_park.h" nogil:
    int server_reap(server *s, uint64_t ino, int64_t age, uint64_t *fh)
    int server_parked(server *s, uint64_t *ino)
    int server_disarm(server *s)

cdef extern from "daxfs/native/serve_fuzz.h" nogil:
    enum: FUZZ_MESSAGE, FUZZ_VERDICTS
    struct fuzzing "serve_fuzz":
        const char **message
        const size_t *size
        size_t n
        uint64_t random
        char *sample
        size_t sample_cap, sample_used
        uint64_t *verdict
        uint64_t refused
        int wrong
        char *last
        size_t last_size
    uint64_t serve_fuzz(server *s, serve_counts *c, fuzzing *z, uint64_t count)

cdef class Server:
    cdef server s                # good while this object lives: it points into `dax`, so that goes last
    cdef serve_counts c          # of feed
    cdef readonly DaxIo dax
    cdef dict maps               # fh: FileMap of each open file
    cdef object faults           # keeps s.fault_ctx alive
    # {"operations": {name: latency.Operation}, "relayed": {name: n}, "malformed": n, "fsync": FsyncCounts} of
    # *n* threads
    cdef dict summed(self, const serve_counts **all, int n)
