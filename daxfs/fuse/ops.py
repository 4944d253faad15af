# SPDX-License-Identifier: MIT
"""The pyfuse3 handlers: they translate and return, and hold no meaning of their own.

Each is a synchronous method under `handler` (handler.py). What pyfuse3 has no handler for is in ops_more.py.
"""

import errno
import logging
import os

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo

from .. import layout as L
from ..data import _serve as serve
from ..data._serve import Server
from ..data.file_io import FileIo
from ..errors import fail
from ..fault._decision import CachedFaults
from ..meta import attr, namespace, xattr
from ..meta.file import killed_privileges
from ..meta.namespace import Creds
from .handler import MAPPING, PRIVILEGED, group_check, handler
from .handshake import FEATURES, HANDOFF_NODE
from .ops_ioctl import IoctlOperations
from .ops_more import MoreOperations
from .stats import Stats

log = logging.getLogger(__name__)

# Nobody but this kernel changes the file system, and it forgets what its own requests change.
TIMEOUT = 3600.0
_KILLPRIV = 1 << FEATURES["handle_killpriv_v2"]


class Handle:
    """An open file or directory."""

    __slots__ = ("direct", "dsync", "in_group", "ino", "noatime", "node", "osync")

    def __init__(self, ino: int, node, flags: int = 0, in_group=None, direct: bool = False):
        self.ino, self.node = ino, node
        self.direct = direct or bool(flags & os.O_DIRECT)
        self.noatime = bool(flags & os.O_NOATIME)
        self.osync = bool(flags & os.O_DSYNC)
        # The kernel sends FSYNC after a buffered write through such a descriptor, but not after a direct one.
        self.dsync = self.direct and self.osync
        self.in_group = in_group  # None: the opener may write and leave setuid and setgid set


class Handles(dict):
    """Handles by number. EBADF for one that is not there."""

    def __missing__(self, fh: int):
        raise fail(errno.EBADF)


