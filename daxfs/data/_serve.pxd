# SPDX-License-Identifier: MIT
from libc.stdint cimport uint32_t, uint64_t
cdef extern from "daxfs/native/serve.h" nogil:
    struct wire_in:
        uint32_t len, opcode
        uint64_t unique, nodeid
        uint32_t uid, gid, pid
    struct serve_msg:
        const wire_in *head
        const char *arg
        size_t arg_len
        const char *data
        size_t data_len
    struct serve_counts:
        uint64_t malformed
    struct server:
        pass
    int server_init(server *s, void *io)
cdef class Server:
    cdef server s
    cdef object summed(self, const serve_counts **all, int n)
