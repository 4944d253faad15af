# SPDX-License-Identifier: MIT
"""How a mount ends, by each transport: nothing is left, what was written is there, the status says how."""

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import mounts
import pytest
from daemonkit import Daemon

pytestmark = [pytest.mark.mount, pytest.mark.transports]
DATA = os.urandom(1 << 20)


@pytest.fixture
def daemon(region_factory):
    made = []

    def start():
        made.append(Daemon(region_factory()))
        return made[-1]

    yield start
    for one in made:
        one.close()


def connection_of(region) -> Path:
    if not os.path.ismount("/sys/fs/fuse/connections"):
        subprocess.run(["mount", "-t", "fusectl", "none", "/sys/fs/fuse/connections"], check=True)
    return Path(f"/sys/fs/fuse/connections/{os.stat(region.path).st_dev}")


def check_content(region):
    """The region is clean and holds what was written, as another mount sees it."""
    assert region.fsck("-n").returncode == 0
    region.mount()
    assert (region.path / "file").read_bytes() == DATA
    region.umount()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0(daemon, number):
    one = daemon()
    (one.region.path / "file").write_bytes(DATA)
    one.process.send_signal(number)
    assert one.end() == 0, one.said()
    assert not mounts.mounts_of(one.region.path)
    check_content(one.region)


def test_a_signal_ends_it_while_it_is_in_use(daemon):
    """Open files, a client in the middle of writes: they get errors, the daemon its end."""
    one = daemon()
    (one.region.path / "file").write_bytes(DATA)
    stop, failed = threading.Event(), []

    def client():
        try:
            with open(one.region.path / "busy", "wb", buffering=0) as file:
                while not stop.is_set():
                    file.write(DATA)
                    file.seek(0)
        except OSError as exc:
            failed.append(exc.errno)

    thread = threading.Thread(target=client)
    thread.start()
    time.sleep(0.1)
    one.process.send_signal(signal.SIGTERM)
    status = one.end()
    stop.set()
    thread.join(20)
    assert status == 0, one.said()
    assert not thread.is_alive() and failed, "the client got no error"
    assert not mounts.mounts_of(one.region.path)
    check_content(one.region)


def test_umount_ends_it_with_status_0(daemon):
    one = daemon()
    (one.region.path / "file").write_bytes(DATA)
    mounts.umount(one.region.path)
    assert one.end() == 0, one.said()
    check_content(one.region)


def test_an_abort_ends_it_with_a_status_of_its_own_and_leaves_no_mount(daemon):
    one = daemon()
    (one.region.path / "file").write_bytes(DATA)
    one.region.expect_log("the connection was aborted")
    (connection_of(one.region) / "abort").write_text("1")
    assert one.end() == 32, one.said()
    assert "the connection was aborted; all that had been written is durable" in one.said()
    assert not mounts.mounts_of(one.region.path)
    check_content(one.region)


def test_no_connection_is_left(daemon):
    """The kernel's connection of the mount goes with the daemon."""
    one = daemon()
    connection = connection_of(one.region)
    assert connection.exists()
    mounts.umount(one.region.path)
    assert one.end() == 0
    assert not connection.exists()


def test_idle_costs_nothing(daemon):
    one = daemon()
    stat = Path(f"/proc/{one.process.pid}/stat")

    def ticks():
        fields = stat.read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    end, before = time.monotonic() + 30, None
    while before != (before := ticks()):  # until it has started, which takes long on a busy machine
        assert time.monotonic() < end
        time.sleep(0.5)
    time.sleep(2)
    assert ticks() == before


def test_several_daemons_side_by_side(daemon):
    several = [daemon() for _ in range(3)]
    for n, one in enumerate(several):
        (one.region.path / "file").write_bytes(b"%d" % n)
    assert [(one.region.path / "file").read_bytes() for one in several] == [b"0", b"1", b"2"]
    for one in several:
        mounts.umount(one.region.path)
        assert one.end() == 0


def test_threads_are_those_of_the_transport(daemon, transport):
    """A queue for each CPU that may be there and a reader; readers; pyfuse3 has none of its own."""
    one = daemon()
    tasks = len(os.listdir(f"/proc/{one.process.pid}/task"))
    last = re.search(r"\d+$", Path("/sys/devices/system/cpu/possible").read_text().strip())[0]
    told = one.region.stat()["transport"]
    assert told["kind"] == transport
    others = {"pyfuse3": 0, "dev": told["threads"], "uring": int(last) + 1 + 1}[transport]
    numpy = (0, 1)
    main_and_mounts = 2  # and the one that waits for the table of mounts to change (revoking.py)
    assert tasks - others - main_and_mounts in numpy
