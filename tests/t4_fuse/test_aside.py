# SPDX-License-Identifier: MIT
"""Threads that are kept (fuse/aside.py); calls of which one sleeps while it is answered (fuse/relay.py)."""

import errno
import os
import random
import threading
import time
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from daxfs.fault._baton import Baton
from daxfs.fuse import aside as module
from daxfs.fuse import calls
from daxfs.fuse.aside import SPARE, Aside
from daxfs.fuse.relay import Relay
from daxfs.fuse.streak import Streak

PATIENCE = 30


@pytest.fixture
def patient(monkeypatch):
    """A slow machine is waited for: what ends by itself is done at once."""
    monkeypatch.setattr(module, "AT_ONCE_NS", 20_000_000_000)


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE_NS", 1000)


def in_trio(test, most=64):
    async def main():
        with trio.fail_after(60):
            return await test(Aside(most))

    return trio.run(main)


def test_what_is_done_at_once_is_one_step(patient):
    async def test(aside):
        here, threads = threading.get_ident(), set()
        with trio.testing.assert_no_checkpoints():
            for n in range(100):
                said = await aside.run(PATIENCE, lambda n=n: (n, threading.get_ident()))
                threads.add(said[1])
                assert said[0] == n
        assert len(threads) == 1 and here not in threads

    in_trio(test)


