# SPDX-License-Identifier: MIT
"""The run of an inode's extended attributes: its bytes, where each entry stands, and how they change.

`Few` is for up to 2 KiB: a dict, packed anew at each change. `Many` is for more: nothing is packed there but
what changes. Entries stand close together, in any order: a new one, and one that gets another size, goes to
the end, and what stood behind its old place moves up. (To fill that place with others, so that fewer bytes
are journalled, was tried: a fifth slower for one, half the time where all get another size in turn, and
much more code.)

Knows the format of the run; nothing of inodes, pages and transactions. Neither of the two ever changes.
"""

import numpy as np

from .. import layout as L
from ..errors import CorruptError

Key = tuple[int, bytes]  # name space, rest of the name

SPACES = (L.XATTR_USER, L.XATTR_ACL_ACCESS, L.XATTR_ACL_DEFAULT, L.XATTR_TRUSTED, L.XATTR_SECURITY)
FEW = 2048  # bytes of entries
CACHED = 8  # runs that a `Cache` keeps
_HEAD = L.XATTR_CODEC.size
_LINE = 64


def _packed(key: Key, value: bytes) -> bytes:
    return L.XATTR_CODEC.pack(key[0], len(key[1]), 0, len(value)) + key[1] + value


class Few:
    """Attributes without an index. ``head``: the block header, empty before `sealed`; ``body``: the rest."""

    __slots__ = ("attrs", "body", "head")

    def __init__(self, head: bytes, body: bytes, attrs: dict[Key, bytes]):
        self.head, self.body, self.attrs = head, body, attrs

    def __len__(self) -> int:
        return len(self.attrs)

    def __contains__(self, key: Key) -> bool:
        return key in self.attrs

    def get(self, key: Key) -> bytes | None:
        """The value, or None where there is none."""
        return self.attrs.get(key)

    def keys(self) -> list[Key]:
        """Of all entries, in their order."""
        return list(self.attrs)

    def with_value(self, key: Key, value: bytes) -> "Run":
        """The run with *key*, be it there or not, set to *value*; not sealed."""
        return _run_of({**self.attrs, key: value})

    def without(self, key: Key) -> "Run":
        """The run without *key*, not sealed; itself where there is none."""
        if key not in self.attrs:
            return self
        return _run_of({other: value for other, value in self.attrs.items() if other != key})

    def sealed(self, head: bytes) -> "Few":
        """The same with its header."""
        return Few(head, self.body, self.attrs)


def _run_of(attrs: dict[Key, bytes]) -> "Run":
    return _with_index(b"", b"".join([_packed(key, value) for key, value in attrs.items()]), attrs)


def _with_index(head: bytes, body: bytes, attrs: dict[Key, bytes]) -> "Run":
    """The Run of these entries, which stand in *body* in the order of *attrs*."""
    if len(body) <= FEW:
        return Few(head, body, attrs)
    hashes = np.fromiter(map(hash, attrs), np.int64, len(attrs))
    sizes = [_HEAD + len(name) + len(value) for (_, name), value in attrs.items()]
    return Many(head, body, hashes, np.array(sizes, np.int64))


