# SPDX-License-Identifier: MIT
"""What all experiments take on the command line, and the way from there to a run's end."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import mounts
from rich.console import Console

from daxfs.errors import UsageError
from daxfs.fuse import options
from lab import rigs, schedule, table
from lab.plan import CellFailed, HostError, Plan
from lab.start import ROOT
from lab.store import Run, RunError

QUICK_S = 60.0   # with mounts and tables below two minutes
VISIT_S, QUICK_VISIT_S = 0.25, 0.05
NOT_OF_THE_RUN = ("output", "anew", "default_rounds", "quick_s")  # arguments that a resumed run may change


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; exit status 2."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; --help shows what there is\n")


def positive(kind: type) -> Callable[[str], float]:
    """For argparse: a number of *kind* that is more than 0."""
    def check(text: str):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value
    check.__name__ = f"positive {kind.__name__}"
    return check


def mount_words(text: str) -> str:
    """For argparse: options of mount.daxfs, by what it knows itself."""
    try:
        options.parse(text)
    except UsageError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return text


def parser(doc: str, name: str, rounds: int, quick_s: float = QUICK_S) -> Parser:
    """*doc*: its first line describes the experiment, what follows the first blank line is shown behind.

    *rounds*, *quick_s*: how many there are, and how many seconds --quick has, where nothing else is given.
    """
    head, _, rest = doc.partition("\n\n")
    made = Parser(prog=f"{name}.py", description=head, epilog=rest, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--output", type=Path, metavar="DIR",
        help=f"where samples go (default build/lab/{name}, with --quick {name}-quick); "
             "a run that was stopped goes on there")
    add("--anew", action="store_true", help="begin again, if DIR has a run")
    add("--quick", action="store_true",
        help="fewer cells and samples, in at most two minutes: a look, no evidence")
    add("--rounds", type=positive(int), metavar="N",
        help=f"visits to each cell (default {rounds}; with --quick 3)")
    add("--seconds", type=positive(float), metavar="S",
        help="end each part after its share of S seconds, whole rounds "
             f"(default: no limit; with --quick {quick_s:.0f})")
    add("--seed", type=int, default=1, help="of orders and places (default 1)")
    add("--options", type=mount_words, default="", metavar="O,O",
        help="further mount options for all mounts of daxfs")
    made.set_defaults(default_rounds=rounds, quick_s=quick_s)
    return made


def settle(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """Fill in the defaults that depend on other arguments."""
    args.rounds = args.rounds or (3 if args.quick else args.default_rounds)
    args.output = args.output or ROOT / "build" / "lab" / (name + ("-quick" if args.quick else ""))
    if args.seconds is None and args.quick:
        args.seconds = args.quick_s
    return args


def name_of_program() -> str:
    """As error messages begin."""
    return Path(sys.argv[0]).name


def carry_out(args: argparse.Namespace, make_plan: Callable[[argparse.Namespace], Plan],
              emulate: str = "none") -> int:
    """Run the experiment, print its tables. Exit status: 0; 1 daxfs failed; 2 can't be; 130 interrupted.

    *emulate*: the medium that its cells ask for; that of --options is every mount's.
    """
    given = options.parse(args.options).emulate
    emulate = given if given != "none" else emulate
    err = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(text) -> None:
        err.print(f"{name_of_program()}: {text}", markup=False)

    if reason := mounts.why_no_mounts():
        say(reason)
        return 2
    mounts.end_on_sigterm()
    turned_on = mounts.switch_uring_on()
    mounts.why_no_transport.cache_clear()  # somebody may have asked before
    status, reason = 2, None
    try:
        if gone := rigs.prepare():
            say(f"a run was killed: taken away what it left, {len(gone)} mounts and files")
        status = _measure(args, make_plan, emulate, say)
    except (RunError, HostError) as exc:
        reason = exc
    except (mounts.CommandError, rigs.RigError, CellFailed, OSError) as exc:
        status, reason = 1, exc
    except KeyboardInterrupt:
        status = 130
    finally:
        mounts.close_all()
        if turned_on:
            mounts.ENABLE_URING.write_text("N")
    if reason is not None:
        say(reason)
        if status == 1:
            say(f"what was measured before is in {args.output}")
        return status
    if status == 130:
        say(f"stopped; the same command goes on in {args.output}")
        return status
    if not table.show_run(args.output):
        say("nothing could be measured here")
        return 2
    err.print(f"samples are in {args.output}; draw them: tools/plot_sweep.py {args.output}", markup=False)
    return status


def _measure(args: argparse.Namespace, make_plan: Callable[[argparse.Namespace], Plan], emulate: str,
             say) -> int:
    """Make the plan's visits. Exit status: 0, or 130 where it was interrupted."""
    given = {key: value for key, value in vars(args).items() if key not in NOT_OF_THE_RUN}
    plan = make_plan(args)
    try:
        run = Run(args.output, plan, given, args.seed, emulate, args.anew)
        if run.complete:
            run.release()
            say(f"{args.output} is complete already: {len(run.done)} visits; --anew measures again")
            return 0
        if run.resumed:
            say(f"goes on in {args.output}: {len(run.done)} visits are there")
        complete = False
        try:
            visit_s = QUICK_VISIT_S if args.quick else VISIT_S
            complete = schedule.run(run, plan, args.seed, visit_s, args.seconds)
        finally:
            run.close(complete)
    finally:
        plan.close()
    return 0 if complete else 130
