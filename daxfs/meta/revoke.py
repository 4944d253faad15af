# SPDX-License-Identifier: MIT
"""Taking mappings of own ranges away (SEEDS.md S11): who has one gets SIGBUS from then on.

A mapping ends where its file does, so the inode gets a new file with the same data and the old one is cut to
nothing. At every moment the range's name has a whole range: the copy gets the name before anything is cut. A
crash leaves a file without an inode at most, which the mount removes. Stores go on meanwhile: each piece
is taken by reference, cut, and compared with the copy only then, so that what a program could still store is
in it. docs/mappings.md says what a store can lose all the same.

Limits: says nothing to the kernel or to programs, and does not wait; `fuse/revoking.py` does. A file is done
in one step, without a suspension point: two to three seconds for each GiB. Metadata thread; under the
file's lock.
"""

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import signal
import threading

from .._own import cached, settle, shorten
from ..errors import CorruptError, PinnedError, fail
from ..layout import range_name
from ..pfn import PAGE_SIZE
from . import own

log = logging.getLogger(__name__)

PIECE = 2 << 20
_PIPES = 64  # for one piece: 64 KiB is what a pipe has by itself
_STEP = 1 << 20
_TRIES = 100  # of 10 ms each (native/own.c), for pinned pages that are in the way once the copy has the name
_POPULATE_READ = 22  # madvise(2), Linux 5.14
_NOBODY = 0  # no inode has this number: a range of it is a stray one


def ranges(fs) -> list[tuple[int, int]]:
    """(ino, generation) of all ranges that inodes may have."""
    return [owner for owner in (fs.pool.owners() if fs.pool is not None else ()) if owner[0] != _NOBODY]


def is_busy(fs, owner: tuple[int, int]) -> bool:
    """Whether anybody but us has the range open or mapped; one that is gone has nobody."""
    node = _node(fs, owner)
    if node is not None:
        return own.is_busy(node)
    try:
        fd = fs.pool.descriptor(*owner, False)
    except (FileNotFoundError, CorruptError):
        return False  # also what only has the name of a range
    try:
        return own.is_shared(fd)
    finally:
        os.close(fd)


def place(fs, owner: tuple[int, int]) -> dict:
    """What reports name: the inode, and where its range is found in /proc/PID/maps. ENOENT."""
    below = fs.pool.stat(*owner)
    return {"ino": owner[0], "range": fs.pool.path_of(range_name(*owner)),
            "range_dev": below.st_dev, "range_ino": below.st_ino, "bytes": below.st_blocks * 512}


def take(fs, owner: tuple[int, int]) -> None:
    """Whoever has the range open or mapped has an empty file from now on. Its content stays the inode's.

    EROFS, ENOSPC (the copy needs as much as the range has), PinnedError, or what the file system below says;
    nothing has changed then.
    """
    pool = fs.pool
    if not pool.writable:
        raise fail(errno.EROFS, "read-only, so that nothing can be copied")
    node = _node(fs, owner)
    if node is None:
        fd = pool.descriptor(*owner, True)
        try:
            _replace(pool, owner, fd)
        finally:
            os.close(fd)
        if not pool.syncs:
            fs.stored.add(owner[0])  # as below, when it is opened
        return
    with node.map:
        _replace(pool, owner, node.map.own.fd, node.map)
        if not pool.syncs and node.map.policy is not None:
            # The copy is not flushed, and what page tables and faults knew of stores went with the mappings.
            own.mark_stored(node, 0, node.map.own.pages)


def take_all(fs) -> int:
    """At the end of a mount: `take` all that are busy; how many there were. What would not go is logged."""
    count = 0
    for owner in ranges(fs):
        try:
            if is_busy(fs, owner):
                take(fs, owner)
                count += 1
        except OSError as error:
            log.warning("mappings of inode %d stay as they are: %s", owner[0], error)
    return count


def _node(fs, owner: tuple[int, int]):
    """The Node that has this very range open; None: nobody here has."""
    node = fs.nodes.get(owner[0])
    if node is None or node.map.own is None:
        return None
    try:
        below = fs.pool.stat(*owner)
    except FileNotFoundError:
        return None
    ours = os.fstat(node.map.own.fd)
    return node if (ours.st_dev, ours.st_ino) == (below.st_dev, below.st_ino) else None


