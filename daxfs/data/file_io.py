# SPDX-License-Identifier: MIT
"""Reads, writes and fsync of regular files: meta's blocks and dax_io's copies in the right order.

A write that needs blocks: meta takes them (`prepare_write`), dax_io fills them and
drains, meta publishes them in one record. So a record never makes a block reachable
whose data are not durable. An append into pages that are there stores data, drains,
stores the size. The file's lock is held from the first look to the end: native threads
write meanwhile. Metadata thread; no suspension point.
"""

import errno
import logging
import time

from .. import layout as L
from .._flush import StateArena
from .._fsync import LOOK, META, PYTHON, FsyncRun
from .._iomap import COARSE, OBSERVED, PLAIN, POISONED, STORED, UNSETTLED
from ..errors import CorruptError, fail
from ..meta import attr, extent, fallocate, file, own, placement, prealloc
from ..pfn import PAGE_SHIFT, PAGE_SIZE
from ._dax_io import DaxIo
from ._tracker import TRACKERS, ExtentTracker

log = logging.getLogger(__name__)


def state_arena(fs) -> StateArena | None:
    """Room for per-page state in the region of a read-write mount made with ``--map=dev`` (S5), else None.

    The state is volatile: it begins empty at each mount and is never flushed.
    """
    sb = fs.sb
    if sb.map != L.MAP_DEV or fs.readonly or fs.region.mode == "ro":
        return None
    fs.region.check(sb.map_pfn * PAGE_SIZE, sb.map_pages * PAGE_SIZE)
    return StateArena(fs.region.address + sb.map_pfn * PAGE_SIZE, sb.map_pages * PAGE_SIZE, fs.region.table)


