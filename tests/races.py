# SPDX-License-Identifier: MIT
"""Stores of other processes against write-backs, in process: none is lost. For tests and tools/races.py.

Each child maps a file's range, hands its userfaultfd over and counts in words of its own, on random lines. A
round writes back as fast as it can meanwhile. What a flush saw when it was called is what media would have
(`media`). After each write-back every word there is at least what the file had before it; after the last
store and one more write-back media and file are the same.

Limits: a flush that comes before its store, but after the store to another word of its line, would not show
in that word alone: the counts of all words of all lines are looked at, so it shows at the end.
"""

import ctypes
import os
import random
import signal
import socket
import time
from typing import NamedTuple

import flush_table
import numpy as np
import uffd

from daxfs import layout as L
from daxfs.fault._handler import FaultHandler
from daxfs.fault.observer import Descriptor, Observer, Piece, Process
from daxfs.meta import namespace

PAGE = 4096
SIZE = 4 << 20
CHILDREN = 2
COMMON = ("wp_hugetlbfs_shmem", "wp_unpopulated")
FEATURES = {"user": (*COMMON, "minor_shmem", "missing_shmem", "poison"), "kernel": (*COMMON, "wp_async")}
MODES = {"user": uffd.MISSING | uffd.MINOR | uffd.WP, "kernel": uffd.WP}


class Seen(NamedTuple):
    """What a round did."""

    write_backs: int
    pages: int
    stores: int


class Lost(AssertionError):
    """A store that no write-back has seen."""


def available(fault: str) -> bool:
    try:
        os.close(uffd.create(*FEATURES[fault]))
    except OSError:
        return False
    return True


