# SPDX-License-Identifier: MIT
# cython: language_level=3, boundscheck=False, wraparound=False
"""L1: the flush primitives (native/flush.c), the dirty bitmaps (native/dirty.c,
tracker.c) and their room in the region.

Limits: this file holds lifetime, names and errors; what is fast is in C. ``Flush`` may
be used by any thread. ``DirtyMap`` is not locked: its caller holds the inode's lock. Of an ``ExtentMap`` many
may set bits at once. Addresses are integers that the caller vouches for: a wrong one ends the process.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.stdint cimport uint32_t, uint64_t, uintptr_t

import os

from daxfs.errors import UsageError

cdef extern from "daxfs/native/flush.h" nogil:
    int daxfs_flush_bind(daxfs_flush *t, int granularity, int kind, int nt_kind)
    int daxfs_flush_choose(unsigned available, int granularity, int *kind, int *nt_kind)
    unsigned daxfs_flush_available()
    void daxfs_persist(daxfs_flush *t, const void *addr, size_t len)

cdef extern from "daxfs/native/dirty.h" nogil:
    struct dirty_chunk:
        pass
    int dirty_arena_init(dirty_arena *a, void *base, size_t bytes)
    void dirty_arena_destroy(dirty_arena *a)
    uint32_t dirty_arena_used(dirty_arena *a)
    uint64_t dirty_arena_fallbacks(dirty_arena *a)
    void dirty_init(dirty_map *m, dirty_arena *arena)
    size_t dirty_in_dram(const dirty_map *m)
    void dirty_destroy(dirty_map *m)
    int dirty_mark(dirty_map *m, uint64_t first, uint64_t count)
    void dirty_clear(dirty_map *m, uint64_t first, uint64_t count)
    uint64_t dirty_next_run(const dirty_map *m, uint64_t start, uint64_t *length)
    uint64_t dirty_count_range(const dirty_map *m, uint64_t first, uint64_t count)
    int dirty_test(const dirty_map *m, uint64_t unit)
    uint64_t DIRTY_NONE
    uint64_t DIRTY_LIMIT

# Position in each tuple is the value of the C enum.
GRANULARITIES = ("byte", "cache_line", "page")
FLUSH_KINDS = ("clwb", "clflushopt", "clflush", "none", "msync")
NT_KINDS = ("generic", "sse2", "avx", "avx512")

# From here on a call lets other Python threads run: below it the hand-over costs more than the work.
cdef enum:
    LONG = 16384


cdef inline bint _is_long(const daxfs_flush *t, size_t length) noexcept nogil:
    return length >= LONG or t.kind == DAXFS_MSYNC      # msync waits for a disk


def available() -> dict:
    """What this CPU and kernel can do: ``{"flush": [kind, ...], "nt": [kind, ...]}``, best flush first."""
    return _names(daxfs_flush_available())


def _names(unsigned bits):
    return {
        "flush": [name for i, name in enumerate(FLUSH_KINDS) if bits >> i & 1],
        "nt": [name for i, name in enumerate(NT_KINDS) if bits >> (8 + i) & 1],
    }


cdef int _index(str what, tuple names, object value, bint automatic) except -2:
    if automatic and value == "auto":
        return -1
    if value not in names:
        allowed = (("auto", *names) if automatic else names)
        raise UsageError(f"{what} {value!r} is unknown; one of: {', '.join(allowed)}")
    return names.index(value)


def choose(granularity="cache_line", kind="auto", nt="auto", have=None) -> tuple:
    """The ``(kind, nt)`` that :class:`Flush` binds on a CPU with ``have`` (None: what this one has).

    Raises UsageError where a demand can't be met. Nothing is executed, so any CPU can be asked about.
    """
    cdef int g = _index("granularity", GRANULARITIES, granularity, False)
    cdef int k = _index("flush kind", FLUSH_KINDS, kind, True)
    cdef int n = _index("non-temporal kind", NT_KINDS, nt, True)
    cdef unsigned bits = daxfs_flush_available()
    if have is not None:
        bits = 0
        for name in have["flush"]:
            bits |= 1u << FLUSH_KINDS.index(name)
        for name in have["nt"]:
            bits |= 1u << (8 + NT_KINDS.index(name))
    if daxfs_flush_choose(bits, g, &k, &n) != 0:
        _refuse(granularity, kind, nt, _names(bits))
    return FLUSH_KINDS[k], NT_KINDS[n]


def _refuse(granularity, kind, nt, have):
    """Say which demand can't be met and what there is instead."""
    for what, value, there in (("flush kind", kind, have["flush"]), ("non-temporal kind", nt, have["nt"])):
        if value != "auto" and value not in there:
            raise UsageError(f"this CPU can't do {what} {value!r}; it has: {', '.join(there)}")
    if granularity == "page" and kind not in ("auto", "msync"):
        raise UsageError(f"granularity 'page' means a page cache over a disk: flush kind {kind!r} "
                         "would not reach it, only 'msync' does")
    raise UsageError(f"non-temporal kind {nt!r} can't be had with flush kind 'msync', only 'generic'")


