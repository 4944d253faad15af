#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the tracker of track= adds to a write of 4 KiB with write=cached, beside track=none.

In the loop: the C core of the data path alone (tracker.c), pages of 1 MiB (in the near cache) and of 64 MiB
in a random order, of a file that was just written back ("clean": each write marks) and again ("dirty"). Over
a mount: one mount, uring where there is one, that `daxfs set track=` changes between the turns; write(2) with
O_DIRECT at random places of 64 MiB after an fsync, timed by a C client (client.c). All in turns; medians;
ratios are medians of each turn's. Target: at most 1.05, but for line in the loop with 64 MiB, whose bitmap of
128 KiB costs a cache miss a write. Needs root and /dev/fuse for the mount.
"""

import contextlib
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import bench
from bench import Report

MIB = 1 << 20
POLICIES = ("none", "pte", "pmd", "line", "extent")
CORE = ("daxio", "dirty", "file_lock", "filemap", "flush", "flush_x86", "flushers", "own", "trace", "tracker")
LIMIT = 1.05


def in_the_loop(folder: Path, size: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """"clean" and "dirty": ns of a write for each policy and round, *size* in MiB."""
    native = bench.ROOT / "daxfs" / "native"
    program = bench.compiled(folder, "tracker", "-std=gnu11", "-Wno-unused-parameter", "-Wno-sign-compare",
                             "-I", bench.ROOT, *(native / f"{name}.c" for name in CORE), "-lpthread")
    from mounts import run
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="daxfs-tracker-") as file:
        file.truncate(size * MIB)
        found = json.loads(run([program, file.name, str(size), str(rounds)]).stdout)
    return {kind: {name: found[f"{name} {kind}"] for name in POLICIES} for kind in ("clean", "dirty")}


def over_mount(folder: Path, rounds: int, count: int, options: str, cpu: int) -> dict[str, list[float]]:
    """ns of a write for each policy: the median of each turn."""
    from mounts import MountedRegion, run

    from daxfs.fuse import control
    program = bench.compiled(folder, "client", "-lpthread")
    found: dict[str, list[float]] = {name: [] for name in POLICIES}
    with contextlib.ExitStack() as stack:
        region = stack.enter_context(MountedRegion(256 * MIB, options=f"write=cached{options}"))
        region.mount()
        path = region.path / "file"
        path.write_bytes(bytes(64 * MIB))
        fd = os.open(path, os.O_RDWR)
        stack.callback(os.close, fd)
        for turn in range(rounds + 1):
            for name in POLICIES if turn % 2 else POLICIES[::-1]:
                control.ask_path(str(region.path), {"track": name})
                os.fsync(fd)
                done = json.loads(run([program, "write", "4096", str(count), str(64 * MIB), str(cpu),
                                       "direct", str(turn), path]).stdout)
                if turn:  # the first one warms up
                    found[name].append(done["median"])
    return found


def add(report: Report, what: str, found: dict[str, list[float]], without: tuple = ()) -> None:
    """A row for each policy but none; those of *without* have no target."""
    base = found["none"]
    for name in POLICIES[1:]:
        ratio = statistics.median(a / b for a, b in zip(found[name], base, strict=True))
        report.add(f"{what}: {name}", [statistics.median(base), statistics.median(found[name]), ratio], ratio,
                   None if name in without else LIMIT)
    report.samples[what] = found


def main() -> int:
    parser = bench.parser(__doc__, rounds=15)
    parser.add_argument("--count", type=int, default=4000, help="writes in a turn (default 4000)")
    args = parser.parse_args()
    from mounts import why_no_mounts
    if args.quick:
        args.rounds, args.count = 3, 500
    title = f"A write of 4 KiB, ns, load {os.getloadavg()[0]:.1f}"
    report = Report(title, ["none", "tracked", "ratio"], args)
    with tempfile.TemporaryDirectory(prefix="daxfs-bench-tracker-") as name:
        folder = Path(name)
        for size, rounds in ((1, args.rounds * 100), (64, args.rounds * 4)):
            for kind, found in in_the_loop(folder, size, rounds).items():
                add(report, f"{size} MiB, {kind}", found, ("line",) if size == 64 else ())
        if why_no_mounts():
            print(why_no_mounts())
            return report.finish()
        options = f",{args.options}" if args.options else ""
        for cpu, where in ((min(os.sched_getaffinity(0)), "on one CPU"), (-1, "free")):
            add(report, f"mount, {where}", over_mount(folder, args.rounds, args.count, options, cpu))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
