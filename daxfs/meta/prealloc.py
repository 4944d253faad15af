# SPDX-License-Identifier: MIT
"""Written pages ahead of the writes that will need them, so that those need no record.

Behind the end of a file that is being appended to (*chunk*): free pages, mapped as written, in the record of
an append that needs blocks anyway. They hold whatever stood there: nothing reaches behind the end of a file,
and whoever moves the end fills the pages up to it and zeroes the rest of the last one (`file.zero_end`). The
inode carries FLAG_PREALLOC as long as it may have them. An append into them is native, or `FileIo`'s, and
stores nothing but data, times and size in place. Around a write into unwritten pages inside the file: the
neighbours become written zeros in the same record.

A chunk goes back (`give_back`) at the last close, before ENOSPC is answered, before the file grows in
another way than by an append or fallocate changes its extents, at umount and remount read-only, and, where
a daemon died, at mount. The file's lock is held. Metadata thread.
"""

from .. import layout as L
from ..pfn import PAGE_SHIFT, PAGE_SIZE
from . import extent

STREAM = 3  # which append of an open file is the first to get a chunk: no `echo >>`, no small file does
FIRST, MOST = 16, 16384  # pages of the first chunk and of the largest one; each has twice those before it
AHEAD = 8  # a chunk is for so many appends of the length that asked for it, if that is more
SHARE = 16  # a chunk is at most this part of the free pages
LOW = 256  # free pages below which no file keeps a chunk when something else begins
AROUND = 64  # pages of the aligned piece around a write into unwritten ones


def sensible(fs) -> bool:
    """False where each flush is an msync: native threads don't write there, and zeros cost a disk's time."""
    return fs.region.flush.kind != "msync"


def pages_of(size: int) -> int:
    """Pages that a file of *size* bytes has."""
    return (size + PAGE_SIZE - 1) >> PAGE_SHIFT


def chunk(fs, node, pos: int, length: int, last: int) -> int:
    """Pages that a write of *length* bytes at *pos* shall get behind page *last*, where it ends; often 0."""
    size = node.map.size
    if not pos <= size < pos + length or node.appends < STREAM or not node.opens:
        return 0
    kind, _, room, _, _ = node.map.lookup(last)
    free = fs.alloc.free_pages - pages_of(length) - 1  # the write itself comes first
    if kind != extent.HOLE or free < LOW or not sensible(fs):
        return 0
    want = max(node.ahead, min(AHEAD * pages_of(length), MOST))
    pages = min(want, free // SHARE, room, (L.MAX_FILE_SIZE >> PAGE_SHIFT) - last)
    return max(((last + pages) & -FIRST) - last, 0)


def around(fs, node, first: int, last: int, end: int) -> list[tuple[int, int, int]]:
    """[(pgoff, pages, pfn)] of unwritten pages beside [first, last), which is written, that shall be zeros.

    From the first and the last page on, if these are unwritten, to the next boundary of AROUND pages, or to
    what is no unwritten page; below page *end*, where the file ends.
    """
    if not sensible(fs):
        return []
    out = []
    if node.map.lookup(first)[0] == extent.UNWRITTEN:
        for piece in reversed(list(extent.holes(node, first & -AROUND, first))):
            if piece[3] != extent.UNWRITTEN:
                break
            out.append(piece[:3])
    if node.map.lookup(last - 1)[0] == extent.UNWRITTEN:
        for piece in extent.holes(node, last, min(-(-last // AROUND) * AROUND, end)):
            if piece[3] != extent.UNWRITTEN:
                break
            out.append(piece[:3])
    return out


def granted(fs, node) -> None:
    """*node* has a chunk once its transaction is durable: the next one is larger."""
    node.ahead = min(2 * node.ahead, MOST)
    fs.preallocated.add(node.ino)


def give_back(fs, node) -> None:
    """Free the written pages behind the end; what fallocate put there stays. One record where the flag is."""
    if not fs.inodes.flags(node.ino) & L.FLAG_PREALLOC:
        return
    with node.map as fmap:
        first = last = pages_of(fmap.size)
        kept = []
        for pgoff, pages, pfn, kind in extent.holes(node, first, max(fmap.end(), first)):
            if kind == extent.MAPPED:
                last = pgoff + pages
            elif kind == extent.UNWRITTEN:
                kept.append((pgoff, pages, pfn, kind))
        with fs.begin() as tx:
            edit = tx.inode(node.ino)
            edit.flags &= ~L.FLAG_PREALLOC
            if last > first:
                kept = [piece for piece in kept if piece[0] < last]
                tx.free(extent.replace(tx, edit, node, first, last, kept))
            tx.after(lambda: fs.preallocated.discard(node.ino))


def give_back_all(fs) -> None:
    """`give_back` of every file that has a chunk. What fails in one is raised when all others were asked."""
    inos, fs.preallocated = fs.preallocated, set()  # empty meanwhile: `begin` looks at it
    kept, failed = set(), None
    try:
        while inos:
            ino = inos.pop()
            kept.add(ino)
            try:
                give_back(fs, fs.node(ino))
            except (OSError, MemoryError) as error:
                failed = failed or error
            else:
                kept.remove(ino)
    finally:
        fs.preallocated |= inos | kept
    if failed is not None:
        raise failed


def make_room(fs, pages: int) -> None:
    """Before *pages* are taken, or refused: where they are not free, nobody keeps a chunk."""
    if fs.preallocated and pages > fs.alloc.free_pages + fs.alloc.held:
        give_back_all(fs)


def closed(fs, node) -> None:
    """The last handle is being closed: the chunk goes back, and the next open begins with a small one."""
    node.appends, node.ahead = 0, FIRST
    if node.ino not in fs.orphans:  # that is freed as a whole
        give_back(fs, node)
