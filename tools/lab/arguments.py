# SPDX-License-Identifier: MIT
"""What all experiments take on the command line, and the way from there to a run's end."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import mounts
from rich.console import Console

from lab import schedule, table
from lab.plan import Plan
from lab.start import ROOT
from lab.store import Run, RunError

QUICK_S = 60.0   # with mounts and tables below two minutes
VISIT_S, QUICK_VISIT_S = 0.25, 0.05


def parser(doc: str, name: str, rounds: int) -> argparse.ArgumentParser:
    """*doc*: its first line describes the experiment, what follows the first blank line is shown behind."""
    head, _, rest = doc.partition("\n\n")
    made = argparse.ArgumentParser(prog=name, description=head, epilog=rest,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--output", type=Path, metavar="DIR",
        help=f"where samples go (default build/lab/{name}, with --quick {name}-quick); "
             "a run that was stopped goes on there")
    add("--quick", action="store_true",
        help="fewer cells and samples, in at most two minutes: a look, no evidence")
    add("--rounds", type=int, metavar="N", help=f"visits to each cell (default {rounds}; with --quick 3)")
    add("--seconds", type=float, metavar="S", help="end each part after its share of S seconds, whole rounds "
                                                   f"(default: no limit; with --quick {QUICK_S:.0f})")
    add("--seed", type=int, default=1, help="of orders and places (default 1)")
    add("--options", default="", help="further mount options for all mounts of daxfs")
    made.set_defaults(default_rounds=rounds)
    return made


def settle(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """Fill in the defaults that depend on other arguments."""
    args.rounds = args.rounds or (3 if args.quick else args.default_rounds)
    args.output = args.output or ROOT / "build" / "lab" / (name + ("-quick" if args.quick else ""))
    if args.seconds is None and args.quick:
        args.seconds = QUICK_S
    return args


def carry_out(args: argparse.Namespace, make_plan: Callable[[argparse.Namespace], Plan],
              emulate: str = "none") -> int:
    """Run the experiment, print its tables. Exit status: 0; 1 daxfs failed; 2 can't be; 130 interrupted."""
    err = Console(stderr=True, highlight=False)
    if reason := mounts.why_no_mounts():
        err.print(f"{Path(sys.argv[0]).name}: {reason}", markup=False)
        return 2
    mounts.end_on_sigterm()
    turned_on = mounts.switch_uring_on()
    try:
        plan = make_plan(args)
        options = {key: value for key, value in vars(args).items() if key not in ("output", "default_rounds")}
        run = Run(args.output, plan, options, args.seed, emulate)
        if run.resumed:
            err.print(f"goes on in {args.output}: {len(run.done)} visits are there", markup=False)
        complete = False
        try:
            visit_s = QUICK_VISIT_S if args.quick else VISIT_S
            complete = schedule.run(run, plan, args.seed, visit_s, args.seconds)
        finally:
            run.close(complete)
    except RunError as exc:
        err.print(f"{Path(sys.argv[0]).name}: {exc}", markup=False)
        return 2
    except (mounts.CommandError, OSError) as exc:
        err.print(f"{Path(sys.argv[0]).name}: {exc}", markup=False)
        return 1
    finally:
        mounts.close_all()
        if turned_on:
            mounts.ENABLE_URING.write_text("N")
    table.show_run(args.output)
    shown = args.output
    if not complete:
        err.print(f"stopped; the same command goes on in {shown}", markup=False)
        return 130
    err.print(f"samples are in {shown}; draw them: tools/plot_sweep.py {shown}", markup=False)
    return 0
