# SPDX-License-Identifier: MIT
"""daxfs info and daxfs stat: what they show, of what, and how they take damage."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path

import mounts
import pytest
from rich.console import Console

from daxfs import layout
from daxfs.cli import stat_tables
from daxfs.fuse import control, mountinfo, ops, ops_ioctl, stats, transports, wire
from daxfs.latency import Operation


def daxfs(*args, status=0):
    done = mounts.run([mounts.command("daxfs"), *args], check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def info(path, status=0):
    return json.loads(daxfs("info", "--json", path, status=status).stdout)


@pytest.fixture
def formatted(tmp_path):
    path = tmp_path / "region"
    mounts.run([mounts.command("mkfs.daxfs"), "-q", "-s", "16M", "-L", "lab", path])
    return path


def damage(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_info_of_an_unmounted_region(formatted):
    before = formatted.read_bytes()
    found = info(formatted)
    assert found["label"] == "lab" and found["clean"] and found["mounted"] is None
    assert found["space"]["free_bytes"] > 8 * mounts.MIB and found["problems"] == []
    assert re.search(r"state +clean", daxfs("info", formatted).stdout)
    assert formatted.read_bytes() == before


@pytest.mark.parametrize(
    ("offset", "data", "told", "shown"),
    [
        (100, b"\xff" * 8, "superblock", True),  # its backup has the facts
        (0, bytes(4096), "superblock", True),
        (8, (99).to_bytes(4, "little"), "checksum", True),
        (4096, b"\xff" * 64, "state page", True),
        (layout.PAGE_SIZE * 2, b"\xff" * 64, "journal", True),
    ],
)
def test_info_of_a_damaged_region(formatted, offset, data, told, shown):
    damage(formatted, offset, data)
    before = formatted.read_bytes()
    done = daxfs("info", formatted, status=1)
    assert told in done.stderr and done.stderr.startswith("daxfs: ")
    assert ("lab" in done.stdout) is shown
    assert info(formatted, status=1)["problems"]
    assert formatted.read_bytes() == before


def test_info_of_no_region(tmp_path):
    (tmp_path / "zeros").write_bytes(bytes(16 * mounts.MIB))
    assert "not a daxfs region" in daxfs("info", tmp_path / "zeros", status=1).stderr
    assert "none" in daxfs("info", tmp_path / "none", status=1).stderr
    assert "not on a daxfs mount" in daxfs("info", tmp_path, status=1).stderr
    (tmp_path / "short").write_bytes(b"x")
    daxfs("info", tmp_path / "short", status=1)
    assert "not on a daxfs mount" in daxfs("stat", tmp_path, status=1).stderr


@pytest.mark.mount
def test_info_of_a_mounted_region(mount_factory):
    region = mount_factory(kind="pool", options="dax=always")
    (region.path / "file").write_bytes(b"1" * mounts.MIB)
    one = {"count": 1, "bytes": mounts.MIB, "stored_bytes": mounts.MIB}
    for asked in (region.path, region.source):
        found = info(asked)
        assert found["mounted"]["pid"] == region.pid and found["mounted"]["mountpoint"] == str(region.path)
        assert not found["clean"] and found["ranges"] == one
    text = daxfs("info", region.source).stdout
    assert f"by pid {region.pid}" in text and re.search(r"own ranges +1, 1\.0 MiB", text)
    region.umount()
    found = info(region.source)
    assert found["clean"] and found["ranges"] == one


@pytest.mark.mount
def test_info_after_a_kill_counts_what_is_to_replay(mount_factory):
    region = mount_factory()
    (region.path / "file").write_text("x")
    region.kill()
    before = region.source.read_bytes()
    found = info(region.source)
    assert not found["clean"] and found["to_replay"] > 0
    assert "not unmounted cleanly" in daxfs("info", region.source).stdout
    assert region.source.read_bytes() == before
    region.mount()


@pytest.mark.mount
def test_stat_json(mount_factory):
    region = mount_factory(options="write=cached,noatime")
    with open(region.path / "file", "wb", buffering=0) as file:
        file.write(b"x" * 10000)  # new blocks are durable at once
        file.seek(0)
        file.write(b"y" * 10000)  # over written blocks: dirty until fsync
        assert region.stat()["tracker"]["dirty_bytes"] >= 10000
        os.fsync(file.fileno())
    facts = region.stat()
    assert facts["pid"] == region.pid and facts["source"] == str(region.source)
    assert facts["emulated"] is True and facts["granularity"] == "cache_line"
    assert "write=cached" in facts["options"] and "noatime" in facts["options"]
    for name in ("operations", "faults", "flush", "tracker", "journal", "space"):
        assert facts[name], name
    write = facts["operations"]["write"]
    assert write["count"] >= 1 and sum(write["histogram"]) == write["count"] and write["total_ns"] > 0
    assert facts["operations"]["fsync"]["count"] == 1
    assert facts["tracker"]["flushed_bytes"] >= 10000 and facts["tracker"]["dirty_bytes"] == 0


@pytest.mark.mount
def test_stat_tables_fit_80_columns(mount_factory):
    region = mount_factory()
    for number in range(5):
        (region.path / f"file{number}").write_bytes(bytes(5000))
    text = daxfs("stat", region.path).stdout
    assert max(len(line) for line in text.splitlines()) <= 80
    for word in ("create", "p99", "tracker", "journal", "space", "not power-fail safe", str(region.pid)):
        assert word in text, word
    assert "…" not in text  # nothing was cut
    lines = [line.strip() for line in text.splitlines()]
    for title in ("tracker", "journal", "inodes"):  # each table stands for itself
        assert not lines[next(n for n, line in enumerate(lines) if line.startswith(f"{title} ") or
                              line == title) - 1]  # fmt: skip


def counted(*ns, errors=0):
    out = Operation()
    for each in ns:
        out.add(each)
    out.errors = errors
    return out


def test_native_counters_and_those_of_handlers_become_one_row():
    handlers = {"write": counted(100_000, 100_000), "rename": counted(5000), "fallocate": counted(7000),
                "readdir": counted(10), "readdir_plain": counted(20), "mkdir": counted()}
    native = {"operations": {"write": counted(900, 900, 900, errors=1), "flush": counted(300)},
              "relayed": {"write": 2, "rename2": 1, "fallocate": 1, "readdirplus": 1, "readdir": 1,
                          "forget": 9, "batch_forget": 1}, "malformed": 0}
    found = stats.merged(handlers, native, {"write", "fallocate", "readdir"})
    how = {name: tuple(row[kind] for kind in ("count", "served", "relayed", "called"))
           for name, row in found.items()}
    assert how == {
        "write": (5, 3, 0, 2), "flush": (1, 1, 0, 0), "rename": (1, 0, 1, 0), "fallocate": (1, 0, 0, 1),
        "readdir": (1, 0, 1, 0), "readdir_plain": (1, 0, 0, 1), "forget": (10, 0, 10, 0),
    }  # fmt: skip
    write = found["write"]
    assert write["errors"] == 1 and write["total_ns"] == 202_700 and sum(write["histogram"]) == 5
    assert write["p50_ns"] == 1024 and write["p99_ns"] == 131072
    assert handlers["write"].count == 2  # what is added up is a copy
    nothing = {"operations": {}, "relayed": {}, "malformed": 0}
    assert stats.merged(handlers, nothing, set())["write"]["count"] == 2


def test_the_name_of_every_request_is_a_row():
    """That of its handler, where there is one; IOCTL alone has several."""
    rows = {stats.handler_name(name.lower()) for name in wire.OPCODES.values()}
    handlers = {name for name in dir(ops.Operations) if hasattr(getattr(ops.Operations, name), "is_handler")}
    assert handlers - set(vars(ops_ioctl.IoctlOperations)) <= rows


@pytest.mark.parametrize(
    ("transport", "text"),
    [
        ({"kind": "uring", "queues": 2, "threads": 3, "why_not_better": ""}, "uring, 2 queues"),
        ({"kind": "uring", "queues": 1, "threads": 2, "why_not_better": "", "malformed": 4},
         "uring, 1 queue, 4 malformed requests"),
        ({"kind": "dev", "threads": 8, "why_not_better": "uring: off"}, "dev, 8 threads (uring: off)"),
        ({"kind": "pyfuse3", "threads": 1, "why_not_better": "asked for"}, "pyfuse3, 1 thread (asked for)"),
    ],
)
def test_transport_in_a_line(transport, text):
    assert stat_tables.show_transport(transport) == text


@pytest.mark.mount
@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))
    for kind, reason in transports.probe().items()])
def test_stat_of_each_transport(region_factory, kind):
    region = region_factory(options=f"transport={kind}").mount()
    with open(region.path / "file", "wb", buffering=0) as file:
        file.write(bytes(4096))
        os.pwrite(file.fileno(), bytes(4096), 0)
    os.rename(region.path / "file", region.path / "new")
    facts = region.stat()
    transport, write, rename = facts["transport"], facts["operations"]["write"], facts["operations"]["rename"]
    assert transport["kind"] == kind and transport["threads"] >= 1
    assert bool(transport["why_not_better"]) is (kind != "uring")
    assert write["count"] == 2 and sum(write["histogram"]) == 2 and rename["count"] == 1
    text = daxfs("stat", region.path).stdout
    assert re.search(rf"transport +{kind}, [0-9]+ (thread|queue)", text)
    assert max(len(line) for line in text.splitlines()) <= 80 and "…" not in text
    if kind == "pyfuse3":
        assert "served" not in write and "served natively" not in text
        return
    assert write["served"] + write["called"] == 2 and write["served"] >= 1 and write["relayed"] == 0
    assert (rename["served"], rename["relayed"], rename["called"]) == (0, 1, 0)
    assert transport["malformed"] == 0 and transport["waiting"] >= 0
    assert re.search(r"^rename +- +1 +-$", text, re.MULTILINE)


@pytest.mark.mount
def test_stat_watch(mount_factory):
    region = mount_factory()
    command = [mounts.command("daxfs"), "stat", "--json", "--watch", "0.1", region.path]
    process = subprocess.Popen(command,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    assert [line["pid"] for line in lines] == [region.pid] * 3
    assert lines[0]["uptime_ns"] < lines[2]["uptime_ns"]
    region.umount()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and not errors


@pytest.mark.mount
def test_stat_watch_in_words_reaches_a_pipe_each_time_and_ctrl_c_ends_it(mount_factory):
    region = mount_factory()
    with subprocess.Popen([mounts.command("daxfs"), "stat", "-w", "0.1", region.path],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # fmt: skip
        heads = 0
        giving_up = threading.Timer(30, process.kill)
        giving_up.start()
        for line in process.stdout:
            heads += line.startswith("daemon ")
            if heads == 3:
                break
        giving_up.cancel()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert heads == 3 and (process.returncode, errors) == (0, "")


@pytest.mark.mount
def test_stat_watch_of_a_killed_daemon_fails(mount_factory):
    region = mount_factory()
    process = subprocess.Popen([mounts.command("daxfs"), "stat", "--json", "-w", "0.1", region.path],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert json.loads(process.stdout.readline())["pid"] == region.pid
    region._signal_daemon()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and errors.count("\n") == 1 and "umount" in errors
    region._detach()


@pytest.mark.mount
def test_the_keys_of_stat_json_are_those_of_its_manual_page(mount_factory, tmp_path):
    page = Path(__file__).resolve().parents[2] / "docs/man/daxfs.1"
    text = page.read_text().partition(".Sh JSON OF STAT")[2].partition("\n.Sh ")[0]
    told = {word for line in text.splitlines() if line.startswith(".It Va ")
            for word in line[7:].replace(",", " ").split()}
    assert told == set(mount_factory().stat())


def test_a_mount_is_there_beside_others_of_the_same(monkeypatch):
    """As after a mount --bind of it."""
    mount = mountinfo.Mount(39, "/mnt", [], "fuse.daxfs", "/x", [])
    others = [mountinfo.Mount(39, where, [], "fuse.daxfs", "/x", []) for where in ("/a", "/b")]
    monkeypatch.setattr(mountinfo, "mounts", lambda: [others[0], mount, others[1]])
    assert control.is_there(mount)
    monkeypatch.setattr(mountinfo, "mounts", lambda: others)
    assert not control.is_there(mount)


def test_stat_watch_refuses_nan(tmp_path):
    assert "number of seconds" in daxfs("stat", "-w", "nan", tmp_path, status=2).stderr


@pytest.mark.mount
def test_stat_of_a_dead_mount(mount_factory):
    region = mount_factory()
    region._signal_daemon()
    done = daxfs("stat", region.path, status=1)
    assert "daemon is gone" in done.stderr
    # Whoever mounts next removes its socket.
    socket_path = Path(f"/run/daxfs/{control.socket_name(mountinfo.mount_at(str(region.path)).device)}")
    socket_path.unlink(missing_ok=True)
    done = daxfs("stat", region.path, status=1)
    assert f"umount {region.path}" in done.stderr and done.stderr.count("\n") == 1
    region._detach()


def file_at(path):
    """Which file *path* is; None: none. A mount of somebody else may get the number of one that is gone."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


