# SPDX-License-Identifier: MIT
"""ioctls on mounts, by the programs that people use: chattr, lsattr, fstrim, xfs_io.

pyfuse3 has no handler for IOCTL: with that transport the programs must be told so.
"""

import array
import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import struct
import subprocess

import mounts
import pytest

from daxfs.testing import log

pytestmark = [pytest.mark.mount, pytest.mark.transports]
MIB = 1 << 20
GETFLAGS, SETFLAGS32, FIGETBSZ = 0x80086601, 0x40046602, 2
GETFSLABEL, GETVERSION = 0x81009431, 0x80087601
DAX = 0x02000000


@pytest.fixture
def mount(ioctl_transport, region_factory):
    """mount(options): a mounted region."""
    return lambda *options: region_factory(options=",".join(("allow_other", *options))).mount()


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"no {program}")


def out(*args, uid=None) -> str:
    """What a program says that succeeds."""
    done = run(*args, uid=uid)
    assert done.returncode == 0, done
    return done.stdout


def run(*args, uid=None):
    who = ["setpriv", f"--reuid={uid}", "--clear-groups"] if uid else []
    return subprocess.run([*who, *map(str, args)], capture_output=True, text=True, timeout=30, check=False)


def attributes(path) -> set:
    """The letters of lsattr."""
    return set(out("lsattr", "-d", path).split()[0]) - {"-"}


def test_chattr_and_lsattr(mount):
    need("chattr", "lsattr")
    region = mount()
    file, directory = region.path / "file", region.path / "dir"
    file.write_bytes(b"content" * 1000)
    directory.mkdir()
    for path in (file, directory):
        for letters in ("x", "d", "A", "S", "xdAS"):
            out("chattr", f"+{letters}", path)
            assert attributes(path) == set(letters)
            out("chattr", f"-{letters}", path)
            assert attributes(path) == set()
    assert file.read_bytes() == b"content" * 1000
    for letter in "aicjtus":
        done = run("chattr", f"+{letter}", file)
        assert done.returncode and ("not supported" in done.stderr or "Inappropriate" in done.stderr), letter
    assert attributes(file) == set()
    out("chattr", "+x", file)
    region.remount()
    assert attributes(file) == {"x"} and file.read_bytes() == b"content" * 1000


def test_directories_hand_flags_down(mount):
    need("chattr", "lsattr")
    region = mount()
    out("chattr", "+xd", region.path)
    (region.path / "dir").mkdir()
    (region.path / "dir" / "file").write_bytes(b"x")
    os.symlink("nowhere", region.path / "link")
    fd = os.open(region.path / "dir", os.O_TMPFILE | os.O_RDWR)
    try:
        flags = array.array("I", [0, 0])
        fcntl.ioctl(fd, GETFLAGS, flags)
        assert flags[0] == DAX | 0x40
    finally:
        os.close(fd)
    assert attributes(region.path / "dir" / "file") == {"x", "d"} == attributes(region.path / "dir")
    region.umount()
    assert region.fsck("-n").returncode == 0


def test_xfs_io(mount):
    need("xfs_io")
    region = mount()
    file = region.path / "file"
    file.write_bytes(b"x" * 5000)
    out("xfs_io", "-c", "chattr +x", file)
    assert out("xfs_io", "-r", "-c", "lsattr", file).split()[0].strip("-") == "x"
    out("xfs_io", "-c", "chattr -x", file)
    assert out("xfs_io", "-r", "-c", "lsattr", file).split()[0].strip("-") == ""
    assert "not supported" in run("xfs_io", "-c", "chattr +a", file).stderr
    assert "not supported" in run("xfs_io", "-c", "chproj 7", file).stderr


