# SPDX-License-Identifier: MIT
"""Reading the log of a recorder (daxfs/_record.pyx): events, and a recording in a file.

The format is native/record.h's. Limits: reads only; a log that ends in the middle of an event (the
recording process was killed, or its disk was full) is read up to there.
"""

import json
import struct
from collections import namedtuple
from dataclasses import dataclass, field

import numpy as np

from daxfs._own import PFN_BASE
from daxfs._record import MAGIC, VERSION
from daxfs.errors import FormatError

STORE, NT_STORE, NT_FILL, FLUSH, DRAIN, BEGIN, END, SITE, IMAGE, SCAN, RANGE = range(1, 12)
NAMES = ("", "store", "nt_store", "nt_fill", "flush", "drain", "begin", "end", "site", "image", "scan",
         "range")
_WITH_DATA = frozenset((STORE, NT_STORE, BEGIN, END, SITE, IMAGE, SCAN, RANGE))
_PLACED = frozenset((STORE, NT_STORE, NT_FILL, FLUSH, IMAGE, SCAN))
OWN = PFN_BASE << 12  # from this place on: own ranges
_HEAD = struct.Struct("<BBHIQQQ")
_FILE = struct.Struct("<8sII")

# place, length: bytes of the region. data: the bytes; the one byte of NT_FILL; the text of BEGIN, END, SITE,
# RANGE.
Event = namedtuple("Event", "kind place length data thread site op")


def parse(buffer):
    """Yield the events in *buffer*, the bytes of a log without its header."""
    view = memoryview(buffer)
    at, end = 0, len(view)
    unpack, size = _HEAD.unpack_from, _HEAD.size
    while at + size <= end:
        kind, fill, thread, site, op, place, length = unpack(view, at)
        at += size
        if kind in _WITH_DATA:
            if at + length > end:
                return
            data = bytes(view[at : at + length])
            at += length + (-length & 7)
        else:
            data = bytes((fill,)) if kind == NT_FILL else b""
        if not 0 < kind <= RANGE:
            raise FormatError(f"recording: event of unknown kind {kind}")
        yield Event(kind, place, length, data, thread, site, op)


@dataclass
class Recording:
    """A recording in a file: what the region held when it began, and the events since.

    header: the region's facts and the recorder's own (plain values); image: uint8 array of the whole
    region; events: without IMAGE and SITE; sites: number to text; ranges: what the own ranges held, events
    of kinds RANGE and IMAGE (ranges.py).
    """

    header: dict
    image: np.ndarray
    events: list[Event] = field(default_factory=list)
    sites: dict[int, str] = field(default_factory=dict)
    ranges: list[Event] = field(default_factory=list)


def _header(path: str, raw: bytes) -> dict:
    """The header's facts; FormatError where what readers rely on is not there."""
    try:
        header = json.loads(raw)
        region = header["region"]
        good = region["bytes"] > 0 and region["bytes"] % 4096 == 0
        good = good and region["granularity"] in ("byte", "cache_line", "page")
        good = good and all(isinstance(region[name], str) for name in ("mode", "flush", "nt"))
        kinds = {"path": str, "kind": str, "emulated": bool}
        good = good and all(isinstance(source[name], kind) for source in region["sources"]
                            for name, kind in kinds.items())  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: its header is damaged ({error!r})") from None
    if not good:
        raise FormatError(f"{path}: its header is damaged (what it says of the region)")
    return header


def load(path: str) -> Recording:
    """The recording at *path*. FormatError where it is none, OSError where it can't be read."""
    with open(path, "rb") as file:
        head = file.read(_FILE.size)
        if len(head) < _FILE.size or not head.startswith(MAGIC):
            raise FormatError(f"{path}: not a recording of daxfs")
        _, version, length = _FILE.unpack(head)
        if version != VERSION:
            raise FormatError(f"{path}: a recording of version {version}; this daxfs reads {VERSION}")
        header = _header(path, file.read(length))
        body = file.read()
    size = header["region"]["bytes"]
    try:
        out = Recording(header, np.zeros(size, np.uint8))
    except MemoryError:
        raise FormatError(f"{path}: a region of {size} bytes has no room in memory") from None
    started = False
    for event in parse(body):
        if event.kind in _PLACED and size < event.place + event.length and event.place < OWN:
            raise FormatError(f"{path}: {NAMES[event.kind]} of {event.length} bytes at {event.place:#x} "
                              "lies outside the region")
        if event.kind == RANGE and event.data == b"start":
            started = True
        elif not started and (event.kind == RANGE or (event.kind == IMAGE and event.place >= OWN)):
            out.ranges.append(event)
        elif event.kind == IMAGE:
            out.image[event.place : event.place + event.length] = np.frombuffer(event.data, np.uint8)
        elif event.kind == SITE:
            out.sites[event.site] = event.data.decode("utf-8", "replace")
        else:
            out.events.append(event)
    return out