@pytest.mark.mount
def test_control_socket_takes_nonsense(mount_factory):
    region = mount_factory()
    device = os.stat(region.path).st_dev
    path = f"/run/daxfs/{control.socket_name(device)}"
    for text, word in ((b"nonsense\n", "not a request"), (b"[]\n", "not a request"),
                       (b'{"get": 1}\n', "unknown"), (b"x" * (control.LIMIT + 1), "not a request"),
                       (b'{"set": {"atime": "x"}}\n', "policy")):  # fmt: skip
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.sendall(text)
            with sock.makefile() as file:
                assert word in json.loads(file.readline())["error"]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)  # connects and leaves
    assert region.stat()["pid"] == region.pid
    ours = file_at(path)
    region.umount()
    assert file_at(path) != ours


@pytest.mark.mount
def test_stale_sockets_go(mount_factory):
    region = mount_factory()
    stale = f"/run/daxfs/{control.socket_name(os.stat(region.path).st_dev)}"
    left = file_at(stale)
    region.kill()
    region.mount()
    now = f"/run/daxfs/{control.socket_name(os.stat(region.path).st_dev)}"
    assert os.path.exists(now) and file_at(stale) != left


def test_uptime():
    shown = [stat_tables.show_uptime(seconds * 10**9) for seconds in (7, 3661, 90061)]
    assert shown == ["0:00:07", "1:01:01", "1 d 1:01:01"]


def test_rates_between_two_snapshots():
    one = {"count": 100, "errors": 2, "total_ns": 5000, "p50_ns": 64, "p99_ns": 128}
    before = {"operations": {"write": {**one, "count": 60}}}
    table = stat_tables.operations({"operations": {"write": one, "read": one}}, before, 2.0)
    out = io.StringIO()
    Console(file=out, width=80).print(table)
    rows = {line.split()[0]: line.split() for line in out.getvalue().splitlines() if line.strip()}
    assert rows["write"][1:4] == ["100", "20", "2"] and rows["read"][2] == "50"
