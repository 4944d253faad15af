# SPDX-License-Identifier: MIT
"""Each way to touch a mapping, on each kind of file, under `daxfs run` in both modes (walk_faults.c).

What a program sees has to be what it sees on tmpfs, where the same binary runs without the shim. What is
dirty afterwards is computed here, from the rules of docs/fault.md and docs/client.md; msync leaves nothing,
and writes back what was dirty, each page once. What is written back before is computed, too: by msync, and
around calls that change the mapping.

The pool has no huge pages, so that pages are told one by one. Others, where a huge page is dirty as a whole,
are for the long run.
"""

import os
import re
import shutil
from pathlib import Path

import mounts
import pytest
from observekit import MIB

from daxfs.client import why_no_user_faults

pytestmark = [pytest.mark.mount,
              pytest.mark.skipif(mounts.KERNEL < (6, 11), reason="no PROCMAP_QUERY before kernel 6.11"),
              pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")]
SOURCE = Path(__file__).with_name("walk_faults.c")
PAGES, PMD = 1027, 512  # of the file; of 2 MiB
TARGETS, SPARSE = (7, 511, 512, 700), {7, 511, 513, 1024}
STATES = {"written": set(range(PAGES)), "unwritten": set(range(PAGES)), "hole": set(), "sparse": SPARSE}
LINE = re.compile(r"(\w+) (\w+):(.*) \| dirty(.*) \| msync(.*) \| left(.*) \| sum (\w+)"
                  r" \| flushed (\d+) (\d+)")


class Kernel:
    """fault=kernel: a page counts as stored to when it was, and when it is mapped for the first time.

    ``dirty``: surely; ``maybe``: these, too, since the client wrote a split huge page back and so touched it.
    """

    def __init__(self, first: int, data: set):
        self.first, self.dirty, self.maybe, self.mapped = first, set(), set(), set()
        self.least = self.most = 0  # pages that were written back by now

    def load(self, *pages):
        self.dirty |= set(pages) - self.mapped
        self.mapped |= set(pages)

    def store(self, *pages):
        self.dirty |= set(pages)
        self.mapped |= set(pages)

    def flushed(self, pages, more: int = 0):
        """What is dirty of them, and perhaps as many as *more* others."""
        self.least += len(self.dirty & set(pages))
        self.most += len((self.dirty | self.maybe) & set(pages)) + more

    def written_back(self, pages):
        self.flushed(pages)
        self.dirty -= set(pages)
        self.maybe -= set(pages)

    def remapped(self):
        """Observed anew: what is mapped by then counts as stored to once."""
        self.flushed(self.mapped, len(self.mapped))
        self.dirty, self.maybe = set(self.mapped), set()

    def _block(self, page: int) -> set:
        """The pages of the 2 MiB of addresses that *page* is in."""
        low = (page - self.first) // PMD * PMD + self.first
        return set(range(low, min(low + PMD, PAGES)))

    def split(self, page: int):
        """A call for a part of 2 MiB of addresses: what may be a huge page there is written back."""
        block = self._block(page)
        self.written_back(block)
        self.most += len(block)
        self.maybe |= block

    def removed(self, page: int):
        """Punched out by the program: that splits a huge page of the file."""
        self.split(page)

    def gone(self, pages, unmapped: bool = False):
        """Cut off; or *unmapped*, and written back before."""
        if unmapped:
            self.flushed(pages)
        for marks in (self.dirty, self.maybe, self.mapped):
            marks -= set(pages)


class User(Kernel):
    """fault=user: what the daemon made writable: 2 MiB where they are one piece of file and of mapping."""

    def __init__(self, first: int, data: set):
        super().__init__(first, data)
        self.data, self.entries, self.before = set(data), {}, {}
        self.end = PAGES  # of what is mapped

    def _order(self, page: int, store: bool) -> int:
        number, block = page // PMD, set(range(page // PMD * PMD, page // PMD * PMD + PMD))
        if self.first % PMD or max(block) >= self.end or self.entries.get(number):
            return 9 if self.entries.get(number) == 9 else 0
        return 9 if block <= self.data or (store and not block & self.data) else 0

    def _touch(self, page: int, store: bool):
        number = page // PMD
        order = self._order(page, store)
        block = set(range(number * PMD, (number + 1) * PMD)) if order else {page}
        if page in self.mapped:
            if store and page not in self.dirty:
                entry = self.entries.setdefault(number, 1)
                block = set(range(number * PMD, (number + 1) * PMD))
                self.dirty |= (block if entry == 9 else {page}) & self.mapped
                if self.before.get(number) == 9:
                    self.maybe |= block & self.mapped
            return
        self.entries.setdefault(number, order or 1)
        self.mapped |= block
        self.data |= block
        if store:
            self.dirty |= block

    def load(self, *pages):
        for page in pages:
            self._touch(page, False)

    def store(self, *pages):
        for page in pages:
            self._touch(page, True)

    def remapped(self):
        """Written back and protected. The entries went, as nobody shows the file for a moment; but one stays
        where the thread that answered its last fault is not done with it yet."""
        self.flushed(self.mapped, len(self.mapped))
        self.dirty, self.entries, self.before = set(), {}, self.entries

    def split(self, page: int):
        """Nothing: the handler maps pages, never huge ones."""

    def removed(self, page: int):
        self.written_back(self._block(page))

    def alone(self, *pages):
        """Loads of areas that are smaller than 2 MiB: a page each, of an entry of 2 MiB where one fits."""
        for page in pages:
            self.entries.setdefault(page // PMD, self._order(page, False) or 1)
            self.mapped.add(page)
            self.data.add(page)


# -- what the operations of walk_faults.c come to ----------------------------------------------------


def _each(rules):
    rules.store(*TARGETS)


def _mkwrite(rules):
    for page in TARGETS:
        rules.load(page)
        rules.store(page)


def _again(rules):
    rules.store(*TARGETS)
    rules.written_back(range(PAGES))
    rules.store(511)
    rules.load(700)


def _part(rules):
    rules.store(*TARGETS)
    rules.written_back((511, 512))


def _protect(rules):
    rules.store(7)
    rules.split(7)
    rules.load(7)
    for page in (512, 512, 7):
        rules.split(page)
    rules.store(7, 512)


def _grow(rules):
    rules.end = PMD
    rules.store(7)
    rules.remapped()
    rules.end = PAGES
    rules.load(7)
    rules.store(700)


def _shrink(rules):
    rules.store(7, 700)
    rules.gone(range(rules.first + PMD, PAGES), unmapped=True)
    rules.remapped()
    rules.store(8)


def _move(rules):
    rules.store(7)
    rules.remapped()
    rules.load(7)
    rules.store(512)


def _advise(rules):
    rules.store(7, 512)
    rules.written_back((7,))
    rules.load(7)
    rules.split(rules.first)
    rules.store(511)


def _dontfork(rules):
    rules.store(7, 512)


def _fork(rules):
    rules.store(7)
    rules.load(511)
    rules.store(512)


def _remove(rules):
    rules.store(7, 512)
    rules.removed(512)
    rules.load(512, 7)
    rules.store(512)


def _hole(rules):
    rules.store(7, 600)
    rules.split(512)
    rules.split(611)
    rules.load(511)
    rules.store(620)
    rules.gone(range(PAGES), unmapped=True)
    rules.remapped()
    rules.load(600)


def _lock(rules):
    (rules.alone if isinstance(rules, User) else rules.load)(7, 8)
    rules.store(7)


def _end(rules):
    rules.load(PAGES - 1)
    rules.store(PAGES - 1)
    rules.gone((PAGES - 1, PAGES - 2))
    rules.store(PAGES - 3)
    rules.load(PAGES - 2, PAGES - 1)


def _buffer(rules):
    rules.store(7, 512)
    rules.store(700, 701)
    rules.load(511)


EXPECTED = {
    "load": lambda rules: rules.load(*TARGETS), "store": _each, "mkwrite": _mkwrite, "again": _again,
    "part": _part, "private": lambda rules: rules.load(7, 512), "protect": _protect, "grow": _grow,
    "shrink": _shrink, "move": _move, "advise": _advise, "dontfork": _dontfork, "fork": _fork,
    "remove": _remove, "hole": _hole, "lock": _lock, "flags": lambda rules: rules.store(7),
    "readonly": lambda rules: None, "end": _end, "buffer": _buffer,
}  # fmt: skip


# -- the test --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    out = tmp_path_factory.mktemp("walk") / "walk_faults"
    mounts.run(["cc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-o", out, SOURCE, "-ldl"])
    return out


@pytest.fixture(scope="module")
def mount():
    transport = "dev" if mounts.why_no_transport("uring") else "uring"
    with mounts.MountedRegion(64 * MIB, pool="never", room=192 * MIB, transport=transport) as region:
        region.mount()
        yield region


@pytest.fixture(scope="module")
def oracle(program):
    """What happens on tmpfs."""
    file = f"/dev/shm/{mounts.PREFIX}walk-{os.getpid()}"
    return {first: walked(mounts.run([program, file, str(first)], timeout=60).stdout) for first in (0, 5)}


def walked(text: str) -> dict:
    """{(state, operation): (results, dirty, msync, left, sum, flushed before, flushed)}."""
    lines = [LINE.fullmatch(line) for line in text.splitlines()]
    assert all(lines), text
    found = {line.groups()[:2]: line.groups()[2:] for line in lines}
    assert len(found) == len(lines) == len(STATES) * len(EXPECTED)
    return found


def pages(text: str) -> set[int]:
    runs = [tuple(map(int, run.split("+"))) for run in text.split()]
    return {page for low, count in runs for page in range(low, low + count)}


@pytest.mark.parametrize("first", [0, 5], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("fault", ["kernel", "user"])
def test_every_case(mount, program, oracle, fault, first):
    wrong = []
    for case, (during, _), has in walk(mount, program, oracle, fault, first, wrong):
        state, op = case.split()
        rules = {"kernel": Kernel, "user": User}[fault](first, STATES[state])
        EXPECTED[op](rules)
        if not rules.least <= during <= rules.most:
            wrong.append(f"{case}: {during} pages written back before, not {rules.least} to {rules.most}")
        if not rules.dirty <= has <= rules.dirty | rules.maybe:
            wrong.append(f"{case}: dirty {sorted(has)[:9]}, {len(has)} of them, should be "
                         f"{sorted(rules.dirty)[:9]}, {len(rules.dirty)}, perhaps {len(rules.maybe)} more")
    assert not wrong, "\n".join(wrong)


def walk(mount, program, oracle, fault, first, wrong):
    """Yield (case, pages that were written back before and by msync, what was dirty between); what is the
    same for all pools is looked at here.
    """
    if fault == "user" and (reason := why_no_user_faults()):
        pytest.skip(reason)
    words = [mounts.command("daxfs"), "run", "--fault", fault, "--", program, mount.path / "walk", str(first)]
    found = walked(mounts.run(words, timeout=90).stdout)
    for (state, op), (results, dirty, synced, left, total, during, last) in found.items():
        due, has = oracle[first][state, op], pages(dirty)
        if (results, synced, total) != (due[0], due[2], due[4]):
            wrong.append(f"{state} {op}:{results} | msync{synced} | sum {total}; tmpfs has {due}")
        if int(last) != len(has):
            wrong.append(f"{state} {op}: dirty{dirty}, {len(has)} pages, but msync wrote {last} back")
        if left:
            wrong.append(f"{state} {op}: msync left{left}")
        yield f"{state} {op}", (int(during), int(last)), has


WITH_OTHERS = {"part", "remove"}  # a page and all of its huge page are written back before the end


@pytest.mark.long
@pytest.mark.parametrize("pool", ["always", "advise", "within_size"])
@pytest.mark.parametrize("first", [0, 5], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("fault", ["kernel", "user"])
def test_every_case_with_huge_pages(program, oracle, fault, first, pool):
    """What has to be dirty is, or was written back before; and perhaps all that a huge page has beside it."""
    wrong = []
    with mounts.MountedRegion(64 * MIB, pool=pool, room=192 * MIB, transport="dev") as region:
        region.mount()
        for case, (during, last), has in walk(region, program, oracle, fault, first, wrong):
            state, op = case.split()
            rules = {"kernel": Kernel, "user": User}[fault](first, STATES[state])
            EXPECTED[op](rules)
            if during < rules.least or during + last < rules.least + len(rules.dirty):
                wrong.append(f"{case}: {during} and {last} pages written back, not {rules.least} and "
                             f"{len(rules.dirty)}")
            if op not in WITH_OTHERS and not rules.dirty <= has:
                wrong.append(f"{case}: {sorted(rules.dirty - has)[:9]} should be dirty, too")
    assert not wrong, "\n".join(wrong)
