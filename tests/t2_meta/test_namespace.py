# SPDX-License-Identifier: MIT
"""Whole operations against a model of the tree: names, link counts, parents, times, every errno."""

import errno

import oracle
import regions
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from daxfs import layout as L
from daxfs.errors import DaxfsError
from daxfs.meta import namespace as ns

ROOT = L.ROOT_INO
LINK_MAX = 6
DIR, REG, LNK = 0o040000, 0o100000, 0o120000

names = st.sampled_from([b"a", b"b", b"c", b"d" * 255, b"e"])
slots = st.integers(0, 5)


class Thing:
    """An inode of the model. ``names``: of a directory; ``holders``: lookups and opens."""

    def __init__(self, kind, parent=None):
        self.kind, self.parent = kind, parent
        self.names: dict[bytes, Thing] | None = {} if kind == DIR else None
        self.links = 0 if kind == DIR else 1
        self.ino = self.removed = None
        self.lookups, self.opens = 0, []
        self.ctime = self.mtime = 0

    def nlink(self):
        if self.names is None:
            return self.links
        return 0 if self.removed else 2 + sum(c.kind == DIR for c in self.names.values())


class Expected(Exception):
    def __init__(self, code):
        self.code = code


class Tree:
    """The model: what each operation does, or Expected(errno)."""

    def __init__(self):
        self.root = Thing(DIR)
        self.root.parent, self.root.ino = self.root, ROOT
        self.things = [self.root]

    def need(self, ok, code):
        if not ok:
            raise Expected(code)

    def parent(self, thing):
        self.need(thing.names is not None, errno.ENOTDIR)
        return thing

    def create(self, where, name, kind):
        self.parent(where)
        self.need(not where.removed, errno.ENOENT)
        self.need(name not in where.names, errno.EEXIST)
        self.need(kind != DIR or where.nlink() < LINK_MAX, errno.EMLINK)
        where.names[name] = made = Thing(kind, where)
        self.things.append(made)
        return made

    def link(self, thing, where, name):
        self.parent(where)
        self.need(thing.names is None, errno.EPERM)
        self.need(thing.links and not where.removed, errno.ENOENT)
        self.need(thing.links < LINK_MAX, errno.EMLINK)
        self.need(name not in where.names, errno.EEXIST)
        where.names[name] = thing
        thing.links += 1

    def find(self, where, name):
        self.parent(where)
        self.need(name in where.names, errno.ENOENT)
        return where.names[name]

    def unlink(self, where, name):
        thing = self.find(where, name)
        self.need(thing.names is None, errno.EISDIR)
        del where.names[name]
        thing.links -= 1
        return thing

    def rmdir(self, where, name):
        thing = self.find(where, name)
        self.need(thing.names is not None, errno.ENOTDIR)
        self.need(not thing.names, errno.ENOTEMPTY)
        del where.names[name]
        thing.removed = True
        return thing

    def rename(self, where, name, to, new, flags):
        self.parent(where), self.parent(to)
        self.need(name in where.names and not to.removed, errno.ENOENT)
        thing, over = where.names[name], to.names.get(new)
        if flags == ns.RENAME_EXCHANGE:
            self.need(over is not None, errno.ENOENT)
            self.exchange(where, name, to, new)
            return None
        self.need(over is None or not flags, errno.EEXIST)
        if over is thing:
            return None
        if over is not None:
            if over.names is None:
                self.need(thing.names is None, errno.ENOTDIR)
            else:
                self.need(thing.names is not None, errno.EISDIR)
                self.need(not over.names, errno.ENOTEMPTY)
        elif thing.names is not None and where is not to:
            self.need(to.nlink() < LINK_MAX, errno.EMLINK)
        del where.names[name]
        to.names[new] = thing
        self.moved(thing, to)
        if over is not None:
            over.links -= over.names is None
            over.removed = over.names is not None
        return over

    def exchange(self, where, name, to, new):
        thing, over = where.names[name], to.names[new]
        if where is not to:
            for one, other, target in ((thing, over, to), (over, thing, where)):
                gains = one.names is not None and other.names is None
                self.need(not gains or target.nlink() < LINK_MAX, errno.EMLINK)
        where.names[name], to.names[new] = over, thing
        self.moved(thing, to), self.moved(over, where)

    def moved(self, thing, to):
        if thing.names is not None:
            thing.parent = to

    def inside(self, thing, other):
        """True where *other* is *thing* or below it (the kernel refuses such a rename)."""
        while other is not thing and other is not other.parent:
            other = other.parent
        return other is thing


