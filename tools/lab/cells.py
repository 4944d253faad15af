# SPDX-License-Identifier: MIT
"""A family's cells as figures and tables want them: panels, lines, x, in one order; medians and quartiles.

Panels and lines are told apart by the axes that run.json names. Where cells that differ in yet another axis
would fall on one point, that axis joins the lines, so that nothing is mixed without a word.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

from lab import units
from lab.reading import NUMBER, Cell, Family, Run

# The order of what is known, in legends and tables; the first one there is what ratios are to.
KNOWN = ("pte", "pmd", "line", "extent", "extent+clear", "none", "daxfs", "uring", "dev", "pyfuse3",
         "ext4", "xfs", "tmpfs")  # fmt: skip
COVERED = 1.1  # times: so near to each other two lines are one on a scale of decades
P99_FROM = 100  # samples, so that a hundredth is more than the largest one


def order(value) -> tuple:
    """Sorts numbers by value, then known names, then the others with the numbers in them by value."""
    if not isinstance(value, str):
        return (0, value, ())
    known = next((word for word in (value.lower(), *words(value)) if word in KNOWN), None)
    rest = natural(value) if known != value.lower() else ()
    return (2, 0, rest) if known is None else (1, KNOWN.index(known), rest)


def words(value: str) -> list[str]:
    """The words of a longer name: `daxfs uring, write=nt` has daxfs, uring, write and nt."""
    return re.findall(r"[a-z0-9+]+", value.lower())


def natural(value: str) -> tuple:
    """Sorts names with the numbers in them by value."""
    parts = re.split(r"(\d+)", value.lower())
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part)


@dataclass
class Numbers:
    """Of the samples of one cell, in the measure's unit."""

    n: int
    low: float
    q1: float
    median: float
    q3: float
    p99: float
    high: float
    mean: float

    @classmethod
    def of(cls, samples: np.ndarray) -> "Numbers":
        low, q1, median, q3, p99, high = map(float, np.percentile(samples, [0, 25, 50, 75, 99, 100]))
        return cls(samples.size, low, q1, median, q3, p99, high, float(samples.mean()))


@dataclass
class Point:
    """A cell, and the numbers of its family's measure."""

    cell: Cell
    samples: np.ndarray
    numbers: Numbers


