# SPDX-License-Identifier: MIT
"""Names: lookup, create, link, unlink, rename. Each call is one transaction.

Permissions, sticky directories, loops and the maximal path length are the
kernel's business (default_permissions). Names are bytes. Metadata thread.
"""

import errno
from typing import NamedTuple

from .. import layout as L
from ..errors import CorruptError, fail
from . import dir as directory
from . import extent, own, xattr
from .inode import allowed_flags

S_IFMT, S_IFDIR, S_IFREG, S_IFLNK, S_IFCHR = 0o170000, 0o040000, 0o100000, 0o120000, 0o020000
S_ISGID = 0o2000
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
RENAME_FLAGS = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT


class Creds(NamedTuple):
    """Who asks: the owner of what is created; his umask, where it was not applied to the mode yet."""

    uid: int
    gid: int
    umask: int = 0


ROOT = Creds(0, 0)


def d_type(mode: int) -> int:
    """The d_type of a mode (linux/fs_types.h)."""
    return (mode & S_IFMT) >> 12


def _dir(fs, ino: int):
    """(inode, node) of a directory. ENOTDIR for anything else."""
    inode = fs.inodes.read(ino)
    if inode.mode & S_IFMT != S_IFDIR:
        raise fail(errno.ENOTDIR)
    return inode, fs.node(ino)


def _check_name(name: bytes) -> None:
    if len(name) > L.NAME_MAX:
        raise fail(errno.ENAMETOOLONG)
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise fail(errno.EINVAL)


def lookup(fs, parent: int, name: bytes):
    """The inode that *name* in *parent* names, or None. "." and ".." work (NFS, open_by_handle)."""
    if name == b".":
        return fs.inodes.read(parent)
    if name == b"..":
        return fs.inodes.read(_dir(fs, parent)[0].parent)
    if len(name) > L.NAME_MAX:
        raise fail(errno.ENAMETOOLONG)
    found = directory.lookup(fs, _dir(fs, parent)[1], name)
    return None if found is None else _target(fs, parent, name, found[0])


def _find(fs, node, name: bytes) -> tuple[int, int]:
    """(ino, d_type) of *name*. ENOENT, ENAMETOOLONG."""
    found = directory.lookup(fs, node, name)
    if found is None:
        raise fail(errno.ENAMETOOLONG if len(name) > L.NAME_MAX else errno.ENOENT)
    return found


def _target(fs, parent: int, name: bytes, ino: int):
    try:
        return fs.inodes.read(ino)
    except OSError:
        raise CorruptError(f"directory {parent}: {name!r} names inode {ino}, which is not in use") from None


def create(fs, parent: int, name: bytes, mode: int, creds: Creds, rdev: int = 0, target: bytes = b""):
    """Make a file, directory, symlink, device node, FIFO or socket; returns its inode.

    EEXIST, ENOENT in a directory that was removed, ENOSPC, EMLINK, ENAMETOOLONG.
    The group comes from a setgid directory, the ACL from its default ACL; without one the umask counts. What
    the directory has of L.FLAGS_USER is handed down where the new type may have it.
    """
    _check_name(name)
    dir_inode, node = _dir(fs, parent)
    if not dir_inode.nlink:
        raise fail(errno.ENOENT)
    if directory.lookup(fs, node, name) is not None:
        raise fail(errno.EEXIST)
    is_dir = mode & S_IFMT == S_IFDIR
    if is_dir and dir_inode.nlink >= L.LINK_MAX:
        raise fail(errno.EMLINK)
    now = fs.clock()
    if own.wanted(fs, mode, dir_inode.flags):
        own.enable(fs)
    with fs.begin() as tx:
        edit = _new_inode(tx, fs, dir_inode, mode, creds, now)
        edit.rdev = rdev
        edit.nlink = 2 if is_dir else 1
        edit.parent = parent if is_dir else 0
        if target:
            _put_target(tx, fs, edit, target)
        dir_edit = tx.inode(parent)
        directory.insert(tx, fs, dir_edit, node, name, edit.number, d_type(mode))
        dir_edit.mtime = dir_edit.ctime = now
        if is_dir:
            dir_edit.nlink += 1
    return fs.inodes.read(edit.number)


