# SPDX-License-Identifier: MIT
"""daxfs raw as a command: its messages and statuses, its sources, reports, remount and end."""

import json
import os
import shutil
import sys
from pathlib import Path

import mounts
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "t4_fuse"))

import daemonkit
import rawkit

from daxfs.cli import raw as command

pytestmark = pytest.mark.mount
MIB = mounts.MIB


def raw(*args):
    return mounts.run([mounts.command("daxfs"), "raw", *args], check=False)


def test_wrong_command_lines(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(bytes(MIB))
    for args, status, says in (
        ((), 1, "Missing argument"), ((source,), 1, "Missing argument"),
        ((source, tmp_path, "-o", "bogus"), 1, "unknown mount option 'bogus'"),
        ((source, tmp_path, "-o", "track=pte"), 1, "means nothing for a raw region"),
        ((source, tmp_path, "-o", "uid=5"), 1, "means nothing for a raw region"),
        ((source, tmp_path, "-o", "raw"), 1, "means nothing for a raw region"),
        ((source, tmp_path / "none"), 32, "does not exist"), ((source, source), 32, "not a directory"),
        ((tmp_path / "none", tmp_path), 32, "No such file"), (("/dev/null", tmp_path), 32, "/dev/null"),
        ((f"{source},{source}", tmp_path), 32, "given twice"),
    ):  # fmt: skip
        done = raw(*args)
        assert done.returncode == status and says in done.stderr and "Traceback" not in done.stderr, done
        assert done.stderr.startswith("daxfs raw: ") and done.stderr.count("\n") == 1, done.stderr
    assert mounts.mounts_of(tmp_path) == []


def test_too_small(tmp_path):
    (tmp_path / "source").write_bytes(b"x" * 100)
    done = raw(tmp_path / "source", tmp_path)
    assert done.returncode == 32 and "too small" in done.stderr


def test_root_alone(tmp_path, capfd):
    """In this process: nobody may not be let at what is installed."""
    (tmp_path / "source").write_bytes(bytes(MIB))
    assert rawkit.as_nobody(lambda: command.main([str(tmp_path / "source"), str(tmp_path)])) == 1
    assert "raw is for root" in capfd.readouterr().err


def test_several_sources(tmp_path):
    """A file for each, in their order."""
    sources = [tmp_path / name for name in ("b", "a", "c")]
    for number, source in enumerate(sources):
        source.write_bytes(bytes([number]) * (MIB + number * 4096))
    (tmp_path / "mnt").mkdir()
    done = raw(",".join(map(str, sources)), tmp_path / "mnt", "-v")
    try:
        assert done.returncode == 0 and "mounted on" in done.stdout
        assert sorted(os.listdir(tmp_path / "mnt")) == ["0", "1", "2"]
        for number, source in enumerate(sources):
            assert (tmp_path / "mnt" / str(number)).read_bytes() == source.read_bytes()
    finally:
        mounts.umount(tmp_path / "mnt")


def test_pool_directory():
    """Its file `region`."""
    with rawkit.RawRegion(4 * MIB, kind="pool") as region:
        region.mount()
        with open(region.file, "r+b", buffering=0) as file:
            file.write(b"into the pool")
        assert (region.source / "region").read_bytes()[:13] == b"into the pool"
        assert region.stat()["raw"][0]["why_not"] == ""


def test_block_device(tmp_path):
    """A loop device: read, written and mapped through the page cache; it can't be switched."""
    if not shutil.which("losetup"):
        pytest.skip("no losetup")
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 8 * MIB)
    done = mounts.run(["losetup", "-f", "--show", image], check=False)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        with rawkit.RawRegion(8 * MIB, kind="path", source=device) as region:
            region.mount()
            fd = os.open(region.file, os.O_RDWR)
            assert os.pwrite(fd, b"block", 5 * MIB) == 5 and os.pread(fd, 5, 5 * MIB) == b"block"
            os.fsync(fd)
            assert image.read_bytes()[5 * MIB :][:5] == b"block"
            with rawkit.Mapper(region.file) as mapper:
                assert mapper.load(5 * MIB, 5) == "block"
            (facts,) = region.stat()["raw"]
            assert not facts["dax"] and "block device" in facts["why_not"]
            if region.stat()["transport"]["kind"] != "pyfuse3":
                assert rawkit.get(fd) == 0
                assert rawkit.set_to(fd, 1) == rawkit.ENOTTY and rawkit.set_to(fd, 0) == 0
            os.close(fd)
    finally:
        mounts.run(["losetup", "-d", device])


def test_stat_and_info():
    with rawkit.RawRegion(4 * MIB) as region:
        region.mount()
        shown = mounts.run([mounts.command("daxfs"), "stat", region.path]).stdout
        assert "raw file" in shown and str(region.source)[:20] in shown and "journal" not in shown
        facts = json.loads(mounts.run([mounts.command("daxfs"), "info", "--json", region.path]).stdout)
        assert facts["mounted"]["mountpoint"] == str(region.path) and "uuid" not in facts
        for what in (region.path, region.source):
            assert "read-write" in mounts.run([mounts.command("daxfs"), "info", what]).stdout


def test_remount():
    """ro and rw; nothing else can change."""
    with rawkit.RawRegion(4 * MIB) as region:
        region.mount()
        mounts.run([mounts.command("mount.daxfs"), region.source, region.path, "-o", "remount,ro"])
        assert rawkit.code(os.open, region.file, os.O_RDWR) == 30
        mounts.run([mounts.command("mount.daxfs"), region.source, region.path, "-o", "remount,rw"])
        with open(region.file, "r+b", buffering=0) as file:
            assert file.write(b"x") == 1


def test_foreground_and_signals():
    region = rawkit.RawRegion(4 * MIB)
    try:
        daemon = daemonkit.Daemon(region)
        try:
            daemon.process.terminate()
            assert daemon.end() == 0
        finally:
            daemon.close()
    finally:
        region.close()


def test_a_truncated_source_ends_with_32():
    region = rawkit.RawRegion(4 * MIB)
    region.expect_log("CRITICAL|ended|truncated")
    try:
        daemon = daemonkit.Daemon(region)
        try:
            os.truncate(region.source, 4096)
            assert rawkit.code(region.file.read_bytes) == 5
            mounts.umount(region.path)
            assert daemon.end() == 32 and "was truncated under the mount" in daemon.said()
        finally:
            daemon.close()
    finally:
        region.close()
