# SPDX-License-Identifier: MIT
"""L1: opening, locking, mapping and closing regions of every kind of source this host has."""

import errno
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import types

import numpy as np
import pytest

from daxfs import source as source_module
from daxfs.errors import CorruptError, SourceError, UsageError
from daxfs.granularity import Detected, detect
from daxfs.pfn import PFN_DEV, PFN_MAP, PMD_SIZE
from daxfs.region import Region, create_file
from daxfs.source import Source, open_source, pmd_possible

MIB = 1 << 20


@pytest.fixture
def shm():
    """A folder on memory, gone afterwards."""
    if not os.path.isdir("/dev/shm"):
        pytest.skip("no /dev/shm")
    path = tempfile.mkdtemp(prefix="daxfs-test-", dir="/dev/shm")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def source(shm):
    return create_file(os.path.join(shm, "file"), 4 * MIB)


def contents(path, at, length):
    with open(path, "rb") as file:
        file.seek(at)
        return file.read(length)


def refused(code, sources, **options):
    with pytest.raises(SourceError) as info:
        Region.open(sources, **options).close()
    assert info.value.errno == code, str(info.value)
    return str(info.value)


def test_a_file_in_memory(source):
    with Region.open([source]) as region:
        assert region.npages == 1024 and region.granularity == "cache_line" and region.emulated
        assert region.address % PMD_SIZE == 0
        assert len(region.mem) == region.array.nbytes == 4 * MIB and region.array.dtype == np.uint8
        region.store(4096, b"stored")
        region.persist(4096, 6)
        region.nt_store(8191, b"edge")
        region.nt_fill(20000, 0xA5, 3000)
        region.flush_range(8191, 4)
        region.drain()
        assert bytes(region.mem[4096:4102]) == b"stored"
        shown = region.describe()
        assert shown["emulated"] and "not power-fail safe" in shown["safety"]
        assert shown["sources"][0]["kind"] == "file" and shown["pages"] == 1024
    assert contents(source, 4096, 6) == b"stored" and contents(source, 8191, 4) == b"edge"
    assert contents(source, 19999, 3002) == b"\0" + b"\xa5" * 3000 + b"\0"


def test_a_file_on_disk_is_flushed_by_msync(tmp_path):
    path = create_file(str(tmp_path / "file"), MIB)
    found = detect(path)
    if found.granularity != "page":
        pytest.skip(f"{tmp_path} is {found.medium}, no disk")
    with Region.open([path]) as region:
        assert region.granularity == "page" and region.flush.kind == "msync" and not region.emulated
        region.store(12345, b"daxfs")
        region.persist(12345, 5)
        assert region.pmd.startswith("no")
    assert contents(path, 12345, 5) == b"daxfs"
    with pytest.raises(UsageError):
        Region.open([path], granularity="cache_line")
    with pytest.raises(UsageError):
        Region.open([path], flush="clwb")
    Region.open([path]).close()  # what was refused has left no lock


def test_demands_on_an_emulated_region(source):
    for granularity in ("byte", "cache_line", "page"):
        with Region.open([source], granularity=granularity) as region:
            assert region.granularity == region.flush.granularity == granularity
    for wrong in ({"granularity": "line"}, {"flush": "clmagic"}, {"nt": "mmx"}, {"mode": "rx"}):
        with pytest.raises(UsageError):
            Region.open([source], **wrong)
    for sources in ([], source):
        with pytest.raises(UsageError):
            Region.open(sources)


def test_pool_directory(shm):
    pool = os.path.join(shm, "pool") + "/"
    file = create_file(pool, 2 * MIB)
    assert file == pool + "region"
    assert os.stat(pool).st_mode & 0o777 == 0o700 and os.stat(file).st_mode & 0o777 == 0o600
    with Region.open([pool]) as region:
        assert region.sources[0].kind == "pool" and region.sources[0].dir_fd >= 0
        region.store(0, b"pool")
        assert "busy" in refused(errno.EBUSY, [file]), "the file and its directory are one source"
    assert contents(file, 0, 4) == b"pool"
    assert create_file(pool.rstrip("/"), 4 * MIB) == file and os.stat(file).st_size == 4 * MIB


def test_create_file_grows_and_never_shrinks(shm, source):
    assert os.stat(source).st_mode & 0o777 == 0o600
    assert create_file(source, MIB) == source and os.stat(source).st_size == 4 * MIB
    create_file(source, 8 * MIB)
    assert os.stat(source).st_size == 8 * MIB and os.stat(source).st_blocks == 0
    with Region.open([source]), pytest.raises(SourceError) as info:
        create_file(source, 16 * MIB)
    assert info.value.errno == errno.EBUSY and os.stat(source).st_size == 8 * MIB
    with pytest.raises(SourceError) as info:
        create_file(os.path.join(shm, "missing", "file"), MIB)
    assert info.value.errno == errno.ENOENT
    with pytest.raises(SourceError):
        create_file(os.path.join(shm, "huge"), 1 << 63)
    with pytest.raises(SourceError):
        create_file("/dev/null", MIB)


