# SPDX-License-Identifier: MIT
"""DAX-GUP (SEEDS.md S4): direct mappings as buffers of the kernel, on files of another file system.

O_DIRECT and registered buffers of io_uring, while the file is cut, punched or unlinked: the pages that are
pinned are nobody else's until they are let go, and what the I/O saw is what the mapping was.
(vmsplice and process_vm_readv: tests/posix/direct_files.py.)
"""

import errno
import importlib
import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import loops
import mounts
import pytest
from test_posix import table

memory = importlib.import_module(f"{table.__package__}.memory")
native = importlib.import_module(f"{table.__package__}.native")
pytestmark = pytest.mark.mount
SIZE = 4 << 20
PAGE = 4096
UNDER = ["nothing", "truncate", "punch", "regrow", "unlink"]


@pytest.fixture(scope="module")
def ext4():
    reason = loops.why_not("ext4")
    if reason:
        pytest.skip(reason)
    with loops.LoopMount("ext4") as loop:
        yield loop.path


@pytest.fixture(scope="module")
def region(request):
    transport = request.config.getoption("--transport") or "uring"
    reason = mounts.why_no_transport(transport)
    if reason:
        pytest.skip(reason)
    with mounts.MountedRegion(64 * mounts.MIB, pool="always", transport=transport) as region:
        yield region.mount()
        region.umount()
        checked = region.fsck("-n")
        assert checked.returncode == 0, checked.stdout


def change(how, path, fd):
    """What happens to the file under the I/O; what it leaves can be mapped and grown again."""
    if how == "nothing":
        return
    if how == "truncate":
        os.ftruncate(fd, 0)
    elif how == "regrow":
        os.ftruncate(fd, PAGE)
        os.ftruncate(fd, SIZE)
    elif how == "punch":
        native.fallocate(fd, 3, 0, SIZE)
    elif path.exists():
        path.unlink()


class Neighbours:
    """Files made in a hurry, which would get pages that were given back too early."""

    def __init__(self, folder):
        self.folder, self.made = folder, []
        folder.mkdir(exist_ok=True)

    def make(self, count=3):
        for _ in range(count):
            path = self.folder / f"n{len(self.made)}"
            path.write_bytes(b"n" * (SIZE // 4))
            self.made.append(path)

    def check_and_remove(self):
        wrong = [path.name for path in self.made if path.read_bytes() != b"n" * (SIZE // 4)]
        shutil.rmtree(self.folder)
        assert not wrong, "their pages were written by I/O on another file"


class DirectIo(threading.Thread):
    """One O_DIRECT read or write of SIZE bytes with *page* as its buffer; ``moved``: bytes, 0 for EFAULT."""

    def __init__(self, way, page, target):
        super().__init__()
        self.way, self.page, self.moved = way, page, None
        self.fd = os.open(target, os.O_RDWR | os.O_DIRECT)
        self.started = threading.Event()

    def run(self):
        self.started.set()
        try:
            self.moved = (self.page.pwrite if self.way == "write" else self.page.pread)(self.fd, SIZE, 0)
        except OSError as error:
            if error.errno == errno.EFAULT:
                self.moved = 0
        os.close(self.fd)


@pytest.mark.parametrize("how", UNDER)
@pytest.mark.parametrize("way", ["write", "read"])
def test_direct_io_while_the_file_changes(region, ext4, way, how):
    """O_DIRECT from and to the mapping beside *how*: short or EFAULT is fine, other bytes are not."""
    target, rng = ext4 / "direct", random.Random(5)
    neighbours = Neighbours(region.path / f"by-{way}-{how}")
    for number in range(6):
        path = region.path / f"buffer{number}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.pwrite(fd, b"p" * SIZE, 0)
        target.write_bytes(b"r" * SIZE)
        os.sync()
        page = memory.Map(fd, SIZE)
        io = DirectIo(way, page, target)
        io.start()
        io.started.wait()
        time.sleep(rng.random() * 0.002)
        change(how, path, fd)
        neighbours.make()
        io.join()
        assert io.moved is not None
        if how == "nothing":
            assert io.moved == SIZE
            assert (target.read_bytes() if way == "write" else os.pread(fd, SIZE, 0)) == (
                b"p" if way == "write" else b"r") * SIZE
        elif way == "write":
            # Each page is the mapping's: as it was, or new and empty where it was faulted in again.
            data = target.read_bytes()[: io.moved]
            assert {data[at : at + PAGE] for at in range(0, len(data), PAGE)} <= {b"p" * PAGE, bytes(PAGE)}
        else:
            assert set(os.pread(fd, SIZE, 0)) <= set(b"pr\0")
        page.unmap()
        os.close(fd)
        path.unlink(missing_ok=True)
    neighbours.check_and_remove()


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """gup.c, compiled."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    target = tmp_path_factory.mktemp("gup") / "gup"
    done = mounts.run(["cc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-o", target,
                       Path(__file__).with_name("gup.c"), "-luring"], check=False)
    if done.returncode:
        assert "liburing.h" in done.stderr or "-luring" in done.stderr, done.stderr
        pytest.skip("no liburing to compile with")
    return target


# What a load finds at last: what io_uring read where the page is still the file's, else a new page's zeros.
LOADED = {"nothing": "other", "truncate": "gone", "regrow": "zeros", "punch": "zeros", "unlink": "other"}


@pytest.mark.parametrize("how", LOADED)
def test_fixed_buffers(region, ext4, program, how):
    """Pinned pages hold what was there, whatever happens to the file, and are nobody else's."""
    buffer, target = region.path / "fixed", ext4 / "fixed"
    buffer.write_bytes(bytes(SIZE))
    target.write_bytes(bytes(SIZE))
    neighbours = Neighbours(region.path / f"fixed-{how}")
    with subprocess.Popen([program, buffer, target, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        if first == "pinned\n":
            neighbours.make(8)
        out, err = process.communicate("go\n", timeout=60)
    if process.returncode == 77:
        pytest.skip(first.strip())
    assert process.returncode == 0, err
    neighbours.check_and_remove()
    assert out == f"written=pattern loaded={LOADED[how]}\n"
    buffer.unlink(missing_ok=True)