cdef class Flush:
    """One bound table of flush functions; its choice is made here and can be read back.

    granularity "cache_line", "byte" (durable once visible) or "page" (page cache). kind and nt
    "auto" take the best for it. A demand that can't be met raises UsageError.
    The idea of one table bound at map time is libpmem2's.
    """

    def __cinit__(self, granularity="cache_line", kind="auto", nt="auto"):
        kind, nt = choose(granularity, kind, nt)
        self.t = <daxfs_flush *>PyMem_RawCalloc(1, sizeof(daxfs_flush))
        if self.t is NULL:
            raise MemoryError
        if daxfs_flush_bind(self.t, GRANULARITIES.index(granularity), FLUSH_KINDS.index(kind),
                            NT_KINDS.index(nt)) != 0:
            raise UsageError(f"flush kind {kind!r} with non-temporal kind {nt!r} could not be bound")

    def __dealloc__(self):
        if self.t is not NULL:
            PyMem_RawFree(self.t.emulator)
        PyMem_RawFree(self.t)

    @property
    def kind(self):
        return FLUSH_KINDS[self.t.kind]

    @property
    def nt(self):
        return NT_KINDS[self.t.nt_kind]

    @property
    def granularity(self):
        return GRANULARITIES[self.t.granularity]

    @property
    def table(self):
        """Address of the ``struct daxfs_flush`` (native/flush.h), for C; good while this object lives."""
        return <uintptr_t>self.t

    def __repr__(self):
        return f"Flush(granularity={self.granularity!r}, kind={self.kind!r}, nt={self.nt!r})"

    def store(self, uintptr_t addr, data):
        """Ordinary store of ``data`` (any contiguous buffer) at ``addr``; 8 aligned bytes are one store."""
        cdef Py_buffer b
        PyObject_GetBuffer(data, &b, PyBUF_SIMPLE)
        if b.len >= LONG:
            with nogil:
                self.t.store(self.t, <void *>addr, b.buf, b.len)
        else:
            self.t.store(self.t, <void *>addr, b.buf, b.len)
        PyBuffer_Release(&b)

    def nt_store(self, uintptr_t addr, data):
        """Store ``data`` at ``addr`` so that the next drain makes all of it durable."""
        cdef Py_buffer b
        PyObject_GetBuffer(data, &b, PyBUF_SIMPLE)
        if _is_long(self.t, b.len):
            with nogil:
                self.t.nt_store(self.t, <void *>addr, b.buf, b.len)
        else:
            self.t.nt_store(self.t, <void *>addr, b.buf, b.len)
        PyBuffer_Release(&b)

    def nt_fill(self, uintptr_t addr, unsigned char byte, size_t length):
        """Store ``length`` times ``byte`` at ``addr`` so that the next drain makes all of it durable."""
        if _is_long(self.t, length):
            with nogil:
                self.t.nt_fill(self.t, <void *>addr, byte, length)
        else:
            self.t.nt_fill(self.t, <void *>addr, byte, length)

    def flush(self, uintptr_t addr, size_t length):
        """Queue the lines that hold ``[addr, addr + length)``; with msync, write their pages (see check)."""
        if _is_long(self.t, length):
            with nogil:
                self.t.flush(self.t, <const void *>addr, length)
        else:
            self.t.flush(self.t, <const void *>addr, length)

    def drain(self):
        """Make everything queued and every nt_store before this call durable before any later store."""
        # The caller says which store this orders; the fence itself is in native/flush*.c.
        self.t.drain(self.t)

    def persist(self, uintptr_t addr, size_t length):
        """flush and drain."""
        if _is_long(self.t, length):
            with nogil:
                daxfs_persist(self.t, <const void *>addr, length)
        else:
            daxfs_persist(self.t, <const void *>addr, length)

    def counters(self) -> dict:
        """What was asked for since the table was bound: calls, bytes, lines of 64 bytes."""
        t = self.t
        return {
            "store": t.n_store, "store_bytes": t.store_bytes, "nt": t.n_nt, "nt_bytes": t.nt_bytes,
            "flush": t.n_flush, "flush_lines": t.flush_lines, "drain": t.n_drain,
        }

    @property
    def failures(self):
        """How often a failed msync was reported; what was flushed before such a report may not be durable."""
        return self.t.n_error

    def check(self):
        """Raise OSError for the first msync that failed since the last check, and forget it."""
        cdef int error = daxfs_flush_take_error(self.t)
        if error:
            raise OSError(error, f"msync: {os.strerror(error)}; data may not be durable")


