# SPDX-License-Identifier: MIT
"""Files that change under observed mappings of others, with fault=user and fault=kernel: cut, punched,
unlinked, poisoned, revoked; a tmpfs that is full; a daemon that is killed.

The client is observe_client.c, where EFAULT is SIGBUS, or the library.
"""

import ctypes
import errno
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time

import mounts
import pytest
from observekit import HUGE, LIBC, MIB, PAGE, SIZE

from daxfs.fault import _handler

pytestmark = [pytest.mark.mount,
              pytest.mark.skipif(not _handler.available(), reason="userfaultfd of this kernel can't do it")]
MODES = ("user", "pages", "kernel")
PUNCH, ZERO = 3, 16


def opened(path):
    """Not for reading: such an open leaves no mapping that fsync would have to take for unobserved."""
    return open(path, "r+b", buffering=0, opener=lambda name, flags: os.open(name, os.O_WRONLY))


def fallocate(path, mode, at, length):
    with opened(path) as file:
        assert LIBC.fallocate(file.fileno(), mode, ctypes.c_long(at), ctypes.c_long(length)) == 0




def sigbus(client, *words) -> bool:
    try:
        client(*words)
    except OSError as error:
        assert error.errno == errno.EFAULT, error
        return True
    return False


def daxfs(*words, check=True):
    return mounts.run([mounts.command("daxfs"), *words], check=check)


# -- the layout breaks ------------------------------------------------------------------------


@pytest.mark.parametrize("how", MODES)
def test_cut_and_punched(mount, path, syncs, clients, how):
    """SIGBUS behind the end, zeros in holes and after growing, and nothing else is touched."""
    one, two = clients(), clients()
    for client in (one, two):
        client("map", 0, path, 0, SIZE, how)
    for at in (0, 5 * PAGE, HUGE, HUGE + 9 * PAGE, 3 * HUGE):
        one("store", 0, at, 7)
        two("expect", 0, at, 7)
    fallocate(path, PUNCH, HUGE, 4 * PAGE)
    fallocate(path, ZERO, 5 * PAGE, PAGE)
    for client in (two, one):
        for at, value in ((0, 7), (5 * PAGE, 0), (HUGE, 0), (HUGE + 9 * PAGE, 7), (3 * HUGE, 7)):
            client("expect", 0, at, value)
    os.truncate(path, 2 * HUGE)
    assert all(sigbus(client, "try", 0, 3 * HUGE, 1) and sigbus(client, "expect", 0, 2 * HUGE, 0)
               for client in (one, two))
    os.truncate(path, SIZE)
    two("expect", 0, 3 * HUGE, 0)
    one("try", 0, 3 * HUGE + PAGE, 8)
    two("expect", 0, 3 * HUGE + PAGE, 8)
    assert os.pread(syncs.fd, 2 * PAGE, 3 * HUGE) == bytes(PAGE) + b"\10" + bytes(PAGE - 1)
    assert syncs() >= 1 and syncs() == 0


@pytest.mark.parametrize("how", MODES)
def test_marks_of_pages_that_went(mount, path, syncs, clients, how):
    client = clients()
    client("map", 0, path, 0, SIZE, how)
    for at in (0, HUGE, 3 * HUGE):
        client("store", 0, at, 7)
    os.truncate(path, HUGE)
    os.truncate(path, SIZE)
    assert syncs() == (1 if how == "pages" or (how == "kernel" and not mount.huge) else 512)
    client("store", 0, HUGE, 7)
    fallocate(path, PUNCH, HUGE, HUGE)
    assert syncs() == 0


@pytest.mark.parametrize("how", MODES)
def test_unlinked_and_replaced(mount, path, syncs, clients, how):
    """The space of a removed file is its mappings' until they end; a new one has none of it."""
    client = clients()
    client("map", 0, path, 0, SIZE, how)
    client("store", 0, 5, 7)
    other = path.with_name(path.name + "_new")
    other.write_bytes(b"W" * SIZE)
    os.rename(other, path)
    client("expect", 0, 5, 7)
    client("try", 0, HUGE, 8)
    assert path.read_bytes() == b"W" * SIZE
    client("expect", 0, 6, 0)
    assert os.pread(syncs.fd, 1, HUGE) == b"\10", "by the descriptor of the removed file"
    syncs()
    client.kill()
    other.write_bytes(b"")
    os.truncate(other, SIZE)
    assert other.read_bytes() == bytes(SIZE)
    other.unlink()


