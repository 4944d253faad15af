# SPDX-License-Identifier: MIT
"""Worker processes for the crash sweep: each has an engine and runs one sequence at a time.

A worker that dies, hangs or raises costs the sequence it was running, never the sweep. Workers own scratch
files on /dev/shm whose names carry their pid; what a killed one left is taken away here. The pool is used by
one thread of one process. It signals only processes that it started.
"""

import contextlib
import ctypes
import dataclasses
import faulthandler
import importlib
import multiprocessing
import os
import shutil
import signal
import time
import traceback
from multiprocessing import connection
from pathlib import Path

from mounts import start_time

SCRATCH = Path("/dev/shm")
PREFIX = "daxfs-crash-"     # then the pid and a number: ground.py names its files so
PR_SET_PDEATHSIG = 1
STOP_SECONDS = 2.0          # for a worker to close its engine, before it is killed
TAIL = 2000                 # characters of a dead worker's stderr that are kept


def parts() -> list:
    """Engine and sequences as modules; in tests CRASH_SWEEP_PARTS names one that stands in for all."""
    name = os.environ.get("CRASH_SWEEP_PARTS")
    own = [f"crash.{part}" for part in ("engine", "workloads", "longrun", "edges", "owned", "observed",
                                          "tracked")]
    names = [name] * len(own) if name else own
    return [importlib.import_module(name) for name in names]


def remove_scratch() -> int:
    """Take away what workers that are gone have left on /dev/shm; how many files that were."""
    count = 0
    for path in SCRATCH.glob(f"{PREFIX}*"):
        pid = path.name.removeprefix(PREFIX).split("-")[0]
        if pid.isdigit() and start_time(int(pid)) is None:
            count += 1
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return count


# -- in the worker ---------------------------------------------------------------------------


def _end(_signum, _frame):
    # Once: the kernel may tell of the end of each of the parent's threads, while the engine is being closed.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(1)


def _prepare(parent: int) -> None:
    """Control-C is the parent's business; the worker ends with it, and says why it died on its own stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(1)
    log = os.open(_stderr_of(os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    os.close(log)
    faulthandler.enable()


def _stderr_of(pid: int) -> Path:
    return SCRATCH / f"{PREFIX}{pid}-stderr"


def _work(pipe, parent: int, parameters: dict) -> None:
    """Answer each job with {"outcome": ...} or {"failure": text}, until there is None."""
    _prepare(parent)
    make = parts()[0].Engine
    engines = {}            # by granularity
    try:
        while (job := pipe.recv()) is not None:
            try:
                if job.granularity not in engines:
                    engines[job.granularity] = make(granularity=job.granularity, **parameters)
                answer = {"outcome": _run(engines[job.granularity], job)}
            except Exception:
                answer = {"failure": traceback.format_exc()}
                _close(engines)         # who knows what state they are in
            pipe.send(answer)
    except (EOFError, BrokenPipeError, SystemExit):
        # The parent is gone, or wants this end. Else it reads there what went wrong.
        _stderr_of(os.getpid()).unlink(missing_ok=True)
    finally:
        _close(engines)


def _close(engines: dict) -> None:
    for engine in engines.values():
        engine.close()
    engines.clear()


def _run(engine, job) -> dict:
    engine.limit = job.limit
    if job.set == "log":
        recording = job.sequence
        return dataclasses.asdict(engine.run_log(recording.path, recording.share, recording.shares))
    return dataclasses.asdict(engine.run(job.sequence, job.points))


# -- in the parent ---------------------------------------------------------------------------


class Worker:
    """One process and the job that it is on."""

    def __init__(self, context, parameters: dict):
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, os.getpid(), parameters), daemon=True)
        self.process.start()
        theirs.close()
        self.job, self.since = None, 0.0

    def give(self, job) -> None:
        """BrokenPipeError where the process is gone."""
        self.pipe.send(job)
        self.job, self.since = job, time.monotonic()

    def epitaph(self) -> str:
        """Why the process, which is gone, ended."""
        self.process.join()
        code = self.process.exitcode
        text = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        with contextlib.suppress(OSError):
            text += "\n" + _stderr_of(self.process.pid).read_text(errors="replace")[-TAIL:]
        return f"the worker died: {text}".strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


class Pool:
    """*count* workers. A context manager: at the end they are stopped and their scratch files are gone.

    *parameters* are those of Engine but for the limit and the granularity, which jobs have. A sequence that
    takes more than *patience* seconds is given up, and its worker killed.
    """

    def __init__(self, count: int, parameters: dict, patience: float):
        self.parameters, self.patience = parameters, patience
        # A forked child would inherit the thread of a progress bar, with whatever locks it holds.
        self.context = multiprocessing.get_context("spawn")
        self.workers = [Worker(self.context, parameters) for _ in range(count)]

    def idle(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.job is None]

    def busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.job is not None]

    def give(self, worker: Worker, job) -> None:
        """Hand *job* to an idle worker; to a new one in its place if that has died since its last job."""
        try:
            worker.give(job)
        except OSError:
            self._replace(worker).give(job)

    def _replace(self, worker: Worker) -> Worker:
        worker.kill()
        worker.pipe.close()
        remove_scratch()
        fresh = Worker(self.context, self.parameters)
        self.workers[self.workers.index(worker)] = fresh
        return fresh

    def wait(self, timeout: float) -> list[tuple]:
        """(job, answer) of what was finished within *timeout* seconds; returns at the first."""
        busy = self.busy()
        ready = set(connection.wait([worker.pipe for worker in busy], timeout))
        return [self._answer(worker) for worker in busy if worker.pipe in ready] + self._hung()

    def _answer(self, worker: Worker) -> tuple:
        job, worker.job = worker.job, None
        try:
            return job, worker.pipe.recv()
        except (EOFError, OSError):
            answer = {"failure": worker.epitaph()}
            self._replace(worker)
            return job, answer

    def _hung(self) -> list[tuple]:
        found = []
        for worker in self.busy():
            if time.monotonic() - worker.since > self.patience:
                found.append((worker.job, {"failure": f"no end after {self.patience:.0f} s"}))
                self._replace(worker)
        return found

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_) -> None:
        for worker in self.workers:
            worker.process.terminate()
        until = time.monotonic() + STOP_SECONDS
        for worker in self.workers:
            worker.process.join(max(0.0, until - time.monotonic()))
            worker.kill()
            worker.pipe.close()
        remove_scratch()
