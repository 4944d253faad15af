# SPDX-License-Identifier: MIT
"""The raw region (S12): a directory with one file for each source of a region, `0`, `1` and so on.

`RawTree` has the handlers of these inodes, synchronous, with the arguments that those of ops.py have; who
makes requests of them is raw_ops.py. On a mount of its own (`daxfs raw`) the directory is the root; on a
mounted file system (`-o raw`) it is NAME in the root directory.

The switch (`dax_set`) has the rules that BLKDAXSET had on block devices. How a file is opened is decided when
its opens go from 0 to 1, since the kernel refuses a mix of cached and direct mappings.

Limits: metadata thread. Root alone (uid 0) opens a file: a request does not say which capabilities there are.
"""

import errno
import logging
import os
import stat

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo

from .._iomap import COARSE
from ..data import _serve as serve
from ..data.raw_file import RawFile
from ..errors import fail
from ..layout import NAME_MAX, ROOT_INO
from . import wire

log = logging.getLogger(__name__)

NAME = b".daxfs-raw"
RAW_INO = 1 << 40  # the directory; file k is RAW_INO + 1 + k. Inode numbers of a file system are below 2**32
_STATX_DAX = 0x200000  # linux/stat.h
_DIR, _REG = stat.S_IFDIR, stat.S_IFREG


class RawHandle:
    """An open raw file, or the directory (``file`` None)."""

    __slots__ = ("direct", "dsync", "file", "ino", "writes")

    def __init__(self, ino: int, file: "SwitchedFile | None" = None, direct=False, writes=False, dsync=False):
        self.ino, self.file, self.direct, self.writes, self.dsync = ino, file, direct, writes, dsync

    @property
    def node(self) -> "SwitchedFile | None":
        """What has the map, as in Handle of ops.py."""
        return self.file


class SwitchedFile(RawFile):
    """A raw file with its switch (True: on) and the number of its open handles."""

    def __init__(self, region, dax, tracker, source, dax_on: bool):
        super().__init__(region, dax, tracker, source)
        self.switch = dax_on
        self.opens = 0
        self.openers: set[int] = set()  # threads; who has the file mapped is one of them, or its child