def tmpfile(fs, parent: int, mode: int, creds: Creds, linkable: bool = True):
    """Make a regular file without a name, as `create` would in *parent* (O_TMPFILE); returns its inode.

    It is an orphan from the start: freed once nobody uses it, or at the next mount. *linkable*: until then
    `link` may give it its first name. ENOENT, ENOSPC.
    """
    dir_inode, _ = _dir(fs, parent)
    if not dir_inode.nlink:
        raise fail(errno.ENOENT)
    if own.wanted(fs, S_IFREG, dir_inode.flags):
        own.enable(fs)
    with fs.begin() as tx:
        ino = _new_inode(tx, fs, dir_inode, mode & 0o7777 | S_IFREG, creds, fs.clock()).number
        tx.after(lambda: fs.orphans.add(ino))
        if linkable:
            tx.after(lambda: fs.linkable.add(ino))
    return fs.inodes.read(ino)


def _new_inode(tx, fs, dir_inode, mode: int, creds: Creds, now: int):
    """A new inode as directory *dir_inode* makes it: owner, group, mode, flags, ACLs, times; no link yet."""
    gid = creds.gid
    if dir_inode.mode & S_ISGID:
        gid = dir_inode.gid
        mode |= S_ISGID if mode & S_IFMT == S_IFDIR else 0
    attrs, mode = xattr.inherited(fs, dir_inode, mode, creds.umask)
    edit = tx.new_inode(fs.new_ino(tx))
    edit.mode, edit.uid, edit.gid = mode, creds.uid, gid
    edit.flags = dir_inode.flags & allowed_flags(mode)
    edit.atime = edit.mtime = edit.ctime = edit.btime = now
    if own.wanted(fs, mode, dir_inode.flags):
        own.place(tx, fs, edit)
    if attrs:
        xattr.change(tx, fs, edit, attrs)
    return edit


def _put_target(tx, fs, edit, target: bytes) -> None:
    """The target of a symlink: in the inode, or in a page of its own, journalled either way."""
    if len(target) > L.SYMLINK_MAX:
        raise fail(errno.ENAMETOOLONG)
    edit.size = len(target)
    if len(target) <= L.INLINE_SIZE:
        edit.inline = target
        return
    ((pfn, _),) = tx.alloc(1)
    edit.inline = L.EXTENT_CODEC.pack(0, 1, pfn | extent.MAPPED << L.EXTENT_STATE_SHIFT)
    edit.nextents = 1
    edit.blocks += 1
    tx.zero(pfn << 12, 4096)
    tx.raw(pfn << 12, target)


def readlink(fs, ino: int) -> bytes:
    """The target of a symlink. EINVAL for anything else."""
    inode = fs.inodes.read(ino)
    if inode.mode & S_IFMT != S_IFLNK:
        raise fail(errno.EINVAL)
    if inode.size <= L.INLINE_SIZE:
        return inode.inline[: inode.size]
    found = extent.parse_slot(inode.inline, 0)
    if found is None or inode.size > L.SYMLINK_MAX:
        raise CorruptError(f"symlink {ino}: its target is missing")
    fs.check_run(found[2], 1, ino)
    fs.check_poison(found[2], 1, ino)
    at = found[2] << 12
    return bytes(fs.mem[at : at + inode.size])


def link(fs, ino: int, parent: int, name: bytes):
    """A further name for an inode, or the first one of a `tmpfile`; returns the inode.

    EPERM for a directory, EMLINK, ENOENT once unlinked.
    """
    _check_name(name)
    inode = fs.inodes.read(ino)
    dir_inode, node = _dir(fs, parent)
    if inode.mode & S_IFMT == S_IFDIR:
        raise fail(errno.EPERM)
    if not dir_inode.nlink or (not inode.nlink and ino not in fs.linkable):
        raise fail(errno.ENOENT)
    if inode.nlink >= L.LINK_MAX:
        raise fail(errno.EMLINK)
    if directory.lookup(fs, node, name) is not None:
        raise fail(errno.EEXIST)
    now = fs.clock()
    with fs.begin() as tx:
        edit, dir_edit = tx.inode(ino), tx.inode(parent)
        edit.nlink += 1
        edit.ctime = now
        directory.insert(tx, fs, dir_edit, node, name, ino, d_type(inode.mode))
        dir_edit.mtime = dir_edit.ctime = now
        if not inode.nlink:
            tx.after(lambda: fs.orphans.discard(ino))
            tx.after(lambda: fs.linkable.discard(ino))
    return fs.inodes.read(ino)


