# SPDX-License-Identifier: MIT
"""Crash images of a mount that was recorded with ``-o record=FILE``, judged.

The recording is played: every store goes to a file that holds what the memory held, and to the persistence
model. For the operations that were chosen, images of each moment are compared with the file system as it
was when the operation began and when it had returned (what a killed daemon would leave then): each image
must be wholly one or the other. Data in the file that is written may be a mixture, word by word; those of
files that were written since their last fsync are looked at only where the mount's options promise them.
Times are not compared: crash/judge.py does that, where the clock is known.

One thread. Needs recordings of one metadata thread: operations that overlap are refused.
"""

import json
import os
import random
import shutil
from typing import NamedTuple

import numpy as np

from daxfs.data.file_io import FileIo
from daxfs.errors import FormatError
from daxfs.meta import fs as meta_fs
from daxfs.meta.check import check_region
from daxfs.region import Region
from daxfs.testing import log, ranges
from daxfs.testing.media import Media

from .content import padded, strange_words
from .ground import as_own, put_ranges
from .judge import Image

OPERATIONS = 400        # of a recording, that images are made of
SIZE = 5                # in the attributes of `Shown`
_STORES = (log.STORE, log.NT_STORE, log.NT_FILL)


class Operation(NamedTuple):
    """One operation of a recording: its events are events[first:last], BEGIN and END among them."""

    first: int
    last: int
    begin: dict
    result: dict

    @property
    def name(self) -> str:
        return self.begin["op"]


def operations(recording) -> list[Operation]:
    """All operations that returned, in order. FormatError where two overlap, or are not a mount's."""
    out, first = [], None
    for number, event in enumerate(recording.events):
        if event.kind == log.BEGIN:
            if first is not None:
                raise FormatError("recording: operations overlap; only those of one thread can be judged")
            first = number
        elif event.kind == log.END and first is not None:
            try:
                begin, result = json.loads(recording.events[first].data), json.loads(event.data)
                out.append(Operation(first, number + 1, dict(begin, op=str(begin["op"])), dict(result)))
            except (ValueError, KeyError, TypeError):
                raise FormatError("recording: its operations are not those of a mount") from None
            first = None
    return out


def check(path: str) -> None:
    """FormatError where the file at *path* is no recording that can be judged, or nothing in it stores."""
    if not Player(log.load(path), 1, random.Random(0)).choose(0, 1):
        raise FormatError(f"{path}: no operation in it has stored anything and returned")


class Shown(NamedTuple):
    """What a mounted image shows: paths and attributes without times, and the data of each file."""

    paths: dict
    attributes: dict
    data: dict


def shown(region) -> Shown:
    """Mount *region* (it recovers) and read all of it."""
    image = Image(FileIo(meta_fs.mount(region)))
    if image.complaints:
        raise AssertionError("; ".join(image.complaints))
    attributes, data = {}, {}
    for ino, found in image.inodes.items():
        inode = found.inode
        attributes[ino] = (inode.mode, inode.uid, inode.gid, inode.nlink, inode.rdev, inode.size,
                           inode.blocks, found.target, sorted(found.xattrs.items()))
        if found.data is not None:
            data[ino] = found.data
    return Shown(image.paths, attributes, data)


class Live:
    """In the place of a Media: what the memory held, all stores in their order. The region is file *fd*."""

    def __init__(self, size: int, fd: int):
        self.size, self.fd, self.unit = size, fd, 64
        self.sure = np.zeros(size, np.uint8)  # of which only what lies behind the region, own ranges, is used

    def apply(self, event) -> None:
        if event.kind not in (*_STORES, log.IMAGE):
            return
        data = event.data * (event.length if event.kind == log.NT_FILL else 1)
        if event.place < self.size:
            os.pwrite(self.fd, data, event.place)
        else:
            self.sure[event.place : event.place + len(data)] = np.frombuffer(data, np.uint8)

    def extend(self, count: int) -> None:
        self.sure = np.concatenate((self.sure, np.zeros(count, np.uint8)))

    def zero(self, place: int, length: int, key: int) -> None:
        self.sure[place : place + max(length, 0)] = 0

    def zeroed(self, key: int) -> None:
        pass


def room_of(recording) -> int:
    """Bytes that the largest own range of a recording had, as a power of two."""
    sizes = [event.data.split()[2] for event in (*recording.ranges, *recording.events)
             if event.kind == log.RANGE and event.data.startswith(b"size ")]  # fmt: skip
    return 1 << max(16, (max(map(int, sizes), default=0) - 1).bit_length())


