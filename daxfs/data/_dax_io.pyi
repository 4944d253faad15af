# SPDX-License-Identifier: MIT
from collections.abc import Buffer

from daxfs._iomap import FileMap
from daxfs.data._tracker import Tracker
from daxfs.region import Region

NEEDS_BLOCKS: int
WRITE_POLICIES: tuple[str, ...]
DRAIN_POLICIES: tuple[str, ...]

class DaxIo:
    tracker: Tracker
    nt: bool
    drain_write: bool
    dirtied_pages: int
    flushed_pages: int
    writebacks: int
    def __init__(self, region: Region, tracker: Tracker, write: str = "nt", drain: str = "write") -> None: ...
    def read(self, f: FileMap, pos: int, size: int) -> Buffer: ...
    def scatter(self, f: FileMap, pos: int, size: int) -> list[tuple[int, int]]: ...
    def write(self, f: FileMap, pos: int, data: Buffer) -> int: ...
    def fill(self, f: FileMap, pos: int, data: Buffer, pieces: list, fresh: list) -> None: ...
    def writeback(self, f: FileMap, first: int = 0, last: int = ...) -> int: ...
