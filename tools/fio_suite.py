#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The fio jobs that people run on DAX file systems, on daxfs in its ways, ext4, XFS and tmpfs, in turns.

The job files are in tools/jobs/fio and can be used by hand. Bandwidth, requests in a second, and latencies
(200 of each run's, evenly taken from fio's own histogram; the whole report is kept in DIR/fio) are fio's.

  tools/fio_suite.py --quick                          a part of each family
  tools/fio_suite.py --list                           which jobs and targets there are
  tools/fio_suite.py --job mmap-msync-32,libpmem --target own --target run-kernel --runtime 5
  tools/fio_suite.py --job 'sync-*' --target packed:write=cached,track=line --target ext4

Exit status: 0; 1 a job failed, fio's words and the command to repeat it are shown; 2 can't be; 130 stopped.
"""

import shutil
import sys
from functools import partial
from pathlib import Path

import lab.start  # noqa: F401
from lab import arguments, fio, suites
from lab.plan import HostError, Measure, Plan, Visit
from lab.suites import AXES, Shape
from lab.targets import Target, Targets

NAME, ROUNDS = "fio_suite", 5
SIZE, QUICK_SIZE = 128 << 20, 32 << 20
RUNTIME, QUICK_RUNTIME = 1.0, 0.2
MEASURES = {"mib_s": Measure("bandwidth", "MiB/s", "higher"), "iops": Measure("rate", "IOPS", "higher"),
            "lat_ns": Measure("latency", "ns"), "max_ns": Measure("longest", "ns"),
            "sync_ns": Measure("fsync", "ns")}
KERNEL = ("ext4", "xfs")
POLICIES = tuple(f"packed:write=cached,track={track}" for track in ("pte", "line", "pmd", "extent", "none"))
SHAPES = {
    "calls": Shape(
        "read and write, psync and io_uring",
        "Nothing is made durable here but by daxfs: with write=nt a write has passed the CPU cache when it "
        "returns, with ext4, XFS and tmpfs it is in the page cache, where a crash loses it. A 4 KiB "
        "request costs daxfs the way to its daemon and back; large ones cost the copy. transport=uring "
        "answers on the caller's CPU, dev from another thread.",
        ("psync-*", "direct-*", "io_uring-*"),
        ("packed", "own", "packed:write=cached", "packed:transport=dev", *KERNEL, "tmpfs"),
        (("psync-randread-4k", "psync-randwrite-4k", "psync-write-2m"),
         ("packed", "packed:transport=dev", "ext4", "tmpfs"))),
    "latency": Shape(
        "how long single requests take",
        "Each request of 4 KiB at a random place, as calls and durable have them, by fio's completion "
        "latency. A distribution tells more than a median: a second step to the right is a CPU that had to "
        "be woken, or somebody else's turn on this one.",
        ("psync-randread-4k", "psync-randwrite-4k", "mmap-randwrite-4k"),
        ("packed", "own", "packed:transport=dev", *KERNEL, "tmpfs"),
        (("psync-randread-4k", "psync-randwrite-4k"), ("packed", "ext4", "tmpfs")),
        measure="lat_ns", draw=("bars", "cdf")),
    "durable": Shape(
        "writes that are made durable: fsync, fdatasync, O_SYNC, sync_file_range",
        "What a database does. With write=nt fsync finds nothing to flush, with write=cached it flushes "
        "what was written. ext4 and XFS write to their loop device, whose image is a file on tmpfs. tmpfs "
        "makes nothing durable: it shows what the calls themselves cost. sync_file_range is no promise "
        "anywhere. Who has a file of own open for reading and writing may have mapped it, plainly, so fsync "
        "flushes all of it there.",
        ("sync-*",), ("packed", "packed:write=cached", "own", "packed:transport=dev", *KERNEL, "tmpfs"),
        (("sync-fsync-1",), ("packed", "packed:write=cached", *KERNEL))),
    "mapped": Shape(
        "loads, stores and msync through mappings",
        "own, run-kernel and run-user map the region's own pages; packed, ext4 and XFS the page cache's. "
        "msync is a system call that does nothing on own, since nobody saw the stores, and on tmpfs: there "
        "nothing is durable by it (fsync of the file would be on own). Under daxfs run the program itself "
        "finds what it stored and flushes it. Faults of first touches are in the time.",
        ("mmap-*",), ("own", "run-kernel", "run-user", "packed", *KERNEL, "tmpfs"),
        (("mmap-randwrite-4k", "mmap-msync-32"), ("own", "run-kernel", "ext4"))),
    "libpmem": Shape(
        "PMDK's libpmem: stores made durable without a system call",
        "The program flushes by itself. PMEM_IS_PMEM_FORCE=1, since MAP_SYNC is not to be had through "
        "FUSE. tmpfs is memory of the same kind without a file system, so the bound.",
        ("libpmem-*",), ("own", "run-kernel", "tmpfs"), (("libpmem-randwrite-4k-nt",), ("own", "tmpfs"))),
    "policies": Shape(
        "4 KiB random writes and fsync, by what fsync takes for dirty",
        "The same mount, track= switched. pte and line flush what was written; pmd 2 MiB for each that was "
        "touched; extent each 256th of the region in which something was overwritten since track= was "
        "switched, so soon all of the file; none nothing, so that nothing is durable: the program would "
        "have to flush.",
        ("sync-fsync-1", "sync-fsync-32"), POLICIES,
        (("sync-fsync-1",), (POLICIES[0], POLICIES[3], POLICIES[4]))),
    "mixed": Shape(
        "reads beside writes, and two programs at a time",
        "Bandwidth of both directions together. Two jobs have a file each, or share one.",
        ("mixed-*",), ("packed", "own", "packed:transport=dev", *KERNEL, "tmpfs"),
        (("mixed-70-30",), ("packed", "ext4", "tmpfs"))),
    "append": Shape(
        "a new file: blocks are allocated while it is written, one fsync at the end",
        "The file is new in each run. fio counts whole milliseconds, so short runs (--size) are coarse.",
        ("append-*",), ("packed", "own", "packed:transport=dev", *KERNEL, "tmpfs"),
        (("append-4k",), ("packed", "ext4"))),
    "verify": Shape(
        "written with checksums, read back and compared",
        "A run in which one byte differs ends the whole suite. Bandwidth is that of writing, with crc32c "
        "in it.",
        ("verify-*",),
        ("packed", "own", "run-kernel", "packed:transport=dev", "packed:transport=pyfuse3", "ext4"),
        (("verify-psync", "verify-mmap"), ("packed", "own"))),
}


def visit(targets: Targets, args, jobs: dict, family: str, name: str, target: Target,
          _seconds: float, seed: int) -> Visit:
    """One run of a job on a target."""
    kept = f"{family}.{name}.{target.text}.{seed}.json".replace("/", "_")
    with targets.place(target) as place:
        return fio.run(jobs[name], place, args.size, args.runtime, seed, Path(args.output) / "fio" / kept)


def plan(jobs: dict, args) -> Plan:
    """All families that were chosen."""
    if not shutil.which("fio"):
        raise HostError("fio is not installed, so all is skipped: apt-get install fio")
    targets = Targets(args.size * max(job.numjobs for job in jobs.values()))
    made = suites.families(SHAPES, list(jobs), args, partial(visit, targets, args, jobs))
    title = f"fio, {args.runtime:g} s for each run, files of {args.size >> 20} MiB"
    return Plan(NAME, title, AXES, MEASURES, made, args.rounds, targets.close)


def main() -> int:
    jobs = fio.jobs()
    parser = suites.parser(__doc__, NAME, ROUNDS, f"{SIZE >> 20}M; with --quick {QUICK_SIZE >> 20}M")
    parser.add_argument("--runtime", type=arguments.positive(float), metavar="S",
                        help=f"seconds of each run that ends by the clock (default {RUNTIME:g}; "
                             f"with --quick {QUICK_RUNTIME:g})")
    args = arguments.settle(parser.parse_args(), NAME)
    suites.check(parser, args, list(jobs), SHAPES)
    if args.list:
        suites.show_list({name: f"{job.summary}. {job.words}" for name, job in jobs.items()}, SHAPES)
        return 0
    args.size = args.size or (QUICK_SIZE if args.quick else SIZE)
    args.runtime = args.runtime or (QUICK_RUNTIME if args.quick else RUNTIME)
    return suites.finish(args, partial(plan, jobs), "request")


if __name__ == "__main__":
    sys.exit(main())
