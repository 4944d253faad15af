#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Cut the power at every crash point of many short sequences of operations, and judge what is left.

    tools/crash_sweep.py                     everything, on all CPUs; goes on where an earlier run was stopped
    tools/crash_sweep.py --quick             a spread over everything, in two minutes
    tools/crash_sweep.py --set one --sample 10%

Results are in build/crash-sweep: summary.html, summary.json and results.jsonl. Each violation is printed
with the command that plays it again. The last line has the number of images and of violations. Exit status:
0 none, 1 violations, 2 a sequence could not be run to its end, 130 interrupted. Needs no root and no mount.
Run from the checkout; daxfs must be installed beside the interpreter.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from crash import page, summary, sweep
from crash.pool import parts, remove_scratch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

BEGAN = time.monotonic()
OUT = Path("build/crash-sweep")
SIZES = sweep.Sizes()
QUICK_LIMIT, QUICK_OPS = 8, 20
QUICK_SECONDS = 108.0      # with start-up, the last sequences and the summary: two minutes
LINE_SECONDS = 30.0


def share(text: str) -> float:
    """``10%`` or ``0.1``."""
    value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    if not 0 < value <= 1:
        raise ValueError(text)
    return value


def sets(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in sweep.SETS:
            raise argparse.ArgumentTypeError(f"no set {name!r}: there are {', '.join(sweep.SETS)}")
    return names


def arguments(words=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    limits = ", ".join(f"{name} {sweep.LIMITS[name]}" for name in sweep.SETS)
    add = parser.add_argument
    add("--set", type=sets, default=list(sweep.SETS), metavar="SET,...",
        help=f"of {', '.join(sweep.SETS)} (default: all)")
    add("--log", type=Path, metavar="FILE", help="judge a recording made with -o record=FILE instead")
    add("--quick", action="store_true", help="a spread over all sets, two minutes in all")
    add("--seed", type=int, default=0, help="of every choice (default 0)")
    add("--jobs", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
        help="processes (default: one for each CPU)")
    add("--limit", type=int, metavar="N", default=0,
        help=f"images for each crash point (default: {limits}; with --quick at most {QUICK_LIMIT})")
    add("--nested", type=int, default=8, metavar="N",
        help="images for each recovery that is cut off (default 8)")
    add("--three", type=int, metavar="N", help=f"sequences of set three (default {SIZES.three})")
    add("--random", type=int, metavar="N", help=f"sequences of set random (default {SIZES.random})")
    add("--ops", type=int, metavar="N",
        help=f"operations in a random sequence (default {SIZES.ops}; with --quick {QUICK_OPS})")
    add("--ownlong", type=int, metavar="N", help=f"sequences of set ownlong (default {SIZES.ownlong})")
    add("--observedlong", type=int, metavar="N",
        help=f"sequences of set observedlong (default {SIZES.observedlong})")
    add("--track", type=int, metavar="N",
        help=f"sequences of set track under each policy (default {SIZES.track})")
    add("--switch", type=int, metavar="N", help=f"sequences of set switch (default {SIZES.switch})")
    add("--sample", type=share, metavar="SHARE", help="run only this share of each set: 10%% or 0.1")
    add("--match", metavar="TEXT", help="run only sequences whose name contains TEXT; a full name means one")
    add("--time", type=float, metavar="SECONDS", help="stop after this time; the same command goes on")
    add("--patience", type=float, default=sweep.PATIENCE, metavar="SECONDS",
        help="give a sequence up after this time (default 600)")
    add("--out", type=Path, metavar="DIR", help=f"for results (default {OUT}; with --quick, {OUT}/quick)")
    add("--fresh", action="store_true", help="run what was chosen again, whatever earlier runs found")
    add("--json", action="store_true", help="print the summary as JSON; the last line goes to stderr")
    args = parser.parse_args(words)
    numbers = [getattr(args, name) or 0 for name in dataclasses.asdict(SIZES)]
    if args.jobs < 1 or min(args.limit, *numbers) < 0:
        parser.error("that number is too small")
    if args.quick:
        args.fresh, args.time, args.out = True, args.time or QUICK_SECONDS, args.out or OUT / "quick"
        args.ops = QUICK_OPS if args.ops is None else args.ops
    args.out = args.out or OUT
    sizes = {name: getattr(args, name) for name in dataclasses.asdict(SIZES)}
    args.sizes = sweep.Sizes(**{name: size for name, size in sizes.items() if size is not None})
    args.limits = {name: args.limit or min(sweep.LIMITS[name], QUICK_LIMIT if args.quick else 1 << 30)
                   for name in args.set}
    return args


def replay_command(args) -> list[str]:
    """The words of a command that has the same parameters and no choice of sequences."""
    words = ["tools/crash_sweep.py", "--seed", str(args.seed)]
    for name, usual in {"nested": 8, **dataclasses.asdict(SIZES)}.items():
        number = getattr(args, name) if name == "nested" else getattr(args.sizes, name)
        if number != usual:
            words += [f"--{name}", str(number)]
    return words


def choose(args) -> list[sweep.Job]:
    """The jobs that the options ask for. SweepError where there are none."""
    if args.log:
        parts()[0].Engine.check_log(str(args.log))
        args.fresh = True
        return sweep.make_recording_jobs(str(args.log), args.jobs, args.limit or sweep.LIMITS["log"])
    jobs = sweep.make_jobs(args.sizes, args.seed, args.limits)
    if args.match:
        jobs = sweep.matching(jobs, args.match)
    if args.sample:
        jobs = sweep.sample_sets(jobs, args.sample, args.seed)
    if not jobs:
        raise sweep.SweepError("no sequence was chosen")
    return jobs


class Lines:
    """Progress where stderr is no terminal: a line every half minute."""

    def __init__(self, running: sweep.Sweep):
        self.running, self.next = running, time.monotonic() + LINE_SECONDS

    def __enter__(self) -> "Lines":
        run = self.running
        if run.resumed:
            self._print(f"{run.resumed:,} of {len(run.jobs):,} sequences were run before")
        return self

    def __exit__(self, *_) -> None:
        pass

    def tick(self) -> None:
        run = self.running
        if time.monotonic() >= self.next:
            self.next += LINE_SECONDS
            self._print(f"{run.done():,} of {len(run.jobs):,} sequences, {run.images:,} images, "
                        f"{run.rate():,.0f} a minute, {run.violations:,} violations, "
                        f"{summary.clock(run.seconds_left())} left")

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Bar:
    """Progress on a terminal."""

    COLUMNS = ("{task.fields[images]} images", "{task.fields[rate]}/min", "{task.fields[violations]}",
               "{task.fields[left]} left")

    def __init__(self, running: sweep.Sweep, console: Console):
        self.running = running
        texts = [TextColumn(text) for text in self.COLUMNS]
        self.progress = Progress(BarColumn(bar_width=24), MofNCompleteColumn(), *texts, console=console)
        self.task = self.progress.add_task("", total=len(running.jobs), **self._fields())

    def _fields(self) -> dict:
        run = self.running
        bad = f"[red]{run.violations:,} violations[/]" if run.violations else "0 violations"
        return {"images": f"{run.images:,}", "rate": f"{run.rate():,.0f}", "violations": bad,
                "left": summary.clock(run.seconds_left())}

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.tick()
        self.progress.stop()

    def tick(self) -> None:
        self.progress.update(self.task, completed=self.running.done(), **self._fields())


def run(args) -> dict:
    """Run what is to be run, write the files, return the summary."""
    jobs = choose(args)
    results = sweep.Results(args.out, sweep.digest())
    remove_scratch()
    parameters = sweep.Parameters(args.seed, args.nested)
    deadline = None if args.time is None else BEGAN + args.time
    running = sweep.Sweep(jobs, parameters, results, args.jobs, deadline, args.fresh)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: running.stop("interrupted"))
    console = Console(stderr=True)
    with Bar(running, console) if console.is_terminal else Lines(running) as progress:
        running.run(progress.tick, args.patience)
    results.close()
    found = summary.build(running, replay_command(args))
    (args.out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    (args.out / "summary.html").write_text(page.page(found))
    return found


def main() -> int:
    args = arguments()
    try:
        found = run(args)
    except (sweep.SweepError, OSError) as error:
        print(f"crash_sweep: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        # Not narrower than what it shows where the output goes to a file.
        console = Console(width=None if sys.stdout.isatty() else 120)
        summary.show(found, console)
        console.print(f"{args.out}/summary.html", highlight=False)
    print(summary.last_line(found), file=sys.stderr if args.json else sys.stdout, flush=True)
    if found["stopped"] == "interrupted":
        return 130
    return 1 if found["violations"] else 2 if found["failures"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        sys.exit(2)
