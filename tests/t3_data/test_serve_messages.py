# SPDX-License-Identifier: MIT
"""Which requests serve() takes for whole, and where it sends them: no answer needs more than a look."""

import errno
import struct

import pytest
import rawmsg as R
from servekit import Served

from daxfs.data import _serve

SILENT = {"forget", "batch_forget", "interrupt", "notify_reply"}
VERDICTS = {  # of good messages where nothing is answered natively; all others are relayed
    "call": {"read", "write", "fsync", "fsyncdir", "readdir", "ioctl", "fallocate", "lseek",
             "copy_file_range", "copy_file_range_64", "syncfs", "tmpfile", "statx"},
    "forget": {"forget", "batch_forget"}, "interrupt": {"interrupt"}, "drop": {"notify_reply"},
    "done": set(R.REFUSED),
}  # fmt: skip
IO = 65536


def op_of(raw: bytes) -> str:
    return R.BY_NUMBER[R.HEADER.unpack_from(raw)[1]]


@pytest.fixture
def served(kit):
    made = Served(kit.io(), IO)
    made.file = made.open(b"f", 70000)
    made.dir = made.server.open(None, 1, _serve.DIRECTORY)
    return made


@pytest.fixture
def corpus(served):
    return R.corpus(1, served.dir, served.file.ino, served.file.fh)


def flaws(served, raw):
    return R.flaws(raw, served.server.inode_limit, IO)


def test_the_corpus_has_every_opcode(corpus):
    assert {op_of(raw) for raw in corpus} == set(R.OPCODES)
    assert R.OPCODES == {name: number for number, name in _serve.OPCODES.items()}
    assert {R.OPCODES[name]: size for name, size in R.FIXED.items()} == {
        op: _serve.arg_size(op) for op in range(100) if _serve.arg_size(op)}


def test_where_good_messages_go(served, corpus):
    served.server.nothing = True
    for raw in corpus:
        want = next((v for v, ops in VERDICTS.items() if op_of(raw) in ops), "relay")
        error = -errno.ENOSYS if want == "done" else 0
        assert served.feed(raw) == served.split(raw) == (want, error, b""), op_of(raw)
        assert want in ("done", "drop") or flaws(served, raw) == []
    counts = served.server.counts()
    assert counts["malformed"] == 0
    assert counts["relayed"]["lookup"] == 6 and "interrupt" not in counts["relayed"]


def test_every_part_of_a_message_is_refused(served, corpus):
    """Cut anywhere, with the length corrected: refused, or (INIT, names that end early) whole by chance."""
    served.server.nothing = True
    refused = 0
    for raw in corpus:
        if op_of(raw) in R.REFUSED or op_of(raw) == "notify_reply":
            continue
        for cut in range(R.HEADER.size, len(raw)):
            part = struct.pack("<I", cut) + raw[4:cut]
            verdict, error, _ = served.feed(part)
            assert served.split(part)[:2] == (verdict, error)
            if verdict == "done":
                assert error < 0
            assert (verdict in ("done", "drop")) == bool(flaws(served, part)), (op_of(raw), cut)
            refused += verdict in ("done", "drop")
    assert refused > 10_000


def test_one_byte_too_many_is_refused(served, corpus):
    served.server.nothing = True
    for raw in corpus:
        long = struct.pack("<I", len(raw) + 1) + raw[4:] + b"\0"
        want = ("drop", 0) if op_of(raw) in SILENT else ("done", None)
        verdict, error, _ = served.feed(long)
        assert verdict == want[0] and (error == 0 or verdict == "done"), op_of(raw)


def test_a_wrong_length_in_the_header_is_refused(served, corpus):
    for raw in corpus:
        if op_of(raw) in R.REFUSED:
            continue
        for length in (0, 39, len(raw) - 1, len(raw) + 1, (1 << 32) - 1):
            wrong = struct.pack("<I", length) + raw[4:]
            want = ("drop", 0) if op_of(raw) in SILENT else ("done", -errno.EINVAL)
            assert served.feed(wrong)[:2] == want


@pytest.mark.parametrize("size", [0, 1, 39])
def test_less_than_a_header_is_dropped(served, size):
    assert served.feed(bytes(size)) == ("drop", 0, b"")


@pytest.mark.parametrize("op", [0, 7, 19, 54, 63, 64, 4096, (1 << 32) - 1])
def test_unknown_opcodes(served, op):
    """ENOSYS, and nothing in them is looked at."""
    assert served.feed(R.message(op, 0, bytes(100), length=5)) == ("done", -errno.ENOSYS, b"")


