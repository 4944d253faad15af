# SPDX-License-Identifier: MIT
"""What stands between a request and the synchronous method that answers it: `handler`.

It counts, times and maps errors: an OSError to its errno, anything else to EIO with a log line (an exception
that is no FUSEError would end pyfuse3's loop). After a shutdown it answers EIO itself. The suspension points
are before a retry after ENOSPC or PinnedError, outside any transaction. FUSEError appears in this file alone.
"""

import errno
import functools
import logging
from time import perf_counter_ns

import trio
from pyfuse3 import FUSEError

from ..errors import PinnedError, PoisonError

log = logging.getLogger(__name__)

# Seconds to wait before ENOSPC is answered while unlinked inodes hold space. The kernel sends RELEASE and
# FORGET after close(2) and unlink(2) have returned, so what a program has just removed may come a moment
# after its next write, and later on a busy machine. An inode that was waited for in vain is most likely open.
ENOSPC_PATIENCE, ENOSPC_PATIENCE_HELD = 0.2, 0.01
# Seconds that a cut or a hole waits, in the handlers of PATIENT, for pages that somebody has pinned; and
# between two tries, whoever makes them: each may hold the metadata thread up for 10 ms (native/own.c).
# And how many requests wait, so that pyfuse3 has tasks left for others. Linux waits until a signal comes.
PINNED_PATIENCE, PINNED_PAUSE, PINNED_MOST = 5.0, 0.1, 16
PATIENT = frozenset(("setattr", "open", "fallocate", "copy_file_range"))
# Whose data a write has, where the request says so: pages of a mapping; of somebody with CAP_FSETID.
MAPPING, PRIVILEGED = "mapping", "privileged"
# What close(2), df and umount need; every other request answers EIO after a shutdown.
AFTER_SHUTDOWN = frozenset(("release", "releasedir", "flush", "statfs", "shutdown"))


def handler(method):
    """A coroutine that answers requests from a synchronous method of Operations."""
    name = method.__name__
    goes_on = name in AFTER_SHUTDOWN

    @functools.wraps(method)
    async def run(self, *args):
        counter = self.counters[name]
        start = perf_counter_ns()
        if self.fs.shut and not goes_on:
            counter.errors += 1
            counter.add(0)
            raise FUSEError(errno.EIO)
        try:
            result = method(self, *args)
            if self.fs.region.table.lost and not goes_on:
                raise OSError(errno.EIO, self.lost())
            return result
        except OSError as raised:
            error = raised
            if self.fs.region.table.lost and not goes_on:
                error = OSError(errno.EIO, self.lost())  # what it says may come of zeros that nobody wrote
            # The kernel asks for xattrs that are not there (security.capability); "none" is an answer.
            counter.errors += error.errno != errno.ENODATA
            if error.errno == errno.ENOSPC and self.fs.orphans:
                return await _retry(self, method, args)
            if isinstance(error, PinnedError) and name in PATIENT:
                return await _unpinned(self, method, args)
            raise _failed(name, error) from None
        except Exception as error:
            counter.errors += 1
            log.exception("%s: unexpected %s", name, type(error).__name__)
            raise FUSEError(errno.EIO) from None
        finally:
            counter.add(perf_counter_ns() - start)

    run.is_handler = True
    run.method = method
    return run


def _failed(name: str, error: OSError) -> FUSEError:
    """The FUSEError for an OSError; what is no ordinary answer is logged too."""
    code = error.errno or errno.EIO
    if isinstance(error, PoisonError):
        log.info("%s: %s", name, error)  # asked for, and any program that may read the file can cause it
    elif code in (errno.EIO, errno.EUCLEAN):
        log.error("%s: %s", name, error)
    return FUSEError(code)


async def _retry(operations, method, args):
    """After ENOSPC: the kernel may be about to forget unlinked inodes that still hold space.

    Tried again when one of them has gone, and at the end in any case: others give space back too.
    """
    orphans, begin = set(operations.fs.orphans), trio.current_time()
    while operations.fs.orphans:
        await trio.sleep(0.001)
        # Each time: it may have been closed meanwhile, and then FORGET comes next.
        patience = ENOSPC_PATIENCE if orphans - operations.held else ENOSPC_PATIENCE_HELD
        last = trio.current_time() - begin >= patience
        if orphans <= operations.fs.orphans and not last:
            continue
        orphans &= operations.fs.orphans
        try:
            return method(operations, *args)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise _failed(method.__name__, error) from None
            if last:
                break
        except Exception as error:
            log.exception("%s: unexpected %s", method.__name__, type(error).__name__)
            raise FUSEError(errno.EIO) from None
    operations.held |= orphans
    raise FUSEError(errno.ENOSPC)


async def _unpinned(operations, method, args):
    """After PinnedError, which has changed nothing: tried again as long as patience lasts. Then ETXTBSY."""
    name, turn = method.__name__, operations.pinned
    if turn.statistics().tasks_waiting < PINNED_MOST:
        with trio.move_on_after(PINNED_PATIENCE):
            while True:
                async with turn:
                    await trio.sleep(PINNED_PAUSE)
                if operations.fs.shut:
                    raise FUSEError(errno.EIO)
                try:
                    return method(operations, *args)
                except PinnedError:
                    continue
                except OSError as error:
                    raise _failed(name, error) from None
                except Exception as error:
                    log.exception("%s: unexpected %s", name, type(error).__name__)
                    raise FUSEError(errno.EIO) from None
    log.warning("%s: refused (ETXTBSY): pages of the file are pinned by somebody's I/O", name)
    raise FUSEError(errno.ETXTBSY)


def group_check(ctx):
    """A function that says whether the caller of this request is in a group."""
    gid, pid = ctx.gid, ctx.pid

    def check(group: int) -> bool:
        if group == gid:
            return True
        try:
            # Not by pyfuse3.get_sup_groups, which takes the process's name for text: it may be any bytes.
            with open(f"/proc/{pid}/status", "rb") as file:
                groups = next((line for line in file if line.startswith(b"Groups:")), b"")
        except OSError:
            return False  # the process is gone
        return b"%d" % group in groups.split()

    return check
