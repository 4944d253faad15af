# SPDX-License-Identifier: MIT
"""IOCTL requests without a mount: raw bytes as the kernel sends them, commands and structs made here anew."""

import ctypes
import errno
import itertools
import logging
import os
import random
import struct
from types import SimpleNamespace

import callkit
import datakit
import pytest
import trio
from callkit import ROOT, Call, user

from daxfs import layout as L
from daxfs.fuse import ioctl, observing
from daxfs.fuse.calls import run
from daxfs.meta import trim
from daxfs.region import Region

PAGE, IOCTL, READ = 4096, 39, 15
READ_IN = "QQIIQII"
_WRITE, _READ = 1, 2


def ioc(direction: int, letter, number: int, size: int) -> int:
    """_IOC of <asm-generic/ioctl.h>."""
    return direction << 30 | size << 16 | (letter if isinstance(letter, int) else ord(letter)) << 8 | number


GETFLAGS, SETFLAGS = ioc(_READ, "f", 1, 8), ioc(_WRITE, "f", 2, 8)
GETFLAGS32, SETFLAGS32 = ioc(_READ, "f", 1, 4), ioc(_WRITE, "f", 2, 4)
FSGETXATTR, FSSETXATTR = ioc(_READ, "X", 31, 28), ioc(_WRITE, "X", 32, 28)
GETVERSION, GETVERSION32 = ioc(_READ, "v", 1, 8), ioc(_READ, "v", 1, 4)
GETFSLABEL, SETFSLABEL = ioc(_READ, 0x94, 49, 256), ioc(_WRITE, 0x94, 50, 256)
FITRIM, GOINGDOWN = ioc(_READ | _WRITE, "X", 121, 24), ioc(_READ, "X", 125, 4)
FL = {"sync": 0x8, "nodump": 0x40, "noatime": 0x80, "dax": 0x02000000}
XFLAG = {"sync": 0x20, "noatime": 0x40, "nodump": 0x80, "dax": 0x8000}
MEDIA = {"sync": L.FLAG_SYNC, "nodump": L.FLAG_NODUMP, "noatime": L.FLAG_NOATIME, "dax": L.FLAG_DAX}
OUT = struct.pack("=iIII", 0, 0, 0, 0)


class Bench(callkit.Bench):
    """Raw ioctls on handles."""

    def ioctl(self, ino, fh, command, data=b"", out=None, arg=0, flags=0, who=ROOT) -> bytes:
        """The data of the reply. *out*: room that the kernel has, else what the command says it reads."""
        size = command >> 16 & 0x3FFF
        out = (size if command >> 30 & _READ else 0) if out is None else out
        reply = self.call(IOCTL, ino, "QIIQII", fh, flags, command, arg, len(data), out, data=data, who=who)
        assert reply[:16] == OUT and len(reply) - 16 <= out
        return reply[16:]

    def code(self, *args, **more) -> int:
        try:
            self.ioctl(*args, **more)
        except Exception as error:
            return error.errno
        return 0

    def directory(self, ino: int) -> int:
        """A handle on a directory."""
        return self.ask("opendir", ino, ROOT)

    def flags(self, ino, fh) -> int:
        """As the VFS asks: an unsigned int, in a reply of just that size."""
        reply = self.ioctl(ino, fh, GETFLAGS, out=4)
        assert len(reply) == 4
        return struct.unpack("=I", reply)[0]

    def set_flags(self, ino, fh, bits, **more) -> int:
        return self.code(ino, fh, SETFLAGS, struct.pack("=I", bits), **more)

    def xflags(self, ino, fh) -> int:
        reply = self.ioctl(ino, fh, FSGETXATTR)
        assert len(reply) == 28
        return struct.unpack_from("=I", reply)[0]

    def set_xflags(self, ino, fh, bits, extsize=0, projid=0, cow=0, **more) -> int:
        data = struct.pack("=IIIII8x", bits, extsize, 99, projid, cow)
        return self.code(ino, fh, FSSETXATTR, data, **more)

    def shut(self, mode: int, who=ROOT, arg=None) -> int:
        """GOINGDOWN with the mode in our own memory, where the kernel leaves it."""
        self.word = ctypes.c_uint32(mode)
        where = ctypes.addressof(self.word) if arg is None else arg
        ino, fh = 1, self.root
        return self.code(ino, fh, GOINGDOWN, arg=where, who=who)

    @property
    def root(self) -> int:
        if not hasattr(self, "_root"):
            self._root = self.directory(1)
        return self._root


