# SPDX-License-Identifier: MIT
"""Files without a name (O_TMPFILE) and what a rename leaves behind (RENAME_WHITEOUT)."""

import errno
import stat

import oracle
import pytest

from daxfs import layout as L
from daxfs.errors import DaxfsError
from daxfs.meta import acl, attr, file, xattr
from daxfs.meta import namespace as ns
from daxfs.pfn import PAGE_SHIFT, PAGE_SIZE

ROOT = L.ROOT_INO
WHO = ns.Creds(7, 8, 0o027)
WHITEOUT = ns.RENAME_WHITEOUT
FULL = [(1, 6, 0), (2, 4, 1000), (4, 4, 0), (16, 4, 0), (32, 0, 0)]


def code(call, *args) -> int:
    try:
        call(*args)
    except DaxfsError as error:
        return error.errno
    return 0


def filled(fs, ino: int, pages: int = 3):
    """*ino* open, with data."""
    node = fs.open(ino)
    plan = file.prepare_write(fs, node, 0, pages * PAGE_SIZE)
    for _, count, pfn in plan.fresh:
        fs.region.nt_fill(pfn << PAGE_SHIFT, 5, count << PAGE_SHIFT)
    # Orders the data before the record that makes them reachable.
    fs.region.drain()
    plan.commit(fs.clock())
    return node


def names(fs, ino: int = ROOT):
    return sorted(name for name, *_ in ns.readdir(fs, ino, 0) if name not in (b".", b".."))


# -- O_TMPFILE --------------------------------------------------------------------------


def test_a_tmpfile_is_made_as_create_makes_a_file(small_fs, fsck):
    fs = small_fs
    directory = ns.create(fs, ROOT, b"d", 0o042775, ns.Creds(0, 55)).ino
    before = fs.inodes.read(directory)
    made = ns.tmpfile(fs, directory, 0o666, WHO)
    assert (made.mode, made.uid, made.gid, made.nlink, made.parent) == (0o100640, 7, 55, 0, 0)
    assert made.atime == made.mtime == made.ctime == made.btime > before.mtime
    assert fs.inodes.read(directory) == before and names(fs, directory) == []
    xattr.put(fs, directory, b"system.posix_acl_default", acl.pack(FULL))
    second = ns.tmpfile(fs, directory, 0o777, WHO)
    assert xattr.names(fs, second.ino) == [b"system.posix_acl_access"]
    assert fs.orphans == {made.ino, second.ino}
    fsck(fs)


def test_a_tmpfile_is_gone_after_a_crash_with_its_blocks(small_fs, crash_copy):
    fs = small_fs
    free = fs.alloc.free_pages
    made = ns.tmpfile(fs, ROOT, 0o600, WHO)
    filled(fs, made.ino)
    copy = crash_copy(fs)
    assert code(copy.inodes.read, made.ino) == errno.ESTALE and not copy.orphans
    assert copy.alloc.free_pages + copy.alloc.held == free
    oracle.check(copy, closed=True)


def test_a_tmpfile_goes_with_its_last_user(small_fs):
    fs = small_fs
    made = ns.tmpfile(fs, ROOT, 0o600, WHO)
    node = filled(fs, made.ino)
    fs.release(node)
    assert code(fs.inodes.read, made.ino) == errno.ESTALE
    assert not fs.orphans and not fs.linkable
    again = ns.create(fs, ROOT, b"x", 0o100644, WHO)
    assert again.ino == made.ino and again.generation != made.generation
    oracle.check(fs, closed=True)


def test_link_gives_a_tmpfile_its_first_name(small_fs, crash_copy, fsck):
    fs = small_fs
    made = ns.tmpfile(fs, ROOT, 0o600, WHO)
    node = filled(fs, made.ino)
    records = fs.journal.records
    linked = ns.link(fs, made.ino, ROOT, b"name")
    assert fs.journal.records == records + 1 and linked.nlink == 1 and linked.ctime > made.ctime
    assert not fs.orphans and not fs.linkable
    copy = crash_copy(fs)
    found = ns.lookup(copy, ROOT, b"name")
    assert (found.ino, found.size, found.nlink) == (made.ino, 3 * PAGE_SIZE, 1)
    oracle.check(copy)
    ns.link(fs, made.ino, ROOT, b"second")
    ns.unlink(fs, ROOT, b"name")
    ns.unlink(fs, ROOT, b"second")
    assert code(ns.link, fs, made.ino, ROOT, b"third") == errno.ENOENT  # once unlinked it is too late
    fsck(fs)
    fs.release(node)
    oracle.check(fs, closed=True)


def test_not_every_tmpfile_may_get_a_name(small_fs):
    fs = small_fs
    made = ns.tmpfile(fs, ROOT, 0o600, WHO, linkable=False)
    fs.open(made.ino)
    assert code(ns.link, fs, made.ino, ROOT, b"name") == errno.ENOENT and names(fs) == []


