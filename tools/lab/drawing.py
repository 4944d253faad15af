# SPDX-License-Identifier: MIT
"""The figures of a run: lines, distributions, bars, phases; each as PNG and SVG, the same bytes each time.

Everything is placed in inches, by the number and the length of what is shown, so that nothing covers data
and no layout has to be tried. matplotlib is imported by the first figure. A figure has at most ``PANELS``
panels and a panel at most ``LINES`` lines; what is more goes to further panels and figures.
"""

import io
import itertools
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lab import looks, units
from lab.cells import View
from lab.reading import NUMBER, Run, RunError

PANELS, LINES, ACROSS = 9, 8, 3
LETTER = 0.0078  # inches that a letter takes, for each point of size: DejaVu Sans on the average
TITLE_STEP, WARN_STEP, PRINT_STEP, HEAD_STEP, LEGEND_STEP = 0.3, 0.24, 0.19, 0.25, 0.29  # inches a line
WIDE = {1: 7.4, 2: 4.7}  # inches of a panel, by panels side by side
NARROW = 3.55
KINDS_TEXT = {"cdf": ": how the samples are distributed", "phases": ": where the time goes"}
TITLE, HEAD, LABEL, TICK, SMALL = 16, 13, 12.5, 12, 10
DPI = 120
CDF_POINTS = 300
SETTINGS = {
    "font.family": "DejaVu Sans", "font.size": TICK, "text.parse_math": False, "svg.fonttype": "none",
    "svg.hashsalt": "daxfs", "text.color": looks.INK, "axes.labelcolor": looks.INK,
    "axes.edgecolor": looks.MUTED, "axes.titlecolor": looks.INK, "xtick.color": looks.INK,
    "ytick.color": looks.INK, "axes.titlesize": HEAD, "axes.labelsize": LABEL, "xtick.labelsize": TICK,
    "ytick.labelsize": TICK, "figure.facecolor": looks.PAPER, "axes.facecolor": looks.PAPER,
    "savefig.facecolor": looks.PAPER, "legend.frameon": False,
    "axes.grid": True, "grid.color": looks.GRID, "grid.linewidth": 0.8, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.unicode_minus": True, "lines.linewidth": 1.9,
    "lines.markersize": 6,
}  # fmt: skip


@dataclass
class Figure:
    """One drawn figure: the files' stem in plots/, its family, how it is drawn, and its SVG."""

    stem: str
    family: str
    draw: str
    svg: str


