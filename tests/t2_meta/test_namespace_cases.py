# SPDX-License-Identifier: MIT
"""Each error of the name operations, full regions, unlinked-but-open files, reused pages."""

import errno

import oracle
import pytest
from test_directory import listing

from daxfs import layout as L
from daxfs.errors import DaxfsError
from daxfs.meta import attr, extent, file, xattr
from daxfs.meta import fs as meta_fs
from daxfs.meta import namespace as ns
from daxfs.pfn import PAGE_SHIFT, PAGE_SIZE
from daxfs.region import Region

ROOT, WHO = L.ROOT_INO, ns.Creds(7, 8)
LONG = b"n" * 256


@pytest.fixture
def fs(small_fs):
    """file, dir (with inside), empty, link -> x, a second name of file, and an unlinked open directory."""
    fs = small_fs
    fs.file = ns.create(fs, ROOT, b"file", 0o100644, WHO).ino
    fs.dir = ns.create(fs, ROOT, b"dir", 0o040755, WHO).ino
    fs.inside = ns.create(fs, fs.dir, b"inside", 0o100644, WHO).ino
    ns.create(fs, ROOT, b"empty", 0o040755, WHO)
    ns.create(fs, ROOT, b"link", 0o120777, WHO, target=b"x")
    ns.link(fs, fs.file, ROOT, b"other")
    fs.gone = ns.create(fs, ROOT, b"gone", 0o040755, WHO).ino
    fs.open(fs.gone)
    ns.rmdir(fs, ROOT, b"gone")
    return fs


def code(call, *args, **kwargs):
    with pytest.raises(DaxfsError) as caught:
        call(*args, **kwargs)
    return caught.value.errno


def state(fs):
    """All that an operation may change: media but the journal's ring, free space, numbers."""
    ring = fs.journal.base, fs.journal.ring + fs.journal.size
    media = bytes(fs.mem[: ring[0]]), bytes(fs.mem[ring[1] :])
    return media, fs.alloc.runs(), sorted(fs.alloc._held), sorted(fs.inodes.free), set(fs.orphans)


ERRORS = [
    ("create", (ROOT, b"file", 0o100644, WHO), errno.EEXIST),
    ("create", (ROOT, b"dir", 0o040755, WHO), errno.EEXIST),
    ("create", ("file", b"x", 0o100644, WHO), errno.ENOTDIR),
    ("create", ("gone", b"x", 0o100644, WHO), errno.ENOENT),
    ("create", (ROOT, LONG, 0o100644, WHO), errno.ENAMETOOLONG),
    ("create", (ROOT, b"", 0o100644, WHO), errno.EINVAL),
    ("create", (ROOT, b"..", 0o100644, WHO), errno.EINVAL),
    ("create", (ROOT, b"a/b", 0o100644, WHO), errno.EINVAL),
    ("create", (ROOT, b"a\0b", 0o100644, WHO), errno.EINVAL),
    ("create", (999, b"x", 0o100644, WHO), errno.ESTALE),
    ("create", (ROOT, b"s", 0o120777, WHO, 0, b"t" * 4096), errno.ENAMETOOLONG),
    ("link", ("file", ROOT, b"dir"), errno.EEXIST),
    ("link", ("dir", ROOT, b"x"), errno.EPERM),
    ("link", ("file", "file", b"x"), errno.ENOTDIR),
    ("link", ("file", "gone", b"x"), errno.ENOENT),
    ("link", ("file", ROOT, LONG), errno.ENAMETOOLONG),
    ("unlink", (ROOT, b"none"), errno.ENOENT),
    ("unlink", (ROOT, b"dir"), errno.EISDIR),
    ("unlink", ("file", b"x"), errno.ENOTDIR),
    ("unlink", (ROOT, LONG), errno.ENAMETOOLONG),
    ("rmdir", (ROOT, b"none"), errno.ENOENT),
    ("rmdir", (ROOT, b"file"), errno.ENOTDIR),
    ("rmdir", (ROOT, b"link"), errno.ENOTDIR),
    ("rmdir", (ROOT, b"dir"), errno.ENOTEMPTY),
    ("rmdir", (ROOT, b"."), errno.EINVAL),
    ("rmdir", (ROOT, b".."), errno.ENOTEMPTY),
    ("rmdir", (ROOT, LONG), errno.ENAMETOOLONG),
    ("rename", (ROOT, b"none", ROOT, b"x"), errno.ENOENT),
    ("rename", (ROOT, b"file", "gone", b"x"), errno.ENOENT),
    ("rename", (ROOT, b"file", "file", b"x"), errno.ENOTDIR),
    ("rename", (ROOT, b"file", ROOT, b"dir"), errno.EISDIR),
    ("rename", (ROOT, b"dir", ROOT, b"file"), errno.ENOTDIR),
    ("rename", (ROOT, b"empty", ROOT, b"dir"), errno.ENOTEMPTY),
    ("rename", (ROOT, b"file", ROOT, LONG), errno.ENAMETOOLONG),
    ("rename", (ROOT, LONG, ROOT, b"x"), errno.ENAMETOOLONG),
    ("rename", (ROOT, b"file", ROOT, b"."), errno.EINVAL),
    ("rename", (ROOT, b"file", ROOT, b"x", 8), errno.EINVAL),
    ("rename", (ROOT, b"file", ROOT, b"dir", ns.RENAME_WHITEOUT | ns.RENAME_EXCHANGE), errno.EINVAL),
    ("rename", (ROOT, b"file", ROOT, b"dir", ns.RENAME_WHITEOUT | ns.RENAME_NOREPLACE), errno.EEXIST),
    ("rename", (ROOT, b"file", ROOT, b"x", 3), errno.EINVAL),
    ("rename", (ROOT, b"file", ROOT, b"dir", ns.RENAME_NOREPLACE), errno.EEXIST),
    ("rename", (ROOT, b"file", ROOT, b"none", ns.RENAME_EXCHANGE), errno.ENOENT),
    ("lookup", (ROOT, LONG), errno.ENAMETOOLONG),
    ("lookup", ("file", b"x"), errno.ENOTDIR),
    ("readlink", ("file",), errno.EINVAL),
]


