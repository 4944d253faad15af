# SPDX-License-Identifier: MIT
"""The crash sweep: which sequences to run, what was found before, and running the rest.

A result counts for as long as nothing changes that it depends on: the sequence, the parameters of the engine,
the installed daxfs and the sources in tests/crash. Results are appended to a file as they come, so a sweep
that was stopped in any way goes on where it was. tools/crash_sweep.py is the command for this.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.util
import json
import os
import random
import time
from pathlib import Path

from .pool import Pool, parts

# Images for each crash point: so that all of it, two operations above all, takes less than an hour on 2 CPUs.
LIMITS = {"one": 48, "two": 8, "three": 12, "random": 4, "edges": 24, "granularity": 24,
          "own": 24, "ownlong": 8, "observed": 16, "observedlong": 8,
          "track": 6, "switch": 6, "log": 48}  # fmt: skip
SETS = ("one", "two", "three", "random", "edges", "granularity", "own", "ownlong", "observed",
        "observedlong", "track", "switch")
GRANULARITY_SHARE = 0.1         # of the length-one set, under each of the other models
FRONT = {"sweep.py", "pool.py", "summary.py", "page.py"}   # decide nothing about a result
GRACE = 5.0                     # seconds for running sequences when the time is over
MAX_FAILURES = 20               # then something is wrong with the sweep itself
PATIENCE = 600.0


class SweepError(RuntimeError):
    """The sweep can't run; the text says why."""


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A sequence, and how it is to be run. One object is one job: sequences may hold lists."""

    set: str
    sequence: object
    limit: int
    points: str = "last"
    granularity: str = "cache_line"

    @property
    def label(self) -> str:
        """What tells it from all other jobs, whatever the parameters."""
        return f"{self.sequence.name} [{self.granularity}]"

    def kinds(self) -> list[str]:
        """The words of its operations: "rename", "unlink"."""
        return [str(op[0]) for op in self.sequence.ops]

    def guess(self) -> float:
        """Seconds, where nothing better is known."""
        return 1.0 if self.points == "last" else 0.1 * self.limit * len(self.sequence.ops)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sequences of the sets that are samples, and operations in each of the random ones."""

    three: int = 500
    random: int = 10
    ops: int = 100
    ownlong: int = 300
    observedlong: int = 300
    track: int = 200            # under each policy
    switch: int = 500


@dataclasses.dataclass(frozen=True)
class Recording:
    """Share number *share* of a file that ``-o record=FILE`` wrote, in the place of a sequence."""

    path: str
    share: int
    shares: int
    ops: tuple = ()

    @property
    def name(self) -> str:
        return f"{self.path} {self.share + 1}/{self.shares}"


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Everything beside the job that a result depends on."""

    seed: int = 0
    nested: int = 8

    def key(self, job: Job, digest: str) -> str:
        text = json.dumps([digest, dataclasses.asdict(job), dataclasses.asdict(self)], default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


# -- the jobs --------------------------------------------------------------------------------


def make_jobs(sizes: Sizes, seed: int, limits: dict[str, int]) -> list[Job]:
    """The jobs of the sets of *limits*: images for each crash point of each set."""
    return [Job(name, sequence, limit, points, model) for name, limit in limits.items()
            for sequence, points, model in _members(name, sizes, seed)]


def _members(name: str, sizes: Sizes, seed: int):
    """(sequence, points, granularity). In short sequences only the points of the last operation are new."""
    _, workloads, longrun, edges, owned, observed, tracked = parts()
    short = {"one": workloads.length_one, "two": workloads.length_two,
             "three": lambda: workloads.length_three(seed=seed, count=sizes.three), "edges": edges.at_edges,
             "own": owned.single, "ownlong": lambda: owned.longer(seed, sizes.ownlong),
             "observed": observed.each,
             "observedlong": lambda: observed.rows(seed, sizes.observedlong),
             "track": lambda: tracked.each_policy(seed, sizes.track),
             "switch": lambda: tracked.switched(seed, sizes.switch)}  # fmt: skip
    if name in short:
        yield from ((sequence, "last", "cache_line") for sequence in short[name]())
    elif name == "random":
        for number in range(sizes.random):
            yield longrun.random_long(seed * 1000 + number, sizes.ops), "all", "cache_line"
    elif name == "granularity":
        some = sample(list(workloads.length_one()), GRANULARITY_SHARE, seed)
        yield from ((sequence, "last", model) for model in ("byte", "page") for sequence in some)
    else:
        raise SweepError(f"no set {name!r}: there are {', '.join(SETS)}")


def make_recording_jobs(path: str, shares: int, limit: int) -> list[Job]:
    """*shares* jobs that judge the recording *path* together."""
    return [Job("log", Recording(path, share, shares), limit) for share in range(shares)]


def sample(items: list, share: float, seed: int) -> list:
    """A seeded choice of *share* (0 to 1) of *items*, at least one, in their order."""
    count = min(len(items), max(1, round(len(items) * share)))
    return [items[at] for at in sorted(random.Random(seed).sample(range(len(items)), count))]


def sample_sets(jobs: list[Job], share: float, seed: int) -> list[Job]:
    """*share* of each set."""
    sets = dict.fromkeys(job.set for job in jobs)
    return [job for name in sets for job in sample([job for job in jobs if job.set == name], share, seed)]


def matching(jobs: list[Job], text: str) -> list[Job]:
    """Jobs whose sequence's name contains *text*; a full name means that sequence alone."""
    exact = [job for job in jobs if job.sequence.name == text]
    return exact or [job for job in jobs if text in job.sequence.name]


