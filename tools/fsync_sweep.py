#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How long fsync takes: against what is dirty, what is mapped, and by every policy that daxfs has.

Trial version.
"""
import sys
from functools import partial

import lab.start  # noqa: F401
from lab import arguments
from lab.plan import Axis, Cell, Family, Measure, Plan, Visit
from lab.rigs import Rigs, spent
from lab.worker import Worker

AXES = {"dirty": Axis("dirty bytes", "number", "B"), "track": Axis("track="), "via": Axis("stored by")}

def visit(rigs, workers, cell, seconds, seed):
    rig = rigs.get("transport=uring,write=cached")
    rig.set("track", cell["track"])
    w = workers
    placement = "packed" if cell["via"] == "write" else "own"
    path = rig.folder(placement) / "file"
    w.ask("open", path, 16 << 20, cell["via"])
    if cell["track"].startswith("extent"):
        w.ask("arm", 65536)
    before = rig.stat()
    got = w.run("fsync", "together", cell["dirty"], 1000, seconds, seed)
    counts, phases = spent(before, rig.stat(), len(got["ns"]) + 1)
    w.ask("close")
    return Visit({"ns": got["ns"], "store_ns": got["store_ns"]}, counts, phases)

def plan(args):
    rigs, worker = Rigs(256 << 20), Worker()
    cells = []
    for via in ("write", "kernel", "user", "mmap"):
        for track in ("pte", "pmd", "extent", "none"):
            for dirty in (64, 4096, 65536, 1 << 20):
                cell = {"dirty": dirty, "track": track, "via": via}
                cells.append(Cell(cell, partial(visit, rigs, worker, cell)))
    return Plan("fsync_sweep", "t", AXES, {"ns": Measure("fsync", "ns"), "store_ns": Measure("store", "ns")},
                [Family("dirty", "fsync against dirty bytes", "words", "ns", ("lines",), ("track",), cells,
                        "dirty", ("via",), rigs.close)], args.rounds, worker.close)

def main():
    p = arguments.parser(__doc__, "fsync_sweep", 10)
    args = arguments.settle(p.parse_args(), "fsync_sweep")
    return arguments.carry_out(args, plan)
sys.exit(main())
