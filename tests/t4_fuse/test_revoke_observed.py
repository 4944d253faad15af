# SPDX-License-Identifier: MIT
"""Revocation of observed mappings, in both modes of faults: the end of a mount with -o revoke, and what comes
after `daxfs revoke`: SIGBUS, never data of another file, and nobody waits for an answer.

The client is the library, or observe_client.c where one program is to survive many touches.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import mounts
import pytest
from mapped_program import Program
from observekit import HUGE, MIB, PAGE, SIZE
from test_lives import daxfs, sigbus
from test_revoke_mount import gone

from daxfs.client import why_no_user_faults

pytestmark = [pytest.mark.mount,
              pytest.mark.skipif(mounts.KERNEL < (6, 11), reason="no PROCMAP_QUERY before kernel 6.11")]
NO_USER = pytest.mark.skipif(bool(why_no_user_faults()), reason=why_no_user_faults() or "-")
FAULTS = ["kernel", pytest.param("user", marks=NO_USER)]

OBSERVED = """
import os, sys
from daxfs.client import map_file
array = map_file(sys.argv[1], require=True, fault=sys.argv[2])
private = map_file(sys.argv[1], "c")
print("ready", flush=True)
for line in sys.stdin:
    word, *where = line.split()
    at = int(where[0]) if where else 0
    if word == "store":
        array[at] = int(where[1])
    elif word == "private":
        private[at] = int(where[1])
        array = private
    elif word == "msync":
        array.msync()
    elif word == "fork":
        pid = os.fork()
        if not pid:
            array[at] = 9
            os._exit(0)
        print(os.waitpid(pid, 0)[1], flush=True)
        continue
    elif word == "end":
        break
    print(array[at], flush=True)
