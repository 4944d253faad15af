# SPDX-License-Identifier: MIT
"""The mount that we make by ourselves: what INIT agreed on, what it changes for programs, and its end.

tmpfs is the oracle for umask, ACLs and privileges. Limits: needs root; the in-process cycles run in a
program of their own, because a session may only run in the main thread of a process without others.
"""

import contextlib
import errno
import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mounts
import pytest

from daxfs.errors import SourceError
from daxfs.fuse import handshake, options

NOBODY = 65534
KERNEL = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
WANTED = {"dont_mask", "handle_killpriv_v2"} | ({"direct_io_allow_mmap"} if KERNEL >= (6, 6) else set())
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in [(1, 7, -1 & 0xFFFFFFFF), (2, 7, 4100), (4, 5, -1 & 0xFFFFFFFF), (16, 7, -1 & 0xFFFFFFFF),
                  (32, 1, -1 & 0xFFFFFFFF)]
)  # fmt: skip
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service+ep

pytestmark = pytest.mark.mount


@pytest.fixture
def both(mounted):
    """A directory on daxfs and one on tmpfs, both open to everybody."""
    found = [Path(tempfile.mkdtemp(prefix=mounts.PREFIX, dir=base)) for base in (mounted.path, "/dev/shm")]
    for path in found:
        path.chmod(0o777)
    yield found
    for path in found:
        shutil.rmtree(path)


