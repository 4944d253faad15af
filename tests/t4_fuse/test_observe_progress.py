# SPDX-License-Identifier: MIT
"""A client that writes back by itself while another process calls fsync: no page is flushed by nobody.

The client takes the marks of its page table before it flushes (struct daxfs_progress); this process stands
in for one, and libdaxfs is one.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import mounts
import pytest
import uffd
from observekit import HUGE, LIBC, MIB, PAGE, observe, refused, registered

from daxfs.fault._observe import Found

pytestmark = [pytest.mark.mount,
              pytest.mark.skipif(mounts.KERNEL < (6, 11), reason="no PROCMAP_QUERY before kernel 6.11")]


SEALED_AGAINST_US = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE


class Progress:
    """The memfd in which this process says that it writes back."""

    def __init__(self, size=PAGE, seals=fcntl.F_SEAL_SHRINK, flags=0):
        self.fd = os.memfd_create("progress", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC | flags)
        os.ftruncate(self.fd, size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)

    def says(self, begun: int, ended: int, slot: int = 0) -> None:
        os.pwrite(self.fd, struct.pack("=2Q", begun, ended), slot * 64)


@contextlib.contextmanager
def writing_back(path, slot=3):
    """A client (this process) that has stored to a page: (Progress, a function that takes the mark)."""
    progress = Progress()
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # no handle of before answers it: its promise holds
    with registered(fd, HUGE) as (uffd, address):
        observe(fd, uffd=uffd, address=address, length=HUGE, flags=2, progress=progress.fd, slot=slot)
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)

        def takes() -> int:
            found = Found()
            found.scan(pagemap, address, address + HUGE, address, 0)
            return found.pages

        ctypes.memset(address, 1, 3 * PAGE)
        yield progress, takes
        os.close(pagemap)
    os.close(fd)
    os.close(progress.fd)


def test_a_mark_that_a_client_took_is_not_clean_until_it_has_flushed(mount, path, syncs):
    with writing_back(path) as (progress, takes):
        has_data = 512 if mount.huge else 3
        progress.says(1, 0, slot=3)
        assert takes() == has_data
        assert syncs() == has_data  # it does not end: all that it may have taken is flushed by the daemon
        progress.says(1, 1, slot=3)
        assert syncs() == 0
        progress.says(9, 1, slot=4)  # another file's
        assert syncs() == 0


def test_fsync_waits_for_a_write_back(mount, path, syncs):
    """Not for a later one: this client is nearly always in one, across the end of the counters."""
    with writing_back(path) as (progress, takes):
        takes()
        stop = threading.Event()

        def goes_on():
            number = 2**64 - 5
            while not stop.is_set():
                progress.says((number + 1) % 2**64, number % 2**64, slot=3)
                number += 1
                time.sleep(0.002)

        thread = threading.Thread(target=goes_on)
        progress.says(2**64 - 4, 2**64 - 5, slot=3)
        thread.start()
        has_data, waited = 512 if mount.huge else 3, 0
        try:
            # It waits for 20 ms: a machine that is busy lets our thread wait longer at times. Without waiting
            # each fsync would meet a write-back that has begun and not ended.
            for _ in range(100):
                before = syncs.stat()
                flushed, after = syncs(), syncs.stat()
                assert after["looks"] == before["looks"] + 1 and after["given_up"] == before["given_up"]
                unsure = after["unsure"] - before["unsure"]
                assert flushed == has_data * unsure and unsure in (0, 1)
                waited += not unsure
                if waited == 5:
                    break
        finally:
            stop.set()
            thread.join()
        assert waited == 5


@pytest.mark.parametrize("begun", [2**63, 2**63 - 1])
def test_counts_that_make_no_sense(mount, path, syncs, begun):
    with writing_back(path) as (progress, takes):
        takes()
        progress.says(begun, 0, slot=3)
        before = syncs.stat()
        os.fsync(syncs.fd)
        after = syncs.stat()
        # It came to an end by itself, and nobody gave it up, as after observing.PATIENCE.
        assert after["unsure"] == before["unsure"] + 1 and after["given_up"] == before["given_up"]


@pytest.mark.parametrize("bad", [{"size": 64}, {"seals": fcntl.F_SEAL_GROW}, {"size": 4095},
                                 {"size": HUGE, "flags": os.MFD_HUGETLB}, {"seals": SEALED_AGAINST_US}])
def test_a_memfd_that_could_go_away_is_refused(mount, path, bad):
    progress = Progress(**bad)
    with open(path, "r+b") as file, registered(file.fileno(), HUGE) as (uffd, address), refused(errno.EINVAL):
        observe(file.fileno(), uffd=uffd, address=address, length=HUGE, flags=2, progress=progress.fd)
    os.close(progress.fd)


@contextlib.contextmanager
def writing(fd: int):
    """A write(2) to *fd* that does not end, and has the file's lock: nobody provides its buffer's page."""
    missing, room = uffd.create(), mmap.mmap(-1, PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    uffd.register(missing, address, PAGE, uffd.MISSING)
    thread = threading.Thread(target=LIBC.pwrite, args=(fd, ctypes.c_void_p(address), ctypes.c_size_t(8),
                                                        ctypes.c_long(56)))  # fmt: skip
    thread.start()
    try:
        assert select.select([missing], [], [], 20)[0]
        yield
    finally:
        uffd.unregister(missing, address, PAGE)
        thread.join()
        os.close(missing)


def test_a_client_that_has_its_memfd_locked_stops_nobody(mount, path, syncs):
    with writing_back(path) as (progress, _):
        before = syncs.stat()["flushed_bytes"]
        with writing(progress.fd):
            thread = threading.Thread(target=os.fsync, args=(syncs.fd,))
            thread.start()
            thread.join(10)
            waits = thread.is_alive()
        thread.join()
        assert not waits, "fsync, and with it the mount, waited for the client"
        assert syncs.stat()["flushed_bytes"] - before == (HUGE if mount.huge else 3 * PAGE)
        assert struct.unpack("=2Q", os.pread(progress.fd, 16, 3 * 64 + 16)) == (1, 1)  # taking, flushed


STORES = """
import sys
from daxfs.client import map_file
array = map_file(sys.argv[1], require=True, pte=True)
while True:
    array[::4096] += 1
    array.msync()
