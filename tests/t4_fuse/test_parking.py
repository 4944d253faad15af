# SPDX-License-Identifier: MIT
"""Parked handles on mounts: programs that open, map and close, and others that change what that is about.

The range's file, the daemon's descriptors and the counters of `daxfs stat` say what happened. `daxfs stat`
itself reaps, so it is asked last.
"""

import contextlib
import mmap
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import mounts
import pytest
from daemonkit import Daemon
from mounts import set_dax
from rawkit import as_nobody
from test_direct import MIB, PAGE, Pool, opened

from daxfs.fuse import control

pytestmark = pytest.mark.mount
PARKED_FOR = 1.0

LOOP = """
import mmap, os, sys
print("begun", flush=True)
while True:
    try:
        fd = os.open(sys.argv[1], os.O_RDWR)
    except FileNotFoundError:
        continue
    size = os.fstat(fd).st_size
    if size >= 4096:
        with mmap.mmap(fd, 4096) as mapping:
            mapping[:4]
    os.close(fd)
"""


@pytest.fixture(scope="module")
def pool(direct_transport):
    made = Pool(transport=direct_transport)
    made.region.remount("allow_other")
    yield made
    made.close()


@pytest.fixture(scope="module")
def patient(direct_transport):
    """A pool where nothing goes by time, however long a busy machine takes for a test."""
    made = Pool(transport=direct_transport)
    made.region.umount()
    daemon = Daemon(made.region, ("park_for", 3600))
    made.region.adopt()
    yield made
    made.region.umount()
    assert daemon.end() == 0, daemon.said()
    daemon.close()
    made.close()


@pytest.fixture
def name(pool, request):
    yield from file_of(pool, request)


@pytest.fixture
def data(patient, request):
    yield from file_of(patient, request)


def file_of(pool, request):
    path = pool.path / re.sub(r"\W", "_", request.node.name)
    path.write_bytes(b"0123456789abcdef" * 256)
    yield path
    path.unlink(missing_ok=True)


def cycle(path, flags=os.O_RDWR) -> None:
    with opened(path, flags) as fd, mmap.mmap(fd, PAGE, prot=mmap.PROT_READ) as mapping:
        assert mapping[:4] == b"0123"


def parked(pool) -> int:
    """Handles that are parked; not any more then. Asked here, since a command takes a while to begin."""
    return control.ask_path(pool.path, {"get": "stat"})["direct"]["parked"]


def until(condition, seconds: float = 20) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() < begin + seconds
        time.sleep(0.005)


def counts(pool, *names) -> dict:
    rows = pool.region.stat()["operations"]
    return {name: (rows[name]["served"], rows[name]["relayed"]) for name in names}