def _unlinked(tx, fs, edit, now: int, links: int = 1) -> None:
    """*links* names of an inode go; with the last one the inode, or it is an orphan until nobody uses it."""
    edit.nlink = max(edit.nlink - links, 0)
    edit.ctime = now
    if edit.nlink:
        return
    if fs.in_use(edit.number):
        tx.after(lambda: fs.orphans.add(edit.number))
    else:
        fs.free_inode(tx, edit)


def unlink(fs, parent: int, name: bytes) -> int:
    """Remove a name of a non-directory; returns the inode's number. EISDIR for a directory."""
    _, node = _dir(fs, parent)
    found = _find(fs, node, name)
    inode = _target(fs, parent, name, found[0])
    if inode.mode & S_IFMT == S_IFDIR:
        raise fail(errno.EISDIR)
    now = fs.clock()
    with fs.begin() as tx:
        dir_edit = tx.inode(parent)
        directory.remove(tx, fs, dir_edit, node, name)
        dir_edit.mtime = dir_edit.ctime = now
        _unlinked(tx, fs, tx.inode(inode.ino), now)
    fs.drop_unused(inode.ino)
    return inode.ino


def rmdir(fs, parent: int, name: bytes) -> int:
    """Remove an empty directory; returns its number. ENOTEMPTY, ENOTDIR."""
    if name in (b".", b".."):
        raise fail(errno.EINVAL if name == b"." else errno.ENOTEMPTY)
    _, node = _dir(fs, parent)
    found = _find(fs, node, name)
    inode, child = _dir(fs, found[0])
    if not directory.is_empty(fs, child):
        raise fail(errno.ENOTEMPTY)
    now = fs.clock()
    with fs.begin() as tx:
        dir_edit = tx.inode(parent)
        directory.remove(tx, fs, dir_edit, node, name)
        dir_edit.mtime = dir_edit.ctime = now
        dir_edit.nlink -= 1
        _unlinked(tx, fs, tx.inode(inode.ino), now, links=inode.nlink)
    fs.drop_unused(inode.ino)
    return inode.ino


def rename(
    fs, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0, creds: Creds = ROOT
) -> None:
    """rename(2) and renameat2(2) with its flags; one record, so atomic across a crash.

    RENAME_WHITEOUT leaves a character device 0/0, which belongs to *creds*, at the old name.
    """
    _check_name(new_name)
    if flags & ~RENAME_FLAGS or (flags & RENAME_EXCHANGE and flags != RENAME_EXCHANGE):
        raise fail(errno.EINVAL)
    old_dir, node = _dir(fs, parent)
    new_dir, new_node = _dir(fs, new_parent)
    found = _find(fs, node, name)
    over = directory.lookup(fs, new_node, new_name)
    if not new_dir.nlink:
        raise fail(errno.ENOENT)
    inode = _target(fs, parent, name, found[0])
    if flags & RENAME_EXCHANGE:
        if over is None:
            raise fail(errno.ENOENT)
        other = _target(fs, new_parent, new_name, over[0])
        if parent != new_parent:
            _may_gain(inode, other, new_dir)
            _may_gain(other, inode, old_dir)
        _exchange(fs, (parent, node, name, inode), (new_parent, new_node, new_name, other))
        return
    victim = None
    if over is not None:
        if flags & RENAME_NOREPLACE:
            raise fail(errno.EEXIST)
        if over[0] == inode.ino:
            return  # two names of one inode: nothing happens, says rename(2)
        victim = _target(fs, new_parent, new_name, over[0])
        _may_replace(fs, inode, victim)
    if parent != new_parent:
        _may_gain(inode, victim, new_dir)
    whiteout = creds if flags & RENAME_WHITEOUT else None
    _move(fs, (parent, node, name, inode), (new_parent, new_node, new_name, victim), whiteout)
    if victim is not None:
        fs.drop_unused(victim.ino)


