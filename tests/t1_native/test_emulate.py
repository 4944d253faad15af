# SPDX-License-Identifier: MIT
"""L1: emulated media: the model by arithmetic (emulate_model.c), real times, profiles, files, the self-check.

Times are compared in one direction: never shorter than the model says. Where a time must not be longer, the
shortest of many tries is taken, so that a busy host can't fail a test.
"""

import ctypes
import gc
import math
import mmap
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_daxio_threads import BUILDS, compiled

from daxfs import emulate
from daxfs._emulate import MAX_ROUNDS, Emulation
from daxfs._flush import Flush
from daxfs._record import Recorder
from daxfs.errors import DaxfsError, UsageError
from daxfs.region import Region, create_file
from daxfs.testing import log

KIB, MIB = 1 << 10, 1 << 20
SLOW = {"flush_line_ns": 1000.0, "flush_drain_ns": 5000.0, "nt_line_ns": 800.0, "nt_drain_ns": 4000.0,
        "write_gb_s": 0.0}  # fmt: skip
FREE = dict.fromkeys(SLOW, 0.0)
TEXT = "flush_line_ns = 30\nflush_drain_ns = 80.5\nnt_line_ns = 20\nnt_drain_ns = 90\n"


class Memory:
    """Anonymous memory with an address."""

    def __init__(self, size):
        self.map = mmap.mmap(-1, size)
        self.map.write(bytes(size))
        self.hold = ctypes.c_char.from_buffer(self.map)
        self.address = ctypes.addressof(self.hold)

    def bytes(self):
        return self.map[:]


@pytest.fixture
def memory():
    return Memory(4 * MIB)


def functions(flush):
    """The five functions of a table, as addresses."""
    return list((ctypes.c_void_p * 5).from_address(flush.table))


def took(call, *args):
    start = time.monotonic_ns()
    call(*args)
    return time.monotonic_ns() - start


@pytest.mark.parametrize("build", [*BUILDS, "portable"])
def test_the_model_by_arithmetic_and_threads_on_one_wire(tmp_path, build):
    """Asserted in emulate_model.c, with a clock of its own; and the real clocks."""
    program = tmp_path / "model"
    flags = BUILDS[build][0] if build in BUILDS else [*BUILDS["as-built"][0], "-DDAXFS_NO_X86"]
    compiled(program, flags, "emulate_model.c", ["emulate.c"])
    for _ in range(3):
        ended = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120,
                               env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"})
        assert ended.returncode == 0, ended.stderr[-6000:]


def test_off_the_table_is_the_bound_one_and_on_it_stores_are():
    plain, emulated = Flush(), Flush()
    before = functions(emulated)
    assert before == functions(plain)
    emulation = Emulation(emulated, **SLOW)
    after = functions(emulated)
    assert after[0] == before[0]  # store
    assert not set(after[1:]) & set(before)
    assert functions(Flush()) == before  # another table is not meant
    assert emulation.counters() == {"lines": 0, "drains": 0, "late": 0, "spun_ns": 0}