class Operations(IoctlOperations, MoreOperations, pyfuse3.Operations):
    """One mount. *fs*: meta.fs.FileSystem; *files*: data.file_io.FileIo; *faults*: CachedFaults."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = True

    def __init__(self, fs, files, faults, stats):
        super().__init__()
        self.fs, self.files, self.faults, self.stats = fs, files, faults, stats
        names = [name for name in dir(type(self)) if hasattr(getattr(type(self), name), "is_handler")]
        self.counters = {name: stats.operation(name) for name in names}
        self.handles = Handles()
        self.sync = False  # mount option sync: every write is as if O_SYNC was given
        self.handshake = None  # a handshake.Link where we mounted by ourselves
        self.killpriv = False
        self.recorded = False  # record=: one thread, so that the log has one order of operations
        self.open_flags = 0  # FOPEN_ flags that pyfuse3 has no names for; of files that calls.py opens
        self.direct = False  # a native transport: all files are opened with direct I/O
        self.held: set[int] = set()  # unlinked inodes whose end was waited for in vain (handler.py)
        self.server = Server(files.dax)  # numbers of handles, and what native threads may answer
        self.server.set_fault_hook(faults)
        fs.inodes.on_grown.append(self._grown)

    def handoff(self) -> None:
        """The made-up FORGET of the handshake: INIT is answered, no request was read from the kernel yet."""
        self.killpriv = bool(self.handshake.flags & _KILLPRIV)
        self.handshake.takeover()

    # -- what native threads may answer ------------------------------------------------------

    def tell_limits(self, writes: bool = True) -> None:
        """Tell them how the mount stands: at its beginning and whenever something of it changes.

        *writes*: False where stores are about to end (remount ro, unmount); then FileIo.quiesce.
        """
        fs, server = self.fs, self.server
        server.inodes = fs.region.address + fs.inodes.base
        server.inode_limit = fs.inodes.limit
        server.getattr = not fs.inodes.damaged
        server.atime = "noatime" if fs.readonly else fs.atime
        server.lazytime = fs.lazytime
        # With msync there is one word for errors in the region, and a thread can't know whose they are.
        server.writes = writes and not fs.readonly and fs.region.granularity != "page"
        server.nothing = self.recorded or fs.shut

    def lost(self) -> str:
        """The region is lost: why. The first call says so in the log, and shuts the file system down."""
        why = self.fs.region.lost
        if not self.fs.shut:
            log.critical("%s; all requests answer EIO until it is unmounted, then run fsck.daxfs", why)
            self.server.nothing = True
            self.fs.shutdown(durable=False)
        return why

    def _grown(self, limit: int) -> None:
        self.server.inode_limit = limit

    # -- attributes ------------------------------------------------------------------------

    def entry(self, inode) -> EntryAttributes:
        """The attributes of a meta.inode.Inode as pyfuse3 wants them."""
        out = EntryAttributes()
        out.st_ino = inode.ino
        out.generation = inode.generation
        out.entry_timeout = TIMEOUT
        # A direct write may drop these bits behind the kernel's back, and the last close gives blocks back.
        out.attr_timeout = 0 if inode.mode & 0o6000 or inode.flags & L.FLAG_PREALLOC else TIMEOUT
        out.st_mode = inode.mode
        out.st_nlink = inode.nlink
        out.st_uid = inode.uid
        out.st_gid = inode.gid
        out.st_rdev = inode.rdev
        out.st_size = inode.size
        out.st_blocks = inode.blocks * 8
        out.st_atime_ns = inode.atime
        out.st_mtime_ns = inode.mtime
        out.st_ctime_ns = inode.ctime
        return out

    def told(self, inode) -> EntryAttributes:
        """`entry`, counted: the kernel will forget it some day."""
        self.fs.remember(inode.ino)
        return self.entry(inode)

    @handler
    def lookup(self, parent, name, ctx):
        inode = namespace.lookup(self.fs, parent, name)
        if inode is not None:
            return self.told(inode)
        absent = EntryAttributes()
        absent.st_ino = 0
        absent.entry_timeout = TIMEOUT
        return absent

    async def forget(self, inodes):
        for ino, count in inodes:
            if ino == HANDOFF_NODE:
                self.handoff()
                continue
            try:
                self.forget_one(ino, count)
            except Exception:
                log.exception("forget: inode %d", ino)

    def forget_one(self, ino: int, count: int) -> None:
        """The kernel forgets *count* of the times that it was told of *ino*."""
        self.held.discard(ino)
        self.fs.forget(ino, count)

    @handler
    def getattr(self, ino, ctx):
        return self.entry(self.fs.inodes.read(ino))

    @staticmethod
    def changes(new, fields) -> dict:
        """What a SETATTR request asks for, as attr.setattr wants it."""
        changes = {}
        if fields.update_mode:
            changes["mode"] = new.st_mode
        if fields.update_uid:
            changes["uid"] = new.st_uid
        if fields.update_gid:
            changes["gid"] = new.st_gid
        if fields.update_size:
            changes["size"] = new.st_size
        if fields.update_atime:
            changes["atime"] = new.st_atime_ns
        if fields.update_mtime:
            changes["mtime"] = new.st_mtime_ns
        return changes

    @handler
    def setattr(self, ino, new, fields, fh, ctx):
        changes = self.changes(new, fields)
        if fields.update_size or fields.update_uid or fields.update_gid:
            self._without_set_ids(ino, changes, ctx)
        attr.setattr(self.fs, ino, changes)
        return self.entry(self.fs.inodes.read(ino))

    def _without_set_ids(self, ino: int, changes: dict, ctx) -> None:
        """Put into *changes* of size or owner that they take setuid and setgid away; for root attr does."""
        inode = self.fs.inodes.read(ino)
        mode = changes.get("mode", inode.mode & 0o7777) | inode.mode & namespace.S_IFMT
        if ctx.uid and mode & 0o6000:
            changes["mode"] = killed_privileges(mode, group_check(ctx)(inode.gid)) & 0o7777

    # -- names -----------------------------------------------------------------------------

    @handler
    def readlink(self, ino, ctx):
        target = namespace.readlink(self.fs, ino)
        attr.touch_read(self.fs, ino)
        return target

    @handler
    def mknod(self, parent, name, mode, rdev, ctx):
        creds = Creds(ctx.uid, ctx.gid, ctx.umask)
        return self.told(namespace.create(self.fs, parent, name, mode, creds, rdev))

    @handler
    def mkdir(self, parent, name, mode, ctx):
        mode = mode & 0o7777 | namespace.S_IFDIR
        creds = Creds(ctx.uid, ctx.gid, ctx.umask)
        return self.told(namespace.create(self.fs, parent, name, mode, creds))

    @handler
    def symlink(self, parent, name, target, ctx):
        creds = Creds(ctx.uid, ctx.gid)
        mode = namespace.S_IFLNK | 0o777
        return self.told(namespace.create(self.fs, parent, name, mode, creds, target=target))

    @handler
    def link(self, ino, parent, name, ctx):
        return self.told(namespace.link(self.fs, ino, parent, name))

    @handler
    def unlink(self, parent, name, ctx):
        namespace.unlink(self.fs, parent, name)

    @handler
    def rmdir(self, parent, name, ctx):
        namespace.rmdir(self.fs, parent, name)

    @handler
    def rename(self, parent, name, new_parent, new_name, flags, ctx):
        namespace.rename(self.fs, parent, name, new_parent, new_name, flags, Creds(ctx.uid, ctx.gid))

    # -- files -----------------------------------------------------------------------------

    def _new_handle(self, handle: Handle, flags: int = 0, known: int = 0) -> int:
        """Its number. *flags*: of open(2). The native server knows it from now on (*known*: its flags)."""
        known |= (serve.WRITE if flags & os.O_ACCMODE else 0) | (serve.DIRECT if handle.direct else 0)
        known |= (serve.DSYNC if handle.dsync else 0) | (serve.NOATIME if handle.noatime else 0)
        fh = self.server.open(handle.node.map, handle.ino, known)
        self.handles[fh] = handle
        return fh

    def _drop_handle(self, fh: int):
        """The node of a handle that closes. Waits for native threads that are in the middle of a request."""
        handle = self.handles.pop(fh)
        self.server.close(fh)
        return handle.node

    def _opened(self, ino: int, flags: int, ctx) -> FileInfo:
        """A handle on a file. Direct I/O, of all or with O_DIRECT: each read and write is a request."""
        node = self.fs.open(ino)
        self.files.opened(node)
        if self.sync:
            flags |= os.O_DSYNC
        handle = Handle(ino, node, flags, group_check(ctx) if ctx.uid else None, self.direct)
        if self.fs.inodes.flags(ino) & L.FLAG_SYNC:
            handle.dsync = handle.osync = True  # the kernel, which knows nothing of the flag, sends no FSYNC
        # A read that must move the access time has to arrive here, so the cache is dropped before it.
        keep = not attr.atime_due(self.fs, ino)
        return FileInfo(fh=self._new_handle(handle, flags), direct_io=handle.direct, keep_cache=keep)

    @handler
    def open(self, ino, flags, ctx):
        if flags & os.O_ACCMODE and self.fs.readonly:
            raise OSError(errno.EROFS, "read-only")
        self.fs.inodes.read(ino)
        if flags & os.O_TRUNC:
            changes = {"size": 0}
            self._without_set_ids(ino, changes, ctx)
            attr.setattr(self.fs, ino, changes)
        return self._opened(ino, flags, ctx)

    @handler
    def create(self, parent, name, mode, flags, ctx):
        mode = mode & 0o7777 | namespace.S_IFREG
        inode = namespace.create(self.fs, parent, name, mode, Creds(ctx.uid, ctx.gid, ctx.umask))
        return self._opened(inode.ino, flags, ctx), self.told(inode)

    @handler
    def read(self, fh, pos, size, mapping=False):
        """*mapping*: pages for a mapping, though the program's own reads are direct."""
        handle = self.handles[fh]
        if mapping or not handle.direct:
            self.faults.request(handle.node.map, pos, size, False)
        return self.files.read(handle.node, pos, size, handle.noatime)

    @handler
    def write(self, fh, pos, data, writer=None):
        """*writer*: MAPPING, PRIVILEGED, the request of one without CAP_FSETID; None: it doesn't say."""
        handle = self.handles[fh]
        if writer is MAPPING or not handle.direct:
            self.faults.request(handle.node.map, pos, len(data), True)
        if writer is not MAPPING:
            self._drop_privileges(handle, writer)
        written = self.files.write(handle.node, pos, data)
        if handle.dsync:
            self.files.fsync(handle.node)
        return written

    def _drop_privileges(self, handle: Handle, writer) -> None:
        """What a write takes away (attr.drop_privileges), by *writer* or else by who opened the file.

        The kernel leaves to us: all of it with HANDLE_KILLPRIV_V2; without it all of it for direct I/O, and
        setgid without group execute in any case. It says who writes where it leaves all of it.
        """
        in_group = handle.in_group
        if writer is not None and (self.killpriv or handle.direct):
            in_group = None if writer is PRIVILEGED else group_check(writer)
        if in_group is not None or (self.killpriv and handle.node.capability is not False):
            attr.drop_privileges(self.fs, handle.node, in_group, self.killpriv or handle.direct)

    @handler
    def flush(self, fh):
        """close(2) promises nothing; errors of write-back have been told to the writes themselves."""

    @handler
    def release(self, fh):
        node = self._drop_handle(fh)
        self.held.discard(node.ino)
        self.files.release(node)

    @handler
    def fsync(self, fh, datasync):
        self.files.fsync(self.handles[fh].node)

    # -- directories -----------------------------------------------------------------------

    @handler
    def opendir(self, ino, ctx):
        return self._new_handle(Handle(ino, self.fs.open(ino)), known=serve.DIRECTORY)

    @handler
    def readdir(self, fh, start, token):
        fs, ino = self.fs, self.handles[fh].ino
        for name, child, _, cookie in namespace.readdir(fs, ino, start):
            try:
                inode = fs.inodes.read(child)
            except OSError:
                log.error("directory %d: %r names inode %d, which is not in use", ino, name, child)
                continue
            if not pyfuse3.readdir_reply(token, name, self.entry(inode), cookie):
                break
            if name not in (b".", b".."):
                fs.remember(child)
        if not start:
            attr.touch_read(fs, ino, directory=True)

    @handler
    def releasedir(self, fh):
        self.fs.release(self._drop_handle(fh))

    @handler
    def fsyncdir(self, fh, datasync):
        """What directory operations did is durable when they return; left are its times."""
        self.fs.sync_inode(self.handles[fh].ino)

    # -- the rest --------------------------------------------------------------------------

    @handler
    def statfs(self, ctx):
        space = self.fs.statfs()
        out = pyfuse3.StatvfsData()
        out.f_bsize = out.f_frsize = 4096
        out.f_blocks = space["blocks"]
        out.f_bfree = out.f_bavail = space["bfree"]
        out.f_files = space["files"]
        out.f_ffree = out.f_favail = space["ffree"]
        out.f_namemax = L.NAME_MAX
        return out

    @handler
    def setxattr(self, ino, name, value, ctx):
        keeps_sgid = group_check(ctx) if ctx.uid else (lambda gid: True)
        xattr.put(self.fs, ino, name, value, keeps_sgid=keeps_sgid)

    @handler
    def getxattr(self, ino, name, ctx):
        return xattr.get(self.fs, ino, name)

    @handler
    def listxattr(self, ino, ctx):
        return xattr.names(self.fs, ino)

    @handler
    def removexattr(self, ino, name, ctx):
        xattr.remove(self.fs, ino, name)


def make_operations(fs, config) -> Operations:
    """The handlers for a mounted *fs*; ``.stats`` is what `daxfs stat` shows.

    *config*: with ``track``, ``write``, ``drain`` and ``flags`` (options of mount.daxfs).
    """
    files = FileIo(fs, config.track, config.write, config.drain)
    faults = CachedFaults(pmd=fs.region.pmd.startswith("yes"))
    operations = Operations(fs, files, faults, Stats(fs, files, faults))
    operations.sync = config.flags.get("sync", False)
    return operations
