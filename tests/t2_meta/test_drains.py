# SPDX-License-Identifier: MIT
"""Each operation makes the drains and records that drains.TABLE says, no more and no fewer."""

from pathlib import Path

import drains
import populate
import pytest

from daxfs import layout as L
from daxfs.errors import DaxfsError
from daxfs.meta import acl, attr, extent, fallocate, file, placement, poison, prealloc, xattr
from daxfs.meta import namespace as ns
from daxfs.pfn import PAGE_SHIFT, PAGE_SIZE

ROOT = L.ROOT_INO
FULL = [(1, 6, 0), (2, 4, 1000), (4, 4, 0), (16, 4, 0), (32, 0, 0)]
CASES = {}


def case(name: str):
    """Register a function that prepares and returns the call to be counted."""

    def keep(function):
        CASES[name] = function
        return function

    return keep


def make(fs, name=b"f", mode=0o100644, parent=ROOT, **kwargs):
    return ns.create(fs, parent, name, mode, ns.ROOT, **kwargs).ino


def written(fs, pages=4):
    """A file with blocks; its number."""
    node = fs.open(make(fs))
    plan = file.prepare_write(fs, node, 0, pages * PAGE_SIZE - 100)
    for _, count, pfn in plan.fresh:
        fs.region.nt_fill(pfn << PAGE_SHIFT, 1, count << PAGE_SHIFT)
    plan.commit(fs.clock())
    return node.ino


def flagged(fs):
    """A file with a flag; its number."""
    ino = make(fs)
    attr.set_flags(fs, ino, L.FLAG_DAX)
    return ino


def simple(name: str, prepare, call):
    """A case whose call takes what *prepare(fs)* gave."""

    def both(fs):
        given = prepare(fs)
        return lambda: call(fs, given)

    CASES[name] = both


def nothing(fs):
    make(fs, b"first")


def nameless(fs):
    return fs.open(ns.tmpfile(fs, ROOT, 0o600, ns.ROOT).ino)


simple("create", nothing, lambda fs, _: make(fs))
simple(
    "create, first name of a directory", lambda fs: make(fs, b"d", 0o040755), lambda fs, d: make(fs, parent=d)
)
simple("mkdir", nothing, lambda fs, _: make(fs, mode=0o040755))
simple("symlink", nothing, lambda fs, _: make(fs, mode=0o120777, target=b"t"))
simple("symlink, long target", nothing, lambda fs, _: make(fs, mode=0o120777, target=b"t" * 4000))
simple("mknod", nothing, lambda fs, _: make(fs, mode=0o020600, rdev=5))
simple("link", make, lambda fs, ino: ns.link(fs, ino, ROOT, b"g"))
simple("rename", make, lambda fs, ino: ns.rename(fs, ROOT, b"f", ROOT, b"g"))
simple("rename that leaves a whiteout", make, lambda fs, _: ns.rename(fs, ROOT, b"f", ROOT, b"g", 4))
simple("O_TMPFILE", nothing, lambda fs, _: ns.tmpfile(fs, ROOT, 0o600, ns.ROOT))
simple("link of an O_TMPFILE file", nameless, lambda fs, node: ns.link(fs, node.ino, ROOT, b"g"))
simple("last close of an O_TMPFILE file", nameless, lambda fs, node: fs.release(node))
simple("chmod", make, lambda fs, ino: attr.setattr(fs, ino, {"mode": 0o600}))
simple("chown", make, lambda fs, ino: attr.setattr(fs, ino, {"uid": 1, "gid": 2}))
simple("utimens", make, lambda fs, ino: attr.setattr(fs, ino, {"atime": 1, "mtime": 2}))
simple("flags of an inode, the first of the region", make, lambda fs, ino: attr.set_flags(fs, ino, 0x100))
simple("flags of an inode", flagged, lambda fs, ino: attr.set_flags(fs, ino, L.FLAG_NODUMP))
simple("label", nothing, lambda fs, _: fs.change_superblock(label=b"a new one"))
simple("setxattr", make, lambda fs, ino: xattr.put(fs, ino, b"user.a", b"1"))
simple("setxattr, ACL", make, lambda fs, ino: xattr.put(fs, ino, b"system.posix_acl_access", acl.pack(FULL)))
simple("unlink, last", make, lambda fs, ino: ns.unlink(fs, ROOT, b"f"))
simple("rmdir", lambda fs: make(fs, mode=0o040755), lambda fs, ino: ns.rmdir(fs, ROOT, b"f"))
simple("unlink, still open", lambda fs: fs.open(make(fs)), lambda fs, node: ns.unlink(fs, ROOT, b"f"))
simple("truncate to zero", written, lambda fs, ino: attr.setattr(fs, ino, {"size": 0}))
simple("truncate, shorter", written, lambda fs, ino: attr.setattr(fs, ino, {"size": PAGE_SIZE}))
simple("truncate, longer", make, lambda fs, ino: attr.setattr(fs, ino, {"size": 1 << 30}))
simple(
    "truncate, longer, from within a page", written, lambda fs, ino: attr.setattr(fs, ino, {"size": 1 << 30})
)
simple("lookup", make, lambda fs, ino: ns.lookup(fs, ROOT, b"f"))
simple("readdir", make, lambda fs, ino: list(ns.readdir(fs, ROOT, 0)))
simple("readlink", lambda fs: make(fs, mode=0o120777, target=b"t" * 999), ns.readlink)
simple("access time after a read", make, attr.touch_read)
simple("times after a write in place", make, attr.touch_write)


