#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The transports, a C file system on libfuse (cfs.c) and tmpfs: latency, throughput, idle CPU.

All are mounted at the same time and measured in turns, the order turned round each time, by one small
C program (client.c); in several sittings, each with fresh mounts; medians of all rounds. Targets of issue 4.
"C pinned" is the C file system with its threads on the client's CPU, beside the targets. A transport that
this host does not have is "missing", which is no error. tools/bench/draw.py makes a picture of --json. Needs
root, /dev/fuse, cc; libfuse3-dev for the C file system.

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
TRANSPORTS = ("pyfuse3", "dev", "uring")
# The C file system as its users start it, and once more with all its threads on the client's CPU
YARDSTICK, YARDSTICK_PINNED, TMPFS = "C", "C pinned", "tmpfs"
YARDSTICKS = (YARDSTICK, YARDSTICK_PINNED)
COLUMNS = [*TRANSPORTS, *YARDSTICKS, TMPFS]
JOBS = 4
SMALL = ("read", "write", "fsync")
LARGE = {"seqwrite": 0.8, "seqread": 0.5}  # of tmpfs, at least
# (what is small, than what it is measured, limit) for the client on one CPU
LATENCY = (("uring", "pyfuse3", 0.2), ("uring", YARDSTICK, 0.8), ("uring", YARDSTICK_PINNED, None),
           ("dev", YARDSTICK, 1.2))
APPENDS = {"append": "4 KiB appends, 1000/s", "seqwrite": "overwrites of the same, 1000/s"}
APPEND_RATIO, JOBS_RATIO = "4 KiB appends / overwrites", f"{JOBS} jobs / 1 job"
IDLE, IDLE_FINE = f"idle: ticks of {1000 // os.sysconf('SC_CLK_TCK')} ms", "idle: µs of CPU (schedstat)"


