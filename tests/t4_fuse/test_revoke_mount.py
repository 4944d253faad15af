# SPDX-License-Identifier: MIT
"""daxfs revoke, -o revoke, and what becomes of direct mappings at the end of a mount, by uring and dev.

Programs (mapped_program.py) are children that map a file and close it, or keep it open.
"""

import errno
import json
import mmap
import os
import signal
import subprocess
import time
from pathlib import Path

import mounts
import pytest
from mapped_program import Program
from test_direct import Pool

from daxfs.fuse import control

pytestmark = pytest.mark.mount
MIB, PAGE = 1 << 20, 4096


@pytest.fixture
def program():
    made = []

    def start(*args):
        made.append(Program(*args))
        return made[-1]

    yield start
    for one in made:
        one.end()


@pytest.fixture
def make_pool(direct_transport):
    made = []

    def make(options: str = "", **how):
        made.append(Pool(transport=direct_transport, **how))
        return made[-1] if not options else remounted(made[-1], options)

    yield make
    for pool in made:
        pool.close()


@pytest.fixture
def pool(make_pool):
    return make_pool()


def remounted(pool, options: str):
    pool.region.remount(options)
    return pool


def revoke(pool, *args, status: int = 0):
    done = mounts.run([mounts.command("daxfs"), "revoke", *args, pool.path], check=False)
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout) if "--json" in args else done


def written(pool, name: str, data: bytes):
    path = pool.path / name
    path.write_bytes(data)
    return path


def begun(pool) -> None:
    """Revocation is under way: it waits for users now."""
    until = time.monotonic() + 60
    while not control.ask_path(str(pool.path), {"get": "stat"})["dax"]["why_not"]:
        assert time.monotonic() < until
        time.sleep(0.01)


def gone(region, seconds: float = 15) -> bool:
    until = time.monotonic() + seconds
    while region.daemon_alive() and time.monotonic() < until:
        time.sleep(0.02)
    return not region.daemon_alive()


# -- daxfs revoke ---------------------------------------------------------------------------


def test_names_that_are_no_text(pool):
    """A program that calls itself so, and a file: nobody's daxfs revoke ends in an error because of them."""
    path, comm = os.path.join(os.fsencode(pool.path), b"f\xff"), Path("/proc/self/comm")
    with open(path, "wb") as file:
        file.write(b"hello" * 1000)
    before = comm.read_bytes()
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0):
        comm.write_bytes(b"\xfe name")
        try:
            said = revoke(pool, "--timeout", "0").stdout
        finally:
            comm.write_bytes(before)
    assert rf"pid {os.getpid()} (\xfe name): " in said and r"f\xff: mapped and open, " in said, said


def test_all_that_is_mapped_goes(pool, program):
    """Five programs: one that stores all the time, one stopped, one that is killed, two that sleep."""
    path, other = written(pool, "f", b"hello" * 100_000), written(pool, "other", b"never" * 1000)
    busy_path = written(pool, "busy", b"\1" * (5 * MIB))
    asleep, stopped, open_ = program(path), program(path), program(path, "keep")
    killed, busy = program(other), program(busy_path, "busy", "keep")
    os.kill(stopped.pid, signal.SIGSTOP)
    asking = subprocess.Popen([mounts.command("daxfs"), "revoke", "--timeout", "3", "--json", pool.path],
                              stdout=subprocess.PIPE, text=True)
    begun(pool)
    os.kill(killed.pid, signal.SIGKILL)
    killed.child.wait()
    report = json.loads(asking.communicate()[0])
    assert asking.returncode == 0 and report["left"] == []
    users = {user["pid"]: user for one in report["taken"] for user in one["users"]}
    assert set(users) == {asleep.pid, stopped.pid, open_.pid} | ({busy.pid} & set(users)), users
    assert users[asleep.pid]["how"] == ["mapped"] and users[open_.pid]["how"] == ["mapped", "open"]
    assert users[stopped.pid]["path"] == str(path) and users[stopped.pid]["command"].startswith("python")
    assert len(report["taken"]) == 2, "of the killed program nothing was left"
    assert busy.child.wait(20) == -signal.SIGBUS
    os.kill(stopped.pid, signal.SIGCONT)
    assert asleep.dies_of_sigbus() and stopped.dies_of_sigbus("store lost") and open_.dies_of_sigbus()
    assert path.read_bytes() == b"hello" * 100_000 and other.read_bytes() == b"never" * 1000
    words = {busy_path.read_bytes()[at : at + 8] for at in range(0, 5 * MIB, PAGE)}
    assert len(words) <= 2, "a store went into a page that had been copied already"
    pool.region.umount()
    assert pool.region.fsck("-n").returncode == 0


