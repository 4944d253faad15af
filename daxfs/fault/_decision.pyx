# SPDX-License-Identifier: MIT
"""L3: what a fault becomes: one decision for read, write, COW and mkwrite, PTE or PMD.

`decide_fault` is a function of its arguments alone (DESIGN.md section 8): no lock,
no allocation, no side effect. It names the reason for each fallback from PMD to
PTE (S7), in the order in which the kernel's ``dax_iomap_pmd_fault`` finds them.
`CachedFaults` runs it over the page fills and write-backs that arrive as requests
for cached mappings, and counts what came out.
"""
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from daxfs._iomap cimport IOMAP_HOLE, IOMAP_MAPPED, FileMap, filemap_find, filemap_lookup, iomap

from collections import namedtuple

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
    direct mapping of the same file would have got. Metadata thread or, under the
    inode's lock, any other.
    """

    cdef uint64_t faults[4][2][4][11]      # kind, PTE or PMD, result, reason
    cdef uint64_t pages[4]
    cdef readonly bint pmd

    def __cinit__(self, pmd=True):
        memset(self.faults, 0, sizeof(self.faults))
        memset(self.pages, 0, sizeof(self.pages))
        self.pmd = pmd

    def request(self, FileMap f not None, uint64_t pos, uint64_t size, bint write):
        """Decide for the pages of [pos, pos + size): once for each 2 MiB or piece of an extent.

        Before the copy: an extent that the write will make is still a hole here.
        """
        cdef uint64_t at, end, limit
        cdef int kind
        if not size:
            return
        at, end = pos >> SHIFT, (pos + size + PAGE - 1) >> SHIFT
        kind = 1 if write else 0
        self.pages[kind] += end - at
        with nogil:      # who holds the lock may need the GIL to give it back
            f.read_lock()
            limit = f.m.size
            if write and limit < pos + size:
                limit = pos + size
            self._decide(f, at, end, limit, write)
            f.unlock()

    cdef void _decide(self, FileMap f, uint64_t at, uint64_t end, uint64_t size, bint write) noexcept nogil:
        cdef fault_args a
        cdef decision d
        cdef iomap whole
        cdef uint64_t step
        a.kind = WRITE if write else READ
        a.vma_start, a.pte_entry, a.sync = 0, False, False
        a.zero_page, a.pmd, a.size = True, self.pmd, size
        # A mapping of the whole file at its best: it does not end before the 2 MiB that hold the end of file.
        a.vma_end = ((size + PAGE - 1) >> SHIFT | COLOUR) + 1
        while at < end:
            _whole(f, at, &whole)
            a.pgoff = a.address = at
            d = decide_fault(&a, &whole)
            self.faults[a.kind][1 if d.order else 0][d.result][d.reason] += 1
            step = (at | COLOUR) + 1
            at = step if d.order or whole.pgoff + whole.len > step else whole.pgoff + whole.len

    def snapshot(self):
        """{"pages": {kind: n}, "faults": [{"kind", "size", "result", "reason", "count"}]}, no zero rows."""
        rows = []
        for kind in range(4):
            for order in range(2):
                for result in range(4):
                    for reason in range(11):
                        if self.faults[kind][order][result][reason]:
                            rows.append({
                                "kind": KIND_NAMES[kind], "size": ("PTE", "PMD")[order],
                                "result": RESULT_NAMES[result], "reason": REASON_NAMES[reason],
                                "count": self.faults[kind][order][result][reason],
                            })
        return {"pages": dict(zip(KIND_NAMES, self.pages, strict=True)), "faults": rows}


cdef void _whole(FileMap f, uint64_t pgoff, iomap *out) noexcept nogil:
    """The whole extent, or the whole hole, that holds *pgoff*. Under the inode's lock."""
    cdef size_t i = filemap_find(&f.m, pgoff)
    if i < f.m.n and f.m.e[i].pgoff <= pgoff:
        out[0] = f.m.e[i]
        return
    filemap_lookup(&f.m, pgoff, out)
    out.len += pgoff
    out.pgoff = 0
    if i:
        out.pgoff = f.m.e[i - 1].pgoff + f.m.e[i - 1].len
        out.len -= out.pgoff
