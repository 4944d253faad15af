# SPDX-License-Identifier: MIT
"""L3: one source of a region as a file: its bytes as they stand, whatever a file system means by them (S12).

Reads and writes go through dax_io, as those of any file. Limits: knows nothing of FUSE and of who may. The
size never changes. Metadata thread; native threads serve READ and WRITE beside it, under the map's lock.
"""

import errno
import os

from .._fsync import DRAIN, FLUSH, LOOK, META, PYTHON, FsyncRun
from .._iomap import COARSE, MAPPED, PLAIN, FileMap
from ..errors import fail
from ..pfn import PAGE_SIZE
from ..source import Source


class RawFile:
    """*source* of *region*. ``size``: the bytes of it that are mapped. ``path``: of the source.

    Whoever gives a direct mapping that can store sets COARSE in the map's state: it tells nobody what it
    stores, and fsync has to believe that it did.
    """

    def __init__(self, region, dax, tracker, source: Source):
        self.region, self.dax, self.source = region, dax, source
        self.path, self.size = source.path, source.pages * PAGE_SIZE
        self.map = FileMap()
        self.map.load([(0, source.pages, source.pfn_start, MAPPED, 0)])
        self.map.size = self.size
        self.map.set_state(PLAIN)
        tracker.attach(self.map)

    @property
    def mappable(self) -> bool:
        """Whether a kernel could map it in place of a file of ours: a regular file, in pages of 4 KiB."""
        return self.source.kind in ("file", "pool") and self.source.unit == PAGE_SIZE

    def stat(self) -> os.stat_result:
        """Of the source as it is now: its times, and how much storage it has."""
        return os.fstat(self.source.fd)

    def read(self, pos: int, size: int):
        """As `DaxIo.read`."""
        return self.dax.read(self.map, pos, size)

    def write(self, pos: int, data) -> int:
        """Bytes written, fewer at the end of the source. ENOSPC where none fits."""
        if not len(data):
            return 0
        if pos >= self.size:
            raise fail(errno.ENOSPC)
        if pos + len(data) > self.size:
            data = memoryview(data)[: self.size - pos]
        if self.dax.write(self.map, pos, data):
            raise fail(errno.EIO, f"{self.path}: not mapped at byte {pos}")
        return len(data)

    def fsync(self, times: FsyncRun | None = None) -> None:
        """What was stored is durable: through us, and where COARSE says so through direct mappings too.

        *times*: where its phases are noted.
        """
        times = times or FsyncRun()
        self.sync_writes(times)
        if not self.map.state & COARSE:
            return
        times.lap(PYTHON)
        if self.source.detected.emulated:
            self._flush_all(times)
        else:
            os.fsync(self.source.fd)  # its kernel knows what the mappings have dirtied
            times.lap(META)

    def sync_writes(self, times: FsyncRun | None = None) -> None:
        """What was written through us is durable: all that O_DSYNC asks for."""
        times = times or FsyncRun()
        if self.map.marked:
            self.dax.writeback(self.map, times=times)
        else:
            times.lap(PYTHON)
            # Orders stores past the cache that no drain followed yet (drain=fsync) before the reply.
            self.region.drain()
            times.lap(DRAIN)

    def _flush_all(self, times: FsyncRun) -> None:
        """Nobody tracks stores into pages of a tmpfs: each line may be dirty.

        But not those of a page without memory; flushing them would give it some.
        """
        base, end = self.source.pfn_start * PAGE_SIZE, 0
        while (start := self._seek(end, os.SEEK_DATA)) < self.size:
            end = self._seek(start, os.SEEK_HOLE)
            times.lap(LOOK)
            self.region.flush_range(base + start, end - start)
            times.lap(FLUSH)
        times.lap(LOOK)
        # Orders what was stored through mappings before the reply to fsync.
        self.region.drain()
        times.lap(DRAIN)

    def _seek(self, pos: int, whence: int) -> int:
        """lseek(2) on the source, `size` at most and where there is nothing more."""
        try:
            return min(os.lseek(self.source.fd, pos, whence), self.size)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return self.size

    def write_back(self) -> None:
        """What was stored leaves the cache; for the end."""
        if self.map.state & COARSE:
            self.fsync()
        elif self.map.marked:
            self.dax.writeback(self.map)
