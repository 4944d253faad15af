# SPDX-License-Identifier: MIT
"""How much the fault handler does for a fault, and that what it leaves out is made up for."""

import contextlib
import ctypes
import os
import re
import threading
import time
from pathlib import Path

from datakit import MIB, PAGE, noise
from test_handler import observed, pool  # noqa: F401 (fixtures)

_libc = ctypes.CDLL(None, use_errno=True)


def tasks() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def switches(threads) -> int:
    """How often these threads went to sleep by themselves."""
    texts = (Path(f"/proc/self/task/{one}/status").read_text() for one in threads)
    return sum(int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", text, re.M)[1]) for text in texts)


def punch(one, page: int) -> None:
    """As a program's MADV_REMOVE does it: nobody tells the daemon."""
    assert _libc.fallocate(one.file, 3, ctypes.c_long(page * PAGE), ctypes.c_long(PAGE)) == 0


class Store(threading.Thread):
    """5 bytes into a page, by a system call: the fault waits without the GIL."""

    def __init__(self, one, page: int):
        super().__init__(daemon=True)
        self.one, self.page, self.done = one, page, False
        self.start()

    def run(self):
        reader, writer = os.pipe()
        os.write(writer, b"store")
        at = self.page * PAGE
        with contextlib.suppress(OSError):  # EFAULT: SIGBUS, or the mapping has gone
            self.done = os.readv(reader, [memoryview(self.one.mapping.buffer)[at : at + 5]]) == 5
        os.close(reader)
        os.close(writer)

    def ended(self) -> bool:
        self.join(20)
        return self.done


def test_a_message_wakes_one_thread(observed):  # noqa: F811
    """Two threads, faults one after the other: with one epoll for both each message woke both."""
    before = tasks()
    one = observed(data=noise(8 * MIB, 1), size=8 * MIB, pmd=False)
    threads = tasks() - before
    assert len(threads) == one.handler.threads == 2
    start = switches(threads)
    for page in range(2000):
        one.view[page * PAGE] = 1
    assert one.faults() == {("write", 0, "NOPAGE"): 2000}
    assert switches(threads) - start < 2400


def test_a_page_that_goes_after_the_message_said_it_is_there(observed):  # noqa: F811
    """The message is believed, without a look at the file; then the insert fails, and all is looked at."""
    one = observed(data=noise(MIB, 1), pmd=False)
    with one.node.map:  # the handler has the message, and waits for this lock
        store = Store(one, 5)
        until = time.monotonic() + 20
        while not one.handler.snapshot()["busy"] and time.monotonic() < until:
            time.sleep(0.001)
        punch(one, 5)
    assert store.ended() and one.faults() == {("write", 0, "MAJOR"): 1}
    assert one.io.read(one.node, 5 * PAGE, 6) == b"store\0" and one.flushed() == 1


def test_a_page_that_a_program_punched_by_itself(observed):  # noqa: F811
    """The file's extents still have it: they are learned again, or the fault would be tried for ever."""
    one = observed(data=noise(4 * MIB, 1), size=4 * MIB)
    assert one.node.map.lookup(5)[0] == 2, "IOMAP_MAPPED"
    one.view[0] = 1
    punch(one, 5)
    assert one.node.map.lookup(5)[0] == 2
    assert Store(one, 5).ended() and one.faults() == {("write", 9, "NOPAGE"): 1, ("write", 0, "MAJOR"): 1}
    punch(one, 600)
    assert Store(one, 600).ended() and one.io.read(one.node, 600 * PAGE, 6) == b"store\0"
