# SPDX-License-Identifier: MIT
"""The ground of all sequences: a small formatted region, and what images are made on.

The free space of the ground is full of foreign bytes, so that a page that shows through what was never
written there is noticed. Files lie on /dev/shm; an Engine owns them (one process, one thread).
"""

import itertools
import os
import random
import shutil
import types

import numpy as np

from daxfs import layout as L
from daxfs.data.file_io import FileIo
from daxfs.meta import fs as meta_fs
from daxfs.meta import mkfs
from daxfs.pfn import PAGE_SHIFT, PAGE_SIZE
from daxfs.pool import Pool
from daxfs.region import Region, create_file

from . import judge, vfs
from .node import Policy

SIZE = 8 << 20
INODES = 256
UUID = b"daxfs-crash-test"
CREATED = 10**18
_numbers = itertools.count()


def mounted(region, policy) -> FileIo:
    """The data path of the file system on *region*, under a `node.Policy`."""
    return vfs.open_io(meta_fs.mount(region), policy)


class Ground:
    """An empty file system on media, at rest: all of it durable, nothing in flight.

    ``path``: the region as it is then; ``image``: its bytes; ``created``: the times of its root; ``space``:
    its free pages and inodes. ``scratch``: a second one, which `sure` changes and `reset` restores.
    *pool*: both are pool directories. Own ranges are real files in them; *syncs*: of a file system that loses
    what is not synced.
    """

    def __init__(self, granularity: str, pool: bool = False, syncs: bool = False):
        stem = f"/dev/shm/daxfs-crash-{os.getpid()}-{next(_numbers)}"
        self.path, self.scratch = f"{stem}.ground", f"{stem}.sure"
        self.granularity, self.created = granularity, CREATED
        self.pool, self.syncs = pool, syncs
        self.fd = -1
        try:
            self._make()
            inside = "/region" if pool else ""
            self.image = np.fromfile(self.path + inside, np.uint8)
            if pool:
                os.makedirs(f"{self.scratch}/ranges")
            self.image.tofile(self.scratch + inside)
            self.fd = os.open(self.scratch + inside, os.O_RDWR)
        except BaseException:
            self.close()
            raise
        self.changed: set[int] = set()

    def _make(self) -> None:
        create_file(self.path + "/" * self.pool, SIZE)
        if self.pool:
            os.mkdir(f"{self.path}/ranges")
        with Region.open([self.path], "rw", granularity=self.granularity) as region:
            plan = mkfs.plan(region, inodes=INODES, uuid=UUID)
            plan.created = CREATED
            mkfs.make(region, plan)
            io = mounted(region, Policy())
            self.space = judge.space(io)
            io.fs.unmount()
            poison(io.fs)

    def open(self, path: str) -> Region:
        """A private copy of a file as a region. Own ranges are not copied: what is done to them stays."""
        region = Region.open([path], "cow", granularity=self.granularity, lock=False)
        if self.pool:
            as_own(region, self.syncs)
        return region

    def put_ranges(self, path: str, files: dict) -> None:
        """Let the pool directory *path* have these own ranges, {name: bytes}, and no others."""
        if self.pool:
            put_ranges(path, files)

    def sure(self, media) -> None:
        """Bring the scratch file up to what *media* says is surely there."""
        unit = media.unit
        changed = {number for number in media.changed if number * unit < SIZE}  # behind it are own ranges
        for number in changed:
            at = number * unit
            os.pwrite(self.fd, media.sure[at : at + unit].data, at)
        self.changed |= {number * unit // PAGE_SIZE for number in changed}
        media.changed.clear()

    def reset(self) -> None:
        """The scratch file as it was at first."""
        for page in self.changed:
            at = page << PAGE_SHIFT
            os.pwrite(self.fd, self.image[at : at + PAGE_SIZE].data, at)
        self.changed.clear()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        for path in (self.path, self.scratch):
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.unlink(path)


def put_ranges(path: str, files: dict) -> None:
    """See Ground."""
    folder = f"{path}/ranges"
    for name in os.listdir(folder):
        os.unlink(f"{folder}/{name}")
    for name, data in files.items():
        with open(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)


def as_own(region: Region, syncs: bool) -> None:
    """Let the pool of *region*, a private copy, change its files, and hide what clock and disk put in."""
    pool: Pool = region.pool
    stat = pool.stat

    def timeless(ino: int, generation: int):
        found = stat(ino, generation)
        facts = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        return types.SimpleNamespace(**facts | {"st_blocks": 0, "st_mtime_ns": 0})

    pool.writable, pool.syncs, pool.stat = True, syncs, timeless
    pool.space = lambda: (0, 1 << 40)
    region.allocate = lambda: None


def poison(fs) -> None:
    """Fill every free page, and the inode table behind its limit, with bytes that no test writes."""
    table = fs.inodes
    places = [(first << PAGE_SHIFT, pages << PAGE_SHIFT) for first, pages in fs.alloc.runs()]
    places.append((table.place(table.limit), (table.capacity - table.limit) * L.INODE_SIZE))
    for at, length in places:
        fs.region.mem[at : at + length] = random.Random(at).randbytes(length)
