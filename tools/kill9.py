#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Kill the daxfs daemon with -9 under load, many times, and check that nothing was lost.

    tools/kill9.py --rounds 50 --seed S --transport all

Round number i uses the seed S + i; a failed round is played again with
``--rounds 1 --seed THAT``. Exit status 1 if a promise was broken. Needs root,
/dev/fuse and daxfs installed beside the interpreter. Run from the checkout.
"""

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from crash_round import Plan, Report, Round
from mounts import TRANSPORTS, end_on_sigterm, why_no_mounts, why_no_transport
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, help="seed of the first round (default: random, printed)")
    parser.add_argument("--workers", type=int, default=3, help="loading processes (default 3)")
    parser.add_argument("--replay-kill", choices=("mixed", "always", "never"), default="mixed",
                        help="kill again while the mount replays the journal")
    parser.add_argument("--ranges", choices=("mixed", "always", "never"), default="mixed",
                        help="files with the DAX flag, on a pool directory")
    parser.add_argument("--transport", choices=(*TRANSPORTS, "all"),
                        help="mount with it; all: in turns with those of this host")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="copy region and logs of failed rounds here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary here too")
    return parser.parse_args()


def summary(reports: list[Report], console: Console) -> None:
    table = Table(title="kill -9 of the daemon under load",
                  caption="undone, done, torn: operations in flight")
    for heading in ("rounds", "failed", "kills", "operations", "seconds", "undone", "done", "torn"):
        table.add_column(heading, justify="right")
    failed = [report for report in reports if report.complaints]
    table.add_row(str(len(reports)), str(len(failed)), str(sum(report.kills for report in reports)),
                  str(sum(report.operations for report in reports)),
                  f"{sum(report.seconds for report in reports):.0f}",
                  *(str(sum(report.in_flight[outcome] for report in reports))
                    for outcome in ("undone", "done", "torn")))
    console.print(table)
    for report in failed:
        console.print(f"[red]seed {report.plan.seed} failed[/]: {report.plan.command()}\n"
                      f"  {report.plan}", highlight=False)
        for text in report.complaints[:20]:
            console.print(f"  {text}", markup=False, highlight=False)


def choose(wanted: str | None) -> tuple[list[str | None], list[str]]:
    """The transports to take in turns, none where that can't be; and the reasons for those left out."""
    reason = why_no_mounts()
    if reason:
        return [], [reason]
    names = TRANSPORTS if wanted == "all" else (wanted,)
    reasons = {name: why_no_transport(name) if name else None for name in names}
    return ([name for name in names if not reasons[name]], list(filter(None, reasons.values())))


def main() -> int:
    args = arguments()
    end_on_sigterm()
    console = Console()
    transports, reasons = choose(args.transport)
    for reason in reasons:
        console.print(f"kill9: {reason}")
    if not transports:
        return 2
    seed = args.seed if args.seed is not None else random.randrange(1 << 20)
    chosen = {"mixed": None, "always": True, "never": False}
    replay_kill, dax = chosen[args.replay_kill], chosen[args.ranges]
    console.print(f"seeds {seed} to {seed + args.rounds - 1}")
    reports = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("rounds", total=args.rounds)
        for number in range(args.rounds):
            transport = transports[number % len(transports)]
            plan = Plan.draw(seed + number, args.workers, replay_kill, transport, dax)
            report = Round(plan, args.keep).run()
            reports.append(report)
            if report.complaints:
                progress.console.print(f"[red]seed {seed + number}: {len(report.complaints)} complaints[/]")
            progress.update(task, advance=1, description=f"seed {seed + number}")
    summary(reports, console)
    if args.json:
        rows = [{"seed": report.plan.seed, "plan": vars(report.plan), "complaints": report.complaints,
                 "kills": report.kills, "operations": report.operations, "in_flight": report.in_flight,
                 "seconds": round(report.seconds, 3)} for report in reports]
        args.json.write_text(json.dumps({"first_seed": seed, "rounds": rows}, indent=1) + "\n")
    return 1 if any(report.complaints for report in reports) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
