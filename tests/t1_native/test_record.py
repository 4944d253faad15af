# SPDX-License-Identifier: MIT
"""L1: the recorder: what is in its log, in which order, what it costs when it is off, and its refusals."""

import ctypes
import errno
import json
import os
import resource
import struct
import threading

import numpy as np
import pytest

from daxfs._iomap import FileMap
from daxfs._record import VERSION, Recorder
from daxfs.errors import DaxfsError, FormatError, UsageError
from daxfs.layout import SB_MAGIC
from daxfs.region import Region, create_file
from daxfs.testing import log
from daxfs.testing.media import Media
from daxfs.testing.ranges import Ranges

MIB = 1 << 20
POINTERS = 5


@pytest.fixture
def path(tmp_path):
    name = f"/dev/shm/daxfs-record-{os.getpid()}"
    create_file(name, 4 * MIB)
    yield name
    os.unlink(name)


@pytest.fixture
def region(path):
    with Region.open([path]) as region:
        yield region


def table(region):
    """The five functions of the bound table, as addresses."""
    return list((ctypes.c_void_p * POINTERS).from_address(region.flush.table))


def plain(events):
    return [(log.NAMES[e.kind], e.place, e.length, e.data) for e in events if e.kind != log.SITE]


def test_each_call_is_logged_and_made(region):
    with Recorder(region) as recorder:
        region.store(64, b"12345678")
        region.nt_store(4096 + 3, b"abc" * 50)
        region.nt_fill(8192, 0xAB, 100)
        region.flush_range(64, 8)
        # Order is what is under test: the drain comes last.
        region.drain()
        region.store(0, b"")
        got = list(log.parse(recorder.take()))
    assert plain(got) == [
        ("store", 64, 8, b"12345678"),
        ("nt_store", 4099, 150, b"abc" * 50),
        ("nt_fill", 8192, 100, b"\xab"),
        ("flush", 64, 8, b""),
        ("drain", 0, 0, b""),
    ]
    assert bytes(region.mem[64:72]) == b"12345678"
    assert bytes(region.mem[4099:4249]) == b"abc" * 50
    assert bytes(region.mem[8192:8292]) == b"\xab" * 100 and region.mem[8292] == 0
    assert region.flush.counters() == {
        "store": 1, "store_bytes": 8, "nt": 2, "nt_bytes": 250, "flush": 1, "flush_lines": 1, "drain": 1,
    }  # fmt: skip


def test_without_a_recorder_the_table_is_the_bound_one(region):
    """No recording costs nothing: the very same functions are called, before and after."""
    before = table(region)
    with Recorder(region):
        assert not set(table(region)) & set(before)
        with pytest.raises(DaxfsError) as refused, Recorder(region):
            pass
        assert refused.value.errno == errno.EBUSY
    assert table(region) == before
    with Recorder(region) as again:
        region.store(0, b"x")
        assert again.events == 2, "a store and its site"


def test_sites_name_the_line_that_stores(region):
    def helper():
        region.store(0, b"x")

    with Recorder(region) as recorder:
        for _ in range(3):
            helper()
        region.store(8, b"y")
        events = list(log.parse(recorder.take()))
    sites = {e.site: e.data.decode() for e in events if e.kind == log.SITE}
    stores = [e for e in events if e.kind == log.STORE]
    assert len({e.site for e in stores[:3]}) == 1 and stores[3].site != stores[0].site
    first = sites[stores[0].site].split(" < ")
    assert first[0].startswith("t1_native/test_record.py:") and first[0].endswith(" helper")
    assert first[1].endswith(" test_sites_name_the_line_that_stores")
    with Recorder(region, sites=False) as recorder:
        helper()
        assert [e.site for e in log.parse(recorder.take())] == [0]


def test_operations_belong_to_their_thread(region):
    with Recorder(region, sites=False) as recorder:
        inside, outside = threading.Event(), threading.Event()

        def other():
            number = recorder.begin("other")
            inside.set()
            outside.wait(10)
            region.store(64, b"B")
            recorder.end(number, "done")
            region.store(128, b"C")

        thread = threading.Thread(target=other)
        thread.start()
        inside.wait(10)
        op = recorder.begin("mine \udcff")
        region.store(0, b"A")
        outside.set()
        thread.join()
        recorder.end(op)
        events = list(log.parse(recorder.take()))
    ops = {e.data: e.op for e in events if e.kind == log.BEGIN}
    assert ops == {b"other": 1, b"mine \xff": 2}
    stores = {e.data: (e.op, e.thread) for e in events if e.kind == log.STORE}
    assert stores[b"A"][0] == 2 and stores[b"B"][0] == 1 and stores[b"C"][0] == 0
    assert stores[b"A"][1] != stores[b"B"][1] == stores[b"C"][1]
    assert [e.data for e in events if e.kind == log.END] == [b"done", b""]


