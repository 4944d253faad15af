#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Mutated requests for the native decoder and its answers, without a mount (daxfs/native/serve_fuzz.c).

    tools/fuzz_serve.py [--count N] [--seed N] [--write nt|cached] [--pool]

Each message must get a verdict and a reply of a sane length; one that is refused must store nothing. Samples
of what would be passed on to pyfuse3 or Python are checked by tests/t3_data/rawmsg.py, which shares nothing
with the decoder. At the end nothing of the region may have changed but one file. Exit status 1 where
something is wrong, with the message and the seed that makes it again.
"""

import argparse
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS / "t3_data"), str(TESTS / "t2_meta")]

import datakit  # noqa: E402
import fuzzing  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fuzz the native half of the FUSE server.")
    parser.add_argument("--count", type=int, default=1_000_000, help="messages (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=time.time_ns() & 0xFFFFFFFF | 1)
    parser.add_argument("--write", choices=("nt", "cached"), default="nt", help="write policy of the region")
    parser.add_argument("--pool", action="store_true", help="files in ranges of their own")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    start = time.monotonic()

    def progress(report):
        print(f"\r{report['done']:,} of {args.count:,}", end="", file=sys.stderr, flush=True)

    print(f"seed {args.seed}")
    with datakit.Kit(pool=args.pool) as kit:
        try:
            report = fuzzing.run(kit, args.seed, args.count, progress, write=args.write)
        except AssertionError as wrong:
            print(f"\nseed {args.seed}: {wrong}", file=sys.stderr)
            return 1
    print(file=sys.stderr)
    seconds = time.monotonic() - start
    verdicts = ", ".join(f"{name} {n:,}" for name, n in report["verdicts"].items())
    print(f"{report['done']:,} messages in {seconds:.1f} s: {verdicts}; {report['refused']:,} refused; "
          f"{report['samples']:,} samples checked; nothing wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