@pytest.fixture
def bench():
    with datakit.Kit() as kit:
        one = Bench(kit)
        one.kit = kit
        yield one


def test_commands_are_the_kernels():
    assert set(ioctl.COMMANDS) == {
        GETFLAGS, SETFLAGS, FSGETXATTR, FSSETXATTR, GETVERSION, GETVERSION32, GETFSLABEL, SETFSLABEL, FITRIM,
        GOINGDOWN, observing.ABOUT, observing.OBSERVE, observing.FORGET}  # fmt: skip


# -- flags ------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [c for n in range(5) for c in itertools.combinations(FL, n)], ids="+".join)
def test_flags_of_files_and_directories(bench, chosen):
    """Each combination by both pairs of commands, read back by both."""
    sums = [sum(table[name] for name in chosen) for table in (FL, XFLAG, MEDIA)]
    file = bench.create(b"file", b"content")
    directory = bench.ask("mkdir", 1, b"dir", 0o755, ROOT).st_ino
    for ino, fh in (file, (directory, bench.directory(directory))):
        for change, bits in ((bench.set_flags, sums[0]), (bench.set_xflags, sums[1])):
            assert change(ino, fh, bits) == 0
            assert (bench.flags(ino, fh), bench.xflags(ino, fh)) == (sums[0], sums[1])
            assert bench.fs.inodes.read(ino).flags == sums[2]
            assert bench.set_flags(ino, fh, 0) == 0 == bench.flags(ino, fh)
    assert bench.content(file[1]) == b"content"


def test_what_is_not_kept_is_refused(bench):
    """EOPNOTSUPP, and nothing changes: append, immutable, and each other bit there is."""
    ino, fh = bench.create(b"file")
    assert bench.set_flags(ino, fh, FL["dax"]) == 0
    for bit in range(32):
        known_fl, known_x = 1 << bit in FL.values(), 1 << bit in XFLAG.values()
        if not known_fl:
            assert bench.set_flags(ino, fh, FL["sync"] | 1 << bit) == errno.EOPNOTSUPP, bit
        if not known_x:
            assert bench.set_xflags(ino, fh, XFLAG["sync"] | 1 << bit) == errno.EOPNOTSUPP, bit
        assert bench.flags(ino, fh) == FL["dax"]
    assert bench.set_xflags(ino, fh, 0, projid=5) == errno.EOPNOTSUPP
    assert bench.set_xflags(ino, fh, XFLAG["dax"], extsize=4096, cow=8192) == 0  # hints without their flags


def test_a_change_past_the_vfs_is_refused(bench):
    """With an argument nobody has asked whether the caller owns the file; 32-bit numbers are no commands."""
    ino, fh = bench.create(b"file")
    assert bench.code(ino, fh, SETFLAGS, struct.pack("=Q", FL["dax"]), arg=0x7000) == errno.EOPNOTSUPP
    assert bench.set_xflags(ino, fh, XFLAG["dax"], arg=0x7000) == errno.EOPNOTSUPP
    assert bench.code(ino, fh, SETFLAGS32, struct.pack("=I", FL["dax"]), arg=0x7000) == errno.ENOTTY
    assert bench.code(ino, fh, SETFLAGS32, struct.pack("=I", FL["dax"])) == errno.ENOTTY
    assert bench.code(ino, fh, GETFLAGS32) == errno.ENOTTY
    assert not bench.flags(ino, fh)


def test_number_of_extents_and_generation(bench):
    ino, fh = bench.create(b"file")
    for page in range(5):
        bench.ask("write", fh, 2 * page * PAGE, b"x")
    assert struct.unpack("=IIIII8x", bench.ioctl(ino, fh, FSGETXATTR)) == (0, 0, 5, 0, 0)
    generation = struct.pack("=I", bench.fs.inodes.read(ino).generation)
    assert bench.ioctl(ino, fh, GETVERSION) == generation == bench.ioctl(ino, fh, GETVERSION32)


def test_flags_are_handed_down(bench):
    directory = bench.ask("mkdir", 1, b"dir", 0o755, ROOT).st_ino
    bench.set_flags(directory, bench.directory(directory), sum(FL.values()))
    info, entry = bench.ask("create", directory, b"f", 0o644, os.O_RDWR, ROOT)
    assert bench.flags(entry.st_ino, info.fh) == sum(FL.values())
    assert bench.ops.handles[info.fh].dsync