cdef class StateArena:
    """Room for the chunks of dirty bitmaps in the region itself (``mkfs --map=dev``, SEEDS S5).

    *length* bytes at *address*, which stay mapped while users of *table* (region.table) are in. What
    stands there is volatile: taken slots are zeroed, nothing is flushed, no mount reads what an earlier
    one left. Chunks for which there is no slot are made in DRAM and counted. Any thread.
    """

    def __cinit__(self, uintptr_t address, size_t length, table):
        if address % 64:
            raise ValueError(f"address {address:#x} is no multiple of 64")
        if dirty_arena_init(&self.a, <void *>address, length) != 0:
            raise MemoryError(f"no memory to manage {length} bytes of page state")
        self.table = table

    def __dealloc__(self):
        dirty_arena_destroy(&self.a)

    @property
    def slots(self):
        """Chunks that there is room for."""
        return self.a.slots

    @property
    def used(self):
        """Slots in use."""
        return dirty_arena_used(&self.a)

    @property
    def fallbacks(self):
        """Chunks that were made in DRAM because every slot was in use."""
        return dirty_arena_fallbacks(&self.a)


@cython.no_gc_clear
cdef class DirtyMap:
    """A set of dirty units in [0, 2**40), kept as a sparse bitmap (native/dirty.h).

    set, clear and the run search cost what is dirty, not what could be. Not locked. *arena*: where its
    chunks live, DRAM if None; the Python methods then enter the region's table, OSError EIO after kill.
    """

    def __cinit__(self, StateArena arena=None):
        self.arena = arena
        dirty_init(&self.m, &arena.a if arena is not None else NULL)

    def __dealloc__(self):
        dirty_destroy(&self.m)

    cdef int _enter(self) except -1:
        if self.arena is not None:
            self.arena.table.enter()
        return 0

    cdef int _exit(self) except -1:
        if self.arena is not None:
            self.arena.table.exit()
        return 0

    def set(self, uint64_t first, uint64_t count):
        """Mark units [first, first + count); MemoryError or UsageError leave the map as it was."""
        cdef int err
        if first > DIRTY_LIMIT or count > DIRTY_LIMIT - first:
            raise UsageError(f"units {first}+{count} are past the end of a dirty map ({DIRTY_LIMIT})")
        self._enter()
        err = dirty_mark(&self.m, first, count)
        self._exit()
        if err:
            raise MemoryError(f"no memory to mark {count} units dirty")

    def clear(self, uint64_t first, uint64_t count):
        """Unmark units [first, first + count)."""
        if not self.m.n:
            return
        self._enter()
        dirty_clear(&self.m, first, count)
        self._exit()

    def find_run(self, uint64_t start):
        """``(first, length)`` of the first run at or after ``start``, or None. One begun before is cut."""
        cdef uint64_t length
        self._enter()
        cdef uint64_t first = dirty_next_run(&self.m, start, &length)
        self._exit()
        return None if first == DIRTY_NONE else (first, length)

    def runs(self):
        """Each maximal run as ``(first, length)``, ascending; what was yielded may be cleared on the way."""
        run = self.find_run(0)
        while run is not None:
            yield run
            run = self.find_run(run[0] + run[1])

    def count_range(self, uint64_t first, uint64_t count) -> int:
        """Dirty units in [first, first + count)."""
        self._enter()
        cdef uint64_t n = dirty_count_range(&self.m, first, count)
        self._exit()
        return n

    @property
    def count(self):
        """Dirty units."""
        return self.m.count

    @property
    def chunks(self):
        """Leaf chunks: how many pieces of 32,768 units hold a dirty one."""
        return self.m.n

    def __contains__(self, uint64_t unit):
        self._enter()
        cdef bint found = dirty_test(&self.m, unit) != 0
        self._exit()
        return found

    def __sizeof__(self):
        return (object.__sizeof__(self) + dirty_in_dram(&self.m) * sizeof(dirty_chunk)
                + self.m.cap * sizeof(dirty_chunk *))


@cython.no_gc_clear
cdef class ExtentMap:
    """256 extents of *pages* pages, all idle (native/tracker.h). *arena*: where they stand, while it has a
    slot; DRAM if None. OSError EIO after kill."""

    def __cinit__(self, uint64_t pages, StateArena arena=None):
        self.arena = arena
        if arena is not None:
            arena.table.enter()
        extent_map_init(&self.m, &arena.a if arena is not None else NULL, pages)
        if arena is not None:
            arena.table.exit()

    def __dealloc__(self):
        extent_map_end(&self.m)

    @property
    def active(self):
        """How many are active."""
        return extent_count(&self.m)

    def clear(self):
        """All idle; nobody may mark meanwhile."""
        if not self.active:
            return
        if self.arena is not None:
            self.arena.table.enter()
        extent_map_clear(&self.m)
        if self.arena is not None:
            self.arena.table.exit()
