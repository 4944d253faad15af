# SPDX-License-Identifier: MIT
"""Medians and quartiles of a run as tables in the terminal: what an experiment prints at its end.

Limits: knows run.json and samples.jsonl alone.
"""

import json
import statistics
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.words import medium, show

WIDTH = 100          # characters; more columns than fit make another table below
SCALES = (("s", 1e9), ("ms", 1e6), ("µs", 1e3), ("ns", 1.0))


def gathered(directory: Path) -> tuple[dict, dict[str, dict[str, int]]]:
    """Samples of all rounds by (family, cell, measure); numbers of skipped cells by family and reason."""
    found: dict[tuple, list[float]] = {}
    skipped: dict[str, dict[str, int]] = {}
    with open(directory / "samples.jsonl") as file:
        for row in map(json.loads, file):
            if "skipped" in row:
                reasons = skipped.setdefault(row["family"], {})
                reasons[row["skipped"]] = reasons.get(row["skipped"], 0) + 1
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


def common_unit(medians: list[float], unit: str) -> tuple[str, float]:
    """For a table: the unit that all are shown in, and by what to divide. Times: that of the smallest."""
    if unit != "ns":
        return unit, 1.0
    smallest = min(medians)
    return next((name, size) for name, size in SCALES if smallest >= size or size == 1.0)


def number(value: float) -> str:
    """At least three digits; without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


class Cells:
    """The cells of one family as they stand in its tables: rows are panel and x, columns are lines."""

    def __init__(self, axes: dict, family: dict, cells: dict[tuple, list[float]]):
        self.rows: dict[tuple, dict[str, list[float]]] = {}
        self.columns: list[str] = []
        across = [*family["panel"], *([family["x"]] if family["x"] else [])]
        for key in sorted(cells, key=lambda key: _place(dict(key), axes, [*across, *family["line"]])):
            cell = dict(key)
            row = tuple(show(name, cell[name]) if name in cell else "" for name in across)
            column = " ".join(show(name, cell[name]) for name in family["line"] if name in cell)
            self.rows.setdefault(row, {})[column] = cells[key]
            self.columns += [column] if column not in self.columns else []
        self.names = across


def _place(cell: dict, axes: dict, names: list[str]) -> list:
    """For sorting: by each of *names*, numbers by size, names in the order of the plan."""
    return [cell.get(name, 0) if axes[name]["kind"] == "number" else axes[name]["values"].index(cell[name])
            if name in cell else -1 for name in names]


def tables(facts: dict, found: dict) -> list[Table | Text]:
    """Of each family title and tables: median, and below it the quartiles, all in one unit."""
    made = []
    for family in facts["families"]:
        cells = {key[1]: samples for key, samples in found.items()
                 if key[0] == family["name"] and key[2] == family["measure"] and samples}
        if cells:
            made += _of_family(facts, family, cells)
    return made


def _of_family(facts: dict, family: dict, cells: dict) -> list[Table | Text]:
    laid = Cells(facts["axes"], family, cells)
    three = {id(samples): quartiles(samples) for samples in cells.values()}
    measure = facts["measures"][family["measure"]]
    unit, size = common_unit([middle for _, middle, _ in three.values()], measure["unit"])
    texts = {row: {name: _text(three[id(samples)], size) for name, samples in there.items()}
             for row, there in laid.rows.items()}
    heads = [facts["axes"][name]["label"] for name in laid.names]
    used = sum(2 + max(len(head), *(len(row[n]) for row in texts)) for n, head in enumerate(heads))
    made = []
    for part in _parts(laid.columns, texts, WIDTH - used):
        table = Table(box=box.SIMPLE_HEAD)
        for head in heads:
            table.add_column(head, no_wrap=True)
        for column in part:
            table.add_column(column, justify="right", no_wrap=True)
        before: tuple = ()
        for row, there in texts.items():
            # What is the same as above is not said again; a line where the panel changes.
            panel = row[: len(family["panel"])]
            if before and panel != before:
                table.add_section()
            shown = [*(["" for _ in panel] if panel == before else panel), *row[len(panel):]]
            table.add_row(*shown, *[there.get(column, "-") for column in part])
            before = panel
        made.append(table)
    lines = " ".join(facts["axes"][name]["label"] for name in family["line"])
    what = f"{measure['label']}, {unit or 'count'}: median, quartiles"
    what += f"; columns: {lines}" if lines else ""
    return [Text(family["title"], "bold"), Text(what), *made]


def _text(three: tuple[float, float, float], size: float) -> str:
    low, middle, high = (number(value / size) for value in three)
    return f"{middle}\n[dim]{low} - {high}[/]"


def _parts(columns: list[str], texts: dict, room: int) -> list[list[str]]:
    """*columns* in groups of which each fits in *room* characters."""
    parts: list[list[str]] = [[]]
    left = room
    for column in columns:
        shown = [there[column] for there in texts.values() if column in there]
        width = 3 + max(len(column), *(len(text.split("[dim]")[1]) - len("[/]") for text in shown))
        if width > left and parts[-1]:
            parts.append([])
            left = room
        parts[-1].append(column)
        left -= width
    return parts


def _emulated(facts: dict, found: dict) -> list[tuple[str, set[str]]]:
    """Which media were emulated in all of the run, and which in some cells of a family."""
    media = {"all": {facts.get("emulate") or "none"}}
    for family, cell, _ in found:
        media.setdefault(f"{family}, some cells", set()).add(medium(dict(cell)))
    return [(where, some - {"none"}) for where, some in media.items() if some - {"none"}]


def show_run(directory: Path) -> bool:
    """Print the tables of the run in *directory*, and what was skipped. False: it has no samples."""
    facts = json.loads((directory / "run.json").read_text())
    found, skipped = gathered(directory)
    console = Console(highlight=False)
    # Into a file or a narrow terminal as wide as is needed: numbers that are cut are of no use.
    console = Console(highlight=False, width=max(WIDTH, console.width)) if console.width < WIDTH else console
    for table in tables(facts, found):
        console.print(table)
    for family, reasons in skipped.items():
        for reason, count in sorted(reasons.items()):
            cells = "1 cell" if count == 1 else f"{count} cells"
            console.print(f"skipped, {family}, {cells}: {reason}", markup=False, soft_wrap=True)
    if found:
        console.print("regions were files on tmpfs: emulated, not power-fail safe", markup=False)
    for where, media in _emulated(facts, found):
        console.print(f"{where}: emulate={', '.join(sorted(media))}, times of a model (docs/emulation.md)",
                      markup=False, soft_wrap=True)
    if facts.get("options", {}).get("quick"):
        console.print("--quick: few cells and samples, to have a look; no evidence", markup=False)
    return bool(found)
