# SPDX-License-Identifier: MIT
"""Inodes that live in ranges of their own (DESIGN.md section 5): placement, size, storage, times.

Such an inode has FLAG_OWN and no extents; its data are the file that pool.Pool names by number and
generation, at the same offsets. A program may store anywhere in it through its mapping, and punch holes.

The rule that crashes keep: *the range has at least the pages of the inode*. It grows before the record, or
the store, with the larger size, and is cut after the one with the smaller. So a range that is longer, or has
no inode, is what a crash left, and the mount cuts or removes it (`recover`); one that is shorter or missing
is damage. On fsdax a cut can be refused, as somebody has pages of the file pinned: what is asked then
is refused before its record (`_truncate`), or the range stays longer, and is cut before the inode grows over
it (`shorten`, docs/mappings.md). Times: what we do to a range's file changes its times, so they are put to 0
again (`forget_times`); what they are later is from stores through mappings.

The file's lock is held by everything here that looks at the size and changes it. Metadata thread.
"""

import contextlib
import dataclasses
import errno
import fcntl
import logging
import os
import signal
import stat

from .. import layout as L
from .._iomap import OBSERVED
from ..errors import CorruptError, PinnedError
from ..pfn import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
from . import extent
from .inode import PLACE_OF

log = logging.getLogger(__name__)

S_IFREG = 0o100000


NO_POOL = "its data are in a range of a pool directory: give that directory as the source"


def pages_of(size: int) -> int:
    """Pages that a range of *size* bytes has."""
    return (size + PAGE_SIZE - 1) >> PAGE_SHIFT


# -- which inodes, and how they come to it -------------------------------------------------


def wanted(fs, mode: int, flags: int) -> bool:
    """Whether an inode of this type with these flags should live in a range of its own."""
    if fs.pool is None or mode & 0o170000 != S_IFREG:
        return False
    return bool(flags & L.FLAG_DAX) or fs.dax == "always"


def enable(fs) -> None:
    """Before the first transaction with such an inode: the superblock says that there may be some."""
    if not fs.sb.incompat & L.INCOMPAT_OWN:
        # Programs fill ranges without asking us, to the last page of the file system below. A hole of the
        # region that a store met then would be a page that is gone, and the region lost.
        fs.region.allocate()
        fs.change_superblock(incompat=fs.sb.incompat | L.INCOMPAT_OWN)


def place(tx, fs, edit) -> None:
    """Give the new inode *edit* an empty range, in the transaction that makes it. `enable` came before."""
    ino, generation = edit.number, edit.generation
    # Before the record: a crash in between leaves a range without an inode, which the mount removes.
    fs.pool.create(ino, generation)
    tx.undo(lambda: remove(fs, ino, generation))
    edit.flags |= L.FLAG_OWN


def remove(fs, ino: int, generation: int) -> None:
    """A range that no inode has any more. An error leaves it to fsck.daxfs, or the mount after a crash."""
    if not fs.pool.writable:
        return  # what is done to the region stays in this process
    try:
        fs.pool.unlink(ino, generation)
    except OSError as error:
        log.warning("the range of inode %d can't be removed; fsck.daxfs does: %s", ino, error)


def attach(fs, node, inode) -> None:
    """Open the range of *inode* for its Node. CorruptError where it is missing, too short or no file."""
    if fs.pool is None:
        raise CorruptError(f"inode {inode.ino}: {NO_POOL}")
    try:
        range_ = fs.pool.open(inode.ino, inode.generation)
    except FileNotFoundError:
        if _not_made(fs, inode):
            return
        name = L.range_name(inode.ino, inode.generation)
        raise CorruptError(f"inode {inode.ino}: its range {name} is missing; run fsck.daxfs") from None
    if range_.pages < pages_of(inode.size):
        have = range_.pages
        range_.close()
        raise CorruptError(f"inode {inode.ino}: its range has {have} pages, too few for {inode.size} bytes; "
                           "run fsck.daxfs")
    range_.attach(node.map)


def _not_made(fs, inode) -> bool:
    """True for an empty file whose range a read-write mount would make (`recover`): nothing is missed."""
    return fs.readonly and not inode.size


