# SPDX-License-Identifier: MIT
"""L3: observed mappings: which processes have a file mapped, and a look at what they stored (docs/fault.md,
"Observed mappings: the daemon's half").

A client says what it has mapped (`observe`) and what it is about to unmap (`forget`). For an fsync the
metadata thread makes a `Look`. Another thread runs it, since it waits for the mmap locks of clients, who may
wait for the metadata thread. That one then puts into the file's dirty map what was found (`take`). What ended
without `forget` counts as stored to, all of it.

With fault=kernel the page tables of clients say what was stored; with fault=user the entries of the handler
(_handler.pyx) do, which answers their faults and outlives them.

A client that writes back by itself takes marks before it has flushed. It counts what it has begun and ended
(struct daxfs_progress), and a Look waits a short while for what had begun; else all of that mapping is dirty.

Limits: no trio: who runs a Look, and who hears of a process that ended, is in
fuse/observing.py. All but `Look.run` is the metadata thread's. Who may observe what is checked there, too.
"""

import contextlib
import ctypes
import errno
import itertools
import logging
import mmap
import os
import struct
import time
from collections import Counter
from dataclasses import dataclass, field

from .._fsync import FsyncRun
from .._iomap import COARSE, OBSERVED, FileMap
from ..errors import fail
from ..latency import Operation
from ..meta import own
from ..pfn import PAGE_SHIFT
from ._handler import FaultHandler
from ._observe import HUGE, Found, span

log = logging.getLogger(__name__)

MOST, MOST_EACH = 65536, 4096  # mappings: of the mount, of one process
MOST_PARTS = 8192  # pieces and doubts of one process's mappings
PROT_WRITE = 2
SLOT, SLOTS = struct.Struct("=2Q48x"), 64  # struct daxfs_progress, the client's half, and how many
OURS = struct.Struct("=2Q")  # and ours, behind its two words
WRITE_BACK = 0.02  # seconds that a Look waits for write-backs of clients, all together


class Descriptor:
    """A descriptor that closes with the last reference: a Look may use it when its process is let go."""

    __slots__ = ("fd",)

    def __init__(self, fd: int):
        self.fd = fd

    def __del__(self):
        os.close(self.fd)


class Progress:
    """The memfd *fd* in which a client and we count write-backs (struct daxfs_progress). OSError, ValueError.

    Mapped, for write(2) waits for the file's lock, which a client keeps as long as it likes: by a write of
    its own from a page that nobody provides. And reached through our own /proc, which says by an error what
    an instruction says by SIGBUS: that a page was punched out and can't be had again.
    """

    _ours = -1  # a descriptor of our memory

    def __init__(self, fd: int):
        if Progress._ours < 0:
            Progress._ours = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
        self._memory = mmap.mmap(fd, SLOTS * SLOT.size)  # it keeps a descriptor of its own
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def theirs(self, slot: int) -> tuple[int, int]:
        """(begun, ended) of a slot. OSError."""
        return SLOT.unpack(os.pread(self._ours, SLOT.size, self._address + slot * SLOT.size))

    def says(self, slot: int, counts) -> None:
        """Ours, (taking, flushed). OSError."""
        os.pwrite(self._ours, OURS.pack(*counts), self._address + slot * SLOT.size + OURS.size)


class Process:
    """A client: one address space. *pid*: of its thread group; others are Descriptors. ``key``: unique."""

    _keys = itertools.count(1)

    def __init__(self, pid: int, pidfd: Descriptor, maps: Descriptor, pagemap: Descriptor):
        self.key = next(self._keys)
        self.pid, self.pidfd, self.maps, self.pagemap = pid, pidfd, maps, pagemap
        self.progress: Progress | None = None
        self.counts: dict[int, list[int]] = {}  # slot: ours, struct daxfs_progress
        self.mappings: dict[int, Mapping] = {}
        self.parts = 0  # at least as many as `are_many` counts

    def are_many(self) -> bool:
        """Before one of its mappings is split once more: whether there are too many parts of them."""
        self.parts += 2
        if self.parts <= MOST_PARTS:
            return False
        self.parts = sum(len(one.pieces) + len(one.doubts) for one in self.mappings.values())
        return self.parts > MOST_PARTS // 2  # else not counted again so soon

    def count(self, slot: int, taking: int = 0, flushed: int = 0) -> None:
        """Add to what a client reads of us."""
        counts = self.counts.setdefault(slot, [0, 0])
        counts[0] += taking
        counts[1] += flushed
        # One that has taken the page away harms itself alone.
        with contextlib.suppress(OSError):
            self.progress.says(slot, counts)