def _replace(pool, owner: tuple[int, int], fd: int, fmap=None) -> None:
    """Give *owner* a copy of its range *fd*, and cut that one. *fmap*: the FileMap that is tied to it."""
    spare, range_, old = (_NOBODY, owner[0]), None, None
    # Order: asked before the copy has the name, for after that there is no way back.
    settle(fd, pool.syncs)
    pool.create(*spare)
    try:
        new = pool.descriptor(*spare, True)
        try:
            _copy(pool, fd, new)
            if pool.syncs:
                # Orders the copy before its name: a crash finds a whole range under that.
                os.fsync(new)
            if fmap is not None:
                range_ = pool.open(*spare)
            pool.replace(spare, owner)
            if fmap is not None:
                old = fmap.own
                old.detach(fmap)
                range_.attach(fmap)
            # Orders the name before the first cut of what had it.
            pool.sync_names()
            if _cut(fd, new, pool.syncs) and pool.syncs:
                os.fdatasync(new)
        finally:
            os.close(new)
    except BaseException:
        if range_ is not None and old is None:
            range_.close()
        pool.unlink(*spare)  # nothing of that name is left once it is the inode's
        raise
    finally:
        if old is not None:
            old.close()


def _runs(fd: int):
    """(start, end) in bytes of what is data."""
    end = 0
    while (start := _data(fd, end)) is not None:
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _data(fd: int, pos: int) -> int | None:
    """Where the next data begin."""
    try:
        return os.lseek(fd, pos, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None


def _copy(pool, old: int, new: int) -> None:
    """Size, data and times; holes stay holes."""
    st = os.fstat(old)
    if st.st_blocks * 512 > pool.space()[1] * PAGE_SIZE:
        raise fail(errno.ENOSPC, "there is no room for the copy")
    os.ftruncate(new, st.st_size)
    for start, end in _runs(old):
        if pool.syncs:
            # At once: what is allocated step by step may be in pieces, without mappings of 2 MiB.
            os.posix_fallocate(new, start, end - start)
        for at in range(start, end, _STEP):
            _store(new, os.pread(old, min(_STEP, end - at), at), at)
    # The time of the last store through a mapping (own.shown).
    os.utime(new, ns=(st.st_atime_ns, st.st_mtime_ns))


def _store(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        n = os.pwrite(fd, view, at)
        view, at = view[n:], at + n


def _cut(old: int, new: int, syncs: bool) -> bool:
    """Cut *old* to nothing, and have *new* follow; True where somebody had stored meanwhile.

    What goes wrong is logged, no more: *new* has the name already, so that the mappings must go.
    """
    try:
        return _cut_pieces(old, new, syncs)
    except OSError as error:
        log.error("stores that came while a mapping was taken away may be lost: %s", error)
        try:
            shorten(old, 0, syncs)
        except PinnedError:
            _cut_beside(os.dup(old))
        return True


def _cut_beside(old: int) -> None:
    """Cut *old*, which is no inode's any more, to nothing and close it, once nobody has pages of it pinned.

    In a thread of its own, which touches nothing else: that may take as long as somebody likes.
    """

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGBUS, signal.SIGSEGV})
        try:
            os.ftruncate(old, 0)
        except OSError as error:
            log.error("a mapping that was to be taken away stays: %s", error)
        finally:
            os.close(old)

    threading.Thread(target=run, name="daxfs-cut", daemon=True).start()


def _shorten(old: int, size: int, syncs: bool) -> None:
    """Cut *old*; PinnedError after `_TRIES`."""
    for left in reversed(range(_TRIES)):
        try:
            return shorten(old, size, syncs)
        except PinnedError:
            if not left:
                raise


def _counts(fd: int) -> bool:
    """Whether the kernel tells of pages that were allocated and never touched (tmpfs alone)."""
    try:
        cached(fd, 0, 1)
        return True
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return False


