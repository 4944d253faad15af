#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What -o emulate= makes of fsync and write, medium by medium: asked for, and measured; the table.

All media mounted at the same time, and one mount without, measured in turns by one thread; regions on
/dev/shm. "flush" and "nt" are the mounts' own self-checks (in process, CLOCK_MONOTONIC, medians); "fsync" is
fsync(2) of one 4 KiB block that was just written, with write=cached; "write" is write(2) of 1 MiB
over blocks that are there with O_DIRECT, write=nt. These are lower quartiles: who spins loses its CPU where
others want it. "+": what it takes more than without emulation. Needs root and /dev/fuse; has no target.
"""

import contextlib
import mmap
import os
import statistics
import sys
import time

import bench
from bench import Report

from daxfs import emulate

KIB, MIB = 1 << 10, 1 << 20
COLUMNS = ["flush asked", "flush", "fsync", "+", "nt asked", "nt", "write", "+ "]


class Work:
    """One file of one mount."""

    def __init__(self, region, stack: contextlib.ExitStack):
        self.fd = os.open(region.path / "file", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
        stack.callback(os.close, self.fd)
        self.small, self.large = mmap.mmap(-1, 4 * KIB), mmap.mmap(-1, MIB)
        for at in range(0, 8 * MIB, MIB):
            os.pwrite(self.fd, self.large, at)
        os.fsync(self.fd)

    def fsync(self, number: int) -> int:
        os.pwrite(self.fd, self.small, number % 2048 * 4 * KIB)
        start = time.perf_counter_ns()
        os.fsync(self.fd)
        return time.perf_counter_ns() - start

    def write(self, number: int) -> int:
        start = time.perf_counter_ns()
        os.pwrite(self.fd, self.large, number % 8 * MIB)
        return time.perf_counter_ns() - start


def on_mounts(media: list[str], options: str, call: str, blocks: int, count: int) -> tuple[dict, dict]:
    """(medium to its samples in ns, medium to its self-check) of *call*, in turns."""
    from mounts import MountedRegion
    samples: dict = {name: [] for name in media}
    with contextlib.ExitStack() as stack:
        regions = [stack.enter_context(MountedRegion(64 * MIB)) for _ in media]
        for name, region in zip(media, regions, strict=True):
            region.mount(f"{options},emulate={name}")
        works = [Work(region, stack) for region in regions]
        for turn in range(blocks + 1):
            for name, work in zip(media, works, strict=True):
                taken = [getattr(work, call)(turn * count + n) for n in range(count)]
                samples[name] += taken if turn else []  # the first one warms up
        checks = {name: (region.stat()["emulation"] or {}).get("check", [])
                  for name, region in zip(media, regions, strict=True)}
    return samples, checks


def us(ns: float) -> str:
    return f"{ns / 1000:.1f}"


def main() -> int:
    args = bench.parser(__doc__).parse_args()
    blocks = 4 if args.quick else 40
    media = [emulate.NONE, *emulate.known()]
    more = f",{args.options}" if args.options else ""
    fsyncs, checks = on_mounts(media, f"write=cached{more}", "fsync", blocks, 20)
    writes, _ = on_mounts(media, f"write=nt{more}", "write", blocks, 4)
    report = Report("emulate=, µs: 4 KiB written back, 1 MiB past the cache", COLUMNS, args)
    report.samples = {"fsync": fsyncs, "write": writes}
    middle = {(kind, name): statistics.quantiles(found[name], n=4)[0]
              for kind, found in (("fsync", fsyncs), ("write", writes)) for name in media}
    for name in media:
        seen = {one["what"]: one for one in checks[name]}
        cells = []
        for what, kind in (("flush 4 KiB", "fsync"), ("nt 1 MiB", "write")):
            one = seen.get(what)
            cells += [us(one["asked_ns"]), us(one["median_ns"])] if one else ["-", "-"]
            cells += [us(middle[kind, name]), us(middle[kind, name] - middle[kind, emulate.NONE])]
        report.add(name, cells)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
