# SPDX-License-Identifier: MIT
"""The DAX flag and dax= on mounts of a pool directory: where data live, when they move, what users see."""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct

import mounts
import pytest

pytestmark = [pytest.mark.mount, pytest.mark.transports]
MIB = 1 << 20
GETFLAGS, SETFLAGS, FSGETXATTR, FSSETXATTR = 0x80086601, 0x40086602, 0x801C581F, 0x401C5820
DAX, XFLAG_DAX = 0x02000000, 0x8000
FSXATTR = struct.Struct("=5I8x")


@pytest.fixture
def mount(ioctl_transport, region_factory):
    """mount(options): a mounted pool directory."""
    return lambda options="", **how: region_factory(kind="pool", options=options, **how).mount()


@contextlib.contextmanager
def opened(path, flags=os.O_RDWR):
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def has_flag(path) -> bool:
    with opened(path, os.O_RDONLY) as fd:
        return bool(struct.unpack("=Q", fcntl.ioctl(fd, GETFLAGS, bytes(8)))[0] & DAX)


def set_flag(path, on: bool) -> None:
    with opened(path, os.O_RDONLY) as fd:
        set_flag_by(fd, on)


def set_flag_by(fd: int, on: bool) -> None:
    (old,) = struct.unpack("=Q", fcntl.ioctl(fd, GETFLAGS, bytes(8)))
    fcntl.ioctl(fd, SETFLAGS, struct.pack("=Q", old | DAX if on else old & ~DAX))


def set_flag_elsewhere(path, on: bool) -> None:
    """By another process, as chattr does it."""
    pid = os.fork()
    if not pid:
        try:
            set_flag(path, on)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


class Mapping:
    """A shared mapping without a descriptor; Python's own has a copy of it, which keeps the file open."""

    def __init__(self, fd: int, size: int):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *3 * (ctypes.c_int,), ctypes.c_long)
        self.munmap, self.size = libc.munmap, size
        self.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self.address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
        assert self.address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
        self.bytes = (ctypes.c_char * size).from_address(self.address)

    def close(self) -> None:
        self.munmap(self.address, self.size)


def ranges(region) -> list[str]:
    folder = region.source / "ranges"
    return sorted(os.listdir(folder)) if folder.exists() else []


def owned(region, path) -> bool:
    """Whether the file's data are in a range of its own: one of its number is there."""
    return any(name.startswith(f"{path.stat().st_ino:x}-") for name in ranges(region))


def make(region, name, data) -> os.PathLike:
    """A file, closed, as the daemon knows it."""
    (region.path / name).write_bytes(data)
    region.settled()
    return region.path / name


def moves(region) -> tuple[int, int]:
    found = region.settled()["dax"]["moves"]
    assert not found["failed"], found
    return found["to_own"], found["to_packed"]


def test_an_empty_file_changes_at_once(mount):
    region = mount()
    path = make(region, "f", b"")
    with opened(path) as one, opened(path) as two:
        set_flag_by(one, True)
        assert owned(region, path) and has_flag(path)
        os.pwrite(two, b"through the other", 0)
        assert os.pread(one, 99, 0) == b"through the other"
    assert path.read_bytes() == b"through the other"


def test_a_closed_file_moves_at_once_and_back(mount):
    region = mount()
    data = os.urandom(3 * MIB + 5)
    path = make(region, "f", data)
    set_flag(path, True)
    assert owned(region, path) and moves(region) == (1, 0)
    assert path.read_bytes() == data
    region.settled()
    set_flag(path, False)
    region.settled()
    assert path.read_bytes() == data and moves(region) == (1, 1)
    assert not owned(region, path) and ranges(region) == []
    region.umount()
    assert region.fsck("-n").returncode == 0


def test_by_fssetxattr(mount):
    region = mount()
    path = make(region, "f", b"data")
    with opened(path, os.O_RDONLY) as fd:
        fcntl.ioctl(fd, FSSETXATTR, FSXATTR.pack(XFLAG_DAX, 0, 0, 0, 0))
        assert FSXATTR.unpack(fcntl.ioctl(fd, FSGETXATTR, bytes(28)))[0] == XFLAG_DAX
    assert owned(region, path) and has_flag(path)


def test_in_use_it_takes_effect_after_the_last_close(mount):
    region = mount()
    data = os.urandom(MIB)
    path = make(region, "f", data)
    with opened(path) as fd, mmap.mmap(fd, MIB) as mapping:
        set_flag_elsewhere(path, True)
        assert has_flag(path) and not owned(region, path), "its pages are mapped by another"
        mapping[:5] = b"store"
        os.pwrite(fd, b"write", MIB - 5)
    region.settled()
    assert path.read_bytes() == b"store" + data[5:-5] + b"write"
    assert owned(region, path) and moves(region) == (1, 0)


