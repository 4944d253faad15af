# SPDX-License-Identifier: MIT
"""How long a command takes, process and all."""

import subprocess
import tempfile
import threading
import time

from lab.plan import CellFailed

HANGS_S = 300.0


def timed(words: list[str]) -> tuple[float, str]:
    """Seconds of a command, and what it said. CellFailed where it fails, or hangs.

    Waited for without a time-out: subprocess looks for the end of a process but every 50 ms where it has one.
    """
    with tempfile.TemporaryFile("w+") as out:
        began = time.perf_counter()
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        watchdog = threading.Timer(HANGS_S, process.kill)
        watchdog.start()
        try:
            status = process.wait()
            took = time.perf_counter() - began
        finally:
            watchdog.cancel()
            process.kill()
            process.wait()
        out.seek(0)
        said = out.read()
    if status:
        raise CellFailed(" ".join(f"{' '.join(words)}: status {status} {said}".split())[:200])
    return took, said
