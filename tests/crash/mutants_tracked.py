# SPDX-License-Identifier: MIT
"""Bugs planted around the policies of track= and their switch (mutants.py has the others; how: plant.py).

Those of the compiled trackers are in t3_data/test_histories.py, as of trackers that do too little.
"""

from .owned import POLICIES as OWNED
from .plant import Mutant, edit
from .workloads import Policy

CACHED = Policy("cached", "write")
EXTENT = CACHED._replace(track="extent")
OWN = OWNED["cached"]
WORDS = "neither old nor new"
OPEN, WRITE, FSYNC = ("open", "a"), ("write", "a", 100, 50, 31), ("fsync", "a")
OTHER = (("open", "b"), OPEN, WRITE, ("close",))  # what a leaves when it is closed
_tracked = Mutant.beginning("tree", CACHED)
_ATTACH, _BACK = "tracker.attach(fmap,", "self.dax.writeback(fmap)"


TRACKED = (
    _tracked(
        "a switch that forgets what was dirty",
        edit("data.file_io:FileIo._track", _ATTACH, "fmap.unmark(0, 1 << 32); " + _ATTACH),
        (OPEN, WRITE, ("track", "pmd"), FSYNC), WORDS,
    ),
    _tracked(
        "a switch to none that writes nothing back",
        edit("data.file_io:FileIo._track", _BACK, "pass"),
        (OPEN, WRITE, ("track", "none")), WORDS,
    ),
    _tracked(
        "a switch to none that marks before it has flushed",
        edit("data.file_io:FileIo._track", _BACK, "fmap.unmark(0, 1 << 32); " + _BACK),
        (OPEN, WRITE, ("track", "none")), WORDS,
    ),
    _tracked(
        "a switch from none that takes a file for clean",
        edit("data.file_io:FileIo._track", "not self.dax.nt or mapped", "False"),
        (OPEN, ("track", "none"), WRITE, ("track", "line"), FSYNC), WORDS,
    ),
    _tracked(
        "a switch from none that takes a range for clean",
        edit("data.file_io:FileIo._track", "not self.dax.nt or mapped", "not self.dax.nt and not mapped"),
        (("open", "d/o"), ("track", "none"), ("write", "d/o", 100, 50, 31), ("track", "pmd"),
         ("fsync", "d/o")), WORDS, OWN, setup="own",
    ),
    _tracked(
        "a switch from extents that leaves what closed files left",
        edit("data.file_io:FileIo.set_tracker", "self._finish_left()", "self.left.clear()"),
        (*OTHER, ("open", "b"), ("track", "pte"), ("open", "a"), FSYNC), WORDS, EXTENT,
    ),
    _tracked(
        "a sync that leaves what closed files left",
        edit("data.file_io:FileIo.write_back", "self.tracker.finish(self.dax)", "pass"),
        (*OTHER, ("sync",)), WORDS, EXTENT,
    ),
)
