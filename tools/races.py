#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Let programs store through observed mappings while they are written back, many times: no store may be lost.

    tools/races.py                       1000 rounds, in process (tests/races.py); no root, no mount
    tools/races.py --rounds 50 --kind user-4K,kernel --seed 7
    tools/races.py --mount --rounds 20   the race tests of a mount instead, in both modes (root, FUSE)

The kinds take turns; round *n* has seed + *n*, and is played again with --seed that and --rounds 1 and its
kind. The last line has rounds, write-backs, pages and failures. Exit status: 0 none failed, 1 some, 2 it
could not be run, 130 interrupted. Run from the checkout; daxfs must be installed beside the interpreter.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/t2_meta"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/t3_data"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import datakit
import races

ROOT = Path(__file__).resolve().parent.parent
# kind: fault, pages of 2 MiB where they fit, killed
KINDS = {"user-2M": ("user", True, False), "user-4K": ("user", False, False),
         "user-killed": ("user", False, True), "kernel": ("kernel", True, False),
         "kernel-killed": ("kernel", True, True)}  # fmt: skip
MOUNTED = {"mount-kernel": "tests/t4_fuse/test_observe.py::test_racing_stores_are_found",
           "mount-user": "tests/t4_fuse/test_observe_user.py::test_stores_race_with_fsync"}  # fmt: skip
LINE_SECONDS = 30.0
MOST_SHOWN = 5


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rounds", type=int, default=1000, metavar="N", help="rounds of all kinds together (default 1000)")
    add("--seconds", type=float, default=0.25, metavar="S", help="of stores in each round (default 0.25)")
    add("--seed", type=int, default=0, help="of the first round (default 0)")
    add("--kind", metavar="KIND,...", help=f"of {', '.join(KINDS)} (default: all)")
    add("--mount", action="store_true", help=f"run {', '.join(MOUNTED)} by pytest instead")
    add("--time", type=float, metavar="SECONDS", help="begin no round after this time")
    args = parser.parse_args()
    there = MOUNTED if args.mount else KINDS
    args.kinds = args.kind.split(",") if args.kind else list(there)
    unknown = [kind for kind in args.kinds if kind not in there]
    if unknown or args.rounds < 1 or args.seconds <= 0:
        parser.error(f"no kind {unknown[0]!r}" if unknown else "that number is too small")
    return args


def in_process(kind: str, seed: int, seconds: float) -> races.Seen:
    fault, pmd, killed = KINDS[kind]
    with datakit.Kit(pool=True) as kit:
        return races.a_round(kit.io(), fault, seed, seconds, pmd, killed)


def on_a_mount(kind: str) -> races.Seen:
    words = [sys.executable, "-P", "-m", "pytest", "-q", "--no-header", str(ROOT / MOUNTED[kind])]
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, timeout=300, check=False)
    if done.returncode or " passed" not in done.stdout:
        raise AssertionError(done.stdout[-3000:] + done.stderr[-1000:])
    return races.Seen(0, 0, 0)


class Total:
    """What came of all rounds so far."""

    def __init__(self, rounds: int):
        self.rounds, self.done, self.failed = rounds, 0, 0
        self.write_backs = self.pages = self.stores = 0
        self.began = self.shown = time.monotonic()

    def add(self, seen: races.Seen) -> None:
        self.write_backs += seen.write_backs
        self.pages += seen.pages
        self.stores += seen.stores

    def tick(self) -> None:
        now = time.monotonic()
        if now - self.shown >= LINE_SECONDS:
            self.shown = now
            seconds = now - self.began
            print(f"{self.done:,} of {self.rounds:,} rounds, {self.failed:,} failed, {seconds:.0f} s",
                  file=sys.stderr, flush=True)

    def line(self) -> str:
        return (f"{self.done:,} rounds, {self.write_backs:,} write-backs, {self.pages:,} pages, "
                f"{self.stores:,} stores, {self.failed:,} failed")


def run(args, total: Total) -> None:
    for number in range(args.rounds):
        if args.time is not None and time.monotonic() - total.began > args.time:
            return
        kind, seed = args.kinds[number % len(args.kinds)], args.seed + number
        try:
            total.add(on_a_mount(kind) if args.mount else in_process(kind, seed, args.seconds))
        except AssertionError as error:
            total.failed += 1
            if total.failed <= MOST_SHOWN:
                print(f"round {number}, {kind}, --seed {seed}: {error}", flush=True)
        total.done += 1
        total.tick()


def main() -> int:
    args = arguments()
    if not args.mount and not all(races.available(KINDS[kind][0]) for kind in args.kinds):
        print("races: this kernel has no userfaultfd for it, or not for this user", file=sys.stderr)
        return 2
    total, status = Total(args.rounds), 0
    try:
        run(args, total)
    except KeyboardInterrupt:
        status = 130
    except (OSError, subprocess.SubprocessError) as error:  # no room, no memory, a pytest that does not end
        print(f"races: {error}", file=sys.stderr)
        status = 2
    print(total.line(), flush=True)
    return status or int(bool(total.failed))


if __name__ == "__main__":
    sys.exit(main())
