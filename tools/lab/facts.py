# SPDX-License-Identifier: MIT
"""The host that a run belongs to: what every run.json says of it."""

import os
import platform
import shutil
import subprocess
from importlib import metadata

from daxfs._flush import Flush
from lab.start import ROOT


def _lines(path: str, name: str) -> list[str]:
    with open(path) as file:
        return [line.split(":", 1)[1].strip() for line in file if line.startswith(name)]


def host() -> dict:
    """Commit, kernel, CPU, memory, versions and the flush instruction that is chosen here."""
    commit = ""
    if shutil.which("git"):
        commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], check=False,
                                capture_output=True, text=True).stdout.strip()
    models = _lines("/proc/cpuinfo", "model name")
    return {"commit": commit or "?", "kernel": platform.release(), "cpu": models[0] if models else "?",
            "cpus": len(os.sched_getaffinity(0)),
            "memory_bytes": int(_lines("/proc/meminfo", "MemTotal")[0].split()[0]) * 1024,
            "python": platform.python_version(), "daxfs": metadata.version("daxfs"), "flush": Flush().kind}


def load() -> float:
    """Load average of the last minute."""
    return os.getloadavg()[0]
