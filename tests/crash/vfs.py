# SPDX-License-Identifier: MIT
"""`Vfs`: operations as plain tuples, done in process as the kernel and daxfs/fuse/ops.py do them.

It walks paths with a dentry cache, so inodes are remembered and forgotten as the kernel does: an
unlinked file that is open or was looked up is destroyed at the FORGET behind it. It refuses what
the kernel refuses before it asks. Operations never follow a symlink. The clock stands during an
operation and moves `STEP` from one to the next, so that a `Model` knows every time exactly.

    create|mkdir|mknod P   symlink P TARGET   link P NEW   rename P NEW   exchange P Q   unlink P   rmdir P
    whiteout P NEW   (a rename that leaves a whiteout at P)
    open P   open_unlink P   close   evict   (handles that stay open until close; evict drops the caches)
    tmpfile D LEN SEED   link_held NEW   (O_TMPFILE with data, stays open; a name for the newest handle)
    read P   list P   readlink P   chmod P MODE   chown P UID GID   utimens P ATIME MTIME (ns, None: leave)
    utimens_same P   chattr P FLAGS (of layout.py)   setxattr P NAME LEN SEED   removexattr P NAME
    write P POS LEN SEED   append P LEN SEED   msync P POS LEN SEED   truncate P SIZE   open_trunc P
    write_full P POS LEN SEED PAGES   (a range gets no storage from page PAGES on)
    fallocate P MODE POS LEN   copy P POS Q TO LEN   (copy_file_range, its first piece)
    fsync P   fdatasync P   fsyncdir P   sync   track POLICY (daxfs set)
    map P   mload P POS   mstore P POS LEN SEED   mflush P POS LEN (msync)   mpersist P POS LEN   munmap P
    killed   fsync_racing P POS LEN SEED   (observed mappings: mapped.py)
"""

import errno
import struct

from daxfs import _own, pool
from daxfs.data import ranges
from daxfs.data._serve import Server
from daxfs.data.file_io import FileIo
from daxfs.meta import attr, file, namespace, xattr
from daxfs.meta.namespace import ROOT, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG

from .content import PAGE, noise
from .mapped import MappedVfs, Observing
from .tree import STEP, fail

ROOT_INO = 1
S_IFIFO = 0o010000
READ_SIZE = 1 << 20
_IN_HEADER, _WRITE_IN = struct.Struct("<IIQQIIIHH"), struct.Struct("<QIIQII")  # the handle comes first
_FOR_WRITING = 1 | 2  # SERVE_WRITE, SERVE_DIRECT


class NativeIo(FileIo):
    """A data path whose writes and fsyncs go to native service first, as raw requests; what that leaves,
    to FileIo, as with a native transport. ``served``, ``called``: how many of them.
    """

    def __init__(self, fs, **policies):
        super().__init__(fs, **policies)
        self.server = Server(self.dax)
        self.server.writes, self.server.lazytime = fs.region.granularity != "page", fs.lazytime
        self.server.inodes = fs.region.address + fs.inodes.base
        self.files: dict[int, int] = {}  # inode: number of its handle
        self.served = self.called = 0

    def _asked(self, opcode: int, node, arg: bytes, data: bytes = b"") -> bool:
        """True where native service answered."""
        self.server.inode_limit = self.fs.inodes.limit
        self.server.set_clock(self.fs.clock())
        fh = self.files.get(node.ino)
        if fh is None:
            fh = self.files[node.ino] = self.server.open(node.map, node.ino, _FOR_WRITING)
        body = fh.to_bytes(8, "little") + arg + data
        head = _IN_HEADER.pack(_IN_HEADER.size + len(body), opcode, 1, node.ino, 0, 0, 1, 0, 0)
        verdict, error, _ = self.server.feed(head + body)
        if error:
            raise fail(-error)
        done = verdict == "done"
        self.served, self.called = self.served + done, self.called + (not done)
        return done

    def write(self, node, pos: int, data) -> int:
        if self._asked(16, node, _WRITE_IN.pack(pos, len(data), 0, 0, 0, 0), bytes(data)):
            return len(data)
        return super().write(node, pos, data)

    def fsync(self, node) -> int:
        return 0 if self._asked(20, node, bytes(8)) else super().fsync(node)

    def release(self, node) -> None:
        if node.opens == 1 and node.ino in self.files:
            self.server.close(self.files.pop(node.ino))
        super().release(node)


class ObservingNative(NativeIo, Observing):
    """Native service, and observed mappings: fsync of such a file is left to `Observing`."""


class Range(_own.OwnRange):
    """An own range of which a test can say from which page on it gets no storage."""

    full: int | None = None

    def cover(self, fmap, first, last):
        if Range.full is not None and last > Range.full:
            raise fail(errno.ENOSPC)
        super().cover(fmap, first, last)


