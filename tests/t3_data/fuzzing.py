# SPDX-License-Identifier: MIT
"""One run of `Server.fuzz` over a region, and a look at the region afterwards.

For test_serve_fuzz.py and tools/fuzz_serve.py.
"""

import numpy as np
import rawmsg as R
from servekit import Served

from daxfs.data._serve import DIRECTORY, NOATIME

PAGE = 4096
IO = 65536
STEP = 100_000


class Watch:
    """What must not change: all of the region but the data of one file and its size and times."""

    def __init__(self, fs, node):
        self.fs = fs
        self.mine = np.zeros(len(fs.region.array), bool)
        for _, pages, pfn, _, _ in node.map.extents():
            self.mine[pfn * PAGE : (pfn + pages) * PAGE] = True
        place = fs.inodes.place(node.ino)
        self.mine[place : place + 64] = True
        self.before = fs.region.array[~self.mine]

    def changed(self) -> int:
        """Bytes that changed and must not have."""
        return int((self.fs.region.array[~self.mine] != self.before).sum())


def run(kit, seed: int, count: int, progress=None, room: int = 1 << 22, write: str = "nt") -> dict:
    """Feed *count* messages; the report of the last step with sums, ``samples`` (how many were checked).

    AssertionError, with the message, where one was answered wrongly or the region holds what it must not.
    """
    served = Served(kit.io(write), IO)
    # A mutation may well make a good request for the other file, but none that may change it.
    file, other = served.open(b"f", 70000), served.open(b"other", 70000, NOATIME)
    root = served.server.open(served.fs.node(1).map, 1, DIRECTORY)
    messages = R.corpus(1, root, file.ino, file.fh)
    watch, report = Watch(served.fs, file.node), {"done": 0, "refused": 0, "samples": 0, "wrong": None}
    while report["done"] < count:
        step = served.server.fuzz(messages, seed, min(STEP, count - report["done"]), room)
        assert step["wrong"] is None, (seed, step["wrong"])
        seed = step["seed"]
        for raw in step["samples"]:
            found = R.flaws(raw, served.server.inode_limit, IO)
            assert not found, (found, raw.hex())
        for key in ("done", "refused"):
            report[key] += step[key]
        report["samples"] += len(step["samples"])
        sums = report.setdefault("verdicts", dict.fromkeys(step["verdicts"], 0))
        report["verdicts"] = {key: sums[key] + n for key, n in step["verdicts"].items()}
        if progress:
            progress(report)
    changed = watch.changed()
    assert not changed, f"{changed} bytes of the region changed that must not"
    assert served.fs.region.table.users == 0, "the region is still entered"
    for each in (file, other):
        each.close()  # waits for ever where a request still counts as its user
        each.node.map.lock()  # likewise where one kept the lock
        each.node.map.unlock()
    kit.fsck(served.fs)
    return report