def test_several_sources_are_one_region(shm):
    sizes = (3 * MIB, 4096, 5 * MIB)
    paths = [create_file(os.path.join(shm, str(i)), size) for i, size in enumerate(sizes)]
    with Region.open(paths) as region:
        places = [(s.pfn_start, s.pfn_end) for s in region.sources]
        assert places == [(0, 768), (1024, 1025), (1536, 1536 + 1280)] and region.npages == 2816
        for number, (start, end) in enumerate(places):
            mark = b"source %d" % number
            region.store(start * 4096, mark)
            region.store(end * 4096 - len(mark), mark)
            assert contents(paths[number], 0, len(mark)) == mark
            assert contents(paths[number], sizes[number] - len(mark), len(mark)) == mark
        assert not region.array[768 * 4096 : 1024 * 4096].any(), "between sources stand zeros"
        for inside in (768 * 4096, 1025 * 4096, 1500 * 4096):
            with pytest.raises(CorruptError):
                region.store(inside, b"x")
        with pytest.raises(CorruptError):
            region.store(768 * 4096 - 1, b"xy")  # runs out of its source


@pytest.mark.parametrize("offset, length", [
    (-1, 1), (4 * MIB, 1), (4 * MIB - 1, 2), (1 << 60, 8), (1 << 62, 8), (1 << 64, 8),
    (1 << 72, 8), (-(1 << 70), 8),
    (0, 4 * MIB + 1),
])
def test_stores_are_bounded(source, offset, length):
    with Region.open([source]) as region:
        for call in (region.store, region.nt_store):
            with pytest.raises(CorruptError):
                call(offset, bytes(length))
        with pytest.raises(CorruptError):
            region.nt_fill(offset, 1, length)
        for call in (region.flush_range, region.persist, region.view):
            with pytest.raises(CorruptError):
                call(offset, length)
        assert region.table.users == 0, "a refused store has left"
        assert not region.array.any()


def test_numpy_and_memoryview_are_good_data(source):
    with Region.open([source]) as region:
        region.store(np.uint64(8), np.arange(4, dtype="<u8"))
        assert region.array[8:40].view("<u8").tolist() == [0, 1, 2, 3]
        region.nt_store(64, memoryview(b"0123")[1:3])
        assert bytes(region.mem[64:66]) == b"12"
        with pytest.raises((TypeError, BufferError)):
            region.store(0, 12)
        assert region.table.users == 0


def test_the_last_page_is_usable_and_an_odd_tail_is_not(shm, caplog):
    path = create_file(os.path.join(shm, "odd"), 2 * MIB + 4096 + 100)
    with caplog.at_level(logging.WARNING, "daxfs"), Region.open([path]) as region:
        assert region.npages == 513
        region.persist(513 * 4096 - 8, 8)
        region.store(513 * 4096 - 4, b"last")
        with region.table:
            address, available = region.direct_access(512, 10)
        assert address == region.address + 512 * 4096 and available == 1
    assert "the last 100 bytes" in caplog.text
    assert contents(path, 513 * 4096 - 4, 4) == b"last"


@pytest.mark.parametrize("size", [0, 1, 4095])
def test_too_small(shm, size):
    path = create_file(os.path.join(shm, "small"), size)
    assert "too small" in refused(errno.ENOSPC, [path])


def test_what_can_be_no_source(shm, tmp_path):
    fifo, link = os.path.join(shm, "fifo"), os.path.join(shm, "pool", "region")
    os.mkfifo(fifo)
    assert "FIFO" in refused(errno.EINVAL, [fifo])
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock"))
        assert "socket" in refused(errno.EINVAL, [str(tmp_path / "sock")])
    assert "devdax" in refused(errno.EINVAL, ["/dev/null"])
    assert "nothere" in refused(errno.ENOENT, [os.path.join(shm, "nothere")])
    refused(errno.ENOENT, [os.path.join(shm, "nothere") + "/"])
    os.mkdir(os.path.dirname(link))
    assert "without a region" in refused(errno.ENOENT, [os.path.dirname(link)])
    os.symlink("/etc/passwd", link)
    assert "symbolic link" in refused(errno.ELOOP, [os.path.dirname(link)])
    os.unlink(link)
    os.mkdir(link)
    refused(errno.EINVAL, [os.path.dirname(link)])


