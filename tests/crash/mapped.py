# SPDX-License-Identifier: MIT
"""Stores through observed mappings in the crash engine: the client, and the daemon's half as fuse/ does it.

This process is its own client. The mapping is real (of the range's file, registered with userfaultfd), and so
are its page table, the scans and, with fault=user, the handler that answers its faults. What stands in is
libdaxfs, which needs a mount for its ioctls: `Client.write_back` has its steps and their order. A client's
bytes go to the log as SCAN events, its flushes and drains as the daemon's do, but from a thread of its own:
to the persistence model it is another CPU, and its drain makes nothing of the daemon's durable.

Limits: one client with one mapping for each file; pages of 4 KiB. `Observing` has no turns and no threads.
"""

import ctypes
import errno
import fcntl
import os
import struct
import time
from concurrent.futures import Future, ThreadPoolExecutor

import flush_table
import uffd

from daxfs.data.file_io import FileIo
from daxfs.fault import _handler, _observe
from daxfs.fault.observer import Descriptor, Observer, Piece, Process
from daxfs.layout import range_name

from .content import PAGE, noise
from .tree import fail

ROOM = 64 * PAGE  # of a mapping: files may grow under it
COMMON = ("wp_hugetlbfs_shmem", "wp_unpopulated")
FEATURES = {"kernel": (*COMMON, "wp_async"), "user": (*COMMON, "missing_shmem", "minor_shmem", "poison")}
MODES = {"kernel": uffd.WP, "user": uffd.MISSING | uffd.MINOR | uffd.WP}
_PAGEMAP_SCAN = 0xC0606610
_WRITTEN, _PRESENT, _SWAPPED = 2, 8, 16


def available() -> bool:
    """Whether this kernel has what these tests need, and we may use it."""
    try:
        os.close(uffd.create(*FEATURES["user"]))
    except OSError:
        return False
    return _observe.available() and _handler.available()


class Mapped:
    """One mapping: ``node``, ``fd`` of the range's file, ``address``, ``number`` of the observer."""

    def __init__(self, fs, node):
        inode = fs.inodes.read(node.ino)
        name = range_name(node.ino, inode.generation)
        self.node, self.number = node, 0
        self.fd = os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=fs.pool.dir_fd)
        self.mapping = uffd.Mapping(self.fd, ROOM)
        self.address = self.mapping.address

    @property
    def piece(self) -> Piece:
        return Piece(self.address, self.address + ROOM, 0)

    def place(self) -> int:
        """The region's byte at which the daemon has byte 0 of the range: where the log says that it is."""
        own = self.node.map.own
        own.reach(self.node.map, own.pages)
        return own.pfn * PAGE

    def close(self) -> None:
        self.mapping.close()
        os.close(self.fd)


