#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Time of mkfs on 1 TiB, time to mount 100,000 inodes, and the memory that the daemon then takes.

Targets of issue 2: mkfs of a 1 TiB sparse file 5 s; mount 2 s; memory under
120 MiB plus 400 bytes for each inode in use (resident pages of the daemon, its
mapping of the region left out). Sparse files on /dev/shm. Needs root and
/dev/fuse. ``--memory-of PID`` prints the memory of any process and ends.
"""

import os
import statistics
import sys
import time
from pathlib import Path

import bench
from bench import Report

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
PER_FOLDER = 1000


def resident(pid: int, without: str | None = None) -> int:
    """Resident bytes of process *pid*, mappings of files whose path starts with *without* left out."""
    total, counted = 0, True
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            words = line.split(maxsplit=5)
            if not words[0].endswith(":"):
                path = words[5].strip() if len(words) > 5 else ""
                counted = not (without and path.startswith(without))
            elif words[0] == "Rss:" and counted:
                total += int(words[1]) * 1024
    return total


def seconds(call) -> float:
    """How long *call* takes."""
    began = time.monotonic()
    call()
    return time.monotonic() - began


def time_mkfs(report: Report, times: int) -> None:
    """The row for mkfs of a sparse file of 1 TiB."""
    from mounts import MountedRegion
    with MountedRegion(TIB) as region:
        measured = [seconds(region.mkfs) for _ in range(times)]
        used = os.stat(region.source).st_blocks * 512 / MIB
    middle = statistics.median(measured)
    report.add("mkfs of 1 TiB (sparse), s", [middle, min(measured), max(measured)], middle, 5.0)
    report.add("memory that it takes on tmpfs, MiB", [used, "", ""])


def populate(root: Path, inodes: int) -> None:
    """*inodes* inodes: files in directories of 1,000, one in ten with 4 KiB."""
    made = 0
    while made < inodes:
        folder = root / f"d{made // PER_FOLDER}"
        folder.mkdir()
        made += 1
        for number in range(min(PER_FOLDER - 1, inodes - made)):
            fd = os.open(folder / f"f{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            if number % 10 == 0:
                os.write(fd, bytes(4096))
            os.close(fd)
            made += 1


def walk(root: Path) -> int:
    """stat every path below *root*; how many there are."""
    return sum(1 for folder, dirs, files in os.walk(root) for name in dirs + files
               if os.lstat(os.path.join(folder, name)))


def time_mount(report: Report, args, inodes: int, times: int) -> None:
    """The rows for mount time and memory with *inodes* inodes in use."""
    from mounts import MountedRegion
    with MountedRegion(2 * GIB, mkfs=["--inodes", str(inodes * 5 // 4)], options=args.options) as region:
        region.mount()
        empty = resident(region.pid, str(region.source)) / MIB
        filled = seconds(lambda: populate(region.path, inodes))
        measured = []
        for _ in range(times):
            region.umount()
            # stat() of MountedRegion runs a second command: time mount.daxfs alone, until the mount answers.
            measured.append(seconds(lambda: mount_only(region)))
            region.adopt()
        middle = statistics.median(measured)
        report.add(f"mount with {inodes} inodes, s", [middle, min(measured), max(measured)], middle, 2.0)
        after_mount = resident(region.pid, str(region.source)) / MIB
        found = walk(region.path)
        if found != inodes:
            raise SystemExit(f"{found} inodes found, {inodes} made")
        after_walk = resident(region.pid, str(region.source)) / MIB
        limit = round(120 + 400 * inodes / MIB, 1)
        report.add("daemon's memory after mount, MiB", [after_mount, empty, ""], after_mount, limit)
        report.add("daemon's memory after stat of all, MiB", [after_walk, empty, ""], after_walk, limit)
        report.add("create, µs each", [filled / inodes * 1e6, "", ""])


def mount_only(region) -> None:
    """Run mount.daxfs and have the mount answer once."""
    from mounts import run
    run(region.mount_command())
    os.statvfs(region.path)


def main() -> int:
    parser = bench.parser(__doc__)
    parser.add_argument("--inodes", type=int, default=100_000)
    parser.add_argument("--memory-of", type=int, metavar="PID")
    args = parser.parse_args()
    if args.memory_of:
        print(f"{resident(args.memory_of) / MIB:.1f} MiB")
        return 0
    inodes, times = (min(args.inodes, 5000), 2) if args.quick else (args.inodes, 5)
    report = Report("mkfs, mount and memory", ["median", "min/empty", "max"], args)
    time_mkfs(report, times)
    time_mount(report, args, inodes, times)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