def test_no_permission(source):
    os.chmod(source, 0)
    os.chmod(os.path.dirname(source), 0o755)
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)  # root may open everything
    try:
        assert source in refused(errno.EACCES, [source])
    finally:
        os.seteuid(me)


def test_given_twice(shm, source):
    os.link(source, os.path.join(shm, "other-name"))
    for paths in ([source, source], [source, os.path.join(shm, "other-name")]):
        assert "twice" in refused(errno.EINVAL, paths)
        with pytest.raises(SourceError):
            Region.open(paths, lock=False)
    Region.open([source]).close()


@pytest.mark.parametrize("mode", ["rw", "ro", "cow"])
def test_a_second_opener_is_refused(source, mode):
    script = (
        "import sys; from daxfs.region import Region; from daxfs.errors import SourceError\n"
        "try: Region.open([sys.argv[1]], mode=sys.argv[2])\n"
        "except SourceError as e: print(e.errno, e)\n"
    )
    with Region.open([source], mode=mode):
        for second in ("rw", "ro", "cow"):
            assert source in refused(errno.EBUSY, [source], mode=second)
            out = subprocess.run([sys.executable, "-P", "-c", script, source, second],
                                 capture_output=True, text=True, check=True).stdout
            assert out.startswith(f"{errno.EBUSY} {source}: busy")
        with Region.open([source], mode="ro", lock=False) as looking:
            assert looking.npages == 1024
    Region.open([source]).close()


def test_a_refused_source_unlocks_the_ones_before(shm, source):
    refused(errno.ENOENT, [source, os.path.join(shm, "nothere")])
    Region.open([source]).close()


def test_cow_changes_no_byte(source):
    with open(source, "r+b") as file:
        file.write(b"original")
    whole, mtime = contents(source, 0, 4 * MIB), os.stat(source).st_mtime_ns
    with Region.open([source], mode="cow") as region:
        region.store(0, b"replayed")
        region.nt_fill(MIB, 7, MIB)
        region.persist(0, 2 * MIB)
        region.array[5000] = 1
        assert bytes(region.mem[:8]) == b"replayed" and region.pmd.startswith("no")
    assert contents(source, 0, 4 * MIB) == whole and os.stat(source).st_mtime_ns == mtime


def test_read_only_can_not_be_written(source):
    with Region.open([source], mode="ro") as region:
        assert region.mem.readonly and not region.array.flags.writeable
        for call in (lambda: region.store(0, b"x"), lambda: region.nt_store(0, b"x"),
                     lambda: region.nt_fill(0, 1, 1), lambda: region.persist(0, 1)):
            with pytest.raises(OSError) as info:
                call()
            assert info.value.errno == errno.EROFS
        with pytest.raises((TypeError, ValueError)):
            region.mem[0] = 1
        os.chmod(source, 0o400)
    with Region.open([source], mode="ro") as region:
        assert bytes(region.mem[:4]) == bytes(4)


def test_direct_access_only_between_enter_and_exit(source):
    with Region.open([source]) as region:
        with pytest.raises(RuntimeError):
            region.direct_access(0)
        with region.table:
            assert region.direct_access(1000, 100) == (region.address + 1000 * 4096, 24)
            with pytest.raises(CorruptError):
                region.direct_access(1024)
            assert region.table.lookup(0)[2] == 0, "ordinary memory"


def test_kill_and_close(source):
    region = Region.open([source])
    view, mem, array = region.view(4090, 10), region.mem, region.array
    part = mem[0:8]
    assert bytes(view) == bytes(10)
    region.store(0, b"before")
    assert region.kill() == 0
    for call in (lambda: region.store(0, b"x"), region.drain, lambda: region.persist(0, 1),
                 lambda: region.view(0, 1), lambda: memoryview(view), region.table.enter):
        with pytest.raises(OSError) as info:
            call()
        assert info.value.errno == errno.EIO
    region.close()
    region.close()
    for name in ("mem", "array", "address"):
        with pytest.raises(OSError):
            getattr(region, name)
    assert region.pmd.startswith("no")
    array[0:5] = 0  # a view that outlived its region reaches no source
    part[5:8] = b"\0\0\0"
    assert contents(source, 0, 6) == b"before"
    Region.open([source]).close()


def test_close_waits_for_users_and_tells_of_those_that_stay(source, caplog):
    region = Region.open([source])
    region.table.enter()
    timer = threading.Timer(0.1, region.table.exit)
    timer.start()
    region.close()
    timer.join()
    assert not caplog.records
    region = Region.open([source])
    region.table.enter()
    region.close(timeout=0.02)
    assert "1 users did not leave" in caplog.text
    refused(errno.EBUSY, [source])
    region.table.exit()
    region.close()
    Region.open([source]).close()


