# SPDX-License-Identifier: MIT
"""The ground of a sequence: a small formatted region with a start tree, and the file that images are made on.

The free space of the ground is full of foreign bytes, so that a page that shows through what was never
written there is noticed. Files lie on /dev/shm; an Engine owns them (one process, one thread).
"""

import itertools
import os
import random

import numpy as np

from daxfs.data.file_io import FileIo
from daxfs.meta import fs as meta_fs
from daxfs.meta import mkfs
from daxfs.pfn import PAGE_SHIFT, PAGE_SIZE
from daxfs.region import Region, create_file

from . import judge, model, vfs

SIZE = 8 << 20
INODES = 256
UUID = b"daxfs-crash-test"
CREATED = 10**18
_numbers = itertools.count()


def mounted(region, policy) -> FileIo:
    """The data path of the file system on *region*, under a `node.Policy`."""
    return vfs.open_io(meta_fs.mount(region), policy)


class Ground:
    """A start tree on media, at rest: all of it durable, nothing in flight.

    ``path``: the region as it is then; ``image``: its bytes; ``model``: what it holds; ``space``: free
    pages and inodes once it is empty. ``scratch``: a second file, which `sure` changes and `reset` restores.
    """

    def __init__(self, setup, policy, granularity: str):
        stem = f"/dev/shm/daxfs-crash-{os.getpid()}-{next(_numbers)}"
        self.path, self.scratch = f"{stem}.ground", f"{stem}.sure"
        self.policy, self.granularity = policy, granularity
        self.fd = -1
        try:
            self._make(setup)
            self.image = np.fromfile(self.path, np.uint8)
            self.image.tofile(self.scratch)
            self.fd = os.open(self.scratch, os.O_RDWR)
            self.space = self._space()
        except BaseException:
            self.close()
            raise
        self.changed: set[int] = set()

    def _make(self, setup) -> None:
        create_file(self.path, SIZE)
        with Region.open([self.path], "rw", granularity=self.granularity) as region:
            plan = mkfs.plan(region, inodes=INODES, uuid=UUID)
            plan.created = CREATED
            mkfs.make(region, plan)
            io = mounted(region, self.policy)
            self.model = model.Model(self.policy, io.fs.sb.created)
            tree = vfs.Vfs(io, self.model.now)
            for op in [*setup, ("sync",)]:
                wrong = judge.step(tree, self.model, op)
                if wrong:
                    raise ValueError(f"setup: {wrong}")
            io.fs.unmount()
            poison(io.fs)

    def open(self, path: str) -> Region:
        """A private copy of a file as a region."""
        return Region.open([path], "cow", granularity=self.granularity, lock=False)

    def _space(self) -> dict:
        with self.open(self.path) as region:
            io = mounted(region, self.policy)
            before = judge.space(io)
            judge.drain_space(io, before)
            return judge.space(io)

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
    """Fill every free page with bytes that no test writes; each page with its own."""
    for first, pages in fs.alloc.runs():
        noise = random.Random(first).randbytes(pages << PAGE_SHIFT)
        at = first << PAGE_SHIFT
        fs.region.mem[at : at + len(noise)] = noise