def test_open_handles_go_on_without_their_mappings(pool, program):
    path = written(pool, "f", b"a" * 3 * PAGE)
    one, two = program(path, "keep"), program(path, "keep")
    fd = os.open(path, os.O_RDWR)
    revoke(pool, "--timeout", "0")
    assert pool.direct() == 0
    assert one.dies_of_sigbus()
    assert two.dies_of_sigbus("map"), "the handle's file is the empty one"
    os.pwrite(fd, b"b" * PAGE, PAGE)
    os.pwrite(fd, b"c" * PAGE, 5 * PAGE)
    assert os.pread(fd, 9 * PAGE, 0) == b"".join(bytes([byte]) * PAGE for byte in b"aba\0\0c")
    os.fsync(fd)
    again = os.open(path, os.O_RDWR)
    assert os.pread(again, 3, PAGE) == b"bbb"
    os.close(again)
    os.close(fd)
    pool.becomes(0)
    # Closed by all: opened anew it is mapped as other files are, through the page cache.
    pool.region.settled()
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), PAGE) as m:
        assert m[:4] == b"aaaa"
        m[:4] = b"mmap"
        m.flush()
        assert os.pread(file.fileno(), 5, 0) == b"mmapa"
        assert pool.direct() == 0
    assert "revoked" in pool.region.stat()["dax"]["why_not"]
    revoke(pool, "--undo")
    pool.region.settled()
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), PAGE) as m:
        assert pool.direct() == 1 and m[:5] == b"mmapa"
        m[:4] = b"more"
        assert pool.range_of(path).read_bytes()[:5] == b"morea"
    assert pool.region.stat()["dax"]["why_not"] == ""


def test_it_waits_and_refuses_new_users_meanwhile(pool, program):
    path, other = written(pool, "f", b"f" * PAGE), written(pool, "other", b"o" * PAGE)
    one = program(path, "keep")
    pool.region.expect_log("direct mappings are being revoked|Input/output error")
    with subprocess.Popen([mounts.command("daxfs"), "revoke", "--timeout", "60", pool.path],
                          stdout=subprocess.PIPE, text=True) as asking:
        assert "files in use: 1; waiting 60 s" in asking.stdout.readline()
        with pytest.raises(OSError) as caught:
            path.open("r+b")
        assert caught.value.errno == errno.EIO
        assert "under way" in revoke(pool, status=1).stderr
        with open(other, "r+b") as file, mmap.mmap(file.fileno(), PAGE) as m:
            assert m[:] == b"o" * PAGE
        assert pool.direct() == 1, "the one that was open before"
        assert one.say("store works") == "works"
        one.say("end")
        assert asking.wait(60) == 0 and "nothing is mapped" in asking.stdout.read()
    assert one.child.wait(10) == 0 and path.read_bytes()[:5] == b"works"
    assert pool.direct() == 0


def test_what_will_not_go_is_reported(make_pool, program):
    """No room for a copy: nothing is taken, the status says so, and the program goes on."""
    pool = make_pool(size="120m", region="16M")
    path = written(pool, "f", b"large" * (12 * MIB))
    one = program(path)
    report = revoke(pool, "--timeout", "0", "--json", status=1)
    assert report["taken"] == [] and "no room" in report["left"][0]["why"]
    assert report["left"][0]["users"][0]["pid"] == one.pid
    text = revoke(pool, "--timeout", "0", status=1).stdout
    assert f"pid {one.pid} (" in text and f"{path}: mapped, 60.0 MiB" in text and "no room" in text
    assert one.say("store still") == "still" and path.read_bytes()[:10] == b"stilllarge"
    assert os.listdir(pool.below / "pool" / "ranges") == [pool.range_of(path).name]


def test_a_stranger_on_the_range_itself_goes_too(pool):
    path = written(pool, "f", b"data" * PAGE)
    with pool.range_of(path).open("rb") as beside:
        report = revoke(pool, "--timeout", "0", "--json")
        assert len(report["taken"]) == 1
        assert beside.read() == b"" and path.read_bytes() == b"data" * PAGE


