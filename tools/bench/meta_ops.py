#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Cost of the metadata operations in process: create, lookup, link, rename, unlink and others, in us.

One region in a file on /dev/shm, no mount and no FUSE: what is measured is
daxfs/meta alone. Medians over rounds; the collector is off as in timeit.
"""

import argparse
import gc
import json
import os
import statistics
import time

from rich.console import Console
from rich.table import Table

from daxfs.meta import attr, fs, mkfs, xattr
from daxfs.meta import namespace as ns
from daxfs.region import Region, create_file

ROOT = 1
MANY = 4096  # attributes on one inode, at most


def operations(mounted, count: int):
    """Yield (name, call(n)) in the order in which they must run; each is run for n in range(count)."""
    names = [b"name-%06d" % n for n in range(count)]
    inos = {}

    def create(n):
        inos[n] = ns.create(mounted, ROOT, names[n], 0o100644, ns.ROOT).ino

    yield "create", create
    yield "lookup", lambda n: ns.lookup(mounted, ROOT, names[n])
    yield "chmod", lambda n: attr.setattr(mounted, inos[n], {"mode": 0o600})
    yield "touch_write", lambda n: attr.touch_write(mounted, inos[n])
    yield "setxattr", lambda n: xattr.put(mounted, inos[n], b"user.a", b"value")
    yield "removexattr", lambda n: xattr.remove(mounted, inos[n], b"user.a")
    yield from many_attributes(mounted, inos, names)
    yield "link", lambda n: ns.link(mounted, inos[n], ROOT, b"l" + names[n])
    yield "unlink (link)", lambda n: ns.unlink(mounted, ROOT, b"l" + names[n])
    yield "rename", lambda n: ns.rename(mounted, ROOT, names[n], ROOT, b"r" + names[n])
    yield "unlink (last)", lambda n: ns.unlink(mounted, ROOT, b"r" + names[n])
    yield "mkdir", lambda n: ns.create(mounted, ROOT, names[n], 0o040755, ns.ROOT)
    yield "rmdir", lambda n: ns.rmdir(mounted, ROOT, names[n])


def many_attributes(mounted, inos, names):
    """The same for attributes that are all of one inode."""

    def put(value: bytes):
        return lambda n: xattr.put(mounted, inos[0], b"user." + names[n % MANY], value)

    yield "setxattr, one inode", put(b"value")
    yield "the same, as long", put(b"VALUE")
    yield "the same, longer", put(b"a longer value")
    yield "getxattr, one inode", lambda n: xattr.get(mounted, inos[0], b"user." + names[n % MANY])
    yield "removexattr, one inode", lambda n: n < MANY and xattr.remove(mounted, inos[0], b"user." + names[n])


def measure(path: str, count: int, rounds: int, clock) -> dict[str, list[float]]:
    """{operation: [us for each round]}."""
    out: dict[str, list[float]] = {}
    with Region.open([path]) as region:
        mkfs.make(region, mkfs.plan(region, inodes=4 * count))
        mounted = fs.mount(region)
        for _ in range(rounds):
            for name, call in operations(mounted, count):
                gc.collect()
                gc.disable()
                start = clock()
                for n in range(count):
                    call(n)
                out.setdefault(name, []).append((clock() - start) * 1e6 / count)
                gc.enable()
        mounted.unmount()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="names in the directory (default 2000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="CPU time of the thread, for a busy machine")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    path = f"/dev/shm/daxfs-meta-ops-{os.getpid()}"
    create_file(path, 256 << 20)
    try:
        clock = time.thread_time if options.cpu else time.perf_counter
        found = measure(path, options.count, options.rounds, clock)
    finally:
        os.unlink(path)
    medians = {name: statistics.median(values) for name, values in found.items()}
    if options.json:
        print(json.dumps(medians))
        return
    table = Table(title=f"metadata operations in process, {options.count} names, {options.rounds} rounds")
    for title in ("operation", "median us", "best us", "worst us"):
        table.add_column(title, justify="left" if title == "operation" else "right")
    for name, values in found.items():
        row = (medians[name], min(values), max(values))
        table.add_row(name, *(f"{value:.1f}" for value in row))
    Console().print(table)


if __name__ == "__main__":
    main()
