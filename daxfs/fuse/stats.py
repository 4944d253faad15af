# SPDX-License-Identifier: MIT
"""What `daxfs stat` shows: operations with their latencies, and the counters of the layers below.

A latency histogram has power-of-two buckets: bucket b counts requests that took
[2**(b-1), 2**b) ns inside the daemon. One thread writes (the trio loop); a
snapshot is made in the same thread.
"""

BUCKETS = 40


class Operation:
    """Counters of one kind of request."""

    __slots__ = ("buckets", "count", "errors", "total_ns")

    def __init__(self):
        self.count = self.errors = self.total_ns = 0
        self.buckets = [0] * BUCKETS

    def add(self, ns: int) -> None:
        self.count += 1
        self.total_ns += ns
        self.buckets[ns.bit_length()] += 1

    def quantile(self, q: float) -> int:
        """Upper bound in ns of the bucket in which quantile *q* (0..1) falls; 0 without requests."""
        left = q * self.count
        for bucket, n in enumerate(self.buckets):
            left -= n
            if n and left <= 0:
                return 1 << bucket
        return 0

    def snapshot(self) -> dict:
        return {
            "count": self.count,
            "errors": self.errors,
            "total_ns": self.total_ns,
            "p50_ns": self.quantile(0.5),
            "p99_ns": self.quantile(0.99),
            "histogram": self.buckets,
        }


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
