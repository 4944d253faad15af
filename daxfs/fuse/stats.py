# SPDX-License-Identifier: MIT
"""What `daxfs stat` shows: operations with their latencies, and the counters of the layers below.

One thread writes (the trio loop); a snapshot is made in the same thread. What a counter of
operations has is said in latency.py.
"""

import time
from collections import Counter

from .._fsync import FsyncCounts
from ..latency import Operation

# Requests whose handler has another name than theirs.
_HANDLERS = {"rename2": "rename", "readdirplus": "readdir", "readdir": "readdir_plain",
             "copy_file_range_64": "copy_file_range", "batch_forget": "forget"}  # fmt: skip


def handler_name(request: str) -> str:
    """The row in which a request is counted, e.g. rename for rename2."""
    return _HANDLERS.get(request, request)


def merged(handlers: dict[str, Operation], native: dict, called: set[str]) -> dict:
    """One snapshot for each operation, of what handlers (Python) and native threads answered together.

    *native*: as Transport.counts has it; *called*: requests that it leaves to Python, not to pyfuse3. Each
    row also has how many were ``served`` natively, ``relayed`` to pyfuse3, and ``called``. What is relayed
    and has no handler (FORGET) has a count, but no latencies.
    """
    found, how = {name: Operation() for name in handlers}, {}
    for name, one in handlers.items():
        found[name].merge(one)
    for request, one in native["operations"].items():
        name = handler_name(request)
        found.setdefault(name, Operation()).merge(one)
        how.setdefault(name, Counter())["served"] += one.count
    for request, count in native["relayed"].items():
        kind = "called" if request in called else "relayed"
        how.setdefault(handler_name(request), Counter())[kind] += count
    out = {}
    for name in sorted(found.keys() | how.keys()):
        answered = {kind: how.get(name, {}).get(kind, 0) for kind in ("served", "relayed", "called")}
        snapshot = found.get(name, Operation()).snapshot() | answered
        if name not in handlers:
            snapshot["count"] = sum(answered.values())
        if snapshot["count"]:
            out[name] = snapshot
    return out


def fsyncs(handlers: FsyncCounts, native: dict | None) -> dict:
    """One snapshot of all fsyncs. *handlers*: of those that pyfuse3 brought; *native*: of Transport.counts.

    ``served``: how many of them native threads answered. The rest was Python's, in part.
    """
    both, served = FsyncCounts(), 0
    both.merge(handlers)
    if native is not None:
        served = native["fsync"].count
        both.merge(native["fsync"])
        both.merge(native["fsync_called"])
    found = both.snapshot()
    return {"count": found.pop("count"), "served": served, **found}


class Counters:
    """What is counted of any mount. *faults* and *flush* are asked when a snapshot is made."""

    def __init__(self, faults, flush):
        self.faults, self.flush = faults, flush
        self.operations: dict[str, Operation] = {}
        self.fsyncs = FsyncCounts()  # that pyfuse3 brought
        self.native = None  # a started Transport
        self.dax = dict  # what Operations say of direct mappings
        self.called: set[str] = set()  # requests that it leaves to Python, not to pyfuse3
        self.started = time.monotonic_ns()

    def operation(self, name: str) -> Operation:
        return self.operations.setdefault(name, Operation())

    def _operations(self, native: dict | None) -> dict:
        if native is None:
            return {k: v.snapshot() for k, v in sorted(self.operations.items()) if v.count}
        return merged(self.operations, native, self.called)

    def snapshot(self) -> dict:
        """Plain values, for JSON."""
        native = None if self.native is None else self.native.counts()
        return {
            "uptime_ns": time.monotonic_ns() - self.started,
            "operations": self._operations(native),
            "fsync": fsyncs(self.fsyncs, native),
            "faults": self.faults.snapshot(),
            "flush": {"kind": self.flush.kind, "nt_kind": self.flush.nt, **self.flush.counters()},
        }


class Stats(Counters):
    """All counters of the mount of a file system."""

    def __init__(self, fs, files, faults):
        super().__init__(faults, fs.region.flush)
        self.fs, self.files = fs, files

    def snapshot(self) -> dict:
        fs, journal = self.fs, self.fs.journal
        ns, pages = self.files.dax.writeback_times()
        return super().snapshot() | {
            "tracker": self.files.snapshot(),
            "writeback": ns.snapshot(),
            "writeback_pages": pages.times("pages"),
            "dax": self.dax(),
            "journal": {
                "records": journal.records,
                "bytes": journal.bytes,
                "settles": journal.settles,
                "pending_bytes": journal.head - journal.tail,
                "ring_bytes": journal.size,
                "replayed": fs.replayed,
            },
            "space": {"page_size": 4096, **fs.statfs(), "quarantined": fs.alloc.held,
                      "poisoned": fs.poison.pages},
            "inodes": {
                "open": sum(n.opens > 0 for n in fs.nodes.values()),
                "known_to_kernel": len(fs.lookups),
                "orphans": len(fs.orphans),
            },
        }
