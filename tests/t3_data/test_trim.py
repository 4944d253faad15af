# SPDX-License-Identifier: MIT
"""FITRIM below the requests: which pages are given back, what they may read as afterwards, shutdown."""

import errno
import os
import random
import shutil
import subprocess

import datakit
import pytest
from datakit import MIB, PAGE, create, noise

from daxfs import layout as L
from daxfs import source as source_module
from daxfs.errors import CorruptError, SourceError
from daxfs.meta import attr, fallocate, namespace, trim, xattr
from daxfs.region import Region, create_file


def holds(region) -> int:
    """Bytes of memory that the first source takes."""
    return os.fstat(region.sources[0].fd).st_blocks * 512


def run(fs, start=0, length=1 << 63, minimum=0) -> int:
    """A whole FITRIM; bytes trimmed."""
    one = trim.Trim(fs, start, length, minimum)
    while one.step():
        pass
    return one.trimmed


def code(call, *args) -> int:
    with pytest.raises(OSError) as caught:
        call(*args)
    return caught.value.errno


@pytest.fixture
def used(kit):
    """A data path whose free space was all used once: every page of it holds memory."""
    io = kit.io(size=32 * MIB)
    node = create(io, b"filler")
    while True:
        try:
            io.write(node, node.map.size, noise(MIB))
        except OSError as error:
            assert error.errno == errno.ENOSPC
            break
    namespace.unlink(io.fs, 1, b"filler")
    io.release(node)
    io.fs.journal.settle()
    return io


def test_all_free_pages(used):
    fs, before = used.fs, holds(used.fs.region)
    node = create(used, b"kept")
    used.write(node, 0, data := noise(MIB, 2))
    free = fs.statfs()["bfree"] * PAGE
    assert run(fs) == free - fs.alloc.held * PAGE > 20 * MIB
    assert holds(fs.region) <= before - free + MIB
    assert fs.statfs()["bfree"] * PAGE == free and bytes(used.read(node, 0, MIB)) == data
    assert not run(fs, fs.sb.backup_pfn * PAGE)


