# SPDX-License-Identifier: MIT
"""Direct mappings that outlive what they came by: the daemon, the mount, the name.

A mapping belongs to the range's file, so it works on without a daemon, and what it stores is the file's. Who
mounts the same pool again meanwhile shares its pages with it.
"""

import contextlib
import ctypes
import errno
import importlib
import mmap
import os
import signal
import subprocess
import sys
import time

import mounts
import pytest
from load_model import scan
from test_posix import table

memory = importlib.import_module(f"{table.__package__}.memory")
pytestmark = [pytest.mark.mount]
PAGE = 4096
SIZE = 3 << 20


@pytest.fixture(scope="module", params=["uring", pytest.param("dev", marks=pytest.mark.slow)])
def transport(request):
    """Those with passthrough."""
    only = request.config.getoption("--transport")
    reason = mounts.why_no_transport(request.param) or (only not in (None, request.param) and f"not {only}")
    if reason:
        pytest.skip(reason)
    return request.param


@pytest.fixture
def region(mount_factory):
    return mount_factory(pool="always")


@contextlib.contextmanager
def mapped(file, closed=True, size=SIZE):
    """A shared mapping, as a memoryview, of a file of *size* bytes; its descriptor is *closed*, or kept.

    Not by Python's mmap, which keeps a descriptor of its own.
    """
    fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, size)
    page = memory.Map(fd, size)
    if closed:
        os.close(fd)
    yield memoryview((ctypes.c_char * size).from_address(page.base)).cast("B")
    page.unmap()
    if not closed:
        with contextlib.suppress(OSError):
            os.close(fd)