"""


def memfds_of(pid: int) -> list[Path]:
    """The descriptors in which a client counts; it opens and closes others meanwhile."""
    found = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += [one] if "daxfs-progress" in os.readlink(one) else []
    return found


def test_msync_and_fsync_of_two_processes(mount, path, syncs):
    """fsync in the middle of another process's msync: that has ended then, or all was flushed once more."""
    large, rounds, again = 64 * MIB, 6, 0
    os.truncate(path, large)
    client = subprocess.Popen([sys.executable, "-P", "-c", STORES, path])
    try:
        deadline = time.monotonic() + 60
        while not (memfds := memfds_of(client.pid)):
            assert time.monotonic() < deadline and client.poll() is None
            time.sleep(0.05)
        fd, slot = os.open(memfds[0], os.O_RDONLY), os.stat(path).st_ino % 16 * 64

        def counts():
            return struct.unpack("=2Q", os.pread(fd, 16, slot))

        while counts()[1] < 2:
            time.sleep(0.05)
        for _ in range(rounds):
            before = syncs.stat()["flushed_bytes"]
            while (begun := counts()[0]) == counts()[1]:
                assert time.monotonic() < deadline
            os.fsync(syncs.fd)
            ended = counts()[1]
            flushed = syncs.stat()["flushed_bytes"] - before
            assert ended >= begun or flushed >= large, (begun, ended, flushed)
            again += ended < begun
        os.close(fd)
    finally:
        client.kill()
        client.wait()
    print(f"{again} of {rounds} flushed once more")
