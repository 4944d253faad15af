# SPDX-License-Identifier: MIT
"""The daemon's half of observed mappings (docs/fault.md): clients' ioctls, looks before fsync, clients' ends.

The process that asks is the one of the FUSE request; what it says of its addresses is checked in its /proc.
All that waits for a process's mmap lock is done in other threads and not waited for beyond a time, since that
process may wait for us. Looks and changes of one inode's mappings take turns (`_turn`).

Limits: trio. The numbers are those of native/observe_abi.h; a test compares.
"""

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import resource
import struct
import threading
from collections import Counter

import trio

from .._flush import FLUSH_KINDS, GRANULARITIES
from .._fsync import LOOK, PYTHON, FsyncRun
from .._iomap import POISONED, FileMap
from ..errors import fail
from ..fault import _handler, _observe
from ..fault.observer import SLOTS, Descriptor, Look, Piece, Process, Progress
from ..layout import MAX_FILE_SIZE
from ..meta import own
from ..pfn import PAGE_SHIFT, PAGE_SIZE
from .aside import Aside

log = logging.getLogger(__name__)

VERSION, MODE_KERNEL, MODE_USER = 2, 1, 2
ABOUT, OBSERVE, FORGET = 0x8040DA00, 0xC040DA01, 0x4020DA02
ABOUT_OUT = struct.Struct("=6I2QiI2IQ")
OBSERVE_IO = struct.Struct("=2IiI5QiI")
OBSERVE_PTE, OBSERVE_PROGRESS = 1, 2  # flags of OBSERVE; the first with fault=user alone
FORGET_IN = struct.Struct("=3Q2I")
_ID_AT = 40  # of `id` in OBSERVE_IO
_PROT = 7  # PROT_READ | PROT_WRITE | PROT_EXEC
_PROT_WRITE = 2
_ADDRESSES = 1 << 56  # what a program can have on any machine
_UFFD = "anon_inode:[userfaultfd]"
_PIDFD_GETFD = 438  # the same number on all machines
PATIENCE = 5.0  # seconds for a look at all mappings of one file, and for a client's address space
_THREADS = 64  # looks and checks under way at one time
_QUIET = 60.0  # seconds between two lines about faults that found no storage

_libc = ctypes.CDLL(None, use_errno=True)


