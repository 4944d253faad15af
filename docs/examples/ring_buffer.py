#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A small persistent ring buffer, and its crash test: docs/crash-testing.md walks through it.

    python -P docs/examples/ring_buffer.py            the ring as it should be
    python -P docs/examples/ring_buffer.py hasty      one that saves a drain
    python -P docs/examples/ring_buffer.py forgetful  one that forgets a flush
"""

import struct
import sys
from collections import deque

from daxfs.testing import crash_test

PUSHED, POPPED, SLOTS = 0, 64, 4096  # places in the region: two counters, a line each, and the slots
SLOT, NSLOTS = 128, 8


class Ring:
    """First in, first out, items of up to 120 bytes. What push and pop have done survives a power failure."""

    def __init__(self, region):
        """On a region of zeros this is an empty ring; on any other it is recovery."""
        self.region = region
        self.pushed, self.popped = self._counter(PUSHED), self._counter(POPPED)

    def _counter(self, place):
        return struct.unpack_from("<Q", self.region.mem, place)[0]

    def _place(self, number):
        return SLOTS + number % NSLOTS * SLOT

    def _free_place(self, item):
        if self.pushed - self.popped == NSLOTS or len(item) > SLOT - 8:
            raise ValueError("the ring is full, or the item too long")
        return self._place(self.pushed)

    def items(self):
        """What is in the ring, oldest first."""
        return [self._item(number) for number in range(self.popped, self.pushed)]

    def _item(self, number):
        place = self._place(number)
        (length,) = struct.unpack_from("<Q", self.region.mem, place)
        return bytes(self.region.mem[place + 8 : place + 8 + length])

    def push(self, item):
        place = self._free_place(item)
        self.region.store(place, struct.pack("<Q", len(item)) + item)
        self.region.flush_range(place, 8 + len(item))
        # Order: the item is on the media before the counter that makes it part of the ring.
        self.region.drain()
        self.pushed += 1
        self.region.store(PUSHED, struct.pack("<Q", self.pushed))
        # Order: the counter is on the media before push returns.
        self.region.persist(PUSHED, 8)

    def pop(self):
        if self.pushed == self.popped:
            raise ValueError("the ring is empty")
        item = self._item(self.popped)
        self.popped += 1
        self.region.store(POPPED, struct.pack("<Q", self.popped))
        # Order: the counter is on the media before pop returns, and before the slot is used again.
        self.region.persist(POPPED, 8)
        return item


class HastyRing(Ring):
    """Wrong: item and counter are flushed together, and the one drain does not say which comes first."""

    def push(self, item):
        place = self._free_place(item)
        self.region.store(place, struct.pack("<Q", len(item)) + item)
        self.region.flush_range(place, 8 + len(item))
        self.pushed += 1
        self.region.store(PUSHED, struct.pack("<Q", self.pushed))
        # Order: both before push returns, but neither before the other.
        self.region.persist(PUSHED, 8)


class ForgetfulRing(Ring):
    """Wrong: pop does not flush its counter."""

    def pop(self):
        item = self._item(self.popped)
        self.popped += 1
        self.region.store(POPPED, struct.pack("<Q", self.popped))
        # Order: none; what was stored is not flushed, so this drain waits for nothing.
        self.region.drain()
        return item


def run(ring_class, limit=64, seed=0):
    """The crash test of one kind of ring."""
    operations = [("push", b"one"), ("push", b"one of two lines" * 6), ("pop",)]
    operations += [("push", b"item %d" % number) for number in range(7)]
    operations += [("pop",), ("pop",), ("push", b"comes around" * 4)]

    def program(region, op):
        ring = ring_class(region)
        for operation in operations:
            with op(operation):
                getattr(ring, operation[0])(*operation[1:])

    def contents(done):
        """What the ring holds after these operations."""
        ring = deque()
        for name, *item in done:
            if name == "push":
                ring.append(item[0])
            else:
                ring.popleft()
        return list(ring)

    def check(region, returned, in_flight):
        found = Ring(region).items()
        allowed = contents(returned), contents(returned + in_flight)
        assert found in allowed, f"holds {[item[:6] for item in found]}"

    return crash_test(program, check, size=65536, limit=limit, seed=seed)


if __name__ == "__main__":
    RINGS = {"correct": Ring, "hasty": HastyRing, "forgetful": ForgetfulRing}
    result = run(RINGS[sys.argv[1] if len(sys.argv) > 1 else "correct"])
    print(result)
    sys.exit(0 if result.ok else 1)
