# SPDX-License-Identifier: MIT
"""L1: a region: its sources opened, locked and mapped as one space of page frames.

Limits: knows nothing of what is stored in it. Addresses are used only between ``table.enter`` and
``table.exit`` (``direct_access`` checks it, the store methods do it themselves); opening and closing
belong to one thread, stores to any. A source that is truncated by somebody else while it is mapped makes the
region lost (native/lost.h): what is read directly, through ``mem``, is zeros from then on, so ask ``lost``.
"""

import errno
import logging

import numpy as np

from daxfs._flush import Flush
from daxfs._iomap import RegionView
from daxfs._stores import Stores
from daxfs._window import Window
from daxfs.errors import CorruptError, SourceError, UsageError, fail
from daxfs.granularity import choose, coarsest
from daxfs.pfn import PAGE_SHIFT, PAGE_SIZE, PMD_PAGES
from daxfs.pool import Pool
from daxfs.source import Source, create_file, open_source, pmd_possible

__all__ = ["Region", "create_file"]

log = logging.getLogger("daxfs.region")

MODES = ("rw", "ro", "cow")


class Region(Stores):
    """One pfn space over one or several sources (SEEDS S1, S2). Make it with Region.open.

    Byte ``pfn * 4096`` of ``mem`` and ``array`` is page pfn. Between two sources there may be up to one
    alignment of pages that belong to nobody: they read as zeros and must not be written.
    """

    def __init__(self, sources: list[Source], mode: str, granularity: str, flush: Flush):
        """For Region.open: takes *sources* over; closes them when mapping fails."""
        self.sources = sources
        self.mode = mode
        self.granularity = granularity
        self.npages = sources[-1].pfn_end
        self.window = Window.reserve(self.npages, max(s.align for s in sources))
        self._mem = self._array = None
        self._pool: Pool | None = None
        self.recorder = None  # a Recorder (_record.pyx) while one is on the region
        self.medium = None  # the emulate.Medium that its flush table costs
        self._closed = False
        self.bind(flush, mode != "ro")
        end = 0
        for source in sources:
            if source.pfn_start > end:
                self.window.pad(end, source.pfn_start - end)
            self._place(source)
            end = source.pfn_end
        self.table.watch(self.window, max(source.unit for source in sources))

    @classmethod
    def open(cls, sources: list[str], mode: str = "rw", granularity: str = "auto", flush: str = "auto",
             nt: str = "auto", lock: bool = True) -> "Region":
        """Open *sources* as one region.

        mode: "rw"; "ro" (mapped read-only); "cow" (stores stay in this process, no byte of a source changes).
        granularity, flush, nt: "auto" or a demand, which fails with UsageError where it can't be met.
        lock=False is for looking only (daxfs info). SourceError says which source is missing, busy or unfit.
        """
        if mode not in MODES:
            raise UsageError(f"mode {mode!r} is unknown; one of: {', '.join(MODES)}")
        if isinstance(sources, str) or not sources:
            raise UsageError("a region needs a list of at least one source")
        opened: list[Source] = []
        try:
            for path in sources:
                opened.append(cls._open_next(opened, path, mode, lock))
            chosen = coarsest([choose(source.detected, granularity) for source in opened])
            if flush == "none" and chosen != "byte":
                raise UsageError(f"flush=none can't be had with granularity {chosen!r}: a store is durable "
                                 "only when it is written back; it needs granularity=byte (flush on power "
                                 "failure)")
            return cls(opened, mode, chosen, Flush(granularity=chosen, kind=flush, nt=nt))
        except BaseException:
            for source in opened:
                source.close()
            raise

    @staticmethod
    def _open_next(opened: list[Source], path: str, mode: str, lock: bool) -> Source:
        """Open one more source and give it its place behind the others."""
        try:
            source = open_source(path, mode, lock)
        except SourceError as exc:
            if exc.errno == errno.EBUSY and _again(opened, path):
                raise SourceError(f"{path}: given twice") from exc
            raise
        if any(source.identity == other.identity for other in opened):
            source.close()
            raise SourceError(f"{path}: given twice")
        unit = max(PMD_PAGES, source.align >> PAGE_SHIFT)
        end = opened[-1].pfn_end if opened else 0
        source.pfn_start = (end + unit - 1) // unit * unit
        source.pfn_end = source.pfn_start + source.pages
        return source

    def _place(self, source: Source) -> None:
        """Map one source at its place and put it in the table."""
        private = self.mode == "cow"
        # Where the file system can do MAP_SYNC it must: then its own block allocation is durable before a
        # store into the block is, and writing back cache lines is all that remains to be done.
        sync = not private and source.detected.medium == "fsdax" and source.detected.granularity != "page"
        try:
            address = self.window.place(source.pfn_start, source.pages, source.fd, 0,
                                        "r" if self.mode == "ro" else "rw", private, sync)
        except OSError as exc:
            if private and source.kind == "devdax":
                raise SourceError(f"{source.path}: devdax can't be mapped privately; open it read-only",
                                  errno.EOPNOTSUPP) from exc
            hint = ""
            if exc.errno == errno.ENOMEM and source.kind == "file" and source.unit > PAGE_SIZE:
                hint = f"; free huge pages of {source.unit} are missing (/proc/sys/vm/nr_hugepages)"
            raise SourceError(f"{source.path}: can't be mapped: {exc.strerror}{hint}", exc.errno) from exc
        self.table.add(source.pfn_start, source.pfn_end, address, source.pfn_flags, source.fd)

    def __enter__(self) -> "Region":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    @property
    def mem(self) -> memoryview:
        """The whole region as unsigned bytes; writable unless it is open read-only. EIO when closed."""
        if self._mem is None:
            self._check_open()
            self._mem = memoryview(self.window)
        return self._mem

    @property
    def array(self) -> np.ndarray:
        """The same bytes as numpy uint8."""
        if self._array is None:
            self._check_open()
            self._array = np.frombuffer(self.window, dtype=np.uint8)
        return self._array

    @property
    def address(self) -> int:
        """Address of byte 0."""
        self._check_open()
        return self.window.address

    @property
    def pool(self) -> Pool | None:
        """The own ranges; None where no source is a pool directory. SourceError, the first time."""
        if self._pool is None:
            self._check_open()
            self._pool = Pool.of(self)
        return self._pool

    @property
    def emulated(self) -> bool:
        """True where a power failure loses the region: every report says so."""
        return any(source.detected.emulated for source in self.sources)

    @property
    def pmd(self) -> str:
        """Whether PMD mappings are possible, "yes: …" or "no: …", for the first source that says no."""
        if self._closed:
            return "no: the region is closed"
        if self.mode == "cow":
            return "no: a private mapping is copied in pages of 4 KiB"
        answers = [pmd_possible(source) for source in self.sources]
        return next((answer for answer in answers if answer.startswith("no")), answers[0])

    @property
    def lost(self) -> str:
        """Why the region is lost, "" while it is not: a source was truncated, or its memory has an error."""
        if not self.table.lost:
            return ""
        for source in self.sources:
            if source.shrunk():
                return f"{source.path}: was truncated under the mount"
        return f"{', '.join(source.path for source in self.sources)}: a page can't be reached any more"

    def _check_open(self) -> None:
        if self._closed or self.table.dead:
            raise fail(errno.EIO, "the region is closed")

    def check(self, offset: int, length: int) -> None:
        """CorruptError where the bytes [offset, offset + length) are not in one range."""
        if length < 0 or not 0 <= offset < self.npages << PAGE_SHIFT:
            raise CorruptError(f"bytes {offset}+{length} are outside the region")
        _, available, _ = self.table.lookup(offset >> PAGE_SHIFT)
        if length > available * PAGE_SIZE - (offset & (PAGE_SIZE - 1)):
            raise CorruptError(f"bytes {offset}+{length} are outside the region")

    def direct_access(self, pfn: int, npages: int = 1) -> tuple[int, int]:
        """(address of *pfn*, pages available there, at most *npages*), as the kernel's ``direct_access``.

        Only between table.enter and table.exit: RuntimeError when nobody is in (SEEDS S6, S9).
        """
        if self.table.users <= 0:
            raise RuntimeError("direct_access outside enter and exit: the address could go away")
        address, available, _ = self.table.lookup(pfn)
        return address, min(available, npages)

    def view(self, offset: int, length: int) -> RegionView:
        """A read-only buffer straight on these bytes; CorruptError if they are not in one range."""
        with self.table:
            self.check(offset, length)
            return RegionView(self.table, self.window, self.window.address + offset, length)

    def punch(self, pfn: int, npages: int) -> int:
        """Give the storage of these pages back to their source; how many were. They stay mapped.

        Nobody may use them or expect anything of their content, before and after. EROFS where the region is
        not open rw, EIO after kill, else as Source.punch.
        """
        if self.mode != "rw":
            raise fail(errno.EROFS, "the region is not open rw")
        with self.table:
            self.check(pfn << PAGE_SHIFT, npages << PAGE_SHIFT)
            source = next(source for source in self.sources if pfn < source.pfn_end)
            return source.punch(pfn - source.pfn_start << PAGE_SHIFT, npages << PAGE_SHIFT) >> PAGE_SHIFT

    def allocate(self) -> None:
        """Have storage behind every page that lies on one file system with own ranges. ENOSPC, EROFS."""
        if self.mode != "rw":
            raise fail(errno.EROFS, "the region is not open rw")
        for source in self.beside_ranges():
            source.allocate()

    def beside_ranges(self) -> list[Source]:
        """The sources that are files beside a pool directory, on the same file system; its own, too."""
        pools = {source.identity[1] for source in self.sources if source.kind == "pool"}
        return [one for one in self.sources if one.identity[0] == "file" and one.identity[1] in pools]

    def describe(self) -> dict:
        """What reports show of the region; plain values only."""
        return {
            "mode": self.mode,
            "pages": self.npages,
            "bytes": self.npages * PAGE_SIZE,
            "granularity": self.granularity,
            "flush": self.flush.kind,
            "nt": self.flush.nt,
            "emulated": self.emulated,
            "safety": "emulated: not power-fail safe" if self.emulated else "as safe as its media",
            "pmd": self.pmd,
            "sources": [
                {
                    "path": source.path, "kind": source.kind, "bytes": source.size,
                    "pfn_start": source.pfn_start, "pfn_end": source.pfn_end,
                    "medium": source.detected.medium, "granularity": source.detected.granularity,
                    "emulated": source.detected.emulated, "why": source.detected.why,
                }
                for source in self.sources
            ],
        }

    def kill(self, timeout: float = 5.0) -> int:
        """Refuse new users with EIO and wait for the others; how many are left (S6, S11)."""
        return self.table.kill(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Kill, unmap, close and unlock. Twice is fine.

        Views of ``mem`` or ``array`` that are still held become private copies: what is stored through them
        from then on reaches no source. Users that don't leave keep the region mapped and locked (warning).
        """
        if self._closed:
            return
        left = self.kill(timeout)
        if left:
            log.warning("%s: %d users did not leave; the region stays mapped and locked",
                        self.sources[0].path, left)
            return
        self._closed = True
        if self._mem is not None:
            try:
                self._mem.release()
            except BufferError:
                pass  # slices of it are held elsewhere; detach() below takes care of them
        self._mem = self._array = None
        if self._pool is not None:
            self._pool.close()
        self.table.unwatch()
        try:
            self.window.close()
        except BufferError:
            self.window.detach()
            for source in self.sources:
                source.unlock()
        for source in self.sources:
            source.close()


def _again(opened: list[Source], path: str) -> bool:
    """True if *path* is a source that this very call has opened, and locked, already."""
    try:
        probe = open_source(path, "ro", lock=False)
    except OSError:
        return False
    probe.close()
    return any(probe.identity == other.identity for other in opened)