@contextlib.contextmanager
def loop(path):
    """A program that opens, maps and closes *path* until it is killed at the end."""
    with subprocess.Popen([sys.executable, "-P", "-c", LOOP, path], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout.readline() == b"begun\n"
            yield child
        finally:
            assert child.poll() is None, "it met an error"
            child.send_signal(signal.SIGKILL)


def test_a_loop_needs_nothing_of_python(patient, data):
    cycle(data)
    before = counts(patient, "open", "release", "getattr")
    for _ in range(50):
        cycle(data)
    after = counts(patient, "open", "release", "getattr")
    for what in before:
        assert after[what][0] - before[what][0] >= 49, what
        assert after[what][1] - before[what][1] <= 1, what  # the first open, as `daxfs stat` had reaped


def test_close_asks_nothing(pool, name):
    before = pool.region.stat()["operations"].get("flush", {"count": 0})["count"]
    for _ in range(5):
        cycle(name)
    assert pool.region.stat()["operations"].get("flush", {"count": 0})["count"] == before


def test_as_many_are_parked_as_may_be(patient):
    with many(patient) as names:
        open_all(names)
        assert parked(patient) == 64
        until(lambda: parked(patient) == 0)  # the kernel may tell of the last close after we have asked


def test_what_is_parked_goes_by_time_and_the_daemon_sleeps(pool):
    with many(pool) as names:
        open_all(names)
        time.sleep(3 * PARKED_FOR)
        until(lambda: is_idle(pool), 60)
        assert parked(pool) == 0


@contextlib.contextmanager
def many(pool):
    """Names of more files than handles are parked."""
    folder = pool.path / "many"
    folder.mkdir()
    names = [folder / str(n) for n in range(150)]
    for path in names:
        path.write_bytes(b"0123")
    yield names
    for path in names:
        path.unlink()
    folder.rmdir()


def open_all(names) -> None:
    for path in names:
        with opened(path, os.O_RDONLY):
            pass


def is_idle(pool) -> bool:
    """Whether the daemon sleeps for a second: a timer, or a wake for each of many handles, would show."""
    before = wakes(pool)
    time.sleep(1)
    return wakes(pool) - before < 10


def wakes(pool) -> int:
    """How often a thread of the daemon has gone to sleep."""
    found = Path(f"/proc/{pool.region.pid}/task").glob("*/status")
    return sum(int(re.search(r"\nvoluntary_ctxt_switches:\t(\d+)", path.read_text())[1]) for path in found)


def free(pool) -> int:
    found = os.statvfs(pool.below)
    return found.f_bfree * found.f_frsize


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_space_of_what_has_no_name_comes_back_at_once(patient, data, how):
    big = patient.path / "big"
    before = free(patient)
    big.write_bytes(b"0123" * (2 * MIB))
    cycle(big)
    where = patient.range_of(big)
    assert free(patient) <= before - 8 * MIB
    if how == "unlink":
        big.unlink()
    else:
        os.rename(data, big)
    until(lambda: not where.exists())
    until(lambda: free(patient) > before - MIB)
    if how == "rename":
        os.rename(big, data)


def test_the_dax_flag_works_at_the_next_open(pool, name):
    cycle(name)
    where = pool.range_of(name)
    set_dax(name, False)
    with opened(name, os.O_RDWR):
        assert not where.exists() and pool.direct() == 0
    cycle(name)
    set_dax(name)
    cycle(name)
    assert pool.range_of(name).exists()


def test_the_dax_flag_is_not_kept_off_by_a_loop(pool, name):
    """A handle that is open when the flag changes is not parked: the loop's next open is a first one."""
    cycle(name)
    where = pool.range_of(name)
    with loop(name):
        set_dax(name, False)
        until(lambda: not where.exists())


def test_a_truncated_file_is_what_the_next_open_sees(pool, name):
    cycle(name)
    os.truncate(name, 4)
    with opened(name) as fd:
        assert os.fstat(fd).st_size == 4 and os.read(fd, 10) == b"0123"
    with opened(name, os.O_RDWR | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0
    with opened(name) as fd:
        os.write(fd, b"0123" * PAGE)
    cycle(name)


def overwrite(path) -> int:
    with opened(path, os.O_RDWR) as fd:
        os.write(fd, b"0123")
    return 0


def test_another_user_gets_a_handle_of_his_own(pool, name):
    """And what he writes takes setuid and setgid away, though root's handle was there to be had."""
    os.chmod(pool.path, 0o755)
    os.chmod(name, 0o6777)
    cycle(name)
    before = counts(pool, "open")["open"]
    cycle(name)
    assert as_nobody(lambda: overwrite(name)) == 0
    after = counts(pool, "open")["open"]
    assert after[1] - before[1] == 2  # the one after `daxfs stat` has reaped, and his
    assert os.stat(name).st_mode & 0o7777 == 0o777


def test_killed_programs_leave_nothing_open(pool, name):
    for _ in range(3):
        with loop(name):
            time.sleep(0.1)
    time.sleep(3 * PARKED_FOR)
    until(lambda: is_idle(pool), 60)
    stat = pool.region.stat()
    assert (stat["direct"]["parked"], stat["direct"]["open"], stat["inodes"]["open"]) == (0, 0, 0)


def test_umount_and_remount_with_parked_handles(pool, name):
    cycle(name)
    pool.region.remount()
    cycle(name)
    mounts.run([mounts.command("mount.daxfs"), f"{pool.below}/pool", pool.path, "-o", "remount,ro"])
    assert parked(pool) == 0
    before = counts(pool, "open")["open"]
    for _ in range(3):
        cycle(name, os.O_RDONLY)
    assert counts(pool, "open")["open"][0] == before[0]
    mounts.run([mounts.command("mount.daxfs"), f"{pool.below}/pool", pool.path, "-o", "remount,rw"])
    cycle(name)
    cycle(name)
    pool.region.umount()
    mounts.run([mounts.command("fsck.daxfs"), "-n", f"{pool.below}/pool"])
    pool.region.mount()


def test_a_loop_beside_all_that_changes_the_file(pool, name):
    """Nobody is told an error that the file does not have, and nothing is left behind."""
    other = pool.path / "other"
    with loop(name), loop(name):
        for n in range(40):
            other.write_bytes(b"0123" * PAGE)
            os.rename(other, name)
            os.chmod(name, 0o600 + n)
            os.truncate(name, PAGE + n)
            set_dax(name, bool(n % 2))
            if n % 3 == 0:
                name.unlink()
                name.write_bytes(b"0123" * PAGE)
    set_dax(name)
    name.unlink()
    assert pool.direct() == 0
    pool.region.umount()
    mounts.run([mounts.command("fsck.daxfs"), "-n", f"{pool.below}/pool"])
    pool.region.mount()
