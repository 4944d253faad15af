#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Row S17, xfs_io -fc "truncate 0" -c "pwrite -b 8m 0 3g" -c fsync, on daxfs and on other file systems.

The measurement of the argument about DAX and fsync of 2015: 305 MiB/s with DAX, 1.218 GiB/s buffered on the
same memory, and "DAX + fsync should be faster than buffered + fsync … if it isn't then we've screwed up".
Three families: ways (transports), policies (track= and write=, in packed files and in own ranges), and over:
the same policies without the truncate, over a file that is there, where they have something to do. Beside
them ext4 and XFS, buffered, on loop devices, and tmpfs as the bound; all lie on memory of the same kind. Time
is that of the whole command, process and all. Just before each run the same is done once, untimed, on the
same mount, so that all find memory that was in use just now (lab/choices.py). Where memory is short less than
3 GiB is written; the title says how much.

Needs root, /dev/fuse and xfs_io; what else is missing (mkfs.xfs, loop devices, io_uring) is skipped and
named.
"""

import itertools
import os
import re
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import lab.start  # noqa: F401
import loops
import mounts
from lab import arguments, table
from lab.choices import bytes_of_a_file, some_of
from lab.plan import Axis, Cell, CellError, CellFailed, Family, HostError, Measure, Plan, Visit
from lab.rigs import Rig, disk, spent
from lab.store import RunError
from lab.timed import timed

NAME = "s17"
MIB = 1 << 20
WANTED = 3 << 30
TRACKS = ("pte", "pmd", "line", "extent", "extent+clear", "none")
DISKS = ("ext4", "xfs")
TMPFS = {"tmpfs": "never", "tmpfs, 2 MiB": "always"}
MUST_BEAT = ("dev", "uring")  # ext4: the target of SEEDS.md

AXES = {
    "target": Axis("file system"), "placement": Axis("placement"), "write": Axis("write="),
    "size": Axis("file", "number", "B"),
}
MEASURES = {
    "mib_s": Measure("truncate, pwrite, fsync", "MiB/s", "higher"),
    "write_mib_s": Measure("pwrite alone", "MiB/s", "higher"),
    "fsync_ns": Measure("fsync in the daemon", "ns"),
}
WORDS = {
    "ways": "The same command by each transport, with the default policies. The thread demanded "
            "that DAX with fsync beats buffered with fsync: compare with ext4 and XFS.",
    "policies": "The row's command for a new file, on daxfs with each policy. What is written to new "
                "blocks goes by non-temporal stores and is durable when write(2) returns, whatever "
                "track= and write= say, so in packed files all are alike and fsync has nothing to do: "
                "the case for non-temporal stores. A file with a range of its own is mapped directly, "
                "and xfs_io opens it for writing, so a mapping may exist that nobody observes: fsync "
                "flushes all of it once more (coarse_bytes). ext4 and XFS are what a page cache over "
                "the same memory does, tmpfs is the bound.",
    "over": "The same pwrite and fsync over a file that is there. With write=nt fsync finds "
            "nothing; with write=cached write(2) stores through the caches and fsync writes back "
            "what the tracker says: all of the file, so no tracker can spare anything, and what "
            "differs is what marking costs. extent (S15) flushes what was ever active; none leaves "
            "it all to the application: it is not durable, and shows what the flush costs.",
}


def show_size(size: int) -> str:
    """As xfs_io takes it: 3g, 256m."""
    return f"{size >> 30}g" if size % (1 << 30) == 0 else f"{size // MIB}m"


class Targets:
    """What the row runs on, made when it is first asked for: a region, and one of each other file system."""

    def __init__(self, size: int, options: str):
        self.size, self.options = size, options
        self.room = size + size // 4 + 256 * MIB
        self._rig: Rig | None = None
        self._others: dict[str, mounts.Tmpfs | loops.LoopMount] = {}

    def rig(self, more: str) -> Rig:
        """The region, mounted with these options, too. CellError where that can't be."""
        transport = more.removeprefix("transport=")
        if transport != more and (reason := mounts.why_no_transport(transport)):
            raise CellError(reason)
        options = ",".join(filter(None, (self.options, more)))
        if self._rig is None:
            self._rig = Rig(options, self.room)
        elif self._rig.region.options != options:
            self._rig.remount(options)
        return self._rig

    def other(self, name: str) -> Path:
        """ext4, xfs, or a tmpfs."""
        if name not in self._others:
            self._others[name] = (disk(name, self.room) if name in DISKS
                                  else mounts.Tmpfs(self.room, TMPFS[name]))
        return self._others[name].path

    def run(self, folder: Path, over: bool, *watched: Callable[[], None]) -> tuple[float, float]:
        """Seconds of the command and, as xfs_io says, of its pwrite: the second of two runs, in *folder*.

        Between them the file is removed, or with *over* stays and is not truncated. *watched*: called before
        the second run and after it.
        """
        path = folder / "file"
        try:
            self._command(path, ["-fc", "truncate 0"])
            if not over:
                path.unlink()
            for call in watched[:1]:
                call()
            took = self._command(path, [] if over else ["-fc", "truncate 0"])
            for call in watched[1:]:
                call()
        finally:
            path.unlink(missing_ok=True)
        return took

    def _command(self, path: Path, begin: list[str]) -> tuple[float, float]:
        pwrite = f"pwrite -b 8m 0 {show_size(self.size)}"
        took, said = timed(["xfs_io", *begin, "-c", pwrite, "-c", "fsync", str(path)])
        written = os.stat(path).st_size
        if written != self.size:
            raise CellFailed(f"{written} bytes are in the file, not {self.size}: {said}")
        return took, seconds_of(said)

    def close(self) -> None:
        """Unmount all of them; what is asked for afterwards is made anew."""
        if self._rig is not None:
            self._rig.close()
        for other in self._others.values():
            other.close()
        self._rig = None
        self._others.clear()