class Client:
    """A program with observed mappings, and the one thread that touches them. *io*: an `Observing`."""

    def __init__(self, io: "Observing"):
        self.io, self.region = io, io.fs.region
        self.maps: dict[int, Mapped] = {}
        self.process: Process | None = None
        self.uffd = -1
        self.thread = ThreadPoolExecutor(1)
        self.racing: Future | None = None

    def _settled(self) -> None:
        """Nothing is being answered: the store may be made before the handler has unlocked its entry."""
        handler = self.io.observer.handler
        while handler is not None and handler.snapshot()["busy"]:
            time.sleep(0.0001)

    def _starts(self) -> None:
        files = (Descriptor(os.open(f"/proc/self/{name}", os.O_RDONLY | os.O_CLOEXEC))
                 for name in ("maps", "pagemap"))
        self.process = Process(os.getpid(), Descriptor(os.pidfd_open(os.getpid())), *files)
        self.uffd = uffd.create(*FEATURES[self.io.fault])

    def map(self, node) -> None:
        if self.process is None:
            self._starts()
        one = Mapped(self.io.fs, node)
        uffd.register(self.uffd, one.address, ROOM, MODES[self.io.fault])
        one.number = self.io.observe(self.process, node, one.piece, self.uffd)
        self.maps[node.ino] = one

    def load(self, one: Mapped, pos: int) -> int:
        return self.thread.submit(lambda: one.mapping.buffer[pos]).result()

    def store(self, one: Mapped, pos: int, data: bytes) -> Future:
        """The store is made, and in the log, when what is returned is done."""
        return self.thread.submit(self._store, one, one.place(), pos, data)

    def _store(self, one: Mapped, place: int, pos: int, data: bytes) -> None:
        ctypes.memmove(one.address + pos, data, len(data))  # without the GIL
        recorder = self.region.recorder
        if recorder is not None:
            recorder.scan(place + pos, data)

    def msync(self, one: Mapped, pos: int = 0, length: int = ROOM) -> None:
        first, last = pos // PAGE, min(-(-(pos + length) // PAGE), one.node.map.own.pages)
        if first < last:
            self.thread.submit(self.write_back, one, one.place(), first, last).result()

    def write_back(self, one: Mapped, place: int, first: int, last: int) -> None:
        """daxfs/client/client.c: write_back."""
        for at, pages in self._scan(one, first, last):
            self.region.flush_range(place + at * PAGE, pages * PAGE)
        # Orders what was found before the reply to who called msync.
        self.region.drain()

    def _scan(self, one: Mapped, first: int, last: int) -> list[tuple[int, int]]:
        """Runs of pages that were stored to, protected from now on."""
        start, end = one.address + first * PAGE, one.address + last * PAGE
        pagemap = self.process.pagemap.fd
        if self.io.fault == "kernel":
            found = _observe.Found()
            found.scan(pagemap, start, end, one.address, 0)
            return found.runs()
        runs = [((low - one.address) // PAGE, (high - low) // PAGE)
                for low, high in written(pagemap, start, end)]
        for at, pages in runs:
            uffd.protect(self.uffd, one.address + at * PAGE, pages * PAGE)
        return runs

    def persist(self, one: Mapped, pos: int, length: int) -> None:
        self.thread.submit(self._persist, one.place() + pos, length).result()

    def _persist(self, place: int, length: int) -> None:
        self.region.flush_range(place, length)
        # Orders these bytes before the reply.
        self.region.drain()

    def unmap(self, ino: int) -> None:
        """daxfs_unmap: write back, FORGET, munmap, close."""
        one = self.maps[ino]
        self.msync(one)
        self._settled()
        observer = self.io.observer
        observer.forget(observer.mappings[one.number], one.address, one.address + ROOM, False)
        uffd.unregister(self.uffd, one.address, ROOM)
        self.maps.pop(ino).close()
        if not self.maps:
            self._ended()

    def _ended(self) -> None:
        os.close(self.uffd)
        self.process, self.uffd = None, -1

    def killed(self) -> None:
        """kill -9: the daemon hears of it. Handles are the caller's."""
        self._settled()
        for one in self.maps.values():
            one.close()
        self.maps.clear()
        process = self.process
        if process is not None:
            self._ended()
            self.io.observer.ends(process)

    def close(self) -> None:
        self.killed()
        self.thread.shutdown()


def written(pagemap: int, start: int, end: int) -> list[tuple[int, int]]:
    """[(first, last) address] of what a page table says was stored to; nothing is protected by it."""
    room = 4 * ROOM // PAGE
    vector = (ctypes.c_uint64 * (3 * room))()
    ask = struct.pack("=12Q", 96, 0, start, end, 0, ctypes.addressof(vector), room, 0,
                      0, _WRITTEN, _PRESENT | _SWAPPED, _WRITTEN)
    count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, bytearray(ask))
    return [(vector[3 * n], vector[3 * n + 1]) for n in range(count)]