class Many:
    """Attributes with an index. ``head`` and ``body`` as in `Few`.

    A number for each entry, in their order: ``hashes`` of their keys, ``sizes`` in bytes, ``starts`` in the
    body (and behind them its end).
    """

    __slots__ = ("body", "hashes", "head", "sizes", "starts")

    def __init__(self, head: bytes, body: bytes, hashes: np.ndarray, sizes: np.ndarray):
        self.head, self.body, self.hashes, self.sizes = head, body, hashes, sizes
        self.starts = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=self.starts[1:])

    def __len__(self) -> int:
        return len(self.hashes)

    def _find(self, key: Key) -> int | None:
        body, (space, name) = self.body, key
        for number in np.flatnonzero(self.hashes == hash(key)).tolist():
            at = self.starts.item(number)
            if body[at] == space and body[at + 1] == len(name) and body.startswith(name, at + _HEAD):
                return number
        return None

    def __contains__(self, key: Key) -> bool:
        return self._find(key) is not None

    def get(self, key: Key) -> bytes | None:
        """The value, or None where there is none."""
        number = self._find(key)
        return None if number is None else self._entry(number)[_HEAD + len(key[1]) :]

    def keys(self) -> list[Key]:
        """Of all entries, in their order."""
        body, ats = self.body, self.starts[:-1].tolist()
        return [(body[at], body[at + _HEAD : at + _HEAD + body[at + 1]]) for at in ats]

    def with_value(self, key: Key, value: bytes) -> "Run":
        """The run with *key*, be it there or not, set to *value*; not sealed."""
        entry = _packed(key, value)
        number = self._find(key)
        if number is None:
            sizes = np.append(self.sizes, len(entry))
            return Many(b"", self.body + entry, np.append(self.hashes, hash(key)), sizes)
        start, end = self.starts[number : number + 2].tolist()
        if end - start == len(entry):
            old = memoryview(self.body)
            return Many(b"", b"".join((old[:start], entry, old[end:])), self.hashes, self.sizes)
        return self._replaced(number, entry, hash(key))

    def without(self, key: Key) -> "Run":
        """The run without *key*, not sealed; itself where there is none."""
        number = self._find(key)
        return self if number is None else self._replaced(number, b"", 0)

    def sealed(self, head: bytes) -> "Many":
        """The same with its header."""
        return Many(head, self.body, self.hashes, self.sizes)

    def _entry(self, number: int) -> bytes:
        start, end = self.starts[number : number + 2].tolist()
        return self.body[start:end]

    def _replaced(self, number: int, entry: bytes, hashed: int) -> "Many":
        """The run without entry *number*, and with *entry* at its end, where that is not empty."""
        start, end = self.starts[number : number + 2].tolist()
        old = memoryview(self.body)
        body = b"".join((old[:start], old[end:], entry))
        hashes, sizes = np.delete(self.hashes, number), np.delete(self.sizes, number)
        if entry:
            hashes, sizes = np.append(hashes, hashed), np.append(sizes, len(entry))
        return Many(b"", body, hashes, sizes)


Run = Few | Many
EMPTY = Few(b"", b"", {})


def parse(ino: int, head: bytes, body: bytes, count: int) -> Run:
    """The Run of *count* entries that stands there. CorruptError where they are not just that."""
    attrs, at = {}, 0
    for _ in range(count):
        if at + _HEAD > len(body):
            raise CorruptError(f"inode {ino}: xattr entries leave the run")
        space, name_len, _, value_len = L.XATTR_CODEC.unpack_from(body, at)
        value = at + _HEAD + name_len
        end = value + value_len
        if space not in SPACES or end > len(body):
            raise CorruptError(f"inode {ino}: xattr entry of name space {space}, {value_len} bytes")
        key = space, body[at + _HEAD : value]
        if key in attrs:
            raise CorruptError(f"inode {ino}: an xattr that is there twice")
        attrs[key] = body[value:end]
        at = end
    if at != len(body):
        raise CorruptError(f"inode {ino}: {len(body) - at} bytes behind the last xattr entry")
    return _with_index(head, body, attrs)


def differences(old: bytes, new: bytes):
    """Yield (start, end) of what of *new* is not in *old*: lines of 64 bytes, and all behind the old end."""
    both = min(len(old), len(new)) // _LINE * _LINE
    words = np.flatnonzero(np.frombuffer(old, np.int64, both // 8) != np.frombuffer(new, np.int64, both // 8))
    lines = words // (_LINE // 8)
    if len(lines):
        edges = np.flatnonzero(np.diff(lines) > 1)
        starts, ends = lines[np.append(0, edges + 1)], lines[np.append(edges, -1)]
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            yield start * _LINE, (end + 1) * _LINE
    if both < len(new):
        yield both, len(new)


class Cache:
    """The last runs of many attributes that were read or written: they need not be parsed again.

    What stands in place decides: `find` compares all of it. So a Run that is out of date is never used, and
    damage is never hidden.
    """

    def __init__(self):
        self._runs: dict[int, Run] = {}  # the one that was used last stands last

    def find(self, ino: int, head: bytes, body: bytes) -> Run | None:
        """The Run of the inode that these bytes are, if it is known."""
        run = self._runs.pop(ino, None)
        if run is None or run.head != head or run.body != body:
            return None
        self._runs[ino] = run
        return run

    def keep(self, ino: int, run: Run) -> None:
        """*run* is what stands in place for *ino* now. Few are not worth it."""
        self._runs.pop(ino, None)
        if len(run.body) > FEW:
            self._runs[ino] = run
            if len(self._runs) > CACHED:
                del self._runs[next(iter(self._runs))]
