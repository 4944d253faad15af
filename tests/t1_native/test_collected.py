# SPDX-License-Identifier: MIT
"""Garbage that is collected in a cycle: whoever's C struct points into another object goes before that one.

Each case is a process of its own, as what goes wrong is a use of memory that was freed.
"""

import subprocess
import sys

import pytest

# The collector clears in the order in which things were made: table, arena, marks, at last what is the cycle.
CYCLE = """
import ctypes, gc, mmap
from daxfs._flush import DirtyMap, ExtentMap, StateArena

class Thing:
    def enter(self): pass
    def exit(self): pass

room = mmap.mmap(-1, 1 << 20)
address = ctypes.addressof(ctypes.c_char.from_buffer(room))

def extents(arena):
    return ExtentMap(4, arena)

def bits(arena):
    made = DirtyMap(arena)
    made.set(0, 1)
    return made

gc.disable()
for _ in range(100):
    arena = StateArena(address, 1 << 20, Thing())
    marks, last = {kind}(arena), Thing()
    assert arena.used == 1
    last.marks, last.itself = marks, last
    del arena, marks, last
    assert gc.collect()
"""


@pytest.mark.parametrize("kind", ["bits", "extents"])
def test_marks_go_before_their_slots(kind):
    done = subprocess.run([sys.executable, "-P", "-c", CYCLE.replace("{kind}", kind)], capture_output=True,
                          text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
