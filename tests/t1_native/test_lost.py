# SPDX-License-Identifier: MIT
"""A source that is truncated while it is mapped: the region is lost, the process is not (native/lost.h)."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from daxfs.region import Region, create_file

MIB = 1 << 20
PAGE = 4096


@pytest.fixture
def paths():
    made = [f"/dev/shm/daxfs-lost-{os.getpid()}-{n}" for n in range(2)]
    for path in made:
        create_file(path, 4 * MIB)
    yield made
    for path in made:
        os.unlink(path)


@pytest.mark.parametrize("mode", ["rw", "ro", "cow"])
def test_reads_are_zeros_and_the_region_says_so(paths, mode):
    with Region.open([paths[0]], mode=mode) as region, Region.open([paths[1]]) as other:
        assert region.lost == "" and not region.table.lost
        other.store(0, b"whole")
        os.truncate(paths[0], MIB)
        assert bytes(region.mem[: MIB]) == bytes(MIB) and region.lost == ""
        assert bytes(region.mem[MIB - 10 : MIB + 10]) == bytes(20)
        assert region.table.lost and region.lost == f"{paths[0]}: was truncated under the mount"
        for call in (lambda: region.direct_access(0), region.table.enter, lambda: region.view(0, 10)):
            with pytest.raises((OSError, RuntimeError)):
                call()
        assert other.lost == "" and bytes(other.mem[:5]) == b"whole"
        other.persist(0, 5)


def test_stores_end_in_an_error_and_reach_nobody(paths):
    with Region.open([paths[0]]) as region:
        mem = region.mem
        os.truncate(paths[0], MIB)
        region.store(2 * MIB, b"x" * 5000)  # durable after persist alone, and that says no
        for call in (region.drain, lambda: region.persist(2 * MIB, 10), lambda: region.store(0, b"y"),
                     lambda: region.nt_store(0, b"y"), lambda: region.flush_range(0, 1)):
            with pytest.raises(OSError, match="truncated") as caught:
                call()
            assert caught.value.errno == errno.EIO
        os.truncate(paths[0], 4 * MIB)
        assert bytes(mem[2 * MIB : 2 * MIB + 10]) == b"x" * 10, "ours alone: a private page"
        mem.release()
        assert region.lost.endswith("a page can't be reached any more")
    with open(paths[0], "rb") as file:
        assert file.read() == bytes(4 * MIB)


def test_a_persist_that_meets_it_says_so(paths):
    """The store was before, the page goes before its line is written back."""
    with Region.open([paths[0]]) as region:
        region.store(3 * MIB, b"text")
        os.truncate(paths[0], MIB)
        with pytest.raises(OSError, match="truncated"):
            region.persist(3 * MIB, 4)


def test_many_threads_meet_it_at_once(paths):
    with Region.open([paths[0]]) as region:
        found, start = [], threading.Barrier(5)

        def read(first):
            start.wait()
            for at in range(first, 4 * MIB, 16 * PAGE):
                found.append(region.mem[at])

        threads = [threading.Thread(target=read, args=(n * PAGE,)) for n in range(4)]
        for thread in threads:
            thread.start()
        os.truncate(paths[0], 0)
        start.wait()
        for thread in threads:
            thread.join()
        assert len(found) == 4 * 4 * MIB // (16 * PAGE) and not any(found) and region.lost


ELSEWHERE = """
import mmap, os, sys
from daxfs.region import Region, create_file
path, handled = sys.argv[1], sys.argv[2] == "faulthandler"
if handled:
    import faulthandler
    faulthandler.enable()
region = Region.open([path])
other = path + "-other"
create_file(other, 8192)
fd = os.open(other, os.O_RDWR)
view = mmap.mmap(fd, 8192)
os.unlink(other)
os.ftruncate(fd, 0)
if sys.argv[2] == "sent":
    os.kill(os.getpid(), 7)
view[5000]
"""


@pytest.mark.parametrize("how", ["plain", "faulthandler", "sent"])
def test_any_other_sigbus_ends_the_process_as_ever(paths, how):
    done = subprocess.run([sys.executable, "-P", "-c", ELSEWHERE, paths[0], how], check=False,
                          capture_output=True, text=True)
    assert done.returncode == -signal.SIGBUS, done
    assert ("Bus error" in done.stderr) == (how == "faulthandler")


def test_a_closed_region_is_watched_no_more(paths):
    """There is room for 1,024 at a time."""
    for _ in range(1100):
        Region.open([paths[0]]).close()