def _may_gain(inode, replaced, to) -> None:
    """EMLINK where directory *to* can't have one more directory, *inode* for *replaced* (or nothing)."""
    if inode.mode & S_IFMT == S_IFDIR and (replaced is None or replaced.mode & S_IFMT != S_IFDIR):
        if to.nlink >= L.LINK_MAX:
            raise fail(errno.EMLINK)


def _may_replace(fs, inode, victim) -> None:
    """EISDIR, ENOTDIR, ENOTEMPTY where *inode* may not take *victim*'s name."""
    is_dir = inode.mode & S_IFMT == S_IFDIR
    if victim.mode & S_IFMT != S_IFDIR:
        if is_dir:
            raise fail(errno.ENOTDIR)
        return
    if not is_dir:
        raise fail(errno.EISDIR)
    if not directory.is_empty(fs, fs.node(victim.ino)):
        raise fail(errno.ENOTEMPTY)


def _move(fs, source, dest, whiteout: Creds | None = None) -> None:
    """*whiteout*: whom the character device 0/0 belongs to that takes the old name; None: nothing does."""
    parent, node, name, inode = source
    new_parent, new_node, new_name, victim = dest
    is_dir = inode.mode & S_IFMT == S_IFDIR
    now = fs.clock()
    with fs.begin() as tx:
        old_dir, new_dir = tx.inode(parent), tx.inode(new_parent)
        edit = tx.inode(inode.ino)
        if victim is not None:
            directory.change(tx, fs, new_node, new_name, inode.ino, d_type(inode.mode))
            gone = tx.inode(victim.ino)
            _unlinked(tx, fs, gone, now, links=victim.nlink if is_dir else 1)
        else:
            directory.insert(tx, fs, new_dir, new_node, new_name, inode.ino, d_type(inode.mode))
        if whiteout is not None:
            left = _new_inode(tx, fs, fs.inodes.read(parent), S_IFCHR, whiteout, now)
            left.nlink = 1
            directory.change(tx, fs, node, name, left.number, d_type(S_IFCHR))
        else:
            directory.remove(tx, fs, old_dir, node, name, shrink=node is not new_node)
        if is_dir:
            old_dir.nlink -= 1
            new_dir.nlink += 0 if victim is not None else 1
            edit.parent = new_parent
        old_dir.mtime = old_dir.ctime = new_dir.mtime = new_dir.ctime = edit.ctime = now


def _exchange(fs, left, right) -> None:
    parent, node, name, inode = left
    new_parent, new_node, new_name, other = right
    if inode.ino == other.ino:
        return
    now = fs.clock()
    with fs.begin() as tx:
        old_dir, new_dir = tx.inode(parent), tx.inode(new_parent)
        one, two = tx.inode(inode.ino), tx.inode(other.ino)
        directory.change(tx, fs, node, name, other.ino, d_type(other.mode))
        directory.change(tx, fs, new_node, new_name, inode.ino, d_type(inode.mode))
        for moved, origin, target in ((one, old_dir, new_dir), (two, new_dir, old_dir)):
            if moved.mode & S_IFMT == S_IFDIR:
                moved.parent = target.number
                origin.nlink -= 1
                target.nlink += 1
            moved.ctime = now
        old_dir.mtime = old_dir.ctime = new_dir.mtime = new_dir.ctime = now


def readdir(fs, ino: int, cookie: int):
    """Yield (name, ino, d_type, next cookie) from *cookie* (0: the start), "." and ".." included."""
    inode, node = _dir(fs, ino)
    if not inode.nlink:
        return
    if cookie < directory.DOT:
        yield b".", ino, 4, directory.DOT
    if cookie < directory.DOTDOT:
        yield b"..", inode.parent, 4, directory.DOTDOT
    yield from directory.listing(fs, node, max(cookie, L.BLOCK_SIZE))
