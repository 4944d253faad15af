# SPDX-License-Identifier: MIT
"""The figures of a run: curves (lab.curves), bars and phases; each as PNG and as SVG.

A figure of bars has at most ``ROWS`` of them.
"""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from lab import looks, units
from lab.cells import View
from lab.curves import cdf, lines, pages
from lab.reading import NUMBER
from lab.sheet import LETTER, TICK, Sheet, headings, linear_axis, place_text, value_axis, value_label

ROWS = 44
BAR = 0.36  # inches
APART = 60  # times the smallest: bars of so different length can't be seen on one scale


@dataclass
class Figure:
    """One drawn figure: the files' stem in plots/, its family, how it is drawn, and its SVG."""

    stem: str
    family: str
    draw: str
    svg: str


def rows_of(view: View, panel: tuple, xs: list) -> list:
    """What stands beside bars, from the top: ("head", text) and ("bar", line, x)."""
    made = []
    for x in xs:
        if x is not None:
            made.append(("head", view.x_said(x), None))
        made += [("bar", line, x) for line in view.lines if (panel, line, x) in view.points]
    return made


def by_rows(panels: list) -> list:
    """Panels of bars in pages: as many as have ROWS rows, beside each other two by two."""
    made, rows = [[]], 0
    for panel in panels:
        if made[-1] and rows + len(panel[1]) > ROWS:
            made.append([])
            rows = 0
        made[-1].append(panel)
        rows += len(panel[1])
    return made


def bar_sheet(view: View, draw: str, panels: list, heads: list, legend: list):
    """A sheet for horizontal bars, with names and headings, and the width of its panels."""
    letters = max(len(view.line_text(line)) for line in view.lines)
    left = min(3.6, max(1.0, letters * LETTER * TICK + 0.35))
    across = 1 if len(panels) == 1 else 2
    wide = 6.4 if across == 1 else 4.3
    heads, high = headings(heads, wide)
    sheet = Sheet(view, draw, [(wide, BAR * len(rows) + 0.12) for _, rows in panels], across,
                  (left, left + 0.35), legend, high)  # fmt: skip
    for axis, (_, rows), head in zip(sheet.axes, panels, heads, strict=True):
        axis.set_title(head, loc="left")
        axis.set_ylim(len(rows) - 0.36, -0.64)
        bars = [at for at, row in enumerate(rows) if row[0] == "bar"]
        axis.set_yticks(bars, ["\n".join(textwrap.wrap(view.line_text(rows[at][1]), 42)[:2]) for at in bars])
        axis.tick_params(axis="y", length=0)
        axis.grid(False, axis="y")
        for at, row in enumerate(rows):
            if row[0] == "head":
                axis.text(0, at + 0.12, row[1], transform=axis.get_yaxis_transform(), size=TICK,
                          weight="bold", va="center", ha="left")  # fmt: skip
    return sheet, wide


def bars(view: View, others: dict):
    """Medians as bars with quartiles as whiskers and the number beside."""
    styles = looks.styles(view.lines, others)
    apart = view.family.x is not None and view.run.axes[view.family.x]["kind"] == NUMBER
    panels = []
    for panel in view.panels:
        if apart:  # by the size of what is done, values lie far apart: each gets a scale of its own
            groups = [(x, rows_of(view, panel, [x])[1:]) for x in view.xs_of(panel)]
        else:
            groups = [(None, rows_of(view, panel, view.xs_of(panel)))]
        panels += [((panel, x), part) for x, rows in groups for part in pages(rows, 30)]
    for page in by_rows(panels):
        sheet, wide = bar_sheet(view, "bars", page, [place_text(view, *place) for place, _ in page], [])
        tinted = by_place(view, others)
        for at, (axis, ((panel, _), rows)) in enumerate(zip(sheet.axes, page, strict=True)):
            found = [(place, tinted.get(row[2]) or styles[row[1]]["color"],
                      view.points[panel, row[1], row[2]].numbers)
                     for place, row in enumerate(rows) if row[0] == "bar"]  # fmt: skip
            _bars(view, axis, found, wide)
            if at >= sheet.lowest:
                axis.set_xlabel(value_label(view))
        yield sheet


def by_place(view: View, others: dict) -> dict:
    """x -> colour, where what stands at the abscissa is a policy or a target, and the lines are not."""
    if not view.family.x or any(looks.known(line) for line in view.lines):
        return {}
    styles = looks.styles([(x,) for x in view.xs if looks.known((x,))], others)
    return {x: style["color"] for (x,), style in styles.items()}


