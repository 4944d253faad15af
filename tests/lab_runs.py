# SPDX-License-Identifier: MIT
"""Made-up runs of experiments, in the format of the laboratory (tools/lab): for tests of what reads them.

    tests/lab_runs.py DIR     a large one and a small one, to look at what tools/plot_sweep.py makes of them

The numbers are drawn from a seed and have the shape that the policies should have; they are no measurements.
"""

import json
import random
import sys
from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20
HOST = {"commit": "23a3c59", "kernel": "6.18.44", "cpu": "Made-up CPU @ 2.30GHz", "cpus": 2,
        "memory_bytes": 8 << 30, "python": "3.11.7", "daxfs": "0.1.0", "flush": "clwb"}  # fmt: skip
AXES = {"dirty": {"label": "dirty bytes", "unit": "B", "kind": "number"},
        "mapped": {"label": "mapped bytes", "unit": "B", "kind": "number"},
        "track": {"label": "track=", "kind": "name"}, "via": {"label": "stores by", "kind": "name"},
        "flushers": {"label": "flushers=", "unit": "", "kind": "number"},
        "target": {"label": "file system", "kind": "name"}}  # fmt: skip
MEASURES = {"ns": {"label": "fsync", "unit": "ns", "better": "lower"},
            "mib_s": {"label": "throughput", "unit": "MiB/s", "better": "higher"}}  # fmt: skip
DIRTY = {"name": "dirty", "title": "fsync against what is dirty", "measure": "ns",
         "draw": ["lines", "cdf", "phases"], "x": "dirty", "line": ["track"], "panel": ["via"],
         "words": "Each policy flushes what it holds for dirty. Look at where the lines leave the floor."}
MAPPED = {"name": "mapped", "title": "fsync of one page against what is mapped", "measure": "ns",
          "draw": ["lines"], "x": "mapped", "line": ["track"], "panel": [],
          "words": "A flat line costs what is dirty."}  # fmt: skip
BARS = {"name": "s17", "title": "A large file written anew", "measure": "mib_s", "draw": ["bars"], "x": None,
        "line": ["target"], "panel": [], "words": "Written, then fsync. Higher is better."}
UNIT = {"pte": 4 * KIB, "pmd": 2 * MIB, "line": 64, "extent": 64 * MIB, "extent+clear": 48 * MIB, "none": 0}


def cost(track: str, dirty: int) -> float:
    """Nanoseconds of a made-up fsync."""
    unit = UNIT[track]
    flushed = -(-dirty // unit) * unit if unit and dirty else 0
    return 2600 + flushed / 64 * 2.1


def write(folder: Path, families: list, visits: list, torn: str = "", **more) -> Path:
    """run.json and samples.jsonl in *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"format": 1, "experiment": "fsync_sweep", "title": "fsync under six policies",
             "command": "tools/fsync_sweep.py --quick", "host": HOST,
             "options": {"quick": False, "rounds": 3}, "seed": 1,
             "started": "2026-11-22T03:00:00+00:00", "ended": "2026-11-22T03:04:10+00:00",
             "emulate": "none", "axes": AXES, "measures": MEASURES, "families": families} | more
    (folder / "run.json").write_text(json.dumps(facts, indent=1))
    lines = [json.dumps(visit) for visit in visits]
    (folder / "samples.jsonl").write_text("".join(line + "\n" for line in lines) + torn)
    return folder


def visit(family: str, cell: dict, samples: dict, number: int = 0, **more) -> dict:
    return {"family": family, "cell": cell, "round": number, "seq": number, "at_s": 0.5 * number + 0.5,
            "load": 0.4, "samples": samples} | more


def noisy(chance: random.Random, middle: float, count: int) -> list:
    return [round(middle * chance.lognormvariate(0, 0.06) + (middle * 3 if chance.random() < 0.02 else 0), 1)
            for _ in range(count)]


def sweep(tracks=tuple(UNIT), sizes=(0, 64, 4 * KIB, 64 * KIB, MIB, 16 * MIB), vias=("write", "mmap"),
          rounds: int = 2, count: int = 20, seed: int = 1) -> list:
    """Visits of the families dirty and mapped."""
    chance, made = random.Random(seed), []
    for number in range(rounds):
        for via in vias:
            for track in tracks:
                for dirty in sizes:
                    middle = cost(track, dirty) * (1.15 if via == "mmap" else 1)
                    inside = middle - 1900
                    made.append(visit(
                        "dirty", {"dirty": dirty, "track": track, "via": via, "flushers": 1},
                        {"ns": noisy(chance, middle, count)}, number,
                        counts={"flushes": (middle - 2600) / 2.1, "drains": 1,
                                "flushed_bytes": (middle - 2600) * 30},
                        phases={"look": 60, "walk": 110, "flush": max(inside - 400, 20), "drain": 90,
                                "meta": 80, "reply": 40, "other": 20}))  # fmt: skip
        for track in tracks:
            for mapped in (2 * MIB, 16 * MIB, 128 * MIB, 1024 * MIB):
                middle = cost(track, 4 * KIB) * (1 + (mapped / (256 * MIB) if track == "extent" else 0))
                made.append(visit("mapped", {"mapped": mapped, "track": track, "dirty": 4 * KIB},
                                  {"ns": noisy(chance, middle, count)}, number))  # fmt: skip
    return made


def targets(seed: int = 2, count: int = 5, rounds: int = 2) -> list:
    chance, speeds = random.Random(seed), {"uring": 4990, "dev": 4012, "pyfuse3": 858, "ext4": 2422,
                                           "xfs": 2611, "tmpfs": 5290}  # fmt: skip
    return [visit("s17", {"target": name}, {"mib_s": noisy(chance, middle, count)}, number)
            for number in range(rounds) for name, middle in speeds.items()]  # fmt: skip


if __name__ == "__main__":
    where = Path(sys.argv[1])
    lacks = {"dirty": 64, "track": "pmd", "via": "msync"}
    skips = [{"family": "dirty", "cell": lacks, "skipped": "no userfaultfd"}]
    large = tuple(64 * 4**power for power in range(11))
    visits = sweep(sizes=(0, *large), vias=("write", "mmap", "daxfs.client"), rounds=3, count=60)
    write(where / "large", [DIRTY, MAPPED, BARS], visits + targets() + skips)
    write(where / "small", [DIRTY, MAPPED], sweep(rounds=1), torn='{"family": "dir', ended=None,
          emulate="cxl", options={"quick": True})  # fmt: skip
