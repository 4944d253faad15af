# SPDX-License-Identifier: MIT
"""What the benchmarks share: results with targets, the table, the JSON file, facts of the host, pinning.

A benchmark makes a ``Report``, adds rows and ends with ``sys.exit(report.finish())``:
0, or 1 if a target was missed. Nothing here measures.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]  # tests first: tools/ has modules of the same names


def host() -> dict:
    """Commit, kernel, CPU and Python that a result belongs to."""
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], check=False,
                            capture_output=True, text=True).stdout.strip()
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return {"commit": commit, "kernel": platform.release(), "cpu": models[0] if models else "?",
            "cpus": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def parser(doc: str, rounds: int | None = None) -> argparse.ArgumentParser:
    """Argument parser with what all benchmarks take; SIGTERM unmounts from now on.

    *rounds*: the default number of turns, of a benchmark that takes turns.
    """
    import mounts
    mounts.end_on_sigterm()
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    made.add_argument("--options", default="", help="mount options for daxfs")
    made.add_argument("--quick", action="store_true", help="fewer repeats and smaller sizes: no evidence")
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds, help=f"turns of each (default {rounds})")
    return made


def compiled(folder: Path, name: str, *more: str | Path) -> Path:
    """The C program NAME.c of this folder, built into *folder*; *more*: arguments for the compiler."""
    cc = shutil.which("cc")
    if cc is None:
        raise SystemExit("no C compiler (cc): install gcc")
    program = folder / name
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run([cc, "-O2", "-Wall", "-Wextra", "-o", program, source, *more], check=True)
    return program


class Report:
    """Rows (what, measured columns, target) of one benchmark."""

    def __init__(self, title: str, columns: list[str], args: argparse.Namespace):
        self.title = title
        self.columns = columns
        self.args = args
        self.rows: list[dict] = []
        self.samples: dict = {}  # of a benchmark that keeps them: for --json

    def add(self, what: str, values: list, measured: float | None = None, limit: float | None = None,
            at_least: bool = False) -> None:
        """One row; with *limit*, *measured* must not be above it (*at_least*: below it). None: no target."""
        ok = None
        if limit is not None:
            ok = measured >= limit if at_least else measured <= limit
        self.rows.append({"what": what, "values": dict(zip(self.columns, values, strict=True)),
                          "measured": measured, "limit": limit, "at_least": at_least, "ok": ok})

    def finish(self) -> int:
        """Print the table, write the JSON file; the exit status."""
        table = Table(title=self.title)
        table.add_column("what")
        for column in [*self.columns, "target"]:
            table.add_column(column, justify="right")
        for row in self.rows:
            table.add_row(row["what"], *map(_text, row["values"].values()), _verdict(row))
        facts = host()
        Console(width=max(110, Console().width)).print(table, " ".join(f"{k}={v}" for k, v in facts.items()))
        if self.args.json:
            options = {key: str(value) for key, value in vars(self.args).items()}
            self.args.json.write_text(json.dumps(
                {"title": self.title, "host": facts, "options": options, "rows": self.rows,
                 "samples": self.samples}, indent=1) + "\n")
        return 1 if any(row["ok"] is False for row in self.rows) else 0


def _text(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _verdict(row: dict) -> str:
    if row["ok"] is None:
        return "beside"
    sign = ">=" if row["at_least"] else "<="
    colour = "green" if row["ok"] else "red"
    return f"[{colour}]{row['measured']:.4g} {sign} {row['limit']:g} {'met' if row['ok'] else 'MISSED'}[/]"


def pin(pid: int, cpus: set[int]) -> None:
    """Put every thread of process *pid* on *cpus*."""
    for task in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(task), cpus)
