# SPDX-License-Identifier: MIT
"""daxfs trace on real mounts, and its server's half: watchers that come, are slow, and go."""

import base64
import contextlib
import errno
import json
import os
import signal
import socket
import stat
import subprocess
import time

import mounts
import pyfuse3
import pytest
import trio

from daxfs.cli import trace as trace_command
from daxfs.data._trace import FAULTS, REQUESTS, TraceRing
from daxfs.errors import DaxfsError
from daxfs.fuse import control, mountinfo, ops, trace, tracing, transports

SLOTS = 8192  # native/trace.h
KINDS = [pytest.param(kind, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))
         for kind, reason in transports.probe().items()]


# -- the server's half, in process --------------------------------------------------------


class Ring:
    """Has as many records at each look as it was told to."""

    def __init__(self):
        self.calls, self.waiting, self.classes = [], [], 0

    def keep(self, classes):
        self.calls.append(classes)
        self.classes = classes

    def read(self):
        out, self.waiting = self.waiting, []
        return out


def numbered(first, count, kind=trace.REQUEST, opcode=15):
    return [trace.RECORD.pack(0, kind, opcode, n, 0, 0, 0, 0, 0, 0, 3, 0, 0, b"")
            for n in range(first, first + count)]


def numbers(parts):
    return [event["unique"] for batch in trace_command.decoded(parts) for event in batch
            if event["kind"] == "request"]


async def take(generator, count):
    """So many parts that hold records, and the counts of lost ones between them."""
    out = []
    while sum("records" in part for part in out) < count:
        out.append(await anext(generator))
    return out


def test_watchers_share_a_ring_that_is_off_without_them():
    source = Ring()
    tracer = tracing.Tracer(source)

    async def main():
        first, second = tracer.watch(), tracer.watch()
        assert source.calls == []
        assert await anext(first) == {"tracing": True} == await anext(second)
        assert source.calls == [1, 1]
        source.waiting = numbered(0, 3)
        assert numbers(await take(first, 1)) == numbers(await take(second, 1)) == [0, 1, 2]
        await first.aclose()
        assert source.calls == [1, 1, 1]
        source.waiting = numbered(3, 2)
        assert numbers(await take(second, 1)) == [3, 4]
        await second.aclose()
        assert source.calls == [1, 1, 1, 0] and tracer.watchers == []

    trio.run(main)


def test_a_slow_watcher_loses_and_is_told_how_many(monkeypatch):
    monkeypatch.setattr(tracing, "BACKLOG", 10)
    monkeypatch.setattr(tracing, "LINE", 4)
    source = Ring()
    tracer = tracing.Tracer(source)

    async def main():
        slow, quick = tracer.watch(), tracer.watch()
        await anext(slow), await anext(quick)
        seen = []
        for start in range(0, 24, 8):
            source.waiting = numbered(start, 8)
            seen += numbers(await take(quick, 2))
        assert seen == list(range(24))
        parts = await take(slow, 3)
        assert numbers(parts) == list(range(10))
        assert [part["lost"] for part in [*parts, await anext(slow)] if "lost" in part] == [14]
        events = [event for batch in trace_command.decoded(parts) for event in batch]
        assert all(trace.line(event) for event in events)
        await slow.aclose(), await quick.aclose()

    trio.run(main)


def test_each_watcher_gets_what_it_asked_for_and_all_hear_of_losses():
    source = Ring()
    tracer = tracing.Tracer(source)

    async def main():
        everything, faults = tracer.watch(["requests", "writeback"]), tracer.watch(["faults"])
        assert await anext(everything) == await anext(faults) == {"tracing": True}
        assert source.calls == [5, 7]
        source.waiting = [*numbered(0, 2), *numbered(2, 1, trace.DAX, 0), *numbered(3, 1, trace.DAX, 9),
                          *numbered(4, 1, trace.LOST), *numbered(5, 1, trace.NOTIFICATION, 0)]
        got = [[event["kind"] for batch in trace_command.decoded(await take(one, 1)) for event in batch]
               for one in (everything, faults)]
        assert got == [["request", "request", "dax", "lost", "notification"], ["dax", "lost"]]
        await faults.aclose()
        assert source.calls == [5, 7, 5]
        await everything.aclose()
        assert source.calls == [5, 7, 5, 0]

    trio.run(main)
    for wrong in ("requests", [], ["all"], 3, None, [["faults"]]):
        with pytest.raises(OSError, match="some of requests, faults, writeback"):
            tracer.watch(wrong)
    assert not tracer.watchers


