# SPDX-License-Identifier: MIT
"""mount -o emulate=: what it costs, that nothing else changes, where it is told, and what is refused."""

import json
import mmap
import os
import time

import mounts
import pytest
from test_mount import mount

from daxfs import emulate
from daxfs._flush import FLUSH_KINDS
from daxfs.client import map_file, why_no_user_faults
from daxfs.testing import log

pytestmark = pytest.mark.mount

KIB = 1 << 10
# Slow enough for FUSE to be small beside it: 64 KiB are 1024 lines.
SLOW = ("name = 'tape'\nwords = 'something slow'\nflush_line_ns = 2000\nflush_drain_ns = 100000\n"
        "nt_line_ns = 1500\nnt_drain_ns = 50000\n")  # fmt: skip
LINES = 64 * KIB // 64


@pytest.fixture
def tape(tmp_path):
    path = tmp_path / "tape.toml"
    path.write_text(SLOW)
    return str(path)


def daxfs(*args):
    return mounts.run([mounts.command("daxfs"), *args]).stdout


def took(call, *args):
    start = time.monotonic_ns()
    call(*args)
    return time.monotonic_ns() - start


def fsyncs(path, rounds=5):
    """ns of each fsync of 64 KiB that were just written."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, bytes(64 * KIB), 0)
        os.fsync(fd)
        out = []
        for n in range(rounds):
            os.pwrite(fd, bytes([n]) * 64 * KIB, 0)
            out.append(took(os.fsync, fd))
        return out
    finally:
        os.close(fd)


def writes(path, rounds=5):
    """ns of each write of 64 KiB in place."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, bytes(64 * KIB), 0)
        return [took(os.pwrite, fd, bytes([n]) * 64 * KIB, 0) for n in range(rounds)]
    finally:
        os.close(fd)


@pytest.mark.parametrize("transport", [None, "dev", "pyfuse3"])
def test_fsync_and_write_take_what_the_medium_takes(region_factory, tape, transport):
    options = f"write=cached{f',transport={transport}' if transport else ''}"
    region = region_factory()
    region.mount(options)
    assert min(fsyncs(region.path / "file")) < LINES * 2000  # DRAM: nowhere near
    region.remount(f"{options},emulate={tape}")
    assert min(fsyncs(region.path / "file")) >= LINES * 2000 + 100000
    region.remount(f"write=nt,drain=write,emulate={tape}")
    assert min(writes(region.path / "file")) >= LINES * 1500 + 50000
    assert (region.path / "file").read_bytes() == b"\x04" * 64 * KIB
    region.remount("")
    assert (region.path / "file").read_bytes() == b"\x04" * 64 * KIB
    region.umount()
    region.fsck()


@pytest.mark.parametrize("name", list(emulate.known()))
def test_each_medium_can_be_had_and_changes_no_byte(region_factory, name):
    data = os.urandom(300 * KIB + 17)
    region = region_factory()
    region.mount(f"emulate={name}")
    (region.path / "dir").mkdir()
    (region.path / "dir" / "file").write_bytes(data)
    with open(region.path / "dir" / "file", "r+b") as file:
        os.fsync(file.fileno())
    shown = region.stat()
    assert f"emulate={name}" in shown["options"].split(",")
    assert shown["emulation"]["profile"] == name and shown["emulation"]["source"]
    assert shown["emulation"]["lines"] > 300 * KIB / 64 and shown["emulation"]["drains"] > 0
    region.kill()  # what was fsynced is durable, emulated or not
    region.mount("")
    assert (region.path / "dir" / "file").read_bytes() == data
    assert region.stat()["emulation"] is None
    region.umount()
    region.fsck()


def test_it_is_told_everywhere(region_factory, tape):
    region = region_factory()
    region.options = f"emulate={tape}"
    said = mount("-v", region.source, region.path, "-o", f"emulate={tape},log_file={region.log_file}")
    region.adopt()
    assert f"emulate={tape}" in said
    assert "emulating tape: something slow" in region.log_file.read_text()
    shown = region.stat()["emulation"]
    assert (shown["profile"], shown["words"], shown["path"]) == ("tape", "something slow", tape)
    assert shown["nt_line_ns"] == 1500 and shown["clock"] in ("tsc", "monotonic")
    checks = {one["what"]: one for one in shown["check"]}
    assert checks["flush 4 KiB"]["asked_ns"] == 64 * 2000 + 100000
    for one in checks.values():
        assert one["asked_ns"] * 0.99 <= one["shortest_ns"] <= one["median_ns"]
    for text in (daxfs("stat", region.path), daxfs("info", region.path), daxfs("info", region.source)):
        assert "emulating" in text and "tape: something slow" in text and "self-check" in text
        assert max(map(len, text.splitlines())) <= 80
    assert json.loads(daxfs("info", "--json", region.source))["emulation"]["profile"] == "tape"
    region.umount()
    for text in (daxfs("info", region.source),):
        assert "emulating" not in text


def test_without_it_nothing_is_told(mount_factory):
    region = mount_factory(options="emulate=none")
    assert region.stat()["emulation"] is None and "emulate" not in region.stat()["options"]
    assert "emulating" not in daxfs("stat", region.path) + daxfs("info", region.source)