def pyplot():
    """matplotlib.pyplot for files alone; RunError where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise RunError("matplotlib is missing: pip install 'matplotlib>=3.9'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    matplotlib.rcParams.update(SETTINGS)
    return plt


class Sheet:
    """A figure with its title, grid of panels, legend and small print, placed in inches."""

    def __init__(self, view: View, draw: str, sizes: list, across: int, margins: tuple, legend: list,
                 heads: int = 1):  # fmt: skip
        """*sizes*: (width, height) of each panel, row by row; *margins*: left of the first, between panels.

        *legend*: (handle, text); *heads*: lines of the longest heading of a panel.
        """
        self.plt = pyplot()
        left, gap = margins
        rows = [sizes[at:at + across] for at in range(0, len(sizes), across)]
        self.width = max(left + sum(w for w, _ in row) + gap * (len(row) - 1) + 0.3 for row in rows)
        self.width = max(self.width, 7.2)
        title = wrapped(view.family.title + KINDS_TEXT.get(draw, ""), self.width - 0.3, TITLE * 1.1)
        warn = wrapped(warning(view.run), self.width - 0.3, LABEL)
        print_ = wrapped(small_print(view, draw), self.width - 0.3, SMALL)
        columns, legend_rows = self._columns([text for _, text in legend])
        top = 0.3 + TITLE_STEP * len(title) + WARN_STEP * len(warn) + HEAD_STEP * heads
        between = 0.55 + HEAD_STEP * heads
        words = 0.15 + PRINT_STEP * len(print_)
        below = 0.78 + (LEGEND_STEP * legend_rows + 0.05 if legend else 0) + words
        self.height = top + sum(max(h for _, h in row) for row in rows) + between * (len(rows) - 1) + below
        self.figure = self.plt.figure(figsize=(self.width, self.height))
        self._words(title, warn, print_)
        if legend:
            self.figure.legend([handle for handle, _ in legend], [text for _, text in legend], ncols=columns,
                               loc="lower left", bbox_to_anchor=(0.1 / self.width, words / self.height),
                               borderaxespad=0, borderpad=0, fontsize=TICK, handlelength=2.9,
                               columnspacing=1.6)  # fmt: skip
        self.axes = []
        self.lowest = len(sizes) - across  # from this panel on, none is below
        y = self.height - top
        for row in rows:
            high, x = max(h for _, h in row), left
            for wide, tall in row:
                self.axes.append(self.figure.add_axes((x / self.width, (y - tall) / self.height,
                                                       wide / self.width, tall / self.height)))  # fmt: skip
                x += wide + gap
            y -= high + between

    def _columns(self, texts: list) -> tuple[int, int]:
        """Columns and rows of a legend, as flat as the width lets it be; it is filled column by column."""
        for rows in range(1, len(texts) + 1):
            columns = -(-len(texts) // rows)
            widest = [max(map(len, texts[at:at + rows])) for at in range(0, len(texts), rows)]
            if sum(letters * LETTER * TICK + 0.85 for letters in widest) <= self.width:
                return columns, rows
        return 1, len(texts)

    def _words(self, title: list, warn: list, print_: list) -> None:
        y = self.height - 0.12
        for lines, size, colour, step, weight in ((title, TITLE, looks.INK, TITLE_STEP, "bold"),
                                                  (warn, LABEL, looks.WARN, WARN_STEP, "normal")):
            for line in lines:
                self.figure.text(0.12 / self.width, y / self.height, line, size=size, color=colour, va="top",
                                 weight=weight)  # fmt: skip
                y -= step
        for at, line in enumerate(reversed(print_)):
            self.figure.text(0.12 / self.width, (0.08 + PRINT_STEP * at) / self.height, line, size=SMALL,
                             color=looks.MUTED, va="bottom")  # fmt: skip

    def save(self, folder: Path, stem: str) -> str:
        """Both files; the text of the SVG."""
        folder.mkdir(parents=True, exist_ok=True)
        svg = folder / f"{stem}.svg"
        made = io.StringIO()
        self.figure.savefig(made, format="svg", metadata={"Date": None, "Creator": None})
        # Text stays text, so a viewer without this font needs to know what kind it is.
        text = made.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
        svg.write_text(text, "utf-8")
        self.figure.savefig(folder / f"{stem}.png", dpi=DPI, metadata={"Software": None})
        self.plt.close(self.figure)
        return text


def warning(run: Run) -> str:
    """What must not be overlooked where a figure is shown without its report."""
    found = []
    if (run.facts.get("emulate") or "none") != "none":
        found.append(f"emulate={run.facts['emulate']}: the medium's times are a model's")
    if run.options.get("quick"):
        found.append("a quick run: no evidence")
    if run.facts.get("ended") is None:
        found.append("the run was not finished")
    return "; ".join(found)


def small_print(view: View, draw: str) -> str:
    """How many samples, and the host."""
    run, host = view.run, view.run.host
    numbers = [point.numbers.n for point in view.points.values()]
    count = f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
    what = {"lines": "medians with quartiles", "bars": "medians, whiskers are quartiles",
            "cdf": "each sample counts", "phases": "means in the daemon, medians of the caller"}[draw]
    facts = [f"{what}, n = {count} each"]
    facts += [view.said(axis, value) for axis, value in view.steady().items()]
    for name, text in (("cpu", "{}"), ("cpus", "{} CPUs"), ("kernel", "Linux {}"), ("commit", "commit {}"),
                       ("flush", "flush={}")):  # fmt: skip
        if host.get(name) not in (None, ""):
            facts.append(text.format(host[name]))
    if run.facts.get("started"):
        facts.append(str(run.facts["started"])[:10])
    return " · ".join(facts)


def wrapped(text: str, width: float, size: float) -> list[str]:
    """Lines of *text* that fit into *width* inches, letters of *size* points on the average."""
    return textwrap.wrap(text, max(8, int(width / (size * LETTER))))


def grid(count: int, most: int = ACROSS) -> int:
    """Panels side by side."""
    return min(count, most) if count != 4 else 2


def legend_of(view: View, lines: list, styles: dict, marks: bool = True) -> list:
    """(handle, text) of each line, where there is anything to tell apart."""
    from matplotlib.lines import Line2D
    if not view.line_axes:
        return []
    title = view.line_title()
    prefix = title if len(view.line_axes) == 1 and title.endswith("=") else ""
    return [(Line2D([], [], **(styles[line] if marks else styles[line] | {"marker": ""})),
             prefix + view.line_text(line)) for line in lines]  # fmt: skip


def split(view: View, places: list) -> list:
    """(place, lines, part) with at most LINES lines each; *places* are (panel, x) or (panel, None)."""
    made = []
    for place in places:
        panel = place[0]
        lines = [line for line in view.lines if any((panel, line, x) in view.points for x in view.xs)]
        parts = -(-len(lines) // LINES)
        made += [(place, lines[at * LINES:(at + 1) * LINES], f" ({at + 1} of {parts})" if parts > 1 else "")
                 for at in range(parts)]  # fmt: skip
    return made


def pages(panels: list, most: int = PANELS) -> list:
    return [panels[at:at + most] for at in range(0, len(panels), most)]


def headings(texts: list, width: float) -> tuple[list, int]:
    """The headings of panels, in at most three lines, and the lines of the longest one."""
    made = [wrapped(text, width + 0.55, HEAD)[:3] for text in texts]
    return ["\n".join(lines) for lines in made], max(map(len, made))


def place_text(view: View, panel: tuple, x) -> str:
    """Where a panel is, with breaks between its parts alone."""
    said = [view.said(axis, value) for axis, value in zip(view.family.panel, panel, strict=True)]
    said += [view.x_said(x)] if x is not None else []
    return ", ".join(text.replace(" ", "\N{NO-BREAK SPACE}") for text in said)


def value_label(view: View) -> str:
    unit, label = view.measure["unit"], view.measure["label"]
    better = {"lower": " (lower is better)", "higher": " (higher is better)"}.get(view.measure["better"], "")
    return label + ("" if units.carried(unit) or not unit else f", {unit}") + better


def value_axis(view: View, axis, which: str, low: float, high: float, named: bool = True) -> None:
    """The measure on the x or y axis: logarithmic with its own ticks, linear where a value is not above 0."""
    unit = view.measure["unit"]
    if low > 0:
        pad = max((high / low) ** 0.06, 1.08)
        low, high = low / pad, high * pad
        getattr(axis, f"set_{which}scale")("log")
        getattr(axis, f"set_{which}lim")(low, high)
        set_ticks(axis, which, units.log_ticks(low, high), unit)
    if named:
        getattr(axis, f"set_{which}label")(value_label(view))


def set_ticks(axis, which: str, ticks: list, unit: str, places: list | None = None) -> None:
    """Ticks with texts of the laboratory's, and none between."""
    line = getattr(axis, f"{which}axis")
    line.set_ticks(ticks if places is None else places,
                   ["0" if tick == 0 else units.show(tick, unit, units.short) for tick in ticks])  # fmt: skip
    line.set_minor_locator(pyplot().NullLocator())


