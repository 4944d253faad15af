# SPDX-License-Identifier: MIT
"""A region with one of everything, always the same bytes: for checker tests and frozen images.

`make` formats a file with a fixed UUID and clock and fills it; `EXPECTED` says what
is to be found on it. Uses daxfs.meta alone, no mount.
"""

import itertools
import os
import shutil
import stat
from contextlib import contextmanager
from unittest import mock

from daxfs import layout as L
from daxfs.errors import CorruptError
from daxfs.meta import attr, file, fs, mkfs, namespace, own, placement, poison, xattr
from daxfs.meta import dir as directory
from daxfs.region import Region, create_file

MIB = 1 << 20
UUID = bytes(range(16))
EPOCH = 1_700_000_000 * 10**9
CREDS = namespace.Creds(1000, 100)
ACL_ACCESS = b"system.posix_acl_access"
ACL_DEFAULT = b"system.posix_acl_default"
LONG_TARGET = b"../" + b"long/" * 40
BIG_NAMES = 300  # names in /big: more than one directory block
HOLES = 700  # extents of /sparse: inline slots and three extent blocks
ACL = bytes.fromhex("02000000") + b"".join(
    tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little")
    for tag, perm, who in ((1, 6, 2**32 - 1), (2, 4, 1001), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1),
                           (32, 0, 2**32 - 1))
)  # fmt: skip


def content(size: int, salt: int = 0) -> bytes:
    """Bytes that differ from page to page and from file to file."""
    return bytes((i * 7 + (i >> 12) * 13 + salt) & 0xFF for i in range(size))


@contextmanager
def deterministic():
    """UUIDs and creation time of mkfs that do not change from run to run."""
    numbers = itertools.count(1)

    class Fixed:
        def __init__(self):
            self.bytes = next(numbers).to_bytes(16, "big")

    with (
        mock.patch.object(mkfs.uuidlib, "uuid4", Fixed),
        mock.patch.object(mkfs.time, "time_ns", lambda: EPOCH),
    ):
        yield


def steady(mounted):
    """Give a FileSystem a clock that counts milliseconds from EPOCH."""
    ticks = itertools.count(1)
    mounted.clock = lambda: EPOCH + next(ticks) * 10**6
    return mounted


def write(mounted, ino: int, pos: int, data: bytes) -> None:
    """Write as the data path does: fill the fresh pages, drain, publish."""
    node = mounted.open(ino)
    if node.map.own is not None:
        write_own(mounted, node, pos, data)
        mounted.release(node)
        return
    plan = file.prepare_write(mounted, node, pos, len(data))
    assert plan.length == len(data)
    for pgoff, pages, pfn in plan.fresh:
        start, length = pgoff << 12, pages << 12
        page = bytearray(length)
        low, high = max(start, pos), min(start + length, pos + len(data))
        page[low - start : high - start] = data[low - pos : high - pos]
        mounted.region.nt_store(pfn << 12, bytes(page))
    mounted.region.drain()
    plan.commit(mounted.clock())
    mounted.release(node)


def write_own(mounted, node, pos: int, data: bytes) -> None:
    """Write into a range: the size first, then the bytes in it."""
    if pos + len(data) > node.map.size:
        file.truncate(mounted, node, pos + len(data), mounted.clock())
    range_ = node.map.own
    with node.map:
        range_.cover(node.map, pos >> 12, own.pages_of(pos + len(data)))
        mounted.region.nt_store((range_.pfn << 12) + pos, data)
    mounted.region.drain()
    own.forget_times(mounted, node.ino)


def read(mounted, ino: int) -> bytes:
    """All of a file. CorruptError where damage made it larger than any that is made here."""
    node = mounted.node(ino)
    if node.map.size > 64 * MIB:
        raise CorruptError(f"inode {ino}: {node.map.size} bytes")
    if node.map.own is not None:
        return os.pread(node.map.own.fd, node.map.size, 0)
    out = bytearray(node.map.size)
    for pgoff, pages, pfn, kind, _ in node.map.extents():
        if kind == 2:
            at = pgoff << 12
            data = bytes(mounted.mem[pfn << 12 : (pfn + pages) << 12])
            out[at : at + len(data)] = data[: max(len(out) - at, 0)]
    return bytes(out)


