# SPDX-License-Identifier: MIT
"""Cases: fallocate's modes, SEEK_DATA and SEEK_HOLE, copy_file_range.

Requests that pyfuse3 does not carry: such a mount lacks fallocate, shows no holes, and copies by the kernel's
fallback.
"""

import mmap
import os
import resource
import signal

from .context import Context, among, same
from .native import fallocate
from .table import ANY, Unsupported, case

PAGE = 4096
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO_RANGE, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
PLACES = {
    "page": (PAGE, PAGE),
    "ragged": (100, 3 * PAGE),
    "within": (PAGE + 5, 10),
    "two_pages": (2 * PAGE - 5, 10),
    "across_end": (9 * PAGE, 5 * PAGE),
    "behind_end": (20 * PAGE, PAGE + 1),
    "all": (0, 10 * PAGE + 100),
}
SIZE = 10 * PAGE + 100


def _pattern(length: int) -> bytes:
    return (bytes(range(1, 252)) * (length // 251 + 1))[:length]


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    try:
        fallocate(fd, mode, offset, length)
    except OSError as error:
        raise Unsupported(f"fallocate mode {mode:#x}: {error.strerror}") from error


def _need_fallocate(c: Context) -> None:
    with c.open(c.file(), os.O_RDWR) as fd:
        _fallocate(fd, 0, 0, 1)


# fallocate


@case(
    "fallocate",
    {f"{mode:#x}_{at}": (mode, *where) for mode in (0, 1, 3, 0x10, 0x11) for at, where in PLACES.items()},
    may_lack=(ANY,),
)
def what_is_read_after(c: Context, mode: int, offset: int, length: int):
    """Size and bytes; also after a later write has moved the end."""
    name = c.file(_pattern(SIZE))
    with c.open(name, os.O_RDWR) as fd:
        _fallocate(fd, mode, offset, length)
        size = SIZE if mode & KEEP_SIZE else max(SIZE, offset + length)
        want = bytearray(_pattern(SIZE).ljust(size, b"\0"))
        if mode & ~KEEP_SIZE:
            end = min(offset + length, size)
            want[offset:end] = bytes(max(end - offset, 0))
        same((os.fstat(fd).st_size, os.pread(fd, 99 * PAGE, 0) == want), (size, True))
        os.pwrite(fd, b"!", 30 * PAGE)
        return same(os.pread(fd, 99 * PAGE, 0) == bytes(want).ljust(30 * PAGE, b"\0") + b"!", True)


@case("fallocate", {"plain": 0, "keep_size": 1, "zero": 0x10}, may_lack=(ANY,))
def blocks_are_there_before_data(c: Context, mode: int):
    """What was allocated needs no blocks when it is written; the holes between stay zeros."""
    name = c.file()
    with c.open(name, os.O_RDWR) as fd:
        _fallocate(fd, mode, 0, 64 * PAGE)
        before = os.fstat(fd).st_blocks
        os.pwrite(fd, b"x" * 10, 20 * PAGE + 5)
        after = os.fstat(fd).st_blocks
        data = os.pread(fd, 21 * PAGE, 0)
    same(data == bytes(20 * PAGE + 5) + b"x" * 10 + bytes(len(data) - 20 * PAGE - 15), True)
    return same((before, after), (64 * 8, 64 * 8))


@case("fallocate", may_lack=(ANY,))
def a_hole_gives_its_blocks_back(c: Context):
    name = c.file(b"x" * 64 * PAGE)
    with c.open(name, os.O_RDWR) as fd:
        os.fsync(fd)
        _fallocate(fd, 3, 8 * PAGE, 16 * PAGE)
        return same(os.fstat(fd).st_blocks, 48 * 8)


@case("fallocate", may_lack=(ANY,))
def modes_that_there_are_not(c: Context):
    """The others are refused by the kernel or the file system, and bad ranges as the manual says."""
    _need_fallocate(c)
    name = c.file(_pattern(SIZE))
    with c.open(name, os.O_RDWR) as fd, c.open(name, os.O_RDONLY) as reader, c.open(".", os.O_RDONLY) as d:
        got = {
            "punch": c.errno_of(fallocate, fd, PUNCH_HOLE, 0, PAGE),
            "punch and zero": c.errno_of(fallocate, fd, PUNCH_HOLE | KEEP_SIZE | ZERO_RANGE, 0, PAGE),
            "collapse": c.errno_of(fallocate, fd, COLLAPSE, 0, PAGE),
            "insert": c.errno_of(fallocate, fd, INSERT, 0, PAGE),
            "unshare": c.errno_of(fallocate, fd, UNSHARE, 0, PAGE),
            "unknown": c.errno_of(fallocate, fd, 1 << 20, 0, PAGE),
            "negative": c.errno_of(fallocate, fd, 0, -1, PAGE),
            "empty": c.errno_of(fallocate, fd, 0, 0, 0),
            "too far": c.errno_of(fallocate, fd, 0, 2**63 - 2, PAGE),
            "read only": c.errno_of(fallocate, reader, 0, 0, PAGE),
            "directory": c.errno_of(fallocate, d, 0, 0, PAGE),
        }
        among(got.pop("punch and zero"), ("EINVAL", "EOPNOTSUPP"))
        same(os.pread(fd, SIZE, 0) == _pattern(SIZE), True)
    refused = dict.fromkeys(("punch", "collapse", "insert", "unshare", "unknown"), "EOPNOTSUPP")
    bad = {"negative": "EINVAL", "empty": "EINVAL", "too far": "EFBIG"}
    return same(got, refused | bad | {"read only": "EBADF", "directory": "EBADF"})


@case("fallocate", may_lack=(ANY,))
def size_limit_of_process(c: Context):
    """RLIMIT_FSIZE holds for fallocate that grows the file."""
    _need_fallocate(c)
    name = c.file(b"x")

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, PAGE))
        with c.open(name, os.O_RDWR) as fd:
            codes = [c.errno_of(fallocate, fd, 0, 0, PAGE), c.errno_of(fallocate, fd, 0, 0, PAGE + 1)]
            return codes, os.fstat(fd).st_size

    return same(c.in_child(limited), (["OK", "EFBIG"], PAGE))