def test_sync_from_the_next_open_on_and_noatime_at_once(bench, monkeypatch):
    ino, fh = bench.create(b"file")
    synced = []
    monkeypatch.setattr(bench.ops.files, "fsync", lambda node: synced.append(node.ino))
    bench.set_flags(ino, fh, FL["sync"] | FL["noatime"])
    bench.ask("write", fh, 0, b"before")
    assert not synced
    info = bench.ask("open", ino, os.O_RDWR, ROOT)
    bench.ask("write", info.fh, 0, b"after")
    assert synced == [ino]
    bench.fs.atime = "strictatime"
    atime = bench.fs.inodes.read(ino).atime
    bench.call(READ, ino, READ_IN, fh, 0, 10, 0, 0, 0, 0)
    assert bench.fs.inodes.read(ino).atime == atime
    bench.set_flags(ino, fh, 0)
    bench.call(READ, ino, READ_IN, info.fh, 0, 10, 0, 0, 0, 0)
    assert bench.fs.inodes.read(ino).atime > atime


def test_the_kernel_is_told_of_the_new_change_time(bench, caplog):
    ino, fh = bench.create(b"file")
    told = []
    bench.ops.notify = lambda ino, attr_only: told.append((ino, attr_only))
    before = bench.fs.inodes.read(ino).ctime
    bench.set_flags(ino, fh, FL["dax"])
    assert told == [(ino, True)] and bench.fs.inodes.read(ino).ctime > before

    codes = [errno.ENODEV, errno.ENOENT]

    def broken(ino, attr_only):
        raise OSError(codes.pop(), "no")

    bench.ops.notify = broken
    with caplog.at_level(logging.WARNING):
        assert bench.set_flags(ino, fh, 0) == 0 == bench.set_flags(ino, fh, 0)
    assert [record.args[0] for record in caplog.records] == [ino]


# -- label ------------------------------------------------------------------------------


def label(text: bytes) -> bytes:
    return text.ljust(256, b"\0")


def test_label(bench):
    ino, fh = bench.create(b"file")
    assert bench.ioctl(ino, fh, GETFSLABEL) == bytes(256)
    for text in (b"x", b"64 bytes, which are all there is room for".ljust(64, b"."), b"\xff\xfe", b""):
        assert bench.code(1, bench.root, SETFSLABEL, label(text), arg=1) == 0
        assert bench.ioctl(ino, fh, GETFSLABEL, arg=1) == label(text)
        assert bench.kit.crash_copy(bench.fs).sb.label == text


def test_label_refused(bench):
    def code(data, **more):
        return bench.code(1, bench.root, SETFSLABEL, data, arg=1, **more)

    assert code(label(b"kept")) == 0
    assert code(label(b"x" * 65)) == code(b"x" * 256) == code(b"x") == code(b"") == errno.EINVAL
    assert code(label(b"mine"), who=user()) == errno.EPERM
    bench.fs.readonly = True
    assert code(label(b"mine")) == errno.EROFS
    assert bench.ioctl(1, bench.root, GETFSLABEL, who=user()) == label(b"kept")
    assert code(label(b"behind\0it")) == errno.EROFS


# -- trim -------------------------------------------------------------------------------


def test_trim(bench):
    ino, fh = bench.create(b"file", datakit.noise(2 << 20))
    bench.ask("unlink", 1, b"file", ROOT)
    bench.ask("release", fh)
    trio.run(bench.ops.forget, [(ino, 1)])
    bench.fs.journal.settle()
    free, path = bench.fs.statfs()["bfree"] * PAGE, bench.fs.region.sources[0].path
    held = os.stat(path).st_blocks * 512
    reply = bench.ioctl(1, bench.root, FITRIM, struct.pack("=QQQ", 0, 2**64 - 1, 0), arg=1)
    assert struct.unpack("=QQQ", reply) == (0, free, 0)
    assert os.stat(path).st_blocks * 512 <= held - (2 << 20)
    shown = bench.ops.stats.snapshot()["operations"]
    assert shown["trim"]["count"] == 1 <= shown["trim_step"]["count"]


