# SPDX-License-Identifier: MIT
"""xfs_io scripts on the mount and on XFS over a loop device: same bytes, same sizes, same output.

For what pyfuse3 cannot carry and the native transports add: fallocate, SEEK_HOLE and SEEK_DATA,
copy_file_range, the attribute ioctls, statx; and for sync_file_range and syncfs. What may differ is left out
by name, with the reason.
"""

import os
import re
import shutil

import loops
import mounts
import pytest

pytestmark = [pytest.mark.mount, pytest.mark.transports,
              pytest.mark.skipif(not shutil.which("xfs_io"), reason="xfs_io is not installed")]

# The speed of pwrite, pread and copy_range: "12 KiB, 3 ops; 0.0001 sec ...".
SPEED = re.compile(r" ops; ")
# `stat`, `statx -r`: what depends on the clock, the device and the inode's number; blocks, because a file
# system may count its metadata, and XFS preallocates behind the end of file.
STAT = re.compile(r"(fd\.path|stat\.(ino|blocks|atime|mtime|ctime|btime|dev_|rdev_)|dioattr)")
# What each file system says of itself: fields that it fills in, the mount's id, attributes (of those that a
# daemon sends, STATX_ATTR_DAX is one, the kernel's FUSE hands on none). fsxattr: `stat` of xfs_io asks for it
# on XFS alone, lsattr asks everywhere.
OWN = re.compile(r"(stat\.(mask|attributes|mnt_id)|fsxattr\.)")
# `lsattr`: the flags before the path; only the one for DAX is compared (XFS shows one for "has xattrs", too).
LSATTR = re.compile(r"([-a-zA-Z]{16,}) DIR/file")

SCRIPTS = {
    "falloc": ["pwrite -S 0x61 0 10000", "falloc 4096 100000", "stat", "pread -v 9990 20", "falloc -k 0 1m",
               "stat", "falloc 200000 1", "stat", "pread -v 199990 11"],
    "falloc_then_write": ["falloc 0 1m", "pwrite -S 0x62 100000 5000", "pread -v 99990 32",
                          "pread -v 104990 32", "fsync", "truncate 300000", "falloc 0 400000",
                          "pread -v 299990 32", "stat"],
    "fpunch": ["pwrite -S 0x61 0 100000", "fpunch 4096 8192", "pread -v 4090 16", "pread -v 12280 16",
               "fpunch 20000 100", "pread -v 19990 120", "fpunch 90000 100000", "stat", "pread -v 89990 32",
               "pwrite -S 0x62 8000 10", "pread -v 7990 32", "fpunch 0 1m", "stat", "pread -v 0 32"],
    "fzero": ["pwrite -S 0x61 0 50000", "fzero 1000 5000", "pread -v 990 32", "pread -v 5990 32",
              "fzero 40000 20000", "stat", "pread -v 39990 32", "fzero -k 55000 100000", "stat",
              "fzero 70000 10", "stat"],
    "seek": ["pwrite -S 0x61 4m 64k", "pwrite -S 0x62 8m 4k", "truncate 12m", "fsync", "seek -h 0",
             "seek -d 0", "seek -h -r 0", "seek -d -r 0", "seek -a -r 0", "seek -d 4194400",
             "seek -h 4194400", "seek -d 8m", "seek -h 8m", "seek -d 9m", "seek -h 9m", "seek -d 12m",
             "seek -h 12m", "seek -h 13m"],
    "seek_empty": ["seek -h 0", "seek -d 0", "truncate 1m", "seek -h 0", "seek -d 0", "seek -a -r 0"],
    # In whole pieces of 256 KiB: see ZEROED.
    "seek_unwritten": ["falloc 0 4m", "seek -a -r 0", "pwrite -S 0x61 1m 512k", "fsync", "seek -a -r 0"],
    "seek_after_punch": ["pwrite -S 0x61 0 1m", "fsync", "fpunch 128k 128k", "seek -a -r 0", "fpunch 0 64k",
                         "seek -a -r 0", "fpunch 960k 64k", "seek -a -r 0"],
    "copy_range": ["pwrite -S 0x61 0 100000", "copy_range -s 0 -d 1m -l 50000 {file}", "stat",
                   "pread -v 1048570 16", "pread -v 1098570 16", "copy_range -s 99990 -d 0 -l 10 {file}",
                   "pread -v 0 32", "copy_range -s 500 -d 3m -l 12345 {file}", "stat"],
    "copy_range_overlap": ["pwrite -S 0x61 0 8192", "copy_range -s 0 -d 100 -l 4096 {file}",
                           "pread -v 90 20"],
    "copy_range_whole": ["copy_range {other}", "stat", "pread -v 0 32", "pread -v 149990 10"],
    "dax_flag": ["lsattr", "chattr +x", "lsattr", "pwrite -S 0x61 0 4096", "lsattr", "chattr -x", "lsattr",
                 "pread -v 0 16"],
    "statx": ["pwrite -S 0x61 0 12345", "statx", "statx -r", "statx -r -m basic", "statx -r -F", "stat"],
    "sync": ["pwrite -S 0x61 0 100000", "sync_range 0 100000", "sync_range -w -a -b 4096 8192", "syncfs",
             "fdatasync", "fsync", "pread -v 99990 16"],
    "errors": ["pwrite -S 0x61 0 4096", "falloc 0 0", "fpunch 0 0", "fzero 0 0", "seek -d 8192", "stat"],
}
# A write into unwritten pages makes zeros of its neighbours, up to 256 KiB (daxfs/meta/prealloc.py), so that
# the next writes need no metadata; ext4 does so too, XFS does not. The bytes are the same, the holes are not.
ZEROED = {"falloc_then_write"}


