# SPDX-License-Identifier: MIT
"""daxfs set: the policies of a live mount change, with what is dirty, under load, and by whom they may be."""

import os
import threading
import time

import mounts
import pytest

from daxfs.data._tracker import POLICIES
from daxfs.errors import DaxfsError
from daxfs.fuse import control

pytestmark = pytest.mark.mount
SIZE = 1 << 20


def daxfs(*args, status=0):
    done = mounts.run([mounts.command("daxfs"), *args], check=False)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done


def tracker(region):
    return region.stat()["tracker"]


def test_it_says_what_it_did_and_keeps_what_is_dirty(mount_factory):
    region = mount_factory(options="write=cached")
    fd = os.open(region.path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(SIZE))
    os.fsync(fd)
    os.pwrite(fd, b"x", 5000)
    done = daxfs("set", region.path, "track=pmd")
    assert done.stdout == f"{region.path}: track=pmd, was pte; 1 file changed\n" and not done.stderr
    facts = region.stat()
    assert facts["tracker"]["policy"] == "pmd" and "track=pmd" in facts["options"] and not facts["warning"]
    assert (facts["tracker"]["unit_bytes"], facts["tracker"]["dirty_bytes"]) == (2 << 20, 2 << 20)
    assert facts["tracker"]["memory_bytes"] > 0
    before = tracker(region)["flushed_bytes"]
    os.fsync(fd)
    assert tracker(region)["flushed_bytes"] - before == SIZE, "all of the 2 MiB that is the file's"
    daxfs("set", region.path, "track=line")
    os.pwrite(fd, b"x", 5000)
    assert tracker(region)["dirty_bytes"] == 64
    os.fsync(fd)
    assert tracker(region)["flushed_bytes"] - before == SIZE + 64
    os.close(fd)


def test_none_says_so(mount_factory):
    region = mount_factory(options="write=cached,track=pte")
    fd = os.open(region.path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(SIZE))
    done = daxfs("set", region.path, "track=none")
    assert "warning: write=cached,track=none: stores through the cache are not written back" in done.stderr
    shown = " ".join(daxfs("stat", region.path).stdout.split())
    assert "not written back" in shown
    before = tracker(region)["flushed_bytes"]
    os.pwrite(fd, b"x", 5000)
    os.fsync(fd)
    assert tracker(region)["flushed_bytes"] == before
    daxfs("set", region.path, "track=pte")
    os.fsync(fd)
    assert tracker(region)["flushed_bytes"] - before == SIZE, "what was stored nobody knew: all, once"
    os.close(fd)


def test_mounted_with_each_policy(mount_factory):
    for policy in POLICIES:
        region = mount_factory(options=f"write=cached,track={policy}")
        (region.path / "file").write_bytes(b"x" * SIZE)
        facts = region.stat()
        assert facts["tracker"]["policy"] == policy
        assert ("not written back" in facts["warning"]) == (policy == "none")


def test_what_is_refused(mount_factory, tmp_path):
    region = mount_factory()
    for setting, says in (("track=xfs", "pte, pmd, line"), ("track=", "is unknown"),
                          ("write=nt", "can't be set"), ("track", "can't be set")):
        assert says in daxfs("set", region.path, setting, status=1).stderr
    assert "not on a daxfs mount" in daxfs("set", tmp_path, "track=pte", status=1).stderr
    for setting, says in (("flushers=0", "from 1 on"), ("flushers=17", "at most 16"),
                          ("flushers=", "from 1 on"), ("flushers=two", "from 1 on")):
        assert says in daxfs("set", region.path, setting, status=1).stderr
    daxfs("set", region.path, status=2)
    assert tracker(region)["policy"] == "pte"


def test_several_at_once_all_or_none_where_a_word_is_wrong(mount_factory):
    region = mount_factory()
    said = daxfs("set", region.path, "flushers=2", "track=pmd").stdout
    assert said.replace(str(region.path), "DIR").splitlines() == [
        "DIR: flushers=2, was 1", "DIR: track=pmd, was pte; 0 files changed"]
    for wrong in ("track=xfs", "flushers=17", "write=nt"):
        daxfs("set", region.path, "flushers=3", wrong, status=1)
    facts = tracker(region)
    assert (facts["policy"], facts["flushers"]) == ("pmd", 2)


def test_a_recording_is_not_left_without_promises(mount_factory, tmp_path):
    region = mount_factory(options=f"write=cached,record={tmp_path / 'log'}")
    with pytest.raises(DaxfsError, match="record="):
        control.ask_path(str(region.path), {"track": "none"})
    assert control.ask_path(str(region.path), {"track": "pmd"})["was"] == "pte"


