# SPDX-License-Identifier: MIT
"""Crash images of a recorded mount: no promise is broken, and a broken one is seen."""

import dataclasses
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import load
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


def work_in_ranges(path):
    """Files in ranges of their own: there at the mount, new, appended to, cut, moved both ways, removed."""
    own = path / "own"
    with open(own / "there", "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"d" * 5000, 6000)
        os.truncate(file.fileno(), 3000)
        os.truncate(file.fileno(), 9000)
        os.fsync(file.fileno())
    for n in range(3):
        (own / f"new{n}").write_bytes(bytes([n + 1]) * (5000 * n + 5))
        with open(own / f"new{n}", "ab", buffering=0) as file:
            file.write(b"e" * 3000)
    load.set_dax(own / "new2", False)
    load.set_dax(path / "moves", True)
    assert (own / "new2").read_bytes()[-3000:] == b"e" * 3000
    assert (path / "moves").read_bytes() == b"f" * 9000
    os.rename(own / "new1", own / "there")
    os.unlink(own / "new0")


@pytest.fixture(params=["", "write=cached", "granularity=page,flush=msync", "pool"])
def recording(request):
    """The path of a recording of `work` on a mount with these options."""
    path = f"/dev/shm/{mounts.PREFIX}recorded"
    pool = request.param == "pool"
    options = ",".join(filter(None, ("" if pool else request.param, f"record={path}")))
    try:
        with mounts.MountedRegion(16 * MIB, kind="pool" if pool else "file", options=options) as region:
            if pool:
                region.mount("")
                (region.path / "own").mkdir()
                load.set_dax(region.path / "own", True)
                (region.path / "own" / "there").write_bytes(b"t" * 10000)
                (region.path / "moves").write_bytes(b"f" * 9000)
                region.umount()
            region.mount(options)
            if pool:
                work_in_ranges(region.path)
            else:
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


@pytest.mark.parametrize("recording", ["pool"], indirect=True)
def test_the_log_of_a_pool_directory_has_its_ranges(recording):
    """Those that were there with their bytes, and what happened to each since."""
    whole = log.load(recording)
    there = [event.data.decode() for event in whole.ranges if event.kind == log.RANGE]
    assert [text.split()[0] for text in there] == ["create", "size", "place"]
    (data,) = [event.data for event in whole.ranges if event.kind == log.IMAGE]
    assert data == (b"t" * 10000).ljust(12288, b"\0")
    told = [event.data.split()[0] for event in whole.events if event.kind == log.RANGE]
    assert told.count(b"create") == 4 and told.count(b"unlink") == 3
    assert {b"size", b"zero", b"place"} <= set(told)
    assert sum(event.kind == log.NT_STORE and event.place >= log.OWN for event in whole.events) >= 8
    gone = [event for event in whole.events if event.kind != log.DRAIN]
    assert complaints(dataclasses.replace(whole, events=gone))
    late = [event for event in whole.events if not event.data.startswith(b"size ")]
    with pytest.raises(FormatError, match="behind its end"):
        complaints(dataclasses.replace(whole, events=late))


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