def test_the_kernel_asks_who_owns_it(mount):
    """And a number that is not the VFS's does not get past it."""
    need("chattr", "setpriv")
    region = mount()
    file = region.path / "file"
    file.write_bytes(b"x")
    os.chmod(file, 0o666)
    assert "not permitted" in run("chattr", "+x", file, uid=1000).stderr
    os.chown(file, 1000, 1000)
    out("chattr", "+x", file, uid=1000)
    assert attributes(file) == {"x"}
    with open(file, "rb") as f, pytest.raises(OSError) as caught:
        fcntl.ioctl(f, SETFLAGS32, array.array("I", [0]))
    assert caught.value.errno == errno.ENOTTY and attributes(file) == {"x"}


def test_the_change_time_is_seen(mount):
    need("chattr")
    region = mount()
    file = region.path / "file"
    file.write_bytes(b"x")
    before = os.stat(file).st_ctime_ns
    out("chattr", "+x", file)
    assert os.stat(file).st_ctime_ns > before


def test_noatime(mount):
    """Of open files too, be it a native thread that answers the read."""
    need("chattr")
    region = mount("strictatime")
    file = region.path / "file"
    file.write_bytes(b"x" * 5000)

    with open(file, "rb", buffering=0) as f:

        def moved() -> bool:
            before = os.stat(file).st_atime_ns
            assert f.read(100) == b"x" * 100
            return os.stat(file).st_atime_ns > before

        assert moved()
        out("chattr", "+A", file)
        assert not moved()
        out("chattr", "-A", file)
        assert moved()


def test_numbers(mount):
    region = mount()
    with open(region.path / "file", "w+b") as f:
        word = array.array("I", [7, 7])
        fcntl.ioctl(f, GETVERSION, word)
        assert word[0] != 7 and word[1] == 7
        fcntl.ioctl(f, FIGETBSZ, word)
        assert word[0] == 4096
        for command in (0x1234, 0x40046609, 0xC0206F0B):
            with pytest.raises(OSError) as caught:
                fcntl.ioctl(f, command, bytearray(256))
            assert caught.value.errno == errno.ENOTTY


def test_label(mount):
    need("xfs_io", "setpriv")
    region = mount()

    def shown():
        fd = os.open(region.path, os.O_RDONLY)
        try:
            return fcntl.ioctl(fd, GETFSLABEL, bytes(256)).rstrip(b"\0")
        finally:
            os.close(fd)

    assert shown() == b""
    out("xfs_io", "-c", "label -s a-new-one", region.path)
    assert shown() == b"a-new-one"
    assert "not permitted" in run("xfs_io", "-r", "-c", "label -s other", region.path, uid=1000).stderr
    assert "Invalid" in run("xfs_io", "-c", f"label -s {'x' * 65}", region.path).stderr
    region.remount()
    assert shown() == b"a-new-one"
    region.umount()
    assert region.fsck("-n").returncode == 0
    assert "a-new-one" in out(mounts.command("daxfs"), "info", region.source)


def test_fstrim(mount):
    need("fstrim", "setpriv")
    region = mount()
    (region.path / "kept").write_bytes(b"k" * 5 * MIB)
    (region.path / "gone").write_bytes(b"g" * 40 * MIB)
    os.unlink(region.path / "gone")
    held = os.stat(region.source).st_blocks * 512
    assert "not permitted" in run("fstrim", region.path, uid=1000).stderr
    assert "trimmed" in out("fstrim", "-v", region.path)
    assert os.stat(region.source).st_blocks * 512 <= held - 39 * MIB
    assert (region.path / "kept").read_bytes() == b"k" * 5 * MIB
    (region.path / "again").write_bytes(b"a" * 45 * MIB)
    assert (region.path / "again").read_bytes() == b"a" * 45 * MIB
    region.remount()
    assert (region.path / "kept").read_bytes() == b"k" * 5 * MIB
    assert (region.path / "again").read_bytes() == b"a" * 45 * MIB


