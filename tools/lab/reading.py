# SPDX-License-Identifier: MIT
"""One run of an experiment, read back from its directory: run.json and samples.jsonl.

The visits to a cell in several rounds are taken together. Reads files alone: imports no experiment, measures
nothing. What can't be read is a ``RunError`` with one line that names the file.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

FORMAT = 1
DRAWS = ("lines", "cdf", "bars", "phases")
NUMBER, NAME = "number", "name"


class RunError(Exception):
    """A directory that holds no run, or a damaged one; the message is one line."""


@dataclass
class Cell:
    """Everything that was measured at one point of the axes: samples by measure, means by weight."""

    family: str
    where: dict
    samples: dict = field(default_factory=dict)
    counts: dict = field(default_factory=dict)
    phases: dict = field(default_factory=dict)
    visits: int = 0


@dataclass
class Family:
    """A group of cells that is drawn together, and how."""

    name: str
    title: str
    measure: str
    draw: tuple
    x: str | None
    line: tuple
    panel: tuple
    words: str


@dataclass
class Run:
    """One directory: facts, families and their cells; ``skipped``: (family, reason) -> cells."""

    path: Path
    facts: dict
    axes: dict
    measures: dict
    families: list
    cells: dict
    skipped: dict
    loads: list
    last_s: float
    torn: bool

    @property
    def experiment(self) -> str:
        return self.facts["experiment"]

    @property
    def host(self) -> dict:
        return self.facts.get("host", {})

    @property
    def options(self) -> dict:
        return self.facts.get("options", {})


def load(folder: Path) -> Run:
    """The run in *folder*. RunError where there is none, where it is damaged, or without one sample."""
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such directory")
    facts = _facts(folder / "run.json")
    path = folder / "run.json"
    axes = {name: _axis(path, name, one) for name, one in _dict(path, facts, "axes").items()}
    measures = {name: _measure(path, name, one) for name, one in _dict(path, facts, "measures").items()}
    families = [_family(path, one, axes, measures) for one in facts.get("families", [])]
    if not families:
        raise RunError(f"{path}: no families, so nothing to draw")
    run = Run(folder, facts, axes, measures, families, {}, {}, [], 0.0, False)
    for kept in families:
        run.cells[kept.name] = {}
    _samples(folder / "samples.jsonl", run)
    if not any(cell.samples for cells in run.cells.values() for cell in cells.values()):
        raise RunError(f"{folder}: no samples" + ("" if not run.skipped else ", every cell was skipped"))
    return run


def _facts(path: Path) -> dict:
    try:
        facts = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise RunError(f"{path}: damaged, not JSON ({error})") from None
    if not isinstance(facts, dict) or "format" not in facts:
        raise RunError(f"{path}: not the run.json of an experiment")
    if facts["format"] != FORMAT:
        raise RunError(f"{path}: format {facts['format']!r}, this program reads {FORMAT}")
    for name, kind in (("experiment", str), ("families", list)):
        if not isinstance(facts.get(name), kind):
            raise RunError(f"{path}: {name!r} is missing or of a wrong kind")
    for name in ("host", "options"):
        _dict(path, facts, name)
    return facts


def _dict(path: Path, facts: dict, name: str) -> dict:
    found = facts.get(name, {})
    if not isinstance(found, dict):
        raise RunError(f"{path}: {name!r} is of a wrong kind")
    return found


def _axis(path: Path, name: str, axis) -> dict:
    if not isinstance(axis, dict) or axis.get("kind", NAME) not in (NUMBER, NAME):
        raise RunError(f"{path}: axis {name!r} is neither of numbers nor of names")
    values = axis.get("values")
    return {"label": str(axis.get("label") or name), "unit": str(axis.get("unit") or ""),
            "kind": axis.get("kind", NAME), "values": values if isinstance(values, list) else []}  # fmt: skip


def _measure(path: Path, name: str, measure) -> dict:
    if not isinstance(measure, dict):
        raise RunError(f"{path}: measure {name!r} is of a wrong kind")
    return {"label": str(measure.get("label") or name), "unit": str(measure.get("unit") or ""),
            "better": measure.get("better")}  # fmt: skip


def _family(path: Path, family, axes: dict, measures: dict) -> Family:
    if not isinstance(family, dict) or not isinstance(family.get("name"), str):
        raise RunError(f"{path}: a family without a name")
    name = family["name"]
    line, panel = family.get("line") or [], family.get("panel") or []
    if family.get("measure") not in measures:
        raise RunError(f"{path}: family {name!r}: {family.get('measure')!r} is not among the measures")
    for axis in [*line, *panel, *([family["x"]] if family.get("x") else [])]:
        if axis not in axes:
            raise RunError(f"{path}: family {name!r}: {axis!r} is not among the axes")
    draw = tuple(family.get("draw") or ())
    for one in draw:
        if one not in DRAWS:
            raise RunError(f"{path}: family {name!r}: {one!r} can't be drawn (can: {', '.join(DRAWS)})")
    return Family(name, str(family.get("title") or name), family["measure"], draw, family.get("x"),
                  tuple(line), tuple(panel), str(family.get("words") or ""))


def _samples(path: Path, run: Run) -> None:
    """Fill *run* from the file; a last line without its end was torn by a kill, and is left out."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from None
    lines = raw.split(b"\n")
    run.torn = bool(lines.pop())
    for number, line in enumerate(lines, 1):
        try:
            visit = json.loads(line)
            _visit(run, visit)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise RunError(f"{path}, line {number}: damaged ({error or type(error).__name__})") from None
    for cells in run.cells.values():
        for cell in cells.values():
            cell.samples = {name: np.concatenate(parts) for name, parts in cell.samples.items()}
            cell.counts, cell.phases = _means(cell.counts), _means(cell.phases)


