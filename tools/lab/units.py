# SPDX-License-Identifier: MIT
"""Numbers as people read them: bytes as IEC, times as SI, ticks of logarithmic axes.

Plain functions, nothing of matplotlib's. A value's unit is the one that run.json gives its axis or measure.
"""

import itertools
import math

IEC = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
TIMES = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns"))
SUBS = ((1.3, (1, 1.5, 2, 3, 5, 7)), (2.7, (1, 2, 5)), (99, (1,)))  # up to so many decades: ticks of each


def digits(value: float) -> str:
    """Three significant digits, without exponent, thousands with a thin space."""
    if value == 0:
        return "0"
    value = float(f"{value:.3g}") if abs(value) < 1000 else value
    places = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-9))
    return f"{value:,.{places}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def short(value: float) -> str:
    """As ``digits``, without zeros at the end: for ticks and for values of axes."""
    text = digits(value) if abs(value) < 1000 else digits(round(value))
    return text.rstrip("0").rstrip(".") if "." in text else text


def _bytes(value: float, figures) -> str:
    step = 0
    while abs(value) >= 1024 and step < len(IEC) - 1:
        value, step = value / 1024, step + 1
    return f"{figures(value)} {IEC[step]}"


def _time(value: float, figures) -> str:
    for factor, name in TIMES:
        if abs(value) >= 0.9995 * factor or factor == 1:
            return f"{figures(value / factor)} {name}"
    raise AssertionError(value)


def show(value, unit: str, figures=digits) -> str:
    """A measured value with its unit; *figures* ``short`` for ticks. Names stay as they are."""
    if isinstance(value, str):
        return value
    if unit == "B":
        return _bytes(value, figures)
    if unit == "ns":
        return _time(value, figures)
    return f"{figures(value)} {unit}" if unit and figures is digits else figures(value)


def carried(unit: str) -> bool:
    """Whether ticks and values carry the unit themselves, so that an axis need not name it."""
    return unit in ("B", "ns")


def log_ticks(low: float, high: float, apart: float = 0.0) -> list[float]:
    """Ticks from *low* to *high*, both above 0: a few in each decade, or decades alone.

    *apart*: the decades that there have to be between two of them, at least.
    """
    decades = math.log10(high / low)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks: list[float] = []
    for limit, subs in SUBS:
        found = [sub * 10.0**power for power in range(first, last + 1) for sub in subs]
        found = [tick for tick in found if low * 0.999 <= tick <= high * 1.001]
        if decades <= limit and (len(found) > 1 or not ticks):
            ticks = found
            if all(math.log10(b / a) >= apart for a, b in itertools.pairwise(found)):
                break
    step = max(-(-len(ticks) // 7), 1)
    while step < len(ticks) and any(math.log10(b / a) < apart for a, b in itertools.pairwise(ticks[::step])):
        step += 1
    return ticks[::step]


def binary_ticks(low: float, high: float, most: int) -> list[float]:
    """At most *most* powers of two from *low* to *high*, both above 0, evenly in the exponent."""
    first, last = math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9)
    for step in (1, 2, 3, 4, 5, 6, 8, 10, 20):
        ticks = [2.0**power for power in range(first, last + 1, step)]
        if len(ticks) <= most:
            return ticks
    return ticks[:most]
