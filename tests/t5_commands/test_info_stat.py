# SPDX-License-Identifier: MIT
"""daxfs info and daxfs stat: what they show, of what, and how they take damage."""

import io
import json
import os
import re
import socket
import subprocess

import mounts
import pytest
from rich.console import Console

from daxfs import layout
from daxfs.cli import stat
from daxfs.fuse import control


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
    region = mount_factory(kind="pool")
    (region.path / "file").write_bytes(bytes(mounts.MIB))
    for asked in (region.path, region.source):
        found = info(asked)
        assert found["mounted"]["pid"] == region.pid and found["mounted"]["mountpoint"] == str(region.path)
        assert not found["clean"]
    text = daxfs("info", region.source).stdout
    assert f"by pid {region.pid}" in text
    region.umount()
    assert info(region.source)["clean"]


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
    assert process.returncode == 1 and errors.startswith("daxfs: ") and "Traceback" not in errors


@pytest.mark.mount
def test_stat_of_a_dead_mount(mount_factory):
    region = mount_factory()
    region._signal_daemon()
    done = daxfs("stat", region.path, status=1)
    assert "daemon is gone" in done.stderr
    region._detach()


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
    region.umount()
    assert not os.path.exists(path)


@pytest.mark.mount
def test_stale_sockets_go(mount_factory):
    region = mount_factory()
    device = os.stat(region.path).st_dev
    region.kill()
    stale = f"/run/daxfs/{control.socket_name(device)}"
    region.mount()
    now = f"/run/daxfs/{control.socket_name(os.stat(region.path).st_dev)}"
    assert os.path.exists(now) and (stale == now or not os.path.exists(stale))


def test_uptime():
    assert [stat.show_uptime(s * 10**9) for s in (7, 3661, 90061)] == ["0:00:07", "1:01:01", "1 d 1:01:01"]


def test_rates_between_two_snapshots():
    one = {"count": 100, "errors": 2, "total_ns": 5000, "p50_ns": 64, "p99_ns": 128}
    before = {"operations": {"write": {**one, "count": 60}}}
    table = stat.operations({"operations": {"write": one, "read": one}}, before, 2.0)
    out = io.StringIO()
    Console(file=out, width=80).print(table)
    rows = {line.split()[0]: line.split() for line in out.getvalue().splitlines() if line.strip()}
    assert rows["write"][1:4] == ["100", "20", "2"] and rows["read"][2] == "50"
