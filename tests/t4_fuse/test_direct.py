# SPDX-License-Identifier: MIT
"""Files with the DAX flag on a pool directory: what programs map is the range itself, by uring and dev.

The root directory hands the flag to what is made in it. What decides is `/proc/self/smaps` (only the range
on a tmpfs with huge=always has PMDs), the number of direct inodes in `daxfs stat`, and the range's file.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mounts
import pytest

from daxfs.fuse.passthrough import Passthrough, why_not

pytestmark = pytest.mark.mount
MIB, PAGE = 1 << 20, 4096
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
needs_kernel = pytest.mark.skipif(mounts.KERNEL < (6, 9), reason="no FUSE passthrough before kernel 6.9")


class Pool:
    """A pool directory on a tmpfs of its own, mounted; its root directory has the flag."""

    def __init__(self, size: str = "512m", region: str = "64M", transport: str | None = None):
        self.below = Path(f"/tmp/{mounts.PREFIX}direct-{time.monotonic_ns()}")
        self.below.mkdir()
        mounts.run(["mount", "-t", "tmpfs", "-o", f"huge=always,size={size}", "daxfs-test", self.below])
        self.region = None
        try:
            (self.below / "pool").mkdir()
            self.region = mounts.MountedRegion(kind="path", source=self.below / "pool",
                                               mkfs=["--size", region], transport=transport)
            self.region.mount()
            self.path = self.region.path
            mounts.set_dax(self.path)
        except BaseException:
            self.close()
            raise

    def range_of(self, path) -> Path:
        ino = os.stat(path).st_ino
        return next(p for p in (self.below / "pool" / "ranges").iterdir() if p.name.startswith(f"{ino:x}-"))

    def direct(self) -> int:
        return self.region.stat()["direct"]["open"]

    def becomes(self, number: int) -> None:
        """RELEASE comes after close(2) has returned."""
        deadline = time.monotonic() + 10
        while self.direct() != number:
            assert time.monotonic() < deadline, self.region.stat()["direct"]
            time.sleep(0.01)

    def close(self) -> None:
        if self.region is not None:
            self.region.close()
        mounts.run(["umount", "-l", self.below], check=False)
        self.below.rmdir()


@pytest.fixture(scope="module")
def pool(direct_transport):
    made = Pool(transport=direct_transport)
    yield made
    made.close()


@pytest.fixture
def name(pool, request):
    path = pool.path / re.sub(r"\W", "_", request.node.name)
    yield path
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


@contextlib.contextmanager
def opened(path, flags=os.O_RDWR | os.O_CREAT, mode: int = 0o644):
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


class Mapping:
    """A shared mapping without a descriptor behind it (Python's mmap keeps one), and of any length."""

    def __init__(self, fd: int, size: int):
        self.size = size
        self.address = LIBC.mmap(None, ctypes.c_size_t(size), 3, 1, fd, ctypes.c_long(0))
        assert self.address not in (None, 2**64 - 1), os.strerror(ctypes.get_errno())

    def __enter__(self) -> "Mapping":
        return self

    def __exit__(self, *_) -> None:
        LIBC.munmap(ctypes.c_void_p(self.address), ctypes.c_size_t(self.size))

    def store(self, at: int, data: bytes) -> None:
        ctypes.memmove(self.address + at, data, len(data))

    def load(self, at: int, size: int) -> bytes:
        return ctypes.string_at(self.address + at, size)


def pmd_bytes(path) -> int:
    """Bytes of PMD mappings that this process has of *path*."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("ShmemPmdMapped:"):
            found += int(line.split()[1]) << 10
    return found


# -- the mapping ----------------------------------------------------------------------------


def test_a_mapping_is_the_range_with_pmds(pool, name):
    with opened(name) as fd:
        assert pool.direct() == 1
        os.ftruncate(fd, 4 * MIB)
        with mmap.mmap(fd, 4 * MIB) as m:
            for at in range(0, 4 * MIB, PAGE):
                m[at] = at // PAGE % 251
            assert pmd_bytes(name) == 4 * MIB
            assert pool.range_of(name).read_bytes() == m[:]
    pool.becomes(0)


def test_reads_and_writes_see_stores_and_are_seen(pool, name):
    with opened(name) as fd:
        os.pwrite(fd, b"a" * 3 * PAGE, 0)
        with mmap.mmap(fd, 3 * PAGE) as m:
            os.pread(fd, 1, 0)
            before = pool.region.stat()["operations"]["read"]["count"]
            m[PAGE - 3 : PAGE + 3] = b"STORED"
            assert os.pread(fd, 12, PAGE - 6) == b"aaaSTOREDaaa"
            os.pwrite(fd, b"written", 2 * PAGE - 3)
            assert m[2 * PAGE - 4 : 2 * PAGE + 5] == b"awrittena"
            os.pwrite(fd, b"more" * 5000, 3 * PAGE)  # grows it: the range is longer, the mapping is not
            assert os.fstat(fd).st_size == 3 * PAGE + 20000 and len(m) == 3 * PAGE
            after = pool.region.stat()["operations"]["read"]["count"]
            assert after == before + 1, "read(2) comes to the daemon"


def test_a_hole_that_a_program_fills_is_read(pool, name):
    """The daemon has no extent there, and can't know."""
    with opened(name) as fd:
        os.ftruncate(fd, 64 * PAGE)
        assert os.pread(fd, PAGE, 5 * PAGE) == bytes(PAGE)
        with mmap.mmap(fd, 64 * PAGE) as m:
            m[5 * PAGE : 5 * PAGE + 4] = b"here"
            assert os.pread(fd, 6, 5 * PAGE - 1) == b"\0here\0"
            os.pwrite(fd, b"H", 5 * PAGE)
            assert m[5 * PAGE : 5 * PAGE + 4] == b"Here"
            m.madvise(mmap.MADV_REMOVE, 0, 64 * PAGE)
            assert os.pread(fd, 64 * PAGE, 0) == bytes(64 * PAGE)
            os.pwrite(fd, b"again", 5 * PAGE + 1)
            assert m[5 * PAGE : 5 * PAGE + 7] == b"\0again\0"


def test_processes_share_it(pool, name):
    code = ("import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDWR); m = mmap.mmap(fd, 8192)\n"
            "assert m[:6] == b'parent'; m[4096:4101] = b'child'")
    with opened(name) as fd:
        os.ftruncate(fd, 2 * PAGE)
        with mmap.mmap(fd, 2 * PAGE) as m:
            m[:6] = b"parent"
            subprocess.run([sys.executable, "-P", "-c", code, name], check=True)
            assert m[PAGE : PAGE + 5] == b"child" == os.pread(fd, 5, PAGE)
            pid = os.fork()
            if pid == 0:
                m[10:14] = b"fork"
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0 and os.pread(fd, 4, 10) == b"fork"


def test_a_mapping_outlives_its_descriptor(pool, name):
    with opened(name) as fd:
        os.ftruncate(fd, PAGE)
        mapping = Mapping(fd, PAGE)
    pool.becomes(0)
    with mapping as m:
        m.store(7, b"later")
        with opened(name, os.O_RDWR) as fd:
            assert pool.direct() == 1, "direct again, with another backing number"
            assert os.pread(fd, 5, 7) == b"later"
            os.pwrite(fd, b"LATER", 7)
            assert m.load(7, 5) == b"LATER"
            os.fsync(fd)
        name.unlink()
        m.store(0, b"unlinked")
        assert m.load(0, 8) == b"unlinked"


def test_behind_the_end_is_sigbus(pool, name):
    with opened(name) as fd:
        os.pwrite(fd, bytes(3 * PAGE), 0)
        with mmap.mmap(fd, 3 * PAGE) as m:
            m[2 * PAGE] = 1
            os.ftruncate(fd, PAGE + 1)
            assert touches(m, PAGE) == 0
            assert touches(m, 2 * PAGE) == -signal.SIGBUS
            os.pwrite(fd, b"x" * 3 * PAGE, PAGE)
            assert touches(m, 2 * PAGE) == 0 and m[2 * PAGE] == ord("x")
            assert pool.range_of(name).stat().st_size == 4 * PAGE


def touches(m, at: int) -> int:
    """How a child ends that loads a byte there."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        m[at]
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_what_is_stored_behind_the_end_never_shows(pool, name):
    """In the last page: by an append that begins there, one that goes on, and growth without data."""
    with opened(name) as fd:
        os.pwrite(fd, b"a" * 100, 0)
        with Mapping(fd, PAGE) as m:
            m.store(100, b"\xee" * (PAGE - 100))
            assert os.pread(fd, PAGE, 0) == b"a" * 100
            os.pwrite(fd, b"b" * 50, 100)
            os.pwrite(fd, b"c" * 50, 150)
            assert os.pread(fd, PAGE, 0) == b"a" * 100 + b"b" * 50 + b"c" * 50
            os.pwrite(fd, b"d", 300)
            assert os.pread(fd, PAGE, 200) == bytes(100) + b"d"
            m.store(301, b"\xee" * (PAGE - 301))
            os.ftruncate(fd, 2 * PAGE)
            assert os.pread(fd, 2 * PAGE, 301) == bytes(2 * PAGE - 301)


def test_times_of_stores_are_seen_at_once(pool, name):
    with opened(name) as fd:
        os.ftruncate(fd, PAGE)
        os.utime(fd, ns=(10**18, 10**18))
        assert os.fstat(fd).st_mtime_ns == 10**18
        with mmap.mmap(fd, PAGE) as m:
            before = time.time_ns()
            m[0] = 1
            shown = os.fstat(fd)
            # The kernel's times lag by a tick of its clock, at most.
            assert before - 20_000_000 <= shown.st_mtime_ns <= time.time_ns()
            assert shown.st_ctime_ns >= shown.st_mtime_ns
        os.utime(fd, ns=(10**18, 10**18))
        assert os.fstat(fd).st_mtime_ns == 10**18


def test_fsync_takes_everything_for_dirty_where_a_mapping_may_store(pool, name):
    def coarse():
        return pool.region.stat()["tracker"]["coarse_fsyncs"]

    with opened(name, os.O_WRONLY | os.O_CREAT) as fd:
        os.pwrite(fd, b"x" * PAGE, 0)
        before = coarse()
        os.fsync(fd)
        assert coarse() == before, "a descriptor for writing alone can't be mapped to store"
    with opened(name, os.O_RDWR) as fd:
        os.fsync(fd)
        assert coarse() == before + 1


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["new", "O_DIRECT"])
def test_sendfile_sees_stores(pool, name, flags):
    """By a descriptor that was opened after them, or that has O_DIRECT (docs/transport.md has the reason)."""
    with opened(name) as fd, opened(f"/dev/shm/{mounts.PREFIX}sent") as out:
        os.unlink(f"/dev/shm/{mounts.PREFIX}sent")
        os.pwrite(fd, b"a" * 2 * PAGE, 0)
        with mmap.mmap(fd, 2 * PAGE) as m, opened(name, os.O_RDONLY | flags) as old:
            assert os.sendfile(out, old, 0, 2 * PAGE) == 2 * PAGE
            m[PAGE - 2 : PAGE + 2] = b"seen"
            with opened(name, os.O_RDONLY) as new:
                source = old if flags else new
                assert os.sendfile(out, source, 0, 2 * PAGE) == 2 * PAGE
            assert os.pread(out, 6, 3 * PAGE - 3) == b"aseena"


# -- opens ----------------------------------------------------------------------------------


def test_modes_of_opens_and_of_mappings(pool, name):
    with opened(name) as rw, opened(name, os.O_RDONLY) as ro, opened(name, os.O_WRONLY) as wo:
        os.ftruncate(rw, PAGE)
        assert pool.direct() == 1
        with pytest.raises(PermissionError):
            mmap.mmap(ro, PAGE)
        with pytest.raises(PermissionError):
            mmap.mmap(wo, PAGE)
        with mmap.mmap(rw, PAGE) as m, mmap.mmap(ro, PAGE, prot=mmap.PROT_READ) as reading, \
                mmap.mmap(ro, PAGE, flags=mmap.MAP_PRIVATE) as private:
            m[:5] = b"store"
            assert reading[:5] == private[:5] == b"store"
            private[:5] = b"alone"
            assert m[:5] == reading[:5] == b"store"
            os.pwrite(wo, b"W", 0)
            assert m[:5] == reading[:5] == b"Wtore" and private[:5] == b"alone"


def test_create_and_tmpfile_are_direct_at_once(pool, name):
    with opened(name, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
        assert pool.direct() == 1
        with opened(pool.path, os.O_RDWR | os.O_TMPFILE) as tmp:
            assert pool.direct() == 2
            for one in (fd, tmp):
                os.ftruncate(one, 2 * MIB)
                with mmap.mmap(one, 2 * MIB) as m:
                    m[0] = 7
                    assert os.pread(one, 1, 0) == b"\7"
        pool.becomes(1)
        assert sum(1 for _ in (pool.below / "pool" / "ranges").iterdir()) == 1
    pool.becomes(0)


def test_the_mode_stays_while_the_file_is_open(pool, name):
    """Made without the flag, and open: the flag counts from the next first open on."""
    folder = name.with_suffix(".plain")
    folder.mkdir()
    mounts.set_dax(folder, False)
    path = folder / "f"
    with opened(path) as fd:
        os.pwrite(fd, b"packed", 0)
        mounts.set_dax(path)
        with opened(path, os.O_RDWR) as other, Mapping(other, PAGE) as m:
            assert pool.direct() == 0
            m.store(0, b"cached")
            assert os.pread(fd, 6, 0) == b"cached"
    pool.region.settled()
    with opened(path, os.O_RDWR) as fd, Mapping(fd, PAGE) as m:
        assert pool.direct() == 1 and m.load(0, 6) == b"cached"
        mounts.set_dax(path, False)
        with opened(path, os.O_RDONLY) as other:
            assert pool.direct() == 1 and os.pread(other, 6, 0) == b"cached"
    pool.becomes(0)
    shutil.rmtree(folder)


def test_many_opens_and_closes_leave_no_backing(pool, name):
    for n in range(200):
        with opened(name) as fd:
            os.pwrite(fd, b"%d" % n, 0)
    pool.becomes(0)


def test_a_binary_runs_from_it(pool, name):
    shutil.copyfile(shutil.which("true"), name)
    name.chmod(0o755)
    assert subprocess.run([name], check=False).returncode == 0
    pool.becomes(0)


def test_the_trace_shows_it(pool, name, tmp_path):
    flags = r".*\|PASSTHROUGH, backing_id=[1-9]"
    found = re.compile(rf"CREATE = {flags}(.*\n)*.* OPEN = {flags}")
    with open(tmp_path / "trace", "w") as out, subprocess.Popen(
            [mounts.command("daxfs"), "trace", str(pool.path)], stdout=out) as trace:
        try:
            deadline = time.monotonic() + 20
            while not found.search((tmp_path / "trace").read_text()):
                assert time.monotonic() < deadline, (tmp_path / "trace").read_text()[-3000:]
                with opened(name), opened(name, os.O_RDONLY):
                    time.sleep(0.1)
                name.unlink()
        finally:
            trace.terminate()


# -- little room ----------------------------------------------------------------------------


@pytest.fixture
def small():
    """A pool with about 16 MiB for ranges."""
    made = Pool(size="32m", region="16M")
    yield made
    made.close()


@needs_kernel
def test_a_full_source_is_enospc_and_the_range_as_long_as_the_file(small):
    path = small.path / "f"
    with opened(path) as fd:
        written = 0
        with pytest.raises(OSError) as caught:
            while True:
                written += os.pwrite(fd, b"x" * 3 * MIB, written)
        assert caught.value.errno == errno.ENOSPC and written > 4 * MIB
        assert os.fstat(fd).st_size == written
        assert small.range_of(path).stat().st_size == -(-written // PAGE) * PAGE
        assert os.pread(fd, 100, written - 50) == b"x" * 50
        os.ftruncate(fd, MIB)
        assert os.pwrite(fd, b"y" * MIB, MIB) == MIB


@needs_kernel
def test_a_page_that_went_away_is_one_error_and_then_mended(small):
    """MADV_REMOVE, then the room is taken: a store of the daemon's has no page to go to."""
    path = small.path / "f"
    with opened(path) as fd:
        os.pwrite(fd, b"x" * 4 * MIB, 0)
        with mmap.mmap(fd, 4 * MIB) as m:
            m.madvise(mmap.MADV_REMOVE, 0, 2 * MIB)
            with opened(small.below / "fill") as fill, contextlib.suppress(OSError):
                while True:
                    os.write(fill, bytes(PAGE))
            with pytest.raises(OSError) as caught:
                os.pwrite(fd, b"z" * PAGE, PAGE)
            assert caught.value.errno in (errno.EIO, errno.ENOSPC)
            assert os.pread(fd, 4, 3 * MIB) == b"xxxx", "the rest of it is as it was"
            (small.below / "fill").unlink()
            assert os.pwrite(fd, b"z" * PAGE, PAGE) == PAGE
            assert m[PAGE : PAGE + 4] == b"zzzz" and m[0] == 0
    assert small.region.stat()["shut_down"] is False


# -- where it can't be ----------------------------------------------------------------------


def test_why_it_can_not_be_had(monkeypatch):
    monkeypatch.setattr("daxfs.fuse.passthrough.privileged", lambda: True)
    assert why_not("uring", True, (6, 18)) == ""
    assert "transport=uring" in why_not("pyfuse3", True, (6, 18))
    assert "6.9" in why_not("dev", False, (6, 1)) and "6.1 " in why_not("dev", False, (6, 1))
    assert "CONFIG_FUSE_PASSTHROUGH" in why_not("dev", False, (6, 12))
    assert "libfuse" in why_not("", False, (6, 18))
    monkeypatch.setattr("daxfs.fuse.passthrough.privileged", lambda: False)
    assert "root" in why_not("dev", True, (6, 18))


def test_a_refusal_says_why_and_is_the_last_question(tmp_path):
    with open(tmp_path / "f", "w") as file:
        passthrough = Passthrough(file.fileno())  # no FUSE device at all
        assert passthrough.open(file.fileno()) == 0
        assert "CONFIG_FUSE_PASSTHROUGH" in passthrough.why


@needs_kernel
def test_a_read_only_mount_maps_the_range_for_reading():
    made = Pool(transport="dev")
    try:
        path = made.path / "f"
        path.write_bytes(b"read" * MIB)
        made.region.umount()
        made.region.mount("ro")
        with pytest.raises(OSError) as caught:
            os.open(path, os.O_RDWR)
        assert caught.value.errno == errno.EROFS
        with opened(path, os.O_RDONLY) as fd, mmap.mmap(fd, 4 * MIB, prot=mmap.PROT_READ) as m:
            assert made.direct() == 1 and m[:8] == b"readread" == os.pread(fd, 8, 2 * MIB)
            assert pmd_bytes(path) > 0
    finally:
        made.close()


def test_without_it_mappings_are_cached_and_say_why():
    """transport=pyfuse3 on a file that was made with another one: the same range, by the page cache."""
    made = Pool(transport="dev")
    try:
        path = made.path / "f"
        path.write_bytes(b"a" * 2 * MIB)
        made.region.umount()
        made.region.transport = "pyfuse3"
        made.region.mount()
        shown = made.region.stat()["direct"]
        assert shown == {"why_not": why_not("pyfuse3", True, mounts.KERNEL), "open": 0, "parked": 0}
        with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 2 * MIB) as m:
            m[:6] = b"cached"
            m.flush()
            os.pwrite(fd, b"written", PAGE)
            assert pmd_bytes(path) == 0 and m[PAGE : PAGE + 7] == b"written"
            assert made.range_of(path).read_bytes()[:6] == b"cached"
    finally:
        made.close()
