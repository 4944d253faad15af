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
from ..data.file_io import FileIo
from ..errors import CorruptError
from ..fault._decision import CachedFaults
from ..fault.observer import Observer
from ..meta import attr, namespace, own, xattr
from ..meta.file import killed_privileges
from ..meta.namespace import Creds
from .direct import DirectOperations
from .handler import MAPPING, PRIVILEGED, group_check, handler
from .observing import Observing
from .ops_base import BaseOperations
from .ops_ioctl import IoctlOperations
from .ops_more import MoreOperations
from .options import threshold
from .stats import Stats

log = logging.getLogger(__name__)

# Nobody but this kernel changes the file system, and it forgets what its own requests change.
TIMEOUT = 3600.0


class Handle:
    """An open file or directory."""

    __slots__ = ("direct", "dsync", "in_group", "ino", "mode", "noatime", "node", "osync", "plain")

    def __init__(self, ino: int, node, flags: int = 0, in_group=None, direct: bool = False):
        self.ino, self.node = ino, node
        self.direct = direct or bool(flags & os.O_DIRECT)
        self.noatime = bool(flags & os.O_NOATIME)
        self.osync = bool(flags & os.O_DSYNC)
        # The kernel sends FSYNC after a buffered write through such a descriptor, but not after a direct one.
        self.dsync = self.direct and self.osync
        self.mode = flags & os.O_ACCMODE
        self.plain = False  # its mappings may store, and it is not known that all of them are observed
        self.in_group = in_group  # None: the opener may write and leave setuid and setgid set


