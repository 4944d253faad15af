#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What our own INIT handshake saves: writes on a mount of ours against one that libfuse made.

Both are mounted at the same time and measured in turns, a block of 300 sequential
writes of 4 KiB on one, then on the other; medians of all blocks. Buffered: the
kernel asks for security.capability before each write on the mount by libfuse.
O_DIRECT is there as a control: the same number of requests on both. CPU time is the
daemon's main thread's (schedstat), which says more than the clock on a busy machine. transport=pyfuse3
on both: a mount by libfuse has no other.
Needs root and /dev/fuse.
"""

import contextlib
import mmap
import os
import statistics
import sys
import time

import bench
from bench import Report

BLOCK = 300
SIZE = 4096
KINDS = {"buffered": 0, "O_DIRECT": os.O_DIRECT}


def cpu(pid: int) -> int:
    """Nanoseconds on a CPU of a process's main thread."""
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0])


def block(fd: int, pid: int, data) -> tuple[float, float]:
    """(wall, daemon's CPU) in µs for one write."""
    spent, start = cpu(pid), time.perf_counter()
    for number in range(BLOCK):
        os.pwrite(fd, data, number * SIZE)
    wall = time.perf_counter() - start
    return wall / BLOCK * 1e6, (cpu(pid) - spent) / BLOCK / 1e3


def mounted(stack: contextlib.ExitStack, maker: str, options: str):
    """A mount made by *maker*, "daxfs" or "libfuse"."""
    from mounts import MountedRegion
    os.environ["DAXFS_HANDSHAKE"] = maker
    region = stack.enter_context(MountedRegion(64 << 20, options=options, transport="pyfuse3")).mount()
    if region.stat()["mounted_by"].split(":")[0] != maker:
        raise SystemExit(f"not mounted by {maker}: {region.stat()['mounted_by']}")
    return region


def main() -> int:
    args = bench.parser(__doc__).parse_args()
    report = Report("4 KiB sequential writes, mounted by libfuse and by ourselves, in turns (medians, µs)",
                    ["libfuse", "daxfs", "ratio", "libfuse CPU", "daxfs CPU", "CPU ratio"], args)
    data = mmap.mmap(-1, SIZE)
    with contextlib.ExitStack() as stack:
        regions = {maker: mounted(stack, maker, args.options) for maker in ("libfuse", "daxfs")}
        for kind, flag in KINDS.items():
            found: dict[str, list] = {maker: [] for maker in regions}
            with contextlib.ExitStack() as files:
                fds = {}
                for maker, region in regions.items():
                    fds[maker] = os.open(region.path / kind, os.O_CREAT | os.O_WRONLY | flag)
                    files.callback(os.close, fds[maker])
                    block(fds[maker], region.pid, data)
                for _ in range(5 if args.quick else 40):
                    for maker, region in regions.items():
                        found[maker].append(block(fds[maker], region.pid, data))
            old, new = ([statistics.median(column) for column in zip(*found[maker], strict=True)]
                        for maker in ("libfuse", "daxfs"))
            report.add(kind, [old[0], new[0], new[0] / old[0], old[1], new[1], new[1] / old[1]])
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