def falloc(name: str, prepare, mode: int, pos: int, length: int):
    """A case of fallocate on the file that *prepare(fs)* made."""

    def both(fs):
        node = fs.node(prepare(fs))
        return lambda: fallocate.fallocate(fs, node, mode, pos, length, fs.clock())

    CASES[name] = both


def scattered(fs):
    """A file of 2,500 extents."""
    node = fs.open(make(fs))
    fallocate.fallocate(fs, node, 1, 0, 5000 * PAGE_SIZE, fs.clock())
    for page in range(1, 5000, 2):
        fallocate.fallocate(fs, node, 3, page * PAGE_SIZE, PAGE_SIZE, fs.clock())
    return node.ino


falloc("fallocate", make, 0, 100, 9 * PAGE_SIZE)
falloc("fallocate, keep size", written, 1, 0, 9 * PAGE_SIZE)
falloc("fallocate that grows the file from within a page", written, 0, 0, 9 * PAGE_SIZE)
falloc("fallocate, punch hole", written, 3, PAGE_SIZE, PAGE_SIZE)
falloc("fallocate, punch hole, edges in written pages", written, 3, 100, 3 * PAGE_SIZE)
falloc("fallocate, zero range, edges in written pages", written, 0x10, 100, 3 * PAGE_SIZE)
falloc("fallocate, punch hole over 2,500 extents", scattered, 3, 0, 5000 * PAGE_SIZE)


@case("create, new inode chunk")
def _(fs):
    for n in range(len(fs.inodes.free)):
        make(fs, b"%d" % n)
    return lambda: make(fs)


@case("rename over a file")
def _(fs):
    make(fs)
    make(fs, b"g")
    return lambda: ns.rename(fs, ROOT, b"f", ROOT, b"g")


@case("rename over a file, still open")
def _(fs):
    make(fs)
    fs.open(make(fs, b"g"))
    return lambda: ns.rename(fs, ROOT, b"f", ROOT, b"g")


@case("rename over a directory")
def _(fs):
    make(fs, mode=0o040755)
    make(fs, b"g", 0o040755)
    return lambda: ns.rename(fs, ROOT, b"f", ROOT, b"g")


@case("unlink, last, with extent blocks and xattrs")
def _(fs):
    """However much an inode holds, the record that frees it is no larger."""
    node = fs.open(make(fs))
    for n in range(0, 1000, 2):
        with fs.begin() as tx:
            ((pfn, _),) = tx.alloc(1)
            extent.replace(tx, tx.inode(node.ino), node, n, n + 1, [(n, 1, pfn, extent.UNWRITTEN)])
    xattr.put(fs, node.ino, b"user.a", b"v" * 5000)
    fs.release(node)

    def unlink():
        before = fs.journal.bytes
        ns.unlink(fs, ROOT, b"f")
        assert fs.journal.bytes - before < 1024

    return unlink


@case("rename, exchange")
def _(fs):
    make(fs)
    make(fs, b"g", 0o040755)
    return lambda: ns.rename(fs, ROOT, b"f", ROOT, b"g", ns.RENAME_EXCHANGE)


@case("unlink, other links left")
def _(fs):
    ns.link(fs, make(fs), ROOT, b"g")
    return lambda: ns.unlink(fs, ROOT, b"g")


@case("last close of an unlinked file")
def _(fs):
    node = fs.nodes[written(fs)]
    ns.unlink(fs, ROOT, b"f")
    return lambda: fs.release(node)


@case("getxattr")
def _(fs):
    ino = make(fs)
    xattr.put(fs, ino, b"user.a", b"1")
    return lambda: xattr.get(fs, ino, b"user.a")


@case("removexattr")
def _(fs):
    ino = make(fs)
    xattr.put(fs, ino, b"user.a", b"1")
    return lambda: xattr.remove(fs, ino, b"user.a")


@case("write that needs blocks, data apart")
def _(fs):
    plan = file.prepare_write(fs, fs.open(make(fs)), 0, 10 * PAGE_SIZE)
    return lambda: plan.commit(fs.clock())


@case("append into written pages, data apart")
def _(fs):
    node = fs.node(written(fs))
    fs.journal.settle()
    return lambda: file.grow(fs, node, 4 * PAGE_SIZE, fs.clock())


