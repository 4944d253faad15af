#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A direct mapping of a DAX file beside one of a file of the tmpfs below it, in turns. Targets of issue 5.

touch: a store to each page of a hole, with all faults, and how much of it is mapped by PMDs; random loads and
stores of 8 bytes (client: direct.c, pinned); fio's ioengine=mmap, random 4 KiB reads and writes over a file
that is there; memory of 1000 files of 4 KiB, closed (Shmem and slab of /proc/meminfo, and what the daemon has
by itself), on a tmpfs without huge pages, where a small file is small. Ratios are medians of the turns'.
Needs root, /dev/fuse, cc, FUSE passthrough (6.9); fio for its rows.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench
from bench import Report

NAMES = ("DAX file", "tmpfs file")
FIO = {"randread": "read", "randwrite": "write"}
FILES = 1000
PAGE = 4096
SAME = 1.05  # "1.0 times", to its one decimal


def folders(stack, args, huge: str, room: int):
    """({name: folder}, the mounted region): a DAX directory, and one of the tmpfs below."""
    from mounts import MountedRegion
    region = stack.enter_context(MountedRegion(64 << 20, pool=huge, room=room, options=args.options))
    region.mount()
    why = region.stat()["direct"]["why_not"]
    if why:
        raise SystemExit(f"nothing is mapped directly here: {why}")
    plain = region.source.parent / "plain"
    plain.mkdir()
    return {NAMES[0]: region.path, NAMES[1]: plain}, region


def output(command: list) -> str:
    done = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr}")
    return done.stdout


def in_turns(where: dict, rounds: int, measure) -> dict[str, list[dict]]:
    """{name: what *measure(folder)* gave in each turn}; the first turn warms up."""
    got: dict = {name: [] for name in where}
    for turn in range(rounds + 1):
        for name in where if turn % 2 else reversed(where):
            found = measure(where[name])
            if turn:
                got[name].append(found)
    return got


def add(report: Report, what: str, got: dict, key: str, limit: float | None = None,
        at_least: bool = False, scale: float = 1) -> None:
    """The row of one value, with the medians of the turns and the median of their ratios."""
    here, there = ([one[key] for one in got[name]] for name in NAMES)
    ratio = statistics.median(a / b for a, b in zip(here, there, strict=True))
    values = [statistics.median(values) / scale for values in (here, there)]
    report.add(what, [*values, ratio], ratio, limit, at_least)
    report.samples[what] = {NAMES[0]: here, NAMES[1]: there}


def loads_and_stores(report: Report, args, client: Path, where: dict) -> None:
    cpu = min(os.sched_getaffinity(0))
    got = in_turns(where, args.rounds, lambda folder: json.loads(
        output([client, cpu, args.size, args.count, folder / "file"])))
    add(report, f"touch {args.size} MiB, ms", got, "touch", 1.05, scale=1e6)
    add(report, "of it mapped by PMDs, MiB", got, "pmd", 1.0, at_least=True, scale=1024)
    add(report, "random load of 8 bytes, ns", got, "load", SAME)
    add(report, "random store of 8 bytes, ns", got, "store", SAME)


def fio(report: Report, args, where: dict) -> None:
    if not shutil.which("fio"):
        print("fio is missing: its rows are left out", file=sys.stderr)
        return
    size = args.size // 4
    for folder in where.values():
        (folder / "fio").write_bytes(os.urandom(1 << 20) * size)
    for mode, kind in FIO.items():
        def measure(folder, mode=mode, kind=kind) -> dict:
            text = output(["fio", "--name=x", f"--filename={folder / 'fio'}", "--ioengine=mmap", "--bs=4k",
                           f"--rw={mode}", f"--size={size}M", f"--runtime={args.seconds}", "--time_based",
                           "--randrepeat=1", "--output-format=json"])
            return json.loads(text)["jobs"][0][kind]
        got = in_turns(where, args.rounds, measure)
        add(report, f"fio mmap {mode} 4k, 1000/s", got, "iops", 0.95, True, 1e3)


def memory_now(pid: int) -> int:
    """KiB that grow with files: of tmpfs, of the kernel's caches, and of the daemon alone."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    own = next(int(line.split()[1]) for line in rollup if line.startswith("Anonymous:"))
    return sum(int(lines[name].split()[0]) for name in ("Shmem", "SUnreclaim", "SReclaimable")) + own


def memory(report: Report, args) -> None:
    count = 100 if args.quick else FILES
    with contextlib.ExitStack() as stack:
        where, region = folders(stack, args, "never", 256 << 20)
        (region.path / "first").write_bytes(b"x")  # takes the region's own storage

        def measure(folder) -> dict:
            sub = Path(tempfile.mkdtemp(dir=folder))
            time.sleep(2.5)  # handles that are kept for a while go
            before = memory_now(region.pid)
            for n in range(count):
                (sub / str(n)).write_bytes(b"x" * PAGE)
            time.sleep(2.5)
            grown = memory_now(region.pid) - before
            shutil.rmtree(sub)
            return {"KiB": grown}
        got = in_turns(where, 2 if args.quick else 4, measure)
        add(report, f"memory of {count} files of 4 KiB, KiB", got, "KiB", 2.0)


def main() -> int:
    parser = bench.parser(__doc__, rounds=5)
    parser.add_argument("--size", type=int, default=1024, help="MiB that are mapped (default 1024)")
    parser.add_argument("--count", type=int, default=10_000_000, help="loads, and stores, in a turn")
    parser.add_argument("--seconds", type=int, default=3, help="of each run of fio (default 3)")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.size, args.count, args.seconds = 2, 64, 100_000, 1
    report = Report("Direct mappings beside the tmpfs below, in turns", [*NAMES, "ratio"], args)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"direct-bench-{os.getpid()}-")))
        client = bench.compiled(folder, "direct")
        where, _ = folders(stack, args, "always", (3 * args.size + 128) << 20)
        loads_and_stores(report, args, client, where)
        fio(report, args, where)
    memory(report, args)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
