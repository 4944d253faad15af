# SPDX-License-Identifier: MIT
from daxfs._flush import StateArena
from daxfs._iomap import FileMap

POLICIES: tuple[str, ...]

class Tracker:
    name: str
    def attach(self, f: FileMap) -> None: ...
    def dirty_pages(self, f: FileMap) -> int: ...

class PteTracker(Tracker):
    arena: StateArena | None
    def __init__(self, arena: StateArena | None = None) -> None: ...