def _visit(run: Run, visit: dict) -> None:
    """One line of the file into *run*; ValueError and the like where it is not one."""
    family, where = visit["family"], visit["cell"]
    if family not in run.cells:
        raise ValueError(f"family {family!r} is not in run.json")
    for axis, value in where.items():
        if axis not in run.axes:
            raise ValueError(f"axis {axis!r} is not in run.json")
        if not isinstance(value, str) and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ValueError(f"{axis} is neither number nor name")
        if run.axes[axis]["kind"] == NUMBER and isinstance(value, str):
            raise ValueError(f"{axis} is no number: {value!r}")
    x = next(one.x for one in run.families if one.name == family)
    if x and x not in where and "skipped" not in visit:
        raise ValueError(f"the cell has no {x!r}")
    key = tuple(sorted((axis, str(value)) for axis, value in where.items()))
    if "skipped" in visit:
        told = (family, key)
        reason = str(visit["skipped"])
        run.skipped.setdefault((family, reason), {})[told] = where
        return
    cell = run.cells[family].setdefault(key, Cell(family, where))
    weight = 0
    for name, values in visit["samples"].items():
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1 or not np.isfinite(array).all() or name not in run.measures:
            raise ValueError(f"samples of {name!r} are not finite numbers of a known measure")
        if array.size:
            cell.samples.setdefault(name, []).append(array)
        weight = max(weight, array.size)
    for kept, given in ((cell.counts, visit.get("counts")), (cell.phases, visit.get("phases"))):
        for name, value in (given or {}).items():
            total = kept.setdefault(name, [0.0, 0])
            kept[name] = [total[0] + float(value) * weight, total[1] + weight]
    cell.visits += 1
    run.last_s = max(run.last_s, float(visit.get("at_s") or 0))
    if visit.get("load") is not None:
        run.loads.append(float(visit["load"]))


def _means(totals: dict) -> dict:
    """Means over all visits, each by its number of samples."""
    return {name: total / weight for name, (total, weight) in totals.items() if weight}
