# SPDX-License-Identifier: MIT
"""Numbers as people read and write them: bytes with K, M, G; times in ns, µs, ms, s."""

import re

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
BYTES = ("dirty", "mapped", "other", "nt_threshold", "block", "size", "page")  # axes that hold bytes


def parse_bytes(text: str) -> int:
    """``64``, ``4K``, ``2M``, ``1G`` (KiB, MiB, GiB). ValueError for anything else."""
    found = re.fullmatch(r"([0-9]+)([KMG]?)(i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise ValueError(f"{text!r}: not a size; write 64, 4K, 2M, 1G")
    return int(found[1]) * UNITS[found[2].upper()]


def show_bytes(value: int) -> str:
    """``64 B``, ``4 KiB``, ``2 MiB``."""
    for unit in ("G", "M", "K"):
        if value >= UNITS[unit] and value % UNITS[unit] == 0:
            return f"{value // UNITS[unit]} {unit}iB"
    return f"{value} B"


def show_ns(value: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} ns"


def medium(cell: dict) -> str:
    """What a cell emulates by itself: its axis ``emulate``, or that option of its target; else ``none``."""
    _, _, options = str(cell.get("target", "")).partition(":")
    named = [word[len("emulate="):] for word in options.split(",") if word.startswith("emulate=")]
    return str(cell.get("emulate", named[-1] if named else "none"))


def show(axis: str, value) -> str:
    """The value of an axis, for people."""
    return show_bytes(value) if axis in BYTES and isinstance(value, int) else str(value)
