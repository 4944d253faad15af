# SPDX-License-Identifier: MIT
"""Bugs planted into daxfs's own code, one at a time: the crash engine must find each of them.

A `Mutant` replaces text in the source of single functions while `planted` lasts. The old text must stand
there exactly once, so that a change of daxfs which makes a mutant meaningless fails instead of passing.
Compiled code is not edited: `lame` makes DaxIo work with a flush table of which one function does too
little. It calls the functions that it finds in the table, those of the recorder, so the log shows what
was really done.

One process, one thread: the functions are replaced for all of it.
"""

import contextlib
import importlib
import inspect
import re
import sys
import textwrap
from typing import NamedTuple

import flush_table

from daxfs.region import Region

from . import judge, vfs
from .engine import Engine, Outcome, Run
from .ground import mounted
from .model import Model, Policy
from .tree import show
from .workloads import DEFAULT, Sequence

LIMIT = 16  # images of a crash point: few are enough for a bug that is there
class Edit(NamedTuple):
    """In the source of *where* ("module:function" or "module:Class.method", in daxfs, or "crash.module:...")
    each first text of *pairs* becomes the second. The source counts without its common indentation.
    """

    where: str
    pairs: tuple[tuple[str, str], ...]


class Mutant(NamedTuple):
    """A planted bug.

    *ops* on *setup* must show it: a complaint that *expect* (a regular expression) finds, in an image whose
    stores in flight *lines* finds. ``silent``: without a power failure nothing is wrong with it. ``again``:
    it shows in the second power failure alone. ``values``: (("module:NAME", value), ...) that the operations
    need, with and without the bug.
    """

    name: str
    edits: tuple[Edit, ...]
    ops: tuple
    expect: str
    lines: str = ""
    setup: str = "tree"
    policy: Policy = DEFAULT
    silent: bool = True
    again: bool = False
    values: tuple = ()

    @classmethod
    def beginning(cls, setup: str, policy: Policy):
        """What makes mutants as the class does, with this setup and this policy where none is given."""
        def make(name: str, edits, ops: tuple, expect: str, policy: Policy = policy, **more) -> Mutant:
            return cls(name, edits, ops, expect, **{"setup": setup, "policy": policy, **more})
        return make

    def sequence(self) -> Sequence:
        tag = ",".join(str(value) for value in self.policy if value != "")
        return Sequence(f"{self.setup} [{tag}]: {self.ops}", self.setup, self.ops, self.policy)


# -- how a mutant is applied -----------------------------------------------------------------


def _owner(where: str):
    """(module, object that has the attribute, its name)."""
    module, _, path = where.partition(":")
    module = importlib.import_module(module if module.startswith("crash.") else f"daxfs.{module}")
    owner, *parts = module, *path.split(".")
    for part in parts[:-1]:
        owner = getattr(owner, part)
    return module, owner, parts[-1]


def mutated(edit: Edit, function):
    """*function* with the edit in its source, compiled where it stood."""
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in edit.pairs:
        if source.count(old) != 1:
            raise ValueError(f"{edit.where}: {old!r} stands there {source.count(old)} times, not once")
        source = source.replace(old, new)
    line = inspect.getsourcelines(function)[1]
    code = compile("\n" * (line - 1) + source, inspect.getfile(function), "exec")
    made: dict = {}
    exec(code, _owner(edit.where)[0].__dict__, made)
    return made[function.__name__]


@contextlib.contextmanager
def tuned(mutant: Mutant):
    """The constants that the mutant's sequence needs."""
    with contextlib.ExitStack() as undo:
        for where, value in mutant.values:
            _, owner, name = _owner(where)
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


@contextlib.contextmanager
def planted(mutant: Mutant):
    """The bug is there, wherever the function was imported to, until the end."""
    with contextlib.ExitStack() as undo:
        for edit in mutant.edits:
            _, owner, name = _owner(edit.where)
            function = getattr(owner, name)
            made = mutated(edit, function)
            places = [owner]
            if inspect.ismodule(owner):
                places = [m for m in list(sys.modules.values()) if getattr(m, name, None) is function]
            for place in places:
                undo.callback(setattr, place, name, function)
                setattr(place, name, made)
        yield


def _nothing(real, table):
    return lambda *args: None


def _without_last_line(real, table):
    return lambda t, address, length: real(t, address, length - 64)