@case("fallocate", {"punch": 3, "zero": 0x10, "plain": 0}, may_lack=(ANY,), compare=False)
def times_and_privileges(c: Context, mode: int):
    """Modification and change time move; setuid and setgid go where nobody does it (tmpfs: not always)."""
    name = c.file(_pattern(SIZE), 0o6777)
    with c.open(name, os.O_RDWR) as fd:
        letters = c.changed(name, lambda: _fallocate(fd, mode, PAGE, 20 * PAGE))
        same(c.mode(name), "6777", "root keeps them")

    def by_nobody():
        with c.open(name, os.O_RDWR) as fd:
            fallocate(fd, mode, PAGE, PAGE)

    c.as_nobody(by_nobody)
    if c.fstype != "tmpfs":
        same((letters, c.mode(name)), ("mc", "0777"))


@case("fallocate", {"punch": 3, "zero": 0x10}, may_lack=(ANY,))
def a_mapping_sees_the_zeros(c: Context, mode: int):
    """Also where the mapping had stored something that was not written back yet."""
    name = c.file(_pattern(4 * PAGE))
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, 4 * PAGE)
        page[0:10] = page[PAGE : PAGE + 10] = page[3 * PAGE : 3 * PAGE + 10] = b"M" * 10
        _fallocate(fd, mode, 5, 2 * PAGE)
        got = page[0:12], page[PAGE : PAGE + 10], page[3 * PAGE : 3 * PAGE + 10]
        page[PAGE : PAGE + 2] = b"NN"
        page.flush()
        page.close()
        back = os.pread(fd, 3, PAGE)
    return same((got, back), ((b"M" * 5 + bytes(7), bytes(10), b"M" * 10), b"NN\0"))


# holes


def _need_holes(c: Context) -> None:
    name = c.file()
    os.truncate(name, PAGE)
    with c.open(name, os.O_RDONLY) as fd:
        if os.lseek(fd, 0, os.SEEK_HOLE) != 0:
            raise Unsupported("a hole is reported as data")


