# SPDX-License-Identifier: MIT
"""L1: every flush and non-temporal kernel against plain Python, the counters, and the choice of kind."""

import ctypes
import errno
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from flush_table import table_of

from daxfs._flush import FLUSH_KINDS, NT_KINDS, Flush, available, choose
from daxfs.errors import UsageError

HAVE = available()
PAGE = mmap.PAGESIZE
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LINE_KINDS = [k for k in HAVE["flush"] if k != "msync"]
TABLES = [("cache_line", kind, nt) for kind in LINE_KINDS for nt in HAVE["nt"]]
TABLES += [("byte", "none", nt) for nt in HAVE["nt"]] + [("page", "msync", "generic")]
EVERYTHING = {"flush": list(FLUSH_KINDS), "nt": list(NT_KINDS)}
PORTABLE = {"flush": ["none", "msync"], "nt": ["generic"]}


def aligned(size, align=4096):
    """A writable uint8 array whose address is a multiple of ``align`` (a mapping, so msync takes it)."""
    m = mmap.mmap(-1, size + align)
    whole = np.frombuffer(m, np.uint8)
    skip = -whole.ctypes.data % align
    return whole[skip : skip + size]


def noise(size, seed=1):
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def table_id(t):
    return "-".join(t)


@pytest.mark.parametrize("table", TABLES, ids=table_id)
def test_nt_store_equals_slice_assignment(table):
    """Every offset in a line, lengths around the edges of all loops; what lies beside stays as it was."""
    f = Flush(*table)
    # With msync each call enters the kernel, and the copy is memcpy: fewer lengths will do.
    lengths = range(0, 200, 1 if table[1] != "msync" else 23)
    lengths = [*lengths, 255, 256, 257, 511, 512, 513, 1023, 1024, 1087, 1151, 2048 + 63]
    region, source = aligned(4096), noise(4096 + 64)
    expect = np.empty_like(region)
    for offset in range(64):
        for length in lengths:
            skew = (offset * 7 + length) % 64
            region[:] = expect[:] = 0xA5
            data = source[skew : skew + length]
            f.nt_store(region.ctypes.data + 64 + offset, data)
            expect[64 + offset : 64 + offset + length] = data
            assert np.array_equal(region, expect), (offset, length, skew)
    f.drain()
    f.check()


@pytest.mark.parametrize("table", TABLES, ids=table_id)
def test_nt_fill_equals_slice_assignment(table):
    f = Flush(*table)
    region = aligned(4096)
    expect = np.empty_like(region)
    step = 1 if table[1] != "msync" else 19
    for offset in range(64):
        for length in [*range(0, 200, step), 1023, 1024, 1025]:
            byte = (offset * 5 + length) & 0xFF
            region[:] = expect[:] = byte ^ 0x5A
            f.nt_fill(region.ctypes.data + 64 + offset, byte, length)
            expect[64 + offset : 64 + offset + length] = byte
            assert np.array_equal(region, expect), (offset, length)
    f.drain()
    f.check()


@pytest.mark.parametrize("table", TABLES, ids=table_id)
@pytest.mark.parametrize("offset, skew", [(0, 0), (1, 0), (0, 1), (63, 17), (8, 56)])
def test_large_copy_and_fill(table, offset, skew):
    """Longer than LONG in _flush.pyx, so the path without the GIL as well."""
    f = Flush(*table)
    length = (2 << 20) + 77
    region, source = aligned(length + 4096), noise(length + 64)
    region[:] = 0xA5
    f.nt_store(region.ctypes.data + 64 + offset, source[skew : skew + length])
    f.drain()
    assert np.array_equal(region[64 + offset :][:length], source[skew : skew + length])
    assert (region[: 64 + offset] == 0xA5).all() and (region[64 + offset + length :] == 0xA5).all()
    f.nt_fill(region.ctypes.data + 64 + offset, 0x3C, length)
    f.drain()
    assert (region[64 + offset :][:length] == 0x3C).all()
    assert (region[: 64 + offset] == 0xA5).all() and (region[64 + offset + length :] == 0xA5).all()
    f.check()


@pytest.mark.parametrize("table", TABLES, ids=table_id)
def test_store_flush_and_persist_change_nothing_else(table):
    f = Flush(*table)
    region, source = aligned(64 << 10), noise(64 << 10)
    expect = region.copy()
    for offset, length in [(0, 8), (8, 8), (3, 8), (61, 6), (100, 5000), (7, 40000), (0, 64 << 10)]:
        f.store(region.ctypes.data + offset, source[:length])
        f.persist(region.ctypes.data + offset, length)
        expect[offset : offset + length] = source[:length]
        assert np.array_equal(region, expect)
    f.check()


