# SPDX-License-Identifier: MIT
"""Threads for what may wait for a client, kept from one time to the next, so that to use one costs little.

`Aside.run` has a thread call a function. Most are done within some 10 µs. So the trio thread first waits for
that by itself, AT_ONCE at most, and lets other tasks run after that alone: to put a task to sleep and to
wake it by way of trio's loop costs more than all the rest. And the thread is told to run on the CPU that the
trio thread keeps to (native/transport.h), which is free while that one waits: to wake a thread on another CPU
takes an interrupt there, and one back.

Limits: `run` belongs to the trio thread. What was begun goes on by itself when nobody waits for it any more.
"""

import contextlib
import threading

import trio

AT_ONCE = 0.001  # seconds for which nothing else of the trio thread's runs
SPARE = 4  # threads that are kept


class _Job:
    """A function that a thread calls, and what came of it. ``done``: free once that is there."""

    __slots__ = ("args", "call", "done", "error", "told", "value")

    def __init__(self, call, args):
        self.call, self.args, self.value, self.error, self.told = call, args, None, None, None
        self.done = threading.Lock()
        self.done.acquire()

    def result(self):
        error, self.error = self.error, None  # no cycle: its frames go with it
        if error is None:
            return self.value
        try:
            raise error
        finally:
            del error


class _Thread(threading.Thread):
    """One of them."""

    def __init__(self, idle: list["_Thread"], all_: set["_Thread"]):
        super().__init__(name="aside", daemon=True)
        self.idle, self.all, self.job, self.home = idle, all_, None, None
        self.begin = threading.Lock()
        self.begin.acquire()
        self.start()

    def run(self) -> None:
        while True:
            self.begin.acquire()
            job = self.job
            try:
                job.value = job.call(*job.args)
            except BaseException as error:  # whoever waits for it raises it
                job.error = error
            self.job = job.call = job.args = None  # nothing of it is kept until the next one
            # Order: idle before done. Who has waited finds this thread, not a new one.
            stays = len(self.idle) < SPARE
            if stays:
                self.idle.append(self)
            else:
                self.all.discard(self)
            # Order: done before the look at `told`. Who tells us and finds it not done yet will be told.
            job.done.release()
            if job.told is not None:
                with contextlib.suppress(trio.RunFinishedError):
                    job.told()
            del job
            if not stays:
                return


class Aside:
    """At most *most* threads. ``transport``: a started `Transport`, beside whose caller they run, or None."""

    def __init__(self, most: int):
        self.most = most
        self.all: set[_Thread] = set()
        self.idle: list[_Thread] = []
        self.transport = None

    def _begin(self, call, args) -> tuple[_Thread, _Job] | None:
        """None: all threads are in use."""
        try:
            thread = self.idle.pop()
        except IndexError:
            if len(self.all) >= self.most:
                return None
            thread = _Thread(self.idle, self.all)
            self.all.add(thread)
        # A new one has the CPUs of this thread, which may keep to one.
        if self.transport is not None and self.transport.home != thread.home:
            thread.home = self.transport.home
            self.transport.place(thread.native_id, True)
        thread.job = job = _Job(call, args)
        thread.begin.release()
        return thread, job

    async def run(self, patience: float, call, *args):
        """What *call* returns or raises; None where it takes more seconds than *patience*, or no thread is
        left. No checkpoint of trio's where it is done at once.
        """
        begun = self._begin(call, args)
        if begun is None:
            return None
        thread, job = begun
        if job.done.acquire(timeout=AT_ONCE):
            return job.result()
        told, token = trio.Event(), trio.lowlevel.current_trio_token()
        job.told = lambda: token.run_sync_soon(told.set)
        # Order: `told` before this look.
        if job.done.acquire(blocking=False):
            return job.result()
        if self.transport is not None and thread.job is job:
            thread.home = -1
            self.transport.place(thread.native_id, False)  # it may take long: not on one CPU
        with trio.move_on_after(patience):
            await told.wait()
            return job.result()
        return None
