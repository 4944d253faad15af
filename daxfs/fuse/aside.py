# SPDX-License-Identifier: MIT
"""Threads for what may wait for a client, kept from one time to the next, so that to use one costs little.

`Aside.run` has a thread call a function. Most are done within some 10 µs. So the trio thread first waits for
that by itself, AT_ONCE_NS at most, and lets other tasks run after that alone: to put a task to sleep and to
wake it by way of trio's loop costs more than all the rest. And the thread is told to run on the CPU that the
trio thread keeps to (native/transport.h), which is free while that one waits: to wake a thread on another CPU
takes an interrupt there, and one back.

Limits: `run` belongs to the trio thread. What was begun goes on by itself when nobody waits for it any more.
"""

import contextlib
import threading

import trio

from ..fault._baton import Baton

AT_ONCE_NS = 1_000_000  # for which nothing else of the trio thread's runs
SPARE = 4  # threads that are kept


class _Job:
    """A function that a thread calls, and what came of it."""

    __slots__ = ("args", "call", "ended", "error", "told", "value")

    def __init__(self, call, args):
        self.call, self.args, self.value, self.error = call, args, None, None
        self.ended = False
        self.told = None  # what is called when it has ended

    def result(self):
        error, self.error = self.error, None  # no cycle: its frames go with it
        if error is None:
            return self.value
        try:
            raise error
        finally:
            del error


class _Thread(threading.Thread):
    """One of them. *idle*, *every*: lists that it keeps itself in."""

    def __init__(self, idle: list["_Thread"], every: set["_Thread"]):
        super().__init__(name="aside", daemon=True)
        self.idle, self.every, self.job, self.home = idle, every, None, None
        self.baton = Baton()
        self.start()

    def run(self) -> None:
        self.baton.take()
        while self._work():
            self.baton.end_and_take()
        self.baton.end()

    def _work(self) -> bool:
        """What was given. Whether there may be more."""
        job = self.job
        try:
            job.value = job.call(*job.args)
        except BaseException as error:  # whoever waits for it raises it
            job.error = error
        self.job = job.call = job.args = None  # nothing of it is kept until the next one
        stays = len(self.idle) < SPARE
        # Order: before it has ended. Who has waited finds this thread, not a new one.
        if stays:
            self.idle.append(self)
        else:
            self.every.discard(self)
        job.ended = True
        # Order: after `ended`. Who tells us, and then finds that it has not, will be told.
        if job.told is not None:
            with contextlib.suppress(trio.RunFinishedError):
                job.told()
        return stays


class Aside:
    """At most *most* threads. ``transport``: a started `Transport`, beside whose caller they run, or None."""

    def __init__(self, most: int):
        self.most = most
        self.every: set[_Thread] = set()
        self.idle: list[_Thread] = []
        self.transport = None

    def _thread(self) -> _Thread | None:
        """One that has nothing to do. None: all are in use."""
        try:
            thread = self.idle.pop()
        except IndexError:
            if len(self.every) >= self.most:
                return None
            thread = _Thread(self.idle, self.every)
            self.every.add(thread)
        # A new one has the CPUs of this thread, which may keep to one.
        if self.transport is not None and self.transport.home != thread.home:
            thread.home = self.transport.home
            self.transport.place(thread.native_id, True)
        return thread

    async def run(self, patience: float, call, *args):
        """What *call* returns or raises; None where it takes more seconds than *patience*, or no thread is
        left. No checkpoint of trio's where it is done at once.
        """
        thread = self._thread()
        if thread is None:
            return None
        thread.job = job = _Job(call, args)
        if thread.baton.give(AT_ONCE_NS):
            return job.result()
        told, token = trio.Event(), trio.lowlevel.current_trio_token()
        job.told = lambda: token.run_sync_soon(told.set)
        # Order: `told` before this look.
        if job.ended:
            return job.result()
        if self.transport is not None and thread.job is job:
            thread.home = -1
            self.transport.place(thread.native_id, False)  # it may take long: not on one CPU
        with trio.move_on_after(patience):
            await told.wait()
            return job.result()
        return None
