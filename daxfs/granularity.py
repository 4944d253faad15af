# SPDX-License-Identifier: MIT
"""L1: what a store on a source needs before it is durable, found out or demanded.

The words are libpmem2's: ``byte`` (durable once visible), ``cache_line`` (lines must be written back),
``page`` (a page cache stands between, msync). Limits: looks at an open descriptor and at sysfs, changes
nothing; coarser than detected may be demanded, finer may not.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from daxfs._window import file_facts, map_sync_works
from daxfs.errors import UsageError

ORDER = ("byte", "cache_line", "page")  # from fine to coarse

TMPFS_MAGIC = 0x01021994
RAMFS_MAGIC = 0x858458F6
HUGETLBFS_MAGIC = 0x958458F6
_EMULATED = {TMPFS_MAGIC: "tmpfs", RAMFS_MAGIC: "ramfs", HUGETLBFS_MAGIC: "hugetlbfs"}
_LOOP_MAJOR = 7
_RAM_MAJOR = 1


@dataclass(frozen=True)
class Detected:
    """granularity: "byte", "cache_line" or "page"; medium: what it is; emulated: True where a power
    failure loses everything; why: one sentence for reports and refusals."""

    granularity: str
    medium: str
    emulated: bool
    why: str


def detect(source: int | str | os.PathLike, sysfs: str = "/sys") -> Detected:
    """What *source* (an open descriptor, or a path that is opened for reading) is made of."""
    if not isinstance(source, int):
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return detect(fd, sysfs)
        finally:
            os.close(fd)
    st = os.fstat(source)
    if stat.S_ISBLK(st.st_mode):
        return _detect_block(st.st_rdev, Path(sysfs))
    if stat.S_ISCHR(st.st_mode):
        return _detect_devdax(st.st_rdev, Path(sysfs))
    return _detect_file(source, st.st_dev, Path(sysfs))


def device_link(kind: str, dev: int, sysfs: Path) -> Path:
    """The sysfs folder of a device number; *kind* is "block" or "char"."""
    return sysfs / "dev" / kind / f"{os.major(dev)}:{os.minor(dev)}"


def _persistence_domain(device: Path) -> str:
    """What the NVDIMM region above *device* says survives a power failure; "" where there is none.

    Device mapper stands on several devices: they must agree, or the answer is "".
    """
    try:
        below = sorted((device / "slaves").iterdir())
    except OSError:
        below = []
    if below:
        found = {_persistence_domain(one.resolve()) for one in below}
        return found.pop() if len(found) == 1 else ""
    real = device.resolve()
    for folder in (real, *real.parents):
        try:
            return (folder / "persistence_domain").read_text().strip()
        except OSError:
            continue
    return ""


def _line_or_byte(device: Path, medium: str, why: str) -> Detected:
    if _persistence_domain(device) == "cpu_cache":
        return Detected("byte", medium, False, f"{why}, and the platform flushes CPU caches on power failure")
    return Detected("cache_line", medium, False, why)


def _detect_file(fd: int, dev: int, sysfs: Path) -> Detected:
    magic, _, dax = file_facts(fd)
    if magic in _EMULATED:
        name = _EMULATED[magic]
        return Detected("cache_line", "emulated", True, f"{name} is ordinary memory: not power-fail safe")
    if map_sync_works(fd):
        return _line_or_byte(device_link("block", dev, sysfs), "fsdax", "the file system maps with MAP_SYNC")
    if dax:
        return Detected("page", "fsdax", False, "the file is DAX, but its file system can't do MAP_SYNC, "
                        "so that only msync makes its block allocation durable")
    return Detected("page", "disk", False, "a page cache stands between the mapping and the disk")


def _detect_devdax(rdev: int, sysfs: Path) -> Detected:
    device = device_link("char", rdev, sysfs)
    try:
        subsystem = (device / "subsystem").resolve(strict=True).name
    except OSError:
        subsystem = ""
    if subsystem != "dax":
        raise UsageError("no devdax device; a source is a file, a pool directory, a block or devdax device")
    if not any(part.startswith("ndbus") for part in device.resolve().parts):
        return Detected("cache_line", "devdax", True,
                        "the devdax device stands on no NVDIMM bus, so its memory is volatile")
    return _line_or_byte(device, "devdax", "a devdax device maps the media itself")


def _detect_block(rdev: int, sysfs: Path) -> Detected:
    device = device_link("block", rdev, sysfs)
    why = "a mapping of a block device goes through its page cache"
    if any(part.startswith("ndbus") for part in device.resolve().parts):
        return Detected("page", "pmem block", False, why + "; for direct access make it devdax, or put "
                        "ext4 or XFS with -o dax on it and use a pool directory there")
    medium = {_LOOP_MAJOR: "loop", _RAM_MAJOR: "ram disk"}.get(os.major(rdev), "block device")
    return Detected("page", medium, os.major(rdev) == _RAM_MAJOR, why)


def choose(detected: Detected, forced: str | None = None) -> str:
    """The granularity to use: *forced* where that can be had, otherwise what was detected.

    UsageError where *forced* is finer than detected: stores would be called durable that are not. An
    emulated medium of cache lines may be forced to byte, because nothing real is promised there.
    """
    if forced in (None, "auto"):
        return detected.granularity
    if forced not in ORDER:
        raise UsageError(f"granularity {forced!r} is unknown; one of: auto, {', '.join(ORDER)}")
    if ORDER.index(forced) >= ORDER.index(detected.granularity):
        return forced
    if detected.emulated and detected.granularity == "cache_line":
        return forced
    raise UsageError(
        f"granularity {forced!r} can't be had: {detected.why} ({detected.medium}); "
        f"use auto or {' or '.join(ORDER[ORDER.index(detected.granularity):])}"
    )


def coarsest(several) -> str:
    """The coarsest of granularities: what holds for a region of several sources."""
    return max(several, key=ORDER.index)
