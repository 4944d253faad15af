# SPDX-License-Identifier: MIT
"""Scripts for xfs_io (tools/jobs/xfs_io), and one xfs_io that carries them out again and again.

A script has parts: ``# once`` when the file is new, ``# before`` and ``# timed`` for each repetition, ``#
after``. The time of a repetition is what xfs_io's own pwrite -C and pread -C report (``# sample: report``),
or the clock's (``# sample: clock``): from the lines being sent to xfs_io having done them, which has what
xfs_io needs to read them in it (job ``nothing``). ``# times: N``: the timed part is sent N times at once, and
a sample is the Nth part. ``# expect: BYTE AT LENGTH``: what the file has at the end. Limits: needs stdbuf.
"""

import contextlib
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import mounts

from lab.pinned import held
from lab.plan import CellError, Visit
from lab.start import ROOT
from lab.targets import Place
from lab.words import parse_bytes

FOLDER = ROOT / "tools" / "jobs" / "xfs_io"
PARTS = ("once", "before", "timed", "after")
SETTINGS = ("sample", "times", "bytes", "flags", "expect")
REPORT = re.compile(r"(\d+),(\d+),[\d:.]+,(?:[\d.]+|inf),([\d.]+|inf)")
UNSUPPORTED = re.compile(r"Operation not supported|Inappropriate ioctl for device|command \"\w+\" not found")
MARK = "file"   # prints the open files, of which the session has one
PATIENCE = 120  # seconds for one repetition
LEAST, MOST = 3, 200  # repetitions of a visit


@dataclass(frozen=True)
class Job:
    """A script. *parts*: lines by name of the part. *settings*: what stands behind ``# NAME:``."""

    name: str
    group: str
    words: str
    parts: dict[str, list[str]] = field(hash=False)
    settings: dict[str, str] = field(hash=False)

    @property
    def times(self) -> int:
        return int(self.settings.get("times", "1"))

    def lines(self, part: str, size: int) -> list[str]:
        return [line.replace("${SIZE}", str(size)) for line in self.parts.get(part, [])]

    def bytes(self, size: int) -> int:
        """What a repetition moves, if the script says so; else 0."""
        return _number(self.settings.get("bytes", "0"), size)


def _number(text: str, size: int) -> int:
    return parse_bytes(text.replace("${SIZE}", str(size)))


def jobs(folder: Path = FOLDER) -> dict[str, Job]:
    """All scripts by name. ValueError names one that can't be understood."""
    return {path.stem: read(path) for path in sorted(folder.glob("*.xfs_io"))}


def read(path: Path) -> Job:
    """The script in *path*. ValueError says what is wrong with it."""
    parts: dict[str, list[str]] = {}
    settings: dict[str, str] = {}
    words, now = "", None
    for line in path.read_text().splitlines():
        comment = line[1:].strip() if line.startswith("#") else None
        name, colon, value = (comment or "").partition(":")
        if comment in PARTS:
            now = parts.setdefault(comment, [])
        elif colon and name == path.stem:
            words = value.strip()
        elif colon and name in SETTINGS:
            settings[name] = value.strip()
        elif comment is None and line.strip():
            if now is None:
                raise ValueError(f"{path}: {line!r} is in none of the parts {', '.join(PARTS)}")
            now.append(line.strip())
    if not words or not parts.get("timed") or settings.get("sample") not in ("clock", "report"):
        raise ValueError(f"{path}: needs '# {path.stem}: words', '# sample: clock' or 'report', '# timed'")
    return Job(path.stem, path.stem.split("-")[0], words, parts, settings)


