# SPDX-License-Identifier: MIT
"""Phases of fsync as `daxfs stat` and `daxfs trace` show them, by each transport (docs/fsync.md)."""

import json
import os
import re
import signal
import subprocess
import time

import mounts
import pytest

from daxfs._fsync import PHASES
from daxfs.cli import stat_tables

pytestmark = [pytest.mark.mount, pytest.mark.transports]
ROUNDS = 50


def checked(found: dict) -> dict:
    """The part "fsync" of `daxfs stat --json`, whose phases add up."""
    assert list(found["phases"]) == list(PHASES) and 0 <= found["served"] <= found["count"]
    for one in (found["total"], *found["phases"].values()):
        assert set(one) == {"total_ns", "p50_ns", "p99_ns", "histogram"}
        assert sum(one["histogram"]) == found["count"]
    assert sum(one["total_ns"] for one in found["phases"].values()) == found["total"]["total_ns"]
    return found


@pytest.fixture
def region(mount_factory):
    return mount_factory(options="write=cached")


def synced(region, rounds: int) -> dict:
    """What so many fsyncs of a dirty page took, by phases."""
    with open(region.path / "file", "w+b", buffering=0) as file:
        file.write(bytes(mounts.MIB))
        os.fsync(file.fileno())
        before = checked(region.stat()["fsync"])
        for n in range(rounds):
            os.pwrite(file.fileno(), b"x" * 4096, n * 4096)
            os.fsync(file.fileno())
        after = checked(region.stat()["fsync"])
    assert after["count"] == before["count"] + rounds
    native = region.stat()["transport"]["kind"] != "pyfuse3"
    assert after["served"] - before["served"] == (rounds if native else 0)
    return {name: one["total_ns"] - before["phases"][name]["total_ns"]
            for name, one in after["phases"].items()}


def test_stat_shows_a_daemon_that_has_no_phases(region):
    """One that was started before an upgrade."""
    facts = region.stat()
    del facts["fsync"]
    console = stat_tables.console()
    with console.capture() as shown:
        console.print(stat_tables.render(facts))
    assert "of the time" not in shown.get() and "operation" in shown.get()


def test_stat_has_the_phases(region, transport):
    assert checked(region.stat()["fsync"])["count"] == 0
    seen = synced(region, ROUNDS)
    assert seen["walk"] and seen["flush"] and seen["drain"] and not seen["look"]
    assert bool(seen["python"]) == (transport == "pyfuse3") == (not seen["reply"])
    shown = mounts.run([mounts.command("daxfs"), "stat", region.path]).stdout
    assert re.search(r"fsync +of the time +mean +p50 ≤ +p99 ≤ +total\n─+\n(walk|lock) ", shown), shown
    last = rf"\nall of it +100\.0 %.*\n{ROUNDS + 1} fsyncs, \d+ of them served natively"
    assert re.search(last, shown), shown
    assert "\nlook " not in shown and max(map(len, shown.splitlines())) <= 80


def traced(region, output, *args) -> list[str]:
    """Lines of `daxfs trace -e fsync`, each of an fsync of a file on *region*."""
    command = [mounts.command("daxfs"), "trace", "-e", "fsync", *args, region.path]
    with open(output, "wb") as out, subprocess.Popen(command, stdout=out) as process:
        try:
            with open(region.path / "file", "wb", buffering=0) as file:
                until = time.monotonic() + 30
                # When it begins to watch is not known: asked for until it has told of some.
                while len(output.read_text().splitlines()) < 3:
                    assert time.monotonic() < until and process.poll() is None
                    file.write(bytes(4096))
                    os.fsync(file.fileno())
                    time.sleep(0.02)
        finally:
            process.send_signal(signal.SIGINT)
    return output.read_text().splitlines()


def test_trace_tells_of_each(region, transport, tmp_path):
    how = "" if transport == "pyfuse3" else "served"
    texts = traced(region, tmp_path / "text")
    ino = os.stat(region.path / "file").st_ino
    for line in texts:  # one that has the journal to settle drains as a part of that
        assert f"fsync_done: ino {ino:#x} " in line and re.search("(drain|meta) ", line), line
    for event in map(json.loads, traced(region, tmp_path / "json", "--json")):
        assert (event["kind"], event["op"], event["ino"]) == ("fsync", "fsync_done", ino)
        assert list(event["args"]) == list(PHASES) and sum(event["args"].values()) == event["latency_ns"]
        assert event["how"] in (how, "called") and event["error"] is None
