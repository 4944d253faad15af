# SPDX-License-Identifier: MIT
"""Observed mappings of programs that do what libdaxfs does not: two threads at once, odd names and files."""

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import mounts
import pytest
from observekit import HUGE, MIB, PAGE, forget, observe, registered

from daxfs.fault import _handler
from daxfs.fuse import control, observing
from daxfs.fuse.handler import group_check

pytestmark = [pytest.mark.mount,
              pytest.mark.skipif(mounts.KERNEL < (6, 11), reason="no PROCMAP_QUERY before kernel 6.11")]

TESTS = os.pathsep.join(str(Path(__file__).parents[n]) for n in (0, 1))


@pytest.fixture(scope="module")
def mount():
    with mounts.MountedRegion(64 * MIB, pool="never", room=192 * MIB, transport="dev") as region:
        region.mount()
        yield region


def test_a_process_that_observes_two_files_at_once_is_one(mount, path, syncs):
    """Its two threads come before the daemon knows the process."""
    other = path.with_suffix(".other")
    other.write_bytes(bytes(HUGE))
    with open(path, "r+b") as one, open(other, "r+b") as two:
        files = [one.fileno(), two.fileno()]
        with registered(files[0], HUGE) as (uffd, first), registered(files[1], HUGE) as (uffd2, second):
            places = [(files[0], uffd, first), (files[1], uffd2, second)]
            for _ in range(12):
                numbers, begin = {}, threading.Barrier(2)

                def add(fd, uffd, address, numbers=numbers, begin=begin):
                    begin.wait()
                    numbers[address] = observe(fd, uffd=uffd, address=address, length=HUGE)

                threads = [threading.Thread(target=add, args=place) for place in places]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                now = syncs.stat()
                assert (now["mappings"], now["clients"]) == (2, 1)
                for fd, _, address in places:
                    forget(fd, numbers[address], address, HUGE)
    other.unlink()


def test_a_process_whose_name_is_no_text(path, syncs):
    comm = Path("/proc/self/comm")
    before, groups = comm.read_bytes(), os.getgroups()
    comm.write_bytes(b"\xff")
    try:
        with open(path, "r+b") as file, registered(file.fileno(), HUGE) as (uffd, address):
            number = observe(file.fileno(), uffd=uffd, address=address, length=HUGE)
            assert syncs.stat()["mappings"] == 1
            forget(file.fileno(), number, address, HUGE)
        os.setgroups([54321])
        in_group = group_check(SimpleNamespace(pid=os.getpid(), gid=1))
        assert in_group(54321) and in_group(1) and not in_group(2)
    finally:
        os.setgroups(groups)
        comm.write_bytes(before)


# Observes a page of a file (1), and names a file of a silent mount (3) as its userfaultfd, or memfd (2).
NAMES_A_FILE = """
import mmap, os, sys
from observekit import observe, registered
fd, bad = os.open(sys.argv[1], os.O_RDWR), os.open(sys.argv[3], os.O_RDWR)
with registered(fd, mmap.PAGESIZE) as (uffd, address):
    print("ready", flush=True)
    sys.stdin.readline()
    names = {"uffd": bad} if sys.argv[2] == "uffd" else {"uffd": uffd, "progress": bad, "flags": 2}
    try:
        observe(fd, address=address, length=mmap.PAGESIZE, **names)
    except OSError as error:
        print(error.errno, flush=True)
    sys.stdin.readline()
"""


# Observes a page of a file (1) with fault=user, and closes its userfaultfd: the daemon's copy is the last.
# Whoever closes that waits for the mmap lock. munmap of a page that is dirty on a silent mount (2) has it.
HAS_ITS_MMAP_LOCK = """
import ctypes, mmap, os, sys, threading, time
import uffd
from observekit import forget, observe
fd, other = os.open(sys.argv[1], os.O_RDWR), os.open(sys.argv[2], os.O_RDWR)
page = uffd.Mapping(fd, mmap.PAGESIZE)
faults = uffd.create("missing_shmem", "minor_shmem", "wp_hugetlbfs_shmem", "wp_unpopulated")
uffd.register(faults, page.address, page.length, uffd.MISSING | uffd.WP | uffd.MINOR)
number = observe(fd, mode=2, uffd=faults, address=page.address, length=page.length)
os.close(faults)
cached = uffd.Mapping(other, mmap.PAGESIZE)
cached.view[0] = 7
print("ready", flush=True)
sys.stdin.readline()
threading.Thread(target=cached.close).start()
time.sleep(0.5)
print("forgets", flush=True)
forget(fd, number, page.address, page.length)
sys.stdin.readline()
"""