class Operations(IoctlOperations, MoreOperations, DirectOperations, BaseOperations):
    """One mount. *fs*: meta.fs.FileSystem; *files*: data.file_io.FileIo; *faults*: CachedFaults."""

    enable_acl = True

    def __init__(self, fs, files, faults, stats):
        super().__init__(fs, files.dax, faults, stats)
        self.files, self.emptied, self.observer = files, set(), Observer(files.dax.persist)
        self.observing = Observing(self)
        self.held: set[int] = set()  # unlinked inodes whose end was waited for in vain (handler.py)
        fs.inodes.on_grown.append(self._grown)
        if fs.pool is not None:
            fs.pool.on_made.append(self.tell_ranges)
        stats.dax = self.describe_dax
        fs.moves.on_moved.append(self.attributes_changed)  # blocks are others now, and times may change alone

    # -- what native threads may answer ------------------------------------------------------

    def tell_limits(self, writes: bool = True) -> None:
        """Tell them how the mount stands: at its beginning and whenever something of it changes.

        *writes*: False where stores are about to end (remount ro, unmount); then FileIo.quiesce.
        """
        fs, server = self.fs, self.server
        server.inodes = fs.region.address + fs.inodes.base
        server.inode_limit = fs.inodes.limit
        self.tell_ranges()
        server.getattr = not (fs.inodes.damaged or fs.inodes.poisoned)
        server.atime = "noatime" if fs.readonly else fs.atime
        server.lazytime = fs.lazytime
        # With msync there is one word for errors in the region, and a thread can't know whose they are.
        server.writes = writes and not fs.readonly and fs.region.flush.kind != "msync"
        server.nothing = self.recorded or fs.shut
        server.parks = writes and not fs.readonly
        if not server.parks or server.nothing:
            self.reap()

    def set_tracker(self, policy: str) -> int:
        """track= is *policy* from now on; how many files changed. MemoryError, OSError."""
        return self.files.set_tracker(policy)

    @property
    def track(self) -> str:
        """What a file that is opened now has for track=."""
        return self.files.tracker.name

    def set_flushers(self, count: int) -> None:
        """flushers= is *count* from now on. UsageError, OSError."""
        self.files.dax.set_flushers(count)

    def tell_ranges(self) -> None:
        self.server.ranges = -1 if self.fs.pool is None else self.fs.pool.dir_fd

    def _grown(self, limit: int) -> None:
        self.server.inode_limit = limit

    def may_be_pinned(self, ino: int) -> bool:
        node = self.fs.nodes.get(ino)
        return node is not None and node.map.own is not None and node.map.own.syncs

    # -- attributes ------------------------------------------------------------------------

    def mode(self, ino: int) -> int:
        """Type and permissions of an inode that a handle is open on."""
        return self.fs.inodes.mode(ino)

    def entry(self, inode, named: bool = False) -> EntryAttributes:
        """The attributes of a meta.inode.Inode as pyfuse3 wants them.

        *named*: for a listing or a lookup, where a file whose range is missing must be found to be removed.
        """
        out = EntryAttributes()
        blocks = 0
        if inode.flags & L.FLAG_OWN:
            try:
                inode, blocks = own.shown(self.fs, inode)
            except CorruptError:
                if not named:
                    raise
        out.st_ino = inode.ino
        out.generation = inode.generation
        out.entry_timeout = TIMEOUT
        # A direct write may drop these bits behind the kernel's back, and the last close gives blocks back.
        # And of a range a program changes the times by its mapping.
        ours = inode.mode & 0o6000 or inode.flags & (L.FLAG_PREALLOC | L.FLAG_OWN)
        out.attr_timeout = 0 if ours else TIMEOUT
        out.st_mode = inode.mode
        out.st_nlink = inode.nlink
        out.st_uid = inode.uid
        out.st_gid = inode.gid
        out.st_rdev = inode.rdev
        out.st_size = inode.size
        out.st_blocks = inode.blocks * 8 + blocks
        out.st_atime_ns = inode.atime
        out.st_mtime_ns = inode.mtime
        out.st_ctime_ns = inode.ctime
        return out

    def told(self, inode) -> EntryAttributes:
        """`entry`, counted: the kernel will forget it some day."""
        out = self.entry(inode, named=True)
        self.fs.remember(inode.ino)
        return out

    @handler
    def lookup(self, parent, name, ctx):
        inode = namespace.lookup(self.fs, parent, name)
        if inode is not None:
            return self.told(inode)
        absent = EntryAttributes()
        absent.st_ino = 0
        absent.entry_timeout = TIMEOUT
        return absent

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
        self.reap_unlinked()

    @handler
    def rmdir(self, parent, name, ctx):
        namespace.rmdir(self.fs, parent, name)

    @handler
    def rename(self, parent, name, new_parent, new_name, flags, ctx):
        namespace.rename(self.fs, parent, name, new_parent, new_name, flags, Creds(ctx.uid, ctx.gid))
        self.reap_unlinked()

    # -- files -----------------------------------------------------------------------------

    def _new_handle(self, handle: Handle, flags: int = 0, known: int = 0, backing: int = 0,
                    opener=None) -> int:
        """Its number. *flags*: of open(2). The native server knows it from now on (*known*: its flags).

        *backing*: the kernel's number of the file that its mappings are of (direct.py); *opener*: parking.py.
        """
        known |= (serve.WRITE if flags & os.O_ACCMODE else 0) | (serve.DIRECT if handle.direct else 0)
        known |= (serve.DSYNC if handle.dsync else 0) | (serve.NOATIME if handle.noatime else 0)
        fh = self.server.open(handle.node.map, handle.ino, known, backing, opener)
        self.handles[fh] = handle
        return fh

    def _drop_handle(self, fh: int):
        """The node of a handle that closes. Waits for native threads that are in the middle of a request."""
        handle = self.handles.pop(fh)
        self.server.close(fh)
        self.closing(handle.node)
        return handle.node

    def _opened(self, ino: int, flags: int, ctx) -> FileInfo:
        """A handle on a file. Direct I/O, of all or with O_DIRECT: each read and write is a request."""
        node = self.fs.open(ino)
        try:
            self.files.opened(node)
        except BaseException:
            self.fs.release(node)  # a handle that nobody gets keeps no file open
            raise
        opener = (flags, ctx.uid, ctx.gid, ctx.pid)
        if self.sync:
            flags |= os.O_DSYNC
        backing = self.direct_of(node)
        direct = self.direct or backing > 0
        handle = Handle(ino, node, flags, group_check(ctx) if ctx.uid else None, direct)
        handle.plain = backing > 0 and self.expect_stores(node, flags)
        if self.fs.inodes.flags(ino) & L.FLAG_SYNC:
            handle.dsync = handle.osync = True  # the kernel, which knows nothing of the flag, sends no FSYNC
        # A read that must move the access time has to arrive here, so the cache is dropped before it.
        keep = not backing and not attr.atime_due(self.fs, ino)
        fh = self._new_handle(handle, flags, backing=backing, opener=opener)
        return FileInfo(fh=fh, direct_io=handle.direct, keep_cache=keep)

    @handler
    def open(self, ino, flags, ctx):
        if flags & os.O_ACCMODE and self.fs.readonly:
            raise OSError(errno.EROFS, "read-only")
        self.fs.inodes.read(ino)
        self.may_open(ino)
        self.reap_unused(ino)
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
    def read(self, fh, pos, size, mapping=None):
        """*mapping*: pages for a mapping, though the program's own reads are direct; None: it doesn't say."""
        handle = self.handles[fh]
        if mapping or not handle.direct:
            self.faults.request(handle.node.map, pos, size, False)
        short = handle.direct and mapping is False
        return self.files.read(handle.node, pos, size, handle.noatime, short)

    @handler
    def write(self, fh, pos, data, writer=None, dsync=False):
        """*writer*: MAPPING, PRIVILEGED, the request of one without CAP_FSETID; None: it doesn't say.

        *dsync*: it is a direct one with RWF_DSYNC, after which the kernel sends no FSYNC.
        """
        handle = self.handles[fh]
        if writer is MAPPING or not handle.direct:
            self.faults.request(handle.node.map, pos, len(data), True)
        if writer is not MAPPING:
            self._drop_privileges(handle, writer)
        written = self.files.write(handle.node, pos, data)
        if handle.dsync or dsync:
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
        self.release_now(fh)

    def release_now(self, fh: int) -> None:
        """A handle on a file closes."""
        node = self._drop_handle(fh)
        self.held.discard(node.ino)
        self.files.release(node)

    @handler
    def fsync(self, fh, datasync, times=None):
        """*times*: a FsyncRun, where who counts it has begun it."""
        with self.timed(fh, times) as times:
            self.files.fsync(self.handles[fh].node, times)

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
            if not pyfuse3.readdir_reply(token, name, self.entry(inode, named=True), cookie):
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


def make_operations(fs, config, kind: type[Operations] = Operations) -> Operations:
    """The handlers, of class *kind*, for a mounted *fs*; ``.stats`` is what `daxfs stat` shows.

    *config*: with ``track``, ``write``, ``drain``, ``flushers``, ``nt_threshold`` and ``flags`` (options).
    """
    files = FileIo(fs, config.track, config.write, config.drain, config.flushers,
                   threshold(config, fs.region.flush.kind))
    faults = CachedFaults(pmd=fs.region.pmd.startswith("yes"))
    operations = kind(fs, files, faults, Stats(fs, files, faults))
    operations.sync = config.flags.get("sync", False)
    return operations
