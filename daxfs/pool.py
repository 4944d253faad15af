# SPDX-License-Identifier: MIT
"""L1: the own ranges of a pool directory: their files, by name, and the window that they are mapped in.

A range is the file ``ranges/INO-GENERATION`` (layout.range_name) of the first source that is a pool
directory. Its offsets equal the inode's, so that a program's mapping can be the kernel's on this file.
Limits: knows names and sizes, nothing of inodes. The metadata thread alone. What is done to a name is durable
on return where the file system below has something to lose (`syncs`), and otherwise at once.
"""

import errno
import logging
import os
import stat

from daxfs._own import OwnRange, OwnWindow
from daxfs._window import map_sync_works
from daxfs.errors import CorruptError, SourceError, fail
from daxfs.layout import RANGES_NAME, range_name, range_owner
from daxfs.pfn import PAGE_SHIFT, PAGE_SIZE

log = logging.getLogger("daxfs.region")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: what stands there may be a FIFO, whose open would wait for somebody to write.
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MANY = 1 << 40


class Pool:
    """The own ranges of one region. Made by `of`; closed before the region is.

    The folder is made with the first range. On a region that is not open rw every change is EROFS.
    """

    def __init__(self, region, source):
        """SourceError where the folder of ranges can't be opened, or is no directory."""
        self.region, self.source = region, source
        self.writable = region.mode == "rw"
        # On tmpfs nothing survives a crash of the machine, and everything one of the daemon.
        self.syncs = not source.detected.emulated
        self.map_sync = source.detected.medium == "fsdax" and source.detected.granularity != "page"
        self.on_made: list = []  # called once the folder is there, where it was not at first
        self.dir_fd = self._open_folder()
        self.window: OwnWindow | None = None  # `join`

    @classmethod
    def of(cls, region) -> "Pool | None":
        """The pool of *region*; None where no source of it is a pool directory that can hold ranges."""
        for source in region.sources:
            # On hugetlbfs no file has a size in pages, and no mount can pass a mapping through to one.
            if source.kind == "pool" and source.unit == PAGE_SIZE:
                return cls(region, source)
        return None

    def _open_folder(self) -> int:
        """-1: there is none."""
        where = os.path.join(self.source.path, RANGES_NAME)
        try:
            return os.open(RANGES_NAME, _DIRECTORY, dir_fd=self.source.dir_fd)
        except FileNotFoundError:
            return -1
        except NotADirectoryError as exc:
            raise SourceError(f"{where}: is no directory, or a symbolic link", exc.errno) from exc
        except OSError as exc:
            raise SourceError(f"{where}: {exc.strerror}", exc.errno) from exc

    @property
    def there(self) -> bool:
        """Whether there is a folder of ranges."""
        return self.dir_fd >= 0

    @property
    def folder(self) -> int:
        """Its descriptor. ENOENT."""
        if self.dir_fd < 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), RANGES_NAME)
        return self.dir_fd

    def _make_folder(self) -> None:
        if self.dir_fd < 0:
            os.mkdir(RANGES_NAME, 0o700, dir_fd=self.source.dir_fd)
            self._sync(self.source.dir_fd)
            self.dir_fd = self._open_folder()
            for call in self.on_made:
                call()

    def _may_change(self) -> None:
        if not self.writable:
            raise fail(errno.EROFS, "the region is not open rw: its ranges stay as they are")

    def _sync(self, fd: int) -> None:
        if self.syncs:
            os.fsync(fd)

    def sync_names(self) -> None:
        """What was done to names in the folder is durable."""
        if self.syncs:
            os.fsync(self.dir_fd)
            self._note("sync")

    def _note(self, text: str) -> None:
        """Tell a recorder what was done to a range's file (docs/recording.md)."""
        if self.region.recorder is not None:
            self.region.recorder.range(text)

    def join(self) -> None:
        """Have addresses for ranges. A file system that is mounted does it before native threads begin.

        They look ranges up without a lock, so the table must not grow under them. ENOMEM.
        """
        if self.window is None:
            window = OwnWindow()
            window.join(self.region.table, self.source.pfn_flags)
            self.window = window

    def close(self) -> None:
        """Every range is closed. Twice is fine."""
        if self.window is not None:
            self.window.close(self.region.table)
            self.window = None
        if self.dir_fd >= 0:
            os.close(self.dir_fd)
            self.dir_fd = -1

    def names(self) -> list[str]:
        """What is in the folder, in no order."""
        return os.listdir(self.dir_fd) if self.there else []

    def owners(self) -> dict[tuple[int, int], str]:
        """(ino, generation) of each range that is there, with its name; other names are left out."""
        found = {range_owner(name): name for name in self.names()}
        found.pop(None, None)
        return found

    def create(self, ino: int, generation: int) -> None:
        """An empty range. What is there already by that name is nobody's, and is replaced. ENOSPC, EIO."""
        self._may_change()
        self._make_folder()
        name = range_name(ino, generation)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE
        try:
            fd = os.open(name, flags, 0o600, dir_fd=self.dir_fd)
        except FileExistsError:
            self._remove(name)
            fd = os.open(name, flags, 0o600, dir_fd=self.dir_fd)
        except FileNotFoundError:
            raise SourceError(f"{self.source.path}/{RANGES_NAME}: was removed", errno.EIO) from None
        os.close(fd)
        self._note(f"create {name}")
        self.sync_names()

    def _remove(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self.folder)
        except IsADirectoryError as exc:
            raise SourceError(f"{self.path_of(name)}: a directory is in the way", errno.EIO) from exc
        self._note(f"unlink {name}")

    def path_of(self, name: str) -> str:
        """For messages: where the range *name* is."""
        return os.path.join(self.source.path, RANGES_NAME, name)

    def obstacles(self) -> list[str]:
        """Paths of directories that are called as a range is: `clear` and `create` can't remove them."""
        names = self.owners().values()
        return [self.path_of(n) for n in names if stat.S_ISDIR(self._stat(n).st_mode)]

    def clear(self) -> None:
        """Remove every range: those of a region that was formatted over."""
        self._may_change()
        for name in self.owners().values():
            self._remove(name)
        if self.there:
            self.sync_names()

    def _open(self, name: str, flags: int) -> int:
        """A descriptor of a range, which must be a regular file: nothing else is followed or waited for."""
        try:
            fd = os.open(name, flags | _FILE, dir_fd=self.folder)
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise CorruptError(f"{self.path_of(name)}: is no regular file") from exc
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CorruptError(f"{self.path_of(name)}: is no regular file")
        return fd

    def open(self, ino: int, generation: int) -> OwnRange:
        """The range of that inode. ENOENT; CorruptError where it is no regular file; ENFILE, EMFILE."""
        name = range_name(ino, generation)
        fd = self._open(name, os.O_RDWR if self.writable else os.O_RDONLY)
        try:
            self.join()
            map_sync = self.map_sync and map_sync_works(fd)
            range_ = OwnRange(self.window, fd, self.writable, self.syncs, map_sync)
            if self.region.recorder is not None:
                range_.watch(self.region.recorder.watch(name))
            return range_
        except BaseException:
            os.close(fd)
            raise

    def _stat(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self.folder, follow_symlinks=False)

    def stat(self, ino: int, generation: int) -> os.stat_result:
        """lstat of that range. ENOENT."""
        return self._stat(range_name(ino, generation))

    def unlink(self, ino: int, generation: int) -> None:
        """The range is gone; its storage, too, once nobody has it open or mapped. Not being there is fine."""
        self._may_change()
        try:
            self._remove(range_name(ino, generation))
        except FileNotFoundError:
            return
        self.sync_names()

    def descriptor(self, ino: int, generation: int, writable: bool) -> int:
        """One of its own for that range. ENOENT; CorruptError where it is no regular file."""
        return self._open(range_name(ino, generation), os.O_RDWR if writable else os.O_RDONLY)

    def replace(self, spare: tuple[int, int], owner: tuple[int, int]) -> None:
        """The range *spare* is that of *owner* (ino, generation) from now on; durable after `sync_names`."""
        self._may_change()
        os.rename(range_name(*spare), range_name(*owner), src_dir_fd=self.folder, dst_dir_fd=self.folder)
        self._note(f"replace {range_name(*spare)} {range_name(*owner)}")

    def resize(self, ino: int, generation: int, pages: int) -> None:
        """Give a range that nobody has open *pages* pages. CorruptError where it is no regular file."""
        self._may_change()
        name = range_name(ino, generation)
        fd = self._open(name, os.O_RDWR)
        try:
            os.ftruncate(fd, pages << PAGE_SHIFT)
            self._note(f"size {name} {pages << PAGE_SHIFT}")
            if self.syncs:
                os.fsync(fd)
                self._note(f"sync {name}")
        finally:
            os.close(fd)

    def protect(self, ino: int, generation: int) -> None:
        """Nobody but its owner may open a range. CorruptError where it is no regular file."""
        self._may_change()
        fd = self._open(range_name(ino, generation), os.O_RDONLY)
        try:
            os.fchmod(fd, 0o600)
            self._sync(fd)
        finally:
            os.close(fd)

    def forget_times(self, ino: int, generation: int) -> None:
        """Put the range's modification time to 0: a store through a mapping sets it again."""
        os.utime(range_name(ino, generation), ns=(0, 0), dir_fd=self.folder, follow_symlinks=False)

    def space(self) -> tuple[int, int]:
        """(pages of the file system below that are not the region's own, pages of these that are left).

        A tmpfs without a limit says neither; then there are none, and many are left.
        """
        below = os.fstatvfs(self.dir_fd if self.there else self.source.dir_fd)
        if not below.f_blocks:
            return 0, _MANY
        pages, left = below.f_blocks * below.f_frsize, below.f_bavail * below.f_frsize
        for source in self.region.beside_ranges():
            # What is free in the region may be a hole of its file: promised already.
            pages -= source.size
            left -= max(source.size - os.fstat(source.fd).st_blocks * 512, 0)
        pages = max(pages, 0) // PAGE_SIZE
        return pages, min(max(left, 0) // PAGE_SIZE, pages)
