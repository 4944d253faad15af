# SPDX-License-Identifier: MIT
"""Commands that are forked (tests/warm.py) do what the started ones do, and their daemons are as theirs."""

import json
import os
import re
import resource
import signal
import subprocess
import time
from pathlib import Path

import mounts
import pytest
import warm

pytestmark = [pytest.mark.mount]
MIB = 1 << 20


@pytest.fixture
def starter():
    one = warm.Starter()
    yield one
    one.close()


def both(starter, *args, **kwargs) -> tuple:
    """(status, stdout, stderr) of a command, started and forked."""
    args = [mounts.command(args[0]), *args[1:]]
    assert starter.takes(args)
    found = [mounts.run(args, check=False, by=by, **kwargs) for by in (None, starter)]
    return tuple((done.returncode, done.stdout, done.stderr) for done in found)


@pytest.mark.parametrize("args, status", [
    (("mkfs.daxfs", "--version"), 0), (("mkfs.daxfs", "--help"), 0), (("mkfs.daxfs",), 1),
    (("mkfs.daxfs", "/dev/null"), 1), (("mount.daxfs", "--version"), 0),
    (("mount.daxfs", "/nothing", "/nowhere"), 32), (("mount.daxfs", "/nothing", "/tmp"), 32),
    (("mount.daxfs", "/nothing", "/tmp", "-o", "nonsense"), 1), (("fsck.daxfs", "/dev/null"), 8),
    (("fsck.daxfs", "relative"), 8)])
def test_same_status_and_words(starter, tmp_path, monkeypatch, args, status):
    monkeypatch.chdir(tmp_path)
    started, forked = both(starter, *args)
    assert started == forked and started[0] == status and any(started[1:])


def test_same_image(starter, tmp_path):
    """mkfs.daxfs, but for the times in it: what fsck.daxfs says of the same UUID and label."""
    said = []
    for by in (None, starter):
        path = tmp_path / "region"
        mounts.run([mounts.command("mkfs.daxfs"), "--force", "--size", "16M", "--label", "label", "--uuid",
                    "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0", path], by=by)
        done = both(starter, "fsck.daxfs", "-n", path)
        assert done[0] == done[1] and done[0][0] == 0
        info = json.loads(mounts.run([mounts.command("daxfs"), "info", "--json", path]).stdout)
        del info["created_ns"], info["parts"][0]["uuid"]
        said.append((done[0], info))
    assert said[0] == said[1]


def state(pid: int) -> dict:
    """What a process has of those that started it, and how many threads and descriptors of what kinds."""
    proc = Path(f"/proc/{pid}")
    wanted = ("Umask", "PPid", "Uid", "Gid", "Groups", "Threads", "SigIgn", "SigCgt", "SigBlk", "CapEff",
              "Cpus_allowed", "NoNewPrivs", "Seccomp")
    rows = [line.split(":", 1) for line in (proc / "status").read_text().splitlines()]
    found = {name: text.split() for name, text in rows if name in wanted}
    kinds = sorted(re.sub(r":.*|/daxfs-test-.*|\d+", "", os.readlink(fd)) for fd in (proc / "fd").iterdir())
    fields = (proc / "stat").read_text().rsplit(")", 1)[1].split()
    return {**found, "fds": kinds, "cwd": os.readlink(proc / "cwd"), "limits": (proc / "limits").read_text(),
            "cgroup": (proc / "cgroup").read_text(), "leads its session": fields[2] == fields[3] == str(pid),
            "terminal": fields[4], "nice": fields[16],
            "environment": {one for one in (proc / "environ").read_bytes().split(b"\0")
                            if not one.startswith(b"PYTEST_CURRENT_TEST=")}}


@pytest.mark.transports
def test_same_daemon(region_factory, transport, monkeypatch):
    """Its descriptors, signals, limits, session and threads (numpy's apart: a forked one has none)."""
    monkeypatch.setenv(warm.BLAS, "1")
    starter = warm.Starter()
    regions = []
    for by in (None, starter):
        monkeypatch.setattr(mounts, "starter", by)
        regions.append(region := region_factory().mount())
        (region.path / "file").write_bytes(b"content")
        region.settled()
        assert (b"warm.py" in Path(f"/proc/{region.pid}/cmdline").read_bytes()) == (by is not None)
    starter.close()
    deadline = time.monotonic() + 20  # what was asked last on the control socket may still be open
    while (seen := [state(region.pid) for region in regions])[0] != seen[1] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert seen[0] == seen[1]


def test_who_differs_starts_it(starter, monkeypatch):
    """What the process has as it was when the Starter was made, a caller's command must have as it is."""
    args = [mounts.command("mkfs.daxfs")]
    assert starter.takes(args) and not starter.takes(["umount"])
    with monkeypatch.context() as patch:
        patch.setenv("DAXFS_DEBUG", "1")
        assert not starter.takes(args)
    assert starter.takes(args)
    old = os.umask(0o057)
    try:
        assert not starter.takes(args)
    finally:
        os.umask(old)
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if soft else min(1, hard), hard))
    try:
        assert hard == 0 or not starter.takes(args)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    pid = os.fork()
    if pid == 0:
        os._exit(starter.takes(args))
    assert os.waitpid(pid, 0)[1] == 0 and starter.takes(args)


def test_time_out_kills_and_the_next_one_runs(starter, tmp_path):
    """A fifo that nobody writes: opened for ever."""
    os.mkfifo(tmp_path / "fifo")
    for by in (None, starter):
        begun = time.monotonic()
        with pytest.raises(mounts.CommandError, match="no end after 1 s"):
            mounts.run([mounts.command("mount.daxfs"), "-f", "/nothing", tmp_path, "-o",
                        f"log_file={tmp_path}/fifo"], timeout=1, by=by)
        assert time.monotonic() - begun < 60
    assert both(starter, "mkfs.daxfs", "--version")[1][0] == 0


def test_ends_with_its_maker(starter):
    both(starter, "mkfs.daxfs", "--version")
    process = starter._process
    starter.close()
    assert process.returncode == 0
    starter.close()


def test_no_threads_in_it(starter):
    """They would not be in its children."""
    both(starter, "mkfs.daxfs", "--version")
    assert len(os.listdir(f"/proc/{starter._process.pid}/task")) == 1


def test_control_c_is_for_the_asker(starter):
    both(starter, "mkfs.daxfs", "--version")
    starter._process.send_signal(signal.SIGINT)
    assert both(starter, "mkfs.daxfs", "--version")[1][0] == 0
    with pytest.raises(subprocess.TimeoutExpired):
        starter._process.wait(0.1)
