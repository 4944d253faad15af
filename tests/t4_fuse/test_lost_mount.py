# SPDX-License-Identifier: MIT
"""A source that somebody truncates under the mount: each request is answered, the daemon lives and says why.

Before daxfs/native/lost.c the first touch of a page that was gone ended the daemon with SIGBUS.
"""

import errno
import os

import mounts
import pytest

pytestmark = [pytest.mark.mount, pytest.mark.transports]
MIB = mounts.MIB
WHY = "was truncated under the mount"


def refused(call, *args) -> None:
    with pytest.raises(OSError) as caught:
        call(*args)
    assert caught.value.errno == errno.EIO, caught.value


@pytest.fixture
def region(mount_factory):
    made = mount_factory(64 * MIB)
    made.expect_log(r"CRITICAL|ended: |\bEIO\b|Input/output error|truncated under")
    (made.path / "old").write_bytes(os.urandom(4096) * 2048)
    (made.path / "dir").mkdir()
    os.sync()
    return made


def ended(region) -> str:
    """Unmount; what the log says of the end."""
    region.umount()
    text = region.log_file.read_text()
    assert "Traceback" not in text
    return text


FIRST = {
    "read": lambda fd, path: os.pread(fd, MIB, 5 * MIB),
    "short read": lambda fd, path: os.pread(fd, 100, 6 * MIB),
    "overwrite": lambda fd, path: [os.pwrite(fd, b"x" * MIB, at * MIB) for at in range(8)],
    "append": lambda fd, path: [os.pwrite(fd, b"x" * MIB, (8 + at) * MIB) for at in range(8)],
    "create": lambda fd, path: (path / "new").write_bytes(b"x" * 5000),
    "stat": lambda fd, path: [os.stat(path / "dir"), os.listdir(path / "dir"), (path / "dir" / "x").touch()],
}


@pytest.mark.parametrize("first", FIRST)
def test_everything_answers_eio_and_the_log_says_why(region, first):
    """Whatever comes first. All but the first page is gone: that one holds the superblock."""
    fd = os.open(region.path / "old", os.O_RDWR | os.O_DIRECT if "read" not in first else os.O_RDWR)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.truncate(region.source, 4096)
        refused(FIRST[first], fd, region.path)
        refused(os.pread, fd, 4096, 7 * MIB)
        refused(os.pwrite, fd, b"x" * 4096, 0)
        refused(os.fsync, fd)
        refused(os.mkdir, region.path / "another")
        assert region.daemon_alive()
        assert os.statvfs(region.path).f_blocks > 0
        assert region.stat()["shut_down"] is True
    finally:
        os.close(fd)
    text = ended(region)
    assert f"{region.source}: {WHY}; all requests answer EIO" in text
    assert "ended: " in text and "run fsck.daxfs" in text
    done = mounts.run(region.mount_command(), check=False)
    assert done.returncode == 32 and str(region.source) in done.stderr and "Traceback" not in done.stderr


def test_what_nobody_touched_is_not_missed(region):
    """The end of the region goes, where nothing was ever stored: the mount works on until it is needed."""
    os.truncate(region.source, 40 * MIB)
    data = os.urandom(MIB)
    (region.path / "dir" / "file").write_bytes(data)
    os.sync()
    assert (region.path / "dir" / "file").read_bytes() == data
    text = ended(region)
    assert WHY not in text
    done = mounts.run(region.mount_command(), check=False)
    assert done.returncode == 32 and "shrunken" in done.stderr


def test_the_first_to_notice_is_the_end(region):
    """Nothing asks after the truncation: umount itself meets it."""
    (region.path / "dir" / "file").write_bytes(b"x")
    os.truncate(region.source, 4096)
    text = ended(region)
    assert WHY in text and "run fsck.daxfs" in text


def test_removed(region):
    """A source that is unlinked stays as it is until the daemon ends; then it is gone, and mount says so."""
    os.unlink(region.source)
    (region.path / "dir" / "file").write_bytes(b"x")
    assert (region.path / "dir" / "file").read_bytes() == b"x"
    region.umount()
    done = mounts.run(region.mount_command(), check=False)
    assert done.returncode == 32 and "No such file" in done.stderr
