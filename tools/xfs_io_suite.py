#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What people time with xfs_io on DAX file systems, on daxfs in its ways, ext4, XFS and tmpfs, in turns.

The scripts are in tools/jobs/xfs_io and can be used by hand. Each repetition of a script is a sample: by
what xfs_io's own pwrite -C and pread -C report, or by the clock where xfs_io reports nothing; job "nothing"
shows what is in each time by the clock.

  tools/xfs_io_suite.py --quick                       a part of each family
  tools/xfs_io_suite.py --list                        which jobs and targets there are
  tools/xfs_io_suite.py --job 'msync-*' --target own --target run-kernel --target ext4
  tools/xfs_io_suite.py --job fsync-4k --target packed:write=cached,track=pmd --size 256M

Exit status: 0; 1 a job failed, xfs_io's words and how to repeat it are shown; 2 can't be; 130 stopped.
"""

import shutil
import sys
from functools import partial

import lab.start  # noqa: F401
from lab import arguments, suites, xfs_io
from lab.plan import HostError, Measure, Plan, Visit
from lab.suites import AXES, Shape
from lab.targets import Target, Targets

NAME, ROUNDS = "xfs_io_suite", 5
SIZE, QUICK_SIZE = 64 << 20, 16 << 20
RUNTIME, QUICK_RUNTIME = 0.5, 0.1
LEAST = 16 << 20  # scripts name places up to there
MEASURES = {"mib_s": Measure("bandwidth", "MiB/s", "higher"), "ns": Measure("time", "ns")}
KERNEL = ("ext4", "xfs")
CALLS = ("packed", "own", "packed:write=cached", "packed:transport=dev", *KERNEL, "tmpfs")
MAPPED = ("own", "run-kernel", "run-user", "packed", *KERNEL, "tmpfs")
CLOCK = "By the clock; what a line costs xfs_io itself is in it (job nothing: 3 to 10 µs). "
SHAPES = {
    "write": Shape(
        "pwrite, by xfs_io's own report",
        "Nothing is made durable but where the job says so, and by daxfs with write=nt, where a write has "
        "passed the CPU cache when it returns. tmpfs is the bound.",
        ("write-*",), CALLS, (("write-4k", "write-2m", "write-2m-fsync", "write-4k-fdatasync"),
                              ("packed", "packed:transport=dev", *KERNEL, "tmpfs"))),
    "read": Shape(
        "pread, by xfs_io's own report",
        "The file was written just before: ext4 and XFS have it in the page cache.",
        ("read-*",), CALLS, (("read-4k", "read-2m"), ("packed", "packed:transport=dev", "ext4", "tmpfs"))),
    "anew": Shape(
        "row S17's command for other sizes: truncate 0, pwrite, fsync",
        "By the clock, all three together. DAX and fsync should be faster than a buffered file system and "
        "fsync on the same memory.",
        ("anew-*",), CALLS, (("anew-1m", "anew-all"), ("packed", "own", "ext4", "tmpfs"))),
    "sync": Shape(
        "fsync, fdatasync and sync_file_range after a write",
        CLOCK + "The write is not in the time. With write=nt it left nothing for fsync to flush.",
        ("nothing", "fsync-clean", "fsync-4k", "fdatasync-4k", "fsync-1m", "sync_range-4k"), CALLS,
        (("nothing", "fsync-4k", "fsync-1m"), ("packed", "packed:write=cached", "ext4", "tmpfs")), "ns"),
    "policies": Shape(
        "fsync after a write, by what fsync takes for dirty",
        CLOCK + "write=cached. pmd flushes 2 MiB for a page, none nothing. extent flushes each 256th of the "
        "region in which something was overwritten since track= was switched: here one, as a script "
        "writes at one place, and what goes to new blocks goes past the cache.",
        ("fsync-clean", "fsync-4k", "fsync-1m"),
        tuple(f"packed:write=cached,track={track}" for track in ("pte", "line", "pmd", "extent", "none")),
        (("fsync-4k",),
         tuple(f"packed:write=cached,track={track}" for track in ("pte", "pmd", "extent", "none"))),
        "ns"),
    "map": Shape(
        "mappings: loads, stores, msync",
        CLOCK + "xfs_io stores byte by byte. msync does nothing on own, since nobody saw the stores, and "
        "on tmpfs: there nothing is durable by it; fsync-mapped says what own pays for that. Under "
        "daxfs run the program finds and flushes what it stored itself: a page of 2 MiB where one "
        "maps it, of 4 KiB after a fault of that size.",
        ("mwrite-*", "mread-*", "msync-*", "mmap-munmap", "fsync-mapped-4k"), MAPPED,
        (("mwrite-hole-2m", "mwrite-written-2m", "msync-4k", "fsync-mapped-4k"),
         ("own", "run-kernel", "ext4", "tmpfs")), "ns"),
    "space": Shape(
        "falloc, fpunch, fzero, truncate, chattr +x",
        CLOCK + "Each is one metadata transaction in daxfs, done in Python, and durable when it returns; "
        "ext4 and XFS log theirs later.",
        ("falloc-*", "fpunch-*", "fzero-*", "truncate-*", "chattr-*"),
        ("packed", "own", "packed:transport=dev", *KERNEL, "tmpfs"),
        (("falloc-2m", "fpunch-2m", "truncate-up-16m", "chattr-x"), ("packed", "own", "ext4")), "ns"),
}


def visit(targets: Targets, args, jobs: dict, _family: str, name: str, target: Target,
          _seconds: float, _seed: int) -> Visit:
    """Repetitions of a job on a target."""
    with targets.place(target) as place:
        return xfs_io.run(jobs[name], place, args.size, args.runtime)


def plan(jobs: dict, args) -> Plan:
    """All families that were chosen."""
    for program in ("xfs_io", "stdbuf"):
        if not shutil.which(program):
            raise HostError(f"{program} is not installed, so all is skipped: "
                            "apt-get install xfsprogs coreutils")
    targets = Targets(max(args.size, 2 * LEAST))
    made = suites.families(SHAPES, list(jobs), args, partial(visit, targets, args, jobs))
    title = f"xfs_io, files of {args.size >> 20} MiB"
    return Plan(NAME, title, AXES, MEASURES, made, args.rounds, targets.close)


def main() -> int:
    jobs = xfs_io.jobs()
    parser = suites.parser(__doc__, NAME, ROUNDS, f"{SIZE >> 20}M; with --quick {QUICK_SIZE >> 20}M")
    parser.add_argument("--runtime", type=arguments.positive(float), metavar="S",
                        help=f"seconds of repetitions in each visit (default {RUNTIME:g}; "
                             f"with --quick {QUICK_RUNTIME:g}); at least {xfs_io.LEAST}, "
                             f"at most {xfs_io.MOST} repetitions")
    args = arguments.settle(parser.parse_args(), NAME)
    suites.check(parser, args, list(jobs), SHAPES)
    if args.list:
        suites.show_list({name: job.words for name, job in jobs.items()}, SHAPES)
        return 0
    args.size = args.size or (QUICK_SIZE if args.quick else SIZE)
    args.runtime = args.runtime or (QUICK_RUNTIME if args.quick else RUNTIME)
    if args.size < LEAST:
        parser.error(f"argument --size: not less than {LEAST >> 20}M: scripts name places up to there")
    return suites.finish(args, partial(plan, jobs), "repetition")


if __name__ == "__main__":
    sys.exit(main())
