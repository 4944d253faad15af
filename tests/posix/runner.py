# SPDX-License-Identifier: MIT
"""Runs a case on a mount within a time limit and compares it with the oracle.

Limits: every run is a child in a session of its own with its own directory on the mount; a run that does not
end is killed with its children: a hang is an outcome like another. Touches nothing that it did not make.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import resource
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .context import Context, run_and_send
from .table import Case, CaseFailed

TIMEOUT = 20.0  # s for one case on one mount
_serial = 0


@dataclass(frozen=True)
class Outcome:
    """kind: value, failed, error, unsupported or timeout; `value` is the observation or the message."""

    kind: str
    value: Any

    def __str__(self) -> str:
        return repr(self.value) if self.kind == "value" else f"{self.kind}: {self.value}"


@dataclass(frozen=True)
class Verdict:
    """status: agree, lacks (a feature that may be missing) or mismatch."""

    case: Case
    status: str
    mount: Outcome
    oracle: Outcome
    seconds: float

    def explain(self) -> str:
        return f"{self.case.id}: {self.status}\n  mount:  {self.mount}\n  oracle: {self.oracle}"


def fs_type(path: str) -> str:
    """Type of the file system that holds `path`, such as "tmpfs" or "fuse.daxfs"."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as table:
        for line in table:
            left, _, right = line.partition(" - ")
            if left.split()[2] == number:
                return right.split()[0]
    return "unknown"


def _elsewhere(mount: str) -> str:
    """A new directory on a file system other than the mount's."""
    device = os.stat(mount).st_dev
    for place in ("/dev/shm", "/tmp", "/var/tmp", "/run"):
        if os.path.isdir(place) and os.stat(place).st_dev != device:
            return tempfile.mkdtemp(prefix="posix-other-", dir=place)
    raise LookupError(f"no second file system next to {mount}")


def run_case(case: Case, mount: str, timeout: float = TIMEOUT) -> Outcome:
    """Run the case in a fresh directory on `mount`."""
    global _serial
    _serial += 1
    home = os.path.join(mount, f"posix-{os.getpid()}-{_serial}")
    elsewhere = _elsewhere(mount)
    reader, writer = os.pipe()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # on forking with threads: they do not matter here
            pid = os.fork()
        if pid == 0:
            os.setsid()
            faulthandler.disable()  # a SIGBUS that a case provokes is no news
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.close(reader)
            run_and_send(writer, lambda: _in_home(case, home, Context(fs_type(mount), elsewhere)))
        os.close(writer)
        writer = -1
        return _collect(pid, reader, timeout)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
        shutil.rmtree(elsewhere, ignore_errors=True)


def _in_home(case: Case, home: str, context: Context) -> Any:
    """In the child: make the directory, run there, and leave nothing behind.

    What can't be removed is a failure of its own.
    """
    os.umask(0o022)
    os.mkdir(home, 0o755)
    os.chdir(home)
    try:
        result = case.fn(context, *case.args)
    except BaseException:
        os.chdir("/")
        shutil.rmtree(home, ignore_errors=True)
        raise
    os.chdir("/")
    try:
        shutil.rmtree(home)
    except OSError as error:
        raise CaseFailed(f"what the case made can't be removed: {error}") from error
    return result


def _collect(pid: int, reader: int, timeout: float) -> Outcome:
    """Read the child's message, then end what is left of its session."""
    deadline = time.monotonic() + timeout
    blob = b""
    while len(blob) < 4 or len(blob) < 4 + struct.unpack("<I", blob[:4])[0]:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            _end(pid)
            return Outcome("timeout", f"no answer in {timeout:.0f} s")
        chunk = os.read(reader, 65536)
        if not chunk:
            status = _end(pid)
            return Outcome("error", f"the case ended without an answer (wait status {status})")
        blob += chunk
    _end(pid)
    kind, value = pickle.loads(blob[4:])
    if kind == "errno":
        return Outcome("error", f"unexpected {value[0]}{value[1]}")
    return Outcome(kind, value)


def _end(pid: int) -> int | None:
    """Kill the child's session and reap it; one that is stuck in the kernel is left after 2 s."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    for attempt in range(200):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.0002 if attempt < 20 else 0.011)
    return None


def judge(
    case: Case, mount: str, oracle: str, timeout: float = TIMEOUT, known: dict | None = None
) -> Verdict:
    """Run on both and compare. *known*: what the oracle has answered before, by case, so it is asked once.

    A feature that is missing is accepted where the case says that this type of file system may lack it; then
    there is nothing to compare, and the answers that the case itself dictates are what counts.
    """
    start = time.monotonic()
    known = {} if known is None else known
    if case.id not in known:
        known[case.id] = run_case(case, oracle, timeout)
    pair = [run_case(case, mount, timeout), known[case.id]]
    seconds = time.monotonic() - start
    lacks = [
        o.kind == "unsupported" and case.accepts_lack(fs_type(place))
        for o, place in zip(pair, (mount, oracle), strict=True)
    ]
    if any(o.kind != "value" and not lack for o, lack in zip(pair, lacks, strict=True)):
        status = "mismatch"
    elif lacks[0]:
        status = "lacks"
    elif lacks[1] or not case.compare:
        status = "agree"
    else:
        status = "agree" if pair[0].value == pair[1].value else "mismatch"
    return Verdict(case, status, *pair, seconds)


@contextlib.contextmanager
def oracle_mount() -> Iterator[str]:
    """A tmpfs of its own, unmounted at the end. Needs root; raises OSError or CalledProcessError."""
    place = tempfile.mkdtemp(prefix="posix-oracle-")
    try:
        options = "size=1g,mode=0755"
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "posix-oracle", place],
            check=True,
            capture_output=True,
            text=True,
        )
        try:
            yield place
        finally:
            subprocess.run(["umount", "--lazy", place], check=True, capture_output=True, text=True)
    finally:
        os.rmdir(place)
