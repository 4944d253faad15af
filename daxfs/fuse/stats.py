# SPDX-License-Identifier: MIT
"""What `daxfs stat` shows: operations with their latencies, and the counters of the layers below.

One thread writes (the trio loop); a snapshot is made in the same thread. What a counter of
operations has is said in data/latency.py.
"""

from ..data.latency import Operation


class Stats:
    """All counters of one mount. *fs*, *files* and *faults* are asked when a snapshot is made."""

    def __init__(self, fs, files, faults):
        self.fs, self.files, self.faults = fs, files, faults
        self.operations: dict[str, Operation] = {}
        self.started = fs.clock()

    def operation(self, name: str) -> Operation:
        return self.operations.setdefault(name, Operation())

    def snapshot(self) -> dict:
        """Plain values, for JSON."""
        fs, region = self.fs, self.fs.region
        journal = fs.journal
        return {
            "uptime_ns": fs.clock() - self.started,
            "operations": {k: v.snapshot() for k, v in sorted(self.operations.items()) if v.count},
            "faults": self.faults.snapshot(),
            "flush": {"kind": region.flush.kind, "nt_kind": region.flush.nt, **region.flush.counters()},
            "tracker": self.files.snapshot(),
            "journal": {
                "records": journal.records,
                "bytes": journal.bytes,
                "settles": journal.settles,
                "pending_bytes": journal.head - journal.tail,
                "ring_bytes": journal.size,
                "replayed": fs.replayed,
            },
            "space": {"page_size": 4096, **fs.statfs(), "quarantined": fs.alloc.held},
            "inodes": {
                "open": sum(n.opens > 0 for n in fs.nodes.values()),
                "known_to_kernel": len(fs.lookups),
                "orphans": len(fs.orphans),
            },
        }
