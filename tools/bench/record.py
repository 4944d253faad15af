#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What -o record= costs: requests on a mount that is recorded and on one that is not; the table afterwards.

Both mounts at the same time, measured in turns; the log is on /dev/shm. Writes go over blocks that are
there, with O_DIRECT; transport=pyfuse3, for a recorded mount serves nothing natively; a create and an unlink
are several requests each. Medians; CPU time is the daemon's main thread's (schedstat), for one call. In
process: a store with its persist, through a table that was never recorded and through one that was, in
turns: without a recorder there is no cost. Needs root and /dev/fuse.
"""

import contextlib
import mmap
import os
import statistics
import sys
import time
from types import SimpleNamespace

import bench
from bench import Report
from handshake import cpu

KIB, MIB = 1 << 10, 1 << 20
NAMES = ("plain", "recorded")


class Work:
    """The calls of one mount: ``calls``, name to (function of a number, calls in a block)."""

    def __init__(self, region, stack: contextlib.ExitStack):
        self.pid, self.path = region.pid, region.path
        self.fd = os.open(region.path / "file", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
        stack.callback(os.close, self.fd)
        self.small, self.large = mmap.mmap(-1, 4 * KIB), mmap.mmap(-1, MIB)
        for at in range(0, 8 * MIB, MIB):
            os.pwrite(self.fd, self.large, at)
        self.calls = {"4 KiB write": (self.write_small, 100), "1 MiB write": (self.write_large, 8),
                      "create": (self.create, 50), "unlink": (self.unlink, 50)}  # fmt: skip

    def write_small(self, number: int) -> None:
        os.pwrite(self.fd, self.small, number % 2048 * 4 * KIB)

    def write_large(self, number: int) -> None:
        os.pwrite(self.fd, self.large, number % 8 * MIB)

    def create(self, number: int) -> None:
        os.close(os.open(self.path / f"name{number}", os.O_CREAT | os.O_WRONLY | os.O_EXCL))

    def unlink(self, number: int) -> None:
        os.unlink(self.path / f"name{number}")


def block(work: Work, name: str) -> tuple[float, float]:
    """(wall, the daemon's CPU) in µs for one call."""
    call, count = work.calls[name]
    spent, start = cpu(work.pid), time.perf_counter()
    for number in range(count):
        call(number)
    wall = time.perf_counter() - start
    return wall / count * 1e6, (cpu(work.pid) - spent) / count / 1e3


def on_mounts(report: Report, blocks: int, options: str) -> None:
    """The rows of requests."""
    from mounts import PREFIX, MountedRegion
    log = f"/dev/shm/{PREFIX}record"
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: os.path.exists(log) and os.unlink(log))
        regions = [stack.enter_context(MountedRegion(64 * MIB, transport="pyfuse3")) for _ in NAMES]
        for region, extra in zip(regions, ("", f"record={log}"), strict=True):
            region.mount(",".join(filter(None, (options, extra))))
        works = [Work(region, stack) for region in regions]
        times: dict = {(name, which): [] for name in works[0].calls for which in range(2)}
        for turn in range(blocks + 1):
            for which in (0, 1) if turn % 2 else (1, 0):
                for name in works[which].calls:
                    got = block(works[which], name)
                    if turn:  # the first one warms up
                        times[name, which].append(got)
        for name in works[0].calls:
            (off, off_cpu), (on, on_cpu) = (map(statistics.median, zip(*times[name, which], strict=True))
                                            for which in range(2))
            report.add(f"{name}, µs", [off, on, on / off, off_cpu, on_cpu, on_cpu / off_cpu])


def in_process(report: Report, rounds: int) -> None:
    """The row of a table that was never recorded, and one that was: both on the same bytes."""
    from mounts import PREFIX

    from daxfs._flush import Flush
    from daxfs._record import Recorder
    from daxfs.region import Region, create_file
    path = f"/dev/shm/{PREFIX}record"
    create_file(path, 4 * MIB)
    with contextlib.ExitStack() as stack:
        stack.callback(os.unlink, path)
        region = stack.enter_context(Region.open([path]))
        tables = [Flush(region.granularity, region.flush.kind, region.flush.nt) for _ in range(2)]
        with Recorder(SimpleNamespace(flush=tables[1], address=region.address)):
            tables[1].store(region.address, b"recorded")
        times: list[list[float]] = [[], []]
        for turn in range(rounds):
            for which in (0, 1) if turn % 2 else (1, 0):
                times[which].append(stores(tables[which], region.address))
        off, on = map(statistics.median, times)
        report.add("store, persist: table was recorded, ns", [off, on, on / off, "", "", ""], on / off, 1.03)


def stores(table, address: int, count: int = 2000) -> float:
    """ns of one store of 8 bytes and its persist."""
    store, persist, data = table.store, table.persist, b"12345678"
    start = time.perf_counter_ns()
    for _ in range(count):
        store(address, data)
        # Order is not the point: what the two calls cost is.
        persist(address, 8)
    return (time.perf_counter_ns() - start) / count


def main() -> int:
    args = bench.parser(__doc__).parse_args()
    report = Report("Requests on a mount with record= and on one without, in turns (medians)",
                    [*NAMES, "ratio", "plain CPU", "recorded CPU", "CPU ratio"], args)
    on_mounts(report, 4 if args.quick else 40, args.options)
    in_process(report, 20 if args.quick else 400)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