pool.OwnRange = Range


def open_io(fs, policy) -> FileIo:
    """The data path of a mounted *fs* under a `node.Policy`."""
    fs.lazytime = policy.lazytime
    policies = {"write": policy.write, "drain": policy.drain, "track": policy.track}
    if policy.fault:
        return (ObservingNative if policy.native else Observing)(fs, fault=policy.fault, **policies)
    return (NativeIo if policy.native else FileIo)(fs, **policies)


class Vfs(MappedVfs):
    """The kernel's side of one mount. *now*: ``Model.now``, so that both have the same clock."""

    def __init__(self, io: FileIo, now: int):
        self.io, self.fs, self.now = io, io.fs, now
        self.fs.clock = lambda: self.now
        self.names: dict[tuple[int, bytes], int] = {}  # the dentry cache
        self.known: dict[int, int] = {}  # lookups that daxfs counted
        self.held: list = []
        self.error: OSError | None = None  # of the last operation
        self._gone: list[int] = []

    def run(self, op) -> int:
        """Do one operation; its errno, 0 for success."""
        self.now += STEP
        self.error = None
        try:
            getattr(self, "_" + op[0])(*op[1:])
        except OSError as error:
            self.error = error
            return error.errno
        finally:
            self._forget_gone()
        return 0

    # -- the caches --------------------------------------------------------------------------

    def _told(self, parent: int, name: bytes, inode):
        """An answer with an entry: the kernel keeps it."""
        self.fs.remember(inode.ino)
        self.known[inode.ino] = self.known.get(inode.ino, 0) + 1
        self.names[parent, name] = inode.ino
        return inode

    def _lookup(self, parent: int, name: bytes):
        """The inode of a name, or None."""
        ino = self.names.get((parent, name))
        if ino is not None:
            return self.fs.inodes.read(ino)
        inode = namespace.lookup(self.fs, parent, name)
        return None if inode is None else self._told(parent, name, inode)

    def _drop(self, parent: int, name: bytes) -> None:
        """A name is no more; its inode is forgotten at the end of the operation where it was the last."""
        self._gone.append(self.names.pop((parent, name)))

    def _forget_gone(self) -> None:
        gone, self._gone = self._gone, []
        busy = {node.ino for node in self.held}
        for ino in gone:
            if ino in busy or ino not in self.known:
                continue
            if not self.fs.inodes.read(ino).nlink:
                self.fs.forget(ino, self.known.pop(ino))

    def _evict(self):
        """Drop the caches of all that is not open: a FORGET for each."""
        busy = {node.ino for node in self.held}
        self.names = {key: ino for key, ino in self.names.items() if ino in busy}
        for ino in list(self.known):
            if ino not in busy:
                self.fs.forget(ino, self.known.pop(ino))

    # -- paths -------------------------------------------------------------------------------

    def _place(self, path: str) -> tuple[int, bytes]:
        """(directory, last name); the name of the root is empty."""
        at, parts = ROOT_INO, path.encode().split(b"/")
        for part in parts[:-1]:
            inode = self._lookup(at, part)
            if inode is None:
                raise fail(errno.ENOENT)
            if inode.mode & S_IFMT != S_IFDIR:
                raise fail(errno.ENOTDIR)
            at = inode.ino
        return at, parts[-1]

    def _find(self, path: str):
        parent, name = self._place(path)
        inode = self._lookup(parent, name) if name else self.fs.inodes.read(ROOT_INO)
        if inode is None:
            raise fail(errno.ENOENT)
        return inode

    def _new(self, path: str) -> tuple[int, bytes]:
        """Where a new name goes. EEXIST is the kernel's answer."""
        parent, name = self._place(path)
        if not name or self._lookup(parent, name) is not None:
            raise fail(errno.EEXIST)
        return parent, name

    def _file(self, path: str):
        inode = self._find(path)
        kind = inode.mode & S_IFMT
        if kind != S_IFREG:
            raise fail({S_IFDIR: errno.EISDIR, S_IFLNK: errno.ELOOP}.get(kind, errno.ENXIO))
        return inode

    # -- names -------------------------------------------------------------------------------

    def _make(self, path, mode, rdev=0, target=b""):
        parent, name = self._new(path)
        return self._told(parent, name, namespace.create(self.fs, parent, name, mode, ROOT, rdev, target))

    def _create(self, path):
        parent, name = self._new(path)
        inode = namespace.create(self.fs, parent, name, S_IFREG | 0o644, ROOT)
        node = self._opened(inode.ino)
        self._told(parent, name, inode)
        self.io.release(node)

    def _mkdir(self, path):
        self._make(path, S_IFDIR | 0o755)

    def _mknod(self, path):
        self._make(path, S_IFIFO | 0o600)

    def _symlink(self, path, target):
        self._make(path, S_IFLNK | 0o777, target=target.encode())

    def _link(self, path, new):
        inode = self._find(path)
        parent, name = self._new(new)
        if inode.mode & S_IFMT == S_IFDIR:
            raise fail(errno.EPERM)
        self._told(parent, name, namespace.link(self.fs, inode.ino, parent, name))

    def _unlink(self, path):
        parent, name = self._place(path)
        self._find(path)
        namespace.unlink(self.fs, parent, name)
        self._drop(parent, name)

    def _rmdir(self, path):
        parent, name = self._place(path)
        if not name:
            raise fail(errno.EBUSY)
        self._find(path)
        namespace.rmdir(self.fs, parent, name)
        self._drop(parent, name)

    def _below(self, ino: int, top: int) -> bool:
        """True where directory *ino* is *top* or inside it (the kernel asks its dentries)."""
        while ino not in (top, ROOT_INO):
            ino = self.fs.inodes.read(ino).parent
        return ino == top

    def _rename(self, old, new, flags=0):
        parent, name = self._place(old)
        to, to_name = self._place(new)
        if not name or not to_name:
            raise fail(errno.EBUSY)
        inode, over = self._find(old), self._lookup(to, to_name)
        exchange = flags & namespace.RENAME_EXCHANGE
        if exchange and over is None:
            raise fail(errno.ENOENT)
        if self._below(to, inode.ino):
            raise fail(errno.EINVAL)
        if over is not None and self._below(parent, over.ino):
            raise fail(errno.EINVAL if exchange else errno.ENOTEMPTY)
        if over is not None and over.ino == inode.ino:
            return  # the kernel's vfs_rename does not ask
        namespace.rename(self.fs, parent, name, to, to_name, flags)
        if exchange:
            self.names[parent, name] = over.ino
        elif over is not None:
            self._drop(to, to_name)
        if not exchange:
            del self.names[parent, name]
        self.names[to, to_name] = inode.ino

    def _whiteout(self, old, new):
        self._rename(old, new, namespace.RENAME_WHITEOUT)

    def _exchange(self, old, new):
        self._rename(old, new, namespace.RENAME_EXCHANGE)

    # -- handles -----------------------------------------------------------------------------

    def _opened(self, ino: int):
        node = self.fs.open(ino)
        self.io.opened(node)
        return node

    def _open(self, path):
        self.held.append(self._opened(self._file(path).ino))

    def _open_unlink(self, path):
        self._open(path)
        self._unlink(path)

    def _tmpfile(self, path, length, seed):
        inode = self._find(path)
        if inode.mode & S_IFMT != S_IFDIR:
            raise fail(errno.ENOTDIR)
        ino = namespace.tmpfile(self.fs, inode.ino, 0o644, ROOT).ino
        self.held.append(self._opened(ino))
        self.fs.remember(ino)
        self.known[ino] = 1
        self.io.write(self.held[-1], 0, noise(length, seed))

    def _link_held(self, new):
        if not self.held:
            raise fail(errno.EBADF)
        ino = self.held[-1].ino
        parent, name = self._new(new)
        self._told(parent, name, namespace.link(self.fs, ino, parent, name))

    def _close(self):
        """All handles but those of mappings."""
        maps = self.io.client.maps if isinstance(self.io, Observing) else {}
        stay = [one.node for one in maps.values()]
        held = list(self.held)
        for node in stay:
            held.remove(node)
        if not held:
            raise fail(errno.EBADF)
        self.held = stay
        for node in held:
            self.io.release(node)
        self._gone += {node.ino: None for node in held}

    # -- attributes --------------------------------------------------------------------------

    def _setattr(self, path, **changes):
        attr.setattr(self.fs, self._find(path).ino, changes)

    def _chmod(self, path, mode):
        if self._find(path).mode & S_IFMT == S_IFLNK:
            raise fail(errno.EOPNOTSUPP)
        self._setattr(path, mode=mode)

    def _chown(self, path, uid, gid):
        self._setattr(path, uid=uid, gid=gid)

    def _utimens(self, path, atime, mtime):
        times = {"atime": atime, "mtime": mtime}
        self._setattr(path, **{name: time for name, time in times.items() if time is not None})

    def _utimens_same(self, path):
        inode = self._find(path)
        self._setattr(path, atime=inode.atime, mtime=inode.mtime)

    def _chattr(self, path, flags):
        inode = self._find(path)
        if inode.mode & S_IFMT not in (S_IFREG, S_IFDIR):
            raise fail(errno.ENOTTY)
        attr.set_flags(self.fs, inode.ino, flags, theirs=0)

    def _xattrs_of(self, path):
        """user. attributes are for files and directories, says the kernel."""
        inode = self._find(path)
        if inode.mode & S_IFMT not in (S_IFREG, S_IFDIR):
            raise fail(errno.EPERM)
        return inode

    def _setxattr(self, path, name, length, seed):
        xattr.put(self.fs, self._xattrs_of(path).ino, name.encode(), noise(length, seed))

    def _removexattr(self, path, name):
        xattr.remove(self.fs, self._xattrs_of(path).ino, name.encode())

    # -- reading -----------------------------------------------------------------------------

    def _read(self, path):
        node = self._opened(self._file(path).ino)
        self.io.read(node, 0, READ_SIZE)
        self.io.release(node)

    def _list(self, path):
        inode = self._find(path)
        if inode.mode & S_IFMT != S_IFDIR:
            raise fail(errno.ENOTDIR)
        node = self.fs.open(inode.ino)
        for name, child, _, _ in namespace.readdir(self.fs, inode.ino, 0):
            if name not in (b".", b".."):
                self._told(inode.ino, name, self.fs.inodes.read(child))
        attr.touch_read(self.fs, inode.ino, directory=True)
        self.fs.release(node)

    def _readlink(self, path):
        ino = self._find(path).ino
        namespace.readlink(self.fs, ino)
        attr.touch_read(self.fs, ino)

    # -- data --------------------------------------------------------------------------------

    def _write(self, path, pos, length, seed):
        node = self._opened(self._file(path).ino)
        try:
            done = self.io.write(node, pos, noise(length, seed))
        finally:
            self.io.release(node)
        if done < length:
            raise fail(errno.ENOSPC)

    def _write_full(self, path, pos, length, seed, pages):
        Range.full = pages
        try:
            node = self._opened(self._file(path).ino)
            try:
                self.io.write(node, pos, noise(length, seed))
            finally:
                self.io.release(node)
        finally:
            Range.full = None

    def _append(self, path, length, seed):
        self._write(path, self._file(path).size, length, seed)

    def _msync(self, path, pos, length, seed):
        """A store through a mapping: the kernel reads the pages, writes them back up to EOF, sends FSYNC."""
        size = self._file(path).size
        if pos >= size:
            raise fail(errno.EFAULT)  # stands for SIGBUS
        end = min(pos + length, size)
        first = pos - pos % PAGE
        last = min(-(-end // PAGE) * PAGE, size)
        node = self._opened(self._find(path).ino)
        try:
            pages = bytearray(self.io.read(node, first, last - first))
            pages[pos - first : end - first] = noise(length, seed)[: end - pos]
            self.io.write(node, first, pages)
            self.io.fsync(node)
        finally:
            self.io.release(node)

    def _truncate(self, path, size):
        inode = self._find(path)
        if inode.mode & S_IFMT != S_IFREG:
            raise fail(errno.EISDIR if inode.mode & S_IFMT == S_IFDIR else errno.EINVAL)
        self._setattr(path, size=size)

    def _open_trunc(self, path):
        ino = self._file(path).ino
        attr.setattr(self.fs, ino, {"size": 0})
        self.io.release(self._opened(ino))

    def _fallocate(self, path, mode, pos, length):
        node = self._opened(self._file(path).ino)
        try:
            if hasattr(self.io, "fallocate"):
                self.io.fallocate(node, mode, pos, length)
            elif hasattr(file, "fallocate"):
                file.fallocate(self.fs, node, mode, pos, length, self.now)
            else:
                raise fail(errno.EOPNOTSUPP)
        finally:
            self.io.release(node)

    def _copy(self, path, pos, other, to, length):
        source = self._opened(self._file(path).ino)
        try:
            target = self._opened(self._file(other).ino)
        except OSError:
            self.io.release(source)
            raise
        try:
            length = min(length, max(source.map.size - pos, 0))
            if source is target and abs(pos - to) < length:
                raise fail(errno.EINVAL)
            if to < target.map.size:  # a hole over data and behind the end at once would be two records
                length = min(length, target.map.size - to)
            if length:
                ranges.copy_piece(self.io, source, pos, target, to, length)
                attr.touch_read(self.fs, source.ino)
        finally:
            self.io.release(target)
            self.io.release(source)

    def _fsync(self, path):
        node = self._opened(self._file(path).ino)
        self.io.fsync(node)
        self.io.release(node)

    _fdatasync = _fsync

    def _fsyncdir(self, path):
        inode = self._find(path)
        if inode.mode & S_IFMT != S_IFDIR:
            raise fail(errno.ENOTDIR)
        node = self.fs.open(inode.ino)
        self.fs.sync_inode(inode.ino)
        self.fs.release(node)

    def _track(self, policy):
        self.io.set_tracker(policy)

    def _sync(self):
        self.io.write_back()
        self.fs.sync_all()
