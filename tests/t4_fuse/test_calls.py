# SPDX-License-Identifier: MIT
"""calls.py: raw requests answered without a mount; the structs are packed here anew, from <linux/fuse.h>."""

import errno
import logging
import os
import random
import stat
import struct
from collections import Counter
from types import SimpleNamespace

import callkit
import datakit
import pyfuse3
import pytest
import trio
from callkit import ROOT, Call, user

from daxfs import layout as L
from daxfs._iomap import HOLE, MAPPED, UNWRITTEN
from daxfs.fuse import calls, wire
from daxfs.fuse.fs_session import FsSession
from daxfs.fuse.ops import Operations
from daxfs.meta import attr, namespace, xattr

PAGE = 4096
READ, WRITE, FSYNC, READDIR, FSYNCDIR, FALLOCATE, LSEEK = 15, 16, 20, 28, 30, 43, 46
COPY, SYNCFS, TMPFILE, STATX, COPY_64 = 47, 50, 51, 52, 53
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
CACHE, KILL_SUIDGID, LOCKOWNER = 1, 4, 2
READ_IN = WRITE_IN = "QQIIQII"
ATTR = "QQQqqqIIIIIIIIII"


@pytest.fixture
def bench():
    with datakit.Kit() as kit:
        yield callkit.Bench(kit)


def entries(data: bytes):
    """[(name, ino, type, cookie)] of fuse_dirent records."""
    out, at = [], 0
    while at < len(data):
        ino, cookie, length, kind = struct.unpack_from("=QQII", data, at)
        out.append((data[at + 24 : at + 24 + length], ino, kind, cookie))
        at += 24 + length + 7 & ~7
    assert at == len(data)
    return out


def test_the_table_and_the_names():
    assert {wire.OPCODES[number].lower() for number in calls.CALLS} >= {
        "read", "write", "fsync", "fsyncdir", "readdir", "fallocate", "lseek", "copy_file_range", "statx",
        "tmpfile", "syncfs", "copy_file_range_64"}  # fmt: skip
    for name in ("READ", "WRITE", "FSYNC", "READDIR", "FSYNCDIR", "IOCTL", "FALLOCATE", "LSEEK", "STATX",
                 "COPY_FILE_RANGE", "SYNCFS", "TMPFILE", "COPY_FILE_RANGE_64"):  # fmt: skip
        assert wire.OPCODES[getattr(wire, name)] == name


def test_read_and_write(bench):
    ino, fh = bench.create(b"file")
    data = datakit.noise(3 * PAGE + 5)
    out = bench.call(WRITE, ino, WRITE_IN, fh, 100, len(data), 0, 0, 0, 0, data=data + b"more")
    assert out == struct.pack("=II", len(data), 0)
    assert bench.call(READ, ino, READ_IN, fh, 90, 30, 0, 0, 0, 0) == bytes(10) + data[:20]
    assert bench.call(READ, ino, READ_IN, fh, 0, 1 << 20, 0, 0, 0, 0) == bytes(100) + data
    assert bench.call(READ, ino, READ_IN, fh, 1 << 63, 5, 0, 0, 0, 0) == b""
    shown = bench.ops.stats.snapshot()["operations"]
    assert shown["read"]["count"] == 3 and shown["write"]["count"] == 1


def test_fsync(bench):
    ino, fh = bench.create(b"file", b"data")
    assert bench.call(FSYNC, ino, "QII", fh, 1, 0) == b""
    directory = bench.ask("opendir", 1, ROOT)
    assert bench.call(FSYNCDIR, 1, "QII", directory, 0, 0) == b""
    counts = bench.ops.stats.snapshot()["operations"]
    assert counts["fsync"]["count"] == counts["fsyncdir"]["count"] == 1


