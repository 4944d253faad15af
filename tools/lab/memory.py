# SPDX-License-Identifier: MIT
"""How much of this machine's memory an experiment may take. Limits: a look at one moment; takes nothing."""

import os

MIB = 1 << 20


def affordable(wanted: int, copies: int) -> int:
    """*wanted* bytes, or the part of it that fits *copies* times into free memory and /dev/shm: whole 64 MiB."""
    room = os.statvfs("/dev/shm")
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    most = min(available, room.f_bavail * room.f_frsize) // copies
    return min(wanted, max(most // (64 * MIB), 1) * 64 * MIB)