class Player:
    """Plays a `log.Recording`; *limit* images for each moment of the operations that `play` is asked for."""

    def __init__(self, recording, limit: int, rng: random.Random):
        self.recording = recording
        header = self.recording.header["region"]
        if len(header["sources"]) != 1:
            raise FormatError("a recording of a region of several sources can't be played")
        self.granularity = header["granularity"]
        options = self.recording.header.get("options", "").split(",")
        self.lasting = "write=cached" not in options and "drain=fsync" not in options
        self.operations = operations(self.recording)
        self.limit, self.rng = limit, rng
        self.unsynced: set[int] = set()
        self.size = self.recording.image.nbytes
        self.pool = header["sources"][0]["kind"] == "pool"
        stem = f"/dev/shm/daxfs-crash-{os.getpid()}-log"
        self.paths = [f"{stem}.live", f"{stem}.sure"]
        self.fds = []

    def __enter__(self) -> "Player":
        for path in self.paths:
            if self.pool:
                os.makedirs(f"{path}/ranges")
            file = path + "/region" * self.pool
            self.recording.image.tofile(file)
            self.fds.append(os.open(file, os.O_RDWR))
        room, media = room_of(self.recording), Media(self.recording.image, self.granularity)
        syncs = not self.recording.header["region"]["sources"][0]["emulated"]
        self.ranges = ranges.load(media, self.recording.ranges, syncs, room)
        self.live = ranges.load(Live(self.size, self.fds[0]), self.recording.ranges, False, room)
        return self

    def __exit__(self, *_) -> None:
        for fd in self.fds:
            os.close(fd)
        for path in self.paths:
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.unlink(path)

    def choose(self, share: int, shares: int) -> set[int]:
        """Numbers of operations that store, OPERATIONS of them at most, of which this is one share."""
        events = self.recording.events
        storing = [n for n, op in enumerate(self.operations)
                   if any(event.kind in _STORES for event in events[op.first : op.last])]
        chosen = random.Random(len(storing)).sample(storing, min(OPERATIONS, len(storing)))
        return set(sorted(chosen)[share::shares])

    def play(self, chosen: set[int]):
        """Yield (operation, label, complaints, image) for each image of the *chosen* operations."""
        at = 0
        for number, op in enumerate(self.operations):
            self._skip(at, op.first)
            at = op.first
            if number in chosen:
                yield from self._watched(op)
            else:
                self._skip(op.first, op.last)
                self._note_sync(op)
            at = op.last
            if chosen and number == max(chosen):
                return

    def _note_sync(self, op: Operation) -> None:
        ino = op.begin.get("ino")
        if op.name in ("write", "copy_file_range") and not self.lasting:
            self.unsynced.add(ino)
        elif op.name == "fsync" and "errno" not in op.result:
            self.unsynced.discard(ino)
        elif op.name in ("unmount", "syncfs"):
            self.unsynced.clear()

    def _live(self, first: int, last: int) -> None:
        for event in self.recording.events[first:last]:
            self.live.apply(event)

    def _skip(self, first: int, last: int) -> None:
        self._live(first, last)
        for event in self.recording.events[first:last]:
            self.ranges.apply(event)

    def _open(self, path: str, base, shape: dict, delta=()) -> Region:
        """The region of *path*, with the own ranges of *shape* as *base* and *delta* have them."""
        if self.pool:
            put_ranges(path, {name: ranges.bytes_of(one, base, [delta]) for name, one in shape.items()})
        region = Region.open([path], "cow", granularity=self.granularity, lock=False)
        if self.pool:
            as_own(region, False)
        for place, data in delta:
            if place < self.size:
                region.mem[place : place + len(data)] = data
        return region

    def _watched(self, op: Operation):
        before = self._shown()
        self._live(op.first, op.last)
        after = self._shown()
        steps = 0
        for event in self.recording.events[op.first : op.last]:
            pages = self.granularity == "page" and event.kind != log.BEGIN
            if event.kind in (log.DRAIN, log.RANGE) or pages:
                steps += 1
                label = f"{op.name}, before {log.NAMES[event.kind]} {steps}"
                yield from self._point(op, label, before, after)
            self.ranges.apply(event)
        self._note_sync(op)
        yield from self._point(op, f"{op.name}, returned", after, None)

    def _shown(self) -> Shown:
        (shape,) = self.live.shapes(self.rng)
        with self._open(self.paths[0], self.live.media.sure, shape) as region:
            return shown(region)

    def _point(self, op: Operation, label: str, before: Shown, after: Shown | None):
        media, unit = self.ranges.media, self.ranges.media.unit
        for number in media.changed:
            if number * unit < self.size:
                os.pwrite(self.fds[1], media.sure[number * unit : (number + 1) * unit].data, number * unit)
        media.changed.clear()
        for image, shape in self.ranges.images(self.limit, self.rng):
            yield op, label, self._judge(op, image.delta, shape, before, after), image

    def _judge(self, op: Operation, delta, shape: dict, before: Shown, after: Shown | None) -> list[str]:
        for step in (self._fsck, lambda region: self._compare(op, shown(region), before, after)):
            with self._open(self.paths[1], self.ranges.media.sure, shape, delta) as region:
                try:
                    found = step(region)
                except (OSError, AssertionError) as error:
                    found = [f"{type(error).__name__}: {error}"]
            if found:
                return found
        return []

    @staticmethod
    def _fsck(region) -> list[str]:
        return [f"fsck: {problem}" for problem in check_region(region).problems]

    def _compare(self, op: Operation, got: Shown, before: Shown, after: Shown | None) -> list[str]:
        out = [f"not as before: {text}" for text in _differences(got, before)]
        if out and after is not None:
            later = _differences(got, after)
            out = out + [f"nor as after: {text}" for text in later] if later else []
        for ino, data in got.data.items():
            if ino in self.unsynced:
                continue
            sides = [side.data[ino] for side in (before, after) if side is not None and ino in side.data]
            if any(np.array_equal(data, side) for side in sides):
                continue
            # Cut, or filled with zeros, to the size that the image shows.
            size = got.attributes[ino][SIZE]
            versions = [(0, padded(side[:size], size)) for side in sides]
            strange = strange_words(data, versions)
            mixture = ino == op.begin.get("ino") and after is not None
            if len(strange) or not mixture:
                where = int(strange[0]) * 8 if len(strange) else 0
                out.append(f"inode {ino}: data are neither old nor new, from byte {where} on")
        return out


def _differences(got: Shown, due: Shown) -> list[str]:
    out = [f"{path} is missing" for path in due.paths.keys() - got.paths.keys()]
    out += [f"{path} should not be there" for path in got.paths.keys() - due.paths.keys()]
    out += [f"{path} names another inode" for path, ino in got.paths.items()
            if due.paths.get(path, ino) != ino]
    out += [f"inode {ino}: {got.attributes.get(ino)}, not {due.attributes[ino]}" for ino in due.attributes
            if got.attributes.get(ino) != due.attributes[ino]]
    return out[:4]