def test_a_direct_mapping_keeps_the_range(mount):
    region = mount()
    data = os.urandom(MIB)
    path = make(region, "f", data)
    set_flag(path, True)
    region.settled()
    with opened(path) as fd:
        mapping = Mapping(fd, MIB)
    region.settled()
    set_flag(path, False)
    region.settled()
    assert path.read_bytes() == data and owned(region, path), "moved while it was mapped"
    mapping.bytes[:5] = b"store"
    assert path.read_bytes() == b"store" + data[5:]
    mapping.close()
    region.settled()
    assert path.read_bytes() == b"store" + data[5:]
    assert not owned(region, path)
    assert region.settled()["dax"]["moves"]["put_off"] > 0


def test_unsynced_data_move(mount):
    """write=cached leaves dirty lines where the data were."""
    region = mount("write=cached")
    data = os.urandom(MIB)
    with open(region.path / "f", "wb") as file:
        file.write(data)
        file.flush()
        set_flag_by(file.fileno(), True)
        assert owned(region, region.path / "f")
        file.write(b"more")
    assert region.settled()["tracker"]["dirty_bytes"] == 0
    region.kill()
    region.mount()
    assert (region.path / "f").read_bytes() == data + b"more"


def test_attributes_are_asked_for_again_after_a_move(mount):
    """The kernel kept those of the packed file; stores through mappings of the moved one change times."""
    region = mount()
    path = make(region, "f", os.urandom(MIB))
    os.utime(path, ns=(10**18, 10**18))
    with opened(path) as fd:
        set_flag_elsewhere(path, True)
        assert os.fstat(fd).st_mtime_ns == 10**18
    region.settled()
    with opened(path) as fd, mmap.mmap(fd, MIB) as mapping:
        assert path.stat().st_mtime_ns == 10**18
        mapping[0] = 1
        assert path.stat().st_mtime_ns > 10**18


def test_directories_hand_the_flag_down(mount):
    region = mount()
    (region.path / "a").mkdir()
    before = make(region, "a/before", b"1")
    set_flag(region.path / "a", True)
    (region.path / "a/b").mkdir()
    for name in ("a/f", "a/b/f"):
        path = make(region, name, b"2")
        assert has_flag(path) and owned(region, path)
    assert not has_flag(before) and not owned(region, before)


def test_dax_always(mount):
    region = mount("dax=always")
    path = make(region, "f", b"1" * 10000)
    assert owned(region, path) and not has_flag(path)
    set_flag(path, True)
    set_flag(path, False)
    assert moves(region) == (0, 0) and owned(region, path), "the flag is ignored"
    if not region.stat()["dax"]["why_not"]:
        with opened(path) as fd, mmap.mmap(fd, 10000):
            assert region.stat()["dax"]["direct"] == 1
    region.settled()
    region.remount("dax=inode")
    assert owned(region, path)
    assert path.read_bytes() == b"1" * 10000 and not owned(region, path)
    region.settled()
    region.remount("dax")
    assert "dax=always" in region.stat()["options"]
    assert path.read_bytes() == b"1" * 10000 and owned(region, path)


def test_dax_never(mount):
    region = mount("dax=never")
    path = make(region, "f", b"1" * 10000)
    set_flag(path, True)
    assert has_flag(path)
    with opened(path) as fd, mmap.mmap(fd, 10000) as mapping:
        found = region.stat()["dax"]
        assert (found["policy"], found["direct"]) == ("never", 0) and "never" in found["why_not"]
        mapping[:3] = b"222"
        assert os.pread(fd, 4, 0) == b"2221"


def test_dax_always_without_a_pool_directory(mount, region_factory):
    region = region_factory(options="dax=always")
    done = mounts.run(region.mount_command(), check=False)
    assert done.returncode == 1 and "pool directory" in done.stderr and "dax=inode" in done.stderr
    assert done.stderr.count("\n") == 1
    region.mount("dax=inode")
    assert region.stat()["dax"]["why_not"] == "the source is no pool directory"


def test_a_remount_can_not_change_it(mount):
    region = mount("dax=never")
    remount = [mounts.command("mount.daxfs"), "none", region.path, "-o"]
    for text in ("remount,dax=always", "remount,dax", "remount,ro,dax=inode"):
        done = mounts.run([*remount, text], check=False)
        assert done.returncode == 1 and "dax= can't be changed" in done.stderr and "never" in done.stderr
    assert not region.stat()["readonly"]
    mounts.run([*remount, "remount,noatime,dax=never"])
    assert "noatime" in region.stat()["options"] and "dax=never" in region.stat()["options"]


def test_a_file_that_finds_no_room_stays_and_is_counted(mount):
    """Once in the log, however often it is opened."""
    region = mount(size=16 * MIB)
    set_flag(region.path, True)
    path = make(region, "f", os.urandom(20 * MIB))
    set_flag(path, False)
    for _ in range(3):
        region.settled()
        with opened(path) as fd:
            assert os.pwrite(fd, b"x", 0) == 1
    assert region.settled()["dax"]["moves"]["failed"] >= 3 and owned(region, path)
    log = region.log_file.read_text()
    assert log.count("stays in its own range") == 1, log
    with opened(path) as fd, pytest.raises(OSError) as caught:
        fcntl.ioctl(fd, SETFLAGS, struct.pack("=Q", 0x10))  # immutable: refused, and the data stay
    assert caught.value.errno == errno.EOPNOTSUPP