def test_a_tmpfile_that_fails_leaves_nothing(small_fs, monkeypatch):
    fs = small_fs
    gone = ns.create(fs, ROOT, b"gone", 0o040755, WHO).ino
    fs.open(gone)
    ns.rmdir(fs, ROOT, b"gone")
    plain = ns.create(fs, ROOT, b"plain", 0o100644, WHO).ino
    assert code(ns.tmpfile, fs, gone, 0o600, WHO) == errno.ENOENT
    assert code(ns.tmpfile, fs, plain, 0o600, WHO) == errno.ENOTDIR

    def fails(_):
        raise OSError(errno.EIO, "")

    before = fs.inodes.used, len(fs.inodes.free), set(fs.orphans)
    made = ns.tmpfile(fs, ROOT, 0o600, WHO)
    node = fs.open(made.ino)
    monkeypatch.setattr(fs.journal, "commit", fails)
    for call in (lambda: ns.tmpfile(fs, ROOT, 0o600, WHO), lambda: ns.link(fs, made.ino, ROOT, b"n")):
        with pytest.raises(OSError):
            call()
        assert fs.orphans == before[2] | {made.ino} and fs.linkable == {made.ino}
    monkeypatch.undo()
    ns.link(fs, made.ino, ROOT, b"n")  # it may be tried again
    ns.unlink(fs, ROOT, b"n")
    fs.release(node)
    assert (fs.inodes.used, len(fs.inodes.free), fs.orphans) == before
    oracle.check(fs)


# -- RENAME_WHITEOUT --------------------------------------------------------------------


@pytest.mark.parametrize("kind", (0o100644, 0o040755), ids=("file", "directory"))
@pytest.mark.parametrize("where", ("same", "other"))
@pytest.mark.parametrize("over", (False, True), ids=("new", "over"))
def test_whiteout(small_fs, crash_copy, fsck, kind, where, over):
    fs = small_fs
    source = ns.create(fs, ROOT, b"a", 0o042775, ns.Creds(0, 55)).ino
    target = source if where == "same" else ns.create(fs, ROOT, b"b", 0o040755, WHO).ino
    moved = ns.create(fs, source, b"old", kind, WHO).ino
    if over:
        ns.create(fs, target, b"new", kind, WHO)
    links = fs.inodes.read(source).nlink, fs.inodes.read(target).nlink
    records = fs.journal.records
    ns.rename(fs, source, b"old", target, b"new", WHITEOUT, ns.Creds(9, 10))
    assert fs.journal.records == records + 1
    copy = crash_copy(fs)
    for one in (fs, copy):
        left = ns.lookup(one, source, b"old")
        assert (left.mode, left.rdev, left.nlink) == (stat.S_IFCHR, 0, 1)
        assert (left.uid, left.gid) == (9, 55)  # the group of a setgid directory
        assert ns.lookup(one, target, b"new").ino == moved
        kinds = {name: kind for name, _, kind, _ in ns.readdir(one, source, 0)}
        assert kinds[b"old"] == stat.S_IFCHR >> 12
        oracle.check(one, closed=True)
    if kind == 0o040755:
        lost = links[0] - fs.inodes.read(source).nlink
        assert lost == (0 if where == "same" and not over else 1)
    fsck(fs)


def test_whiteout_with_other_flags(small_fs):
    fs = small_fs
    for name in (b"f", b"g"):
        ns.create(fs, ROOT, name, 0o100644, WHO)
    ns.link(fs, ns.lookup(fs, ROOT, b"f").ino, ROOT, b"same")
    both = WHITEOUT | ns.RENAME_NOREPLACE
    assert code(ns.rename, fs, ROOT, b"f", ROOT, b"g", WHITEOUT | ns.RENAME_EXCHANGE) == errno.EINVAL
    assert code(ns.rename, fs, ROOT, b"f", ROOT, b"g", both) == errno.EEXIST
    ns.rename(fs, ROOT, b"f", ROOT, b"same", WHITEOUT)  # two names of one inode: nothing happens
    assert names(fs) == [b"f", b"g", b"same"] and ns.lookup(fs, ROOT, b"f").nlink == 2
    ns.rename(fs, ROOT, b"g", ROOT, b"h", both, WHO)
    assert names(fs) == [b"f", b"g", b"h", b"same"] and ns.lookup(fs, ROOT, b"g").mode == stat.S_IFCHR
    ns.rename(fs, ROOT, b"g", ROOT, b"h2", WHITEOUT, WHO)  # a whiteout is a name like others
    ns.unlink(fs, ROOT, b"g")
    oracle.check(fs, closed=True)


def test_a_whiteout_that_fails_leaves_nothing(small_fs, monkeypatch):
    fs = small_fs
    ns.create(fs, ROOT, b"f", 0o100644, WHO)
    before = fs.inodes.used, len(fs.inodes.free)

    def fails(_):
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(fs.journal, "commit", fails)
    with pytest.raises(OSError):
        ns.rename(fs, ROOT, b"f", ROOT, b"g", WHITEOUT, WHO)
    monkeypatch.undo()
    assert (fs.inodes.used, len(fs.inodes.free)) == before and names(fs) == [b"f"]
    attr.setattr(fs, ROOT, {"mode": 0o755})
    oracle.check(fs, closed=True)
