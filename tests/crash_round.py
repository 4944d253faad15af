# SPDX-License-Identifier: MIT
"""One round of the kill -9 test: load a mount from several processes, kill the daemon, judge what is left.

Used by tests/t6_crash/test_kill9.py and tools/kill9.py. Everything that can be
chosen is drawn from the round's seed; only the moment of the kill within an
operation depends on the machine. Needs root and /dev/fuse. The region lies on
tmpfs, so its memory survives the process: what write() returned must be there.
"""

import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import load
from mounts import MIB, CommandError, MountedRegion, take_complaints

OPTIONS = ("", "", "write=nt,drain=write", "write=nt,drain=fsync", "write=cached", "lazytime")
WAIT = 60.0


@dataclasses.dataclass
class Plan:
    """What one round does, drawn from its seed."""

    seed: int
    workers: int
    cycles: list[tuple[int, float]]  # (operations until the kill, seconds after that)
    replay_kills: list[float]  # moments as parts of the usual time of a mount
    options: str
    kind: str
    transport: str | None = None  # None: what mount.daxfs takes by itself
    dax: bool = False  # files in ranges of their own, and on their way there and back; a pool directory

    @classmethod
    def draw(cls, seed: int, workers: int = 3, replay_kill: bool | None = None,
             transport: str | None = None, dax: bool | None = None) -> "Plan":
        """The plan for *seed*. *replay_kill*: kill during replay too (None: in two of five rounds).

        *dax*: with ranges of their own for some files (None: in one of three rounds); over pyfuse3, which
        has no ioctl to set the flag, never.
        """
        rng = random.Random(seed)
        cycles = [(rng.choice((5, 60, 300, 900, 2000)) + rng.randrange(60), rng.random() * 0.004)
                  for _ in range(rng.choice((1, 2, 2)))]
        kills = [rng.uniform(0.2, 1.1) for _ in range(rng.choice((1, 2, 3)))]
        drawn = rng.random() < 0.4
        wanted = drawn if replay_kill is None else replay_kill
        options, kind = rng.choice(OPTIONS), rng.choice(("file", "file", "pool"))
        dax = (kind == "pool" if dax is None else dax) and transport != "pyfuse3"
        kind = "pool" if dax else kind
        return cls(seed, workers, cycles, kills if wanted else [], options, kind, transport, dax)

    def command(self) -> str:
        """The command that plays this round again."""
        again = "always" if self.replay_kills else "never"
        return (f"tools/kill9.py --rounds 1 --seed {self.seed} --workers {self.workers} "
                f"--replay-kill {again} --ranges {'always' if self.dax else 'never'}"
                + (f" --transport {self.transport}" if self.transport else ""))


@dataclasses.dataclass
class Report:
    """What came of a round."""

    plan: Plan
    complaints: list[str] = dataclasses.field(default_factory=list)
    operations: int = 0
    kills: int = 0
    in_flight: dict = dataclasses.field(default_factory=lambda: {"undone": 0, "done": 0, "torn": 0})
    seconds: float = 0.0


