# SPDX-License-Identifier: MIT
"""Starts worker.c and talks to it: the process whose stores and fsyncs are timed, compiled.

Limits: needs cc; one command at a time, from one thread.
"""

import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from daxfs import client
from lab.plan import CellError

class WorkerError(CellError):
    """The worker's call failed: its words, and ``errno``."""

    def __init__(self, text: str, errno: int):
        super().__init__(text)
        self.errno = errno


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="daxfs-lab-")


@functools.cache
def program(name: str = "worker") -> Path:
    """*name*.c of this folder, compiled; it goes with this process. SystemExit where there is no compiler."""
    cc = shutil.which("cc")
    if cc is None:
        raise SystemExit("no C compiler (cc): install gcc")
    made = Path(_folder().name) / name
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run([cc, "-O2", "-Wall", "-Wextra", "-o", made, source, "-I", client.get_include(),
                    client.LIBRARY, f"-Wl,-rpath,{client.LIBRARY.parent}"], check=True)
    return made


class Worker:
    """One worker process, on *cpu* (None: on any). A context manager."""

    def __init__(self, cpu: int | None = 0):
        self._process = subprocess.Popen([program()], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         text=True)
        if cpu is not None and cpu in os.sched_getaffinity(0):
            os.sched_setaffinity(self._process.pid, {cpu})

    def ask(self, *words) -> dict:
        """The answer to a command. WorkerError where it failed, or the worker died."""
        try:
            self._process.stdin.write(" ".join(map(str, words)) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise WorkerError(f"the worker ended with status {self._process.wait()} at {words[0]}", 0)
        found = json.loads(answer)
        if "error" in found:
            raise WorkerError(found["error"], found["errno"])
        return found

    def run(self, call: str, pattern: str, dirty: int, count: int, seconds: float,
            seed: int) -> dict[str, list[int]]:
        """``store_ns`` and ``ns`` of each turn: worker.c `run`."""
        return self.ask("run", call, pattern, dirty, count, int(seconds * 1e9), seed)

    def close(self) -> None:
        """End it. Its files are closed then."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()