@pytest.mark.parametrize("profile", emulate.known().values(), ids=lambda one: one.name)
@pytest.mark.parametrize(("size", "nt"), [(64, False), (4096, False), (64, True), (4096, True), (MIB, True)])
def test_never_shorter_than_the_model(memory, profile, size, nt):
    flush = Flush()
    emulation = Emulation(flush, **profile.numbers())
    asked = emulation.asked(size // 64, nt)
    n = profile.numbers()
    kind = "nt" if nt else "flush"
    line = max(n[f"{kind}_line_ns"], 64 / n["write_gb_s"])
    assert asked == pytest.approx(size // 64 * line + n[f"{kind}_drain_ns"], rel=1e-3)

    def go():
        if nt:
            flush.nt_fill(memory.address, 1, size)
        else:
            flush.flush(memory.address, size)
        # Order is not what is looked at: the time is.
        flush.drain()

    assert min(took(go) for _ in range(20)) >= asked * 0.999
    assert emulation.counters()["lines"] == 20 * size // 64
    assert emulation.counters()["drains"] == 20


def test_as_long_as_the_model_says_where_nobody_disturbs(memory):
    flush = Flush()
    emulation = Emulation(flush, **SLOW)
    for size, nt in ((4096, False), (64 * KIB, False), (64 * KIB, True)):
        asked = emulation.asked(size // 64, nt)

        def go(size=size, nt=nt):
            if nt:
                flush.nt_fill(memory.address, 1, size)
            else:
                flush.flush(memory.address, size)
            # Order is not what is looked at: the time is.
            flush.drain()

        assert asked * 0.999 <= min(took(go) for _ in range(50)) <= asked * 1.1 + 5000


def test_a_drain_of_nothing_and_stores_cost_nothing(memory):
    flush = Flush()
    emulation = Emulation(flush, **{**SLOW, "flush_drain_ns": 1e7, "nt_drain_ns": 1e7})
    flush.store(memory.address, b"x" * 4096)
    # Orders nothing: there is nothing that was flushed.
    assert min(took(flush.drain) for _ in range(20)) < 1e6
    flush.flush(memory.address, 0)
    flush.nt_store(memory.address, b"")
    # The same.
    assert min(took(flush.drain) for _ in range(20)) < 1e6
    assert emulation.counters() == {"lines": 0, "drains": 0, "late": 0, "spun_ns": 0}


def in_threads(count, call):
    """ns from the first thread's begin to the last one's end; each calls once, and they begin together."""
    barrier, begins, ends = threading.Barrier(count), [], []

    def run(number):
        barrier.wait()
        begins.append(time.monotonic_ns())
        call(number)
        ends.append(time.monotonic_ns())

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(ends) - min(begins)


def test_threads_share_the_bandwidth(memory):
    """That they share nothing else is in emulate_model.c."""
    size = 256 * KIB
    flush = Flush()
    Emulation(flush, **{**FREE, "write_gb_s": 0.1})

    def persist(number):
        # Orders nothing: the time is looked at.
        flush.persist(memory.address + number * size, size)

    for threads in (1, 2, 3):
        assert in_threads(threads, persist) >= threads * size / 0.1 * 0.99


OPERATION = st.tuples(st.sampled_from(("store", "nt_store", "nt_fill", "flush", "drain", "persist")),
                      st.integers(0, 8191), st.integers(0, 700), st.integers(0, 255))


@settings(max_examples=60, deadline=None)
@given(st.lists(OPERATION, max_size=20), st.sampled_from(("clwb", "clflush", "none")),
       st.sampled_from(("auto", "generic")))
def test_data_and_counters_are_the_same(operations, kind, nt):
    found = []
    for numbers in (None, {**FREE, "flush_line_ns": 50, "nt_drain_ns": 500, "write_gb_s": 5}):
        memory, flush = Memory(16 * KIB), Flush(kind=kind, nt=nt)
        if numbers:
            Emulation(flush, **numbers)
        for name, place, length, byte in operations:
            if name == "nt_fill":
                flush.nt_fill(memory.address + place, byte, length)
            elif name == "drain":
                flush.drain()  # order: as the example has it, here and below
            elif name in ("flush", "persist"):
                getattr(flush, name)(memory.address + place, length)
            else:
                getattr(flush, name)(memory.address + place, bytes([byte]) * length)
        found.append((memory.bytes(), flush.counters()))
    assert found[0] == found[1]


def test_flush_on_power_failure_pays_for_what_goes_past_the_cache_alone(memory):
    flush = Flush(kind="none")
    emulation = Emulation(flush, **SLOW)
    flush.flush(memory.address, 4096)
    # Orders nothing: counters are looked at.
    flush.drain()
    assert emulation.counters()["lines"] == 0 and emulation.asked(64, False) == 0
    flush.nt_fill(memory.address, 0, 4096)
    # As above.
    flush.drain()
    assert emulation.counters()["lines"] == 64
    assert [one.what for one in emulate.Medium(Flush(kind="none"), slow()).checks] == [
        "nt 64 B", "nt 4 KiB", "nt 1 MiB"]
    assert emulate.Medium(Flush(kind="none", nt="generic"), slow()).checks == []


def slow(**more):
    return emulate.Profile(**{"name": "slow", "words": "", **SLOW, **more})


def test_refusals():
    with pytest.raises(UsageError, match="'msync'"):
        Emulation(Flush(kind="msync"), **SLOW)
    flush = Flush()
    Emulation(flush, **SLOW)
    with pytest.raises(UsageError, match="emulated already"):
        Emulation(flush, **SLOW)
    for rounds in (0, MAX_ROUNDS + 1):
        with pytest.raises(ValueError, match=str(rounds)):
            Emulation(Flush(), **SLOW).measure(1, False, True, rounds)


def test_a_table_outlives_who_asked_for_it(memory):
    flush = Flush()
    Emulation(flush, **SLOW)
    gc.collect()
    for _ in range(100):
        Emulation(Flush(), **FREE)  # would reuse what was freed too early
    # Orders nothing: the time is looked at.
    assert took(flush.persist, memory.address, 64) >= 6000


def test_a_recorder_on_top_logs_the_same_and_the_delays_stay():
    path = f"/dev/shm/daxfs-emulate-{os.getpid()}"
    create_file(path, MIB)
    try:
        with Region.open([path]) as region:
            Emulation(region.flush, **SLOW)
            emulated = functions(region.flush)
            with Recorder(region) as recorder:
                start = time.monotonic_ns()
                region.nt_store(4096, b"abc")
                region.flush_range(0, 64)
                # Order is what the log is looked at for: the drain is last.
                region.drain()
                assert time.monotonic_ns() - start >= 800 + 1000 + 5000
                kinds = [log.NAMES[e.kind] for e in log.parse(recorder.take()) if e.kind != log.SITE]
                assert kinds == ["nt_store", "flush", "drain"]
                with pytest.raises(UsageError, match="recorded or emulated"):
                    Emulation(region.flush, **SLOW)
            assert functions(region.flush) == emulated
    finally:
        os.unlink(path)


# -- profiles --

def test_the_media_of_the_package():
    media = emulate.known()
    assert list(media) == ["dram", "pmem1", "pmem1-single", "pmem2", "cxl"]
    for name, one in media.items():
        assert (one.name, one.path) == (name, "") and one.words and one.source
        assert all(value > 0 for value in one.numbers().values())
        assert emulate.find(name) == one
    assert emulate.find("none") is None
    # What the paper found: DRAM and Optane differ little for one thread, and in bandwidth most.
    assert media["dram"].write_gb_s > 5 * media["pmem1"].write_gb_s > 5 * media["pmem1-single"].write_gb_s
    assert media["dram"].nt_line_ns < media["pmem1"].nt_line_ns


def test_the_document_has_the_same_numbers():
    text = (Path(__file__).resolve().parents[2] / "docs/emulation.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    table = {row[0]: row[1:] for row in rows if len(row) == 7}
    head = table.pop("emulate=")
    del table["---"]
    assert table == {name: [one.words, *(f"{one.numbers()[key]:g}" for key in head[1:])]
                     for name, one in emulate.known().items()}


def test_pmem1_is_within_a_tenth_of_the_figures_that_it_is_made_from():
    """Yang et al., FAST 2020, figure 12: ns of one thread that stores and fences so many lines."""
    one = emulate.known()["pmem1"]
    lines = (1, 2, 4, 8, 16, 32, 64)
    nt = (124.69, 134.69, 211.98, 304.68, 483.97, 853.50, 1550.55)
    clwb = (116.43, 133.71, 192.47, 327.90, 601.01, 1015.17, 1774.25)
    for n, past, through in zip(lines, nt, clwb, strict=True):
        assert math.isclose(one.nt_drain_ns + n * one.nt_line_ns, past, rel_tol=0.1)
        assert math.isclose(one.flush_drain_ns + n * one.flush_line_ns, through, rel_tol=0.1)


def test_a_name_that_there_is_not():
    with pytest.raises(UsageError, match=r"pmem2, cxl, or the path of a file.*: \./optane"):
        emulate.find("optane")


def test_a_file_of_the_users(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    found = emulate.find(str(path))
    assert (found.name, found.words, found.write_gb_s, found.path) == ("mine", "", 0.0, str(path))
    assert (found.flush_line_ns, found.flush_drain_ns, found.title) == (30.0, 80.5, "mine")
    path.write_text(TEXT + "write_gb_s = 2\nname = 'x-1'\nwords = 'a word'\nsource = 'me'\n")
    found = emulate.find(str(path))
    assert (found.title, found.write_gb_s, found.source) == ("x-1: a word", 2.0, ("me",))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("flush_line_ns = ", "not TOML"), ("\udcff", "not TOML"), ("", "flush_line_ns is missing"),
        (TEXT.replace("nt_drain_ns", "nt_drian_ns"), "unknown key 'nt_drian_ns'"),
        (TEXT + "[pmem9]\nx = 1\n", "unknown key 'pmem9'"), (TEXT + "path = '/x'\n", "unknown key 'path'"),
        (TEXT.replace("= 30", "= -1"), "flush_line_ns = -1: from 0 to 100,000"),
        (TEXT.replace("= 30", "= 1e9"), "from 0 to 100,000"), (TEXT.replace("= 30", "= nan"), "not a number"),
        (TEXT + "words = " + "[" * 20000 + "]" * 20000, "not TOML"),
        (TEXT.replace("= 30", f"= {'9' * 400}"), "a very large number: from 0 to 100,000"),
        (TEXT.replace("= 30", f"= -{'9' * 400}"), "a very large number"),
        (TEXT.replace("30", "9" * 5000), "not TOML"),
        (TEXT.replace("= 30", "= inf"), "not a number"), (TEXT.replace("= 30", "= true"), "not a number"),
        (TEXT.replace("= 30", "= '30'"), "not a number"), (TEXT.replace("80.5", "1e8"), "10,000,000"),
        (TEXT + "write_gb_s = 0.0001\n", "from 0.001 on, or 0"), (TEXT + "write_gb_s = 1e5\n", "10,000"),
        (TEXT + "name = 'none'\n", "name 'none': means no medium"), (TEXT + "name = 'a b'\n", "name 'a b'"),
        (TEXT + "name = 3\n", "name 3"), (TEXT + "words = 3\n", "words"),
        (TEXT + 'words = "a\\nb"\n', "words"),
        (TEXT + "source = [1]\n", "source"), (TEXT + "#" * 65536, "longer than"),
    ],
)  # fmt: skip
def test_a_file_that_is_none(tmp_path, text, word):
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError) as caught:
        emulate.find(str(path))
    assert word in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("stem", ["two words", "none", "a,b", "-x"])
def test_a_file_whose_own_name_is_no_mediums_says_how_to_give_one(tmp_path, stem):
    path = tmp_path / f"{stem}.toml"
    path.write_text(TEXT)
    with pytest.raises(UsageError, match=r"that is the file's name, name = .* in it gives another"):
        emulate.find(str(path))
    path.write_text(TEXT + "name = 'other'\n")
    assert emulate.find(str(path)).name == "other"
    path.write_text(TEXT + "name = '/'\n")
    with pytest.raises(UsageError, match=r"at most 32$"):
        emulate.find(str(path))


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, word in ((tmp_path, "Is a directory"), (tmp_path / "fifo", "not a regular file"),
                       (tmp_path / "no", "No such file"), ("/dev/null", "not a regular file")):
        with pytest.raises(UsageError, match=word):
            emulate.find(str(path))


# -- the self-check --

class Told:
    """In the place of Emulation: times that the test makes up."""

    clock, ticks_per_ns = "tsc", 1.0

    def __init__(self, flush, **numbers):
        self.calls = []

    def asked(self, lines, nt):
        return 1000.0 * lines

    def counters(self):
        return {}

    def measure(self, lines, nt, emulated, rounds):
        self.calls.append((lines, rounds))
        return self.times(1000 * lines) if emulated else (self.host(1000 * lines), 0)

    def times(self, asked):
        return asked, asked

    def host(self, asked):
        return 10


def medium(monkeypatch, **methods):
    monkeypatch.setattr(emulate, "Emulation", type("Made", (Told,), methods))
    return emulate.Medium(None, slow())


def test_a_medium_that_is_as_asked_for(monkeypatch):
    made = medium(monkeypatch)
    assert made.problems == []
    assert [one.bytes for one in made.checks] == [64, 4096, 64, 4096, 64 * KIB]  # 1 MiB would take too long
    assert all(rounds >= 3 for _, rounds in made.emulation.calls)
    described = made.describe()
    assert described["profile"] == "slow" and described["flush_line_ns"] == 1000.0
    assert described["check"][1] == {"what": "flush 4 KiB", "bytes": 4096, "asked_ns": 64000,
                                     "shortest_ns": 64000, "median_ns": 64000, "host_ns": 10}


def test_delays_that_are_too_short_are_no_mount(monkeypatch):
    with pytest.raises(DaxfsError, match="self-check failed: flush 64 B took 500 ns where 1000 ns"):
        medium(monkeypatch, times=lambda self, asked: (asked // 2, asked))


def test_a_host_that_is_slower_than_the_medium_is_told(monkeypatch):
    made = medium(monkeypatch, host=lambda self, asked: 1001,
                  times=lambda self, asked: (max(asked, 1001), max(asked, 1001)))
    why = "this host takes 1001 ns, the medium only 1000 ns: that can't be emulated here"
    assert made.problems == [f"flush 64 B: {why}", f"nt 64 B: {why}"]


def test_a_busy_host_is_told_after_some_tries(monkeypatch):
    made = medium(monkeypatch, times=lambda self, asked: (asked, 2 * asked))
    assert len(made.problems) == 5 and all("too busy" in one for one in made.problems)
    tries = []

    def times(self, asked):
        tries.append(asked)
        return asked, asked * (2 if len(tries) == 1 else 1)

    assert medium(monkeypatch, times=times).problems == []
    assert len(tries) == 6


def test_the_self_check_of_a_real_medium(memory):
    flush = Flush()
    before = flush.counters()
    made = emulate.Medium(flush, slow())
    assert [one.what for one in made.checks] == [case[0] for case in emulate.CASES]
    for one in made.checks:
        assert one.asked * 0.99 <= one.shortest <= one.median
        assert one.host > 0
    # What it has measured with was its own: nothing of it is counted.
    assert flush.counters() == before
    assert made.emulation.counters() == {"lines": 0, "drains": 0, "late": 0, "spun_ns": 0}


@pytest.mark.parametrize("build", ["as-built", "memory"])
def test_a_client_pays_too(tmp_path, build):
    """Its kinds of flush for mounts that emulate a medium: client_media.c."""
    program = tmp_path / "client_media"
    compiled(program, BUILDS[build][0], "client_media.c", ["emulate.c", "flush.c", "flush_x86.c"])
    ended = subprocess.run([program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
