# SPDX-License-Identifier: MIT
"""Two runs of one experiment, cell by cell: the ratio of the medians, of two commits or two hosts.

A cell counts as different only where the quartiles do not overlap. Says nothing of why: two hosts differ in
more than the numbers here show. Cells that one of the runs lacks are left out, and counted.
"""

import math
from html import escape

from lab import units
from lab.cells import Point, View, views
from lab.reading import Run, RunError
from lab.sheet import place_text


class Pair:
    """A family in both runs: ``ratios[panel, line, x]``, of AFTER's median over BEFORE's."""

    def __init__(self, before: View, after: View):
        self.before, self.after = before, after
        same = (before.measure["unit"] == after.measure["unit"] and before.line_axes == after.line_axes
                and before.family.panel == after.family.panel and before.family.x == after.family.x)
        self.keys = [key for key in before.points if key in after.points
                     and before.points[key].numbers.median] if same else []  # fmt: skip
        self.left_out = len(set(before.points) | set(after.points)) - len(self.keys)
        self.ratios = {key: after.points[key].numbers.median / before.points[key].numbers.median
                       for key in self.keys}  # fmt: skip

    def apart(self, key: tuple) -> bool:
        """Whether the quartiles of a cell do not overlap."""
        a, b = self.before.points[key].numbers, self.after.points[key].numbers
        return a.q3 < b.q1 or b.q3 < a.q1

    def mean(self) -> float:
        """The geometric mean of all ratios; nan where no cell is in both."""
        logs = [math.log(ratio) for ratio in self.ratios.values() if ratio > 0]
        return math.exp(sum(logs) / len(logs)) if logs else math.nan


def pairs(before: Run, after: Run) -> list[Pair]:
    """The families that both runs have. RunError where they are of two experiments."""
    if before.experiment != after.experiment:
        raise RunError(f"--compare: {before.path} is of {before.experiment}, "
                       f"{after.path} of {after.experiment}")
    others = {view.family.name: view for view in views(after)}
    return [Pair(view, others[view.family.name]) for view in views(before) if view.family.name in others]


def summary(before: Run, after: Run) -> list[dict]:
    """For --json."""
    return [{"family": pair.before.family.name, "mean": None if math.isnan(pair.mean()) else pair.mean(),
             "left_out": pair.left_out,
             "cells": [{"cell": pair.before.points[key].cell.where, "ratio": pair.ratios[key],
                        "apart": pair.apart(key)} for key in pair.keys]}
            for pair in pairs(before, after)]  # fmt: skip


def html(before: Run, after: Run) -> str:
    """The section of the report."""
    names = [f"{run.path.name} ({run.host.get('cpu', '?')}, commit {run.host.get('commit', '?')})"
             for run in (before, after)]  # fmt: skip
    made = [f'<h2 id="comparison">{escape(names[1])} over {escape(names[0])}</h2>',
            "<p>The second run's medians over the first's. Bold where the quartiles of the two do not "
            "overlap, faint where they do, so that the difference may be chance.</p>"]  # fmt: skip
    for pair in pairs(before, after):
        made.append(f"<h4>{escape(pair.before.family.title)}</h4>")
        if not pair.keys:
            made.append('<p class="soft">No cell is in both runs.</p>')
            continue
        apart = [pair.ratios[key] for key in pair.keys if pair.apart(key)]
        left = f" {pair.left_out} cells are in one of the runs alone." if pair.left_out else ""
        above, below = (sum(ratio > 1 for ratio in apart), sum(ratio < 1 for ratio in apart))
        made.append(f"<p>Geometric mean of {len(pair.keys)} ratios: {units.digits(pair.mean())}. "
                    f"Clearly above 1: {above}; clearly below: {below}.{left}</p>")
        made += [_table(pair, panel) for panel in pair.before.panels
                 if any(key[0] == panel for key in pair.keys)]  # fmt: skip
    return "\n".join(made)


def _table(pair: Pair, panel: tuple) -> str:
    view = pair.before
    lines = [line for line in view.lines if any(key[:2] == (panel, line) for key in pair.keys)]
    head = "".join(f"<th>{escape(view.line_text(line))}</th>" for line in lines)
    rows = []
    for x in view.xs:
        found = [_cell(pair, (panel, line, x)) for line in lines]
        if any(found):
            first = f'<td class="name">{escape(view.x_text(x) or view.measure["label"])}</td>'
            rows.append(f"<tr>{first}{''.join(f'<td>{text}</td>' for text in found)}</tr>")
    label = view.run.axes[view.family.x]["label"].rstrip("=") if view.family.x else ""
    caption = escape(place_text(view, panel, None))
    return (f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>'
            f"<th>{escape(label)}</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>")


def _cell(pair: Pair, key: tuple) -> str:
    if key not in pair.ratios:
        return ""
    ratio = units.digits(pair.ratios[key])
    points: list[Point] = [pair.before.points[key], pair.after.points[key]]
    medians = " \N{RIGHTWARDS ARROW} ".join(pair.before.show(point.numbers.median) for point in points)
    shown = f"<b>{ratio}</b>" if pair.apart(key) else f'<i class="faint">{ratio}</i>'
    return f"{shown}<span>{medians}</span>"