def test_a_remount_leaves_it_alone(mount_factory, tape):
    region = mount_factory(options=f"emulate={tape}")
    for other in ("cxl", "none"):
        text = mount("none", region.path, "-o", f"remount,emulate={other}", status=1)
        assert f"emulate= can't be changed by a remount, it is {tape}" in text
    mount("none", region.path, "-o", f"remount,ro,emulate={tape}")  # as mount(8) says it with fstab
    assert region.stat()["readonly"] and region.stat()["emulation"]["profile"] == "tape"


def test_refusals_leave_the_source_free(region_factory, tmp_path, tape):
    region = region_factory()
    bad = tmp_path / "bad.toml"
    bad.write_text(SLOW.replace("2000", "-2000"))
    for option, word in (("emulate=optane", "none, dram, pmem1, pmem1-single, pmem2, cxl"),
                         ("emulate=", "needs the name of a medium"), ("emulate", "needs a value"),
                         (f"emulate={bad}", "flush_line_ns = -2000"), ("emulate=/no/such", "No such file"),
                         (f"emulate={tape},flush=msync", "can't be had with flush kind 'msync'"),
                         (f"emulate={tape},granularity=page", "can't be had with flush kind 'msync'")):
        assert word in mount(region.source, region.path, "-o", option, status=1)
        assert mounts.mounts_of(region.path) == []
    region.mount("")  # nothing has kept the source


def test_with_flush_on_power_failure_only_what_goes_past_the_cache_costs(mount_factory, tape):
    region = mount_factory(options=f"emulate={tape},granularity=byte,write=cached")
    fsyncs(region.path / "file")  # new blocks are always written past the cache
    before = region.stat()["emulation"]["lines"]
    fsyncs(region.path / "file")
    assert region.stat()["emulation"]["lines"] - before < LINES  # metadata; 6 times as many were written
    assert {one["what"].split()[0] for one in region.stat()["emulation"]["check"]} == {"nt"}


def test_with_a_recording(mount_factory, tape):
    path = f"/dev/shm/{mounts.PREFIX}emulated"
    try:
        region = mount_factory(options=f"emulate={tape},record={path},write=cached")
        assert min(fsyncs(region.path / "file")) >= LINES * 2000 + 100000
        region.umount()
        found = log.load(path)
        assert sum(event.length for event in found.events if event.kind == log.FLUSH) >= 5 * 64 * KIB
        assert f"emulate={tape}" in found.header["options"]
    finally:
        os.unlink(path)


def test_write_back_of_a_direct_mapping_costs_what_the_medium_costs(mount_factory, tape):
    region = mount_factory(pool="always", size=64 * mounts.MIB, options=f"emulate={tape}")
    if region.stat()["direct"]["why_not"]:
        pytest.skip(region.stat()["direct"]["why_not"])
    path = region.path / "file"
    path.write_bytes(bytes(64 * KIB))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 64 * KIB) as memory:
        memory[:] = b"x" * 64 * KIB
        before = region.stat()["emulation"]["lines"]
        assert took(os.fsync, file.fileno()) >= LINES * 2000
        assert region.stat()["emulation"]["lines"] - before >= LINES


@pytest.mark.parametrize("fault", ["kernel", "user"])
def test_write_back_that_a_program_makes_itself_costs_that_too(mount_factory, tape, tmp_path, fault):
    """msync, persist, flush and drain of observed mappings; those of another mount have its price."""
    if fault == "user" and why_no_user_faults():
        pytest.skip(why_no_user_faults())
    fast = tmp_path / "fast.toml"
    fast.write_text(SLOW.replace("2000", "200").replace("100000", "10000"))
    arrays = {}
    for name in (tape, str(fast), "none"):
        region = mount_factory(pool="always", size=64 * mounts.MIB, options=f"emulate={name}")
        if region.stat()["direct"]["why_not"]:
            pytest.skip(region.stat()["direct"]["why_not"])
        (region.path / "file").write_bytes(bytes(64 * KIB))
        arrays[name] = map_file(region.path / "file", "r+", fault=fault, require=True)
    for name, line, drain in ((tape, 2000, 100_000), (str(fast), 200, 10_000), ("none", 0, 0)):
        array, times = arrays[name], []
        assert array.flush_kind in FLUSH_KINDS
        for n in range(5):
            array[:] = n
            assert took(array.msync) >= LINES * line + drain
            times.append(took(array.persist, slice(0, 4 * KIB)))
            took(array.flush, slice(0, 4 * KIB))
            times.append(took(array.flush, slice(4 * KIB, 8 * KIB)) + took(array.drain))
            assert times[-2] >= 64 * line + drain and times[-1] >= 64 * line + drain
        if name == "none":
            assert min(times) < 64 * 200 + 10_000, "not slowed"
        array.close()


def test_raw(region_factory, tape):
    region = region_factory()
    done = mounts.run([mounts.command("daxfs"), "raw", "-o", f"emulate={tape},log_file={region.log_file}",
                       region.source, region.path], check=False)
    assert done.returncode == 0, done.stderr
    region.adopt()
    assert region.stat()["emulation"]["profile"] == "tape"
    assert min(writes(region.path / "0")) >= LINES * 1500 + 50000
    region.umount()


def test_doctor_says_whether_it_can_be_had():
    found = json.loads(mounts.run([mounts.command("daxfs"), "doctor", "--json"], check=False).stdout)
    (one,) = [row for row in found["findings"] if row["name"] == "emulated media"]
    assert "pmem1" in one["value"] and "invariant TSC" in one["value"]
