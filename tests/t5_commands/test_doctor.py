# SPDX-License-Identifier: MIT
"""daxfs doctor and quickstart: the probes against made-up hosts, and one real round."""

import json
import os
from pathlib import Path

import mounts
import pytest

from daxfs import _flush
from daxfs.cli import common, doctor, quickstart
from daxfs.fuse import transports

MOUNTINFO = """\
20 1 0:20 / / rw - ext4 /dev/vda rw
21 20 0:21 / /dev/shm rw - tmpfs tmpfs rw,size=1k{huge}
22 20 259:0 / /pmem rw - {fs} /dev/pmem0 rw{dax}
"""


ADMIN = "CapEff:\t0000000000200000\n"


def host(tmp_path, **files):
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def write(root, path, text=""):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_an_empty_host_has_answers_to_everything(tmp_path):
    findings = doctor.examine(str(tmp_path))
    by_name = {one.name: one for one in findings}
    assert by_name["/dev/fuse"].ok is False and "modprobe" in by_name["/dev/fuse"].todo
    assert all(one.value for one in findings)
    assert all(one.todo for one in findings if one.ok is False)
    assert len(by_name) == len(findings) >= 14


@pytest.mark.parametrize(
    ("release", "works", "direct"),
    [("5.3.0", False, None), ("5.4.0-1", True, None), ("6.8.12", True, None), ("6.9.0", True, True),
     ("6.18.44-x", True, True)],
)
def test_kernel_versions(tmp_path, release, works, direct):
    write(tmp_path, "proc/sys/kernel/osrelease", release + "\n")
    write(tmp_path, "proc/self/status", ADMIN)
    assert doctor.kernel(tmp_path).ok is works and doctor.passthrough(tmp_path).ok is direct
    write(tmp_path, "proc/self/status", "CapEff:\t00000000000fffff\n")
    assert doctor.passthrough(tmp_path).ok is None and doctor.passthrough(tmp_path).todo


@pytest.mark.parametrize(
    ("release", "value", "ok", "told", "todo"),
    [
        ("6.18.1", "Y\n", True, "works", ""), ("6.18.1", "N\n", None, "switched off", "echo Y >"),
        ("6.18.1", None, None, "not known", "modprobe fuse"), ("6.8.0", None, None, "came with 6.14", ""),
    ],
)  # fmt: skip
def test_transports(tmp_path, monkeypatch, release, value, ok, told, todo):
    monkeypatch.setattr(transports, "_native", lambda: ("uring", "dev"))
    write(tmp_path, "proc/sys/kernel/osrelease", release)
    write(tmp_path, "dev/fuse")
    if value:
        write(tmp_path, "sys/module/fuse/parameters/enable_uring", value)
    uring, dev = doctor.transport_rows(tmp_path)
    assert uring.ok is ok and told in uring.value and todo in uring.todo and bool(todo) is bool(uring.todo)
    assert (dev.name, dev.ok) == ("transport=dev", True)
    (tmp_path / "dev/fuse").unlink()
    assert doctor.transport_rows(tmp_path)[1].ok is None


def test_this_host_and_the_mount_agree():
    """What the doctor calls working is what transport=auto takes."""
    if transports.look().enable_uring is None:
        pytest.skip("the fuse module is not loaded")
    rows = {one.name.removeprefix("transport="): one.ok for one in doctor.transport_rows(Path("/"))}
    found = transports.probe()
    assert rows == {kind: found[kind] is None or None for kind in ("uring", "dev")}


@pytest.mark.parametrize(
    ("enabled", "huge", "ok"),
    [("[never]", "", None), ("[never]", ",huge=always", True), ("always [deny]", ",huge=always", None),
     ("[force]", "", True), (None, ",huge=always", None)],
)
def test_tmpfs_huge(tmp_path, enabled, huge, ok):
    write(tmp_path, "proc/self/mountinfo", MOUNTINFO.format(huge=huge, fs="ext4", dax=""))
    if enabled:
        write(tmp_path, "sys/kernel/mm/transparent_hugepage/shmem_enabled", enabled)
    assert doctor.tmpfs_huge(tmp_path).ok is ok