def fill(mounted) -> None:
    """Files, directories, links, nodes, attributes, an orphan."""

    def make(parent, name, mode, **more):
        return namespace.create(mounted, parent, name, mode, CREDS, **more).ino

    root = 1
    write(mounted, make(root, b"file", 0o100644), 0, content(10000))
    sub = make(root, b"dir", 0o040755)
    write(mounted, make(sub, b"inner", 0o100600), 4096, content(5000, 1))
    make(sub, b"empty", 0o040700)
    namespace.link(mounted, lookup(mounted, b"/file").ino, sub, b"hard")
    make(root, b"short", 0o120777, target=b"dir/inner")
    make(root, b"long", 0o120777, target=LONG_TARGET)
    make(root, b"null", 0o020666, rdev=0x103)
    make(root, b"fifo", 0o010644)
    make(root, b"socket", 0o140755)
    big = make(root, b"big", 0o040755)
    for i in range(BIG_NAMES):
        make(big, b"name-%04d" % i, 0o100644)
    for i in range(0, BIG_NAMES, 3):
        namespace.unlink(mounted, big, b"name-%04d" % i)
    sparse = make(root, b"sparse", 0o100644)
    for i in range(HOLES):
        write(mounted, sparse, i * 8192, content(16, i))
    make(root, b"odd \xff\n name", 0o104755)
    gone = make(root, b"gone", 0o100644)
    write(mounted, gone, 0, content(4096, 9))
    namespace.unlink(mounted, root, b"gone")
    attributes(mounted)


def attributes(mounted) -> None:
    """Extended attributes and ACLs."""
    ino = lookup(mounted, b"/file").ino
    xattr.put(mounted, ino, b"user.color", b"blue")
    xattr.put(mounted, ino, b"user.large", content(6000, 3))
    xattr.put(mounted, ino, ACL_ACCESS, ACL)
    xattr.put(mounted, lookup(mounted, b"/dir").ino, ACL_DEFAULT, ACL)


FLAGS = {b"/file": 0x300, b"/dir": 0xF00, b"/fifo": 0x400}  # set by `flags`; what is made in /dir has them


def flags(mounted) -> None:
    """Users' flags, and a change of the label that a power failure cut short: the superblock is torn."""
    for path, bits in FLAGS.items():
        attr.set_flags(mounted, lookup(mounted, path).ino, bits)
    namespace.create(mounted, lookup(mounted, b"/dir").ino, b"heir", 0o100644, CREDS)
    namespace.create(mounted, lookup(mounted, b"/dir").ino, b"link", 0o120777, CREDS, target=b"heir")
    mounted.unmount()
    old = bytes(mounted.mem[:4096])
    mounted.change_superblock(label=b"cut short")
    mounted.region.store(0, old[:64])
    mounted.region.store(4096 + 96, b"\1")


def poisoned(mounted) -> None:
    """Poisoned pages of two files and of free space; the last changes of the list are to be replayed."""
    ino = lookup(mounted, b"/sparse").ino
    poison.add(mounted, poison.places(mounted, 0, 1, ino))
    (start, _), *_ = mounted.alloc.runs()
    mounted.journal.settle()
    poison.add(mounted, [(poison.PACKED, start + 2, start + 5)])
    poison.add(mounted, poison.places(mounted, 0, 1, lookup(mounted, b"/file").ino))
    poison.clear(mounted, [(poison.PACKED, start + 3, start + 4)])


def owned(mounted) -> None:
    """Files in ranges of their own: made there, moved there and away, removed; with holes, a link, xattrs."""
    top = namespace.create(mounted, 1, b"dax", 0o040755, CREDS).ino
    attr.set_flags(mounted, top, L.FLAG_DAX)

    def make(name, mode=0o100644):
        return namespace.create(mounted, top, name, mode, CREDS).ino

    write(mounted, make(b"small"), 0, content(10000, 20))
    write(mounted, make(b"twin"), 0, content(12000, 27))
    make(b"empty")
    sparse = make(b"sparse")
    for i in range(8):
        write(mounted, sparse, i * 100000, content(5000, 30 + i))
    file.truncate(mounted, mounted.node(sparse), 5 << 20, mounted.clock())
    cut = make(b"cut")
    write(mounted, cut, 0, content(50000, 21))
    file.truncate(mounted, mounted.node(cut), 12345, mounted.clock())
    xattr.put(mounted, cut, b"user.large", content(5000, 22))
    sub = make(b"sub", 0o040700)
    namespace.link(mounted, cut, sub, b"hard")
    write(mounted, namespace.create(mounted, sub, b"heir", 0o100600, CREDS).ino, 4096, content(4096, 23))
    moved = make(b"moved")
    write(mounted, moved, 0, content(30000, 24))
    follow(mounted, moved, 0)
    back = namespace.create(mounted, 1, b"own", 0o100644, CREDS).ino
    write(mounted, back, 8192, content(30000, 25))
    follow(mounted, back, L.FLAG_DAX)
    gone = make(b"gone")
    write(mounted, gone, 0, content(4096, 26))
    namespace.unlink(mounted, top, b"gone")


def follow(mounted, ino: int, flags: int) -> None:
    """Change the flags of a closed file, and move its data where they say."""
    attr.set_flags(mounted, ino, flags)
    node = mounted.open(ino)
    placement.follow(mounted, node)
    mounted.release(node)


