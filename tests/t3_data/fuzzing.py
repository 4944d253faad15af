# SPDX-License-Identifier: MIT
"""One run of `Server.fuzz` over a region, and a look at the region afterwards.

Files are packed, or with a kit of pool directories in ranges of their own, one with holes.

For test_serve_fuzz.py and tools/fuzz_serve.py.
"""

import os

import numpy as np
import rawmsg as R
from servekit import Served

from daxfs.data._serve import DIRECTORY, NOATIME

PAGE = 4096
IO = 65536
STEP = 100_000


class Watch:
    """What must not change: all of the region but the data of one file and its size and times.

    Where it has a range of its own: nor what the other files' ranges hold.
    """

    def __init__(self, fs, node):
        self.fs, self.ino = fs, node.ino
        self.mine = np.zeros(len(fs.region.array), bool)
        for _, pages, pfn, _, _ in node.map.extents() if node.map.own is None else ():
            self.mine[pfn * PAGE : (pfn + pages) * PAGE] = True
        place = fs.inodes.place(node.ino)
        self.mine[place : place + 64] = True
        self.before = fs.region.array[~self.mine]
        self.ranges = self.of_others()

    def of_others(self) -> list[bytes]:
        """The ranges of all files in use but this one."""
        own = [node.map.own for ino, node in self.fs.nodes.items() if ino != self.ino]
        return [os.pread(each.fd, each.pages * PAGE + 1, 0) for each in own if each is not None]

    def changed(self) -> int:
        """Bytes that changed and must not have; of a range that did, one."""
        ranges = sum(new != old for new, old in zip(self.of_others(), self.ranges, strict=True))
        return int((self.fs.region.array[~self.mine] != self.before).sum()) + ranges


def run(kit, seed: int, count: int, progress=None, room: int = 1 << 22, write: str = "nt") -> dict:
    """Feed *count* messages; the report of the last step with sums, ``samples`` (how many were checked).

    AssertionError, with the message, where one was answered wrongly or the region holds what it must not.
    """
    served = Served(kit.io(write), IO)
    # A mutation may well make a good request for the other file, but none that may change it.
    file, other = served.open(b"f", 70000), served.open(b"other", 70000, NOATIME)
    if file.node.map.own is not None:
        file.node.map.own.punch(file.node.map, 3 * PAGE, 9 * PAGE)
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
        range_ = each.node.map.own
        assert range_ is None or range_.pages == -(-each.node.map.size // PAGE), "longer than the file"
        each.close()  # waits for ever where a request still counts as its user
        each.node.map.lock()  # likewise where one kept the lock
        each.node.map.unlock()
    kit.fsck(served.fs)
    return report