def test_an_operation_belongs_to_one_recorder(region):
    """One that was begun and never ended is not the operation of what a later recorder logs."""
    with Recorder(region, sites=False) as recorder:
        recorder.begin("never ended")
        region.store(0, b"A")
        assert [e.op for e in log.parse(recorder.take())] == [1, 1]
    with Recorder(region, sites=False) as recorder:
        region.store(0, b"B")
        assert [e.op for e in log.parse(recorder.take())] == [0]


def test_the_log_has_the_order_of_the_memory(region):
    """Threads that store to one word with the GIL released: the last store in the log is what is there."""
    size = 64 << 10
    with Recorder(region, sites=False) as recorder:
        def work(byte):
            for _ in range(40):
                region.store(0, bytes([byte]) * size)

        threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        events = list(log.parse(recorder.take()))
    assert len(events) == 120
    assert bytes(region.mem[:size]) == events[-1].data


def test_a_log_in_a_file_is_whole_without_the_region(region, tmp_path):
    region.mem[5 * 4096 : 5 * 4096 + 3] = b"old"
    region.mem[4 * MIB - 1] = 7
    before = region.array.copy()
    path = str(tmp_path / "log")
    with Recorder(region, path, info={"options": "x=y"}) as recorder:
        op = recorder.begin("big")
        region.nt_store(MIB, b"z" * (2 * MIB + 1))
        recorder.end(op)
        with pytest.raises(ValueError):
            recorder.take()
    recorder.close()
    assert not recorder.error and os.stat(path).st_mode & 0o777 == 0o600
    got = log.load(path)
    assert np.array_equal(got.image, before)
    assert got.header["options"] == "x=y" and got.header["region"]["bytes"] == 4 * MIB
    assert [log.NAMES[e.kind] for e in got.events] == ["begin", "nt_store", "end"]
    assert got.events[1].data == b"z" * (2 * MIB + 1) and got.events[1].op == 1
    assert "test_a_log_in_a_file" in got.sites[got.events[1].site]


def test_a_log_that_was_cut_off_is_read_up_to_there(region, tmp_path):
    path = str(tmp_path / "log")
    with Recorder(region, path, sites=False):
        for n in range(10):
            region.store(n * 64, b"data of some length")
    os.truncate(path, os.path.getsize(path) - 6)     # 5 bytes of it are padding
    assert len(log.load(path).events) == 9


def test_a_full_disk_ends_the_log_and_not_the_region(region, tmp_path):
    path = str(tmp_path / "log")
    recorder = Recorder(region, path, sites=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, before[1]))     # SIGXFSZ is ignored by Python
    try:
        with recorder:
            for n in range(8):
                region.nt_store(n * 4096, bytes([n]) * MIB)
            assert recorder.error == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert region.mem[7 * 4096] == 7
    assert all(e.kind == log.NT_STORE for e in log.load(path).events)


def test_what_can_be_no_log_is_refused(path, region, tmp_path):
    with pytest.raises(UsageError, match="is a source of the region"):
        Recorder(region, path)
    assert os.path.getsize(path) == 4 * MIB
    with pytest.raises(UsageError, match="regular file"):
        Recorder(region, "/dev/null")
    with pytest.raises(FileNotFoundError):
        Recorder(region, str(tmp_path / "no" / "log"))
    for content in (b"", b"DAXFS", b"x" * 100, b"DAXFSREC" + b"\x09\0\0\0" + bytes(4),
                    b"DAXFSREC" + b"\x01\0\0\0\x02\0\0\0{}",
                    b"DAXFSREC" + b"\x02\0\0\0\x02\0\0\0{}"):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(FormatError):
            log.load(str(tmp_path / "bad"))


def event(kind, place=0, length=0, data=b"", op=0):
    """One event as it stands in a log."""
    return struct.pack("<BBHIQQQ", kind, 0, 1, 0, op, place, length) + data + bytes(-len(data) % 8)


def test_a_damaged_log_is_refused(region, tmp_path):
    """A header or an event that contradicts the region: FormatError, whatever it is."""
    facts, path = region.describe(), tmp_path / "bad"

    def loaded(region, body=b""):
        text = json.dumps({"region": region}).encode()
        path.write_bytes(b"DAXFSREC" + struct.pack("<II", VERSION, len(text)) + text + body)
        return log.load(str(path))

    assert not loaded(facts).events
    for change in ({"bytes": 1 << 60}, {"bytes": -4096}, {"bytes": 5}, {"bytes": "x"}, {"granularity": "odd"},
                   {"sources": [{}]}, {"sources": 3}, {"flush": None}):
        with pytest.raises(FormatError):
            loaded(facts | change)
    for body in (event(log.STORE, 4 * MIB, 8, b"x" * 8), event(log.NT_FILL, 0, 1 << 50), event(99),
                 event(log.FLUSH, 1 << 40, 8), event(log.IMAGE, 4 * MIB - 4, 8, b"x" * 8)):
        with pytest.raises(FormatError):
            loaded(facts, body)


