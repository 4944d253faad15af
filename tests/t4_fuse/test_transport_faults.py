# SPDX-License-Identifier: MIT
"""A thread of the transport that can't begin or ends early ends the mount: with a message, and all of it."""

import errno
import os
import re
import resource
import subprocess
import threading
import time

import mounts
import pytest
from daemonkit import Daemon

pytestmark = [pytest.mark.mount, pytest.mark.transports]
DATA = os.urandom(1 << 16)


@pytest.fixture
def native(transport):
    if transport == "pyfuse3":
        pytest.skip("it has no threads of its own")


@pytest.fixture
def patched(region_factory):
    """Makes a Daemon with a part of it broken."""
    made = []

    def start(*patch, wait=False):
        made.append(Daemon(region_factory(), patch, wait))
        made[-1].region.expect_log(".")
        return made[-1]

    yield start
    for one in made:
        one.close()


def check_gone(one: Daemon, status: int, says: str) -> None:
    """It ended with *status* and one line that matches *says*; no mount is there, and the region is clean."""
    got = one.end()
    assert got == status, one.said()
    assert re.search(says, one.said()) and "Traceback" not in one.said(), one.said()
    assert not mounts.mounts_of(one.region.path)
    assert one.region.fsck("-n").returncode == 0
    one.region.mount()
    one.region.umount()


@pytest.mark.parametrize(("what", "why"), [("lose_queues", "Input/output error"),
                                           ("lose_device", "Operation not supported")])
def test_a_queue_that_fails_ends_the_mount(patched, transport, tmp_path, what, why):
    """The system call fails; or a single reply is not taken, whose caller would wait for ever."""
    if transport != "uring":
        pytest.skip("a queue is of io_uring")
    one = patched(what, tmp_path / "now", wait=True)
    (one.region.path / "file").write_bytes(DATA)
    (tmp_path / "now").touch()
    caught = []

    def ask():
        try:
            os.statvfs(one.region.path)
        except OSError as error:
            caught.append(error.errno)

    caller = threading.Thread(target=ask, daemon=True)
    caller.start()
    caller.join(20)
    assert caught and caught[0] in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO), "it waits for ever"
    check_gone(one, 32, f"a thread of the transport failed: {why}")
    one.region.mount()
    assert (one.region.path / "file").read_bytes() == DATA


REFUSED = {
    "no_threads": ("dev", "uring"),
    "no_rings": ("uring",),
    "no_enter": ("uring",),
    "small_payload": ("uring",),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_thread_needs_is_refused(native, patched, transport, what):
    if transport not in REFUSED[what]:
        pytest.skip(f"{transport} needs nothing of that")
    status, says = {
        "no_threads": (2, "Resource temporarily unavailable"),
        "no_rings": (2, "Cannot allocate memory"),
        "no_enter": (32, "Invalid argument"),
        "small_payload": (32, "Invalid argument"),
    }[what]
    check_gone(patched(what), status, f"the transport {transport} can't be started: {says}")


def test_descriptors_run_out(native, patched, transport):
    """At each place where one is needed."""
    for left in range(40):
        one = patched("few_descriptors", left)
        while not (there := _answers(one)) and one.process.poll() is None:
            time.sleep(0.01)
        if there:
            break
        check_gone(one, 2, f"the transport {transport} can't be started: Too many open files")
    assert left >= 2, "never short of one"
    assert there


def _answers(one: Daemon) -> bool:
    path = one.region.path
    try:
        # Looked for again at the end: of a mount that went meanwhile the directory below is listed.
        return bool(mounts.mounts_of(path)) and os.listdir(path) is not None and bool(mounts.mounts_of(path))
    except OSError:
        return False


def test_a_mount_that_is_short_of_descriptors_goes_on(patched):
    """Nobody can ask it anything then, but files can be read; and it answers when there are some again."""
    one = patched(wait=True)
    pid = one.process.pid
    (one.region.path / "file").write_bytes(DATA)
    used = set(map(int, os.listdir(f"/proc/{pid}/fd")))
    first_free = next(fd for fd in range(len(used) + 1) if fd not in used)
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free, hard))
    asked = subprocess.Popen([mounts.command("daxfs"), "stat", one.region.path], stdout=subprocess.DEVNULL)
    try:
        while "Too many open files" not in one.region.log_file.read_text():
            assert one.process.poll() is None and asked.poll() is None, one.said()
            time.sleep(0.01)
        for _ in range(3):  # it looks at the table of mounts each time that changes
            mounts.Tmpfs(1 << 20).close()
        assert (one.region.path / "file").read_bytes() == DATA and one.process.poll() is None
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert asked.wait(20) == 0
