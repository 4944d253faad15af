# SPDX-License-Identifier: MIT
"""Measure the flush primitives against libpmem: same process, same buffers, alternated rounds, medians.

Needs cc and libpmem (Debian: libpmem-dev) and an installed daxfs. Runs alone, prints a table or JSON;
draws nothing. Exit status: 0 within the target, 1 outside it, 2 something is missing.
"""

import argparse
import ctypes
import json
import mmap
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# Before libpmem is loaded: its defaults decide, whatever the caller's environment says.
OVERRIDES = sorted(name for name in os.environ if name.startswith("PMEM"))
for _name in OVERRIDES:
    del os.environ[_name]
os.environ["PMEM_IS_PMEM_FORCE"] = "1"

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = 1.1
MIB = 1 << 20
# (what, bytes, destination's offset in a line, source's offset in a line, counts for the target)
CASES = [
    ("flush dirty lines", 2 * MIB, 0, 0, True),
    ("flush dirty lines", 4096, 0, 0, False),
    ("flush dirty lines", 64, 0, 0, False),
    ("nt copy", 2 * MIB, 0, 0, True),
    ("nt copy", 2 * MIB, 24, 5, False),
    ("nt copy", 64 * MIB, 0, 0, False),
    ("nt copy", 65536, 0, 0, False),
    ("nt copy", 4096, 0, 0, False),
    ("nt copy", 4096, 3, 0, False),
    ("nt copy", 300, 3, 0, False),
    ("nt copy", 256, 0, 0, False),
    ("nt copy", 64, 0, 0, False),
    ("nt copy", 8, 8, 0, False),
    ("nt fill", 2 * MIB, 0, 0, False),
    ("nt fill", 4096, 0, 0, False),
]


class Missing(Exception):
    """Something that the comparison needs is not on this host."""


def build_reference(folder):
    """Compile pmem_ref.c and load it; the loader brings libpmem in."""
    cc = shutil.which("cc")
    if cc is None:
        raise Missing("no C compiler (cc): install gcc")
    lib = Path(folder) / "pmem_ref.so"
    argv = [cc, "-O2", "-shared", "-fPIC", "-I", ROOT, "-o", lib, HERE / "pmem_ref.c", "-lpmem"]
    r = subprocess.run(argv, capture_output=True, text=True, check=False)
    if r.returncode:
        why = "install libpmem-dev" if "libpmem" in r.stderr or "-lpmem" in r.stderr else "see above"
        raise Missing(f"{r.stderr.strip()}\npmem_ref.c can't be built against libpmem: {why}")
    so = ctypes.CDLL(str(lib))
    p, n, i = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for name, args in {
        "daxfs_flush_ns": [p, p, n, i, n, n], "pmem_flush_ns": [p, n, i, n, n],
        "daxfs_copy_ns": [p, p, p, n, n, n], "pmem_copy_ns": [p, p, n, n, n],
        "pmem_copy_flags_ns": [p, p, n, i],
        "daxfs_fill_ns": [p, p, i, n, n, n], "pmem_fill_ns": [p, i, n, n, n],
    }.items():
        getattr(so, name).argtypes = args
        getattr(so, name).restype = ctypes.c_double
    return so


