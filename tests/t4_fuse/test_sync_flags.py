# SPDX-License-Identifier: MIT
"""O_SYNC, O_DSYNC and the mount option sync: when the write has returned, nothing of it is dirty."""

import mmap
import os

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.transports]
SIZE = 8192


def dirty_after(region, flags: int) -> int:
    """Bytes that are dirty after one write over existing blocks through a descriptor with *flags*."""
    path = region.path / "file"
    buffer = mmap.mmap(-1, SIZE)  # page aligned, as O_DIRECT wants it
    buffer[:] = b"a" * SIZE
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    assert os.pwrite(fd, buffer, 0) == SIZE
    os.fsync(fd)
    writer = os.open(path, os.O_RDWR | flags)
    buffer[:] = b"b" * SIZE
    assert os.pwrite(writer, buffer, 0) == SIZE
    dirty = region.stat()["tracker"]["dirty_bytes"]
    os.close(writer)
    os.close(fd)
    return dirty


@pytest.fixture
def cached(mount_factory):
    return mount_factory(options="write=cached")


@pytest.mark.parametrize("direct", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_flags(cached, direct):
    """The kernel sends FSYNC after a buffered write alone; after a direct one it is ours to do."""
    assert dirty_after(cached, direct) == SIZE
    assert dirty_after(cached, direct | os.O_DSYNC) == 0
    assert dirty_after(cached, direct | os.O_SYNC) == 0


@pytest.mark.parametrize("direct", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_mount_option(mount_factory, direct):
    assert dirty_after(mount_factory(options="write=cached,sync"), direct) == 0