@dataclass(frozen=True)
class Piece:
    """Addresses [start, end) that show a file from byte *offset* on."""

    start: int
    end: int
    offset: int

    @property
    def pages(self) -> tuple[int, int]:
        """(first page of the file, pages)."""
        return self.offset >> PAGE_SHIFT, (self.end - self.start) >> PAGE_SHIFT

    def cut(self, start: int, end: int) -> "list[Piece]":
        """What is left of it without the addresses [start, end)."""
        out = []
        if start > self.start:
            out.append(Piece(self.start, min(start, self.end), self.offset))
        if end < self.end:
            at = max(end, self.start)
            out.append(Piece(at, self.end, self.offset + (at - self.start)))
        return [one for one in out if one.start < one.end]

    def part(self, start: int, end: int) -> "Piece | None":
        """What of it is in [start, end)."""
        low, high = max(start, self.start), min(end, self.end)
        return Piece(low, high, self.offset + (low - self.start)) if low < high else None


@dataclass(eq=False)
class Mapping:
    """One that a client told us of. *pieces*: what is left of it.

    *doubts*: pieces that it forgot and may not have unmapped yet. To unmap a part of a huge page takes away
    what is known of the rest (native/pagemap.h), at any time from the answer to the client on.
    """

    id: int
    file: "File"
    process: Process
    stores: bool
    pieces: list[Piece]
    user: bool = False  # fault=user
    slot: int = 0  # of its process's progress
    doubts: list[Piece] = field(default_factory=list)


