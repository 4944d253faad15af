# SPDX-License-Identifier: MIT
"""Requests that come close together, answered in one step of the trio loop.

A program that works on names waits for each reply and asks again a few µs later. Going to sleep in between
costs two turns of the trio loop (the read lock of pyfuse3's tasks changes hands, epoll is told again), more
than most handlers take. So with a native transport pyfuse3 gets, in place of the module trio, one whose
`wait_readable` first waits by itself for a while (`Transport.linger`), and whose Lock stays with the task
that has it. pyfuse3.asyncio changes trio for something else in the same way; pyfuse3 itself is as it was.

Limits: the trio thread. Nothing else in the loop waits for longer than it would anyway, but for what goes by
the clock: when another task can run, or trio's epoll has something, the loop gets its turn at once, and
otherwise after STREAK_NS.
"""

import time

import pyfuse3
import trio

# Also how long one wait lasts at most. Not shorter: a timer that is due before the next tick of the kernel
# has to be set in the hardware each time, which under a hypervisor costs 25 µs, half of a request.
STREAK_NS = 20_000_000
RELAYED, CALLED = 1, 2  # what `Transport.linger` has seen


def loops_epoll() -> int:
    """The epoll descriptor of the running trio loop, -1 where it can't be found: trio has no name for it."""
    try:
        return trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager._epoll.fileno()
    except AttributeError:
        return -1


class _ReadLock:
    """Whose turn it is to read. Given back, it is free: not the next one's at once, as trio.Lock is.

    So the task that has answered can take it again. If that task sleeps instead (a handler that waits),
    `hand_over` after its step wakes the next one.
    """

    def __init__(self, streak: "Streak"):
        self.streak, self.held, self.queue = streak, False, trio.lowlevel.ParkingLot()
        streak.locks.append(self)

    async def __aenter__(self):
        while self.held:
            await self.queue.park()
        self.held = True

    async def __aexit__(self, *_exc):
        self.held = False
        if self.streak.transport is None:
            self.queue.unpark()

    def hand_over(self) -> None:
        if not self.held and self.queue:
            self.queue.unpark()


class _Lowlevel:
    """trio.lowlevel, but for how one waits."""

    def __init__(self, streak: "Streak"):
        self.wait_readable = streak.wait_readable

    def __getattr__(self, name: str):
        return getattr(trio.lowlevel, name)


class Streak(trio.abc.Instrument):
    """What stands between pyfuse3 and trio: as a context manager, and in effect from `begin` to `end`.

    Hands pyfuse3's replies on as well: at the latest at the end of the task step that wrote them.
    """

    def __init__(self):
        self.transport = None
        self.locks: list[_ReadLock] = []
        self.lowlevel = _Lowlevel(self)
        self.since = 0  # when the loop had its last turn, ns
        self.pyfuse3 = self.loop = -1  # descriptors: pyfuse3's end of the pair, trio's epoll
        self.runnable: set = set()  # tasks
        self.watch = None  # (task, function) of `watch_step`, while it has not slept

    def __getattr__(self, name: str):
        return getattr(trio, name)

    def Lock(self) -> _ReadLock:
        return _ReadLock(self)

    def __enter__(self) -> "Streak":
        pyfuse3.trio = self
        return self

    def __exit__(self, *_exc) -> None:
        pyfuse3.trio = trio

    def begin(self, transport) -> None:
        self.transport, self.loop = transport, loops_epoll()
        trio.lowlevel.add_instrument(self)

    def end(self) -> None:
        self.transport.pump()
        trio.lowlevel.remove_instrument(self)
        self.transport = None
        for lock in self.locks:
            lock.hand_over()

    # -- trio's instrument -------------------------------------------------------------------

    def task_scheduled(self, task) -> None:
        self.runnable.add(task)

    def before_task_step(self, task) -> None:
        self.runnable.discard(task)

    def after_task_step(self, task) -> None:
        self.transport.pump()
        if self.watch is not None and self.watch[0] is task:
            (_, sleeps), self.watch = self.watch, None
            sleeps()
        for lock in self.locks:
            lock.hand_over()

    def watch_step(self, task, sleeps) -> None:
        """What *task*, which runs, does until `watched` is to be one step. Where it is not, *sleeps* is
        called, once *task* has gone to sleep.
        """
        self.watch = task, sleeps

    def watched(self) -> bool:
        """Whether it was one step."""
        one, self.watch = self.watch is not None, None
        return one

    # -- waiting -----------------------------------------------------------------------------

    def goes_on(self, wanted: int) -> bool:
        """True: *wanted* (RELAYED, CALLED) is there by now, and nothing else, so that the loop need not turn.

        Hands pyfuse3's replies on first.
        """
        if self.loop < 0 or self.runnable or time.perf_counter_ns() - self.since > STREAK_NS:
            self.transport.pump()
            return False
        return self.transport.linger(self.pyfuse3, self.loop, STREAK_NS) == wanted

    async def wait_readable(self, descriptor) -> None:
        """What pyfuse3 calls before it reads its next request."""
        self.pyfuse3 = descriptor
        if self.transport is None or not self.goes_on(RELAYED):
            await trio.lowlevel.wait_readable(descriptor)
            self.since = time.perf_counter_ns()

    async def wait_calls(self) -> None:
        """Until there are calls, or the transport has ended."""
        if not self.goes_on(CALLED):
            await trio.lowlevel.wait_readable(self.transport.fileno())
            self.since = time.perf_counter_ns()
