# SPDX-License-Identifier: MIT
"""How much of this machine's memory an experiment may take, and memory that costs alike for all compared.

In a virtual machine a page that the guest has not used for a while may have gone back to the host (free
page reporting): its next use waits for the host, 8 ms for 2 MiB where this was seen. So what takes memory while it is
timed gets pages that were in use a moment ago. Limits: one thread.
"""

import contextlib
import mmap
import os
from collections.abc import Iterator

from lab.rigs import SPARE, memory_left

MIB = 1 << 20
_HUGEPAGE, _POPULATE_WRITE = 14, 23  # of madvise(2)


def affordable(wanted: int, copies: int) -> int:
    """*wanted* bytes, or the part of it of which *copies* fit free memory and /dev/shm: whole 64 MiB."""
    room = os.statvfs("/dev/shm")
    most = min(memory_left() - SPARE, room.f_bavail * room.f_frsize) // copies
    return min(wanted, max(most // (64 * MIB), 1) * 64 * MIB)


class Reservoir:
    """*size* bytes of memory that the host has given to us; lent out, and taken back at once."""

    def __init__(self, size: int):
        self.size = size
        self._held: mmap.mmap | None = None

    def fill(self) -> None:
        """Take the memory, if it is not held."""
        if self._held is None and self.size:
            self._held = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):  # a kernel without huge pages
                self._held.madvise(_HUGEPAGE)
            self._held.madvise(_POPULATE_WRITE)

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """In here the memory is free; whoever took some has to give as much back before the end."""
        self.fill()
        self.close()
        try:
            yield
        finally:
            self.fill()

    def close(self) -> None:
        """Give it back."""
        if self._held is not None:
            self._held.close()
            self._held = None
