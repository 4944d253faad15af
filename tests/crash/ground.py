# SPDX-License-Identifier: MIT
"""The ground of all sequences: a small formatted region, and the file that images are made on.

The free space of the ground is full of foreign bytes, so that a page that shows through what was never
written there is noticed. Files lie on /dev/shm; an Engine owns them (one process, one thread).
"""

import itertools
import os
import random

import numpy as np

from daxfs import layout as L
from daxfs.data.file_io import FileIo
from daxfs.meta import fs as meta_fs
from daxfs.meta import mkfs
from daxfs.pfn import PAGE_SHIFT, PAGE_SIZE
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
    its free pages and inodes. ``scratch``: a second file, which `sure` changes and `reset` restores.
    """

    def __init__(self, granularity: str):
        stem = f"/dev/shm/daxfs-crash-{os.getpid()}-{next(_numbers)}"
        self.path, self.scratch = f"{stem}.ground", f"{stem}.sure"
        self.granularity, self.created = granularity, CREATED
        self.fd = -1
        try:
            self._make()
            self.image = np.fromfile(self.path, np.uint8)
            self.image.tofile(self.scratch)
            self.fd = os.open(self.scratch, os.O_RDWR)
        except BaseException:
            self.close()
            raise
        self.changed: set[int] = set()

    def _make(self) -> None:
        create_file(self.path, SIZE)
        with Region.open([self.path], "rw", granularity=self.granularity) as region:
            plan = mkfs.plan(region, inodes=INODES, uuid=UUID)
            plan.created = CREATED
            mkfs.make(region, plan)
            io = mounted(region, Policy())
            self.space = judge.space(io)
            io.fs.unmount()
            poison(io.fs)

    def open(self, path: str) -> Region:
        """A private copy of a file as a region."""
        return Region.open([path], "cow", granularity=self.granularity, lock=False)

    def sure(self, media) -> None:
        """Bring the scratch file up to what *media* says is surely there."""
        unit = media.unit
        for number in media.changed:
            at = number * unit
            os.pwrite(self.fd, media.sure[at : at + unit].data, at)
        self.changed |= {number * unit // PAGE_SIZE for number in media.changed}
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
            if os.path.exists(path):
                os.unlink(path)


def poison(fs) -> None:
    """Fill every free page, and the inode table behind its limit, with bytes that no test writes."""
    table = fs.inodes
    places = [(first << PAGE_SHIFT, pages << PAGE_SHIFT) for first, pages in fs.alloc.runs()]
    places.append((table.place(table.limit), (table.capacity - table.limit) * L.INODE_SIZE))
    for at, length in places:
        fs.region.mem[at : at + length] = random.Random(at).randbytes(length)