def _used(old: int, first: int, piece: int, counts: bool) -> list[int]:
    """Numbers of the pieces from number *first* on that have storage.

    With *counts* also those whose pages were allocated and never touched: the daemon allocates for a fault
    (fault=user), and the program stores there a moment later. lseek takes them for holes.
    """
    if not counts:
        pos, found = first * piece, set()
        while (start := _data(old, pos)) is not None:
            pos = os.lseek(old, start, os.SEEK_HOLE)
            found.update(range(start // piece, -(-pos // piece)))
        return sorted(found)
    found, look, pages = [], [(first, -(-os.fstat(old).st_size // piece))], piece // PAGE_SIZE
    while look:
        low, high = look.pop()
        if low >= high or not cached(old, low * pages, high * pages):
            continue
        if high - low == 1:
            found.append(low)
        else:
            look += [((low + high) // 2, high), (low, (low + high) // 2)]
    return found


def _touch(fd: int, start: int, size: int) -> None:
    """Have each page there have its memory, so that a reference to it can be had: not so where a hole is, or
    what was allocated and never touched. For a hole there may be no room: a store finds none either."""
    size = min(size, os.fstat(fd).st_size - start)
    with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ, offset=start) as region:
        try:
            region.madvise(_POPULATE_READ)
        except OSError:
            for at in range(0, size, PAGE_SIZE):
                with contextlib.suppress(OSError):
                    region.madvise(_POPULATE_READ, at, PAGE_SIZE)


def _cut_pieces(old: int, new: int, syncs: bool) -> bool:
    """`_cut`, piece by piece, from the end on."""
    piece, counts = _piece(), not syncs and _counts(old)
    pieces = _used(old, 0, piece, counts)
    changed, pipes = False, _Pipes(piece)
    try:
        while True:
            # A program may have stored behind what we know of, where a hole was.
            late = _used(old, pieces[-1] + 1 if pieces else 0, piece, counts)
            if late:
                pieces += late
            elif pieces:
                start = pieces.pop() * piece
                if counts:
                    _touch(old, start, piece)
                held = pipes.hold(old, start, piece)
                # Order: from here on nobody stores to these pages, and then they are read.
                _shorten(old, start, syncs)
                data = pipes.read(held)
                if os.pread(new, held, start) != data:
                    _store(new, data, start)
                    changed = True
            else:
                _shorten(old, 0, syncs)
                return changed
    finally:
        pipes.close()


def _piece() -> int:
    """Bytes of a huge page, the largest that a file's page cache has: files are cut at its multiples.

    A cut inside one makes the kernel zero what is behind it, also for those who hold a reference.
    """
    try:
        with open("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size") as file:
            return max(int(file.read()), PIECE)
    except FileNotFoundError:
        return PIECE


class _Pipes:
    """Pipes that together hold references to *size* bytes of a file. ENFILE where they would be too many."""

    def __init__(self, size: int):
        self.size, self.pairs = 0, []
        try:
            while self.size < size:
                if len(self.pairs) == _PIPES:
                    raise fail(errno.ENFILE, f"{_PIPES} pipes don't hold {size} bytes")
                self.pairs.append(os.pipe())
                self.size += _grown(self.pairs[-1][1], size)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for pair in self.pairs:
            for fd in pair:
                os.close(fd)
        self.pairs.clear()

    def hold(self, fd: int, pos: int, size: int) -> int:
        """Take references to the pages of *fd* there; the bytes up to its end, at most *size*."""
        held = 0
        for _, into in self.pairs:
            room = fcntl.fcntl(into, fcntl.F_GETPIPE_SZ)
            while room and held < size:
                n = os.splice(fd, into, min(room, size - held), offset_src=pos + held)
                if not n:
                    return held
                held, room = held + n, room - n
        return held

    def read(self, size: int) -> bytes:
        """What these pages have now, *size* bytes as `hold` said."""
        data = bytearray()
        for out, into in self.pairs:
            room = fcntl.fcntl(into, fcntl.F_GETPIPE_SZ)
            while room and len(data) < size:
                part = os.read(out, min(room, size - len(data)))
                data += part
                room -= len(part)
        return bytes(data)


def _grown(fd: int, size: int) -> int:
    """Make the pipe as large as it may be; what it holds."""
    for wish in (size, size >> 1):  # 1 MiB is what any user may have
        try:
            return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, wish)
        except PermissionError:
            continue
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