class Observing(FileIo):
    """A data path with the daemon's half of observed mappings: fuse/observing.py and fuse/direct.py."""

    def __init__(self, fs, fault: str, **policies):
        super().__init__(fs, **policies)
        self.fault, self.observer = fault, Observer(self.dax.persist)
        self.client = Client(self)

    def opened(self, node) -> None:
        super().opened(node)
        if node.opens == 1 and node.map.own is not None:
            self.observer.begin(node)

    def release(self, node) -> None:
        if node.opens == 1:
            self.observer.end(node)
        super().release(node)

    def observe(self, process: Process, node, piece: Piece, fd: int) -> int:
        """OBSERVE on a handle that was opened for that."""
        observer, handled = self.observer, None
        observer.expect(node)
        if self.fault == "user":
            if observer.handler is None:
                observer.handler = _handler.FaultHandler(self.dax, 1)

            def handled(number: int) -> None:
                observer.handler.add(process.key, os.dup(fd), number, piece.start, ROOM, 0, node.map)

        number = observer.observe(process, node.ino, 3, piece, handled)
        observer.promised(node)
        return number

    def fsync(self, node) -> int:
        self.before_fsync(node)
        return self.flush(node)

    def flush(self, node) -> int:
        return super().fsync(node)

    def before_fsync(self, node) -> None:
        fmap = self.observer.writes_back(node.ino)
        if fmap is not None:
            fmap.own.learn(fmap, 0, 0)  # so that the range has an address
            self.observer.handler.write_back(fmap)
            self.observer.wrote_back(node.ino, fmap, True)
        one = self.client.maps.get(node.ino)
        shown = os.fstat(one.fd) if one else None
        look = self.observer.look(node.ino, shown.st_dev if one else 0)
        if look is not None:
            look.ino = shown.st_ino  # no mount here: the mapping shows the range itself
            look.run()
            look.ino = node.ino
            self.observer.take(look)

    def close(self) -> None:
        self.client.close()
        if self.observer.handler is not None:
            self.observer.handler.close()


class MappedVfs:
    """The operations with mappings; Vfs (vfs.py) has the others, and ``io``, an Observing, ``held``."""

    def _mapped(self, path: str) -> Mapped:
        one = self.io.client.maps.get(self._file(path).ino)
        if one is None:
            raise fail(errno.EBADF)
        return one

    def _at(self, path: str, pos: int, length: int) -> Mapped:
        one = self._mapped(path)
        if pos + length > -(-one.node.map.size // PAGE) * PAGE:
            raise fail(errno.EFAULT)  # stands for SIGBUS
        return one

    def _map(self, path):
        ino = self._file(path).ino
        if ino in self.io.client.maps:
            raise fail(errno.EBUSY)
        node = self._opened(ino)
        if node.map.own is None:
            self.io.release(node)
            raise fail(errno.EOPNOTSUPP)
        self.held.append(node)
        self.io.client.map(node)

    def _mload(self, path, pos):
        self.io.client.load(self._at(path, pos, 1), pos)

    def _mstore(self, path, pos, length, seed):
        self.io.client.store(self._at(path, pos, length), pos, noise(length, seed)).result()

    def _mflush(self, path, pos, length):
        self.io.client.msync(self._mapped(path), pos, length)

    def _mpersist(self, path, pos, length):
        self.io.client.persist(self._at(path, pos, length), pos, length)

    def _munmap(self, path):
        node = self._mapped(path).node
        self.io.client.unmap(node.ino)
        self._closed(node)

    def _killed(self):
        nodes = [one.node for one in self.io.client.maps.values()]
        if not nodes:
            raise fail(errno.ESRCH)
        self.io.client.killed()
        for node in nodes:
            self._closed(node)

    def _closed(self, node) -> None:
        self.held.remove(node)
        self.io.release(node)
        self._gone.append(node.ino)

    def _fsync_racing(self, path, pos, length, seed):
        """An fsync in which the client stores once more, when the first lines of the range were flushed.

        Where that page is being written back with fault=user, the store waits until that is over.
        """
        one, client = self._at(path, pos, length), self.io.client
        table, future = flush_table.table_of(self.fs.region.flush), None
        real = flush_table.function(table, "flush")

        def flush(ops, address, count):
            nonlocal future
            real(ops, address, count)
            if future is None and low <= address < low + ROOM:
                future = client.racing = client.thread.submit(client._store, one, place, pos, data)
                if self.io.fault == "kernel":
                    future.result()

        place, data = one.place(), noise(length, seed)
        with self.fs.region.table:
            low, _ = self.fs.region.direct_access(one.node.map.own.pfn)
        with flush_table.replaced(table, flush=flush):
            node = self._opened(one.node.ino)
            self.io.fsync(node)
            self.io.release(node)
        (future or client.thread.submit(client._store, one, place, pos, data)).result()

    def finish(self) -> None:
        """The mappings go, and what answers their faults."""
        if isinstance(self.io, Observing):
            self.io.close()
