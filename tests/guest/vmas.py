# SPDX-License-Identifier: MIT
"""A process's mappings and in what pages they are, also those of DAX, which smaps does not count.

Asks the kernel with PAGEMAP_SCAN (6.7 and later): smaps (as of 6.12) passes over pages of device memory.
"""

import ctypes
import fcntl
import re
from dataclasses import dataclass
from pathlib import Path

_PAGEMAP_SCAN = 0xC0606610
_WRITTEN, _PRESENT, _HUGE = 1 << 1, 1 << 3, 1 << 6
_PROTECT = 3  # what was stored to, if it is registered for asynchronous write protection


class _Scan(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in (
        "size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages", "category_inverted",
        "category_mask", "category_anyof_mask", "return_mask")]  # fmt: skip


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("start", "end", "categories")]


@dataclass(frozen=True)
class Area:
    """One mapping; present, huge: bytes that are mapped, and of them those in pages of 2 MiB."""

    start: int
    end: int
    path: str
    flags: tuple[str, ...]
    present: int
    huge: int


def scan(pid: int, start: int, end: int) -> tuple[int, int]:
    """(bytes that are mapped, bytes of them in huge pages) in a range of addresses of a process."""
    found = (_Region * 256)()
    present = huge = 0
    with open(f"/proc/{pid}/pagemap", "rb") as file:
        while start < end:
            ask = _Scan(ctypes.sizeof(_Scan), 0, start, end, 0, ctypes.addressof(found), len(found), 0, 0,
                        _PRESENT, 0, _PRESENT | _HUGE)  # fmt: skip
            for one in found[: fcntl.ioctl(file, _PAGEMAP_SCAN, ask)]:
                present += one.end - one.start
                huge += one.end - one.start if one.categories & _HUGE else 0
            start = ask.walk_end
    return present, huge


def stored(start: int, end: int, protect: bool) -> int:
    """Bytes in a range of our own addresses that the page table calls stored to since they were protected
    last; *protect*: and they are again, so that the next store can be seen."""
    found = (_Region * 256)()
    ask = _Scan(ctypes.sizeof(_Scan), _PROTECT * protect, start, end, 0, ctypes.addressof(found), len(found),
                0, 0, _WRITTEN, 0, _WRITTEN)  # fmt: skip
    with open("/proc/self/pagemap", "rb") as file:
        return sum(one.end - one.start for one in found[: fcntl.ioctl(file, _PAGEMAP_SCAN, ask)])


def mappings(pid: int) -> list[Area]:
    """All mappings of a process that have a path."""
    areas, head = [], None
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ +(/.*)$", line)
        if found:
            head = int(found[1], 16), int(found[2], 16), found[3]
        elif re.match(r"[0-9a-f]+-", line):
            head = None
        elif line.startswith("VmFlags:") and head:
            areas.append(Area(*head, tuple(line.split()[1:]), *scan(pid, *head[:2])))
    return areas