class Observing:
    """What one mount does for its clients. *operations*: Operations."""

    def __init__(self, operations):
        self.operations, self.observer = operations, operations.observer
        # A file system below that tracks stores needs no marks of ours. On fsdax they would be wrong, too: of
        # 2 MiB pages the kernel says that nobody stored to them once they were protected (docs/fault.md).
        pool = operations.fs.pool
        self.syncs = pool is not None and pool.syncs
        self.modes = MODE_KERNEL if _observe.available() and not self.syncs else 0
        if self.modes and _handler.available():
            self.modes |= MODE_USER
        # A client costs four descriptors, and its userfaultfds, four at most (native/handler.h); all of them
        # together a quarter of what we may have.
        self.observer.most_clients = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 32, 16)
        self.aside = Aside(_THREADS)
        self.turns: dict[int, trio.Lock] = {}
        self.waiting: Counter[int] = Counter()
        self.writing: set[FileMap] = set()  # whose handled mappings a thread is writing back
        self.nursery: trio.Nursery | None = None
        self.watched: dict[Process, trio.CancelScope] = {}
        operations.fs.poison.healed = self._healed
        medium = operations.fs.region.medium
        self.price = medium.profile.price() if medium else (0, 0, 0)

    # -- what clients ask ------------------------------------------------------------------

    def about(self, ino: int, pid: int) -> bytes:
        operations = self.operations
        fs, flush = operations.fs, operations.fs.region.flush
        generation = fs.inodes.read(ino).generation
        return ABOUT_OUT.pack(
            VERSION, operations.is_direct(ino), self.modes, FLUSH_KINDS.index(flush.kind),
            GRANULARITIES.index(fs.region.granularity), self.syncs,
            ino, generation, _our_pid(pid), 0, *self.price)  # fmt: skip

    async def observe(self, fh: int, pid: int, data: bytes) -> bytes:
        """The argument, with its id."""
        version, mode, uffd, prot, address, length, offset, _, flags, memfd, slot = OBSERVE_IO.unpack(data)
        handle = self._handle(fh)
        if version != VERSION or mode not in (MODE_KERNEL, MODE_USER) or prot & ~_PROT:
            raise fail(errno.EINVAL)
        user = mode == MODE_USER
        if (address | length | offset) % PAGE_SIZE or not length or uffd < (0 if user else -1):
            raise fail(errno.EINVAL)
        if flags & ~(OBSERVE_PROGRESS | (OBSERVE_PTE if user else 0)):
            raise fail(errno.EINVAL)
        if (not flags & OBSERVE_PROGRESS and (memfd or slot)) or memfd < 0 or slot >= SLOTS:
            raise fail(errno.EINVAL)
        if length > _ADDRESSES or address > _ADDRESSES - length or offset > MAX_FILE_SIZE - length:
            raise fail(errno.EINVAL)
        if not self.operations.is_direct(handle.ino) or not mode & self.modes:
            raise fail(errno.EOPNOTSUPP)
        if prot & _PROT_WRITE and handle.mode != os.O_RDWR:
            raise fail(errno.EACCES)
        piece = Piece(address, address + length, offset)
        async with self._turn(handle.ino):
            memfd = memfd if flags & OBSERVE_PROGRESS else -1
            process, copy = await self._checked(pid, handle.ino, piece, uffd, user, memfd)
            handle = self._handle(fh)
            handled = self._handling(handle.node, process, copy, piece, flags) if user else None
            number = self._observe(fh, handle, process, prot, piece, handled, slot)
        return data[:_ID_AT] + number.to_bytes(8, "little") + data[_ID_AT + 8 :]

    def _handle(self, fh: int):
        if self.operations.fs.shut:
            raise fail(errno.EIO)
        return self.operations.handles[fh]

    def _handling(self, node, process: Process, copy: "_Userfaultfd", piece: Piece, flags: int):
        """What has the handler answer the faults of a mapping, given its number."""
        observer = self.observer
        if observer.handler is None:
            observer.handler = _handler.FaultHandler(self.operations.files.dax)
            if self.nursery is not None:
                self.nursery.start_soon(self._tell_trouble)

        def begin(number: int) -> None:
            self._spoil()  # before another thread of the process faults there
            observer.handler.add(process.key, copy.take(), number, piece.start, piece.end - piece.start,
                                 piece.offset >> PAGE_SHIFT, node.map, not flags & OBSERVE_PTE, process.pid)

        return begin

    def _observe(self, fh: int, handle, process: Process, prot: int, piece: Piece, handled, slot: int) -> int:
        """The mapping's number. Without a suspension point."""
        operations, observer = self.operations, self.observer
        if not operations.is_direct(handle.ino):
            raise fail(errno.EOPNOTSUPP)
        known = observer.processes.get(process.pid)
        if known is not None and known is not process:
            observer.ends(known)  # it is another program now
        number = observer.observe(process, handle.ino, prot, piece, handled, slot)
        operations.server.opened(fh, 0)  # it is parked no more: the next user of it would have our promise
        if handle.plain and not operations.server.taken(fh):
            handle.plain = False
            observer.promised(handle.node)
        self._watch()
        return number

    async def _checked(self, pid: int, ino: int, piece: Piece, uffd: int, user: bool, memfd: int):
        """(the process that asks; *user*: a copy of its *uffd*), if the mapping is there as it says.

        ESRCH, EINVAL; EBUSY: it takes long.
        """
        while True:
            known = dict(self.observer.processes)
            where = pid, known, piece, self.operations.device, ino
            found = await self._in_thread(_check, *where, uffd, user, memfd)
            if found is None:
                raise fail(errno.EBUSY, f"process {pid}: its address space can't be looked at")
            # Else another thread of it was quicker, with another file, and the process is known by now.
            group = found[0].pid
            if self.observer.processes.get(group) is known.get(group):
                return found

    async def forget(self, fh: int, pid: int, data: bytes) -> None:
        number, address, length, dirty, pad = FORGET_IN.unpack(data)
        if pad or dirty > 1 or (address | length) % PAGE_SIZE or not length:
            raise fail(errno.EINVAL)
        if length > _ADDRESSES or address > _ADDRESSES - length:
            raise fail(errno.EINVAL)
        handle = self._handle(fh)
        async with self._turn(handle.ino):
            mapping = self.observer.mappings.get(number)
            if mapping is None or mapping.file.ino != handle.ino or mapping.process.pid != _group_of(pid):
                raise fail(errno.ENOENT)
            self.observer.forget(mapping, address, address + length, bool(dirty))
            self._watch()

    def _turn(self, ino: int) -> "_Turn":
        """One at a time looks at the mappings of an inode, or changes them."""
        return _Turn(self, ino)

    async def _in_thread(self, call, *args):
        """What it returns; None where it takes too long, or no thread is left. It goes on by itself."""
        return await self.aside.run(PATIENCE, call, *args)

    # -- fsync -----------------------------------------------------------------------------

    def looks_at(self, ino: int) -> bool:
        """Whether an fsync of *ino* has to wait for a look."""
        file = self.observer.files.get(ino)
        return file is not None and (bool(file.mappings) or file.left)

    async def fsync(self, fh: int, ino: int, datasync: bool, times: FsyncRun) -> None:
        """fsync of *ino*. Before it, what programs stored through its observed mappings becomes dirty;
        until it has succeeded their clients can see that we have it. *times*: of the fsync.
        """
        debt = self.observer.owe(ino)
        try:
            await self._before_fsync(ino, times)
            await self.operations.fsync(fh, datasync, times)
        except BaseException:
            self.observer.owes_still(ino, debt)
            raise
        self.observer.paid(debt)

    async def _before_fsync(self, ino: int, times: FsyncRun) -> None:
        if self.operations.fs.readonly or self.operations.fs.shut:
            return
        async with self._turn(ino):
            await self._write_back(ino, times)
            look = self.observer.look(ino, self.operations.device)
            if look is None:
                return
            busy = look.file.look is not None  # that one does not come back: nor would another one
            if not busy and look.work:
                await self._in_thread(Look.run, look)
            elif not busy:
                look.run()  # all mappings are the handler's: it waits for nobody
            times.lap(PYTHON)
            if look.done:
                if not busy:
                    times.absorb(look.times)
                self.observer.take(look)
                times.lap(LOOK)
                if look.work:
                    self.operations.ring.look(ino, look.found.pages, look.ns)
            else:
                self.observer.give_up(look, look.begun)
            self._watch()

    async def _write_back(self, ino: int, times: FsyncRun) -> None:
        """What was stored through mappings with fault=user."""
        fmap = self.observer.writes_back(ino)
        if fmap is None:
            return
        done, running = False, fmap in self.writing
        try:
            fmap.own.learn(fmap, 0, 0)  # so that the range has an address
            if not running:  # else that one does not come back: nor would another one
                theirs = await self._in_thread(self._write_back_now, fmap)
                done, running = theirs is not None, theirs is None
                times.lap(PYTHON)
                if done:
                    times.absorb(theirs)
        except OSError as error:
            log.warning("inode %d: %s", ino, error)
        self.observer.wrote_back(ino, fmap, done, running)

    def _write_back_now(self, fmap: FileMap) -> FsyncRun:
        """In a thread; where its time went."""
        self.writing.add(fmap)
        try:
            times = FsyncRun()
            self.observer.handler.write_back(fmap, times=times)
            return times
        finally:
            self.writing.discard(fmap)

    # -- poison, and no storage (fault=user) ----------------------------------------------------

    def _spoil(self) -> None:
        """Tell the handler which pages are poisoned."""
        observer, find = self.observer, self.operations.fs.poison.of_file
        if observer.handler is not None:
            observer.handler.spoil([(file.map, *piece) for file in observer.files.values()
                                    if file.map.state & POISONED for piece in find(file.node, 0, 1 << 40)])

    async def poisoned(self, ino: int, first: int, last: int) -> None:
        """The pages [first, last) are on the list now: no observed mapping shows them any more."""
        self._spoil()
        async with self._turn(ino):
            file = self.observer.files.get(ino)
            if file is None or self.observer.writes_back(ino) is None:
                return
            own.fold_times(self.operations.fs, file.node)
            await self._to_pages(self.observer.handler.displace, file.map, first, last)
            if self.observer.files.get(ino) is file:
                own.forget_times(self.operations.fs, ino)

    def _healed(self, ino: int, pieces) -> None:
        self._spoil()
        if self.nursery is not None and self.observer.writes_back(ino) is not None:
            self.nursery.start_soon(self._restore, ino, pieces)

    async def _restore(self, ino: int, pieces) -> None:
        async with self._turn(ino):
            for first, last in pieces:
                fmap = self.observer.writes_back(ino)
                if fmap is not None:
                    await self._to_pages(self.observer.handler.restore, fmap, first, last)

    async def _to_pages(self, call, fmap, first: int, last: int) -> None:
        try:
            fmap.own.learn(fmap, 0, 0)  # so that the range has an address
            await self._in_thread(call, fmap, first, min(last, fmap.own.pages))
        except OSError as error:
            log.warning("mappings of pages %d to %d of a file stay as they are: %s", first, last, error)

    async def _tell_trouble(self) -> None:
        """Log that programs get SIGBUS since there is no storage: a line, and the next one not soon."""
        handler = self.observer.handler
        while True:
            await trio.lowlevel.wait_readable(handler.told)
            count, number, code = handler.trouble()
            mapping = self.observer.mappings.get(number)
            log.warning("inode %d: no storage for %d faults of observed mappings (SIGBUS): %s",
                        mapping.file.ino if mapping else 0, count, os.strerror(code))
            await trio.sleep(_QUIET)

    # -- ends of clients -------------------------------------------------------------------

    async def serve(self) -> None:
        """See clients end, as long as the mount is served."""
        try:
            async with trio.open_nursery() as self.nursery:
                self._watch()
                await trio.sleep_forever()
        finally:
            if self.observer.handler is not None:
                # Its threads may wait for a client's mmap lock, and the client for its last request.
                with trio.move_on_after(PATIENCE, shield=True):
                    await trio.to_thread.run_sync(self.observer.handler.close, abandon_on_cancel=True)

    def _watch(self) -> None:
        """Watch just the processes that have mappings."""
        if self.nursery is None:
            return
        there = set(self.observer.processes.values())
        for process in [one for one in self.watched if one not in there]:
            self.watched.pop(process).cancel()
        for process in there - self.watched.keys():
            self.watched[process] = trio.CancelScope()
            self.nursery.start_soon(self._until_end, process, self.watched[process])

    async def _until_end(self, process: Process, scope: trio.CancelScope) -> None:
        with scope:
            await trio.lowlevel.wait_readable(process.pidfd.fd)
            # Not while somebody looks at its mappings: he finds that they are gone.
            for ino in {mapping.file.ino for mapping in process.mappings.values()}:
                async with self._turn(ino):
                    pass
            log.debug("process %d ended with %d observed mappings: their pages are dirty", process.pid,
                      len(process.mappings))
            self.watched.pop(process, None)
            self.observer.ends(process)