def test_store_takes_any_contiguous_buffer_and_no_other():
    f, region = Flush(), aligned(64)
    for data in (b"abcdefgh", bytearray(b"12345678"), np.arange(1, dtype="<u8"), memoryview(b"x" * 8)):
        f.store(region.ctypes.data, data)
        assert region[:8].tobytes() == bytes(data)
    with pytest.raises((ValueError, BufferError)):
        f.store(region.ctypes.data, np.zeros((4, 4), np.uint8)[:, ::2])
    with pytest.raises(TypeError):
        f.store(region.ctypes.data, "text")
    with pytest.raises(OverflowError):
        f.flush(-1, 8)


def test_aligned_8_bytes_never_tear():
    """One thread stores two patterns in turn, another must see one of the two. Both long enough to meet."""
    region = aligned(64)
    word = region[:8].view("<u8")
    f, stop, seen = Flush(), threading.Event(), set()
    low, high = (0).to_bytes(8, "little"), (2**64 - 1).to_bytes(8, "little")

    def write():
        while not stop.is_set():
            for data in (low, high):
                f.store(region.ctypes.data, data)
                f.nt_store(region.ctypes.data, data)

    t = threading.Thread(target=write)
    t.start()
    for _ in range(200_000):
        seen.add(int(word[0]))
        if len(seen) > 2:
            break
    stop.set()
    t.join()
    assert seen <= {0, 2**64 - 1}


@pytest.mark.parametrize("table", TABLES, ids=table_id)
def test_counters_are_what_was_asked_for(table):
    f, region = Flush(*table), aligned(8192)
    a = region.ctypes.data
    assert set(f.counters().values()) == {0}
    lines = 0
    for offset, length, covered in [(0, 1, 1), (0, 64, 1), (0, 65, 2), (63, 1, 1), (63, 2, 2), (1, 64, 2),
                                    (32, 4096, 65), (0, 4096, 64)]:
        f.flush(a + offset, length)
        lines += covered
        assert f.counters()["flush_lines"] == lines, (offset, length)
    f.drain()
    f.persist(a, 128)
    f.store(a, b"x" * 10)
    f.nt_store(a + 3, b"y" * 200)       # flushes its edge lines by itself: not counted
    f.nt_fill(a, 0, 100)
    assert f.counters() == {"store": 1, "store_bytes": 10, "nt": 2, "nt_bytes": 300,
                            "flush": 9, "flush_lines": lines + 2, "drain": 2}


@pytest.mark.parametrize("table", TABLES, ids=table_id)
def test_length_zero_does_and_counts_nothing(table):
    f = Flush(*table)
    f.store(0, b"")
    f.nt_store(0, b"")
    f.nt_fill(0, 1, 0)
    f.flush(0, 0)
    assert set(f.counters().values()) == {0}
    f.check()


def test_counters_lose_nothing_between_threads():
    f, region = Flush(), aligned(1 << 16)
    source = noise(1 << 15)

    def work(part):
        for _ in range(500):
            f.nt_store(region.ctypes.data + part * source.size, source)     # long: without the GIL
            f.flush(region.ctypes.data + part * source.size, source.size)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert f.counters()["nt_bytes"] == 1000 * source.size
    assert f.counters()["flush_lines"] == 1000 * source.size // 64


def recording(f):
    """Let the write-back of lines only be recorded; (list of lines, what keeps the callback alive)."""
    queued = []
    callback = ctypes.CFUNCTYPE(None, ctypes.c_size_t, ctypes.c_size_t)(
        lambda line, n: queued.extend(line + 64 * i for i in range(n)))
    table = table_of(f)
    assert table.kind == FLUSH_KINDS.index(f.kind) and table.nt_kind == NT_KINDS.index(f.nt)
    table.lines = ctypes.cast(callback, ctypes.c_void_p).value
    return queued, callback


def edges(addr, length, nt):
    """The lines that an nt_store writes through the cache and must therefore queue."""
    out = []
    for line in range(addr & ~63, addr + length, 64):
        piece = (max(line, addr), min(line + 64, addr + length))
        n = piece[1] - piece[0]
        words = n <= 32 and piece[0] % 8 == 0 and n % 8 == 0
        if nt == "generic" or (n < 64 and not words):
            out.append(line)
    return out


