# SPDX-License-Identifier: MIT
"""daxfs poison on live mounts by each transport: what programs get, through descriptors and mappings.

A program that is ended by SIGBUS is a child.
"""

import contextlib
import errno
import json
import mmap
import os
import signal
import subprocess
import sys

import mounts
import pytest
from test_direct import Pool

pytestmark = pytest.mark.mount
PAGE, PAGES = 4096, 64
LOOK = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 0)
at = int(sys.argv[2])
print(m[at - 1], flush=True)
print(m[at], flush=True)
"""


def page(n: int) -> bytes:
    return bytes([n + 1]) * PAGE


DATA = b"".join(page(n) for n in range(PAGES))


def poison(*args, check=True):
    return mounts.run([mounts.command("daxfs"), "poison", *args], check=check)


def spoil(path, *pages):
    for n in pages:
        poison("add", path, n * PAGE, PAGE)


def listed(source) -> int:
    return json.loads(poison("list", source, "--json").stdout)["bytes"] // PAGE


def error(call, *args) -> str:
    with pytest.raises(OSError) as caught:
        call(*args)
    return errno.errorcode[caught.value.errno]


def sigbus_at(path, at: int) -> bool:
    """A program reads the byte before, and then dies."""
    done = subprocess.run([sys.executable, "-c", LOOK, path, str(at)], capture_output=True, text=True,
                          check=False)
    assert len(done.stdout.splitlines()) == 1, done
    return done.returncode == -signal.SIGBUS


@pytest.fixture(params=mounts.TRANSPORTS)
def region(request):
    reason = mounts.why_no_transport(request.param)
    if reason:
        pytest.skip(reason)
    with mounts.MountedRegion(64 * mounts.MIB, transport=request.param) as made:
        yield made.mount()
        made.umount()
        done = made.fsck("-n")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def file(region):
    path = region.path / "f"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDWR)
    yield path, fd
    with contextlib.suppress(OSError):  # of a daemon that was killed
        os.close(fd)


def test_reads(region, file):
    path, fd = file
    spoil(path, 5, 40)
    assert error(os.pread, fd, PAGE, 5 * PAGE) == "EIO" == error(os.pread, fd, 1, 6 * PAGE - 1)
    assert os.pread(fd, PAGE, 4 * PAGE) == page(4) and os.pread(fd, PAGE, 6 * PAGE) == page(6)
    assert os.pread(fd, 16 * PAGE, 0) == DATA[: 5 * PAGE]
    assert os.fstat(fd).st_size == len(DATA)
    other = region.path / "g"
    other.write_bytes(DATA)
    assert other.read_bytes() == DATA


def test_writes(region, file):
    path, fd = file
    spoil(path, 5, 6, 40)
    assert error(os.pwrite, fd, b"x", 5 * PAGE + 7) == "EIO"
    assert error(os.pwrite, fd, b"x" * PAGE, 5 * PAGE + 7) == "EIO"
    assert os.pwrite(fd, b"n" * 2 * PAGE, 5 * PAGE) == 2 * PAGE
    assert os.pread(fd, 20 * PAGE, 0) == DATA[: 5 * PAGE] + b"n" * 2 * PAGE + DATA[7 * PAGE : 20 * PAGE]
    assert listed(region.path) == 1
    region.kill()
    region.mount()
    assert listed(region.path) == 1 and listed(region.source) == 1
    assert error(region_read, path, 40) == "EIO"
    assert region_read(path, 5) == b"n" * PAGE


def region_read(path, n) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, PAGE, n * PAGE)
    finally:
        os.close(fd)


def test_mappings_of_the_page_cache(region, file):
    """Pages that the kernel has already, and those that it reads ahead, too."""
    path, fd = file
    with mmap.mmap(fd, len(DATA)) as mapping:
        assert mapping[:] == DATA
        mapping[3 * PAGE] = 99
        spoil(path, 3, 30)
        assert sigbus_at(path, 3 * PAGE) and sigbus_at(path, 30 * PAGE)
        assert mapping[31 * PAGE] == 32 and mapping[29 * PAGE + 4095] == 30
    assert os.fstat(fd).st_size == len(DATA)
    os.pwrite(fd, page(90), 30 * PAGE)
    with mmap.mmap(fd, len(DATA)) as mapping:
        assert mapping[30 * PAGE : 31 * PAGE] == page(90)
    poison("clear", path, 3 * PAGE, PAGE)
    with mmap.mmap(fd, len(DATA)) as mapping:
        assert mapping[3 * PAGE] == 99 and mapping[3 * PAGE + 1] == 4, "clear leaves the bytes"


def test_giving_up_pages(region, file):
    path, fd = file
    spoil(path, 5, 20, 63)
    if region.transport != "pyfuse3":
        mounts.run(["fallocate", "--punch-hole", "--offset", 5 * PAGE, "--length", PAGE, path])
        assert os.pread(fd, PAGE, 5 * PAGE) == bytes(PAGE) and listed(region.path) == 2
        target = os.open(region.path / "t", os.O_RDWR | os.O_CREAT)
        assert os.copy_file_range(fd, target, 64 * PAGE, 0, 0) <= 20 * PAGE
        assert error(os.copy_file_range, fd, target, PAGE, 20 * PAGE, 0) == "EIO"
        assert os.lseek(fd, 20 * PAGE, os.SEEK_DATA) == 20 * PAGE
        os.close(target)
    os.ftruncate(fd, 30 * PAGE)
    os.ftruncate(fd, 64 * PAGE)
    assert os.pread(fd, PAGE, 63 * PAGE) == bytes(PAGE)
    path.unlink()
    os.close(os.dup(fd))
    assert error(os.pread, fd, PAGE, 20 * PAGE) == "EIO"


def test_what_is_shown(region):
    path = region.path / "f"
    path.write_bytes(DATA)
    spoil(path, 5, 6)
    assert region.stat()["space"]["poisoned"] == 2
    info = json.loads(mounts.run([mounts.command("daxfs"), "info", "--json", region.path]).stdout)
    assert info["space"]["poisoned_bytes"] == 2 * PAGE and info["features"]["ro_compat"] == 1
    shown = mounts.run([mounts.command("daxfs"), "info", region.path]).stdout
    assert "8.0 KiB (daxfs poison list)" in shown
    region.umount()
    done = region.fsck("-n")
    assert done.returncode == 0 and f"inode {2}: 2 pages of its data are poisoned" in done.stderr
    region.mount()


def test_metadata_on_a_live_mount(region, file):
    """Refused, and with --force the directory answers errors, and everything else goes on."""
    _, fd = file
    region.expect_log("its metadata, are poisoned")
    sub = region.path / "d"
    sub.mkdir()
    (sub / "in").touch()
    info = json.loads(mounts.run([mounts.command("daxfs"), "info", "--json", region.path]).stdout)
    pfn = next(n for n in range(info["data_pfn"], 4000) if is_directory(region.path, n))
    done = poison("add", region.path, pfn * PAGE, PAGE, check=False)
    assert done.returncode == 1 and "--force" in done.stderr and listed(region.path) == 0
    poison("add", "--force", region.path, pfn * PAGE, PAGE)
    assert os.pread(fd, 1, 0) == b"\1"
    assert error(os.mkdir, region.path / "x") in ("EUCLEAN", "EIO")
    assert region.fsck().returncode == 8
    poison("clear", region.path, pfn * PAGE, PAGE)
    os.mkdir(region.path / "x")


def is_directory(root, pfn) -> bool:
    """The root directory's block, as the refusal names it."""
    done = poison("add", root, pfn * PAGE, 1, check=False)
    if done.returncode == 0:
        poison("clear", root, pfn * PAGE, 1)
    return "directory of inode 1" in done.stderr


