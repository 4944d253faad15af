# SPDX-License-Identifier: MIT
"""Which processes have files mapped or open, as /proc tells.

A direct mapping shows the file on the mount (its device and inode), one that was made beside the mount the
range. Limits: reads /proc, of this pid name space; what it may not read, or has ended, is left out. Never for
the daemon: a process may be in the middle of a request to it.
"""

import os
from dataclasses import dataclass, field

Key = tuple[int, int]  # device and inode


@dataclass
class User:
    """One process and one file. ``path``: as the process knows it."""

    pid: int
    command: str
    path: str
    mapped: bool = False
    opened: bool = False
    bytes: int = field(default=0)  # of its mappings

    def describe(self) -> dict:
        how = [word for word, there in (("mapped", self.mapped), ("open", self.opened)) if there]
        return {"pid": self.pid, "command": self.command, "path": self.path, "how": how, "bytes": self.bytes}


def users_of(wanted: dict[Key, int], without=()) -> dict[int, list[User]]:
    """Who has which of *wanted* ({(device, inode): what the caller calls it}), but the pids *without*."""
    found: dict[tuple[int, int], User] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) not in without:
            pid = int(entry)
            for key, path, size in _mapped(pid):
                if key in wanted:
                    user = found.setdefault((wanted[key], pid), User(pid, _command(pid), path))
                    user.mapped, user.bytes = True, user.bytes + size
            for key, path in _open_files(pid, {device for device, _ in wanted}):
                if key in wanted:
                    found.setdefault((wanted[key], pid), User(pid, _command(pid), path)).opened = True
    out: dict[int, list[User]] = {}
    for (name, _), user in sorted(found.items()):
        out.setdefault(name, []).append(user)
    return out


def mappings(process: str):
    """((device, inode), path, bytes) of each mapping of a file in *process*, its folder in /proc. OSError."""
    with open(f"{process}/maps", "rb") as file:
        for line in file:
            fields = line.rstrip(b"\n").split(None, 5)
            if fields[4] != b"0":
                major, minor = fields[3].split(b":")
                start, end = fields[0].split(b"-")
                key = os.makedev(int(major, 16), int(minor, 16)), int(fields[4])
                yield key, os.fsdecode(fields[5]) if len(fields) > 5 else "", int(end, 16) - int(start, 16)


def _mapped(pid: int) -> list:
    try:
        return list(mappings(f"/proc/{pid}"))
    except OSError:
        return []  # it has ended, or is not ours to look at


def _open_files(pid: int, devices: set[int]):
    """((device, inode), path) of each regular file of these *devices* that is open."""
    mounts = _mounts(pid, devices)
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            with open(f"/proc/{pid}/fdinfo/{name}", errors="replace") as file:
                info = dict(line.split(":", 1) for line in file if line.startswith(("mnt_id:", "ino:")))
            device = mounts.get(int(info["mnt_id"]))
            if device is not None and "ino" in info:
                yield (device, int(info["ino"])), os.readlink(f"/proc/{pid}/fd/{name}")
        except (OSError, KeyError):
            continue  # closed meanwhile


def _mounts(pid: int, devices: set[int]) -> dict[int, int]:
    """Numbers of the mounts of these *devices* in the name space of *pid*, with their device.

    A descriptor is not asked for it: after umount -l its mount is in no list, and only its mappings show.
    """
    out = {}
    try:
        with open(f"/proc/{pid}/mountinfo", "rb") as file:  # paths are any bytes
            for line in file:
                number, _, device = line.split(None, 3)[:3]
                major, minor = device.split(b":")
                if os.makedev(int(major), int(minor)) in devices:
                    out[int(number)] = os.makedev(int(major), int(minor))
    except OSError:
        pass
    return out


def _command(pid: int) -> str:
    try:
        # A program may call itself anything.
        with open(f"/proc/{pid}/comm", errors="backslashreplace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return "?"