class View:
    """A family of a run: ``points[panel, line, x]``, and the keys in order. No samples: no points."""

    def __init__(self, run: Run, family: Family):
        self.run, self.family = run, family
        self.measure = run.measures[family.measure]
        cells = [cell for cell in run.cells[family.name].values() if family.measure in cell.samples]
        self.line_axes = family.line + self._mixed(cells)
        self.points: dict[tuple, Point] = {}
        for cell in cells:
            samples = cell.samples[family.measure]
            self.points[self._key(cell, self.line_axes)] = Point(cell, samples, Numbers.of(samples))
        self.panels = self._sorted({key[0] for key in self.points}, family.panel)
        self.lines = self._sorted({key[1] for key in self.points}, self.line_axes)
        xs = self._sorted({(key[2],) for key in self.points}, (family.x,)) if family.x else [(None,)]
        self.xs = [x for x, in xs]

    def _sorted(self, keys: set, axes: tuple) -> list:
        """Numbers by value; names as run.json has the axis's values, or as ``order`` has them."""
        def place(axis: str, value) -> tuple:
            told = self.run.axes[axis]["values"] if isinstance(value, str) else []
            return (0, told.index(value), ()) if value in told else (1, *order(value))
        return sorted(keys, key=lambda key: tuple(map(place, axes, key)))

    def _key(self, cell: Cell, line_axes: tuple) -> tuple:
        def pick(axes):
            return tuple(cell.where.get(axis, "") for axis in axes)
        return pick(self.family.panel), pick(line_axes), cell.where[self.family.x] if self.family.x else None

    def _mixed(self, cells: list) -> tuple:
        """Axes that the family does not name, but without which cells would fall together."""
        seen: dict[tuple, list] = {}
        for cell in cells:
            seen.setdefault(self._key(cell, self.family.line), []).append(cell.where)
        more = {axis for group in seen.values() for where in group for axis in where
                if len({str(other.get(axis, "")) for other in group}) > 1}
        return tuple(axis for axis in self.run.axes if axis in more)

    def steady(self) -> dict:
        """Axes that have one value in all cells, and are not said by panel, line or x."""
        named = {*self.line_axes, *self.family.panel, self.family.x}
        found: dict[str, set] = {}
        for point in self.points.values():
            for axis, value in point.cell.where.items():
                found.setdefault(axis, set()).add(value)
        return {axis: next(iter(values)) for axis, values in found.items()
                if axis not in named and len(values) == 1}  # fmt: skip

    def rest(self, key: tuple) -> dict:
        """Of a point, what neither panel, line nor x say."""
        named = {*self.line_axes, *self.family.panel, self.family.x}
        return {axis: value for axis, value in self.points[key].cell.where.items() if axis not in named}

    def breaks(self) -> list[str]:
        """Axes in which points of one line differ, so that what is between them was not measured."""
        found: dict[tuple, dict[str, set]] = {}
        for panel, line, x in self.points:
            for axis, value in self.rest((panel, line, x)).items():
                found.setdefault((panel, line), {}).setdefault(axis, set()).add(value)
        more = {axis for one in found.values() for axis, values in one.items() if len(values) > 1}
        return [axis for axis in self.run.axes if axis in more]

    def covered(self) -> list[tuple]:
        """Lines that can't be seen, as another one that is drawn after them is where they are."""
        def near(key: tuple, other: tuple) -> bool:
            low, high = sorted((self.points[key].numbers.median, self.points[other].numbers.median))
            return high <= COVERED * low
        made = []
        for n, line in enumerate(self.lines):
            keys = [key for key in self.points if key[1] == line]
            if any(all((key[0], other, key[2]) in self.points and near(key, (key[0], other, key[2]))
                       for key in keys) for other in self.lines[n + 1:]):
                made.append(line)
        return made

    def values(self, axis: str) -> set:
        """All values of an axis."""
        return {point.cell.where[axis] for point in self.points.values() if axis in point.cell.where}

    # What people read.

    def value_text(self, axis: str, value) -> str:
        if value == "":
            return "\N{EN DASH}"
        return units.show(value, self.run.axes[axis]["unit"] if self.run.axes[axis]["kind"] == NUMBER else "",
                          units.short)

    def line_text(self, line: tuple) -> str:
        """Names and what has a unit by themselves, other numbers with their axes; no value, no word."""
        said = [self.value_text(axis, value) if isinstance(value, str) or self.run.axes[axis]["unit"]
                else self.said(axis, value)
                for axis, value in zip(self.line_axes, line, strict=True) if value != ""]  # fmt: skip
        return ", ".join(said) or self.measure["label"]

    def line_title(self) -> str:
        return ", ".join(self.run.axes[axis]["label"] for axis in self.line_axes)

    def panel_text(self, panel: tuple) -> str:
        return ", ".join(self.said(axis, value) for axis, value in zip(self.family.panel, panel, strict=True))

    def said(self, axis: str, value) -> str:
        label = self.run.axes[axis]["label"]
        return f"{label}{'' if label.endswith('=') else ': '}{self.value_text(axis, value)}"

    def x_text(self, x) -> str:
        return "" if x is None else self.value_text(self.family.x, x)

    def x_said(self, x) -> str:
        return "" if x is None else self.said(self.family.x, x)

    def show(self, value: float) -> str:
        return units.show(value, self.measure["unit"])

    # What tables and figures take.

    def xs_of(self, panel: tuple) -> list:
        """Those of a panel; of a family without abscissa the one place there is."""
        return [x for x in self.xs if any((panel, line, x) in self.points for line in self.lines)]

    def chosen(self, panel: tuple) -> list:
        """The smallest, the middle and the largest x of a panel; of names all of them."""
        xs = self.xs_of(panel)
        if len(xs) <= 3 or self.run.axes[self.family.x]["kind"] != NUMBER:
            return xs
        return [xs[0], xs[len(xs) // 2], xs[-1]]

    def first(self, panel: tuple) -> tuple | None:
        """The line of a panel that ratios are to."""
        return next((line for line in self.lines if any((panel, line, x) in self.points for x in self.xs)),
                    None)  # fmt: skip

    def ratio(self, panel: tuple, line: tuple, x) -> float:
        """Median over the first line's at the same place; nan where that one is missing."""
        base, point = self.points.get((panel, self.first(panel), x)), self.points[panel, line, x]
        return point.numbers.median / base.numbers.median if base and base.numbers.median else math.nan

    def phases(self) -> list[str]:
        """Names of phases that any cell has, in the daemon's order."""
        return _in_order(point.cell.phases for point in self.points.values())

    def counts(self) -> list[str]:
        return _in_order(point.cell.counts for point in self.points.values())


def _in_order(tables) -> list[str]:
    """Names in the order of their first appearance, whichever cell has them."""
    return list(dict.fromkeys(name for table in tables for name in table))


def views(run: Run) -> list[View]:
    return [View(run, family) for family in run.families]


def summary(run: Run) -> dict:
    """What --json prints of a run: every number of every cell and measure."""
    made = {"dir": str(run.path), "experiment": run.experiment, "title": run.facts.get("title", ""),
            "host": run.host, "options": run.options, "seed": run.facts.get("seed"),
            "emulate": run.facts.get("emulate"), "complete": run.facts.get("ended") is not None,
            "torn": run.torn, "families": []}  # fmt: skip
    for view in views(run):
        ratios = {id(point.cell): view.ratio(*key) for key, point in view.points.items()}
        cells = [_cell_summary(cell, ratios) for cell in run.cells[view.family.name].values() if cell.samples]
        skipped = [{"cell": where, "reason": reason} for (name, reason), found in run.skipped.items()
                   if name == view.family.name for where in found.values()]  # fmt: skip
        first = {view.panel_text(panel): view.line_text(view.first(panel)) for panel in view.panels}
        made["families"].append({"name": view.family.name, "measure": view.family.measure,
                                 "ratio_to": first, "cells": cells, "skipped": skipped})
    return made


def _cell_summary(cell: Cell, ratios: dict) -> dict:
    measures = {}
    for name, samples in cell.samples.items():
        numbers = Numbers.of(samples)
        measures[name] = {"n": numbers.n, "min": numbers.low, "q1": numbers.q1, "median": numbers.median,
                          "q3": numbers.q3, "p99": numbers.p99, "max": numbers.high, "mean": numbers.mean}
    ratio = ratios.get(id(cell), math.nan)
    return {"cell": cell.where, "measures": measures, "ratio": None if math.isnan(ratio) else ratio,
            "counts": cell.counts, "phases": cell.phases, "visits": cell.visits}  # fmt: skip
