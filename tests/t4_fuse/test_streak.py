# SPDX-License-Identifier: MIT
"""Requests that come close together: when a streak goes on, when the trio loop gets its turn, and whose turn
it is to read."""

import os
import socket
import threading
import time

import mounts
import pyfuse3
import pytest
import trio
import trio.testing

from daxfs.fuse import streak as module
from daxfs.fuse.streak import CALLED, RELAYED, Streak


class Transport:
    """Only what Streak asks of it: requests are bytes on a socket."""

    ended = None

    def __init__(self):
        self.theirs, self.ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.calls = os.eventfd(0, os.EFD_NONBLOCK)
        self.seen, self.pumped, self.lingered = RELAYED, 0, 0

    def fileno(self) -> int:
        return self.calls

    def pump(self) -> None:
        self.pumped += 1

    def linger(self, _pyfuse3, loop, _ns) -> int:
        assert os.readlink(f"/proc/self/fd/{loop}") == "anon_inode:[eventpoll]"
        self.lingered += 1
        return self.seen

    def close(self) -> None:
        os.close(self.calls)
        self.theirs.close()
        self.ours.close()


@pytest.fixture
def stand_in():
    stand_in = Transport()
    yield stand_in
    stand_in.close()


def in_trio(stand_in, test) -> None:
    """``await test(streak)`` while a Streak is in effect."""
    async def main():
        with Streak() as streak:
            streak.begin(stand_in)
            try:
                with trio.fail_after(5):
                    await test(streak)
            finally:
                streak.end()

    trio.run(main)
    assert pyfuse3.trio is trio


def test_trio_still_has_its_epoll_where_we_look_for_it():
    async def main():
        return os.readlink(f"/proc/self/fd/{module.loops_epoll()}")

    assert trio.run(main) == "anon_inode:[eventpoll]"
    assert module.loops_epoll() == -1


def test_a_request_that_is_there_is_read_at_once(stand_in):
    async def test(streak):
        streak.since = since = time.perf_counter_ns()
        stand_in.ours.send(b"request")
        await pyfuse3.trio.lowlevel.wait_readable(stand_in.theirs.fileno())
        assert (stand_in.lingered, streak.since) == (1, since)
        assert streak.pyfuse3 == stand_in.theirs.fileno()

    in_trio(stand_in, test)


@pytest.mark.parametrize("seen", [0, RELAYED | CALLED, RELAYED | 4])
def test_the_loop_turns_where_there_is_anything_else(stand_in, seen):
    async def test(streak):
        stand_in.seen, streak.since = seen, (since := time.perf_counter_ns())
        stand_in.ours.send(b"request")
        await streak.wait_readable(stand_in.theirs.fileno())
        assert stand_in.lingered == 1 and streak.since > since

    in_trio(stand_in, test)


def test_a_task_that_can_run_does(stand_in):
    """And the wait does not even begin."""
    async def test(streak):
        ran = []

        async def other():
            ran.append(1)

        streak.since = time.perf_counter_ns()
        stand_in.ours.send(b"request")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await streak.wait_readable(stand_in.theirs.fileno())
            assert not stand_in.lingered
        assert ran

    in_trio(stand_in, test)


def test_a_streak_ends(stand_in, monkeypatch):
    """After its time trio has its turn, so that what goes by the clock is not late for ever."""
    async def test(streak):
        late = []

        async def sleeper():
            await trio.sleep(0.01)
            late.append(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleeper)
            stand_in.ours.send(b"request")
            end = time.monotonic() + 4
            while not late and time.monotonic() < end:
                await streak.wait_readable(stand_in.theirs.fileno())
        assert late and stand_in.lingered > 10

    monkeypatch.setattr(module, "STREAK_NS", 5_000_000)
    in_trio(stand_in, test)


def test_calls_go_on_too(stand_in):
    async def test(streak):
        stand_in.seen, streak.since = CALLED, time.perf_counter_ns()
        await streak.wait_calls()
        assert stand_in.lingered == 1
        streak.since = 0
        os.eventfd_write(stand_in.calls, 1)
        await streak.wait_calls()
        assert stand_in.lingered == 1 and streak.since

    in_trio(stand_in, test)


def test_the_reader_that_sleeps_hands_over(stand_in):
    """As pyfuse3's tasks do it: one handler waits (ENOSPC), so the next task must read."""
    async def test(streak):
        lock, order, go_on = pyfuse3.trio.Lock(), [], trio.Event()

        async def worker(name):
            for _ in range(2):
                async with lock:
                    order.append(name)
                if name == "first":
                    await go_on.wait()

        async with trio.open_nursery() as nursery:
            async with lock:
                nursery.start_soon(worker, "first")
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(worker, "second")
                await trio.testing.wait_all_tasks_blocked()
                assert not order
            await trio.testing.wait_all_tasks_blocked()
            assert order == ["first", "second", "second"]  # who does not sleep keeps its turn
            go_on.set()
        assert order == ["first", "second", "second", "first"]

    in_trio(stand_in, test)


@pytest.mark.parametrize("parked", [1, 3])
def test_nobody_is_left_waiting_for_the_lock_at_the_end(stand_in, parked):
    """`end` comes while tasks wait; from then on each wakes the next."""
    done = []

    async def reader(lock):
        async with lock:
            done.append(1)

    async def main():
        with Streak() as streak, trio.fail_after(5):
            lock = pyfuse3.trio.Lock()
            streak.begin(stand_in)
            async with trio.open_nursery() as nursery:
                async with lock:
                    for _ in range(parked):
                        nursery.start_soon(reader, lock)
                    await trio.testing.wait_all_tasks_blocked()
                    streak.end()

    trio.run(main)
    assert len(done) == parked


@pytest.mark.mount
@pytest.mark.transports
def test_a_mount_under_steady_load_answers_others(mount_factory):
    """The control socket has its turn, and the daemon keeps to no CPU afterwards."""
    region = mount_factory()
    stop, asked = threading.Event(), []

    def ask():
        while not stop.is_set():
            assert not os.path.lexists(region.path / f"absent-{len(asked)}")
            asked.append(1)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        began = len(asked)
        for _ in range(5):
            assert region.stat()["pid"] == region.pid
        assert len(asked) > began
    finally:
        stop.set()
        thread.join()
    deadline = time.monotonic() + 10
    while os.sched_getaffinity(region.pid) != os.sched_getaffinity(0):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert mounts.mounts_of(region.path)
