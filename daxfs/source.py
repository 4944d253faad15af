# SPDX-License-Identifier: MIT
"""L1: one source of a region: opened, recognised, measured and locked.

A source is a regular file, a pool directory (its file ``region`` is used), a block device or a devdax
character device. Limits: nothing is mapped and no byte is changed here, except that create_file makes and
grows files for mkfs. A descriptor that open_source returns holds the lock (flock) until it is closed.
"""

import ctypes
import errno
import fcntl
import logging
import os
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from daxfs._window import file_facts
from daxfs.errors import SourceError, UsageError
from daxfs.granularity import HUGETLBFS_MAGIC, Detected, detect, device_link
from daxfs.pfn import PAGE_SIZE, PFN_DEV, PFN_MAP, PMD_SIZE

log = logging.getLogger("daxfs.region")

REGION_NAME = "region"  # metadata and packed data of a pool directory
_BLKGETSIZE64 = 0x80081272
_BLKDISCARD = 0x1277
_PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_DEVICE_LOCK_PATIENCE = 0.5  # seconds; udev looks at a block device under a short lock of its own


@dataclass
class Source:
    """One opened source. Sizes in bytes, pfns in pages of the region.

    unit: smallest piece that can be mapped, in bytes; align: its address in memory is a multiple of this.
    """

    path: str
    kind: str  # "file", "pool", "block", "devdax"
    fd: int
    size: int
    unit: int
    detected: Detected
    identity: tuple
    dir_fd: int = -1  # of a pool directory
    pfn_start: int = 0
    pfn_end: int = 0

    @property
    def align(self) -> int:
        return max(self.unit, PMD_SIZE)

    @property
    def pages(self) -> int:
        """Pages that can be mapped; an odd tail is not used."""
        return self.size // self.unit * (self.unit // PAGE_SIZE)

    @property
    def pfn_flags(self) -> int:
        """DEV where no ordinary RAM stands behind it; MAP too, since Linux gives it page structs."""
        return PFN_DEV | PFN_MAP if self.detected.medium in ("fsdax", "devdax") else 0

    def punch(self, offset: int, length: int) -> int:
        """Give the storage of these bytes back to where it came from; how many of them that were.

        What is given back reads as zeros or as anything else; it is not an error where the source keeps some
        of it. EOPNOTSUPP where it can't be done at all (devdax; file systems and devices without it).
        """
        first = -(-offset // self.unit) * self.unit
        length = (offset + length) // self.unit * self.unit - first
        if self.kind == "devdax":
            raise SourceError(f"{self.path}: devdax can't give space back", errno.EOPNOTSUPP)
        if length <= 0:
            return 0
        if self.kind == "block":
            fcntl.ioctl(self.fd, _BLKDISCARD, struct.pack("QQ", first, length))
        elif _libc.fallocate(self.fd, _PUNCH_HOLE, first, length):
            code = ctypes.get_errno()
            raise SourceError(f"{self.path}: can't give space back: {os.strerror(code)}", code)
        return length

    def allocate(self) -> None:
        """Have storage behind every page of a file. SourceError, ENOSPC among them, keeps what there was."""
        # Storage of its own metadata counts on some file systems: so a hole may be missed, never made.
        if self.kind in ("file", "pool") and os.fstat(self.fd).st_blocks * 512 < self.size:
            try:
                os.posix_fallocate(self.fd, 0, self.size)
            except OSError as exc:
                text = f"{self.path}: no room for all of its {self.size} bytes: {exc.strerror}"
                raise SourceError(text, exc.errno) from exc

    def shrunk(self) -> bool:
        """Whether the file is shorter now than when it was measured; False where that can't be told."""
        try:
            st = os.fstat(self.fd)
        except OSError:
            return False
        return stat.S_ISREG(st.st_mode) and st.st_size < self.size

    def unlock(self) -> None:
        """Give the lock back although a mapping, which counts as an opener, still refers to the descriptor.

        Not part of close: a process that was forked off would lose the lock that it shares.
        """
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the descriptors, which gives the lock back. Twice is fine."""
        for fd in (self.fd, self.dir_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.dir_fd = -1


def open_source(path: str, mode: str = "rw", lock: bool = True, sysfs: str = "/sys") -> Source:
    """Open, recognise, measure and lock one source; *mode* as Region.open.

    SourceError: ENOENT, EACCES, EBUSY (another daemon, checker or mount has it), ENOSPC (no whole page),
    EINVAL (not a kind of file that can be a source). Trims an odd tail with a warning (SEEDS S10).
    """
    path = os.fspath(path)
    dir_fd = fd = -1
    try:
        if is_pool(path):
            dir_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fd, st = _open_checked(path, dir_fd, mode, lock)
        if lock:
            _lock(fd, path, patient=stat.S_ISBLK(st.st_mode))
        source = _measure(path, fd, dir_fd, st, Path(sysfs))
    except BaseException as exc:
        for one in (fd, dir_fd):
            if one >= 0:
                os.close(one)
        if isinstance(exc, OSError) and not isinstance(exc, SourceError):
            raise _explain(path, dir_fd >= 0, exc) from exc
        raise
    _warn_of_tail(source)
    return source


def is_pool(path: str) -> bool:
    """True where *path* names a pool directory: it is a directory, or ends in a slash."""
    return path.endswith("/") or os.path.isdir(path)


def _explain(path: str, pool: bool, exc: OSError) -> SourceError:
    """The sentence for a failed open."""
    code = exc.errno or errno.EINVAL
    name = os.path.join(path, REGION_NAME) if pool else path
    if isinstance(exc, UsageError):
        return SourceError(f"{name}: {exc}", code)
    if code == errno.ENOENT and pool:
        return SourceError(f"{path}: a directory without a region; mkfs.daxfs makes one", code)
    if code == errno.ELOOP and pool:
        return SourceError(f"{name}: is a symbolic link, which a pool directory must not hold", code)
    if code == errno.EBUSY:
        return SourceError(f"{name}: busy: mounted, or open in another program", code)
    return SourceError(f"{name}: {os.strerror(code)}", code)


def _open_checked(path: str, dir_fd: int, mode: str, lock: bool) -> tuple[int, os.stat_result]:
    """Descriptor and fstat; looked at before it is opened, because opening a tape or a FIFO has effects."""
    pool = dir_fd >= 0
    where = dict(dir_fd=dir_fd) if pool else {}
    name = REGION_NAME if pool else path
    before = os.stat(name, follow_symlinks=not pool, **where)
    kind = stat.S_IFMT(before.st_mode)
    if pool and stat.S_ISLNK(before.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if kind not in (stat.S_IFREG, stat.S_IFBLK, stat.S_IFCHR) or (pool and kind != stat.S_IFREG):
        what = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a directory"}.get(kind)
        shown = os.path.join(path, REGION_NAME) if pool else path
        raise SourceError(f"{shown}: {what or 'no regular file'} can't be a source of a region")
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (os.O_RDWR if mode == "rw" else os.O_RDONLY)
    if pool:
        flags |= os.O_NOFOLLOW
    if kind == stat.S_IFBLK and mode == "rw" and lock:
        flags |= os.O_EXCL  # on a block device: nobody else has it mounted or claimed
    fd = os.open(name, flags, **where)
    after = os.fstat(fd)
    if (after.st_dev, after.st_ino, stat.S_IFMT(after.st_mode)) != (before.st_dev, before.st_ino, kind):
        os.close(fd)
        raise SourceError(f"{path}: was replaced while it was being opened", errno.EAGAIN)
    return fd, after


def _lock(fd: int, path: str, patient: bool = False) -> None:
    """Lock against every other opener, readers included: a checker must not look at a moving region."""
    until = time.monotonic() + (_DEVICE_LOCK_PATIENCE if patient else 0)
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise SourceError(
                    f"{path}: busy: another daxfs daemon or tool has it open", errno.EBUSY
                ) from None
        time.sleep(0.05)


def _measure(path: str, fd: int, dir_fd: int, st: os.stat_result, sysfs: Path) -> Source:
    unit = PAGE_SIZE
    detected = detect(fd, str(sysfs))
    if stat.S_ISBLK(st.st_mode):
        kind, size = "block", _block_size(fd)
    elif stat.S_ISCHR(st.st_mode):
        kind = "devdax"
        size, unit = _devdax_size(path, device_link("char", st.st_rdev, sysfs))
    else:
        kind, size = ("pool" if dir_fd >= 0 else "file"), st.st_size
        magic, block, _ = file_facts(fd)
        if magic == HUGETLBFS_MAGIC:
            unit = block
    device = st.st_rdev if kind in ("block", "devdax") else None
    identity = (kind, device) if device is not None else ("file", st.st_dev, st.st_ino)
    source = Source(path, kind, fd, size, unit, detected, identity, dir_fd)
    if not source.pages:
        raise SourceError(f"{path}: {size} bytes are too small: not one piece of {unit}", errno.ENOSPC)
    return source


def _block_size(fd: int) -> int:
    try:
        return struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0]
    except OSError:
        return os.lseek(fd, 0, os.SEEK_END)


def _devdax_size(path: str, device: Path) -> tuple[int, int]:
    """(size, alignment) in bytes of a devdax device, from sysfs."""

    def number(*names: str) -> int:
        for name in names:
            try:
                return int((device / name).read_text(), 0)
            except (OSError, ValueError):
                continue
        raise SourceError(f"{path}: sysfs does not tell the {names[0]} of this devdax device ({device})")

    size, align = number("size"), number("align", "device/align", "device/dax_region/align")
    if align < PAGE_SIZE or align & (align - 1):
        raise SourceError(f"{path}: sysfs tells an alignment of {align}, which is no power of two of pages")
    return size, align


def _warn_of_tail(source: Source) -> None:
    tail = source.size - source.pages * PAGE_SIZE
    if tail:
        log.warning("%s: the last %d bytes are no whole piece of %d and are not used",
                    source.path, tail, source.unit)


def create_file(path: str, size: int) -> str:
    """Make a sparse file of *size* bytes (0600), or a pool directory (0700) with one; the file's path.

    An existing smaller file grows; a larger one keeps its size. SourceError where it is not a regular file,
    is locked by a daemon, or the file system can't hold it.
    """
    path = os.fspath(path)
    name = path
    fd = -1
    try:
        if is_pool(path):
            if not os.path.isdir(path):
                os.mkdir(path, 0o700)
            name = os.path.join(path, REGION_NAME)
        if os.path.lexists(name) and not os.path.isfile(name):
            raise SourceError(f"{name}: exists and is no regular file; its size is not mkfs's to choose")
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        if os.fstat(fd).st_size < size:
            _lock(fd, name)  # a mounted region does not change its size under the daemon
            os.ftruncate(fd, size)
    except SourceError:
        raise
    except OverflowError as exc:
        raise SourceError(f"{name}: no file can have {size} bytes", errno.EFBIG) from exc
    except OSError as exc:
        raise SourceError(f"{name}: can't make {size} bytes: {exc.strerror}", exc.errno) from exc
    finally:
        if fd >= 0:
            os.close(fd)
    return name


def pmd_possible(source: Source, sysfs: str = "/sys", mountinfo: str = "/proc/self/mountinfo") -> str:
    """Whether 2 MiB (PMD) mappings of *source* can be had: "yes: …" or "no: …" with the reason."""
    medium = source.detected.medium
    if source.kind == "devdax":
        return f"{'yes' if source.unit >= PMD_SIZE else 'no'}: devdax aligned to {source.unit}"
    if source.unit >= PMD_SIZE:
        return f"yes: hugetlbfs with pages of {source.unit}"
    if medium == "fsdax":
        return "yes: fsdax, where an extent is 2 MiB aligned on the media"
    if not source.detected.emulated or source.kind == "block":
        return f"no: {medium}, pages come from the page cache"
    return _tmpfs_huge(os.fstat(source.fd).st_dev, Path(sysfs), Path(mountinfo))


def _tmpfs_huge(dev: int, sysfs: Path, mountinfo: Path) -> str:
    try:
        text = (sysfs / "kernel/mm/transparent_hugepage/shmem_enabled").read_text()
        whole = text[text.index("[") + 1 : text.index("]")]
    except (OSError, ValueError):
        return "no: this kernel has no huge pages for tmpfs"
    if whole in ("deny", "force"):
        return f"{'yes' if whole == 'force' else 'no'}: shmem_enabled is {whole} for every tmpfs"
    number = f"{os.major(dev)}:{os.minor(dev)}"
    for line in mountinfo.read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] != number:
            continue
        options = rest.split(maxsplit=2)[2].split(",")
        huge = next((o[5:] for o in options if o.startswith("huge=")), "never")
        where = fields.split()[4]
        if huge == "never":
            return f"no: tmpfs {where} is mounted huge=never; mount -o remount,huge=advise {where}"
        return f"yes: tmpfs {where} is mounted huge={huge}"
    return f"{'no' if whole == 'never' else 'yes'}: memory without a mount, shmem_enabled is {whole}"
