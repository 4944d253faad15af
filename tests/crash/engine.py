# SPDX-License-Identifier: MIT
"""The crash engine: one sequence of operations, every crash point of it, judged.

The start tree and the operations are made in process on a mounted region under a recorder, so what the
first left in flight is there when the others begin. At each drain, before it takes effect, and at the return
of each operation the persistence model (daxfs.testing.media) says what the media may hold; a choice of that
is made into images. Each image is what a power failure leaves: fsck.daxfs's look must find nothing wrong in
it, it must mount, hold what the operations promised (judge.py), let itself be emptied, and give all space
back. Some mounts are themselves cut off by a second power failure.

One Engine for a process, one thread. Scratch files are on /dev/shm and go with `close`.
"""

import dataclasses
import errno
import json
import random
import time
import zlib

import numpy as np

from daxfs._record import Recorder
from daxfs.meta.check import check_region
from daxfs.testing import log
from daxfs.testing.costs import LATE, NEVER, Costs
from daxfs.testing.media import Media
from daxfs.testing.ranges import Ranges, bytes_of

from . import edges, judge, observed, owned, recorded, vfs, workloads
from .ground import Ground, mounted
from .model import Model

MAX_VIOLATIONS = 5      # of one sequence: then it is given up
# Done after a recovery that is to be followed by a second power failure: takes the first free pages.
GOES_ON = (("create", "again"), ("write", "again", 0, 4096, 90), ("write", "again", 8192, 40000, 91))


@dataclasses.dataclass
class Outcome:
    """What came of one sequence; plain values only."""

    name: str
    images: int = 0     # crash images that were checked, mounted, judged
    points: int = 0     # crash points: before a drain, at the return of an operation
    nested: int = 0     # of the images: a second power failure, during recovery or right after it
    seconds: float = 0.0
    violations: list[dict] = dataclasses.field(default_factory=list)
    costs: list[dict] = dataclasses.field(default_factory=list)
    ops: dict[str, int] = dataclasses.field(default_factory=dict)   # images by the operation in flight


@dataclasses.dataclass
class Point:
    """A moment at which the power may fail: *after* is None where no operation was in flight."""

    label: str
    op: str
    before: object
    after: object


class Engine:
    """Runs sequences. *limit*: images for each crash point; *nested*: for each recovery that is cut off.

    *seed* chooses where the possible images are more than that. *again*: how many of the recoveries are cut
    off. *most*: violations after which a sequence is given up. *setups*: other start trees than
    those of workloads and edges.
    """

    def __init__(self, seed: int = 0, limit: int = 48, nested: int = 8, granularity: str = "cache_line",
                 again: float = 0.05, most: int = MAX_VIOLATIONS, setups: dict | None = None):
        self.seed, self.limit, self.nested, self.granularity = seed, limit, nested, granularity
        self.again, self.most = again, most
        everything = workloads.SETUPS | edges.setups() | owned.SETUPS | observed.SETUPS
        self.setups = everything if setups is None else setups
        self.ground = Ground(granularity)
        self.grounds = {(False, False): self.ground}

    def ground_of(self, policy) -> Ground:
        """The ground for a policy: those of pool directories are made when they are needed."""
        key = policy.pool, policy.syncs
        if key not in self.grounds:
            self.grounds[key] = Ground(self.granularity, *key)
        return self.grounds[key]

    def close(self) -> None:
        for ground in self.grounds.values():
            ground.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def run(self, sequence, points: str = "all") -> Outcome:
        """All crash points of *sequence*, or with "last" those of its last operation."""
        run = Run(self, sequence, points)
        began = time.perf_counter()
        try:
            run.go()
        finally:
            run.ground.reset()
        run.outcome.seconds = time.perf_counter() - began
        if run.outcome.violations:
            self._explain(sequence, run)
        return run.outcome

    @staticmethod
    def check_log(path: str) -> None:
        """FormatError, OSError where the file at *path* is no recording that `run_log` can judge."""
        recorded.check(path)

    def run_log(self, path: str, share: int = 0, shares: int = 1) -> Outcome:
        """Images of operations of a mount that was recorded; *share* of *shares*, for several processes."""
        outcome, began, points = Outcome(path), time.perf_counter(), set()
        with recorded.Player(log.load(path), self.limit, random.Random(self.seed)) as player:
            for op, label, complaints, image in player.play(player.choose(share, shares)):
                outcome.images += 1
                outcome.ops[op.name] = outcome.ops.get(op.name, 0) + 1
                points.add((op.first, label))
                if complaints:
                    outcome.violations.append({
                        "sequence": {"name": path, "operation": op.begin}, "seed": self.seed, "point": label,
                        "image": outcome.images, "complaints": complaints,
                        "lines": image.describe(player.recording.sites),
                    })
                if len(outcome.violations) >= MAX_VIOLATIONS:
                    break
        outcome.points, outcome.seconds = len(points), time.perf_counter() - began
        return outcome

    def _explain(self, sequence, run) -> None:
        """Add the shortest sequence that still fails to the first violation."""
        first = run.outcome.violations[0]
        first["minimal"] = {"ops": [list(op) for op in self._shorter(sequence)]}

    def _shorter(self, sequence):
        """Leave out operations as long as what is left still fails."""
        ops, at = list(sequence.ops), 0
        until = time.monotonic() + 60
        while at < len(ops) and len(ops) > 1 and time.monotonic() < until:
            less = ops[:at] + ops[at + 1 :]
            run = Run(self, sequence._replace(ops=tuple(less)), "all")
            try:
                run.go()
            finally:
                run.ground.reset()
            if run.outcome.violations:
                ops = less
            else:
                at += 1
        return ops


