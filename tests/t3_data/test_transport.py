# SPDX-License-Identifier: MIT
"""The transport's threads with a socket pair for the kernel: what goes where, and that all of it ends.

/dev/fuse keeps messages apart and answers one write with one message; so does SOCK_SEQPACKET.
"""

import errno
import os
import select
import socket
import struct
import threading
import time

import pytest
import rawmsg as R
from servekit import Served

from daxfs.data._trace import FAULTS, REQUESTS
from daxfs.data._transport import Transport

OUT = struct.Struct("<IiQ")
SIZE = 1 << 18


class Wire:
    """A transport between ``kernel`` (our end of its /dev/fuse) and ``pyfuse3`` (our end of the pair)."""

    def __init__(self, served, open_flags: int = 0):
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        (self.kernel, self.device), (self.pyfuse3, self.ours) = pairs
        for one in (*pairs[0], *pairs[1]):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * SIZE)
            one.settimeout(10)
        # The transport's own ends block, as the descriptors that it has on a mount do.
        self.device.settimeout(None)
        self.ours.settimeout(None)
        self.transport = Transport(served.server, "dev", self.device.fileno(), self.ours.fileno(), SIZE,
                                   open_flags=open_flags)
        self.transport.start()

    def ask(self, raw: bytes) -> tuple[int, bytes]:
        """(error, payload) of the reply to one request."""
        self.kernel.send(raw)
        return self.reply()

    def reply(self) -> tuple[int, bytes]:
        got = self.kernel.recv(2 * SIZE)
        length, error, self.unique = OUT.unpack_from(got)
        assert length == len(got)
        return error, got[OUT.size :]

    def answer(self, payload: bytes = b"", error: int = 0, unique: int = 2) -> None:
        """As pyfuse3 does."""
        self.pyfuse3.send(OUT.pack(OUT.size + len(payload), error, unique) + payload)
        self.transport.pump()

    def call(self):
        """The next call; waits for it."""
        assert select.select([self.transport.fileno()], [], [], 10)[0], "no call"
        while (call := self.transport.next_call()) is None:
            time.sleep(0.001)
        return call

    def quiet(self) -> bool:
        return not select.select([self.kernel, self.pyfuse3, self.transport.fileno()], [], [], 0.1)[0]

    def close(self) -> None:
        self.transport.stop()
        for one in (self.kernel, self.device, self.pyfuse3, self.ours):
            one.close()


@pytest.fixture
def served(kit):
    return Served(kit.io())


@pytest.fixture
def wire(served):
    wire = Wire(served)
    yield wire
    wire.close()


def numbered(raw: bytes, unique: int) -> bytes:
    return raw[:8] + struct.pack("<Q", unique) + raw[16:]


def test_reads_and_writes_are_answered_by_the_thread(served, wire):
    f = served.open(size=100_000)
    want = f.read(0, 70_000)[2]
    assert wire.ask(R.read(f.ino, f.fh, 0, 70_000)) == (0, want)  # in pieces of the region
    assert wire.ask(R.read(f.ino, f.fh, 99_000, 5000)) == (0, f.read(99_000, 5000)[2])
    served.io.write(f.node, 0, b"now plain")
    served.fs.journal.settle()
    assert wire.ask(R.write(f.ino, f.fh, 10, b"overwritten")) == (0, struct.pack("<II", 11, 0))
    assert wire.ask(R.read(f.ino, f.fh, 10, 11)) == (0, b"overwritten")
    counts = wire.transport.counts()["operations"]
    assert counts["read"].count == 3 and counts["write"].count == 1


def test_linger_hands_on_and_says_what_is_there(wire):
    loop, ours = socket.socketpair()
    with loop, ours:
        fds = wire.pyfuse3.fileno(), loop.fileno()
        began = time.monotonic()
        assert wire.transport.linger(*fds, 50_000_000) == 0 and time.monotonic() - began > 0.04
        wire.kernel.send(R.message("lookup", 1, b"name\0", unique=8))
        assert wire.transport.linger(*fds, 900_000_000) == 1
        wire.kernel.send(R.message("statx", 1, bytes(24), unique=10))
        assert wire.transport.linger(-1, -1, 900_000_000) == 2
        ours.send(b"x")
        assert wire.transport.linger(*fds, 900_000_000) == 7
        wire.pyfuse3.recv(SIZE)
        wire.pyfuse3.send(OUT.pack(OUT.size + 5, 0, 8) + b"entry")
        assert wire.transport.linger(-1, loop.fileno(), 1) == 6
        assert wire.reply() == (0, b"entry") and wire.unique == 8
        wire.call().reply(errno.EIO)
        assert wire.reply()[0] == -errno.EIO