@pytest.mark.parametrize("nt", HAVE["nt"])
@pytest.mark.parametrize("call", ["nt_store", "nt_fill"])
def test_edge_lines_are_queued_and_no_others(nt, call):
    """An edge line that is not written back is lost in a crash: the classic error of non-temporal copies."""
    f, region = Flush("cache_line", HAVE["flush"][0], nt), aligned(4096)
    queued, _keep = recording(f)
    data = noise(1024)
    for offset in range(64):
        for length in [*range(1, 140), 192, 193, 1000]:
            a = region.ctypes.data + offset
            if call == "nt_store":
                f.nt_store(a, data[:length])
            else:
                f.nt_fill(a, 7, length)
            assert queued == edges(a, length, nt), (offset, length)
            queued.clear()
    f.flush(region.ctypes.data + 60, 10)
    assert queued == [region.ctypes.data, region.ctypes.data + 64]


@pytest.mark.parametrize("kind", [kind for kind in HAVE["flush"] if kind.startswith("cl")])
def test_each_kind_is_the_instruction_of_its_name(kind):
    """The first cache instruction of the bound code: 0F AE with /6 or /7, with the prefix 66 or without."""
    f = Flush("cache_line", kind)
    code = ctypes.string_at(table_of(f).lines, 64)
    found = re.search(rb"(\x66?)[\x40-\x4f]?\x0f\xae(.)", code, re.DOTALL)
    assert found and found[2][0] >> 6 < 3, "a fence" if found else code.hex()
    assert (found[1], found[2][0] >> 3 & 7) == {"clwb": (b"\x66", 6), "clflushopt": (b"\x66", 7),
                                                "clflush": (b"", 7)}[kind]


def test_choice_can_be_read_back():
    for g, kind, nt in TABLES:
        f = Flush(g, kind, nt)
        assert (f.granularity, f.kind, f.nt) == (g, kind, nt)
        assert kind in repr(f)
    assert Flush("page").kind == "msync" and Flush("page").nt == "generic"
    assert Flush("byte").kind == "none" and Flush("byte").nt == HAVE["nt"][-1]
    assert Flush().kind == HAVE["flush"][0]


@pytest.mark.parametrize(
    "have, granularity, expect",
    [
        (EVERYTHING, "cache_line", ("clwb", "avx512")),
        ({"flush": ["clflushopt", "clflush", "none", "msync"], "nt": ["generic", "sse2"]}, "cache_line",
         ("clflushopt", "sse2")),
        ({"flush": ["clflush", "none", "msync"], "nt": ["generic", "sse2", "avx"]}, "cache_line",
         ("clflush", "avx")),
        (EVERYTHING, "byte", ("none", "avx512")),
        (EVERYTHING, "page", ("msync", "generic")),
        (PORTABLE, "cache_line", ("msync", "generic")),
        (PORTABLE, "byte", ("none", "generic")),
    ],
)
def test_auto_takes_the_best_of_each_cpu(have, granularity, expect):
    assert choose(granularity, have=have) == expect


@pytest.mark.parametrize("kind", ["clwb", "clflushopt", "clflush"])
def test_a_flush_kind_the_cpu_lacks_is_refused(kind):
    have = {"flush": [k for k in FLUSH_KINDS if k != kind], "nt": list(NT_KINDS)}
    with pytest.raises(UsageError, match=f"can't do flush kind '{kind}'; it has: .*none, msync"):
        choose(kind=kind, have=have)
    if kind not in HAVE["flush"]:
        with pytest.raises(UsageError, match="it has"):
            Flush(kind=kind)


@pytest.mark.parametrize("nt", ["sse2", "avx", "avx512"])
def test_a_non_temporal_kind_the_cpu_lacks_is_refused(nt):
    have = {"flush": list(FLUSH_KINDS), "nt": [k for k in NT_KINDS if k != nt]}
    with pytest.raises(UsageError, match=f"can't do non-temporal kind '{nt}'; it has: generic"):
        choose(nt=nt, have=have)
    if nt not in HAVE["nt"]:
        with pytest.raises(UsageError, match="it has"):
            Flush(nt=nt)


@pytest.mark.parametrize(
    "demand, message",
    [
        (("line",), "granularity 'line' is unknown; one of: byte, cache_line, page"),
        (("auto",), "granularity 'auto' is unknown"),
        (("byte", "pcommit"), "flush kind 'pcommit' is unknown; one of: auto, clwb"),
        (("byte", "auto", "neon"), "non-temporal kind 'neon' is unknown"),
        (("page", "none"), "only 'msync' does"),
        (("page", "auto", "sse2"), "'sse2' can't be had with flush kind 'msync'"),
    ],
)
def test_what_makes_no_sense_is_refused(demand, message):
    with pytest.raises(UsageError, match=message) as e:
        if "sse2" in demand:
            choose(*demand, have=EVERYTHING)
        Flush(*demand)
    assert e.value.errno == errno.EINVAL


