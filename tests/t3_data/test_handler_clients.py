# SPDX-License-Identifier: MIT
"""Clients that do with their userfaultfd and their addresses what they like: the others don't notice."""

import ctypes
import fcntl
import mmap
import os
import time
from pathlib import Path

import pytest
import uffd
from datakit import MIB, PAGE, noise
from test_handler import FEATURES, KEY, MODES, becomes, observed, pool  # noqa: F401 (fixtures)
from test_handler_work import Store, tasks

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


class Another:
    """A mapping of the same file with a userfaultfd of its own, to the same handler."""

    def __init__(self, one, key: int, *features: str):
        self.mapping = uffd.Mapping(one.file, one.size)
        self.fd = uffd.create(*FEATURES, *features)
        uffd.register(self.fd, self.mapping.address, one.size, MODES)
        one.handler.add(key, os.dup(self.fd), key, self.mapping.address, one.size, 0, one.node.map, False)

    def close(self):
        os.close(self.fd)
        self.mapping.close()


@pytest.fixture
def another():
    made = []

    def make(*args):
        made.append(Another(*args))
        return made[-1]
    yield make
    for one in made:
        one.close()


def test_one_that_takes_o_nonblock_away(observed, another):  # noqa: F811
    """The kernel calls that an error, and a read would wait: both threads, for ever."""
    one = observed(data=noise(MIB, 1))
    bad = [another(one, KEY + n) for n in (1, 2)]
    for page, client in enumerate(bad):
        fcntl.fcntl(client.fd, fcntl.F_SETFL, 0)
        Store(client, page)
    time.sleep(0.1)
    assert Store(one, 9).ended() and one.flushed() >= 1


def test_a_userfaultfd_that_is_not_ready_costs_no_time(observed):  # noqa: F811
    before = tasks()
    one = observed(data=noise(MIB, 1))
    threads = tasks() - before
    fd = _libc.syscall(ctypes.c_long(323), ctypes.c_int(os.O_CLOEXEC))
    one.handler.add(KEY + 1, fd, 2, one.address, PAGE, 0, one.node.map)

    def spent() -> int:
        """Ticks of 10 ms."""
        total = 0
        for thread in threads:
            with open(f"/proc/self/task/{thread}/stat") as file:
                total += sum(map(int, file.read().rsplit(")", 1)[1].split()[11:13]))
        return total

    start = spent()
    time.sleep(0.5)
    assert spent() - start < 10
    assert Store(one, 9).ended()


def test_forks_of_who_asked_for_their_events_leave_no_descriptor(observed, another):  # noqa: F811
    one = observed(data=noise(MIB, 1))
    another(one, KEY + 1, "event_fork")
    assert uffd.held() == one.before + 4
    for _ in range(5):
        child = os.fork()  # waits until its event is read
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
    becomes(lambda: uffd.held() == one.before + 4)


def test_something_else_over_a_part_leaves_the_rest_observed(observed):  # noqa: F811
    """The kernel stops protecting there: what is behind it in the same 2 MiB has to be protected, too."""
    one = observed(data=noise(4 * MIB, 2))
    one.view[0] = 1
    assert one.faults() == {("write", 9, "NOPAGE"): 1}
    at = one.address + 3 * PAGE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED
    assert _libc.mmap(at, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == at
    assert one.flushed() == 512
    assert Store(one, 5).ended() and one.flushed() == 512, "it was seen"


def test_who_can_not_be_protected_keeps_nobody_from_fsync(observed):  # noqa: F811
    """Flushed, and still dirty: of addresses that are none EINVAL comes, as of a hugetlbfs page there."""
    one = observed(data=noise(MIB, 2), pmd=False)
    one.handler.add(KEY + 1, os.dup(one.fd), 2, 1 << 62, 4 * PAGE, 0, one.node.map)
    one.view[0] = one.view[9 * PAGE] = 1
    assert one.flushed() == 2 and one.handler.dirty(one.node.map) == 1
    assert one.flushed() == 1
    one.handler.end(KEY + 1)
    assert one.flushed() == 1 and one.flushed() == 0


def test_one_that_begins_anew_while_its_fault_is_answered(observed):  # noqa: F811
    """A userfaultfd with two numbers, then: no message wakes a thread for the one that has ended."""
    one = observed(data=noise(MIB, 1), pmd=False)
    with one.node.map:  # a thread has the first fault, and waits for this lock
        first = Store(one, 5)
        becomes(lambda: one.handler.snapshot()["busy"] == 1)
        one.handler.end(KEY)
        one.handler.add(KEY + 1, os.dup(one.fd), 2, one.address, one.size, 0, one.node.map, False)
        time.sleep(0.1)  # the other thread waits for messages, or the second could not get lost
        second = Store(one, 9)
        becomes(lambda: "total:\t2\n" in Path(f"/proc/self/fdinfo/{one.fd}").read_text())  # both wait
    assert first.ended() and second.ended()
    assert one.faults() == {("write", 0, "NOPAGE"): 2} and one.flushed() == 2
