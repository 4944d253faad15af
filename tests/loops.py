# SPDX-License-Identifier: MIT
"""ext4 and XFS on a loop device over a sparse file on tmpfs: what daxfs is compared with.

Made and taken away by commands, as root. One image, one loop device and one mount for each object; what a
failure leaves is taken away at the end of the interpreter. Not thread-safe. Imports nothing of daxfs.
"""

import atexit
import contextlib
import functools
import itertools
import os
import shutil
import tempfile
from pathlib import Path

import mounts

MIN_SIZE = {"xfs": 512 * mounts.MIB, "ext4": 64 * mounts.MIB}
# ext4 without a thread that writes inode tables beside what is measured.
MKFS = {"xfs": ["mkfs.xfs", "-q", "-f"],
        "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]}
_numbers = itertools.count()
_live: list["LoopMount"] = []


class LoopMount:
    """A file system of *kind* ("xfs", "ext4") of *size* bytes, mounted at ``path``. A context manager.

    *huge*: its image is on a tmpfs of its own with huge=*huge*, else on /dev/shm.
    """

    def __init__(self, kind: str, size: int = 0, huge: str | None = None):
        name = f"{mounts.PREFIX}loop{next(_numbers)}"
        self.kind = kind
        size = max(size, MIN_SIZE[kind])
        self.tmpfs = mounts.Tmpfs(size + 2 * mounts.MIB, huge) if huge else None
        self.image = (self.tmpfs.path if self.tmpfs else Path("/dev/shm")) / f"{name}.img"
        self.path = Path(tempfile.gettempdir()) / f"{name}.mnt"
        self.closed = False
        _live.append(self)
        try:
            self.path.mkdir()
            with open(self.image, "xb") as file:
                file.truncate(size)
            mounts.run([*MKFS[kind], self.image])
            self.mount()
        except BaseException:
            self.close()
            raise

    def mount(self) -> None:
        """Mount the image."""
        mounts.run(["mount", "-t", self.kind, "-o", "loop", self.image, self.path])

    def remount(self) -> None:
        """umount, then mount again: nothing is left in the page cache."""
        mounts.run(["umount", self.path])
        self.mount()

    def close(self) -> None:
        """Unmount (the loop device goes with it) and remove the image. May be called twice."""
        if self.closed:
            return
        self.closed = True
        _live.remove(self)
        while mounts.mounts_of(self.path):
            if mounts.run(["umount", self.path], check=False).returncode != 0:
                mounts.run(["umount", "-l", self.path], check=False)
        self.image.unlink(missing_ok=True)
        if self.tmpfs:
            self.tmpfs.close()
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def __enter__(self) -> "LoopMount":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()


@functools.cache
def why_not(kind: str) -> str | None:
    """The reason why this host can't mount *kind* on a loop device, or None: found out by doing it once."""
    if os.geteuid() != 0:
        return f"no {kind} over a loop device: not root"
    if not shutil.which(MKFS[kind][0]):
        return f"no {kind} over a loop device: {MKFS[kind][0]} is not installed"
    try:
        LoopMount(kind).close()
    except (mounts.CommandError, OSError) as exc:
        return f"no {kind} over a loop device: {' '.join(str(exc).split())}"
    return None


def close_all() -> None:
    """Close what is still mounted; also runs at interpreter exit."""
    for one in _live[:]:
        with contextlib.suppress(Exception):
            one.close()


atexit.register(close_all)
