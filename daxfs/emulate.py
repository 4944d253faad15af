# SPDX-License-Identifier: MIT
"""L1: the media that a region can be made to cost (mount option emulate=), and the self-check of their times.

A medium is a few numbers from media.toml, or from a file of the user's with the same keys; what they do is in
native/emulate.h, what they leave out in docs/emulation.md. Limits: `Medium` is made before the region is
shared, by one thread, and costs 10 ms and some spinning. Times are ns of CLOCK_MONOTONIC.
"""

import math
import os
import re
import stat
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from daxfs._emulate import LINE, Emulation
from daxfs._flush import Flush
from daxfs.errors import DaxfsError, UsageError

NONE = "none"
MEDIA = Path(__file__).with_name("media.toml")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,31}")
MAX_FILE = 65536
# The most that a number may be: a line or a drain must not keep a thread of the daemon for long.
MOST = {"flush_line_ns": 100_000.0, "nt_line_ns": 100_000.0, "flush_drain_ns": 10_000_000.0,
        "nt_drain_ns": 10_000_000.0, "write_gb_s": 10_000.0}  # fmt: skip
LEAST_GB_S = 0.001

# What the self-check measures: a name, lines, and whether they go past the cache.
CASES = (("flush 64 B", 1, False), ("flush 4 KiB", 64, False), ("nt 64 B", 1, True), ("nt 4 KiB", 64, True),
         ("nt 1 MiB", 16384, True))  # fmt: skip
LONGEST_NS = 5_000_000  # of one case, all rounds together, by the medium's own times
ROUNDS = (3, 33)
ATTEMPTS = 3  # where the median is late: somebody else may have had the CPU
EARLY = 0.01  # a delay may be so much shorter than asked for: two clocks, one of them steered by NTP
LATE, LATE_NS = 0.25, 150  # and the median so much longer: calls, reading the clock, interrupts


@dataclass(frozen=True)
class Profile:
    """The numbers of a medium. words: what it is. source: where they are from. path: of a user's file."""

    name: str
    words: str
    flush_line_ns: float
    flush_drain_ns: float
    nt_line_ns: float
    nt_drain_ns: float
    write_gb_s: float = 0.0  # no limit
    source: tuple[str, ...] = ()
    path: str = ""

    @property
    def title(self) -> str:
        return f"{self.name}: {self.words}" if self.words else self.name

    def price(self) -> tuple[int, int, int]:
        """ps of a line, of a line on the wire, and of a drain of write-back: struct daxfs_about."""
        wire = LINE * 1000 / self.write_gb_s if self.write_gb_s else 0
        return round(self.flush_line_ns * 1000), round(wire), round(self.flush_drain_ns * 1000)

    def numbers(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in MOST}


KEYS = {one.name for one in fields(Profile)} - {"path"}


def known() -> dict[str, Profile]:
    """The media that come with daxfs, by name."""
    return {name: _profile({"name": name, **table}, str(MEDIA))
            for name, table in tomllib.loads(MEDIA.read_text()).items()}


def find(text: str) -> Profile | None:
    """The medium of emulate=*text*: a name, or the path of a file; None for none. UsageError."""
    if text == NONE:
        return None
    if "/" in text:
        return _from_file(text)
    media = known()
    if text not in media:
        raise UsageError(f"emulate={text} is unknown; one of: {', '.join((NONE, *media))}, "
                         f"or the path of a file, with a slash: ./{text} (docs/emulation.md)")
    return media[text]


def _from_file(path: str) -> Profile:
    """A user's file: one medium, its keys at the top level."""
    try:
        # Not blocking: a FIFO would wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UsageError(f"emulate={path}: not a regular file")
            raw = file.read(MAX_FILE + 1)
    except UsageError:
        raise
    except OSError as exc:
        raise UsageError(f"emulate={path}: {exc.strerror}") from exc
    if len(raw) > MAX_FILE:
        raise UsageError(f"emulate={path}: longer than {MAX_FILE} bytes")
    try:
        table = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as exc:  # also numbers of too many digits, and arrays in arrays
        raise UsageError(f"emulate={path}: not TOML: {exc}") from exc
    return _profile(table, path, path)


def _profile(table: dict, where: str, path: str = "") -> Profile:
    """The medium of a table; UsageError, which begins with *where*, says what is wrong with it."""
    unknown = sorted(table.keys() - KEYS)
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; there are: {', '.join(sorted(KEYS))}")
    found = {"name": Path(where).stem, "words": "", "write_gb_s": 0.0, **table}
    for key in MOST:
        if key not in found:
            raise UsageError(f"{where}: {key} is missing")
        found[key] = _number(where, key, found[key])
    if 0 < found["write_gb_s"] < LEAST_GB_S:
        raise UsageError(f"{where}: write_gb_s = {found['write_gb_s']:g}: from {LEAST_GB_S:g} on, "
                         "or 0 for no limit")
    _check_name(where, found["name"], "name" in table)
    words, source = found["words"], found.get("source", [])
    if not isinstance(words, str) or not words.isprintable() or len(words) > 100:
        raise UsageError(f"{where}: words: one line of at most 100 characters")
    source = [source] if isinstance(source, str) else source
    if not isinstance(source, list) or not all(isinstance(line, str) for line in source):
        raise UsageError(f"{where}: source: a text or a list of texts")
    return Profile(**found | {"source": tuple(source), "path": path})