def _bars(view: View, axis, found: list, wide: float) -> None:
    """(place, colour, numbers) as bars; where they are too far apart, as dots on a logarithmic axis."""
    unit = view.measure["unit"]
    texts = [units.show(one.median, unit if units.carried(unit) else "") for _, _, one in found]
    room = max(map(len, texts)) * 0.0092 * TICK + 0.25
    least, most = min(one.q1 for _, _, one in found), max(one.q3 for _, _, one in found)
    dots = least > 0 and most > APART * least
    if dots:
        start = least / (most / least) ** 0.1
        end = start * (most / start) ** (wide / max(wide - room, 1))
        value_axis(view, axis, "x", start, end, named=False, wide=wide)
        axis.set_xlim(start, end)
    else:
        linear_axis(view, axis, (most or 1.0) * wide / max(wide - room, 1), unit, wide)
    for (place, colour, one), text in zip(found, texts, strict=True):
        if dots:
            axis.plot([start, one.median], [place, place], color=colour, linewidth=1.2, linestyle=(0, (1, 2)))
            axis.plot([one.median], [place], color=colour, marker="o", markersize=9, linestyle="none")
        else:
            axis.barh(place, one.median, height=0.72, color=colour)
        spread = [[one.median - one.q1], [one.q3 - one.median]]
        axis.errorbar(one.median, place, xerr=spread, fmt="none", color=looks.INK, capsize=3, linewidth=1.3)
        axis.annotate(text, (one.q3, place), xytext=(7, 0), textcoords="offset points", va="center",
                      size=TICK)  # fmt: skip


def phases(view: View, others: dict):
    """Means of the daemon's phases, stacked; the caller's median and mean as lines: the rest is outside."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    names = view.phases()
    colours = looks.phase_colours(names)
    legend = [(Patch(color=colours[name]), name) for name in names]
    if view.measure["unit"] == "ns":
        label = view.measure["label"]
        legend += [(Line2D([], [], color=looks.CALLER, linewidth=width), f"{label}: caller's {name}")
                   for width, name in ((2.8, "median"), (1.0, "mean"))]  # fmt: skip
    panels = []
    for panel in view.panels:
        for x in view.chosen(panel) if view.family.x else [None]:
            rows = [("bar", line, x) for line in view.lines
                    if (panel, line, x) in view.points and view.points[panel, line, x].cell.phases]
            panels += [((panel, x), part) for part in alike(view, panel, rows)]
    for page in by_rows(panels):
        heads = [place_text(view, *place) for place, _ in page]
        sheet, wide = bar_sheet(view, "phases", page, heads, legend)
        for at, (axis, ((panel, _), rows)) in enumerate(zip(sheet.axes, page, strict=True)):
            _stacks(view, axis, panel, rows, names, colours, wide)
            if at >= sheet.lowest:
                axis.set_xlabel("time of one call")
        yield sheet


def alike(view: View, panel, rows: list) -> list:
    """The rows in groups that can be seen side by side: the longest at most 12 times the shortest."""
    def length(row) -> float:
        point = view.points[panel, row[1], row[2]]
        caller = max(point.numbers.median, point.numbers.mean) if view.measure["unit"] == "ns" else 0
        return max(sum(point.cell.phases.values()), caller)

    groups: list[list] = []
    for row in sorted(rows, key=length):
        if groups and length(groups[-1][0]) * 12 >= length(row) and len(groups[-1]) < 16:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [sorted(group, key=rows.index) for group in groups]


def _stacks(view: View, axis, panel, rows: list, names: list, colours: dict, wide: float) -> None:
    unit = view.measure["unit"]
    most = 0.0
    for place, (_, line, x) in enumerate(rows):
        point, start = view.points[panel, line, x], 0.0
        for name in names:
            length = max(point.cell.phases.get(name, 0.0), 0.0)
            axis.barh(place, length, left=start, height=0.66, color=colours[name])
            start += length
        end, text = start, units.show(start, "ns")
        if unit == "ns":
            for at, width in ((point.numbers.median, 2.8), (point.numbers.mean, 1.0)):
                axis.plot([at, at], [place - 0.43, place + 0.43], color=looks.CALLER, linewidth=width,
                          solid_capstyle="butt")  # fmt: skip
                end = max(end, at)
            text += f" of {units.show(point.numbers.mean, 'ns')}"
        axis.annotate(text, (end, place), xytext=(6, 0), textcoords="offset points", va="center",
                      size=TICK - 0.5)  # fmt: skip
        most = max(most, end)
    room = 20 * LETTER * TICK
    linear_axis(view, axis, (most or 1.0) * wide / (wide - room), "ns", wide)


KINDS = {"lines": lines, "cdf": cdf, "bars": bars, "phases": phases}


def possible(view: View, draw: str) -> str | None:
    """Why a family can't be drawn so; None if it can."""
    if not view.points:
        return "no samples"
    if draw == "lines" and not view.family.x:
        return "no axis for the abscissa"
    if draw == "phases" and not view.phases():
        return "no phases were recorded"
    return None


def stem(*words: str) -> str:
    """A file's name of what run.json names, which may be anything."""
    return "-".join(re.sub(r"[^A-Za-z0-9._+-]+", "_", word).strip("._") or "x" for word in words)


def figures(view: View, name: str, folder: Path, others: dict):
    """Draw all figures of a family into *folder*, yielding each as it is done."""
    for draw in view.family.draw:
        if possible(view, draw):
            continue
        for number, sheet in enumerate(KINDS[draw](view, others), 1):
            made = stem(name, view.family.name, draw) + (f"-{number}" if number > 1 else "")
            yield Figure(made, view.family.name, draw, sheet.save(folder, made))
