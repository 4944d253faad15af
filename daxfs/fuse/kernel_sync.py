# SPDX-License-Identifier: MIT
"""Have the kernel write back what it holds of a mount, to the end: before a mount ends that is in use.

syncfs(2) on FUSE returns once the writes are queued, not when they are answered (Linux 6.18: with the daemon
stopped it returns, too). So then the kernel is asked how many requests wait for their answers, until there
are none but those of who waits here: in /sys/fs/fuse/connections, or where that is not mounted in a mount of
fusectl of our own. Programs may go on making requests meanwhile. The kernel hands its writes out in the order
in which it queued them, so while some are left there are fewer and fewer of all; once there are no fewer for
STEADY, they are done.

Limits: the trio thread. By another process, as we must go on answering. Not waited for beyond PATIENCE: what
programs did not fsync may be lost, but the end must come.
"""

import ctypes
import logging
import os
import shutil
import subprocess

import trio

from daxfs.fuse import mountinfo

log = logging.getLogger("daxfs.mount")

PATIENCE = 10.0  # seconds for all of it
CONNECTIONS = "/sys/fs/fuse/connections"
STEADY = 0.5  # seconds without a new minimum of what waits
_STEP = 0.005  # seconds between two looks
_LOOKS = 50  # as many at least without a new minimum: this thread may have been busy with something long
# Looks in a row that find nothing. One is not enough: while a program closes, syncs or cuts a file, the
# kernel keeps further writes of it back, and counts them when it hands them out.
_REST = 10
_FSOPEN, _FSCONFIG, _FSMOUNT, _FSCONFIG_CMD_CREATE = 430, 431, 432, 6


class KernelSync:
    """Of the mount *mount*. Call it; ``requests``: calls now that are themselves requests of the kernel's.

    *program*: of `find_sync`, from before the mount.
    """

    def __init__(self, mount: mountinfo.Mount, program: str | None):
        self.mount, self.program = mount, program
        self.requests = 0

    async def __call__(self, by_request: bool = False) -> None:
        """*by_request*: the caller answers a request afterwards."""
        self.requests += by_request
        try:
            with trio.move_on_after(PATIENCE) as scope:
                await self._sync()
                await self._answered()
        finally:
            self.requests -= by_request
        if scope.cancelled_caught:
            log.warning("the kernel did not write everything back in %g s", PATIENCE)

    async def _sync(self) -> None:
        """sync -f. Where it fails, for one file's sake, those of others are queued all the same."""
        try:
            if self.program is None:
                raise FileNotFoundError("it is not in the daemon's PATH")
            process = subprocess.Popen([self.program, "-f", self.mount.mountpoint], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError as exc:
            log.warning("sync -f can't be run, so mapped pages that were not synced are lost: %s", exc)
            return
        while (status := process.poll()) is None:
            await trio.sleep(_STEP)
        if status:
            log.warning("sync -f: status %d, so mapped pages that were not synced may be lost", status)

    async def _answered(self) -> None:
        """Until what sync -f has queued is answered."""
        root, least, since, looks, rest = -1, None, 0.0, 0, 0
        try:
            root = _connections()
            while True:
                count = max(self._waiting(root) - self.requests, 0)
                rest = 0 if count else rest + 1
                if rest == _REST:
                    return
                now = trio.current_time()
                looks += 1
                if least is None or count < least:
                    least, since, looks = count, now, 0
                elif now - since > STEADY and looks > _LOOKS:
                    log.info("%s: ends with %d requests of programs", self.mount.mountpoint, count)
                    return
                await trio.sleep(_STEP)
        except OSError as exc:
            log.warning("%s can't be read, so writes that wait may be lost: %s", CONNECTIONS, exc.strerror)
        finally:
            if root >= 0:
                os.close(root)

    def _waiting(self, root: int) -> int:
        """Requests without an answer; 0 where the connection is gone. OSError."""
        try:
            number = os.minor(self.mount.device)
            with open(os.open(f"{number}/waiting", os.O_RDONLY, dir_fd=root), "rb", buffering=0) as file:
                return int(file.read(32) or 0)  # nothing to read: it went after the open
        except FileNotFoundError:
            return 0


def find_sync() -> str | None:
    """The program sync, absolute; None: there is none. To be called before the mount, where PATH may lead."""
    found = shutil.which("sync")
    return found and os.path.abspath(found)


def _connections() -> int:
    """A descriptor of fusectl's root. OSError."""
    if os.path.ismount(CONNECTIONS):
        return os.open(CONNECTIONS, os.O_RDONLY | os.O_DIRECTORY)
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number, *args):
        result = libc.syscall(ctypes.c_long(number), *args)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    # A mount of our own that is in no list and goes with its descriptor. Root alone may have one.
    context = call(_FSOPEN, b"fusectl", 1)
    try:
        call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return call(_FSMOUNT, context, 1, 0)
    finally:
        os.close(context)
