# SPDX-License-Identifier: MIT
"""The allocator: which pages of the region are free. In DRAM only.

Nothing of it is on media: mount rebuilds it from the extents (`recover`), so it
can't contradict them. Free runs are kept by start and by end (merging is O(1))
and by size class (powers of two), so the cost of an operation depends neither on
the size of the run nor on the size of the region.

Placement (DESIGN.md section 5): a run goes on where the file's last one ended if
that is free; 2 MiB and more start where physical and file offset agree modulo
2 MiB, and so does the beginning of what looks like a stream (64 KiB and more),
so that a PMD fault can succeed (`dax_pmd` colour rule in the kernel's fs/dax.c).
For 2 MiB and more the colour and one whole run weigh more than the file's last
place, and where no run holds all of it, each piece of 2 MiB has its colour yet.

One thread: the metadata thread.
"""

import errno

from ..errors import CorruptError, fail
from ..pfn import PMD_PAGES

STREAM_PAGES = 16  # from here on a first allocation is placed as if it will grow
STREAM_TRIES = 8  # runs of a size class that are looked at for a stream,
HUGE_TRIES = 512  # and for 2 MiB and more (a run with 2 MiB to spare fits at the first try)
_CLASSES = 64


class Allocator:
    """Free pages as runs (start pfn, pages)."""

    def __init__(self):
        self.starts: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self.classes: list[dict[int, None]] = [{} for _ in range(_CLASSES)]
        self.free_pages = 0
        self.held = 0  # quarantined pages
        self.reclaim = self.release_held  # what makes the quarantine usable; the mount sets Journal.settle
        self._held: list[tuple[int, int]] = []

    def free(self, pfn: int, pages: int) -> None:
        """Give a run back (or, at mount, make it known). CorruptError where an edge of it is free already."""
        if pages <= 0:
            raise ValueError("free: no pages")
        if pfn in self.starts or pfn + pages in self.ends:
            raise CorruptError(f"pages {pfn}+{pages} are freed twice")
        self.free_pages += pages
        before = self.ends.get(pfn)
        if before is not None:
            self._unlink(before, self.starts[before])
            pages += pfn - before
            pfn = before
        after = self.starts.get(pfn + pages)
        if after is not None:
            self._unlink(pfn + pages, after)
            pages += after
        self._link(pfn, pages)

    def quarantine(self, pfn: int, pages: int) -> None:
        """Free a run of metadata, usable only after the journal has settled.

        A record since the tail may hold bytes for it; were it file data by then,
        replay would write over them.
        """
        self._held.append((pfn, pages))
        self.held += pages

    def release_held(self) -> None:
        """The journal has settled: quarantined runs are ordinary free ones (`Journal.on_settle`)."""
        runs, self._held, self.held = self._held, [], 0
        for pfn, pages in runs:
            self.free(pfn, pages)

    def alloc(self, pages: int, pgoff: int = 0, goal: int | None = None) -> list[tuple[int, int]]:
        """Take *pages* for a file's pages from *pgoff* on: runs [(pfn, pages)] in file order.

        *goal*: the pfn after the file's previous extent. One run where possible.
        ENOSPC takes nothing.
        """
        if pages > self.free_pages and self.held:
            self.reclaim()
        if pages > self.free_pages:
            raise fail(errno.ENOSPC)
        out = []
        while pages:
            start, pfn, got = self._one(pages, pgoff, goal)
            self._cut(start, self.starts[start], pfn, got)
            out.append((pfn, got))
            pages -= got
            pgoff += got
            goal = pfn + got
        return out

    def _one(self, pages: int, pgoff: int, goal: int | None) -> tuple[int, int, int]:
        """(start of the free run, pfn in it, pages) for the next piece."""
        run = self.starts.get(goal, 0) if goal is not None else 0
        huge = pages >= PMD_PAGES
        if run and (not huge or (run >= pages and (goal - pgoff) % PMD_PAGES == 0)):
            return goal, goal, min(run, pages)
        if pages >= STREAM_PAGES:
            found = self._aligned(pages, pgoff, HUGE_TRIES if huge else STREAM_TRIES)
            if found is not None:
                return found
        start = self._fit(pages)
        run = self.starts[start]
        skip = (pgoff - start) % PMD_PAGES
        if huge and run < pages and run - skip >= PMD_PAGES:
            # Up to a whole 2 MiB of the file, so that the next piece can have its colour too.
            return start, start + skip, (run - skip) - (pgoff + run - skip) % PMD_PAGES
        return start, start, min(run, pages)

    def _aligned(self, pages: int, pgoff: int, most: int) -> tuple[int, int, int] | None:
        """A place where pfn and pgoff agree modulo 2 MiB, with all pages behind it, or None.

        Looks at *most* runs of each size class.
        """
        want = max(pages, PMD_PAGES)
        for k in range(want.bit_length() - 1, _CLASSES):
            for tries, start in enumerate(self.classes[k]):
                if tries == most:
                    break
                first = start + (pgoff - start) % PMD_PAGES
                if first + pages <= start + self.starts[start]:
                    return start, first, pages
        return None

    def _fit(self, pages: int) -> int:
        """Start of a run with room for *pages* (small ones first, large ones stay whole); or the largest."""
        low = pages.bit_length() - 1
        for tries, start in enumerate(self.classes[low]):
            if tries == STREAM_TRIES:
                break
            if self.starts[start] >= pages:
                return start
        for k in range(low + 1, _CLASSES):
            for start in self.classes[k]:
                return start
        for k in range(low, -1, -1):
            if self.classes[k]:
                return max(self.classes[k], key=self.starts.__getitem__)
        raise fail(errno.ENOSPC)

    def _cut(self, start: int, run: int, pfn: int, pages: int) -> None:
        self._unlink(start, run)
        if pfn > start:
            self._link(start, pfn - start)
        rest = start + run - (pfn + pages)
        if rest:
            self._link(pfn + pages, rest)
        self.free_pages -= pages

    def _link(self, start: int, run: int) -> None:
        self.starts[start] = run
        self.ends[start + run] = start
        self.classes[run.bit_length() - 1][start] = None

    def _unlink(self, start: int, run: int) -> None:
        del self.starts[start]
        del self.ends[start + run]
        del self.classes[run.bit_length() - 1][start]

    def runs(self) -> list[tuple[int, int]]:
        """All free runs, sorted by pfn (for reports and tests)."""
        return sorted(self.starts.items())
