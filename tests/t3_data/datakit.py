# SPDX-License-Identifier: MIT
"""Regions with a data path on them, and what the tests ask them and their recorders.

`Kit` adds to t2_meta/regions.Maker what the data path needs.
"""

import os

import numpy as np
import regions

from daxfs import layout as L
from daxfs._iomap import MAPPED, FileMap
from daxfs._record import Recorder
from daxfs.data.file_io import FileIo
from daxfs.meta import attr, mkfs, namespace
from daxfs.meta import fs as meta_fs
from daxfs.region import Region, create_file
from daxfs.testing.log import NAMES, SITE, parse

MIB = 1 << 20
PAGE = 4096
ROOT = namespace.Creds(0, 0)


def noise(size: int, seed: int = 1) -> bytes:
    """*size* bytes without a zero, so that a hole is told from data."""
    return np.random.default_rng(seed).integers(1, 256, size, np.uint8).tobytes()


def filemap(size: int, extents) -> FileMap:
    """A FileMap of *size* bytes with [(pgoff, pages, pfn, type)]."""
    f = FileMap()
    f.load([(*extent, slot) for slot, extent in enumerate(extents)])
    f.size = size
    return f


def mapped(pages: int, pfn: int = 16) -> FileMap:
    """A FileMap of one written extent."""
    return filemap(pages * PAGE, [(0, pages, pfn, MAPPED)])


class Kit(regions.Maker):
    """Makes regions and data paths; as a context manager it removes them all."""

    def sources(self, *sizes: int, mode: str = "rw") -> Region:
        """A region of several new files, zero."""
        paths = []
        for size in sizes:
            paths.append(self.path())
            create_file(paths[-1], size)
        region = Region.open(paths, mode=mode)
        self._made.append((paths[0], region))
        for path in paths[1:]:
            os.unlink(path)  # stays open and mapped
        return region

    def make(self, size: int = 16 * MIB, inodes: int | None = 256, map_kind: str = "mem"):
        """A FileSystem, formatted and mounted, with a clock that ticks."""
        region = self.region(size)
        sb = mkfs.plan(region, inodes=inodes, uuid=b"0123456789abcdef", map_kind=map_kind)
        mkfs.make(region, sb)
        fs = self._mounted(region)
        if self.pool:
            attr.set_flags(fs, L.ROOT_INO, L.FLAG_DAX)
        return fs

    def io(self, write: str = "nt", drain: str = "write", threshold: int = 0, **how) -> FileIo:
        """The data path of a new file system. *threshold*: nt_threshold=."""
        return FileIo(self.make(**how), write=write, drain=drain, nt_threshold=threshold)

    def remount(self, io: FileIo) -> FileIo:
        """Unmount in good order, and mount the same region again."""
        fs = io.fs
        fs.unmount()
        again = meta_fs.mount(fs.region)
        again.clock = fs.clock
        shown = io.snapshot()
        return FileIo(again, write=shown["write"], drain=shown["drain"],
                      nt_threshold=shown["nt_threshold"])

    def on_image(self, image: np.ndarray, delta=()) -> FileIo:
        """A data path on a region with these bytes, mounted as after a power failure.

        delta: [(place, bytes)] that go over the image.
        """
        path = self.path()
        with open(path, "wb") as out:
            out.write(image)
            for place, data in delta:
                out.seek(place)
                out.write(data)
        return FileIo(self._mounted(self.open(path)))

    def crashed(self, io: FileIo) -> FileIo:
        """A data path on what a killed daemon would leave now."""
        return FileIo(self.crash_copy(io.fs))


def create(io: FileIo, name: bytes):
    """A new regular file, open: its Node."""
    inode = namespace.create(io.fs, 1, name, 0o100644, ROOT)
    return reopen(io, inode.ino)


def reopen(io: FileIo, ino: int):
    node = io.fs.open(ino)
    io.opened(node)
    return node


def find(io: FileIo, name: bytes):
    """The file *name*, open."""
    return reopen(io, namespace.lookup(io.fs, 1, name).ino)


def content(io: FileIo, name: bytes) -> bytes:
    """All bytes of the file *name*."""
    node = find(io, name)
    data = bytes(io.read(node, 0, 1 << 20))
    io.release(node)
    return data


def calls(recorder: Recorder) -> list[tuple[str, int, int]]:
    """(what, place, length) of the calls since the last take, of a drain ("drain", 0, 0)."""
    return [(NAMES[e.kind], e.place, e.length) for e in parse(recorder.take()) if e.kind != SITE]