def test_scans_of_clients_have_their_place(region):
    with Recorder(region) as recorder:
        recorder.scan(4096, b"s" * 10)
        (event,) = [e for e in log.parse(recorder.take()) if e.kind == log.SCAN]
    assert (event.place, event.length, event.data) == (4096, 10, b"s" * 10)


def test_a_region_and_a_log_in_use_are_no_log(region, tmp_path):
    """What a typing error in a mount option must not cost."""
    other = str(tmp_path / "other")
    with open(other, "wb") as file:
        file.write(SB_MAGIC + b"the rest")
    with pytest.raises(UsageError, match="holds a daxfs region"):
        Recorder(region, other)
    with open(other, "rb") as file:
        assert file.read() == SB_MAGIC + b"the rest"
    with Recorder(region, str(tmp_path / "log"), sites=False):
        region.store(0, b"x")
        with pytest.raises(DaxfsError) as refused:
            Recorder(region, str(tmp_path / "log"))
        assert refused.value.errno == errno.EBUSY
    assert len(log.load(str(tmp_path / "log")).events) == 1


def test_one_line_is_one_site(region):
    """Sites are found by their place in the byte code; two places on one line are one to a reader."""
    with Recorder(region) as recorder:
        for _ in range(2):
            region.store(0, b"x"); region.store(8, b"y")  # noqa: E702
        events = list(log.parse(recorder.take()))
    assert len({e.site for e in events if e.kind == log.STORE}) == 1
    assert sum(e.kind == log.SITE for e in events) == 1


def test_code_that_goes_away_gives_its_sites_to_nobody(region):
    """A site is known by the address of its code, so that must not be used again."""
    with Recorder(region) as recorder:
        for n in range(50):
            scope = {}
            exec(f"def made_{n}(region):\n    region.store({n * 64}, b'x')", scope)
            scope[f"made_{n}"](region)
        events = list(log.parse(recorder.take()))
    sites = {e.site: e.data.decode() for e in events if e.kind == log.SITE}
    for n, store in enumerate(e for e in events if e.kind == log.STORE):
        assert f" made_{n} " in sites[store.site]


@pytest.mark.parametrize("syncs", [False, True])
def test_what_happens_to_own_ranges_is_in_the_log(tmp_path, syncs):
    """In the order in which it was done; a store has the place that was told before it."""
    source = f"{tmp_path}/pool/"
    create_file(source, 4 << 20)
    with Region.open([source]) as region, Recorder(region) as recorder:
        pool = region.pool
        pool.syncs = syncs
        pool.create(2, 1)
        range_, fmap = pool.open(2, 1), FileMap()
        range_.attach(fmap)
        range_.cover(fmap, 0, 2)
        region.nt_store((range_.pfn << 12) + 4096, b"12345678")
        place, room = range_.pfn << 12, range_.room << 12
        range_.punch(fmap, 100, 300)
        range_.resize(fmap, 1)
        range_.sync()
        range_.detach(fmap)
        range_.close()
        pool.resize(2, 1, 3)
        pool.create(2, 1)
        pool.unlink(2, 1)
        pool.unlink(2, 1)
        events = [e for e in log.parse(recorder.take()) if e.kind in (log.RANGE, log.NT_STORE)]
    told = [e.data.decode() if e.kind == log.RANGE else (e.place - place, e.data) for e in events]
    due = ["create 2-1", "sync", f"place 2-1 {place} {room}", "size 2-1 8192 0", "sync 2-1 0 0",
           (4096, b"12345678"), "zero 2-1 100 200", "size 2-1 4096 0", "sync 2-1 0 0",
           "size 2-1 12288", "sync 2-1", "unlink 2-1", "create 2-1", "sync", "unlink 2-1", "sync"]
    assert told == [one for one in due if syncs or not str(one).startswith("sync")]
    model = Ranges(Media(bytes(8192)), syncs)
    for event in events:
        model.apply(event)
    assert not model.files


def test_a_range_that_outlives_its_recorder_is_silent(tmp_path):
    source = f"{tmp_path}/pool/"
    create_file(source, 4 << 20)
    with Region.open([source]) as region:
        with Recorder(region) as recorder:
            region.pool.create(2, 1)
            range_, fmap = region.pool.open(2, 1), FileMap()
            range_.attach(fmap)
            recorder.take()
        range_.resize(fmap, 3)
        region.pool.unlink(2, 1)
        assert recorder.take() == b"" and region.recorder is None
        range_.detach(fmap)
        range_.close()
