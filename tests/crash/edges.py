# SPDX-License-Identifier: MIT
"""Start trees at an edge: the journal's ring is about to begin a lap, the first chunk of inodes is used up.

They take long to get to, so they are apart from workloads.py: each single operation is tried on them.
"""

import contextlib
import functools

from daxfs import layout as L

from . import vfs
from .ground import Ground, mounted
from .tree import show
from .workloads import DEFAULT, SETUPS, VOCABULARY, Sequence, started, tried

LARGE, SMALL = ("setxattr", "b", "user.large", 20000, 1), ("chmod", "a", 0o600)  # records


def near_lap(setup: tuple) -> tuple:
    """*setup*, and as many operations that the journal's ring has room for half of the record of a chmod."""
    with contextlib.closing(Ground("cache_line")) as ground, ground.open(ground.path) as region:
        io = mounted(region, DEFAULT)
        journal, tree = io.fs.journal, vfs.Vfs(io, ground.created)
        ops: list[tuple] = []

        def done(op) -> int:
            """Bytes of its records."""
            ops.append(op)
            before = journal.bytes
            tree.run(op)
            return journal.bytes - before

        def room() -> int:
            return journal.size - journal.head % journal.size

        for op in setup:
            done(op)
        while room() > 2 * LARGE[3]:
            done(LARGE)
        first = done(SMALL)  # with a new mode; later ones change a time alone
        while room() > first // 2:
            done(SMALL)
    return tuple(ops)


@functools.cache
def setups() -> dict[str, tuple]:
    """{name: operations}."""
    left = L.INODE_CHUNK - 1 - max(started("tree", DEFAULT).nodes)
    return {
        "chunk": SETUPS["tree"] + tuple(("mknod", f"e/{n}") for n in range(left)),
        "lap": near_lap(SETUPS["tree"]),
    }


def at_edges():
    """Every operation that works on a small tree, on each of these."""
    for setup in setups():
        for op in VOCABULARY:
            if tried("tree", (op,)) is not None:
                yield Sequence(f"{setup}: {show(op)}", setup, (op,), DEFAULT)
