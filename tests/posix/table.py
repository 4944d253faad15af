# SPDX-License-Identifier: MIT
"""The table: registration of cases and the kinds of outcome.

Limits: holds functions only. Nothing here touches a file system or starts a process.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ANY = "*"


class Unsupported(Exception):
    """The file system has no such feature. Accepted only where the case's `may_lack` names its type."""


class CaseFailed(AssertionError):
    """An answer that POSIX or Linux dictates was a different one."""


@dataclass(frozen=True)
class Case:
    """One row of the table.

    `may_lack` holds file system types (as in /proc/self/mountinfo, or ANY) that may do without the feature;
    `compare` is False where only the dictated answers count, because file systems may legitimately differ.
    """

    area: str
    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    may_lack: tuple[str, ...]
    compare: bool

    @property
    def id(self) -> str:
        return f"{self.area}/{self.name}"

    @property
    def doc(self) -> str:
        return " ".join((self.fn.__doc__ or "").split())

    def accepts_lack(self, fstype: str) -> bool:
        return ANY in self.may_lack or fstype in self.may_lack


_cases: dict[str, Case] = {}


def case(
    area: str,
    params: Iterable[Any] | Mapping[str, Any] | None = None,
    may_lack: Iterable[str] = (),
    compare: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function `fn(c, *args) -> observation`; `params` makes one case of each item.

    The observation is a plain value (picklable, comparable). A tuple among the params is spread over the
    arguments; the keys of a mapping are the names in brackets.
    """

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        if params is None:
            rows: list[tuple[str, tuple[Any, ...]]] = [(fn.__name__, ())]
        else:
            named = params.items() if isinstance(params, Mapping) else ((_label(p), p) for p in params)
            rows = [(f"{fn.__name__}[{k}]", p if isinstance(p, tuple) else (p,)) for k, p in named]
        for name, args in rows:
            new = Case(area, name, fn, args, tuple(may_lack), compare)
            if new.id in _cases:
                raise ValueError(f"case {new.id} is there twice")
            _cases[new.id] = new
        return fn

    return register


def _label(param: Any) -> str:
    if isinstance(param, tuple):
        return "-".join(_label(p) for p in param)
    return param.__name__ if callable(param) else str(param)


def all_cases(only: Iterable[str] = (), kind: str = "cases_") -> list[Case]:
    """Every case, areas in the order of their modules; `only` takes areas or whole ids.

    `kind` is how the names of their modules begin: "cases_" what any file system has to do, "direct_" what
    mappings of a tmpfs do, and direct mappings with them.
    """
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith(kind):
            importlib.import_module(f"{__package__}.{module.name}")
    found = [c for c in _cases.values() if c.fn.__module__.rpartition(".")[2].startswith(kind)]
    wanted = set(only)
    unknown = wanted - {c.area for c in found} - {c.id for c in found}
    if unknown:
        raise LookupError(f"no such area or case: {', '.join(sorted(unknown))}")
    return [c for c in found if not wanted or c.area in wanted or c.id in wanted]
