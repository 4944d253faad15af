# SPDX-License-Identifier: MIT
"""ENOSPC while unlinked files hold space: what was just removed is waited for, what stays open hardly."""

import errno

import pytest
import trio
import trio.testing
from callkit import ROOT, Bench
from datakit import PAGE, Kit
from pyfuse3 import FUSEError

from daxfs.fuse.handler import ENOSPC_PATIENCE, ENOSPC_PATIENCE_HELD
from daxfs.meta import fallocate

SLACK = 0.005  # of a clock that moves only while everybody sleeps


class Full(Bench):
    """A full file system; ``victim``: an unlinked file that is open and holds most; ``fh``: another."""

    def __init__(self, kit):
        super().__init__(kit)
        self.victim, self.held = self.create(b"victim", b"x" * PAGE)
        pages = self.fs.alloc.free_pages - 10
        self.ops.files.fallocate(self.ops.handles[self.held].node, fallocate.KEEP_SIZE, 0, pages * PAGE)
        self.ino, self.fh = self.create(b"file")
        with pytest.raises(FUSEError):
            while True:
                self.ask("write", self.fh, self.fs.node(self.ino).map.size, b"z" * PAGE)
        self.ask("unlink", 1, b"victim", ROOT)
        self.attempts = 0
        plain = self.ops.files.write

        def write(*args):
            self.attempts += 1
            return plain(*args)

        self.ops.files.write = write

    async def _timed(self, *others):
        async with trio.open_nursery() as nursery:
            for when, call in others:
                nursery.start_soon(self._later, when, call)
            start = trio.current_time()
            try:
                await self.ops.write(self.fh, 1 << 30, b"y" * PAGE)
                code = 0
            except FUSEError as error:
                code = error.errno
            return code, trio.current_time() - start

    async def _later(self, when, call):
        await trio.sleep(when)
        await call()

    def write(self, *others):
        """(errno, seconds) of a write; *others*: (seconds, coroutine function) that happen meanwhile."""
        return trio.run(self._timed, *others, clock=trio.testing.MockClock(autojump_threshold=0))

    async def close(self):
        await self.ops.release(self.held)

    async def forget(self):
        await self.ops.forget([(self.victim, 1)])


@pytest.fixture
def full():
    with Kit() as kit:
        yield Full(kit)


def test_a_file_that_was_just_removed_gives_its_space_first(full):
    """RELEASE and FORGET come late, as on a busy machine."""
    code, seconds = full.write((0.1, full.close), (0.15, full.forget))
    assert code == 0 and 0.15 <= seconds < 0.15 + SLACK
    assert full.attempts == 2, "tried again once, when space had come"


def test_one_that_stays_open_is_waited_for_once(full):
    code, seconds = full.write()
    assert code == errno.ENOSPC and ENOSPC_PATIENCE <= seconds < ENOSPC_PATIENCE + SLACK
    assert full.attempts == 2
    for _ in range(3):
        code, seconds = full.write()
        assert code == errno.ENOSPC and seconds < ENOSPC_PATIENCE_HELD + SLACK


def test_one_that_was_open_and_is_closed_gives_its_space_too(full):
    full.write()
    code, seconds = full.write((ENOSPC_PATIENCE_HELD / 2, full.close), (0.1, full.forget))
    assert code == 0 and 0.1 <= seconds < 0.1 + SLACK


def test_another_one_is_waited_for_beside_it(full):
    full.write()
    other, fh = full.create(b"other")
    full.ask("unlink", 1, b"other", ROOT)
    assert full.write()[1] >= ENOSPC_PATIENCE
    assert full.write()[1] < ENOSPC_PATIENCE_HELD + SLACK
    full.ask("release", fh)
    full.ask("forget", [(other, 1)])
    assert full.ops.held == {full.victim}


def test_without_unlinked_files_nobody_waits(full):
    full.ask("release", full.held)
    full.ask("forget", [(full.victim, 1)])
    _, held = full.create(b"victim")
    pages = full.fs.alloc.free_pages - 2
    full.ops.files.fallocate(full.ops.handles[held].node, fallocate.KEEP_SIZE, 0, pages * PAGE)
    assert not full.fs.orphans
    full.write()
    assert full.write() == (errno.ENOSPC, 0)
