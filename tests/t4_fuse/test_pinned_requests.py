# SPDX-License-Identifier: MIT
"""Requests that cut a file while somebody has its pages pinned (fsdax): they wait apart, and not for ever."""

import errno
import os
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from callkit import ROOT, Bench, Call
from datakit import PAGE, Kit
from pyfuse3 import FUSEError

from daxfs import pool as pools
from daxfs._own import OwnRange
from daxfs.errors import PinnedError
from daxfs.fuse import calls, wire
from daxfs.fuse.handler import PINNED_MOST, PINNED_PATIENCE, PINNED_PAUSE
from daxfs.meta import fallocate

PUNCH = fallocate.PUNCH_HOLE | fallocate.KEEP_SIZE
SLACK = 0.01  # of a clock that moves only while everybody sleeps


class PinnedRange(OwnRange):
    """What native/own.c says where the kernel would wait."""

    pinned = True
    tries = 0

    def refuse(self):
        type(self).tries += 1
        if self.pinned:
            raise PinnedError("pages of the file are pinned")

    def settle(self, fmap):
        self.refuse()

    def punch(self, fmap, pos, end):
        if end - pos > PAGE:
            self.refuse()
        super().punch(fmap, pos, end)


class Pinned(Bench):
    """``fh``: a file of four pages, some of which are pinned."""

    def __init__(self, kit):
        super().__init__(kit)
        self.ino, self.fh = self.create(b"file", b"x" * 4 * PAGE)
        self.size = SimpleNamespace(update_size=True, update_mode=False, update_uid=False, update_gid=False,
                                    update_atime=False, update_mtime=False)  # fmt: skip

    async def truncate(self, size=PAGE):
        """errno."""
        try:
            await self.ops.setattr(self.ino, SimpleNamespace(st_size=size), self.size, None, ROOT)
        except FUSEError as error:
            return error.errno
        return 0

    async def punch(self):
        try:
            await self.ops.fallocate(self.fh, 0, 3 * PAGE, PUNCH, ROOT)
        except FUSEError as error:
            return error.errno
        return 0

    async def open(self):
        try:
            await self.ops.release((await self.ops.open(self.ino, os.O_RDWR | os.O_TRUNC, ROOT)).fh)
        except FUSEError as error:
            return error.errno
        return 0

    def timed(self, *calls_, let_go: float | None = None):
        """[(errno, seconds)] of *calls_* at once; the pages are let go after *let_go* seconds."""
        out = []

        async def one(call):
            begin = trio.current_time()
            out.append((await call(), trio.current_time() - begin))

        async def main():
            async with trio.open_nursery() as nursery:
                for call in calls_:
                    nursery.start_soon(one, call)
                if let_go is not None:
                    await trio.sleep(let_go)
                    PinnedRange.pinned = False

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        return out


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(pools, "OwnRange", PinnedRange)
    monkeypatch.setattr(PinnedRange, "pinned", True)
    monkeypatch.setattr(PinnedRange, "tries", 0)
    with Kit(pool=True) as kit:
        made = Pinned(kit)
        assert isinstance(made.fs.node(made.ino).map.own, PinnedRange)
        yield made


@pytest.mark.parametrize("what", ["truncate", "punch", "open"])
def test_it_waits_and_is_refused(bench, what, caplog):
    ((code, seconds),) = bench.timed(getattr(bench, what))
    assert code == errno.ETXTBSY and PINNED_PATIENCE <= seconds < PINNED_PATIENCE + SLACK
    assert PinnedRange.tries <= PINNED_PATIENCE / PINNED_PAUSE + 1
    assert caplog.text.count("refused (ETXTBSY)") == 1
    assert bench.content(bench.fh) == b"x" * 4 * PAGE


@pytest.mark.parametrize("what", ["truncate", "punch", "open"])
def test_it_is_done_once_the_pages_are_let_go(bench, what):
    ((code, seconds),) = bench.timed(getattr(bench, what), let_go=1)
    assert code == 0 and 1 <= seconds < 1 + PINNED_PAUSE + SLACK
    data = {"truncate": b"x" * PAGE, "punch": bytes(3 * PAGE) + b"x" * PAGE, "open": b""}[what]
    assert bench.content(bench.fh) == data


def test_many_share_the_tries(bench):
    """Each try may stop the mount for a moment: there are no more of them when more wait."""
    rows = bench.timed(*[bench.truncate] * PINNED_MOST)
    assert {code for code, _ in rows} == {errno.ETXTBSY}
    assert all(PINNED_PATIENCE <= seconds < PINNED_PATIENCE + SLACK for _, seconds in rows)
    assert PinnedRange.tries <= PINNED_MOST + PINNED_PATIENCE / PINNED_PAUSE + 1


def test_those_who_are_too_many_are_refused_at_once(bench):
    """So that others find a task of pyfuse3."""
    rows = bench.timed(*[bench.truncate] * (PINNED_MOST + 20))
    assert sum(seconds < SLACK for _, seconds in rows) == 19 and {code for code, _ in rows} == {errno.ETXTBSY}


def test_a_shutdown_ends_the_wait(bench):
    async def stop():
        await trio.sleep(1)
        bench.fs.shutdown(durable=False)

    (_, (code, seconds)) = bench.timed(stop, bench.truncate)
    assert code == errno.EIO and 1 <= seconds < 1 + PINNED_PAUSE + SLACK


def test_a_write_does_not_wait(bench):
    """It is answered by a loop that answers others too; and its own buffer may be what is pinned."""
    def refuse(*_args):
        raise PinnedError("pages of the file are pinned")

    bench.ops.files.write = refuse

    async def write():
        with pytest.raises(FUSEError) as caught:
            await bench.ops.write(bench.fh, 9 * PAGE, b"y")
        return caught.value.errno

    ((code, seconds),) = bench.timed(write)
    assert code == errno.ETXTBSY and seconds < SLACK


def test_fallocate_runs_beside_others_where_it_may_wait(bench, monkeypatch):
    call = Call(wire.FALLOCATE, bench.ino)
    assert not calls.is_long(bench.ops, call), "on tmpfs nothing waits"
    monkeypatch.setattr(PinnedRange, "syncs", True, raising=False)
    assert calls.is_long(bench.ops, call)
    assert not calls.is_long(bench.ops, Call(wire.FALLOCATE, 1))
