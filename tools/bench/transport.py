#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The transports, a C file system on libfuse (cfs.c) and tmpfs: latency, throughput, idle CPU.

All are mounted at the same time and measured in turns, the order turned round each time, by one small
C program (client.c); medians of all rounds. Targets of issue 4. A transport that this host does not have
is "missing", which is no error. tools/bench/draw.py makes a picture of --json. Needs root, /dev/fuse, cc;
libfuse3-dev for the C file system.

With --quick sizes and rounds are small: for trying, not for evidence.
"""

import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench
from bench import Report
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

KIB, MIB = 1 << 10, 1 << 20
HERE = Path(__file__).resolve().parent
TRANSPORTS = ("pyfuse3", "dev", "uring")
YARDSTICK, TMPFS = "C", "tmpfs"
COLUMNS = [*TRANSPORTS, YARDSTICK, TMPFS]
JOBS = 4
SMALL = ("read", "write", "fsync")
# (what is small, than what it is measured, limit) for the client on one CPU
LATENCY = (("uring", "pyfuse3", 0.2), ("uring", YARDSTICK, 0.8), ("dev", YARDSTICK, 1.2))
TICK = os.sysconf("SC_CLK_TCK")


def build(folder: Path) -> tuple[Path, Path | None]:
    """Compile (client, cfs) into *folder*; None for cfs without the headers of libfuse."""
    cc = shutil.which("cc")
    if cc is None:
        raise SystemExit("no C compiler (cc): install gcc")
    flags = [cc, "-O2", "-Wall", "-Wextra", "-pthread"]
    subprocess.run([*flags, "-o", folder / "client", HERE / "client.c"], check=True)
    fuse = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=False, capture_output=True,
                          text=True)
    if fuse.returncode != 0:
        return folder / "client", None
    subprocess.run([*flags, "-o", folder / "cfs", HERE / "cfs.c", *fuse.stdout.split()], check=True)
    return folder / "client", folder / "cfs"


class Place:
    """One file system to compare: ``dir`` with the file ``data``, ``flags`` for the client, ``pid``."""

    def __init__(self, name: str, folder: Path, flags: str = "direct", pid: int | None = None):
        self.name, self.dir, self.flags, self.pid = name, Path(folder), flags, pid

    def file(self, name: str = "data") -> str:
        return str(self.dir / name)

    def fill(self, size: int) -> None:
        """Write *size* bytes into ``data``, so that all its blocks are there."""
        with open(self.file(), "r+b" if (self.dir / "data").exists() else "wb", buffering=0) as stream:
            for _ in range(size // MIB):
                stream.write(b"\xa5" * MIB)
            os.fsync(stream.fileno())


@contextlib.contextmanager
def yardstick(program: Path, size: int):
    """cfs.c, mounted."""
    folder = tempfile.mkdtemp(prefix=f"cfs-{os.getpid()}-")
    proc = subprocess.Popen([program, folder, str(size)])
    try:
        deadline = time.monotonic() + 20
        while not os.path.ismount(folder):
            if proc.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("cfs does not mount")
            time.sleep(0.01)
        yield Place(YARDSTICK, folder, pid=proc.pid)
    finally:
        subprocess.run(["umount", "-l", folder], check=False, stderr=subprocess.DEVNULL)
        try:
            proc.wait(10)
        except subprocess.TimeoutExpired:
            proc.kill()
            proc.wait()
        os.rmdir(folder)


@contextlib.contextmanager
def tmpfs():
    """A directory on /dev/shm."""
    folder = tempfile.mkdtemp(prefix=f"transport-{os.getpid()}-", dir="/dev/shm")
    try:
        yield Place(TMPFS, folder, "plain")
    finally:
        shutil.rmtree(folder)


class Bench:
    """The places, the client, and the rows that come of them. *missing*: name to reason."""

    def __init__(self, args, client: Path, places: list[Place], missing: dict[str, str], report: Report):
        self.args, self.client, self.missing, self.report = args, client, missing, report
        self.places = {place.name: place for place in places}
        self.cpu = min(os.sched_getaffinity(0))
        self.rng = random.Random(args.seed)
        self.progress: Progress | None = None

    def run(self, place: Place, kind: str, length: int, count: int, span: int, cpu: int,
            files=("data",)) -> dict:
        """One run of the client; what it printed."""
        command = [self.client, kind, str(length), str(count), str(span), str(cpu), place.flags,
                   str(self.rng.randrange(1 << 30)), *map(place.file, files)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{place.name}: {done.stderr}")
        return json.loads(done.stdout)

    def rounds(self, what: str, names, measure) -> dict[str, float]:
        """Median of ``measure(place)`` for each of *names* that is there; the first round warms up."""
        here = [name for name in names if name in self.places]
        found: dict[str, list[float]] = {name: [] for name in here}
        task = self.progress.add_task(what, total=self.args.rounds + 1)
        for turn in range(self.args.rounds + 1):
            for name in here if turn % 2 else reversed(here):
                got = measure(self.places[name])
                if turn:
                    found[name].append(got)
            self.progress.advance(task)
        self.report.samples[what] = found
        return {name: statistics.median(values) for name, values in found.items()}

    def row(self, what: str, found: dict[str, float], names=tuple(COLUMNS)) -> None:
        """A row of figures, "missing" where there is no such transport here."""
        self.report.add(what, [found.get(name, "missing" if name in names else "") for name in COLUMNS])

    def ratio(self, found: dict[str, float], one: str, other: str, limit: float | None,
              at_least: bool = False) -> None:
        """The row "one / other" with its target; "missing" without target where one of them is."""
        whole = one in found and other in found
        measured = found[one] / found[other] if whole else None
        values = [(measured if whole else "missing") if name == one else "" for name in COLUMNS]
        self.report.add(f"  {one} / {other}", values, measured, limit if whole else None, at_least)

    def latencies(self, pinned: bool) -> None:
        """4 KiB: random read, random overwrite, fsync of a write."""
        where = "client on one CPU" if pinned else "client free"
        names = [*TRANSPORTS, YARDSTICK]
        for kind in SMALL:
            def measure(place, kind=kind):
                cpu = self.cpu if pinned else -1
                got = self.run(place, kind, 4 * KIB, self.args.calls, self.args.size, cpu)
                return got["median"] / 1000
            what = f"4 KiB {kind}, µs, {where}"
            found = self.rounds(what, names, measure)
            self.row(what, found, names)
            for one, other, limit in LATENCY:
                self.ratio(found, one, other, limit if pinned else None)

    def large(self, pinned: bool) -> None:
        """1 MiB, through the whole file, against tmpfs."""
        where = "client on one CPU" if pinned else "client free"
        for kind, limit in (("seqwrite", 0.8), ("seqread", 0.5)):
            def measure(place, kind=kind):
                size = self.args.size
                got = self.run(place, kind, MIB, size // MIB, size, self.cpu if pinned else -1)
                return got["calls"] * MIB / got["seconds"] / (1 << 30)
            what = f"1 MiB {kind}, GiB/s, {where}"
            found = self.rounds(what, COLUMNS, measure)
            self.row(what, found)
            self.ratio(found, "uring", TMPFS, limit if pinned else None, at_least=True)
            self.ratio(found, "dev", TMPFS, None)

    def appends(self) -> None:
        """4 KiB appends to a file that starts empty, then overwrites of the same file from its start."""
        count = self.args.calls * 2
        rates: dict[tuple[str, str], list[float]] = {}

        def measure(place):
            for kind in ("append", "seqwrite"):
                got = self.run(place, kind, 4 * KIB, count, count * 4 * KIB, self.cpu, ("grown",))
                rates.setdefault((kind, place.name), []).append(got["calls"] / got["seconds"] / 1000)
            os.unlink(place.file("grown"))
            return rates["append", place.name][-1] / rates["seqwrite", place.name][-1]

        found = self.rounds("4 KiB appends / overwrites", TRANSPORTS, measure)
        titles = {"append": "4 KiB appends, 1000/s", "seqwrite": "overwrites of the same, 1000/s"}
        for kind, what in titles.items():
            self.row(what, {name: statistics.median(rates[kind, name][1:]) for name in found}, TRANSPORTS)
        self.own_ratios("appends / overwrites", found, 0.6)

    def own_ratios(self, what: str, found: dict[str, float], limit: float) -> None:
        """A row for each transport with its ratio; the target is for the native ones."""
        for name in TRANSPORTS:
            values = [found.get(name, "missing") if column == name else "" for column in COLUMNS]
            target = limit if name in found and name != "pyfuse3" else None
            self.report.add(f"  {what}, {name}", values, found.get(name), target, at_least=True)

    def jobs(self) -> None:
        """Random 4 KiB overwrites by 4 jobs on 4 files against 1 job, the client free: sum of rates."""
        files = [f"job{number}" for number in range(JOBS)]
        for name in set(TRANSPORTS) & set(self.places):
            for file in files:
                self.run(self.places[name], "append", MIB, self.args.size // JOBS // MIB, MIB, -1, (file,))
        sums = {}
        for jobs in (1, JOBS):
            def measure(place, jobs=jobs):
                span = self.args.size // JOBS
                got = self.run(place, "write", 4 * KIB, self.args.calls, span, -1, files[:jobs])
                return got["calls"] / got["seconds"] / 1000
            what = f"4 KiB writes, {jobs} job{'s' if jobs > 1 else ''}, 1000/s in sum"
            sums[jobs] = self.rounds(what, TRANSPORTS, measure)
            self.row(what, sums[jobs], TRANSPORTS)
        ratios = {name: sums[JOBS][name] / sums[1][name] for name in sums[1]}
        self.own_ratios(f"{JOBS} jobs / 1 job", ratios, 1.0)

    def idle(self) -> None:
        """CPU that the daemons take while nothing is asked of them."""
        here = {name: place.pid for name, place in self.places.items() if place.pid}
        time.sleep(3)  # what the jobs above left, releases for one, comes asynchronously
        before = {name: (ticks(pid), on_cpu(pid)) for name, pid in here.items()}
        time.sleep(self.args.idle)
        used = {name: ticks(pid) - before[name][0] for name, pid in here.items()}
        spent = {name: (on_cpu(pid) - before[name][1]) / 1000 for name, pid in here.items()}
        what = f"idle for {self.args.idle} s, ticks of {1000 // TICK} ms"
        self.row(what, used, [*TRANSPORTS, YARDSTICK])
        self.row("the same, µs of CPU (schedstat)", spent, [*TRANSPORTS, YARDSTICK])
        for name in TRANSPORTS:
            if name in used:
                self.report.add(f"  {name}", [used[name] if column == name else "" for column in COLUMNS],
                                used[name], 0)


def ticks(pid: int) -> int:
    """utime + stime of a process, all its threads."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def on_cpu(pid: int) -> int:
    """Nanoseconds that all threads of a process have run: finer than ticks."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def mounted(stack: contextlib.ExitStack, args, name: str) -> Place:
    """A daxfs mount by the transport *name*."""
    from mounts import MountedRegion
    region = MountedRegion(args.size * 3 + 256 * MIB, options=args.options, transport=name)
    stack.enter_context(region).mount()
    return Place(name, region.path, pid=region.pid)


def places(stack: contextlib.ExitStack, args, program: Path | None) -> tuple[list[Place], dict[str, str]]:
    """Everything mounted, with the file written; and what is missing, with the reason."""
    from mounts import why_no_transport
    missing = {name: reason for name in TRANSPORTS if (reason := why_no_transport(name))}
    made = [mounted(stack, args, name) for name in TRANSPORTS if name not in missing]
    if program:
        made.append(stack.enter_context(yardstick(program, args.size)))
    else:
        missing[YARDSTICK] = "no C yardstick: pkg-config finds no fuse3 (apt install libfuse3-dev pkg-config)"
    made.append(stack.enter_context(tmpfs()))
    for place in made:
        place.fill(args.size)
    return made, missing


def main() -> int:
    parser = bench.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each measurement (default 15)")
    parser.add_argument("--calls", type=int, default=2000, help="calls in a turn (default 2000)")
    parser.add_argument("--size", type=int, default=256, help="MiB of the file (default 256)")
    parser.add_argument("--idle", type=int, default=10, metavar="SECONDS", help="of looking (default 10)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.calls, args.size, args.idle = 3, 300, 32, 2
    args.size *= MIB
    report = Report("Transports, a C file system on libfuse, and tmpfs, in turns (medians)", COLUMNS, args)
    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="transport-bench-")))
        client, program = build(folder)
        found, missing = places(stack, args, program)
        run = Bench(args, client, found, missing, report)
        run.progress = stack.enter_context(Progress(*bars, console=Console(stderr=True), transient=True))
        for pinned in (True, False):
            run.latencies(pinned)
            run.large(pinned)
        run.appends()
        run.jobs()
        run.idle()
    for reason in missing.values():
        print(reason)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