class Abscissa:
    """Where each x stands: numbers by their logarithm, 0 a step to the left of the smallest; names evenly."""

    def __init__(self, view: View):
        self.view, axis = view, view.run.axes[view.family.x]
        self.unit, self.number = axis["unit"], axis["kind"] == NUMBER
        whole = all(float(x).is_integer() for x in view.xs if self.number)
        self.base = 2 if self.unit == "B" or whole else 10
        self.above = [x for x in view.xs if self.number and x > 0]
        self.linear = self.number and (not self.above or min(view.xs) < 0)
        self.zero = self._log(min(self.above)) - self._step() if self.above else 0.0

    def _log(self, x: float) -> float:
        return float(np.log2(x))

    def _step(self) -> float:
        span = self._log(max(self.above)) - self._log(min(self.above))
        return max(1.0, span / 8)

    def at(self, x) -> float:
        if not self.number:
            return float(self.view.xs.index(x))
        if self.linear:
            return float(x)
        return self._log(x) if x > 0 else self.zero

    def ticks(self, axis, width: float, named: bool = True) -> None:
        """The x axis of a panel, with as many ticks as its width takes."""
        xs = self.view.xs
        most = max(2, int(width / 0.72))
        low, high = self.at(xs[0]), self.at(xs[-1])
        pad = max((high - low) * 0.04, 0.3 if not self.number else 0.15)
        axis.set_xlim(low - pad, high + pad)
        if not self.number:
            self._names(axis, width)
        elif not self.linear:
            values = xs if self._fits(xs, width) else self._regular(most)
            set_ticks(axis, "x", values, self.unit, [self.at(x) for x in values])
        if named:
            unit = f", {self.unit}" if self.number and self.unit and not units.carried(self.unit) else ""
            axis.set_xlabel(self.view.run.axes[self.view.family.x]["label"].rstrip("=") + unit)

    def _fits(self, xs: list, width: float) -> bool:
        places = [self.at(x) for x in xs]
        span = (places[-1] - places[0]) or 1.0
        return all((b - a) / span * width > 0.7 for a, b in itertools.pairwise(places))

    def _regular(self, most: int) -> list:
        zero = [0] if self.view.xs[0] == 0 else []
        low, high = min(self.above), max(self.above)
        if self.base == 2:
            return zero + units.binary_ticks(low, high, most - len(zero))
        return zero + units.log_ticks(low, high)[: most]

    def _names(self, axis, width: float) -> None:
        texts = [self.view.x_text(x) for x in self.view.xs]
        letters = max(4, int(width / len(texts) / (TICK * LETTER)))
        axis.set_xticks(range(len(texts)), ["\n".join(textwrap.wrap(text, letters)) for text in texts])


