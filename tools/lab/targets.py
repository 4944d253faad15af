# SPDX-License-Identifier: MIT
"""What fio_suite and xfs_io_suite compare: ways to reach a file, by name, each mounted when first asked for.

``NAME`` or ``NAME:OPTION=VALUE,…``: the options are mount.daxfs's, ``track=`` is switched on the live
mount. What can't be had on this host is a CellError. Limits: needs root; one thread.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import loops
import mounts

from daxfs.errors import UsageError
from daxfs.fuse import options as mount_options
from lab.plan import CellError, Visit
from lab.rigs import Rig, RigError, Rigs, disk, need, spent

# Whole words of the reader's: what each is.
KINDS = {
    "packed": "daxfs, a file among others in the region: read and write reach it, mmap is the page cache's",
    "own": "daxfs, a file with the DAX flag: mmap reaches the region's own pages; nobody sees the stores",
    "run-kernel": "own, the program under `daxfs run`: observed mappings, the kernel answers page faults",
    "run-user": "own, the program under `daxfs run --fault user`: the daemon answers page faults",
    "ext4": "ext4 on a loop device over a file on tmpfs with huge pages: page cache and journal",
    "xfs": "XFS on a loop device over a file on tmpfs with huge pages",
    "tmpfs": "tmpfs with huge pages, below all the others: the bound; nothing is made durable",
}
DAXFS = ("packed", "own", "run-kernel", "run-user")
DEFAULTS = {"transport": "uring", "write": "nt"}
CHUNK = 1 << 20


@dataclass(frozen=True)
class Target:
    """*text*: as it was given. *kind*: of KINDS. *options*: of mount.daxfs, without ``track=``. *track*."""

    text: str
    kind: str
    options: str = ""
    track: str = "pte"
    transport: str = "uring"

    @property
    def daxfs(self) -> bool:
        return self.kind in DAXFS


def parse(text: str, more: str = "") -> Target:
    """The target *text* says; *more*: options for all mounts of daxfs. ValueError says what is wrong."""
    kind, colon, given = text.partition(":")
    if kind not in KINDS:
        raise ValueError(f"{text!r}: no such target; one of {', '.join(KINDS)}")
    if kind not in DAXFS:
        if colon:
            raise ValueError(f"{text!r}: {kind} takes no options")
        return Target(text, kind)
    words = [word for part in (more, given) for word in part.split(",") if word]
    named = DEFAULTS | dict(word.partition("=")[::2] for word in words)
    options = ",".join(f"{name}={value}" if value else name for name, value in named.items()
                       if name != "track")
    try:
        # By what mount.daxfs itself knows.
        config = mount_options.parse(",".join(filter(None, (options, f"track={named.get('track', 'pte')}"))))
    except UsageError as exc:
        raise ValueError(f"{text!r}: {exc}") from None
    return Target(text, kind, options, config.track, config.transport)


class Place:
    """Where a visit happens: ``folder``, and ``command`` that goes before the program's."""

    def __init__(self, target: Target, folder: Path, rig: Rig | None):
        self.target, self.folder, self.rig = target, folder, rig
        self.command: list[str] = []
        if target.kind.startswith("run-"):
            self.command = [mounts.command("daxfs"), "run", "--fault", target.kind[4:], "--"]
        self._before: dict = {}

    def begin(self) -> None:
        """The daemon's counters count from here on."""
        if self.rig:
            self._before = self.rig.stat()

    def end(self, visit: Visit, calls: float, syncs: float) -> Visit:
        """*visit* with what the daemon counted: for each of *calls*; phases for each of *syncs*."""
        if self.rig and calls:
            after = self.rig.stat()
            visit.counts, _ = spent(self._before, after, calls)
            _, phases = spent(self._before, after, syncs or 1)
            visit.phases = phases if syncs and any(phases.values()) else {}
        return visit


class Targets:
    """All mounts of a run. *size*: bytes that the files of one visit take at most."""

    def __init__(self, size: int):
        self.size = size
        self._rigs = Rigs(2 * size + (256 << 20))
        self._others: dict[str, mounts.Tmpfs | loops.LoopMount] = {}

    @contextmanager
    def place(self, target: Target) -> Iterator[Place]:
        """A place for one visit; files made there are removed at its end."""
        need(2 * self.size, f"{target.text} with files of {self.size >> 20} MiB")
        if target.daxfs:
            rig = self._rigs.get(target.options)
            if target.kind != "packed" and (reason := rig.why_no_direct()):
                raise CellError(f"no direct mappings: {reason}")
            rig.set("track", target.track)
            made = Place(target, rig.folder("packed" if target.kind == "packed" else "own"), rig)
            with rig.watched(), _emptied(made.folder), _told_of_death(rig):
                yield made
        else:
            folder = self._other(target.kind) / "files"
            folder.mkdir(exist_ok=True)
            with _emptied(folder):
                yield Place(target, folder, None)

    def _other(self, kind: str) -> Path:
        if kind not in self._others:
            if kind == "tmpfs":
                self._others[kind] = mounts.Tmpfs(4 * self.size + (64 << 20), "always")
            else:
                self._others[kind] = disk(kind, 3 * self.size + (128 << 20))
        return self._others[kind].path

    def close(self) -> None:
        """Unmount all of them; they are made again when they are asked for."""
        self._rigs.close()
        while self._others:
            self._others.popitem()[1].close()


@contextmanager
def _told_of_death(rig: Rig) -> Iterator[None]:
    """In here a program that fails because the daemon is gone is a RigError, which says so."""
    try:
        yield
    except mounts.CommandError as exc:
        if not rig.ended(1):
            raise
        raise RigError(f"{rig.death()}\n{exc}") from None


@contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):  # of a dead mount: what failed before is the news
            _empty(folder)
        raise
    _empty(folder)


def _empty(folder: Path) -> None:
    for path in list(folder.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def fill(path: Path, size: int) -> None:
    """Make *path* a file of *size* bytes, all written and durable: no hole, no zeros."""
    block = bytes(range(1, 256)) * (CHUNK // 255 + 1)
    with open(path, "wb", buffering=0) as file:
        for at in range(0, size, CHUNK):
            file.write(block[: min(CHUNK, size - at)])
        os.fsync(file.fileno())
