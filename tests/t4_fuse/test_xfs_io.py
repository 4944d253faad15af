# SPDX-License-Identifier: MIT
"""xfs_io scripts: what it prints on the mount must be what it prints on tmpfs, and the bytes must agree.

The helpers take a directory and run on any mount point (``pytest --target DIR``).
"""

import os
import re
import shutil

import mounts
import pytest

pytestmark = [pytest.mark.mount, pytest.mark.transports,
              pytest.mark.skipif(not shutil.which("xfs_io"), reason="xfs_io is not installed")]

# Lines that depend on the clock, the file system's name or its inode numbers.
NOISE = re.compile(r"ops; |^fd\.path|^stat\.(ino|blocks|atime|mtime|ctime|btime)|^fsxattr|^dioattr"
                   r"|^[ \[]\d+\]? +0x|FS_IOC|XFS_IOC|FSGETXATTR")
NO_FSXATTR = re.compile(r"(FS|XFS)_IOC_(FS)?GETXATTR: Inappropriate ioctl for device$")

SCRIPTS = {
    "pwrite_pread": ["pwrite -S 0x61 0 10000", "pwrite -S 0x62 5000 20", "pread -v 4990 40", "fsync",
                     "pwrite -S 0x63 20000 1", "pread -v 9990 30", "pread 0 30000", "stat"],
    "mmap": ["truncate 65536", "mmap -rw 0 65536", "mwrite -S 0x41 4090 12", "msync -s 0 65536",
             "pread -v 4080 32", "pwrite -S 0x42 4092 2", "mread -v 4080 32", "munmap", "fsync", "stat"],
    "mmap_beyond_old_end": ["pwrite -S 0x31 0 5000", "truncate 12288", "mmap -rw 0 12288",
                            "mread -v 4992 32", "mwrite -S 0x32 8000 100", "msync -s", "munmap",
                            "pread -v 7990 20", "truncate 8001", "truncate 8100", "pread -v 7990 40"],
    "truncate": ["pwrite -S 0x51 0 9000", "truncate 4100", "truncate 9000", "pread -v 4090 32", "stat",
                 "truncate 0", "stat", "truncate 1m", "pread -v 1048560 16", "stat"],
    "two_mappings": ["truncate 8192", "mmap -rw 0 8192", "mmap -r 0 8192", "mmap 0", "mwrite -S 0x71 0 16",
                     "mmap 1", "mread -v 0 32", "munmap", "munmap"],
    "large": ["pwrite -b 1m -S 0x11 0 6m", "fsync", "pwrite -b 64k -S 0x12 1m 3m", "fdatasync",
              "pread -v 1048570 16", "pread -v 4194298 16", "pread -b 1m 0 6m"],
}

# Aligned, and without mmap: as pyfuse3 sets FUSE up, a direct-I/O open refuses shared mappings (FACTS.md).
DIRECT_SCRIPTS = {
    "blocks": ["pwrite -S 0x61 0 64k", "pwrite -S 0x62 -b 4k 8k 16k", "pread -v 4096 4096", "fsync", "stat"],
    "hole": ["pwrite -S 0x61 1m 4096", "pread -v 0 4096", "pread -v 1m 4096", "truncate 8192", "stat"],
    "large": ["pwrite -b 1m -S 0x11 0 6m", "fdatasync", "pwrite -b 4m -S 0x12 4m 4m", "pread -b 2m 0 8m"],
}


def xfs_io(file, commands, *flags):
    """Run *commands* on *file*; its output without what differs between two file systems."""
    args = ["xfs_io", "-f", *flags]
    for text in commands:
        args += ["-c", text]
    done = mounts.run([*args, file], check=False, timeout=60)
    # In xfsprogs 6.13 (Debian 13) `stat` fails at its end where there are no XFS attributes to show.
    failed = [line for line in done.stderr.splitlines() if not NO_FSXATTR.match(line)]
    assert done.returncode == 0 or (done.stderr and not failed), done.stdout + done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if line and not NOISE.search(line)]


def same_as(path, oracle, commands, *flags):
    """Run the script in both directories and compare output and content. The number of lines compared."""
    outputs, bodies = [], []
    for place in (path, oracle):
        file = place / "file"
        outputs.append(xfs_io(file, commands, *flags))
        bodies.append(file.read_bytes())
    assert outputs[0] == outputs[1]
    assert bodies[0] == bodies[1]
    return len(outputs[0])


@pytest.fixture
def oracle():
    """A tmpfs directory."""
    path = mounts.Path("/dev/shm") / f"{mounts.PREFIX}oracle"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("flags", [(), ("-s",)], ids=["cached", "sync"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_script(target, oracle, name, flags):
    assert same_as(target, oracle, SCRIPTS[name], *flags) > 0


@pytest.mark.parametrize("name", DIRECT_SCRIPTS)
def test_direct_script(target, oracle, name):
    assert same_as(target, oracle, DIRECT_SCRIPTS[name], "-d") > 0


def test_content_is_right_by_itself(target):
    """Not only equal to tmpfs: the bytes are the ones asked for."""
    file = target / "file"
    xfs_io(file, ["pwrite -S 0x61 0 8192", "mmap -rw 0 8192", "mwrite -S 0x7a 4096 10", "msync -s", "munmap",
                  "pwrite -S 0x62 4100 3", "fsync", "truncate 4110"])
    assert file.read_bytes() == b"a" * 4096 + b"zzzz" + b"bbb" + b"zzz" + b"a" * 4


def test_store_beyond_the_end_of_file_never_shows(target, reopen):
    """What was stored in the last page beyond the end reads as zeros once the file grows (tmpfs shows it)."""
    file = target / "file"
    xfs_io(file, ["pwrite -S 0x21 0 100", "mmap -rw 0 4096", "mwrite -S 0x22 200 50", "msync -s", "munmap",
                  "truncate 400"])
    assert file.read_bytes() == b"!" * 100 + bytes(300)
    reopen()
    assert file.read_bytes() == b"!" * 100 + bytes(300)


def test_holes_take_no_blocks(target):
    file = target / "sparse"
    xfs_io(file, ["truncate 16m", "pwrite -S 0x61 8m 4096", "fsync"])
    info = os.stat(file)
    assert info.st_size == 16 << 20
    assert 8 <= info.st_blocks < (4 << 20) // 512


def test_data_after_a_fresh_mount(target, reopen):
    file = target / "file"
    xfs_io(file, ["pwrite -S 0x61 0 100000", "mmap -rw 0 100000", "mwrite -S 0x62 50000 10000", "msync -s",
                  "munmap"])
    reopen()
    assert file.read_bytes() == b"a" * 50000 + b"b" * 10000 + b"a" * 40000
