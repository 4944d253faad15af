# SPDX-License-Identifier: MIT
"""The files of own ranges under a log of events: which there may be after a crash, how long, and with what.

What stores and flushes do to a range is the persistence model's business (media.py): `Ranges` gives each file
a piece of room behind the region in the Media's image, and `apply` hands events on with the place there.
What is done to a file through the file system below (RANGE events) is durable once it has returned where that
loses nothing (*syncs* False: tmpfs), else once a sync says so: of the file for its length and its zeros, of
the folder for its names. Until then each name may be there or not, each length may be any since the last
sync, and any of the zeros may be there. That is more than an ordered journal below allows, and never less.

Storage is not looked at: it changes no byte. Limits: a file is at most *room* bytes; not thread-safe.
"""

from typing import NamedTuple

import numpy as np

from daxfs.errors import FormatError
from daxfs.testing.log import BEGIN, DRAIN, END, OWN, RANGE, SITE, Event
from daxfs.testing.media import Media

_KEY = 1 << 32  # keys for Media.zero: no thread's number
_ELSEWHERE = frozenset((DRAIN, BEGIN, END, SITE))


class Shape(NamedTuple):
    """One file in a crash image: its bytes begin at *at* of the media's image."""

    at: int
    size: int


class _File:
    """sizes: those that it may have, the last is the program's; there: the same for its name."""

    def __init__(self, at: int):
        self.at = at
        self.sizes, self.there = [0], [False, True]