def test_under_load(mount_factory):
    """Writers go on while the policy changes; in the end nothing is dirty and everything is there."""
    region = mount_factory(options="write=cached")
    stop, errors, written = threading.Event(), [], [0] * 3

    def write(number):
        fd = os.open(region.path / f"file{number}", os.O_RDWR | os.O_CREAT)
        try:
            os.write(fd, bytes(SIZE))
            while not stop.is_set():
                written[number] += 1
                os.pwrite(fd, bytes([written[number] % 251]) * 5000, written[number] * 4001 % (SIZE - 5000))
                if not written[number] % 50:
                    os.fsync(fd)
            os.fsync(fd)
        except OSError as error:
            errors.append(error)
        finally:
            os.close(fd)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        control.ask_path(str(region.path), {"track": POLICIES[turn % len(POLICIES)]})
    control.ask_path(str(region.path), {"track": "pte"})
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors and min(written) > 10
    assert tracker(region)["dirty_bytes"] == 0


def test_flushers_of_a_mount(mount_factory):
    """Threads of the daemon that help, and end with it."""
    region = mount_factory(options="write=cached,flushers=3", size=64 * SIZE)
    fd = os.open(region.path / "file", os.O_RDWR | os.O_CREAT)
    data = bytes(range(256)) * 4096
    for turn in range(2):
        for at in range(8):
            assert os.pwrite(fd, data[turn:] + data[:turn], at << 20) == SIZE
        os.fsync(fd)
    os.close(fd)
    found = tracker(region)
    assert (found["flushers"], found["flushed_bytes"], found["dirty_bytes"]) == (3, 8 * SIZE, 0)
    assert found["shared_flushes"] >= 1
    threads = len(os.listdir(f"/proc/{region.pid}/task"))
    done = daxfs("set", region.path, "flushers=1")
    assert done.stdout == f"{region.path}: flushers=1, was 3\n" and not done.stderr
    facts = region.stat()
    assert facts["tracker"]["flushers"] == 1 and "flushers=1" in facts["options"]
    until = time.monotonic() + 10  # who is joined stays in /proc for a moment
    while len(os.listdir(f"/proc/{region.pid}/task")) != threads - 2:
        assert time.monotonic() < until, "two threads have ended"
        time.sleep(0.01)
    daxfs("set", region.path, "flushers=16")
    assert tracker(region)["flushers"] == 16
    region.umount()
    region.mount()
    assert (region.path / "file").read_bytes() == (data[1:] + data[:1]) * 8


def test_extents_of_a_mount(mount_factory):
    region = mount_factory(options="write=cached,track=extent")
    fd = os.open(region.path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(SIZE))
    other = os.open(region.path / "other", os.O_RDWR | os.O_CREAT)
    os.write(other, bytes(SIZE))
    before = tracker(region)
    assert (before["active_extents"], before["dirty_bytes"]) == (0, 0)
    os.fsync(other)
    assert tracker(region)["flushed_bytes"] == before["flushed_bytes"], "idle"
    os.pwrite(fd, b"x", 5000)
    for turn in (1, 2):
        os.fsync(other)
        found = tracker(region)
        assert found["active_extents"] == 1
        assert found["flushed_bytes"] - before["flushed_bytes"] == turn * found["unit_bytes"], "again"
    os.close(fd)
    os.close(other)


def test_where_the_state_is(mount_factory):
    """In the region with --map=dev, one slot for each policy that has a state, which goes with the policy. A
    mount after a kill begins with nothing."""
    region = mount_factory(options="write=cached", mkfs=("--map=dev",))
    fd = os.open(region.path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(SIZE))
    os.fsync(fd)
    for policy in ("pte", "extent", "line", "extent+clear", "pmd", "none", "extent"):
        daxfs("set", region.path, f"track={policy}")
        os.pwrite(fd, b"x", 5000)
        found = tracker(region)
        assert (found["policy"], found["state"], found["fallbacks"]) == (policy, "dev", 0)
        assert found["slots_used"] == (policy != "none"), policy
        assert found["memory_bytes"] < 4096 and bool(found["dirty_bytes"]) == (policy != "none")
    shown = " ".join(daxfs("stat", region.path).stdout.split())
    assert " state dev " in shown and " slots used 1 " in shown
    assert f" active extents {found['active_extents']} " in shown
    os.close(fd)
    assert tracker(region)["dirty_bytes"], "extents stay active"
    region.kill()
    region.mount()
    assert tracker(region)["slots_used"] == 0 == tracker(region)["dirty_bytes"]
    region.umount()
    assert region.fsck("-n").returncode == 0


def test_a_raw_mount_has_none(tmp_path):
    source, where = tmp_path / "source", tmp_path / "mnt"
    source.write_bytes(bytes(SIZE))
    where.mkdir()
    assert mounts.run([mounts.command("daxfs"), "raw", source, where], check=False).returncode == 0
    try:
        for setting in ("track=pmd", "flushers=2"):
            assert "means nothing for a raw region" in daxfs("set", where, setting, status=1).stderr
    finally:
        mounts.umount(where)
