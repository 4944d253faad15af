# SPDX-License-Identifier: MIT
"""Counters of one kind of request: how many, how many failed, and a histogram of how long they took.

A histogram has power-of-two buckets: bucket b counts requests that took [2**(b-1), 2**b) ns inside the
daemon; native/serve.h counts in the same ones. Not locked: one thread writes.
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
        self.buckets[min(ns.bit_length(), BUCKETS - 1)] += 1

    @classmethod
    def of(cls, total_ns: int, buckets: list[int]) -> "Operation":
        """What compiled code counted (native/latency.h)."""
        made = cls()
        made.count, made.total_ns, made.buckets = sum(buckets), total_ns, list(buckets)
        return made

    def merge(self, other: "Operation") -> None:
        """Add what *other* counted."""
        self.count += other.count
        self.errors += other.errors
        self.total_ns += other.total_ns
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]

    def quantile(self, q: float) -> int:
        """Upper bound in ns of the bucket in which quantile *q* (0..1) falls; 0 without requests."""
        left = q * self.count
        for bucket, n in enumerate(self.buckets):
            left -= n
            if n and left <= 0:
                return 1 << bucket
        return 0

    def snapshot(self) -> dict:
        return {"count": self.count, "errors": self.errors, **self.times()}

    def times(self, unit: str = "ns") -> dict:
        """The histogram alone; *unit*: what was counted, e.g. pages."""
        return {
            f"total_{unit}": self.total_ns,
            f"p50_{unit}": self.quantile(0.5),
            f"p99_{unit}": self.quantile(0.99),
            "histogram": self.buckets,
        }
