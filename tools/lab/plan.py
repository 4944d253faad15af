# SPDX-License-Identifier: MIT
"""What is measured: axes, measures, families of cells, and the visits that make samples.

A *cell* is one point of the experiment: a value for each axis that matters there. A *family* is a set of
cells that one figure shows; its cells are visited in turns. A *visit* to a cell gives samples. Limits: plain
data, nothing is mounted or written here.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

DRAWINGS = ("lines", "cdf", "bars", "phases")


class CellError(Exception):
    """A visit can't be made on this host, now or ever: the cell is skipped, with this text as reason."""


class CellFailed(CellError):
    """A visit failed as nothing may fail: no reason to leave the cell out, the run ends."""


class HostError(Exception):
    """Nothing of the experiment can be had on this host; the text says why and what to do."""


@dataclass(frozen=True)
class Axis:
    """*kind*: ``number`` (drawn on a logarithmic scale) or ``name``; *unit*: of numbers: B, ns or empty."""

    label: str
    kind: str = "name"
    unit: str = ""


@dataclass(frozen=True)
class Measure:
    """*unit*: ns, MiB/s, IOPS, or empty; *better*: ``lower`` or ``higher``."""

    label: str
    unit: str
    better: str = "lower"


@dataclass
class Visit:
    """What a visit to a cell found: every sample by measure, counts and phases (ns) for each call."""

    samples: dict[str, list[float]]
    counts: dict[str, float] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)


@dataclass
class Cell:
    """*axes*: its values. *visit*: called with the seconds that it should take, and a random seed.

    *order*: cells of a family with smaller ones come first in each round; equal ones are shuffled.
    """

    axes: dict[str, str | int | float]
    visit: Callable[[float, int], Visit]
    order: int = 0

    @property
    def key(self) -> tuple:
        """What tells a cell of a family from the others."""
        return tuple(sorted(self.axes.items()))


@dataclass
class Family:
    """Cells of one figure. The other fields are for whoever draws, as in docs/laboratory.md."""

    name: str
    title: str
    words: str
    measure: str
    draw: tuple[str, ...]
    line: tuple[str, ...]
    cells: list[Cell]
    x: str | None = None
    panel: tuple[str, ...] = ()
    close: Callable[[], None] = lambda: None  # called when all rounds of it are over

    def facts(self) -> dict:
        """For run.json: all but the cells."""
        kept = ("name", "title", "words", "measure", "draw", "x", "line", "panel")
        return {name: getattr(self, name) for name in kept}


@dataclass
class Plan:
    """An experiment: *name* is the program's, *rounds* how often each cell is visited."""

    name: str
    title: str
    axes: dict[str, Axis]
    measures: dict[str, Measure]
    families: list[Family]
    rounds: int
    close: Callable[[], None] = lambda: None  # called at the end, however it comes

    def values(self, axis: str) -> list:
        """What cells have for *axis*, in the order of the plan, which is how people want to see names."""
        return list(dict.fromkeys(cell.axes[axis] for family in self.families for cell in family.cells
                                  if axis in cell.axes))

    def facts(self) -> dict:
        """For run.json."""
        return {"experiment": self.name, "title": self.title,
                "axes": {name: {**asdict(axis), "values": self.values(name)}
                         for name, axis in self.axes.items()},
                "measures": {name: asdict(one) for name, one in self.measures.items()},
                "families": [family.facts() for family in self.families], "rounds": self.rounds}
