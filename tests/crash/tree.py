# SPDX-License-Identifier: MIT
"""The names of the model: finding, making, linking, renaming, removing, as POSIX and Linux have them.

No code of daxfs. Each method `_name` is one operation of the vocabulary (vfs.py); it raises an OSError
with the errno that is due before it changes anything. Copies are cheap: nodes are shared until changed.
"""

import copy
import errno
import re

from .content import Stored
from .node import ANY_TYPE, CHR, DAX, DIR, FIFO, LNK, REG, USER_FLAGS, Node, Policy

STEP = 1000  # ns that the clock moves with each operation; it stands during one
ROOT = 1
SETGID = 0o2000


def fail(code: int) -> OSError:
    return OSError(code, errno.errorcode[code])


def show(op) -> str:
    """An operation in one line; a run of one letter is told by its length."""
    text = " ".join(map(str, op))
    return re.sub(r"([a-z])\1{9,}", lambda run: f"{run[1]}*{len(run[0])}", text)


class Tree:
    """A tree of nodes. ``now``: the clock; ``nodes``: by number of the model's own."""

    def __init__(self, policy: Policy, born: int = 10**18):
        """*born*: the times of a fresh root (``fs.sb.created``)."""
        self.policy, self.track = policy, policy.track
        self.now = born + 10**9
        root = Node(DIR | 0o755, born)
        root.parent, root.added = ROOT, 1  # its first block is there from the start
        self.nodes: dict[int, Node] = {ROOT: root}
        self.next = ROOT + 1
        self.held: tuple[int, ...] = ()  # handles that stay open, oldest first
        self.mapped: dict[int, frozenset] = {}  # observed: number, pages stored to; a handle stays open, too
        self.nameless: frozenset[int] = frozenset()  # made without a name (O_TMPFILE), and none given yet
        self._begin()

    def _begin(self) -> None:
        self._own: set[int] = set()
        self.stored: dict[int, Stored] = {}  # data of the operation in flight
        self.in_place: set[tuple[int, str]] = set()  # and its times
        self.moved: set[int] = set()  # to a range of their own or from there, in a record before

    def clone(self):
        """A copy that later operations on this one, or on the copy, leave alone."""
        out = copy.copy(self)
        out.nodes = dict(self.nodes)
        out._begin()
        return out

    def apply(self, op) -> int:
        """Do *op*; the errno that is due, 0 for success."""
        self.now += STEP
        self._begin()
        try:
            getattr(self, "_" + op[0])(*op[1:])
        except OSError as error:
            return error.errno
        return 0

    # -- finding ---------------------------------------------------------------------------

    def edit(self, number: int) -> Node:
        """The node, to be changed in this model alone."""
        if number not in self._own:
            node = copy.copy(self.nodes[number])
            node.xattrs = dict(node.xattrs)
            if node.names is not None:
                node.names = dict(node.names)
            self.nodes[number] = node
            self._own.add(number)
        return self.nodes[number]

    def place(self, path: str) -> tuple[int, bytes]:
        """(number of the directory, last name); "" is the root."""
        at, parts = ROOT, path.encode().split(b"/")
        for part in parts[:-1]:
            at = self.nodes[at].names.get(part, 0)
            if not at:
                raise fail(errno.ENOENT)
            if not self.nodes[at].is_dir:
                raise fail(errno.ENOTDIR)
        return at, parts[-1]

    def find(self, path: str) -> int:
        parent, name = self.place(path)
        number = self.nodes[parent].names.get(name, 0) if name else ROOT
        if not number:
            raise fail(errno.ENOENT)
        return number

    def _file(self, path: str) -> int:
        """A regular file, as an open for writing that follows nothing finds it."""
        number = self.find(path)
        kind = self.nodes[number].kind
        if kind != REG:
            raise fail({DIR: errno.EISDIR, LNK: errno.ELOOP}.get(kind, errno.ENXIO))
        if number not in self.held:
            self._follow(number)
        return number

    def _wants_own(self, node: Node) -> bool:
        return self.policy.pool and node.kind == REG and bool(node.flags & DAX)

    def _follow(self, number: int) -> None:
        """The first open moves data to where the DAX flag says: all of it, durable."""
        want = self._wants_own(self.nodes[number])
        if want != self.nodes[number].own:
            node = self.edit(number)
            node.own, node.loose = want, True
            node.sparse = node.sparse or node.content.written != node.content.whole().written
            node.content = node.content.durable().whole()
            self.moved.add(number)

    def tree(self) -> dict[str, int]:
        """{path: number}, the root as ""."""
        out, todo = {"": ROOT}, [("", ROOT)]
        while todo:
            path, number = todo.pop()
            for name, child in self.nodes[number].names.items():
                below = f"{path}/{name.decode()}" if path else name.decode()
                out[below] = child
                if self.nodes[child].is_dir:
                    todo.append((below, child))
        return out

    # -- names -----------------------------------------------------------------------------

    def _changed(self, number: int) -> Node:
        """A directory whose names change."""
        node = self.edit(number)
        node.mtime = node.ctime = (self.now,)
        return node

    def _enter(self, parent: int, name: bytes, number: int) -> None:
        node = self._changed(parent)
        node.names[name] = number
        node.added += 16 + (len(name) + 7 & ~7)

    def _remove(self, parent: int, name: bytes) -> None:
        node = self._changed(parent)
        del node.names[name]
        if not node.names:
            node.added = 1  # of its blocks the first is kept

    def _make(self, path: str, mode: int, rdev: int = 0, target: str = "") -> None:
        parent, name = self.place(path)
        if not name or name in self.nodes[parent].names:
            raise fail(errno.EEXIST)
        number = self._born(parent, mode, rdev, target)
        if self.nodes[number].is_dir:
            self.nodes[number].parent = parent
            self.edit(parent).nlink += 1
        self._enter(parent, name, number)

    def _born(self, parent: int, mode: int, rdev: int = 0, target: str = "") -> int:
        """The number of a new inode with what it has from its directory."""
        within = self.nodes[parent]
        node = Node(mode, self.now, rdev=rdev, target=target.encode())
        node.flags = within.flags & (USER_FLAGS if node.kind in (REG, DIR) else ANY_TYPE)
        node.own = self._wants_own(node)
        if within.mode & SETGID:  # the group is inherited, by directories the bit as well
            node.gid = within.gid
            node.mode |= SETGID if node.is_dir else 0
        number, self.next = self.next, self.next + 1
        self.nodes[number] = node
        self._own.add(number)
        return number

    def _create(self, path):
        self._make(path, REG | 0o644)

    def _mkdir(self, path):
        self._make(path, DIR | 0o755)

    def _mknod(self, path):
        self._make(path, FIFO | 0o600, rdev=0)

    def _symlink(self, path, target):
        self._make(path, LNK | 0o777, target=target)

    def _tmpfile_in(self, path) -> int:
        parent = self.find(path)
        if not self.nodes[parent].is_dir:
            raise fail(errno.ENOTDIR)
        number = self._born(parent, REG | 0o644)
        self.nodes[number].nlink = 0
        self.held += (number,)
        self.nameless |= {number}
        return number

    def _link_held(self, new):
        if not self.held:
            raise fail(errno.EBADF)
        self._link_to(self.held[-1], new)

    def _link(self, path, new):
        self._link_to(self.find(path), new)

    def _link_to(self, number: int, new: str) -> None:
        parent, name = self.place(new)
        if not name or name in self.nodes[parent].names:
            raise fail(errno.EEXIST)
        if self.nodes[number].is_dir:
            raise fail(errno.EPERM)
        if not self.nodes[number].nlink and number not in self.nameless:
            raise fail(errno.ENOENT)
        self.nameless -= {number}
        node = self.edit(number)
        node.nlink += 1
        node.ctime = (self.now,)
        self._enter(parent, name, number)

    def _unlinked(self, number: int) -> None:
        """A name of *number* went. A directory loses both its links."""
        node = self.edit(number)
        node.nlink -= 2 if node.is_dir else 1
        node.ctime = (self.now,)
        self._reap(number)

    def _reap(self, number: int) -> None:
        if number in self.nodes and not self.nodes[number].nlink and number not in self.held:
            del self.nodes[number]

    def _unlink(self, path):
        parent, name = self.place(path)
        number = self.find(path)
        if self.nodes[number].is_dir:
            raise fail(errno.EISDIR)
        self._remove(parent, name)
        self._unlinked(number)

    def _rmdir(self, path):
        parent, name = self.place(path)
        number = self.find(path)
        if number == ROOT:
            raise fail(errno.EBUSY)
        node = self.nodes[number]
        if not node.is_dir:
            raise fail(errno.ENOTDIR)
        if node.names:
            raise fail(errno.ENOTEMPTY)
        self._remove(parent, name)
        self.edit(parent).nlink -= 1
        self._unlinked(number)

    def _above(self, number: int, below: int) -> bool:
        """True where directory *number* is *below* or one of the directories over it."""
        while below != number and below != ROOT:
            below = self.nodes[below].parent
        return below == number

    def _both(self, old: str, new: str) -> tuple:
        """(parent, name, number) of *old*, and the same of *new* with 0 where it is absent."""
        parent, name = self.place(old)
        to, to_name = self.place(new)
        if not name or not to_name:
            raise fail(errno.EBUSY)
        number = self.find(old)
        return parent, name, number, to, to_name, self.nodes[to].names.get(to_name, 0)

    def _whiteout(self, old, new):
        self._rename(old, new, whiteout=True)

    def _rename(self, old, new, whiteout=False):
        parent, name, number, to, to_name, over = self._both(old, new)
        node, is_dir = self.nodes[number], self.nodes[number].is_dir
        if is_dir and self._above(number, to):
            raise fail(errno.EINVAL)
        if over and self.nodes[over].is_dir and self._above(over, parent):
            raise fail(errno.ENOTEMPTY)
        if over == number:
            return
        if over:
            if is_dir != self.nodes[over].is_dir:
                raise fail(errno.ENOTDIR if is_dir else errno.EISDIR)
            if is_dir and self.nodes[over].names:
                raise fail(errno.ENOTEMPTY)
        self._changed(to)
        if over:
            self.nodes[to].names[to_name] = number
        else:
            self._enter(to, to_name, number)
        if whiteout:
            self._changed(parent).names[name] = self._born(parent, CHR)
        else:
            self._remove(parent, name)
        node = self.edit(number)
        node.ctime = (self.now,)
        if is_dir:
            self.edit(parent).nlink -= 1
            self.edit(to).nlink += not over
            node.parent = to
        if over:
            self._unlinked(over)

    def _exchange(self, old, new):
        parent, name, number, to, to_name, other = self._both(old, new)
        if not other:
            raise fail(errno.ENOENT)
        for moved, place in ((number, to), (other, parent)):
            if self.nodes[moved].is_dir and self._above(moved, place):
                raise fail(errno.EINVAL)
        if number == other:
            return
        for moved, source, dest, dest_name in ((number, parent, to, to_name), (other, to, parent, name)):
            self._changed(dest).names[dest_name] = moved
            node = self.edit(moved)
            node.ctime = (self.now,)
            if node.is_dir:
                self.edit(source).nlink -= 1
                self.edit(dest).nlink += 1
                node.parent = dest
