# SPDX-License-Identifier: MIT
"""Ranges, and what holds them, that somebody cuts or removes under the mount: each file for itself.

What a request is answered is EIO or EUCLEAN (the error of damaged metadata); never a made-up zero, a wrong
errno, or an end of the daemon.
"""

import errno
import mmap
import os
import shutil
import signal

import mounts
import pytest
from mapped_program import Program
from test_direct import PAGE, Pool, opened
from test_revoke_mount import written

pytestmark = pytest.mark.mount
MIB = 1 << 20
DAMAGED = (errno.EIO, errno.EUCLEAN)
WORDS = (r"its range|was removed|Input/output error|CRITICAL|ended: |went away|can't be removed|"
         r"truncated under|\bEIO\b")


@pytest.fixture
def pool(direct_transport):
    made = Pool(transport=direct_transport)
    made.region.expect_log(WORDS)
    yield made
    made.close()


def refused(call, *args) -> None:
    with pytest.raises(OSError) as caught:
        call(*args)
    assert caught.value.errno in DAMAGED, caught.value


def others_work(pool) -> None:
    data = os.urandom(3 * PAGE)
    path = written(pool, "beside", data)
    with opened(path) as fd, mmap.mmap(fd, 0) as m:
        assert m[:] == data == path.read_bytes()
    path.unlink()


def ended(pool) -> str:
    pool.region.umount()
    text = pool.region.log_file.read_text()
    assert "Traceback" not in text and "unexpected" not in text
    return text


def refuses_to_mount(pool, *words: str) -> None:
    done = mounts.run(pool.region.mount_command(), check=False)
    assert done.returncode == 32 and "Traceback" not in done.stderr, done
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("pages", [0, 5])
def test_a_range_that_is_cut(pool, pages):
    """Somebody else truncates it: EIO where data were, SIGBUS for who maps it, and the others go on."""
    path = written(pool, "f", b"f" * 10 * PAGE)
    program = Program(path)
    with opened(path) as fd:
        assert os.pread(fd, 3, 9 * PAGE) == b"fff"
        os.pwrite(fd, b"g" * PAGE, 9 * PAGE)  # so that the daemon has it mapped too
        os.truncate(pool.range_of(path), pages * PAGE)
        for _ in range(2):
            refused(os.pread, fd, PAGE, 9 * PAGE)
            refused(os.pwrite, fd, b"x" * PAGE, 9 * PAGE)
        assert not pages or os.pread(fd, 3, 0) == b"fff"
        assert os.fstat(fd).st_size == 10 * PAGE
        others_work(pool)
        assert pool.region.daemon_alive() and not pool.region.stat()["shut_down"]
    if pages:
        assert program.say("look") == "fffff"
    else:
        assert program.dies_of_sigbus()
    program.end()
    pool.becomes(0)
    ended(pool)
    pool.region.mount()
    refused(path.read_bytes)
    others_work(pool)
    ended(pool)


def test_a_range_that_is_cut_and_killed(pool):
    """After a crash the mount looks at sizes, and says what is wrong."""
    path = written(pool, "f", b"f" * 10 * PAGE)
    os.truncate(pool.range_of(path), PAGE)
    name = pool.range_of(path).name
    pool.region.kill()
    refuses_to_mount(pool, f"inode {int(name.split('-')[0], 16)}", "too short", "fsck.daxfs")


@pytest.mark.parametrize("what", ["range", "ranges"])
def test_a_range_that_is_removed(pool, what):
    """While one file is open and one is not. The open one's data are still there, in the open file."""
    path, closed = written(pool, "f", b"f" * 10 * PAGE), written(pool, "closed", b"c" * PAGE)
    pool.becomes(0)
    with opened(path) as fd, mmap.mmap(fd, 0) as m:
        folder = pool.below / "pool" / "ranges"
        if what == "range":
            pool.range_of(path).unlink()
            pool.range_of(closed).unlink()
        else:
            shutil.rmtree(folder)
        m[:4] = b"mine"
        assert os.pread(fd, 5, 0) == b"minef"
        os.pwrite(fd, b"x" * PAGE, 0)
        refused(os.fstat, fd)
        refused(os.ftruncate, fd, PAGE)
        refused(os.stat, closed)
        refused(closed.read_bytes)
        refused(os.posix_fallocate, fd, 0, 20 * PAGE)
        if what == "range":
            others_work(pool)
        else:
            refused((pool.path / "new").write_bytes, b"")
    assert {path.name for path in pool.path.iterdir()} == {"f", "closed"}
    (pool.path / "directory").mkdir()
    os.unlink(closed)
    pool.region.expect_log(".")
    ended(pool)
    refuses_to_mount(pool, "its range is missing", "fsck.daxfs")


def test_the_pool_directory_is_removed(pool):
    """Open files go on, as on any file system whose file was unlinked; mount says what is missing."""
    path = written(pool, "f", b"f" * PAGE)
    with opened(path) as fd, mmap.mmap(fd, 0) as m:
        shutil.rmtree(pool.below / "pool")
        m[:4] = b"mine"
        assert os.pread(fd, 5, 0) == b"minef"
        refused(os.fstat, fd)
    ended(pool)
    refuses_to_mount(pool, "No such file")


def test_the_region_is_cut(pool):
    """All requests answer EIO then; what a program has mapped of a range is its own, and stays."""
    path = written(pool, "f", b"f" * PAGE)
    program = Program(path)
    os.truncate(pool.below / "pool" / "region", 4096)
    refused(os.listdir, pool.path)
    refused((pool.path / "new").write_bytes, b"")
    assert program.say("store alive") == "alive"
    done = mounts.run([mounts.command("daxfs"), "revoke", "--timeout", "0", pool.path], check=False)
    assert done.returncode == 1 and "shut down" in done.stderr
    program.say("end")
    status = program.child.wait()
    program.end()
    assert "was truncated under the mount" in ended(pool)
    assert signal.SIGBUS not in (status, -status)
    refuses_to_mount(pool, "shrunken")
