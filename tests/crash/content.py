# SPDX-License-Identifier: MIT
"""The bytes of one file, and which older ones a crash may still show (docs/durability.md).

A `Content` never changes: each operation returns a new one, so that a model is cheap
to copy. Content is compared in aligned 8-byte words: each word is the one of now, or
one of its versions since it was last durable. Knows nothing of daxfs but its page size.
"""

import functools
from typing import NamedTuple

import numpy as np

PAGE = 4096
_NONE = np.zeros(0, np.uint8)
AROUND = 64  # pages of an aligned piece (docs/durability.md)
SLOTS_INLINE, SLOTS_BLOCK = 6, 252  # extents in the inode, and in one extent block


@functools.lru_cache(4096)
def noise(length: int, seed: int) -> bytes:
    """*length* bytes without a zero, so that a hole is told from data, and one seed from another."""
    return np.random.default_rng(seed).integers(1, 256, length, np.uint8).tobytes()


def padded(raw, size: int) -> np.ndarray:
    """The first *size* bytes of *raw*, zeros behind, up to whole words: a new uint8 array."""
    out = np.zeros((size + 7) & ~7, np.uint8)
    n = min(size, len(raw))
    out[:n] = raw[:n]
    return out


def page_range(pos: int, end: int) -> range:
    """The pages that the bytes [pos, end) touch."""
    return range(pos // PAGE, -(-end // PAGE))


class Stored(NamedTuple):
    """What an operation in flight may have stored in place before it is decided: byte ranges of one file.

    *record*: a record decides it. *ordered*: which comes after them, so that with it they are all there.
    The zeros at the edges of a hole are an overwrite, and share the drain of the record: not ordered.
    """

    ranges: tuple
    record: bool
    ordered: bool


class Content:
    """Bytes, size and pages of a regular file.

    ``data``: uint8, whole words, zeros behind ``size``. ``older``: ((first byte, uint8 array), ...),
    word-aligned, what stood there before and may come back. ``written``, ``unwritten``: pages.
    ``peak``: most pages since the file was empty, a bound for its extents.
    """

    __slots__ = ("data", "older", "peak", "size", "unwritten", "written")

    def __init__(self, size=0, data=_NONE, older=(), written=frozenset(), unwritten=frozenset(), peak=0):
        self.size, self.data, self.older = size, data, older
        self.written, self.unwritten = written, unwritten
        self.peak = max(peak, len(written) + len(unwritten))

    def _with(self, **changes) -> "Content":
        fields = {name: getattr(self, name) for name in self.__slots__}
        return Content(**(fields | changes))

    @property
    def pages(self) -> int:
        return len(self.written) + len(self.unwritten)

    @property
    def extent_blocks(self) -> int:
        """The most extent blocks that it can have; none up to six pages."""
        return -(-max(self.peak - SLOTS_INLINE, 0) // SLOTS_BLOCK)

    def bytes(self, pos: int, end: int) -> bytes:
        return self.data[pos : min(end, self.size)].tobytes()

    # -- changes ---------------------------------------------------------------------------

    def durable(self) -> "Content":
        """Nothing older can come back."""
        return self._with(older=()) if self.older else self

    def durable_in(self, first: int, last: int) -> "Content":
        """Nothing older can come back in the bytes [first, last), whole words."""
        older = []
        for at, words in self.older:
            end = at + len(words)
            if at < min(first, end):
                older.append((at, words[: min(first, end) - at]))
            if end > max(last, at):
                older.append((max(last, at), words[max(last, at) - at :]))
        return self._with(older=tuple(older))

    def whole(self) -> "Content":
        """Every page up to the end may be stored in: as in a range of its own."""
        return self._with(written=frozenset(page_range(0, self.size)), unwritten=frozenset())

    def _in_place(self, pos: int, end: int) -> tuple:
        """The byte ranges of [pos, end) that stand in written pages inside the file."""
        out = []
        end = min(end, self.size)
        for page in page_range(pos, end) if pos < end else ():
            if page in self.written:
                first, last = max(pos, page * PAGE), min(end, (page + 1) * PAGE)
                if out and out[-1][1] == first:
                    out[-1] = (out[-1][0], last)
                else:
                    out.append((first, last))
        return tuple(out)

    def _around(self, pages: frozenset, size: int) -> set:
        """Unwritten pages beside *pages* that a write into these makes written zeros, in a file of *size*."""
        out, first, last = set(), min(pages), max(pages) + 1
        if first in self.unwritten:
            while first % AROUND and first - 1 in self.unwritten:
                first -= 1
                out.add(first)
        if last - 1 in self.unwritten:
            while last % AROUND and last in self.unwritten and last * PAGE < size:
                out.add(last)
                last += 1
        return out

    def _resized(self, size: int) -> tuple:
        """(data, older) cut or filled with zeros to *size*; zeros behind the old end are durable."""
        data = padded(self.data, min(size, self.size))
        data = padded(data, size)
        older = [(at, padded(raw, min(len(raw), size - at))) for at, raw in self.older if at < size]
        return data, older

    def _put(self, size: int, pos: int, raw) -> tuple:
        """(data, older) with *raw* at *pos* durably, in what may come back too."""
        data, older = self._resized(size)
        data[pos : pos + len(raw)] = raw
        for at, words in older:
            first, last = max(pos, at), min(pos + len(raw), at + len(words))
            if first < last:
                words[first - at : last - at] = raw[first - pos : last - pos]
        return data, older

    def write(self, pos: int, raw: bytes, lasting: bool) -> tuple["Content", Stored]:
        """Write *raw*. *lasting*: what went over written blocks is durable at return, too."""
        raw = np.frombuffer(raw, np.uint8)
        end = pos + len(raw)
        size = max(self.size, end)
        ranges = self._in_place(pos, end)
        data, older = self._put(size, pos, raw)
        if not lasting:
            # All versions of before are possible yet, where the write went over what was there.
            back = [(0, data.copy()), *((at, words.copy()) for at, words in older)]
            before = [(0, self.data), *self.older]
            older = []
            for (at, words), (_, was) in zip(back, before, strict=True):
                for first, last in ranges:
                    low, high = max(first, at), min(last, at + len(words))
                    if low < high:
                        words[low - at : high - at] = was[low - at : high - at]
                older.append((at, words))
            older = _cut(older[:1], ranges) + older[1:]
        pages = frozenset(page_range(pos, end))
        record = end > self.size or not pages <= self.written
        pages |= self._around(pages, size)
        out = self._with(size=size, data=data, older=tuple(older), written=self.written | pages,
                         unwritten=self.unwritten - pages)  # fmt: skip
        return out, Stored(ranges, record, record and lasting)

    def may_grow_in_place(self, pos: int, end: int, opened: bool) -> bool:
        """True for an append into written pages; an open file may have such behind its end (a chunk)."""
        pages = frozenset(page_range(pos, end))
        return pos <= self.size < end and (opened or pages <= self.written)

    def truncate(self, size: int) -> "Content":
        """ftruncate(2). What fallocate put behind the end stays where the file grows, and goes where not."""
        data, older = self._resized(size)
        if size > self.size:
            return self._with(size=size, data=data, older=tuple(older))
        keep = frozenset(range(-(-size // PAGE)))
        if size > self.size:  # a file that grows keeps what fallocate put behind its end
            keep = self.written | self.unwritten
        peak = self.peak if size else 0
        return Content(size, data, tuple(older), self.written & keep, self.unwritten & keep, peak)

    def fallocate(self, mode: int, pos: int, length: int) -> tuple["Content", Stored]:
        """fallocate(2): 0, KEEP_SIZE 1, PUNCH_HOLE 3, ZERO_RANGE 0x10 and 0x11."""
        end = pos + length
        size = self.size if mode & 1 else max(self.size, end)
        pages = frozenset(page_range(pos, end))
        if not mode & ~1:
            data, older = self._resized(size)
            fresh = pages - self.written
            return self._with(size=size, data=data, older=tuple(older),
                              unwritten=self.unwritten | fresh), Stored((), True, True)  # fmt: skip
        whole = frozenset(range(-(-pos // PAGE), end // PAGE))
        last = min(end, size)
        zeros = np.zeros(max(last - pos, 0), np.uint8)
        data, older = self._put(size, pos, zeros)
        edges = tuple((a, b) for a, b in self._in_place(pos, end) for a, b in _outside(a, b, whole))
        written, unwritten = self.written - whole, self.unwritten - whole
        if mode & 0x10:
            unwritten = unwritten | whole | (pages - written)
        return self._with(size=size, data=data, older=tuple(older), written=written,
                          unwritten=unwritten), Stored(edges, True, False)  # fmt: skip

    # -- comparing -------------------------------------------------------------------------

    def versions(self, size: int):
        """[(first byte, uint8 array)]: now first, then what may come back; cut to *size* bytes of file."""
        if size >= self.size:
            return [(0, self.data), *self.older]
        every = [(0, self.data), *self.older]
        return [(at, padded(raw, min(len(raw), size - at))) for at, raw in every if at < size]


def _outside(first: int, last: int, whole: frozenset):
    """The parts of [first, last) that lie in no page of *whole*."""
    for page in page_range(first, last):
        if page not in whole:
            yield max(first, page * PAGE), min(last, (page + 1) * PAGE)


def _cut(versions, ranges) -> list:
    """Only the words of *versions* that *ranges* touch."""
    out = []
    for at, raw in versions:
        for first, last in ranges:
            low, high = max(first & ~7, at), min((last + 7) & ~7, at + len(raw))
            if low < high:
                out.append((low, raw[low - at : high - at].copy()))
    return out


def strange_words(found: np.ndarray, versions) -> np.ndarray:
    """Numbers of the words of *found* (padded) that are in none of *versions*."""
    fine = np.zeros(len(found) // 8, bool)
    words = found.view(np.uint64)
    for at, raw in versions:
        first, n = at // 8, min(len(raw) // 8, len(words) - at // 8)
        if n > 0:
            fine[first : first + n] |= words[first : first + n] == raw[: n * 8].view(np.uint64)
    return np.flatnonzero(~fine)


def mixed(found: np.ndarray, size: int, one: Content, other: Content | None, ranges) -> np.ndarray:
    """Words of *found* that are none of *one*, nor of *one* with bytes of *other* in *ranges*."""
    if len(found) == len(one.data) and np.array_equal(found, one.data):
        return ()
    versions = one.versions(size)
    if other is not None and ranges:
        for first, last in ranges:
            versions = versions + list(_overlaid(one, other, first, last))
    return strange_words(found, versions)


def _overlaid(one: Content, other: Content, first: int, last: int):
    """Yield the words of *one* around [first, last), with each version that *other* has of these bytes.

    What stands beside the range in its first and last word is *one*'s, or what that may show instead.
    """
    low, high = first & ~7, (last + 7) & ~7
    for start, words in one.versions(max(high, one.size)):
        if not start <= low or len(words) < high - start:
            continue
        for at, raw in other.versions(max(high, other.size)):
            out = words[low - start : high - start].copy()
            a, b = max(first, at), min(last, at + len(raw))
            if a < b:
                out[a - low : b - low] = raw[a - at : b - at]
            yield low, out
