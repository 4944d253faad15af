# SPDX-License-Identifier: MIT
"""The mount of a file system: session.Session with a FileSystem, and a recording where record= asks for one.

With -o raw the region itself is shown beside it (raw.py).
"""

import errno
import logging
import os

import pyfuse3
import trio

from daxfs.errors import SourceError, UsageError, fail
from daxfs.fuse import facts, options, raw
from daxfs.fuse.handler import handler
from daxfs.fuse.ops import Operations, make_operations
from daxfs.fuse.options import MountConfig
from daxfs.fuse.poisoning import Poisoner
from daxfs.fuse.raw_ops import BesideOperations
from daxfs.fuse.recording import Recording
from daxfs.fuse.revoking import Revoker, detached
from daxfs.fuse.session import Session
from daxfs.layout import ROOT_INO
from daxfs.meta import attr, namespace, revoke
from daxfs.meta import fs as metafs

log = logging.getLogger("daxfs.mount")


class FsSession(Session):
    """A region, its FileSystem and its FUSE mount. ``recording``: None where there is none."""

    after_loss = ", run fsck.daxfs"

    def __init__(self, config: MountConfig):
        super().__init__(config)
        self.recording: Recording | None = None

    def open(self) -> None:
        """Region and file system, with replay. SourceError, FormatError, CorruptError, UsageError."""
        config = self.config
        if config.raw:
            self._check_raw()
        if config.revoke and config.record:
            raise UsageError("revoke can't be had with record=: its log can't hold a revocation")
        self.check_tracker(config.track)
        self._check_flushers(config.flushers)
        # Replay of a read-only mount stays in this process.
        self.open_region("cow" if config.readonly else "rw")
        self._check_dax()
        if config.record:
            self._record()
        self._operation({"op": "mount", "readonly": config.readonly}, self._open_fs)
        if self.fs.replayed:
            log.info("%s: replayed %d records of the journal", config.fsname, self.fs.replayed)
        if self.region.emulated:
            log.info("%s: emulated: not power-fail safe", config.fsname)
        self.warn_of_tracker()

    def check_tracker(self, policy: str) -> None:
        if policy == "none" and self.config.record and self.config.write == "cached":
            raise UsageError("track=none can't be had with record= and write=cached: a recording is judged "
                             "by what fsync promises, and this one promises nothing")

    def _check_flushers(self, count: int) -> None:
        if count > 1 and self.config.record:
            raise UsageError(f"flushers={count} can't be had with record=: its log has one order of what is "
                             "flushed, that of one thread")

    def set_flushers(self, value: str) -> dict:
        self._check_flushers(options.count("flushers", value))
        return super().set_flushers(value)

    def _check_raw(self) -> None:
        """What -o raw can't be had with."""
        config = self.config
        if os.geteuid():
            raise SourceError("raw is for root: it shows the whole region", errno.EPERM)
        if config.readonly:
            raise UsageError("raw can't be had with ro, where the daemon maps the region privately; "
                             "daxfs raw -o ro shows it without its file system")
        if config.record:
            raise UsageError("raw can't be had with record=: a raw write is no operation that its log knows")

    def _check_dax(self) -> None:
        """UsageError where dax=always can't be had, as ext4 refuses it; the region is closed then."""
        if self.config.dax != "always" or self.region.pool is not None:
            return
        self.region.close()
        self.region = None
        raise UsageError(f"dax=always can't be had: {self.config.fsname} has no place for ranges of files; "
                         "for that a source has to be a pool directory, not on hugetlbfs "
                         "(mkfs.daxfs --size SIZE DIRECTORY/ makes one); or mount with dax=inode")

    def _check_name(self) -> None:
        """The root directory must not have a name of its own where the raw region is going to be."""
        if namespace.lookup(self.fs, ROOT_INO, raw.NAME) is None:
            return
        self.fs.unmount()  # as clean as it was
        self.fs = None
        name = os.fsdecode(raw.NAME)
        raise SourceError(f"{self.config.fsname}: the root directory has a {name} of its own, "
                          "where raw needs the name; mount without raw and rename it", errno.EEXIST)

    def _record(self) -> None:
        """Record from before the first store on. Where that can't be, the region is closed again."""
        try:
            self.recording = Recording(self.region, self.config, self.mountpoint)
        except BaseException:
            self.region.close()
            self.region = None
            raise

    def _operation(self, begin: dict, call):
        """``call()``, as an operation of the recording if there is one."""
        return call() if self.recording is None else self.recording.run(begin, call)

    def _open_fs(self) -> dict:
        config = self.config
        self.fs = metafs.mount(self.region, config.readonly)
        self.fs.dax = config.dax
        if config.raw:
            self._check_name()
        self._set_times(config)
        owner = {"uid": config.uid, "gid": config.gid}
        changes = {name: value for name, value in owner.items() if value is not None}
        if changes:
            self._own_root(changes)
        return {"replayed": self.fs.replayed}

    def _own_root(self, changes: dict) -> None:
        """Options uid= and gid=: the root directory belongs to them from now on."""
        inode = self.fs.inodes.read(ROOT_INO)
        if all(getattr(inode, name) == value for name, value in changes.items()):
            return
        if self.config.readonly:
            raise fail(errno.EROFS, "uid= and gid= change the root directory's owner, so not with ro")
        attr.setattr(self.fs, ROOT_INO, changes)

    def _set_times(self, config: MountConfig) -> None:
        self.fs.atime, self.fs.nodiratime, self.fs.lazytime = config.atime, config.nodiratime, config.lazytime

    def make_operations(self) -> Operations:
        config = self.config
        operations = make_operations(self.fs, config, BesideOperations if config.raw else Operations)
        if config.raw:
            operations.show_raw(config.dax != "never")
        if self.recording is not None:
            self.recording.cover(operations, handler)
            operations.recorded = True
        self.revoker = Revoker(operations)
        self.poisoner = Poisoner(operations)
        return operations

    async def beside(self) -> None:
        """umount -l, and nothing of ours is open any more: revoked mappings don't keep the daemon alive.

        They hold the mount, so that the kernel would not tell us of its end as long as a program has one.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.operations.observing.serve)
            await self._detached()

    async def _detached(self) -> None:
        await detached(self.mount)
        if self.config.revoke:
            await self.revoker.at_once()
        await self.revoker.idle()
        log.info("%s: unmounted, and nothing is open", self.mountpoint)
        pyfuse3.terminate()

    def answer(self, request: dict):
        if "revoke" in request:
            return self.revoker.ask(request["revoke"])
        if "poison" in request:
            return self.poisoner.ask(request["poison"])
        return super().answer(request)

    def describe(self) -> dict:
        return super().describe() | {
            "replayed": self.fs.replayed,
            "recording": self.recording.describe() if self.recording else None,
        }

    def info(self) -> dict:
        sb = facts.of_superblock(self.fs.sb) | facts.of_state(self.fs.mem, self.fs.seed)
        space, ranges = facts.of_space(self.fs), facts.of_ranges(self.region)
        return {"superblock": sb, "space": space, "ranges": ranges}

    def remount(self, wish: dict) -> dict:
        """Change ro/rw and the policies for times. EROFS: the region was opened read-only."""
        config, fs = self.config, self.fs
        readonly = bool(wish.get("readonly", fs.readonly))
        if not readonly and self.region.mode != "rw":
            raise fail(errno.EROFS, "was mounted read-only; umount it and mount it rw")
        atime = wish.get("atime", fs.atime)
        if atime not in metafs.ATIME_POLICIES:
            raise fail(errno.EINVAL, f"atime policy {atime!r} is unknown")
        self._operation({"op": "remount", "readonly": readonly}, lambda: self._set_readonly(readonly))
        config.readonly = readonly
        config.atime = atime
        config.nodiratime = bool(wish.get("nodiratime", config.nodiratime))
        config.lazytime = bool(wish.get("lazytime", config.lazytime))
        self._set_times(config)
        self.operations.tell_limits()
        log.info("%s: remounted %s,%s", self.mountpoint, "ro" if readonly else "rw", atime)
        return {"ok": True, "options": config.describe()}

    def _set_readonly(self, readonly: bool) -> None:
        fs = self.fs
        if readonly and not fs.readonly:
            # All durable and marked clean while stores are still allowed.
            self.operations.tell_limits(writes=False)
            try:
                self.operations.files.quiesce()
                fs.sync_all()
                fs.set_mounted(0)
            except BaseException:
                self.operations.tell_limits()  # it stays as it was
                raise
        elif not readonly and fs.readonly:
            fs.set_mounted(1)
        fs.readonly = readonly

    def end(self) -> None:
        self._operation({"op": "unmount"}, self._close_fs)

    def close_region(self) -> None:
        if self.recording is not None:
            self.recording.close()
        super().close_region()

    def _close_fs(self) -> None:
        if self.fs.readonly and self.region.mode == "rw":
            self.fs.readonly = False  # remounted ro: orphans and times still want their end
        if self.operations.raw:
            self.operations.raw.end()
        self.operations.files.quiesce()
        if self.config.revoke:
            revoke.take_all(self.fs)
            self.operations.files.write_back()  # the copies
        self.fs.unmount()
