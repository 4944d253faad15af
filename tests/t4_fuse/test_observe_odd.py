# SPDX-License-Identifier: MIT
"""Observed mappings of programs that do what libdaxfs does not: threads beside each other, odd names, many pieces."""

import contextlib
import os
import re
import threading

import mounts
import pytest
from test_observe import HUGE, KERNEL, LIBC, MIB, PAGE, SIZE, Syncs, forget, observe, refused, registered

pytestmark = [pytest.mark.mount,
              pytest.mark.skipif(KERNEL < (6, 11), reason="no PROCMAP_QUERY before kernel 6.11")]


@pytest.fixture(scope="module")
def mount():
    with mounts.MountedRegion(64 * MIB, pool="never", room=192 * MIB, transport="dev") as region:
        region.mount()
        yield region


@pytest.fixture
def path(mount, request):
    out = mount.path / re.sub(r"\W", "_", request.node.name)
    with open(out, "wb") as file:
        file.truncate(SIZE)
    yield out
    out.unlink()


@pytest.fixture
def syncs(mount, path):
    out = Syncs(mount, path)
    yield out
    os.close(out.fd)


def test_a_process_that_observes_two_files_at_once_is_one(mount, path, syncs):
    """Its two threads come before the daemon knows the process."""
    other = path.with_suffix(".other")
    other.write_bytes(bytes(HUGE))
    with open(path, "r+b") as one, open(other, "r+b") as two:
        files = [one.fileno(), two.fileno()]
        with registered(files[0], HUGE) as (uffd, first), registered(files[1], HUGE) as (uffd2, second):
            places = [(files[0], uffd, first), (files[1], uffd2, second)]
            for _ in range(30):
                numbers, begin = {}, threading.Barrier(2)

                def add(fd, uffd, address, numbers=numbers, begin=begin):
                    begin.wait()
                    numbers[address] = observe(fd, uffd=uffd, address=address, length=HUGE)

                threads = [threading.Thread(target=add, args=place) for place in places]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert syncs.stat()["mappings"] == 2 and syncs.stat()["clients"] == 1
                for fd, _, address in places:
                    forget(fd, numbers[address], address, HUGE)
    other.unlink()
