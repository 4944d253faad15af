# SPDX-License-Identifier: MIT
"""Command: `python -m tests.posix MOUNTPOINT [--oracle DIR]`.

Exit status 0: all agree, 1: a mismatch, 2: can't run.

Limits: prints and counts; the meaning is in runner and in the cases.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .runner import TIMEOUT, Verdict, fs_type, judge, oracle_mount
from .table import Case, all_cases


@click.command()
@click.argument(
    "mountpoint", required=False, type=click.Path(exists=True, file_okay=False, resolve_path=True)
)
@click.option(
    "--oracle",
    type=click.Path(exists=True, file_okay=False, resolve_path=True),
    help="Directory to compare with; a temporary tmpfs where not given.",
)
@click.option("--only", multiple=True, metavar="AREA", help="Run this area (or this one case) alone.")
@click.option("--list", "listing", is_flag=True, help="List the cases and stop.")
@click.option("--timeout", default=TIMEOUT, show_default=True, help="Seconds for one case on one mount.")
@click.option("-v", "--verbose", is_flag=True, help="Print each case and what it saw.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def main(mountpoint, oracle, only, listing, timeout, verbose, as_json):
    """Run the POSIX table on MOUNTPOINT and on an oracle and compare what was seen."""
    try:
        cases = all_cases(only)
    except LookupError as error:
        raise click.UsageError(str(error)) from None
    if listing:
        for case in cases:
            click.echo(f"{case.id:50} {case.doc}")
        return
    if mountpoint is None:
        raise click.UsageError("MOUNTPOINT is missing")
    if os.geteuid() != 0:
        raise click.UsageError("needs root: cases change owners and identities")
    console = Console(stderr=as_json)
    with contextlib.ExitStack() as stack:
        if oracle is None:
            try:
                oracle = stack.enter_context(oracle_mount())
            except (OSError, subprocess.CalledProcessError) as error:
                raise click.UsageError(f"can't mount a tmpfs as oracle ({error}); give --oracle") from None
        verdicts = _run(cases, mountpoint, oracle, timeout, console, verbose)
        types = fs_type(mountpoint), fs_type(oracle)
    if as_json:
        click.echo(json.dumps(_as_json(verdicts, types), indent=1))
    _report(console, verdicts, types)
    sys.exit(any(v.status == "mismatch" for v in verdicts))


def _run(cases: list[Case], mountpoint: str, oracle: str, timeout: float, console: Console, verbose: bool):
    verdicts = []
    for case in cases:
        verdict = judge(case, mountpoint, oracle, timeout)
        verdicts.append(verdict)
        if verbose:
            console.print(
                f"{verdict.status:9}{verdict.seconds:7.3f} s  {escape(case.id)}  {escape(str(verdict.mount))}"
            )
    return verdicts


def _as_json(verdicts: list[Verdict], types: tuple[str, str]) -> dict:
    rows = [
        {
            "case": v.case.id,
            "area": v.case.area,
            "status": v.status,
            "seconds": round(v.seconds, 4),
            "mount": str(v.mount),
            "oracle": str(v.oracle),
            "doc": v.case.doc,
        }
        for v in verdicts
    ]
    return {"mount_type": types[0], "oracle_type": types[1], "cases": rows}


def _report(console: Console, verdicts: list[Verdict], types: tuple[str, str]) -> None:
    table = Table(title=f"POSIX table: {types[0]} against {types[1]}")
    table.add_column("area")
    for column in ("cases", "agree", "lacks", "mismatch", "seconds"):
        table.add_column(column, justify="right")
    areas = list(dict.fromkeys(v.case.area for v in verdicts))
    for area in [*areas, ""]:
        rows = [v for v in verdicts if v.case.area == area or not area]
        count = Counter(v.status for v in rows)
        cells = [len(rows), count["agree"], count["lacks"], count["mismatch"]]
        table.add_row(
            area or "total",
            *map(str, cells),
            f"{sum(v.seconds for v in rows):.2f}",
            end_section=area == areas[-1],
        )
    console.print(table)
    for verdict in verdicts:
        if verdict.status == "lacks":
            console.print(
                f"lacks {escape(verdict.case.id)}: {escape(str(verdict.mount.value))}", style="yellow"
            )
    for verdict in verdicts:
        if verdict.status == "mismatch":
            console.print(escape(verdict.explain()), style="red", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main(prog_name="python -m tests.posix")