def kill_own(mounted) -> None:
    """A daemon dies: an open orphan with a range, a range that is longer, one without an inode."""
    top, longer = lookup(mounted, b"/dax").ino, lookup(mounted, b"/own")
    ino = namespace.create(mounted, top, b"orphan", 0o100644, CREDS).ino
    write(mounted, ino, 0, content(9000, 28))
    node = mounted.open(ino)
    namespace.unlink(mounted, top, b"orphan")
    mounted.pool.resize(longer.ino, longer.generation, 40)
    mounted.pool.create(200, 1)
    mounted.pool.resize(200, 1, 3)
    assert node.opens


def lookup(mounted, path: bytes):
    """The inode of an absolute path."""
    inode = mounted.inodes.read(1)
    for name in path.split(b"/")[1:]:
        inode = namespace.lookup(mounted, inode.ino, name)
        assert inode is not None, path
    return inode


def make(
    path: str, size: int = 16 * MIB, orphan: bool = False, more=(), flagged=False, own_ranges=False,
    poisonous=False, **options
) -> str:
    """Format *path* (and *more* sources) and fill it; unmounted cleanly.

    *orphan*: the daemon was killed instead, with an unlinked file in use. *flagged*: as `flags` does.
    *own_ranges*: as `owned` does; *path* ends in a slash, it is a pool directory.
    *poisonous*: as `poisoned` does.
    """
    for source in (path, *more):
        create_file(source, size)
    with deterministic(), Region.open([path, *more]) as region:
        mkfs.make(region, mkfs.plan(region, **{"label": b"frozen", "uuid": UUID, **options}))
        mounted = steady(fs.mount(region))
        fill(mounted)
        if own_ranges:
            owned(mounted)
        if own_ranges and orphan:
            kill_own(mounted)
        elif orphan:
            ino = namespace.create(mounted, 1, b"orphan", 0o100644, CREDS).ino
            write(mounted, ino, 0, content(9000, 5))
            mounted.open(ino)
            namespace.unlink(mounted, 1, b"orphan")
        elif flagged:
            flags(mounted)
        elif poisonous:
            poisoned(mounted)
        else:
            mounted.unmount()
    return path


def tree(mounted, ino: int = 1, path: bytes = b"") -> dict[bytes, tuple]:
    """path -> (mode, uid, gid, nlink, size, mtime, content or target or None, xattrs) of everything.

    CorruptError where a directory is inside itself.
    """
    if path.count(b"/") > 20:
        raise CorruptError(f"inode {ino}: too deep")
    inode = mounted.inodes.read(ino)
    kind = inode.mode & 0o170000
    data = None
    if kind == 0o100000:
        data = read(mounted, ino)
    elif kind == 0o120000:
        data = namespace.readlink(mounted, ino)
    attrs = {name: xattr.get(mounted, ino, name) for name in xattr.names(mounted, ino)}
    fields = (inode.mode, inode.uid, inode.gid, inode.nlink, inode.size, inode.mtime)
    out = {path or b"/": (*fields, data, attrs)}
    if kind == 0o040000:
        for name, child, _, _ in sorted(directory.listing(mounted, mounted.node(ino), 64)):
            out.update(tree(mounted, child, path + b"/" + name))
    return out


def copy(source: str, dest: str) -> str:
    """Copy a sparse file, holes as holes, or a pool directory of such files."""
    if os.path.isdir(source):
        os.makedirs(dest, 0o700, exist_ok=True)
        for name in os.listdir(source):
            copy(os.path.join(source, name), os.path.join(dest, name))
        return dest
    with open(source, "rb") as old, open(dest, "wb") as new:
        end = os.fstat(old.fileno()).st_size
        new.truncate(end)
        at = 0
        while at < end:
            try:
                at = os.lseek(old.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            stop = os.lseek(old.fileno(), at, os.SEEK_HOLE)
            at += os.copy_file_range(old.fileno(), new.fileno(), stop - at, at, at)
    os.chmod(dest, os.stat(source).st_mode)
    return dest


def remove(path: str) -> None:
    """Remove a file, or a pool directory with all that is in it."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def digest(path: str) -> bytes:
    """A checksum of a file's bytes, to see that nothing changed; of a directory: of all that is in it."""
    import hashlib

    if os.path.isdir(path):
        whole = hashlib.blake2b()
        for name in sorted(os.listdir(path)):
            one = os.path.join(path, name)
            have = os.lstat(one)
            plain = stat.S_ISREG(have.st_mode) or stat.S_ISDIR(have.st_mode)
            whole.update(repr((name, have.st_mode, have.st_nlink)).encode())
            whole.update(digest(one) if plain else b"")
        return whole.digest()
    with open(path, "rb") as source:
        os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return hashlib.file_digest(source, "blake2b").digest()
