# SPDX-License-Identifier: MIT
"""stand-in"""
cdef class Server:
    def __init__(self):
        server_init(&self.s, NULL)
    cdef object summed(self, const serve_counts **all, int n):
        return {}
