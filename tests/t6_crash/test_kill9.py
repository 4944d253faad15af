# SPDX-License-Identifier: MIT
"""kill -9 of the daemon under load: seven rounds on each transport, more in ``make crash`` (tools/kill9.py);
and of programs that have a file mapped.

A failing round prints the command that plays it again.
"""

import os
import subprocess
import sys
import time

import load
import pytest
from crash_round import Plan, Round
from mounts import MIB, MountedRegion

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.transports]


def long(*seeds):
    """More of the same: `make test-long`; `make crash` has 60 rounds of others."""
    return [pytest.param(seed, marks=pytest.mark.long) for seed in seeds]


def check(plan):
    report = Round(plan).run()
    text = "\n".join(report.complaints)
    assert not report.complaints, f"play it again: {plan.command()}\n{plan}\n{text}"
    assert report.kills >= len(plan.cycles) and report.operations > 0


@pytest.mark.parametrize("seed", [1, *long(2, 3)])
def test_killed_under_load(seed, transport):
    check(Plan.draw(seed, replay_kill=False, transport=transport))


@pytest.mark.parametrize("seed", [4, *long(5)])
def test_killed_again_during_replay(seed, transport):
    check(Plan.draw(seed, replay_kill=True, transport=transport))


def needs_ioctl(transport):
    if transport == "pyfuse3":
        pytest.skip("pyfuse3 has no ioctl, so nobody can set the DAX flag")


@pytest.mark.parametrize("seed", [*long(6), 7])
def test_killed_with_files_in_ranges_of_their_own(seed, transport):
    """Files with the DAX flag, made, moved and mapped; in seed 7 the next mount is killed, too."""
    needs_ioctl(transport)
    check(Plan.draw(seed, replay_kill=seed == 7, transport=transport, dax=True))


CHILD = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
with mmap.mmap(fd, 0) as words:
    os.close(fd)
    at = 0
    while True:
        words[at:at + 8] = b"12345678"
        if at == len(words) - 8:
            print("once", flush=True)
        at = (at + 8) % len(words)
"""


def test_children_that_are_killed_while_they_have_a_range_mapped(transport):
    """Their stores stay, the daemon goes on, and a removed file's range goes with the last of them."""
    needs_ioctl(transport)
    size = 64 * 4096
    with MountedRegion(16 * MIB, kind="pool", transport=transport) as region:
        region.mount()
        own = region.path / "own"
        own.mkdir()
        load.set_dax(own, True)
        for n in range(4):
            (own / f"f{n}").write_bytes(bytes(size))
        children = [subprocess.Popen([sys.executable, "-c", CHILD, own / f"f{n}"], stdout=subprocess.PIPE)
                    for n in range(4)]  # fmt: skip
        try:
            for child in children:
                assert child.stdout.readline() == b"once\n"
            (own / "f3").unlink()
            os.truncate(own / "f2", 4096)  # its child dies of SIGBUS, or of the kill
            for child in children:
                child.kill()
                child.wait()
        finally:
            for child in children:
                child.kill()
                child.wait()
                child.stdout.close()
        assert region.daemon_alive()
        for n in range(3):
            assert (own / f"f{n}").read_bytes() == b"12345678" * ((4096 if n == 2 else size) // 8)
        (own / "f0").write_bytes(b"new")
        wait_until(lambda: len(os.listdir(region.source / "ranges")) == 3)
        region.kill()
        assert region.fsck("-n").returncode == 0
        region.mount()
        assert (own / "f0").read_bytes() == b"new"
        assert (own / "f1").read_bytes() == b"12345678" * (size // 8)


def wait_until(true, seconds=10):
    """The kernel forgets an unlinked inode when the last mapping of it is gone, soon after that."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
