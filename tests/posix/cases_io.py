# SPDX-License-Identifier: MIT
"""Cases: read and write in all their forms, several writers, copies inside the kernel."""

import os
import random

from .context import Context, among, same
from .table import case

PAGE = 4096


@case(
    "io",
    {
        f"{o}+{n}": (o, n)
        for o in (0, 1, 7, 63, 64, 65, 4095, 4096, 4097, 2097151)
        for n in (0, 1, 8, 63, 65, 4096, 9000)
    },
)
def pwrite_pread(c: Context, offset: int, length: int):
    """Bytes around a write at an odd place stay, the written ones come back."""
    before = bytes(range(256)) * ((offset + length) // 256 + 40)
    name = c.file(before)
    data = bytes((i * 7 + 3) % 256 for i in range(length))
    with c.open(name, os.O_RDWR) as fd:
        wrote = os.pwrite(fd, data, offset)
        back = os.pread(fd, length, offset)
        position = os.lseek(fd, 0, os.SEEK_CUR)
    whole = c.data(name) == before[:offset] + data + before[offset + length :]
    return same((wrote, back == data, position, whole), (length, True, 0, True))


@case("io", {"append": b"end", "middle": b"mid"})
def position_moves(c: Context, data: bytes):
    name = c.file(b"0123456789")
    with c.open(name, os.O_RDWR) as fd:
        got = [
            os.read(fd, 4),
            os.write(fd, data),
            os.read(fd, 99),
            os.read(fd, 9),
            os.lseek(fd, 0, os.SEEK_CUR),
        ]
    return same(got, [b"0123", 3, b"789", b"", 10])


@case("io")
def read_at_end(c: Context):
    name = c.file(b"x" * 4096)
    with c.open(name, os.O_RDONLY) as fd:
        got = [len(os.pread(fd, 100, o)) for o in (0, 4000, 4095, 4096, 4097, 1 << 40)]
    return same(got, [100, 96, 1, 0, 0, 0])


@case("io")
def zero_length_write_changes_nothing(c: Context):
    name = c.file(b"abc")
    with c.open(name, os.O_RDWR) as fd:
        seen = c.changed(name, lambda: os.pwrite(fd, b"", 1000))
    return same((seen, os.path.getsize(name)), ("", 3))


@case("io")
def vectors(c: Context):
    """readv and writev keep the order over odd pieces, across page borders."""
    name = c.file()
    pieces = [bytes([i]) * n for i, n in enumerate((1, 0, 4095, 2, 4096, 9999, 3, 1), 1)]
    with c.open(name, os.O_RDWR) as fd:
        wrote = os.writev(fd, pieces)
        os.lseek(fd, 0, os.SEEK_SET)
        rooms = [bytearray(n) for n in (4096, 5, 0, 7000, 20_000)]
        got = os.readv(fd, rooms)
    joined = b"".join(pieces)
    return same((wrote, got, b"".join(rooms)[:got] == joined), (len(joined), len(joined), True))


@case("io")
def vectors_at_offset(c: Context):
    name = c.file(b"." * 100)
    with c.open(name, os.O_RDWR) as fd:
        os.pwritev(fd, [b"ab", b"", b"cde"], 97)
        room = [bytearray(2), bytearray(50)]
        got = os.preadv(fd, room, 96)
    return same((got, bytes(room[0]), bytes(room[1][:4]), os.path.getsize(name)), (6, b".a", b"bcde", 102))


@case("io", {"dsync": "RWF_DSYNC", "sync": "RWF_SYNC", "append": "RWF_APPEND"})
def write_flags(c: Context, flag: str):
    """pwritev2 with one flag; RWF_APPEND ignores the offset."""
    name = c.file(b"0123456789")
    with c.open(name, os.O_RDWR) as fd:
        os.pwritev(fd, [b"AB"], 2, getattr(os, flag))
    return same(c.data(name), b"0123456789AB" if flag == "RWF_APPEND" else b"01AB456789")


@case("io")
def bad_buffers_and_offsets(c: Context):
    name = c.file(b"x")
    with c.open(name, os.O_RDWR) as fd:
        got = [
            c.errno_of(os.pread, fd, 1, -1),
            c.errno_of(os.pwrite, fd, b"x", -1),
            c.errno_of(os.read, 9999, 1),
            c.errno_of(os.write, 9999, b""),
        ]
    return same(got, ["EINVAL", "EINVAL", "EBADF", "EBADF"])


@case("io")
def directory_as_file(c: Context):
    with c.open(c.dir(), os.O_RDONLY) as fd:
        got = c.errno_of(os.read, fd, 1), c.errno_of(os.pread, fd, 1, 0), c.errno_of(os.write, fd, b"x")
    return same(got, ("EISDIR", "EISDIR", "EBADF"))


@case("io", ("8K", "64K", "1M", "5M", "16M"))
def large_transfers(c: Context, size: str):
    """One call of this size, written and read back."""
    length = int(size[:-1]) << {"K": 10, "M": 20}[size[-1]]
    data = random.Random(length).randbytes(length)
    name = c.file()
    with c.open(name, os.O_RDWR) as fd:
        wrote = os.pwrite(fd, data, 3)
        back = os.pread(fd, length, 3)
    return same((wrote, back == data, os.path.getsize(name)), (length, True, length + 3))


@case("io", (1, 2, 3))
def random_operations(c: Context, seed: int):
    """300 random writes, reads and truncations agree with a bytearray."""
    rng, model = random.Random(seed), bytearray()
    name = c.file()
    with c.open(name, os.O_RDWR) as one, c.open(name, os.O_RDWR) as two:
        for step in range(300):
            fd, at, n = rng.choice((one, two)), rng.randrange(200_000), rng.choice((1, 13, 512, 4096, 20_000))
            action = rng.random()
            if action < 0.5:
                data = rng.randbytes(n)
                os.pwrite(fd, data, at)
                model.extend(bytes(max(0, at + n - len(model))))
                model[at : at + n] = data
            elif action < 0.9:
                same(
                    os.pread(fd, n, at) == bytes(model[at : at + n]),
                    True,
                    f"seed {seed} step {step}: read {n} at {at}",
                )
            else:
                os.ftruncate(fd, at)
                model = model[:at] + bytes(max(0, at - len(model)))
    return same(c.data(name) == bytes(model), True, f"seed {seed}")


@case("io")
def small_writes(c: Context):
    """2000 writes of 1 to 17 bytes make the file that one write would."""
    name, want = c.file(), bytearray()
    with c.open(name, os.O_WRONLY | os.O_APPEND) as fd:
        for i in range(2000):
            piece = bytes([i % 256]) * (i % 17 + 1)
            os.write(fd, piece)
            want += piece
    return same(c.data(name) == bytes(want), True)


@case("io")
def two_descriptors_see_each_other(c: Context):
    name = c.file(b"." * 10)
    with c.open(name, os.O_RDWR) as one, c.open(name, os.O_RDWR) as two:
        seen = []
        for i in range(10):
            os.pwrite((one, two)[i % 2], str(i).encode(), i)
            seen.append(os.pread((two, one)[i % 2], 10, 0))
    return same(seen[-1], b"0123456789"), len(set(seen))


@case("io")
def two_processes_see_each_other(c: Context):
    """A write that returned is seen by a read in another process that starts later."""
    name = c.file(bytes(64))
    ask, answer = os.pipe(), os.pipe()

    def mirror() -> int:
        with c.open(name, os.O_RDWR) as fd:
            for i in range(64):
                os.read(ask[0], 1)
                os.pwrite(fd, bytes([os.pread(fd, 1, i)[0] ^ 0xFF]), i)
                os.write(answer[1], b"x")
        return 0

    join, good = c.start(mirror), 0
    with c.open(name, os.O_RDWR) as fd:
        for i in range(64):
            os.pwrite(fd, bytes([i]), i)
            os.write(ask[1], b"x")
            os.read(answer[0], 1)
            good += os.pread(fd, 1, i)[0] == i ^ 0xFF
    return same((join(), good), (0, 64))


@case("append", (1, 100, 4096, 5000))
def several_appenders(c: Context, length: int):
    """Four processes append records: none is lost, torn or overwritten."""
    name = c.file()

    def writer(letter: bytes) -> int:
        with c.open(name, os.O_WRONLY | os.O_APPEND) as fd:
            return sum(os.write(fd, letter * length) for _ in range(50))

    joins = [c.start(lambda x=x: writer(x)) for x in (b"a", b"b", b"c", b"d")]
    totals = [join() for join in joins]
    data = c.data(name)
    records = [set(data[i : i + length]) for i in range(0, len(data), length)]
    counts = [data.count(x) for x in (b"a", b"b", b"c", b"d")]
    return same(
        (totals, counts, all(len(r) == 1 for r in records)), ([50 * length] * 4, [50 * length] * 4, True)
    )


@case("append")
def append_after_truncate_by_other(c: Context):
    name = c.file(b"x" * 1000)
    with c.open(name, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"1")
        os.truncate(name, 3)
        os.write(fd, b"2")
    return same(c.data(name), b"xxx2")


@case("append")
def shared_offset_after_fork(c: Context):
    """Parent and child share one offset."""
    name = c.file()
    with c.open(name, os.O_RDWR) as fd:
        os.write(fd, b"parent ")
        c.in_child(lambda: os.write(fd, b"child "))
        os.write(fd, b"parent")
    return same(c.data(name), b"parent child parent")


# copies inside the kernel


def _pump(step, total: int) -> int:
    done = 0
    while done < total:
        got = step(total - done)
        if got == 0:
            break
        done += got
    return done


@case("copy", {f"{n}@{o}": (n, o) for n in (1, 4096, 100_000, 3_000_000) for o in (0, 5)})
def copy_file_range(c: Context, length: int, offset: int):
    """Between two files of the mount, by the file system or by the kernel's fallback."""
    data = random.Random(length).randbytes(length + offset)
    source, target = c.file(data), c.file(b"." * 20)
    with c.open(source, os.O_RDONLY) as a, c.open(target, os.O_RDWR) as b:
        os.lseek(a, offset, os.SEEK_SET)
        os.lseek(b, 10, os.SEEK_SET)
        done = _pump(lambda left: os.copy_file_range(a, b, left), length)
        ends = os.lseek(a, 0, os.SEEK_CUR), os.lseek(b, 0, os.SEEK_CUR)
    want = b"." * 10 + data[offset:] + b"." * max(0, 10 - length)
    return same((done, ends, c.data(target) == want), (length, (offset + length, 10 + length), True))


@case("copy")
def copy_within_one_file(c: Context):
    """Ranges apart are copied, ranges that overlap are EINVAL."""
    name = c.file(bytes(range(200)))
    with c.open(name, os.O_RDWR) as fd:
        done = os.copy_file_range(fd, fd, 50, 0, 1000)
        overlap = c.errno_of(os.copy_file_range, fd, fd, 50, 0, 10)
        data = os.pread(fd, 50, 1000)
    return same((done, overlap, data), (50, "EINVAL", bytes(range(50))))


@case("copy")
def copy_errors(c: Context):
    name = c.file(b"abc")
    with (
        c.open(name, os.O_RDONLY) as r,
        c.open(name, os.O_WRONLY | os.O_APPEND) as a,
        c.open(".", os.O_RDONLY) as d,
    ):
        got = [
            c.errno_of(os.copy_file_range, r, r, 1),
            c.errno_of(os.copy_file_range, r, a, 1),
            c.errno_of(os.copy_file_range, a, r, 1),
            c.errno_of(os.copy_file_range, d, d, 1),
        ]
    return same(got, ["EBADF", "EBADF", "EBADF", "EISDIR"])


@case("copy")
def copy_at_end_of_source(c: Context):
    source, target = c.file(b"abc"), c.file()
    with c.open(source, os.O_RDONLY) as a, c.open(target, os.O_WRONLY) as b:
        got = [os.copy_file_range(a, b, 10), os.copy_file_range(a, b, 10)]
    return same((got, c.data(target)), ([3, 0], b"abc"))


@case("copy", (1, 70_000, 2_000_000))
def sendfile(c: Context, length: int):
    data = random.Random(length).randbytes(length)
    source, target = c.file(data), c.file()
    with c.open(source, os.O_RDONLY) as a, c.open(target, os.O_WRONLY) as b:
        done = _pump(lambda left: os.sendfile(b, a, None, left), length)
    return same((done, c.data(target) == data), (length, True))


@case("copy", (1, 5000, 300_000))
def splice(c: Context, length: int):
    """File to pipe and pipe to file."""
    data = random.Random(length).randbytes(length)
    source, target = c.file(data), c.file()
    reader, writer = os.pipe()

    def feed() -> int:
        os.close(reader)
        with c.open(source, os.O_RDONLY) as a:
            return _pump(lambda left: os.splice(a, writer, left), length)

    join = c.start(feed)
    os.close(writer)
    with c.open(target, os.O_WRONLY) as b:
        done = _pump(lambda left: os.splice(reader, b, left), length)
    return same((join(), done, c.data(target) == data), (length, length, True))


@case("copy", compare=False)
def copy_across_file_systems(c: Context):
    """To another type of file system: EXDEV, or copied."""
    with c.open(c.file(b"abc"), os.O_RDONLY) as a, c.open(f"{c.elsewhere}/x", os.O_RDWR | os.O_CREAT) as b:
        among(c.errno_of(os.copy_file_range, a, b, 3), ("EXDEV", "OK"))
