# SPDX-License-Identifier: MIT
"""mkfs.daxfs as a user calls it: what it makes, what it refuses, what it leaves alone."""

import os
import re
import shutil
import subprocess
import time

import mounts
import pytest

from daxfs import layout
from daxfs.cli import common
from daxfs.cli.mkfs import signature, summary
from daxfs.errors import UsageError
from daxfs.meta import fs as metafs
from daxfs.region import Region

MIB = mounts.MIB
COLD_STARTS = True


def mkfs(*args, status=0):
    done = mounts.run([mounts.command("mkfs.daxfs"), *args], check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if status:
        assert done.stderr.startswith("mkfs.daxfs: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr if status else done.stdout


def head(path):
    with open(path, "rb") as file:
        return file.read(MIB)


def open_fs(*paths):
    with Region.open([str(path) for path in paths], mode="cow") as region:
        fs = metafs.mount(region, readonly=True)
        root = fs.inodes.read(layout.ROOT_INO)
        return fs.sb, fs.statfs(), (root.uid, root.gid)


def test_makes_a_file_and_says_what(tmp_path):
    path = tmp_path / "region"
    text = mkfs("--size", "32M", "-L", "lab", "-U", "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0", "-N", "500", path)
    assert path.stat().st_size == 32 * MIB and path.stat().st_mode & 0o777 == 0o600
    assert "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0" in text and f"mount.daxfs {path}" in text
    sb, space, owner = open_fs(path)
    assert sb.label == b"lab" and sb.uuid.hex() == "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
    assert space["files"] >= 500 and owner == (os.geteuid(), os.getegid())


def test_emulated_is_said():
    path = f"/dev/shm/{mounts.PREFIX}emulated"
    try:
        assert "emulated: not power-fail safe" in mkfs("-s", "16M", path)
        assert mkfs("-q", "-f", path) == ""
    finally:
        os.unlink(path)


def test_pool_directory_is_made(tmp_path):
    mkfs("-s", "16M", f"{tmp_path}/new/")
    assert (tmp_path / "new/region").stat().st_size == 16 * MIB
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    existing = tmp_path / "there"
    existing.mkdir()
    mkfs("-s", "16M", existing)
    assert (existing / "region").exists()


def test_several_sources_and_map_dev(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    mkfs("-s", "16M", "--map", "dev", *paths)
    sb, _, _ = open_fs(*paths)
    assert sb.nsources == 2 and sb.map == layout.MAP_DEV and sb.map_pages > 0
    assert "a part of a daxfs region" in mkfs(paths[1], status=1)


def test_missing_source_needs_a_size(tmp_path):
    assert "--size" in mkfs(tmp_path / "none", status=1)
    assert "--size" in mkfs(f"{tmp_path}/pool/", status=1)
    assert list(tmp_path.iterdir()) == []


def test_failure_removes_what_it_made(tmp_path):
    mkfs("-s", "1M", tmp_path / "small", status=1)
    mkfs("-s", "1M", f"{tmp_path}/pool/", status=1)
    mkfs("-s", "16M", "-N", "1000000", tmp_path / "crowded", status=1)
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_region_without_force(tmp_path):
    path = tmp_path / "region"
    mkfs("-s", "16M", "-U", "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0", path)
    before = path.read_bytes()
    assert "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0" in mkfs(path, status=1)
    assert path.read_bytes() == before
    mkfs("-f", path)
    assert open_fs(path)[0].uuid != bytes.fromhex("0f1e2d3c4b5a69788796a5b4c3d2e1f0")


def test_refuses_a_damaged_region(tmp_path):
    path = tmp_path / "region"
    mkfs("-s", "16M", path)
    with open(path, "r+b") as file:
        file.write(bytes(4096))  # the backup at the end is still there
    assert "daxfs region" in mkfs(path, status=1)
    with open(path, "r+b") as file:
        file.write(layout.SB_MAGIC)
    assert "damaged daxfs region" in mkfs(path, status=1)


@pytest.mark.parametrize("tool", ["mkfs.ext4", "mkfs.xfs", "mkswap"])
def test_refuses_other_file_systems(tmp_path, tool):
    program = common.find_tool(tool)
    if not program:
        pytest.skip(f"no {tool}")
    path = tmp_path / "other"
    path.touch()
    os.truncate(path, 400 * MIB)
    subprocess.run([program, path], check=True, capture_output=True)
    before = head(path)
    text = mkfs(path, status=1)
    assert {"mkfs.ext4": "ext", "mkfs.xfs": "xfs", "mkswap": "swap"}[tool] in text and "--force" in text
    assert head(path) == before
    mkfs("-f", path)
    assert signature(str(path), path.stat()) == ""  # and blkid finds nothing of it any more
    open_fs(path)


def test_size_never_shrinks_and_grows(tmp_path):
    path = tmp_path / "region"
    path.touch()
    os.truncate(path, 32 * MIB)
    assert "never shrinks" in mkfs("-s", "16M", path, status=1)
    mkfs("-s", "48M", path)
    assert path.stat().st_size == 48 * MIB


def test_busy_is_refused_even_with_force(tmp_path):
    path = tmp_path / "region"
    mkfs("-s", "16M", path)
    with Region.open([str(path)]):
        assert "busy" in mkfs("-f", path, status=1)


@pytest.mark.mount
def test_mounted_is_refused_even_with_force(mount_factory):
    region = mount_factory()
    (region.path / "file").write_text("x")
    assert "busy" in mkfs("-f", region.source, status=1)
    region.remount()
    assert (region.path / "file").read_text() == "x"


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["-s", "x"], "size"), (["-s", "0"], "size"), (["-U", "x"], "UUID"), (["-L", "x" * 65], "label"),
        (["-N", "0"], "--inodes"), (["--map", "disk"], "--map"), (["--bogus"], "--bogus"),
    ],
)  # fmt: skip
def test_usage_errors(tmp_path, args, word):
    assert word in mkfs(*args, tmp_path / "x", status=1)
    assert not (tmp_path / "x").exists()


