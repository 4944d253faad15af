# SPDX-License-Identifier: MIT
"""What some experiments take beside the common arguments: names out of a list, and how much is written.

In a virtual machine a page that the guest has not used for a while may have gone back to the host (free page
reporting): its next use waits for the host, 8 ms for 2 MiB where this was seen. So who times something that
takes memory does the same once before, untimed: what was given back last is what the kernel gives out next.
"""

import argparse
import json
import os
from collections.abc import Iterable

from lab import words
from lab.plan import HostError
from lab.rigs import SPARE, memory_left
from lab.store import RunError

MIB = 1 << 20


def some_of(names: Iterable[str], wanted: str | None, option: str) -> list[str]:
    """*wanted*, names with commas between them (None: all). RunError: others than *names*."""
    chosen = list(names) if wanted is None else wanted.split(",")
    if unknown := [name for name in chosen if name not in names]:
        raise RunError(f"{option}: {', '.join(map(repr, unknown))}: not one of {', '.join(names)}")
    return chosen


def affordable(wanted: int, copies: int) -> int:
    """*wanted* bytes, or the part of it of which *copies* fit free memory and /dev/shm: whole 64 MiB."""
    room = os.statvfs("/dev/shm")
    most = min(memory_left() - SPARE, room.f_bavail * room.f_frsize) // copies
    return min(wanted, max(most // (64 * MIB), 1) * 64 * MIB)


def bytes_of_a_file(args: argparse.Namespace, default: int, least: int, copies: int) -> int:
    """How long a file is: ``args.size``, or *default*; less where *copies* of it don't fit memory.

    A run that goes on keeps its size. ``args.bytes`` says it in run.json. RunError: no size, less than
    *least*, or no multiple of it where that is smaller than 2 MiB, else of 2 MiB. HostError: no memory.
    """
    try:
        wanted = words.parse_bytes(args.size) if args.size else default
    except ValueError as exc:
        raise RunError(f"--size {exc}") from None
    unit = min(least, 2 * MIB)
    if wanted < least or wanted % unit:
        raise RunError(f"--size {args.size}: at least {words.show_bytes(least)}, a multiple of "
                       f"{words.show_bytes(unit)}")
    before = _as_before(args)
    args.bytes = before or affordable(wanted, copies)
    if copies * args.bytes > memory_left():
        why = "; the run that is there has files of this size" if before else ""
        raise HostError(f"{copies} files of {args.bytes // MIB} MiB need more memory than the "
                        f"{memory_left() // MIB} MiB that are free{why}")
    return args.bytes


def _as_before(args: argparse.Namespace) -> int | None:
    """The size of the run that is there, if it is to go on and the same was asked for."""
    try:
        options = json.loads((args.output / "run.json").read_text())["options"]
    except (OSError, ValueError, KeyError):
        return None
    return options.get("bytes") if options.get("size") == args.size and not args.anew else None
