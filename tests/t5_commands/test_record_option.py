# SPDX-License-Identifier: MIT
"""mount -o record=: what can be no log and with which status, what stat shows, remounts, a full disk."""

import json
import os
import stat

import mounts
import pytest
from test_mount import installed_links, mount  # noqa: F401

from daxfs.testing import log

pytestmark = pytest.mark.mount


@pytest.fixture
def path():
    name = f"/dev/shm/{mounts.PREFIX}option"
    yield name
    if os.path.exists(name):
        os.unlink(name)


@pytest.fixture
def small(tmp_path):
    """A file system of its own that can be filled: call it for one of a size."""
    made = []

    def make(size, options="rw"):
        where = tmp_path / f"small{len(made)}"
        where.mkdir()
        mounts.run(["mount", "-t", "tmpfs", "-o", f"size={size},{options}", mounts.PREFIX, where])
        made.append(where)
        return where

    yield make
    for where in made:
        mounts.run(["umount", "-l", where], check=False)


def refused(region, path, status, word):
    text = mount(region.source, region.path, "-o", f"record={path},log_file={region.log_file}", status=status)
    assert word in text, text
    assert mounts.mounts_of(region.path) == []


def test_what_can_be_no_log(region_factory, tmp_path, small):
    region, other = region_factory(), region_factory()
    before = region.source.read_bytes(), other.source.read_bytes()
    os.symlink(region.source, tmp_path / "link")
    for path in (region.source, tmp_path / "link"):
        refused(region, path, 1, "is a source of the region")
    refused(region, other.source, 1, "holds a daxfs region")
    refused(region, "/dev/null", 1, "regular file")
    refused(region, region.path / "log", 1, "on the mount that it records")
    refused(region, region.path, 1, "on the mount that it records")
    os.symlink(region.path, tmp_path / "way")
    refused(region, tmp_path / "way" / "x" / "log", 1, "on the mount that it records")
    refused(region, region.log_file, 1, "is the log_file")
    refused(region, tmp_path, 32, "Is a directory")
    refused(region, tmp_path / "no" / "log", 32, "No such file")
    refused(region, small("1m", "ro") / "log", 32, "Read-only file system")
    refused(region, small("4k") / "log", 32, "No space left")
    assert not list(region.path.iterdir())
    assert (region.source.read_bytes(), other.source.read_bytes()) == before
    region.mount("")  # nothing has kept the source


def test_no_log_is_replaced_for_a_source_that_is_none(tmp_path):
    (tmp_path / "zeros").write_bytes(bytes(16 * mounts.MIB))
    (tmp_path / "mnt").mkdir()
    (tmp_path / "log").write_text("an older recording")
    assert "not a daxfs region" in mount(tmp_path / "zeros", tmp_path / "mnt", "-o", f"record={tmp_path}/log",
                                         status=32)
    assert (tmp_path / "log").read_text() == "an older recording"


def test_an_existing_file_is_replaced_and_made_private(region_factory, tmp_path):
    region = region_factory()
    path = tmp_path / "log, of mine"
    path.write_bytes(b"old" * 1000000)
    path.chmod(0o644)
    region.mount("record=" + str(path).replace(",", "\\,"))
    assert region.stat()["recording"]["path"] == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    region.umount()
    assert log.load(str(path)).events


def test_one_log_for_one_mount(mount_factory, region_factory, path):
    first, second = mount_factory(options=f"record={path}"), region_factory()
    refused(second, path, 32, "busy")
    first.umount()
    assert log.load(path).events
    second.mount(f"record={path}")


def test_stat_shows_it(mount_factory, path):
    region = mount_factory(options=f"record={path}")
    (region.path / "file").write_bytes(b"x" * 100000)
    shown = region.stat()["recording"]
    assert shown["path"] == path and shown["events"] > 10 and shown["bytes"] > 100000
    assert shown["error"] is None
    text = mounts.run([mounts.command("daxfs"), "stat", region.path]).stdout
    assert f"{path}: " in text and "events" in text and max(map(len, text.splitlines())) <= 80
    region.remount("")
    assert region.stat()["recording"] is None
    assert "recording" not in mounts.run([mounts.command("daxfs"), "stat", region.path]).stdout


def test_a_full_disk_ends_the_log_and_not_the_mount(mount_factory, small):
    path = small("6m") / "log"
    region = mount_factory(options=f"record={path}")
    region.expect_log("the recording has ended")
    for number in range(20):
        (region.path / f"file{number}").write_bytes(bytes([number]) * mounts.MIB)
    assert region.stat()["recording"]["error"] == "No space left on device"
    assert "ended: No space" in mounts.run([mounts.command("daxfs"), "stat", region.path]).stdout
    assert (region.path / "file19").read_bytes() == b"\x13" * mounts.MIB
    region.umount()
    assert region.log_file.read_text().count("the recording has ended: No space left on device") == 1
    assert len(log.load(str(path)).events) > 20
    region.mount("")
    assert (region.path / "file19").read_bytes() == b"\x13" * mounts.MIB


def test_a_disk_that_is_full_at_the_end(mount_factory, small):
    """Nothing was written out before the unmount: that is where it fails, and is said."""
    where = small("1m")
    region = mount_factory(options=f"record={where}/log")
    region.expect_log("the recording has ended")
    (where / "filler").write_bytes(bytes(os.statvfs(where).f_bavail * 4096))
    (region.path / "file").write_bytes(b"x" * 500000)
    region.umount()
    assert region.log_file.read_text().count("the recording has ended: No space left on device") == 1


def test_a_remount_leaves_it_alone(mount_factory, path):
    region = mount_factory(options=f"record={path}")
    assert "umount and mount" in mount("none", region.path, "-o", "remount,ro,record=/elsewhere", status=1)
    assert not region.stat()["readonly"]
    mount("none", region.path, "-o", f"remount,noatime,record={path}")  # as mount(8) says it with fstab
    assert "noatime" in region.stat()["options"] and region.stat()["recording"]["path"] == path
    region.remount("")
    assert "umount and mount" in mount("none", region.path, "-o", f"remount,record={path}", status=1)


@pytest.mark.usefixtures("installed_links")
def test_through_mount_and_fstab(region_factory, tmp_path, path):
    region = region_factory()
    options = f"record={path},log_file={region.log_file}"
    mounts.run(["mount", "-t", "fuse.daxfs", region.source, region.path, "-o", options])
    region.adopt().umount()
    assert json.loads(log.load(path).events[0].data)["op"] == "mount"
    os.unlink(path)
    table = tmp_path / "fstab"
    table.write_text(f"{region.source} {region.path} fuse.daxfs noauto,{options} 0 0\n")
    mounts.run(["mount", "-T", table, region.path])
    region.adopt()
    mounts.run(["mount", "-T", table, "-o", "remount,noatime", region.path])
    assert region.stat()["recording"]["path"] == path
    region.umount()
    assert log.load(path).events
