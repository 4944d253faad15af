#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Row S17: `xfs_io -fc "truncate 0" -c "pwrite -b 8m 0 3g" -c fsync` on daxfs and on ext4 over a loop device.

daxfs by each transport (one region, mounted anew for each turn) and ext4, buffered, on a loop device; region
and image lie on the same tmpfs. In turns; the first turn, which takes the memory, does not count. Time is
that of the whole command; MiB/s, medians. Where memory is short less than 3 GiB is written, and the title
says so. Target of issue 4: dev and uring are faster than ext4. Needs root, /dev/fuse, loop devices and
xfs_io; cleans up after failures.
"""

import contextlib
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

import bench
from bench import Report
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

MIB, GIB = 1 << 20, 1 << 30
TRANSPORTS = ("pyfuse3", "dev", "uring")
WANTED = 3 * GIB


def affordable(wanted: int) -> int:
    """*wanted* bytes, or the part of it for which region, image and ext4's page cache fit: whole 64 MiB."""
    room = os.statvfs("/dev/shm")
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    most = min(available // 4, room.f_bavail * room.f_frsize // 3)
    return min(wanted, most // (64 * MIB) * 64 * MIB)


def script(folder: Path, size: int) -> float:
    """MiB/s of the row's command in *folder*."""
    from mounts import run
    command = ["xfs_io", "-fc", "truncate 0", "-c", f"pwrite -b 8m 0 {size}", "-c", "fsync", folder / "file"]
    began = time.perf_counter()
    run(command)
    spent = time.perf_counter() - began
    written = os.stat(folder / "file").st_size
    if written != size:
        raise SystemExit(f"{folder}: {written} bytes in the file, {size} written")
    return size / MIB / spent


def measure(report: Report, regions: dict, ext4: Path, size: int, turns: int) -> dict[str, list[float]]:
    """Samples by name, in turns."""
    found: dict[str, list[float]] = {name: [] for name in [*regions, "ext4"]}
    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*bars, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("turns", total=(turns + 1) * len(found))
        for turn in range(turns + 1):
            for name in list(found) if turn % 2 else list(reversed(found)):
                if name == "ext4":
                    got = script(ext4, size)
                else:
                    region = regions[name].mount(f"transport={name}")
                    got = script(region.path, size)
                    region.umount()
                if turn:
                    found[name].append(got)
                progress.advance(task)
    report.samples["pwrite -b 8m, fsync: MiB/s"] = found
    return found


def main() -> int:
    parser = bench.parser(__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--size", type=int, metavar="MIB", help=f"bytes to write (default {WANTED // MIB})")
    args = parser.parse_args()
    from loops import LoopMount, why_not
    from mounts import MountedRegion, why_no_mounts, why_no_transport
    reason = why_no_mounts() or why_not("ext4")
    if reason or not shutil.which("xfs_io"):
        print(f"s17: {reason or 'xfs_io is not installed'}")
        return 2
    wanted = args.size * MIB if args.size else 256 * MIB if args.quick else WANTED
    size, turns = affordable(wanted), 2 if args.quick else args.turns
    less = "" if size == wanted else f" (scaled down from {wanted // MIB}: memory is short)"
    missing = {name: reason for name in TRANSPORTS if (reason := why_no_transport(name))}
    names = [name for name in TRANSPORTS if name not in missing]
    title = f"S17: truncate 0, pwrite -b 8m 0 {size // MIB}m{less}, fsync"
    report = Report(title, ["MiB/s", "ext4", "ratio"], args)
    with contextlib.ExitStack() as stack:
        region = stack.enter_context(MountedRegion(size + size // 4 + 256 * MIB, options=args.options))
        ext4 = stack.enter_context(LoopMount("ext4", size + size // 4 + 256 * MIB))
        found = measure(report, dict.fromkeys(names, region), ext4.path, size, turns)
    other = statistics.median(found["ext4"])
    for name in TRANSPORTS:
        if name in missing:
            report.add(f"daxfs, {name}", ["missing", other, ""])
            print(missing[name])
            continue
        mine = statistics.median(found[name])
        report.add(f"daxfs, {name}", [mine, other, mine / other], mine / other,
                   None if name == "pyfuse3" else 1.0, at_least=True)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
