# SPDX-License-Identifier: MIT
"""Crash tests for programs that store through a region: run, cut the power everywhere, check what is left.

crash_test runs a program once under a recorder, then goes through its log: before each drain, at the return
of each operation and at the end it makes crash images (media.py) and hands each to the caller's check.
Limits: sees what goes through the region's store, nt_store, nt_fill, flush_range, drain and persist, not
stores through its mem or array; the program has to be the same in each run for `only`. One thread calls it;
the program may use several. Scratch memory is a memfd, so it goes with the process whatever happens.
"""

import contextlib
import itertools
import os
import random
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from daxfs._record import Recorder
from daxfs.pfn import PAGE_SIZE
from daxfs.region import Region
from daxfs.testing import log
from daxfs.testing.costs import Costs, Row
from daxfs.testing.images import Image
from daxfs.testing.media import Media

DETAILS = 5  # violations that are shown; the others are counted


class Point(NamedTuple):
    """A moment at which the power may fail. *media* is as it is then: take its images before going on.

    number: the event of the log that has not happened any more. what: in words. returned, in_flight:
    operations, as {number: text} in the order in which they returned or began.
    """

    number: int
    what: str
    media: Media
    returned: dict[int, str]
    in_flight: dict[int, str]


def crash_points(events: Iterable, image, granularity: str = "cache_line",
                 torn: bool = True) -> Iterator[Point]:
    """Yield the moments that can differ: before something gets sure, after each END, at the end of the log.

    More stores only add to what may be on the media, until a drain makes some of it sure (page: a flush, or
    the return of an nt store). So what a crash in between could leave is possible at the next of these
    moments too. *image*: the media before the first event.
    """
    media = Media(image, granularity, torn)
    returned: dict[int, str] = {}
    in_flight: dict[int, str] = {}
    shown, before = -1, 0

    def point(what: str) -> Point:
        return Point(media.number, what, media, dict(returned), dict(in_flight))

    for event in events:
        if event.kind == (log.FLUSH if granularity == "page" else log.DRAIN):
            yield point(f"before {log.NAMES[event.kind]} #{media.number}")
        elif granularity == "page" and before in (log.NT_STORE, log.NT_FILL):
            yield point(f"during {log.NAMES[before]} #{media.number - 1}")
        media.apply(event)
        before = event.kind
        if event.kind == log.BEGIN:
            in_flight[event.op] = event.data.decode("utf-8", "surrogateescape")
        elif event.kind == log.END and event.op in in_flight:
            returned[event.op] = in_flight.pop(event.op)
            shown = media.number
            yield point(f"when {returned[event.op]!r} had returned")
    if shown != media.number:
        yield point("at the end")


@dataclass
class Violation:
    """An image that the check refused. number: of the image, for `only`; error: what the check raised.

    where: the line of the check that raised. lines: which stores in flight were there and which missing; as
    few are missing as still fail. order: what reached the media out of the program's order.
    """

    number: int
    what: str
    returned: list
    in_flight: list
    error: Exception
    where: str
    lines: str
    order: str

    def __str__(self) -> str:
        names = ", ".join(map(_text, self.in_flight)) or "nothing"
        lines = [f"image {self.number}: power fails {self.what}",
                 f"  operation in flight: {names}; returned: {len(self.returned)} operations",
                 textwrap.indent(f"{type(self.error).__name__}: {self.error}".rstrip(": "), "  "),
                 f"  {self.where}",
                 "  what was stored and not yet sure, in the order of the program:"]
        lines.append(textwrap.indent(self.lines, "    "))
        return "\n".join([*lines, f"  {self.order}"] if self.order else lines)


@dataclass
class Result:
    """What crash_test found. points: moments; images: checked; failed: of them refused by the check.

    violations: the first of each sort (line of the check, call sites of what is missing), at most five.
    costs: rows of daxfs.testing.costs. str() is the report.
    """

    seed: int
    granularity: str
    points: int = 0
    images: int = 0
    failed: int = 0
    violations: list[Violation] = field(default_factory=list)
    costs: list[Row] = field(default_factory=list)
    cost_table: str = ""

    @property
    def ok(self) -> bool:
        return not self.failed

    def __str__(self) -> str:
        parts = [f"{self.images} crash images at {self.points} moments, {self.failed} violations "
                 f"({self.granularity}, seed {self.seed})"]
        parts += [str(violation) for violation in self.violations]
        return "\n\n".join(parts + ([self.cost_table] if self.cost_table else []))


