# SPDX-License-Identifier: MIT
"""A stand-in for the crash engine and its workloads, for the tests of the sweep's front end.

The environment says what there is: STANDIN_ONE and so on hold names, one for each line; the first word of a
name is what its run does. STANDIN_LOG names a file that gets a line for each sequence that was begun.
"""

import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple


class Sequence(NamedTuple):
    """As workloads.Sequence."""

    name: str
    setup: str
    ops: tuple
    policy: tuple


@dataclasses.dataclass
class Outcome:
    """As engine.Outcome."""

    name: str
    images: int = 0
    points: int = 0
    nested: int = 0
    seconds: float = 0.0
    violations: list[dict] = dataclasses.field(default_factory=list)
    costs: list[dict] = dataclasses.field(default_factory=list)
    ops: dict[str, int] = dataclasses.field(default_factory=dict)


def _sequences(name: str) -> list[Sequence]:
    lines = os.environ.get(f"STANDIN_{name}", "").splitlines()
    return [Sequence(line, "tree", (("rename", "a", "b"), ("unlink", "b"))[: 1 + (name != "ONE")], ("nt",))
            for line in lines]


def length_one():
    return _sequences("ONE")


def at_edges():
    return _sequences("EDGES")


def single():
    return _sequences("OWN")


def longer(seed, count):
    return _sequences("OWNLONG")[:count]


def each():
    return _sequences("OBSERVED")


def rows(seed, count):
    return _sequences("OBSERVEDLONG")[:count]


def each_policy(seed, count):
    return _sequences("TRACK")[:count]


def switched(seed, count):
    return _sequences("SWITCH")[:count]


def length_two():
    return _sequences("TWO")


def length_three(seed, count):
    return _sequences("THREE")[:count]


def random_long(seed, n):
    return Sequence(f"ok random {seed}", "empty", (("create", "a"),) * n, ("nt",))


class Engine:
    """As engine.Engine. A sequence of the name ``ok 7 ...`` has 7 images."""

    def __init__(self, seed=0, limit=48, nested=8, granularity="cache_line"):
        self.seed, self.limit, self.granularity = seed, limit, granularity
        self.scratch = Path(f"/dev/shm/daxfs-crash-{os.getpid()}-{granularity}")
        self.scratch.touch()

    def close(self):
        time.sleep(float(os.environ.get("STANDIN_CLOSE", "0")))
        self.scratch.unlink()

    @staticmethod
    def check_log(path):
        open(path, "rb").close()

    def run_log(self, path, share=0, shares=1):
        """An image for each byte; a violation where it is ``!``."""
        mine = Path(path).read_text()[share::shares]
        bad = {"sequence": {"name": path, "operation": {"op": "mkdir", "name": "d"}}, "seed": self.seed,
               "point": "mkdir, returned", "image": 1, "complaints": ["/d is missing"], "lines": ""}
        return Outcome(path, images=len(mine), points=1, violations=[bad] * mine.count("!"))

    def run(self, sequence, points="all"):
        with open(os.environ["STANDIN_LOG"], "a") as file:
            file.write(f"{sequence.name} {points} {self.granularity} {self.limit}\n")
        what, *words = sequence.name.split()
        images = int(words[0]) if words and words[0].isdigit() else 10
        outcome = Outcome(sequence.name, images, points=2, nested=1, seconds=0.01, ops={"rename": images})
        outcome.costs = [{"kind": "useless flush", "site": "dir.py:1 [add] <b>", "count": 2}]
        if what == "slow":
            time.sleep(0.3)
        elif what == "hang":
            time.sleep(600)
        elif what == "raise":
            raise ValueError("no such thing")
        elif what == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif what == "bad":
            outcome.violations = [{
                "sequence": sequence._asdict(), "seed": self.seed, "point": "0:rename, returned", "image": 3,
                "complaints": ["b is <gone> & [away]"], "lines": "line 0x40 missing\nline 0x80 there",
                "minimal": {"ops": [["rename", "a", "b"]]},
            }]
        return outcome