def spread(jobs: list[Job], seed: int, guess) -> list[Job]:
    """An order in which each set has had the same share of the time, wherever the sweep is stopped."""
    sets: dict[str, list[Job]] = {}
    for job in random.Random(seed).sample(jobs, len(jobs)):
        sets.setdefault(job.set, []).append(job)
    used = dict.fromkeys(sets, 0.0)
    ordered = []
    while sets:
        name = min(sets, key=used.__getitem__)
        ordered.append(sets[name].pop())
        used[name] += guess(ordered[-1])
        if not sets[name]:
            del sets[name]
    return ordered


def digest() -> str:
    """A digest of the installed daxfs and of the sources behind the engine."""
    places = [(Path(importlib.util.find_spec("daxfs").submodule_search_locations[0]), ("*.py", "*.so")),
              (Path(__file__).parent, ("*.py",))]
    files = {path for folder, kinds in places for kind in kinds for path in folder.rglob(kind)
             if folder.name != "crash" or path.name not in FRONT}
    total = hashlib.sha256()
    for path in sorted(files | {Path(part.__file__) for part in parts()}):
        total.update(f"{path.name} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:20]


# -- what was found --------------------------------------------------------------------------


class Results:
    """``results.jsonl`` in *folder*, one line for each sequence that was run; locked while it is open.

    `found` has what was found before by the same code. Lines of other code are dropped; how long their
    sequences took is kept, in timings.json.
    """

    def __init__(self, folder: Path, digest: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.times = folder / "results.jsonl", folder / "timings.json"
        self.digest = digest
        self.lock = open(folder / "lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock.close()
            raise SweepError(f"another sweep is using {folder}") from None
        self.found: dict[str, dict] = {}
        self.timings: dict[str, float] = {}
        self._load()
        self.file = open(self.path, "a")

    def _load(self) -> None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            self.timings = json.loads(self.times.read_text())
        lines = self.path.read_text(errors="replace").splitlines() if self.path.exists() else []
        for line in lines:
            try:
                record = json.loads(line)
                self.timings[record["label"]] = record["outcome"]["seconds"]
                if record["digest"] == self.digest:
                    self.found[record["key"]] = record
            except (ValueError, KeyError, TypeError):
                continue        # the torn line of a sweep that was killed
        if len(lines) != len(self.found):
            fresh = self.path.with_suffix(".new")
            fresh.write_text("".join(json.dumps(record) + "\n" for record in self.found.values()))
            os.replace(fresh, self.path)

    def add(self, record: dict) -> None:
        self.file.write(json.dumps({**record, "digest": self.digest}) + "\n")
        self.file.flush()
        self.timings[record["label"]] = record["outcome"]["seconds"]

    def close(self) -> None:
        self.file.close()
        fresh = self.times.with_suffix(".new")
        fresh.write_text(json.dumps(self.timings))
        os.replace(fresh, self.times)
        self.lock.close()


# -- running ---------------------------------------------------------------------------------


class Sweep:
    """Runs those of *jobs* that have no result yet.

    *deadline* (time.monotonic) is when to hand out no more; then the rest is left. *fresh* runs all of them
    again. `records` are the results, earlier ones too, `failures` the sequences whose worker failed.
    """

    def __init__(self, jobs: list[Job], parameters: Parameters, results: Results, workers: int,
                 deadline: float | None = None, fresh: bool = False):
        self.jobs, self.parameters, self.results, self.workers = jobs, parameters, results, workers
        self.deadline, self.fresh, self.stopped = deadline, fresh, ""
        self.keys = {job: parameters.key(job, results.digest) for job in jobs}
        known = {} if fresh else results.found
        self.records = [known[self.keys[job]] for job in jobs if self.keys[job] in known]
        self.resumed = len(self.records)
        self.failures: list[dict] = []
        self.images = self.images_before = sum(record["outcome"]["images"] for record in self.records)
        self.violations = sum(len(record["outcome"]["violations"]) for record in self.records)
        self.began = time.monotonic()
        self._estimate()
        waiting = [job for job in jobs if self.keys[job] not in known]
        if deadline is not None:
            waiting = spread(waiting, parameters.seed, self.guesses.__getitem__)
        else:
            waiting.sort(key=self.guesses.__getitem__, reverse=True)
        self.waiting = waiting[::-1]        # the next one is the last
        self.ahead = sum(map(self.guesses.__getitem__, waiting))
        self.guessed = self.taken = 0.0     # seconds of what this run has finished

    def _estimate(self) -> None:
        """`guesses`: seconds for each job, from earlier runs of it, or from the others of its set."""
        sums: dict[str, list] = {}
        for job in self.jobs:
            if job.label in self.results.timings:
                sums.setdefault(job.set, []).append(self.results.timings[job.label])
        mean = {name: sum(known) / len(known) for name, known in sums.items()}
        self.guesses = {job: self.results.timings.get(job.label, mean.get(job.set, job.guess()))
                        for job in self.jobs}

    def stop(self, why: str) -> None:
        """End soon; may be called from a signal handler."""
        self.stopped = self.stopped or why

    def run(self, tick=lambda: None, patience: float = PATIENCE) -> None:
        """Until all is done, the time is over or `stop` was called; *tick* is called a few times a second."""
        if not self.waiting:
            return
        engine = dataclasses.asdict(self.parameters)
        with Pool(min(self.workers, len(self.waiting)), engine, patience) as pool:
            while not self.stopped:
                self._hand_out(pool)
                if not pool.busy():
                    break
                for job, answer in pool.wait(0.25):
                    self._take(job, answer)
                tick()

    def _hand_out(self, pool: Pool) -> None:
        """One sequence for each idle worker: they take seconds, so asking for each costs nothing."""
        now = time.monotonic()
        if self.deadline is not None and now > self.deadline + GRACE:
            self.stop("time")
        if len(self.failures) >= MAX_FAILURES:
            self.stop("failures")
        if self.stopped or (self.deadline is not None and now > self.deadline):
            return
        for worker in pool.idle():
            if self.waiting:
                pool.give(worker, self.waiting.pop())

    def _take(self, job: Job, answer: dict) -> None:
        self.ahead -= self.guesses[job]
        about = {"key": self.keys[job], "set": job.set, "name": job.sequence.name, "label": job.label,
                 "granularity": job.granularity, "limit": job.limit, "kinds": job.kinds(),
                 "workers": self.workers}
        if "failure" in answer:
            self.failures.append({**about, "text": answer["failure"]})
            return
        record = {**about, "outcome": answer["outcome"]}
        self.results.add(record)
        self.records.append(record)
        self.images += record["outcome"]["images"]
        self.violations += len(record["outcome"]["violations"])
        self.guessed += self.guesses[job]
        self.taken += record["outcome"]["seconds"]

    # -- for the progress --

    def done(self) -> int:
        return len(self.records) + len(self.failures)

    def left(self) -> int:
        """Sequences that have neither a result nor a failure."""
        return len(self.jobs) - self.done()

    def rate(self) -> float:
        """Images a minute in this run."""
        return (self.images - self.images_before) * 60 / max(time.monotonic() - self.began, 1e-3)

    def seconds_left(self) -> float:
        scale = self.taken / self.guessed if self.guessed else 1.0
        seconds = max(self.ahead, 0.0) * scale / self.workers
        if self.deadline is not None:
            seconds = min(seconds, max(0.0, self.deadline - time.monotonic()))
        return seconds
