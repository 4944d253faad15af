# SPDX-License-Identifier: MIT
"""Mounts with record=: the log has every store of the region, each in its operation, and a whole end."""

import ctypes
import errno
import fcntl
import inspect
import json
import os
import shutil
import signal
import struct
from collections import Counter

import datakit
import mounts
import numpy as np
import pytest

from daxfs.fuse import recording
from daxfs.fuse.ops import Operations
from daxfs.fuse.ops_ioctl import IoctlOperations
from daxfs.fuse.ops_more import MoreOperations
from daxfs.testing import log

pytestmark = pytest.mark.mount

AT_FDCWD, RENAME_EXCHANGE = -100, 2
FS_IOC_SETFLAGS, FS_NODUMP_FL, FS_IOC_SETFSLABEL = 0x40086602, 0x40, 0x41009432
FIO = ["--fallocate=none", "--rw=randwrite", "--size=3m", "--bs=4k", "--end_fsync=1", "--verify=crc32c",
       "--verify_fatal=1", "--verify_state_save=0"]  # fmt: skip
ENGINES = (["psync"], ["libaio", "--direct=1", "--iodepth=8"], ["mmap"])
XFS_IO = ["pwrite -S 7 -b 1m 100 3m", "truncate 5000", "fsync", "pwrite 9000 1", "mmap -rw 0 8192",
          "mwrite -S 0x41 4090 12", "msync -s"]  # fmt: skip


@pytest.fixture
def path():
    name = f"/dev/shm/{mounts.PREFIX}record"
    yield name
    if os.path.exists(name):
        os.unlink(name)


def apply(image, events):
    """The stores of *events*, put into *image* in their order."""
    for event in events:
        where = slice(event.place, event.place + event.length)
        if event.kind in (log.STORE, log.NT_STORE):
            image[where] = np.frombuffer(event.data, np.uint8)
        elif event.kind == log.NT_FILL:
            image[where] = event.data[0]
    return image


def unlike(region, got, leave_out=()):
    """Places where the region's source and the replayed log differ, the areas in *leave_out* aside."""
    image, now = apply(got.image.copy(), got.events), np.fromfile(region.source, np.uint8)
    for name, start, end in got.header["areas"]:
        if name in leave_out:
            image[start:end] = now[start:end]
    return np.flatnonzero(image != now).tolist()


class Operation:
    """One operation of a log: what BEGIN and END say, and the events between."""

    def __init__(self, begin):
        self.begin, self.end, self.events = begin, None, []

    @property
    def name(self):
        return self.begin["op"]


def operations(events):
    """{number: Operation}; fails where they overlap, or where something is stored outside of all."""
    out, inside = {}, {}
    for event in events:
        if event.kind == log.BEGIN:
            assert event.thread not in inside and event.op not in out
            inside[event.thread] = event.op
            out[event.op] = Operation(json.loads(event.data))
        elif event.kind == log.END:
            assert inside.pop(event.thread) == event.op
            out[event.op].end = json.loads(event.data)
        else:
            assert event.op and inside.get(event.thread) == event.op, f"outside any operation: {event}"
            out[event.op].events.append(event)
    return out


