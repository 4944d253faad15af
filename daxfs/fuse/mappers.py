# SPDX-License-Identifier: MIT
"""Which processes have a file mapped, as /proc/PID/maps tells.

A direct mapping is shown there with the path, device and inode number that it has on the mount, not with
those of the file below. Limits: sees the processes of our pid namespace and those below it; of one that may
not be looked at (more capabilities than ours) it knows only whether it has opened the file. Not from the
thread that serves the mount: a process that waits for us may hold what reading its maps waits for.
"""

import os

from .users import Key, mappings


def mappers(device: int, ino: int, openers: set[int], path: str = "/proc") -> list[int]:
    """The pids of those who have inode *ino* of the file system *device* (st_dev) mapped.

    *openers*: the threads that have opened it. A process with one of them that may not be looked at counts.
    """
    pids = [pid for pid in os.listdir(path) if pid.isdigit()]
    return [int(pid) for pid in pids if _has_mapped(f"{path}/{pid}", (device, ino), openers)]


def _has_mapped(process: str, file: Key, openers: set[int]) -> bool:
    try:
        return any(key == file for key, *_ in mappings(process))
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended
    except PermissionError:
        return any(os.path.isdir(f"{process}/task/{thread}") for thread in openers)
