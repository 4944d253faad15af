# SPDX-License-Identifier: MIT
"""Mounting, unmounting and killing by the commands; also proves the harness (tests/mounts.py) itself."""

import errno
import os
import subprocess

import mounts
import pytest

pytestmark = [pytest.mark.mount, pytest.mark.transports]
COLD_STARTS = True


def test_write_umount_mount_read(mount_factory):
    region = mount_factory()
    (region.path / "file").write_bytes(b"hello")
    first = region.pid
    region.remount()
    assert (region.path / "file").read_bytes() == b"hello"
    assert region.pid != first and mounts.start_time(first) is None


def test_kill_then_fsck_then_mount(mount_factory):
    region = mount_factory()
    (region.path / "file").write_bytes(b"hello" * 1000)
    region.kill()
    assert mounts.mounts_of(region.path) == [] and not region.daemon_alive()
    done = region.fsck("-n")
    assert done.returncode == 0, done.stdout + done.stderr
    region.mount()
    assert (region.path / "file").read_bytes() == b"hello" * 1000


def test_killed_daemon_answers_enotconn(mount_factory):
    region = mount_factory()
    fd = os.open(region.path, os.O_RDONLY)
    region.kill()
    with pytest.raises(OSError) as caught:
        os.statvfs(fd)
    os.close(fd)
    # With io_uring the kernel may still be taking the dead daemon's queues down: ECANCELED, once.
    assert caught.value.errno in (errno.ECONNABORTED, errno.ENOTCONN, errno.ECANCELED)


def test_pool_directory(mount_factory):
    region = mount_factory(kind="pool")
    (region.path / "file").write_bytes(b"pool")
    region.remount()
    assert (region.path / "file").read_bytes() == b"pool"


def test_second_daemon_is_refused(mount_factory, tmp_path):
    region = mount_factory()
    other = tmp_path / "other"
    other.mkdir()
    done = mounts.run([mounts.command("mount.daxfs"), region.source, other], check=False)
    if mounts.mounts_of(other):
        mounts.umount(other)
    assert done.returncode != 0
    assert done.stderr.strip() and "Traceback" not in done.stderr


def test_read_only_mount(mount_factory):
    region = mount_factory()
    (region.path / "file").write_bytes(b"x")
    region.remount("ro")
    assert (region.path / "file").read_bytes() == b"x"
    with pytest.raises(OSError) as caught:
        (region.path / "new").touch()
    assert caught.value.errno == 30


def test_daemon_does_not_hold_the_callers_pipes(region_factory):
    """A shell's $(mount.daxfs …) must end when the mount answers."""
    region = region_factory()
    try:
        subprocess.run(region.mount_command(), capture_output=True, check=True, timeout=60)
    finally:
        mounts.run(["umount", region.path], check=False)


def test_stat_names_the_daemon(mount_factory):
    """And the harness, which asks without the command for what kill() signals, has the same one."""
    region = mount_factory()
    assert region.stat()["pid"] == region.pid
    with open(f"/proc/{region.pid}/cmdline", "rb") as file:
        assert b"daxfs" in file.read()


def test_a_daemon_that_is_gone_is_not_adopted(mount_factory):
    region = mount_factory()
    region._signal_daemon()
    with pytest.raises(mounts.CommandError, match="gives no answer"):
        region.adopt()
    region.kill()
    with pytest.raises(mounts.CommandError, match="not a mount point"):
        region.adopt()


def test_close_cleans_up_after_a_kill(mount_factory):
    region = mount_factory()
    region.kill()
    region.close()
    assert mounts.mounts_of(region.path) == [] and not region.path.exists() and not region.source.exists()
    region.close()
