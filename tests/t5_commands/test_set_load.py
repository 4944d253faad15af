# SPDX-License-Identifier: MIT
"""The policy of track= changes all the time under writers and mappings; then the daemon is killed, or what it
did is judged by power failures. What fsync promised is there."""

import dataclasses
import os
import random
import struct
import threading
import time

import mounts
import numpy as np
import pytest
from crash.recorded import operations

from daxfs.client import map_file, why_no_user_faults
from daxfs.data._tracker import POLICIES
from daxfs.fuse import control
from daxfs.meta import fs as meta_fs
from daxfs.meta import namespace
from daxfs.region import Region
from daxfs.testing import Media, log

pytestmark = [pytest.mark.mount, pytest.mark.slow]
MIB = 1 << 20
SLOTS, STRIDE = 64, 5003 & -8  # 8 bytes each, some of them in one page of the next ones
SIZE = SLOTS * STRIDE + 8


class Writer(threading.Thread):
    """Stores growing numbers into 64 places of a file. ``synced``: those that were there at an fsync."""

    def __init__(self, path, number: int, fault: str = ""):
        super().__init__(daemon=True)
        self.path, self.rng, self.fault = path, random.Random(number), fault
        self.last, self.synced, self.error = [0] * SLOTS, [0] * SLOTS, None
        self.stopped = threading.Event()
        self.count = self.syncs = 0
        path.write_bytes(bytes(SIZE))
        self.fd = os.open(path, os.O_RDWR)
        self.array = map_file(path, "r+", fault=fault, require=True, pte=fault == "user") if fault else None

    def run(self):
        try:
            while not self.stopped.is_set():
                for _ in range(self.rng.randint(1, 30)):
                    self.store(self.rng.randrange(SLOTS))
                self.sync()
                if self.rng.random() < 0.1 and not self.fault:  # a last close
                    os.close(self.fd)
                    self.fd = os.open(self.path, os.O_RDWR)
        except OSError as error:
            self.error = error

    def store(self, slot: int):
        self.count += 1
        self.last[slot] = self.count  # before the store: it may be there from now on
        value = struct.pack("<Q", self.count)
        if self.array is not None and self.rng.random() < 0.8:
            self.array[slot * STRIDE : slot * STRIDE + 8] = memoryview(value)
        else:
            os.pwrite(self.fd, value, slot * STRIDE)

    def sync(self):
        now = list(self.last)
        if self.array is not None and self.rng.random() < 0.3:
            self.array.msync()
        os.fsync(self.fd)
        self.synced, self.syncs = now, self.syncs + 1

    def end(self):
        self.stopped.set()
        self.join()
        if self.array is not None:
            self.array.close()
        os.close(self.fd)
        assert self.error is None and self.syncs > 5, (self.error, self.syncs)

    def check(self, path):
        data = path.read_bytes()
        found = [struct.unpack_from("<Q", data, slot * STRIDE)[0] for slot in range(SLOTS)]
        rows = list(zip(self.synced, found, self.last, strict=True))
        assert all(low <= value <= high for low, value, high in rows), (path, rows)


def under_way(region, faults, seconds: float, policies):
    """Writers on *region*, after so many seconds of changes; how many those were."""
    own = region.path / "own"
    own.mkdir()
    mounts.set_dax(own)
    paths = [region.path / "one", region.path / "two", own / "three", *(own / fault for fault in faults)]
    writers = [Writer(path, number, fault) for number, (path, fault) in
               enumerate(zip(paths, ["", "", "", *faults], strict=True))]
    for writer in writers:
        writer.start()
    rng, until, turns = random.Random(7), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        policy = rng.choice([one for one in policies if one != region_track(region)])
        reply = control.ask_path(str(region.path), {"track": policy})
        assert reply["track"] == policy
        turns += 1
        time.sleep(rng.random() * 0.02)
    return writers, turns


