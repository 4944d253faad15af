# SPDX-License-Identifier: MIT
"""Making a file system: geometry and the first writes. The command is cli/mkfs.py."""

import errno
import time
import uuid as uuidlib

from .. import layout as L
from ..errors import DaxfsError, SourceError, UsageError
from ..pfn import PAGE_SHIFT, PAGE_SIZE, PMD_PAGES
from .inode import COLD
from .journal import Journal
from .superblock import Superblock, write
from .transaction import InodeEdit

BYTES_PER_INODE = 16384
MAX_DEFAULT_INODES = 1 << 24
KINDS = {"mem": L.MAP_MEM, "dev": L.MAP_DEV}
MAP_CHUNK_PAGES = 1 << 15  # file pages that one chunk of a dirty bitmap covers


def plan(region, label=b"", uuid: bytes | None = None, inodes: int | None = None, map_kind="mem"):
    """The superblock for *region* (sizes from its sources). UsageError, or ENOSPC where it is too small.

    SourceError where ranges of an older file system could not be removed.
    """
    for path in region.pool.obstacles() if region.pool is not None else ():
        raise SourceError(f"{path}: a directory is where an inode's range may have to be")
    first = region.sources[0]
    pages = first.size // PAGE_SIZE
    if pages < L.MIN_REGION_PAGES:
        raise DaxfsError(
            f"{first.path}: {first.size} bytes; a first source needs {L.MIN_REGION_PAGES * PAGE_SIZE}",
            errno.ENOSPC,
        )
    if len(region.sources) > L.MAX_SOURCES:
        raise UsageError(f"{len(region.sources)} sources; a region has at most {L.MAX_SOURCES}")
    sb = Superblock(uuid=uuid or uuidlib.uuid4().bytes, label=label, created=time.time_ns())
    sb.nsources, sb.map = len(region.sources), KINDS[map_kind]
    total = 0
    for source in region.sources:
        npages = source.size // PAGE_SIZE
        if npages < 2:
            raise DaxfsError(f"{source.path}: too small for a source", errno.ENOSPC)
        sb.sources.append((uuidlib.uuid4().bytes, source.pfn_start, npages))
        sb.npages = source.pfn_start + npages
        total += npages
    if inodes is None:
        inodes = min(max(total * PAGE_SIZE // BYTES_PER_INODE, 256), MAX_DEFAULT_INODES)
    sb.journal_pfn = L.STATE_PFN + 1
    sb.journal_pages = 1 + min(max(pages // 64, 64), 1024)
    sb.inode_pfn = sb.journal_pfn + sb.journal_pages
    # Whole chunks: the table becomes valid in steps of one, and the first is written here.
    sb.inode_pages = -(-(inodes + 1) // L.INODE_CHUNK) * (L.INODE_CHUNK // L.INODES_PER_PAGE)
    sb.map_pfn = sb.inode_pfn + sb.inode_pages
    if sb.map == L.MAP_DEV:
        sb.map_pages = 2 * (total // MAP_CHUNK_PAGES + 16)
    end = sb.map_pfn + sb.map_pages
    sb.data_pfn = -(-end // PMD_PAGES) * PMD_PAGES
    sb.backup_pfn = pages - 1
    if sb.data_pfn + 64 > sb.backup_pfn:
        message = f"{inodes} inodes leave no room for data in {first.path}: use fewer (--inodes)"
        raise DaxfsError(message, errno.ENOSPC)
    return sb


def make(region, sb: Superblock, progress=lambda done, total: None, owner=(0, 0)) -> None:
    """Format: whatever superblock was there goes first, the new one comes last.

    *owner*: uid and gid of the root directory.
    """
    zero = bytes(PAGE_SIZE)
    pool = region.pool  # an error of its folder comes before anything is lost
    old = [0, sb.backup_pfn] + [start for _, start, _ in sb.sources[1:]]
    for pfn in old:
        region.nt_store(pfn << PAGE_SHIFT, zero)
    # Orders the end of any older region before the first byte of the new one, and before its ranges go.
    region.drain()
    region.flush.check()
    if pool is not None:
        pool.clear()
    journal = Journal(region, sb.journal_pfn, sb.journal_pages, sb.seed)
    journal.format()
    progress(1, 3)
    region.nt_store(L.STATE_PFN << PAGE_SHIFT, state_page(sb.seed, L.INODE_CHUNK))
    _root(region, sb, owner)
    progress(2, 3)
    write(region, sb)
    progress(3, 3)


def state_page(seed: int, limit: int) -> bytes:
    """The state page of a region that was never mounted."""
    page = bytearray(PAGE_SIZE)
    page[:64] = state_line(seed, limit)
    return bytes(page)


def state_line(seed: int, limit: int) -> bytes:
    """The journalled line of the state page: inodes below *limit* are valid."""
    line = bytearray(64)
    L.STATE_FIELDS.codec["magic"].pack_into(line, 0, L.STATE_MAGIC)
    L.WORD.pack_into(line, 8, limit)
    return L.sealed(line, 4, seed)


def _root(region, sb: Superblock, owner: tuple[int, int]) -> None:
    """The first chunk of the inode table with the root directory and its first block."""
    base = sb.inode_pfn << PAGE_SHIFT
    region.nt_fill(base, 0, L.INODE_CHUNK * L.INODE_SIZE)
    root = InodeEdit(L.ROOT_INO, base + L.ROOT_INO * L.INODE_SIZE, bytearray(L.INODE_SIZE), fresh=True)
    root.magic, root.ino, root.generation = L.INODE_MAGIC, L.ROOT_INO, 1
    root.mode, root.nlink, root.parent = 0o040755, 2, L.ROOT_INO
    root.uid, root.gid = owner
    root.atime = root.mtime = root.ctime = root.btime = sb.created
    root.size, root.blocks, root.nextents = PAGE_SIZE, 1, 1
    root.inline = L.EXTENT_CODEC.pack(0, 1, sb.data_pfn | 2 << L.EXTENT_STATE_SHIFT)
    root.buf[COLD:] = L.sealed(root.buf[COLD:], 4, sb.seed)
    region.nt_store(root.place, bytes(root.buf))
    region.nt_store(sb.data_pfn << PAGE_SHIFT, first_block(root, sb.data_pfn, sb.seed))


def first_block(owner: InodeEdit, pfn: int, seed: int) -> bytes:
    """An empty directory block: one free record."""
    block = bytearray(PAGE_SIZE)
    L.BLOCK_FIELDS.struct.pack_into(
        block, 0, L.BLOCK_MAGIC, 0, L.BLOCK_DIR, owner.generation, owner.number, 0, pfn, 0, PAGE_SIZE, 0, 0
    )
    L.DIRENT_CODEC.pack_into(block, L.BLOCK_SIZE, 0, PAGE_SIZE - L.BLOCK_SIZE, 0, 0)
    return L.sealed(block, 4, seed)
