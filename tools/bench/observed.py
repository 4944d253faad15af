#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""fsync(2) of a file with an observed mapping, one page of 4 KiB dirty: what its caller waits, the phases.

A mount on a tmpfs without huge pages, a file that one process maps in pages of 4 KiB (`map_file`), with
fault=kernel and with fault=user. A store to one of 64 pages, then fsync, the program on one CPU and free;
"none": no store before it. Medians of the turns; of phases, which are those of `daxfs stat`, in the mean.
With --against another build's daemon and client take turns with these: ratio is to them, the median of each
turn's. Needs root, /dev/fuse, and a kernel that observes (6.11).
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time

import bench
from bench import Report

MIB, BLOCKS = 1 << 20, 64
TARGET, AGAINST = 100.0, "against: "
PHASES = ("look", "flush", "drain", "python", "other")


class Rig:
    """A mount of this Python's build, and the client on it, in this process."""

    def __init__(self, region, faults, size: int):
        from daxfs.client import map_file
        self.region, self.maps, self.files, self.step = region, {}, {}, size // BLOCKS
        for fault in faults:
            path = region.path / fault
            path.write_bytes(bytes(size))
            array = map_file(path, "r+", require=True, fault=fault, pte=True)
            for n in range(BLOCKS):
                array[n * self.step] = 1
            self.maps[fault], self.files[fault] = array, os.open(path, os.O_RDONLY)
            os.fsync(self.files[fault])

    def turn(self, fault: str, cpu: int | None, count: int, stores: bool) -> dict:
        """The median in µs, and the mean of each phase."""
        everywhere = os.sched_getaffinity(0)
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        try:
            self._fsyncs(fault, count // 10, stores)
            before = self.region.stat()["fsync"]
            took = self._fsyncs(fault, count, stores)
            after = self.region.stat()["fsync"]
        finally:
            os.sched_setaffinity(0, everywhere)
        if after["count"] - before["count"] != count:
            raise SystemExit("other fsyncs were in between")
        return {"caller": statistics.median(took) / 1000} | {
            name: (after["phases"][name]["total_ns"] - before["phases"][name]["total_ns"]) / count / 1000
            for name in PHASES}

    def _fsyncs(self, fault: str, count: int, stores: bool) -> list[int]:
        array, fd, took, now = self.maps[fault], self.files[fault], [], time.perf_counter_ns
        for n in range(count):
            if stores:
                array[n * 7 % BLOCKS * self.step] = n & 255
            began = now()
            os.fsync(fd)
            took.append(now() - began)
        return took


def rig(transport: str, options: str, size: int) -> None:
    """Turns for who writes their arguments to our standard input."""
    from mounts import MountedRegion
    with MountedRegion(256 * MIB, pool="never", transport=transport, options=options) as region:
        region.mount()
        made = Rig(region, ("kernel", "user"), size)
        print("{}", flush=True)
        for line in sys.stdin:
            print(json.dumps(made.turn(*json.loads(line))), flush=True)
        made.maps.clear()
        for fd in made.files.values():
            os.close(fd)


class Build:
    """The rig of one build."""

    def __init__(self, python: str, args):
        command = [python, __file__, "--rig", args.transport, "--options", args.options,
                   "--mapped", str(args.mapped)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def turn(self, *args) -> dict:
        self.process.stdin.write(json.dumps(args) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the rig has ended: {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        if self.process.wait():
            raise SystemExit("the rig has failed at its end")


def arguments() -> argparse.Namespace:
    parser = bench.parser(__doc__, rounds=15)
    parser.add_argument("--calls", type=int, default=500, help="fsyncs of a turn (default 500)")
    parser.add_argument("--mapped", type=int, default=64, help="MiB of the file (default 64)")
    parser.add_argument("--transport", default="uring", help="default uring")
    parser.add_argument("--against", metavar="PYTHON", help="of another build, in turns with this one")
    parser.add_argument("--rig", metavar="TRANSPORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.calls = 2, 50
    return args


def main() -> int:
    args = arguments()
    if args.rig:
        rig(args.rig, args.options, args.mapped * MIB)
        return 0
    from mounts import why_no_transport
    if why := why_no_transport(args.transport):
        raise SystemExit(f"transport={args.transport}: {why}")
    report = Report(f"fsync of an observed file of {args.mapped} MiB, {args.transport}, in turns",
                    ["caller, µs", *PHASES, "ratio"], args)
    builds = {"": Build(sys.executable, args)}
    if args.against:
        builds[AGAINST] = Build(args.against, args)
    first = min(os.sched_getaffinity(0))
    cells = list(itertools.product(("kernel", "user"), (first, None), (True, False)))
    for number in range(args.rounds):
        for fault, cpu, stores in cells:
            what = f"{fault}, {'free' if cpu is None else 'one CPU'}, {'4 KiB' if stores else 'none'}"
            for name in list(builds)[:: 1 if number % 2 else -1]:
                for key, value in builds[name].turn(fault, cpu, args.calls, stores).items():
                    report.samples.setdefault(name + what, {}).setdefault(key, []).append(value)
    for build in builds.values():
        build.close()
    for what, kept in sorted(report.samples.items(), key=lambda one: one[0].removeprefix(AGAINST)):
        medians = {name: statistics.median(values) for name, values in kept.items()}
        other = report.samples.get(AGAINST + what, {}).get("caller")
        ratio = statistics.median(a / b for a, b in zip(kept["caller"], other, strict=True)) if other else ""
        target = TARGET if "4 KiB" in what and not what.startswith(AGAINST) else None
        report.add(what, [*medians.values(), ratio], medians["caller"], target)
    print(f"load while measuring: {' '.join(f'{load:.2f}' for load in os.getloadavg())} (1, 5, 15 minutes)")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
