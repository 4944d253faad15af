# SPDX-License-Identifier: MIT
from daxfs._iomap import FileMap
from daxfs.data._dax_io import DaxIo

WRITE: int
DIRECT: int
DSYNC: int
NOATIME: int
DIRECTORY: int
RAW: int
PARKED_MOST: int
PARKED_EACH: int
VERDICTS: tuple[str, ...]
ATIME_POLICIES: tuple[str, ...]
WRONG: tuple[str, ...]
HEADER: int
OPCODES: dict[int, str]

def arg_size(opcode: int) -> int: ...

class Server:
    dax: DaxIo
    writes: bool
    nothing: bool
    atime: str
    lazytime: bool
    getattr: bool
    inode_limit: int
    max_write: int
    raw: range
    inodes: int
    parks: bool
    ranges: int
    def __init__(self, dax: DaxIo) -> None: ...
    def open(
        self,
        f: FileMap | None,
        ino: int,
        flags: int = 0,
        backing: int = 0,
        opener: tuple[int, int, int, int] | None = None,
    ) -> int: ...
    def close(self, fh: int) -> None: ...
    def __len__(self) -> int: ...
    def opened(self, fh: int, open_flags: int) -> None: ...
    def opener(self, fh: int) -> int: ...
    def taken(self, fh: int) -> int: ...
    def reap(self, ino: int = 0, age: float = 0) -> list[int]: ...
    def parked(self) -> list[int]: ...
    @property
    def armed(self) -> bool: ...
    def disarm(self) -> bool: ...
    def set_clock(self, time: int | None) -> None: ...
    def set_fault_hook(self, faults: object | None) -> None: ...
    def feed(
        self, request: bytes, arg_split: int | None = None, by_pieces: bool = False
    ) -> tuple[str, int, bytes]: ...
    def counts(self) -> dict: ...
    def fuzz(self, corpus: list[bytes], seed: int, count: int, room: int = 0) -> dict: ...
