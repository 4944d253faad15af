# SPDX-License-Identifier: MIT
"""L3: two threads of Python's that work in turns (native/baton.h): waking the other and going to sleep is one
step, without the GIL.

Limits: one thread calls `give`, one other `take` and `end_and_take`; what the work is they tell each other.
"""
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "daxfs/native/baton.h" nogil:
    struct baton:
        uint32_t given, ended
    int baton_give(baton *b, uint64_t ns)
    void baton_take(baton *b)
    void baton_end(baton *b)


cdef class Baton:
    """What passes between the two."""
    cdef baton b

    def give(self, uint64_t ns):
        """Have the other thread begin. Whether it has ended within *ns*; else it goes on."""
        cdef int ended
        with nogil:
            ended = baton_give(&self.b, ns)
        return bool(ended)

    def take(self):
        """Until there is work."""
        with nogil:
            baton_take(&self.b)

    def end(self):
        """The work has ended, and there will be no more."""
        with nogil:
            baton_end(&self.b)

    def end_and_take(self):
        """The work has ended; until there is more."""
        with nogil:
            baton_end(&self.b)
            baton_take(&self.b)