def test_the_trio_thread_goes_where_requests_come_from(served):
    """Only while it lingers, only after some in a row, and only to a CPU that it may use."""
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        pytest.skip("one CPU")
    os.sched_setaffinity(0, {max(cpus)})
    try:
        wire = Wire(served)  # its thread stays there
    finally:
        os.sched_setaffinity(0, cpus)
    places = []
    try:
        for may in (cpus, cpus - {max(cpus)}):
            os.sched_setaffinity(0, may)
            for unique in range(2, 14, 2):
                wire.kernel.send(R.message("lookup", 1, b"name\0", unique=unique))
                wire.pyfuse3.recv(SIZE)
                wire.pyfuse3.send(OUT.pack(OUT.size, 0, unique))
                assert wire.transport.linger(-1, -1, 1) == 0
                places.append(os.sched_getaffinity(0))
            wire.transport.pump()
            assert os.sched_getaffinity(0) == may
    finally:
        os.sched_setaffinity(0, cpus)
        wire.close()
    assert places == [cpus] * 3 + [{max(cpus)}] * 3 + [cpus - {max(cpus)}] * 6


def test_what_pyfuse3_answers_goes_through_the_pair(wire):
    raw = R.message("lookup", 1, b"name\0", unique=8)
    wire.kernel.send(raw)
    assert wire.pyfuse3.recv(SIZE) == raw
    wire.answer(b"entry", unique=8)
    assert wire.reply() == (0, b"entry") and wire.unique == 8
    assert wire.transport.pending == 0


def test_errors_of_pyfuse3_and_replies_to_nothing(wire):
    wire.kernel.send(R.message("lookup", 1, b"name\0", unique=8))
    wire.pyfuse3.recv(SIZE)
    wire.answer(b"nobody asked", unique=10)
    wire.pyfuse3.send(b"short")
    wire.answer(error=-errno.ENOENT, unique=8)
    assert wire.reply() == (-errno.ENOENT, b"")
    wire.answer(unique=8)  # twice
    assert wire.quiet()


def test_notifications_go_to_the_kernel(wire):
    wire.answer(b"inval inode", error=2, unique=0)
    assert wire.reply() == (2, b"inval inode") and wire.unique == 0


def test_forget_is_relayed_and_gets_no_reply(wire):
    raw = R.message("forget", 1, struct.pack("<Q", 1))
    wire.kernel.send(raw)
    assert wire.pyfuse3.recv(SIZE) == raw
    assert wire.quiet() and wire.transport.pending == 0


def test_open_flags_are_added(served):
    wire = Wire(served, open_flags=1 << 6)
    try:
        for op, body, before in (("open", struct.pack("<II", 2, 0), 0),
                                 ("create", struct.pack("<IIII", 2, 0o100644, 0, 0) + b"n\0", 128)):
            wire.kernel.send(R.message(op, 1, body))
            wire.pyfuse3.recv(SIZE)
            wire.answer(bytes(before) + struct.pack("<QII", 5, 1, 0))
            assert wire.reply() == (0, bytes(before) + struct.pack("<QII", 5, 1 | 1 << 6, 0))
    finally:
        wire.close()


def test_calls_are_answered_from_python(served, wire):
    f = served.open()
    wire.kernel.send(R.write(f.ino, f.fh, 0, b"needs blocks"))
    call = wire.call()
    assert (call.opcode, call.nodeid, call.unique) == (16, f.ino, 2)
    assert bytes(call.data) == b"needs blocks" and call.arg == R.write(f.ino, f.fh, 0, b"needs blocks")[40:80]
    call.reply(0, (b"in ", b"pieces"))
    assert wire.reply() == (0, b"in pieces")
    with pytest.raises(RuntimeError):
        call.reply(0)
    with pytest.raises(ValueError):
        bytes(call.data)  # gone with the request
    assert wire.transport.next_call() is None and wire.transport.pending == 0


def test_an_errno_of_a_call(served, wire):
    f = served.open()
    wire.kernel.send(R.write(f.ino, f.fh, 0, b"needs blocks"))
    wire.call().reply(errno.ENOSPC)
    assert wire.reply() == (-errno.ENOSPC, b"")


