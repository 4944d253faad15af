#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Run the cases of tests/guest in a QEMU guest with an emulated NVDIMM (docs/vm.md). `make test-vm` is this.

    tools/vm/run.py [--boot NAME] [CASE...]     CASE: a shell pattern such as 'posix*' or '*/ext4-pool';
                                                without one, those that --list marks with more are left out
    tools/vm/run.py --list

Exit status 0: all passed, 1: some did not, 2: the guest could not be built. Needs root (or sudo), mmdebstrap
and qemu-system-x86 (tools/setup.sh vm).
"""

import argparse
import fcntl
import random
import signal
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guest import cases

from vm import image, machine

WORK = image.ROOT / "build/vm"
TOTAL = 30 * 60  # seconds for all boots
BOOT_SILENCE = 300  # seconds until the guest's first event, and between its events where none says more
STARTS = 3  # of a guest that panics before it runs anything of ours
CUT_WITHIN = 8  # seconds of load, at most, before the power goes


def say(text: str) -> None:
    print(text, flush=True)


class Results:
    """What became of each case; a case that was to run and did not is a failure."""

    def __init__(self, wanted: list[cases.Case]):
        self.wanted = wanted
        self.outcome: dict[str, bool] = {}

    def add(self, event: dict, logs: Path, cpu: float = 0) -> None:
        name, ok = event["name"], event["ok"]
        self.outcome[name] = ok
        log = logs / (name.replace("/", "-") + ".log")
        log.write_text(event["text"])
        say(f"  {'pass' if ok else 'FAIL'}  {name}  {event['seconds']:.1f} s, CPU {cpu:.0f} s")
        if not ok:
            say("\n".join("        " + line for line in event["text"].splitlines()[-25:]))

    def finish(self) -> int:
        """The closing lines; the exit status."""
        missing = [case.name for case in self.wanted if case.name not in self.outcome]
        for name in missing:
            say(f"  FAIL  {name}  did not run to its end")
        failed = len(missing) + sum(not ok for ok in self.outcome.values())
        say(f"{sum(self.outcome.values())} passed, {failed} failed")
        return int(failed > 0)


def boot(name: str, wanted: list[cases.Case], hardware, notes: dict, deadline: float, results) -> None:
    """`_boot`, of which a bad end is told. Again where nothing of ours had run: on a busy machine software
    emulation can't always bear how a kernel that starts patches its own instructions.
    """
    for start in range(1, STARTS + 1):
        ran: list[str] = []
        try:
            return _boot(name, wanted, hardware, notes, deadline, results, ran)
        except machine.GuestError as exc:
            say(f"{name}: {exc}")
            if ran or start == STARTS:
                return None
            say(f"{name}: started again")


def _boot(name: str, wanted, hardware, notes: dict, deadline: float, results, ran: list[str]) -> None:
    """One run of the guest. *notes* are what guests before it left, and get what this one leaves; *ran* gets
    a word for each event that it reports.
    """
    logs = WORK / name
    logs.mkdir(parents=True, exist_ok=True)
    began = case_began = time.monotonic()
    job = {"boot": name, "cases": [case.name for case in wanted], "notes": notes}
    cut_at, cpu = None, 0.0
    with machine.start(hardware, job, logs) as guest:
        for event in guest.events(deadline, BOOT_SILENCE):
            ran.append(event["event"])
            match event["event"]:
                case "up":
                    say(f"{name}: {event['kernel']}, up after {time.monotonic() - began:.0f} s")
                case "begin":
                    case_began, cpu = time.monotonic(), guest.cpu()
                case "end":
                    results.add(event, logs, guest.cpu() - cpu)
                case "note":
                    notes[event["key"]] = event["value"]
                    if cut_at is None and event.get("load"):
                        cut_at = time.monotonic() + random.uniform(0.5, CUT_WITHIN)
            if cut_at and time.monotonic() > cut_at:
                # Between two events of a running load: what was noted was durable before it was told.
                cpu = guest.cpu() - cpu
                guest.cut_power()
                case = next(case for case in wanted if case.cut)
                seconds = time.monotonic() - case_began
                done = {"name": case.name, "ok": True, "seconds": seconds, "text": str(notes)}
                results.add(done, logs, cpu)
                say(f"  power cut; fsynced by then: {notes}")
                return


def run(chosen: list[cases.Case]) -> int:
    hardware_of = {"lines": None, "bytes": "cpu"}
    began = time.monotonic()
    built = image.build(WORK, say)
    checkout = image.checkout_disk(WORK, say)
    say(f"image ready after {time.monotonic() - began:.0f} s")
    results, notes = Results(chosen), {}
    deadline = time.monotonic() + TOTAL
    nvdimm = WORK / "nvdimm"
    machine.new_nvdimm(nvdimm)
    try:
        for name, persistence in hardware_of.items():
            wanted = [case for case in chosen if case.boot == name]
            if wanted:
                hardware = machine.Hardware(built, checkout, nvdimm, persistence)
                boot(name, wanted, hardware, notes, deadline, results)
    finally:
        nvdimm.unlink()
        checkout.unlink()
    say(f"{time.monotonic() - began:.0f} s in all")
    return results.finish()


def choose(patterns: list[str], boot: str | None = None, every: bool = False) -> list[cases.Case]:
    """The cases that match one of *patterns*; without any those that are always run, or *every* one."""
    named = [case for case in cases.CASES if boot in (None, case.boot)]
    if patterns:
        return [case for case in named if any(fnmatch(case.name, one) for one in patterns)]
    return [case for case in named if every or not case.more]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="CASE")
    parser.add_argument("--boot", choices=cases.BOOTS)
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    chosen = choose(args.patterns, args.boot, args.list)
    if args.list:
        for case in chosen:
            say(f"{case.boot:6} {'more' if case.more else '':5} {case.name:32} {' '.join(case.command)}")
        return 0
    if not chosen:
        parser.error("no such case; --list shows them")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))  # through the clean-up
    WORK.mkdir(parents=True, exist_ok=True)
    with open(WORK / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return run(chosen)
        except BlockingIOError:
            parser.error(f"another run uses {WORK}")
        except image.BuildError as exc:
            say(str(exc))
            return 2


if __name__ == "__main__":
    sys.exit(main())
