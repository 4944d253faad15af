# SPDX-License-Identifier: MIT
"""How long one flusher and two take to write back so much, in turns: where FLUSHERS_FROM comes from.

usage: flushers.py [ROUNDS]. Prints, for each size, the best eighth and the median of both in µs. Needs
/dev/shm with 100 MiB.
"""

import os
import sys
import tempfile
import time

from daxfs._iomap import MAPPED, FileMap
from daxfs.data._dax_io import DaxIo
from daxfs.data._tracker import PteTracker
from daxfs.region import Region, create_file

MIB = 1 << 20
SIZES = (1, 2, 3, 4, 8, 16, 64)  # MiB


def rig(region: Region, flushers: int):
    dax, f = DaxIo(region, PteTracker(), "cached", flushers=flushers), FileMap()
    f.load([(0, 64 * 256, 512, MAPPED, 0)])
    f.size = 64 * MIB
    dax.tracker.attach(f)
    return dax, f


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    data = bytes(range(256)) * (MIB // 256)
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="daxfs-flushers-") as file:
        create_file(file.name + ".region", 80 * MIB)
        region = Region.open([file.name + ".region"])
        try:
            region.nt_fill(0, 1, 80 * MIB)
            rigs = {n: rig(region, n) for n in (1, 2)}
            for size in SIZES:
                took: dict[int, list[int]] = {n: [] for n in rigs}
                for _ in range(rounds):
                    for n, (dax, f) in rigs.items():
                        for part in range(size):
                            dax.write(f, part * MIB, data)
                        time.sleep(0.002)  # helpers sleep
                        start = time.perf_counter_ns()
                        dax.writeback(f)
                        took[n].append(time.perf_counter_ns() - start)
                shown = [f"{sorted(ns)[rounds // 8] / 1e3:7.0f} {sorted(ns)[rounds // 2] / 1e3:7.0f}"
                         for ns in took.values()]
                print(f"{size:3} MiB   one {shown[0]}   two {shown[1]}", flush=True)
        finally:
            region.close()
            os.unlink(file.name + ".region")


if __name__ == "__main__":
    main()