@pytest.mark.parametrize("slow", [False, True])
def test_what_it_raises_is_raised(slow, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE_NS", 1000 if slow else 20_000_000_000)

    def fails():
        time.sleep(0.05 * slow)
        raise OSError(errno.EIO, "planted")

    async def test(aside):
        with pytest.raises(OSError, match="planted"):
            await aside.run(PATIENCE, fails)
        assert await aside.run(PATIENCE, int, "7") == 7

    in_trio(test)


def test_others_run_beside_what_takes_longer(hasty):
    async def test(aside):
        go_on, ran = threading.Event(), []

        async def other():
            ran.append(1)
            go_on.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            assert await aside.run(PATIENCE, go_on.wait)  # for ever, if `other` did not run
        assert ran

    in_trio(test)


def test_nobody_waits_beyond_patience_and_it_goes_on(hasty):
    async def test(aside):
        go_on, ended = threading.Event(), threading.Event()

        def slow():
            go_on.wait()
            ended.set()
            return 1

        assert await aside.run(0.05, slow) is None
        assert await aside.run(PATIENCE, lambda: 2) == 2  # by another thread
        assert not ended.is_set()
        go_on.set()
        assert ended.wait(30)
        for n in range(50):
            assert await aside.run(PATIENCE, lambda n=n: n) == n  # the late one told nobody anything

    in_trio(test)


def test_no_more_threads_than_allowed_and_a_few_are_kept(hasty):
    async def test(aside):
        go_on, took = threading.Event(), []

        async def one():
            took.append(await aside.run(PATIENCE, go_on.wait))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
            assert len(aside.every) == 10 and await aside.run(PATIENCE, int) is None
            go_on.set()
        assert took == [True] * 10
        deadline = time.monotonic() + 30
        while len(aside.every) > SPARE and time.monotonic() < deadline:
            await trio.sleep(0.01)
        assert SPARE <= len(aside.every) < 10
        assert await aside.run(PATIENCE, int, "7") == 7

    in_trio(test, most=10)


def test_each_result_is_its_own_whenever_it_comes(monkeypatch):
    """Around the moment when the trio thread stops to wait."""
    monkeypatch.setattr(module, "AT_ONCE_NS", 50_000)
    rng = random.Random(1)

    def work(n, spins):
        for _ in range(spins):
            pass
        return n

    async def test(aside):
        for n in range(3000):
            assert await aside.run(PATIENCE, work, n, rng.choice((0, 100, 1000, 2000, 3000))) == n
        assert len(aside.every) <= SPARE  # one at a time: an idle one was found

    in_trio(test)


def test_what_ends_just_when_the_waiting_does_is_not_waited_for(monkeypatch):
    """Then nobody would tell: the thread has looked whether it shall."""
    class Late:
        def __init__(self):
            self.baton = Baton()
            self.take, self.end, self.end_and_take = self.baton.take, self.baton.end, self.baton.end_and_take

        def give(self, _ns):
            assert self.baton.give(30_000_000_000)
            return False

    monkeypatch.setattr(module, "Baton", Late)

    async def test(aside):
        assert [await aside.run(2, int, n) for n in ("7", "8")] == [7, 8]

    in_trio(test)


class Homes:
    """Only what Aside asks of a Transport."""

    def __init__(self):
        self.home, self.placed = -1, []

    def place(self, tid, there):
        assert os.path.exists(f"/proc/self/task/{tid}")
        self.placed.append((tid, there))


def test_a_thread_follows_the_trio_thread_until_it_takes_long(monkeypatch):
    homes = Homes()

    async def test(aside):
        aside.transport = homes
        monkeypatch.setattr(module, "AT_ONCE_NS", 20_000_000_000)
        thread = await aside.run(PATIENCE, threading.get_native_id)
        assert homes.placed == [(thread, True)]  # it began with those CPUs that its parent had
        assert await aside.run(PATIENCE, int) == 0 and len(homes.placed) == 1
        homes.home = 1
        for _ in range(3):
            assert await aside.run(PATIENCE, int) == 0
        assert homes.placed[1:] == [(thread, True)]
        monkeypatch.setattr(module, "AT_ONCE_NS", 1000)
        await aside.run(PATIENCE, time.sleep, 0.05)
        assert homes.placed[2:] == [(thread, False)]
        monkeypatch.setattr(module, "AT_ONCE_NS", 20_000_000_000)
        assert await aside.run(PATIENCE, int) == 0
        assert homes.placed[3:] == [(thread, True)]

    in_trio(test)


def test_a_baton_loses_no_turn():
    """Given before the last one has ended, too: as many are taken as were given."""
    baton, taken, stop = Baton(), [], []

    def work():
        baton.take()
        while not stop:
            taken.append(1)
            if len(taken) % 7 == 0:
                time.sleep(0.0002)
            baton.end_and_take()
        baton.end()

    thread = threading.Thread(target=work)
    thread.start()
    late = 0
    for n in range(20000):
        if not baton.give(100_000 if n % 2 else 30_000_000_000):
            late += 1
            assert baton.give(30_000_000_000)
    stop.append(1)
    assert baton.give(30_000_000_000)
    thread.join(30)
    assert not thread.is_alive() and len(taken) == 20000 + late


class Calls:
    """Only what Relay and Streak ask of a Transport: calls by number, and which replies there were."""

    def __init__(self, count):
        self.left, self.replied, self.ended = list(range(count)), [], None
        self.event = os.eventfd(1, os.EFD_NONBLOCK)

    def fileno(self):
        return self.event

    def pump(self):
        pass

    def linger(self, *_):
        return 0

    def next_call(self):
        if self.left:
            number = self.left.pop(0)
            return SimpleNamespace(number=number, opcode=0, reply=lambda *how: self.said(number, *how))
        os.eventfd_read(self.event)
        return None

    def said(self, number, error, pieces):
        self.replied.append((number, error, list(pieces)))


def test_who_sleeps_while_he_answers_holds_nobody_up(monkeypatch):
    there, go_on, parked = Calls(6), trio.Event(), []

    async def run(_operations, call):
        if call.number % 2:
            await go_on.wait()
        if call.number == 4:
            raise OSError(errno.ENOSPC, "planted")
        return (b"%d" % call.number,)

    async def test(_aside):
        operations = SimpleNamespace(begins_parking=lambda: parked.append(1))
        with Streak() as streak:
            async with trio.open_nursery() as nursery:
                why = []
                nursery.start_soon(Relay(there, operations, streak).serve, why.append)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert [number for number, *_ in there.replied] == [0, 2, 4] and parked
                go_on.set()
                await trio.testing.wait_all_tasks_blocked(0.01)
                there.left = [6, 8]
                os.eventfd_write(there.event, 1)
                await trio.testing.wait_all_tasks_blocked(0.01)
                there.ended = "umount"
                os.eventfd_write(there.event, 1)
            assert why == ["umount"]

    monkeypatch.setattr(calls, "run", run)
    in_trio(test)
    os.close(there.event)
    assert sorted(there.replied) == [(n, errno.ENOSPC * (n == 4), [b"%d" % n] * (n != 4))
                                     for n in (0, 1, 2, 3, 4, 5, 6, 8)]
