#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Per-page state in DRAM (mkfs --map=mem) and in the region (--map=dev), S5: what marking and cleaning costs.

In this process, without a mount: the data path of two file systems, measured in turns on the same work with
write=cached, where each write marks its pages and fsync walks the marks. "scattered" dirties every 64th page
of the file, "dense" all of them. Bytes of DRAM are what the bitmaps of the file take there.
"""

import contextlib
import os
import statistics
import sys
import time

import bench
from bench import Report

KIB, MIB = 1 << 10, 1 << 20
PAGE = 4 * KIB
KINDS = ("mem", "dev")
WORK = {"dense": 1, "scattered": 64}
TIMES = ("mark, ns", "cached write of 4 KiB, ns", "fsync, ns a dirty page")


@contextlib.contextmanager
def data_path(kind: str, size: int):
    """(FileIo, Node) of a file of *size* bytes, written once, on a region made with ``--map=kind``."""
    from mounts import PREFIX

    from daxfs.data.file_io import FileIo
    from daxfs.meta import fs, mkfs, namespace
    from daxfs.region import Region, create_file

    path = f"/dev/shm/{PREFIX}state-{kind}"
    create_file(path, 2 * size + 64 * MIB)
    try:
        with Region.open([path]) as region:
            mkfs.make(region, mkfs.plan(region, map_kind=kind))
            io = FileIo(fs.mount(region), write="cached")
            inode = namespace.create(io.fs, 1, b"file", 0o100644, namespace.ROOT)
            node = io.fs.open(inode.ino)
            io.opened(node)
            for at in range(0, size, MIB):
                io.write(node, at, bytes([1]) * MIB)
            io.fsync(node)
            yield io, node
            io.release(node)
            io.fs.unmount()
    finally:
        os.unlink(path)


def turn(io, node, pages: int, step: int) -> tuple[float, ...]:
    """One round: ns of each mark alone, of each cached write of a page, of each dirty page of the fsync
    after them; bytes of DRAM and slots of the region that the marks take.
    """
    marks = node.map.dirty
    start = time.perf_counter_ns()
    for page in range(0, pages, step):
        marks.set(page, 1)
    marked = time.perf_counter_ns() - start
    marks.clear(0, pages)
    data = b"x" * PAGE
    start = time.perf_counter_ns()
    for page in range(0, pages, step):
        io.write(node, page * PAGE, data)
    written = time.perf_counter_ns() - start
    memory, slots = sys.getsizeof(marks), io.arena.used if io.arena else 0
    start = time.perf_counter_ns()
    flushed = io.fsync(node)
    took = time.perf_counter_ns() - start
    assert flushed == len(range(0, pages, step))
    return marked / flushed, written / flushed, took / flushed, memory, slots


def main() -> int:
    args = bench.parser(__doc__).parse_args()
    size, turns = (8 * MIB, 3) if args.quick else (256 * MIB, 15)
    report = Report("Per-page state: DRAM or region", [*KINDS, "dev / mem"], args)
    with contextlib.ExitStack() as stack:
        paths = {kind: stack.enter_context(data_path(kind, size)) for kind in KINDS}
        for name, step in WORK.items():
            got: dict = {kind: [] for kind in KINDS}
            for number in range(turns):
                for kind in KINDS if number % 2 else KINDS[::-1]:
                    got[kind].append(turn(*paths[kind], size // PAGE, step))
            for column, what in enumerate(TIMES):
                mem, dev = (statistics.median(one[column] for one in got[kind]) for kind in KINDS)
                ratio = statistics.median(b[column] / a[column] for a, b in zip(*got.values(), strict=True))
                report.add(f"{name}: {what}", [mem, dev, ratio])
            for column, what in ((3, "bytes of DRAM"), (4, "slots of the region")):
                taken = [got[kind][0][column] for kind in KINDS]
                report.add(f"{name}: {what} for the marks", [*taken, "-"])
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
