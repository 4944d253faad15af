# SPDX-License-Identifier: MIT
"""FITRIM: free pages give their storage back to the sources of the region.

Only pages that are free at that moment: not those in quarantine, which the journal may write to
again, nor any that an operation has taken. A free page is never taken for zeros (what an operation
does not fill it zeroes, or journals), so it does not matter what they read as afterwards. In steps,
between which other operations may run: each looks at the allocator as it is then. Metadata thread.
"""

import errno

from .. import layout as L
from ..errors import fail
from ..pfn import PAGE_SHIFT, PAGE_SIZE

STEP_PAGES = 1 << 15  # one step ends after so many pages given back,
STEP_RUNS = 512  # or after so many runs


class Trim:
    """One FITRIM over bytes [start, start + length) of the region, runs of at least *minimum* bytes.

    EINVAL as ext4 and XFS have it: a range that begins behind the end or is shorter than a page, a minimum
    that no range has. Part of a page at either end of the range is left out. ``trimmed``: bytes so far.
    EOPNOTSUPP beside own ranges, which would take the storage for good (`own.enable`).
    """

    def __init__(self, fs, start: int, length: int, minimum: int):
        fs.may_change()
        size = fs.sb.npages << PAGE_SHIFT
        if start >= size or length < PAGE_SIZE or minimum > size:
            raise fail(errno.EINVAL)
        if fs.sb.incompat & L.INCOMPAT_OWN:
            raise fail(errno.EOPNOTSUPP, "a region beside own ranges keeps its storage")
        self.fs = fs
        self.at = -(-start // PAGE_SIZE)
        self.end = min(start + length, size) >> PAGE_SHIFT
        self.least = max(-(-minimum // PAGE_SIZE), 1)
        self.trimmed = 0
        self._runs: list[tuple[int, int]] = []  # those ahead, sorted, last first; may be stale

    def step(self) -> bool:
        """Give back some more; False at the end. EOPNOTSUPP where a source can't."""
        fs, pages = self.fs, 0
        fs.may_change()  # a record that failed may name pages that are free again
        for _ in range(STEP_RUNS):
            run = self._next()
            if run is None:
                return False
            pfn, count = run
            self.trimmed += fs.region.punch(pfn, count) << PAGE_SHIFT
            self.at = pfn + count
            pages += count
            if pages >= STEP_PAGES:
                break
        return True

    def _next(self) -> tuple[int, int] | None:
        """The next free run from ``at`` on, cut to the range, no longer than a step; None: no more."""
        if self._runs and self.fs.alloc.starts.get(self._runs[-1][0]) != self._runs[-1][1]:
            self._runs = []
        if not self._runs:
            self._runs = [run for run in reversed(self.fs.alloc.runs()) if self._fits(*run)]
            if not self._runs:
                return None
        start, count = self._runs[-1]
        first, last = self._cut(start, count)
        if last - first > STEP_PAGES:
            return first, STEP_PAGES
        self._runs.pop()
        return first, last - first

    def _cut(self, start: int, count: int) -> tuple[int, int]:
        return max(start, self.at), min(start + count, self.end)

    def _fits(self, start: int, count: int) -> bool:
        first, last = self._cut(start, count)
        return last - first >= self.least