def seconds_of(output: str) -> float:
    """Of the pwrite, as xfs_io prints it: "0.0123 sec", or "0:01:02.34". CellFailed: neither."""
    if found := re.search(r"; ([0-9.]+) sec ", output):
        return float(found[1])
    if found := re.search(r"; (\d+):(\d+):([0-9.]+) ", output):
        return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
    raise CellFailed(f"xfs_io says something else than it did: {output[:200]!r}")


def rates(size: int, took: float, writing: float) -> dict[str, list[float]]:
    """Samples of a run."""
    return {"mib_s": [round(size / MIB / took, 1)],
            "write_mib_s": [round(size / MIB / max(writing, 1e-4), 1)]}


def on_daxfs(targets: Targets, options: str, track: str, placement: str, over: bool, _seconds: float,
             _seed: int) -> Visit:
    """The row on daxfs, mounted with *options*."""
    rig = targets.rig(options)
    rig.set("track", track)
    if placement == "own" and (reason := rig.why_no_direct()):
        raise CellError(reason)
    stats: list[dict] = []

    def look() -> None:
        stats.append(rig.stat())

    with rig.watched():
        took, writing = targets.run(rig.folder(placement), over, look, look)
    before, after = stats
    counts, phases = spent(before, after, 1)
    counts["coarse_bytes"] = after["dax"]["coarse_bytes"] - before["dax"]["coarse_bytes"]
    ns = [stat["operations"].get("fsync", {}).get("total_ns", 0) for stat in stats]
    return Visit(rates(targets.size, took, writing) | {"fsync_ns": [ns[1] - ns[0]]}, counts, phases)


def on_other(targets: Targets, name: str, over: bool, _seconds: float, _seed: int) -> Visit:
    """The row on something else than daxfs."""
    return Visit(rates(targets.size, *targets.run(targets.other(name), over)))


def others(targets: Targets, over: bool = False) -> list[Cell]:
    """What daxfs is compared with."""
    return [Cell({"target": name, "write": "buffered" if name in DISKS else "memory", "size": targets.size},
                 partial(on_other, targets, name, over)) for name in (*DISKS, *TMPFS)]