def as_user(uid, action):
    """Run *action* in a child with these ids and no further groups; its errno, or 0."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            if uid:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            action()
            code = 0
        except OSError as error:
            code = error.errno
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def count(region, name):
    return region.stat()["operations"].get(name, {"count": 0})["count"]


# -- messages, without a mount ------------------------------------------------------------


def request(flags, flags2=0):
    body = struct.pack("=IIIII", 7, 45, 131072, flags, flags2) + bytes(44)
    return struct.pack("=IIQQIIII", 40 + len(body), handshake.INIT, 2, 0, 0, 0, 0, 0) + body


def answer(flags, size=64, error=0, flags2=0):
    body = struct.pack("=IIIIHHIIHHI", 7, 31, 131072, flags, 12, 9, 1 << 20, 1, 256, 0, flags2) + bytes(28)
    return struct.pack("=IiQ", 16 + size, error, 2) + body[:size]


def test_only_what_the_kernel_offers_is_added():
    ext, mask, kill, direct = 1 << 30, 1 << 6, 1 << 28, 1 << 36
    for offer in (0, mask, kill, mask | kill, mask | ext, direct | ext, mask | kill | direct | ext):
        found = handshake.offered(request(offer & 0xFFFFFFFF, offer >> 32))
        assert found == offer
        reply, flags = handshake.patched(answer(1 | 1 << 20), found)
        expected = 1 | 1 << 20 | offer & (mask | kill | direct) | (ext if offer & direct else 0)
        assert flags == expected
        assert reply == answer(expected & 0xFFFFFFFF, flags2=expected >> 32)


def test_flags2_of_libfuse_is_kept():
    reply, flags = handshake.patched(answer(1 << 30, flags2=1 << 5), 1 << 36 | 1 << 30)
    assert flags == 1 << 30 | 1 << 36 | 1 << 37 and reply == answer(1 << 30, flags2=1 << 5 | 1 << 4)


def test_a_native_transport_asks_for_more_of_what_there_is():
    """Large requests where the kernel has them; 5.15 has no INIT_EXT, and gets nothing of it."""
    uring = handshake.WANTED_NATIVE | handshake.OVER_IO_URING
    everything = (1 << 42) - 1
    reply, flags = handshake.patched(answer(1), everything, uring, 512)
    assert flags == 1 | uring | 1 << 30
    assert struct.unpack_from("=HHIIH", reply, 32) == (64, 48, 512 * 4096, 1, 512)
    assert len(reply) == len(answer(1))
    old = everything & 0xFFFFFFFF & ~(1 << 30)
    reply, flags = handshake.patched(answer(1), old, uring, 256)
    assert flags == 1 | uring & 0xFFFFFFFF and struct.unpack_from("=I", reply, 48) == (0,)
    older = old & ~handshake.bits("max_pages")
    reply, _ = handshake.patched(answer(1), older, uring, 32)
    assert struct.unpack_from("=HHIIH", reply, 32) == (12, 9, 1 << 20, 1, 256), "as libfuse had it"


def test_short_replies_and_errors():
    short, flags = handshake.patched(answer(1, size=24), 1 << 6 | 1 << 36 | 1 << 30)
    assert flags == 1 | 1 << 6 and short == answer(1 | 1 << 6, size=24)
    assert handshake.patched(answer(0, size=8), -1) == (answer(0, size=8), 0)
    for bad in (answer(0, size=0, error=-errno.EPROTO), b""):
        with pytest.raises(SourceError) as caught:
            handshake.patched(bad, 0)
        assert caught.value.errno == errno.EPROTO
    with pytest.raises(SourceError):
        handshake.offered(struct.pack("=IIQQIIII", 40, 3, 2, 1, 0, 0, 0, 0) + bytes(64))


def test_splice_is_hidden_from_libfuse():
    seen = handshake.without_splice(request(0xFFFFFFFF, 7))
    assert seen == request(0xFFFFFFFF & ~(7 << 7), 7)


@pytest.mark.parametrize(
    ("text", "bits", "data"),
    [("", 0, b""), ("ro,nosuid,nodev,noexec", 1 | 2 | 4 | 8, b""), ("sync,dirsync", 16 | 128, b""),
     ("noatime,nodiratime,allow_other", 1024 | 2048, b",allow_other")],
)
def test_mount_arguments(text, bits, data):
    config = options.parse(text)
    config.fsname = "a b,c\\d"
    ids = f"user_id={os.getuid()},group_id={os.getgid()}".encode()
    expected = b"fd=9,rootmode=40000," + ids + b",default_permissions" + data
    assert handshake.mount_arguments(config, 9) == (b"a b,c\\d", bits, expected)


def test_allow_root_is_left_to_libfuse():
    with pytest.raises(handshake.Unusable, match="allow_root"):
        handshake.Link.open(options.parse("allow_root"), "/nonexistent")


def test_a_mount_that_fails_leaves_nothing(tmp_path):
    config = options.parse("")
    config.fsname = "x"
    before = sorted(os.listdir("/proc/self/fd"))
    (tmp_path / "file").touch()
    for path, code in (("none", errno.ENOENT), ("file", errno.ENOTDIR)):
        with pytest.raises(SourceError, match=r"mount point (does not exist|is not a directory)") as caught:
            handshake.Link.open(config, str(tmp_path / path))
        assert caught.value.errno == code
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_close_before_anybody_answered(tmp_path):
    """The mount is there and INIT is not answered: close takes all of it away, and waits for nobody."""
    config = options.parse("")
    config.fsname = "x"
    before = sorted(os.listdir("/proc/self/fd"))
    link = handshake.Link.open(config, str(tmp_path))
    assert mounts.mounts_of(tmp_path) == [mounts.FS_TYPE]
    link.close(None)
    assert mounts.mounts_of(tmp_path) == [] and sorted(os.listdir("/proc/self/fd")) == before


# -- what it changes for programs ------------------------------------------------------------


def test_what_was_agreed_on(mounted):
    facts = mounted.stat()
    assert set(facts["init"]) >= WANTED | {"posix_acl", "export_support"}
    assert facts["mounted_by"] == "daxfs"
    found = json.loads(mounts.run([mounts.command("daxfs"), "doctor", "--json"], check=False).stdout)
    text = next(one["value"] for one in found["findings"] if one["name"] == "FUSE INIT features")
    assert all(name in text for name in WANTED)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
@pytest.mark.parametrize("acl", [None, ACL])
def test_umask_counts_only_without_default_acl(both, umask, acl):
    def make(path):
        if acl:
            os.setxattr(path, "system.posix_acl_default", acl)
        old = os.umask(umask)
        try:
            os.close(os.open(path / "file", os.O_CREAT | os.O_RDWR, 0o666))
            os.mkdir(path / "dir", 0o777)
            os.mkfifo(path / "fifo", 0o662)
            os.symlink("target", path / "link")
        finally:
            os.umask(old)
        return {name: (path / name).lstat().st_mode for name in ("file", "dir", "fifo", "link")}

    ours, theirs = map(make, both)
    assert ours == theirs
    assert ours["file"] & 0o777 == (0o661 & 0o666 if acl else 0o666 & ~umask)


@pytest.mark.skipif(KERNEL < (6, 6), reason="this kernel has no DIRECT_IO_ALLOW_MMAP")
def test_shared_mapping_of_a_direct_descriptor(both):
    fd = os.open(both[0] / "file", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    size = 1 << 16
    buffer = mmap.mmap(-1, size)
    buffer.write(b"a" * size)
    os.pwritev(fd, [buffer], 0)
    with mmap.mmap(fd, size) as shared:
        assert shared[:] == b"a" * size
        shared[5000:5003] = b"xyz"
        os.preadv(fd, [buffer], 0)
        assert buffer[4999:5004] == b"axyza"
        buffer[:] = b"b" * size
        os.pwritev(fd, [buffer], 0)
        assert shared[:] == b"b" * size
        shared[0:4] = b"last"
        shared.flush()
    os.close(fd)
    assert (both[0] / "file").read_bytes() == b"last" + b"b" * (size - 4)


def test_buffered_writes_ask_for_no_xattr(mounted, both):
    with open(both[0] / "file", "wb", buffering=0) as file:
        file.write(bytes(4096))
        asked, written = count(mounted, "getxattr"), count(mounted, "write")
        for _ in range(300):
            file.write(bytes(4096))
    assert count(mounted, "write") - written == 300
    assert count(mounted, "getxattr") - asked < 10


def buffered(path):
    with open(path, "r+b", buffering=0) as file:
        file.write(b"x")


def direct(path):
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    os.pwritev(fd, [mmap.mmap(-1, 4096)], 0)


def cut_open(path):
    fd = os.open(path, os.O_RDWR)
    os.ftruncate(fd, 1)


ACTIONS = {
    "write": buffered,
    "direct": direct,
    "truncate": lambda path: os.truncate(path, 1),
    "ftruncate": cut_open,
    "open-trunc": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
    "chown": lambda path: os.chown(path, -1, NOBODY),
    "read": lambda path: path.read_bytes(),
}


@pytest.mark.parametrize("uid", [0, NOBODY])
@pytest.mark.parametrize("mode", [0o6755, 0o2745, 0o755])
@pytest.mark.parametrize("group", [NOBODY, 1])
@pytest.mark.parametrize("name", ACTIONS)
def test_privileges_go_as_on_tmpfs(both, name, group, mode, uid):
    def one(path):
        file = path / "file"
        file.write_bytes(bytes(8192))
        os.chown(file, NOBODY, group)
        file.chmod(mode)
        os.setxattr(file, "security.capability", CAPABILITY)
        os.setxattr(file, "user.kept", b"value")
        assert file.stat().st_mode & 0o7777 == mode
        code = as_user(uid, lambda: ACTIONS[name](file))
        assert code == 0
        return oct(file.stat().st_mode), sorted(os.listxattr(file))

    ours, theirs = map(one, both)
    assert ours == theirs
    assert ("security.capability" in ours[1]) is (name == "read")


def test_capability_set_while_a_file_is_open_goes_too(both):
    """The answer that a handle keeps must not be older than the attribute."""
    for path in both:
        file = path / "file"
        with open(file, "wb", buffering=0) as out:
            for _ in range(3):
                out.write(b"x")
                os.setxattr(file, "security.capability", CAPABILITY)
                assert "security.capability" in os.listxattr(file)
                out.write(b"x")
                assert "security.capability" not in os.listxattr(file)


# -- beginning and end --------------------------------------------------------------------------


CYCLES = """
import os, subprocess, sys, threading
from daxfs.fuse import fs_session, options, session
source, mountpoint, cycles = sys.argv[1], sys.argv[2], int(sys.argv[3])