def test_own_ranges(direct_transport):
    """read and write as of packed files; what is mapped directly is the range itself, and goes on."""
    made = Pool(transport=direct_transport)
    try:
        path = made.path / "f"
        path.write_bytes(DATA)
        fd = os.open(path, os.O_RDWR)
        spoil(path, 5)
        assert os.pread(fd, 16 * PAGE, 0) == DATA[: 5 * PAGE]
        assert error(os.pread, fd, PAGE, 5 * PAGE) == "EIO" == error(os.pwrite, fd, b"x", 5 * PAGE)
        with mmap.mmap(fd, len(DATA)) as mapping:
            assert mapping[5 * PAGE] == 6
        made.region.kill()
        os.close(fd)
        made.region.mount()
        fd = os.open(path, os.O_RDWR)
        assert error(os.pread, fd, PAGE, 5 * PAGE) == "EIO"
        assert os.pwrite(fd, b"n" * PAGE, 5 * PAGE) == PAGE and listed(made.path) == 0
        assert os.pread(fd, PAGE, 5 * PAGE) == b"n" * PAGE
        spoil(path, 7)
        path.unlink()
        os.close(fd)
        made.region.umount()
        assert listed(made.region.source) == 0 and made.region.fsck("-n").returncode == 0
        made.region.mount()
    finally:
        made.close()