class Run:
    """One pass over one sequence."""

    def __init__(self, engine: Engine, sequence, points: str):
        self.engine, self.sequence, self.points = engine, sequence, points
        self.ground = engine.ground_of(sequence.policy)
        self.outcome = Outcome(sequence.name)
        # The same choices for the same sequence, whatever ran before it in this process.
        self.rng = random.Random(engine.seed * 1_000_003 + zlib.crc32(sequence.name.encode()))
        self.media = Media(self.ground.image.copy(), engine.granularity)
        self.ranges = Ranges(self.media, sequence.policy.syncs)
        self.costs = Costs(engine.granularity, self._later)

    def go(self) -> None:
        ground, ops, policy = self.ground, self.sequence.ops, self.sequence.policy
        model = Model(policy, ground.created)
        ground.put_ranges(ground.path, {})
        with ground.open(ground.path) as region, Recorder(region) as recorder:
            tree = vfs.Vfs(mounted(region, policy), model.now)
            try:
                for op in self.engine.setups[self.sequence.setup]:
                    wrong = judge.step(tree, model, op)
                    if wrong:
                        raise ValueError(f"setup {self.sequence.setup}: {wrong}")
                self._feed(recorder, None)
                for number in range(len(ops)):
                    watched = self.points == "all" or number == len(ops) - 1
                    model = self._step(recorder, tree, model, number, watched)
                    if len(self.outcome.violations) >= self.engine.most:
                        break
            finally:
                tree.finish()
        self._flushes()

    def _step(self, recorder, tree, model: Model, number: int, watched: bool) -> Model:
        """One operation, and the images of it where it is *watched*; the model after it."""
        op, after = self.sequence.ops[number], model.clone()
        due = after.apply(op)
        began = recorder.begin(json.dumps(op))
        error = tree.run(op)
        recorder.end(began)
        if error != due:
            self._violation("the return", 0, [f"{op} gave errno {error}, should give {due}"], "")
        self._feed(recorder, Point(f"{number}:{op[0]}", op[0], model, after) if watched else None)
        return after

    def _later(self, event) -> bool:
        """True for a store that is flushed later by policy: data and times that wait for fsync or msync."""
        site, policy = self.costs.sites.get(event.site, ""), self.sequence.policy
        # What native service stores beside the data is told apart where write=nt.
        cached = ("data/file_io.py", "crash/vfs.py") if policy.native else "data/file_io.py"
        data = event.kind == log.SCAN or (policy.write == "cached" and site.startswith(cached))
        return data or (policy.lazytime and "store_times" in site.split(" < ")[0])

    def _flushes(self) -> None:
        """Stores that no flush covered are violations, flushes and drains for nothing are costs."""
        for row in self.costs.report():
            if row.kind in (NEVER, LATE):
                self._violation("the log", 0, [f"{row.kind}, {row.count} times: {row.site}"], "")
            else:
                self.outcome.costs.append({"kind": row.kind, "site": row.site, "count": row.count})

    def _feed(self, recorder, point) -> None:
        """Hand what was recorded to the persistence model; the images of *point*.

        Before a drain the most is in flight: whatever a crash since the last one could leave is among
        the images there. What is done to a range's file may be sure at once. With pages each flush makes
        something sure, so each event is a point.
        """
        steps = 0
        for event in log.parse(recorder.take()):
            is_point = event.kind in (log.DRAIN, log.RANGE) or self.media.granularity == "page"
            if point is not None and is_point:
                steps += 1
                what = f"before {log.NAMES[event.kind]} {steps}"
                self._point(dataclasses.replace(point, label=f"{point.label}, {what}"))
            self.costs.apply(self.ranges.apply(event))
        if point is not None:
            self._point(Point(f"{point.label}, returned", point.op, point.after, None))

    def _point(self, point: Point) -> None:
        """All images of one crash point."""
        self.outcome.points += 1
        self.ground.sure(self.media)
        for number, (image, shape) in enumerate(self.ranges.images(self.engine.limit, self.rng)):
            if len(self.outcome.violations) >= self.engine.most:
                return
            complaints = self._image(point, shape, image.delta)
            self.outcome.images += 1
            self.outcome.ops[point.op] = self.outcome.ops.get(point.op, 0) + 1
            if complaints:
                self._violation(point.label, number, complaints, image.describe())

    def _violation(self, point: str, image: int, complaints, lines: str) -> None:
        sequence = self.sequence._asdict()
        self.outcome.violations.append({
            "sequence": sequence, "seed": self.engine.seed, "point": point, "image": image,
            "images": self.outcome.images, "complaints": complaints, "lines": lines,
        })

    # -- one image ---------------------------------------------------------------------------

    def _opened(self, shape: dict, *deltas):
        base, ground = self.media.sure, self.ground
        ground.put_ranges(ground.scratch, {name: bytes_of(one, base, deltas) for name, one in shape.items()})
        region = ground.open(ground.scratch)
        mem = region.mem
        for delta in deltas:
            for place, data in delta:
                if place < len(mem):
                    mem[place : place + len(data)] = data
        return region

    def _image(self, point: Point, shape: dict, *deltas) -> list[str]:
        """Everything that must hold for one image; [] if it does."""
        with self._opened(shape, *deltas) as region:
            report = check_region(region)
            if report.problems:
                return [f"fsck: {problem}" for problem in report.problems]
        twice = self.engine.nested and len(deltas) == 1 and self.rng.random() < self.engine.again
        with self._opened(shape, *deltas) as region:
            if not twice:
                return self._mounted(region, point)
            with Recorder(region) as recorder:
                found = self._mounted(region, point, recorder)
                events = list(log.parse(recorder.take()))
        return found or self._again(point, shape, deltas[0], events) or self._goes_on(point, shape, deltas[0])

    def _mounted(self, region, point: Point, recorder=None) -> list[str]:
        try:
            io = mounted(region, self.sequence.policy)
            if recorder is not None:
                recorder.begin("recovered")
            return judge.judge(io, point.before, point.after) or judge.drain_space(io, self.ground.space)
        except Exception as error:
            return [f"{type(error).__name__}: {error}"]

    def _again(self, point: Point, shape: dict, delta, events) -> list[str]:
        """A second power failure: during the recovery of this image, or right after it."""
        ranges = self._after(shape, delta)
        for event in events:
            over = event.kind == log.BEGIN
            if event.kind in (log.DRAIN, log.RANGE) or over:
                found = self._second(ranges, point, delta)
                if found or over:
                    return found
            ranges.apply(event)
        return []

    def _second(self, ranges: Ranges, point: Point, delta) -> list[str]:
        """Images of a second power failure: *ranges* and their media hold what a recovery of *delta* did."""
        media = ranges.media
        unit = media.unit
        sure = [(n * unit, media.sure[n * unit : (n + 1) * unit].tobytes()) for n in media.changed]
        for second, shape in ranges.images(self.engine.nested, self.rng):
            self.outcome.images += 1
            self.outcome.nested += 1
            found = self._image(point, shape, delta, sure, second.delta)
            if found:
                return ["after a second power failure:", *found, second.describe()]
        return []

    def _goes_on(self, point: Point, shape: dict, delta) -> list[str]:
        """A second power failure, after more was written: replay must not write over what is newer."""
        with self._opened(shape, delta) as region, Recorder(region) as recorder:
            io = mounted(region, self.sequence.policy)
            sides = [side for side in (point.before, point.after) if side and not judge.judge(io, side, None)]
            if not sides:
                return []   # a mixture, as the operation in flight may leave it: no model has just that
            model = sides[0].restarted()
            tree = vfs.Vfs(io, model.now)
            for op in GOES_ON:
                error, due = tree.run(op), model.apply(op)
                if error == errno.ENOSPC:
                    return []
                if error != due:
                    return [f"after the recovery {op} gave errno {error}, should give {due}"]
            events = list(log.parse(recorder.take()))
        ranges = self._after(shape, delta)
        for event in events:
            ranges.apply(event)
        return self._second(ranges, Point(point.label, point.op, model, None), delta)

    def _after(self, shape: dict, delta) -> Ranges:
        """The ranges with this image on their media."""
        image = self.media.sure.copy()
        for place, data in delta:
            image[place : place + len(data)] = np.frombuffer(data, np.uint8)
        return self.ranges.crashed(Media(image, self.engine.granularity), shape)
