# SPDX-License-Identifier: MIT
"""A brute-force machine with caches and buffers: every legal schedule of write-backs of a tiny log.

It knows nothing of prefixes and histories of atoms as daxfs/testing does: it stores word by word in every
order, writes lines back at every moment, whole or torn, and throws away runs that break a drain. A byte on
the media carries the number of the store that it came from; an older one never replaces a newer one.
"""

from itertools import combinations, pairwise

from daxfs.testing.log import DRAIN, FLUSH, NT_STORE, SCAN, STORE


def subsets(items):
    items = list(items)
    return [set(c) for n in range(len(items) + 1) for c in combinations(items, n)]


class Machine:
    """``contents()``: every image (bytes) that the media may hold after *events*.

    State: (cells, done, gone). cells: for each segment of the media the number of the store that is there, -1
    at the start; segments are what no store and no atom divides. done: the stored words (number, word),
    visible in the caches or waiting in a buffer. gone: the units whose last, torn write-back has begun.
    """

    def __init__(self, image, events, granularity, torn, unit, atom):
        self.image, self.events, self.granularity = image, events, granularity
        self.torn = torn and granularity != "byte"
        self.unit = len(image) if granularity == "byte" else unit
        self.atom = atom
        stores = [e for e in events if e.kind in (STORE, NT_STORE, SCAN)]
        ends = {e.place for e in stores} | {e.place + len(e.data) for e in stores}
        cuts = sorted(ends | set(range(0, len(image) + 1, atom)))
        self.segments = list(pairwise(cuts))
        self._cells = {}

    def words(self, number):
        event = self.events[number]
        first, end = event.place // self.atom, (event.place + len(event.data) - 1) // self.atom
        return [(number, word) for word in range(first, end + 1)]

    def cells(self, part):
        """The segments of one stored word."""
        if part not in self._cells:
            number, word = part
            event = self.events[number]
            first, end = max(event.place, word * self.atom), event.place + len(event.data)
            self._cells[part] = [i for i, (a, b) in enumerate(self.segments)
                                 if first <= a and b <= min(end, (word + 1) * self.atom)]
        return self._cells[part]

    def ordered(self, number):
        kind = self.events[number].kind
        return kind == STORE or (kind == NT_STORE and self.granularity == "page")

    def put(self, cells, parts):
        cells = list(cells)
        for part in parts:
            for at in self.cells(part):
                cells[at] = max(cells[at], part[0])
        return tuple(cells)

    def unit_of(self, part):
        return part[1] * self.atom // self.unit

    def moves(self, state):
        """Every state that one write-back, or the arrival of one unordered word, makes of this one."""
        cells, done, gone = state
        for part in done:
            if not self.ordered(part[0]):
                yield self.put(cells, [part]), done, gone
        for unit in range(len(self.image) // self.unit):
            held = [p for p in done if self.ordered(p[0]) and self.unit_of(p) == unit]
            if not held or unit in gone:
                continue
            yield self.put(cells, held), done, gone
            if self.torn:
                for words in subsets({word for _, word in held}):
                    yield self.put(cells, [p for p in held if p[1] in words]), done, gone | {unit}

    def settle(self, states):
        """All that can happen without the program."""
        found, todo = set(states), list(states)
        while todo:
            for state in self.moves(todo.pop()):
                if state not in found:
                    found.add(state)
                    todo.append(state)
        return found

    def store(self, states, number):
        """(after, at any time): the words of one store become visible in any order, with anything between."""
        words, every = self.words(number), set(states)
        for _ in words:
            states = self.settle({(cells, done | {word}, gone) for cells, done, gone in states
                                  for word in words if word not in done})
            every |= states
        return states, every

    def due(self, at):
        """The words that event *at*, a drain (page: a flush, or what follows an nt store), promises."""
        event, due = self.events[at], []
        for n, earlier in enumerate(self.events[:at]):
            if earlier.kind not in (STORE, NT_STORE, SCAN):
                continue
            if self.granularity == "page":
                flushes = [e for e in self.events[n : at + 1] if e.kind == FLUSH]
                flushes += [e for e in self.events[n:at] if e.kind == NT_STORE]
                due += [p for p in self.words(n) if any(self.covers(e, p) for e in flushes)]
            elif event.kind != DRAIN:
                continue
            elif earlier.kind == NT_STORE or self.granularity == "byte":
                later = [e for e in self.events[n:at] if e.kind == STORE and e.thread == event.thread]
                if earlier.thread == event.thread or (earlier.kind == STORE and later):
                    due += self.words(n)
            else:
                flushes = [e for e in self.events[n:at] if e.kind == FLUSH and e.thread == event.thread]
                due += [p for p in self.words(n) if any(self.covers(e, p) for e in flushes)]
        return due

    def covers(self, flush, part):
        length = flush.length or len(flush.data)
        first, end = flush.place // self.unit, (flush.place + length - 1) // self.unit
        return length > 0 and first <= self.unit_of(part) <= end

    def contents(self):
        states = crash = {((-1,) * len(self.segments), frozenset(), frozenset())}
        for number, event in enumerate(self.events):
            due = self.due(number)
            states = crash = {s for s in states if all(s[0][i] >= p[0] for p in due for i in self.cells(p))}
            if event.kind in (STORE, NT_STORE, SCAN):
                states, crash = self.store(states, number)
        return {self.bytes_of(cells) for cells, _, _ in crash}

    def bytes_of(self, cells):
        image = bytearray(self.image)
        for n, (a, b) in zip(cells, self.segments, strict=True):
            if n >= 0:
                at = self.events[n].place
                image[a:b] = self.events[n].data[a - at : b - at]
        return bytes(image)
