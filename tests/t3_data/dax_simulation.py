# SPDX-License-Identifier: MIT
"""A file's mappings and faults, simulated: decision and entries are daxfs's, page tables and layout made up.

The order of a fault is the handler's (DESIGN.md section 8): decide, grab, allocate, insert, mark dirty, map,
unlock; of a writeback: lock, write-protect, flush, clean, unlock. What happens is written down as the words
of ../data/kernel_dax_cases.json (its legend), so that the two can be compared.
"""

from dataclasses import dataclass, field

from daxfs._iomap import HOLE, MAPPED
from daxfs.fault._decision import decide
from daxfs.fault._entry import Entries

PAGE = 4096
PMD = 512
END = 1 << 32
FAULT_WORD = {"read": "R", "write": "W", "cow": "W", "mkwrite": "MKW"}


@dataclass
class Mapping:
    """One address space's view of the file. tables: 2 MiB of address -> writable? (a PMD), or its PTEs."""

    address: int = 1 << 20  # page number
    pages: int = 4 * PMD
    offset: int = 0  # page of the file
    shared: bool = True
    pmd: bool = True
    sync: bool = False
    splits: tuple = ()  # pages of the mapping where one vma ends and the next begins
    tables: dict = field(default_factory=dict)

    def vmas(self):
        """[(first, end)] in pages of the mapping."""
        return list(zip((0, *self.splits), (*self.splits, self.pages), strict=True))

    def zap(self, first, end):
        """Unmap pages [first, end) of the file: a PMD goes as a whole, a page table stays."""
        shift = self.address - self.offset
        for slot, table in list(self.tables.items()):
            if slot * PMD >= end + shift or (slot + 1) * PMD <= first + shift:
                continue
            if isinstance(table, dict):
                self.tables[slot] = {a: w for a, w in table.items() if not first <= a - shift < end}
            else:
                del self.tables[slot]

    def protect(self, first, end):
        """Pages [first, end) of the file can't be written any more; how many vmas show some of them."""
        shift = self.address - self.offset
        for slot, table in self.tables.items():
            if isinstance(table, dict):
                table.update({a: False for a in table if first <= a - shift < end})
            elif first + shift < (slot + 1) * PMD and slot * PMD < end + shift:
                self.tables[slot] = False
        return sum(a + self.offset < end and first < b + self.offset for a, b in self.vmas())


class File:
    """A DAX file with its mappings; `words` and `reasons` tell what happened since they were last emptied."""

    def __init__(self, size):
        self.size, self.extents, self.maps, self.entries = size, [], [], Entries()
        self.words, self.reasons, self.major, self.mtime = [], [], 0, 0

    def told(self):
        """(words, reasons, major faults, whether mtime changed), and forget them."""
        out = self.words, self.reasons, self.major, bool(self.mtime)
        self.words, self.reasons, self.major, self.mtime = [], [], 0, 0
        return out

    def piece(self, pgoff):
        """(type, first page, pages, pfn) of the whole extent or hole that holds *pgoff*."""
        low, high = 0, END
        for extent in self.extents:
            end = extent[1] + extent[2]
            if extent[1] <= pgoff < end:
                return extent
            low, high = (max(low, end), high) if end <= pgoff else (low, min(high, extent[1]))
        return HOLE, low, high - low, 0

    # -- faults ---------------------------------------------------------------------------------

    def access(self, m, pos, write):
        """A load or store at byte *pos* of mapping *m*."""
        page = pos // PAGE
        address, pgoff = m.address + page, m.offset + page
        table = m.tables.get(address // PMD)
        kind = "write" if write and m.shared else "cow" if write else "read"
        if isinstance(table, dict) and address in table:
            if not write or table[address]:
                return
            if not m.shared:  # the kernel has the page to copy from: no fault for the file system
                table[address] = True
                return
            kind = "mkwrite"
        elif isinstance(table, bool) and (not write or table):
            return
        self.mtime |= kind in ("write", "mkwrite")
        self._fault(m, address, pgoff, kind)

    def _fault(self, m, address, pgoff, kind):
        slot = address // PMD
        has_table = isinstance(m.tables.get(slot), dict)
        (vma,) = [v for v in m.vmas() if v[0] <= address - m.address < v[1]]
        d = decide(
            kind, pgoff, self.piece(pgoff), size=self.size, address=address, vma_start=m.address + vma[0],
            vma_end=m.address + vma[1], pte_entry=self.entries.pte_there(pgoff), pmd=m.pmd, sync=m.sync,
            table=has_table,
        )  # fmt: skip
        word = f"({FAULT_WORD[kind]},pg{pgoff:#x})="
        if m.pmd and not has_table and not d.order:
            if d.result == "SIGBUS" and pgoff // PMD * PMD * PAGE >= self.size:
                self.words.append(f"PMD{word}SIGBUS")
                return
            self.words.append(f"PMD{word}FALLBACK")
            self.reasons.append(d.reason)
        if not d.order:
            m.tables[slot] = m.tables[slot] if has_table else {}
        if d.result != "SIGBUS":
            self._handle(m, address, pgoff, kind, d)
        self.words.append(f"{'PMD' if d.order else 'PTE'}{word}{d.result}")
        self.major += d.result == "MAJOR"  # a NEEDDSYNC fault ends as another one, which is not major
        if "NEEDDSYNC" in d.result:
            held = self.entries.mkwrite(pgoff, d.order)
            self.words.append("finish_sync:NOPAGE")
            self.entries.unlock(held.pgoff)

    def _handle(self, m, address, pgoff, kind, d):
        writes = kind in ("write", "mkwrite")
        held = self.entries.grab(pgoff, d.order)
        assert held is not None, "decided for a PMD beside a PTE entry"
        if kind != "cow":
            zero = not writes and self.piece(pgoff)[0] != MAPPED
            self.entries.insert(held.pgoff, zero=zero, dirty=writes and "NEEDDSYNC" not in d.result)
            self._unmapped()
            self.words += [f"zero{'PMD' if d.order else 'PTE'}"] if zero else []
        if d.order:
            m.tables[address // PMD] = writes
        else:
            m.tables[address // PMD][address] = writes or kind == "cow"
        self.entries.unlock(held.pgoff)

    def _unmapped(self):
        """What the entries wanted unmapped."""
        for first, pages in self.entries.unmapped:
            self.words.append(f"unmap({first},{pages})")
            for m in self.maps:
                m.zap(first, first + pages)
        self.entries.unmapped.clear()

    # -- the rest -------------------------------------------------------------------------------

    def writeback(self, first=0, last=END):
        """Flush what is dirty of pages [first, last]."""
        while held := self.entries.next_dirty(first, last):
            first = held.pgoff + (1 << held.order)
            clean = sum(m.protect(held.pgoff, first) for m in self.maps)
            self.words.append(f"flush(pg{held.pgoff:#x},{1 << held.order}p,{clean} mkclean)")
            self.entries.clean(held.pgoff)
            self.entries.unlock(held.pgoff)

    def release(self, first, end):
        """Pages [first, end) lose their storage: mappings of them go, then entries; no others."""
        for m in self.maps:
            m.zap(first, end)
        gone, at = [], first
        while at < min(end, 1 << 16):  # pages of the largest file in here
            state = self.entries.state(at)
            gone += [at] if state is not None else []
            at = (at // PMD + 1) * PMD if state and "pmd" in state else at + 1
        assert self.entries.drop(first, end - first) == len(gone)
        self.words += [f"del({n})" for n in gone]

    def truncate(self, size):
        """Cut or lengthen it."""
        if size < self.size:
            self.release(-(-size // PAGE), END)
        self.size = size
