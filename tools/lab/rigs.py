# SPDX-License-Identifier: MIT
"""Mounted regions for experiments: one for each set of mount options, kept until a family is done.

A rig is a pool directory on a tmpfs of its own: ``packed`` has files in the shared range, ``own`` files with
the DAX flag, which programs map directly. ``track=`` is switched on the live mount. What
can't be had on this host is a CellError; a daemon that dies is a RigError. All names carry the pid, so that
the next run can take away what a killed one left. Limits: needs root and /dev/fuse; one thread.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import loops
import mounts

from daxfs.cli.set import CHECKS as LIVE
from daxfs.fuse import control
from lab.plan import CellError

ROOM = 6 << 30      # of a rig's tmpfs, which is sparse
SPARE = 1 << 30     # bytes of memory that are left to others

_END_S = 2          # that a daemon may take to end whose connection did

_OURS = re.compile(r"daxfs-lab-(\d+)-")


class RigError(Exception):
    """The daemon of a rig died, or hung: nothing more can be measured."""


def memory_left() -> int:
    """Bytes of memory that can be had without swapping."""
    with open("/proc/meminfo") as file:
        facts = dict(line.split(":") for line in file)
    return int(facts["MemAvailable"].split()[0]) * 1024


def need(count: int, what: str) -> None:
    """CellError where *what* would take *count* bytes of memory that are not there."""
    left = max(0, memory_left() - SPARE)
    if count > left:
        raise CellError(f"{what} needs {count >> 20} MiB of memory; {left >> 20} MiB are free")


class Rig:
    """A region that is mounted with *options* (``transport=uring,write=cached``).

    *size*: bytes of the region, which hold the files in ``packed``. *pages*: the tmpfs's ``huge=``;
    ``huge``: it has huge pages.
    """

    def __init__(self, options: str, size: int, pages: str = "always"):
        named = dict(word.partition("=")[::2] for word in options.split(",") if word)
        transport = named.get("transport", "")
        if transport and (reason := mounts.why_no_transport(transport)):
            raise CellError(reason)
        need(size, f"a region of {size >> 20} MiB")
        self.live = {name: named[name] for name in LIVE if name in named}
        self.region: mounts.MountedRegion | None = None
        self.huge = pages == "always"
        try:
            self.tmpfs = mounts.Tmpfs(size + ROOM, pages)
        except mounts.CommandError:
            self.huge = False
            self.tmpfs = mounts.Tmpfs(size + ROOM)
        try:
            self.region = mounts.MountedRegion(size, kind="pool", source=self.tmpfs.path / "pool",
                                               options=options)
            self.region.mount()
            for name in ("packed", "own"):
                (self.region.path / name).mkdir()
            if transport != "pyfuse3":  # which has no ioctls, and no direct mappings
                mounts.set_dax(self.region.path / "own")
        except mounts.CommandError as exc:
            self.close()
            # What the command said, without the command.
            raise CellError(" ".join((str(exc).partition("\n")[2] or str(exc)).split())) from None
        except BaseException:
            self.close()
            raise

    def folder(self, placement: str) -> Path:
        """Where files of *placement* (packed, own) are made."""
        return self.region.path / placement

    def why_no_direct(self) -> str:
        """Why files in ``own`` are not mapped directly; empty: they are."""
        return self.stat()["direct"]["why_not"]

    def remount(self, options: str) -> None:
        """Mount the same region with other *options*."""
        self.region.remount(options)
        named = dict(word.partition("=")[::2] for word in options.split(",") if word)
        self.live = {name: named[name] for name in LIVE if name in named}

    def set(self, name: str, value: str) -> None:
        """`daxfs set DIR NAME=VALUE`, if it is another one than now."""
        if self.live.get(name) != value:
            self.ask({name: value})
            self.live[name] = value

    def stat(self) -> dict:
        """What `daxfs stat --json` says."""
        return self.ask({"get": "stat"})

    def ask(self, request: dict) -> dict:
        """The daemon's answer on its control socket. RigError where there is none."""
        try:
            return control.ask_path(str(self.region.path), request)
        except OSError as exc:
            if self.ended(_END_S):
                raise self.death() from None
            raise RigError(f"{self.region.path}: {exc}") from None

    def ended(self, seconds: float) -> bool:
        """Whether the daemon is gone, within *seconds*: its connections end before its process does."""
        deadline = time.monotonic() + seconds
        while self.region.daemon_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self.region.daemon_alive()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """In here an error is taken for the end of the daemon, a RigError, where it is gone."""
        try:
            yield
        except (CellError, OSError) as exc:
            cut = getattr(exc, "errno", 0) in (errno.ENOTCONN, errno.ECONNABORTED)
            if self.ended(_END_S if cut else 0):
                raise self.death() from None
            raise

    def death(self) -> RigError:
        """What is known of the end of the daemon."""
        log = self.region.log_file
        lines = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
        said = f"; its log ends: {' | '.join(lines)}" if lines else ""
        return RigError(f"the daemon of the mount with {self.region.options} died{said}")

    def close(self) -> None:
        """Unmount; nothing is left."""
        if self.region is not None:
            self.region.close()
        self.tmpfs.close()