class NamespaceMachine(RuleBasedStateMachine):
    """Every operation on any inode, in and out of place; then the whole tree is compared."""

    @initialize()
    def start(self):
        self.limit, L.LINK_MAX = L.LINK_MAX, LINK_MAX
        self.maker = regions.Maker()
        self.fs = self.maker.make()
        self.tree = Tree()

    def teardown(self):
        if hasattr(self, "maker"):
            L.LINK_MAX = self.limit
            self.fs.unmount()
            oracle.check(self.fs, closed=True)
            self.maker.close()

    def thing(self, n):
        """One of the newest inodes that still exist, the root now and then."""
        alive = [t for t in self.tree.things if t.nlink() or t.lookups or t.opens]
        return alive[0] if n == 0 else alive[-(n % len(alive)) or 0]

    def both(self, model, real):
        """Run both; the same errno, or the results. An error changes nothing that is on the media."""
        try:
            expected = model()
        except Expected as error:
            before = bytes(self.fs.journal.head.to_bytes(8, "little"))
            try:
                real()
            except DaxfsError as got:
                assert got.errno == error.code, (got.errno, error.code)
                assert before == self.fs.journal.head.to_bytes(8, "little")
                return None
            raise AssertionError(f"errno {error.code} expected") from None
        return expected, real()

    @rule(where=slots, name=names, kind=st.sampled_from([DIR, DIR, REG, LNK]), long=st.booleans())
    def create(self, where, name, kind, long):
        where = self.thing(where)
        target = (b"t" * (3000 if long else 30)) if kind == LNK else b""
        got = self.both(
            lambda: self.tree.create(where, name, kind),
            lambda: ns.create(self.fs, where.ino, name, kind | 0o755, ns.ROOT, target=target),
        )
        if got:
            made, inode = got
            made.ino, made.mtime, made.ctime = inode.ino, inode.mtime, inode.ctime
            where.mtime = where.ctime = inode.ctime
            assert inode.atime == inode.mtime == inode.ctime == inode.btime == self.fs.clock.now
            if target:
                assert ns.readlink(self.fs, inode.ino) == target

    @rule(what=slots, where=slots, name=names)
    def link(self, what, where, name):
        what, where = self.thing(what), self.thing(where)
        if self.both(
            lambda: self.tree.link(what, where, name), lambda: ns.link(self.fs, what.ino, where.ino, name)
        ):
            what.ctime = where.mtime = where.ctime = self.fs.clock.now

    @rule(where=slots, name=names, directory=st.booleans())
    def remove(self, where, name, directory):
        where = self.thing(where)
        model, real = (self.tree.rmdir, ns.rmdir) if directory else (self.tree.unlink, ns.unlink)
        got = self.both(lambda: model(where, name), lambda: real(self.fs, where.ino, name))
        if got:
            assert got[0].ino == got[1]
            got[0].ctime = where.mtime = where.ctime = self.fs.clock.now

    @rule(where=slots, name=names, to=slots, new=names, flags=st.sampled_from([0, 0, 1, 2]))
    def rename(self, where, name, to, new, flags):
        where, to = self.thing(where), self.thing(to)
        thing = (where.names or {}).get(name)
        over = (to.names or {}).get(new)
        if (thing and self.tree.inside(thing, to)) or (flags == 2 and over and self.tree.inside(over, where)):
            return
        if (
            self.both(
                lambda: self.tree.rename(where, name, to, new, flags),
                lambda: ns.rename(self.fs, where.ino, name, to.ino, new, flags),
            )
            and thing is not over
        ):
            now = self.fs.clock.now
            thing.ctime = where.mtime = where.ctime = to.mtime = to.ctime = now
            if over:
                over.ctime = now

    @rule(what=slots)
    def look(self, what):
        thing = self.thing(what)
        self.fs.remember(thing.ino)
        thing.lookups += 1

    @rule(what=slots, count=st.integers(1, 3))
    def forget(self, what, count):
        thing = self.thing(what)
        count = min(count, thing.lookups)
        if count:
            thing.lookups -= count
            self.fs.forget(thing.ino, count)

    @rule(what=slots)
    def open(self, what):
        thing = self.thing(what)
        thing.opens.append(self.fs.open(thing.ino))

    @rule(what=slots)
    def release(self, what):
        thing = self.thing(what)
        if thing.opens:
            self.fs.release(thing.opens.pop())

    @rule()
    def crash(self):
        """On a copy: what had no name is gone, everything else is there."""
        self.maker.fsck(self.fs)
        copy = self.maker.crash_copy(self.fs)
        named = [t for t in self.tree.things if t.nlink()]
        assert set(oracle.check(copy, closed=True)) == {t.ino for t in named}
        self.maker.drop(copy)

    @invariant()
    def same(self):
        if not hasattr(self, "maker"):
            return
        inodes = oracle.check(self.fs)
        alive = [t for t in self.tree.things if t.nlink() or t.lookups or t.opens]
        assert set(inodes) == {t.ino for t in alive}
        for thing in alive:
            inode = inodes[thing.ino]
            assert inode.mode & 0o170000 == thing.kind and inode.nlink == thing.nlink()
            if thing is not self.tree.root:
                assert (inode.mtime, inode.ctime) == (thing.mtime, thing.ctime)
            if thing.names is None:
                continue
            found = {name: child for name, child, _, _ in ns.readdir(self.fs, thing.ino, 0)}
            if thing.removed:
                assert found == {}
                continue
            assert found.pop(b".") == thing.ino and found.pop(b"..") == thing.parent.ino == inode.parent
            assert found == {name: child.ino for name, child in thing.names.items()}
            for name in (b"a", b"b", b"d" * 255):
                there = ns.lookup(self.fs, thing.ino, name)
                assert (there and there.ino) == found.get(name)


TestNamespaceMachine = NamespaceMachine.TestCase
TestNamespaceMachine.settings = settings(max_examples=50, stateful_step_count=40)