class Ranges:
    """See above. *media*: of the region alone, or as another Ranges' copy left it."""

    def __init__(self, media: Media, syncs: bool = False, room: int = 1 << 18):
        self.media, self.syncs, self.room = media, syncs, room
        self.files: dict[str, _File] = {}
        self.places: dict[str, tuple[int, int]] = {}  # name: place of byte 0 in the region, bytes
        self.unused: list[int] = []

    def apply(self, event: Event) -> Event:
        """The next event: as the media's model knows it, applied there. FormatError for what can't be."""
        if event.kind == RANGE:
            self._range(event.data.decode("ascii", "replace"))
        elif event.place >= OWN and event.kind not in _ELSEWHERE:
            event = event._replace(place=self._translate(event))
        self.media.apply(event)
        return event

    def _translate(self, event: Event) -> int:
        for name, (first, length) in self.places.items():
            if first <= event.place and event.place + event.length <= first + length:
                at = event.place - first
                if at + event.length > self.files[name].sizes[-1]:
                    raise FormatError(f"range {name}: {event.length} bytes at {at} are behind its end")
                return self.files[name].at + at
        raise FormatError(f"no range has the bytes {event.place:#x}+{event.length}")

    def _range(self, text: str) -> None:
        what, name, *numbers = (*text.split(), "", "")[: max(len(text.split()), 2)]
        do = {"create": self._create, "unlink": self._unlink, "size": self._size, "zero": self._zero,
              "place": self._place, "sync": self._sync}.get(what)  # fmt: skip
        if not name and what != "sync":
            do = None
        try:
            do(name, *map(int, numbers))
        except (KeyError, TypeError, ValueError):
            raise FormatError(f"recording: a range can't be told: {text}") from None

    def _create(self, name: str) -> None:
        if name in self.files:  # it was removed, and that is not synced yet: nobody asks for it any more
            self._gone(name)
        at = self.unused.pop() if self.unused else self.media.sure.nbytes
        if at == self.media.sure.nbytes:
            self.media.extend(self.room)
        self.files[name] = _File(at)
        self._names_done()

    def _unlink(self, name: str) -> None:
        self.files[name].there = [True, False]
        self._names_done()

    def _names_done(self) -> None:
        if not self.syncs:
            self._sync("")

    def _gone(self, name: str) -> None:
        file = self.files.pop(name)
        self.places.pop(name, None)
        self.media.zero(file.at, self.room, _KEY + file.at)
        self.media.zeroed(_KEY + file.at)
        self.unused.append(file.at)

    def _size(self, name: str, size: int, _=0) -> None:
        file = self.files[name]
        if size > self.room:
            raise FormatError(f"range {name}: {size} bytes, more than {self.room}")
        self.media.zero(file.at + size, file.sizes[-1] - size, _KEY + file.at)
        if size != file.sizes[-1]:
            file.sizes.append(size)
        self._file_done(name)

    def _zero(self, name: str, pos: int, length: int) -> None:
        file = self.files[name]
        length = min(length, file.sizes[-1] - pos)
        self.media.zero(file.at + pos, length, _KEY + file.at)
        self._file_done(name)

    def _file_done(self, name: str) -> None:
        if not self.syncs:
            self._sync(name)

    def _place(self, name: str, place: int, length: int) -> None:
        self.places[name] = place, length
        for other, (first, count) in list(self.places.items()):
            if other != name and first < place + length and place < first + count:
                del self.places[other]  # it was closed, and its addresses are another's now

    def _sync(self, name: str, *_) -> None:
        """Of a file; without a name, of the folder."""
        if name:
            file = self.files[name]
            file.sizes = file.sizes[-1:]
            self.media.zeroed(_KEY + file.at)
            return
        for other, file in list(self.files.items()):
            file.there = file.there[-1:]
            if not file.there[0]:
                self._gone(other)

    # -- what a crash may leave ------------------------------------------------------------------

    def shapes(self, rng, limit: int = 4) -> list[dict[str, Shape]]:
        """{name: Shape} of the files that there may be: as if nothing that is open had happened, as if all
        had, and up to *limit* any; one where all is decided.
        """
        first = [(name, file, file.there[0], file.sizes[0]) for name, file in self.files.items()]
        last = [(name, file, file.there[-1], file.sizes[-1]) for name, file in self.files.items()]
        found = [first]
        if any(len(file.there) > 1 or len(file.sizes) > 1 for file in self.files.values()):
            found.append(last)
            found += [[(name, file, rng.choice(file.there), rng.choice(file.sizes))
                       for name, file in self.files.items()] for _ in range(limit - 2)]
        return [{name: Shape(file.at, size) for name, file, there, size in one if there} for one in found]

    def images(self, limit: int, rng):
        """(image of the media, {name: Shape}) of this moment, each of both at least once."""
        images, shapes = list(self.media.images(limit, rng)), self.shapes(rng)
        for number in range(max(len(images), len(shapes))):
            yield images[number % len(images)], shapes[number % len(shapes)]

    def crashed(self, media: Media, shape: dict[str, Shape]) -> "Ranges":
        """The Ranges after a crash that left *shape*, on *media* with the image that goes with it."""
        out = Ranges(media, self.syncs, self.room)
        taken = {one.at for one in shape.values()}
        for file in self.files.values():
            if file.at not in taken:
                out.unused.append(file.at)
                _clear(media, file.at, file.at + self.room)
        out.unused += self.unused
        for name, one in shape.items():
            out.files[name] = file = _File(one.at)
            file.sizes, file.there = [one.size], [True]
            _clear(media, one.at + one.size, one.at + self.room)
        return out


def _clear(media: Media, first: int, end: int) -> None:
    """Zeros, where nothing is in flight."""
    dirty = np.flatnonzero(media.sure[first:end])
    media.changed.update(((dirty + first) // media.unit).tolist())
    media.sure[first:end] = 0


def load(media: Media, events, syncs: bool, room: int) -> Ranges:
    """The Ranges of a recording that begins: *events* are `Recording.ranges`."""
    out = Ranges(media, False, room)
    for event in events:
        out.apply(event)
    out.syncs = syncs
    return out


def bytes_of(shape: Shape, base, deltas) -> bytearray:
    """What a file of *shape* holds: *base*, an image, with *deltas* put over it in their order."""
    out = bytearray(shape.size)
    have = base[shape.at : shape.at + shape.size]
    out[: len(have)] = memoryview(have)
    for delta in deltas:
        for place, data in delta:
            first, end = max(place, shape.at), min(place + len(data), shape.at + shape.size)
            if first < end:
                out[first - shape.at : end - shape.at] = data[first - place : end - place]
    return out
