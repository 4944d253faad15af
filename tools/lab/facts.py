# SPDX-License-Identifier: MIT
"""The host that a run belongs to: what every run.json says of it."""

import hashlib
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import daxfs
from daxfs._flush import Flush
from lab.start import ROOT

BALLOONS = Path("/sys/bus/virtio/drivers/virtio_balloon")
REPORTING = 5  # VIRTIO_BALLOON_F_REPORTING: pages that are free are told to the host, which takes them
DELAY = Path("/sys/module/page_reporting/parameters/min_free_ms")  # some kernels have it


def _lines(path: str, name: str) -> list[str]:
    with open(path) as file:
        return [line.split(":", 1)[1].strip() for line in file if line.startswith(name)]


def code() -> str:
    """A digest of what is installed and of what measures it.

    Two states of a checkout with changes have one commit, and what is installed need not be the checkout's.
    """
    tests = [ROOT / "tests" / name for name in ("mounts.py", "loops.py")]
    found = [path for folder in (Path(daxfs.__file__).parent, ROOT / "tools") for path in folder.rglob("*")]
    digest = hashlib.sha256()
    for path in sorted(path for path in [*found, *tests] if path.is_file() and path.suffix != ".pyc"):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def returned_after(balloons: Path = BALLOONS, delay: Path = DELAY) -> float | None:
    """Seconds until memory that is free may go back to the host of this virtual machine; None: it stays.

    Who takes it again waits for the host to find and clear a page, for each of its first touches.
    """
    features = [path.read_text() for path in balloons.glob("virtio*/features")]
    if not any(bits[REPORTING:REPORTING + 1] == "1" for bits in features):
        return None
    return int(delay.read_text()) / 1000 if delay.exists() else 0.0


def host() -> dict:
    """Commit, digest of the code, kernel, CPU, memory, versions, the flush instruction chosen here."""
    commit = ""
    if shutil.which("git"):
        commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], check=False,
                                capture_output=True, text=True).stdout.strip()
    models = _lines("/proc/cpuinfo", "model name")
    return {"commit": commit or "?", "code": code(), "kernel": platform.release(),
            "cpu": models[0] if models else "?", "cpus": len(os.sched_getaffinity(0)),
            "memory_bytes": int(_lines("/proc/meminfo", "MemTotal")[0].split()[0]) * 1024,
            "returned_after_s": returned_after(),
            "python": platform.python_version(), "daxfs": metadata.version("daxfs"), "flush": Flush().kind}


def load() -> float:
    """Load average of the last minute."""
    return os.getloadavg()[0]
