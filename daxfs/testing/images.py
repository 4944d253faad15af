# SPDX-License-Identifier: MIT
"""Crash images: the choices that are left about what is in flight, all of them or a sample.

Works on a snapshot (Flight) that media.py makes. Contents are little-endian integers, so that a store is two
of them (mask, bits) and putting it over others is one expression. Nothing here knows flushes or threads:
what is sure is in the base of a group, and what is not is free within the two rules of Group.
"""

from functools import cached_property, lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

from daxfs.testing.log import NAMES, NT_FILL, SCAN, STORE, Event


class Part(NamedTuple):
    """The part of one store that lies in a group."""

    number: int  # of its event in the log
    ordered: bool
    mask: int
    bits: int
    event: Event


class Group:
    """Units whose contents depend on each other: one line or page, or (byte) all that have ordinary stores.

    Ordered parts are there up to one point, of the one behind it any atoms; with *torn*, each atom is from
    one of two such points. Other parts: any of their atoms. Later parts win.
    """

    def __init__(self, units: list[int], base: int, parts: list[Part], atom: int):
        self.units, self.base, self.atom = units, base, atom
        self.parts = [part for part in parts if part.mask]
        self.order = [part.number for part in self.parts if part.ordered]
        self.full = base
        for part in self.parts:
            self.full = self.full & ~part.mask | part.bits

    @cached_property
    def atoms(self) -> list[int]:
        """Masks of the atoms that anything in flight touches."""
        touched, size = 0, 8 * self.atom
        for part in self.parts:
            touched |= part.mask
        word, found = (1 << size) - 1, []
        for i in range((touched.bit_length() + size - 1) // size):
            if touched >> size * i & word:
                found.append(word << size * i)
        return found

    def contents(self, limit: int, torn: bool) -> list[int] | None:
        """All different contents, the base first; None if they, or the ordered parts, exceed *limit*."""
        n, atoms = len(self.order), self.atoms
        if n > limit:
            return None
        steps = [[self._atom_values(atom, k) for atom in atoms] for k in range(n + 1)]
        # At point k: all of the first k ordered parts, and any atoms of the next.
        steps = [[here | then for here, then in zip(steps[k], steps[min(k + 1, n)], strict=True)]
                 for k in range(n + 1)]
        pairs = [(p, q) for p in range(n + 1) for q in range(n, p - 1, -1)] if torn else [
            (k, k) for k in range(n + 1)]
        rest = self.base
        for atom in atoms:
            rest &= ~atom
        found, widest = {self.base: None}, None
        for p, q in pairs:
            options = [a | b for a, b in zip(steps[p], steps[q], strict=True)]
            if prod(map(len, options)) > limit:
                return None
            if widest and all(a <= b for a, b in zip(options, widest, strict=True)):
                continue
            widest = widest or options
            for values in product(*map(sorted, options)):
                found[rest + sum(values)] = None
                if len(found) > limit:
                    return None
        return list(found)

    def _atom_values(self, atom: int, k: int) -> set[int]:
        """What an atom may hold with the first *k* ordered parts there and the others not."""
        values, there = {self.base & atom}, set(self.order[:k])
        for part in self.parts:
            mask, bits = part.mask & atom, part.bits & atom
            if not mask or (part.ordered and part.number not in there):
                continue
            after = {value & ~mask | bits for value in values}
            values = after if part.ordered else values | after
        return values

    def random(self, rng, torn: bool) -> int:
        """One possible content; whole stores and untorn points are as likely as pieces of them."""
        n, atoms = len(self.order), self.atoms
        p = rng.randint(0, n)
        q = rng.randint(p, n) if torn else p
        at_p, at_q = _some(rng, atoms), _some(rng, atoms)
        x = y = self.base
        index = 0
        for part in self.parts:
            if part.ordered:
                there = -1 if index < p else at_p if index == p else 0
                later = -1 if index < q else at_q if index == q else 0
                index += 1
            else:
                there = later = _some(rng, atoms)
            x = x & ~(part.mask & there) | part.bits & there
            y = y & ~(part.mask & later) | part.bits & later
        mix = _some(rng, atoms) if torn else -1
        return x & mix | y & ~mix

    def runs(self, content: int, unit: int):
        """Yield (place, bytes) for each unit: from the first to the last byte that is not as in the base."""
        for i, number in enumerate(self.units):
            now = content >> 8 * unit * i & _ones(unit)
            differ = now ^ self.base >> 8 * unit * i & _ones(unit)
            if differ:
                first = ((differ & -differ).bit_length() - 1) // 8
                end = (differ.bit_length() + 7) // 8
                now = now >> 8 * first & _ones(end - first)
                yield number * unit + first, now.to_bytes(end - first, "little")

    def place(self, bit: int, unit: int) -> int:
        """The byte of the region that a bit of this group's integers belongs to."""
        at = bit // 8
        return self.units[at // unit] * unit + at % unit


@lru_cache(maxsize=8192)
def _ones(nbytes: int) -> int:
    return (1 << 8 * nbytes) - 1


def _some(rng, atoms: list[int]) -> int:
    """A mask: of nothing, of everything, or of any atoms."""
    kind = rng.randrange(3)
    if kind < 2:
        return -kind
    picked = rng.getrandbits(len(atoms)) if atoms else 0
    return sum(atom for i, atom in enumerate(atoms) if picked >> i & 1)


class Flight:
    """What is in flight at one moment: the groups, and what describe wants to know of them."""

    def __init__(self, groups: list[Group], unit: int, torn: bool, flushed: list[dict[int, int]] | None,
                 sites: dict[int, str]):
        self.groups, self.unit, self.torn = groups, unit, torn
        self.flushed, self.sites = flushed, sites
        # flushed: for each thread {unit: number of its flush}; None where a flush makes no difference

    def images(self, limit: int, rng):
        """Iterate over different images, see Media.images."""
        options, count = [], 1
        for group in self.groups:
            contents = group.contents(limit // count, self.torn)
            if contents is None:
                return (Image(self, chosen) for chosen in self._sample(limit, rng))
            options.append(contents)
            count *= len(contents)
        return (Image(self, chosen) for chosen in product(*options))

    def _sample(self, limit: int, rng):
        """Yield *limit* different choices, or fewer if new ones don't turn up any more."""
        seen, idle = set(), 0
        for chosen in self._candidates(limit, rng):
            if chosen in seen:
                idle += 1
                if idle > 100 + 4 * limit:
                    return
                continue
            seen.add(chosen)
            yield chosen
            if len(seen) == limit:
                return

    def _candidates(self, limit: int, rng):
        nothing = tuple(group.base for group in self.groups)
        everything = tuple(group.full for group in self.groups)
        yield nothing
        yield everything
        alone = [(i, early) for i in range(len(nothing)) if nothing[i] != everything[i]
                 for early in (False, True)]
        rng.shuffle(alone)
        if len(alone) > limit - 2:  # leave room for the others
            alone = alone[: limit * 3 // 4]
        for i, early in alone:
            most, one = (nothing, everything) if early else (everything, nothing)
            yield most[:i] + one[i : i + 1] + most[i + 1 :]
        while True:
            density, mixed = rng.random(), rng.choice((0.0, 0.2, 1.0))
            yield tuple(
                group.random(rng, self.torn) if rng.random() < mixed
                else group.full if rng.random() < density else group.base for group in self.groups
            )  # fmt: skip


class Image:
    """One crash image: ``delta``, a list of (place, bytes), goes over what is sure."""

    def __init__(self, flight: Flight, chosen: tuple[int, ...]):
        self.flight, self.chosen = flight, chosen

    @property
    def delta(self) -> list[tuple[int, bytes]]:
        """What goes over ``Media.sure``: in each unit from the first byte that differs to the last."""
        runs = []
        for group, content in zip(self.flight.groups, self.chosen, strict=True):
            if content != group.base:
                runs.extend(group.runs(content, self.flight.unit))
        return runs

    def states(self) -> dict[int, tuple[Event, dict[str, list[tuple[int, int]]]]]:
        """For each store that was in flight, by its number in the log: the event, verdict to byte ranges."""
        found: dict[int, tuple[Event, dict[str, list]]] = {}
        for group, content in zip(self.flight.groups, self.chosen, strict=True):
            for part, verdict, atom in _verdicts(group, content):
                bits = part.mask & atom
                first = group.place((bits & -bits).bit_length() - 1, self.flight.unit)
                end = group.place(bits.bit_length() - 1, self.flight.unit) + 1
                states = found.setdefault(part.number, (part.event, {}))[1]
                states.setdefault(verdict, []).append((first, end))
        return dict(sorted(found.items()))

    def describe(self, sites: dict[int, str] | None = None) -> str:
        """One line for each store that was in flight, in the log's order: there, missing, or which part."""
        names = self.flight.sites if sites is None else sites
        rows = [self._row(number, *state, names) for number, state in self.states().items()]
        return "\n".join(rows) if rows else "nothing was in flight"

    def _row(self, number: int, event: Event, states: dict[str, list], sites: dict[int, str]) -> str:
        unit = self.flight.unit
        if len(states) == 1:
            (state,) = states
        else:
            units = [{place // unit for place, _ in runs} for runs in states.values()]
            state = "torn" if len(set.union(*units)) < sum(map(len, units)) else "partly"
        length = event.length if event.kind == NT_FILL else len(event.data)
        text = f"{state:9} #{number} {NAMES[event.kind]} of {length} bytes at {event.place:#x}"
        text += self._since(number, event)
        if len(states) > 1:
            parts = (f"{state} {_ranges(runs)}" for state, runs in sorted(states.items(), reverse=True))
            text += ": " + "; ".join(parts)
        return text + (f"\n          {sites[event.site]}" if event.site in sites else "")

    def _since(self, number: int, event: Event) -> str:
        """Whether a flush came after an ordinary store: the usual question about one that is missing."""
        if event.kind not in (STORE, SCAN) or self.flight.flushed is None:
            return ""
        last = event.place + len(event.data) - 1
        units = range(event.place // self.flight.unit, last // self.flight.unit + 1)
        flushed = sum(any(d.get(unit, -1) > number for d in self.flight.flushed) for unit in units)
        return ", flushed" if flushed == len(units) else ", partly flushed" if flushed else ", not flushed"


def _verdicts(group: Group, content: int):
    """Yield (part, verdict, atom): is what the part stored in this atom there?

    "overtaken": a later store to the same bytes is there.
    """
    for atom in group.atoms:
        open_bits = atom
        for part in reversed(group.parts):
            mask = part.mask & atom
            if not mask:
                continue
            visible = mask & open_bits
            if not visible:
                yield part, "overtaken", atom
            elif (content ^ part.bits) & visible:
                yield part, "missing", atom
            else:
                yield part, "there", atom
                open_bits &= ~mask


def _ranges(runs: list[tuple[int, int]]) -> str:
    """Neighbours joined: "0x40-0x5f 0x70-0x77"."""
    joined: list[list[int]] = []
    for first, end in sorted(runs):
        if joined and joined[-1][1] == first:
            joined[-1][1] = end
        else:
            joined.append([first, end])
    return " ".join(f"{first:#x}-{end - 1:#x}" for first, end in joined)
