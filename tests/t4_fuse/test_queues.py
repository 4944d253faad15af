# SPDX-License-Identifier: MIT
"""Many requests under way that wait for Python: what native threads answer does not wait for them."""

import os
import threading
import time

import pytest
from daemonkit import Daemon
from test_transport_ends import connection_of

pytestmark = [pytest.mark.mount, pytest.mark.transports]
MANY = 24  # requests for Python from one CPU


@pytest.fixture
def held(region_factory, tmp_path):
    """A mount whose trio loop stands still in STATFS while the file ``hold`` is there."""
    hold = tmp_path / "hold"
    one = Daemon(region_factory(), ("hold", hold))
    yield one, hold
    hold.unlink(missing_ok=True)
    one.close()


def pinned(target, cpu: int) -> threading.Thread:
    """A thread that runs *target()* on *cpu* alone."""

    def run():
        os.sched_setaffinity(0, [cpu])
        target()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_reads_don_t_wait_for_python(held, transport):
    if transport == "pyfuse3":
        pytest.skip("it answers everything in Python")
    one, hold = held
    cpu = min(os.sched_getaffinity(0))
    path = one.region.path / "file"
    path.write_bytes(bytes(range(256)) * 16)
    fd = os.open(path, os.O_RDWR)
    try:
        os.pread(fd, 1, 0)
        waiting = connection_of(one.region) / "waiting"
        hold.touch()
        several = [pinned(lambda: os.statvfs(one.region.path), cpu) for _ in range(MANY)]
        _until(lambda: int(waiting.read_text()) >= MANY)
        read = []
        thread = pinned(lambda: read.append(os.pread(fd, 256, 256)), cpu)
        thread.join(10)
        assert read == [bytes(range(256))], "a READ waits for STATFS"
        assert all(other.is_alive() for other in several)
    finally:
        hold.unlink()
        os.close(fd)
    for other in several:
        other.join(20)
        assert not other.is_alive()


def _until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
