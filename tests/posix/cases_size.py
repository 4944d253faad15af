# SPDX-License-Identifier: MIT
"""Cases: truncate, holes, st_blocks, the largest file."""

import mmap
import os
import resource
import signal

from .context import Context, among, same
from .native import fallocate
from .table import ANY, Unsupported, case

PAGE = 4096
SIZES = (0, 1, 511, 512, 4095, 4096, 4097, 65536, 1 << 20, (2 << 20) - 1, 2 << 20, (2 << 20) + 1)


def _pattern(length: int) -> bytes:
    return (bytes(range(1, 252)) * (length // 251 + 1))[:length]


@case("truncate", SIZES)
def up_from_empty(c: Context, size: int):
    """An empty file grows to the size and reads as zeros, with no blocks."""
    name = c.file()
    os.truncate(name, size)
    s = os.stat(name)
    return same((s.st_size, s.st_blocks, c.data(name) == bytes(size)), (size, 0, True))


@case(
    "truncate",
    {
        f"{a}_to_{b}": (a, b)
        for a in (1, 4095, 4096, 4097, 3 * PAGE + 5, (2 << 20) + 3)
        for b in (0, 1, 4095, 4096, 4097, 8192)
    },
)
def resize(c: Context, old: int, new: int):
    """What is kept stays, what is new is zero."""
    name = c.file(_pattern(old))
    os.truncate(name, new)
    want = _pattern(old)[:new] + bytes(max(0, new - old))
    return same((os.path.getsize(name), c.data(name) == want), (new, True))


@case("truncate", (0, 1, 100, 4095, 4096, 4097, 5000, 8191))
def shrink_then_grow_is_zero(c: Context, cut: int):
    """The tail behind the cut does not come back."""
    name = c.file(_pattern(3 * PAGE))
    with c.open(name, os.O_RDWR) as fd:
        os.ftruncate(fd, cut)
        os.ftruncate(fd, 3 * PAGE)
        data = os.pread(fd, 4 * PAGE, 0)
    return same(data == _pattern(3 * PAGE)[:cut] + bytes(3 * PAGE - cut), True)


@case("truncate", (0, 1, 100, 4095, 4097, 5000))
def shrink_then_write_beyond_is_zero(c: Context, cut: int):
    """A write behind the end after a cut leaves zeros between."""
    name = c.file(_pattern(3 * PAGE))
    with c.open(name, os.O_RDWR) as fd:
        os.ftruncate(fd, cut)
        os.pwrite(fd, b"!", 3 * PAGE)
        data = os.pread(fd, 4 * PAGE, 0)
    return same(data == _pattern(3 * PAGE)[:cut] + bytes(3 * PAGE - cut) + b"!", True)


@case("truncate", ("truncate", "write"), compare=False)
def mapped_bytes_past_eof_stay_hidden(c: Context, how: str):
    """What a mapping stores behind the end of file in the last page is not there when the file grows.

    tmpfs does show it (it zeroes when a file shrinks, not when it grows), so it is no oracle here.
    """
    name = c.file(b"A" * PAGE)
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, PAGE)
        os.ftruncate(fd, 100)  # after mapping: Python refuses to map more than the file has
        page[50:4096] = b"B" * 4046
        page.flush()
        if how == "truncate":
            os.ftruncate(fd, PAGE)
        else:
            os.pwrite(fd, b"C", 4095)
        data = os.pread(fd, PAGE, 0)
        page.close()
    tail = bytes(3996) if how == "truncate" else bytes(3995) + b"C"
    same(data[:100], b"A" * 50 + b"B" * 50)
    if c.fstype != "tmpfs":
        same(data[100:] == tail, True, "zeros behind the old end")


@case("truncate")
def mapping_sees_truncate(c: Context):
    """Shrink and grow under a live mapping: the page reads as zeros afterwards."""
    name = c.file(_pattern(2 * PAGE))
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, 2 * PAGE)
        first = page[PAGE]
        os.ftruncate(fd, 10)
        os.ftruncate(fd, 2 * PAGE)
        got = first, page[:10], page[10:20], page[PAGE : PAGE + 10]
        page.close()
    return same(got, (_pattern(2 * PAGE)[PAGE], _pattern(10), bytes(10), bytes(10)))