@pytest.mark.parametrize("flags, expected", ((KILL_SUIDGID, 0o755), (0, 0o6755)))
@pytest.mark.parametrize("opener", (ROOT, user()), ids=("root", "user"))
def test_the_writer_counts_not_the_opener(bench, flags, expected, opener):
    """WRITE_KILL_SUIDGID says it for each write: a descriptor may have been handed on."""
    bench.ops.killpriv = True
    ino, fh = bench.create(b"file", b"data", who=opener)
    attr.setattr(bench.fs, ino, {"mode": 0o6755})
    bench.call(WRITE, ino, WRITE_IN, fh, 0, 1, flags, 0, 0, 0, data=b"D", who=user(2000, 2000))
    assert bench.fs.inodes.read(ino).mode & 0o7777 == expected


def test_pages_of_a_mapping_take_nothing_away(bench):
    """A write-back comes with any handle of the file, and is a fault for the counters; direct I/O is none."""
    bench.ops.killpriv = bench.ops.direct = True
    ino, fh = bench.create(b"file", b"data", who=user())
    attr.setattr(bench.fs, ino, {"mode": 0o6755})
    xattr.put(bench.fs, ino, b"security.capability", b"\1" * 20)
    faults = []
    bench.ops.faults = SimpleNamespace(request=lambda node, pos, size, write: faults.append(write))
    bench.call(READ, ino, READ_IN, fh, 0, 4, LOCKOWNER, 0, 0, 0)
    assert faults == []
    bench.call(READ, ino, READ_IN, fh, 0, 4, 0, 0, 0, 0)
    bench.call(WRITE, ino, WRITE_IN, fh, 0, 1, CACHE, 0, 0, 0, data=b"D")
    assert faults == [False, True]
    assert bench.fs.inodes.read(ino).mode & 0o7777 == 0o6755 and xattr.names(bench.fs, ino)
    bench.call(WRITE, ino, WRITE_IN, fh, 0, 1, KILL_SUIDGID, 0, 0, 0, data=b"D", who=user())
    assert faults == [False, True]
    assert bench.fs.inodes.read(ino).mode & 0o7777 == 0o755 and not xattr.names(bench.fs, ino)


def test_readdir(bench):
    names = {b"n%d" % n: bench.create(b"n%d" % n)[0] for n in range(40)}
    bench.ask("mkdir", 1, b"sub", 0o755, ROOT)
    fh = bench.ask("opendir", 1, ROOT)
    known = dict(bench.fs.lookups)
    whole = entries(bench.call(READDIR, 1, READ_IN, fh, 0, 4096, 0, 0, 0, 0))
    assert [e[0] for e in whole[:2]] == [b".", b".."] and whole[0][1] == whole[1][1] == 1
    found = {name: ino for name, ino, _, _ in whole}
    assert {name: found[name] for name in names} == names
    assert {name: kind for name, _, kind, _ in whole if kind != stat.S_IFREG >> 12} == {
        b".": 4, b"..": 4, b"sub": 4}  # fmt: skip
    pieces, cookie = [], 0
    while True:
        part = entries(bench.call(READDIR, 1, READ_IN, fh, cookie, 100, 0, 0, 0, 0))
        if not part:
            break
        pieces, cookie = pieces + part, part[-1][3]
    assert pieces == whole
    assert bench.fs.lookups == known, "READDIR tells the kernel of no inode"
    assert bench.error(READDIR, 1, READ_IN, fh, 0, 20, 0, 0, 0, 0) == errno.EINVAL


def test_readdir_and_readdirplus_have_the_same_cookies(bench, monkeypatch):
    for n in range(20):
        bench.create(b"name%d" % n)
    fh = bench.ask("opendir", 1, ROOT)
    plus = []
    monkeypatch.setattr(pyfuse3, "readdir_reply", lambda token, name, entry, cookie: plus.append(
        (name, entry.st_ino, entry.st_mode >> 12, cookie)) or True)
    bench.ask("readdir", fh, 0, None)
    assert entries(bench.call(READDIR, 1, READ_IN, fh, 0, 1 << 16, 0, 0, 0, 0)) == plus


