# SPDX-License-Identifier: MIT
"""Regions with a data path on them, and a recording flush table.

`Kit` adds to t2_meta/regions.Maker what the data path needs. `Recorder` puts
itself between daxfs and the bound functions of native/flush.h: every call is
noted, then done.
"""

import ctypes
import os

import numpy as np
import regions

from daxfs._flush import Flush
from daxfs._iomap import MAPPED, FileMap
from daxfs.data.file_io import FileIo
from daxfs.meta import fs as meta_fs
from daxfs.meta import mkfs, namespace
from daxfs.region import Region, create_file

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
        return self._mounted(region)

    def io(self, write: str = "nt", drain: str = "write", **how) -> FileIo:
        """The data path of a new file system."""
        return FileIo(self.make(**how), write=write, drain=drain)

    def remount(self, io: FileIo) -> FileIo:
        """Unmount in good order, and mount the same region again."""
        fs = io.fs
        fs.unmount()
        again = meta_fs.mount(fs.region)
        again.clock = fs.clock
        shown = io.snapshot()
        return FileIo(again, write=shown["write"], drain=shown["drain"])

    def on_image(self, image: np.ndarray) -> FileIo:
        """A data path on a region with these bytes, mounted as after a power failure."""
        path = self.path()
        with open(path, "wb") as out:
            out.write(image)
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


class Table(ctypes.Structure):
    """struct daxfs_flush (native/flush.h), as far as it is looked into here."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("store", "nt_store", "nt_fill", "flush", "drain")),
        *((name, ctypes.c_int) for name in ("kind", "nt_kind", "granularity")),
        *((name, ctypes.c_uint64) for name in ("n_store", "store_bytes", "n_nt", "nt_bytes")),
        *((name, ctypes.c_uint64) for name in ("n_flush", "flush_lines", "n_drain")),
        ("error", ctypes.c_int),
    ]


_COPY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_FILL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
_SPAN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_DRAIN = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Recorder:
    """Notes each call on a region's table: (what, offset in the region, length), or ("drain", 0, 0).

    ``watch(what, offset, length)``: called at each call, of a drain before it is done, of the others after.
    """

    def __init__(self, region: Region):
        self.log: list[tuple[str, int, int]] = []
        self.watch = None
        self.flush: Flush = region.flush
        self.base = region.address
        self.table = Table.from_address(self.flush.table)
        names = ("store", "nt_store", "nt_fill", "flush", "drain")
        self.saved = {name: getattr(self.table, name) for name in names}
        kinds = {"store": _COPY, "nt_store": _COPY, "nt_fill": _FILL, "flush": _SPAN, "drain": _DRAIN}
        self.real = {name: kinds[name](self.saved[name]) for name in names}
        self.hooks = {name: kinds[name](self._hook(name)) for name in names}

    def _hook(self, name: str):
        real = self.real[name]

        def call(table, *args):
            entry = (name, args[0] - self.base, args[-1]) if args else ("drain", 0, 0)
            self.log.append(entry)
            if self.watch and not args:
                self.watch(*entry)
            real(table, *args)
            if self.watch and args:
                self.watch(*entry)

        return call

    def __enter__(self) -> "Recorder":
        for name, hook in self.hooks.items():
            setattr(self.table, name, ctypes.cast(hook, ctypes.c_void_p))
        return self

    def __exit__(self, *_) -> None:
        for name, address in self.saved.items():
            setattr(self.table, name, address)

    def take(self) -> list[tuple[str, int, int]]:
        """What was noted since the last take."""
        log, self.log = self.log, []
        return log


class Media:
    """What is surely durable: lines that were flushed or stored past the cache, and drained.

    Use as `Recorder.watch`. ``sure``: the bytes of the region as a power failure may leave them at
    worst; ``queued``: lines [(offset, bytes)] that the next drain makes durable, and that may be already.
    ``on_drain(media)``: called before each drain takes effect.
    """

    def __init__(self, region: Region, on_drain=None):
        self.array = region.array
        self.sure = region.array.copy()
        self.queued: list[tuple[int, np.ndarray]] = []
        self.on_drain = on_drain

    def __call__(self, what: str, offset: int, length: int) -> None:
        if what in ("nt_store", "nt_fill", "flush") and length:
            first, last = offset & ~63, (offset + length + 63) & ~63
            self.queued.append((first, self.array[first:last].copy()))
        elif what == "drain":
            if self.on_drain:
                self.on_drain(self)
            apply(self.sure, self.queued)
            self.queued = []

    def images(self, keep=lambda offset: True):
        """The media at worst, with all that is queued, and with what *keep(offset)* picks of it."""
        for chosen in ([], self.queued, [line for line in self.queued if keep(line[0])]):
            image = self.sure.copy()
            apply(image, chosen)
            yield image


def apply(image: np.ndarray, lines) -> None:
    for offset, data in lines:
        image[offset : offset + len(data)] = data
