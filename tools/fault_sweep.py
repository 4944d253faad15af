#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What page faults cost: by who answers them, the size of a page, and what stands under it.

Four families. touch: each fault for itself, by what is under it (hole, unwritten, written) and what the
program does (load, store; upgrade: a store after a load; mkwrite: a store to what was written back). sweep:
MiB/s of touching a whole file for the first time, page by page, in random order, or by madvise(2). resident:
random loads from a mapping that is there, in pages of 4 KiB and of 2 MiB. refused: the same 2 MiB with and
without each reason why they are no PMD.

Compared: DAX files mapped plainly (direct); observed by libdaxfs: kernel, kernel-pte (4 KiB of huge pages),
user (the daemon answers, on another CPU than the program), user-same (on the same CPU); daxfs's files through
the page cache (cached); tmpfs as the bound; ext4 and XFS on loop devices.

Needs root, /dev/fuse and cc; fault=kernel and user need Linux 6.11. What is missing is skipped and named.
"""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lab.start  # noqa: F401
import loops
import mounts
from lab import arguments
from lab.choices import bytes_of_a_file, some_of
from lab.pinned import held
from lab.plan import Axis, Cell, CellError, CellFailed, Family, Measure, Plan, Visit
from lab.rigs import Rig, Rigs, disk
from lab.store import RunError
from lab.worker import program

from daxfs import client

NAME = "fault_sweep"
PAGE, HUGE, MIB = 4096, 2 << 20, 1 << 20
STEP = 16 * PAGE  # between pages that are touched for themselves: further than the kernel maps around a load
OWN = ("direct", "kernel", "kernel-pte", "user", "user-same")  # of DAX files
DISKS = ("ext4", "xfs")
THROUGH_CACHE = ("cached", *DISKS)
MODES = (*OWN, "cached", "tmpfs", *DISKS)
NOT_QUICK = ("kernel-pte", "user-same", "xfs")
BOTH_SIZES = ("direct", "kernel", "user", "user-same", "tmpfs")
USER = ("user", "user-same")

AXES = {
    "mode": Axis("mapped"), "page": Axis("touched by", "number", "B"), "state": Axis("under it"),
    "access": Axis("access"), "order": Axis("order"), "size": Axis("mapped bytes", "number", "B"),
    "reason": Axis("no PMD because"),
}
MEASURES = {
    "ns": Measure("touch", "ns"), "mib_s": Measure("first touch", "MiB/s", "higher"),
    "load_ns": Measure("load", "ns"), "unit_ns": Measure("2 MiB", "ns"),
}
WORDS = {
    "touch": "Files are made anew (hole; unwritten, by fallocate; written) and mapped; then places "
             "in random order are touched, each timed for itself. With 4 KiB it is one page of each "
             "64 KiB, on a source without huge pages (kernel-pte: in pages of 4 KiB of a source with "
             "them); with 2 MiB one in each 2 MiB. Nothing reads ahead, and page caches are cold but "
             "for 'warm'. A plain load maps up to 15 pages around it, too, a load of an observed "
             "mapping does not. 'again' is no fault: clock, caches and TLB. Compare 512 times a bar "
             "of 4 KiB with one of 2 MiB: that is what the larger mapping saves, where blocks are "
             "there; in a hole both pay for zeroing. mkwrite is what each write-back makes the next "
             "store cost where stores are tracked; direct and tmpfs have none, and nobody knows what "
             "was stored.",
    "sweep": "A whole file is touched once, a store or a load in each 4 KiB, all together; or the "
             "kernel does it by one madvise(2) (populate-read is what MAP_POPULATE does with a "
             "shared mapping). tmpfs beside it is the bound. With fault=user and 4 KiB each page is "
             "a way to the daemon and back, so those files are a sixteenth as long.",
    "resident": "Loads at random places of a file that is mapped from end to end, each waiting for the "
                "one before; choosing the place (a division) is in the time, alike everywhere. There are "
                "no faults: what differs is the hardware's way through the page table, which 2 MiB "
                "mappings shorten. fault=user fills 2 MiB with 512 entries, so it does not gain here. In "
                "a virtual machine there is a second page table, the host's: if that has pages of 4 KiB, "
                "little is gained.",
    "refused": "A store to each page of 2 MiB of written blocks (no-huge-zero-page: a load from a "
               "hole), mapped so that one reason of docs/fault.md forbids a PMD; 'none': one that is "
               "given. With fault=user the daemon decides as the kernel's DAX does, and the counts of "
               "each sample name the reason; tmpfs, whose faults direct and kernel are, knows only "
               "some of these reasons. One fault becomes 512.",
}


@dataclass
class Place:
    """Where files of a cell are made; *rig*: the mount of daxfs there, if one is."""

    folder: Path
    rig: Rig | None = None


class Places:
    """Places by mode and size of page, made when they are first asked for. CellError where one can't be."""

    def __init__(self, options: str, size: int):
        self.options, self.size = options, size
        self._own = {HUGE: Rigs(64 * MIB, "always"), PAGE: Rigs(64 * MIB, "never")}
        self._packed = Rigs(size + size // 4 + 256 * MIB)
        self._others: dict[str, mounts.Tmpfs | loops.LoopMount] = {}

    def get(self, mode: str, page: int) -> Place:
        if mode == "cached":
            rig = self._packed.get(self.options)
            return Place(rig.folder("packed"), rig)
        if mode in OWN:
            if mode in USER and (reason := client.why_no_user_faults()):
                raise CellError(reason)
            rig = self._own[HUGE if mode == "kernel-pte" else page].get(self.options)
            if reason := rig.why_no_direct():
                raise CellError(reason)
            return Place(rig.folder("own"), rig)
        name = f"tmpfs {page}" if mode == "tmpfs" else mode
        if name not in self._others:
            self._others[name] = self._tmpfs(page) if mode == "tmpfs" else self._disk(mode)
        return Place(self._others[name].path)

    def _tmpfs(self, page: int) -> mounts.Tmpfs:
        return mounts.Tmpfs(self.size + 256 * MIB, "always" if page == HUGE else "never")

    def _disk(self, kind: str) -> loops.LoopMount:
        return disk(kind, self.size + self.size // 4 + 128 * MIB)

    def close(self) -> None:
        """Unmount all of them; what is asked for afterwards is made anew."""
        for rigs in (*self._own.values(), self._packed):
            rigs.close()
        for other in self._others.values():
            other.close()
        self._others.clear()


def prepare(path: Path, state: str, size: int) -> None:
    """Make the file *path* of *size* bytes.

    *state*: hole, unwritten, written, warm (and in the page cache), or half: the second MiB of each 2 MiB is
    punched out.
    """
    with open(path, "wb", buffering=0) as file:
        for pos in range(0, size, MIB):
            file.write(b"x" * min(MIB, size - pos))
        if state in ("hole", "unwritten"):  # written first, so that the memory is warm (choices.py)
            file.truncate(0)
            file.truncate(size)
        if state == "unwritten":
            os.posix_fallocate(file.fileno(), 0, size)
        for pos in range(MIB, size if state == "half" else 0, HUGE):
            punch(file.fileno(), pos, MIB)
        os.fsync(file.fileno())
        if state != "warm":
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if state == "warm":  # daxfs writes by another way than the page cache
        with open(path, "rb") as file:
            while file.read(MIB):
                pass


def punch(fd: int, pos: int, length: int) -> None:
    """FALLOC_FL_PUNCH_HOLE, which Python has no call for. CellError where the file system has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, 3, ctypes.c_long(pos), ctypes.c_long(length)):
        raise CellError(f"fallocate: {os.strerror(ctypes.get_errno())}")


def faults_of(stat: dict) -> Counter:
    """Faults that the daemon decided, by what they were, of cached mappings and of fault=user."""
    found = Counter()
    for row in stat["faults"]["faults"]:
        words = "fill", row["kind"], row["size"], row["result"], row["reason"]
        found[" ".join(filter(None, words))] += row["count"]
    for row in (stat["dax"]["observed"]["handler"] or {"faults": []})["faults"]:
        words = row["kind"], "PMD" if row["order"] else "PTE", row["result"], row["reason"]
        found[" ".join(filter(None, words))] += row["count"]
    return found


def settled(rig: Rig) -> dict:
    """`daxfs stat`, once the handler is done with faults whose client is on already. CellError: after 5 s."""
    deadline = time.monotonic() + 5
    while ((stat := rig.stat())["dax"]["observed"]["handler"] or {}).get("busy"):
        if time.monotonic() > deadline:
            raise CellError("the handler is still busy")
    return stat


@contextlib.contextmanager
def placed(mode: str, rig: Rig | None) -> Iterator[None]:
    """The program on the first CPU; with fault=user the daemon on the second, or (user-same) there, too."""
    cpus = sorted(os.sched_getaffinity(0))
    if mode == "user" and len(cpus) < 2:
        raise CellError("one CPU: see user-same")
    daemon = {"user": set(cpus[1:2]), "user-same": {cpus[0]}}.get(mode, set(cpus))
    with held(rig.region.pid if rig else None, {cpus[0]}, daemon):
        yield


def run(command: list, environment: dict | None = None) -> dict:
    """What the toucher says. CellError where it can't; CellFailed where it is killed, as by SIGBUS."""
    done = subprocess.run([program("toucher"), *map(str, command)], check=False, capture_output=True,
                          text=True, env={**os.environ, **(environment or {})})
    if done.returncode < 0:
        raise CellFailed(f"toucher {' '.join(map(str, command))}: ended with status {done.returncode}")
    if done.returncode:
        raise CellError(done.stderr.strip() or f"toucher ended with status {done.returncode}")
    return json.loads(done.stdout)


def touched(place: Place, mode: str, command: list, environment: dict | None = None,
            units: int = 0) -> tuple[dict, dict]:
    """What the toucher says; page faults and what the daemon decided, for each touch or each of *units*."""
    with placed(mode, place.rig), place.rig.watched() if place.rig else contextlib.nullcontext():
        before = settled(place.rig) if place.rig else None
        got = run(command, environment)
        counts = {"minor": got["minor"], "major": got["major"]}
        if place.rig:
            counts |= faults_of(settled(place.rig)) - faults_of(before)
    counts = {name: round(value / (units or got["touches"]), 6) for name, value in counts.items()}
    return got, counts | {"pmd_mapped_bytes": got["pmd_bytes"]}


def how(mode: str, page: int) -> str:
    """As mapped.h calls it."""
    if mode in USER:  # the daemon fills 2 MiB at once on a source without huge pages, too, if it may
        return "user" if page == HUGE else "user-pte"
    return mode if mode in ("kernel", "kernel-pte") else "plain"


@contextlib.contextmanager
def new_file(place: Place, state: str, size: int) -> Iterator[Path]:
    """A file in *place*, which is gone afterwards."""
    path = place.folder / "file"
    try:
        prepare(path, state, size)
        yield path
    finally:
        path.unlink(missing_ok=True)


def touch(places: Places, cell: dict, most: int, seconds: float, seed: int) -> Visit:
    """Single touches of a new file."""
    mode, page = cell["mode"], cell["page"]
    place, step = places.get(mode, page), STEP if page == PAGE else HUGE
    count = most if page == PAGE else max(most // 16, 4)
    with new_file(place, cell["state"], count * step) as path:
        got, counts = touched(place, mode, ["each", how(mode, page), path, count * step, step, cell["access"],
                                            count, int(seconds * 1e9), seed])
    return Visit({"ns": got["ns"]}, counts)


def sweep(places: Places, cell: dict, _seconds: float, seed: int) -> Visit:
    """All pages of a new file."""
    mode, page, size = cell["mode"], cell["page"], cell["size"]
    place = places.get(mode, page)
    with new_file(place, cell["state"], size) as path:
        got, counts = touched(place, mode, ["whole", how(mode, page), path, size, cell["order"],
                                            cell["access"], seed])
    return Visit({"mib_s": [round(size / MIB / (got["ns"][0] / 1e9), 2)]}, counts)


def resident(places: Places, cell: dict, count: int, _seconds: float, seed: int) -> Visit:
    """Loads from what is mapped."""
    mode, page, size = cell["mode"], cell["page"], cell["size"]
    place = places.get(mode, page)
    with new_file(place, "written", size) as path:
        got, counts = touched(place, mode, ["resident", how(mode, page), path, size, count, seed])
    each = got["touches"] / len(got["ns"])
    return Visit({"load_ns": [round(ns / each, 3) for ns in got["ns"]]}, counts)


# Reason of docs/fault.md: how the toucher maps, what is under it, what the source is, the access.
REASONS = {
    "none": ("whole", "written", HUGE, "store"), "pmd-off": ("whole", "written", PAGE, "store"),
    "colour": ("colour", "written", HUGE, "store"), "before-mapping": ("before", "written", HUGE, "store"),
    "after-mapping": ("after", "written", HUGE, "store"), "end-of-file": ("eof", "written", HUGE, "store"),
    "pte-entry": ("pte-entry", "written", HUGE, "store"), "short-extent": ("whole", "half", HUGE, "store"),
    "no-huge-zero-page": ("whole", "hole", HUGE, "load"),
}


def refused(places: Places, cell: dict, most: int, _seconds: float, seed: int) -> Visit:
    """All pages of some 2 MiB, mapped by the program itself; observed, it runs under the shim."""
    mode, reason = cell["mode"], cell["reason"]
    shape, state, page, access = REASONS[reason]
    place = places.get(mode, page)
    units = 1 if shape == "eof" else most
    by = how(mode, HUGE)
    # As `daxfs run` does it.
    shim = {"LD_PRELOAD": str(client.PRELOAD), "DAXFS_FAULT": by} if by != "plain" else {}
    with new_file(place, state, units * HUGE - (PAGE if shape == "eof" else 0)) as path:
        command = ["shape", shape, path, units, access]
        if reason == "pmd-off" and mode in USER:  # the library alone can ask the daemon for that
            command, shim = ["whole", "user-pte", path, units * HUGE, "sequential", access, seed], {}
        got, counts = touched(place, mode, command, shim, units)
    return Visit({"unit_ns": got["ns"] if command[0] == "shape" else [got["ns"][0] / units]}, counts)


def where(modes: list[str]) -> list[tuple[str, int]]:
    """Modes and sizes of pages that are compared."""
    return [(mode, page) for page in (PAGE, HUGE) for mode in modes if page == PAGE or mode in BOTH_SIZES]


def touch_cells(places: Places, modes: list[str], quick: bool) -> list[Cell]:
    kinds = [("load", "hole"), ("load", "written"), ("store", "hole"), ("store", "written"),
             ("upgrade", "written"), ("mkwrite", "written"), ("again", "written")]
    if not quick:
        kinds += [("load", "unwritten"), ("store", "unwritten"), ("upgrade", "hole"),
                  ("upgrade", "unwritten")]
    cells = []
    for mode, page in where(modes):
        more = [("load", "warm"), ("store", "warm")] if mode in THROUGH_CACHE else []
        for access, state in kinds + more:
            cell = {"mode": mode, "page": page, "state": state, "access": access}
            cells.append(Cell(cell, partial(touch, places, cell, 256 if quick else 1024)))
    return cells


def sweep_cells(places: Places, modes: list[str], quick: bool, size: int) -> list[Cell]:
    kinds = [("store", "sequential", "hole"), ("store", "sequential", "written"),
             ("load", "sequential", "written"), ("store", "random", "written"),
             ("populate-read", "at once", "written")]
    if not quick:
        kinds += [("store", "sequential", "unwritten"), ("load", "random", "written"),
                  ("populate-write", "at once", "hole"), ("populate-write", "at once", "written")]
    cells = []
    for mode, page in where(modes):
        some = size // 16 if mode in USER and page == PAGE else size
        for access, order, state in kinds:
            cell = {"mode": mode, "page": page, "state": state, "access": access, "order": order,
                    "size": some}
            cells.append(Cell(cell, partial(sweep, places, cell)))
    return cells


def resident_cells(places: Places, modes: list[str], quick: bool, size: int) -> list[Cell]:
    cells = []
    for mode, page in where(modes):
        if mode in (*DISKS, "kernel-pte", "user-same") or (mode, page) == ("user", PAGE):
            continue  # nothing else than others in pages of this size
        for some in sorted({max(size // 64, 4 * MIB), max(size // 8, 4 * MIB), size}):
            cell = {"mode": mode, "page": page, "size": some}
            cells.append(Cell(cell, partial(resident, places, cell, 100_000 if quick else 1_000_000)))
    return cells


def refused_cells(places: Places, modes: list[str], quick: bool) -> list[Cell]:
    cells = []
    for mode in [mode for mode in ("direct", "kernel", *USER) if mode in modes]:
        for reason in REASONS:
            cell = {"mode": mode, "reason": reason}
            cells.append(Cell(cell, partial(refused, places, cell, 2 if quick else 8)))
    return cells


def plan(args) -> Plan:
    """Families that were asked for. RunError: a size or name that makes no sense."""
    wanted = some_of(WORDS, args.family, "--family")
    usual = [mode for mode in MODES if not (args.quick and mode in NOT_QUICK)]
    modes = usual if args.modes is None else some_of(MODES, args.modes, "--modes")
    size = bytes_of_a_file(args, 64 * MIB if args.quick else 1 << 30, 16 * MIB, 8)
    places, quick = Places(args.options, size), args.quick
    families = [
        Family("touch", "A first touch, by who answers the fault", WORDS["touch"], "ns", ("bars", "cdf"),
               ("mode",), touch_cells(places, modes, quick), "state", ("access", "page"), places.close),
        Family("sweep", "First touch of a whole file", WORDS["sweep"], "mib_s", ("bars",),
               ("mode",), sweep_cells(places, modes, quick, size), "access", ("state", "order", "page"),
               places.close),
        Family("resident", "Random loads from what is mapped", WORDS["resident"], "load_ns", ("lines",),
               ("mode", "page"), resident_cells(places, modes, quick, size), "size", (), places.close),
        Family("refused", "2 MiB, with and without a PMD", WORDS["refused"], "unit_ns", ("bars",),
               ("mode",), refused_cells(places, modes, quick), "reason", (), places.close),
    ]
    made = [family for family in families if family.name in wanted and family.cells]
    if not made:
        raise RunError(f"--modes: none of {', '.join(wanted)} is measured with {', '.join(modes)} alone")
    return Plan(NAME, "What page faults cost", AXES, MEASURES, made, args.rounds, places.close)


def main() -> int:
    parser = arguments.parser(__doc__, NAME, 5)
    parser.add_argument("--size", metavar="BYTES", help="of files that are touched as a whole (default 1G, "
                                                        "with --quick 64M; less where memory is short)")
    parser.add_argument("--family", metavar="NAME[,NAME]", help=f"of {', '.join(WORDS)} (default: all)")
    parser.add_argument("--modes", metavar="NAME[,NAME]", help=f"of {', '.join(MODES)} (default: all; with "
                                                               f"--quick all but {', '.join(NOT_QUICK)})")
    return arguments.carry_out(arguments.settle(parser.parse_args(), NAME), plan)


if __name__ == "__main__":
    sys.exit(main())
