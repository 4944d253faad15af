#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What write-back takes with one flusher and with two, beside a plain loop of the same instruction (S15).

First in this process, by size: where FLUSHERS_FROM (daxfs/native/flushers.h) comes from. Then over a mount
(write=cached,track=pte, uring where there is one): fsync(2) of 64 MiB that were just written, timed by a C
client (flushers.c) that finds the same memory in the region's file and flushes it by itself, in turns; `daxfs
set flushers=` changes the mount between the turns. Medians; ratios: the plain loop's time / ours.
Targets, of 64 MiB, in the process and over the mount: one flusher at least 0.9, two at least 1.5. And no size
may take longer with two than with one (1.1: what a busy machine adds). Needs root and /dev/fuse for the
mount, two CPUs for the targets of two.
"""

import contextlib
import ctypes
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import bench
from bench import Report

MIB = 1 << 20
SIZES = (1, 2, 3, 4, 8, 16, 64)  # MiB
ROOM = 80 * MIB
COLUMNS = ["plain, µs", "one, µs", "two, µs", "plain / one", "plain / two"]


class Rig:
    """A data path of *flushers* over the 64 MiB from 2 MiB of *region* on."""

    def __init__(self, region, flushers: int):
        from daxfs._iomap import MAPPED, FileMap
        from daxfs.data._dax_io import DaxIo
        from daxfs.data._tracker import PteTracker
        self.dax, self.map = DaxIo(region, PteTracker(), "cached", flushers=flushers), FileMap()
        self.map.load([(0, 64 * 256, 512, MAPPED, 0)])
        self.map.size = 64 * MIB
        self.dax.tracker.attach(self.map)

    def dirty(self, size: int, data: bytes) -> None:
        for part in range(size):
            self.dax.write(self.map, part * MIB, data)

    def write_back(self) -> int:
        return self.dax.writeback(self.map)


def in_process(folder: Path, rounds: int) -> dict[int, dict[str, list[int]]]:
    """Size in MiB: samples in ns of the plain loop, of one flusher, of two."""
    from daxfs.region import Region, create_file
    so = ctypes.CDLL(str(bench.compiled(folder, "flushers", "-shared", "-fPIC")))
    so.plain_flush.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p]
    data, found = bytes(range(256)) * (MIB // 256), {}
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="daxfs-flushers-") as file:
        create_file(file.name + ".region", ROOM)
        region = Region.open([file.name + ".region"])
        try:
            region.nt_fill(0, 1, ROOM)
            one, two, kind = Rig(region, 1), Rig(region, 2), region.flush.kind.encode()
            for size in SIZES:
                memory = (region.address + 2 * MIB, size * MIB, kind)
                calls = {"plain": lambda memory=memory: so.plain_flush(*memory), "one": one.write_back,
                         "two": two.write_back}
                took: dict[str, list[int]] = {name: [] for name in calls}
                for turn in range(rounds):
                    for name, call in list(calls.items())[:: 1 if turn % 2 else -1]:
                        (two if name == "two" else one).dirty(size, data)
                        time.sleep(0.002)  # helpers sleep
                        start = time.perf_counter_ns()
                        call()
                        took[name].append(time.perf_counter_ns() - start)
                    one.write_back()
                found[size] = took
        finally:
            region.close()
            os.unlink(file.name + ".region")
    return found


def over_mount(folder: Path, rounds: int, count: int, options: str, cpu: int) -> dict[str, list[list[int]]]:
    """Samples in ns, a list for each turn: fsync with one flusher, with two, the plain loop beside each."""
    from mounts import MountedRegion, run

    from daxfs.fuse import control
    program = bench.compiled(folder, "flushers")
    found: dict[str, list[list[int]]] = {"one": [], "plain one": [], "two": [], "plain two": []}
    with MountedRegion(256 * MIB, options=f"write=cached,track=pte{options}") as region:
        region.mount()
        facts = control.ask_path(str(region.path), {"get": "stat"})
        for turn in range(rounds + 1):
            for number, name in ((1, "one"), (2, "two")) if turn % 2 else ((2, "two"), (1, "one")):
                control.ask_path(str(region.path), {"flushers": str(number)})
                done = json.loads(run([program, region.path / "file", region.source, "64", str(count),
                                       str(cpu), facts["flush"]["kind"]]).stdout)
                if turn:  # the first one warms up
                    found[name].append(done["fsync"])
                    found[f"plain {name}"].append(done["plain"])
    return found


def middle(samples: list) -> float:
    return statistics.median(samples) / 1000


def turns_of(found: dict, name: str) -> tuple[float, float]:
    """(median of the turns' medians in µs, median of the ratios plain / *name* of each turn)."""
    own, plain = ([statistics.median(turn) for turn in found[key]] for key in (name, f"plain {name}"))
    return statistics.median(own) / 1000, statistics.median(b / a for a, b in zip(own, plain, strict=True))


def main() -> int:
    parser = bench.parser(__doc__, rounds=5)
    parser.add_argument("--count", type=int, default=20, help="samples in a turn over the mount (default 20)")
    args = parser.parse_args()
    from mounts import why_no_mounts
    if args.quick:
        args.rounds, args.count = 2, 3
    samples = 10 if args.quick else args.rounds * 20
    cpus = sorted(os.sched_getaffinity(0))
    two = len(cpus) > 1
    report = Report(f"Write-back of dirty memory, load {os.getloadavg()[0]:.1f}", COLUMNS, args)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="daxfs-bench-flushers-")))
        for size, took in in_process(folder, samples).items():
            plain, *ours = (middle(took[name]) for name in ("plain", "one", "two"))
            row = [plain, *ours, plain / ours[0], plain / ours[1]]
            if size == SIZES[-1]:
                report.add(f"{size} MiB, one", row, row[3], 0.9, at_least=True)
                report.add(f"{size} MiB, two", row, row[4], 1.5 if two else None, at_least=True)
            else:
                report.add(f"{size} MiB, time of two / one", row, ours[1] / ours[0], 1.1)
            report.samples[f"{size} MiB"] = took
        if why_no_mounts():
            print(why_no_mounts())
            return report.finish()
        for cpu, where in ((cpus[0], "client on one CPU"), (-1, "client free")):
            options = f",{args.options}" if args.options else ""
            found = over_mount(folder, args.rounds, args.count, options, cpu)
            one, ratio_one = turns_of(found, "one")
            double, ratio_two = turns_of(found, "two")
            plain = middle([ns for turn in found["plain one"] for ns in turn])
            row = [plain, one, double, ratio_one, ratio_two]
            report.add(f"fsync of 64 MiB, {where}: one", row, ratio_one, 0.9, at_least=True)
            report.add(f"fsync of 64 MiB, {where}: two", row, ratio_two, 1.5 if two else None, at_least=True)
            report.samples[f"fsync, {where}"] = found
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
