# SPDX-License-Identifier: MIT
"""Medians and quartiles of a run as tables in the terminal: what an experiment prints at its end."""

import json
import statistics
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from lab.words import show, show_ns


def gathered(directory: Path) -> tuple[dict, dict[str, list[str]]]:
    """Samples of all rounds by (family, cell, measure), and reasons of skipped cells by family."""
    found: dict[tuple, list[float]] = {}
    skipped: dict[str, list[str]] = {}
    with open(directory / "samples.jsonl") as file:
        for row in map(json.loads, file):
            if "skipped" in row:
                cell = " ".join(show(*item) for item in row["cell"].items())
                skipped.setdefault(row["family"], []).append(f"{cell}: {row['skipped']}")
                continue
            for measure, samples in row["samples"].items():
                key = row["family"], tuple(sorted(row["cell"].items())), measure
                found.setdefault(key, []).extend(samples)
    return found, skipped


def quartiles(samples: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(samples) < 2:
        return samples[0], samples[0], samples[0]
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, middle, high


def value(number: float, unit: str) -> str:
    return show_ns(number) if unit == "ns" else f"{number:.4g}"


def _named(cell: dict, axes) -> str:
    return " ".join(show(name, cell[name]) for name in axes if name in cell)


def tables(facts: dict, found: dict) -> list[Table]:
    """One for each family: rows are x and panel, columns are lines; medians, and quartiles below them."""
    made = []
    for family in facts["families"]:
        unit = facts["measures"][family["measure"]]["unit"]
        cells = {key[1]: samples for key, samples in found.items()
                 if key[0] == family["name"] and key[2] == family["measure"]}
        if not cells:
            continue
        rows: dict[tuple, dict[str, list[float]]] = {}
        columns: list[str] = []
        across = [family["x"]] if family["x"] else []
        order = {key: n for n, key in enumerate(sorted(cells, key=lambda key: _sort_key(dict(key), family)))}
        for key in order:
            cell = dict(key)
            row = tuple(_named(cell, [name]) for name in [*family["panel"], *across])
            column = _named(cell, family["line"])
            rows.setdefault(row, {})[column] = cells[key]
            columns += [column] if column not in columns else []
        table = Table(title=f"{family['title']} ({unit or 'count'}: median, quartiles)", box=box.SIMPLE_HEAD)
        for name in [*family["panel"], *across]:
            table.add_column(facts["axes"][name]["label"], no_wrap=True)
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
        for row, by_column in rows.items():
            table.add_row(*row, *[_text(by_column.get(column), unit) for column in columns])
        made.append(table)
    return made


def _sort_key(cell: dict, family: dict) -> list:
    """Panels together, then by x; numbers by size, names by themselves."""
    names = [*family["panel"], *([family["x"]] if family["x"] else [])]
    return [(isinstance(cell.get(name), str), cell.get(name, 0)) for name in names]


def _text(samples: list[float] | None, unit: str) -> str:
    if not samples:
        return "-"
    low, middle, high = quartiles(samples)
    return f"{value(middle, unit)}\n[dim]{value(low, unit)}-{value(high, unit)}[/]"


def show_run(directory: Path) -> None:
    """Print the tables of the run in *directory*, and what was skipped."""
    facts = json.loads((directory / "run.json").read_text())
    found, skipped = gathered(directory)
    console = Console(highlight=False)
    for table in tables(facts, found):
        console.print(table)
    for family, reasons in skipped.items():
        for reason in sorted(set(reasons)):
            console.print(f"skipped, {family}: {reason}", markup=False)