def drop(node, writable: bool) -> None:
    """The Node goes: so do descriptor and addresses. Mappings that programs have stay."""
    range_ = node.map.own
    if range_ is not None:
        if node.uncut and writable:
            shorten(node)
        range_.detach(node.map)
        range_.close()


def freed(tx, fs, edit) -> None:
    """The inode is freed in *tx*: its range goes once that is durable. What is mapped stays to who has it."""
    ino, generation = edit.number, edit.generation
    if fs.poison.runs:
        fs.poison.forget(tx, ino, generation)
    tx.after(lambda: remove(fs, ino, generation))


def is_busy(node) -> bool:
    """Whether somebody else has the range open or mapped, through the mount or beside it."""
    return is_shared(node.map.own.fd)


def is_shared(fd: int) -> bool:
    """Whether the file of *fd* is open or mapped by another descriptor than this one.

    A lease says so exactly: the kernel gives one for writing only to who alone has the file open.
    """
    # Who opens it in the moment of the lease has the kernel send us a signal: one that does nothing by
    # itself, where the usual SIGIO would end us.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return True  # also where the file system below has no leases: not known
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def is_stored_to(fs, node) -> bool:
    """Before an open: may a mapping that outlived its handle store where no kernel below tracks it?"""
    return node.map.own is not None and not fs.pool.syncs and is_busy(node)


# -- size and storage ----------------------------------------------------------------------