def once():
    config = options.parse("")
    config.sources, config.fsname, config.mountpoint = [source], source, mountpoint
    ends = []
    # From another process, while this one answers. Somebody else may ask for the space of all mounts
    # just then, which makes it busy.
    command = f"stat {mountpoint} && until umount {mountpoint}; do sleep 0.05; done"
    ready = lambda: ends.append(subprocess.Popen(["sh", "-c", command], stdout=subprocess.DEVNULL))
    assert session.run(fs_session.FsSession, config, ready) == "umount"
    assert [end.wait() for end in ends] == [0]

def held():
    fds = os.listdir("/proc/self/fd")
    tasks = len(os.listdir("/proc/self/task"))
    # One or two, as it happens, which trio keeps for ten seconds.
    trios = sum(one.name.startswith("Trio thread") for one in threading.enumerate())
    threads = threading.active_count() - trios
    return len(fds), tasks - trios, threads, open("/proc/self/mounts").read().count(mountpoint)

once()
before = held()
for _ in range(cycles):
    once()
assert held() == before, (before, held())
assert before[3] == 0
"""


def test_100_cycles_leave_nothing(region_factory):
    region = region_factory()
    mounts.run([sys.executable, "-P", "-c", CYCLES, region.source, region.path, 100], timeout=120)
    assert region.fsck("-n").returncode == 0


LOAD = """
import os, sys
path, end = sys.argv[1], sys.argv[2]
seen = 0
while not os.path.exists(end):
    os.listdir(path)
    if os.path.exists(f"{path}/here"):
        name = f"{path}/{os.getpid()}-{seen % 50}"
        with open(name, "wb") as file:
            file.write(b"x" * 10000)
        assert open(name, "rb").read() == b"x" * 10000
        seen += 1