os._exit(0)
"""


class Observed(Program):
    """A child that maps a file through the library, and does what lines on its input say."""

    def __init__(self, file, fault: str):
        words = [sys.executable, "-P", "-c", OBSERVED, file, fault]
        self.child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.child.pid
        assert self.child.stdout.readline() == "ready\n"


@pytest.fixture
def observed():
    made = []

    def start(*args):
        made.append(Observed(*args))
        return made[-1]

    yield start
    for one in made:
        one.end()


@pytest.fixture
def own():
    """A mount of its own with -o revoke."""
    transport = "dev" if mounts.why_no_transport("uring") else "uring"
    with mounts.MountedRegion(32 * MIB, pool="always", room=192 * MIB, transport=transport,
                              options="revoke") as region:  # fmt: skip
        yield region.mount()


# -- the end of a mount ---------------------------------------------------------------------------


def ended(region, how: str, alive) -> None:
    """The mount ends while the programs *alive* have it mapped, which find that out. umount -l: the library
    has their file open as long as they live, and the daemon goes on for that.
    """
    if how == "SIGTERM":
        os.kill(region.pid, signal.SIGTERM)
        assert gone(region), "the daemon goes on"
    else:
        assert mounts.run(["umount", region.path], check=False).returncode == 32, "it is busy"
        assert mounts.run(["umount", "-l", region.path], check=False).returncode == 0
        until = time.monotonic() + 20
        while "taken from who had them mapped" not in region.log_file.read_text():
            assert time.monotonic() < until, region.log_file.read_text()
            time.sleep(0.02)
    for one in alive:
        os.kill(one.pid, signal.SIGCONT)
        assert one.dies_of_sigbus()
    assert gone(region), "the daemon goes on"


@pytest.mark.parametrize("how", ["umount -l", "SIGTERM"])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_end_of_a_mount(own, observed, how, fault):
    """Programs that sleep, are stopped, and one that was killed just before: what they stored is there."""
    file, other = own.path / "f", own.path / "other"
    file.write_bytes(bytes(SIZE))
    other.write_bytes(bytes(SIZE))
    asleep, stopped, killed = observed(file, fault), observed(file, fault), observed(other, fault)
    assert asleep.say("store 5 1") == "1" and stopped.say(f"store {HUGE + 7} 2") == "2"
    assert killed.say(f"store {3 * PAGE} 3") == "3" and asleep.say(f"store {3 * HUGE} 4") == "4"
    asleep.say("msync")
    assert asleep.say("store 6 5") == "5"
    os.kill(stopped.pid, signal.SIGSTOP)
    killed.child.kill()
    killed.child.wait()
    ended(own, how, [asleep, stopped])
    assert own.fsck("-n").returncode == 0
    own.mount()
    data = file.read_bytes()
    assert {at: data[at] for at in range(SIZE) if data[at]} == {5: 1, 6: 5, HUGE + 7: 2, 3 * HUGE: 4}
    assert other.read_bytes().strip(b"\0") == b"\3" and os.stat(file).st_size == SIZE
    own.umount()


# -- after daxfs revoke -----------------------------------------------------------------------------


@pytest.fixture
def undone(mount):
    yield
    daxfs("revoke", "--undo", mount.path)


HOWS = [pytest.param("user", marks=NO_USER), pytest.param("pages", marks=NO_USER), "kernel"]
PLACES = (0, 5 * PAGE, HUGE, 3 * HUGE + PAGE)


def dead(client, places=PLACES) -> bool:
    return all(sigbus(client, "expect", 0, at, 0) and sigbus(client, "try", 0, at, 1) for at in places)


@pytest.mark.parametrize("how", HOWS)
def test_the_file_grows_again(mount, path, syncs, clients, undone, how):
    """What the inode's new file gets, the old mapping does not show; nor is anybody asked."""
    client = clients()
    client("map", 0, path, 0, SIZE, how)
    client("store", 0, HUGE, 8)
    daxfs("revoke", "--timeout", "0", mount.path)
    before = syncs.handled()
    os.truncate(path, PAGE)
    os.truncate(path, SIZE)
    with open(path, "r+b", buffering=0) as file:
        assert file.write(b"new" * (SIZE // 3)) and dead(client)
        os.fsync(file.fileno())
    assert dead(client) and syncs.handled() == before
    assert path.read_bytes() == b"new" * (SIZE // 3) + bytes(SIZE - SIZE // 3 * 3)
    client.kill()
    syncs.becomes(clients=0)


@pytest.mark.parametrize("how", HOWS)
def test_the_inode_number_is_not_given_away(mount, path, syncs, clients, undone, how):
    """The dead mapping keeps the inode: what is made after the file was removed is no other file to it."""
    client, second, one = clients(), clients(), path.with_name("one")
    one.write_bytes(b"old" * PAGE)
    os.truncate(one, SIZE)
    number = os.stat(one).st_ino
    client("map", 0, one, 0, SIZE, how)
    client("store", 0, HUGE, 8)
    daxfs("revoke", "--timeout", "0", mount.path)
    client("close", 0)
    one.unlink()
    daxfs("revoke", "--undo", mount.path)
    made = [path.with_name(f"n{n}") for n in range(60)]
    try:
        for file in made:
            file.write_bytes(b"secret" * PAGE)
        os.truncate(made[-1], SIZE)
        assert number not in {os.stat(file).st_ino for file in made}
        second("map", 0, made[-1], 0, SIZE, how)
        second("store", 0, HUGE, 1)
        assert dead(client)
        second("store", 0, 3 * HUGE + PAGE, 1)
        assert dead(client) and os.pread(syncs.fd, SIZE, 0) == bytes(SIZE)
        assert made[-1].read_bytes()[: 6 * PAGE] == b"secret" * PAGE
    finally:
        for each in (client, second):
            each.kill()
        for file in made:
            file.unlink(missing_ok=True)
        syncs.becomes(clients=0)


@pytest.mark.parametrize("fault", FAULTS)
def test_private_mappings_and_children(mount, path, undone, observed, fault):
    """A private copy of a page goes, too, as at each cut; a later child has the same dead mapping."""
    asleep, private, forks = (observed(path, fault) for _ in range(3))
    assert private.say("private 5 7") == "7" and forks.say("store 6 8") == "8"
    assert forks.say("fork 7") == "0" and asleep.say("look 7") == "9"
    daxfs("revoke", "--timeout", "0", mount.path)
    path.write_bytes(b"new" * PAGE)
    assert private.dies_of_sigbus("look 5") and asleep.dies_of_sigbus("look 7")
    for at in (7, HUGE):
        assert int(forks.say(f"fork {at}")) == signal.SIGBUS
    assert forks.dies_of_sigbus("look 6") and path.read_bytes() == b"new" * PAGE


@NO_USER
@pytest.mark.parametrize("round_", range(6))
@pytest.mark.parametrize("how", ["user", "pages"])
def test_a_fault_waits_meanwhile(mount, path, syncs, clients, undone, how, round_):
    """It is asked while the daemon is stopped; then the request comes, too: the program does not hang."""
    client = clients()
    client("map", 0, path, 0, SIZE, how)
    client("store", 0, 5, 1)
    asking = threading.Thread(target=daxfs, args=("revoke", "--timeout", "0", mount.path))
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        client.begin("try", 0, HUGE, 7)
        time.sleep(0.1)
        asking.start()
        time.sleep(0.1 + 0.1 * round_)
    finally:
        os.kill(mount.pid, signal.SIGCONT)
    try:
        client.end()  # it came before: its store is in the file
        stored = 7
    except OSError:
        stored = 0
    asking.join(30)
    assert not asking.is_alive() and dead(client)
    assert os.pread(syncs.fd, 1, HUGE) == bytes([stored]) and os.pread(syncs.fd, 6, 0) == b"\0\0\0\0\0\1"
    client.kill()
    syncs.becomes(clients=0)
