# SPDX-License-Identifier: MIT
from daxfs._flush import Flush

LINE: int
MAX_ROUNDS: int
CALIBRATE_NS: int

def tsc_invariant() -> bool: ...

class Emulation:
    clock: str
    ticks_per_ns: float
    def __init__(self, flush: Flush, flush_line_ns: float, flush_drain_ns: float, nt_line_ns: float,
                 nt_drain_ns: float, write_gb_s: float) -> None: ...
    def counters(self) -> dict[str, int]: ...
    def asked(self, lines: int, nt: bool) -> float: ...
    def measure(self, lines: int, nt: bool, emulated: bool, rounds: int) -> tuple[int, int]: ...
