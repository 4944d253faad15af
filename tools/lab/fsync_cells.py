# SPDX-License-Identifier: MIT
"""The axes of fsync_sweep, which of their values go together, and a visit: one policy, one kind of work.

A visit opens a file on the mount that the cell asks for, makes dirty and calls fsync many times, in the
worker, and asks the daemon before and after what it has done. Limits: one thread, one visit at a time.
"""

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import mounts

from daxfs import emulate
from daxfs._flush import Flush
from daxfs.errors import UsageError
from daxfs.fuse import options as mount_options
from daxfs.fuse.options import CHOICES, NT_THRESHOLD
from lab import rigs
from lab.plan import Axis, CellError, CellFailed, Measure, Visit
from lab.rigs import LIVE, Rig, Rigs
from lab.words import show_bytes
from lab.worker import Worker

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
VIAS = ("write", "mmap", "kernel", "kernel-pte", "user")
OBSERVED = VIAS[2:]
BIG = 256 * MIB        # a file of so many bytes goes before another one is made
POLICY = ("transport", "flush", "flushers", "write", "drain", "nt_threshold", "emulate", "track")
CLOSE_S = 10           # that a close may take until the daemon knows
REGION = 256 * MIB     # the region's size, unless a packed file of BIG bytes is to be in it

AXES = {
    "dirty": Axis("dirty bytes", "number", "B"),
    "mapped": Axis("bytes of the file", "number", "B"),
    "other": Axis("dirty in another file", "number", "B"),
    "track": Axis("track="),
    "history": Axis("history"),
    "via": Axis("stored by"),
    "place": Axis("placement"),
    "flush": Axis("flush="),
    "flushers": Axis("flushers=", "number"),
    "write": Axis("write="),
    "drain": Axis("drain="),
    "nt_threshold": Axis("nt_threshold=", "number", "B"),
    "emulate": Axis("emulate="),
    "transport": Axis("transport="),
    "pattern": Axis("pattern"),
    "call": Axis("call"),
}
NAMES = {  # what may be given for an axis of names
    "track": CHOICES["track"], "history": ("used", "closed", "fresh"),
    "via": VIAS, "place": ("packed", "own"),
    "flush": CHOICES["flush"], "write": CHOICES["write"][::-1], "drain": CHOICES["drain"],
    "emulate": (emulate.NONE, *emulate.known()), "transport": CHOICES["transport"][1:],
    "pattern": ("together", "scattered"), "call": ("fsync", "fdatasync", "msync"),
}  # fmt: skip
WORDS = {  # for --help
    "dirty": "Bytes that are stored before each call, 64 to the size of the file",
    "mapped": "Size of the file, all of which is mapped where there is a mapping",
    "other": "Bytes that are stored to another file, once, and stay dirty",
    "track": "What fsync takes for dirty (docs/tracking.md)",
    "history": "Of track=extent: all of the file was stored to once; that, and then it was closed and opened "
               "again; or only what is stored now. But for used at the same places each time",
    "via": "write(2); a plain mapping; mappings observed by libdaxfs, in pages of 2 MiB, of 4 KiB, and with "
           "faults that the daemon answers",
    "place": "In the region, or in a range of its own, which is mapped directly (default: packed for write, "
             "own for mappings)",
    "flush": "Instruction that writes lines back", "flushers": "Threads that share a large write-back",
    "write": "Stores, written back by fsync; or past the cache", "drain": "When write=nt fences",
    "nt_threshold": "Of write=nt: below so many bytes through the cache, and flushed at once",
    "emulate": "Medium, or the path of a file of one (docs/emulation.md)", "transport": "How requests come",
    "pattern": "One piece, or pages of 4 KiB anywhere in the file",
    "call": "What is timed; msync: of what was stored",
}  # fmt: skip
MEASURES = {
    "ns": Measure("time of the call", "ns"),
    "store_ns": Measure("time of the stores before it", "ns"),
    "total_ns": Measure("stores and call together", "ns"),
}


