# SPDX-License-Identifier: MIT
"""The order of what native answers store, from recordings; and what a power failure leaves of them."""

import os
import struct

import pytest
import rawmsg as R
from crashes import Crashes
from datakit import PAGE, calls, content, noise, reopen
from servekit import File, Served
from test_order import IN_PLACE, POLICIES, Places, holds, place_of
from test_serve_answers import spare

from daxfs._record import Recorder
from daxfs.data._serve import DIRECT, DIRECTORY, DSYNC, WRITE
from daxfs.meta import attr
from daxfs.meta.inode import PLACE_OF

SIZE, ATIME, MTIME = (PLACE_OF[name] for name in ("size", "atime", "mtime"))
DONE = ("done", 0)


def prepared(kit, write="nt", drain="write", size=6000, pages=4, flags=WRITE | DIRECT):
    """A settled file of that many bytes in written blocks for more, and where its inode is."""
    served = Served(kit.io(write, drain))
    f = served.open(size=pages * PAGE, flags=flags)
    spare(served, f.node, size)
    return served, f, served.fs.inodes.place(f.ino)


@pytest.mark.parametrize("write, drain, stored", [
    ("nt", "write", [("nt_store", 50, 5000), ("drain", None, 0)]), ("nt", "fsync", [("nt_store", 50, 5000)]),
    ("cached", "write", [("store", 50, 5000)]), ("cached", "fsync", [("store", 50, 5000)]),
])  # fmt: skip
def test_overwrite(kit, write, drain, stored):
    served, f, inode = prepared(kit, write, drain)
    data = place_of(f.node, 0)
    with Recorder(served.fs.region, sites=False) as table:
        assert f.write(50, noise(5000))[:2] == DONE
        log = calls(table)
    want = [(what, 0 if at is None else data + at, size) for what, at, size in stored]
    assert log == [*want, ("store", inode + MTIME, 16), ("flush", inode + MTIME, 16)]


@pytest.mark.parametrize("write, drain", POLICIES)
def test_append(kit, write, drain):
    """Data, drain; times and size in one line, drain. What lies inside the old size follows the policy.

    Where it enters new pages, the rest of the last one is zeroed before that drain.
    """
    served, f, inode = prepared(kit, write, drain)
    data = place_of(f.node, 0)
    with Recorder(served.fs.region, sites=False) as table:
        assert f.write(5900, noise(300))[:2] == DONE
        log = calls(table)
        assert log == [
            ("nt_store" if write == "nt" else "store", data + 5900, 100),
            ("nt_store", data + 6000, 200),
            ("drain", 0, 0),
            ("store", inode + MTIME, 16), ("store", inode + SIZE, 8), ("flush", inode, 64),
            ("drain", 0, 0),
        ]  # fmt: skip
        assert f.write(6200, noise(2 * PAGE))[:2] == DONE
        shape = Places(served.fs).shape(calls(table))
        assert shape == ["data nt_store", "data nt_fill", "drain", *IN_PLACE, "drain"]


# How a write says that it wants to be durable: by its descriptor, or by itself (RWF_DSYNC, RWF_SYNC).
ASKS = {"descriptor": (DSYNC, 0), "RWF_DSYNC": (0, os.O_DSYNC), "RWF_SYNC": (0, os.O_SYNC)}
asking = pytest.mark.parametrize("known, opened", ASKS.values(), ids=ASKS)


@asking
@pytest.mark.parametrize("write, drain", POLICIES)
def test_dsync(kit, write, drain, known, opened):
    """One drain more than the data need at most, and it comes after the times."""
    served, f, _ = prepared(kit, write, drain, flags=WRITE | DIRECT | known)
    where = Places(served.fs)
    with Recorder(served.fs.region, sites=False) as table:
        for pos, want in (
            (50, {"nt": ["data nt_store", *IN_PLACE, "drain"],
                  "cached": ["data store", *IN_PLACE, "data flush", "drain"]}),
            (5999, {"nt": ["data nt_store", "drain", *IN_PLACE, "drain"],
                    "cached": ["data store", "data nt_store", "drain", *IN_PLACE, "data flush", "drain"]}),
        ):  # fmt: skip
            assert f.write(pos, noise(100), opened=opened)[:2] == DONE
            assert where.shape(calls(table)) == want[write]
            assert f.node.map.dirty.count == 0


@pytest.mark.parametrize("flags, how", [(WRITE, 0), (WRITE | DIRECT, R.WRITE_CACHE)],
                         ids=["cache", "mapping"])
