# SPDX-License-Identifier: MIT
"""Goes through a plan: in rounds, each of them over all cells of a family in a new order.

So what is compared takes turns, and a busy minute of the host falls on all cells alike. Shows progress on
stderr: a bar on a terminal, else lines. A time limit ends a family after the round in which
its share is used up. Ctrl-C and SIGTERM stop in the visit that is being made, which is not kept; the same
command goes on. Limits: one thread.
"""

import random
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lab.plan import Cell, CellError, CellFailed, Family, Plan
from lab.store import Run
from lab.words import show

COLUMNS = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
           TimeElapsedColumn())
BAR = 24 + 7 + 3  # characters of a bar, the time and what is between them
LEAST, MOST = 8, 60  # of what is being visited

TELL_S = 5.0  # between two lines where there is no terminal


class Progressing:
    """What is told of a run's way: *total* visits of *name*, of which so many are over."""

    def __init__(self, name: str, total: int):
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Progress(*COLUMNS, console=console, transient=True) if console.is_terminal else None
        self._console = console
        self._task = self._bar.add_task(name, total=total) if self._bar else None
        self._total, self._over, self._began, self._told = total, 0, time.monotonic(), 0.0

    def __enter__(self) -> "Progressing":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_exc) -> None:
        if self._bar:
            self._bar.stop()

    def visit(self, family: Family, cell: Cell) -> None:
        """This one is next."""
        if self._bar:
            # What a narrow terminal cuts first is the end of the line, and how far it is.
            room = self._console.width - BAR - len(f"{self._total}/{self._total}")
            words = f"{family.name}: {place(family, cell)}"[:max(LEAST, min(MOST, room))]
            self._bar.update(self._task, description=escape(words), completed=self._over)
        else:
            self._tell(family.name, TELL_S)
        self._over += 1

    def round(self, family: Family, turn: int, rounds: int) -> None:
        """This one is over. Without a bar a line is printed for it, unless there was one just now."""
        if not self._bar:
            self._tell(f"{family.name}: round {turn + 1} of {rounds}", TELL_S if turn + 1 < rounds else 0)

    def _tell(self, what: str, apart: float) -> None:
        took = time.monotonic() - self._began
        if took >= self._told + apart:
            self._told = took
            self._console.print(f"{took:6.1f} s  {what}, {self._over} of {self._total} visits", markup=False)

    def at(self, over: int) -> None:
        """So many are over, whether made or given up."""
        self._over = over


def place(family: Family, cell: Cell) -> str:
    """What tells *cell* from the others of its figure."""
    names = [*family.panel, *([family.x] if family.x else []), *family.line]
    return " ".join(show(name, cell.axes[name]) for name in names if name in cell.axes)


def turns(cells: list[Cell], seed: int, family: str, turn: int) -> list[Cell]:
    """The order in which a round visits *cells*: the same for the same seed, family and turn."""
    rng = random.Random(f"{seed} {family} {turn}")
    mixed = rng.sample(cells, len(cells))
    return sorted(mixed, key=lambda cell: cell.order)


def run(run: Run, plan: Plan, seed: int, visit_s: float, limit_s: float | None = None) -> bool:
    """Visit all cells that *run* lacks. *visit_s*: seconds for a visit; *limit_s*: for all of it.

    True: to the end, or to the time limit; False: interrupted, what is there is kept.
    """
    began, weights = time.monotonic(), [len(family.cells) for family in plan.families]
    with Progressing(plan.name, plan.rounds * sum(weights)) as progress:
        try:
            for n, family in enumerate(plan.families):
                # Time that one family leaves is for those behind it.
                until = limit_s and began + limit_s * sum(weights[: n + 1]) / sum(weights)
                try:
                    _family(run, plan, family, seed, visit_s, until, progress)
                finally:
                    family.close()
                progress.at(plan.rounds * sum(weights[: n + 1]))
        except KeyboardInterrupt:
            return False
    return True


def _family(run: Run, plan: Plan, family: Family, seed: int, visit_s: float, until: float | None,
            progress: Progressing) -> None:
    began, made = time.monotonic(), 0
    for turn in range(plan.rounds):
        # The first round is always made: each cell has samples.
        if turn and until is not None and _over(began, made, until):
            return
        for cell in turns(family.cells, seed, family.name, turn):
            progress.visit(family, cell)
            if run.has(family, cell, turn):
                continue
            try:
                visit = cell.visit(visit_s, _seed(seed, family, cell, turn))
            except CellFailed:
                raise
            except CellError as exc:
                run.skip(family, cell, str(exc))
                continue
            run.add(family, cell, turn, visit)
        made += 1
        progress.round(family, turn, plan.rounds)


def _over(began: float, made: int, until: float) -> bool:
    """Whether another round like the *made* ones before would end behind *until*."""
    now = time.monotonic()
    return now + (now - began) / made > until


def _seed(seed: int, family: Family, cell: Cell, turn: int) -> int:
    """Of the visit: the same for all lines of a family at the same x, so that they do the same work."""
    x = cell.axes.get(family.x) if family.x else 0
    return random.Random(f"{seed} {family.name} {x} {turn}").getrandbits(31)
