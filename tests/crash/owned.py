# SPDX-License-Identifier: MIT
"""Sequences on a pool directory with files in ranges of their own, and on their way there and back.

As workloads.py has them for packed files: each single operation on a few start trees, under each write policy
that matters, on a pool directory that loses nothing (tmpfs) and on one that loses what was not synced there.
"""

import errno
import functools
import random

from .model import Model, Policy
from .tree import show
from .workloads import Sequence, set_up

DAX = 0x100
POOL = Policy(pool=True)
POLICIES = {
    "": POOL,
    "syncs": POOL._replace(syncs=True),
    "nt,fsync": POOL._replace(drain="fsync"),
    "cached": POOL._replace(write="cached", drain="fsync"),
    "cached, syncs": POOL._replace(write="cached", syncs=True),
    "lazytime": POOL._replace(lazytime=True),
    "native": POOL._replace(native=True),
}
# d hands the flag down; m was moved to a range, and u from one.
SMALL = (
    ("mkdir", "d"),
    ("chattr", "d", DAX),
    ("create", "d/o"),
    ("write", "d/o", 0, 12003, 1),
    ("create", "d/p"),
    ("append", "d/p", 101, 2),
    ("create", "d/h"),
    ("write", "d/h", 20000, 5000, 3),
    ("create", "a"),
    ("write", "a", 0, 9001, 4),
    ("create", "m"),
    ("write", "m", 4096, 9000, 5),
    ("chattr", "m", DAX),
    ("create", "d/u"),
    ("write", "d/u", 8192, 5000, 6),
    ("chattr", "d/u", 0),
    ("link", "d/o", "l"),
)
SETUPS = {
    "own": (*SMALL, ("sync",)),
    # Nothing is settled, the caches are empty, an open file without a name has a range.
    "own unsynced": (*SMALL, ("create", "d/g"), ("write", "d/g", 0, 9000, 7), ("open_unlink", "d/g"),
                     ("write", "d/o", 8, 16, 8), ("append", "d/p", 5000, 9), ("evict",)),
    # Open, so that no close writes back, and d/o moves when it is closed; cut and grown again; a hole.
    "own open": (*SMALL, ("open", "d/o"), ("open", "d/p"), ("open", "m"), ("truncate", "d/o", 5001),
                 ("truncate", "d/o", 30000), ("fallocate", "d/h", 3, 20480, 4096), ("sync",),
                 ("chattr", "d/o", 0), ("chattr", "a", DAX)),
}  # fmt: skip
NAMES = (
    ("create", "d/n"), ("tmpfile", "d", 5000, 51), ("tmpfile", "d", 0, 51), ("link_held", "n"),
    ("link", "d/p", "n"), ("unlink", "d/o"), ("unlink", "d/p"), ("unlink", "m"), ("unlink", "l"),
    ("open_unlink", "d/p"), ("close",), ("evict",),
    ("rename", "d/p", "n"), ("rename", "a", "d/p"), ("rename", "d/p", "a"), ("rename", "d/p", "d/h"),
    ("rename", "d/h", "d/o"), ("exchange", "a", "d/p"), ("whiteout", "d/p", "n"),
)  # fmt: skip
ATTRIBUTES = (
    ("chattr", "d/o", 0), ("chattr", "d/h", 0), ("chattr", "a", DAX), ("chattr", "d", 0),
    ("chmod", "d/o", 0o4755), ("utimens", "d/p", 10**15, 10**15 + 1), ("setxattr", "d/p", "user.k", 10, 20),
)  # fmt: skip
DATA = (
    ("write", "d/o", 4096 + 8, 16, 30), ("write", "d/o", 4090, 20, 31), ("write", "d/o", 0, 12003, 32),
    ("write", "d/o", 12000, 10, 33), ("write", "d/p", 8192, 100, 34), ("write", "d/p", 50, 5000, 35),
    ("write", "d/h", 4090, 20, 36), ("write", "d/h", 0, 30000, 37),
    ("append", "d/p", 100, 38), ("append", "d/o", 5000, 39), ("append", "d/n", 10, 40),
    ("truncate", "d/o", 0), ("truncate", "d/o", 5001), ("truncate", "d/o", 8192), ("truncate", "d/p", 9000),
    ("truncate", "m", 5000), ("truncate", "d/u", 20000), ("open_trunc", "d/o"), ("open_trunc", "m"),
    ("msync", "d/o", 5000, 100, 41), ("msync", "d/h", 90, 11, 42), ("read", "d/o"), ("read", "d/h"),
    ("read", "m"), ("read", "d/u"), ("write", "m", 100, 5000, 43), ("append", "m", 100, 44),
    ("write", "d/u", 100, 5000, 45), ("append", "d/u", 9000, 46), ("open", "a"),
    ("write_full", "d/p", 101, 60000, 47, 6), ("write_full", "d/o", 12003, 4090, 48, 3),
    ("write_full", "d/h", 24000, 50000, 49, 12), ("write_full", "m", 13000, 20000, 50, 5),
)  # fmt: skip
SYNCS = (("fsync", "d/o"), ("fdatasync", "d/p"), ("fsync", "m"), ("fsyncdir", "d"), ("sync",))
FALLOCATE = tuple(
    ("fallocate", path, mode, pos, length)
    for path, mode, pos, length in (
        ("d/o", 0, 0, 20000), ("d/p", 0, 4096, 8192), ("d/o", 1, 12288, 8192), ("d/o", 3, 4096, 4096),
        ("d/o", 3, 100, 200), ("d/o", 3, 4000, 5000), ("d/h", 3, 0, 30000), ("d/o", 0x10, 4096, 4096),
        ("d/o", 0x10, 5, 20000), ("d/o", 0x11, 8000, 8000), ("d/h", 0x10, 0, 4096), ("m", 0, 0, 20000),
    )
)  # fmt: skip
COPIES = (("copy", "d/o", 100, "d/p", 7, 3000), ("copy", "a", 100, "d/o", 4096, 3000),
          ("copy", "d/o", 4096, "a", 8192, 5000), ("copy", "d/o", 4096, "d/p", 101, 5000))  # fmt: skip
