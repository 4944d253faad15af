#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What observed mappings cost beside plain ones, in turns (client: faults.c, libdaxfs). Targets of issue 6.

fault=kernel: first touch, the first store after a write-back, msync of one page in mappings of several
sizes, and the same msync on ext4 over a loop device. fault=user: one fault, of 4 KiB and of 2 MiB, beside the
smallest handler that this machine can have (faults_min.c, whose client faults on the same file of the pool).
Which CPU a handler is woken on decides more than what it does, and the scheduler need not choose alike: so
also with client and handler held on two CPUs, and on one, where no CPU is woken and system calls show.
Medians of each turn, then of all turns; ratios are medians of each turn's. Needs root, /dev/fuse, cc, tmpfs
huge=always, and Linux 6.11.
"""

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import bench
from bench import Report

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
HUGE = 2 * MIB


def compiled(folder: Path) -> dict[str, Path]:
    from daxfs import client
    library = ["-I", client.get_include(), client.LIBRARY, f"-Wl,-rpath,{client.LIBRARY.parent}"]
    return {"faults": bench.compiled(folder, "faults", *library),
            "faults_min": bench.compiled(folder, "faults_min")}


def number(*command) -> float:
    """What the program printed, ns."""
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr}")
    return float(done.stdout)


def in_turns(rounds: int, **measures) -> dict[str, list[float]]:
    """{name: ns of each turn}; the first turn warms up."""
    got: dict = {name: [] for name in measures}
    for turn in range(rounds + 1):
        for name in measures if turn % 2 else reversed(measures):
            value = measures[name]()
            if turn:
                got[name].append(value)
    return got


def add(report: Report, what: str, got: dict, limit: float | None, absolute: bool = False) -> None:
    """The row of two things measured: both medians, the median of their ratios, and what has the target."""
    mine, other = got.values()
    ratio = statistics.median(a / b for a, b in zip(mine, other, strict=True))
    values = [statistics.median(mine) / 1000, statistics.median(other) / 1000, ratio]
    report.add(what, values, values[0] if absolute else ratio, limit)
    report.samples[what] = got


def kernel_rows(report: Report, args, faults: Path, files: dict[str, Path], ext4: Path | None) -> None:
    big, small = files["huge"], files["pages"]

    def run(*words):
        return lambda: number(faults, *words)

    add(report, f"touch {args.size} MiB, µs: kernel / plain", in_turns(
        args.rounds, kernel=run("kernel", "touch", args.size * MIB, 1, big),
        plain=run("plain", "touch", args.size * MIB, 1, big)), 1.3)
    add(report, "first store after a flush, 4 KiB, µs: kernel / plain", in_turns(
        args.rounds, kernel=run("kernel-pte", "again", 4 * MIB, args.count, small),
        plain=run("plain", "again", 4 * MIB, args.count, small)), 4.0, absolute=True)
    sizes = {"4 KiB": 4 * KIB, "2 MiB": HUGE, f"{args.size} MiB": args.size * MIB}
    for name, size in sizes.items():
        got = in_turns(args.rounds, kernel=run("kernel-pte", "msync", size, args.count, small),
                       least=run("kernel-pte", "msync", 4 * KIB, args.count, small))
        add(report, f"msync of one page of {name}, µs: kernel / of 4 KiB", got, 1.5)
    add(report, f"msync of one page of {name}, µs: kernel", got, 10.0, absolute=True)
    if ext4 is not None:
        add(report, f"msync of one page of {args.size} MiB, µs: kernel / ext4 on a loop device", in_turns(
            args.rounds, kernel=run("kernel-pte", "msync", args.size * MIB, args.count, small),
            ext4=run("plain", "msync", args.size * MIB, 50, ext4)), 1 / 3)


@contextlib.contextmanager
def both_held(pid: int, client: set[int], handler: set[int]):
    """The client on *client*; the threads of the daemon *pid*, or the smallest handler, on *handler*."""
    from lab.pinned import held
    os.environ["HANDLER_CPU"] = str(min(handler))
    try:
        with held(pid, client, handler):
            yield
    finally:
        del os.environ["HANDLER_CPU"]


def user_rows(report: Report, args, programs: dict[str, Path], file: Path, pid: int) -> None:
    cpus = sorted(os.sched_getaffinity(0))

    def row(what: str, where: str, how: str, step: int, limit: float | None) -> None:
        add(report, f"a fault of {what}{where}, µs: user / the smallest handler", in_turns(
            args.rounds, user=lambda: number(programs["faults"], how, "fault", 256 * MIB, 4000, file),
            least=lambda: number(programs["faults_min"], step, 4000, file)), limit)

    for what, how, step, limit in (("4 KiB", "user-pte", 4 * KIB, 1.2), ("2 MiB", "user", HUGE, 1.5)):
        row(what, "", how, step, limit)
        if len(cpus) > 1:
            with both_held(pid, {cpus[0]}, {cpus[1]}):
                row(what, ", on two CPUs", how, step, limit)
        with both_held(pid, {cpus[0]}, {cpus[0]}):
            row(what, ", on one CPU", how, step, None)


@contextlib.contextmanager
def on_ext4(size: int):
    """A file of *size* bytes on ext4 over a loop device, or None where that can't be."""
    import mounts
    if not shutil.which("mkfs.ext4"):
        print("no mkfs.ext4: its row is left out", file=sys.stderr)
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="daxfs-bench-ext4-") as folder:
        image, place = Path(folder, "image"), Path(folder, "mnt")
        place.mkdir()
        with open(image, "wb") as file:
            file.truncate(size + 128 * MIB)
        mounts.run(["mkfs.ext4", "-q", "-F", image])
        mounts.run(["mount", "-o", "loop", image, place])
        try:
            yield fill(place / "file", size)
        finally:
            mounts.run(["umount", place])


def fill(path: Path, size: int) -> Path:
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        for _ in range(size // MIB):
            file.write(b"x" * MIB)
    return path


def main() -> int:
    from mounts import MountedRegion
    parser = bench.parser(__doc__, rounds=5)
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of the large mapping")
    parser.add_argument("--count", type=int, default=1000, help="samples in a turn (default 1000)")
    parser.add_argument("--user", action="store_true", help="the rows of fault=user alone")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.size, args.count = 2, 64, 100
    report = Report("Observed mappings, in turns (medians)", ["observed", "beside it", "ratio"], args)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="daxfs-bench-faults-")))
        programs, files = compiled(folder), {}
        for name, huge in (("huge", "always"), ("pages", "never")):
            region = stack.enter_context(MountedRegion(64 * MIB, pool=huge, room=args.size * MIB + 512 * MIB,
                                                       options=args.options))
            region.mount()
            files[name] = fill(region.path / "file", max(args.size, 256) * MIB)
        if not args.user:
            ext4 = stack.enter_context(on_ext4(args.size * MIB))
            kernel_rows(report, args, programs["faults"], files, ext4)
        user_rows(report, args, programs, files["pages"], region.pid)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
