# SPDX-License-Identifier: MIT
from typing import NamedTuple

from daxfs._iomap import FileMap

KIND_NAMES: tuple[str, ...]
RESULT_NAMES: tuple[str, ...]
REASON_NAMES: tuple[str, ...]

class Decision(NamedTuple):
    order: int
    result: str
    reason: str

def result_name(result: int) -> str: ...
def decide(
    kind: str,
    pgoff: int,
    extent: tuple[int, int, int, int],
    *,
    size: int,
    address: int | None = None,
    vma_start: int = 0,
    vma_end: int | None = None,
    pte_entry: bool = False,
    pmd: bool = True,
    zero_page: bool = True,
    sync: bool = False,
    table: bool = False,
    poison: bool = False,
    poison_pmd: bool = False,
) -> Decision: ...

class CachedFaults:
    @property
    def pmd(self) -> bool: ...
    @property
    def hook(self) -> tuple[int, int]: ...
    def __init__(self, pmd: bool = True) -> None: ...
    def request(self, f: FileMap, pos: int, size: int, write: bool) -> None: ...
    def snapshot(self) -> dict: ...
