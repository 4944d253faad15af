# SPDX-License-Identifier: MIT
"""L3: what a fault becomes: one decision for read, write, COW and mkwrite, PTE or PMD.

`decide_fault` is a function of its arguments alone (DESIGN.md section 8): no lock,
no allocation, no side effect. It names the reason for each fallback from PMD to
PTE (S7), in the order in which the kernel's ``dax_iomap_pmd_fault`` finds them.
`CachedFaults` runs it over the page fills and write-backs that arrive as requests
for cached mappings, and counts what came out.
"""
from libc.stdint cimport uint64_t, uintptr_t
from libc.string cimport memset

from daxfs._iomap cimport IOMAP_HOLE, IOMAP_MAPPED, FileMap, filemap, filemap_find, filemap_lookup, iomap

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
    COLOUR = 511          # PG_PMD_COLOUR: pages of a PMD, less one
    PMD_PAGES = 512

cdef enum Kind:
    READ, WRITE, COW, MKWRITE, KINDS

cdef enum Result:
    NOPAGE, MAJOR, SIGBUS, NEEDDSYNC, RESULTS

cdef enum Reason:
    NONE, R_COLOUR, R_COW, R_START, R_END, R_EOF, R_PTE_ENTRY, R_SHORT, R_UNALIGNED,
    R_NO_ZERO_PAGE, R_PMD_OFF, REASONS

KIND_NAMES = ("read", "write", "cow", "mkwrite")
RESULT_NAMES = ("NOPAGE", "MAJOR", "SIGBUS", "NEEDDSYNC")
REASON_NAMES = ("", "colour", "cow", "before-mapping", "after-mapping", "end-of-file", "pte-entry",
                "short-extent",
                "unaligned-extent", "no-huge-zero-page", "pmd-off")

Decision = namedtuple("Decision", "order result reason")

cdef struct fault_args:
    int kind
    uint64_t pgoff            # page of the file
    uint64_t address          # page number of the faulting address
    uint64_t vma_start        # page numbers, [start, end)
    uint64_t vma_end
    uint64_t size             # bytes of the file
    bint pte_entry            # a PTE entry is in the 2 MiB already
    bint pmd                  # PMD mappings are possible here
    bint zero_page            # there is a huge zero page
    bint sync                 # MAP_SYNC

cdef struct decision:
    int order
    int result
    int reason


cdef int _fallback(const fault_args *a, const iomap *extent, uint64_t base) noexcept nogil:
    """Why the 2 MiB from file page *base* can't be one mapping; NONE if they can. *extent* holds a.pgoff."""
    cdef uint64_t start = a.address - (a.pgoff - base)
    if not a.pmd:
        return R_PMD_OFF
    if (a.pgoff & COLOUR) != (a.address & COLOUR):
        return R_COLOUR
    if a.kind == COW:
        return R_COW
    if a.address < a.pgoff - base or start < a.vma_start:
        return R_START
    if start + PMD_PAGES > a.vma_end:
        return R_END
    if base + PMD_PAGES > (a.size + PAGE - 1) >> SHIFT:
        return R_EOF
    if a.pte_entry:
        return R_PTE_ENTRY
    if extent.pgoff > base or extent.pgoff + extent.len < base + PMD_PAGES:
        return R_SHORT
    if extent.type == IOMAP_MAPPED or (extent.type != IOMAP_HOLE and a.kind != READ):
        return R_UNALIGNED if (extent.pfn - (extent.pgoff - base)) & COLOUR else NONE
    if a.kind == READ and not a.zero_page:
        return R_NO_ZERO_PAGE
    return NONE


cdef decision decide_fault(const fault_args *a, const iomap *extent) noexcept nogil:
    """The decision for page a.pgoff, whose whole extent (or hole) is *extent*."""
    cdef decision out
    out.order, out.reason, out.result = 0, NONE, NOPAGE
    if a.pgoff >= (a.size + PAGE - 1) >> SHIFT:
        out.result = SIGBUS
        return out
    if a.kind != MKWRITE:
        out.reason = _fallback(a, extent, a.pgoff & ~<uint64_t>COLOUR)
        out.order = 9 if out.reason == NONE else 0
    if a.sync and a.kind in (WRITE, MKWRITE) and extent.type != IOMAP_MAPPED:
        out.result = NEEDDSYNC
    elif out.order == 0 and a.kind in (WRITE, MKWRITE) and extent.type == IOMAP_HOLE:
        out.result = MAJOR       # a block is taken; a copy (COW) takes none
    return out