@pytest.mark.parametrize("name, args, expected", ERRORS)
def test_errors_change_nothing(fs, name, args, expected):
    args = [getattr(fs, arg) if isinstance(arg, str) else arg for arg in args]
    before = state(fs)
    assert code(getattr(ns, name), fs, *args) == expected
    assert state(fs) == before
    oracle.check(fs)


def test_readonly_refuses_every_change(fs):
    fs.sync_all()
    copy = None
    with Region.open([fs.region.sources[0].path], "cow", lock=False) as region:
        copy = meta_fs.mount(region, readonly=True)
        for call, *args in (
            (ns.create, ROOT, b"x", 0o100644, WHO),
            (ns.link, fs.file, ROOT, b"x"),
            (ns.unlink, ROOT, b"file"),
            (ns.rmdir, ROOT, b"empty"),
            (ns.rename, ROOT, b"file", ROOT, b"x"),
            (attr.setattr, fs.file, {"mode": 0}),
            (attr.setattr, fs.file, {"size": 0}),
            (xattr.put, fs.file, b"user.a", b""),
        ):
            assert code(call, copy, *args) == errno.EROFS, call
        attr.touch_read(copy, fs.file)
        assert copy.inodes.read(fs.file) == fs.inodes.read(fs.file)
        assert ns.lookup(copy, ROOT, b"file").ino == fs.file
        copy.unmount()
        del copy


def test_link_max(fs, monkeypatch):
    monkeypatch.setattr(L, "LINK_MAX", 4)
    ns.link(fs, fs.file, ROOT, b"three")
    ns.link(fs, fs.file, ROOT, b"four")
    assert code(ns.link, fs, fs.file, ROOT, b"five") == errno.EMLINK
    for n in range(2):
        ns.create(fs, fs.dir, b"%d" % n, 0o040755, WHO)
    assert fs.inodes.read(fs.dir).nlink == 4
    assert code(ns.create, fs, fs.dir, b"x", 0o040755, WHO) == errno.EMLINK
    assert code(ns.rename, fs, ROOT, b"empty", fs.dir, b"x") == errno.EMLINK
    assert code(ns.rename, fs, ROOT, b"empty", fs.dir, b"inside", ns.RENAME_EXCHANGE) == errno.EMLINK
    assert code(ns.rename, fs, fs.dir, b"inside", ROOT, b"empty", ns.RENAME_EXCHANGE) == errno.EMLINK
    ns.rename(fs, ROOT, b"empty", fs.dir, b"0")
    ns.create(fs, ROOT, b"empty", 0o040755, WHO)
    ns.rename(fs, ROOT, b"empty", fs.dir, b"1", ns.RENAME_EXCHANGE)
    oracle.check(fs)


