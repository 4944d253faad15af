# SPDX-License-Identifier: MIT
"""Figures with curves: medians against an axis, and distributions of samples.

A figure has at most ``PANELS`` panels and a panel at most ``LINES`` lines; what is more goes to further
panels and figures.
"""

import itertools
import textwrap

import numpy as np

from lab import looks, units
from lab.cells import View
from lab.reading import NUMBER
from lab.sheet import LETTER, TICK, Sheet, headings, place_text, set_ticks, value_axis

PANELS, LINES, ACROSS = 9, 8, 3
WIDE = {1: 7.4, 2: 4.7}  # inches of a panel, by panels side by side
NARROW = 3.55
CDF_POINTS = 300


def grid(count: int, most: int = ACROSS) -> int:
    """Panels side by side."""
    return min(count, most) if count != 4 else 2


def legend_of(view: View, lines: list, styles: dict, marks: bool = True) -> list:
    """(handle, text) of each line, where there is anything to tell apart."""
    from matplotlib.lines import Line2D
    if not view.line_axes:
        return []
    title, name = view.line_title(), view.run.axes[view.line_axes[0]]["kind"] != NUMBER
    prefix = title if len(view.line_axes) == 1 and title.endswith("=") and name else ""
    plain = {} if marks else {"marker": ""}
    return [(Line2D([], [], **(styles[line] | plain)), prefix + view.line_text(line)) for line in lines]


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
    """Median with quartiles against x, a line each; names have nothing between them, so only marks."""
    styles, abscissa = looks.styles(view.lines, others), Abscissa(view)
    if not abscissa.number:
        styles = {line: style | {"linestyle": "none"} for line, style in styles.items()}
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
    keys = [(panel, line, x) for x in view.xs if (panel, line, x) in view.points]
    for _, piece in itertools.groupby(keys, view.rest):  # no line to what was done otherwise
        _piece(view, axis, abscissa, list(piece), style)


def _piece(view: View, axis, abscissa: Abscissa, keys: list, style: dict) -> None:
    found, line = [(abscissa.at(key[2]), view.points[key].numbers) for key in keys], keys[0][1]
    shift = 0.0 if abscissa.number else 0.6 * ((view.lines.index(line) + 0.5) / len(view.lines) - 0.5)
    at = [place + shift for place, _ in found]
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
            _distributions(view, axis, (panel, x), found, styles, wide, at >= sheet.lowest)
            axis.set_title(heads[at], loc="left")
            axis.set_ylim(-0.02, 1.02)
            axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
            if at % across == 0:
                axis.set_ylabel("share of the samples")
        yield sheet


def _distributions(view: View, axis, place: tuple, found: list, styles: dict, wide: float,
                   named: bool) -> None:  # fmt: skip
    low, high = np.inf, 0.0
    for line in found:
        point = view.points.get((place[0], line, place[1]))
        if point is None:
            continue
        n, style = point.numbers.n, styles[line]
        ranks = np.unique(np.linspace(0, n - 1, min(CDF_POINTS, n)).round().astype(int))
        values = np.sort(point.samples)[ranks]
        axis.step([values[0], *values], [0, *((ranks + 1) / n)], where="post",
                  color=style["color"], linestyle=style["linestyle"])
        # A few stragglers would press the rest together: they are in the table, as p99 and beyond.
        low, high = min(low, point.numbers.low), max(high, np.percentile(point.samples, 99.5))
    if np.isfinite(low):
        value_axis(view, axis, "x", low, max(high, low), named, wide)
