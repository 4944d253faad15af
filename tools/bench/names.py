#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What requests on names cost by each transport: one C client (names.c), mounted at the same time, in turns.

Medians of each call in a turn, then of all turns; the ratios are medians of the ratios of each turn. Target:
nothing takes more than 1.1 times as long by ``uring`` as by ``pyfuse3`` alone. Needs root, /dev/fuse, cc.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import bench
from bench import Report

MIB = 1 << 20
TRANSPORTS = ("pyfuse3", "dev", "uring")
TARGET = 1.1


def run(client: Path, region, cpu: int, count: int) -> dict[str, int]:
    """Call -> median in ns, of one turn."""
    got = {}
    for more in ([], ["look"]):
        if more:
            region.remount()
        done = subprocess.run([client, str(cpu), str(count), region.path, *more], check=False,
                              capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{region.path}: {done.stderr}")
        got |= json.loads(done.stdout)
    return got


def measure(args, client: Path, regions: dict, cpu: int) -> dict[str, dict[str, list[float]]]:
    """Call -> transport -> µs of each turn; the first turn warms up."""
    samples: dict = {}
    for turn in range(args.rounds + 1):
        for name in regions if turn % 2 else reversed(regions):
            for what, value in run(client, regions[name], cpu, args.calls).items():
                if turn:
                    samples.setdefault(what, {}).setdefault(name, []).append(value / 1000)
    return samples


def ratio(of: list[float], to: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(of, to, strict=True))


def add(report: Report, what: str, found: dict[str, list[float]]) -> None:
    """The row of one call."""
    times = {name: statistics.median(values) for name, values in found.items()}
    ratios = {name: ratio(found[name], found["pyfuse3"]) for name in TRANSPORTS[1:] if name in found}
    report.add(what, [times.get(name, "missing") for name in TRANSPORTS]
               + [ratios.get(name, "missing") for name in TRANSPORTS[1:]],
               ratios.get("uring"), TARGET if "uring" in ratios else None)


def main() -> int:
    from mounts import MountedRegion, why_no_transport
    parser = bench.parser(__doc__, rounds=7)
    parser.add_argument("--calls", type=int, default=400, help="calls of each kind in a turn (default 400)")
    parser.add_argument("--free", action="store_true", help="only with the client free to run anywhere")
    parser.add_argument("--pinned", action="store_true", help="only with the client on one CPU")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.calls = 2, 100
    here = [name for name in TRANSPORTS if not why_no_transport(name)]
    columns = [*TRANSPORTS, *(f"{name} / pyfuse3" for name in TRANSPORTS[1:])]
    report = Report("Requests on names, µs, client on one CPU and free, in turns (medians)", columns, args)
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory(prefix="names-bench-") as folder:
        client = bench.compiled(Path(folder), "names")
        regions = {name: stack.enter_context(MountedRegion(256 * MIB, options=args.options, transport=name))
                   for name in here}
        for region in regions.values():
            region.mount()
        for pinned in (True, False):
            if (args.free and pinned) or (args.pinned and not pinned):
                continue
            samples = measure(args, client, regions, min(os.sched_getaffinity(0)) if pinned else -1)
            for what, found in samples.items():
                add(report, f"{what}{'' if pinned else ', free'}", found)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