def everything(root):
    """One system call of each kind that a handler with effects answers, errors among them."""
    name = os.fsencode(root) + b"/\xff\xe4"
    with open(name, "wb", buffering=0) as file:
        file.write(b"a" * 10000)
        file.seek(100)
        file.write(b"b" * 50)
        os.fsync(file.fileno())
        os.truncate(file.fileno(), 5000)
    with open(name, "rb") as file:
        file.read()
    open(name, "wb").close()  # O_TRUNC
    os.chmod(name, 0o640)
    os.chown(name, 12, 34)
    os.utime(name, ns=(1, 2))
    os.link(name, root / "link")
    os.symlink("target", root / "symlink")
    os.readlink(root / "symlink")
    os.mknod(root / "fifo", 0o010600)
    os.mkdir(root / "dir")
    (root / "dir" / "file").write_bytes(b"c" * 5000)
    os.rename(root / "link", root / "dir" / "file")
    fifo, directory = os.fsencode(root / "fifo"), os.fsencode(root / "dir")
    assert ctypes.CDLL(None).renameat2(AT_FDCWD, fifo, AT_FDCWD, directory, RENAME_EXCHANGE) == 0
    os.setxattr(name, "user.x", b"value")
    os.removexattr(name, "user.x")
    os.listdir(root)
    fd = os.open(root, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    os.unlink(name)
    os.unlink(root / "dir")
    os.mkdir(root / "gone")
    os.rmdir(root / "gone")
    with pytest.raises(OSError, match="not empty"):
        os.rmdir(root / "fifo")


def what_native_transports_carry(root):
    """Besides all that pyfuse3 does."""
    with open(root / "more", "w+b") as file, open(root / "copy", "wb") as copy:
        os.posix_fallocate(file.fileno(), 0, 20000)
        os.copy_file_range(file.fileno(), copy.fileno(), 9000)
        fcntl.ioctl(file, FS_IOC_SETFLAGS, struct.pack("i", FS_NODUMP_FL))
        fcntl.ioctl(file, FS_IOC_SETFSLABEL, b"recorded".ljust(256, b"\0"))
    os.close(os.open(root, os.O_TMPFILE | os.O_RDWR))


@pytest.mark.parametrize(
    "options", ["", "transport=pyfuse3", "write=cached,strictatime", "drain=fsync,lazytime", "flush=clflush"]
)
def test_the_log_makes_the_region(region_factory, path, options):
    """Nothing is missing: what the log says, put over its image, is the region to the byte."""
    region = region_factory(options=",".join(filter(None, (options, f"record={path}"))))
    region.mount()
    everything(region.path)
    native = region.stat()["transport"]["kind"] != "pyfuse3"
    if native:
        what_native_transports_carry(region.path)
    if shutil.which("fio"):
        for engine, *more in ENGINES:
            where = f"--directory={region.path}"
            mounts.run(["fio", "--name=job", where, *FIO, f"--ioengine={engine}", *more])
    if shutil.which("xfs_io"):
        commands = [word for command in XFS_IO for word in ("-c", command)]
        mounts.run(["xfs_io", "-f", *commands, region.path / "x"])
    counted = region.stat()["recording"]
    region.umount()
    got = log.load(path)
    assert counted["error"] is None and counted["path"] == path and counted["events"] > 500
    assert unlike(region, got) == []
    found = operations(got.events)
    missing = {"syncfs", "shutdown"} if native else set(vars(MoreOperations)) | set(vars(IoctlOperations))
    expected = set(recording.BEGIN) - missing | {"mount", "unmount", "forget"}
    assert {one.name for one in found.values()} == expected
    assert all(one.end is not None for one in found.values())
    assert not os.stat(path).st_mode & 0o077


def test_what_the_operations_say(region_factory, path):
    region = region_factory(options=f"record={path}")
    region.mount()
    everything(region.path)
    region.umount()
    got = log.load(path)
    said = [one.begin | one.end for one in operations(got.events).values()]
    named = Counter(one["op"] for one in said)
    assert next(one["name"] for one in said if one["op"] == "create") == "\udcff\udce4"
    (first, *_) = [one for one in said if one["op"] == "write"]
    assert (first["pos"], first["size"], first["result"]) == (0, 10000, 10000)
    assert first["crc32c"] == recording.layout.crc32c(b"a" * 10000)
    changed = [one for one in said if one["op"] == "setattr"]
    assert any(one.get("size") == 5000 for one in changed)
    assert any((one.get("atime"), one.get("mtime")) == (1, 2) for one in changed)
    assert any((one.get("uid"), one.get("gid")) == (12, 34) for one in changed)
    assert [one["flags"] for one in said if one["op"] == "rename"] == [0, RENAME_EXCHANGE]
    assert [one.get("errno") for one in said if one["op"] == "rmdir"] == [None, errno.ENOTEMPTY]
    assert [one["target"] for one in said if one["op"] == "symlink"] == ["target"]
    assert said[0] == {"op": "mount", "readonly": False, "result": {"replayed": 0}}
    assert said[-1] == {"op": "unmount", "result": None} and named["mount"] == named["unmount"] == 1
    header = got.header
    assert header["superblock"]["journal_bytes"] and f"record={path}" in header["options"]
    assert header["source"] == str(region.source) and header["mountpoint"] == str(region.path)


def test_fsync_is_a_flush_and_a_drain_of_the_data(region_factory, path):
    region = region_factory(options=f"write=cached,record={path}")
    region.mount()
    with open(region.path / "file", "wb", buffering=0) as file:
        file.write(b"old!" * 1024)
        os.pwrite(file.fileno(), b"new!" * 1024, 0)
        os.fsync(file.fileno())
    region.umount()
    got = log.load(path)
    *_, written = [one for one in operations(got.events).values() if one.name == "write"]
    (synced,) = [one for one in operations(got.events).values() if one.name == "fsync"]
    (store,) = [e for e in written.events if e.kind == log.STORE and e.data == b"new!" * 1024]
    flushed = [e for e in synced.events if e.kind == log.FLUSH]
    assert any(e.place <= store.place and store.place + store.length <= e.place + e.length for e in flushed)
    assert synced.events[-1].kind == log.DRAIN
    assert not any(e.kind == log.FLUSH and e.place == store.place for e in written.events)


def test_sites_name_the_code_that_stores(region_factory, path):
    region = region_factory(options=f"record={path}")
    region.mount()
    (region.path / "file").write_bytes(b"x")
    region.umount()
    got = log.load(path)
    assert all(e.site in got.sites for e in got.events if e.kind not in (log.BEGIN, log.END))
    assert any("journal.py" in text for text in got.sites.values())
    assert any("file_io.py" in text for text in got.sites.values())


def test_recovery_is_in_the_log(region_factory, path):
    region = region_factory()
    region.mount()
    for number in range(10):
        (region.path / f"file{number}").write_bytes(b"x" * 5000)
    held = open(region.path / "file0", "rb")  # an orphan, for recovery to finish
    os.unlink(region.path / "file0")
    region.kill()
    with pytest.raises(OSError):
        held.read()
    with pytest.raises(OSError):
        held.close()
    region.mount(f"record={path}")
    replayed = region.stat()["replayed"]
    region.umount()
    got = log.load(path)
    mounted = operations(got.events)[1]
    assert replayed > 0 and mounted.name == "mount" and mounted.end == {"result": {"replayed": replayed}}
    sites = " ".join(got.sites[e.site] for e in mounted.events)
    assert " replay" in sites and " destroy" in sites, "the journal, and the orphan's end"
    assert unlike(region, got) == []


def test_state_in_the_region_is_not_in_the_log(region_factory, path):
    """--map=dev: dirty bitmaps are volatile, no mount reads them, and they don't go through the table."""
    region = region_factory(mkfs=["--map", "dev"], options=f"write=cached,record={path}")
    region.mount()
    everything(region.path)
    (region.path / "file").write_bytes(b"x" * 100000)
    region.umount()
    got = log.load(path)
    assert any(name == "map" for name, _, _ in got.header["areas"])
    assert unlike(region, got, leave_out=["map"]) == []
    operations(got.events)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_completes_the_log(region_factory, path, number):
    region = region_factory(options=f"record={path}")
    region.mount()
    fd = os.open(region.path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 300000)
    os.kill(region.pid, number)
    assert region._wait_gone(20)
    with pytest.raises(OSError):
        os.close(fd)
    got = log.load(path)
    last = list(operations(got.events).values())[-1]
    assert last.name == "unmount" and last.end == {"result": None}
    assert unlike(region, got) == []


def test_a_killed_daemon_leaves_the_beginning(region_factory, path):
    """What was buffered is lost, at most 256 KiB; what is there is a state that the region had."""
    region = region_factory(options=f"record={path}")
    region.mount()
    for number in range(40):
        (region.path / f"file{number}").write_bytes(bytes([number]) * 200000)
    counted = region.stat()["recording"]
    region.kill()
    there = os.path.getsize(path)
    assert there > counted["bytes"] - (256 << 10)
    got = log.load(path)
    found = operations(got.events)
    assert len(found) > 40 and all(one.end for one in list(found.values())[:-1])
    apply(got.image, got.events).tofile(region.source)
    done = region.fsck("-n")
    assert done.returncode == 0, done.stdout + done.stderr
    region.mount("")
    names = sorted(os.listdir(region.path), key=lambda name: int(name[4:]))
    assert len(names) > 20
    for number, name in enumerate(names[:-1]):
        assert (region.path / name).read_bytes() == bytes([number]) * 200000


def test_a_retry_is_an_operation_of_its_own(mount_factory, path):
    """ENOSPC while an unlinked file holds space: the handler suspends between attempts, operations don't."""
    region = mount_factory(16 * mounts.MIB, options=f"record={path}")
    with open(region.path / "held", "wb") as held:
        held.write(b"h" * mounts.MIB)
        held.flush()
        os.unlink(region.path / "held")
        with pytest.raises(OSError, match="No space"), open(region.path / "big", "wb") as big:
            while True:
                big.write(b"b" * mounts.MIB)
    region.umount()
    got = log.load(path)
    found = list(operations(got.events).values())
    refused = [one for one in found if one.end == {"errno": errno.ENOSPC}]
    assert len(refused) > 1 and len({(one.begin["fh"], one.begin["pos"]) for one in refused}) < len(refused)
    assert unlike(region, got) == []


def test_remounts_are_operations(mount_factory, path):
    region = mount_factory(options=f"record={path}")
    (region.path / "file").write_bytes(b"x")
    for word in ("ro", "rw"):
        mounts.run([mounts.command("mount.daxfs"), "none", region.path, "-o", f"remount,{word}"])
    (region.path / "file").write_bytes(b"y")
    region.umount()
    got = log.load(path)
    found = [one for one in operations(got.events).values() if one.name == "remount"]
    assert [one.begin["readonly"] for one in found] == [True, False]
    assert all(one.end == {"result": None} and one.events for one in found)
    assert unlike(region, got) == []


def test_a_read_only_mount_logs_what_replay_stores_in_memory(mount_factory, path):
    region = mount_factory()
    (region.path / "file").write_bytes(b"x" * 5000)
    region.kill()
    before = region.source.read_bytes()
    region.mount(f"ro,record={path}")
    assert (region.path / "file").read_bytes() == b"x" * 5000
    region.umount()
    assert region.source.read_bytes() == before
    got = log.load(path)
    found = operations(got.events)
    assert got.header["region"]["mode"] == "cow" and got.image.tobytes() == before
    assert any(e.kind == log.STORE for e in found[1].events)
    assert not any(one.events for one in list(found.values())[1:])


def test_each_handler_is_described_or_quiet():
    """A new handler has to say what it does; and a description takes what its handler takes."""
    handlers = {name for name in dir(Operations) if hasattr(getattr(Operations, name), "is_handler")}
    assert set(recording.BEGIN) | recording.QUIET == handlers and not set(recording.BEGIN) & recording.QUIET
    for name, describe in recording.BEGIN.items():
        takes = [p for p in inspect.signature(describe).parameters.values() if p.kind != p.VAR_KEYWORD]
        assert len(takes) == len(inspect.signature(getattr(Operations, name)).parameters), name


def test_without_a_recording_the_handlers_are_the_class_ones():
    class Nothing:
        def operation(self, name):
            return None

    with datakit.Kit() as kit:
        io = kit.io()
        operations = Operations(io.fs, io, None, Nothing())
    assert not set(vars(operations)) & ({*recording.BEGIN, "forget_one"})


@pytest.mark.parametrize("facts", [
    {"op": "write", "pos": 2**40, "crc32c": 0}, {}, {"result": None}, {"result": {"ino": 1, "fh": 2}},
    {"name": 'quo"te\\\n\x00\udcff ä', "caller": [0, 1], "datasync": True},
])  # fmt: skip
def test_the_text_is_json(facts):
    assert recording._json(facts) == json.dumps(facts) and "\n" not in recording._json(facts)