def build(folder: Path) -> tuple[Path, Path | None]:
    """Compile (client, cfs) into *folder*; None for cfs without the headers of libfuse."""
    client = bench.compiled(folder, "client", "-pthread")
    fuse = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=False, capture_output=True,
                          text=True)
    if fuse.returncode != 0:
        return client, None
    return client, bench.compiled(folder, "cfs", "-pthread", *fuse.stdout.split())


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
def yardstick(program: Path, size: int, cpu: int | None = None):
    """cfs.c, mounted; with *cpu*, all its threads there."""
    folder = tempfile.mkdtemp(prefix=f"cfs-{os.getpid()}-")
    place = ["taskset", "-c", str(cpu)] if cpu is not None else []
    proc = subprocess.Popen([*place, program, folder, str(size)])
    try:
        deadline = time.monotonic() + 20
        while not os.path.ismount(folder):
            if proc.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("cfs does not mount")
            time.sleep(0.01)
        yield Place(YARDSTICK if cpu is None else YARDSTICK_PINNED, folder, pid=proc.pid)
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
    """What is measured in each sitting: everything mounted anew, because where the scheduler puts the
    threads of a daemon is settled when it starts and lasts. Samples of all sittings are put together."""

    def __init__(self, args, client: Path, report: Report, progress: Progress):
        self.args, self.client, self.progress = args, client, progress
        self.samples: dict[str, dict[str, list[float]]] = report.samples
        self.places: dict[str, Place] = {}
        self.cpu = min(os.sched_getaffinity(0))
        self.rng = random.Random(args.seed)

    def sit(self, places: list[Place]) -> None:
        """All latencies, throughputs and rates of one sitting."""
        self.places = {place.name: place for place in places}
        for pinned in (True, False):
            self.latencies(pinned)
            self.large(pinned)
        self.appends()
        self.jobs()

    def run(self, place: Place, kind: str, length: int, count: int, span: int, cpu: int,
            files=("data",)) -> dict:
        """One run of the client; what it printed."""
        command = [self.client, kind, str(length), str(count), str(span), str(cpu), place.flags,
                   str(self.rng.randrange(1 << 30)), *map(place.file, files)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{place.name}: {done.stderr}")
        return json.loads(done.stdout)

    def keep(self, what: str, name: str, value: float) -> None:
        self.samples.setdefault(what, {}).setdefault(name, []).append(value)

    def rounds(self, what: str, names, measure) -> None:
        """``measure(place)``, {name of the samples: value}, in turns for each of *names* that is there; the
        first round warms up."""
        here = [name for name in names if name in self.places]
        task = self.progress.add_task(what, total=self.args.rounds + 1)
        for turn in range(self.args.rounds + 1):
            for name in here if turn % 2 else reversed(here):
                for key, value in measure(self.places[name]).items():
                    if turn:
                        self.keep(key, name, value)
            self.progress.advance(task)
        self.progress.remove_task(task)

    def latencies(self, pinned: bool) -> None:
        """4 KiB: random read, random overwrite, fsync of a write."""
        for kind in SMALL:
            what = small(kind, pinned)

            def measure(place, kind=kind, what=what):
                cpu = self.cpu if pinned else -1
                got = self.run(place, kind, 4 * KIB, self.args.calls, self.args.size, cpu)
                return {what: got["median"] / 1000}
            self.rounds(what, [*TRANSPORTS, *YARDSTICKS], measure)

    def large(self, pinned: bool) -> None:
        """1 MiB, through the whole file, against tmpfs."""
        for kind in LARGE:
            what = big(kind, pinned)

            def measure(place, kind=kind, what=what):
                size = self.args.size
                got = self.run(place, kind, MIB, size // MIB, size, self.cpu if pinned else -1)
                return {what: got["calls"] * MIB / got["seconds"] / (1 << 30)}
            self.rounds(what, COLUMNS, measure)

    def appends(self) -> None:
        """4 KiB appends to a file that starts empty, then overwrites of the same file from its start."""
        count = self.args.calls * 2

        def measure(place):
            rates = {}
            for kind, what in APPENDS.items():
                got = self.run(place, kind, 4 * KIB, count, count * 4 * KIB, self.cpu, ("grown",))
                rates[what] = got["calls"] / got["seconds"] / 1000
            os.unlink(place.file("grown"))
            return {**rates, APPEND_RATIO: rates[APPENDS["append"]] / rates[APPENDS["seqwrite"]]}

        self.rounds(APPEND_RATIO, TRANSPORTS, measure)

    def jobs(self) -> None:
        """Random 4 KiB overwrites by 4 jobs on 4 files against 1 job, the client free: sum of rates."""
        files = [f"job{number}" for number in range(JOBS)]
        span = self.args.size // JOBS
        for name in set(TRANSPORTS) & set(self.places):
            for file in files:
                self.run(self.places[name], "append", MIB, span // MIB, MIB, -1, (file,))

        def measure(place):
            rates = {}
            for jobs in (1, JOBS):
                got = self.run(place, "write", 4 * KIB, self.args.calls, span, -1, files[:jobs])
                rates[jobs] = got["calls"] / got["seconds"] / 1000
            return {in_sum(1): rates[1], in_sum(JOBS): rates[JOBS], JOBS_RATIO: rates[JOBS] / rates[1]}

        self.rounds(JOBS_RATIO, TRANSPORTS, measure)

    def idle(self) -> None:
        """CPU that the daemons take while nothing is asked of them, at the end of the last sitting."""
        here = {name: place.pid for name, place in self.places.items() if place.pid}
        time.sleep(3)  # what the jobs above left, releases for one, comes asynchronously
        before = {name: (ticks(pid), on_cpu(pid)) for name, pid in here.items()}
        time.sleep(self.args.idle)
        for name, pid in here.items():
            self.keep(IDLE, name, ticks(pid) - before[name][0])
            self.keep(IDLE_FINE, name, (on_cpu(pid) - before[name][1]) / 1000)


class Rows:
    """The table: medians of all samples, ratios of medians, targets. *missing*: name to reason."""

    def __init__(self, report: Report, missing: dict[str, str]):
        self.report, self.missing = report, missing

    def found(self, what: str) -> dict[str, float]:
        """Medians of the samples of *what*, for each column that has some."""
        return {name: statistics.median(values) for name, values in self.report.samples.get(what, {}).items()}

    def figures(self, what: str) -> dict[str, float]:
        """A row of medians, "missing" where this host has no such transport; the medians."""
        found = self.found(what)
        gaps = dict.fromkeys(self.missing, "missing")
        self.report.add(what, [found.get(name, gaps.get(name, "")) for name in COLUMNS])
        return found

    def single(self, what: str, name: str, measured: float | None, limit: float | None,
               at_least: bool = False) -> None:
        """A row with one number, under *name*, and its target; None: "missing", without a target."""
        shown = "missing" if measured is None else measured
        self.report.add(what, [shown if column == name else "" for column in COLUMNS], measured,
                        None if measured is None else limit, at_least)

    def ratio(self, found: dict[str, float], one: str, other: str, limit: float | None,
              at_least: bool = False) -> None:
        whole = one in found and other in found
        self.single(f"  {one} / {other}", one, found[one] / found[other] if whole else None, limit, at_least)

    def own(self, what: str, limit: float) -> None:
        """A row for each transport with its median of *what*; the target is for the native ones."""
        for name in TRANSPORTS:
            target = None if name == "pyfuse3" else limit
            self.single(f"  {what}, {name}", name, self.found(what).get(name), target, at_least=True)

    def all(self) -> None:
        for pinned in (True, False):
            for kind in SMALL:
                found = self.figures(small(kind, pinned))
                for one, other, limit in LATENCY:
                    self.ratio(found, one, other, limit if pinned else None)
            for kind, limit in LARGE.items():
                found = self.figures(big(kind, pinned))
                self.ratio(found, "uring", TMPFS, limit if pinned else None, at_least=True)
                self.ratio(found, "dev", TMPFS, None)
        for what in (*APPENDS.values(), in_sum(1), in_sum(JOBS)):
            self.figures(what)
        self.own(APPEND_RATIO, 0.6)
        self.own(JOBS_RATIO, 1.0)
        used = self.figures(IDLE)
        self.figures(IDLE_FINE)
        for name in TRANSPORTS:
            self.single(f"  idle, {name}", name, used.get(name), 0)


def small(kind: str, pinned: bool) -> str:
    return f"4 KiB {kind}, µs, client {'on one CPU' if pinned else 'free'}"


def big(kind: str, pinned: bool) -> str:
    return f"1 MiB {kind}, GiB/s, client {'on one CPU' if pinned else 'free'}"


def in_sum(jobs: int) -> str:
    return f"4 KiB writes, {jobs} job{'s' if jobs > 1 else ''}, 1000/s in sum"


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


def places(stack: contextlib.ExitStack, args, program: Path | None, missing) -> list[Place]:
    """Everything that is not in *missing* mounted, with the file written."""
    made = [mounted(stack, args, name) for name in TRANSPORTS if name not in missing]
    if program:
        made.append(stack.enter_context(yardstick(program, args.size)))
        made.append(stack.enter_context(yardstick(program, args.size, min(os.sched_getaffinity(0)))))
    made.append(stack.enter_context(tmpfs()))
    for place in made:
        place.fill(args.size)
    return made


def absent(program: Path | None) -> dict[str, str]:
    """Columns that this host can't fill, each with the reason."""
    from mounts import why_no_transport
    missing = {name: reason for name in TRANSPORTS if (reason := why_no_transport(name))}
    if not program:
        why = "no C yardstick: pkg-config finds no fuse3 (apt install libfuse3-dev pkg-config)"
        missing.update(dict.fromkeys(YARDSTICKS, why))
    return missing


def arguments():
    parser = bench.parser(__doc__)
    parser.add_argument("--sittings", type=int, default=5, help="times that all is mounted anew (default 5)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each in a sitting (default 5)")
    parser.add_argument("--calls", type=int, default=2000, help="calls in a turn (default 2000)")
    parser.add_argument("--size", type=int, default=256, help="MiB of the file (default 256)")
    parser.add_argument("--idle", type=int, default=10, metavar="SECONDS", help="of looking (default 10)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.quick:
        args.sittings, args.rounds, args.calls, args.size, args.idle = 2, 2, 300, 32, 2
    args.size *= MIB
    return args


def main() -> int:
    args = arguments()
    report = Report("Transports, a C file system on libfuse, and tmpfs, in turns (medians)", COLUMNS, args)
    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="transport-bench-") as folder, \
            Progress(*bars, console=Console(stderr=True), transient=True) as progress:
        client, program = build(Path(folder))
        missing = absent(program)
        run = Bench(args, client, report, progress)
        sittings = progress.add_task("sittings", total=args.sittings)
        for number in range(args.sittings):
            with contextlib.ExitStack() as stack:
                run.sit(places(stack, args, program, missing))
                if number == args.sittings - 1:
                    run.idle()
            progress.advance(sittings)
    Rows(report, missing).all()
    for reason in dict.fromkeys(missing.values()):
        print(reason)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