class File:
    """An inode that is open and direct. *plain*: handles, living or gone, whose mappings nobody observes."""

    def __init__(self, node, persist):
        self.node, self.map, self.ino, self.persist = node, node.map, node.ino, persist
        # A mapping that outlived all handles (file_io.opened) has none, and nobody observes it.
        self.plain = int(bool(self.map.state & COARSE))
        self.mappings: dict[int, Mapping] = {}
        self.look: Look | None = None  # that nobody waited for to the end
        self.owed: Counter[tuple[Process, int]] = Counter()  # slots with what no fsync has made durable
        self.left = False  # no mapping has fault=user any more, and the handler still has marks
        self.handler: FaultHandler | None = None  # once it has had a mapping with fault=user

    def settle(self) -> None:
        """Tell native threads whether fsync is theirs."""
        if self.left or any(one.stores for one in self.mappings.values()):
            self.map.set_state(OBSERVED)
        else:
            self.map.clear_state(OBSERVED)

    def mark(self, piece: Piece) -> None:
        """All that has storage of a piece is dirty. In the metadata thread, under no lock."""
        first, pages = piece.pages
        try:
            own.mark_stored(self.node, first, first + pages)
        except (OSError, MemoryError) as error:
            self.give_up(error)

    def give_up(self, error: BaseException) -> None:
        """What is dirty can't be told any more: all of it is, until the last handle closes."""
        log.warning("inode %d: each fsync flushes all of it from now on: %s", self.ino, error)
        self.plain += 1
        self.map.set_state(COARSE)

    def forget(self, first: int, last: int) -> None:
        """The pages [first, last) are about to go. Under the file's lock (meta/own.py)."""
        if self.handler is not None:
            self.handler.forget(self.map, first, last)

    @contextlib.contextmanager
    def around_split(self, rest: list[tuple[int, int]]):
        """Around what takes a part of huge pages away, whose other pages [first, last) are *rest*.

        What was stored there no msync of a client finds from then on. So it is flushed here, and until that
        is done the clients can see that we have it. Metadata thread, under the file's lock (meta/own.py).
        """
        debt: Counter[tuple[Process, int]] = Counter()
        # Order: before the pages go. Who finds no mark of what he stored sees that we have it.
        self.tell_taking(debt)
        try:
            yield
        finally:
            try:
                for first, last in rest:
                    # Orders what was stored there before clients are told that it is durable.
                    self.persist(self.map, first << PAGE_SHIFT, (last - first) << PAGE_SHIFT)
            except OSError as error:
                log.warning("inode %d: until an fsync each msync flushes all: %s", self.ino, error)
                self.owed.update(debt)
            else:
                _pay(debt)  # Order: after the drain

    def tell_taking(self, debt: Counter[tuple[Process, int]]) -> None:
        """Have the clients that store here know that we take what they stored; *debt* has to whom it is owed.
        """
        for process, slot in {(one.process, one.slot) for one in self.mappings.values()
                              if one.stores and one.process.progress is not None}:
            process.count(slot, taking=1)
            debt[process, slot] += 1

    def around(self, piece: Piece) -> list[Piece]:
        """What is beside *piece* in the huge pages in which it begins and ends: at most two pieces."""
        if (piece.start - piece.offset) % HUGE:
            return []  # no huge page can be mapped there
        low, high = piece.start & -HUGE, -(-piece.end // HUGE) * HUGE
        low = max(low, piece.start - piece.offset)  # the file begins there
        beside = (Piece(low, piece.start, piece.offset - (piece.start - low)),
                  Piece(piece.end, high, piece.offset + (piece.end - piece.start)))
        return [one for one in beside if one.start < one.end]


def _pay(debt: Counter[tuple[Process, int]]) -> None:
    """What was owed is durable."""
    for (process, slot), times in debt.items():
        process.count(slot, flushed=times)


class Look:
    """One look at all mappings of a file that store: made and taken by the metadata thread, run by any.

    Afterwards: ``found``; ``gone``, pieces [(mapping, piece)] that show the file no more; ``settled``, doubts
    that are none any more; ``unsure``, mappings whose clients may not have flushed what they took; ``begun``,
    ``done``, ``failed``.
    """

    def __init__(self, file: File, device: int):
        self.file, self.device, self.ino = file, device, file.ino
        self.work = [(one, one.process.maps, one.process.pagemap, tuple(one.pieces), tuple(one.doubts))
                     for one in file.mappings.values() if one.stores and not one.user]
        self.found = Found()
        self.gone: list[tuple[Mapping, Piece]] = []
        self.settled: list[tuple[Mapping, Piece]] = []
        self.unsure: list[Mapping] = []
        self.begun = self.done = self.failed = False
        self.ns = 0
        self.times = FsyncRun()

    def run(self) -> None:
        """In a thread of its own. Whatever it meets, `take` knows what to make of it."""
        self.begun, self.times = True, FsyncRun()
        start = time.perf_counter_ns()
        try:
            for mapping, maps, pagemap, pieces, doubts in self.work:
                # Order: before the scan. What is unmapped by now has taken its marks with it, and what is
                # stored beside it from now on the scan finds.
                for doubt in doubts:
                    where = doubt.start, doubt.end, doubt.offset, self.device, self.ino
                    if span(maps.fd, *where, times=self.times) is None:
                        self.settled.append((mapping, doubt))
                for piece in pieces:
                    if not self._scan(maps.fd, pagemap.fd, piece):
                        self.gone.append((mapping, piece))
            self._wait_for_clients()
        except Exception:  # whatever it is, fsync takes everything for dirty then
            log.exception("inode %d: what programs stored through their mappings is not known", self.ino)
            self.failed = True
        finally:
            self.ns = time.perf_counter_ns() - start
            self.done = True

    def _wait_for_clients(self) -> None:
        """Order: after the scans. Who has taken a mark before one of them had begun before it."""
        until = time.monotonic() + WRITE_BACK
        slots: dict[tuple[Process, int], bool] = {}
        for mapping, *_ in self.work:
            process = mapping.process
            if process.progress is None:
                continue
            where = process, mapping.slot
            if where not in slots:
                slots[where] = _has_written_back(process.progress, mapping.slot, until)
            if not slots[where]:
                self.unsure.append(mapping)

    def _scan(self, maps: int, pagemap: int, piece: Piece) -> bool:
        """False: somebody else's addresses, or nobody's."""
        where = piece.start, piece.end, piece.offset, self.device, self.ino
        wide = span(maps, *where, times=self.times)
        if wide is None:
            return False
        try:
            # Order: protected before flush and drain. What is stored from now on, the next look finds.
            self.found.scan(pagemap, *wide, piece.start, piece.offset, times=self.times)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            return False  # registered no more
        # Unmapped, or the process ended, while it was scanned? Then part of what was stored was not found.
        return span(maps, *where, times=self.times) is not None


def _has_written_back(progress: Progress, slot: int, until: float) -> bool:
    """Whether the write-back that had begun ends before *until*. One at a time uses a slot."""
    try:
        begun, ended = progress.theirs(slot)
        while (ended - begun) % (1 << 64) >> 63:
            if time.monotonic() >= until:
                return False
            time.sleep(0.0005)
            _, ended = progress.theirs(slot)
    except (OSError, struct.error):
        return False
    return True


class Observer:
    """The observed mappings of one mount. *persist*: of its DaxIo, or what does the same."""

    def __init__(self, persist):
        self.persist = persist
        self.files: dict[int, File] = {}  # inodes that are open and direct, where no kernel tracks stores
        self.processes: dict[int, Process] = {}
        self.mappings: dict[int, Mapping] = {}
        self.most_clients = MOST
        self.last = 0
        self.look_times, self.look_pages = Operation(), Operation()  # also of those that came too late
        self.looks = self.precise = self.pages = self.ended = self.gone = self.given_up = self.unsure = 0
        self.handler: FaultHandler | None = None  # once there was a mapping with fault=user

    # -- handles ---------------------------------------------------------------------------

    def begin(self, node) -> None:
        """The first handle opens directly."""
        self.files[node.ino] = node.splits = File(node, self.persist)

    def expect(self, node) -> None:
        """A handle whose mappings may store, observed or not. Until it says which, fsync takes all."""
        self.files[node.ino].plain += 1
        node.map.set_state(COARSE)

    def promised(self, node) -> None:
        """One of those handles: all its mappings are observed, and were before their first store."""
        file = self.files[node.ino]
        file.plain -= 1
        if not file.plain:
            file.map.clear_state(COARSE)

    def end(self, node) -> None:
        """The last handle closes; before what is dirty is written back. From now on a mapping is plain."""
        file = self.files.pop(node.ino, None)
        if file is None:
            return
        for mapping in list(file.mappings.values()):
            self._lose(mapping)
        if file.left:
            self._take_marks(file)
        if file.left:
            file.give_up(BlockingIOError("a fault is still being answered"))
        file.map.clear_state(OBSERVED)
        file.node.faults = file.node.splits = None
        self.paid(file.owed)  # nobody has it mapped

    # -- mappings --------------------------------------------------------------------------

    def observe(self, process: Process, ino: int, prot: int, piece: Piece, handled=None, slot=0) -> int:
        """A mapping's number. ENOSPC. What was observed at its addresses is not there any more.

        *handled*: with fault=user, a function that has the handler answer its faults, given the number.
        *slot*: in which the process counts its write-backs of it.
        """
        if len(self.mappings) >= MOST or len(process.mappings) >= MOST_EACH:
            raise fail(errno.ENOSPC, "too many observed mappings")
        if process.pid not in self.processes and len(self.processes) >= self.most_clients:
            raise fail(errno.ENOSPC, "too many processes with observed mappings")
        file = self.files[ino]
        for other in list(process.mappings.values()):
            for old in list(other.pieces):
                if part := old.part(piece.start, piece.end):
                    # The same place of the same file: goes on. Else it was unmapped, and nobody said so.
                    same = (other.file is file and other.user == bool(handled)
                            and part.offset - piece.offset == part.start - piece.start)
                    self._cut(other, part, dirty=other.stores and not (same and prot & PROT_WRITE))
        self.last += 1
        mapping = Mapping(self.last, file, process, bool(prot & PROT_WRITE), [piece], bool(handled),
                          slot)
        if handled:
            handled(mapping.id)
            file.handler, file.node.faults = self.handler, file
        self.processes.setdefault(process.pid, process)
        for table in (self.mappings, process.mappings, file.mappings):
            table[mapping.id] = mapping
        file.settle()
        return mapping.id

    def forget(self, mapping: Mapping, start: int, end: int, dirty: bool) -> None:
        """A part of a mapping goes. *dirty*: it may have been stored to. EINVAL: no part of it.

        Where a process has had its mappings cut into very many pieces this one is observed no more. With
        fault=user, whose faults somebody has to answer, the part stays instead: ENOSPC.
        """
        parts = [part for piece in mapping.pieces if (part := piece.part(start, end))]
        if sum(part.end - part.start for part in parts) != end - start:
            raise fail(errno.EINVAL, "not a piece of that mapping")
        if mapping.process.are_many():
            error = fail(errno.ENOSPC, f"process {mapping.process.pid}: too many pieces of mappings")
            if mapping.user:
                raise error
            mapping.file.give_up(error)
            self._lose(mapping)
            return
        for part in parts:
            self._cut(mapping, part, dirty and mapping.stores)
            huge = mapping.stores and not mapping.user  # what the handler maps are single pages
            if huge and mapping.id in self.mappings and mapping.file.around(part):
                mapping.doubts.append(part)
                self._mark_around(mapping.file, part)

    def ends(self, process: Process) -> None:
        """A process ended, or became another program, without a word: what it could store to is dirty."""
        if self.processes.get(process.pid) is process:
            self.ended += 1
        for mapping in list(process.mappings.values()):
            self._lose(mapping)

    def _lose(self, mapping: Mapping) -> None:
        for piece in list(mapping.pieces):
            self._cut(mapping, piece, mapping.stores)

    def _cut(self, mapping: Mapping, part: Piece, dirty: bool) -> None:
        """*part* is not observed any more; the mapping goes with its last piece, the process with that."""
        file, process = mapping.file, mapping.process
        if mapping.user:
            self._unhandle(mapping, part)
        elif dirty:
            file.mark(part)
        mapping.pieces = [left for one in mapping.pieces for left in one.cut(part.start, part.end)]
        if not mapping.pieces and self.mappings.pop(mapping.id, None):
            for doubt in mapping.doubts:  # other mappings of it may be beside them
                self._mark_around(file, doubt)
            del process.mappings[mapping.id]
            file.mappings.pop(mapping.id, None)
            if mapping.user and not any(one.user for one in file.mappings.values()):
                self._take_marks(file)
            file.settle()
            if not process.mappings:
                if self.handler is not None:
                    self.handler.end(process.key)
                if self.processes.get(process.pid) is process:
                    del self.processes[process.pid]

    def _unhandle(self, mapping: Mapping, part: Piece) -> None:
        try:
            self.handler.remove(mapping.process.key, mapping.id, part.start, part.end - part.start)
        except OSError as error:  # no memory to remember what is left of it: nothing is
            log.warning("inode %d: %s", mapping.file.ino, error)
            mapping.file.give_up(error)

    def _take_marks(self, file: File) -> None:
        """Nothing of *file* is mapped with fault=user any more: what was stored is the tracker's to know.

        While a fault of a client that was killed is still being answered, the marks are left where they are:
        the next fsync writes them back, and tries again.
        """
        try:
            file.map.own.learn(file.map, 0, 0)  # so that the range has an address
            file.left = not self.handler.take(file.map)
        except OSError as error:
            file.left = False
            file.give_up(error)

    @staticmethod
    def _mark_around(file: File, part: Piece) -> None:
        for beside in file.around(part):
            file.mark(beside)

    def revoked(self, ino: int) -> None:
        """What was mapped of *ino* shows an empty file (meta/revoke.py): the kernel refuses its faults."""
        file = self.files.get(ino)
        for mapping in file.mappings.values() if file is not None else ():
            for piece in mapping.pieces if mapping.user else ():
                self._unhandle(mapping, piece)

    # -- fsync -----------------------------------------------------------------------------

    def owe(self, ino: int) -> Counter[tuple[Process, int]]:
        """Have the clients that store to *ino* know that we take what they stored, and all that is owed.

        Order: before anything is protected. Who stored it and finds no mark of it sees that we have it.
        """
        file = self.files.get(ino)
        debt: Counter[tuple[Process, int]] = Counter()
        if file is None:
            return debt
        if file.look is None or file.look.done:  # else nobody knows yet what that one protects
            debt, file.owed = file.owed, debt
        file.tell_taking(debt)
        return debt

    def paid(self, debt: Counter[tuple[Process, int]]) -> None:
        """The fsync is done. Order: after its drain."""
        _pay(debt)

    def owes_still(self, ino: int, debt: Counter[tuple[Process, int]]) -> None:
        """It failed: the next one makes durable what was found, or the last close does."""
        if ino in self.files:
            self.files[ino].owed.update(debt)
        else:
            self.paid(debt)

    def look(self, ino: int, device: int) -> Look | None:
        """What has to be run before an fsync of *ino*; None: nothing. *device*: st_dev of the mount."""
        file = self.files.get(ino)
        # A coarse fsync takes every page; nothing is protected, so the first precise one finds all.
        if file is None or file.map.state & (COARSE | OBSERVED) != OBSERVED:
            return None
        self._late(file)
        return Look(file, device)

    def _late(self, file: File) -> None:
        """The result of a look that nobody waited for, once it is there."""
        look = file.look
        if look is not None and look.done:
            file.look = None
            self._found(file, look)

    def take(self, look: Look) -> None:
        """What *look*, which is done, has found becomes dirty.

        Order: before the flush of the fsync that it was made for, and of any other that is answered later.
        """
        self.looks += 1
        if self.files.get(look.ino) is not look.file:
            return  # closed meanwhile: all was taken for dirty
        if look.failed:
            self._take_all(look)
        else:
            self.precise += 1
        self._found(look.file, look)

    def _take_what_was_left(self, file: File) -> None:
        file.left = False
        if not any(one.user for one in file.mappings.values()):  # else they are written back with its own
            self._take_marks(file)
        file.settle()

    def writes_back(self, ino: int) -> FileMap | None:
        """What `FaultHandler.write_back` has to be run for, by another thread, before an fsync of *ino*.

        None: no mapping of it has, or had, fault=user.
        """
        file = self.files.get(ino)
        if file is None or not (file.left or any(one.user for one in file.mappings.values())):
            return None
        return file.map

    def wrote_back(self, ino: int, fmap: FileMap, done: bool, running: bool = False) -> None:
        """That has ended; not *done*: what it left counts as stored to, all of it.

        *running*: nobody waits for it any more, and it goes on by itself.
        """
        file = self.files.get(ino)
        if file is None or file.map is not fmap:
            return
        if file.left:
            self._take_what_was_left(file)
        if done:
            return
        if running:
            # Order: before this fsync is paid. What it protects later no msync of a client finds, and with
            # extents it only marks that: the next fsync flushes it.
            file.tell_taking(file.owed)
        if file.left:
            file.give_up(BlockingIOError("a fault is still being answered"))
        self.given_up += 1
        for mapping in file.mappings.values():
            if mapping.user and mapping.stores:
                for piece in mapping.pieces:
                    file.mark(piece)

    def give_up(self, look: Look, running: bool) -> None:
        """Nobody waits for *look*: all that it may find is dirty. *running*: it goes on by itself.

        What it protects meanwhile it also finds, and the next look takes that over (`_late`).
        """
        if self.files.get(look.ino) is look.file:
            if running:
                look.file.look = look
                look.file.tell_taking(look.file.owed)
            self._take_all(look)

    def _take_all(self, look: Look) -> None:
        self.given_up += 1
        for _, _, _, pieces, _ in look.work:
            for piece in pieces:
                look.file.mark(piece)

    def _found(self, file: File, look: Look) -> None:
        self.pages += look.found.pages
        if look.work:  # else all its mappings are the handler's
            self.look_times.add(look.ns)
            self.look_pages.add(look.found.pages)
        try:
            look.found.mark(file.map)
        except (OSError, MemoryError) as error:
            file.give_up(error)
        for mapping, _, _, _, doubts in look.work:
            for doubt in doubts:
                self._mark_around(mapping.file, doubt)
        for mapping, doubt in look.settled:
            if doubt in mapping.doubts:
                mapping.doubts.remove(doubt)
        for mapping in look.unsure:
            self.unsure += 1
            for piece in mapping.pieces:
                file.mark(piece)
        for mapping, piece in look.gone:
            self.gone += 1
            file.mark(piece)
            for part in [part for one in mapping.pieces if (part := one.part(piece.start, piece.end))]:
                self._cut(mapping, part, dirty=False)

    def snapshot(self) -> dict:
        """Counters for reports."""
        return {
            "mappings": len(self.mappings), "clients": len(self.processes),
            "files": sum(bool(file.mappings) for file in self.files.values()),
            "looks": self.looks, "pages_found": self.pages, "precise_fsyncs": self.precise,
            "given_up": self.given_up, "gone": self.gone, "ended": self.ended,
            "unsure": self.unsure,
            "look": self.look_times.snapshot(), "look_pages": self.look_pages.times("pages"),
            "handler": None if self.handler is None else self._handled(),
        }  # fmt: skip

    def _handled(self) -> dict:
        """What the handler did, as lists that JSON can hold."""
        found = self.handler.snapshot()
        rows = [{"kind": kind, "order": order, "result": result, "reason": reason, **row.snapshot()}
                for (kind, order, result, reason), row in self.handler.rows().items()]
        ns, pages = self.handler.writeback_times()
        return found | {"faults": rows, "threads": self.handler.threads, "writeback": ns.snapshot(),
                        "writeback_pages": pages.times("pages")}
