# SPDX-License-Identifier: MIT
"""Holds the numbers in a page's sentences to the data that they come from (test_experiments_page.py).

A *fragment* is a piece of the page with fields in braces where its numbers stand. A field says how the page
rounds: ``{:.1}`` one decimal, ``{:.0}`` none, ``{:3}`` three digits that count (2,322.6 is 2,320),
``{:d}`` none, without commas. Line ends are spaces.
"""

import math
import re
from collections.abc import Sequence

NUMBER = r"(\d[\d,]*(?:\.\d+)?)"


class Number(float):
    """Formats itself as the page rounds."""

    def __format__(self, spec: str) -> str:
        if spec == "d":
            return f"{float(self):.0f}"
        if spec.startswith("."):
            return f"{float(self):,{spec}f}"
        digits = int(spec) - 1 - math.floor(math.log10(abs(self)))
        return f"{round(float(self), digits):,.{max(digits, 0)}f}"


def pattern(fragment: str) -> re.Pattern:
    """Finds *fragment* with whatever numbers, over line ends."""
    parts = [re.sub(r"(\\ )+", lambda _: r"\\s+", re.escape(part)).replace(r"\\s+", r"\s+")
             for part in re.split(r"\{[^}]*\}", fragment)]
    return re.compile(NUMBER.join(parts))


def differences(page: str, fragment: str, values: Sequence[float]) -> list[str]:
    """What the page says otherwise than the data, a line each."""
    found = pattern(fragment).findall(page)
    if len(found) != 1:
        return [f"{len(found)} times on the page: {fragment!r}"]
    said = found[0] if isinstance(found[0], tuple) else (found[0],)
    fields = re.findall(r"\{[^}]*\}", fragment)
    assert len(fields) == len(values), f"{len(values)} values for {fragment!r}"
    told = [field.format(Number(value)) for field, value in zip(fields, values, strict=True)]
    return [f"the page says {one}, the data {other}: {fragment!r}"
            for one, other in zip(said, told, strict=False) if one != other]


def mended(page: str, fragment: str, values: Sequence[float]) -> str:
    """*page* with the data's numbers in *fragment*."""
    found = pattern(fragment).search(page)
    if found is None:
        return page
    fields = re.findall(r"\{[^}]*\}", fragment)
    text, at = "", found.start()
    for group, (field, value) in enumerate(zip(fields, values, strict=True), 1):
        text += page[at:found.start(group)] + field.format(Number(value))
        at = found.end(group)
    return page[:found.start()] + text + page[at:]


def left_over(page: str, fragments: Sequence[str], conditions: Sequence[str]) -> list[str]:
    """Numbers of *page* that are in no fragment and match no condition (patterns), with what is around."""
    for one in (*map(pattern, fragments), *(re.compile(text) for text in conditions)):
        page = one.sub(" … ", page)
    return [" ".join(page[max(0, found.start() - 40):found.end() + 20].split())
            for found in re.finditer(r"\d[\d,.]*", page)]