@case("truncate", ("absent", "dir", "fifo", "sock", "symlink"))
def truncate_on(c: Context, kind: str):
    want = {"absent": "ENOENT", "dir": "EISDIR", "symlink": "ENOENT"}.get(kind, "EINVAL")
    return same(c.errno_of(os.truncate, c.thing(kind), 0), want)


@case("truncate")
def bad_arguments(c: Context):
    name = c.file(b"x")
    with c.open(name, os.O_RDONLY) as fd:
        got = [
            c.errno_of(os.truncate, name, -1),
            c.errno_of(os.ftruncate, fd, 0),
            c.errno_of(os.ftruncate, 9999, 0),
        ]
    return same((got, os.path.getsize(name)), (["EINVAL", "EINVAL", "EBADF"], 1))


@case("truncate")
def permission(c: Context):
    """truncate needs write permission, ftruncate a descriptor that was opened for writing."""
    readable, writable = c.file(b"abc", 0o444), c.file(b"abc", 0o666)
    got = [c.as_nobody(lambda n=n: os.truncate(n, 1)) for n in (readable, writable)]
    fd = os.open(readable, os.O_RDWR)
    got.append(c.as_nobody(lambda: os.ftruncate(fd, 2)))
    return same((got, os.path.getsize(readable), os.path.getsize(writable)), (["EACCES", None, None], 2, 1))


@case("truncate")
def over_a_symlink(c: Context):
    name = c.file(b"abcdef")
    os.symlink(name, "link")
    os.truncate("link", 2)
    return same(c.data(name), b"ab")


# holes


@case("holes", (0, 1, 4095, 4096, 10_000, 1 << 20, 1 << 30, 1 << 36, (1 << 40) + 12345))
def write_far_out(c: Context, offset: int):
    """One byte far out: the hole reads as zeros and has (nearly) no blocks."""
    name = c.file()
    with c.open(name, os.O_RDWR) as fd:
        os.pwrite(fd, b"!", offset)
        os.fsync(fd)
        s = os.fstat(fd)
        near = min(offset, 8192)
        data = os.pread(fd, near + 10, offset - near)
        start = os.pread(fd, min(offset, 100), 0)
    same((s.st_size, data == bytes(near) + b"!", start), (offset + 1, True, bytes(min(offset, 100))))
    return same(0 < s.st_blocks <= 4096 + 64, True, f"st_blocks {s.st_blocks}")


@case("holes")
def blocks_follow_writes(c: Context):
    """st_blocks of 64 KiB written data is 128 at least, in units of 512, and 0 after truncate to 0."""
    name = c.file(b"x" * 65536)
    with c.open(name, os.O_RDWR) as fd:
        os.fsync(fd)
        full = os.fstat(fd).st_blocks
        os.ftruncate(fd, 0)
        os.fsync(fd)
        empty = os.fstat(fd).st_blocks
    return same((full >= 128, empty), (True, 0))