def _plain_edges(real, table):
    """An nt_store whose parts of lines are ordinary stores that nobody flushes."""
    store = flush_table.function(table, "store")

    def nt_store(t, target, source, length):
        head = min(-target % 64, length)
        tail = (target + length) % 64 if length > head else 0
        if head:
            store(t, target, source, head)
        if length > head + tail:
            real(t, target + head, source + head, length - head - tail)
        if tail:
            store(t, target + length - tail, source + length - tail, tail)

    return nt_store


LAME = {"nothing": _nothing, "without_last_line": _without_last_line, "plain_edges": _plain_edges}


class Lame:
    """A DaxIo of which *methods* work with a table whose *function* is replaced by one of LAME."""

    def __init__(self, dax, region: Region, methods, function: str, kind: str):
        self._dax, self._methods, self._function, self._kind = dax, methods, function, kind
        self._table, self._flush = flush_table.table_of(region.flush), region.flush

    def __getattr__(self, name: str):
        found = getattr(self._dax, name)
        if name not in self._methods:
            return found

        def call(*args):
            real = flush_table.function(self._table, self._function)
            less = LAME[self._kind](real, self._table)
            with flush_table.replaced(self._table, **{self._function: less}):
                return found(*args)

        return call


def edit(where: str, *texts: str) -> tuple[Edit]:
    """The edit of one function: old text, new text, old text, new text ..."""
    return (Edit(where, tuple(zip(texts[::2], texts[1::2], strict=True))),)


def gone(where: str, kept: str, lost: str) -> tuple[Edit]:
    """The edit that leaves out *lost*, a line or more with its indentation, behind *kept*."""
    indent = lost[: len(lost) - len(lost.lstrip())]
    return edit(where, kept + lost, kept + indent + "pass")


def lame(methods: tuple, function: str, kind: str = "nothing") -> tuple[Edit]:
    """The edit that puts a `Lame` into the place of FileIo's DaxIo."""
    made = "DaxIo(fs.region, self.tracker, write, drain, flushers, nt_threshold)"
    new = f"__import__('crash.plant').plant.Lame({made}, fs.region, {methods}, {function!r}, {kind!r})"
    return edit("data.file_io:FileIo.__init__", made, new)


# -- what comes of it ------------------------------------------------------------------------


def played(engine: Engine, mutant: Mutant) -> Outcome:
    """The crash points of the last operation; with the bug where it is planted."""
    engine.again = 1.0 if mutant.again else 0.1
    run = Run(engine, mutant.sequence(), "last")
    try:
        run.go()
    finally:
        run.ground.reset()
    return run.outcome


def live(engine: Engine, mutant: Mutant) -> list[str]:
    """What is wrong with the operations as long as the power stays."""
    ground, policy = engine.ground_of(mutant.policy), mutant.policy
    ground.put_ranges(ground.path, {})
    model = Model(policy, ground.created)
    with ground.open(ground.path) as region:
        io = mounted(region, policy)
        tree = vfs.Vfs(io, model.now)
        try:
            for op in (*engine.setups[mutant.setup], *mutant.ops):
                wrong = judge.step(tree, model, op)
                if wrong:
                    return wrong
            return judge.judge(io, model, None)
        finally:
            tree.finish()


def found(outcome: Outcome, mutant: Mutant) -> str:
    """The complaint about a crash image that is due for the mutant, "" for none.

    Not counted: an errno that differs while the power stays, and what the list of missing flushes says.
    """
    for violation in outcome.violations:
        if violation["point"] in ("the return", "the log"):
            continue
        complaints = violation["complaints"]
        if re.search(mutant.lines, "\n".join([*complaints, violation["lines"]])):
            for number, complaint in enumerate(complaints):
                if re.search(mutant.expect, complaint):
                    return " ".join(complaints[number : number + 1 + complaint.startswith("after a second")])
    return ""


def table(mutants, setups: dict) -> None:
    """Print what each mutant took to be found, as a table in Markdown."""
    print("| bug | operations | images | complaint |\n|---|---|---|---|")
    with Engine(limit=LIMIT, most=1, setups=setups) as engine:
        for mutant in mutants:
            with tuned(mutant), planted(mutant):
                outcome = played(engine, mutant)
            ops = "; ".join(map(show, mutant.ops))
            complaint = found(outcome, mutant) or "NOT FOUND"
            print(f"| {mutant.name} | {ops} | {outcome.images} | {complaint} |", flush=True)
