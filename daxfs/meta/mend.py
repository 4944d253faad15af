# SPDX-License-Identifier: MIT
"""Mending: each action as a transaction of its own, so that a crash in between is harmless.

Only what the checker could read under a right checksum is changed, so sealing it
anew never turns damage into something that looks good. What needs free space or
frees pages first rebuilds the allocator as a mount does; where that is refused
(damage that makes an allocation unsafe), those problems stay. One thread.
"""

import contextlib
import logging
import time

from .. import layout as L
from ..errors import CorruptError
from ..pfn import PAGE_SHIFT
from . import dir as directory
from . import file, namespace, own, recover
from .fs import FileSystem

log = logging.getLogger("daxfs.fsck")

LOST_FOUND = b"lost+found"
_NEEDS_SPACE = ("trim", "reconnect")
_STATE = L.STATE_PFN << PAGE_SHIFT


def apply(region, sb, limit: int, problems, progress) -> list:
    """Mend *problems*; returns those that were acted upon."""
    fs = _file_system(region, sb, limit)
    try:
        if any(p.action[0] in _NEEDS_SPACE for p in problems):
            recover.rebuild(fs, limit)
    except OSError as error:
        log.warning("lost inodes and surplus pages can't be mended before the rest: %s", error)
        problems = [p for p in problems if p.action[0] not in _NEEDS_SPACE]
    acted = []
    for n, problem in enumerate(problems):
        progress("mending", n, len(problems))
        if _act(fs, problem.action, problem):
            acted.append(problem)
    fs.journal.settle()
    return acted


def tidy(region, sb, limit: int, actions) -> int:
    """Put right what a crash left, as a mount does; how many of these *actions* failed."""
    if not actions:
        return 0
    fs = _file_system(region, sb, limit)
    failed = sum(not _act(fs, action, "what a crash left") for action in actions)
    fs.journal.settle()
    return failed


def _file_system(region, sb, limit: int) -> FileSystem:
    fs = FileSystem(region, sb)
    fs.journal.replay()
    fs.inodes.limit = limit
    with contextlib.suppress(CorruptError):  # that is one of the problems
        fs.poison.read()
    return fs


def _act(fs, action: tuple, what) -> bool:
    name, *args = action
    try:
        _ACTIONS[name](fs, *args)
    except OSError as error:  # our own, and of the folder of ranges
        log.warning("%s: not mended: %s", what, error)
        return False
    return True


def mark_checked(region) -> None:
    """Say on the state page when the region was checked, and that nobody has it mounted."""
    offset = L.STATE_FIELDS.offset
    region.store(_STATE + offset["last_check"], time.time_ns().to_bytes(8, "little", signed=True))
    region.store(_STATE + offset["mounted"], L.WORD.pack(0))
    region.flush_range(_STATE + offset["mounted"], 64)
    # Orders both words, and everything that was mended before them, before the command's exit status.
    region.drain()
    region.flush.check()


def _inode(fs, ino: int, fields: dict) -> None:
    """Set fields of an inode."""
    with fs.begin() as tx:
        edit = tx.inode(ino)
        for name, value in fields.items():
            setattr(edit, name, value)


def _raw(fs, place: int, data: bytes) -> None:
    with fs.begin() as tx:
        tx.raw(place, data)


def _times(fs, ino: int) -> None:
    """Give an inode whose first line was wiped the time of mending."""
    now = fs.clock()
    with fs.begin() as tx:
        tx.raw(fs.inodes.place(ino) + 32, bytes(32))
        edit = tx.inode(ino)
        edit.atime, edit.mtime, edit.ctime = edit.atime or now, edit.mtime or now, now


def _wipe(fs, ino: int) -> None:
    """Make a free inode hold only its number and generation."""
    with fs.begin() as tx:
        edit = tx.inode(ino)
        generation = edit.generation
        edit.buf[:] = bytes(L.INODE_SIZE)
        edit.magic, edit.ino, edit.generation = L.INODE_MAGIC, ino, generation
        # The reserved bytes of the first line are no fields of an edit.
        tx.raw(edit.place + 32, bytes(32))


def _drop(fs, owner: int, pfn: int, at: int) -> None:
    """Take a name away, as `dir.remove` does."""
    with fs.begin() as tx:
        tx.block(pfn, L.BLOCK_DIR, owner).put(at, L.WORD.pack(0))


def _type(fs, owner: int, pfn: int, at: int, kind: int) -> None:
    """Correct the type in a name's record."""
    with fs.begin() as tx:
        block = tx.block(pfn, L.BLOCK_DIR, owner)
        ino, rec_len, name_len, _ = L.DIRENT_CODEC.unpack_from(block.buf, at)
        block.put(at, L.DIRENT_CODEC.pack(ino, rec_len, name_len, kind))


def _trim(fs, ino: int) -> None:
    """Free the pages behind the end of a file."""
    file.continue_truncate(fs, fs.node(ino))


def _lost_found(fs) -> int:
    """The directory for inodes without a name, made where there is none."""
    found = namespace.lookup(fs, L.ROOT_INO, LOST_FOUND)
    if found is None:
        found = namespace.create(fs, L.ROOT_INO, LOST_FOUND, 0o040700, namespace.ROOT)
    if found.mode & 0o170000 != 0o040000:
        raise CorruptError("/lost+found is no directory: rename it, then run fsck.daxfs again")
    return found.ino


def _reconnect(fs, ino: int) -> None:
    """Name an inode /lost+found/#INO."""
    parent = _lost_found(fs)
    inode = fs.inodes.read(ino)
    node = fs.node(parent)
    name, n = b"#%d" % ino, 0
    while directory.lookup(fs, node, name) is not None:
        n += 1
        name = b"#%d_%d" % (ino, n)
    is_dir = inode.mode & 0o170000 == 0o040000
    with fs.begin() as tx:
        dir_edit = tx.inode(parent)
        directory.insert(tx, fs, dir_edit, node, name, ino, namespace.d_type(inode.mode))
        dir_edit.mtime = dir_edit.ctime = fs.clock()
        if is_dir:
            dir_edit.nlink += 1
            tx.inode(ino).parent = parent


def _feature(fs, bits: int, word: str = "incompat") -> None:
    """Set feature bits of the superblock."""
    fs.change_superblock(**{word: getattr(fs.sb, word) | bits})


def _make(fs, ino: int, generation: int) -> None:
    """An empty range, before the record that says that the file is empty."""
    fs.pool.create(ino, generation)
    if fs.inodes.read(ino).size:
        _inode(fs, ino, {"size": 0})


def _resize(fs, ino: int, generation: int, size: int) -> None:
    """A file of *size* bytes, and the pages that it has; the range's times are not to count for the file."""
    if fs.inodes.read(ino).size != size:
        _inode(fs, ino, {"size": size})
    fs.pool.resize(ino, generation, own.pages_of(size))
    fs.pool.forget_times(ino, generation)


def _unlink(fs, ino: int, generation: int) -> None:
    fs.pool.unlink(ino, generation)


def _protect(fs, ino: int, generation: int) -> None:
    fs.pool.protect(ino, generation)


_ACTIONS = {
    "inode": _inode,
    "raw": _raw,
    "times": _times,
    "wipe": _wipe,
    "drop": _drop,
    "type": _type,
    "trim": _trim,
    "reconnect": _reconnect,
    "feature": _feature,
    "make": _make,
    "resize": _resize,
    "unlink": _unlink,
    "protect": _protect,
}
