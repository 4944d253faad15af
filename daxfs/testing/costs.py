# SPDX-License-Identifier: MIT
"""Missing and useless flushes of a recorded run, by call site.

Missing is a bug, or a policy that the caller declares (*expected*): a store that no flush covered when its
operation returned. Useless costs time: a flush of lines that were not dirty, a drain with nothing to wait
for. Limits: looks at lines (page: pages), so a store counts as flushed when its line was; not thread-safe.
"""

from collections import defaultdict
from typing import NamedTuple

from daxfs.testing.log import DRAIN, END, FLUSH, NT_FILL, NT_STORE, SCAN, SITE, STORE, Event
from daxfs.testing.media import SIZES

# In the order of a report. The first two are bugs or policy, the others cost.
NEVER = "store never flushed"
LATE = "store flushed only after its operation returned"
USELESS_FLUSH = "flush of clean lines only"
CLEAN_LINES = "flush with clean lines among dirty ones"
USELESS_DRAIN = "drain with nothing in flight"
KINDS = (NEVER, LATE, USELESS_FLUSH, CLEAN_LINES, USELESS_DRAIN)


class Row(NamedTuple):
    """*count* calls of one kind from one call site; *units*: how many lines (page: pages) that is about.

    first: number in the log of the first of these calls.
    """

    kind: str
    site: str
    count: int
    units: int
    first: int


class _Store:
    """An ordinary store with units that no flush has covered yet."""

    def __init__(self, number: int, event: Event, units: range, expected: bool):
        self.number, self.event, self.left, self.expected = number, event, set(units), expected
        self.returned = False  # its operation has


class Costs:
    """Give it every event of a log in turn (apply), then ask for report() or table().

    *expected(event)*: True for a store that is flushed later by intent; it is never called missing.
    """

    def __init__(self, granularity: str = "cache_line", expected=None):
        self.granularity = granularity
        self.unit = SIZES[granularity][0]
        self.expected = expected or (lambda event: False)
        self.sites: dict[int, str] = {}
        self.number = 0
        self._dirty: dict[int, list[_Store]] = {}  # unit -> stores that no flush has covered there
        self._queued: dict[int, set[int]] = defaultdict(set)  # thread -> units flushed since its last drain
        self._busy: set[int] = set()  # threads with something for a drain to wait for
        self._of_op: dict[int, list[_Store]] = defaultdict(list)
        self._rows: dict[tuple[str, int], list[int]] = {}  # kind, site -> count, units, first

    def apply(self, event: Event) -> None:
        """The next event of the log."""
        kind = event.kind
        if kind in (STORE, SCAN):
            self._store(event)
        elif kind in (NT_STORE, NT_FILL):
            self._nt(event)
        elif kind == FLUSH and self.granularity != "byte" and event.length:
            self._flush(event)
        elif kind == DRAIN and self.granularity != "page":
            if event.thread not in self._busy:
                self._count(USELESS_DRAIN, event.site, 0, self.number)
            self._busy.discard(event.thread)
            self._queued.pop(event.thread, None)
        elif kind == END:
            for store in self._of_op.pop(event.op, ()):
                store.returned = True
        elif kind == SITE:
            self.sites[event.site] = bytes(event.data).decode("utf-8", "replace")
        self.number += 1

    def report(self) -> list[Row]:
        """The rows so far: the worse kinds first, then the more frequent."""
        counts = {key: list(value) for key, value in self._rows.items()}
        open_stores = {id(store): store for stores in self._dirty.values() for store in stores}
        for store in open_stores.values():
            if (store.returned or not store.event.op) and not store.expected:
                _add(counts, (NEVER, store.event.site), len(store.left), store.number)
        rows = [Row(kind, self.sites.get(site, "unknown call site"), *value)
                for (kind, site), value in counts.items()]
        return sorted(rows, key=lambda row: (KINDS.index(row.kind), -row.count, row.first))

    def table(self) -> str:
        """The report as text, one line for each row under its kind; empty where there is nothing to say."""
        lines, before, name = [], None, "pages" if self.granularity == "page" else "lines"
        for row in self.report():
            if row.kind != before:
                lines.append(f"{row.kind}:")
                before = row.kind
            lines.append(f"{row.count:8} times {row.units:8} {name}  {row.site}")
        return "\n".join(lines)

    def _units(self, event: Event) -> range:
        length = _length(event)
        return range(event.place // self.unit, -(-(event.place + length) // self.unit) if length else 0)

    def _store(self, event: Event) -> None:
        if self.granularity == "byte":
            self._busy.add(event.thread)
            return
        store = _Store(self.number, event, self._units(event), bool(self.expected(event)))
        for unit in store.left:
            self._dirty.setdefault(unit, []).append(store)
        if event.op:
            self._of_op[event.op].append(store)

    def _nt(self, event: Event) -> None:
        """Its own bytes (page: pages) become durable: what lies below them in a unit needs no flush there."""
        self._busy.add(event.thread)
        first, end = event.place, event.place + _length(event)
        for unit in self._dirty_in(self._units(event)):
            for store in self._dirty[unit]:
                place, start = store.event.place, unit * self.unit
                last = min(place + len(store.event.data), start + self.unit)
                if (first <= max(place, start) and last <= end) or self.granularity == "page":
                    store.left.discard(unit)
            self._keep_open(unit)

    def _flush(self, event: Event) -> None:
        units = self._units(event)
        mine, dirty = self._queued[event.thread], self._dirty_in(units)
        for unit in dirty:
            for store in self._dirty[unit]:
                store.left.discard(unit)
                if not store.left and store.returned and not store.expected:
                    self._count(LATE, store.event.site, len(self._units(store.event)), store.number)
            del self._dirty[unit]
        # A line that another thread has queued is not dirty, but this thread can't wait for it otherwise.
        others = {unit for thread, queued in self._queued.items() if thread != event.thread
                  for unit in queued if unit in units and unit not in mine}
        useful = others.union(dirty)
        if useful and self.granularity == "cache_line":
            mine |= useful
            self._busy.add(event.thread)
        if not useful:
            self._count(USELESS_FLUSH, event.site, len(units), self.number)
        elif len(useful) < len(units):
            self._count(CLEAN_LINES, event.site, len(units) - len(useful), self.number)

    def _dirty_in(self, units: range) -> list[int]:
        if len(units) > len(self._dirty):
            return [unit for unit in self._dirty if unit in units]
        return [unit for unit in units if unit in self._dirty]

    def _keep_open(self, unit: int) -> None:
        stores = [store for store in self._dirty[unit] if unit in store.left]
        if stores:
            self._dirty[unit] = stores
        else:
            del self._dirty[unit]

    def _count(self, kind: str, site: int, units: int, number: int) -> None:
        _add(self._rows, (kind, site), units, number)


def _length(event: Event) -> int:
    return event.length if event.kind in (FLUSH, NT_FILL) else len(event.data)


def _add(rows: dict, key: tuple[str, int], units: int, number: int) -> None:
    row = rows.setdefault(key, [0, 0, number])
    row[0] += 1
    row[1] += units
    row[2] = min(row[2], number)
