# SPDX-License-Identifier: MIT
"""A run's directory: run.json, and samples.jsonl to which each visit is added at once (docs/laboratory.md).

A run that was stopped goes on in the same directory, if it is the same run: experiment, options, seed, host
and commit. What a kill left half written at the end of samples.jsonl is cut off then. One process at a time
has a directory (flock). Limits: knows nothing of mounts or of what is measured.
"""

import fcntl
import json
import os
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from lab import facts
from lab.plan import Cell, Family, Plan, Visit

FORMAT = 1
SAME = ("format", "experiment", "host", "options", "seed", "families", "axes", "rounds")


class RunError(Exception):
    """The directory can't be used; the text says why and what to do."""


class Run:
    """The run of *plan* with *options* and *seed* in *directory*, new or gone on with."""

    def __init__(self, directory: Path, plan: Plan, options: dict, seed: int, emulate: str = "none",
                 anew: bool = False):
        """*anew*: what the directory has of an earlier run is removed first.

        ``complete``: all of it is there already; nothing was changed then. ``resumed``: a part of it is.
        """
        self.directory, self.plan = directory, plan
        self.done: set[tuple] = set()
        self.seq = 0
        mine = {"format": FORMAT, **plan.facts(),
                "command": shlex.join([f"tools/{plan.name}.py", *sys.argv[1:]]),
                "host": facts.host(), "options": options, "seed": seed, "emulate": emulate,
                "started": now(), "ended": None, "sittings": []}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what did not reach the file is not tried once more at the end.
            self._samples = open(directory / "samples.jsonl", "a+b", buffering=0)
        except OSError as exc:
            raise RunError(f"{directory}: {exc.strerror}") from None
        try:
            self._begin(json.loads(json.dumps(mine)), anew)  # as it will be read again
        except BaseException:
            self.release()
            raise

    def _begin(self, mine: dict, anew: bool) -> None:
        """Take the directory, learn what it has, and say in run.json that this sitting has begun."""
        directory = self.directory
        try:
            fcntl.flock(self._samples, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{directory}: another run uses it") from None
        if anew:
            # In this order: samples without run.json are refused, never taken for another run's.
            (directory / "run.json").unlink(missing_ok=True)
            self._samples.truncate(0)
        self.facts = self._same(mine) if (directory / "run.json").exists() else mine
        self.resumed = self.facts is not mine
        if not self.resumed and os.fstat(self._samples.fileno()).st_size:
            raise RunError(f"{directory} has samples and no run.json: take another --output, or --anew")
        self.complete = self.facts["ended"] is not None
        # Seconds in samples count from the start of the run's first sitting.
        age = datetime.now(UTC) - datetime.fromisoformat(self.facts["started"])
        self.began = time.monotonic() - age.total_seconds()
        self._read()
        if self.complete:
            return
        self._sitting = {"started": now(), "load": facts.load(), "ended": None}
        self.facts["sittings"].append(self._sitting)
        self._write_facts()

    def _same(self, mine: dict) -> dict:
        """What run.json has, if it is of this very run."""
        path = self.directory / "run.json"
        try:
            there = json.loads(path.read_text())
            if not isinstance(there, dict):
                raise ValueError("not an object")
        except ValueError as exc:
            raise _damaged(path, exc) from None
        other = [name for name in SAME if name != "host" and there.get(name) != mine[name]]
        had = there.get("host") or {}
        other += [name for name in {**had, **mine["host"]} if had.get(name) != mine["host"].get(name)]
        if other:
            raise RunError(f"{self.directory} holds another run ({', '.join(other)} differ): "
                           "take another --output, or --anew to begin again there")
        try:
            datetime.fromisoformat(there["started"])
            if not isinstance(there["sittings"], list) or not isinstance(there["ended"], str | None):
                raise ValueError("sittings or ended is of a wrong kind")
        except (ValueError, KeyError, TypeError) as exc:
            raise _damaged(path, exc) from None
        return there

    def _read(self) -> None:
        """Learn what is there already; cut off a torn end."""
        good = 0
        with open(self.directory / "samples.jsonl", "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    self._learn(json.loads(line))
                except (ValueError, KeyError, AttributeError, TypeError):
                    raise RunError(f"{self.directory}/samples.jsonl is damaged after {good} bytes: "
                                   "take another --output, or --anew") from None
                good += len(line)
        self._samples.truncate(good)

    def _learn(self, row: dict) -> None:
        """One line of samples.jsonl. ValueError and the like: it is none."""
        turn = None
        if "skipped" not in row:
            turn, _ = row["round"], row["samples"].items()
            self.seq = max(self.seq, row["seq"] + 1)
        self.done.add((row["family"], tuple(sorted(row["cell"].items())), turn))

    def _write_facts(self) -> None:
        """Replace run.json at once, so that a kill leaves the old one or the new one."""
        path = self.directory / "run.json"
        new = path.with_suffix(".new")
        try:
            new.write_text(json.dumps(self.facts, indent=1) + "\n")
            os.replace(new, path)
        except OSError as exc:
            if new.is_file():
                new.unlink()
            raise self._no_room(exc) from None

    def _no_room(self, exc: OSError) -> RunError:
        return RunError(f"{self.directory}: {exc.strerror}; what was measured is kept, and the same command "
                        "goes on there")

    def has(self, family: Family, cell: Cell, turn: int) -> bool:
        """Whether this visit was made before, or the cell was skipped for good."""
        return (family.name, cell.key, turn) in self.done or (family.name, cell.key, None) in self.done

    def add(self, family: Family, cell: Cell, turn: int, visit: Visit) -> None:
        """Keep a visit's samples."""
        row = {"family": family.name, "cell": cell.axes, "round": turn, "seq": self.seq,
               "at_s": round(time.monotonic() - self.began, 3), "load": round(facts.load(), 2),
               "samples": visit.samples}
        row |= {"counts": visit.counts} if visit.counts else {}
        row |= {"phases": visit.phases} if visit.phases else {}
        self.seq += 1
        self._append(row)
        self.done.add((family.name, cell.key, turn))

    def skip(self, family: Family, cell: Cell, reason: str) -> None:
        """Keep why a cell can't be measured here."""
        self._append({"family": family.name, "cell": cell.axes, "skipped": reason})
        self.done.add((family.name, cell.key, None))

    def _append(self, row: dict) -> None:
        left = json.dumps(row, separators=(",", ":")).encode() + b"\n"
        size = os.fstat(self._samples.fileno()).st_size
        try:
            while left:
                left = left[self._samples.write(left):]
        except OSError as exc:
            self._samples.truncate(size)
            raise self._no_room(exc) from None

    def close(self, complete: bool) -> None:
        """The end of this sitting; *complete*: all of the plan is there, or was given up by plan."""
        self._sitting["ended"] = now()
        self.facts["ended"] = self._sitting["ended"] if complete else None
        try:
            self._write_facts()
        finally:
            self.release()

    def release(self) -> None:
        """Let go of the directory; nothing is written."""
        self._samples.close()


def _damaged(path: Path, exc: Exception) -> RunError:
    what = f"no {exc}" if isinstance(exc, KeyError) else exc
    return RunError(f"{path} is damaged ({what}): take another --output, or --anew")


def now() -> str:
    """The time as run.json has it: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
