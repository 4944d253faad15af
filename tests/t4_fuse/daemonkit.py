# SPDX-License-Identifier: MIT
"""mount.daxfs in the foreground, as a child whose status can be waited for; or one with a part replaced."""

import subprocess
import sys
import time
from pathlib import Path

import mounts

PATCHED = Path(__file__).with_name("patched_mount.py")


class Daemon:
    """mount.daxfs -f on *region*; with *patch*, a function of patched_mount.py is called before it begins.

    *wait*: until the mount answers; else the caller does what is to be done.
    """

    def __init__(self, region, patch: tuple = (), wait: bool = True):
        self.region = region
        self.errors = open(f"{region.log_file}.err", "w+")
        command = region.mount_command()
        if patch:
            command = [sys.executable, "-P", PATCHED, *map(str, patch), "--", *command[1:]]
        self.process = subprocess.Popen([*command, "-f"], stdin=subprocess.DEVNULL, stdout=self.errors,
                                        stderr=self.errors)
        if not wait:
            return
        deadline = time.monotonic() + 30
        while not mounts.mounts_of(region.path):
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.01)
        region.stat()

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def end(self, seconds: float = 20) -> int:
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.errors.close()
        Path(self.errors.name).unlink()
        self.region.umount()