def base() -> dict:
    """The cell that all others differ from; ``place`` follows from ``via``, some values from the host."""
    transport = "dev" if mounts.why_no_transport("uring") else "uring"
    return {"dirty": 4 * KIB, "mapped": 64 * MIB, "other": 0, "track": "pte", "history": "used",
            "via": "write", "flush": Flush().kind, "flushers": 1, "write": "cached", "drain": "write",
            "nt_threshold": NT_THRESHOLD, "emulate": emulate.NONE, "transport": transport,
            "pattern": "together", "call": "fsync"}  # fmt: skip


def cell_of(**values) -> dict:
    """A whole cell: *values*, and the base for the rest. What means nothing in it is left out."""
    made = {**base(), "place": "packed" if values.get("via", "write") == "write" else "own", **values}
    if not made["track"].startswith("extent"):
        del made["history"]
    if made["write"] != "nt":
        del made["drain"], made["nt_threshold"]
    return {name: made[name] for name in AXES if name in made}


def why_not(cell: dict) -> str | None:
    """Why there can be no such cell on any host; None: there can."""
    if cell["dirty"] > cell["mapped"]:
        return f"{show_bytes(cell['mapped'])} of a file can't have {show_bytes(cell['dirty'])} dirty"
    if cell["place"] == "packed" and cell["via"] in OBSERVED:
        return "only files with a range of their own can be mapped observed"
    if cell["call"] == "msync" and cell["via"] == "write":
        return "msync needs a mapping"
    if cell["call"] == "msync" and cell["via"] == "mmap" and cell["place"] == "own":
        return ("msync of a plain direct mapping goes to the tmpfs below, where it does nothing, and never "
                "reaches daxfs (docs/mappings.md): there is nothing to measure")
    try:
        mount_options.parse(",".join(policy(cell, POLICY)))
    except UsageError as exc:
        return str(exc)
    return None


def policy(cell: dict, names: Iterable[str]) -> list[str]:
    """The mount options *names* that *cell* has."""
    # flush on power failure is a granularity, too
    return [f"{name}={cell[name]}" for name in names if name in cell] + (
        ["granularity=byte"] if cell["flush"] == "none" else [])


