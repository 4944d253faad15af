# SPDX-License-Identifier: MIT
"""Raw files without a mount: their bytes, their end, what fsync flushes, what is served natively."""

import errno
import os

import pytest
import rawmsg as R
from datakit import MIB, PAGE, noise
from servekit import Served

from daxfs._iomap import COARSE
from daxfs.data._dax_io import DaxIo
from daxfs.data._serve import DIRECT, DSYNC, RAW, WRITE
from daxfs.data._tracker import PteTracker
from daxfs.data.raw_file import RawFile

FIRST = 1 << 40


def raw_files(region, **how) -> list[RawFile]:
    tracker = PteTracker()
    dax = DaxIo(region, tracker, **how)
    return [RawFile(region, dax, tracker, source) for source in region.sources]


def code(call, *args) -> int:
    with pytest.raises(OSError) as caught:
        call(*args)
    return caught.value.errno


@pytest.mark.parametrize("write", ["nt", "cached"])
def test_each_source_is_a_file(kit, write):
    """Its bytes and no others, though sources stand side by side in the region."""
    region = kit.sources(3 * MIB, 2 * MIB + 5 * PAGE)
    one, two = raw_files(region, write=write)
    assert (one.size, two.size) == (3 * MIB, 2 * MIB + 5 * PAGE)
    assert one.write(MIB, noise(9999)) == 9999 and two.write(0, b"two") == 3
    for file, at, data in ((one, MIB, noise(9999)), (two, 0, b"two")):
        assert bytes(file.read(at, len(data))) == data
        assert os.pread(file.source.fd, len(data), at) == data
        file.fsync()
        assert file.map.dirty.count == 0
    assert bytes(one.read(0, 3)) == bytes(3)


def test_the_end(kit):
    (file,) = raw_files(kit.sources(MIB))
    assert file.write(MIB - 10, b"x" * 100) == 10
    assert file.write(MIB, b"") == 0 and file.read(MIB, 10) == b""
    assert bytes(file.read(MIB - 5, 100)) == b"x" * 5
    assert code(file.write, MIB, b"x") == code(file.write, 1 << 60, b"x") == errno.ENOSPC
    assert os.fstat(file.source.fd).st_size == MIB


def test_fsync_of_what_mappings_may_have_stored(kit):
    """Every line of what has memory, and nothing of a hole; without such mappings a drain is all."""
    region = kit.sources(8 * MIB)
    (file,) = raw_files(region)
    os.pwrite(file.source.fd, b"x" * PAGE, 5 * MIB)
    before = region.flush.counters()["flush_lines"]
    file.fsync()
    assert region.flush.counters()["flush_lines"] == before
    file.map.set_state(COARSE)
    file.fsync()
    lines = region.flush.counters()["flush_lines"] - before
    assert PAGE // 64 <= lines <= MIB // 64
    assert os.fstat(file.source.fd).st_blocks * 512 <= MIB


@pytest.fixture
def served(kit):
    """A file system's Server that also knows the raw file of its region."""
    one = Served(kit.io())
    one.server.raw = range(FIRST, FIRST + 2)
    one.raw = RawFile(one.fs.region, one.io.dax, one.io.tracker, one.fs.region.sources[0])
    return one


def raw_handle(served, flags=WRITE | DIRECT) -> int:
    return served.server.open(served.raw.map, FIRST + 1, RAW | flags)


def test_reads_and_writes_are_served(served):
    fh = raw_handle(served)
    at, data = served.raw.size - MIB, noise(70000)
    assert served.feed(R.write(FIRST + 1, fh, at, data))[:2] == ("done", 0)
    for by_pieces in (False, True):
        assert served.feed(R.read(FIRST + 1, fh, at, 70000), by_pieces=by_pieces) == ("done", 0, data)
    assert served.feed(R.read(FIRST + 1, fh, served.raw.size, 4096)) == ("done", 0, b"")
    # What does not fit, and what may have to flush more than what was written here, is Python's.
    assert served.feed(R.write(FIRST + 1, fh, served.raw.size - 5, b"x" * 10))[0] == "call"
    assert served.feed(R.write(FIRST + 1, fh, served.raw.size, b"x"))[0] == "call"
    assert served.feed(R.fsync(FIRST + 1, fh))[0] == "call"
    assert served.raw.map.size == served.raw.size
    reader = raw_handle(served, DIRECT)
    assert served.feed(R.write(FIRST + 1, reader, 0, b"x"))[1] == -errno.EBADF


def test_a_write_with_o_dsync(served):
    fh = raw_handle(served, WRITE | DIRECT | DSYNC)
    drains = served.fs.region.flush.counters()["drain"]
    assert served.feed(R.write(FIRST + 1, fh, served.raw.size - MIB, b"x" * 4096))[:2] == ("done", 0)
    assert served.fs.region.flush.counters()["drain"] > drains


def test_no_raw_inode_is_taken_for_one_of_the_table(served):
    """GETATTR is Python's; FORGET goes on with those of files; what is behind the last one is no inode."""
    file = served.open(size=10)
    assert served.feed(R.getattr_(FIRST))[0] == served.feed(R.getattr_(FIRST + 1))[0] == "relay"
    assert served.feed(R.getattr_(FIRST + 2))[:2] == ("done", -errno.ESTALE)
    assert served.feed(R.batch_forget([file.ino, FIRST, FIRST + 1]))[0] == "forget"
    assert served.feed(R.batch_forget([file.ino, FIRST + 2]))[0] == "drop"
    assert served.feed(R.batch_forget([file.ino, FIRST - 1]))[0] == "drop"
    served.server.raw = range(0)
    assert served.feed(R.batch_forget([file.ino, FIRST]))[0] == "drop"
