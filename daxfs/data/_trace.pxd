# SPDX-License-Identifier: MIT
# What other compiled units may use of the ring of `daxfs trace` (native/trace.h).
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "daxfs/native/trace.h" nogil:
    enum: TRACE_REQUESTS, TRACE_FAULTS, TRACE_WRITEBACK, TRACE_LOST, DAX_LOOK
    struct trace_event:
        uint64_t ns
        uint32_t kind, opcode
        uint64_t unique
    struct trace_dax_body:
        uint64_t max_pgoff
    struct trace_ring:
        int on
    void trace_init(trace_ring *r)
    void trace_destroy(trace_ring *r)
    int trace_keep(trace_ring *r, int classes)
    void trace_put(trace_ring *r, trace_event *e)
    int trace_read(trace_ring *r, trace_event *out)
    void trace_dax "trace_dax"(trace_ring *r, int what, uint64_t ino, uint32_t pid, uint64_t latency_ns,
                               const trace_dax_body *body)

@cython.final
cdef class TraceRing:
    cdef trace_ring r