@pytest.mark.parametrize("start, length", [(8 * MIB, 4 * MIB), (8 * MIB + 1, 4 * MIB), (8 * MIB - 1, 5000)])
def test_only_in_the_range(used, start, length, monkeypatch):
    seen = watch(monkeypatch)
    done = run(used.fs, start, length)
    first, last = -(-start // PAGE), (start + length) // PAGE
    assert seen == [(first, last - first)] and done == (last - first) * PAGE


def watch(monkeypatch) -> list:
    """What is punched from now on: [(pfn, pages)]."""
    seen = []
    monkeypatch.setattr(Region, "punch", lambda self, pfn, n: seen.append((pfn, n)) or n)
    return seen


def test_only_runs_that_are_long_enough(used, monkeypatch):
    fs = used.fs
    for n in range(40):
        used.write(create(used, b"f%d" % n), 0, noise(16 * PAGE))
    for n in range(0, 40, 2):
        fs.nodes[namespace.lookup(fs, 1, b"f%d" % n).ino].opens = 0
        namespace.unlink(fs, 1, b"f%d" % n)
    runs = fs.alloc.runs()
    assert len(runs) >= 20
    seen = watch(monkeypatch)
    assert run(fs, minimum=17 * PAGE) == PAGE * sum(n for _, n in runs if n >= 17)
    assert seen == [run for run in runs if run[1] >= 17] != runs
    seen.clear()
    run(fs, minimum=16 * PAGE - 1)
    assert seen == [run for run in runs if run[1] >= 16]


def test_a_long_run_goes_in_steps(used, monkeypatch):
    monkeypatch.setattr(trim, "STEP_PAGES", 1000)
    runs, seen = used.fs.alloc.runs(), watch(monkeypatch)
    one, steps = trim.Trim(used.fs, 0, 1 << 63, 0), 0
    while one.step():
        steps += 1
    assert steps >= sum(n for _, n in runs) // 1000 and max(n for _, n in seen) == 1000
    assert sum(n for _, n in seen) == sum(n for _, n in runs)


def test_what_is_taken_between_steps_is_left_alone(used, monkeypatch):
    """Random allocations and frees between the steps: never a page that is in use at that moment."""
    fs, rng, mine = used.fs, random.Random(4), {}
    monkeypatch.setattr(trim, "STEP_PAGES", 64)
    monkeypatch.setattr(trim, "STEP_RUNS", 3)
    punched = set()

    def punch(self, pfn, pages):
        free = set()
        for start, count in fs.alloc.runs():
            free.update(range(start, start + count))
        assert free >= set(range(pfn, pfn + pages))
        punched.update(range(pfn, pfn + pages))
        return pages

    monkeypatch.setattr(Region, "punch", punch)
    one = trim.Trim(fs, 0, 1 << 63, 0)
    while one.step():
        for _ in range(3):
            if mine and rng.random() < 0.5:
                for taken in mine.pop(rng.choice(list(mine))):
                    fs.alloc.free(*taken)
            else:
                mine[rng.random()] = fs.alloc.alloc(rng.randrange(1, 200))
    assert len(punched) > 2000


def test_quarantined_pages_are_not_touched(used, monkeypatch):
    """Metadata blocks that are free again: records since the tail still write to them."""
    fs = used.fs
    parent = namespace.create(fs, 1, b"d", 0o040755, namespace.ROOT).ino
    for n in range(300):
        namespace.create(fs, parent, b"n%0100d" % n, 0o100644, namespace.ROOT)
    for n in range(300):
        namespace.unlink(fs, parent, b"n%0100d" % n)
    namespace.rmdir(fs, 1, b"d")
    held = {pfn + i for pfn, pages in fs.alloc._held for i in range(pages)}
    assert len(held) > 3
    seen = watch(monkeypatch)
    run(fs)
    assert not held & {pfn + i for pfn, pages in seen for i in range(pages)}


def test_a_crash_after_it_loses_nothing(used, kit):
    """The journal still has all records of what was made before it."""
    fs = used.fs
    for n in range(30):
        node = create(used, b"f%d" % n)
        used.write(node, 0, noise(3 * PAGE + n, n))
        xattr.put(fs, node.ino, b"user.x", noise(200, n))
    for n in range(0, 30, 3):
        namespace.unlink(fs, 1, b"f%d" % n)
    run(fs)
    after = kit.crashed(used)
    for n in range(30):
        if n % 3:
            assert datakit.content(after, b"f%d" % n) == noise(3 * PAGE + n, n)
    kit.fsck(after.fs)


def test_free_blocks_are_never_taken_for_zeros(used, kit, monkeypatch):
    """What a punched page reads as does not matter: here it is noise, for data and for metadata."""
    def spoil(self, offset, length):
        os.pwrite(self.fd, noise(length, offset), offset)
        return length

    monkeypatch.setattr(source_module.Source, "punch", spoil)
    fs, rng = used.fs, random.Random(7)
    assert run(fs) > 20 * MIB
    want = {}
    for n in range(60):
        name, pos, size = b"f%d" % n, rng.randrange(3 * PAGE), rng.randrange(1, 3 * PAGE)
        node = create(used, name)
        used.write(node, pos, noise(size, n))
        if n % 3 == 0:
            used.fallocate(node, 0, pos + size, 5 * PAGE)
        if n % 4 == 0:
            attr.setattr(fs, node.ino, {"size": pos + size + 9 * PAGE + 1})
        if n % 5 == 0:
            used.fallocate(node, fallocate.ZERO_RANGE, pos + 5, size)
            want[name] = bytes(node.map.size)
            for at in range(pos, pos + 5):
                want[name] = want[name][:at] + bytes(used.read(node, at, 1)) + want[name][at + 1 :]
        else:
            want[name] = (bytes(pos) + noise(size, n)).ljust(node.map.size, b"\0")
        xattr.put(fs, node.ino, b"user.x", noise(1000, n))
        used.release(node)
    parent = namespace.create(fs, 1, b"d", 0o040755, namespace.ROOT).ino
    for n in range(200):
        namespace.create(fs, parent, b"%0200d" % n, 0o120777, namespace.ROOT, target=b"t" * (100 + n))
    node = create(used, b"scattered")
    for n in range(700):
        used.write(node, 2 * n * PAGE + 3, noise(7, n))
    want[b"scattered"] = b"".join((bytes(3) + noise(7, n)).ljust(2 * PAGE, b"\0") for n in range(700))
    want[b"scattered"] = want[b"scattered"][: node.map.size]
    for after in (used, kit.crashed(used)):
        for name, data in want.items():
            node = datakit.find(after, name)
            assert b"".join(bytes(after.read(node, at, MIB)) for at in range(0, len(data), MIB)) == data, name
        for n in range(200):
            ino = namespace.lookup(after.fs, parent, b"%0200d" % n).ino
            assert namespace.readlink(after.fs, ino) == b"t" * (100 + n)
        kit.fsck(after.fs)


def test_arguments(used):
    fs, size = used.fs, used.fs.sb.npages * PAGE
    for args in ((size, 1 << 63, 0), (1 << 63, 5 * PAGE, 0), (0, PAGE - 1, 0), (0, size, size + 1)):
        assert code(run, fs, *args) == errno.EINVAL, args
    assert run(fs, 0, PAGE) == 0 == run(fs, size - PAGE, PAGE)
    assert run(fs, 0, (1 << 64) - 1) > 20 * MIB


def test_refused(used):
    used.fs.readonly = True
    assert code(run, used.fs) == errno.EROFS
    used.fs.readonly = False
    one = trim.Trim(used.fs, 0, 1 << 63, 0)
    used.fs.shutdown(False)
    assert code(one.step) == errno.EIO == code(run, used.fs)


def test_punch_of_a_region(kit):
    """It is checked like every other access; the mapping stays and is zero, or what is stored into it."""
    region = kit.sources(4 * MIB, 2 * MIB)
    region.nt_fill(0, 7, 4 * MIB)
    region.nt_fill(4 * MIB, 8, 2 * MIB)
    assert region.punch(3, 5) == 5 and region.punch(1024, 1) == 1
    assert not any(region.mem[3 * PAGE : 8 * PAGE]) and not any(region.mem[4 * MIB : 4 * MIB + PAGE])
    assert set(region.mem[: 3 * PAGE]) == {7} == set(region.mem[8 * PAGE : 9 * PAGE])
    assert set(region.mem[4 * MIB + PAGE : 6 * MIB]) == {8}
    region.store(4 * PAGE, b"again")
    assert bytes(region.mem[4 * PAGE : 4 * PAGE + 5]) == b"again"
    for where in ((1020, 5), (1536, 1), (-1, 1), (1 << 40, 1), (0, 1 << 40)):
        with pytest.raises(CorruptError):
            region.punch(*where)
    region.kill()
    assert code(region.punch, 0, 1) == errno.EIO


@pytest.mark.parametrize("mode", ["ro", "cow"])
def test_punch_changes_no_source_that_is_not_open_for_writing(kit, mode):
    path = create_file(kit.path(), MIB)
    try:
        with open(path, "r+b") as file:
            file.write(b"x" * MIB)
        with Region.open([path], mode) as region:
            assert code(region.punch, 0, 1) == errno.EROFS
        with open(path, "rb") as file:
            assert file.read() == b"x" * MIB
    finally:
        os.unlink(path)


def source_of(fd, kind="file", unit=PAGE):
    return source_module.Source("x", kind, fd, 4 * MIB, unit, None, ())


def test_punch_of_sources():
    """Whole units only (hugetlbfs); devdax can't; what the kernel says of a descriptor is told."""
    fd = os.memfd_create("daxfs-h4-punch")
    try:
        os.ftruncate(fd, 4 * MIB)
        os.pwrite(fd, b"y" * 4 * MIB, 0)
        huge = source_of(fd, unit=2 * MIB)
        assert huge.punch(MIB, 2 * MIB) == 0 == huge.punch(0, 2 * MIB - PAGE)
        assert huge.punch(2 * MIB - PAGE, 2 * MIB + PAGE) == 2 * MIB
        assert os.pread(fd, 2, 2 * MIB - 1) == b"y\0"
        assert code(source_of(fd, "devdax").punch, 0, 4 * MIB) == errno.EOPNOTSUPP
        assert code(source_of(fd, "block").punch, 0, 4 * MIB) == errno.ENOTTY
    finally:
        os.close(fd)
    with pytest.raises(SourceError, match="space back"):
        source_of(fd, "file").punch(0, PAGE)


def test_punch_of_a_block_device(tmp_path):
    """A loop device discards: its file gets the hole; the mapping goes on over it."""
    if os.geteuid() or not shutil.which("losetup"):
        pytest.skip("no root or no losetup")
    image = create_file(str(tmp_path / "h4-image"), 8 * MIB)
    done = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        with Region.open([device]) as region:
            region.nt_fill(0, 7, 8 * MIB)
            # Order: the bytes before the hole.
            region.drain()
            assert region.punch(512, 1024) == 1024
            assert os.stat(image).st_blocks * 512 < 5 * MIB
            assert not any(region.mem[2 * MIB : 6 * MIB]) and set(region.mem[6 * MIB :]) == {7}
            region.store(3 * MIB, b"again")
            assert bytes(region.mem[3 * MIB : 3 * MIB + 5]) == b"again"
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def events(io, *calls) -> list:
    """What each of *calls* stored, flushed and drained. Begins before a shutdown, and goes on after it."""
    out = []
    with datakit.Recorder(io.fs.region) as recorder:
        for call in calls:
            call()
            out.append(datakit.calls(recorder))
    return out


@pytest.mark.parametrize("durable", [False, True])
def test_nothing_is_stored_after_a_shutdown(used, durable, kit):
    """Not by a release, a forget, an unmount, nor by whoever still holds the region."""
    fs = used.fs
    node, gone = create(used, b"f"), create(used, b"gone")
    used.write(node, 0, noise(3 * PAGE))
    used.write(gone, 0, noise(PAGE))
    namespace.unlink(fs, 1, b"gone")
    fs.remember(gone.ino)
    fs.lazytime = True
    attr.touch_write(fs, node.ino)

    def shut():
        fs.shutdown(durable)
        fs.shutdown(not durable)

    def rest():
        for call in (lambda: used.write(node, 0, b"x"), lambda: used.fsync(node), fs.sync_all, fs.begin,
                     lambda: attr.touch_write(fs, node.ino), lambda: used.fallocate(node, 0, 0, MIB)):
            assert code(call) == errno.EIO
        used.release(node)
        used.release(gone)
        fs.forget(gone.ino, 1)
        used.write_back()
        fs.unmount()

    assert events(used, shut, rest) == [[("drain", 0, 0)] if durable else [], []]
    after = kit.crashed(used)
    assert after.fs.replayed and datakit.content(after, b"f") == noise(3 * PAGE)
    assert namespace.lookup(after.fs, 1, b"gone") is None and not after.fs.orphans
    kit.fsck(after.fs)


def test_a_read_only_file_system_can_be_shut_down(used):
    used.fs.readonly = True
    assert events(used, lambda: used.fs.shutdown(True)) == [[]]
    assert used.fs.shut and used.fs.region.table.dead


def test_dirty_pages_stay_where_they_are(kit):
    """write=cached: what was not written back is not after a shutdown either."""
    io = kit.io(write="cached")
    node = create(io, b"f")
    io.write(node, 0, noise(2 * PAGE))
    io.write(node, 0, noise(PAGE, 3))
    assert node.map.dirty.count
    done = events(io, lambda: io.fs.shutdown(False), io.write_back, lambda: io.release(node))
    assert done == [[], [], []]


def test_no_flag_is_lost_by_layout():
    """The user's flags and the file system's own share a word and no bit."""
    assert not L.FLAGS_USER & L.FLAGS_KNOWN and not L.FLAGS_USER & 0xFF