@pytest.fixture(scope="module")
def xfs():
    """XFS over a loop device."""
    reason = loops.why_not("xfs")
    if reason:
        pytest.skip(reason)
    with loops.LoopMount("xfs") as made:
        yield made


@pytest.fixture
def native(transport):
    if transport == "pyfuse3":
        pytest.skip("pyfuse3 has no handlers for fallocate, lseek, ioctl")


@pytest.fixture
def places(native, target, xfs):
    """(directory on the mount, directory on XFS), both with the same file ``other``."""
    oracle = xfs.path / target.name
    oracle.mkdir()
    for place in (target, oracle):
        (place / "other").write_bytes(bytes(range(250)) * 600)
    yield target, oracle
    shutil.rmtree(oracle)


def xfs_io(place, commands) -> list[str]:
    """Run the script on ``file`` in *place*; its output without what may differ."""
    args = ["xfs_io", "-f"]
    for text in commands:
        args += ["-c", text.format(file=place / "file", other=place / "other")]
    done = mounts.run([*args, place / "file"], check=False, timeout=60)
    lines = []
    for line in (done.stdout + done.stderr).splitlines():
        text = line.replace(str(place), "DIR")
        text = LSATTR.sub(lambda found: f"{'x' if 'x' in found[1] else '-'} DIR/file", text)
        if text and not SPEED.search(text) and not STAT.match(text) and not OWN.match(text):
            lines.append(text)
    return lines


@pytest.mark.parametrize("name", SCRIPTS)
def test_same_as_xfs(places, name):
    outputs = [xfs_io(place, SCRIPTS[name]) for place in places]
    assert outputs[0] == outputs[1]
    assert outputs[0]
    files = [place / "file" for place in places]
    assert os.stat(files[0]).st_size == os.stat(files[1]).st_size
    assert files[0].read_bytes() == files[1].read_bytes()


def test_same_as_xfs_after_a_fresh_mount(places, reopen, xfs):
    """What the scripts left, bytes and holes, is on the media; one after the other on files of their own."""
    for name, script in SCRIPTS.items():
        for place in places:
            xfs_io(place, script)
            os.rename(place / "file", place / f"file-{name}")
    reopen()
    # XFS takes a cached page over an unwritten extent for data, so what `pread` left in its cache must go.
    xfs.remount()
    for name in SCRIPTS:
        for place in places:
            os.rename(place / f"file-{name}", place / "file")
        commands = ["lsattr"] if name in ZEROED else ["seek -a -r 0", "lsattr"]
        seek = [xfs_io(place, commands) for place in places]
        assert seek[0] == seek[1], name
        assert places[0].joinpath("file").read_bytes() == places[1].joinpath("file").read_bytes(), name
        for place in places:
            os.unlink(place / "file")
