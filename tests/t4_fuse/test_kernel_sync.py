# SPDX-License-Identifier: MIT
"""What the kernel still has to write when a mount that is in use ends: all of it gets there.

syncfs(2) returns while its writes wait for their answers. Here they all wait then, for sure: a `sync` of ours
has the daemon stopped meanwhile.
"""

import contextlib
import fcntl
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
from types import SimpleNamespace

import mounts
import pytest
import trio

from daxfs.fuse import kernel_sync

MIB = 1 << 20
SIZE = 48 * MIB
SYNC = """#!{python}
import ctypes, os, signal, sys, time
daemon, fd = os.getppid(), os.open(sys.argv[-1], os.O_RDONLY)
begin, go = os.pipe()
if not os.fork():
    os.read(begin, 1)
    time.sleep(0.2)
    os.kill(daemon, signal.SIGCONT)
    os._exit(0)
os.kill(daemon, signal.SIGSTOP)
states = [f"/proc/{{daemon}}/task/{{task}}/stat" for task in os.listdir(f"/proc/{{daemon}}/task")]
while any(open(each).read().rsplit(")", 1)[1].split()[0] != "T" for each in states):
    time.sleep(0.01)
status = ctypes.CDLL(None).syncfs(fd)
os.write(go, b"g")
os._exit(1 if status else {fails})
"""
BUSY = """
import os, sys
number = 0
while True:
    number += 1
    try:
        os.stat(f"{sys.argv[1]}/{os.getpid()}-{number}")
    except FileNotFoundError:
        pass
"""

pytestmark = [pytest.mark.mount, pytest.mark.transports]
COLD_STARTS = True  # the daemon has a PATH of its own


def write_program(folder, fails: int) -> None:
    """sync, as above. *fails*: its status, which is 1 after an error of any file."""
    program = folder / "sync"
    program.write_text(SYNC.format(python=sys.executable, fails=fails))
    program.chmod(0o755)


@pytest.fixture
def region(tmp_path, monkeypatch, transport):
    write_program(tmp_path, 0)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with mounts.MountedRegion(2 * SIZE, transport=transport) as made:
        made.mount()
        yield made


def shut_down(region):
    fd = os.open(region.path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0x8004587D, struct.pack("I", 0))
    finally:
        os.close(fd)


def terminate(region):
    os.kill(region.pid, signal.SIGTERM)
    assert region._wait_gone(60)
    region._detach()


@pytest.mark.parametrize("fails", [0, 1], ids=["synced", "one failed"])
@pytest.mark.parametrize("end", [shut_down, terminate])
def test_mapped_pages_are_not_lost(region, tmp_path, transport, end, fails):
    if end is shut_down and transport == "pyfuse3":
        pytest.skip("pyfuse3 has no ioctl")
    write_program(tmp_path, fails)
    # Nobody is there to close it for, once the daemon has gone.
    with contextlib.suppress(OSError), open(region.path / "file", "w+b") as file:
        file.truncate(SIZE)
        with mmap.mmap(file.fileno(), SIZE) as mapping:
            for at in range(0, SIZE, 4096):
                mapping[at] = 7
            end(region)
    if end is shut_down:
        assert region.stat()["shut_down"]
        region.umount()
    region.mount()
    assert (region.path / "file").read_bytes()[::4096].count(7) == SIZE // 4096


def test_a_path_that_leads_to_the_mount_itself(monkeypatch, transport):
    """Who looks for the program there would wait for an answer of its own."""
    with mounts.MountedRegion(SIZE, transport=transport) as region:
        monkeypatch.setenv("PATH", f"{region.path}/bin:{os.environ['PATH']}")
        region.mount()
        terminate(region)


def looks(monkeypatch, found: list[int], requests: int = 0) -> list[int]:
    """What is left of *found*, one for each look, once all is answered."""
    monkeypatch.setattr(kernel_sync, "_connections", lambda: os.open("/", os.O_RDONLY))
    sync = kernel_sync.KernelSync(SimpleNamespace(mountpoint="/nowhere"), None)
    sync.requests = requests
    monkeypatch.setattr(sync, "_waiting", lambda root: found.pop(0))
    trio.run(sync._answered)
    return found


@pytest.mark.parametrize("requests", [0, 2])
def test_one_look_at_nothing_is_not_all(monkeypatch, requests):
    """While a program closes a file the kernel keeps writes back, and counts them later."""
    found = [3, 0, 0, 2, 1, *[0] * 12]
    assert looks(monkeypatch, [count + requests for count in found], requests) == [requests] * 2


def test_the_connection_may_go_between_open_and_read(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "waiting").touch()  # as the kernel answers then
    sync = kernel_sync.KernelSync(SimpleNamespace(device=os.makedev(0, 7)), None)
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        assert sync._waiting(root) == 0
    finally:
        os.close(root)


def test_where_fusectl_is_not_mounted(region, tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_sync, "CONNECTIONS", str(tmp_path))
    root = kernel_sync._connections()
    try:
        assert os.stat(f"{os.minor(os.stat(region.path).st_dev)}/waiting", dir_fd=root)
    finally:
        os.close(root)


def test_requests_of_others_do_not_keep_it(region):
    """While some go on and on, it ends all the same, and not by its patience."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY, region.path], stderr=subprocess.DEVNULL)
              for _ in range(3)]
    try:
        time.sleep(0.5)
        assert [other.poll() for other in others] == [None] * 3
        began = time.monotonic()
        terminate(region)
        assert time.monotonic() - began < kernel_sync.PATIENCE - 2
    finally:
        for other in others:
            other.kill()
            other.wait()