def all_closed(region):
    """Wait until the daemon has heard of every close, which it does a little later."""
    deadline = time.monotonic() + 10
    while region.stat()["dax"]["open"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def clean(region):
    """Unmounted, and fsck.daxfs finds nothing, nor does anything lie about."""
    region.umount()
    checked = region.fsck("-n")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
def test_daemon_killed_under_a_mapping(region, closed):
    """The mapping stays usable; all that was stored is there after the next mount."""
    with mapped(region.path / "file", closed=closed) as page:
        page[:5] = b"first"
        region.kill()
        page[PAGE * 300 : PAGE * 300 + 6] = b"second"
        assert page[:5] == b"first"
        region.mount()
        page[SIZE - 5 :] = b"third"
        data = (region.path / "file").read_bytes()
        assert len(data) == SIZE
        assert (data[:5], data[PAGE * 300 :][:6], data[-5:]) == (b"first", b"second", b"third")
        with open(region.path / "file", "r+b", buffering=0) as file:
            file.write(b"FIRST")
            assert page[:5] == b"FIRST"
            # The new mount knows nothing of this mapping, and cuts under it as under its own.
            again = mmap.mmap(file.fileno(), SIZE)
            again[PAGE] = 9
            assert page[PAGE] == 9
            again.close()
    clean(region)


def test_child_of_a_dead_mount_gets_sigbus_behind_a_cut(region):
    """The next mount truncates a file that a mapping of the mount before has: SIGBUS there."""
    with mapped(region.path / "file") as page:
        page[2 * PAGE] = 1
        region.kill()
        region.mount()
        os.truncate(region.path / "file", PAGE)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            os._exit(page[2 * PAGE])
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGBUS
        os.truncate(region.path / "file", SIZE)
        assert page[2 * PAGE] == 0
    clean(region)


def test_unlinked_while_the_daemon_was_killed(region):
    """Open, unlinked and mapped when the daemon dies: the mapping keeps its pages."""
    with mapped(region.path / "file") as page:
        page[:4] = b"mine"
        (region.path / "file").unlink()
        region.kill()
        region.mount()
        for number in range(20):
            (region.path / f"new{number}").write_bytes(bytes([number + 1]) * 200_000)
        page[PAGE : PAGE + 4] = b"more"
        assert page[:4] == b"mine" and page[100:PAGE] == bytes(PAGE - 100)
        for number in range(20):
            assert (region.path / f"new{number}").read_bytes() == bytes([number + 1]) * 200_000
        assert len(list((region.source / "ranges").iterdir())) == 20
    clean(region)


def test_umount_is_busy(region):
    """A descriptor makes it busy, and so does a mapping alone."""
    with mapped(region.path / "file") as page:
        page[:4] = b"held"
        done = mounts.run(["umount", region.path], check=False)
        assert done.returncode != 0 and "busy" in done.stderr
        assert region.daemon_alive()
        page[4:8] = b"more"
        assert (region.path / "file").read_bytes()[:8] == b"heldmore"
    clean(region)


def test_lazy_umount_then_mounted_again(region, tmp_path):
    """umount -l with a live mapping; the pool can't be mounted as long as there is one."""
    other = tmp_path / "other"
    other.mkdir()
    with mapped(region.path / "file") as page:
        page[:4] = b"lazy"
        mounts.run(["umount", "-l", region.path])
        page[4:8] = b"onon"
        command = region.mount_command()
        command[2] = str(other)
        done = mounts.run(command, check=False)
        # The daemon of the first mount lives as long as the mapping does, and holds the source.
        assert done.returncode != 0 and "busy" in done.stderr, done
        assert region.daemon_alive()
    deadline = time.monotonic() + 20
    while region.daemon_alive():
        assert time.monotonic() < deadline, "the mapping is gone, the daemon is not"
        time.sleep(0.02)
    region.mount()
    assert (region.path / "file").read_bytes()[:8] == b"lazyonon"
    clean(region)


def test_two_processes_count_together(region):
    """Eight bytes that processes add to under a lock, one killed in between: nothing is lost; times move."""
    file = region.path / "counter"
    file.write_bytes(bytes(PAGE))
    code = ("import fcntl, mmap, sys\nf = open(sys.argv[1], 'r+b')\npage = mmap.mmap(f.fileno(), 0)\n"
            "print('ready', flush=True)\n"
            "for n in range(int(sys.argv[2])):\n"
            "    fcntl.lockf(f, fcntl.LOCK_EX)\n"
            "    page[:8] = (int.from_bytes(page[:8], 'little') + 1).to_bytes(8, 'little')\n"
            "    fcntl.lockf(f, fcntl.LOCK_UN)\n")

    def start(count):
        args = [sys.executable, "-c", code, file, str(count)]
        return subprocess.Popen(args, stdout=subprocess.PIPE)

    victim = start(10**9)
    victim.stdout.readline()
    others = [start(400) for _ in range(2)]
    for process in others:
        process.stdout.readline()
    victim.kill()
    victim.wait()
    assert [process.wait(60) for process in others] == [0, 0]
    for process in (victim, *others):
        process.stdout.close()
    assert int.from_bytes(file.read_bytes()[:8], "little") >= 800
    clean(region)


def test_flag_taken_away_while_only_a_mapping_is_left(region):
    """The next open is direct still, or the mappings would not be coherent."""
    file = region.path / "file"
    with mapped(file) as page:
        mounts.set_dax(file, False)
        all_closed(region)
        with open(file, "r+b", buffering=0) as stream, mmap.mmap(stream.fileno(), SIZE) as other:
            for number in range(1, 20):
                page[number] = number
                assert (other[number], os.pread(stream.fileno(), 1, number)[0]) == (number, number)
                other[PAGE + number] = number
                assert page[PAGE + number] == number
    assert len(list((region.source / "ranges").iterdir())) == 1
    all_closed(region)
    with open(file, "r+b", buffering=0) as stream, mmap.mmap(stream.fileno(), SIZE) as other:
        assert other[:20] == other[PAGE : PAGE + 20] == bytes(range(20))
    assert not list((region.source / "ranges").iterdir())
    clean(region)


def test_flag_given_while_only_a_mapping_is_left(region):
    """A mapping by way of the page cache keeps the file of the mount open: the flag waits for its end."""
    folder = region.path / "packed"
    folder.mkdir()
    mounts.set_dax(folder, False)
    file = folder / "file"
    with mapped(file) as page:
        mounts.set_dax(file, True)
        # The bytes may move to a range of their own at once; how they are mapped does not change.
        with open(file, "r+b", buffering=0) as stream, mmap.mmap(stream.fileno(), SIZE) as other:
            page[5] = 5
            assert other[5] == 5 and os.pread(stream.fileno(), 1, 5) == b"\5"
    all_closed(region)
    with mapped(file) as page:
        assert page[5] == 5
        page[6] = 6
        (range_file,) = (region.source / "ranges").iterdir()
        assert range_file.read_bytes()[:7] == b"\0\0\0\0\0\5\6"
    clean(region)


def test_readonly_mount_maps_for_reading(region):
    """ro: a shared mapping for reading is direct, one for writing is refused by the open."""
    (region.path / "file").write_bytes(b"x" * SIZE)
    region.remount("ro")
    fd = os.open(region.path / "file", os.O_RDONLY)
    page = mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
    assert page[:] == b"x" * SIZE
    with pytest.raises(OSError) as refused:
        os.open(region.path / "file", os.O_RDWR)
    assert refused.value.errno == errno.EROFS
    page.close()
    os.close(fd)
    region.umount()


def test_everything_is_there_after_a_fresh_mount(region):
    """Stores by mappings alone, of files of odd sizes, closed, without msync."""
    rest = contextlib.ExitStack()
    for number, size in enumerate((1, PAGE - 1, PAGE, 5 * PAGE + 5, SIZE)):
        with rest.enter_context(mapped(region.path / f"file{number}", size=size)) as page:
            page[size // 2] = number + 1
            page[size - 1] = 200
    before = scan(region.path)
    rest.close()
    after = scan(region.path)
    assert before.keys() == after.keys()
    region.remount()
    assert scan(region.path) == after
    for number, size in enumerate((1, PAGE - 1, PAGE, 5 * PAGE + 5, SIZE)):
        data = (region.path / f"file{number}").read_bytes()
        assert (len(data), data[size - 1]) == (size, 200)
        assert size == 1 or data[size // 2] == number + 1 or size // 2 == size - 1
    clean(region)
