#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Latency and throughput of direct reads and writes: daxfs against the smallest pyfuse3 file system.

Both are mounted at the same time and measured in turns, a block of requests on
one, then on the other; medians of all requests, and their ratio. Targets of
issue 2, for transport=pyfuse3 (transport.py has the others): 4 KiB at most 1.3 times
the latency, 1 MiB at least 0.9 times the throughput. Beside them the same with
client and daemon pinned to one CPU.
``--self`` measures the mini file system against itself: ratios near 1 say that
the measurement is sound. Needs root and /dev/fuse.
"""

import contextlib
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench
from bench import Report, pin

KIB, MIB = 1 << 10, 1 << 20
SIZE = 64 * MIB


class MiniMount:
    """tools/bench/minifs.py, mounted; ``file`` is its file."""

    def __init__(self):
        self.path = tempfile.mkdtemp(prefix=f"minifs-{os.getpid()}-")
        script = Path(__file__).with_name("minifs.py")
        self.proc = subprocess.Popen([sys.executable, str(script), self.path, str(SIZE)])
        self.pid = self.proc.pid
        self.file = os.path.join(self.path, "data")
        deadline = time.monotonic() + 20
        while not os.path.ismount(self.path):
            if self.proc.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise SystemExit("minifs does not mount")
            time.sleep(0.01)

    def close(self) -> None:
        """Unmount and end the process."""
        subprocess.run(["umount", "-l", self.path], check=False, stderr=subprocess.DEVNULL)
        try:
            self.proc.wait(10)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()
        with contextlib.suppress(OSError):
            os.rmdir(self.path)


def dax_mount(stack: contextlib.ExitStack, options: str):
    """A daxfs mount with a fully written file; (pid, path of the file)."""
    from mounts import MountedRegion
    region = stack.enter_context(MountedRegion(4 * SIZE, options=options, transport="pyfuse3")).mount()
    file = region.path / "data"
    with open(file, "wb") as stream:
        for _ in range(SIZE // MIB):
            stream.write(b"\xa5" * MIB)
        os.fsync(stream.fileno())
    return region.pid, str(file)


def requests(fd: int, kind: str, length: int, count: int, start: int) -> list[int]:
    """Times in ns of *count* reads or writes of *length* bytes, one after the other through the file."""
    clock = time.perf_counter_ns
    times = []
    with mmap.mmap(-1, length) as buffer:
        buffer[:] = b"\x5a" * length
        view = [buffer]
        call = os.preadv if kind == "read" else os.pwritev
        for number in range(start, start + count):
            pos = number * length % SIZE
            began = clock()
            done = call(fd, view, pos)
            times.append(clock() - began)
            if done != length:
                raise SystemExit(f"{kind} of {length} bytes did {done}")
    return times


def compare(fds: list[int], kind: str, length: int, blocks: int, per_block: int) -> list[float]:
    """Median ns of one request for each descriptor, measured in turns; the order changes each time."""
    times: list[list[int]] = [[] for _ in fds]
    for block in range(blocks + 1):
        order = range(len(fds)) if block % 2 else reversed(range(len(fds)))
        for which in order:
            got = requests(fds[which], kind, length, per_block, block * per_block)
            if block:  # the first block warms up
                times[which] += got
    return [statistics.median(one) for one in times]


def measure(report: Report, fds: list[int], label: str, targets: bool, quick: bool) -> None:
    """The rows of one placement (free or pinned)."""
    # Short blocks: other work on the machine then meets both alike.
    small, large = (30, 10) if quick else (300, 100)
    for kind in ("read", "write"):
        dax, mini = (ns / 1000 for ns in compare(fds, kind, 4 * KIB, small, 20))
        report.add(f"4 KiB {kind} µs, {label}", [dax, mini, dax / mini], dax / mini, 1.3 if targets else None)
    for kind in ("read", "write"):
        dax, mini = (MIB / ns * 1e9 / (1 << 30) for ns in compare(fds, kind, MIB, large, 8))
        report.add(f"1 MiB {kind} GiB/s, {label}", [dax, mini, dax / mini], dax / mini,
                   0.9 if targets else None, at_least=True)


def main() -> int:
    parser = bench.parser(__doc__)
    parser.add_argument("--self", action="store_true", help="the mini file system against itself")
    args = parser.parse_args()
    all_cpus = os.sched_getaffinity(0)
    name = "mini again" if args.self else "daxfs"
    report = Report(f"O_DIRECT requests, {name} and the mini file system in turns (medians)",
                    [name, "mini", "ratio"], args)
    with contextlib.ExitStack() as stack:
        mini = MiniMount()
        stack.callback(mini.close)
        if args.self:
            other = MiniMount()
            stack.callback(other.close)
            pid, file = other.pid, other.file
        else:
            pid, file = dax_mount(stack, args.options)
        fds = [os.open(path, os.O_RDWR | os.O_DIRECT) for path in (file, mini.file)]
        # Before the mounts close: an open file would keep them busy.
        stack.callback(lambda: [os.close(fd) for fd in fds])
        measure(report, fds, "free", True, args.quick)
        one = {min(all_cpus)}
        for process in (pid, mini.pid, os.getpid()):
            pin(process, one)
        measure(report, fds, "on one CPU", False, args.quick)
        os.sched_setaffinity(0, all_cpus)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
