# SPDX-License-Identifier: MIT
"""A figure's sheet: title, panels, legend and small print in their places, and the axes of measures.

Everything is placed in inches, by the number and the length of what is shown, so that nothing covers data
and no layout has to be tried. Text stays text; the same samples give the same bytes. matplotlib is imported
by the first figure.
"""

import io
import textwrap
from pathlib import Path

import numpy as np

from lab import looks, units
from lab.cells import View
from lab.reading import Run, RunError

NBSP = "\N{NO-BREAK SPACE}"
LETTER = 0.0078  # inches that a letter takes, for each point of size: DejaVu Sans on the average
TITLE_STEP, WARN_STEP, PRINT_STEP, HEAD_STEP, LEGEND_STEP = 0.3, 0.24, 0.19, 0.25, 0.29  # inches a line
TITLE, HEAD, LABEL, TICK, SMALL = 16, 13, 12.5, 12, 10
KINDS_TEXT = {"cdf": ": how the samples are distributed", "phases": ": where the time goes"}
DPI = 120
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
        print_ = [line.replace(NBSP, " ").rstrip("· ")
                  for line in wrapped(small_print(view, draw), self.width - 0.3, SMALL)]  # fmt: skip
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
            "cdf": "each sample counts", "phases": "numbers: the daemon's mean"}[draw]  # fmt: skip
    if draw == "phases" and view.measure["unit"] == "ns":
        what += " of the caller's mean"
    facts = [f"{what}, n = {count} each"]
    if draw == "lines" and (breaks := [run.axes[axis]["label"].rstrip("=") for axis in view.breaks()]):
        facts.append(f"a gap: other {', '.join(breaks)}")
    if draw == "lines" and (covered := [view.line_text(line) for line in view.covered()]):
        facts.append(f"under other lines: {'; '.join(covered)}")
    facts += [view.said(axis, value) for axis, value in view.steady().items()]
    for name, text in (("cpu", "{}"), ("cpus", "{} CPUs"), ("kernel", "Linux {}"), ("commit", "commit {}"),
                       ("flush", "flush={}")):  # fmt: skip
        if host.get(name) not in (None, "") and name not in run.axes:
            facts.append(text.format(host[name]))
    if run.facts.get("started"):
        facts.append(str(run.facts["started"])[:10])
    return f"{NBSP}· ".join(fact.replace(" ", NBSP) for fact in facts)


def wrapped(text: str, width: float, size: float) -> list[str]:
    """Lines of *text* that fit into *width* inches, letters of *size* points on the average."""
    return textwrap.wrap(text, max(8, int(width / (size * LETTER))))


def headings(texts: list, width: float) -> tuple[list, int]:
    """The headings of panels, in at most three lines, and the lines of the longest one."""
    made = [wrapped(text, width + 0.55, HEAD)[:3] for text in texts]
    return ["\n".join(lines) for lines in made], max(map(len, made))


def place_text(view: View, panel: tuple, x) -> str:
    """Where a panel is, with breaks between its parts alone."""
    said = [view.said(axis, value) for axis, value in zip(view.family.panel, panel, strict=True)]
    said += [view.x_said(x)] if x is not None else []
    return ", ".join(text.replace(" ", NBSP) for text in said)


def value_label(view: View) -> str:
    unit, label = view.measure["unit"], view.measure["label"]
    better = {"lower": " (lower is better)", "higher": " (higher is better)"}.get(view.measure["better"], "")
    return label + ("" if units.carried(unit) or not unit else f", {unit}") + better


def value_axis(view: View, axis, which: str, low: float, high: float, named: bool = True,
               wide: float = 0.0) -> None:  # fmt: skip
    """The measure on the x or y axis: logarithmic with its own ticks, linear where a value is not above 0.

    *wide*: the inches of an x axis, on which texts of ticks must have room beside each other.
    """
    unit = view.measure["unit"]
    if low > 0:
        pad = max((high / low) ** 0.06, 1.08)
        low, high = low / pad, high * pad
        getattr(axis, f"set_{which}scale")("log")
        getattr(axis, f"set_{which}lim")(low, high)
        apart = 0.0
        if wide:
            letters = max(len(units.show(end, unit, units.short)) for end in (low, high))
            apart = min(letters + 1, 8) * LETTER * TICK / wide * np.log10(high / low)
        set_ticks(axis, which, units.log_ticks(low, high, apart), unit)
    if named:
        getattr(axis, f"set_{which}label")(value_label(view))


def set_ticks(axis, which: str, ticks: list, unit: str, places: list | None = None) -> None:
    """Ticks with texts of the laboratory's, and none between."""
    line = getattr(axis, f"{which}axis")
    line.set_ticks(ticks if places is None else places,
                   ["0" if tick == 0 else units.show(tick, unit, units.short) for tick in ticks])  # fmt: skip
    line.set_minor_locator(pyplot().NullLocator())


def linear_axis(view: View, axis, most: float, unit: str, wide: float) -> None:
    """From 0 to *most* on the x axis, in few round steps of the unit that people read."""
    axis.set_xlim(0, most)
    step = most / max(2, int(wide / 0.95))
    factor = next((factor for factor, _ in units.TIMES if most >= factor), 1) if unit == "ns" else 1
    scaled = step / factor
    power = 10.0 ** np.floor(np.log10(scaled))
    step = factor * power * next(one for one in (1, 2, 5, 10) if one * power >= scaled * 0.999)
    set_ticks(axis, "x", list(np.arange(0, most * 1.0001, step)), unit)