@pytest.mark.parametrize(
    ("fs", "dax", "ok"),
    [("ext4", ",dax", True), ("xfs", ",dax=always", True), ("xfs", ",dax=inode", True), ("ext4", "", None),
     ("xfs", ",dax=never", None), ("btrfs", ",dax", None)],
)
def test_fsdax_mounts(tmp_path, fs, dax, ok):
    write(tmp_path, "proc/self/mountinfo", MOUNTINFO.format(huge="", fs=fs, dax=dax))
    found = doctor.map_sync(tmp_path)
    assert found.ok is ok and ("/pmem" in found.value) is (ok is True)


def test_direct_mappings_say_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(transports, "_native", lambda: ("uring", "dev"))
    write(tmp_path, "proc/sys/kernel/osrelease", "6.8.0")
    write(tmp_path, "proc/self/mountinfo", "")
    found = doctor.direct(tmp_path)
    assert found.ok is None and all(word in found.todo for word in ("6.9", "transport", "pool directory"))
    write(tmp_path, "proc/sys/kernel/osrelease", "6.9.0")
    write(tmp_path, "dev/fuse")
    write(tmp_path, "proc/self/mountinfo", MOUNTINFO.format(huge="", fs="ext4", dax=""))
    assert doctor.direct(tmp_path).todo == "mount as root"
    write(tmp_path, "proc/self/status", ADMIN)
    found = doctor.direct(tmp_path)
    assert found.ok is True and "chattr +x" in found.value


def test_pool_directories_the_best_first(tmp_path):
    write(tmp_path, "proc/self/mountinfo", MOUNTINFO.format(huge="", fs="btrfs", dax=""))
    found = doctor.pools(tmp_path)
    assert found.value == "/dev/shm (tmpfs, pages of 4 KiB), / (ext4, disk)" and "within_size" in found.todo
    write(tmp_path, "proc/self/mountinfo", MOUNTINFO.format(huge=",huge=always", fs="xfs", dax=",dax=inode"))
    found = doctor.pools(tmp_path)
    assert found.value.startswith("/pmem (xfs, dax=inode), /dev/shm (tmpfs, huge=always), /")
    assert not found.todo
    write(tmp_path, "proc/self/mountinfo", "20 1 0:20 / / rw - overlay overlay rw\n"
          "21 20 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n")
    assert doctor.pools(tmp_path).ok is None


def test_fault_records(tmp_path):
    assert doctor.fault_records(tmp_path).ok is None
    for text, there in (("1", True), ("2", None), ("3", None), ("-1", True)):
        write(tmp_path, "proc/sys/kernel/perf_event_paranoid", f"{text}\n")
        found = doctor.fault_records(tmp_path)
        assert found.ok is there and bool(found.todo) == (there is None)
    write(tmp_path, "proc/self/status", f"CapEff:\t{1 << doctor.CAP_SYS_ADMIN:016x}\n")
    assert doctor.fault_records(tmp_path).ok is True


def test_leases(tmp_path):
    assert doctor.leases(tmp_path).ok is None
    write(tmp_path, "proc/sys/fs/leases-enable", "0\n")
    assert "sysctl" in doctor.leases(tmp_path).todo
    write(tmp_path, "proc/sys/fs/leases-enable", "1\n")
    assert doctor.leases(tmp_path).ok is True


def test_devices(tmp_path):
    assert doctor.pmem(tmp_path).ok is None
    write(tmp_path, "sys/block/pmem0/size")
    write(tmp_path, "sys/bus/dax/devices/dax0.0/size")
    assert doctor.pmem(tmp_path).value == "/dev/pmem0, /dev/dax0.0"


