# SPDX-License-Identifier: MIT
"""L3: the entries of a file's mappings (native/entry.h) for Python: looking at them, and trying them out.

Faults use the C functions. An `Entries` of its own checks what those take for granted
(bounds, that who unlocks has locked), and gives the GIL away wherever it may wait.
"""
from libc.errno cimport EEXIST, ENOMEM
from libc.stdint cimport int64_t, uint64_t

from collections import namedtuple

from daxfs.errors import UsageError

cdef extern from *:
    """
    #define DAXFS_SIZEOF_GROUP sizeof(struct entry_group)
    #define DAXFS_SIZEOF_PAGES sizeof(struct entry_pages)
    """
    const size_t SIZEOF_GROUP "DAXFS_SIZEOF_GROUP"
    const size_t SIZEOF_PAGES "DAXFS_SIZEOF_PAGES"
    enum: SLOTS "ENTRY_GROUP_SLOTS"
    enum: PMD_ORDER "FAULT_PMD_ORDER"
    const uint64_t MAX_PGOFF "DAXFS_MAX_PGOFF"

STATE_NAMES = ("locked", "pmd", "zero", "empty", "dirty")
Entry = namedtuple("Entry", "pgoff order state")


cdef _names(unsigned int state):
    return frozenset(name for bit, name in enumerate(STATE_NAMES) if state >> bit & 1)


cdef _place(uint64_t pgoff, unsigned int order):
    if pgoff >= MAX_PGOFF or order not in (0, PMD_ORDER):
        raise UsageError(f"page {pgoff}, order {order}: no entry can be there")


cdef void _unmap(void *ctx, uint64_t pgoff, uint64_t pages) noexcept with gil:
    (<Entries>ctx).unmapped.append((pgoff, pages))


cdef class Entries:
    """The entries of one file. Any thread. `unmapped`: (first page, pages) of what had to be, in order."""

    def __cinit__(self):
        entry_map_init(&self.m, _unmap, <void *>self)
        self.held, self.unmapped = {}, []

    def __dealloc__(self):
        entry_map_destroy(&self.m)      # who waits has a reference, so nobody does

    def __sizeof__(self):
        cdef size_t size = sizeof(entry_map) + self.m.cap * sizeof(void *)
        for i in range(self.m.n):
            size += SIZEOF_GROUP
            for slot in range(SLOTS):
                size += SIZEOF_PAGES if self.m.group[i].pages[slot] else 0
        return size

    @property
    def count(self):
        """Entries."""
        cdef uint64_t dirty
        return entry_count(&self.m, &dirty)

    @property
    def dirty(self):
        """Dirty entries."""
        cdef uint64_t dirty
        entry_count(&self.m, &dirty)
        return dirty

    cdef _took(self, const entry *e):
        self.held[e.pgoff] = Entry(e.pgoff, e.order, _names(e.state))
        return self.held[e.pgoff]

    cdef entry _held(self, uint64_t pgoff) except *:
        cdef entry e
        if pgoff not in self.held:
            raise UsageError(f"no entry that begins at page {pgoff} is held")
        e.pgoff, e.order, names = self.held[pgoff]
        e.state = sum(1 << bit for bit, name in enumerate(STATE_NAMES) if name in names)
        return e

    def grab(self, uint64_t pgoff, unsigned int order=0):
        """Lock the Entry of page *pgoff*, made where there is none; None: a PTE entry keeps the PMD out."""
        cdef entry e
        cdef int err
        _place(pgoff, order)
        with nogil:
            err = entry_grab(&self.m, pgoff, order, &e)
        if err == -ENOMEM:
            raise MemoryError
        return None if err == -EEXIST else self._took(&e)

    def insert(self, uint64_t pgoff, bint zero=False, bint dirty=False):
        """The held entry that begins at *pgoff* becomes storage, or the zero page; the Entry as it is."""
        cdef entry e = self._held(pgoff)
        if zero and dirty:
            raise UsageError("the zero page is never dirty")
        with nogil:
            entry_insert(&self.m, &e, (ENTRY_ZERO if zero else 0) | (ENTRY_DIRTY if dirty else 0))
        return self._took(&e)

    def unlock(self, uint64_t pgoff):
        """Give back the held entry that begins at *pgoff*."""
        cdef entry e = self._held(pgoff)
        del self.held[pgoff]
        with nogil:
            entry_unlock(&self.m, &e)

    def mkwrite(self, uint64_t pgoff, unsigned int order=0):
        """Lock the entry of *pgoff*, if it has storage and this order, and mark it dirty; else None."""
        cdef entry e
        cdef int found
        _place(pgoff, order)
        with nogil:
            found = entry_mkwrite(&self.m, pgoff, order, &e)
        return self._took(&e) if found else None

    def drop(self, uint64_t first, uint64_t count, bint keep_dirty=False):
        """Drop the entries with a page in [first, first + count); how many."""
        cdef int64_t n
        with nogil:
            n = entry_drop(&self.m, first, count, keep_dirty)
        if n < 0:
            raise MemoryError
        return n

    def next_dirty(self, uint64_t first, uint64_t last):
        """Lock the first dirty entry with a page in [first, last]; None: there is none."""
        cdef entry e
        cdef int found
        with nogil:
            found = entry_next_dirty(&self.m, first, last, &e)
        return self._took(&e) if found else None

    def clean(self, uint64_t pgoff):
        """The held entry that begins at *pgoff* has been flushed, and drained."""
        cdef entry e = self._held(pgoff)
        entry_clean(&self.m, &e)
        return self._took(&e)

    def state(self, uint64_t pgoff):
        """Names of the state of the entry that holds *pgoff*, or None."""
        cdef unsigned int state = entry_state(&self.m, pgoff)
        return _names(state) if state else None

    def pte_there(self, uint64_t pgoff):
        """Whether a PTE entry is in the 2 MiB of *pgoff*."""
        return bool(entry_pte_there(&self.m, pgoff))
