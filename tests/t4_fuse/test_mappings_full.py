# SPDX-License-Identifier: MIT
"""A pool's tmpfs that programs fill by stores through direct mappings: which errors, and what works on."""

import errno
import importlib
import os
import signal

import mounts
import pytest
from test_posix import table

memory = importlib.import_module(f"{table.__package__}.memory")
native = importlib.import_module(f"{table.__package__}.native")
pytestmark = pytest.mark.mount
MIB = mounts.MIB
SIZE = 64 * MIB


@pytest.fixture(params=["uring", pytest.param("dev", marks=pytest.mark.slow)])
def full(request):
    """(mount, descriptor, mapping) of a file that filled the pool; the region was allocated before."""
    reason = mounts.why_no_transport(request.param)
    if reason:
        pytest.skip(reason)
    with mounts.MountedRegion(16 * MIB, pool="never", room=24 * MIB, transport=request.param) as region:
        with open(region.source / "region", "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, region.size)
        region.mount()
        fd = os.open(region.path / "file", os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, SIZE)
        page = memory.Map(fd, SIZE)
        assert stored_until(page) == signal.SIGBUS
        yield region, fd, page
        page.unmap()
        os.close(fd)
        region.umount()
        checked = region.fsck("-n")
        assert checked.returncode == 0, checked.stdout


def stored_until(page) -> int:
    """A child stores to each page: the signal that ended it, or 0."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        for at in range(0, page.size, 4096):
            page.store(b"x", at)
        os._exit(0)
    return os.waitpid(pid, 0)[1] & 127


def no_space(call, *args):
    with pytest.raises(OSError) as failed:
        call(*args)
    assert failed.value.errno == errno.ENOSPC


def test_full_by_stores(full):
    """Holes can't be written or reserved, what has pages can; packed files, names and fsync work on."""
    region, fd, page = full
    no_space(os.pwrite, fd, b"y" * 9000, SIZE - 9000)
    no_space(os.pwrite, fd, b"y", SIZE)
    no_space(native.fallocate, fd, 0, 0, SIZE)
    assert os.fstat(fd).st_size == SIZE
    assert os.pwrite(fd, b"y" * 9000, 100) == 9000
    assert os.pread(fd, 9000, SIZE - 9000) == bytes(9000)
    os.fsync(fd)
    folder = region.path / "packed"
    folder.mkdir()
    mounts.set_dax(folder, False)
    (folder / "file").write_bytes(b"p" * 4 * MIB)
    for number in range(500):
        (region.path / f"name{number}").symlink_to("x" * 200)
    native.fallocate(fd, 3, 0, MIB)  # a hole is room for others
    (region.path / "other").write_bytes(b"o" * (MIB // 2))
    assert page.load(0) == b"\0" and (folder / "file").read_bytes() == b"p" * 4 * MIB


def test_page_taken_away_while_full(full):
    """MADV_REMOVE of written pages, others take the room: a write there is an error, no crash."""
    region, fd, page = full
    os.ftruncate(fd, 4 * MIB)
    os.pwrite(fd, b"k" * 4 * MIB, 0)
    page.advise("REMOVE", MIB, 4 * 4096)
    other = os.open(region.path / "other", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(other, SIZE)
    beside = memory.Map(other, SIZE)
    assert stored_until(beside) == signal.SIGBUS
    beside.unmap()
    for _ in range(2):
        with pytest.raises(OSError) as failed:
            os.pwrite(fd, b"t" * 100, MIB)
        assert failed.value.errno in (errno.EIO, errno.ENOSPC)
    assert os.pread(fd, 5 * 4096, MIB) == bytes(4 * 4096) + b"k" * 4096
    assert os.pwrite(fd, b"new", 0) == 3
    os.ftruncate(other, 0)
    assert os.pwrite(fd, b"t" * 100, MIB) == 100 and page.load(MIB, 101) == b"t" * 100 + b"\0"
    os.close(other)