def lines(view: View, others: dict):
    """Median with quartiles against x, a line each."""
    styles = looks.styles(view.lines, others)
    abscissa = Abscissa(view)
    numbers = [point.numbers for point in view.points.values()]
    least, most = min(one.q1 for one in numbers), max(one.q3 for one in numbers)
    for page in pages(split(view, [(panel, None) for panel in view.panels])):
        across = grid(len(page))
        wide = WIDE.get(across, NARROW)
        shown = [line for line in view.lines if any(line in found for _, found, _ in page)]
        heads, high = headings([place_text(view, *place) + part for place, _, part in page], wide)
        size = (wide, wide * 0.74 if across > 1 else 4.4)
        sheet = Sheet(view, "lines", [size] * len(page), across, (1.15, 0.45),
                      legend_of(view, shown, styles), high)  # fmt: skip
        for at, (axis, ((panel, _), found, _)) in enumerate(zip(sheet.axes, page, strict=True)):
            for line in found:
                _line(view, axis, abscissa, panel, line, styles[line])
            axis.set_title(heads[at], loc="left")
            abscissa.ticks(axis, wide, named=at >= sheet.lowest)
            value_axis(view, axis, "y", least, most, named=at % across == 0)
            if at % across and least > 0:
                axis.tick_params(labelleft=False)
        yield sheet


