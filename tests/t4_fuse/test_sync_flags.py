# SPDX-License-Identifier: MIT
"""O_SYNC, O_DSYNC and the mount option sync: when the write has returned, nothing of it is dirty."""

import mmap
import os

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.transports]
SIZE = 8192


def dirty_after(region, flags: int, how: int = 0, at: int = 0) -> int:
    """Bytes that are dirty after one write over existing blocks through a descriptor with *flags*.

    *how*: RWF_ flags of that write alone; *at*: where it begins. File and write have SIZE bytes.
    """
    path = region.path / "file"
    buffer = mmap.mmap(-1, SIZE)  # page aligned, as O_DIRECT wants it
    buffer[:] = b"a" * SIZE
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    assert os.pwrite(fd, buffer, 0) == SIZE
    os.fsync(fd)
    writer = os.open(path, os.O_RDWR | flags)
    buffer[:] = b"b" * SIZE
    assert os.pwritev(writer, [buffer], at, how) == SIZE
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


@pytest.mark.parametrize("how", [os.RWF_DSYNC, os.RWF_SYNC], ids=["RWF_DSYNC", "RWF_SYNC"])
@pytest.mark.parametrize("direct", [0, os.O_DIRECT], ids=["buffered", "direct"])
@pytest.mark.parametrize("at", [0, SIZE // 2], ids=["over", "growing"])
def test_flags_of_one_write(cached, at, direct, how, transport):
    """A direct one says it alone: the kernel sends no FSYNC. One that needs blocks is Python's."""
    if direct and transport == "pyfuse3":
        pytest.skip("pyfuse3 does not tell of them (docs/status.md)")
    assert dirty_after(cached, direct, 0, at) == SIZE - at
    assert dirty_after(cached, direct, how, at) == 0


@pytest.mark.parametrize("direct", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_mount_option(mount_factory, direct):
    assert dirty_after(mount_factory(options="write=cached,sync"), direct) == 0