def crash_test(program: Callable, check: Callable, *, size: int = 1 << 20, setup: Callable | None = None,
               recover: Callable | None = None, limit: int = 64, nested: int = 4, seed: int = 0,
               granularity: str = "cache_line", torn: bool = True, expected: Callable | None = None,
               only: int | None = None) -> Result:
    """Run *program* on a region of *size* bytes and *check* every image that a power failure may leave.

    program(region, op): stores through the region; ``with op("push 3"):`` marks an operation. What op is
    given (any object; its str, a tuple's joined by blanks, is shown) comes back to the check.
    check(region, returned, in_flight): raises, best by assert, if the image breaks a promise. returned: the
    operations that had returned, in order; in_flight: those that had not. It may store as it likes: every
    image is a fresh copy.
    setup(region): makes what is there before the first image; recover(region): called on each image before
    the check, and itself cut off by a second power failure, *nested* images for each of its drains.
    limit: images for each moment; expected(event): see Costs; torn: see Media.
    only: check the image of this number alone and let what the check raises through, for a debugger.
    """
    with contextlib.closing(_Scratch(size)) as scratch:
        run = _Run(scratch, check, recover, nested, Result(seed, granularity), only)
        events = run.record(program, setup)
        costs, rng = Costs(granularity, expected), random.Random(seed)
        for event in events:
            costs.apply(event)
        for point in crash_points(events, scratch.image, granularity, torn):
            run.result.points += 1
            scratch.write(point.media)
            for image in point.media.images(limit, rng):
                run.one(point, image)
        if only is not None and run.result.images <= only:
            raise ValueError(f"there is no image {only}, only {run.result.images} of them")
        run.result.costs, run.result.cost_table = costs.report(), costs.table()
        return run.result