def test_fallocate(bench):
    ino, fh = bench.create(b"file", b"x" * PAGE)
    assert bench.call(FALLOCATE, ino, "QQQII", fh, 0, 4 * PAGE, 0, 0) == b""
    assert bench.extents(fh) == [(0, 1, MAPPED), (1, 3, UNWRITTEN)]
    assert bench.fs.inodes.read(ino).size == 4 * PAGE
    bench.call(FALLOCATE, ino, "QQQII", fh, 0, PAGE, PUNCH_HOLE | KEEP_SIZE, 0)
    assert bench.extents(fh) == [(1, 3, UNWRITTEN)]
    assert bench.error(FALLOCATE, ino, "QQQII", fh, 0, PAGE, 8, 0) == errno.EOPNOTSUPP
    assert bench.error(FALLOCATE, ino, "QQQII", fh, 0, 0, 0, 0) == errno.EINVAL
    assert bench.error(FALLOCATE, ino, "QQQII", fh, 0, 1 << 45, 0, 0) == errno.EFBIG
    assert bench.error(FALLOCATE, ino, "QQQII", fh, 0, 1 << 40, 0, 0) == errno.ENOSPC


def test_fallocate_takes_privileges_away(bench):
    ino, fh = bench.create(b"file")
    attr.setattr(bench.fs, ino, {"mode": 0o6755})
    xattr.put(bench.fs, ino, b"security.capability", b"\1" * 20)
    bench.call(FALLOCATE, ino, "QQQII", fh, 0, PAGE, 0, 0, who=user())
    assert bench.fs.inodes.read(ino).mode & 0o7777 == 0o755
    assert xattr.names(bench.fs, ino) == []


def test_fallocate_waits_for_space_that_is_about_to_come_free(bench):
    """ENOSPC is tried again while orphans hold space, as for every handler."""
    victim, held = bench.create(b"victim")
    bench.ask("write", held, 0, b"x" * PAGE)
    pages = bench.fs.alloc.free_pages - 10
    bench.call(FALLOCATE, victim, "QQQII", held, 0, pages * PAGE, 0, 0)
    bench.ask("unlink", 1, b"victim", ROOT)
    ino, fh = bench.create(b"file")

    async def both():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.ops.forget, [(victim, 1)])
            nursery.start_soon(bench.ops.release, held)
            await calls.run(bench.ops, Call(FALLOCATE, ino, struct.pack("=QQQII", fh, 0, 1 << 22, 0, 0)))

    trio.run(both)
    assert bench.fs.inodes.read(ino).size == 1 << 22


def test_lseek(bench):
    ino, fh = bench.create(b"file", b"x" * 10)
    bench.ask("write", fh, 5 * PAGE, b"y" * 10)
    bench.call(FALLOCATE, ino, "QQQII", fh, 2 * PAGE, PAGE, KEEP_SIZE, 0)

    def seek(pos, whence):
        return struct.unpack("=Q", bench.call(LSEEK, ino, "QQII", fh, pos, whence, 0))[0]

    end = 5 * PAGE + 10
    assert [seek(at, os.SEEK_DATA) for at in (0, 7, PAGE, 2 * PAGE, end - 1)] == [
        0, 7, 5 * PAGE, 5 * PAGE, end - 1]  # fmt: skip
    assert [seek(at, os.SEEK_HOLE) for at in (0, 7, PAGE, PAGE + 1, 5 * PAGE, end - 1)] == [
        PAGE, PAGE, PAGE, PAGE + 1, end, end]  # fmt: skip
    for pos, whence in ((end, os.SEEK_DATA), (end, os.SEEK_HOLE), (1 << 63, os.SEEK_HOLE)):
        assert bench.error(LSEEK, ino, "QQII", fh, pos, whence, 0) == errno.ENXIO
    assert bench.error(LSEEK, ino, "QQII", fh, 0, os.SEEK_SET, 0) == errno.EINVAL
    bench.call(FALLOCATE, ino, "QQQII", fh, 0, 6 * PAGE, ZERO_RANGE | KEEP_SIZE, 0)
    assert bench.error(LSEEK, ino, "QQII", fh, 0, os.SEEK_DATA, 0) == errno.ENXIO
    assert HOLE == 0 and seek(0, os.SEEK_HOLE) == 0