def _runs(fd: int) -> list[tuple[int, int]]:
    """[start, end) of all data."""
    out, at = [], 0
    while True:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return out
        end = os.lseek(fd, at, os.SEEK_HOLE)
        out.append((at, end))
        at = end


@case("seek", may_lack=(ANY,))
def holes_to_the_page(c: Context):
    """Written pages and no others, from any position; a position inside data or a hole is its own answer."""
    _need_holes(c)
    name = c.file()
    with c.open(name, os.O_RDWR) as fd:
        for page, length in ((2, PAGE), (3, 1), (9, 2 * PAGE)):
            os.pwrite(fd, b"d" * length, page * PAGE)
        os.ftruncate(fd, 16 * PAGE + 7)
        os.fsync(fd)
        same(_runs(fd), [(2 * PAGE, 4 * PAGE), (9 * PAGE, 11 * PAGE)])
        data = [os.lseek(fd, at, os.SEEK_DATA) for at in (0, 2 * PAGE + 5, 4 * PAGE, 9 * PAGE)]
        hole = [os.lseek(fd, at, os.SEEK_HOLE) for at in (0, 5, 2 * PAGE + 5, 4 * PAGE + 1, 16 * PAGE + 6)]
        none = c.errno_of(os.lseek, fd, 11 * PAGE, os.SEEK_DATA)
    same(data, [2 * PAGE, 2 * PAGE + 5, 9 * PAGE, 9 * PAGE])
    return same((hole, none), ([0, 5, 4 * PAGE, 4 * PAGE + 1, 16 * PAGE + 6], "ENXIO"))


@case("seek", may_lack=(ANY,))
def allocated_is_not_data(c: Context):
    """What fallocate made is a hole until it is written; what it punched is one again."""
    _need_holes(c)
    name = c.file(b"x" * 8 * PAGE)
    with c.open(name, os.O_RDWR) as fd:
        _fallocate(fd, 0, 8 * PAGE, 8 * PAGE)
        os.pwrite(fd, b"y", 12 * PAGE)
        got = [_runs(fd)]
        _fallocate(fd, 3, 2 * PAGE - 1, 2 * PAGE + 2)
        got.append(_runs(fd))
    return same(got, [[(0, 8 * PAGE), (12 * PAGE, 13 * PAGE)],
                      [(0, 2 * PAGE), (4 * PAGE, 8 * PAGE), (12 * PAGE, 13 * PAGE)]])  # fmt: skip


@case("seek", may_lack=(ANY,))
def stored_through_a_mapping_is_data(c: Context):
    """At the latest after msync."""
    _need_holes(c)
    name = c.file()
    os.truncate(name, 8 * PAGE)
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, 8 * PAGE)
        page[3 * PAGE] = 1
        page.flush()
        got = _runs(fd)
        page.close()
    return same(got, [(3 * PAGE, 4 * PAGE)])


@case("seek", may_lack=(ANY,))
def position_follows(c: Context):
    """SEEK_DATA and SEEK_HOLE move the descriptor; where they fail it stays."""
    _need_holes(c)
    name = c.file()
    with c.open(name, os.O_RDWR) as fd:
        os.pwrite(fd, b"abc", PAGE)
        os.lseek(fd, 0, os.SEEK_DATA)
        got = [os.read(fd, 2), c.errno_of(os.lseek, fd, 99 * PAGE, os.SEEK_DATA), os.read(fd, 2)]
    return same(got, [b"ab", "ENXIO", b"c"])


# copy_file_range

ALIGNED = {"pages": (PAGE, 2 * PAGE), "in": (4097, PAGE), "out": (PAGE, 1), "both": (7, 9), "end": (0, SIZE)}


def _copy_all(a: int, b: int, length: int, start: int, to: int) -> int:
    done = 0
    while done < length:
        got = os.copy_file_range(a, b, length - done, start + done, to + done)
        if not got:
            break
        done += got
    return done