def test_fuse_conf_and_capabilities(tmp_path):
    assert doctor.allow_other(tmp_path).ok is None
    write(tmp_path, "etc/fuse.conf", "#user_allow_other\n")
    assert doctor.allow_other(tmp_path).ok is None
    write(tmp_path, "etc/fuse.conf", "mount_max = 9\nuser_allow_other\n")
    assert doctor.allow_other(tmp_path).ok is True
    write(tmp_path, "proc/self/status", "CapEff:\t0000000000200000\n")
    assert doctor.admin(tmp_path).ok is True
    write(tmp_path, "proc/self/status", "CapEff:\t00000000000fffff\n")
    assert doctor.admin(tmp_path).ok is None


def test_cpu_names_what_the_kernels_are(tmp_path, monkeypatch):
    assert all(kind in doctor.cpu(tmp_path).value for kind in _flush.available()["nt"])
    monkeypatch.setattr(_flush, "available", lambda: {"flush": ["none", "msync"], "nt": ["generic"]})
    assert doctor.cpu(tmp_path).ok is None and doctor.cpu(tmp_path).todo
    monkeypatch.setattr(_flush, "available", lambda: {"flush": ["clflush", "none"], "nt": ["generic"]})
    assert doctor.cpu(tmp_path).ok is None


def test_missing_tools(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "find_tool", lambda name: None)
    assert [(one.ok, bool(one.todo)) for one in doctor.tools(tmp_path)] == [(None, True)] * 3


def test_command_in_json_and_in_80_columns():
    done = mounts.run([mounts.command("daxfs"), "doctor", "--json"], check=False)
    facts = json.loads(done.stdout)
    assert done.returncode == (0 if facts["works"] else 1)
    assert {"name", "ok", "value", "why", "todo"} == set(facts["findings"][0])
    text = mounts.run([mounts.command("daxfs"), "doctor"], check=False).stdout
    assert max(len(line) for line in text.splitlines()) <= 80 and "…" not in text


@pytest.mark.mount
def test_quickstart_and_undo(tmp_path):
    env = {**os.environ, "DAXFS_QUICKSTART": str(tmp_path / "home")}
    where = tmp_path / f"{mounts.PREFIX}quick"

    def quick(*args, status=0):
        done = mounts.run([mounts.command("daxfs"), "quickstart", *args], check=False, env=env)
        assert done.returncode == status and "Traceback" not in done.stderr, done.stdout + done.stderr
        return done.stdout + done.stderr

    try:
        text = quick("-s", "64M", where)
        assert "mkfs.daxfs" in text and "--undo" in text and "not power-fail safe" in text
        assert (where / "hello").read_text() == "hello, daxfs\n"
        assert "there already" in quick(where)
        mounts.umount(where)
        assert "--undo" in quick(where, status=1)
    finally:
        quick("--undo")
    assert not where.exists() and not (tmp_path / "home").exists() and mounts.mounts_of(where) == []
    assert "nothing to undo" in quick("--undo")


@pytest.mark.parametrize(("user", "tmpfs", "sudo"), [("dev", True, True), ("root", True, False),
                                                     (None, True, False), ("dev", False, False)])
def test_quickstart_says_sudo_where_it_is_needed(monkeypatch, capsys, user, tmpfs, sudo):
    if user:
        monkeypatch.setenv("SUDO_USER", user)
    else:
        monkeypatch.delenv("SUDO_USER", raising=False)
    quickstart.what_next({"directory": "/mnt", "tmpfs": tmpfs})
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines and all(line.startswith("  sudo ") is sudo for line in lines)


@pytest.mark.mount
def test_quickstart_that_fails_leaves_nothing(tmp_path):
    env = {**os.environ, "DAXFS_QUICKSTART": str(tmp_path / "home")}
    done = mounts.run([mounts.command("daxfs"), "quickstart", "-s", "1M"], check=False, env=env)
    assert done.returncode == 1 and "8388608" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_fio_summary_takes_anything():
    job = {"iops": 1234.5, "clat_ns": {"mean": 90_000}}
    lines = quickstart.fio_summary("note\n" + json.dumps({"jobs": [{"read": job, "write": job}]}))
    assert lines == ["read: 1234/s, each 90.0 µs", "write: 1234/s, each 90.0 µs"]
    assert quickstart.fio_summary("nothing") == quickstart.fio_summary("{}") == []