@case("holes")
def sparse_blocks_are_fewer(c: Context):
    """Sixteen pages 16 MiB apart take fewer blocks than the size would, and no less than was written."""
    name = c.file()
    with c.open(name, os.O_RDWR) as fd:
        for i in range(16):
            os.pwrite(fd, b"x" * PAGE, i << 24)
        os.fsync(fd)
        s = os.fstat(fd)
    return same((128 <= s.st_blocks < s.st_size // 512 // 2, s.st_size), (True, (15 << 24) + PAGE))


@case("holes")
def reading_makes_no_blocks(c: Context):
    name = c.file()
    os.truncate(name, 1 << 22)
    c.data(name)
    return same(os.stat(name).st_blocks, 0)


@case("holes")
def shrink_gives_blocks_back(c: Context):
    name = c.file(b"x" * (4 << 20))
    with c.open(name, os.O_RDWR) as fd:
        os.fsync(fd)
        before = os.fstat(fd).st_blocks
        os.ftruncate(fd, 1 << 20)
        os.fsync(fd)
        after = os.fstat(fd).st_blocks
    return same((before >= 8192, 2048 <= after <= 4096), (True, True), f"{before} then {after}")


@case("holes")
def checkerboard(c: Context):
    """Every second block written: the others stay zero."""
    name = c.file()
    with c.open(name, os.O_RDWR) as fd:
        for i in range(0, 256, 2):
            os.pwrite(fd, bytes([i]) * PAGE, i * PAGE)
        data = os.pread(fd, 256 * PAGE, 0)
    good = all(
        data[i * PAGE : (i + 1) * PAGE] == (bytes([i]) * PAGE if i % 2 == 0 else bytes(PAGE))
        for i in range(255)
    )
    return same((good, len(data)), (True, 255 * PAGE))


def _data_map(fd: int, size: int) -> list[tuple[int, int]]:
    """The [start, end) runs that SEEK_DATA and SEEK_HOLE report."""
    runs, at = [], 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        runs.append((start, at))
    return runs


@case("seek", {"none": (), "first": (0,), "last": (63,), "two": (3, 40), "run": (8, 9, 10), "edges": (0, 63)})
def data_and_holes(c: Context, *blocks: int):
    """What was written is reported as data; what is reported as a hole reads as zeros.

    A file system without own support reports the whole file as data, so only these relations count.
    """
    unit, name = 65536, c.file()
    os.truncate(name, 64 * unit)
    with c.open(name, os.O_RDWR) as fd:
        for block in blocks:
            os.pwrite(fd, b"D" * unit, block * unit)
        os.fsync(fd)
        runs = _data_map(fd, 64 * unit)
        content = os.pread(fd, 64 * unit, 0)
    covered = all(any(a <= b * unit and (b + 1) * unit <= z for a, z in runs) for b in blocks)
    holes, at = [], 0
    for start, end in [*runs, (64 * unit, 64 * unit)]:
        holes.append(content[at:start])
        at = end
    return same((covered, not any(any(h) for h in holes)), (True, True), f"{runs}")


@case("seek")
def edges(c: Context):
    """At and behind the end SEEK_DATA and SEEK_HOLE are ENXIO; the end itself is a hole."""
    name = c.file(b"x" * 5000)
    with c.open(name, os.O_RDONLY) as fd:
        got = [
            c.errno_of(os.lseek, fd, 5000, os.SEEK_DATA),
            c.errno_of(os.lseek, fd, 5000, os.SEEK_HOLE),
            c.errno_of(os.lseek, fd, 9999, os.SEEK_DATA),
            os.lseek(fd, 0, os.SEEK_HOLE),
            os.lseek(fd, 4999, os.SEEK_DATA),
        ]
        among(c.errno_of(os.lseek, fd, -1, os.SEEK_DATA), ("ENXIO", "EINVAL"))
    return same(got, ["ENXIO", "ENXIO", "ENXIO", 5000, 4999])


@case("seek")
def set_current_end(c: Context):
    name = c.file(b"x" * 100)
    with c.open(name, os.O_RDWR) as fd:
        got = [
            os.lseek(fd, 10, os.SEEK_SET),
            os.lseek(fd, 5, os.SEEK_CUR),
            os.lseek(fd, -5, os.SEEK_END),
            os.lseek(fd, 500, os.SEEK_END),
            os.read(fd, 1),
            c.errno_of(os.lseek, fd, -1, os.SEEK_SET),
            c.errno_of(os.lseek, fd, -101, os.SEEK_END),
            c.errno_of(os.lseek, fd, 0, 99),
            os.lseek(fd, 0, os.SEEK_CUR),
            os.fstat(fd).st_size,
        ]
    return same(got, [10, 15, 95, 600, b"", "EINVAL", "EINVAL", "EINVAL", 600, 100])


@case("seek")
def end_follows_other_writer(c: Context):
    """SEEK_END uses the size of now, not of open."""
    name = c.file(b"x")
    with c.open(name, os.O_RDONLY) as one, c.open(name, os.O_WRONLY) as two:
        os.pwrite(two, b"y" * 10, 90)
        return same(os.lseek(one, 0, os.SEEK_END), 100)


# the largest file


@case("efbig", compare=False)
def beyond_the_largest_file(c: Context):
    """At 2**63-1 one byte more is EFBIG or EINVAL; truncate there is refused or taken, never half done."""
    name = c.file(b"start")
    with c.open(name, os.O_RDWR) as fd:
        top = 2**63 - 1
        among(c.errno_of(os.pwrite, fd, b"xx", top - 1), ("EFBIG", "EINVAL"))
        same(os.fstat(fd).st_size, 5)
        result = c.errno_of(os.ftruncate, fd, top)
        among(result, ("OK", "EFBIG", "EINVAL"))
        same(os.fstat(fd).st_size, top if result == "OK" else 5)
        same(os.pread(fd, 5, 0), b"start")


@case("efbig", compare=False)
def sixteen_tib(c: Context):
    """A file grows to nearly 16 TiB, its last byte works, and it can shrink again; or EFBIG."""
    name = c.file(b"start")
    size = (1 << 44) - PAGE
    with c.open(name, os.O_RDWR) as fd:
        result = c.errno_of(os.ftruncate, fd, size)
        among(result, ("OK", "EFBIG"))
        if result == "OK":
            os.pwrite(fd, b"z", size - 1)
            same((os.pread(fd, 9, size - 2), os.fstat(fd).st_size), (b"\0z", size))
            same(os.fstat(fd).st_blocks < 1 << 14, True)
        os.ftruncate(fd, 2)
        same((os.pread(fd, 9, 0), os.fstat(fd).st_size), (b"st", 2))


@case("efbig")
def file_size_limit_of_process(c: Context):
    """RLIMIT_FSIZE: a write stops at the limit, then EFBIG with SIGXFSZ; truncate beyond likewise."""
    name = c.file()

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        with c.open(name, os.O_RDWR) as fd:
            return (
                os.write(fd, b"x" * 20_000),
                c.errno_of(os.write, fd, b"y"),
                c.errno_of(os.ftruncate, fd, 10_001),
                os.fstat(fd).st_size,
            )

    return same(c.in_child(limited), (10_000, "EFBIG", "EFBIG", 10_000))


# fallocate: pyfuse3 does not carry it, so a file system may lack it


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    try:
        fallocate(fd, mode, offset, length)
    except OSError as error:
        raise Unsupported(f"fallocate mode {mode}: {error.strerror}") from error


@case("fallocate")
def posix_fallocate_grows(c: Context):
    """glibc falls back to writes where the file system has no fallocate."""
    name = c.file(b"abc")
    with c.open(name, os.O_RDWR) as fd:
        os.posix_fallocate(fd, 0, 10_000)
        data = os.pread(fd, 20_000, 0)
    return same(data == b"abc" + bytes(9997), True)


@case("fallocate", {"plain": 0, "keep_size": 1}, may_lack=(ANY,))
def reserves_space(c: Context, mode: int):
    name = c.file(b"abc")
    with c.open(name, os.O_RDWR) as fd:
        _fallocate(fd, mode, 0, 1 << 20)
        s = os.fstat(fd)
        data = os.pread(fd, 2 << 20, 0)
    size = 3 if mode else 1 << 20
    return same((s.st_size, s.st_blocks >= 2048, data == b"abc" + bytes(size - 3)), (size, True, True))


@case("fallocate", may_lack=(ANY,))
def punch_hole(c: Context):
    """PUNCH_HOLE with ragged edges: zeros inside, the rest as before, the size unchanged."""
    name = c.file(_pattern(10 * PAGE))
    with c.open(name, os.O_RDWR) as fd:
        _fallocate(fd, 3, 1000, 5 * PAGE)
        data = os.pread(fd, 99 * PAGE, 0)
    want = _pattern(10 * PAGE)
    return same(data == want[:1000] + bytes(5 * PAGE) + want[1000 + 5 * PAGE :], True)


@case("fallocate", may_lack=("tmpfs", "fuse", "fuse.daxfs"))
def zero_range(c: Context):
    name = c.file(_pattern(4 * PAGE))
    with c.open(name, os.O_RDWR) as fd:
        _fallocate(fd, 0x10, 100, 2 * PAGE)
        data = os.pread(fd, 99 * PAGE, 0)
    want = _pattern(4 * PAGE)
    return same(data == want[:100] + bytes(2 * PAGE) + want[100 + 2 * PAGE :], True)