@case("copy", ALIGNED)
def positions(c: Context, start: int, to: int):
    """Explicit positions; descriptors' own stay; what lies around the target's range stays."""
    with c.open(c.file(_pattern(SIZE)), os.O_RDONLY) as a, c.open(c.file(b"." * SIZE), os.O_RDWR) as b:
        done = _copy_all(a, b, 5 * PAGE + 3, start, to)
        want = bytearray(b"." * max(SIZE, to + done))
        want[to : to + done] = _pattern(SIZE)[start : start + done]
        same(os.pread(b, 99 * PAGE, 0) == want, True)
        return same((done, os.lseek(a, 0, os.SEEK_CUR), os.lseek(b, 0, os.SEEK_CUR)), (5 * PAGE + 3, 0, 0))


@case("copy")
def more_than_there_is(c: Context):
    """A length of everything is cut at the end of the source; behind it there is nothing."""
    with c.open(c.file(_pattern(SIZE)), os.O_RDONLY) as a, c.open(c.file(), os.O_RDWR) as b:
        got = [_copy_all(a, b, 2**62, PAGE, 0), os.copy_file_range(a, b, 10, SIZE, 0)]
        got.append(os.copy_file_range(a, b, 10, 99 * PAGE, 0))
        return same((got, os.fstat(b).st_size), ([SIZE - PAGE, 0, 0], SIZE - PAGE))


@case("copy")
def sparse(c: Context):
    """Holes read as zeros in the target, over old data too, and cost no more blocks than data would."""
    source, target = c.file(), c.file(b"." * 40 * PAGE)
    with c.open(source, os.O_RDWR) as a, c.open(target, os.O_RDWR) as b:
        os.pwrite(a, _pattern(PAGE), 3 * PAGE)
        os.pwrite(a, _pattern(100), 50 * PAGE + 9)
        os.ftruncate(a, 64 * PAGE)
        done = _copy_all(a, b, 64 * PAGE, 0, 0)
        one, two = os.pread(a, 99 * PAGE, 0), os.pread(b, 99 * PAGE, 0)
        among(os.fstat(b).st_blocks <= 64 * 8, (True,))
    return same((done, one == two, len(two)), (64 * PAGE, True, 64 * PAGE))


@case("copy")
def with_mappings(c: Context):
    """Stores through a mapping of the source are copied, and a mapping of the target shows the copy."""
    with c.open(c.file(_pattern(4 * PAGE)), os.O_RDWR) as a, c.open(c.file(b"." * 4 * PAGE), os.O_RDWR) as b:
        one, two = mmap.mmap(a, 4 * PAGE), mmap.mmap(b, 4 * PAGE)
        one[PAGE : PAGE + 4], two[2 * PAGE] = b"MMMM", 1
        first = two[0]
        done = _copy_all(a, b, 4 * PAGE, 0, 0)
        got = first, two[PAGE : PAGE + 5], two[2 * PAGE] == one[2 * PAGE]
        one.close()
        two.close()
    return same((done, got), (4 * PAGE, (ord("."), b"MMMM" + _pattern(2 * PAGE)[PAGE + 4 : PAGE + 5], True)))


@case("copy")
def size_limit_of_the_process(c: Context):
    """RLIMIT_FSIZE: up to the limit, then EFBIG."""
    source, target = c.file(_pattern(SIZE)), c.file()

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, PAGE))
        with c.open(source, os.O_RDONLY) as a, c.open(target, os.O_RDWR) as b:
            done = os.copy_file_range(a, b, SIZE, 0, 0)
            return done, c.errno_of(os.copy_file_range, a, b, SIZE, 0, PAGE), os.fstat(b).st_size

    return same(c.in_child(limited), (PAGE, "EFBIG", PAGE))


@case("copy")
def times_and_set_ids(c: Context):
    """The target's times move and it loses setuid and setgid by nobody's copy, as by a write."""
    source, target = c.file(_pattern(SIZE)), c.file(b"x", 0o6777)

    def copy():
        with c.open(source, os.O_RDONLY) as a, c.open(target, os.O_RDWR) as b:
            os.copy_file_range(a, b, 100, 0, 0)

    letters = c.changed(target, copy)
    kept = c.mode(target)
    c.as_nobody(copy)
    return same((letters, kept, c.mode(target)), ("mc", "6777", "0777"))