def policies(targets: Targets, tracks: Sequence[str], placements: Sequence[str], over: bool) -> list[Cell]:
    """Each of *tracks* with each way to write."""
    cells = []
    for track, placement, write in itertools.product(tracks, placements, ("nt", "cached")):
        cell = {"target": f"track={track}", "placement": placement, "write": write, "size": targets.size}
        cells.append(Cell(cell, partial(on_daxfs, targets, f"write={write}", track, placement, over)))
    return cells + others(targets, over)


def ways(targets: Targets) -> list[Cell]:
    """Each transport with the default policies."""
    cells = []
    for transport in mounts.TRANSPORTS:
        for placement in ("packed",) if transport == "pyfuse3" else ("packed", "own"):
            cell = {"target": transport, "placement": placement, "write": "nt", "size": targets.size}
            options = f"transport={transport}"
            cells.append(Cell(cell, partial(on_daxfs, targets, options, "pte", placement, False)))
    return cells + others(targets)


def plan(args) -> Plan:
    """Families that were asked for. HostError: no xfs_io; RunError: a size or name that makes no sense."""
    if not shutil.which("xfs_io"):
        raise HostError("xfs_io is not installed: apt install xfsprogs")
    chosen = some_of(WORDS, args.family, "--family")
    if args.target and "ways" not in chosen:
        raise RunError("--target needs the family ways")
    # The region, two images, what is written, and room for others.
    targets = Targets(bytes_of_a_file(args, 128 * MIB if args.quick else WANTED, 8 * MIB, 6), args.options)
    size = show_size(targets.size)
    tracks, placements = (TRACKS, ("packed", "own")) if not args.quick else (TRACKS[::3], ("packed",))
    shown = ("mib_s", ("bars", "phases"), ("placement", "write"))
    families = [
        Family("ways", f"S17, {size}, by transport", WORDS["ways"], *shown, ways(targets), "target", (),
               targets.close),
        Family("policies", f"S17, {size}, by policy", WORDS["policies"], *shown,
               policies(targets, tracks, placements, False), "target", (), targets.close),
        Family("over", f"The same over a file that is there, {size}, by policy", WORDS["over"], *shown,
               policies(targets, TRACKS, placements, True), "target", (), targets.close),
    ]
    made = [family for family in families if family.name in chosen]
    return Plan(NAME, f'Row S17: xfs_io -fc "truncate 0" -c "pwrite -b 8m 0 {size}" -c fsync', AXES, MEASURES,
                made, args.rounds, targets.close)


def verdict(directory: Path) -> int:
    """Say whether daxfs, in packed files, beats ext4 by each transport that has to. 0; 1: one does not."""
    found, _ = table.gathered(directory)
    medians = {}
    for (family, key, measure), samples in found.items():
        cell = dict(key)
        if (family, measure) == ("ways", "mib_s") and cell.get("placement") != "own":
            medians[cell["target"]] = statistics.median(samples)
    if "ext4" not in medians:
        print("target: ext4 was not measured, nothing to compare with")
        return 1
    missed = 0
    for name in MUST_BEAT:
        if name not in medians:
            print(f"target: {name} was not measured")
            continue
        ratio = medians[name] / medians["ext4"]
        missed += ratio <= 1
        print(f"target: {name} / ext4 {ratio:.2f}, more than 1: {'met' if ratio > 1 else 'MISSED'}")
    return 1 if missed else 0


def main() -> int:
    parser = arguments.parser(__doc__, NAME, 7)
    parser.add_argument("--size", metavar="BYTES", help="what is written (default 3G, with --quick 128M; "
                                                        "less where memory is short)")
    parser.add_argument("--family", metavar="NAME[,NAME]", help=f"of {', '.join(WORDS)} (default: all)")
    parser.add_argument("--target", action="store_true",
                        help="exit status 1 if dev or uring is not faster than ext4")
    args = arguments.settle(parser.parse_args(), NAME)
    status = arguments.carry_out(args, plan)
    return verdict(args.output) if args.target and not status else status


if __name__ == "__main__":
    sys.exit(main())
