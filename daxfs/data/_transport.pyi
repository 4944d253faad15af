# SPDX-License-Identifier: MIT
from collections.abc import Buffer, Iterable

from daxfs._fsync import FsyncRun
from daxfs.data._serve import Server

KINDS: dict[str, int]
FOPEN_PARALLEL_DIRECT_WRITES: int

class Call:
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    arg: bytes
    data: memoryview
    interrupted: bool
    fsync: FsyncRun | None
    def reply(self, error: int = 0, pieces: Iterable[Buffer] = ()) -> None: ...

class Transport:
    kind: str
    threads: int
    ended: str | None
    pending: int
    channels: int
    home: int
    def __init__(
        self,
        server: Server,
        kind: str,
        fuse_fd: int,
        pair_fd: int,
        max_payload: int,
        threads: int = 1,
        open_flags: int = 0,
    ) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def fileno(self) -> int: ...
    def pump(self) -> None: ...
    def linger(self, fd: int, loop: int, ns: int) -> int: ...
    def place(self, tid: int, there: bool) -> None: ...
    def next_call(self) -> Call | None: ...
    def counts(self) -> dict: ...
