#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How long fsync takes: against what is dirty, what is mapped, and by every policy that daxfs has.

Without further options all families are measured, which takes half an hour on a quiet machine; --quick shows
what there is in a minute. A run that was stopped goes on when the same command is given again.

  tools/fsync_sweep.py --quick                       a part of every family
  tools/fsync_sweep.py --family dirty,flushers       two families in full
  tools/fsync_sweep.py --dirty 4K,64K,1M --track pte,extent --flush clwb,clflush
                                                     every combination of these, as one family "cross"
  tools/plot_sweep.py build/lab/fsync_sweep          draws what was measured

An axis that is not given has its default alone. Samples, conditions and limits: docs/laboratory.md. Exit
status: 0; 1 daxfs failed; 2 it can't be measured so, or here; 130 interrupted.
"""

import argparse
import os
import sys

import lab.start  # noqa: F401
from lab import arguments
from lab.fsync_cells import AXES, MEASURES, NAMES, WORDS, Bench, base
from lab.fsync_families import SHAPES, cross, family
from lab.plan import Plan
from lab.words import parse_bytes, show
from lab.worker import Worker, program

from daxfs import emulate
from daxfs.errors import UsageError
from daxfs.fuse import options

NAME, ROUNDS, COUNT, QUICK_COUNT = "fsync_sweep", 5, 40, 20
QUICK_S = 45.0  # with the build of a fresh checkout and the figures below three minutes (make sweep)
LEAST = {"dirty": 64, "mapped": 4096, "flushers": 1}


def values(axis: str):
    """For argparse: the values of *axis* from a list with commas."""
    def numbers(text: str) -> tuple[int, ...]:
        try:
            found = tuple(parse_bytes(word) if AXES[axis].unit else int(word) for word in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: numbers with commas: 4096, 4K, 2M, 1G") from None
        if min(found) < LEAST.get(axis, 0):
            raise argparse.ArgumentTypeError(f"{text!r}: not less than {LEAST.get(axis, 0)}")
        return found

    def names(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        for word in found:
            if axis == "emulate" and os.path.isabs(word):
                medium(word)
            elif word not in NAMES[axis]:
                raise argparse.ArgumentTypeError(f"{word!r}: one of {', '.join(NAMES[axis])}")
        return found
    return numbers if AXES[axis].kind == "number" else names


def medium(path: str) -> None:
    """For argparse: a user's file of a medium can be had."""
    try:
        emulate.find(path)
    except UsageError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def families(text: str) -> list[str]:
    """For argparse: names of families."""
    found = text.split(",")
    for word in found:
        if word not in SHAPES:
            raise argparse.ArgumentTypeError(f"{word!r}: one of {', '.join(SHAPES)}")
    return found


def cpu(text: str) -> int | None:
    """For argparse: a CPU that this process may use; None for any."""
    if text == "any":
        return None
    if not text.isdigit() or int(text) not in os.sched_getaffinity(0):
        raise argparse.ArgumentTypeError(f"{text!r}: any, or one of "
                                         f"{', '.join(map(str, sorted(os.sched_getaffinity(0))))}")
    return int(text)


def parsed() -> tuple[argparse.Namespace, dict[str, tuple]]:
    """The arguments, and the axes that were given."""
    parser = arguments.parser(__doc__, NAME, ROUNDS, QUICK_S)
    parser.usage = "%(prog)s [--quick] [--family F,F | --AXIS V,V ...] [--output DIR] [OPTION ...]"
    parser.add_argument("--family", type=families, metavar="F,F", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--samples", type=arguments.positive(int), metavar="N",
                        help=f"of one visit at most (default {COUNT}; with --quick {QUICK_COUNT})")
    parser.add_argument("--cpu", type=cpu, default=str(min(os.sched_getaffinity(0))), metavar="N",
                        help="the CPU that the calling program is kept on, or any (default %(default)s)")
    axes = parser.add_argument_group("axes", "values with commas; all combinations are measured")
    for name in AXES:
        axes.add_argument(f"--{name}", type=values(name), metavar="V,V", help=_help(name))
    args = parser.parse_args()
    given = {name: getattr(args, name) for name in AXES if getattr(args, name) is not None}
    if given and args.family:
        parser.error("--family and values of axes: one or the other")
    for name in (word.partition("=")[0] for word in options.split(args.options)):
        if name in AXES:  # cells would say something else than what was mounted
            parser.error(f"argument --options: {name} is an axis: --{name}")
    arguments.settle(args, NAME)
    args.samples = args.samples or (QUICK_COUNT if args.quick else COUNT)
    if given:
        try:
            cross(Bench(Worker(), "", 1), given)
        except ValueError as exc:
            parser.error(str(exc))
    return args, given


def _help(axis: str) -> str:
    known = f"{', '.join(NAMES[axis])}. " if axis in NAMES else ""
    preset = "uring, else dev" if axis == "transport" else base().get(axis)
    return known + WORDS[axis] + (f" (default {show(axis, preset)})" if preset is not None else "")


def main() -> int:
    args, given = parsed()

    def plan(_args: argparse.Namespace) -> Plan:
        program()  # now, so that it fails before anything is mounted
        bench = Bench(Worker(args.cpu), args.options, args.samples)
        made = [cross(bench, given)] if given else [family(bench, name, SHAPES[name], args.quick)
                                                    for name in args.family or SHAPES]
        return Plan(NAME, "fsync, fdatasync and msync of daxfs, by policy", AXES, MEASURES, made, args.rounds,
                    bench.close)
    return arguments.carry_out(args, plan, ",".join(given.get("emulate", ("none",))))


if __name__ == "__main__":
    sys.exit(main())