VOCABULARY = NAMES + ATTRIBUTES + DATA + SYNCS + FALLOCATE + COPIES


@functools.cache
def started(setup: str) -> Model:
    """The model after a setup; clone it."""
    return set_up(SETUPS, setup, POOL)


def tried(setup: str, ops: tuple) -> bool:
    """Whether all of *ops* can be done; a write that finds no storage may fail."""
    model = started(setup).clone()
    return all(model.apply(op) in ((0, errno.ENOSPC) if op[0] == "write_full" else (0,)) for op in ops)


def sequences(setup: str, ops: tuple, policies=tuple(POLICIES)):
    """*ops* under each of the policies, if they can be done."""
    if tried(setup, ops):
        text = f"{setup}: {'; '.join(map(show, ops))}"
        for tag in policies:
            if tag == "native" and any(op[0] == "write_full" for op in ops):
                continue  # `vfs.Range` is not asked there
            yield Sequence(f"{text} [{tag}]" if tag else text, setup, ops, POLICIES[tag])


def single():
    """Every operation on every setup under every policy."""
    for setup in SETUPS:
        for op in VOCABULARY:
            yield from sequences(setup, (op,))


def longer(seed: int, count: int):
    """*count* rows of two to six operations of which none fails, each under one policy, drawn with *seed*."""
    rng = random.Random(seed)
    while count:
        ops = tuple(rng.choices(VOCABULARY, k=rng.randint(2, 6)))
        choice = list(sequences(rng.choice(list(SETUPS)), ops, (rng.choice(list(POLICIES)),)))
        if choice:
            yield choice[0]
            count -= 1
