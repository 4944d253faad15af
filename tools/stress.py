#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""stress-ng's file-system stressors on a mount by each transport, with verification, so many seconds each.

    tools/stress.py [--seconds 60] [--jobs 4] [--transport all|pyfuse3|dev|uring] [STRESSOR...]
    tools/stress.py --on DIR [STRESSOR...]

All of the class "filesystem" that this stress-ng has, but those that touch no file of the mount (APART says
why). Each runs --seconds with two instances in a directory of its own; --jobs of them at once on one mount.
Afterwards the directories must be empty, the daemon's log without errors and fsck.daxfs content. "skipped":
stress-ng says that the system can't do it. --on runs them in any directory, to see whether a failure is
stress-ng's own. Exit status 1 if one failed. Needs root and /dev/fuse.
"""

import argparse
import concurrent.futures
import contextlib
import json
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import mounts
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

GIB = 1 << 30
NO_RESOURCE, NOT_IMPLEMENTED, FAILED = 3, 4, 2
# Stressor to the reason why it says nothing about a mount.
APART = {"bind-mount": "mounts / again and again, elsewhere", "binderfs": "mounts binderfs",
         "procfs": "reads /proc", "eventfd": "uses no file", "ioprio": "is about priorities"}
# Their defaults are up to 1 GiB for each instance.
SIZES = {"hdd": "64m", "fallocate": "64m", "iomix": "64m", "sync-file": "64m"}


@dataclass
class Outcome:
    """What became of one stressor: ``state`` is ok, skipped or FAILED; ``text`` what it said if not ok."""

    transport: str
    stressor: str
    state: str
    seconds: float
    operations: int
    text: str = ""

    def shown(self) -> str:
        """For the table: operations, or what it is instead."""
        counts = self.state == "ok" and not self.stressor.startswith("(")
        return str(self.operations) if counts else self.state


def stressors() -> list[str]:
    """Names of the class "filesystem", without those in APART."""
    done = mounts.run(["stress-ng", "--class", "filesystem?"], check=False)
    found = re.search(r"'filesystem' stressors: (.*)", done.stdout + done.stderr)
    if not found:
        raise SystemExit(f"stress: stress-ng does not list its class filesystem: {done.stdout}{done.stderr}")
    return [name for name in found[1].split() if name not in APART]


def stress(transport: str, root: Path, name: str, seconds: int) -> Outcome:
    """Run one stressor in a directory of its own below *root*."""
    place = root / f"stress-{name}"
    place.mkdir()
    size = [f"--{name}-bytes", SIZES[name]] if name in SIZES else []
    began = time.monotonic()
    try:
        done = mounts.run(["stress-ng", f"--{name}", "2", *size, "--temp-path", place, "--timeout",
                           f"{seconds}s", "--verify", "--seed", "1", "--oomable", "--metrics-brief"],
                          check=False, timeout=3 * seconds + 120)
        status, text = done.returncode, done.stdout + done.stderr
    except mounts.CommandError as exc:
        status, text = -1, str(exc)
    spent = time.monotonic() - began
    metric = re.search(rf"^.*\] +{name} +(\d+) ", text, re.MULTILINE)
    state = {0: "ok", NO_RESOURCE: "skipped", NOT_IMPLEMENTED: "skipped"}.get(status, "FAILED")
    if state == "ok" and "skipp" in text and not (metric and int(metric[1])):
        state = "skipped"
    left = sorted(path.name for path in place.iterdir())
    if "fail:" in text or (state == "ok" and left):
        state = "FAILED"
        text += f"left behind: {left[:10]}\n" if left else ""
    shutil.rmtree(place, ignore_errors=True)
    return Outcome(transport, name, state, round(spent, 1), int(metric[1]) if metric else 0,
                   "" if state == "ok" else text)


def on(transport: str, root: Path, names: list[str], args, progress: Progress) -> list[Outcome]:
    """All of *names* in *root*, ``args.jobs`` at a time."""
    task = progress.add_task(transport, total=len(names))
    found = []
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(stress, transport, root, name, args.seconds) for name in names]
        for job in concurrent.futures.as_completed(jobs):
            one = job.result()
            found.append(one)
            if one.state == "FAILED":
                progress.console.print(f"[red]{transport} {one.stressor} FAILED[/]")
            progress.advance(task)
    return sorted(found, key=lambda one: one.stressor)


def on_mount(transport: str, names: list[str], args, progress: Progress) -> list[Outcome]:
    """All of *names* on a fresh mount; its daemon's log and fsck count as stressors."""
    began = time.monotonic()
    with mounts.MountedRegion(4 * GIB, options=args.options, transport=transport) as region:
        region.mount()
        found = on(transport, region.path, names, args, progress)
        alive = region.daemon_alive()
        region.umount()
        checked = region.fsck("-n")
        log = mounts.take_complaints()
    spent = round(time.monotonic() - began, 1)
    text = checked.stdout + checked.stderr
    state = "FAILED" if checked.returncode else "ok"
    found.append(Outcome(transport, "(fsck)", state, spent, 0, text))
    found.append(Outcome(transport, "(daemon)", "ok" if alive and not log else "FAILED", spent, 0,
                         "\n".join(log) or ("" if alive else "it has died")))
    return found


def show(console: Console, found: list[Outcome], seconds: int) -> None:
    """One row for each stressor, one column for each transport; then what went wrong."""
    transports = list(dict.fromkeys(one.transport for one in found))
    table = Table(title=f"stress-ng, {seconds} s each, --verify: operations")
    table.add_column("stressor")
    for name in transports:
        table.add_column(name, justify="right")
    by = {(one.stressor, one.transport): one for one in found}
    for name in dict.fromkeys(one.stressor for one in found):
        row = [by.get((name, transport)) for transport in transports]
        table.add_row(name, *("" if one is None else one.shown() for one in row))
    console.print(table)
    for one in found:
        if one.text and one.state != "ok":
            wanted = [line for line in one.text.splitlines() if not re.search("(info|metrc):", line)]
            heading = f"{one.transport} {one.stressor} {one.state}:"
            console.print(heading, *wanted[:8], sep="\n  ", markup=False, highlight=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stressor", nargs="*", help="these alone")
    parser.add_argument("--seconds", type=int, default=60, help="for each (default 60)")
    parser.add_argument("--jobs", type=int, default=4, help="stressors at once on a mount (default 4)")
    parser.add_argument("--transport", choices=(*mounts.TRANSPORTS, "all"), default="all")
    parser.add_argument("--options", default="", help="mount options for daxfs")
    parser.add_argument("--on", type=Path, metavar="DIR", help="in DIR, on no mount of ours")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    mounts.end_on_sigterm()
    console = Console()
    if not shutil.which("stress-ng"):
        console.print("stress: stress-ng is not installed")
        return 2
    names = args.stressor or stressors()
    found: list[Outcome] = []
    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*bars, console=Console(stderr=True)) as progress:
        if args.on:
            found = on(str(args.on), args.on, names, args, progress)
        wanted = mounts.TRANSPORTS if args.transport == "all" else (args.transport,)
        for transport in () if args.on else wanted:
            reason = mounts.why_no_mounts() or mounts.why_no_transport(transport)
            if reason:
                console.print(f"stress: {reason}")
                continue
            found += on_mount(transport, names, args, progress)
    show(console, found, args.seconds)
    if args.json:
        args.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    if not found:
        return 2
    return 1 if any(one.state == "FAILED" for one in found) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        with contextlib.suppress(Exception):
            mounts.close_all()
        sys.exit(130)