def zero_behind(node, end: int) -> None:
    """Zeros from the end of file to *end*: a program may have stored there. The range reaches there already.

    In the last page in any case, and where that is part of a huge one in the rest of that: the kernel maps a
    huge page of tmpfs as a whole, wherever the file ends in it.
    """
    size, range_ = node.map.size, node.map.own
    if size >= end:
        return
    at = min(end, pages_of(size) << PAGE_SHIFT)
    _punch(node, size, at)
    if range_.syncs:
        return  # no tmpfs: behind that page nothing is mapped, and a hole here could wait for this very write
    stop = min(end, -(-size // PMD_SIZE) * PMD_SIZE)
    while at < stop:
        try:
            at = os.lseek(range_.fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        until = min(os.lseek(range_.fd, at, os.SEEK_HOLE), pages_of(stop) << PAGE_SHIFT)
        if at < until:
            _punch(node, at, until)
            range_.reserve(node.map, at >> PAGE_SHIFT, until >> PAGE_SHIFT)  # what fallocate put there stays
        at = max(at, until)


def mark_stored(node, first: int, last: int) -> int:
    """The pages [first, last) of a range may have been stored to by programs: dirty, where there is data.

    How many those are. MemoryError, OSError: perhaps not all of them.
    """
    fmap, marked = node.map, 0
    if fmap.own is None:
        return 0
    with fmap:
        last = min(last, fmap.own.pages)
        if first >= last:
            return 0
        fmap.own.learn(fmap, first, last)
        for pgoff, pages, *_ in fmap.extents():
            low, high = max(pgoff, first), min(pgoff + pages, last)
            if low < high:
                fmap.mark(low, high - low)
                marked += high - low
    return marked


@contextlib.contextmanager
def _keeping_marks(node, pos: int, end: int):
    """Around what takes the bytes [pos, end) away of a range that programs have mapped and that is observed.

    Where that splits a huge page the kernel forgets what was stored to the rest of it (native/pagemap.h).
    Order: marked before it is forgotten, in one step of this thread, so that no fsync comes between. And
    who has to know is told before, and flushes it after: an msync of a program finds nothing there any more.
    """
    rest = [(pos & -PMD_SIZE) >> PAGE_SHIFT, pages_of(pos)], [end >> PAGE_SHIFT, _huge_pages_of(end)]
    rest = [(first, last) for first, last in rest if first < last]
    if not (rest and node.map.state & OBSERVED):
        yield
        return
    for first, last in rest:
        mark_stored(node, first, last)
    with node.splits.around_split(rest) if node.splits is not None else contextlib.nullcontext():
        yield


def _huge_pages_of(size: int) -> int:
    """Pages of *size* bytes, whole huge ones."""
    return -(-size // PMD_SIZE) * PMD_SIZE >> PAGE_SHIFT


@contextlib.contextmanager
def _going(node, pos: int, end: int):
    """Around what takes the bytes [pos, end) of a range away, under the file's lock.

    Order: marks of whole pages go before the pages do. A store that comes in between goes with its page, and
    one that comes later faults and marks anew.
    """
    try:
        with _keeping_marks(node, pos, end):
            if node.faults is not None:
                node.faults.forget(pages_of(pos), end >> PAGE_SHIFT)
            yield
    except OSError as error:
        if node.faults is not None:
            node.faults.give_up(error)
        raise


def _punch(node, pos: int, end: int) -> None:
    with _going(node, pos, end):
        node.map.own.punch(node.map, pos, end)


def grow(node, first: int, end: int) -> int:
    """Storage and addresses for a write from page *first* up to byte *end*; the end that there is room for.

    The size is the caller's to change; until then what was behind the old end reads as zeros, and where it
    can't happen `cut` takes the pages back. ENOSPC where not a page more fits.
    """
    range_ = node.map.own
    last = pages_of(end)
    while True:
        try:
            range_.cover(node.map, first, last)
            return min(end, last << PAGE_SHIFT)
        except OSError as error:
            if error.errno != errno.ENOSPC or last - first <= 1:
                shorten(node)
                raise
            last = first + (last - first) // 2


def cut(node) -> None:
    """The range ends where the file does: nothing that a failed write took stays, and SIGBUS begins there.

    PinnedError. Before a file grows: nothing is behind its end then that a cut left which had to wait.
    """
    range_, pages = node.map.own, pages_of(node.map.size)
    if range_.pages != pages:
        with _going(node, pages << PAGE_SHIFT, range_.pages << PAGE_SHIFT):
            range_.resize(node.map, pages)
    node.uncut = False


def shorten(node) -> None:
    """`cut` for what has happened already: where it would have to wait for pages the range stays longer.

    As after a crash at this place, and nobody reads what is behind the end. It is cut before the file grows
    over it, when the file is closed, and at the end of the mount.
    """
    try:
        cut(node)
    except PinnedError as error:
        if not node.uncut:
            log.warning("inode %d: %s: its range is cut later", node.ino, error)
        node.uncut = True


@contextlib.contextmanager
def _cut_if_it_fails(fs, node):
    """Around a change of the size: where it fails the range ends again where the file does.

    Not where a crash may replay the record with the larger size: that must not find a shorter range.
    """
    try:
        yield
    except BaseException:
        if not fs.journal.doubt:
            shorten(node)
        raise


@contextlib.contextmanager
def together(fs):
    """Around what changes an inode and its range's times: native threads show neither half of it.

    Not nested.
    """
    fs.region.table.begin_own()
    try:
        yield
    finally:
        fs.region.table.end_own()


def truncate(fs, node, size: int, now: int, changes) -> None:
    """`file.truncate` of an own file. The file's lock is held."""
    with together(fs):
        _truncate(fs, node, size, now, changes)
        forget_times(fs, node.ino)


def _truncate(fs, node, size: int, now: int, changes) -> None:
    old, range_ = node.map.size, node.map.own
    if pages_of(size) < range_.pages:
        # Order: whether a cut has to wait is asked before the record, for after it there is no way back.
        range_.settle(node.map)
    if size > old:
        cut(node)
    with _cut_if_it_fails(fs, node):
        if size > old:
            range_.resize(node.map, pages_of(size))
            zero_behind(node, size)
            # Orders the longer range, and zeros behind the old end, before the record with the new size.
            range_.sync()
        _record(fs, node, size, now, changes)
    if size < old:
        # After the record: a crash in between leaves a range that is longer than its inode.
        _punch(node, size, pages_of(size) << PAGE_SHIFT)
        shorten(node)
        extent.forget_dirty(node, pages_of(size), extent.MAX_PGOFF - pages_of(size))


def _record(fs, node, size: int, now: int, changes=None, given=(0, 0)) -> None:
    """*given*: [first, last) of the pages whose storage was given back."""
    with fs.begin() as tx:
        edit = tx.inode(node.ino)
        if fs.poison.runs:
            fs.poison.heal(tx, given[0], max(given[1] - given[0], 0), (node.ino, edit.generation))
            fs.poison.forget(tx, node.ino, edit.generation, pages_of(size))
        edit.size = size
        edit.mtime = edit.ctime = now
        if changes:
            changes(edit, tx)
        tx.after(lambda: setattr(node.map, "size", size))


def punch(fs, node, pos: int, end: int, now: int) -> None:
    """`fallocate.fallocate` with PUNCH_HOLE. The file's lock is held."""
    range_ = node.map.own
    with together(fs):
        _punch(node, pos, end)
        # Orders the hole before the record with the times, and the reply.
        range_.sync()
        first = pages_of(pos)
        extent.forget_dirty(node, first, max((end >> PAGE_SHIFT) - first, 0))
        _record(fs, node, node.map.size, now, given=(first, end >> PAGE_SHIFT))
        forget_times(fs, node.ino)


def allocate(fs, node, pos: int, end: int, zero: bool, keep: bool, now: int) -> None:
    """`fallocate.fallocate` with other modes. The file's lock is held.

    ENOSPC and PinnedError change nothing, but that with *zero* the bytes are zeros.
    """
    with together(fs):
        _allocate(fs, node, pos, end, zero, keep, now)
        forget_times(fs, node.ino)


def _allocate(fs, node, pos: int, end: int, zero: bool, keep: bool, now: int) -> None:
    old, range_ = node.map.size, node.map.own
    size = old if keep else max(old, end)
    if size > old:
        cut(node)
    if zero:
        _punch(node, pos, end)
        first = pages_of(pos)
        extent.forget_dirty(node, first, max((end >> PAGE_SHIFT) - first, 0))
    range_.reserve(node.map, pos >> PAGE_SHIFT, pages_of(end))
    with _cut_if_it_fails(fs, node):
        if size > old:
            range_.resize(node.map, pages_of(size))
            zero_behind(node, size)
        # Orders storage, zeros and the longer range before the record with the new size.
        range_.sync()
        _record(fs, node, size, now, given=(pages_of(pos), end >> PAGE_SHIFT) if zero else (0, 0))


# -- attributes ----------------------------------------------------------------------------


def shown(fs, inode):
    """(*inode* with the times that programs see, blocks of 512 bytes that its range has).

    A store through a mapping changes the times of the range, not the inode's: the later one counts. Where
    ours is in the future, set by hand, a range's that is not 0 (`forget_times`) is later all the same.
    """
    if fs.pool is None:
        raise CorruptError(f"inode {inode.ino}: {NO_POOL}")
    try:
        below = fs.pool.stat(inode.ino, inode.generation)
    except OSError as error:
        if error.errno == errno.ENOENT and _not_made(fs, inode):
            return inode, 0
        raise CorruptError(f"inode {inode.ino}: its range: {error}; run fsck.daxfs") from None
    mtime = below.st_mtime_ns
    if mtime and (mtime > inode.mtime or inode.mtime > fs.clock()):
        inode = inode._replace(mtime=mtime, ctime=max(inode.ctime, mtime))
    return inode, below.st_blocks


def forget_times(fs, ino: int) -> None:
    """The inode's modification time counts, until a store through a mapping changes the range's again."""
    try:
        fs.pool.forget_times(ino, fs.inodes.read(ino).generation)
    except FileNotFoundError:
        raise CorruptError(f"inode {ino}: its range is missing; run fsck.daxfs") from None


def fold_times(fs, node) -> None:
    """Put the times of stores through mappings into the inode, in place, as a write would."""
    inode = fs.inodes.read(node.ino)
    new, _ = shown(fs, inode)
    if (new.mtime, new.ctime) != (inode.mtime, inode.ctime):
        words = new.mtime.to_bytes(8, "little", signed=True) + new.ctime.to_bytes(8, "little", signed=True)
        fs.store_times(node.ino, PLACE_OF["mtime"], words)


# -- at mount ------------------------------------------------------------------------------


@dataclasses.dataclass
class Findings:
    """What `compare` found: names of ranges (stray), numbers of inodes (all else).

    ``odd``: what is there is no regular file. ``stats``: lstat of each inode's range, where sizes were asked.
    """

    stray: list[str] = dataclasses.field(default_factory=list)
    missing: list[int] = dataclasses.field(default_factory=list)
    odd: list[int] = dataclasses.field(default_factory=list)
    short: list[int] = dataclasses.field(default_factory=list)
    long: list[int] = dataclasses.field(default_factory=list)
    stats: dict[int, os.stat_result] = dataclasses.field(default_factory=dict)

    def bad(self, inodes) -> tuple[int, str] | None:
        """(number, what is wrong) of an inode of *inodes* whose data are not to be had, or None."""
        size = {ino: size for ino, _, size in inodes}
        lost = [ino for ino in self.missing if size[ino]]
        wrong = {"is missing": lost, "is no regular file": self.odd, "is too short": self.short}
        return next(((which[0], what) for what, which in wrong.items() if which), None)


def compare(pool, inodes, sizes: bool = True) -> Findings:
    """Own *inodes* [(ino, generation, size)] against the ranges that are there. *sizes*: those, too.

    Opens nothing and changes nothing.
    """
    there, out = pool.owners(), Findings()
    for ino, generation, size in inodes:
        if there.pop((ino, generation), None) is None:
            out.missing.append(ino)
        elif sizes:
            have = out.stats[ino] = pool.stat(ino, generation)
            if not stat.S_ISREG(have.st_mode):
                out.odd.append(ino)
            elif have.st_size < pages_of(size) << PAGE_SHIFT:
                out.short.append(ino)
            elif have.st_size > pages_of(size) << PAGE_SHIFT:
                out.long.append(ino)
    out.stray = sorted(there.values())
    return out


def recover(fs, inodes, clean: bool) -> None:
    """At mount: remove and cut what a crash left. CorruptError, and nothing changed, where data are missing.

    *inodes* as `compare` has them; *clean*: the region was unmounted. Then sizes need no look, and a range
    without an inode is none that a crash left, so it stays: fsck.daxfs tells. A read-only mount only looks.
    """
    if fs.pool is None:
        if inodes:
            _refuse(fs, inodes[0][0], f"{NO_POOL} ({len(inodes)} files are)")
        return
    found = compare(fs.pool, inodes, sizes=not clean)
    bad = found.bad(inodes)
    if bad:
        _refuse(fs, bad[0], f"its range {bad[1]}")
    if fs.readonly or not fs.pool.writable:
        return
    if clean and found.stray:
        log.warning("%d ranges have no inode; fsck.daxfs removes them", len(found.stray))
    known = {ino: (generation, size) for ino, generation, size in inodes}
    _not_wiped(fs, found.long)
    for ino in found.missing:  # empty: a create that failed and was replayed
        fs.pool.create(ino, known[ino][0])
    for ino in found.long:
        generation, size = known[ino]
        fs.pool.resize(ino, generation, pages_of(size))
        fs.pool.forget_times(ino, generation)
    for name in () if clean else found.stray:
        fs.pool.unlink(*L.range_owner(name))
    if not clean:
        fs.stored.update(known)  # what a daemon that was killed knew of stores is gone
    if fs.sb.incompat & L.INCOMPAT_OWN:
        try:
            fs.region.allocate()  # it may have come here as a sparse copy
        except OSError as error:
            log.warning("the region has holes that can't be filled (%s): it is lost if a store finds no room "
                        "for one", error)


def _refuse(fs, ino: int, what: str) -> None:
    """A read-only mount goes on: whoever asks for the file gets an error (`attach`, `shown`)."""
    if not fs.readonly:
        raise CorruptError(f"inode {ino}: {what}; run fsck.daxfs, or mount read-only to copy data out")
    log.warning("inode %d: %s", ino, what)


def _not_wiped(fs, inos) -> None:
    """Before ranges are cut: a size of 0 that was overwritten, with the times beside it, decides nothing."""
    for ino in inos:
        if fs.inodes.read(ino).ctime == 0:
            raise CorruptError(f"inode {ino}: its size and times were overwritten; run fsck.daxfs, "
                               "or mount read-only to copy data out")
