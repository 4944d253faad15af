# SPDX-License-Identifier: MIT
"""A suite's run in full: for each cell all measures, and beside them what the daemon counted.

Limits: knows run.json and samples.jsonl alone.
"""

import json
import statistics
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from lab.table import number

COUNTS = {"flush_lines": "lines", "nt_bytes": "nt B", "drain": "drains", "flushed_bytes": "fsync B"}
TAILS = (0.5, 0.99)


def show(directory: Path, of: str) -> None:
    """Print a table for each family. *of*: what counts are for each of, a word."""
    facts = json.loads((directory / "run.json").read_text())
    samples: dict[tuple, dict[str, list[float]]] = {}
    counts: dict[tuple, list[dict]] = {}
    with open(directory / "samples.jsonl") as file:
        for row in map(json.loads, file):
            if "skipped" in row:
                continue
            key = row["family"], row["cell"]["job"], row["cell"]["target"]
            for name, values in row["samples"].items():
                samples.setdefault(key, {}).setdefault(name, []).extend(values)
            counts.setdefault(key, []).append(row.get("counts") or {})
    for family in facts["families"]:
        there = {key[1:]: found for key, found in samples.items() if key[0] == family["name"]}
        if there:
            _print(facts, family, there, counts, of)


def _print(facts: dict, family: dict, cells: dict, counts: dict, of: str) -> None:
    names = [name for name in facts["measures"] if any(name in found for found in cells.values())]
    table = Table(title=f"{family['name']}, all measures: medians, of latencies also p99, in µs\n"
                        f"the daemon's counts: for each {of}", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("job", "target"):
        table.add_column(name, no_wrap=True)
    for name in names:
        measure = facts["measures"][name]
        for tail in _tails(measure):
            words = f" p{tail * 100:g}" if measure["unit"] == "ns" else f", {measure['unit']}"
            table.add_column(measure["label"] + words, justify="right")
    for word in COUNTS.values():
        table.add_column(word, justify="right", no_wrap=True)
    places = [facts["axes"][axis]["values"] for axis in ("job", "target")]
    order = sorted(cells, key=lambda pair: tuple(map(list.index, places, pair)))
    before = None
    for job, target in order:
        if before not in (None, job):
            table.add_section()
        row = [job if job != before else "", target]
        for name in names:
            row += _texts(cells[job, target].get(name), facts["measures"][name])
        visits = [one for one in counts[family["name"], job, target] if one]
        row += [number(statistics.median(one[name] for one in visits)) if visits else "" for name in COUNTS]
        table.add_row(*row)
        before = job
    # As wide as the numbers are: what is cut is of no use.
    console = Console(highlight=False)
    console = Console(highlight=False, width=max(console.width, 180))
    console.print(table)


def _tails(measure: dict) -> tuple[float, ...]:
    return TAILS if measure["unit"] == "ns" and not measure["label"].startswith("longest") else (0.5,)


def _texts(values: list[float] | None, measure: dict) -> list[str]:
    tails = _tails(measure)
    if not values:
        return [""] * len(tails)
    size = 1000 if measure["unit"] == "ns" else 1
    return [number(_percentile(sorted(values), tail) / size) for tail in tails]


def _percentile(values: list[float], part: float) -> float:
    """With linear interpolation, as the report has it: of three samples p99 is nearly the largest."""
    place = part * (len(values) - 1)
    low = int(place)
    return values[low] + (values[min(low + 1, len(values) - 1)] - values[low]) * (place - low)
