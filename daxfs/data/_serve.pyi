# SPDX-License-Identifier: MIT
from daxfs._iomap import FileMap
from daxfs.data._dax_io import DaxIo

WRITE: int
DIRECT: int
DSYNC: int
NOATIME: int
DIRECTORY: int
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
    inodes: int
    def __init__(self, dax: DaxIo) -> None: ...
    def open(self, f: FileMap | None, ino: int, flags: int = 0) -> int: ...
    def close(self, fh: int) -> None: ...
    def __len__(self) -> int: ...
    def set_clock(self, time: int | None) -> None: ...
    def set_fault_hook(self, faults: object | None) -> None: ...
    def feed(
        self, request: bytes, arg_split: int | None = None, by_pieces: bool = False
    ) -> tuple[str, int, bytes]: ...
    def counts(self) -> dict: ...
    def fuzz(self, corpus: list[bytes], seed: int, count: int, room: int = 0) -> dict: ...
