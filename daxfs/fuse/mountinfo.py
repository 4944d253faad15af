# SPDX-License-Identifier: MIT
"""What /proc/self/mountinfo says of a mount: the way to learn of one without touching it.

Limits: reads /proc only. The daemon must never stat its own mount point, so it asks here.
"""

import os
import re
from dataclasses import dataclass

MOUNTINFO = "/proc/self/mountinfo"
TYPES = ("fuse.daxfs", "daxfs")


@dataclass(frozen=True)
class Mount:
    """One line. ``device`` as st_dev has it; options of the mount and of the superblock as lists."""

    device: int
    mountpoint: str
    options: list[str]
    fstype: str
    source: str
    super_options: list[str]

    @property
    def owner(self) -> int:
        """The uid that mounted a FUSE file system; 0 where it is not said."""
        found = next((o[8:] for o in self.super_options if o.startswith("user_id=")), "0")
        return int(found)


def mounts(path: str = MOUNTINFO) -> list[Mount]:
    """All mounts of this name space, oldest first."""
    with open(path, "rb") as table:
        return mounts_in(table)


def mounts_in(table) -> list[Mount]:
    """`mounts` of an open file, from the place where it is."""
    return [_parse(os.fsdecode(line)) for line in table if b" - " in line]


def mount_at(mountpoint: str) -> Mount | None:
    """The uppermost mount on *mountpoint*, an absolute path without symbolic links."""
    return next((m for m in reversed(mounts()) if m.mountpoint == mountpoint), None)


def mount_of_device(device: int) -> Mount | None:
    """The mount with this st_dev, the newest one."""
    return next((m for m in reversed(mounts()) if m.device == device), None)


def _parse(line: str) -> Mount:
    fields, _, rest = line.rstrip("\n").partition(" - ")
    head, tail = fields.split(" "), rest.split(" ")
    major, minor = head[2].split(":")
    return Mount(os.makedev(int(major), int(minor)), _unescape(head[4]), head[5].split(","), tail[0],
                 _unescape(tail[1]), tail[2].split(",") if len(tail) > 2 else [])


def _unescape(field: str) -> str:
    """Blanks, newlines and backslashes stand as three octal digits; a byte at a time."""
    raw = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8) & 255]), os.fsencode(field))
    return os.fsdecode(raw)