def _line(view: View, axis, abscissa: Abscissa, panel, line, style: dict) -> None:
    found = [(abscissa.at(x), view.points[panel, line, x].numbers) for x in view.xs
             if (panel, line, x) in view.points]  # fmt: skip
    at = [place for place, _ in found]
    q1, median, q3 = (np.array([getattr(one, name) for _, one in found]) for name in ("q1", "median", "q3"))
    if len(found) > 1 and abscissa.number:
        axis.fill_between(at, q1, q3, color=style["color"], alpha=0.17, linewidth=0)
    else:
        axis.errorbar(at, median, [median - q1, q3 - median], color=style["color"], fmt="none", capsize=4)
    axis.plot(at, median, **style, markeredgecolor=looks.PAPER, markeredgewidth=0.7)


def cdf(view: View, others: dict):
    """The share of the samples that are not above a value, for the smallest, the middle and the largest x."""
    styles = looks.styles(view.lines, others)
    if view.family.x:
        places = [(panel, x) for panel in view.panels for x in view.chosen(panel)]
        across = max(len(view.chosen(panel)) for panel in view.panels)
        across = across if 1 <= across <= ACROSS else grid(len(places))
    else:
        places = [(panel, None) for panel in view.panels]
        across = grid(len(places))
    wide = WIDE.get(across, NARROW)
    for page in pages(split(view, places)):
        shown = [line for line in view.lines if any(line in found for _, found, _ in page)]
        heads, high = headings([place_text(view, *place) + part for place, _, part in page], wide)
        size = (wide, wide * 0.66 if across > 1 else 4.4)
        sheet = Sheet(view, "cdf", [size] * len(page), across, (1.05, 0.6),
                      legend_of(view, shown, styles, marks=False), high)  # fmt: skip
        for at, (axis, ((panel, x), found, _)) in enumerate(zip(sheet.axes, page, strict=True)):
            _distributions(view, axis, panel, x, found, styles, at >= sheet.lowest)
            axis.set_title(heads[at], loc="left")
            axis.set_ylim(-0.02, 1.02)
            axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
            if at % across == 0:
                axis.set_ylabel("share of the samples")
        yield sheet


def _distributions(view: View, axis, panel, x, found: list, styles: dict, named: bool) -> None:
    low, high = np.inf, 0.0
    for line in found:
        point = view.points.get((panel, line, x))
        if point is None:
            continue
        ranks = np.linspace(0, 1, max(2, min(CDF_POINTS, point.numbers.n)))
        values = np.quantile(point.samples, ranks, method="inverted_cdf")
        style = styles[line]
        axis.step(values, ranks, where="post", color=style["color"], linestyle=style["linestyle"])
        # A few stragglers would press the rest together: they are in the table, as p99 and beyond.
        low, high = min(low, point.numbers.low), max(high, np.percentile(point.samples, 99.5))
    if np.isfinite(low):
        value_axis(view, axis, "x", low, max(high, low), named)


def rows_of(view: View, panel: tuple, xs: list) -> list:
    """What stands beside bars, from the top: ("head", text) and ("bar", line, x)."""
    made = []
    for x in xs:
        if x is not None:
            made.append(("head", view.x_said(x), None))
        made += [("bar", line, x) for line in view.lines if (panel, line, x) in view.points]
    return made


BAR = 0.36


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


def linear_axis(view: View, axis, most: float, unit: str, wide: float) -> None:
    """From 0 to *most* on the x axis, in few round steps of the unit that people read."""
    axis.set_xlim(0, most)
    step = most / max(2, int(wide / 0.95))
    factor = next((factor for factor, _ in units.TIMES if most >= factor), 1) if unit == "ns" else 1
    scaled = step / factor
    power = 10.0 ** np.floor(np.log10(scaled))
    step = factor * power * next(one for one in (1, 2, 5, 10) if one * power >= scaled * 0.999)
    set_ticks(axis, "x", list(np.arange(0, most * 1.0001, step)), unit)


