# SPDX-License-Identifier: MIT
"""Job files of fio (tools/jobs/fio): which jobs there are, one run of one of them, and its report as samples.

Samples: bandwidth and requests in a second are one number for each run. Of latencies fio counts every single
one in a histogram whose bins are 1.6 % wide; 200 of them, evenly spaced in their order, become samples, and
the whole report is kept beside them. Limits: knows the options of job files that it needs, no others.
"""

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import mounts

from lab.plan import CellError, Visit
from lab.start import ROOT
from lab.targets import Place, Target, fill

FOLDER = ROOT / "tools" / "jobs" / "fio"
SUMMED = ("ioengine", "rw", "bs", "rwmixread", "direct", "iodepth", "fsync", "fdatasync", "sync", "numjobs")
KEPT = 200   # latencies of a visit that become samples
VERIFY = re.compile(r"\bverify: |verify failed", re.IGNORECASE)  # not names of jobs


@dataclass(frozen=True)
class Job:
    """A section of a job file. *options*: its own and those of ``[global]``; *words*: the comment above."""

    name: str
    file: Path
    words: str
    options: dict[str, str] = field(hash=False)

    @property
    def group(self) -> str:
        return self.file.stem

    @property
    def summary(self) -> str:
        """Its most important options."""
        return " ".join(f"{name}={self.options[name]}" for name in SUMMED if name in self.options)

    @property
    def numjobs(self) -> int:
        return int(self.options.get("numjobs", "1"))

    @property
    def files(self) -> list[str]:
        """Names of files that are there before the job starts; none for a job that makes its own."""
        if "write" in self.options["rw"] and not self.options.get("overwrite"):
            return []
        if "filename" in self.options:
            return [self.options["filename"]]
        return [f"{self.name}.{number}.0" for number in range(self.numjobs)]


def jobs(folder: Path = FOLDER) -> dict[str, Job]:
    """All jobs of the job files by name, in the order of their files' names."""
    found: dict[str, Job] = {}
    for path in sorted(folder.glob("*.fio")):
        common: dict[str, str] = {}
        options, comments, header = common, [], True
        for line in map(str.strip, path.read_text().splitlines()):
            if line.startswith((";", "#")):
                comments.append(line.lstrip(";# "))
            elif line.startswith("["):
                name = line.strip("[]")
                options = common if name == "global" else dict(common)
                if name != "global":
                    found[name] = Job(name, path, " ".join([] if header else comments), options)
                comments, header = [], False
            elif line:
                key, _, value = line.partition("=")
                options[key.strip()] = value.strip() or "1"
    return found


@functools.cache
def engines() -> set[str]:
    """What `fio --enghelp` lists. CellError without fio."""
    if not shutil.which("fio"):
        raise CellError("fio is not installed: apt-get install fio")
    listed = subprocess.run(["fio", "--enghelp"], check=False, capture_output=True, text=True).stdout
    return {line.strip() for line in listed.splitlines() if line.startswith("\t")}


def why_not(job: Job) -> str:
    """Why this fio has not what *job* needs; empty: it has."""
    engine = job.options["ioengine"]
    return "" if engine in engines() else f"this fio has no engine {engine}"


def why_not_on(job: Job, target: Target) -> str:
    """Why *job* would mislead on *target*; empty: it does not."""
    if job.options["ioengine"] != "libpmem" or target.kind not in ("packed", "ext4", "xfs"):
        return ""
    return f"{target.kind} is mapped by the page cache: nothing that libpmem flushes there is durable"


def command(job: Job, place: Place, seed: int, *more: str) -> list[str]:
    """The command of a run."""
    return [*place.command, "fio", f"--randseed={seed}", f"--section={job.name}", "--eta=never", *more,
            str(job.file)]


def environment(place: Place, size: int, runtime: float) -> dict[str, str]:
    """What job files take from the environment. libpmem is forced: `why_not_on` keeps it off page caches."""
    return {"DIRECTORY": str(place.folder), "SIZE": str(size), "RUNTIME": f"{max(1, int(runtime * 1000))}ms",
            "PMEM_IS_PMEM_FORCE": "1"}