def test_trim_refused(bench):
    def code(start=0, length=2**64 - 1, least=0, **more):
        return bench.code(1, bench.root, FITRIM, struct.pack("=QQQ", start, length, least), **more)

    size = bench.fs.sb.npages * PAGE
    assert code(who=user()) == errno.EPERM
    assert code(start=size) == code(length=PAGE - 1) == code(least=size + 1) == errno.EINVAL
    assert bench.code(1, bench.root, FITRIM, bytes(23)) == errno.EINVAL
    bench.ops.trims = False
    assert code() == errno.EOPNOTSUPP
    bench.ops.trims = True
    bench.fs.readonly = True
    assert code() == errno.EROFS


def test_trim_where_the_source_can_not(bench, monkeypatch):
    monkeypatch.setattr(bench.fs.region.sources[0], "kind", "devdax")
    assert bench.code(1, bench.root, FITRIM, struct.pack("=QQQ", 0, 2**64 - 1, 0)) == errno.EOPNOTSUPP


def test_trim_lets_others_run_and_can_be_interrupted(bench, monkeypatch):
    monkeypatch.setattr(trim, "STEP_PAGES", 64)
    arg = struct.pack("=QIIQII", bench.root, 0, FITRIM, 1, 24, 24)
    seen = []

    async def other(call):
        while len(seen) < 3:
            seen.append(await bench.ops.lookup(1, b"file", ROOT))
            await trio.sleep(0)
        call.interrupted = True

    async def both():
        call = Call(IOCTL, 1, arg, struct.pack("=QQQ", 0, 2**64 - 1, 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other, call)
            with pytest.raises(OSError) as caught:
                await run(bench.ops, call)
        assert caught.value.errno == errno.EINTR

    trio.run(both)
    assert len(seen) == 3


# -- shutdown ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_shutdown(bench, mode, caplog):
    ino, fh = bench.create(b"file", b"data" * 5000)
    other = bench.create(b"gone", b"x" * 9000)
    bench.ask("unlink", 1, b"gone", ROOT)
    order = []

    async def kernel_sync(by_request=False):
        order.append(("sync", bench.fs.shut, by_request))

    bench.ops.kernel_sync = kernel_sync
    assert not bench.ops.server.nothing
    assert bench.shut(mode) == 0 == bench.shut(mode)
    assert order == ([("sync", False, True)] if mode == 0 else []) and bench.ops.server.nothing
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len([record for record in caplog.records if "shut down" in record.message]) == 1
    for call in (
        lambda: bench.ask("lookup", 1, b"file", ROOT), lambda: bench.ask("getattr", ino, ROOT),
        lambda: bench.ask("write", fh, 0, b"x"), lambda: bench.ask("read", fh, 0, 10),
        lambda: bench.ask("fsync", fh, False), lambda: bench.ask("create", 1, b"n", 0o644, os.O_RDWR, ROOT),
        lambda: bench.flags(ino, fh), lambda: bench.ioctl(ino, fh, GETFSLABEL),
        lambda: bench.ask("opendir", 1, ROOT), lambda: bench.ask("syncfs"),
    ):  # fmt: skip
        with pytest.raises(Exception) as caught:
            call()
        assert caught.value.errno == errno.EIO
    before = bytes(bench.fs.mem)
    assert bench.ask("statfs", ROOT).f_blocks
    bench.ask("flush", fh)
    for handle in (fh, other[1]):
        bench.ask("release", handle)
    bench.ask("releasedir", bench.root)
    trio.run(bench.ops.forget, [(ino, 1), (other[0], 1), (1, 1)])
    bench.ops.files.write_back()
    bench.fs.unmount()
    assert bytes(bench.fs.mem) == before
    after = bench.kit.crash_copy(bench.fs)
    assert (after.replayed == 0) == (mode == 0)
    assert not after.orphans and after.inodes.read(ino).size == 20000
    bench.kit.fsck(after)


def test_shutdown_makes_durable_what_its_mode_says():
    """Dirty pages of write=cached are flushed by mode 0 alone."""
    for mode, left in ((0, 0), (1, 1), (2, 1)):
        with datakit.Kit() as kit:
            bench = Bench(kit, write="cached")
            _, fh = bench.create(b"file", b"a" * PAGE)
            bench.ask("write", fh, 0, b"b" * PAGE)
            node = bench.ops.handles[fh].node
            assert node.map.dirty.count and bench.shut(mode) == 0
            assert node.map.dirty.count == left


def test_shutdown_refused(bench, caplog):
    assert bench.shut(0, who=user()) == errno.EPERM
    assert bench.shut(3) == bench.shut(2**32 - 1) == errno.EINVAL
    for bad in (0, 8, 2**64 - 1, 2**63):
        assert bench.shut(0, arg=bad) == errno.EFAULT
    gone = SimpleNamespace(uid=0, gid=0, pid=0)
    assert bench.shut(0, who=gone) == errno.EFAULT
    assert not bench.fs.shut and bench.ask("statfs", ROOT).f_blocks


def test_a_caller_whose_memory_does_not_answer(bench, monkeypatch):
    """It must not stop the loop: its page may be one of our own."""
    monkeypatch.setattr(ioctl, "_PATIENCE", 0.05)
    read, write = os.pipe()
    monkeypatch.setattr(ioctl, "_memory", lambda pid, mode, action: os.read(read, 1))
    try:
        assert bench.shut(0) == errno.EFAULT
    finally:
        os.write(write, b"x")
        os.close(write)
        os.close(read)
    assert not bench.fs.shut


# -- what is malformed ------------------------------------------------------------------


def test_unknown_commands(bench):
    ino, fh = bench.create(b"file")
    fibmap, figetbsz, fiemap = ioc(0, 0, 1, 0), ioc(0, 0, 2, 0), ioc(3, "f", 11, 32)
    for command in (0, 0x5401, fibmap, figetbsz, fiemap, ioc(_WRITE, "f", 9, 4), 2**32 - 1):
        assert bench.code(ino, fh, command, b"\0" * 4) == errno.ENOTTY


def test_malformed_requests(bench):
    ino, fh = bench.create(b"file")
    good = struct.pack("=QIIQII", fh, 0, SETFLAGS, 0, 4, 0)
    for cut in range(len(good)):
        assert error(bench, Call(IOCTL, ino, good[:cut], b"\0" * 4)) == errno.EINVAL
    assert error(bench, Call(IOCTL, ino, good, b"\0" * 3)) == errno.EINVAL
    assert error(bench, Call(IOCTL, 1, good, b"\0" * 4)) == errno.EBADF
    assert bench.code(ino, 999, GETFLAGS) == errno.EBADF
    assert bench.code(ino, fh, GETFLAGS, out=3) == bench.code(ino, fh, FSGETXATTR, out=27) == errno.EINVAL
    assert bench.code(ino, fh, GETFSLABEL, out=255) == bench.code(ino, fh, GETVERSION, out=0) == errno.EINVAL
    assert bench.code(ino, fh, SETFLAGS, bytes(3)) == errno.EINVAL
    assert bench.code(ino, fh, FSSETXATTR, bytes(20)) == errno.EINVAL
    assert bench.code(ino, fh, GETFLAGS, flags=2) == errno.EINVAL
    assert bench.code(ino, fh, GETFLAGS, flags=1 << 4) == 0


def error(bench, call) -> int:
    with pytest.raises(Exception) as caught:
        bench.run(call)
    return caught.value.errno


def test_random_requests(bench, monkeypatch):
    """Whatever arrives has an errno or a reply; 4,000 of them, half with a command that is known."""
    monkeypatch.setattr(Region, "punch", lambda self, pfn, pages: pages)
    rng, known = random.Random(5), [*ioctl.COMMANDS]
    ino, fh = bench.create(b"file")
    codes = set()
    for _ in range(4000):
        command = rng.choice(known) if rng.random() < 0.5 else rng.getrandbits(32)
        if command == GOINGDOWN:
            continue
        number = rng.choice([fh, fh, fh, bench.root, rng.getrandbits(64)])
        size, out = rng.choice([0, 4, 8, 24, 28, 256, 5000]), rng.choice([0, 4, 8, 24, 28, 256, 2**32 - 1])
        flags, where = rng.choice([0, 8, 16, 255]), rng.choice([0, 1])
        arg = struct.pack("=QIIQII", number, flags, command, where, size, out)
        data = rng.randbytes(rng.choice([size, size, rng.randrange(300)]))
        try:
            bench.run(Call(IOCTL, rng.choice([ino, ino, 1]), arg, data, rng.choice([ROOT, user()])))
            codes.add(0)
        except OSError as problem:
            codes.add(problem.errno)
        except Exception as problem:
            codes.add(problem.errno)
    assert codes == {0, errno.EINVAL, errno.ENOTTY, errno.EBADF, errno.EPERM, errno.EOPNOTSUPP}
    bench.kit.fsck(bench.fs)
