# SPDX-License-Identifier: MIT
"""Crash testing for programs on persistent memory: what a power failure may leave, tried out.

crash_test runs a program that stores through a region and checks what is left wherever the power fails
(docs/crash-testing.md). What it is made of can be used alone: Media is the persistence model, crash_points
goes through a log of events, Costs finds missing and useless flushes, Recorder makes logs and load reads
them. Imports layers L0 and L1 only; daxfs's own tests and tools use it like anybody else.
"""

from daxfs._record import Recorder
from daxfs.testing.costs import Costs, Row
from daxfs.testing.crash import Point, Result, Violation, crash_points, crash_test
from daxfs.testing.images import Image
from daxfs.testing.log import Event, Recording, load, parse
from daxfs.testing.media import Media

__all__ = [
    "Costs", "Event", "Image", "Media", "Point", "Recorder", "Recording", "Result", "Row", "Violation",
    "crash_points", "crash_test", "load", "parse",
]  # fmt: skip
