# SPDX-License-Identifier: MIT
"""Extended attributes: all of an inode in one run of pages (`xattr_run` knows what it looks like).

The run has a block header whose checksum covers all of it. A change journals the header,
the lines that become different, and the inode, in one record: atomic, one drain, nothing to
mend. What is not journalled stands in place by an older record, which is durable, or is redone first.
The run stays where it is, so that removing one and chmod need no space. Only where it needs more pages
and those behind it are not free is there a new one, journalled whole, and the old one is freed.
The kernel checks permissions for each name space; ACLs are kept in step with the mode here. Metadata thread.
"""

import errno

from .. import layout as L
from ..errors import CorruptError, fail
from ..pfn import PAGE_SHIFT, PAGE_SIZE
from . import acl, xattr_run
from .xattr_run import Run

PREFIXES = {
    b"user.": L.XATTR_USER,
    b"trusted.": L.XATTR_TRUSTED,
    b"security.": L.XATTR_SECURITY,
}
ACL_NAMES = {
    b"system.posix_acl_access": L.XATTR_ACL_ACCESS,
    b"system.posix_acl_default": L.XATTR_ACL_DEFAULT,
}
_NAMES = {space: prefix for prefix, space in PREFIXES.items()} | {v: k for k, v in ACL_NAMES.items()}
VALUE_MAX = 65536
TOTAL_MAX = 256 * 1024
CREATE, REPLACE = 1, 2
CAPABILITY = (L.XATTR_SECURITY, b"capability")


def key_of(name: bytes) -> tuple[int, bytes]:
    """(name space, rest of the name). EOPNOTSUPP for other name spaces, ERANGE for a name over 255 bytes."""
    if len(name) > 255:
        raise fail(errno.ERANGE)
    if name in ACL_NAMES:
        return ACL_NAMES[name], b""
    for prefix, space in PREFIXES.items():
        if name.startswith(prefix):
            if len(name) == len(prefix):
                raise fail(errno.EINVAL)
            return space, name[len(prefix) :]
    raise fail(errno.EOPNOTSUPP)


def load(fs, inode) -> Run:
    """All attributes of *inode* (or an edit) as they stand in place. CorruptError where they are damaged."""
    if not inode.xattr_pfn:
        return xattr_run.EMPTY
    fs.check_run(inode.xattr_pfn, inode.xattr_pages, inode.ino)
    fs.check_poison(inode.xattr_pfn, inode.xattr_pages, inode.ino)
    head = fs.check_block(inode.xattr_pfn, L.BLOCK_XATTR, inode.ino)
    start = inode.xattr_pfn << PAGE_SHIFT
    if not L.BLOCK_SIZE <= head.length <= inode.xattr_pages * PAGE_SIZE:
        raise CorruptError(f"inode {inode.ino}: xattr run of {head.length} bytes")
    middle = start + L.BLOCK_SIZE
    front, body = bytes(fs.mem[start:middle]), bytes(fs.mem[middle : start + head.length])
    run = fs.xattrs.find(inode.ino, front, body)
    if run is None:
        if not L.is_sealed(front + body, 4, fs.seed):
            raise CorruptError(f"inode {inode.ino}: xattr run has a wrong checksum")
        run = xattr_run.parse(inode.ino, front, body, head.count)
        fs.xattrs.keep(inode.ino, run)
    return run


def change(tx, fs, edit, changes: dict) -> None:
    """Set attributes of *edit* to these values, or take them away (None). ENOSPC: too many, or no space."""
    had = run = _current(fs, edit)
    for key, value in changes.items():
        run = run.without(key) if value is None else run.with_value(key, value)
    if run is not had:
        _store(tx, fs, edit, had, run)