NAMED = struct.pack("<IIII", 2, 0o100644, 0, 0) + b"name\0"
NAMES = [
    (R.message("lookup", 1, b"\0"), errno.EINVAL),
    (R.message("lookup", 1, b"a/b\0"), errno.EINVAL),
    (R.message("lookup", 1, b"name"), errno.EINVAL),
    (R.message("lookup", 1, b"na\0me\0"), errno.EINVAL),
    (R.message("lookup", 1, b"n" * 256 + b"\0"), errno.ENAMETOOLONG),
    (R.message("rename", 1, struct.pack("<Q", 1) + b"old\0"), errno.EINVAL),
    (R.message("rename", 1, struct.pack("<Q", 1) + b"old\0new"), errno.EINVAL),
    (R.message("rename", 1, struct.pack("<Q", 1) + b"\0new\0"), errno.EINVAL),
    (R.message("rename", 1, struct.pack("<Q", 1) + b"old\0" + b"n" * 256 + b"\0"), errno.ENAMETOOLONG),
    (R.message("rename", 1, struct.pack("<Q", 1) + b"old\0new\0more\0"), errno.EINVAL),
    (R.message("symlink", 1, b"name\0\0"), errno.ENOENT),
    (R.message("symlink", 1, b"name\0" + b"t" * 4096 + b"\0"), errno.ENAMETOOLONG),
    (R.message("symlink", 1, b"name\0target"), errno.EINVAL),
    (R.message("create", 1, NAMED, extra=8), errno.EINVAL),
    (R.message("create", 1, NAMED + R.extension(16)[:8] + bytes(8), extra=8), errno.EINVAL),
    (R.message("create", 1, NAMED + struct.pack("<II", 24, 1) + bytes(8), extra=16), errno.EINVAL),
    (R.message("create", 1, NAMED + struct.pack("<II", 0, 1) + bytes(8), extra=16), errno.EINVAL),
    (R.message("create", 1, NAMED + 2 * struct.pack("<III", 12, 1, 0), extra=24), errno.EINVAL),
    (R.message("create", 1, NAMED, extra=1 << 18), errno.EINVAL),
    (R.message("unlink", 1, b"name\0" + R.extension(), extra=16), errno.EINVAL),
    (R.setxattr(1, size=4), errno.EINVAL), (R.setxattr(1, size=6), errno.EINVAL),
    (R.setxattr(1, size=1 << 31), errno.E2BIG), (R.setxattr(1, b""), errno.ERANGE),
    (R.setxattr(1, b"n" * 256), errno.ERANGE), (R.setxattr(1, flags=4), errno.EINVAL),
    (R.message("removexattr", 1, b"user.a"), errno.EINVAL),
    (R.batch_forget([1, 1], count=3), 0), (R.batch_forget([1, 1], count=1), 0), (R.batch_forget([0]), 0),
    (R.batch_forget([1], count=1 << 28), 0), (R.message("forget", 0, bytes(8)), 0),
    (R.message("interrupt", 0, bytes(7)), 0),
    (R.setattr_(1, size=1 << 63), errno.EFBIG), (R.setattr_(1, R.FATTR_ATIME, nsec=10**9), errno.EINVAL),
]  # fmt: skip


@pytest.mark.parametrize("raw, error", NAMES, ids=lambda v: v[:60].hex() if isinstance(v, bytes) else None)
def test_malformed(served, raw, error):
    want = ("done", -error, b"") if error else ("drop", 0, b"")
    assert served.feed(raw) == served.split(raw) == want
    assert flaws(served, raw)


def test_malformed_with_a_handle(served):
    file, ino, fh = served.file, served.file.ino, served.file.fh
    before = bytes(file.served.io.read(file.node, 0, 1 << 20, noatime=True))
    for raw in (
        R.write(ino, fh, 0, b"data", size=3), R.write(ino, fh, 0, b"data", size=5),
        R.write(ino, fh, 1 << 63, b"data"), R.write(ino, fh, 0, b"d" * (IO + 1)),
        R.read(ino, fh, 1 << 63, 10), R.read(ino, fh, 0, IO + 1),
        R.read(1, served.dir, 0, IO + 1, op="readdirplus"),
        R.read(1, served.dir, 1 << 63, IO, op="readdir"),
        R.ioctl(ino, fh, in_size=7), R.ioctl(ino, fh, in_size=9), R.ioctl(ino, fh, out_size=IO + 1),
        R.fallocate(ino, fh, 1 << 63, 1), R.fallocate(ino, fh, 0, 1 << 63),
        R.copy_file_range(ino, fh, ino, fh, off=1 << 63), R.copy_file_range(ino, fh, ino, fh, length=1 << 63),
    ):  # fmt: skip
        assert served.feed(raw) == served.split(raw) == ("done", -errno.EINVAL, b""), op_of(raw)
        assert flaws(served, raw)
    assert bytes(file.served.io.read(file.node, 0, 1 << 20, noatime=True)) == before
    assert served.server.counts()["malformed"] == 30


