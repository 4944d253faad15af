# SPDX-License-Identifier: MIT
"""L3: what a fault becomes: one decision for read, write, COW and mkwrite, PTE or PMD.

The decision itself is `fault_decide` of native/fault.h; here are its words for
Python, and `CachedFaults`, which runs it over the page fills and write-backs that
arrive as requests for cached mappings, and counts what came out.
"""
from libc.stdint cimport uint64_t, uintptr_t
from libc.string cimport memset

from daxfs._iomap cimport FileMap, filemap, iomap

from collections import namedtuple

cdef extern from *:
    """
    #define DAXFS_ADD(p, n) ((void)__atomic_fetch_add((p), (n), __ATOMIC_RELAXED))
    #define DAXFS_READ(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define DAXFS_MAX_SIZE (DAXFS_MAX_PGOFF << 12)
    """
    void add "DAXFS_ADD"(uint64_t *p, uint64_t n) nogil
    uint64_t load "DAXFS_READ"(uint64_t *p) nogil
    const uint64_t MAX_SIZE "DAXFS_MAX_SIZE"

cdef enum:
    SHIFT = 12
    PAGE = 4096

# In the order of native/fault.h.
KIND_NAMES = ("read", "write", "cow", "mkwrite")
REASON_NAMES = ("", "pmd-off", "page-table", "colour", "cow", "before-mapping", "after-mapping",
                "end-of-file", "pte-entry", "short-extent", "poison", "unaligned-extent", "no-huge-zero-page")
_PLAIN = ("NOPAGE", "LOCKED", "FALLBACK", "SIGBUS", "OOM", "NEEDDSYNC")
RESULT_NAMES = (*_PLAIN, "MAJOR", "MAJOR|NEEDDSYNC")

Decision = namedtuple("Decision", "order result reason")


def result_name(int result):
    """Of an enum fault_result. NOPAGE says nothing more beside MAJOR, and is left out there."""
    if not result & FAULT_MAJOR:
        return _PLAIN[result]
    return "MAJOR" if result == FAULT_MAJOR | FAULT_NOPAGE else f"MAJOR|{_PLAIN[result & ~FAULT_MAJOR]}"


def decide(kind, pgoff, extent, *, size, address=None, vma_start=0, vma_end=None, pte_entry=False, pmd=True,
           zero_page=True, sync=False, table=False, poison=False, poison_pmd=False):
    """Decision(order, result, reason) for one fault, by names.

    kind: "read", "write", "cow", "mkwrite". extent: (type, pgoff, pages, pfn) of the
    whole piece that holds page *pgoff*, a hole included. address, vma_start, vma_end:
    page numbers; by default a mapping of the whole file at an address of its colour.
    The rest are the flags of native/fault.h.
    """
    cdef fault_args a
    cdef iomap e
    a.kind = KIND_NAMES.index(kind)
    a.pgoff, a.size = pgoff, size
    a.address = pgoff if address is None else address
    a.vma_start = vma_start
    a.vma_end = max(pgoff + 1, (size + PAGE - 1) >> SHIFT) if vma_end is None else vma_end
    a.flags = 0
    for on, flag in ((pte_entry, FAULT_PTE_ENTRY), (pmd, FAULT_PMD), (zero_page, FAULT_ZERO_PAGE),
                     (sync, FAULT_SYNC), (table, FAULT_TABLE), (poison, FAULT_POISON),
                     (poison_pmd, FAULT_POISON_PMD)):
        a.flags |= flag if on else 0
    e.type, e.pgoff, e.len, e.pfn = extent[0], extent[1], extent[2], extent[3]
    e.slot = 0
    cdef fault_decision d = fault_decide(&a, &e)
    return Decision(d.order, result_name(d.result), REASON_NAMES[d.reason])


cdef class CachedFaults:
    """Page fills and write-backs of cached mappings, decided and counted.

    The page cache maps them with PTEs whatever the decision; it says what a
    direct mapping of the same file would have got. Any thread.
    """

    def __cinit__(self, pmd=True):
        memset(&self.counts, 0, sizeof(self.counts))
        self.counts.pmd = pmd

    @property
    def pmd(self):
        """Whether PMD mappings are possible."""
        return bool(self.counts.pmd)

    @property
    def hook(self):
        """(address of the C function, of its context) for native/serve.h; good while this object lives."""
        return <uintptr_t>&cached_fault, <uintptr_t>&self.counts

    def request(self, FileMap f not None, uint64_t pos, uint64_t size, bint write):
        """Decide for the pages of [pos, pos + size): once for each 2 MiB or piece of an extent.

        Before the copy: an extent that the write will make is still a hole here.
        """
        with nogil:      # who holds the lock may need the GIL to give it back
            f.read_lock()
            cached_fault(&self.counts, &f.m, pos, size, write)
            f.unlock()

    def snapshot(self):
        """{"pages": {kind: n}, "faults": [{"kind", "size", "result", "reason", "count"}]}, no zero rows."""
        rows = []
        for kind in range(FAULT_KINDS):
            for order in range(2):
                for result in range(FAULT_RESULTS):
                    for reason in range(FAULT_REASONS):
                        count = load(&self.counts.faults[kind][order][result][reason])
                        if count:
                            rows.append({
                                "kind": KIND_NAMES[kind], "size": ("PTE", "PMD")[order],
                                "result": result_name(result), "reason": REASON_NAMES[reason],
                                "count": count,
                            })
        pages = [load(&self.counts.pages[kind]) for kind in range(FAULT_KINDS)]
        return {"pages": dict(zip(KIND_NAMES, pages, strict=True)), "faults": rows}


cdef void cached_fault(void *ctx, filemap *f, uint64_t pos, uint64_t size, int write) noexcept nogil:
    cdef fault_counts *counts = <fault_counts *>ctx
    cdef fault_args a
    cdef fault_decision d
    cdef iomap whole
    cdef uint64_t at, end, step
    if not size or pos >= MAX_SIZE:
        return
    size = size if size < MAX_SIZE - pos else MAX_SIZE - pos
    at, end = pos >> SHIFT, (pos + size + PAGE - 1) >> SHIFT
    a.kind = FAULT_WRITE if write else FAULT_READ
    a.vma_start = 0
    a.flags = FAULT_ZERO_PAGE | (FAULT_PMD if counts.pmd else 0)
    a.size = pos + size if write and f.size < pos + size else f.size
    # A mapping of the whole file at its best: it does not end before the 2 MiB that hold the end of file.
    a.vma_end = ((a.size + PAGE - 1) >> SHIFT | FAULT_COLOUR) + 1
    add(&counts.pages[a.kind], end - at)
    while at < end:
        fault_extent(f, at, &whole)
        a.pgoff = a.address = at
        d = fault_decide(&a, &whole)
        add(&counts.faults[a.kind][1 if d.order else 0][d.result][d.reason], 1)
        step = (at | FAULT_COLOUR) + 1
        at = step if d.order or whole.pgoff + whole.len > step else whole.pgoff + whole.len
