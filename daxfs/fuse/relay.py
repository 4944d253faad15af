# SPDX-License-Identifier: MIT
"""The trio side of a native transport: requests that Python answers without pyfuse3, and its end.

The native threads queue a request that they leave to us (`Transport.next_call`); calls.run decodes it and
runs the same handler that pyfuse3 would. Replies of pyfuse3 itself are handed on in streak.py.

Limits: the trio thread; a call runs to its end before the next one begins, but for those that say themselves
that they take long (calls.is_long), and those that have to sleep: another task takes the next ones then.
"""

import errno
import logging

import trio
from pyfuse3 import FUSEError

from daxfs.fuse import calls

log = logging.getLogger(__name__)


class Relay:
    """Serves the calls of *transport* (a started `daxfs.data._transport.Transport`) with *operations*.

    *streak*: the Streak that pyfuse3 runs with.
    """

    def __init__(self, transport, operations, streak):
        self.transport, self.operations, self.streak = transport, operations, streak

    async def serve(self, ended) -> None:
        """Until the transport ends: *ended(why)* is called then, once."""
        self.streak.begin(self.transport)
        try:
            await self._serve()
            ended(self.transport.ended)
        finally:
            self.streak.end()

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            await self._take_calls(nursery)

    async def _take_calls(self, nursery: trio.Nursery) -> None:
        """One task at a time: until the transport ends, or this one sleeps while it answers."""
        task = trio.lowlevel.current_task()

        def sleeps() -> None:
            nursery.start_soon(self._take_calls, nursery)

        while self.transport.ended is None:
            await self.streak.wait_calls()
            while (call := self.transport.next_call()) is not None:
                if calls.is_long(self.operations, call):
                    nursery.start_soon(self.answer, call)
                    continue
                self.streak.watch_step(task, sleeps)
                await self.answer(call)
                if not self.streak.watched():
                    return  # another task takes calls since then, and what is due behind them
            if self.operations.begins_parking():
                nursery.start_soon(self.operations.reap_by_time)
        nursery.cancel_scope.cancel()  # nobody waits for those that take long any more

    async def answer(self, call) -> None:
        """Run one call and reply to it, whatever happens: nobody else will."""
        error, pieces = errno.EIO, ()
        try:
            pieces = await calls.run(self.operations, call)
            error = 0
        except (OSError, FUSEError) as exc:
            error = exc.errno or errno.EIO
        except Exception:
            log.exception("opcode %d: unexpected", call.opcode)
        finally:
            call.reply(error, pieces)