def test_statx(bench):
    ino, _ = bench.create(b"file", b"x" * 5000, mode=0o640, who=user(5, 6))
    inode = bench.fs.inodes.read(ino)
    out = bench.call(STATX, ino, "IIQII", 0, 0, 0, 0, 0xFFF)
    assert len(out) == 288
    (mask, blksize, attributes, nlink, uid, gid, mode, number, size, blocks, known) = struct.unpack_from(
        "=IIQIIIH2xQQQQ", out, 32)
    assert (mask, blksize, attributes, known) == (0xFFF, 4096, 0, 0x200040)
    assert (nlink, uid, gid, mode) == (1, 5, 6, inode.mode)
    assert (number, size, blocks) == (ino, 5000, 16)
    times = struct.unpack_from("=qI4xqI4xqI4xqI4x", out, 32 + 64)
    assert [times[n] * 10**9 + times[n + 1] for n in (0, 2, 4, 6)] == [
        inode.atime, inode.btime, inode.ctime, inode.mtime]  # fmt: skip
    assert inode.btime < inode.mtime
    attr.set_flags(bench.fs, ino, L.FLAG_DAX | L.FLAG_NODUMP)
    assert statx_attributes(bench, ino) == 0x40, "no pool directory, so nothing is mapped directly"
    device = bench.ask("mknod", 1, b"dev", stat.S_IFCHR | 0o600, os.makedev(300, 70000), ROOT).st_ino
    out = bench.call(STATX, device, "IIQII", 0, 0, 0, 0, 0xFFF)
    assert struct.unpack_from("=II", out, 32 + 128) == (300, 70000)


def statx_attributes(bench, ino) -> int:
    return struct.unpack_from("=8xQ", bench.call(STATX, ino, "IIQII", 0, 0, 0, 0, 0xFFF), 32)[0]


@pytest.mark.parametrize(
    ("policy", "flag", "closed", "open_"),
    [("inode", True, True, True), ("inode", False, False, False), ("never", True, False, False),
     ("always", False, True, True)],
)  # fmt: skip
def test_statx_dax_is_how_a_file_is_mapped(policy, flag, closed, open_):
    with datakit.Kit(pool=True) as kit:
        bench = callkit.Bench(kit)
        fs, ops = bench.fs, bench.ops
        fs.dax, numbers = policy, iter(range(1, 9))
        attr.set_flags(fs, L.ROOT_INO, L.FLAG_DAX if flag else 0)
        ops.passthrough = SimpleNamespace(why="", open=lambda fd: next(numbers), close=lambda number: None)
        ino, fh = bench.create(b"file", b"x" * 5000)
        assert statx_attributes(bench, ino) == 0x200000 * open_
        # What it would be next does not count while it is open.
        attr.set_flags(fs, ino, L.FLAG_DAX * (not flag), 0)
        assert statx_attributes(bench, ino) == 0x200000 * open_
        attr.set_flags(fs, ino, L.FLAG_DAX * flag, 0)
        bench.ask("release", fh)
        assert statx_attributes(bench, ino) == 0x200000 * closed
        assert statx_attributes(bench, L.ROOT_INO) == 0, "a directory is never mapped"
        ops.passthrough.why = "there is none"
        assert statx_attributes(bench, ino) == 0


