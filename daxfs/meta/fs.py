# SPDX-License-Identifier: MIT
"""FileSystem: one mounted region, as its operations see it.

It holds the parts (journal, allocator, inode table, nodes) and the rules that
belong to none of them: what is in use, when an unlinked inode goes, read-only.
The operations are functions in `namespace`, `attr`, `file` and `xattr`, with a
FileSystem as first argument.

One thread calls all of it (docs/concurrency.md); it never suspends.
"""

import dataclasses
import errno
import time
from collections import namedtuple

from .. import layout as L
from .._fsync import DRAIN, META, PYTHON, FsyncRun
from .._iomap import PLAIN, STALE_TIMES, UNSETTLED
from ..errors import CorruptError, FormatError, fail
from ..pfn import PAGE_SHIFT, PAGE_SIZE
from . import extent, own, placement, poison, prealloc, superblock
from .alloc import Allocator
from .inode import InodeTable
from .journal import Journal
from .mkfs import state_line
from .transaction import Transaction
from .xattr_run import Cache

BlockHead = namedtuple("BlockHead", L.BLOCK_FIELDS.names)
_block_head = L.BLOCK_FIELDS.unpack_from
_STATE = L.STATE_PFN << PAGE_SHIFT
_MOUNTED = _STATE + L.STATE_FIELDS.offset["mounted"]
ATIME_POLICIES = ("relatime", "noatime", "strictatime")


