# SPDX-License-Identifier: MIT
"""What fio_suite and xfs_io_suite have in common: families of jobs and targets, and --job, --target, --list.

Limits: knows neither program; a job is a name with a group and words.
"""

import argparse
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rich.console import Console

from lab import arguments, beside
from lab.plan import Axis, Cell, Family, Visit
from lab.targets import KINDS, Target, parse
from lab.words import parse_bytes

AXES = {"job": Axis("job"), "target": Axis("target")}


@dataclass(frozen=True)
class Shape:
    """A family: which of *jobs* (globs) are measured on which *targets*, and a part of both for --quick.

    *quick*: jobs and targets; empty: not with --quick.
    """

    title: str
    words: str
    jobs: tuple[str, ...]
    targets: tuple[str, ...]
    quick: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    measure: str = "mib_s"
    draw: tuple[str, ...] = ("bars",)


def chosen(shapes: dict[str, Shape], names: list[str],
           args: argparse.Namespace) -> dict[str, list[tuple[str, str]]]:
    """(job, target) of each family that is not empty. --job and --target take the place of the selection."""
    found = {}
    for family, shape in shapes.items():
        jobs, targets = (shape.jobs, shape.targets) if args.job or not args.quick else shape.quick
        jobs = _matching(names, jobs)
        if args.job:
            jobs = jobs if family in args.job else _matching(jobs, args.job)
        pairs = [(job, target) for job in jobs for target in dict.fromkeys(args.target or targets)]
        if pairs:
            found[family] = pairs
    # With --target given, one job is shown once, in the first of its families.
    return found if not args.target else _once(found)


def _once(found: dict[str, list]) -> dict[str, list]:
    seen: set = set()
    left = {}
    for family, pairs in found.items():
        if new := [pair for pair in pairs if pair not in seen]:
            left[family] = new
        seen |= set(pairs)
    return left


def _matching(names: list[str], patterns) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def families(shapes: dict[str, Shape], names: list[str], args: argparse.Namespace,
             visit: Callable[[str, str, Target, float, int], Visit]) -> list[Family]:
    """The families of a plan. *visit*: of (family, job, target, seconds, seed)."""
    made = []
    for family, pairs in chosen(shapes, names, args).items():
        shape = shapes[family]
        cells = [Cell({"job": job, "target": target},
                      partial(visit, family, job, parse(target, args.options))) for job, target in pairs]
        made.append(Family(family, shape.title, shape.words, shape.measure, shape.draw, ("target",), cells,
                           panel=("job",)))
    return made


def parser(doc: str, name: str, rounds: int, size: str) -> arguments.Parser:
    """The options of all experiments, and those of both suites."""
    made = arguments.parser(doc, name, rounds)
    made.add_argument("--job", metavar="J,J", help="jobs (with * and ?), or families, instead of all")
    made.add_argument("--target", action="append", metavar="T", help="a target; may be given several times")
    made.add_argument("--size", type=_bytes, metavar="S", help=f"of each file (default {size})")
    made.add_argument("--list", action="store_true", help="print jobs and targets, and end")
    return made


def _bytes(text: str) -> int:
    try:
        size = parse_bytes(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    if not 1 << 20 <= size <= 1 << 40 or size % (1 << 20):
        raise argparse.ArgumentTypeError(f"{text!r}: whole MiB, up to 1 TiB: 64M, 1G")
    return size


def check(made: arguments.Parser, args: argparse.Namespace, names: list[str],
          shapes: dict[str, Shape]) -> None:
    """Names of jobs and targets must be known: else one line, and exit status 2."""
    args.job = args.job.split(",") if args.job else []
    for word in args.job:
        if word not in shapes and not fnmatch.filter(names, word):
            made.error(f"argument --job: {word!r}: no such job or family; --list shows them")
    for text in args.target or ['packed']:
        try:
            parse(text, args.options)
        except ValueError as exc:
            made.error(f"argument --{'target' if args.target else 'options'}: {exc}")


def show_list(names: dict[str, str], shapes: dict[str, Shape]) -> None:
    """What --list prints: families with their jobs, *names* with words, and targets."""
    console = Console(highlight=False, soft_wrap=True)
    for family, shape in shapes.items():
        console.print(f"[bold]{family}[/]: {shape.title}")
        for job in _matching(list(names), shape.jobs):
            console.print(f"  {job:30} {names[job]}", markup=False)
        console.print(f"  on {', '.join(shape.targets)}", markup=False)
    console.print("[bold]targets[/], options of mount.daxfs behind a colon: packed:transport=dev,track=pmd")
    for kind, words in KINDS.items():
        console.print(f"  {kind:12} {words}", markup=False)


def finish(args: argparse.Namespace, make_plan, of: str) -> int:
    """Measure, print tables, then what the daemon counted. Exit status: carry_out's."""
    status = arguments.carry_out(args, make_plan)
    if status == 0:
        beside.show(args.output, of)
    return status