class _Turn:
    """Around what is done in turn. It waits for others alone: who finds it free makes no step of trio's."""

    __slots__ = ("ino", "lock", "observing")

    def __init__(self, observing: Observing, ino: int):
        self.observing, self.ino = observing, ino

    async def __aenter__(self) -> None:
        turns, waiting = self.observing.turns, self.observing.waiting
        self.lock = turns.get(self.ino) or turns.setdefault(self.ino, trio.Lock())
        waiting[self.ino] += 1
        try:
            try:
                self.lock.acquire_nowait()
            except trio.WouldBlock:
                await self.lock.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *_exc) -> None:
        self.lock.release()
        self._leave()

    def _leave(self) -> None:
        waiting = self.observing.waiting
        waiting[self.ino] -= 1
        if not waiting[self.ino]:
            del waiting[self.ino], self.observing.turns[self.ino]


# -- in other threads ------------------------------------------------------------------------


def _group_of(pid: int) -> int:
    """The process of a thread. ESRCH."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # with its name, which may be any bytes
            for line in file:
                if line.startswith(b"Tgid:"):
                    return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    raise fail(errno.ESRCH, f"process {pid} is not there, or not visible from here")


def _our_pid(pid: int) -> int:
    """As the process *pid* knows us; 0 where its pid name space is another one."""
    try:
        ours, theirs = (os.stat(f"/proc/{one}/ns/pid") for one in ("self", pid))
    except OSError:
        return 0
    return os.getpid() if (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino) else 0


def _check(pid: int, known: dict[int, Process], piece: Piece, device: int, ino: int, uffd: int, user: bool,
           memfd: int):  # fmt: skip
    """(the process of thread *pid*, of the *known* ones or a new one; *user*: a copy of *uffd*), if it has
    *piece* of that file mapped, registered for asynchronous write protection or, *user*, not for that. Its
    ``progress`` is a copy of *memfd* then, unless that is -1. ESRCH, EINVAL.
    """
    group = _group_of(pid)
    where = piece.start, piece.end, piece.offset, device, ino
    process = known.get(group)
    if process is None or _observe.span(process.maps.fd, *where) is None:
        process = _meet(group, pid)
        if _observe.span(process.maps.fd, *where) is None:
            raise fail(errno.EINVAL, "the addresses do not show the file there, or not shared")
    if _is_async(process, piece) == user:
        raise fail(errno.EINVAL, "not registered as that mode of faults needs it")
    if memfd >= 0 and process.progress is None:
        process.progress = _copy_progress(pid, memfd)
    return process, _copy_uffd(pid, uffd, user) if uffd >= 0 else None


def _is_async(process: Process, piece: Piece) -> bool:
    """Whether all of *piece* is registered for asynchronous write protection."""
    try:
        # Looked at, not protected: a first store to what is not mapped yet shall map huge pages.
        _observe.Found().scan(process.pagemap.fd, piece.start, piece.end, piece.start, piece.offset, False)
    except OSError as error:
        if error.errno == errno.EPERM:
            return False
        raise
    return True


def _meet(group: int, pid: int) -> Process:
    """What we need of the process *group*, by its thread *pid*, which waits for us. ESRCH."""
    try:
        # By the thread: the first one of the process may have ended.
        maps = Descriptor(os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC))
        pagemap = Descriptor(os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC))
        return Process(group, Descriptor(os.pidfd_open(group)), maps, pagemap)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        raise fail(errno.ESRCH, f"process {pid} can't be looked at") from None


class _Userfaultfd:
    """A copy of a client's. To close the last one waits for the client's mmap lock: a thread does it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int):
        self.fd = fd

    def take(self) -> int:
        """Somebody else closes it."""
        fd, self.fd = self.fd, -1
        return fd

    def __del__(self):
        if self.fd >= 0:
            threading.Thread(target=os.close, args=(self.fd,), daemon=True).start()