def test_tmpfile(bench):
    flags = os.O_RDWR | getattr(os, "O_TMPFILE", 0o20200000)
    out = bench.call(TMPFILE, 1, "IIII", flags, 0o100666, 0o027, 0, data=b"/\0", who=user(5, 6))
    nodeid, generation, *valid = struct.unpack_from("=QQQQII", out)
    ino, size, _, *rest = struct.unpack_from("=" + ATTR, out, 40)
    mode, nlink, uid, gid, _, blksize, _ = rest[6:]
    fh, open_flags, backing = struct.unpack("=QIi", out[128:])
    assert nodeid == ino and generation and size == 0 and valid[0] and blksize == 4096
    assert (mode, nlink, uid, gid) == (0o100640, 0, 5, 6) and open_flags & ~2 == 0 and backing == 0
    assert bench.fs.orphans == {ino}
    bench.call(WRITE, ino, WRITE_IN, fh, 0, 4, 0, 0, 0, 0, data=b"data")
    assert bench.ask("link", ino, 1, b"named", ROOT).st_nlink == 1
    assert bench.fs.orphans == set() and namespace.lookup(bench.fs, 1, b"named").ino == ino
    bench.ask("release", fh)
    assert namespace.lookup(bench.fs, 1, b"named").size == 4


def test_a_tmpfile_that_nobody_names_goes_with_its_last_close(bench):
    free, used = bench.fs.alloc.free_pages, bench.fs.inodes.used
    out = bench.call(TMPFILE, 1, "IIII", os.O_RDWR | os.O_EXCL, 0o100600, 0, 0, data=b"/\0")
    ino, fh = struct.unpack_from("=Q", out)[0], struct.unpack_from("=Q", out, 128)[0]
    bench.call(WRITE, ino, WRITE_IN, fh, 0, PAGE, 0, 0, 0, 0, data=bytes(PAGE))
    with pytest.raises(pyfuse3.FUSEError) as caught:
        bench.ask("link", ino, 1, b"named", ROOT)  # O_EXCL: never
    assert caught.value.errno == errno.ENOENT
    bench.ask("release", fh)
    assert bench.fs.inodes.used == used + 1
    bench.ask("forget", [(ino, 1)])
    assert (bench.fs.alloc.free_pages + bench.fs.alloc.held, bench.fs.inodes.used) == (free, used)
    assert not bench.fs.orphans and not bench.fs.linkable


def test_syncfs():
    with datakit.Kit() as kit:
        bench = callkit.Bench(kit, write="cached", drain="fsync")
        _, fh = bench.create(b"file", b"x" * PAGE)
        bench.ask("write", fh, 0, b"y" * PAGE)
        assert bench.ops.files.snapshot()["dirty_bytes"] == PAGE
        assert bench.fs.journal.tail < bench.fs.journal.head
        assert bench.call(SYNCFS, 1, "Q", 0) == b""
        assert bench.ops.files.snapshot()["dirty_bytes"] == 0
        assert bench.fs.journal.tail == bench.fs.journal.head


@pytest.mark.parametrize("opcode", sorted(calls.CALLS), ids=lambda n: wire.OPCODES[n])
def test_malformed_requests_get_an_errno_and_no_log(bench, opcode, caplog):
    """Short structs, handles that are not there, handles of another inode, files for directories."""
    ino, fh = bench.create(b"file", b"x" * 100)
    other, _ = bench.create(b"other")
    directory = bench.ask("opendir", 1, ROOT)
    caplog.set_level(logging.INFO)
    wrong = {errno.EINVAL, errno.EBADF, errno.EISDIR, errno.ENOTDIR, errno.ESTALE, errno.ENOTTY, errno.ENOENT}
    is_dir = opcode in (wire.READDIR, wire.FSYNCDIR)
    for length in (0, 1, 7, 8, 15):
        if opcode != wire.SYNCFS:
            assert bench.error(opcode, ino, f"{length}s", b"") in wrong, length
    if opcode in (wire.SYNCFS, wire.STATX, wire.TMPFILE):
        assert opcode == wire.SYNCFS or bench.error(opcode, 999999, "64s", b"") in wrong
        return
    for nodeid, handle in ((ino, 0), (ino, 1 << 63), (other, fh), (1, fh), (0, fh), (1 << 63, fh),
                           (ino, fh) if is_dir else (1, directory)):  # fmt: skip
        assert bench.error(opcode, nodeid, "Q56s", handle, b"") in wrong, (nodeid, handle)
    assert not caplog.records