def run(job: Job, place: Place, size: int, runtime: float, seed: int, keep: Path) -> Visit:
    """One run of *job*, whose report is kept as *keep*. CommandError: fio failed; CellError: it can't run."""
    if reason := why_not(job) or why_not_on(job, place.target):
        raise CellError(reason)
    for name in job.files or ["warm"]:
        fill(place.folder / name, size)
    # A job that makes its own files finds memory that was in use just now, as the others do.
    (place.folder / "warm").unlink(missing_ok=True)
    keep.parent.mkdir(parents=True, exist_ok=True)
    words = command(job, place, seed, "--output-format=json+", f"--output={keep.resolve()}")
    given = environment(place, size, runtime)
    place.begin()
    done = _carry_out(words, place.folder, {**os.environ, **given}, 120 + 20 * runtime)
    report = _report(keep)
    if done.returncode != 0 or not report or any(one["error"] for one in report["jobs"]):
        raise failure(job, place, given, seed, done)
    (found,) = report["jobs"]
    visit = samples(job, found)
    requests = found["read"]["total_ios"] + found["write"]["total_ios"]
    return place.end(visit, requests, found["sync"]["total_ios"])


def _carry_out(words: list[str], folder: Path, env: dict, seconds: float) -> subprocess.CompletedProcess:
    """Run fio. One that has to end is asked to: its jobs, in sessions of their own, would outlive it."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder,
                                   env=env)
        try:
            process.wait(seconds)
        except BaseException as exc:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if isinstance(exc, subprocess.TimeoutExpired):
                raise mounts.CommandError(f"{shlex.join(words)}: no end after {seconds:g} s") from None
            raise
        out.seek(0)
        return subprocess.CompletedProcess(words, process.returncode, out.read(), "")


def _report(path: Path) -> dict | None:
    """fio's report; None where it wrote none. What stands before it are messages."""
    try:
        text = path.read_text()
        return json.loads(text[text.index("{"):])
    except (OSError, ValueError):
        return None


def failure(job: Job, place: Place, given: dict, seed: int, done) -> mounts.CommandError:
    """fio's own words, and how to see it again."""
    said = " | ".join(line for line in (done.stderr + done.stdout).splitlines()
                      if line.strip() and not line.startswith("note:"))
    bad = "verify" in job.options and VERIFY.search(said)
    head = "VERIFY FAILED: what was read back is not what was written" if bad else "fio failed"
    text = " ".join(f"{name}={shlex.quote(value)}" for name, value in given.items() if name != "DIRECTORY")
    words = shlex.join(command(job, place, seed))
    again = ["tools/fio_suite.py", "--job", job.name, "--target", place.target.text, "--size",
             f"{max(1, int(given['SIZE']) >> 20)}M", "--rounds", "1", "--output", "/tmp/again", "--anew"]
    return mounts.CommandError(f"{head}: {job.name} on {place.target.text}, status {done.returncode}: "
                               f"{said[-1500:]}\nagain: {shlex.join(again)}\n"
                               f"or on a mount of your own: DIRECTORY=DIR {text} {words}")


def samples(job: Job, report: dict) -> Visit:
    """What fio's report on a job says. Where a job verifies, of its writes alone: its reads are the proof."""
    ways = [report[way] for way in (("write",) if "verify" in job.options else ("read", "write"))]
    ways = [way for way in ways if way["total_ios"]]
    milliseconds = max(way["runtime"] for way in ways)
    # fio counts whole milliseconds.
    found = {"mib_s": [sum(way["io_bytes"] for way in ways) / (1 << 20) / max(milliseconds, 1) * 1000],
             "iops": [sum(way["total_ios"] for way in ways) / max(milliseconds, 1) * 1000]}
    bins = merged([way["clat_ns"].get("bins", {}) for way in ways])
    found["lat_ns"] = evenly(bins, KEPT)
    found["max_ns"] = [max(way["clat_ns"]["max"] for way in ways)]
    if report["sync"]["total_ios"]:
        found["sync_ns"] = evenly(merged([report["sync"]["lat_ns"].get("bins", {})]), KEPT)
    return Visit({name: values for name, values in found.items() if values})


def merged(histograms: list[dict[str, int]]) -> dict[int, int]:
    """All of them as one, by latency in ns."""
    total: dict[int, int] = {}
    for one in histograms:
        for ns, count in one.items():
            total[int(ns)] = total.get(int(ns), 0) + count
    return dict(sorted(total.items()))


def evenly(bins: dict[int, int], count: int) -> list[int]:
    """*count* latencies, or all if there are fewer: evenly spaced in the order of size."""
    total = sum(bins.values())
    count = min(count, total)
    wanted = [(2 * n + 1) * total / (2 * count) for n in range(count)]
    found, seen = [], 0
    for ns, number in bins.items():
        seen += number
        while len(found) < count and wanted[len(found)] <= seen:
            found.append(ns)
    return found
