# SPDX-License-Identifier: MIT
"""Sequences with observed mappings: stores of programs between and beside what the daemon is asked for.

As owned.py, on a pool directory that loses nothing (where the file system below loses something it tracks
such stores by itself). Each runs with fault=kernel and fault=user (mapped.py).
"""

import functools
import random

from . import mapped, owned
from .model import Model, Policy
from .tree import show
from .workloads import Sequence

POLICIES = {
    "kernel": Policy(pool=True, fault="kernel"),
    "user": Policy(pool=True, fault="user"),
    "kernel, native": Policy(pool=True, fault="kernel", native=True),
    "user, native": Policy(pool=True, fault="user", native=True),
}
_MAPS = (("map", "d/o"), ("map", "d/h"))
_STORES = (("mstore", "d/o", 100, 50, 60), ("mstore", "d/o", 8190, 300, 61), ("mstore", "d/h", 4090, 20, 62))
SETUPS = {
    # d/h has a hole of five pages, d/p is not mapped.
    "mapped": (*owned.SMALL, *_MAPS, ("sync",), *_STORES),
    # All pages are clean and protected; some were loaded only.
    "mapped clean": (*owned.SMALL, *_MAPS, *_STORES, ("mload", "d/o", 4096), ("fsync", "d/o"),
                     ("fsync", "d/h"), ("mload", "d/h", 12288)),
    # Handles beside the mappings.
    "mapped open": (*owned.SMALL, ("open", "d/o"), ("open", "d/h"), *_MAPS, *_STORES),
    # What a killed program stored; stores again over what was written back.
    "mapped again": (*owned.SMALL, ("open", "d/o"), ("open", "d/h"), *_MAPS, *_STORES, ("killed",), *_MAPS,
                     ("mstore", "d/o", 64, 128, 63), ("mflush", "d/o", 0, 4096),
                     ("mstore", "d/o", 120, 9, 64), ("mstore", "d/h", 20480, 64, 65)),
}  # fmt: skip
MAPPED = (
    ("map", "d/p"), ("map", "m"), ("munmap", "d/o"), ("munmap", "d/h"), ("killed",),
    ("mload", "d/o", 8192), ("mload", "d/h", 0),
    ("mstore", "d/o", 8, 16, 70), ("mstore", "d/o", 4090, 20, 71), ("mstore", "d/o", 0, 12003, 72),
    ("mstore", "d/o", 12000, 288, 73), ("mstore", "d/h", 0, 24576, 74), ("mstore", "d/h", 16000, 9, 75),
    ("mflush", "d/o", 0, 4096), ("mflush", "d/o", 4096, 8192), ("mflush", "d/o", 0, 1 << 16),
    ("mflush", "d/h", 4096, 4096), ("mflush", "d/h", 0, 1 << 16),
    ("mpersist", "d/o", 100, 50), ("mpersist", "d/o", 8000, 4096), ("mpersist", "d/h", 4090, 20),
    ("fsync", "d/o"), ("fdatasync", "d/h"), ("sync",), ("close",),
    ("fsync_racing", "d/o", 130, 60, 76), ("fsync_racing", "d/o", 4000, 8192, 77),
    ("fsync_racing", "d/h", 4096, 50, 78),
)  # fmt: skip
# Of those without a mapping: not msync, which is the page cache's, nor what asks for the newest handle.
BESIDE = tuple(op for op in owned.VOCABULARY if op not in MAPPED
               and op[0] not in ("msync", "tmpfile", "link_held", "write_full", "close", "sync"))
VOCABULARY = (*MAPPED, *BESIDE)


@functools.cache
def started(setup: str) -> Model:
    """The model after a setup; clone it."""
    model = Model(POLICIES["kernel"])
    for op in SETUPS[setup]:
        code = model.apply(op)
        if code:
            raise AssertionError(f"setup {setup}: {op} fails with {code}")
    return model


def sequences(setup: str, ops: tuple, policies=tuple(POLICIES)):
    """*ops* under each of the policies, if they can be done."""
    model = started(setup).clone()
    if not any(model.apply(op) for op in ops):
        text = f"{setup}: {'; '.join(map(show, ops))}"
        for tag in policies:
            yield Sequence(f"{text} [{tag}]", setup, ops, POLICIES[tag])


def each():
    """Every operation on every setup in both modes; what concerns the data with native service, too.

    None where the kernel can't do it, or not for us.
    """
    for setup in SETUPS if mapped.available() else ():
        for op in VOCABULARY:
            data = op[0] in ("write", "append", "fsync", "fdatasync")
            yield from sequences(setup, (op,), tuple(POLICIES) if data else ("kernel", "user"))


def rows(seed: int, count: int):
    """*count* rows of two to six operations of which none fails, each under one policy, drawn with *seed*.

    Every second one is of a mapping. None where the kernel can't do it.
    """
    rng, count = random.Random(seed), count if mapped.available() else 0
    while count:
        ops = tuple(rng.choice(MAPPED if rng.random() < 0.5 else VOCABULARY)
                    for _ in range(rng.randint(2, 6)))
        choice = list(sequences(rng.choice(list(SETUPS)), ops, (rng.choice(list(POLICIES)),)))
        if choice:
            yield choice[0]
            count -= 1