def _store(tx, fs, edit, had: Run, run: Run) -> None:
    """Give *edit*, which has the attributes *had* by now, those of *run*."""
    length, ino = L.BLOCK_SIZE + len(run.body), edit.number
    if length > TOTAL_MAX:
        raise fail(errno.ENOSPC)
    node = fs.nodes.get(ino)
    if node is not None:
        has = CAPABILITY in run
        tx.after(lambda: setattr(node, "capability", has))
    before = edit.xattr_pfn
    pfn = _place(tx, fs, edit, -(-length // PAGE_SIZE) if len(run) else 0)
    if pfn:
        fields = (L.BLOCK_MAGIC, 0, L.BLOCK_XATTR, edit.generation, ino, 0, pfn, 0, length, len(run), 0)
        head = bytearray(L.BLOCK_FIELDS.pack(*fields))
        crc = L.crc32c(run.body, L.crc32c(bytes(head), fs.seed))
        head[4:8] = crc.to_bytes(4, "little")
        run = run.sealed(bytes(head))
        start = pfn << PAGE_SHIFT
        if pfn != before or len(run.body) <= xattr_run.FEW:  # where to compare costs more
            tx.raw(start, run.head + run.body)
        else:
            tx.raw(start, run.head)
            for first, end in xattr_run.differences(had.body, run.body):
                tx.raw(start + L.BLOCK_SIZE + first, run.body[first:end])
    edit.attrs = run
    tx.after(lambda: fs.xattrs.keep(ino, run))


def _place(tx, fs, edit, pages: int) -> int:
    """Give *edit* a run of *pages* and free what it had and needs no more; the run's pfn, 0 for none."""
    pfn, had = edit.xattr_pfn, edit.xattr_pages
    if pages <= had:
        if pages < had:
            tx.free([(pfn + pages, had - pages)], metadata=True)
        pfn = pfn if pages else 0
    elif had and fs.alloc.starts.get(pfn + had, 0) >= pages - had:
        tx.alloc(pages - had, goal=pfn + had)  # right behind it, so that the rest can stay
    else:
        runs = tx.alloc(pages)
        if len(runs) != 1:
            raise fail(errno.ENOSPC, "no run of free pages for the extended attributes")
        if had:
            tx.free([(pfn, had)], metadata=True)
        pfn = runs[0][0]
    edit.xattr_pfn, edit.xattr_pages = pfn, pages
    edit.blocks += pages - had
    return pfn


def _current(fs, edit) -> Run:
    """The attributes of *edit*, with what its transaction changed already."""
    if edit.attrs is None:
        edit.attrs = load(fs, edit)
    return edit.attrs


def get(fs, ino: int, name: bytes) -> bytes:
    """The value. ENODATA where there is none."""
    inode = fs.inodes.read(ino)
    value = load(fs, inode).get(key_of(name))
    if value is None:
        raise fail(errno.ENODATA)
    return value


def names(fs, ino: int) -> list[bytes]:
    """Full names of all attributes."""
    return [_NAMES[space] + rest for space, rest in load(fs, fs.inodes.read(ino)).keys()]


def put(fs, ino: int, name: bytes, value: bytes, flags: int = 0, keeps_sgid=lambda gid: True) -> None:
    """setxattr(2). EEXIST, ENODATA by *flags*; E2BIG over 64 KiB; an ACL changes the mode with it.

    *keeps_sgid(gid)*: whether the caller may leave setgid set for that group (as chmod(2) asks).
    """
    if len(value) > VALUE_MAX:
        raise fail(errno.E2BIG)
    key = key_of(name)
    fs.inodes.read(ino)
    with fs.begin() as tx:
        edit = tx.inode(ino)
        there = flags & (CREATE | REPLACE) and key in _current(fs, edit)
        if flags & CREATE and there:
            raise fail(errno.EEXIST)
        if flags & REPLACE and not there:
            raise fail(errno.ENODATA)
        if key[0] in (L.XATTR_ACL_ACCESS, L.XATTR_ACL_DEFAULT):
            value = _put_acl(edit, key, acl.parse(value))
            if key[0] == L.XATTR_ACL_ACCESS and edit.mode & 0o2000 and not keeps_sgid(edit.gid):
                edit.mode &= ~0o2000
        edit.ctime = fs.clock()
        change(tx, fs, edit, {key: value})


def _put_acl(edit, key, entries) -> bytes | None:
    """The value for an ACL, None for none: an access ACL that the mode can say stands in the mode alone."""
    if key[0] == L.XATTR_ACL_DEFAULT:
        if edit.mode & 0o170000 != 0o040000:
            raise fail(errno.EACCES)
        return acl.pack(entries) if entries else None
    bits, plain = acl.equivalent_mode(entries)
    if entries:
        edit.mode = edit.mode & ~0o777 | bits
    return None if plain else acl.pack(entries)


def remove(fs, ino: int, name: bytes) -> None:
    """removexattr(2). ENODATA where there is none."""
    key = key_of(name)
    fs.inodes.read(ino)
    with fs.begin() as tx:
        edit = tx.inode(ino)
        if key not in _current(fs, edit):
            raise fail(errno.ENODATA)
        edit.ctime = fs.clock()
        change(tx, fs, edit, {key: None})


def after_chmod(tx, fs, edit) -> None:
    """Bring the access ACL in step with the mode that *edit* has now."""
    if not edit.xattr_pfn:
        return
    key = (L.XATTR_ACL_ACCESS, b"")
    value = _current(fs, edit).get(key)
    if value is not None:
        change(tx, fs, edit, {key: acl.pack(acl.with_mode(acl.parse(value), edit.mode))})


def inherited(fs, parent, mode: int, umask: int) -> tuple[dict, int]:
    """(attributes, mode) that a new inode with *mode* gets: by its directory's default ACL, or *umask*."""
    key = (L.XATTR_ACL_DEFAULT, b"")
    if mode & 0o170000 == 0o120000:
        return {}, mode
    default = load(fs, parent).get(key)
    if default is None:
        return {}, mode & ~(umask & 0o777)
    access, bits = acl.inherit(acl.parse(default), mode)
    out = {}
    if access is not None:
        out[L.XATTR_ACL_ACCESS, b""] = acl.pack(access)
    if mode & 0o170000 == 0o040000:
        out[key] = default
    return out, bits


def has_capability(fs, node) -> bool:
    """Whether an inode in use has file capabilities; looked up once, then `store` keeps the answer."""
    if node.capability is None:
        node.capability = CAPABILITY in load(fs, fs.inodes.read(node.ino))
    return node.capability


def without_capability(tx, fs, edit) -> None:
    """A write, truncation or chown takes file capabilities away."""
    if edit.xattr_pfn:
        change(tx, fs, edit, {CAPABILITY: None})