def region_track(region) -> str:
    tracker = control.ask_path(str(region.path), {"get": "stat"})["tracker"]
    assert tracker["policy"] in POLICIES and tracker["dirty_bytes"] >= 0
    return tracker["policy"]


OPTIONS = ("", "emulate=pmem1-single,flushers=3", "lazytime,transport=dev", "write=nt,drain=fsync", "mapdev")


@pytest.mark.parametrize("options", OPTIONS)
def test_then_killed(options):
    """Also with state in the region, whose slots run out (line takes 64 times as many)."""
    faults = ["kernel"] + ([] if why_no_user_faults() else ["user"])
    how = {"mkfs": ("--map=dev",)} if options == "mapdev" else {}
    options = ",".join(one for one in ("write=cached" * ("write" not in options), options) if one != "mapdev")
    with mounts.MountedRegion(64 * MIB, kind="pool", options=options.strip(","), **how) as region:
        region.mount()
        writers, turns = under_way(region, faults, 4, POLICIES)
        for writer in writers:
            writer.stopped.set()
        for writer in writers:
            writer.end()
        assert turns > 20
        region.kill()
        region.mount()
        for writer in writers:
            writer.check(region.path / os.path.relpath(writer.path, region.path))
        region.umount()
        assert region.fsck("-n").returncode == 0


@pytest.mark.parametrize("options", ["write=cached", "write=cached,emulate=pmem2"])
def test_by_power_failures(options):
    """Of a recorded mount: all policies but none, which promises nothing."""
    path = f"/dev/shm/{mounts.PREFIX}switched"
    policies = [name for name in POLICIES if name != "none"]
    try:
        with mounts.MountedRegion(16 * MIB, kind="pool", options=f"{options},record={path}") as region:
            region.mount()
            writers, turns = under_way(region, [], 1.0, policies)
            for writer in writers:
                writer.stopped.set()
            for writer in writers:
                writer.end()
            assert turns > 5
            names = {f"/{name}": (region.path / name).stat().st_ino for name in ("one", "two")}
            region.umount()
            pages = {ino: pages_of(region, name) for name, ino in names.items()}
        whole = log.load(path)
        assert judged(whole, pages) > 20
        lame = [event for event in whole.events if event.kind != log.FLUSH or event.place < 2 * MIB]
        with pytest.raises(AssertionError, match="not durable"):
            judged(dataclasses.replace(whole, events=lame), pages)
    finally:
        if os.path.exists(path):
            os.unlink(path)


def pages_of(region, name: str) -> np.ndarray:
    """The pages of the region in which a packed file stands; they stay as long as it is written over."""
    with Region.open([f"{region.source}/"], "cow") as opened:
        fs = meta_fs.mount(opened, readonly=True)
        node = fs.open(namespace.lookup(fs, 1, name[1:].encode()).ino)
        return np.concatenate([np.arange(pfn, pfn + n) for _, n, pfn, _, _ in node.map.extents()])


def judged(recording, pages) -> int:
    """How many fsyncs there were; at the return of each, all that its file holds is surely on the media."""
    media, now, syncs = Media(recording.image.copy(), "cache_line"), recording.image.copy(), 0
    ends = {operation.last - 1: operation for operation in operations(recording)}
    for number, event in enumerate(recording.events):  # also those of switches, which are no operations
        if event.place < len(now):
            media.apply(event)
            if event.kind in (log.STORE, log.NT_STORE, log.NT_FILL):
                now[event.place : event.place + event.length] = np.frombuffer(event.data, np.uint8)
        operation = ends.get(number)
        if operation and operation.name == "fsync" and operation.begin["ino"] in pages:
            syncs += 1
            mine = pages[operation.begin["ino"]]
            sure, due = (image.reshape(-1, 4096)[mine] for image in (media.sure, now))
            assert np.array_equal(sure, due), f"fsync {syncs}, of inode {operation.begin['ino']}: not durable"
    return syncs