def test_after_writes_of_the_page_cache_the_kernel_sends_fsync(kit, flags, how):
    """So a flag of the descriptor costs nothing there."""
    _, f, _ = prepared(kit, "cached", flags=flags)
    assert f.write(0, noise(100), how, os.O_DSYNC)[:2] == DONE
    assert f.node.map.dirty.count == 1


@pytest.mark.parametrize("write, drain", POLICIES)
def test_fsync(kit, write, drain):
    served, f, inode = prepared(kit, write, drain)
    where = Places(served.fs)
    f.write(0, noise(100))
    f.write(PAGE, noise(100))
    with Recorder(served.fs.region, sites=False) as table:
        assert f.fsync()[:2] == DONE
        assert where.shape(calls(table)) == (["data flush"] if write == "cached" else []) + ["drain"]
        assert f.fsync()[:2] == DONE
        assert calls(table) == [("drain", 0, 0)]
        served.server.lazytime = True
        f.write(0, noise(100))
        log = calls(table)
        assert log[-1] == ("store", inode + MTIME, 16), "held back"
        assert f.fsync()[:2] == DONE
        log = calls(table)
        assert ("flush", inode, 64) in log and log[-1] == ("drain", 0, 0)


def test_reads_store_an_access_time_at_most(kit):
    served, f, inode = prepared(kit)
    served.time += 1000
    with Recorder(served.fs.region, sites=False) as table:
        for pieces in (False, True):
            served.fs.region.store(inode + ATIME, bytes(8))
            calls(table)
            assert f.read(0, 20_000, by_pieces=pieces)[:2] == DONE
            assert calls(table) == [("store", inode + ATIME, 8), ("flush", inode + ATIME, 8)]
        f.read(0, 100)
        f.getattr()
        f.lseek(0, 3)
        assert calls(table) == []


def test_fallocate_of_what_is_there(kit):
    served, f, inode = prepared(kit)
    with Recorder(served.fs.region, sites=False) as table:
        assert f.fallocate(0, 6000)[:2] == DONE
        assert calls(table) == [("store", inode + MTIME, 16), ("flush", inode + MTIME, 16), ("drain", 0, 0)]


def test_marks_of_a_native_write_are_set_and_cleared(kit):
    _, f, _ = prepared(kit, "cached")
    assert f.write(10, noise(PAGE))[:2] == DONE
    assert f.node.map.dirty.count == 2
    assert f.fsync()[:2] == DONE and f.node.map.dirty.count == 0


# Drains of each native answer under (nt, write), (nt, fsync), (cached, write), (cached, fsync);
# docs/durability.md shows them.
DRAINS = {
    "write over": (1, 0, 0, 0),
    "append into blocks that are there": (2, 2, 2, 2),
    "fsync after write over": (1, 1, 1, 1),
    "fsync of a clean file": (1, 1, 1, 1),
    "write over, O_DSYNC": (1, 1, 1, 1),
    "append, O_DSYNC": (2, 2, 2, 2),
    "fallocate of what is there": (1, 1, 1, 1),
    "read": (0, 0, 0, 0),
    "lseek": (0, 0, 0, 0),
    "getattr": (0, 0, 0, 0),
}


def operations(f, dsync):
    """The calls of DRAINS, in that order."""
    yield lambda: f.write(0, noise(5000))
    yield lambda: f.write(6000, noise(500))
    f.write(0, noise(5000))
    yield f.fsync
    yield f.fsync
    yield lambda: dsync.write(0, noise(5000))
    yield lambda: dsync.write(6500, noise(500))
    yield lambda: f.fallocate(0, 6000)
    yield lambda: f.read(0, 6000)
    yield lambda: ("done", f.lseek(0, 3))
    yield f.getattr


@pytest.mark.parametrize("column", range(4))
def test_number_of_drains(kit, column):
    served, f, _ = prepared(kit, *POLICIES[column])
    dsync, got = File(served, f.node, WRITE | DIRECT | DSYNC), {}
    for name, call in zip(DRAINS, operations(f, dsync), strict=True):
        before = served.fs.region.flush.counters()["drain"]
        assert call()[0] == "done"
        got[name] = served.fs.region.flush.counters()["drain"] - before
    assert got == {name: counts[column] for name, counts in DRAINS.items()}


# -- images of what a power failure may leave -----------------------------------------------


