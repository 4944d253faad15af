#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a mapping costs: open, mmap, munmap and close of a file of 1 MiB, in turns (client: mappings.c).

A DAX file by ``uring`` and ``dev``, a packed file by ``uring``, and a file of the tmpfs that all of them lie
on. Medians of each turn, then of all turns; ratios to tmpfs are medians of each turn's ratios. Target: 60 µs
for a DAX file by ``uring``. Needs root, /dev/fuse, cc, and a kernel with FUSE passthrough (6.9).
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
TARGET = 60.0
STEPS = ("open", "mmap", "munmap", "close", "cycle")
DAX = ("DAX uring", "DAX dev")


def make_file(folder, dax: bool = False) -> Path:
    """A file of 1 MiB; *dax*: in a directory with the flag."""
    folder = Path(folder, "dax" if dax else "plain")
    folder.mkdir()
    if dax:
        import mounts
        mounts.set_dax(folder)
    path = folder / "file"
    path.write_bytes(os.urandom(MIB))
    return path


def run(client: Path, path: Path, cpu: int, count: int) -> dict[str, int]:
    """Step -> median in ns, of one turn."""
    done = subprocess.run([client, str(cpu), str(count), path], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{path}: {done.stderr}")
    return json.loads(done.stdout)


def measure(args, client: Path, files: dict[str, Path], cpu: int) -> dict[str, dict[str, list[float]]]:
    """Step -> file -> µs of each turn; the first turn warms up."""
    samples: dict = {step: {} for step in STEPS}
    for turn in range(args.rounds + 1):
        for name in files if turn % 2 else reversed(files):
            for step, value in run(client, files[name], cpu, args.cycles).items():
                if turn:
                    samples[step].setdefault(name, []).append(value / 1000)
    return samples


def ratio(of: list[float], to: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(of, to, strict=True))


def add(report: Report, what: str, names: list[str], found: dict[str, list[float]], target: bool) -> None:
    """The row of one step."""
    times = {name: statistics.median(values) for name, values in found.items()}
    values = [times.get(name, "missing") for name in names]
    ratios = [ratio(found[name], found["tmpfs"]) if name in found else "missing" for name in names[:-1]]
    measured = times.get(DAX[0]) if target else None
    report.add(what, values + ratios, measured, TARGET if measured is not None else None)


def make_files(stack, args, below: Path) -> dict[str, Path]:
    """Name -> file, of all that can be had here."""
    from mounts import MountedRegion, why_no_transport
    files = {}
    for transport in ("uring", "dev"):
        why = why_no_transport(transport)
        if why:
            print(f"{transport}: {why}", file=sys.stderr)
            continue
        source = below / transport
        source.mkdir()
        region = stack.enter_context(MountedRegion(kind="path", source=source, mkfs=["--size", "64M"],
                                                   options=args.options, transport=transport))
        region.mount()
        why = region.stat()["direct"]["why_not"]
        if why:
            raise SystemExit(f"nothing is mapped directly here: {why}")
        files[f"DAX {transport}"] = make_file(region.path, dax=True)
        if transport == "uring":
            files["packed uring"] = make_file(region.path)
    files["tmpfs"] = make_file(below)
    return files


def main() -> int:
    import mounts
    parser = bench.parser(__doc__, rounds=7)
    parser.add_argument("--cycles", type=int, default=1000, help="cycles in a turn (default 1000)")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.cycles = 2, 200
    names = [*DAX, "packed uring", "tmpfs"]
    report = Report("A mapping of a file of 1 MiB, µs, client on one CPU and free, in turns (medians)",
                    names + [f"{name} / tmpfs" for name in names[:-1]], args)
    with contextlib.ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix=f"mappings-bench-{os.getpid()}-")
        folder = Path(stack.enter_context(made))
        client, below = bench.compiled(folder, "mappings"), folder / "below"
        below.mkdir()
        mounts.run(["mount", "-t", "tmpfs", "-o", "huge=always,size=256m", "daxfs-bench", below])
        stack.callback(mounts.run, ["umount", "-l", below])
        files = make_files(stack, args, below)
        for pinned in (True, False):
            samples = measure(args, client, files, min(os.sched_getaffinity(0)) if pinned else -1)
            for step, found in samples.items():
                add(report, f"{step}{'' if pinned else ', free'}", names, found, step == "cycle")
                report.samples[f"{step}, {'pinned' if pinned else 'free'}"] = found
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