def bars(view: View, others: dict):
    """Medians as bars with quartiles as whiskers and the number beside."""
    styles = looks.styles(view.lines, others)
    panels = []
    for panel in view.panels:
        rows = rows_of(view, panel, view.xs_of(panel) if view.family.x else [None])
        panels += [(panel, part) for part in pages(rows, 26)]
    for page in pages(panels, 8):
        sheet, wide = bar_sheet(view, "bars", page, [place_text(view, panel, None) for panel, _ in page], [])
        for at, (axis, (panel, rows)) in enumerate(zip(sheet.axes, page, strict=True)):
            found = [(place, row[1], view.points[panel, row[1], row[2]].numbers)
                     for place, row in enumerate(rows) if row[0] == "bar"]  # fmt: skip
            most = max((one.q3 for _, _, one in found), default=1.0) or 1.0
            unit = view.measure["unit"] if units.carried(view.measure["unit"]) else ""
            texts = [units.show(one.median, unit) for _, _, one in found]
            room = max(map(len, texts), default=0) * 0.0092 * TICK + 0.25
            linear_axis(view, axis, most * wide / max(wide - room, 1), view.measure["unit"], wide)
            for (place, line, one), text in zip(found, texts, strict=True):
                axis.barh(place, one.median, height=0.72, color=styles[line]["color"])
                spread = [[one.median - one.q1], [one.q3 - one.median]]
                axis.errorbar(one.median, place, xerr=spread, fmt="none", color=looks.INK, capsize=3,
                              linewidth=1.3)  # fmt: skip
                axis.annotate(text, (one.q3, place), xytext=(6, 0), textcoords="offset points", va="center",
                              size=TICK)  # fmt: skip
            if at >= sheet.lowest:
                axis.set_xlabel(value_label(view))
        yield sheet


def phases(view: View, others: dict):
    """Means of the daemon's phases, stacked; the caller's median as a line: the rest is outside."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    names = view.phases()
    colours = looks.phase_colours(names)
    legend = [(Patch(color=colours[name]), name) for name in names]
    caller = Line2D([], [], color=looks.CALLER, linewidth=2.6)
    legend.append((caller, f"{view.measure['label']}: caller's median"))
    panels = []
    for panel in view.panels:
        for x in view.chosen(panel) if view.family.x else [None]:
            rows = [("bar", line, x) for line in view.lines
                    if (panel, line, x) in view.points and view.points[panel, line, x].cell.phases]
            panels += [((panel, x), part) for part in alike(view, panel, rows)]
    for page in pages(panels, 8):
        heads = [place_text(view, *place) for place, _ in page]
        sheet, wide = bar_sheet(view, "phases", page, heads, legend)
        for at, (axis, ((panel, _), rows)) in enumerate(zip(sheet.axes, page, strict=True)):
            _stacks(view, axis, panel, rows, names, colours, wide)
            if at >= sheet.lowest:
                axis.set_xlabel("time of one call in the daemon")
        yield sheet


def alike(view: View, panel, rows: list) -> list:
    """The rows in groups that can be seen side by side: the longest at most 12 times the shortest."""
    def length(row) -> float:
        point = view.points[panel, row[1], row[2]]
        caller = point.numbers.median if view.measure["unit"] == "ns" else 0
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
        end = max(start, point.numbers.median) if unit == "ns" else start
        text = units.show(start, "ns")
        if unit == "ns":
            axis.plot([point.numbers.median] * 2, [place - 0.43, place + 0.43], color=looks.CALLER,
                      linewidth=2.6, solid_capstyle="butt")  # fmt: skip
            text += f" of {units.show(point.numbers.median, 'ns')}"
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