def test_a_ring_without_memory_leaves_no_watcher(monkeypatch):
    class Full(Ring):
        def keep(self, classes):
            super().keep(classes)
            if classes:
                raise MemoryError

    tracer = tracing.Tracer(Full())

    async def main():
        with pytest.raises(MemoryError):
            await anext(tracer.watch())

    trio.run(main)
    assert not tracer.watchers and tracer.ring.calls == [1, 0]


def test_every_handler_of_pyfuse3_is_traced():
    handlers = {name for name in dir(ops.Operations)
                if hasattr(getattr(ops.Operations, name), "is_handler") and hasattr(pyfuse3.Operations, name)}
    assert set(tracing.REQUESTS) == handlers


def test_off_leaves_the_handlers_as_they_were():
    class Plain:
        counters = dict.fromkeys(tracing.REQUESTS)
        handles = {}

        async def forget(self, inodes):
            pass

    async def handler(*_args):
        raise OSError(errno.EACCES, "no")

    for name in tracing.REQUESTS:
        setattr(Plain, name, handler)
    operations = Plain()
    operations.read = covered = lambda *args: handler()  # as record= does
    ring = TraceRing()
    ring.keep(REQUESTS)
    source = tracing.HandlerTrace(operations, ring)
    source.trace(True)
    source.trace(True)
    assert operations.read is not covered and "write" in vars(operations)
    with pytest.raises(OSError, match="no"):
        trio.run(operations.read, 3, 0, 10)
    trio.run(operations.forget, [(5, 1), (6, 2)])
    decoder = trace.Decoder()
    lines = [trace.line(decoder.event(one)).split(" ", 2)[2].split(" <")[0] for one in ring.read()]
    assert lines == ["READ(fh=3, offset=0, size=10)", "READ = -EACCES (Permission denied)",
                     "FORGET(ino=5, nlookup=1)", "FORGET(ino=6, nlookup=2)"]
    source.trace(False)
    assert vars(operations) == {"read": covered}


def test_a_full_ring_counts():
    """And who comes to watch something else besides loses nothing of what is there."""
    ring = TraceRing()
    source = tracing.HandlerTrace(None, ring)
    ring.keep(REQUESTS)
    for number in range(SLOTS + 5):
        source._put(trace.REQUEST, 15, number, b"", 40)
    ring.keep(REQUESTS | FAULTS)
    records = [one for part in iter(ring.read, []) for one in part]
    events = [trace.Decoder().event(one) for one in records]
    assert [event["unique"] for event in events[:-1]] == list(range(SLOTS))
    assert events[-1]["kind"] == "lost" and events[-1]["count"] == 5
    assert ring.read() == []
    source._put(trace.REQUEST, 15, 1, b"", 40)
    ring.keep(0)
    ring.keep(FAULTS)
    assert ring.read() == [] and ring.classes == FAULTS
    with pytest.raises(ValueError, match="216 bytes"):
        ring.put(b"short")


# -- the command on a mount ---------------------------------------------------------------


class Tracing:
    """`daxfs trace` in the background; what it has printed so far."""

    def __init__(self, region, *args):
        command = [mounts.command("daxfs"), "trace", *args, region.path]
        self.region = region
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.text = ""
        # It sees a request of ours: it has begun.
        self.until(lambda: "STATFS" in self.text, lambda: os.statvfs(region.path))

    def until(self, condition, poke=lambda: None):
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end and self.process.poll() is None, self.text[-3000:]
            poke()
            time.sleep(0.02)
            with contextlib.suppress(TypeError):  # what read() of a pipe without data makes
                self.text += self.process.stdout.read() or ""

    def end(self, number=signal.SIGINT):
        if number:
            self.process.send_signal(number)
        os.set_blocking(self.process.stdout.fileno(), True)
        out, errors = self.process.communicate(timeout=30)
        self.text += out
        return self.process.returncode, errors

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


