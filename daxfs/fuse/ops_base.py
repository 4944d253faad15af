# SPDX-License-Identifier: MIT
"""What every mount's handlers have, whatever the mount shows: a file system (ops.py) or a raw region
(raw_ops.py). Counters, handles, the native server, the handshake's made-up FORGET, the end of a lost region.
"""

import contextlib
import errno
import logging

import pyfuse3
import trio

from .._fsync import PYTHON, FsyncRun
from ..data._serve import Server
from ..errors import fail
from . import trace
from .handshake import FEATURES, HANDOFF_NODE
from .parking import ParkingOperations
from .passthrough import Passthrough

log = logging.getLogger(__name__)

_KILLPRIV = 1 << FEATURES["handle_killpriv_v2"]
_MAP_DIRECT = 1 << FEATURES["direct_io_allow_mmap"]


class Handles(dict):
    """Handles by number. EBADF for one that is not there."""

    def __missing__(self, fh: int):
        raise fail(errno.EBADF)


class BaseOperations(ParkingOperations, pyfuse3.Operations):
    """One mount. *fs*: meta.fs.FileSystem, or raw_ops.NoFileSystem; *dax*: DaxIo; *faults*: CachedFaults."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    raw = None  # the raw.RawTree, where the mount shows one
    after_loss = ", then run fsck.daxfs"
    passthrough: Passthrough
    backing: dict[int, int]  # inode: the kernel's number of its backing file, while it is open and direct
    observing = None  # observing.Observing, where there are files that can be observed
    device = 0  # st_dev of the mount, once there is one
    notify = None  # pyfuse3.invalidate_inode, or who tells the kernel else, once there is a mount
    kernel_sync = None  # coroutine function: has the kernel write its dirty pages of this mount back

    def __init__(self, fs, dax, faults, stats):
        super().__init__()
        self.fs, self.faults, self.stats = fs, faults, stats
        names = [name for name in dir(type(self)) if hasattr(getattr(type(self), name), "is_handler")]
        self.counters = {name: stats.operation(name) for name in names}
        self.handles = Handles()
        self.passthrough, self.backing = Passthrough(-1, "the mount is not there yet"), {}
        self.sync = False  # mount option sync: every write is as if O_SYNC was given
        self.handshake = None  # a handshake.Link where we mounted by ourselves
        self.killpriv = False
        self.recorded = False  # record=: one thread, so that the log has one order of operations
        self.open_flags = 0  # FOPEN_ flags that pyfuse3 has no names for; of files that calls.py opens
        self.direct = False  # a native transport: all files are opened with direct I/O
        self.pinned = trio.Lock()  # whose turn it is to try again (handler.py)
        self.ring = dax.trace  # of what `daxfs trace` shows
        self.server = Server(dax)  # numbers of handles, and what native threads may answer
        self.server.set_fault_hook(faults)

    @contextlib.contextmanager
    def timed(self, fh: int, times: FsyncRun | None):
        """Around an fsync. *times*: of a call, which the transport counts when it is answered; else it is
        counted here, and its reply, which pyfuse3 makes, is not in it."""
        if times is not None:
            yield times
            return
        times, code = FsyncRun(), 0
        try:
            yield times
        except BaseException as error:
            code = getattr(error, "errno", None) or errno.EIO
            raise
        finally:
            times.lap(PYTHON)
            self.stats.fsyncs.add(times)
            if self.ring.classes & trace.CLASSES["fsync"]:
                handle = self.handles.get(fh)
                self.ring.put(trace.fsync_record(handle.ino if handle else 0, code, times))

    def is_raw(self, ino: int) -> bool:
        """Whether *ino* is one of the raw region's."""
        return False

    def is_direct(self, ino: int) -> bool:
        """Whether it is open, and what is mapped of it now reaches the region."""
        return ino in self.backing

    def may_be_pinned(self, ino: int) -> bool:
        """Whether a request that cuts *ino*, which is open, may wait for pinned pages."""
        return False

    @property
    def can_map_direct_io(self) -> bool:
        """Whether the kernel maps files that are opened with direct I/O."""
        return self.direct or (self.handshake is not None and bool(self.handshake.flags & _MAP_DIRECT))

    def handoff(self) -> None:
        """The made-up FORGET of the handshake: INIT is answered, no request was read from the kernel yet."""
        self.killpriv = bool(self.handshake.flags & _KILLPRIV)
        self.handshake.takeover()

    def lost(self) -> str:
        """The region is lost: why. The first call says so in the log, and shuts the file system down."""
        why = self.fs.region.lost
        if not self.fs.shut:
            log.critical("%s; all requests answer EIO until it is unmounted%s", why, self.after_loss)
            self.server.nothing = True
            self.fs.shutdown(durable=False)
        return why

    async def forget(self, inodes):
        for ino, count in inodes:
            if ino == HANDOFF_NODE:
                self.handoff()
                continue
            try:
                self.forget_one(ino, count)
            except Exception:  # FORGET has no answer, and the others are to be forgotten all the same
                log.exception("forget: inode %d", ino)