@case("preallocated pages go back")
def _(fs):
    node = fs.open(make(fs))
    node.appends = prealloc.STREAM
    file.prepare_write(fs, node, 0, 100).commit(fs.clock())
    assert fs.preallocated
    return lambda: prealloc.give_back(fs, node)


@case("fsync, inode in no record since the tail")
def _(fs):
    ino = written(fs)
    fs.journal.settle()
    attr.touch_write(fs, ino)
    return lambda: fs.sync_inode(ino)


@case("fsync, inode in a record since the tail")
def _(fs):
    ino = written(fs)
    return lambda: fs.sync_inode(ino)


def own(fs, size=9000):
    """The Node of a file in a range of its own."""
    fs.dax = "always"
    ino = make(fs, b"own")
    populate.write(fs, ino, 0, bytes(size))
    return fs.open(ino)


simple("own range: create", own, lambda fs, _: make(fs))


@case("own range: create, the first of the region")
def _(fs):
    nothing(fs)
    fs.dax = "always"
    return lambda: make(fs)


@case("own range: unlink, last")
def _(fs):
    fs.release(own(fs))
    return lambda: ns.unlink(fs, ROOT, b"own")


simple("own range: truncate, longer", own, lambda fs, node: file.truncate(fs, node, 50000, fs.clock()))
simple("own range: truncate, shorter", own, lambda fs, node: file.truncate(fs, node, 5000, fs.clock()))
simple("own range: fallocate", own, lambda fs, node: fallocate.fallocate(fs, node, 0, 0, 1 << 20, fs.clock()))
@case("own range: fallocate, punch hole")
def _(fs):
    node, mode = own(fs), fallocate.PUNCH_HOLE | fallocate.KEEP_SIZE
    return lambda: fallocate.fallocate(fs, node, mode, 0, 5000, fs.clock())


@case("own range: packed data move there")
def _(fs):
    make(fs, b"first")
    attr.set_flags(fs, own(fs).ino, 0)  # the superblock has both features
    fs.dax = "inode"
    node = fs.open(written(fs))
    fs.dax = "always"
    return lambda: placement.follow(fs, node)


@case("own range: data move to packed pages")
def _(fs):
    node = own(fs)
    fs.dax = "inode"
    return lambda: placement.follow(fs, node)


def poisoned(fs):
    """A file with four pages, the second one poisoned; its number."""
    ino = written(fs)
    poison.add(fs, poison.places(fs, PAGE_SIZE, PAGE_SIZE, ino))
    return ino


simple("poison: add", poisoned, lambda fs, ino: poison.add(fs, poison.places(fs, 0, 1, ino)))
simple("poison: add, the first of the region", written,
       lambda fs, ino: poison.add(fs, poison.places(fs, 0, 1, ino)))
simple("poison: clear", poisoned, lambda fs, ino: poison.clear(fs, poison.places(fs, 0, 1 << 20, ino)))


@case("poison: fallocate, punch hole over such pages")
def _(fs):
    node = fs.open(poisoned(fs))
    return lambda: fallocate.fallocate(fs, node, 3, 0, 3 * PAGE_SIZE, fs.clock())


@case("failed operation")
def _(fs):
    make(fs)

    def fails():
        with pytest.raises(DaxfsError):
            make(fs)
        with pytest.raises(DaxfsError):
            make(fs, b"s", 0o120777, target=b"t" * 5000)

    return fails


@pytest.mark.parametrize("name", drains.TABLE)
def test_drains_and_records(maker, name):
    maker.pool = name.startswith("own range")
    fs = maker.make(size=(32 if "extents" in name else 16) << 20)
    call = CASES[name](fs)
    before = fs.region.flush.counters()["drain"], fs.journal.records
    call()
    found = fs.region.flush.counters()["drain"] - before[0], fs.journal.records - before[1]
    assert found == drains.TABLE[name][:2]


def test_the_table_is_whole():
    assert set(CASES) == set(drains.TABLE)
    assert all(why for number, records, why in drains.TABLE.values() if (number, records) != (1, 1))


def test_one_more_drain_for_each_lap_of_the_ring(small_fs):
    """What a long run of operations costs: one drain each, three when a lap ends (skip, settle)."""
    fs = small_fs
    ino, before = make(fs), fs.region.flush.counters()["drain"]
    start = fs.journal.head
    for n in range(3000):
        attr.setattr(fs, ino, {"mode": n & 0o777})
    laps = (fs.journal.head - start) // fs.journal.size + 1
    assert 3000 <= fs.region.flush.counters()["drain"] - before <= 3000 + 3 * laps + 3


def test_the_documentation_quotes_the_table():
    text = (Path(__file__).parents[2] / "docs" / "durability.md").read_text()
    assert drains.markdown() in text
