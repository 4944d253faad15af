# SPDX-License-Identifier: MIT
"""Mounting through fusermount3: the descriptor, its refusals, auto_unmount; as root and as nobody."""

import contextlib
import ctypes
import errno
import os
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import mounts
import pytest

from daxfs.cli import mount as mount_command
from daxfs.errors import SourceError
from daxfs.fuse import fusermount, mountinfo, options

NOBODY = 65534
INIT = 26

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(shutil.which("fusermount3") is None, reason="no fusermount3: apt install fuse3"),
]


@pytest.fixture
def mountpoint():
    path = Path(tempfile.mkdtemp(prefix=mounts.PREFIX))
    yield path
    while mountinfo.mount_at(str(path)):
        subprocess.run(["umount", "-l", path], check=True)
    path.rmdir()


def arguments(text="", name="some region"):
    config = options.parse(text)
    config.fsname = name
    return [str(word) for word in options.fuse_arguments(config)]


def test_a_mounted_descriptor(mountpoint):
    before = sorted(os.listdir("/proc/self/fd"))
    device, keepalive = fusermount.mount(str(mountpoint), arguments("noatime", "a b,c"))
    try:
        assert keepalive is None and not os.get_inheritable(device)
        mount = mountinfo.mount_at(str(mountpoint))
        assert (mount.fstype, mount.source) == ("fuse.daxfs", "a b,c") and "noatime" in mount.options
        assert "default_permissions" in mount.super_options
        assert struct.unpack_from("=II", os.read(device, 1 << 16))[1] == INIT
        fusermount.unmount(str(mountpoint))
        assert mountinfo.mount_at(str(mountpoint)) is None
        fusermount.unmount(str(mountpoint))  # nothing there is no error
    finally:
        os.close(device)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_auto_unmount(mountpoint):
    """The daemon is gone without an unmount: fusermount3, which waited for that, takes the mount away."""
    before = sorted(os.listdir("/proc/self/fd"))
    device, keepalive = fusermount.mount(str(mountpoint), arguments("auto_unmount"))
    os.close(device)
    assert mountinfo.mount_at(str(mountpoint))
    keepalive.close()
    assert mountinfo.mount_at(str(mountpoint)) is None
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_auto_unmount_after_a_kill(mountpoint):
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            fusermount.mount(str(mountpoint), arguments("auto_unmount"))
            os.kill(os.getpid(), 9)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    end = time.monotonic() + 20
    while mountinfo.mount_at(str(mountpoint)):
        assert time.monotonic() < end, "the mount is left"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("make", "words", "code", "status"),
    [
        (lambda path: path / "none", [], "No such file or directory", errno.ENOENT),
        (lambda path: path, ["bogus"], "unknown option", errno.EINVAL),
    ],
)
def test_refusals(mountpoint, make, words, code, status):
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(SourceError, match=code) as caught:
        fusermount.mount(str(make(mountpoint)), arguments() + words)
    assert caught.value.errno == status and "fusermount3: " in str(caught.value)
    assert mount_command.status_of(caught.value) == 32
    assert sorted(os.listdir("/proc/self/fd")) == before and mountinfo.mount_at(str(mountpoint)) is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf\n",
         errno.EPERM),
        ("fusermount3: user has no write access to mountpoint /x\n", errno.EPERM),
        ("fusermount3: mount failed: Operation not permitted\n", errno.EPERM),
        ("/usr/bin/fusermount3: failed to open /dev/fuse: Permission denied\n", errno.EPERM),
        ("fusermount3: too many FUSE filesystems mounted; mount_max=N can be set\n", errno.ENOSPC),
        ("fusermount3: fuse device not found, try 'modprobe fuse' first\n", errno.ENODEV),
        ("fusermount3: failed to access mountpoint /x: No such file or directory\n", errno.ENOENT),
        ("fusermount3: mountpoint is not a directory\n", errno.ENOTDIR),
        ("", errno.EIO), ("nonsense\n", errno.EIO),
    ],
)  # fmt: skip
def test_words_of_fusermount3_become_an_errno(text, code):
    found = fusermount._refused("/x", text)
    assert found.errno == code and str(found).startswith("/x: fusermount3: ")
    assert str(found).count("fusermount3:") == 1


def test_without_the_program(mountpoint, monkeypatch):
    monkeypatch.setattr(fusermount, "PROGRAM", "no-such-fusermount")
    path = str(mountpoint)
    for action in (lambda: fusermount.mount(path, []), lambda: fusermount.unmount(path)):
        with pytest.raises(SourceError, match="apt install fuse3"):
            action()


def test_one_that_does_not_answer(mountpoint, monkeypatch, tmp_path):
    script = tmp_path / "fusermount3"
    script.write_text("#!/bin/sh\nsleep 60\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(fusermount, "_PATIENCE", 0.2)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(SourceError, match="does not answer") as caught:
        fusermount.mount(str(mountpoint), arguments())
    assert caught.value.errno == errno.ETIMEDOUT and sorted(os.listdir("/proc/self/fd")) == before


def open_device_for_all(directory):
    """A mount name space of our own in which /dev/fuse has the mode that distributions give it."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x20000):
        raise OSError(ctypes.get_errno(), "unshare")
    node = directory / "fuse"
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    os.mknod(node, 0o20666, os.makedev(10, 229))
    node.chmod(0o666)
    subprocess.run(["mount", "--bind", node, "/dev/fuse"], check=True)


def test_as_another_user(mountpoint, tmp_path):
    """Mount, be told of INIT, unmount; and a mount point that is not the user's is refused."""
    os.chown(mountpoint, NOBODY, NOBODY)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            open_device_for_all(tmp_path)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            device, _ = fusermount.mount(str(mountpoint), arguments())
            mount = mountinfo.mount_at(str(mountpoint))
            assert mount.owner == NOBODY and struct.unpack_from("=II", os.read(device, 1 << 16))[1] == INIT
            fusermount.unmount(str(mountpoint))
            assert mountinfo.mount_at(str(mountpoint)) is None
            try:
                fusermount.mount("/usr", arguments())
            except SourceError as exc:
                assert exc.errno == errno.EPERM, exc
                status = 0
        except BaseException as exc:
            print(f"as nobody: {type(exc).__name__}: {exc}")
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