class _Scratch:
    """The memory of the region: a file in memory without a name, and what it held before the program."""

    def __init__(self, size: int):
        self.fd = os.memfd_create("daxfs-crash", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, -(-size // PAGE_SIZE) * PAGE_SIZE)
        self.image = b""

    def close(self) -> None:
        os.close(self.fd)

    def open(self, mode: str, *deltas) -> Region:
        region = Region.open([f"/proc/self/fd/{self.fd}"], mode)
        for place, data in itertools.chain(*deltas):
            region.mem[place : place + len(data)] = data
        return region

    def write(self, media: Media) -> None:
        """Bring the file to what is sure."""
        for place, data in _sure(media):
            os.pwrite(self.fd, data, place)
        media.changed.clear()


def _sure(media: Media) -> list[tuple[int, bytes]]:
    """The changed units of the sure image, as a delta."""
    unit = media.unit
    return [(n * unit, media.sure[n * unit : (n + 1) * unit].tobytes()) for n in media.changed]


class _Run:
    """The state of one crash_test."""

    def __init__(self, scratch: _Scratch, check, recover, nested: int, result: Result, only: int | None):
        self.scratch, self.check, self.recover, self.nested = scratch, check, recover, nested
        self.result, self.only = result, only
        self.ops: dict[int, object] = {}
        self.seen: set = set()  # sorts of violations, as they were found
        self.shown: set = set()  # and with as little missing as still fails

    def record(self, program, setup) -> list:
        """Run the program; its log. The scratch file is as before the program again."""
        with self.scratch.open("rw") as region:
            if setup is not None:
                setup(region)
            self.scratch.image = bytes(region.mem)
            with Recorder(region) as recorder:

                @contextlib.contextmanager
                def op(what):
                    number = recorder.begin(_text(what))
                    self.ops[number] = what
                    try:
                        yield
                    finally:
                        recorder.end(number)

                program(region, op)
                events = [_short_site(event) for event in log.parse(recorder.take())]
        os.pwrite(self.scratch.fd, self.scratch.image, 0)
        return events

    def one(self, point: Point, image: Image) -> None:
        """Check one image, and what a power failure during its recovery makes of it."""
        number = self.result.images
        self.result.images += 1
        wanted = self.only is None or number == self.only
        if wanted:
            error = self.attempt(point, image.delta)
            if error:
                self.found(number, point, image, error)
        if self.recover and self.nested and (wanted or self.only > number):
            self.again(point, image)

    def attempt(self, point: Point, *deltas) -> Exception | None:
        """What recover or the check says to this image."""
        returned, in_flight = self.names(point)
        with self.scratch.open("cow", *deltas) as region:
            try:
                if self.recover:
                    self.recover(region)
                self.check(region, returned, in_flight)
            except Exception as error:
                if self.only is not None:
                    raise
                return error
        return None

    def again(self, point: Point, image: Image) -> None:
        """A second power failure, at each drain of the recovery of *image* and when it has ended."""
        with self.scratch.open("cow", image.delta) as region:
            before = region.array.copy()
            with Recorder(region) as recorder, contextlib.suppress(Exception):  # attempt has shown it
                self.recover(region)
            events = [_short_site(event) for event in log.parse(recorder.take())]
        if not any(event.kind in (log.STORE, log.NT_STORE, log.NT_FILL) for event in events):
            return
        rng = random.Random(self.result.images)
        for inner in crash_points(events, before, self.result.granularity, point.media.torn):
            sure = _sure(inner.media)
            for second in inner.media.images(self.nested, rng):
                number = self.result.images
                self.result.images += 1
                if self.only is None or number == self.only:
                    error = self.attempt(point, image.delta, sure, second.delta)
                    if error:
                        self.found(number, point, image, error, second)

    def least(self, point: Point, image: Image) -> Image:
        """The image with everything there, or whole units missing, where it fails all the same."""
        for i, group in enumerate(image.flight.groups):
            for simpler in (group.full, group.base):
                if image.chosen[i] == simpler:
                    break
                other = Image(image.flight, (*image.chosen[:i], simpler, *image.chosen[i + 1 :]))
                if self.attempt(point, other.delta):
                    image = other
                    break
        return image

    def found(self, number: int, point: Point, image: Image, error, second: Image | None = None) -> None:
        """Count a violation, and keep it with its lines if it is the first of its sort."""
        self.result.failed += 1
        where = _where(error)
        error.__traceback__ = None  # its frames hold the region of this image
        sort = where, _sort(image), second and _sort(second)
        if sort in self.seen or len(self.result.violations) >= DETAILS:
            return
        self.seen.add(sort)
        if second is None:
            image = self.least(point, image)
            lines = image.describe()
        else:
            lines = f"{image.describe()}\nand in its recovery, when power failed again:\n{second.describe()}"
        sort = where, _sort(image), second and _sort(second)
        if sort not in self.shown:
            self.shown.add(sort)
            order = _order(second or image)
            self.result.violations.append(
                Violation(number, point.what, *self.names(point), error, where, lines, order))

    def names(self, point: Point) -> tuple[list, list]:
        """The operations of a moment, as the program gave them to op."""
        return [self.ops[n] for n in point.returned], [self.ops[n] for n in point.in_flight]


def _where(error: Exception) -> str:
    """File, line and text of what raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}: {frame.line}"


def _sort(image: Image) -> frozenset:
    """The call sites whose stores are missing, or parts of them: alike in this means alike in the cause."""
    return frozenset(event.site for event, verdicts in image.states().values() if "missing" in verdicts)


def _order(image: Image) -> str:
    """The first store that is missing and what came after it and is there."""
    states = image.states()
    missing = next((n for n in states if "missing" in states[n][1]), None)
    later = [f"#{n}" for n in states if missing is not None and n > missing and "there" in states[n][1]]
    return f"so {', '.join(later)} reached the media before #{missing}" if later else ""


def _text(what) -> str:
    return " ".join(map(str, what)) if isinstance(what, tuple) else str(what)


def _short_site(event):
    """A call site without the frames of this module and what called it: the user's own frames are left."""
    if event.kind != log.SITE:
        return event
    frames = event.data.decode("utf-8", "replace").split(" < ")
    own = list(itertools.takewhile(lambda frame: "testing/crash.py:" not in frame, frames))
    return event._replace(data=" < ".join(own).encode())