pytestmark = pytest.mark.mount


def work(path):
    """One of each that every transport can do."""
    name = path / "a \x1b name"
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o640)
    os.pwrite(fd, bytes(4096), 0)  # O_DIRECT on FUSE asks for no alignment
    os.pwrite(fd, b"written over" + bytes(4084), 0)  # natively, where that can be
    os.pread(fd, 4096, 0)
    os.fsync(fd)
    os.ftruncate(fd, 100)
    os.close(fd)
    os.mkdir(path / "dir", 0o750)
    os.rename(name, path / "dir" / "new")
    os.symlink("dir/new", path / "link")
    os.readlink(path / "link")
    os.setxattr(path / "dir", "user.a", b"value")
    os.getxattr(path / "dir", "user.a")
    os.listdir(path / "dir")
    os.link(path / "dir" / "new", path / "hard")
    os.unlink(path / "hard")
    os.mkfifo(path / "pipe", 0o600)
    with contextlib.suppress(FileNotFoundError):
        os.stat(path / "none")
    with contextlib.suppress(OSError):
        os.rmdir(path / "dir")


EXPECTED = {
    "LOOKUP": [('name="none"', "nodeid=none")], "CREATE": [(r'name="a \x1b name"', "fh=")],
    "WRITE": [("size=4096", "size=4096"), ('data="written over', "size=4096")],
    "READ": [("size=4096", '4096 bytes "written over')], "FSYNC": [("fh=", "ok")],
    "SETATTR": [("size=100", "size=100")], "MKDIR": [('name="dir"', "S_IFDIR|0750")],
    "RENAME2": [('newname="new"', "ok")], "SYMLINK": [('target="dir/new"', "S_IFLNK")],
    "READLINK": [("", 'target="dir/new"')], "SETXATTR": [('name="user.a", value="value"', "ok")],
    "GETXATTR": [('name="user.a"', "")], "LINK": [('name="hard"', "nlink=2")],
    "UNLINK": [('name="hard"', "ok")], "MKNOD": [("S_IFIFO|0600", "S_IFIFO|0600")],
    "RMDIR": [('name="dir"', "-ENOTEMPTY (Directory not empty)")], "READDIRPLUS": [("fh=", "")],
    "RELEASE": [("fh=", "")],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_requests_and_replies_in_words(region_factory, kind):
    region = region_factory(options=f"transport={kind}").mount()
    with Tracing(region) as tracing_:
        work(region.path)
        tracing_.until(lambda: "ENOTEMPTY" in tracing_.text)
        status, errors = tracing_.end()
    assert (status, errors) == (0, "")
    lines = tracing_.text.splitlines()
    assert all(line.isprintable() for line in lines)
    for op, cases in EXPECTED.items():
        names = ("RENAME", "RENAME2") if op == "RENAME2" else (op,)
        for asked, answered in cases:
            requests = [line for line in lines for name in names if f" {name}(" in line and asked in line]
            assert requests, f"no {op} with {asked!r} in:\n{tracing_.text}"
            ids = {line.split()[1] for line in requests}
            replies = [line for line in lines for name in names
                       if f" {name} = " in line and line.split()[1] in ids]
            assert any(answered in line for line in replies), f"{op}: no {answered!r} in {replies}"
    assert f"pid {os.getpid()} " in tracing_.text
    assert all("µs" in line or " ns" in line or " ms" in line for line in lines if "WRITE = " in line)


@pytest.mark.parametrize("kind", KINDS)
def test_json(region_factory, kind):
    region = region_factory(options=f"transport={kind}").mount()
    with Tracing(region, "--json") as tracing_:
        (region.path / "file").write_bytes(b"content")
        tracing_.until(lambda: '"RELEASE"' in tracing_.text)
        assert tracing_.end() == (0, "")
    events = [json.loads(line) for line in tracing_.text.splitlines()]
    create, reply = (event for event in events if event["op"] == "CREATE")
    assert create["args"]["name"] == "file" and create["pid"] == os.getpid() and create["uid"] == os.getuid()
    assert (create["kind"], reply["kind"]) == ("request", "reply") and reply["unique"] == create["unique"]
    assert reply["error"] is None and reply["latency_ns"] > 0 and reply["result"]["fh"] > 0
    assert abs(reply["time_ns"] - time.time_ns()) < 60 * 10**9


@pytest.mark.parametrize("kind", KINDS)
def test_every_event_is_shown_or_counted_as_lost(region_factory, kind):
    region, count = region_factory(options=f"transport={kind}").mount(), 5000
    shown = lost = 0
    with open(region.path / "file", "wb", buffering=0) as file, Tracing(region, "--json") as tracing_:
        for _ in range(count):  # nobody reads meanwhile: the trace has to wait, the mount has not
            os.pwrite(file.fileno(), b"x" * 512, 0)

        def all_there():
            nonlocal shown, lost
            whole = tracing_.text[: tracing_.text.rfind("\n") + 1]
            events = [json.loads(line) for line in whole.splitlines()]
            shown = sum(event.get("op") == "WRITE" for event in events)
            lost = sum(event["count"] for event in events if event["kind"] == "lost")
            return shown + lost >= 2 * count

        tracing_.until(all_there, lambda: time.sleep(0.3))
        assert shown <= 2 * count, (shown, lost)
        assert tracing_.end() == (0, "")


def test_two_watchers_and_one_that_leaves_in_the_middle(mount_factory):
    region = mount_factory()
    with Tracing(region) as first, Tracing(region) as second:
        first.process.kill()
        first.process.wait()
        (region.path / "later").touch()
        second.until(lambda: 'name="later"' in second.text)
        assert second.end() == (0, "")
    assert region.stat()["pid"] == region.pid


def test_it_ends_with_the_mount(mount_factory):
    region = mount_factory()
    with Tracing(region) as tracing_:
        region.umount()
        assert tracing_.end(number=None) == (0, "")


def test_it_says_that_the_daemon_was_killed(mount_factory):
    region = mount_factory()
    with Tracing(region) as tracing_:
        region._signal_daemon()
        status, errors = tracing_.end(number=None)
    assert status == 1 and "daemon is gone" in errors and "Traceback" not in errors
    region._detach()


def test_where_nothing_is_mounted_and_onto_the_mount_itself(mount_factory, tmp_path):
    done = mounts.run([mounts.command("daxfs"), "trace", tmp_path], check=False)
    assert done.returncode == 1 and "not on a daxfs mount" in done.stderr
    region = mount_factory()
    with open(region.path / "out", "w") as file:
        done = subprocess.run([mounts.command("daxfs"), "trace", region.path], stdout=file, timeout=30,
                              stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "on the mount that is traced" in done.stderr


def test_one_who_never_reads_holds_nobody_up(mount_factory):
    """A watcher that does not take what it is sent: the mount goes on, and little is kept for him."""
    region = mount_factory()
    mount = mountinfo.mount_at(str(region.path))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"/run/daxfs/{control.socket_name(mount.device)}")
        sock.sendall(b'{"get": "trace"}\n')
        before = time.monotonic()
        for n in range(3000):
            assert not (region.path / f"none{n}").exists()
        assert time.monotonic() - before < 60
        # Some of it fits into the socket; then the source is full, and says so to who reads on.
        sock.settimeout(20)
        with sock.makefile("rb") as file:
            assert json.loads(file.readline()) == {"tracing": True}
            first = json.loads(file.readline())
            assert len(base64.b64decode(first["records"])) % first["size"] == 0
    assert region.stat()["pid"] == region.pid


def test_only_root_and_the_owner(mount_factory):
    region = mount_factory(options="allow_other")
    mount = mountinfo.mount_at(str(region.path))
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        try:
            next(control.follow_mount(mount, {"get": "trace"}))
            os._exit(1)
        except DaxfsError as exc:
            os._exit(0 if exc.errno == errno.EPERM else 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert stat.S_IMODE(os.stat(f"/run/daxfs/{control.socket_name(mount.device)}").st_mode) == 0o600
