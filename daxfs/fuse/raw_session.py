# SPDX-License-Identifier: MIT
"""The mount of a region that needs no file system (`daxfs raw`): session.Session with nothing but sources."""

import errno
import logging

from daxfs.errors import UsageError, fail
from daxfs.fuse.raw_ops import NoFileSystem, RawOperations
from daxfs.fuse.session import Session

log = logging.getLogger("daxfs.mount")


class RawSession(Session):
    """A region and its FUSE mount. What stands in the region is nobody's business here."""

    def open(self) -> None:
        """SourceError, UsageError."""
        readonly = self.config.readonly
        self.open_region("ro" if readonly else "rw")
        self.fs = NoFileSystem(self.region, readonly)
        if self.region.emulated:
            log.info("%s: emulated: not power-fail safe", self.config.fsname)

    def check_tracker(self, policy: str) -> None:
        raise UsageError("track= means nothing for a raw region")

    def set_flushers(self, value: str) -> dict:
        raise UsageError("flushers= means nothing for a raw region")

    def make_operations(self) -> RawOperations:
        return RawOperations(self.fs, self.config)

    def info(self) -> dict:
        return {"superblock": None, "space": None, "ranges": None}

    def remount(self, wish: dict) -> dict:
        """Change ro/rw; there is nothing else that can change. EROFS: the region was opened read-only."""
        readonly = bool(wish.get("readonly", self.fs.readonly))
        if not readonly and self.region.mode != "rw":
            raise fail(errno.EROFS, "was mounted read-only; umount it and mount it rw")
        self.fs.readonly = self.config.readonly = readonly
        self.operations.tell_limits()
        log.info("%s: remounted %s", self.mountpoint, "ro" if readonly else "rw")
        return {"ok": True, "options": self.config.describe()}

    def end(self) -> None:
        if self.fs.shut:
            return
        self.operations.raw.end()
        # Orders what was stored past the cache, and no fsync followed, before the end of the mount.
        self.region.drain()