@dataclass
class Bench:
    """What visits share: mounts by size of region, the worker, the caps of a visit.

    *options*: further mount options. *count*: samples of a visit at most.
    """

    worker: Worker
    options: str
    count: int
    _rigs: dict[int, Rigs] = field(default_factory=dict)

    def mount_options(self, cell: dict) -> str:
        """Those that a mount for *cell* has, without what is set on a live one."""
        given = policy(cell, (name for name in POLICY if name not in LIVE))
        return ",".join([*given, *filter(None, [self.options])])

    def rig(self, cell: dict) -> Rig:
        """The mount for *cell*, set as it wants it but for track=."""
        packed = max(cell["mapped"] if cell["place"] == "packed" else 0, cell["other"])
        size = REGION if packed < BIG else packed + cell["other"] + REGION
        found = self._rigs.setdefault(size, Rigs(size)).get(self.mount_options(cell))
        for name in LIVE:
            if name in cell and name != "track":
                found.set(name, str(cell[name]))
        return found

    def close_rigs(self) -> None:
        """At the end of a family: unmount what the others hardly need, all but the base's."""
        for size, one in self._rigs.items():
            one.close(self.mount_options(cell_of()) if size == REGION else None)

    def close(self) -> None:
        """Unmount all, and end the worker."""
        self.worker.close()
        for one in self._rigs.values():
            one.close()

    def visit(self, cell: dict, measure: str, seconds: float, seed: int) -> Visit:
        """Samples of *cell*, for about *seconds*, with its family's *measure*. CellError: it can't be had."""
        if reason := why_not(cell):
            raise CellError(reason)
        rig = self.rig(cell)
        with rig.watched():
            try:
                return self._visit(rig, cell, measure, seconds, seed)
            finally:
                with contextlib.suppress(CellError):  # it has died, which was told
                    self.worker.ask("close")

    def _visit(self, rig: Rig, cell: dict, measure: str, seconds: float, seed: int) -> Visit:
        if cell["place"] == "own" and cell["via"] != "write":
            self._direct(rig, cell)
        # Each visit begins with nothing dirty: extents are never cleared but by a switch, and nobody knows
        # what was stored under "none". So the file is made, mapped and written back under another policy.
        rig.set("track", "pte")
        if cell["track"].startswith("extent") and cell["place"] == "packed":
            _write_back(rig.folder("packed"))  # what is dirty in any file would be active from the start
        self._open(rig, cell)
        rig.set("track", cell["track"])
        if cell.get("history") != "fresh":
            # Also without extents: of an own range the daemon flushes but the pages that it has met.
            self.worker.ask("use")
        if cell.get("history") == "closed":
            self._close(rig)
            self._open(rig, cell)
        if cell["other"]:
            self.worker.ask("dirty", seed)
        work = cell["call"], cell["pattern"], cell["dirty"]
        places = "new" if cell.get("history", "used") == "used" else "same"
        # For the caches, and for what is made on first use: not among the samples, nor in the counts.
        self.worker.run(*work, 1, seconds, seed if places == "same" else seed + 1, places)
        before = rig.stat()
        got = self.worker.run(*work, self.count, seconds, seed, places)
        counts, phases = rigs.spent(before, rig.stat(), len(got["ns"]))
        counts |= {"client_lines": got["lines"], "client_drains": got["drains"]}
        samples = {"ns": got["ns"], "store_ns": got["store_ns"]}
        if measure == "total_ns":
            samples[measure] = [store + call for store, call in zip(*samples.values(), strict=True)]
        in_client = cell["call"] == "msync" and cell["via"] in OBSERVED
        return Visit(samples, counts, {} if in_client else phases)

    def _close(self, rig: Rig) -> None:
        """Close the file, and wait until the daemon knows: the kernel sends that when it likes."""
        self.worker.ask("close")
        end = time.monotonic() + CLOSE_S
        while rig.stat()["inodes"]["open"]:
            if time.monotonic() > end:
                raise CellFailed(f"{rig.region.path}: a file is open {CLOSE_S} s after its last close")
            time.sleep(0.002)

    def _direct(self, rig: Rig, cell: dict) -> None:
        if reason := rig.why_no_direct():
            raise CellError(f"no direct mappings: {reason}")
        if not rig.huge and cell["via"] in ("kernel", "user"):
            raise CellError("no pages of 2 MiB: this kernel has no tmpfs with huge=always")

    def _make_room(self, rig: Rig, place: str, size: int) -> None:
        """CellError where a new file of *size* bytes has no room: before it is written for a minute."""
        room = os.statvfs(rig.folder("packed") if place == "packed" else rig.tmpfs.path)
        if size > (left := room.f_bavail * room.f_frsize):
            raise CellError(f"no room for a file of {show_bytes(size)}: {left >> 20} MiB are free there")
        rigs.need(size, f"a file of {show_bytes(size)}")

    def _open(self, rig: Rig, cell: dict) -> None:
        kind = "write" if cell["via"] == "write" else "plain" if cell["via"] == "mmap" else "observed"
        path = rig.folder(cell["place"]) / f"{kind}-{cell['mapped']}"
        other = rig.folder("packed") / f"other-{cell['other']}"
        for folder in ("packed", "own"):
            for there in os.scandir(rig.folder(folder)):
                if there.stat().st_size >= BIG and there.path not in (str(path), str(other)):
                    os.unlink(there)
        self._make_room(rig, cell["place"], 0 if path.exists() else cell["mapped"])
        self._make_room(rig, "packed", 0 if other.exists() else cell["other"])
        self.worker.ask("open", path, cell["mapped"], cell["via"])
        if cell["other"]:
            self.worker.ask("other", other, cell["other"], cell["other"])


def _write_back(folder: Path) -> None:
    """fsync all files in *folder*."""
    for there in os.scandir(folder):
        fd = os.open(there.path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