def test_owner_group_and_setgid(fs):
    attr.setattr(fs, fs.dir, {"gid": 99, "mode": 0o2775})
    made = ns.create(fs, fs.dir, b"f", 0o100644, WHO)
    sub = ns.create(fs, fs.dir, b"d", 0o040755, WHO)
    assert (made.uid, made.gid, made.mode) == (7, 99, 0o100644)
    assert (sub.uid, sub.gid, sub.mode) == (7, 99, 0o042755)


def test_dot_and_dotdot(fs):
    assert ns.lookup(fs, fs.dir, b".").ino == fs.dir and ns.lookup(fs, fs.dir, b"..").ino == ROOT
    assert ns.lookup(fs, ROOT, b"..").ino == ROOT


@pytest.mark.parametrize("length", [1, 95, 96, 97, 4095])
def test_symlinks_of_any_length(fs, crash_copy, length):
    target = bytes(range(1, 256)) * 17
    inode = ns.create(fs, ROOT, b"s", 0o120777, WHO, target=target[:length])
    copy = crash_copy(fs)
    assert ns.readlink(fs, inode.ino) == ns.readlink(copy, inode.ino) == target[:length]
    oracle.check(copy)
    ns.unlink(copy, ROOT, b"s")
    oracle.check(copy)


def write_file(fs, name: bytes, pages: int, byte: int):
    """A file of *pages* pages of *byte*, as the data layer writes it; its first pfn."""
    node = fs.open(ns.create(fs, ROOT, name, 0o100644, WHO).ino)
    plan = file.prepare_write(fs, node, 0, pages * PAGE_SIZE)
    for _, count, pfn in plan.fresh:
        fs.region.nt_fill(pfn << PAGE_SHIFT, byte, count * PAGE_SIZE)
    # Orders the data before the record that makes them reachable.
    fs.region.drain()
    plan.commit(fs.clock())
    return node


@pytest.mark.parametrize("kind", ["symlink", "directory", "xattr", "extents"])
def test_replay_never_writes_over_data_in_reused_pages(fs, crash_copy, kind):
    """Pages that a record since the tail wrote to become file data; replay must leave those alone."""
    if kind == "symlink":
        ns.create(fs, ROOT, b"s", 0o120777, WHO, target=b"t" * 4000)
    elif kind == "directory":
        ino = ns.create(fs, ROOT, b"d", 0o040755, WHO).ino
        for n in range(50):
            ns.create(fs, ino, b"%d" % n, 0o100644, WHO)
        for n in range(50):
            ns.unlink(fs, ino, b"%d" % n)
    elif kind == "xattr":
        xattr.put(fs, fs.file, b"user.a", b"x" * 5000)
    else:
        node = fs.open(ns.create(fs, ROOT, b"f", 0o100644, WHO).ino)
        for n in range(0, 40, 2):
            with fs.begin() as tx:
                ((pfn, _),) = tx.alloc(1)
                extent.replace(tx, tx.inode(node.ino), node, n, n + 1, [(n, 1, pfn, extent.MAPPED)])
        fs.release(node)
    if kind == "xattr":
        xattr.remove(fs, fs.file, b"user.a")
    else:
        (ns.rmdir if kind == "directory" else ns.unlink)(
            fs, ROOT, {"symlink": b"s", "directory": b"d"}.get(kind, b"f")
        )
    node = write_file(fs, b"big", fs.alloc.free_pages - 4, 0xAB)
    copy = crash_copy(fs)
    oracle.check(copy)
    for _, length, pfn, _, _ in copy.node(node.ino).map.extents():
        data = bytes(copy.mem[pfn << PAGE_SHIFT : (pfn + length) << PAGE_SHIFT])
        assert data == b"\xab" * len(data), "replay wrote over file data"


