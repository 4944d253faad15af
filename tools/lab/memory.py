# SPDX-License-Identifier: MIT
"""How much of this machine's memory an experiment may take. Limits: a look at one moment; takes nothing.

In a virtual machine a page that the guest has not used for a while may have gone back to the host (free page
reporting): its next use waits for the host, 8 ms for 2 MiB where this was seen. So who times something that
takes memory does the same once before, untimed, and gives the memory back: that is what the kernel gives out next.
"""

import os

from lab.rigs import SPARE, memory_left

MIB = 1 << 20


def affordable(wanted: int, copies: int) -> int:
    """*wanted* bytes, or the part of it of which *copies* fit free memory and /dev/shm: whole 64 MiB."""
    room = os.statvfs("/dev/shm")
    most = min(memory_left() - SPARE, room.f_bavail * room.f_frsize) // copies
    return min(wanted, max(most // (64 * MIB), 1) * 64 * MIB)