def test_inode_numbers(served):
    limit = served.server.inode_limit
    for ino in (0, limit, limit + 1, 1 << 63, (1 << 64) - 1):
        for raw in (R.getattr_(ino), R.message("lookup", ino, b"name\0"), R.message("statfs", ino),
                    R.message("link", 1, struct.pack("<Q", ino) + b"name\0"),
                    R.message("rename2", 1, struct.pack("<QII", ino, 0, 0) + b"a\0b\0")):
            assert served.feed(raw) == ("done", -errno.ESTALE, b""), (op_of(raw), ino)
        for raw in (R.message("forget", ino, bytes(8)), R.batch_forget([1, ino])):
            assert served.feed(raw) == ("drop", 0, b"")
    assert served.feed(R.getattr_(limit - 1))[0] == "relay", "in the table and free: meta's to say"
    assert served.server.counts()["malformed"] == 0


def test_handles(served):
    """A number that is none, another file's, a directory's; and one that was closed."""
    file, root = served.file, served.dir
    other = served.open(b"g", 100)
    names = ("read", "write", "fsync", "flush", "release", "lseek", "fallocate", "ioctl", "copy_file_range")
    on_file = [raw for raw in R.on_handles(1, root, file.ino, file.fh)
               if op_of(raw) in names and R.HEADER.unpack_from(raw)[3] == file.ino]
    assert len({op_of(raw) for raw in on_file}) == len(names)

    def with_handle(raw, fh):
        return raw[:40] + struct.pack("<Q", fh) + raw[48:]

    for raw in on_file:
        for fh in (0, 1, file.fh ^ 1 << 32, file.fh ^ 1, other.fh, (1 << 64) - 1, 1 << 31):
            assert served.feed(with_handle(raw, fh)) == ("done", -errno.EBADF, b""), (op_of(raw), hex(fh))
        if op_of(raw) != "ioctl":
            here = with_handle(raw[:16] + struct.pack("<Q", 1) + raw[24:], root)
            assert served.feed(here) == ("done", -errno.EBADF, b""), "a directory's"
    for op in ("readdir", "readdirplus"):
        assert served.feed(R.read(file.ino, file.fh, 0, 4096, op=op))[1] == -errno.EBADF
    assert served.feed(R.fsync(file.ino, file.fh, op="fsyncdir"))[1] == -errno.EBADF
    assert served.feed(R.release(file.ino, file.fh, op="releasedir"))[1] == -errno.EBADF
    copy = R.copy_file_range(file.ino, file.fh, other.ino, other.fh)
    assert served.feed(copy)[0] == "call"
    assert served.feed(R.copy_file_range(file.ino, file.fh, other.ino, file.fh))[1] == -errno.EBADF
    assert served.feed(R.copy_file_range(file.ino, file.fh, other.ino, root))[1] == -errno.EBADF
    for raw in (R.getattr_(file.ino, other.fh), R.setattr_(file.ino, R.FATTR_FH, other.fh)):
        assert served.feed(raw)[1] == -errno.EBADF
    assert served.feed(R.getattr_(file.ino, file.fh))[:2] == ("done", 0)
    assert served.feed(R.setattr_(file.ino, R.FATTR_FH, file.fh))[0] == "relay"
    other.close()
    assert served.feed(copy)[1] == -errno.EBADF
    with pytest.raises(OSError) as error:
        other.close()
    assert error.value.errno == errno.EBADF
    assert served.io.fs.region.table.users == 0


def test_numbers_of_handles_are_not_used_twice(served):
    """The same slot again, and many at once: each number is new, and finds its own file."""
    file, seen = served.file, set()
    for _ in range(1000):
        fh = served.server.open(file.node.map, file.ino, 0)
        assert fh not in seen and fh
        seen.add(fh)
        served.server.close(fh)
    many = {served.server.open(file.node.map, 1 + n, 0): 1 + n for n in range(5000)}
    assert len(many) == 5000 and not seen & set(many)
    served.server.inode_limit = 6000
    for fh, ino in many.items():
        assert served.feed(R.flush(ino, fh)) == ("done", 0, b"")
        assert served.feed(R.flush(ino + 1, fh))[1] == -errno.EBADF
        served.server.close(fh)
    assert len(served.server) == 2
    assert all(served.feed(R.flush(ino, fh))[1] == -errno.EBADF for fh, ino in many.items())


def test_counts(served):
    file = served.file
    for _ in range(3):
        file.read(0, 100)
    file.lseek(1 << 40, 3)
    served.feed(R.message(99, 1))
    counts = served.server.counts()
    read = counts["operations"]["read"]
    assert (read.count, read.errors) == (3, 0) and sum(read.buckets) == 3
    assert 0 < read.total_ns <= sum(n << bucket for bucket, n in enumerate(read.buckets))
    assert set(read.snapshot()) == {"count", "errors", "total_ns", "p50_ns", "p99_ns", "histogram"}
    assert counts["operations"]["lseek"].errors == counts["operations"]["unknown"].errors == 1
    assert counts["relayed"] == {}