class Program:
    """A child of Python that says a line now and then."""

    def __init__(self, text: str, *words):
        self.process = subprocess.Popen(
            [sys.executable, "-c", text, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parent, env={**os.environ, "PYTHONPATH": TESTS})  # fmt: skip

    def line(self) -> str:
        assert select.select([self.process.stdout], [], [], 60)[0], "no answer"
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def states(pid: int) -> list[str]:
    """Of its threads, as ps(1) has them."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return [text.rpartition(")")[2].split()[0] for text in texts]


class Child(Program):
    """One that hangs once the daemon of *silent* is stopped, which is done here."""

    def __init__(self, silent, text: str, *words):
        super().__init__(text, *words)
        self.silent = silent

    def __enter__(self):
        assert self.line() == "ready"
        os.kill(self.silent.pid, signal.SIGSTOP)
        until = time.monotonic() + 20
        while set(states(self.silent.pid)) != {"T"}:  # a thread answers until the signal reaches it
            assert time.monotonic() < until
            time.sleep(0.002)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self

    def __exit__(self, *_):
        os.kill(self.silent.pid, signal.SIGCONT)
        self.process.communicate("\n")


@pytest.fixture
def silent():
    """A mount with a file, of which the daemon answers nothing more as soon as a Child is at work."""
    with mounts.MountedRegion(32 * MIB, transport="dev") as made:
        made.mount()
        (made.path / "f").write_bytes(bytes(PAGE))
        yield made


@pytest.mark.parametrize("where", ["uffd", "progress"])
def test_a_descriptor_whose_close_hangs_stops_nobody(path, silent, where):
    """The daemon takes a copy of whatever the client names, and closes what is of no use to it."""
    answering = control.mount_of(str(path.parent))
    with Child(silent, NAMES_A_FILE, path, where, silent.path / "f") as child:
        assert int(child.line()) in (errno.EINVAL, errno.EBUSY)
        for _ in range(3):  # by then what was raised for it is forgotten
            control.ask_mount(answering, {"get": "stat"}, timeout=5)


@pytest.mark.skipif(not _handler.available(), reason="no fault=user on this kernel")
def test_a_client_that_has_its_mmap_lock_stops_nobody(path, silent):
    answering = control.mount_of(str(path.parent))
    with Child(silent, HAS_ITS_MMAP_LOCK, path, silent.path / "f") as child:
        assert child.line() == "forgets"  # it may hang itself from then on: it needs that lock, too
        until = time.monotonic() + 20
        while control.ask_mount(answering, {"get": "stat"}, timeout=5)["dax"]["observed"]["mappings"]:
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.2)
        control.ask_mount(answering, {"get": "stat"}, timeout=5)


# Observes a page of a file (1) with fault=user and stores there. "blocks": reads of its userfaultfd wait.
BLOCKS = """
import fcntl, mmap, os, sys
import uffd
from observekit import observe
fd = os.open(sys.argv[1], os.O_RDWR)
page = uffd.Mapping(fd, mmap.PAGESIZE)
faults = uffd.create("missing_shmem", "minor_shmem", "wp_hugetlbfs_shmem", "wp_unpopulated")
uffd.register(faults, page.address, page.length, uffd.MISSING | uffd.WP | uffd.MINOR)
observe(fd, mode=2, uffd=faults, address=page.address, length=page.length)
if sys.argv[2] == "blocks":
    fcntl.fcntl(faults, fcntl.F_SETFL, fcntl.fcntl(faults, fcntl.F_GETFL) & ~os.O_NONBLOCK)
page.view[0] = 7
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(not _handler.available(), reason="no fault=user on this kernel")
def test_a_client_whose_userfaultfd_blocks_stops_nobody(mount, path):
    """The flags are the open file's: the client can change them behind the daemon's back."""
    with contextlib.ExitStack() as children:
        for what in ("blocks", "stores", "stores"):
            child = Program(BLOCKS, path, what)
            children.callback(child.end)
            assert child.line() == "ready"
        before = cpu_seconds(mount.pid)
        time.sleep(1)
        assert cpu_seconds(mount.pid) - before < 0.5, "nobody asks, and the daemon is busy"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# Stores to a page of a file (1), observed with fault=user, and keeps its mmap lock: something is mapped over
# a page that is dirty on a silent mount (2).
KEEPS_ITS_MMAP_LOCK = HAS_ITS_MMAP_LOCK.partition("os.close(faults)")[0] + """
page.view[0] = 7
cached = uffd.Mapping(other, mmap.PAGESIZE)
cached.view[0] = 7
print("ready", flush=True)
sys.stdin.readline()
cached._map(cached.address, cached.length, 3, 0x32, -1)
sys.stdin.readline()
"""


@pytest.mark.skipif(not _handler.available(), reason="no fault=user on this kernel")
def test_fsync_waits_once_for_a_client_that_keeps_its_mmap_lock(path, silent, syncs):
    """Not each time, with one more thread: there are 64 for all files."""
    with Child(silent, KEEPS_ITS_MMAP_LOCK, path, silent.path / "f") as child:
        until = time.monotonic() + 20
        while not Path(f"/proc/{child.process.pid}/syscall").read_text().startswith("9 "):  # hangs in mmap(2)
            assert time.monotonic() < until
            time.sleep(0.02)
        took = []
        for _ in range(3):
            begin = time.monotonic()
            os.fsync(syncs.fd)
            took.append(time.monotonic() - begin)
        assert took[0] > observing.PATIENCE - 1 > max(took[1:]), took