class FileIo:
    """The data path of one mounted file system.

    ``read``, ``write`` and ``fsync`` take a `meta.extent.Node` (from
    `FileSystem.open`) and return or take plain bytes-like objects.
    """

    def __init__(self, fs, track: str = "pte", write: str = "nt", drain: str = "write", flushers: int = 1,
                 nt_threshold: int = 0):
        self.fs = fs
        self.arena = state_arena(fs)
        self.tracker = self._make_tracker(track)
        self.dax = DaxIo(fs.region, self.tracker, write, drain, flushers, nt_threshold)
        self.left: list = []  # trackers that were changed for others, with marks of files that are closed
        if fs.unclean and write == "cached" and track != "none" and not fs.readonly:
            self._flush_region()
        self.coarse_fsyncs = self.coarse_pages = 0  # fsyncs that took all of a file for dirty; what that was

    def _flush_region(self) -> None:
        """What a daemon that was killed has stored through the cache, and nobody knows any more, is durable.

        Before the first request: an fsync that finds nothing marked would promise it.
        """
        region, begin = ExtentTracker(None, self.fs.region.npages), time.perf_counter()
        region.suspect()
        region.finish(self.dax)
        log.info("was not unmounted: all of the region flushed in %.3f s", time.perf_counter() - begin)

    def opened(self, node) -> None:
        """Call once for each open, before the first write."""
        if node.opens == 1:
            placement.follow(self.fs, node)
            if own.is_stored_to(self.fs, node):
                node.map.set_state(COARSE)
            if node.map.own is not None and node.ino in self.fs.stored:
                node.map.set_state(STORED)
        self._track(node.map, self.tracker)  # again, where a change of all files failed half way
        attr.note_plain(self.fs, node)

    def set_tracker(self, policy: str) -> int:
        """Have every file tracked by *policy*, those that are open and those that will be; how many changed.

        One file after the other, each under its lock: with the new tracker it has at least what was dirty,
        and what was dirty before ``none`` is written back. What was stored under ``none`` nobody knows: all
        pages of the file count as dirty, once, where they may have been stored to through the cache. OSError,
        MemoryError: perhaps only some files have the new one then, and the next call goes on; but none has
        ``none``, which has no marks to go on with.
        """
        tracker = self.tracker if policy == self.tracker.name else self._make_tracker(policy)
        changed: list = []
        try:
            for node in list(self.fs.nodes.values()):
                if node.map.policy is not None and self._track(node.map, tracker):
                    changed.append(node)
        except (OSError, MemoryError):
            if tracker.name == "none":  # who goes by a promise of the old one goes on; and what extents know
                for node in changed:
                    self._track_again(node)
            raise
        if tracker is not self.tracker:
            self.left.append(self.tracker)
            self.tracker = self.dax.tracker = tracker
        self._finish_left()
        return len(changed)

    def _track_again(self, node) -> None:
        """*node* has the mount's tracker once more; where that fails its next fsync tries it, and says so."""
        try:
            self._track(node.map, self.tracker)
        except (OSError, MemoryError) as error:
            log.warning("inode %d: track=%s again: %s", node.ino, self.tracker.name, error or "no memory")
            node.map.set_state(STORED)

    def _finish_left(self) -> None:
        """Write back what only trackers know that no file has any more. OSError: the next call tries again.

        Order: after every file has another one, so that nobody marks in them.
        """
        while self.left:
            self.left[0].finish(self.dax)
            del self.left[0]

    def _track(self, fmap, tracker) -> bool:
        """*fmap* has *tracker* from now on, with what was dirty; False: it had it.

        OSError, MemoryError: it is as it was.
        """
        if tracker.tracks(fmap):
            return False
        mapped = fmap.own is not None and bool(fmap.own.pages)
        with fmap:
            if fmap.policy == "none" and mapped and not self.fs.readonly:
                fmap.own.learn(fmap, 0, fmap.own.pages)  # what programs stored to is MAPPED, too
            if tracker.name == "none" and fmap.marked and not (self.fs.shut or self.tracker.keeps(fmap)):
                # Order: before the marks go, as nobody has them then. What is stored later is not ours. What
                # the old tracker keeps it flushes once, for all files (`_finish_left`).
                self.dax.writeback(fmap)
            tracker.attach(fmap, not self.dax.nt or mapped)
        return True

    def _make_tracker(self, policy: str):
        return TRACKERS[policy](self.arena, self.fs.region.npages)

    def read(self, node, pos: int, size: int, noatime: bool = False, short: bool = True):
        """Up to *size* bytes at *pos* (see `DaxIo.read`: a view must be used up before anything changes).

        EIO at a poisoned page, and where one follows, unless *short*: the page cache takes a short answer
        for the end of the file.
        """
        self._mend(node)
        if node.map.state & POISONED:
            size = self.fs.poison.readable(node, pos, size, short)
        data = self.dax.read(node.map, pos, size)
        if not noatime:
            attr.touch_read(self.fs, node.ino)
        return data

    def write(self, node, pos: int, data) -> int:
        """Write *data* at *pos*; bytes written, fewer where space runs out. ENOSPC, EFBIG, EROFS."""
        if not len(data):
            return 0
        self.fs.may_change()  # writes over blocks that are there ask nobody else
        with node.map:
            if node.map.state & POISONED and self.fs.poison.covered(node, pos, len(data)):
                written = self._write(node, pos, data)
                self._end_poison(node, pos, written)
            else:
                written = self._write(node, pos, data)
            attr.note_plain(self.fs, node)
        return written

    def _end_poison(self, node, pos: int, written: int) -> None:
        """A write has covered poisoned pages: they leave the list, which is durable on return."""
        if node.map.marked:
            # Orders data that went through the cache before the record; for others its transaction drains.
            self.dax.writeback(node.map, pos >> PAGE_SHIFT, prealloc.pages_of(pos + written))
        elif not self.dax.nt:
            # The same order with track=none: the record says that the page holds what was written.
            self.dax.persist(node.map, pos, written)
        self.fs.poison.stored(node, pos, written)

    def _mend(self, node) -> None:
        """Map a range anew of which a page went away: nobody's page stands there now."""
        if node.map.own is not None and node.map.own.torn:
            log.warning("inode %d: a page of its range went away; mapped anew", node.ino)
            node.map.own.mend(node.map)
            # It has no extents then, and a write-back passes holes over and takes their marks.
            node.map.own.learn(node.map, 0, node.map.own.pages)

    def _write(self, node, pos: int, data) -> int:
        self._mend(node)
        if not self.dax.write(node.map, pos, data):
            attr.touch_write(self.fs, node.ino)
            return len(data)
        if node.map.own is not None:
            return self._write_own(node, pos, data)
        if pos <= node.map.size < pos + len(data):
            if self._append(node, pos, data):
                return len(data)
            node.appends += 1
        plan = file.prepare_write(self.fs, node, pos, len(data))
        try:
            if plan.length < len(data):
                data = memoryview(data)[: plan.length]
            self.dax.fill(node.map, pos, data, plan.pieces, plan.fresh)
        except BaseException:
            plan.tx.abort()
            prealloc.give_back(self.fs, node)  # who failed keeps nothing
            raise
        plan.commit(self.fs.clock())
        if plan.behind:
            # The next append shall find no record that holds the size.
            self.fs.journal.settle()
        return plan.length

    def _append(self, node, pos: int, data) -> bool:
        """An append into written pages, as native threads do it; False where that can't be."""
        fs, end = self.fs, pos + len(data)
        if end > L.MAX_FILE_SIZE or not prealloc.sensible(fs):
            return False
        if fs.inodes.flags(node.ino) & L.FLAG_TRUNCATING:
            return False
        pieces = list(extent.holes(node, pos >> PAGE_SHIFT, prealloc.pages_of(end)))
        if any(kind != extent.MAPPED for *_, kind in pieces):
            return False
        if node.map.state & UNSETTLED:
            # Orders the records that hold this inode before the size in place: replay would undo that.
            fs.journal.settle()
        node.appends += 1
        file.zero_end(fs, node, end)
        try:
            self.dax.fill(node.map, pos, data, pieces, ())
        except BaseException:
            prealloc.give_back(fs, node)  # as above
            raise
        file.grow(fs, node, end, fs.clock())
        return True

    def _write_own(self, node, pos: int, data) -> int:
        """A write into a range that grows the file or needs storage: no record, as an append."""
        fs, fmap = self.fs, node.map
        if pos >= L.MAX_FILE_SIZE:
            raise fail(errno.EFBIG)
        if pos > fmap.size:
            own.cut(node)
        end = own.grow(node, pos >> PAGE_SHIFT, min(pos + len(data), L.MAX_FILE_SIZE))
        if pos > fmap.size:
            self._zero_gap(node, pos)
        data = memoryview(data)[: end - pos]
        if end <= fmap.size:
            if self.dax.write(fmap, pos, data):
                raise fail(errno.EIO, f"inode {node.ino}: its range has no storage where it had some")
            attr.touch_write(fs, node.ino)
            return len(data)
        if fmap.state & UNSETTLED:
            # Orders the records that hold this inode before the size in place: replay would undo that.
            fs.journal.settle()
        try:
            self._covered(fmap, pos, end)
            self.dax.fill(fmap, pos, data, list(extent.holes(node, pos >> PAGE_SHIFT, own.pages_of(end))), ())
        except BaseException:
            own.shorten(node)
            raise
        file.grow(fs, node, end, fs.clock())
        return len(data)

    @staticmethod
    def _zero_gap(node, pos: int) -> None:
        """Between the end of file and *pos*, where its range has grown already. OSError: it has not."""
        try:
            own.zero_behind(node, pos)
            # Orders zeros behind the old end before the size.
            node.map.own.sync()
        except BaseException:
            own.shorten(node)
            raise

    @staticmethod
    def _covered(fmap, pos: int, end: int) -> None:
        """Take [pos, end) again, where the zeros behind the old end had extents of an observed file learned
        anew: to that, storage which nobody has touched yet is a hole."""
        if fmap.state & OBSERVED:
            fmap.own.cover(fmap, pos >> PAGE_SHIFT, own.pages_of(end))

    def fallocate(self, node, mode: int, pos: int, length: int) -> None:
        """fallocate(2) (`meta.fallocate`); durable on return, whatever the policies.

        What a write takes away (`attr.drop_privileges`) this does too: the caller's business, as there.
        """
        fallocate.fallocate(self.fs, node, mode, pos, length, self.fs.clock())

    def fsync(self, node, times: FsyncRun | None = None) -> int:
        """Make data, size and times of *node* durable; returns the pages that had to be flushed.

        Where nothing is dirty one drain does for all: it orders non-temporal stores
        that no drain followed yet (drain=fsync) and the time words before the reply.
        *times*: where its phases are noted.
        """
        times = times or FsyncRun()
        late = node.map.state & STORED
        if late:
            self._track(node.map, self.tracker)
        found = node.map.own is not None and self._before_fsync(node, times)
        pages = self.dax.writeback(node.map, times=times) if node.map.marked else 0
        if found or (late and node.map.own is None):
            self._flushed(node)
        if self.left:
            self._finish_left()
        self.fs.sync_inode(node.ino, times)
        return pages

    def _before_fsync(self, node, times: FsyncRun) -> bool:
        """What programs stored through mappings of the range: all of it (True), or what was found
        (observer.py)."""
        self._mend(node)
        fmap = node.map
        coarse = bool(fmap.state & (COARSE | STORED)) and not self.fs.readonly and fmap.policy != "none"
        if coarse:
            # Nobody tracks those stores, so every page counts as dirty (S15).
            times.lap(PYTHON)
            self.coarse_pages += own.mark_stored(node, 0, fmap.own.pages)
            times.lap(LOOK)
            self.coarse_fsyncs += 1
        times.lap(PYTHON)
        # Orders stores that the kernel below tracks, and the range's length, before size and times.
        fmap.own.sync()
        if not self.fs.readonly:
            own.fold_times(self.fs, node)
        times.lap(META)
        return coarse

    def _flushed(self, node) -> None:
        """All that may be dirty was. Order: after flush and drain. COARSE stays: its mappings go on."""
        node.map.clear_state(STORED)
        self.fs.stored.discard(node.ino)

    def release(self, node) -> None:
        """A handle closes. Dirty pages stay dirty in the FileMap; the last close writes them back.

        The Node, and its tracker with it, may go after the last close, so nothing
        may be left dirty then.
        """
        if node.opens == 1 and node.map.own is not None and not (self.fs.shut or self.fs.pool.syncs):
            if node.map.state & (COARSE | STORED):
                # Nobody has asked for that yet, and a mapping may outlive its handle: it is the next use's.
                # First, as nobody hears of what fails below.
                self.fs.stored.add(node.ino)
        try:
            if node.opens == 1 and not (self.fs.readonly or self.fs.shut):
                self._last_close(node)
        finally:
            self.fs.release(node)

    def _last_close(self, node) -> None:
        if node.map.state & STORED:
            self._track(node.map, self.tracker)
        if node.map.marked and not self.tracker.keeps(node.map):
            self.dax.writeback(node.map)
        if self.tracker.clears and sum(other.opens > 0 for other in self.fs.nodes.values()) == 1:
            self.tracker.last_close(self.dax)
        if node.map.own is not None:
            own.fold_times(self.fs, node)
        prealloc.closed(self.fs, node)
        placement.closed(self.fs, node)

    def write_back(self) -> None:
        """Flush, drain and mark clean what is dirty in any file.

        OSError, MemoryError: it can't be done in one, and is done in all others.
        """
        if self.fs.shut:
            return
        steps = [(node.ino, self._write_back_open, node) for node in self.fs.nodes.values()]
        steps += [(ino, self._write_back_closed, ino) for ino in self.fs.stored | self.fs.mapped]
        failed = None
        for ino, step, what in steps:
            try:
                step(what)
            except (OSError, MemoryError) as error:  # which is raised once all others are durable
                log.error("inode %d: what was stored there can't be made durable: %s", ino, error)
                failed = failed or error
        self.tracker.finish(self.dax)
        self._finish_left()
        if failed is not None:
            raise failed

    def _write_back_open(self, node) -> None:
        if node.map.state & STORED:
            self._track(node.map, self.tracker)
        if node.map.own is not None and node.map.state & (COARSE | OBSERVED | STORED):
            self._write_back_stored(node)  # a look at page tables would have to wait for programs
        elif node.map.marked and not self.tracker.keeps(node.map):
            self.dax.writeback(node.map)

    def _write_back_stored(self, node) -> None:
        """All pages of a range, as programs may have stored there."""
        if not self.fs.readonly and node.map.policy not in (None, "none"):
            self._mend(node)
            own.mark_stored(node, 0, node.map.own.pages)
            self.dax.writeback(node.map)
            self._flushed(node)

    def _write_back_closed(self, ino: int) -> None:
        """The same of a file that may be closed, and what the kernel below knows of its mappings' stores."""
        try:
            node = self.fs.node(ino)
            if node.map.own is not None:
                self._track(node.map, self.tracker)
                if ino in self.fs.stored:
                    self._write_back_stored(node)
                if not self.fs.readonly:
                    # Orders what programs stored before the end of the mount. Who has it mapped may go on.
                    node.map.own.sync()
            if not node.opens:
                self.fs.mapped.discard(ino)
        except CorruptError as error:
            log.error("inode %d: what programs stored there can't be made durable: %s", ino, error)
        finally:
            self.fs.drop_unused(ino)

    def quiesce(self) -> None:
        """Before umount or a remount read-only: native threads write no more, nothing is dirty or spare."""
        for node in list(self.fs.nodes.values()):
            with node.map:  # who writes now ends first
                node.map.clear_state(PLAIN)
        try:
            if not (self.fs.readonly or self.fs.shut):
                prealloc.give_back_all(self.fs)
        finally:
            self.write_back()  # of a file that keeps its chunk, too

    def snapshot(self) -> dict:
        """Counters for reports."""
        return {
            "policy": self.tracker.name,
            "state": "dev" if self.arena else "mem",
            "slots": self.arena.slots if self.arena else 0,
            "slots_used": self.arena.used if self.arena else 0,
            "fallbacks": self.arena.fallbacks if self.arena else 0,
            **self.dax.snapshot(),
            "coarse_fsyncs": self.coarse_fsyncs,
            "coarse_bytes": self.coarse_pages * 4096,
            **self.tracker.held(node.map for node in self.fs.nodes.values()),
        }
