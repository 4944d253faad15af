# SPDX-License-Identifier: MIT
"""Observed mappings, mode fault=kernel: fsync flushes what was stored through them, and nothing else.

observe_client.c is the client. What decides are the counters of `daxfs stat`: bytes flushed by each fsync.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import re
import shutil
import struct
import threading
import time
from pathlib import Path

import mounts
import numpy as np
import pytest
from observekit import HUGE, LIBC, MIB, PAGE, SIZE, forget, observe, refused, registered, registered_at

from daxfs._flush import FLUSH_KINDS
from daxfs.fault import _handler
from daxfs.fault._observe import Found
from daxfs.fault.observer import SLOT, SLOTS
from daxfs.fuse import observing

pytestmark = pytest.mark.mount
ROOT = Path(__file__).parent.parent.parent
ABOUT = struct.Struct("=6I2QiI2Q")


def pages(mount, number: int) -> int:
    """What *number* pages, each in a huge page of its own, make."""
    return number * 512 if mount.huge else number


# -- what fsync flushes -----------------------------------------------------------------------


def test_exactly_what_was_stored_since_the_last_one(mount, path, syncs, clients):
    client = clients()
    client("map", 0, path, 0, SIZE)
    assert syncs() == 0
    client("store", 0, 5, 1)
    client("store", 0, 3 * HUGE + 7 * PAGE, 1)
    assert syncs() == pages(mount, 2)
    assert syncs() == 0
    client("store", 0, HUGE, 1)
    assert syncs() == pages(mount, 1)
    assert syncs() == 0 and not syncs.coarse()
    shown = mounts.run([mounts.command("daxfs"), "stat", mount.path]).stdout
    assert re.search(r"observed +1 mappings of 1 programs; \d+ fsyncs, \d+ pages; 0 could", shown), shown
    client("store", 0, 5, 2)  # protected again, and stored to again
    assert syncs() == pages(mount, 1)


def test_the_look_is_a_phase_of_fsync(mount, path, syncs, clients):
    client = clients()
    client("map", 0, path, 0, SIZE)
    assert syncs() == 0
    before = mount.stat()["fsync"]
    for n in range(5):
        client("store", 0, n * PAGE, 1)
        assert syncs() == pages(mount, 1)
    after = mount.stat()["fsync"]
    assert (after["count"], after["served"]) == (before["count"] + 5, before["served"])
    seen = {name: one["total_ns"] - before["phases"][name]["total_ns"]
            for name, one in after["phases"].items()}
    assert all(seen[name] for name in ("look", "walk", "flush", "drain", "meta", "reply", "python", "other"))
    assert sum(seen.values()) == after["total"]["total_ns"] - before["total"]["total_ns"]


def test_pages_of_a_huge_page_are_told_apart_only_where_there_is_none(mount, path, syncs, clients):
    client = clients()
    client("map", 0, path, 0, SIZE)
    for at in (0, 3, 3, 9):
        client("store", 0, at * PAGE + 17, 1)
    assert syncs() == (512 if mount.huge else 3)


def test_two_processes_and_a_piece_of_the_file(mount, path, syncs, clients):
    one, two = clients(), clients()
    one("map", 0, path, 0, SIZE)
    two("map", 0, path, 2 * HUGE, HUGE)
    one("store", 0, 0, 1)
    two("store", 0, 0, 1)
    assert syncs() == pages(mount, 2)
    two("store", 0, HUGE - 1, 1)
    assert syncs() == pages(mount, 1)
    assert syncs() == 0 and syncs.stat()["clients"] == 2
    two.close()
    syncs.becomes(clients=1, mappings=1)


def test_a_child_observes_anew(mount, path, syncs, clients):
    client = clients()
    client("map", 0, path, 0, SIZE)
    client("store", 0, 2 * HUGE, 1)
    client("fork")
    syncs.becomes(clients=1)
    # The child ended without a word: all that has data of what it had mapped.
    assert syncs() == pages(mount, 2)
    assert os.pread(syncs.fd, 1, PAGE) == b"c"
    assert syncs() == 0


def test_a_killed_client_loses_nothing(mount, path, syncs, clients):
    """At once at fsync, and soon by itself."""
    client = clients()
    client("map", 0, path, 0, SIZE)
    client("store", 0, HUGE, 1)
    client.kill()
    assert syncs() == pages(mount, 1)
    syncs.becomes(clients=0, mappings=0)
    client = clients()
    client("map", 0, path, 0, SIZE)
    client("store", 0, 2 * HUGE, 1)
    client.kill()
    syncs.becomes(clients=0, mappings=0)
    assert syncs() == pages(mount, 2), "what has data, also what was clean: nobody knows any more"
    assert syncs() == 0


def test_what_a_killed_client_stored_is_flushed_by_the_last_close(mount, path, syncs, clients):
    client = clients()
    client("map", 0, path, 0, SIZE)
    client("store", 0, HUGE, 1)
    before = syncs.stat()["flushed_bytes"]
    os.close(syncs.fd)
    client.kill()
    deadline = time.monotonic() + 20
    while (syncs.stat()["flushed_bytes"] - before) // PAGE < pages(mount, 1):
        assert time.monotonic() < deadline, syncs.stat()
        time.sleep(0.02)
    syncs.fd = os.open(path, os.O_RDONLY)


def test_another_program_is_an_end_too(mount, path, syncs, clients):
    client = clients()
    client("map", 0, path, 0, SIZE)
    client("store", 0, HUGE, 1)
    client("exec")
    client("map", 0, path, 0, HUGE)
    client("store", 0, 0, 1)
    assert syncs() == pages(mount, 2)
    assert syncs.stat()["mappings"] == 1
    assert syncs() == 0


def test_forgotten(mount, path, syncs, clients):
    client = clients()
    client("map", 0, path, 0, SIZE)
    client("store", 0, HUGE, 1)
    client("forget", 0, 0, SIZE, 0)
    assert syncs.stat()["mappings"] == 0
    assert syncs() == 0, "it said that it has flushed"
    client("map", 1, path, 0, SIZE)
    client("store", 1, 2 * HUGE, 1)
    client("forget", 1, 2 * HUGE, HUGE, 1)
    client("unmap", 1, 2 * HUGE, HUGE)
    client("store", 1, 0, 1)
    assert syncs() == pages(mount, 2)
    client("store", 1, 0, 1)
    client("store", 1, 3 * HUGE, 1)
    assert syncs() == pages(mount, 2)
    with pytest.raises(OSError) as caught:
        client("forget", 1, 2 * HUGE, HUGE, 0)
    assert caught.value.errno == errno.EINVAL


def test_half_of_a_huge_page_is_unmapped(mount, path, syncs, clients):
    """The kernel takes the other half out of the page table, with what is known of it."""
    client = clients()
    client("map", 0, path, 0, SIZE)
    client("store", 0, 0, 1)
    syncs()
    client("forget", 0, MIB, MIB, 1)
    client("store", 0, 5 * PAGE, 1)  # before munmap, after the daemon has answered
    assert syncs() >= 1
    client("store", 0, 5 * PAGE, 2)
    client("unmap", 0, MIB, MIB)
    assert syncs() >= 1
    syncs()
    assert syncs() == 0
    client("store", 0, 5 * PAGE, 3)
    assert syncs() == 1


@pytest.mark.parametrize("change", ["punch", "truncate", "zero", "write"])
def test_a_hole_in_a_huge_page_loses_no_mark(mount, path, syncs, clients, change):
    client = clients()
    client("map", 0, path, 0, SIZE)
    client("store", 0, 0, 1)
    syncs()
    client("store", 0, 5 * PAGE, 1)
    with open(path, "r+b", buffering=0, opener=_as_a_client) as file:
        if change == "truncate":
            os.ftruncate(file.fileno(), 100 * PAGE)
        elif change == "write":
            os.pwrite(file.fileno(), b"x", 100 * PAGE)
        else:
            mode = {"punch": 3, "zero": 16}[change]
            assert LIBC.fallocate(file.fileno(), mode, ctypes.c_long(100 * PAGE), ctypes.c_long(PAGE)) == 0
        observe_nothing(file)
    found = syncs()
    assert 1 <= found <= 512 and os.pread(syncs.fd, 1, 5 * PAGE) == b"\1"
    assert syncs() == 0


def _as_a_client(path, flags):
    return os.open(path, flags | os.O_NONBLOCK)


def observe_nothing(file) -> None:
    """Promise that all mappings of *file* are observed: one is, and goes."""
    with registered(file.fileno(), PAGE) as (uffd, address):
        number = observe(file.fileno(), uffd=uffd, address=address, length=PAGE)
        forget(file.fileno(), number, address, PAGE)


def test_munmap_without_a_word(mount, path, syncs, clients):
    client = clients()
    client("map", 0, path, 0, SIZE)
    client("store", 0, HUGE, 1)
    client("unmap", 0, HUGE, HUGE)
    assert syncs() == pages(mount, 1)
    assert syncs() == 0


# -- coarse or precise ------------------------------------------------------------------------


def test_an_unobserved_mapper_makes_it_coarse(mount, path, syncs, clients):
    client, plain = clients(), clients()
    client("map", 0, path, 0, SIZE)
    client("store", 0, 0, 1)
    assert not syncs.coarse()
    plain("map", 0, path, 0, SIZE, "plain")
    assert syncs.coarse()
    plain.close()
    assert syncs.coarse(), "its mapping might live on"
    client("store", 0, HUGE, 1)
    for pause in (0.2, 0.3, 0.4, 0.5):
        client.close()
        os.close(syncs.fd)
        # RELEASE comes after close(2) has returned; to ask whether it has come would end what is parked.
        time.sleep(pause)
        client = clients()
        client("map", 0, path, 0, SIZE)
        syncs.fd = os.open(path, os.O_RDONLY)
        if not (coarse := syncs.coarse()):
            break
    assert not coarse, "a new use of the inode"


def test_parked_handles_alone_are_no_use_of_the_inode(mount, path, syncs, clients):
    """One of a program that could have mapped the file, and closed it."""
    for pause in (0.1, 0.2, 0.3, 0.4, 0.5):
        os.close(syncs.fd)
        os.close(os.open(path, os.O_RDWR))
        time.sleep(pause)  # for RELEASE, and less than what is parked stays
        client = clients()
        client("map", 0, path, 0, SIZE)
        syncs.fd = os.open(path, os.O_RDONLY)
        syncs()  # what that program may have stored, once
        if not (coarse := syncs.coarse()):
            break
        client.close()
    assert not coarse


def test_a_handle_for_reading_or_for_writing_alone_changes_nothing(mount, path, syncs, clients):
    client = clients()
    client("map", 0, path, 0, SIZE)
    with open(path, "rb"), open(path, "ab"):
        assert not syncs.coarse()


def test_an_open_that_was_parked_is_not_ours(mount, path, syncs, clients):
    """Its last user may have left a mapping."""
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, PAGE) as left:
        os.close(fd)
        client = clients()
        client("map", 0, path, 0, SIZE)
        left[0] = 7
        assert syncs.coarse()


def opens_served(mount) -> int:
    return mount.stat()["operations"]["open"]["served"]


def test_a_promise_by_a_handle_that_was_parked_counts_for_nothing(mount, path, syncs):
    """Its user of before has left a mapping that nobody observes."""
    before = opens_served(mount)
    for pause in (0.1, 0.2, 0.3, 0.4, 0.5):
        fd = os.open(path, os.O_RDWR)
        left = LIBC.mmap(None, ctypes.c_size_t(PAGE), 3, 1, fd, ctypes.c_long(0))
        os.close(fd)
        time.sleep(pause)  # for RELEASE, and less than what is parked stays
        fd = os.open(path, os.O_RDWR)
        with registered(fd, PAGE) as (uffd, address):
            observe(fd, uffd=uffd, address=address, length=PAGE)
            coarse = syncs.coarse()
        os.close(fd)
        LIBC.munmap(ctypes.c_void_p(left), ctypes.c_size_t(PAGE))
        assert coarse
        if opens_served(mount) > before:
            break
    assert opens_served(mount) > before, "no handle was parked when it was opened again"


def test_a_handle_that_has_promised_is_nobody_elses(mount, path, syncs):
    """It is not parked: the next program has not promised anything."""
    with open(path, "r+b") as file:
        observe_nothing(file)
        assert not syncs.coarse()
    time.sleep(0.3)  # for RELEASE; where it comes later the next open is another handle, too
    with open(path, "r+b"):
        assert syncs.coarse()


# -- who asks ---------------------------------------------------------------------------------


def test_about(mount, path):
    with open(path, "rb") as file:
        raw = fcntl.ioctl(file.fileno(), observing.ABOUT, bytes(64))
    version, direct, modes, flush, granularity, syncs, ino, _, daemon, *zeros = ABOUT.unpack(raw)
    assert (version, direct, syncs, ino) == (observing.VERSION, 1, 0, os.stat(path).st_ino)
    assert modes == 1 + 2 * _handler.available()
    assert flush in range(5) and granularity == 1 and daemon == mount.pid and not any(zeros)
    fd = os.open(mount.path, os.O_RDONLY)
    raw = fcntl.ioctl(fd, observing.ABOUT, bytes(64))
    os.close(fd)
    assert struct.unpack("=6I2QiI2Q", raw)[1] == 0


BAD = {
    "version": ({"version": 1}, errno.EINVAL),
    "mode": ({"mode": 3}, errno.EINVAL),
    "user": ({"mode": 2}, errno.EINVAL if _handler.available() else errno.EOPNOTSUPP),
    "user without uffd": ({"mode": 2, "uffd": -1}, errno.EINVAL),
    "flags": ({"flags": 1}, errno.EINVAL),
    "more flags": ({"flags": 4}, errno.EINVAL),
    "progress, no flag": ({"progress": 1}, errno.EINVAL),
    "slot, no flag": ({"slot": 1}, errno.EINVAL),
    "no progress": ({"flags": 2, "progress": 10**6}, errno.EINVAL),
    "negative progress": ({"flags": 2, "progress": -1}, errno.EINVAL),
    "progress is no memfd": ({"flags": 2, "progress": 0}, errno.EINVAL),
    "prot": ({"prot": 8}, errno.EINVAL),
    "no length": ({"length": 0}, errno.EINVAL),
    "length": ({"length": PAGE + 1}, errno.EINVAL),
    "too long": ({"length": 2 * HUGE}, errno.EINVAL),
    "overflow": ({"length": 2**64 - PAGE}, errno.EINVAL),
    "offset": ({"offset": PAGE}, errno.EINVAL),
    "odd offset": ({"offset": 1}, errno.EINVAL),
    "far offset": ({"offset": 2**64 - PAGE}, errno.EINVAL),
    "kernel's address": ({"address": 2**64 - HUGE}, errno.EINVAL),
    "nobody's address": ({"address": PAGE}, errno.EINVAL),
    "no uffd": ({"uffd": 0}, errno.EINVAL),
    "no descriptor": ({"uffd": 10**6}, errno.EINVAL),
    "negative uffd": ({"uffd": -2}, errno.EINVAL),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_refused(mount, path, what):
    change, error = BAD[what]
    with open(path, "r+b") as file, registered(file.fileno(), HUGE) as (uffd, address):
        arguments = {"uffd": uffd, "address": address, "length": HUGE}
        with refused(error):
            observe(file.fileno(), **arguments | change)
        assert mount.stat()["dax"]["observed"]["mappings"] == 0
        assert observe(file.fileno(), **arguments)


def test_mappings_that_are_refused(mount, path):
    """Another file's, a private one, one without userfaultfd; a store on a handle that can't."""
    with open(path, "r+b") as file, open(path, "rb") as reading:
        fd = file.fileno()
        with registered(fd, HUGE) as (uffd, address):
            with refused(errno.EACCES):
                observe(reading.fileno(), uffd=uffd, address=address, length=HUGE)
            other = path.with_suffix(".other")
            with open(other, "w+b") as another, refused(errno.EINVAL):
                observe(another.fileno(), uffd=uffd, address=address, length=HUGE)
            other.unlink()
        with refused(errno.EINVAL), registered(fd, HUGE, flags=2) as (uffd, address):
            observe(fd, uffd=uffd, address=address, length=HUGE)
        with refused(errno.EINVAL), mmap.mmap(fd, HUGE) as plain:
            observe(fd, address=ctypes.addressof(ctypes.c_char.from_buffer(plain)), length=HUGE)
        folder = os.open(mount.path, os.O_RDONLY)
        with refused(errno.EOPNOTSUPP):
            observe(folder, address=PAGE)
        os.close(folder)


def test_what_forget_refuses(mount, path, clients):
    with open(path, "r+b") as file, registered(file.fileno(), HUGE) as (uffd, address):
        fd = file.fileno()
        number = observe(fd, uffd=uffd, address=address, length=HUGE)
        for bad in ((number, address, 0), (number, address, 1), (number, address + 1, PAGE),
                    (number, 0, PAGE), (number, address, 2 * HUGE), (number, address, PAGE, 2),
                    (number, address, PAGE, 0, 1),
                    (number, 2**64 - PAGE, PAGE), (number, address, 2**64 - PAGE)):
            with refused(errno.EINVAL):
                forget(fd, *bad)
        with refused(errno.ENOENT):
            forget(fd, number + 1, address, PAGE)
        pid = os.fork()
        if pid == 0:  # the same descriptor, another process
            try:
                forget(fd, number, address, PAGE)
            except OSError as error:
                os._exit(error.errno)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.ENOENT
        forget(fd, number, address, PAGE)
        with refused(errno.EINVAL):
            forget(fd, number, address, HUGE)
        forget(fd, number, address + PAGE, HUGE - PAGE)
        with refused(errno.ENOENT):
            forget(fd, number, address, PAGE)


def test_a_file_that_is_not_direct(mount, path):
    folder = path.with_suffix(".plain")
    folder.mkdir()
    mounts.set_dax(folder, False)
    with open(folder / "f", "w+b") as file:
        file.truncate(HUGE)
        assert struct.unpack_from("=2I", fcntl.ioctl(file.fileno(), observing.ABOUT, bytes(64)))[1] == 0
        with refused(errno.EOPNOTSUPP):
            observe(file.fileno(), address=PAGE)
    shutil.rmtree(folder)


# -- revoke, and stress -----------------------------------------------------------------------


def test_stores_while_another_process_syncs(mount, path, syncs, clients):
    """After the last store one fsync more, and nothing is left; none of them was coarse."""
    first, second = clients(), clients()
    for one in (first, second):
        one("map", 0, path, 0, SIZE)
    before = syncs.stat()
    first.begin("count", 0, 3, 60)
    second.begin("count", 0, 3, 60)
    deadline, rounds = time.monotonic() + 60, 0
    while rounds < 30 and time.monotonic() < deadline:
        os.fsync(syncs.fd)
        rounds += 1
    first.end()
    second.end()
    last = [struct.unpack_from("=I", os.pread(syncs.fd, PAGE, page * PAGE), (page + n) % 64 * 64)[0]
            for page in (0, 7, 511, 2047) for n in range(3)]
    assert set(last) == {60}
    os.fsync(syncs.fd)
    after = syncs.stat()
    assert after["coarse_fsyncs"] == before["coarse_fsyncs"] and after["given_up"] == before["given_up"]
    assert syncs() == 0 and after["dirty_bytes"] == 0
    assert after["flushed_bytes"] - before["flushed_bytes"] >= SIZE


def test_racing_stores_are_found(mount, path):
    """What is found holds all that was stored before, with pages of 4 KiB and of 2 MiB. The daemon's scans.

    (tests/t3_data/test_observer.py has the same with all of an fsync, on small pages.)
    """
    with open(path, "r+b") as file, registered(file.fileno(), 2 * SIZE) as (_, space):
        address = -(-space // HUGE) * HUGE
        LIBC.mmap(ctypes.c_void_p(address), ctypes.c_size_t(SIZE), 3, 0x11, file.fileno(), ctypes.c_long(0))
        with registered_at(address, SIZE), open("/proc/self/pagemap", "rb") as pagemap:
            words = (ctypes.c_uint32 * (SIZE // 4)).from_address(address)
            lines = np.ctypeslib.as_array(words).reshape(SIZE // PAGE, 64, 16)[:, :, 0]
            media, stop = np.zeros_like(lines), threading.Event()
            threads = [threading.Thread(target=_count, args=(lines, n, stop)) for n in range(3)]
            for one in threads:
                one.start()
            for n in range(100):
                if n == 99:
                    stop.set()
                    for one in threads:
                        one.join()
                stored, found = lines.copy(), Found()
                found.scan(pagemap.fileno(), address, address + SIZE, address, 0)
                for first, pages in found.runs():
                    media[first : first + pages] = lines[first : first + pages]
                stop.set() if (lost := media < stored).any() else None
                assert not lost.any(), (n, np.argwhere(lost)[:5])
            assert (media == lines).all() and lines.any()


def _count(lines, number: int, stop) -> None:
    page = number
    while not stop.is_set():
        page = (page * 7 + 13) % (SIZE // PAGE - 64)
        lines[page : page + 64, number] += 1


def test_revoke_takes_an_observed_mapping(mount, path, syncs, clients):
    client = clients()
    client("map", 0, path, 0, SIZE)
    client("store", 0, 0, ord("k"))
    os.close(syncs.fd)
    mounts.run([mounts.command("daxfs"), "revoke", "--timeout", "0", mount.path])
    with pytest.raises(OSError):
        client("store", 0, PAGE, 1)  # SIGBUS
    client.process.wait(timeout=20)
    mounts.run([mounts.command("daxfs"), "revoke", "--undo", mount.path])
    syncs.becomes(mappings=0)
    syncs.fd = os.open(path, os.O_RDONLY)
    assert os.pread(syncs.fd, 1, 0) == b"k"
    assert syncs() == 0 and not syncs.coarse()


def test_the_numbers_are_the_headers(tmp_path):
    """observing.py has them written down."""
    names = [f"DAXFS_IOC_{name}" for name in ("ABOUT", "OBSERVE", "FORGET")]
    names += ["DAXFS_OBSERVE_VERSION", "DAXFS_FAULT_KERNEL", "DAXFS_FAULT_USER"]
    names += [f"DAXFS_FLUSH_{name}" for name in ("CLWB", "CLFLUSHOPT", "CLFLUSH", "NONE", "MSYNC")]
    names += ["DAXFS_OBSERVE_PTE", "DAXFS_OBSERVE_PROGRESS", "DAXFS_PROGRESS_SLOTS"]
    names += [f"sizeof(struct daxfs_{name})" for name in ("observe", "progress")]
    names.append("offsetof(struct daxfs_observe, slot)")
    names.append("offsetof(struct daxfs_observe, id)")
    headers = ("<stddef.h>", "<stdio.h>", '"daxfs/native/observe_abi.h"')
    lines = [f"#include {name}" for name in headers] + ["int main(void)", "{"]
    lines += [f'printf("%lu\\n", (unsigned long)({name}));' for name in names]
    source = tmp_path / "numbers.c"
    source.write_text("\n".join([*lines, "}", ""]))
    mounts.run(["cc", "-I", ROOT, "-o", tmp_path / "numbers", source])
    found = [int(line) for line in mounts.run([tmp_path / "numbers"]).stdout.split()]
    flush = [FLUSH_KINDS.index(name) for name in ("clwb", "clflushopt", "clflush", "none", "msync")]
    assert found == [observing.ABOUT, observing.OBSERVE, observing.FORGET, observing.VERSION,
                     observing.MODE_KERNEL, observing.MODE_USER, *flush, observing.OBSERVE_PTE,
                     observing.OBSERVE_PROGRESS, SLOTS, observing.OBSERVE_IO.size, SLOT.size, 60,
                     observing._ID_AT]
