# SPDX-License-Identifier: MIT
"""Mounted regions for experiments: one for each set of mount options, kept until a family is done.

A rig is a pool directory on a tmpfs of its own, with huge pages unless it is asked otherwise: ``packed`` has files in the
shared range, ``own`` files with the DAX flag, which programs map directly. ``track=`` is switched on the live mount. What
can't be had on this host is a CellError. Limits: needs root and /dev/fuse; one thread.
"""

import contextlib
from pathlib import Path

import mounts

from daxfs.fuse import control
from lab.plan import CellError

ROOM = 6 << 30  # of a rig's tmpfs, which is sparse


class Rig:
    """A region that is mounted with *options*, such as ``transport=uring,write=cached``.

    *size*: bytes of the region, which hold packed files. *huge*: the tmpfs's option.
    """

    def __init__(self, options: str, size: int, huge: str = "always"):
        named = dict(word.partition("=")[::2] for word in options.split(",") if word)
        transport = named.get("transport", "")
        if transport and (reason := mounts.why_no_transport(transport)):
            raise CellError(reason)
        self.track = named.get("track", "pte")
        self.tmpfs = mounts.Tmpfs(size + ROOM, huge)
        try:
            self.region = mounts.MountedRegion(size, kind="pool", source=self.tmpfs.path / "pool",
                                               options=options)
            # By a mount of its own: not every transport has the ioctl.
            self.region.mount("transport=dev")
            for name in ("packed", "own"):
                (self.region.path / name).mkdir()
            mounts.set_dax(self.region.path / "own")
            self.region.remount(options)
        except mounts.CommandError as exc:
            self.close()
            raise CellError(" ".join(str(exc).split())[-200:]) from None
        except BaseException:
            self.close()
            raise

    def folder(self, placement: str) -> Path:
        """Where files of *placement* (packed, own) are made."""
        return self.region.path / placement

    def set(self, name: str, value: str) -> None:
        """`daxfs set DIR NAME=VALUE`, if it is another one than now."""
        if name == "track" and value == self.track:
            return
        control.ask_path(str(self.region.path), {name: value})
        if name == "track":
            self.track = value

    def stat(self) -> dict:
        """What `daxfs stat --json` says."""
        return control.ask_path(str(self.region.path), {"get": "stat"})

    def close(self) -> None:
        """Unmount; nothing is left."""
        with contextlib.suppress(AttributeError):
            self.region.close()
        self.tmpfs.close()


class Rigs:
    """Rigs by their options, made when they are first asked for."""

    def __init__(self, size: int, huge: str = "always"):
        self.size, self.huge = size, huge
        self._rigs: dict[str, Rig | CellError] = {}

    def get(self, options: str) -> Rig:
        """The rig that is mounted with *options*; CellError where there can be none."""
        if options not in self._rigs:
            try:
                self._rigs[options] = Rig(options, self.size, self.huge)
            except CellError as exc:
                self._rigs[options] = exc
        found = self._rigs[options]
        if isinstance(found, CellError):
            raise found
        return found

    def close(self) -> None:
        """Unmount all of them."""
        for rig in self._rigs.values():
            if isinstance(rig, Rig):
                rig.close()
        self._rigs.clear()


def spent(before: dict, after: dict, calls: int) -> tuple[dict[str, float], dict[str, float]]:
    """Counts, and phases in ns, for each of *calls* fsyncs between two `stat` of one mount."""
    def delta(*path: str) -> float:
        a, b = before, after
        for name in path:
            a, b = a.get(name, {}), b.get(name, {})
        return ((b or 0) - (a or 0)) / calls
    counts = {name: delta("flush", name) for name in ("flush", "flush_lines", "drain", "nt_bytes")}
    counts |= {name: delta("tracker", name) for name in ("flushed_bytes", "dirtied_bytes", "shared_flushes")}
    phases = {name: delta("fsync", "phases", name, "total_ns")
              for name in after.get("fsync", {}).get("phases", {})}
    return counts, phases