def test_full_region_stays_usable(fs, crash_copy, fsck):
    """Every operation that needs space fails with ENOSPC and changes nothing; those that give it work."""
    for n in range(200):
        ns.create(fs, ROOT, b"keep%03d" % n, 0o100644, WHO)
    node = write_file(fs, b"big", fs.alloc.free_pages + fs.alloc.held - file.RESERVE, 1)
    assert code(file.prepare_write, fs, node, 1 << 30, 1) == errno.ENOSPC
    count = 0
    with pytest.raises(DaxfsError) as caught:
        for count in range(2000):
            ns.create(fs, fs.dir, b"%d" % count + b"x" * 250, 0o100644, WHO)
    assert caught.value.errno == errno.ENOSPC and count > 10
    assert fs.alloc.free_pages + fs.alloc.held == 0
    before = state(fs)
    for call, *args in (
        (ns.create, fs.dir, b"y" * 255, 0o100644, WHO),
        (ns.create, ROOT, b"long", 0o120777, WHO, 0, b"t" * 200),
        (ns.link, fs.file, fs.dir, b"y" * 255),
        (ns.rename, ROOT, b"file", fs.dir, b"y" * 255),
        (xattr.put, fs.file, b"user.a", b"v"),
    ):
        assert code(call, fs, *args) == errno.ENOSPC, call
        assert state(fs) == before, call
    oracle.check(fs)
    ns.rename(fs, ROOT, b"keep000", ROOT, b"keep001")
    attr.setattr(fs, fs.file, {"mode": 0o600, "uid": 3})
    for n in range(1, 200):
        ns.unlink(fs, ROOT, b"keep%03d" % n)
    fs.release(node)
    ns.unlink(fs, ROOT, b"big")
    ns.create(fs, fs.dir, b"y" * 255, 0o100644, WHO)
    fsck(fs)
    oracle.check(fs)
    oracle.check(crash_copy(fs))


def test_unlinked_but_open(fs, crash_copy, fsck):
    node = write_file(fs, b"big", 100, 3)
    ns.unlink(fs, ROOT, b"big")
    assert fs.inodes.read(node.ino).nlink == 0 and node.ino in fs.orphans
    assert len(node.map.extents()) == 1 and code(ns.link, fs, node.ino, ROOT, b"x") == errno.ENOENT
    assert listing(fs, fs.gone) == []
    fsck(fs)
    copy = crash_copy(fs)
    assert not copy.orphans and code(copy.inodes.read, node.ino) == errno.ESTALE
    oracle.check(copy, closed=True)
    fs.remember(node.ino)
    fs.release(node)
    assert fs.inodes.read(node.ino).nlink == 0
    fs.forget(node.ino, 1)
    assert code(fs.inodes.read, node.ino) == errno.ESTALE
    oracle.check(fs)


@pytest.mark.parametrize("kind", ["unlink", "rmdir", "rename over"])
def test_the_last_name_and_the_inode_go_together_or_not_at_all(fs, crash_copy, kind, monkeypatch):
    """One record: a failure leaves both, a crash after it neither, and nobody is an orphan in between."""
    fs.release(fs.nodes[fs.gone])
    node = write_file(fs, b"big", 100, 3)
    xattr.put(fs, node.ino, b"user.a", b"x" * 5000)
    fs.release(node)
    ns.create(fs, ROOT, b"new", 0o100644, WHO)
    empty = ns.lookup(fs, ROOT, b"empty").ino
    call, victim = {
        "unlink": (lambda: ns.unlink(fs, ROOT, b"big"), node.ino),
        "rmdir": (lambda: ns.rmdir(fs, ROOT, b"empty"), empty),
        "rename over": (lambda: ns.rename(fs, ROOT, b"new", ROOT, b"big"), node.ino),
    }[kind]
    held = fs.inodes.read(victim).blocks

    def fails(_):
        raise OSError(errno.EIO, "")

    before, free = state(fs), fs.alloc.free_pages + fs.alloc.held
    monkeypatch.setattr(fs.journal, "commit", fails)
    with pytest.raises(OSError):
        call()
    assert state(fs) == before and fs.inodes.read(victim).nlink
    oracle.check(fs)
    monkeypatch.undo()
    records = fs.journal.records
    call()
    assert fs.journal.records == records + 1 and not fs.orphans and victim not in fs.nodes
    assert code(fs.inodes.read, victim) == errno.ESTALE
    assert fs.alloc.free_pages + fs.alloc.held == free + held
    oracle.check(fs, closed=True)
    copy = crash_copy(fs)
    oracle.check(copy, closed=True)
    assert code(copy.inodes.read, victim) == errno.ESTALE


def test_unmount_finishes_what_is_open(fs, maker):
    write_file(fs, b"big", 100, 3)
    ns.unlink(fs, ROOT, b"big")
    fs.unmount()
    assert fs.journal.head == fs.journal.tail
    assert meta_fs.state_of(fs.mem, fs.seed)["mounted"] == 0
    copy = maker.crash_copy(fs)
    assert copy.replayed == 0
    oracle.check(copy, closed=True)
