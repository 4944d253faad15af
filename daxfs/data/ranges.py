# SPDX-License-Identifier: MIT
"""Ranges of regular files: where data and holes are (lseek), and copying from file to file.

Metadata thread; no suspension point. Unwritten extents are holes here, as they are for readers.
"""

import errno

from .._iomap import POISONED
from ..errors import fail
from ..layout import MAX_FILE_SIZE
from ..meta import attr, extent, fallocate, file
from ..pfn import PAGE_SHIFT, PAGE_SIZE

STEP = 4 << 20  # bytes of data in one piece of a copy: what other requests wait for


def seek(node, pos: int, data: bool) -> int:
    """The first byte at or after *pos* that is in data, or (not *data*) in a hole; the end of file is one.

    ENXIO where *pos* is not inside the file, or no data follow.
    """
    size = node.map.size
    if node.map.own is not None and 0 <= pos < size:
        at = node.map.own.seek(node.map, pos, data)
        if data and at == size:
            raise fail(errno.ENXIO)
        return at
    if not 0 <= pos < size:
        raise fail(errno.ENXIO)
    for pgoff, _, _, kind in extent.holes(node, pos >> PAGE_SHIFT, (size + PAGE_SIZE - 1) >> PAGE_SHIFT):
        if (kind == extent.MAPPED) == data:
            return max(pos, pgoff << PAGE_SHIFT)
    if data:
        raise fail(errno.ENXIO)
    return size


def copy_piece(files, source, pos: int, target, to: int, length: int) -> int:
    """Copy the first piece of [pos, pos + length): a hole, or at most STEP bytes of data; the bytes done.

    0 at the end of *source*; fewer than the piece has where space runs out. Ranges of one file must not
    overlap. Data go as `FileIo.write` has them, straight from the region where a piece is one extent. A hole
    stays one: blocks in its place are freed, and behind the end only the size grows. ENOSPC, EFBIG, EROFS.
    """
    length = min(length, source.map.size - pos)
    if length <= 0:
        return 0
    if to >= MAX_FILE_SIZE:
        raise fail(errno.EFBIG)
    length = min(length, MAX_FILE_SIZE - to)
    if source.map.state & POISONED:
        length = files.fs.poison.readable(source, pos, length, True)
    is_hole, end = _piece_of_range(source, pos) if source.map.own is not None else _piece(source, pos, length)
    length = min(end - pos, length)
    if is_hole:
        _copy_hole(files.fs, target, to, length)
        return length
    return files.write(target, to, files.dax.read(source.map, pos, min(length, STEP)))


def _piece(source, pos: int, length: int) -> tuple[bool, int]:
    """(whether *source* has a hole at *pos*, where that ends)."""
    pieces = extent.holes(source, pos >> PAGE_SHIFT, (pos + length + PAGE_SIZE - 1) >> PAGE_SHIFT)
    pgoff, pages, _, kind = next(pieces)
    is_hole, end = kind != extent.MAPPED, (pgoff + pages) << PAGE_SHIFT
    for _, pages, _, kind in pieces:
        if (kind != extent.MAPPED) != is_hole or (not is_hole and end - pos >= STEP):
            break
        end += pages << PAGE_SHIFT
    return is_hole, end


def _piece_of_range(source, pos: int) -> tuple[bool, int]:
    """The same of an own range, whose file alone knows; its holes may begin and end inside a page."""
    data = source.map.own.seek(source.map, pos, True)
    return (True, data) if data > pos else (False, source.map.own.seek(source.map, pos, False))


def _has_data(target, first: int, last: int) -> bool:
    if target.map.own is not None:
        return True  # no extent, but a program may have stored there
    return any(kind == extent.MAPPED for _, _, _, kind in extent.holes(target, first, last))


def _copy_hole(fs, target, to: int, length: int) -> None:
    """Let [to, to + length) read as zeros, with the times of a write: two records at most."""
    fs.may_change()
    end, size = to + length, target.map.size
    now = fs.clock()
    inside = min(end, size)
    first, last = to >> PAGE_SHIFT, (inside + PAGE_SIZE - 1) >> PAGE_SHIFT
    if to < inside and _has_data(target, first, last):
        mode = fallocate.PUNCH_HOLE | fallocate.KEEP_SIZE
        fallocate.fallocate(fs, target, mode, to, inside - to, now)
    elif end <= size:
        attr.touch_write(fs, target.ino)
    if end > size:
        file.truncate(fs, target, end, now)