assert seen > 10, seen
"""


def test_mount_under_immediate_load(region_factory, tmp_path):
    """Requests that come before and during the hand-over are all answered."""
    region = region_factory().mount()
    (region.path / "here").touch()
    for turn in range(8):
        region.umount()
        end = tmp_path / f"end{turn}"
        crowd = [subprocess.Popen([sys.executable, "-c", LOAD, region.path, end]) for _ in range(4)]
        time.sleep(0.2)
        region.mount()
        time.sleep(0.5)
        end.touch()
        assert [one.wait(timeout=30) for one in crowd] == [0] * 4


@contextlib.contextmanager
def foreground(region):
    """mount.daxfs -f as a child of ours."""
    process = subprocess.Popen([*region.mount_command(), "-f"], stdin=subprocess.DEVNULL)
    try:
        yield process
        assert process.wait(timeout=30) in (0, 32)  # 32: unmounted before it was ready
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize("what", ["TERM", "umount"])
def test_end_right_after_the_mount(region_factory, what):
    """At any moment of the handshake: the mount is gone afterwards, nobody hangs, the region is clean."""
    region = region_factory()
    for delay in (0, 0, 0.001, 0.003, 0.01, 0.03):
        with foreground(region) as process:
            while not mounts.mounts_of(region.path):
                assert process.poll() is None
            time.sleep(delay)
            if what == "TERM":
                process.terminate()
            else:
                mounts.run(["umount", "-l", region.path], timeout=20)
        assert mounts.mounts_of(region.path) == []
        assert region.fsck("-n").returncode == 0
    assert "Traceback" not in region.log_file.read_text()


def test_busy_mount_is_detached_on_a_signal(mount_factory):
    """Somebody has a file open: the mount goes, his descriptor gets errors, nobody waits."""
    region = mount_factory()
    fd = os.open(region.path / "file", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x" * 5000)
    os.kill(region.pid, signal.SIGTERM)
    assert region._wait_gone(20)
    assert mounts.mounts_of(region.path) == []
    for call in (os.fsync, os.close):
        with pytest.raises(OSError) as caught:
            call(fd)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    assert region.fsck("-n").returncode == 0


def test_another_mount_below_stays(mount_factory, tmp_path):
    """Detached by hand while in use, then ended: what else is mounted at that place is not touched."""
    region = mount_factory()
    fd = os.open(region.path / "file", os.O_CREAT | os.O_RDWR)
    mounts.run(["umount", "-l", region.path])
    mounts.run(["mount", "-t", "tmpfs", "none", region.path])
    try:
        os.kill(region.pid, signal.SIGTERM)
        assert region._wait_gone(20)
        assert mounts.mounts_of(region.path) == ["tmpfs"]
        with pytest.raises(OSError):
            os.close(fd)
    finally:
        mounts.run(["umount", region.path])


def test_libfuse_mounts_where_we_do_not(region_factory, monkeypatch):
    monkeypatch.setenv(handshake.SWITCH, "libfuse")
    region = region_factory().mount("allow_other")
    facts = region.stat()
    assert facts["init"] == [] and facts["mounted_by"].startswith("libfuse: DAXFS_HANDSHAKE")
    file = region.path / "file"
    file.write_bytes(b"hello" * 2000)
    os.chown(file, NOBODY, NOBODY)
    file.chmod(0o6755)
    assert as_user(NOBODY, lambda: buffered(file)) == 0
    assert file.stat().st_mode & 0o7777 == 0o755
    old = os.umask(0o027)
    try:
        (region.path / "dir").mkdir()
    finally:
        os.umask(old)
    assert (region.path / "dir").stat().st_mode & 0o777 == 0o750
    region.remount()
    assert file.read_bytes() == b"x" + (b"hello" * 2000)[1:]
    os.kill(region.pid, signal.SIGTERM)
    assert region._wait_gone(20) and mounts.mounts_of(region.path) == []
    assert "libfuse" in region.log_file.read_text()


def test_allow_root_falls_back(mount_factory):
    region = mount_factory(options="allow_root")
    assert region.stat()["mounted_by"] == "libfuse: allow_root is done by libfuse"
    (region.path / "file").write_bytes(b"x")
