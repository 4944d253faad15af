# SPDX-License-Identifier: MIT
"""Goes through a plan: in rounds, each of them over all cells of a family in a new order.

So what is compared takes turns, and a busy minute of the host falls on all cells alike. Shows progress on
stderr. A time limit ends a family after the round in which its share is used up. Ctrl-C and SIGTERM stop
after the visit that is being made; the same command goes on. Limits: one thread.
"""

import random
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lab.plan import Cell, CellError, Family, Plan
from lab.store import Run
from lab.words import show

COLUMNS = (TextColumn("{task.description}", table_column=None), BarColumn(bar_width=24), MofNCompleteColumn(),
           TimeElapsedColumn())


def turns(cells: list[Cell], seed: int, family: str, turn: int) -> list[Cell]:
    """The order in which a round visits *cells*."""
    rng = random.Random(f"{seed} {family} {turn}")
    mixed = rng.sample(cells, len(cells))
    return sorted(mixed, key=lambda cell: cell.order)


def run(run: Run, plan: Plan, seed: int, visit_s: float, limit_s: float | None = None) -> bool:
    """Visit all cells that *run* lacks. *visit_s*: seconds for a visit; *limit_s*: for all of it.

    True: to the end, or to the time limit; False: interrupted, what is there is kept.
    """
    began, weights = time.monotonic(), [len(family.cells) for family in plan.families]
    with Progress(*COLUMNS, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(plan.name, total=plan.rounds * sum(weights))
        try:
            for n, family in enumerate(plan.families):
                # Time that one family leaves is for those behind it.
                until = limit_s and began + limit_s * sum(weights[: n + 1]) / sum(weights)
                try:
                    _family(run, plan, family, seed, visit_s, until,
                            lambda words: progress.update(task, description=words, advance=1))
                finally:
                    family.close()
                progress.update(task, completed=plan.rounds * sum(weights[: n + 1]))
        except KeyboardInterrupt:
            return False
    return True


def _family(run: Run, plan: Plan, family: Family, seed: int, visit_s: float, until: float | None,
            tell) -> None:
    began = time.monotonic()
    for turn in range(plan.rounds):
        # The first round is always made: each cell has samples.
        if turn and until is not None and _over(began, turn, until):
            return
        for cell in turns(family.cells, seed, family.name, turn):
            tell(f"{family.name}: {' '.join(show(name, value) for name, value in cell.axes.items())}"[:70])
            if run.has(family, cell, turn):
                continue
            try:
                visit = cell.visit(visit_s, _seed(seed, family, cell, turn))
            except CellError as exc:
                run.skip(family, cell, str(exc))
                continue
            run.add(family, cell, turn, visit)


def _over(began: float, turn: int, until: float) -> bool:
    """Whether another round like those before would end behind *until*."""
    now = time.monotonic()
    return now + (now - began) / turn > until


def _seed(seed: int, family: Family, cell: Cell, turn: int) -> int:
    """Of the visit: the same for all lines of a family at the same x, so that they do the same work."""
    x = cell.axes.get(family.x) if family.x else 0
    return random.Random(f"{seed} {family.name} {x} {turn}").getrandbits(31)
