#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What it costs to make 4 KiB durable within a program: libpmem, libdaxfs, and libdaxfs from Python.

    tools/bench/persist.py [--rounds 9] [--count 20000] [--json FILE]

All map the same DAX file of one mount. libdaxfs may take 1.2 times what pmem_persist takes, `array.persist`
1.5 µs more than libdaxfs; the clock's own time is in each. In turns; medians of each turn, then of all turns.
Needs root, /dev/fuse, cc, tmpfs, libpmem (libpmem-dev).
"""

import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import bench
from bench import Report
from faults import fill, in_turns, number

MIB, PAGE = 1 << 20, 4096
LENGTH = 4 * MIB


def compiled(folder: Path) -> Path:
    from daxfs import client
    return bench.compiled(folder, "persist", "-I", client.get_include(), client.LIBRARY,
                          f"-Wl,-rpath,{client.LIBRARY.parent}", "-lpmem")


def by_python(path: Path, count: int) -> float:
    """Median ns of `array.persist(slice)`."""
    from daxfs.client import map_file
    array = map_file(path, shape=LENGTH, pte=True, require=True)
    array[:] = 1
    samples = []
    for i in range(count):
        at = i * 97 % (LENGTH // PAGE) * PAGE
        array[at : at + PAGE] = i & 255
        began = time.perf_counter_ns()
        array.persist(slice(at, at + PAGE))
        samples.append(time.perf_counter_ns() - began)
    return statistics.median(samples)


def main() -> int:
    from mounts import MountedRegion
    parser = bench.parser(__doc__, rounds=9)
    parser.add_argument("--count", type=int, default=20000, help="samples in a turn (default 20000)")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.count = 3, 2000
    report = Report("4 KiB made durable in the process, µs, in turns (medians)",
                    ["libpmem", "libdaxfs", "Python", "compared"], args)
    # What a libpmem that takes the memory for persistent does: without this it calls msync(2) on tmpfs.
    os.environ["PMEM_IS_PMEM_FORCE"] = "1"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="daxfs-bench-persist-")))
        program = compiled(folder)
        region = stack.enter_context(MountedRegion(64 * MIB, pool="never", room=64 * MIB,
                                                   options=args.options))
        region.mount()
        path = fill(region.path / "file", LENGTH)
        got = in_turns(args.rounds, pmem=lambda: number(program, "pmem", args.count, path),
                       daxfs=lambda: number(program, "daxfs", args.count, path),
                       python=lambda: by_python(path, args.count))
    report.samples["persist"] = got
    middle = [statistics.median(values) / 1000 for values in got.values()]
    ratio = statistics.median(a / b for a, b in zip(got["daxfs"], got["pmem"], strict=True))
    over = statistics.median(a - b for a, b in zip(got["python"], got["daxfs"], strict=True)) / 1000
    report.add("libdaxfs / libpmem", [*middle, ratio], ratio, 1.2)
    report.add("Python - libdaxfs, µs", [*middle, over], over, 1.5)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