class Rigs:
    """Rigs by their options, made when they are first asked for. *size*, *pages*: of each, as a Rig's."""

    def __init__(self, size: int, pages: str = "always"):
        self.size, self.pages = size, pages
        self._rigs: dict[str, Rig | CellError] = {}

    def get(self, options: str) -> Rig:
        """The rig that is mounted with *options*; CellError where there can be none."""
        if options not in self._rigs:
            try:
                self._rigs[options] = Rig(options, self.size, self.pages)
            except CellError as exc:
                self._rigs[options] = exc
        found = self._rigs[options]
        if isinstance(found, CellError):
            raise found
        return found

    def close(self, keep: str | None = None) -> None:
        """Unmount all of them, but the one with the options *keep*."""
        for options in [one for one in self._rigs if one != keep]:
            rig = self._rigs.pop(options)
            if isinstance(rig, Rig):
                rig.close()


def _changed(before: dict, after: dict, *path: str) -> float:
    """How much more the number at *path* is; 0 where there is none."""
    for name in path:
        before, after = before.get(name) or {}, after.get(name) or {}
    return (after or 0) - (before or 0)


def spent(before: dict, after: dict, calls: int) -> tuple[dict[str, float], dict[str, float]]:
    """Counts, and phases in ns, for each of *calls* fsyncs between two `stat` of one mount."""
    counts = {name: _changed(before, after, "flush", name) for name in ("flush_lines", "drain", "nt_bytes")}
    counts |= {name: _changed(before, after, "tracker", name) for name in ("flushed_bytes", "shared_flushes")}
    phases = {name: _changed(before, after, "fsync", "phases", name, "total_ns")
              for name in (after.get("fsync") or {}).get("phases", {})}
    return ({name: round(value / calls, 2) for name, value in counts.items()},
            {name: round(value / calls, 1) for name, value in phases.items()})


def disk(kind: str, size: int) -> loops.LoopMount:
    """ext4 or XFS over memory of the same kind as a Rig's: in pages of 4 KiB ext4 is a quarter slower.

    All of the image has memory: their allocators go on to blocks that were never used, where the first write
    would wait for tmpfs to find and clear pages, which daxfs, writing where it wrote before, does not.
    """
    if reason := loops.why_not(kind):
        raise CellError(reason)
    need(size, f"{kind} of {size >> 20} MiB")
    try:
        made = loops.LoopMount(kind, size, "always")
    except mounts.CommandError:  # no huge pages in this kernel, for a Rig neither
        made = loops.LoopMount(kind, size)
    try:
        with open(made.image, "r+b") as image:  # mounted: mkfs gives back what the image has
            os.posix_fallocate(image.fileno(), 0, os.fstat(image.fileno()).st_size)
    except BaseException:
        made.close()
        raise
    return made


def _alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def prepare() -> list[str]:
    """From now on mounts carry this process's pid. What killed runs left is taken away, and returned."""
    mounts.PREFIX = f"daxfs-lab-{os.getpid()}-"
    return _take_away_leftovers()


def _take_away_leftovers() -> list[str]:
    gone = []
    with open("/proc/self/mounts") as file:
        rows = [line.split() for line in file]
    # The last mounted first: a file system lies on the tmpfs of its pool.
    for row in reversed(rows):
        found = _OURS.search(row[1])
        if found and not _alive(int(found[1])):
            mounts.run(["umount", "-l", row[1]], check=False)
            gone.append(row[1])
    for folder in {tempfile.gettempdir(), "/dev/shm"}:
        for path in Path(folder).glob("daxfs-lab-*-*"):
            found = _OURS.match(path.name)
            if not found or _alive(int(found[1])) or mounts.mounts_of(path):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            gone.append(str(path))
    return gone