class FileSystem:
    """An open region with a file system on it. Make one with `mount`.

    ``atime``: relatime, noatime or strictatime; ``nodiratime``, ``lazytime`` as
    mount(8) has them. ``readonly``: every change is refused with EROFS. ``shut``: after
    `shutdown` nothing is stored any more, and a change is refused with EIO.
    """

    def __init__(self, region, sb, readonly=False):
        self.region = region
        self.mem = region.mem
        self.pool = region.pool  # own ranges; None: no source is a pool directory
        self.dax = "inode"  # mount option dax=: inode, always, never
        self.moves = placement.Moves()
        self.sb = sb
        self.seed = sb.seed
        self.readonly = readonly
        self.shut = False
        self.atime, self.nodiratime, self.lazytime = "relatime", False, False
        self.journal = Journal(region, sb.journal_pfn, sb.journal_pages, self.seed)
        self.inodes = InodeTable(region, sb.inode_pfn, sb.inode_pages, self.seed)
        self.poison = poison.Poison(self)
        self.alloc = Allocator()
        self.alloc.reclaim = self.journal.settle
        self.journal.on_settle.append(self._settled)
        self.ranges = sb.data_ranges()
        self.nodes: dict[int, extent.Node] = {}
        self.lookups: dict[int, int] = {}
        self.orphans: set[int] = set()
        self.linkable: set[int] = set()  # orphans that never had a name and may get one (`namespace.tmpfile`)
        self.unsettled: set[int] = set()  # inodes that records since the tail wrote to
        self.stored: set[int] = set()  # closed files in own ranges that mappings may have stored to (STORED)
        self.mapped: set[int] = set()  # files in own ranges whose mappings' stores the kernel below tracks
        self.preallocated: set[int] = set()  # open files that may have written pages behind their end
        self.xattrs = Cache()
        self.replayed = 0
        self.unclean = False  # no umount came before this mount
        self.clock = time.time_ns

    # -- checks of what media say ------------------------------------------------------

    def check_block(self, pfn: int, kind: int, owner: int, whole: bool = False) -> BlockHead:
        """The header of a metadata block. CorruptError where it is another one's, or (*whole*) damaged."""
        self.check_run(pfn, 1, owner)
        self.check_poison(pfn, 1, owner)
        at = pfn << PAGE_SHIFT
        head = BlockHead._make(_block_head(self.mem, at))
        if head.magic != L.BLOCK_MAGIC or head.kind != kind or head.owner != owner or head.self_pfn != pfn:
            raise CorruptError(f"inode {owner}: block {pfn} is not its metadata block of kind {kind}")
        if whole and (
            head.length != PAGE_SIZE or not L.is_sealed(self.mem[at : at + PAGE_SIZE], 4, self.seed)
        ):
            raise CorruptError(f"inode {owner}: metadata block {pfn} has a wrong checksum")
        return head

    def check_run(self, pfn: int, pages: int, owner: int) -> None:
        """CorruptError where [pfn, pfn + pages) is not inside one data range."""
        for start, end in self.ranges:
            if start <= pfn and pfn + pages <= end and pages > 0:
                return
        raise CorruptError(f"inode {owner}: pages {pfn}+{pages} are outside the data area")

    def check_poison(self, pfn: int, pages: int, owner: int) -> None:
        """CorruptError where one of these pages, metadata of *owner*, is poisoned."""
        if self.poison.runs and self.poison.packed(pfn, pfn + pages):
            raise CorruptError(f"inode {owner}: pages {pfn}+{pages}, its metadata, are poisoned")

    # -- transactions -------------------------------------------------------------------

    def begin(self) -> Transaction:
        """A transaction; EROFS on a read-only mount."""
        self.may_change()
        if self.preallocated and self.alloc.free_pages < prealloc.LOW:
            prealloc.give_back_all(self)
        return Transaction(self)

    def may_change(self) -> None:
        """Ask before a change: EROFS on a read-only mount, an OSError where a failed record may come back."""
        if self.shut:
            raise fail(errno.EIO, "shut down")
        if self.readonly:
            raise fail(errno.EROFS)
        if self.poison.runs and (area := self.poison.fixed()):
            raise fail(errno.EIO, f"{area}: its pages are poisoned")
        if self.journal.doubt:
            self.journal.ready()

    def change_superblock(self, **changes) -> None:
        """Change ``label`` (bytes) or feature words of the superblock; atomic, durable on return."""
        self.may_change()
        sb = dataclasses.replace(self.sb, **changes)
        superblock.change(self.region, sb)
        self.sb = sb

    def journalled(self, inodes) -> None:
        """A record with these inodes was committed, or may have been; `Transaction.commit` holds their locks.

        Until the journal settles, replay would bring back their sizes and times. And what they allow is to be
        found out anew: it may be what the record changed.
        """
        self.unsettled.update(inodes)
        for ino in inodes:
            node = self.nodes.get(ino)
            if node is not None:
                node.map.clear_state(PLAIN)
                node.map.set_state(UNSETTLED)

    def _settled(self) -> None:
        for ino in self.unsettled:
            node = self.nodes.get(ino)
            if node is not None:
                node.map.clear_state(UNSETTLED)
        self.unsettled.clear()
        self.alloc.release_held()

    def new_ino(self, tx) -> int:
        """A free inode number, the table grown where needed. ENOSPC where it is full."""
        table = self.inodes
        ino = table.take()
        if ino is None:
            # Zeros, limit and the first inode of the chunk are one record. DRAM learns of it afterwards,
            # so a transaction that fails leaves nothing to give back.
            ino, limit = table.limit, table.next_chunk()
            tx.zero(table.place(ino), (limit - ino) * L.INODE_SIZE)
            tx.raw(_STATE, state_line(self.seed, limit))
            tx.after(lambda: table.grown(limit))
        else:
            tx.undo(lambda: table.give(ino))
        tx.after(lambda: setattr(table, "used", table.used + 1))
        return ino

    # -- inodes in use ------------------------------------------------------------------

    def node(self, ino: int) -> extent.Node:
        """The Node of an inode, loaded at first use."""
        node = self.nodes.get(ino)
        if node is None:
            inode = self.inodes.read(ino)
            node = extent.load(self, inode)
            if inode.flags & L.FLAG_OWN:
                own.attach(self, node, inode)
            if self.poison.runs:
                self.poison.mark(node)
            self.nodes[ino] = node
        return node

    def remember(self, ino: int) -> None:
        """The kernel was told of *ino* once more."""
        self.lookups[ino] = self.lookups.get(ino, 0) + 1

    def forget(self, ino: int, count: int) -> None:
        """The kernel dropped *count* references; the last one ends an unlinked inode."""
        left = self.lookups.get(ino, 0) - count
        if left > 0:
            self.lookups[ino] = left
            return
        self.lookups.pop(ino, None)
        self.drop_unused(ino)

    def in_use(self, ino: int) -> bool:
        """True where the kernel knows *ino* or has it open."""
        node = self.nodes.get(ino)
        return ino in self.lookups or (node is not None and node.opens > 0)

    def drop_unused(self, ino: int) -> None:
        """Let go of the Node, and of the inode where it is unlinked, if nobody uses it any more."""
        if self.in_use(ino):
            node = self.nodes.get(ino)
            if node is not None and not node.opens and node.map.own is not None:
                # The kernel remembers many inodes: a descriptor and addresses for each would be too many.
                self.sync_times(ino)
                self._drop_node(ino)
            return
        if self.shut:
            self._drop_node(ino)
        elif ino in self.orphans and not self.readonly:
            self.destroy(ino)
        elif ino in self.nodes:
            self.sync_times(ino)
            self._drop_node(ino)

    def _drop_node(self, ino: int) -> None:
        node = self.nodes.pop(ino, None)
        if node is not None:
            own.drop(node, not (self.readonly or self.shut))

    def open(self, ino: int) -> extent.Node:
        """One more handle on *ino*."""
        node = self.node(ino)
        node.opens += 1
        return node

    def release(self, node) -> None:
        """One handle less."""
        node.opens -= 1
        if not node.opens:
            self.drop_unused(node.ino)

    def destroy(self, ino: int) -> None:
        """Free an unlinked inode that nobody uses any more."""
        self.inodes.read(ino)
        with self.begin() as tx:
            self.free_inode(tx, tx.inode(ino))

    def free_inode(self, tx, edit) -> None:
        """Free the inode *edit* and everything that it holds, in *tx*: 256 bytes of record, whatever it has.

        Nobody may use it (`in_use`), and no name may be left once *tx* is durable.
        """
        ino = edit.number
        # All but file data is written through the journal, a long symlink's target too.
        if edit.flags & L.FLAG_OWN:
            own.freed(tx, self, edit)
        elif edit.blocks:
            extent.clear(tx, edit, self.node(ino), metadata=edit.mode & 0o170000 != 0o100000)
        if edit.xattr_pfn:
            tx.free([(edit.xattr_pfn, edit.xattr_pages)], metadata=True)
        # All zero but what the next user of the number needs: its generation.
        generation = edit.generation
        edit.fresh = True
        edit.buf[:] = bytes(L.INODE_SIZE)
        edit.magic, edit.ino, edit.generation = L.INODE_MAGIC, ino, generation

        def gone():
            self.orphans.discard(ino)
            self.linkable.discard(ino)
            self.preallocated.discard(ino)
            self.stored.discard(ino)
            self.mapped.discard(ino)
            self._drop_node(ino)
            self.inodes.give(ino)
            self.inodes.used -= 1

        tx.after(gone)

    # -- times and durability -----------------------------------------------------------

    def store_times(self, ino: int, offset: int, data: bytes) -> None:
        """Store time words of an inode in place (8-byte atoms, no record).

        Their lines are queued at once, or with lazytime when the inode is synced;
        either way they are durable at the next drain after that.
        """
        region, place = self.region, self.inodes.place(ino) + offset
        region.store(place, data)
        if self.lazytime:
            node = self.nodes.get(ino)
            if node is not None:
                node.map.set_state(STALE_TIMES)
                return
        region.flush_range(place, len(data))

    def sync_times(self, ino: int) -> None:
        """Queue the times that lazytime held back."""
        node = self.nodes.get(ino)
        # Cleared before the flush: a native thread that stores times in between sets it again.
        if node is not None and node.map.clear_state(STALE_TIMES):
            self.region.flush_range(self.inodes.place(ino), L.INODE_HOT)

    def sync_inode(self, ino: int, times: FsyncRun | None = None) -> None:
        """Make size and times of *ino* durable, and safe from replay. The caller's data are flushed.

        *times*: of the fsync that it is done for.
        """
        if self.readonly:
            return
        times = times or FsyncRun()
        self.may_change()
        times.lap(PYTHON)
        self.sync_times(ino)
        if ino in self.unsettled:
            # A record since the tail holds older times of this inode: replay must not bring them back.
            drains = self.journal.tail != self.journal.head
            self.journal.settle()
            times.lap(META)
            if drains:
                return  # else the record was refused, and there was nothing to settle
        times.lap(META)
        # Orders the caller's flushed data and the time words above before the reply to fsync.
        self.region.drain()
        times.lap(DRAIN)
        self.region.flush.check()

    def sync_all(self) -> None:
        """Everything durable, nothing to replay (unmount, syncfs)."""
        if self.readonly:
            return
        self.may_change()
        for ino in list(self.nodes):
            self.sync_times(ino)
        settled = self.journal.tail == self.journal.head
        self.journal.settle()
        if settled:
            # Orders queued time words before the return, as settle's drains do where it has something to do.
            self.region.drain()
            self.region.flush.check()

    def statfs(self) -> dict:
        """Space in pages and inodes, as statvfs(3) wants it.

        Once files have ranges of their own, what is left below counts as well; whose it will be, theirs or
        that of other files below, nobody knows.
        """
        free = self.alloc.free_pages + self.alloc.held
        blocks = sum(end - start for start, end in self.ranges)
        if self.pool is not None and (self.sb.incompat & L.INCOMPAT_OWN or self.dax == "always"):
            below, left = self.pool.space()
            blocks, free = blocks + below, free + min(left, below)
        return {
            "blocks": blocks,
            "bfree": free,
            "files": self.sb.capacity,
            "ffree": self.sb.capacity - self.inodes.used,
        }

    def unmount(self) -> None:
        """Finish: orphans that nobody can reach any more, times, journal; then say so on media.

        After `shutdown` nothing: the next mount finds what a crash then would have left.
        """
        if self.readonly or self.shut:
            return
        for node in self.nodes.values():
            node.opens = 0
            if node.uncut:
                own.shorten(node)
        self.lookups.clear()
        for ino in list(self.orphans):
            self.destroy(ino)
        prealloc.give_back_all(self)
        self.sync_all()
        self.set_mounted(0)

    def shutdown(self, durable: bool) -> None:
        """The end of all access, as a crash at this moment: the region refuses every store from now on.

        *durable*: what returned operations have queued (times) is made durable first; their records and data
        are. What is left is to unmount. Twice is fine.
        """
        if self.shut:
            return
        try:
            if durable and not self.readonly:
                # Orders all that was queued before the last moment at which anything can be.
                self.region.drain()
        finally:
            self.shut = True
            self.region.kill()

    def set_mounted(self, value: int) -> None:
        """The mounted word of the state page."""
        self.region.store(_MOUNTED, L.WORD.pack(value))
        self.region.flush_range(_MOUNTED, 8)
        # Orders the word after all that it speaks of, and before the mount or unmount that it stands for.
        self.region.drain()
        self.region.flush.check()


