# SPDX-License-Identifier: MIT
"""Revoking direct mappings of a live mount (SEEDS.md S11): no new ones, wait, take away, say what is left.

Who has a range shows in its lease alone (meta/own.py), so that mappings of an earlier mount and of programs
that opened the range itself count too; which programs they are is for the asker to find out, for a look into
/proc may have to wait for a program that waits for us. Limits: trio; one revocation at a time.
"""

import errno
import logging
import math
import select
import signal

import trio

from ..errors import fail
from ..meta import revoke
from . import mountinfo

log = logging.getLogger("daxfs.mount")

TRIES = 3  # times that what is in use is looked for and taken, as zone_device_revoke does
_PAUSE = 0.05  # seconds between two looks
_SLICE = 0.01  # seconds of looking, then others have their turn


async def detached(mount: mountinfo.Mount) -> None:
    """Return when *mount* is not in our name space any more (umount -l)."""
    with open(mountinfo.MOUNTINFO, "rb") as table:
        while any(one.device == mount.device for one in mountinfo.mounts_in(table)):
            await trio.to_thread.run_sync(_change_of, table, abandon_on_cancel=True)
            table.seek(0)  # and not opened anew, for which there may be no descriptor left


def _change_of(table) -> None:
    """Wait, in a thread of its own, until the table of mounts has changed.

    The kernel tells each change once, to whoever looks first. In an epoll below trio's that was the streak
    (streak.py), which looks at trio's epoll without taking anything out of it, and then nobody was told.
    """
    # Signals are the main thread's, but for what an instruction of this one may cause.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGBUS, signal.SIGSEGV})
    change = select.poll()
    change.register(table, select.POLLPRI)
    change.poll()


class Revoker:
    """The revocations of one mount. *operations*: Operations."""

    def __init__(self, operations):
        self.operations, self.fs = operations, operations.fs
        self.running = False

    def ask(self, wish):
        """Answer the control socket: {"undo": true}, {"timeout": seconds}. EINVAL, EBUSY, EIO, EOPNOTSUPP."""
        if not isinstance(wish, dict):
            raise fail(errno.EINVAL, "not a request")
        if self.running:
            raise fail(errno.EBUSY, "a revocation is under way")
        if wish.get("undo"):
            self.operations.revoked = False
            log.info("direct mappings are allowed again")
            return {"ok": True}
        timeout = wish.get("timeout")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout < math.inf:
            raise fail(errno.EINVAL, "timeout is not a number of seconds")
        if self.fs.shut:
            raise fail(errno.EIO, "shut down")
        if self.operations.recorded:
            raise fail(errno.EOPNOTSUPP, "a recording can't hold a revocation")
        return self._revoke(timeout)

    async def at_once(self) -> None:
        """A revocation that waits for nobody and that nobody asked for. What would not go is logged."""
        while self.running:
            await trio.sleep(_PAUSE)
        if self.fs.shut or self.operations.recorded:
            log.warning("mappings stay: %s", "a recording runs" if self.operations.recorded else "shut down")
            return
        async for part in self._revoke(0):
            for one in part.get("left", ()):
                log.warning("mappings of inode %d stay as they are: %s", one["ino"], one["why"])

    async def idle(self) -> None:
        """Return when direct mappings are revoked and no file or directory is open."""
        while self.running or not self.operations.revoked or self.operations.handles:
            await trio.sleep(_PAUSE)

    async def _revoke(self, timeout: float):
        """Parts of the answer: those who are waited for; what was taken, and what is left and why."""
        self.running = self.operations.revoked = True
        self.operations.end_all_parking()
        try:
            until = trio.current_time() + timeout
            busy = await self._busy(revoke.ranges(self.fs))
            yield {"waiting": self._places(busy)}
            while busy and trio.current_time() < until:
                await trio.sleep(_PAUSE)
                busy = await self._busy(busy)
            taken, left = await self._take(busy)
            log.info("revoked: %d files taken from who had them mapped, %d left", len(taken), len(left))
            yield {"taken": taken, "left": left}
        except OSError as error:
            log.error("revoke: %s", error)
            yield {"error": str(error), "errno": error.errno or errno.EIO}
        finally:
            self.running = False

    async def _busy(self, owners: list) -> list:
        """Those of *owners* whose range somebody has open or mapped."""
        out, since = [], trio.current_time()
        for owner in owners:
            if self.fs.shut:
                raise fail(errno.EIO, "shut down")
            if self.operations.is_direct(owner[0]) or revoke.is_busy(self.fs, owner):
                out.append(owner)
            if trio.current_time() - since > _SLICE:
                await trio.sleep(0)
                since = trio.current_time()
        return out

    async def _take(self, busy: list) -> tuple[list[dict], list[dict]]:
        taken, why = {}, {}
        for _ in range(TRIES):
            for owner in busy:
                places = self._places([owner])
                try:
                    revoke.take(self.fs, owner)
                except FileNotFoundError:
                    continue  # unlinked and closed meanwhile: nobody has it
                except OSError as error:
                    why[owner] = error.strerror or str(error)
                    continue
                self.operations.observer.revoked(owner[0])
                taken[owner] = places[0] if places else {"ino": owner[0]}
                if owner[0] in self.operations.backing:
                    self.operations.emptied.add(owner[0])
                await trio.sleep(0)
            busy = await self._busy(busy)
            if not busy:
                break
        left = []
        for owner in busy:
            reason = why.get(owner, "somebody takes it anew each time")
            left += [place | {"why": reason} for place in self._places([owner])]
        return list(taken.values()), left

    def _places(self, owners: list) -> list[dict]:
        """What `revoke.place` says of those that are still there."""
        out = []
        for owner in owners:
            try:
                out.append(revoke.place(self.fs, owner))
            except FileNotFoundError:
                continue  # removed with its inode
        return out