def loop_device(path):
    """Attach *path* or skip, saying why."""
    if not shutil.which("losetup"):
        pytest.skip("no losetup")
    made = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True,
                          check=False)
    if made.returncode:
        pytest.skip(f"losetup: {made.stderr.strip()}")
    return made.stdout.strip()


def test_loop_device(source):
    device = loop_device(source)
    try:
        with Region.open([device]) as region:
            one = region.sources[0]
            assert (one.kind, one.size, region.granularity) == ("block", 4 * MIB, "page")
            assert one.detected.medium == "loop" and region.flush.kind == "msync"
            region.store(4 * MIB - 4, b"last")
            region.persist(4 * MIB - 4, 4)
            refused(errno.EBUSY, [device])
        assert contents(source, 4 * MIB - 4, 4) == b"last"
        with Region.open([device], mode="cow") as region:
            region.store(4 * MIB - 4, b"lost")
        assert contents(device, 4 * MIB - 4, 4) == b"last"
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def fake_devdax(tmp_path, monkeypatch, size, align):
    """A memory file that open_source takes for a devdax device described in a made-up sysfs."""
    device = tmp_path / "dev/char/1:3"
    device.mkdir(parents=True)
    (device / "size").write_text(f"{size}\n")
    (device / "align").write_text(f"{align}\n")
    found = Detected("cache_line", "devdax", False, "made up")
    monkeypatch.setattr(source_module, "detect", lambda fd, sysfs: found)
    return str(tmp_path)


def test_devdax_size_and_alignment_come_from_sysfs(tmp_path, monkeypatch, caplog):
    sysfs = fake_devdax(tmp_path, monkeypatch, 5 * MIB, 2 * MIB)
    one = open_source("/dev/null", "ro", lock=False, sysfs=sysfs)
    assert (one.kind, one.size, one.pages) == ("devdax", 5 * MIB, 1024)
    assert one.unit == one.align == PMD_SIZE
    assert one.pfn_flags == PFN_DEV | PFN_MAP and pmd_possible(one).startswith("yes")
    assert str(MIB) in caplog.text, "the tail that no aligned mapping reaches is named"
    one.close()
    (tmp_path / "dev/char/1:3/align").write_text("12345\n")
    with pytest.raises(SourceError, match="power of two"):
        open_source("/dev/null", "ro", lock=False, sysfs=sysfs)
    (tmp_path / "dev/char/1:3/size").unlink()
    with pytest.raises(SourceError, match="size"):
        open_source("/dev/null", "ro", lock=False, sysfs=sysfs)


@pytest.mark.parametrize("whole, options, expected", [
    ("always within_size advise [never] deny force", "rw,huge=always", "yes"),
    ("always within_size advise [never] deny force", "rw,size=5k,huge=advise", "yes"),
    ("always within_size advise [never] deny force", "rw", "no: tmpfs /x is mounted huge=never; mount"),
    ("always within_size advise never [deny] force", "rw,huge=always", "no: shmem_enabled is deny"),
    ("always within_size advise never deny [force]", "rw", "yes: shmem_enabled is force"),
    ("always within_size [advise] never deny force", None, "yes: memory without a mount"),
    (None, "rw", "no: this kernel"),
])
def test_pmd_answer_for_tmpfs(tmp_path, source, whole, options, expected):
    knob = tmp_path / "kernel/mm/transparent_hugepage/shmem_enabled"
    knob.parent.mkdir(parents=True)
    if whole:
        knob.write_text(whole + "\n")
    with open(source, "rb") as file:
        dev = os.fstat(file.fileno()).st_dev
        one = Source(source, "file", file.fileno(), MIB, 4096, detect(file.fileno()), ())
        number = f"{os.major(dev)}:{os.minor(dev)}"
        info = tmp_path / "mountinfo"
        info.write_text("1 2 9:9 / / rw - ext4 /dev/x rw\n" + (
            f"3 2 {number} / /x rw,relatime shared:5 - tmpfs tmpfs {options}\n" if options else ""))
        assert pmd_possible(one, str(tmp_path), str(info)).startswith(expected)


def test_hugetlb_needs_whole_pages():
    found = Detected("cache_line", "emulated", True, "made up")
    one = types.SimpleNamespace(size=5 * MIB, unit=2 * MIB)
    assert Source.pages.fget(one) == 1024
    assert pmd_possible(Source("p", "file", -1, 5 * MIB, 2 * MIB, found, ())).startswith("yes: hugetlbfs")