def decide(kind, pgoff, extent, *, size, address=None, vma_start=0, vma_end=None, pte_entry=False, pmd=True,
           zero_page=True, sync=False):
    """Decision(order, result, reason) for one fault, by names.

    kind: "read", "write", "cow", "mkwrite". extent: (type, pgoff, pages, pfn) of the
    whole piece that holds page *pgoff*, a hole included. address, vma_start, vma_end:
    page numbers; by default a mapping of the whole file at an address of its colour.
    """
    cdef fault_args a
    cdef iomap e
    a.kind = KIND_NAMES.index(kind)
    a.pgoff, a.size = pgoff, size
    a.address = pgoff if address is None else address
    a.vma_start = vma_start
    a.vma_end = max(pgoff + 1, (size + PAGE - 1) >> SHIFT) if vma_end is None else vma_end
    a.pte_entry, a.pmd, a.zero_page, a.sync = pte_entry, pmd, zero_page, sync
    e.type, e.pgoff, e.len, e.pfn = extent[0], extent[1], extent[2], extent[3]
    e.slot = 0
    cdef decision d = decide_fault(&a, &e)
    return Decision(d.order, RESULT_NAMES[d.result], REASON_NAMES[d.reason])


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
        for kind in range(4):
            for order in range(2):
                for result in range(4):
                    for reason in range(11):
                        count = load(&self.counts.faults[kind][order][result][reason])
                        if count:
                            rows.append({
                                "kind": KIND_NAMES[kind], "size": ("PTE", "PMD")[order],
                                "result": RESULT_NAMES[result], "reason": REASON_NAMES[reason],
                                "count": count,
                            })
        pages = [load(&self.counts.pages[kind]) for kind in range(4)]
        return {"pages": dict(zip(KIND_NAMES, pages, strict=True)), "faults": rows}


cdef void cached_fault(void *ctx, filemap *f, uint64_t pos, uint64_t size, int write) noexcept nogil:
    cdef fault_counts *counts = <fault_counts *>ctx
    cdef fault_args a
    cdef decision d
    cdef iomap whole
    cdef uint64_t at, end, step
    if not size or pos >= MAX_SIZE:
        return
    size = size if size < MAX_SIZE - pos else MAX_SIZE - pos
    at, end = pos >> SHIFT, (pos + size + PAGE - 1) >> SHIFT
    a.kind = WRITE if write else READ
    a.vma_start, a.pte_entry, a.sync = 0, False, False
    a.zero_page, a.pmd = True, counts.pmd
    a.size = pos + size if write and f.size < pos + size else f.size
    # A mapping of the whole file at its best: it does not end before the 2 MiB that hold the end of file.
    a.vma_end = ((a.size + PAGE - 1) >> SHIFT | COLOUR) + 1
    add(&counts.pages[a.kind], end - at)
    while at < end:
        _whole(f, at, &whole)
        a.pgoff = a.address = at
        d = decide_fault(&a, &whole)
        add(&counts.faults[a.kind][1 if d.order else 0][d.result][d.reason], 1)
        step = (at | COLOUR) + 1
        at = step if d.order or whole.pgoff + whole.len > step else whole.pgoff + whole.len


cdef void _whole(const filemap *f, uint64_t pgoff, iomap *out) noexcept nogil:
    """The whole extent, or the whole hole, that holds *pgoff*. Under the inode's lock."""
    cdef size_t i = filemap_find(f, pgoff)
    if i < f.n and f.e[i].pgoff <= pgoff:
        out[0] = f.e[i]
        return
    filemap_lookup(f, pgoff, out)
    out.len += pgoff
    out.pgoff = 0
    if i:
        out.pgoff = f.e[i - 1].pgoff + f.e[i - 1].len
        out.len -= out.pgoff