@pytest.mark.parametrize("how", MODES)
def test_written_and_copied_into(mount, path, syncs, clients, how):
    client = clients()
    client("map", 0, path, 0, SIZE, how)
    client("store", 0, 9 * PAGE, 7)
    other = path.with_name("source")
    other.write_bytes(b"W" * 4 * PAGE)
    with opened(path) as file, open(other, "rb") as source:
        assert os.copy_file_range(source.fileno(), file.fileno(), 4 * PAGE, 0, HUGE) == 4 * PAGE
        assert os.pwrite(file.fileno(), b"W" * PAGE, 9 * PAGE) == PAGE
    other.unlink()
    for at in (HUGE, HUGE + 4 * PAGE - 1, 9 * PAGE):
        client("expect", 0, at, ord("W"))
    client("try", 0, HUGE + 1, 9)
    assert os.pread(syncs.fd, 3, HUGE) == b"W\tW"
    with opened(path) as file:
        for mode in (8, 32):  # collapse, insert
            assert LIBC.fallocate(file.fileno(), mode, ctypes.c_long(0), ctypes.c_long(HUGE)) == -1


@pytest.mark.parametrize("how", MODES)
def test_the_flag_is_taken_away(mount, path, syncs, clients, how):
    """It counts from the last close on; what is mapped goes on until then."""
    client = clients()
    client("map", 0, path, 0, SIZE, how)
    client("store", 0, 5, 7)
    mounts.set_dax(path, False)
    client("store", 0, HUGE, 8)
    assert syncs() >= 1 and os.pread(syncs.fd, 1, HUGE) == b"\10"
    client.kill()
    syncs.becomes(clients=0)
    assert path.read_bytes()[5] == 7


def changes(path, until, seen):
    """Cut, grow, punch and write behind the first MiB until told."""
    with opened(path) as file:
        fd, n = file.fileno(), 0
        while time.monotonic() < until or n <= 10:
            n += 1
            at = MIB + n * 7919 % 1700 * PAGE
            os.ftruncate(fd, at)
            os.ftruncate(fd, SIZE)
            LIBC.fallocate(fd, PUNCH, ctypes.c_long(at), ctypes.c_long(100 * PAGE))
            if n % 3 == 0:
                os.pwrite(fd, b"W" * 3 * PAGE, at)
            if n % 5 == 0:
                os.fsync(fd)
    seen.append(n)


