# SPDX-License-Identifier: MIT
"""Handles that native threads keep for the next open (native/serve_park.h), and when they go.

A parked handle is open to us: RELEASE has come, and was answered without us. So whatever makes a difference
between open and closed reaps first (`reap`), or ends parking for the inode (`end_parking`). What is left goes
by time. A program's unlinked file is never parked: its space comes back as without all this.

Limits: metadata thread. Which opens are direct, and so may be parked at all, direct.py decides.
"""

import logging

import trio

from .._iomap import PARKS

log = logging.getLogger(__name__)

PARKED_FOR = 1.0  # seconds; at most twice as long


class ParkingOperations:
    """What the handlers of every mount (ops_base.py) get for parked handles, though only files have some."""

    reaping = False  # `reap_by_time` runs

    def reap(self, ino: int = 0, age: float = 0) -> None:
        """Release what has been parked for *age* seconds, of *ino* or, 0, of all inodes."""
        for fh in self.server.reap(ino, age):
            try:
                self.release_now(fh)
            except OSError as error:  # close(2) has returned long ago: nobody else is left to be told
                log.error("a file that was closed a while ago: %s", error)
            except Exception:  # the others have to go, too
                log.exception("a file that was closed a while ago: unexpected")

    def reap_unused(self, ino: int) -> None:
        """Before an open that no parked handle answers: those of *ino* go if nobody else has it open.

        Then it is a first open, which finds out what mappings there are (data/file_io.py opened).
        """
        node = self.fs.nodes.get(ino) if ino in self.backing else None
        if node is not None and self.server.parked().count(ino) == node.opens:
            self.reap(ino)

    def reap_unlinked(self) -> None:
        """After an unlink or a rename: what has no name any more. From then on it is parked no more."""
        for ino in set(self.server.parked()) & self.fs.orphans:
            self.reap(ino)

    def end_parking(self, ino: int) -> None:
        """Before a change that an inode's next first open shall see: so handles are not kept until then."""
        node = self.fs.nodes.get(ino)
        if node is not None:
            with node.map:  # who is parking one now, ends first
                node.map.clear_state(PARKS)
            self.reap(ino)

    def end_all_parking(self) -> None:
        """`end_parking` of every inode that may have parked handles."""
        for ino in list(self.backing):
            self.end_parking(ino)

    def begins_parking(self) -> bool:
        """True: somebody has to start `reap_by_time`."""
        begins = self.server.armed and not self.reaping
        self.reaping |= begins
        return begins

    async def reap_by_time(self) -> None:
        """Until nothing is parked: then the next one is told anew."""
        try:
            while True:
                await trio.sleep(PARKED_FOR)
                self.reap(age=PARKED_FOR)
                # Not before the sleep: between two turns of a program's loop nothing is parked either.
                if self.server.disarm():
                    break
        finally:
            self.reaping = False
