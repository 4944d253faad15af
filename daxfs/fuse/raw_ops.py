# SPDX-License-Identifier: MIT
"""Handlers of mounts that show the raw region, alone (RawOperations) or beside a file system.

They translate and return: raw.RawTree has the meaning. Limits: which request is the raw region's is told by
inode numbers and handles alone, in the tables below; a handler that is in none of them is the file system's.
"""

import errno

from ..data._dax_io import DaxIo
from ..data._tracker import PteTracker
from ..errors import fail
from ..fault._decision import CachedFaults
from ..layout import ROOT_INO
from .handler import handler
from .ops import Operations
from .ops_base import BaseOperations
from .options import threshold
from .raw import NAME, RAW_INO, RawTree
from .stats import Counters

# Which arguments of a handler are inode numbers, and which are numbers of handles.
_INODES = {
    "lookup": (0,), "getattr": (0,), "setattr": (0,), "readlink": (0,), "mknod": (0,), "mkdir": (0,),
    "symlink": (0,), "link": (0, 1), "unlink": (0,), "rmdir": (0,), "rename": (0, 2), "create": (0,),
    "open": (0,), "opendir": (0,), "setxattr": (0,), "getxattr": (0,), "listxattr": (0,), "removexattr": (0,),
    "statx": (0,), "tmpfile": (0,),
}  # fmt: skip
_HANDLES = {
    "read": (0,), "write": (0,), "flush": (0,), "release": (0,), "fsync": (0,), "readdir": (0,),
    "releasedir": (0,), "fsyncdir": (0,), "readdir_plain": (0,), "fallocate": (0,), "lseek": (0,),
    "copy_file_range": (0, 2),
}  # fmt: skip
_SWITCH = ("dax_get", "dax_openers", "dax_may_set", "dax_set")
# Where (parent, name) of a name that is made, and of one that goes away, stand among the arguments.
_MAKES = {
    "mknod": (0, 1), "mkdir": (0, 1), "symlink": (0, 1), "create": (0, 1), "link": (1, 2), "rename": (2, 3),
}  # fmt: skip
_TAKES = {"unlink": (0, 1), "rmdir": (0, 1), "rename": (0, 1)}


def _names(args, where) -> bool:
    """Whether the (parent, name) at *where* in *args* is the raw directory's."""
    return where is not None and args[where[0]] == ROOT_INO and args[where[1]] == NAME


def _raw(name: str):
    """The handler of that name for mounts where all inodes are the raw region's."""
    method = getattr(RawTree, name)

    def answer(self, *args):
        return method(self.raw, *args)

    answer.__name__ = name
    return handler(answer)


def _beside(name: str):
    """The handler of that name where a file system has the inodes that are not the raw region's."""
    raw, plain = getattr(RawTree, name), getattr(Operations, name).method
    inodes, handles = _INODES.get(name, ()), _HANDLES.get(name, ())

    def answer(self, *args):
        named = [args[at] for at in inodes] + [self.handles[args[at]].ino for at in handles]
        if any(ino >= RAW_INO for ino in named):
            return raw(self.raw, *args)
        if _names(args, _MAKES.get(name)):
            raise fail(errno.EEXIST)
        if _names(args, _TAKES.get(name)):
            raise fail(errno.EPERM)
        if name == "lookup" and _names(args, (0, 1)):
            return self.raw.entry(RAW_INO)
        return plain(self, *args)

    answer.__name__ = name
    return handler(answer)


class BesideOperations(Operations):
    """A file system with the raw region in NAME (-o raw). `show_raw` before the first request."""

    raw: RawTree

    def show_raw(self, dax: bool) -> None:
        """*dax*: the first position of the switch."""
        self.raw = RawTree(self, self.fs.region, self.files.dax, PteTracker(), RAW_INO, dax)

    def is_raw(self, ino: int) -> bool:
        return ino >= RAW_INO

    def mode(self, ino: int) -> int:
        return self.raw.mode(ino) if ino >= RAW_INO else super().mode(ino)

    def forget_one(self, ino: int, count: int) -> None:
        """The raw region's inodes are there as long as the mount is, so nobody counts them."""
        if ino < RAW_INO:
            super().forget_one(ino, count)


class NoFileSystem:
    """What handlers and sessions ask of a file system, where there is none: *region* alone."""

    orphans = ()

    def __init__(self, region, readonly: bool):
        self.region, self.readonly = region, readonly
        self.shut = False

    def shutdown(self, durable: bool) -> None:
        """The end of all access."""
        self.shut = True
        self.region.kill()


class RawStats(Counters):
    """The counters of a raw mount."""

    def __init__(self, dax: DaxIo, faults, flush):
        super().__init__(faults, flush)
        self.dax = dax
        self.files: list = []  # raw.SwitchedFile

    def snapshot(self) -> dict:
        ns, pages = self.dax.writeback_times()
        held = self.dax.tracker.held(file.map for file in self.files)
        return super().snapshot() | {
            "tracker": {"policy": self.dax.tracker.name, **self.dax.snapshot(), **held},
            "writeback": ns.snapshot(), "writeback_pages": pages.times("pages")}


class RawOperations(BaseOperations):
    """A mount of nothing but the raw region (daxfs raw)."""

    enable_acl = False
    after_loss = ""

    def __init__(self, fs: NoFileSystem, config):
        tracker = PteTracker()
        dax = DaxIo(fs.region, tracker, config.write, config.drain,
                    nt_threshold=threshold(config, fs.region.flush.kind))
        faults = CachedFaults(pmd=fs.region.pmd.startswith("yes"))
        super().__init__(fs, dax, faults, RawStats(dax, faults, fs.region.flush))
        self.sync = config.flags.get("sync", False)
        self.raw = RawTree(self, fs.region, dax, tracker, ROOT_INO, config.dax != "never")
        self.stats.files = list(self.raw.files.values())

    def tell_limits(self, writes: bool = True) -> None:
        """As Operations.tell_limits: at the beginning, and whenever something changes."""
        fs, server = self.fs, self.server
        server.atime = "noatime"
        server.writes = writes and not fs.readonly and fs.region.flush.kind != "msync"
        server.nothing = fs.shut

    def is_raw(self, ino: int) -> bool:
        return True

    def mode(self, ino: int) -> int:
        """Type and permissions of an inode that a handle is open on."""
        return self.raw.mode(ino)

    def forget_one(self, ino: int, count: int) -> None:
        """As in BesideOperations."""


for _name in (*_INODES, *_HANDLES, *_SWITCH, "statfs", "syncfs"):
    setattr(RawOperations, _name, _raw(_name))
for _name in (*_INODES, *_HANDLES):
    setattr(BesideOperations, _name, _beside(_name))
for _name in _SWITCH:
    setattr(BesideOperations, _name, _raw(_name))