def test_wrong_requests(pool, tmp_path):
    daxfs = mounts.command("daxfs")
    for args, status in ((["--timeout", "-1", pool.path], 2), (["--timeout", "x", pool.path], 2),
                         (["--undo", "--json", pool.path], 1), ([], 2), ([tmp_path], 1)):
        done = mounts.run([daxfs, "revoke", *args], check=False)
        assert done.returncode == status and "Traceback" not in done.stderr, done
    for wish in (3, None, {}, {"timeout": -1}, {"timeout": True}, {"timeout": "1"}, {"timeout": [1]}):
        with pytest.raises(OSError) as caught:
            control.ask_path(str(pool.path), {"revoke": wish})
        assert caught.value.errno == errno.EINVAL
    assert pool.region.stat()["dax"]["why_not"] == ""


# -- the end of a mount ---------------------------------------------------------------------


def test_umount_is_busy_while_something_is_mapped(pool, program):
    """The mapping has the file's path, and with it the mount; also when it was revoked."""
    path = written(pool, "f", b"f" * PAGE)
    one = program(path)
    for _ in range(2):
        done = mounts.run(["umount", pool.path], check=False)
        assert done.returncode == 32 and "busy" in done.stderr
        revoke(pool, "--timeout", "0")
    mounts.run(["umount", "-l", pool.path])
    assert gone(pool.region), "revoked mappings don't keep it"
    assert one.dies_of_sigbus()


def test_without_the_option_a_mapping_keeps_a_detached_mount(pool, program):
    path = written(pool, "f", b"f" * PAGE)
    one = program(path)
    mounts.run(["umount", "-l", pool.path])
    time.sleep(0.5)
    assert pool.region.daemon_alive() and one.say("store lives") == "lives"
    one.say("end")
    assert gone(pool.region)
    pool.region.mount()
    assert path.read_bytes()[:5] == b"lives"


def test_umount_lazy_with_the_option(make_pool, program):
    """Mappings end at once; what is open goes on until it is closed, and then the daemon ends."""
    pool = make_pool("revoke")
    path = written(pool, "f", b"f" * PAGE)
    one, fd = program(path), os.open(path, os.O_RDWR)
    one.say("store saved")
    mounts.run(["umount", "-l", pool.path])
    until = time.monotonic() + 10
    while os.stat(f"/proc/{one.pid}/maps") and "taken" not in pool.region.log_file.read_text():
        assert time.monotonic() < until
        time.sleep(0.02)
    assert one.dies_of_sigbus()
    assert os.pread(fd, 6, 0) == b"savedf" and pool.region.daemon_alive()
    os.close(fd)
    assert gone(pool.region)
    pool.region.mount()
    assert path.read_bytes()[:6] == b"savedf"


@pytest.mark.parametrize("option", ["", "revoke"])
def test_end_by_signal(make_pool, program, option):
    """With the option mappings are taken; without they stay usable, and the next mount sees what they do."""
    pool = make_pool(option)
    path = written(pool, "f", b"f" * PAGE)
    asleep, stopped, unlinked = program(path), program(path, "keep"), program(written(pool, "g", b"g" * PAGE))
    os.unlink(pool.path / "g")
    os.kill(stopped.pid, signal.SIGSTOP)
    asleep.say("store first")
    os.kill(pool.region.pid, signal.SIGTERM)
    assert gone(pool.region)
    os.kill(stopped.pid, signal.SIGCONT)
    if option:
        assert asleep.dies_of_sigbus() and stopped.dies_of_sigbus() and unlinked.dies_of_sigbus()
    else:
        assert unlinked.say("store alone") == "alone"
    pool.region.mount()
    assert path.read_bytes()[:6] == b"firstf"
    assert len(os.listdir(pool.below / "pool" / "ranges")) == 1
    if not option:
        asleep.say("store again")
        assert path.read_bytes()[:6] == b"againf"
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), b"AGAIN", 0)
        assert asleep.say("look") == "AGAIN" == stopped.say("look")
        report = revoke(pool, "--timeout", "0", "--json")
        assert len(report["taken"]) == 1, "mappings of an earlier mount, too"
        assert asleep.dies_of_sigbus() and stopped.dies_of_sigbus()


def test_the_option_is_shown_and_kept(make_pool):
    pool = make_pool("revoke")
    assert "revoke" in pool.region.stat()["options"].split(",")
    done = mounts.run([mounts.command("mount.daxfs"), "x", pool.path, "-o", "remount,noatime,revoke"])
    assert not done.stderr  # it says what is so
    assert "revoke" in pool.region.stat()["options"].split(",")
    pool.region.umount()
    command = pool.region.mount_command()
    command[-1] += f",record={pool.below}/log"
    done = mounts.run(command, check=False)
    assert done.returncode == 1 and "revoke can't be had with record=" in done.stderr