@contextlib.contextmanager
def _copied(pid: int, number: int):
    """Descriptor *number* of the thread *pid*, for a while. EINVAL where it is none.

    Whatever file that is: to close it may wait for whoever serves its file system. So it is closed here,
    before an exception takes this frame along to the thread that serves the mount.
    """
    thread = Descriptor(os.pidfd_open(pid, os.O_EXCL))  # PIDFD_THREAD: threads may have other descriptors
    fd = _libc.syscall(_PIDFD_GETFD, thread.fd, number, 0)
    if fd < 0:
        raise fail(errno.EINVAL, f"descriptor {number}: {os.strerror(ctypes.get_errno())}")
    try:
        yield fd
    finally:
        os.close(fd)


def _copy_progress(pid: int, number: int) -> Progress:
    """The memfd that is descriptor *number* of the thread *pid*. EINVAL unless it can be reached at any time
    from now on: no other file has seals; one of huge pages could not be unmapped as it was mapped.
    """
    with _copied(pid, number) as fd:
        try:
            sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
            if sealed and os.fstatvfs(fd).f_bsize == PAGE_SIZE:
                return Progress(fd)
        except (OSError, ValueError) as error:  # ValueError: it is too short
            raise fail(errno.EINVAL, f"descriptor {number}: {error}") from None
    raise fail(errno.EINVAL, f"descriptor {number} is no memfd that is sealed against shrinking")


def _copy_uffd(pid: int, number: int, keep: bool) -> _Userfaultfd | None:
    """The userfaultfd that is descriptor *number* of the thread *pid*, to *keep*. EINVAL where it is none."""
    with _copied(pid, number) as fd:
        if os.readlink(f"/proc/self/fd/{fd}") != _UFFD:
            raise fail(errno.EINVAL, f"descriptor {number} is no userfaultfd")
        return _Userfaultfd(os.dup(fd)) if keep else None
