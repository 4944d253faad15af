# SPDX-License-Identifier: MIT
"""What the daemon counted beside each cell, as a table: for each request or repetition, medians of the visits.

Limits: knows run.json and samples.jsonl alone.
"""

import json
import statistics
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from lab.table import WIDTH, number

COLUMNS = {"flush_lines": "lines flushed", "nt_bytes": "nt bytes", "drain": "drains", "flushed_bytes": "bytes by fsync"}


def show(directory: Path, of: str) -> None:
    """Print it. *of*: for each of what, a word."""
    found: dict[tuple, list[dict]] = {}
    with open(directory / "samples.jsonl") as file:
        for row in map(json.loads, file):
            if row.get("counts"):
                key = row["family"], *row["cell"].values()
                found.setdefault(key, []).append(row["counts"])
    if not found:
        return
    order = [family["name"] for family in json.loads((directory / "run.json").read_text())["families"]]
    table = Table(title=f"What the daemon did for each {of}, medians of the visits", box=box.SIMPLE_HEAD,
                  title_justify="left", title_style="bold")
    for name in ("family", "job", "target"):
        table.add_column(name, no_wrap=True)
    for name in COLUMNS.values():
        table.add_column(name, justify="right", no_wrap=True)
    for key in sorted(found, key=lambda key: (order.index(key[0]), key[1:])):
        medians = [statistics.median(one.get(name, 0) for one in found[key]) for name in COLUMNS]
        table.add_row(*map(str, key), *map(number, medians))
    console = Console(highlight=False)
    console = Console(highlight=False, width=max(WIDTH + 20, console.width)) if console.width < WIDTH + 20 else console
    console.print(table)
