# SPDX-License-Identifier: MIT
"""What a file system promises, as a plain model: no code of daxfs, only docs/durability.md and POSIX.

`Model.apply` does one operation of the vocabulary (vfs.py) and returns the errno that is due.
Metadata: what returned is there. Data and times that are stored in place (`Content`, tuples of
values): now first, then what a crash may bring back. `stored` and `in_place` say what the last
operation may have stored before it was decided.
"""

import errno

from .content import PAGE, noise, page_range
from .node import DIR, LNK, NOATIME, REG, Node, Policy
from .tree import Tree, fail

__all__ = ["Model", "Policy"]

DAY = 86400 * 10**9


class Model(Tree):
    """The tree after some operations, and what of them a crash must leave."""

    # -- handles ---------------------------------------------------------------------------

    def _open(self, path):
        self.held += (self._file(path),)

    def _tmpfile(self, path, length, seed):
        self._store(self._tmpfile_in(path), 0, noise(length, seed))

    def _open_unlink(self, path):
        self._open(path)
        self._unlink(path)

    def _close(self):
        if not self.held:
            raise fail(errno.EBADF)
        held, self.held = self.held, ()
        for number in sorted(set(held)):
            self._last_close(number)
            self._reap(number)
        self.nameless = frozenset()

    def _last_close(self, number: int) -> None:
        if self.policy.write == "cached" and number not in self.held:
            node = self.edit(number)
            node.content = node.content.durable()

    def _evict(self):
        pass

    def restarted(self) -> "Model":
        """What holds after a crash and the next mount: nobody has a file open."""
        out = self.clone()
        out.held, out.nameless = (), frozenset()
        for number in self.held:
            out._reap(number)
        return out

    # -- attributes ------------------------------------------------------------------------

    def _with_ctime(self, path) -> Node:
        node = self.edit(self.find(path))
        node.ctime = (self.now,)
        return node

    def _chmod(self, path, mode):
        if self.nodes[self.find(path)].kind == LNK:
            raise fail(errno.EOPNOTSUPP)
        node = self._with_ctime(path)
        node.mode = node.kind | mode

    def _chown(self, path, uid, gid):
        node = self._with_ctime(path)
        node.uid, node.gid = uid, gid
        if not node.is_dir:
            node.mode &= ~0o4000 if not node.mode & 0o010 else ~0o6000

    def _utimens(self, path, atime, mtime):
        node = self._with_ctime(path)
        node.atime = node.atime if atime is None else (atime,)
        node.mtime = node.mtime if mtime is None else (mtime,)

    def _utimens_same(self, path):
        """Both times set to what they are, as tar and rsync do: durable from then on."""
        node = self.nodes[self.find(path)]
        self._utimens(path, node.atime[0], node.mtime[0])

    def _chattr(self, path, flags):
        if self.nodes[self.find(path)].kind not in (REG, DIR):
            raise fail(errno.ENOTTY)
        self._with_ctime(path).flags = flags

    def _may_have_xattrs(self, path):
        if self.nodes[self.find(path)].kind not in (REG, DIR):
            raise fail(errno.EPERM)

    def _setxattr(self, path, name, length, seed):
        self._may_have_xattrs(path)
        self._with_ctime(path).xattrs[name] = noise(length, seed)

    def _removexattr(self, path, name):
        self._may_have_xattrs(path)
        if name not in self.nodes[self.find(path)].xattrs:
            raise fail(errno.ENODATA)
        del self._with_ctime(path).xattrs[name]

    # -- times in place --------------------------------------------------------------------

    def _touch(self, number: int, *which: str) -> None:
        node = self.edit(number)
        for name in which:
            setattr(node, name, (self.now, *getattr(node, name)))
            self.in_place.add((number, name))

    def _accessed(self, number: int) -> None:
        """relatime, as mount(8) has it."""
        node = self.nodes[number]
        atime = node.atime[0]
        if node.flags & NOATIME:
            return
        if atime <= node.mtime[0] or atime <= node.ctime[0] or self.now - atime >= DAY:
            self._touch(number, "atime")

    def _read(self, path):
        self._accessed(self._file(path))

    def _list(self, path):
        number = self.find(path)
        if not self.nodes[number].is_dir:
            raise fail(errno.ENOTDIR)
        self._accessed(number)

    def _readlink(self, path):
        number = self.find(path)
        if self.nodes[number].kind != LNK:
            raise fail(errno.EINVAL)
        self._accessed(number)

    # -- data --------------------------------------------------------------------------------

    def _store(self, number: int, pos: int, data: bytes) -> None:
        """One WRITE request, through a handle."""
        if not data:
            return
        node = self.edit(number)
        lasting = self.policy.write == "nt" and self.policy.drain == "write"
        if node.content.may_grow_in_place(pos, pos + len(data), number in self.held):
            # Size and times are stored in place, durable when it returns. The size decides.
            self.in_place |= {(number, "mtime"), (number, "ctime")}
        node.content, self.stored[number] = node.content.write(pos, data, lasting)
        if self.stored[number].record:
            node.mtime = node.ctime = (self.now,)
        else:
            self._touch(number, "mtime", "ctime")

    def _write(self, path, pos, length, seed):
        number = self._file(path)
        self._store(number, pos, noise(length, seed))
        self._last_close(number)

    def _append(self, path, length, seed):
        number = self._file(path)
        self._write(path, self.nodes[number].content.size, length, seed)

    def _msync(self, path, pos, length, seed):
        """A store through a shared mapping: the page is read, the pages are written back, then FSYNC."""
        number = self._file(path)
        size = self.nodes[number].content.size
        if pos >= size:
            raise fail(errno.EFAULT)  # stands for SIGBUS
        self._accessed(number)
        end = min(pos + length, size)
        first, last = pos - pos % PAGE, min(-(-end // PAGE) * PAGE, size)
        pages = bytearray(self.nodes[number].content.bytes(first, last))
        pages[pos - first : end - first] = noise(length, seed)[: end - pos]
        self._store(number, first, bytes(pages))
        self._synced(number)

    def _resize(self, number: int, size: int) -> None:
        node = self.edit(number)
        node.content = node.content.truncate(size)
        node.mtime = node.ctime = (self.now,)

    def _truncate(self, path, size):
        number = self.find(path)
        if self.nodes[number].kind != REG:
            raise fail(errno.EISDIR if self.nodes[number].is_dir else errno.EINVAL)
        self._resize(number, size)

    def _open_trunc(self, path):
        number = self._file(path)
        self._resize(number, 0)
        self._last_close(number)

    def _fallocate(self, path, mode, pos, length):
        number = self._file(path)
        node = self.edit(number)
        node.content, self.stored[number] = node.content.fallocate(mode, pos, length)
        node.mtime = node.ctime = (self.now,)
        self._last_close(number)

    def _copy(self, path, pos, other, to, length):
        """copy_file_range: data as a write has them, a hole as a hole or as a larger size."""
        number, target = self._file(path), self._file(other)
        source = self.nodes[number].content
        length = min(length, max(source.size - pos, 0))
        if number == target and abs(pos - to) < length:
            raise fail(errno.EINVAL)
        if to < self.nodes[target].content.size:  # a hole over data and behind the end at once: two records
            length = min(length, self.nodes[target].content.size - to)
        if length:
            end = pos
            while end < pos + length and (end // PAGE in source.written) == (pos // PAGE in source.written):
                end = (end // PAGE + 1) * PAGE
            length = min(end - pos, length)
            if pos // PAGE in source.written:
                self._store(target, to, source.bytes(pos, pos + length))
            else:
                self._copy_hole(target, to, to + length)
            self._accessed(number)
        self._last_close(target)
        self._last_close(number)

    def _copy_hole(self, number: int, to: int, end: int) -> None:
        content = self.nodes[number].content
        if to < content.size and not content.written.isdisjoint(page_range(to, end)):
            node = self.edit(number)
            node.content, self.stored[number] = content.fallocate(3, to, end - to)
            node.mtime = node.ctime = (self.now,)
        elif end > content.size:
            self._resize(number, end)
        else:
            self._touch(number, "mtime", "ctime")

    # -- making durable ----------------------------------------------------------------------

    def _synced(self, number: int) -> None:
        """Data and times of *number* are durable."""
        node = self.nodes[number]
        if any(len(times) > 1 for times in (node.atime, node.mtime, node.ctime)):
            node = self.edit(number)
            node.atime, node.mtime, node.ctime = node.atime[:1], node.mtime[:1], node.ctime[:1]
        if node.content is not None and node.content.older:
            node = self.edit(number)
            node.content = node.content.durable()

    def _fsync(self, path):
        self._synced(self._file(path))

    _fdatasync = _fsync

    def _fsyncdir(self, path):
        number = self.find(path)
        if not self.nodes[number].is_dir:
            raise fail(errno.ENOTDIR)
        self._synced(number)

    def _sync(self):
        for number in list(self.nodes):
            self._synced(number)