def child(path: str, number: int, pipe: socket.socket, seed: int, fault: str) -> None:
    """Map, hand the userfaultfd over, store until SIGTERM; say how often, stay mapped. Never returns."""
    status = 1
    try:
        file = os.open(path, os.O_RDWR)
        mapping = uffd.Mapping(file, SIZE)
        fd = uffd.create(*FEATURES[fault])
        uffd.register(fd, mapping.address, SIZE, MODES[fault])
        stop = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
        socket.send_fds(pipe, [mapping.address.to_bytes(8, "little")], [fd])
        pipe.recv(1)
        words = (ctypes.c_uint64 * (SIZE // 8)).from_address(mapping.address)
        rng, count = random.Random(seed), 0
        while not stop:
            count += 1
            page = rng.randrange(SIZE // PAGE) if count % 3 else 600
            words[page * 512 + rng.randrange(64) * 8 + number] = count
        pipe.send(count.to_bytes(8, "little"))
        pipe.recv(1)
        status = 0
    finally:
        os._exit(status)


class _Children:
    """The processes that store."""

    def __init__(self, path: str, seed: int, fault: str):
        self.running: list[tuple[int, socket.socket]] = []
        self.path, self.seed, self.fault = path, seed, fault

    def start(self):
        """Yield (pid, number, address, userfaultfd) of each; it stores once the next is asked for."""
        for number in range(CHILDREN):
            ours, theirs = socket.socketpair()
            pid = os.fork()
            if not pid:
                ours.close()
                child(self.path, number, theirs, self.seed + number, self.fault)
            self.running.append((pid, ours))
            theirs.close()
            ours.settimeout(60)
            address, (fd,), *_ = socket.recv_fds(ours, 8, 1)
            yield pid, number, int.from_bytes(address, "little"), fd
            ours.send(b"x")

    def stop(self) -> int:
        """They store no more, and have it mapped. The stores of all."""
        for pid, _ in self.running:
            os.kill(pid, signal.SIGTERM)
        return sum(int.from_bytes(pipe.recv(8), "little") for _, pipe in self.running)

    def end(self, how: int = 0) -> None:
        """By the signal *how*, or by themselves."""
        for pid, pipe in self.running:
            if how:
                os.kill(pid, how)
            pipe.close()
            _, status = os.waitpid(pid, 0)
            if status not in (0, signal.SIGKILL):
                raise AssertionError(f"a process that stores ended with {status}")
        self.running = []


class UserDaemon:
    """The daemon's side with fault=user."""

    def __init__(self, io, node, pmd: bool):
        self.node, self.pmd, self.handler = node, pmd, FaultHandler(io.dax, 2)

    def add(self, pid: int, number: int, address: int, fd: int) -> None:
        self.handler.add(pid, fd, number + 1, address, SIZE, 0, self.node.map, self.pmd)

    def write_back(self) -> int:
        return self.handler.write_back(self.node.map)

    def ended(self) -> None:
        """Nothing: its marks are the handler's."""

    def close(self) -> None:
        self.handler.close()


class KernelDaemon:
    """The same with fault=kernel."""

    def __init__(self, io, node, path: str):
        self.io, self.node, self.observer = io, node, Observer(io.dax.persist)
        self.below = os.stat(path)
        self.observer.begin(node)
        self.processes: list[Process] = []

    def add(self, pid: int, number: int, address: int, fd: int) -> None:
        os.close(fd)
        files = (Descriptor(os.open(f"/proc/{pid}/{name}", os.O_RDONLY)) for name in ("maps", "pagemap"))
        self.processes.append(Process(pid, Descriptor(os.pidfd_open(pid)), *files))
        self.observer.observe(self.processes[-1], self.node.ino, 3, Piece(address, address + SIZE, 0))

    def write_back(self) -> int:
        look = self.observer.look(self.node.ino, self.below.st_dev)
        if look is not None:
            look.ino = self.below.st_ino  # no mount here: the mapping shows the range itself
            look.run()
            look.ino = self.node.ino
            self.observer.take(look)
        return self.io.dax.writeback(self.node.map)

    def ended(self) -> None:
        for process in self.processes:
            self.observer.ends(process)

    def close(self) -> None:
        self.observer.end(self.node)


def a_round(io, fault: str, seed: int, seconds: float, pmd: bool = True, killed: bool = False) -> Seen:
    """One round on a new file of *io*. *killed*: the children are, by SIGKILL, in the middle of a store."""
    inode = namespace.create(io.fs, 1, f"race{seed}".encode(), 0o100644, namespace.Creds(0, 0))
    node = io.fs.open(inode.ino)
    io.opened(node)
    io.write(node, 0, bytes(SIZE))
    io.fsync(node)
    name = L.range_name(inode.ino, inode.generation)
    path = os.path.join(io.fs.region.sources[0].path, L.RANGES_NAME, name)
    daemon = UserDaemon(io, node, pmd) if fault == "user" else KernelDaemon(io, node, path)
    children = _Children(path, seed, fault)
    try:
        for facts in children.start():
            daemon.add(*facts)
        seen = _write_back(io, node, path, daemon, children, seconds, killed)
    finally:
        children.end(signal.SIGKILL)
        daemon.close()
        io.release(node)
    namespace.unlink(io.fs, 1, f"race{seed}".encode())
    return seen


def _write_back(io, node, path: str, daemon, children, seconds: float, killed: bool) -> Seen:
    media = np.zeros(SIZE // 8, np.uint64)
    raw = memoryview(media).cast("B")
    with io.fs.region.table:
        base, _ = io.fs.region.direct_access(node.map.own.pfn)
    table = flush_table.table_of(io.fs.region.flush)
    real = flush_table.function(table, "flush")

    def flush(ops, address, length):
        if base <= address < base + SIZE:
            raw[address - base : address - base + length] = ctypes.string_at(address, length)
        real(ops, address, length)

    shown = np.memmap(path, np.uint64, "r", shape=SIZE // 8)
    begin, rounds, pages, stores = time.monotonic(), 0, 0, 0
    with flush_table.replaced(table, flush=flush):
        # Longer where the machine is so busy that the children have hardly run yet, or we have not.
        while (took := time.monotonic() - begin) < seconds or (took < 60 and (rounds <= 3 or pages <= 1000)):
            before = shown.copy()
            pages += daemon.write_back()
            rounds += 1
            _compare(media, before, media < before, f"write-back {rounds}")
        if killed:
            children.end(signal.SIGKILL)
            daemon.ended()
        else:
            stores = children.stop()
        pages += daemon.write_back()
    _compare(media, shown, media != shown, "the last write-back")
    if not media.any():
        raise AssertionError("nobody stored")
    return Seen(rounds + 1, pages, stores)


def _compare(media, due, wrong, when: str) -> None:
    lost = np.flatnonzero(wrong)
    if len(lost):
        at = int(lost[0])
        raise Lost(f"{when}: {len(lost)} words are not on media, the first at {at * 8:#x}: "
                   f"{int(media[at])}, should be {int(due[at])}")
