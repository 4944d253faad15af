# SPDX-License-Identifier: MIT
"""Starts worker.c and talks to it: the process whose stores and fsyncs are timed, compiled, on one CPU.

Limits: needs cc; one command at a time, from one thread.
"""

import errno
import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from daxfs import client
from lab.plan import CellError, CellFailed, HostError


class WorkerError(CellError):
    """The worker's call failed: its words, and ``errno``."""

    def __init__(self, text: str, errno: int):
        super().__init__(text)
        self.errno = errno


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    # With the pid, so that what a killed run left can be told (rigs.py).
    return tempfile.TemporaryDirectory(prefix=f"daxfs-lab-{os.getpid()}-")


@functools.cache
def program(name: str = "worker") -> Path:
    """*name*.c of this folder, compiled, which goes with this process. HostError where it can't be."""
    cc = shutil.which("cc")
    if cc is None:
        raise HostError("no C compiler (cc), which makes the program that is timed: apt install gcc")
    made = Path(_folder().name) / name
    source = Path(__file__).with_name(f"{name}.c")
    done = subprocess.run([cc, "-O2", "-Wall", "-Wextra", "-o", made, source, "-I", client.get_include(),
                           client.LIBRARY, f"-Wl,-rpath,{client.LIBRARY.parent}"],
                          check=False, capture_output=True, text=True)
    if done.returncode:
        raise HostError(f"cc can't compile {source.name}: {done.stderr.strip()[:300]}")
    return made


class WorkerFailed(WorkerError, CellFailed):
    """It died, or was refused with EIO: daxfs failed."""


class Worker:
    """One worker process, on *cpu* (None: on any), started at the first command. A context manager.

    One that died, of SIGBUS for example, is followed by another.
    """

    def __init__(self, cpu: int | None = 0):
        self.cpu = cpu
        self._process: subprocess.Popen | None = None

    def _start(self) -> subprocess.Popen:
        # A session of its own: Ctrl-C is for us, who end it by closing its stdin.
        made = subprocess.Popen([program()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                start_new_session=True)
        if self.cpu is not None:
            os.sched_setaffinity(made.pid, {self.cpu})
        return made

    def ask(self, *words) -> dict:
        """The answer to a command. WorkerError where it failed; WorkerFailed: so that the run has to end."""
        self._process = self._process or self._start()
        try:
            self._process.stdin.write(" ".join(map(str, words)) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer.endswith("\n"):
            status = self._end()
            raise WorkerFailed(f"the worker ended with status {status} at {words[0]}", 0)
        found = json.loads(answer)
        if "error" in found:
            failed = WorkerFailed if found["errno"] == errno.EIO else WorkerError
            raise failed(found["error"], found["errno"])
        return found

    def run(self, call: str, pattern: str, dirty: int, count: int, seconds: float, seed: int,
            places: str = "new") -> dict:
        """``store_ns`` and ``ns`` of each turn, ``lines`` and ``drains``: worker.c `run`."""
        return self.ask("run", call, pattern, dirty, count, int(seconds * 1e9), seed, places)

    def _end(self) -> int:
        process, self._process = self._process, None
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has died with a command unread
        status = process.wait()
        process.stdout.close()
        return status

    def close(self) -> None:
        """End it. Its files are closed then. May be called twice."""
        if self._process is not None:
            self._end()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()