def state_of(mem, seed: int) -> dict:
    """The state page's fields. CorruptError where its journalled line is damaged."""
    raw = bytes(mem[_STATE : _STATE + L.STATE.itemsize])
    if len(raw) < L.STATE.itemsize:
        raise CorruptError("the region ends before its state page")
    fields = dict(zip(L.STATE_FIELDS.names, L.STATE_FIELDS.unpack_from(raw), strict=True))
    if fields["magic"] != L.STATE_MAGIC or not L.is_sealed(raw[:64], 4, seed):
        raise CorruptError("state page: wrong magic or checksum")
    return fields


def mount(region, readonly: bool = False, progress=None) -> FileSystem:
    """Open the file system on *region*: replay, rebuild DRAM state, finish orphans.

    A region opened read-only is replayed nowhere: give a ``cow`` one.
    FormatError, SourceError, CorruptError; nothing is changed where it is raised
    before replay, but that a change of the superblock is finished.
    """
    from . import recover

    superblock.settle(region)
    sb = superblock.read(region)
    if region.pool is not None:
        region.pool.join()
    if sb.ro_compat & ~L.RO_COMPAT_KNOWN and not readonly:
        raise FormatError(f"unknown features {sb.ro_compat:#x}: mount read-only (-o ro) or use a newer daxfs")
    fs = FileSystem(region, sb, readonly)
    fs.replayed = fs.journal.replay()
    state = state_of(fs.mem, fs.seed)
    fs.unclean = bool(state["mounted"])
    fs.poison.load()
    recover.rebuild(fs, state["inode_limit"], progress, clean=not state["mounted"])
    if not readonly:
        now = fs.clock()
        region.store(_STATE + L.STATE_FIELDS.offset["mount_count"], L.WORD.pack(state["mount_count"] + 1))
        region.store(_STATE + L.STATE_FIELDS.offset["last_mount"], now.to_bytes(8, "little", signed=True))
        fs.set_mounted(1)
        recover.finish_orphans(fs)
    return fs