def test_cpuid_agrees_with_the_kernel():
    """Flags as /proc/cpuinfo lists them; what it says is missing must not be offered, and the reverse."""
    if platform.machine() != "x86_64":
        assert HAVE == PORTABLE
        return
    with open("/proc/cpuinfo") as cpuinfo:
        flags = next(line for line in cpuinfo if line.startswith("flags")).split()
    for kind in ("clwb", "clflushopt", "clflush"):
        assert (kind in flags) == (kind in HAVE["flush"])
    for nt, flag in (("sse2", "sse2"), ("avx", "avx"), ("avx512", "avx512f")):
        assert (flag in flags) == (nt in HAVE["nt"])


def test_msync_reaches_the_file(tmp_path):
    """The kind works on a real file mapping, with ranges that are not page-aligned."""
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * PAGE))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as m:
        view = np.frombuffer(m, np.uint8)
        f, a = Flush("page"), view.ctypes.data
        f.store(a + PAGE - 3, b"stored")
        f.flush(a + PAGE - 3, 6)
        f.nt_store(a + 2 * PAGE + 5, b"nt")
        f.nt_fill(a + 4 * PAGE - 9, 0x7E, 9)
        f.drain()
        f.check()
        assert f.counters()["flush_lines"] == 2
        del view
    data = path.read_bytes()
    assert data[PAGE - 3 :][:6] == b"stored"
    assert data[2 * PAGE + 5 :][:2] == b"nt" and data[-9:] == b"\x7e" * 9


def test_msync_error_is_kept_until_it_is_read():
    libc = ctypes.CDLL(None, use_errno=True)
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
    a = libc.mmap(None, 2 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    assert libc.munmap(a + PAGE, PAGE) == 0
    f = Flush("page")
    f.flush(a, 16)
    f.check()
    f.flush(a + PAGE - 8, 16)           # the second page is not there
    f.flush(a, 16)                      # a later success must not hide it
    f.drain()
    with pytest.raises(OSError, match="not be durable") as e:
        f.check()
    assert e.value.errno == errno.ENOMEM
    f.check()                           # told once
    assert f.failures == 1
    table_of(f).error = errno.EIO
    f.flush(a + PAGE, 8)                # the first failure is the one that is told
    with pytest.raises(OSError) as e:
        f.check()
    assert e.value.errno == errno.EIO and f.failures == 2
    assert libc.munmap(a, PAGE) == 0


def test_portable_half_stands_alone(tmp_path):
    """Built as on a CPU that daxfs knows nothing about: none and msync only, and right."""
    cc = shutil.which("cc")
    if cc is None:
        pytest.skip("no C compiler")
    native = os.path.join(ROOT, "daxfs", "native")
    lib = tmp_path / "portable.so"
    sources = [os.path.join(native, name) for name in ("flush.c", "flush_x86.c")]
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
    subprocess.run([cc, "-std=gnu11", "-O1", *warnings, "-shared", "-fPIC", "-DDAXFS_NO_X86", "-I", ROOT,
                    "-o", lib, *sources], check=True)
    so = ctypes.CDLL(str(lib))
    assert so.daxfs_flush_available() == 1 << 3 | 1 << 4 | 1 << 8
    t = (ctypes.c_uint64 * 64)()
    assert so.daxfs_flush_bind(t, 1, 0, -1) == -errno.EOPNOTSUPP
    assert so.daxfs_flush_bind(t, 0, -1, 1) == -errno.EOPNOTSUPP
    assert so.daxfs_flush_bind(t, 0, -1, -1) == 0
    address = ctypes.c_void_p
    nt_store = ctypes.CFUNCTYPE(None, address, address, address, ctypes.c_size_t)(t[1])
    drain = ctypes.CFUNCTYPE(None, address)(t[4])
    region, source = aligned(4096), noise(4096)
    nt_store(ctypes.addressof(t), region.ctypes.data + 5, source.ctypes.data, 1000)
    drain(ctypes.addressof(t))
    assert np.array_equal(region[5:1005], source[:1000]) and not region[1005:].any() and not region[:5].any()


def test_long_calls_let_other_threads_run():
    """With no forced switches, the main thread gets on before the fill ends only if it gave up the GIL."""
    f, region = Flush(), aligned(64 << 20)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        for _ in range(50):             # the scheduler may be late: once is proof enough
            started, done = threading.Event(), threading.Event()

            def fill(started=started, done=done):
                started.set()
                f.nt_fill(region.ctypes.data, 1, region.size)
                done.set()

            t = threading.Thread(target=fill)
            t.start()
            started.wait()
            overlapped = not done.is_set()
            t.join()
            if overlapped:
                break
    finally:
        sys.setswitchinterval(interval)
    assert overlapped
