# SPDX-License-Identifier: MIT
"""Runs in the guest, started by init.sh: prepares the NVDIMM, runs the job's cases, reports each to the host.

A case finds in its environment: GUEST_KIND and GUEST_BOOT (guest.cases), GUEST_NOTES (what guests before this
one left, as JSON), GUEST_EVENTS (a descriptor for events). What it prints is kept by the host. A case that is
over its limit is killed with all that it started; what it left mounted is taken away and fails it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import nvdimm
from .cases import CASES, Case

JOB = "/dev/vdc"
MARGIN = 90  # seconds for killing a case and cleaning up behind it, before the host gives the guest up
KEPT = 60_000  # characters of a case's output


def events_port() -> int:
    """The virtio-serial port that QEMU writes to a file; one process may open it, children inherit it."""
    (port,) = Path("/dev").glob("vport*p1")
    return os.open(port, os.O_WRONLY)


def report(port: int, event: str, **facts) -> None:
    """Write one event; the port takes 32 KiB at a time."""
    left = (json.dumps({"event": event, **facts}) + "\n").encode()
    while left:
        left = left[os.write(port, left) :]


def daxfs_mounts() -> list[str]:
    rows = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [row[1] for row in rows if row[2] in ("fuse.daxfs", "daxfs")]


def waiting() -> str:
    """Where in the kernel each thread of each program is, of those that do not run."""
    text = []
    for task in Path("/proc").glob("[0-9]*/task/*"):
        with contextlib.suppress(OSError):
            name = (task.parents[1] / "cmdline").read_text().replace("\0", " ")[-80:]
            stack = (task / "stack").read_text()
            if name and stack:
                text.append(f"{task.parents[1].name}, thread {task.name}: {name}\n{stack}")
    return "".join(text)


def run_case(case: Case, job: dict, port: int) -> dict:
    """What to report of one case."""
    began = time.monotonic()
    env = dict(os.environ, GUEST_KIND=case.kind, GUEST_BOOT=case.boot, GUEST_NOTES=json.dumps(job["notes"]),
               GUEST_EVENTS=str(port))
    with tempfile.TemporaryFile("w+", errors="replace") as out:
        child = subprocess.Popen(case.command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env,
                                 pass_fds=(port,), start_new_session=True)
        try:
            status = child.wait(case.limit)
            ending = f"status {status}"
        except subprocess.TimeoutExpired:
            status, ending = None, f"{waiting()}no end after {case.limit} s"
        # The session outlives its leader where the case left something running.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        # What waits for a daemon that waits does not die. So that this is told, nobody waits for it for long.
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(20)
        left = daxfs_mounts()
        for path in left:
            subprocess.run(["umount", "-l", path], check=False)
        out.seek(0)
        text = out.read()[-KEPT:] + f"[{ending}]\n"
    if left:
        text += f"left mounted: {', '.join(left)}\n"
    return {"name": case.name, "ok": status == 0 and not left, "text": text,
            "seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    job = json.loads(Path(JOB).read_text())
    port = events_port()
    report(port, "up", kernel=os.uname().release)
    report(port, "prepared", seconds=nvdimm.prepare())
    named = {case.name: case for case in CASES}
    for name in job["cases"]:
        case = named[name]
        report(port, "begin", name=name, limit=case.limit + MARGIN)
        report(port, "end", **run_case(case, job, port))
    nvdimm.leave()
    report(port, "done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
