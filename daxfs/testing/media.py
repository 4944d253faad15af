# SPDX-License-Identifier: MIT
"""What may stand on the media after a power failure: the persistence model, fed with a log of events.

Units and atoms: cache_line and byte have lines of 64 bytes and words of 8, page has pages of 4096 and
sectors of 512. A store is cut into atoms; the part of a store that lies in one aligned atom reaches the
media as one, whatever its length. That is the model's limit: a CPU that writes less than 8 bytes at once
would do worse. The media never hold something that was not stored, and never an order that goes back.

* cache_line. A line holds its ordinary stores up to some point of the log; the last write-back may be torn:
  each word comes from one of two such points. The words of one store have no order. A flush of thread T
  queues what was stored to the line before; the next drain of T makes that sure. Without, nothing ever is.
  Words of non-temporal stores (nt) arrive in any order; the drain of the thread that stored makes them sure.
* byte (flush on power failure). Ordinary stores arrive in the order of the log, over all lines; a drain of
  their thread makes them, and so all before them, sure. nt as above. A flush does nothing.
* page (page cache over a disk). Pages behave as lines above, but a flush is an msync: sure at once. An nt
  store brings its own msync with it, which ends before the next event. A drain does nothing.

What a client's scan found (SCAN) has no order: each word may be there until its line is flushed and drained.
Later stores win over earlier ones to the same bytes, and what is sure is never undone by an earlier store.
Not thread-safe. An event costs microseconds, and a fraction of one for each line; images what is in flight.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from daxfs.testing.images import Flight, Group, Part
from daxfs.testing.log import DRAIN, FLUSH, IMAGE, NT_FILL, NT_STORE, SCAN, SITE, STORE, Event

SIZES = {"cache_line": (64, 8), "byte": (64, 8), "page": (4096, 512)}  # unit, atom
_STORES = (STORE, NT_STORE, NT_FILL, SCAN)


class Piece(NamedTuple):
    """One store in flight, as one of its units sees it."""

    number: int  # of the event in the log
    rule: int  # STORE: in order; SCAN: in any; both until flush and drain. NT_STORE: in any, until the drain
    event: Event
    data: bytes
    hidden: int = 0  # mask of the unit's bits that something later has made sure


class Media:
    """The media under a log of events: what is surely there, and what else may be.

    *image* is what they held at the start (any buffer, copied; whole units). *torn=False* leaves torn
    write-backs of lines out: then a line's ordinary stores are there up to one point each.
    ``sure``: numpy uint8, what is surely there. ``changed``: numbers of the units of ``sure`` that were
    written since the caller last cleared the set. ``number``: events applied so far.
    """

    def __init__(self, image, granularity: str = "cache_line", torn: bool = True):
        if granularity not in SIZES:
            raise ValueError(f"granularity {granularity!r} is unknown; one of: {', '.join(SIZES)}")
        self.granularity = granularity
        self.unit, self.atom = SIZES[granularity]
        self.torn = torn and granularity != "byte"
        self.sure = np.frombuffer(image, np.uint8).copy()
        if self.sure.nbytes % self.unit:
            raise ValueError(f"an image of {self.sure.nbytes} bytes is not made of units of {self.unit}")
        self.changed: set[int] = set()
        self.sites: dict[int, str] = {}
        self.number = 0
        self._bytes = memoryview(self.sure)
        self._pieces: dict[int, list[Piece]] = {}  # unit -> what is in flight there, in the log's order
        self._nt: dict[int, list[Piece]] = defaultdict(list)  # thread -> its nt stores since its last drain
        self._flushed: dict[int, dict[int, int]] = defaultdict(dict)  # thread -> unit -> number of its flush
        self._last: dict[int, int] = {}  # byte: thread -> number of its last ordinary store
        self._syncing: Event | None = None  # page: the nt store whose msync ends before the next event

    def apply(self, event: Event) -> None:
        """The next event of the log has happened."""
        if self._syncing is not None:
            self._flush(self._syncing)
            self._syncing = None
        kind = event.kind
        if kind in _STORES:
            self._store(event)
        elif kind == FLUSH:
            self._flush(event)
        elif kind == DRAIN:
            self._drain(event.thread)
        elif kind == SITE:
            self.sites[event.site] = bytes(event.data).decode("utf-8", "replace")
        elif kind == IMAGE:
            self._check(event.place, len(event.data))
            self.sure[event.place : event.place + len(event.data)] = np.frombuffer(event.data, np.uint8)
            self.changed.update(self._units(event.place, len(event.data)))
        self.number += 1

    def images(self, limit: int, rng):
        """Iterate over different crash images of this moment, all of them if there are at most *limit*.

        Otherwise *limit* of them: nothing of what is in flight, everything, each unit alone missing, each
        alone present, then random ones, torn ones among them. *rng*: a random.Random. What the iterator
        gives is fixed by this call: it may be used up after more events were applied.
        """
        if limit < 1:
            raise ValueError(f"limit {limit}: at least one image")
        return self._flight().images(limit, rng)

    def extend(self, count: int) -> None:
        """*count* bytes more behind the others, zeros (whole units)."""
        if count % self.unit:
            raise ValueError(f"{count} bytes are not made of units of {self.unit}")
        self.sure = np.concatenate((self.sure, np.zeros(count, np.uint8)))
        self._bytes = memoryview(self.sure)

    def zero(self, place: int, length: int, key: int) -> None:
        """Something else than a store has made these bytes zeros; whether the media have it is open until
        `zeroed` with the same *key*, a number that no thread has.
        """
        if length <= 0:
            return
        self._check(place, length)
        event = Event(NT_FILL, place, length, b"\0", key, 0, 0)
        piece = Piece(self.number, NT_STORE, event, bytes(length))
        self._nt[key].append(piece)
        for unit in self._units(place, length):
            self._pieces.setdefault(unit, []).append(piece)

    def zeroed(self, key: int) -> None:
        """All of *key* is surely there."""
        for piece in self._nt.pop(key, ()):
            self._drain_nt(piece)

    def _units(self, place: int, length: int) -> range:
        return range(place // self.unit, (place + length - 1) // self.unit + 1) if length else range(0)

    def _in_flight(self, place: int, length: int) -> list[int]:
        """The units of these bytes that have something in flight."""
        units, pieces = self._units(place, length), self._pieces
        if len(units) > len(pieces):
            return [unit for unit in pieces if unit in units]
        return [unit for unit in units if unit in pieces]

    def _check(self, place: int, length: int) -> None:
        if place < 0 or place + length > self.sure.nbytes:
            raise ValueError(f"event {self.number}: {length} bytes at {place} are outside the image")

    def _store(self, event: Event) -> None:
        data = bytes(event.data) * (event.length if event.kind == NT_FILL else 1)
        if not data:
            return
        self._check(event.place, len(data))
        rule = NT_STORE if event.kind == NT_FILL else event.kind
        if rule == NT_STORE and self.granularity == "page":
            rule, self._syncing = STORE, event._replace(length=len(data))
        elif rule == SCAN and self.granularity == "byte":
            rule = NT_STORE
        piece = Piece(self.number, rule, event, data)
        if rule == NT_STORE:
            self._nt[event.thread].append(piece)
        elif rule == STORE:
            self._last[event.thread] = self.number
        for unit in self._units(event.place, len(data)):
            if unit in self._pieces:
                self._pieces[unit].append(piece)
            else:
                self._pieces[unit] = [piece]

    def _flush(self, event: Event) -> None:
        if self.granularity == "byte":
            return
        for unit in self._in_flight(event.place, event.length):
            if self.granularity == "page":
                self._settle(unit, None, self.number)
            else:
                self._flushed[event.thread][unit] = self.number

    def _drain(self, thread: int) -> None:
        if self.granularity == "page":
            return
        flushed = self._flushed.pop(thread, {})
        if self.granularity == "byte" and thread in self._last:
            flushed = dict.fromkeys(self._pieces, self._last.pop(thread) + 1)
        for piece in self._nt.pop(thread, ()):
            self._drain_nt(piece)
        for unit, number in flushed.items():
            self._settle(unit, thread, number)

    def _drain_nt(self, piece: Piece) -> None:
        place, units = piece.event.place, self._units(piece.event.place, len(piece.data))
        alone = [piece]
        if all(self._pieces.get(unit) == alone for unit in units):  # the usual case, and many lines
            self.sure[place : place + len(piece.data)] = np.frombuffer(piece.data, np.uint8)
            self.changed.update(units)
            for unit in units:
                del self._pieces[unit]
            return
        for unit in units:
            self._settle(unit, piece.event.thread, 0)

    def _settle(self, unit: int, thread: int | None, before: int) -> None:
        """In one unit, nt stores of *thread* and other stores with a number less than *before* are sure."""
        left: list[Piece] = []
        start = unit * self.unit
        value = was = int.from_bytes(self._bytes[start : start + self.unit], "little")
        for piece in self._pieces.pop(unit, ()):
            sure = piece.event.thread == thread if piece.rule == NT_STORE else piece.number < before
            if not sure:
                left.append(piece)
                continue
            mask, bits = self._cut(unit, piece)
            value = value & ~mask | bits
            left = [p._replace(hidden=p.hidden | mask) for p in left]
        left = [p for p in left if self._cut(unit, p)[0]]
        if left:
            self._pieces[unit] = left
        if value != was:
            self._bytes[start : start + self.unit] = value.to_bytes(self.unit, "little")
            self.changed.add(unit)

    def _cut(self, unit: int, piece: Piece) -> tuple[int, int]:
        """(mask, bits) of a piece in a unit, as little-endian integers of the unit's size."""
        start, place = unit * self.unit, piece.event.place
        first, end = max(start, place), min(start + self.unit, place + len(piece.data))
        bits = int.from_bytes(piece.data[first - place : end - place], "little") << 8 * (first - start)
        mask = ((1 << 8 * (end - first)) - 1) << 8 * (first - start)
        if piece.hidden:
            mask &= ~piece.hidden
        return mask, bits & mask

    def _flight(self) -> Flight:
        """What is in flight now, apart from this object."""
        together: list[int] = []  # byte: the units whose stores have one order among them
        groups = []
        for unit in sorted(self._pieces):
            if self.granularity == "byte" and any(p.rule == STORE for p in self._pieces[unit]):
                together.append(unit)
            else:
                groups.append(self._group([unit]))
        if together:
            groups.append(self._group(together))
        flushed = None
        if self.granularity != "byte":
            flushed = [dict(units) for units in self._flushed.values()]
        return Flight([g for g in groups if g.parts], self.unit, self.torn, flushed, self.sites)

    def _group(self, units: list[int]) -> Group:
        """The units side by side in one integer, with the parts of stores that lie in them."""
        base, parts = 0, {}
        for i, unit in enumerate(units):
            start, shift = unit * self.unit, 8 * self.unit * i
            base |= int.from_bytes(self._bytes[start : start + self.unit], "little") << shift
            for piece in self._pieces[unit]:
                mask, bits = (n << shift for n in self._cut(unit, piece))
                if piece.number in parts:
                    mask |= parts[piece.number].mask
                    bits |= parts[piece.number].bits
                parts[piece.number] = Part(piece.number, piece.rule == STORE, mask, bits, piece.event)
        return Group(units, base, [parts[n] for n in sorted(parts)], self.atom)
