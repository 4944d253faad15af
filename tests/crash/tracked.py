# SPDX-License-Identifier: MIT
"""Sequences under each policy of track=, and rows of operations in whose midst the policy is switched.

As workloads.py, owned.py and observed.py have them: packed files with write=cached, files with ranges of
their own, and those beside observed mappings. Files are open before, so that no close writes back.
"""

import random

from daxfs.data._tracker import POLICIES

from . import mapped, observed, owned, workloads
from .model import Model, Policy
from .tree import show
from .workloads import OPEN_FIRST, Sequence, set_up

OTHERS = tuple(name for name in POLICIES if name not in ("pte", "none"))
SWITCHES = tuple(("track", name) for name in POLICIES)
CACHED = {"cached": Policy("cached", "write"), "cached, fsync": Policy("cached", "fsync"),
          "cached, native": Policy("cached", "fsync", native=True)}  # fmt: skip
OWN = {"own": owned.POLICIES["cached"], "own, syncs": owned.POLICIES["cached, syncs"],
       "own, native": owned.POLICIES["cached"]._replace(native=True)}  # fmt: skip
_ENDS = (("close",), ("evict",))


def _families():
    """[(policies, setups by name, operations before, operations, those that sync)]."""
    packed = (CACHED, workloads.SETUPS, ("tree", "unsynced", "holes", "stream"), OPEN_FIRST,
              (*workloads.DATA, *workloads.FALLOCATE, *workloads.COPIES, *_ENDS, ("unlink", "a")),
              (("fsync", "a"), ("fdatasync", "b"), ("sync",)))  # fmt: skip
    own = (OWN, owned.SETUPS, tuple(owned.SETUPS), (("open", "d/o"), ("open", "d/p"), ("open", "a")),
           (*owned.DATA, *owned.FALLOCATE, *owned.COPIES, *owned.ATTRIBUTES[:4], *_ENDS, ("unlink", "d/o")),
           (("fsync", "d/o"), ("fdatasync", "d/p"), ("fsync", "a"), ("sync",)))  # fmt: skip
    seen = (observed.POLICIES, observed.SETUPS, tuple(observed.SETUPS), (),
            (*observed.MAPPED, *owned.DATA, *owned.FALLOCATE),
            (("fsync", "d/o"), ("fdatasync", "d/h"), ("mflush", "d/o", 0, 1 << 16)))  # fmt: skip
    return (packed, own, seen) if mapped.available() else (packed, own)


def each_policy(seed: int, count: int):
    """*count* sequences under each policy but pte and none: single operations, and rows on ranges."""
    rng = random.Random(seed)
    packed = [s for s in workloads.length_one() if s.policy in (CACHED["cached"], CACHED["cached, fsync"])]
    own = [s for s in (*owned.single(), *owned.longer(seed, 300)) if s.policy.write == "cached"]
    seen = list(observed.rows(seed, 300))
    for track in OTHERS:
        for found in rng.sample(packed, count // 2) + rng.sample(own + seen, count - count // 2):
            policy = found.policy._replace(track=track)
            yield found._replace(name=f"{found.name} track={track}", policy=policy)


def switched(seed: int, count: int):
    """*count* rows of two to six operations of which none fails; at least one is a switch."""
    rng, families = random.Random(seed), _families()
    while count:
        policies, setups, names, before, operations, syncs = rng.choice(families)
        setup, tag, track = rng.choice(names), rng.choice(list(policies)), rng.choice(("pte", *OTHERS))
        ops = [rng.choice(SWITCHES if rng.random() < 0.4 else operations) for _ in range(rng.randint(1, 5))]
        ops.append(rng.choice(syncs if rng.random() < 0.6 else (*SWITCHES, *operations)))
        row = _row(setups, setup, (*before, *ops), policies[tag]._replace(track=track), tag)
        if row:
            yield row
            count -= 1


def _row(setups: dict, setup: str, ops: tuple, policy: Policy, tag: str) -> Sequence | None:
    """None where an operation fails, no switch is among them, or the page cache's msync is asked for beside
    mappings."""
    names = {op[0] for op in ops}
    if "track" not in names or (policy.native and "write_full" in names):
        return None
    if policy.fault and names & {"msync", "write_full", "close"}:
        return None
    model: Model = set_up(setups, setup, policy)
    if any(model.apply(op) for op in ops):
        return None
    return Sequence(f"{setup}: {'; '.join(map(show, ops))} [{tag}] track={policy.track}", setup, ops, policy)
