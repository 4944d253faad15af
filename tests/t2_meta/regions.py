# SPDX-License-Identifier: MIT
"""File systems in files on /dev/shm for tests (and tools/bench/meta_ops.py has its own).

`Maker` is usable from fixtures and from hypothesis state machines, which can't have
fixtures. A crash copy is what a daemon killed with -9 leaves: the bytes of the file, or with *pool* the
region and the ranges of a pool directory.
"""

import itertools
import os
import shutil

from daxfs.meta import fs as meta_fs
from daxfs.meta import mkfs
from daxfs.meta.check import check_region
from daxfs.region import Region, create_file

MIB = 1 << 20
_numbers = itertools.count()


def _next_data(fd: int, at: int) -> int | None:
    """Where the next bytes that are no hole begin, or None."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError:
        return None


def _copy_file(old: str, new: str) -> None:
    """The bytes, holes as holes, and the times."""
    with open(old, "rb") as source, open(new, "wb") as out:
        size = os.fstat(source.fileno()).st_size
        out.truncate(size)
        at = 0
        while (at := _next_data(source.fileno(), at)) is not None:
            end = os.lseek(source.fileno(), at, os.SEEK_HOLE)
            os.copy_file_range(source.fileno(), out.fileno(), end - at, at, at)
            at = end
    shutil.copystat(old, new)


def _remove(path: str) -> None:
    if path.endswith("/"):
        shutil.rmtree(path)
    else:
        os.unlink(path)


class Ticks:
    """A clock that moves one microsecond a call, so that the order of times is exact."""

    def __init__(self, start: int = 10**18):
        self.now = start

    def __call__(self) -> int:
        self.now += 1000
        return self.now


class Maker:
    """Makes regions and file systems; as a context manager it closes and removes them all."""

    def __init__(self, pool: bool = False):
        self.pool = pool  # regions are pool directories, where files can have ranges of their own
        self._made: list = []

    def __enter__(self) -> "Maker":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def path(self) -> str:
        return f"/dev/shm/daxfs-t2-{os.getpid()}-{next(_numbers)}" + "/" * self.pool

    def open(self, path: str):
        """An open Region on *path*, removed at the end."""
        region = Region.open([path])
        self._made.append((path, region))
        return region

    def region(self, size: int = 16 * MIB):
        """An empty region."""
        path = self.path()
        create_file(path, size)
        return self.open(path)

    def make(self, size: int = 16 * MIB, inodes: int | None = None):
        """A FileSystem, formatted and mounted, with a `Ticks` clock."""
        region = self.region(size)
        mkfs.make(region, mkfs.plan(region, inodes=inodes, uuid=b"0123456789abcdef"))
        return self._mounted(region)

    def crash_copy(self, fs):
        """A FileSystem mounted on a copy of the bytes that *fs*'s region has now."""
        return self._mounted(self.copy(fs.region))

    def fsck(self, fs) -> None:
        """fsck.daxfs's own look at a copy of *fs*'s bytes must find nothing wrong."""
        path = self._copied(fs.region)
        try:
            with Region.open([path], "cow") as region:
                report = check_region(region)
                found = [(problem.check, str(problem)) for problem in report.problems]
                assert not found, found
        finally:
            _remove(path)

    def copy(self, region):
        """A region with the same bytes."""
        return self.open(self._copied(region))

    def _copied(self, region) -> str:
        path, old = self.path(), region.sources[0].path
        if not self.pool:
            _copy_file(old, path)
            return path
        for folder, _, names in os.walk(old):
            to = os.path.join(path, os.path.relpath(folder, old))
            os.makedirs(to)
            for name in names:
                _copy_file(os.path.join(folder, name), os.path.join(to, name))
        return path

    @staticmethod
    def _mounted(region):
        fs = meta_fs.mount(region)
        fs.clock = Ticks()
        return fs

    def drop(self, fs) -> None:
        """Close and remove the region of *fs* now."""
        entry = next(e for e in self._made if e[1] is fs.region)
        self._made.remove(entry)
        entry[1].close()
        _remove(entry[0])

    def close(self) -> None:
        for path, region in self._made:
            region.close()
            _remove(path)
        self._made.clear()
