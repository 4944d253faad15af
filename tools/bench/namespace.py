#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a name costs: in small and huge files, in small and large directories.

Targets of issue 2: 4 KiB and 4 GiB (one extent) cost the same (here: within
1.25 times); each of 10,000 files in one directory costs what each of 100 does
(within 1.5 times). Small and large are measured in turns; medians. ``--on DIR``
runs on any directory, without daxfs. The huge file is written with direct I/O
into a sparse region on /dev/shm: 6 GiB of memory, freed at the end.
"""

import contextlib
import ctypes
import mmap
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

import bench
from bench import Report

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
AT_FDCWD, AT_STATX_FORCE_SYNC, STATX_BASIC = -100, 0x2000, 0x7FF
SAME, PER_FILE = 1.25, 1.5
_libc = ctypes.CDLL(None, use_errno=True)
_statx_buffer = ctypes.create_string_buffer(256)


def fresh_stat(path: bytes) -> None:
    """statx(2) that must ask the file system: the kernel's cached attributes would hide the cost."""
    if _libc.statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_BASIC, _statx_buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


def open_close(path: bytes) -> None:
    """One open and close."""
    os.close(os.open(path, os.O_RDONLY))


def timed(call, path: bytes) -> int:
    """Duration of call(path) in ns."""
    began = time.perf_counter_ns()
    call(path)
    return time.perf_counter_ns() - began


def fill(path: bytes, size: int) -> None:
    """Write *size* bytes in 1 MiB pieces (or one 4 KiB piece) with direct I/O: no page cache is filled."""
    piece = min(size, MIB)
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o644)
    with mmap.mmap(-1, piece) as buffer:
        buffer[:] = b"\x5a" * piece
        for pos in range(0, size, piece):
            os.pwrite(fd, buffer, pos)
    os.fsync(fd)
    os.close(fd)
    if os.stat(path).st_blocks * 512 < size:
        raise SystemExit(f"{os.fsdecode(path)}: not all of it is allocated")


def by_size(report: Report, root: Path, big: int, rounds: int, repeats: int) -> None:
    """Rows for open, stat and unlink at 4 KiB and at *big* bytes."""
    sizes = {"small": 4 * KIB, "big": big}
    times = {what: {name: [] for name in sizes} for what in ("open", "stat", "unlink")}
    paths = {name: os.fsencode(root / name) for name in sizes}
    for number in range(rounds):
        order = list(sizes) if number % 2 else list(reversed(sizes))
        for name in order:
            fill(paths[name], sizes[name])
        for _ in range(repeats):
            for name in order:
                times["open"][name].append(timed(open_close, paths[name]))
                times["stat"][name].append(timed(fresh_stat, paths[name]))
        time.sleep(0.2)  # the kernel's releases of the opens are asynchronous
        for name in order:
            times["unlink"][name].append(timed(os.unlink, paths[name]))
    for what, both in times.items():
        small, large = (statistics.median(both[name]) / 1000 for name in ("small", "big"))
        label = f"{what}, µs: 4 KiB and {big / GIB:g} GiB ({len(both['big'])} times)"
        report.add(label, [small, large, large / small], large / small, SAME)


def per_name(call, names: list[bytes]) -> float:
    """Mean ns of call(name) over *names*."""
    began = time.perf_counter_ns()
    for name in names:
        call(name)
    return (time.perf_counter_ns() - began) / len(names)


def create(path: bytes) -> None:
    """Make an empty file."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def by_count(report: Report, root: Path, parts: int, fresh) -> None:
    """Rows for create, stat, unlink: a directory of parts * 100 files against *parts* directories of 100.

    In turns of 100 files. What counts for create and unlink is the quarter of the turns in which the large
    directory is largest. *fresh* mounts anew, so that stat has to look each name up.
    """
    (root / "large").mkdir()
    small, large = [], []
    for part in range(parts):
        (root / f"small{part}").mkdir()
        small.append([os.fsencode(root / f"small{part}" / f"file-{number:06}") for number in range(100)])
        names = range(part * 100, part * 100 + 100)
        large.append([os.fsencode(root / "large" / f"file-{number:06}") for number in names])
    quarter = max(1, parts // 4)
    for what, call, which in (("create", create, slice(-quarter, None)), ("stat", os.stat, slice(None)),
                              ("unlink", os.unlink, slice(0, quarter))):
        costs = ([], [])
        for pair in zip(small, large, strict=True):
            for cost, part in zip(costs, pair, strict=True):
                cost.append(per_name(call, part))
        few, many = (statistics.median(cost[which]) / 1000 for cost in costs)
        report.add(f"{what}, µs each: of 100 and of {parts * 100}", [few, many, many / few], many / few,
                   PER_FILE)
        if what == "create":
            fresh()


def main() -> int:
    parser = bench.parser(__doc__)
    parser.add_argument("--on", type=Path, metavar="DIR", help="measure in DIR instead of on a daxfs mount")
    args = parser.parse_args()
    big, rounds, parts = (256 * MIB, 3, 20) if args.quick else (4 * GIB, 5, 100)
    report = Report("What a name costs (medians)", ["small", "large", "ratio"], args)
    with contextlib.ExitStack() as stack:
        if args.on:
            root = args.on / f"bench-{os.getpid()}"
            root.mkdir()
            fresh = time.perf_counter
        else:
            from mounts import MountedRegion
            region = stack.enter_context(MountedRegion(big + 2 * GIB, options=args.options)).mount()
            root, fresh = region.path / "bench", region.remount
            root.mkdir()
        by_count(report, root, parts, fresh)
        by_size(report, root, big, rounds, 100)
        if args.on:
            shutil.rmtree(root)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
