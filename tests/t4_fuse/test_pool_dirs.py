# SPDX-License-Identifier: MIT
"""The pool directory on the file systems that this host can mount: tmpfs with each huge=, ext4 and XFS.

What a host can't mount is skipped with the reason. The transport is the host's best.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import tempfile
import time
from pathlib import Path

import loops
import mounts
import pytest

pytestmark = pytest.mark.mount
MIB, PAGE = 1 << 20, 4096
KEEP_SIZE, PUNCH_HOLE = 1, 2
TMPFS = ("never", "advise", "within_size", "always")
KINDS = (*(f"huge={huge}" for huge in TMPFS), "ext4", "xfs")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


@contextlib.contextmanager
def file_system(kind: str, size: int):
    """The path of a new file system of *size* bytes, at least."""
    if kind in loops.MKFS:
        reason = loops.why_not(kind)
        if reason:
            print(reason)
            pytest.skip(reason)
        with loops.LoopMount(kind, size) as made:
            yield made.path
        return
    path = Path(tempfile.mkdtemp(prefix=f"{mounts.PREFIX}tmpfs"))
    try:
        options = f"size={size},{kind}"
        done = mounts.run(["mount", "-t", "tmpfs", "-o", options, "daxfs-test", path], check=False)
        if done.returncode:
            reason = f"no tmpfs with {kind}: {done.stderr.strip()}"
            print(reason)
            pytest.skip(reason)
        yield path
    finally:
        mounts.run(["umount", "-l", path], check=False)
        path.rmdir()


@contextlib.contextmanager
def mounted(below: Path, size: int = 16 * MIB, options: str = "dax=always"):
    """A region in a pool directory under *below*, mounted; fsck must find nothing wrong at the end."""
    (below / "pool").mkdir()
    with mounts.MountedRegion(kind="path", source=below / "pool", mkfs=("--size", str(size)),
                              options=options) as region:
        region.mount()
        yield region
        region.umount()
        done = region.fsck("-n")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(params=KINDS)
def below(request):
    with file_system(request.param, 160 * MIB) as path:
        yield path


def punch(fd: int, pos: int, length: int) -> None:
    assert _libc.fallocate(fd, KEEP_SIZE | PUNCH_HOLE, pos, length) == 0, os.strerror(ctypes.get_errno())


def free(path) -> int:
    found = os.statvfs(path)
    assert 0 <= found.f_bavail <= found.f_bfree <= found.f_blocks
    return found.f_bavail * found.f_frsize


def use(path: Path, model: bytearray) -> None:
    """Writes, a mapping, a hole, two truncations and fsync; *model* is what the file then holds."""
    data = os.urandom(5 * MIB + 77)
    model[:] = data
    with open(path, "w+b", buffering=0) as file:
        fd = file.fileno()
        for at in range(0, len(data), MIB):
            assert os.pwrite(fd, data[at : at + MIB], at) == len(data[at : at + MIB])
        with mmap.mmap(fd, len(data)) as mapping:
            assert mapping[:] == data
            mapping[3 * MIB : 3 * MIB + 9] = model[3 * MIB : 3 * MIB + 9] = b"by a store"[:9]
            os.fsync(fd)
            assert os.pread(fd, 9, 3 * MIB) == b"by a store"[:9]
        punch(fd, MIB + 100, 2 * PAGE)
        model[MIB + 100 : MIB + 100 + 2 * PAGE] = bytes(2 * PAGE)
        os.ftruncate(fd, 4 * MIB + 5)
        del model[4 * MIB + 5 :]
        os.ftruncate(fd, 4 * MIB + 3 * PAGE)
        model += bytes(3 * PAGE - 5)
        os.fsync(fd)


def test_files_are_used(below):
    model = bytearray()
    with mounted(below) as region:
        path = region.path / "f"
        use(path, model)
        facts = region.settled()
        assert path.read_bytes() == model
        assert facts["granularity"] == ("cache_line" if facts["emulated"] else "page")
        assert len(os.listdir(below / "pool/ranges")) == 1
        region.remount()
        assert path.read_bytes() == model
        region.kill()
        region.mount()
        assert path.read_bytes() == model
        path.unlink()
        region.settled()
        assert os.listdir(below / "pool/ranges") == []


def test_mappings_are_direct(below):
    with mounted(below) as region:
        why = region.stat()["dax"]["why_not"]
        if why:
            print(why)
            pytest.skip(why)
        with open(region.path / "f", "w+b", buffering=0) as file:
            os.ftruncate(file.fileno(), 4 * MIB)
            with mmap.mmap(file.fileno(), 4 * MIB) as mapping:
                mapping[2 * MIB] = 7
                (name,) = os.listdir(below / "pool/ranges")
                with open(below / "pool/ranges" / name, "rb") as own:
                    own.seek(2 * MIB)
                    assert own.read(1) == b"\7", "the store is not in the range"
                assert os.pread(file.fileno(), 1, 2 * MIB) == b"\7"
                assert region.stat()["dax"]["direct"] == 1


def test_the_flag_moves_data(below):
    data = os.urandom(3 * MIB + 5)
    with mounted(below, options="dax=inode") as region:
        path = region.path / "f"
        path.write_bytes(data)
        region.settled()
        for options, ranges in (("dax=always", 1), ("dax=inode", 0), ("dax=always", 1)):
            region.remount(options)
            assert path.read_bytes() == data
            assert len(os.listdir(below / "pool/ranges")) == ranges
            region.settled()


def test_copies_of_odd_sizes(below):
    """A file system below may have smaller blocks than pages, and so data in a part of a page (ext4 here)."""
    data = os.urandom(3 * PAGE + 5)
    with mounted(below) as region:
        with open(region.path / "f", "w+b", buffering=0) as file, open(region.path / "g", "w+b") as copy:
            file.write(data)
            os.ftruncate(file.fileno(), 8 * PAGE)
            os.pwrite(file.fileno(), b"alone", 6 * PAGE + 2000)
            at = 0
            while n := os.copy_file_range(file.fileno(), copy.fileno(), 8 * PAGE - at, at, at):
                at += n
        copied = (region.path / "g").read_bytes()
        assert copied == (region.path / "f").read_bytes()
        assert copied == data + bytes(3 * PAGE - 5 + 2000) + b"alone" + bytes(2 * PAGE - 2005)


def test_df_tells_what_can_be_written(below):
    """Not less than a write finds; and as much again once it is removed."""
    with mounted(below) as region:
        path = region.path / "f"
        before = free(region.path)
        written = fill(path)
        assert written <= before and before - written < 32 * MIB, "the region's own free pages are among it"
        assert free(region.path) < 18 * MIB
        path.unlink()
        deadline = time.monotonic() + 20  # XFS frees in the background
        while abs(free(region.path) - before) > MIB:
            assert time.monotonic() < deadline, (free(region.path), before)
            time.sleep(0.1)


def fill(path: Path) -> int:
    """Write until ENOSPC; the bytes that were written, all of which are there."""
    with open(path, "wb", buffering=0) as file:
        with pytest.raises(OSError) as caught:
            while True:
                file.write(bytes([1 + file.tell() // MIB % 200]) * MIB)
        assert caught.value.errno == errno.ENOSPC
        written = file.tell()
    with open(path, "rb") as file:
        for at in range(0, written, MIB):
            piece = file.read(MIB)
            assert piece == bytes([1 + at // MIB % 200]) * len(piece) and piece
    assert path.stat().st_size == written
    return written


def test_a_full_one_loses_nothing(below):
    """Packed files, whose pages were promised, are written on; ranges get ENOSPC and stay whole."""
    packed, full = os.urandom(4 * MIB), None
    with mounted(below, options="dax=inode") as region:
        (region.path / "packed").write_bytes(packed[: 2 * MIB])
        region.settled()
        region.remount("dax=always")
        (region.path / "own").write_bytes(packed)
        with open(region.path / "promised", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 2 * MIB)
        full = fill(region.path / "full")
        with open(region.path / "own", "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"over it", 5)
            with pytest.raises(OSError) as caught:
                for at in range(4 * MIB, 8 * MIB, PAGE):
                    os.pwrite(file.fileno(), packed[:PAGE], at)
            assert caught.value.errno == errno.ENOSPC
            os.ftruncate(file.fileno(), 4 * MIB)
        with open(region.path / "promised", "r+b", buffering=0) as file:
            assert os.pwrite(file.fileno(), packed[: 2 * MIB], 0) == 2 * MIB, "posix_fallocate keeps its word"
        region.settled()
        region.remount("dax=inode")
        with open(region.path / "new", "wb") as file:
            file.write(packed)
            file.flush()
            os.fsync(file.fileno())
        assert (region.path / "new").read_bytes() == packed, "the region's own pages are there"
        region.kill()
        region.mount()
        assert (region.path / "new").read_bytes() == packed
        assert (region.path / "own").read_bytes() == packed[:5] + b"over it" + packed[12:]
        assert (region.path / "packed").read_bytes() == packed[: 2 * MIB]
        assert (region.path / "promised").read_bytes() == packed[: 2 * MIB]
        assert (region.path / "full").stat().st_size == full
        (region.path / "full").unlink()