def test_a_short_write_and_a_huge_read(bench):
    ino, fh = bench.create(b"file")
    assert bench.error(WRITE, ino, WRITE_IN, fh, 0, 5, 0, 0, 0, 0, data=b"four") == errno.EINVAL
    assert bench.error(READ, ino, READ_IN, fh, 0, 0xFFFFFFFF, 0, 0, 0, 0) == errno.EINVAL
    assert bench.error(WRITE, ino, WRITE_IN, fh, (1 << 64) - 2, 4, 0, 0, 0, 0, data=b"four") == errno.EFBIG
    assert bench.fs.inodes.read(ino).size == 0


@pytest.mark.parametrize("opcode", (0, 1, 19, 31, 37, 48, 49, 54, 63, 4096, 1 << 31))
def test_other_opcodes_are_not_known(bench, opcode):
    assert bench.error(opcode, 1, "Q", 0) == errno.ENOSYS


def test_every_handler_has_a_counter(bench):
    for name in ("readdir_plain", "fallocate", "lseek", "copy_file_range", "statx", "tmpfile", "syncfs"):
        assert hasattr(getattr(Operations, name), "is_handler") and name in bench.ops.counters


def test_random_requests(bench, caplog):
    """Fields of any value in any order: an answer or an errno, no log line, and a sound file system."""
    rng = random.Random(11)
    files = [bench.create(b"f%d" % n, b"x" * 5000 * n) for n in range(3)]
    directory = bench.ask("opendir", 1, ROOT)
    nodes = [0, 1, 2, 99, 1 << 40, *(ino for ino, _ in files)]
    handles = [0, directory, 1 << 63, *(fh for _, fh in files)]
    offsets = [0, 1, 4095, 4096, 5000, 20000, 1 << 20, (1 << 44) - 1, 1 << 44, 1 << 63, (1 << 64) - 1]
    small = [0, 1, 2, 3, 4, 7, 16, 17, 4096, 5000, 1 << 20, 0x80000000, 0xFFFFFFFF]
    caplog.set_level(logging.INFO)
    answers = Counter()

    async def all_of_them():
        for _ in range(20000):
            opcode = rng.choice(sorted(calls.CALLS))
            target = rng.choice(files)
            nodeid, fh = target if rng.random() < 0.7 else (rng.choice(nodes), rng.choice(handles))
            words = [rng.choice(offsets) for _ in range(rng.randrange(10))]
            words += [rng.choice(small) | rng.choice(small) << 32 for _ in range(3)]
            rng.shuffle(words)
            words.insert(0, fh)
            if opcode in (COPY, COPY_64) and rng.random() < 0.5:
                words[2:4], words[6:] = rng.choice(files), [0]
            arg = struct.pack(f"={len(words)}Q", *words)
            arg = arg[: rng.choice((len(arg), 64, 56, 40, 32, 24, 16, rng.randrange(64)))]
            data, who = bytes(rng.choice((0, 1, 4096, 5000))), rng.choice((ROOT, user()))
            call = Call(opcode, nodeid, arg, data, who)
            try:
                await calls.run(bench.ops, call)
                answers[0] += 1
            except (OSError, pyfuse3.FUSEError) as error:
                assert error.errno in errno.errorcode
                answers[error.errno] += 1

    trio.run(all_of_them)
    assert not caplog.records
    assert answers[0] > 2000 and len(answers) > 7, answers
    fsck(bench.fs)


def fsck(fs):
    with datakit.Kit() as kit:
        kit.fsck(fs)


def test_a_remount_read_only_that_fails_changes_nothing():
    """Native threads write and fsync as before."""
    limits = []

    def quiesce():
        raise OSError(errno.EIO, "a file that can't be made durable")

    operations = SimpleNamespace(tell_limits=lambda writes=True: limits.append(writes),
                                 files=SimpleNamespace(quiesce=quiesce))
    session = SimpleNamespace(fs=SimpleNamespace(readonly=False), operations=operations)
    with pytest.raises(OSError, match="durable"):
        FsSession._set_readonly(session, True)
    assert limits == [False, True] and not session.fs.readonly