@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.long)])
@pytest.mark.parametrize("how", ["user", "pages"])
def test_a_file_changes_while_programs_store(mount, path, syncs, clients, how, seconds):
    """Two programs and a third in another file, whose pages come from where those of the first went."""
    other = path.with_name("other")
    other.write_bytes(b"")
    os.truncate(other, SIZE)
    seen: list[int] = []
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=changes, args=(path, until, seen)),
               threading.Thread(target=changes, args=(other, until, seen))]
    one, two, third = clients(), clients(), clients()
    for client, file, tag in ((one, path, 1), (two, other, 2)):
        client("map", 0, file, 0, SIZE, how)
        client.begin("race", 0, MIB // PAGE, tag, seconds)
    third("map", 0, path, 0, SIZE, "kernel")
    for thread in threads:
        thread.start()
    while time.monotonic() < until:
        for at in range(MIB + 64, SIZE, 37 * PAGE):
            assert os.pread(syncs.fd, 1, at) in (b"", b"\0", b"\1", b"W")
    for thread in threads:
        thread.join()
    for client in (one, two):
        client.end()
        client("try", 0, SIZE - PAGE, 5)
    third("expect", 0, SIZE - PAGE, 5)
    assert len(seen) == 2 and min(seen) > 10
    syncs()
    assert syncs() == 0 and not syncs.coarse()
    other.unlink()


# -- poison -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["user", "pages"])
def test_poison_under_fault_user(mount, path, syncs, clients, how):
    """Mapped or not: SIGBUS there, for new clients as well. Cleared, written, punched: it works again."""
    one = clients()
    one("map", 0, path, 0, SIZE, how)
    for page in (5, 6, 7, 8):
        one("store", 0, page * PAGE, page)
    assert syncs() > 0
    daxfs("poison", "add", path, 5 * PAGE, 3 * PAGE)
    daxfs("poison", "add", path, HUGE, PAGE)
    two = clients()
    two("map", 0, path, 0, SIZE, how)
    for client in (one, two):
        assert sigbus(client, "expect", 0, 5 * PAGE, 5) and sigbus(client, "try", 0, 6 * PAGE, 1)
        assert sigbus(client, "try", 0, HUGE, 1) and sigbus(client, "expect", 0, 7 * PAGE, 7)
        client("expect", 0, 8 * PAGE, 8)
        client("try", 0, HUGE + PAGE, 2)
    with pytest.raises(OSError):
        os.pread(syncs.fd, PAGE, 5 * PAGE)
    daxfs("poison", "clear", path, 5 * PAGE, PAGE)
    with opened(path) as file:
        os.pwrite(file.fileno(), b"W" * PAGE, 6 * PAGE)
    fallocate(path, PUNCH, 7 * PAGE, PAGE)
    for client in (one, two):
        comes_back(client, 5 * PAGE, 5)
        comes_back(client, 6 * PAGE, ord("W"))
        comes_back(client, 7 * PAGE, 0)
        assert sigbus(client, "expect", 0, HUGE, 0)
    syncs()
    one("store", 0, 6 * PAGE, 9)
    assert syncs() >= 1 and os.pread(syncs.fd, 1, 6 * PAGE) == b"\t"
    two("expect", 0, 6 * PAGE, 9)
    os.truncate(path, HUGE)
    os.truncate(path, SIZE)
    comes_back(one, HUGE, 0)
    assert mount.stat()["space"]["poisoned"] == 0


def comes_back(client, at, value) -> None:
    """The daemon does it after it has answered who healed the page."""
    until = time.monotonic() + 10
    while sigbus(client, "expect", 0, at, value):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_poison_under_fault_kernel(mount, path, syncs, clients):
    """Not stopped, and nothing is lost of what is mapped."""
    client = clients()
    client("map", 0, path, 0, SIZE)
    client("store", 0, 5 * PAGE, 5)
    daxfs("poison", "add", path, 5 * PAGE, PAGE)
    client("expect", 0, 5 * PAGE, 5)
    client("try", 0, 5 * PAGE, 6)
    with pytest.raises(OSError):
        os.pread(syncs.fd, 1, 5 * PAGE)
    daxfs("poison", "clear", path, 5 * PAGE, PAGE)
    assert os.pread(syncs.fd, 1, 5 * PAGE) == b"\6" and syncs() > 0


# -- revocation -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", MODES)
def test_revoked(mount, path, syncs, clients, how):
    """SIGBUS at once, in pages that were mapped and in others; what was stored is there, and is flushed."""
    one, two = clients(), clients()
    one("map", 0, path, 0, SIZE, how)
    two("map", 0, path, 0, SIZE, how)
    one("store", 0, 5, 7)
    two("store", 0, HUGE, 8)
    try:
        done = daxfs("revoke", "--timeout", "0", mount.path).stdout
        for client in (one, two):
            assert f"pid {client.process.pid} (" in done, done
        before = syncs.handled()
        for client in (one, two):
            for at in (5, HUGE, 3 * HUGE):
                assert sigbus(client, "expect", 0, at, 0) and sigbus(client, "try", 0, at, 1)
        assert syncs.handled() == before, "nobody was asked"
        assert os.pread(syncs.fd, 6, 0) == b"\0\0\0\0\0\7" and os.pread(syncs.fd, 1, HUGE) == b"\10"
        assert syncs() >= 2 and syncs() == 0
    finally:
        for client in (one, two):
            client.kill()
        syncs.becomes(clients=0)
        os.close(syncs.fd)
        daxfs("revoke", "--undo", mount.path)
        syncs.fd = os.open(path, os.O_RDONLY)


@pytest.mark.parametrize("how", ["user", "pages", "kernel"])
def test_revoked_while_it_stores(mount, path, syncs, clients, how):
    """Each fault that is under way ends, the program dies of SIGBUS, and no store is lost."""
    client = clients()
    client("map", 0, path, 0, SIZE, how)
    client.begin("count", 0, 4, 1_000_000)
    until = time.monotonic() + 60
    while not all(os.pread(syncs.fd, PAGE, 0)[: 4 * 64 : 64]):
        assert time.monotonic() < until, "its threads have not begun"
        time.sleep(0.01)
    try:
        daxfs("revoke", "--timeout", "0", mount.path)
        assert client.process.wait(20) < 0
        data = os.pread(syncs.fd, SIZE, 0)
        for number in range(4):
            found = [struct.unpack_from("<I", data, page * PAGE + (page + number) % 64 * 64)[0]
                     for page in range(SIZE // PAGE)]
            # Each thread goes from page to page: it is in one round, or in the next.
            assert found[0] and found == sorted(found, reverse=True) and found[0] - found[-1] <= 1
    finally:
        client.kill()
        syncs.becomes(clients=0)
        os.close(syncs.fd)
        daxfs("revoke", "--undo", mount.path)
        syncs.fd = os.open(path, os.O_RDONLY)


# -- no storage -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["user", "pages"])
def test_a_full_tmpfs(clients, how):
    """SIGBUS, one line in the log, and everything goes on once there is room."""
    with mounts.MountedRegion(16 * MIB, pool="never", room=24 * MIB, transport="dev") as region:
        region.mount()
        region.expect_log(r"no storage for \d+ faults")
        place, big = region.path / "f", region.path / "big"
        for name in (place, big):
            name.write_bytes(b"")
            os.truncate(name, 64 * MIB)
        client = clients()
        client("map", 0, place, 0, SIZE, how)
        client("store", 0, 0, 7)
        with opened(big) as file, pytest.raises(OSError):
            at = 0
            while at < 64 * MIB:
                at += os.pwrite(file.fileno(), b"x" * MIB, at)
        for at in (HUGE, HUGE + 5 * PAGE, 3 * HUGE):
            assert sigbus(client, "try", 0, at, 1)
        client("expect", 0, 0, 7)
        client("try", 0, 1, 8)
        fallocate(big, PUNCH, 0, 16 * PAGE)
        client("try", 0, 2 * HUGE + 5 * PAGE, 6)  # there is room, and not for 2 MiB
        os.truncate(big, 0)
        client("try", 0, HUGE + 7 * PAGE, 9)
        fd = os.open(place, os.O_RDONLY)
        os.fsync(fd)
        assert os.pread(fd, 1, HUGE + 7 * PAGE) == b"\t" and os.pread(fd, 2, 0) == b"\7\10"
        if how == "pages":
            assert sigbus(client, "try", 0, HUGE, 1), "until it is unmapped, or cut off"
        client("forget", 0, 3 * HUGE, HUGE, 0)
        other = clients()
        other("map", 0, place, 0, SIZE, how)
        other("try", 0, 3 * HUGE, 4)
        assert os.pread(fd, 1, 3 * HUGE) == b"\4"
        os.close(fd)
        client.kill()
        other.kill()
        lines = re.findall(r"no storage for \d+ faults", region.log_file.read_text())
        assert len(lines) == 1, lines
        region.umount()
        assert region.fsck("-n").returncode == 0


# -- a daemon that is killed -------------------------------------------------------------------

LIBRARY = """
import sys
from daxfs.client import map_file
array = map_file(sys.argv[1], fault="user", pte=True, require=True)
words = array.view("<u4")
for n in range(1, 200_001):
    for page in range(0, len(words), 1024):
        words[page] = n
    if n < 3 or n % 50 == 0:
        print(n, flush=True)
    if n >= int(sys.argv[2]) and n % 50 == 0:
        break
"""


@pytest.fixture
def doomed():
    """A mount of its own, and a program that stores to each page of a file, round after round."""
    with mounts.MountedRegion(16 * MIB, pool="never", room=64 * MIB, transport="dev") as region:
        region.mount()
        file = region.path / "f"
        file.write_bytes(b"")
        os.truncate(file, MIB)
        runs = subprocess.Popen([sys.executable, "-P", "-c", LIBRARY, file, "500"],
                                stdout=subprocess.PIPE, text=True)
        try:
            assert runs.stdout.readline() == "1\n" and runs.stdout.readline() == "2\n"
            yield region, file, runs
        finally:
            runs.kill()
            runs.wait()
            runs.stdout.close()


def after_the_kill(region, file, runs, least):
    """The program goes on to its end, without anybody to answer it; what fsync had said stays."""
    assert runs.wait(60) == 0
    assert region.fsck("-n").returncode == 0
    region.mount()
    data = file.read_bytes()
    words = {struct.unpack_from("<I", data, at)[0] for at in range(0, MIB, PAGE)}
    assert len(words) == 1 and words.pop() >= max(least, 500)


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.05])
def test_killed_during_a_write_back(doomed, delay):
    """fsync is under way, with stores that race: it fails or has answered, and nobody hangs."""
    region, file, runs = doomed
    fd, answered, fails = os.open(file, os.O_RDONLY), [0], []

    def syncing():
        try:
            while True:
                round_ = struct.unpack("<I", os.pread(fd, 4, MIB - PAGE))[0]
                os.fsync(fd)
                answered[0] = round_
        except OSError as error:
            fails.append(error.errno)

    thread = threading.Thread(target=syncing)
    thread.start()
    time.sleep(0.2 + delay)
    region.kill()
    thread.join(20)
    assert not thread.is_alive() and fails
    os.close(fd)
    after_the_kill(region, file, runs, answered[0])


def test_killed_while_faults_wait(doomed):
    """Stopped first, so that faults are asked and not answered; then killed."""
    region, file, runs = doomed
    os.kill(region.pid, signal.SIGSTOP)
    time.sleep(0.2)
    region.kill()
    after_the_kill(region, file, runs, 0)
