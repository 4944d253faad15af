# SPDX-License-Identifier: MIT
"""Crash images of a recorded mount: no promise is broken, and a broken one is seen."""

import dataclasses
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import mounts
import pytest
from crash.engine import Engine
from crash.recorded import Player

from daxfs._record import Recorder
from daxfs.errors import FormatError
from daxfs.region import Region, create_file
from daxfs.testing import log

pytestmark = pytest.mark.mount
MIB = 1 << 20
SWEEP = Path(__file__).resolve().parents[2] / "tools" / "crash_sweep.py"


def work(path):
    """Names, links, appends, writes over, truncation, with and without fsync."""
    (path / "d").mkdir()
    for n in range(4):
        (path / "d" / f"f{n}").write_bytes(bytes([n + 1]) * (3000 * n + 5))
    with open(path / "file", "w+b", buffering=0) as file:
        file.write(b"a" * 9000)
        os.fsync(file.fileno())
        os.pwrite(file.fileno(), b"b" * 5000, 2000)
        os.fdatasync(file.fileno())
        os.pwrite(file.fileno(), b"c" * 100, 8950)
    os.rename(path / "file", path / "d" / "f1")
    os.link(path / "d" / "f2", path / "hard")
    os.symlink("target", path / "soft")
    os.truncate(path / "hard", 100)
    os.setxattr(path / "hard", "user.x", b"value")
    os.unlink(path / "d" / "f3")
    shutil.rmtree(path / "d")


@pytest.fixture(params=["", "write=cached,drain=fsync", "granularity=page,flush=msync"])
def recording(request):
    """The path of a recording of `work` on a mount with these options."""
    path = f"/dev/shm/{mounts.PREFIX}recorded"
    options = ",".join(filter(None, (request.param, f"record={path}")))
    try:
        with mounts.MountedRegion(16 * MIB, options=options) as region:
            region.mount()
            work(region.path)
            region.umount()
        yield path
    finally:
        if os.path.exists(path):
            os.unlink(path)


def test_images_of_a_recorded_mount_keep_the_promises(recording):
    with Engine(limit=3) as engine:
        outcome = engine.run_log(recording, 0, 2)
    assert not outcome.violations, outcome.violations[0]
    assert outcome.images > 60 and len(outcome.ops) > 3


def complaints(recording) -> list[str]:
    """What images of its operations complain about; the first twenty."""
    out = []
    with Player(recording, 6, random.Random(1)) as player:
        for op, _, found, _ in player.play(player.choose(0, 2)):
            out += [f"{op.name}: {text}" for text in found]
            if len(out) > 20:
                break
    return out


@pytest.mark.parametrize("recording", [""], indirect=True)
def test_a_recording_of_broken_promises_is_seen(recording):
    """The same mount, if its drains, the flushes of its stores in place, or its records were not there."""
    whole = log.load(recording)
    (start, end), = [(start, end) for name, start, end in whole.header["areas"] if name == "journal"]
    broken = {
        "drains": lambda e: e.kind == log.DRAIN,
        "flushes": lambda e: e.kind == log.FLUSH,
        "records": lambda e: e.kind == log.NT_STORE and start < e.place < end,
    }
    for what, gone in broken.items():
        events = [event for event in whole.events if not gone(event)]
        assert complaints(dataclasses.replace(whole, events=events)), what


@pytest.mark.parametrize("recording", [""], indirect=True)
def test_recordings_that_can_not_be_judged(recording):
    whole = log.load(recording)
    begin = next(event for event in whole.events if event.kind == log.BEGIN)
    with pytest.raises(FormatError, match="overlap"):
        Player(dataclasses.replace(whole, events=[begin, begin]), 1, random.Random(1))
    strange = begin._replace(data=b"push 3")
    end = next(event for event in whole.events if event.kind == log.END)
    with pytest.raises(FormatError, match="not those of a mount"):
        Player(dataclasses.replace(whole, events=[strange, end]), 1, random.Random(1))
    whole.header["region"]["sources"] *= 2
    with pytest.raises(FormatError, match="several sources"):
        Player(whole, 1, random.Random(1))


def test_a_file_that_can_not_be_judged_ends_the_sweep_at_once(tmp_path):
    """One line on stderr and status 2; a recording in which nothing is stored is no success either."""
    source, empty, other = (str(tmp_path / name) for name in ("region", "empty", "other"))
    create_file(source, 16 * MIB)
    with Region.open([source]) as region, Recorder(region, empty):
        pass
    (tmp_path / "other").write_bytes(b"no recording")
    none = str(tmp_path / "none")
    for path, why in ((empty, "no operation"), (other, "not a recording"), (none, "No such")):
        words = ["--log", path, "--out", str(tmp_path / "out")]
        done = subprocess.run([sys.executable, "-P", str(SWEEP), *words], text=True, capture_output=True,
                              check=False)
        assert done.returncode == 2 and not done.stdout, done.stdout
        assert why in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
