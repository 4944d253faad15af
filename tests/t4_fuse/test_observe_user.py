# SPDX-License-Identifier: MIT
"""Observed mappings, mode fault=user: the daemon answers the faults, and its entries say what fsync flushes.

The client is observe_client.c with "user" (2 MiB at once where they can be) or "pages" (4 KiB each).
"""

import errno
import os
import signal
from collections import Counter

import pytest
from observekit import HUGE, LIBC, MIB, PAGE, SIZE

from daxfs.fault import _handler

pytestmark = [pytest.mark.mount,
              pytest.mark.skipif(not _handler.available(), reason="userfaultfd of this kernel can't do it")]


def handled(syncs) -> dict:
    out = Counter()
    for row in syncs.stat()["handler"]["faults"]:
        out[row["kind"], row["order"], row["result"]] += row["count"]
    return out


def test_exactly_what_was_stored_since_the_last_one(mount, path, syncs, clients):
    client = clients()
    client("map", 0, path, 0, SIZE, "pages")
    assert syncs() == 0
    for at in (5, 3, 3 * HUGE + 7 * PAGE):
        client("store", 0, at, 1)
    assert syncs() == 2 and syncs() == 0 and not syncs.coarse()
    client("store", 0, HUGE, 1)
    client("store", 0, 5, 2)
    assert syncs() == 2 and syncs() == 0
    assert os.pread(syncs.fd, 6, 0) == b"\0\0\0\1\0\2"


def test_two_mib_are_one_fault_and_one_mark(mount, path, syncs, clients):
    client = clients()
    client("map", 0, path, 0, SIZE, "user")
    before = handled(syncs)
    client("store", 0, HUGE + 5, 1)
    client("store", 0, 2 * HUGE - 5, 1)
    assert syncs() == 512 and syncs() == 0
    client("store", 0, HUGE, 1)
    assert syncs() == 512
    after = handled(syncs)
    grown = {key: count - before.get(key, 0) for key, count in after.items() if count > before.get(key, 0)}
    assert grown == {("write", 9, "NOPAGE"): 1, ("mkwrite", 0, "NOPAGE"): 1}


@pytest.mark.parametrize("how", ["user", "pages"])
def test_a_killed_client_loses_nothing(mount, path, syncs, clients, how):
    """And no more than it stored to is flushed: the marks are the daemon's."""
    for after in (False, True):
        client = clients()
        client("map", 0, path, 0, SIZE, how)
        client("store", 0, HUGE, 1 + after)
        client.kill()
        if after:
            syncs.becomes(clients=0, mappings=0)
        assert syncs() == (512 if how == "user" else 1)
        assert syncs() == 0 and os.pread(syncs.fd, 1, HUGE) == bytes([1 + after])
        syncs.becomes(clients=0, mappings=0)


def test_two_processes_and_both_modes(mount, path, syncs, clients):
    one, two, three = clients(), clients(), clients()
    one("map", 0, path, 0, SIZE, "pages")
    two("map", 0, path, 2 * HUGE, HUGE, "pages")
    three("map", 0, path, 0, SIZE)
    one("store", 0, 0, 1)
    two("store", 0, PAGE, 1)
    one("store", 0, 2 * HUGE + PAGE, 2)
    assert syncs() == 2
    three("store", 0, 3 * HUGE, 1)
    two("store", 0, PAGE, 3)
    assert syncs() == 1 + (512 if mount.huge else 1)
    assert syncs() == 0 and syncs.stat()["clients"] == 3
    assert os.pread(syncs.fd, 1, 2 * HUGE + PAGE) == b"\3"


def test_a_child_observes_anew(mount, path, syncs, clients):
    client = clients()
    client("map", 0, path, 0, SIZE, "pages")
    client("store", 0, 2 * HUGE, 1)
    client("fork")
    syncs.becomes(clients=1)
    assert syncs() == 2 and os.pread(syncs.fd, 1, PAGE) == b"c" and syncs() == 0


def test_forgotten_and_unmapped(mount, path, syncs, clients):
    client = clients()
    client("map", 0, path, 0, SIZE, "pages")
    client("store", 0, HUGE, 1)
    client("forget", 0, HUGE, HUGE, 0)
    client("unmap", 0, HUGE, HUGE)
    client("store", 0, 0, 1)
    assert syncs() == 2, "who stored, and whether he says so, is known by the marks"
    client("store", 0, 0, 2)
    client("unmap", 0, 0, HUGE)
    assert syncs() == 1 and syncs() == 0
    client("store", 0, 2 * HUGE, 1)
    assert syncs() == 1


@pytest.mark.parametrize("change", ["punch", "truncate", "write"])
def test_the_file_changes_under_it(mount, path, syncs, clients, change):
    client = clients()
    client("map", 0, path, 0, SIZE, "user")
    client("store", 0, 5 * PAGE, 1)
    assert syncs() == 512
    with open(path, "r+b", buffering=0, opener=lambda name, flags: os.open(name, os.O_WRONLY)) as file:
        if change == "truncate":
            os.ftruncate(file.fileno(), 3 * PAGE)
            os.ftruncate(file.fileno(), SIZE)
        elif change == "punch":
            assert LIBC.fallocate(file.fileno(), 3, 0, 100 * PAGE) == 0
        else:
            os.pwrite(file.fileno(), b"x", 5 * PAGE)
    expected = b"x" if change == "write" else b"\0"
    assert os.pread(syncs.fd, 1, 5 * PAGE) == expected
    client("store", 0, 6 * PAGE, 7)
    assert os.pread(syncs.fd, PAGE + 1, 5 * PAGE) == expected + bytes(PAGE - 1) + b"\7"
    assert syncs() >= 1 and syncs() == 0


def test_behind_the_end_is_sigbus(mount, path, syncs, clients):
    client = clients()
    client("map", 0, path, 0, SIZE, "user")
    client("store", 0, SIZE - 1, 1)
    os.truncate(path, MIB)
    client("store", 0, 0, 1)
    client.begin("store", 0, 2 * MIB, 1)
    assert client.process.wait(20) == -signal.SIGBUS
    os.truncate(path, SIZE)


def test_stores_race_with_fsync(mount, path, syncs, clients):
    """What fsync flushed can't be seen from here (t3 does), but nothing hangs, and the content is right."""
    client = clients()
    client("map", 0, path, 0, SIZE, "pages")
    client.begin("count", 0, 4, 3)
    for _ in range(30):
        os.fsync(syncs.fd)
    client.end()
    syncs()
    assert syncs() == 0 and not syncs.coarse()
    data = os.pread(syncs.fd, SIZE, 0)
    for page in range(SIZE // PAGE):
        for number in range(4):
            at = page * PAGE + (page + number) % 64 * 64
            assert data[at] == 3, (page, number)


def test_a_wrong_request_is_refused(mount, path, syncs, clients):
    client = clients()
    with pytest.raises(OSError) as caught:
        client("map", 0, path.with_name("none"), 0, SIZE, "user")
    assert caught.value.errno == errno.ENOENT
    client("map", 1, path, 0, SIZE, "user")
    with pytest.raises(OSError) as caught:
        client("forget", 1, 0, SIZE + PAGE, 0)
    assert caught.value.errno == errno.EINVAL
    client("store", 1, 0, 1)
    assert syncs() == 512