def buffers(size):
    """Destination in tmpfs (as an emulated region) and source, both 2 MiB aligned and touched."""
    import numpy as np

    with tempfile.TemporaryFile(dir="/dev/shm", prefix="daxfs-bench-flush-") as file:
        file.truncate(size + 4 * MIB)
        maps = [mmap.mmap(file.fileno(), 0), mmap.mmap(-1, size + 4 * MIB)]
    arrays = [np.frombuffer(m, np.uint8) for m in maps]
    for a in arrays:
        a[:] = 1
    return arrays, [-(-a.ctypes.data // (2 * MIB)) * 2 * MIB for a in arrays]


def pair(so, table, case, dst, src, repeat):
    """The two calls of one case, each taking the number of the round and answering nanoseconds."""
    what, size, d, s, _ = case
    dst, src = dst + d, src + s
    walk = (repeat, -(-size // 64) * 64 + 64 * (d > 0 and repeat > 1))
    if what == "flush dirty lines":
        return (lambda r: so.daxfs_flush_ns(table, dst, size, r & 127, *walk),
                lambda r: so.pmem_flush_ns(dst, size, r & 127, *walk))
    if what == "nt copy":
        return (lambda r: so.daxfs_copy_ns(table, dst, src, size, *walk),
                lambda r: so.pmem_copy_ns(dst, src, size, *walk))
    return (lambda r: so.daxfs_fill_ns(table, dst, r & 255, size, *walk),
            lambda r: so.pmem_fill_ns(dst, r & 255, size, *walk))


def measure(so, flush, case, dst, src, rounds):
    """Medians of ``rounds`` alternated rounds; who goes first changes with each.

    A round of a small size is 64 operations on neighbouring lines, each drained.
    """
    size = case[1]
    repeat = 64 if size <= 65536 else 1
    rounds = max(15, min(rounds, rounds * 2 * MIB // (size * repeat)))
    ours, theirs = pair(so, flush.table, case, dst, src, repeat)
    a, b = [], []
    for r in range(rounds + 4):
        if r % 2:
            x, y = ours(r), theirs(r)
        else:
            y, x = theirs(r), ours(r)
        if r >= 4:                      # the first ones warm page tables and caches up
            a.append(x / repeat)
            b.append(y / repeat)
    a_ns, b_ns = statistics.median(a), statistics.median(b)
    return {"what": case[0], "bytes": size, "dst_offset": case[2], "src_offset": case[3], "rounds": rounds,
            "repeat": repeat, "daxfs_ns": a_ns, "libpmem_ns": b_ns, "daxfs_GBps": size / a_ns,
            "libpmem_GBps": size / b_ns, "ratio": a_ns / b_ns, "target": TARGET if case[4] else None}


def libpmem_goes_non_temporal(so, dst, src):
    """Times of a 2 MiB copy: plain, told non-temporal, told temporal. The first must be like the second."""
    runs = [[], [], []]
    for _ in range(60):
        runs[0].append(so.pmem_copy_ns(dst, src, 2 * MIB, 1, 0))
        runs[1].append(so.pmem_copy_flags_ns(dst, src, 2 * MIB, 1))
        runs[2].append(so.pmem_copy_flags_ns(dst, src, 2 * MIB, 2))
    plain, nt, temporal = (statistics.median(r) for r in runs)
    return {"plain_ns": plain, "nt_ns": nt, "temporal_ns": temporal,
            "takes_nt": abs(plain - nt) < abs(plain - temporal)}


def host():
    """What a reader needs in order to place the numbers."""
    cpu = platform.processor()
    with open("/proc/cpuinfo") as f:
        cpu = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), cpu)
    r = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True,
                       text=True, check=False)
    return {"commit": r.stdout.strip(), "cpu": cpu, "kernel": platform.release(), "load": os.getloadavg()[0],
            "PMEM_* removed": OVERRIDES}


def show(result):
    from rich.console import Console
    from rich.table import Table

    console, h, f = Console(), result["host"], result["flush"]
    console.print(f"{h['cpu']}, kernel {h['kernel']}, commit {h['commit']}, {f['kind']} / {f['nt']}")
    nt = result["libpmem"]
    plain, told, temporal = (nt[k] / 1e3 for k in ("plain_ns", "nt_ns", "temporal_ns"))
    console.print(f"libpmem copy of 2 MiB: plain {plain:.0f} µs, told nt {told:.0f}, told temporal "
                  f"{temporal:.0f}: it takes {'nt' if nt['takes_nt'] else 'temporal'}")
    t = Table("operation", "bytes", "dst+", "src+", "rounds", "daxfs µs", "libpmem µs", "daxfs GB/s", "ratio",
              "target")
    for c in t.columns[1:]:
        c.justify = "right"
    for r in result["rows"]:
        bad = r["target"] and r["ratio"] > r["target"]
        t.add_row(r["what"], f"{r['bytes']:,}", str(r["dst_offset"]), str(r["src_offset"]), str(r["rounds"]),
                  f"{r['daxfs_ns'] / 1e3:.2f}", f"{r['libpmem_ns'] / 1e3:.2f}", f"{r['daxfs_GBps']:.2f}",
                  f"{r['ratio']:.3f}", f"{r['target']:.1f}" if r["target"] else "",
                  style="red" if bad else None)
    console.print(t)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=400, help="rounds for each operation of up to 2 MiB")
    parser.add_argument("--kind", default="auto")
    parser.add_argument("--nt", default="auto")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        from daxfs._flush import Flush

        flush = Flush(kind=args.kind, nt=args.nt)
        with tempfile.TemporaryDirectory(prefix="daxfs-bench-") as folder:
            so = build_reference(folder)
    except (ImportError, OSError, Missing) as e:
        print(f"flush bench: {e}", file=sys.stderr)
        return 2
    arrays, (dst, src) = buffers(64 * MIB)
    result = {"host": host(), "flush": {"kind": flush.kind, "nt": flush.nt},
              "libpmem": libpmem_goes_non_temporal(so, dst, src),
              "rows": [measure(so, flush, case, dst, src, args.rounds) for case in CASES]}
    del arrays
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)
    missed = [r for r in result["rows"] if r["target"] and r["ratio"] > r["target"]]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