class RawTree:
    """The raw region's handlers, on behalf of *ops* (an Operations or RawOperations).

    *root*: the inode number of the directory. *dax*: the switch's first position.
    """

    def __init__(self, ops, region, dax_io, tracker, root: int, dax: bool):
        self.ops, self.region, self.root = ops, region, root
        self.own_mount = root == ROOT_INO
        self.files = {RAW_INO + 1 + number: SwitchedFile(region, dax_io, tracker, source, dax)
                      for number, source in enumerate(region.sources)}
        for ino, file in self.files.items():
            file.map.ino = ino
        self.names = {b"%d" % number: ino for number, ino in enumerate(self.files)}
        self.made = os.fstat(region.sources[0].fd)  # its times are the directory's
        ops.server.raw = range(RAW_INO, RAW_INO + 1 + len(self.files))

    def describe(self) -> list[dict]:
        """For reports: each file."""
        return [{"name": name.decode(), "path": self.files[ino].path, "bytes": self.files[ino].size,
                 "opens": self.files[ino].opens, "dax": self.dax_of(self.files[ino]),
                 "direct": ino in self.ops.backing, "why_not": self.why_not_direct(self.files[ino])}
                for name, ino in self.names.items()]

    def end(self) -> None:
        """Nothing is dirty any more."""
        for file in self.files.values():
            file.write_back()

    def _file(self, ino: int) -> SwitchedFile:
        if ino == self.root:
            raise fail(errno.EISDIR)
        return self.files[ino]

    def _directory(self, ino: int) -> None:
        if ino != self.root:
            raise fail(errno.ENOTDIR)

    def _private(self, ctx) -> None:
        """EACCES for all but root, in a directory that others have nothing to do with."""
        if ctx.uid and not self.own_mount:
            raise fail(errno.EACCES)

    # -- attributes ------------------------------------------------------------------------

    def mode(self, ino: int) -> int:
        if ino == self.root:
            return _DIR | (0o755 if self.own_mount else 0o700)
        return _REG | 0o600

    def entry(self, ino: int) -> EntryAttributes:
        """What LOOKUP and GETATTR answer; not kept of a file, whose times are the source's."""
        file = self.files.get(ino)
        st = file.stat() if file else self.made
        out = EntryAttributes()
        out.st_ino, out.generation = ino, 0
        out.entry_timeout, out.attr_timeout = 3600.0, 0 if file else 3600.0
        out.st_mode, out.st_nlink = self.mode(ino), 1 if file else 2
        out.st_uid = out.st_gid = out.st_rdev = 0
        out.st_size, out.st_blocks = (file.size, st.st_blocks) if file else (0, 0)
        out.st_atime_ns, out.st_mtime_ns, out.st_ctime_ns = st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns
        return out

    def lookup(self, parent, name, ctx):
        self._directory(parent)
        self._private(ctx)
        if name == b".":
            return self.entry(self.root)
        if name == b".." and not self.own_mount:
            return self.ops.told(self.ops.fs.inodes.read(ROOT_INO))
        ino = self.root if name == b".." else self.names.get(name)
        if ino is not None:
            return self.entry(ino)
        absent = EntryAttributes()
        absent.st_ino = 0
        absent.entry_timeout = 3600.0
        return absent

    def getattr(self, ino, ctx):
        return self.entry(ino)

    def statx(self, ino):
        entry = self.entry(ino)
        file = self.files.get(ino)
        direct = file is not None and (ino in self.ops.backing if file.opens else self.dax_of(file))
        return entry, entry.st_ctime_ns, _STATX_DAX if direct else 0, _STATX_DAX

    def statfs(self, ctx):
        """Full: there is room for nothing more."""
        out = pyfuse3.StatvfsData()
        out.f_bsize = out.f_frsize = 4096
        out.f_blocks = sum(file.map.pages for file in self.files.values())
        out.f_bfree = out.f_bavail = out.f_ffree = out.f_favail = 0
        out.f_files, out.f_namemax = len(self.files), NAME_MAX
        return out

    # -- what a device's directory refuses ---------------------------------------------------

    def _refused(self, *_args):
        raise fail(errno.EPERM)

    setattr = mknod = mkdir = symlink = link = unlink = rmdir = rename = create = tmpfile = _refused

    def _not_here(self, *_args):
        raise fail(errno.EOPNOTSUPP)

    setxattr = removexattr = fallocate = copy_file_range = _not_here

    def getxattr(self, ino, name, ctx):
        raise fail(errno.ENODATA)

    def listxattr(self, ino, ctx):
        return []

    def readlink(self, ino, ctx):
        raise fail(errno.EINVAL)

    # -- files -----------------------------------------------------------------------------

    def why_not_direct(self, file: SwitchedFile) -> str:
        """Why *file* can't be mapped directly; "": it can."""
        if not file.mappable:
            regular = file.source.kind in ("file", "pool")
            kind = "a file on hugetlbfs" if regular else f"a {file.source.kind} device"
            return f"{file.path} is {kind}: FUSE maps regular files in pages of 4 KiB alone"
        return self.ops.passthrough.why

    def dax_of(self, file: SwitchedFile) -> bool:
        """Whether the next first open will be direct."""
        return file.switch and not self.why_not_direct(file)

    def open(self, ino, flags, ctx):
        file = self._file(ino)
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if ctx.uid:
            raise fail(errno.EACCES)
        if writes and (self.ops.fs.readonly or self.region.mode == "ro"):
            raise fail(errno.EROFS)
        if flags & os.O_TRUNC:
            raise fail(errno.EPERM)
        if not file.opens and self.dax_of(file):
            number = self.ops.passthrough.open(file.source.fd)
            if number:
                self.ops.backing[ino] = number
        backing = self.ops.backing.get(ino, 0)
        direct = self.ops.can_map_direct_io or bool(flags & os.O_DIRECT)
        known = serve.RAW | (serve.WRITE if writes else 0) | (serve.DIRECT if direct else 0)
        dsync = direct and bool(flags & os.O_DSYNC or self.ops.sync)
        known |= serve.DSYNC if dsync else 0
        fh = self.ops.server.open(file.map, ino, known, backing)
        self.ops.handles[fh] = RawHandle(ino, file, direct, writes, dsync)
        file.opens += 1
        file.openers.add(ctx.pid)
        if backing and writes:
            file.map.set_state(COARSE)  # for good: a mapping may outlive its handle
        return FileInfo(fh=fh, direct_io=direct, keep_cache=False)

    def release(self, fh):
        handle = self.ops.handles.pop(fh)
        self.ops.server.close(fh)
        handle.file.opens -= 1
        if not handle.file.opens and handle.ino in self.ops.backing:
            self.ops.passthrough.close(self.ops.backing.pop(handle.ino))

    def read(self, fh, pos, size, mapping=False):
        handle = self.ops.handles[fh]
        if mapping or not handle.direct:
            self.ops.faults.request(handle.file.map, pos, size, False)
        return handle.file.read(pos, size)

    def write(self, fh, pos, data, writer=None, dsync=False):
        handle = self.ops.handles[fh]
        if not handle.writes:
            raise fail(errno.EBADF)
        if not handle.direct:
            self.ops.faults.request(handle.file.map, pos, len(data), True)
        written = handle.file.write(pos, data)
        if handle.dsync or dsync:
            handle.file.sync_writes()
        return written

    def flush(self, fh):
        """close(2) promises nothing."""

    def fsync(self, fh, datasync, times=None):
        with self.ops.timed(fh, times) as times:
            self.ops.handles[fh].file.fsync(times)

    def lseek(self, fh, pos, whence):
        """All of it is data."""
        size = self.ops.handles[fh].file.size
        if pos >= size or whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise fail(errno.ENXIO if pos >= size else errno.EINVAL)
        return pos if whence == os.SEEK_DATA else size

    # -- the directory -----------------------------------------------------------------------

    def opendir(self, ino, ctx):
        self._directory(ino)
        self._private(ctx)
        fh = self.ops.server.open(None, ino, serve.DIRECTORY)
        self.ops.handles[fh] = RawHandle(ino)
        return fh

    def _listing(self, start: int):
        """(name, inode number, mode, cookie) from *start* on."""
        up = self.root if self.own_mount else ROOT_INO
        rows = [(b".", self.root), (b"..", up), *self.names.items()]
        for at, (name, ino) in enumerate(rows[start:], start):
            yield name, ino, _REG if name in self.names else _DIR, at + 1

    def readdir(self, fh, start, token):
        for name, ino, _, cookie in self._listing(start):
            outside = ino == ROOT_INO and not self.own_mount
            entry = self.ops.entry(self.ops.fs.inodes.read(ino)) if outside else self.entry(ino)
            if not pyfuse3.readdir_reply(token, name, entry, cookie):
                break

    def readdir_plain(self, fh, start, size):
        out = bytearray()
        for name, ino, mode, cookie in self._listing(start):
            record = wire.dirent(name, ino, mode >> 12, cookie)
            if len(out) + len(record) > size:
                if not out:
                    raise fail(errno.EINVAL)
                break
            out += record
        return out

    def releasedir(self, fh):
        self.ops.server.close(fh)
        del self.ops.handles[fh]

    def fsyncdir(self, fh, datasync):
        """It never changes."""

    def syncfs(self):
        for file in self.files.values():
            file.fsync()

    # -- the switch ------------------------------------------------------------------------

    def dax_get(self, fh) -> bool:
        return self.dax_of(self.ops.handles[fh].file)

    def dax_openers(self, fh) -> set[int]:
        """The threads that have opened the file: a mapping may be theirs."""
        return set(self.ops.handles[fh].file.openers)

    def dax_may_set(self, fh, value: bool) -> bool:
        """False: it stands so already. ENOTTY where the source can't be mapped directly; EBUSY while others
        have the file open, who would go on as they are; who has it mapped is still to be asked."""
        file = self.ops.handles[fh].file
        if value == self.dax_of(file):
            return False
        why = self.why_not_direct(file)
        if why:
            raise fail(errno.ENOTTY, why)
        if file.opens > 1:
            raise fail(errno.EBUSY)
        return True

    def dax_set(self, fh, value: bool):
        """After `dax_may_set` and a look at who has it mapped; things may have changed since."""
        if self.dax_may_set(fh, value):
            file = self.ops.handles[fh].file
            file.switch = value
            if not value:
                file.fsync()
                file.map.clear_state(COARSE)  # nobody has it mapped