def test_no_source():
    assert "SOURCE" in mkfs(status=1)


def test_sources_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    mkfs("-f", tmp_path / "fifo", status=1)
    mkfs("-f", "/dev/null", status=1)


def test_tebibyte_in_seconds():
    path = f"/dev/shm/{mounts.PREFIX}tebi"
    try:
        start = time.monotonic()
        mkfs("-s", "1T", path)
        assert time.monotonic() - start < 5
        assert os.stat(path).st_blocks * 512 < 64 * MIB
    finally:
        os.unlink(path)


@pytest.fixture
def loop(tmp_path):
    """A loop device of 32 MiB."""
    if os.geteuid() != 0 or not shutil.which("losetup"):
        pytest.skip("no root or no losetup")
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 32 * MIB)
    done = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    yield done.stdout.strip()
    subprocess.run(["losetup", "-d", done.stdout.strip()], check=True)


def test_block_device(tmp_path, loop):
    assert "granularity  page" in mkfs(loop)
    assert "own size" in mkfs("-f", "-s", "1G", loop, status=1)
    assert f"stands behind {loop}" in mkfs("-f", tmp_path / "image", status=1)


@pytest.mark.mount
def test_mounted_block_device(tmp_path, loop):
    program = common.find_tool("mkfs.ext4")
    if not program:
        pytest.skip("no mkfs.ext4")
    subprocess.run([program, "-q", loop], check=True)
    (tmp_path / "mnt").mkdir()
    subprocess.run(["mount", loop, tmp_path / "mnt"], check=True)
    try:
        assert "ext4" in mkfs(loop, status=1)
        assert "busy" in mkfs("-f", loop, status=1)
    finally:
        mounts.umount(tmp_path / "mnt")


def test_summary_fits_a_terminal(tmp_path):
    path = str(tmp_path / "region")
    mkfs("-s", "16M", path)
    with Region.open([path], mode="cow") as region:
        lines = summary(region, metafs.mount(region, readonly=True).sb)
    assert all(len(line.replace(path, "")) <= 60 for line in lines)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("64M", 64 << 20), ("1 GiB", 1 << 30), ("1.5g", 3 << 29), ("2TB", 2 << 40),
     ("8k", 8192)],
)
def test_parse_size(text, size):
    assert common.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "0", "1X", "M", "1e9", "9999999P", "\uff11G"])
def test_parse_size_refuses(text):
    with pytest.raises(UsageError):
        common.parse_size(text)


def test_show():
    assert [common.show_size(n) for n in (0, 1023, 1024, 3 << 39)] == ["0 B", "1023 B", "1.0 KiB", "1.5 TiB"]
    shown = [common.show_time(n) for n in (0, 999, 1500, 123_456, 2_500_000_000)]
    assert shown == ["0 ns", "999 ns", "1.5 µs", "123 µs", "2.5 s"]
    assert re.fullmatch(r"[\d.]+ \S+", common.show_time(999_600))