def test_interrupt_reaches_the_call_and_no_other(served, wire):
    f = served.open()
    for unique in (20, 22):
        wire.kernel.send(numbered(R.write(f.ino, f.fh, 0, b"needs blocks"), unique))
    first, second = wire.call(), wire.call()
    wire.kernel.send(R.message("interrupt", 0, struct.pack("<Q", second.unique), unique=23))
    deadline = time.monotonic() + 10
    while not second.interrupted:
        assert time.monotonic() < deadline
    assert not first.interrupted
    wire.kernel.send(R.message("interrupt", 0, struct.pack("<Q", 4711), unique=25))  # answered long ago
    second.reply(errno.EINTR)
    assert wire.reply() == (-errno.EINTR, b"")
    first.reply(0, (b"done",))
    assert wire.reply() == (0, b"done")
    assert wire.transport.next_call() is None and wire.quiet()


def test_many_calls_at_once_each_get_their_own_reply(served, wire):
    f = served.open()
    for n in range(50):
        wire.kernel.send(numbered(R.write(f.ino, f.fh, 0, b"%d" % n), 2 * n + 2))
    calls = [wire.call() for _ in range(50)]
    assert wire.transport.pending == 50
    for call in reversed(calls):
        call.reply(0, (bytes(call.data),))
    got = {}
    for _ in range(50):
        error, payload = wire.reply()
        got[wire.unique] = (error, payload)
    assert got == {2 * n + 2: (0, b"%d" % n) for n in range(50)}


def test_malformed_requests_get_an_errno_and_nobody_else_sees_them(wire):
    assert wire.ask(R.message("lookup", 1, b"no end"))[0] == -errno.EINVAL
    assert wire.ask(R.message(63, 1))[0] == -errno.ENOSYS
    assert wire.ask(R.read(1, 0xDEAD, 0, 10))[0] < 0
    wire.kernel.send(b"not even a header")
    wire.kernel.send(R.message("forget", 1, b""))
    assert wire.quiet()
    assert wire.transport.counts()["malformed"] >= 2


def test_the_end_of_the_kernel_is_told(wire):
    assert wire.transport.ended is None
    wire.kernel.close()
    assert select.select([wire.transport.fileno()], [], [], 10)[0]
    assert wire.transport.ended == "a thread of the transport failed: " + os.strerror(errno.EPIPE)
    assert wire.transport.next_call() is None


def test_stop_ends_threads_that_wait_and_may_be_called_twice(served):
    before = threading.active_count(), len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        wire = Wire(served)
        wire.kernel.send(R.message("lookup", 1, b"name\0"))
        wire.close()
        wire.transport.stop()
        del wire
    after = threading.active_count(), len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
    assert after == before


def test_a_thread_that_can_t_begin_leaves_no_other(served):
    """The second one needs a clone of the descriptor, which a socket does not give."""
    before = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    ends = [end for pair in pairs for end in pair]
    transport = Transport(served.server, "dev", pairs[0][0].fileno(), pairs[1][0].fileno(), SIZE, threads=3)
    with pytest.raises(OSError, match="the transport dev can't be started: Invalid argument"):
        transport.start()
    assert len(os.listdir("/proc/self/task")) == before[0]
    del transport
    for end in ends:
        end.close()
    assert len(os.listdir("/proc/self/fd")) == before[1]


def test_a_call_that_is_never_answered_does_no_harm(served):
    wire = Wire(served)
    f = served.open()
    wire.kernel.send(R.write(f.ino, f.fh, 0, b"needs blocks"))
    call = wire.call()
    wire.close()
    assert call.opcode == 16
    del wire, call


def test_trace_tells_requests_and_replies(served, wire):
    f = served.open(size=5000)
    wire.ask(R.read(f.ino, f.fh, 0, 10))
    ring = served.io.dax.trace
    assert ring.read() == []
    ring.keep(REQUESTS)
    wire.ask(R.read(f.ino, f.fh, 0, 10, unique=4))
    wire.kernel.send(R.message("lookup", 1, b"name\0", unique=8))
    wire.pyfuse3.recv(SIZE)
    wire.answer(b"entry", unique=8)
    wire.reply()
    kinds, until = [], time.monotonic() + 10
    while (1, 1, 8) not in kinds and time.monotonic() < until:  # a reply is told of once it is sent
        kinds += [struct.unpack_from("<QIIQ", event)[1:] for event in ring.read()]
    kinds = [kind for kind in kinds if kind[2] != 2]  # of the one before: that it is sent may be told as late
    assert kinds == [(0, 15, 4), (1, 15, 4), (0, 1, 8), (1, 1, 8)]
    ring.keep(FAULTS)
    wire.ask(R.read(f.ino, f.fh, 0, 10))
    assert ring.read() == []