def _check_name(where: str, name, given: bool) -> None:
    """UsageError for a name that reports can't show; *given*: by the file's text, not by its path."""
    if isinstance(name, str) and NAME.fullmatch(name) and name != NONE:
        return
    rule = ("means no medium" if name == NONE else
            "letters, digits and -_.+ alone, a letter or digit first, at most 32")
    todo = "" if given else "; that is the file's name, name = \"…\" in it gives another"
    raise UsageError(f"{where}: name {name!r}: {rule}{todo}")


def _finite(value: int | float) -> bool:
    return isinstance(value, int) or math.isfinite(value)  # an int may be too large for that question


def _number(where: str, key: str, value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise UsageError(f"{where}: {key} = {value!r}: not a number")
    if not 0 <= value <= MOST[key]:
        shown = f"{value:g}" if isinstance(value, float) or abs(value) < 1 << 64 else "a very large number"
        raise UsageError(f"{where}: {key} = {shown}: from 0 to {MOST[key]:,.0f}")
    return abs(float(value))


@dataclass(frozen=True)
class Check:
    """One case of the self-check, in ns. host: the shortest without emulation."""

    what: str
    bytes: int
    asked: float
    shortest: int
    median: int
    host: int

    @property
    def early(self) -> bool:
        """Shorter than the medium: the clock that delays are made with is wrong."""
        return self.shortest < self.asked * (1 - EARLY)

    @property
    def slow_host(self) -> bool:
        """This host alone takes longer than the medium."""
        return self.host > self.asked

    @property
    def late(self) -> bool:
        return self.median > max(self.asked, self.host) * (1 + LATE) + LATE_NS


class Medium:
    """*flush* costs what *profile* says, from now on; ``checks``: what came out when that was measured.

    UsageError where that can't be had, DaxfsError where delays are shorter than they have to be.
    """

    def __init__(self, flush: Flush, profile: Profile):
        self.profile = profile
        self.emulation = Emulation(flush, **profile.numbers())
        self.checks = [self._check(*case) for case in CASES if self.emulation.asked(1, case[2])]
        early = next((one for one in self.checks if one.early), None)
        if early is not None:
            raise DaxfsError(f"emulate={profile.name}: the self-check failed: {early.what} took "
                             f"{early.shortest} ns where {early.asked:.0f} ns were asked for: the clock "
                             f"({self.emulation.clock}) does not run as it did a moment ago")

    def _check(self, what: str, lines: int, nt: bool) -> Check:
        while lines > 64 and self.emulation.asked(lines, nt) * ROUNDS[0] > LONGEST_NS:
            lines //= 2
        asked = self.emulation.asked(lines, nt)
        rounds = max(ROUNDS[0], min(ROUNDS[1], int(LONGEST_NS / asked)))
        host, _ = self.emulation.measure(lines, nt, False, rounds)
        for _ in range(ATTEMPTS):
            shortest, median = self.emulation.measure(lines, nt, True, rounds)
            found = Check(what, lines * LINE, asked, shortest, median, host)
            if not found.late:
                break
        return found

    @property
    def problems(self) -> list[str]:
        """Where the times are not the medium's, as sentences; a mount warns and goes on."""
        out = []
        for one in self.checks:
            if one.slow_host:
                out.append(f"{one.what}: this host takes {one.host} ns, the medium only {one.asked:.0f} ns: "
                           "that can't be emulated here")
            elif one.late:
                out.append(f"{one.what}: takes {one.median} ns where {one.asked:.0f} ns were asked for: "
                           "this host is too busy now for exact times")
        return out

    def describe(self) -> dict:
        """What reports show of it; plain values, times in ns."""
        profile, emulation = self.profile, self.emulation
        return {
            "profile": profile.name, "words": profile.words, "path": profile.path, **profile.numbers(),
            "source": list(profile.source), "clock": emulation.clock, "ticks_per_ns": emulation.ticks_per_ns,
            **emulation.counters(),
            "check": [{"what": one.what, "bytes": one.bytes, "asked_ns": round(one.asked),
                       "shortest_ns": one.shortest, "median_ns": one.median, "host_ns": one.host}
                      for one in self.checks],
            "problems": self.problems,
        }  # fmt: skip