@pytest.mark.parametrize("command", ["shutdown", "shutdown -f"])
def test_shutdown(mount, command):
    """After it nothing goes on but the way out; the next mount has all that had returned."""
    need("xfs_io")
    region = mount()
    (region.path / "file").write_bytes(b"f" * 100_000)
    with open(region.path / "open", "w+b", buffering=0) as held:
        held.write(b"o" * 10_000)
        assert "not permitted" in run("xfs_io", "-r", "-x", "-c", "shutdown", region.path, uid=1000).stderr
        done = run("xfs_io", "-x", "-c", command, region.path)
        assert done.returncode == 0 and not done.stderr
        for call in (
            lambda: held.write(b"x"), lambda: os.pread(held.fileno(), 10, 0), lambda: os.fsync(held.fileno()),
            lambda: os.listdir(region.path), lambda: os.unlink(region.path / "file"),
            lambda: open(region.path / "new", "wb"), lambda: os.stat(region.path / "nothing"),
            lambda: os.ftruncate(held.fileno(), 5),
        ):  # fmt: skip
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.EIO
        assert os.statvfs(region.path).f_blocks and region.stat()["shut_down"]
    region.umount()
    assert region.fsck("-n").returncode == 0
    region.mount()
    assert region.stat()["replayed"]
    assert (region.path / "file").read_bytes() == b"f" * 100_000
    assert (region.path / "open").read_bytes() == b"o" * 10_000
    assert sorted(os.listdir(region.path)) == ["file", "open"]


def test_shutdown_by_numbers(mount):
    """Mode 0 has the kernel write mapped pages back first; a mode that there is not is refused."""
    region = mount()
    with open(region.path / "file", "w+b") as f:
        f.truncate(8192)
        with mmap.mmap(f.fileno(), 8192) as mapping:
            mapping[100:104] = b"here"
            fd = os.open(region.path, os.O_RDONLY)
            try:
                with pytest.raises(OSError) as caught:
                    fcntl.ioctl(fd, 0x8004587D, struct.pack("I", 3))
                assert caught.value.errno == errno.EINVAL
                fcntl.ioctl(fd, 0x8004587D, bytearray(struct.pack("I", 0)))
            finally:
                os.close(fd)
    region.umount()
    region.mount()
    assert region.stat()["replayed"] == 0
    assert (region.path / "file").read_bytes()[100:104] == b"here"


def test_shutdown_with_an_argument_that_lies_on_the_mount(mount):
    """The daemon reads it from the caller's memory, and so has to answer a page fault while it does."""
    region = mount()
    file = region.path / "file"
    file.write_bytes(struct.pack("I", 3) + bytes(4092))
    with open(file, "r+b") as f, mmap.mmap(f.fileno(), 4096) as mapping:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        there = ctypes.c_uint32.from_buffer(mapping)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.ioctl(f.fileno(), ctypes.c_ulong(0x8004587D), ctypes.byref(there)) == -1
        assert ctypes.get_errno() == errno.EINVAL  # mode 3: it was read
        del there
    assert file.read_bytes()[:4] == struct.pack("I", 3)


def test_recorded(mount):
    """What the handlers store is in the log, in its operation; a trim is refused."""
    need("chattr", "xfs_io", "fstrim")
    path = f"/dev/shm/{mounts.PREFIX}ioctl-record"
    try:
        region = mount(f"record={path}")
        (region.path / "file").write_bytes(b"x")
        out("chattr", "+x", region.path / "file")
        out("xfs_io", "-c", "label -s recorded", region.path)
        assert "not supported" in run("fstrim", region.path).stderr
        assert run("xfs_io", "-x", "-c", "shutdown -f", region.path).returncode == 0
        region.umount()
        got = log.load(path)
        names = [event.data.decode() for event in got.events if event.kind == log.BEGIN]
        assert [n for n in names if '"set_flags"' in n] and [n for n in names if '"label": "recorded"' in n]
        assert [n for n in names if '"shutdown", "mode": 1' in n]
    finally:
        if os.path.exists(path):
            os.unlink(path)


def test_without_a_native_transport(transport, region_factory):
    need("lsattr", "fstrim")
    if transport != "pyfuse3":
        pytest.skip("of transport=pyfuse3")
    region = region_factory().mount()
    for command in (("lsattr", "-d"), ("fstrim",)):
        done = run(*command, region.path)
        assert done.returncode and ("Inappropriate" in done.stderr or "not supported" in done.stderr)
