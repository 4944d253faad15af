# SPDX-License-Identifier: MIT
"""Holds a client and the daemon that answers it on CPUs of their own, or on one.

On which CPU a thread is woken decides more than what it does there, and the scheduler need not choose alike.
Limits: threads that the daemon starts later stay where the one that starts them is.
"""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def held(pid: int | None, client: set[int], daemon: set[int]) -> Iterator[None]:
    """What this thread starts meanwhile is on *client*, threads of process *pid* (None: no) on *daemon*."""
    before = os.sched_getaffinity(0)
    tasks = [int(task) for task in os.listdir(f"/proc/{pid}/task")] if pid else []
    _place(tasks, daemon)
    os.sched_setaffinity(0, client)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        _place(tasks, before)


def _place(tasks: list[int], cpus: set[int]) -> None:
    for task in tasks:
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            os.sched_setaffinity(task, cpus)