class Round:
    """Runs one plan; ``run()`` always cleans up. A failed region and its logs are copied to *keep*."""

    def __init__(self, plan: Plan, keep: Path | None = None):
        self.plan = plan
        self.report = Report(plan)
        self.keep = keep
        self.work = Path(tempfile.mkdtemp(prefix="daxfs-kill9-", dir="/dev/shm"))
        self.procs: list[subprocess.Popen] = []

    def run(self) -> Report:
        """The report; a command that fails or hangs is a complaint, not an exception."""
        began = time.monotonic()
        region = None
        try:
            region = MountedRegion(128 * MIB, kind=self.plan.kind, options=self.plan.options,
                                   transport=self.plan.transport)
            self._rounds(region)
        except (CommandError, OSError) as exc:
            self._complain(f"{type(exc).__name__}: {exc}")
        finally:
            self._stop_workers()
            if region:
                if self.report.complaints and self.keep:
                    self._keep(region)
                region.close()
            self.report.complaints += take_complaints()
            shutil.rmtree(self.work, ignore_errors=True)
            self.report.seconds = time.monotonic() - began
        return self.report

    def _complain(self, *texts: str) -> None:
        self.report.complaints += texts

    def _rounds(self, region: MountedRegion) -> None:
        began = time.monotonic()
        region.mount()
        mount_seconds = time.monotonic() - began
        baseline = fresh_space(region.path)
        for number in range(self.plan.workers):
            (region.path / f"w{number}").mkdir()
            if self.plan.dax:
                load.set_dax(region.path / f"w{number}", True)
        for cycle in range(len(self.plan.cycles)):
            self._load_and_kill(region, cycle)
            self._offline_check(region)
            for part in self.plan.replay_kills:
                region.kill_mount_in_progress(part * mount_seconds)
                self.report.kills += 1
                self._offline_check(region)
            region.mount()
            self._judge(region)
            if self.report.complaints:
                return
        self._empty(region, baseline)

    def _load_and_kill(self, region: MountedRegion, cycle: int) -> None:
        wanted, delay = self.plan.cycles[cycle]
        before = self._operations()
        self.procs = [self._start_worker(region, number, cycle) for number in range(self.plan.workers)]
        for proc in self.procs:
            proc.stdout.readline()  # "ready", or the end of a worker that failed
        deadline = time.monotonic() + WAIT
        while self._operations() - before < wanted:
            if any(proc.poll() is not None for proc in self.procs) or time.monotonic() > deadline:
                break
            time.sleep(0.001)
        time.sleep(delay)
        if time.monotonic() > deadline:
            self._complain(f"only {self._operations() - before} of {wanted} operations in {WAIT} s")
        for proc in self.procs:
            proc.stdout.close()
        early = [proc for proc in self.procs if proc.poll() is not None]
        region.kill()
        self.report.kills += 1
        for number, proc in enumerate(self.procs):
            self._end_worker(number, proc, proc in early)
        self.report.operations = self._operations()

    def _start_worker(self, region: MountedRegion, number: int, cycle: int) -> subprocess.Popen:
        seed = self.plan.seed * 1000 + cycle * 100 + number
        args = [sys.executable, load.__file__, "run", "--root", str(region.path / f"w{number}"),
                "--log", str(self._log(number)), "--seed", str(seed), *["--dax"] * self.plan.dax]
        with open(self.work / f"stderr{number}", "w") as errors:
            return subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)

    def _end_worker(self, number: int, proc: subprocess.Popen, early: bool) -> None:
        try:
            status = proc.wait(WAIT)
        except subprocess.TimeoutExpired:
            self._complain(f"worker {number} hangs after the daemon's death")
            proc.kill()
            proc.wait()
            return
        # A store to a mapping of a dead file system ends in SIGBUS: the operation stays in flight.
        if early or status not in (0, -signal.SIGBUS):
            text = (self.work / f"stderr{number}").read_text()
            self._complain(f"worker {number} ended {'early ' if early else ''}with status {status}: {text}")

    def _stop_workers(self) -> None:
        for proc in self.procs:
            if proc.poll() is None:
                proc.kill()
                proc.wait()

    def _log(self, number: int) -> Path:
        return self.work / f"log{number}"

    def _operations(self) -> int:
        """Operations that have returned so far, of all workers: two lines in the log for each."""
        logs = [self._log(number) for number in range(self.plan.workers)]
        return sum(path.read_bytes().count(b"\n") for path in logs if path.exists()) // 2

    def _offline_check(self, region: MountedRegion) -> None:
        """fsck.daxfs -n finds nothing wrong, and changes no byte."""
        before = source_digest(region.source)
        done = region.fsck("-n")
        if done.returncode != 0:
            self._complain(f"fsck.daxfs -n: status {done.returncode}: {done.stdout}{done.stderr}")
        if source_digest(region.source) != before:
            self._complain("fsck.daxfs -n changed the region")

    def _judge(self, region: MountedRegion) -> None:
        names = sorted(os.listdir(region.path))
        wanted = [f"w{number}" for number in range(self.plan.workers)]
        if names != wanted:
            self._complain(f"top directory holds {names}, should hold {wanted}")
            return
        for number in range(self.plan.workers):
            found = load.judge(region.path / f"w{number}", self._log(number))
            self._complain(*(f"w{number}: {text}" for text in found))
            self._count_in_flight(number)

    def _count_in_flight(self, number: int) -> None:
        """How the operation in flight turned out, as the judge wrote at the end of the log."""
        last = self._log(number).read_text().splitlines()[-1:]
        record = json.loads(last[0]) if last else {}
        if "settled" in record:
            outcome = "torn" if "hex" in record else "done" if record["settled"] else "undone"
            self.report.in_flight[outcome] += 1

    def _empty(self, region: MountedRegion, baseline: dict) -> None:
        for number in range(self.plan.workers):
            shutil.rmtree(region.path / f"w{number}")
        # The space of own ranges is the file system's below, which others use meanwhile.
        of = ("inodes",) if self.plan.dax else ("blocks", "inodes")
        lost = wait_for_space(region.path, baseline, of=of)
        if lost:
            self._complain(f"after unlinking everything: {lost}")
        region.umount()
        left = os.listdir(region.source / "ranges") if self.plan.dax else []
        if left:
            self._complain(f"after unlinking everything: ranges {left} are left")
        self._offline_check(region)

    def _keep(self, region: MountedRegion) -> None:
        """Copy the region and the logs away, as the failure left them."""
        place = self.keep / f"seed-{self.plan.seed}"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.work, place)
        subprocess.run(["cp", "-r", "--sparse=always", str(region.source), str(place)], check=False)


def source_digest(source: Path) -> str:
    """Digest of a source's bytes: of a file, or of all files of a pool directory with their names."""
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    total = hashlib.sha256()
    for path in files:
        total.update(str(path).encode())
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def space(path) -> dict:
    """Free blocks and free inodes as statfs gives them."""
    info = os.statvfs(path)
    return {"blocks": info.f_bfree, "inodes": info.f_ffree}


def fresh_space(path) -> dict:
    """Free space of an empty file system, after its root directory was used once (it may keep a block)."""
    probe = Path(path) / "probe"
    probe.mkdir()
    probe.rmdir()
    time.sleep(0.05)
    return space(path)


def wait_for_space(path, baseline: dict, seconds: float = 10, of=("blocks", "inodes")) -> str:
    """Wait until the free space is *baseline* again: the kernel releases and forgets inodes after unlink.

    '' when it is, else what is missing.
    """
    deadline = time.monotonic() + seconds
    while any(space(path)[name] != baseline[name] for name in of):
        if time.monotonic() > deadline:
            return f"free space is {space(path)}, was {baseline} when fresh"
        time.sleep(0.05)
    return ""