@pytest.mark.parametrize("write, drain", POLICIES)
def test_an_append_is_there_when_it_returns_and_never_shows_what_was_there_before(kit, write, drain):
    """Into blocks full of somebody else's bytes: the old file or the new one, at every moment."""
    served, f, _ = prepared(kit, write, drain, size=1000, pages=8)
    place = place_of(f.node, 0)
    text = noise(8 * PAGE)[:1000]
    served.fs.region.nt_store(place + 1000, b"\xee" * (8 * PAGE - 1000))
    served.fs.region.drain()
    with Crashes(kit, served.io) as crashes:
        for size in (500, 6000, 100, 9000):
            new = text + noise(size, size)
            with crashes.step(holds(new), during=holds(text, new)):
                assert f.write(len(text), new[len(text) :])[:2] == DONE
            text = new
    assert crashes.images > 15


@pytest.mark.parametrize("write, drain", POLICIES)
def test_what_fsync_promised_is_on_the_media(kit, write, drain):
    """Overwrites and their times; with nt and drain=write the data are there without an fsync."""
    served, f, _ = prepared(kit, write, drain, size=10 * PAGE, pages=10)
    want = bytearray(noise(10 * PAGE))

    def same_inode(crashed):
        got, inode = (each.inodes.read(f.ino) for each in (crashed.fs, served.fs))
        assert (got.size, got.mtime, got.ctime) == (inode.size, inode.mtime, inode.ctime)
        holds(want)(crashed)

    with Crashes(kit, served.io) as crashes:
        for pos, length in ((5, 1), (4000, 200), (3 * PAGE, 2 * PAGE), (6 * PAGE + 63, 2)):
            data = noise(length, pos)
            want[pos : pos + length] = data
            served.time += 1000
            with crashes.step(holds(bytes(want))):
                assert f.write(pos, data)[:2] == DONE
                if (write, drain) != ("nt", "write"):
                    assert f.fsync()[:2] == DONE
        served.server.lazytime = True
        served.time += 1000
        f.write(0, bytes(want[:1]))
        with crashes.step(same_inode):
            assert f.fsync()[:2] == DONE


def test_what_fsyncdir_promised_is_on_the_media(kit):
    """The access time of a directory, which lazytime held back."""
    served, _, _ = prepared(kit, "nt", "write")
    fs, root = served.fs, served.fs.open(1)
    fh = served.server.open(root.map, 1, DIRECTORY)
    fs.lazytime = True
    with Crashes(kit, served.io) as crashes:
        for _ in range(3):
            served.time += 10**9
            now = served.time
            fs.atime = "strictatime"

            def judge(crashed, now=now):
                assert crashed.fs.inodes.read(1).atime == now

            with crashes.step(judge):
                attr.touch_read(fs, 1, directory=True)
                assert served.feed(R.fsync(1, fh, op="fsyncdir"))[:2] == DONE


@asking
@pytest.mark.parametrize("lazytime", [False, True])
@pytest.mark.parametrize("write, drain", POLICIES)
def test_dsync_is_on_the_media_when_it_returns(kit, write, drain, lazytime, known, opened):
    served, f, _ = prepared(kit, write, drain, flags=WRITE | DIRECT | known)
    served.server.lazytime = lazytime
    text = bytearray(noise(4 * PAGE)[:6000])
    with Crashes(kit, served.io) as crashes:
        for pos, length in ((100, 3000), (5990, 500)):
            data = noise(length, pos)
            text[pos : pos + length] = data
            served.time += 1000
            now = served.time

            def judge(crashed, text=bytes(text), now=now):
                holds(text)(crashed)
                inode = crashed.fs.inodes.read(f.ino)
                assert (inode.mtime, inode.ctime) == (now, now)

            with crashes.step(judge):
                assert f.write(pos, data, opened=opened)[:2] == DONE


def test_an_append_beside_records_of_others_survives_replay(kit):
    """Records since the tail hold other inodes; replay must not touch this one's size."""
    served, f, inode = prepared(kit)
    g = served.open(b"g", 100)
    served.io.write(g.node, 0, noise(9000))  # a record that is not settled
    assert f.write(6000, noise(100))[:2] == DONE
    crashed = kit.crashed(served.io)
    assert len(content(crashed, b"f")) == 6100
    assert crashed.fs.replayed > 0
    node = reopen(served.io, g.ino)
    assert node.map.size == 9000 and struct.unpack_from("<Q", served.fs.mem, inode)[0] == 6100
