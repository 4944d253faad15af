# SPDX-License-Identifier: MIT
"""The client with fault=user: the daemon answers its page faults, and has the marks.

What is the same with fault=kernel test_client_mount.py shows; here is what differs: who faults, what a killed
program leaves, what msync in the program does to protection that the daemon set, and a daemon that dies.
"""

import os
import signal
import subprocess
import sys
import time

import mounts
import numpy as np
import pytest
from observekit import HUGE, MIB, PAGE, SIZE
from test_client_mount import settled

from daxfs.client import PRELOAD, map_file, why_no_user_faults

pytestmark = [pytest.mark.mount,
              pytest.mark.skipif(mounts.KERNEL < (6, 11), reason="no PROCMAP_QUERY before kernel 6.11"),
              pytest.mark.skipif(bool(why_no_user_faults()), reason=why_no_user_faults() or "-")]
BY_URING = True
USER = (mounts.command("daxfs"), "run", "--fault", "user", "--")

STORES = """
import sys, time
from daxfs.client import map_file
array = map_file(sys.argv[1], pte=True, require=True, fault="user")
array[3 * 4096] = array[900 * 4096] = 1
print("ready", flush=True)
for line in sys.stdin:
    array[int(line)] = 7
    print(array[int(line)], flush=True)
array.msync()
"""


def test_exactly_what_was_stored(path, syncs):
    before = syncs.handled()
    array = map_file(path, pte=True, require=True, fault="user")
    assert array.observed and array[2 * PAGE] == 0 and array.dirty() == [] and syncs() == 0
    array[5 * PAGE + 7] = 1
    array[2 * PAGE] = array[6 * PAGE] = 2
    assert array.dirty() == [(2 * PAGE, 3 * PAGE), (5 * PAGE, 7 * PAGE)]
    assert syncs() == 3 and array.dirty() == [] and not syncs.coarse()
    assert syncs.handled() - before == 4  # a load, two stores to new pages, one to a page that was loaded
    array[5 * PAGE] = 3
    array.msync()
    assert array.dirty() == []
    array[5 * PAGE] = 4
    assert array.dirty() == [(5 * PAGE, 6 * PAGE)] and syncs.handled() - before == 6
    del array
    assert syncs() == 1
    settled(syncs)


def test_two_mib_at_once(path, syncs):
    before = syncs.handled()
    array = map_file(path, require=True, fault="user")
    array[HUGE : 2 * HUGE] = 3
    assert syncs.handled() - before == 1
    assert syncs() == 512 and syncs() == 0
    array[HUGE + 5] = 4
    assert syncs() == 512
    del array
    settled(syncs)


def test_system_calls_fault_too(path, syncs):
    """read(2) into the mapping and write(2) out of it, of this file and of others."""
    array = map_file(path, require=True, fault="user")
    with open("/dev/urandom", "rb", buffering=0) as file:
        assert file.readinto(memoryview(array)[PAGE : 9 * PAGE]) == 8 * PAGE
    reader, writer = os.pipe()
    os.write(writer, memoryview(array)[4 * HUGE - PAGE :])
    assert os.read(reader, 2 * PAGE) == bytes(PAGE)
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), memoryview(array)[PAGE : 2 * PAGE], 2 * HUGE)
        os.preadv(file.fileno(), [memoryview(array)[3 * HUGE : 3 * HUGE + PAGE]], PAGE)
    for at in (2 * HUGE, 3 * HUGE):
        assert np.array_equal(array[at : at + PAGE], array[PAGE : 2 * PAGE]) and array[at : at + PAGE].any()
    os.close(reader)
    os.close(writer)


@pytest.fixture
def program(path):
    made = []

    def start(*command):
        words = [*command, sys.executable, "-P", "-c", STORES, path]
        made.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert made[-1].stdout.readline() == "ready\n"
        return made[-1]

    yield start
    for one in made:
        one.kill()
        one.stdin.close()
        one.stdout.close()
        one.wait()


def test_a_killed_program_leaves_just_its_stores(path, syncs, program):
    one = program()
    one.kill()
    one.wait()
    syncs.becomes(mappings=0, clients=0)
    assert syncs() == 2 and syncs() == 0
    assert os.pread(syncs.fd, 1, 900 * PAGE) == b"\1"


def test_a_child_by_fork(path, syncs):
    array = map_file(path, pte=True, require=True, fault="user")
    array[0] = 1
    pid = os.fork()
    if not pid:
        array[PAGE] = 2
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert syncs() == 2 and array[PAGE] == 2 and syncs() == 0
    array[PAGE] = 3
    assert syncs() == 1


def test_the_daemon_dies(program):
    """The program goes on: the kernel answers its faults from then on, and what it stores is in the file."""
    with mounts.MountedRegion(64 * MIB, pool="never", room=192 * MIB, transport="dev") as region:
        region.mount()
        place = region.path / "f"
        with open(place, "wb") as file:
            file.truncate(SIZE)
        one = subprocess.Popen([sys.executable, "-P", "-c", STORES, place], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
        try:
            assert one.stdout.readline() == "ready\n"
            os.kill(region.pid, signal.SIGSTOP)
            print(5 * PAGE, file=one.stdin, flush=True)  # a fault that nobody answers
            time.sleep(0.3)
            region.kill()
            assert one.stdout.readline() == "7\n"
            print(7 * PAGE, file=one.stdin, flush=True)
            assert one.stdout.readline() == "7\n"
        finally:
            one.kill()
            one.stdin.close()
            one.stdout.close()
            one.wait()
        region.mount()
        with open(place, "rb") as file:
            data = file.read()
        assert [data[page * PAGE] for page in (3, 5, 7, 8)] == [1, 7, 7, 0]


def test_fio(mount, path, syncs):
    before = syncs.handled()
    mounts.run([*USER, "fio", "--name=x", f"--filename={path}", "--ioengine=mmap", "--rw=randwrite",
                "--bs=4k", f"--size={SIZE}", "--fsync=64",
                "--verify=crc32c", "--verify_state_save=0"], timeout=120)
    assert syncs.handled() > before
    settled(syncs)


def test_many_threads(path, syncs):
    """Faults of several threads on the same pages, while fsync protects them again."""
    code = """
import sys, threading
from daxfs.client import map_file
array = map_file(sys.argv[1], require=True, fault="user", pte=True)
def work(number):
    for round in range(1, 9):
        array[number * 64 :: 4096] = round
threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
[t.start() for t in threads]
[t.join() for t in threads]
assert all((array[n * 64 :: 4096] == 8).all() for n in range(6))
"""
    one = subprocess.Popen([sys.executable, "-P", "-c", code, path])
    while one.poll() is None:
        os.fsync(syncs.fd)
    assert one.returncode == 0
    syncs()
    assert syncs() == 0
    with open(path, "rb") as file:
        data = np.frombuffer(file.read(), np.uint8)
    assert all((data[n * 64 :: PAGE] == 8).all() for n in range(6))


def test_the_shim_does_it_for_any_program(path, syncs):
    before = syncs.handled()
    code = ("import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); "
            "m[5] = 1; m.flush(); m[4096 * 600] = 2")
    done = mounts.run([*USER, sys.executable, "-c", code, path])
    assert not done.stderr and syncs.handled() > before
    settled(syncs)
    assert PRELOAD.exists()
