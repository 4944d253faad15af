# SPDX-License-Identifier: MIT
"""What a file system promises, as a plain model: no code of daxfs, only docs/durability.md and POSIX.

`Model.apply` does one operation of the vocabulary (vfs.py) and returns the errno that is due.
Metadata: what returned is there. Data and times that are stored in place (`Content`, tuples of
values): now first, then what a crash may bring back. `stored` and `in_place` say what the last
operation may have stored before it was decided.
"""

import errno

from .content import PAGE, Stored, noise, page_range
from .node import DIR, LNK, NOATIME, REG, Node, Policy
from .tree import Tree, fail

__all__ = ["Model", "Policy"]

DAY = 86400 * 10**9
LINE = 64


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
        held = list(self.held)
        for number in self.mapped:
            held.remove(number)
        if not held:
            raise fail(errno.EBADF)
        self.held = tuple(self.mapped)
        for number in sorted(set(held)):
            self._closed(number)
        self.nameless = frozenset()

    def _closed(self, number: int) -> None:
        """A handle that stayed open is gone from ``held``."""
        if number in self.held:
            return
        self._last_close(number)
        if self.nodes[number].nlink and self.nodes[number].kind == REG:
            self._follow(number)
        self._reap(number)

    def _last_close(self, number: int) -> None:
        if (self.policy.write == "cached" or self.policy.fault) and number not in self.held:
            node = self.edit(number)
            if self.track == "none":
                node.lost = bool(node.content.older)
            elif node.own or not self.track.startswith("extent"):  # else it stays active, and dirty
                self._flushed_all(number)

    def _evict(self):
        pass

    def restarted(self) -> "Model":
        """What holds after a crash and the next mount: nobody has a file open."""
        out = self.clone()
        out.held, out.nameless, out.mapped = (), frozenset(), {}
        for number in set(self.held):
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
        node = self._with_ctime(path)
        node.flags = flags
        number = self.find(path)
        if node.kind == REG and (number not in self.held or not node.content.size):
            self._follow(number)

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
        in_place = node.content.may_grow_in_place(pos, pos + len(data), number in self.held)
        if node.own or node.loose or in_place:
            # Size and times are stored in place, durable when it returns. The size decides.
            self.in_place |= {(number, "mtime"), (number, "ctime")}
        node.sparse = node.sparse or (node.own and pos > node.content.size)
        node.content, self.stored[number] = node.content.write(pos, data, lasting)
        if node.own:
            node.content = node.content.whole()
        if self.stored[number].record:
            node.mtime = node.ctime = (self.now,)
        else:
            self._touch(number, "mtime", "ctime")

    def _write(self, path, pos, length, seed):
        number = self._file(path)
        self._store(number, pos, noise(length, seed))
        self._last_close(number)

    def _write_full(self, path, pos, length, seed, pages):
        """A write into a range that can have no storage from page *pages* on: half of it, until it fits."""
        number = self._file(path)
        first, last, end = pos // PAGE, -(-(pos + length) // PAGE), pos + length
        if self.nodes[number].content.size > pages * PAGE:
            raise fail(errno.EINVAL)  # no such operation: some of what it has may have no storage yet
        while self.nodes[number].own and last > pages:
            if last - first <= 1:
                self._last_close(number)
                raise fail(errno.ENOSPC)
            last = first + (last - first) // 2
            end = last * PAGE
        self._store(number, pos, noise(length, seed)[: end - pos])
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
        node.sparse = node.sparse or (node.own and size > node.content.size)
        node.content = node.content.truncate(size)
        if node.own:
            node.content = node.content.whole()
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
        self._allocate(number, mode, pos, length)
        self._last_close(number)

    def _allocate(self, number: int, mode: int, pos: int, length: int) -> None:
        node = self.edit(number)
        before = node.content.size
        node.content, self.stored[number] = node.content.fallocate(mode, pos, length)
        if node.own:
            # Zeros come before the record, so with it they are all there.
            zeros = ((pos, min(pos + length, before)),) if mode & ~1 and pos < before else ()
            node.content, self.stored[number] = node.content.whole(), Stored(zeros, True, True)
            node.sparse = True
        node.mtime = node.ctime = (self.now,)

    def _copy(self, path, pos, other, to, length):
        """copy_file_range: data as a write has them, a hole as a hole or as a larger size."""
        number, target = self._file(path), self._file(other)
        source = self.nodes[number].content
        if self.nodes[number].sparse:
            raise fail(errno.EINVAL)  # no such operation: how long its first piece is, is not known
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
            self._allocate(number, 3, to, end - to)
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
            self._flushed_all(number)

    def _flushed_all(self, number: int) -> None:
        """The daemon has made durable what it knows to be dirty, if it knows of it."""
        node, cached = self.edit(number), self.policy.write == "cached" or self.policy.fault
        if not (cached and (node.lost or self.track == "none")):
            node.content = node.content.durable()

    def _track(self, track):
        """daxfs set: what was dirty stays so, but before none, and of files that are closed, is flushed."""
        was = self.track
        if track == was:
            return
        for number, node in self.nodes.items() if not self.policy.fault else ():
            packed = was.startswith("extent") and not node.own
            if node.content is not None and (packed or (track == "none" and number in self.held)):
                self._flushed_all(number)
        self.track = track

    def _fsync(self, path):
        self._synced(self._file(path))

    _fdatasync = _fsync

    def _fsyncdir(self, path):
        number = self.find(path)
        if not self.nodes[number].is_dir:
            raise fail(errno.ENOTDIR)
        self._synced(number)

    def _sync(self):
        """What programs stored through mappings the daemon hears nothing of."""
        for number in list(self.nodes):
            content = self.nodes[number].content
            self._synced(number)
            if self.policy.fault and content is not None and content.older:
                self.edit(number).content = content

    # -- observed mappings -------------------------------------------------------------------

    def _map(self, path):
        number = self._file(path)
        if number in self.mapped:
            raise fail(errno.EBUSY)
        if not self.nodes[number].own:
            raise fail(errno.EOPNOTSUPP)
        self.held += (number,)
        self.mapped = self.mapped | {number: frozenset()}

    def _at(self, path, pos: int, length: int) -> int:
        """A file that is mapped, and has pages there."""
        number = self._file(path)
        if number not in self.mapped:
            raise fail(errno.EBADF)
        if pos + length > -(-self.nodes[number].content.size // PAGE) * PAGE:
            raise fail(errno.EFAULT)
        return number

    def _mload(self, path, pos):
        self._at(path, pos, 1)

    def _mstore(self, path, pos, length, seed):
        """Until somebody acknowledges it, each word may be there or not. Times are the range's file's."""
        number = self._at(path, pos, length)
        node = self.edit(number)
        pages = frozenset(page_range(pos, pos + length))
        self.mapped = self.mapped | {number: self.mapped[number] | pages}
        data = noise(length, seed)[: max(node.content.size - pos, 0)]  # what is behind the end nobody sees
        if data:
            node.content, self.stored[number] = node.content.write(pos, data, False)

    def _mflush(self, path, pos, length):
        """Pages of the range that this program stored to are durable, whoever stored to them, too."""
        self._flushed(self._at(path, 0, 0), page_range(pos, pos + length))

    def _flushed(self, number: int, pages) -> None:
        node = self.edit(number)
        for page in self.mapped[number].intersection(pages):
            node.content = node.content.durable_in(page * PAGE, (page + 1) * PAGE)

    def _mpersist(self, path, pos, length):
        """Whole lines: what the model of the media has for them."""
        number = self._at(path, pos, length)
        node = self.edit(number)
        node.content = node.content.durable_in(pos & -LINE, (pos + length + LINE - 1) & -LINE)

    def _munmap(self, path):
        number = self._at(path, 0, 0)
        self._flushed(number, self.mapped[number])
        self._unmapped(number)

    def _killed(self):
        if not self.mapped:
            raise fail(errno.ESRCH)
        for number in list(self.mapped):
            self._unmapped(number)

    def _unmapped(self, number: int) -> None:
        self.mapped = {one: pages for one, pages in self.mapped.items() if one != number}
        held = list(self.held)
        held.remove(number)
        self.held = tuple(held)
        self._closed(number)

    def _fsync_racing(self, path, pos, length, seed):
        self._synced(self._at(path, pos, length))
        self._mstore(path, pos, length, seed)