class Session:
    """One xfs_io on *file*, fed by a pipe. A context manager."""

    def __init__(self, job: Job, place: Place, file: Path):
        self.job, self.place, self.file = job, place, file
        flags = shlex.split(job.settings.get("flags", "-f"))
        self._command = [*place.command, "stdbuf", "-oL", "xfs_io", *flags, str(file)]
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.STDOUT, bufsize=0, cwd=place.folder)
        self._out = self._process.stdout.fileno()

    def send(self, lines: list[str]) -> tuple[int, list[str]]:
        """ns that they took, and what xfs_io said. CommandError where it died or hangs."""
        text = "".join(f"{line}\n" for line in (*lines, MARK)).encode()
        said, marked = b"", False
        began = time.perf_counter_ns()
        # One that ended has said why: it is read below.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), text)
        while not marked:
            if not select.select([self._out], [], [], PATIENCE)[0]:
                raise self._failure(lines, f"no end after {PATIENCE} s")
            part = os.read(self._out, 1 << 16)
            if not part:
                raise self._failure(lines, said.decode(errors="replace"))
            said += part
            marked = said.endswith(b"\n") and said.splitlines()[-1].startswith(b"[000]")
        ns = time.perf_counter_ns() - began
        return ns, [line for line in said.decode(errors="replace").splitlines()[:-1] if line]

    def quiet(self, lines: list[str]) -> int:
        """As `send`, of lines that say errors alone: CellError for what isn't there, else CommandError."""
        ns, said = self.send(lines)
        self._check(lines, said)
        return ns

    def _check(self, lines: list[str], said: list[str]) -> None:
        if not said:
            return
        target = self.place.target
        # A native transport of daxfs has all that scripts ask for.
        if UNSUPPORTED.search(said[0]) and (not target.daxfs or target.transport == "pyfuse3"):
            raise CellError(f"{target.text}: {said[0]}")
        raise self._failure(lines, " | ".join(said))

    def reported(self, lines: list[str]) -> tuple[int, int]:
        """As `send`, of lines with -C: ns by xfs_io's clock, and bytes."""
        _, said = self.send(lines)
        found = [REPORT.fullmatch(line) for line in said]
        self._check(lines, [line for line, match in zip(said, found, strict=True) if not match])
        if not found:
            raise self._failure(lines, "no report")
        if any(match[3] == "inf" for match in found):
            raise self._failure(lines, "over within the µs that xfs_io's clock has: take a larger --size")
        # Operations by their rate: that is to the microsecond, the time that it prints is not.
        return (sum(round(int(match[2]) / float(match[3]) * 1e9) for match in found),
                sum(int(match[1]) for match in found))

    def _failure(self, lines: list[str], said: str) -> mounts.CommandError:
        status = ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(1)
            status = f", ended by {signal.Signals(-code).name}" if code < 0 else f", ended with status {code}"
        said = " | ".join(said.splitlines())[-800:] or "nothing said"
        return failure(self.job, self.place, f"{'; '.join(lines[:4])}: {said}{status}")

    def close(self) -> None:
        """End it: its input ends. One that does not is killed."""
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()


def failure(job: Job, place: Place, said: str) -> mounts.CommandError:
    """What xfs_io said, and how to see it again."""
    path = (FOLDER / f"{job.name}.xfs_io").relative_to(ROOT)
    flags = job.settings.get("flags", "-f")
    return mounts.CommandError(
        f"xfs_io failed: {job.name} on {place.target.text}: {said}\n"
        f"again: tools/xfs_io_suite.py --job {job.name} --target {shlex.quote(place.target.text)} "
        "--rounds 1 --output /tmp/again --anew\nor on a mount of your own: "
        f"sed '/^#/d; s/${{SIZE}}/64m/g' {path} | {shlex.join([*place.command, 'xfs_io'])} {flags} FILE")


def run(job: Job, place: Place, size: int, seconds: float) -> Visit:
    """Repetitions of *job* on a new file, for so many seconds. CellError, CommandError as a session's.

    xfs_io is on the CPU of who feeds it: to wake it on another one takes longer than most of what is timed,
    and where the scheduler puts it differs from visit to visit.
    """
    for program in ("xfs_io", "stdbuf"):
        if not shutil.which(program):
            raise CellError(f"{program} is not installed")
    file = place.folder / job.name
    cpus = {min(os.sched_getaffinity(0))}
    with held(None, cpus, set()), Session(job, place, file) as session:
        if once := job.lines("once", size):
            session.quiet(once)
        place.begin()
        visit, repetitions = _repeat(job, session, size, seconds)
        visit = place.end(visit, repetitions * job.times, 0)
    check(job, place, file, size)
    return visit


def _repeat(job: Job, session: Session, size: int, seconds: float) -> tuple[Visit, int]:
    before, timed, after = (job.lines(part, size) for part in ("before", "timed", "after"))
    found: dict[str, list[float]] = {"ns": [], "mib_s": []}
    until = time.monotonic() + seconds
    while len(found["ns"]) < LEAST or (time.monotonic() < until and len(found["ns"]) < MOST):
        if before:
            session.quiet(before)
        if job.settings["sample"] == "report":
            ns, moved = session.reported(timed * job.times)
        else:
            ns, moved = session.quiet(timed * job.times), job.bytes(size) * job.times
        if after:
            session.quiet(after)
        found["ns"].append(round(ns / job.times))
        if moved:
            found["mib_s"].append(moved / (1 << 20) / (max(ns, 1) / 1e9))
    return Visit({name: values for name, values in found.items() if values}), len(found["ns"])


def check(job: Job, place: Place, file: Path, size: int) -> None:
    """``# expect: BYTE AT LENGTH``: that is what the file has there. CommandError where it has not."""
    if "expect" not in job.settings:
        return
    byte, at, length = job.settings["expect"].split()
    at, length = _number(at, size), _number(length, size)
    with open(file, "rb") as stream:
        stream.seek(at)
        found = stream.read(length)
    wanted = bytes([int(byte, 16)])
    if found != wanted * length:
        wrong = next((n for n, one in enumerate(found) if one != wanted[0]), len(found))
        raise failure(job, place, f"WRONG DATA: byte {at + wrong} is not {byte}, or the file ends there")
